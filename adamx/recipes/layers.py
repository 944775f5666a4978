"""Recipes with layer-wise step sizes, from norms of whole arrays."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    scale_by_heavy_ball,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_norm,
    scale_by_rms,
    trust_ratio,
)

__all__ = ["lamb", "lars", "novograd"]


@recipe
def lamb(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Transformation:
    r"""LAMB: AdamW whose step for each array is proportional to the norm of its parameters.

    .. math::
        r_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1} - \alpha \frac{\lVert \theta_{t-1} \rVert}{\lVert r_t \rVert} r_t

    The ratio is 1 if one of the norms is 0.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0; the norm of the update includes it.

    Equals optax.lamb. Keras' Lamb has ε = 1e-7.

    Source: You et al. 2019 (arXiv 1904.00962), Algorithm 2, with φ the identity.

    >>> opt = adamx.lamb(0.1)
    >>> theta = jnp.array([3.0, 4.0])
    >>> opt.update(jnp.array([1.0, -1.0]), opt.init(theta), theta)[0].round(5)
    Array([-0.35355,  0.35355], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps),
        bias_correction(),
        add_decayed_weights(weight_decay),
        trust_ratio(),  # new in LAMB
        scale_by_learning_rate(learning_rate),
    )


@recipe
def lars(
    learning_rate: NonNegative,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    trust_coefficient: NonNegative = 0.001,
    eps: NonNegative = 0.0,
    nesterov: bool = False,
) -> Transformation:
    r"""LARS: gradient descent with momentum, and a step size for every array.

    .. math::
        r_t &= \eta \frac{\lVert \theta_{t-1} \rVert}{\lVert g_t \rVert
        + \lambda \lVert \theta_{t-1} \rVert + \epsilon} \\
        b_t &= \mu b_{t-1} + \alpha r_t (g_t + \lambda \theta_{t-1}), \qquad
        \theta_t = \theta_{t-1} - b_t

    The ratio r is 1 if one of the norms is 0. As in the paper, and unlike in :func:`sgd`, the
    velocity contains the learning rate. This makes a difference only for a scheduled rate.

    Args:
        learning_rate: α ≥ 0.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0.
        trust_coefficient: η ≥ 0.
        eps: ε ≥ 0.
        nesterov: Nesterov's momentum; not in the paper.

    Equals optax.lars without weight decay. With weight decay, Optax's denominator is the norm of
    the sum g + λθ instead of the sum of the norms: ``chain(add_decayed_weights(λ), trust_ratio(η),
    scale_by_learning_rate(α), scale_by_heavy_ball(μ))``.

    Source: You, Gitman & Ginsburg 2017 (arXiv 1708.03888), Algorithm 1.

    >>> opt = adamx.lars(1.0, trust_coefficient=0.1)
    >>> theta = jnp.array([3.0, 4.0])
    >>> opt.update(jnp.array([0.0, -1e-3]), opt.init(theta), theta)[0]
    Array([0. , 0.5], dtype=float32)
    """
    return chain(
        trust_ratio(
            trust_coefficient, eps, weight_decay=weight_decay
        ),  # replaces Adam's second moment
        scale_by_learning_rate(learning_rate),
        scale_by_heavy_ball(momentum, nesterov),
    )


@recipe
def novograd(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.98,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Transformation:
    r"""NovoGrad: a momentum of gradients that are divided by the RMS norm of their array.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) \lVert g_t \rVert^2, \qquad
        v_1 = \lVert g_1 \rVert^2 \\
        m_t &= \beta_1 m_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} + \lambda \theta_{t-1},
        \qquad \theta_t = \theta_{t-1} - \alpha m_t

    The momentum is a sum, so the step is up to 1/(1 − β₁) times α. The second moment starts with
    the first nonzero squared norm.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v.
        weight_decay: λ ≥ 0; the momentum includes it.

    Equals optax.novograd with the same hyperparameters (its defaults are b1 = 0.9, b2 = 0.25,
    eps = 1e-6), unless the first gradient of an array is zero. Then Optax's v is too small, like an
    average that starts at zero.

    Source: Ginsburg et al. 2019 (arXiv 1905.11286), Algorithm 1; defaults of the authors' code
    (NeMo).

    >>> opt = adamx.novograd(0.1)
    >>> theta = jnp.zeros(2)
    >>> opt.update(jnp.array([3.0, -4.0]), opt.init(theta), theta)[0].round(5)
    Array([-0.06,  0.08], dtype=float32)
    """
    return chain(
        scale_by_norm(b2, eps),  # one second moment per array, before the momentum
        add_decayed_weights(weight_decay),
        scale_by_heavy_ball(b1),
        scale_by_learning_rate(learning_rate),
    )
