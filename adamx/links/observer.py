"""A link that reads every signal at its place and changes none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from adamx.links.link import Beginning, Link, Row
from adamx.links.signal import Signal
from adamx.numerics.types import Array, Int32, Values
from adamx.trees.paths import Leaf

__all__ = ["Observer", "View", "nothing"]


@dataclasses.dataclass(frozen=True)
class View:
    """What an observer sees in one step, for the parameters that it applies to.

    Attributes:
        count: the updates before this one.
        leaves: path and shape of every parameter.
        idle: the paths of parameters that are known to have no gradient in this step; None if
            all have one.
        gradients: the gradients that ``update`` was called with; None for a parameter without one.
        terms: what :meth:`Observer.summand` gave; None for a parameter without a gradient, and no
            terms if the observer does not look.
        sizes: the numbers of elements of the signals.
        hyperparams: every hyperparameter of the chain at this step, by name.
        scheduled: the names of the hyperparameters that come from a schedule.
        shards: for every parameter, the mesh axes along which it is divided, of which this device
            has a shard; empty outside of ``shard_map``.
    """

    count: Int32[Array, ""]
    leaves: Sequence[Leaf]
    idle: frozenset[str] | None
    gradients: Sequence[Values | None]
    terms: Sequence[Any]
    sizes: Sequence[int]
    hyperparams: dict[str, Any]
    scheduled: frozenset[str]
    shards: Sequence[tuple[str, ...]]


class Observer(Link):
    """The link; its entry in the state is a tree of scalars, computed from sums over arrays."""

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        beginning.observers.append(name)

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        row.show(name, self, here)

    @staticmethod
    def summand(signal: Signal, gradient: Values, param: Values | None) -> Any:
        """One array's terms of the observer's sums: a tree of scalars of one dtype.

        It may get a part of the array, whose terms are then added. A scalar that is no sum must not
        depend on arrays.

        Args:
            signal: the signal at the observer's place.
            gradient: the gradient that ``update`` was called with.
            param: the parameter, if ``update`` was called with it.
        """
        raise NotImplementedError

    def observe(self, view: View, before: Any, looks: bool) -> Any:
        """The link's entry in the state after this step.

        ``before`` is the entry before this step, or None when only shapes are computed.
        """
        raise NotImplementedError


def nothing(shape: tuple[int, ...], dtype: Any) -> Array:
    """An observer's entry without a value: the lowest number, or 0 for integers.

    It stands for NaN, which ``jax_debug_nans`` would report as an error.
    """
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return jnp.full(shape, jnp.finfo(dtype).min if inexact else 0, dtype)
