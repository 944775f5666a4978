"""Codecs: what they round to, that they do it without a bias, and the bits they do it with."""

import functools
import math
import pickle
import statistics

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import adamx
from adamx.numerics import random

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

SQUARES = [False, True]
KINDS = [(name, nonnegative) for name in ("bf16", "fp8", "int8") for nonnegative in SQUARES]
BLOCKWISE = [kind for kind in KINDS if kind[0] != "bf16"]
LARGEST, ONES, HALF = np.finfo(np.float32).max, 2**32 - 1, 2**31


def codec(name, block_size=64):
    return adamx.bf16() if name == "bf16" else getattr(adamx, name)(block_size)


@functools.cache
def _round_trip(name, block_size, nonnegative):
    used = codec(name, block_size)
    return jax.jit(lambda x, bits: used.decode(used.encode(x, bits, nonnegative)))


def round_trip(kind, x, bits, block_size=64):
    """decode(encode(x)) with these bits, or the same ones for every element."""
    name, nonnegative = kind
    x = np.asarray(x, np.float32)
    bits = np.broadcast_to(np.asarray(bits, np.uint32), x.shape)
    return np.asarray(_round_trip(name, block_size, nonnegative)(x, bits))


# The values that a code has, from the tables in the docstrings; E is the exponent of the block


def fp8_grid(E, nonnegative):
    every = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return every * 2.0 ** (E - 8)


def segments(first, binades, steps):
    """``steps`` even steps in each of so many powers of two."""
    return np.concatenate([2.0 ** (first + b) * (1 + np.arange(steps) / steps) for b in binades])


def int8_grid(E, nonnegative):
    if nonnegative:
        codes = [segments(E - 23, range(16), 8), segments(E - 7, range(8), 16)]
        return np.concatenate([[0.0], np.concatenate(codes)[1:]])
    codes = [segments(E - 11, range(8), 8), segments(E - 3, range(4), 16)]
    return np.concatenate(codes) - 2.0 ** (E - 11)


GRIDS = {"fp8": fp8_grid, "int8": int8_grid}


def grid_of(kind, largest):
    """The values to which a block is rounded: of the smallest exponent that has one above it."""
    name, nonnegative = kind
    E = math.frexp(largest)[1] - 1
    grids = (GRIDS[name](exponent, nonnegative) for exponent in (E, E + 1))
    return next(grid for grid in grids if grid[-1] > largest)


def neighbours(kind, block):
    """The values of the code below and above |x|, for a block of float64."""
    size = np.abs(block)
    if kind[0] == "bf16":
        ulp = 2.0 ** (np.floor(np.log2(np.maximum(size, 2.0**-126))) - 7)
        below = np.floor(size / ulp) * ulp
        return below, np.where(below == size, size, below + ulp)
    grid = grid_of(kind, size.max())
    place = np.searchsorted(grid, size, side="right") - 1
    below = grid[place]
    above = np.where(below == size, size, grid[np.minimum(place + 1, len(grid) - 1)])
    if kind[1]:  # a positive square is never zero
        below = np.where((size > 0) & (below == 0), above, below)
    return below, above


def wide_values(kind, shape):
    """Over many decades of each block, but squares only where they are kept without a bias."""
    rng = np.random.default_rng(0)
    decades = {("fp8", True): 5, ("int8", True): 6.5}.get(kind, 8)
    x = 10.0 ** rng.uniform(-decades, 0, shape)
    return (x if kind[1] else x * rng.choice([-1, 1], shape)).astype(np.float32)


@functools.cache
def block_scales(kind, shape=(31, 40)):
    """Rows whose scales run from 1e-15 to 1e15."""
    scale = np.logspace(-15, 15, shape[0])[:, None]
    return (wide_values(kind, shape) * scale).astype(np.float32)


def by_rows(function, kind, x):
    """Below and above, for rows that are blocks."""
    return map(np.stack, zip(*(function(kind, row) for row in x.astype(np.float64)), strict=True))


def furthest(count):
    """What the largest of so many standard normal numbers exceeds once in a million times."""
    return statistics.NormalDist().inv_cdf(1 - 0.5e-6 / count)


# Rounding


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_keys_is_the_value_whatever_its_blocks_scale(kind):
    x, keys = block_scales(kind), 4096
    used = codec(kind[0])

    @jax.jit
    def rounded(x):
        def one(key, _):
            own = random.of_parameter(key, jnp.uint32(0), "stage")
            encoded = used.encode(x, random.bits(own, x.shape, "slot"), kind[1])
            return random.after(key), used.decode(encoded)

        return jax.lax.scan(one, random.key(0), None, keys)[1]

    mean = np.asarray(rounded(x)).astype(np.float64).mean(0)
    below, above = by_rows(neighbours, kind, x)
    size = np.abs(x.astype(np.float64))
    rises = (size - below) / np.where(above > below, above - below, 1)
    np.testing.assert_allclose(mean[above == below], x[above == below])
    plain = np.minimum(rises, 1 - rises) * keys > 20  # enough of both to be normal
    assert plain.mean() > 0.75
    deviation = (above - below) * np.sqrt(rises * (1 - rises) / keys)
    z = ((mean - x) / np.where(plain, deviation, 1))[plain]
    assert abs(np.sqrt(np.mean(z**2)) - 1) < 5 / math.sqrt(2 * z.size)
    assert abs(np.mean(z)) < 5 / math.sqrt(z.size)
    assert np.abs(z).max() < furthest(z.size)
    rare = ((mean - x) / (above - below + (above == below)))[~plain]
    assert np.abs(rare).max(initial=0) < 25 / keys  # 20 expected, of which Poisson leaves ±22


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_becomes_one_of_its_two_neighbours_and_at_random_both(kind):
    x = block_scales(kind)
    below, above = by_rows(neighbours, kind, x)
    for bits, expected in {0: below, ONES: above}.items():
        found = round_trip(kind, x, bits)
        # All that is not decided by the last bits of the noise: 20 of them, and 16 of bf16.
        close = np.abs(np.abs(x) - below) < 2e-5 * (above - below)
        np.testing.assert_array_equal(np.abs(found)[~close], expected[~close])
        assert close.mean() < 0.01
    bits = random.bits(random.key(1), x.shape)
    found = np.abs(round_trip(kind, x, bits))
    assert np.all((found == below) | (found == above))
    assert np.all(np.sign(round_trip(kind, x, bits)) * np.sign(x) >= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_is_the_nearer_neighbour(kind):
    x = block_scales(kind)
    below, above = by_rows(neighbours, kind, x)
    size = np.abs(x.astype(np.float64))
    error = np.abs(np.abs(round_trip(kind, x, HALF)) - size)
    nearer = np.minimum(size - below, above - size)
    np.testing.assert_allclose(error[below > 0], np.abs(nearer)[below > 0], atol=0, rtol=1e-3)
    assert np.all(error <= (above - below) * 0.501)


def test_bf16_rounds_to_the_nearest_as_ml_dtypes_does():
    x = block_scales(("bf16", False), (31, 200))
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(round_trip(("bf16", False), x, HALF), expected)


def test_fp8_is_float8_e4m3fn_scaled_by_a_power_of_two():
    x = block_scales(("fp8", False), (31, 64))
    bits = jnp.full(x.shape, np.uint32(HALF))
    encoded = jax.jit(lambda x: codec("fp8").encode(x, bits, False))(x)
    for row, codes in zip(x.astype(np.float64), np.asarray(encoded["codes"]), strict=True):
        largest = grid_of(("fp8", False), np.abs(row).max())[-1]
        expected = (row * (448 / largest)).astype(ml_dtypes.float8_e4m3fn)
        np.testing.assert_array_equal(codes.view(np.uint8), expected.view(np.uint8))


# The values of the codes


def every_value(kind, exponent=127):
    """What the codes 0 … 255 decode to, for one exponent field."""
    name, nonnegative = kind
    dtype = {"fp8": ml_dtypes.float8_e4m3fn, "int8": np.uint8 if nonnegative else np.int8}[name]
    codes = jnp.asarray(np.arange(256, dtype=np.uint8).view(dtype))
    decode = codec(name, 256).decode
    return np.asarray(decode({"codes": codes, "exponents": jnp.array([exponent], jnp.uint8)}))


@pytest.mark.parametrize("kind", BLOCKWISE)
def test_the_codes_are_those_of_the_docstring(kind):
    expected = GRIDS[kind[0]](0, kind[1])
    found = every_value(kind)
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert np.all(np.diff(found[: len(expected)]) > 0)
    if kind != ("int8", True):
        np.testing.assert_array_equal(found[128 : 128 + len(expected)], -expected)
    for exponent in (30, 200):
        scaled = np.ldexp(found[: len(expected)].astype(np.float64), exponent - 127)
        np.testing.assert_array_equal(every_value(kind, exponent)[: len(expected)], scaled)


def test_int8_of_squares_is_as_precise_as_its_table_says():
    values = every_value(("int8", True))
    assert values[0] == 0 and values[1] == 1.125 * 2.0**-23
    relative = np.diff(values[1:]) / values[1:-1]
    upper = values[1:-1] >= 2.0**-7
    assert upper.sum() == 127  # eight powers of two of 16, but for the very last
    assert np.all((relative[upper] > 1 / 32) & (relative[upper] <= 1 / 16))
    assert np.all((relative[~upper] > 1 / 16) & (relative[~upper] <= 1 / 8))


def test_int8_of_averages_is_as_precise_as_its_table_says():
    values = every_value(("int8", False))[:128]
    lifted = values + np.float32(2.0**-11)
    relative = np.diff(values) / lifted[:-1]
    upper = lifted[:-1] >= 2.0**-3
    assert upper.sum() == 63  # four powers of two of 16
    assert np.all((relative[upper] > 1 / 32) & (relative[upper] <= 1 / 16))
    assert np.all((relative[~upper] > 1 / 16) & (relative[~upper] <= 1 / 8))
    np.testing.assert_array_equal(np.diff(values[:9]), 2.0**-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_the_code_stays_what_it_is_with_any_bits(kind):
    if kind[0] == "bf16":
        grid = block_scales(kind).astype(ml_dtypes.bfloat16).astype(np.float64)
    else:
        row = GRIDS[kind[0]](0, kind[1])[:-1]  # the largest is only ever rounded up to
        row = row if kind[1] else np.concatenate([row, -row])
        grid = np.ldexp(row, np.arange(-60, 61, 20)[:, None])
    for bits in (0, HALF, ONES, random.bits(random.key(0), grid.shape)):
        np.testing.assert_array_equal(round_trip(kind, grid, bits, 256), grid)


# Blocks


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_a_block_never_overflows(kind):
    """Also just below a power of two, and just below what the codes have as their largest."""
    tops = [top for m in (2, 1.9375, 1.875, 1.75) for top in (m, np.nextafter(np.float32(m), 0))]
    x = np.ldexp(np.float32(tops)[:, None], np.arange(-80, 126, 3))
    x = np.stack([x, x / 2, x / 3], -1).reshape(-1, 3)
    below, above = by_rows(neighbours, kind, x)
    for bits in (0, HALF, ONES):
        found = round_trip(kind, x, bits)
        assert np.all((found == below) | (found == above))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_ends_of_float32_values_are_kept_or_seen_not_to_be(kind):
    """Up to 1.75 · 2¹²⁷; what is larger may become infinite or NaN, and never a number."""
    x = np.float32([1.7499 * 2.0**127, 2.0**127, 2.0**126])
    below, above = neighbours(kind, x.astype(np.float64))
    for bits in (0, ONES):
        found = round_trip(kind, x, bits)
        assert np.all((found == below) | (found == above))
        top = round_trip(kind, np.float32([LARGEST]), bits)[0]
        assert not np.isfinite(top) or top >= 0.99 * LARGEST
    small = np.ldexp(np.float32(1.1), np.arange(-126, -90))  # from the smallest normal numbers
    for bits in (0, HALF, ONES):
        found = round_trip(kind, small, bits, block_size=1)
        assert np.all(np.abs(found - small) <= np.maximum(small / 8, 2.0**-126))
        assert np.all(found > 0)


@pytest.mark.parametrize("name", ["bf16", "fp8", "int8"])
def test_a_positive_square_never_becomes_zero_and_zero_stays_zero(name):
    x = np.float32(10.0 ** np.arange(-37, 20, 0.5))
    x = np.concatenate([x, np.zeros(7, np.float32)])
    for bits in (0, HALF, ONES):
        found = round_trip((name, True), x, bits, 1000)
        assert np.all((found > 0) == (x > 0))
        np.testing.assert_array_equal(round_trip((name, False), np.zeros(7), bits), np.zeros(7))


@pytest.mark.parametrize(("name", "smallest"), [("int8", 1.125 * 2.0**-23), ("fp8", 2.0**-17)])
def test_only_a_square_below_the_smallest_code_is_rounded_up_to_it(name, smallest):
    x = np.float32([1, 0.3 * smallest, 1e-30])
    for bits in (0, HALF, ONES):
        np.testing.assert_array_equal(round_trip((name, True), x, bits)[1:], smallest)


BROKEN = {
    "NaN": np.float32(np.nan),
    "NaN of one low bit": np.array(0x7F800001, np.uint32).view(np.float32),
    "inf": np.float32(np.inf),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_not_finite_is_seen_in_its_block_and_in_no_other(kind, broken):
    clean = np.abs(wide_values(("bf16", True), (2, 15)))
    for place in (0, 4, 14):
        for sign in (1, -1):
            x = clean.copy()
            x[1, place] = np.copysign(BROKEN[broken], sign)
            for bits in (0, HALF, ONES):
                seen = ~np.isfinite(round_trip(kind, x, bits, 5).reshape(2, 3, 5)).all(-1)
                assert seen[1, place // 5]
                assert seen.sum() == 1


SHAPES = [(1,), (131,), (3, 1), (2, 3, 4, 5), (2, 1, 2, 65)]
SIZES = (1, 4, 64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKWISE)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_coded_block_by_block_and_padding_is_not_seen(kind, shape):
    """Every block is rounded by its own largest element: nothing else reaches it."""
    x = wide_values(kind, shape) * np.float32(1e-20)
    bits = random.bits(random.key(3), shape)

    @jax.jit
    def both(x):
        used = [codec(kind[0], size) for size in SIZES]
        encoded = [each.encode(x, bits, kind[1]) for each in used]
        return encoded, [each.decode(y) for each, y in zip(used, encoded, strict=True)]

    for size, encoded, found in zip(SIZES, *both(x), strict=True):
        count = -(-shape[-1] // size)
        assert encoded["codes"].shape == shape and encoded["codes"].dtype.itemsize == 1
        assert encoded["exponents"].shape == (*shape[:-1], count)
        assert encoded["exponents"].dtype == jnp.uint8
        assert found.shape == shape and found.dtype == jnp.float32
        for start in range(0, shape[-1], size):
            block = np.s_[..., start : start + size]
            rows = x[block].reshape(-1, x[block].shape[-1])
            below, above = by_rows(neighbours, kind, rows)
            values = np.abs(np.asarray(found[block])).reshape(rows.shape)
            assert np.all((values == below) | (values == above))


@pytest.mark.parametrize(("size", "length"), [(3, 3), (5, 5), (48, 64)])
def test_a_block_size_that_is_no_power_of_two_takes_no_more_blocks_than_it_needs(size, length):
    """As a power of two where that makes as many blocks, else in equal parts."""
    x = wide_values(("int8", False), (131,))
    count = -(-131 // size)
    assert -(-131 // length) == count
    found = round_trip(("int8", False), x, HALF, size)
    for start in range(0, 131, length):
        below, above = neighbours(("int8", False), x[start : start + length].astype(np.float64))
        values = np.abs(found[start : start + length])
        assert np.all((values == below) | (values == above))


def test_bf16_takes_every_shape():
    encode = jax.jit(lambda xs: [adamx.bf16().encode(x, x.astype(jnp.uint32), False) for x in xs])
    for shape, encoded in zip(
        SHAPES, encode([np.ones(s, np.float32) for s in SHAPES]), strict=True
    ):
        assert encoded.shape == shape and encoded.dtype == jnp.bfloat16


# Codecs as values

VALUES = {
    "bf16": adamx.bf16,
    "nearest bf16": lambda: adamx.bf16(rounding="nearest"),
    "fp8": adamx.fp8,
    "fp8 of 32": lambda: adamx.fp8(32),
    "int8": adamx.int8,
    "int8 of 32": lambda: adamx.int8(32),
    "nearest int8": lambda: adamx.int8(rounding="nearest"),
    "nearest int8 of 32": lambda: adamx.int8(block_size=32, rounding="nearest"),
}


def test_codecs_are_equal_where_they_compute_the_same():
    for name, make in VALUES.items():
        equal = [other for other, made in VALUES.items() if made() == make()]
        assert equal == [name]
        assert hash(make()) == hash(make())
    assert adamx.int8(64) == adamx.int8() and adamx.int8() != "int8"
    assert len({make() for make in (*VALUES.values(), *VALUES.values())}) == len(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_a_codec_survives_pickling_and_its_repr_makes_it_again(name):
    made = VALUES[name]()
    assert hash(made) == hash(VALUES[name]())  # and what it remembers of that is no hindrance
    assert pickle.loads(pickle.dumps(made)) == made
    again = eval(repr(made), vars(adamx))
    opts = (adamx.quantize_state(adamx.adam(0.1), x) for x in (made, again))
    assert len(set(opts)) == 1


def test_a_codec_of_ones_own_is_equal_by_what_it_does():
    def make(name, dtype):
        return adamx.Codec(
            name, lambda x, bits, nonnegative: x.astype(dtype), lambda x: x.astype(jnp.float32)
        )

    assert make("half", jnp.float16) == make("half", jnp.float16)
    assert make("half", jnp.float16) != make("half", jnp.bfloat16)
    assert make("half", jnp.float16) != make("short", jnp.float16)
    assert repr(make("half", jnp.float16)) == "half()"


@pytest.mark.parametrize("make", [adamx.fp8, adamx.int8])
@pytest.mark.parametrize("block_size", [0, -1, 2.5, 64.0, True, "64", None])
def test_a_block_size_is_a_positive_whole_number(make, block_size):
    with pytest.raises(ValueError, match=rf"{make.__name__}: block_size .* got {block_size!r}"):
        make(block_size)


@pytest.mark.parametrize("make", [adamx.bf16, adamx.fp8, adamx.int8])
def test_a_rounding_is_stochastic_or_nearest(make):
    with pytest.raises(ValueError, match=rf"{make.__name__}: rounding must .* got 'up'"):
        make(rounding="up")


# Random bits


@functools.cache
def many_bits(parameter=0, stage="scale_by_rms", label="nu", seed=0):
    """The bits of 4096 steps for 512 elements."""

    @jax.jit
    def bits(key):
        def one(key, _):
            own = random.of_parameter(key, jnp.uint32(parameter), stage)
            return random.after(key), random.bits(own, (16, 32), label)

        return jax.lax.scan(one, key, None, 4096)[1].reshape(4096, 512)

    return np.asarray(bits(random.key(seed)))


def surplus(counts):
    """χ² of counts that should be even, in standard deviations beyond its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (np.sum((counts - expected) ** 2) / expected - freedom) / math.sqrt(2 * freedom)


def together(one, other):
    """How uneven the leading four bits of two are, seen together."""
    pairs = (one >> np.uint32(28)).astype(int) * 16 + (other >> np.uint32(28))
    return surplus(np.bincount(pairs.ravel(), minlength=256))


def test_bits_are_uniform():
    bits = many_bits()
    assert bits.dtype == np.uint32
    for axis in (0, 1):  # over the steps of an element, and over the elements of a step
        lines = np.moveaxis(bits >> np.uint32(28), axis, -1)
        found = [surplus(np.bincount(line, minlength=16)) for line in lines]
        assert np.mean(found) < 5 / math.sqrt(len(found))  # or more even, as a grid would be
        assert np.max(found) < 8  # of χ² with 15 degrees of freedom, one in 10⁷
    for place in range(12, 32):  # the 20 that are used
        ones = np.mean((bits >> np.uint32(place)) & 1)
        assert abs(ones - 0.5) < 5 * 0.5 / math.sqrt(bits.size)


def test_bits_are_independent_from_step_to_step():
    bits = many_bits()
    for lag in (1, 2, 3, 10, 100, 1000):
        assert abs(together(bits[:-lag], bits[lag:])) < 5


@pytest.mark.parametrize(
    "other", [{"parameter": 1}, {"parameter": 77}, {"stage": "b"}, {"label": "mu"}, {"seed": 1}]
)
def test_bits_of_other_parameters_stages_slots_and_seeds_are_independent(other):
    one, two = many_bits(), many_bits(**other)
    assert abs(together(one, two)) < 5
    assert abs(together(one[:, 1:], two[:, :-1])) < 5
    assert abs(together(one[1:], two[:-1])) < 5


def test_bits_of_neighbours_add_up_as_independent_ones_do():
    """Sums over runs of elements, in a step, have the variance of independent terms."""
    noise = (many_bits() / 2.0**32 - 0.5) * math.sqrt(12)
    for length in (2, 8, 64, 512):
        sums = noise.reshape(4096, -1, length).sum(-1) / math.sqrt(length)
        assert abs(np.mean(sums**2) - 1) < 5 * math.sqrt(2 / sums.size)
    for lag in (1, 2, 3, 7, 16, 32, 100, 192):
        assert abs(np.mean(noise[:, lag:] * noise[:, :-lag])) < 0.015


def test_bits_are_made_again_from_their_key_row_by_row():
    key = random.key(5)
    rows = random.bits(key, (3, 4), "mu")
    np.testing.assert_array_equal(rows.ravel(), random.bits(key, (12,), "mu"))
    assert len({int(random.key(seed)) for seed in range(-500, 500)}) == 1000
