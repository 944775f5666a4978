"""None in the gradients of a step: that parameter keeps what it has, and takes no step."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import StageError
from adamx.core import Rule, stage, zeros
from catalog import OPTIMISERS, REPRESENTATIVES
from helpers import each_once

RANDOM = np.random.default_rng(0)
pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

PARAMS = {
    "a": jnp.asarray(RANDOM.normal(size=(3, 4)), jnp.float32),
    "b": jnp.asarray(RANDOM.normal(size=(3, 4)), jnp.float32),
    "c": jnp.asarray(RANDOM.normal(size=5), jnp.float32),
}
GRADS = jax.tree.map(lambda x: jnp.asarray(RANDOM.normal(size=(6, *x.shape)), jnp.float32), PARAMS)

# Their steps depend on a sum over all parameters.
TOGETHER = {"clipped", "prodigy"}


def at(t, *missing):
    return {name: None if name in missing else g[t] for name, g in GRADS.items()}


def started(opt, params=PARAMS):
    """The state after a step in which every parameter had a gradient."""
    return opt.update(at(0), opt.init(params), params)[1]


def of(state, name):
    """What is kept of one parameter."""
    slots = {}
    for name_of_stage, kept in state.items():
        if isinstance(kept, dict):
            slots |= {
                (name_of_stage, slot): tree[name]
                for slot, tree in kept.items()
                if isinstance(tree, dict) and name in tree
            }
    return slots


@pytest.mark.parametrize(
    ("name", "jit"),
    [*((name, True) for name in REPRESENTATIVES), ("adam", False), ("clipped", False)],
)
def test_it_takes_no_step_and_its_slots_stay(name, jit):
    opt = OPTIMISERS[name](0.05)
    state = started(opt)
    update = jax.jit(opt.update) if jit else opt.update
    updates, after = update(at(1, "b"), state, PARAMS)
    assert updates["b"] is None
    own, before = of(after, "b"), of(state, "b")
    if ("polyak_ema", "ema") in own:  # which is to follow the parameter
        assert not np.array_equal(*(x.pop(("polyak_ema", "ema")) for x in (own, before)))
    chex.assert_trees_all_equal(own, before)
    assert jax.eval_shape(lambda x: x, after) == jax.eval_shape(lambda x: x, state)
    if name not in TOGETHER:
        all_updates, all_after = update(at(1), state, PARAMS)
        for other in "ac":
            chex.assert_trees_all_close(updates[other], all_updates[other], rtol=1e-6)
            chex.assert_trees_all_close(of(after, other), of(all_after, other), rtol=1e-6)
    new = adamx.apply_updates(PARAMS, updates)
    chex.assert_trees_all_equal(new["b"], PARAMS["b"])


def test_the_others_are_clipped_by_their_own_norm():
    opt = adamx.clip_by_global_norm(1e-3)
    updates, _ = opt.update(at(0, "b"), opt.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(np.sum(np.square(at(0)[name], dtype=np.float64)) for name in "ac"))
    np.testing.assert_allclose(updates["a"], np.asarray(at(0)["a"]) * 1e-3 / norm, rtol=1e-5)


def test_moments_are_those_of_its_own_gradients_and_the_bias_that_of_the_chain():
    opt, state = adamx.adam(0.1), adamx.adam(0.1).init(PARAMS)
    m, v = np.zeros(5), np.zeros(5)
    for t in range(6):
        has_one = t in (1, 2, 5)
        updates, state = opt.update(at(t) if has_one else at(t, "c"), state, PARAMS)
        if has_one:
            g = np.asarray(GRADS["c"][t], np.float64)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            hat = m / (1 - 0.9 ** (t + 1)), v / (1 - 0.999 ** (t + 1))
            np.testing.assert_allclose(
                updates["c"], -0.1 * hat[0] / (np.sqrt(hat[1]) + 1e-8), rtol=1e-5
            )
    assert int(state["count"]) == 6


def test_as_in_torch():
    torch = pytest.importorskip("torch")
    theta = {name: torch.nn.Parameter(torch.tensor(np.asarray(x))) for name, x in PARAMS.items()}
    theirs = torch.optim.SGD(theta.values(), lr=0.1, momentum=0.9)
    opt, params = adamx.sgd(0.1, momentum=0.9), PARAMS
    state = opt.init(params)
    for t, missing in enumerate(["", "b", "abc", "ac", "", "b"]):
        for name, parameter in theta.items():
            has_one = name not in missing
            parameter.grad = torch.tensor(np.asarray(GRADS[name][t])) if has_one else None
        theirs.step()
        updates, state = opt.update(at(t, *missing), state, params)
        params = adamx.apply_updates(params, updates)
    for name, parameter in theta.items():
        np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("with_params", [False, True])
@pytest.mark.parametrize("missing", [None, {"a": None, "b": None, "c": None}], ids=["None", "all"])
def test_no_gradient_at_all(missing, with_params):
    opt = adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adam(0.1))
    state = started(opt)
    updates, after = opt.update(missing, state, PARAMS if with_params else None)
    assert updates == missing
    for name in PARAMS:
        chex.assert_trees_all_equal(of(after, name), of(state, name))
    assert int(after["count"]) == 2
    chex.assert_trees_all_equal(adamx.apply_updates(PARAMS, updates), PARAMS)


@pytest.mark.parametrize("with_params", [False, True])
@pytest.mark.parametrize("recipe", ["adam", "adafactor", "sgd"])
def test_none_may_stand_for_a_tree_of_parameters(recipe, with_params):
    params = {"head": PARAMS["c"], "trunk": {"a": PARAMS["a"], "b": [PARAMS["b"]]}}
    grads = {"head": GRADS["c"][0], "trunk": {"a": GRADS["a"][0], "b": [GRADS["b"][0]]}}
    opt = OPTIMISERS[recipe](0.1)
    first = opt.init(params)
    known = params if with_params or recipe == "adafactor" else None
    _, state = opt.update(grads, first, known)
    updates, after = opt.update(grads | {"trunk": None}, state, known)
    assert updates["trunk"] is None
    assert jax.eval_shape(lambda x: x, after) == jax.eval_shape(lambda x: x, first)
    for kept, before in ((after.get(k), state[k]) for k in state if k != "count"):
        for slot in before:
            if isinstance(before[slot], dict):
                chex.assert_trees_all_equal(kept[slot]["trunk"], before[slot]["trunk"])


def test_without_parameters():
    opt = adamx.adam(0.1)
    _, state = opt.update(at(0), opt.init(PARAMS))
    updates, after = opt.update(at(1, "a"), state)
    expected, _ = opt.update(at(1), state)
    assert updates["a"] is None
    chex.assert_trees_all_equal(updates["b"], expected["b"])
    chex.assert_trees_all_equal(of(after, "a"), of(state, "a"))


def test_in_a_scan():
    """Some parameters have gradients in one phase, others in the next."""
    opt = adamx.chain(adamx.adam(0.1), adamx.polyak_ema(0.9), adamx.watch(every=2))

    def phase(missing):
        def step(carry, t):
            params, state = carry
            updates, state = opt.update(at(t, *missing), state, params)
            return (adamx.apply_updates(params, updates), state), None

        return lambda carry: jax.lax.scan(step, carry, jnp.arange(3))[0]

    start = PARAMS, opt.init(PARAMS)
    params, state = phase("b")(phase("ac")(start))
    found = start
    for missing in ("ac", "b"):
        for t in range(3):
            updates, after = opt.update(at(t, *missing), found[1], found[0])
            found = adamx.apply_updates(found[0], updates), after
    chex.assert_trees_all_close((params, state), found, rtol=1e-5, atol=1e-6)


RANDOM_BITS = {
    "int8": lambda: adamx.quantize_state(adamx.adam(0.1), "int8", min_size=1),
    "bf16": lambda: adamx.quantize_state(adamx.sgd(0.1, 0.9), "bf16", min_size=1),
    "stochastic_rounding": lambda: adamx.chain(adamx.sgd(0.1), adamx.stochastic_rounding()),
    "kahan_summation": lambda: adamx.chain(adamx.sgd(0.1), adamx.kahan_summation()),
}


@pytest.mark.parametrize("name", RANDOM_BITS)
def test_the_random_bits_of_the_others_are_the_same(name):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    opt = RANDOM_BITS[name]()
    state = started(opt, params)
    updates, after = opt.update(at(1, "a"), state, params)
    expected, all_after = opt.update(at(1), state, params)
    for other in "bc":
        chex.assert_trees_all_equal(updates[other], expected[other])
        chex.assert_trees_all_equal(of(after, other), of(all_after, other))
    chex.assert_trees_all_equal(of(after, "a"), of(state, "a"))


@pytest.mark.parametrize("with_params", [False, True])
def test_groups_know_it_still(with_params):
    """A pattern that means only this parameter means something."""
    opt = adamx.chain(
        adamx.partition(
            {
                "a": adamx.adam(0.1),
                "b": adamx.sgd(0.1, 0.9),
                lambda path, shape: shape.shape[0] == 5: adamx.sgd(0.5),
            }
        ),
        adamx.where("b", adamx.scale(2.0)),
    )
    known = PARAMS if with_params else None
    _, state = opt.update(at(0), opt.init(PARAMS), known)
    for missing in "abc":
        updates, after = opt.update(at(1, missing), state, known)
        expected, _ = opt.update(at(1), state, known)
        assert updates[missing] is None
        for other in set("abc") - {missing}:
            chex.assert_trees_all_equal(updates[other], expected[other])
        chex.assert_trees_all_equal(of(after, missing), of(state, missing))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    "groups", [{"own": "b", "rest": ("a", "c")}, lambda path: "own" if path == "b" else "rest"]
)
def test_it_is_not_watched(groups, every):
    opt = adamx.chain(adamx.adam(0.1), adamx.watch(groups, every=every))
    state = opt.init(PARAMS)
    _, after = opt.update(at(0, "b"), state, PARAMS)
    assert jax.eval_shape(lambda x: x, after) == jax.eval_shape(lambda x: x, state)
    seen = adamx.metrics(after)
    both = np.concatenate([np.ravel(at(0)[name]) for name in "ac"]).astype(np.float64)
    np.testing.assert_allclose(seen["grad_rms"], np.sqrt(np.mean(both**2)), rtol=1e-5)
    assert seen["rest/grad_rms"] == seen["grad_rms"]
    for name in ("grad_rms", "update_rms", "update_ratio", "snr", "bias"):
        assert np.isnan(seen[f"own/{name}"])
    _, after = opt.update(None, state, PARAMS)
    assert np.isnan(adamx.metrics(after)["grad_rms"])


def test_a_transformation_of_optax_sees_none():
    opt = adamx.chain(optax.clip_by_global_norm(1e-3), adamx.adam(0.1))
    state = started(opt)
    updates, after = opt.update(at(1, "b"), state, PARAMS)
    assert updates["b"] is None
    chex.assert_trees_all_equal(of(after, "b"), of(state, "b"))


@pytest.mark.parametrize("make", [lambda: optax.trace(0.9), optax.scale_by_adam])
def test_a_transformation_of_optax_that_would_lose_its_statistics_is_an_error(make):
    opt = adamx.chain(make(), adamx.sgd(0.1))
    with jax.numpy_dtype_promotion("standard"):
        state = started(opt)
        with pytest.raises(StageError, match=r"no stage of adamx.*pass zeros in place of None"):
            opt.update(at(1, "b"), state, PARAMS)


@pytest.mark.parametrize("whole", [False, True])
def test_in_an_equinox_model(whole):
    """None stands for functions and numbers, and for one parameter."""
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    opt = adamx.quantize_state(adamx.adam(0.1), "int8", min_size=1)
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = opt.update(grads, opt.init(params), params)
    lacking = eqx.tree_at(lambda m: m.layers[0].weight, grads, None)
    updates, after = opt.update(lacking, state, model if whole else params)
    expected, _ = opt.update(grads, state, params)
    assert updates.layers[0].weight is None
    chex.assert_trees_all_equal(updates.layers[1], expected.layers[1])
    kept, before = (s["scale_by_rms"]["nu"].layers[0].weight for s in (after, state))
    chex.assert_trees_all_equal(kept, before)
    new = adamx.apply_updates(model, updates)
    assert new.activation is model.activation
    chex.assert_trees_all_equal(new.layers[0].weight, model.layers[0].weight)


def test_a_single_array_may_have_none():
    opt, theta = adamx.chain(adamx.adam(0.1), adamx.polyak_ema(0.5)), jnp.ones(2)
    updates, state = opt.update(None, opt.init(theta), theta)
    assert updates is None
    np.testing.assert_array_equal(adamx.polyak_params(state), [1, 1])


FROZEN = {
    "freeze": lambda: {"enc": adamx.set_to_zero(), "*": adamx.adam(0.1)},
    "sgd": lambda: {"enc": adamx.sgd(0.1), "head": adamx.adam(0.1)},
    "optax": lambda: {"enc": optax.sgd(0.1), "*": adamx.adam(0.1)},
    "stateless": lambda: {"enc": adamx.sgd(0.1), "head": adamx.sgd(0.1)},
    "tuple": lambda: {("enc", "absent*"): adamx.set_to_zero(), "*": adamx.sgd(0.1)},
    "predicate": lambda: {
        lambda path, shape: "enc" in path: adamx.set_to_zero(),
        "*": adamx.adam(0.1),
    },
}


# Every pair of whole, with_params and jit.
PAIRS = [(False, False, False), (True, True, False), (True, False, True), (False, True, True)]


@pytest.mark.parametrize(("groups", "how"), each_once(list(FROZEN), PAIRS))
def test_a_group_that_keeps_nothing_may_have_no_gradient(groups, how):
    whole, with_params, jit = how
    params = {"absent": jnp.ones(1), "enc": {"k": jnp.ones(2)}, "head": jnp.ones(3)}
    if groups != "tuple":
        params.pop("absent")
    opt = adamx.partition(FROZEN[groups]())
    state = opt.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    lacking = grads | {"enc": None if whole else {"k": None}}
    update = jax.jit(opt.update) if jit else opt.update
    known = params if with_params else None
    updates, after = update(lacking, state, known)
    assert updates["enc"] == lacking["enc"]
    np.testing.assert_allclose(updates["head"], -0.1 * np.ones(3), rtol=1e-6)
    assert jax.eval_shape(lambda x: x, after) == jax.eval_shape(lambda x: x, state)
    update(grads, after, known)


def test_a_group_that_keeps_nothing_may_have_no_gradient_beside_watched_groups():
    params = {"enc": {"k": jnp.ones(2)}, "head": jnp.ones(3)}
    for groups in ({"e": "enc", "h": "head"}, lambda path: path[0]):
        opt = adamx.chain(adamx.sgd(0.1), adamx.watch(groups))
        state = opt.init(params)
        for known in (None, params):
            _, after = opt.update({"enc": None, "head": jnp.ones(3)}, state, known)
            assert jax.eval_shape(lambda x: x, after) == jax.eval_shape(lambda x: x, state)
            seen = adamx.metrics(after)
            assert np.isnan(seen["e/grad_rms"])
            np.testing.assert_allclose(seen["h/grad_rms"], 1, rtol=1e-6)


def test_a_parameter_with_a_gradient_is_covered_still():
    opt = adamx.partition({"enc": adamx.set_to_zero(), "head": adamx.sgd(0.1)})
    state = opt.init({"enc": jnp.ones(2), "head": jnp.ones(3)})
    with pytest.raises(StageError, match="does not cover other"):
        opt.update({"enc": None, "other": jnp.ones(3)}, state)


def test_the_frozen_part_of_an_equinox_model_is_in_no_group():
    """The state is of the part that trains, and update() is given the whole model."""
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    spec = jax.tree.map(lambda _: False, model)
    spec = eqx.tree_at(lambda m: m.layers[1].weight, spec, True)
    part = eqx.filter(model, spec)
    rule = {"layers/1/weight": adamx.adam(0.1)}
    opt = adamx.chain(adamx.partition(rule), adamx.polyak_ema(0.5), adamx.watch(lambda path: path))
    grads = jax.tree.map(jnp.ones_like, part)
    state = opt.init(part)
    updates, after = opt.update(grads, state, model)
    expected, expected_after = opt.update(grads, state, part)
    chex.assert_trees_all_equal((updates, after), (expected, expected_after))


AVERAGED = {
    "chain": lambda: adamx.chain(adamx.adam(1e-2), adamx.polyak_ema(0.5)),
    "stored": lambda: adamx.quantize_state(
        adamx.chain(adamx.adam(1e-2), adamx.polyak_ema(0.5)), "int8", min_size=1
    ),
    "where": lambda: adamx.chain(adamx.sgd(1e-2), adamx.where("a", adamx.polyak_ema(0.5))),
    "partition": lambda: adamx.partition(
        {
            "a": adamx.chain(adamx.sgd(1e-2), adamx.polyak_ema(0.5)),
            "*": adamx.chain(adamx.adam(1e-2), adamx.polyak_ema(0.5)),
        }
    ),
    "clipped": lambda: adamx.chain(
        adamx.adam(1e-2), adamx.clip_by_global_norm(1.0), adamx.polyak_ema(0.5)
    ),
}


@pytest.mark.parametrize(("name", "jit"), each_once(list(AVERAGED), [True, False]))
def test_the_average_of_a_parameter_that_stays_goes_on(name, jit):
    opt, params = AVERAGED[name](), PARAMS
    state = opt.init(params)
    update = jax.jit(opt.update) if jit else opt.update
    mean, weight = np.zeros((3, 4)), 0.0
    for t, missing in enumerate(["a", "a", "ab", "", "a"]):
        updates, state = update(at(t, *missing), state, params)
        params = adamx.apply_updates(params, updates)
        mean, weight = (mean + np.asarray(params["a"], np.float64)) / 2, (weight + 1) / 2
        average = adamx.polyak_params(state)["a"]
        np.testing.assert_allclose(average, mean / weight, rtol=1e-5)
    assert jax.eval_shape(lambda x: x, state) == jax.eval_shape(opt.init, params)


def test_the_average_of_a_narrow_parameter_that_stays_is_the_parameter():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    opt = adamx.chain(adamx.adam(1e-2), adamx.stochastic_rounding(), adamx.polyak_ema(0.9))
    state = opt.init(params)
    for t in range(5):
        _, state = opt.update(at(t, "a"), state, params)
    expected = np.asarray(params["a"], np.float32)
    np.testing.assert_allclose(adamx.polyak_params(state)["a"], expected, rtol=1e-6)


def test_the_average_of_a_parameter_that_stays_needs_the_parameters():
    opt = adamx.chain(adamx.sgd(1e-2), adamx.where("a", adamx.polyak_ema(0.5)))
    state = opt.init(PARAMS)
    with pytest.raises(StageError, match=r"polyak_ema@a.*\['a'\].*params"):
        opt.update(at(0, "a"), state)


def test_lookahead_goes_back_when_the_parameter_moves_again():
    opt, theta = adamx.chain(adamx.sgd(1.0), adamx.lookahead(2, 0.5)), {"x": jnp.zeros(1)}
    state = opt.init(theta)
    for gradient in (-1.0, None, -1.0, -1.0):  # the slow step falls on the second and the fourth
        grads = {"x": None if gradient is None else jnp.array([gradient])}
        updates, state = opt.update(grads, state, theta)
        theta = adamx.apply_updates(theta, updates)
    np.testing.assert_array_equal(theta["x"], [1.5])
    np.testing.assert_array_equal(adamx.dequantize(state, "slow")["x"], [1.5])


@pytest.mark.parametrize("start", [0, 2])
def test_schedule_free_averages_the_steps_that_a_parameter_took(start):
    """With equal weights 1/t of the chain's clock; z and x stay where there is no gradient."""
    opt = adamx.chain(adamx.sgd(0.5), adamx.schedule_free(0.5, b1=0.9))
    y = {"x": jnp.zeros(1), "y": jnp.zeros(1)}
    state, z, x = opt.init(y), 0.0, 0.0
    for t in range(5):
        has_one = t >= start and t != 3
        grads = {"x": jnp.array([-1.0]) if has_one else None, "y": jnp.ones(1)}
        updates, state = opt.update(grads, state, y)
        y = adamx.apply_updates(y, updates)
        if has_one:
            z += 0.5
            x += (z - x) / (t + 1)
        found = adamx.eval_params(state, y)["x"]
        np.testing.assert_allclose(found, [x], rtol=1e-5, atol=1e-6)


def test_master_weights_stay():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    opt = adamx.chain(adamx.sgd(1e-3), adamx.master_weights())
    state = opt.init(params)
    master = np.asarray(params["a"], np.float32)
    for t in range(5):
        updates, state = opt.update(at(t, *("a" if t != 3 else "")), state, params)
        params = adamx.apply_updates(params, updates)
    master = master - np.float32(1e-3) * np.asarray(GRADS["a"][3])
    np.testing.assert_allclose(adamx.dequantize(state, "master")["a"], master, rtol=1e-6)
    np.testing.assert_array_equal(params["a"], jnp.asarray(master).astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_an_average_goes_on_inside_shard_map(jit):
    opt = adamx.chain(adamx.adam(1e-2), adamx.polyak_ema(0.5))
    mesh = jax.make_mesh((1,), ("data",))
    spec = jax.sharding.PartitionSpec()
    if hasattr(jax, "shard_map"):
        shard_map = jax.shard_map
    else:  # as JAX spells it before 0.7
        from jax.experimental.shard_map import shard_map

    def step(params, state):
        return opt.update({**at(0), "a": None}, state, params)[1]

    step = shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    state = (jax.jit(step) if jit else step)(PARAMS, opt.init(PARAMS))
    np.testing.assert_allclose(adamx.polyak_params(state)["a"], PARAMS["a"], rtol=1e-6)


@stage
def pushed():
    """It adds 1 in every step, and counts the parameters with a gradient by their elements."""

    def update(signal, slots, step):
        return signal.with_statistic(signal.update + 1), {"seen": slots["seen"] + step.total}

    return Rule(
        update,
        slots={"seen": lambda param: jnp.zeros(())},
        global_sum=lambda signal, slots, step: jnp.sum(jnp.ones_like(signal.update)),
        without_gradient=True,
    )


@stage
def shortened():
    def update(signal, slots, step):
        short = signal.update[:2]
        return dataclasses.replace(signal, gradient=short, update=short), slots

    return Rule(update, reshape=lambda shape, whole: (2, *shape[1:]))


@stage
def averaged():
    def update(signal, slots, step):
        mean = (slots["mean"] + signal.update) / 2
        return signal.with_statistic(mean), {"mean": mean}

    return Rule(update, slots={"mean": zeros}, without_gradient=True)


@pytest.mark.parametrize("between", [(), (optax.identity(),)], ids=["one block", "two blocks"])
def test_every_stage_that_runs_without_a_gradient_gets_an_update_of_zero(between):
    """The parameter takes no step, so its average is the parameter."""
    opt = adamx.chain(averaged(), pushed(), *between, adamx.polyak_ema(0.5))
    theta = {"a": jnp.full(2, 3.0), "b": jnp.ones(2)}
    _, state = opt.update({"a": None, "b": jnp.ones(2)}, opt.init(theta), theta)
    np.testing.assert_allclose(adamx.polyak_params(state)["a"], 3.0)


def test_a_sum_over_no_gradients_is_zero():
    opt, theta = pushed(), {"a": jnp.ones(2), "b": jnp.ones(3)}
    _, state = opt.update({"a": None, "b": None}, opt.init(theta), theta)
    assert state["pushed"]["seen"] == {"a": 0, "b": 0}
    _, state = opt.update({"a": None, "b": jnp.ones(3)}, state, theta)
    assert state["pushed"]["seen"] == {"a": 3, "b": 3}


def test_behind_a_stage_that_changes_the_shape():
    """m = 1/2 and then 1/4, for the two elements that are left."""
    opt = adamx.chain(averaged(), shortened(), averaged())
    theta = {"a": jnp.ones(4), "b": jnp.ones(4)}
    _, state = opt.update(theta, opt.init(theta), theta)
    _, state = opt.update({"a": None, "b": jnp.ones(4)}, state, theta)
    np.testing.assert_allclose(state["averaged"]["mean"]["a"], np.full(4, 0.25))
    np.testing.assert_allclose(state["averaged_2"]["mean"]["a"], np.full(2, 0.125))
