"""Measure whether bfloat16 parameters follow float32 parameters through many small steps.

    python -m examples.benchmarks.parameters [--quick] [--seeds N] [--json FILE]

The program trains a perceptron on MNIST for two epochs and rounds its parameters to bfloat16. Then
it continues with Adam at a learning rate so small that most steps are less than half of a
parameter's last digit. It does so with float32 parameters, with bfloat16 parameters, and with
bfloat16 parameters and each of the stages that compensate for rounding. For each seed, all
trainings start from the same parameters and use the same batches. All compute losses and gradients
in float32. The reported loss is the loss on all training images.

A row follows float32 if its mean differs from the mean of float32 by at most the standard deviation
over float32's seeds.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax.training.train_state import TrainState
    from rich import box
    from rich.console import Console
    from rich.table import Table

    import adamx
    from examples import benchmarks, data, digits
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

RATE = 1e-5
FLOAT32, PLAIN = "float32", "bfloat16"

METHODS: Mapping[str, adamx.Transformation] = {
    FLOAT32: adamx.adam(RATE),
    PLAIN: adamx.adam(RATE),
    "stochastic_rounding": adamx.chain(adamx.adam(RATE), adamx.stochastic_rounding()),
    "kahan_summation": adamx.chain(adamx.adam(RATE), adamx.kahan_summation()),
    "master_weights": adamx.chain(adamx.adam(RATE), adamx.master_weights()),
}


class Setting(NamedTuple):
    """The size of the trainings.

    Attributes:
        steps: the number of small steps after the first epochs.
        epochs: the first epochs, in float32, at Adam's usual learning rate.
        batch: the number of examples in a step.
    """

    dataset: data.Dataset
    network: digits.Classifier
    steps: int
    epochs: int
    batch: int

    def batches(self, steps: int, seed: int) -> np.ndarray:
        """The indices of the examples of every step."""
        size = len(self.dataset.train_images)
        random = np.random.default_rng(seed)
        orders = [random.permutation(size) for _ in range(-(-steps * self.batch // size))]
        return np.concatenate(orders)[: steps * self.batch].reshape(steps, -1).astype(np.int32)

    def apply(self, params: Any, images: jax.Array) -> jax.Array:
        """The output of the network with its parameters converted to float32."""
        return self.network.apply(jax.tree.map(lambda x: x.astype(jnp.float32), params), images)  # pyright: ignore[reportReturnType]


class End(NamedTuple):
    """The result of one training; its loss at the start is the loss of the rounded parameters."""

    start: float
    loss: float
    accuracy: float
    bytes: float


def beginning(setting: Setting, seed: int) -> Any:
    """The parameters after the first epochs, rounded to bfloat16."""
    images = setting.dataset.train_images
    params = setting.network.init(jax.random.key(seed), images[:1])
    state = TrainState.create(apply_fn=setting.apply, params=params, tx=adamx.adam(1e-3))
    steps = setting.epochs * len(images) // setting.batch
    batches = setting.batches(steps, seed)
    state, _ = digits.train_epoch(state, images, setting.dataset.train_labels, batches)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)


def training(setting: Setting, name: str, params: Any, seed: int) -> End:
    """Continue the training with small steps."""
    if name == FLOAT32:
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    else:
        params = jax.tree.map(jnp.copy, params)  # a copy, because it is donated
    state = TrainState.create(apply_fn=setting.apply, params=params, tx=METHODS[name])
    train, test = (
        (jnp.asarray(images), jnp.asarray(labels))
        for images, labels in (setting.dataset[1:3], setting.dataset[3:5])
    )
    start, _ = digits.evaluate(setting.apply, params, *train)
    state, _ = digits.train_epoch(state, *train, setting.batches(setting.steps, seed + 1000))
    loss, _ = digits.evaluate(setting.apply, state.params, *train)
    _, accuracy = digits.evaluate(setting.apply, state.params, *test)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    kept = sum(x.nbytes for x in jax.tree.leaves(state.params))
    kept += adamx.memory_usage(state.opt_state).bytes
    return End(float(start), float(loss), float(accuracy), kept / count)


class Row(NamedTuple):
    """The results over all seeds for one way to keep parameters.

    Attributes:
        farthest: the largest relative difference between the loss of a seed and its float32 loss.
    """

    name: str
    bytes: float
    start: float
    loss: float
    spread: float
    farthest: float
    accuracy: float
    follows: bool


def rows(ends: Mapping[str, Sequence[End]]) -> Iterator[Row]:
    """The rows of the table, from the results of every seed."""
    target = np.array([end.loss for end in ends[FLOAT32]])
    for name, own in ends.items():
        losses = np.array([end.loss for end in own])
        yield Row(
            name,
            own[0].bytes,
            float(np.mean([end.start for end in own])),
            float(losses.mean()),
            float(losses.std(ddof=1)),
            float(np.abs(losses / target - 1).max()),
            float(np.mean([end.accuracy for end in own])),
            bool(abs(losses.mean() - target.mean()) <= target.std(ddof=1)),
        )


def tabulate(table_rows: Sequence[Row]) -> Table:
    table = Table("parameters", box=box.MARKDOWN)
    headings = ("bytes", "first loss", "last loss", "to float32's", "farthest seed", "accuracy")
    for heading in (*headings, "follows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in table_rows:
        table.add_row(
            row.name if row.name in (FLOAT32, PLAIN) else f"{PLAIN}, {row.name}",
            f"{row.bytes:.2f}",
            f"{row.start:.5f}",
            f"{row.loss:.5f} ± {row.spread:.5f}",
            f"{row.loss / table_rows[0].loss - 1:+.2%}",
            f"{row.farthest:.2%}",
            f"{row.accuracy:.2%}",
            "✓" if row.follows else "✗",
        )
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("parameters", __doc__)
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, fewer steps")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--seeds", type=int, default=4, help="number of trainings of each, at least 2"
    )
    options = benchmarks.parse(parser, arguments)
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, for a standard deviation; got {options.seeds}")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, print the table, save the results; return the table's rows."""
    options = parse(arguments)
    if options.tiny:
        setting = Setting(data.load_digits(), digits.Classifier((4,)), 1000, 1, 8)
    elif options.quick:
        setting = Setting(data.load_digits(), digits.Classifier((32,)), 400, 20, 64)
    else:
        setting = Setting(data.mnist(), digits.Classifier(), 6000, 2, 128)
    console = Console(width=140, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    ends: dict[str, list[End]] = {name: [] for name in METHODS}
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        for seed in range(options.seeds):
            params = beginning(setting, seed)
            for name in METHODS:
                ends[name].append(training(setting, name, params, seed))
    table_rows = list(rows(ends))
    console.print(
        f"{setting.dataset.name}, {setting.steps:,} steps of Adam at {RATE:g}, batches of "
        f"{setting.batch}, {options.seeds} seeds: mean ± standard deviation"
    )
    console.print(tabulate(table_rows))
    seeds = {name: [end._asdict() for end in own] for name, own in ends.items()}
    results = {"steps": setting.steps, "rate": RATE, "seeds": seeds}
    benchmarks.save(results | {"rows": [row._asdict() for row in table_rows]}, options)
    return table_rows


if __name__ == "__main__":
    main()
