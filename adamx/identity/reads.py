"""Find in a function's bytecode which outside values it reads when it is called.

A function's result depends on its arguments and on the values that it reads: variables of enclosing
functions, globals, and the attributes of both. Where the bytecode does not show that only an
attribute is read, the whole object counts as read.
"""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Reads", "code_key", "is_library", "is_pure", "reads", "rebinds"]

Path: TypeAlias = tuple[str, ...]
"""A name and the attributes that are read from it, as in ``config.model.rate``."""


class Reads(NamedTuple):
    """The paths that a function reads.

    Attributes:
        globals: paths that start at a global name.
        captured: paths that start at a variable of an enclosing function.
        first: paths from its first argument (``self`` in a method), without the argument's name.
        imported: paths that start at a module which it imports when it is called.
        recurs: whether it reads a value that it updates itself, so that every call may return
            another result. An update that nothing else reads (a counter of calls) does not count.
    """

    globals: tuple[Path, ...]
    captured: tuple[Path, ...]
    first: tuple[Path, ...]
    imported: tuple[Path, ...]
    recurs: bool


@functools.lru_cache(4096)
def reads(code: types.CodeType) -> Reads:
    """The paths that a function with this code, or a function inside it, reads."""
    first = code.co_varnames[0] if code.co_argcount else None
    found: dict[str, dict[Path, None]] = {x: {} for x in Reads._fields if x != "recurs"}
    updated: dict[str, dict[Path, None]] = {x: {} for x in found}

    def scan(inner: types.CodeType) -> None:
        outermost = inner is code
        for kind, path, is_update in _paths(inner):
            into = updated if is_update else found
            name = path[0]
            if kind == "first":
                if outermost and name == first:
                    into["first"][path[1:]] = None
            elif kind == "captured":
                # A free variable of an inner function is free in the outermost one too, or local.
                if name in code.co_freevars:
                    into["captured"][path] = None
                elif name == first and (outermost or name in inner.co_freevars):
                    into["first"][path[1:]] = None
            else:
                into[kind][path] = None
        for constant in inner.co_consts:
            if isinstance(constant, types.CodeType):
                scan(constant)

    scan(code)
    if ("super",) in found["globals"]:  # super() uses both without loading them by name
        found["first"][()] = None
        if "__class__" in code.co_freevars:
            found["captured"][("__class__",)] = None
    recurs = any(
        read[: len(path)] == path[: len(read)]
        for kind, paths in updated.items()
        for path in paths
        for read in found[kind]
    )
    return Reads(**{kind: _shortest(paths) for kind, paths in found.items()}, recurs=recurs)


def _shortest(paths: dict[Path, None]) -> tuple[Path, ...]:
    """The paths, without those that continue another one."""
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


def _paths(code: types.CodeType) -> Iterator[tuple[str, Path, bool]]:
    """Every load of a name: its kind, and its path with the attributes that are loaded directly.

    The third item says whether the loaded value is only updated, as in ``calls += 1``.
    """
    cells = {*code.co_cellvars, *code.co_freevars}
    steps = [x for x in dis.get_instructions(code) if x.opname not in _NOTHING]
    modules = dict(_modules(steps))
    kind: str = ""
    path: Path = ()
    for i, x in enumerate(steps):
        if kind and x.opname in _ATTRIBUTES:
            if x.opname == "IMPORT_FROM":  # several may follow one import
                yield kind, (*path[:1], x.argval), False
                path = (*path[:1], "")
            else:
                path = (*path, x.argval)
            continue
        if kind == "imported" and path[1:] == ("",):
            if x.opname.startswith("STORE"):
                continue
        elif kind and (attribute := _updated_attribute(steps, i)):
            yield kind, (*path, attribute), True
        elif kind and x.opname != "STORE_ATTR":  # to store an attribute is no read of the object
            yield kind, path, _is_updated(steps, i, path)
        kind, path = "", ()
        if x.opname in _LOADS:
            if x.opname != "IMPORT_NAME" or _stored_name(steps, i + 1) is None:
                kind, path = _LOADS[x.opname], (x.argval,)
        elif "LOAD_FAST" in x.opname:
            loaded: list[str] = [*x.argval] if isinstance(x.argval, tuple) else [x.argval]
            last = loaded.pop()
            if not x.opname.startswith("STORE"):  # STORE_FAST_LOAD_FAST
                for name in loaded:
                    yield "first", (name,), False
                    if name in modules:
                        yield "imported", (modules[name],), False
            if last in modules:
                kind, path = "imported", (modules[last],)
            elif last not in cells:  # otherwise the cell itself is loaded, for an inner function
                kind, path = "first", (last,)
    if kind and path[1:] != ("",):
        yield kind, path, False


def _modules(steps: list[dis.Instruction]) -> Iterator[tuple[str, str]]:
    """The local variables in which imported modules are stored, and the modules."""
    for i, x in enumerate(steps):
        if x.opname == "IMPORT_NAME" and (name := _stored_name(steps, i + 1)) is not None:
            yield name, x.argval.partition(".")[0]  # import a.b stores a


def _stored_name(steps: list[dis.Instruction], i: int) -> str | None:
    """The local variable in which the value on the stack is stored; None if it is not."""
    if not steps[i].opname.startswith("STORE_FAST"):
        return None
    stored = steps[i].argval
    return stored[0] if isinstance(stored, tuple) else stored


def _is_updated(steps: list[dis.Instruction], i: int, path: Path) -> bool:
    """Whether the value on the stack is used only to compute the value that replaces it."""
    operator = _operator_of(steps, i)
    stores = steps[operator + 1 : operator + 1 + len(path)]
    if operator < 0 or [x.argval for x in stores] != [*path]:
        return False
    names = {"STORE_GLOBAL", "STORE_NAME", "STORE_DEREF"}
    return stores[-1].opname in ({"STORE_ATTR"} if path[1:] else names)


def _updated_attribute(steps: list[dis.Instruction], i: int) -> str | None:
    """The attribute of the object on the stack that is updated in place, as in ``x.calls += 1``."""
    if steps[i].opname != "COPY" or steps[i + 1].opname != "LOAD_ATTR":
        return None
    name = steps[i + 1].argval
    operator = _operator_of(steps, i + 2)
    stores = [(x.opname, x.argval) for x in steps[operator + 1 : operator + 3]]
    is_updated = operator > 0 and stores == [("SWAP", 2), ("STORE_ATTR", name)]
    return name if is_updated else None


def _operator_of(steps: list[dis.Instruction], i: int) -> int:
    """The index of the operator whose left operand is the value on the stack.

    −1 if there is none, or if the value is used before.
    """
    height = 1
    for j, x in enumerate(steps[i:], start=i):
        if x.opname == "BINARY_OP" and height == 2:
            return j
        if x.opname in ("COPY", "SWAP") or x.opcode in dis.hasjrel or x.opcode in dis.hasjabs:
            return -1
        height += dis.stack_effect(x.opcode, x.arg)
        if height < 2:
            return -1
    return -1


@functools.lru_cache(4096)
def rebinds(code: types.CodeType) -> frozenset[str]:
    """The captured variables that a function of this code rebinds when it is called."""
    stored = {x.argval for x in dis.get_instructions(code) if x.opname == "STORE_DEREF"}
    return frozenset(stored.intersection(code.co_freevars))


@functools.lru_cache(4096)
def code_key(code: types.CodeType) -> Hashable:
    """A key that is equal for equal code, independent of its file and lines."""
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
    """Whether this module is of Python, JAX, Optax or the like, whose functions do not change."""
    top = str(module).partition(".")[0]
    if top in sys.stdlib_module_names:
        file = getattr(sys.modules.get(top), "__file__", None)  # a user's script may be code.py
        return file is None or file.startswith(_STDLIB)
    return top in _LIBRARIES


# Python's modules that only compute; all others may read clocks, files, or other threads.
_COMPUTING_MODULES = (
    "abc argparse array ast bisect builtins calendar cmath codecs collections contextlib copy "
    "copyreg csv dataclasses decimal difflib enum fractions functools graphlib hashlib heapq html "
    "itertools json keyword logging math numbers operator pprint re reprlib statistics string "
    "struct textwrap traceback types typing unicodedata warnings zlib"
)
_COMPUTING = frozenset(_COMPUTING_MODULES.split())
_IMPURE = ("absl", "etils", "grain", "numpy.random", "orbax", "scipy.io")


@functools.cache
def is_pure(module: Any) -> bool:
    """Whether a library's functions in this module give equal results for equal arguments."""
    name = str(module)
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return top.lstrip("_") in _COMPUTING
    return not any(name == x or name.startswith(f"{x}.") for x in _IMPURE)
