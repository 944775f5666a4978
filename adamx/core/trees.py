"""Two trees of the same parameters: brought side by side, or told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.core.errors import StageError
from adamx.core.signal import add
from adamx.core.types import Array, PyTree

__all__ = [
    "align",
    "apply_updates",
    "check_arrays",
    "codecs_of",
    "is_eager",
    "is_encoded",
    "mismatch",
    "path_of",
    "plain",
]


Params = TypeVar("Params")


def _is_none(x: Any) -> bool:
    return x is None


def align(updates: PyTree, tree: Any, params: PyTree) -> list[Any]:
    """The parameters that have a gradient; others (``None`` as gradient) may be anything."""
    try:
        aligned = tree.flatten_up_to(params)
    except (ValueError, TypeError):
        gradients, wide = jax.tree.flatten(updates, is_leaf=_is_none)
        try:
            aligned = wide.flatten_up_to(params)
        except (ValueError, TypeError):
            raise mismatch("the gradients", updates, "the parameters", params) from None
        aligned = [p for g, p in zip(gradients, aligned, strict=True) if g is not None]
    if not jax.tree_util.all_leaves(aligned):
        raise mismatch("the gradients", updates, "the parameters", params)
    return aligned


_GRADIENTS = "Take gradients with respect to the parameters that init() was given"
_UPDATES = "Pass what update() returned, with the parameters it was given"


def mismatch(one: str, a: PyTree, other: str, b: PyTree, remedy: str = _GRADIENTS) -> StageError:
    """What two trees that should be alike do not share."""
    in_a, in_b = (
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (a, b)
    )
    found = [f"{other} have no {path}" for path in sorted(in_a - in_b)]
    found += [f"{one} have no {path}" for path in sorted(in_b - in_a)]
    if not found:
        found = [f"{jax.tree.structure(a)} is not {jax.tree.structure(b)}"]
    shown = "; ".join(found[:4]) + (f"; … ({len(found)} in all)" if len(found) > 4 else "")
    return StageError(f"{one} and {other} are not trees of the same parameters: {shown}. {remedy}")


_ARRAYS = (jax.Array, np.ndarray, np.generic, float, int, complex)


def path_of(tree: Any, index: int) -> str:
    """Where in its tree a leaf is, as the user would write it."""
    paths = jax.tree_util.tree_flatten_with_path(tree.unflatten(range(tree.num_leaves)))[0]
    return jax.tree_util.keystr(paths[index][0]) or "(the only one)"


def check_arrays(tree: Any, gradients: list[Any]) -> None:
    """Every gradient is an array."""
    for index, gradient in enumerate(gradients):
        if not isinstance(gradient, _ARRAYS):
            raise StageError(
                f"its gradient is {gradient!r}, not an array; where a parameter has no gradient, "
                "None says so"
            ).within(parameter=path_of(tree, index))


def is_eager(*trees: PyTree) -> bool:
    """Whether nobody is compiling this already, and nothing stands in the way of doing so."""
    return all(
        isinstance(leaf, _ARRAYS) and not isinstance(leaf, Tracer)
        for leaf in jax.tree.leaves(trees)
    )


def is_encoded(x: Any) -> bool:
    """Whether this is an array that a codec has encoded: ``{"@codec": …}``."""
    return isinstance(x, Mapping) and len(x) == 1 and str(next(iter(x))).startswith("@")


def plain(x: Any) -> Any:
    """Dicts again, where a framework has put mappings of its own (``nnx.Optimizer`` does)."""
    return {key: plain(part) for key, part in x.items()} if isinstance(x, Mapping) else x


def codecs_of(slot: PyTree) -> set[str]:
    """The names of the codecs that have encoded a slot's arrays."""
    leaves = jax.tree.leaves(slot, is_leaf=is_encoded)
    return {next(iter(x))[1:] for x in leaves if is_encoded(x)}


def apply_updates(params: Params, updates: PyTree) -> Params:
    """θ ← θ + u: the parameters after a step.

    Args:
        params: a tree of arrays.
        updates: what ``update`` returned; where it is ``None`` the parameter stays as it is,
            whatever it is.

    Returns:
        The new parameters, each in its own dtype; the sum is taken in the wider of the two.

    Raises:
        StageError: if the trees or shapes do not match.

    >>> import adamx, jax.numpy as jnp
    >>> adamx.apply_updates({"w": jnp.ones(2)}, {"w": -0.5 * jnp.ones(2)})
    {'w': Array([0.5, 0.5], dtype=float32)}
    """
    steps, tree = jax.tree.flatten(updates, is_leaf=_is_none)
    try:
        thetas = tree.flatten_up_to(params)
    except (ValueError, TypeError):
        raise mismatch("the updates", updates, "the parameters", params, _UPDATES) from None
    moved = [i for i, step in enumerate(steps) if step is not None]
    if not jax.tree_util.all_leaves([thetas[i] for i in moved]):
        raise mismatch("the updates", updates, "the parameters", params, _UPDATES)
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


def _add_all(params: list[Any], updates: list[Any]) -> list[Array]:
    return [add(jnp.asarray(p), jnp.asarray(u)) for p, u in zip(params, updates, strict=True)]


_compiled_add_all = jax.jit(_add_all)
