"""Paths of arrays in their trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax

from adamx.numerics.formats import statistics_dtype

__all__ = ["Leaf", "Place", "path_of", "paths_of", "place_of", "plain", "written"]


Leaf: TypeAlias = tuple[str, jax.ShapeDtypeStruct]
"""The path of a parameter, and its shape with the dtype of its statistics."""


Place = tuple[str, ...]
"""The keys on the path to an array in its tree, whatever the types of containers."""


ALONE = "(the only one)"


def written(path: Any) -> str:
    """A path of JAX as the user would write it."""
    return jax.tree_util.keystr(path) or ALONE


def path_of(tree: Any, index: int) -> str:
    """The path of a leaf in its tree, as the user would write it."""
    paths = jax.tree_util.tree_flatten_with_path(tree.unflatten(range(tree.num_leaves)))[0]
    return written(paths[index][0])


def paths_of(tree: Any, leaves: Sequence[Any]) -> list[Leaf]:
    """The path of every parameter, and its shape with the dtype of its statistics.

    The path of a variable of ``nnx`` is that of its array in a plain dict.
    """
    numbered = tree.unflatten(range(tree.num_leaves))
    return [
        (
            jax.tree_util.keystr(_without_value(path), simple=True, separator="/"),
            jax.ShapeDtypeStruct(leaves[i].shape, statistics_dtype(leaves[i].dtype)),
        )
        for path, i in jax.tree_util.tree_flatten_with_path(numbered)[0]
    ]


def _without_value(path: Any) -> Any:
    """A path without the attribute in which a variable keeps its array."""
    if len(path) < 2:
        return path
    *_, name, last = path
    is_value = isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value"
    is_variable = isinstance(name, (jax.tree_util.DictKey, jax.tree_util.SequenceKey))
    return path[:-1] if is_value and is_variable else path


def place_of(path: Any) -> Place:
    """The keys of a path, equal for lists, tuples, variables and the dicts restored from them."""
    return tuple(
        jax.tree_util.keystr((key,), simple=True)
        for key in path
        if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value")
    )


def plain(x: Any) -> Any:
    """The value with dicts in place of a framework's mappings, such as those of ``nnx``."""
    return {key: plain(part) for key, part in x.items()} if isinstance(x, Mapping) else x
