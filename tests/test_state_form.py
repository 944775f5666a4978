"""A state of another form than init makes is an error: nothing is broadcast, nothing cast."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import StageError
from adamx.core import Clock, Rule, stage
from catalog import OPTIMISERS, REPRESENTATIVES, x64
from helpers import says

pytestmark = pytest.mark.usefixtures("lenient")

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}


def batched(opt, params):
    return jax.vmap(lambda _: opt.init(params))(jnp.arange(4))


# Made under vmap -------------------------------------------------------------------------------


@pytest.mark.parametrize("with_params", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_a_state_made_under_vmap_and_used_without_it(jit, with_params):
    theta = jnp.ones(2)
    opt = adamx.sgd(0.1, momentum=0.9)
    state = batched(opt, theta) | {"count": jnp.zeros((), jnp.int32)}
    update = jax.jit(opt.update) if jit else opt.update
    named = says(
        "stage 'scale_by_heavy_ball'",
        "the only one",
        "'trace' is float32[4,2]",
        "init() makes float32[2]",
        "made under jax.vmap under jax.vmap",
        "adamx.restore_state",
    )
    with pytest.raises(StageError, match=named):
        update(theta, state, theta if with_params else None)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_optimiser_refuses_it_and_takes_it_under_vmap(name):
    opt = OPTIMISERS[name](0.05)
    state = batched(opt, PARAMS)
    with pytest.raises(StageError, match=says("count", "int32[4]", "jax.vmap")):
        opt.update(PARAMS, state, PARAMS)
    one_count = state | {"count": jnp.zeros((), jnp.int32)}
    if len(state) > 1:
        with pytest.raises(StageError, match=says("[4", "init() makes", "jax.vmap")):
            opt.update(PARAMS, one_count, PARAMS)
    after = jax.eval_shape(jax.vmap(lambda s: opt.update(PARAMS, s, PARAMS)[1]), state)
    assert after == jax.eval_shape(lambda x: x, state)


@pytest.mark.parametrize("codec", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("with_params", [False, True])
def test_a_stored_state_made_under_vmap(codec, with_params):
    opt = adamx.quantize_state(adamx.sgd(0.1, momentum=0.9), codec, min_size=1)
    state = batched(opt, PARAMS) | {"count": jnp.zeros((), jnp.int32)}
    state["scale_by_heavy_ball"]["key"] = jnp.zeros((), jnp.uint32)
    named = says("'scale_by_heavy_ball'", "['b']", "'trace'", "[4,2]", f"'{codec}' makes", "vmap")
    with pytest.raises(StageError, match=named):
        opt.update(PARAMS, state, PARAMS if with_params else None)


@pytest.mark.parametrize(
    "count", [jnp.zeros(()), jnp.zeros(4, jnp.int32), np.zeros(1, int), True], ids=repr
)
def test_a_count_that_is_no_whole_number(count):
    opt = adamx.sgd(0.1)
    with pytest.raises(StageError, match=says("the state's count is", "int32[]")):
        opt.update(PARAMS, {"count": count}, PARAMS)


def test_a_clock_of_another_shape():
    opt = adamx.adam(0.1)
    state = opt.init(PARAMS)
    state["scale_by_rms"]["log_decay"] = jnp.zeros((4, 2))
    named = says("'scale_by_rms'", "clock 'log_decay'", "float32[4,2]", "makes float32[2]")
    with pytest.raises(StageError, match=named):
        opt.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize("every", [1, 2])
def test_readings_made_under_vmap(every):
    opt = adamx.chain(adamx.sgd(0.1), adamx.watch(every=every))
    state = opt.init(PARAMS) | {"watch": batched(opt, PARAMS)["watch"]}
    with pytest.raises(StageError, match=says("'watch'", "scalars", "float32[4]", "jax.vmap")):
        opt.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize("every", [1, 2])
def test_readings_of_other_groups(every):
    old = adamx.chain(adamx.sgd(0.1), adamx.watch({"one": "w"}, every=every))
    new = adamx.chain(adamx.sgd(0.1), adamx.watch({"two": "b"}, every=every))
    with pytest.raises(StageError, match=says("'watch'", "['one']", "['two']", "restore_state")):
        new.update(PARAMS, old.init(PARAMS), PARAMS)


def test_a_transformation_of_optax_with_a_state_made_under_vmap():
    opt = adamx.chain(optax.trace(0.9), adamx.sgd(0.1))
    state = batched(opt, PARAMS) | {"count": jnp.zeros((), jnp.int32)}
    with pytest.raises(StageError, match=says("'trace'", "['b']", "(2,)", "(4, 2)")):
        opt.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize("jit", [False, True])
def test_what_is_kept_of_a_parameter_that_a_stage_is_not_for(jit):
    """It used to be dropped."""
    opt = adamx.where("w", adamx.sgd(0.1, momentum=0.9))
    state = opt.init(PARAMS)
    ((name, kept),) = ((k, x) for k, x in state.items() if k != "count" and "trace" in x)
    state[name] = {"trace": kept["trace"] | {"b": jnp.ones(2)}}
    update = jax.jit(opt.update) if jit else opt.update
    with pytest.raises(StageError, match=says(name, "['b']", "does not apply to this parameter")):
        update(PARAMS, state, PARAMS)


def test_a_factored_state_of_a_chain_that_does_not_factor():
    params = {"w": jnp.ones((4, 6))}
    old = adamx.adafactor(0.1, min_dim_size_to_factor=2)
    new = adamx.adafactor(0.1, min_dim_size_to_factor=128)
    for one, other in ((old, new), (new, old)):
        with pytest.raises(StageError, match=says("['w']")):
            other.update(params, one.init(params), params)


# Stages of one's own ---------------------------------------------------------------------------


@stage
def remembers(start: object = None, slow: bool = False):
    """Adds the largest element that the parameter had at first."""

    def first(param):
        if isinstance(param, jax.ShapeDtypeStruct):
            return jnp.zeros(param.shape)
        return jnp.full((3,), float(jnp.max(param)))  # rests on the value

    def update(signal, slots, step):
        return signal.with_update(signal.update + slots["largest"][0]), slots

    clock = Clock(lambda: jnp.zeros(2), lambda x: x + 1, lambda x: x)
    return Rule(update, slots={"largest": first}, clocks={"steps": clock})


@pytest.mark.parametrize("with_params", [False, True])
def test_a_slot_that_starts_from_values(with_params):
    opt = remembers()
    params = {"w": jnp.array([1.0, 5.0])}
    updates, state = opt.update(params, opt.init(params), params if with_params else None)
    np.testing.assert_array_equal(updates["w"], [6.0, 10.0])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, opt.init(params))


# Cast parameters -------------------------------------------------------------------------------

NARROW = {
    "stochastic_rounding": adamx.stochastic_rounding,
    "kahan_summation": adamx.kahan_summation,
    "master_weights": adamx.master_weights,
}


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NARROW)
def test_steps_added_without_casting_back(name, dtype, jit):
    opt, params = adamx.chain(adamx.sgd(0.1), NARROW[name]()), cast(PARAMS, dtype)
    update = jax.jit(opt.update) if jit else opt.update
    updates, state = update(params, opt.init(params), params)
    wide = eqx.apply_updates(params, updates)
    assert wide["w"].dtype == jnp.float32
    named = says(f"'{name}'", "['b']", dtype, "float32 now", "adamx.apply_updates(params, updates)")
    with pytest.raises(StageError, match=named):
        update(cast(params, "float32"), state, wide)
    same = adamx.apply_updates(params, updates)
    chex.assert_trees_all_equal_dtypes(same, params)
    update(params, state, same)


@pytest.mark.parametrize("name", NARROW)
def test_parameters_that_are_narrow_now(name):
    opt, params = adamx.chain(adamx.sgd(0.1), NARROW[name]()), cast(PARAMS, "bfloat16")
    named = says(f"'{name}'", "['b']", "float32", "bfloat16 now", "restore_state")
    with pytest.raises(StageError, match=named):
        opt.update(params, opt.init(PARAMS), params)
    named = says(f"'{name}'", "float16", "bfloat16 now")
    if name != "master_weights":  # its float32 copy is the same for both
        with pytest.raises(StageError, match=named):
            opt.update(params, opt.init(cast(PARAMS, "float16")), params)


@pytest.mark.parametrize("name", NARROW)
def test_after_a_cast_on_purpose_the_stage_starts_anew(name):
    opt, params = adamx.chain(adamx.adam(0.1), NARROW[name]()), cast(PARAMS, "bfloat16")
    _, state = opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    del state[name]  # as the message says
    updates, _ = opt.update(params, adamx.restore_state(state, opt, params).state, params)
    assert adamx.apply_updates(params, updates)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["adam", "sgd_momentum", "lamb", "averaged"])
@pytest.mark.parametrize(("before", "now"), [("float64", "float32"), ("float32", "float64")])
def test_parameters_in_another_precision_than_the_state(name, before, now):
    with x64():
        opt = OPTIMISERS[name](0.1)
        state, params = opt.init(cast(PARAMS, before)), cast(PARAMS, now)
        named = says("['b']", f"is {before}[2]", before, f"{now} now", "restore_state")
        with pytest.raises(StageError, match=named):
            opt.update(params, state, params)


def test_complex_parameters_and_the_state_of_real_ones():
    opt, params = adamx.adam(0.1), cast(PARAMS, "complex64")
    with pytest.raises(StageError, match=says("['b']", "float32[2]", "complex64[2]")):
        opt.update(params, opt.init(PARAMS), params)
