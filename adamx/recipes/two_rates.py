"""Adam with a second, slower momentum."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    scale_by_learning_rate,
    scale_by_mixed_momentum,
    scale_by_rms,
)

__all__ = ["ademamix"]


@recipe
def ademamix(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    alpha: NonNegative = 2.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    alpha_warmup: NonNegative = 0.0,
    b3_warmup: NonNegative = 0.0,
) -> Transformation:
    r"""AdEMAMix: AdamW with a mixture of a fast and a slow momentum.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
        n_t = \beta_3 n_{t-1} + (1-\beta_3) g_t \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2 \\
        \theta_t &= \theta_{t-1} - \eta \left(
        \frac{\hat m_t + \alpha n_t}{\sqrt{\hat v_t} + \epsilon} + \lambda \theta_{t-1} \right)

    The slow momentum is not corrected; it grows from zero. With α = 0, this is AdamW. The warm-ups
    follow the paper, which recommends the number of steps of the training for T. For other
    warm-ups, pass schedules as ``alpha`` and ``b3``.

    Args:
        learning_rate: η ≥ 0; the authors' default is 1e-3.
        b1: β₁ in [0, 1), the decay rate of the fast momentum.
        b2: β₂ in [0, 1).
        b3: β₃ in [0, 1), the decay rate of the slow momentum.
        alpha: α ≥ 0. The authors' PyTorch code uses 2, their JAX code (and optax.contrib) 5; the
            paper recommends 4 to 10.
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0, multiplied with η.
        alpha_warmup: the steps in which α grows from 0, α t/T; 0 for none.
        b3_warmup: the steps in which β₃ grows from β₁, so that its half-life grows linearly:
            :math:`1/\log\beta_3(t)` goes from :math:`1/\log\beta_1` to :math:`1/\log\beta_3`;
            0 for none.

    Equals the authors' PyTorch code and, without warm-ups, optax.contrib.ademamix. During the
    warm-up of β₃, the PyTorch code adds 1e-8 inside the logarithm, which shortens a half-life of
    7000 steps by a factor of 1 − 1e-4. The authors' JAX code counts steps from 0; this recipe
    counts from 1, as in the paper.

    Source: Pagliardini, Ablin & Grangier 2024 (arXiv 2409.03137), Algorithm 1 and Appendix A.1.

    >>> opt = adamx.ademamix(0.1, alpha=8.0, alpha_warmup=1000, b3_warmup=1000)
    >>> theta = jnp.zeros(2)
    >>> opt.update(jnp.array([3.0, -1.0]), opt.init(theta), theta)[0].round(3)
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        # Replaces Adam's momentum.
        scale_by_mixed_momentum(b1, b3, alpha, alpha_warmup=alpha_warmup, b3_warmup=b3_warmup),
        scale_by_rms(b2, eps),
        bias_correction(),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
