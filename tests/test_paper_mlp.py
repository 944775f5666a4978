"""The experiment on a network of two hidden layers: its costs, its claims, a run of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

from examples import data  # noqa: E402
from examples.paper import mlp  # noqa: E402
from examples.paper.lab import Lab, Size  # noqa: E402
from examples.paper.mlp import Alone  # noqa: E402
from examples.paper.training import Grid, train  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

PIXELS, CLASSES = 6, 3


@pytest.fixture
def dataset(monkeypatch):
    """Images whose brightest pixel tells the class, for a small network."""
    monkeypatch.setattr(mlp, "HIDDEN", (8, 8))
    monkeypatch.setattr(mlp, "BATCH", 12)
    monkeypatch.setattr(mlp, "SUBFUNCTIONS", 5)
    random = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % CLASSES
    images = random.uniform(0, 0.6, (60, PIXELS)).astype(np.float32)
    images[np.arange(60), labels] = 1
    return data.Dataset("made up", images, labels, images[:20], labels[:20])


def test_the_deterministic_cost_is_that_of_the_textbook(dataset):
    problem = mlp.problem(dataset, dropout=False)
    params = problem.init(jax.random.key(0))
    x, weights = dataset.train_images.astype(float), [np.asarray(p["weights"]) for p in params]
    for weight in weights[:-1]:
        x = np.maximum(x @ weight, 0)
    exponentials = np.exp(x @ weights[-1])
    chances = exponentials / exponentials.sum(axis=1, keepdims=True)
    entropy = -np.log(chances[np.arange(60), dataset.train_labels]).mean()
    expected = entropy + mlp.L2 / 2 * sum(np.sum(weight**2) for weight in weights)
    cost = problem.loss(params, problem.examples, jax.random.key(1))
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    assert [weight.shape for weight in weights] == [(PIXELS, 8), (8, 8), (8, CLASSES)]


def test_dropout_drops_as_often_as_it_says_and_keeps_the_mean():
    x = mlp.dropped(jax.random.key(0), jnp.full((200, 200), 3.0), 0.2)
    values, counts = np.unique(np.asarray(x), return_counts=True)
    np.testing.assert_allclose(values, [0, 3 / 0.8], rtol=1e-6)
    np.testing.assert_allclose(counts[0] / 200**2, 0.2, atol=4 * np.sqrt(0.2 * 0.8 / 200**2))


def test_dropout_acts_in_training_only(dataset):
    problem = mlp.problem(dataset, dropout=True)
    params = problem.init(jax.random.key(0))
    one, other = (problem.loss(params, problem.examples, jax.random.key(k)) for k in (1, 2))
    assert one != other
    plain = mlp.cross_entropy(mlp.scores(params, problem.examples[0]), problem.examples[1])
    penalty = mlp.L2 / 2 * sum(float(jnp.sum(layer["weights"] ** 2)) for layer in params)
    deterministic = mlp.deterministic_cost(params, problem.examples)
    np.testing.assert_allclose(deterministic, plain + penalty, rtol=1e-5)


def test_claims_are_judged_by_what_they_say():
    def grid(last, best=1):
        return Grid(np.ones(3), np.full((1, 3), last), {}, best, None)

    def verdicts(adam=0.1, others=0.2, best=1, costs=(2.0, 0.3, 0.1), seconds=(0.0, 1.0, 2.0)):
        grids = {name: grid(others) for name in mlp.METHODS} | {"Adam": grid(adam)}
        sfo = Alone([2.0, 0.5, 0.3], [1, 1, 1], [0.0, 8.0, 16.0])
        alone = {"Adam": Alone(list(costs), [1, 1, 1], list(seconds)), "SFO": sfo}
        return [claim.holds for claim in mlp.claims(grids, grid(0.1, best), alone)]

    # Adam before the others; before SFO by passes and by time; SFO five times slower.
    assert verdicts() == [True, True, True, True]
    assert verdicts(adam=0.3) == [False, True, True, True]
    assert verdicts(best=0) == [True, None, None, True]
    assert verdicts(costs=(2.0, 0.4, 0.3)) == [True, False, True, True]
    assert verdicts(costs=(2.0, 0.4, 0.35)) == [True, False, False, True]
    assert verdicts(seconds=(0.0, 20.0, 40.0)) == [True, True, False, False]


def test_alone_adam_is_what_it_was_in_its_grid(dataset, tmp_path):
    lab, problem = Lab("mlp", Size("quick"), tmp_path), mlp.problem(dataset, dropout=False)
    grid = train(lab, problem, "Adam", mlp.METHODS["Adam"], [0.01], epochs=3)
    alone = mlp.adam_alone(lab, problem, 0.01, 3)
    np.testing.assert_allclose(alone.errors, grid.measured["test error"][:, 0])
    cost = mlp.deterministic_cost(grid.params, problem.examples)
    np.testing.assert_allclose(alone.costs[-1], cost, rtol=1e-5)


class Interrupted(Lab):
    """Where the power fails in the middle of SFO."""

    def save(self, key, thing):
        super().save(key, thing)
        if key[0] == "SFO alone" and len(thing[1]) == 2:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(dataset, tmp_path, monkeypatch):
    # The others take the same way as these; here every method costs a compilation.
    methods = {name: mlp.METHODS[name] for name in ("AdaDelta", "Adam")}
    monkeypatch.setattr(mlp, "METHODS", methods)
    rates = {"AdaDelta": [0.3, 3.0], "Adam": [0.001, 0.01], mlp.WITHOUT: [0.001, 0.01]}
    monkeypatch.setattr(mlp, "RATES", rates)
    quick, quiet = Size("quick"), Console(quiet=True)
    straight = mlp.run(Lab("mlp", quick, tmp_path / "elsewhere", quiet), dataset)
    with pytest.raises(KeyboardInterrupt):
        mlp.run(Interrupted("mlp", quick, tmp_path, quiet), dataset)
    lab = Lab("mlp", quick, tmp_path, quiet)
    outcome = mlp.run(lab, dataset)

    for name, curve in straight.curves["dropout"].items():
        assert np.all(np.isfinite(curve))
        np.testing.assert_array_equal(outcome.curves["dropout"][name], curve)
    for name, method in straight.curves["deterministic"].items():
        assert method["costs"][-1] < method["costs"][0]
        assert np.all(np.diff(outcome.curves["deterministic"][name]["seconds"]) > 0)
        resumed = outcome.curves["deterministic"][name]
        assert (resumed["costs"], resumed["errors"]) == (method["costs"], method["errors"])
    starts = [method["costs"][0] for method in straight.curves["deterministic"].values()]
    np.testing.assert_allclose(starts[0], starts[1], rtol=1e-6)

    lab.report(outcome, mlp.draw)
    stored = json.loads((tmp_path / "mlp/mlp.json").read_text())
    assert list(stored["curves"]["deterministic"]) == ["Adam", "SFO"]
    assert len({tuple(row) for row in stored["rows"]}) == 1  # the same columns in every row
    assert is_drawn(tmp_path / "mlp/mlp.png")
