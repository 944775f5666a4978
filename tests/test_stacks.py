"""Stacks of equal arrays, on which accelerators run a stage at once: the same as one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.core import Rule, StageError, zeros
from adamx.engine import run as engine
from adamx.numerics import random
from catalog import slow_but, x64

SHAPES = {"a": (4, 3), "b": (4, 3), "c": (4, 3), "d": (3, 5), "e": (4, 3, 2), "bias": (3,)}
STEPS = 3


def problem(**dtypes):
    rng = np.random.default_rng(3)
    params = {k: jnp.asarray(rng.normal(size=s), dtypes.get(k)) for k, s in SHAPES.items()}
    grads = {k: jnp.asarray(rng.normal(size=(STEPS, *s)), dtypes.get(k)) for k, s in SHAPES.items()}
    return grads, params


@pytest.fixture
def stacking(monkeypatch):
    """A function that switches stacks on or off, as they are on accelerators and on CPU."""

    def switch(on, most=engine._MOST):
        monkeypatch.setattr(engine, "stacking_pays", lambda: on)
        monkeypatch.setattr(engine, "_MOST", most)

    return switch


@adamx.stage(stacks=True)
def noise_of_the_parameter():
    """Random bits, one slot, and a statistic."""

    def update(signal, slots, step):
        drawn = random.normal(step.clock["key"], signal.update.shape, signal.update.dtype)
        total = slots["sum"] + signal.update
        return signal.with_statistic(total + drawn), {"sum": total}

    return Rule(update, slots={"sum": zeros}, seed=7)


REST = functools.partial(adamx.adamw, 1e-3)
CHAINS = {
    "muon": lambda: adamx.muon(0.02, rest=REST()),
    "normuon": lambda: adamx.normuon(0.02, weight_decay=0.1, rest=REST()),
    "adamuon": lambda: adamx.adamuon(0.02, rest=REST()),
    "for some": lambda: adamx.where(("a", "c", "d"), adamx.muon(0.02)),
    "two of them": lambda: adamx.partition(
        {"a": adamx.muon(0.1), "bias": REST(), "*": adamx.muon(0.02)}
    ),
    "as the last": lambda: adamx.where(("a", "b", "d"), adamx.orthogonalize()),
    "random bits": lambda: adamx.chain(noise_of_the_parameter(), adamx.sgd(0.1)),
    "notes and a watch": lambda: adamx.partition(
        {
            "bias": REST(),
            "*": adamx.chain(
                adamx.scale_by_momentum(),
                adamx.bias_correction(),
                adamx.orthogonalize(),
                adamx.scale_by_learning_rate(0.1),
                adamx.watch(),
            ),
        }
    ),
    "averaged": lambda: adamx.chain(adamx.muon(0.02, rest=REST()), adamx.polyak_ema(0.9)),
    "quantized": lambda: adamx.quantize_state(adamx.muon(0.02, rest=REST()), "bf16", min_size=1),
}


def run(opt, grads, params):
    """The updates of all steps, traced anew."""

    def steps():
        state, theta, found = opt.init(params), params, []
        for t in range(STEPS):
            updates, state = opt.update({k: g[t] for k, g in grads.items()}, state, theta)
            theta = adamx.apply_updates(theta, updates)
            found.append(updates)
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    return jax.jit(steps)()


def both(stacking, make, grads, params, **how):
    """A run one by one, and one in stacks."""
    stacking(False)
    alone = run(make(), grads, params)
    stacking(True, **how)
    return alone, run(make(), grads, params)


def assert_close(alone, together, by):
    for name, x in alone.items():
        np.testing.assert_allclose(together[name], x, rtol=by, atol=by, err_msg=name)


@pytest.mark.parametrize("name", slow_but(["muon", "for some", "random bits"], CHAINS))
def test_a_stack_is_the_same_as_one_by_one(name, stacking):
    with x64():
        grads, params = problem()
        assert_close(*both(stacking, CHAINS[name], grads, params), 1e-11)


@pytest.mark.parametrize("most", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_large_stacks_are_divided(most, stacking):
    with x64():
        grads, params = problem()
        assert_close(*both(stacking, CHAINS["muon"], grads, params, most=most), 1e-11)


def test_arrays_of_other_dtypes_are_in_other_stacks(stacking):
    grads, params = problem(b=jnp.bfloat16, c=jnp.complex64)
    alone, together = both(stacking, CHAINS["muon"], grads, params)
    assert_close(alone, together, 1e-4)
    assert together["b"].dtype == jnp.bfloat16 and together["c"].dtype == jnp.complex64


def products(opt, params):
    """The shapes of all products of matrices in a step."""
    update = jax.make_jaxpr(lambda g, s: opt.update(g, s, params))
    text = str(update(params, jax.eval_shape(opt.init, params)))
    return [line for line in text.splitlines() if "dot_general" in line]


def test_equal_arrays_are_multiplied_at_once(stacking):
    params = {f"m{i}": jnp.zeros((4, 3)) for i in range(6)} | {"other": jnp.zeros((3, 7))}
    stacking(True)
    assert any("f32[6,3,3]" in line for line in products(adamx.muon(0.1), params))
    stacking(True, most=4 * 3 * 2)
    assert any("f32[2,3,3]" in line for line in products(adamx.muon(0.1), params))
    stacking(False)
    assert not any("f32[6,3,3]" in line for line in products(adamx.muon(0.1), params))


def test_parameters_without_a_gradient_are_not_in_the_stack(stacking):
    with x64():
        grads, params = problem()
        opt = CHAINS["muon"]()
        found = []
        for on in (False, True):
            stacking(on)
            first = {k: None if k in ("b", "bias") else g[0] for k, g in grads.items()}
            updates, state = jax.jit(opt.update)(first, opt.init(params), params)
            assert updates["b"] is None and updates["bias"] is None
            second = {k: g[1] for k, g in grads.items()}
            found.append(jax.jit(opt.update)(second, state, params))
        for x, y in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)


def test_hyperparameters_may_be_mapped(stacking):
    with x64():
        grads, params = problem()
        rates = jnp.array([0.01, 0.1])
        stacking(True)
        mapped = jax.vmap(lambda rate: _first(adamx.muon(rate, rest=REST()), grads, params))(rates)
        for i, rate in enumerate((0.01, 0.1)):
            alone = _first(adamx.muon(rate, rest=REST()), grads, params)
            assert_close(alone, {k: x[i] for k, x in mapped.items()}, 1e-11)


def _first(opt, grads, params):
    return opt.update({k: g[0] for k, g in grads.items()}, opt.init(params), params)[0]


def test_outside_of_jit_it_is_the_same(stacking):
    with x64():
        grads, params = problem()
        found = []
        for on in (False, True):
            stacking(on)
            jax.clear_caches()
            found.append(_first(CHAINS["muon"](), grads, params))
        assert_close(*found, 1e-11)


def test_an_error_names_a_parameter_of_the_stack(stacking):
    stacking(True)
    params = {"x": {"bias": jnp.ones(3)}, "y": {"bias": jnp.ones(3)}}
    opt = adamx.muon(0.1)
    with pytest.raises(StageError, match=r"orthogonalize.*\['x'\]\['bias'\].*rest=adamw"):
        opt.update(params, opt.init(params), params)
