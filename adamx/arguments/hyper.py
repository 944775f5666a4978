"""Hyperparameters: numbers that may be floats, arrays or schedules, and the values they may take.

The annotation of a stage's argument says what it is. ``b1: Decay`` makes it *data*: a leaf of the
transformation, which may be batched, differentiated, or replaced by a schedule ``count → value``;
the stage's body gets its value at the current step. A value is checked against its domain as soon
as it is known; traced values are not checked. An argument without such an annotation
(``nesterov: bool``) is part of the algorithm's structure.
"""

from __future__ import annotations

import dataclasses
import decimal
import numbers
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.errors import as_given, outside

__all__ = [
    "Decay",
    "Domain",
    "Hyper",
    "NonNegative",
    "Positive",
    "Real",
    "Same",
    "Schedule",
    "is_off",
]

Schedule: TypeAlias = Callable[[Any], Any]
"""A function from the count of past updates (0 at the first one) to a value."""


@dataclasses.dataclass(frozen=True)
class Same:
    """A reference to another stage's hyperparameter in the same chain, in place of a value.

    ``replace`` changes the value for both stages, and ``hyperparams`` shows one entry.

    Attributes:
        stage: the name of the other stage; if a chain has several, the nearest one in front, or
            else the nearest one behind.
        argument: the name of its argument.
        power: the power to which the value is raised.
    """

    stage: str
    argument: str
    power: float = 1.0

    def __str__(self) -> str:
        power = f" to the power {self.power}" if self.power != 1 else ""
        return f"the {self.argument} of {self.stage}{power}"

    def of(self, value: Any) -> Any:
        """The value of this argument, given the other stage's value."""
        if self.power == 1:
            return value
        if callable(value):
            schedule: Callable[[Any], Any] = value
            return lambda count: schedule(count) ** self.power
        return value**self.power


Hyper: TypeAlias = float | jax.Array | np.ndarray | Schedule | Same
"""A number, an array (traced or batched), a schedule, or that of another stage of the chain."""


def is_off(value: Any) -> bool:
    """Whether a value is the Python number 0, which switches a stage off.

    A stage that is off is the identity: it needs no parameters and keeps no slots. An array or a
    schedule is never off, because its values are not known when the chain is made.
    """
    return isinstance(value, float) and value == 0


@dataclasses.dataclass(frozen=True)
class Domain:
    """The values that a hyperparameter may take."""

    meaning: str
    holds: Callable[[np.ndarray], np.ndarray]


Real = Annotated[Hyper, Domain("a finite number", np.isfinite)]
Decay = Annotated[Hyper, Domain("a decay rate in [0, 1)", lambda x: (x >= 0) & (x < 1))]
NonNegative = Annotated[Hyper, Domain("finite and ≥ 0", lambda x: (x >= 0) & np.isfinite(x))]
Positive = Annotated[Hyper, Domain("> 0", lambda x: x > 0)]


def domain_of(hint: Any) -> Domain | None:
    """The domain of an argument with this annotation; None if it is no hyperparameter."""
    beside = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return next((x for x in beside if isinstance(x, Domain)), None)


def canonical(name: str, given: Any, domain: Domain) -> Any:
    """``given`` as a float, an array or a schedule; an error for others and outside the domain."""
    if isinstance(given, Same) or (callable(given) and not isinstance(given, type)):
        return given
    value: Any = None
    if type(given) is float:  # the usual case, and the quickest way to see that it is right
        value = np.float64(given)
        if domain.holds(value):
            return given
    if isinstance(given, (np.ndarray, jax.Array)):
        if jnp.issubdtype(given.dtype, jnp.floating):
            value = given.copy() if isinstance(given, np.ndarray) else given  # it is mutable
        elif jnp.issubdtype(given.dtype, jnp.integer):
            value = given.astype(clock_dtype())
    elif _is_real(given):
        number: Any = given
        try:
            value = float(number)
        except OverflowError:
            raise ValueError(
                f"{name} must be {domain.meaning}, got a whole number of more than 308 digits, "
                "which no float holds"
            ) from None
    if value is None:
        hint = ""
        if isinstance(given, (Mapping, list, tuple)):
            hint = ". An optimiser does not hold the parameters; they are passed to init and update"
        raise TypeError(
            f"{name} must be a number, a real array or a schedule (count -> value), "
            f"got {as_given(given)}{hint}"
        )
    known = not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)
    if known:
        holds = np.asarray(domain.holds(np.asarray(value, np.float64)))
        if not np.all(holds):
            raise ValueError(f"{name} must be {domain.meaning}, got {outside(given, holds)}")
    return value


def _is_real(given: Any) -> bool:
    """Whether it is one real number; scalars of bfloat16, which are no ``numbers.Real``, count."""
    if isinstance(given, np.generic):
        dtype = given.dtype
        return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return isinstance(given, (numbers.Real, decimal.Decimal)) and not isinstance(given, bool)


LARGEST_COUNT: int = 2**31 - 1
"""The largest count of past updates, at which the count stops."""


def clock_dtype() -> Any:
    """The dtype of scalars that are kept between steps: JAX's default precision."""
    return jnp.result_type(float)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with floating-point arrays cast to ``dtype``; Python numbers stay exact."""

    def fit(x: Any) -> Any:
        is_array = isinstance(x, (jax.Array, np.ndarray))
        return jnp.asarray(x, dtype) if is_array and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(fit, tree)


def show(value: Any) -> str:
    """A hyperparameter as it is printed in the chain."""
    if isinstance(value, Tracer):
        return f"traced {value.aval.str_short()}"
    if isinstance(value, (np.ndarray, jax.Array)):
        if value.ndim == 0:
            return f"{value.dtype}({float(value):.6g})"
        return f"<{value.dtype}[{','.join(map(str, value.shape))}]>"
    if callable(value):
        # Schedules that are values (adamx.schedules) are printed as the call that makes them.
        is_value = getattr(type(value), "prints_its_call", False)
        return repr(value) if is_value else f"<schedule {origin(value)}>"
    return repr(value)


def origin(function: Any) -> str:
    """The name of the function that made a closure, such as ``cosine_decay_schedule``."""
    name = getattr(function, "__qualname__", type(function).__name__)
    parts = [part for part in name.split(".") if not part.startswith("<")]
    return parts[0] if parts else "lambda"
