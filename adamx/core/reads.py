"""What a function reads from outside when it is called, found in its bytecode.

A function's result depends on its arguments, and on what it reads: variables of the enclosing
functions, globals, and the attributes of both. This module says which these are. It errs on the
side of more: where it can't see that only an attribute is read, the whole object counts.
"""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Reads", "code_key", "is_library", "reads", "rebinds"]

Path: TypeAlias = tuple[str, ...]
"""A name, and the attributes that are read of it, as in ``config.model.rate``."""


class Reads(NamedTuple):
    """The paths that a function reads.

    Attributes:
        globals: of global names.
        captured: of variables of the enclosing functions.
        first: of its first argument, without its name: of ``self``, if it is a method.
        imported: of modules that it imports when it is called.
    """

    globals: tuple[Path, ...]
    captured: tuple[Path, ...]
    first: tuple[Path, ...]
    imported: tuple[Path, ...]


@functools.lru_cache(4096)
def reads(code: types.CodeType) -> Reads:
    """What a function of this code reads, and the functions inside it."""
    first = code.co_varnames[0] if code.co_argcount else None
    found: dict[str, dict[Path, None]] = {field: {} for field in Reads._fields}

    def scan(inner: types.CodeType) -> None:
        outermost = inner is code
        for kind, path in _paths(inner):
            name = path[0]
            if kind == "first":
                if outermost and name == first:
                    found["first"][path[1:]] = None
            elif kind == "captured":
                # A free variable of a function inside is one of the outermost, or its own.
                if name in code.co_freevars:
                    found["captured"][path] = None
                elif name == first and (outermost or name in inner.co_freevars):
                    found["first"][path[1:]] = None
            else:
                found[kind][path] = None
        for constant in inner.co_consts:
            if isinstance(constant, types.CodeType):
                scan(constant)

    scan(code)
    if ("super",) in found["globals"]:  # super() finds them without loading them
        found["first"][()] = None
        if "__class__" in code.co_freevars:
            found["captured"][("__class__",)] = None
    return Reads(*(_shortest(paths) for paths in found.values()))


def _shortest(paths: dict[Path, None]) -> tuple[Path, ...]:
    """Without those of which a beginning counts as a whole."""
    return tuple(p for p in paths if not any(p[:n] in paths for n in range(len(p))))


_LOADS = {
    "LOAD_GLOBAL": "globals",
    "LOAD_NAME": "globals",
    "LOAD_FROM_DICT_OR_GLOBALS": "globals",
    "LOAD_DEREF": "captured",
    "LOAD_CLASSDEREF": "captured",
    "LOAD_FROM_DICT_OR_DEREF": "captured",
    "IMPORT_NAME": "imported",
}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"}
_NOTHING = {"EXTENDED_ARG", "NOP", "CACHE"}


def _paths(code: types.CodeType) -> Iterator[tuple[str, Path]]:
    """Every load of a name, with the attributes that are loaded of it at once."""
    cells = {*code.co_cellvars, *code.co_freevars}
    kind: str = ""
    path: Path = ()
    for x in dis.get_instructions(code):
        if x.opname in _NOTHING:
            continue
        if kind and x.opname in _ATTRIBUTES:
            if x.opname == "IMPORT_FROM":  # several may follow one import
                yield kind, (*path[:1], x.argval)
                path = (*path[:1], "")
            else:
                path = (*path, x.argval)
            continue
        if kind == "imported" and path[1:] == ("",):
            if x.opname.startswith("STORE"):
                continue
        elif kind:
            yield kind, path
        kind, path = "", ()
        if x.opname in _LOADS:
            kind, path = _LOADS[x.opname], (x.argval,)
        elif "LOAD_FAST" in x.opname:
            loaded: list[str] = [*x.argval] if isinstance(x.argval, tuple) else [x.argval]
            last = loaded.pop()
            if not x.opname.startswith("STORE"):  # STORE_FAST_LOAD_FAST
                for name in loaded:
                    yield "first", (name,)
            if last not in cells:  # else the cell itself is loaded, for a function inside
                kind, path = "first", (last,)
    if kind and path[1:] != ("",):
        yield kind, path


@functools.lru_cache(4096)
def rebinds(code: types.CodeType) -> frozenset[str]:
    """The captured variables that a function of this code rebinds when it is called."""
    stored = {x.argval for x in dis.get_instructions(code) if x.opname == "STORE_DEREF"}
    return frozenset(stored.intersection(code.co_freevars))


@functools.lru_cache(4096)
def code_key(code: types.CodeType) -> Hashable:
    """Equal for codes that do the same, in whichever lines of whichever file they stand."""
    return (
        code.co_name,
        code.co_code,
        code.co_exceptiontable,
        code.co_flags,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        tuple(map(_constant, code.co_consts)),
    )


def _constant(x: Any) -> Hashable:
    if isinstance(x, types.CodeType):
        return code_key(x)
    if isinstance(x, tuple):
        return (tuple, *map(_constant, x))
    if isinstance(x, frozenset):
        return (frozenset, frozenset(map(_constant, x)))
    return (type(x), x, str(x) if isinstance(x, (float, complex)) else "")  # 0.0 is not −0.0


_ECOSYSTEM = (
    "adamx absl aqt chex clu distrax einops equinox etils flax grain haiku jax jaxlib jaxtyping "
    "lineax ml_dtypes numpy optax optimistix orbax scipy typing_extensions"
)
_LIBRARIES = frozenset(_ECOSYSTEM.split())
_STDLIB = sysconfig.get_path("stdlib")


@functools.cache
def is_library(module: Any) -> bool:
    """Whether what this module defines stays as it is: Python's own, JAX, Optax and the like."""
    top = str(module).partition(".")[0]
    if top in sys.stdlib_module_names:
        file = getattr(sys.modules.get(top), "__file__", None)  # a user's script may be code.py
        return file is None or file.startswith(_STDLIB)
    return top in _LIBRARIES
