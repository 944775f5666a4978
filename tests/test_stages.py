"""Stages and recipes against float64 oracles written from the papers."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
import reference
from catalog import MATRIX_RECIPES, RECIPES, ROWS, STAGES, run, slow_but, x64

pytestmark = pytest.mark.optimised

STEPS = 300
RNG = np.random.default_rng(7)
REAL = (np.logspace(-3, 2, 12) * (0.2 + RNG.standard_normal((STEPS, 12)))).astype(np.float32)
DECAYS = {"b1", "b2", "b3", "decay", "momentum", "rho"}


def gradients(row):
    """Of a mean and of sizes over four orders of magnitude, and the parameters at the start."""
    random = np.random.default_rng(7)
    size = int(np.prod(row.shape))
    scale = np.logspace(-3, 1, size).reshape(row.shape)
    real, imaginary = random.standard_normal((2, row.steps, *row.shape))
    grads = scale * (0.2 + real + 1j * imaginary)
    return grads, row.start * np.linspace(-1, 1, size).reshape(row.shape)


def close(row, grads, start):
    """Whether a run in single precision is the oracle's, coordinate by coordinate."""
    wide = np.complex128 if np.iscomplexobj(grads) else np.float64
    truth = row.truth(grads.astype(wide), start.astype(wide))
    with x64() if row.double else contextlib.nullcontext():
        wide = (grads.astype(truth.dtype), start.astype(truth.dtype)) if row.double else None
        error = np.abs(run(row.make(), *(wide or (grads, start))) - truth)
    return np.all(error <= 1e-5 * np.abs(truth).max(axis=0) + row.rounding)


@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_papers_rule(name):
    row = ROWS[name]
    grads, start = gradients(row)
    grads, start = grads.real.astype(np.float32), start.astype(np.float32)
    rests = (np.arange(row.steps) % 3 != 1).reshape(-1, *(1 for _ in row.shape))
    assert close(row, grads, start)
    assert close(row, np.where(rests, 0, grads).astype(np.float32), start), "with zeros"
    assert close(row, np.zeros_like(grads), start), "all zero"


@pytest.mark.parametrize("name", slow_but(list(STAGES)[::3], ROWS))
def test_of_complex_parameters_it_is_the_papers_rule(name):
    row = ROWS[name]
    grads, start = gradients(row)
    assert close(row, grads.astype(np.complex64), start.astype(np.complex64))


@pytest.mark.parametrize("name", slow_but(list(STAGES)[1::3], ROWS))
def test_in_double_precision_it_is_the_oracle(name):
    row = ROWS[name]
    grads, start = gradients(row)
    start = start.astype(np.complex128)
    with x64():
        ours = run(row.make(), grads, start)
    assert ours.dtype == np.complex128
    truth = row.truth(grads, start)
    np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-12 * np.abs(truth).max())


SCHEDULED = [name for name, row in ROWS.items() if row.scheduled]


@pytest.mark.parametrize("name", slow_but([x for x in SCHEDULED if x in STAGES], SCHEDULED))
def test_every_number_may_change_at_every_step(name):
    """Decay rates towards a longer memory, all others upwards."""
    row = ROWS[name]
    grads, start = gradients(row)
    grads, start = grads.real, start
    t = np.arange(row.steps, dtype=np.float64)

    def changing(key):
        x = row.numbers[key]
        if key in DECAYS:
            return lambda t: 1 - (1 - x) * (0.3 + 0.7 / (t + 1.0))
        return lambda t: x * (t + 1.0) ** 0.05

    schedules = {key: changing(key) for key in row.scheduled}
    with x64():
        # A schedule is given an int32 count, of which JAX makes float32 numbers.
        wide = {k: (lambda t, f=f: f(jnp.asarray(t, jnp.float64))) for k, f in schedules.items()}
        ours = run(row.make(**wide), grads, start)
    truth = row.truth(grads, start, **{key: f(t) for key, f in schedules.items()})
    np.testing.assert_allclose(ours, truth, rtol=1e-7, atol=1e-9 * np.abs(truth).max())


OF_DECAYS = [name for name in SCHEDULED if DECAYS & set(ROWS[name].scheduled)]


@pytest.mark.parametrize("name", slow_but([x for x in OF_DECAYS if x in STAGES], OF_DECAYS))
def test_a_decay_may_be_zero_in_the_first_step(name):
    """β = 1 − 1/t gives the mean of all gradients so far; a compiled step finds log β of it."""
    row = ROWS[name]
    grads, start = gradients(row)
    grads, start = grads.real[:20], start
    schedules = dict.fromkeys(DECAYS & set(row.scheduled), lambda t: 1 - 1 / (t + 1.0))
    with x64():
        wide = {k: (lambda t, f=f: f(jnp.asarray(t, jnp.float64))) for k, f in schedules.items()}
        ours = run(row.make(**wide), grads, start)
    t = np.arange(20, dtype=np.float64)
    truth = row.truth(grads, start, **{key: f(t) for key, f in schedules.items()})
    np.testing.assert_allclose(ours, truth, rtol=1e-7, atol=1e-9 * np.abs(truth).max())


def test_every_public_stage_and_recipe_has_its_row():
    public = {name: getattr(adamx, name) for name in adamx.__all__}
    made = {name for name, factory in public.items() if hasattr(factory, "definition")}
    # update() needs an argument: tests/test_bounds.py, tests/test_extra_arguments.py
    need_more = {"qk_clip", "scale_by_hessian_diagonal"}
    assert set(STAGES) == made - need_more - {*adamx.wrappers.__all__}  # gates are wrappers
    assert set(RECIPES) == set(adamx.list_recipes())
    assert {name for name, row in RECIPES.items() if row.usual is None} == {*MATRIX_RECIPES}


# Weight decay


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
