"""Measure what gates and accumulation cost in a training step.

    python -m examples.benchmarks.gates [--quick] [--json FILE]

The steps of each model with and without a gate, in which nothing is skipped, are timed in pairs, in
alternating order; so are those of adamx and Optax. The time of a program depends on where XLA puts
its arrays in memory, by a tenth and more for convolutions. So each pair of programs is compiled
several times, each time with the parameters in another order. A ratio is the median of the ratios
of these, with its quartiles. The first table has the memory of the compiled update alone: of the
state and of temporaries.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import optax
    from rich.console import Console
    from rich.table import Table

    import adamx
    from examples import benchmarks
    from examples.benchmarks import cost, watch
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

ADAM, CLIPPED = adamx.adamw(1e-3), adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
OPTAX = optax.adamw(1e-3)

# What is measured, beside what, and what the ratio should not exceed.
PAIRS = {
    "adamw / adamw": (ADAM, adamx.adamw(1e-3), None),  # the noise
    "(clip, adamw) / adamw": (CLIPPED, ADAM, None),  # what any global norm costs
    "skip_nonfinite(adamw) / adamw": (adamx.skip_nonfinite(ADAM), ADAM, 1.03),
    "skip_spikes(adamw) / adamw": (adamx.skip_spikes(ADAM), ADAM, 1.03),
    "loss_scale(adamw) / adamw": (adamx.loss_scale(ADAM, 1.0, period=10**9), ADAM, 1.03),
    "skip_nonfinite(clip, adamw) / (clip, adamw)": (adamx.skip_nonfinite(CLIPPED), CLIPPED, 1.03),
    "skip_nonfinite(adamw) / optax.apply_if_finite": (
        adamx.skip_nonfinite(ADAM),
        optax.apply_if_finite(OPTAX, 20),
        1.0,
    ),
    "accumulate(adamw, 4) / optax.MultiSteps": (
        adamx.accumulate(ADAM, 4),
        optax.MultiSteps(OPTAX, 4).gradient_transformation(),
        1.0,
    ),
}
UPDATES = {
    "adamw": ADAM,
    "accumulate(adamw, 4)": adamx.accumulate(ADAM, 4),
    "skip_nonfinite(adamw)": adamx.skip_nonfinite(ADAM),
    "skip_nonfinite(clip, adamw)": adamx.skip_nonfinite(CLIPPED),
    "optax.adamw": OPTAX,
    "optax.MultiSteps(adamw, 4)": optax.MultiSteps(OPTAX, 4).gradient_transformation(),
    "optax.apply_if_finite(adamw)": optax.apply_if_finite(OPTAX, 20),
}


class Memory(NamedTuple):
    """Bytes per parameter of a compiled update that gives new parameters in place of the old."""

    update: str
    state: float
    temporary: float


def measure(
    setting: cost.Setting, models: Mapping[str, watch.Model], orders: int
) -> Iterator[cost.Ratio]:
    each = setting._replace(budget=setting.budget / orders, least=min(3, setting.least))
    for name, model in models.items():
        for pair, (one, other, bar) in PAIRS.items():
            times = []
            for order in range(orders):
                first = watch.training(model, one, order=2 * order)
                second = watch.training(model, other, order=2 * order + 1)
                found = cost.compare(pair, first, second, each)
                times.append((found.first, found.second))
            yield cost.ratio(f"{name}: {pair}", times, bar)


def memory(size: int, count: int = 4) -> Iterator[Memory]:
    params = [jax.ShapeDtypeStruct((size, size), jnp.float32)] * count
    for name, opt in UPDATES.items():
        state = jax.eval_shape(opt.init, params)

        def step(params: Any, state: Any, grads: Any, opt: Any = opt) -> Any:
            updates, state = opt.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        made = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
        sizes = made.memory_analysis()
        assert sizes is not None
        kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        elements = count * size * size
        yield Memory(name, kept / elements, sizes.temp_size_in_bytes / elements)


def tabulate(rows: Sequence[Memory]) -> Table:
    table = Table("update", "state, bytes per parameter", "temporary, bytes per parameter")
    for row in rows:
        table.add_row(row.update, f"{row.state:.2f}", f"{row.temporary:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> tuple[list[cost.Ratio], list[Memory]]:
    options = benchmarks.options("gates", __doc__, arguments)
    setting = cost.TINY if options.tiny else cost.QUICK if options.quick else cost.FULL
    console = Console(width=150, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    sizes = list(memory(16 if options.tiny else 1024))
    console.print(tabulate(sizes))
    orders = 1 if options.tiny else 5 if options.quick else 25
    rows = list(measure(setting, watch.TINY if options.tiny else watch.MODELS, orders))
    console.print(cost.tabulate_ratios(rows, "first", "second"))
    results = {
        "ratios": [row._asdict() for row in rows],
        "memory": [row._asdict() for row in sizes],
    }
    benchmarks.save(results, options)
    return rows, sizes


if __name__ == "__main__":
    main()
