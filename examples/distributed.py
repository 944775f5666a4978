"""Train a classifier of digits in many processes, with checkpoints, and go on after a failure.

    python -m examples.distributed --processes 4 --layout fsdp
    python -m examples.distributed --processes 4 --layout zero1 --optimiser lion \
        --learning-rate 3e-4 --quantize int8 --checkpoints out/run --every 50

start the processes on this machine, each with as many CPU devices as --devices-per-process says.
The same command continues from the last checkpoint. It may then have another number of processes,
another layout, codec or optimiser: the state is converted, and a report tells how.

In the layout "data", every device has all parameters and a part of each batch. In "zero1", the
state of the optimiser is divided among the devices, and in "fsdp" the parameters are, too.

On a cluster the scheduler starts the processes, and --processes is left out:

    srun --kill-on-bad-exit python -m examples.distributed --layout fsdp --checkpoints /shared/run

`jax.distributed.initialize()` then finds the other processes by itself (Slurm, Open MPI,
Kubernetes, a TPU pod). All of them must see the folder of the checkpoints. If a process dies, the
scheduler must end the others and run the command again (in Slurm, `sbatch --requeue`). The steps
since the last checkpoint are repeated, and give the same bits on the same devices.
"""

import argparse
import inspect
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adamx
from examples import data

BATCH = 64


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        for width in (128, 128):
            images = nn.relu(nn.Dense(width)(images))
        return nn.Dense(10)(images)


def optimiser(name: str, learning_rate: float, codec: str | None) -> adamx.Transformation:
    recipe = adamx.get_recipe(name)
    takes_rest = "rest" in inspect.signature(recipe).parameters  # Muon: for all that is no matrix
    rest = {"rest": adamx.adamw(learning_rate)} if takes_rest else {}
    opt = recipe(learning_rate, **rest)
    return adamx.quantize_state(opt, codec, min_size=1024) if codec else opt


def divided(mesh: Mesh, x: Any) -> NamedSharding:
    """One axis of the array is divided among the devices, the first that can be."""
    even = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
    axes = ["data" if axis == even[0] else None for axis in range(len(x.shape))] if even else []
    return NamedSharding(mesh, PartitionSpec(*axes))


def whole(mesh: Mesh, _: Any = None) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def layout_of(state: TrainState, layout: str, mesh: Mesh) -> TrainState:
    """The sharding of every array of the training; None where the optimiser decides."""
    of_arrays = partial(divided if layout == "fsdp" else whole, mesh)
    return state.replace(
        step=whole(mesh),
        params=jax.tree.map(of_arrays, state.params),
        opt_state=None if layout == "zero1" else jax.tree.map(of_arrays, state.opt_state),
    )


def train_step(
    state: TrainState, images: jax.Array, labels: jax.Array
) -> tuple[TrainState, jax.Array]:
    def loss(params: Any) -> jax.Array:
        logits = state.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradient), value


def batches(dataset: data.Dataset, mesh: Mesh, seed: int) -> Callable[[int], list[jax.Array]]:
    """The batch of a step: all processes draw the same rows, each takes those of its devices."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def batch(step: int) -> list[jax.Array]:
        random = np.random.default_rng([seed, step])  # so a restarted training draws the same
        rows = random.choice(len(dataset.train_labels), BATCH, replace=False)
        drawn = dataset.train_images[rows], dataset.train_labels[rows]
        return [jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for x in drawn]

    return batch


def saved(state: TrainState) -> dict[str, Any]:
    """What is written to a checkpoint."""
    return {"params": state.params, "opt_state": state.opt_state}


def resumed(
    manager: ocp.CheckpointManager, state: TrainState, opt: adamx.Transformation, mesh: Mesh
) -> TrainState:
    """The last checkpoint, whatever optimiser, layout and number of devices it was saved with."""
    step = manager.latest_step()
    if step is None:
        return state

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=divided(mesh, x))

    kept = jax.tree.map(place, manager.item_metadata(step).tree)
    kept = manager.restore(step, args=ocp.args.StandardRestore(kept))
    opt_state, report = adamx.restore_state(kept["opt_state"], opt, kept["params"])
    if jax.process_index() == 0:
        print(f"continues after step {step}")
        if report.initialised or report.dropped or any(row.recoded for row in report.rows):
            print(report)
    return state.replace(step=step, params=kept["params"], opt_state=opt_state)


def train(options: argparse.Namespace) -> None:
    is_first = jax.process_index() == 0
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    if BATCH % mesh.size:
        raise SystemExit(f"a batch of {BATCH} can't be divided among {mesh.size} devices")
    dataset = data.load()
    model = Classifier()
    opt = optimiser(options.optimiser, options.learning_rate, options.quantize)
    if options.layout == "zero1":
        opt = adamx.place(opt, NamedSharding(mesh, PartitionSpec("data")), min_size=1024)

    def create(key: jax.Array) -> TrainState:
        params = model.init(key, dataset.train_images[:1])
        return TrainState.create(apply_fn=model.apply, params=params, tx=opt)

    key = jax.random.key(options.seed)
    layout = layout_of(jax.eval_shape(create, key), options.layout, mesh)
    state = jax.jit(create, out_shardings=layout)(key)
    step = jax.jit(train_step, donate_argnums=0, out_shardings=(layout, whole(mesh)))
    batch = batches(dataset, mesh, options.seed)

    manager = None
    if options.checkpoints:
        manager = ocp.CheckpointManager(
            options.checkpoints.absolute(),
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(save_interval_steps=options.every, max_to_keep=2),
        )
        state = jax.jit(lambda x: x, out_shardings=layout)(resumed(manager, state, opt, mesh))

    loss = None
    for t in range(int(state.step), options.steps):
        state, loss = step(state, *batch(t))
        if manager:  # writes in the background if this step is one of them
            manager.save(t + 1, args=ocp.args.StandardSave(saved(state)))
        if is_first and (t + 1) % 20 == 0:
            print(f"step {t + 1}  loss {float(loss):.6f}", flush=True)
    if manager:
        manager.close()

    logits = jax.jit(model.apply, out_shardings=whole(mesh))(state.params, dataset.test_images)
    hits = np.argmax(np.asarray(logits), 1) == dataset.test_labels
    if is_first:
        print(f"{jax.process_count()} processes, {mesh.size} devices, {options.layout}")
        print(f"test accuracy {hits.mean():.2%}")


def start(arguments: Sequence[str], processes: int, devices: int) -> None:
    """Start the processes on this machine; if one fails, end the others, as a scheduler does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "examples.distributed", *arguments, "--coordinator", address]
    running = [
        subprocess.Popen([*command, "--process", str(i)], env=environment) for i in range(processes)
    ]
    try:
        while running:
            ended = [process for process in running if process.poll() is not None]
            failed = [process.returncode for process in ended if process.returncode]
            if failed:
                raise SystemExit(f"a process ended with exit code {failed[0]}")
            running = [process for process in running if process not in ended]
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.distributed", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--processes", type=int, help="started here; without it, by a scheduler")
    parser.add_argument("--devices-per-process", type=int, default=1)
    parser.add_argument("--layout", choices=["data", "fsdp", "zero1"], default="data")
    recipes = adamx.list_recipes()
    parser.add_argument("--optimiser", choices=recipes, default="adamw", metavar="NAME")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--quantize", choices=["int8", "fp8", "bf16"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, help="a folder that all processes see")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("processes", "devices_per_process", "steps", "every"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return options


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    options = parse(arguments)
    if options.processes and not options.coordinator:
        start(arguments, options.processes, options.devices_per_process)
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # accelerators do not use it
    try:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    except ValueError as error:
        raise SystemExit(f"no scheduler found: {error} To start here, give --processes") from error
    train(options)


if __name__ == "__main__":
    main()
