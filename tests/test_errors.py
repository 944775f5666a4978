"""What adamx says to bad input, and that it does not hide numbers that are not finite."""

import dataclasses
import decimal
import fractions
import inspect
import math
import re
from typing import Any

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import adamx
from adamx import StageError
from adamx.arguments import spellings
from adamx.arguments.signature import Signature
from adamx.links.link import Around
from helpers import each_once, says

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
W, B = PARAMS["w"], PARAMS["b"]
ADAM = adamx.adam(0.1)


pytestmark = pytest.mark.usefixtures("lenient")


# Hyperparameters -------------------------------------------------------------------------------

DECAYS = {
    "adam b1": (lambda x: adamx.adam(0.1, b1=x), "adam: b1"),
    "adam b2": (lambda x: adamx.adam(0.1, b2=x), "adam: b2"),
    "adamax b1": (lambda x: adamx.adamax(0.1, b1=x), "adamax: b1"),
    "adamax b2": (lambda x: adamx.adamax(0.1, b2=x), "adamax: b2"),
    "adadelta rho": (lambda x: adamx.adadelta(rho=x), "adadelta: rho"),
    "rmsprop decay": (lambda x: adamx.rmsprop(0.1, x), "rmsprop: decay"),
    "stddev": (lambda x: adamx.scale_by_stddev(x), "scale_by_stddev: b2"),
    "rmsprop momentum": (lambda x: adamx.rmsprop(0.1, momentum=x), "rmsprop: momentum"),
    "sgd momentum": (lambda x: adamx.sgd(0.1, momentum=x), "sgd: momentum"),
    "lp norm": (lambda x: adamx.scale_by_lp_norm(b2=x), "scale_by_lp_norm: b2"),
    "polyak": (lambda x: adamx.polyak_ema(x), "polyak_ema: decay"),
}

NOT_NEGATIVE = {
    "sgd": (lambda x: adamx.sgd(x), "sgd: learning_rate"),
    "rate": (
        lambda x: adamx.scale_by_learning_rate(x),
        "scale_by_learning_rate: learning_rate",
    ),
    "adam eps": (lambda x: adamx.adam(0.1, eps=x), "adam: eps "),
    "adam eps_root": (lambda x: adamx.adam(0.1, eps_root=x), "adam: eps_root"),
    "adam eps_hat": (lambda x: adamx.adam(0.1, eps_hat=x), "adam: eps_hat"),
    "adamax eps": (lambda x: adamx.adamax(0.1, eps=x), "adamax: eps"),
    "adagrad eps": (lambda x: adamx.adagrad(0.1, eps=x), "adagrad: eps"),
    "adagrad start": (
        lambda x: adamx.adagrad(0.1, initial_accumulator_value=x),
        "adagrad: initial_accumulator_value",
    ),
    "adadelta eps": (lambda x: adamx.adadelta(eps=x), "adadelta: eps"),
    "rmsprop eps": (lambda x: adamx.rmsprop(0.1, eps=x), "rmsprop: eps"),
    "weight decay": (lambda x: adamx.add_decayed_weights(x), "add_decayed_weights: weight_decay"),
}

OTHERS = {
    "factor": (lambda x: adamx.scale(x), "scale: factor"),
    "norm": (lambda x: adamx.clip_by_global_norm(x), "clip_by_global_norm: max_norm"),
    "p": (lambda x: adamx.scale_by_lp_norm(x), "scale_by_lp_norm: p"),
}


NO_DECAYS = [
    (1.0, "1.0"),
    (1, "1"),
    (-0.1, "-0.1"),
    (math.nan, "nan"),
    (math.inf, "inf"),
    (np.float32(1.0), "1.0"),
    (np.array([0.9, 1.5]), "[0.9 1.5]"),
    (jnp.array(1.0), "1.0"),
    (jnp.array([0.9, -1.0]), "[ 0.9 -1. ]"),
    (jnp.bfloat16(0.999), "1"),
    (jnp.array(2), "2"),
]


@pytest.mark.parametrize(("name", "given"), each_once(list(DECAYS), NO_DECAYS))
def test_decay_out_of_its_domain(name, given):
    (make, where), (bad, shown) = DECAYS[name], given
    with pytest.raises(ValueError, match=says(where, "a decay rate in [0, 1)", f"got {shown}")):
        make(bad)


NEGATIVE = [
    (-1e-3, "-0.001"),
    (math.nan, "nan"),
    (math.inf, "inf"),
    (np.float32(-1.0), "-1.0"),
    (jnp.array([1.0, -1.0]), "[ 1. -1.]"),
    (jnp.array(-1), "-1"),
]


@pytest.mark.parametrize(("name", "given"), each_once(list(NOT_NEGATIVE), NEGATIVE))
def test_negative_or_not_finite(name, given):
    (make, where), (bad, shown) = NOT_NEGATIVE[name], given
    with pytest.raises(ValueError, match=says(where, "finite and ≥ 0", f"got {shown}")):
        make(bad)


@pytest.mark.parametrize(
    ("name", "bad", "domain"),
    [
        ("factor", math.inf, "a finite number"),
        ("factor", math.nan, "a finite number"),
        ("norm", 0.0, "> 0"),
        ("norm", -1.0, "> 0"),
        ("norm", math.nan, "> 0"),
        ("p", 0, "> 0"),
        ("p", -2.0, "> 0"),
    ],
)
def test_other_domains(name, bad, domain):
    make, where = OTHERS[name]
    with pytest.raises(ValueError, match=says(where, domain, f"got {bad}")):
        make(bad)


NO_NUMBERS = [True, np.True_, jnp.array(True), "0.1", 0.1j, jnp.array(0.1j), [0.1], (), float]


@pytest.mark.parametrize(
    ("name", "bad"), each_once([*DECAYS, *NOT_NEGATIVE, *OTHERS], NO_NUMBERS), ids=repr
)
def test_no_number_at_all(name, bad):
    make, where = (DECAYS | NOT_NEGATIVE | OTHERS)[name]
    kinds = "a number, a real array or a schedule (count -> value)"
    with pytest.raises(
        TypeError, match=says(where, kinds, f"{bad!r} of type {type(bad).__name__}")
    ):
        make(bad)


@pytest.mark.parametrize("name", ["adam b1", "adadelta rho", "polyak"])
def test_none_is_no_number(name):
    make, where = DECAYS[name]
    with pytest.raises(TypeError, match=says(where, "got None of type NoneType")):
        make(None)


@pytest.mark.parametrize("make", [adamx.adam, adamx.adamax])
def test_a_traced_decay_of_one_does_not_look_like_training(make):
    """Its value is not known when it is checked; an average that never sees anything is 0/0."""

    @jax.jit
    def step(number):
        numbers = {"adam": {"b2": number}, "adamax": {"b1": number}}
        opt = make(0.1, **numbers[make.__name__])
        return opt.update(W, opt.init(W), W)[0]

    assert np.isfinite(step(0.5)).all()
    assert np.isnan(step(1.0)).all()


@pytest.mark.parametrize("recipe", ["sgd", "rmsprop"])
def test_nesterov_without_momentum(recipe):
    with pytest.raises(ValueError, match=says(f"{recipe}: nesterov=True", "pass momentum=0.9")):
        getattr(adamx, recipe)(0.1, nesterov=True)


@pytest.mark.parametrize("bad", ["no", 1e-4], ids=repr)
def test_switch_that_is_neither_on_nor_off(bad):
    """ "no" is true to Python, and the third argument of torch.optim.SGD is a number."""
    with pytest.raises(TypeError, match=says("sgd: nesterov must be True or False", repr(bad))):
        adamx.sgd(0.1, 0.9, bad)
    with pytest.raises(TypeError, match=says("scale_by_rms", "compensated", repr(bad))):
        adamx.scale_by_rms(compensated=bad)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: adamx.scale_by_rms(b1=0.9), ("scale_by_rms", "'b1'")),
        (lambda: adamx.scale_by_learning_rate(), ("scale_by_learning_rate() needs learning_rate",)),
        (lambda: adamx.scale(1.0, 2.0), ("scale() takes factor by position, got 2 arguments",)),
    ],
)
def test_arguments_that_a_stage_does_not_have(call, parts):
    with pytest.raises(TypeError, match=says(*parts)):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: adamx.adam(lr=0.1),
            "adam(): there is no argument 'lr'; adamx calls it learning_rate",
        ),
        (
            lambda: adamx.adam(0.1, betas=(0.9, 0.99)),
            "there is no argument 'betas'; adamx calls them b1=0.9, b2=0.99",
        ),
        (lambda: adamx.adan(0.1, betas=(0.9, 0.99)), "adamx calls them b1=…, b2=…, b3=…"),
        (lambda: adamx.lion(0.1, beta_1=0.9), "no argument 'beta_1'; adamx calls it b1"),
        (lambda: adamx.adam(0.1, epsilon=1e-7), "no argument 'epsilon'; adamx calls it eps"),
        (lambda: adamx.rmsprop(0.1, alpha=0.99), "no argument 'alpha'; adamx calls it decay"),
        (lambda: adamx.rmsprop(0.1, rho=0.9), "no argument 'rho'; adamx calls it decay"),
        (lambda: adamx.nadam(0.1, momentum=0.9), "no argument 'momentum'; adamx calls it b1"),
        (lambda: adamx.adamw(0.1, mask=None), 'where("…", add_decayed_weights(…))'),
        (lambda: adamx.adam(0.1, amsgrad=True), "it is a recipe of its own: amsgrad(…)"),
        (lambda: adamx.adam(0.1, nesterov=True), "nadam(…)"),
        (lambda: adamx.adam(0.1, weight_decay=0.1), "add_decayed_weights(λ)"),
        (lambda: adamx.adamw(0.1, weight_decouple=False), "chain(add_decayed_weights(λ), …)"),
        (lambda: adamx.adam(0.1, mu_dtype="bfloat16"), "quantize_state"),
        (
            lambda: adamx.scale_by_rms(epsilon=1e-7),
            "scale_by_rms(): there is no argument 'epsilon'",
        ),
        (lambda: adamx.adam(0.1, epss=1e-7), "no argument 'epss'; did you mean eps"),
        (lambda: adamx.sgd(0.1, xyz=1), "it takes learning_rate, momentum, nesterov"),
        (lambda: adamx.sgd(0.1, learning_rate=1.0), "learning_rate is given twice"),
        (lambda: adamx.adam(), "adam() needs learning_rate"),
        (lambda: adamx.adam(0.1, 0.9, 0.9, 0.0, 0.0, 0.0), "by name it also takes eps_hat"),
    ],
)
def test_arguments_of_other_libraries_are_answered_with_those_of_adamx(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


def test_every_answer_names_what_there_is():
    """The table of spellings, held against the signatures and names that it refers to."""
    taken = {
        name
        for made in vars(adamx).values()
        if inspect.isfunction(made)
        for name in inspect.signature(made).parameters
    }
    for ours in spellings._NAMES.values():
        assert set(ours) <= taken
    for words in spellings._WORDS.values():
        called = set(re.findall(r"(?<![\w.])(\w+)\(", words))
        assert called <= {*adamx.__all__}, called - {*adamx.__all__}


def test_a_recipe_names_itself_and_its_own_argument():
    """What stands in a stage under another name: ε is ``eps_hat`` of a stage behind it."""
    with pytest.raises(ValueError, match=r"^radam: eps must be finite and ≥ 0, got -1\.0$"):
        adamx.radam(0.1, eps=-1.0)
    with pytest.raises(ValueError, match=r"^adabelief: eps must be finite and ≥ 0, got -1\.0$"):
        adamx.adabelief(0.1, eps=-1.0)
    with pytest.raises(ValueError, match=r"^novograd: b1 must be a decay rate in \[0, 1\)"):
        adamx.novograd(0.1, b1=1.0)
    with pytest.raises(ValueError, match=r"^adafactor: b2_cap must be a number in \[0, 1\]"):
        adamx.adafactor(b2_cap=1.5)
    with pytest.raises(TypeError, match=r"^adopt: clip must be True or False, got 1 of type int$"):
        adamx.adopt(0.1, clip=1)


def test_every_number_of_a_recipe_has_a_domain():
    """All of its arguments are hyperparameters or switches, but for those named here."""
    others = {"adafactor": {"min_dim_size_to_factor"}, "adam_mini": {"blocks"}}
    others |= {"adamc": {"normalized"}}
    of_matrices = {"axes", "coefficients", "matrices", "rest", "scaling", "vector_scale", "per"}
    of_matrices |= {"every", "max_size", "rank", "seed"}
    for name in adamx.recipes.__all__:
        signature = Signature(getattr(adamx, name).__wrapped__)
        known = {*signature.domains, *signature.switches}
        left = signature.signature.parameters.keys() - known - of_matrices
        assert left == others.get(name, set())


# Schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("value", "error", "parts"),
    [
        (1.5, ValueError, ("a decay rate in [0, 1)", "1.5")),
        (-1, ValueError, ("a decay rate in [0, 1)", "-1")),
        (math.nan, ValueError, ("a decay rate in [0, 1)", "nan")),
        ("0.9", TypeError, ("'0.9' of type str",)),
        (None, TypeError, ("None of type NoneType",)),
        (True, TypeError, ("True of type bool",)),
        ((0.9,), TypeError, ("(0.9,) of type tuple",)),
    ],
    ids=repr,
)
def test_schedule_that_returns_what_it_must_not(value, error, parts, jit):
    opt, state = adamx.adam(0.1, b1=lambda t: value), ADAM.init(PARAMS)
    with pytest.raises(error, match=says("scale_by_momentum", "schedule", "b1", *parts)):
        (jax.jit(opt.update) if jit else opt.update)(PARAMS, state, PARAMS)
    with pytest.raises(error, match=says("scale_by_momentum", "schedule", "b1", *parts)):
        opt.init(PARAMS)


TABLE = [0.1] * 20

BRANCHING = {
    "if": lambda t: 1e-3 if t < 10 else 1e-4,
    "and": lambda t: 0.1 * (t > 2 and t < 5),
    "min": lambda t: 0.1 * min(t, 3),
    "math": lambda t: math.cos(t),
    "numpy function": lambda t: np.cos(t),
    "numpy where": lambda t: np.where(t < 10, 0.1, 0.2),
    "list": lambda t: TABLE[t],
    "numpy table": lambda t: np.array(TABLE)[t],
    "int": lambda t: 0.1 * int(t),
    "float": lambda t: 0.1 / float(t + 1),
    "item": lambda t: 0.1 * t.item(),
    "range": lambda t: 0.1 * len(range(t)),
    "mask": lambda t: jnp.ones(3)[jnp.arange(3) > t][0],
}


@pytest.mark.parametrize(("how", "jit"), each_once(list(BRANCHING), [False, True]))
def test_schedule_that_branches_on_the_count(how, jit):
    opt, state = adamx.sgd(BRANCHING[how]), {"count": jnp.zeros((), jnp.int32)}
    said = says(
        "scale_by_learning_rate: the schedule of learning_rate branches on the count, which is "
        "traced; use jnp.where or optax.piecewise_constant_schedule"
    )
    with pytest.raises(TypeError, match=said) as caught:
        (jax.jit(opt.update) if jit else opt.update)(PARAMS, state, PARAMS)
    assert type(caught.value) is TypeError
    assert type(caught.value.__cause__).__module__.startswith("jax")


@pytest.mark.parametrize("how", ["if", "numpy table", "mask"])
def test_schedule_that_branches_on_the_count_in_init(how):
    """Outside jit the count is known there; under it the error is that of the step."""
    opt = adamx.sgd(BRANCHING[how])
    assert int(opt.init(PARAMS)["count"]) == 0
    with pytest.raises(TypeError, match=says("learning_rate branches on the count")):
        jax.jit(opt.init)(PARAMS)


def test_schedule_that_branches_on_another_traced_number():
    @jax.jit
    def step(rate):
        opt = adamx.sgd(lambda t: 0.1 if rate > 0 else 0.2)
        return adamx.hyperparams(opt, 0)["learning_rate"]

    with pytest.raises(TypeError, match=says("learning_rate branches on a number that is traced")):
        step(0.1)


@pytest.mark.parametrize(
    ("schedule", "cause", "part"),
    [
        (lambda t: 1 / 0, ZeroDivisionError, "ZeroDivisionError: division by zero"),
        (lambda t: {}["rate"], KeyError, "KeyError: 'rate'"),
        (lambda t: [][0], IndexError, "IndexError: list index out of range"),
        (lambda t: t.rate, AttributeError, "AttributeError: "),
        (lambda t: unknown_name, NameError, "NameError: name 'unknown_name'"),  # noqa: F821
        (lambda t: int("x"), ValueError, "invalid literal"),
        (optax.cosine_decay_schedule, TypeError, "decay_steps"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_schedule_that_goes_wrong_says_where_and_keeps_the_cause(schedule, cause, part, jit):
    opt, state = adamx.sgd(schedule), {"count": jnp.zeros((), jnp.int32)}
    for call in (opt.init, lambda p: opt.update(p, state, p)):
        with pytest.raises((TypeError, ValueError)) as caught:
            (jax.jit(call) if jit else call)(PARAMS)
        assert says("scale_by_learning_rate", "schedule of learning_rate failed", part).match(
            str(caught.value)
        )
        assert isinstance(caught.value.__cause__, cause)


# Numbers of other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (np.asarray(1e-3, jnp.bfloat16)[()], 0.00099945068359375),  # the nearest bfloat16
        (jnp.bfloat16(1e-3), 0.00099945068359375),
        (np.asarray(0.5, jnp.float8_e4m3fn)[()], 0.5),
        (np.asarray(1, jnp.int4)[()], 1.0),
        (np.float16(0.5), 0.5),
        (fractions.Fraction(1, 4), 0.25),
        (decimal.Decimal("0.25"), 0.25),
        (2**70, 2.0**70),
    ],
    ids=repr,
)
def test_numbers_of_every_kind_are_a_rate(given, number):
    opt = adamx.sgd(given)
    assert float(adamx.hyperparams(opt)["learning_rate"]) == number
    np.testing.assert_allclose(opt.update(W, opt.init(W), W)[0], -number * W, rtol=1e-6)
    scheduled = adamx.sgd(lambda t: given)
    np.testing.assert_allclose(scheduled.update(W, scheduled.init(W), W)[0], -number * W, rtol=1e-6)


def test_a_whole_number_that_no_float_holds():
    with pytest.raises(ValueError, match=says("sgd: learning_rate", "float")):
        adamx.sgd(10**400)
    with pytest.raises(ValueError, match=says("schedule of learning_rate", "no float holds")):
        adamx.sgd(lambda t: 10**400).init(PARAMS)


@pytest.mark.parametrize("bad", [2**70, 2**31, -1, math.nan, np.int64(2**40)], ids=repr)
def test_a_count_that_no_state_has(bad):
    opt = adamx.sgd(lambda t: 0.1 / (1 + jnp.asarray(t)))
    with pytest.raises(ValueError, match=says("count of past updates", "2147483647", repr(bad))):
        adamx.hyperparams(opt, bad)


@pytest.mark.parametrize("bad", [True, np.True_, "3", 1j], ids=repr)
def test_what_is_no_count(bad):
    with pytest.raises(TypeError, match=says("count of past updates", repr(bad))):
        adamx.hyperparams(adamx.sgd(0.1), bad)


def test_watching_less_often_than_steps_can_be_counted():
    with pytest.raises(ValueError, match=says("every must be at most 2147483647")):
        adamx.watch(every=2**70)


def test_schedule_that_takes_no_count():
    with pytest.raises(
        TypeError, match=says("scale_by_learning_rate", "learning_rate", "argument")
    ):
        adamx.sgd(lambda: 0.1).update(PARAMS, {"count": jnp.zeros((), jnp.int32)})


# An array of numbers where one is meant --------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (3,), (2, 3)])
def test_batch_of_numbers_without_vmap(shape):
    """It must not broadcast against the parameters."""
    opt = adamx.adam(jnp.full(shape, 0.1))
    named = says("scale_by_learning_rate", "learning_rate", str(shape), "vmap")
    with pytest.raises(ValueError, match=named):
        opt.update({"w": W}, ADAM.init({"w": W}), {"w": W})
    opt = adamx.adam(0.1, b1=lambda t: jnp.full(shape, 0.9))
    with pytest.raises(ValueError, match=says("scale_by_momentum", "b1", str(shape))):
        opt.update({"w": W}, ADAM.init({"w": W}), {"w": W})


# Parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"w": jnp.arange(3)}, ("['w']", "int32", "floating-point", "optax.masked")),
        ({"w": 3}, ("['w']", "int", "floating-point")),
        ({"w": True}, ("['w']", "bool", "floating-point")),
        ({"deep": [jnp.ones(1), (jnp.arange(2),)]}, ("['deep'][1][0]", "int32")),
        ({"w": jax.random.key(0)}, ("['w']", "key<", "floating-point")),
        ({"w": np.array(["a"])}, ("['w']", "<U1", "floating-point")),
        ({"w": "name"}, ("['w']", "'name'", "not an array", "equinox.filter")),
        ({"w": jax.nn.relu}, ("['w']", "custom_jvp", "not an array", "equinox.filter")),
        ([eqx.nn.Lambda(jnp.tanh)], ("[0].fn", "not an array", "equinox.filter")),
    ],
)
def test_parameters_that_cannot_take_a_step(params, parts):
    with pytest.raises(StageError, match=says("parameter ", *parts)):
        ADAM.init(params)


NEEDS_PARAMETERS = {
    "add_decayed_weights": lambda: adamx.chain(adamx.add_decayed_weights(0.1), ADAM),
    "polyak_ema": lambda: adamx.chain(ADAM, adamx.polyak_ema(0.9)),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", NEEDS_PARAMETERS)
def test_missing_parameters(name, jit):
    opt = NEEDS_PARAMETERS[name]()
    update = jax.jit(opt.update) if jit else opt.update
    with pytest.raises(StageError, match=says(f"'{name}'", "update(grads, state, params)")):
        update(PARAMS, opt.init(PARAMS))


def test_missing_parameters_for_a_stage_of_optax():
    opt = adamx.chain(ADAM, optax.add_decayed_weights(0.1))
    with pytest.raises(ValueError, match="params"):
        opt.update(PARAMS, opt.init(PARAMS))


# Gradients -------------------------------------------------------------------------------------

# gradients, what the message names with parameters at hand, and without
BAD_TREES = {
    "missing": ({"w": W}, ["gradients have no ['b']"], ["gradients have no ['b']"]),
    "None for a missing one": (
        {"w": None},
        ["gradients have no ['b']"],
        ["gradients have no ['b']"],
    ),
    "None and an extra one": (
        {"w": W, "b": None, "c": B},
        ["parameters have no ['c']"],
        ["state's slots have no ['c']"],
    ),
    "extra": (
        {"w": W, "b": B, "c": B},
        ["parameters have no ['c']"],
        ["state's slots have no ['c']"],
    ),
    "renamed": (
        {"w": W, "bias": B},
        ["gradients have no ['b']", "parameters have no ['bias']"],
        ["gradients have no ['b']", "state's slots have no ['bias']"],
    ),
    "list": ([B, W], ["gradients have no ['b']"], ["gradients have no ['b']"]),
    "deeper": ({"w": [W], "b": B}, ["['w'][0]"], ["['w'][0]"]),
    "array": (B, ["gradients", "parameters", "['b']"], ["gradients", "state's slots", "['b']"]),
}


@pytest.mark.parametrize("with_params", [False, True])
@pytest.mark.parametrize(("name", "jit"), each_once(list(BAD_TREES), [False, True]))
def test_gradients_of_another_tree(name, with_params, jit):
    grads, with_them, without = BAD_TREES[name]
    known = ["trees of the same parameters", "with respect to the parameters"]
    update = jax.jit(ADAM.update) if jit else ADAM.update
    with pytest.raises(StageError, match=says(*known, *(with_them if with_params else without))):
        update(grads, ADAM.init(PARAMS), PARAMS if with_params else None)


@pytest.mark.parametrize("with_params", [False, True])
def test_list_is_no_tuple(with_params):
    params = (jnp.ones(1), jnp.ones(2))
    named = says("trees of the same parameters", "gradients are a list", "a tuple", "restore_state")
    with pytest.raises(StageError, match=named):
        ADAM.update(list(params), ADAM.init(params), params if with_params else None)


def frozen(tree):
    return flax.core.freeze(tree)


@pytest.mark.parametrize("with_params", [False, True])
def test_a_frozen_dict_against_a_dict_says_unfreeze(with_params):
    params = {"w": W, "deep": {"b": B}}
    for grads, own in ((frozen(params), params), (params, frozen(params))):
        named = says("FrozenDict", "a dict", "flax.core.unfreeze", "flax.core.freeze")
        with pytest.raises(StageError, match=named) as error:
            ADAM.update(grads, ADAM.init(own), own if with_params else None)
        assert "PyTreeDef" not in str(error.value)
    inside = {"w": W, "deep": frozen({"b": B})}
    with pytest.raises(StageError, match=says("updates have a FrozenDict at ['deep']", "a dict")):
        adamx.apply_updates(params, inside)


def test_trees_that_differ_in_a_static_field_or_a_class_say_where():
    def made():
        cls = dataclasses.make_dataclass("Layer", [("w", object), ("n", object)])
        return jax.tree_util.register_dataclass(cls, ["w"], ["n"])

    one, other = made(), made()
    params = {"a": one(W, 1)}
    with pytest.raises(StageError, match=says("a Layer at ['a']", "static field")):
        ADAM.update({"a": one(W, 2)}, ADAM.init(params), params)
    with pytest.raises(StageError, match=says("at ['a']", "Layer of another definition")):
        ADAM.update({"a": other(W, 1)}, ADAM.init(params), params)


@pytest.mark.parametrize("with_params", [False, True])
def test_a_tree_of_one_array_has_no_path(with_params):
    """It reads "an array", and not that something has no ''."""
    for grads, own in ((W, {"w": W}), ({"w": W}, W), (W, [W])):
        with pytest.raises(StageError, match="trees of the same parameters") as error:
            ADAM.update(grads, ADAM.init(own), own if with_params else None)
        assert not re.search(r"have no *[.;]", str(error.value))
    with pytest.raises(StageError, match=says("parameter (the only one)", "int32")):
        ADAM.init(jnp.arange(2))
    with pytest.raises(StageError, match=says("parameter (the only one)", "'name'")):
        ADAM.init("name")


# gradient of b, what the message names with parameters at hand, and without
BAD_LEAVES = {
    "transposed": (jnp.ones((2, 1)), ["(2, 1)", "(2,)"], ["'scale_by_momentum'", "float32[2]"]),
    "batched": (jnp.ones((4, 2)), ["(4, 2)", "(2,)"], ["'scale_by_momentum'", "float32[2]"]),
    "longer": (jnp.ones(3), ["(3,)", "(2,)"], ["'scale_by_momentum'", "float32[2]"]),
    "broadcast": (jnp.ones(1), ["(1,)", "(2,)"], ["'scale_by_momentum'"]),
    "scalar": (1.0, ["()", "(2,)"], ["'scale_by_momentum'"]),
    "integer": (jnp.arange(2), ["int32", "floating-point"], ["int32", "floating-point"]),
    "bool": (np.ones(2, bool), ["bool", "floating-point"], ["bool", "floating-point"]),
    "complex": (
        jnp.ones(2, "complex64"),
        ["complex64", "float32", "real part"],
        ["'scale_by_momentum'", "complex64", "float32"],
    ),
}


@pytest.mark.parametrize("with_params", [False, True])
@pytest.mark.parametrize(("name", "jit"), each_once(list(BAD_LEAVES), [False, True]))
def test_gradient_of_another_shape_or_dtype(name, with_params, jit):
    grad, with_them, without = BAD_LEAVES[name]
    update = jax.jit(ADAM.update) if jit else ADAM.update
    named = says("parameter ['b']", *(with_them if with_params else without))
    with pytest.raises(StageError, match=named):
        update({"w": W, "b": grad}, ADAM.init(PARAMS), PARAMS if with_params else None)


@dataclasses.dataclass
class Holder:
    """A container that JAX does not know."""

    w: Any


class Opaque:
    def __init__(self, w):
        self.w = w


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        ("gradient", "'gradient'"),
        (object(), "an object of type object"),
        (Holder(jnp.full(2, 0.777)), "an object of type Holder"),
    ],
    ids=["str", "object", "dataclass"],
)
def test_gradient_that_is_no_array(bad, shown):
    with pytest.raises((StageError, TypeError), match=says("parameter ['b']", shown)) as error:
        ADAM.update({"w": W, "b": bad}, ADAM.init(PARAMS), PARAMS)
    assert "0.777" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [(Holder, "register_dataclass"), (Opaque, "register_pytree_node")],
)
def test_a_container_that_jax_does_not_know_is_to_be_registered(make, remedy):
    for params in (make(jnp.full(2, 0.777)), {"a": [make(jnp.full(2, 0.777))]}):
        with pytest.raises(StageError, match=says(make.__name__, remedy, "the arrays")) as error:
            ADAM.init(params)
        assert "equinox" not in str(error.value) and "0.777" not in str(error.value)


def test_arrays_of_another_library_are_to_be_converted():
    torch = pytest.importorskip("torch")
    with pytest.raises(StageError, match=says("['w']", "torch", "jnp.asarray")):
        ADAM.init({"w": torch.ones(2)})
    with pytest.raises(StageError, match=says("['w']", "Tensor")):
        ADAM.update({"w": torch.ones(2)}, ADAM.init({"w": B}), {"w": B})


# Floats of 8 bits and less ---------------------------------------------------------------------


@pytest.mark.parametrize("grads_as", ["the parameters", "float32"])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_parameters_of_8_bits_take_the_steps_of_float32(name, grads_as):
    """Adam in NumPy; u is rounded to the wider dtype of gradient and parameter, θ + u to θ's."""
    narrow = getattr(ml_dtypes, name)
    theta = np.array([0.5, -1.5, 3.0, 288.0, 0.01], narrow)
    dtype = narrow if grads_as == "the parameters" else np.float32
    m = v = np.zeros(5)
    params = jnp.asarray(theta)
    opt = adamx.adam(0.25)
    state = opt.init({"w": params})
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"int32", "float32"}
    for t, scale in enumerate((1.0, -0.25, 2.0), 1):
        g = (np.array([0.25, -0.5, 1.0, 2.0, -0.125]) * scale).astype(dtype)
        wide = g.astype(np.float64)
        m, v = 0.9 * m + 0.1 * wide, 0.999 * v + 0.001 * wide**2
        u = -0.25 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        u = u.astype(np.float32).astype(dtype).astype(np.float32)
        theta = (theta.astype(np.float32) + u).astype(narrow)
        updates, state = opt.update({"w": jnp.asarray(g)}, state, {"w": params})
        params = adamx.apply_updates({"w": params}, updates)["w"]
        assert updates["w"].dtype == jnp.dtype(dtype) and params.dtype == jnp.dtype(narrow)
        np.testing.assert_array_equal(params.astype(jnp.float32), theta.astype(np.float32))


def test_master_weights_keep_parameters_of_8_bits():
    """Steps of a hundredth add up; without the master weights each is rounded away."""
    opt = adamx.chain(adamx.sgd(1.0), adamx.master_weights())
    theta = jnp.full(3, 300.0).astype(jnp.float8_e4m3fn)  # 288, and the next one is 320
    state, grads = opt.init(theta), jnp.full(3, -4.0)
    for _ in range(6):
        updates, state = opt.update(grads, state, theta)
        theta = adamx.apply_updates(theta, updates)
    np.testing.assert_array_equal(theta.astype(jnp.float32), np.full(3, 320.0))  # 288 + 24 = 312


@pytest.mark.parametrize("last", [adamx.stochastic_rounding, adamx.kahan_summation])
def test_what_rounds_at_random_says_that_8_bits_are_too_few(last):
    opt, theta = adamx.chain(adamx.sgd(1.0), last()), jnp.ones(3, jnp.float8_e4m3fn)
    with pytest.raises(StageError, match=says(last.__name__, "float8_e4m3fn", "master_weights")):
        opt.update(theta, opt.init(theta), theta)


def test_a_dtype_without_negative_numbers_takes_no_step():
    theta = jnp.ones(3, jnp.float8_e8m0fnu)
    with pytest.raises(StageError, match=says("float8_e8m0fnu", "no negative numbers")):
        ADAM.init(theta)


# Complex gradients -----------------------------------------------------------------------------


def test_complex_parameters_descend_along_the_conjugate():
    """A gradient of JAX is that of x and −y: |z − c|² falls along its conjugate alone."""
    target = np.complex64(2 - 3j)

    def trained(turn):
        opt, z = adamx.sgd(0.1), jnp.zeros((), jnp.complex64)
        state = opt.init(z)
        for _ in range(100):
            grads = jax.grad(lambda z: jnp.abs(z - target) ** 2)(z)
            updates, state = opt.update(turn(grads), state, z)
            z = adamx.apply_updates(z, updates)
        return z

    np.testing.assert_allclose(trained(jnp.conj), target, rtol=1e-5)
    assert abs(trained(lambda g: g) - target) > 1e3
    assert "conj" in adamx.Transformation.update.__doc__


def test_gradient_without_a_path_is_called_the_only_one():
    with pytest.raises(StageError, match=says("the only one", "(3,)", "(2,)")):
        ADAM.update(jnp.ones(3), ADAM.init(B), B)


# States ----------------------------------------------------------------------------------------


def another(opt, params=PARAMS):
    return lambda: opt.init(params)


def edited(**stages):
    return lambda: ADAM.init(PARAMS) | stages


BAD_STATES = {
    "None": (lambda: None, ["state is None of type NoneType", "init()"]),
    "empty tuple": (lambda: (), ["state is a tuple of 0", "init()"]),
    "empty dict": (dict, ["state", "init()"]),
    "optax": (another(optax.adam(0.1)), ["state is a tuple of 2", "init()"]),
    "in a tuple": (lambda: (ADAM.init(PARAMS),), ["state is a tuple of 1", "init()"]),
    "sgd": (another(adamx.sgd(0.1)), ["'scale_by_momentum'", "mu", "another chain"]),
    "adamax": (another(adamx.adamax(0.1)), ["scale_by_adamax", "scale_by_rms", "another chain"]),
    "longer": (
        another(adamx.chain(ADAM, adamx.polyak_ema())),
        ["polyak_ema", "scale_by_rms", "another chain"],
    ),
    "fewer parameters": (another(ADAM, {"w": W}), ["state's slots have no ['b']"]),
    "more parameters": (another(ADAM, PARAMS | {"c": B}), ["gradients have no ['c']"]),
    "other shapes": (
        another(ADAM, {"w": jnp.ones(3), "b": B}),
        ["'scale_by_momentum'", "['w']", "float32[3]", "float32[2,3]", "same parameters"],
    ),
    "stage of None": (edited(scale_by_rms=None), ["'scale_by_rms'", "NoneType"]),
    "stage of array": (edited(scale_by_rms=jnp.ones(2)), ["'scale_by_rms'"]),
    "without a clock": (
        edited(scale_by_rms={"nu": PARAMS}),
        ["'scale_by_rms'", "log_decay", "another chain"],
    ),
}


@pytest.mark.parametrize(("name", "jit"), each_once(list(BAD_STATES), [False, True]))
def test_state_of_another_chain(name, jit):
    make, parts = BAD_STATES[name]
    with pytest.raises(StageError, match=says(*parts)):
        (jax.jit(ADAM.update) if jit else ADAM.update)(PARAMS, make(), PARAMS)


def test_state_and_parameters_in_the_wrong_order():
    with pytest.raises(StageError, match=says("the state is", "init()")):
        ADAM.update(PARAMS, PARAMS, ADAM.init(PARAMS))


def test_average_of_a_state_that_has_none():
    with pytest.raises(ValueError, match=says("0 stages named 'polyak_ema'", "polyak_ema(decay)")):
        adamx.polyak_params(ADAM.init(PARAMS))


# Chains ----------------------------------------------------------------------------------------

NOTHING_TO_CORRECT = {
    "alone": adamx.bias_correction(),
    "behind a sum": adamx.chain(adamx.scale_by_heavy_ball(), adamx.bias_correction()),
    "behind a maximum": adamx.chain(adamx.scale_by_adamax(), adamx.bias_correction()),
    "in optax.chain": optax.chain(adamx.scale_by_momentum(), adamx.bias_correction()),
    "in front": adamx.chain(adamx.bias_correction(), adamx.scale_by_momentum()),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", NOTHING_TO_CORRECT)
def test_no_bias_to_correct(name, jit):
    opt = NOTHING_TO_CORRECT[name]
    named = says("'bias_correction'", "scale_by_momentum", "adamx.chain", "not along optax.chain")
    with pytest.raises(StageError, match=named):
        (jax.jit(opt.update) if jit else opt.update)(PARAMS, opt.init(PARAMS))


def test_bias_corrected_twice():
    opt = adamx.chain(ADAM, adamx.bias_correction())
    with pytest.raises(StageError, match=says("'bias_correction_2'", "already")):
        opt.update(PARAMS, opt.init(PARAMS))


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([ADAM], ("of type list", "chain(*transformations)")),
        ((ADAM, ADAM), ("of type tuple", "chain(*transformations)")),
        ({"a": ADAM}, ("of type dict",)),
        (adamx.adam, ("adam", "of type function", "call it: adam(")),
        (adamx.scale_by_momentum, ("of type function", "call it: scale_by_momentum(")),
        (optax.adam, ("adam", "of type function", "call it: adam(")),
        (None, ("got None of type NoneType",)),
        ("adam", ("got 'adam' of type str",)),
        (0.1, ("got 0.1 of type float",)),
    ],
    ids=["list", "tuple", "dict", "recipe", "stage", "optax", "None", "str", "float"],
)
def test_chain_of_what_is_no_transformation(given, parts):
    with pytest.raises(TypeError, match=says("chain() takes a transformation", *parts)):
        adamx.chain(ADAM, given)


@pytest.mark.parametrize("wrap", ["where", "partition", "quantize_state"])
def test_a_wrapper_names_itself_where_no_transformation_is_given(wrap):
    call = {
        "where": lambda: adamx.where("a", adamx.adamw),
        "partition": lambda: adamx.partition({"*": adamx.adamw}),
        "quantize_state": lambda: adamx.quantize_state(adamx.adamw, "int8"),
    }[wrap]
    with pytest.raises(TypeError, match=says(f"{wrap}() takes", "call it: adamw(")):
        call()


def test_an_optimiser_does_not_hold_the_parameters():
    with pytest.raises(TypeError, match="passed to init and update"):
        adamx.adamw({"w": W}, 1e-3)


def test_a_recipe_returns_a_transformation():
    @adamx.recipe
    def returning_three(rate: float = 0.1):
        return 3

    with pytest.raises(TypeError, match="returning_three returned 3"):
        returning_three()


def test_two_axes_do_not_share_a_key():
    with pytest.raises(ValueError, match="an axis 'where' already"):

        class Another(Around, axis="where"):
            pass


# Applying updates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "parts"),
    [
        ({"w": W}, ("updates have no ['b']",)),
        ({"w": W, "b": B, "c": B}, ("parameters have no ['c']",)),
        ({"w": W.T, "b": B}, ("['w']", "(3, 2)", "(2, 3)")),
        ({"w": W, "b": jnp.ones((2, 2))}, ("['b']", "(2, 2)", "(2,)")),
        ((W, B), ("updates", "parameters")),
    ],
)
def test_updates_that_are_not_of_these_parameters(updates, parts):
    with pytest.raises(StageError, match=says(*parts)):
        adamx.apply_updates(PARAMS, updates)


# Numbers that are not finite -------------------------------------------------------------------

RECIPES = {
    "sgd": lambda: adamx.sgd(0.1),
    "nesterov": lambda: adamx.sgd(0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda: adamx.adagrad(0.1),
    "adadelta": lambda: adamx.adadelta(),
    "rmsprop": lambda: adamx.rmsprop(0.01, momentum=0.9),
    "centered rmsprop": lambda: adamx.rmsprop(0.01, centered=True),
    "adam": lambda: adamx.adam(0.1),
    "adam, eps 0": lambda: adamx.adam(0.1, eps=0.0),
    "adam, reordered": lambda: adamx.adam(0.1, eps=0.0, eps_hat=1e-7),
    "adam, eps in the root": lambda: adamx.adam(0.1, eps=0.0, eps_root=1e-8),
    "compensated adam": lambda: adamx.adam(0.1, compensated=True),
    "adamax": lambda: adamx.adamax(0.1),
    "lp norm": lambda: adamx.chain(adamx.scale_by_lp_norm(3.0), adamx.bias_correction()),
    "l-infinity norm": lambda: adamx.chain(
        adamx.scale_by_lp_norm(math.inf), adamx.bias_correction()
    ),
    "decayed": lambda: adamx.chain(adamx.add_decayed_weights(0.1), adamx.adam(0.1)),
    "averaged": lambda: adamx.chain(adamx.adam(0.1), adamx.polyak_ema(0.9)),
}


@pytest.mark.parametrize(
    ("recipe", "bad"), each_once(list(RECIPES), [math.nan, math.inf, -math.inf])
)
def test_gradient_that_is_not_finite_shows_and_stays_where_it_is(recipe, bad):
    opt, theta = RECIPES[recipe](), jnp.array([1.0, -2.0, 3.0])
    _, state = opt.update(theta, opt.init(theta), theta)
    good, _ = opt.update(theta, state, theta)
    found, _ = opt.update(theta.at[1].set(bad), state, theta)
    assert not np.isfinite(found[1])
    np.testing.assert_array_equal(found[jnp.array([0, 2])], good[jnp.array([0, 2])])


@pytest.mark.parametrize("clip", [adamx.clip_by_global_norm, optax.clip_by_global_norm])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clipping_by_a_norm_that_is_not_finite_does_not_hide_it(bad, clip):
    opt, grads = adamx.chain(clip(1.0), ADAM), {"a": jnp.array([1.0, bad]), "b": jnp.ones(2)}
    updates, _ = opt.update(grads, opt.init(grads))
    assert not np.isfinite(updates["a"][1])
    if math.isnan(bad):
        assert all(np.isnan(x).all() for x in jax.tree.leaves(updates))


BIG = jnp.full((250, 2), -7.25)


@pytest.mark.parametrize(
    "make",
    [
        lambda: adamx.sgd(BIG),
        lambda: adamx.sgd(BIG * 1j),
        lambda: adamx.sgd({"w": BIG}),
        lambda: adamx.sgd(0.1).replace(learning_rate=BIG),
        lambda: adamx.chain(BIG),
        lambda: adamx.chain({"w": BIG}),
        lambda: adamx.partition(BIG),
        lambda: adamx.partition({"*": {"w": BIG}}),
        lambda: adamx.where(BIG, ADAM),
        lambda: adamx.quantize_state(ADAM, BIG),
        lambda: adamx.quantize_state(ADAM, "int8", seed=BIG),
        lambda: adamx.watch(every=BIG),
        lambda: adamx.watch(groups=BIG),
        lambda: adamx.get_recipe(BIG),
        lambda: adamx.from_config(BIG),
        lambda: adamx.hyperparams(BIG),
        lambda: adamx.sweep(lambda opt: opt, BIG),
    ],
)
def test_an_error_never_prints_the_numbers_of_a_large_array(make):
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    shown = str(error.value)
    assert "array float32[250,2]" in shown or "array complex64" in shown or "dict of ['w']" in shown
    assert shown.count("7.25") <= 1  # the first that is wrong


def test_an_array_out_of_its_domain_says_how_much_of_it_and_where():
    rates = np.ones((3, 4))
    rates[1, 2] = rates[2, 0] = -0.5
    shown = "got an array float64[3,4], in which 2 of 12 are not: the first is -0.5 at [1, 2]"
    with pytest.raises(ValueError, match=says("sgd: learning_rate", "≥ 0", shown)):
        adamx.sgd(rates)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda g, s, p: ({"w": "text", "b": g["b"]}, s, p), "not an array"),
        (lambda g, s, p: ({"w": g["w"]}, s, p), "gradients"),
        (lambda g, s, p: ({"w": g["w"][:1], "b": g["b"]}, s, p), "shape"),
        (lambda g, s, p: (g, s | {"other": s["count"]}, p), "other"),
        (lambda g, s, p: (g, p, s), "order is update"),
        (
            lambda g, s, p: (g, s, {"w": p["w"], "b": "text"}),
            "it is 'text' of type str, not an array",
        ),
    ],
)
def test_a_first_step_does_not_keep_errors_from_later_ones(wrong, said):
    """Outside jit, what was checked in a step is not checked again."""
    opt, params = adamx.adam(1e-3), {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    given = params, opt.init(params), params
    with pytest.raises((adamx.StageError, TypeError), match=said) as first:
        adamx.adam(1e-3).update(*wrong(*given))
    for _ in range(2):
        opt.update(*given)
    with pytest.raises(type(first.value), match=said) as later:
        opt.update(*wrong(*given))
    assert str(later.value) == str(first.value)
