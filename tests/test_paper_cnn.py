"""The experiment on a convolutional network: its layers, its whitening, its claims, a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

from examples import data  # noqa: E402
from examples.paper import cnn  # noqa: E402
from examples.paper.lab import Lab, Outcome, Size  # noqa: E402
from examples.paper.training import Grid  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

SIZE, CLASSES = 8, 2


@pytest.fixture
def dataset(monkeypatch):
    """Noise, brighter on the left or on the right."""
    monkeypatch.setattr(cnn, "BATCH", 16)
    random = np.random.default_rng(0)
    labels = np.arange(48, dtype=np.int32) % CLASSES
    images = random.uniform(0, 0.5, (48, SIZE, SIZE, 3)).astype(np.float32)
    images[labels == 0, :, : SIZE // 2] += 0.5
    images[labels == 1, :, SIZE // 2 :] += 0.5
    return data.Dataset("made up", images, labels, images[:16], labels[:16])


def test_the_network_is_that_of_loops_over_pixels():
    """5x5 windows with zeros around them, ReLU, the largest of 3x3 at every other pixel."""
    random = np.random.default_rng(1)
    images = random.standard_normal((2, 6, 6, 3))
    shapes = [(5, 5, 3, 2), (3 * 3 * 2, 4), (4, CLASSES)]
    params = [
        {"weights": random.standard_normal(s), "bias": random.standard_normal(s[-1])}
        for s in shapes
    ]
    kernel, full, last = params
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    filtered = np.zeros((2, 6, 6, 2))
    for i in range(6):
        for j in range(6):
            window = padded[:, i : i + 5, j : j + 5]
            filtered[:, i, j] = np.einsum("nijc,ijco->no", window, kernel["weights"])
    filtered = np.maximum(filtered + kernel["bias"], 0)
    # For six pixels, the three windows of three overlap by one and jut out by one at the end.
    pooled = np.array(
        [[filtered[:, i : i + 3, j : j + 3].max(axis=(1, 2)) for j in (0, 2, 4)] for i in (0, 2, 4)]
    ).transpose(2, 0, 1, 3)
    hidden = np.maximum(pooled.reshape(2, -1) @ full["weights"] + full["bias"], 0)
    expected = hidden @ last["weights"] + last["bias"]

    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, images))
    np.testing.assert_allclose(cnn.scores(*given), expected, rtol=1e-4, atol=1e-4)


def test_the_papers_network_has_the_layers_that_it_names():
    params = jax.eval_shape(
        lambda k: cnn.init(k, (32, 32, 3), (64, 64, 128), 1000, 10), jax.random.key(0)
    )
    shapes = [layer["weights"].shape for layer in params]
    assert shapes[:3] == [(5, 5, 3, 64), (5, 5, 64, 64), (5, 5, 64, 128)]
    assert shapes[3:] == [(4 * 4 * 128, 1000), (1000, 10)]


@pytest.mark.parametrize("examples", [500, 7])
def test_white_images_are_uncorrelated(examples):
    """Each principal component is divided by the root of its variance plus a tenth of the mean."""
    random = np.random.default_rng(2)
    rows = random.standard_normal((examples, 12)) @ random.standard_normal((12, 12)) + 3
    images = rows.reshape(examples, 2, 2, 3)
    white = cnn.whitened(images, images).reshape(examples, 12)
    variances, axes = np.linalg.eigh(np.cov(rows, rowvar=False))
    expected = axes @ np.diag(variances / (variances + variances.mean() / 10)) @ axes.T
    np.testing.assert_allclose(np.cov(white, rowvar=False), expected, atol=1e-4)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    other = cnn.whitened(images[:5], images).reshape(5, 12)
    np.testing.assert_allclose(other, white[:5], rtol=1e-4, atol=1e-6)


def test_smoothing_takes_the_mean_of_what_came_before():
    np.testing.assert_allclose(cnn.smooth(np.array([1.0, 3.0, 5.0, 9.0]), 2), [1, 2, 4, 7])


def test_claims_are_judged_by_what_they_say():
    def grid(*losses, best=1):
        return Grid(np.ones(3), np.stack([losses] * 3, axis=1), {}, best, None)

    def verdicts(adam, nesterov, adagrad):
        grids = {"AdaGrad": adagrad, "SGDNesterov": nesterov, "Adam": adam}
        return [claim.holds for claim in cnn.claims_of(grids, "")]

    # Adam and AdaGrad ahead of SGD at first; AdaGrad behind in the end; Adam ahead of SGD.
    slow, fast, stuck = grid(2, 2, 2, 0.2), grid(1, 1, 1, 0.1), grid(1, 1, 1, 0.5)
    assert verdicts(fast, slow, stuck) == [True, True, True]
    assert verdicts(slow, fast, stuck) == [False, True, False]
    assert verdicts(stuck, slow, fast) == [True, False, False]
    assert verdicts(fast, slow, stuck._replace(best=2)) == [None, None, True]


def test_a_run_gives_falling_losses_strict_json_and_a_picture(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Size, "of", lambda self, **sizes: small.get(sizes["quick"], 4))
    small = {(8, 8, 16): (2, 2), 1_280: 48, 500: 16, 64: 4}
    rates = {"AdaGrad": [0.0, 0.03], "SGDNesterov": [0.0, 0.03], "Adam": [0.0, 0.01]}
    monkeypatch.setattr(cnn, "RATES", rates)
    lab = Lab("cnn", Size("quick"), tmp_path, Console(quiet=True))
    outcome = cnn.run(lab, dataset)
    assert len(outcome.curves) == 6
    for curve in outcome.curves.values():
        assert np.asarray(curve["steps"]).shape == (4 * 3,)
        np.testing.assert_allclose(np.reshape(curve["steps"], (4, 3)).mean(axis=1), curve["epochs"])
        assert np.all(np.isfinite(curve["epochs"]))
    for name in cnn.METHODS:
        assert outcome.curves[name]["epochs"][-1] < outcome.curves[name]["epochs"][0]
    lab.report(outcome, cnn.draw)
    stored = json.loads((tmp_path / "cnn/cnn.json").read_text())
    assert list(stored["curves"]) == list(outcome.curves)
    assert is_drawn(tmp_path / "cnn/cnn.png")


def test_the_ticks_of_a_logarithmic_axis_have_plain_numbers():
    curve = {"steps": np.linspace(2.3, 0.7, 500), "epochs": np.geomspace(2.2, 0.7, 10)}
    figure = cnn.draw(Outcome("title", {}, [], {"Adam": curve, "Adam + dropout": curve}))["cnn.png"]
    figure.draw_without_rendering()
    axis = figure.axes[1].yaxis
    assert not [x.get_text() for x in axis.get_minorticklabels() if x.get_text()]
    low, high = axis.get_view_interval()
    seen = [x.get_text() for x in axis.get_majorticklabels() if low < x.get_position()[1] < high]
    assert seen == ["0.7", "1", "1.5", "2"]
