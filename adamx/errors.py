"""Errors that name the stage, the parameter, the given value and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np

__all__ = ["StageError", "as_given", "check_whole", "described", "failed_schedule", "outside"]


class StageError(ValueError):
    """A stage got an input with which it cannot work.

    The code that raises it says what is wrong; its callers add the stage and the parameter with
    :meth:`within`.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message
        self.stage: str | None = None
        self.parameter: str | None = None

    def within(self, *, stage: str | None = None, parameter: str | None = None) -> Self:
        """Add the names of the stage and the parameter, unless they are known already."""
        self.stage = self.stage or stage
        self.parameter = self.parameter or parameter
        return self

    def __str__(self) -> str:
        where = [f"stage {self.stage!r}"] if self.stage else []
        where += [f"parameter {self.parameter}"] if self.parameter else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


def described(x: Any) -> str:
    """A description of a value for an error, without the values of arrays."""
    name = type(x).__name__
    plain = (str, int, float, complex, np.generic, type(None))
    if isinstance(x, plain) or inspect.isroutine(x):
        shown = repr(x)
        return f"{shown if len(shown) <= 80 else f'{shown[:79]}…'} of type {name}"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return f"an array {x.dtype}[{','.join(map(str, x.shape))}]"
    if isinstance(x, Mapping):
        keys = [repr(key) for key in x][:8] + (["…"] if len(x) > 8 else [])
        return f"a {name} of [{', '.join(keys)}]"
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return f"a {name} of {len(x)}"
    return f"an object of type {type(x).__qualname__}"


_SHOWN = 4  # the largest array whose numbers are shown


def as_given(x: Any) -> str:
    """A given value for an error; a description of it if it holds large arrays."""
    if any(getattr(leaf, "size", 0) > _SHOWN for leaf in jax.tree.leaves(x)):
        return described(x)
    shown = repr(x)
    return f"{shown if len(shown) <= 80 else f'{shown[:79]}…'} of type {type(x).__name__}"


def outside(x: Any, holds: np.ndarray) -> str:
    """Given numbers for an error, some of which are invalid, where ``holds`` is false."""
    if np.size(x) <= _SHOWN:
        return str(x)
    wrong = np.argwhere(~holds)
    where = tuple(map(int, wrong[0]))
    return (
        f"{described(x)}, in which {len(wrong)} of {holds.size} are not: the first is "
        f"{np.asarray(x)[where]} at [{', '.join(map(str, where))}]"
    )


_NEEDS_THE_VALUE = (
    jax.errors.ConcretizationTypeError,  # `if t < 10`, math.cos(t)
    jax.errors.TracerArrayConversionError,  # np.where
    jax.errors.TracerIntegerConversionError,  # table[t]
    jax.errors.NonConcreteBooleanIndexError,
)


def failed_schedule(
    stage: str, argument: str, error: Exception, *, traced: bool
) -> TypeError | ValueError:
    """The exception for an error in the schedule of a stage's argument.

    Args:
        stage: the stage's name.
        argument: the argument's name.
        error: the error that the schedule raised.
        traced: whether the count was traced.

    Returns:
        A TypeError where the error is one, else a :class:`StageError`, which is a ValueError.
    """
    if isinstance(error, _NEEDS_THE_VALUE):
        what = "the count, which is traced" if traced else "a number that is traced"
        return TypeError(
            f"{stage}: the schedule of {argument} branches on {what}; use jnp.where or "
            "optax.piecewise_constant_schedule. The step is compiled once for all counts, so "
            "Python's if, int(), math and NumPy can't use the count's value: write jax.numpy "
            "instead of math and NumPy, and jnp.asarray(table)[t] instead of table[t]"
        )
    named = isinstance(error, (TypeError, ValueError)) and str(error)
    said = str(error) if named else f"{type(error).__name__}: {error}".removesuffix(": ")
    said = f"the schedule of {argument} failed: {said}"
    if isinstance(error, TypeError):
        return TypeError(f"{stage}: {said}")
    return StageError(said).within(stage=stage)


def check_whole(least: int = 1, **given: Any) -> None:
    """Raise StageError for an argument that is no whole number, or below ``least``."""
    for name, x in given.items():
        if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < least:
            raise StageError(f"{name} must be a whole number ≥ {least}, got {as_given(x)}")
