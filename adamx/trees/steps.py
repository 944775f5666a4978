"""Add updates to parameters."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from adamx.errors import StageError
from adamx.numerics.formats import add
from adamx.numerics.types import Array, PyTree
from adamx.trees.arrays import is_eager
from adamx.trees.differences import mismatch
from adamx.trees.paths import path_of

__all__ = ["Params", "apply_updates", "with_new"]


Params = TypeVar("Params")


_UPDATES = "Pass what update() returned, with the parameters it was given"


def apply_updates(params: Params, updates: PyTree) -> Params:
    """θ ← θ + u: the parameters after a step.

    Args:
        params: a tree of arrays.
        updates: the updates that ``update`` returned. Where an update is ``None``, the value in
            ``params`` (an array or any other object) is returned unchanged.

    Returns:
        The new parameters in their own dtypes; sums are computed in the wider of the two dtypes.

    Raises:
        StageError: if the trees or shapes do not match.

    >>> import adamx, jax.numpy as jnp
    >>> adamx.apply_updates({"w": jnp.ones(2)}, {"w": -0.5 * jnp.ones(2)})
    {'w': Array([0.5, 0.5], dtype=float32)}
    """
    tree, steps, thetas, moved = _beside(updates, params)
    for i in moved:
        if np.shape(thetas[i]) != np.shape(steps[i]):
            where = path_of(tree, i)
            raise StageError(
                f"an update of shape {np.shape(steps[i])} can't be added to a parameter of shape "
                f"{np.shape(thetas[i])}"
            ).within(parameter=where)
    pair = [thetas[i] for i in moved], [steps[i] for i in moved]
    new = _compiled_add_all(*pair) if is_eager(pair) else _add_all(*pair)
    for i, theta in zip(moved, new, strict=True):
        thetas[i] = theta
    return tree.unflatten(thetas)


def with_new(params: Params, new: PyTree) -> Params:
    """The parameters, with the arrays of ``new`` in their place where it is not None."""
    tree, found, thetas, moved = _beside(new, params)
    for i in moved:
        thetas[i] = found[i]
    return tree.unflatten(thetas)


def _beside(updates: PyTree, params: PyTree) -> tuple[Any, list[Any], list[Any], list[int]]:
    """The tree of the updates, its leaves, what the parameters hold there, and where one is."""
    steps, tree = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    try:
        thetas = tree.flatten_up_to(params)
    except (ValueError, TypeError):
        raise mismatch("the updates", updates, "the parameters", params, _UPDATES) from None
    moved = [i for i, step in enumerate(steps) if step is not None]
    if not jax.tree_util.all_leaves([thetas[i] for i in moved]):
        raise mismatch("the updates", updates, "the parameters", params, _UPDATES)
    return tree, steps, thetas, moved


def _add_all(params: list[Any], updates: list[Any]) -> list[Array]:
    return [add(jnp.asarray(p), jnp.asarray(u)) for p, u in zip(params, updates, strict=True)]


_compiled_add_all = jax.jit(_add_all)
