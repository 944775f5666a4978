"""Second moments: how large the gradient is, coordinate by coordinate."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Positive,
    Rule,
    Slot,
    abs_sq,
    decay_clock,
    decaying_average,
    divide,
    plus,
    root,
    stage,
    zeros,
)
from adamx.core.hyper import clock_dtype
from adamx.core.slots import real_zeros, remainder, squares
from adamx.explain import SymbolicSignal, in_symbols, symbols
from adamx.numerics.arithmetic import at_least, log
from adamx.numerics.types import Array, Bool, Int32, Reals, Scalar, Values

__all__ = [
    "scale_by_adadelta",
    "scale_by_atan2",
    "scale_by_delayed_rms",
    "scale_by_max_rms",
    "scale_by_rms",
    "scale_by_stddev",
    "scale_by_yogi",
]


def over_rms(
    u: Values, nu: Reals, weight: Any, eps: Any = 0.0, eps_hat: Any = 0.0, eps_root: Any = 0.0
) -> tuple[Values, Scalar]:
    """u / (√(v + ε_root w) + ε√w + ε̂), and the factor 1/√w by which the quotient is biased."""
    shrunk = root(weight)
    rms = plus(plus(root(plus(nu, eps_root, weight)), eps, shrunk), eps_hat)
    return divide(u, rms, eps, eps_hat, eps_root), 1 / shrunk


def over_rms_in_symbols(
    signal: SymbolicSignal, v: symbols.Symbol, *eps: symbols.Expression
) -> SymbolicSignal:
    """:func:`over_rms` of the update, as it is and corrected."""
    return signal.with_statistic(*quotients_in_symbols(signal, v, *eps))


def quotients_in_symbols(
    signal: SymbolicSignal,
    v: symbols.Symbol,
    eps: symbols.Expression,
    eps_hat: symbols.Expression = symbols.ZERO,
    eps_root: symbols.Expression = symbols.ZERO,
) -> tuple[symbols.Expression, ...]:
    """The quotient, the quotient once corrected, and the weight between them."""
    weight = signal.weights[v]
    shrunk = symbols.root(weight)
    u = signal.update / (symbols.root(v + eps_root * weight) + eps * shrunk + eps_hat)
    corrected = signal.update / (symbols.root(v.hat + eps_root) + eps + eps_hat / shrunk)
    return u, corrected, 1 / shrunk


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
        u, bias = over_rms(signal.update, nu, mean_square.weight(step), eps, eps_hat, eps_root)
        return signal.with_statistic(u, weight=bias), kept

    slots = {"nu": squares} | ({"nu_lost": remainder} if compensated else {})
    return Rule(update, slots=slots, clocks=mean_square.clocks)


@in_symbols(scale_by_rms)
def _(signal, b2, eps, eps_hat, eps_root, compensated):
    v = signal.average("v", b2, of=signal.gradient**2)
    return over_rms_in_symbols(signal, v, eps, eps_hat, eps_root)


@stage
def scale_by_stddev(b2: Decay = 0.9, eps: NonNegative = 1e-8):
    r"""Divide the update by the standard deviation of the gradient (centered RMSProp).

    .. math::
        m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \quad
        u \leftarrow \frac{u}{\sqrt{v_t - |m_t|^2} + \epsilon}

    The difference is taken as 0 where rounding would make it negative. Both averages start at
    zero and are used as they are: their difference has no single factor to correct.

    Keeps ``mu`` and ``nu``, shaped like the parameter; ``nu`` is real. As their difference is
    taken, :func:`quantize_state` leaves both as they are.

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
        signal = signal.limited()  # which the core leaves out where all slots are exact
        mu = mean(slots["mu"], signal.gradient)
        nu = mean(slots["nu"], abs_sq(signal.gradient))
        stddev = root(jnp.maximum(nu - abs_sq(mu), 0)) + eps
        return signal.with_statistic(divide(signal.update, stddev, eps)), {"mu": mu, "nu": nu}

    # v − |m|² cancels: of slots of few bits, their rounding would be all that is left.
    exact = {"mu": Slot(zeros, holds="exact"), "nu": Slot(real_zeros, holds="exact")}
    return Rule(update, slots=exact)


@in_symbols(scale_by_stddev)
def _(signal, b2, eps):
    m = signal.average("m", b2, of=signal.gradient)
    v = signal.average("v", b2, of=signal.gradient**2)
    return signal.with_statistic(signal.update / (symbols.root(v - m**2) + eps))


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
        return signal.with_statistic(u), {"nu": nu, "delta": delta}

    return Rule(update, slots={"nu": squares, "delta": squares})


@in_symbols(scale_by_adadelta)
def _(signal, rho, eps):
    v, d = signal.average("v", rho, of=signal.gradient**2), signal.fresh("d")
    units = symbols.root(d.before + eps) / symbols.root(v + eps)
    signal.with_statistic(units * signal.update).named()
    signal.average(d, rho, of=signal.update**2)
    return signal


@stage
def scale_by_max_rms(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 0.0,
):
    r"""Divide the update by the largest root mean square that the gradient has had (AMSGrad).

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        n_t = \max(n_{t-1}, v_t), \qquad
        u \leftarrow \frac{u}{\sqrt{n_t + \epsilon_\text{root} w_t} + \epsilon \sqrt{w_t}
        + \hat\epsilon}

    with :math:`w_t = 1 - \prod_i \beta_{2,i}`. The maximum is of v as it is, started at zero; a
    :func:`bias_correction` behind divides by the root of v's present weight, as torch does. The
    paper has no correction. (Optax takes the maximum of :math:`\hat v`, which the first few
    gradients may hold for ever: another algorithm.)

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
        u, bias = over_rms(signal.update, nu_max, mean_square.weight(step), eps, eps_hat, eps_root)
        return signal.with_statistic(u, weight=bias), {"nu": nu, "nu_max": nu_max}

    return Rule(update, slots={"nu": squares, "nu_max": squares}, clocks=mean_square.clocks)


@in_symbols(scale_by_max_rms)
def _(signal, b2, eps, eps_hat, eps_root):
    v = signal.average("v", b2, of=signal.gradient**2)
    n = signal.let("n", lambda n: symbols.maximum(n, v), weight=signal.weight(b2))
    return over_rms_in_symbols(signal, n, eps, eps_hat, eps_root)


@stage
def scale_by_yogi(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 1e-6,
):
    r"""Divide the update by the root of Yogi's second moment, which shrinks only slowly.

    .. math::
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - |g_t|^2)\, |g_t|^2, \qquad
        u \leftarrow \frac{u}{\sqrt{v_t + \epsilon_\text{root} w_t} + \epsilon \sqrt{w_t}
        + \hat\epsilon}

    Adam's v moves by a share of :math:`|v - g^2|`, Yogi's by the same share of :math:`g^2`: after
    a large gradient, small ones let v fall no faster than they are. As long as v is below every
    g², it grows as Adam's does (up to the second order in 1 − β₂), and so the authors correct it
    by the same :math:`w_t = 1 - \prod_i \beta_{2,i}`.

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the corrected root.
        eps_hat: added to the root before the correction: the paper's ε, which has none.
        eps_root: added inside the corrected root.
        initial_accumulator_value: v₀. The paper advises the mean square of the gradients at the
            start.

    Source: Zaheer et al. 2018, Adaptive methods for nonconvex optimization (NeurIPS), Algorithm 2.

    >>> opt = adamx.scale_by_yogi(b2=0.75, eps=0.0, initial_accumulator_value=0.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (4.0, 1.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> state["scale_by_yogi"]["nu"]
    Array([3.75], dtype=float32)
    """
    clock = decay_clock(log(b2))

    def start(param):
        return real_zeros(param) + initial_accumulator_value

    def update(signal, slots, step):
        square = abs_sq(signal.gradient)
        nu = slots["nu"] - (1 - b2) * jnp.sign(slots["nu"] - square) * square
        u, bias = over_rms(signal.update, nu, step.clock["log_decay"], eps, eps_hat, eps_root)
        return signal.with_statistic(u, weight=bias), {"nu": nu}

    return Rule(update, slots={"nu": Slot(start, holds="nonnegative")}, clocks={"log_decay": clock})


@in_symbols(scale_by_yogi)
def _(signal, b2, eps, eps_hat, eps_root, initial_accumulator_value):
    square = signal.gradient**2
    v = signal.let(
        "v",
        lambda v: v - (1 - b2) * symbols.sign(v - square) * square,
        start=initial_accumulator_value,
        weight=signal.weight(b2),
    )
    return over_rms_in_symbols(signal, v, eps, eps_hat, eps_root)


@stage
def scale_by_atan2(b2: Decay = 0.99, a: Positive = 1.27, b: Positive = 1.0):
    r"""Replace the division by the root mean square by the angle between the two.

    .. math::
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad
        u \leftarrow a \operatorname{atan2}(\hat u, b \sqrt{\hat v_t})

    The angle is the quotient where that is small, and bounded by aπ/2 where nothing else
    would bound it. It needs no ε (atan2(0, 0) = 0): as long as g² neither over- nor underflows,
    the scale of the gradients is of no matter. An angle has no factor to divide out later, so
    the bias of u and v is corrected here: no :func:`bias_correction` follows. Of a complex u the
    modulus is replaced.

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        a: the scale of the angle, > 0; 4/π ≈ 1.27 turns u = √v into 1.
        b: the scale of √v, > 0: how long angle and quotient stay alike.

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


@in_symbols(scale_by_atan2)
def _(signal, b2, a, b):
    v = signal.average("v", b2, of=signal.gradient**2)
    if signal.biased:
        signal.corrected()
    return signal.with_statistic(
        a * symbols.Function("atan2", (signal.update, b * symbols.root(v.hat)))
    )


@stage
def scale_by_delayed_rms(b2: Decay = 0.9999, eps: NonNegative = 1e-6, *, clip: bool = True):
    r"""Divide the update by the root mean square of the gradients before this one (ADOPT).

    .. math::
        u \leftarrow \operatorname{clip}\left(\frac{u}{\max(\sqrt{v_{t-1}}, \epsilon)},
        \pm t^{1/4}\right), \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad v_0 = |g_0|^2

    Numerator and denominator do not depend on each other, and that is why ADOPT converges for
    any β₂. The first update is zero and gives v its first value: v never was zero and needs no
    correction. A first gradient that happens to be tiny would make the next steps huge; the
    clipping, by a bound that grows with the steps taken, lets them through only little by
    little. Of a complex u the modulus is clipped.

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: the least that is divided by. With 0, 0/0 is 0.
        clip: clip to ±t^¼; without it, it is the first version of the paper.

    Source: Taniguchi et al. 2024 (arXiv 2411.02853), Algorithm 2.

    >>> opt = adamx.scale_by_delayed_rms(b2=0.75)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (2.0, 1.0, 16.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u)
    [0.]
    [0.5]
    [1.1892]
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        seeds, bound = step.clock["steps"]
        square = abs_sq(signal.gradient)
        rms = at_least(eps, root(slots["nu"]))
        u = divide(signal.update, rms, eps)
        if clip and jnp.iscomplexobj(u):
            size = root(abs_sq(u))
            u = divide(u, size) * jnp.minimum(size, bound)
        elif clip:
            u = jnp.clip(u, -bound, bound)
        nu = jnp.where(seeds, square, mean_square(slots["nu"], square))
        return signal.with_statistic(jnp.where(seeds, 0, u)), {"nu": nu}

    return Rule(update, slots={"nu": squares}, clocks={"steps": _steps_since_the_first()})


@in_symbols(scale_by_delayed_rms)
def _(signal, b2, eps, clip):
    v, first, square = signal.fresh("v"), symbols.STEP.equals(1), signal.gradient**2
    u = signal.update / symbols.maximum(symbols.root(v.before), eps)
    if clip:
        u = symbols.Function("clip", (u, (symbols.STEP - 1) ** 0.25))
    c = signal.let("c", symbols.cases(first, 0, u))
    signal.let(v, lambda v: symbols.cases(first, square, b2 * v + (1 - b2) * square))
    return signal.with_statistic(c)


def _steps_since_the_first() -> Clock:
    """Reads (whether this is the first step, t^¼ with t = 0 there)."""

    def read(steps: Int32[Array, ""]) -> tuple[Bool[Array, ""], Scalar]:
        past = steps - 1
        return past == 0, past.astype(clock_dtype()) ** 0.25

    return Clock(
        start=lambda: jnp.zeros((), jnp.int32),
        tick=lambda steps: jnp.minimum(steps, jnp.iinfo(jnp.int32).max - 1) + 1,
        read=read,
    )
