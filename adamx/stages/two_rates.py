"""Momentum with two decay rates."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Rule,
    clock_dtype,
    decay_clock,
    decaying_average,
    stage,
    zeros,
)
from adamx.links.averages import interpolated_weight
from adamx.numerics.arithmetic import expm1, log

__all__ = ["scale_by_mixed_momentum", "scale_by_two_rate_momentum"]


@stage(reach="element")
def scale_by_two_rate_momentum(b1: Decay = 0.9, b2: Decay = 0.99):
    r"""Replace the update by an average with one rate now and another for its memory (Lion).

    .. math::
        c_t = \beta_1 m_{t-1} + (1 - \beta_1) u_t, \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) u_t, \qquad u \leftarrow c_t

    With β₁ = β₂ it equals :func:`scale_by_momentum`. The weight of c is
    :math:`1 - \beta_1 \prod_{i<t} \beta_{2,i}`; :func:`bias_correction` divides by it.

    Keeps ``mu`` (m), shaped like the parameter.

    Args:
        b1: β₁ in [0, 1), the weight of the memory m in the update.
        b2: β₂ in [0, 1), the decay rate of the memory m.

    Source: Chen et al. 2023 (arXiv 2302.06675), Algorithm 2 (Lion).

    >>> opt = adamx.scale_by_two_rate_momentum(b1=0.5, b2=0.75)
    >>> state = opt.init(jnp.zeros(1))
    >>> for _ in range(2):
    ...     u, state = opt.update(jnp.ones(1), state)
    >>> u
    Array([0.625], dtype=float32)
    """
    interpolate, remember = decaying_average(b1), decaying_average(b2)

    clock = decay_clock(log(b2))._replace(read=lambda pair: interpolated_weight(pair, b1, b2))

    def update(signal, slots, step):
        c = interpolate(slots["mu"], signal.update)
        mu = remember(slots["mu"], signal.update)
        return signal.with_statistic(c, weight=step.clock["log_decay"]), {"mu": mu}

    return Rule(update, slots={"mu": zeros}, clocks={"log_decay": clock})


@stage(reach="element")
def scale_by_mixed_momentum(
    b1: Decay = 0.9,
    b3: Decay = 0.9999,
    alpha: NonNegative = 2.0,
    *,
    alpha_warmup: NonNegative = 0.0,
    b3_warmup: NonNegative = 0.0,
):
    r"""Replace the update by a fast average plus a multiple of a slow average (AdEMAMix).

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) u_t, \quad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3) u_t, \quad
        u \leftarrow \hat m_t + \alpha n_t

    The stage corrects the fast average, but not the slow one, which grows from zero. So the sum has
    no common factor, and there is no bias for a later correction.

    α has a warm-up of T = ``alpha_warmup`` steps, in which it grows linearly from 0. β₃ has a
    warm-up of T = ``b3_warmup`` steps, in which it grows from β₁ such that its half-life grows
    linearly:

    :math:`\alpha_t = \min(1, t/T) \, \alpha` and
    :math:`1 / \log \beta_{3,t} = (1 - s) / \log \beta_1 + s / \log \beta_3` with
    :math:`s = \min(1, t/T)`.

    Keeps ``mu`` (m) and ``mu_slow`` (n), shaped like the parameter, and the step t.

    Args:
        b1: β₁ in [0, 1), the decay rate of the fast average.
        b3: β₃ in [0, 1), the decay rate of the slow average.
        alpha: α ≥ 0.
        alpha_warmup: T of α ≥ 0; 0 for no warm-up.
        b3_warmup: T of β₃ ≥ 0; 0 for no warm-up.

    Source: Pagliardini, Ablin & Grangier 2024 (arXiv 2409.03137), Algorithm 1 and Appendix A.1.

    >>> opt = adamx.scale_by_mixed_momentum(b1=0.5, b3=0.75, alpha=2.0)
    >>> opt.update(jnp.array([4.0]), opt.init(jnp.zeros(1)))[0]
    Array([6.], dtype=float32)
    """
    fast = decaying_average(b1)
    steps = Clock(
        start=lambda: jnp.zeros((), clock_dtype()), tick=lambda t: t + 1, read=lambda t: t
    )

    def update(signal, slots, step):
        def done(warmup):
            off = isinstance(warmup, float) and warmup == 0
            return 1.0 if off else jnp.minimum(1, step.clock["steps"] / jnp.maximum(warmup, 1))

        s = done(b3_warmup)
        inverse_log = (1 - s) * reciprocal_log(b1) + s / log(b3)
        share = -expm1(1 / inverse_log)  # 1 − β₃, without cancellation
        mu, n = fast(slots["mu"], signal.update), slots["mu_slow"]
        mu_slow = n + share * (signal.update - n)
        u = mu / fast.weight(step) + done(alpha_warmup) * alpha * mu_slow
        return signal.with_statistic(u), {"mu": mu, "mu_slow": mu_slow}

    return Rule(
        update, slots={"mu": zeros, "mu_slow": zeros}, clocks=fast.clocks | {"steps": steps}
    )


def reciprocal_log(beta: Any) -> Any:
    """1/log β, and 0 for β = 0."""
    if isinstance(beta, float):
        return 1 / log(beta) if beta > 0 else 0.0
    return jnp.where(beta > 0, 1 / log(beta), 0)
