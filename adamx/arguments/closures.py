"""The call that made an Optax transformation or a schedule, read off its closures."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adamx.arguments import hyper

__all__ = ["call", "written"]


def written(transformation: Any) -> str:
    """The call that made a transformation, as far as its closures show it."""
    update = transformation.update
    program = update.args[0] if isinstance(update, functools.partial) and update.args else None
    if hasattr(program, "links"):  # of a chain of adamx
        rows = [row.strip() for row in repr(program).splitlines()]
        return " ".join(rows).replace("( ", "(").replace(", )", ")")
    captured = _captured(transformation.init) | _captured(update)
    name = hyper.origin(update)
    if name == "with_extra_args_support" and "tx" in captured:
        return written(captured["tx"])
    if name == "chain" and {"init_fns", "update_fns"} <= captured.keys():
        pairs = zip(captured["init_fns"], captured["update_fns"], strict=True)
        parts = [written(optax.GradientTransformation(*pair)) for pair in pairs]
    else:
        parts = list(_arguments(name, _factory(update), captured))
    return f"{_public(update)}({', '.join(parts)})"


def call(function: Any) -> str:
    """The call that made a schedule: its name, and the numbers and functions that it captured."""
    if getattr(type(function), "prints_its_call", False):
        return repr(function)
    if isinstance(function, functools.partial):  # jax.tree_util.Partial as well
        known: dict[Any, Any] = dict(enumerate(function.args)) | function.keywords
        name = hyper.origin(function.func)
    else:
        known, name = _captured(function), hyper.origin(function)
    shown = {key: _told(value) for key, value in known.items()}
    parts = [x if isinstance(key, int) else f"{key}={x}" for key, x in shown.items() if x]
    return f"{name}({', '.join(parts)})"


def _told(value: Any) -> str:
    """A number, or a list of numbers or schedules; empty for anything else."""
    if isinstance(value, (bool, int, float, np.ndarray, jax.Array)):
        return hyper.show(value)
    if isinstance(value, Mapping):
        rows = {key: _told(x) for key, x in value.items()}
        return (
            f"{{{', '.join(f'{key}: {x}' for key, x in rows.items())}}}"
            if all(rows.values())
            else ""
        )
    if isinstance(value, (list, tuple)):
        parts = [call(x) if inspect.isfunction(x) else _told(x) for x in value]
        return f"[{', '.join(parts)}]" if parts and all(parts) else ""
    return ""


def _captured(function: Any) -> dict[str, Any]:
    """The variables that a closure captured, or the attributes of a method's object."""
    if inspect.isfunction(function):
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        return {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    kept = vars(function.__self__) if inspect.ismethod(function) else {}
    return {name.lstrip("_"): x for name, x in kept.items()}


def _factory(function: Any) -> Any:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, hyper.origin(function), None)


def _arguments(name: str, factory: Any, captured: Mapping[str, Any]) -> Iterator[str]:
    """The arguments found among the captured variables, with inner transformations."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = {}
    for key in sorted(captured, key=[*parameters, *captured].index):
        value = captured[key]
        if callable(value) and hyper.origin(value) == name:  # another closure of the factory
            value = _captured(value).get(key, _OWN)
        if key in parameters:
            told = value is not _OWN and (_is_number(value) or value is not parameters[key].default)
        else:
            told = _is_number(value) or _has_transformation(value)
            told = told or (isinstance(value, dict) and value != {})
        if told:
            yield f"{key}={_shown(value)}"


_OWN = object()


def _is_number(value: Any) -> bool:
    numbers = (int, float, np.ndarray, np.generic, jax.Array)
    return isinstance(value, numbers) and not isinstance(value, bool)


def _is_transformation(value: Any) -> bool:
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def _has_transformation(value: Any) -> bool:
    inside = value if isinstance(value, (tuple, list)) else ()
    return _is_transformation(value) or any(map(_has_transformation, inside))


def _shown(value: Any) -> str:
    """A value as it is printed; arrays and functions are abbreviated."""
    if _is_transformation(value):
        return written(value)
    if _is_number(value):
        return hyper.show(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_shown(x)}' for key, x in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, (bool, str, np.dtype)):
        return repr(value)
    return f"<{_public(value) if callable(value) else type(value).__name__}>"


def _public(function: Callable[..., Any]) -> str:
    """The name of the function that made a closure, with the Optax package that exports it."""
    name, module = hyper.origin(function), getattr(function, "__module__", None) or ""
    if module.partition(".")[0] != "optax":
        return name
    packages = ("optax", "optax.contrib", "optax.transforms")
    found = (x for x in packages if hasattr(sys.modules.get(x), name))
    return f"{next(found, module)}.{name}"
