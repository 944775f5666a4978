"""Second moments: how large the gradient is, coordinate by coordinate."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from adamx.core import (
    Decay,
    NonNegative,
    Rule,
    abs_sq,
    decaying_average,
    divide,
    plus,
    root,
    stage,
    zeros,
)

__all__ = ["scale_by_adadelta", "scale_by_rms", "scale_by_rss", "scale_by_stddev"]

real_zeros = functools.partial(zeros, real=True)
bfloat16_zeros = functools.partial(zeros, dtype=jnp.bfloat16)


@stage
def scale_by_rms(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 0.0,
    compensated: bool = False,
):
    r"""Divide the update by the root mean square of the gradient, Adam's second moment.

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        u \leftarrow \frac{u}{\sqrt{v_t + \epsilon_\text{root} w_t} + \epsilon \sqrt{w_t}
        + \hat\epsilon}, \qquad w_t = 1 - \prod_i \beta_{2,i}

    The three ε are the paper's and its readers': after :func:`bias_correction` the denominator
    is :math:`\sqrt{\hat v} + \epsilon` (``eps``, Algorithm 1),
    :math:`\sqrt{\hat v + \epsilon}` (``eps_root``), or, before the correction,
    :math:`\sqrt{v} + \hat\epsilon` (``eps_hat``, the reordered form at the end of Section 2, and
    RMSProp's place).

    Measures the gradient, not the momentum that may flow past it. With every ε zero, 0/0 is 0.
    Of a complex gradient, v is real and the step keeps the gradient's phase.

    Rounding v to float32 in every step is a random walk: after t steps of a β₂ so close to 1
    that nothing is forgotten, v is off by about 1.4e-8·√t of itself (β₂ = 0.99999: 1e-6 of the
    update after 5·10⁴ steps). No arithmetic can help as long as v is kept in one float32;
    ``compensated`` keeps beside v what its roundings have lost.

    Keeps ``nu``, shaped like the parameter, real; if compensated also ``nu_lost``, in
    bfloat16.

    Args:
        b2: β₂ in [0, 1).
        eps: added to :math:`\sqrt{\hat v}`.
        eps_hat: added to :math:`\sqrt v`, not scaled with the weight.
        eps_root: added to :math:`\hat v` inside the root; makes the step differentiable at 0.
        compensated: keep v in eight more bits, for two more bytes a parameter.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1 and Section 2; Tieleman & Hinton
    2012 (RMSProp).

    >>> opt = adamx.chain(adamx.scale_by_rms(), adamx.bias_correction())
    >>> opt.update(jnp.array([3.0, -1e-3]), opt.init(jnp.zeros(2)))[0].round(3)
    Array([ 1., -1.], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        square = abs_sq(signal.gradient)
        if compensated:
            nu, lost = mean_square.compensated(slots["nu"], slots["nu_lost"], square)
            kept = {"nu": nu, "nu_lost": lost}
        else:
            nu = mean_square(slots["nu"], square)
            kept = {"nu": nu}
        weight = mean_square.weight(step)
        shrunk = root(weight)
        rms = plus(plus(root(plus(nu, eps_root, weight)), eps, shrunk), eps_hat)
        u = divide(signal.update, rms, eps, eps_hat, eps_root)
        return signal.measured(u, weight=1 / shrunk), kept

    slots = {"nu": real_zeros} | ({"nu_lost": bfloat16_zeros} if compensated else {})
    return Rule(update, slots=slots, clocks=mean_square.clocks)


@stage
def scale_by_stddev(b2: Decay = 0.9, eps: NonNegative = 1e-8):
    r"""Divide the update by the standard deviation of the gradient (centered RMSProp).

    .. math::
        m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \quad
        u \leftarrow \frac{u}{\sqrt{v_t - |m_t|^2} + \epsilon}

    The difference is taken as 0 where rounding would make it negative. Both averages start at
    zero and are used as they are: their difference has no single factor to correct.

    Keeps ``mu`` and ``nu``, shaped like the parameter; ``nu`` is real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the root, as torch does; Graves and Optax have it inside.

    Source: Graves 2013 (arXiv 1308.0850), equations 38-41; torch.optim.RMSprop.

    >>> opt = adamx.scale_by_stddev(b2=0.5, eps=0.0)
    >>> opt.update(jnp.array([3.0]), opt.init(jnp.zeros(1)))[0]
    Array([2.], dtype=float32)
    """
    mean = decaying_average(b2)

    def update(signal, slots, step):
        mu = mean(slots["mu"], signal.gradient)
        nu = mean(slots["nu"], abs_sq(signal.gradient))
        stddev = root(jnp.maximum(nu - abs_sq(mu), 0)) + eps
        return signal.measured(divide(signal.update, stddev, eps)), {"mu": mu, "nu": nu}

    return Rule(update, slots={"mu": zeros, "nu": real_zeros})


@stage
def scale_by_rss(eps: NonNegative = 1e-10, *, initial_accumulator_value: NonNegative = 0.0):
    r"""Divide the update by the root of the sum of all squared gradients (AdaGrad).

    .. math::
        s_t = s_{t-1} + |g_t|^2, \qquad u \leftarrow \frac{u}{\sqrt{s_t} + \epsilon}

    Keeps ``sum_of_squares``, shaped like the parameter, real.

    Args:
        eps: added to the root. With 0, 0/0 is 0.
        initial_accumulator_value: s₀.

    Source: Duchi, Hazan & Singer 2011, with diagonal matrices.

    >>> opt = adamx.scale_by_rss()
    >>> opt.update(jnp.array([3.0, -4.0]), opt.init(jnp.zeros(2)))[0]
    Array([ 1., -1.], dtype=float32)
    """

    def start(param):
        return real_zeros(param) + initial_accumulator_value

    def update(signal, slots, step):
        squares = slots["sum_of_squares"] + abs_sq(signal.gradient)
        return signal.measured(divide(signal.update, root(squares) + eps, eps)), {
            "sum_of_squares": squares
        }

    return Rule(update, slots={"sum_of_squares": start})


@stage
def scale_by_adadelta(rho: Decay = 0.9, eps: NonNegative = 1e-6):
    r"""Give the update the units of the parameter: RMS of past steps over RMS of gradients.

    .. math::
        v_t = \rho v_{t-1} + (1-\rho) |g_t|^2, \quad
        u \leftarrow \frac{\sqrt{d_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} u, \quad
        d_t = \rho d_{t-1} + (1-\rho) |u|^2

    Keeps ``nu`` (v) and ``delta`` (d), shaped like the parameter, real.

    Args:
        rho: ρ in [0, 1).
        eps: added inside both roots; it is what the very first step is made of.

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
        return signal.measured(u), {"nu": nu, "delta": delta}

    return Rule(update, slots={"nu": real_zeros, "delta": real_zeros})
