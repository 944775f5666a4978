"""Fingerprints: hashable keys that are equal for values that behave the same.

JAX finds compiled programs by ``hash`` and ``==`` of static arguments. Two schedules made by the
same call are two closures, which are unequal in Python although they compute the same. Fingerprints
compare their code and the values that they read, so an optimiser that is built again finds the
program that was compiled for the first one.

A fingerprint holds the values of the globals, attributes and captured variables that a function
reads, and those of the functions that it calls; a value that can't be resolved equals nothing. A
fingerprint is taken once, because JAX compares later optimisers with those it has compiled for. If
a value has changed since, an optimiser equals only itself.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import struct
import sys
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.core import Tracer

from adamx.errors import described
from adamx.identity.reads import Path, code_key, is_library, is_pure, reads, rebinds
from adamx.numerics.types import PyTree

__all__ = ["ByValue", "Static", "alike", "fingerprint"]


def fingerprint(thing: Any) -> Hashable:
    """A hashable value, equal for things that behave the same.

    It compares numbers, strings and arrays by type and value, containers by their contents,
    functions by their code, defaults and the values that they read, functions of JAX, NumPy, Optax
    and the like by their captured variables, and objects and classes by their attributes. For an
    object with a ``__fingerprint__`` method it uses the method's result. A value that can't be
    resolved (a generator) equals nothing; a tracer equals itself.
    """
    return _Reader().read(thing)


def alike(one: Any, other: Any) -> bool:
    """Whether two things behave the same; a value that can't be resolved equals only itself."""
    reader = _Reader()
    key = reader.read(one)
    return key == _Reader(reader.tokens).read(other)


class _Itself:
    """Compares by identity; keeps its object alive so that its id is not used again."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


class _Unresolved:
    """Stands for something that can't be resolved; equals nothing but itself."""


class _Watch(NamedTuple):
    """A value that may change: its name, and a check that it has not changed."""

    label: str
    still: Callable[[], bool]


class _TooLarge(Exception):
    """The fingerprint would hold more objects than are worth comparing."""


_MISSING: Any = object()
_LARGEST = 2000  # the most functions, classes and objects in one fingerprint
_PLAIN = frozenset({bool, int, str, bytes, type(None), type(...), type(NotImplemented)})
# Functions that do more than compute, in modules that otherwise only compute.
_IMPURE = frozenset(
    {"eval", "exec", "globals", "locals", "vars", "dir", "id", "__import__", "input", "open"}
    | {"load", "loadtxt", "genfromtxt", "fromfile", "fromregex", "memmap"}
)
_REFS = ("Ref", "ArrayRef", "MutableArray")  # the names of JAX's mutable arrays in its versions
# Packages whose types are values, if they define a hash.
_OF_VALUES = ("numpy", "jax", "jaxlib", "ml_dtypes", *sys.stdlib_module_names)


class _Reader:
    """Takes a fingerprint, and collects watches on the values that may change later.

    Args:
        tokens: by id, the stand-ins for values that an earlier fingerprint could not resolve,
            which are used again.
    """

    def __init__(self, tokens: Mapping[int, tuple[Any, _Unresolved]] | None = None):
        self.tokens: dict[int, tuple[Any, _Unresolved]] = dict(tokens or {})
        self.watches: list[_Watch] = []
        self._inside: list[Hashable] = []
        self._known: dict[Hashable, tuple[Any, Hashable]] = {}
        self._outermost = sys.maxsize  # the depth of the outermost thing that was met again

    def read(self, thing: Any) -> Hashable:
        """The fingerprint."""
        try:
            return self.of(thing, called=True)
        except (_TooLarge, RecursionError):
            return self.unresolved(thing)

    def of(self, thing: Any, called: bool = False, label: str = "") -> Hashable:
        """The fingerprint of a part; ``called`` says that it is only called."""
        kind = type(thing)
        if kind in _PLAIN:
            return (kind, thing)
        if kind is float:
            return (float, thing if thing else str(thing))  # 0.0 is not −0.0
        if kind is tuple:
            return (tuple, *[self.of(part, called, label) for part in thing])
        if isinstance(thing, Tracer):
            return _Itself(thing)
        if hasattr(kind, "__fingerprint__"):
            return (kind, self.of(thing.__fingerprint__(), True, label))
        return self.once((id(thing), called), thing, lambda: self.made_of(thing, called, label))

    def once(self, key: Hashable, thing: Any, read: Callable[[], Hashable]) -> Hashable:
        """The result of ``read``, cached; inside itself, the distance to the outer occurrence."""
        if key in self._known:
            return self._known[key][1]
        depth = len(self._inside)
        if key in self._inside:
            met = self._inside.index(key)
            self._outermost = min(self._outermost, met)
            return ("recursion", depth - met)
        if len(self._known) > _LARGEST:
            raise _TooLarge
        before, self._outermost = self._outermost, sys.maxsize
        self._inside.append(key)
        try:
            found = read()
        finally:
            self._inside.pop()
        if self._outermost >= depth:  # nothing in it refers to an enclosing thing
            self._known[key] = thing, found
        self._outermost = min(self._outermost, before)
        return found

    def watch(self, label: str, still: Callable[[], bool]) -> None:
        self.watches.append(_Watch(label, still))

    def unresolved(self, thing: Any) -> Hashable:
        """A stand-in that equals nothing."""
        return self.tokens.setdefault(id(thing), (thing, _Unresolved()))[1]

    def made_of(self, thing: Any, called: bool, label: str) -> Hashable:
        kind = type(thing)
        if isinstance(thing, types.FunctionType):
            return self.function(thing)
        if isinstance(thing, types.MethodType):
            return self.method(thing.__func__, thing.__self__)
        if isinstance(thing, type):
            return self.a_class(thing)
        if isinstance(thing, types.ModuleType):
            name = thing.__name__
            is_fixed = is_library(name) and is_pure(name)
            return _Itself(thing) if is_fixed else self.unresolved(thing)
        if kind.__name__ in _REFS and is_library(kind.__module__):
            return self.unresolved(thing)
        if isinstance(thing, (np.ndarray, np.generic, jax.Array)):
            return self.array(thing, label)
        if isinstance(thing, functools.partial):
            parts = (thing.args, thing.keywords)
            return ("partial", kind, self.of(thing.func, called), self.of(parts, False, label))
        if isinstance(thing, (tuple, list)):
            self.contents(label, thing, list)
            return (*self.kind(thing), *[self.of(part, called, label) for part in thing])
        if isinstance(thing, Mapping):
            self.contents(label, thing, lambda x: [*x.keys(), *x.values(), *_default(x)])
            keys, values = list(thing.keys()), list(thing.values())
            parts = zip(keys, values, strict=True)
            pairs = [(self.of(k), self.of(x, called, label)) for k, x in parts]
            return (*self.kind(thing), *map(self.of, _default(thing)), *pairs)
        if isinstance(thing, (set, frozenset)):
            self.contents(label, thing, lambda x: sorted(x, key=id))
            return (*self.kind(thing), frozenset(map(self.of, thing)))
        plain: Any
        for plain in (int, float, complex, str, bytes):
            if isinstance(thing, plain):
                return (*self.kind(thing), plain.__repr__(thing))
        if isinstance(thing, (types.BuiltinFunctionType, types.MethodWrapperType)):
            return self.builtin(thing)
        if isinstance(thing, (property, functools.cached_property, staticmethod, classmethod)):
            return (kind, self.of(_inner(thing)))
        return self.an_object(thing, called, label)

    def kind(self, thing: Any) -> tuple[Hashable, ...]:
        """The type of a container; for a user's own type, also the container's attributes."""
        kind = type(thing)
        if is_library(kind.__module__):
            return (kind,)
        return (
            self.of(kind),
            *[(k, self.of(x)) for k, x in sorted((_attributes(thing) or {}).items())],
        )

    def contents(self, label: str, thing: Any, listed: Callable[[Any], list[Any]]) -> None:
        """Watch that a container keeps the same items."""
        if isinstance(thing, (tuple, frozenset)):
            return
        held = listed(thing)

        def still() -> bool:
            now = listed(thing)
            return len(now) == len(held) and all(map(operator.is_, now, held))

        self.watch(label or f"a {type(thing).__name__} that it holds", still)

    def array(self, thing: Any, label: str) -> Hashable:
        if not getattr(thing, "is_fully_addressable", True):
            return _Itself(thing)
        try:
            values = np.asarray(thing)
        except TypeError:  # typed PRNG keys hold no plain numbers
            return _Itself(thing)
        if isinstance(thing, np.ndarray) and type(thing) is not np.ndarray:
            return self.unresolved(thing)  # it may hold more, such as the mask of a masked array
        if values.dtype == object:
            self.contents(label, thing, lambda x: x.ravel().tolist())
            return ("array", values.shape, self.of(tuple(values.ravel().tolist()), False, label))
        if values.dtype.hasobject:
            return self.unresolved(thing)
        held = values.tobytes()
        if isinstance(thing, np.ndarray):
            self.watch(label or "an array that it holds", lambda: thing.tobytes() == held)
        return ("array", values.shape, str(values.dtype), held)

    def builtin(self, thing: Any) -> Hashable:
        """A function written in C, or a method of a C type."""
        owner = getattr(thing, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return _Itself(thing) if _only_computes(thing) else self.unresolved(thing)
        return ("builtin", thing.__name__, self.of(owner))

    # Functions

    def function(self, thing: types.FunctionType, first: Any = _MISSING) -> Hashable:
        """A function; ``first`` is its first argument, if known, as for a method."""
        code, defaults, keywords = thing.__code__, thing.__defaults__, thing.__kwdefaults__
        module = thing.__globals__.get("__name__")
        parts = code_key(code), self.of(defaults), self.of(keywords)
        cells = dict(zip(code.co_freevars, thing.__closure__ or (), strict=True))
        if is_library(module):
            if not is_pure(module) or code.co_name in _IMPURE:
                return self.unresolved(thing)
            captured = [
                self.captured(code, name, cell, ())
                for name, cell in cells.items()
                if not isinstance(_contents(cell), weakref.WeakKeyDictionary)  # a cache
            ]
            known = () if first is _MISSING else (self.of(first),)
            return ("function", module, *parts, *captured, *known)

        def still() -> bool:
            same = thing.__code__ is code and thing.__defaults__ is defaults
            return same and thing.__kwdefaults__ is keywords

        self.watch(f"the function {thing.__qualname__}", still)
        found = reads(code)
        if found.recurs:
            return self.unresolved(thing)
        values = [self.of(vars(thing))] if vars(thing) else []
        values += [self.variable(thing, path) for path in found.globals]
        for name, *attributes in found.captured:
            cell = cells[name]
            held = _contents(cell)
            self.watch(name, lambda cell=cell, held=held: _contents(cell) is held)
            values.append(self.captured(code, name, cell, tuple(attributes)))
        values += [self.imported(thing, path) for path in found.imported]
        if first is not _MISSING:
            name = code.co_varnames[0] if code.co_argcount else "self"
            values += [self.along(first, path, name) for path in found.first]
        return ("function", *parts, *values)

    def captured(
        self, code: types.CodeType, name: str, cell: types.CellType, path: Path
    ) -> Hashable:
        held = _contents(cell)
        if name in rebinds(code) and isinstance(held, (int, float)):
            # Optax's cosine_decay_schedule makes its number of steps a float when it is called.
            return ("rebound", held)
        return self.along(held, path, name)

    def variable(self, function: types.FunctionType, path: Path) -> Hashable:
        """The value of a global name, or of its attributes on a path."""
        name, *attributes = path
        scope = function.__globals__
        held = scope.get(name, _MISSING)
        self.watch(name, lambda: scope.get(name, _MISSING) is held)
        if held is not _MISSING:
            return self.along(held, tuple(attributes), name)
        builtins: Any = scope.get("__builtins__", {})
        builtins = vars(builtins) if isinstance(builtins, types.ModuleType) else builtins
        found = builtins.get(name, _MISSING)
        self.watch(name, lambda: builtins.get(name, _MISSING) is found)
        return self.along(found, tuple(attributes), name)

    def imported(self, function: types.FunctionType, path: Path) -> Hashable:
        """A module that a function imports when it is called, or its attributes on a path."""
        name, *attributes = path
        module = sys.modules.get(name)
        if module is None:
            is_fixed = is_library(name) and is_pure(name)
            return (name, *attributes) if is_fixed else self.unresolved(function)
        self.watch(name, lambda: sys.modules.get(name) is module)
        return self.along(module, tuple(attributes), name)

    def along(self, thing: Any, path: Path, label: str) -> Hashable:
        """The value at the end of a path of attributes, or the object where the path breaks off."""
        if thing is _MISSING:
            return ("missing",)
        for depth, attribute in enumerate(path):
            found = _attribute(thing, attribute)
            if found is None:
                return self.of(thing, label=label)
            owner, raw = found
            label = f"{label}.{attribute}"
            self.watch(
                label,
                lambda thing=thing, attribute=attribute, raw=raw: (
                    (now := _attribute(thing, attribute)) is not None and now[1] is raw
                ),
            )
            if isinstance(thing, types.ModuleType) and is_library(thing.__name__) and callable(raw):
                return _Itself(raw) if _only_computes(raw) else self.of(raw)
            if owner is not None and isinstance(raw, _DESCRIPTORS):
                # The rest of the path belongs to its result, which depends on the values it reads.
                bound = owner if isinstance(raw, classmethod) else thing
                inner = _inner(raw)
                return (
                    self.of(inner) if isinstance(raw, staticmethod) else self.method(inner, bound)
                )
            if owner is not None and isinstance(raw, types.FunctionType) and owner is not thing:
                rest = path[depth + 1 :]
                return self.method(raw, thing) if not rest else self.of(thing, label=label)
            if owner is not None and not isinstance(thing, type) and hasattr(raw, "__get__"):
                return self.of(thing, label=label)  # a descriptor that may do anything
            if isinstance(thing, list) and attribute in ("append", "extend"):
                return (attribute, _Itself(thing))  # the items of the list are not read
            thing = raw
        return self.of(thing, label=label)

    def method(self, function: Any, owner: Any) -> Hashable:
        """A function whose first argument is the owner."""
        if not isinstance(function, types.FunctionType):
            return ("method", self.of(function), self.of(owner))
        key = (id(function), id(owner), "method")
        return self.once(key, (function, owner), lambda: ("method", self.function(function, owner)))

    # Objects and classes

    def an_object(self, thing: Any, called: bool, label: str) -> Hashable:
        kind = type(thing)
        wraps = is_library(kind.__module__) and hasattr(thing, "__wrapped__")  # jit, lru_cache
        if is_library(kind.__module__):
            if kind.__module__ == "logging":
                return _Itself(thing)  # logging does not change results
            if isinstance(thing, weakref.ref):
                self.watch("what a weak reference refers to", lambda: thing() is not None)
                return (kind, self.of(thing(), called, label))
            if not is_pure(kind.__module__):
                return self.unresolved(thing)
            if wraps:
                return ("wraps", kind, self.of(thing.__wrapped__, called, label))
            named = getattr(thing, "__dict__", {}).get("__module__")
            if kind is object or (named is not None and is_library(named)):
                return _Itself(thing)  # has no attributes, or is a wrapped function of a library
            is_value = kind.__module__.partition(".")[0] in _OF_VALUES
            if is_value and kind.__hash__ not in (None, object.__hash__):
                try:
                    hash(thing)
                except Exception:
                    return self.unresolved(thing)
                return (kind, thing)
        elif called and (found := _attribute(kind, "__call__")) is not None:
            call = found[1]
            self.watch(
                label or kind.__name__, lambda: (_attribute(kind, "__call__") or found)[1] is call
            )
            return ("called", self.method(call, thing))
        held = _attributes(thing)
        if held is None or not _shows_all(kind):
            if kind.__module__ == "numpy" and callable(thing) and _only_computes(thing):  # a ufunc
                return _Itself(thing)
            return self.unresolved(thing)

        def still() -> bool:
            now = _attributes(thing) or {}
            return now.keys() == held.keys() and all(now[k] is x for k, x in held.items())

        self.watch(label or f"a {kind.__name__} that it holds", still)
        front = f"{label or kind.__name__}."
        parts = [(k, self.of(x, label=front + k)) for k, x in sorted(held.items())]
        return ("object", self.of(kind), *parts)

    def a_class(self, kind: type) -> Hashable:
        if is_library(kind.__module__):
            return _Itself(kind) if is_pure(kind.__module__) else self.unresolved(kind)
        held, bases, meta = _members(kind), kind.__bases__, type(kind)

        def still() -> bool:
            now = _members(kind)
            same = now.keys() == held.keys() and all(now[k] is x for k, x in held.items())
            return same and kind.__bases__ is bases and type(kind) is meta

        self.watch(f"the class {kind.__qualname__}", still)
        front = f"{kind.__name__}."
        members = [(k, self.of(x, label=front + k)) for k, x in sorted(held.items())]
        return ("class", kind.__qualname__, self.of(meta), self.of(bases), *members)


_DESCRIPTORS = (property, functools.cached_property, staticmethod, classmethod)


def _inner(descriptor: Any) -> Any:
    if isinstance(descriptor, property):
        return descriptor.fget
    if isinstance(descriptor, functools.cached_property):
        return descriptor.func
    return descriptor.__func__


def _only_computes(function: Any) -> bool:
    """Whether a library function surely gives equal results for equal arguments."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, (types.ModuleType, type)):
        return False  # it may depend on its owner, as methods of numpy.random do
    module = getattr(function, "__module__", None) or type(function).__module__
    return is_pure(module) and getattr(function, "__name__", "") not in _IMPURE


def _default(mapping: Any) -> tuple[Any, ...]:
    """The function that makes a mapping's missing values, if it has one."""
    return (mapping.default_factory,) if isinstance(mapping, defaultdict) else ()


def _attribute(thing: Any, name: str) -> tuple[Any, Any] | None:
    """The attribute's holder (None for the thing itself) and the attribute; None if unsure."""
    if isinstance(thing, types.ModuleType):
        held = vars(thing).get(name, _MISSING)
        if held is _MISSING and is_library(thing.__name__):
            held = getattr(thing, name, _MISSING)
        return None if held is _MISSING else (None, held)
    if isinstance(thing, type):
        metaclasses: Any = inspect.getmro(type(thing))
        if any(name in vars(k) for k in metaclasses if not is_library(k.__module__)):
            return None  # the metaclass may change the lookup
        for kind in thing.__mro__:
            if name in vars(kind):
                raw = vars(kind)[name]
                return (thing, raw) if isinstance(raw, _DESCRIPTORS) else (None, raw)
        return None
    kind = type(thing)
    if isinstance(thing, list) and name in ("append", "extend"):
        return None, name
    if kind.__getattribute__ is not object.__getattribute__ and not isinstance(
        thing, types.FunctionType
    ):
        return None
    own = getattr(thing, "__dict__", None)
    if own is None and not any("__slots__" in vars(k) for k in kind.__mro__):
        return None
    if isinstance(thing, (Mapping, Sequence, Set)):
        return None
    raw = next((vars(k)[name] for k in kind.__mro__ if name in vars(k)), _MISSING)
    if isinstance(raw, types.MemberDescriptorType):  # a slot
        value = getattr(thing, name, _MISSING)
        return None if value is _MISSING else (None, value)
    if isinstance(raw, property):
        return kind, raw
    if isinstance(raw, functools.cached_property) and own is not None and name not in own:
        with contextlib.suppress(Exception):  # compute its value, which is then in the object
            getattr(thing, name)
    if own is not None and name in own:
        return None, own[name]
    return None if raw is _MISSING else (kind, raw)


def _attributes(thing: Any) -> dict[str, Any] | None:
    """The attributes of an object; None if it can't have any."""
    kind = type(thing)
    own = getattr(thing, "__dict__", None)
    slots = {
        name: value
        for k in kind.__mro__
        for name, raw in vars(k).items()
        if isinstance(raw, types.MemberDescriptorType)
        and (value := getattr(thing, name, _MISSING)) is not _MISSING
    }
    if own is None and not any("__slots__" in vars(k) for k in kind.__mro__):
        return None
    return {**slots, **{str(k): x for k, x in (own or {}).items() if k != "__doc__"}}


def _shows_all(kind: type) -> bool:
    """Whether its objects hold data in attributes only, and not in the memory of a base in C."""
    slots = sum(
        isinstance(raw, types.MemberDescriptorType)
        for k in kind.__mro__
        for raw in vars(k).values()
    )
    places = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    pointer = struct.calcsize("P")
    return not kind.__itemsize__ and kind.__basicsize__ <= object.__basicsize__ + places * pointer


def _members(kind: type) -> dict[str, Any]:
    """The members of a class that determine how its objects behave."""
    return {k: x for k, x in vars(kind).items() if _counts(k, x)}


def _counts(name: str, member: Any) -> bool:
    """Whether a member of a class determines how its objects behave."""
    is_special = name.startswith("__") and name.endswith("__")
    return isinstance(member, types.FunctionType) if is_special else name != "_abc_impl"


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that the enclosing function has not bound (yet)
        return _MISSING


def _lasts(key: Hashable) -> bool:
    if isinstance(key, _Itself):
        return not isinstance(key.thing, Tracer)
    return not isinstance(key, (tuple, frozenset)) or all(map(_lasts, key))


def _named(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    return name if isinstance(name, str) else described(thing)


class ByValue:
    """A value that is compared by its fingerprint, which is taken when this object is made.

    >>> halving = lambda start: lambda t: start * 0.5**t
    >>> ByValue(halving(0.1)) == ByValue(halving(0.1)), ByValue(1.0) == ByValue(1)
    (True, False)

    If a value that its functions read has changed since, it equals only itself.

    >>> rates, schedule = [0.1], lambda rates: lambda t: rates[0]
    >>> old, equal = ByValue(schedule(rates)), ByValue(schedule(rates))
    >>> rates[0] = 0.2
    >>> old.is_stale, old == old, old == equal, old == ByValue(schedule(rates))
    (True, True, False, False)
    """

    traced: bool = False  # whether a program may have been compiled for it by a caller's jit

    def __init__(self, value: Any):
        self.value = value
        # Whether a program may have been compiled for it with other values, while it was stale.
        self.strayed: bool = False
        reader = _Reader()
        self.key: Hashable = reader.read(value)
        self._hash = hash(self.key)
        self._tokens = reader.tokens
        self._watches: list[_Watch] = reader.watches

    @property
    def is_open(self) -> bool:
        """Whether it reads values that may change."""
        return bool(self._watches or self._tokens)

    @property
    def is_stale(self) -> bool:
        """Whether a value that it reads has changed since it was made."""
        for _, still in self._watches:
            if not still():
                break
        else:
            return False
        reader = _Reader(self._tokens)
        if reader.read(self.value) != self.key:
            return True
        self._watches = reader.watches  # other objects of equal values
        return False

    def changes(self) -> list[str]:
        """The names of the values that have changed since it was made."""
        return list(dict.fromkeys(label for label, still in self._watches if not still()))

    def unresolved(self) -> list[str]:
        """The names of values that can't be resolved, and so may change unnoticed."""
        return [_named(thing) for thing, _ in self._tokens.values()]

    @functools.cached_property
    def lasts(self) -> bool:
        """Whether a program that is compiled for it stays valid.

        It does not if the value depends on a tracer, which lives only while a function is traced,
        or on a value that can't be resolved, which may change unnoticed.
        """
        return not self._tokens and _lasts(self.key)

    def renewed(self) -> Self:
        """The same value with a new fingerprint."""
        again = object.__new__(type(self))
        again.__dict__.update(self.__dict__)
        again.__dict__.pop("lasts", None)
        ByValue.__init__(again, self.value)
        return again

    def __fingerprint__(self) -> Any:
        return self.value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value,)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not (type(other) is type(self) and self.key == other.key):
            return False
        return not any(x.strayed or x.is_stale for x in (self, other))

    def __hash__(self) -> int:
        return self._hash


class Static(NamedTuple):
    """The static part of a pytree, for which ``jax.jit`` compiles a program.

    Python numbers stay in the static part, where they keep their double precision; arrays and
    tracers are taken out, so that other values of them use the same program.

    >>> import jax.numpy as jnp
    >>> static, arrays = Static.split({"b1": 0.9, "rate": jnp.float32(0.1)})
    >>> arrays, static.join([0.2])
    ([Array(0.1, dtype=float32)], {'b1': 0.9, 'rate': 0.2})
    """

    leaves: ByValue
    structure: Any  # a jax.tree_util.PyTreeDef

    @classmethod
    def split(cls, tree: PyTree) -> tuple[Static, list[Any]]:
        """The static part of a tree, and the arrays, which are arguments of the program."""
        leaves, structure = jax.tree.flatten(tree)
        kept = tuple(_HOLE if isinstance(x, (jax.Array, np.ndarray)) else x for x in leaves)
        taken = [x for x, kept_x in zip(leaves, kept, strict=True) if kept_x is _HOLE]
        return cls(ByValue(kept), structure), taken

    def join(self, arrays: Iterable[Any]) -> PyTree:
        """The tree with these arrays in place of the old ones."""
        rest = iter(arrays)
        leaves = [next(rest) if x is _HOLE else x for x in self.leaves.value]
        return jax.tree.unflatten(self.structure, leaves)


_HOLE = "<array>"
