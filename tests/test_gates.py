"""Gates: whether a step counts. Everything inside takes new values together, or none."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import adamx
from adamx.core import Rule, StageError
from adamx.engine import gated
from catalog import OPTIMISERS, REPRESENTATIVES

KEYS = jax.random.split(jax.random.key(0), 64)
PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.full(3, 0.5)}


def assert_trees_close(a, b, rtol, atol):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


def gradients(i, params=PARAMS):
    keys = jax.random.split(KEYS[i], len(params))
    return {
        k: jax.random.normal(key, x.shape) for key, (k, x) in zip(keys, params.items(), strict=True)
    }


def broken(i, value=jnp.nan):
    grads = gradients(i)
    return {**grads, "kernel": grads["kernel"].at[2, 1].set(value)}


def run(opt, rows, params=PARAMS, **each):
    """The updates of all steps, the parameters and the state after them."""
    state, updates = opt.init(params), []
    for i, grads in enumerate(rows):
        extra = {k: x[i] for k, x in each.items()}
        update, state = opt.update(grads, state, params, **extra)
        params = adamx.apply_updates(params, update)
        updates.append(update)
    return updates, params, state


def without_gates(state):
    """The state without the entries of gates, and without the count of all steps."""
    return {
        k: x
        for k, x in state.items()
        if k != "count" and not (isinstance(x, dict) and "skipped" in x)
    }


RATE = optax.linear_schedule(0.1, 0.0, 20)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_skipped_step_leaves_everything_as_it_was(name):
    opt = OPTIMISERS[name](0.01)
    rows = [gradients(0), gradients(1), gradients(2)]
    _, params, state = run(adamx.chain(opt, adamx.watch()), rows)
    gated = adamx.skip_nonfinite(adamx.chain(opt, adamx.watch()))
    mixed = [rows[0], broken(5), rows[1], broken(6, jnp.inf), broken(7, -jnp.inf), rows[2]]
    updates, with_skips, after = run(gated, mixed)
    for i in (1, 3, 4):
        assert not any(jnp.any(x) for x in jax.tree.leaves(updates[i]))
    assert_trees_close(with_skips, params, rtol=2e-6, atol=1e-7)
    assert_trees_close(without_gates(after), without_gates(state), rtol=1e-5, atol=1e-6)
    assert after["count"] == 6
    assert {k: int(x) for k, x in after["skip_nonfinite"].items()} == {
        "skipped": 3,
        "consecutive": 0,
        "failed": 0,
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_skipping_equals_apply_if_finite(dtype):
    def opts(inner):
        return adamx.skip_nonfinite(inner, 3), optax.apply_if_finite(inner, 3)

    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    rows = [gradients(0), broken(1), broken(2), gradients(3), broken(4, jnp.inf), gradients(5)]
    rows = [jax.tree.map(lambda x: x.astype(dtype), row) for row in rows]
    ours, theirs = opts(adamx.adamw(RATE))
    updates, end, state = run(ours, rows, params)
    expected, expected_end, optax_state = run(theirs, rows, params)
    for u, v in zip(updates, expected, strict=True):
        assert_trees_close(u, v, rtol=0, atol=0)
    assert_trees_close(end, expected_end, rtol=0, atol=0)
    inner = optax_state.inner_state
    assert_trees_close(
        {k: state[k] for k in inner if k != "count"},
        {k: x for k, x in inner.items() if k != "count"},
        rtol=0,
        atol=0,
    )
    assert state["skip_nonfinite"]["skipped"] == optax_state.total_notfinite
    assert state["count"] - state["skip_nonfinite"]["skipped"] == inner["count"]


def test_a_skipped_step_works_with_steps_in_float32_of_narrow_parameters():
    """``optax.apply_if_finite`` raises here, as its branches have other dtypes."""
    opt = adamx.chain(adamx.adamw(0.1), adamx.stochastic_rounding())
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    rows = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradients(i)) for i in range(2)]
    nan = jax.tree.map(lambda x: x * jnp.nan, rows[0])
    _, expected, _ = run(opt, rows, params)
    _, found, state = run(adamx.skip_nonfinite(opt), [rows[0], nan, rows[1]], params)
    assert_trees_close(found, expected, rtol=0, atol=0)
    assert state["skip_nonfinite"]["skipped"] == 1


@pytest.mark.parametrize("size", [1, 7, 1024, 37_000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_every_element_that_is_not_finite_is_seen(size, value):
    """XLA's maximum overlooks NaN on CPU; a sum of large finite numbers is not finite."""
    opt = adamx.skip_nonfinite(adamx.scale(1.0))
    for place in {0, size // 3, size - 1}:
        grads = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        grads[[place, (place + 1) % size]] = value
        _, state = opt.update(grads, opt.init(grads))
        assert bool(state["skip_nonfinite"]["skipped"]) == (not np.isfinite(value))


def test_too_many_skipped_steps_are_an_error_outside_jit_and_a_flag_inside():
    opt = adamx.skip_nonfinite(adamx.sgd(0.1), max_consecutive=2)
    state = opt.init(PARAMS)
    step = jax.jit(lambda grads, state: opt.update(grads, state))
    for i, failed in enumerate([False, False, True, True]):
        if i < 2:
            _, kept = opt.update(broken(i), state)
            assert not kept["skip_nonfinite"]["failed"]
        else:
            with pytest.raises(StageError, match="more than 2 steps in a row were not finite"):
                opt.update(broken(i), state)
        update, state = step(broken(i), state)
        assert state["skip_nonfinite"]["failed"] == failed
        assert not any(jnp.any(x) for x in jax.tree.leaves(update))
    assert adamx.metrics(state)["skip_nonfinite/consecutive"] == 4
    _, state = opt.update(gradients(0), state)  # a finite gradient: training goes on
    assert state["skip_nonfinite"]["failed"]  # it has been so once
    assert state["skip_nonfinite"]["consecutive"] == 0


def spikes(values, window, sigma, least):
    """Which of the values are skipped, in float64 and from the definition."""
    history, skipped = [], []
    for x in map(float, values):
        if not np.isfinite(x):
            skipped.append(True)
            continue
        most = np.inf
        if len(history) >= least:
            last = np.array(history[-window:])
            most = last.mean() + sigma * last.std(ddof=1)
        skipped.append(x > most)
        history.append(min(x, most))
    return skipped


def test_spikes_of_the_loss_are_skipped():
    rng = np.random.default_rng(1)
    values = 2 + 0.1 * rng.standard_normal(120)
    values[[30, 31, 70]] = 8.0, np.nan, 3.5
    values[90:] += 3  # a new level
    opt = adamx.skip_spikes(adamx.sgd(1.0), window=16, sigma=4.0, by="value", min_steps=6)
    state = opt.init(jnp.zeros(1))
    step = jax.jit(lambda state, x: opt.update(jnp.ones(1), state, value=x))
    skipped = []
    for x in values.astype(np.float32):
        update, state = step(state, x)
        skipped.append(not update.any())
    expected = spikes(values, 16, 4.0, 6)
    assert skipped == expected
    assert (
        expected[30] and expected[31] and expected[70] and expected[90] and not any(expected[110:])
    )
    assert state["skip_spikes"]["skipped"] == sum(expected)


def test_spikes_of_the_norm_are_skipped_by_the_norm_over_all_parameters():
    opt = adamx.skip_spikes(adamx.sgd(1.0), window=8, min_steps=4)
    rows = [gradients(i) for i in range(12)]
    rows[6] = jax.tree.map(lambda x: 50 * x, rows[6])
    rows[9] = jax.tree.map(lambda x: 1e30 * x, rows[9])
    norms = [
        np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(row)))
        for row in rows
    ]
    updates, _, _ = run(opt, rows)
    assert [not jnp.any(u["kernel"]) for u in updates] == spikes(norms, 8, 6.0, 4)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_accumulated_steps_equal_those_of_large_batches(name, steps):
    opt = OPTIMISERS[name](0.01)
    rows = [gradients(i) for i in range(3 * steps)]
    large = [
        jax.tree.map(lambda *x: sum(x) / steps, *rows[i : i + steps])
        for i in range(0, len(rows), steps)
    ]
    gated = adamx.accumulate(adamx.chain(opt, adamx.watch()), steps)
    updates, params, state = run(gated, rows)
    _, expected, alone = run(adamx.chain(opt, adamx.watch()), large)
    assert_trees_close(params, expected, rtol=2e-6, atol=2e-6)
    of_gate = [k for k in alone if k not in ("count", "watch")]
    assert_trees_close({k: state[k] for k in of_gate}, {k: alone[k] for k in of_gate}, 1e-4, 1e-5)
    for i, update in enumerate(updates):
        assert any(jnp.any(x) for x in jax.tree.leaves(update)) == ((i + 1) % steps == 0)
    assert not any(jnp.any(x) for x in jax.tree.leaves(state["accumulate"]["sum"]))


def test_accumulation_equals_multi_steps():
    rows = [gradients(i) for i in range(7)]
    ours = adamx.accumulate(adamx.adamw(RATE), 3)
    theirs = optax.MultiSteps(adamx.adamw(RATE), 3)
    updates, end, state = run(ours, rows)
    with jax.numpy_dtype_promotion("standard"):
        expected, expected_end, _ = run(theirs, rows)
    for u, v in zip(updates, expected, strict=True):
        assert_trees_close(u, v, rtol=1e-6, atol=1e-8)
    assert_trees_close(end, expected_end, rtol=1e-6, atol=1e-8)
    assert adamx.hyperparams(ours, state)["learning_rate"] == pytest.approx(RATE(2))


def test_the_number_of_steps_may_be_a_schedule_of_the_steps_taken():
    opt = adamx.accumulate(adamx.sgd(1.0), lambda count: 1 + count)
    updates, _, state = run(opt, [{"x": jnp.ones(1)}] * 10, {"x": jnp.zeros(1)})
    taken = [i for i, u in enumerate(updates) if u["x"].any()]
    assert taken == [0, 2, 5, 9]
    assert adamx.hyperparams(opt, state)["steps"] == 5


def test_a_last_batch_is_completed_by_flush():
    opt = adamx.accumulate(adamx.sgd(1.0), 4)
    grads = [{"x": jnp.full(1, float(i))} for i in (1, 2, 6)]
    params = {"x": jnp.zeros(1)}
    for last in (True, jnp.array(True)):
        updates, _, state = run(opt, grads, params, flush=[False, False, last])
        assert [float(u["x"][0]) for u in updates] == pytest.approx([0, 0, -3])
        assert not state["accumulate"]["sum"]["x"].any()
    total = adamx.accumulate(adamx.sgd(1.0), 4, average=False)
    updates, _, _ = run(total, grads, params, flush=[False, False, True])
    assert float(updates[2]["x"][0]) == pytest.approx(-9)


def test_groups_accumulate_by_themselves():
    opt = adamx.partition(
        {
            "kernel": adamx.accumulate(adamx.adamw(RATE), 2),
            "*": adamx.adamw(RATE),
        }
    )
    rows = [gradients(i) for i in range(6)]
    _, params, state = run(opt, rows)
    means = [{"kernel": (rows[i]["kernel"] + rows[i + 1]["kernel"]) / 2} for i in range(0, 6, 2)]
    _, kernel, _ = run(adamx.adamw(RATE), means, {"kernel": PARAMS["kernel"]})
    alone = [{"bias": row["bias"]} for row in rows]
    _, bias, _ = run(adamx.adamw(RATE), alone, {"bias": PARAMS["bias"]})
    assert_trees_close(params, kernel | bias, rtol=2e-6, atol=1e-7)
    rates = adamx.hyperparams(opt, state)
    assert rates["learning_rate@kernel"] == pytest.approx(RATE(3))
    assert rates["learning_rate@rest"] == pytest.approx(RATE(6))


def test_gates_may_be_inside_of_gates():
    """A broken gradient adds nothing to the sum, and does not count as a part of the batch."""
    inside = adamx.adamw(RATE)
    opt = adamx.skip_nonfinite(adamx.accumulate(inside, 2))
    rows = [gradients(0), broken(9), gradients(1), gradients(2), gradients(3)]
    _, params, state = run(opt, rows)
    finite = [rows[0], *rows[2:]]
    _, expected, alone = run(adamx.accumulate(inside, 2), finite)
    assert_trees_close(params, expected, rtol=1e-6, atol=1e-7)
    assert_trees_close(state["accumulate"], alone["accumulate"], rtol=1e-6, atol=1e-7)
    other = adamx.accumulate(adamx.skip_nonfinite(inside), 2)
    _, params, state = run(other, [*finite[:2], broken(9), finite[2], *finite[2:]])
    assert_trees_close(params, expected, rtol=1e-6, atol=1e-7)
    assert state["skip_nonfinite"]["skipped"] == 1


def test_a_parameter_without_a_gradient_in_a_step_adds_nothing():
    opt = adamx.accumulate(adamx.sgd(1.0), 2)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    one = jnp.ones(1)
    rows = [
        {"a": one, "b": None},
        {"a": one, "b": one},
        {"a": one, "b": one},
        {"a": one, "b": None},
    ]
    updates, _, state = run(opt, rows[:2], params)
    assert (float(updates[1]["a"][0]), float(updates[1]["b"][0])) == (-1, -0.5)
    updates, _, state = run(opt, rows, params)
    assert updates[3]["b"] is None
    assert state["accumulate"]["sum"]["b"] == 0.5  # it enters the next batch


def test_loss_scale_follows_the_gradients():
    """The scale of jmp.DynamicLossScale, from its definition."""
    opt = adamx.loss_scale(adamx.sgd(1.0), initial=8.0, period=3, minimum=2.0)
    state = opt.init(jnp.zeros(1))
    finite = [True, False, True, True, True, True, False, False, False, True]
    scale, good, scales = 8.0, 0, []
    for i, is_finite in enumerate(finite):
        used = adamx.get_loss_scale(state)
        assert used.value == scale
        grads = used.scale(jnp.full(1, 3.0 + i)) * (1 if is_finite else jnp.inf)
        update, state = opt.update(grads, state)
        assert update == (-(3.0 + i) if is_finite else 0)
        good = good + 1 if is_finite else 0
        scale = scale if is_finite else max(scale / 2, 2.0)
        if good == 3:
            scale, good = scale * 2, 0
        scales.append(scale)
    assert scales == [8, 4, 4, 4, 8, 8, 4, 2, 2, 2]


def test_a_scaled_loss_trains_in_float16():
    """Gradients of 1e-8 are 0 in float16, and not if the loss is scaled."""
    x, small = jnp.ones(4, jnp.float16), jnp.float16(1e-4)

    def loss(params, small):  # an argument, as XLA would multiply constants first
        return jnp.sum(params * x) * small * small

    assert not jax.jit(jax.grad(loss))(x, small).any()
    opt = adamx.loss_scale(adamx.adam(0.1, eps=0.0))  # steps of ±0.1, if the gradient is constant
    params = jnp.zeros(4, jnp.float32)
    state = opt.init(params)

    @jax.jit
    def step(params, state, small):
        scale = adamx.get_loss_scale(state)
        grads = jax.grad(lambda p: scale.scale(loss(p, small)))(params.astype(jnp.float16))
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    for _ in range(4):
        params, state = step(params, state, small)
    assert_trees_close(params, jnp.full(4, -0.4), rtol=1e-5, atol=0)
    scale = adamx.LossScale(jnp.float32(4.0))
    assert_trees_close(scale.unscale(scale.scale({"a": x})), {"a": x}, rtol=0, atol=0)


# Gates under the transformations of JAX, and beside the other axes


GATES = {
    "skip_nonfinite": adamx.skip_nonfinite,
    "skip_spikes": functools.partial(adamx.skip_spikes, window=4, min_steps=2, sigma=50.0),
    "accumulate": functools.partial(adamx.accumulate, steps=2),
    "loss_scale": functools.partial(adamx.loss_scale, initial=1.0),
}
ROWS = [gradients(0), gradients(1), broken(2), gradients(3), gradients(4), gradients(5)]


def rows_for(gate):
    """Gradients of which one is not finite, but for the gate that sums all of them."""
    return [row for row in ROWS if gate != "accumulate" or row is not ROWS[2]]


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_under_jit_scan_and_vmap(gate):
    opt = GATES[gate](adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(RATE)))
    rows = rows_for(gate)
    _, params, state = run(opt, rows)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)

    @jax.jit
    def train(opt, params, stacked):
        def step(carry, grads):
            params, state = carry
            updates, state = opt.update(grads, state, params)
            return (adamx.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, opt.init(params)), stacked)[0]

    found = train(opt, PARAMS, stacked)
    assert_trees_close(found, (params, state), rtol=2e-6, atol=1e-7)
    both = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), PARAMS)
    found = jax.vmap(lambda p: train(opt, p, stacked))(both)
    assert_trees_close(jax.tree.map(lambda x: x[0], found), (params, state), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_beside_other_axes(gate):
    inside = adamx.adamw(0.1)
    rows = rows_for(gate)
    _, expected, _ = run(GATES[gate](inside), rows)
    same = {
        "where": lambda x: adamx.where("*", x),
        "partition": lambda x: adamx.partition({"kernel": x, "*": x}),
        "in front of another": lambda x: adamx.chain(x, adamx.scale(1.0)),
        "behind another": lambda x: adamx.chain(adamx.scale(1.0), x),
        "an average behind": lambda x: adamx.chain(x, adamx.polyak_ema(0.9)),
    }
    for name, around in same.items():
        if name == "partition" and gate in ("skip_nonfinite", "loss_scale", "skip_spikes"):
            continue  # groups decide by themselves
        _, params, _ = run(around(GATES[gate](inside)), rows)
        assert_trees_close(params, expected, rtol=2e-6, atol=1e-7)
    with pytest.raises(StageError, match=rf"put it inside: {gate}\(delay_start"):
        adamx.delay_start(GATES[gate](inside))
    for codec in ("bf16", "int8"):
        packed = adamx.quantize_state(inside, codec)
        _, alone, _ = run(GATES[gate](packed), rows)
        _, outside, _ = run(adamx.quantize_state(GATES[gate](inside), codec), rows)
        assert_trees_close(outside, alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adafactor", "prodigy", "lookahead_of_adam"])
def test_a_gate_of_matrices_and_of_sums_over_all_parameters(name):
    opt = OPTIMISERS[name](0.01)
    params = {"kernel": jnp.ones((4, 3)), "other": jnp.full((3, 3), 0.5)}
    rows = [gradients(i, params) for i in range(3)]
    nan = jax.tree.map(lambda x: x * jnp.nan, rows[0])
    _, expected, _ = run(opt, rows, params)
    _, found, _ = run(adamx.skip_nonfinite(opt), [rows[0], nan, *rows[1:]], params)
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-6)


def test_optax_transformations_are_kept_too():
    tx = optax.chain(optax.trace(0.9), optax.scale(-0.1))
    rows = [gradients(0), gradients(1)]
    _, expected, _ = run(adamx.chain(tx), rows)
    _, found, _ = run(adamx.skip_nonfinite(tx), [rows[0], broken(3), rows[1]])
    assert_trees_close(found, expected, rtol=1e-6, atol=1e-7)
    _, found, _ = run(adamx.accumulate(tx, 2), [row for row in rows for _ in range(2)])
    assert_trees_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gate", ["skip_nonfinite", "accumulate"])
def test_stages_behind_a_gate_see_the_parameters_in_a_step_that_does_not_count(gate):
    """An average or a decay would take in parameters of 0."""
    opt = adamx.chain(
        GATES[gate](adamx.scale_by_momentum(0.9)),
        adamx.add_decayed_weights(0.1),
        adamx.scale_by_learning_rate(1.0),
        adamx.polyak_ema(0.5),
    )
    params = {"x": jnp.array([1.0, 2.0])}
    grads = {"x": params["x"] * (jnp.nan if gate == "skip_nonfinite" else 1)}
    updates, state = opt.update(grads, opt.init(params), params)
    np.testing.assert_allclose(updates["x"], [-0.1, -0.2], rtol=1e-6)
    np.testing.assert_allclose(adamx.polyak_params(state)["x"], [0.9, 1.8], rtol=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_of_parameters_without_gradients_or_without_links(gate):
    opt = adamx.partition({"kernel": GATES[gate](adamx.sgd(1.0)), "*": adamx.sgd(1.0)})
    updates, _ = opt.update({"kernel": None, "bias": ONE}, opt.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["bias"], -ONE)
    empty = GATES[gate](adamx.sgd(1.0))
    assert empty.update({}, empty.init({}), {})[0] == {}
    hollow = GATES[gate](adamx.chain())
    grads = {"x": jnp.array([jnp.nan if gate != "accumulate" else 1.0])}
    assert hollow.update(grads, hollow.init(grads), grads)[0]["x"] == 0 or gate == "skip_spikes"


ONE = jnp.ones(3)


@pytest.mark.parametrize("gate", GATES)
def test_stages_behind_a_gate_see_zeros_in_a_step_that_does_not_count(gate):
    opt = adamx.chain(
        GATES[gate](adamx.scale_by_momentum(0.9)),
        adamx.scale_by_rms(0.9),
        adamx.bias_correction(),
        adamx.scale_by_learning_rate(0.1),
    )
    state = opt.init(PARAMS)
    for grads in rows_for(gate):
        updates, state = opt.update(grads, state, PARAMS)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("name", ["sgd", "rms", "clipped", "nadam"])
@pytest.mark.parametrize("gate", GATES)
def test_gradients_flow_through_a_gate(gate, name):
    """A gradient that is not finite, which depends on the parameters, is not in the derivative."""
    make = {
        "sgd": adamx.sgd,
        "rms": lambda x: adamx.chain(
            adamx.scale_by_rms(x), adamx.bias_correction(), adamx.scale_by_learning_rate(0.1)
        ),
        "clipped": lambda x: adamx.chain(adamx.clip_by_global_norm(x), adamx.sgd(0.1)),
        "nadam": adamx.nadam,
    }[name]

    @jax.jit
    def end(x):
        params, opt = PARAMS, GATES[gate](make(x))
        state = opt.init(params)
        for given in rows_for(gate)[:4]:
            grads = jax.tree.map(lambda g, p: g + 0.1 * p, given, params)
            updates, state = opt.update(grads, state, params)
            params = adamx.apply_updates(params, updates)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    slope, step = float(jax.grad(end)(0.3)), 1e-2
    by_difference = float(end(0.3 + step) - end(0.3 - step)) / (2 * step)
    assert slope == pytest.approx(by_difference, rel=2e-2, abs=1e-2)
    assert float(jax.jvp(end, (0.3,), (1.0,))[1]) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_inside_shard_map(gate):
    """All devices decide alike, from the sums over all shards."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    opt = GATES[gate](adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(0.1)))
    rows = ROWS if gate != "accumulate" else ROWS[:2]
    _, expected, _ = run(opt, rows)
    spec = {"kernel": P("data"), "bias": P()}
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)

    def train(params, stacked):
        state = opt.init(params)
        for i in range(len(rows)):
            grads = jax.tree.map(lambda x, i=i: x[i], stacked)
            updates, state = opt.update(grads, state, params)
            params = adamx.apply_updates(params, updates)
        return params

    of_rows = {"kernel": P(None, "data"), "bias": P()}
    found = jax.jit(jax.shard_map(train, mesh=mesh, in_specs=(spec, of_rows), out_specs=spec))(
        PARAMS, stacked
    )
    assert_trees_close(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("gate", "most"), [("accumulate", 4), ("skip_nonfinite", 0), ("skip_spikes", 0)]
)
def test_a_gate_copies_no_state(gate, most):
    """In bytes per parameter: behind a ``cond``, there is the update; slots stay in place."""
    opt = GATES[gate](adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3)))
    params = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 4
    state = jax.eval_shape(opt.init, params)

    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        made = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    elements = sum(x.size for x in params)
    assert made.memory_analysis().temp_size_in_bytes / elements < most + 0.2


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_on_accelerators_elementwise_stages_run_in_every_step(name, monkeypatch):
    """And the others in steps that count; the numbers are the same."""
    opt = adamx.accumulate(adamx.chain(OPTIMISERS[name](0.01), adamx.watch()), 2)
    rows = [gradients(i) for i in range(5)]
    _, expected, alone = run(opt, rows)
    monkeypatch.setattr(gated, "platform", lambda: "tpu")
    rested, rest = [], gated._pass_or_rest
    monkeypatch.setattr(gated, "_pass_or_rest", lambda *x, **y: rested.append(1) or rest(*x, **y))
    _, found, state = run(opt.replace(steps=2.0 - 1e-9), rows)  # another program
    assert_trees_close((found, state), (expected, alone), rtol=1e-6, atol=1e-7)
    assert bool(rested) == (name == "adafactor")


# Gates as values


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_a_value(gate):
    make = lambda: GATES[gate](adamx.chain(adamx.adamw(1e-3), adamx.watch()))  # noqa: E731
    opt = make()
    assert opt == make() and hash(opt) == hash(make())
    assert pickle.loads(pickle.dumps(opt)) == opt
    assert adamx.from_config(adamx.to_config(opt)) == opt
    assert eval(repr(opt), vars(adamx) | {"inf": float("inf")}) == opt
    assert adamx.explain(opt).text == adamx.explain(adamx.adamw(1e-3)).text
    assert opt.replace(learning_rate=0.5) == GATES[gate](
        adamx.chain(adamx.adamw(0.5), adamx.watch())
    )
    nested = adamx.skip_nonfinite(adamx.chain(opt, adamx.scale(2.0)), 7)
    assert eval(repr(nested), vars(adamx)) == nested
    assert adamx.from_config(adamx.to_config(nested)) == nested


def test_a_training_goes_on_with_a_gate_and_without_it():
    rows = [gradients(i) for i in range(8)]
    opt = adamx.adamw(RATE)
    state, params = opt.init(PARAMS), PARAMS
    for grads in rows[:2]:
        updates, state = opt.update(grads, state, params)
        params = adamx.apply_updates(params, updates)
    gated = adamx.accumulate(opt, 2)
    state, report = adamx.restore_state(state, gated, params)
    assert adamx.hyperparams(gated, state)["learning_rate"] == pytest.approx(RATE(2))
    for grads in rows[2:6]:
        updates, state = gated.update(grads, state, params)
        params = adamx.apply_updates(params, updates)
    assert adamx.hyperparams(gated, state)["learning_rate"] == pytest.approx(RATE(4))
    state, report = adamx.restore_state(state, opt, params)
    assert state["count"] == 4
    assert "accumulate" in str(report)


def test_metrics_of_a_gate_keep_the_last_step_that_counted():
    opt = adamx.skip_nonfinite(adamx.chain(adamx.sgd(RATE), adamx.watch()))
    _, _, state = run(opt, [gradients(0), broken(1)])
    seen = adamx.metrics(state)
    assert seen["nonfinite"] == 0 and seen["learning_rate"] == pytest.approx(0.1)
    assert seen["skip_nonfinite/skipped"] == 1
    outside = adamx.chain(adamx.skip_nonfinite(adamx.sgd(RATE)), adamx.watch())
    _, _, state = run(outside, [gradients(0), broken(1)])
    assert adamx.metrics(state)["update_rms"] == 0


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adamx.skip_nonfinite(3), "takes a transformation, got 3"),
        (lambda: adamx.skip_nonfinite(adamx.adam), "call it: adam"),
        (lambda: adamx.skip_nonfinite(), r"first argument: skip_nonfinite\(opt"),
        (lambda: adamx.skip_spikes(adamx.sgd(1.0), by="loss"), "'norm' or 'value'"),
        (lambda: adamx.accumulate(adamx.sgd(1.0), 0), "steps"),
        (lambda: adamx.accumulate(adamx.sgd(1.0), -1), "steps"),
        (
            lambda: adamx.skip_nonfinite(adamx.sgd(1.0), -1),
            "max_consecutive must be a whole number ≥ 0, got -1",
        ),
        (lambda: adamx.loss_scale(adamx.sgd(1.0), 0.0), "initial must be"),
        (lambda: adamx.loss_scale(adamx.sgd(1.0), 0.5), "less than minimum"),
        (lambda: adamx.loss_scale(adamx.sgd(1.0), 1e39), "that float32 can hold"),
        (
            lambda: adamx.skip_spikes(adamx.sgd(1.0), window=4, min_steps=8),
            "the history has only 4 steps",
        ),
        (lambda: adamx.get_loss_scale(adamx.sgd(1.0).init(PARAMS)), "no gates 'loss_scale'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError, StageError), match=message):
        make()


def test_a_missing_loss_is_an_error_that_names_the_gate():
    opt = adamx.skip_spikes(adamx.sgd(0.1), by="value")
    with pytest.raises(StageError, match=r"'skip_spikes'.*value"):
        opt.update(gradients(0), opt.init(PARAMS), PARAMS)


SPIKES = adamx.skip_spikes(adamx.sgd(0.1), by="value")


@pytest.mark.parametrize(
    ("opt", "extra", "message"),
    [
        (SPIKES, {"value": jnp.ones(3)}, "value must be one real number"),
        (SPIKES, {"value": "high"}, "the extra argument value .* 'high'"),
        (SPIKES, {"value": 1j}, "value must be one real number"),
        (adamx.accumulate(adamx.sgd(0.1), 2), {"flush": 0.5}, "flush must be True or False"),
        (adamx.accumulate(adamx.sgd(0.1), 2), {"flush": "yes"}, "the extra argument flush"),
    ],
)
def test_bad_extra_arguments_name_the_gate(opt, extra, message):
    with pytest.raises(StageError, match=f"(?s)'(skip_spikes|accumulate)'.*{message}"):
        opt.update(gradients(0), opt.init(PARAMS), PARAMS, **extra)


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (None, r"does not decide: Rule\(gate="),
        (lambda clocks, step, extra: True, "whether the step counts, and a dict"),
        (lambda clocks, step, extra: (jnp.int32(2), {}), "must be one bool"),
        (lambda clocks, step, extra: (jnp.ones(3, bool), {}), "must be one bool"),
    ],
)
def test_a_gate_of_ones_own_that_does_not_decide(decide, message):
    @adamx.gate()
    def mine():
        return Rule(lambda signal, slots, step: (signal, slots), gate=decide)

    opt = mine(adamx.sgd(1.0))
    with pytest.raises(StageError, match=f"'mine'.*{message}"):
        opt.update(gradients(0), opt.init(PARAMS), PARAMS)


def test_the_state_of_an_optax_transformation_keeps_its_form(lenient):
    params = {"x": jnp.ones(2, jnp.bfloat16)}
    grads = {"x": jnp.ones(2, jnp.float32)}
    for opt in (adamx.accumulate(optax.trace(0.9), 1), adamx.skip_nonfinite(optax.trace(0.9))):
        state = opt.init(params)
        _, after = opt.update(grads, state, params)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    growing = optax.GradientTransformation(
        lambda p: [], lambda u, s, p=None: (u, [*s, jnp.ones(1)])
    )
    opt = adamx.accumulate(growing, 1)
    with pytest.raises(StageError, match="its state changes its form"):
        opt.update(grads, opt.init(params), params)


def test_links_of_a_gate_stay_together():
    links = adamx.skip_nonfinite(adamx.adamw(1e-3)).links
    with pytest.raises(StageError, match="keep the links of a gate together"):
        adamx.Transformation(links[1:]).init(PARAMS)


def test_a_gate_of_ones_own():
    @adamx.gate(takes=["keep"])
    def skip_if_told():
        return Rule(
            lambda signal, slots, step: (signal, slots),
            gate=lambda clocks, step, extra: (extra["keep"], {}),
        )

    opt = skip_if_told(adamx.sgd(1.0, momentum=0.5))
    ones = {"x": jnp.ones(1)}
    updates, _, _ = run(opt, [ones] * 3, {"x": jnp.zeros(1)}, keep=[True, False, True])
    assert [float(u["x"][0]) for u in updates] == [-1, 0, -1.5]
