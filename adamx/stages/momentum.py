"""First moments: what the gradient points to on average."""

from __future__ import annotations

from adamx.core import Decay, Rule, decaying_average, stage, zeros

__all__ = ["scale_by_heavy_ball", "scale_by_momentum"]


@stage
def scale_by_momentum(b1: Decay = 0.9):
    r"""Replace the update by its decaying average, the first moment of Adam.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) u_t, \qquad u \leftarrow m_t

    The average starts at zero and is too small by the weight :math:`1 - \prod_i \beta_{1,i}`;
    :func:`bias_correction` further down the chain divides it out.

    Keeps ``mu``, shaped like the parameter.

    Args:
        b1: β₁ in [0, 1).

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1.

    >>> opt = adamx.chain(adamx.scale_by_momentum(b1=0.9), adamx.bias_correction())
    >>> opt.update(jnp.array([1.0]), opt.init(jnp.zeros(1)))[0]
    Array([1.], dtype=float32)
    """
    mean = decaying_average(b1)

    def update(signal, slots, step):
        mu = mean(slots["mu"], signal.update)
        return signal.measured(mu, weight=mean.weight(step)), {"mu": mu}

    return Rule(update, slots={"mu": zeros}, clocks=mean.clocks)


@stage
def scale_by_heavy_ball(momentum: Decay = 0.9, nesterov: bool = False):
    r"""Replace the update by its decaying sum, the velocity of a heavy ball.

    .. math::
        b_t = \mu b_{t-1} + u_t, \qquad
        u \leftarrow b_t \quad \text{or, with Nesterov,} \quad u_t + \mu b_t

    A sum, not an average: a constant gradient is amplified by :math:`1/(1-\mu)`, and there is no
    bias to correct.

    Keeps ``trace``, shaped like the parameter.

    Args:
        momentum: μ in [0, 1).
        nesterov: look ahead by one step of the ball.

    Source: Polyak 1964; Sutskever et al. 2013 (Nesterov's form); as torch.optim.SGD and
    optax.trace have it.

    >>> opt = adamx.scale_by_heavy_ball(0.5)
    >>> state = opt.init(jnp.zeros(1))
    >>> for _ in range(2):
    ...     u, state = opt.update(jnp.ones(1), state)
    >>> u
    Array([1.5], dtype=float32)
    """

    def update(signal, slots, step):
        trace = momentum * slots["trace"] + signal.update
        ahead = signal.update + momentum * trace if nesterov else trace
        return signal.measured(ahead), {"trace": trace}

    return Rule(update, slots={"trace": zeros})
