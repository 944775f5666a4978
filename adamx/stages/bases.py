"""Bases in which the stages inside :func:`adamx.in_basis` work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx.core import Clock, Decay, Rule, Slot, StageError, decaying_average, stage, zeros
from adamx.errors import as_given
from adamx.links.space import Turn, enter_space, leave_space
from adamx.numerics.matrices import matrix_view
from adamx.numerics.types import Array, Bool, Float, Int32, Values

__all__ = ["eigenbasis", "leave_basis"]


@stage(place="direction")
def eigenbasis(
    b2: Decay = 0.95,
    *,
    every: int = 10,
    max_size: int = 10_000,
    one_sided: bool = False,
    spread: bool = True,
    axes: Any = "matrix",
):
    r"""Turn each matrix to the eigenvectors of the averages of GGᵀ and GᵀG (the basis of SOAP).

    .. math::
        L_t = \beta_2 L_{t-1} + (1-\beta_2) G_t G_t^\top, \qquad
        R_t = \beta_2 R_{t-1} + (1-\beta_2) G_t^\top G_t, \qquad
        G \leftarrow Q_L^\top G\, Q_R

    It is the first argument of :func:`adamx.in_basis`. In the first step, Q_L and Q_R are the
    identity; in the second step, the eigenvectors of L₁ and R₁. Then, at the start of every
    ``every``-th step, a power iteration refreshes them from the averages of the steps before:

    .. math::
        Q_L \leftarrow \text{qr}(L_{t-1} Q_L P)

    where P sorts the columns by :math:`\text{diag}(Q_L^\top L_{t-1} Q_L)`, the largest first.

    An array that is no matrix (a bias) and a side longer than ``max_size`` are not turned.

    Keeps ``left`` and ``right`` (L and R), ``left_basis`` and ``right_basis`` (Q_L and Q_R): for a
    matrix of m rows and n columns, arrays m × m and n × n; None for a side that is not turned.

    Args:
        b2: β₂ in [0, 1).
        every: the number of steps between refreshes.
        max_size: sides longer than this are not turned.
        one_sided: turn the shorter side only.
        spread: refresh different parameters in different steps, so that no step pays for all.
        axes: which axes are the matrix, see :func:`adamx.orthogonalize`.

    Source: Vyas et al. 2024 (arXiv 2409.11321), Algorithm 3, and the authors' code.

    Raises:
        StageError: if ``every`` or ``max_size`` is no whole number ≥ 1.

    >>> soap = adamx.chain(
    ...     adamx.scale_by_momentum(0.95),
    ...     adamx.in_basis(adamx.eigenbasis(0.95), adamx.scale_by_rms(0.95)),
    ...     adamx.bias_correction(),
    ...     adamx.scale_by_learning_rate(3e-3),
    ... )
    >>> jax.tree.map(jnp.shape, soap.init(jnp.zeros((3, 2)))["eigenbasis"]["left"])
    (3, 3)
    """
    for name, x in (("every", every), ("max_size", max_size)):
        if isinstance(x, bool) or not isinstance(x, int) or x < 1:
            raise StageError(f"{name} must be a whole number ≥ 1, got {as_given(x)}")
    mean = decaying_average(b2)

    def turns(shape: tuple[int, ...]) -> tuple[bool, bool]:
        """Whether the left and the right side are turned."""
        rows, columns = shape[-2:]
        is_left, is_right = not one_sided or rows <= columns, not one_sided or rows > columns
        return is_left and rows <= max_size, is_right and columns <= max_size

    def square(side: int, fill: Callable[[int], Array]) -> Callable[[Any], Any]:
        """A slot's first value: square matrices, as large as one side of the parameter."""

        def start(param: Any) -> Any:
            view = matrix_view(axes, param.shape)
            if view is None or not turns(view.shape)[side]:
                return None
            here = view.matrices(zeros(param)).sum((-2, -1), keepdims=True)  # for its placement
            return here + fill(view.shape[side - 2]).astype(here.dtype)

        return start

    def update(signal, slots, step):
        view = matrix_view(axes, signal.whole)
        if view is None:
            return enter_space(signal), slots
        seen = view.matrices(signal.gradient)
        moments = slots["left"], slots["right"]
        before = slots["left_basis"], slots["right_basis"]
        count, number = step.clock["steps"]
        late = number % every if spread else 0
        is_first = count == 2
        is_due = is_first | ((count > 2) & ((count - 2 + late) % every == 0))

        def refreshed() -> Any:
            return [_refreshed(x, q, is_first) for x, q in zip(moments, before, strict=True)]

        now = jax.lax.cond(is_due, refreshed, lambda: [(q, _places(q)) for q in before])
        (left, rows), (right, columns) = now
        squares = _product(seen, _adjoint(seen)), _product(_adjoint(seen), seen)
        new = [None if x is None else mean(x, y) for x, y in zip(moments, squares, strict=True)]
        kept = {"left": new[0], "right": new[1], "left_basis": left, "right_basis": right}
        turn = Turn(is_due, *before, (rows, columns))
        return enter_space(signal, left, right, turn=turn, view=view), kept

    return Rule(
        update,
        slots={
            "left": square(0, lambda n: jnp.zeros((n, n))),
            "right": square(1, lambda n: jnp.zeros((n, n))),
            "left_basis": Slot(square(0, jnp.eye), holds="exact"),
            "right_basis": Slot(square(1, jnp.eye), holds="exact"),
        },
        clocks={"steps": _steps()},
        reshape=lambda shape, whole: view.shape if (view := matrix_view(axes, whole)) else whole,
        prepares=True,
    )


def _steps() -> Clock:
    """A clock that reads, for each parameter, the number of this step and the parameter's own."""
    return Clock(
        lambda: jnp.zeros((), jnp.int32),
        lambda count: jnp.minimum(count, 2**31 - 2) + 1,
        lambda count: count,
        of_parameter=lambda count, number, stage: (count, number.astype(jnp.int32)),
    )


def _adjoint(x: Values) -> Values:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def _product(x: Values, y: Values) -> Values:
    """A product of matrices in full precision, also where the default is less."""
    return jnp.matmul(x, y, precision="highest")


def _places(basis: Array | None) -> Int32[Array, "*size"] | None:
    """The places of vectors that stay where they are."""
    if basis is None:
        return None
    return jnp.broadcast_to(jnp.arange(basis.shape[-1]), (*basis.shape[:-2], basis.shape[-1]))


def _refreshed(
    moment: Array | None, basis: Array | None, is_first: Bool[Array, ""]
) -> tuple[Array | None, Int32[Array, "*size"] | None]:
    """The eigenvectors of a moment, near to a basis; and the places of the nearest vectors there.

    They are computed exactly at first, and by one power iteration later.
    """
    if moment is None or basis is None:
        return None, None
    image = _product(moment, basis)
    sizes = jnp.sum((jnp.conj(basis) * image).real, -2)
    places = jnp.argsort(-sizes)

    def exactly() -> tuple[Array, Array]:
        return jnp.linalg.eigh(moment)[1][..., ::-1], _places(basis)

    def nearly() -> tuple[Array, Array]:
        sorted_image = jnp.take_along_axis(image, places[..., None, :], -1)
        return jnp.linalg.qr(sorted_image)[0], places

    found, places = jax.lax.cond(is_first, exactly, nearly)
    is_sound = jnp.all(jnp.isfinite(jnp.abs(found)))
    return jnp.where(is_sound, found, basis), jnp.where(is_sound, places, _places(basis))


@stage
def leave_basis():
    r"""Return the update from a basis: U ← Q_L U Q_Rᵀ. :func:`adamx.in_basis` ends with it."""

    def update(signal, slots, step):
        return leave_space(signal), slots

    return Rule(update, reshape=lambda shape, whole: whole)
