"""What faithfulness finds: of codes that are right, of codes that are wrong, of others' recipes."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import adamx

for needed in ("flax", "matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from examples import benchmarks  # noqa: E402
from examples.benchmarks import faithfulness, published, tables  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.optimised]

CODES = {
    "int8, stochastic": adamx.int8(),
    "bf16, nearest": adamx.bf16(rounding="nearest"),
}
DYNAMIC, FOUR_BITS, E4M3, E4M3_OF_ROOTS, FLASH = published.PUBLISHED.values()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("faithfulness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faithfulness, "OURS", CODES)
        patch.setattr(faithfulness, "PUBLISHED", {})
        rows = faithfulness.main(["--tiny", "--out", str(out), "--json", str(out / "it.json")])
    assert is_drawn(out / "faithfulness.png")
    stored = json.loads((out / "it.json").read_text("utf-8"))
    assert stored["versions"] == benchmarks.versions()
    for part in ("falls", "biases", "trainings"):
        expected = json.loads(json.dumps([row._asdict() for row in rows[part]]))
        found = [{key: row[key] for key in expected[0]} for row in stored["results"][part]]
        assert found == expected
    return rows


def test_every_code_is_measured_in_every_part(measured):
    codes = list(CODES)
    assert [row.code for row in measured["falls"]] == codes
    assert [row.code for row in measured["trainings"]] == ["float32", *codes]
    assert [(row.code, row.slot) for row in measured["biases"]] == [
        ("int8, stochastic", "averages"),
        ("int8, stochastic", "squares"),
    ]
    assert all(len(row.losses) == faithfulness.TINY.seeds for row in measured["trainings"])
    assert all(math.isfinite(loss) for row in measured["trainings"] for loss in row.losses)


def test_stochastic_rounding_falls_and_nearest_sticks(measured):
    stochastic, nearest = measured["falls"]
    assert stochastic.steps == [250, 500, 750]
    assert abs(stochastic.falling[-1] - 1) < 5 * stochastic.error[-1] < 0.1
    # v, which should fall to β₂²⁵⁰ of itself, stays.
    assert nearest.falling[-1] > 1.2
    assert nearest.step[0] < 1 / math.sqrt(1.2)


def test_v_in_float32_is_the_average_of_these_gradients():
    """The mean of v in closed form; of n elements it is known to √(2 · 0.0005/n) of itself."""
    kept = faithfulness.second_moments(None, faithfulness.TINY)
    assert kept.shape == (3, faithfulness.TINY.elements)
    before, after = 0.999**500, 0.999**250
    expected = [(1 - before) * after + 1e-4 * (1 - after), 1 - before * after]
    found = [kept[-1, ::2].mean(), kept[-1, 1::2].mean()]
    np.testing.assert_allclose(found, expected, rtol=5 * math.sqrt(2 * 0.0005 / 512))


def test_ratios_are_those_of_the_elements():
    exact = np.array([[1.0, 1.0, 1.0, 1.0], [4.0, 1.0, 1.0, 2.0]])
    kept = np.array([[1.0, 1.0, 3.0, 1.0], [1.0, 1.0, 4.0, 1.0]])
    setting = faithfulness.TINY._replace(elements=4, steps=2, every=1)
    row = faithfulness.fallen("it", kept, exact, setting)
    assert (row.steps, row.falling, row.staying) == ([1, 2], [2.0, 2.125], [1.0, 0.75])
    assert row.error[0] == pytest.approx(1 / math.sqrt(2))
    assert row.spread == (1.875, 0.25)
    assert row.step == (1.25, 0.75)  # of 2 and 1/2
    assert row.worst(1) == 1.125


def test_a_square_that_became_zero_makes_the_step_infinite():
    kept = np.array([[0.0, 1.0, 1.0, 1.0]])
    setting = faithfulness.TINY._replace(elements=4, steps=1, every=1)
    row = faithfulness.fallen("it", kept, np.ones((1, 4)), setting)
    assert tables.short(row.step[0]) == "∞"


def test_an_unbiased_code_is_found_to_be_so(measured):
    for row in measured["biases"]:
        assert row.rms == pytest.approx(1, abs=0.05)
        assert row.largest < 1.5 * row.expected
    averages, squares = measured["biases"]
    assert averages.raised == 0
    assert 0.05 < squares.raised < 0.5


def test_a_bias_of_a_tenth_of_a_code_is_found():
    """A measurement that calls everything unbiased is broken."""
    int8 = adamx.int8()

    def encode(x, bits, nonnegative):
        return int8.encode(x, bits - bits // 10, nonnegative)

    leaning = adamx.Codec("leaning", encode, int8.decode)
    row = faithfulness.bias("it", leaning, "averages", faithfulness.TINY)
    assert row.rms > 1.3


def told(*losses):
    """The cells of a training with these losses, beside one in float32."""
    exact = {"code": "float32", "losses": [0.2, 0.1, 0.3], "spikes": [1.0]}
    rows = [exact, {"code": "it", "losses": [*losses], "spikes": [1.0]}]
    return tables.trainings({"trainings": rows}).splitlines()[-1]


def test_a_training_that_ends_no_better_than_a_guess_has_diverged():
    assert "| 3 of 4 diverged |" in told(1e-3, 2.4, math.nan, math.inf)


@pytest.mark.parametrize(
    ("loss", "where"), [(0.05, "below"), (0.1, "within"), (0.25, "within"), (0.31, "above")]
)
def test_a_loss_is_beside_the_spread(loss, where):
    assert f"| {where} |" in told(loss)


# The recipes of others, held against numbers that their programs gave.


def test_dynamic_maps_are_those_of_the_programs():
    """bitsandbytes 0.50 and torchao 0.18, `create_dynamic_map`."""
    unsigned = published.dynamic_map(signed=False, exponents=7, bits=8)
    signed = published.dynamic_map(signed=True, exponents=7, bits=8)
    four = published.dynamic_map(signed=True, exponents=3, bits=4)
    assert unsigned.shape == signed.shape == (256,)
    np.testing.assert_allclose(unsigned[:5], [0, 3.25e-7, 7.75e-7, 2.125e-6, 4.375e-6], rtol=1e-6)
    np.testing.assert_allclose(unsigned[-3:], [0.98945308, 0.99648437, 1.0], rtol=1e-6)
    np.testing.assert_allclose(signed[127:130], [0, 5.5e-7, 3.25e-6], rtol=1e-6)
    np.testing.assert_allclose(signed[:2], [-0.99296874, -0.97890626], rtol=1e-6)
    half = [0, 0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    np.testing.assert_allclose(four[7:], [*half, 1.0], rtol=1e-6)
    np.testing.assert_allclose(four[:7], -np.array(half[:0:-1]), rtol=1e-6)


def kept(codec, x, *, nonnegative):
    """What a codec makes of x, and x over the largest element of its block."""
    x = jnp.asarray(x, jnp.float32)
    bits = jnp.zeros(x.shape, jnp.uint32)
    return np.asarray(codec.decode(codec.encode(x, bits, nonnegative)), np.float64)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("codec", "block", "bits"), [(DYNAMIC, 256, 8), (FOUR_BITS, 128, 4)])
def test_the_nearest_level_is_kept(codec, block, bits, nonnegative):
    x = np.random.default_rng(0).standard_normal(2 * block + 60)
    x = (x**2 if nonnegative else x).astype(np.float32)
    exponents = {8: 7, 4: 3}[bits]
    levels = published.dynamic_map(signed=not nonnegative, exponents=exponents, bits=bits)
    if nonnegative and bits == 4:
        levels = np.arange(1, 17) / 16  # without a zero
    found = kept(codec, x, nonnegative=nonnegative)
    for part in np.split(np.arange(len(x)), [block, 2 * block]):
        scale = np.abs(x[part]).max()
        distances = np.abs(x[part, None] / scale - levels)
        np.testing.assert_allclose(
            np.abs(found[part] - x[part]) / scale, distances.min(1), atol=1e-6
        )


def test_squares_are_kept_as_roots():
    v = np.random.default_rng(0).chisquare(1, 64).astype(np.float32).reshape(2, 32)
    scales = np.sqrt(v).max(1, keepdims=True)
    np.testing.assert_allclose(
        np.sqrt(kept(FLASH, v, nonnegative=True)) / scales,
        np.round(255 * np.sqrt(v) / scales) / 255,
        rtol=1e-3,  # the scale is a float16
    )
    np.testing.assert_allclose(
        np.sqrt(kept(E4M3_OF_ROOTS, v, nonnegative=True)), np.sqrt(v), rtol=1 / 16
    )
    np.testing.assert_allclose(kept(E4M3, v, nonnegative=True), v, rtol=1 / 16, atol=v.max() / 2e5)


def test_averages_go_through_softsign():
    """The codes are even in y = 2x/(1+|x|): 127 on either side."""
    m = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    found = kept(FLASH, m, nonnegative=False) / np.abs(m).max()
    y = 2 * found / (1 + np.abs(found))
    np.testing.assert_allclose(127 * y, np.round(127 * y), atol=0.15)
    assert np.abs(found - m / np.abs(m).max()).max() < 2 / 127
