"""Find a chain's state in the object that holds it, and read it as plain arrays.

Training loops keep a chain's state inside something else: a Flax ``TrainState``, an
``nnx.Optimizer`` with its variables, the states of ``optax.MultiSteps``, ``optax.chain`` or
``optax.apply_if_finite``, or a checkpoint that was read without a target. Every function that reads
a state uses this module. It imports no framework, but recognises their types by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.errors import StageError, described
from adamx.numerics.meshes import on_device, placed
from adamx.numerics.types import Array, PyTree, State
from adamx.trees.packed import is_packed
from adamx.trees.paths import place_of, plain

__all__ = [
    "Found",
    "Kept",
    "batched",
    "beside",
    "copied",
    "filled",
    "find",
    "is_variable",
    "kind_of",
    "merged",
    "stages_named",
    "stages_of_kinds",
    "the_state",
    "unwrapped",
]


class Found(NamedTuple):
    """A chain's state, and where it was found.

    Attributes:
        path: its path in the given object, ``"['opt_state'][0]"``; empty if it is that object.
        state: the state, with plain arrays in place of a framework's variables.
        skipped: whether a wrapper around the chain (``optax.apply_if_finite``) discarded the last
            step; None without such a wrapper.
    """

    path: str
    state: State
    skipped: Any


_LEAVES = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, int, float, complex, str, bytes)


def find(tree: PyTree, *, nested: bool = False) -> list[Found]:
    """The states of all chains in a tree.

    Args:
        tree: a state, or anything that holds one.
        nested: also search the entries of a chain's links, which include the state of a chain
            inside an Optax transformation.
    """
    return list(_walk(tree, "", None, nested))


def the_state(tree: PyTree, error: type[Exception], needs: str) -> Found:
    """The only state of a chain in a tree.

    Args:
        tree: a state, or anything that holds one.
        error: the type of the exception if there is none, or more than one.
        needs: what the caller needs, as the beginning of the error's message.
    """
    found = find(tree)
    if len(found) > 1:  # a dict may hold a count of something else
        found = [x for x in found if _is_whole(x.state)] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise error(f"{needs}; got {described(tree)}, and there is no state of a chain in it")
    where = ", ".join(x.path for x in found[:8]) + (", …" if len(found) > 8 else "")
    raise error(
        f"{needs}; got {described(tree)}, in which there are {len(found)}, at {where}: pass one of "
        "them"
    )


def _walk(x: Any, path: str, skipped: Any, nested: bool) -> Iterator[Found]:
    if is_variable(x):
        x = _held(x)
    if x is None or isinstance(x, _LEAVES):
        return
    if (inside := _field(x, "opt_state")) is not None:  # other fields hold parameters and more
        yield from _walk(inside, f"{path}['opt_state']", skipped, nested)
        return
    is_state = _is_state(x)
    if is_state:
        yield Found(path, _read(x), skipped)
    if nested or not is_state:
        skipped = _either(skipped, _skipped(x))
        for key, child in _children(x):
            yield from _walk(child, path + key, skipped, nested)


def _children(x: Any) -> list[tuple[str, Any]]:
    if isinstance(x, Mapping):
        return [(f"[{key!r}]", child) for key, child in x.items()]
    pairs, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    return [(jax.tree_util.keystr(key), child) for key, child in pairs if key]


def _field(x: Any, name: str) -> Any:
    """An attribute, or the item that replaces it in a restored dict."""
    return x.get(name) if isinstance(x, Mapping) else getattr(x, name, None)


def _is_state(x: Any) -> bool:
    """Whether it is a dict with a count, and not a restored state of an Optax wrapper."""
    if not isinstance(x, Mapping) or "count" not in x or "inner_state" in x:
        return False
    count = x["count"]
    return _is_box(count) or not isinstance(count, (Mapping, tuple, list))


def _is_whole(state: State) -> bool:
    """Whether it holds the entries of stages and nothing else."""
    return len(state) > 1 and not any(
        isinstance(entry, _LEAVES) for key, entry in state.items() if key != "count"
    )


def _skipped(x: Any) -> Any:
    """Whether an Optax wrapper discarded the last step; None if this is no such wrapper's state."""
    finite, inner = _field(x, "last_finite"), _field(x, "inner_state")
    if finite is not None and inner is not None:
        return jnp.logical_not(unwrapped(finite))
    skip = _field(x, "skip_state")
    if isinstance(skip, Mapping) and "should_skip" in skip:
        return jnp.asarray(unwrapped(skip["should_skip"]))
    return None


def _either(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return jnp.logical_or(one, other)


def _read(x: Mapping[str, Any]) -> State:
    """A state as dicts and plain arrays; the containers of parameters do not change."""
    read = functools.partial(unwrapped, boxes=_is_box(x["count"]))
    return {
        name: {key: read(kept) for key, kept in entry.items()}
        if isinstance(entry, Mapping) and not _is_box(entry)
        else read(entry)
        for name, entry in x.items()
    }


# Variables of frameworks


@functools.cache
def _is_variable_type(kind: type) -> bool:
    return any(
        base.__module__.partition(".")[0] == "flax"
        and base.__name__ in ("Variable", "VariableState")
        for base in kind.__mro__
    )


def is_variable(x: Any) -> bool:
    """Whether this is a variable of Flax NNX, which holds an array."""
    return _is_variable_type(type(x))


def _held(variable: Any) -> Any:
    """A variable's value; ``variable.value`` is deprecated in newer versions of Flax."""
    if hasattr(type(variable), "get_value"):
        return variable.get_value()
    return variable.value


def _is_box(x: Any) -> bool:
    """Whether this is a variable from a checkpoint that was read without a target."""
    return isinstance(x, Mapping) and set(x) == {"value"} and not isinstance(x["value"], Mapping)


def unwrapped(tree: PyTree, boxes: bool = False) -> PyTree:
    """The tree with values in place of variables; with ``boxes``, of restored ones too."""

    def stops(x: Any) -> bool:
        return is_variable(x) or is_packed(x) or (boxes and _is_box(x))

    def read(x: Any) -> Any:
        if is_variable(x):
            return unwrapped(_held(x), boxes)
        if is_packed(x):
            return {key: plain(unwrapped(codes, boxes)) for key, codes in x.items()}
        return x["value"] if boxes and _is_box(x) else x

    return jax.tree.map(read, tree, is_leaf=stops)


# Stages and parameters


class Kept(NamedTuple):
    """A stage's entry in the state, and how many batch axes the state has."""

    entry: dict[str, Any]
    axes: int


def stages_named(tree: PyTree, name: str, keys: Iterable[str], made_by: str) -> dict[str, Kept]:
    """The entries of the stages of this name.

    Args:
        tree: a state, or anything that holds one.
        name: the stage's name in the state. A name without ``@group`` selects the stage in all
            groups, unless a stage has exactly this name.
        keys: the keys that an entry of the right stage has.
        made_by: the stage's call, for the error.

    Raises:
        ValueError: if there is none, if several are in different states, or if a key is missing.
    """
    states = find(tree, nested=True)
    exact = [(name, x) for x in states if name in x.state]
    grouped = [(key, x) for x in states for key in x.state if key.partition("@")[0] == name]
    found = exact or grouped
    if not found:
        there = dict.fromkeys(key for x in find(tree) for key in x.state if key != "count")
        raise ValueError(
            f"the state holds 0 stages named {name!r}, one is needed; add {made_by} as the last "
            f"stage of the chain, or name the one you mean (there are {', '.join(there) or 'none'})"
        )
    if len(places := {id(x.state): x.path for _, x in found}) > 1:
        where = ", ".join(path or "the top" for path in places.values())
        raise ValueError(
            f"there are {len(places)} stages named {name!r}, in states of chains at {where}; pass "
            "one of these states"
        )
    kept: dict[str, Kept] = {}
    for full, x in found:
        entry = x.state[full]
        if not isinstance(entry, Mapping) or not set(keys) <= set(entry):
            held = ", ".join(entry) if isinstance(entry, Mapping) else f"a {type(entry).__name__}"
            raise ValueError(
                f"{full!r} in the state was not made by {made_by}, which keeps "
                f"{' and '.join(keys)}; it holds {held}"
            )
        kept[full] = Kept(jax.tree.map(on_device, dict(entry)), np.ndim(x.state["count"]))
    return kept


def kind_of(stage: str) -> str:
    """A stage's name without number and group, ``polyak_ema`` of ``polyak_ema_2@kernel``."""
    return re.sub(r"_\d+$", "", stage.partition("@")[0])


def stages_of_kinds(
    tree: PyTree, kinds: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, Kept]]:
    """The names and entries of all stages of some kinds, by a label that is unique.

    Args:
        tree: a state, or anything that holds one.
        kinds: the keys that an entry of each kind has.
    """
    found = [
        (name, x.path, Kept(jax.tree.map(on_device, dict(entry)), np.ndim(x.state["count"])))
        for x in find(tree, nested=True)
        for name, entry in x.state.items()
        if isinstance(entry, Mapping) and {*kinds.get(kind_of(name), [""])} <= entry.keys()
    ]
    names = [name for name, _, _ in found]
    return {
        name if names.count(name) == 1 else f"{path}[{name!r}]": (name, kept)
        for name, path, kept in found
    }


def batched(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """The function, mapped over this many leading axes."""
    return jax.vmap(batched(function, axes - 1)) if axes else function


def merged(trees: Mapping[str, PyTree]) -> PyTree:
    """One tree from the trees of several groups, each None at the parameters of the others.

    Raises:
        ValueError: if two trees have a value for the same parameter; it names the stages.
    """
    present = {name: x for name, x in trees.items() if x is not None}
    if len(present) <= 1:
        return next(iter(present.values()), None)
    names, parts = zip(*present.items(), strict=True)
    levels = [jax.tree.flatten(x, is_leaf=lambda y, x=x: y is not x) for x in parts]
    rows, containers = zip(*levels, strict=True)
    if len({*containers}) > 1 or jax.tree_util.all_leaves(parts[:1]) or is_packed(parts[0]):
        raise ValueError(f"{' and '.join(names)} keep the same parameters; name one of them")
    whole = [merged(dict(zip(names, row, strict=True))) for row in zip(*rows, strict=True)]
    return containers[0].unflatten(whole)


def beside(params: PyTree, tree: PyTree) -> list[Any]:
    """For every parameter its value in a tree like the parameters, None where it has none.

    Raises:
        StageError: if the tree has a value at a path without a parameter.
    """
    held = {place_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    places = [place_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    found = [held.pop(place if place in held else (*place, "value"), None) for place in places]
    if held:
        raise StageError(
            f"the state belongs to other parameters: it has {'/'.join(next(iter(held)))}, and they "
            f"have {', '.join('/'.join(place) for place in places[:8]) or 'nothing'}"
        )
    return found


def filled(tree: PyTree, params: PyTree) -> PyTree:
    """A tree like the parameters, with the parameters themselves where it has no value."""
    thetas, structure = jax.tree.flatten(params)
    pairs = zip(beside(params, tree), thetas, strict=True)
    return structure.unflatten(theta if x is None else x for x, theta in pairs)


def copied(array: Any, like: Any = None) -> Array:
    """A copy as a JAX array, placed like another array.

    Without a copy, JAX may share the memory of a NumPy array or a PyTorch tensor, and the caller
    may donate an array of JAX.
    """
    sharding = getattr(like, "sharding", None)
    committed = sharding is not None and getattr(like, "committed", True)
    if not committed:
        return jnp.array(array, copy=True)
    return placed(array if isinstance(array, jax.Array) else np.array(array), sharding)
