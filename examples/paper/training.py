"""Methods side by side on one problem, each with its learning rate chosen by a vmapped grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import adamx
from examples.paper.lab import Lab

__all__ = ["Grid", "Problem", "compare", "shuffled"]

Recipe = Callable[[Any], adamx.Transformation]


class Problem(NamedTuple):
    """Something to be minimised, one batch at a time.

    Attributes:
        name: distinguishes it from others in what is kept on disk: with all that it depends on.
        init: ``key -> params``.
        loss: ``(params, batch, key) -> scalar``, of a pytree of examples ``[batch, ...]``.
        examples: the training set, a pytree of arrays ``[examples, ...]``.
        batch_size: examples in a step.
        held_out: what ``measure`` needs, a pytree of arrays.
        measure: ``(params, held_out) -> dict of scalars``, before the first and after every epoch.
    """

    name: str
    init: Callable[[Any], Any]
    loss: Callable[[Any, Any, Any], jax.Array]
    examples: Any
    batch_size: int
    held_out: Any
    measure: Callable[[Any, Any], dict[str, jax.Array]]


class Grid(NamedTuple):
    """One method with all its learning rates.

    Attributes:
        rates: ``[rates]``.
        losses: the mean loss of every epoch, ``[epochs, rates]``.
        measured: what ``measure`` gave, ``[1 + epochs, rates]`` each.
        best: the index of the rate with the least loss in the last epoch.
        params: the last parameters of the best rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    measured: dict[str, np.ndarray]
    best: int
    params: Any

    @property
    def rate(self) -> float:
        return float(self.rates[self.best])

    @property
    def curve(self) -> np.ndarray:
        """The loss of every epoch with the best rate."""
        return self.losses[:, self.best]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest tried."""
        return self.best in (0, len(self.rates) - 1)


def compare(
    lab: Lab,
    problem: Problem,
    methods: Mapping[str, Recipe],
    rates: Mapping[str, Sequence[float]],
    *,
    epochs: int,
    seed: int = 0,
) -> dict[str, Grid]:
    """Train with every method and every rate of its grid: one program for each method.

    All start at the same parameters and see the same batches.
    """
    return {
        name: train(lab, problem, name, recipe, rates[name], epochs=epochs, seed=seed)
        for name, recipe in methods.items()
    }


def train(
    lab: Lab,
    problem: Problem,
    name: str,
    recipe: Recipe,
    rates: Sequence[float],
    *,
    epochs: int,
    seed: int = 0,
) -> Grid:
    """One method with all its learning rates at once; goes on where it was interrupted."""
    grid = jnp.asarray(rates, jnp.float32)
    size = len(jax.tree.leaves(problem.examples)[0])
    start = problem.init(jax.random.key(seed))
    measure = jax.jit(jax.vmap(problem.measure, in_axes=(0, None)))
    examples = jax.tree.map(jnp.asarray, problem.examples)
    held_out = jax.tree.map(jnp.asarray, problem.held_out)
    epoch_of_all = jax.jit(_epoch(problem, recipe), donate_argnums=(1, 2))

    key = (problem.name, name, tuple(map(float, rates)), epochs, seed)
    kept = lab.load(key)
    if kept is None:
        params = jax.tree.map(lambda x: jnp.stack([x] * len(grid)), start)
        state = jax.vmap(lambda rate, theta: recipe(rate).init(theta))(grid, params)
        losses, measured = [], [measure(params, held_out)]
    else:
        params, state, losses, measured = jax.tree.map(jnp.asarray, kept)
    advance = lab.steps(name, epochs, len(losses))
    for epoch in range(len(losses), epochs):
        order = jnp.asarray(shuffled(size, problem.batch_size, seed, epoch))
        dropout = jax.random.fold_in(jax.random.key(seed), epoch)
        params, state, mean = epoch_of_all(grid, params, state, examples, order, dropout)
        losses.append(mean)
        measured.append(measure(params, held_out))
        lab.save(key, (params, state, losses, measured))
        advance(loss=float(np.nanmin(np.asarray(mean))))

    curves = np.stack([np.asarray(x) for x in losses])
    best = int(np.argmin(np.where(np.isfinite(curves[-1]), curves[-1], np.inf)))
    return Grid(
        rates=np.asarray(grid),
        losses=curves,
        measured=jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *measured),
        best=best,
        params=jax.tree.map(lambda x: np.asarray(x[best]), params),
    )


def _epoch(problem: Problem, recipe: Recipe) -> Callable[..., Any]:
    """An epoch of every rate: parameters, states and the mean loss of each."""

    def epoch(rate: Any, params: Any, state: Any, examples: Any, order: Any, key: Any) -> Any:
        opt = recipe(rate)

        def step(carry: Any, numbered: Any) -> Any:
            params, state = carry
            number, batch = numbered
            picked = jax.tree.map(lambda x: x[batch], examples)
            loss, gradient = jax.value_and_grad(problem.loss)(
                params, picked, jax.random.fold_in(key, number)
            )
            updates, state = opt.update(gradient, state, params)
            return (adamx.apply_updates(params, updates), state), loss

        steps = jnp.arange(len(order))
        (params, state), losses = jax.lax.scan(step, (params, state), (steps, order))
        return params, state, losses.mean()

    return jax.vmap(epoch, in_axes=(0, 0, 0, None, None, None))


def shuffled(size: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """The indices of an epoch's batches, in an order that depends on seed and epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(size)
    steps = size // batch
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)
