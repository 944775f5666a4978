"""Parameters of few bits: each stage lands where it says, and small steps add up."""

import contextlib
import functools

import flax.training.train_state
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import adamx
from adamx.core import StageError
from catalog import run, x64
from helpers import branches

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

STAGES = {
    "stochastic_rounding": adamx.stochastic_rounding,
    "kahan_summation": adamx.kahan_summation,
    "master_weights": adamx.master_weights,
}
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
FINFO = {name: ml_dtypes.finfo(dtype) for name, dtype in DTYPES.items()}

every_stage = pytest.mark.parametrize("name", STAGES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

standard_promotion = functools.partial(jax.numpy_dtype_promotion, "standard")  # as Optax needs it


def landed(opt, theta, u, apply=adamx.apply_updates):
    """The parameter after one step of size u."""

    @jax.jit
    def step(theta, u):
        updates, state = opt.update(u, opt.init(theta), theta)
        assert updates.dtype == jnp.float32
        return apply(theta, updates), state

    with standard_promotion() if apply is optax.apply_updates else contextlib.nullcontext():
        return step(jnp.asarray(theta), jnp.asarray(u, jnp.float32))


def floor(x, dtype):
    """The neighbour below x (or x itself), and the distance to the one above, in float64."""
    info, x = FINFO[dtype], np.asarray(x, np.float64)
    _, exponent = np.frexp(x)
    spacing = np.maximum(2.0 ** (exponent - 1 - info.nmant), float(info.smallest_subnormal))
    return np.floor(x / spacing) * spacing, spacing


# Where a step leads


def sums(dtype):
    """Every finite θ with many steps: tiny, alike, huge, to zero, past it, and to near it."""
    theta = np.arange(2**16).astype(np.uint16).view(DTYPES[dtype])
    theta = theta[np.isfinite(theta.astype(np.float32))]
    rng = np.random.default_rng(0)
    wide = theta.astype(np.float64)
    steps = [wide * rng.standard_normal(len(wide)) * 2.0**k for k in (-28, -9, -4, -1, 1, 9, 20)]
    steps += [
        -wide,
        -2 * wide,
        *(-wide * (1 + sign * 2.0**-k) for sign in (-1, 1) for k in (16, 24)),
    ]
    steps += [rng.standard_normal(len(wide)) * 2.0 ** rng.integers(-30, 30, len(wide))]
    steps += [np.full(len(wide), float(FINFO[dtype].max))]
    with np.errstate(over="ignore"):
        u = np.concatenate(steps).astype(np.float32)
    return np.tile(theta, len(steps)), u


TINY = np.finfo(np.float32).tiny


def flushed(x):
    """x without what is subnormal in float32, which the CPU's arithmetic takes for zero."""
    x = np.asarray(x).astype(np.float32)
    return np.where(np.abs(x) < TINY, np.float32(0), x)


def assert_same(x, expected):
    """Equal, but for what is lost with subnormal sums and differences."""
    x, expected = (np.asarray(y).astype(np.float64) for y in (x, expected))
    np.testing.assert_allclose(x, expected, rtol=0, atol=float(TINY))


@every_dtype
@pytest.mark.parametrize("apply", [adamx.apply_updates, optax.apply_updates])
def test_the_parameter_becomes_the_rounded_sum_for_every_parameter_and_step(dtype, apply):
    theta, u = sums(dtype)
    with np.errstate(over="ignore"):
        total = flushed(theta) + flushed(u)
        nearest = total.astype(DTYPES[dtype])
    assert np.isinf(nearest.astype(np.float32)).any()
    for name in ("kahan_summation", "master_weights"):
        new, _ = landed(STAGES[name](), theta, u, apply)
        assert new.dtype == DTYPES[dtype]
        assert_same(new, nearest)
    new = flushed(landed(adamx.stochastic_rounding(), theta, u, apply)[0]).astype(np.float64)
    known = np.isfinite(nearest.astype(np.float32)) & (np.abs(total) <= float(FINFO[dtype].max))
    below, spacing = floor(total[known], dtype)
    above = np.where(below == total[known], below, below + spacing)
    is_below, is_above = (np.abs(new[known] - x) <= TINY for x in (below, above))
    assert np.all(is_below | is_above)
    np.testing.assert_array_equal(new[~known], nearest[~known].astype(np.float64))


@every_dtype
def test_a_step_lands_on_any_parameter_that_is_not_far_smaller(dtype):
    """2¹⁶ times smaller, and float32 could not hold θ' − θ to θ's last digit."""
    info = FINFO[dtype]
    rng = np.random.default_rng(1)
    exponents = np.arange(info.minexp if dtype == "bfloat16" else -24, info.maxexp)
    old, new = map(np.ravel, np.meshgrid(exponents, exponents))
    signs, digits = (
        rng.choice([-1, 1], (2, len(old))),
        1 + rng.integers(0, 128, (2, len(old))) / 128,
    )
    theta, target = (signs * digits * 2.0 ** np.stack([old, new])).astype(DTYPES[dtype])
    near = (new >= old - 15) & (np.maximum(old, new) < 127)  # a difference that overflows is none
    theta, target = (np.append(x, DTYPES[dtype](0))[:, None] for x in (theta[near], target[near]))

    @adamx.stage
    def land(seed: int = 0):
        return lambda signal: signal.step_to(jnp.asarray(target).astype(jnp.float32))

    reached, _ = landed(land(), theta, np.ones(theta.shape))
    assert_same(reached, target)


@every_dtype
@pytest.mark.parametrize("name", ["kahan_summation", "master_weights"])
def test_a_step_is_not_rounded_to_the_dtype_of_gradients(name, dtype):
    rng = np.random.default_rng(4)
    numbers = rng.standard_normal((2, 5000)) * 2.0 ** rng.integers(-4, 4, (2, 5000))
    theta, grads = numbers.astype(DTYPES[dtype])
    rate = 1 - 2.0**-7  # a product that float32 can hold
    steps = rate * grads.astype(np.float32)
    expected = (theta.astype(np.float32) - steps).astype(DTYPES[dtype])
    opt = adamx.chain(adamx.sgd(rate), STAGES[name]())
    updates, _ = opt.update(jnp.asarray(grads), opt.init(theta), jnp.asarray(theta))
    np.testing.assert_array_equal(adamx.apply_updates(jnp.asarray(theta), updates), expected)
    lossy = updates.astype(dtype)
    assert np.any(np.asarray(adamx.apply_updates(jnp.asarray(theta), lossy)) != expected)


@pytest.mark.parametrize("theta", [np.inf, -np.inf, np.nan])
@every_stage
def test_what_is_not_finite_stays_so(name, theta):
    new, _ = landed(STAGES[name](), jnp.full(3, theta, jnp.bfloat16), np.ones(3))
    assert not np.isfinite(new.astype(jnp.float32)).any()
    new, _ = landed(STAGES[name](), jnp.ones(3, jnp.bfloat16), np.full(3, theta))
    np.testing.assert_array_equal(new.astype(jnp.float32), theta)


# Rounding at random

COPIES = 40_000


@pytest.mark.parametrize(
    ("theta", "u", "dtype"),
    [
        (1.0, 1e-5, "bfloat16"),
        (-1.0, 3e-3, "bfloat16"),
        (1.0, -1e-3, "bfloat16"),  # 1 has a nearer neighbour below
        (3e-30, 1e-33, "bfloat16"),
        (0.0, 1e30, "bfloat16"),
        (1.0, 1e-4, "float16"),
        (-6e-5, -1e-9, "float16"),  # between subnormals
        (0.0, 1e-8, "float16"),  # between zero and the first
        (65472.0, 7.0, "float16"),
    ],
)
def test_a_randomly_rounded_parameter_has_the_right_mean(theta, u, dtype):
    theta = np.full(COPIES, theta, DTYPES[dtype])
    total = float(theta[0].astype(np.float32) + np.float32(u))
    new, _ = landed(adamx.stochastic_rounding(), theta, np.full(COPIES, u))
    new = np.asarray(new).astype(np.float64)
    below, spacing = floor(total, dtype)
    share = (total - below) / spacing
    assert set(new) == {below, below + spacing}
    assert abs(new.mean() - total) < 4 * spacing * np.sqrt(share * (1 - share) / COPIES)


def test_random_bits_follow_from_the_seed_the_step_and_the_parameter():
    theta = {"a": jnp.ones(256, jnp.bfloat16), "b": jnp.ones(256, jnp.bfloat16)}
    u = jax.tree.map(lambda x: jnp.full(x.shape, 2.0**-8), theta)

    def updates(opt, state):
        given, state = opt.update(u, state, theta)
        return {k: x.tolist() for k, x in given.items()}, state

    opt = adamx.stochastic_rounding()
    first, state = updates(opt, opt.init(theta))
    second, _ = updates(opt, state)
    again, _ = updates(opt, state)
    other, _ = updates(adamx.stochastic_rounding(1), adamx.stochastic_rounding(1).init(theta))
    assert second == again
    seen = [first["a"], first["b"], second["a"], other["a"]]
    assert all(x != y for i, x in enumerate(seen) for y in seen[:i])


# Small steps add up

STEPS = 6000


def walked(opt, u, dtype, shape=(2000,)):
    """Parameters that start at 1 and go u in every step, and the state."""
    theta = jnp.ones(shape, dtype)

    @jax.jit
    def walk(theta):
        def step(carry, _):
            theta, state = carry
            updates, state = opt.update(jnp.full(shape, u), state, theta)
            return (adamx.apply_updates(theta, updates), state), None

        return jax.lax.scan(step, (theta, opt.init(theta)), None, STEPS)[0]

    theta, state = walk(theta)
    return np.asarray(theta).astype(np.float64), state


@pytest.mark.parametrize("u", [2.0**-12, -(2.0**-21)])
def test_steps_that_plain_bfloat16_loses_add_up(u):
    assert np.all(walked(adamx.scale(1.0), u, "bfloat16")[0] == 1)
    expected = 1 + STEPS * u
    theta, state = walked(adamx.master_weights(), u, "bfloat16")
    np.testing.assert_allclose(state["master_weights"]["master"], expected, rtol=1e-6)
    np.testing.assert_allclose(theta, expected, rtol=2.0**-8)
    # The noise of a rounding has at most half a last digit as its standard deviation; they add up.
    digit, copies = 2.0**-7, len(theta)
    walk = min(digit / 2 * np.sqrt(STEPS), np.sqrt(digit * abs(expected - 1)))
    theta, _ = walked(adamx.stochastic_rounding(), u, "bfloat16")
    assert abs(theta.mean() - expected) < 4 * walk / np.sqrt(copies)
    theta, state = walked(adamx.kahan_summation(), u, "bfloat16")
    total = theta + np.asarray(state["kahan_summation"]["lost"]).astype(np.float64)
    np.testing.assert_allclose(total.mean(), expected, atol=abs(expected - 1) / 100)
    assert np.abs(total - expected).max() < digit / 4


def test_rounded_to_the_nearest_what_is_lost_sticks():
    """The published form adds nothing below the last digit of ℓ; so ℓ is rounded at random."""
    half = ml_dtypes.bfloat16
    theta, lost, u = half(1), half(0), np.float32(-(2.0**-21))
    for _ in range(STEPS):
        s = u + np.float32(lost)
        new = half(np.float32(theta) + s)
        theta, lost = new, half(s - (np.float32(new) - np.float32(theta)))
    assert (theta, lost) == (1, -(2.0**-13))  # where the last digit is 2⁻²⁰


def test_kahan_summation_carries_what_is_lost():
    rng = np.random.default_rng(2)
    opt = adamx.kahan_summation()
    theta = jnp.asarray(rng.standard_normal(500), jnp.bfloat16)
    state = opt.init(theta)
    assert state["kahan_summation"]["lost"].dtype == jnp.bfloat16
    for u in (rng.standard_normal((20, 500)) * 1e-3).astype(np.float32):
        before, lost = (
            np.asarray(x).astype(np.float32) for x in (theta, state["kahan_summation"]["lost"])
        )
        updates, state = opt.update(jnp.asarray(u), state, theta)
        theta = adamx.apply_updates(theta, updates)
        s = u + lost
        expected = (before + s).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(theta).astype(np.float32), expected)
        below, spacing = floor(s - (expected - before), "bfloat16")
        lost = np.asarray(state["kahan_summation"]["lost"]).astype(np.float64)
        assert np.all((lost == below) | (lost == below + spacing))


# Master weights

GRADS = np.random.default_rng(3).standard_normal((5000, 40)).astype(np.float32)


def test_master_weights_are_a_float32_training_and_the_parameters_its_rounding():
    start = jnp.linspace(-1, 1, 40).astype(jnp.bfloat16)
    opt = adamx.chain(adamx.adam(1e-4), adamx.master_weights())

    def step(carry, grad):
        theta, state = carry
        updates, state = opt.update(grad, state, theta)
        theta = adamx.apply_updates(theta, updates)
        return (theta, state), (theta, state["master_weights"]["master"])

    scanned = jax.jit(lambda start: jax.lax.scan(step, (start, opt.init(start)), GRADS)[1])
    theta, master = jax.tree.map(np.asarray, scanned(start))
    np.testing.assert_array_equal(theta, master.astype(ml_dtypes.bfloat16))
    wide = start.astype(jnp.float32)
    steps = run(adamx.adam(1e-4), GRADS, wide).astype(np.float64)
    expected = np.asarray(wide) + np.cumsum(steps, axis=0)
    np.testing.assert_allclose(master, expected, atol=1e-5)


def test_a_parameter_that_was_set_from_outside_takes_its_master_along():
    opt = adamx.master_weights()
    theta = jnp.ones(2, jnp.bfloat16)
    u, state = opt.update(jnp.full(2, 1e-3), opt.init(theta), theta)
    theta = adamx.apply_updates(theta, u).at[0].set(1.0078125)
    u, state = opt.update(jnp.full(2, 1e-3), state, theta)
    np.testing.assert_allclose(state["master_weights"]["master"], [1.0088125, 1.002], rtol=1e-7)
    np.testing.assert_array_equal(adamx.apply_updates(theta, u), [1.0078125, 1])


# What is kept


@every_stage
@every_dtype
def test_the_memory_is_what_is_said(name, dtype):
    opt = STAGES[name]()
    state = jax.eval_shape(opt.init, jnp.zeros((50, 100), dtype))
    # The count, a key, and a zero of the parameter's dtype.
    scalars = {"master_weights": 4, "kahan_summation": 8, "stochastic_rounding": 10}[name]
    slots = {"stochastic_rounding": 0, "kahan_summation": 2, "master_weights": 4}[name]
    assert adamx.memory_usage(state).bytes == scalars + slots * 5000


@every_stage
@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64"])
def test_wide_parameters_pass_and_nothing_is_kept_of_them(name, dtype):
    with x64():
        theta = jnp.asarray([1.0, -2.0], dtype)
        grads = jnp.asarray([[1.0, 2.0], [0.3, 0.1]], dtype)
        opt = adamx.chain(adamx.adam(1e-3), STAGES[name]())
        given, expected = (run(x, grads, theta) for x in (opt, adamx.adam(1e-3)))
        np.testing.assert_array_equal(given, expected)
        kept = opt.init(theta).get(name, {})
        assert jax.tree.leaves({k: x for k, x in kept.items() if k != "key"}) == []
        with pytest.raises(StageError, match=r"update\(\) was called without them"):
            opt.update(grads[0], opt.init(theta))


PARAMS = {
    "kernel": jnp.linspace(-1, 1, 12).reshape(3, 4).astype(jnp.bfloat16),
    "bias": jnp.zeros(4, jnp.float32),
    "half": jnp.ones(3, jnp.float16),
    "nothing": None,
}


@pytest.mark.slow
@every_stage
@pytest.mark.parametrize("gradients", ["alike", "float32", "bfloat16"])
def test_a_tree_of_several_dtypes_is_trained_with_donated_buffers(name, gradients):
    opt = adamx.chain(adamx.adam(1e-2), STAGES[name]())
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), PARAMS)
    state = jax.jit(opt.init)(params) if gradients == "alike" else opt.init(params)
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        def loss(params):
            return sum(jnp.sum((x.astype(jnp.float32) - 2) ** 2) for x in jax.tree.leaves(params))

        value, grads = jax.value_and_grad(loss)(params)
        if gradients != "alike":
            grads = jax.tree.map(lambda g: g.astype(gradients), grads)
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state, value

    losses = []
    for _ in range(30):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == wanted
    assert losses[-1] < 0.85 * losses[0] and params["nothing"] is None


@every_stage
def test_the_state_of_shapes_is_that_of_arrays(name):
    opt = STAGES[name]()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), opt.init(PARAMS))
    if name == "master_weights":
        with pytest.raises(StageError, match="was given only their shapes"):
            opt.init(shapes)
    else:
        assert jax.tree.map(lambda x: (x.shape, x.dtype), opt.init(shapes)) == expected
    given = jax.eval_shape(opt.init, shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), given) == expected


@pytest.mark.parametrize("make", [adamx.stochastic_rounding, adamx.kahan_summation])
@pytest.mark.parametrize("seed", [0.5, True, "a"])
def test_a_seed_that_is_none_is_an_error(make, seed):
    with pytest.raises(ValueError, match="seed must be a whole number, got"):
        make(seed).init(jnp.ones(2, jnp.bfloat16))


# In company


@every_stage
@every_dtype
def test_what_stands_behind_sees_the_parameter_that_comes_of_it(name, dtype):
    opt = adamx.chain(STAGES[name](), adamx.polyak_ema(0.0))
    theta = jnp.asarray([1.0, -3.0, 1e-6, 5e-5], dtype)
    new, state = landed(opt, theta, np.array([1e-3, 1e-3, 2e-7, 1e-7]))
    np.testing.assert_array_equal(state["polyak_ema"]["ema"], new.astype(jnp.float32))


@every_stage
def test_they_are_for_some_parameters_and_stay_as_they_are_in_a_store(name):
    params = {"a": jnp.ones((64, 64), jnp.bfloat16), "b": jnp.ones((64, 64), jnp.bfloat16)}
    grads = jax.tree.map(lambda x: 1e-2 * x, params)
    some = adamx.chain(adamx.sgd(1e-4), adamx.where("a", STAGES[name]()))
    updates, _ = some.update(grads, some.init(params), params)
    assert (updates["a"].dtype, updates["b"].dtype) == (jnp.float32, jnp.bfloat16)
    stored = adamx.quantize_state(adamx.chain(adamx.sgd(1e-4, 0.9), STAGES[name]()), "int8")
    state = jax.jit(stored.init)(params)
    for _ in range(3):
        updates, state = stored.update(grads, state, params)
        params = adamx.apply_updates(params, updates)
    rows = {(row.slot, row.kept_as) for row in adamx.memory_usage(state).rows}
    own = {"kahan_summation": {("lost", "bfloat16")}, "master_weights": {("master", "float32")}}
    assert rows >= {("trace", "int8")} | own.get(name, set())


@every_stage
def test_schedule_free_follows_float32(name):
    def trained(dtype, *stages):
        opt = adamx.chain(adamx.sgd(0.02), adamx.schedule_free(0.02), *stages)
        y = jnp.linspace(-2, 2, 64).astype(dtype)
        state = opt.init(y)
        for _ in range(200):
            updates, state = opt.update(y - 0.3, state, y)
            y = adamx.apply_updates(y, updates)
        return adamx.eval_params(state, y.astype(jnp.float32))

    digit = 2.0**-9  # of numbers near 0.3; x magnifies what is rounded in y by 1/β
    x, expected = trained(jnp.bfloat16, STAGES[name]()), trained(jnp.float32)
    if name == "stochastic_rounding":  # 200 roundings that add up
        np.testing.assert_allclose(x, expected, atol=5 * digit / 2 * np.sqrt(200))
        np.testing.assert_allclose(
            x.mean(), expected.mean(), atol=5 * digit / 2 * np.sqrt(200 / 64)
        )
    else:
        np.testing.assert_allclose(x, expected, atol=2 * digit / 0.9)


@pytest.mark.slow
@every_stage
def test_optax_accumulates_and_guards_around_them(name):
    theta, grads = jnp.ones(8, jnp.bfloat16), jnp.full((4, 8), 1e-2)
    inner = adamx.chain(adamx.sgd(0.1), STAGES[name]())
    for opt in (optax.MultiSteps(inner, 2), optax.apply_if_finite(inner, 3)):
        with standard_promotion():
            new, state = theta, opt.init(theta)
            for grad in grads:
                updates, state = jax.jit(opt.update)(grad, state, new)
                new = optax.apply_updates(new, updates)
        assert new.dtype == jnp.bfloat16 and np.isfinite(new.astype(jnp.float32)).all()
    with standard_promotion():  # bfloat16 gradients can be accumulated
        multi = optax.MultiSteps(inner, 2)
        updates, _ = multi.update(grads[0].astype(jnp.bfloat16), multi.init(theta), theta)
    np.testing.assert_array_equal(updates, 0)


@every_stage
def test_a_flax_train_state_takes_them(name):
    tx = adamx.chain(adamx.sgd(0.5), STAGES[name]())
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    state = flax.training.train_state.TrainState.create(
        apply_fn=lambda params: params["w"], params=params, tx=tx
    )

    def step(state, _):
        return state.apply_gradients(grads={"w": jnp.ones(4, jnp.bfloat16)}), None

    with standard_promotion():
        state, _ = jax.jit(lambda state: jax.lax.scan(step, state, None, 3))(state)
    np.testing.assert_array_equal(state.params["w"], -0.5)
    assert state.params["w"].dtype == jnp.bfloat16


@every_stage
def test_a_batch_of_optimisers_is_each_by_itself(name):
    theta = jnp.linspace(-1, 1, 16).astype(jnp.bfloat16)

    def trained(rate):
        opt = adamx.chain(adamx.sgd(rate), STAGES[name]())
        state, new = opt.init(theta), theta
        for _ in range(3):
            updates, state = opt.update(jnp.ones(16), state, new)
            new = adamx.apply_updates(new, updates)
        return new

    rates = jnp.array([1e-3, 1e-2])
    batch = jax.vmap(trained)(rates)
    for rate, member in zip(rates, batch, strict=True):
        np.testing.assert_array_equal(jax.jit(trained)(rate), member)


@every_stage
def test_rounding_has_the_derivative_of_none(name):
    def after(rate):
        opt = adamx.chain(adamx.sgd(rate), STAGES[name]())
        theta = jnp.ones(4, jnp.bfloat16)
        updates, _ = opt.update(jnp.arange(4.0), opt.init(theta), theta)
        return jnp.sum(updates)

    np.testing.assert_allclose(jax.grad(after)(1e-3), -6, rtol=1e-2)


# On paper


@pytest.mark.parametrize(
    ("name", "equations"),
    [
        ("stochastic_rounding", ["θₜ = SR(θₜ₋₁ − 0.1 gₜ)"]),
        (
            "kahan_summation",
            [
                "uₜ = −0.1 gₜ",
                "θₜ = RN(θₜ₋₁ + uₜ + ℓₜ₋₁)",
                "ℓₜ = SR(uₜ + ℓₜ₋₁ − (θₜ − θₜ₋₁))",
            ],
        ),
        (
            "master_weights",
            [
                "rₜ = wₜ₋₁ if RN(wₜ₋₁) = θₜ₋₁, otherwise θₜ₋₁",
                "wₜ = rₜ − 0.1 gₜ   (w₀ = θ₀)",
                "θₜ = RN(wₜ)",
            ],
        ),
    ],
)
def test_the_equations_are_those_of_the_papers(name, equations):
    explained = adamx.explain(adamx.chain(adamx.sgd(0.1), STAGES[name]()))
    rows, remarks = explained.text.split("\n\n")
    assert rows.splitlines()[1:] == equations
    rounds = [word for word in ("RN", "SR") if any(word in row for row in equations)]
    assert [remark.split(" rounds ")[0] for remark in remarks.splitlines()] == rounds


@every_stage
def test_the_equations_can_be_typeset(name):
    parse = pytest.importorskip("matplotlib.mathtext").MathTextParser("path").parse
    for row in adamx.explain(STAGES[name]()).latex.splitlines()[1:-1]:
        for part in branches(row.removesuffix(chr(92) * 2)):
            parse(f"${part}$")
