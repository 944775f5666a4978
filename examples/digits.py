"""Compare the recipes: train a classifier of handwritten digits with each of them.

    python -m examples.digits [--quick] [--out DIR] [--epochs N] [--seed N]

Every optimiser gets the same network, the same initial parameters and the same batches. The network
and the training loop are plain Flax; the adamx optimiser is the `tx` of a `TrainState`.
"""

import argparse
import time
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
    from flax.training.train_state import TrainState
    from matplotlib.figure import Figure
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
    from rich.text import Text

    import adamx
    from examples import data
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The demo needs {error.name}: pip install '.[demo]'") from error

BATCH = 64
AVERAGED = "adam + polyak_ema"


def optimisers() -> dict[str, optax.GradientTransformation]:
    """All recipes, each with a suitable learning rate."""
    return {
        "sgd": adamx.sgd(0.3),
        "sgd + momentum": adamx.sgd(0.05, momentum=0.9),
        "sgd + nesterov": adamx.sgd(0.05, momentum=0.9, nesterov=True),
        "adagrad": adamx.adagrad(0.03),
        "adadelta": adamx.adadelta(1.0),
        "rmsprop": adamx.rmsprop(1e-3),
        "rmsprop + momentum": adamx.rmsprop(2e-4, momentum=0.9),
        "adam": adamx.adam(2e-3),
        "adamw": adamx.adamw(1e-3),
        "adamax": adamx.adamax(5e-3),
        "lion": adamx.lion(2e-4),
        AVERAGED: adamx.chain(adamx.adam(2e-3), adamx.polyak_ema(0.99)),
    }


class Classifier(nn.Module):
    """A perceptron with two hidden layers."""

    hidden: Sequence[int] = (128, 64)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        for width in self.hidden:
            images = nn.relu(nn.Dense(width)(images))
        return nn.Dense(self.classes)(images)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, donate_argnums=0)
def train_epoch(
    state: TrainState, images: jax.Array, labels: jax.Array, batches: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Take a step for each row of `batches` (indices of examples); return the state and losses."""

    def step(state: TrainState, batch: jax.Array) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return cross_entropy(state.apply_fn(params, images[batch]), labels[batch])

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    return jax.lax.scan(step, state, batches)


@partial(jax.jit, static_argnums=0)
def evaluate(
    apply: Callable[..., Any], params: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    logits = apply(params, images)
    hits = jax.lax.argmax(logits, 1, labels.dtype) == labels
    return cross_entropy(logits, labels), hits.mean()


class Run(NamedTuple):
    """The result of a training: the last state, the loss at each step, the time in seconds."""

    state: TrainState
    losses: np.ndarray
    compile_time: float
    train_time: float


def train(
    state: TrainState,
    dataset: data.Dataset,
    epochs: Sequence[np.ndarray],
    report: Callable[..., object],
) -> Run:
    """Train for several epochs, and report the loss of all training examples after each."""
    examples = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)

    began = time.perf_counter()
    compiled = train_epoch.lower(state, *examples, epochs[0]).compile()
    compile_time = time.perf_counter() - began

    losses, train_time = [], 0.0
    for batches in epochs:
        began = time.perf_counter()
        state, epoch_losses = compiled(state, *examples, batches)
        losses.append(np.asarray(epoch_losses))
        train_time += time.perf_counter() - began
        report(loss=float(evaluate(state.apply_fn, state.params, *examples)[0]))
    return Run(state, np.concatenate(losses), compile_time, train_time)


def shuffled(size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """For each epoch, the indices 0 … size - 1 in a random order, one row per batch."""
    random = np.random.default_rng(seed)
    steps = size // BATCH
    orders = (random.permutation(size)[: steps * BATCH] for _ in range(epochs))
    return [order.reshape(steps, BATCH).astype(np.int32) for order in orders]


class Score(NamedTuple):
    """A row of the final table."""

    name: str
    train_loss: float
    test_accuracy: float
    compile_time: float
    train_time: float


def score(name: str, run: Run, params: Any, dataset: data.Dataset) -> Score:
    apply = run.state.apply_fn
    train_loss, _ = evaluate(apply, params, dataset.train_images, dataset.train_labels)
    _, test_accuracy = evaluate(apply, params, dataset.test_images, dataset.test_labels)
    return Score(name, float(train_loss), float(test_accuracy), run.compile_time, run.train_time)


def tabulate(scores: Sequence[Score]) -> Table:
    table = Table("optimiser")
    for heading in ("loss", "test accuracy", "compile", "train"):
        table.add_column(heading, justify="right")
    for row in scores:
        table.add_row(
            row.name,
            f"{row.train_loss:.2e}",
            f"{row.test_accuracy:.2%}",
            f"{row.compile_time:.2f} s",
            f"{row.train_time:.2f} s",
        )
    return table


def window(steps: int) -> int:
    """The number of steps over which the curves are averaged: a fiftieth of the run."""
    return max(1, round(steps / 50))


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The decaying average over the window, with Adam's bias correction."""
    decay = 1 - 1 / window(len(losses))
    average, averages = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        averages.append(average / (1 - decay**count))
    return np.array(averages)


def look(index: int) -> str:
    """The style of a line; there are ten colours."""
    return "-" if index < 10 else "--"


def draw(curves: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Plot the loss curves on a logarithmic scale, each with its name at its end."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    steps = 0
    for index, curve in enumerate(curves.values()):
        steps = len(curve)
        axes.semilogy(range(1, steps + 1), curve, look(index), color=f"C{index}", linewidth=1.3)
    averaged = f"mean of about {window(steps)} steps" if window(steps) > 1 else "of each step"
    axes.set(title=title, xlabel="step", ylabel=f"loss of the batches, {averaged}")
    axes.margins(x=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

    def height(loss: float) -> float:  # y = 0 is the bottom of the axes and y = 1 the top
        return np.interp(np.log(loss), np.log(axes.get_ylim()), (0, 1)).item()

    ends = [(height(curve[-1]), i, name) for i, (name, curve) in enumerate(curves.items())]
    place = -1.0
    for end, i, name in sorted(ends):  # from bottom to top, so that names do not overlap
        place = max(end, place + 0.045)
        axes.annotate(
            name,
            xy=(1, end),
            xytext=(1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            verticalalignment="center",
            color=f"C{i}",
            arrowprops={
                "arrowstyle": "-",
                "color": f"C{i}",
                "linestyle": look(i),
                "linewidth": 0.7,
                "relpos": (0, 0.5),
            },
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a short run on part of the data")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the plot")
    parser.add_argument("--epochs", type=int, help="default: 60 on the digits, 10 on MNIST")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the initial parameters and the batches"
    )
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Score]:
    """Train with every optimiser, print the table, save the plot; return the table's rows."""
    options = parse(arguments)
    console = Console()

    try:
        dataset = data.load()
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if options.quick:
        dataset = dataset.head(640)
    size, pixels = dataset.train_images.shape
    batches = shuffled(
        size,
        epochs=options.epochs or (4 if options.quick else 60 if size < 10_000 else 10),
        seed=options.seed,
    )
    model = Classifier()
    params = model.init(jax.random.key(options.seed), dataset.train_images[:1])
    widths = "-".join(map(str, (pixels, *model.hidden, model.classes)))
    title = f"{dataset.name}, perceptron {widths}"
    console.print(
        f"{title}: {len(batches)} epochs of {len(batches[0])} batches of {BATCH}", highlight=False
    )

    contenders = optimisers()
    console.print(Columns(Panel.fit(Text(repr(tx)), title=name) for name, tx in contenders.items()))

    runs: dict[str, Run] = {}
    bars = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.2e}"))
    with Progress(TextColumn("{task.description:<18}"), *bars, console=console) as progress:
        for name, tx in contenders.items():
            task = progress.add_task(name, total=len(batches), loss=float("nan"))
            start = TrainState.create(  # pass copies, because train_epoch donates its arguments
                apply_fn=model.apply, params=jax.tree.map(jnp.copy, params), tx=tx
            )
            runs[name] = train(start, dataset, batches, partial(progress.update, task, advance=1))

    scores = [score(name, run, run.state.params, dataset) for name, run in runs.items()]
    average = adamx.polyak_params(runs[AVERAGED].state.opt_state)
    scores.append(score(f"{AVERAGED}, average", runs[AVERAGED], average, dataset))
    console.print(tabulate(scores))
    console.print(
        "The loss is that of all training examples. The learning rates were chosen by the test "
        "accuracy: the table shows that every optimiser trains, and does not rank them.",
        highlight=False,
    )

    # Averaging does not change the iterates, so the curve of AVERAGED would equal Adam's.
    curves = {name: smoothed(run.losses) for name, run in runs.items() if name != AVERAGED}
    picture = options.out / "digits.png"
    draw(curves, title, picture)
    console.print(f"Loss curves: {picture}")
    return scores


if __name__ == "__main__":
    main()
