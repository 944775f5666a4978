"""The equations of the stages whose arithmetic differs from the form in their papers.

Each equation is a function of the :class:`~adamx.equations.writer.Writer`, which has the vocabulary
of the numeric signal, and of the stage's arguments. Hyperparameters are formulas; other arguments
are passed unchanged.
"""

from __future__ import annotations

import math
from typing import Any

from adamx import stages
from adamx.equations import formulas as F
from adamx.equations.explanation import in_symbols
from adamx.equations.formulas import STEP, ZERO, Number
from adamx.equations.reader import decayed
from adamx.equations.writer import Writer

__all__ = ["OVERRIDES"]


# The state holds z alone; x, of which the paper speaks, is computed from z and the parameters.
@in_symbols(stages.schedule_free)
def schedule_free(
    signal: Writer, learning_rate: Any, b1: Any, r: Any, weight_lr_power: Any
) -> Writer:
    if not (r.constant and weight_lr_power.constant):
        raise NotImplementedError
    weight = STEP**r
    share = 1 / STEP
    if isinstance(learning_rate, F.Symbol) and weight_lr_power != ZERO:
        largest = signal.let("γ", lambda before: F.maximum(before, learning_rate))
        weight = weight * largest**weight_lr_power
    if weight != F.ONE:
        w = signal.let("w", weight)
        total = signal.let("W", lambda before: before + w)
        share = signal.let("c", F.cases(total.equals(0), 1, w / total))
    z = signal.let("z", lambda z: z + signal.update, start=F.START)
    x = signal.let("x", lambda x: (1 - share) * x + share * z, start=F.START)
    signal.with_statistic((1 - b1) * z + b1 * x - signal.param)
    signal.assumed = signal.form
    return signal


# One clock holds d₀, d, the largest estimate and r, and d² is kept in units of d₀.
@in_symbols(stages.estimate_distance)
def estimate_distance(
    signal: Writer,
    d0: Any,
    d_coef: Any,
    growth_rate: Any,
    safeguard_warmup: Any,
    bias_corrected: Any,
    learning_rate: Any,
    b1: Any,
    b2: Any,
    b3: Any,
) -> Writer:
    g, unlimited = signal.gradient, growth_rate == Number(math.inf)
    d, kappa = signal.fresh("d"), F.ONE
    if bias_corrected:
        kappa = signal.let("κ", F.root(signal.weight(b2)) / signal.weight(b1))
    rate = learning_rate * kappa
    inner = F.of("inner", g, F.START - signal.param)
    r = signal.let("r", lambda r: b3 * r + d.before**2 * rate * inner)
    seen = d.before**2 * (1 if safeguard_warmup else rate) * g
    s = F.of("norm1", signal.let("s", lambda s: b3 * s + seen))
    estimate = signal.let(d.hat, F.cases(s.equals(0), 0, d_coef * r / s))
    if unlimited:
        signal.let(d, F.maximum(d.before, estimate), start=d0)
    else:
        largest = signal.let("D", lambda before: F.maximum(before, estimate), start=d0)
        first, grown = F.maximum(d0, estimate), d.before
        grown = signal.let("e", F.cases(grown.equals(d0), first, grown))
        signal.let(d, F.minimum(largest, growth_rate * grown), start=d0)
    return signal.with_update(d.before * signal.update).with_notes(distance=d.before, unit=d)


# The shape of an array decides whether its second moment is factored.
@in_symbols(stages.scale_by_factored_rms)
def scale_by_factored_rms(
    signal: Writer, decay_rate: Any, eps: Any, b2_cap: Any, min_dim_size_to_factor: Any
) -> Writer:
    if not isinstance(min_dim_size_to_factor, int):
        raise NotImplementedError
    square = signal.gradient**2 + eps
    beta = 1 - STEP**-decay_rate
    capped = not isinstance(b2_cap, Number) or b2_cap.value < 1
    beta = signal.let("β", F.minimum(beta, b2_cap) if capped else beta)
    row = signal.average("R", beta, of=F.mean(square, "j"))
    column = signal.average("C", beta, of=F.mean(square, "i"))
    v = signal.let(
        "v",
        lambda v: F.cases(
            F.of("width", signal.gradient) >= max(min_dim_size_to_factor, 1),
            row * column / F.mean(row, "i"),
            beta * v + (1 - beta) * square,
        ),
    )
    return signal.with_statistic(signal.update / F.root(v))


# The clock adds logarithms of μ, and reads four numbers from them.
@in_symbols(stages.scale_by_nesterov_momentum)
def scale_by_nesterov_momentum(
    signal: Writer, b1: Any, momentum_decay: Any, constant_decay: Any
) -> Writer:
    def warming_up(t: Any) -> Any:
        return b1 * (1 - 0.5 * 0.96 ** (momentum_decay * t))

    now = ahead = b1
    if momentum_decay != Number(math.inf):
        now = signal.let("μ", warming_up(STEP))
        ahead = signal.let(now.after, warming_up(STEP + 1))
    signal.named()
    m = signal.average("m", b1 if constant_decay else now, of=signal.update)
    product = decayed(now)
    u = ahead * m / (1 - ahead * product) + (1 - now) * signal.update / (1 - product)
    return signal.with_statistic(signal.let(m.hat, u))


# The state holds the norm v^(1/p) and computes powers relative to the larger term.
@in_symbols(stages.scale_by_lp_norm)
def scale_by_lp_norm(signal: Writer, p: Any, b2: Any, eps: Any) -> Writer:
    size = F.absolute(signal.gradient)
    if p == Number(math.inf):
        n = signal.let("n", lambda n: F.maximum(b2 * n, size))
        return signal.with_statistic(signal.update / (n + eps))
    q = b2**p
    if p.constant:
        v = signal.average("v", q, of=size**p)
        shrunk, n = signal.weight_symbol(signal.weight(q)) ** (1 / p), v ** (1 / p)
    else:
        q = signal.let("q", q)
        shrunk = signal.weight_symbol(signal.weight(q) ** (1 / p))
        n = signal.let("n", lambda n: (q * n**p + (1 - q) * size**p) ** (1 / p), weight=shrunk)
    return signal.with_statistic(signal.update / (n + eps * shrunk), weight=1 / shrunk)


# The clock averages the age of the gradients in v, from which ρ follows for any schedule of β₂.
@in_symbols(stages.rectify)
def rectify(signal: Writer, threshold: Any, b2: Any) -> Writer:
    longest = signal.let(signal.fresh("ρ", "∞", lag=None if b2.constant else 0), 2 / (1 - b2) - 1)
    if b2.constant:
        beta, t = decayed(b2), STEP
        rho = signal.let("ρ", longest - 2 * t * beta / (1 - beta))
    else:
        ages = signal.let("S", lambda S: b2 * S + signal.weight(b2))
        rho = signal.let("ρ", F.minimum(2 * ages / signal.weight(b2) - 1, longest))
    spread = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
    r = signal.let("r", F.root(spread))
    undivided, before = signal.note("undivided", by="scale_by_rms or scale_by_belief")
    if signal.bias is not None:
        signal.bias = F.cases(rho > threshold, signal.bias, F.ONE if before is None else before)
    return signal.with_update(F.cases(rho > threshold, r * signal.form, undivided))


# β₃ is computed as 1 − β₃, by numbers that are known before the step.
@in_symbols(stages.scale_by_mixed_momentum)
def scale_by_mixed_momentum(
    signal: Writer, b1: Any, b3: Any, alpha: Any, alpha_warmup: Any, b3_warmup: Any
) -> Writer:
    def done(warmup: Any) -> Any:
        return F.minimum(1, STEP / F.maximum(warmup, 1))

    signal.named()
    m = signal.average("m", b1, of=signal.update)
    if alpha_warmup != ZERO:
        alpha = signal.let("α", done(alpha_warmup) * alpha)
    if b3_warmup != ZERO:
        s = signal.let("s", done(b3_warmup))
        start = 0 if b1 == ZERO else (1 - s) / F.log(b1)
        b3 = signal.let(signal.fresh("β", "3"), F.exp(1 / (start + s / F.log(b3))))
    n = signal.average("n", b3, of=signal.update)
    return signal.with_statistic(signal.unbiased(m) + alpha * n)


# The step is computed without the parameter, so that it does not round it.
@in_symbols(stages.proximal_step)
def proximal_step(signal: Writer, learning_rate: Any, weight_decay: Any) -> Writer:
    signal.step = True
    if weight_decay == ZERO:
        return signal.with_statistic(-learning_rate * signal.update)
    moved = signal.param - learning_rate * signal.update
    return signal.with_statistic(moved / (1 + learning_rate * weight_decay) - signal.param)


OVERRIDES: tuple[Any, ...] = (
    stages.schedule_free,
    stages.estimate_distance,
    stages.scale_by_factored_rms,
    stages.scale_by_nesterov_momentum,
    stages.scale_by_lp_norm,
    stages.rectify,
    stages.scale_by_mixed_momentum,
    stages.proximal_step,
)
"""The stages with equations of their own."""
