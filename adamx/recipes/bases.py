"""Recipes that run an optimiser in a basis, or on a projection, of each matrix."""

from __future__ import annotations

from typing import Any

from adamx.core import Decay, NonNegative, Positive, Real, Transformation, chain
from adamx.numerics.matrices import MatrixAxes, kernel_axes
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    eigenbasis,
    graft_to_rms,
    kl_eigenbasis,
    leave_by_scaling,
    leave_with_residual,
    limit_growth,
    low_rank,
    polyak_ema,
    random_projection,
    scale,
    scale_by_kronecker_roots,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
    scale_by_shape,
    sign,
)
from adamx.wrappers.basis import in_basis
from adamx.wrappers.delay import delay_start

__all__ = ["apollo", "fira", "galore", "kl_soap", "shampoo", "soap", "splus"]


def _uncorrected_adam(b1: Any, b2: Any, eps: Any) -> Transformation:
    """m/(√v + ε), whose bias is corrected outside of the basis."""
    return chain(scale_by_momentum(b1), scale_by_rms(b2, eps=0.0, eps_hat=eps))


@recipe
def soap(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    *,
    shampoo_beta: Decay | None = None,
    every: int = 10,
    max_size: int = 10_000,
    one_sided: bool = False,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""SOAP: Adam in the eigenvectors of the averages of GGᵀ and GᵀG.

    .. math::
        \tilde G_t &= Q_L^\top G_t Q_R, \qquad
        M_t = \beta_1 M_{t-1} + (1-\beta_1) \tilde G_t, \qquad
        V_t = \beta_2 V_{t-1} + (1-\beta_2) \tilde G_t^2 \\
        \Theta_t &= \Theta_{t-1} - \alpha \left( \frac{1}{w_t} Q_L
        \frac{M_t}{\sqrt{V_t} + \epsilon} Q_R^\top + \lambda \Theta_{t-1} \right), \qquad
        w_t = \frac{1-\beta_1^t}{\sqrt{1-\beta_2^t}}

    The basis is :func:`eigenbasis`. The first gradient is used for the basis only: the parameters
    do not change in the first step, and t counts the steps after it. When the basis changes, M is
    turned into it and V is sorted. For arrays that are no matrices it is Adam.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √V.
        weight_decay: λ ≥ 0.
        shampoo_beta: the decay rate of the averages of GGᵀ and GᵀG; None for β₂.
        every, max_size, one_sided, spread, axes: see :func:`eigenbasis`.

    The authors' code refreshes all bases in the same steps (``spread=False``), decays the weights
    after the step, and turns each axis of an array with more than two axes.

    Source: Vyas et al. 2024 (arXiv 2409.11321), Algorithm 3; defaults of the authors' code.

    >>> opt = adamx.soap(3e-3)
    >>> print(opt)
    delay_start(chain(
        in_basis(eigenbasis(b2=0.95, every=10, max_size=10000, spread=True), chain(
            scale_by_momentum(b1=0.95),
            scale_by_rms(b2=0.95, eps=0.0, eps_hat=1e-08),
        )),
        bias_correction(),
        add_decayed_weights(weight_decay=0.01),
        scale_by_learning_rate(learning_rate=0.003),
    ))
    """
    basis = eigenbasis(
        b2 if shampoo_beta is None else shampoo_beta,
        every=every,
        max_size=max_size,
        one_sided=one_sided,
        spread=spread,
        axes=axes,
    )
    return delay_start(
        chain(
            in_basis(basis, _uncorrected_adam(b1, b2, eps)),
            bias_correction(),
            add_decayed_weights(weight_decay),
            scale_by_learning_rate(learning_rate),
        )
    )


@recipe
def kl_soap(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
    *,
    shampoo_beta: Decay | None = None,
    every: int = 10,
    max_size: int = 10_000,
    one_sided: bool = False,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""KL-SOAP: SOAP whose averages of GGᵀ and GᵀG weigh one side by the other's eigenvalues.

    .. math::
        \tilde G_t &= Q_L^\top G_t Q_R, \qquad
        M_t = \beta_1 M_{t-1} + (1-\beta_1) \tilde G_t, \qquad
        V_t = \beta_2 V_{t-1} + (1-\beta_2) \tilde G_t^2 \\
        \Theta_t &= \Theta_{t-1} - \alpha \left( \frac{1}{w_t} Q_L
        \frac{M_t}{\sqrt{V_t} + \epsilon} Q_R^\top + \lambda \Theta_{t-1} \right), \qquad
        w_t = \frac{1-\beta_1^t}{\sqrt{1-\beta_2^t}}

    The basis is :func:`kl_eigenbasis`; all else is as in :func:`soap`.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0, added to √V, and the smallest eigenvalue by which a side is weighed.
        weight_decay: λ ≥ 0.
        shampoo_beta: the decay rate of the averages of the basis; None for β₂.
        every, max_size, one_sided, spread, axes: see :func:`eigenbasis`.

    Source: Lin et al. 2025 (arXiv 2509.03378).

    >>> opt = adamx.kl_soap(3e-3)
    >>> jax.tree.map(jnp.shape, opt.init(jnp.zeros((3, 2)))["kl_eigenbasis"]["left"])
    (3, 3)
    """
    basis = kl_eigenbasis(
        b2 if shampoo_beta is None else shampoo_beta,
        eps,
        every=every,
        max_size=max_size,
        one_sided=one_sided,
        spread=spread,
        axes=axes,
    )
    return delay_start(
        chain(
            in_basis(basis, _uncorrected_adam(b1, b2, eps)),
            bias_correction(),
            add_decayed_weights(weight_decay),
            scale_by_learning_rate(learning_rate),
        )
    )


@recipe
def splus(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    weight_decay: NonNegative = 0.01,
    *,
    decay: Decay = 0.999,
    vector_scale: float = 1e-3,
    every: int = 100,
    max_size: int = 10_000,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""SPlus: the signs of the momentum in the eigenvectors of the averages of GGᵀ and GᵀG.

    .. math::
        M_t &= \beta_1 M_{t-1} + (1-\beta_1) G_t \\
        \Theta_t &= \Theta_{t-1} - \alpha \frac{2}{m + n} \left(
        Q_L\, \text{sign}(Q_L^\top M_t Q_R)\, Q_R^\top + \lambda \Theta_{t-1} \right)

    for a matrix of m rows and n columns. For other arrays it is signum with α/1000. Training uses
    :math:`\Theta`; :func:`polyak_params` returns the average of its iterates, for evaluation.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1), of the averages of GGᵀ and GᵀG.
        weight_decay: λ ≥ 0.
        decay: of the average of the iterates.
        vector_scale: the factor of α for arrays that are no matrices.
        every, max_size, spread, axes: see :func:`eigenbasis`. The eigenvectors are computed
            exactly.

    The authors refresh all bases at the end of every hundredth step, and decay the weights after
    the step.

    Source: Frans, Levine & Abbeel 2025 (arXiv 2506.07254), Algorithm 1.

    >>> opt = adamx.splus(0.1)
    >>> theta = jnp.zeros((3, 2))
    >>> opt.update(jnp.ones((3, 2)), opt.init(theta), theta)[0].round(3)
    Array([[-0.04, -0.04],
           [-0.04, -0.04],
           [-0.04, -0.04]], dtype=float32)
    """
    basis = eigenbasis(b2, every=every, max_size=max_size, exact=True, spread=spread, axes=axes)
    return chain(
        scale_by_momentum(b1),
        in_basis(basis, sign()),
        add_decayed_weights(weight_decay),
        scale_by_shape("splus", axes=axes, otherwise=vector_scale),
        scale_by_learning_rate(learning_rate),
        polyak_ema(decay),
    )


@recipe
def galore(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    rank: int = 128,
    every: int = 200,
    scaling: Real = 0.25,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""GaLore: Adam on the projection of each matrix to its largest singular vectors.

    .. math::
        \tilde G_t &= P^\top G_t, \qquad
        M_t = \beta_1 M_{t-1} + (1-\beta_1) \tilde G_t, \qquad
        V_t = \beta_2 V_{t-1} + (1-\beta_2) \tilde G_t^2 \\
        \Theta_t &= \Theta_{t-1} - \alpha \left( \frac{s}{w_t} P \frac{M_t}{\sqrt{V_t} + \epsilon}
        + \lambda \Theta_{t-1} \right), \qquad w_t = \frac{1-\beta_1^t}{\sqrt{1-\beta_2^t}}

    for a matrix with at most as many rows as columns, see :func:`low_rank`. M and V have r rows
    only. For arrays that are no matrices it is Adam, with the factor s, too; choose the matrices
    by :func:`partition`.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √V.
        weight_decay: λ ≥ 0.
        rank: r, the rows of the projection.
        every: the number of steps between projections.
        scaling: s, the factor of the update.
        spread, axes: see :func:`low_rank`.

    The authors' code projects all matrices anew in the same steps (``spread=False``) and decays
    the weights after the step.

    Source: Zhao et al. 2024 (arXiv 2403.03507), Algorithm 2.

    >>> opt = adamx.galore(1e-3, rank=2)
    >>> jax.tree.map(jnp.shape, opt.init(jnp.zeros((4, 8)))["scale_by_rms"]["nu"])
    (2, 8)
    """
    adam = _uncorrected_adam(b1, b2, eps)
    return chain(
        in_basis(low_rank(rank, every=every, spread=spread, axes=axes), adam),
        scale(scaling),
        bias_correction(),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def fira(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    rank: int = 128,
    every: int = 200,
    scaling: Real = 0.25,
    growth: Positive = 1.01,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""Fira: GaLore, plus the part of the gradient that the projection leaves out.

    .. math::
        \tilde U_t = \frac{M_t}{\sqrt{V_t} + \epsilon}, \qquad
        U_t = P \tilde U_t + \frac{\lVert \tilde U_t \rVert}{\lVert \tilde G_t \rVert}
        (G_t - P \tilde G_t)

    with the projection and the moments of :func:`galore`; the norms are those of each column, and
    the norm of the second term grows by 1 % a step at most (:func:`leave_with_residual`).

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √V.
        weight_decay: λ ≥ 0.
        rank, every, scaling, spread, axes: see :func:`galore`.
        growth: the largest growth of the second term's norm in a step.

    With ``scaling=1``, equals the authors' code; there the factor applies to P only.

    Source: Chen et al. 2024 (arXiv 2410.01623), Algorithm 1.

    >>> opt = adamx.fira(1e-3, rank=2)
    >>> jax.tree.map(jnp.shape, opt.init(jnp.zeros((4, 8)))["scale_by_rms"]["nu"])
    (2, 8)
    """
    adam = _uncorrected_adam(b1, b2, eps)
    basis = low_rank(rank, every=every, spread=spread, axes=axes)
    return chain(
        in_basis(basis, adam, leave=leave_with_residual(growth)),
        scale(scaling),
        bias_correction(),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def apollo(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    rank: int = 256,
    every: int = 200,
    scaling: float = 1.0,
    per: str = "channel",
    growth: Positive = 1.01,
    seed: int = 0,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""APOLLO: gradient descent with step sizes from Adam on a random projection.

    .. math::
        \tilde G_t = P^\top G_t, \qquad \tilde U_t = \frac{M_t}{\sqrt{V_t} + \epsilon}, \qquad
        U_{t,j} = \sqrt{s} \frac{\lVert \tilde U_{t,j} \rVert}{\lVert \tilde G_{t,j} \rVert} G_{t,j}

    where M and V are Adam's moments of G̃, and j is a column. The norm of U grows by 1 % a step at
    most. P is not kept, but computed from a key. APOLLO-Mini is
    ``apollo(…, rank=1, per="tensor", scaling=128)``.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √V.
        weight_decay: λ ≥ 0.
        rank: r, the rows of the projection.
        every: the number of steps for which P stays.
        scaling: s ≥ 0.
        per: "channel", or "tensor" for one factor for each matrix.
        growth: the largest growth of the update's norm in a step.
        seed: of the key.
        axes: see :func:`random_projection`.

    The authors' code draws other random numbers, and decays the weights after the step.

    Source: Zhu et al. 2024 (arXiv 2412.05270), Algorithm 1.

    >>> opt = adamx.apollo(1e-3, rank=2)
    >>> jax.tree.map(jnp.shape, opt.init(jnp.zeros((4, 8)))["scale_by_rms"]["nu"])
    (2, 8)
    """
    adam = _uncorrected_adam(b1, b2, eps)
    basis = random_projection(rank, every=every, seed=seed, axes=axes)
    return chain(
        in_basis(basis, adam, leave=leave_by_scaling(per)),
        limit_growth(growth),
        scale(scaling**0.5),
        bias_correction(),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def shampoo(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Positive = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    graft_eps: NonNegative = 1e-8,
    every: int = 10,
    max_size: int = 10_000,
    spread: bool = True,
    axes: MatrixAxes = kernel_axes,
) -> Transformation:
    r"""Shampoo: momentum between roots of the averages of GGᵀ and GᵀG, as large as RMSProp's step.

    .. math::
        S_t = (\hat L_t + \epsilon \ell I)^{-1/4}\, M_t\, (\hat R_t + \epsilon r I)^{-1/4}, \qquad
        \Theta_t = \Theta_{t-1} - \alpha \left(
        \left\lVert \frac{G_t}{\sqrt{\hat V_t} + \hat\epsilon} \right\rVert
        \frac{S_t}{\lVert S_t \rVert} + \lambda \Theta_{t-1} \right)

    L and R are averages of GGᵀ and GᵀG (:func:`scale_by_kronecker_roots`), M and V those of
    G and G² (:func:`graft_to_rms`).

    Args:
        learning_rate: α ≥ 0; that of Adam suits.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0, relative to the largest eigenvalue.
        weight_decay: λ ≥ 0.
        graft_eps: ε̂ ≥ 0, added to √V̂.
        every, max_size, spread, axes: see :func:`scale_by_kronecker_roots`.

    Source: Gupta, Koren & Singer 2018 (arXiv 1802.09568); grafting from Agarwal et al. 2020 (arXiv
    2002.11803).

    >>> opt = adamx.shampoo(0.1)
    >>> theta = jnp.zeros((2, 2))
    >>> opt.update(jnp.array([[1.0, 0.0], [0.0, -2.0]]), opt.init(theta), theta)[0].round(3)
    Array([[-0.1, -0. ],
           [-0. ,  0.1]], dtype=float32)
    """
    roots = scale_by_kronecker_roots(
        b2, eps, every=every, max_size=max_size, spread=spread, axes=axes
    )
    return chain(
        scale_by_momentum(b1),
        roots,
        graft_to_rms(b2, graft_eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
