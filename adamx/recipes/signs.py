"""Recipes that use the signs of the momentum or the gradient."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Positive, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    align_with_gradient,
    bias_correction,
    cautious,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
    scale_by_two_rate_momentum,
    sign,
)

__all__ = ["cautious_adamw", "grams", "lion", "signum"]


@recipe
def signum(learning_rate: NonNegative, b1: Decay = 0.9) -> Transformation:
    r"""Signum: the sign of the momentum.

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
        \theta_t = \theta_{t-1} - \alpha \operatorname{sign}(m_t)

    With β₁ = 0 it is signSGD. Adam with β₁ = β₂ = 0 and ε = 0 is signSGD too.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).

    Equals optax.signum with ``beta=b1``. The sign of a complex number u is u/|u|.

    Source: Bernstein et al. 2018 (arXiv 1802.04434), Algorithm 2.

    >>> opt = adamx.signum(0.1)
    >>> opt.update(jnp.array([3.0, 0.0, -1e-3]), opt.init(jnp.zeros(3)))[0]
    Array([-0.1, -0. ,  0.1], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        sign(),  # in the place of Adam's second moment
        scale_by_learning_rate(learning_rate),
    )


@recipe
def lion(
    learning_rate: NonNegative, b1: Decay = 0.9, b2: Decay = 0.99, weight_decay: NonNegative = 0.0
) -> Transformation:
    r"""Lion: the sign of a momentum in which the gradient has more weight than in its memory.

    .. math::
        c_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t \\
        \theta_t &= \theta_{t-1} - \alpha (\operatorname{sign}(c_t) + \lambda \theta_{t-1}) \\
        m_t &= \beta_2 m_{t-1} + (1-\beta_2) g_t

    With β₁ = β₂ it is :func:`signum` with decoupled weight decay.

    Args:
        learning_rate: α ≥ 0; the authors' default is 1e-4. Use a third to a tenth of AdamW's rate.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        weight_decay: λ ≥ 0, multiplied by α. Use three to ten times AdamW's weight decay.

    Equals lion-pytorch, and optax.lion with this ``weight_decay`` (its default is 1e-3). The sign
    of a complex number u is u/|u|.

    Source: Chen et al. 2023 (arXiv 2302.06675), Algorithm 2.

    >>> opt = adamx.lion(1e-4)
    >>> theta = jnp.zeros(2)
    >>> opt.update(jnp.array([3.0, -1e-3]), opt.init(theta), theta)[0]
    Array([-0.0001,  0.0001], dtype=float32)
    """
    return chain(
        scale_by_two_rate_momentum(b1, b2),
        sign(),  # in the place of Adam's second moment
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def cautious_adamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    floor: Positive = 1e-3,
    eps_hat: NonNegative = 0.0,
) -> Transformation:
    r"""C-AdamW: AdamW without the coordinates whose step disagrees with the gradient.

    .. math::
        u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \quad
        \phi_t = \mathbb 1[u_t \cdot g_t > 0], \quad
        \theta_t = \theta_{t-1} - \alpha \left(
        \frac{\phi_t u_t}{\max(\operatorname{mean}(\phi_t), c)} + \lambda \theta_{t-1} \right)

    Args:
        learning_rate: α ≥ 0; the authors' default is 1e-3.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂, as the paper has it.
        weight_decay: λ ≥ 0, multiplied by α; it is not masked.
        floor: c > 0, a lower bound for the fraction of remaining coordinates; see :func:`cautious`.
        eps_hat: ε̂ ≥ 0, added to √v before the correction, as the authors' code has it.

    Equals C-Optim's AdamW (not its ``foreach`` path) with ``eps=0, eps_hat=ε``.

    Source: Liang et al. 2024 (arXiv 2411.16085), Algorithm 1.

    >>> opt = adamx.cautious_adamw(0.25)
    >>> theta = jnp.zeros(2)
    >>> opt.update(jnp.array([3.0, 0.0]), opt.init(theta), theta)[0].round(5)
    Array([-0.5, -0. ], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps, eps_hat=eps_hat),
        bias_correction(),
        cautious(floor),  # new in C-AdamW
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def grams(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    eps_hat: NonNegative = 0.0,
) -> Transformation:
    r"""Grams: steps with the size of Adam's and the sign of the gradient.

    .. math::
        u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \qquad
        \theta_t = \theta_{t-1} - \alpha \left( |u_t| \operatorname{sign}(g_t)
        + \lambda \theta_{t-1} \right)

    Args:
        learning_rate: α ≥ 0; the authors' default is 1e-3.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂, as the paper has it.
        weight_decay: λ ≥ 0, multiplied with α.
        eps_hat: ε̂ ≥ 0, added to √v before the correction, as the authors' code has it.

    Equals the authors' Grams with ``eps=0, eps_hat=ε``.

    Source: Cao, Li & Song 2024 (arXiv 2412.17107), Algorithm 1.

    >>> opt = adamx.grams(0.1)
    >>> theta = jnp.zeros(2)
    >>> opt.update(jnp.array([3.0, -1.0]), opt.init(theta), theta)[0].round(5)
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps, eps_hat=eps_hat),
        bias_correction(),
        align_with_gradient(),  # new in Grams
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
