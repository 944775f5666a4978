"""Errors that carry the user's whole situation: stage, parameter, what was given, the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["StageError", "described"]


class StageError(ValueError):
    """Something a stage was given cannot work.

    Whoever raises it knows what is wrong; the layers above know in which stage and at which
    parameter, and add that on the way up with :meth:`within`.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message
        self.stage: str | None = None
        self.parameter: str | None = None

    def within(self, *, stage: str | None = None, parameter: str | None = None) -> Self:
        """Name the stage and the parameter, where they are not named yet."""
        self.stage = self.stage or stage
        self.parameter = self.parameter or parameter
        return self

    def __str__(self) -> str:
        where = [f"stage {self.stage!r}"] if self.stage else []
        where += [f"parameter {self.parameter}"] if self.parameter else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


def described(x: Any) -> str:
    """What something is, for an error: never with the values of arrays."""
    name = type(x).__name__
    if isinstance(x, (str, int, float, complex, type(None))) or inspect.isroutine(x):
        shown = repr(x)
        return f"{shown if len(shown) <= 80 else f'{shown[:79]}…'} of type {name}"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"an array {x.dtype}[{','.join(map(str, x.shape))}]"
    if isinstance(x, Mapping):
        keys = [repr(key) for key in x][:8] + (["…"] if len(x) > 8 else [])
        return f"a {name} of [{', '.join(keys)}]"
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return f"a {name} of {len(x)}"
    return f"a {name}"
