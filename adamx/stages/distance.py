"""Steps measured in the distance to the solution, which is estimated along the way."""

from __future__ import annotations

import math

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Positive,
    Rule,
    abs_sq,
    decaying_average,
    divide,
    root,
    stage,
    zeros,
)
from adamx.core.hyper import clock_dtype
from adamx.core.slots import iterate, squares
from adamx.explain import in_symbols, symbols
from adamx.numerics.arithmetic import finite

__all__ = ["scale_by_prodigy"]


@stage
def scale_by_prodigy(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.999**0.5,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    growth_rate: Positive = math.inf,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
):
    r"""Adam's direction times an estimate d of the distance from the start to the solution.

    .. math::
        r_t &= \beta_3 r_{t-1} + \eta_t d_{t-1}^2 \langle g_t, \theta_0 - \theta_{t-1} \rangle,
        \qquad s_t = \beta_3 s_{t-1} + \eta_t d_{t-1}^2 g_t \\
        \hat d_t &= c\, r_t / \lVert s_t \rVert_1, \qquad
        d_t = \min(\max(d_0, \hat d_1, \dots, \hat d_t), \gamma d_{t-1}) \\
        m_t &= \beta_1 m_{t-1} + (1-\beta_1)\, d_{t-1} u_t, \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2)\, d_{t-1}^2 |g_t|^2 \\
        u &\leftarrow \kappa_t d_{t-1} \left(
        \frac{m_t}{\sqrt{v_t} + \epsilon d_t} + \lambda \theta_{t-1} \right), \qquad
        \eta_t = \alpha_t \kappa_t

    with :math:`\langle\cdot,\cdot\rangle` and :math:`\lVert\cdot\rVert_1` over all parameters,
    and :math:`\kappa_t = \sqrt{1-\beta_2^t}/(1-\beta_1^t)` if biases are corrected, else 1. The
    first rise above d₀ is not limited by γ. The averages hold d of their time, so they are kept
    here and not in stages of their own; weight decay is scaled by d too. For L2 regularisation or
    clipping, put that stage in front.

    Keeps ``mu``, ``nu`` (real) and ``grad_sum`` (s), shaped like the parameter, and ``params0``
    (θ₀), a copy of it; d and r as scalars.

    In the first steps :math:`\theta_0 - \theta` is a small difference of large numbers: d₀ should
    be well above the parameters' relative rounding, and bfloat16 parameters need a larger one.

    Args:
        learning_rate: α, as it will be applied behind this stage; it enters the estimate.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        b3: β₃ in [0, 1), of the estimate.
        eps: ε ≥ 0, times d.
        weight_decay: λ ≥ 0, decoupled.
        d0: d₀ > 0, an underestimate.
        d_coef: c > 0.
        growth_rate: γ > 1, by which factor d may grow in a step; inf for any.
        use_bias_correction: correct the averages' start at zero, as Adam does.
        safeguard_warmup: leave η out of s, so that a warm-up's small α does not raise d.

    Source: Mishchenko & Defazio 2024 (arXiv 2306.06101), Section 5; konstmish/prodigy.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.chain(adamx.scale_by_prodigy(1.0), adamx.scale_by_learning_rate(1.0))
    >>> theta = jnp.array([3.0, -2.0])
    >>> state = opt.init(theta)
    >>> for _ in range(200):
    ...     updates, state = opt.update(2 * theta, state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    >>> bool(jnp.abs(theta).max() < 0.1)
    True
    """
    mean = decaying_average(b1, "log_decay_1")
    mean_square = decaying_average(b2, "log_decay_2")

    def eta(step):
        """κ and η, the rate without d."""
        kappa = 1.0
        if use_bias_correction:
            kappa = root(mean_square.weight(step)) / mean.weight(step)
        return kappa, learning_rate * kappa

    def d_squared(step):
        """d² in units of d₀, as d² itself would underflow."""
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
        before, now = step.clock["distance"]["before"], step.clock["distance"]["now"]
        mu = mean(slots["mu"], before * signal.update)
        nu = mean_square(slots["nu"], before**2 * abs_sq(signal.gradient))
        direction = divide(mu, root(nu) + eps * now, eps) + weight_decay * signal.param
        kept = {
            "mu": mu,
            "nu": nu,
            "grad_sum": grad_sum(signal, slots, step),
            "params0": slots["params0"],
        }
        return signal.with_statistic(eta(step)[0] * before * direction), kept

    return Rule(
        update,
        slots={"mu": zeros, "nu": squares, "grad_sum": zeros, "params0": iterate},
        clocks=mean.clocks | mean_square.clocks | {"distance": distance},
        global_sum=global_sum,
    )


@in_symbols(scale_by_prodigy)
def _(
    signal,
    learning_rate,
    b1,
    b2,
    b3,
    eps,
    weight_decay,
    d0,
    d_coef,
    growth_rate,
    use_bias_correction,
    safeguard_warmup,
):
    g, unlimited = signal.gradient, growth_rate == symbols.Number(math.inf)
    d, kappa = signal.fresh("d"), symbols.ONE
    if use_bias_correction:
        kappa = signal.let("κ", symbols.root(signal.weight(b2)) / signal.weight(b1))
    rate = learning_rate * kappa
    inner = symbols.Function("inner", (g, symbols.START - signal.param))
    r = signal.let("r", lambda r: b3 * r + d.before**2 * rate * inner)
    seen = d.before**2 * (1 if safeguard_warmup else rate) * g
    s = symbols.Function("norm1", (signal.let("s", lambda s: b3 * s + seen),))
    estimate = signal.let(d.hat, symbols.cases(s.equals(0), 0, d_coef * r / s))
    if unlimited:
        signal.let(d, symbols.maximum(d.before, estimate), start=d0)
    else:
        largest = signal.let("D", lambda before: symbols.maximum(before, estimate), start=d0)
        first, grown = symbols.maximum(d0, estimate), d.before
        grown = signal.let("e", symbols.cases(grown.equals(d0), first, grown))
        signal.let(d, symbols.minimum(largest, growth_rate * grown), start=d0)
    m = signal.average("m", b1, of=d.before * signal.update)
    v = signal.average("v", b2, of=d.before**2 * g**2)
    direction = m / (symbols.root(v) + eps * d) + weight_decay * signal.param
    return signal.with_statistic(kappa * d.before * direction)
