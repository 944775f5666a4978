"""Compare trainings with quantized optimiser states with the same trainings in float32.

    python -m examples.benchmarks.quality [--quick] [--task NAME …] [--seeds N] [--json FILE]

There are three trainings: a perceptron on MNIST, convolutions on CIFAR-10, and a transformer on the
characters of Shakespeare. Each runs with Adam's state in float32 and in every format of
`adamx.quantize_state`. All trainings of one seed have the same initial parameters, the same batches
and the same seed for rounding.

The lengths were fixed before any result was known, such that the loss ends far from zero, because
the ratio of two losses near zero is meaningless. The loss is measured at the end on a fixed part of
the training data, and the learning rate decays to zero, so that neither the last batches nor the
last steps determine the result. A format passes (✓) if the mean loss is within 1 % of float32's, or
within a standard deviation over float32's seeds, and if the mean accuracy is within 0.3 points.
Both bounds apply in both directions, because a training with a lower loss is a different training,
too.

Finished trainings are kept in a folder (`--out`), so an interrupted benchmark continues; changed
code has another folder. See `examples.data` for the data.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from rich.console import Console

    import adamx
    from examples import benchmarks, data, digits
    from examples.benchmarks import tables
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

LOSS_BAR, ACCURACY_BAR = 0.01, 0.003
FLOAT32 = "float32"
KEPT: Mapping[str, adamx.Codec | None] = {
    FLOAT32: None,
    "bf16": adamx.bf16(),
    "fp8": adamx.fp8(),
    "int8": adamx.int8(),
    "int8, nearest": adamx.int8(rounding="nearest"),
}


# Networks


class Convolutions(nn.Module):
    """A network of 3×3 convolutions with stride 2, and two dense layers."""

    channels: Sequence[int] = (32, 64, 64)
    units: int = 128

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        for channels in self.channels:
            images = nn.relu(nn.Conv(channels, (3, 3), (2, 2))(images))
        images = nn.relu(nn.Dense(self.units)(images.reshape(len(images), -1)))
        return nn.Dense(10)(images)


class Transformer(nn.Module):
    """A transformer that predicts the next character, with normalisation before every layer."""

    alphabet: int
    width: int = 96
    layers: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        places = self.param("places", nn.initializers.normal(0.02), (text.shape[1], self.width))
        x = nn.Embed(self.alphabet, self.width)(text) + places[None]
        for _ in range(self.layers):
            x += nn.Dense(self.width)(self.attention(nn.Dense(3 * self.width)(nn.LayerNorm()(x))))
            x += nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.alphabet)(nn.LayerNorm()(x))

    def attention(self, x: jax.Array) -> jax.Array:
        each = x.reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = (each[:, :, i] for i in range(3))
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return seen.reshape(*x.shape[:2], self.width)


# Tasks


class Task(NamedTuple):
    """A training task.

    Attributes:
        train: inputs and targets, ``[examples, ...]`` each.
        test: inputs and targets of the test set.
        recipe: ``schedule -> optimiser``.
        rate: the highest learning rate of the schedule.
        measured: the number of training examples, from the first, whose loss is reported.
    """

    title: str
    network: nn.Module
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    recipe: Callable[[Any], adamx.Transformation]
    rate: float
    batch: int
    steps: int
    measured: int

    def schedule(self) -> optax.Schedule:
        """A warm-up over a tenth of the steps, then a cosine decay to zero."""
        return optax.warmup_cosine_decay_schedule(0.0, self.rate, self.steps // 10, self.steps)

    def batches(self, seed: int) -> np.ndarray:
        """The indices of the examples of every step; each epoch has a new random order."""
        random = np.random.default_rng(seed)
        epoch = len(self.train[0]) // self.batch
        orders = [
            random.permutation(len(self.train[0]))[: epoch * self.batch]
            for _ in range(-(-self.steps // epoch))
        ]
        return np.concatenate(orders).reshape(-1, self.batch)[: self.steps].astype(np.int32)


def mnist() -> Task:
    dataset = data.mnist()
    return Task(
        "MNIST, perceptron 784-256-256-10",
        digits.Classifier((256, 256)),
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
        adamx.adam,
        rate=1e-3,
        batch=128,
        steps=1404,
        measured=60_000,
    )


def cifar10() -> Task:
    """The test set is as large as the training set, as 2,000 images can't resolve 0.3 %."""
    dataset = data.cifar10()
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    return Task(
        "CIFAR-10, c32-c64-c64-128-10",
        Convolutions(),
        (images[:6_000], labels[:6_000]),
        (images[6_000:12_000], labels[6_000:12_000]),
        adamx.adam,
        rate=1e-3,
        batch=64,
        steps=744,
        measured=6_000,
    )


def shakespeare(context: int = 64) -> Task:
    text = data.shakespeare()
    return Task(
        "Tiny Shakespeare, transformer of 2 layers of width 96",
        Transformer(len(text.alphabet)),
        windows(text.train, context),
        windows(text.test, context),
        adamx.adamw,
        rate=2e-3,
        batch=16,
        steps=980,
        measured=2_000,
    )


def windows(text: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the text, and for every character the next one."""
    count = (len(text) - 1) // context
    inputs, targets = text[: count * context], text[1 : count * context + 1]
    return inputs.reshape(count, context), targets.reshape(count, context)


TASKS: dict[str, Callable[[], Task]] = {
    "mnist": mnist,
    "cifar10": cifar10,
    "shakespeare": shakespeare,
}


# Training


class End(NamedTuple):
    """The final losses and accuracy of a training; the accuracy is a fraction."""

    train_loss: float
    test_loss: float
    accuracy: float
    bytes_per_parameter: float


def train(task: Task, codec: adamx.Codec | None, seed: int) -> End:
    """Train with one program per step, because XLA's convolutions are slow on CPU inside a loop."""
    opt = adamx.quantize_state(task.recipe(task.schedule()), codec, seed=seed)
    examples = inputs, targets = tuple(map(jnp.asarray, task.train))
    params = task.network.init(jax.random.key(seed), inputs[:1])
    state = opt.init(params)
    kept = adamx.memory_usage(state).bytes / sum(x.size for x in jax.tree.leaves(params))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, examples: Any, batch: jax.Array) -> tuple[Any, Any]:
        inputs, targets = (x[batch] for x in examples)

        def loss(params: Any) -> jax.Array:
            logits: Any = task.network.apply(params, inputs)
            return digits.cross_entropy(logits, targets)

        updates, state = opt.update(jax.grad(loss)(params), state, params)
        return adamx.apply_updates(params, updates), state

    for batch in task.batches(seed):
        params, state = step(params, state, examples, batch)
    train_loss, _ = measure(task, params, inputs[: task.measured], targets[: task.measured])
    test_loss, accuracy = measure(task, params, *task.test)
    return End(train_loss, test_loss, accuracy, kept)


def measure(task: Task, params: Any, inputs: Any, targets: Any) -> tuple[float, float]:
    """The mean loss and accuracy, computed in pieces that fit into memory."""
    pieces = [slice(start, start + 1000) for start in range(0, len(inputs), 1000)]
    sizes = [len(targets[piece]) for piece in pieces]
    ends = [of_piece(task.network, params, inputs[piece], targets[piece]) for piece in pieces]
    loss, accuracy = np.average(np.array(ends, np.float64), axis=0, weights=sizes).tolist()
    return loss, accuracy


@partial(jax.jit, static_argnames="network")
def of_piece(
    network: nn.Module, params: Any, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits: Any = network.apply(params, inputs)
    return digits.cross_entropy(logits, targets), jnp.mean(jnp.argmax(logits, -1) == targets)


def finished(folder: Path, task: Task, name: str, seed: int) -> End:
    """The result of a training, from the folder if it is there; otherwise train and save it."""
    path = folder / f"{name.replace(', ', '-')}-{seed}.json"
    if not path.is_file():
        end = train(task, KEPT[name], seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half")
        half.write_text(json.dumps(end._asdict()) + "\n", "utf-8")
        os.replace(half, path)
    return End(**json.loads(path.read_text("utf-8")))


# Results


class Row(NamedTuple):
    """The results of a format compared with float32, over all seeds.

    Attributes:
        train_loss: the mean training loss.
        ratio: the ratio of the mean training loss to float32's.
        difference: the mean of the paired differences of training losses, and its standard error.
        spread: the standard deviation of float32's training losses over the seeds.
        points: the mean of the paired differences of accuracies in points, and its standard error.
        loss_holds: whether the mean loss is within 1 % of float32's, or within a standard
            deviation, in either direction.
        accuracy_holds: whether the mean accuracy is within 0.3 points of float32's.
    """

    kept_as: str
    bytes_per_parameter: float
    train_loss: float
    ratio: float
    difference: tuple[float, float]
    spread: float
    test_loss: float
    accuracy: float
    points: tuple[float, float]
    loss_holds: bool
    accuracy_holds: bool


def row(name: str, ends: Sequence[End], reference: Sequence[End]) -> Row:
    mine, theirs = (End(*np.array(x, np.float64).T) for x in (ends, reference))
    loss, other = np.mean(mine.train_loss), np.mean(theirs.train_loss)
    spread = np.std(theirs.train_loss, ddof=1)
    points = 100 * (mine.accuracy - theirs.accuracy)
    return Row(
        kept_as=name,
        bytes_per_parameter=float(np.mean(mine.bytes_per_parameter)),
        train_loss=float(loss),
        ratio=float(loss / other),
        difference=with_error(mine.train_loss - theirs.train_loss),
        spread=float(spread),
        test_loss=float(np.mean(mine.test_loss)),
        accuracy=float(np.mean(mine.accuracy)),
        points=with_error(points),
        loss_holds=bool(abs(loss - other) <= max(LOSS_BAR * other, spread)),
        accuracy_holds=bool(abs(np.mean(points)) <= 100 * ACCURACY_BAR),
    )


def with_error(values: Any) -> tuple[float, float]:
    """The mean of some values and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def summary(task: Task, reference: Sequence[End]) -> str:
    losses = [end.train_loss for end in reference]
    accuracies = [100 * end.accuracy for end in reference]
    return (
        f"{task.title}: {task.steps:,} steps of {task.batch} of {len(task.train[0]):,} "
        f"examples, {len(reference)} seeds. Over the seeds of float32 the training loss is "
        f"{min(losses):.4f} … {max(losses):.4f}, standard deviation "
        f"{np.std(losses, ddof=1):.4f}; the accuracy {min(accuracies):.2f} … "
        f"{max(accuracies):.2f} %, {np.std(accuracies, ddof=1):.2f} points."
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("quality", __doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=4, help="at least 2 (default: 4)")
    parser.add_argument(
        "--quick", action="store_true", help="a short check: a tenth of the steps, 2 seeds"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keeps finished trainings")
    options = benchmarks.parse(parser, arguments)
    options.seeds = 2 if options.quick else options.seeds
    if options.seeds < 2:
        parser.error("a standard deviation needs at least 2 seeds")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Train, print the tables, save the results; return the rows of every task."""
    options = parse(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(benchmarks.headline(benchmarks.versions()))
    kept_in = options.out or benchmarks.kept("quality")
    results: dict[str, list[Row]] = {}
    stored: dict[str, Any] = {"seeds": options.seeds, "tasks": {}}
    for name in options.task:
        task = TASKS[name]()
        if options.quick:
            task = task._replace(steps=max(1, task.steps // 10))
        folder = kept_in / f"{name}-{task.steps}"
        ends: dict[str, list[End]] = {kept: [] for kept in KEPT}
        for seed in range(options.seeds):  # so that an interruption leaves no incomplete file
            for kept in KEPT:
                ends[kept].append(finished(folder, task, kept, seed))
        results[name] = [row(kept, mine, ends[FLOAT32]) for kept, mine in ends.items()]
        rows = [x._asdict() for x in results[name]]
        stored["tasks"][name] = {"summary": summary(task, ends[FLOAT32]), "rows": rows}
        console.print(tables.quality(name, stored), "", sep="\n")
    benchmarks.save(stored, options)
    return results


if __name__ == "__main__":
    main()
