"""Looking on: what is reported is what happens, and nothing else changes."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import adamx
from adamx.core import StageError
from catalog import OPTIMISERS, REPRESENTATIVES, run, slow_but

pytestmark = pytest.mark.sampled

PARAMS = {
    "dense": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.2, -0.3])},
    "scale": jnp.full(3, 2.0),
}
RANDOM = np.random.default_rng(0)
GRADS = jax.tree.map(lambda x: jnp.asarray(RANDOM.normal(size=(5, *x.shape)), jnp.float32), PARAMS)


def at(t):
    return jax.tree.map(lambda g: g[t], GRADS)


def after(opt, steps=3, params=PARAMS):
    """The last updates and state, and the parameters before that step."""
    state, before, updates = opt.init(params), params, None
    for t in range(steps):
        before = params
        updates, state = opt.update(at(t), state, params)
        params = adamx.apply_updates(params, updates)
    return updates, state, before


def rms(tree):
    every = np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
    return np.sqrt(np.mean(every**2))


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


def test_the_readings_are_those_of_the_last_step():
    opt = adamx.chain(adamx.adam(0.1), adamx.watch(groups={"kernels": "kernel"}))
    updates, state, params = after(opt)
    seen = adamx.metrics(state)
    kernel = jax.tree.map(lambda x: x["dense"]["kernel"], (at(2), updates, params), is_leaf=is_tree)
    for front, (g, u, theta) in {"": (at(2), updates, params), "kernels/": kernel}.items():
        np.testing.assert_allclose(seen[f"{front}grad_norm"], norm(g), rtol=1e-5)
        np.testing.assert_allclose(seen[f"{front}grad_rms"], rms(g), rtol=1e-5)
        np.testing.assert_allclose(seen[f"{front}update_rms"], rms(u), rtol=1e-5)
        np.testing.assert_allclose(seen[f"{front}update_ratio"], rms(u) / rms(theta), rtol=1e-5)
        np.testing.assert_allclose(seen[f"{front}snr"], rms(u) / 0.1, rtol=1e-5)
        assert seen[f"{front}nonfinite"] == 0
    np.testing.assert_allclose(seen["bias"], (1 - 0.9**3) / np.sqrt(1 - 0.999**3), rtol=1e-6)
    np.testing.assert_allclose(seen["learning_rate"], 0.1, rtol=1e-6)
    assert all(isinstance(value, (int, float)) for value in seen.values())


def is_tree(x):
    return isinstance(x, dict) and "dense" in x


def test_the_signal_to_noise_ratio_is_that_of_the_correction_not_of_the_step():
    opt = adamx.chain(adamx.adamw(0.1, weight_decay=0.5), adamx.watch())
    alone = adamx.chain(
        adamx.scale_by_momentum(), adamx.scale_by_rms(), adamx.bias_correction(), adamx.watch()
    )
    _, state, _ = after(opt)
    _, other, _ = after(alone)
    np.testing.assert_allclose(
        adamx.metrics(state)["snr"], adamx.metrics(other)["update_rms"], rtol=1e-6
    )


def test_scheduled_numbers_are_shown_as_they_were_in_the_step():
    opt = adamx.chain(
        adamx.adam(optax.linear_schedule(0.1, 0.0, 10), b1=lambda t: 0.5 + 0.1 * t), adamx.watch()
    )
    _, state, _ = after(opt, steps=3)
    seen = adamx.metrics(state)
    np.testing.assert_allclose([seen["learning_rate"], seen["b1"]], [0.08, 0.7], rtol=1e-6)
    assert "b2" not in seen
    now = adamx.hyperparams(opt, state)  # of the next step
    np.testing.assert_allclose([now["learning_rate"], now["b1"]], [0.07, 0.8], rtol=1e-6)


def test_what_is_not_finite_is_counted():
    opt = adamx.chain(adamx.sgd(0.1), adamx.watch(groups=lambda path: path.split("/")[0]))
    bad = at(0) | {"scale": jnp.array([jnp.nan, 1.0, -jnp.inf])}
    _, state = opt.update(bad, opt.init(PARAMS), PARAMS)
    seen = adamx.metrics(state)
    assert (seen["nonfinite"], seen["scale/nonfinite"], seen["dense/nonfinite"]) == (2, 2, 0)
    assert np.isnan(seen["grad_rms"]) and np.isfinite(seen["dense/grad_rms"])


@pytest.mark.parametrize("name", slow_but(["adam", "clipped"], REPRESENTATIVES))
def test_watching_changes_nothing(name):
    opt = OPTIMISERS[name](0.05)
    watched = adamx.chain(opt, adamx.watch(groups={"kernels": "kernel"}))
    chex.assert_trees_all_close(
        run(watched, GRADS, PARAMS), run(opt, GRADS, PARAMS), rtol=2e-6, atol=1e-8
    )
    before = jax.eval_shape(watched.init, PARAMS)
    assert jax.eval_shape(watched.update, at(0), before, PARAMS)[1] == before
    assert set(before) - {"watch"} == set(jax.eval_shape(opt.init, PARAMS))


def test_where_it_stands_is_what_it_sees():
    front = adamx.chain(
        adamx.watch(), adamx.clip_by_global_norm(0.1), adamx.sgd(1.0), adamx.watch()
    )
    _, state, _ = after(front, steps=1)
    seen = adamx.metrics(state)
    np.testing.assert_allclose(seen["watch/grad_rms"], rms(at(0)), rtol=1e-5)
    np.testing.assert_allclose(seen["watch_2/update_rms"] * np.sqrt(9), 0.1, rtol=1e-5)


@pytest.mark.parametrize("clip", [adamx.clip_by_global_norm(0.1), optax.clip_by_global_norm(0.1)])
def test_the_norm_is_that_of_the_gradients_before_clipping(clip):
    opt = adamx.chain(clip, adamx.adam(0.1), adamx.watch())
    _, state, _ = after(opt, steps=1)
    seen = adamx.metrics(state)
    np.testing.assert_allclose(seen["grad_norm"], norm(at(0)), rtol=1e-5)
    np.testing.assert_allclose(seen["grad_rms"] * np.sqrt(9), 0.1, rtol=1e-5)
    assert np.isnan(adamx.metrics(opt.init(PARAMS))["grad_norm"])


def test_the_norm_behind_a_clip_costs_no_pass_of_its_own():
    def reductions(opt):
        step = jax.jit(opt.update).lower(at(0), opt.init(PARAMS), PARAMS).compile()
        return step.as_text().count(" reduce(")

    clipped = adamx.chain(adamx.clip_by_global_norm(0.1), adamx.adam(0.1))
    more = reductions(adamx.chain(clipped, adamx.watch())) - reductions(clipped)
    unclipped = reductions(adamx.chain(adamx.adam(0.1), adamx.watch()))
    assert more < unclipped - reductions(adamx.adam(0.1))


def test_a_norm_whose_square_overflows_is_read():
    grads = {"a": jnp.full(4, 1e30)}
    opt = adamx.chain(adamx.clip_by_global_norm(1.0), adamx.sgd(1.0), adamx.watch())
    _, state = opt.update(grads, opt.init(grads), jax.tree.map(jnp.ones_like, grads))
    np.testing.assert_allclose(adamx.metrics(state)["grad_norm"], 2e30, rtol=1e-6)


def test_groups_that_agree_on_the_learning_rate_have_one():
    rate = optax.linear_schedule(0.1, 0.0, 10)
    opt = adamx.chain(
        adamx.partition({"kernel": adamx.sgd(rate), "*": adamx.adam(rate)}), adamx.watch()
    )
    _, state, _ = after(opt, steps=2)
    seen = adamx.metrics(state)
    assert seen["learning_rate"] == seen["learning_rate@kernel"] == seen["learning_rate@rest"]
    np.testing.assert_allclose(seen["learning_rate"], 0.09, rtol=1e-6)
    inside = jax.jit(adamx.metrics)(state)
    assert float(inside["learning_rate"]) == seen["learning_rate"]
    assert inside.keys() == seen.keys()


def test_groups_that_differ_have_learning_rates_of_their_own():
    """The name stays, so that the columns of a log do not depend on the values."""
    rate = optax.linear_schedule(0.1, 0.0, 10)
    opt = adamx.chain(
        adamx.partition({"kernel": adamx.sgd(0.1), "*": adamx.adam(rate)}), adamx.watch()
    )
    _, state, _ = after(opt, steps=1)
    assert adamx.metrics(state)["learning_rate"] == np.float32(0.1)
    _, state, _ = after(opt, steps=2)
    for seen in (adamx.metrics(state), jax.jit(adamx.metrics)(state)):
        assert np.isnan(seen["learning_rate"])
        found = [seen["learning_rate@kernel"], seen["learning_rate@rest"]]
        np.testing.assert_allclose(found, [0.1, 0.09], rtol=1e-6)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    assert np.isnan(adamx.metrics(both)["learning_rate"]).tolist() == [True, True]


def test_a_state_without_the_norm_keeps_its_form():
    """One that an older version saved."""
    opt = adamx.chain(adamx.adam(0.1), adamx.watch())
    state = opt.init(PARAMS)
    del state["watch"]["all"]["grad_norm"]
    _, after = opt.update(at(0), state, PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert "grad_norm" not in adamx.metrics(after)


def test_it_can_be_restricted_to_a_group():
    opt = adamx.chain(adamx.sgd(1.0), adamx.where("kernel", adamx.watch()))
    _, state, _ = after(opt, steps=1)
    np.testing.assert_allclose(
        adamx.metrics(state)["grad_rms"], rms(at(0)["dense"]["kernel"]), rtol=1e-5
    )


def test_every_tenth_step_is_looked_at():
    opt = adamx.chain(adamx.sgd(1.0), adamx.watch(every=2))
    for steps, seen_at in ((1, 0), (2, 0), (3, 2), (4, 2), (5, 4)):
        _, state, _ = after(opt, steps)
        np.testing.assert_allclose(adamx.metrics(state)["grad_rms"], rms(at(seen_at)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_it_can_rest_in_a_step(every):
    """What was seen before is kept, numbers are current, and nothing is computed for it."""
    rate = optax.linear_schedule(0.1, 0.0, 10)
    opt = adamx.chain(adamx.adam(rate), adamx.watch(every=every))
    step = jax.jit(opt.update, static_argnames="observe")
    _, state = step(at(0), opt.init(PARAMS), PARAMS)
    updates, after = step(at(1), state, PARAMS, observe=False)
    expected, looked = step(at(1), state, PARAMS, observe=True)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    kept = adamx.metrics(state) | {"learning_rate": adamx.metrics(looked)["learning_rate"]}
    assert adamx.metrics(after) == kept
    plain = adamx.adam(rate)
    cost = [
        jax.jit(functools.partial(o.update, **extra)).lower(at(1), o.init(PARAMS), PARAMS)
        for o, extra in ((plain, {}), (opt, {"observe": False}), (opt, {}))
    ]
    flops = [lowered.compile().cost_analysis()["flops"] for lowered in cost]
    assert flops[1] <= flops[0] + 20 < flops[2]  # the schedule is read


def test_resting_must_be_known_when_compiling():
    opt = adamx.chain(adamx.sgd(0.1), adamx.watch())
    with pytest.raises(StageError, match="observe must be True or False"):
        jax.jit(opt.update)(at(0), opt.init(PARAMS), PARAMS, observe=True)


def test_before_the_first_step_nothing_was_seen():
    seen = adamx.metrics(adamx.chain(adamx.adam(0.1), adamx.watch()).init(PARAMS))
    assert np.isnan(seen["grad_rms"]) and np.isnan(seen["learning_rate"]) and seen["nonfinite"] == 0


def test_without_parameters_only_the_ratio_is_missing():
    opt = adamx.chain(adamx.adam(0.1), adamx.watch())
    _, state = opt.update(at(0), opt.init(PARAMS))
    seen = adamx.metrics(state)
    assert np.isnan(seen["update_ratio"]) and np.isfinite(seen["update_rms"])


def test_what_a_chain_has_not_is_not_reported():
    _, state, _ = after(adamx.chain(adamx.sgd(0.1), adamx.watch()))
    assert set(adamx.metrics(state)) == {
        "grad_norm",
        "grad_rms",
        "update_rms",
        "update_ratio",
        "nonfinite",
        "learning_rate",
    }


def test_optax_transformations_may_stand_in_the_chain():
    """Also such as need more than init can give: the line search wants the loss."""
    opt = adamx.chain(adamx.sgd(1.0), optax.scale_by_backtracking_linesearch(5), adamx.watch())

    def loss(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    state = opt.init(PARAMS)
    grads = jax.grad(loss)(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        _, state = opt.update(grads, state, PARAMS, value=loss(PARAMS), grad=grads, value_fn=loss)
    np.testing.assert_allclose(adamx.metrics(state)["grad_rms"], rms(grads), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_it_reads_in_the_precision_of_statistics(dtype):
    params = {"w": jnp.asarray([1.0, 2.0], dtype)}
    opt = adamx.chain(adamx.adam(0.1), adamx.watch())
    _, state = opt.update(params, opt.init(params), params)
    np.testing.assert_allclose(adamx.metrics(state)["grad_rms"], np.sqrt(2.5), rtol=1e-6)


def test_it_is_found_in_a_train_state_and_works_under_jit_and_vmap():
    model = nn.Dense(1)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))

    @jax.jit
    def train(rate):
        tx = adamx.chain(adamx.adam(rate), adamx.watch())
        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
        return state, adamx.metrics(state)

    state, inside = train(0.1)
    chex.assert_trees_all_close(adamx.metrics(state), jax.tree.map(float, inside))
    rates = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(jax.vmap(train)(rates)[1]["learning_rate"], rates)
    np.testing.assert_allclose(adamx.metrics(jax.vmap(train)(rates)[0])["learning_rate"], rates)


def test_an_equal_watch_does_not_compile_again():
    compiled = []

    def step(opt, grads, state):
        compiled.append(1)
        return opt.update(grads, state)

    jitted = jax.jit(step, static_argnums=0)
    for _ in range(3):
        opt = adamx.chain(adamx.sgd(0.1), adamx.watch(groups=lambda path: path[:1]))
        jitted(opt, at(0), opt.init(PARAMS))
    assert compiled == [1]


def test_a_state_without_its_entry_is_an_error():
    opt = adamx.chain(adamx.sgd(0.1), adamx.watch())
    with pytest.raises(StageError, match="stage 'watch': its entry in the state is"):
        opt.update(at(0), adamx.sgd(0.1).init(PARAMS))


def test_bad_arguments_are_errors():
    with pytest.raises(ValueError, match="every must be a whole number"):
        adamx.watch(every=0)
    with pytest.raises(TypeError, match="groups must be a dict"):
        adamx.watch(groups=["kernel"])
    with pytest.raises(TypeError, match="a selector is a pattern"):
        adamx.watch(groups={"kernels": 3})
    with pytest.raises(ValueError, match="the state holds no stage 'watch'"):
        adamx.metrics(adamx.adam(0.1).init(PARAMS))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float8_e4m3fn])
def test_the_size_of_narrow_parameters_is_read_in_float32(dtype):
    """Their squares leave the format: 400² is no float16, and 30² no float8."""
    large = 400.0 if dtype == jnp.float16 else 28.0
    params, grads = jnp.full(3, large, dtype), jnp.full(3, 2.0)
    opt = adamx.chain(adamx.sgd(0.5), adamx.watch())
    _, state = opt.update(grads, opt.init(params), params)
    np.testing.assert_allclose(adamx.metrics(state)["update_ratio"], 1.0 / large, rtol=1e-3)


def test_a_shared_hyperparameter_is_seen_once_from_the_start():
    """schedule_free has the rate of the chain; a step keeps the form of what is seen."""
    opt = adamx.chain(adamx.schedule_free_adamw(0.1), adamx.watch())
    params = {"w": np.float32([1.0, 2.0])}
    state = opt.init(params)
    _, after = opt.update(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert adamx.metrics(after)["learning_rate"] == np.float32(0.1)
