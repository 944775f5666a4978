"""Measure bytes, time and temporary memory of Adam with quantized states, beside Optax in float32.

    python -m examples.benchmarks.storage [--quick] [--json FILE]

Steps are compiled with donated arguments, and timed in pairs with Optax's steps (see `cost`). If
`torch`, `torchao` and `bitsandbytes` are installed, their 8-bit optimisers are timed in the same
process, relative to PyTorch's fused float32 Adam.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    from rich.console import Console
    from rich.table import Table

    import adamx
    from examples import benchmarks
    from examples.benchmarks import cost
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

STEP_BAR = 1.5
BYTES_BAR = 2.1  # codecs with one byte per element


class Model(NamedTuple):
    """The parameters of a network."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        return self.name

    def full(self, value: float) -> dict[str, jax.Array]:
        return {name: jnp.full(shape, value) for name, shape in self.shapes.items()}


def perceptron(*sizes: int) -> Model:
    shapes = {}
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"weight {i}": (before, after), f"bias {i}": (after,)}
    return Model(f"perceptron {'-'.join(map(str, sizes))}", shapes)


def transformer(blocks: int, width: int, tokens: int, length: int) -> Model:
    shapes: dict[str, tuple[int, ...]] = {"tokens": (tokens, width), "places": (length, width)}
    for i in range(blocks):
        shapes |= {
            f"query, key, value {i}": (width, 3 * width),
            f"output {i}": (width, width),
            f"up {i}": (width, 4 * width),
            f"down {i}": (4 * width, width),
            f"norms {i}": (4, width),
            f"biases {i}": (9 * width,),
        }
    return Model(f"transformer {blocks} × {width}", {**shapes, "head": (width, tokens)})


Tree = cost.Shape | Model


class Setting(NamedTuple):
    """The networks and times of a measurement."""

    timing: cost.Setting
    models: Sequence[Model]
    steps: Sequence[Tree]
    peers: Sequence[cost.Shape]
    memory: Sequence[Tree]


PERCEPTRON, TRANSFORMER = perceptron(784, 1000, 1000, 10), transformer(4, 256, 65, 256)
MILLION, LARGE, MANY = cost.Shape(1, 10**6), cost.Shape(1, 4 * 10**6), cost.Shape(10, 10**5)
# torchao keeps all arrays of these networks in 8 bits, because their sizes are multiples of 256.
PEERS = (cost.Shape(1, 2**22), cost.Shape(10, 400 * 256))
FULL = Setting(
    cost.FULL._replace(budget=5),
    (PERCEPTRON, TRANSFORMER),
    (MILLION, LARGE, MANY, PERCEPTRON, cost.Shape(1, 32 * 10**6)),
    PEERS,
    (LARGE, MANY, PERCEPTRON),
)
QUICK = FULL._replace(timing=cost.QUICK, steps=(MILLION, MANY, PERCEPTRON))
SMALL = perceptron(64, 70, 4)
TINY = Setting(cost.TINY, (SMALL,), (SMALL,), (), (SMALL,))

TABLES = ("bytes", "memory", "steps", "peers")
CODECS = {"bf16": adamx.bf16, "fp8": adamx.fp8, "int8": adamx.int8}


def stored(rate: float, codec: adamx.Codec) -> adamx.Transformation:
    return adamx.quantize_state(adamx.adam(rate), codec)


def contenders() -> dict[str, cost.Contender]:
    """Adam of adamx in float32, and with every codec."""
    made = {"float32": cost.ADAMX}
    for rounding in ("stochastic", "nearest"):
        for name, codec in CODECS.items():
            make = partial(stored, codec=codec(rounding=rounding))
            made[f"{name}, {rounding}"] = cost.Contender(make)
    return made


# Measurements.


class Bytes(NamedTuple):
    """Bytes of state per parameter."""

    what: str
    reported: float  # according to adamx.memory_usage
    allocated: float  # according to the arrays
    bar: float | None


def measure_bytes(setting: Setting) -> Iterator[Bytes]:
    for model in setting.models:
        params = model.full(1.0)
        for name, codec in {"float32": None, **CODECS}.items():
            opt = adamx.adam(1e-3) if codec is None else stored(1e-3, codec())
            state = opt.init(params)
            reported = adamx.memory_usage(state).bytes
            allocated = sum(x.nbytes for x in jax.tree.leaves(state))
            count = elements(params)
            bar = BYTES_BAR if name in ("fp8", "int8") else None
            yield Bytes(f"{model}: {name}", reported / count, allocated / count, bar)


def elements(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def measure_steps(setting: Setting) -> Iterator[cost.Ratio]:
    for tree in setting.steps:
        plain = cost.training(cost.OPTAX, tree)
        for name, contender in contenders().items():
            other = cost.training(contender, tree)
            bar = STEP_BAR if name.startswith("int8") else None
            yield cost.compare(f"{tree}: {name}", other, plain, setting.timing, bar)


def peers() -> dict[str, Callable[[Any], Any]]:
    """The installed 8-bit optimisers, by the code that makes them."""
    found = {}
    for module, names in {
        "torchao.optim": ("AdamW8bit", "AdamWFp8"),
        "bitsandbytes.optim": ("AdamW8bit",),
    }.items():
        try:
            optimisers = importlib.import_module(module)
        except ImportError:
            continue
        for name in names:
            found[f"{module.split('.')[0]}'s {name}"] = getattr(optimisers, name)
    return found


def stepping(make: Callable[..., Any], shape: cost.Shape, device: str = "cpu") -> cost.Start:
    """A step of a PyTorch optimiser, with parameters and gradients."""
    torch = importlib.import_module("torch")

    def start() -> cost.Loop:
        ones = partial(torch.full, (shape.size,), 1.0, device=device)
        params = [torch.nn.Parameter(ones()) for _ in range(shape.leaves)]
        for param in params:
            param.grad = torch.full_like(param, 0.1)
        opt = make(params)

        def loop(runs: int) -> None:
            for _ in range(runs):
                opt.step()
            if device == "cuda":
                torch.cuda.synchronize()

        return loop

    return start


def measure_peers(setting: Setting) -> Iterator[cost.Ratio]:
    made = peers()
    for shape in setting.peers if made else ():
        torch = importlib.import_module("torch")
        fused = stepping(partial(torch.optim.AdamW, fused=True), shape)
        for name, make in made.items():
            yield cost.compare(f"{shape}: {name}", stepping(make, shape), fused, setting.timing)


class Temporary(NamedTuple):
    """Bytes per parameter of temporary memory of a step, besides arguments and results."""

    what: str
    bytes: float


def measure_memory(setting: Setting) -> Iterator[Temporary]:
    for tree in setting.memory:
        for name, contender in {"optax": cost.OPTAX, **contenders()}.items():
            tx, step = cost.training_step(contender)
            params = jax.eval_shape(partial(tree.full, 1.0))
            compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile()
            temporary = compiled.memory_analysis().temp_size_in_bytes
            yield Temporary(f"{tree}: {name}", temporary / elements(params))


# Presentation.


def tabulate_bytes(rows: Iterable[Bytes]) -> Table:
    table = cost.columns("adamx.memory_usage", "nbytes", "bar")
    for row in rows:
        bar = cost.verdict(row.allocated, row.bar)
        table.add_row(row.what, f"{row.reported:.3f}", f"{row.allocated:.3f}", bar)
    return table


def tabulate_memory(rows: Iterable[Temporary]) -> Table:
    table = cost.columns("bytes per parameter")
    for row in rows:
        table.add_row(row.what, f"{row.bytes:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, save the results; return them."""
    options = benchmarks.options("storage", __doc__, arguments)
    setting = TINY if options.tiny else QUICK if options.quick else FULL
    console = Console(width=140, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    results: dict[str, Any] = {}

    def show(name: str, title: str, rows: Iterable[Any], tabulate: Callable[..., Table]) -> None:
        measured = list(rows)
        results[name] = [row._asdict() for row in measured]
        console.print(title, tabulate(measured), sep="\n")

    show("bytes", "Bytes of state per parameter", measure_bytes(setting), tabulate_bytes)
    memory = measure_memory(setting)
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        show("memory", "Temporary memory of a step", memory, tabulate_memory)
        steps = partial(cost.tabulate_ratios, first="this one", second="optax")
        show("steps", "A step, compiled, with donated arguments", measure_steps(setting), steps)
    others = partial(cost.tabulate_ratios, first="peer", second="float32")
    show("peers", "PyTorch optimisers, relative to its fused AdamW", measure_peers(setting), others)
    benchmarks.save(results, options)
    return results


if __name__ == "__main__":
    main()
