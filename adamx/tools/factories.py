"""Find functions by name, and find the factory calls that made a function."""

from __future__ import annotations

import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optax

from adamx import schedules, stages, wrappers
from adamx.identity import alike
from adamx.links.stage import Definition
from adamx.numerics.matrices import kernel_axes
from adamx.wrappers.selection import hidden_matrices

__all__ = ["Names", "call", "calls", "default_of"]

_OPTAX = ("optax", "optax.schedules", "optax.contrib", "optax.transforms")
_SCHEDULES = {
    f"adamx.schedules.{name}": made
    for name in schedules.__all__
    if isinstance(made := getattr(schedules, name), types.FunctionType)
}
_SELECTORS = {"adamx.hidden_matrices": hidden_matrices, "adamx.kernel_axes": kernel_axes}


class Names:
    """The names in a config: stages, public functions of adamx.recipes and Optax, and known."""

    def __init__(self, known: Mapping[str, Any] | None):
        self.known: dict[str, Any] = dict(known or {})
        self.stages: dict[str, Definition] = _definitions({**vars(stages), **vars(wrappers)})
        for name in self.known:
            if not isinstance(name, str) or "." in name or name in self.stages:
                raise ValueError(
                    f"known[{name!r}]: a name must be a string without dots, and must differ from "
                    "the names of adamx's stages"
                )
        self.stages |= _definitions(self.known)

    def stage(self, definition: Definition) -> str | None:
        """The name of a stage."""
        return next((name for name, found in self.stages.items() if found is definition), None)

    def find(self, name: Any) -> Any:
        """The object with this name, or None."""
        if not isinstance(name, str):
            return None
        if name in self.known:
            return self.known[name]
        if name in _SELECTORS:
            return _SELECTORS[name]
        if name in _SCHEDULES:
            return _SCHEDULES[name]
        package, _, attribute = name.rpartition(".")
        if not (package in _OPTAX or package.startswith("adamx.recipes.")):
            return None
        found = vars(sys.modules.get(package, types)).get(attribute)
        if not isinstance(found, types.FunctionType) or attribute.startswith("_"):
            return None
        at_home = found.__module__ == package or _package(found) == "optax"
        return found if at_home else None

    def own(self, thing: Any) -> str | None:
        """The name of an object in ``known``, or None."""
        return next((name for name, x in self.known.items() if alike(x, thing)), None)

    def function(self, function: Callable[..., Any]) -> str | None:
        """The name by which :meth:`find` returns this function, or None."""
        packages = _OPTAX if _package(function) == "optax" else (function.__module__,)
        names = [*_SELECTORS, *(f"{package}.{function.__qualname__}" for package in packages)]
        public = next((name for name in names if self.find(name) is function), None)
        return public or self.own(function)

    def factories(self, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        """The named functions in whose body this function was defined."""
        module, parts = function.__module__, function.__qualname__.split(".<locals>.")
        for depth in range(len(parts) - 1, 0, -1):
            inside = module, ".<locals>.".join(parts[:depth])
            for name, thing in self.known.items():
                if (getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")) == inside:
                    yield name, thing
            factory = vars(sys.modules.get(module, types)).get(inside[1])
            if isinstance(factory, types.FunctionType) and (name := self.function(factory)):
                yield name, factory


def _definitions(namespace: Mapping[str, Any]) -> dict[str, Definition]:
    return {name: x.definition for name, x in namespace.items() if hasattr(x, "definition")}


def _package(function: Callable[..., Any]) -> str:
    return function.__module__.partition(".")[0]


def calls(thing: Any, names: Names) -> Iterator[tuple[str, dict[str, Any]]]:
    """Calls (factory and arguments) whose result equals ``thing``; each call is tried."""
    captured: dict[str, dict[str, Any]] = {}
    for function in _functions(thing):
        for name, _ in names.factories(function):
            captured[name] = _captured(function) | captured.get(name, {})
    for name, variables in captured.items():
        factory = names.find(name)
        for arguments in itertools.islice(_guesses(factory, variables), 64):
            try:
                proved = alike(call(factory, arguments), thing)
            except Exception:  # a factory may raise any exception for wrong arguments
                continue
            if proved:
                yield name, arguments
                break


def _functions(thing: Any) -> Iterator[types.FunctionType]:
    """The functions in an object and in the closures of these functions, outermost first."""
    waiting, seen = [thing], set()
    for part in waiting:  # the loop appends to this list
        if isinstance(part, (tuple, list)):
            waiting.extend(part)
        elif isinstance(part, types.FunctionType) and id(part) not in seen:
            seen.add(id(part))
            waiting.extend(_captured(part).values())
            yield part


def _captured(function: types.FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}


def _guesses(factory: Callable[..., Any], captured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Possible arguments of a factory, given the variables that its result has captured.

    An argument that the closure did not capture is assumed to have its default, or else 0.
    """
    if factory in _UNDONE:
        captured = captured | _UNDONE[factory](captured)
    parameters = inspect.signature(factory).parameters
    renamed = [value for name, value in captured.items() if name not in parameters]

    def options(parameter: inspect.Parameter) -> Sequence[Any]:
        if parameter.name in captured:
            return [captured[parameter.name]]
        default = default_of(parameter)
        if default is parameter.empty:
            return [*renamed, 0]
        return [default, not default] if isinstance(default, bool) else [default]

    for values in itertools.product(*map(options, parameters.values())):
        yield dict(zip(parameters, values, strict=True))


def default_of(parameter: inspect.Parameter) -> Any:
    """The parameter's default; an empty container for ``*args`` and ``**kwargs``."""
    rest: dict[Any, Any] = {parameter.VAR_POSITIONAL: [], parameter.VAR_KEYWORD: {}}
    return rest.get(parameter.kind, parameter.default)


def call(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a factory with a dict of all arguments, including ``*args`` and ``**kwargs``."""
    bound = inspect.signature(factory).bind_partial()
    bound.arguments.update(arguments)
    return factory(*bound.args, **bound.kwargs)


def _undo_interpolation(captured: dict[str, Any]) -> dict[str, Any]:
    """The arguments of piecewise_interpolate_schedule, from the variables that it captures."""
    if "bounds" in captured:  # an older Optax computes cumulative values first
        values = captured["values"]
        boundaries = captured["bounds"][1:].tolist()
        pairs = itertools.pairwise(values.tolist())
        scales = [end / start if start else 0.0 for start, end in pairs]
        init_value = values[0].item()
    else:
        boundaries, scales = captured["boundaries"], captured["scales"]
        init_value = captured["init_value"]
    interpolation = captured["interpolate_fn"].__name__
    return {
        "interpolate_type": interpolation.removeprefix("_").removesuffix("_interpolate"),
        "init_value": init_value,
        "boundaries_and_scales": dict(zip(boundaries, scales, strict=True)),
    }


def _undo_chain(captured: dict[str, Any]) -> dict[str, Any]:
    """The arguments of optax.chain, which captures their init and update functions."""
    pairs = zip(captured["init_fns"], captured["update_fns"], strict=True)
    return {"args": [_without_extra(optax.GradientTransformationExtraArgs(*p)) for p in pairs]}


def _without_extra(transformation: Any) -> Any:
    """The transformation inside optax.with_extra_args_support, or the argument itself."""
    update = transformation.update
    wrapper = optax.with_extra_args_support.__qualname__
    is_wrapped = getattr(update, "__qualname__", "").startswith(f"{wrapper}.<locals>")
    return _captured(update)["tx"] if is_wrapped else transformation


_UNDONE: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {
    optax.piecewise_interpolate_schedule: _undo_interpolation,
    optax.chain: _undo_chain,
}
