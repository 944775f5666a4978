"""How many steps the optimisers of matrices need to reach AdamW's loss.

    python -m examples.benchmarks.matrices [--quick] [--task NAME …] [--seeds N] [--json FILE]

There are two trainings: a transformer on the characters of Shakespeare, and convolutions on
CIFAR-10. Every optimiser has four learning rates, with a factor of √10 between them. The rate with
the lowest final loss of the first seed is kept for all seeds; if it is the first or the last one of
the grid, the table marks it (‡). The rate rises linearly in the first tenth of the steps and is
constant afterwards, so that the loss of a step does not depend on the number of steps that follow.
The loss of a step is the mean of the training losses of the last 5 % of all steps. The table shows
after how many steps each optimiser has reached the loss of AdamW's last step, as a ratio: 1.5 means
that AdamW needs 1.5 times as many steps. If it was not reached in every run, the table says so.

Matrices between hidden layers have the optimiser of the row. All other parameters have AdamW, with
the same rate in every row. Finished trainings are kept in a folder (`--out`), so an interrupted
benchmark continues; changed code has another folder. See `examples.data` for the data.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from rich import box
    from rich.console import Console
    from rich.table import Table

    import adamx
    from examples import benchmarks
    from examples.benchmarks import quality
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

ADAMW = "adamw"
DECAY = 0.01
ROOT = math.sqrt(10)
AHEAD = 1.2
"""How many times fewer steps matrix methods need in published benchmarks, at least."""


class Method(NamedTuple):
    """An optimiser of matrices.

    Attributes:
        of: ``rate -> optimiser`` of the hidden matrices.
        first: the lowest learning rate.
        cifar10: the lowest learning rate for CIFAR-10, if it is another one.
    """

    of: Callable[[Any], adamx.Transformation]
    first: float
    cifar10: float | None = None


def hidden(path: str, shape: jax.ShapeDtypeStruct) -> bool:
    """Whether it is a matrix between two hidden layers of one of the networks."""
    is_last = shape.shape[-1] < 100 and "Dense" in path  # the alphabet, or the ten classes
    return adamx.hidden_matrices(path, shape) and not is_last and "places" not in path


def adam_on_spheres(rate: Any) -> adamx.Transformation:
    return adamx.chain(
        adamx.scale_by_momentum(0.9),
        adamx.scale_by_rms(0.99),
        adamx.bias_correction(),
        adamx.hyperball(rate),
    )


METHODS: Mapping[str, Method] = {
    ADAMW: Method(lambda rate: adamx.adamw(rate, 0.9, 0.99, weight_decay=DECAY), 3e-4 * ROOT),
    "lion": Method(lambda rate: adamx.lion(rate, weight_decay=DECAY), 3e-5, 3e-4),
    "muon": Method(lambda rate: adamx.muon(rate, weight_decay=DECAY), 3e-3),
    "normuon": Method(lambda rate: adamx.normuon(rate, weight_decay=DECAY), 3e-3),
    "soap": Method(lambda rate: adamx.soap(rate, weight_decay=DECAY), 1e-3),
    "kl_soap": Method(lambda rate: adamx.kl_soap(rate, weight_decay=DECAY), 1e-3),
    "galore": Method(lambda rate: adamx.galore(rate, rank=32, every=50, weight_decay=DECAY), 3e-3),
    "adam + hyperball": Method(adam_on_spheres, 3e-3 / ROOT),
}
RATES = tuple(ROOT**i for i in range(4))


class Trial(NamedTuple):
    """The training losses of one training, and its duration in seconds."""

    losses: list[float]
    seconds: float


def shakespeare() -> quality.Task:
    """A transformer of four layers, 128 wide."""
    task = quality.shakespeare()
    assert isinstance(task.network, quality.Transformer)
    wide = quality.Transformer(task.network.alphabet, width=128, layers=4)
    return task._replace(network=wide, batch=16)


TASKS: Mapping[str, Callable[[], quality.Task]] = {
    "shakespeare": shakespeare,
    "cifar10": quality.cifar10,
}
ADAMW_RATE = {"shakespeare": 3e-3, "cifar10": 1e-3}
"""The rates of AdamW for what is no hidden matrix, the same for all methods."""


def warmed(rate: float, steps: int) -> Callable[[Any], Any]:
    """A rate that rises linearly in the first tenth of the steps."""
    return lambda count: rate * jnp.minimum(1.0, (count + 1) / (steps / 10))


def train(task: quality.Task, opt: adamx.Transformation, steps: int, seed: int) -> Trial:
    """Train, and return the loss of every batch."""
    inputs, targets = task.train
    draw = np.random.default_rng(seed)
    params = task.network.init(jax.random.key(seed), jnp.asarray(inputs[:1]))
    state = opt.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            scores: Any = task.network.apply(params, x)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), y[..., None], -1))

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state, value

    losses, began = [], time.perf_counter()
    for _ in range(steps):
        places = draw.integers(len(inputs), size=task.batch)
        params, state, value = step(
            params, state, jnp.asarray(inputs[places]), jnp.asarray(targets[places])
        )
        losses.append(value)
    found = [float(x) for x in losses]
    return Trial(found, time.perf_counter() - began)


def finished(
    folder: Path, name: str, task: quality.Task, method: str, rate: float, steps: int, seed: int
) -> Trial:
    """A training from the folder, or a new one that is kept there."""
    file = folder / f"{name}-{method}-{rate:.3g}-{steps}-{seed}.json"
    if file.exists():
        return Trial(**json.loads(file.read_text()))
    rest = adamx.adamw(warmed(ADAMW_RATE[name], steps), 0.9, 0.99, weight_decay=DECAY)
    opt = adamx.partition({hidden: METHODS[method].of(warmed(rate, steps)), "*": rest})
    trial = train(task, opt, steps, seed)
    file.write_text(json.dumps(trial._asdict()))
    return trial


def smooth(losses: Sequence[float]) -> np.ndarray:
    """The mean of the last 5 % of all steps, at every step; infinite before there are so many."""
    width = max(len(losses) // 20, 1)
    sums = np.cumsum(np.where(np.isfinite(losses), losses, 1e9))
    means = (sums[width:] - sums[:-width]) / width
    return np.concatenate([np.full(width, np.inf), means])


class Row(NamedTuple):
    """One optimiser of the table."""

    method: str
    rate: float
    at_an_end: bool
    losses: list[float]
    ratios: list[float]


def compare(name: str, steps: int, seeds: int, folder: Path, console: Console) -> list[Row]:
    """All optimisers on one task."""
    task, curves, rows = TASKS[name](), {}, []
    for method, made in METHODS.items():
        first = made.cifar10 if name == "cifar10" and made.cifar10 is not None else made.first
        rates = [first * x for x in RATES]
        ends = []
        for rate in rates:
            trial = finished(folder, name, task, method, rate, steps, 0)
            ends.append(smooth(trial.losses)[-1])
            console.print(f"{name} {method} {rate:.3g}: {ends[-1]:.4f} in {trial.seconds:.0f} s")
        best = int(np.argmin(ends))
        trials = [finished(folder, name, task, method, rates[best], steps, k) for k in range(seeds)]
        curves[method] = [smooth(x.losses) for x in trials]
        ratios = [
            reached(curve, float(goal[-1]))
            for curve, goal in zip(curves[method], curves[ADAMW], strict=True)
        ]
        rows.append(
            Row(
                method,
                rates[best],
                best in (0, len(rates) - 1),
                [float(x[-1]) for x in curves[method]],
                ratios,
            )
        )
    return rows


def reached(curve: np.ndarray, goal: float) -> float:
    """How many times more steps AdamW needs to reach its last loss; 0 if this one does not."""
    below = np.flatnonzero(curve <= goal)
    return len(curve) / (below[0] + 1) if below.size else 0.0


def tabulate(name: str, rows: Sequence[Row]) -> Table:
    table = Table(title=name, box=box.SIMPLE_HEAD)
    for heading in ("optimiser", "rate", "loss", "AdamW's steps over its own"):
        table.add_column(heading, justify="left" if heading == "optimiser" else "right")
    for row in rows:
        losses, ratios = np.asarray(row.losses), np.asarray(row.ratios)
        spread = f"{ratios.mean():.2f} ({ratios.min():.2f}–{ratios.max():.2f})"
        table.add_row(
            row.method,
            f"{row.rate:.2g}{'‡' if row.at_an_end else ''}",
            f"{losses.mean():.3f} ± {losses.std():.3f}",
            spread
            if ratios.all()
            else f"reached in {np.count_nonzero(ratios)} of {len(ratios)} runs",
        )
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("matrices", __doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed")
    parser.add_argument("--out", type=Path, help="keeps finished trainings")
    return benchmarks.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Row]]:
    options = parse(arguments)
    if options.quick:
        options.steps, options.seeds = 20, 1
    folder = options.out or benchmarks.kept("matrices")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(benchmarks.headline(benchmarks.versions()))
    found = {}
    for name in options.task:
        found[name] = compare(name, options.steps, options.seeds, folder, console)
        console.print(tabulate(name, found[name]))
    stored = {name: [row._asdict() for row in rows] for name, rows in found.items()}
    setting = {"steps": options.steps, "seeds": options.seeds}
    benchmarks.save({**setting, "tasks": stored}, options)
    return found


if __name__ == "__main__":
    main()
