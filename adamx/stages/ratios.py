"""Variants of the division by the root mean square: AdaDelta, Adam-atan2, ADOPT."""

from __future__ import annotations

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
    squares,
    stage,
)
from adamx.numerics.arithmetic import at_least

__all__ = ["scale_by_adadelta", "scale_by_atan2", "scale_by_delayed_rms"]


@stage(reach="element")
def scale_by_adadelta(rho: Decay = 0.9, eps: NonNegative = 1e-6):
    r"""Multiply the update by RMS of past steps over RMS of gradients (AdaDelta).

    .. math::
        v_t = \rho v_{t-1} + (1-\rho) |g_t|^2, \quad
        u \leftarrow \frac{\sqrt{d_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} u, \quad
        d_t = \rho d_{t-1} + (1-\rho) |u|^2

    Keeps ``nu`` (v) and ``delta`` (d), shaped like the parameter, real.

    Args:
        rho: ρ in [0, 1).
        eps: added inside both roots; it determines the size of the first step.

    Source: Zeiler 2012 (arXiv 1212.5701), Algorithm 1.

    >>> opt = adamx.scale_by_adadelta(rho=0.75, eps=1.0)
    >>> opt.update(jnp.array([2.0]), opt.init(jnp.zeros(1)))[0].round(4)
    Array([1.4142], dtype=float32)
    """
    mean_square = decaying_average(rho)

    def update(signal, slots, step):
        nu = mean_square(slots["nu"], abs_sq(signal.gradient))
        u = root(slots["delta"] + eps) * divide(signal.update, root(nu + eps), eps)
        delta = mean_square(slots["delta"], abs_sq(u))
        return signal.with_statistic(u), {"nu": nu, "delta": delta}

    return Rule(update, slots={"nu": squares, "delta": squares.called("d")})


@stage(reach="element")
def scale_by_atan2(b2: Decay = 0.99, a: Positive = 1.27, b: Positive = 1.0):
    r"""Replace the update by the angle between it and the root mean square (Adam-atan2).

    .. math::
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad
        u \leftarrow a \operatorname{atan2}(\hat u, b \sqrt{\hat v_t})

    For small quotients, the angle is approximately the quotient; it never exceeds aπ/2. It needs no
    ε (atan2(0, 0) = 0). As long as g² neither overflows nor underflows, the update does not depend
    on the scale of the gradients. A bias can't be divided out of an angle, so this stage corrects
    the biases of u and v itself: use no :func:`bias_correction` after it. For complex u, the
    modulus is replaced.

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        a: the scale of the angle, > 0; 4/π ≈ 1.27 turns u = √v into 1.
        b: the scale of √v, > 0; with a larger b, angle and quotient agree for larger quotients.

    Source: Everett et al. 2024 (arXiv 2407.05872), Adam-atan2.

    >>> opt = adamx.scale_by_atan2(a=1.0)
    >>> 4 * opt.update(jnp.array([3e-15, 0.0]), opt.init(jnp.zeros(2)))[0]
    Array([3.1415927, 0.       ], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        nu = mean_square(slots["nu"], abs_sq(signal.gradient))
        if signal.bias is not None:
            signal = signal.corrected()
        u, rms = signal.update, b * (root(nu) / root(mean_square.weight(step)))
        size = root(abs_sq(u)) if jnp.iscomplexobj(u) else u
        angle = a * jnp.arctan2(size, jnp.where((size == 0) & (rms == 0), 1, rms))
        if jnp.iscomplexobj(u):
            angle = angle * divide(u, size)
        return signal.with_statistic(angle), {"nu": nu}

    return Rule(update, slots={"nu": squares}, clocks=mean_square.clocks)


@stage(reach="element")
def scale_by_delayed_rms(b2: Decay = 0.9999, eps: NonNegative = 1e-6):
    r"""Divide the update by the root mean square of the gradients before this one (ADOPT).

    .. math::
        u \leftarrow \begin{cases} 0 & t = 1 \\
        u / \max(\sqrt{v_{t-1}}, \epsilon) & \text{otherwise} \end{cases}, \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad v_1 = |g_1|^2

    The denominator does not depend on the current gradient, so ADOPT converges for any β₂. The
    first step only initialises v with the first squared gradient, and its update is zero. So v does
    not start at zero and needs no correction. If the first gradient is very small, the next
    quotients are very large; in ADOPT, :func:`growing_clip` after this stage limits them.

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: a lower bound for the denominator. With 0, 0/0 is 0.

    Source: Taniguchi et al. 2024 (arXiv 2411.02853), Algorithm 2.

    >>> opt = adamx.scale_by_delayed_rms(b2=0.75)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (2.0, 1.0, 16.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u.round(4))
    [0.]
    [0.5]
    [8.8752]
    """
    mean_square = decaying_average(b2)
    steps = Clock(
        start=lambda: jnp.zeros((), jnp.int32),
        tick=lambda steps: jnp.minimum(steps + 1, 2),
        read=lambda steps: steps == 1,
    )

    def update(signal, slots, step):
        is_first, square = step.clock["steps"], abs_sq(signal.gradient)
        u = divide(signal.update, at_least(eps, root(slots["nu"])), eps)
        nu = jnp.where(is_first, square, mean_square(slots["nu"], square))
        return signal.with_statistic(jnp.where(is_first, 0, u)), {"nu": nu}

    return Rule(update, slots={"nu": squares}, clocks={"steps": steps})
