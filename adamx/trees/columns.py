"""A slot as a tree like the parameters, and as a column: a list in the order of the parameters.

Flax keeps an array in a box (``nn.Partitioned``) that names the mesh axes along which the array is
divided; a variable of NNX may name them, too. The names hold for a slot of the parameter's shape. A
slot of another shape (a factor, a norm) stands in the tree without the box.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from adamx.numerics.types import PyTree
from adamx.trees.packed import is_packed

__all__ = ["column_of", "tree_of"]


def tree_of(tree: Any, column: Sequence[Any], params: Sequence[Any]) -> PyTree:
    """The tree of a slot.

    Args:
        tree: the structure of the parameters.
        column: the slot of each parameter.
        params: the parameters, or their shapes.
    """
    if _opened(tree) is None:
        return tree.unflatten(column)

    def of_one(place: Any) -> Any:
        (i,) = jax.tree.leaves(place)
        is_alike = _is_box_of_one(place) and _is_alike(column[i], params[i])
        return _inside(place)[1].unflatten([column[i]]) if is_alike else column[i]

    places = tree.unflatten(range(tree.num_leaves))
    return jax.tree.map(of_one, places, is_leaf=_is_box_of_one)


def column_of(tree: Any, slot: PyTree) -> list[Any]:
    """The slot of each parameter; the inverse of :func:`tree_of`.

    Raises:
        ValueError, TypeError: if the slot is no tree like the parameters.
    """
    opened = _opened(tree)
    if opened is None:
        return tree.flatten_up_to(slot)
    return [_inside(x)[0][0] if _is_box(x) else x for x in opened.flatten_up_to(slot)]


@functools.lru_cache(maxsize=64)
def _opened(tree: Any) -> Any:
    """The structure with boxes as leaves; None if there are no boxes."""
    places = tree.unflatten(range(tree.num_leaves))
    leaves, opened = jax.tree.flatten(places, is_leaf=_is_box_of_one)
    return opened if any(map(_is_box, leaves)) else None


def _is_box_of_one(x: Any) -> bool:
    """Whether this is one array in a box; the names of a box of several arrays are left alone."""
    return _is_box(x) and len(jax.tree.leaves(x)) == 1


def _is_box(x: Any) -> bool:
    """Whether this is Flax's ``AxisMetadata``, or a variable of NNX that names mesh axes."""
    kind = type(x)
    if hasattr(kind, "replace_boxed"):
        return len(_inside(x)[0]) == 1
    if not hasattr(kind, "get_metadata"):
        return False
    return any(x.get_metadata().get(name) for name in _NAMES)


_NAMES = ("out_sharding", "sharding_names", "sharding")  # in versions of NNX


def _inside(box: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(box, is_leaf=lambda x: x is not box)


def _is_alike(slot: Any, param: Any) -> bool:
    """Whether a slot is divided like its parameter: it has its shape, or packs an array that has.

    Packed arrays have the axes of the packed array, in other lengths.
    """
    arrays, wanted = jax.tree.leaves(slot), np.shape(param)
    if is_packed(slot):
        return all(np.ndim(x) == len(wanted) for x in arrays)
    return [np.shape(x) for x in arrays] == [wanted]
