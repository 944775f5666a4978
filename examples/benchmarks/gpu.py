"""Measure steps on a GPU, beside copies of memory, Optax, PyTorch and bitsandbytes.

    python -m examples.benchmarks.gpu [--quick] [--json FILE]

Steps are compiled, with donated arguments, and timed in pairs in alternating order (see `cost`). A
step of Adam in float32 reads 16 bytes per parameter and writes 12; the time of copying as many
bytes is the least that it can take. If `torch` (with CUDA) and `bitsandbytes` are installed, their
optimisers are timed in the same process. The tests run on a GPU by `JAX_PLATFORMS=cuda make test`.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    from rich.console import Console

    import adamx
    from examples import benchmarks
    from examples.benchmarks import cost, storage
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

MOVED = 28 / 8
"""Bytes that a step of Adam moves, relative to those that a copy of the parameters moves."""


class Setting(NamedTuple):
    """The size of the measurement."""

    timing: cost.Setting
    large: cost.Shape
    many: cost.Shape
    one: cost.Shape
    rates: int


FULL = Setting(
    cost.FULL._replace(budget=5),
    cost.Shape(4, 128 * 2**20),
    cost.Shape(1000, 128 * 2**10),
    cost.Shape(1, 1000 * 128 * 2**10),
    32,
)
QUICK = FULL._replace(timing=cost.QUICK, large=cost.Shape(4, 8 * 2**20))
TINY = Setting(cost.TINY, cost.SMALL, cost.SMALL, cost.Shape(1, 16), 2)


def copying(shape: cost.Shape) -> cost.Start:
    """Copies of the parameters, as many that they move as many bytes as a step of Adam."""
    copy = jax.jit(partial(jax.tree.map, lambda x: x + 1), donate_argnums=0)

    def start() -> cost.Loop:
        arrays = shape.full(1.0)

        def loop(runs: int) -> None:
            nonlocal arrays
            for _ in range(round(MOVED * runs)):
                arrays = copy(arrays)
            jax.block_until_ready(arrays)

        return loop

    return start


def sweeping(shape: cost.Shape, rates: int, *, together: bool) -> cost.Start:
    """Steps of Adam with several rates, by `vmap` or one after the other."""
    values = jnp.geomspace(1e-5, 1e-1, rates)

    def step(rate: Any, params: Any, state: Any) -> Any:
        opt = adamx.adam(rate)
        return opt.step(params, state, params)

    def steps(*members: Any) -> Any:
        return jax.vmap(step)(*members) if together else jax.lax.map(lambda x: step(*x), members)

    run = jax.jit(steps, donate_argnums=(1, 2))

    def start() -> cost.Loop:
        params = jax.vmap(lambda rate: shape.full(1.0))(values)
        state = jax.vmap(lambda rate, p: adamx.adam(rate).init(p))(values, params)

        def loop(runs: int) -> None:
            nonlocal params, state
            for _ in range(runs):
                params, state = run(values, params, state)
            jax.block_until_ready(params)

        return loop

    return start


def peers() -> dict[str, Callable[[Any], Any]]:
    """PyTorch's and bitsandbytes' optimisers, if they run on a GPU here."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    fused = {"torch.optim.AdamW(fused=True)": partial(torch.optim.AdamW, fused=True)}
    return fused | storage.peers()


def measure(setting: Setting) -> Iterator[cost.Ratio]:
    compare = partial(cost.compare, setting=setting.timing)
    large, many, one = setting.large, setting.many, setting.one
    step, other = cost.training(cost.ADAMX, large), cost.training(cost.OPTAX, large)
    int8 = cost.Contender(partial(storage.stored, codec=adamx.int8()))
    yield compare(f"{large}: float32 / a copy of as many bytes", step, copying(large), bar=1 / 0.9)
    yield compare(f"{large}: float32 / optax", step, other, bar=1.0)
    yield compare(f"{large}: int8 / float32", cost.training(int8, large), step, bar=0.65)
    several = cost.training(cost.ADAMX, many)
    yield compare(f"{many} / {one}", several, cost.training(cost.ADAMX, one), bar=2.0)
    yield compare(f"{many}: adamx / optax", several, cost.training(cost.OPTAX, many), bar=1.0)
    small = cost.Shape(1, many.size)
    vmapped, single = (sweeping(small, setting.rates, together=x) for x in (True, False))
    yield compare(f"{setting.rates} rates: vmap / one by one", vmapped, single)
    for name, make in peers().items():
        yield compare(f"{large}: float32 / {name}", step, storage.stepping(make, large, "cuda"))


def main(arguments: Sequence[str] | None = None) -> list[cost.Ratio]:
    options = benchmarks.options("gpu", __doc__, arguments)
    if jax.default_backend() != "gpu" and not options.tiny:
        raise SystemExit(f"found no GPU: JAX runs on {jax.devices()[0].device_kind}")
    setting = TINY if options.tiny else QUICK if options.quick else FULL
    console = Console(width=140, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        rows = list(measure(setting))
    console.print(cost.tabulate_ratios(rows, "first", "second"))
    device = jax.devices()[0].device_kind
    results = {"device": device, "ratios": [row._asdict() for row in rows]}
    benchmarks.save(results, options)
    return rows


if __name__ == "__main__":
    main()
