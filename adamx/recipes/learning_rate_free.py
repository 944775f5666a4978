"""Prodigy: Adam with an estimated learning rate."""

from __future__ import annotations

import math

from adamx.core import Decay, NonNegative, Positive, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    estimate_distance,
    scale_by_distance,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
)

__all__ = ["prodigy"]


@recipe
def prodigy(
    learning_rate: NonNegative = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    growth_rate: Positive = math.inf,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
) -> Transformation:
    r"""Prodigy: Adam whose step size is the estimated distance to the solution.

    .. math::
        r_t &= \beta_3 r_{t-1} + \eta_t d_{t-1}^2 \langle g_t, \theta_0 - \theta_{t-1} \rangle,
        \qquad s_t = \beta_3 s_{t-1} + \eta_t d_{t-1}^2 g_t \\
        \hat d_t &= c\, r_t / \lVert s_t \rVert_1, \qquad
        d_t = \min(D_t, \gamma d_{t-1}), \qquad D_t = \max(D_{t-1}, \hat d_t), \qquad D_0 = d_0 \\
        m_t &= \beta_1 m_{t-1} + (1-\beta_1)\, d_{t-1} g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2)\, d_{t-1}^2 |g_t|^2 \\
        \theta_t &= \theta_{t-1} - \eta_t d_{t-1} \left(
        \frac{m_t}{\sqrt{v_t} + \epsilon d_t} + \lambda \theta_{t-1} \right)

    with :math:`\eta_t = \alpha_t`, or
    :math:`\alpha_t \sqrt{1-\beta_2^t} / (1-\beta_1^t)` with ``use_bias_correction``. A *schedule*
    for α (a decay from 1 to 0) is as useful as with any other rule; its scale is found.

    Args:
        learning_rate: α ≥ 0, to be left at 1 or scheduled from there: the method finds the rate, so
            that 1 is its default.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        b3: β₃ in [0, 1); √β₂ if None.
        eps: ε ≥ 0, multiplied by d and added to √v.
        weight_decay: λ ≥ 0, decoupled.
        d0: d₀ > 0, the initial estimate, which should be too small.
        d_coef: c > 0, the hyperparameter to tune: 0.5 for smaller steps, 2 for larger ones.
        growth_rate: γ > 1, the largest factor by which d grows in a step; 1.02 acts as a warm-up.
        use_bias_correction: correct the averages for their start at zero.
        safeguard_warmup: omit η from s; use it for schedules that start near 0.

    Equals prodigyopt.Prodigy with ``decouple``; for its other weight decay, put
    ``add_decayed_weights`` before the recipe. As there, the averages and the step contain the old
    d, and ε is multiplied by the new d. There are two differences. Steps with α = 0 count as steps
    here, but prodigyopt skips them. First steps whose gradients are all zero count for the bias
    correction here. optax.contrib.prodigy always corrects the bias and has no growth rate.

    Source: Mishchenko & Defazio 2024 (arXiv 2306.06101), Section 5; konstmish/prodigy.

    >>> opt = adamx.prodigy()
    >>> theta = jnp.array([3.0, -2.0])
    >>> state = opt.init(theta)
    >>> for _ in range(200):
    ...     updates, state = opt.update(2 * theta, state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    >>> bool(jnp.abs(theta).max() < 0.1)
    True
    """
    own = {} if b3 is None else {"b3": b3}
    return chain(
        estimate_distance(  # new in Prodigy
            d0,
            d_coef=d_coef,
            growth_rate=growth_rate,
            safeguard_warmup=safeguard_warmup,
            bias_corrected=use_bias_correction,
            **own,
        ),
        scale_by_momentum(b1),
        scale_by_rms(b2, eps=0.0, eps_hat=eps),
        add_decayed_weights(weight_decay),
        bias_correction() if use_bias_correction else chain(),
        scale_by_distance(),
        scale_by_learning_rate(learning_rate),
    )
