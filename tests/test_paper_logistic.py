"""The experiment on MNIST: its cost, its claims, and a run of it that is interrupted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

from examples import data  # noqa: E402
from examples.paper import logistic  # noqa: E402
from examples.paper.lab import Lab, Size  # noqa: E402
from examples.paper.training import Grid, train  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

PIXELS, CLASSES = 6, 3


@pytest.fixture
def dataset():
    """Images whose brightest pixel tells the class."""
    random = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % CLASSES
    images = random.uniform(0, 0.6, (60, PIXELS)).astype(np.float32)
    images[np.arange(60), labels] = 1
    return data.Dataset("made up", images, labels, images[:20], labels[:20])


def test_cost_and_error_are_those_of_the_textbook(dataset):
    random = np.random.default_rng(1)
    params = {"weights": random.normal(size=(PIXELS, CLASSES)), "bias": random.normal(size=CLASSES)}
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    problem = logistic.problem(dataset)

    scores = dataset.train_images @ params["weights"] + params["bias"]
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = chances[np.arange(60), dataset.train_labels]
    expected = -np.log(right).mean() + logistic.L2 / 2 * np.sum(params["weights"] ** 2)
    cost = problem.loss(given, problem.examples, jax.random.key(0))
    np.testing.assert_allclose(cost, expected, rtol=1e-5)

    error = np.mean(scores[:20].argmax(axis=1) != dataset.test_labels)
    measured = problem.measure(given, problem.held_out)["test error"]
    np.testing.assert_allclose(measured, error, atol=1e-6)


def test_rate_decays_as_the_root_of_the_steps():
    rates = [float(logistic.decayed(0.5)(jnp.asarray(count))) for count in (0, 3, 99)]
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.05], rtol=1e-6)


def test_claims_are_judged_by_what_they_say():
    def grid(last, best=1):
        return Grid(np.ones(3), np.full((1, 3), last), {}, best, None)

    def verdicts(adam, nesterov, adagrad):
        grids = {"AdaGrad": adagrad, "SGDNesterov": nesterov, "Adam": adam}
        return [claim.holds for claim in logistic.claims(grids)]

    # Adam like SGD with momentum; both before AdaGrad.
    assert verdicts(grid(0.255), grid(0.25), grid(0.3)) == [True, True]
    assert verdicts(grid(0.256), grid(0.25), grid(0.3)) == [False, True]
    assert verdicts(grid(0.25), grid(0.25), grid(0.25)) == [True, False]
    assert verdicts(grid(0.25), grid(0.35), grid(0.3)) == [True, False]
    assert verdicts(grid(0.25), grid(0.25), grid(0.3, best=0)) == [True, None]
    assert verdicts(grid(0.25), grid(0.25, best=2), grid(0.3)) == [None, None]


class Interrupted(Lab):
    """Where the power fails after two epochs."""

    saved = 0

    def save(self, key, thing):
        super().save(key, thing)
        self.saved += 1
        if self.saved == 2:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(logistic, "BATCH", 12)
    monkeypatch.setattr(logistic, "RATES", {name: [0.0, 0.1, 1e3] for name in logistic.METHODS})
    monkeypatch.setattr(Size, "of", lambda self, **sizes: min(60, sizes["quick"]))
    quick, quiet = Size("quick"), Console(quiet=True)
    problem, (name, recipe) = logistic.problem(dataset), next(iter(logistic.METHODS.items()))
    elsewhere = Lab("logistic", quick, tmp_path / "elsewhere", quiet)
    straight = train(elsewhere, problem, name, recipe, logistic.RATES[name], epochs=5)

    with pytest.raises(KeyboardInterrupt):
        logistic.run(Interrupted("logistic", quick, tmp_path, quiet), dataset)
    lab = Lab("logistic", quick, tmp_path, quiet)
    outcome = logistic.run(lab, dataset)

    assert outcome.rows[0] == logistic.row(name, straight)
    np.testing.assert_array_equal(outcome.curves[name], straight.curve)
    for curve in outcome.curves.values():
        assert len(curve) == 5
        assert 0 < curve[-1] < curve[0] < np.log(CLASSES)
    lab.report(outcome, logistic.draw)
    stored = json.loads((tmp_path / "logistic/logistic.json").read_text())
    assert list(stored["curves"]) == list(logistic.METHODS)
    assert is_drawn(tmp_path / "logistic/logistic.png")
    assert not lab.unfinished.exists()
