"""Compare methods on one problem, each with the best learning rate of a vmapped grid."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import adamx
from examples.paper.lab import Lab

__all__ = ["Grid", "Problem", "compare", "decided", "double_precision", "epoch_of_one", "shuffled"]

Recipe = Callable[[Any], adamx.Transformation]


class Problem(NamedTuple):
    """A loss to minimise, one batch at a time.

    Attributes:
        name: identifies the problem in saved results; contains everything that they depend on.
        init: ``key -> params``.
        loss: ``(params, batch, key) -> scalar``; the batch is a pytree ``[batch, ...]``.
        examples: the training set, a pytree of arrays ``[examples, ...]``.
        batch_size: the number of examples in a step.
        held_out: the argument of ``measure``, a pytree of arrays.
        measure: ``(params, held_out) -> dict of scalars``; called before the first and after every
            epoch.
        vmapped: whether all rates run in one program. Otherwise they run one after the other, step
            by step, because XLA's convolutions are slow on CPU inside a loop or batched over their
            weights.
    """

    name: str
    init: Callable[[Any], Any]
    loss: Callable[[Any, Any, Any], jax.Array]
    examples: Any
    batch_size: int
    held_out: Any
    measure: Callable[[Any, Any], dict[str, jax.Array]]
    vmapped: bool = True


class Grid(NamedTuple):
    """The results of one method with all its learning rates.

    Attributes:
        rates: ``[rates]``.
        losses: the mean loss of every epoch, ``[epochs, rates]``.
        measured: the results of ``measure``, ``[1 + epochs, rates]`` each.
        best: the index of the rate with the smallest loss in the last epoch.
        params: the last parameters of the best rate.
        steps: the loss of every step, ``[epochs * steps, rates]``.
    """

    rates: np.ndarray
    losses: np.ndarray
    measured: dict[str, np.ndarray]
    best: int
    params: Any
    steps: Any = None

    @property
    def rate(self) -> float:
        return float(self.rates[self.best])

    @property
    def curve(self) -> np.ndarray:
        """The loss of every epoch with the best rate."""
        return self.losses[:, self.best]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest of the grid."""
        return self.best in (0, len(self.rates) - 1)


def decided(holds: bool, *grids: Grid) -> bool | None:
    """The verdict, or None if a method might be better with a rate outside its grid."""
    return None if any(grid.at_edge for grid in grids) else holds


def compare(
    lab: Lab,
    problem: Problem,
    methods: Mapping[str, Recipe],
    rates: Mapping[str, Sequence[float]],
    *,
    epochs: int,
    seed: int = 0,
) -> dict[str, Grid]:
    """Train with every method and every rate of its grid, in one program per method.

    All trainings have the same initial parameters and the same batches.
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
    rates: Sequence[Any],
    *,
    epochs: int,
    seed: int = 0,
    measure: Callable[[Any, Any, Any], dict[str, jax.Array]] | None = None,
) -> Grid:
    """Train with one method and all its learning rates at once; an interrupted run continues.

    A rate may also be a row of hyperparameters ``(α, β₁, β₂)``, which the recipe unpacks.
    ``measure`` replaces the problem's function; it is called with ``(params, state, held_out)`` and
    can read the state of the optimiser.
    """
    grid = jnp.asarray(rates, jnp.float32)
    size = len(jax.tree.leaves(problem.examples)[0])
    start = problem.init(jax.random.key(seed))
    measure = measure or (lambda params, state, held_out: problem.measure(params, held_out))
    examples = jax.tree.map(jnp.asarray, problem.examples)
    held_out = jax.tree.map(jnp.asarray, problem.held_out)
    if problem.vmapped:
        measure = jax.jit(jax.vmap(measure, in_axes=(0, 0, None)))
        epoch_of_all = jax.vmap(epoch_of_one(problem, recipe), in_axes=(0, 0, 0, None, None, None))
        epoch_of_all = jax.jit(epoch_of_all, donate_argnums=(1, 2))
    else:
        measure = _in_turn(jax.jit(measure), 2)
        epoch_of_all = _in_turn(_epoch_step_by_step(problem, recipe), 3)

    key = (problem.name, name, np.asarray(rates, float).tolist(), epochs, seed)
    kept = lab.load(key)
    if kept is None:
        params = jax.tree.map(lambda x: jnp.stack([x] * len(grid)), start)
        state = jax.vmap(lambda rate, theta: recipe(rate).init(theta))(grid, params)
        losses, measured = [], [measure(params, state, held_out)]
    else:
        params, state, losses, measured = jax.tree.map(jnp.asarray, kept)
    advance = lab.steps(name, epochs, len(losses))
    for epoch in range(len(losses), epochs):
        order = jnp.asarray(shuffled(size, problem.batch_size, seed, epoch))
        dropout = jax.random.fold_in(jax.random.key(seed), epoch)
        params, state, of_steps = epoch_of_all(grid, params, state, examples, order, dropout)
        losses.append(of_steps)
        measured.append(measure(params, state, held_out))
        lab.save(key, (params, state, losses, measured))
        advance(loss=float(np.nanmin(np.asarray(of_steps).mean(axis=1))))

    steps = np.stack([np.asarray(x).T for x in losses])
    curves = steps.mean(axis=1)
    best = int(np.argmin(np.where(np.isfinite(curves[-1]), curves[-1], np.inf)))
    return Grid(
        rates=np.asarray(grid),
        losses=curves,
        measured=jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *measured),
        best=best,
        params=jax.tree.map(lambda x: np.asarray(x[best]), params),
        steps=np.concatenate(steps),
    )


def epoch_of_one(problem: Problem, recipe: Recipe) -> Callable[..., Any]:
    """The program of an epoch with one rate; returns parameters, state and all losses."""
    one = _step(problem, recipe)

    def epoch(rate: Any, params: Any, state: Any, examples: Any, order: Any, key: Any) -> Any:
        def step(carry: Any, numbered: Any) -> Any:
            params, state, loss = one(rate, *carry, examples, *numbered, key)
            return (params, state), loss

        steps = jnp.arange(len(order))
        (params, state), losses = jax.lax.scan(step, (params, state), (steps, order))
        return params, state, losses

    return epoch


def _epoch_step_by_step(problem: Problem, recipe: Recipe) -> Callable[..., Any]:
    """An epoch with one rate, with a separate program per step."""
    step = jax.jit(_step(problem, recipe), donate_argnums=(1, 2))

    def epoch(rate: Any, params: Any, state: Any, examples: Any, order: Any, key: Any) -> Any:
        losses = []
        for number, batch in enumerate(order):
            params, state, loss = step(rate, params, state, examples, number, batch, key)
            losses.append(loss)
        return params, state, jnp.stack(losses)

    return epoch


def _step(problem: Problem, recipe: Recipe) -> Callable[..., Any]:
    def step(
        rate: Any, params: Any, state: Any, examples: Any, number: Any, batch: Any, key: Any
    ) -> Any:
        picked = jax.tree.map(lambda x: x[batch], examples)
        loss, gradient = jax.value_and_grad(problem.loss)(
            params, picked, jax.random.fold_in(key, number)
        )
        updates, state = recipe(rate).update(gradient, state, params)
        return adamx.apply_updates(params, updates), state, loss

    return step


def _in_turn(function: Callable[..., Any], mapped: int) -> Callable[..., Any]:
    """The result of ``vmap`` over the first ``mapped`` arguments, computed one after the other."""

    def every(*arguments: Any) -> Any:
        size = len(jax.tree.leaves(arguments[0])[0])
        ended = [
            function(*jax.tree.map(operator.itemgetter(i), arguments[:mapped]), *arguments[mapped:])
            for i in range(size)
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *ended)

    return every


def shuffled(size: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """The indices of an epoch's batches, in an order that depends only on seed and epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(size)
    steps = size // batch
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """A context with float64, for JAX before and since 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)  # pyright: ignore[reportAttributeAccessIssue]
