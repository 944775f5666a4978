"""Spaces: bases in which stages work.

A stage that finds a basis enters it (:func:`enter_space`): it turns the gradient, the update and
the parameter, and leaves the space as a note. The stages behind it work in this basis. A last one
leaves it (:func:`leave_space`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx.errors import StageError
from adamx.links.signal import SPACE, Signal
from adamx.numerics.matrices import adjoint
from adamx.numerics.shards import axes_of, varying
from adamx.numerics.types import Array, Bool

__all__ = ["Space", "Turn", "enter_space", "leave_space", "space_of"]


class Turn(NamedTuple):
    """How arrays kept since the step before get into this step's basis.

    Attributes:
        changed: whether the basis has changed since then.
        left, right: the basis before.
        order: for the rows and for the columns, the places in the basis before of what is nearest
            to each vector of the new basis; None for a side without a basis.
    """

    changed: Bool[Array, ""]
    left: Array | None
    right: Array | None
    order: tuple[Array | None, Array | None]


@dataclasses.dataclass(frozen=True)
class Space:
    """A basis, and the signal outside of it.

    A matrix X outside is LᴴXR inside. A side without a basis is not turned.

    Attributes:
        left: L, shaped (…, rows, rows inside), or None.
        right: R, shaped (…, columns, columns inside), or None.
        turn: how arrays kept since the step before get into this basis; None if they stay.
        outside: the signal in front of the basis.
        view: how the array is seen as matrices; None if it is seen as it is.
    """

    left: Array | None
    right: Array | None
    turn: Turn | None
    outside: Signal
    view: Any = None

    def into(self, x: Array) -> Array:
        """An array from outside, in this basis."""
        x = x if self.view is None else self.view.matrices(x)
        return _into(x, self.left, self.right)

    def out_of(self, x: Array) -> Array:
        """An array in this basis, as it is outside."""
        x = _out_of(x, self.left, self.right)
        return x if self.view is None else self.view.array(x)

    def turned(self, x: Array) -> Array:
        """A signed array kept since the step before, in this basis."""
        turn = self.turn
        if turn is None:
            return x
        x = varying(x, axes_of((x, turn, self.left, self.right)))

        def turned() -> Array:
            return _into(_out_of(x, turn.left, turn.right), self.left, self.right)

        return jax.lax.cond(turn.changed, turned, lambda: x)

    def reordered(self, x: Array) -> Array:
        """A nonnegative array kept since the step before, its elements moved to this basis."""
        turn = self.turn
        if turn is None:
            return x
        x = varying(x, axes_of((x, turn)))

        def moved() -> Array:
            rows, columns = turn.order
            y = x if rows is None else jnp.take_along_axis(x, rows[..., :, None], -2)
            return y if columns is None else jnp.take_along_axis(y, columns[..., None, :], -1)

        return jax.lax.cond(turn.changed, moved, lambda: x)


jax.tree_util.register_dataclass(
    Space,
    data_fields=["left", "right", "turn", "outside"],
    meta_fields=["view"],
)


def _into(x: Array, left: Array | None, right: Array | None) -> Array:
    x = x if left is None else jnp.matmul(adjoint(left), x)
    return x if right is None else jnp.matmul(x, right)


def _out_of(x: Array, left: Array | None, right: Array | None) -> Array:
    x = x if left is None else jnp.matmul(left, x)
    return x if right is None else jnp.matmul(x, adjoint(right))


def enter_space(
    signal: Signal,
    left: Array | None = None,
    right: Array | None = None,
    *,
    turn: Turn | None = None,
    view: Any = None,
) -> Signal:
    """The signal in a basis, with the :class:`Space` as a note.

    Args:
        signal: the signal outside.
        left: L; the gradient G becomes LᴴGR, and so do the update and the parameter. None for the
            identity.
        right: R, or None for the identity.
        turn: how arrays kept since the step before get into this basis; None if they stay.
        view: how the array is seen as matrices.

    Raises:
        StageError: if the signal is in a basis already.
    """
    if SPACE in signal.notes:
        raise StageError(
            "the signal is in a basis already; in_basis() inside in_basis() is not possible"
        )
    signal = signal.limited()
    space = Space(left, right, turn, signal, view)
    # Turned elements are larger than the limit by up to the root of their number.
    turned = signal.mapped(space.into)
    return dataclasses.replace(turned, notes={SPACE: space}, is_limited=False)


def leave_space(signal: Signal, update: Array | None = None) -> Signal:
    """The signal outside of the basis, with its gradient and notes from there.

    Args:
        signal: the signal in the basis.
        update: the update outside; None for the signal's own.
    """
    space = space_of(signal)
    update = space.out_of(signal.update) if update is None else update
    return dataclasses.replace(
        space.outside,
        gradient=space.outside.gradient if signal.has_statistic else update,
        update=update,
        is_limited=False,
        bias=signal.bias,
        has_statistic=signal.has_statistic,
        step=signal.step,
    )


def space_of(signal: Signal) -> Space:
    """The space of a signal in a basis; StageError outside of all bases."""
    return signal.note(SPACE, by="a basis, which calls enter_space() for every array,")
