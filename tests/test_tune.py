"""The example that tunes Adam by gradient descent, quickly, from one end to the other."""

import math

import numpy as np
import pytest

for needed in ("flax", "matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

import jax  # noqa: E402

from examples import data, tune  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.delenv("ADAMX_DATA_DIR", raising=False)
    return data.load()


def test_examples_to_train_on_to_tune_on_and_to_report_on_are_different_ones(digits):
    split = tune.split(digits, seed=0)
    sizes = [len(labels) for _, labels in split]
    assert sizes == [1011, 336, 450]
    images = np.concatenate([np.asarray(part) for part, _ in split])
    assert len(np.unique(images, axis=0)) == sum(sizes) == 1797


def test_numbers_and_coordinates_are_each_others_inverse():
    given = (3e-3, 0.8, 0.995)
    assert tune.values(tune.numbers_of(*given)) == pytest.approx(given, rel=1e-5)
    leaves = jax.tree.leaves(tune.adam(tune.numbers_of(*given)))
    np.testing.assert_allclose([leaves[0], leaves[1], leaves[-1]], [0.8, 0.995, 3e-3], rtol=1e-5)


def test_the_search_keeps_b1_between_0_and_b2():
    inside = tune.numbers_of(0.1, 0.5, 0.9)
    np.testing.assert_array_equal(tune.allowed(inside), inside)
    outside = np.array([0.0, 0.5, 1.0], np.float32)
    assert tune.values(tune.allowed(outside)) == (1.0, 0.0, 0.0)
    below = tune.values(tune.allowed(tune.numbers_of(0.1, 0.9, 0.5)))
    assert below == pytest.approx((0.1, 0.9, 0.9), rel=1e-5)


def test_tuning_improves_on_its_start_and_draws_the_way(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    rows = tune.main(["--quick", "--out", str(tmp_path)])
    start, tuned, defaults, best = rows
    assert start.numbers == pytest.approx(tune.START, rel=1e-4)
    assert defaults.numbers == pytest.approx(tune.DEFAULTS, rel=1e-4)
    assert tuned.numbers[0] > start.numbers[0]
    assert tuned.mean.validation_loss < start.mean.validation_loss
    assert best.mean.validation_loss < defaults.mean.validation_loss < 1.2 * math.log(10)
    printed = capsys.readouterr().out
    for row in rows:
        assert any(
            row.name in line and f"{row.mean.test_loss:.3f}" in line for line in printed.split("\n")
        )
    assert is_drawn(tmp_path / "tune.png")


def test_the_example_refuses_a_senseless_number_of_steps(capsys):
    with pytest.raises(SystemExit):
        tune.main(["--steps", "0"])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
