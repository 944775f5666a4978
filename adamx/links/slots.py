"""Slots: the arrays that stages keep for each parameter between steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from adamx.errors import StageError, as_given
from adamx.numerics.formats import statistics_dtype
from adamx.numerics.types import Reals, Values

__all__ = [
    "Slot",
    "iterate",
    "itself",
    "real_zeros",
    "remainder",
    "squares",
    "squares_from",
    "zeros",
]

Content = Literal["signed", "nonnegative", "average", "exact"]

Slots = dict[str, Any]
"""The slots of one parameter, by name."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array that is kept for every parameter; a plain function stands for a signed slot.

    Attributes:
        start: ``param -> first value``.
        holds: ``"signed"`` (an average of gradients, say), ``"nonnegative"`` (a square or a norm),
            ``"average"`` (an average of the parameters), which is rounded only by a codec that
            names the slot, or ``"exact"``, if the last digits matter (a copy of the parameter that
            is stepped from); an exact slot is never rounded.
        form: the form in which an axis packs it between steps, for messages; empty for plain
            arrays.
        letter: its letter in equations (:func:`adamx.explain`); by default, its name.
    """

    start: Callable[[Any], Any]
    holds: Content = "signed"
    form: str = ""
    letter: str = ""

    def __post_init__(self) -> None:
        if self.holds not in get_args(Content):
            raise ValueError(
                f"a slot holds one of {', '.join(map(repr, get_args(Content)))}, "
                f"got {as_given(self.holds)}"
            )

    def __call__(self, param: Any) -> Any:
        return self.start(param)

    @property
    def is_statistic(self) -> bool:
        """Whether it holds a statistic of gradients, and no parameters or rounding errors."""
        return self.holds in ("signed", "nonnegative")

    def called(self, letter: str) -> Slot:
        """The same slot with another letter."""
        return dataclasses.replace(self, letter=letter)

    @classmethod
    def of(cls, start: Callable[[Any], Any]) -> Slot:
        """The slot itself, or the signed slot of a plain function."""
        return start if isinstance(start, Slot) else cls(start)


def zeros(param: Any, dtype: Any = None, *, real: bool = False) -> Values:
    """Zeros shaped and placed like the parameter.

    Args:
        param: an array or a ``jax.ShapeDtypeStruct``.
        dtype: if None, the parameter's dtype, float32 at least.
        real: whether they are real for a complex parameter, as its norms and squares are.
    """
    dtype = shape_of_zeros(param, dtype, real=real).dtype
    if isinstance(param, Tracer):  # under jit, only values that depend on it get its sharding
        return jnp.less(param.real, param.real).astype(dtype)
    return jax.lax.full_like(param, 0, dtype=dtype)


def shape_of_zeros(param: Any, dtype: Any = None, *, real: bool = False) -> jax.ShapeDtypeStruct:
    """The shape and dtype of :func:`zeros`."""
    if dtype is None:
        dtype = statistics_dtype(param.dtype)
        dtype = jnp.finfo(dtype).dtype if real else dtype
    return jax.ShapeDtypeStruct(param.shape, dtype)


def itself(param: Any) -> Values:
    """A slot that starts as a copy of the parameter, float32 at least."""
    if isinstance(param, jax.ShapeDtypeStruct):
        raise StageError(
            "it starts from the parameters, but init() was given only their shapes; for the "
            "state's shapes call jax.eval_shape(opt.init, params)"
        )
    return jnp.array(param, statistics_dtype(param.dtype), copy=True)


real_zeros: Callable[..., Reals] = functools.partial(zeros, real=True)
"""Zeros for a square or a norm, real also for a complex parameter."""

squares: Slot = Slot(real_zeros, holds="nonnegative")
"""An average of squares."""


def squares_from(value: Any) -> Slot:
    """An average of squares, or a sum of them, that starts at a number instead of 0."""
    return Slot(lambda param: real_zeros(param) + value, holds="nonnegative")


remainder: Slot = Slot(functools.partial(zeros, dtype=jnp.bfloat16), holds="exact")
"""The rounding error of an average, of which a few digits suffice."""

iterate: Slot = Slot(itself, holds="exact")
"""An iterate that starts as a copy of the parameter."""
