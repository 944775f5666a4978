"""Measure the cost of a step of adamx and of Optax, in one process.

    python -m examples.benchmarks.cost [--quick] [--json FILE]

Two programs are timed in pairs, in alternating order. Each pair has its own parameters and states.
A time is the median over the pairs; a ratio is the median of the ratios within the pairs, with its
quartiles. Python's garbage collector runs between the measurements, not during them.
"""

import argparse
import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from rich import box
    from rich.console import Console
    from rich.table import Table

    import adamx
    from examples import benchmarks
    from examples.benchmarks.tables import in_units
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

STEP_BAR, TRACE_BAR, EAGER_BAR, RECOMPILE_BAR = 1.03, 0.25, 2.0, 0


class Contender(NamedTuple):
    """An optimiser, and how updates are added; if they are not, `step` gives new parameters."""

    make: Callable[..., Any]
    apply: Callable[[Any, Any], Any] | None = None


ADAMX = Contender(adamx.adam)
UPDATE = Contender(adamx.adam, adamx.apply_updates)
COMPENSATED = Contender(partial(adamx.adam, compensated=True))
OPTAX = Contender(optax.adam, optax.apply_updates)


class Filled(Protocol):
    """Parameters that all have the same value."""

    def full(self, value: float) -> dict[str, jax.Array]: ...


class Shape(NamedTuple):
    """Parameters as several vectors of equal size."""

    leaves: int
    size: int

    def __str__(self) -> str:
        return f"{self.leaves}×{self.size:,}"

    def full(self, value: float) -> dict[str, jax.Array]:
        return {f"w{i}": jnp.full(self.size, value) for i in range(self.leaves)}


class Setting(NamedTuple):
    """The size of the measurement."""

    steps: Sequence[Shape]
    updates: Sequence[Shape]
    large: Shape
    fresh: Shape
    budget: float  # seconds for all pairs of one comparison
    least: int  # the least number of pairs, whatever their time
    seconds: float  # the least duration of one measurement in seconds
    traces: int
    compiles: int


LARGE = Shape(1, 1_000_000)
STEPS = (
    *(Shape(1, 32_000_000), LARGE, Shape(1, 1000)),
    *(Shape(10, 100_000), Shape(300, 10_000), Shape(1000, 1000)),
)
UPDATES = (Shape(300, 1000), Shape(1, 1000))
SMALL = Shape(2, 8)

FULL = Setting(
    STEPS,
    UPDATES,
    LARGE,
    Shape(1000, 1000),
    budget=10,
    least=20,
    seconds=0.02,
    traces=9,
    compiles=5,
)
QUICK = FULL._replace(budget=0.5, least=5, seconds=0.01, traces=5, compiles=1)
TINY = Setting((SMALL,), (SMALL,), SMALL, SMALL, budget=0, least=2, seconds=0, traces=2, compiles=1)


# Timing.

Loop = Callable[[int], object]
"""Runs a program a given number of times and waits for its results."""


class Ratio(NamedTuple):
    """The times of two programs in seconds, and the ratio of the first to the second."""

    what: str
    first: float
    second: float
    ratio: float
    quartiles: tuple[float, float]
    pairs: int
    bar: float | None = None


def ratio(what: str, pairs: Sequence[tuple[float, float]], bar: float | None = None) -> Ratio:
    times = np.array(pairs)
    first, second = np.median(times, axis=0).tolist()
    low, middle, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75)).tolist()
    return Ratio(what, first, second, middle, (low, high), len(pairs), bar)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """A context without garbage collection, in which `gc.collect()` scans only new objects."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def clock(function: Callable[..., object], *args: Any) -> float:
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


Start = Callable[[], Loop]
"""Makes new arguments for a program."""


def compare(
    what: str,
    first: Start,
    second: Start,
    setting: Setting,
    bar: float | None = None,
    runs: int | None = None,
) -> Ratio:
    """Time two programs in pairs, with as many runs as a measurement needs if none are given."""
    if runs is None:
        slower = max(min(clock(loop, 1) for _ in range(3)) for loop in (first(), second()))
        runs = math.ceil(setting.seconds / slower) or 1
    pairs: list[tuple[float, float]] = []
    with without_gc():
        end = time.perf_counter() + setting.budget
        while len(pairs) < setting.least or time.perf_counter() < end:
            pairs.append(time_pair(first(), second(), runs, swapped=len(pairs) % 2 == 1))
    return ratio(what, pairs, bar)


def time_pair(first: Loop, second: Loop, runs: int, *, swapped: bool) -> tuple[float, float]:
    """The seconds per run of both programs; if ``swapped``, the second one is timed first."""
    loops = (second, first) if swapped else (first, second)
    for loop in loops:
        loop(1)
    gc.collect()
    times = [clock(loop, runs) / runs for loop in loops]
    return (times[1], times[0]) if swapped else (times[0], times[1])


# Programs.


def training_step(contender: Contender, rate: float = 1e-3) -> tuple[Any, Any]:
    """A transformation and its whole training step, compiled, with donated arguments."""
    tx = contender.make(rate)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        if contender.apply is None:
            return tx.step(grads, state, params)
        updates, state = tx.update(grads, state, params)
        return contender.apply(params, updates), state

    return tx, jax.jit(step, donate_argnums=(0, 1))


def training(contender: Contender, shape: Filled) -> Start:
    tx, step = training_step(contender)
    begin = jax.jit(lambda: (params := shape.full(1.0), tx.init(params)))
    grads = shape.full(0.1)

    def start() -> Loop:
        params, state = begin()

        def loop(runs: int) -> None:
            nonlocal params, state
            for _ in range(runs):
                params, state = step(params, state, grads)
            jax.block_until_ready((params, state))

        return loop

    return start


def updating(contender: Contender, shape: Shape, *, inside: bool) -> Start:
    tx = contender.make(1e-3)
    init, update = jax.jit(tx.init), jax.jit(tx.update) if inside else tx.update
    params, grads = shape.full(1.0), shape.full(0.1)

    def start() -> Loop:
        state = init(params)

        def loop(runs: int) -> None:
            nonlocal state
            updates = None
            for _ in range(runs):
                updates, state = update(grads, state, params)
            jax.block_until_ready((updates, state))

        return loop

    return start


def build(contender: Contender, shape: Filled, rate: float, *, compile: bool) -> dict[str, float]:
    """The seconds to trace, lower and (if wanted) compile a step, with empty caches."""
    tx, step = training_step(contender, rate)
    params = jax.eval_shape(lambda: shape.full(1.0))
    made: Any = step
    arguments: tuple[Any, ...] = params, jax.eval_shape(tx.init, params), params
    taken = {}
    for stage in ("trace", "lower", "compile") if compile else ("trace", "lower"):
        gc.collect()
        began = time.perf_counter()
        made = getattr(made, stage)(*arguments)
        taken[stage] = time.perf_counter() - began
        arguments = ()
    return taken


# Measurements.


def measure_steps(setting: Setting) -> Iterator[Ratio]:
    for how, contender in {"": ADAMX, ", update and apply_updates": UPDATE}.items():
        for shape in setting.steps:
            ours, theirs = training(contender, shape), training(OPTAX, shape)
            yield compare(f"{shape}{how}", ours, theirs, setting, STEP_BAR)


def measure_compensated(setting: Setting) -> Iterator[Ratio]:
    more, less = training(COMPENSATED, setting.large), training(ADAMX, setting.large)
    yield compare(str(setting.large), more, less, setting)


def measure_build(setting: Setting) -> Iterator[Ratio]:
    """Steps with a new learning rate each, so that no cache contains them."""
    times: dict[str, list[tuple[float, float]]] = {"trace": [], "lower": [], "compile": []}
    for contender in (ADAMX, OPTAX):
        build(contender, setting.fresh, 1e-2, compile=False)
    with without_gc():
        for pair in range(setting.traces):
            rate, compile = 1e-3 + 1e-6 * pair, pair < setting.compiles
            contenders = (ADAMX, OPTAX) if pair % 2 else (OPTAX, ADAMX)
            taken = {c: build(c, setting.fresh, rate, compile=compile) for c in contenders}
            for stage in taken[ADAMX]:
                times[stage].append((taken[ADAMX][stage], taken[OPTAX][stage]))
    for stage, pairs in times.items():
        yield ratio(stage, pairs, TRACE_BAR if stage == "trace" else None)


def measure_updates(setting: Setting) -> Iterator[Ratio]:
    for shape in setting.updates:
        for name, contender, bar in (("adamx", ADAMX, EAGER_BAR), ("optax", OPTAX, None)):
            outside, inside = (
                updating(contender, shape, inside=inside) for inside in (False, True)
            )
            yield compare(f"{name}, {shape}", outside, inside, setting, bar)


class Count(NamedTuple):
    """The number of compilations after the first one."""

    what: str
    adamx: int
    optax: int


def recompilations(calls: Iterable[tuple[Any, Any, Any]], **options: Any) -> int:
    """The number of recompilations of a jitted step(holder, state, params) in these calls."""
    traces = 0

    def step(holder: Any, state: Any, params: Any) -> Any:
        nonlocal traces
        traces += 1
        tx = holder.tx if isinstance(holder, TrainState) else holder
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, **options)
    for call in calls:
        compiled(*call)
    return traces - 1


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("tx",))
@dataclasses.dataclass
class TrainState:
    """A state with a static transformation, like Flax's TrainState."""

    tx: Any


def itself(tx: Any) -> Any:
    return tx


def calls(*made: optax.GradientTransformation, hold: Callable[[Any], Any] = itself) -> Any:
    params = jnp.ones(8)
    return [(hold(tx), tx.init(params), params) for tx in made]


def injected_rates(*rates: float) -> Any:
    """Optax's way to change a learning rate without recompiling: the state contains it."""
    tx, params = optax.inject_hyperparams(optax.adam)(rates[0]), jnp.ones(8)
    for rate in rates:
        state: Any = tx.init(params)
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        yield tx, state, params


def measure_recompilations() -> Iterator[Count]:
    def again(rate: Any, hold: Callable[[Any], Any], **options: Any) -> Iterator[int]:
        """The recompilations when an equal optimiser is built again."""
        for contender in (ADAMX, OPTAX):
            made = contender.make(rate()), contender.make(rate())
            yield recompilations(calls(*made, hold=hold), **options)

    static = {"static_argnums": 0}
    constant, schedule = (lambda: 1e-3), (lambda: optax.cosine_decay_schedule(1e-3, 1000))
    yield Count("equal, static argument", *again(constant, itself, **static))
    yield Count("equal, static field (TrainState.tx)", *again(constant, TrainState))
    yield Count("equal with a schedule, static argument", *again(schedule, itself, **static))

    rates = (1e-3, 1e-4, 1e-5)
    passed = recompilations(calls(*map(adamx.adam, rates)))
    rebuilt = recompilations(calls(*map(optax.adam, rates)), **static)
    injected = recompilations(injected_rates(*rates), **static)
    yield Count("2 new rates: argument (optax: static argument)", passed, rebuilt)
    yield Count("2 new rates: argument (optax: inject_hyperparams)", passed, injected)


class Memory(NamedTuple):
    """The memory of a compiled training step in bytes."""

    what: str
    argument: int
    output: int
    alias: int  # bytes of outputs that reuse the memory of an argument
    temp: int


def measure_memory(setting: Setting) -> Iterator[Memory]:
    contenders = {
        "adamx.adam": ADAMX,
        "adamx.adam(compensated=True)": COMPENSATED,
        "optax.adam": OPTAX,
    }
    for name, contender in contenders.items():
        tx, step = training_step(contender)
        params = jax.eval_shape(lambda: setting.large.full(1.0))
        compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile()
        analysis = compiled.memory_analysis()
        sizes = (getattr(analysis, f"{kind}_size_in_bytes") for kind in Memory._fields[1:])
        yield Memory(name, *sizes)


# Presentation.


def verdict(value: float, bar: float | None) -> str:
    return "" if bar is None else f"≤ {bar:g} {'✓' if value <= bar else '✗'}"


def tabulate_ratios(rows: Iterable[Ratio], first: str, second: str) -> Table:
    table = columns(first, second, "ratio", "quartiles", "pairs", "bar")
    for row in rows:
        table.add_row(
            row.what,
            in_units(row.first),
            in_units(row.second),
            f"{row.ratio:.3f}",
            "{:.3f} … {:.3f}".format(*row.quartiles),
            str(row.pairs),
            verdict(row.ratio, row.bar),
        )
    return table


def tabulate_counts(rows: Iterable[Count]) -> Table:
    table = columns("adamx", "optax", "bar")
    for row in rows:
        table.add_row(
            row.what, f"{row.adamx:,}", f"{row.optax:,}", verdict(row.adamx, RECOMPILE_BAR)
        )
    return table


def tabulate_memory(rows: Iterable[Memory]) -> Table:
    table = columns(*Memory._fields[1:])
    for what, *sizes in rows:
        table.add_row(what, *(f"{size:,}" for size in sizes))
    return table


def columns(*headings: str) -> Table:
    table = Table("", box=box.MARKDOWN)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("cost", __doc__)
    option = partial(parser.add_argument, action="store_const", dest="setting", default=FULL)
    option("--quick", const=QUICK, help="fewer repetitions")
    option("--tiny", const=TINY, help=argparse.SUPPRESS)
    return benchmarks.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, save the results; return them."""
    options = parse(arguments)
    setting = options.setting
    console = Console(width=120, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    results: dict[str, Any] = {}

    def show(name: str, title: str, rows: Iterable[Any], tabulate: Callable[..., Table]) -> None:
        measured = list(rows)
        results[name] = [row._asdict() for row in measured]
        console.print(title, tabulate(measured), sep="\n")

    beside = partial(tabulate_ratios, first="adamx", second="optax")
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        show(
            "step",
            "A training step, compiled, with donated arguments",
            measure_steps(setting),
            beside,
        )
        show(
            "compensated",
            "The same, with compensated v",
            measure_compensated(setting),
            partial(tabulate_ratios, first="compensated=True", second="compensated=False"),
        )
        show("build", f"A new training step on {setting.fresh}", measure_build(setting), beside)
        show(
            "update",
            "update() called outside of jit",
            measure_updates(setting),
            partial(tabulate_ratios, first="outside", second="inside"),
        )
        show("recompilations", "Recompilations", measure_recompilations(), tabulate_counts)
        show(
            "memory",
            f"Bytes of a training step on {setting.large}",
            measure_memory(setting),
            tabulate_memory,
        )
    benchmarks.save(results, options)
    return results


if __name__ == "__main__":
    main()
