"""Signals, stages, chains, values: the contract on which everything else rests."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import (
    Clock,
    NonNegative,
    Real,
    Rule,
    Signal,
    StageError,
    abs_sq,
    decaying_average,
    stage,
    zeros,
)
from catalog import OPTIMISERS, REPRESENTATIVES, ROWS, STAGES, run

GRADS = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)


# The two signals


@stage
def remember():
    """Keeps what it was given, to be looked at."""

    def update(signal, slots, step):
        return signal, {"gradient": signal.gradient, "update": signal.update}

    return Rule(update, slots={"gradient": zeros, "update": zeros})


def seen(*stages, grad=2.0):
    opt = adamx.chain(*stages, remember())
    _, state = opt.update(jnp.full(1, grad), opt.init(jnp.ones(1)), jnp.ones(1))
    return {name: float(x[0]) for name, x in state["remember"].items()}


def test_in_front_of_a_statistic_a_stage_rewrites_the_gradient():
    assert seen(adamx.scale(3.0)) == {"gradient": 6.0, "update": 6.0}


def test_behind_a_statistic_it_shapes_only_the_update():
    doubled = seen(adamx.scale_by_momentum(0.5), adamx.scale(3.0))
    assert doubled == {"gradient": 2.0, "update": 3.0}


def test_statistics_are_taken_of_the_gradient_not_of_the_momentum():
    """One step: m = 0.1 g, and the root mean square of g, not of m."""
    opt = adamx.chain(adamx.scale_by_momentum(0.9), adamx.scale_by_rms(0.75, eps=0.0))
    _, state = opt.update(jnp.full(1, 4.0), opt.init(jnp.zeros(1)))
    np.testing.assert_allclose(state["scale_by_rms"]["nu"], 0.25 * 4.0**2)


def test_an_optax_stage_obeys_the_same_rule():
    assert seen(optax.scale(3.0)) == {"gradient": 6.0, "update": 6.0}
    assert seen(adamx.scale_by_momentum(0.5), optax.scale(3.0)) == {"gradient": 2.0, "update": 3.0}


def test_the_bias_is_the_product_of_the_weights():
    """After one step of β: the average holds 1 − β of the gradient, its root √(1 − β)."""
    m, v = adamx.scale_by_momentum(0.9), adamx.scale_by_rms(0.75, eps=0.0)
    opt = adamx.chain(m, v)
    u = opt.update(jnp.full(1, 4.0), opt.init(jnp.zeros(1)))[0]
    np.testing.assert_allclose(u, 0.1 / math.sqrt(0.25), rtol=1e-6)
    opt = adamx.chain(m, v, adamx.bias_correction())
    u = opt.update(jnp.full(1, 4.0), opt.init(jnp.zeros(1)))[0]
    np.testing.assert_allclose(u, 1.0, rtol=1e-6)


def test_the_bias_may_be_corrected_anywhere_behind_its_average():
    first = adamx.chain(adamx.scale_by_momentum(), adamx.bias_correction(), adamx.scale_by_rms())
    last = adamx.chain(adamx.scale_by_momentum(), adamx.scale_by_rms(), adamx.bias_correction())
    both = adamx.chain(first, adamx.bias_correction())
    np.testing.assert_allclose(run(both, GRADS), run(last, GRADS), rtol=1e-6)


# Chains


def test_chains_are_flat():
    nested = adamx.chain(adamx.chain(adamx.scale(1.0), adamx.chain()), adamx.adam(0.1))
    assert [link.name for link in nested.links] == [
        "scale",
        "scale_by_momentum",
        "scale_by_rms",
        "bias_correction",
        "scale_by_learning_rate",
    ]


def test_the_state_is_kept_under_the_stages_names():
    opt = adamx.chain(adamx.scale_by_momentum(), adamx.adam(0.1), optax.trace(0.9))
    state = opt.init({"w": jnp.ones(2)})
    assert set(state) == {
        "count",
        "scale_by_momentum",
        "scale_by_momentum_2",
        "scale_by_rms",
        "trace",
    }
    assert set(state["scale_by_momentum_2"]) == {"mu", "log_decay"}
    assert set(state["scale_by_rms"]["nu"]) == {"w"}


def test_another_stage_in_the_chain_leaves_the_others_entries_as_they_are():
    params = jnp.ones(2)
    few = adamx.adam(0.1).init(params)
    many = adamx.chain(adamx.scale_by_heavy_ball(), adamx.adam(0.1)).init(params)
    assert set(many) - set(few) == {"scale_by_heavy_ball"}


def test_the_count_saturates():
    opt = adamx.sgd(0.1)
    state = {"count": jnp.asarray(np.iinfo(np.int32).max, jnp.int32)}
    assert int(opt.update(jnp.ones(1), state)[1]["count"]) == np.iinfo(np.int32).max


# Measures


def test_a_measure_sums_over_all_parameters():
    @stage
    def share(power: Real):
        def global_sum(signal, slots, step):
            return {"sum": jnp.sum(jnp.abs(signal.update) ** power), "largest": jnp.ones(())}

        def update(signal, slots, step):
            return signal.with_update(
                signal.update / step.total["sum"] * step.total["largest"]
            ), slots

        return Rule(update, global_sum=global_sum)

    opt = share(1.0)
    grads = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[5.0]])}
    updates, _ = opt.update(grads, opt.init(grads))
    np.testing.assert_allclose(updates["a"], np.array([1, 2]) / 8 * 2)
    np.testing.assert_allclose(updates["b"], [[5 / 8 * 2]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_the_global_norm_is_clipped_as_optax_clips_it(dtype):
    grads = {"a": jnp.asarray(GRADS[0], dtype), "b": jnp.asarray(GRADS[1:3], dtype)}
    ours, theirs = adamx.clip_by_global_norm(0.7), optax.clip_by_global_norm(0.7)
    clipped, _ = ours.update(grads, ours.init(grads))
    expected, _ = theirs.update(grads, theirs.init(grads))
    for name in grads:
        np.testing.assert_allclose(
            np.asarray(clipped[name], np.complex64),
            np.asarray(expected[name], np.complex64),
            # Optax takes norm, quotient and product in bfloat16: three roundings of 2⁻⁸
            rtol=1e-2 if dtype == "bfloat16" else 1e-6,
        )


def test_a_measure_sees_what_the_stages_in_front_of_it_made():
    """Clipping behind Adam: each coordinate's first step is 1, five of them have the norm √5."""
    opt = adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_rms(eps=0.0),
        adamx.bias_correction(),
        adamx.clip_by_global_norm(1.0),
    )
    u, _ = opt.update(jnp.asarray(GRADS[0]), opt.init(jnp.zeros(5)))
    np.testing.assert_allclose(np.abs(u), 1 / math.sqrt(5), rtol=1e-5)


# Hyperparameters


def test_the_rows_have_every_number_of_every_stage():
    for name, row in STAGES.items():
        assert set(getattr(adamx, name).definition.domains) <= set(row.numbers), name


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_constant_schedule_is_the_constant(name):
    """To the last bit; a tree that holds numbers is a schedule as well."""
    row = ROWS[name]
    constants = run(row.make(), GRADS, GRADS[0])
    scheduled = row.make(**{key: (lambda t, x=row.numbers[key]: x) for key in row.numbers})
    np.testing.assert_array_equal(run(scheduled, GRADS, GRADS[0]), constants)
    optax_made = row.make(**{key: optax.constant_schedule(x) for key, x in row.numbers.items()})
    np.testing.assert_array_equal(run(optax_made, GRADS, GRADS[0]), constants)


@pytest.mark.parametrize("name", [name for name, row in STAGES.items() if row.constant])
def test_a_schedule_gets_the_count_of_past_updates(name):
    """A schedule that changes after three updates equals changing the number by hand then.

    Of numbers that an oracle has as a schedule, `test_stages` tells.
    """
    row = STAGES[name]
    before = {key: jnp.float32(row.numbers[key]) for key in row.constant}
    after = {key: jnp.float32(0.9 * row.numbers[key]) for key in row.constant}

    def switch(key):
        return lambda t: jnp.where(t < 3, before[key], after[key])

    params = jnp.asarray(GRADS[0])
    by_hand, scheduled = row.make(**before), row.make(**{key: switch(key) for key in before})
    state = other = by_hand.init(params)
    for t in range(6):
        if t == 3:
            by_hand = row.make(**after)
        expected, state = by_hand.update(jnp.asarray(GRADS[t]), state, params)
        given, other = scheduled.update(jnp.asarray(GRADS[t]), other, params)
        np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_a_schedule_that_is_a_pytree_has_its_numbers_among_the_leaves():
    decay = jax.tree_util.Partial(lambda rate, t: rate / (t + 1), 0.5)
    opt = adamx.sgd(decay)
    assert jax.tree.leaves(opt) == [0.5]
    doubled = jax.tree.map(lambda x: 2 * x, opt)
    np.testing.assert_allclose(run(doubled, GRADS), 2 * run(opt, GRADS))


def test_python_numbers_keep_their_double_precision():
    """1 − 0.999 is 0.001 to 24 bits, not the 0.00099999 of a float32's 0.999."""
    opt = adamx.scale_by_rms(0.999)
    _, state = opt.update(jnp.ones(1), opt.init(jnp.ones(1)))
    assert state["scale_by_rms"]["nu"][0] == np.float32(0.001)


def test_integers_and_numpy_numbers_are_numbers():
    assert adamx.sgd(1) == adamx.sgd(1.0) == adamx.sgd(np.int64(1)) == adamx.sgd(np.float64(1.0))


# Values


@pytest.mark.parametrize("name", OPTIMISERS)
def test_equal_optimisers_are_equal(name):
    make = OPTIMISERS[name]
    assert make(0.1) == make(0.1) and hash(make(0.1)) == hash(make(0.1))
    assert make(0.1) != make(0.2)
    assert make(jnp.float32(0.1)) == make(jnp.float32(0.1)) != make(jnp.float32(0.2))


def test_equal_schedules_are_equal():
    cosine = optax.cosine_decay_schedule
    assert adamx.adam(cosine(0.1, 100)) == adamx.adam(cosine(0.1, 100))
    assert hash(adamx.adam(cosine(0.1, 100))) == hash(adamx.adam(cosine(0.1, 100)))
    assert adamx.adam(cosine(0.1, 100)) != adamx.adam(cosine(0.1, 101))
    joined = lambda: optax.join_schedules([cosine(0.1, 5), lambda t: 0.5], [5])  # noqa: E731
    assert adamx.sgd(joined()) == adamx.sgd(joined())


def test_different_algorithms_are_unequal():
    assert adamx.sgd(0.1, 0.9) != adamx.sgd(0.1, 0.9, nesterov=True)
    assert adamx.scale_by_momentum(0.9) != adamx.scale_by_heavy_ball(0.9)
    assert adamx.chain(optax.clip(1.0)) == adamx.chain(optax.clip(1.0))
    assert adamx.chain(optax.clip(1.0)) != adamx.chain(optax.clip(2.0))


def test_numbers_are_leaves_with_their_names():
    paths = jax.tree_util.tree_flatten_with_path(adamx.adam(0.1))[0]
    named = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    assert named["['scale_by_rms']['b2']"] == 0.999
    assert named["['scale_by_learning_rate']['learning_rate']"] == 0.1


def test_it_prints_as_the_code_that_makes_it():
    opt = adamx.chain(adamx.sgd(0.1, 0.9, nesterov=True), adamx.polyak_ema())
    names = {name: getattr(adamx, name) for name in adamx.__all__}
    assert eval(repr(opt), names) == opt
    assert eval(repr(adamx.adam(1e-3)), names) == adamx.adam(1e-3)
    assert repr(adamx.scale(2.0)) == "scale(factor=2.0)"
    assert repr(adamx.chain()) == "chain()"


def test_it_prints_arrays_schedules_and_tracers_by_what_they_are():
    assert "<float32[3]>" in repr(jax.vmap(adamx.sgd)(jnp.ones(3)))
    assert "<schedule cosine_decay_schedule>" in repr(adamx.sgd(optax.cosine_decay_schedule(1, 2)))
    shown = []
    jax.jit(lambda rate: shown.append(repr(adamx.sgd(rate))))(0.1)
    assert "traced" in shown[0]


def test_it_unpacks_as_optax_transformations_do():
    init, update = adamx.sgd(0.1)
    updates, _ = update(jnp.ones(1), init(jnp.ones(1)))
    np.testing.assert_allclose(updates, -0.1)


# Compilation


def counted(opt, params, steps=2):
    """How often the leaf function of a probe stage is traced."""
    traces = []

    @stage
    def probe():
        def shape(signal):
            traces.append(signal.update.shape)
            return signal

        return shape

    opt = adamx.chain(opt, probe())
    step = jax.jit(opt.update)
    state = opt.init(params)
    for _ in range(steps):
        _, state = step(params, state, params)
    return traces


def test_leaves_of_one_shape_share_one_trace():
    params = {f"p{i}": jnp.ones(3 + i % 2) for i in range(20)}
    assert sorted(counted(adamx.adam(0.1), params)) == [(3,), (4,)]


def test_an_equal_optimiser_does_not_compile_again():
    compiled = []

    @jax.jit
    def step(opt, state, grads):
        compiled.append(1)
        return opt.update(grads, state)

    opt, grads = adamx.adam(0.1), jnp.ones(3)
    state = opt.init(grads)
    for rate in (0.1, 0.2, 0.3):  # its numbers are data of the jitted function
        step(adamx.adam(rate), state, grads)
    assert len(compiled) == 1

    static = jax.jit(
        lambda opt, state, grads: (compiled.append(2), opt.update(grads, state))[1],
        static_argnums=0,
    )
    for _ in range(3):
        static(adamx.adam(optax.linear_schedule(0.1, 0.0, 10)), state, grads)
    assert compiled == [1, 2]


CALLS = []


def counting_schedule(rate):
    def schedule(t):
        CALLS.append(1)
        return rate / (t + 1)

    return schedule


def test_outside_jit_an_equal_optimiser_is_compiled_once():
    CALLS.clear()
    grads = jnp.ones(3)
    state = adamx.adam(0.1).init(grads)
    for _ in range(3):
        adamx.adam(counting_schedule(0.1)).update(grads, state)
    assert len(CALLS) == 1


def test_a_schedule_of_a_traced_number_does_not_outlive_its_trace():
    @jax.jit
    def stepped(rate):
        opt = adamx.sgd(lambda t: rate * 0.5**t)
        return opt.update(jnp.ones(1), opt.init(jnp.ones(1)))[0]

    with jax.checking_leaks():
        np.testing.assert_allclose([stepped(0.1)[0], stepped(0.2)[0]], [-0.1, -0.2])


# The contract of a stage


def test_a_clock_is_kept_per_step():
    @stage
    def every(period: NonNegative):
        """Passes the update in every period-th step."""
        clock = Clock(
            start=lambda: jnp.zeros((), jnp.int32),
            tick=lambda n: n + 1,
            read=lambda n: (n % period == 0) * 1.0,
        )

        def update(signal, slots, step):
            return signal.with_update(signal.update * step.clock["steps"]), slots

        return Rule(update, clocks={"steps": clock})

    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_array_equal(
            run(every(3), np.ones((7, 1), np.float32))[:, 0], [0, 0, 1, 0, 0, 1, 0]
        )


def test_a_clock_may_settle_on_what_was_measured():
    """The largest sum of absolute updates so far; the measure still sees the one before."""

    @stage
    def normalise_by_largest():
        largest = Clock(
            start=lambda: jnp.zeros(()),
            tick=lambda x: x,
            read=lambda x: x,
            settle=lambda x, total: jnp.maximum(x, total["sum"]),
        )

        def global_sum(signal, slots, step):
            return {"sum": jnp.sum(jnp.abs(signal.update)), "before": step.clock["largest"]}

        def update(signal, slots, step):
            before = {"before": slots["before"] * 0 + step.total["before"] / 2}  # two parameters
            return signal.with_update(signal.update / step.clock["largest"]), before

        slots = {"before": zeros}
        return Rule(update, slots=slots, clocks={"largest": largest}, global_sum=global_sum)

    opt = normalise_by_largest()
    state = opt.init([jnp.ones(1)] * 2)
    for total, largest, before in ((2.0, 2.0, 0.0), (8.0, 8.0, 2.0), (4.0, 8.0, 8.0)):
        u, state = opt.update([jnp.full(1, total / 2)] * 2, state)
        np.testing.assert_allclose(u[0], total / 2 / largest)
        np.testing.assert_allclose(state["normalise_by_largest"]["before"][0], before)


def test_slots_that_change_their_form_are_an_error():
    def growing(change):
        @stage
        def grow():
            return Rule(lambda s, slots, step: (s, change(slots)), slots={"a": zeros})

        return grow()

    for change in (
        lambda slots: {"b": slots["a"]},
        lambda slots: {"a": slots["a"].astype(jnp.bfloat16)},
        lambda slots: {"a": jnp.stack([slots["a"]] * 2)},
        lambda slots: {},
    ):
        opt = growing(change)
        with pytest.raises(StageError, match=r"stage 'grow', parameter \['w'\] \(float32\[3\]\)"):
            opt.update({"w": jnp.ones(3)}, opt.init({"w": jnp.ones(3)}))


def test_slots_and_clocks_are_never_weakly_typed():
    @stage
    def weak():
        def update(signal, slots, step):
            return signal, {"a": jnp.where(slots["a"] > 0, 1.0, 2.0)}

        clock = Clock(lambda: jnp.zeros(()), lambda x: jnp.where(x > 0, 1.0, 2.0), lambda x: x)
        return Rule(update, slots={"a": zeros}, clocks={"c": clock})

    opt = weak()
    _, state = opt.update(jnp.ones(2), opt.init(jnp.ones(2)))
    assert not any(x.weak_type for x in jax.tree.leaves(state))


def test_slots_may_be_trees_of_any_shape():
    @stage
    def factored():
        """Row and column means of the squared gradient of a matrix."""

        def update(signal, slots, step):
            square = abs_sq(signal.gradient)
            return signal, {"r": {"row": square.mean(0), "column": square.mean(1)}}

        def start(param):
            return {"row": jnp.zeros(param.shape[1]), "column": jnp.zeros(param.shape[0])}

        return Rule(update, slots={"r": start})

    opt, grads = factored(), {"w": jnp.arange(6.0).reshape(2, 3)}
    _, state = opt.update(grads, opt.init(grads))
    np.testing.assert_allclose(state["factored"]["r"]["w"]["row"], [4.5, 8.5, 14.5])


def test_a_slot_that_starts_as_the_parameter_is_a_copy():
    @stage
    def anchor():
        return Rule(lambda s, slots, step: (s, slots), slots={"theta": lambda param: param})

    params = jnp.ones(4)
    slot = anchor().init(params)["anchor"]["theta"]
    assert slot.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()


def test_two_averages_of_one_stage_have_their_own_clocks():
    @stage
    def two_rates(fast: Real, slow: Real):
        a, b = decaying_average(fast, "log_fast"), decaying_average(slow, "log_slow")

        def update(signal, slots, step):
            x, y = a(slots["a"], signal.update), b(slots["b"], signal.update)
            return signal.with_update(x / a.weight(step) - y / b.weight(step)), {"a": x, "b": y}

        return Rule(update, slots={"a": zeros, "b": zeros}, clocks=a.clocks | b.clocks)

    np.testing.assert_allclose(
        run(two_rates(0.5, 0.99), np.full((9, 1), 3.0, np.float32)), 0, atol=1e-6
    )


def test_a_signal_is_a_pytree():
    signal = Signal.enter(jnp.ones(2), None)
    assert jax.tree.map(lambda x: 2 * x, signal).update.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("place", ["in front", "behind"])
def test_a_stage_that_changes_the_shape_is_an_error(place):
    @stage
    def summed():
        return lambda signal: signal.with_update(jnp.sum(signal.update))

    rows = {"in front": [summed(), adamx.sgd(0.1)], "behind": [adamx.sgd(0.1), summed()]}
    opt = adamx.chain(*rows[place])
    with pytest.raises(adamx.StageError, match=r"'summed'.*shape \(3,\) into one of \(\)"):
        opt.update(jnp.ones(3), opt.init(jnp.ones(3)))
