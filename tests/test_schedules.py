"""Schedules against float64 oracles from the papers, and as values."""

import json
import pickle
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib import image

import adamx
from adamx import schedules
from adamx.schedules import (
    constant,
    inverse_sqrt,
    join,
    momentum_warmup,
    power_law,
    warmup_stable_decay,
)
from catalog import x64

DOCS = Path(__file__).parents[1] / "docs"
COUNTS = np.arange(130)
LATE = 2**31 - 1


# The formulas of the papers, for one step t = count + 1.


def cooled(x, shape):
    """Hägele et al., Section 3, of the share x of the cool-down that is over."""
    return {"linear": 1 - x, "cosine": (1 + np.cos(np.pi * x)) / 2, "1-sqrt": 1 - np.sqrt(x)}.get(
        shape, (1 - x) ** (shape if isinstance(shape, float) else 1)
    )


def wsd(count, peak, total, warmup, decay, shape, initial=0.0, final=0.0):
    """Hu et al., equation 1, with a warm-up that reaches the peak in step ``warmup``."""
    if count < warmup:
        return initial + (peak - initial) * (count + 1) / warmup
    if count < total - decay:
        return peak
    if count >= total:
        return final if decay else peak
    return final + (peak - final) * cooled((count - (total - decay)) / decay, shape)


def vit(count, peak, warmup, tau, total, decay):
    """Zhai et al., Section 3.5: 1/√t shifted by a timescale, and a linear cool-down to 0."""
    if count < warmup:
        return peak * (count + 1) / warmup
    rate = peak / np.sqrt((count + 1 + tau - warmup) / tau)
    return rate * np.clip((total - count) / decay, 0, 1)


def power_scheduler(count, peak, warmup, a, b, batch, length):
    """Shen et al., equation 6: min(η_max, β a n^b) of n tokens, in batches of β sequences."""
    if count < warmup:
        return peak * (count + 1) / warmup
    return min(peak, batch * a * ((count + 1) * batch * length) ** b)


def noam(count, width, warmup):
    """Vaswani et al., equation 3."""
    t = count + 1
    return width**-0.5 * min(t**-0.5, t * warmup**-1.5)


def t5(count, k):
    return 1 / np.sqrt(max(count + 1, k))


def muon(count):
    """modded-nanogpt: frac = min(step / 300, 1); momentum = (1 − frac) · 0.85 + frac · 0.95."""
    frac = min(count / 40, 1)
    return (1 - frac) * 0.85 + frac * 0.95


def half_life(count, start, end, steps):
    """Pagliardini et al., Appendix A.1: β₃ in closed form."""
    s, one, other = min(count / steps, 1), np.log(start), np.log(end)
    return np.exp(one * other / ((1 - s) * other + s * one))


def wsd_of(shape, **rates):
    return (
        warmup_stable_decay(0.3, 120, 11, 37, shape=shape, **rates),
        lambda n: wsd(n, 0.3, 120, 11, 37, shape, **rates),
    )


TOKENS = {"a": 4.6, "b": -0.51, "batch": 8, "length": 16}
LEVEL = (0.02 / (8 * 4.6)) ** (1 / -0.51) / (8 * 16)  # the step at which the power law begins
CASES = {
    "linear": wsd_of("linear"),
    "cosine": wsd_of("cosine", initial=0.05, final=0.02),
    "1-sqrt": wsd_of("1-sqrt", final=0.01),
    "power": wsd_of(2.5, initial=0.1),
    "no warm-up": (
        warmup_stable_decay(0.3, 120, 0, 120, shape="linear"),
        lambda n: wsd(n, 0.3, 120, 0, 120, "linear"),
    ),
    "no cool-down": (
        warmup_stable_decay(0.3, 120, 20, 0, final=0.1),
        lambda n: wsd(n, 0.3, 120, 20, 0, "linear"),
    ),
    "no stable phase": (
        warmup_stable_decay(0.3, 100, 40, 60),
        lambda n: wsd(n, 0.3, 100, 40, 60, "1-sqrt"),
    ),
    "rsqrt": (
        inverse_sqrt(0.3, 10, timescale=25.0, total_steps=110, decay_steps=30),
        lambda n: vit(n, 0.3, 10, 25.0, 110, 30),
    ),
    "noam": (inverse_sqrt((64 * 20) ** -0.5, 20), lambda n: noam(n, 64, 20)),
    "t5": (power_law(30**-0.5, 0, stable_steps=30), lambda n: t5(n, 30)),
    "muon": (momentum_warmup(0.85, 0.95, 40), muon),
    "half-life": (
        momentum_warmup(0.9, 0.9999, 70, shape="half-life"),
        lambda n: half_life(n, 0.9, 0.9999, 70),
    ),
    "join": (
        join([0.7, inverse_sqrt(0.3, 5), warmup_stable_decay(0.2, 50, 5, 20)], [10, 60]),
        lambda n: (
            0.7
            if n < 10
            else 0.3 * min((n - 9) / 5, (5 / (n - 9)) ** 0.5)
            if n < 60
            else wsd(n - 60, 0.2, 50, 5, 20, "1-sqrt")
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_formula_of_the_paper(name):
    schedule, oracle = CASES[name]
    truth = np.array([oracle(n) for n in COUNTS])
    ours = [schedule(int(n)) for n in COUNTS]
    assert all(type(x) is float for x in ours)
    np.testing.assert_allclose(ours, truth, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(schedule(COUNTS), truth, rtol=1e-13, atol=1e-15)
    traced = jax.jit(schedule)(jnp.asarray(COUNTS, jnp.int32))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, truth, rtol=5e-7, atol=1e-9)
    one_by_one = jax.vmap(schedule)(jnp.asarray(COUNTS, jnp.int32))
    np.testing.assert_allclose(one_by_one, truth, rtol=5e-7, atol=1e-9)
    with x64():
        wide = jax.jit(schedule)(jnp.asarray(COUNTS, jnp.int32))
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, truth, rtol=1e-13, atol=1e-15)


def test_a_power_law_from_the_tokens_is_the_power_scheduler():
    """S is a whole step, between two of which the constant rate ends."""
    start = round(LEVEL)
    peak = TOKENS["batch"] * TOKENS["a"] * (start * 128.0) ** TOKENS["b"]
    schedule = power_law(peak, 20, exponent=0.51, stable_steps=start - 20)
    for count in (0, 19, 20, start - 2, start - 1, start, start + 1, 10 * start):
        truth = power_scheduler(count, peak, 20, **TOKENS)
        np.testing.assert_allclose(schedule(count), truth, rtol=1e-12)


def test_no_step_is_lost_at_either_end():
    """The first rate is peak/W and the last one f(1 − 1/D); Optax's first one is 0."""
    rate = warmup_stable_decay(1.0, 100, 10, 20, shape="linear")
    assert rate(0) == 0.1
    assert rate(9) == rate(10) == rate(80) == 1
    np.testing.assert_allclose([rate(81), rate(99), rate(100)], [0.95, 0.05, 0.0])
    theirs = optax.warmup_constant_schedule(0.0, 1.0, 10)
    np.testing.assert_allclose(theirs(jnp.arange(1, 50)), rate(jnp.arange(49)), rtol=1e-6)
    begun = join([0.0, rate], [1])
    np.testing.assert_allclose(theirs(jnp.arange(50)), begun(jnp.arange(50)), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_beyond_the_end_it_stays(name):
    schedule, _ = CASES[name]
    late = [schedule(LATE), schedule(LATE + 5), float(jax.jit(schedule)(jnp.int32(LATE)))]
    if name in ("noam", "t5"):  # which fall forever
        assert 0 < late[0] < 1e-3
    else:
        assert late[0] == pytest.approx(schedule(10**6), abs=1e-12)
    np.testing.assert_allclose(late, late[0], rtol=1e-6)


def test_large_counts_keep_their_digits():
    """A float32 has every count to 2²⁴ only, and 1 − x no digits where x is near 1."""
    total = 2**31 - 1
    for shape in ("linear", "cosine", "1-sqrt", 2.0):
        rate = warmup_stable_decay(1.0, total, 10, 2**30, shape=shape)
        counts = np.array([2**30 + 5, 2**30 + 2**20 + 1, total - 2, total - 1])
        ours = jax.jit(rate)(jnp.asarray(counts, jnp.int32))
        left = (total - counts) / 2.0**30
        # of 1 − √(1 − y) the digits are lost: y/(1 + √(1 − y))
        truth = {
            "linear": left,
            "cosine": np.sin(np.pi / 2 * left) ** 2,
            "1-sqrt": left / (1 + np.sqrt(1 - left)),
        }.get(shape, left**2)
        np.testing.assert_allclose(ours, truth, rtol=1e-6)
        np.testing.assert_allclose(rate(counts), truth, rtol=1e-13)


def test_fractions_are_of_all_steps():
    rate = warmup_stable_decay(1.0, 1000, 0.1, 0.25)
    assert (rate.warmup_steps, rate.decay_steps) == (100, 250)
    assert (
        rate == warmup_stable_decay(1.0, 1000, 100, 250) == warmup_stable_decay(1, 1000, 100, 250)
    )
    assert warmup_stable_decay(1.0, 10, 0.001, 0.0).warmup_steps == 1
    assert inverse_sqrt(1.0, 0.1, total_steps=50, decay_steps=0.2).decay_steps == 10


# As values


ALL = [schedule for schedule, _ in CASES.values()] + [
    constant(0.5),
    join([optax.cosine_decay_schedule(0.1, 10), momentum_warmup(0.1, 0.2, 3)], [10]),
    join([jax.tree_util.Partial(optax.linear_schedule(1.0, 0.0, 9)), 1.0], [3]),
]


def again(schedule):
    name, arguments = schedule.call()
    return getattr(schedules, name.rpartition(".")[2])(**arguments)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_it_is_a_value(schedule):
    other = again(schedule)
    assert other is not schedule
    assert other == schedule
    assert hash(other) == hash(schedule)
    changed = jax.tree.map(lambda x: 1.5 * x, schedule)
    assert changed != schedule or not jax.tree.leaves(schedule)
    assert schedule != 3
    leaves, structure = jax.tree.flatten(schedule)
    assert jax.tree.unflatten(structure, leaves) == schedule
    assert jax.tree.structure(other) == structure
    opt = adamx.adamw(schedule)
    assert opt == adamx.adamw(other)
    assert hash(opt) == hash(adamx.adamw(other))
    written = json.loads(json.dumps(adamx.to_config(opt)))
    assert adamx.from_config(written) == opt


@pytest.mark.parametrize("name", CASES)
def test_it_is_pickled_and_printed(name):
    schedule, _ = CASES[name]
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    if name != "join":
        assert eval(repr(schedule), vars(schedules)) == schedule
    assert repr(schedule) in repr(adamx.sgd(schedule))
    assert f"{schedule!r}(t − 1)" in str(adamx.explain(adamx.sgd(schedule)))


def test_a_schedule_that_is_a_pytree_is_joined_with_its_leaves():
    part = jax.tree_util.Partial(lambda rate, t: rate / (t + 1), 0.5)
    joined = join([0.3, part], [2])
    assert jax.tree.leaves(joined) == [0.3, 0.5]
    assert [joined(n) for n in (1, 2, 3)] == [0.3, 0.5, 0.25]


def test_a_joined_function_is_compared_by_what_it_reads():
    def of(rate):
        return join([lambda t: rate / (t + 1), 0.1], [5])

    assert of(0.2) == of(0.2)
    assert of(0.2) != of(0.3)
    assert "<schedule" in repr(of(0.2))
    with pytest.raises(ValueError, match="known="):
        adamx.to_config(adamx.sgd(of(0.2)))


def test_it_is_immutable():
    rate = constant(1.0)
    with pytest.raises(AttributeError):
        rate.formula = None
    with pytest.raises(TypeError):
        rate.arguments["value"] = 2.0
    with pytest.raises(AttributeError, match="no attribute 'peak'"):
        _ = rate.peak
    assert rate.replace(value=2.0) == constant(2.0)
    assert rate == constant(1.0)


def test_replaced_lengths_are_checked():
    rate = warmup_stable_decay(1.0, 100, 10, 20)
    assert rate.replace(total_steps=200).decay_steps == 20
    with pytest.raises(ValueError, match="more than total_steps=25"):
        rate.replace(total_steps=25)


# In optimisers


def trained(opt, steps=40):
    params = jnp.array([1.0, -2.0])
    state = opt.init(params)
    for _ in range(steps):
        updates, state = opt.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


def test_in_an_optimiser_it_is_the_rate_of_each_step():
    rate = warmup_stable_decay(0.1, 40, 5, 10)
    opt = adamx.adamw(rate, b1=momentum_warmup(0.5, 0.9, 10))
    plain = adamx.adamw(
        lambda t: jnp.asarray(rate(np.arange(50)), jnp.float32)[t],
        b1=lambda t: jnp.asarray(0.5 + 0.4 * np.minimum(np.arange(50) / 10, 1), jnp.float32)[t],
    )
    np.testing.assert_allclose(trained(opt), trained(plain), rtol=1e-5)
    at = adamx.hyperparams(opt, 7)
    np.testing.assert_allclose([at["learning_rate"], at["b1"]], [0.1, 0.78], rtol=1e-6)
    batch = adamx.hyperparams(opt, jnp.arange(3))
    np.testing.assert_allclose(batch["learning_rate"], [0.02, 0.04, 0.06], rtol=1e-6)


def test_optax_takes_it(lenient):
    rate = warmup_stable_decay(0.1, 40, 5, 10)
    ours = trained(adamx.sgd(rate))
    np.testing.assert_allclose(trained(optax.sgd(rate)), ours, rtol=1e-5)
    chained = optax.chain(optax.trace(0.0), optax.scale_by_learning_rate(rate))
    np.testing.assert_allclose(trained(chained), ours, rtol=1e-5)
    np.testing.assert_allclose(trained(optax.adam(rate)), trained(adamx.adam(rate)), rtol=1e-3)


def test_equal_schedules_share_one_program():
    traces = []

    def counted(t):
        traces.append(t)
        return 1.0

    count = jax.tree_util.Partial(counted)

    def traced(first):
        rate = warmup_stable_decay(0.1, 40, 5, 10)
        opt = adamx.chain(adamx.scale(count), adamx.sgd(join([first, rate], [3])))
        state = opt.init(jnp.zeros(2))  # which evaluates the schedules, too
        before = len(traces)
        opt.update(jnp.ones(2), state)
        return len(traces) - before

    assert traced(0.1) > 0
    assert traced(0.1) == 0
    assert traced(0.2) > 0  # of another number there is another program


def test_peaks_are_batched_and_differentiated():
    rate = warmup_stable_decay(0.1, 40, 5, 10)

    def final(peak):
        return trained_traced(adamx.sgd(rate.replace(peak=peak)))

    def trained_traced(opt):
        def step(carry, _):
            params, state = carry
            updates, state = opt.update(2 * params, state, params)
            return (params + updates, state), None

        params = jnp.array([1.0, -2.0])
        return jax.lax.scan(step, (params, opt.init(params)), length=40)[0][0][0]

    peaks = jnp.array([0.01, 0.02])
    batch = jax.vmap(final)(peaks)
    np.testing.assert_allclose(batch, [final(0.01), final(0.02)], rtol=1e-5)
    opts = adamx.sgd(rate.replace(peak=peaks))
    leaves = jax.tree.map(lambda x: 0 if np.ndim(x) else None, opts)
    ours = jax.vmap(trained_traced, in_axes=(leaves,))(opts)
    np.testing.assert_allclose(ours, batch, rtol=1e-5)
    # The first parameter ends at Π(1 − 2 peak s), where s are the rates of the peak 1.
    shape = np.array([rate.replace(peak=1.0)(t) for t in range(40)], np.float64)
    factors = 1 - 2 * 0.01 * shape
    slope = np.prod(factors) * np.sum(-2 * shape / factors)
    np.testing.assert_allclose(jax.grad(final)(0.01), slope, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_by_every_number_are_finite(name):
    schedule, _ = CASES[name]

    def summed(schedule):
        return jnp.sum(schedule(jnp.asarray(COUNTS, jnp.int32)))

    arrays = jax.tree.map(jnp.float32, schedule)
    assert all(np.isfinite(x) for x in jax.tree.leaves(jax.grad(summed)(arrays)))
    again(arrays)  # arrays are checked like floats


def test_a_sweep_varies_the_peak():
    rates = [warmup_stable_decay(peak, 40, 5, 10) for peak in (0.01, 0.1)]
    found = adamx.sweep(
        lambda opt: opt.update(jnp.ones(1), opt.init(jnp.zeros(1)))[0][0],
        [adamx.sgd(rate) for rate in rates],
        score=lambda x: float(x),
    )
    assert list(found.coordinates) == ["learning_rate.peak"]


def test_a_function_out_of_its_range_is_not_asked():
    """1/√(5 − t) is NaN from t = 5 on; a derivative would be, too."""
    joined = join([jax.tree_util.Partial(lambda a, t: a / jnp.sqrt(5.0 - t), 1.0), 0.1], [5])
    values = jax.jit(joined)(jnp.arange(8))
    assert np.isfinite(values).all()
    slopes = jax.grad(lambda s: jnp.sum(s(jnp.arange(8))))(jax.tree.map(jnp.float32, joined))
    assert all(np.isfinite(x) for x in jax.tree.leaves(slopes))


def test_boundaries():
    joined = join([1.0, 2.0, 3.0], [4, 6])
    expected = [1, 1, 1, 1, 2, 2, 3, 3]
    assert [joined(n) for n in range(8)] == expected
    np.testing.assert_array_equal(joined(jnp.arange(8)), expected)
    np.testing.assert_array_equal(joined(np.arange(8)), expected)
    theirs = optax.join_schedules([optax.constant_schedule(x) for x in (1.0, 2.0, 3.0)], [4, 6])
    np.testing.assert_array_equal(joined(jnp.arange(8)), [theirs(n) for n in range(8)])
    assert join([2.0], [])(10) == 2


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "float32"])
def test_counts_of_any_kind(dtype):
    rate = warmup_stable_decay(1.0, 100, 10, 20, shape="linear")
    np.testing.assert_allclose(jax.jit(rate)(jnp.asarray(99, dtype)), 0.05, rtol=1e-6)
    np.testing.assert_allclose(rate(np.asarray(99, dtype)), 0.05)


WRONG = {
    "a negative peak": (lambda: warmup_stable_decay(-1.0, 10), ValueError, "peak must be finite"),
    "a schedule as peak": (
        lambda: warmup_stable_decay(constant(1.0), 10),
        TypeError,
        "peak must be a number.*adamx.schedules.join",
    ),
    "text as peak": (
        lambda: warmup_stable_decay("1", 10),
        TypeError,
        r"^warmup_stable_decay: peak must be a number or a real array, got '1'",
    ),
    "no steps": (lambda: warmup_stable_decay(1.0, 0), ValueError, "total_steps must be .* 1 or"),
    "a float for all steps": (
        lambda: warmup_stable_decay(1.0, 1e4),
        TypeError,
        "total_steps must be a whole number of steps.*10000.0",
    ),
    "more steps than there are": (
        lambda: warmup_stable_decay(1.0, 2**31),
        ValueError,
        "at most 2147483647",
    ),
    "a fraction of 1": (
        lambda: warmup_stable_decay(1.0, 10, 1.0),
        ValueError,
        "fraction of total_steps.*pass an int",
    ),
    "a negative fraction": (lambda: warmup_stable_decay(1.0, 10, -0.1), ValueError, "fraction"),
    "True": (lambda: warmup_stable_decay(1.0, 10, True), TypeError, "warmup_steps must be"),
    "too long": (
        lambda: warmup_stable_decay(1.0, 10, 6, 5),
        ValueError,
        "a warm-up of 6 and a cool-down of 5 steps take 11 steps, more than total_steps=10",
    ),
    "an unknown shape": (
        lambda: warmup_stable_decay(1.0, 10, shape="sqrt"),
        ValueError,
        "'linear', 'cosine', '1-sqrt', or a number p",
    ),
    "a negative power": (
        lambda: warmup_stable_decay(1.0, 10, shape=-1.0),
        ValueError,
        "shape must be > 0",
    ),
    "no end": (lambda: power_law(1.0, 5, decay_steps=5), ValueError, "pass total_steps="),
    "a fraction of nothing": (
        lambda: inverse_sqrt(1.0, 0.1),
        ValueError,
        "inverse_sqrt: warmup_steps=0.1 is a fraction of total_steps, which is not given",
    ),
    "no timescale": (lambda: inverse_sqrt(1.0, 0), ValueError, "pass timescale="),
    "a traced length": (
        lambda: jax.jit(lambda n: warmup_stable_decay(1.0, n)(0))(10),
        TypeError,
        "can't be traced",
    ),
    "a decay of 1": (lambda: momentum_warmup(0.9, 1.0, 5), ValueError, r"final must be .*\[0, 1\)"),
    "no warm-up": (lambda: momentum_warmup(0.9, 0.95, 0), ValueError, "steps must be .* 1 or more"),
    "no half-life": (
        lambda: momentum_warmup(0.0, 0.9, 5, shape="half-life"),
        ValueError,
        "initial is 0, which has no half-life",
    ),
    "another path": (
        lambda: momentum_warmup(0.5, 0.9, 5, shape="cosine"),
        ValueError,
        "'linear' or 'half-life'",
    ),
    "too few boundaries": (
        lambda: join([1.0, 2.0], []),
        ValueError,
        "2 schedules and 0 boundaries do not fit",
    ),
    "no schedules": (lambda: join([], []), ValueError, "0 schedules and 0 boundaries"),
    "falling boundaries": (lambda: join([1.0, 2.0, 3.0], [5, 5]), ValueError, "must increase"),
    "a boundary at 0": (lambda: join([1.0, 2.0], [0]), ValueError, "1 or more"),
    "one schedule": (lambda: join(constant(1.0), [3]), TypeError, "a list of schedules"),
    "no list": (lambda: join([1.0, 2.0], 3), TypeError, "a list of counts"),
    "text": (lambda: join(["a", 1.0], [3]), TypeError, "functions of a count or numbers"),
    "no steps to plot": (lambda: constant(1.0).plot(0), ValueError, "steps must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_given_and_what_would_work(name):
    make, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        make()


def test_a_config_is_checked():
    written = adamx.to_config(adamx.sgd(warmup_stable_decay(0.1, 10, 1, 2)))
    written["chain"][0]["learning_rate"]["total_steps"] = 2
    with pytest.raises(ValueError, match="more than total_steps=2"):
        adamx.from_config(written)
    written["chain"][0]["learning_rate"]["schedule"] = "adamx.schedules.ScheduleValue"
    with pytest.raises(ValueError, match=r"neither a public function of Optax, adamx\.schedules"):
        adamx.from_config(written)


# Pictures


def test_the_picture_of_the_page_is_what_its_code_draws(tmp_path):
    """To draw it again, save ``figure`` of the first block as docs/schedules.png, at 120 dpi."""
    text = (DOCS / "schedules.md").read_text("utf-8")
    names = {}
    exec(re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1], names)
    names["figure"].savefig(tmp_path / "schedules.png", dpi=120)
    new, kept = (image.imread(at / "schedules.png") for at in (tmp_path, DOCS))
    assert np.mean(np.abs(new - kept) > 0.1) < 0.02  # fonts differ between versions


@pytest.mark.parametrize("name", CASES)
def test_it_is_plotted(name):
    schedule, _ = CASES[name]
    figure = schedule.plot()
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_ydata(), schedule(line.get_xdata()), rtol=1e-6)
    assert line.get_xdata()[-1] == schedule.span - 1
    assert schedule._repr_png_()[0].startswith(b"\x89PNG")


def test_plots_share_axes_and_show_batches():
    first = warmup_stable_decay(0.1, 100)
    figure = first.plot(steps=50)
    same = inverse_sqrt(jnp.array([0.1, 0.2]), 10).plot(50, ax=figure.axes[0])
    assert same is figure
    assert len(figure.axes[0].lines) == 3


def test_without_matplotlib_a_notebook_shows_the_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert constant(1.0)._repr_png_() is None
    with pytest.raises(ImportError, match=r"adamx\[tools\]"):
        constant(1.0).plot()
