"""Bases in which the stages inside :func:`adamx.in_basis` work."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Positive,
    Refresh,
    Rule,
    Signal,
    Slot,
    StageError,
    Step,
    Turn,
    decay_clock,
    decaying_average,
    divide,
    enter_space,
    leave_space,
    norm,
    plus,
    real_zeros,
    shrunk,
    space_of,
    stage,
    total,
    zeros,
)
from adamx.errors import as_given, check_whole
from adamx.links.averages import interpolated_weight
from adamx.links.slots import Slots
from adamx.numerics import random
from adamx.numerics.arithmetic import log
from adamx.numerics.formats import limited
from adamx.numerics.matrices import (
    MatrixAxes,
    MatrixView,
    adjoint,
    kernel_axes,
    matrix_view,
    product,
)
from adamx.numerics.shards import axes_of, varying
from adamx.numerics.types import Array, Bool

__all__ = [
    "eigenbasis",
    "fixed_basis",
    "kl_eigenbasis",
    "leave_basis",
    "leave_by_scaling",
    "leave_with_residual",
    "limit_growth",
    "low_rank",
    "random_projection",
]


@stage(place="direction")
def eigenbasis(
    b2: Decay = 0.95,
    *,
    every: int = 10,
    max_size: int = 10_000,
    one_sided: bool = False,
    exact: bool = False,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
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
        exact: refresh by a full decomposition in place of a power iteration.
        spread: refresh different parameters in different steps, so that no step pays for all.
        axes: which axes are the matrix, see :func:`adamx.orthogonalize`.

    Source: Vyas et al. 2024 (arXiv 2409.11321), Algorithm 3, and the authors' code.

    Raises:
        StageError: if ``every`` or ``max_size`` is no whole number ≥ 1.

    >>> soap = adamx.chain(
    ...     adamx.in_basis(
    ...         adamx.eigenbasis(0.95),
    ...         adamx.chain(adamx.scale_by_momentum(0.95), adamx.scale_by_rms(0.95)),
    ...     ),
    ...     adamx.bias_correction(),
    ...     adamx.scale_by_learning_rate(3e-3),
    ... )
    >>> jax.tree.map(jnp.shape, soap.init(jnp.zeros((3, 2)))["eigenbasis"]["left"])
    (3, 3)
    """
    return _eigenbasis(b2, every, max_size, one_sided, exact, spread, axes, _products)


@stage(place="direction")
def kl_eigenbasis(
    b2: Decay = 0.95,
    eps: Positive = 1e-8,
    *,
    every: int = 10,
    max_size: int = 10_000,
    one_sided: bool = False,
    exact: bool = False,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
):
    r"""Turn each matrix to eigenvectors of averages that weigh one side by the other (KL-SOAP).

    .. math::
        L_t &= \beta_2 L_{t-1} + \frac{1-\beta_2}{n} G_t Q_R \Lambda_R^{-1} Q_R^\top G_t^\top,
        \qquad \Lambda_R = \max(\text{diag}(Q_R^\top \hat R_{t-1} Q_R), \epsilon) \\
        R_t &= \beta_2 R_{t-1} + \frac{1-\beta_2}{m} G_t^\top Q_L \Lambda_L^{-1} Q_L^\top G_t

    for a matrix of m rows and n columns. R̂ is R divided by its weight. In the first step, L and R
    average GGᵀ and GᵀG, as in :func:`eigenbasis`, and all else is as it is there.

    Args:
        b2: β₂ in [0, 1).
        eps: ε > 0, the smallest eigenvalue by which a side is weighed.
        every, max_size, one_sided, exact, spread, axes: see :func:`eigenbasis`.

    Source: Lin et al. 2025 (arXiv 2509.03378); the first step is that of HeavyBall's code.

    Raises:
        StageError: if ``every`` or ``max_size`` is no whole number ≥ 1.

    >>> opt = adamx.in_basis(adamx.kl_eigenbasis(0.9), adamx.adam(3e-3))
    >>> jax.tree.map(jnp.shape, opt.init(jnp.zeros((3, 2)))["kl_eigenbasis"]["right"])
    (2, 2)
    """
    return _eigenbasis(
        b2, every, max_size, one_sided, exact, spread, axes, functools.partial(_weighed, eps=eps)
    )


Moments = tuple[Array | None, Array | None]


def _eigenbasis(
    b2: Any,
    every: int,
    max_size: int,
    one_sided: bool,
    exact: bool,
    spread: bool,
    axes: MatrixAxes,
    squares: Callable[..., tuple[Array, Array]],
) -> Rule:
    """The rule of a basis of eigenvectors.

    ``squares`` gets a matrix, the averages before this step, the basis and the weight of these
    averages; its results are averaged.
    """
    check_whole(every=every, max_size=max_size)
    mean = decaying_average(b2)
    weight_before = decay_clock(log(b2))._replace(
        read=lambda pair: interpolated_weight(pair, 1.0, b2)
    )

    def turns(shape: tuple[int, ...]) -> tuple[bool, bool]:
        """Whether the left and the right side are turned."""
        rows, columns = shape[-2:]
        is_left, is_right = not one_sided or rows <= columns, not one_sided or rows > columns
        return is_left and rows <= max_size, is_right and columns <= max_size

    def square(side: int, fill: Callable[..., Array]) -> Callable[[Any], Any]:
        return squares_of_side(axes, side, lambda shape: turns(shape)[side], fill)

    def given(signal: Signal, slots: Slots, step: Step) -> tuple[Moments, Moments]:
        """The averages before this step, and the basis."""
        kept = (slots["left"], slots["right"]), (slots["left_basis"], slots["right_basis"])
        # In shard_map, all branches give arrays that vary along the same axes.
        return varying(kept, axes_of(kept))

    def refreshed(arrays: tuple[Moments, Moments], step: Step) -> Any:
        count, _ = step.clock["steps"]
        return [_refreshed(x, q, exact or count == 2) for x, q in zip(*arrays, strict=True)]

    def unchanged(arrays: tuple[Moments, Moments]) -> Any:
        return [(q, None if q is None else _places(q)) for q in arrays[1]]

    refresh = refresh_every(given, refreshed, unchanged, every, spread, first=2)

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        view = matrix_view(axes, signal.whole)
        if view is None:
            return enter_space(signal), slots
        seen = multipliable(view.matrices(signal.gradient))
        before, basis = given(signal, slots, step)
        (left, rows), (right, columns) = refresh.results((before, basis), step)
        sums = squares(seen, before, (left, right), mean.weight(step))
        new = [None if x is None else mean(x, y) for x, y in zip(before, sums, strict=True)]
        kept = {"left": new[0], "right": new[1], "left_basis": left, "right_basis": right}
        turn = Turn(refresh.due(step), basis[0], basis[1], (rows, columns))
        return enter_space(signal, left, right, turn=turn, view=view), kept

    return Rule(
        update,
        slots={
            "left": square(0, blank_square),
            "right": square(1, blank_square),
            "left_basis": Slot(square(0, jnp.eye), holds="exact"),
            "right_basis": Slot(square(1, jnp.eye), holds="exact"),
        },
        clocks={mean.name: weight_before, "steps": steps_clock()},
        refresh=refresh,
        reshape=lambda shape, whole: view.shape if (view := matrix_view(axes, whole)) else whole,
        prepares=True,
    )


def _products(seen: Array, moments: Moments, basis: Moments, weight: Any) -> tuple[Array, Array]:
    """GGᵀ and GᵀG."""
    return product(seen, adjoint(seen)), product(adjoint(seen), seen)


def _weighed(
    seen: Array, moments: Moments, basis: Moments, weight: Any, eps: Any
) -> tuple[Array, Array]:
    """GGᵀ and GᵀG, with each vector of the basis in between divided by its eigenvalue."""

    def weighed(x: Array, moment: Array | None, vectors: Array | None) -> Array:
        if moment is None or vectors is None:
            return product(x, adjoint(x))
        sizes = jnp.sum((jnp.conj(vectors) * product(moment, vectors)).real, -2, keepdims=True)
        sizes = jnp.maximum(sizes / jnp.where(weight > 0, weight, 1), eps) * x.shape[-1]
        sizes = jnp.where(weight > 0, sizes, 1)  # the first step has no averages before it
        inside = product(x, vectors)
        return product(inside / sizes, adjoint(inside))

    (left, right), (of_left, of_right) = moments, basis
    return weighed(seen, right, of_right), weighed(adjoint(seen), left, of_left)


def multipliable(x: Array) -> Array:
    """x with finite elements limited so that products of GGᵀ and a basis are finite."""
    return limited(x, x.shape[-2] * x.shape[-1] * max(x.shape[-2:]))


def filled(view: MatrixView, param: Any, matrix: Array) -> Array:
    """The same matrix for each matrix of a parameter, placed like the parameter."""
    here = view.matrices(zeros(param)).sum((-2, -1), keepdims=True)
    return here + stacked_alike(matrix.astype(here.dtype), here)


def stacked_alike(matrix: Array, stack: Array) -> Array:
    """A matrix with as many axes as a stack of matrices."""
    return matrix.reshape((1,) * (stack.ndim - 2) + matrix.shape)


def squares_of_side(
    axes: MatrixAxes,
    side: int,
    is_kept: Callable[[tuple[int, ...]], bool],
    fill: Callable[[int], Array],
) -> Callable[[Any], Any]:
    """The first value of a slot: for each matrix, a square one as large as its rows or columns.

    It is None for an array without matrices, and where ``is_kept(shape)`` is false.
    """

    def start(param: Any) -> Any:
        view = matrix_view(axes, param.shape)
        if view is None or not is_kept(view.shape):
            return None
        return filled(view, param, fill(view.shape[side - 2]))

    return start


def blank_square(size: int) -> Array:
    """A square matrix of zeros."""
    return jnp.zeros((size, size))


def steps_clock() -> Clock:
    """A clock that reads, for each parameter, the number of this step and the parameter's own."""
    return Clock(
        lambda: jnp.zeros((), jnp.int32),
        lambda count: jnp.minimum(count, 2**31 - 2) + 1,
        lambda count: count,
        of_parameter=lambda count, number, stage: (count, number.astype(jnp.int32)),
    )


def refresh_every(
    given: Callable[[Signal, Slots, Step], Any],
    compute: Callable[[Any, Step], Any],
    otherwise: Callable[[Any], Any],
    every: int,
    spread: bool,
    *,
    first: int,
) -> Refresh:
    """A computation in the step ``first``, and then every so many steps of :func:`steps_clock`.

    With ``spread``, the later steps are not the same for all parameters.
    """

    def phase(number: Any) -> Any:
        return number % every if spread else 0

    def due(step: Step) -> Bool[Array, ""]:
        count, number = step.clock["steps"]
        is_later = (count - first + phase(number)) % every == 0
        return (count == first) | ((count > first) & is_later)

    return Refresh(due, given, compute, otherwise, phase)


def _places(basis: Array) -> Array:
    """The places of vectors that stay where they are."""
    places = jnp.broadcast_to(jnp.arange(basis.shape[-1]), (*basis.shape[:-2], basis.shape[-1]))
    return varying(places, axes_of(basis))


def _refreshed(
    moment: Array | None, basis: Array | None, is_exact: bool | Bool[Array, ""]
) -> tuple[Array | None, Array | None]:
    """The eigenvectors of a moment, near to a basis; and the places of the nearest vectors there.

    They are computed exactly, or by one power iteration.
    """
    if moment is None or basis is None:
        return None, None
    image = product(moment, basis)
    sizes = jnp.sum((jnp.conj(basis) * image).real, -2)
    places = varying(jnp.argsort(-sizes), axes_of(sizes))

    def exactly() -> tuple[Array, Array]:
        return jnp.linalg.eigh(moment)[1][..., ::-1], places

    def nearly() -> tuple[Array, Array]:
        sorted_image = jnp.take_along_axis(image, places[..., None, :], -1)
        return jnp.linalg.qr(sorted_image)[0], places

    found, places = exactly() if is_exact is True else jax.lax.cond(is_exact, exactly, nearly)
    is_sound = _is_finite(found)
    places = jnp.where(is_sound[..., 0], places, _places(basis))
    return jnp.where(is_sound, found, basis), places


def _is_finite(x: Array) -> Array:
    """For each matrix, whether all its elements are finite; shaped (…, 1, 1)."""
    return jnp.all(jnp.isfinite(jnp.abs(x)), (-2, -1), keepdims=True)


@stage(place="direction")
def low_rank(
    rank: int = 128, *, every: int = 200, spread: bool = True, axes: MatrixAxes = kernel_axes
):
    r"""Project the shorter side of each matrix to the gradient's largest singular vectors (GaLore).

    .. math::
        G_t = U S V^\top, \quad P = U_{:, 1 \dots r}, \qquad G \leftarrow P^\top G

    for a matrix with at most as many rows as columns; otherwise :math:`G \leftarrow G P` with
    :math:`P = V_{:, 1 \dots r}`. P is computed in the first step and every ``every`` steps from the
    gradient of the step. It is the first argument of :func:`adamx.in_basis`. The slots of the
    stages inside are as small as the projected gradient, and are kept as they are when P changes.
    Each column of P has the sign with which it is nearer to the column before. If the gradient of
    such a step is zero, P is arbitrary until the next one: let a matrix whose gradients begin with
    zeros, as those of LoRA do, have another optimiser or a small ``every``.

    An array that is no matrix (a bias) is not projected.

    Keeps ``projection`` (P), shaped (…, shorter side, r); None for an array that is no matrix.

    Args:
        rank: r ≥ 1; at most the shorter side.
        every: the number of steps between projections.
        spread: project different parameters anew in different steps, so that no step pays for all.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Source: Zhao et al. 2024 (arXiv 2403.03507), Algorithm 2, and the authors' code.

    Raises:
        StageError: if ``rank`` or ``every`` is no whole number ≥ 1.

    >>> opt = adamx.in_basis(adamx.low_rank(2), adamx.scale_by_rms())
    >>> jax.tree.map(jnp.shape, opt.init(jnp.zeros((4, 8)))["scale_by_rms"]["nu"])
    (2, 8)
    """
    check_whole(rank=rank, every=every)

    def start(param: Any) -> Any:
        view = matrix_view(axes, param.shape)
        if view is None:
            return None
        size = min(view.shape[-2:])
        return filled(view, param, jnp.eye(size, min(rank, size)))

    def given(signal: Signal, slots: Slots, step: Step) -> Any:
        view = matrix_view(axes, signal.whole)
        return None if view is None else (view.matrices(signal.gradient), slots["projection"])

    def projected(arrays: tuple[Array, Array], step: Step) -> Array:
        seen, before = arrays
        u, _, v = jnp.linalg.svd(seen, full_matrices=False)
        found = (u if seen.shape[-2] <= seen.shape[-1] else adjoint(v))[..., : before.shape[-1]]
        # Of the two signs of a vector, the one that is nearer to the vector before.
        turned = jnp.sum((jnp.conj(before) * found).real, -2, keepdims=True) < 0
        found = jnp.where(turned, -found, found)
        return jnp.where(_is_finite(found), found, before)

    refresh = refresh_every(given, projected, lambda arrays: arrays[1], every, spread, first=1)

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        view = matrix_view(axes, signal.whole)
        if view is None:
            return enter_space(signal), slots
        now = refresh.results(given(signal, slots, step), step)
        rows, columns = view.shape[-2:]
        left, right = (now, None) if rows <= columns else (None, now)
        return enter_space(signal, left, right, view=view), {"projection": now}

    return Rule(
        update,
        slots={"projection": Slot(start, holds="exact")},
        clocks={"steps": steps_clock()},
        refresh=refresh,
        reshape=lambda shape, whole: _projected(whole, rank, axes),
        prepares=True,
    )


@stage(place="direction")
def random_projection(
    rank: int = 256, *, every: int = 200, seed: int = 0, axes: MatrixAxes = kernel_axes
):
    r"""Project the shorter side of each matrix to random vectors (APOLLO).

    .. math::
        P_{ij} \sim \mathcal N(0, 1/r), \qquad G \leftarrow P^\top G

    for a matrix with at most as many rows as columns; otherwise :math:`G \leftarrow G P`. There is
    a new P every ``every`` steps. P is computed from a key in every step and is not kept. The
    projection is no basis, as P has no orthogonal columns: the way back is
    :func:`leave_by_scaling`.

    An array that is no matrix (a bias) is not projected. Keeps the key.

    Args:
        rank: r ≥ 1; at most the shorter side.
        every: the number of steps for which P stays.
        seed: of the key.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Source: Zhu et al. 2024 (arXiv 2412.05270), Algorithm 1.

    Raises:
        StageError: if ``rank`` or ``every`` is no whole number ≥ 1, and for a seed that is none.

    >>> apollo = adamx.in_basis(
    ...     adamx.random_projection(2), adamx.scale_by_rms(), leave=adamx.leave_by_scaling()
    ... )
    >>> jax.tree.map(jnp.shape, apollo.init(jnp.zeros((8, 4)))["scale_by_rms"]["nu"])
    (8, 2)
    """
    check_whole(rank=rank, every=every)
    check_whole(0, seed=seed)
    draw = Clock(
        lambda: jnp.stack([random.key(seed), jnp.zeros((), jnp.uint32)]),
        lambda value: jnp.stack(
            [
                jnp.where(
                    (value[1] > 0) & (value[1] % every == 0), random.after(value[0]), value[0]
                ),
                value[1] + 1,
            ]
        ),
        lambda value: value[0],
        of_parameter=random.of_parameter,
    )

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        view = matrix_view(axes, signal.whole)
        if view is None:
            return enter_space(signal), slots
        *batch, rows, columns = view.shape
        size = min(rows, columns)
        shape = (*batch, size, min(rank, size))
        normal = random.normal(
            step.clock["draw"], shape, jnp.float32
        )  # in every precision the same
        normal = normal.astype(jnp.finfo(signal.gradient.dtype).dtype) / math.sqrt(shape[-1])
        left, right = (normal, None) if rows <= columns else (None, normal)
        return enter_space(signal, left, right, view=view), slots

    return Rule(
        update,
        clocks={"draw": draw},
        reshape=lambda shape, whole: _projected(whole, rank, axes),
        prepares=True,
    )


def _projected(whole: tuple[int, ...], rank: int, axes: MatrixAxes) -> tuple[int, ...]:
    """The shape of a parameter whose shorter side is projected."""
    view = matrix_view(axes, whole)
    if view is None:
        return whole
    *batch, rows, columns = view.shape
    if rows <= columns:
        return (*batch, min(rank, rows), columns)
    return (*batch, rows, min(rank, columns))


@stage(place="direction")
def fixed_basis(left: Any = None, right: Any = None, *, axes: MatrixAxes = kernel_axes):
    r"""Turn each matrix into a given basis, or project it there.

    .. math::
        G \leftarrow L^\top G R

    It is the first argument of :func:`adamx.in_basis`. An array that is no matrix (a bias) is not
    turned.

    Args:
        left: L, an array of shape (rows, rows inside) or a function from the number of rows to
            such an array; None for the identity. Its columns are orthonormal.
        right: R alike, for the columns.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Raises:
        StageError: for a matrix that the parameter does not fit.

    >>> swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> opt = adamx.in_basis(adamx.fixed_basis(swap), adamx.scale(-1.0))
    >>> opt.update(jnp.ones((2, 2)), opt.init(jnp.ones((2, 2))))[0]
    Array([[-1., -1.],
           [-1., -1.]], dtype=float32)
    """

    def sides(view: MatrixView, dtype: Any) -> list[Array | None]:
        found: list[Array | None] = []
        for given, size, name in zip(
            (left, right), view.shape[-2:], ("left", "right"), strict=True
        ):
            made: Any = given(size) if callable(given) else given
            if made is not None and (np.ndim(made) != 2 or np.shape(made)[0] != size):
                raise StageError(
                    f"{name} has the shape {np.shape(made)}, but the parameter has {size} "
                    f"{'rows' if name == 'left' else 'columns'}; choose parameters by where(…), or "
                    "pass a function of the size"
                )
            found.append(None if made is None else jnp.asarray(made, dtype))
        return found

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        view = matrix_view(axes, signal.whole)
        if view is None:
            return enter_space(signal), slots
        x = view.matrices(signal.gradient)
        found = (q if q is None else stacked_alike(q, x) for q in sides(view, x.dtype))
        return enter_space(signal, *found, view=view), slots

    def reshape(shape: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        view = matrix_view(axes, whole)
        if view is None:
            return whole
        inside = [
            size if x is None else x.shape[1]
            for x, size in zip(sides(view, jnp.float32), view.shape[-2:], strict=True)
        ]
        return (*view.shape[:-2], *inside)

    return Rule(update, reshape=reshape, prepares=True)


@stage
def leave_basis():
    r"""Return the update from a basis, :math:`U \leftarrow Q_L U Q_R^\top`.

    The gradient is the one in front of the basis again. It is the end of :func:`adamx.in_basis`
    unless that gets another one.
    """
    return _leaving(lambda signal: leave_space(signal))


@stage(place="direction")
def leave_by_scaling(per: str = "channel", eps: NonNegative = 1e-8):
    r"""Leave a projection with the whole gradient, scaled as the update inside is (APOLLO).

    .. math::
        s_j = \frac{\lVert \tilde u_j \rVert}{\lVert \tilde g_j \rVert + \epsilon}, \qquad
        u_j \leftarrow s_j\, g_j

    where g̃ and ũ are the gradient and the update inside, and j is an index of the side that is not
    projected (a channel); with ``per="tensor"``, one factor is shared by the whole matrix. An array
    that is no matrix keeps its update.

    Args:
        per: "channel" or "tensor".
        eps: ε ≥ 0. With 0, 0/0 is 0.

    Source: Zhu et al. 2024 (arXiv 2412.05270), Algorithm 1.

    Raises:
        StageError: for another ``per``.
    """
    if per not in ("channel", "tensor"):
        raise StageError(f"per must be 'channel' or 'tensor', got {as_given(per)}")

    def leave(signal: Signal) -> Signal:
        space = space_of(signal)
        if space.view is None:
            return leave_space(signal)
        scaled = space.view.matrices(space.outside.gradient) * _growth(signal, per, eps)
        return leave_space(signal, space.view.array(scaled))

    return _leaving(leave)


@stage(place="direction")
def leave_with_residual(growth: Positive = 1.01, eps: NonNegative = 1e-8):
    r"""Leave a projection with the update inside, and the rest of the gradient scaled alike (Fira).

    .. math::
        s_j = \frac{\lVert \tilde u_j \rVert}{\lVert \tilde g_j \rVert + \epsilon}, \qquad
        R_j = s_j\, (g - P \tilde g)_j, \qquad u \leftarrow P \tilde u + R

    where g̃ and ũ are the gradient and the update inside, and j is an index of the side that is not
    projected. The norm of R grows by the factor ``growth`` at most from step to step.

    Keeps ``norm``, a scalar for each parameter: the norm of R in the step before, 0 at first.

    Args:
        growth: the largest factor, as in :func:`limit_growth`.
        eps: ε ≥ 0. With 0, 0/0 is 0.

    Source: Chen et al. 2024 (arXiv 2410.01623), Algorithm 1.
    """

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        space = space_of(signal)
        if space.view is None:
            return leave_space(signal), slots
        inside = space.out_of(signal.gradient)
        rest = space.view.matrices(space.outside.gradient - inside) * _growth(
            signal, "channel", eps
        )
        rest, kept = _limited_growth(rest, slots["norm"], growth)
        whole = space.out_of(signal.update) + space.view.array(rest)
        return leave_space(signal, whole), {"norm": kept}

    return Rule(
        update,
        slots={"norm": Slot(lambda param: total(real_zeros(param)), holds="nonnegative")},
        reshape=lambda shape, whole: whole,
    )


@stage(reach="sums")
def limit_growth(growth: Positive = 1.01):
    r"""Limit the growth of each array's norm from step to step (Fira's norm-growth limiter).

    .. math::
        u \leftarrow u \min\left(1, \gamma \frac{n_{t-1}}{\lVert u \rVert} \right), \qquad
        n_t = \lVert u \rVert

    There is no limit before the first update that is not zero. An update of zero leaves n as it is.

    Keeps ``norm`` (n), a scalar for each parameter.

    Args:
        growth: γ > 0.

    Source: Chen et al. 2024 (arXiv 2410.01623), Section 4.3.

    >>> opt = adamx.limit_growth(2.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (1.0, 5.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> u
    Array([2.], dtype=float32)
    """

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        u, kept = _limited_growth(signal.update, slots["norm"], growth)
        return signal.with_update(u), {"norm": kept}

    return Rule(
        update, slots={"norm": Slot(lambda param: total(real_zeros(param)), holds="nonnegative")}
    )


def _limited_growth(x: Array, before: Array, growth: Any) -> tuple[Array, Array]:
    """An array whose norm is at most ``growth`` times the one before; and its norm."""
    length = norm(x)
    most = jnp.where(before == 0, length.value, growth * before)
    kept = jnp.where(length.size == 0, before, jnp.minimum(length.value, most))
    return shrunk(x, length, most), kept


def _growth(signal: Signal, per: str, eps: Any) -> Array:
    """‖ũ‖/(‖g̃‖ + ε) along the projected side, or of the whole matrix."""
    axis = (-2, -1) if per == "tensor" else -2 if space_of(signal).left is not None else -1
    before, after = norm(signal.gradient, axis), norm(signal.update, axis)
    return divide(after.value, plus(before.value, eps), eps)


def _leaving(leave: Callable[[Signal], Signal]) -> Rule:
    return Rule(
        lambda signal, slots, step: (leave(signal), slots), reshape=lambda shape, whole: whole
    )
