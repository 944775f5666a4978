"""adamx inside Optax's wrappers, and Optax's transformations inside an adamx chain."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adamx

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.1, -0.1])}


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    """Optax computes β**count with an int32 count, and so do its schedules."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(params):
    return sum(jnp.sum(jnp.cosh(x)) for x in jax.tree.leaves(params))


def train(opt, params=PARAMS, steps=5, jit=True, **extra):
    """The parameters and the state after some steps on `loss`."""

    def step(params, state):
        updates, state = opt.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    state = opt.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_same(one, other, rtol=1e-6):
    """Alike but for the rounding in which two compilations of one formula may differ."""
    chex.assert_trees_all_close(one, other, rtol=rtol, atol=1e-6)


RECIPES = {
    "sgd": lambda: adamx.sgd(0.1),
    "adam": lambda: adamx.adam(0.1),
    "rmsprop+decay": lambda: adamx.chain(
        adamx.rmsprop(0.05, momentum=0.9), adamx.add_decayed_weights(1e-3)
    ),
    "clip+adamax+average": lambda: adamx.chain(
        adamx.clip_by_global_norm(1.0), adamx.adamax(optax.linear_schedule(0.1, 0.01, 4)),
        adamx.polyak_ema(0.9),
    ),
}  # fmt: skip

# Each of these, as it is set here, changes nothing.
WRAPPERS = {
    "chain": lambda opt: optax.chain(optax.identity(), opt),
    "named_chain": lambda opt: optax.named_chain(("first", optax.identity()), ("opt", opt)),
    "masked": lambda opt: optax.masked(opt, {"w": True, "b": True}),
    "partition": lambda opt: optax.partition({"all": opt}, {"w": "all", "b": "all"}),
    "MultiSteps": lambda opt: optax.MultiSteps(opt, 1).gradient_transformation(),
    "apply_if_finite": lambda opt: optax.apply_if_finite(opt, 3),
    "conditionally_transform": lambda opt: optax.transforms.conditionally_transform(
        opt, lambda step, **_: True
    ),
    "flatten": lambda opt: optax.flatten(opt),
    "with_extra_args_support": lambda opt: optax.with_extra_args_support(opt),
    "adamx.chain(optax.chain)": lambda opt: adamx.chain(optax.chain(opt)),
}


@functools.cache
def trained(recipe):
    return train(RECIPES[recipe]())[0]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_leaves_the_numbers_alone(wrapper, recipe):
    params, state = train(WRAPPERS[wrapper](RECIPES[recipe]()))
    assert_same(params, trained(recipe))
    init = WRAPPERS[wrapper](RECIPES[recipe]()).init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(init, state)
