"""Two trees of the same parameters: brought side by side, or told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.core.errors import StageError
from adamx.core.signal import add
from adamx.core.types import Array, PyTree

__all__ = [
    "Aligned",
    "align",
    "apply_updates",
    "check_arrays",
    "codecs_of",
    "complete",
    "is_eager",
    "is_encoded",
    "is_missing",
    "mismatch",
    "path_of",
    "plain",
]


Params = TypeVar("Params")


def _is_none(x: Any) -> bool:
    return x is None


class Aligned(NamedTuple):
    """Parameters beside their gradients."""

    own: list[Any]  # of every gradient, its parameter
    rest: list[Any]  # of every None among the gradients, the arrays that stand there


def align(updates: PyTree, tree: Any, params: PyTree) -> Aligned:
    """The parameters in the order of the gradients; where those are None, anything may stand."""
    try:
        aligned = Aligned(tree.flatten_up_to(params), [])
    except (ValueError, TypeError):
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
    """Gradients and parameters with those parameters that have no gradient in this step.

    A parameter that has none is there if one of the ``slots`` keeps something of it; where no
    slots are kept at all, if it is among ``params``. Whatever else is None in the gradients (a
    function in an Equinox model, say) stays out.

    Returns:
        The tree of all parameters; their gradients, a ``jax.ShapeDtypeStruct`` in the place of
        one that is missing; and the parameters, None in its place.
    """
    own = None if params is None else params.own
    places, wide = jax.tree.flatten(tree.unflatten(gradients), is_leaf=_is_none)
    if len(places) == len(gradients):
        return tree, gradients, own
    try:
        columns = [wide.flatten_up_to(slot) for slot in slots()]
    except (ValueError, TypeError):  # of other parameters, which is said where they are used
        return tree, gradients, own
    rest = iter(params.rest if params is not None else ())
    for i, gradient in enumerate(places):
        if gradient is None:
            beside = next(rest, None)
            kept = [x for x in (plain(column[i]) for column in columns) if jax.tree.leaves(x)]
            if kept and not jax.tree.leaves(beside):
                beside = min(kept, key=lambda x: len(jax.tree.leaves(x, is_leaf=is_encoded)))
            is_known = kept or not columns
            places[i] = jax.tree.map(_shape, beside, is_leaf=is_encoded) if is_known else None
    found, tree = jax.tree.flatten(wide.unflatten(places))
    if own is not None:
        given = iter(own)
        own = [None if is_missing(gradient) else next(given) for gradient in found]
    return tree, found, own


def is_missing(gradient: Any) -> bool:
    """Whether there is only the shape of a parameter, which has no gradient in this step."""
    return isinstance(gradient, jax.ShapeDtypeStruct)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    array = jax.tree.leaves(x)[0]  # an encoded one's codes are shaped like it
    return jax.ShapeDtypeStruct(np.shape(array), jnp.result_type(array))


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
