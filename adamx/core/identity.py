"""When two optimisers are the same: a hashable stand-in for what they are made of.

JAX keys its compiled programs by ``hash`` and ``==`` of static arguments. Two schedules made by
the same call are two closures, unequal to Python though they compute the same; comparing their
code and what they captured makes an optimiser that is built again find the program compiled for
the first one.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from adamx.core.types import PyTree

__all__ = ["ByValue", "Static", "fingerprint"]


class _Itself:
    """Compares by identity; keeps its object alive so that the identity stays taken."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def fingerprint(thing: Any, _inside: tuple[int, ...] = ()) -> Hashable:
    """A hashable value, equal for things that behave the same.

    Numbers, strings and arrays count by type and value; functions by their code, defaults and
    what they captured; containers and pytrees by what they hold; what has a ``__fingerprint__``
    by that; anything else hashable by itself, and the rest (tracers among them) by identity.
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return (type(thing), thing)
    if id(thing) in _inside:
        return ("recursion", _inside.index(id(thing)))
    inside = (*_inside, id(thing))

    def of(part: Any) -> Hashable:
        return fingerprint(part, inside)

    if isinstance(thing, Tracer):
        return _Itself(thing)
    if hasattr(thing, "__fingerprint__"):
        return (type(thing), thing.__fingerprint__())
    if isinstance(thing, (np.ndarray, jax.Array)) and getattr(thing, "is_fully_addressable", True):
        try:
            values = np.asarray(thing)
        except TypeError:  # typed PRNG keys hold no plain numbers
            return _Itself(thing)
        return ("array", values.shape, str(values.dtype), values.tobytes())
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        found = tuple(
            _Rebound(x) if name in _rebinds(thing.__code__) and isinstance(x, (int, float)) else x
            for name, x in ((name, _contents(cell)) for name, cell in cells)
        )
        captured = of(found), of(thing.__defaults__), of(thing.__kwdefaults__)
        return ("function", thing.__code__, id(thing.__globals__), *captured)
    if isinstance(thing, types.MethodType):
        return ("method", of(thing.__func__), of(thing.__self__))
    if isinstance(thing, functools.partial):
        return ("partial", of(thing.func), of(thing.args), of(thing.keywords))
    if isinstance(thing, Mapping):
        return (type(thing), frozenset((of(key), of(value)) for key, value in thing.items()))
    if isinstance(thing, (tuple, list)):
        return (type(thing), *map(of, thing))
    if not jax.tree_util.all_leaves([thing]):
        leaves, structure = jax.tree.flatten(thing)
        return ("tree", structure, *map(of, leaves))
    try:
        hash(thing)
    except TypeError:
        return _Itself(thing)
    return (type(thing), thing)


class _Rebound(NamedTuple):
    """A captured number that the function rebinds when it is called: it counts without its type.

    Optax's cosine_decay_schedule makes its number of steps a float.
    """

    number: float

    def __fingerprint__(self) -> Hashable:
        return self.number


@functools.cache
def _rebinds(code: types.CodeType) -> frozenset[str]:
    stored = {x.argval for x in dis.get_instructions(code) if x.opname == "STORE_DEREF"}
    return frozenset(stored.intersection(code.co_freevars))


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that the enclosing function has not bound (yet)
        return types.CellType


def _holds_tracer(key: Hashable) -> bool:
    if isinstance(key, _Itself):
        return isinstance(key.thing, Tracer)
    return isinstance(key, (tuple, frozenset)) and any(map(_holds_tracer, key))


class ByValue:
    """Anything, compared by its fingerprint.

    >>> halving = lambda start: lambda t: start * 0.5**t
    >>> ByValue(halving(0.1)) == ByValue(halving(0.1)), ByValue(1.0) == ByValue(1)
    (True, False)
    """

    def __init__(self, value: Any):
        self.value = value
        self.key: Hashable = fingerprint(value)
        self._hash = hash(self.key)

    @functools.cached_property
    def traced(self) -> bool:
        """Whether it rests on a value that lives only while some function is being traced."""
        return _holds_tracer(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, ByValue) and self.key == other.key)

    def __hash__(self) -> int:
        return self._hash


class Static(NamedTuple):
    """A pytree split for ``jax.jit``: what the program is compiled for, apart from its arrays.

    Python numbers stay in the static part, where they keep their double precision; arrays and
    tracers are taken out, so that other values of them find the same program.

    >>> import jax.numpy as jnp
    >>> static, arrays = Static.split({"b1": 0.9, "rate": jnp.float32(0.1)})
    >>> arrays, static.join([0.2])
    ([Array(0.1, dtype=float32)], {'b1': 0.9, 'rate': 0.2})
    """

    leaves: ByValue
    structure: Any  # a jax.tree_util.PyTreeDef

    @classmethod
    def split(cls, tree: PyTree) -> tuple[Static, list[Any]]:
        leaves, structure = jax.tree.flatten(tree)
        kept = tuple(_HOLE if isinstance(x, (jax.Array, np.ndarray)) else x for x in leaves)
        taken = [x for x, kept_x in zip(leaves, kept, strict=True) if kept_x is _HOLE]
        return cls(ByValue(kept), structure), taken

    def join(self, arrays: Iterable[Any]) -> PyTree:
        """The tree again, with these arrays in the places of the old ones."""
        rest = iter(arrays)
        leaves = [next(rest) if x is _HOLE else x for x in self.leaves.value]
        return jax.tree.unflatten(self.structure, leaves)


_HOLE = "<array>"
