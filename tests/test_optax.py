"""adamx inside Optax's wrappers, and Optax's transformations inside an adamx chain."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from catalog import slow_but
from helpers import each_once

pytestmark = pytest.mark.sampled

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.2, -0.3])}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax mixes dtypes: β**count with an integer count, for one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(params):
    return sum(jnp.sum(jnp.cosh(x)) for x in jax.tree.leaves(params))


def train(opt, params=PARAMS, steps=5, jit=True, **extra):
    """The parameters and the state after some steps; `extra` maps names to (params -> value)."""

    def step(params, state):
        given = {name: value(params) for name, value in extra.items()}
        grads = jax.grad(loss)(params)
        updates, state = opt.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    state = opt.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def trained(opt, *args, **kwargs):
    return train(opt, *args, **kwargs)[0]


def assert_same(one, other, tol=1e-6):
    """Equal but for the rounding in which two compilations of one formula may differ."""
    chex.assert_trees_all_close(one, other, rtol=tol, atol=tol)


# optax.adam's first steps are exact to about 1e-5.
assert_alike = functools.partial(assert_same, tol=1e-5)


def counting(function):
    """The function, and a list that grows by one whenever it is traced."""
    traces = []

    def traced(*args):
        traces.append(None)
        return function(*args)

    return traced, traces


# adamx inside Optax ----------------------------------------------------------------------------

RECIPES = {
    "sgd": lambda: adamx.sgd(0.1),
    "adam": lambda: adamx.adam(0.1),
    "rmsprop, decayed": lambda: adamx.chain(
        adamx.add_decayed_weights(1e-3), adamx.rmsprop(0.05, momentum=0.9)
    ),
    "clipped adamax, averaged": lambda: adamx.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.adamax(optax.linear_schedule(0.1, 0.01, 4)),
        adamx.polyak_ema(0.9),
    ),
}

# Each of these, as it is set here, changes nothing.
WRAPPERS = {
    "chain": lambda opt: optax.chain(optax.identity(), opt),
    "named_chain": lambda opt: optax.named_chain(("first", optax.identity()), ("opt", opt)),
    "masked": lambda opt: optax.masked(opt, {"w": True, "b": True}),
    "partition": lambda opt: optax.partition({"all": opt}, {"w": "all", "b": "all"}),
    "MultiSteps": lambda opt: optax.MultiSteps(opt, 1).gradient_transformation(),
    "apply_if_finite": lambda opt: optax.apply_if_finite(opt, 3),
    "conditionally_transform": lambda opt: optax.transforms.conditionally_transform(
        opt, lambda step, **_: True
    ),
    "flatten": lambda opt: optax.flatten(opt),
    "split_real_and_imaginary": lambda opt: optax.contrib.split_real_and_imaginary(opt),
    "chain in adamx.chain": lambda opt: adamx.chain(optax.chain(opt)),
}


@functools.cache
def plain(recipe):
    return trained(RECIPES[recipe](), jit=False)


@pytest.mark.parametrize(
    ("wrapper", "recipe"), each_once(list(WRAPPERS), sorted(RECIPES.keys() - {"sgd"}))
)
def test_wrapper_keeps_the_numbers_and_the_state(wrapper, recipe):
    opt = WRAPPERS[wrapper](RECIPES[recipe]())
    params, state = train(opt)
    assert_same(params, plain(recipe))
    chex.assert_trees_all_equal_shapes_and_dtypes(opt.init(PARAMS), state)


def test_chain_with_clipping_in_front_and_a_schedule_behind():
    def chained(adam):
        schedule = optax.linear_schedule(1.0, 0.1, 4)
        return optax.chain(optax.clip_by_global_norm(0.5), adam, optax.scale_by_schedule(schedule))

    assert_alike(trained(chained(adamx.adam(0.1))), trained(chained(optax.adam(0.1))))


@pytest.mark.parametrize("as_function", [False, True])
def test_masked_steps_only_where_the_mask_says(as_function):
    def mask(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    masked = optax.masked(adamx.adam(0.1), mask if as_function else mask(PARAMS))
    opt = optax.chain(masked, optax.masked(optax.set_to_zero(), {"w": False, "b": True}))
    params, state = train(opt)
    assert_same(params, {"w": plain("adam")["w"], "b": PARAMS["b"]})
    assert [x.shape for x in jax.tree.leaves(optax.tree.get(state, "nu"))] == [(2, 2)]


def test_partition_gives_every_group_its_optimiser():
    labels = {"w": "matrix", "b": "vector"}
    opt = optax.partition({"matrix": adamx.adam(0.1), "vector": adamx.sgd(0.1)}, labels)
    assert_same(trained(opt), {"w": plain("adam")["w"], "b": plain("sgd")["b"]})


def test_multi_steps_takes_the_mean_gradient():
    opt = optax.MultiSteps(adamx.adam(0.1), 2).gradient_transformation()
    first = jax.tree.map(lambda x: x / 2, PARAMS)
    second = jax.tree.map(lambda x: x - x * x, PARAMS)
    state = opt.init(PARAMS)
    kept, state = opt.update(first, state, PARAMS)
    assert_same(kept, jax.tree.map(jnp.zeros_like, PARAMS))
    updates, state = opt.update(second, state, PARAMS)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
    assert_same(updates, adamx.adam(0.1).update(mean, adamx.adam(0.1).init(PARAMS))[0])
    assert optax.tree.get(state, "inner_opt_state")["count"] == 1


@pytest.mark.parametrize("jit", [False, True])
def test_apply_if_finite_skips_a_step_and_keeps_the_averages(jit):
    opt = optax.apply_if_finite(adamx.adam(0.1), 3)
    update = jax.jit(opt.update) if jit else opt.update
    _, state = update(PARAMS, opt.init(PARAMS))
    bad = {**PARAMS, "b": jnp.array([jnp.nan, 1.0])}
    updates, after = update(bad, state)
    assert_same(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_same(after.inner_state, state.inner_state)
    assert after.total_notfinite == 1


def test_lookahead_pulls_the_fast_parameters_back():
    opt = optax.lookahead(adamx.adam(0.1), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state = opt.init(params)
    for _ in range(2):
        updates, state = opt.update(jax.grad(loss)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    fast = trained(adamx.adam(0.1), steps=2)
    assert_same(params.slow, jax.tree.map(lambda x, y: (x + y) / 2, PARAMS, fast))
    assert_same(params.fast, params.slow)


def test_schedule_free_takes_an_adamx_base():
    rms = functools.partial(optax.contrib.schedule_free, learning_rate=0.1, b1=0.9)
    ours = adamx.chain(adamx.adam(0.1, b1=0.0))
    params, state = train(rms(ours))
    expected, theirs = train(rms(optax.adam(0.1, b1=0.0)))
    assert_alike(params, expected)
    evaluate = optax.contrib.schedule_free_eval_params
    assert_alike(evaluate(state, params), evaluate(theirs, expected))


# inject_hyperparams ----------------------------------------------------------------------------


def test_learning_rate_injected_into_the_state_changes_without_a_new_trace():
    opt = optax.inject_hyperparams(adamx.adam)(0.1)
    update, traces = counting(opt.update)
    update = jax.jit(update)
    _, state = update(PARAMS, opt.init(PARAMS), PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.01)
    updates, _ = update(PARAMS, state, PARAMS)
    assert_same(updates, jax.tree.map(lambda x: -0.01 * jnp.sign(x), PARAMS))
    assert len(traces) == 1


def test_injected_schedule_is_the_schedule():
    schedule = optax.cosine_decay_schedule(0.1, 10)
    params, state = train(optax.inject_hyperparams(adamx.adam)(schedule))
    assert_same(params, trained(adamx.adam(schedule)))
    assert_same(state.hyperparams["learning_rate"], schedule(4))


def test_every_recipe_can_be_injected():
    for make, arguments in [
        (adamx.sgd, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
        (adamx.rmsprop, {"learning_rate": 0.1, "momentum": 0.9, "centered": True}),
        (adamx.adagrad, {"learning_rate": 0.1}),
        (adamx.adadelta, {}),
        (adamx.adamax, {"learning_rate": 0.1}),
    ]:
        injected = optax.inject_hyperparams(make)(**arguments)
        assert_alike(trained(injected, steps=3), trained(make(**arguments), steps=3))


def test_inject_hyperparams_on_bfloat16():
    """It casts hyperparameters to the parameters' dtype, where β₂ = 0.999 is 1."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match=r"b2 must be a decay rate in \[0, 1\), got 1"):
        optax.inject_hyperparams(adamx.adam)(0.1).init(params)
    opt = optax.inject_hyperparams(adamx.adam)(0.1)
    updates, _ = jax.jit(opt.update)(params, jax.jit(opt.init)(params), params)
    assert not any(np.isfinite(x).any() for x in jax.tree.leaves(updates))  # nor silent under jit
    wide = optax.inject_hyperparams(adamx.adam, hyperparam_dtype=jnp.float32)(0.1)
    assert_same(trained(wide, params, 3), trained(adamx.adam(0.1), params, 3))
    static = optax.inject_hyperparams(adamx.adam, static_args=("b1", "b2", "eps"))(0.125)
    assert_same(trained(static, params, 3), trained(adamx.adam(0.125), params, 3))


# Optax's tools for states ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", [0.1, optax.linear_schedule(0.1, 0.0, 9)], ids=["float", "schedule"]
)
def test_tree_get_finds_one_count_and_the_moments(rate):
    _, state = train(optax.chain(optax.clip(1.0), adamx.adam(rate, b1=lambda t: 0.9)), steps=2)
    assert optax.tree.get(state, "count") == 2
    for name in ("mu", "nu"):
        chex.assert_trees_all_equal_shapes_and_dtypes(optax.tree.get(state, name), PARAMS)
    zeroed = optax.tree.set(state, nu=jax.tree.map(jnp.zeros_like, PARAMS))
    assert_same(optax.tree.get(zeroed, "nu"), jax.tree.map(jnp.zeros_like, PARAMS))


def test_tree_map_params_tells_slots_from_clocks():
    opt = adamx.chain(optax.trace(0.9), adamx.adam(0.1), adamx.polyak_ema(0.9))
    state = opt.init(PARAMS)
    told = optax.tree_map_params(
        opt, lambda _: "slot", state, transform_non_params=lambda _: "scalar"
    )
    slots = jax.tree.map(lambda _: "slot", PARAMS)
    assert told == {
        "count": "scalar",
        "trace": optax.TraceState(slots),
        "scale_by_momentum": {"mu": slots, "log_decay": "scalar"},
        "scale_by_rms": {"nu": slots, "log_decay": "scalar"},
        "polyak_ema": {"ema": slots, "log_decay": "scalar"},
    }
    described = optax.tree_map_params(opt, lambda x, p: x.shape == p.shape, state, PARAMS)
    assert described["scale_by_rms"]["nu"] == {"w": True, "b": True}


def test_transformation_takes_extra_arguments_as_it_is():
    opt = adamx.adam(0.1)
    assert isinstance(opt, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(opt) is opt
    assert_same(trained(opt, value=loss, unheard_of=loss), plain("adam"))
    init, update = opt  # it is a pair, too
    assert_same(update(PARAMS, init(PARAMS))[0], opt.update(PARAMS, opt.init(PARAMS))[0])


# Extra arguments reach Optax's stages ----------------------------------------------------------

PLATEAU = {"factor": 0.5, "patience": 1, "rtol": 0.9}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("front", [False, True])
def test_reduce_on_plateau_gets_the_value(front, jit):
    plateau = optax.contrib.reduce_on_plateau(**PLATEAU)

    def row(chain, adam):
        return chain(plateau, adam) if front else chain(adam, plateau)

    params, state = train(row(adamx.chain, adamx.adam(0.1)), jit=jit, value=loss)
    assert state["reduce_on_plateau"].scale < 1
    assert_alike(params, trained(row(optax.chain, optax.adam(0.1)), value=loss))


LINESEARCHES = {
    "backtracking": lambda: optax.scale_by_backtracking_linesearch(8, store_grad=True),
    "zoom": lambda: optax.scale_by_zoom_linesearch(8),
}


@pytest.mark.slow
@pytest.mark.parametrize(("search", "jit"), [("backtracking", False), ("zoom", True)])
def test_linesearch_behind_adam_gets_value_gradient_and_function(search, jit):
    extra = {"value": loss, "grad": jax.grad(loss), "value_fn": lambda _: loss}
    ours = adamx.chain(adamx.adam(1.0), LINESEARCHES[search]())
    theirs = optax.chain(optax.adam(1.0), LINESEARCHES[search]())
    params = trained(ours, steps=3, jit=jit, **extra)
    assert loss(params) < loss(plain("adam"))
    assert_same(params, trained(theirs, steps=3, **extra), tol=1e-3)


def test_extra_arguments_pass_through_two_chains():
    plateau = optax.contrib.reduce_on_plateau(**PLATEAU)
    nested = adamx.chain(optax.chain(adamx.chain(adamx.adam(0.1), plateau)), adamx.scale(1.0))
    flat = adamx.chain(adamx.adam(0.1), plateau)
    assert_same(trained(nested, value=loss), trained(flat, value=loss))


# Optax's transformations as stages -------------------------------------------------------------


def test_stage_in_front_of_a_statistic_rewrites_the_gradient():
    def clip(params):
        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda g: g * jnp.minimum(1, 0.5 / optax.tree.norm(grads)), grads)

    opt, by_hand = adamx.adam(0.1), PARAMS
    state = opt.init(PARAMS)
    for _ in range(5):
        updates, state = opt.update(clip(by_hand), state, by_hand)
        by_hand = optax.apply_updates(by_hand, updates)
    for clipping in (optax.clip_by_global_norm(0.5), adamx.clip_by_global_norm(0.5)):
        assert_same(trained(adamx.chain(clipping, opt)), by_hand)


def test_stage_behind_a_statistic_shapes_the_step_alone():
    """Decay in front of the rate is AdamW; in front of the averages it is L2, another thing."""
    direction = [adamx.scale_by_momentum(), adamx.scale_by_rms(), adamx.bias_correction()]
    rate = adamx.scale_by_learning_rate(0.1)
    decay = optax.add_decayed_weights(0.3)
    adamw = trained(adamx.chain(*direction, decay, rate))
    assert_alike(adamw, trained(optax.adamw(0.1, weight_decay=0.3)))
    assert_same(adamw, trained(adamx.chain(*direction, adamx.add_decayed_weights(0.3), rate)))
    l2 = trained(adamx.chain(decay, *direction, rate))
    assert_alike(l2, trained(optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.1))))
    assert abs(l2["w"] - adamw["w"]).max() > 1e-2


def test_stage_between_statistics_leaves_the_gradient_to_the_second():
    """The sign is taken of the momentum; the root mean square is still that of the gradient."""
    sign = optax.scale_by_sign()
    opt = adamx.chain(adamx.scale_by_momentum(0.5), sign, adamx.scale_by_rms(0.5, eps=0.0))
    updates, _ = opt.update(jnp.array([2.0, -8.0]), opt.init(jnp.zeros(2)))
    assert_same(updates, jnp.array([1 / 2, -1 / 8]) / jnp.sqrt(0.5))


def test_whole_optax_optimiser_can_be_a_stage():
    opt = adamx.chain(optax.adam(0.1), adamx.polyak_ema(0.9))
    params, state = train(opt)
    assert_same(params, trained(optax.adam(0.1)))
    average = adamx.polyak_params(state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, p: a.shape == p.shape, average, PARAMS)))


def named_stages():
    decay = optax.linear_schedule(0.1, 0.0, 9)
    return [
        optax.clip_by_global_norm(1.0),
        adamx.clip_by_global_norm(1.0),
        adamx.adam(0.1),
        optax.trace(0.9),
        optax.masked(optax.adam(decay), {"w": True, "b": False}),
        optax.inject_hyperparams(optax.adam)(0.1),
        optax.scale_by_schedule(decay),
        optax.contrib.reduce_on_plateau(),
    ]


def test_state_is_named_after_the_stages():
    assert list(adamx.chain(*named_stages()).init(PARAMS)) == [
        "count",
        "clip_by_global_norm",
        "scale_by_momentum",
        "scale_by_rms",
        "trace",
        "masked",
        "inject_hyperparams",
        "scale_by_schedule",
        "reduce_on_plateau",
    ]


EQUAL = {
    "many": named_stages,
    "exponential_decay": lambda: [adamx.adam(optax.exponential_decay(0.1, 10, 0.9))],
    "warmup": lambda: [adamx.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 50))],
    "lambda": lambda: [adamx.adam(lambda t: 0.1 / (t + 1))],
    "partial": lambda: [adamx.adam(functools.partial(lambda scale, t: scale / (t + 1), 0.1))],
    "array": lambda: [optax.scale(jnp.array(2.0)), adamx.adam(jnp.array(0.1))],
    "linesearch": lambda: [adamx.adam(1.0), LINESEARCHES["zoom"]()],
    "adamx in optax": lambda: [optax.chain(adamx.adam(0.1), optax.identity())],
    "adamx masked": lambda: [optax.masked(adamx.adam(0.1), {"w": True, "b": False})],
    "adamx scheduled in optax": lambda: [
        optax.chain(adamx.adam(optax.cosine_decay_schedule(0.1, 9)))
    ],
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_closures_hash_equal(name):
    one, other = (adamx.chain(*EQUAL[name]()) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


UNEQUAL = {
    "argument": (optax.clip_by_global_norm(1.0), optax.clip_by_global_norm(2.0)),
    "schedule": tuple(optax.adam(optax.linear_schedule(0.1, 0.0, n)) for n in (9, 10)),
    "kind": (optax.scale(0.5), optax.trace(0.5)),
    "array": (optax.scale(jnp.array(1.0)), optax.scale(jnp.array(2.0))),
    "adamx in optax": (optax.chain(adamx.adam(0.1)), optax.chain(adamx.adam(0.2))),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_different_stages_are_unequal(name):
    one, other = (adamx.chain(stage, adamx.adam(0.1)) for stage in UNEQUAL[name])
    assert one != other


def test_anything_with_init_and_update_is_a_stage():
    """An optax.MultiSteps is no GradientTransformation, but speaks the protocol."""
    steps = optax.MultiSteps(optax.adam(0.1), 2)
    opt = adamx.chain(steps, adamx.scale(0.5))
    expected = optax.chain(steps.gradient_transformation(), optax.scale(0.5))
    assert_same(trained(opt), trained(expected))


# Optax's transformations for some of the parameters ---------------------------------------------

MATRICES = {"a": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.1, 0.2]]), "c": jnp.full((2, 3), 0.3)}
VECTORS = {"b": jnp.array([0.2, -0.3])}


def axes(tree):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree)


# Optax 0.2.5 orthogonalises every matrix of a tree, and has nothing to be told.
TOLD = "weight_dimension_numbers" in inspect.signature(optax.contrib.scale_by_muon).parameters


def as_transformation(steps):
    return steps.gradient_transformation() if isinstance(steps, optax.MultiSteps) else steps


RESTRICTED = {
    "adam": lambda: optax.adam(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "scale_by_muon": lambda: optax.contrib.scale_by_muon(
        **{"weight_dimension_numbers": axes} if TOLD else {}
    ),
    "galore": lambda: optax.contrib.galore(0.1, rank=1),
    "masked": lambda: optax.masked(
        optax.adam(0.1), lambda tree: jax.tree.map(lambda _: True, tree)
    ),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "lamb": lambda: optax.lamb(0.1),
    "adamw with a mask": lambda: optax.adamw(
        0.1, weight_decay=0.3, mask=lambda tree: jax.tree.map(lambda x: x.shape[0] > 2, tree)
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, 0),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.5),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "partition": lambda: optax.partition(
        {"high": optax.adam(0.1), "wide": optax.sgd(0.1)},
        lambda tree: jax.tree.map(lambda x: "high" if x.shape[0] > 2 else "wide", tree),
    ),
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
}


@pytest.mark.parametrize("name", slow_but(list(RESTRICTED)[::6], RESTRICTED))
def test_a_transformation_in_a_group_does_what_optax_masked_does(name):
    if name == "galore" and not hasattr(optax.contrib, "galore"):
        pytest.skip("this Optax has no galore")
    params = {**MATRICES, **VECTORS}
    mask = {"a": True, "b": False, "c": True}
    theirs = optax.chain(
        optax.masked(as_transformation(RESTRICTED[name]()), mask),
        optax.masked(optax.sgd(0.1), {k: not own for k, own in mask.items()}),
    )
    matrix = lambda path, x: x.ndim == 2  # noqa: E731
    ours = adamx.partition({matrix: RESTRICTED[name](), "*": adamx.sgd(0.1)})
    expected = trained(theirs, params, steps=3)
    params, state = train(ours, params, steps=3)
    assert_same(params, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(params), state)


@pytest.mark.skipif(not TOLD, reason="this Optax needs no axes")
def test_muon_without_axes_is_told_to_have_some():
    opt = adamx.partition({"w": optax.contrib.scale_by_muon(), "*": adamx.sgd(0.1)})
    state = opt.init(PARAMS)
    with pytest.raises(ValueError, match="pytree") as error:
        opt.update(PARAMS, state, PARAMS)
    assert not isinstance(error.value, adamx.StageError)
    notes = "".join(error.value.__notes__)
    for part in (
        "'scale_by_muon@w'",
        "optax.contrib.scale_by_muon(",
        "applies to w,",
        "MaskedNode",
    ):
        assert part in notes
    assert "weight_dimension_numbers=lambda tree: jax.tree.map(" in notes


def test_an_exception_of_optax_stays_what_it_is_and_names_the_stage():
    class Mine(RuntimeError):
        def __init__(self, one, two):
            super().__init__(one)

    def fails(*_):
        raise Mine("mine", 2)

    for broken in (
        optax.GradientTransformation(fails, optax.identity().update),
        optax.GradientTransformation(optax.identity().init, fails),
    ):
        opt = adamx.chain(adamx.adam(0.1), broken)
        with pytest.raises(Mine) as error:
            opt.update(PARAMS, opt.init(PARAMS))
        assert "in stage " in error.value.__notes__[0]


def test_a_tree_of_another_form_names_the_transformation_that_returned_it():
    opt = adamx.chain(adamx.adam(0.1), optax.stateless(lambda updates, _: updates["w"]))
    with pytest.raises(ValueError, match="dict") as error:
        opt.update(PARAMS, opt.init(PARAMS))
    assert "in stage 'stateless', optax.stateless(" in error.value.__notes__[0]


ADAM = "optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)"
SHOWN = {
    "adam": (lambda: optax.adam(1e-3), f"optax.chain({ADAM}, optax.scale(step_size=-0.001))"),
    "scheduled": (
        lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 9)),
        "optax.chain(optax.identity(), optax.scale_by_schedule(step_size_fn=",
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.scale_by_adam(), 2),
        f"optax.MultiSteps(opt={ADAM}, every_k_schedule=2",
    ),
    "masked": (
        lambda: optax.masked(optax.scale_by_adam(), {"w": True, "b": False}),
        f"optax.masked(inner={ADAM}, mask={{'w': True, 'b': False}})",
    ),
    "inject": (
        lambda: optax.inject_hyperparams(optax.sgd)(0.5),
        "optax.inject_hyperparams(inner_factory=<optax.sgd>, numeric_hps={'learning_rate': 0.5",
    ),
    "partition": (
        lambda: optax.partition({"x": optax.scale(2.0)}, {"w": "x", "b": "x"}),
        "optax.partition(transforms={'x': optax.scale(step_size=2.0)}, param_labels={'w': 'x', ",
    ),
    "named_chain": (
        lambda: optax.named_chain(("first", optax.scale(2.0))),
        "['first', optax.scale(step_size=2.0)]",
    ),
    "lookahead": (
        lambda: optax.lookahead(optax.scale_by_adam(), 2, 0.5),
        f"optax.lookahead(fast_optimizer={ADAM}, sync_period=2, slow_step_size=0.5)",
    ),
    "contrib": (
        lambda: optax.contrib.schedule_free(optax.scale_by_adam(), 0.1),
        f"optax.contrib.schedule_free(base_optimizer={ADAM}, learning_rate=0.1",
    ),
    "adamx": (
        lambda: optax.chain(adamx.sgd(0.1, momentum=0.9), optax.scale(2.0)),
        "optax.chain(chain(scale_by_heavy_ball(momentum=0.9), scale_by_learning_rate("
        "learning_rate=0.1)), optax.scale(step_size=2.0))",
    ),
    "an array": (lambda: optax.scale(jnp.full(3, 0.7)), "optax.scale(step_size=<float32[3]>)"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_transformation_of_optax_is_printed_with_what_made_it_and_its_parts(name):
    make, expected = SHOWN[name]
    printed = repr(adamx.chain(make()))
    assert printed.startswith(expected) or (name == "named_chain" and expected in printed)
    assert printed == repr(adamx.chain(make()))  # no addresses
    inside = repr(adamx.partition({"w": make(), "*": adamx.sgd(0.1)}))
    assert printed in inside


def test_a_transformation_of_ones_own_is_printed_without_optax():
    def halving(factor):
        def update(updates, state, params=None):
            return jax.tree.map(lambda u: factor * u, updates), state

        return optax.GradientTransformation(optax.identity().init, update)

    assert "halving(factor=0.5)" in repr(adamx.chain(halving(0.5))).replace(
        "test_a_transformation_of_ones_own_is_printed_without_optax", "halving"
    )
