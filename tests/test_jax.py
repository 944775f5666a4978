"""What users do to any transformation: JAX's transforms, dtypes, trees, devices, pickling."""

import collections
import copy
import functools
import os
import pickle
import subprocess
import sys
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
import reference
from adamx.core import Rule
from adamx.engine import program
from adamx.engine import run as engine
from catalog import OPTIMISERS, REPRESENTATIVES, x64
from helpers import each_once

pytestmark = pytest.mark.sampled

# What each stage does under these, `check_stage` asks; here are chains of all kinds of links.
RECIPES = {
    "sgd": lambda: adamx.sgd(0.1),
    "adam": lambda: adamx.adam(0.1),
    "centered rmsprop": lambda: adamx.rmsprop(0.01, centered=True),
    "lp norm": lambda: adamx.chain(adamx.scale_by_lp_norm(3.0), adamx.bias_correction()),
    "muon": lambda: adamx.muon(0.1, rest=adamx.adam(0.1)),
    "everything": lambda: adamx.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.adamw(0.1, weight_decay=0.1),
        optax.trace(0.5),
        adamx.polyak_ema(0.9),
    ),
}

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.2, -0.3])}
STEPS = 4


def gradients(like=PARAMS):
    """The gradients of some steps: trees with a leading axis of time."""
    random = np.random.default_rng(0)

    def series(x):
        shape = (STEPS, *np.shape(x))
        values = random.normal(size=shape)
        if jnp.iscomplexobj(x):
            values = values + 1j * random.normal(size=shape)
        return jnp.asarray(values, jnp.result_type(x))

    return jax.tree.map(series, like)


def at(t, tree):
    return jax.tree.map(lambda x: x[t], tree)


def loop(opt, params=PARAMS, grads=None, update=None):
    """The plain loop: the updates of every step (stacked), the parameters, the state."""
    grads = gradients(params) if grads is None else grads
    update = opt.update if update is None else update
    state, taken = opt.init(params), []
    for t in range(STEPS):
        updates, state = update(at(t, grads), state, params)
        params = adamx.apply_updates(params, updates)
        taken.append(updates)
    return jax.tree.map(lambda *x: jnp.stack(x), *taken), params, state


@functools.cache
def plain(recipe):
    return loop(RECIPES[recipe]())


def scanned(opt, params=PARAMS, grads=None):
    """The same in one program."""

    def step(carry, grads):
        params, state = carry
        updates, state = opt.update(grads, state, params)
        return (adamx.apply_updates(params, updates), state), updates

    start = params, opt.init(params)
    (params, state), taken = jax.lax.scan(
        step, start, gradients(params) if grads is None else grads
    )
    return taken, params, state


def assert_same(one, other, tol=1e-6):
    """Equal but for the rounding in which two compilations of one formula may differ."""
    chex.assert_trees_all_close(one, other, rtol=tol, atol=tol)


def avals(tree):
    """Structure, shapes, dtypes and weak types."""
    return jax.eval_shape(lambda x: x, tree)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def counting(function):
    """The function, jitted, and a list that grows whenever it is traced."""
    traces = []

    @jax.jit
    def traced(*args):
        traces.append(None)
        return function(*args)

    return traced, traces


# Under JAX's transforms ------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["adam", "everything"])
def test_jit_and_scan_do_what_the_plain_loop_does(recipe):
    opt = RECIPES[recipe]()
    assert_same(loop(opt, update=jax.jit(opt.update)), plain(recipe))
    assert_same(jax.jit(lambda: scanned(opt))(), plain(recipe))


def test_without_any_compilation():
    with jax.disable_jit():
        assert_same(loop(RECIPES["everything"]()), plain("everything"))


STORED = {
    "bf16": lambda: adamx.quantize_state(adamx.adam(0.1), "bf16", min_size=1),
    "fp8": lambda: adamx.quantize_state(adamx.adam(0.1), "fp8", min_size=1),
    "int8": lambda: adamx.quantize_state(adamx.adam(0.1), "int8", min_size=1),
    "int8 nearest": lambda: adamx.quantize_state(
        adamx.adam(0.1), adamx.int8(rounding="nearest"), min_size=1
    ),
}
ROUNDED = {
    "stochastic_rounding": lambda: adamx.chain(adamx.adam(0.1), adamx.stochastic_rounding()),
    "kahan_summation": lambda: adamx.chain(adamx.adam(0.1), adamx.kahan_summation()),
    "master_weights": lambda: adamx.chain(adamx.adam(0.1), adamx.master_weights()),
}


@pytest.mark.parametrize("name", STORED | ROUNDED)
def test_random_bits_without_any_compilation(name):
    """Their arithmetic wraps around, and NumPy warns where its own does."""
    opt = (STORED | ROUNDED)[name]()
    three = PARAMS | {"z": PARAMS["b"]}  # from the third one on they overflow
    params = cast(three, "bfloat16") if name in ROUNDED else three
    with jax.disable_jit(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loop(opt, params)
    assert_same(found, loop(opt, params))


WATCHED = {
    "watch": lambda rate: adamx.chain(adamx.adam(rate), adamx.watch({"matrix": "w"})),
    "watch every 2nd": lambda rate: adamx.chain(adamx.adam(rate), adamx.watch(every=2)),
}


@pytest.mark.parametrize("name", [*REPRESENTATIVES, *WATCHED, *STORED])
def test_nothing_is_nan_where_all_is_finite(name):
    """JAX looks for NaN in whatever is computed: in init, in steps, also of zeros."""
    opt = STORED[name]() if name in STORED else (OPTIMISERS | WATCHED)[name](0.05)
    params = {"w": jnp.zeros((2, 2)), "b": jnp.array([0.2, -0.3])}
    grads = {"w": jnp.ones((2, 2)), "b": jnp.array([1.0, 0.0])}
    with jax.debug_nans(True):
        state = opt.init(params)
        for factor in (1.0, 0.0, -1.0):
            slope = jax.tree.map(lambda x, factor=factor: factor * x, grads)
            updates, state = jax.jit(opt.update)(slope, state, params)
            params = adamx.apply_updates(params, updates)
    assert all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["adam", "watch every 2nd", "fp8", "int8 nearest"])
def test_nothing_is_nan_without_any_compilation(name):
    """So JAX goes through a step in which it has found a NaN, to tell where it came from."""
    opt = STORED[name]() if name in STORED else (OPTIMISERS | WATCHED)[name](0.05)
    with jax.debug_nans(True), jax.disable_jit():
        loop(opt)


@pytest.mark.parametrize("name", WATCHED)
def test_metrics_know_what_was_not_seen_where_nan_is_an_error(name):
    opt = WATCHED[name](0.1)
    with jax.debug_nans(True):
        first = adamx.metrics(opt.init(PARAMS))
        _, state = opt.update(PARAMS, opt.init(PARAMS))
        _, unseen = opt.update(PARAMS, opt.init(PARAMS), PARAMS, observe=False)
        later, unseen = adamx.metrics(state), adamx.metrics(unseen)
    assert np.isnan(first["grad_rms"]) and np.isnan(first["learning_rate"])
    assert np.isnan(later["update_ratio"]) and np.isfinite(later["update_rms"])
    assert np.isnan(unseen["snr"]) and np.isfinite(unseen["learning_rate"])


def test_cond_takes_a_step_or_none():
    opt = RECIPES["everything"]()
    grads = at(0, gradients())

    @jax.jit
    def maybe(go, state):
        return jax.lax.cond(
            go,
            lambda: opt.update(grads, state, PARAMS),
            lambda: (jax.tree.map(jnp.zeros_like, PARAMS), state),
        )

    first = opt.init(PARAMS)
    assert_same(maybe(True, first)[0], at(0, plain("everything")[0]))
    chex.assert_trees_all_equal(maybe(False, first)[1], first)


@pytest.mark.parametrize("recipe", ["adam", "everything"])
def test_vmap_over_learning_rates_is_a_loop_over_them(recipe):
    rates = jnp.array([0.01, 0.1, 0.3])

    def make(rate):
        return adamx.chain(RECIPES[recipe](), adamx.scale(rate))

    batch = jax.jit(jax.vmap(scanned))(jax.vmap(make)(rates))
    single = [jax.jit(scanned)(make(rate)) for rate in rates]
    assert_same(batch, jax.tree.map(lambda *x: jnp.stack(x), *single), tol=1e-5)


def test_vmap_over_every_number_of_adam():
    numbers = jnp.array([[0.1, 0.9, 0.99, 1e-3], [0.2, 0.8, 0.9, 1e-8]])
    batch = jax.jit(jax.vmap(scanned))(jax.vmap(adamx.adam)(*numbers.T))
    for i, row in enumerate(numbers):
        expected = loop(adamx.adam(*row))
        assert_same(at(i, batch), expected, tol=1e-5)


@pytest.mark.parametrize("recipe", ["adam", "everything"])
def test_vmap_over_seeds_clips_and_steps_each_by_itself(recipe):
    opt = RECIPES[recipe]()
    factors = jnp.array([1.0, -0.1, 10.0])

    def of(factor):
        return jax.tree.map(lambda x: factor * x, PARAMS)

    batch = jax.jit(jax.vmap(lambda x: scanned(opt, of(x), gradients())))(factors)
    for i, factor in enumerate(factors):
        assert_same(at(i, batch), loop(opt, of(factor), gradients()), tol=1e-5)


def distance(opt):
    """How far training goes, squared: a smooth function of every number in the optimiser."""
    _, params, _ = scanned(opt)
    return sum(jnp.sum((params[k] - PARAMS[k]) ** 2) for k in params)


def test_gradient_through_training_with_checkpoints():
    @jax.jit
    def of(numbers):
        return jax.checkpoint(distance)(adamx.adam(*numbers, eps=1e-3))

    numbers = jnp.array([0.1, 0.8, 0.9])
    slopes = jax.jit(jax.grad(of))(numbers)
    for slope, nudge in zip(slopes, 1e-2 * jnp.eye(3), strict=True):
        difference = of(numbers + nudge) - of(numbers - nudge)
        np.testing.assert_allclose(slope, difference / 2e-2, rtol=2e-2)


@pytest.mark.parametrize("recipe", ["lp norm", "everything"])
def test_gradient_with_respect_to_the_transformation_has_its_structure(recipe):
    opt = RECIPES[recipe]()
    slopes = jax.jit(jax.grad(distance))(opt)
    assert jax.tree.structure(slopes) == jax.tree.structure(opt)
    assert all(np.isfinite(x) for x in jax.tree.leaves(slopes))


# Functions that hold a number from outside, which may be a tracer.
CAPTURES = {
    "optax schedule": lambda rate: adamx.sgd(optax.cosine_decay_schedule(rate, 9)),
    "schedule": lambda rate: adamx.sgd(lambda t: rate / (t + 1), momentum=lambda t: 0 * rate),
    "optax stage": lambda rate: adamx.chain(adamx.sgd(1.0), optax.scale(rate)),
}


@pytest.mark.parametrize("name", CAPTURES)
def test_schedule_that_holds_a_tracer(name):
    """As in a function `train(learning_rate)` that makes its own optimiser."""

    def step(rate):
        opt = CAPTURES[name](rate)
        return opt.update(PARAMS, opt.init(PARAMS), PARAMS)[0]["b"]

    rates, grad = jnp.array([0.1, 0.2]), PARAMS["b"]
    with jax.checking_leaks():
        batch = jax.vmap(step)(rates)
        slope = jax.jit(jax.jacfwd(step))(0.1)
    assert_same(batch, -rates[:, None] * grad[None])
    assert_same(slope, -grad)


def test_learning_rate_as_a_pytree_argument_does_not_recompile():
    step, traces = counting(lambda opt, grads: opt.update(grads, opt.init(grads), grads)[0])
    for rate in (0.1, 0.2):
        expected = jax.tree.map(lambda x, rate=rate: -rate * jnp.sign(x), PARAMS)
        assert_same(step(adamx.adam(rate), PARAMS), expected)
        assert_same(step(adamx.adam(jnp.array(rate)), PARAMS), expected)
    assert len(traces) <= 2  # a float is weakly typed, an array (perhaps) not


def test_equal_optimiser_as_a_static_argument_does_not_recompile():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(opt, grads):
        traces.append(None)
        return opt.update(grads, opt.init(grads), grads)[0]

    for rate in (0.1, 0.1, 0.2, 0.1):
        step(adamx.adam(optax.linear_schedule(rate, 0.0, 10)), PARAMS)
    assert len(traces) == 2


def test_update_outside_jit_compiles_once():
    """Neither an optimiser built anew nor another array in it is traced again."""
    traces = []

    def schedule(count):
        traces.append(count)  # which does not read what is in it
        return 0.9

    state = adamx.adam(0.1).init(PARAMS)
    for rate in (0.1, 0.2, 0.3):
        opt = adamx.adam(jnp.array(rate), b1=lambda t: schedule(t))
        updates, state = opt.update(PARAMS, state, PARAMS)
        assert_same(updates, jax.tree.map(lambda x, rate=rate: -rate * jnp.sign(x), PARAMS))
    assert len(traces) == 1


# The state -------------------------------------------------------------------------------------

# One optimiser with its numbers given in every way there is.
KINDS = {
    "float": lambda x: x,
    "array": lambda x: jnp.array(x),
    "strong array": lambda x: jnp.float32(x),
    "numpy": lambda x: np.float64(x),
    "numpy array": lambda x: np.array(x),
    "bfloat16": lambda x: jnp.bfloat16(x),
    "schedule": lambda x: lambda t: x,
    "array schedule": lambda x: lambda t: x + 0 * jnp.asarray(t, float),
    "integer schedule": lambda x: lambda t: 0 * t,
    "optax schedule": lambda x: optax.linear_schedule(x, x, 3),
}

DTYPES = ["float32", "bfloat16", "float16", "complex64"]


def mixed(number):
    """Stages of every kind with this number in all places."""
    return adamx.chain(
        adamx.scale_by_stddev(number(0.5), number(0.5)),
        adamx.scale_by_heavy_ball(number(0.5)),
        adamx.adamw(number(0.25), number(0.5), number(0.5), weight_decay=number(0.5)),
        adamx.polyak_ema(number(0.5)),
    )


@pytest.mark.parametrize(("kind", "dtype"), each_once(list(KINDS), DTYPES))
def test_float_array_or_schedule_and_init_or_update_keep_one_state(kind, dtype):
    params = cast(PARAMS, dtype)
    opt = mixed(KINDS[kind])
    first = jax.eval_shape(opt.init, params)
    assert first == jax.eval_shape(mixed(KINDS["float"]).init, params) == avals(opt.init(params))
    updates, after = jax.eval_shape(opt.update, params, first, params)
    assert after == first
    assert avals(params) == updates


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", ["compensated adam", "everything"])
def test_state_of_every_recipe_is_stable_and_single_precision_at_least(recipe, dtype):
    opt = RECIPES.get(recipe, lambda: adamx.adam(0.1, compensated=True))()
    params = cast(PARAMS, dtype)
    first = jax.eval_shape(opt.init, params)
    _, after = jax.eval_shape(opt.update, params, first, params)
    assert after == first
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        if path[-1].key not in ("w", "b") or path[0].key == "trace":  # Optax keeps its own ways
            continue
        wide = "float32" if leaf.dtype != "complex64" else "complex64"
        assert leaf.dtype == ("bfloat16" if path[1].key == "nu_lost" else wide)


def test_float_to_schedule_continues_from_the_same_state():
    _, params, state = plain("adam")
    scheduled = adamx.adam(optax.constant_schedule(0.1), b2=lambda t: 0.999)
    one = adamx.adam(0.1).update(PARAMS, state, params)
    assert_same(scheduled.update(PARAMS, state, params), one)
    assert int(state["count"]) == STEPS


def test_no_alias_with_parameters():
    """Every buffer is its own, so that parameters and state can be donated."""
    opt = RECIPES["everything"]()
    params = jax.tree.map(jnp.copy, PARAMS)
    state = opt.init(params)
    updates, after = opt.update(jax.tree.map(jnp.copy, PARAMS), state, params)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state, updates, after))]
    assert len(set(buffers)) == len(buffers)


def test_donated_parameters_and_state():
    opt = RECIPES["everything"]()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, PARAMS)
    state = opt.init(params)
    for t in range(STEPS):
        old = params, state
        params, state = step(params, state, at(t, gradients()))
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert_same((params, state), plain("everything")[1:])


def test_parameters_given_away_after_init_leave_the_state_usable():
    opt = RECIPES["everything"]()
    params = jax.tree.map(jnp.copy, PARAMS)
    state = opt.init(params)
    jax.tree.map(lambda x: x.delete(), params)
    assert_same(opt.update(PARAMS, state, PARAMS), opt.update(PARAMS, opt.init(PARAMS), PARAMS))


def test_init_from_shapes_alone():
    opt = RECIPES["everything"]()
    shapes = jax.eval_shape(lambda: PARAMS)
    assert avals(opt.init(PARAMS)) == jax.eval_shape(opt.init, shapes)
    own = adamx.adam(0.1)
    chex.assert_trees_all_equal(own.init(shapes), own.init(PARAMS))


# Dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_v_decays_for_bfloat16(dtype):
    """In bfloat16 β₂ = 0.999 is 1, and v would stay what it was."""
    opt = adamx.adam(0.1)
    theta = jnp.ones(2, dtype)
    _, state = opt.update(theta, opt.init(theta), theta)
    for _ in range(100):
        _, state = opt.update(0 * theta, state, theta)
    nu = state["scale_by_rms"]["nu"]
    assert nu.dtype == jnp.float32
    np.testing.assert_allclose(nu, 0.001 * 0.999**100, rtol=1e-5)


@pytest.mark.parametrize("recipe", ["adam", "centered rmsprop"])
def test_narrow_parameters_step_as_wide_ones_do_but_for_one_rounding(recipe):
    """The statistics see what float32 gradients of the same values would show them."""
    dtype = "bfloat16"
    grads, params = cast(gradients(), dtype), cast(PARAMS, dtype)
    updates, _, state = loop(RECIPES[recipe](), params, grads)
    wide, _, wide_state = loop(RECIPES[recipe](), cast(params, "float32"), cast(grads, "float32"))
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    half_ulp = float(jnp.finfo(dtype).eps) / 2
    chex.assert_trees_all_close(cast(updates, "float32"), wide, rtol=1.01 * half_ulp, atol=1e-7)
    assert_same(state, wide_state)


@pytest.mark.parametrize(
    ("recipe", "dtype"), [("adam", "float16"), ("lp norm", "float16"), ("adam", "complex64")]
)
def test_float16_zero_gradient_is_finite(recipe, dtype):
    """In float16 ε = 1e-8 is 0; wherever the gradient has always been zero the step is zero."""
    theta = jnp.array([1.0, -2.0], dtype)
    updates, _, state = loop(RECIPES[recipe](), theta, jnp.zeros((STEPS, 2), dtype))
    np.testing.assert_array_equal(updates, np.zeros((STEPS, 2)))
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
def test_zero_gradient_and_every_epsilon_zero(dtype):
    theta = jnp.array([1.0, -2.0], dtype)
    for opt in (
        adamx.adam(0.1, eps=0.0),
        adamx.adamax(0.1, eps=0.0),
        adamx.adagrad(0.1, eps=0.0),
        adamx.adadelta(eps=0.0),
        adamx.rmsprop(0.1, eps=0.0),
        adamx.rmsprop(0.1, eps=0.0, centered=True),
        adamx.chain(adamx.scale_by_lp_norm(eps=0.0), adamx.bias_correction()),
    ):
        updates, _ = opt.update(0 * theta, opt.init(theta), theta)
        np.testing.assert_array_equal(updates, np.zeros(2))


WIDER = [
    # gradient, parameter, update
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
    ("float32", "bfloat16", "float32"),
    ("float16", "float16", "float16"),
    ("float16", "bfloat16", "float32"),
    ("float32", "complex64", "complex64"),
    ("complex64", "complex64", "complex64"),
]


@pytest.mark.parametrize(("gradient", "parameter", "update"), WIDER)
@pytest.mark.parametrize("recipe", ["adam"])
def test_update_has_the_wider_dtype_and_the_parameter_keeps_its_own(
    recipe, gradient, parameter, update
):
    opt = RECIPES[recipe]()
    params, grads = cast(PARAMS, parameter), cast(PARAMS, gradient)
    updates, state = opt.update(grads, opt.init(params), params)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(update)}
    assert avals(state) == avals(opt.init(params))
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.apply_updates(params, updates)
    ours = adamx.apply_updates(params, updates)
    chex.assert_trees_all_equal_dtypes(ours, theirs, params)
    tol = 4 * float(jnp.finfo(parameter).eps)
    assert_same(cast(ours, "complex64"), cast(theirs, "complex64"), tol)


def test_complex_parameters_step_along_the_gradient():
    """|g|² is real, and the first step of Adam has the gradient's phase and the rate's length."""
    theta = jnp.array([3.0 + 4.0j, -2.0j, 0.0])
    opt = adamx.adam(0.1)
    updates, state = opt.update(theta, opt.init(theta), theta)
    np.testing.assert_allclose(updates, [-0.06 - 0.08j, 0.1j, 0.0], rtol=1e-6)
    nu = state["scale_by_rms"]["nu"]
    assert nu.dtype == jnp.float32
    np.testing.assert_allclose(nu, [0.025, 0.004, 0.0], rtol=1e-5)


COMPLEX = {
    "adam": (lambda: adamx.adam(0.1), lambda: optax.adam(0.1)),
    "adamax": (lambda: adamx.adamax(0.1), lambda: optax.adamax(0.1)),
    "rmsprop": (lambda: adamx.rmsprop(0.1), lambda: optax.rmsprop(0.1, eps_in_sqrt=False)),
    "momentum": (lambda: adamx.sgd(0.1, momentum=0.9), lambda: optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_step_as_in_optax(name):
    params = cast(PARAMS, "complex64")
    params["w"] = params["w"] * (1 - 2j)
    ours, theirs = (make() for make in COMPLEX[name])
    updates, *_ = loop(ours, params)
    with jax.numpy_dtype_promotion("standard"):
        expected, *_ = loop(theirs, params)
    assert_same(updates, expected, tol=2e-5)


def test_float64_is_the_oracle():
    with x64():
        theta = jnp.array([1.0, -2.0, 0.5])
        assert theta.dtype == jnp.float64
        grads = gradients(theta)
        numbers = 0.1, 0.9, 0.9999
        for opt in (adamx.adam(*numbers), adamx.adam(*map(jnp.float64, numbers))):
            updates, _, state = loop(opt, theta, grads)
            expected = reference.adam(np.asarray(grads), *numbers, eps=1e-8)
            np.testing.assert_allclose(updates, expected, rtol=2e-13)
            assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float64", "int32"}
            assert avals(state) == avals(opt.init(theta))


@pytest.mark.parametrize("recipe", ["adam", "centered rmsprop", "everything"])
def test_tree_of_mixed_dtypes_under_x64(recipe):
    """Every leaf has its own precision, and gives its numbers without looking at the others."""
    with x64():
        theta = np.linspace(-1.0, 1.0, 3)
        params = {
            "double": jnp.asarray(theta),
            "single": jnp.asarray(theta, jnp.float32),
            "half": jnp.asarray(theta, jnp.bfloat16),
            "complex": jnp.asarray(1j * theta, jnp.complex64),
        }
        grads = jax.tree.map(lambda x: x[None] * jnp.ones((STEPS, 1), x.dtype), params)
        opt = RECIPES[recipe]()
        updates, _, state = loop(opt, params, grads)
        assert avals(state) == avals(opt.init(params))
        chex.assert_trees_all_equal_dtypes(at(0, updates), params)
        if recipe != "everything":  # which has a norm over all leaves
            for name in params:
                alone, *_ = loop(opt, params[name], grads[name])
                np.testing.assert_array_equal(np.asarray(alone), np.asarray(updates[name]))


# Trees -----------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", ["first", "second"])

TREES = {
    "array": jnp.array([1.0, -2.0]),
    "scalar": jnp.array(-2.0),
    "empty array": {"none": jnp.zeros((0, 3)), "some": jnp.ones(2)},
    "empty": {},
    "None": {"none": None, "some": jnp.ones(2), "deep": [None, (jnp.ones(()),)]},
    "nested": [jnp.ones(2), (jnp.ones(1), {"a": jnp.zeros(())}), []],
    "namedtuple": Pair(jnp.ones(2), Pair(jnp.ones(1), None)),
    "numpy float32": {"w": np.array([1.0, -2.0], np.float32)},
    "numpy float64": {"w": np.array([1.0, -2.0])},
    "numpy scalar": np.float32(-2.0),
    "Python float": {"w": -2.0, "b": (1.0, 0.5)},
    "keys": {("a", 1): jnp.ones(1), ("b", 2): jnp.ones(2)},
}


@pytest.mark.parametrize("tree", TREES)
def test_any_tree_steps_leaf_by_leaf(tree):
    opt = adamx.chain(adamx.adamw(0.1, weight_decay=0.1), adamx.polyak_ema(0.9))
    params = TREES[tree]
    grads = gradients(params)
    updates, new, state = loop(opt, params, grads)
    chex.assert_trees_all_equal_structs(updates, new, params, state["polyak_ema"]["ema"])
    chex.assert_trees_all_equal_structs(state["scale_by_rms"]["nu"], params)
    flat = zip(*map(jax.tree.leaves, (params, grads, updates, new)), strict=True)
    for param, grad, update, theta in flat:
        alone, last, _ = loop(opt, jnp.asarray(param, jnp.float32), grad)
        assert_same((update, theta), (alone, last))
    assert int(state["count"]) == STEPS


@pytest.mark.parametrize("tree", TREES)
def test_norm_over_any_tree(tree):
    params = TREES[tree]
    opt = adamx.clip_by_global_norm(0.1)
    updates, state = opt.update(params, opt.init(params), params)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params)))
    expected = jax.tree.map(lambda x: 0.1 * jnp.asarray(x, jnp.float32) / norm, params)
    assert_same(updates, expected)
    assert list(state) == ["count"]


def test_gradient_of_none_leaves_the_parameter_out():
    """A parameter without gradient may be anything, as in a model with functions in it."""
    params = {"w": jnp.ones(2), "f": jax.nn.relu, "n": 3}
    grads = {"w": jnp.ones(2), "f": None, "n": None}
    opt = adamx.adamw(0.1, weight_decay=0.1)
    state = opt.init(grads)
    updates, _ = opt.update(grads, state, params)
    assert updates["f"] is updates["n"] is None
    new = adamx.apply_updates(params, updates)
    assert new["f"] is jax.nn.relu and new["n"] == 3
    np.testing.assert_allclose(new["w"], 1 - 0.1 * (1 + 0.1), rtol=1e-6)


# Pickling --------------------------------------------------------------------------------------


def module_level_schedule(count):
    return 0.1 / (count + 1)


PICKLED = RECIPES | {
    "array": lambda: adamx.adam(jnp.array(0.1), b1=np.array(0.8)),
    "compensated": lambda: adamx.adam(0.1, compensated=True),
    "schedule": lambda: adamx.adam(module_level_schedule),
}


@pytest.mark.parametrize(
    ("how", "name"),
    [("pickle", name) for name in PICKLED if name != "everything"]  # which has closures of Optax
    + [(how, name) for how in ("deepcopy", "copy") for name in ("adam", "array", "everything")],
)
def test_copies_are_equal_and_compute_the_same(how, name):
    copies = {
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
    }
    opt = PICKLED[name]()
    _, state = opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    opt_copy, state_copy = copies[how]((opt, state))
    assert opt_copy == opt and hash(opt_copy) == hash(opt)
    chex.assert_trees_all_equal(state_copy, state)
    assert_same(opt_copy.update(PARAMS, state_copy, PARAMS), opt.update(PARAMS, state, PARAMS))


# Devices ---------------------------------------------------------------------------------------

needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="run by test_with_four_devices in a process of its own"
)


@pytest.mark.slow
def test_with_four_devices():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "device_"]
    run = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


def sharded():
    """Parameters and gradients over a mesh of two by two devices, and their shardings by name."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    specs = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("y")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    return jax.device_put(PARAMS, shardings), shardings


def assert_sharded(tree, shardings):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if path[-1].key in shardings:
            assert leaf.sharding.is_equivalent_to(shardings[path[-1].key], leaf.ndim), path


@needs_four_devices
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("recipe", ["sgd", "adam", "centered rmsprop", "muon", "everything"])
def test_device_sharding_of_parameters_is_that_of_slots(recipe, jit):
    opt = RECIPES[recipe]()
    params, shardings = sharded()
    assert_sharded(opt.init(params), shardings)
    update = jax.jit(opt.update) if jit else opt.update
    found = loop(opt, params, update=update)
    assert_sharded(found[1:], shardings)
    assert_same(jax.device_get(found), jax.device_get(plain(recipe)))


@needs_four_devices
def test_device_sharding_is_known_from_shapes():
    params, shardings = sharded()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    assert_sharded(adamx.adam(0.1).init(shapes), shardings)


@needs_four_devices
@pytest.mark.parametrize("recipe", ["sgd", "adam", "centered rmsprop", "muon", "everything"])
def test_device_of_parameters_keeps_the_state(recipe):
    """The slots are made there, not on the default device, and everything stays there."""
    opt, there = RECIPES[recipe](), jax.devices()[2]
    params, grads = jax.device_put((PARAMS, gradients()), there)
    slots = [x for x in jax.tree.leaves(opt.init(params)) if x.shape == PARAMS["w"].shape]
    assert all(x.devices() == {there} for x in slots)
    found = loop(opt, params, grads)
    assert all(x.devices() == {there} for x in jax.tree.leaves(found))
    assert_same(jax.device_get(found), jax.device_get(plain(recipe)))


@needs_four_devices
def test_device_stacks_of_shards_are_those_of_whole_arrays(monkeypatch):
    """Equal matrices in one stack, as on accelerators; each keeps its sharding."""
    monkeypatch.setattr(engine, "stacking_pays", lambda: True)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    place = NamedSharding(mesh, PartitionSpec("x", "y"))
    random = np.random.default_rng(0)
    params = {k: jnp.asarray(random.normal(size=(4, 6)), jnp.float32) for k in "abc"}
    opt = adamx.muon(0.1)

    def step(params):
        updates, state = opt.update(params, opt.init(params), params)
        return adamx.apply_updates(params, updates), state

    over = jax.tree.map(lambda _: place, params)
    found = jax.jit(step)(jax.device_put(params, over))
    assert_sharded(found, over)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        jax.device_get(found),
        jax.device_get(jax.jit(step)(params)),
    )


OF_MATRICES = {
    "soap": lambda: adamx.soap(0.1, every=2),
    "kl_soap": lambda: adamx.kl_soap(0.1, every=2),
    "galore": lambda: adamx.galore(0.1, rank=2, every=2),
    "apollo": lambda: adamx.apollo(0.1, rank=2),
    "shampoo": lambda: adamx.shampoo(0.1, every=2),
    "layers": lambda: adamx.per_layer("stack", adamx.lamb(0.1)),
}


@needs_four_devices
@pytest.mark.parametrize("name", OF_MATRICES)
def test_device_mesh_changes_no_optimiser_of_matrices(name):
    """Square matrices, whose first GGᵀ has one set of eigenvectors; slots stay on the mesh."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    specs = {"w": PartitionSpec("x", "y"), "stack": PartitionSpec(None, "y", "x")}
    random = np.random.default_rng(0)
    with x64():
        params = {k: jnp.asarray(random.normal(size=(6,) * len(x))) for k, x in specs.items()}
        grads = gradients(params)
        opt = OF_MATRICES[name]()
        over = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
        found = loop(opt, jax.device_put(params, over), grads, jax.jit(opt.update))
        expected = loop(opt, params, grads, jax.jit(opt.update))
        assert_sharded(found[1], over)
        for here, there in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
            np.testing.assert_allclose(here, there, 1e-6, 1e-9)


PLACES = {
    "mesh": sharded,
    "device": lambda: (jax.device_put(PARAMS, jax.devices()[2]), {}),
}


@needs_four_devices
@pytest.mark.parametrize("place", PLACES)
def test_device_of_the_whole_state_does_not_change(place):
    """A scalar that moves to the parameters in the first step compiles the second one anew."""
    opt = adamx.chain(adamx.adam(0.1), adamx.polyak_ema(0.9))
    params, _ = PLACES[place]()
    first = opt.init(params)
    _, after = opt.update(params, first, params)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(after), strict=True
    ):
        assert old.sharding.is_equivalent_to(new.sharding, old.ndim), path


@needs_four_devices
def test_device_sharding_of_parameters_is_that_of_slots_made_under_jit():
    params, shardings = sharded()
    assert_sharded(jax.jit(adamx.adam(0.1).init)(params), shardings)


# Inside shard_map, where JAX checks along which axes of the mesh values differ

SHARDED = {name: OPTIMISERS[name] for name in REPRESENTATIVES} | {
    "watch": lambda rate: adamx.chain(adamx.adam(rate), adamx.watch({"matrix": "w"})),
    "watch every 2nd": lambda rate: adamx.chain(adamx.adam(rate), adamx.watch(every=2)),
    "int8": lambda rate: adamx.quantize_state(adamx.adam(rate), "int8", min_size=2),
    "bf16": lambda rate: adamx.quantize_state(adamx.adam(rate), "bf16", min_size=2),
    "constant start": lambda rate: adamx.chain(counts_from_a_constant(), adamx.sgd(rate)),
    "optax": lambda rate: adamx.chain(optax.clip(0.5), adamx.adam(rate)),
}


@adamx.stage
def counts_from_a_constant():
    """A slot that does not start from the parameter, and comes to depend on it."""

    def update(signal, slots, step):
        return signal, {"sum": slots["sum"] + signal.update}

    return Rule(update, slots={"sum": lambda param: jnp.zeros(param.shape)})


def in_shards(function, given, returned):
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=returned))


ROWS = {"w": jnp.linspace(-1.0, 2.0, 16).reshape(8, 2), "b": jnp.linspace(0.5, 1.0, 4)}
SLOPES = jax.tree.map(
    lambda x: jnp.asarray(np.random.default_rng(1).normal(size=(STEPS, *x.shape)), x.dtype), ROWS
)


NEEDS_WHOLE = {"adafactor": "scale_by_factored_rms", "constant start": "counts_from_a_constant"}


@needs_four_devices
@pytest.mark.parametrize("name", SHARDED)
def test_device_shards_of_parameters_train_in_shard_map(name):
    opt, over = SHARDED[name](0.05), PartitionSpec("x")

    def train(params, grads):
        _, params, state = scanned(opt, params, grads)
        alone, _ = opt.update(at(0, grads), state, params)
        return params, alone, state["count"]  # which is the same on all devices

    grads_over = PartitionSpec(None, "x")
    sharded = in_shards(train, (over, grads_over), (over, over, PartitionSpec()))
    if stage := NEEDS_WHOLE.get(name):
        with pytest.raises(adamx.StageError, match=f"'{stage}', .*its reach is a whole array"):
            sharded.lower(ROWS, SLOPES)
        return
    if name not in ("adam", "lion", "lookahead_of_adam", "watch every 2nd", "clipped"):
        sharded.lower(ROWS, SLOPES)
        return
    found = sharded(ROWS, SLOPES)
    assert_same(found, jax.jit(train)(ROWS, SLOPES), tol=1e-5)


@needs_four_devices
@pytest.mark.parametrize("name", SHARDED)
def test_device_parameters_on_all_devices_train_in_shard_map(name):
    """Data in shards, gradients averaged: parameters and state, clocks too, are all the same."""
    opt = SHARDED[name](0.05)
    everywhere = PartitionSpec()

    def train(params, factors):
        def loss(params):
            sizes = [jnp.sum(x**2) for x in jax.tree.leaves(params)]
            return jax.lax.pmean(jnp.mean(factors) * sum(sizes), "x")

        def step(carry, _):
            params, state = carry
            updates, state = opt.update(jax.grad(loss)(params), state, params)
            return (adamx.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, opt.init(params)), length=STEPS)[0]

    sharded = in_shards(train, (everywhere, PartitionSpec("x")), everywhere)
    factors = jnp.linspace(0.5, 2.0, 8)
    if name not in ("prodigy", "clipped", "lookahead_of_adam", "watch", "int8", "optax"):
        sharded.lower(ROWS, factors)
        return
    found, state = sharded(ROWS, factors)
    mean = float(jnp.mean(factors))
    params, own = ROWS, opt.init(ROWS)
    for _ in range(STEPS):
        grads = jax.tree.map(lambda x: 2 * mean * x, params)
        updates, own = jax.jit(opt.update)(grads, own, params)
        params = adamx.apply_updates(params, updates)
    assert_same(jax.device_get(found), params, tol=1e-5)
    if name == "watch":
        assert_same(adamx.metrics(jax.device_get(state)), adamx.metrics(own), tol=1e-5)


# Many arrays outside jit ------------------------------------------------------------------------


@pytest.fixture
def many(monkeypatch):
    """More parameters than are compiled in one program (of which there may be fewer here).

    Of several shapes, and of one of them more than are compiled together.
    """
    monkeypatch.setattr(program, "MANY", 40)
    rng = np.random.default_rng(0)
    shapes = [(2, 3), (4,), (), (3, 2, 1), (5, 5)]
    params = {
        f"layer{i}": {"x": jnp.asarray(rng.standard_normal(shapes[i % 5 if i < 25 else 4]))}
        for i in range(45)
    }
    assert len(jax.tree.leaves(params)) > program.MANY
    return params


@pytest.mark.parametrize(
    "opt",
    [
        adamx.adam(optax.linear_schedule(0.1, 0.0, 9)),
        adamx.adafactor(0.1, min_dim_size_to_factor=2),
        adamx.sgd(0.1),
        adamx.chain(adamx.clip_by_global_norm(0.5), adamx.adamw(0.1)),
        adamx.where("x", adamx.adam(0.1)),
        adamx.chain(adamx.adam(0.1), adamx.stochastic_rounding(), adamx.watch()),
    ],
    ids=["scheduled", "factored", "no slots", "together", "some", "random bits"],
)
def test_a_step_of_many_arrays_outside_jit_is_that_inside(opt, many):
    params = many
    inside = outside = opt.init(params)
    for _ in range(2):
        expected, inside = jax.jit(opt.update)(params, inside, params)
        updates, outside = opt.update(params, outside, params)
    assert jax.tree.structure((updates, outside)) == jax.tree.structure((expected, inside))
    for x, y in zip(*map(jax.tree.leaves, ((updates, outside), (expected, inside))), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)


def test_many_arrays_without_parameters_or_with_missing_gradients(many):
    params, opt = many, adamx.adam(0.1)
    state = opt.init(params)
    alone, _ = opt.update(params, state)
    lacking = {**params, "layer7": {"x": None}}
    some, after = opt.update(lacking, state, params)
    assert some["layer7"]["x"] is None
    np.testing.assert_array_equal(some["layer8"]["x"], alone["layer8"]["x"])
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_an_error_in_one_of_many_arrays_names_it(many):
    params, opt = many, adamx.adam(0.1)
    bad = {**params, "layer31": {"x": jnp.ones(7)}}
    with pytest.raises(adamx.StageError, match=r"\['layer31'\]\['x'\].*shape \(7,\)"):
        opt.update(bad, opt.init(params), params)
