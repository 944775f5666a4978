"""The L^p norms of Section 7.1 in place of the root mean square."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamx.core import Decay, NonNegative, Positive, Rule, decay_clock, divide, squares, stage
from adamx.numerics.arithmetic import expm1, finite, log
from adamx.numerics.types import Reals

__all__ = ["scale_by_adamax", "scale_by_lp_norm"]


@stage(reach="element")
def scale_by_adamax(b2: Decay = 0.999, eps: NonNegative = 1e-8):
    r"""Divide the update by the exponentially weighted infinity norm of the gradient (AdaMax).

    .. math::
        n_t = \max(\beta_2 n_{t-1}, |g_t| + \epsilon), \qquad u \leftarrow \frac{u}{n_t}

    A maximum is not an average, so it needs no correction and does not change the bias.

    Keeps ``nu`` (n), shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to |g|, as in torch and Optax. The paper has no ε; with 0, 0/0 is 0.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Section 7.1, equation 12.

    >>> opt = adamx.scale_by_adamax(b2=0.5, eps=0.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (4.0, 1.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> u, state["scale_by_adamax"]["nu"]
    (Array([0.5], dtype=float32), Array([2.], dtype=float32))
    """

    def update(signal, slots, step):
        nu = jnp.maximum(b2 * slots["nu"], jnp.abs(signal.gradient) + eps)
        return signal.with_statistic(divide(signal.update, nu, eps)), {"nu": nu}

    return Rule(update, slots={"nu": squares.called("n")})


@stage(reach="element")
def scale_by_lp_norm(p: Positive = 2.0, b2: Decay = 0.999, eps: NonNegative = 1e-8):
    r"""Divide the update by the exponentially weighted L^p norm of the gradient.

    .. math::
        v_t = \beta_2^p v_{t-1} + (1 - \beta_2^p) |g_t|^p, \qquad
        u \leftarrow \frac{u}{v_t^{1/p} + \epsilon w_t^{1/p}}, \qquad
        w_t = 1 - \prod_i \beta_{2,i}^p

    With p = 2 and β₂, this is :func:`scale_by_rms` with β₂²; for p → ∞, it is
    :func:`scale_by_adamax`. The paper calls large p unstable, because |g|^p overflows or
    underflows. This stage keeps the norm :math:`n = v^{1/p}` instead of v, and computes powers
    relative to the larger of the two terms:

    .. math::
        a = \beta_2 n_{t-1}, \quad c = (1 - \beta_2^p)^{1/p} |g_t|, \quad M = \max(a, c), \quad
        n_t = M \left( (a/M)^p + (c/M)^p \right)^{1/p}

    This is stable for every p, including ``math.inf``.

    Keeps ``nu`` (n), shaped like the parameter, real.

    Args:
        p: the order of the norm, > 0.
        b2: β₂ in [0, 1); decays the norm, so the p-th power decays with :math:`\beta_2^p`.
        eps: added to :math:`\hat v^{1/p}`.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Section 7.1, equations 6-8.

    >>> opt = adamx.chain(adamx.scale_by_lp_norm(p=100.0), adamx.bias_correction())
    >>> opt.update(jnp.array([3.0, -1e-3]), opt.init(jnp.zeros(2)))[0].round(3)
    Array([ 1., -1.], dtype=float32)
    """
    log_decay = finite(p) * log(b2)
    if isinstance(log_decay, float):
        log_decay = max(log_decay, log(0.0))
    else:
        log_decay = jnp.maximum(log_decay, log(0.0))
    share = (-expm1(log_decay)) ** (1 / p)

    def update(signal, slots, step):
        a, c = b2 * slots["nu"], share * jnp.abs(signal.gradient)
        nu = lp_norm(a, c, p)
        shrunk = step.clock["log_decay"] ** (1 / p)
        u = divide(signal.update, nu + eps * shrunk, eps)
        return signal.with_statistic(u, weight=1 / shrunk), {"nu": nu}

    return Rule(update, slots={"nu": squares}, clocks={"log_decay": decay_clock(log_decay)})


@jax.custom_jvp
def lp_norm(a: Reals, c: Reals, p: Any) -> Reals:
    """(aᵖ + cᵖ)^(1/p) for a, c ≥ 0, with powers relative to the larger one of both."""
    largest = jnp.maximum(a, c)
    scale = jnp.where(largest == 0, 1, largest)
    return largest * ((a / scale) ** p + (c / scale) ** p) ** (1 / p)


@lp_norm.defjvp
def _lp_norm_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The derivative, with powers relative to the norm; it is defined as 0 at 0."""
    (a, c, p), (da, dc, dp) = primals, tangents
    n = lp_norm(a, c, p)

    def share(x: Reals, dx: Any) -> Reals:
        ratio = jnp.where(x == 0, 1, x / jnp.where(n == 0, 1, n))
        slope = ratio ** (p - 1)
        return jnp.where(x == 0, 0, slope * dx + n / p * slope * ratio * jnp.log(ratio) * dp)

    return n, share(a, da) + share(c, dc)
