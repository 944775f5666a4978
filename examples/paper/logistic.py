"""L2-regularised logistic regression on MNIST, with α/√t (Figure 1, left)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import adamx
from examples import data
from examples.paper import figures
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.training import Grid, Problem, compare, decided

BATCH = 128
L2 = 1e-4  # the paper does not say


def decayed(rate: Any) -> Any:
    """The schedule α/√t, for which Section 4 proves the regret bound."""
    return lambda count: rate / jnp.sqrt(count + 1.0)


METHODS = {
    "AdaGrad": adamx.adagrad,  # methods whose steps decay like 1/√t without a schedule
    "SGDNesterov": lambda rate: adamx.sgd(decayed(rate), momentum=0.9, nesterov=True),
    "Adam": lambda rate: adamx.adam(decayed(rate)),
}
RATES = {
    "AdaGrad": [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
    "SGDNesterov": [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0],
    "Adam": [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
}


def load() -> data.Dataset:
    return data.mnist()


def scores(params: Any, images: jax.Array) -> jax.Array:
    """Wx + b, one row per image."""
    return images @ params["weights"] + params["bias"][None]


def problem(dataset: data.Dataset) -> Problem:
    pixels, classes = dataset.train_images.shape[1], int(dataset.train_labels.max()) + 1

    def cost(params: Any, examples: Any) -> jax.Array:
        images, labels = examples
        logs = jax.nn.log_softmax(scores(params, images))
        penalty = L2 / 2 * jnp.sum(params["weights"] ** 2)
        return penalty - jnp.take_along_axis(logs, labels[:, None], axis=1).mean()

    def measure(params: Any, held_out: Any) -> dict[str, jax.Array]:
        images, labels = held_out
        guesses = jnp.argmax(scores(params, images), axis=1)
        return {"test error": jnp.mean(guesses != labels)}

    return Problem(
        name=f"logistic {dataset.name} {len(dataset.train_images)}",
        init=lambda key: {"weights": jnp.zeros((pixels, classes)), "bias": jnp.zeros(classes)},
        loss=lambda params, examples, key: cost(params, examples),
        examples=(dataset.train_images, dataset.train_labels),
        batch_size=BATCH,
        held_out=(dataset.test_images, dataset.test_labels),
        measure=measure,
    )


def run(lab: Lab, dataset: data.Dataset) -> Outcome:
    dataset = dataset.head(lab.size.of(quick=12_800, usual=60_000, full=60_000))
    epochs = lab.size.of(quick=5, usual=45, full=45)
    grids = compare(lab, problem(dataset), METHODS, RATES, epochs=epochs)
    return Outcome(
        title=f"{dataset.name}, logistic regression",
        setting={
            "examples": len(dataset.train_images),
            "epochs": epochs,
            "batch": BATCH,
            "L2": L2,
            "learning rates tried": RATES,
        },
        rows=[row(name, grid) for name, grid in grids.items()],
        curves={name: grid.curve for name, grid in grids.items()},
        claims=claims(grids),
    )


def row(name: str, grid: Grid) -> dict[str, Any]:
    return {
        "method": name,
        "best learning rate": grid.rate,
        "training cost": float(grid.curve[-1]),
        "test error": float(grid.measured["test error"][-1, grid.best]),
        "best at the grid's edge": "yes" if grid.at_edge else "no",
    }


def claims(grids: dict[str, Grid]) -> list[Claim]:
    last = {name: float(grid.curve[-1]) for name, grid in grids.items()}
    shown = ", ".join(f"{name} {cost:.4f}" for name, cost in last.items())
    return [
        Claim(
            "Adam converges as fast as SGD with Nesterov momentum",
            "similar convergence",
            f"training cost at the end: {shown}; to hold, Adam's at most 2 % more",
            decided(
                last["Adam"] <= 1.02 * last["SGDNesterov"], grids["Adam"], grids["SGDNesterov"]
            ),
        ),
        Claim(
            "both converge faster than AdaGrad",
            "faster",
            f"training cost at the end: {shown}",
            decided(max(last["Adam"], last["SGDNesterov"]) < last["AdaGrad"], *grids.values()),
        ),
    ]


def draw(outcome: Outcome) -> dict[str, Figure]:
    return {"logistic.png": figures.training_costs(outcome, log=False)}
