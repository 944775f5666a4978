"""Prodigy: estimate the distance from the start to the solution during the training."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Positive,
    Rule,
    Same,
    clock_dtype,
    decay_clock,
    divide,
    iterate,
    root,
    stage,
    zeros,
)
from adamx.numerics.arithmetic import finite, log

__all__ = ["estimate_distance", "scale_by_distance"]


@stage(reach="element", place="direction")
def estimate_distance(
    d0: Positive = 1e-6,
    *,
    d_coef: Positive = 1.0,
    growth_rate: Positive = math.inf,
    safeguard_warmup: bool = False,
    bias_corrected: bool = False,
    learning_rate: NonNegative = Same("scale_by_learning_rate", "learning_rate"),
    b1: Decay = Same("scale_by_momentum", "b1"),
    b2: Decay = Same("scale_by_rms", "b2"),
    b3: Decay = Same("scale_by_rms", "b2", 0.5),
):
    r"""Estimate the distance d to the solution, and multiply the gradient by it (Prodigy).

    .. math::
        r_t &= \beta_3 r_{t-1} + \eta_t d_{t-1}^2 \langle g_t, \theta_0 - \theta_{t-1} \rangle,
        \qquad s_t = \beta_3 s_{t-1} + \eta_t d_{t-1}^2 g_t \\
        \hat d_t &= c\, r_t / \lVert s_t \rVert_1, \qquad
        d_t = \min(D_t, \gamma d_{t-1}), \qquad D_t = \max(D_{t-1}, \hat d_t), \qquad D_0 = d_0 \\
        g &\leftarrow d_{t-1} g_t

    with :math:`\langle\cdot,\cdot\rangle` and :math:`\lVert\cdot\rVert_1` over all parameters, and
    :math:`\eta_t = \alpha_t \kappa_t`, where :math:`\kappa_t = \sqrt{1-\beta_2^t}/(1-\beta_1^t)` if
    the averages of Adam are corrected, otherwise 1. γ does not limit the first increase above d₀.

    Use it before Adam's stages. Their averages then contain gradients multiplied by the d of their
    step, and their ε are multiplied by dₜ. :func:`scale_by_distance` after them multiplies the step
    by dₜ₋₁. Put stages for L2 regularisation or clipping before this one.

    Keeps ``grad_sum`` (s), shaped like the parameter, and ``params0`` (θ₀), a copy of the
    parameter. d and r are scalars.

    In the first steps, :math:`\theta_0 - \theta` is a small difference of large numbers. So d₀
    should be well above the relative rounding error of the parameters; bfloat16 parameters need a
    larger d₀.

    Args:
        d0: d₀ > 0, an underestimate.
        d_coef: c > 0.
        growth_rate: γ > 1, the largest factor by which d may grow in a step; inf for no limit.
        safeguard_warmup: omit η from s, so that the small α of a warm-up does not increase d.
        bias_corrected: whether a :func:`bias_correction` comes later in the chain.
        learning_rate: α of the same chain, or a value.
        b1: β₁ of :func:`scale_by_momentum` in the same chain, or a value; used for κ.
        b2: β₂ of :func:`scale_by_rms` in the same chain, or a value; used for κ.
        b3: β₃ in [0, 1), the decay rate of the estimate; by default √β₂ of :func:`scale_by_rms`.

    Source: Mishchenko & Defazio 2024 (arXiv 2306.06101), Section 5; konstmish/prodigy.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.chain(
    ...     adamx.estimate_distance(),
    ...     adamx.scale_by_momentum(),
    ...     adamx.scale_by_rms(eps=0.0, eps_hat=1e-8),
    ...     adamx.scale_by_distance(),
    ...     adamx.scale_by_learning_rate(1.0),
    ... )
    >>> theta = jnp.array([3.0, -2.0])
    >>> state = opt.init(theta)
    >>> for _ in range(200):
    ...     updates, state = opt.update(2 * theta, state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    >>> bool(jnp.abs(theta).max() < 0.1)
    True
    """

    def eta(step):
        """κ and η, the learning rate without d."""
        kappa = 1.0
        if bias_corrected:
            kappa = root(step.clock["log_decay_2"]) / step.clock["log_decay_1"]
        return kappa, learning_rate * kappa

    def d_squared(step):
        """d² in units of d₀, because d² could underflow."""
        d = step.clock["distance"]
        return d["before"] / d["first"] * d["before"]

    def grad_sum(signal, slots, step):
        rate = 1.0 if safeguard_warmup else eta(step)[1]
        return b3 * slots["grad_sum"] + d_squared(step) * rate * signal.gradient

    def global_sum(signal, slots, step):
        moved = slots["params0"] - signal.param
        inner = jnp.sum((jnp.conj(signal.gradient) * moved).real)
        return {
            "r": d_squared(step) * eta(step)[1] * inner,
            "norm_of_s": jnp.sum(jnp.abs(grad_sum(signal, slots, step))),
        }

    def settle(clock, total):
        first, _, d, largest, r = clock
        r = b3 * r + total["r"]
        estimate = jnp.where(total["norm_of_s"] > 0, d_coef * divide(r, total["norm_of_s"]), 0)
        grown = jnp.where(d == first, jnp.maximum(d, estimate), d)
        largest = jnp.maximum(largest, estimate)
        unlimited = isinstance(growth_rate, float) and growth_rate == math.inf
        new = largest if unlimited else jnp.minimum(largest, grown * finite(growth_rate))
        return jnp.stack([first, d, new, largest, r])

    distance = Clock(  # d₀, dₜ₋₁, dₜ, the largest estimate, r
        start=lambda: jnp.asarray(d0, clock_dtype()) * jnp.array([1, 1, 1, 1, 0], clock_dtype()),
        tick=lambda clock: clock.at[1].set(clock[2]),
        read=lambda clock: {"first": clock[0], "before": clock[1], "now": clock[2]},
        settle=settle,
    )

    def update(signal, slots, step):
        d = step.clock["distance"]
        kept = {"grad_sum": grad_sum(signal, slots, step), "params0": slots["params0"]}
        measured = signal.with_update(d["before"] * signal.update)
        return measured.with_notes(distance=d["before"], unit=d["now"]), kept

    weights = {"log_decay_1": weight_clock(b1), "log_decay_2": weight_clock(b2)}
    return Rule(
        update,
        slots={"grad_sum": zeros, "params0": iterate},
        clocks={"distance": distance} | (weights if bias_corrected else {}),
        global_sum=global_sum,
    )


def weight_clock(beta: Any) -> Clock:
    """A decay clock of a β that another stage has, which is known as soon as the chain runs."""
    return decay_clock(0.0)._replace(tick=lambda kept: decay_clock(log(beta)).tick(kept))


@stage(reach="element", place="direction")
def scale_by_distance():
    r"""Multiply the update by the distance from :func:`estimate_distance` (Prodigy).

    .. math::
        u \leftarrow d_{t-1} u

    Source: Mishchenko & Defazio 2024 (arXiv 2306.06101), Section 5.

    Raises:
        StageError: if there is no earlier :func:`estimate_distance` in the chain.

    >>> opt = adamx.prodigy()
    >>> [link.name for link in opt.links][-2:]
    ['scale_by_distance', 'scale_by_learning_rate']
    """
    return lambda signal: signal.with_update(
        signal.update * signal.note("distance", by="estimate_distance")
    )
