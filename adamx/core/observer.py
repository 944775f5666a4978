"""A link that looks on: it sees every signal where it stands, and changes none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from adamx.core.link import Leaf, Link
from adamx.core.signal import Signal
from adamx.numerics.types import Array, Int32, Values

if TYPE_CHECKING:
    from adamx.core.engine.row import Row
    from adamx.core.engine.state import Beginning

__all__ = ["Observer", "View", "nothing"]


@dataclasses.dataclass(frozen=True)
class View:
    """What there is to see in one step, of the parameters an observer is for.

    Attributes:
        count: the updates before this one.
        leaves: path and shape of every parameter.
        idle: the paths of parameters that are known to have no gradient in this step; None if
            all have one.
        signals: what arrives at the observer's place; None of a parameter without a gradient.
        params: the parameters, or None if ``update`` was called without them.
        numbers: every number of the chain at this step, by name.
        scheduled: the names of those that come from a schedule.
    """

    count: Int32[Array, ""]
    leaves: Sequence[Leaf]
    idle: frozenset[str] | None
    signals: Sequence[Signal | None]
    params: Sequence[Values | None] | None
    numbers: dict[str, Any]
    scheduled: frozenset[str]


class Observer(Link):
    """The link; what it has seen is its entry in the state, a tree of scalars."""

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        beginning.observers.append(name)

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        row.show(name, self, here)

    def observe(self, view: View, before: Any, looks: bool) -> Any:
        """Its entry after this step.

        ``before`` is the one before, None when only shapes count. Unless it ``looks``, the signals
        are not to be touched: they are those of another place.
        """
        raise NotImplementedError


def nothing(shape: tuple[int, ...], dtype: Any) -> Array:
    """What an observer keeps where it has seen nothing: the lowest number, or 0 of what it counts.

    It stands for NaN, with which ``jax_debug_nans`` would stop every training.
    """
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return jnp.full(shape, jnp.finfo(dtype).min if inexact else 0, dtype)
