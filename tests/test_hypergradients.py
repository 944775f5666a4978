"""Derivatives of the loss after training by every number of the optimiser, and by the start.

The oracle are differences in float64: Richardson's extrapolation of difference quotients, over
many step sizes, with the one that is known best and its error. Everything of one optimiser is one
program, which is compiled once for all problems.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import adamx
from catalog import OPTIMISERS, REPRESENTATIVES, slow_but, x64

STEPS = 7  # of which RAdam divides in the last two, and Lookahead goes back in the fifth
SHAPES = {"w": (3, 2), "b": (2,)}


def lp_adam(rate, p):
    return adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_lp_norm(p, b2=0.9),
        adamx.bias_correction(),
        adamx.scale_by_learning_rate(rate),
    )


# Where the recipe's own number sits on a kink or a jump of the algorithm, another one.
OFF_THE_KINK = {
    # The warm-up's end, min(1, t/3) at t = 3.
    "schedule_free_adamw": lambda rate: adamx.schedule_free_adamw(rate, warmup_steps=3.5),
    # The first update of an array that is not factored has the RMS 1 at which it would be clipped,
    "adafactor": lambda rate: adamx.adafactor(
        rate, min_dim_size_to_factor=2, clipping_threshold=0.9
    ),
    # and so has StableAdamW's first gradient.
    "stableadamw": lambda rate: OPTIMISERS["stableadamw"](rate).replace(threshold=0.9),
    # As long as gradients are 0, no decay is no step, and any decay a step of one size.
    "lamb": lambda rate: adamx.lamb(rate, weight_decay=0.1).replace(
        {"trust_ratio.weight_decay": 0.1}
    ),
}

# Stages that no recipe has, and numbers at which a formula could go wrong.
OTHERS = {
    "scale": lambda rate: adamx.chain(adamx.scale(0.5), adamx.adam(rate)),
    "clip_by_norm": lambda rate: adamx.chain(adamx.clip_by_norm(0.5), adamx.adam(rate)),
    "cautious": lambda rate: adamx.chain(adamx.adam(rate), adamx.cautious()),
    "align_with_gradient": lambda rate: adamx.chain(adamx.adam(rate), adamx.align_with_gradient()),
    "adam_without_memory": lambda rate: adamx.adam(rate, b1=0.0, b2=0.0),
    "adam_without_eps": lambda rate: adamx.adam(rate, eps=0.0),
    "nadam_constant": lambda rate: adamx.nadam(rate, momentum_decay=math.inf),
    "lp_below_1": lambda rate: lp_adam(rate, 0.5),
    "lp_infinite": lambda rate: lp_adam(rate, math.inf),
    "schedule_free_roots": lambda rate: adamx.schedule_free_adamw(rate, r=0.5, weight_lr_power=0.5),
    "prodigy_limited": lambda rate: adamx.prodigy(
        rate, d0=1e-2, growth_rate=1.5, use_bias_correction=True
    ),
    "prodigy_safeguarded": lambda rate: adamx.prodigy(rate, d0=1e-2, safeguard_warmup=True),
    "adafactor_with_momentum": lambda rate: adamx.adafactor(
        rate, b1=0.9, b2_cap=0.5, min_dim_size_to_factor=2, clipping_threshold=0.9
    ),
}

# Of single stages, and with any gradients, `check_stage` asks it.
TABLE = {name: OPTIMISERS[name] for name in REPRESENTATIVES} | OFF_THE_KINK | OTHERS

# Numbers that only choose: the derivative is 0, and a difference may meet the jump.
CHOICES = {"lookahead_of_adam": "sync_period"}

# Some of the gradients are 0: of no parameter, of some in every step, of all in the first steps, of
# all in every step.
PROBLEMS = {
    "none": lambda curvature: curvature,
    "some": lambda curvature: curvature * np.array([0.0, 1.0]),
    "first": lambda curvature: np.where(np.arange(STEPS) < 3, 0, curvature.T).T,
    "all": lambda curvature: 0 * curvature,
}


def problem(zero, dtype=np.float64):
    """Curvature and place of a minimum for every step."""
    random = np.random.default_rng(0)
    curvature, minimum = (
        {name: draw((STEPS, *shape)) for name, shape in SHAPES.items()}
        for draw in (lambda s: random.uniform(0.5, 1.5, s), lambda s: random.normal(0, 0.3, s))
    )
    curvature = {name: PROBLEMS[zero](values) for name, values in curvature.items()}
    return jax.tree.map(lambda x: x.astype(dtype), (curvature, minimum))


def loss(params, curvature, minimum):
    """A square and a fourth power of the distance to the minimum."""
    square = {
        name: (theta.real - minimum[name]) ** 2 + theta.imag**2 for name, theta in params.items()
    }
    return sum(jnp.sum(curvature[name] * (s / 2 + s * s / 10)) for name, s in square.items())


def trained(opt, params, steps):
    """Take the steps; what would be evaluated afterwards."""

    def step(carry, now):
        params, state = carry
        gradient = jax.tree.map(jnp.conj, jax.grad(loss)(params, *now))
        updates, state = opt.update(gradient, state, params)
        return (adamx.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, opt.init(params)), steps)
    if "polyak_ema" in state:
        return adamx.polyak_params(state)
    return adamx.eval_params(state, params) if "schedule_free" in state else params


def training(opt, dtype=jnp.float64, *, complex_params=False):
    """Numbers and parameters as one vector, their names, and the final loss as its function."""
    random = np.random.default_rng(1)
    parts = 2 if complex_params else 1
    start = {name: random.normal(size=(parts, *shape)) for name, shape in SHAPES.items()}
    point = jax.tree.map(lambda number: jnp.asarray(number, dtype), (opt, start))
    x, unravel = ravel_pytree(point)
    names = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(point)[0]
        for _ in range(leaf.size)
    ]

    def final_loss(x, steps):
        opt, start = unravel(x)
        params = {k: jax.lax.complex(*v) if complex_params else v[0] for k, v in start.items()}
        last = jax.tree.map(lambda at_steps: 0 * at_steps[0] + 1, steps)
        return loss(trained(opt, params, steps), *last)

    return x, names, final_loss


QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
SIZES = 0.25 ** np.arange(2, 21)  # from 0.06 to 1e-12: an ε may matter where the gradient is tiny
OFFSETS = np.array([-1.0, 0.0, 1.0, 2.0])


def nearby(x):
    """x with each number moved by each step size to either side, and twice to the right."""
    return np.asarray(x) + np.einsum("ij,k,l->iklj", np.eye(x.size), SIZES, OFFSETS)


def differences(x, values):
    """The best known difference quotient of each number, and its error.

    From x to the right for what can't be negative and is (nearly) 0, else to both sides. The
    quotients' errors are of second order in the step size, the extrapolations' of third at least.
    """
    left, here, right, far = np.moveaxis(np.asarray(values), -1, 0)
    one_sided = ((np.asarray(x) >= 0) & (np.asarray(x) <= 1e-3))[:, None]
    rises = np.where(one_sided, 4 * right - 3 * here - far, right - left) / (2 * SIZES)
    extrapolated = (16 * rises[:, 1:] - rises[:, :-1]) / 15
    changes = np.abs(np.diff(extrapolated))
    errors = changes + 1e-15 * np.abs(here[:, 2:]) / SIZES[2:]
    best = np.where(np.isfinite(errors), errors, np.inf).argmin(1)
    rows = np.arange(len(best))
    return extrapolated[rows, best + 1], errors[rows, best]


@functools.cache
def derivatives(name, complex_params=False):
    """(x, names, program): the losses nearby, and the derivatives in both modes."""
    x, names, final_loss = training(TABLE[name](0.1), complex_params=complex_params)

    @functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
    def program(x, points, steps):
        of = functools.partial(final_loss, steps=steps)
        losses = jax.vmap(of)(points.reshape(-1, x.size)).reshape(points.shape[:-1])
        return losses, jax.grad(of)(x), jax.jacfwd(of)(x)

    return x, names, program


def check(name, complex_params=False):
    with x64():
        x, names, program = derivatives(name, complex_params)
        for zero in PROBLEMS:
            losses, reverse, forward = program(x, nearby(x), problem(zero))
            expected, error = differences(x, losses)
            largest = np.abs(reverse).max()
            # Another order of the same sums.
            np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-11 * largest)
            for i, number in enumerate(names):
                if CHOICES.get(name, "/") in number:
                    assert reverse[i] == 0
                    continue
                # How well the difference is known; worst by an ε far below the gradients.
                assert error[i] <= 1e-4 * abs(expected[i]) + 1e-9 * largest, (zero, number)
                tolerance = 1e-6 * abs(expected[i]) + 1e-10 * largest + error[i]
                assert abs(reverse[i] - expected[i]) <= tolerance, (
                    f"zero gradients: {zero}; by {number}: {reverse[i]}, "
                    f"by differences {expected[i]} ± {error[i]}"
                )


@pytest.mark.parametrize("name", slow_but(["adam", "clipped", "adam_without_eps"], TABLE))
def test_hypergradients_are_the_slopes_of_the_final_loss(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["align_with_gradient", "clipped", "lion"])
def test_hypergradients_of_complex_parameters_are_slopes_too(name):
    check(name, complex_params=True)


# Those with the smallest ε, powers, infinities, and a β of 0. Single stages: `test_family`.
IN_SINGLE_PRECISION = [
    "adabelief",
    "adafactor",
    "adam_root",
    "adam_without_memory",
    "clipped",
    "lamb",
    "laprop",
    "lp_below_1",
    "prodigy",
    "schedule_free_adamw",
]


@pytest.mark.parametrize("name", slow_but(["adam_root", "clipped"], IN_SINGLE_PRECISION))
def test_hypergradients_are_finite_in_single_precision_where_gradients_are_zero(name):
    """At the recipe's own numbers, on a kink or not, and with every ε 0: 1e-30, squared, is."""
    make = OPTIMISERS.get(name) or OTHERS[name]
    x, names, final_loss = training(make(0.1), jnp.float32)
    slopes = jax.jit(jax.grad(final_loss), compiler_options=QUICKLY_COMPILED)
    bare = jnp.where(jnp.array(["eps" in number for number in names]), 0, x)
    for zero in PROBLEMS:
        for point in (x, bare):
            found = slopes(point, problem(zero, np.float32))
            wrong = [n for n, slope in zip(names, found, strict=True) if not np.isfinite(slope)]
            assert not wrong, zero


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_hypergradients_in_single_precision_are_those_in_double(name):
    with x64():
        x, _, final_loss = training(TABLE[name](0.1))
        exact = np.asarray(jax.jit(jax.grad(final_loss))(x, problem("none")))
    x, _, final_loss = training(TABLE[name](0.1), jnp.float32)
    slopes = jax.jit(jax.grad(final_loss))(x, problem("none", np.float32))
    # 1 − b2 = 1e-3 is itself right to 6e-5 as a float32 array.
    np.testing.assert_allclose(slopes, exact, rtol=2e-4, atol=1e-5 * np.abs(exact).max())


# At a gradient of 0 -------------------------------------------------------------------------------

EPS = 1e-3

# The slope −du/dg of the first step with rate 1, by hand: of g/(|g| + ε), g/√(g² + ε), …
AT_ZERO = {
    "adam": (adamx.adam(1.0, eps=EPS), 1 / EPS),
    "inside the root": (adamx.adam(1.0, eps=0.0, eps_root=EPS), EPS**-0.5),
    "adamax": (adamx.adamax(1.0, eps=EPS), 1 / EPS),
    "adagrad": (adamx.adagrad(1.0, eps=EPS), 1 / EPS),
    "rmsprop": (adamx.rmsprop(1.0, eps=EPS), 1 / EPS),
    "lp norm": (lp_adam(1.0, 3.0).replace(eps=EPS), 1 / EPS),
    "clipped": (adamx.chain(adamx.clip_by_norm(0.5), adamx.sgd(1.0)), 1.0),
    "clipped together": (adamx.chain(adamx.clip_by_global_norm(0.5), adamx.sgd(1.0)), 1.0),
    "clipped adaptively": (adamx.chain(adamx.adaptive_clip(0.1), adamx.sgd(1.0)), 1.0),
    "never clipped": (adamx.chain(adamx.clip_by_norm(math.inf), adamx.sgd(1.0)), 1.0),
}


@pytest.mark.parametrize("name", AT_ZERO)
def test_slope_of_the_first_step_at_a_gradient_of_zero(name):
    """A training may start at a minimum of its first batch: the gradient is 0, its slope is not."""
    opt, slope = AT_ZERO[name]
    params = jnp.ones(2)
    step = jax.jit(jax.jacobian(lambda g: opt.update(g, opt.init(params), params)[0]))
    np.testing.assert_allclose(step(jnp.zeros(2)), -slope * np.eye(2), rtol=1e-5)


# Long trainings, schedules, batches ---------------------------------------------------------------


def on_a_parabola(opt, steps, *, checkpoint=False):
    """A parameter that starts at 1 and descends θ²/2."""

    def step(carry, _):
        theta, state = carry
        update, state = opt.update(theta, state, theta)
        return (adamx.apply_updates(theta, update), state), None

    theta = jnp.ones(())
    step = jax.checkpoint(step) if checkpoint else step
    return jax.lax.scan(step, (theta, opt.init(theta)), length=steps)[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradient_through_200_steps_of_a_schedule_that_holds_a_tracer(checkpoint):
    """θ = Π (1 − α sₜ), so dθ/dα = −θ Σ sₜ/(1 − α sₜ); for several α at once."""

    def final(rate):
        opt = adamx.sgd(optax.cosine_decay_schedule(rate, 100))
        return on_a_parabola(opt, 200, checkpoint=checkpoint)

    with x64():
        rates = np.array([0.01, 0.05, 0.1])
        slopes = jax.jit(jax.vmap(jax.grad(final)))(rates)
    shape = (1 + np.cos(np.pi * np.minimum(np.arange(200), 100) / 100)) / 2
    left = 1 - rates[:, None] * shape
    expected = -left.prod(1) * (shape / left).sum(1)
    np.testing.assert_allclose(slopes, expected, rtol=1e-12)


def test_gradient_through_200_checkpointed_steps_of_adam():
    """With and without checkpoints, and by differences."""

    def final(numbers, checkpoint):
        rate, b1, b2 = numbers
        return on_a_parabola(adamx.adam(rate, b1, b2, eps=0.1), 200, checkpoint=checkpoint)

    with x64():
        numbers = np.array([0.003, 0.8, 0.95])
        evaluate = jax.jit(jax.vmap(functools.partial(final, checkpoint=False)))
        losses = evaluate(nearby(numbers).reshape(-1, 3)).reshape(3, len(SIZES), -1)
        expected, error = differences(np.full(3, 0.5), losses)  # to both sides
        slopes = {c: jax.jit(jax.grad(final), static_argnums=1)(numbers, c) for c in (False, True)}
    np.testing.assert_allclose(slopes[True], slopes[False], rtol=1e-10)
    np.testing.assert_allclose(slopes[True], expected, rtol=1e-7)
    assert (error <= 1e-7 * np.abs(expected)).all()


def test_gradient_of_a_decay_schedule_that_holds_a_tracer():
    def final(b2):
        return on_a_parabola(adamx.adam(0.01, b2=lambda t: b2 + 0.1 / (t + 2), eps=0.1), 20)

    with x64():
        x = np.array([0.8])
        losses = jax.jit(jax.vmap(final))(nearby(x).reshape(-1)).reshape(1, len(SIZES), -1)
        expected, _ = differences(x, losses)
        slope = jax.jit(jax.grad(final))(0.8)
    np.testing.assert_allclose(slope, expected[0], rtol=1e-7)
