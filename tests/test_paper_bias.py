"""The auto-encoder with and without bias correction: its loss, its first steps, its claims."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

from examples import data  # noqa: E402
from examples.paper import bias  # noqa: E402
from examples.paper.bias import CORRECTED, UNCORRECTED  # noqa: E402
from examples.paper.lab import Lab, Outcome, Size  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

PIXELS = 9


@pytest.fixture
def dataset(monkeypatch):
    """Two dozen images, and an auto-encoder and batches to match."""
    for name, value in {"HIDDEN": 5, "LATENTS": 2, "BATCH": 8, "MEASURED": 16}.items():
        monkeypatch.setattr(bias, name, value)
    images = np.random.default_rng(0).uniform(size=(24, PIXELS)).astype(np.float32)
    labels = np.zeros(24, np.int32)
    return data.Dataset("made up", images, labels, images[:4], labels[:4])


def test_loss_is_the_textbooks_elbo(dataset):
    """Kingma & Welling 2014, equation 10, in NumPy and in terms of probabilities."""
    params = jax.jit(bias.init, static_argnums=1)(jax.random.key(3), PIXELS)
    noise = np.asarray(jax.random.normal(jax.random.key(7), (24, 2)), np.float64)
    theta = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    images = dataset.train_images.astype(np.float64)

    def layer(name, x):
        return x @ theta[name]["weights"] + theta[name]["bias"]

    hidden = np.log(1 + np.exp(layer("encoder", images)))
    mean, sigma = layer("mean", hidden), np.exp(layer("log_variance", hidden)) ** 0.5
    decoded = np.log(1 + np.exp(layer("decoder", mean + sigma * noise)))
    chance = 1 / (1 + np.exp(-layer("pixels", decoded)))
    likelihood = np.sum(images * np.log(chance) + (1 - images) * np.log(1 - chance), axis=1)
    divergence = -0.5 * np.sum(1 + np.log(sigma**2) - mean**2 - sigma**2, axis=1)
    expected = np.mean(divergence - likelihood)

    images = jnp.asarray(dataset.train_images)
    loss = jax.jit(bias.negative_elbo)(params, images, jax.random.key(7))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(("b1", "b2"), bias.SETTINGS)
def test_only_the_first_steps_without_correction_are_too_long(b1, b2):
    """The first step is α (1 − β₁)/√(1 − β₂) instead of α, as m = (1 − β₁)g, v = (1 − β₂)g²."""
    member, gradient = jnp.asarray([1e-3, b1, b2], jnp.float32), jnp.asarray([2.0, -0.5])
    for name, size in ((CORRECTED, 1), (UNCORRECTED, (1 - b1) / np.sqrt(1 - b2))):
        opt = bias.METHODS[name](member)
        update, _ = opt.update(gradient, opt.init(gradient), gradient)
        expected = -1e-3 * size * np.sign(gradient)
        np.testing.assert_allclose(update, expected, rtol=2e-4)  # of 1 − β₂ in float32


def test_without_correction_is_adam_whose_rate_is_multiplied_by_the_bias():
    """α √(1 − β₂ᵗ)/(1 − β₁ᵗ) is Section 2's reordering; what is missing is this factor."""
    b1, b2 = 0.9, 0.99
    member = jnp.asarray([1e-2, b1, b2], jnp.float32)
    corrected, uncorrected = (bias.METHODS[name](member) for name in (CORRECTED, UNCORRECTED))
    states = corrected.init(jnp.zeros(3)), uncorrected.init(jnp.zeros(3))
    for t, gradient in enumerate(np.random.default_rng(1).standard_normal((20, 3)), start=1):
        gradient = jnp.asarray(gradient, jnp.float32)
        whole, first = corrected.update(gradient, states[0])
        short, second = uncorrected.update(gradient, states[1])
        states = first, second
        lost = (1 - b1**t) / np.sqrt(1 - b2**t)
        np.testing.assert_allclose(short, whole * np.float32(lost), rtol=2e-5)


def snapshots(corrected, uncorrected):
    """Losses ``[settings, rates]`` of each method, the same early and late."""
    shape = (len(bias.SETTINGS), 3)
    early_and_late = {
        name: np.broadcast_to(np.asarray(x, float), shape)
        for name, x in ((CORRECTED, corrected), (UNCORRECTED, uncorrected))
    }
    return {name: {1: x, 10: x} for name, x in early_and_late.items()}


def verdicts(corrected, uncorrected, steps):
    found = bias.claims(snapshots(corrected, uncorrected), start=100.0, steps=steps)
    return [claim.holds for claim in found]


def test_claims_are_judged_by_what_they_say():
    gone = np.full((6, 3), 50.0)
    gone[[2, 5], 2] = np.nan, 1e9  # for β₂ = 0.9999 only
    by_b2 = np.repeat([[53.0], [51.0], [52.0]] * 2, 3, axis=1)
    steps = 10_000
    assert verdicts(by_b2, gone, steps) == [True, False, False, False]
    assert verdicts(gone, by_b2, steps) == [False, False, True, False]
    assert verdicts(by_b2, by_b2 + 1, steps) == [False, True, True, True]
    assert verdicts(by_b2 + 1, by_b2 + 0.5, steps) == [False, True, True, False]
    assert verdicts(by_b2, 60 - by_b2, steps) == [False, False, False, False]
    assert verdicts([50.0, 40.0, 60.0], [50.0, 41.0, 45.0], steps)[1:3] == [False, True]


def test_a_run_shorter_than_the_memory_of_the_squares_can_not_tell_the_best():
    assert verdicts([50.0], [60.0], steps=999)[-1] is None


def test_what_is_above_the_start_or_not_finite_has_diverged():
    found = bias.survived([np.nan, np.inf, 100.1, 100.0, None], start=100.0)
    np.testing.assert_array_equal(found, [np.inf, np.inf, np.inf, 100.0, np.inf])


def test_run_is_reported_and_redrawn_from_what_is_stored(dataset, tmp_path):
    lab = Lab("bias", Size("quick"), tmp_path, console=Console(quiet=True))
    outcome = bias.run(lab, dataset)
    losses = outcome.curves["losses"]
    at_best = np.min(losses[CORRECTED]["4"], axis=-1)
    assert np.all(at_best < outcome.curves["start"])
    assert len(outcome.rows) == 2 * len(bias.SETTINGS)

    lab.report(outcome, bias.draw)
    assert is_drawn(lab.folder / "bias.png")
    written = json.loads((lab.folder / "bias.json").read_text(), parse_constant=pytest.fail)
    stored = Outcome(**{key: written[key] for key in ("title", "setting", "rows", "curves")})
    panels = bias.draw(stored)["bias.png"].axes
    assert len(panels) == 2 * len(bias.SETTINGS)


def test_figure_shows_what_diverged_as_a_cross_at_the_edge():
    shape = (len(bias.SETTINGS), 3)
    fine, gone = np.full(shape, 50.0), np.full(shape, [40.0, np.nan, 1e30])
    curves = {
        "log10 learning rate": [-3, -2, -1],
        "start": 100.0,
        "settings": ["one"] * len(bias.SETTINGS),
        "losses": {CORRECTED: {"1": fine, "2": fine}, UNCORRECTED: {"1": gone, "2": gone}},
    }
    axes = bias.draw(Outcome("title", {}, [], curves))["bias.png"].axes[0]
    of_adam, of_the_other, *crosses = (line.get_xydata() for line in axes.lines)
    np.testing.assert_allclose(of_adam, [[-3, 50], [-2, 50], [-1, 50]])
    np.testing.assert_allclose(of_the_other, [[-3, 40], [-2, np.nan], [-1, np.nan]])
    np.testing.assert_allclose(np.concatenate(crosses), [[-2, 100], [-1, 100]], atol=0.1)
