"""First moments: averages and sums of gradients."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    Positive,
    Rule,
    Slot,
    clock_dtype,
    decay_weight,
    decaying_average,
    stage,
    zeros,
)
from adamx.numerics.arithmetic import finite, log, two_sum
from adamx.numerics.types import Array, Float, Scalar

__all__ = ["scale_by_heavy_ball", "scale_by_momentum", "scale_by_nesterov_momentum"]


@stage(reach="element")
def scale_by_momentum(b1: Decay = 0.9, *, nesterov: bool = False):
    r"""Replace the update by its decaying average, the first moment of Adam.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) u_t, \qquad u \leftarrow m_t

    The average starts at zero and is too small by the factor :math:`1 - \prod_i \beta_{1,i}`. A
    later :func:`bias_correction` divides by this factor.

    With Nesterov's form, :math:`u \leftarrow \beta_1 m_t + (1 - \beta_1) u_t`, as in Muon, which is
    too small by the factor :math:`1 - \beta_{1,t} \prod_i \beta_{1,i}`.

    Keeps ``mu``, shaped like the parameter.

    Args:
        b1: β₁ in [0, 1).
        nesterov: use Nesterov's form.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1; Jordan et al. 2024 (Nesterov's form).

    >>> opt = adamx.chain(adamx.scale_by_momentum(b1=0.9), adamx.bias_correction())
    >>> opt.update(jnp.array([1.0]), opt.init(jnp.zeros(1)))[0]
    Array([1.], dtype=float32)
    """
    mean = decaying_average(b1)

    def update(signal, slots, step):
        mu = mean(slots["mu"], signal.update)
        if nesterov:
            ahead, weight = mean(mu, signal.update), b1 * mean.weight(step) + (1 - b1)
            return signal.with_statistic(ahead, weight=weight), {"mu": mu}
        return signal.with_statistic(mu, weight=mean.weight(step)), {"mu": mu}

    return Rule(update, slots={"mu": zeros}, clocks=mean.clocks)


@stage(reach="element")
def scale_by_heavy_ball(momentum: Decay = 0.9, nesterov: bool = False):
    r"""Replace the update by its decaying sum, the velocity of a heavy ball (SGD with momentum).

    .. math::
        b_t = \mu b_{t-1} + u_t, \qquad u \leftarrow b_t

    With Nesterov's form, :math:`u \leftarrow u_t + \mu b_t`.

    The velocity is a sum, not an average: it amplifies a constant gradient by :math:`1/(1-\mu)`,
    and there is no bias to correct.

    Keeps ``trace``, shaped like the parameter.

    Args:
        momentum: μ in [0, 1).
        nesterov: use Nesterov's form.

    Source: Polyak 1964; Sutskever et al. 2013 (Nesterov's form). Equals torch.optim.SGD and
    optax.trace.

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
        return signal.with_statistic(ahead), {"trace": trace}

    return Rule(update, slots={"trace": Slot(zeros, letter="b")})


@stage(reach="element")
def scale_by_nesterov_momentum(
    b1: Decay = 0.9, momentum_decay: Positive = 0.004, *, constant_decay: bool = False
):
    r"""Replace the update by its decaying average, one step ahead (Nesterov momentum of NAdam).

    .. math::
        \mu_t &= \beta_1 \left(1 - \tfrac12 \cdot 0.96^{t\psi}\right), \qquad
        w_t = 1 - \prod_{i \le t} \mu_i \\
        m_t &= \mu_t m_{t-1} + (1 - \mu_t) u_t, \qquad
        u \leftarrow \frac{\mu_{t+1}}{w_{t+1}} m_t + \frac{1 - \mu_t}{w_t} u_t

    The momentum μ warms up from about β₁/2 to β₁; with ψ = ∞ it is always β₁. The stage corrects
    both terms, each by its own weight, so there is no bias left for :func:`bias_correction`. (For a
    scheduled β₁, μₜ₊₁ is computed with the β₁ of step t.)

    Keeps ``mu`` (m), shaped like the parameter.

    Args:
        b1: β₁ in [0, 1).
        momentum_decay: ψ > 0; ``math.inf`` for a constant momentum.
        constant_decay: let m decay by β₁ instead of μₜ, as torch and Keras do. The correction still
            uses the weights of μ.

    Source: Dozat 2016, Incorporating Nesterov momentum into Adam (ICLR workshop), Algorithm 2.

    >>> opt = adamx.scale_by_nesterov_momentum(0.5, jnp.inf)
    >>> opt.update(jnp.array([3.0]), opt.init(jnp.zeros(1)))[0]
    Array([4.], dtype=float32)
    """

    def update(signal, slots, step):
        momentum, ahead, weight, weight_ahead = step.clock["momentum"]
        mean = decaying_average(b1 if constant_decay else momentum)
        mu = mean(slots["mu"], signal.update)
        u = ahead / weight_ahead * mu + (1 - momentum) / weight * signal.update
        return signal.with_statistic(u), {"mu": mu}

    return Rule(update, slots={"mu": zeros}, clocks={"momentum": _warming_up(b1, momentum_decay)})


def _warming_up(b1: Any, momentum_decay: Any) -> Clock:
    """A clock that keeps [Σ log μ, its error, t] and returns μₜ, μₜ₊₁ and their weights."""

    def momentum(t: Scalar) -> Scalar:
        return b1 * (1 - 0.5 * jnp.exp(t * (finite(momentum_decay) * math.log(0.96))))

    def tick(value: Float[Array, "kept=3"]) -> Float[Array, "kept=3"]:
        t = value[2] + 1
        total, rest = two_sum(value[0], log(momentum(t)))
        return jnp.stack([total, value[1] + rest, t])

    def read(value: Float[Array, "kept=3"]) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        now, ahead = momentum(value[2]), momentum(value[2] + 1)
        after = value[:2] + jnp.stack([log(ahead), jnp.zeros_like(ahead)])
        return now, ahead, decay_weight(value[:2]), decay_weight(after)

    return Clock(start=lambda: jnp.zeros(3, clock_dtype()), tick=tick, read=read)
