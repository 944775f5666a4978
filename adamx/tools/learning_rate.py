"""Find a learning rate: train with every candidate, in one compiled program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.core import Transformation, apply_updates, chain
from adamx.errors import described
from adamx.numerics.types import Array, Float, PyTree, Scalar
from adamx.recipes import adam
from adamx.stages import scale_by_learning_rate
from adamx.states.hyperparams import hyperparams
from adamx.tools import drawing
from adamx.tools.labels import named_leaves
from adamx.tools.sweep import sweep
from adamx.tools.sweep_result import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LearningRate", "find_learning_rate"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LearningRate:
    """The result of :func:`find_learning_rate`.

    Attributes:
        learning_rate: the learning rate with the smallest final loss.
        start_loss: the loss of the first batch before the first step.
        sweep: the loss curve of every learning rate; the score is the mean over the last tenth of
            the curve.
    """

    learning_rate: float
    start_loss: float
    sweep: Sweep

    def plot(self) -> Figure:
        """Plot the final loss against the learning rate; returns a ``matplotlib.figure.Figure``.

        ``.sweep.plot()`` plots the loss curves.
        """
        return drawing.learning_rate(self)

    def __repr__(self) -> str:
        rates, best = self.sweep.coordinates["learning_rate"], self.sweep.best
        said = (
            f"learning rate {self.learning_rate:.3g}: final loss {best.score:.4g} "
            f"(at the start {self.start_loss:.4g}), the smallest of {len(rates)} rates "
            f"from {rates.min():.3g} to {rates.max():.3g}"
        )
        if not best.score < self.start_loss:
            said += "; no rate reduced the loss below its value at the start"
        if self.learning_rate in (rates.min(), rates.max()):
            end, towards = (
                ("lower", "down") if self.learning_rate == rates.min() else ("upper", "up")
            )
            said += (
                f"; this rate is at the {end} end of the grid: extend the grid {towards}wards with "
                "rates=…"
            )
        return said


def find_learning_rate(
    loss_fn: Callable[[Any, Any], Any],
    params: PyTree,
    batches: PyTree,
    opt: Transformation | Callable[[Any], optax.GradientTransformation] | None = None,
    *,
    rates: Sequence[float] | np.ndarray | jax.Array | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
) -> LearningRate:
    """Train once with every learning rate, from the same parameters, and choose the best one.

    The function does not extrapolate. It scores each learning rate by the mean loss over the last
    tenth of the steps. Short runs favour larger learning rates than long runs.

    Args:
        loss_fn: ``loss_fn(params, batch)``, a scalar.
        params: the initial parameters of every run.
        batches: one batch for each step: a tree of arrays with the steps as first axis, or a list
            (or an iterator) of batches, which are stacked.
        opt: a function of the learning rate (``adamx.lion``, ``lambda rate: …``), or an optimiser
            whose learning rate is replaced; :func:`adamx.adam` if None. The learning rate of an
            optimiser with a schedule can't be replaced. Pass a function that makes the schedule
            from the rate: ``lambda rate: adamx.adam(optax.cosine_decay_schedule(rate, 1000))``.
        rates: the learning rates to try. If None, 31 rates from 1e-6 to 1, five per decade.
        chunk: the number of runs at a time, as in :func:`adamx.sweep`.
        progress: as in :func:`adamx.sweep`.

    Returns:
        A :class:`LearningRate`. Its ``.learning_rate`` is a float. It prints as a sentence, which
        warns if the best rate is at the edge of the grid. ``.plot()`` and ``.sweep`` show the
        results of all rates.

    Raises:
        ValueError: if all learning rates diverged, if the batches have different structures or
            shapes, if there are fewer than two rates, or if the optimiser has no single
            hyperparameter ``learning_rate``.

    >>> inputs = jax.random.normal(jax.random.key(0), (50, 8, 3))  # 50 batches of 8
    >>> targets = inputs @ jnp.array([1.0, -2.0, 3.0])
    >>> def loss_fn(w, batch):
    ...     x, y = batch
    ...     return jnp.mean((x @ w - y) ** 2)
    >>> found = find_learning_rate(loss_fn, jnp.zeros(3), (inputs, targets), progress=False)
    >>> found.learning_rate
    0.398
    """
    grid = _grid(rates)
    batches = _stacked(batches)
    recipe = _recipe(opt)

    def train(rated: Transformation) -> Float[Array, " steps"]:
        tx = recipe(hyperparams(rated)["learning_rate"])

        def step(carry: Any, batch: PyTree) -> tuple[Any, Scalar]:
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    # The sweep varies only the rate, and the program makes the optimiser from it. So one program is
    # enough, even if each optimiser has a schedule that captures its rate.
    found = sweep(
        train,
        [scale_by_learning_rate(rate) for rate in grid],
        chunk=chunk,
        score=final_loss,
        progress=progress,
    )
    found = dataclasses.replace(found, optimisers=tuple(map(recipe, grid)))
    if not np.isfinite(found.scores).any():
        raise ValueError(
            f"every learning rate from {min(grid):.3g} to {max(grid):.3g} diverged; try smaller "
            "ones with rates=…, and check that loss_fn is finite at the start"
        )
    return LearningRate(grid[found.best.index], float(found.outputs[0, 0]), found)


def final_loss(losses: Float[np.ndarray, " steps"]) -> float:
    """The mean over the last tenth of the steps, at least one."""
    last = max(1, len(losses) // 10)
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged run has ∞ and NaN
        return float(np.mean(losses[-last:], dtype=np.float64))


def _grid(rates: Any) -> list[float]:
    grid = np.geomspace(1e-6, 1, 31) if rates is None else np.asarray(rates)
    if grid.ndim != 1 or len(set(grid.tolist())) < 2:
        raise ValueError(
            f"rates must be a list of at least two different learning rates, got {rates!r}"
        )
    wrong = [rate for rate in grid.tolist() if not (rate > 0 and math.isfinite(rate))]
    if wrong:
        raise ValueError(f"learning rates must be positive and finite, got {wrong[0]} in rates")
    return list(map(float, grid))


def _recipe(opt: Any) -> Callable[[Any], Transformation]:
    """The function from a learning rate to an optimiser."""
    if opt is None:
        return adam
    if not isinstance(opt, Transformation):
        if not callable(opt) or isinstance(opt, type):
            raise TypeError(
                "opt must be an adamx optimiser or a function of the learning rate, got "
                f"{described(opt)}"
            )
        recipe: Callable[[Any], Any] = opt
        return lambda rate: chain(recipe(rate))
    remedy = "pass a function of the rate instead, lambda rate: …"
    if callable(hyperparams(opt).get("learning_rate")):
        raise ValueError(
            f"the learning rate of opt is a schedule, which a number can't replace; {remedy}, for "
            "example lambda rate: adamx.adam(optax.cosine_decay_schedule(rate, 1000))"
        )
    try:
        opt.replace(learning_rate=1.0)
    except ValueError as error:
        raise ValueError(
            f"opt has no single learning rate to replace: {error}; or {remedy}"
        ) from None
    return lambda rate: opt.replace(learning_rate=rate)


def _stacked(batches: Any) -> Any:
    """One tree of arrays with the steps as first axis."""
    is_leaf = jax.tree_util.all_leaves([batches]) and not hasattr(batches, "shape")
    if isinstance(batches, list) or (is_leaf and isinstance(batches, Iterable)):
        several = list(batches)
        if not several:
            raise ValueError("batches contains no batch; at least one step is needed")
        try:
            batches = jax.tree.map(
                lambda *parts: jnp.stack(list(map(jnp.asarray, parts))), *several
            )
        except (ValueError, TypeError) as error:
            raise ValueError(
                "the batches can't be stacked, so they can't run in one program: a list (or an "
                "iterator) must contain one batch per step, all of equal structure, shapes and "
                f"dtypes ({error})"
            ) from error
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(batches).items()}
    steps = {shape[:1] for shape in shapes.values()}
    if len(steps) != 1 or () in steps:
        raise ValueError(
            "batches must be arrays with the steps as their common first axis, or a list of "
            f"batches; got {shapes or batches!r}"
        )
    if steps == {(0,)}:
        raise ValueError("batches contains no batch: its first axis, the steps, is empty")
    return jax.tree.map(jnp.asarray, batches)
