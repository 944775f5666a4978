"""Recipes that use the change of the gradient between steps: Adan and MARS."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Positive, Transformation, chain
from adamx.recipes.adaptive_moments import adamw
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    clip_by_norm,
    proximal_step,
    reduce_variance,
    scale_by_extrapolated_momentum,
    scale_by_learning_rate,
    scale_by_rms,
)

__all__ = ["adan", "mars"]


@recipe
def adan(
    learning_rate: NonNegative,
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    proximal: bool = True,
) -> Transformation:
    r"""Adan: Adam with Nesterov momentum, estimated from differences of gradients.

    .. math::
        d_t &= g_t - g_{t-1}, \qquad d_1 = 0 \\
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
        n_t = \beta_2 n_{t-1} + (1-\beta_2) d_t \\
        v_t &= \beta_3 v_{t-1} + (1-\beta_3) |g_t + \beta_2 d_t|^2 \\
        \theta_t &= \frac{1}{1 + \alpha \lambda} \left( \theta_{t-1}
        - \alpha \frac{\hat m_t + \beta_2 \hat n_t}{\sqrt{\hat v_t} + \epsilon} \right)

    Args:
        learning_rate: α ≥ 0; the authors' default is 1e-3.
        b1: β₁ in [0, 1), the weight of the old average; the paper calls it 1 − β₁.
        b2: β₂ in [0, 1), in the same convention.
        b3: β₃ in [0, 1), in the same convention.
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0.
        proximal: use proximal weight decay. False for AdamW's decay, which the authors' code calls
            ``no_prox``.

    Equals the authors' Adan, which corrects the averages; the paper instead starts them with the
    first gradient. optax.adan extrapolates with 1 − β₂ = 0.08 instead of β₂ = 0.92, because it uses
    the paper's formula with the opposite convention for β.

    Source: Xie et al. 2022 (arXiv 2208.06677), Algorithm 1.

    >>> opt = adamx.adan(1e-3)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.001,  0.001], dtype=float32)
    """
    step = (
        proximal_step(learning_rate, weight_decay)
        if proximal
        else chain(add_decayed_weights(weight_decay), scale_by_learning_rate(learning_rate))
    )
    return chain(
        scale_by_extrapolated_momentum(b1, b2),  # replaces Adam's momentum
        scale_by_rms(b3, eps),
        bias_correction(),
        step,
    )


@recipe
def mars(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    gamma: NonNegative = 0.025,
    max_norm: Positive = 1.0,
) -> Transformation:
    r"""MARS-AdamW: AdamW with variance-reduced gradients.

    .. math::
        c_t &= g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad g_0 = 0 \\
        \tilde c_t &= c_t \min(1, 1 / \lVert c_t \rVert) \\
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) \tilde c_t, \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |\tilde c_t|^2 \\
        \theta_t &= \theta_{t-1} - \alpha \left( \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
        + \lambda \theta_{t-1} \right)

    :func:`reduce_variance` can be used before any other recipe, too:
    ``chain(reduce_variance(b1), clip_by_norm(1.0), lion(rate, b1, b2))``.

    Args:
        learning_rate: α ≥ 0; the authors' default is 3e-3.
        b1: β₁ in [0, 1), used by the momentum and by the variance reduction.
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0, multiplied by α.
        gamma: γ ≥ 0; with 0 it is AdamW with clipping.
        max_norm: the largest norm of the variance-reduced gradient c of each array.

    Equals the authors' MARS with ``optimize_1d=True`` in its approximate form, which uses the
    gradient of the previous batch. By default, the authors' code uses a separate AdamW for vectors.
    It keeps a reference to ``p.grad`` as the previous gradient; if gradients are zeroed in place,
    its difference is always 0. In the paper the first difference is 0; in the authors' code it is
    g₁. Clipping hides this in arrays whose first gradient is large.

    Source: Yuan et al. 2024 (arXiv 2411.10438), Algorithm 2.

    >>> opt = adamx.mars(3e-3)
    >>> theta = jnp.zeros(2)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(theta), theta)[0]
    Array([-0.003,  0.003], dtype=float32)
    """
    return chain(
        reduce_variance(gamma=gamma),  # new in MARS
        clip_by_norm(max_norm),
        adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay),
    )
