"""Every finite gradient gives a finite step, and leaves a state that goes on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
import reference
from adamx.core import NonNegative, Squares, norm, shrunk, stage
from adamx.numerics.formats import limited
from adamx.testing import check_stage
from adamx.testing.conformance import _PROMISES
from catalog import OPTIMISERS, REPRESENTATIVES, slow_but, x64

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

RATE, STEPS = 1e-2, 12
LARGEST = float(np.finfo(np.float32).max)
SHAPES = {"bias": (5,), "kernel": (3, 4)}


def ordinary():
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal((STEPS, *s)).astype(np.float32) for k, s in SHAPES.items()}


def with_one(size):
    """In two steps one element of the kernel is enormous."""
    grads = ordinary()
    grads["kernel"][6, 0, 1], grads["kernel"][7, 0, 1] = size, -size
    return grads


def with_all(size):
    """In two steps all elements are."""
    grads = ordinary()
    for g in grads.values():
        g[6], g[7] = np.copysign(size, g[6]), np.copysign(size, g[7])
    return grads


def at_rest(opt, grads, dtype=np.float32):
    """The updates of every step and the last state, with parameters that stay where they are."""
    params = {k: jnp.linspace(0.5, 1, 12, dtype=dtype)[: g[0].size] for k, g in grads.items()}
    params = {k: x.reshape(grads[k][0].shape) for k, x in params.items()}

    def step(state, grad):
        updates, state = opt.update(grad, state, params)
        return state, updates

    cast = {k: jnp.asarray(g, dtype) for k, g in grads.items()}
    state, updates = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(opt.init(params), cast)
    return jax.tree.map(np.asarray, (updates, state))


def assert_finite(tree):
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = np.asarray(x, np.float64) if x.dtype.kind not in "ui" else x
        assert np.all(np.isfinite(x)), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", slow_but(["adam", "prodigy"], REPRESENTATIVES))
def test_every_optimiser_takes_finite_steps(name):
    runs = [with_one(1e20), with_one(LARGEST), with_all(1e20), with_all(LARGEST)]
    grads = {k: np.concatenate([run[k] for run in runs]) for k in SHAPES}
    assert_finite(at_rest(OPTIMISERS[name](RATE), grads))


@pytest.mark.parametrize("size", [1e20, 1e30, LARGEST])
@pytest.mark.parametrize(
    ("opt", "oracle"),
    [
        (adamx.adam(RATE), lambda g: reference.adam(g, RATE, 0.9, 0.999, 1e-8)),
        (adamx.adamax(RATE), lambda g: reference.adamax(g, RATE, 0.9, 0.999, 1e-8)),
        (adamx.rmsprop(RATE), lambda g: reference.rmsprop(g, RATE, 0.9, 1e-8)),
    ],
    ids=["adam", "adamax", "rmsprop"],
)
def test_the_steps_are_those_of_exact_arithmetic(opt, oracle, size):
    """Beside an enormous gradient all others vanish, so it does not matter how large it is."""
    grads = with_one(size)
    updates, _ = at_rest(opt, grads)
    for k, g in grads.items():
        np.testing.assert_allclose(updates[k], oracle(g.astype(np.float64)), rtol=1e-5, atol=1e-12)


def test_adam_trains_on_after_one_element_of_1e20():
    opt = adamx.adam(1.0)
    state = opt.init(jnp.zeros(1))
    found = []
    for g in (0.1, 1e20, 0.1):
        updates, state = opt.update(jnp.array([g]), state)
        found.append(float(updates[0]))
    exact = reference.adam(np.array([[0.1], [1e20], [0.1]]), 1.0, 0.9, 0.999, 1e-8)
    np.testing.assert_allclose(found, exact[:, 0], rtol=1e-6)


def test_averages_recover():
    """A mean square of 2¹²⁶ decays like every other one."""
    opt = adamx.scale_by_rms(b2=0.5)
    state = opt.init(jnp.zeros(1))
    _, state = opt.update(jnp.array([LARGEST]), state)
    for _ in range(130):
        _, state = opt.update(jnp.array([1.0]), state)
    np.testing.assert_allclose(state["scale_by_rms"]["nu"], [1 + 2.0**-5], rtol=1e-6)


@pytest.mark.parametrize("codec", ["bf16", "fp8", "int8"])
def test_a_stored_block_stays_finite(codec):
    grads = {"w": np.random.default_rng(0).standard_normal((STEPS, 3, 64)).astype(np.float32)}
    grads["w"][6, 0, 1] = 1e20
    grads["w"][7, 0, 2] = LARGEST
    opt = adamx.quantize_state(adamx.adam(RATE), codec, min_size=1)
    params = {"w": jnp.ones((3, 64))}
    state = opt.init(params)
    for t in range(STEPS):
        updates, state = opt.update({"w": jnp.asarray(grads["w"][t])}, state, params)
        assert_finite(updates)
    assert_finite({slot: adamx.dequantize(state, slot) for slot in ("mu", "nu")})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda x: jnp.dtype(x).name)
@pytest.mark.parametrize("name", ["sgd_momentum", "adam", "adafactor", "lamb", "lookahead_of_adam"])
def test_the_largest_of_a_narrow_dtype(name, dtype):
    grads = with_all(float(jnp.finfo(dtype).max))
    assert_finite(at_rest(OPTIMISERS[name](1.0), grads, dtype))


def test_an_update_that_its_dtype_cannot_hold_is_the_largest_it_can():
    opt = adamx.scale_by_heavy_ball(0.5)
    largest = jnp.array([65504.0, -65504.0, 1.0], jnp.float16)
    state = opt.init(jnp.zeros(3, jnp.float16))
    for _ in range(2):
        updates, state = opt.update(largest, state)
    np.testing.assert_array_equal(updates, np.array([65504.0, -65504.0, 1.5], np.float16))


def test_of_complex_updates_both_parts_are_the_largest_number():
    grads = jnp.array([complex(3e38, -1.0), complex(1.0, 3e38)], jnp.complex64)
    opt = adamx.sgd(10.0)
    updates, _ = opt.update(grads, opt.init(grads), grads)
    expected = [complex(-LARGEST, 10.0), complex(-10.0, -LARGEST)]
    np.testing.assert_allclose(updates, np.array(expected, np.complex64), rtol=1e-6)


def test_a_complex_modulus_that_overflows_keeps_its_phase():
    grads = jnp.array([complex(3.4e38, 3.4e38)], jnp.complex64)
    opt = adamx.chain(adamx.sgd(0.1), adamx.align_with_gradient())
    updates, _ = opt.update(grads, opt.init(grads), grads)
    np.testing.assert_allclose(np.angle(updates), np.angle(-grads), rtol=1e-6)
    np.testing.assert_allclose(np.abs(updates), np.hypot(3.4e37, 3.4e37), rtol=1e-6)


def test_what_a_compensated_average_has_lost_stays_finite_in_float64():
    with x64():
        opt = adamx.adam(RATE, compensated=True)
        grads = {"w": np.array([[0.1], [1e80], [0.1], [0.1]])}
        updates, state = at_rest(opt, grads, np.float64)
        assert_finite((updates, state))
        exact = reference.adam(grads["w"], RATE, 0.9, 0.999, 1e-8)
        np.testing.assert_allclose(updates["w"], exact, rtol=1e-9)


def test_a_product_that_overflows_is_the_largest_number():
    grads = jnp.array([LARGEST, -LARGEST, 1.0, jnp.inf, jnp.nan])
    updates, _ = adamx.scale(-2.0).update(grads, adamx.scale(-2.0).init(grads))
    np.testing.assert_allclose(updates, [-LARGEST, LARGEST, -2.0, -np.inf, np.nan], rtol=1e-6)


# Clips -----------------------------------------------------------------------------------------


@pytest.fixture(params=["one", "two", "many", "most", "scalar", "single"])
def enormous(request):
    """Gradients whose norm, or whose squares, float32 cannot hold."""
    if request.param in ("scalar", "single"):
        alone = np.full(() if request.param == "scalar" else (1, 1), 1e20, np.float32)
        return {"bias": np.ones(5, np.float32), "kernel": alone}
    kernel = np.random.default_rng(1).standard_normal((3, 4))
    kernel = {
        "one": np.where(np.arange(12).reshape(3, 4) == 5, 1e20, kernel),
        "two": kernel * 1e19,
        "many": kernel * 1e37,
        "most": np.full((3, 4), LARGEST),
    }[request.param]
    return {"bias": np.ones(5, np.float32), "kernel": kernel.astype(np.float32)}


def clipped(stage, grads):
    params = {k: jnp.ones_like(g) for k, g in grads.items()}
    grads = jax.tree.map(jnp.asarray, grads)
    updates, _ = stage.update(grads, stage.init(params), params)
    return {k: np.asarray(u, np.float64) for k, u in updates.items()}


def length(x, axis=None):
    """In float64, where the squares of all float32 numbers are finite."""
    return np.sqrt(np.sum(np.float64(x) ** 2, axis=axis, keepdims=axis is not None))


def test_clip_by_global_norm(enormous):
    whole = np.hypot(length(enormous["bias"]), length(enormous["kernel"]))
    updates = clipped(adamx.clip_by_global_norm(0.5), enormous)
    for k, g in enormous.items():
        expected = np.float64(g) * (0.5 / whole)
        np.testing.assert_allclose(updates[k], expected, rtol=1e-5, atol=1e-37)


def test_clip_by_norm(enormous):
    updates = clipped(adamx.clip_by_norm(0.5), enormous)
    for k, g in enormous.items():
        np.testing.assert_allclose(updates[k], g * (0.5 / length(g)), rtol=1e-5, atol=1e-37)


def test_adaptive_clip(enormous):
    updates = clipped(adamx.adaptive_clip(0.5), enormous)
    for k, g in enormous.items():
        axis = 0 if g.size > 1 else None
        most = 0.5 * length(np.ones_like(g), axis)
        expected = g * np.minimum(1, most / length(g, axis))
        np.testing.assert_allclose(updates[k], expected, rtol=1e-5, atol=1e-37)


def test_clip_by_block_rms(enormous):
    updates = clipped(adamx.clip_by_block_rms(0.5), enormous)
    for k, g in enormous.items():
        expected = g / np.maximum(1, length(g) / np.sqrt(g.size) / 0.5)
        np.testing.assert_allclose(updates[k], expected, rtol=1e-5, atol=1e-37)


def test_trust_ratio(enormous):
    updates = clipped(adamx.trust_ratio(0.5), enormous)
    for k, g in enormous.items():
        expected = 0.5 * np.sqrt(g.size) / length(g) * np.float64(g)
        np.testing.assert_allclose(updates[k], expected, rtol=1e-5, atol=1e-37)


def test_a_norm_below_the_bound_leaves_the_gradient(enormous):
    updates = clipped(adamx.clip_by_global_norm(np.inf), enormous)
    np.testing.assert_array_equal(updates["kernel"], enormous["kernel"])


@pytest.mark.parametrize("size", [2.0, 1e150, 1e200, 1e308])
def test_float32_and_float64_arrays_have_one_global_norm(size):
    with x64():
        grads = {"a": jnp.full(3, 1e20, jnp.float32), "b": jnp.full(2, size, jnp.float64)}
        whole = math.hypot(*(float(x) for g in grads.values() for x in g))
        opt = adamx.clip_by_global_norm(1.0)
        updates, _ = opt.update(grads, opt.init(grads))
        for k, g in grads.items():
            expected = np.asarray(g, np.float64) / whole
            np.testing.assert_allclose(updates[k], expected, rtol=1e-5, atol=1e-37)


def test_watch_reads_what_float32_cannot_square():
    opt = adamx.chain(adamx.sgd(1.0), adamx.watch())
    grads = {"a": jnp.full(3, 1e20), "b": jnp.full(2, 2e20)}
    _, state = opt.update(grads, opt.init(grads), jax.tree.map(jnp.ones_like, grads))
    seen = adamx.metrics(state)
    rms = np.sqrt((3 * 1e40 + 2 * 4e40) / 5)
    np.testing.assert_allclose([seen["grad_rms"], seen["update_rms"]], rms, rtol=1e-6)
    assert seen["nonfinite"] == 0


def test_what_is_not_finite_stays_visible():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1.0])
    np.testing.assert_array_equal(limited(x), x)
    for bad in (jnp.inf, jnp.nan):
        opt = adamx.adam(RATE)
        updates, _ = opt.update(jnp.array([bad, 1.0]), opt.init(jnp.zeros(2)))
        assert not np.isfinite(updates[0]) and np.isfinite(updates[1])


def test_of_complex_numbers_both_parts_are_limited():
    x = jnp.array([complex(1e30, -1e30), complex(1.0, 1e30)], jnp.complex64)
    expected = [complex(2.0**63, -(2.0**63)), complex(1.0, 2.0**63)]
    np.testing.assert_array_equal(limited(x), np.array(expected, np.complex64))


def test_limits_are_differentiable():
    slope = jax.grad(lambda x: jnp.sum(limited(x)))(jnp.array([2.0, -1e20, 0.0]))
    np.testing.assert_array_equal(slope, [1.0, 0.0, 1.0])


# For stages of one's own -----------------------------------------------------------------------


@stage
def shorter(most: NonNegative = 1.0):
    return lambda signal: signal.with_update(shrunk(signal.update, norm(signal.update), most))


@stage
def squared(width: NonNegative = 1.0):
    return lambda signal: signal.with_update(width * signal.update * jnp.abs(signal.update))


def test_check_stage_asks_for_finite_steps():
    others = _PROMISES.keys() - {"largest"}
    assert list(check_stage(shorter(0.5), without=others).held) == ["largest"]
    with pytest.raises(AssertionError, match=r"'largest'(.|\n)*got.*Use times"):
        check_stage(squared(), without=others)


def test_what_stands_last_lets_large_updates_pass():
    grads = {"w": np.full((2, 3), 1e30, np.float32)}
    for last in (adamx.polyak_ema(), adamx.stochastic_rounding(), adamx.watch()):
        updates, _ = at_rest(adamx.chain(adamx.sgd(1.0), last), grads)
        np.testing.assert_array_equal(updates["w"], -grads["w"])


def test_squares_add_up():
    x = jnp.array([3e30, 4.0, 1e-3])
    parts = [Squares.of(part) for part in (x[:1], x[1:])]
    added = Squares.total(parts)
    np.testing.assert_allclose(added.norm().value, 3e30, rtol=1e-6)
    np.testing.assert_allclose(Squares.of(x[1:]).norm().value, np.hypot(4.0, 1e-3), rtol=1e-6)
