"""Measure how long a step on many sharded arrays takes to trace and to compile, beside Optax.

    python -m examples.benchmarks.compiling [--leaves 302] [--devices 8] [--quick] [--json FILE]

The arrays have 12 shapes, and their first axes are divided over simulated CPU devices. Every step
is traced and compiled in each of several rounds. The table shows medians, the number of
instructions of the compiled program, and its collectives (all-reduce, all-gather, …). Nothing runs.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from rich.console import Console

    import adamx
    from examples import benchmarks
    from examples.benchmarks import tables
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

Make = Callable[[], optax.GradientTransformation]

STEPS: Mapping[str, Make] = {
    "Optax's adamw": lambda: optax.adamw(1e-3),
    "adamw": lambda: adamx.adamw(1e-3),
    "Optax's adamw, clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3)
    ),
    "adamw, clipped": lambda: adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3)),
    "adamw, watched": lambda: adamx.chain(adamx.adamw(1e-3), adamx.watch()),
    "lamb": lambda: adamx.lamb(1e-3),
    "adafactor": lambda: adamx.adafactor(1e-3),
    "prodigy": lambda: adamx.prodigy(),
    **{
        f"adamw, {codec}": lambda codec=codec: adamx.quantize_state(adamx.adamw(1e-3), codec)
        for codec in ("bf16", "fp8", "int8")
    },
}

SHAPES = (
    *((64, 64), (64, 256), (256, 64), (64,), (256,), (128, 64)),
    *((64, 128), (128,), (512, 64), (64, 512), (512,), (1024, 64)),
)


class Compiled(NamedTuple):
    """Seconds to trace and to compile a step, and what the program has."""

    traced: float
    compiled: float
    instructions: int
    collectives: int


def arrays(leaves: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return {
        f"w{i}": jax.ShapeDtypeStruct(SHAPES[i % len(SHAPES)], jnp.float32, sharding=rows)
        for i in range(leaves)
    }


def placed(x: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """An array of the state, divided along its first axis if it can be; clocks are whole."""
    divides = x.size >= min(map(math.prod, SHAPES)) and x.shape[0] % mesh.size == 0
    spec = PartitionSpec("data") if divides else PartitionSpec()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))


def compiled(make: Make, params: Any, mesh: Mesh) -> Compiled:
    opt = make()
    state = jax.tree.map(lambda x: placed(x, mesh), jax.eval_shape(opt.init, params))

    def step(grads: Any, state: Any, params: Any) -> Any:  # a new one, which JAX has not compiled
        return opt.update(grads, state, params)

    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=1).lower(params, state, params)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    text = program.as_text() or ""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf" (?:{kinds})(?:-start)?\(", text)
    return Compiled(middle - start, end - middle, text.count(" = "), len(found))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = benchmarks.parser("compiling", __doc__)
    parser.add_argument("--leaves", type=int, default=302, help="the number of arrays")
    parser.add_argument("--devices", type=int, default=8, help="the number of simulated devices")
    parser.add_argument("--rounds", type=int, default=3, help="how often each step is compiled")
    parser.add_argument("--only", nargs="+", help="the names of steps", choices=list(STEPS))
    parser.add_argument("--quick", action="store_true", help="24 arrays, 2 devices, one round")
    options = benchmarks.parse(parser, arguments)
    if options.quick:
        options.leaves, options.devices, options.rounds = 24, 2, 1
    jax.config.update("jax_num_cpu_devices", options.devices)
    mesh = Mesh(np.array(jax.devices("cpu")), ("data",))
    params, steps = arrays(options.leaves, mesh), options.only or list(STEPS)
    rounds: dict[str, list[Compiled]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name in steps:
            rounds[name].append(compiled(STEPS[name], params, mesh))
    console = Console(width=120, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()))
    results = {
        "leaves": options.leaves,
        "devices": mesh.size,
        "steps": {name: [x._asdict() for x in found] for name, found in rounds.items()},
    }
    console.print(f"{options.leaves} arrays on {mesh.size} devices")
    console.print(tables.compiling(results), soft_wrap=True, markup=False)
    benchmarks.save(results, options)
    return results


if __name__ == "__main__":
    main()
