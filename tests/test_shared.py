"""Numbers that are told once, and stages that are switched off by the number 0."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.core import Decay, Real, Same, stage
from catalog import run

GRADS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
START = np.float32([1.0, -2.0, 3.0])
DOWNHILL = np.float32([[1.0, -2.0, 3.0]] * 8) + 0.1 * GRADS  # so that Prodigy's distance grows


def test_the_rate_of_schedule_free_is_replaced_once():
    """The step and the weights of the average have one rate."""
    opt = adamx.schedule_free_adamw(1e-3).replace(learning_rate=0.1)
    assert adamx.hyperparams(opt)["learning_rate"] == 0.1
    np.testing.assert_array_equal(
        run(opt, GRADS, START), run(adamx.schedule_free_adamw(0.1), GRADS, START)
    )


def test_schedule_free_weighs_its_iterates_with_the_rate_of_the_chain():
    """γ = 1, then 2: x₂ = (1·z₁ + 4·z₂)/5 of z = −1, −3 for gradients 1; y is half way to it."""
    rate = adamx.scale_by_learning_rate(lambda t: 1.0 * (t + 1))
    opt = adamx.chain(rate, adamx.schedule_free(b1=0.5))
    moved = run(opt, np.ones((2, 1), np.float32), np.zeros(1, np.float32))
    np.testing.assert_allclose(moved.sum(0), [0.5 * -3 + 0.5 * -13 / 5], rtol=1e-6)


def assert_same_and_sensitive(changed, told, untouched):
    """Two optimisers that take the same steps, and one that takes others."""
    ours = run(changed, DOWNHILL, START)
    np.testing.assert_array_equal(ours, run(told, DOWNHILL, START))
    assert np.abs(ours - run(untouched, DOWNHILL, START)).max() > 1e-3 * np.abs(ours).max()


def test_the_decay_of_prodigys_estimate_follows_that_of_its_second_moment():
    """β₃ is √β₂ as long as it is not given."""
    assert_same_and_sensitive(
        adamx.prodigy(b2=0.999, d0=1e-2).replace(b2=0.9),
        adamx.prodigy(b2=0.9, b3=0.9**0.5, d0=1e-2),
        adamx.prodigy(b2=0.9, b3=0.999**0.5, d0=1e-2),
    )
    assert_same_and_sensitive(
        adamx.prodigy(b2=0.999, b3=0.99, d0=1e-2).replace(b2=0.9),
        adamx.prodigy(b2=0.9, b3=0.99, d0=1e-2),
        adamx.prodigy(b2=0.9, d0=1e-2),
    )


def test_prodigys_correction_follows_the_decay_rates():
    changed = adamx.prodigy(d0=1e-2, use_bias_correction=True).replace(b1=0.5, b2=0.9)
    told = adamx.prodigy(1.0, 0.5, 0.9, d0=1e-2, use_bias_correction=True)
    assert_same_and_sensitive(changed, told, adamx.prodigy(1.0, 0.5, 0.9, d0=1e-2))


def test_the_variance_is_reduced_with_the_momentum_of_the_chain():
    """c = g + γβ₁/(1 − β₁)(g − g₋₁) = 2 + 0.5·4·2 with β₁ = 0.8; then m = 0.2·c."""
    opt = adamx.chain(adamx.reduce_variance(gamma=0.5), adamx.scale_by_momentum(0.8))
    np.testing.assert_allclose(run(opt, np.full((1, 1), 2.0, np.float32)), [[0.2 * 6.0]], rtol=1e-6)
    ours = adamx.mars(0.1).replace(b1=0.8)
    np.testing.assert_array_equal(run(ours, GRADS, START), run(adamx.mars(0.1, 0.8), GRADS, START))
    lion = adamx.chain(
        adamx.reduce_variance(Same("scale_by_two_rate_momentum", "b1")), adamx.lion(0.1, 0.8)
    )
    told = adamx.chain(adamx.reduce_variance(0.8), adamx.lion(0.1, 0.8))
    np.testing.assert_array_equal(run(lion, GRADS, START), run(told, GRADS, START))


def test_a_number_of_another_stage_needs_that_stage():
    with pytest.raises(adamx.StageError, match=r"b1 is the b1 of scale_by_momentum.* pass b1="):
        adamx.chain(adamx.reduce_variance(), adamx.sgd(0.1)).init(START)
    unknown = adamx.reduce_variance(Same("scale_by_momentum", "beta"))
    with pytest.raises(adamx.StageError, match=r"b1 is the beta of .* takes b1"):
        adamx.chain(unknown, adamx.scale_by_momentum(0.8)).init(START)


def test_a_number_is_that_of_the_nearest_stage_in_front():
    """Rectification follows the division directly before it."""
    front = [adamx.scale_by_rms(0.999), adamx.bias_correction(), adamx.scale_by_rms(0.5)]
    shared = adamx.chain(*front, adamx.rectify(), adamx.bias_correction())
    told = adamx.chain(*front, adamx.rectify(b2=0.5), adamx.bias_correction())
    np.testing.assert_array_equal(run(shared, GRADS, START), run(told, GRADS, START))


@stage
def damped(decay: Decay = Same("multiplied", "factor")):
    return lambda signal: signal.with_update((1 - decay) * signal.update)


@stage
def multiplied(factor: Real = Same("scale", "factor")):
    return lambda signal: signal.with_update(factor * signal.update)


def test_a_number_may_be_that_of_a_stage_that_has_it_from_another():
    opt = adamx.chain(damped(), multiplied(), adamx.scale(0.5))
    np.testing.assert_allclose(run(opt, GRADS), 0.125 * GRADS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: adamx.chain(damped(), multiplied(), adamx.scale(2.0)),
            r"decay must be a decay ra",
        ),
        (
            lambda: adamx.chain(damped(Same("scale", "x")), adamx.scale(1.0)),
            r"scale, .* it takes fac",
        ),
        (
            lambda: adamx.chain(damped(), multiplied(Same("damped", "decay"))),
            r"decay is the factor of multiplied, which refers back to it",
        ),
        (
            lambda: adamx.chain(multiplied(Same("scale", "factor", 0.5)), adamx.scale(-2.0)),
            r"factor must be a number.* which is the factor of scale to the power 0.5",
        ),
    ],
)
def test_a_reference_that_gives_no_number_is_an_error(make, message):
    with pytest.raises(adamx.StageError, match=message):
        make().init(START)


@pytest.mark.parametrize(
    ("recipe", "without"),
    [(adamx.adamw, adamx.adam), (adamx.nadamw, adamx.nadam)],
    ids=["adamw", "nadamw"],
)
def test_without_weight_decay_no_parameters_are_needed(recipe, without):
    opt, plain = recipe(0.1, weight_decay=0.0), without(0.1)
    g = jnp.asarray(GRADS[0])
    np.testing.assert_array_equal(
        opt.update(g, opt.init(START))[0], plain.update(g, plain.init(START))[0]
    )
    with pytest.raises(adamx.StageError, match="update\\(\\) was called without them"):
        recipe(0.1).update(g, recipe(0.1).init(START))


def test_variance_reduction_that_is_off_keeps_nothing():
    opt = adamx.mars(0.1, gamma=0.0, max_norm=1e9)
    assert "reduce_variance" not in opt.init(START)
    np.testing.assert_array_equal(
        run(opt, GRADS, START),
        run(adamx.adamw(0.1, 0.95, 0.99, weight_decay=0.0), GRADS, START),
    )


def test_an_optimiser_that_is_traced_switches_nothing_off():
    """A state without the slots of a stage that was off is an error that says so."""
    opt = adamx.mars(0.1, gamma=0.0)
    step = jax.jit(lambda opt, g, state, theta: opt.update(g, state, theta))
    with pytest.raises(adamx.StageError, match=r"replace the number by jnp.zeros\(\(\)\)"):
        step(opt, GRADS[0], opt.init(START), START)
    array = opt.replace(gamma=jnp.zeros(()))
    step(array, GRADS[0], array.init(START), START)


def test_the_epsilon_of_prodigy_is_in_units_of_the_distance():
    """The first step, by hand: d m / (√v + ε d) with m = (1 − β₁) d g and v = (1 − β₂) d² g²."""
    d, g, eps = 0.5, np.float64(1e-3), 1e-2
    opt = adamx.prodigy(1.0, 0.9, 0.99, eps=eps, d0=d)
    found = run(opt, np.full((1, 1), g, np.float32), np.zeros(1, np.float32))
    expected = d * (0.1 * d * g) / (np.sqrt(0.01) * d * g + eps * d)
    np.testing.assert_allclose(found, [[-expected]], rtol=1e-5)


def test_no_learning_rate_has_a_default_but_those_that_a_method_defines():
    with_default = {
        name
        for name in adamx.recipes.__all__
        if inspect.signature(getattr(adamx, name)).parameters["learning_rate"].default
        is not inspect.Parameter.empty
    }
    assert with_default == {"adadelta", "adafactor", "prodigy"}


def test_a_pattern_leaves_what_is_shared_shared():
    opt = adamx.schedule_free_adamw(0.1).replace({"*.learning_rate": 0.2})
    assert opt.replace(learning_rate=0.3) == adamx.schedule_free_adamw(0.3)
