"""Compile a step of every optimiser for TPUs, on any machine, and print the memory that it needs.

    python -m examples.benchmarks.tpu [--only PATTERN …] [--on PLACEMENT …] [--topology v5e:2x4]
                                      [--json FILE]
    python -m examples.benchmarks.tpu --plan 1000 1e12 [--json FILE]

XLA's compiler for TPUs is in the package libtpu and needs no TPU. Nothing runs, so nothing is
timed. A step is `step`, or Optax's `update` and `apply_updates`, under `jit`, with parameters and
state donated.

An optimiser is compiled for one chip (`single`), and for all chips of the topology: with all arrays
on every chip (`replicated`), with the rows of matrices (`fsdp`) or their columns (`tensor`) divided
between the chips. Gradients are placed like parameters, and so are arrays of the state, as far as
they have the parameter's axes. All bytes are those of one chip. Temporaries are divided by the
number of parameters on the chip; gradients are arguments that a step may not overwrite. Bytes
accessed are XLA's estimate for all operations; they include the fast memory of the chip.

`--plan CHIPS PARAMETERS` compiles nothing: it computes the bytes of parameters, gradients and
states of a large model on each chip, and the bytes that a step moves between chips.
"""

import argparse
import fnmatch
import inspect
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from rich.console import Console
    from rich.table import Table

    import adamx
    from examples import benchmarks
    from examples.benchmarks import cost, tables
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

RATE = 1e-3
DEPENDS = ("adamx.recipes",)  # which it gets by their names
# Two large matrices: XLA keeps temporaries of up to about 100 MB in the cache of a chip.
MATRICES = {"up": (4096, 8192), "down": (8192, 4096), "bias": (8192,), "norm": (4096,)}
SMALL = {"up": (512, 1024), "down": (1024, 512), "bias": (1024,), "norm": (512,)}
MANY = {f"w{i}": (4096, 4096) for i in range(8)}
SIZES = (
    *((1024, 1024), (1024, 4096), (4096, 1024), (1024,), (4096,), (2048, 1024)),
    *((1024, 2048), (2048,), (512, 1024), (1024, 512), (512,), (1024, 3072)),
)
MIXED = {f"w{i}": SIZES[i % len(SIZES)] for i in range(302)}
LAYERS = {"blocks": (8, 2048, 2048), "norm": (8, 2048)}

# Their decompositions of matrices compile for minutes, so they are compiled only if asked for.
DECOMPOSING = ("fira", "galore", "kl_soap", "shampoo", "soap", "splus")


class Row(NamedTuple):
    """An optimiser, and the parameters for which its step is compiled."""

    make: Callable[[], optax.GradientTransformation]
    shapes: Mapping[str, tuple[int, ...]] = MATRICES
    dtype: Any = jnp.float32


def adamw(codec: Any = None, *behind: adamx.Transformation) -> adamx.Transformation:
    opt = adamx.adamw(RATE)
    return adamx.chain(adamx.quantize_state(opt, codec) if codec else opt, *behind)


def recipe(name: str) -> adamx.Transformation:
    """A recipe; AdamW for the vectors, if it takes only matrices."""
    make = adamx.get_recipe(name)
    takes = inspect.signature(make).parameters
    return make(RATE, **({"rest": adamx.adamw(RATE)} if "rest" in takes else {}))


def in_layers(opt: adamx.Transformation) -> adamx.Transformation:
    return adamx.per_layer("*", opt)


def rows() -> dict[str, Row]:
    """Optax's AdamW, all recipes, and AdamW (or another recipe) with every axis."""
    recipes = {
        name: Row(partial(recipe, name), shapes=SMALL if name in DECOMPOSING else MATRICES)
        for name in adamx.list_recipes()
    }
    in_bf16 = partial(Row, dtype=jnp.bfloat16)
    groups: dict[Any, adamx.Transformation] = {
        "up": adamx.adamw(RATE),
        "*": adamx.sgd(RATE, momentum=0.9),
    }
    axes = {
        **{f"adamw, {x}": Row(partial(adamw, x)) for x in ("bf16", "fp8", "int8")},
        "adamw, int8 to nearest": Row(partial(adamw, adamx.int8(rounding="nearest"))),
        "adamw, int8, 8 matrices": Row(partial(adamw, "int8"), shapes=MANY),
        "adamw, 302 arrays": Row(adamw, shapes=MIXED),
        "adamw, int8, 302 arrays": Row(partial(adamw, "int8"), shapes=MIXED),
        "lion, int8": Row(lambda: adamx.quantize_state(adamx.lion(RATE), "int8")),
        "adafactor, int8": Row(lambda: adamx.quantize_state(adamx.adafactor(RATE), "int8")),
        "muon, int8": Row(lambda: adamx.quantize_state(recipe("muon"), "int8")),
        "adamw, where": Row(
            lambda: adamx.chain(adamx.where("up", adamx.clip_by_norm(1.0)), adamw())
        ),
        "adamw and sgd, partition": Row(lambda: adamx.partition(groups)),
        "adamw, clip_by_global_norm": Row(
            lambda: adamx.chain(adamx.clip_by_global_norm(1.0), adamw())
        ),
        "adamw, watch": Row(lambda: adamw(None, adamx.watch())),
        "adamw, delay_start": Row(lambda: adamx.delay_start(adamw(), 100)),
        "adamw, skip_nonfinite": Row(lambda: adamx.skip_nonfinite(adamw())),
        "adamw, accumulate": Row(lambda: adamx.accumulate(adamw(), 4)),
        "optax.adamw, MultiSteps": Row(
            lambda: optax.MultiSteps(optax.adamw(RATE), 4).gradient_transformation()
        ),
        "adamw, polyak_ema": Row(lambda: adamw(None, adamx.polyak_ema(0.999))),
        "adamw, compensated": Row(lambda: adamx.adamw(RATE, compensated=True)),
        "adamw, per_layer": Row(lambda: in_layers(adamw()), shapes=LAYERS),
        "adamw, int8, per_layer": Row(lambda: in_layers(adamw("int8")), shapes=LAYERS),
        "lamb, per_layer": Row(lambda: in_layers(adamx.lamb(RATE)), shapes=LAYERS),
        "muon, per_layer": Row(lambda: in_layers(recipe("muon")), shapes=LAYERS),
        "adamw of bfloat16": in_bf16(adamw),
        "adamw of bfloat16, stochastic_rounding": in_bf16(
            lambda: adamw(None, adamx.stochastic_rounding())
        ),
        "adamw of bfloat16, int8, stochastic_rounding": in_bf16(
            lambda: adamw("int8", adamx.stochastic_rounding())
        ),
        "adamw of bfloat16, kahan_summation": in_bf16(lambda: adamw(None, adamx.kahan_summation())),
        "adamw of bfloat16, master_weights": in_bf16(lambda: adamw(None, adamx.master_weights())),
    }
    theirs = {"optax.adamw": Row(partial(optax.adamw, RATE))}
    return {**theirs, **recipes, **axes}


# Where arrays are placed.


class Placement(NamedTuple):
    """How the last two axes of parameters are divided between chips; vectors are on every chip."""

    mesh: Mesh
    matrix: tuple[str | None, ...] = ()

    def of(self, x: Any, like: tuple[int, ...], *, packed: bool = False) -> NamedSharding:
        """The sharding of an array that belongs to a parameter of this shape.

        It is the parameter's if the array has its shape. The scales of a packed array have fewer
        columns.
        """
        shape, spec = tuple(x.shape), [None] * x.ndim
        rest = slice(-1 if packed else None)
        if self.matrix and len(shape) == len(like) >= 2 and shape[rest] == like[rest]:
            spec = [*spec[:-2], *self.matrix]
        whole = [
            axis if n % self.mesh.size == 0 else None for axis, n in zip(spec, shape, strict=True)
        ]
        return NamedSharding(self.mesh, PartitionSpec(*whole))


def placements(topology: str) -> dict[str, Placement]:
    """The placements, on one chip of this kind and on all chips of the topology."""
    chips = chips_of(topology)
    mesh = Mesh(np.array(chips), ("data",))
    return {
        "single": Placement(Mesh(np.array(chips[:1]), ("data",))),
        "replicated": Placement(mesh),
        "fsdp": Placement(mesh, ("data", None)),
        "tensor": Placement(mesh, (None, "data")),
    }


# The compiler asks no server for a TPU, reserves none, and does not warn that there is none.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def chips_of(topology: str) -> Sequence[Any]:
    """The chips of a topology, which exist only for the compiler."""
    os.environ.update(WITHOUT_TPU)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise SystemExit(
            f"JAX found no compiler for the TPUs {topology!r} here ({error}). It is in libtpu, a "
            "package for Linux: pip install '.[tpu]'"
        ) from error


# What a compiled step needs.


class Collective(NamedTuple):
    """The results of all collectives of one kind and dtype in a program."""

    kind: str
    dtype: str
    times: int
    bytes: int


class Needs(NamedTuple):
    """The bytes of a compiled step on one chip."""

    what: str
    placement: str
    parameters: int
    argument: int
    output: int
    alias: int  # bytes of outputs that reuse the memory of an argument
    temp: int
    accessed: float  # as XLA estimates the bytes that its operations read and write
    collectives: list[Collective]
    seconds: float


BITS = {"pred": 8, "bf16": 16, **{f"{k}{n}": n for k in "fsu" for n in (8, 16, 32, 64)}}
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
# A collective, or the end of an asynchronous one, and its results.
COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({KINDS})(-done)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a program; those inside a loop are counted once."""
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for result, kind, _ in COLLECTIVE.findall(program):
        for dtype, shape in ARRAY.findall(result):
            bits = BITS.get(dtype, 8)
            counts[kind, dtype] += 1
            sizes[kind, dtype] += math.prod(int(n) for n in shape.split(",") if n) * bits // 8
    return [Collective(*key, counts[key], size) for key, size in sizes.most_common()]


def compiled(what: str, row: Row, where: str, placement: Placement) -> Needs:
    """Compile one step, without caches."""
    opt = row.make()

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        if isinstance(opt, adamx.Transformation):
            return opt.step(grads, state, params)
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def placed(path: Any, x: Any) -> Any:
        names = [str(getattr(k, "key", "")) for k in path]
        like = next((row.shapes[k] for k in reversed(names) if k in row.shapes), ())
        packed = any(k.startswith("@") for k in names)
        sharding = placement.of(x, like, packed=packed)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    on_chips = partial(jax.tree_util.tree_map_with_path, placed)
    params = {k: jax.ShapeDtypeStruct(shape, row.dtype) for k, shape in row.shapes.items()}
    params, state = on_chips(params), on_chips(jax.eval_shape(opt.init, params))
    kept = jax.tree.map(lambda x: x.sharding, (params, state))
    jax.clear_caches()
    with jax.set_mesh(placement.mesh):
        began = time.perf_counter()
        made = jax.jit(step, donate_argnums=(0, 1), out_shardings=kept)
        program = made.lower(params, state, params).compile()
        seconds = time.perf_counter() - began
    analysis: Any = program.memory_analysis()
    sizes = {
        k: getattr(analysis, f"{k}_size_in_bytes") for k in ("argument", "output", "alias", "temp")
    }
    own = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in params.values())
    accessed: Any = (program.cost_analysis() or {}).get("bytes accessed", math.nan)
    found = collectives(program.as_text() or "")
    return Needs(what, where, own, **sizes, accessed=accessed, collectives=found, seconds=seconds)


# A plan on paper.

WIDTH = 16384


PLACES = ("replicated", "ZeRO-1", "FSDP", "FSDP, state on host")


class Plan(NamedTuple):
    """The bytes of a large model, on each chip."""

    what: str
    placement: str
    state: float  # in bytes per parameter
    on_chip: float  # parameters, gradients and state
    on_host: float
    received: float  # from other chips in a step
    to_host: float  # from the host and back in a step


def large(parameters: float) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the matrices of transformer blocks, with about this many parameters."""
    shapes = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH)}
    shapes |= {"out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    blocks = max(1, round(parameters / sum(map(math.prod, shapes.values()))))
    return {
        f"{name}{i}": jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for i in range(blocks)
        for name, shape in shapes.items()
    }


def planned() -> dict[str, adamx.Transformation]:
    """Optimisers of bfloat16 parameters, by name."""
    rounded = adamx.stochastic_rounding()
    named = {
        name: adamx.get_recipe(name)(RATE)
        for name in ("adamw", "adam_mini", "adafactor", "lion", "muon", "soap", "galore")
    }
    codecs = {f"adamw, {x}": adamx.quantize_state(adamx.adamw(RATE), x) for x in ("bf16", "int8")}
    lion = {"lion, int8": adamx.quantize_state(adamx.lion(RATE), "int8")}
    every = {name: adamx.chain(opt, rounded) for name, opt in {**named, **codecs, **lion}.items()}
    return {"adamw, master_weights": adamx.chain(named["adamw"], adamx.master_weights()), **every}


def plans(chips: int, parameters: float) -> Iterator[Plan]:
    """What is kept and moved, if parameters and gradients are bfloat16.

    An all-gather or a reduce-scatter of an array moves the parts of all other chips, and an
    all-reduce twice as much. All bytes that an optimiser itself moves between chips come on top.
    """
    shapes = large(parameters)
    count = sum(math.prod(x.shape) for x in shapes.values())
    half, part = 2 * count, 1 / chips  # bytes of the parameters, and of the gradients
    moved = half * (1 - part)
    for name, opt in planned().items():
        state = adamx.memory_usage(jax.eval_shape(opt.init, shapes)).bytes
        rows = (
            (2 * half + state, 0, 2 * moved, 0),  # all-reduce of gradients
            # Reduce-scatter of gradients, all-gather of parameters.
            (2 * half + state * part, 0, 2 * moved, 0),
            # All-gather of parameters, forwards and backwards; reduce-scatter of gradients.
            ((2 * half + state) * part, 0, 3 * moved, 0),
            (2 * half * part, state * part, 3 * moved, 2 * state * part),
        )
        for place, sizes in zip(PLACES, rows, strict=True):
            yield Plan(name, place, state / count, *sizes)


# Presentation.


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def told(found: Sequence[Collective]) -> str:
    """`all-gather f32 12.6 MB × 3, …`."""
    large = [x for x in found if x.bytes >= FEW]
    rest = sum(x.times for x in found if x.bytes < FEW)
    shown = [f"{x.kind} {x.dtype} {megabytes(x.bytes)} × {x.times}" for x in large]
    return ", ".join([*shown, *([f"{rest} of numbers or vectors"] if rest else [])])


FEW = 100_000  # bytes


def tabulate(found: Iterable[Needs]) -> Table:
    table = cost.columns("", "temporaries", "arguments", "outputs", "aliased", "accessed")
    table.add_column("collectives")
    table.add_column("compiled in", justify="right", no_wrap=True)
    for x in found:
        sizes = map(megabytes, (x.argument, x.output, x.alias, x.accessed))
        each = f"{x.temp / x.parameters:.2f}"
        seconds = tables.in_units(x.seconds)
        table.add_row(x.what, x.placement, each, *sizes, told(x.collectives), seconds)
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("tpu", __doc__)
    add = parser.add_argument
    rest = ", ".join(DECOMPOSING)
    add("--only", nargs="+", metavar="PATTERN", help=f"such as 'adamw*'; all, if not: {rest}")
    add("--on", nargs="+", metavar="PLACEMENT", default=["*"], help="single, fsdp, …")
    add("--topology", default="v5e:2x4", help="such as v5p:2x2x1 or v6e:2x4")
    add("--plan", nargs=2, type=float, metavar=("CHIPS", "PARAMETERS"), help="compile nothing")
    add("--quick", action="store_true", help="AdamW only, on one chip")
    return benchmarks.parse(parser, arguments)


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match one of the patterns."""
    known = list(names)
    found = [x for x in known if any(fnmatch.fnmatchcase(x, pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"{' '.join(patterns)} matches none of: {'; '.join(known)}")
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Compile, print the table, save the results; return them."""
    options = parse(arguments)
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for a TPU, and warns of its absence
    console = Console(width=200, highlight=False)
    results: dict[str, Any] = {}
    if options.plan:
        chips, parameters = options.plan
        planning = list(plans(int(chips), parameters))
        console.print(
            f"{parameters:,.0f} parameters on {int(chips):,} chips: the state in bytes per "
            "parameter; parameters, gradients and state in gigabytes on each chip, by placement"
        )
        results["plans"] = [x._asdict() for x in planning]
        console.print(tables.plan(results), soft_wrap=True, markup=False)
        benchmarks.save(results, options)
        return results
    if options.quick:
        options.only, options.on = ["adamw"], ["single"]
    known, where = rows(), placements(options.topology)
    patterns = options.only or [x for x in known if x not in DECOMPOSING]
    results |= {"topology": options.topology, "needs": []}
    found: list[Needs] = []
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        for name in chosen(known, patterns):
            for place in chosen(where, options.on):
                found.append(row := compiled(name, known[name], place, where[place]))
                print(
                    f"{name}, {place}: {tables.in_units(row.seconds)}", file=sys.stderr, flush=True
                )
                of_each = [x._asdict() for x in row.collectives]
                results["needs"].append({**row._asdict(), "collectives": of_each})
                benchmarks.save(results, options)  # what is known, if it takes too long
    console.print(benchmarks.headline(benchmarks.versions()), options.topology, soft_wrap=True)
    console.print(
        "Temporaries in bytes per parameter on the chip; all other sizes in megabytes of one chip"
    )
    console.print(tabulate(found))
    return results


if __name__ == "__main__":
    main()
