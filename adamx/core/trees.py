"""Align two trees of the same parameters, or describe how they differ."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.core.link import Leaf, form_of, is_packed
from adamx.core.signal import check_inexact
from adamx.errors import StageError, described
from adamx.numerics.formats import add, statistics_dtype
from adamx.numerics.types import Array, PyTree

__all__ = [
    "Aligned",
    "align",
    "apply_updates",
    "as_parameter",
    "check_arrays",
    "complete",
    "forms_of",
    "is_eager",
    "is_missing",
    "mismatch",
    "path_of",
    "paths_of",
    "plain",
    "written",
]


Params = TypeVar("Params")


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
        columns = [wide.flatten_up_to(slot) for slot in slots()]
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


_GRADIENTS = "Take gradients with respect to the parameters that init() was given"
_UPDATES = "Pass what update() returned, with the parameters it was given"


def mismatch(one: str, a: PyTree, other: str, b: PyTree, remedy: str = _GRADIENTS) -> StageError:
    """An error that says how two trees of parameters differ."""
    in_a, in_b = (
        {written(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]} - {_ALONE}
        for tree in (a, b)
    )
    unlike = list(_unlike(a, b))
    found = [_containers(one, x, other, y, path) for path, x, y in unlike]
    found += [f"{other} have no {path}" for path in sorted(in_a - in_b)]
    found += [f"{one} have no {path}" for path in sorted(in_b - in_a)]
    if not found:
        found = [_static(a, b)]
    shown = "; ".join(found[:4]) + (f"; … ({len(found)} in all)" if len(found) > 4 else "")
    for kinds, what in _SAME_CONTAINERS.items():
        if any({type(x).__name__, type(y).__name__} == kinds for _, x, y in unlike):
            remedy = what.format(one=one, other=other)
            break
    return StageError(f"{one} and {other} are not trees of the same parameters: {shown}. {remedy}")


_SAME_CONTAINERS: dict[frozenset[str], str] = {
    frozenset({"FrozenDict", "dict"}): (
        "flax.core.unfreeze makes dicts of FrozenDicts, flax.core.freeze the reverse; use the same "
        "containers for {one} and {other}"
    ),
    frozenset({"list", "tuple"}): (
        "Use the same containers for {one} and {other}; convert a state that was read from a file, "
        "in which tuples may have become lists, with adamx.restore_state(state, opt, params)"
    ),
}


def _unlike(a: PyTree, b: PyTree, path: Any = ()) -> Iterator[tuple[Any, PyTree, PyTree]]:
    """The places where containers differ: the path, and both subtrees."""
    alone = [jax.tree_util.all_leaves([x]) for x in (a, b)]
    if all(alone) or (path and (a is None or b is None)):  # missing arrays are reported by path
        return
    if any(alone) or type(a) is not type(b):
        yield path, a, b
        return
    inside = dict(_children(b))
    for key, child in _children(a):
        if key in inside:
            yield from _unlike(child, inside[key], (*path, *key))


def _children(tree: PyTree) -> list[tuple[Any, PyTree]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0]


def _containers(one: str, x: PyTree, other: str, y: PyTree, path: Any) -> str:
    first, second = _container(x), _container(y)
    if first == second:
        second += " of another definition (was its class defined again?)"
    if not path:
        return f"{one} are {first}, {other} {second}"
    return f"{one} have {first} at {written(path)}, {other} {second}"


def _container(x: Any) -> str:
    if x is None:
        return "None"
    name = "array" if isinstance(x, _ARRAYS) else type(x).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _static(a: PyTree, b: PyTree, path: Any = ()) -> str:
    """Describe a difference between static fields, for trees with arrays at the same paths."""
    inside = dict(_children(b))
    for key, child in _children(a):
        if key in inside and jax.tree.structure(child) != jax.tree.structure(inside[key]):
            return _static(child, inside[key], (*path, *key))
    return f"{_container(a)} at {written(path)} differs in a static field, which is no array"


_ARRAYS = (jax.Array, np.ndarray, np.generic, float, int, complex)
_ALONE = "(the only one)"


def written(path: Any) -> str:
    """A path of JAX as the user would write it."""
    return jax.tree_util.keystr(path) or _ALONE


def path_of(tree: Any, index: int) -> str:
    """The path of a leaf in its tree, as the user would write it."""
    paths = jax.tree_util.tree_flatten_with_path(tree.unflatten(range(tree.num_leaves)))[0]
    return written(paths[index][0])


def as_parameter(path: Any, leaf: Any) -> Any:
    """A leaf of the parameters as an array; an error if it can't take a step."""
    try:
        if not hasattr(leaf, "dtype"):
            if not isinstance(leaf, (int, float, complex)):
                raise StageError(f"it is {described(leaf)}, not an array; {_instead_of(leaf)}")
            leaf = jnp.asarray(leaf)
        check_inexact("parameter", leaf)
    except StageError as error:
        raise error.within(parameter=written(path)) from None
    return leaf


def _instead_of(leaf: Any) -> str:
    """The remedy for parameters that JAX does not treat as arrays, for an error."""
    if any(kind.__module__.startswith("flax.nnx") for kind in type(leaf).__mro__):
        return "pass the state of the module: flax.nnx.state(model, flax.nnx.Param)"
    if isinstance(leaf, (str, bytes, functools.partial)) or hasattr(leaf, "__name__"):
        return (
            "keep it out of the optimiser, as equinox.filter(model, equinox.is_inexact_array) does"
        )
    register = "register_dataclass" if dataclasses.is_dataclass(leaf) else "register_pytree_node"
    return (
        "if its class is a container of parameters, JAX does not know it: register it with "
        f"jax.tree_util.{register}, or pass the arrays it holds, in a dict"
    )


def check_arrays(tree: Any, gradients: list[Any]) -> None:
    """Check that every gradient is an array."""
    for index, gradient in enumerate(gradients):
        if not isinstance(gradient, _ARRAYS):
            raise StageError(
                f"its gradient is {described(gradient)}, not an array; pass None for a parameter "
                "that has no gradient"
            ).within(parameter=path_of(tree, index))


def is_eager(*trees: PyTree) -> bool:
    """Whether all leaves are concrete arrays, so that a computation on them can be compiled."""
    return all(
        isinstance(leaf, _ARRAYS) and not isinstance(leaf, Tracer)
        for leaf in jax.tree.leaves(trees)
    )


def paths_of(tree: Any, leaves: Sequence[Any]) -> list[Leaf]:
    """The path of every parameter, and its shape with the dtype of its statistics."""
    numbered = tree.unflatten(range(tree.num_leaves))
    return [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            jax.ShapeDtypeStruct(leaves[i].shape, statistics_dtype(leaves[i].dtype)),
        )
        for path, i in jax.tree_util.tree_flatten_with_path(numbered)[0]
    ]


def plain(x: Any) -> Any:
    """The value with dicts in place of a framework's mappings, such as those of ``nnx``."""
    return {key: plain(part) for key, part in x.items()} if isinstance(x, Mapping) else x


def forms_of(slot: PyTree) -> set[str]:
    """The names of the forms in which a slot's arrays are packed."""
    leaves = jax.tree.leaves(slot, is_leaf=is_packed)
    return {form_of(x) for x in leaves if is_packed(x)}


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
