"""Recipes for the hidden matrices of a network, and what goes with them for all other arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optax

from adamx.core import Decay, NonNegative, Transformation, chain
from adamx.numerics.matrices import MatrixAxes, kernel_axes
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    hyperball,
    orthogonalize,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
    scale_by_row_rms,
    scale_by_shape,
    scale_to_rms,
    sign,
    update_as_gradient,
)
from adamx.wrappers.groups import in_two
from adamx.wrappers.selection import Selector, hidden_matrices

__all__ = ["adamuon", "muon", "muon_h", "normuon"]


def divided(
    inner: Transformation, rest: optax.GradientTransformation | None, matrices: Selector | None
) -> Transformation:
    """One optimiser for the matrices, and another for the rest of the parameters."""
    if rest is None and matrices is None:
        return inner
    if rest is None:
        raise ValueError(
            "matrices= chooses the parameters of this optimiser; pass rest=, the optimiser of the "
            "others, too"
        )
    return in_two(hidden_matrices if matrices is None else matrices, inner, rest)


@recipe
def muon(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    *,
    nesterov: bool = True,
    coefficients: str | Sequence[Any] = "muon5",
    scaling: str | Callable[[int, int], float] = "original",
    axes: MatrixAxes = kernel_axes,
    rest: optax.GradientTransformation | None = None,
    matrices: Selector | None = None,
) -> Transformation:
    r"""Muon: momentum whose matrices are made orthogonal.

    .. math::
        M_t &= \beta_1 M_{t-1} + (1-\beta_1) G_t, \qquad
        U_t = \beta_1 M_t + (1-\beta_1) G_t \\
        \Theta_t &= \Theta_{t-1} - \alpha \left( s\, \text{orth}(U_t)
        + \lambda \Theta_{t-1} \right)

    where orth is a Newton–Schulz iteration (:func:`orthogonalize`) and s a factor of the matrix'
    shape (:func:`scale_by_shape`).

    It is meant for the hidden matrices of a network. ``rest`` is the optimiser of all other
    parameters: biases, gains, embeddings and the last layer; :func:`hidden_matrices` tells which
    are which. :func:`describe_partition` prints the chain of each parameter.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        weight_decay: λ ≥ 0, of the matrices.
        nesterov: whether U is one step ahead, as in the equation; otherwise it is M.
        coefficients: of the iteration, see :func:`orthogonalize`.
        scaling: the rule for s, see :func:`scale_by_shape`; with ``"adamw_rms"``, use the
            learning rate and the weight decay of AdamW.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.
        rest: the optimiser of parameters that are not chosen by ``matrices``. None if all are
            matrices.
        matrices: a selector of the hidden matrices, see :func:`adamx.where`; by default
            :func:`hidden_matrices`.

    Equals torch.optim.Muon (its weight matrices are [out, in], its default decay is 0.1, its
    products are in bfloat16) and the Muon of Jordan et al. optax.contrib.muon corrects the bias of
    the momentum, which the iteration cancels but for its ε.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon).

    Raises:
        ValueError: for ``matrices`` without ``rest``.
        StageError: from ``update``, if parameters with fewer than two axes are left to Muon.

    >>> opt = adamx.muon(0.02, rest=adamx.adamw(3e-4))
    >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    >>> print(adamx.describe_partition(opt, params))
    dense/bias [2]:
        chain(
            scale_by_momentum(b1=0.9),
            scale_by_rms(b2=0.999, eps=1e-08),
            bias_correction(),
            add_decayed_weights(weight_decay=0.01),
            scale_by_learning_rate(learning_rate=0.0003),
        )
    dense/kernel [4,2]:
        chain(
            scale_by_momentum(b1=0.95, nesterov=True),
            orthogonalize(coefficients='muon5', axes='matrix'),
            scale_by_shape(rule='original', axes='matrix'),
            add_decayed_weights(),
            scale_by_learning_rate(learning_rate=0.02),
        )
    """
    inner = chain(
        scale_by_momentum(b1, nesterov=nesterov),
        orthogonalize(coefficients, axes=axes),
        scale_by_shape(scaling, axes=axes),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
    return divided(inner, rest, matrices)


@recipe
def normuon(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    nesterov: bool = True,
    coefficients: str | Sequence[Any] = "muon5",
    scaling: str | Callable[[int, int], float] = "original",
    axes: MatrixAxes = kernel_axes,
    rest: optax.GradientTransformation | None = None,
    matrices: Selector | None = None,
) -> Transformation:
    r"""NorMuon: Muon whose outputs have updates of about equal size.

    .. math::
        M_t &= \beta_1 M_{t-1} + (1-\beta_1) G_t, \qquad
        O_t = \text{orth}(\beta_1 M_t + (1-\beta_1) G_t) \\
        v_{t,j} &= \beta_2 v_{t-1,j} + (1-\beta_2) \operatorname{mean}_i O_{t,ij}^2, \qquad
        \tilde O_{t,ij} = \frac{O_{t,ij}}{\sqrt{v_{t,j}} + \epsilon} \\
        \Theta_t &= \Theta_{t-1} - \alpha \left( s
        \frac{\lVert O_t \rVert_F}{\lVert \tilde O_t \rVert_F} \tilde O_t
        + \lambda \Theta_{t-1} \right)

    for input i and output j of a kernel [in, out]. s is a factor of the matrix' shape.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v.
        weight_decay: λ ≥ 0, of the matrices.
        nesterov, coefficients, scaling, axes, rest, matrices: see :func:`muon`.

    The paper scales the update to an RMS of 0.2, which is
    ``chain(…, scale_by_row_rms(), scale_to_rms(0.2), …)``.

    Source: Li et al. 2025 (arXiv 2510.05491), Algorithm 1; the norm is restored as in Dion's code.

    >>> opt = adamx.normuon(0.1)
    >>> theta = jnp.zeros((1, 2))
    >>> opt.update(jnp.array([[3.0, 4.0]]), opt.init(theta), theta)[0].shape
    (1, 2)
    """
    inner = chain(
        scale_by_momentum(b1, nesterov=nesterov),
        orthogonalize(coefficients, axes=axes),
        scale_by_row_rms(b2, eps, axes=axes),  # new in NorMuon
        scale_by_shape(scaling, axes=axes),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
    return divided(inner, rest, matrices)


@recipe
def adamuon(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    nesterov: bool = True,
    coefficients: str | Sequence[Any] = "muon5",
    axes: MatrixAxes = kernel_axes,
    rest: optax.GradientTransformation | None = None,
    matrices: Selector | None = None,
) -> Transformation:
    r"""AdaMuon: Muon of the momentum's signs, divided by the RMS of its own updates.

    .. math::
        M_t &= \beta_1 M_{t-1} + (1-\beta_1) G_t, \qquad
        O_t = \text{orth}(\text{sign}(\beta_1 M_t + (1-\beta_1) G_t)) \\
        V_t &= \beta_2 V_{t-1} + (1-\beta_2) O_t^2, \qquad
        \tilde O_t = \frac{O_t}{\sqrt{V_t} + \epsilon} \\
        \Theta_t &= \Theta_{t-1} - \alpha \left( \frac{0.2}{\text{RMS}(\tilde O_t)} \tilde O_t
        + \lambda \Theta_{t-1} \right)

    The second moment is one of the orthogonal updates, not of the gradients.

    Args:
        learning_rate: α ≥ 0; that of AdamW suits.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √V.
        weight_decay: λ ≥ 0, of the matrices.
        nesterov: whether the momentum is one step ahead, as in the equation and the authors' code;
            otherwise it is M, as in the paper.
        coefficients, axes, rest, matrices: see :func:`muon`.

    Source: Si et al. 2025 (arXiv 2507.11005), Algorithm 1.

    >>> opt = adamx.adamuon(0.1)
    >>> theta = jnp.zeros((1, 2))
    >>> opt.update(jnp.array([[3.0, 4.0]]), opt.init(theta), theta)[0].round(3)
    Array([[-0.02, -0.02]], dtype=float32)
    """
    inner = chain(
        scale_by_momentum(b1, nesterov=nesterov),
        sign(),
        orthogonalize(coefficients, axes=axes),
        update_as_gradient(),
        scale_by_rms(b2, eps=0.0, eps_hat=eps),
        scale_to_rms(0.2),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
    return divided(inner, rest, matrices)


@recipe
def muon_h(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    *,
    nesterov: bool = True,
    coefficients: str | Sequence[Any] = "muon5",
    axes: MatrixAxes = kernel_axes,
    rest: optax.GradientTransformation | None = None,
    matrices: Selector | None = None,
) -> Transformation:
    r"""MuonH: Muon that keeps the norm of each array.

    .. math::
        M_t &= \beta_1 M_{t-1} + (1-\beta_1) G_t, \qquad
        O_t = \text{orth}(\beta_1 M_t + (1-\beta_1) G_t) \\
        \Theta'_t &= \Theta_{t-1} - \alpha \lVert \Theta_{t-1} \rVert
        \frac{O_t}{\lVert O_t \rVert}, \qquad
        \Theta_t = \lVert \Theta_{t-1} \rVert \frac{\Theta'_t}{\lVert \Theta'_t \rVert}

    There is neither weight decay nor a factor of the matrix' shape: the step is in proportion to
    the norm. An array of several layers has one norm.

    Args:
        learning_rate: α ≥ 0, relative to the norm; the root of Muon's α times its λ suits.
        b1: β₁ in [0, 1).
        nesterov, coefficients, axes, rest, matrices: see :func:`muon`.

    Source: Marin's MuonH (Levanter, optim/muonh.py), which has an Adam on spheres for the last
    layer, ``hyperball`` behind Adam's stages.

    >>> opt = adamx.muon_h(0.1)
    >>> theta = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> u, _ = opt.update(jnp.eye(2), opt.init(theta), theta)
    >>> jnp.linalg.norm(theta + u).round(4)
    Array(5., dtype=float32)
    """
    inner = chain(
        scale_by_momentum(b1, nesterov=nesterov),
        orthogonalize(coefficients, axes=axes),
        hyperball(learning_rate, radius="current"),  # new in MuonH
    )
    return divided(inner, rest, matrices)
