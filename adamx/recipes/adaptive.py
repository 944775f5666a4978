"""Predecessors of Adam with a step size for every coordinate."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    scale_by_adadelta,
    scale_by_heavy_ball,
    scale_by_learning_rate,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)

__all__ = ["adadelta", "adagrad", "rmsprop"]


@recipe
def adagrad(
    learning_rate: NonNegative,
    eps: NonNegative = 1e-10,
    *,
    initial_accumulator_value: NonNegative = 0.0,
) -> Transformation:
    r"""AdaGrad: divide the gradient by the root of the sum of all squared gradients.

    .. math::
        s_t = s_{t-1} + |g_t|^2, \qquad
        \theta_t = \theta_{t-1} - \alpha \frac{g_t}{\sqrt{s_t} + \epsilon}

    Args:
        learning_rate: α ≥ 0.
        eps: ε ≥ 0.
        initial_accumulator_value: s₀ ≥ 0.

    Equals torch.optim.Adagrad (whose ``lr_decay`` is the schedule α/(1 + t·lr_decay)).
    optax.adagrad has ε = 1e-7 inside the root and s₀ = 0.1: it is
    ``adagrad(α, 0.0, initial_accumulator_value=0.1 + 1e-7)``.

    Source: Duchi, Hazan & Singer 2011, with diagonal matrices; Kingma & Ba 2015, Section 5, on
    its relation to Adam.

    >>> opt = adamx.adagrad(0.1)
    >>> opt.update(jnp.array([3.0, -4.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        scale_by_rss(eps, initial_accumulator_value=initial_accumulator_value),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def adadelta(
    learning_rate: NonNegative = 1.0, rho: Decay = 0.9, eps: NonNegative = 1e-6
) -> Transformation:
    r"""AdaDelta: steps in the units of the parameters, without a learning rate to choose.

    .. math::
        v_t = \rho v_{t-1} + (1-\rho) |g_t|^2, \quad
        \Delta_t = \frac{\sqrt{d_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t, \quad
        d_t = \rho d_{t-1} + (1-\rho) |\Delta_t|^2, \quad
        \theta_t = \theta_{t-1} - \alpha \Delta_t

    Args:
        learning_rate: α ≥ 0; the paper has none, so that 1 is the default.
        rho: ρ in [0, 1).
        eps: ε ≥ 0, inside both roots. It sets the size of the first steps, √ε. The paper found
            little effect of 1e-8 … 1e-2, but a small ε makes a training start slowly.

    Equals torch.optim.Adadelta and optax.adadelta for real parameters. For complex parameters,
    adamx squares the modulus; torch treats real and imaginary parts as two coordinates.

    Source: Zeiler 2012 (arXiv 1212.5701), Algorithm 1.

    >>> opt = adamx.adadelta(rho=0.75, eps=1.0)
    >>> opt.update(jnp.array([2.0]), opt.init(jnp.zeros(1)))[0].round(4)
    Array([-1.4142], dtype=float32)
    """
    return chain(scale_by_adadelta(rho, eps), scale_by_learning_rate(learning_rate))


@recipe
def rmsprop(
    learning_rate: NonNegative,
    decay: Decay = 0.9,
    eps: NonNegative = 1e-8,
    *,
    momentum: Decay | None = None,
    nesterov: bool = False,
    centered: bool = False,
) -> Transformation:
    r"""RMSProp: divide the gradient by its decaying root mean square.

    .. math::
        v_t = \rho v_{t-1} + (1-\rho) |g_t|^2, \quad
        u_t = \frac{g_t}{\sqrt{v_t} + \epsilon}, \quad
        b_t = \mu b_{t-1} + u_t, \quad
        \theta_t = \theta_{t-1} - \alpha b_t

    The average is used as it is: started at zero, its first step is :math:`1/\sqrt{1-\rho}`
    times too large. The paper's Section 6.4 shows what that does; ``adam(learning_rate, b1=0)``
    is RMSProp with the correction.

    Args:
        learning_rate: α ≥ 0.
        decay: ρ in [0, 1); torch has 0.99.
        eps: ε ≥ 0, added to the root.
        momentum: μ in [0, 1) of a heavy ball after the division; None for no momentum.
        nesterov: use Nesterov's form of the momentum.
        centered: divide by the standard deviation, √(v − |m|²) + ε, instead.

    Equals torch.optim.RMSprop with ``alpha=decay``. optax.rmsprop adds ε inside the root unless
    ``eps_in_sqrt=False``. Its momentum contains the learning rate, which makes a difference only
    for a scheduled learning rate.

    Source: Tieleman & Hinton 2012, lecture 6.5; Graves 2013 (arXiv 1308.0850) with momentum,
    centered.

    Raises:
        ValueError: for ``nesterov`` without a momentum.

    >>> opt = adamx.rmsprop(0.1, decay=0.75)
    >>> opt.update(jnp.array([3.0, -4.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.2,  0.2], dtype=float32)
    """
    if nesterov and momentum is None:
        raise ValueError("rmsprop: nesterov=True needs a momentum; for example, pass momentum=0.9")
    spread = scale_by_stddev(decay, eps) if centered else scale_by_rms(decay, 0.0, eps_hat=eps)
    ball = chain() if momentum is None else scale_by_heavy_ball(momentum, nesterov)
    return chain(spread, ball, scale_by_learning_rate(learning_rate))
