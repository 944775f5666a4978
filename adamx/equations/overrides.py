"""Rules in the arithmetic of the papers, of the stages that compute in another way.

Such a rule takes the arguments of its stage, is read in place of the stage's own rule, and computes
the same for matrices. ``let`` gives a value a line of its own.
"""

# pyright: reportMissingParameterType=false, reportOperatorIssue=false

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from adamx import stages
from adamx.core import (
    Clock,
    Rule,
    Slot,
    decay_clock,
    decaying_average,
    is_off,
    iterate,
    norm,
    squares,
    zeros,
)
from adamx.equations.formulas import fresh
from adamx.equations.program import LAST, is_constant, let, mean_along, over_all, width
from adamx.numerics.arithmetic import log
from adamx.stages.averaging import power_exponent

__all__ = ["paper_form"]


def paper_form(stage: Callable[..., Any]) -> Callable[[Any], Any]:
    """Register a rule in the arithmetic of a paper, which ``explain`` reads in place of a stage's.

    >>> from adamx.core import Real, stage
    >>> from adamx.equations import explain, paper_form
    >>> @stage
    ... def power(exponent: Real):
    ...     def shape(signal):
    ...         size = jnp.exp(exponent * jnp.log(jnp.abs(signal.update)))
    ...         return signal.with_update(jnp.sign(signal.update) * size)
    ...     return shape
    >>> @paper_form(power)
    ... def _(exponent):
    ...     return lambda s: s.with_update(jnp.sign(s.update) * jnp.abs(s.update) ** exponent)
    >>> explain(adamx.chain(power(0.5), adamx.scale_by_learning_rate(0.1)))
    gₜ = ∇f(θₜ₋₁)
    gₜ ← sign(gₜ) √|gₜ|
    θₜ = θₜ₋₁ − 0.1 gₜ
    """

    def register(form: Any) -> Any:
        stage.definition.equations = form  # pyright: ignore[reportFunctionMemberAccess]
        return form

    return register


STEPS = Clock(lambda: jnp.zeros(()), lambda t: t + 1, lambda t: t)


def number(start: Any) -> Callable[[Any], Any]:
    """A slot of one number, the same for all parameters."""
    return lambda param: jnp.full((), start, param.dtype)


# The state holds z alone; x, of which the paper speaks, is computed from z and the parameters.
@paper_form(stages.schedule_free)
def schedule_free(learning_rate, b1, r, weight_lr_power):
    if not (is_constant(r) and is_constant(weight_lr_power)):
        raise NotImplementedError("its weights have powers that change")
    depends_on_rate = not (isinstance(learning_rate, float) or is_off(weight_lr_power))

    def update(signal, slots, step):
        t, kept = step.clock["steps"], {}
        w, c = t**r, 1 / t
        if depends_on_rate:
            kept["γ"] = jnp.maximum(slots["γ"], learning_rate)
            w = w * kept["γ"] ** weight_lr_power
        if "W" in slots:
            w = let(w, "w")
            kept["W"] = slots["W"] + w
            c = let(jnp.where(kept["W"] == 0, 1.0, w / kept["W"]), "c")
        z = slots["z"] + signal.update
        x = (1 - c) * slots["x"] + c * z
        signal = signal.with_statistic((1 - b1) * z + b1 * x - signal.param)
        return signal.with_notes(**{LAST: signal.update}), {**kept, "z": z, "x": x}

    slots = {"γ": number(0.0)} if depends_on_rate else {}
    slots |= {"W": number(0.0)} if depends_on_rate or not is_off(r) else {}
    return Rule(update, {**slots, "z": iterate, "x": iterate}, {"steps": STEPS})


# The same.
@paper_form(stages.primal_average)
def primal_average(interpolation, decay):
    def update(signal, slots, step):
        z = slots["z"] + signal.update
        x = decay * slots["x"] + (1 - decay) * z
        y = (1 - interpolation) * z + interpolation * x
        signal = signal.with_statistic(y - signal.param)
        return signal.with_notes(**{LAST: signal.update}), {"z": z, "x": x}

    return Rule(update, {"z": iterate, "x": iterate})


# The share 1 − β of the new parameters is computed, as β rounds to 1.
@paper_form(stages.power_ema)
def power_ema(std, compensated):
    exponent = power_exponent(std) + 1

    def update(signal, slots, step):
        beta = let((1 - 1 / step.clock["steps"]) ** exponent, "β")
        theta = signal.next_param
        return signal, {"ema": beta * slots["ema"] + (1 - beta) * theta}

    return Rule(update, {"ema": Slot(zeros, letter="θ̄")}, {"steps": STEPS})


# The clock counts the iterates in the mean, and the rounding error of the mean is kept beside it.
@paper_form(stages.tail_average)
def tail_average(start, every, total_steps, compensated):
    def update(signal, slots, step):
        first = start if is_off(total_steps) else start * total_steps
        t, mean = step.clock["steps"], slots["mean"]
        past = t if is_off(start) else t - first
        n = let(past / every, "n")
        moved = mean + (signal.next_param - mean) / n
        if not (is_constant(every) and every == 1):
            moved = jnp.where(n == jnp.floor(n), moved, mean)
        return signal, {"mean": moved if is_off(start) else jnp.where(n > 0, moved, mean)}

    return Rule(update, {"mean": Slot(zeros, letter="θ̄")}, {"steps": STEPS})


# One clock holds d₀, d, the largest estimate and r, and d² is kept in units of d₀.
@paper_form(stages.estimate_distance)
def estimate_distance(
    d0, d_coef, growth_rate, safeguard_warmup, bias_corrected, learning_rate, b1, b2, b3
):
    is_limited = not (isinstance(growth_rate, float) and growth_rate == math.inf)

    def update(signal, slots, step):
        g, d, rate, kept = signal.gradient, slots["d"], learning_rate, {}
        if bias_corrected:
            rate = rate * let(jnp.sqrt(step.clock["w2"]) / step.clock["w1"], "κ")
        inner = over_all(jnp.sum(g * (slots["start"] - signal.param)))
        r = b3 * slots["r"] + d**2 * rate * inner
        s = b3 * slots["s"] + d**2 * (1 if safeguard_warmup else rate) * g
        size = over_all(jnp.sum(jnp.abs(s)))
        estimate = let(jnp.where(size == 0, 0.0, d_coef * r / size), fresh("d", accent="hat"))
        new = jnp.maximum(slots["D"] if is_limited else d, estimate)
        if is_limited:
            kept["D"] = new
            grown = let(jnp.where(d == d0, jnp.maximum(d0, estimate), d), "e")
            new = jnp.minimum(new, growth_rate * grown)
        signal = signal.with_update(d * signal.update).with_notes(distance=d, unit=new)
        return signal, {**kept, "r": r, "s": s, "start": slots["start"], "d": new}

    slots = {"r": number(0.0), "s": zeros, "start": iterate, "d": number(d0)}
    slots |= {"D": number(d0)} if is_limited else {}
    weights = {"w1": decay_clock(log(b1)), "w2": decay_clock(log(b2))} if bias_corrected else {}
    return Rule(update, slots, weights)


# The shape of an array decides whether its second moment is factored.
@paper_form(stages.scale_by_factored_rms)
def scale_by_factored_rms(decay_rate, eps, b2_cap, min_dim_size_to_factor):
    if not isinstance(min_dim_size_to_factor, int):
        raise NotImplementedError("the shapes of what it keeps depend on the step")

    def update(signal, slots, step):
        square = signal.gradient**2 + eps
        beta = 1 - step.clock["steps"] ** -decay_rate
        is_capped = not isinstance(b2_cap, float) or b2_cap < 1
        beta = let(jnp.minimum(beta, b2_cap) if is_capped else beta, "β")
        row = beta * slots["R"] + (1 - beta) * mean_along(square, "j", square.shape)
        column = beta * slots["C"] + (1 - beta) * mean_along(square, "i", square.shape)
        v = jnp.where(
            width(signal.gradient) >= max(min_dim_size_to_factor, 1),
            row * column / mean_along(row, "i", square.shape),
            beta * slots["v"] + (1 - beta) * square,
        )
        signal = signal.with_statistic(signal.update / jnp.sqrt(v))
        return signal, {"R": row, "C": column, "v": v}

    means = {
        k: lambda x, i=i: mean_along(zeros(x), i, x.shape) for k, i in (("R", "j"), ("C", "i"))
    }
    return Rule(update, {**means, "v": zeros}, {"steps": STEPS})


# The clock adds logarithms of μ, and reads four numbers from them.
@paper_form(stages.scale_by_nesterov_momentum)
def scale_by_nesterov_momentum(b1, momentum_decay, constant_decay):
    warms_up = not (isinstance(momentum_decay, float) and momentum_decay == math.inf)

    def update(signal, slots, step):
        t, symbol, now, ahead = step.clock["steps"], fresh("μ"), b1, b1
        if warms_up:
            now = let(b1 * (1 - 0.5 * 0.96 ** (momentum_decay * t)), symbol)
            ahead = let(b1 * (1 - 0.5 * 0.96 ** (momentum_decay * (t + 1))), symbol.after)
        product = now * slots["product"]
        beta = b1 if constant_decay else now
        m = beta * slots["m"] + (1 - beta) * signal.update
        u = ahead * m / (1 - ahead * product) + (1 - now) * signal.update / (1 - product)
        u = let(u, fresh("m", accent="hat"))
        return signal.with_statistic(u), {"m": m, "product": product}

    return Rule(update, {"m": zeros, "product": number(1.0)}, {"steps": STEPS})


# The state holds the norm v^(1/p) and computes powers relative to the larger term.
@paper_form(stages.scale_by_lp_norm)
def scale_by_lp_norm(p, b2, eps):
    if isinstance(p, float) and p == math.inf:

        def largest(signal, slots, step):
            n = jnp.maximum(b2 * slots["n"], jnp.abs(signal.gradient))
            return signal.with_statistic(signal.update / (n + eps)), {"n": n}

        return Rule(largest, {"n": squares})
    mean, kept = decaying_average(b2**p), "v" if is_constant(p) else "n"

    def update(signal, slots, step):
        size, shrunk = jnp.abs(signal.gradient) ** p, mean.weight(step) ** (1 / p)
        if is_constant(p):
            new = mean(slots["v"], size)
            n = new ** (1 / p)
        else:
            q = let(b2**p, "q")
            n = new = (q * slots["n"] ** p + (1 - q) * size) ** (1 / p)
        u = signal.update / (n + eps * shrunk)
        return signal.with_statistic(u, weight=1 / shrunk), {kept: new}

    return Rule(update, {kept: squares}, mean.clocks)


# The clock averages the age of the gradients in v, from which ρ follows for any schedule of β₂.
@paper_form(stages.rectify)
def rectify(threshold, b2):
    def update(signal, slots, step):
        t, kept = step.clock["steps"], {}
        longest = let(2 / (1 - b2) - 1, fresh("ρ", "∞"))
        if is_constant(b2):
            rho = longest - 2 * t * b2**t / (1 - b2**t)
        else:
            kept["product"] = b2 * slots["product"]
            weight = 1 - kept["product"]
            kept["S"] = b2 * slots["S"] + weight
            rho = jnp.minimum(2 * kept["S"] / weight - 1, longest)
        rho = let(rho, "ρ")
        r = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        r = let(jnp.sqrt(r), "r")
        undivided, before = signal.note("undivided", by="scale_by_rms or scale_by_belief")
        bias = signal.bias
        if bias is not None:
            bias = jnp.where(rho > threshold, bias, 1.0 if before is None else before)
        u = jnp.where(rho > threshold, r * signal.update, undivided)
        return dataclasses.replace(signal, update=u, bias=bias), kept

    slots = {} if is_constant(b2) else {"S": number(0.0), "product": number(1.0)}
    return Rule(update, slots, {"steps": STEPS})


# β₃ is computed as 1 − β₃, by numbers that are known before the step.
@paper_form(stages.scale_by_mixed_momentum)
def scale_by_mixed_momentum(b1, b3, alpha, alpha_warmup, b3_warmup):
    fast = decaying_average(b1)

    def update(signal, slots, step):
        def done(warmup):
            return jnp.minimum(1.0, step.clock["steps"] / jnp.maximum(warmup, 1.0))

        m, factor, beta = fast(slots["m"], signal.update), alpha, b3
        if not is_off(alpha_warmup):
            factor = let(done(alpha_warmup) * alpha, "α")
        if not is_off(b3_warmup):
            s = let(done(b3_warmup), "s")
            start = 0 if is_off(b1) else (1 - s) / jnp.log(b1)
            beta = let(jnp.exp(1 / (start + s / jnp.log(b3))), fresh("β", "3"))
        n = beta * slots["n"] + (1 - beta) * signal.update
        u = m / fast.weight(step) + factor * n
        return signal.with_statistic(u), {"m": m, "n": n}

    return Rule(update, {"m": zeros, "n": zeros}, {**fast.clocks, "steps": STEPS})


# One clock holds the mean, the standard deviation and the bound, which no sum of squares overflows.
@paper_form(stages.clip_by_zscore)
def clip_by_zscore(decay, threshold, eps, max_norm, warmup_steps):
    def update(signal, slots, step):
        t, u, mu = step.clock["steps"], signal.update, slots["μ"]
        n = let(jnp.sqrt(over_all(jnp.sum(jnp.abs(u) ** 2))), "n")
        z = let(jnp.where(t > warmup_steps, (n - mu) / (jnp.sqrt(slots["v"]) + eps), 0.0), "z")
        e = let(jnp.where(z > threshold, mu + threshold**2 * jnp.sqrt(slots["v"]) / z, n), "e")
        later = decay * mu + (1 - decay) * e
        new = jnp.where(t > warmup_steps, later, mu + (n - mu) / t)
        later = decay * slots["v"] + (1 - decay) * (e - new) ** 2
        first = slots["v"] + ((n - mu) * (n - new) - slots["v"]) / t
        v = jnp.where(t > warmup_steps, later, first)
        is_limited = not (isinstance(max_norm, float) and max_norm == math.inf)
        most = jnp.minimum(e, max_norm) if is_limited else e
        return signal.with_update(u * jnp.minimum(1.0, most / n)), {"μ": new, "v": v}

    return Rule(update, {"μ": number(0.0), "v": number(0.0)}, {"steps": STEPS})


# Norms that are zero or not finite do not count, and two scales are chosen from in one expression.
@paper_form(stages.clip_by_norm_history)
def clip_by_norm_history(decay, ratio, max_norm, warmup_steps):
    def update(signal, slots, step):
        t, u, gamma = step.clock["steps"], signal.update, slots["γ"]
        own = let(norm(u).value, "n")
        most = jnp.where(gamma == 0, own, ratio * gamma)
        h = jnp.minimum(1.0, most / own)
        if warmup_steps:
            every = jnp.sqrt(over_all(jnp.sum(jnp.abs(u) ** 2)))
            h = jnp.where(t > warmup_steps, h, jnp.minimum(1.0, max_norm / every))
        e = let(let(h, "h") * own, "e")
        new = decay * gamma + (1 - decay) * e
        if warmup_steps:
            new = jnp.where(t > warmup_steps, new, jnp.minimum(gamma, e))
        new = jnp.where(gamma == 0, e, new)
        return signal.with_update(h * u), {"γ": new}

    return Rule(update, {"γ": number(0.0)}, {"steps": STEPS})


# The step is computed without the parameter, so that it does not round it.
@paper_form(stages.proximal_step)
def proximal_step(learning_rate, weight_decay):
    def shape(signal):
        moved, shrunk = -learning_rate * signal.update, 1 + learning_rate * weight_decay
        if is_off(weight_decay):
            return signal.with_step(moved)
        return signal.with_step((signal.param + moved) / shrunk - signal.param)

    return shape
