"""The experiment on the size of steps: its bounds, its ratio, its scales, and a run of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

import reference  # noqa: E402
from examples import data  # noqa: E402
from examples.paper import logistic, steps  # noqa: E402
from examples.paper.lab import Lab, Size  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(steps, "LENGTH", 300)
    monkeypatch.setattr(steps, "GROWING", 800)
    monkeypatch.setattr(steps, "COORDINATES", 3)
    monkeypatch.setattr(steps, "RATES", [1e-4, 1e-2, 1e-1])
    monkeypatch.setattr(steps, "POWERS", np.array([-20, 0, 20]))


@pytest.fixture
def digits():
    """Three classes of eight noisy pixels, the last of which is always dark."""
    random = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int32) % 3
    images = random.random((96, 8)).astype(np.float32) + np.eye(3, 8, dtype=np.float32)[labels]
    images[:, -1] = 0
    return data.Dataset("made up", images, labels, images[:9], labels[:9])


@pytest.fixture
def problem(digits):
    return logistic.problem(digits)._replace(batch_size=32)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.95)])
def test_the_sharp_bound_is_the_largest_step_that_any_gradients_give(b1, b2):
    """Σ aᵢgᵢ / √Σ bᵢgᵢ² is largest for g ∝ a/b: there it is √(Σ a²/b), term by term."""
    for t in (1, 2, 7, 40):
        age = np.arange(t)[::-1]
        a, b = ((1 - beta) * beta**age / (1 - beta**t) for beta in (b1, b2))
        worst = a / b
        assert steps.sharp_bound(b1, b2, np.array(float(t))) == pytest.approx(
            a @ worst / np.sqrt(b @ worst**2), rel=1e-12
        )


def test_steps_are_those_of_the_oracle():
    gradients = np.random.default_rng(1).normal(size=(60, 3))
    truth = np.abs(reference.adam(gradients, 1.0, 0.9, 0.999, 0.0))
    found = steps.relative_steps(gradients, 0.9, 0.999)
    np.testing.assert_allclose(found, truth, rtol=1e-9)


def test_growing_gradients_reach_the_sharp_bound_in_every_step():
    sequences = steps.sequences(0.9, 0.999)
    growing = next(g for name, g in sequences.items() if name.startswith("growing"))
    found = steps.relative_steps(growing, 0.9, 0.999)[:, 0]
    bound = steps.sharp_bound(0.9, 0.999, np.arange(1, len(found) + 1.0))
    np.testing.assert_allclose(found, bound, rtol=1e-9)
    assert found[-1] > steps.papers_bound(0.9, 0.999)


def test_the_noise_floor_is_that_of_white_noise():
    """E m̂² = Σ aᵢ² where v̂ = 1 = E g²."""
    a = 0.1 * 0.9 ** np.arange(1000)
    assert steps.noise_floor(0.9) == pytest.approx(np.sqrt(np.sum(a**2)))


def test_rescaling_matters_through_epsilon_alone(problem):
    """In NumPy: with ε the c·g is divided by √v̂ + ε/c."""
    exact, with_eps = steps.rescaled(problem, steps=5, rate=0.01)
    np.testing.assert_array_equal(exact, 0.0)
    assert with_eps[0] > with_eps[1] > with_eps[2] > 0
    images, labels = (np.asarray(x[:32], float) for x in problem.examples)
    hot = np.eye(3)[labels.astype(int)]

    def ends(eps):
        weights, bias = np.zeros((8, 3)), np.zeros(3)
        moments = [np.zeros((2, *x.shape)) for x in (weights, bias)]
        for t in range(1, 6):
            scores = np.exp(images @ weights + bias)
            error = (scores / scores.sum(1, keepdims=True) - hot) / 32
            gradients = images.T @ error + logistic.L2 * weights, error.sum(0)
            for theta, (m, v), g in zip((weights, bias), moments, gradients, strict=True):
                m[:] = 0.9 * m + 0.1 * g
                v[:] = 0.999 * v + 0.001 * g**2
                root = np.sqrt(v / (1 - 0.999**t)) + eps
                theta -= 0.01 * m / (1 - 0.9**t) / np.where(root == 0, 1, root)
        return np.concatenate([bias, weights.ravel()])

    truth = ends(0.0)
    for power, found in zip(steps.POWERS, with_eps, strict=True):
        away = np.linalg.norm(ends(1e-8 / 2.0**power) - truth) / np.linalg.norm(truth)
        assert found == pytest.approx(away, rel=1e-4)


def test_what_is_watched_is_the_ratio_and_the_size_of_the_steps(problem, tmp_path):
    lab = Lab("steps", Size("quick"), tmp_path, console=Console(quiet=True))
    seen = steps.watched(lab, problem, epochs=2)
    assert seen["snr"].shape == (3, 6) and seen["sizes"].shape == (3, 6, 3)
    assert np.all(np.isfinite(seen["loss"])) and seen["loss"][2, -1] < seen["loss"][2, 0]
    # The first step is ±α wherever there is a gradient: all but three of 27 numbers.
    np.testing.assert_allclose(seen["sizes"][:, 0], 1.0, rtol=1e-4)
    np.testing.assert_allclose(seen["snr"][:, 0], np.sqrt(24 / 27), rtol=1e-4)
    gradient = jax.grad(problem.loss)(
        jax.tree.map(jnp.asarray, problem.init(None)), problem.examples, None
    )
    assert not np.asarray(gradient["weights"])[-1].any()


def test_the_smoothed_is_the_mean_over_the_last_quarter():
    values = np.random.default_rng(5).random(13)
    expected = [values[3 * n // 4 : n].mean() for n in range(1, 14)]
    np.testing.assert_allclose(steps.smoothed(values), expected)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(digits, monkeypatch, tmp_path):
    problem_of = logistic.problem
    monkeypatch.setattr(logistic, "problem", lambda x: problem_of(x)._replace(batch_size=32))
    whole = steps.run(Lab("whole", Size("quick"), tmp_path), digits)
    lab = Lab("steps", Size("quick"), tmp_path, console=Console(quiet=True))
    save, saved = lab.save, []

    def interrupted(key, thing):
        save(key, thing)
        saved.append(key)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(lab, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps.run(lab, digits)
    monkeypatch.setattr(lab, "save", save)
    outcome = steps.run(lab, digits)
    jax.tree.map(np.testing.assert_array_equal, outcome.curves, whole.curves)
    assert outcome.claims == whole.claims and outcome.rows == whole.rows

    lab.report(outcome, steps.draw)
    folder = tmp_path / "steps"
    stored = json.loads((folder / "steps.json").read_text(), parse_constant=pytest.fail)
    assert is_drawn(folder / "steps.png")
    verdicts = {claim["claim"]: claim["holds"] for claim in stored["claims"]}
    assert verdicts["rescaled gradients c·g give the same steps"] is True
    assert verdicts["an upper bound of |Δ|, (1−β₁) > √(1−β₂): β₂ = 0.999"] is False
