"""Stages that use the previous gradient: variance reduction (MARS), Nesterov momentum (Adan)."""

from __future__ import annotations

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Rule,
    Same,
    Slot,
    decaying_average,
    is_off,
    stage,
    zeros,
)

__all__ = ["reduce_variance", "scale_by_extrapolated_momentum"]


@stage(reach="element")
def reduce_variance(b1: Decay = Same("scale_by_momentum", "b1"), gamma: NonNegative = 0.025):
    r"""Add to the gradient a multiple of its change since the last step (MARS).

    .. math::
        g \leftarrow g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad g_0 = 0

    Use it before any recipe. The momentum then averages variance-reduced gradients; with γ = 1 it
    is STORM's momentum. In the paper, both gradients are computed from the same batch. This is its
    approximate form, MARS-approx, with the gradient of the previous batch, and with
    :math:`g_0 = 0` as in the authors' code. Their clipping is a separate stage,
    :func:`clip_by_norm`.

    Keeps ``previous`` (the previous gradient), shaped like the parameter.

    Args:
        b1: β₁ in [0, 1), the β₁ of :func:`scale_by_momentum` in the same chain, or a value. For a
            different momentum stage, pass ``Same("scale_by_two_rate_momentum", "b1")``.
        gamma: γ ≥ 0; with the number 0, the gradient does not change and no state is kept.

    Source: Yuan et al. 2024 (arXiv 2411.10438), Algorithm 2.

    >>> opt = adamx.reduce_variance(b1=0.5, gamma=0.5)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (2.0, 4.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> u
    Array([5.], dtype=float32)
    """
    if is_off(gamma):
        return lambda signal: signal

    def update(signal, slots, step):
        change = signal.update - slots["previous"]
        reduced = signal.update + gamma * b1 / (1 - b1) * change
        return signal.with_update(reduced), {"previous": signal.update}

    return Rule(update, slots={"previous": zeros})


@stage(reach="element")
def scale_by_extrapolated_momentum(b1: Decay = 0.98, b2: Decay = 0.92):
    r"""Replace the update by its average plus the average of its changes (Adan).

    .. math::
        d_t &= g_t - g_{t-1}, \qquad d_1 = 0 \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        n_t = \beta_2 n_{t-1} + (1 - \beta_2) d_t \\
        u &\leftarrow \hat m_t + \beta_2 \hat n_t, \qquad g \leftarrow g_t + \beta_2 d_t

    This estimates Nesterov's momentum without a gradient at the extrapolated point. The stage
    corrects both averages. Before the first statistic, it also extrapolates the gradient, so that a
    later :func:`scale_by_rms` averages the squares of :math:`g_t + \beta_2 d_t`.

    Keeps ``mu`` (m), ``drift`` (n) and ``previous`` (the previous gradient), shaped like the
    parameter, and a clock that tells whether there was a previous gradient.

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1). As everywhere in adamx, β is the weight of the old value; the paper's β
            are 1 − β.

    Source: Xie et al. 2022 (arXiv 2208.06677), Algorithm 1.

    >>> opt = adamx.scale_by_extrapolated_momentum(b1=0.0, b2=0.5)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (2.0, 5.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> u
    Array([6.], dtype=float32)
    """
    mean, drift = decaying_average(b1), decaying_average(b2, "log_decay_drift")
    second_step_on = Clock(
        start=lambda: jnp.zeros((), jnp.int32),
        tick=lambda steps: jnp.minimum(steps + 1, 2),
        read=lambda steps: steps > 1,
    )

    def update(signal, slots, step):
        g = signal.update
        d = jnp.where(step.clock["steps"], g - slots["previous"], 0)
        m, n = mean(slots["mu"], g), drift(slots["drift"], d)
        u = m / mean.weight(step) + b2 * (n / drift.weight(step))
        extrapolated = signal.with_update(g + b2 * d)
        return extrapolated.with_statistic(u), {"mu": m, "drift": n, "previous": g}

    return Rule(
        update,
        slots={"mu": zeros, "drift": Slot(zeros, letter="n"), "previous": zeros},
        clocks=mean.clocks | drift.clocks | {"steps": second_step_on},
    )
