"""Describe how two trees of parameters differ, and what helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from adamx.errors import StageError
from adamx.numerics.types import PyTree
from adamx.trees.arrays import ARRAYS
from adamx.trees.packed import is_packed
from adamx.trees.paths import ALONE, place_of, written

__all__ = ["mismatch", "remedy_for"]


_GRADIENTS = "Take gradients with respect to the parameters that init() was given"


def mismatch(one: str, a: PyTree, other: str, b: PyTree, remedy: str = _GRADIENTS) -> StageError:
    """An error that says how two trees of parameters differ."""
    in_a, in_b = (
        {written(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]} - {ALONE}
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
    name = "array" if isinstance(x, ARRAYS) else type(x).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _static(a: PyTree, b: PyTree, path: Any = ()) -> str:
    """Describe a difference between static fields, for trees with arrays at the same paths."""
    inside = dict(_children(b))
    for key, child in _children(a):
        if key in inside and jax.tree.structure(child) != jax.tree.structure(inside[key]):
            return _static(child, inside[key], (*path, *key))
    return f"{_container(a)} at {written(path)} differs in a static field, which is no array"


def remedy_for(gradients: PyTree, kept: PyTree) -> str:
    """The remedy for a slot whose tree differs from that of the gradients, for an error."""
    wanted, held = (
        {place_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_packed)[0]}
        for tree in (gradients, kept)
    )
    begun = [{place[:length] for length in range(1, len(place) + 1)} for place in held]
    same = wanted == held or (  # a slot may keep several arrays of one parameter
        len(wanted) > 1 and all(wanted & each for each in begun) and wanted <= set().union(*begun)
    )
    if same:
        return (
            "The parameters are the same, and only containers differ, as in a state that was read "
            "without a target (lists for tuples, dicts for lists). Convert the state with "
            "adamx.restore_state(state, opt, params)"
        )
    return "Take gradients with respect to the parameters that init() was given"
