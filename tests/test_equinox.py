"""adamx with Equinox models: trees with functions, numbers and None where others have arrays."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

pytestmark = pytest.mark.sampled

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
TARGETS = jnp.sin(INPUTS.sum(axis=1))

# What the whole chain sees: a norm over all parameters, the parameters themselves, their average.
OPTIMISERS = {
    "adam": lambda: adamx.adam(1e-2),
    "clipped, decayed, averaged": lambda: adamx.chain(
        adamx.clip_by_global_norm(0.1),
        adamx.adamw(1e-2, weight_decay=1e-3),
        optax.scale(0.5),
        adamx.polyak_ema(0.9),
    ),
}

APPLY = {"equinox": eqx.apply_updates, "adamx": adamx.apply_updates}


class Perceptron(eqx.Module):
    layers: list
    activation: callable
    power: int
    scale: float
    table: jax.Array  # of integers: not a parameter

    def __init__(self):
        first, second = jax.random.split(jax.random.key(0))
        self.layers = [eqx.nn.Linear(3, 4, key=first), eqx.nn.Linear(4, "scalar", key=second)]
        self.activation, self.power, self.scale = jax.nn.tanh, 2, 0.5
        self.table = jnp.arange(3)

    def __call__(self, x):
        return self.scale * self.layers[1](self.activation(self.layers[0](x)))


def loss(model):
    return jnp.mean((jax.vmap(model)(INPUTS) - TARGETS) ** model.power)


def arrays(tree):
    """The arrays of floating-point numbers in a tree, in a list."""
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


def avals(tree):
    """Shapes, dtypes and weak types."""
    return jax.eval_shape(lambda x: x, tree)


def plain_loop(opt, model, steps):
    """Train a list of arrays, without Equinox in the optimiser's sight."""
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(params)
    state = opt.init(leaves)
    for _ in range(steps):
        grads = jax.grad(lambda x: loss(eqx.combine(tree.unflatten(x), rest)))(leaves)
        updates, state = opt.update(grads, state, leaves)
        leaves = optax.apply_updates(leaves, updates)
    return leaves, state


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize(("params", "apply"), [("filtered", "equinox"), ("whole", "adamx")])
@pytest.mark.parametrize("jit", [False, True])
def test_model_trains(jit, params, apply, name):
    opt, model = OPTIMISERS[name](), Perceptron()
    state = opt.init(eqx.filter(model, eqx.is_inexact_array))

    def step(model, state):
        grads = eqx.filter_grad(loss)(model)
        known = model if params == "whole" else eqx.filter(model, eqx.is_inexact_array)
        updates, state = opt.update(grads, state, known)
        return APPLY[apply](model, updates), state

    step = eqx.filter_jit(step) if jit else step
    for _ in range(3):
        model, state = step(model, state)
    leaves, plain_state = plain_loop(opt, Perceptron(), 3)
    chex.assert_trees_all_close(arrays(model), leaves, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        jax.tree.leaves(state), jax.tree.leaves(plain_state), rtol=1e-5, atol=1e-6
    )
    assert avals(state) == avals(opt.init(eqx.filter(Perceptron(), eqx.is_inexact_array)))
    assert model.activation is jax.nn.tanh and (model.power, model.scale) == (2, 0.5)
    assert jax.tree.structure(model) == jax.tree.structure(Perceptron())


@pytest.mark.parametrize("apply", APPLY.values(), ids=APPLY)
def test_frozen_parameters_stay_and_have_no_state(apply):
    opt, model = OPTIMISERS["clipped, decayed, averaged"](), Perceptron()
    nothing = jax.tree.map(lambda _: False, model)
    last = eqx.tree_at(lambda m: m.layers[1], nothing, replace=eqx.is_inexact_array)
    params, frozen = eqx.partition(model, last)
    state = opt.init(params)
    assert [x.shape for x in jax.tree.leaves(optax.tree.get(state, "nu"))] == [(1, 4), (1,)]

    @eqx.filter_jit
    def step(params, state):
        grads = eqx.filter_grad(lambda params: loss(eqx.combine(params, frozen)))(params)
        updates, state = opt.update(grads, state, params)
        return apply(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    after = eqx.combine(params, frozen)
    chex.assert_trees_all_equal(arrays(after.layers[0]), arrays(model.layers[0]))
    moved = eqx.apply_updates(after, jax.tree.map(jnp.negative, eqx.filter(model, last)))
    assert all(abs(x).max() > 1e-3 for x in arrays(moved.layers[1]))


def test_whole_model_as_parameters_of_init_is_refused_with_the_remedy():
    with pytest.raises(adamx.StageError, match=r"equinox.filter\(model, equinox.is_inexact_array"):
        adamx.adam(1e-2).init(Perceptron())


class Cosine(eqx.Module):
    """A schedule that is a module: its numbers are data of the optimiser that holds it."""

    peak: jax.Array
    steps: int = eqx.field(static=True)

    def __call__(self, count):
        return self.peak * jnp.cos(jnp.pi / 2 * jnp.minimum(count / self.steps, 1))


def test_module_as_a_schedule():
    opt = adamx.adam(Cosine(jnp.array(0.1), 4))
    assert opt == adamx.adam(Cosine(jnp.array(0.1), 4))
    assert opt != adamx.adam(Cosine(jnp.array(0.2), 4))
    found, _ = plain_loop(opt, Perceptron(), 3)
    expected, _ = plain_loop(
        adamx.adam(lambda t: 0.1 * jnp.cos(jnp.pi / 2 * t / 4)), Perceptron(), 3
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)

    def after_a_step(opt):
        theta = jnp.array([1.0, -2.0])
        return opt.update(theta, opt.init(theta), theta)[0]

    rates = jnp.array([0.1, 0.2])
    batch = jax.vmap(lambda peak: after_a_step(adamx.adam(Cosine(peak, 4))))(rates)
    chex.assert_trees_all_close(batch, -rates[:, None] * jnp.array([[1.0, -1.0]]), rtol=1e-5)
    slope = jax.grad(lambda opt: after_a_step(opt).sum())(adamx.sgd(Cosine(jnp.array(0.1), 4)))
    chex.assert_trees_all_close(jax.tree.leaves(slope), [jnp.array(1.0)])


def test_optimiser_as_an_argument_of_filter_jit():
    """Floats in it are static, arrays are traced: other arrays find the same program."""
    traces = []

    @eqx.filter_jit
    def step(opt, theta):
        traces.append(None)
        return opt.update(theta, opt.init(theta), theta)[0]

    theta = jnp.array([1.0, -2.0])
    for rate in (0.1, 0.2):
        found = step(adamx.adam(jnp.array(rate)), theta)
        chex.assert_trees_all_close(found, -rate * jnp.sign(theta), rtol=1e-5)
    assert len(traces) == 1
    step(adamx.adam(0.1), theta)
    step(adamx.adam(0.1), theta)
    assert len(traces) == 2
