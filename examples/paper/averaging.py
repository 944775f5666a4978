"""Averages of the iterates, and AdaMax beside Adam, on MNIST (Section 7)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import adamx
from adamx.core import Rule, stage, zeros
from examples import data
from examples.paper import figures
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.training import Grid, Problem, train

HIDDEN = 256
BATCH = 128
DECAY = 0.999  # decay rate of the exponential average of the iterates
ROUNDING = 1e-6  # relative rounding error of a step

ITERATE, MEAN, EMA = "iterate", "mean of all", "exponential average"
RAW = "exponential average, uncorrected"
LINES: dict[str, Any] = {ITERATE: "-", MEAN: ":", EMA: "--"}


@stage
def largest_step():
    """Record the largest |u| of every parameter; do not change the update."""

    def update(signal, slots, step):
        return signal, {"largest": jnp.maximum(slots["largest"], jnp.abs(signal.update))}

    return Rule(update, slots={"largest": zeros})


def averaged(opt: adamx.Transformation) -> adamx.Transformation:
    """The same optimiser, with two averages of the iterates."""
    mean, ema = adamx.polyak_ema(lambda count: count / (count + 1)), adamx.polyak_ema(DECAY)
    return adamx.chain(opt, largest_step(), mean, ema)


METHODS = {
    "Adam": lambda rate: averaged(adamx.adam(rate)),
    "AdaMax": lambda rate: averaged(adamx.adamax(rate)),
}
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]


def load() -> data.Dataset:
    return data.mnist()


# The classifier


def init(key: jax.Array, widths: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"weights": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def logits(params: Any, images: jax.Array) -> jax.Array:
    hidden, scores = params
    seen = jax.nn.relu(images @ hidden["weights"] + hidden["bias"][None])
    return seen @ scores["weights"] + scores["bias"][None]


def cost(params: Any, examples: Any) -> jax.Array:
    images, labels = examples
    scores = jax.nn.log_softmax(logits(params, images))
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


def error(params: Any, examples: Any) -> jax.Array:
    images, labels = examples
    return jnp.mean(jnp.argmax(logits(params, images), axis=1) != labels)


def measure(params: Any, state: Any, held_out: Any) -> dict[str, jax.Array]:
    """The test error and cost of the iterate and its averages, and the largest step so far."""
    candidates = {
        ITERATE: params,
        MEAN: adamx.polyak_params(state, "polyak_ema"),
        EMA: adamx.polyak_params(state, "polyak_ema_2"),
        RAW: state["polyak_ema_2"]["ema"],
    }
    measured = {f"error, {name}": error(theta, held_out) for name, theta in candidates.items()}
    measured |= {f"cost, {name}": cost(theta, held_out) for name, theta in candidates.items()}
    largest = [jnp.max(x) for x in jax.tree.leaves(state["largest_step"])]
    return measured | {"largest step": jnp.stack(largest).max()}


def problem(dataset: data.Dataset) -> Problem:
    widths = (dataset.train_images.shape[1], HIDDEN, int(dataset.train_labels.max()) + 1)
    return Problem(
        name=f"averaging {dataset.name} {len(dataset.train_images)}",
        init=lambda key: init(key, widths),
        loss=lambda params, examples, key: cost(params, examples),
        examples=(dataset.train_images, dataset.train_labels),
        batch_size=BATCH,
        held_out=(dataset.test_images, dataset.test_labels),
        measure=lambda params, held_out: {},
    )


# The run


def run(lab: Lab, dataset: data.Dataset) -> Outcome:
    dataset = dataset.head(lab.size.of(quick=12_800, usual=60_000, full=60_000))
    epochs = lab.size.of(quick=10, usual=20, full=100)
    grids = {
        name: train(lab, problem(dataset), name, method, RATES, epochs=epochs, measure=measure)
        for name, method in METHODS.items()
    }
    return Outcome(
        title=f"{dataset.name} classifier: iterates and their averages",
        setting={
            "examples": len(dataset.train_images),
            "epochs": epochs,
            "batch": BATCH,
            "network": f"one hidden layer of {HIDDEN} rectified linear units",
            "exponential average": f"of the iterates, with decay {DECAY}",
            "learning rates tried": RATES,
            "best learning rate": "the rate with the smallest training cost in the last epoch",
        },
        rows=[row(name, grid, kind) for name, grid in grids.items() for kind in LINES],
        curves={
            "learning rates": RATES,
            "methods": {
                name: {
                    "best": grid.best,
                    "training cost": grid.losses,
                    "test error": {kind: errors(grid, kind) for kind in LINES},
                }
                for name, grid in grids.items()
            },
        },
        claims=claims(grids, len(dataset.train_images) // BATCH),
    )


def errors(grid: Grid, kind: str) -> np.ndarray:
    """The test error after every epoch, ``[epochs, rates]``."""
    return grid.measured[f"error, {kind}"][1:]


def settled(errors: np.ndarray) -> np.ndarray:
    """The mean over the last half of the epochs, because a single epoch is noisy."""
    return errors[len(errors) // 2 :].mean(axis=0)


def row(name: str, grid: Grid, kind: str) -> dict[str, Any]:
    best = grid.best
    return {
        "method": name,
        "parameters": kind,
        "best learning rate": grid.rate,
        "training cost": float(grid.curve[-1]),
        "test error at the end": float(errors(grid, kind)[-1, best]),
        "over the last half": float(settled(errors(grid, kind))[best]),
        "test cost at the end": float(grid.measured[f"cost, {kind}"][-1, best]),
        "smallest at any rate": float(settled(errors(grid, kind)).min()),
        "best at the grid's edge": "yes" if grid.at_edge else "no",
    }


# The paper's claims


def claims(grids: dict[str, Grid], steps: int) -> list[Claim]:
    return [
        generalises(grids, EMA, steps),
        generalises(grids, MEAN, steps),
        needs_correction(grids, steps),
        stable(grids),
        bounded(grids["AdaMax"]),
    ]


def generalises(grids: dict[str, Grid], kind: str, steps: int) -> Claim:
    before, memory = steps * (len(grids["Adam"].losses) // 2), round(3 / (1 - DECAY))
    better, shown = [], []
    for name, grid in grids.items():
        own, last = settled(errors(grid, kind)), settled(errors(grid, ITERATE))
        better.append(bool(own[grid.best] < last[grid.best]))
        shown.append(
            f"{name} {100 * own[grid.best]:.2f} % against {100 * last[grid.best]:.2f} % "
            f"(lower at {int((own < last).sum())} of {len(own)} rates)"
        )
    if before < memory:
        shown.append(
            f"that half begins at step {before}, but forgetting the start takes {memory} steps"
        )
    return Claim(
        f"averaging generalises better: {kind}",
        "often better than the last iterate",
        f"test error in the last half of the epochs, against the iterate's: {'; '.join(shown)}",
        all(better) if before >= memory else None,
    )


def needs_correction(grids: dict[str, Grid], steps: int) -> Claim:
    pairs = {
        name: [float(grid.measured[f"cost, {kind}"][1, grid.best]) for kind in (EMA, RAW)]
        for name, grid in grids.items()
    }
    shown = ", ".join(f"{name} {own:.3f} against {raw:.3f}" for name, (own, raw) in pairs.items())
    return Claim(
        "the exponential average's start at zero can be corrected",
        "by θ̄ / (1 − β₂ᵗ)",
        f"its test cost after one epoch, when its weight is {1 - DECAY**steps:.2f}, "
        f"corrected against uncorrected: {shown}",
        all(own < raw for own, raw in pairs.values()),
    )


def stable(grids: dict[str, Grid]) -> Claim:
    stays = {name: grid.losses[-1] < grid.losses[0] for name, grid in grids.items()}
    shown = ", ".join(f"{name} {int(x.sum())} of {len(x)}" for name, x in stays.items())
    return Claim(
        "AdaMax is stable at all rates at which Adam is",
        "a surprisingly simple and stable algorithm",
        f"rates whose training cost is lower in the last epoch than in the first: {shown}",
        bool(np.all(stays["AdaMax"] | ~stays["Adam"])),
    )


def bounded(grid: Grid) -> Claim:
    largest = float(np.max(grid.measured["largest step"][-1] / grid.rates))
    return Claim(
        "no step of AdaMax is larger than α",
        "|Δ| ≤ α",
        f"the largest |Δ| of any parameter at any step and rate is {largest:.5f} α (the sharp "
        f"bound is (1 − β₁)/(1 − β₁/β₂) α = {0.1 / (1 - 0.9 / 0.999):.4f} α)",
        largest <= 1 + ROUNDING,
    )


# The figure


def draw(outcome: Outcome) -> dict[str, Figure]:
    """The test error during training at the best rate, and over the last half at all rates."""
    figure, grid = figures.new(9.6, 7.6, nrows=2, ncols=2, sharex="row", sharey="row")
    methods, rates = outcome.curves["methods"], outcome.curves["learning rates"]
    for (along, across), (name, found) in zip(grid.T, methods.items(), strict=True):
        best = found["best"]
        for kind, line in LINES.items():
            percent = 100 * np.asarray(found["test error"][kind], np.float64)
            style: dict[str, Any] = {"color": figures.COLOURS[name], "linestyle": line}
            along.plot(np.arange(1, len(percent) + 1), percent[:, best], **style)
            across.plot(rates, settled(percent), marker="o", markersize=4, **style)
        figures.tidy(along, x="epochs", y="", title=f"{name}, α = {rates[best]:g}")
        figures.tidy(across, x="α", y="")
        across.axvline(rates[best], color="#bbbbbb", linewidth=1, zorder=0)
        across.set_xscale("log")
        figures.logarithmic(across)
    grid[0, 0].set_ylabel("test error (%)")
    grid[1, 0].set_ylabel("test error (%), last half of the epochs")
    lines = [Line2D([], [], color="#444444", linestyle=line) for line in LINES.values()]
    lines.append(Line2D([], [], color="#bbbbbb", linewidth=1))
    labels = [*LINES, "α above"]
    figure.legend(lines, labels, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle(outcome.title)
    return {"averaging.png": figure}
