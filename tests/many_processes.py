"""Trainings in several processes with JAX's own runtime; run by test_distributed.py.

    python many_processes.py FOLDER PLAN

PLAN is JSON, a list of starts: [number of processes, devices of each, jobs, which one is killed]. A
job is [name, arguments …]. Every process is forked before JAX has started any threads, so that JAX
is imported only once. The jobs leave their results in FOLDER. For every start, where its training
began and how its processes ended is printed as JSON (-9 is SIGKILL). If one process ends badly, the
others are killed, as a scheduler does it.
"""

import functools
import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adamx

STEPS, BATCH = 6, 16
LAYOUTS = "data", "fsdp", "zero1"


# What is trained


def stored(opt, codec):
    return adamx.quantize_state(opt, codec, min_size=1)


NETWORKS = {
    "adamw": lambda: adamx.adamw(0.02),
    "adam, watched": lambda: adamx.chain(
        adamx.clip_by_global_norm(0.1), adamx.adam(lambda t: 0.1 / (t + 1)), adamx.watch()
    ),
    "lion": lambda: adamx.lion(0.003),
    "lamb": lambda: adamx.lamb(0.02),
    "adafactor": lambda: adamx.adafactor(0.02, min_dim_size_to_factor=8),
    "muon": lambda: adamx.muon(0.02, rest=adamx.adamw(0.02)),
    "soap": lambda: adamx.soap(0.02, every=3, one_sided=True),
    "prodigy": lambda: adamx.prodigy(1.0, d0=1e-2),
    "adopt": lambda: adamx.adopt(0.02),
    "schedule-free": lambda: adamx.schedule_free_adamw(0.02),
}
"""Trained on a network, whose gradient is summed in another order on another mesh."""

TABLES = {
    "adamw, averaged": lambda: adamx.chain(adamx.adamw(0.02), adamx.polyak_ema(0.9)),
    "int8": lambda: stored(adamx.adamw(0.02), "int8"),
    "fp8": lambda: stored(adamx.adamw(0.02), "fp8"),
    "bf16": lambda: stored(adamx.lion(0.003), "bf16"),
    "bf16 parameters": lambda: adamx.chain(adamx.adamw(0.02), adamx.stochastic_rounding()),
}
"""Trained with gradients whose sums have no rounding errors: rounding at random is repeatable."""

CONTENDERS = {
    **{f"network/{name}": make for name, make in NETWORKS.items()},
    **{f"table/{name}": make for name, make in TABLES.items()},
}


def first(name):
    """The first parameters, as NumPy arrays."""
    dtype = jnp.bfloat16 if name.endswith("bf16 parameters") else np.float32
    random = np.random.default_rng(0)
    shapes = {"kernel": (16, 64), "bias": (64,)}
    return {k: (random.standard_normal(v) / 4).astype(dtype) for k, v in shapes.items()}


def network(params, step, rows):
    """The loss of examples, which are drawn by their numbers and that of the step."""
    x = jnp.sin((rows[:, None] + 1.0) * (jnp.arange(16.0)[None, :] + 1.0) * (step + 1.0))
    return jnp.mean((jnp.tanh(x @ params["kernel"] + params["bias"][None, :]) - x[:, :1]) ** 2)


def table(params, step, rows):
    """A linear one, whose gradients are means of a few integers between -63 and 63, over 64."""
    total = 0.0
    for param in jax.tree.leaves(params):
        at = jnp.arange(param.size).reshape(param.shape)
        row = rows.reshape(-1, *[1] * param.ndim)
        noise = (row * 37 + at[None] * 11 + step * 29) % 127 - 63
        total += jnp.sum((noise.astype(jnp.float32).mean(0) / 64).astype(param.dtype) * param)
    return total


# Where it is


@functools.cache
def mesh():
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def divided(x):
    """Along the first axis, if the devices can divide it."""
    even = np.ndim(x) and np.shape(x)[0] % jax.device_count() == 0
    return NamedSharding(mesh(), PartitionSpec("data") if even else PartitionSpec())


def whole(x=None):
    return NamedSharding(mesh(), PartitionSpec())


def shardings(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def put(tree, sharding):
    """Arrays of NumPy, which all processes have, on the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding(x), lambda index: x[index]), tree
    )


def moved(tree, wanted):
    return jax.jit(lambda x: x, out_shardings=wanted)(tree)


def begin(names, layout):
    """Parameters and states, in their layout."""

    def create():
        params = {name: jax.tree.map(jnp.asarray, first(name)) for name in names}
        return {name: (x, CONTENDERS[name]().init(x)) for name, x in params.items()}

    of_params = divided if layout == "fsdp" else whole
    of_state = whole if layout == "data" else divided
    wanted = {
        name: (jax.tree.map(of_params, params), jax.tree.map(of_state, state))
        for name, (params, state) in jax.eval_shape(create).items()
    }
    return jax.jit(create, out_shardings=wanted)()


def advance(training, rows):
    """A step of every contender."""
    after = {}
    for name, (params, state) in training.items():
        opt = CONTENDERS[name]()
        loss = network if name.startswith("network") else table
        grads = jax.grad(loss)(params, state["count"], rows)
        updates, state = opt.update(grads, state, params)
        after[name] = adamx.apply_updates(params, updates), state
    return after


def stepping(training):
    """A compiled function from the training to the training after a step."""
    rows = put(np.arange(BATCH), divided)
    step = jax.jit(advance, donate_argnums=0, out_shardings=shardings(training))
    compiled = step.lower(training, rows).compile()
    return lambda training: compiled(training, rows)


def gathered(tree):
    """What every process sees, as arrays of NumPy."""
    return jax.device_get(moved(tree, jax.tree.map(whole, tree)))


def write(path, tree):
    tree = gathered(tree)
    if jax.process_index() == 0:
        path.write_bytes(pickle.dumps(tree))


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


# Jobs


def train(folder, result, layout, names, saved=None):
    """All steps; ``saved`` is a checkpoint that is written halfway."""
    training = begin(names, layout)
    if layout != "data":
        check_divided(training, layout)
    step = stepping(training)
    for t in range(STEPS):
        training = step(training)
        if saved and t + 1 == STEPS // 2:
            write(folder / saved, training)
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder / f"{saved} of Orbax", training)
    write(folder / result, training)


def check_divided(training, layout):
    """Every slot that is shaped like the kernel is divided, and so is the kernel under FSDP."""
    for name, (params, state) in training.items():
        large = [x for x in jax.tree.leaves(state) if x.shape == (16, 64)]
        assert large or name == "network/adafactor"
        for x in [*large, *([params["kernel"]] if layout == "fsdp" else [])]:
            assert x.addressable_shards[0].data.shape[0] == 16 // jax.device_count(), name


def restore(folder, result, layout, names, saved):
    """The second half of the steps, in any layout; leaves also what was read."""
    training = begin(names, layout)
    with ocp.StandardCheckpointer() as checkpointer:
        training = checkpointer.restore(folder / f"{saved} of Orbax", like(training))
    write(folder / f"{result}, read", training)
    step = stepping(training)
    for _ in range(STEPS // 2, STEPS):
        training = step(training)
    write(folder / result, training)


def eager(folder, result, names):
    """States made outside of jit, and the paths of arrays that Orbax could not save."""
    made = {"init": {}, "restore_state": {}, "unfit": {}}
    for name in names:
        opt, params = CONTENDERS[name](), put(first(name), divided)
        state = opt.init(params)
        restored = adamx.restore_state(gathered(state), opt, params).state
        made["init"][name], made["restore_state"][name] = gathered(state), gathered(restored)
        leaves = jax.tree_util.tree_leaves_with_path((state, restored))
        made["unfit"][name] = [jax.tree_util.keystr(k) for k, x in leaves if not is_global(x)]
    if jax.process_index() == 0:
        (folder / result).write_bytes(pickle.dumps(made))


def is_global(x):
    """Whether all processes have the array, and each can read its part."""
    try:
        return len(x.addressable_shards) < len(x.global_shards) == jax.device_count()
    except ValueError:
        return False


def not_a_number(folder, result, name):
    """The state of a training that has failed, restored; or the error."""
    opt, params = CONTENDERS[name](), put(first(name), divided)
    saved = gathered(begin([name], "data")[name][1])
    saved["scale_by_rms"]["nu"] = jax.tree.map(lambda x: x * np.nan, saved["scale_by_rms"]["nu"])
    try:
        restored = gathered(adamx.restore_state(saved, opt, params).state)
    except AssertionError as error:
        restored = str(error)
    if jax.process_index() == 0:
        (folder / result).write_bytes(pickle.dumps(restored))


CHANGES = {
    "network/adamw": lambda: adamx.chain(stored(adamx.adamw(0.02), "int8"), adamx.polyak_ema(0.9)),
    "network/adam, watched": lambda: adamx.chain(adamx.adam(0.1), adamx.watch()),
    "table/int8": lambda: adamx.adamw(0.02),
    "table/fp8": lambda: adamx.chain(adamx.clip_by_global_norm(1.0), CONTENDERS["table/fp8"]()),
}
"""Other codecs, and stages that are added and removed."""


def convert(folder, result, layout, saved):
    """The saved states of other chains, read without knowing these."""
    place = divided if layout == "fsdp" else whole
    with ocp.StandardCheckpointer() as checkpointer:
        path = folder / f"{saved} of Orbax"
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)),
            checkpointer.metadata(path).item_metadata.tree,
        )
        read = checkpointer.restore(path, target)
    converted = {}
    for name, make in CHANGES.items():
        params, state = read[name]
        converted[name] = params, adamx.restore_state(state, make(), params).state
        assert shardings(converted[name][1]) == shardings(make().init(params)), name
    write(folder / result, converted)


def asynchronous(folder, result, names):
    """Checkpoints are written while the steps go on, which overwrite the arrays they are of."""
    training = begin(names, "fsdp")
    step, kept = stepping(training), {}
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True)
    with ocp.CheckpointManager(folder / f"{result} of Orbax", options=options) as manager:
        for t in range(2 * STEPS):
            if t % 3 == 1:
                kept[t] = gathered(training)
                manager.save(t, args=ocp.args.StandardSave(training))
            before, training = training, step(training)
            if t % 3 == 0:  # when nobody reads them any more
                assert all(x.is_deleted() for x in jax.tree.leaves(before) if x.shape == (16, 64))
        manager.wait_until_finished()
        read = {
            t: gathered(manager.restore(t, args=ocp.args.StandardRestore(like(training))))
            for t in manager.all_steps()
        }
    assert read.keys() == kept.keys()
    if jax.process_index() == 0:
        (folder / result).write_bytes(pickle.dumps((kept, read)))


def go_on(folder, result, names, length, every):
    """From the last checkpoint, if there is one, to the end."""
    training = begin(names, "fsdp")
    step = stepping(training)
    options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=2)
    with ocp.CheckpointManager(folder / f"{result} of Orbax", options=options) as manager:
        start = manager.latest_step() or 0
        if start:
            training = manager.restore(start, args=ocp.args.StandardRestore(like(training)))
        os.write(TOLD, bytes([start]))
        for t in range(start, length):
            training = step(training)
            manager.save(t + 1, args=ocp.args.StandardSave(training))
            os.write(TOLD, b".")
    write(folder / result, training)


# Processes

TOLD = -1  # the pipe to the parent


def process(address, processes, index, devices, folder, jobs):
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, processes, index)
    for job, *arguments in jobs:
        globals()[job](folder, *arguments)
    if processes > 1:
        jax.distributed.shutdown()


def together(folder, processes, devices, jobs, killed=None):
    """Run jobs in several processes; one may be killed after so many steps and seconds."""
    global TOLD
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    children, child, began = {}, 0, b""
    for index in range(processes):
        heard, TOLD = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                process(address, processes, index, devices, folder, jobs)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(TOLD)
        children[child] = heard
    if killed is not None:
        index, steps, delay = killed
        child = list(children)[index]
        began = os.read(children[child], 1)
        for _ in range(steps):
            os.read(children[child], 1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    ended = {}
    while len(ended) < processes:
        child, status = os.wait()
        ended[child] = os.waitstatus_to_exitcode(status)
        if status:
            for other in children.keys() - ended.keys():
                os.kill(other, signal.SIGKILL)
    if killed is None:
        began = os.read(children[child], 1)
    for heard in children.values():
        os.close(heard)
    return [*began], [ended[child] for child in children]


if __name__ == "__main__":
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    answers = os.dup(1)
    os.dup2(2, 1)  # JAX's collectives print there
    jax.config.update("jax_disable_most_optimizations", True)
    for start in plan:
        os.write(answers, json.dumps(together(folder, *start)).encode() + b"\n")
