"""Which learning rate? Train with each, in one compiled program, and look."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.core import Transformation, apply_updates, chain, hyperparams
from adamx.errors import described
from adamx.numerics.types import Array, Float, PyTree, Scalar
from adamx.recipes import adam
from adamx.stages import scale_by_learning_rate
from adamx.tools.sweep import sweep
from adamx.tools.sweep_result import Sweep, named_leaves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LearningRate", "find_learning_rate"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LearningRate:
    """What :func:`find_learning_rate` found.

    Attributes:
        learning_rate: the rate with the least final loss.
        start_loss: the loss of the first batch before the first step.
        sweep: every rate's curve of losses, scored by the mean of its last tenth.
    """

    learning_rate: float
    start_loss: float
    sweep: Sweep

    def plot(self) -> Figure:
        """Draw the final loss against the rate, a ``matplotlib.figure.Figure``.

        ``.sweep.plot()`` draws the curves.
        """
        from adamx.tools import drawing

        return drawing.learning_rate(self)

    def __repr__(self) -> str:
        rates, best = self.sweep.coordinates["learning_rate"], self.sweep.best
        said = (
            f"learning rate {self.learning_rate:.3g}: final loss {best.score:.4g} "
            f"(at the start {self.start_loss:.4g}), the least of {len(rates)} rates "
            f"from {rates.min():.3g} to {rates.max():.3g}"
        )
        if not best.score < self.start_loss:
            said += "; no rate made the loss smaller than at the start"
        if self.learning_rate in (rates.min(), rates.max()):
            end, towards = (
                ("lower", "down") if self.learning_rate == rates.min() else ("upper", "up")
            )
            said += f"; it lies at the {end} end of the grid: extend it {towards}wards with rates=…"
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
    """Train once with every learning rate, from the same parameters, and take the best.

    Nothing is extrapolated: a rate is judged by the loss it leads to, the mean over the last tenth
    of the steps. A short run favours larger rates than a long one.

    Args:
        loss_fn: ``loss_fn(params, batch)``, a scalar.
        params: where every run starts.
        batches: one batch for each step: a tree of arrays with the steps as first axis, or a list
            (or an iterator) of batches, which are stacked.
        opt: a function of the learning rate (``adamx.lion``, ``lambda rate: …``), or an optimiser
            whose learning rate is replaced; :func:`adamx.adam` if None. A scheduled rate can't be
            replaced; the function says how the schedule depends on the rate:
            ``lambda rate: adamx.adam(optax.cosine_decay_schedule(rate, 1000))``.
        rates: the rates to try; 31 from 1e-6 to 1 if None, five in a decade.
        chunk: how many are run at a time, as in :func:`adamx.sweep`.
        progress: as in :func:`adamx.sweep`.

    Returns:
        A :class:`LearningRate`: ``.learning_rate`` is a float; it prints as a sentence that also
        says when the grid was too small; ``.plot()`` and ``.sweep`` show all of them.

    Raises:
        ValueError: if every rate diverged, the batches don't fit together, there are fewer than two
            rates, or the optimiser has no single number ``learning_rate``.

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

    # Only the rate is swept, and the optimiser made from it inside the program: one program for
    # all, also where the rate is in a schedule's closure and every optimiser another structure.
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
            "ones with rates=…, and see whether loss_fn is finite at the start"
        )
    return LearningRate(grid[found.best.index], float(found.outputs[0, 0]), found)


def final_loss(losses: Float[np.ndarray, " steps"]) -> float:
    """The mean over the last tenth of the steps, at least one."""
    last = max(1, len(losses) // 10)
    with np.errstate(invalid="ignore", over="ignore"):  # of a diverged run
        return float(np.mean(losses[-last:], dtype=np.float64))


def _grid(rates: Any) -> list[float]:
    grid = np.geomspace(1e-6, 1, 31) if rates is None else np.asarray(rates)
    if grid.ndim != 1 or len(set(grid.tolist())) < 2:
        raise ValueError(f"rates must be a list of at least two different numbers, got {rates!r}")
    wrong = [rate for rate in grid.tolist() if not (rate > 0 and math.isfinite(rate))]
    if wrong:
        raise ValueError(f"learning rates must be positive and finite, got {wrong[0]} in rates")
    return list(map(float, grid))


def _recipe(opt: Any) -> Callable[[Any], Transformation]:
    """From a rate to the optimiser."""
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
            f"the learning rate of opt is a schedule, which no number can replace; {remedy}, as in "
            "lambda rate: adamx.adam(optax.cosine_decay_schedule(rate, 1000))"
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
            raise ValueError("batches holds no batch: at least one step is needed")
        try:
            batches = jax.tree.map(
                lambda *parts: jnp.stack(list(map(jnp.asarray, parts))), *several
            )
        except (ValueError, TypeError) as error:
            raise ValueError(
                "the batches can't be stacked, so they can't run in one program: a list (or an "
                "iterator) holds one batch for each step, all alike in structure, shapes and "
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
        raise ValueError("batches holds no batch: its first axis, the steps, is empty")
    return jax.tree.map(jnp.asarray, batches)
