"""``step`` is ``update`` and ``apply_updates``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

PARAMS = {
    "w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32),
    "b": jnp.ones(16),
}
GRADS = [jax.tree.map(lambda x, k=k: jnp.cos((k + 1) * x), PARAMS) for k in range(3)]
ADAMW = adamx.adamw(1e-2)


def taken(opt, params, grads):
    """Parameters and states of both ways, under jit."""
    one, two = (params, opt.init(params)), (params, opt.init(params))
    update, step = jax.jit(opt.update), jax.jit(opt.step)
    for g in grads:
        updates, state = update(g, one[1], one[0])
        one = adamx.apply_updates(one[0], updates), state
        two = step(g, two[1], two[0])
    return one, two


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)


OPTIMISERS = {
    "gate": adamx.skip_nonfinite(ADAMW),
    "accumulate": adamx.accumulate(ADAMW, 2),
    "an Optax transformation at the end": adamx.chain(ADAMW, optax.clip(1e-3)),
    "frozen": adamx.partition({"w": adamx.set_to_zero(), "*": ADAMW}),
    "an average at the end": adamx.chain(ADAMW, adamx.polyak_ema(0.9)),
    "watch at the end": adamx.chain(ADAMW, adamx.watch()),
    "lookahead": adamx.chain(ADAMW, adamx.lookahead(sync_period=2)),
    "int8": adamx.quantize_state(ADAMW, "int8", min_size=1),
    "nothing": adamx.chain(),
    "muon": adamx.muon(1e-2, rest=ADAMW),
    "schedule_free": adamx.schedule_free_adamw(1e-2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_step_is_update_and_apply_updates(name):
    assert_same(*taken(OPTIMISERS[name], PARAMS, GRADS))


@pytest.mark.parametrize("rounding", ["stochastic_rounding", "kahan_summation", "master_weights"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_step_rounds_parameters_as_apply_updates_does(rounding, dtype):
    opt = adamx.chain(ADAMW, getattr(adamx, rounding)())
    cast = [jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (PARAMS, *GRADS)]
    for made in (opt, ADAMW):
        assert_same(*taken(made, cast[0], cast[1:]))
        assert_same(*taken(made, cast[0], GRADS))  # gradients of float32


def test_a_parameter_without_a_gradient_is_returned_unchanged():
    params = {**PARAMS, "name": "a model", "f": jnp.tanh}
    grads = {"w": GRADS[0]["w"], "b": None, "name": None, "f": None}
    opt = adamx.adamw(1e-2)
    state = opt.init(PARAMS | {"name": None, "f": None})
    new, after = opt.step(grads, state, params)
    updates, expected = opt.update(grads, state, params)
    assert_same((adamx.apply_updates(params, updates)["w"], expected), (new["w"], after))
    assert new["b"] is params["b"] and new["name"] == "a model" and new["f"] is jnp.tanh


def test_a_step_on_many_arrays_outside_jit():
    params = {f"w{i}": jnp.ones((2, 1 + i % 3)) for i in range(300)}
    state = ADAMW.init(params)
    updates, after = ADAMW.update(params, state, params)
    assert_same((adamx.apply_updates(params, updates), after), ADAMW.step(params, state, params))


def test_step_needs_parameters_and_their_shapes():
    state = ADAMW.init(PARAMS)
    with pytest.raises(adamx.StageError, match=r"step\(\) was called without parameters"):
        ADAMW.step(GRADS[0], state, None)
    with pytest.raises(adamx.StageError, match="the gradient's shape"):
        ADAMW.step({**GRADS[0], "b": jnp.ones(3)}, state, PARAMS)
