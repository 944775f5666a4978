"""Second moments: the mean square of the gradient for every coordinate."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Decay,
    NonNegative,
    Rule,
    Signal,
    Slot,
    abs_sq,
    decay_clock,
    decaying_average,
    divide,
    plus,
    real_zeros,
    remainder,
    root,
    squares,
    squares_from,
    stage,
    zeros,
)
from adamx.numerics.arithmetic import log
from adamx.numerics.formats import limited
from adamx.numerics.types import Reals

__all__ = [
    "scale_by_belief",
    "scale_by_max_rms",
    "scale_by_rms",
    "scale_by_stddev",
    "scale_by_yogi",
]


def divided_by_rms(
    signal: Signal, nu: Reals, weight: Any, eps: Any = 0.0, eps_hat: Any = 0.0, eps_root: Any = 0.0
) -> Signal:
    """The update divided by √(v + ε_root w) + ε√w + ε̂; leaves v and the old update as notes.

    The quotient has the bias 1/√w. The ε have the unit of the gradient. If an earlier stage has
    multiplied the gradient by a ``unit``, the ε are multiplied by it, too.
    """
    shrunk, unit = root(weight), signal.notes.get("unit", 1)
    rms = root(plus(nu, eps_root, weight * unit**2))
    rms = plus(plus(rms, eps, shrunk * unit), eps_hat, unit)
    divided = signal.with_statistic(
        divide(signal.update, rms, eps, eps_hat, eps_root), weight=1 / shrunk
    )
    return divided.with_notes(second_moment=(nu, weight), undivided=(signal.update, signal.bias))


@stage(reach="element")
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

    There are three positions for ε. After :func:`bias_correction`, the denominator is
    :math:`\sqrt{\hat v} + \epsilon` (``eps``, Algorithm 1) or :math:`\sqrt{\hat v + \epsilon}`
    (``eps_root``). Before the correction, it is :math:`\sqrt{v} + \hat\epsilon` (``eps_hat``, the
    reordered form at the end of Section 2, also used by RMSProp).

    v averages the squared gradient, not the squared update. If all ε are zero, 0/0 is 0. For a
    complex gradient, v is real and the step keeps the phase of the gradient.

    The rounding errors of v in float32 form a random walk. If β₂ is so close to 1 that v forgets
    almost nothing in t steps, its relative error after t steps is about 1.4e-8·√t (β₂ = 0.99999:
    1e-6 of the update after 5·10⁴ steps). No arithmetic can avoid this while v is a single float32.
    With ``compensated``, the state also keeps the rounding error of v.

    Keeps ``nu``, shaped like the parameter, real; if compensated also ``nu_lost``, in
    bfloat16.

    Args:
        b2: β₂ in [0, 1).
        eps: added to :math:`\sqrt{\hat v}`.
        eps_hat: added to :math:`\sqrt v`, without the factor :math:`\sqrt{w_t}`.
        eps_root: added to :math:`\hat v` inside the root; makes the step differentiable at 0.
        compensated: keep v with eight more bits, for two more bytes per parameter.

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
        return divided_by_rms(signal, nu, mean_square.weight(step), eps, eps_hat, eps_root), kept

    slots = {"nu": squares} | ({"nu_lost": remainder} if compensated else {})
    return Rule(update, slots=slots, clocks=mean_square.clocks)


@stage(reach="element")
def scale_by_stddev(b2: Decay = 0.9, eps: NonNegative = 1e-8):
    r"""Divide the update by the standard deviation of the gradient (centered RMSProp).

    .. math::
        m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \quad
        u \leftarrow \frac{u}{\sqrt{v_t - |m_t|^2} + \epsilon}

    If rounding makes the difference negative, it is replaced by 0. Both averages start at zero and
    are not corrected, because their difference has no common factor.

    Keeps ``mu`` and ``nu``, shaped like the parameter; ``nu`` is real. :func:`quantize_state` does
    not quantize them, because their difference is sensitive to rounding.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the root, as in torch; Graves and Optax add it inside the root.

    Source: Graves 2013 (arXiv 1308.0850), equations 38-41; torch.optim.RMSprop.

    >>> opt = adamx.scale_by_stddev(b2=0.5, eps=0.0)
    >>> opt.update(jnp.array([3.0]), opt.init(jnp.zeros(1)))[0]
    Array([2.], dtype=float32)
    """
    mean = decaying_average(b2)

    def update(signal, slots, step):
        signal = signal.limited()  # which the core leaves out where all slots are exact
        mu = mean(slots["mu"], signal.gradient)
        nu = mean(slots["nu"], abs_sq(signal.gradient))
        stddev = root(jnp.maximum(nu - abs_sq(mu), 0)) + eps
        return signal.with_statistic(divide(signal.update, stddev, eps)), {"mu": mu, "nu": nu}

    # v − |m|² cancels: of slots of few bits, their rounding would be all that is left.
    exact = {"mu": Slot(zeros, holds="exact"), "nu": Slot(real_zeros, holds="exact")}
    return Rule(update, slots=exact)


@stage(reach="element")
def scale_by_max_rms(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 0.0,
):
    r"""Divide the update by the largest root mean square of the gradient so far (AMSGrad).

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        n_t = \max(n_{t-1}, v_t), \qquad
        u \leftarrow \frac{u}{\sqrt{n_t + \epsilon_\text{root} w_t} + \epsilon \sqrt{w_t}
        + \hat\epsilon}

    with :math:`w_t = 1 - \prod_i \beta_{2,i}`. The maximum is over the uncorrected v, which starts
    at zero. A later :func:`bias_correction` divides by the root of the current weight of v, as in
    torch. The paper has no correction. (Optax computes the maximum of :math:`\hat v`. The first few
    gradients may then determine the maximum forever; this is a different algorithm.)

    Keeps ``nu`` (v) and ``nu_max`` (n), shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the corrected root.
        eps_hat: added to the root before the correction.
        eps_root: added inside the corrected root.

    Source: Reddi, Kale & Kumar 2018 (arXiv 1904.09237), Algorithm 2; torch.optim.Adam with
    ``amsgrad``.

    >>> opt = adamx.scale_by_max_rms(b2=0.75, eps=0.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (2.0, 0.5):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> u, state["scale_by_max_rms"]["nu_max"]
    (Array([0.5], dtype=float32), Array([1.], dtype=float32))
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        nu = mean_square(slots["nu"], abs_sq(signal.gradient))
        nu_max = jnp.maximum(slots["nu_max"], nu)
        weight = mean_square.weight(step)
        divided = divided_by_rms(signal, nu_max, weight, eps, eps_hat, eps_root)
        return divided, {"nu": nu, "nu_max": nu_max}

    return Rule(
        update, slots={"nu": squares, "nu_max": squares.called("n")}, clocks=mean_square.clocks
    )


@stage(reach="element")
def scale_by_yogi(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 1e-6,
):
    r"""Divide the update by the root of a second moment that shrinks only slowly (Yogi).

    .. math::
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - |g_t|^2)\, |g_t|^2, \qquad
        v_0 = a, \qquad
        u \leftarrow \frac{u}{\sqrt{v_t + \epsilon_\text{root} w_t} + \epsilon \sqrt{w_t}
        + \hat\epsilon}

    Adam's v changes by (1 − β₂) :math:`|v - g^2|`, Yogi's v by (1 − β₂) :math:`g^2`. After a large
    gradient, small gradients therefore reduce v only slowly. As long as v is below every g², it
    grows like Adam's v, up to second order in 1 − β₂. So the authors correct it by the same
    :math:`w_t = 1 - \prod_i \beta_{2,i}`.

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the corrected root.
        eps_hat: added to the root before the correction. This is the paper's ε, as the paper has no
            correction.
        eps_root: added inside the corrected root.
        initial_accumulator_value: a, the value v₀. The paper recommends the mean square of the
            gradients at the start.

    Source: Zaheer et al. 2018, Adaptive methods for nonconvex optimization (NeurIPS), Algorithm 2.

    >>> opt = adamx.scale_by_yogi(b2=0.75, eps=0.0, initial_accumulator_value=0.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (4.0, 1.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> state["scale_by_yogi"]["nu"]
    Array([3.75], dtype=float32)
    """
    clock = decay_clock(log(b2))

    def update(signal, slots, step):
        square = abs_sq(signal.gradient)
        nu = slots["nu"] - (1 - b2) * jnp.sign(slots["nu"] - square) * square
        weight = step.clock["log_decay"]
        return divided_by_rms(signal, nu, weight, eps, eps_hat, eps_root), {"nu": nu}

    start = squares_from(initial_accumulator_value)
    return Rule(update, slots={"nu": start}, clocks={"log_decay": clock})


@stage(reach="element")
def scale_by_belief(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 1e-16,
):
    r"""Divide the update by the RMS distance of the gradients from the update (AdaBelief).

    .. math::
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) |g_t - u|^2 + \epsilon_\text{root}, \qquad
        u \leftarrow \frac{u}{\sqrt{s_t} + \epsilon \sqrt{w_t} + \hat\epsilon}, \qquad
        w_t = 1 - \prod_i \beta_{2,i}

    Use it after :func:`scale_by_momentum`. Then u is the momentum, and s averages the squared
    difference of gradient and momentum. As in the paper, the momentum is not yet corrected. Without
    a momentum before it, g − u is 0 and s contains only ε.

    Keeps ``nu`` (s), shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the corrected root.
        eps_hat: added to the root before the correction.
        eps_root: added to s in every step; the sum of these terms tends to ε/(1 − β₂).

    Source: Zhuang et al. 2020 (arXiv 2010.07468), Algorithm 2.

    >>> opt = adamx.chain(adamx.scale_by_momentum(0.5), adamx.scale_by_belief(b2=0.0))
    >>> opt.update(jnp.array([4.0]), opt.init(jnp.zeros(1)))[0]
    Array([1.], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        surprise = abs_sq(limited(signal.gradient - signal.update))
        unit = signal.notes.get("unit", 1)
        nu = plus(mean_square(slots["nu"], surprise), eps_root, unit**2)
        return divided_by_rms(signal, nu, mean_square.weight(step), eps, eps_hat), {"nu": nu}

    return Rule(update, slots={"nu": squares.called("s")}, clocks=mean_square.clocks)
