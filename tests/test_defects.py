"""Defects of other implementations, each as a test that it is not one here.

Some stand with their subject: v decays for bfloat16, zero gradients of float16, a float that
becomes a schedule, states on their parameters' device, equal closures, a rate that recompiles
(test_jax.py); inject_hyperparams on bfloat16, one count, apply_if_finite, MultiSteps
(test_optax.py); corrections under a schedule of β (test_laws.py); slots that alias parameters
(test_family.py); second moments that stick (test_faithfulness.py); Optax's Yogi, torch's NAdam
(test_moments.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

import adamx

GRADS = np.random.default_rng(5).standard_normal((300, 4)).astype(np.float32)


def states(opt, grads, dtype="float32"):
    params = jnp.ones(grads.shape[1], dtype)
    update, state = jax.jit(opt.update), opt.init(params)
    for grad in grads:
        updates, state = update(jnp.asarray(grad, dtype), state, params)
        yield np.asarray(updates, np.float32), state


def test_the_step_count_and_the_decays_are_not_cast_to_bfloat16():
    """Keras casts both to the variable's dtype: .999 is 1, 257 is 256, the step becomes 0."""
    rounded = np.asarray(jnp.asarray(GRADS, "bfloat16"), np.float32)
    narrow = [u for u, _ in states(adamx.adam(0.1), GRADS, "bfloat16")]
    wide = [u for u, _ in states(adamx.adam(0.1), rounded)]
    np.testing.assert_allclose(narrow, wide, rtol=2**-8)
    assert np.all(np.abs(narrow[257:]).max(axis=1) > 1e-3)


def test_nadam_multiplies_its_product_once_a_step():
    """A product that took each μ twice would be log μ₁ + 2 log μ₂ … after t steps."""
    mu = [0.9 * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in range(1, 11)]
    *_, (_, state) = states(adamx.nadam(0.1), GRADS[:10])
    kept = state["scale_by_nesterov_momentum"]["momentum"]
    np.testing.assert_allclose(kept[0] + kept[1], np.sum(np.log(mu)), rtol=1e-6)


def test_grams_gives_the_new_gradient_the_weight_1_minus_b1():
    """pytorch_optimizer gives it β₁."""
    _, state = next(states(adamx.grams(0.1, b1=0.9), GRADS))
    np.testing.assert_allclose(state["scale_by_momentum"]["mu"], 0.1 * GRADS[0], rtol=1e-6)


def test_prodigy_counts_a_step_once():
    """pytorch_optimizer counts it twice, once for the distance and once for the step."""
    once, _ = next(states(adamx.prodigy(d0=1e-2, use_bias_correction=True), GRADS))
    ratio = np.sqrt(1 - 0.999) / (1 - 0.9)  # of the corrections at t = 1
    m, v = 0.1 * 1e-2 * GRADS[0], 0.001 * 1e-4 * GRADS[0] ** 2
    direction = m / (np.sqrt(v) + 1e-2 * 1e-8)
    np.testing.assert_allclose(once, -1e-2 * ratio * direction, rtol=1e-5)


def test_cautious_masks_by_the_gradient_not_by_the_momentum_alone():
    """C-Optim's foreach path compares m with itself, which masks nothing."""
    opt = adamx.cautious_adamw(1.0, eps=0.0)
    grads = np.float32([[1.0, 1.0], [-0.1, 1.0]])  # the first now points against its momentum
    *_, (updates, _) = states(opt, grads)
    assert updates[0] == 0 and updates[1] < 0


def test_a_tiny_second_moment_never_meets_a_living_momentum():
    """An 8-bit v that rounds to 0 while m lives steps by m/ε; float32 keeps both or neither."""
    grads = np.float32([[1e-3, 1e-8, 1e-15, 0.0]] + [[0.0] * 4] * 5)
    for updates, _ in states(adamx.adam(0.1), grads):
        assert np.all(np.abs(updates) <= 0.1 * 1.0001)


def test_a_stored_second_moment_never_meets_a_living_momentum():
    """A zero code, as bitsandbytes' map has one, lets v become 0 while m survives."""
    grads = np.float32([[100.0, 1e-2, 1e-5, 1e-9]] + [[0.0] * 4] * 20)
    for codec in ("bf16", "fp8", "int8"):
        opt = adamx.quantize_state(adamx.adam(0.1), codec, min_size=1)
        for updates, _ in states(opt, grads):
            assert np.all(np.abs(updates) <= 0.15)  # and not m/ε, 1e5 at the second element


def test_arrays_of_any_shape_are_stored():
    """torchao keeps float32, silently, unless the elements are a multiple of 256."""
    state = adamx.quantize_state(adamx.adam(0.1), "int8").init(jnp.zeros((37, 139)))
    kept = {row.kept_as for row in adamx.memory_usage(state).rows if row.slot in ("mu", "nu")}
    assert kept == {"int8"}
