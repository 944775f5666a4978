"""Eight devices: shards inside shard_map, meshes with automatic and explicit axes, placements."""

import contextlib
import functools
import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx.engine import run as engine
from adamx.numerics import random
from catalog import OPTIMISERS
from test_docs import DOCS, run_all

readings = sys.modules["adamx.wrappers.watch"]._readings

needs_eight_devices = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="run by test_with_eight_devices in a process of its own"
)


@pytest.mark.slow
def test_with_eight_devices():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # XLA may run a collective inside of a `cond` beside one outside, each on a thread for each
        # device. It has no more threads than devices, unless this says so, and then waits forever.
        "NPROC": "32",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "not with_eight"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


RANDOM = np.random.default_rng(0)
PARAMS = {
    "w": jnp.asarray(RANDOM.normal(size=(8, 16)), jnp.float32),
    "v": jnp.asarray(RANDOM.normal(size=8), jnp.float32),
    "b": jnp.asarray(RANDOM.normal(size=3), jnp.float32),
}
GRADS = [
    jax.tree.map(lambda x: jnp.asarray(RANDOM.normal(size=x.shape), jnp.float32), PARAMS)
    for _ in range(3)
]
RATE = 0.05


def training(opt, *, metrics=False):
    """A training of some steps: parameters and gradients to parameters, or metrics."""

    def train(params, *grads):
        state = opt.init(params)
        for grad in grads:
            updates, state = opt.update(grad, state, params)
            params = adamx.apply_updates(params, updates)
        return adamx.metrics(state) if metrics else params

    return train


def assert_close(found, expected, tol=1e-4):
    """Equal up to a part of a step."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=tol * RATE)


# Shards inside shard_map

ROWS = {"w": P("x"), "v": P("x"), "b": P()}
COLUMNS = {"w": P(None, "x"), "v": P(), "b": P()}
REFUSED = {
    "adafactor": "its reach is a whole array",
    "adam_mini": "sums an array along axis",
    "adaptive_clip_of_adam": "sums an array along axis",
}


def in_shards(function, specs, out_specs, **checks):
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, **checks)
    return jax.jit(mapped)


@functools.cache
def whole(name):
    return jax.jit(training(OPTIMISERS[name](RATE)))(PARAMS, *GRADS)


SUMS = ["lamb", "lars", "novograd", "prodigy", "clipped", "cautious_adamw", "stableadamw"]


@needs_eight_devices
@pytest.mark.parametrize("name", [*SUMS, "adamw", *REFUSED])
@pytest.mark.parametrize("specs", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_shards_take_the_steps_of_the_whole_array(name, specs):
    """Norms and sums are those of whole arrays: a local norm of LAMB would be 20 % off."""
    given = (specs,) * (1 + len(GRADS))
    sharded = in_shards(training(OPTIMISERS[name](RATE)), given, specs)
    if name in REFUSED:
        with pytest.raises(adamx.StageError, match=REFUSED[name]):
            sharded.lower(PARAMS, *GRADS)
        return
    assert_close(sharded(PARAMS, *GRADS), whole(name))


@needs_eight_devices
@pytest.mark.parametrize("checked", [True, False])
def test_all_devices_skip_a_step_if_one_shard_is_not_finite(checked):
    """They must decide alike, or one of them would wait for the sums of the others for ever."""
    opt = adamx.skip_nonfinite(adamx.accumulate(adamx.lamb(RATE), 2))
    opt = opt if checked else adamx.across("x", opt, selector=("w", "v"))
    broken = {**GRADS[0], "w": GRADS[0]["w"].at[7, 3].set(jnp.nan)}
    rows = (GRADS[0], broken, GRADS[1])
    given = (ROWS,) * (1 + len(rows))
    expected = jax.jit(training(opt))(PARAMS, GRADS[0], GRADS[1])
    found = in_shards(training(opt), given, ROWS, check_vma=checked)(PARAMS, *rows)
    assert_close(found, expected)


@needs_eight_devices
@pytest.mark.parametrize("name", ["lamb", "clipped", "prodigy"])
def test_across_says_what_unchecked_types_do_not(name):
    given = (ROWS,) * (1 + len(GRADS))
    named = adamx.across("x", OPTIMISERS[name](RATE), selector=("w", "v"))
    sharded = in_shards(training(named), given, ROWS, check_vma=False)
    assert_close(sharded(PARAMS, *GRADS), whole(name))
    assert_close(jax.jit(training(named))(PARAMS, *GRADS), whole(name))  # outside: no change


@needs_eight_devices
@pytest.mark.parametrize("every", [1, 2])
def test_metrics_of_shards_are_those_of_whole_arrays(every):
    opt = adamx.chain(adamx.adam(RATE), adamx.watch({"v": "v"}, every=every))
    bad = [{**grad, "w": grad["w"].at[0, :3].set(jnp.nan)} for grad in GRADS]
    train, given = training(opt, metrics=True), (ROWS,) * (1 + len(GRADS))
    found = in_shards(train, given, P())(PARAMS, *bad)
    expected = jax.jit(train)(PARAMS, *bad)
    assert expected["nonfinite"] == 3
    assert_close(found, expected)


@needs_eight_devices
def test_a_global_clip_takes_one_collective():
    given = (ROWS,) * 2
    step = in_shards(training(adamx.chain(adamx.clip_by_global_norm(1.0))), given, ROWS)
    assert step.lower(PARAMS, GRADS[0]).as_text().count("all_reduce") == 1


@needs_eight_devices
def test_shards_get_different_random_bits_and_copies_the_same():
    opt = adamx.quantize_state(adamx.scale_by_momentum(), "bf16", min_size=2)
    params = {"divided": jnp.zeros((4, 64)), "copied": jnp.zeros(64)}
    specs = {"divided": P("x"), "copied": P()}
    ones = jax.tree.map(lambda x: jnp.full(x.shape, 1.2345), params)

    def mu(params, ones):
        state = opt.update(ones, opt.init(params), params)[1]
        return jax.tree.map(
            lambda x: x["@bf16"].astype(jnp.float32),
            state["scale_by_momentum"]["mu"],
            is_leaf=lambda x: isinstance(x, dict) and "@bf16" in x,
        )

    found = in_shards(mu, (specs, specs), specs)(params, ones)  # checks that copies are equal
    rows = np.asarray(found["divided"])
    assert all(np.any(rows[i] != rows[j]) for i in range(4) for j in range(i))


@needs_eight_devices
def test_a_shard_below_min_size_is_quantized_as_the_whole_array_is():
    opt = adamx.quantize_state(adamx.adam(RATE), "int8", min_size=100)
    train = training(opt)
    specs = ROWS
    found = in_shards(train, (specs,) * (1 + len(GRADS)), specs)(PARAMS, *GRADS)
    assert_close(found, jax.jit(train)(PARAMS, *GRADS), tol=0.5)

    def step(params, state, grad):  # a state from outside
        return opt.update(grad, state, params)[0]

    of_state = jax.tree.map(
        lambda x: P("x") if x.ndim and x.shape[0] == 8 else P(), opt.init(PARAMS)
    )
    in_shards(step, (specs, of_state, specs), specs)(PARAMS, opt.init(PARAMS), GRADS[0])


@needs_eight_devices
def test_without_parameters_slots_tell_what_is_divided_or_it_is_an_error():
    def first(opt):
        return lambda params, grads: opt.update(grads, opt.init(params))[0]

    opt = adamx.chain(adamx.adam(RATE), adamx.clip_by_global_norm(1e-3))
    expected = jax.jit(first(opt))(PARAMS, GRADS[0])
    assert_close(in_shards(first(opt), (ROWS, ROWS), ROWS)(PARAMS, GRADS[0]), expected)
    opt = adamx.chain(adamx.clip_by_global_norm(0.1), adamx.sgd(1.0))
    with pytest.raises(adamx.StageError, match="called without parameters, and no slot tells"):
        in_shards(first(opt), (ROWS, ROWS), ROWS).lower(PARAMS, GRADS[0])


@needs_eight_devices
def test_an_ensemble_on_several_devices_is_not_one_array():
    opt = adamx.across((), adamx.lamb(RATE))
    stack = jax.tree.map(lambda *x: jnp.stack(x), *GRADS, GRADS[0])
    each = in_shards(jax.vmap(training(opt)), (P("x"), P("x")), P("x"))(stack, stack)
    assert_close(each, jax.vmap(training(opt))(stack, stack))


def test_vmap_over_shards_with_a_name():
    opt = adamx.across("x", adamx.lamb(RATE))
    params, grads = ({"w": x["w"]} for x in (PARAMS, GRADS[0]))
    halves = [{"w": jnp.stack(jnp.split(x["w"], 2))} for x in (params, grads)]
    found = jax.vmap(training(opt), axis_name="x")(*halves)
    assert_close(found["w"].reshape(8, 16), training(adamx.lamb(RATE))(params, grads)["w"])


# Meshes outside shard_map

MESHES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
LARGE = {
    "w": jnp.asarray(RANDOM.normal(size=(16, 96)), jnp.float32),
    "v": jnp.asarray(RANDOM.normal(size=(32, 40)), jnp.float32),
    "b": jnp.asarray(RANDOM.normal(size=8), jnp.float32),
}
SLOPES = [
    jax.tree.map(lambda x: jnp.asarray(RANDOM.normal(size=x.shape), jnp.float32), LARGE)
    for _ in range(3)
]


def nearest(opt):
    return adamx.quantize_state(opt, adamx.int8(rounding="nearest"), min_size=2)


ON_MESHES = {
    **{name: OPTIMISERS[name] for name in ("adamw", "lamb", "adafactor", "prodigy", "adam_mini")},
    "int8": lambda rate: nearest(adamx.adamw(rate)),
    "muon": lambda rate: adamx.muon(rate, rest=adamx.adamw(rate)),
    "per layer": lambda rate: adamx.per_layer("w", adamx.lamb(rate)),
    "watch": lambda rate: adamx.chain(adamx.adam(rate), adamx.watch()),
    "optax": lambda rate: adamx.chain(optax.clip(0.5), adamx.adam(rate)),
    "gates": lambda rate: adamx.skip_nonfinite(adamx.accumulate(adamx.lamb(rate), 2)),
}


@contextlib.contextmanager
def mesh_of(kind, shape=(2, 2, 2), names=("x", "y", "z")):
    mesh = jax.make_mesh(shape, names, axis_types=(MESHES[kind],) * len(names))
    with jax.set_mesh(mesh):
        yield mesh


def over(mesh, tree, specs):
    return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}


def stepped(opt, params, state, jit=jax.jit):
    """The last parameters and the states of all steps."""

    def step(params, state, grad):
        updates, state = opt.update(grad, state, params)
        return adamx.apply_updates(params, updates), state

    step, states = jit(step), [state]
    for grad in SLOPES:
        grad = {k: jax.device_put(x, params[k].sharding) for k, x in grad.items()}
        params, state = step(params, state, grad)
        states.append(state)
    return params, states, step


@functools.cache
def alone(opt):
    """On one device."""
    return jax.device_get(stepped(opt, LARGE, opt.init(LARGE))[0])


@needs_eight_devices
@pytest.mark.parametrize("name", ON_MESHES)
@pytest.mark.parametrize("kind", MESHES)
def test_a_mesh_changes_no_step_and_no_sharding(name, kind):
    """FSDP along one axis, tensor parallel along another one."""
    opt = ON_MESHES[name](RATE)
    specs = {"w": P("x", "y"), "v": P("y", ("x", "z")), "b": P(None)}
    expected = alone(opt)
    with mesh_of(kind) as mesh:
        params = over(mesh, LARGE, specs)
        state = opt.init(params)
        found, (first, *_, last), step = stepped(opt, params, state)
        assert_close(found, expected, tol=1e-3)
        if kind == "explicit":  # types say it, so that no step compiles again
            assert [x.sharding for x in jax.tree.leaves(first)] == [
                x.sharding for x in jax.tree.leaves(last)
            ]
            assert step._cache_size() == 1
            eager = stepped(opt, params, state, jit=lambda step: step)[0]
            assert_close(eager, found, tol=1e-3)


CUT = {"rows": P("x"), "columns": P(None, "x")}


@needs_eight_devices
@pytest.mark.parametrize("codec", [adamx.int8, adamx.fp8])
@pytest.mark.parametrize("spec", CUT)
@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("row", [1600, 4096, 8 * 37, 8 * 64])
def test_no_block_is_gathered(kind, spec, codec, row):
    """Where a shard would cut a block of 64, the blocks are shorter, on every mesh."""
    opt = adamx.quantize_state(adamx.adamw(RATE), codec(), min_size=2)
    with mesh_of(kind, (8,), ("x",)) as mesh:
        params = jax.device_put(jnp.ones((16, row)), NamedSharding(mesh, CUT[spec]))
        state = jax.jit(opt.init)(params)
        compiled = jax.jit(opt.update).lower(params, state, params).compile()
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())


@needs_eight_devices
@pytest.mark.parametrize("name", ["muon", "int8", "adamw"])
def test_the_mesh_of_explicit_types_needs_not_be_set(name):
    opt = ON_MESHES[name](RATE)
    expected = alone(opt)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    params = over(mesh, LARGE, {"w": P("x"), "v": P(None, "y"), "b": P()})
    assert_close(stepped(opt, params, opt.init(params))[0], expected, tol=1e-3)
    placed = adamx.place(opt, NamedSharding(mesh, P("y")), min_size=64)
    params = jax.device_put(LARGE, NamedSharding(mesh, P()))
    state = placed.init(params)
    assert adamx.memory_usage(state).device_bytes < 0.8 * adamx.memory_usage(state).bytes
    assert_close(stepped(placed, params, state)[0], expected, tol=1e-3)


@needs_eight_devices
def test_shard_map_over_one_axis_of_an_explicit_mesh():
    opt = adamx.lamb(RATE)
    with mesh_of("explicit", (2, 4), ("x", "y")):
        params, grads = (jax.device_put(x, P()) for x in (PARAMS, GRADS[0]))
        run = jax.shard_map(training(opt), in_specs=P(), out_specs=P(), axis_names={"x"})
        found = jax.jit(run)(params, grads)
    assert_close(found, training(opt)(PARAMS, GRADS[0]))


@needs_eight_devices
def test_kernels_run_on_the_shards_of_shard_map(monkeypatch):
    """Each shard gets the bits that it gets without kernels."""
    opt = adamx.quantize_state(adamx.adamw(RATE), "int8")
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)}

    def two_steps(params):
        after, state = opt.step(params, opt.init(params), params)
        return opt.step(after, state, after)[0]

    def mapped(params):
        specs = {"in_specs": P("x", "y"), "out_specs": P("x", "y")}
        # JAX's interpreter of Pallas does not know along which axes values differ.
        return jax.shard_map(two_steps, mesh=mesh, **specs, check_vma=False)(params)

    found = {}
    with mesh_of("automatic", (4, 2), ("x", "y")) as mesh:
        for kind, count in (("off", 0), ("interpret", 2)):
            monkeypatch.setenv("ADAMX_KERNELS", kind)
            jax.clear_caches()
            assert str(jax.make_jaxpr(mapped)(params)).count("pallas_call[") == count
            found[kind] = jax.jit(mapped)(params)
    assert_close(found["interpret"], found["off"])


@needs_eight_devices
def test_a_shard_below_the_least_size_is_quantized_as_its_array(monkeypatch):
    """The shard has 640 elements; arrays of fewer than 4096 are not quantized."""
    opt, x = adamx.quantize_state(adamx.adamw(RATE), "int8"), jnp.cos(jnp.arange(5120.0))

    def step(x):
        return opt.step(x, opt.init(x), x)[0]

    found = {}
    with mesh_of("automatic", (8,), ("x",)) as mesh:
        for kind in ("off", "auto"):
            monkeypatch.setenv("ADAMX_KERNELS", kind)
            jax.clear_caches()
            run = jax.shard_map(step, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
            found[kind] = jax.jit(run)(x)
    assert_close(found["auto"], found["off"])


def test_init_of_captured_parameters_inside_jit():
    params = jax.device_put({"w": jnp.ones(4)}, jax.devices()[0])
    state = jax.jit(lambda rate: adamx.adam(rate).init(params))(0.1)
    jax.tree.map(np.testing.assert_array_equal, state, adamx.adam(0.1).init(params))


@needs_eight_devices
@pytest.mark.parametrize("kind", MESHES)
def test_nnx_trains_quantized_on_a_mesh(kind):
    with mesh_of(kind, (8,), ("x",)):
        model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        opt = adamx.place(nearest(adamx.adamw(RATE)), "x", min_size=64)
        optimizer = nnx.Optimizer(model, opt, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((4, 64))) ** 2))(model)
            optimizer.update(model, grads)

        step(model, optimizer)
        assert adamx.memory_usage(optimizer).device_bytes < adamx.memory_usage(optimizer).bytes


# Placements

PLACED = {
    "adamw": lambda rate: adamx.adamw(rate),
    "int8": lambda rate: nearest(adamx.adamw(rate)),
    "adafactor": lambda rate: adamx.adafactor(rate),
    "muon": lambda rate: adamx.muon(rate, rest=adamx.adamw(rate)),
    "lamb": lambda rate: adamx.lamb(rate),
    "averaged": lambda rate: adamx.chain(adamx.adam(rate), adamx.polyak_ema(0.9)),
}
WHERES = {
    "zero": "z",
    "two axes": ("y", "z"),
    "host": "host",
    "function": lambda path, shape: P(None, "z") if path == "v" else None,
}


@needs_eight_devices
@pytest.mark.parametrize(
    ("name", "where", "kind"),
    [
        *((name, "zero", kind) for name in PLACED for kind in MESHES),
        *(("int8", where, kind) for where in WHERES for kind in MESHES),
    ],
)
def test_a_placement_changes_no_step_and_stays(name, where, kind):
    opt = PLACED[name](RATE)
    placed, expected = adamx.place(opt, WHERES[where], min_size=64), alone(opt)
    with mesh_of(kind) as mesh:
        params = over(mesh, LARGE, dict.fromkeys(LARGE, P()))
        for init in (placed.init, jax.jit(placed.init)):
            state = init(params)
            found, (first, *_, last), _ = stepped(placed, params, state)
            assert_close(found, expected, tol=1e-3)
            for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
                assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
                assert x.sharding.memory_kind == y.sharding.memory_kind
            for k, x in params.items():
                assert found[k].sharding.is_equivalent_to(x.sharding, x.ndim)
            usage = adamx.memory_usage(state)
            shapes = adamx.state_shardings(placed, params)
            assert adamx.memory_usage(shapes).device_bytes == usage.device_bytes
            assert usage.device_bytes < 0.8 * usage.bytes


@needs_eight_devices
@pytest.mark.parametrize("kind", MESHES)
def test_a_placed_step_gathers_the_update_once_and_no_state(kind):
    opt = adamx.place(adamx.quantize_state(adamx.adamw(RATE), "int8"), "x")
    with mesh_of(kind, (8,), ("x",)):
        params = jax.device_put(jnp.ones((512, 256)), P())
        batch = jax.device_put(jnp.ones((64, 512)), P("x"))
        state = jax.jit(opt.init)(params)

        def step(params, state, batch):
            grads = jax.grad(lambda w: jnp.mean((batch @ w) ** 2))(params)
            updates, state = opt.update(grads, state, params)
            return adamx.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    gathered = re.findall(r"= (\S+) all-gather\(", compiled.as_text())
    assert [x.split("{")[0] for x in gathered] == ["f32[512,256]"]


@needs_eight_devices
def test_what_can_not_be_placed():
    opt = adamx.place(adamx.adam(RATE), "x", min_size=2)
    for small in (opt, adamx.place(adamx.adam(RATE), "x")):  # none of the slots is placed
        with pytest.raises(adamx.StageError, match="no mesh is set"):
            small.init(LARGE)
    with mesh_of("automatic", (8,), ("x",)) as mesh:
        with pytest.raises(adamx.StageError, match="'data', but the mesh has the axes 'x'"):
            adamx.place(adamx.adam(RATE), "data", min_size=2).init(LARGE)
        divided = jax.device_put(LARGE["w"], NamedSharding(mesh, P("x")))
        assert opt.init(divided)["scale_by_rms"]["nu"].sharding.spec[0] == "x"
    with mesh_of("automatic") as mesh:
        divided = jax.device_put(LARGE["w"], NamedSharding(mesh, P("y")))
        with pytest.raises(adamx.StageError, match="divided there along 'y' already"):
            adamx.place(adamx.adam(RATE), "z", min_size=2).init(divided)
    with mesh_of("automatic", (8,), ("x",)) as mesh:
        inside = jax.shard_map(opt.init, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
        with pytest.raises(adamx.StageError, match="inside of a shard_map over it"):
            inside(LARGE["w"])
    optax_inside = adamx.chain(optax.adam(RATE))
    with pytest.raises(adamx.StageError, match="can't move the state of"):
        adamx.place(optax_inside, "host", min_size=2).init(LARGE)
    named = pytest.raises(adamx.StageError, match="but a mesh axis has this name, too")
    with mesh_of("automatic", (8,), ("host",)), named:
        adamx.place(adamx.adam(RATE), "host", min_size=2).init(LARGE)
    bad = adamx.place(adamx.adam(RATE), lambda path, shape: 3, min_size=2)
    with pytest.raises(adamx.StageError, match=r"function of place.* returned 3"):
        bad.init(LARGE)
    with pytest.raises(adamx.StageError, match="each entry is the name of a mesh axis"):
        adamx.place(adamx.adam(RATE), lambda path, shape: P(3), min_size=2).init(LARGE)
    with mesh_of("automatic", (8,), ("x",)) as mesh:
        divided = jax.device_put(LARGE["w"], NamedSharding(mesh, P(None, "x")))
        assert opt.init(divided)["scale_by_rms"]["nu"].sharding.spec == P(None, "x")
        by_rows = adamx.place(adamx.adam(RATE), lambda path, shape: P("x", None), min_size=2)
        with pytest.raises(adamx.StageError, match="along which axis 1 of the parameter is"):
            by_rows.init(divided)
    with pytest.raises(ValueError, match="min_size must be a whole number"):
        adamx.place(adamx.adam(RATE), "x", min_size=0)
    on_host = NamedSharding(mesh, P("x"), memory_kind="pinned_host")
    for where in (None, 3, ("x", 1), ("x", "x"), mesh, dict, on_host):
        with pytest.raises(TypeError, match=r"place\(\) takes "):
            adamx.place(adamx.adam(RATE), where)


def test_a_placed_optimiser_can_be_written():
    for where in ("data", ("x", "y"), "host"):
        opt = adamx.place(adamx.adam(RATE), where, min_size=5)
        assert adamx.from_config(adamx.to_config(opt)) == opt
        assert eval(repr(opt), vars(adamx)) == opt
    assert repr(adamx.describe_partition(opt, LARGE)["v"]) == repr(opt)
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    made = [adamx.place(adamx.adam(RATE), NamedSharding(mesh, P("x"))) for _ in range(2)]
    assert made[0] == made[1]
    with pytest.raises(TypeError, match="can't be written as JSON"):
        adamx.to_config(made[0])


@needs_eight_devices
@pytest.mark.parametrize("kind", MESHES)
def test_a_state_is_restored_in_another_placement(kind):
    """From one device to every placement, from parameters and from their shapes, and back."""
    saved = jax.device_get(stepped(adamx.adam(RATE), LARGE, adamx.adam(RATE).init(LARGE))[1][-1])
    opt = nearest(adamx.adam(RATE))
    encoded, _ = adamx.restore_state(saved, opt, LARGE)
    with mesh_of(kind) as mesh:
        whole = NamedSharding(mesh, P())
        params = jax.device_put(LARGE, whole)
        for like in (params, jax.tree.map(lambda x: shaped(x, whole), LARGE)):
            for where in ("z", "host"):
                placed = adamx.place(opt, where, min_size=64)
                state, _ = adamx.restore_state(saved, placed, like)
                made = placed.init(params)
                for x, y, z in zip(*map(jax.tree.leaves, (state, made, encoded)), strict=True):
                    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
                    assert x.sharding.memory_kind == y.sharding.memory_kind
                    np.testing.assert_array_equal(np.asarray(x), np.asarray(z))
                back, _ = adamx.restore_state(state, opt, LARGE)
                jax.tree.map(np.testing.assert_array_equal, back, encoded)


def test_what_is_on_the_host_is_read():
    opt = adamx.place(adamx.schedule_free_adamw(RATE), "host", min_size=2)
    state = opt.init(LARGE)
    jax.tree.map(np.testing.assert_array_equal, adamx.eval_params(state, LARGE), LARGE)
    opt = adamx.place(nearest(adamx.adamw(RATE)), "host", min_size=2)
    for read in (adamx.dequantize, jax.jit(adamx.dequantize, static_argnums=1)):
        assert jax.tree.leaves(read(opt.init(LARGE), "nu"))[0].sharding.memory_kind == "device"


@needs_eight_devices
@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("average", [adamx.polyak_ema, adamx.tail_average, adamx.primal_average])
def test_what_is_divided_otherwise_than_the_parameters_is_evaluated_as_they_are(kind, average):
    opt = adamx.chain(adamx.sgd(RATE), average())
    updates, state = opt.update(LARGE, opt.init(LARGE), LARGE)
    expected = adamx.eval_params(state, adamx.apply_updates(LARGE, updates))
    with mesh_of(kind) as mesh:
        params = jax.device_put(LARGE, NamedSharding(mesh, P()))
        placed = adamx.place(opt, "z", min_size=64)
        updates, state = placed.update(params, placed.init(params), params)
        params = adamx.apply_updates(params, updates)
        found = adamx.eval_params(state, params)
    for x, y, theta in zip(*map(jax.tree.leaves, (found, expected, params)), strict=True):
        np.testing.assert_allclose(np.asarray(x), y, rtol=1e-6)
        assert x.sharding.is_equivalent_to(theta.sharding, x.ndim)


def shaped(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@needs_eight_devices
def test_matrices_are_divided_over_the_mesh_and_no_product_needs_a_collective():
    params = {f"w{i}": jnp.asarray(RANDOM.normal(size=(64, 64)), jnp.float32) for i in range(12)}
    opt = adamx.muon(RATE)

    def step(params, state):
        updates, state = opt.update(params, state, params)
        return adamx.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=1)
    alone = step.lower(params, opt.init(params)).compile()
    expected = alone(params, opt.init(params))[0]
    for kind, spec in itertools.product(MESHES, (P(), P("x"), P(None, "x"))):
        with mesh_of(kind, (8,), ("x",)) as mesh:
            own = jax.device_put(params, NamedSharding(mesh, spec))
            state = jax.jit(opt.init)(own)
            compiled = step.lower(own, state).compile()
            assert_close(compiled(own, state)[0], expected, tol=1e-5)
        found = Counter(re.findall(r" (all-\w+(?:-\w+)?|collective-permute)\(", compiled.as_text()))
        assert found == ({"all-gather": 1} if spec == P() else {"all-to-all": 2}), (kind, spec)
        if spec == P():
            assert compiled.cost_analysis()["flops"] < 0.25 * alone.cost_analysis()["flops"]


def far_from_singular(shape):
    """Random matrices whose singular values lie apart, so that all their vectors are determined."""
    u, _, v = np.linalg.svd(RANDOM.normal(size=shape))
    return jnp.asarray(u * np.linspace(1, 2, shape[-1]) @ v, jnp.float32)


DECOMPOSED = {
    "soap": lambda: adamx.soap(RATE, every=2),
    "shampoo": lambda: adamx.shampoo(RATE, every=2),
    "galore": lambda: adamx.galore(RATE, rank=4, every=2),
    "int8": lambda: nearest(adamx.soap(RATE, every=2)),
    "placed": lambda: adamx.place(adamx.soap(RATE, every=2), "x", min_size=2),
    "layers": lambda: adamx.per_layer("*", adamx.soap(RATE, every=2)),
}


@needs_eight_devices
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "automatic") for name in DECOMPOSED), ("soap", "explicit")]
)
def test_decompositions_are_divided_over_the_mesh(name, kind):
    shape, count = ((4, 16, 16), 4) if name == "layers" else ((16, 16), 16)
    params = {f"w{i}": far_from_singular(shape) for i in range(count)}
    grads = [{k: far_from_singular(shape) for k in params} for _ in range(4)]

    def run(opt, params, grads):
        state = jax.jit(opt.init)(params)
        places = jax.tree.map(lambda x: x.sharding, (params, state))
        step = jax.jit(opt.update, out_shardings=places).lower(params, state, params).compile()
        for grad in grads:
            updates, state = step(grad, state, params)
        return updates, step.as_text()

    expected, _ = run(DECOMPOSED["soap" if name == "placed" else name](), params, grads)
    spec = {"placed": P(), "layers": P(None, "x")}.get(name, P("x"))
    with mesh_of(kind, (8,), ("x",)) as mesh:
        own = jax.device_put((params, grads), NamedSharding(mesh, spec))
        found, program = run(DECOMPOSED[name](), *own)
    tol = 2e-2 if name == "int8" else 1e-3  # a value between two codes may get another one
    for key, x in expected.items():
        np.testing.assert_allclose(found[key], x, rtol=1e-5, atol=tol * abs(x).max())
    # Half of the matrices are due in a step: each device decomposes one of them for each side.
    called = re.findall(r"f32\[(.*?)\]\S* [^\n]*lapack_s(?:geqrf|gesdd|syevd)", program)
    assert {*called} == {"1,16,16"}
    assert len(called) == {"shampoo": 4, "galore": 2}.get(name, 8)  # SOAP has two kinds of them


@needs_eight_devices
def test_matrices_without_elements_are_decomposed_on_a_mesh():
    params = {"empty": jnp.zeros((3, 0)), "square": far_from_singular((16, 16))}
    with mesh_of("automatic", (8,), ("x",)):
        opt = adamx.shampoo(RATE)
        updates, _ = jax.jit(opt.update)(params, opt.init(params), params)
    assert updates["empty"].shape == (3, 0) and jnp.isfinite(updates["square"]).all()


@needs_eight_devices
@pytest.mark.parametrize("fails", ["given", "compute"])
def test_an_error_in_a_refresh_names_the_stage(fails):
    def fail(*given):
        raise TypeError("no matrix")

    @adamx.stage
    def decomposed():
        refresh = adamx.core.Refresh(
            **{
                "due": lambda step: True,
                "given": lambda signal, slots, step: signal.gradient,
                "compute": lambda arrays, step: arrays,
                "otherwise": lambda arrays: arrays,
                fails: fail,
            }
        )
        return adamx.core.Rule(lambda signal, slots, step: (signal, slots), refresh=refresh)

    opt = decomposed()
    told = pytest.raises(adamx.StageError, match=r"decomposed.*refresh raised TypeError: no matrix")
    with mesh_of("automatic", (8,), ("x",)), told:
        jax.jit(opt.update)(LARGE, opt.init(LARGE), LARGE)


def test_on_accelerators_quantized_arrays_take_turns(monkeypatch):
    """Otherwise XLA decodes the slots of all arrays before it encodes the first ones again."""
    monkeypatch.setenv("ADAMX_KERNELS", "off")
    opt, state = nearest(adamx.adamw(RATE)), nearest(adamx.adamw(RATE)).init(LARGE)
    expected = jax.jit(opt.update)(SLOPES[0], state, LARGE)
    monkeypatch.setattr(engine, "platform", lambda: "tpu")
    step = jax.jit(lambda *given: opt.update(*given))
    assert step.lower(SLOPES[0], state, LARGE).as_text().count("optimization_barrier") == 2
    jax.tree.map(np.testing.assert_array_equal, step(SLOPES[0], state, LARGE), expected)


@needs_eight_devices
def test_the_page_runs_on_eight_devices(monkeypatch):
    run_all(DOCS / "devices.md", {}, monkeypatch)


# Sizes

SUMMED = {
    "clipped": lambda: adamx.chain(adamx.clip_by_global_norm(1.0), adamx.sgd(RATE)),
    "lamb": lambda: adamx.lamb(RATE),
    "watched": lambda: adamx.chain(adamx.sgd(RATE), adamx.watch()),
    "skipped": lambda: adamx.skip_nonfinite(adamx.sgd(RATE)),
}


def program_of(opt, count, sharding=None):
    params = {f"w{i}": shaped(jnp.zeros((32, 8 + i)), sharding) for i in range(count)}
    state = jax.eval_shape(opt.init, params)
    return jax.jit(opt.update).lower(params, state, params).compile().as_text()


def test_a_program_grows_with_the_number_of_arrays_and_not_with_its_square():
    few, many = (program_of(SUMMED["clipped"](), n).count(" = ") for n in (24, 96))
    assert many < 7 * few


@needs_eight_devices
@pytest.mark.parametrize("name", SUMMED)
def test_the_number_of_collectives_does_not_depend_on_the_number_of_arrays(name):
    with mesh_of("automatic", (8,), ("x",)) as mesh:
        rows = NamedSharding(mesh, P("x"))
        found = [program_of(SUMMED[name](), count, rows) for count in (4, 12)]
    few, many = (len(re.findall(r" all-reduce(?:-start)?\(", program)) for program in found)
    assert few == many <= 5


HUGE = [(2**31,), (2**17, 2**17), (3, 2**33)]


@pytest.mark.parametrize("shape", HUGE)
@pytest.mark.parametrize(
    "name", ["adafactor", "adam_mini", "cautious_adamw", "stableadamw", "lamb"]
)
def test_arrays_of_more_elements_than_int32_counts(name, shape):
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    opt = adamx.chain(adamx.quantize_state(OPTIMISERS[name](RATE), "int8"), adamx.watch())
    jax.eval_shape(opt.update, params, jax.eval_shape(opt.init, params), params)


def test_metrics_of_more_elements_than_int32_counts(monkeypatch):
    """The sizes are summed as floats: int32 would wrap around at 2³¹ elements in all."""
    terms = {"grad_rms": 2.0**31, "update_rms": 2.0**31, "param_rms": None, "snr": None}
    sums = {
        k: x and (adamx.core.Squares(*map(jnp.float32, (x, 0, 0))), x) for k, x in terms.items()
    }
    many = [{**sums, "bias": None, "nonfinite": jnp.float32(2.0**31)}] * 4
    found = readings(many, [()] * 4)
    np.testing.assert_allclose(found["grad_rms"], 1, rtol=1e-6)
    assert found["nonfinite"] > 2**31 - 200


def test_random_positions_do_not_wrap():
    """Rows of an array of more than 2³² elements have sequences of their own."""
    low, high = jax.eval_shape(lambda: random._position((3, 2**32)))
    assert low.shape == high.shape == (3, 2**32)
    assert random._position((2**16, 4))[1] is None
    inner = [random.bits(random.key(i), (1000,)) for i in range(2)]
    shifted = np.correlate(*(np.asarray(x >> 31, np.float32) - 0.5 for x in inner), "full")
    assert np.abs(shifted).max() < 0.25 * 150  # no shift makes two keys agree


@needs_eight_devices
def test_random_bits_do_not_depend_on_the_mesh():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    alone = random.bits(random.key(3), (8, 6, 4))
    for spec in (P("x"), P(None, "y"), P("x", None, "y")):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        divided = jax.jit(lambda: random.bits(random.key(3), (8, 6, 4)), out_shardings=sharding)
        assert (np.asarray(divided()) == np.asarray(alone)).all()
        assert "all-gather" not in divided.lower().compile().as_text()
