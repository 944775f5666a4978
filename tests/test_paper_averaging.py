"""The iterates and their averages: what is measured of them, and what is claimed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

import adamx  # noqa: E402
from examples import data  # noqa: E402
from examples.paper import averaging  # noqa: E402
from examples.paper.averaging import EMA, ITERATE, MEAN, RAW  # noqa: E402
from examples.paper.lab import Lab, Outcome, Size  # noqa: E402
from examples.paper.training import Grid  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

PIXELS, CLASSES = 6, 3


@pytest.fixture
def dataset(monkeypatch):
    """Images whose brightest pixel tells the class; a network and batches to match."""
    monkeypatch.setattr(averaging, "HIDDEN", 5)
    monkeypatch.setattr(averaging, "BATCH", 12)
    labels = np.arange(60, dtype=np.int32) % CLASSES
    images = np.random.default_rng(0).uniform(0, 0.6, (60, PIXELS)).astype(np.float32)
    images[np.arange(60), labels] = 1
    return data.Dataset("made up", images, labels, images[:20], labels[:20])


def test_averages_and_the_largest_step_are_those_of_the_iterates(dataset):
    """Three steps of gradient descent along given gradients, averaged in float64."""
    shapes = [
        {"weights": (PIXELS, 5), "bias": (5,)},
        {"weights": (5, CLASSES), "bias": (CLASSES,)},
    ]
    random = np.random.default_rng(2)

    def like(scale):
        return [{k: scale * random.standard_normal(n) for k, n in x.items()} for x in shapes]

    theta, gradients = like(1.0), [like(1.0) for _ in range(3)]
    opt = averaging.averaged(adamx.sgd(0.5))

    def float32(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    params = float32(theta)
    state, iterates = opt.init(params), []
    for gradient in gradients:
        updates, state = opt.update(float32(gradient), state, params)
        params = adamx.apply_updates(params, updates)
        theta = jax.tree.map(lambda x, g: x - 0.5 * g, theta, gradient)
        iterates.append(theta)
    examples = dataset.test_images, dataset.test_labels
    measured = jax.jit(averaging.measure)(params, state, examples)

    weights = 0.001 * 0.999 ** np.array([2.0, 1.0, 0.0])
    sums = {
        ITERATE: [0, 0, 1],
        MEAN: np.ones(3) / 3,
        EMA: weights / (1 - 0.999**3),
        RAW: weights,
    }
    for name, shares in sums.items():
        mean = jax.tree.map(lambda *x, w=shares: np.tensordot(w, np.stack(x), axes=1), *iterates)
        error, cost = error_and_cost(mean, *examples)
        np.testing.assert_allclose(measured[f"cost, {name}"], cost, rtol=1e-4)
        np.testing.assert_allclose(measured[f"error, {name}"], error, atol=1e-6)
    largest = max(np.abs(0.5 * x).max() for x in jax.tree.leaves(gradients))
    np.testing.assert_allclose(measured["largest step"], largest, rtol=1e-6)


def error_and_cost(theta, images, labels):
    hidden, scores = theta
    seen = np.maximum(images @ hidden["weights"] + hidden["bias"], 0)
    scores = seen @ scores["weights"] + scores["bias"]
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = chances[np.arange(len(labels)), labels]
    return np.mean(scores.argmax(axis=1) != labels), -np.log(right).mean()


def test_run_is_reported_and_redrawn_from_what_is_stored(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "RATES", [1e-3, 3e-2, 0.1])
    lab = Lab("averaging", Size("quick"), tmp_path, console=Console(quiet=True))
    outcome = averaging.run(lab, dataset)
    for found in outcome.curves["methods"].values():
        cost = found["training cost"]
        assert np.all(np.isfinite(cost)) and np.all(cost[-1] < cost[0])
        assert all(np.shape(x) == cost.shape for x in found["test error"].values())
    assert [row["parameters"] for row in outcome.rows] == [ITERATE, MEAN, EMA] * 2

    lab.report(outcome, averaging.draw)
    assert is_drawn(lab.folder / "averaging.png")
    written = json.loads((lab.folder / "averaging.json").read_text(), parse_constant=pytest.fail)
    stored = Outcome(**{key: written[key] for key in ("title", "setting", "rows", "curves")})
    along, _, across, _ = averaging.draw(stored)["averaging.png"].axes
    errors = outcome.curves["methods"]["Adam"]["test error"][EMA]
    best = outcome.curves["methods"]["Adam"]["best"]
    np.testing.assert_allclose(along.lines[2].get_ydata(), 100 * errors[:, best], rtol=1e-6)
    np.testing.assert_allclose(across.lines[2].get_ydata(), 100 * errors[5:].mean(0), rtol=1e-6)


def grid(iterate, ema, mean=0.1, last=0.5, raw=1.0, largest=0.9):
    """Four epochs of two rates, of which the second is the best."""
    measured = {
        f"error, {name}": np.array([[np.nan, np.nan], *[[0.0, x]] * 4])
        for name, x in ((ITERATE, iterate), (EMA, ema), (MEAN, mean))
    }
    measured |= {"cost, " + EMA: np.full((5, 2), 0.5), "cost, " + RAW: np.full((5, 2), raw)}
    rates = np.array([0.1, 0.2])
    measured["largest step"] = np.outer(np.ones(5), [0.01, 0.2 * largest])
    losses = np.array([[1.0, 1.0], *[[0.5, last]] * 3])
    return Grid(rates, losses, measured, 1, None)


def verdicts(adam, adamax, steps=1_500):
    claims = averaging.claims({"Adam": adam, "AdaMax": adamax}, steps)
    return [claim.holds for claim in claims]


def test_claims_are_judged_by_what_they_say():
    good = grid(iterate=0.2, ema=0.1)
    assert verdicts(good, good) == [True] * 5
    assert verdicts(good, grid(iterate=0.2, ema=0.2)) == [False, True, True, True, True]
    assert verdicts(good, grid(0.2, 0.1, mean=0.3)) == [True, False, True, True, True]
    assert verdicts(good, grid(0.2, 0.1, raw=0.5)) == [True, True, False, True, True]
    assert verdicts(good, grid(0.2, 0.1, last=np.nan)) == [True, True, True, False, True]
    assert verdicts(grid(0.2, 0.1, last=np.nan), grid(0.2, 0.1, last=2.0))[3] is True
    assert verdicts(good, grid(0.2, 0.1, largest=1.0001)) == [True, True, True, True, False]


def test_too_short_a_run_can_not_tell_whether_averages_generalise():
    """The last two of four epochs begin before the average has forgotten the start to 5 %."""
    good = grid(iterate=0.2, ema=0.1)
    assert verdicts(good, good, steps=1_499) == [None, None, True, True, True]


def test_a_step_of_adamax_may_be_a_little_larger_than_its_rate():
    """Of g = 1 and then β₂: m̂ = (β₁ + β₂)/(1 + β₁), and n is still β₂."""
    opt, theta = averaging.METHODS["AdaMax"](0.1), jnp.zeros(1)
    state = opt.init(theta)
    for gradient in (1.0, 0.999):
        _, state = opt.update(jnp.full(1, gradient), state, theta)
    expected = 0.1 * (0.9 + 0.999) / (1 + 0.9) / 0.999
    assert expected > 0.1 * (1 + averaging.ROUNDING)
    np.testing.assert_allclose(state["largest_step"]["largest"], expected, rtol=1e-6)
