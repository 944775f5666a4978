"""Logistic regression on IMDB's bags of words, with dropout and α/√t (Figure 1, right)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import adamx
from examples import data
from examples.paper import figures
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.logistic import L2, decayed, row
from examples.paper.training import Grid, Problem, compare, decided

BATCH = 128
METHODS = {
    "AdaGrad": adamx.adagrad,  # methods whose steps decay like 1/√t without a schedule
    "RMSProp": lambda rate: adamx.rmsprop(decayed(rate)),
    "SGDNesterov": lambda rate: adamx.sgd(decayed(rate), momentum=0.9, nesterov=True),
    "Adam": lambda rate: adamx.adam(decayed(rate)),
}
RATES = {
    "AdaGrad": [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0],
    "RMSProp": [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
    "SGDNesterov": [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0],
    "Adam": [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0],
}
DROPPED, PLAIN = "with dropout", "without dropout"
DROPOUT = {DROPPED: 0.5, PLAIN: 0.0}


def load() -> data.Reviews:
    return data.imdb()


def padded(bags: data.Bags, vocabulary: int) -> np.ndarray:
    """The words of every review as a row, padded with an index after the last word.

    So a batch is small (1 kB per review instead of 40), and a score is a sum of looked-up weights.
    """
    lengths = np.diff(bags.starts)
    rows = np.full((len(lengths), lengths.max()), vocabulary, np.uint16)
    rows[np.arange(lengths.max()) < lengths[:, None]] = bags.words
    return rows


def scores(params: Any, words: jax.Array, noise: jax.Array | float = 1.0) -> jax.Array:
    """w·x + b for binary bags of words: the sum of the weights of the words, plus b."""
    weights = params["weights"].at[words].get(mode="fill", fill_value=0)
    return jnp.sum(noise * weights, axis=-1) + params["bias"]


def problem(reviews: data.Reviews, every: int, dropout: float) -> Problem:
    """The dataset with a regular subset of the reviews of both halves."""
    vocabulary = len(reviews.vocabulary)
    train, test = (
        (padded(bags, vocabulary)[::every], bags.labels[::every].astype(np.float32))
        for bags in (reviews.train, reviews.test)
    )

    def loss(params: Any, examples: Any, key: Any) -> jax.Array:
        words, labels = examples
        kept = jax.random.bernoulli(key, 1 - dropout, words.shape)
        found = scores(params, words, kept.astype(jnp.float32) / (1 - dropout))
        penalty = L2 / 2 * jnp.sum(params["weights"] ** 2)
        return penalty + jnp.mean(jnp.logaddexp(0.0, found) - labels * found)

    def measure(params: Any, held_out: Any) -> dict[str, jax.Array]:
        words, labels = held_out
        found = jax.lax.map(lambda row: scores(params, row), words, batch_size=BATCH)
        return {"test error": jnp.mean((found > 0) != (labels > 0))}

    return Problem(
        name=f"imdb {len(train[1])} dropout {dropout}",
        init=lambda key: {"weights": jnp.zeros(vocabulary), "bias": jnp.zeros(())},
        loss=loss,
        examples=train,
        batch_size=BATCH,
        held_out=test,
        measure=measure,
    )


def run(lab: Lab, reviews: data.Reviews) -> Outcome:
    every = lab.size.of(quick=10, usual=1, full=1)
    epochs = lab.size.of(quick=10, usual=60, full=160)
    grids = {
        kind: compare(lab, problem(reviews, every, dropout), METHODS, RATES, epochs=epochs)
        for kind, dropout in DROPOUT.items()
    }
    return Outcome(
        title=f"{reviews.name}, logistic regression on bags of words",
        setting={
            "reviews": len(reviews.train.labels[::every]),
            "features": f"which of {len(reviews.vocabulary):,} words occur",
            "dropout": DROPOUT[DROPPED],
            "L2": L2,
            "epochs": epochs,
            "batch": BATCH,
            "learning rates tried": RATES,
            **telling(reviews.vocabulary, grids[DROPPED]["Adam"].params["weights"]),
        },
        rows=[
            {"features": kind, **row(name, grid)}
            for kind, of in grids.items()
            for name, grid in of.items()
        ],
        curves={
            kind: {name: grid.curve for name, grid in of.items()} for kind, of in grids.items()
        },
        claims=claims(grids, tested=len(reviews.test.labels[::every])),
    )


def telling(vocabulary: list[str], weights: np.ndarray) -> dict[str, str]:
    """The words with the most positive and the most negative weights."""
    order = np.argsort(weights)
    return {
        "most positive words": ", ".join(vocabulary[i] for i in order[:-9:-1]),
        "most negative words": ", ".join(vocabulary[i] for i in order[:8]),
    }


def claims(grids: dict[str, dict[str, Grid]], tested: int) -> list[Claim]:
    epochs = len(grids[DROPPED]["Adam"].curve)
    margin = "AdaGrad outperforms SGD with Nesterov momentum by a large margin"
    return [
        *(faster(f"{margin}, {kind}", "AdaGrad", of, epochs // 2) for kind, of in grids.items()),
        alike(grids[DROPPED]),
        faster(
            f"Adam converges faster than SGD with momentum, {DROPPED}",
            "Adam",
            grids[DROPPED],
            epochs - 1,
        ),
        prevents_overfitting(grids, tested),
    ]


def faster(claim: str, name: str, grids: dict[str, Grid], limit: int) -> Claim:
    """Whether the method reaches SGDNesterov's final cost within a limit of epochs."""
    other, curve = grids["SGDNesterov"], grids[name].curve
    there = np.flatnonzero(curve <= other.curve[-1])
    needed = there[0] + 1 if len(there) else np.inf
    found = f"after {needed}" if len(there) else "never"
    return Claim(
        claim,
        "faster",
        f"SGDNesterov's training cost after {len(curve)} epochs, {other.curve[-1]:.4f}, is reached "
        f"by {name} {found}; to hold, after at most {limit}",
        decided(bool(needed <= limit), other, grids[name]),
    )


def alike(grids: dict[str, Grid]) -> Claim:
    adam, adagrad = (float(grids[name].curve[-1]) for name in ("Adam", "AdaGrad"))
    return Claim(
        f"Adam converges as fast as AdaGrad, {DROPPED}",
        "as fast",
        f"training cost at the end: Adam {adam:.4f}, AdaGrad {adagrad:.4f}; to hold, "
        "at most 2 % more",
        decided(adam <= 1.02 * adagrad, grids["Adam"], grids["AdaGrad"]),
    )


def prevents_overfitting(grids: dict[str, dict[str, Grid]], reviews: int) -> Claim:
    trained = {kind: of["Adam"] for kind, of in grids.items()}
    error = {
        kind: float(grid.measured["test error"][-1, grid.best]) for kind, grid in trained.items()
    }
    chance = np.sqrt(sum(e * (1 - e) for e in error.values()) / reviews)
    clear = abs(error[DROPPED] - error[PLAIN]) > 2 * chance
    return Claim(
        "dropout noise on the features prevents overfitting",
        "it can be applied to prevent it",
        "Adam's test error: "
        + ", ".join(f"{e:.2%} {kind}" for kind, e in error.items())
        + f"; to tell, more than two standard errors of {chance:.2%} apart",
        decided(error[DROPPED] < error[PLAIN], *trained.values()) if clear else None,
    )


def draw(outcome: Outcome) -> dict[str, Figure]:
    figure, panels = figures.new(width=10, ncols=len(outcome.curves))
    figure.suptitle(outcome.title)
    for axes, (kind, curves) in zip(panels, outcome.curves.items(), strict=True):
        figures.costs(axes, curves, title=kind, log=False)
    return {"imdb.png": figure}
