"""Measure the relative error of updates against a float64 oracle, at every step.

    python -m examples.benchmarks.accuracy [--quick] [--seed N] [--json FILE]

Every optimiser gets the same float32 gradients: a mean plus noise, with scales that span six orders
of magnitude. The error of a step is the median over coordinates of |Δθ − Δθ*| / |Δθ*|, where Δθ* is
the update of Algorithm 1 in float64. For scheduled β, the oracle uses the products Πβ in place of
βᵗ. Optax and PyTorch accept a β that changes, too, but correct the bias with βₜᵗ.
"""

import argparse
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

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
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

RATE, EPS = 1e-3, 1e-8
COORDINATES = 256
BLOCK = 1000  # number of steps in memory at a time
SHOWN = (1, 10, 100, 1000, 10_000, 50_000)
BAR = 1e-6

Beta = float | np.ndarray
"""A constant, or the float32 values for each step."""

Blocks = Iterator[np.ndarray]
"""Arrays [steps, coordinates], in consecutive blocks of steps."""


class Case(NamedTuple):
    name: str
    b1: Beta
    b2: Beta


def cases(steps: int) -> list[Case]:
    t = np.arange(steps)
    b1 = 0.825 + 0.125 * np.cos(2 * np.pi * t / 1000)
    b2 = 1 - (t + 2.0) ** -0.8
    return [
        *(Case(f"β₂ = {b2}", 0.9, b2) for b2 in (0.9, 0.999, 0.9999, 0.99999)),
        Case("β₁(t), β₂(t)", b1.astype(np.float32), b2.astype(np.float32)),
    ]


def gradients(steps: int, seed: int) -> Blocks:
    """Noise around a mean, with a different scale in every coordinate."""
    random = np.random.default_rng(seed)
    scale = np.logspace(-4, 2, COORDINATES)
    mean = random.uniform(0.25, 1.0, COORDINATES) * random.choice([-1, 1], COORDINATES)
    for start in range(0, steps, BLOCK):
        noise = random.standard_normal((min(BLOCK, steps - start), COORDINATES))
        yield (scale * (mean + noise)).astype(np.float32)


def oracle(case: Case, blocks: Blocks) -> Blocks:
    """Algorithm 1 in float64, with the weights 1 − Πβ computed without cancellation."""
    m = v = np.zeros(COORDINATES)
    logs = np.zeros(2)  # Σ log β₁ and Σ log β₂
    done = 0
    for grads in blocks:
        steps = slice(done, done + len(grads))
        betas = np.stack([per_step(b, steps) for b in (case.b1, case.b2)], axis=1)
        ms, vs = [], []
        for (b1, b2), g in zip(betas.tolist(), grads.astype(np.float64), strict=True):
            ms.append(m := b1 * m + (1 - b1) * g)
            vs.append(v := b2 * v + (1 - b2) * g**2)
        sums = logs + np.cumsum(np.log(betas), axis=0)
        w1, w2 = np.split(-np.expm1(sums), 2, axis=1)
        yield -RATE * (ms / w1) / (np.sqrt(vs / w2) + EPS)
        logs, done = sums[-1], steps.stop


def per_step(beta: Beta, steps: slice) -> np.ndarray:
    """The values of β in these steps, in float64."""
    values = beta[steps] if isinstance(beta, np.ndarray) else [beta] * (steps.stop - steps.start)
    return np.asarray(values, np.float64)


def schedule(beta: Beta) -> Any:
    """β as an argument for JAX optimisers; a look-up, so that all use the same float32 values."""
    return (lambda count: jnp.asarray(beta)[count]) if isinstance(beta, np.ndarray) else beta


def with_jax(
    make: Callable[..., optax.GradientTransformation], case: Case, blocks: Blocks
) -> Blocks:
    tx = make(RATE, schedule(case.b1), schedule(case.b2), EPS)

    def step(state: Any, grad: jax.Array) -> tuple[Any, Any]:
        update, state = tx.update(grad, state)
        return state, update

    run = jax.jit(partial(jax.lax.scan, step))
    state = tx.init(jnp.zeros(COORDINATES))
    for grads in blocks:
        state, updates = run(state, grads)
        yield np.asarray(updates, np.float64)


def optax_adam(rate: float, b1: Any, b2: Any, eps: float) -> optax.GradientTransformation:
    scheduled = callable(b1) or callable(b2)
    make: Any = optax.inject_hyperparams(optax.adam) if scheduled else optax.adam
    return make(rate, b1=b1, b2=b2, eps=eps)


def with_torch(case: Case, blocks: Blocks, **options: bool) -> Blocks:
    """The parameters are set to zero before every step, so that they become the exact update."""
    torch.set_num_threads(
        1
    )  # with so few coordinates, several threads would only wait for each other
    params = torch.zeros(COORDINATES)
    adam = torch.optim.Adam([params], lr=RATE, eps=EPS, **options)
    done = 0
    for grads in blocks:
        steps = slice(done, done + len(grads))
        betas = zip(*(per_step(b, steps).tolist() for b in (case.b1, case.b2)), strict=True)
        updates = torch.empty(grads.shape)
        for update, grad, now in zip(updates, torch.from_numpy(grads), betas, strict=True):
            adam.param_groups[0]["betas"] = now
            params.grad = grad
            adam.step()
            update.copy_(params)
            params.zero_()
        yield updates.double().numpy()
        done = steps.stop


def contenders() -> dict[str, Callable[[Case, Blocks], Blocks]]:
    rows = {
        "adamx.adam": partial(with_jax, adamx.adam),
        "adamx.adam(compensated=True)": partial(with_jax, partial(adamx.adam, compensated=True)),
        "optax.adam": partial(with_jax, optax_adam),
    }
    if torch is not None:
        rows |= {
            "torch.optim.Adam(fused=True)": partial(with_torch, fused=True),
            "torch.optim.Adam": with_torch,
        }
    return rows


def measure(case: Case, blocks: Blocks) -> dict[str, np.ndarray]:
    """The error of every optimiser at every step."""
    runs = contenders()
    feed, *feeds = itertools.tee(blocks, 1 + len(runs))
    errors: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    updates = {name: run(case, mine) for (name, run), mine in zip(runs.items(), feeds, strict=True)}
    for exact in oracle(case, feed):
        for name, run in updates.items():
            errors[name].append(np.median(np.abs(next(run) / exact - 1), axis=1))
    return {name: np.concatenate(parts) for name, parts in errors.items()}


class Score(NamedTuple):
    """A row of the table."""

    case: str
    optimiser: str
    at: dict[int, float]
    worst: float
    worst_step: int


def score(case: str, optimiser: str, errors: np.ndarray) -> Score:
    at = {t: float(errors[t - 1]) for t in SHOWN if t <= len(errors)}
    return Score(case, optimiser, at, float(errors.max()), int(errors.argmax()) + 1)


def tabulate(scores: Sequence[Score]) -> Table:
    table = Table("", "optimiser", box=box.MARKDOWN)
    for heading in (*(f"t={t}" for t in scores[0].at), "worst", "at t", f"≤ {BAR:g}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, rows in itertools.groupby(scores, key=lambda row: row.case):
        for first, row in zip(itertools.chain([case], itertools.repeat("")), rows, strict=False):
            table.add_row(
                first,
                row.optimiser,
                *(f"{error:.1e}" for error in row.at.values()),
                f"{row.worst:.1e}",
                str(row.worst_step),
                "✓" if row.worst <= BAR else "✗",
            )
    return table


def summary(scores: Sequence[Score], steps: int) -> Iterator[str]:
    """The optimisers whose error is within the bar at every step."""
    passed: Mapping[str, list[str]] = {row.optimiser: [] for row in scores}
    for row in scores:
        if row.worst <= BAR:
            passed[row.optimiser].append(row.case)
    count = len({row.case for row in scores})
    yield f"At most {BAR:g} at every one of {steps:,} steps:"
    for name, held in passed.items():
        where = "all" if len(held) == count else ", ".join(held) or "none"
        yield f"  {name}: {where}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("accuracy", __doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 steps instead of 50,000")
    parser.add_argument("--seed", type=int, default=0, help="seed of the gradients")
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = benchmarks.parse(parser, arguments)
    options.steps = options.steps or (5_000 if options.quick else 50_000)
    return options


def main(arguments: Sequence[str] | None = None) -> list[Score]:
    """Measure, print the table, save the results; return the table's rows."""
    options = parse(arguments)
    console = Console(width=140, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    if torch is None:
        console.print("PyTorch is not installed, so its rows are omitted.")

    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        scores = [
            score(case.name, name, errors)
            for case in cases(options.steps)
            for name, errors in measure(case, gradients(options.steps, options.seed)).items()
        ]
    console.print(tabulate(scores))
    console.print(*summary(scores, options.steps), sep="\n")
    results = {"steps": options.steps, "seed": options.seed, "bar": BAR}
    benchmarks.save(results | {"scores": [row._asdict() for row in scores]}, options)
    return scores


if __name__ == "__main__":
    main()
