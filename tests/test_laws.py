"""What must hold: exactness, algebra, the paper's bounds, a state that never changes its form."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

import adamx
import reference
from catalog import OPTIMISERS, REPRESENTATIVES, run, slow_but

pytestmark = pytest.mark.optimised

RATE = 1e-3
hypothesis.settings.register_profile("laws", deadline=None, max_examples=40)
hypothesis.settings.load_profile("laws")


# Law 1: Adam is Algorithm 1.


def noisy(steps, coordinates, seed=0):
    """Gradients with a mean, over six orders of magnitude."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(-4, 2, coordinates)
    return (scale * (0.3 + rng.standard_normal((steps, coordinates)))).astype(np.float32)


def median_error(updates, truth):
    return np.median(np.abs(updates - truth) / np.abs(truth), axis=1)


STEPS, GRADS = 50_000, noisy(50_000, 128)


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.9999])
def test_adam_is_algorithm_1_at_every_one_of_50000_steps(b2):
    truth = reference.adam(GRADS.astype(np.float64), RATE, 0.9, b2, 1e-8)
    assert median_error(run(adamx.adam(RATE, b2=b2), GRADS), truth).max() <= 1e-6


def test_compensated_adam_is_algorithm_1_for_the_longest_memory_too():
    truth = reference.adam(GRADS.astype(np.float64), RATE, 0.9, 0.99999, 1e-8)
    opt = adamx.adam(RATE, b2=0.99999, compensated=True)
    assert median_error(run(opt, GRADS), truth).max() <= 4e-7


def test_without_compensation_only_the_random_walk_of_roundings_remains():
    """A float32 holds v to half a unit in the last place; T roundings of it are a random walk.

    The unit is 2⁻²³…2⁻²⁴ of v, a rounding's standard deviation 1/√12 of it, the roundings'
    weights in the sum grow like t: √(T/3) of them add up. The update has half of v's error, the
    median of a normal deviation is 0.67 of it.
    """
    truth = reference.adam(GRADS.astype(np.float64), RATE, 0.9, 0.99999, 1e-8)
    error = median_error(run(adamx.adam(RATE, b2=0.99999), GRADS), truth)
    walk = 0.67 / 2 * 2**-23 / math.sqrt(12) * np.sqrt(np.arange(1, STEPS + 1) / 3)
    assert np.all(error <= walk + 2.5e-7)


def test_adam_is_algorithm_1_under_schedules_of_every_decay():
    def b1(t):
        return 0.8 + 0.15 * jnp.cos(t * 1e-3)

    def b2(t):
        return 1 - (t + 2.0) ** -0.8

    counts = jnp.arange(STEPS)
    with jax.numpy_dtype_promotion("standard"):
        values = [np.asarray(jax.vmap(f)(counts), np.float64) for f in (b1, b2)]
    truth = reference.adam(GRADS.astype(np.float64), RATE, *values, 1e-8)
    assert median_error(run(adamx.adam(RATE, b1, b2), GRADS), truth).max() <= 1e-6


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.9999])
def test_it_is_as_exact_with_decays_in_arrays(b2):
    b1, b2 = np.float32(0.9), np.float32(b2)
    truth = reference.adam(GRADS.astype(np.float64), RATE, float(b1), float(b2), 1e-8)
    opt = adamx.adam(RATE, jnp.asarray(b1), jnp.asarray(b2))
    assert median_error(run(opt, GRADS), truth).max() <= 1e-6


# Law 2: algebra.


def test_chain_is_associative():
    a, b, c = adamx.scale_by_momentum(), adamx.scale_by_rms(), adamx.bias_correction()
    assert (
        adamx.chain(a, adamx.chain(b, c))
        == adamx.chain(adamx.chain(a, b), c)
        == adamx.chain(a, b, c)
    )


def test_the_empty_chain_is_its_unit():
    opt = adamx.adam(RATE)
    assert adamx.chain(adamx.chain(), opt) == opt == adamx.chain(opt, adamx.chain())
    np.testing.assert_array_equal(run(adamx.chain(), GRADS[:3]), GRADS[:3])


SHORT = GRADS[:200]


def test_adamw_without_decay_is_adam():
    np.testing.assert_array_equal(
        run(adamx.adamw(RATE, weight_decay=0.0), SHORT), run(adamx.adam(RATE), SHORT)
    )


def test_adam_without_momentum_is_corrected_rmsprop():
    rmsprop = adamx.chain(
        adamx.scale_by_rms(), adamx.bias_correction(), adamx.scale_by_learning_rate(RATE)
    )
    np.testing.assert_allclose(run(adamx.adam(RATE, b1=0.0), SHORT), run(rmsprop, SHORT), rtol=3e-7)


@pytest.mark.parametrize(("p", "rtol"), [(100.0, 5e-2), (10_000.0, 5e-4), (math.inf, 1e-6)])
def test_the_lp_norm_tends_to_adamax(p, rtol):
    lp = adamx.scale_by_lp_norm(p, b2=0.99, eps=0.0)
    np.testing.assert_allclose(
        run(lp, SHORT), run(adamx.scale_by_adamax(b2=0.99, eps=0.0), SHORT), rtol=rtol
    )


def test_the_l2_norm_is_the_root_mean_square():
    lp = adamx.chain(adamx.scale_by_lp_norm(2.0, b2=math.sqrt(0.99)), adamx.bias_correction())
    rms = adamx.chain(adamx.scale_by_rms(b2=0.99), adamx.bias_correction())
    np.testing.assert_allclose(run(lp, SHORT), run(rms, SHORT), rtol=2e-6)


def test_the_reordered_form_is_algorithm_1_with_a_shrunk_epsilon():
    """Section 2: ε̂ = ε √(1−β₂ᵗ); with ε = ε̂ = 0 the two are the same."""
    algorithm_1 = adamx.adam(RATE, eps=0.0)
    reordered = adamx.adam(RATE, eps=0.0, eps_hat=1e-30)
    np.testing.assert_allclose(run(algorithm_1, SHORT), run(reordered, SHORT), rtol=3e-7)


# Law 3: bounds and invariance.


def adam_bound(t, b1, b2):
    """The largest |m̂/√v̂| that any gradients give at step t, and the gradients that give it.

    With weights aᵢ of m̂ and bᵢ of v̂, Cauchy-Schwarz gives Σaᵢgᵢ ≤ √(Σaᵢ²/bᵢ) √(Σbᵢgᵢ²), an
    equality for gᵢ ∝ aᵢ/bᵢ. The paper's (1−β₁)/√(1−β₂) is the term of one lone gradient.
    """
    age = np.arange(t)[::-1]
    a = (1 - b1) * b1**age / -np.expm1(t * np.log(b1))
    b = (1 - b2) * b2**age / -np.expm1(t * np.log(b2))
    return np.sqrt(np.sum(a**2 / b)), a / b


decays = st.floats(0.05, 0.9995)
gradients = hnp.arrays(
    np.float32,
    st.tuples(st.sampled_from([1, 2, 3, 7, 25]), st.just(3)),  # each length is compiled once
    elements=st.floats(-1e3, 1e3, width=32).filter(lambda g: g == 0 or abs(g) > 1e-6),
)


@hypothesis.given(gradients, decays, decays)
def test_no_gradients_give_adam_a_longer_step_than_the_bound(grads, b1, b2):
    steps = np.abs(run(adamx.adam(1.0, b1, b2, eps=0.0), grads))
    for t, step in enumerate(steps, 1):
        assert np.all(step <= adam_bound(t, b1, b2)[0] * (1 + 1e-5))


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.99), (0.5, 0.9), (0.99, 0.999)])
def test_the_bound_is_reached(b1, b2):
    bound, worst = adam_bound(60, b1, b2)
    last = run(adamx.adam(1.0, b1, b2, eps=0.0), worst[:, None].astype(np.float32))[-1, 0]
    assert abs(last) == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.99), (0.5, 0.9)])
def test_a_lone_gradient_moves_as_far_as_section_2_1_says(b1, b2):
    """After many zero gradients |Δ| → α(1−β₁)/√(1−β₂): the paper's most severe sparsity."""
    grads = np.zeros((20_000, 1), np.float32)
    grads[-1] = 7.0
    last = run(adamx.adam(RATE, b1, b2, eps=0.0), grads)[-1, 0]
    assert abs(last) == pytest.approx(RATE * (1 - b1) / math.sqrt(1 - b2), rel=1e-5)


@hypothesis.given(gradients, st.floats(0.05, 0.99), st.floats(0.05, 0.99))
def test_adamax_steps_stay_within_alpha(grads, b1, ratio):
    """Section 7.1: |Δ| ≤ α. To the letter it is α (1−β₁)/(1−β₁ᵗ) Σ(β₁/β₂)ⁱ, a little more."""
    b2 = b1 + ratio * (0.9995 - b1)
    steps = np.abs(run(adamx.adamax(1.0, b1, b2, eps=0.0), grads))
    for t, step in enumerate(steps, 1):
        bound = (1 - b1) / (1 - b1**t) * np.sum((b1 / b2) ** np.arange(t))
        assert np.all(step <= bound * (1 + 1e-5))


SCALE_FREE = {
    "adam": adamx.adam(RATE, eps=0.0),
    "adamax": adamx.adamax(RATE, eps=0.0),
    "adagrad": adamx.adagrad(RATE, eps=0.0),
    "rmsprop": adamx.rmsprop(RATE, eps=0.0),
    "rmsprop_centered": adamx.rmsprop(RATE, eps=0.0, centered=True),
    "rmsprop_momentum": adamx.rmsprop(RATE, eps=0.0, momentum=0.9),
}


@pytest.mark.parametrize("name", SCALE_FREE)
@hypothesis.given(grads=gradients, power=st.integers(-15, 15))
def test_rescaled_gradients_change_nothing(name, grads, power):
    """To the last bit for a power of two, which no rounding can tell apart."""
    opt = SCALE_FREE[name]
    np.testing.assert_array_equal(run(opt, grads), run(opt, grads * np.float32(2.0) ** power))


@hypothesis.given(gradients, st.floats(1e-3, 1e3))
def test_an_lp_norm_is_scale_free_too(grads, factor):
    opt = adamx.chain(adamx.scale_by_lp_norm(3.0, eps=0.0), adamx.bias_correction())
    np.testing.assert_allclose(
        run(opt, grads), run(opt, (grads * factor).astype(np.float32)), rtol=1e-4, atol=1e-30
    )


# Law 4: the state keeps its form.


def form(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state), jax.tree.structure(state)


trees = st.recursive(
    st.tuples(
        st.sampled_from(["float32", "bfloat16", "float16", "complex64"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ).map(lambda kind: jnp.ones(kind[1], kind[0])),
    lambda leaf: st.one_of(
        st.none(),
        st.lists(leaf, max_size=3),
        st.dictionaries(st.sampled_from("abc"), leaf, max_size=3),
        st.tuples(leaf, leaf),
    ),
    max_leaves=5,
)

RATES = {"float": 0.1, "array": jnp.float32(0.1), "schedule": lambda t: 0.1 / (t + 1)}


@pytest.mark.parametrize("name", slow_but(["adam", "adafactor", "averaged"], REPRESENTATIVES))
@hypothesis.settings(max_examples=5)
@hypothesis.given(params=trees)
def test_the_state_keeps_its_form(name, params):
    forms = []
    for rate in RATES.values():
        opt = OPTIMISERS[name](rate)
        state = opt.init(params)
        updates, after = jax.eval_shape(opt.update, params, state, params)
        forms += [form(state), form(after)]
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert [u.dtype for u in jax.tree.leaves(updates)] == [
            p.dtype for p in jax.tree.leaves(params)
        ]
    assert all(other == forms[0] for other in forms)
