"""One table: every recipe crossed with what users do to an optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from catalog import OPTIMISERS, run

GRADS = np.random.default_rng(3).standard_normal((12, 3, 4)).astype(np.float32)
PARAMS = np.random.default_rng(4).standard_normal((3, 4)).astype(np.float32)

everyone = pytest.mark.parametrize("name", OPTIMISERS)


@everyone
def test_outside_jit_it_does_what_it_does_in_a_scan(name):
    opt = OPTIMISERS[name](0.05)
    params, state, found = PARAMS, opt.init(PARAMS), []
    for grad in GRADS:
        updates, state = opt.update(grad, state, params)
        params = adamx.apply_updates(params, updates)
        found.append(updates)
    expected = run(opt, GRADS, PARAMS)
    np.testing.assert_allclose(
        np.stack(found), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


@everyone
def test_a_batch_of_learning_rates_is_each_of_them(name):
    make, rates = OPTIMISERS[name], np.float32([0.01, 0.3])
    batch = jax.vmap(lambda rate: _final(make(rate)))(rates)
    alone = np.stack([_final(make(jnp.float32(rate))) for rate in rates])
    np.testing.assert_allclose(batch, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


def _final(opt):
    def step(carry, grad):
        state, params = carry
        updates, state = opt.update(grad, state, params)
        return (state, adamx.apply_updates(params, updates)), None

    (_, params), _ = jax.lax.scan(step, (opt.init(PARAMS), jnp.asarray(PARAMS)), GRADS)
    return params


@everyone
def test_slots_never_alias_the_parameters(name):
    params = {"w": jnp.asarray(PARAMS), "b": jnp.ones(4)}
    ours = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}
    state = OPTIMISERS[name](0.1).init(params)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert ours.isdisjoint(pointers) and len(set(pointers)) == len(pointers)


@everyone
def test_parameters_and_state_may_be_donated(name):
    opt = OPTIMISERS[name](0.1)

    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    params = {"w": jnp.asarray(PARAMS)}
    state = opt.init(params)
    donating = jax.jit(step, donate_argnums=(0, 1))
    for grad in GRADS[:3]:
        params, state = donating(params, state, {"w": jnp.asarray(grad)})
    np.testing.assert_allclose(
        params["w"], PARAMS + run(opt, GRADS[:3], PARAMS).sum(0), rtol=1e-3, atol=1e-4
    )


@everyone
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_zero_gradients_of_any_dtype_stay_finite(name, dtype):
    opt = OPTIMISERS[name](0.1)
    params = {"w": jnp.ones((3, 4), dtype), "s": jnp.ones((), dtype), "e": jnp.ones((0,), dtype)}
    grads = jax.tree.map(jnp.zeros_like, params) | {"n": None}
    params |= {"n": None}
    state = opt.init(params)
    for _ in range(3):
        updates, state = opt.update(grads, state, params)
    for leaf in jax.tree.leaves((updates, state)):
        assert np.isfinite(np.asarray(leaf, np.complex64)).all()


@everyone
def test_a_gradient_that_is_not_finite_shows(name):
    bad = np.nan if name in {"lion", "signum"} else np.inf  # the sign of infinity is 1
    grads = {"w": jnp.asarray(GRADS[0]).at[1, 2].set(bad)}
    params = {"w": jnp.asarray(PARAMS)}
    opt = OPTIMISERS[name](0.1)
    updates, state = opt.update(grads, opt.init(params), params)
    second, _ = opt.update(grads, state, params)
    seen = np.concatenate([np.ravel(updates["w"]), np.ravel(second["w"])])
    assert not np.isfinite(seen).all()


# How far each may need to go: (learning rate, steps) on two small problems.
PARABOLA = {
    "adadelta": (3.0, 6000),
    "adagrad": (1.0, 1500),
    "prodigy": (1.0, 1500),
    "lars": (1.0, 1500),
    "sgd": (0.05, 1500),
    "sgd_momentum": (0.01, 1500),
    "sgd_nesterov": (0.01, 1500),
}


def decaying(rate, steps):
    return lambda t: rate * (1 - t / steps) + 1e-6


def minimise(name, loss, start, rate, steps):
    opt = OPTIMISERS[name](decaying(rate, steps))

    def step(carry, _):
        params, state = carry
        updates, state = opt.update(jax.grad(loss)(params), state, params)
        return (adamx.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (start, opt.init(start)), None, length=steps)
    return adamx.schedule_free_eval_params(state, params) if "schedule_free" in name else params


def parabola(x):
    return jnp.sum(jnp.array([[1.0, 4.0], [0.25, 2.0]]) * x**2)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_it_converges_on_a_parabola(name):
    start = jnp.array([[1.0, -1.0], [1.5, 0.5]])
    rate, steps = PARABOLA.get(name, (0.05, 1500))
    found = minimise(name, parabola, start, rate, steps)
    assert parabola(found) < 1e-3 * parabola(start)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


ROSENBROCK = {
    "adadelta": (1.0, 30_000),
    "adagrad": (0.5, 20_000),
    "sgd": (1e-3, 20_000),
    "sgd_momentum": (1e-4, 20_000),
    "sgd_nesterov": (1e-4, 20_000),
    "prodigy": (1.0, 10_000),
    "lars": (0.2, 20_000),
    "radam": (2e-3, 20_000),  # its first steps are plain descent's: too long a rate explodes
    "adabelief_rectified": (2e-3, 20_000),
}


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_it_goes_down_rosenbrocks_valley(name):
    start = jnp.array([-1.2, 1.0])
    rate, steps = ROSENBROCK.get(name, (0.02, 10_000))
    found = minimise(name, rosenbrock, start, rate, steps)
    assert rosenbrock(found) < 0.05 * rosenbrock(start)
