"""adamx in Flax: as the `tx` of a Linen `TrainState`, and in an `nnx.Optimizer`."""

import copy
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import Mesh

import adamx
from adamx.tools.config import from_config, to_config

pytestmark = pytest.mark.sampled

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
TARGETS = jnp.sin(INPUTS.sum(axis=1, keepdims=True))

needs_current_nnx = pytest.mark.skipif(
    not hasattr(nnx, "data"), reason="an older Flax, whose nnx.Optimizer has another interface"
)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Flax and Optax's schedules mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def assert_same(one, other):
    chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)


def plain_loop(tx, params, loss, steps):
    """What every training loop below should compute."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


OPTIMISERS = {
    "adam": lambda: adamx.adam(1e-2),
    "optax schedule": lambda: adamx.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 9)),
    "exponential decay": lambda: adamx.adam(optax.exponential_decay(1e-2, 3, 0.5)),
    "own schedule": lambda: adamx.adam(lambda t: 1e-2 / (t + 1), b1=lambda t: 1 - 1 / (t + 2)),
    "clipped, decayed, averaged": lambda: adamx.chain(
        optax.clip_by_global_norm(0.1),
        adamx.adamw(1e-2, weight_decay=1e-3),
        adamx.polyak_ema(0.9),
    ),
}


# Linen -----------------------------------------------------------------------------------------


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(x)))


MODEL = Perceptron()
PARAMS = MODEL.init(jax.random.key(0), INPUTS)["params"]


def linen_loss(params):
    return jnp.mean((MODEL.apply({"params": params}, INPUTS) - TARGETS) ** 2)


def train_state(make):
    return TrainState.create(apply_fn=MODEL.apply, params=PARAMS, tx=make())


def linen_step():
    """A jitted step on a TrainState, and a list that grows whenever it is traced."""
    traces = []

    @jax.jit
    def step(state):
        traces.append(None)
        return state.apply_gradients(grads=jax.grad(linen_loss)(state.params))

    return step, traces


@pytest.mark.parametrize("name", OPTIMISERS)
def test_train_state_trains_and_an_equal_one_finds_the_program_compiled(name):
    step, traces = linen_step()
    for _ in range(2):  # the second time with an equal optimiser, built anew
        state = train_state(OPTIMISERS[name])
        for _ in range(3):
            state = step(state)
    assert len(traces) == 1
    params, opt_state = plain_loop(OPTIMISERS[name](), PARAMS, linen_loss, 3)
    assert_same(state.params, params)
    assert_same(state.opt_state, opt_state)


def test_train_state_with_another_number_is_another_program():
    step, traces = linen_step()
    for rate in (0.1, 0.2, 0.1):
        step(train_state(lambda rate=rate: adamx.sgd(rate)))
    assert len(traces) == 2


@pytest.mark.parametrize(
    "again",
    {
        "replaced": lambda tx: tx.replace(adamx.hyperparams(tx)),
        "config": lambda tx: from_config(json.loads(json.dumps(to_config(tx)))),
        "deepcopy": copy.deepcopy,
    }.items(),
    ids=lambda pair: pair[0],
)
def test_train_state_finds_the_program_compiled_for_a_copy_of_its_optimiser(again):
    step, traces = linen_step()
    state = step(train_state(OPTIMISERS["optax schedule"]))
    resumed = state.replace(tx=again[1](state.tx))
    assert_same(step(resumed).params, step(state).params)
    assert len(traces) == 1


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_goes_to_bytes_and_back(name):
    tx = OPTIMISERS[name]()
    _, state = plain_loop(tx, PARAMS, linen_loss, 2)
    restored = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    assert_same(tx.update(PARAMS, restored, PARAMS), tx.update(PARAMS, state, PARAMS))


def test_checkpoint_of_a_float_is_restored_under_a_schedule():
    _, state = plain_loop(adamx.adam(1e-2), PARAMS, linen_loss, 2)
    later = adamx.adam(optax.linear_schedule(1e-2, 0.0, 4))
    restored = serialization.from_bytes(later.init(PARAMS), serialization.to_bytes(state))
    updates, _ = later.update(PARAMS, restored, PARAMS)
    expected, _ = adamx.adam(0.5e-2).update(PARAMS, state, PARAMS)
    assert_same(updates, expected)


# Parameters that name their mesh axes

BOXED = {
    name: getattr(adamx, name)
    for name in ("adamw", "adafactor", "adam_mini", "novograd", "lamb", "soap")
}


def named_parameters():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("data", "model"))
    return nn.Dense(128, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 128)))["params"]


def fits(spec, x):
    """Whether an array can be divided by a mesh of 2 × 2."""
    named = zip(spec, jnp.shape(x), strict=False)
    return len(spec) <= jnp.ndim(x) and all(n % 2 == 0 for axis, n in named if axis)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", BOXED)
def test_names_of_mesh_axes_are_on_slots_that_have_these_axes(name, stored):
    opt = BOXED[name](1e-2)
    opt = adamx.quantize_state(opt, "int8", min_size=16) if stored else opt
    params = named_parameters()
    state = opt.init(params)
    specs = nn.get_partition_spec(state)  # a spec holds for all arrays of one slot
    specs = jax.tree.map(lambda spec, x: [(spec, x)] * len(jax.tree.leaves(x)), specs, state)
    pairs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, tuple))
    for spec, slot in pairs:
        assert all(fits(spec, x) for x in jax.tree.leaves(slot))
    if name not in ("adafactor", "novograd"):
        assert any(tuple(spec) == ("data", "model") for spec, _ in pairs)
    # A step keeps the tree, and is the step without names.
    updates, after = opt.update(params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    plain = nn.unbox(params)
    expected, bare = opt.update(plain, opt.init(plain), plain)
    assert_same(nn.unbox(updates), expected)
    assert_same(jax.tree.leaves(after), jax.tree.leaves(bare))


def test_a_box_of_several_arrays_stays_as_it_is():
    box = nn.Partitioned({"a": jnp.ones((4, 4)), "b": jnp.ones(4)}, names=("data",))
    opt, params = adamx.adam(0.1), {"box": box, "alone": jnp.ones(2)}
    state = opt.init(params)
    assert isinstance(state["scale_by_rms"]["nu"]["box"], nn.Partitioned)
    _, after = opt.update(params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_a_state_with_names_of_mesh_axes_is_restored_and_a_gradient_may_be_missing():
    opt = adamx.chain(adamx.adafactor(1e-2), adamx.watch())
    params = named_parameters()
    _, state = opt.update(params, opt.init(params), params)
    target = adamx.quantize_state(opt, "int8", min_size=16)
    restored, _ = adamx.restore_state(state, target, params)
    assert jax.tree.structure(restored) == jax.tree.structure(target.init(params))
    expected, _ = adamx.restore_state(state, target, nn.unbox(params))
    assert_same(jax.tree.leaves(restored), jax.tree.leaves(expected))
    missing = {"bias": params["bias"], "kernel": None}
    _, after = opt.update(missing, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert_same(
        after["scale_by_factored_rms"]["nu"]["kernel"],
        state["scale_by_factored_rms"]["nu"]["kernel"],
    )


# nnx -------------------------------------------------------------------------------------------


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


def nnx_loss(model):
    return jnp.mean((model(INPUTS) - TARGETS) ** 2)


def nnx_step():
    """A jitted step on a model and its optimizer, and a list that grows whenever it is traced."""
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(None)
        optimizer.update(model, nnx.grad(nnx_loss)(model))

    return step, traces


class DataOptimizer(nnx.Optimizer):
    """An nnx.Optimizer whose transformation may hold arrays: other values find the same program."""

    if hasattr(nnx, "data"):
        tx: optax.GradientTransformation = nnx.data()


def nnx_plain_loop(tx, steps):
    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    return plain_loop(tx, params, lambda params: nnx_loss(nnx.merge(graph, params)), steps)


@pytest.mark.slow
@needs_current_nnx
@pytest.mark.parametrize(
    ("kind", "name"),
    [(nnx.Optimizer, name) for name in OPTIMISERS]
    + [(DataOptimizer, "own schedule"), (DataOptimizer, "clipped, decayed, averaged")],
)
def test_nnx_optimizer_trains_and_an_equal_one_finds_the_program_compiled(kind, name):
    step, traces = nnx_step()
    for _ in range(2):
        model = Network(nnx.Rngs(0))
        optimizer = kind(model, OPTIMISERS[name](), wrt=nnx.Param)
        for _ in range(3):
            step(model, optimizer)
    assert len(traces) == 1
    params, state = nnx_plain_loop(OPTIMISERS[name](), 3)
    assert_same(jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(params))
    assert_same(jax.tree.leaves(nnx.state(optimizer)["opt_state"]), jax.tree.leaves(state))


@needs_current_nnx
def test_nnx_optimizer_keeps_static_what_it_is_given_and_refuses_arrays():
    with pytest.raises(ValueError, match=r"static attribute 'tx'"):
        nnx.Optimizer(Network(nnx.Rngs(0)), adamx.adam(jnp.array(1e-2)), wrt=nnx.Param)


@needs_current_nnx
def test_nnx_optimizer_with_tx_as_data_takes_a_new_learning_rate_without_compiling():
    step, traces = nnx_step()
    found = []
    for rate in (1e-2, 0.1):
        model = Network(nnx.Rngs(0))
        optimizer = DataOptimizer(model, adamx.adam(jnp.array(rate)), wrt=nnx.Param)
        step(model, optimizer)
        found.append(jax.tree.leaves(nnx.state(model, nnx.Param)))
        assert_same(found[-1], jax.tree.leaves(nnx_plain_loop(adamx.adam(rate), 1)[0]))
    optimizer.tx = adamx.adam(jnp.array(1e-3))  # and in the middle of training
    step(model, optimizer)
    assert len(traces) == 1
    assert abs(found[0][0] - found[1][0]).max() > 0.05


@needs_current_nnx
def test_nnx_optimizer_hands_extra_arguments_on():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.9)
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamx.chain(adamx.adam(1e-2), plateau), wrt=nnx.Param)
    for _ in range(3):
        value, grads = nnx.value_and_grad(nnx_loss)(model)
        optimizer.update(model, grads, value=value)
    assert nnx.state(optimizer)["opt_state"]["reduce_on_plateau"].scale[...] < 1


@needs_current_nnx
def test_nnx_variables_name_mesh_axes_of_slots_that_have_them():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", "model"))
    with jax.set_mesh(mesh):
        model = nnx.Linear(128, 128, kernel_init=init, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, adamx.adafactor(1e-2), wrt=nnx.Param)
        grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((1, 128))) ** 2))(model)
        optimizer.update(model, grads)
    state = nnx.state(optimizer)
    specs = nnx.to_flat_state(nnx.get_partition_spec(state))
    for (path, slot), (_, spec) in zip(nnx.to_flat_state(state), specs, strict=True):
        assert fits(spec.get_value(), slot.get_value()), path
