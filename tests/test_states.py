"""States are found wherever they are, read parameter by parameter, and share memory with nobody."""

import ctypes
import functools
import importlib.util
import pickle
import warnings

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import adamx
from adamx.core import StageError
from adamx.tools import convert
from catalog import slow_but
from helpers import each_once

pytestmark = pytest.mark.sampled

HAS_TORCH = importlib.util.find_spec("torch") is not None
RNG = np.random.default_rng(5)
PARAMS = {
    "encoder": {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "bias": jnp.ones(2)},
}
GRADS = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=(9, *x.shape)), jnp.float32), PARAMS)


def at(t):
    return jax.tree.map(lambda g: g[t], GRADS)


def train(opt, start=0, stop=3, params=PARAMS, state=None):
    state = opt.init(params) if state is None else state
    for t in range(start, stop):
        updates, state = opt.update(at(t), state, params)
        params = adamx.apply_updates(params, updates)
    return params, state


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def aligned(x):
    """The array where JAX takes its memory as it is, if it may."""
    x = np.asarray(x)
    room = np.empty(x.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    held = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    held[...] = x
    return held


def through_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no target
        checkpointer.save(folder / "saved", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "saved")


# Found wherever it is


OPT = adamx.chain(
    adamx.adam(optax.linear_schedule(0.1, 0.0, 10)), adamx.polyak_ema(0.9), adamx.watch()
)


def tried(tx):
    """The state of an Optax transformation after two steps."""
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(PARAMS)
        for t in range(2):
            _, state = tx.update(at(t), state, PARAMS)
    return state


def train_state():
    state = TrainState.create(apply_fn=None, params={**PARAMS, "count": jnp.ones(1)}, tx=OPT)
    grads = {**at(0), "count": jnp.zeros(1)}
    return state.apply_gradients(grads=grads).apply_gradients(grads=grads)


def injected():
    @optax.inject_hyperparams
    def make(eps):
        return OPT.replace(eps=eps)

    return tried(make(1e-8))


HOLDERS = {
    "itself": lambda: train(OPT, stop=2)[1],
    "a FrozenDict": lambda: flax.core.freeze(train(OPT, stop=2)[1]),
    "a list": lambda: [1, (train(OPT, stop=2)[1],)],
    "beside parameters": lambda: {"params": {"count": 1}, "opt_state": train(OPT, stop=2)[1]},
    "optax.chain": lambda: tried(optax.chain(optax.clip(1.0), OPT, optax.scale_by_schedule(abs))),
    "MultiSteps": lambda: tried(optax.MultiSteps(OPT, 1)),
    "apply_if_finite": lambda: tried(optax.apply_if_finite(OPT, 3)),
    "inject_hyperparams": injected,
    "masked": lambda: tried(optax.masked(OPT, jax.tree.map(lambda x: True, PARAMS))),
    "TrainState": train_state,
    "msgpack": lambda: serialization.msgpack_restore(serialization.to_bytes(train_state())),
    "msgpack of wrappers": lambda: serialization.msgpack_restore(
        serialization.to_bytes(tried(optax.apply_if_finite(optax.chain(OPT), 3)))
    ),
}


@pytest.mark.parametrize("where", slow_but(["a list", "TrainState", "msgpack"], HOLDERS))
def test_every_reader_finds_the_state(where):
    holder = HOLDERS[where]()
    np.testing.assert_allclose(adamx.hyperparams(OPT, holder)["learning_rate"], 0.08, rtol=1e-6)
    np.testing.assert_allclose(adamx.metrics(holder)["learning_rate"], 0.09, rtol=1e-6)
    assert {row.stage for row in adamx.memory_usage(holder).rows} >= {"scale_by_rms", "polyak_ema"}
    mean, nu = adamx.polyak_params(holder), adamx.dequantize(holder, "nu")
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(mean))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), nu)
    state, report = adamx.restore_state(holder, OPT, params)
    assert report.initialised == report.dropped == ()
    assert int(state["count"]) == 2
    assert_same_bits(jax.tree.leaves(state["scale_by_rms"]["nu"]), jax.tree.leaves(nu))


@pytest.mark.parametrize("reader", [
    lambda x: adamx.hyperparams(OPT, [x]),
    adamx.metrics,
    adamx.memory_usage,
    adamx.polyak_params,
    lambda x: adamx.eval_params(x, PARAMS, name="schedule_free"),
    lambda x: adamx.dequantize(x, "nu"),
    lambda x: adamx.restore_state(x, OPT, PARAMS),
    lambda x: convert.to_optax(x, adamx.adam(0.1), optax.adam(0.1).init(PARAMS)),
])  # fmt: skip
@pytest.mark.parametrize("given", [PARAMS, {"a": [jnp.full(3, 0.7654)]}, jnp.full(3, 0.7654), None])
def test_where_there_is_no_state_the_error_says_what_was_given(reader, given):
    with pytest.raises((ValueError, TypeError)) as caught:
        reader(given)
    assert "0.7654" not in str(caught.value) and "Array(" not in str(caught.value)
    assert not isinstance(caught.value, KeyError)


def test_two_states_are_told_apart_by_where_they_are():
    both = {"a": train(OPT)[1], "b": [train(OPT)[1]]}
    for read in (
        lambda: adamx.hyperparams(OPT, both),
        lambda: adamx.restore_state(both, OPT, PARAMS),
    ):
        with pytest.raises((ValueError, TypeError), match=r"there are 2, at \['a'\], \['b'\]\[0\]"):
            read()


def test_an_optimiser_and_a_state_in_the_wrong_order_do_not_print_arrays():
    state = train(OPT)[1]
    for read in (
        lambda: adamx.hyperparams(state, OPT),
        lambda: adamx.restore_state(OPT, state, PARAMS),
        lambda: convert.from_optax(OPT, state),
        lambda: convert.to_optax(OPT, state, PARAMS),
    ):
        with pytest.raises(TypeError, match=r"a dict of \['count', ") as caught:
            read()
        assert "Array(" not in str(caught.value) and "[[" not in str(caught.value)


def test_a_stage_of_another_kind_is_no_average():
    opt = adamx.chain(adamx.adam(0.1), adamx.polyak_ema(0.9), optax.ema(0.5))
    with jax.numpy_dtype_promotion("standard"):
        state = train(opt)[1]
    with pytest.raises(
        ValueError, match=r"'ema' in the state was not made by polyak_ema.*EmaState"
    ):
        adamx.polyak_params(state, "ema")
    with pytest.raises(ValueError, match="keeps ema and log_decay; it holds log_decay, mu"):
        adamx.polyak_params(state, "scale_by_momentum")
    with pytest.raises(ValueError, match=r"0 stages named 'nothing'.*there are .*polyak_ema"):
        adamx.polyak_params(state, "nothing")


# A batch


@pytest.mark.slow
def test_a_batch_of_states_is_read_as_its_members_are():
    rates = jnp.array([0.1, 0.2, 0.4])

    def run(rate):
        opt = adamx.chain(adamx.schedule_free_adamw(rate), adamx.polyak_ema(0.9), adamx.watch())
        return train(opt)

    params, states = jax.vmap(run)(rates)
    mean, x = adamx.polyak_params(states), adamx.eval_params(states, params, name="schedule_free")
    for i, rate in enumerate(rates):
        theta, state = run(rate)
        for batch, one in (
            (mean, adamx.polyak_params(state)),
            (x, adamx.eval_params(state, theta, name="schedule_free")),
        ):
            jax.tree.map(
                lambda b, a, i=i: np.testing.assert_allclose(b[i], a, rtol=1e-4, atol=1e-6),
                batch,
                one,
            )
    opt = adamx.sgd(optax.linear_schedule(1.0, 0.0, 4), momentum=0.5)
    found = adamx.hyperparams(opt, states)
    np.testing.assert_array_equal(found["learning_rate"], np.full(3, 0.25))
    assert found["momentum"] == 0.5


# Flax NNX


class Network(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.encoder(x)))


def nnx_loss(model):
    return jnp.mean(model(jnp.ones((2, 3))) ** 2)


def nnx_optimizer(opt, model):
    if hasattr(nnx, "data"):
        return nnx.Optimizer(model, opt, wrt=nnx.Param)
    return nnx.Optimizer(model, opt)


def nnx_step(model, optimizer):
    with jax.numpy_dtype_promotion("standard"):
        grads = nnx.grad(nnx_loss)(model)
        optimizer.update(*((model, grads) if hasattr(nnx, "data") else (grads,)))


def nnx_trained(opt, steps=2):
    model = Network(nnx.Rngs(0))
    optimizer = nnx_optimizer(opt, model)
    for _ in range(steps):
        nnx_step(model, optimizer)
    return model, optimizer


def pure(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


NNX = {
    "optimizer": lambda model, optimizer, folder: optimizer,
    "opt_state": lambda model, optimizer, folder: optimizer.opt_state,
    "state": lambda model, optimizer, folder: nnx.state(optimizer),
    "pure": lambda model, optimizer, folder: nnx.to_pure_dict(nnx.state(optimizer)),
    "Orbax opt_state": lambda model, optimizer, folder: through_orbax(
        optimizer.opt_state if hasattr(nnx, "data") else nnx.state(optimizer)["opt_state"], folder
    ),
    "Orbax state": lambda model, optimizer, folder: through_orbax(nnx.state(optimizer), folder),
}


@functools.cache
def nnx_and_plain(kind):
    """A training in nnx, and the same without."""
    adam = adamx.adam(optax.linear_schedule(0.1, 0.0, 10))
    opt = {
        "plain": adam,
        "grouped": adamx.partition({"bias": adamx.sgd(0.1, 0.9), "*": adam}),
        "stored": adamx.quantize_state(adam, "int8", min_size=3),
    }[kind]
    opt = adamx.chain(opt, optax.trace(0.1), adamx.polyak_ema(0.9), adamx.watch())
    model, optimizer = nnx_trained(opt)
    graph, start = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    params = nnx.to_pure_dict(start)

    def loss(params):
        nnx.replace_by_pure_dict(start, params)
        return nnx_loss(nnx.merge(graph, start))

    expected = opt.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            updates, expected = opt.update(jax.grad(loss)(params), expected, params)
            params = adamx.apply_updates(params, updates)
    return opt, model, optimizer, params, expected


@pytest.mark.parametrize(("form", "kind"), each_once(list(NNX), ["plain", "grouped", "stored"]))
def test_states_of_nnx_are_read_and_restored_in_every_form(kind, form, tmp_path):
    opt, model, optimizer, params, expected = nnx_and_plain(kind)
    held = NNX[form](model, optimizer, tmp_path)
    rate = "learning_rate" if kind != "grouped" else "learning_rate@rest"
    np.testing.assert_allclose(adamx.hyperparams(opt, held)[rate], 0.08, rtol=1e-6)
    seen = adamx.metrics(held)
    np.testing.assert_allclose(seen["grad_rms"], adamx.metrics(expected)["grad_rms"], rtol=1e-5)
    assert adamx.memory_usage(held).bytes == adamx.memory_usage(expected).bytes
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        adamx.polyak_params(held, params=params),
        adamx.polyak_params(expected),
    )
    state, report = adamx.restore_state(held, opt, params)
    assert set(report.initialised) <= {"watch.groups"} and report.dropped == ()
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    bare = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]
    assert_same_bits(jax.tree.leaves(state), [jnp.asarray(x) for x in jax.tree.leaves(bare)])


def test_a_restored_state_goes_back_into_an_nnx_optimizer():
    """As the page on checkpoints shows."""
    opt = adamx.adam(0.1)
    model, optimizer = nnx_trained(opt, steps=2)
    saved = jax.tree.map(np.array, pure(model)), nnx.to_pure_dict(nnx.state(optimizer))
    whole, _ = nnx_trained(opt, steps=3)
    state, _ = adamx.restore_state(saved[1], opt, pure(model))
    model = Network(nnx.Rngs(1))
    nnx.update(model, saved[0])
    optimizer = nnx_optimizer(opt, model)
    nnx.update(optimizer, {"opt_state": state})
    nnx_step(model, optimizer)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), pure(model), pure(whole))


def test_a_restored_state_fits_parameters_that_are_variables():
    opt = adamx.quantize_state(adamx.adam(0.1), "int8", min_size=3)
    model, optimizer = nnx_trained(opt)
    variables = nnx.state(model, nnx.Param)
    state, report = adamx.restore_state(optimizer.opt_state, opt, variables)
    assert report.initialised == report.dropped == ()
    assert jax.tree.structure(state) == jax.tree.structure(opt.init(variables))
    plain, _ = adamx.restore_state(optimizer.opt_state, opt, pure(model))
    assert_same_bits(jax.tree.leaves(state), jax.tree.leaves(plain))


def test_a_state_of_nnx_goes_to_optax_and_torch(monkeypatch):
    opt = adamx.adam(0.1)
    model, optimizer = nnx_trained(opt)
    params = pure(model)
    theirs = convert.to_optax(optimizer, opt, optax.adam(0.1).init(params))
    assert int(theirs[0].count) == 2
    held = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]["scale_by_rms"]["nu"]
    assert_same_bits(theirs[0].nu, jax.tree.map(jnp.asarray, held))
    tx = optax.adam(0.1)
    model, optimizer = nnx_trained(tx)
    state = convert.from_optax(optimizer, opt, pure(model))
    assert int(state["count"]) == 2


# MemoryUsage of one's own


def overwritten(tree):
    """All NumPy arrays of a tree set to zero."""
    for x in jax.tree.leaves(tree):
        x[...] = 0


ADAMS = {
    "plain": adamx.adam(0.1),
    "stored": adamx.quantize_state(adamx.adam(0.1), "int8", min_size=4),
    "with Optax's": adamx.chain(optax.trace(0.5), adamx.adam(0.1), adamx.lookahead(2)),
}


@pytest.mark.parametrize("chain", ADAMS)
@pytest.mark.parametrize("way", ["NumPy", "pickle", "msgpack"])
def test_a_restored_state_does_not_change_with_what_was_saved(chain, way):
    opt = ADAMS[chain]
    state = train(opt)[1]
    saved = jax.tree.map(aligned, jax.device_get(state))
    if way == "pickle":
        saved = pickle.loads(pickle.dumps(saved))
    if way == "msgpack":
        saved = jax.tree.map(aligned, serialization.to_state_dict(saved))
    restored, _ = adamx.restore_state(saved, opt, PARAMS)
    overwritten(saved)
    assert_same_bits(restored, state)


@pytest.mark.parametrize("chain", ADAMS)
def test_a_restored_state_survives_the_donation_of_what_it_was_restored_from(chain):
    opt = ADAMS[chain]
    state = train(opt)[1]
    expected = jax.tree.map(np.array, state)
    restored, _ = adamx.restore_state(state, opt, PARAMS)
    for x in jax.tree.leaves(state):
        x.delete()
    assert_same_bits(restored, expected)


def test_a_state_restored_by_orbax_is_copied(tmp_path):
    opt = ADAMS["plain"]
    state = train(opt)[1]
    saved = through_orbax(state, tmp_path)
    restored, _ = adamx.restore_state(saved, opt, PARAMS)
    for x in jax.tree.leaves(saved):
        x.delete()
    assert_same_bits(restored, state)


@pytest.mark.parametrize("chain", ADAMS)
def test_states_of_optax_are_donated_on_either_side(chain):
    opt = ADAMS[chain]
    tx = optax.adam(0.1)
    if chain == "with Optax's":
        opt = adamx.chain(optax.trace(0.5), adamx.adam(0.1))
        tx = optax.chain(optax.trace(0.5), tx)
    theirs = tried(tx)
    expected = jax.tree.map(np.array, convert.from_optax(theirs, opt, PARAMS))
    ours = convert.from_optax(theirs, opt, PARAMS)
    for x in jax.tree.leaves(theirs):
        x.delete()
    assert_same_bits(ours, expected)

    target = tx.init(PARAMS)
    expected = jax.tree.map(np.array, convert.to_optax(ours, opt, target))
    kept = jax.tree.map(np.array, ours)
    theirs = convert.to_optax(ours, opt, target)
    for x in jax.tree.leaves(theirs):
        x.delete()
    assert_same_bits(ours, kept)
    assert_same_bits(jax.tree.map(np.array, target), jax.tree.map(np.array, tx.init(PARAMS)))
    theirs = convert.to_optax(ours, opt, target)
    for x in jax.tree.leaves((ours, target)):
        x.delete()
    assert_same_bits(theirs, expected)


def test_an_optax_state_of_arrays_that_are_overwritten_is_copied():
    theirs = jax.tree.map(aligned, jax.device_get(tried(optax.adam(0.1))))
    state = convert.from_optax(theirs, adamx.adam(0.1), PARAMS)
    expected = jax.tree.map(np.array, state)
    overwritten(theirs)
    assert_same_bits(state, expected)


class Tensor:
    """What a tensor of PyTorch shows of itself, its memory included."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def detach(self):
        return self

    cpu = resolve_conj = detach

    def numpy(self):
        return self.array


def torch_group(size):
    return {"betas": (0.9, 0.999), "amsgrad": False, "params": list(range(size))}


def adam_of_torch(moments, theta, grad, t):
    """A step of torch.optim.Adam, in place."""
    mu, nu = moments["exp_avg"], moments["exp_avg_sq"]
    mu += np.float32(0.1) * (grad - mu)
    nu *= np.float32(0.999)
    nu += np.float32(0.001) * grad * grad
    step = 1e-3 / (1 - 0.9**t)
    theta -= (step * mu / (np.sqrt(nu) / np.sqrt(1 - 0.999**t) + 1e-8)).astype(np.float32)


def test_a_state_of_pytorch_does_not_change_when_pytorch_goes_on():
    """A linear layer of 64 × 64 for 50 steps, PyTorch going on at the side."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 32, 64)).astype(np.float32)
    theirs = {"weight": aligned(rng.normal(size=(64, 64)).astype(np.float32) / 8)}
    moments = {name: aligned(np.zeros((64, 64), np.float32)) for name in ("exp_avg", "exp_avg_sq")}

    def gradient(w):
        return (2 / y.size) * (x @ w - y).T @ x

    for t in range(1, 11):
        adam_of_torch(moments, theirs["weight"], gradient(theirs["weight"]).T, t)
    shared = {0: {"step": 10.0, **{name: Tensor(array) for name, array in moments.items()}}}
    opt, params = adamx.adam(1e-3), [jnp.array(theirs["weight"], copy=True)]
    state = convert.from_torch({"state": shared, "param_groups": [torch_group(1)]}, opt, params)
    assert np.shares_memory(shared[0]["exp_avg"].numpy(), moments["exp_avg"])
    losses = [[], []]
    for t in range(11, 61):
        adam_of_torch(moments, theirs["weight"], gradient(theirs["weight"]).T, t)
        grad = gradient(np.asarray(params[0])).T
        updates, state = opt.update([jnp.asarray(grad)], state)
        params = adamx.apply_updates(params, updates)
        for side, w in zip(losses, (theirs["weight"], params[0]), strict=True):
            side.append(np.mean((x @ np.asarray(w, np.float64) - y) ** 2))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    np.testing.assert_allclose(state["scale_by_rms"]["nu"][0], moments["exp_avg_sq"], rtol=1e-4)


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
def test_pytorch_itself_goes_on_at_the_side():
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    inputs, targets = torch.randn(32, 64), torch.randn(32, 64)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(inputs), targets).backward()
        optimizer.step()

    for _ in range(10):
        step()
    params = [jnp.array(p.detach().numpy(), copy=True) for p in layer.parameters()]
    opt = adamx.adam(1e-3)
    state = convert.from_torch(optimizer.state_dict(), opt, params)
    expected = jax.tree.map(np.array, state)
    back = convert.to_torch(state, opt, optimizer.state_dict(), params)
    twin = torch.nn.Linear(64, 64)
    twin.load_state_dict(layer.state_dict())
    other = torch.optim.Adam(twin.parameters(), lr=1e-3)
    other.load_state_dict(back)
    for _ in range(5):
        step()
        for p, q in zip(twin.parameters(), layer.parameters(), strict=True):
            p.grad = q.grad.clone()
        other.step()
    assert_same_bits(state, expected)


def test_tensors_made_here_do_not_show_the_state(monkeypatch):
    opt, params = adamx.adam(0.1), [PARAMS["head"]["kernel"]]
    _, state = opt.update([jnp.ones((3, 2))], opt.init(params))
    if not HAS_TORCH:
        import sys
        import types

        stand_in = types.SimpleNamespace(from_numpy=np.asarray, tensor=np.asarray)
        monkeypatch.setitem(sys.modules, "torch", stand_in)
    made = convert.to_torch(state, opt, {"state": {}, "param_groups": [torch_group(1)]}, params)
    expected = jax.tree.map(np.array, state)
    for x in made["state"][0].values():
        array = np.asarray(x)
        ctypes.memset(array.ctypes.data, 0, array.nbytes)
    assert_same_bits(state, expected)


# A parameter that never had a gradient


def state_dict(*kept):
    state = {index: arrays for index, arrays in enumerate(kept) if arrays}
    return {"state": state, "param_groups": [torch_group(len(kept))]}


def moments(shape, step=7.0):
    values = {"exp_avg": np.full(shape, 0.5), "exp_avg_sq": np.full(shape, 0.25)}
    return {"step": step, **values}


def test_a_parameter_that_never_had_a_gradient_starts_as_init_makes_it():
    opt, params = adamx.adam(1e-3), [jnp.ones(3), jnp.ones(2)]
    state = convert.from_torch(state_dict(moments(3), None), opt, params)
    assert int(state["count"]) == 7
    np.testing.assert_array_equal(state["scale_by_rms"]["nu"][0], np.full(3, 0.25, np.float32))
    for stage, slot in (("scale_by_momentum", "mu"), ("scale_by_rms", "nu")):
        np.testing.assert_array_equal(state[stage][slot][1], np.zeros(2))
    # Its first step is not debiased: m = 0.1 g, v = 0.001 g², corrected for eight steps.
    updates, _ = opt.update([jnp.zeros(3), jnp.full(2, 4.0)], state)
    first = 0.1 / (1 - 0.9**8) / np.sqrt(0.001 / (1 - 0.999**8))
    np.testing.assert_allclose(updates[1], np.full(2, -1e-3 * first), rtol=1e-4)


def test_it_may_be_frozen_in_the_chain():
    opt = adamx.partition({"gate": adamx.set_to_zero(), "*": adamx.adam(1e-3)})
    params, names = {"w": jnp.ones(3), "gate": jnp.ones(2)}, ["w", "gate"]
    state = convert.from_torch(state_dict(moments(3), None), opt, params, names)
    assert state["scale_by_rms@rest"]["nu"]["gate"] is None
    with pytest.raises(
        StageError, match=r"parameter \['gate'\]: exp_avg of PyTorch's state corresponds"
    ):
        convert.from_torch(state_dict(moments(3), moments(2)), opt, params, names)


def test_it_goes_back_as_zeros_and_what_is_frozen_without_an_entry(monkeypatch):
    import sys
    import types

    stand_in = types.SimpleNamespace(from_numpy=np.asarray, tensor=np.asarray)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    given = state_dict(moments(3), None)
    params = {"w": jnp.ones(3), "gate": jnp.ones(2)}
    for opt, kept in (
        (adamx.adam(1e-3), {0, 1}),
        (adamx.partition({"gate": adamx.set_to_zero(), "*": adamx.adam(1e-3)}), {0}),
    ):
        state = convert.from_torch(given, opt, params, ["w", "gate"])
        back = convert.to_torch(state, opt, given, params, ["w", "gate"])
        assert set(back["state"]) == kept
        np.testing.assert_array_equal(back["state"][0]["exp_avg"], given["state"][0]["exp_avg"])
        if 1 in kept:
            assert back["state"][1]["step"] == 7
            assert not np.any(back["state"][1]["exp_avg_sq"])


def test_half_an_entry_and_none_at_all_are_errors():
    opt, params = adamx.adam(1e-3), [jnp.ones(3), jnp.ones(2)]
    half = {"step": 7.0, "exp_avg": np.zeros(2)}
    with pytest.raises(StageError, match=r"state\[1\] has no exp_avg_sq"):
        convert.from_torch(state_dict(moments(3), half), opt, params)
    with pytest.raises(StageError, match=r"no entry for \[0\], \[1\]. Has this optimiser taken"):
        convert.from_torch(state_dict(None, None), opt, params, count=3)


# Groups come and go


HEAD = {"encoder": adamx.set_to_zero(), "*": adamx.adam(0.1)}
SLOTS = [("scale_by_momentum", "mu"), ("scale_by_rms", "nu")]


def test_freezing_midway_keeps_the_moments_of_the_rest():
    saved, opt = train(adamx.adam(0.1))[1], adamx.partition(HEAD)
    state, report = adamx.restore_state(saved, opt, PARAMS, strict=True)
    for stage, slot in SLOTS:
        assert_same_bits(state[f"{stage}@rest"][slot]["head"], saved[stage][slot]["head"])
        assert_same_bits(state[f"{stage}@rest"]["log_decay"], saved[stage]["log_decay"])
        assert f"{stage}@rest.{slot}" in report.kept and f"{stage}.{slot}" in report.dropped
    frozen = [row.parameters for row in report.rows if row.outcome == "dropped"]
    assert frozen == [("encoder",)] * 2
    # The head goes on as it would have without the encoder.
    _, whole = train(adamx.adam(0.1), 3, 5, *train(adamx.adam(0.1)))
    _, after = train(opt, 3, 5, train(adamx.adam(0.1))[0], state)
    for stage, slot in SLOTS:
        assert_same_bits(after[f"{stage}@rest"][slot]["head"], whole[stage][slot]["head"])


def test_unfreezing_midway_keeps_the_moments_of_the_head():
    params, saved = train(adamx.partition(HEAD))
    message = (
        r"scale_by_momentum\.mu, scale_by_rms\.nu of encoder are initialised but share the clock"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        state, report = adamx.restore_state(saved, adamx.adam(0.1), params)
    assert len(caught) == 1 and caught[0].filename == __file__
    for stage, slot in SLOTS:
        assert_same_bits(state[stage][slot]["head"], saved[f"{stage}@rest"][slot]["head"])
        assert_same_bits(state[stage]["log_decay"], saved[f"{stage}@rest"]["log_decay"])
        assert not any(map(np.any, jax.tree.leaves(state[stage][slot]["encoder"])))
    assert (
        str(report)
        == """\
stage              entry      outcome      recoded  saved as                parameters
count                         kept
scale_by_momentum  log_decay  kept                  scale_by_momentum@rest
scale_by_momentum  mu         initialised                                   encoder
scale_by_momentum  mu         kept                  scale_by_momentum@rest  head
scale_by_rms       log_decay  kept                  scale_by_rms@rest
scale_by_rms       nu         initialised                                   encoder
scale_by_rms       nu         kept                  scale_by_rms@rest       head"""
    )


def test_a_group_of_its_own_gives_what_is_unfrozen_a_clock_of_its_own():
    params, saved = train(adamx.partition(HEAD))
    opt = adamx.partition({"encoder": adamx.adam(0.1), "*": adamx.adam(0.1)})
    state, report = adamx.restore_state(saved, opt, params)
    assert set(report.initialised) == {
        f"{stage}@encoder.{entry}" for stage, slot in SLOTS for entry in (slot, "log_decay")
    }
    for stage, _ in SLOTS:
        assert_same_bits(state[f"{stage}@rest"], saved[f"{stage}@rest"])
    updates, _ = opt.update(at(0), state, params)  # debiased: a first step of α sign(g)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.1 * np.sign(g), rtol=1e-3),
        updates["encoder"],
        at(0)["encoder"],
    )


def test_groups_that_are_cut_otherwise_take_over_parameter_by_parameter():
    halves = adamx.partition({"encoder": adamx.adam(0.1), "*": adamx.adam(0.1)})
    kinds = adamx.partition({"kernel": adamx.adam(0.1), "*": adamx.adam(0.1)})
    saved = train(halves)[1]
    state, report = adamx.restore_state(saved, kinds, PARAMS, strict=True)
    whole, _ = adamx.restore_state(saved, adamx.adam(0.1), PARAMS, strict=True)
    assert report.dropped == ()
    assert_same_bits(whole, train(adamx.adam(0.1))[1])
    assert_same_bits(state, train(kinds)[1])
    assert_same_bits(adamx.restore_state(whole, halves, PARAMS, strict=True).state, saved)


@pytest.mark.parametrize("read", ["live", "msgpack", "Orbax"])
def test_groups_are_matched_in_what_a_checkpoint_gives_back(read, tmp_path):
    decayed = adamx.chain(
        adamx.scale_by_rms(), adamx.where("kernel", optax.trace(0.5)), adamx.where("!bias", OPT)
    )
    saved = train(decayed)[1]
    read = {
        "live": lambda: saved,
        "msgpack": lambda: serialization.msgpack_restore(serialization.to_bytes(saved)),
        "Orbax": lambda: through_orbax(saved, tmp_path),
    }[read]()
    assert_same_bits(adamx.restore_state(read, decayed, PARAMS, strict=True).state, saved)
    opt = adamx.chain(
        adamx.scale_by_rms(), adamx.where("head/kernel", optax.trace(0.5)), adamx.where("head", OPT)
    )
    with pytest.warns(UserWarning, match="of head/bias are initialised but share the clock"):
        state, _ = adamx.restore_state(read, opt, PARAMS)
    assert_same_bits(state["trace@head_kernel"].trace["head"], saved["trace@kernel"].trace["head"])
    ema = state["polyak_ema@head"]["ema"]
    assert_same_bits(ema["head"]["kernel"], saved["polyak_ema@not_bias"]["ema"]["head"]["kernel"])
    assert_same_bits(state["scale_by_rms"], saved["scale_by_rms"])


def test_the_second_of_a_name_in_a_group_is_matched_with_the_second():
    ball = adamx.scale_by_heavy_ball
    twice = adamx.chain(ball(0.5), ball(0.9))
    grouped = adamx.partition({"encoder": adamx.set_to_zero(), "*": twice})
    saved = train(grouped)[1]
    state, _ = adamx.restore_state(saved, twice, PARAMS)
    for name in ("scale_by_heavy_ball", "scale_by_heavy_ball_2"):
        kept = saved[name.replace("ball", "ball@rest", 1)]["trace"]["head"]
        assert_same_bits(state[name]["trace"]["head"], kept)
    numbered = adamx.where("head", twice)
    layers = {"layer_1": PARAMS["head"], "layer_2": PARAMS["head"]}
    numbered = adamx.partition({"layer_1": ball(0.5), "layer_2": ball(0.5)})
    saved = jax.tree.map(lambda x: x + 1, numbered.init(layers))
    state, _ = adamx.restore_state(saved, ball(0.5), layers, strict=True)
    assert_same_bits(
        state["scale_by_heavy_ball"]["trace"]["layer_2"],
        saved["scale_by_heavy_ball@layer_2"]["trace"]["layer_2"],
    )


def test_codecs_change_with_the_groups():
    stored = adamx.quantize_state(adamx.partition(HEAD), "int8", min_size=3)
    saved = train(stored)[1]
    with pytest.warns(UserWarning, match="of encoder are initialised"):
        state, report = adamx.restore_state(saved, adamx.adam(0.1), PARAMS)
    assert "int8 → float32" in {row.recoded for row in report.rows}
    kept = adamx.dequantize(saved, "nu")
    assert_same_bits(state["scale_by_rms"]["nu"]["head"], kept["head"])


def test_clocks_that_disagree_are_no_clock_for_both():
    opt = adamx.partition({"encoder": adamx.adam(0.1), "*": adamx.adam(0.1)})
    saved = train(opt)[1]
    later = train(opt, stop=4)[1]
    for stage, _ in SLOTS:
        saved[f"{stage}@encoder"] = later[f"{stage}@encoder"]
    with pytest.raises(StageError, match=r"clocks 'log_decay' differ.*separate groups"):
        adamx.restore_state(saved, adamx.adam(0.1), PARAMS)


def test_what_two_saved_stages_have_kept_is_not_guessed():
    saved = train(adamx.adam(0.1))[1]
    for stage, _ in SLOTS:
        saved[f"{stage}@a"] = saved[f"{stage}@b"] = saved.pop(stage)
    with pytest.raises(
        StageError,
        match=r"several saved stages have a 'mu'.*: scale_by_momentum@a, scale_by_momentum@b",
    ):
        adamx.restore_state(saved, adamx.adam(0.1), PARAMS)


def test_moments_are_not_lost_in_silence():
    saved = train(adamx.chain(adamx.scale_by_momentum(), adamx.scale_by_learning_rate(0.1)))[1]
    with pytest.warns(
        UserWarning, match=r"does not use scale_by_momentum\.mu, .* initialises .*heavy_ball\.trace"
    ):
        adamx.restore_state(saved, adamx.sgd(0.1, 0.9), PARAMS)
    with pytest.warns(UserWarning, match="saved values are lost: the chain does not use"):
        adamx.restore_state(adamx.adam(0.1).init(jnp.ones(2)), adamx.lion(0.1), jnp.ones(2))


def test_what_is_lost_is_not_called_moments_where_there_are_none():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    saved = adamx.chain(adamx.sgd(0.1), adamx.master_weights()).init(narrow)
    opt = adamx.chain(adamx.sgd(0.1), adamx.stochastic_rounding())
    with pytest.warns(UserWarning, match=r"does not use master_weights\.master") as told:
        adamx.restore_state(saved, opt, narrow)
    assert not any("moments" in str(x.message) for x in told)


@pytest.mark.parametrize("name", ["adam", "stored", "heavy_ball"])
def test_a_new_parameter_is_initialised_and_the_others_go_on(name):
    opt = {
        "adam": lambda: adamx.adam(0.1),
        "stored": lambda: adamx.quantize_state(adamx.adam(0.1), "int8", min_size=1),
        "heavy_ball": lambda: adamx.sgd(0.1, 0.9),
    }[name]()
    params, saved = train(opt)
    wider = params | {"extra": {"b": jnp.ones(2), "a": jnp.ones(3)}}
    if name == "heavy_ball":  # which has no clock
        state, report = adamx.restore_state(saved, opt, wider)
    else:
        with pytest.warns(UserWarning, match="of extra are initialised but share the clock"):
            state, report = adamx.restore_state(saved, opt, wider)
    fresh = opt.init(wider)
    assert jax.eval_shape(lambda x: x, state) == jax.eval_shape(lambda x: x, fresh)
    rows = {row.outcome for row in report.rows if row.parameters == ("extra",)}
    assert rows == {"initialised"}
    assert not report.dropped
    for stage, kept in saved.items():
        for slot, tree in kept.items() if stage != "count" else ():
            if isinstance(tree, dict):
                rest = {k: x for k, x in state[stage][slot].items() if k != "extra"}
                chex.assert_trees_all_equal(rest, tree)
                chex.assert_trees_all_equal(
                    state[stage][slot]["extra"], fresh[stage][slot]["extra"]
                )
            else:
                chex.assert_trees_all_equal(state[stage][slot], tree)
    with pytest.raises(StageError, match=r"\(extra\).*strict=True"):
        adamx.restore_state(saved, opt, wider, strict=True)


def test_a_renamed_parameter_is_not_taken_for_a_new_one():
    opt = adamx.adam(0.1)
    params, saved = train(opt)
    renamed = dict(params)
    renamed["another"] = renamed.pop(next(iter(params)))
    with pytest.raises(StageError, match=r"has no mu/another.*rename it in the saved state"):
        adamx.restore_state(saved, opt, renamed)


def test_strict_names_everything_that_would_start_anew():
    saved = train(adamx.partition(HEAD))[1]
    opt = adamx.chain(adamx.adam(0.1), adamx.polyak_ema())
    message = (
        r"no entry for scale_by_momentum\.mu \(encoder\), scale_by_rms\.nu \(encoder\), "
        r"polyak_ema\.ema, polyak_ema\.log_decay, and strict=True"
    )
    with pytest.raises(StageError, match=message):
        adamx.restore_state(saved, opt, PARAMS, strict=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_other_containers_in_a_state_point_to_restore_state(compiled):
    params = {"layers": (jnp.ones(3), [jnp.ones(2)])}
    opt = adamx.adam(0.1)
    state = opt.init(params)
    lists = jax.tree.map(
        lambda x: list(x) if isinstance(x, tuple) else x,
        state,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    read = serialization.msgpack_restore(serialization.to_bytes(state))
    update = jax.jit(opt.update) if compiled else opt.update
    for other in (lists, read):
        with pytest.raises(StageError, match=r"adamx\.restore_state\(state, opt, params\)"):
            update(params, other, params)
        update(params, adamx.restore_state(other, opt, params).state, params)
    with pytest.raises(StageError, match="Take gradients with respect to"):
        update(params, opt.init({"layers": (jnp.ones(3),)}), params)


# Readers know groups


def test_an_average_of_some_parameters_is_read_with_the_others():
    opt = adamx.chain(adamx.sgd(0.1), adamx.where("!bias", adamx.polyak_ema(0.5)))
    params, state = train(opt)
    kernels = [train(opt, stop=t)[0]["head"]["kernel"] for t in (1, 2, 3)]
    weights = 0.5 ** np.array([2, 1, 0])
    mean = np.tensordot(weights / weights.sum(), np.stack(kernels), 1)
    average = adamx.polyak_params(state)
    np.testing.assert_allclose(average["head"]["kernel"], mean, rtol=1e-5)
    assert average["head"]["bias"] is None
    filled = adamx.polyak_params(state, params=params)
    assert filled["head"]["bias"] is params["head"]["bias"]
    assert_same_bits(filled["head"]["kernel"], average["head"]["kernel"])
    with pytest.raises(StageError, match="the state belongs to other parameters: it has"):
        adamx.polyak_params(state, params={"head": params["head"]})


def test_averages_of_several_groups_are_one():
    ema = adamx.polyak_ema
    opt = adamx.chain(adamx.sgd(0.1), adamx.partition({"encoder": ema(0.5), "*": ema(0.9)}))
    state = train(opt)[1]
    both = adamx.polyak_params(state)
    for part, decay in (("encoder", 0.5), ("head", 0.9)):
        alone = train(adamx.chain(adamx.sgd(0.1), ema(decay)))[1]
        assert_same_bits(both[part], adamx.polyak_params(alone)[part])
    only = adamx.polyak_params(state, "polyak_ema@rest")
    assert only["encoder"] == {"kernel": None, "bias": None}
    twice = adamx.chain(opt, adamx.where("head", ema(0.5)))
    with pytest.raises(ValueError, match=r"polyak_ema@head and polyak_ema@rest keep the same"):
        adamx.polyak_params(train(twice)[1])


def test_schedule_free_beside_a_frozen_backbone():
    free = adamx.schedule_free_adamw(0.1)
    opt = adamx.partition({"encoder": adamx.set_to_zero(), "*": free})
    params, state = train(opt)
    x = adamx.eval_params(state, params)
    alone, inner = train(free, params={"encoder": PARAMS["encoder"], "head": PARAMS["head"]})
    expected = adamx.eval_params(inner, alone)
    assert_same_bits(x["encoder"], PARAMS["encoder"])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), x["head"], expected["head"]
    )


def test_schedule_free_in_groups_of_other_rates():
    rates = {"encoder": 0.1, "*": 0.3}
    opt = adamx.partition({k: adamx.schedule_free_adamw(r, b1=r) for k, r in rates.items()})
    params, state = train(opt)
    x = adamx.eval_params(state, params)
    for part, rate in (("encoder", 0.1), ("head", 0.3)):
        theta, own = train(adamx.schedule_free_adamw(rate, b1=rate))
        expected = adamx.eval_params(own, theta)[part]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), x[part], expected)


def test_a_slot_of_all_groups_is_decoded_at_once():
    opt = adamx.partition(
        {"encoder": adamx.adam(0.1), "*": adamx.quantize_state(adamx.adam(0.1), "fp8")}
    )
    state = train(opt)[1]
    plain = train(adamx.adam(0.1))[1]
    nu = adamx.dequantize(state, "nu")
    assert_same_bits(nu["encoder"], plain["scale_by_rms"]["nu"]["encoder"])
    assert_same_bits(adamx.dequantize(state, "scale_by_rms.nu"), nu)
    assert adamx.dequantize(state, "scale_by_rms@rest.nu")["encoder"]["bias"] is None
    assert_same_bits(
        adamx.dequantize(train(adamx.partition(HEAD))[1], "nu", params=PARAMS)["encoder"],
        PARAMS["encoder"],
    )


def test_factored_slots_of_groups_are_decoded_at_once():
    """Of one parameter a slot keeps several arrays, of another none."""
    opt = adamx.partition({"encoder": adamx.adafactor(0.1), "*": adamx.adafactor(0.1)})
    whole, state = train(adamx.adafactor(0.1))[1], train(opt)[1]
    (stage,) = (name for name in whole if name.startswith("scale_by_factored"))
    for slot in whole[stage]:
        if isinstance(whole[stage][slot], dict):
            assert_same_bits(adamx.dequantize(state, slot), adamx.dequantize(whole, slot))


def test_slow_and_master_parameters_are_read_by_name():
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3)}
    opt = adamx.chain(adamx.sgd(1e-3), adamx.lookahead(2), adamx.master_weights())
    _, state = opt.update(jax.tree.map(jnp.ones_like, params), opt.init(params), params)
    assert_same_bits(adamx.dequantize(state, "slow"), state["lookahead"]["slow"])
    master = adamx.dequantize(state, "master", params=params)
    assert master["b"] is params["b"] and master["w"].dtype == jnp.float32
    np.testing.assert_allclose(master["w"], 0.999, rtol=1e-6)


# Steps that were thrown away


def nonfinite_grads():
    return jax.tree.map(lambda g: g.at[0].set(jnp.nan), at(1))


GATES = {
    "apply_if_finite": lambda opt: optax.apply_if_finite(opt, 5),
    "outside a chain": lambda opt: optax.apply_if_finite(optax.chain(optax.clip(9.0), opt), 5),
    "MultiSteps": lambda opt: optax.MultiSteps(opt, 1, should_skip_update_fn=optax.skip_not_finite),
}
WATCHED = adamx.chain(adamx.adam(0.1), adamx.watch(groups={"kernels": "kernel"}))


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_was_thrown_away_is_not_reported_as_the_one_before(gate, compiled):
    tx = GATES[gate](WATCHED)
    read = jax.jit(adamx.metrics) if compiled else adamx.metrics
    step = jax.jit(tx.update)
    seen = []
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(PARAMS)
        for grads in (at(0), nonfinite_grads(), at(2)):
            _, state = step(grads, state, PARAMS)
            seen.append(read(state))
    plain = [adamx.metrics(train(WATCHED, stop=1)[1])]
    assert [float(x["skipped"]) for x in seen] == [0, 1, 0]
    for key, value in plain[0].items():
        np.testing.assert_allclose(seen[0][key], value, rtol=1e-5)
    assert all(np.isnan(value) for key, value in seen[1].items() if key != "skipped")
    assert seen[2]["nonfinite"] == 0 and np.isfinite(seen[2]["grad_rms"])
    assert seen[0].keys() == seen[1].keys() == seen[2].keys()


def test_a_bad_step_that_was_let_through_is_reported_as_it_was():
    tx = optax.apply_if_finite(WATCHED, 1)
    state, seen = tx.init(PARAMS), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            _, state = tx.update(nonfinite_grads(), state, PARAMS)
            seen.append(adamx.metrics(state))
    assert np.isnan(seen[0]["nonfinite"]) and seen[0]["skipped"] == 1
    assert seen[1]["nonfinite"] > 0 and seen[1]["skipped"] == 0


def test_without_a_gate_nothing_is_said_of_skipping():
    assert "skipped" not in adamx.metrics(train(WATCHED)[1])
    both = adamx.chain(adamx.watch(), WATCHED)
    tx = optax.apply_if_finite(both, 5)
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(nonfinite_grads(), tx.init(PARAMS), PARAMS)
    seen = adamx.metrics(state)
    assert seen["watch/skipped"] == seen["watch_2/skipped"] == 1
    assert np.isnan(seen["watch_2/kernels/nonfinite"])


@pytest.mark.parametrize("jit", [False, True])
def test_a_chain_inside_a_link_of_a_chain_is_read(jit):
    inner = adamx.chain(adamx.sgd(0.5), adamx.polyak_ema(0.5), adamx.watch())
    opt = adamx.chain(optax.apply_if_finite(inner, 5))
    theta = {"count": jnp.ones(1), "w": jnp.ones(1)}  # a parameter may be called like a clock
    grads = jax.tree.map(jnp.ones_like, theta)
    state = opt.init(theta)
    update = jax.jit(opt.update) if jit else opt.update
    _, state = update(grads, state, theta)
    seen = adamx.metrics(state)
    np.testing.assert_allclose(seen["update_rms"], 0.5)
    assert (seen["skipped"], seen["nonfinite"]) == (0, 0)
    np.testing.assert_allclose(adamx.polyak_params(state)["w"], [0.5])
    _, state = update({**grads, "w": jnp.array([np.nan])}, state, theta)
    assert adamx.metrics(state)["skipped"] == 1
    plain = serialization.msgpack_restore(serialization.to_bytes(state))
    assert adamx.metrics(plain)["skipped"] == 1


def test_one_name_in_two_states_is_told_by_their_places():
    averaged = adamx.chain(adamx.adam(0.1), adamx.polyak_ema())
    opt = optax.multi_transform({"x": averaged, "y": averaged}, {"a": "x", "b": "y"})
    state = opt.init({"a": jnp.ones(1), "b": jnp.ones(1)})
    places = r"2 stages named 'polyak_ema', .*\['x'\].*\['y'\].*pass one of these states"
    with pytest.raises(ValueError, match=places):
        adamx.polyak_params(state)
