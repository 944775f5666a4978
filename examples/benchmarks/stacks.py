"""Measure a step of Muon on many matrices: one by one, in stacks of equal ones, and in Optax.

    python -m examples.benchmarks.stacks [--quick] [--json FILE]

As `examples.benchmarks.cost` does it, two programs are timed in pairs. A step is `update` and
`apply_updates` under `jit`; its compilation is measured from tracing to the end.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import optax
    from rich.console import Console

    import adamx
    from adamx.engine import run as engine
    from examples import benchmarks
    from examples.benchmarks import cost
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

STEP_BAR, COMPILE_BAR = 0.9, 0.5


class Matrices(NamedTuple):
    """Parameters by name and shape."""

    what: str
    shapes: Mapping[str, tuple[int, int]]

    def full(self, value: float) -> dict[str, jax.Array]:
        ramp = {k: jnp.arange(m * n, dtype=jnp.float32) for k, (m, n) in self.shapes.items()}
        return {k: value * jnp.cos(x).reshape(self.shapes[k]) for k, x in ramp.items()}


def square(count: int, side: int) -> Matrices:
    shapes = {f"w{i}": (side, side) for i in range(count)}
    return Matrices(f"{count} of {side} × {side}", shapes)


def layers(count: int, width: int) -> Matrices:
    """The matrices of transformer blocks."""
    sides = {"query": 1, "key": 1, "value": 1, "out": 1, "up": 4}
    one = {name: (width, times * width) for name, times in sides.items()}
    one["down"] = (4 * width, width)
    shapes = {f"{name}{i}": shape for i in range(count) for name, shape in one.items()}
    return Matrices(f"{count} layers of width {width}", shapes)


FULL = (square(48, 32), square(48, 128), square(48, 256), layers(12, 256))
QUICK = (square(48, 128),)


@contextlib.contextmanager
def stacking(on: bool) -> Iterator[None]:
    """Stack equal matrices while a step is traced, or do not."""
    before = engine.stacking_pays
    engine.stacking_pays = lambda: on
    try:
        yield
    finally:
        engine.stacking_pays = before


def muon(*, stacks: bool) -> Callable[[float], optax.GradientTransformation]:
    def make(rate: float) -> optax.GradientTransformation:
        opt = adamx.muon(rate)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            with stacking(stacks):
                return opt.update(updates, state, params)

        return optax.GradientTransformation(opt.init, update)

    return make


SINGLE = cost.Contender(muon(stacks=False), adamx.apply_updates)
STACKED = cost.Contender(muon(stacks=True), adamx.apply_updates)
OPTAX = cost.Contender(optax.contrib.muon, optax.apply_updates)


def compiled(what: str, first: Any, second: Any, shape: Matrices, pairs: int, bar: Any) -> Any:
    """The seconds from tracing to the end of compiling, with empty caches."""
    taken = []
    for pair in range(pairs):
        times = []
        for contender in (first, second):
            jax.clear_caches()
            made = cost.build(contender, shape, 1e-3 + 1e-6 * pair, compile=True)
            times.append(sum(made.values()))
        taken.append((times[0], times[1]))
    return cost.ratio(what, taken, bar)


def main(argv: Any = None) -> dict[str, Any]:
    parser = benchmarks.parser("stacks", __doc__)
    parser.add_argument("--quick", action="store_true", help="one size, and few pairs")
    arguments = benchmarks.parse(parser, argv)
    setting = cost.QUICK if arguments.quick else cost.FULL
    sizes = QUICK if arguments.quick else FULL
    console, found = Console(), dict[str, list[cost.Ratio]]()
    console.print(benchmarks.headline(benchmarks.versions()))
    for against, other, bars in (
        ("optax.contrib.muon", OPTAX, (STEP_BAR, COMPILE_BAR)),
        ("in stacks", STACKED, (None, None)),
    ):
        rows: list[cost.Ratio] = []
        for size in sizes:
            pair = (cost.training(SINGLE, size), cost.training(other, size))
            rows.append(cost.compare(f"step, {size.what}", *pair, setting, bars[0]))
            pairs = setting.compiles
            rows.append(compiled(f"compile, {size.what}", SINGLE, other, size, pairs, bars[1]))
        found[against] = rows
        console.print(cost.tabulate_ratios(rows, "adamx, one by one", against))
    results = {against: [row._asdict() for row in rows] for against, rows in found.items()}
    benchmarks.save(results, arguments)
    return results


if __name__ == "__main__":
    main()
