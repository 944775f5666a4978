"""Rectified second moments: RAdam's factor, and what uses it."""

from __future__ import annotations

from typing import Annotated, Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    Domain,
    Hyper,
    NonNegative,
    Rule,
    abs_sq,
    decaying_average,
    plus,
    root,
    stage,
)
from adamx.core.averages import decay_weight
from adamx.core.hyper import clock_dtype
from adamx.core.slots import squares
from adamx.explain import SymbolicSignal, decayed, in_symbols, symbols
from adamx.numerics.arithmetic import log, two_sum
from adamx.numerics.formats import limited
from adamx.numerics.types import Array, Bool, Float, Scalar, Values
from adamx.stages.second_moment import over_rms, over_rms_in_symbols, quotients_in_symbols

__all__ = ["scale_by_belief", "scale_by_rectified_rms"]


Length = Annotated[Hyper, Domain("a length ≥ 4", lambda x: x >= 4)]


def rectification_clock(b2: Any, threshold: Any) -> Clock:
    r"""Reads (r, whether ρ exceeds the threshold) of RAdam.

    The paper fits to a decaying average the simple average of ρ gradients with the same mean
    age: if the newest gradient is 1 step old, the mean age is (ρ + 1)/2. With S the ages summed
    by their weights, ρ = 2 S/w − 1, and for a constant β that is the paper's
    ρ∞ − 2tβᵗ/(1−βᵗ); but it holds for any schedule of β, and does not subtract two numbers of
    the size of ρ∞ to find that ρ is 5. S ← S + (w − (1−β)S), which is compensated like the sum
    of logarithms beside it: [Σ log β, lost, S, lost].
    """

    def tick(value: Float[Array, "kept=4"]) -> Float[Array, "kept=4"]:
        total, rest = two_sum(value[0], jnp.asarray(log(b2), value.dtype))
        lost = value[1] + rest
        weight = decay_weight(jnp.stack([total, lost]))
        owed = value[3] + (weight - (1 - b2) * (value[2] + value[3]))
        ages, rest = two_sum(value[2], owed)
        return jnp.stack([total, lost, ages, rest])

    def read(value: Float[Array, "kept=4"]) -> tuple[Scalar, Bool[Array, ""]]:
        longest = jnp.asarray(2 / (1 - b2) - 1, value.dtype)
        rho = jnp.minimum(2 * (value[2] + value[3]) / decay_weight(value[:2]) - 1, longest)
        reliable = rho > threshold
        rho, longest = (jnp.where(reliable, x, 5) for x in (rho, longest))  # no NaN behind where
        spread = ((rho - 4) * (rho - 2) / rho) / ((longest - 4) * (longest - 2) / longest)
        return root(spread), reliable

    return Clock(start=lambda: jnp.zeros(4, clock_dtype()), tick=tick, read=read)


def rectified(u: Values, quotient: Values, bias: Any, reading: Any) -> tuple[Values, Scalar]:
    """RAdam's choice: the quotient times r where v is reliable, u itself and no bias elsewhere."""
    r, reliable = reading
    return jnp.where(reliable, r * quotient, u), jnp.where(reliable, bias, 1)


def rectified_in_symbols(
    signal: SymbolicSignal,
    v: symbols.Symbol,
    b2: symbols.Expression,
    threshold: Any,
    *eps: symbols.Expression,
) -> SymbolicSignal:
    """:func:`rectified`, with the quotient of :func:`over_rms`."""
    longest = signal.let(signal.fresh("ρ", "∞", lag=None if b2.constant else 0), 2 / (1 - b2) - 1)
    if b2.constant:
        beta, t = decayed(b2), symbols.STEP
        rho = signal.let("ρ", longest - 2 * t * beta / (1 - beta))
    else:
        ages = signal.let("S", lambda S: b2 * S + signal.weight(b2))
        rho = signal.let("ρ", symbols.minimum(2 * ages / signal.weight(b2) - 1, longest))
    spread = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
    r, reliable = signal.let("r", symbols.root(spread)), rho > threshold
    u, corrected, weight = quotients_in_symbols(signal, v, *eps)
    return signal.named().with_statistic(
        symbols.cases(reliable, r * u, signal.update),
        symbols.cases(reliable, r * corrected, signal.update),
        symbols.cases(reliable, weight, 1),
    )


@stage
def scale_by_rectified_rms(
    b2: Decay = 0.999,
    eps: NonNegative = 0.0,
    *,
    eps_hat: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: Length = 5.0,
):
    r"""Divide by the root mean square once it rests on enough gradients, rectified (RAdam).

    .. math::
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
        {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    .. math::
        u \leftarrow \begin{cases} r_t\, u / (\sqrt{v_t + \epsilon_\text{root} w_t}
        + \epsilon \sqrt{w_t} + \hat\epsilon) & \rho_t > 5 \\ u & \text{otherwise} \end{cases}

    v and w are those of :func:`scale_by_rms`. ρ is the length of the simple average that looks
    back as far as v does: (ρ + 1)/2 is the mean age of the gradients in v, and that is how it is
    computed, for any schedule of β₂. Up to 5 gradients the variance of 1/√v is unbounded or
    nearly so, and the update passes undivided. (A β₂ ≤ 2/3 has ρ∞ ≤ 5 and never divides.)

    Keeps ``nu``, shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to :math:`\sqrt{\hat v}`, as Optax does.
        eps_hat: added to :math:`\sqrt v`, as the authors' code and torch do; the paper has no ε.
        eps_root: added to :math:`\hat v` inside the root.
        threshold: what ρ must exceed, ≥ 4, where the variance is infinite (the paper's choice);
            the authors' code and torch have 5.

    Source: Liu et al. 2020 (arXiv 1908.03265), Algorithm 2.

    >>> opt = adamx.chain(adamx.scale_by_rectified_rms(), adamx.bias_correction())
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (4.0, 4.0, 4.0, 4.0, 4.0, 4.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u)
    [4.]
    [4.]
    [4.]
    [4.]
    [4.]
    [0.0258]
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        nu = mean_square(slots["nu"], abs_sq(signal.gradient))
        divided = over_rms(signal.update, nu, mean_square.weight(step), eps, eps_hat, eps_root)
        u, bias = rectified(signal.update, *divided, step.clock["length"])
        return signal.with_statistic(u, weight=bias), {"nu": nu}

    clocks = mean_square.clocks | {"length": rectification_clock(b2, threshold)}
    return Rule(update, slots={"nu": squares}, clocks=clocks)


@in_symbols(scale_by_rectified_rms)
def _(signal, b2, eps, eps_hat, eps_root, threshold):
    v = signal.average("v", b2, of=signal.gradient**2)
    return rectified_in_symbols(signal, v, b2, threshold, eps, eps_hat, eps_root)


@stage
def scale_by_belief(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    *,
    eps_hat: NonNegative = 0.0,
    eps_root: NonNegative = 1e-16,
    rectify: bool = False,
):
    r"""Divide the update by how far the gradients are from it (AdaBelief).

    .. math::
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) |g_t - u|^2 + \epsilon_\text{root}, \qquad
        u \leftarrow \frac{u}{\sqrt{s_t} + \epsilon \sqrt{w_t} + \hat\epsilon}, \qquad
        w_t = 1 - \prod_i \beta_{2,i}

    Stands behind :func:`scale_by_momentum`: u is then the mean that the gradient is compared
    with, not yet corrected, as in the paper. Behind nothing, the gradient is what it is believed
    to be, and only ε remains of s.

    Keeps ``nu`` (s), shaped like the parameter, real.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the corrected root.
        eps_hat: added to the root before the correction.
        eps_root: added to s in every step, where it adds up to ε/(1 − β₂).
        rectify: divide as :func:`scale_by_rectified_rms` does, once ρ > 5.

    Source: Zhuang et al. 2020 (arXiv 2010.07468), Algorithm 2.

    >>> opt = adamx.chain(adamx.scale_by_momentum(0.5), adamx.scale_by_belief(b2=0.0))
    >>> opt.update(jnp.array([4.0]), opt.init(jnp.zeros(1)))[0]
    Array([1.], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def update(signal, slots, step):
        surprise = abs_sq(limited(signal.gradient - signal.update))
        nu = plus(mean_square(slots["nu"], surprise), eps_root)
        u, bias = over_rms(signal.update, nu, mean_square.weight(step), eps, eps_hat)
        if rectify:
            u, bias = rectified(signal.update, u, bias, step.clock["length"])
        return signal.with_statistic(u, weight=bias), {"nu": nu}

    clocks = mean_square.clocks
    if rectify:
        clocks = clocks | {"length": rectification_clock(b2, 5.0)}
    return Rule(update, slots={"nu": squares}, clocks=clocks)


@in_symbols(scale_by_belief)
def _(signal, b2, eps, eps_hat, eps_root, rectify):
    surprise = (signal.gradient - signal.update) ** 2
    s = signal.let(
        "s",
        lambda s: b2 * s + (1 - b2) * surprise + eps_root,
        weight=signal.weight(b2),
    )
    if rectify:
        return rectified_in_symbols(signal, s, b2, 5.0, eps, eps_hat)
    return over_rms_in_symbols(signal, s, eps, eps_hat)
