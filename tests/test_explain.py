"""An optimiser's equations are what it computes, and read as in the paper."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import (
    Decay,
    Real,
    Rule,
    StageError,
    Transformation,
    decaying_average,
    stage,
    zeros,
)
from adamx.equations import explain, paper_form
from adamx.equations.formulas import ONE, Number, Symbol, is_a, walk
from adamx.equations.shown import latex, text
from adamx.testing.equations import Evaluator
from catalog import OPTIMISERS, REPRESENTATIVES, STAGES, run, slow_but, x64
from helpers import branches

pytestmark = pytest.mark.sampled

STEPS = 12
SHAPES = {"kernel": (3, 4), "tensor": (2, 3, 2), "bias": (5,)}


RNG = np.random.default_rng(7)
PARAMS = {name: RNG.standard_normal(shape) for name, shape in SHAPES.items()}
# With a mean, so that it leads somewhere (or Prodigy would estimate no distance).
GRADS = {name: 0.3 + 0.5 * RNG.standard_normal((STEPS, *SHAPES[name])) for name in SHAPES}


def visible(opt):
    """The same with every ε so large that its place matters."""
    small = {name: x for name, x in adamx.hyperparams(opt).items() if "eps" in name}
    return opt.replace({name: 0.01 for name, x in small.items() if not callable(x) and x > 0})


def agree(opt, names=("kernel", "bias")):
    """Every step of the optimiser is the one that its equations make."""
    opt = visible(opt)
    theta = {name: PARAMS[name] for name in names}
    grads = {name: GRADS[name] for name in names}
    with x64(), np.errstate(divide="ignore", invalid="ignore"):
        updates = run(opt, *jax.tree.map(jnp.asarray, (grads, theta)))
        equations = Evaluator(explain(opt), theta)
        for i in range(STEPS):
            theta = {name: theta[name] + updates[name][i] for name in names}
            expected = equations.step({name: grads[name][i] for name in names})
            for name in names:
                np.testing.assert_allclose(theta[name], expected[name], rtol=1e-9, atol=1e-12)


# What is printed is what is computed


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_the_equations_of_a_recipe_are_what_it_computes(name):
    agree(OPTIMISERS[name](0.05), names=SHAPES)


def falling(start):
    return lambda t: start / (t + 1)


def rising(low, high):
    return lambda t: high - (high - low) / (t + 1)


MOMENTUM, RMS, CORRECTED = adamx.scale_by_momentum(), adamx.scale_by_rms(), adamx.bias_correction()
STEP = adamx.scale_by_learning_rate(0.05)

CHAINS = {
    "nothing": [],
    "scaled in front": [adamx.scale(2.0), adamx.adam(0.05)],
    "scaled behind": [adamx.adam(0.05), adamx.scale(-2.0)],
    "frozen": [adamx.adam(0.05), adamx.set_to_zero()],
    "scheduled": [
        adamx.adamw(falling(0.1), rising(0.5, 0.9), rising(0.9, 0.99), weight_decay=falling(0.1))
    ],
    "scheduled rectified": [adamx.radam(0.05, b2=rising(0.9, 0.999), threshold=4.0)],
    "scheduled lion": [adamx.scale_by_two_rate_momentum(0.9, rising(0.9, 0.99)), CORRECTED, STEP],
    "corrected lion": [adamx.scale_by_two_rate_momentum(), CORRECTED, STEP],
    "uncorrected": [MOMENTUM, adamx.scale_by_rms(eps_hat=1e-3, eps_root=1e-4), STEP],
    "every epsilon": [adamx.adam(0.05, eps=1e-3, eps_root=1e-4, eps_hat=1e-5)],
    "one correction": [RMS, MOMENTUM, CORRECTED, STEP],
    "corrected at the end": [MOMENTUM, RMS, STEP, CORRECTED],
    "a momentum twice": [MOMENTUM, adamx.scale_by_momentum(0.8), CORRECTED, STEP],
    "decayed before the correction": [
        *(MOMENTUM, RMS, adamx.add_decayed_weights(0.1), CORRECTED, STEP)
    ],
    "clipped before the correction": [
        *(MOMENTUM, adamx.clip_by_global_norm(0.3), RMS, CORRECTED, STEP)
    ],
    "cautious before the correction": [*(MOMENTUM, RMS, adamx.cautious(), CORRECTED, STEP)],
    "trusted before the correction": [MOMENTUM, RMS, adamx.trust_ratio(eps=1e-3), STEP],
    "a heavy ball before the correction": [MOMENTUM, adamx.scale_by_heavy_ball(), CORRECTED, STEP],
    "a rectified step before the correction": [
        *(
            MOMENTUM,
            adamx.scale_by_rms(0.99, 0.0, eps_hat=1e-8),
            adamx.rectify(),
            adamx.clip_by_norm(),
            CORRECTED,
            STEP,
        )
    ],
    "cautious in front": [adamx.cautious(0.5), adamx.sgd(0.05)],
    "cautious behind": [adamx.adam(0.05), adamx.cautious()],
    "aligned behind": [adamx.adam(0.05), adamx.align_with_gradient()],
    "signs in front": [adamx.sign(), adamx.adam(0.05)],
    "clipped by expectation": [
        *(MOMENTUM, RMS, adamx.clip_by_relative_rms(threshold=0.5), CORRECTED, STEP)
    ],
    "units along an axis": [adamx.adaptive_clip(0.1, axis=0), adamx.sgd(0.05)],
    "two differences": [
        *(adamx.reduce_variance(0.95), adamx.clip_by_norm(0.5), adamx.reduce_variance(0.9, 0.5)),
        adamx.adam(0.05),
    ],
    "a difference of an update": [
        *(MOMENTUM, RMS, adamx.reduce_variance(0.95), adamx.clip_by_norm(0.5)),
        *(adamx.cautious(), STEP),
    ],
    "extrapolated behind": [RMS, CORRECTED, adamx.scale_by_extrapolated_momentum(), STEP],
    "an infinite norm": [MOMENTUM, adamx.scale_by_lp_norm(math.inf), CORRECTED, STEP],
    "a scheduled norm": [MOMENTUM, adamx.scale_by_lp_norm(rising(1.0, 3.0)), CORRECTED, STEP],
    "a constant nesterov": [adamx.nadam(0.05, momentum_decay=math.inf)],
    "a scheduled nesterov": [adamx.nadam(0.05, b1=rising(0.5, 0.9))],
    "no warm-up": [adamx.ademamix(0.05)],
    "no fast average": [adamx.ademamix(0.05, b1=0.0, alpha_warmup=5.0, b3_warmup=9.0)],
    "a capped decay": [adamx.adafactor(0.05, b2_cap=0.6, b1=0.9, min_dim_size_to_factor=3)],
    "one number a row": [adamx.adam_mini(0.05, blocks="row")],
    "one number an array": [adamx.adam_mini(0.05)],
    "prodigious": [
        adamx.prodigy(
            8.0,
            d0=1e-2,
            weight_decay=0.1,
            growth_rate=1.2,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    ],
    "a scheduled prodigy": [adamx.prodigy(rising(1.0, 2.0), d0=1e-2, b2=rising(0.9, 0.99))],
    "a clipped delay": [adamx.adopt(0.05, clip=False)],
    "an angle of a gradient": [adamx.scale_by_atan2(b=2.0), STEP],
    "a scheduled period": [adamx.adam(0.05), adamx.lookahead(lambda t: 2 + t // 4)],
    "lookahead twice": [adamx.sgd(0.05), adamx.lookahead(2), adamx.lookahead(4, 0.5)],
    "averaged, then scaled": [adamx.adam(0.05), adamx.polyak_ema(0.9), adamx.scale(2.0)],
    "free and weighted": [adamx.sgd(falling(0.1)), adamx.schedule_free(falling(0.1), 0.8, r=1.0)],
    "free and scheduled": [adamx.sgd(0.05), adamx.schedule_free(0.05, rising(0.5, 0.9))],
    "free from zero": [
        *(adamx.sgd(lambda t: 0.01 * t), adamx.schedule_free(lambda t: 0.01 * t)),
    ],
    "rectified and looking ahead": [adamx.radam(0.05, b2=0.99), adamx.lookahead(3)],
    "rectified and cautious": [adamx.radam(0.05, b2=0.99), adamx.cautious()],
    "rectified, then averaged": [adamx.radam(0.05, b2=0.99), MOMENTUM, CORRECTED],
    "the sign of a rectified step": [MOMENTUM, RMS, adamx.rectify(), adamx.sign(), STEP],
}


@pytest.mark.parametrize("name", slow_but(list(CHAINS)[4::6], CHAINS))
def test_the_equations_of_a_chain_are_what_it_computes(name):
    agree(adamx.chain(*CHAINS[name]))


def test_the_equations_of_a_group_are_what_is_computed_for_it():
    opt = adamx.chain(
        adamx.clip_by_norm(0.5),
        adamx.partition({"kernel": adamx.adamw(0.05), "*": adamx.sgd(0.1, momentum=0.9)}),
        adamx.where("bias", adamx.scale(2.0)),
    )
    groups = explain(opt).groups
    names = ["'kernel' and 'bias'", "'kernel' and not 'bias'", "'*' and 'bias'"]
    assert list(groups) == [*names, "'*' and not 'bias'"]
    own = {"kernel": groups[names[1]], "bias": groups[names[2]]}
    for name, explanation in own.items():
        with x64():
            grads, params = jax.tree.map(jnp.asarray, (GRADS, PARAMS))
            updates = run(opt, grads, params)[name]
        equations = Evaluator(explanation, {name: PARAMS[name]})
        for i in range(STEPS):
            before = equations.params[name]
            after = equations.step({name: GRADS[name][i]})[name]
            np.testing.assert_allclose(after - before, updates[i], rtol=1e-9, atol=1e-12)
    assert str(explain(opt)).startswith("'kernel' and 'bias':\ngₜ = ∇f(θₜ₋₁)\n")
    assert explain(opt).latex.count(r"\nabla") == 4


def test_groups_that_share_their_stages_are_one():
    opt = adamx.partition({"kernel": adamx.sgd(0.1), "*": adamx.adam(1e-3)})
    inside = adamx.where("!bias", adamx.where("kernel", adamx.scale(2.0)))
    assert list(explain(opt).groups) == ["'kernel'", "'*'"]
    assert list(explain(adamx.chain(inside, STEP)).groups) == [
        "'!bias' and 'kernel'",
        "other parameters",
    ]
    assert str(explain(adamx.where("kernel", adamx.chain()))) == "gₜ = ∇f(θₜ₋₁)\nθₜ = θₜ₋₁ + gₜ"


# How it reads

ADAM = """\
gₜ = ∇f(θₜ₋₁)
mₜ = 0.9 mₜ₋₁ + 0.1 gₜ
vₜ = 0.999 vₜ₋₁ + 0.001 gₜ²
m̂ₜ = mₜ / (1 − 0.9ᵗ)
v̂ₜ = vₜ / (1 − 0.999ᵗ)
θₜ = θₜ₋₁ − 0.001 m̂ₜ / (√v̂ₜ + 1e-08)"""


def lines(*transformations):
    return str(explain(adamx.chain(*transformations))).splitlines()


def test_adam_reads_as_algorithm_1():
    assert str(explain(adamx.adam(1e-3))) == ADAM


def test_adamw_differs_from_adam_in_the_last_line():
    *first, last = lines(adamx.adamw(1e-3))
    assert first == ADAM.splitlines()[:-1]
    assert last == "θₜ = θₜ₋₁ − 0.001 (m̂ₜ / (√v̂ₜ + 1e-08) + 0.01 θₜ₋₁)"


def test_adam_in_latex_is_aligned_and_its_numbers_are_typeset():
    assert (
        explain(adamx.adam(1e-3)).latex
        == r"""\begin{aligned}
g_t &= \nabla f(\theta_{t-1}) \\
m_t &= 0.9 \, m_{t-1} + 0.1 \, g_t \\
v_t &= 0.999 \, v_{t-1} + 0.001 \, g_t^2 \\
\hat{m}_t &= \frac{m_t}{1 - 0.9^t} \\
\hat{v}_t &= \frac{v_t}{1 - 0.999^t} \\
\theta_t &= \theta_{t-1} - 0.001 \, \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + 10^{-8}}
\end{aligned}"""
    )


def test_where_nothing_corrects_the_averages_stand_as_they_are():
    assert lines(adamx.rmsprop(0.1))[1:] == [
        "vₜ = 0.9 vₜ₋₁ + 0.1 gₜ²",
        "θₜ = θₜ₋₁ − 0.1 gₜ / (√vₜ + 1e-08)",
    ]


def test_epsilon_hat_is_what_the_reordered_form_makes_of_it():
    last = lines(adamx.adam(0.1, eps=0.0, eps_hat=1e-7))[-1]
    assert last == "θₜ = θₜ₋₁ − 0.1 m̂ₜ / (√v̂ₜ + 1e-07 / √(1 − 0.999ᵗ))"


def test_what_has_another_unit_is_divided_by_the_weight():
    decayed = adamx.scale_by_momentum(), adamx.add_decayed_weights(0.1), adamx.bias_correction()
    assert lines(*decayed)[-1] == "θₜ = θₜ₋₁ + m̂ₜ + 0.1 θₜ₋₁ / (1 − 0.9ᵗ)"


def test_a_stage_in_front_rewrites_the_gradient():
    clipped = lines(adamx.clip_by_global_norm(1.0), adamx.adam(1e-3))
    assert clipped[1] == "gₜ ← gₜ min(1, 1 / ‖gₜ‖)"
    assert clipped[:1] + clipped[2:7] == ADAM.splitlines()


def test_statistics_of_one_letter_are_told_apart():
    assert lines(adamx.scale_by_momentum(0.9), adamx.scale_by_momentum(0.5))[1:] == [
        "mₜ = 0.9 mₜ₋₁ + 0.1 gₜ",
        "m₂,ₜ = 0.5 m₂,ₜ₋₁ + 0.5 mₜ",
        "θₜ = θₜ₋₁ + m₂,ₜ",
    ]


def test_a_statistic_that_two_stages_keep_is_written_once():
    assert sum(line.startswith("vₜ") for line in lines(adamx.stableadamw(0.1))) == 1


def test_a_first_value_other_than_zero_is_written_behind_the_line():
    assert lines(adamx.adagrad(0.1, initial_accumulator_value=0.5))[1] == (
        "sₜ = sₜ₋₁ + gₜ²   (s₀ = 0.5)"
    )


# Schedules, arrays, traced numbers


def test_a_schedule_is_a_symbol_and_below_stands_what_it_is():
    rate = optax.cosine_decay_schedule(1e-3, 100)
    assert lines(adamx.adam(rate, b1=lambda t: 0.9))[1:] == [
        "mₜ = β₁,ₜ mₜ₋₁ + (1 − β₁,ₜ) gₜ",
        "vₜ = 0.999 vₜ₋₁ + 0.001 gₜ²",
        "m̂ₜ = mₜ / (1 − ∏β₁,ᵢ)",
        "v̂ₜ = vₜ / (1 − 0.999ᵗ)",
        "θₜ = θₜ₋₁ − αₜ m̂ₜ / (√v̂ₜ + 1e-08)",
        "",
        "β₁,ₜ = test_a_schedule_is_a_symbol_and_below_stands_what_it_is(t − 1)",
        "αₜ = cosine_decay_schedule(alpha=0.0, decay_steps=100, exponent=1.0, "
        "init_value=0.001)(t − 1)",
    ]


def test_a_schedule_made_of_schedules_shows_them():
    rate = optax.join_schedules([optax.constant_schedule(0.1), falling(0.2)], [5])
    assert lines(adamx.sgd(rate))[-1] == (
        "αₜ = join_schedules(boundaries=[5], "
        "schedules=[constant_schedule(value=0.1), falling(start=0.2)])(t − 1)"
    )


def test_a_schedule_that_is_a_tree_of_numbers_shows_them():
    assert lines(adamx.schedule_free_adamw(0.1, warmup_steps=3))[-1] == "αₜ = ramp(0.1, 3.0)(t − 1)"


def test_one_schedule_in_two_places_is_one_symbol_and_two_are_two():
    def written(first, second):
        return lines(adamx.sgd(first), adamx.schedule_free(second))[-2:]

    rate = falling(0.1)
    assert written(rate, rate)[-2:] == ["", "αₜ = falling(start=0.1)(t − 1)"]
    assert written(rate, falling(0.2)) == [
        "αₜ = falling(start=0.1)(t − 1)",
        "α₂,ₜ = falling(start=0.2)(t − 1)",
    ]


def test_a_batch_and_a_traced_number_are_symbols_a_scalar_array_is_a_number():
    batch = jax.vmap(adamx.sgd)(jnp.ones(32))
    assert lines(batch)[1:] == ["θₜ = θₜ₋₁ − α gₜ", "", "α = <float32[32]>"]
    assert lines(adamx.sgd(jnp.float32(0.1)))[1] == "θₜ = θₜ₋₁ − 0.1 gₜ"
    seen = []
    jax.jit(lambda b1: seen.append(lines(adamx.scale_by_momentum(b1), adamx.bias_correction())))(
        0.5
    )
    assert seen[0][2:] == ["m̂ₜ = mₜ / (1 − β₁ᵗ)", "θₜ = θₜ₋₁ + m̂ₜ", "", "β₁ = traced float32[]"]


# Others' stages


@stage
def power(exponent: Real):
    """sign(u) |u|^p."""
    return lambda s: s.with_update(jnp.sign(s.update) * jnp.power(jnp.abs(s.update), exponent))


@stage
def average(b: Decay):
    """An average, with its bias."""
    mean = decaying_average(b)

    def update(signal, slots, step):
        mu = mean(slots["mu"], signal.update)
        return signal.with_statistic(mu, weight=mean.weight(step)), {"mu": mu}

    return Rule(update, slots={"mu": zeros}, clocks=mean.clocks)


def test_a_stage_of_ones_own_is_read_as_it_is():
    assert lines(power(0.5), adamx.sgd(0.1))[1:] == [
        "gₜ ← sign(gₜ) √|gₜ|",
        "θₜ = θₜ₋₁ − 0.1 gₜ",
    ]
    corrected = adamx.bias_correction()
    assert lines(average(0.5), corrected, adamx.scale_by_rms(), corrected)[1:] == [
        "mₜ = 0.5 mₜ₋₁ + 0.5 gₜ",
        "vₜ = 0.999 vₜ₋₁ + 0.001 gₜ²",
        "m̂ₜ = mₜ / (1 − 0.5ᵗ)",
        "v̂ₜ = vₜ / (1 − 0.999ᵗ)",
        "θₜ = θₜ₋₁ + m̂ₜ / (√v̂ₜ + 1e-08)",
    ]
    agree(adamx.chain(average(0.5), corrected, power(0.5), adamx.sgd(0.1)))


def own(update, **slots):
    """A stage of one's own with these slots, and a learning rate."""

    @stage
    def mine():
        return Rule(update, slots=slots)

    return adamx.chain(mine(), STEP)


def shaped(function):
    @stage
    def mine():
        return lambda signal: signal.with_update(function(signal.update))

    return adamx.chain(mine(), STEP)


def _keeps(what, start=zeros):
    def update(signal, slots, step):
        kept = getattr(signal, what)
        return signal.with_statistic(signal.update - 0.5 * slots["p"]), {"p": kept}

    return own(update, p=start)


def _chosen(signal, slots, step):
    m = 0.9 * slots["m"] + signal.update
    return signal.with_statistic(jnp.where(m > 0, m, 0.5 * m) + signal.update), {"m": m}


@stage
def averaged_by_the_rest(b: Decay):
    mean = decaying_average(1 - b)

    def update(signal, slots, step):
        mu = mean(slots["mu"], signal.update)
        return signal.with_statistic(mu, weight=mean.weight(step)), {"mu": mu}

    return Rule(update, slots={"mu": zeros}, clocks=mean.clocks)


@stage
def kept_rate(rate: Real):
    def update(signal, slots, step):
        kept = rate + jnp.zeros(())
        return signal.with_statistic((slots["rate"] + rate) * signal.update), {"rate": kept}

    return Rule(update, slots={"rate": lambda param: jnp.zeros((), zeros(param).dtype)})


@jax.jit
def power_of_a_sign(x, n):
    return jnp.sign(x) * jnp.abs(x) ** n


OWN = {
    "no momentum": adamx.adam(0.05, b1=0.0),
    "a ball without momentum": adamx.sgd(0.05, momentum=0.0),
    "a choice of a slot": own(_chosen, m=zeros),
    "the last update": adamx.chain(MOMENTUM, _keeps("update")),
    "the last gradient": adamx.chain(MOMENTUM, _keeps("gradient")),
    "the last gradient, first 1": _keeps("update", lambda param: jnp.ones_like(zeros(param))),
    "a decay of a schedule": adamx.chain(
        averaged_by_the_rest(lambda t: 0.3 * (1 - 0.3 / (t + 1))), CORRECTED, STEP
    ),
    "a clip by name": shaped(lambda u: jnp.clip(u, min=-0.1, max=0.1)),
    "a clip from below": shaped(lambda u: jnp.clip(u, 0.1)),
    "a function in jit": shaped(lambda u: power_of_a_sign(u, 0.5)),
    "not greater than 0": shaped(lambda u: jnp.where(-u >= 0, u, 2 * u)),
    "not 0": shaped(lambda u: jnp.where(u != 0.5, u, 1.0)),
    "a choice, no divisor": shaped(lambda u: jnp.where(jnp.maximum(u, 0) == 0, 1.0, u)),
    "a large limit": shaped(lambda u: jnp.minimum(1e12 * u, 1e10)),
    "a remainder": shaped(lambda u: 2 * jnp.fmod(u, 0.3)),
    "a mean of a sum": shaped(lambda u: u / (1 + jnp.mean(jnp.sum(u**2)) + jnp.mean(0 * u))),
    "the last value of a schedule": adamx.chain(kept_rate(falling(0.5)), STEP),
    "a power of a logarithm": shaped(lambda u: jnp.log(1 + jnp.abs(u)) ** 2),
}


@pytest.mark.parametrize("name", OWN)
def test_the_equations_of_ones_own_stage_are_what_it_computes(name):
    agree(OWN[name])


UNREADABLE = {
    "two sorts": shaped(lambda u: jnp.sort(u) - jnp.sort(-u)),
    "whole numbers": shaped(lambda u: (10 * u).astype(jnp.int32).astype(u.dtype)),
    "pairs": shaped(lambda u: jnp.sum((u[:, None] - u[None]) ** 2) * u),
    "fewer bits": shaped(lambda u: u.astype(jnp.bfloat16).astype(u.dtype)),
    "complex": shaped(lambda u: jnp.abs(u + 1j * u)),
    "a step that is not the last": adamx.chain(
        adamx.sgd(0.05), adamx.schedule_free(), adamx.scale(0.5)
    ),
    "a power that changes": adamx.chain(
        adamx.sgd(0.05), adamx.schedule_free(0.05, r=lambda t: 0.5 * t)
    ),
    "a scheduled size": adamx.adafactor(0.05, min_dim_size_to_factor=lambda t: 2),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_says_why(name):
    assert any(line.remark for line in explain(UNREADABLE[name]).lines)


def test_a_formula_of_very_many_parts_is_not_written_out():
    def halved(u):
        x = u
        for _ in range(30):
            x = 0.5 * (x + jnp.abs(u) / x)
        return x

    assert len(str(explain(shaped(halved)))) < 5000


@stage
def ranked():
    """A stage with a primitive that has no formula."""

    def update(signal, slots, step):
        total = slots["total"] + jnp.sort(signal.update)
        return signal.with_statistic(total), {"total": total}

    return Rule(update, slots={"total": zeros})


def test_a_primitive_without_a_formula_is_a_function_of_what_it_uses():
    assert lines(adamx.adam(1e-3), ranked())[5:] == [
        "uₜ = −0.001 m̂ₜ / (√v̂ₜ + 1e-08)",
        "totalₜ = totalₜ₋₁ + f(uₜ)   (f computes sort)",
        "θₜ = θₜ₋₁ + totalₜ",
    ]


def test_a_stage_that_cannot_be_traced_is_a_line_with_its_name():
    @stage
    def of_vectors(order: int = 1):
        return lambda signal: signal.with_update(signal.update @ signal.update[:order])

    assert lines(of_vectors(2), adamx.sgd(0.1))[1:] == [
        "gₜ ← of_vectors(gₜ; order=2)   (TypeError in tracing it: dot_general requires contracting "
        "dimensions to have the same shape, got (59,) and (2,).)",
        "θₜ = θₜ₋₁ − 0.1 gₜ",
    ]


UNKNOWN = "   (Optax transformation; its equations are not known)"


def test_a_transformation_of_optax_is_a_line_with_its_name():
    assert lines(optax.clip(1.0), adamx.scale_by_momentum(), optax.trace(0.9))[1:] == [
        "gₜ ← optax.clip(max_delta=1.0)(gₜ)" + UNKNOWN,
        "mₜ = 0.9 mₜ₋₁ + 0.1 gₜ",
        "uₜ = optax.trace(decay=0.9)(mₜ)" + UNKNOWN,
        "θₜ = θₜ₋₁ + uₜ",
    ]
    alone = str(explain(optax.clip(1.0))).splitlines()[1]
    assert alone == "gₜ ← optax.clip(max_delta=1.0)(gₜ)" + UNKNOWN


def test_anyone_can_write_a_rule_in_the_form_of_a_paper():
    @stage
    def square():
        return lambda s: s.with_update(jnp.sign(s.update) * jnp.square(s.update))

    @paper_form(square)
    def _():
        return lambda s: s.with_update(s.update * jnp.abs(s.update))

    assert lines(adamx.scale_by_momentum(), square())[-1] == "θₜ = θₜ₋₁ + mₜ |mₜ|"
    agree(adamx.chain(adamx.adam(0.05), square()))


def test_the_equations_of_every_optimiser_are_known():
    unknown = ("unknown", "call")
    for opt in EVERY.values():
        parts = [part for line in explain(opt).lines for part in walk(line.value)]
        assert not any(is_a(part, *unknown) for part in parts)


PAPER_FORMS = [
    name
    for name in adamx.stages.__all__
    if getattr(getattr(getattr(adamx, name), "definition", None), "equations", None)
]


def test_few_stages_are_read_in_the_form_of_a_paper():
    """Of the others, the equations are those of the code."""
    assert len(PAPER_FORMS) <= len(STAGES) / 5


@pytest.mark.parametrize("numbers", ["constant", "scheduled"])
@pytest.mark.parametrize("name", PAPER_FORMS)
def test_the_form_of_a_paper_computes_what_its_stage_does(name, numbers):
    row = STAGES[name]
    changing = row.scheduled if numbers == "scheduled" else []
    with x64():
        given = {k: (lambda t, x=row.numbers[k]: x * (1 - 0.3 / (t + 2))) for k in changing}
        opt = adamx.chain(row.make(**given), *([CORRECTED] if name == "scale_by_lp_norm" else []))

        def in_the_form(link):
            if link.name != name:
                return link
            form = object.__new__(type(link.definition))
            vars(form).update(vars(link.definition), factory=link.definition.equations)
            vars(form).pop("bare", None)
            return type(link)(form, link.arguments, link.around)

        other = Transformation(tuple(in_the_form(link) for link in opt.links))
        grads, theta = jnp.asarray(GRADS["kernel"]), jnp.asarray(row.start * PARAMS["kernel"])
        steps = [np.asarray(run(x, grads, theta)) for x in (opt, other)]
    assert np.abs(steps[0]).min() > 0
    np.testing.assert_allclose(*steps, rtol=1e-9, atol=1e-13)


def test_an_observer_changes_nothing():
    assert str(explain(adamx.chain(adamx.adam(1e-3), adamx.watch()))) == ADAM


# In LaTeX, and in a notebook


EVERY = {name: make(0.05) for name, make in OPTIMISERS.items()} | {
    name: adamx.chain(*row) for name, row in CHAINS.items()
}


def test_cases_stand_at_the_head_of_a_line():
    parts = [
        part
        for opt in EVERY.values()
        for line in explain(opt).lines
        for child in line.value.children
        for part in walk(child)
    ]
    assert not any(is_a(part, "cases") for part in parts)
    averaged = explain(adamx.chain(adamx.radam(0.1), adamx.scale_by_momentum(0.5)))
    assert text(averaged.lines[-2].value) == "0.5 m₂,ₜ₋₁ − 0.5 · 0.1 uₜ"


def test_every_line_can_be_typeset():
    parse = pytest.importorskip("matplotlib.mathtext").MathTextParser("path").parse
    for opt in EVERY.values():
        explanation = explain(opt)
        begin, *rows, end = explanation.latex.splitlines()
        assert (begin, end) == (r"\begin{aligned}", r"\end{aligned}")
        assert len(rows) >= len(explanation.lines)
        for part in [part for row in rows for part in branches(row.removesuffix(r"\\"))]:
            parse(f"${part}$")
            assert part.count("{") == part.count("}")
            assert part.count(r"\left(") == part.count(r"\right)")
            assert part.isascii() and "e-" not in part


def test_a_notebook_shows_the_equations():
    opt = adamx.adam(1e-3)
    assert opt._repr_latex_() == opt._repr_markdown_() == f"$$\n{explain(opt).latex}\n$$"


def test_a_notebook_shows_the_chain_where_it_has_no_equations():
    assert adamx.bias_correction()._repr_latex_() is None


def test_what_cannot_be_explained_is_an_error_that_says_why():
    with pytest.raises(TypeError, match="call a recipe before you pass it"):
        explain(adamx.adam)
    with pytest.raises(StageError, match="'bias_correction': there is no bias to correct"):
        explain(adamx.bias_correction())


# The language


def test_numbers_are_computed_as_they_are_written():
    assert text(ONE - 0.99999) == "1e-05"
    assert text(Number(0.3) - 0.1) == "0.2"
    assert latex(Number(2.5e-7)) == r"2.5 \cdot 10^{-7}"


def test_a_formula_keeps_its_parentheses():
    x, y, z = (Symbol(letter, step="") for letter in "xyz")
    assert text((x + y) * z) == "(x + y) z"
    assert text(x - (y + z)) == "x − (y + z)"
    assert text(x / (y * z)) == "x / (y z)"
    assert text((x / y) / z) == "x / (y z)"
    assert text(x / (y / z)) == "x z / y"
    assert text((-x) ** 2) == "(−x)²"
    assert text((x**0.5) ** 2) == "x"
    assert text(((x + y) ** 0.5) ** 3) == "(x + y)^1.5"
    assert text(-(x - y) / z) == "−(x − y) / z"
    assert text(x + y - x) == "y"
    assert latex((x + ONE / y) ** 2) == r"\left(x + \frac{1}{y}\right)^2"


def test_a_letter_that_is_taken_gets_an_index():
    again = explain(adamx.chain(*[adamx.scale_by_momentum(lambda t, n=n: n) for n in (0.5, 0.6)]))
    assert [text(line.symbol) for line in again.lines] == ["gₜ", "mₜ", "m₂,ₜ", "θₜ"]
    assert [text(symbol) for symbol in again.numbers] == ["β₁,ₜ", "β₁′,ₜ"]
    assert latex(Symbol("β", "1", step="", which=3)) == r"\beta''_1"


# What a newcomer's stages look like


@stage
def scaled_by_its_size():
    return lambda signal: signal.with_update(signal.update / math.sqrt(signal.update.size))


@stage
def misspelt():
    return lambda signal: signal.with_updates(signal.update)


@stage
def without_nan():
    return lambda s: s.with_update(jnp.where(jnp.isnan(s.update), 0.0, s.update))


@stage
def in_order():
    return lambda s: s.with_update(jnp.sort(s.update.ravel()).reshape(s.update.shape))


@pytest.mark.parametrize(
    ("opt", "line"),
    [
        (scaled_by_its_size(), "(its numbers depend on the size of the array)"),
        (misspelt(), "'Signal' object has no attribute 'with_updates')"),
        (without_nan(), "gₜ ← 0 if isnan(gₜ), otherwise gₜ"),
        (in_order(), "(f computes sort)"),
        (adamx.muon(0.1), "θₜ = θₜ₋₁ − 0.1 scaled_by_shape(orth(0.95 mₜ + 0.05 gₜ))"),
        (adamx.soap(3e-3), "gₜ ← eigenbasis(gₜ; b2=0.95, every=10, max_size=10000, spread=True"),
        (
            adamx.partition({"a": adamx.clip_by_global_norm(1.0), "*": adamx.sgd(1.0)}),
            "gₜ ← gₜ min(1, 1 / ‖gₜ‖_group)",
        ),
    ],
)
def test_a_line_shows_the_rule_or_says_why_it_does_not(opt, line):
    assert line in adamx.explain(opt).text


def test_functions_have_the_numbers_of_their_remarks():
    for line in adamx.explain(adamx.shampoo(0.1)).text.splitlines():
        for name in re.findall(r"\bf(\d*) computes", line):
            low = "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in name)
            assert f"f{low}(" in line
