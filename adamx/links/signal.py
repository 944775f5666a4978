"""The signal that a chain carries, for one array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adamx.errors import StageError
from adamx.links.placement import PLACE
from adamx.numerics.formats import (
    limited,
    rounded,
    saturated,
    statistics_dtype,
    wider,
)
from adamx.numerics.types import Array, Scalar, Values
from adamx.trees.arrays import check_inexact

__all__ = ["SPACE", "Signal"]

SPACE = "space"
"""The note of a signal in a basis."""


@dataclasses.dataclass(frozen=True)
class Signal:
    """The gradient and the update of one parameter, and the update's bias.

    Stages compute statistics of the :attr:`gradient` and transform the :attr:`update`. Until a
    stage has computed a statistic, the update *is* the gradient, and stages change both.

    Attributes:
        gradient: the input of statistics; shaped like the parameter, float32 at least.
        update: the value to be added to the parameter; shaped like it, float32 at least.
        bias: the factor by which averages started at zero have shrunk the update so far (a scalar:
            E[update] = bias · E[the update with unbiased averages]); None before the first
            average and after a correction.
        has_statistic: whether a stage has computed a statistic.
        step: whether a learning rate has turned the update from a direction into a step.
        notes: values that earlier stages have left for later ones, by name (:meth:`note`).
        is_limited: whether its finite elements are limited (:meth:`limited`).
        whole: the parameter's shape. Gradient and update have it too, unless they are in another
            basis (:func:`~adamx.core.enter_space`).
    """

    gradient: Values
    update: Values
    bias: Scalar | None = None
    has_statistic: bool = False
    step: bool = False
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_limited: bool = False
    whole: tuple[int, ...] = ()
    _param: Values | None = None
    _dtypes: tuple[Any, ...] = ()

    @classmethod
    def enter(cls, gradient: Array, param: Array | None) -> Signal:
        """The signal that enters a chain: checked, in the precision of statistics."""
        gradient = jnp.asarray(gradient)
        check_inexact("gradient", gradient)
        dtypes = (gradient.dtype,)
        if param is not None:
            param = jnp.asarray(param)
            check_inexact("parameter", param)
            if param.shape != gradient.shape:
                raise StageError(
                    f"the gradient's shape {gradient.shape} is not the parameter's {param.shape}; "
                    "pass gradients of a loss with respect to these parameters"
                )
            if jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(param):
                raise StageError(
                    f"the gradient is {gradient.dtype}, the parameter {param.dtype}: a real "
                    "parameter takes a real gradient; take its real part"
                )
            dtypes += (param.dtype,)
            param = param.astype(statistics_dtype(param.dtype))
        # Slots have the parameter's precision, and the gradient's if update() gets no parameters.
        gradient = gradient.astype(statistics_dtype(dtypes[-1]))
        return cls(gradient, gradient, whole=gradient.shape, _param=param, _dtypes=dtypes)

    @property
    def param(self) -> Values:
        """The parameter θ before this step.

        Raises:
            StageError: if ``update`` was called without parameters.
        """
        if self._param is None:
            raise StageError(
                "this stage needs the parameters, and update() was called without them; "
                "call update(grads, state, params)"
            )
        return self._param

    @property
    def param_dtype(self) -> Any:
        """The dtype of the parameter itself (of the gradient, if there are no parameters)."""
        return self._dtypes[-1]

    @property
    def output(self) -> Values:
        """The update as it leaves the chain, in the wider of the gradient's and parameter's dtype.

        The rounding error of a bfloat16 step is small compared with the parameter's own, and
        Optax's wrappers expect updates in the dtype of the gradients. Only an update made by
        :meth:`step_to` is not rounded. A finite update beyond the range of this dtype becomes its
        largest number.

        Raises:
            StageError: if the update is still in a basis.
        """
        dtype = wider(*self._dtypes)
        return self._leaving(saturated(self.update, dtype).astype(dtype))

    @property
    def new_param(self) -> Values:
        """The parameter after ``apply_updates`` adds :attr:`output`, as it leaves the chain.

        Raises:
            StageError: if the update is still in a basis, and without parameters.
        """
        return self._leaving(self.next_param.astype(self.param_dtype))

    def _leaving(self, x: Values) -> Values:
        """An array that leaves the chain, where the parameter is."""
        if SPACE in self.notes:
            raise StageError(
                "the chain ends in a basis, so that its update would not fit the parameter; put "
                "the stages that work in the basis into in_basis(basis, chain(…)), which leaves it"
            )
        return self.notes[PLACE].back(x) if PLACE in self.notes else x

    def limited(self) -> Signal:
        """The signal with finite elements limited to ±2⁶³ (in float64 to ±2⁵¹¹).

        Averages and squares of it are finite. Infinities and NaN do not change. The first stage
        that computes a statistic gets the limited signal, and so do all later stages.
        """
        if self.is_limited:
            return self
        gradient = limited(self.gradient)
        update = gradient if self.update is self.gradient else limited(self.update)
        return dataclasses.replace(self, gradient=gradient, update=update, is_limited=True)

    @property
    def next_param(self) -> Values:
        """The parameter after ``apply_updates`` adds this update, including the rounding."""
        dtype = wider(*self._dtypes)
        step = rounded(saturated(self.update, dtype), dtype)
        return rounded(self.param + step, self._dtypes[-1])

    def with_update(self, update: Values) -> Signal:
        """The signal with another update; before the first statistic, also as the gradient."""
        if self.has_statistic:
            return dataclasses.replace(self, update=update)
        return dataclasses.replace(self, gradient=update, update=update, is_limited=False)

    def with_statistic(self, update: Values, weight: Any = None) -> Signal:
        """The signal with an update that holds a statistic of the gradient.

        Args:
            update: the new update.
            weight: the factor by which a decaying average that started at zero makes this update
                too small, which is multiplied into the bias; None if there is no such factor.
        """
        bias = self.bias
        if weight is not None:
            bias = weight if bias is None else bias * weight
        return dataclasses.replace(self, update=update, bias=bias, has_statistic=True)

    def of_any_size(self, update: Values) -> Signal:
        """The signal with an update that does not depend on the size, or bias, of the old one."""
        return dataclasses.replace(self.with_statistic(update), bias=None)

    def with_step(self, update: Values) -> Signal:
        """The signal with a step as its update: −α times a direction."""
        if self.bias is not None and "correction" in self.notes:
            raise StageError(
                "the update still has a bias, because a stage behind the last bias_correction() "
                "added one: the first steps would be too small. Put a bias_correction() in front "
                "of this stage"
            )
        return dataclasses.replace(self.with_statistic(update), step=True)

    def with_notes(self, **notes: Any) -> Signal:
        """The signal with notes for later stages: arrays, or trees of arrays."""
        return dataclasses.replace(self, notes={**self.notes, **notes})

    def note(self, name: str, *, by: str) -> Any:
        """The latest note of this name from an earlier stage.

        Args:
            name: the note's name.
            by: the stages that leave such a note, for the error.

        Raises:
            StageError: if no earlier stage has left such a note.
        """
        if name not in self.notes:
            raise StageError(
                f"this stage needs the note {name!r}, which {by} leaves, and no stage in front of "
                f"it has left one; put it behind {by} in the same chain"
            )
        return self.notes[name]

    def of_param(self, other: Signal | None) -> Signal:
        """The signal with the parameter of another one, or without a parameter."""
        return dataclasses.replace(self, _param=None if other is None else other._param)

    def mapped(self, function: Callable[[Values], Values]) -> Signal:
        """The signal with a linear function of its gradient, its update and its parameter."""
        gradient = function(self.gradient)
        return dataclasses.replace(
            self,
            gradient=gradient,
            update=gradient if self.update is self.gradient else function(self.update),
            _param=None if self._param is None else function(self._param),
        )

    def step_to(self, param: Values) -> Signal:
        """The signal with the update after which ``apply_updates`` gives exactly ``param``, θ'.

        The update is θ' − θ; it is computed, and leaves the chain, in the precision of statistics.
        θ' must be rounded to the parameter's dtype. The result is exact if θ' was rounded from
        θ + u, and also otherwise unless θ' is 2¹⁶ times smaller than θ; then it is exact to the
        last digit of such a sum.
        """
        wide = (param.dtype, self.param_dtype)
        return dataclasses.replace(self.with_statistic(param - self.param), _dtypes=wide)

    def corrected(self) -> Signal:
        """The signal with the bias divided out of its update.

        It leaves two notes: the ``direction``, which is the corrected update (for Adam
        m̂/(√v̂ + ε), the signal-to-noise ratio), and the ``correction``, the bias divided out.
        """
        if self.bias is None:
            raise StageError(
                "there is no bias to correct: no averaging stage (scale_by_momentum, "
                "scale_by_rms, …) stands before this one in the chain, or its bias has been "
                "corrected already. The bias travels along adamx.chain, not along optax.chain: "
                "use adamx.chain for the stages that belong together"
            )
        direction = self.update * (1 / self.bias)
        return dataclasses.replace(self, update=direction, bias=None).with_notes(
            direction=direction, correction=self.bias
        )


jax.tree_util.register_dataclass(
    Signal,
    data_fields=["gradient", "update", "bias", "notes", "_param"],
    meta_fields=["has_statistic", "step", "is_limited", "whole", "_dtypes"],
)
