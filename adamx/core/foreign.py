"""Any transformation that speaks Optax's protocol, as a link of a chain."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from adamx.core import hyper, naming
from adamx.core.link import Around, Link
from adamx.identity import ByValue
from adamx.numerics.types import PyTree

if TYPE_CHECKING:
    from adamx.core.engine.row import Row
    from adamx.core.engine.state import Beginning

__all__ = ["ABSENT", "Foreign"]

_NEEDS = {
    "scale_by_muon": (
        "In a tree of parameters scale_by_muon needs weight_dimension_numbers=lambda tree: "
        "jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree)"
    )
}

ABSENT = optax.MaskedNode()
"""Stands for the parameters that a link does not apply to, as in ``optax.masked``."""


class Foreign(Link):
    """An Optax transformation in an adamx chain; it gets the update as a tree.

    Before the first statistic it also rewrites the gradient, after it only the update.
    """

    def __init__(
        self, transformation: optax.GradientTransformation, around: tuple[Around, ...] = ()
    ):
        self.around = around
        self.structure: ByValue = ByValue(transformation)

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The Optax transformation."""
        return self.structure.value

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hyper.origin(self.transformation.update)

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        with self.noted(name):
            kept = self.transformation.init(beginning.params(here, ABSENT))
        for around in self.around:
            around.admit(name, kept)
        beginning.state[name] = kept

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        row.pass_through(name, self, here)

    def update(
        self, updates: PyTree, state: PyTree, params: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        takes_extra = optax.with_extra_args_support(self.transformation)
        return takes_extra.update(updates, state, params, **extra)

    @contextlib.contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Add the stage's name, as a note, to exceptions that the transformation raises."""
        try:
            yield
        except Exception as error:
            note = f"in stage {name!r}, {self!r}"
            if self.where:
                note += (
                    f". It applies to {' in '.join(x.label for x in reversed(self.where))}, and "
                    "gets optax.MaskedNode() for other parameters, as in optax.masked"
                )
            needed = (what for part, what in _NEEDS.items() if f"{part}(" in note)
            error.add_note(". ".join([note, *needed]))
            raise

    def __fingerprint__(self) -> Any:
        return self.transformation, self.around

    def __repr__(self) -> str:
        return _written(self.transformation)

    def tree_flatten(self) -> tuple[tuple[()], tuple[ByValue, tuple[Around, ...]]]:
        return (), (self.structure, self.around)

    @classmethod
    def tree_unflatten(cls, aux: tuple[ByValue, tuple[Around, ...]], _: Any) -> Foreign:
        return cls.of_records(*aux)


jax.tree_util.register_pytree_node_class(Foreign)


# An Optax transformation is a pair of closures. Their names tell which function made them, and
# their captured variables tell its arguments.


def _written(transformation: Any) -> str:
    """The call that made a transformation, as far as its closures show it."""
    update = transformation.update
    program = update.args[0] if isinstance(update, functools.partial) and update.args else None
    links = getattr(program, "links", None)
    if isinstance(links, tuple) and all(isinstance(link, Link) for link in links):
        rows = [row.strip() for row in naming.written(links).splitlines()]
        return " ".join(rows).replace("( ", "(").replace(", )", ")")
    captured = _captured(transformation.init) | _captured(update)
    name = hyper.origin(update)
    if name == "with_extra_args_support" and "tx" in captured:
        return _written(captured["tx"])
    if name == "chain" and {"init_fns", "update_fns"} <= captured.keys():
        pairs = zip(captured["init_fns"], captured["update_fns"], strict=True)
        parts = [_written(optax.GradientTransformation(*pair)) for pair in pairs]
    else:
        parts = list(_arguments(name, _factory(update), captured))
    return f"{_public(update)}({', '.join(parts)})"


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
        return _written(value)
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
