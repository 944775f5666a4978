"""Stages and recipes against float64 oracles written from the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
import reference
from catalog import run, x64

STEPS = 300
RNG = np.random.default_rng(7)
REAL = (np.logspace(-3, 2, 12) * (0.2 + RNG.standard_normal((STEPS, 12)))).astype(np.float32)
COMPLEX = (REAL + 1j * RNG.standard_normal((STEPS, 12)) * REAL[::-1]).astype(np.complex64)
ZEROS = np.where(np.arange(STEPS)[:, None] % 3 == 0, REAL, 0).astype(np.float32)

# What a recipe is called with here, and the oracle called with the same numbers.
CASES = {
    "sgd": (adamx.sgd(0.1), reference.sgd, (0.1,)),
    "sgd_momentum": (adamx.sgd(0.1, 0.8), reference.sgd, (0.1, 0.8)),
    "sgd_nesterov": (adamx.sgd(0.1, 0.8, True), reference.sgd, (0.1, 0.8, True)),
    "adagrad": (adamx.adagrad(0.1, 1e-3), reference.adagrad, (0.1, 1e-3)),
    "adagrad_initial": (
        adamx.adagrad(0.1, 0.0, initial_accumulator_value=0.5),
        reference.adagrad,
        (0.1, 0.0, 0.5),
    ),
    "adadelta": (adamx.adadelta(0.5, 0.8, 1e-4), reference.adadelta, (0.5, 0.8, 1e-4)),
    "rmsprop": (adamx.rmsprop(0.1, 0.8, 1e-3), reference.rmsprop, (0.1, 0.8, 1e-3)),
    "rmsprop_nesterov": (
        adamx.rmsprop(0.1, 0.8, 1e-3, momentum=0.7, nesterov=True),
        reference.rmsprop,
        (0.1, 0.8, 1e-3, False, 0.7, True),
    ),
    "rmsprop_centered": (
        adamx.rmsprop(0.1, 0.8, 1e-2, centered=True, momentum=0.5),
        reference.rmsprop,
        (0.1, 0.8, 1e-2, True, 0.5),
    ),
    "adam": (adamx.adam(0.1, 0.8, 0.95, 1e-3), reference.adam, (0.1, 0.8, 0.95, 1e-3)),
    "adam_root": (
        adamx.adam(0.1, 0.8, 0.95, 0.0, 1e-3),
        reference.adam,
        (0.1, 0.8, 0.95, 0.0, 1e-3),
    ),
    "adam_hat": (
        adamx.adam(0.1, 0.8, 0.95, 0.0, eps_hat=1e-3),
        reference.adam,
        (0.1, 0.8, 0.95, 0.0, 0.0, 1e-3),
    ),
    "adam_all_three": (
        adamx.adam(0.1, 0.8, 0.95, 1e-3, 1e-4, eps_hat=1e-2),
        reference.adam,
        (0.1, 0.8, 0.95, 1e-3, 1e-4, 1e-2),
    ),
    "adam_compensated": (
        adamx.adam(0.1, 0.8, 0.95, 1e-3, compensated=True),
        reference.adam,
        (0.1, 0.8, 0.95, 1e-3),
    ),
    "adam_uncorrected": (
        adamx.chain(
            adamx.scale_by_momentum(0.8),
            adamx.scale_by_rms(0.95, 1e-3),
            adamx.scale_by_learning_rate(0.1),
        ),
        reference.adam,
        (0.1, 0.8, 0.95, 1e-3, 0.0, 0.0, False),
    ),
    "adamax": (adamx.adamax(0.1, 0.8, 0.95, 1e-3), reference.adamax, (0.1, 0.8, 0.95, 1e-3)),
    "adamax_of_the_paper": (adamx.adamax(0.1, eps=0.0), reference.adamax, (0.1, 0.9, 0.999, 0.0)),
    **{
        f"lp_norm_{p:g}": (
            adamx.chain(adamx.scale_by_lp_norm(p, 0.9, 1e-3), adamx.bias_correction()),
            reference.lp_norm,
            (p, 0.9, 1e-3),
        )
        for p in (0.5, 1.0, 2.0, 3.0, 7.0, 50.0, 200.0)
    },
    "lp_norm_uncorrected": (
        adamx.scale_by_lp_norm(3.0, 0.9, 1e-3),
        reference.lp_norm,
        (3.0, 0.9, 1e-3, False),
    ),
}

GRADIENTS = {"real": REAL, "complex": COMPLEX, "with zeros": ZEROS}


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_papers_rule(name, gradients):
    opt, oracle, numbers = CASES[name]
    grads = GRADIENTS[gradients]
    wide = grads.astype(np.complex128 if np.iscomplexobj(grads) else np.float64)
    truth = oracle(wide, *numbers)
    error = np.abs(run(opt, grads) - truth)
    assert np.all(error <= 1e-5 * np.abs(truth).max(axis=0) + 1e-30)


@pytest.mark.parametrize("name", CASES)
def test_in_double_precision_it_is_the_oracle(name):
    opt, oracle, numbers = CASES[name]
    grads = COMPLEX.astype(np.complex128)
    with x64():
        ours = run(opt, grads)
    truth = oracle(grads, *numbers)
    assert ours.dtype == np.complex128
    np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-12 * np.abs(truth).max())


def test_adam_with_every_number_scheduled():
    t = np.arange(STEPS)
    with jax.numpy_dtype_promotion("standard"):
        schedules = {
            "learning_rate": lambda t: 0.1 / (t + 1.0) ** 0.5,
            "b1": lambda t: 0.9 * 0.99**t,
            "b2": lambda t: 1 - 0.5 / (t + 2.0),
            "eps": lambda t: 1e-3 / (t + 1.0),
            "eps_root": lambda t: 1e-4 / (t + 1.0),
            "eps_hat": lambda t: 1e-2 / (t + 1.0),
        }
        values = {
            name: np.asarray(jax.vmap(f)(jnp.asarray(t)), np.float64)
            for name, f in schedules.items()
        }
    truth = reference.adam(REAL.astype(np.float64), **values)
    error = np.abs(run(adamx.adam(**schedules), REAL) - truth)
    assert np.all(error <= 1e-5 * np.abs(truth).max(axis=0))


# Weight decay


def test_decoupled_weight_decay():
    params = np.linspace(-1, 1, 12).astype(np.float32)
    opt = adamx.chain(
        adamx.scale_by_momentum(0.8),
        adamx.scale_by_rms(0.95, 1e-3),
        adamx.bias_correction(),
        adamx.add_decayed_weights(0.2),
        adamx.scale_by_learning_rate(0.01),
    )
    wide = params.astype(np.float64)
    truth = reference.adamw(REAL.astype(np.float64), wide, 0.01, 0.8, 0.95, 1e-3, 0.2)
    np.testing.assert_allclose(
        run(opt, REAL, params), truth, rtol=1e-4, atol=1e-5 * np.abs(truth).max()
    )


def test_decay_in_front_of_the_statistics_is_l2_regularisation():
    """Step 1 of Adam is the sign of its gradient, whatever it is: here of g + λθ."""
    opt = adamx.chain(adamx.add_decayed_weights(0.5), adamx.adam(1.0, eps=0.0))
    theta = jnp.array([10.0, 10.0])
    u, _ = opt.update(jnp.array([-4.0, -6.0]), opt.init(theta), theta)
    np.testing.assert_allclose(u, [-1.0, 1.0], rtol=1e-6)


# Averages of the iterates


def averaged_run(decay, dtype="float32"):
    opt = adamx.chain(adamx.adam(0.01), adamx.polyak_ema(decay))
    params = jnp.asarray(np.linspace(-1, 1, 12), dtype)
    state, path, averages = opt.init(params), [], []
    update = jax.jit(opt.update)
    for grad in REAL[:50]:
        updates, state = update(jnp.asarray(grad, dtype), state, params)
        params = adamx.apply_updates(params, updates)
        path.append(np.asarray(params, np.float64))
        averages.append(np.asarray(adamx.polyak_params(state), np.float64))
    return np.stack(path), np.stack(averages)


def test_polyak_ema_averages_the_new_parameters_without_bias():
    path, averages = averaged_run(0.9)
    np.testing.assert_allclose(averages, reference.polyak(path, 0.9), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(averages[0], path[0], rtol=1e-6)


def test_with_the_decay_t_over_t_plus_1_it_is_the_mean():
    path, averages = averaged_run(lambda t: t / (t + 1))
    mean = np.cumsum(path, axis=0) / np.arange(1, 51)[:, None]
    np.testing.assert_allclose(averages, mean, rtol=1e-5, atol=1e-7)


def test_it_averages_the_parameters_that_are_stored():
    """In bfloat16 the new parameter is what rounding left of θ + u."""
    path, averages = averaged_run(0.9, "bfloat16")
    np.testing.assert_allclose(averages, reference.polyak(path, 0.9), rtol=1e-5, atol=1e-7)


def test_averaging_leaves_the_updates_alone():
    opt = adamx.adam(0.01)
    np.testing.assert_array_equal(run(adamx.chain(opt, adamx.polyak_ema()), REAL), run(opt, REAL))


def test_polyak_params_finds_its_stage():
    params = {"w": jnp.ones(2)}
    opt = adamx.chain(adamx.polyak_ema(0.5), adamx.polyak_ema(0.9))
    _, state = opt.update(params, opt.init(params), params)
    np.testing.assert_allclose(
        adamx.polyak_params((1, [state]), "polyak_ema_2")["w"], 2.0, rtol=1e-6
    )
    with pytest.raises(ValueError, match="2 stages named 'polyak_ema'"):
        adamx.polyak_params([state, state])
    with pytest.raises(ValueError, match=r"0 stages named 'polyak_ema'.*add polyak_ema"):
        adamx.polyak_params(adamx.adam(0.1).init(params))


def test_nothing_has_been_averaged_before_the_first_step():
    params = {"w": jnp.ones(2)}
    with jax.debug_nans(False):
        assert np.isnan(adamx.polyak_params(adamx.polyak_ema().init(params))["w"]).all()


# Corners


def test_lp_norms_of_large_order_neither_overflow_nor_vanish():
    """(1e30)^100 and (1e-30)^100 are beyond float32; the direction is the sign all the same."""
    grads = np.array([[1e30, -1e-30, 0.0]], np.float32)
    opt = adamx.chain(adamx.scale_by_lp_norm(100.0, eps=0.0), adamx.bias_correction())
    np.testing.assert_allclose(run(opt, grads), [[1, -1, 0]], rtol=1e-5)


def test_the_weight_of_a_decay_of_zero_is_one():
    grads = np.ones((3, 1), np.float32)
    for b1 in (0.0, jnp.float32(0.0)):
        opt = adamx.chain(adamx.scale_by_momentum(b1), adamx.bias_correction())
        np.testing.assert_allclose(run(opt, grads), 1.0)


def test_a_tiny_decay_keeps_a_small_gradient_exact_beside_a_large_average():
    """β = 1e-6, m = 1, g = 1e-6: m ← 1e-6 + 1e-6 (1 − 1e-6), where 1 + (g − 1) would round."""
    for b1 in (1e-6, jnp.float32(1e-6)):
        opt = adamx.scale_by_momentum(b1)
        updates = run(opt, np.array([[1.0], [1e-6]], np.float32))
        np.testing.assert_allclose(updates[1, 0], 2e-6, rtol=2e-6)


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.999999])
def test_the_first_step_of_adam_is_alpha(b2):
    u = run(adamx.adam(0.25, b2=b2, eps=0.0), REAL[:1])
    np.testing.assert_allclose(np.abs(u), 0.25, rtol=5e-7)


def test_the_root_keeps_hypergradients_finite_at_zero_gradients():
    def moved(opt):
        grads = jnp.array([[0.0, 1.0], [0.0, 2.0]])
        state, total = opt.init(grads[0]), jnp.zeros(2)
        for grad in grads:
            u, state = opt.update(grad, state)
            total = total + u
        return jnp.sum(total)

    for opt in (adamx.adam(0.1), adamx.adam(0.1, eps=0.0), adamx.rmsprop(0.1), adamx.adagrad(0.1)):
        gradient = jax.grad(moved)(opt)
        assert all(math.isfinite(x) for x in jax.tree.leaves(gradient))
