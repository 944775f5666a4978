"""Signs, layers, differences, slow weights: against oracles, recordings, and each other."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
import reference_shapes as shapes
from catalog import one_of_each_program, run, slow_but, x64

pytestmark = pytest.mark.optimised

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "shapes.json").read_text())
CASES = {case["id"]: case for case in RECORD["cases"]}
NAMES = ["w", "b"]

STEPS = 200
RNG = np.random.default_rng(11)
SCALES = np.logspace(-3, 1, 12).reshape(4, 3)
REAL = (SCALES * (0.2 + RNG.standard_normal((STEPS, 4, 3)))).astype(np.float32)
COMPLEX = (REAL + 1j * RNG.standard_normal((STEPS, 4, 3)) * SCALES[::-1]).astype(np.complex64)
ZEROS = np.where(np.arange(STEPS)[:, None, None] % 3 == 1, REAL, 0).astype(np.float32)
GRADIENTS = {"real": REAL, "complex": COMPLEX, "with zeros": ZEROS}
START = np.linspace(-1, 1, 12).reshape(4, 3)


def adam_rows(*behind):
    return adamx.chain(adamx.adam(0.01, 0.8, 0.95, 1e-3), *behind)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ()),
        ((5,), (0,)),
        ((5, 1), (0, 1)),
        ((4, 3), (0,)),
        ((4, 2, 3), (0,)),
        ((2, 3, 4, 5), (0, 1, 2)),
        ((2, 2, 2, 3, 4), (0, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_adaptive_clip_clips_units(shape, axes, dtype):
    def values(*shape):
        x = RNG.standard_normal(shape)
        return (x + 1j * RNG.standard_normal(shape) if dtype == "complex64" else x).astype(dtype)

    grads, params = values(6, *shape) * 10 ** RNG.uniform(-3, 1, (6, *shape)), values(*shape)
    grads[3], params = 0, (params * 0.1).astype(dtype)  # some units are shorter than ε, some longer
    grads, opt = grads.astype(dtype), adamx.adaptive_clip(0.2, 0.15)
    ours = np.stack([opt.update(g, opt.init(params), params)[0] for g in grads])
    truth = shapes.adaptive_clip(grads, params, 0.2, 0.15, axes)
    np.testing.assert_allclose(ours, truth, rtol=2e-6, atol=1e-30)
    if len(shape) > 4:
        return  # not every Optax that we support knows so many axes
    theirs = optax.adaptive_grad_clip(0.2, 0.15)
    arrays = [jnp.asarray(g) for g in grads]
    with jax.numpy_dtype_promotion("standard"):
        given = np.stack([theirs.update(g, (), jnp.asarray(params))[0] for g in arrays])
    np.testing.assert_allclose(ours, given, rtol=2e-6, atol=1e-30)


def test_adaptive_clip_may_be_told_the_axes():
    params, grads = jnp.ones((4, 3)), jnp.full((4, 3), 10.0)
    for axis, norm in ((0, 2.0), (1, 3**0.5), ((0, 1), 12**0.5)):
        opt = adamx.adaptive_clip(0.1, axis=axis)
        u, _ = opt.update(grads, opt.init(params), params)
        np.testing.assert_allclose(np.linalg.norm(np.ravel(u)), 0.1 * 12**0.5, rtol=1e-6)
        np.testing.assert_allclose(np.sqrt(np.sum(u**2, axis=axis)), 0.1 * norm, rtol=1e-6)


# Recordings


def hat(kwargs):
    """The authors' ε is that of the reordered form, added to √v."""
    rest = dict(kwargs)
    rest.pop("foreach", None)
    b1, b2 = rest.pop("betas", (0.9, 0.999))
    return {"learning_rate": rest.pop("lr", 1e-3), "b1": b1, "b2": b2} | {
        "eps": 0.0,
        "eps_hat": rest.pop("eps", 1e-6),
        **rest,
    }


def lion_pytorch(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    return adamx.lion(lr, *betas, weight_decay)


def optax_lars(
    learning_rate, weight_decay=0.0, trust_coefficient=1e-3, eps=0.0, momentum=0.9, nesterov=False
):
    """Optax's order of things; without decay it is adamx.lars."""
    if not weight_decay:
        return adamx.lars(learning_rate, momentum, 0.0, trust_coefficient, eps, nesterov)
    return adamx.chain(
        adamx.add_decayed_weights(weight_decay),
        adamx.trust_ratio(trust_coefficient, eps),
        adamx.scale_by_learning_rate(learning_rate),
        adamx.scale_by_heavy_ball(momentum, nesterov),
    )


def mars(lr=3e-3, betas=(0.95, 0.99), mars_type="mars-adamw", optimize_1d=False, **rest):
    assert optimize_1d
    if mars_type == "mars-lion":  # their MARS-Lion: the sign of one momentum
        return adamx.chain(
            adamx.reduce_variance(betas[0]),
            adamx.clip_by_norm(1.0),
            adamx.scale_by_momentum(betas[0]),
            adamx.sign(),
            adamx.add_decayed_weights(rest["weight_decay"]),
            adamx.scale_by_learning_rate(lr),
        )
    return adamx.mars(lr, *betas, **rest)


def adan(lr=1e-3, betas=(0.98, 0.92, 0.99), no_prox=False, **rest):
    return adamx.adan(lr, *betas, **rest, proximal=not no_prox)


def ademamix(lr=1e-3, betas=(0.9, 0.999, 0.9999), beta3_warmup=None, **rest):
    b1, b2, b3 = betas
    if beta3_warmup is not None:
        b3 = authors_b3(b1, b3, beta3_warmup)
    return adamx.ademamix(lr, b1, b2, b3, **rest)


def authors_b3(b1, b3, warm_up):
    """The authors' schedule, with its 1e-8 inside the logarithm."""

    def half_life(beta):
        return np.log(0.5) / np.log(beta + 1e-8) - 1

    def schedule(count):
        share = jnp.minimum(jnp.asarray(count + 1, float) / warm_up, 1)
        t = (1 - share) * half_life(b1) + share * half_life(b3)
        return jnp.where(share < 1, jnp.exp(np.log(0.5) / (t + 1)), b3)

    return schedule


def lookahead(lr, la_steps=5, la_alpha=0.8):
    return adamx.chain(adamx.adam(lr), adamx.lookahead(la_steps, la_alpha))


EQUAL = {
    "lion_pytorch:Lion": lion_pytorch,
    "lion_pytorch.cautious_lion:Lion": lambda **kwargs: adamx.chain(
        lion_pytorch(**kwargs), adamx.cautious(1e-5)
    ),
    "optax:signum": lambda learning_rate, beta=0.9: adamx.signum(learning_rate, beta),
    "optax:lamb": adamx.lamb,
    "optax:lars": optax_lars,
    "optax:novograd": lambda learning_rate, **rest: adamx.novograd(
        learning_rate, **({"b1": 0.9} | rest)
    ),
    "c_optim.c_adamw:AdamW": lambda **kwargs: adamx.cautious_adamw(**hat(kwargs)),
    "grams:Grams": lambda **kwargs: adamx.grams(**hat(kwargs)),
    "mars:MARS": mars,
    "adan:Adan": adan,
    "ademamix:AdEMAMix": ademamix,
    "optax.contrib:ademamix": lambda learning_rate, **rest: adamx.ademamix(
        learning_rate, **({"alpha": 5.0} | rest)
    ),
    "lookahead_pytorch:Lookahead": lookahead,
    "optax:adaptive_grad_clip": lambda clipping, eps=1e-3: adamx.chain(
        adamx.adaptive_clip(clipping, eps), adamx.sgd(0.1)
    ),
}


def displacement(opt, dtype):
    """θ − θ₀ after each saved step, of parameters that are kept in double precision."""
    problem = np.load(GOLDEN / "problem.npz")
    grads = {name: jnp.asarray(problem[f"grads.{name}"], dtype) for name in NAMES}
    start = {name: np.asarray(problem[f"params.{name}"], np.float64) for name in NAMES}
    moved = {name: np.zeros_like(start[name]) for name in NAMES}
    update = jax.jit(opt.update)
    state, saved = opt.init(jax.tree.map(lambda x: jnp.asarray(x, dtype), start)), []
    for t in range(len(problem["grads.w"])):
        params = {name: jnp.asarray(start[name] + moved[name], dtype) for name in NAMES}
        updates, state = update({name: g[t] for name, g in grads.items()}, state, params)
        moved = {name: moved[name] + np.asarray(updates[name], np.float64) for name in NAMES}
        if t + 1 in problem["saved_steps"]:
            saved.append(moved)
    return {name: np.stack([moved[name] for moved in saved]) for name in NAMES}


def errors(case, dtype):
    """The error of each coordinate's displacement, and the largest displacement."""
    recorded, start = np.load(GOLDEN / "shapes.npz"), np.load(GOLDEN / "problem.npz")
    ours = displacement(EQUAL[case["authority"]](**case["kwargs"]), dtype)
    for name in NAMES:
        params = recorded[f"{case['id']}.{name}"]
        truth = params - start[f"params.{name}"]
        rounding = 200 * np.finfo(np.float64).eps * np.abs(params).max(axis=0)
        yield np.abs(ours[name] - truth).max(axis=0), np.abs(truth).max(axis=0), rounding


# A β₃ of 0.9999 that comes out of a schedule is a float32: 1 − β₃ is off by up to 3e-4 of itself.
LOOSE = {"ademamix_warm_up": 1e-4}


@pytest.mark.slow
@pytest.mark.parametrize("id_", CASES)
def test_follows_the_recorded_trajectory(id_):
    for error, size, rounding in errors(CASES[id_], jnp.float32):
        assert np.all(error <= LOOSE.get(id_, 1e-5) * size + rounding)


@pytest.mark.parametrize("id_", slow_but(list(one_of_each_program(CASES))[::3], CASES))
def test_follows_it_to_the_last_digits_in_double_precision(id_):
    with x64():
        for error, size, rounding in errors(CASES[id_], jnp.float64):
            assert np.all(error <= 1e-11 * size + rounding)


# Where authorities and papers part


def test_ademamix_warms_up_as_the_paper_says():
    for b1 in (0.5, 0.9):
        alpha, b3 = shapes.ademamix_warm_up(STEPS, b1, 0.9999, 8.0, 150)
        opt = adamx.ademamix(1e-3, b1, alpha=8.0, alpha_warmup=150, b3_warmup=150)
        truth = shapes.ademamix(REAL, START, 1e-3, b1, 0.999, b3, alpha, 1e-8, 0.0)
        error = np.abs(run(opt, REAL, START.astype(np.float32)) - truth)
        assert np.all(error <= 2e-6 * np.abs(truth).max(axis=0))


def test_ademamix_warms_up_without_a_fast_momentum():
    """β₁ = 0 has no half-life: 1/log β₃(t) = (t/T)/log β₃, so that β₃(t) = β₃^(T/t)."""
    share = np.minimum(np.arange(1, STEPS + 1) / 150, 1)
    opt = adamx.ademamix(1e-3, 0.0, b3=0.99, b3_warmup=150)
    truth = shapes.ademamix(REAL, START, 1e-3, 0.0, 0.999, 0.99 ** (1 / share), 2.0, 1e-8, 0.0)
    error = np.abs(run(opt, REAL, START.astype(np.float32)) - truth)
    assert np.all(error <= 2e-6 * np.abs(truth).max(axis=0))


def test_the_authors_warm_up_of_b3_is_the_papers_to_1e_4():
    """Their 1e-8 inside the logarithm shortens the half-life; the recipe follows the paper."""
    case = dict(CASES["ademamix_warm_up"])
    opt = adamx.ademamix(1e-3, alpha=8.0, alpha_warmup=150, b3_warmup=150)
    recorded, start = np.load(GOLDEN / "shapes.npz"), np.load(GOLDEN / "problem.npz")
    with x64():
        ours = displacement(opt, jnp.float64)
    for name in NAMES:
        truth = recorded[f"{case['id']}.{name}"] - start[f"params.{name}"]
        error = np.abs(ours[name] - truth).max(axis=0)
        assert np.max(error) > 1e-8 and np.all(error <= 1e-4 * np.abs(truth).max(axis=0) + 1e-15)


def test_mars_follows_the_code_whose_first_difference_is_the_gradient():
    """c₁ = (1 + γβ₁/(1−β₁)) g₁; the paper's is g₁. Adam's first step does not tell, the next do."""
    numbers = (0.01, 0.95, 0.99, 1e-8, 0.0, 0.025, 1e3)
    ours = run(adamx.mars(*numbers[:5], gamma=0.025, max_norm=1e3), REAL, START.astype(np.float32))
    code = shapes.mars(REAL, START, *numbers)
    paper = shapes.mars(REAL, START, *numbers, first_difference_is_zero=True)
    np.testing.assert_allclose(ours, code, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(paper[0], code[0], rtol=1e-4)
    assert np.abs(paper[1] - code[1]).max() > 1e-4


def test_lars_follows_the_paper_where_optax_has_the_norm_of_the_sum():
    start = START.astype(np.float32)
    numbers = (0.1, 0.8, 0.5, 0.1)
    paper = shapes.lars(REAL, START, *numbers)
    theirs = shapes.lars(REAL, START, *numbers, norm_of_sum=True)
    np.testing.assert_allclose(run(adamx.lars(*numbers), REAL, start), paper, rtol=1e-4, atol=1e-6)
    opt = optax.lars(0.1, 0.5, momentum=0.8, trust_coefficient=0.1)
    np.testing.assert_allclose(run(opt, REAL, start), theirs, rtol=1e-4, atol=1e-6)
    assert np.abs(paper - theirs).max() > 1e-3


def test_optax_adan_turns_one_beta_around_and_not_the_other():
    """It extrapolates with 1 − β₂: with β₂ = 1/2 that is β₂."""
    start = START.astype(np.float32)
    for b2, same in ((0.5, True), (0.92, False)):
        ours = run(adamx.adan(0.01, b2=b2, eps=1e-8), REAL, start)
        with jax.numpy_dtype_promotion("standard"):
            theirs = run(optax.adan(0.01, b2=b2, eps=1e-8, eps_root=0.0), REAL, start)
        assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-6) == same


def test_novograd_starts_at_the_first_gradient_that_is_not_zero():
    grads = np.zeros((3, 2), np.float32)
    grads[1:] = 3.0, 4.0
    steps = run(adamx.novograd(1.0, b1=0.0), grads, np.ones(2, np.float32))
    np.testing.assert_allclose(steps, [[0, 0], [-0.6, -0.8], [-0.6, -0.8]], rtol=1e-6)


# Composition

DIRECT = {  # recipes whose steps do not depend on the parameters, one of every kind
    "sgd": adamx.sgd(0.1),
    "adam": adamx.adam(0.01),
    "lion": adamx.lion(0.01),
    "rate in front": adamx.chain(adamx.scale_by_learning_rate(0.1), adamx.scale_by_heavy_ball(0.9)),
}


def assert_close(ours, expected):
    """Equal but for roundings: two programs of the same numbers may fuse them differently."""
    assert np.all(np.abs(ours - expected) <= 1e-5 * np.abs(expected).max(axis=0))


@pytest.mark.parametrize("gradients", ["complex", "with zeros"])
@pytest.mark.parametrize("name", DIRECT)
def test_any_recipe_can_be_made_cautious(name, gradients):
    grads = GRADIENTS[gradients]
    start = START.astype(grads.dtype)
    plain = run(DIRECT[name], grads, start)
    ours = run(adamx.chain(DIRECT[name], adamx.cautious()), grads, start)
    assert_close(ours, shapes.cautious(plain, grads, 1e-3))


@pytest.mark.parametrize("gradients", ["complex", "with zeros"])
@pytest.mark.parametrize("name", DIRECT)
def test_any_recipe_can_take_the_sign_of_the_gradient(name, gradients):
    grads = GRADIENTS[gradients]
    start = START.astype(grads.dtype)
    plain = run(DIRECT[name], grads, start)
    ours = run(adamx.chain(DIRECT[name], adamx.align_with_gradient()), grads, start)
    expected = -np.abs(plain) * shapes.sign(grads)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("stage", [adamx.cautious, adamx.align_with_gradient])
def test_in_front_of_the_learning_rate_it_is_the_same(stage):
    rate = adamx.scale_by_learning_rate(0.01)
    adam = adamx.chain(adamx.scale_by_momentum(), adamx.scale_by_rms(), adamx.bias_correction())
    np.testing.assert_allclose(
        run(adamx.chain(adam, stage(), rate), REAL),
        run(adamx.chain(adam, rate, stage()), REAL),
        rtol=1e-6,
    )


def test_caution_in_front_of_the_learning_rate_trains():
    """m is 1 and 2 for g = 2 and 3: a direction that agrees with the gradient is kept."""
    opt = adamx.chain(
        adamx.scale_by_momentum(0.5), adamx.cautious(), adamx.scale_by_learning_rate(1.0)
    )
    grads = np.float32([[2.0, 2.0], [3.0, -0.5]])  # the second momentum is 2, 0.25
    np.testing.assert_array_equal(run(opt, grads), [[-1.0, -1.0], [-4.0, 0.0]])


def test_without_statistics_everything_agrees():
    """Until a statistic is taken the update is the gradient, in front of the rate and without."""
    grads = REAL[:5]
    for stage in (adamx.cautious(), adamx.align_with_gradient()):
        np.testing.assert_allclose(run(stage, grads), grads, rtol=1e-6)


def test_caution_does_not_hide_what_is_not_finite():
    opt = adamx.chain(adamx.sgd(0.1, 0.9), adamx.cautious())
    grads = jnp.array([jnp.inf, 1.0])
    with jax.debug_nans(False):
        state = opt.update(grads, opt.init(grads))[1]
        u, _ = opt.update(jnp.array([-jnp.inf, 1.0]), state)
    assert not np.isfinite(u[0])


@pytest.mark.parametrize("name", DIRECT)
def test_any_recipe_can_have_its_variance_reduced(name):
    start = START.astype(np.float32)
    reduced = run(adamx.reduce_variance(0.8, 0.3), REAL)
    previous = np.concatenate([np.zeros_like(REAL[:1]), REAL[:-1]])
    np.testing.assert_allclose(reduced, REAL + 1.2 * (REAL - previous), rtol=1e-4, atol=1e-6)
    assert_close(
        run(adamx.chain(adamx.reduce_variance(0.8, 0.3), DIRECT[name]), REAL, start),
        run(DIRECT[name], reduced, start),
    )


@pytest.mark.parametrize("name", DIRECT)
def test_a_trust_ratio_makes_any_recipe_layer_wise(name):
    """Behind the recipe's step: of each array it is r α ‖θ‖ long, whatever the recipe."""
    opt = adamx.chain(DIRECT[name], adamx.trust_ratio(0.02))
    params = {"a": jnp.asarray(START, jnp.float32), "b": jnp.full(3, 5.0), "zero": jnp.zeros(3)}
    grads = {"a": jnp.asarray(REAL[0]), "b": jnp.array([1.0, -2.0, 3.0]), "zero": jnp.ones(3)}
    updates, _ = opt.update(grads, opt.init(params), params)
    plain, _ = DIRECT[name].update(grads, DIRECT[name].init(params), params)
    for key in ("a", "b"):
        length = np.linalg.norm(np.ravel(params[key]))
        np.testing.assert_allclose(np.linalg.norm(np.ravel(updates[key])), 0.02 * length, rtol=1e-5)
        away = np.sum(updates[key] * plain[key]) / np.linalg.norm(np.ravel(plain[key]))
        np.testing.assert_allclose(away, 0.02 * length, rtol=1e-5)
    np.testing.assert_allclose(updates["zero"], plain["zero"])


@pytest.mark.parametrize("stage", [adamx.trust_ratio(), adamx.sign()])
def test_a_ratio_and_a_sign_forget_the_bias(stage):
    opt = adamx.chain(adamx.scale_by_momentum(0.9), stage, adamx.bias_correction())
    params = START.astype(np.float32)
    with pytest.raises(adamx.StageError, match="no bias to correct"):
        opt.update(REAL[0], opt.init(params), params)


def test_lion_with_one_rate_is_signum():
    start = START.astype(np.float32)
    np.testing.assert_array_equal(
        run(adamx.lion(0.01, 0.9, 0.9), REAL, start), run(adamx.signum(0.01, 0.9), REAL)
    )


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.0, 0.9), (0.9, 0.0), (0.99, 0.9)])
def test_the_two_rates_have_one_weight(b1, b2):
    """Corrected, the average of a constant is the constant."""
    for numbers in ((b1, b2), (jnp.float32(b1), jnp.float32(b2))):
        opt = adamx.chain(adamx.scale_by_two_rate_momentum(*numbers), adamx.bias_correction())
        np.testing.assert_allclose(run(opt, np.full((50, 1), 3.0, np.float32)), 3.0, rtol=2e-6)


def test_an_extrapolated_gradient_is_what_is_measured():
    """g + β₂ d: 1 and then 3 + ½·2 = 4; without memory v is its square."""
    opt = adamx.chain(
        adamx.scale_by_extrapolated_momentum(0.9, 0.5), adamx.scale_by_rms(0.0, eps=0.0)
    )
    state = opt.init(jnp.zeros(1))
    for g, ahead in ((1.0, 1.0), (3.0, 4.0)):
        _, state = opt.update(jnp.array([g]), state)
        np.testing.assert_allclose(state["scale_by_rms"]["nu"], ahead**2)


def test_the_proximal_decay_is_adamws_to_first_order():
    start = START.astype(np.float32)
    for rate in (1e-3, 1e-4):
        prox = run(adamx.proximal_step(rate, 0.5), REAL[:1], start)[0]
        plain = -rate * (REAL[0] + 0.5 * start)
        np.testing.assert_allclose(prox, plain, rtol=1.1 * rate * 0.5)
    u = run(adamx.proximal_step(10.0, 100.0), np.zeros((1, 4, 3), np.float32), start)[0]
    np.testing.assert_allclose(start + u, start / 1001, rtol=0.01, atol=1e-6)


def test_adan_without_decay_needs_no_parameters():
    opt = adamx.adan(0.1)
    u, _ = opt.update(jnp.ones(2), opt.init(jnp.ones(2)))
    np.testing.assert_allclose(u, -0.1, rtol=1e-6)


# Slow weights


@pytest.mark.parametrize("name", DIRECT)
def test_lookahead_wraps_any_chain(name):
    start = START.astype(np.float32)
    plain = run(DIRECT[name], REAL, start)
    ours = run(adamx.chain(DIRECT[name], adamx.lookahead(5, 0.5)), REAL, start)
    truth = shapes.lookahead(plain, START, 5, 0.5)
    path = START + np.cumsum(truth, axis=0)
    np.testing.assert_allclose(ours, truth, atol=2e-6 * np.abs(path).max(), rtol=1e-4)


def test_lookahead_all_the_way_changes_nothing():
    opt = DIRECT["adam"]
    assert_close(run(adamx.chain(opt, adamx.lookahead(2, 1.0)), REAL), run(opt, REAL))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_slow_weights_are_the_stored_parameters_when_they_meet(dtype):
    opt = adamx.chain(adamx.adam(0.01), adamx.lookahead(3, 0.5))
    params = jnp.asarray(START, dtype)
    state, meetings = opt.init(params), 0
    for t, grad in enumerate(REAL[:9], 1):
        updates, state = opt.update(jnp.asarray(grad, dtype), state, params)
        params = adamx.apply_updates(params, updates)
        slow = state["lookahead"]["slow"]
        assert slow.dtype == jnp.float32
        if t % 3 == 0:
            np.testing.assert_array_equal(slow, params.astype(jnp.float32))
            meetings += 1
    assert meetings == 3


def test_slow_weights_do_not_alias_the_parameters():
    params = jnp.ones(4)
    opt = adamx.chain(adamx.adam(0.1), adamx.lookahead())
    slow = opt.init(params)["lookahead"]["slow"]
    assert slow.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()


def test_lookahead_does_not_start_from_shapes():
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(adamx.StageError, match="eval_shape"):
        adamx.lookahead().init(shape)
    assert jax.eval_shape(adamx.lookahead().init, shape)["lookahead"]["slow"].shape == (2,)


def test_novograd_keeps_one_number_per_array():
    state = adamx.novograd(0.1).init({"w": jnp.ones((3, 4)), "c": jnp.ones(2, jnp.complex64)})
    nu = state["scale_by_norm"]["nu"]
    assert {k: (x.shape, x.dtype) for k, x in nu.items()} == {
        "w": ((), jnp.float32),
        "c": ((), jnp.float32),
    }
