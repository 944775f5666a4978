"""Named extra arguments of ``update``: numbers, and trees like the parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import adamx
from adamx.core import Rule, StageError, stage

PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.full(3, 0.5)}
RANDOM = np.random.default_rng(0)


def random_tree(scale=1.0):
    return {
        k: jnp.asarray(scale * RANDOM.standard_normal(x.shape), jnp.float32)
        for k, x in PARAMS.items()
    }


# Sophia


def sophia(grads, estimates, b1, b2, gamma, eps, threshold, rate):
    """Algorithm 3 of the paper, in float64, without weight decay."""
    m = h = 0.0
    for g, estimate in zip(grads, estimates, strict=True):
        m = b1 * m + (1 - b1) * g
        if estimate is not None:
            h = b2 * h + (1 - b2) * estimate
        yield -rate * np.clip(m / np.maximum(gamma * h, eps), -threshold, threshold)


def test_sophia_is_its_algorithm():
    numbers = {"b2": 0.7, "gamma": 0.5, "eps": 1e-3, "threshold": 0.8}
    opt = adamx.chain(
        adamx.scale_by_momentum(0.9),
        adamx.scale_by_hessian_diagonal(**numbers),
        adamx.scale_by_learning_rate(0.1),
    )
    grads = [random_tree() for _ in range(8)]
    estimates = [random_tree(4.0) if i % 3 == 0 else None for i in range(8)]
    state = opt.init(PARAMS)
    found = []
    for g, estimate in zip(grads, estimates, strict=True):
        updates, state = opt.update(g, state, PARAMS, hessian_diagonal=estimate)
        found.append(updates)
    for k in PARAMS:
        rows = [np.asarray(g[k], np.float64) for g in grads]
        own = [None if x is None else np.asarray(x[k], np.float64) for x in estimates]
        expected = sophia(rows, own, 0.9, rate=0.1, **numbers)
        for u, v in zip(found, expected, strict=True):
            np.testing.assert_allclose(u[k], v, rtol=1e-5, atol=1e-7)


def test_a_scan_says_in_which_steps_an_estimate_is_new():
    opt = adamx.chain(adamx.scale_by_hessian_diagonal(0.5), adamx.scale_by_learning_rate(1.0))
    grads, estimate = random_tree(), random_tree()
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    @jax.jit
    def both(state):
        def step(state, i):
            new = i % 2 == 0
            given = jax.tree.map(lambda x, y: jnp.where(new, x, y), estimate, zeros)
            updates, state = opt.update(
                grads, state, PARAMS, hessian_diagonal=given, hessian_is_new=new
            )
            return state, updates

        return jax.lax.scan(step, state, jnp.arange(4))

    state, found = both(opt.init(PARAMS))
    alone = opt.init(PARAMS)
    for i in range(4):
        given = estimate if i % 2 == 0 else None
        updates, alone = opt.update(grads, alone, PARAMS, hessian_diagonal=given)
        for k in PARAMS:
            np.testing.assert_allclose(found[k][i], updates[k], rtol=1e-6)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_tree_reaches_the_parameters_of_a_group_and_of_shards_of_the_state():
    estimate = random_tree()
    alone = adamx.scale_by_hessian_diagonal()
    expected, _ = alone.update(
        estimate, alone.init(PARAMS), hessian_diagonal=jax.tree.map(jnp.abs, estimate)
    )
    kernel = {"kernel": jnp.abs(estimate["kernel"]), "bias": None}
    opt = adamx.where("kernel", adamx.scale_by_hessian_diagonal())
    for around in (lambda x: x, adamx.skip_nonfinite, lambda x: adamx.chain(x, adamx.scale(1.0))):
        own = around(opt)
        found, _ = jax.jit(own.update)(estimate, own.init(PARAMS), PARAMS, hessian_diagonal=kernel)
        np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-6)
        np.testing.assert_array_equal(found["bias"], estimate["bias"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "without hessian_diagonal, which this stage needs"),
        ({"hessian_diagonal": {"kernel": jnp.ones((4, 3))}}, "hessian_diagonal"),
        (
            {"hessian_diagonal": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}},
            r"kernel.*hessian_diagonal is float32\[3\] .*shape \(4, 3\)",
        ),
    ],
)
def test_a_wrong_tree_is_an_error_that_names_the_stage(given, message):
    opt = adamx.scale_by_hessian_diagonal()
    with pytest.raises(StageError, match=f"(?s)scale_by_hessian_diagonal.*{message}"):
        opt.update(PARAMS, opt.init(PARAMS), PARAMS, **given)


# Estimates of the diagonal


def test_hutchinson_finds_the_diagonal_of_a_quadratic():
    matrix = RANDOM.standard_normal((5, 5))
    matrix = jnp.asarray(matrix @ matrix.T, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 20_000)

    def loss(p, factor):
        x = jnp.concatenate([p["a"], p["b"]])
        return factor * x @ matrix @ x / 2

    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    each = jax.vmap(lambda key: adamx.hutchinson_diagonal(loss, params, key, 2.0))(keys)
    found = np.concatenate([each["a"].mean(0), each["b"].mean(0)])
    spread = 2 * np.sqrt((np.asarray(matrix) ** 2).sum(1) / len(keys))
    assert (np.abs(found - 2 * np.diag(matrix)) < 5 * spread).all()


def test_gauss_newton_bartlett_finds_the_diagonal_of_softmax_regression():
    """There the Gauss-Newton matrix is the Hessian: diag of E x xᵀ ⊗ (diag(p) − p pᵀ)."""
    x = jnp.asarray(RANDOM.standard_normal((6, 4)), jnp.float32)
    w = jnp.asarray(RANDOM.standard_normal((4, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(2), 20_000)
    each = jax.vmap(lambda key: adamx.gauss_newton_bartlett(lambda w, x: x @ w, w, key, x))(keys)
    p = np.asarray(jax.nn.softmax(x @ w), np.float64)
    expected = np.mean(np.asarray(x)[:, :, None] ** 2 * (p * (1 - p))[:, None, :], 0)
    error = np.asarray(each).std(0) / np.sqrt(len(keys))
    assert (np.abs(np.asarray(each).mean(0) - expected) < 5 * error).all()


# Arguments of one's own, in training states


@stage(takes=["temperature"])
def cooled():
    def own(path, shape, extra):
        return extra["temperature"]

    def update(signal, slots, step):
        return signal.with_update(signal.update * step.own), slots

    return Rule(update, own=own)


def test_a_number_reaches_the_stage_that_asks_for_it():
    opt = adamx.chain(cooled(), optax.scale(-1.0))
    grads = random_tree()
    state = opt.init(PARAMS)
    updates, _ = opt.update(grads, state, PARAMS, temperature=0.5, unused=3.0)
    for k in PARAMS:
        np.testing.assert_allclose(updates[k], -0.5 * grads[k], rtol=1e-6)
    with pytest.raises(StageError, match=r"'cooled'.*update\(grads, state, params, temperature="):
        opt.update(grads, state, PARAMS)
    combined = optax.chain(optax.clip(1e3), opt)
    updates, _ = combined.update(grads, combined.init(PARAMS), PARAMS, temperature=0.5)
    np.testing.assert_allclose(updates["bias"], -0.5 * grads["bias"], rtol=1e-6)


class ExtraArguments(train_state.TrainState):
    """A training state of Flax that passes extra arguments on to the optimiser."""

    def apply_gradients(self, *, grads, **extra):
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params, **extra)
        params = adamx.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state)


def test_training_states_of_flax_pass_them_on():
    opt = adamx.skip_spikes(adamx.sgd(0.1), window=4, min_steps=2, by="value")
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    state = ExtraArguments.create(apply_fn=model.apply, params=params, tx=opt)
    step = jax.jit(lambda state, grads, loss: state.apply_gradients(grads=grads, value=loss))
    for loss in (1.0, 1.1, 1.0, 80.0):
        state = step(state, params, loss)
    assert state.opt_state["skip_spikes"]["skipped"] == 1

    network = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, opt, wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(network)
    for loss in (1.0, 1.1, 1.0, 80.0):
        optimizer.update(network, grads, value=loss)
    assert adamx.metrics(optimizer)["skip_spikes/skipped"] == 1
