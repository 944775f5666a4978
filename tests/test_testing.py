"""check_stage names the promise that a stage breaks, and every stage of adamx keeps them all."""

import functools
import itertools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import NonNegative, Real, Rule, Slot, stage, zeros
from adamx.equations import paper_form
from adamx.testing import check_stage, conformance

pytestmark = pytest.mark.sampled

NAMES = set(conformance._PROMISES)


def shaped(function):
    """The rule of a stage that only shapes the update."""
    return lambda signal: signal.with_update(function(signal.update))


# One stage for every promise that it breaks


@stage
def narrowing():
    """Its slot becomes bfloat16."""

    def update(signal, slots, step):
        return signal, {"a": signal.update.astype(jnp.bfloat16)}

    return Rule(update, slots={"a": zeros})


@stage
def branching():
    return shaped(lambda u: u if jnp.max(u) > 0 else -u)


TRACES = itertools.count(1)


@stage
def counting():
    """Keeps something outside its slots."""
    return shaped(lambda u: u * float(next(TRACES)))


def tracing():
    """A transformation of Optax that keeps something outside its state."""
    return optax.stateless(lambda updates, params: jax.tree.map(_times_more, updates))


def _times_more(u):
    return u * float(next(TRACES))


@functools.cache
def shared(shape):
    return jnp.zeros(shape)


@stage
def sharing():
    start = lambda param: shared(param.shape)  # noqa: E731
    return Rule(lambda signal, slots, step: (signal, slots), slots={"a": start, "b": start})


def outside(x):
    """NumPy's opinion, which can't be batched."""
    return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@stage
def calling_out():
    return shaped(outside)


@stage
def calling_out_for_a_number(factor: Real = 0.5):
    return shaped(lambda u: outside(jnp.asarray(factor, u.dtype)) * u)


@stage
def choosing(factor: Real = 0.5):
    return shaped(lambda u: factor * u if factor > 0.3 else u)


@stage
def rounding():
    """Goes by what leaves the chain, where 1 − 0.99 of bfloat16 is not 0.01."""
    return lambda s: s.with_update((s.output - 0.99 * s.output).astype(s.update.dtype))


@stage
def single():
    return shaped(lambda u: (u.astype(jnp.float32) / 3).astype(u.dtype))


@stage
def flooring():
    return shaped(jnp.floor)


@stage
def of_rows():
    return shaped(lambda u: u / jnp.linalg.norm(u[0]))


@stage(reach="element")
def looking_around():
    return shaped(lambda u: u / (1 + jnp.max(jnp.abs(u))))


@stage
def dividing():
    return shaped(lambda u: u / jnp.abs(u))


@stage
def cubing():
    return shaped(lambda u: u**3)


@stage
def hiding():
    return shaped(jnp.nan_to_num)


@stage
def squaring():
    return shaped(lambda u: u * jnp.abs(u))


@stage
def starting_without_a_number():
    return Rule(lambda s, slots, step: (s, slots), slots={"a": lambda p: zeros(p) * jnp.inf})


@stage(reach="sums")
def summing_one_by_one():
    def total(u):
        flat = u.reshape(-1)
        return jax.lax.fori_loop(0, u.size, lambda i, x: x + flat[i], jnp.zeros((), u.dtype))

    return shaped(lambda u: u / (1 + jnp.abs(total(u))))


@stage(reach="sums")
def summing_a_shard():
    return shaped(lambda u: u / (1 + jnp.sum(jnp.abs(u))))


@stage
def of_a_thing(thing: Any = random.Random(0)):  # noqa: B008 (its state can't be seen)
    return shaped(lambda u: u)


@stage
def misprinted(factor: Real = 0.5):
    return shaped(lambda u: factor * u)


@paper_form(misprinted)
def _(factor):
    return shaped(lambda u: 2 * factor * u)


@stage
def starting_near_one():
    def update(signal, slots, step):
        return signal.with_update((slots["a"] - 1) * signal.update), slots

    return Rule(update, slots={"a": lambda param: zeros(param) + 1.001})


@stage
def constant_to_jax(factor: Real = 0.5):
    return shaped(lambda u: jax.lax.stop_gradient(jnp.asarray(factor, u.dtype)) * u)


@stage(reach="element")
def cube_root(width: NonNegative = 0.1):
    """A good one."""
    return shaped(lambda u: jnp.sign(u) * (jnp.abs(u) + width) ** 0.25)


@stage
def calling_a_mean_a_square():
    def update(signal, slots, step):
        return signal, {"mean": slots["mean"] - jnp.abs(signal.update)}

    return Rule(update, slots={"mean": Slot(zeros, holds="nonnegative")})


def test_a_slot_that_holds_squares_holds_nothing_negative():
    """A code for squares has no sign."""
    with pytest.raises(AssertionError, match=r"'mean' of calling_a_mean.*holds 'nonnegative'"):
        check_stage(calling_a_mean_a_square(), without=NAMES - {"quantized"})


def wrong_oracle(gradients, params):
    return gradients


BROKEN = {
    "state": (narrowing, {}, r"'a' is float32\[5\] and would become bfloat16\[5\]"),
    "scan": (branching, {}, "TracerBoolConversionError"),
    "jit": (tracing, {}, r"the updates of step 1 at \['bias'\]: expected .*, got"),
    "donation": (sharing, {}, r"a separate array at .*'b'.*, but it shares the memory of .*'a'"),
    "batches": (calling_out, {}, "vmap"),
    "arrays": (choosing, {}, "TracerBoolConversionError"),
    "hyperparams": (calling_out_for_a_number, {}, "vmap"),
    "schedules": (choosing, {}, "TracerBoolConversionError"),
    "narrow": (rounding, {}, r"the updates of bfloat16 parameters at \['bias'\]: expected"),
    "double": (single, {}, "expected float64, got values rounded to float32"),
    "complex": (flooring, {}, "floor"),
    "shapes": (of_rows, {}, "Too many indices|too many indices|index"),
    "alone": (counting, {}, r"the first updates at \['bias'\]: expected .*, got"),
    "reach": (looking_around, {}, "an array divided into its elements at .*: expected .*, got"),
    "bare": (dividing, {}, r"the updates at \['bias'\]: expected finite numbers, got nan"),
    "visible": (hiding, {}, r"the updates at \['bias'\]: expected NaN somewhere, got finite"),
    "size": (cubing, {}, "gradients of 1e\\+15 at .*: expected finite numbers, got inf"),
    "largest": (squaring, {}, "largest float32 at .*: expected finite numbers, got"),
    "nans": (starting_without_a_number, {}, "FloatingPointError|nan"),
    "shards": (summing_one_by_one, {}, "carry|replication"),
    "divided": (summing_a_shard, {}, "the updates of two shards"),
    "value": (of_a_thing, {}, "a deep copy: expected an optimiser equal to of_a_thing"),
    "pickle": (of_a_thing, {}, "the unpickled optimiser: expected one equal to of_a_thing"),
    "equations": (misprinted, {}, "the updates of step 1"),
    "quantized": (starting_near_one, {}, "the first update at"),
    "derivatives": (
        constant_to_jax,
        {"derivatives": True},
        r"hyperparameter 0 \(0.5\): expected .* 0.0",
    ),
    "oracle": (cube_root, {"oracle": wrong_oracle}, r"the updates at \['bias'\]: expected"),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_promise_is_named(promise):
    make, arguments, message = BROKEN[promise]
    with pytest.raises(AssertionError, match=message) as raised:
        check_stage(make(), without=NAMES - {promise}, **arguments)
    assert f" breaks the promise {promise!r} (" in str(raised.value)


def test_a_config_that_does_not_come_back_is_named(monkeypatch):
    monkeypatch.setattr(conformance, "from_config", lambda cfg, known: adamx.scale(2.0))
    with pytest.raises(AssertionError, match=r"promise 'config'.*\n.*from its config: .*scale"):
        check_stage(adamx.scale(3.0), without=NAMES - {"config"})


def test_every_promise_has_a_stage_that_breaks_it():
    assert {*BROKEN, "config"} == NAMES


# Good ones


def test_a_good_stage_of_ones_own_holds_all_promises():
    def oracle(gradients, params):
        return np.sign(gradients) * (np.abs(gradients) + 0.2) ** 0.25

    without = {"complex"}
    report = check_stage(cube_root(0.2), oracle=oracle, derivatives=True, without=without)
    assert set(report.unchecked) == {"complex", "quantized"}
    assert set(report.held) == NAMES - set(report.unchecked)
    assert "oracle" in str(report) and "complex      unchecked: skipped by without=" in str(report)


def test_parameters_gradients_and_an_oracle_of_ones_own():
    """Heavy ball with decay, whose oracle moves the parameters."""
    params = np.array([1.0, -2.0])
    gradients = np.array([[1.0, 0.5], [-1.0, 0.25], [3.0, 0.0]])

    def oracle(gradients, theta):
        trace, steps = np.zeros(2), []
        for gradient in gradients:
            trace = 0.5 * trace + gradient
            steps.append(-0.1 * (trace + 0.2 * theta))
            theta = theta + steps[-1]
        return np.stack(steps)

    opt = adamx.chain(
        adamx.scale_by_heavy_ball(0.5),
        adamx.add_decayed_weights(0.2),
        adamx.scale_by_learning_rate(0.1),
    )
    report = check_stage(
        opt, params=params, gradients=gradients, oracle=oracle, without=NAMES - {"oracle"}
    )
    assert set(report.held) == {"oracle"}


def test_a_transformation_of_optax_is_checked_as_far_as_it_goes():
    report = check_stage(optax.trace(0.9), without={"narrow", "batches", "double", "jit"})
    assert {"equations", "quantized", "arrays", "pickle"} <= set(report.unchecked)
    assert {"state", "scan", "bare", "size", "value"} <= set(report.held)


@stage
def unannotated(factor=0.5):
    return shaped(lambda u: factor * u)


@stage
def annotated_as_a_float(factor: float = 0.5):
    return shaped(lambda u: factor * u)


@stage
def annotated_by_a_string(factor: "Real" = 0.5):
    return shaped(lambda u: factor * u)


@pytest.mark.parametrize("make", [unannotated, annotated_as_a_float])
def test_an_argument_that_is_no_hyperparameter_is_structure(make):
    for factor in (0.25, 1):
        report = check_stage(make(factor), oracle=lambda g, theta, x=factor: x * g)
        assert {"config", "value", "oracle"} <= set(report.held)
        assert "no argument is annotated Real" in report.unchecked["schedules"]
        assert jax.tree.leaves(make(factor)) == []
    with pytest.raises(TypeError, match=r"factor can't be a schedule: it is not annotated .*Real"):
        make(lambda t: 0.1)


@pytest.mark.parametrize(
    "opt",
    [
        adamx.where("kernel", adamx.scale(2.0)),
        adamx.where("!bias", optax.trace(0.9)),
        adamx.partition({"kernel": adamx.scale(2.0), "*": adamx.set_to_zero()}),
    ],
    ids=["where", "optax", "partition"],
)
def test_a_stage_for_some_parameters_is_checked_on_those(opt):
    report = check_stage(opt, without=NAMES - {"state", "scan", "bare", "shapes"})
    assert {"state", "scan", "bare"} <= set(report.held)
    assert "restricted to some parameters" in report.unchecked["shapes"]


def test_an_annotation_may_be_a_string():
    opt = annotated_by_a_string(lambda t: 0.5 / (t + 1))
    np.testing.assert_allclose(opt.update(jnp.ones(2), opt.init(jnp.ones(2)))[0], [0.5, 0.5])
    assert jax.tree.leaves(annotated_by_a_string(0.3)) == [0.3]


def optional(factor: Real | None = None):
    return shaped(lambda u: u)


def unreadable(factor: "Unheard" = 0.5):  # noqa: F821
    return shaped(lambda u: u)


def starred(*factors):
    return shaped(lambda u: u)


def double_starred(**factors):
    return shaped(lambda u: u)


def positional(factor: Real, /):
    return shaped(lambda u: factor * u)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (optional, "optional: factor is annotated as a hyperparameter or something else"),
        (unreadable, "unreadable: an annotation can't be read: name 'Unheard' is not defined"),
        (starred, r"starred: arguments must be accepted by name, and \*factors has none"),
        (double_starred, r"by name, and \*\*factors has none"),
        (positional, "by name, and factor: .* has none"),
    ],
)
def test_an_argument_that_no_stage_can_have_is_refused_at_its_definition(factory, message):
    with pytest.raises(TypeError, match=message):
        stage(factory)


def test_arguments_that_can_not_be_meant():
    with pytest.raises(ValueError, match=r"no promise \['jitt'\]; the promises are .*jit"):
        check_stage(adamx.scale(1.0), without=["jitt"])
    with pytest.raises(
        ValueError, match=r"gradients have the shapes \(3,\), but parameters have \(2,\)"
    ):
        check_stage(adamx.scale(1.0), params=np.ones(2), gradients=np.ones((4, 3)))
    with pytest.raises(TypeError, match="chain\\(\\) takes a transformation"):
        check_stage(adamx.scale)
