"""Optimisers to JSON and back: equal, and equal in what they compute."""

import functools
import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import Real, stage
from adamx.tools.config import from_config, to_config
from catalog import RECIPES, ROWS, VARIANTS, x64


def through_json(opt, known=None):
    text = json.dumps(to_config(opt, known), allow_nan=False)
    return from_config(json.loads(text), known)


def assert_comes_back(opt, known=None):
    again = through_json(opt, known)
    assert again == opt and hash(again) == hash(opt)
    assert repr(again) == repr(opt)


def rate_of(opt):
    """What is written for the rate of a chain that is nothing else."""
    return to_config(opt)["chain"][0]["learning_rate"]


def heads(shape):
    return (0, 2)


# Every optimiser, every kind of number

KINDS = {
    "float": 0.1,
    "integer": 1,
    "numpy scalar": np.float64(0.1),
    "float32": jnp.float32(0.1),
    "bfloat16": jnp.bfloat16(0.1),
    "weakly typed": jnp.asarray(0.1),
    "batch": jnp.array([0.1, 0.3], jnp.float32),
    "numpy float64": np.array(0.1),
    "schedule": optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 10),
    "tree": jax.tree_util.Partial(optax.linear_schedule(1.0, 0.0, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_comes_back_equal(kind):
    """In stages, beside structure, and in groups."""
    number = KINDS[kind]
    assert_comes_back(adamx.adamw(number))
    assert_comes_back(adamx.schedule_free_adamw(number, warmup_steps=3))
    assert_comes_back(adamx.partition({"kernel": adamx.lion(number), "*": adamx.sgd(number)}))


@pytest.mark.parametrize("name", [*RECIPES, *VARIANTS])
def test_every_optimiser_comes_back_equal(name):
    """Of single stages, `check_stage` asks it."""
    row, own = ROWS[name], {"heads": heads}
    structure = {"blocks": heads} if callable(row.structure.get("blocks")) else {}
    assert_comes_back(row.make(**structure), own)
    rate = "learning_rate" if "learning_rate" in row.numbers else next(iter(row.numbers))
    assert_comes_back(row.make(**structure, **{rate: jnp.float32(0.1)}), own)


def test_what_comes_back_takes_the_same_steps():
    opt = adamx.adamw(optax.cosine_decay_schedule(0.1, 9), b2=jnp.float32(0.99))
    again = through_json(opt)
    params = jnp.array([1.0, -2.0])
    steps = [x.update(params, x.init(params), params)[0] for x in (opt, again)]
    np.testing.assert_array_equal(*steps)
    mhat = np.array([1.0, -2.0])  # after one step m̂/√v̂ is the sign, and the rate is still 0.1
    expected = -0.1 * (np.sign(mhat) + 0.01 * mhat)
    np.testing.assert_allclose(steps[1], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_arrays_come_back_to_the_last_bit(dtype):
    bits = np.random.default_rng(0).integers(1, 2**14, 8).astype(np.uint16)  # positive, finite
    given = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "float32" else bits
    given = given if dtype == "float32" else given.view(jnp.dtype(dtype))
    factor = through_json(adamx.scale(jnp.asarray(given))).links[0].arguments["factor"]
    assert isinstance(factor, jax.Array) and factor.dtype == dtype and factor.shape == (8,)
    np.testing.assert_array_equal(np.asarray(factor), given)


def test_float64_comes_back_with_and_without_x64():
    given = np.array([0.1, 1 / 3, -0.0, 5e-324])
    cfg = json.loads(json.dumps(to_config(adamx.scale(given))))
    assert from_config(cfg) == adamx.scale(given)
    with x64():
        factor = from_config(cfg).links[0].arguments["factor"]
        assert isinstance(factor, jax.Array) and factor.dtype == np.float64
        assert factor.tobytes() == given.tobytes()


def test_what_is_infinite_is_standard_json():
    opt = adamx.chain(
        adamx.scale_by_lp_norm(p=math.inf), adamx.scale_by_lp_norm(p=jnp.array([2.0, math.inf]))
    )
    first, second = to_config(opt)["chain"]
    assert first["p"] == {"float": "inf"}
    assert second["p"] == {"array": [2.0, "inf"], "dtype": "float32"}
    assert_comes_back(opt)


@pytest.mark.parametrize("kind", ["float", "float32", "weakly typed", "bfloat16"])
def test_a_program_that_is_compiled_for_an_optimiser_serves_what_comes_back(kind):
    traces = []

    @jax.jit
    def step(opt, grad):
        traces.append(None)
        return opt.update(grad, opt.init(grad))[0]

    opt = adamx.sgd(KINDS[kind])
    before = step(opt, jnp.ones(2))
    np.testing.assert_array_equal(step(through_json(opt), jnp.ones(2)), before)
    assert len(traces) == 1


# Schedules

SCHEDULES = {
    "constant_schedule": lambda: optax.constant_schedule(0.1),
    "cosine_decay_schedule": lambda: optax.cosine_decay_schedule(1e-3, 100, alpha=0.1),
    "cosine_onecycle_schedule": lambda: optax.cosine_onecycle_schedule(100, 0.3),
    "exponential_decay": lambda: optax.exponential_decay(0.1, 3, 0.5),
    "exponential_decay, bounded": lambda: optax.exponential_decay(
        0.1, 3, 0.5, 2, staircase=True, end_value=0.01
    ),
    "exponential_decay, of no steps": lambda: optax.exponential_decay(0.1, 0, 0.5),
    "linear_schedule": lambda: optax.linear_schedule(0.1, 0.0, 9),
    "linear_schedule, of no steps": lambda: optax.linear_schedule(0.1, 0.0, 0),
    "linear_onecycle_schedule": lambda: optax.linear_onecycle_schedule(100, 0.3),
    "join_schedules, nested": lambda: optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, 5),
            optax.join_schedules((optax.constant_schedule(1), optax.constant_schedule(0.5)), [4]),
        ],
        [5],
    ),
    "piecewise_constant_schedule": lambda: optax.piecewise_constant_schedule(
        0.1, {30: 0.5, 9: 0.1}
    ),
    "piecewise_constant_schedule, one": lambda: optax.piecewise_constant_schedule(0.1),
    "piecewise_interpolate_schedule": lambda: optax.piecewise_interpolate_schedule(
        "cosine", 0.1, {9: 0.3, 20: 0.7, 40: 0.11, 50: 0.0, 60: 0.0}
    ),
    "piecewise_interpolate_schedule, one": lambda: optax.piecewise_interpolate_schedule(
        "linear", 0.1
    ),
    "polynomial_schedule": lambda: optax.polynomial_schedule(1.0, 0.0, 2, 10, -3),
    "sgdr_schedule": lambda: optax.sgdr_schedule(
        [
            {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": w, "decay_steps": 9}
            for w in (0, 3)
        ]
    ),
    "warmup_constant_schedule": lambda: optax.warmup_constant_schedule(0.0, 1.0, 3),
    "warmup_cosine_decay_schedule": lambda: optax.warmup_cosine_decay_schedule(
        0.0, 1.0, 3, 10, 0.1
    ),
    "warmup_exponential_decay_schedule": lambda: optax.warmup_exponential_decay_schedule(
        0.0, 1.0, 3, 10, 0.5
    ),
    "cosine_decay_schedule, of arrays": lambda: optax.cosine_decay_schedule(
        jnp.float32(0.1), 100, np.float32(0.5)
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_optax_come_back(name):
    with jax.numpy_dtype_promotion("standard"):
        given = SCHEDULES[name]()
        opt = adamx.sgd(given, momentum=SCHEDULES["cosine_decay_schedule"]())
        assert_comes_back(opt)
        again = through_json(opt).links[1].arguments["learning_rate"]
        for count in (0, 1, 4, 10, 35, 50, 99, 1000):
            assert given(count) == again(count)


def test_the_table_has_every_factory_of_schedules():
    factories = {name for name, x in vars(optax.schedules).items() if inspect.isfunction(x)}
    in_table = {name.partition(",")[0] for name in SCHEDULES}
    assert factories - {"inject_hyperparams", "inject_stateful_hyperparams"} == in_table


def test_a_schedule_that_has_run_comes_back():
    """Optax's cosine turns its own number of steps into a float when it is called."""
    opt = adamx.adam(optax.cosine_decay_schedule(0.1, 100))
    opt.update(jnp.ones(2), opt.init(jnp.ones(2)))
    assert_comes_back(opt)


def test_scales_between_boundaries_come_back_exactly():
    """An older Optax keeps only their cumulated product."""
    for draws in range(20):
        scales = np.random.default_rng(draws).uniform(0.01, 3, 30).tolist()
        steps = dict(zip(range(1, 31), scales, strict=True))
        assert_comes_back(adamx.sgd(optax.piecewise_interpolate_schedule("linear", 0.3, steps)))


def test_a_schedule_is_written_by_name_and_arguments():
    assert rate_of(adamx.sgd(optax.cosine_decay_schedule(1e-3, 100))) == {
        "schedule": "optax.cosine_decay_schedule",
        "init_value": 0.001,
        "decay_steps": 100,
        "alpha": 0.0,
        "exponent": 1.0,
    }


def test_the_warm_up_of_a_recipe_comes_back():
    cosine = optax.cosine_decay_schedule(0.1, 9)
    for rate in (0.1, cosine):
        for steps in (3, optax.constant_schedule(3)):
            assert_comes_back(adamx.schedule_free_adamw(rate, warmup_steps=steps))
    assert_comes_back(adamx.prodigy(b2=cosine))


# Names of one's own


def harmonic(rate):
    return lambda t: rate / (t + 1)


def halving(t):
    return 0.5**t


@stage
def power(exponent: Real, *, keep_sign: bool = True):
    """u ← sign(u) |u|^p"""
    sign = jnp.sign if keep_sign else jnp.ones_like
    return lambda s: s.with_update(sign(s.update) * jnp.abs(s.update) ** exponent)


def big(path, shape):
    return shape.size > 10


TWICE = optax.stateless(lambda updates, params: jax.tree.map(lambda u: 2 * u, updates))

KNOWN = {
    "a schedule": (lambda: adamx.sgd(halving), {"halve": halving}),
    "a lambda": (lambda: adamx.sgd(harmonic(0.5)), {"mine": harmonic(0.5)}),
    "a factory": (lambda: adamx.sgd(harmonic(0.5)), {"harmonic": harmonic}),
    "a factory inside Optax's": (
        lambda: adamx.sgd(optax.join_schedules([harmonic(0.1), halving], [3])),
        {"harmonic": harmonic, "halving": halving},
    ),
    "a partial": (lambda: adamx.sgd(functools.partial(harmonic(0.1))), {"harmonic": harmonic}),
    "a tree": (
        lambda: adamx.sgd(jax.tree_util.Partial(pow, 0.5, mod=None)),
        {"pow": pow},
    ),
    "a stage": (lambda: adamx.chain(power(0.5, keep_sign=False), adamx.sgd(1)), {"p": power}),
    "blocks": (lambda: adamx.adam_mini(0.1, blocks=len), {"blocks": len}),
    "a predicate": (lambda: adamx.where(big, adamx.sgd(0.1)), {"big": big}),
    "a transformation": (lambda: adamx.chain(adamx.scale(2), TWICE), {"twice": TWICE}),
}


@pytest.mark.parametrize("what", KNOWN)
def test_what_has_a_name_comes_back(what):
    make, known = KNOWN[what]
    assert_comes_back(make(), known)
    with pytest.raises(ValueError, match=r"known=\{\""):
        to_config(make())
    with pytest.raises(ValueError, match=next(iter(known))):
        from_config(to_config(make(), known))


def test_a_factory_of_ones_own_is_written_with_its_arguments():
    (row,) = to_config(adamx.sgd(harmonic(0.5)), {"harmonic": harmonic})["chain"]
    assert row["learning_rate"] == {"schedule": "harmonic", "rate": 0.5}


def test_names_of_ones_own_are_no_names_of_adamx():
    for name in ("optax.clip", "scale_by_rms"):
        with pytest.raises(ValueError, match=name):
            to_config(adamx.sgd(0.1), {name: halving})


# Transformations of Optax, groups, observers

FOREIGN = {
    "clip": lambda: optax.clip(1.0),
    "trace": lambda: optax.trace(0.9, nesterov=True, accumulator_dtype=jnp.bfloat16),
    "adam": lambda: optax.adam(1e-3),
    "adamw": lambda: optax.adamw(optax.linear_schedule(0.1, 0.0, 3)),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.chain(optax.ema(0.9), optax.identity())),
    "uphill": lambda: optax.scale_by_learning_rate(halving_schedule(), flip_sign=False),
    "masked": lambda: optax.masked(adamx.adam(0.1), {"a": True}),
    "partition": lambda: optax.partition({1: optax.sgd(0.1), 2: optax.clip(1.0)}, {"x": 1, "y": 2}),
    "plateau": lambda: optax.contrib.reduce_on_plateau(0.5, 3),
}


def halving_schedule():
    return optax.exponential_decay(1.0, 1, 0.5)


@pytest.mark.parametrize("name", FOREIGN)
def test_transformations_of_optax_come_back(name):
    assert_comes_back(adamx.chain(FOREIGN[name](), adamx.sgd(0.1)))


def test_a_transformation_of_optax_is_written_by_name_and_arguments():
    opt = adamx.chain(optax.clip(1.0))
    assert to_config(opt)["chain"] == [{"transformation": "optax.clip", "max_delta": 1.0}]


def test_groups_and_observers_come_back():
    opt = adamx.chain(
        adamx.partition(
            {
                "embedding": adamx.sgd(0.1),
                ("kernel", "scale"): adamx.chain(optax.clip(1.0), adamx.adam(1e-3)),
                "*": adamx.where("!bias", adamx.where(("a", "b"), adamx.sgd(0.1))),
            }
        ),
        adamx.watch({"all": "*", "some": ("a", "b")}, every=3),
    )
    assert_comes_back(opt)
    assert to_config(opt)["chain"][-2]["around"] == [
        {"partition": ["embedding", ["kernel", "scale"], "*"], "part": 2},
        {"where": "!bias"},
        {"where": ["a", "b"]},
    ]


def half(x, bits, nonnegative):
    return x.astype(jnp.float16)


def whole(encoded):
    return encoded.astype(jnp.float32)


STORED = {
    "for all slots": lambda: adamx.quantize_state(adamx.adam(1e-3), "int8"),
    "for single slots": lambda: adamx.quantize_state(
        adamx.adam(1e-3), mu=adamx.bf16(rounding="nearest"), nu=adamx.int8(32), min_size=1, seed=3
    ),
    "but one": lambda: adamx.quantize_state(adamx.adan(1e-3), "fp8", previous=None),
    "inside a selection": lambda: adamx.where(
        "kernel", adamx.quantize_state(adamx.lion(1e-4), "bf16")
    ),
    "around a partition": lambda: adamx.quantize_state(
        adamx.partition({"a": adamx.adam(1e-2), "*": adamx.quantize_state(adamx.lion(0.1), "fp8")}),
        "int8",
    ),
}


@pytest.mark.parametrize("which", STORED)
def test_storage_comes_back(which):
    assert_comes_back(STORED[which]())


def test_a_codec_of_ones_own_comes_back_by_its_name():
    mine = adamx.Codec("half", half, whole)
    opt = adamx.quantize_state(adamx.adam(1e-3), mine)
    cfg = to_config(opt, known={"half": mine})
    assert cfg["chain"][0]["around"][0]["quantize_state"] == {"name": "half"}
    assert from_config(cfg, known={"half": mine}) == opt
    with pytest.raises(ValueError, match=r"chain\[0\].around\[0\]: .*known=.*half"):
        to_config(opt)


BAD_STORAGE = {
    "an unknown codec": ({"quantize_state": "int9"}, "no codec 'int9'.*'bf16', 'fp8', 'int8'"),
    "no codec": ({"quantize_state": 3}, "no codec 3"),
    "a bad block size": ({"quantize_state": {"codec": "int8", "block_size": 0}}, "block_size.* 0"),
    "an unknown argument": ({"quantize_state": {"codec": "int8", "size": 1}}, "'size'"),
    "a bad smallest size": ({"quantize_state": None, "min_size": 0}, "min_size.* 0"),
    "slots that are none": (
        {"quantize_state": None, "slots": []},
        r"slots: must be an object, got \[\]",
    ),
    "another key": ({"quantize_state": "int8", "slot": {}}, "no key 'slot'; did you mean 'slots'"),
}


@pytest.mark.parametrize("which", BAD_STORAGE)
def test_bad_storage_says_where_it_is(which):
    row, message = BAD_STORAGE[which]
    link = {"stage": "scale_by_momentum", "around": [row]}
    with pytest.raises(ValueError, match=rf"chain\[0\].around\[0\].*{message}"):
        from_config({"format": "adamx/1", "chain": [link]})


# What can't be written


def test_a_function_without_a_name_is_refused_with_its_place():
    cases = {
        adamx.adam(harmonic(1.0)): r"chain\[3\] scale_by_learning_rate.learning_rate: .*harmonic",
        adamx.adam_mini(0.1, blocks=big): r"chain\[1\] scale_by_block_rms.blocks: .*big",
        adamx.sgd(optax.join_schedules([halving_schedule(), halving], [3])): (
            r"chain\[0\] scale_by_learning_rate.learning_rate.schedules\[1\]: .*function halving"
        ),
        adamx.chain(power(1.0)): r"chain\[0\]: .*power",
        adamx.where(big, adamx.sgd(0.1)): r"chain\[0\].around\[0\]: .*big",
    }
    for opt, message in cases.items():
        with pytest.raises(ValueError, match=message):
            to_config(opt)


def test_a_name_is_no_licence_for_another_function():
    """The factory's name is right, what it makes is not: the same name, defined anew."""

    def make():
        def harmonic(rate):
            return lambda t: rate / (t + 2)

        harmonic.__qualname__ = "harmonic"
        schedule = harmonic(0.5)
        schedule.__qualname__ = "harmonic.<locals>.<lambda>"
        return schedule

    with pytest.raises(ValueError, match="can't contain"):
        to_config(adamx.sgd(make()), {"harmonic": harmonic})


@pytest.mark.parametrize("make", [adamx.sgd, lambda x: adamx.sgd(optax.constant_schedule(x))])
def test_a_traced_number_is_refused(make):
    with pytest.raises(
        ValueError, match=r"scale_by_learning_rate.learning_rate.* is a traced float32\[\]"
    ):
        jax.jit(lambda rate: to_config(make(rate)))(0.1)


def test_only_optimisers_of_adamx_are_written():
    with pytest.raises(TypeError, match=r"adamx.chain\(transformation\)"):
        to_config(optax.sgd(0.1))


# Reading what a human wrote


def read(*links, **known):
    return from_config({"format": "adamx/1", "chain": list(links)}, known)


def test_missing_arguments_take_the_defaults():
    by_hand = read(
        {"stage": "scale_by_momentum"},
        {"stage": "scale_by_rms", "eps": 0, "b2": 0.99},
        {"stage": "bias_correction"},
        {
            "stage": "scale_by_learning_rate",
            "learning_rate": {
                "schedule": "optax.linear_schedule",
                "init_value": 0.1,
                "end_value": 0.0,
                "transition_steps": 5,
            },
        },
    )
    assert by_hand == adamx.adam(optax.linear_schedule(0.1, 0.0, 5), b2=0.99, eps=0.0)


ARRAY = r"chain\[0\] scale.factor: "
WRONG = {
    "a link that is none": (3, r"chain\[0\]: a link must be an object, got 3"),
    "a link of no kind": ({"stag": "scale"}, r"chain\[0\]: expected .* stage"),
    "an unknown stage": (
        {"stage": "scale_by_rsm"},
        r"chain\[0\]: there is no stage .* did you mean",
    ),
    "an unhashable stage": ({"stage": []}, r"chain\[0\]: there is no stage \[\]"),
    "an unknown argument": (
        {"stage": "scale", "facto": 1.0},
        r"chain\[0\] scale: missing 'factor'",
    ),
    "an argument too many": (
        {"stage": "scale_by_momentum", "beta": 0.9},
        r"chain\[0\] scale_by_momentum: there is no key 'beta'; there are b1",
    ),
    "a number outside its domain": (
        {"stage": "scale_by_momentum", "b1": 1.5},
        r"chain\[0\] scale_by_momentum: b1 must be a decay rate in \[0, 1\), got 1.5",
    ),
    "a string as number": (
        {"stage": "scale_by_momentum", "b1": "0.9"},
        r"chain\[0\] scale_by_momentum: b1 must be a number.*'0.9'",
    ),
    "a number as switch": (
        {"stage": "scale_by_rms", "compensated": 1},
        r"chain\[0\] scale_by_rms.compensated: must be bool, got 1",
    ),
    "a list as tuple": ({"stage": "adaptive_clip", "axis": [0]}, r"axis: must be .*\"tuple\""),
    "an unknown schedule": (
        {"stage": "scale", "factor": {"schedule": "optax.cosine_decay"}},
        ARRAY + r"'optax.cosine_decay' .* did you mean 'optax.cosine_decay_schedule'",
    ),
    "a schedule without its arguments": (
        {"stage": "scale", "factor": {"schedule": "optax.constant_schedule"}},
        ARRAY + "missing 'value'",
    ),
    "a schedule that Optax refuses": (
        {
            "stage": "scale",
            "factor": {
                "schedule": "optax.cosine_decay_schedule",
                "init_value": 1.0,
                "decay_steps": 0,
            },
        },
        ARRAY + "optax.cosine_decay_schedule raised an error: .*positive decay_steps",
    ),
    "a transformation as schedule": (
        {"stage": "scale", "factor": {"schedule": "optax.clip", "max_delta": 1.0}},
        ARRAY + "optax.clip must return a schedule",
    ),
    "a schedule as link": (
        {"transformation": "optax.constant_schedule", "value": 1.0},
        r"chain\[0\]: optax.constant_schedule must return a transformation",
    ),
    "an object of no kind": ({"stage": "scale", "factor": {"x": 1}}, ARRAY + "expected"),
    "a ragged array": (
        {"stage": "scale", "factor": {"array": [1.0, [2.0]], "dtype": "float32"}},
        ARRAY,
    ),
    "an unknown dtype": (
        {"stage": "scale", "factor": {"array": [1.0], "dtype": "float33"}},
        ARRAY + ".*float33",
    ),
    "a number that its dtype can't contain": (
        {"stage": "scale", "factor": {"array": [1e39], "dtype": "float32"}},
        ARRAY + "overflow",
    ),
    "a fraction as integer": (
        {"stage": "scale", "factor": {"array": [1.5], "dtype": "int32"}},
        ARRAY + r"\[1.5\] is not an array of int32",
    ),
    "a selection that is none": (
        {"stage": "sign", "around": [{"where": 3}]},
        r"chain\[0\].around\[0\]: .*3",
    ),
    "surroundings that are no list": (
        {"stage": "sign", "around": "x"},
        r"chain\[0\].around: .*'x'",
    ),
    "surroundings of no kind": (
        {"stage": "sign", "around": [{"when": "x"}]},
        r"chain\[0\].around\[0\]: expected an object with one of .*where",
    ),
    "a part that there is not": (
        {"stage": "sign", "around": [{"partition": ["x", "*"], "part": -1}]},
        r"chain\[0\].around\[0\]: there is no part -1 of 2",
    ),
    "an observer that refuses": ({"observer": "watch", "every": 0}, r"chain\[0\] watch: every"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_error_names_the_place(what):
    link, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        read(link)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "adamx.links.stage._definition",
        "adamx.recipes.registry._all",
        "adamx.recipes.schedule_free.chain",
        "adamx.tools.config.from_config",
        "optax._src.base.identity",
        "optax.jax.jit",
        "optax.schedules._schedule.constant_schedule",
        "builtins.eval",
    ],
)
def test_a_config_names_only_public_functions_of_adamx_and_optax(name):
    for form in ("schedule", "name"):
        with pytest.raises(ValueError, match="is neither a public function"):
            read({"stage": "scale", "factor": {form: name}})


def test_another_format_is_refused():
    with pytest.raises(ValueError, match=r"reads 'adamx/1', the config has 'adamx/2'"):
        from_config({"format": "adamx/2", "chain": []})
    with pytest.raises(ValueError, match=r"no key 'chian'|missing 'chain'"):
        from_config({"format": "adamx/1", "chian": []})
    with pytest.raises(TypeError, match="a config is a dict"):
        from_config([])
