"""Align gradients and parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.numerics.types import PyTree
from adamx.trees.columns import column_of
from adamx.trees.differences import mismatch
from adamx.trees.packed import is_packed
from adamx.trees.paths import plain

__all__ = ["Aligned", "align", "complete", "is_missing"]


def _is_none(x: Any) -> bool:
    return x is None


class Aligned(NamedTuple):
    """Parameters beside their gradients."""

    own: list[Any]  # the parameter of every gradient
    rest: list[Any]  # the arrays at every None among the gradients


def align(updates: PyTree, tree: Any, params: PyTree) -> Aligned:
    """The parameters in the order of the gradients; a None among these may stand for anything."""
    own, same = jax.tree.flatten(params)
    if same == tree:
        aligned = Aligned(own, [])
    else:
        gradients, wide = jax.tree.flatten(updates, is_leaf=_is_none)
        try:
            found = list(zip(gradients, wide.flatten_up_to(params), strict=True))
        except (ValueError, TypeError):
            raise mismatch("the gradients", updates, "the parameters", params) from None
        aligned = Aligned(
            [p for g, p in found if g is not None],
            [jax.tree.map(_if_inexact, p) for g, p in found if g is None],
        )
    if not jax.tree_util.all_leaves(aligned.own):
        raise mismatch("the gradients", updates, "the parameters", params)
    return aligned


def _if_inexact(x: Any) -> Any:
    is_array = isinstance(x, (jax.Array, np.ndarray))
    return x if is_array and jnp.issubdtype(x.dtype, jnp.inexact) else None


def complete(
    tree: Any,
    gradients: list[Any],
    params: Aligned | None,
    slots: Callable[[], Sequence[PyTree]],
) -> tuple[Any, list[Any], list[Any] | None]:
    """Add the parameters that have no gradient in this step to gradients and parameters.

    Such a parameter is found in ``params`` or, without ``params``, in one of the ``slots``. Any
    other None in the gradients (for a function in an Equinox model, say) is left out.

    Returns:
        The tree of all known parameters; their gradients, with a ``jax.ShapeDtypeStruct`` for each
        missing one; and the parameters, None where only slots are known.
    """
    own = None if params is None else params.own
    places, wide = jax.tree.flatten(tree.unflatten(gradients), is_leaf=_is_none)
    if len(places) == len(gradients):
        return tree, gradients, own
    try:
        columns = [column_of(wide, slot) for slot in slots()]
    except (ValueError, TypeError):  # slots of other parameters; an error where they are used
        return tree, gradients, own
    given = iter(() if own is None else own)
    rest = iter(() if params is None else params.rest)
    thetas: list[Any] = []
    for i, gradient in enumerate(places):
        if gradient is not None:
            thetas.append(next(given, None))
            continue
        beside, kept = next(rest, None), [plain(column[i]) for column in columns]
        if None in kept and not jax.tree_util.all_leaves([beside]):
            beside = None  # a part of the model that was kept out of the state
        theta = jax.tree.leaves(beside)
        if not theta and (kept := [x for x in kept if x is not None]):
            beside = min(kept, key=_fewest)
        places[i] = jax.tree.map(_shape, beside, is_leaf=is_packed)
        thetas += theta or [None] * len(jax.tree.leaves(places[i]))
    found, tree = jax.tree.flatten(wide.unflatten(places))
    return tree, found, None if own is None else thetas


def _fewest(slot: Any) -> tuple[bool, int]:
    """A key that sorts slots: those with one array of each parameter come first."""
    arrays = len(jax.tree.leaves(slot, is_leaf=is_packed))
    return not arrays, arrays


def is_missing(gradient: Any) -> bool:
    """Whether this is the shape of a parameter that has no gradient in this step."""
    return isinstance(gradient, jax.ShapeDtypeStruct)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    array = jax.tree.leaves(x)[0]  # the codes of an encoded array have its shape
    return jax.ShapeDtypeStruct(np.shape(array), jnp.result_type(array))
