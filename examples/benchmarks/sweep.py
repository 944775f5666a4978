"""Measure the time of a sweep, and compare each of its members with its single run.

    python -m examples.benchmarks.sweep [--quick] [--json FILE]

The sweep has 32 learning rates of Adam on the perceptron of `examples.digits` and scikit-learn's
digits. Every method builds and compiles its programs again in each round; the methods take turns,
in alternating order. A time is the median over the rounds; a ratio is the median of the ratios
within the rounds, with its quartiles. In all methods, a run is a single program: a scan over the
steps.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from rich.console import Console

    import adamx
    from adamx.tools.sweep import sweep
    from examples import benchmarks, data, digits
    from examples.benchmarks import cost, tables
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

SPEED_BAR, AGREEMENT_BAR = 5.0, 1e-6


class Setting(NamedTuple):
    """The size of the measurement."""

    rates: int
    epochs: int
    examples: int
    rounds: int


FULL = Setting(rates=32, epochs=10, examples=10_000, rounds=3)
QUICK = FULL._replace(epochs=2, rounds=1)
TINY = Setting(rates=2, epochs=1, examples=128, rounds=1)


class Problem:
    """The digits, the order of their batches, and the initial parameters of every run."""

    def __init__(self, setting: Setting):
        digits_of = data.load_digits().head(setting.examples)
        self.images = jnp.asarray(digits_of.train_images)
        self.labels = jnp.asarray(digits_of.train_labels)
        epochs = digits.shuffled(len(self.images), setting.epochs, seed=0)
        self.batches = jnp.asarray(np.concatenate(epochs))
        self.model = digits.Classifier()
        self.params = self.model.init(jax.random.key(0), self.images[:1])
        self.rates = np.geomspace(1e-5, 1e-1, setting.rates).tolist()

    def train(self, tx: optax.GradientTransformation, state: Any = None) -> jax.Array:
        """The loss at every step."""

        def loss(params: Any, batch: jax.Array) -> jax.Array:
            logits = self.model.apply(params, self.images[batch])
            return digits.cross_entropy(logits, self.labels[batch])  # pyright: ignore[reportArgumentType]

        def step(carry: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        start = self.params, tx.init(self.params) if state is None else state
        return jax.lax.scan(step, start, self.batches)[1]


# The methods: each returns the losses, [rate, step].


def swept(problem: Problem, chunk: int | None = None) -> np.ndarray:
    members = [adamx.adam(rate) for rate in problem.rates]
    return sweep(problem.train, members, chunk=chunk, progress=False).outputs


def looped(make: Callable[[float], optax.GradientTransformation], problem: Problem) -> np.ndarray:
    """One program for each rate, which captures its optimiser."""
    return np.stack([jax.jit(partial(problem.train, make(rate)))() for rate in problem.rates])


def injected(problem: Problem) -> np.ndarray:
    """One program, with the rate in the optimiser's state."""
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    train = jax.jit(lambda state: problem.train(tx, state))
    state = tx.init(problem.params)
    assert isinstance(state, optax.InjectHyperparamsState | optax.InjectStatefulHyperparamsState)
    curves = []
    for rate in problem.rates:
        rated = {**state.hyperparams, "learning_rate": jnp.float32(rate)}
        curves.append(train(state._replace(hyperparams=rated)))
    return np.stack(curves)


SWEEP = "adamx.sweep"
BATCHED = "adamx.sweep, all at once"
CONTENDERS: dict[str, Callable[[Problem], np.ndarray]] = {
    SWEEP: swept,
    BATCHED: lambda problem: swept(problem, chunk=len(problem.rates)),
    "loop over optax.adam": partial(looped, optax.adam),
    "loop, optax.inject_hyperparams": injected,
}
BARS = {"loop over optax.adam": SPEED_BAR}


# Measuring.


def measure(problem: Problem, rounds: int) -> tuple[list[cost.Ratio], dict[str, np.ndarray]]:
    """The time of every method relative to the sweep, and its losses."""
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    curves: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        curves[name] = CONTENDERS[name](problem)

    order = list(CONTENDERS)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            with cost.without_gc():
                times[name].append(cost.clock(run, name))
    ratios = [
        cost.ratio(name, list(zip(times[name], times[SWEEP], strict=True)), BARS.get(name))
        for name in itertools.islice(CONTENDERS, 1, None)
    ]
    return ratios, curves


class Agreement(NamedTuple):
    """The relative differences between the members of a sweep and their single runs."""

    what: str
    curve: list[float]  # for each rate, the largest difference over the steps
    final: list[float]  # for each rate, the difference of the last losses


def agreement(what: str, curves: np.ndarray, alone: np.ndarray) -> Agreement:
    differences = np.abs(curves / alone.astype(np.float64) - 1)
    return Agreement(what, differences.max(axis=1).tolist(), differences[:, -1].tolist())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("sweep", __doc__)
    option = partial(parser.add_argument, action="store_const", dest="setting", default=FULL)
    option("--quick", const=QUICK, help="fewer epochs, one round")
    option("--tiny", const=TINY, help=argparse.SUPPRESS)
    return benchmarks.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, save the results; return them."""
    options = parse(arguments)
    setting = options.setting
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(benchmarks.headline(benchmarks.versions()))
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        problem = Problem(setting)
        ratios, curves = measure(problem, setting.rounds)
        alone = looped(adamx.adam, problem)
    agreements = [agreement(name, curves[name], alone) for name in (SWEEP, BATCHED)]
    rates, steps = alone.shape
    results = {
        "setting": setting._asdict(),
        "bar": AGREEMENT_BAR,
        "steps": steps,
        "rates": problem.rates,
        "times": [row._asdict() for row in ratios],
        "agreement": [row._asdict() for row in agreements],
    }
    console.print(f"{rates} learning rates, {steps} steps each, including compilation")
    console.print(tables.sweep_times(results), "", sep="\n")
    console.print("Relative difference to the single runs, the largest for each decade of rates")
    console.print(tables.sweep_agreement(results))
    benchmarks.save(results, options)
    return results


if __name__ == "__main__":
    main()
