"""Tune Adam's hyperparameters by gradient descent through the training.

    python -m examples.tune [--quick] [--out DIR] [--steps N] [--seed N]

A short training of a small perceptron is a function from (α, β₁, β₂) to the validation loss after
the training. `jax.grad` computes its gradient, and gradient descent changes the coordinates
log α, log(1 − β₁), log(1 − β₂). The test set is used once, for the final table.

Every step of the search uses new initial parameters and new batches, so that the hyperparameters do
not fit a few of them only. They minimise the loss on this validation set after this number of
training steps; for a longer training, other hyperparameters are best.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table

    import adamx
    from examples import data
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"This example needs {error.name}: pip install '.[demo]'") from error

BATCH = 64
HIDDEN = 32
CLASSES = 10
START = (1e-4, 0.9, 0.999)  # α, β₁, β₂: far too slow
DEFAULTS = (1e-3, 0.9, 0.999)


class Sizes(NamedTuple):
    """The size of the search."""

    training: int  # steps of a training
    search: int  # steps of the search
    runs: int  # trainings averaged in a step of the search
    grid: int  # learning rates of the grid
    seeds: int  # trainings averaged in a row of the table


FULL = Sizes(training=100, search=80, runs=4, grid=25, seeds=32)
QUICK = Sizes(training=20, search=8, runs=2, grid=5, seeds=4)


class Split(NamedTuple):
    """Images and labels for training, for tuning, and for the final report."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


def split(dataset: data.Dataset, seed: int) -> Split:
    """The dataset, with a random quarter of the training examples as validation set."""
    size = len(dataset.train_labels)
    order = np.random.default_rng(seed).permutation(size)
    validation, train = order[: size // 4], order[size // 4 :]

    def examples(rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(dataset.train_images[rows]), jnp.asarray(dataset.train_labels[rows])

    test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
    return Split(examples(train), examples(validation), test)


def perceptron(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """A perceptron with one hidden layer and a smooth activation."""
    hidden = jnp.tanh(images @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def initial(key: jax.Array, pixels: int) -> dict[str, jax.Array]:
    one, two = jax.random.split(key)
    return {
        "w1": jax.random.normal(one, (pixels, HIDDEN)) * pixels**-0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(two, (HIDDEN, CLASSES)) * HIDDEN**-0.5,
        "b2": jnp.zeros(CLASSES),
    }


def cross_entropy(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = perceptron(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def adam(numbers: jax.Array) -> adamx.Transformation:
    """Adam from (log α, log(1 − β₁), log(1 − β₂))."""
    rate, forgotten1, forgotten2 = jnp.exp(numbers)
    return adamx.adam(rate, b1=1 - forgotten1, b2=1 - forgotten2)


def numbers_of(rate: float, b1: float, b2: float) -> jax.Array:
    """The inverse of :func:`adam`: the coordinates of α, β₁ and β₂."""
    return jnp.log(jnp.array([rate, 1 - b1, 1 - b2]))


def allowed(numbers: jax.Array) -> jax.Array:
    """The nearest coordinates with 0 ≤ β₁ ≤ β₂; for β₂ < β₁², Adam's steps are unbounded."""
    rate, forgotten1, forgotten2 = numbers
    forgotten1 = jnp.minimum(forgotten1, 0)
    return jnp.stack([rate, forgotten1, jnp.minimum(forgotten2, forgotten1)])


def train(
    numbers: jax.Array, key: jax.Array, images: jax.Array, labels: jax.Array, steps: int
) -> dict[str, jax.Array]:
    """The parameters after the training; the key determines initial parameters and batches."""
    start_key, batch_key = jax.random.split(key)
    params = initial(start_key, images.shape[1])
    batches = jax.random.randint(batch_key, (steps, BATCH), 0, len(labels))
    optimiser = adam(numbers)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(cross_entropy)(params, images[batch], labels[batch])
        updates, state = optimiser.update(gradient, state, params)
        return (adamx.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), batches)
    return params


@partial(jax.jit, static_argnames="steps")
def validation_loss(numbers: jax.Array, keys: jax.Array, examples: Split, steps: int) -> jax.Array:
    """The validation loss, averaged over several trainings."""

    def of(key: jax.Array) -> jax.Array:
        return cross_entropy(train(numbers, key, *examples.train, steps), *examples.validation)

    return jax.vmap(of)(keys).mean()


slope = jax.jit(jax.value_and_grad(validation_loss), static_argnames="steps")


class Outcome(NamedTuple):
    """The results of trainings with the same hyperparameters."""

    validation_loss: jax.Array | float
    test_loss: jax.Array | float
    test_accuracy: jax.Array | float


@partial(jax.jit, static_argnames="steps")
def outcome(numbers: jax.Array, keys: jax.Array, examples: Split, steps: int) -> Outcome:
    """The losses and the accuracy of each training."""
    images, labels = examples.test

    def of(key: jax.Array) -> Outcome:
        params = train(numbers, key, *examples.train, steps)
        hits = jax.lax.argmax(perceptron(params, images), 1, labels.dtype) == labels
        validation = cross_entropy(params, *examples.validation)
        return Outcome(validation, cross_entropy(params, images, labels), hits.mean())

    return jax.vmap(of)(keys)


class Search(NamedTuple):
    """The coordinates and the validation loss at every step, and the final coordinates."""

    path: np.ndarray
    losses: np.ndarray
    found: jax.Array


def searcher() -> adamx.Transformation:
    """The optimiser of the search: Adam, because some gradients are huge and all are noisy.

    The result of the search is the average of the last iterates.
    """
    return adamx.chain(
        adamx.clip_by_global_norm(1.0), adamx.adam(0.15, b2=0.99), adamx.polyak_ema(0.9)
    )


def search(key: jax.Array, examples: Split, sizes: Sizes, console: Console) -> Search:
    """Descend the validation loss from START."""
    numbers, outer = numbers_of(*START), searcher()
    state = outer.init(numbers)
    path, losses = [], []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task("search", total=sizes.search, shown="")
        for fresh in jax.random.split(key, sizes.search):
            keys = jax.random.split(fresh, sizes.runs)
            loss, gradient = slope(numbers, keys, examples, steps=sizes.training)
            path.append(numbers)
            losses.append(float(loss))
            updates, state = outer.update(gradient, state, numbers)
            numbers = allowed(adamx.apply_updates(numbers, updates))
            progress.update(task, advance=1, shown=f"loss {loss:.3f}, {spelled(numbers)}")
    return Search(np.array(path), np.array(losses), adamx.polyak_params(state))


def values(numbers: jax.Array) -> tuple[float, float, float]:
    """α, β₁ and β₂."""
    rate, forgotten1, forgotten2 = np.exp(np.asarray(numbers, np.float64))
    return float(rate), 1 - float(forgotten1), 1 - float(forgotten2)


def spelled(numbers: jax.Array) -> str:
    rate, b1, b2 = values(numbers)
    return f"α {rate:.2e}, β₁ {b1:.3f}, β₂ {b2:.4f}"


class Score(NamedTuple):
    """A row of the final table: means over trainings, and the standard errors of the means."""

    name: str
    numbers: tuple[float, float, float]
    mean: Outcome
    error: Outcome


def score(name: str, numbers: jax.Array, keys: jax.Array, examples: Split, sizes: Sizes) -> Score:
    means, errors = [], []
    for values_of in outcome(numbers, keys, examples, steps=sizes.training):
        means.append(float(values_of.mean()))
        errors.append(float(values_of.std(ddof=1)) / len(keys) ** 0.5)
    return Score(name, values(numbers), Outcome(*means), Outcome(*errors))


def tabulate(scores: Sequence[Score]) -> Table:
    table = Table("numbers")
    for heading in ("α", "β₁", "β₂", "validation", "test loss", "accuracy"):
        table.add_column(heading, justify="right")
    for row in scores:
        rate, b1, b2 = row.numbers
        table.add_row(
            row.name,
            f"{rate:.1e}",
            f"{b1:.3f}",
            f"{b2:.4f}",
            f"{row.mean.validation_loss:.3f}",
            f"{row.mean.test_loss:.3f}±{row.error.test_loss:.3f}",
            f"{100 * row.mean.test_accuracy:.1f}±{100 * row.error.test_accuracy:.1f} %",
        )
    return table


def draw(
    found: Search,
    rates: np.ndarray,
    grid: np.ndarray,
    scores: Sequence[Score],
    title: str,
    path: Path,
) -> None:
    """Plot the search, and the grid of learning rates for comparison."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(title)
    ((loss_axes, grid_axes), (rate_axes, decay_axes)) = figure.subplots(2, 2)
    start, tuned, defaults, best = scores
    steps = np.arange(len(found.losses))
    colours = {start.name: "C7", tuned.name: "C0", defaults.name: "C1", best.name: "C2"}

    loss_axes.semilogy(steps, found.losses, color="C0", linewidth=1.3)
    for row in (defaults, best, tuned):
        loss_axes.axhline(
            row.mean.validation_loss, color=colours[row.name], linestyle="--", label=row.name
        )
    loss_axes.set(xlabel="step of the search", ylabel="validation loss after training")
    loss_axes.legend(frameon=False)

    grid_axes.loglog(rates, grid, color="C2", marker=".", label=f"{len(rates)} rates, default β")
    for row in scores:
        grid_axes.plot(
            row.numbers[0], row.mean.validation_loss, "o", color=colours[row.name], label=row.name
        )
    grid_axes.set(xlabel="learning rate α", ylabel="validation loss after training")
    grid_axes.legend(frameon=False)

    along = np.exp(found.path)
    for axes, columns in ((rate_axes, {"α": 0}), (decay_axes, {"1 − β₁": 1, "1 − β₂": 2})):
        for index, (name, column) in enumerate(columns.items()):
            axes.semilogy(steps, along[:, column], color=f"C{3 * index}", label=name)
            chosen = tuned.numbers[column] if column == 0 else 1 - tuned.numbers[column]
            default = defaults.numbers[column] if column == 0 else 1 - defaults.numbers[column]
            axes.axhline(default, color=f"C{3 * index}", linestyle=":", linewidth=1)
            axes.plot(steps[-1], chosen, "o", color=f"C{3 * index}")
        axes.set(xlabel="step of the search", ylabel=", ".join(columns))
        axes.legend(frameon=False, title="dotted: default, dot: tuned")
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.tune", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a short search on part of the data")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the plot")
    parser.add_argument(
        "--steps", type=int, help=f"number of steps of the search; default: {FULL.search}"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of initial parameters, batches and split"
    )
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Score]:
    """Search, compare, print the table, save the plot; return the table's rows."""
    options = parse(arguments)
    console = Console()
    try:
        dataset = data.load()
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    sizes = QUICK if options.quick else FULL
    sizes = sizes._replace(search=options.steps or sizes.search)
    examples = split(dataset.head(640) if options.quick else dataset, options.seed)
    pixels = examples.train[0].shape[1]
    title = (
        f"{dataset.name}, perceptron {pixels}-{HIDDEN}-{CLASSES}, "
        f"{sizes.training} steps of {BATCH} examples"
    )
    console.print(f"{title}; {sizes.search} × {sizes.runs} differentiated trainings")

    search_key, grid_key, score_key = jax.random.split(jax.random.key(options.seed), 3)
    found = search(search_key, examples, sizes, console)

    rates = np.logspace(-4, -1, sizes.grid)
    candidates = jnp.stack([numbers_of(rate, *DEFAULTS[1:]) for rate in rates])
    at_default = partial(validation_loss, steps=sizes.training)
    keys = jax.random.split(grid_key, sizes.runs)
    grid = np.asarray(jax.vmap(at_default, in_axes=(0, None, None))(candidates, keys, examples))

    keys = jax.random.split(score_key, sizes.seeds)
    rows = {
        "start": numbers_of(*START),
        "tuned": found.found,
        "defaults": numbers_of(*DEFAULTS),
        "best rate": candidates[grid.argmin()],
    }
    scores = [score(name, numbers, keys, examples, sizes) for name, numbers in rows.items()]
    console.print(tabulate(scores))
    console.print(
        f"Means over {sizes.seeds} trainings with new starts and batches, ± standard error."
    )
    picture = options.out / "tune.png"
    draw(found, rates, grid, scores, title, picture)
    console.print(f"Plot of the search: {picture}")
    return scores


if __name__ == "__main__":
    main()
