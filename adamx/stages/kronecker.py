"""Roots of Kronecker factors (Shampoo), and the size of another optimiser's step (grafting)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Decay,
    NonNegative,
    Positive,
    Rule,
    Signal,
    Slot,
    Step,
    abs_sq,
    decaying_average,
    divide,
    norm,
    plus,
    root,
    squares,
    stage,
)
from adamx.errors import check_whole
from adamx.links.slots import Slots
from adamx.numerics.arithmetic import power
from adamx.numerics.matrices import (
    MatrixAxes,
    MatrixView,
    adjoint,
    kernel_axes,
    matrix_view,
    product,
)
from adamx.numerics.types import Array
from adamx.stages.bases import (
    blank_square,
    multipliable,
    refresh_every,
    squares_of_side,
    steps_clock,
)

__all__ = ["graft_to_rms", "scale_by_kronecker_roots"]


@stage(place="direction")
def scale_by_kronecker_roots(
    b2: Decay = 0.999,
    eps: Positive = 1e-6,
    *,
    exponent: Positive = 0.25,
    every: int = 10,
    max_size: int = 10_000,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
):
    r"""Multiply each matrix by roots of the averages of GGᵀ and GᵀG (Shampoo).

    .. math::
        L_t = \beta_2 L_{t-1} + (1-\beta_2) G_t G_t^\top, \qquad
        R_t = \beta_2 R_{t-1} + (1-\beta_2) G_t^\top G_t \\
        u \leftarrow (\hat L_t + \epsilon \ell I)^{-p}\, u\, (\hat R_t + \epsilon r I)^{-p}

    where ℓ and r are the largest eigenvalues of the bias-corrected averages, and p is 1/4. The
    roots are computed in the first step and every ``every`` steps. While all gradients have been
    zero, they are the identity. A side longer than ``max_size`` is not multiplied. An array that is
    no matrix (a bias) does not change.

    Keeps ``left`` and ``right`` (L and R), ``left_root`` and ``right_root``: for a matrix of m rows
    and n columns, arrays m × m and n × n; None for a side that is not multiplied.

    Args:
        b2: β₂ in [0, 1).
        eps: ε > 0.
        exponent: p > 0.
        every: the number of steps between computations of the roots.
        max_size: sides longer than this are not multiplied.
        spread: compute the roots of different parameters in different steps.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Source: Gupta, Koren & Singer 2018 (arXiv 1802.09568), Algorithm 1, with averages in place of
    sums and ε relative to the largest eigenvalue, as in Anil et al. 2020 (arXiv 2002.09018).

    Raises:
        StageError: if ``every`` or ``max_size`` is no whole number ≥ 1.

    >>> opt = adamx.scale_by_kronecker_roots(eps=1e-12)
    >>> g = jnp.array([[4.0, 0.0], [0.0, -9.0]])
    >>> opt.update(g, opt.init(g))[0].round(3)
    Array([[ 1.,  0.],
           [ 0., -1.]], dtype=float32)
    """
    check_whole(every=every, max_size=max_size)
    mean = decaying_average(b2)

    def square(side: int, fill: Any) -> Any:
        return squares_of_side(axes, side, lambda shape: shape[side - 2] <= max_size, fill)

    def averages(view: MatrixView, signal: Signal, slots: Slots) -> list[Array | None]:
        seen = multipliable(view.matrices(signal.gradient))
        sums = product(seen, adjoint(seen)), product(adjoint(seen), seen)
        before = slots["left"], slots["right"]
        return [None if x is None else mean(x, y) for x, y in zip(before, sums, strict=True)]

    def given(signal: Signal, slots: Slots, step: Step) -> Any:
        """The averages of this step, and the roots before it."""
        view = matrix_view(axes, signal.update.shape)
        return view and (averages(view, signal, slots), [slots["left_root"], slots["right_root"]])

    def rooted(arrays: Any, step: Step) -> list[Array | None]:
        weight = mean.weight(step)
        return [None if x is None else _root(x / weight, eps, exponent) for x in arrays[0]]

    refresh = refresh_every(given, rooted, lambda arrays: arrays[1], every, spread, first=1)

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        view = matrix_view(axes, signal.update.shape)
        if view is None:
            return signal.with_statistic(signal.update), slots
        u, (left, right) = view.matrices(signal.update), averages(view, signal, slots)
        roots = [slots["left_root"], slots["right_root"]]
        roots = refresh.results(((left, right), roots), step)
        u = u if roots[0] is None else product(roots[0], u)
        u = u if roots[1] is None else product(u, roots[1])
        kept = {"left": left, "right": right, "left_root": roots[0], "right_root": roots[1]}
        return signal.with_statistic(view.array(u)), kept

    return Rule(
        update,
        slots={
            "left": square(0, blank_square),
            "right": square(1, blank_square),
            "left_root": Slot(square(0, jnp.eye), holds="exact"),
            "right_root": Slot(square(1, jnp.eye), holds="exact"),
        },
        clocks={**mean.clocks, "steps": steps_clock()},
        refresh=refresh,
    )


def _root(moment: Array, eps: Any, exponent: Any) -> Array:
    """(M + ελI)⁻ᵖ with the largest eigenvalue λ of M; the identity for a matrix of zeros."""
    values, vectors = jnp.linalg.eigh(moment)
    largest = jnp.maximum(values[..., -1:], 0)
    ridged = jnp.maximum(values, 0) + eps * largest
    scales = power(jnp.where(ridged > 0, ridged, 1), -exponent)
    return product(vectors * scales[..., None, :], adjoint(vectors))


@stage(reach="sums", place="direction")
def graft_to_rms(b2: Decay = 0.999, eps: NonNegative = 1e-8):
    r"""Give the update of each array the size of an RMSProp step (grafting, of Shampoo).

    .. math::
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad
        u \leftarrow \frac{u}{\lVert u \rVert}
        \left\lVert \frac{g_t}{\sqrt{\hat v_t} + \epsilon} \right\rVert

    The direction is one method's, the size of the step is another one's, whose learning rate can
    be kept. There is no bias left to correct. 0 stays 0.

    Keeps ``nu`` (v), shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: ε ≥ 0. With 0, 0/0 is 0.

    Source: Agarwal et al. 2020 (arXiv 2002.11803), grafting.

    >>> opt = adamx.graft_to_rms()
    >>> opt.update(jnp.array([3.0, -3.0]), opt.init(jnp.zeros(2)))[0].round(3)
    Array([ 1., -1.], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        nu = mean_square(slots["nu"], abs_sq(signal.gradient))
        usual = divide(signal.gradient, plus(root(nu / mean_square.weight(step)), eps), eps)
        length = norm(signal.update)
        one = divide(length.in_units(signal.update), length.size)
        return signal.of_any_size(one * norm(usual).value), {"nu": nu}

    return Rule(update, slots={"nu": squares}, clocks=mean_square.clocks)
