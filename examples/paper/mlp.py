"""A network of two hidden layers on MNIST, with dropout; without it, against SFO (Figure 2)."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import adamx
from examples import data
from examples.paper import figures
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.sfo import SFO
from examples.paper.training import (
    Grid,
    Problem,
    compare,
    decided,
    epoch_of_one,
    shuffled,
    train,
)

HIDDEN = (1000, 1000)
BATCH = 128
SUBFUNCTIONS = (
    20  # number of SFO's minibatches; it keeps 3 copies of the parameters for each of them
)
DROPPED = (
    0.2,
    0.5,
    0.5,
)  # dropout of the inputs and of each hidden layer; the paper does not give it
L2 = 1e-5  # the paper does not say

WITHOUT = "Adam without dropout"
METHODS = {
    "AdaGrad": adamx.adagrad,
    "RMSProp": adamx.rmsprop,
    "SGDNesterov": lambda rate: adamx.sgd(rate, momentum=0.9, nesterov=True),
    "AdaDelta": lambda rate: adamx.adadelta(rate),
    "Adam": adamx.adam,
}
RATES = {
    "AdaGrad": [0.001, 0.003, 0.01, 0.03],
    "RMSProp": [0.0001, 0.0003, 0.001, 0.003],
    "SGDNesterov": [0.01, 0.03, 0.1, 0.3],
    "AdaDelta": [0.3, 1.0, 3.0, 10.0],
    "Adam": [0.0003, 0.001, 0.003, 0.01],
    WITHOUT: [0.0001, 0.0003, 0.001, 0.003, 0.01],
}


def load() -> data.Dataset:
    return data.mnist()


# The network


def init(key: Any, pixels: int, classes: int) -> list[dict[str, jax.Array]]:
    """Weights N(0, 2/fan-in) (He et al. 2015), and zero biases."""
    widths = (pixels, *HIDDEN, classes)
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"weights": jax.random.normal(k, (m, n)) * np.sqrt(2 / m).astype("f"), "bias": jnp.zeros(n)}
        for k, m, n in zip(keys, widths, widths[1:], strict=False)
    ]


def scores(params: Any, images: jax.Array, dropout: Any = None) -> jax.Array:
    """The output of the network; with a key, units are dropped at random."""
    x = images
    for number, layer in enumerate(params):
        if dropout is not None:
            x = dropped(jax.random.fold_in(dropout, number), x, DROPPED[number])
        x = x @ layer["weights"] + layer["bias"][None]
        if number < len(params) - 1:
            x = jax.nn.relu(x)
    return x


def dropped(key: Any, x: jax.Array, rate: float) -> jax.Array:
    """Dropout: set elements to zero at random, and scale the others to preserve the mean."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1).mean()


def deterministic_cost(params: Any, examples: Any) -> jax.Array:
    """Cross-entropy and weight decay, without dropout."""
    images, labels = examples
    penalty = L2 / 2 * sum(jnp.sum(layer["weights"] ** 2) for layer in params)
    return cross_entropy(scores(params, images), labels) + penalty


def problem(dataset: data.Dataset, *, dropout: bool) -> Problem:
    pixels, classes = dataset.train_images.shape[1], int(dataset.train_labels.max()) + 1

    def dropout_cost(params: Any, examples: Any, key: Any) -> jax.Array:
        images, labels = examples
        return cross_entropy(scores(params, images, key), labels)

    def measure(params: Any, held_out: Any) -> dict[str, jax.Array]:
        images, labels = held_out
        return {"test error": jnp.mean(jnp.argmax(scores(params, images), axis=1) != labels)}

    return Problem(
        name=f"mlp {HIDDEN} {dropout} {dataset.name} {len(dataset.train_images)} {BATCH} {L2}",
        init=lambda key: init(key, pixels, classes),
        loss=dropout_cost if dropout else lambda p, examples, key: deterministic_cost(p, examples),
        examples=(dataset.train_images, dataset.train_labels),
        batch_size=BATCH,
        held_out=(dataset.test_images, dataset.test_labels),
        measure=measure,
    )


# Methods timed separately


class Alone(NamedTuple):
    """The results of one method.

    Attributes:
        costs: the deterministic cost of the whole training set after each pass, ``[1 + passes]``.
        errors: the test errors after each pass, ``[1 + passes]``.
        seconds: the training time up to each pass, without compilation and measurements.
    """

    costs: list[float]
    errors: list[float]
    seconds: list[float]

    @property
    def pace(self) -> float:
        """The seconds per pass."""
        return self.seconds[-1] / (len(self.seconds) - 1)

    def reaches(self, cost: float) -> int | None:
        """The first pass after which the cost is at most this high."""
        return next((number for number, c in enumerate(self.costs) if c <= cost), None)


def timed(
    lab: Lab,
    key: Any,
    passes: int,
    measure: Callable[[Any], tuple[Any, Any]],
    begin: Callable[[], tuple[Any, Any]],
    one_pass: Callable[[Any, int], tuple[Any, Any]],
) -> Alone:
    """Run several passes from the state of ``begin``; an interrupted run continues.

    ``begin`` and ``one_pass`` return a state and the parameters; ``measure`` returns the cost and
    the test error.
    """
    found = lab.load(key)
    if found is None:
        state, params = begin()
        found = state, [(*map(float, measure(params)), 0.0)]
    state, history = found
    advance = lab.steps(str(key[0]), passes, len(history) - 1)
    for number in range(len(history) - 1, passes):
        started = time.perf_counter()
        state, params = jax.block_until_ready(one_pass(state, number))
        seconds = history[-1][-1] + time.perf_counter() - started
        history.append((*map(float, measure(params)), seconds))
        if number % 4 == 0:  # SFO's state is as large as 62 networks
            lab.save(key, (state, history))
        advance(cost=history[-1][0])
    return Alone(*map(list, zip(*history, strict=True)))


def measured(problem: Problem, tree: Callable[[Any], Any] = lambda params: params) -> Any:
    """The cost and test error as a function of parameters, which ``tree`` makes a pytree."""
    examples = jax.tree.map(jnp.asarray, problem.examples)
    held_out = jax.tree.map(jnp.asarray, problem.held_out)

    @jax.jit
    def measure(kept: Any) -> Any:
        params = tree(kept)
        error = problem.measure(params, held_out)["test error"]
        return deterministic_cost(params, examples), error

    return measure


def adam_alone(lab: Lab, problem: Problem, rate: float, passes: int) -> Alone:
    """Run Adam with one learning rate, one program per epoch."""
    examples = jax.tree.map(jnp.asarray, problem.examples)
    alpha, key = jnp.float32(rate), jax.random.key(0)
    size = len(problem.examples[0])

    def begin() -> Any:
        params = problem.init(key)
        return (params, adamx.adam(alpha).init(params)), params

    (params, state), _ = begin()
    order = shuffled(size, problem.batch_size, 0, 0)
    epoch = jax.jit(epoch_of_one(problem, adamx.adam))
    epoch = epoch.lower(alpha, params, state, examples, order, key).compile()

    def one_pass(kept: Any, number: int) -> Any:
        order = shuffled(size, problem.batch_size, 0, number)
        params, state, _ = epoch(alpha, *kept, examples, order, key)
        return (params, state), params

    kept_as = ("Adam alone", problem.name, rate, passes)
    return timed(lab, kept_as, passes, measured(problem), begin, one_pass)


def sfo_alone(lab: Lab, problem: Problem, passes: int) -> Alone:
    """Run SFO; a pass evaluates as many minibatches as there are."""
    examples = jax.tree.map(jnp.asarray, problem.examples)
    size = len(problem.examples[0]) // SUBFUNCTIONS
    slices = [slice(i * size, (i + 1) * size) for i in range(SUBFUNCTIONS)]
    batches = [jax.tree.map(operator.itemgetter(each), examples) for each in slices]
    start, tree = ravel_pytree(problem.init(jax.random.key(0)))
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda vector, batch: deterministic_cost(tree(vector), batch))
    )
    value_and_grad = value_and_grad.lower(start, batches[0]).compile()

    def one_pass(optimiser: SFO, number: int) -> Any:
        for _ in range(SUBFUNCTIONS):
            optimiser.step(lambda x, i: value_and_grad(x, batches[i]))
        return optimiser, optimiser.params

    def begin() -> Any:
        return SFO(np.asarray(start), SUBFUNCTIONS), np.asarray(start)

    kept_as = ("SFO alone", problem.name, SUBFUNCTIONS, passes)
    return timed(lab, kept_as, passes, measured(problem, tree), begin, one_pass)


# The experiment


def run(lab: Lab, dataset: data.Dataset) -> Outcome:
    dataset = dataset.head(lab.size.of(quick=2_560, usual=12_800, full=60_000))
    epochs = lab.size.of(quick=3, usual=16, full=200)
    passes = lab.size.of(quick=4, usual=16, full=100)
    stochastic, deterministic = problem(dataset, dropout=True), problem(dataset, dropout=False)
    grids = compare(lab, stochastic, METHODS, RATES, epochs=epochs)
    chosen = train(lab, deterministic, WITHOUT, adamx.adam, RATES[WITHOUT], epochs=passes)
    alone = {
        "Adam": adam_alone(lab, deterministic, chosen.rate, passes),
        "SFO": sfo_alone(lab, deterministic, passes),
    }
    return Outcome(
        title=f"{dataset.name}, two hidden layers",
        setting={
            "examples": len(dataset.train_images),
            "hidden units": HIDDEN,
            "epochs with dropout": epochs,
            "passes without": passes,
            "batch": BATCH,
            "dropout of inputs and hidden units": DROPPED,
            "L2 without dropout": L2,
            "SFO's minibatches": SUBFUNCTIONS,
            "times": "training only, without compilation, measurements and saving",
            "learning rates tried": RATES,
        },
        rows=[row(f"{name} + dropout", grid) for name, grid in grids.items()]
        + [row("Adam", chosen) | totals(alone["Adam"])]
        + [row("SFO", None) | totals(alone["SFO"])],
        curves={
            "dropout": {name: grid.curve for name, grid in grids.items()},
            "deterministic": {name: method._asdict() for name, method in alone.items()},
        },
        claims=claims(grids, chosen, alone),
    )


def row(name: str, grid: Grid | None) -> dict[str, Any]:
    if grid is None:
        return {"method": name, "best learning rate": "it has none", "best at the grid's edge": ""}
    return {
        "method": name,
        "best learning rate": grid.rate,
        "best at the grid's edge": "yes" if grid.at_edge else "no",
        "training cost": float(grid.curve[-1]),
        "test error": float(grid.measured["test error"][-1, grid.best]),
        "seconds a pass": "",
    }


def totals(method: Alone) -> dict[str, Any]:
    return {
        "training cost": method.costs[-1],
        "test error": method.errors[-1],
        "seconds a pass": method.pace,
    }


def claims(grids: dict[str, Grid], chosen: Grid, alone: dict[str, Alone]) -> list[Claim]:
    last = {name: float(grid.curve[-1]) for name, grid in grids.items()}
    others = [cost for name, cost in last.items() if name != "Adam"]
    shown = ", ".join(f"{name} {cost:.4f}" for name, cost in last.items())
    adam, sfo = alone["Adam"], alone["SFO"]
    level = min(sfo.costs)
    passes, sfo_passes = adam.reaches(level), sfo.reaches(level)
    assert sfo_passes is not None
    sfo_time, adam_time = sfo.seconds[sfo_passes], adam.seconds[passes or 0]
    sooner = passes is not None and adam_time < sfo_time
    when = f"in {adam_time:.1f} s by Adam" if passes is not None else "not by Adam"
    return [
        Claim(
            "with dropout, Adam converges better than the others",
            "the lowest training cost",
            f"training cost at the end: {shown}",
            decided(last["Adam"] < min(others), *grids.values()),
        ),
        Claim(
            "Adam makes faster progress than SFO by iterations",
            "faster",
            f"lowest cost in {len(sfo.costs) - 1} passes: Adam {min(adam.costs):.4f}, "
            f"SFO {level:.4f}",
            decided(min(adam.costs) < level, chosen),
        ),
        Claim(
            "and by wall-clock time",
            "faster",
            f"SFO's lowest cost is reached {when}, in {sfo_time:.1f} s by SFO",
            decided(sooner, chosen),
        ),
        Claim(
            "SFO is 5-10x slower per iteration",
            "5-10x",
            f"{sfo.pace / adam.pace:.1f}x for a pass in {SUBFUNCTIONS} minibatches, Adam's in "
            f"batches of {BATCH}; to hold, 5x at least",
            sfo.pace >= 5 * adam.pace,
        ),
    ]


def draw(outcome: Outcome) -> dict[str, Figure]:
    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    panels = figure.subplot_mosaic([["above", "above"], ["left", "right"]])
    above, left, right = panels["above"], panels["left"], panels["right"]
    curves = outcome.curves["dropout"]
    figures.costs(above, curves, title=f"{outcome.title}, dropout")
    for name, method in outcome.curves["deterministic"].items():
        costs, colour = method["costs"], figures.COLOURS[name]
        left.plot(range(len(costs)), costs, label=name, color=colour)
        right.plot(method["seconds"], costs, label=name, color=colour)
    for axes, x in ((left, "passes over the training set"), (right, "seconds of training")):
        figures.logarithmic(axes)
        figures.tidy(axes, x=x, y="training cost", title=f"{outcome.title}, no dropout")
        axes.legend(frameon=False)
    return {"mlp.png": figure}
