"""Adam's descendants, against the authors' own programs and each other."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
import reference
import reference_moments as oracle
from adamx.stages.rectification import rectification_clock
from catalog import one_of_each_program, run, slow_but, x64

pytestmark = pytest.mark.optimised

STEPS = 300
RNG = np.random.default_rng(11)
REAL = (np.logspace(-3, 2, 12) * (0.2 + RNG.standard_normal((STEPS, 12)))).astype(np.float32)
ZEROS = np.where(np.arange(STEPS)[:, None] % 3 == 0, REAL, 0).astype(np.float32)
THETA = np.linspace(-1, 1, 12)

# The authors' programs.

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "moments.json").read_text())["cases"]
RECORD = {case["id"]: case for case in RECORD}
PROBLEM = np.load(GOLDEN / "problem.npz")
BETAS = (0.9, 0.999)


def nadam_of_torch(lr=2e-3, betas=BETAS, eps=1e-8, momentum_decay=4e-3, weight_decay=None, **rest):
    assert weight_decay is None or rest == {"decoupled_weight_decay": True}
    weight_decay = 0.0 if weight_decay is None else weight_decay
    return adamx.nadamw(lr, *betas, eps, weight_decay, momentum_decay, constant_decay=True)


EQUAL = {
    "torch.optim.Adam": lambda amsgrad, lr=1e-3, betas=BETAS, eps=1e-8: adamx.amsgrad(
        lr, *betas, eps
    ),
    "torch.optim.NAdam": nadam_of_torch,
    "torch.optim.RAdam": lambda lr=1e-3, betas=BETAS, eps=1e-8: adamx.radam(lr, *betas, eps),
    "adabelief_pytorch.AdaBelief": lambda rectify, lr=1e-3, betas=BETAS, eps=1e-16: adamx.adabelief(
        lr, *betas, eps, rectify=rectify
    ),
    "laprop.LaProp": lambda lr=4e-4, betas=BETAS, eps=1e-15: adamx.laprop(lr, *betas, eps),
    "adam_atan2_pytorch.adam_atan2.AdamAtan2": lambda lr=1e-4, betas=(0.9, 0.99), **rest: (
        adamx.adam_atan2(lr, *betas, **rest)
    ),
    "adopt.ADOPT": lambda lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, **rest: adamx.adopt(
        lr, *betas, eps, clip="clip_lambda" not in rest
    ),
    "optimi.StableAdamW": lambda lr, betas=(0.9, 0.99), eps=1e-6, **rest: adamx.stableadamw(
        lr, *betas, eps, **rest
    ),
    "optax.nadam": lambda **kwargs: adamx.nadam(**kwargs, momentum_decay=math.inf),
    "optax.nadamw": lambda **kwargs: adamx.nadamw(**kwargs, momentum_decay=math.inf),
    "optax.adabelief": adamx.adabelief,
    "optax.yogi": lambda mean_0, **kwargs: adamx.yogi(**kwargs),
    "optax.contrib.adopt": adamx.adopt,
}

# What the authorities do differently; each has its test below.
NOT_FOLLOWED = {"torch_laprop_scheduled", "optax_yogi_default", "optax_yogi"}


def agree(case, updates, rtol):
    """Displacements agree to ``rtol`` of each coordinate's largest one; see test_golden."""
    recorded = np.load(GOLDEN / "moments.npz")
    for name, update in updates.items():
        params = recorded[f"{case['id']}.{name}"]
        truth = params - PROBLEM[f"params.{name}"]
        moved = np.cumsum(update.astype(np.float64), axis=0)[PROBLEM["saved_steps"] - 1]
        rounding = len(update) * np.finfo(np.float64).eps * np.abs(params).max(axis=0)
        allowed = rtol * np.abs(truth).max(axis=0) + rounding
        assert np.all(np.abs(moved - truth).max(axis=0) <= allowed), name


def problem(dtype):
    return tuple(
        {name: np.asarray(PROBLEM[f"{kind}.{name}"], dtype) for name in ("w", "b")}
        for kind in ("grads", "params")
    )


@pytest.mark.slow
@pytest.mark.parametrize("id_", sorted(set(RECORD) - NOT_FOLLOWED))
def test_follows_the_authors_program(id_):
    case = RECORD[id_]
    opt = EQUAL[case["authority"]](**case["kwargs"])
    agree(case, run(opt, *problem(np.float32)), rtol=1e-5)


def own_rounding(case):
    """What the authority itself rounds, relative to the displacement.

    torch's NAdam keeps the product of the μ in float32, and in RAdam two numbers of the size of
    2/(1−β₂) leave what is left of their difference.
    """
    if case["authority"] == "torch.optim.NAdam":
        return 2e-8
    return 1e-7 if case["id"] == "torch_radam_long_memory" else 1e-12


FOLLOWED = {id_: case for id_, case in RECORD.items() if id_ not in NOT_FOLLOWED}


@pytest.mark.parametrize("id_", slow_but(list(one_of_each_program(FOLLOWED))[::3], FOLLOWED))
def test_follows_it_in_double_precision(id_):
    case = RECORD[id_]
    with x64():
        opt = EQUAL[case["authority"]](**case["kwargs"])
        agree(case, run(opt, *problem(np.float64)), rtol=own_rounding(case))


def test_torchs_nadam_averages_by_beta_1_where_the_paper_averages_by_mu():
    """The recipe follows the paper; torch and Keras are its ``constant_decay``."""
    grads, _ = problem(np.float64)
    for id_, kwargs in {
        "torch_nadam_default": (2e-3, 0.9, 0.999, 1e-8, 0.004),
        "torch_nadam": (0.01, 0.8, 0.95, 1e-4, 0.02),
    }.items():
        of_torch = {k: oracle.nadam(g, *kwargs, constant_decay=True) for k, g in grads.items()}
        agree(RECORD[id_], of_torch, rtol=own_rounding(RECORD[id_]))
        of_paper = {k: oracle.nadam(g, *kwargs) for k, g in grads.items()}
        with pytest.raises(AssertionError):
            agree(RECORD[id_], of_paper, rtol=0.01)
        with x64():
            ours = run(adamx.nadam(*kwargs), grads)
        for k, truth in of_paper.items():
            np.testing.assert_allclose(ours[k], truth, rtol=1e-9, atol=1e-13)


def test_optaxs_yogi_starts_the_mean_where_it_starts_the_square():
    """The recipe follows the paper, where m starts at 0."""
    grads, _ = problem(np.float64)
    for id_, kwargs in {
        "optax_yogi_default": (0.01, 0.9, 0.999, 1e-3, 1e-6),
        "optax_yogi": (0.1, 0.8, 0.95, 1e-4, 1e-6),
    }.items():
        of_optax = {k: oracle.yogi(g, *kwargs, mean_0=1e-6) for k, g in grads.items()}
        agree(RECORD[id_], of_optax, rtol=1e-11)
        of_paper = {k: oracle.yogi(g, *kwargs) for k, g in grads.items()}
        with pytest.raises(AssertionError):
            agree(RECORD[id_], of_paper, rtol=1e-3)
        agree(RECORD[id_.replace("yogi", "yogi_mean_0")], of_paper, rtol=1e-11)


def test_laprops_program_corrects_by_the_average_of_the_learning_rate():
    """The recipe has the learning rate inside the average, and corrects by the weight."""
    grads, _ = problem(np.float64)
    numbers = 0.01 / (1 + 0.1 * np.arange(200)), 0.9, 0.999, 1e-15
    case = RECORD["torch_laprop_scheduled"]
    program = {k: oracle.laprop(g, *numbers, as_the_authors_code=True) for k, g in grads.items()}
    agree(case, program, rtol=1e-11)
    with pytest.raises(AssertionError):
        agree(case, {k: oracle.laprop(g, *numbers) for k, g in grads.items()}, rtol=0.03)
    with x64():
        ours = run(adamx.laprop(lambda t: 0.01 / (1 + 0.1 * t)), grads)
    for k, g in grads.items():
        np.testing.assert_allclose(ours[k], oracle.laprop(g, *numbers), rtol=1e-9, atol=1e-15)


# Algebra.

RATE = 1e-2


def test_adamw_without_decay_is_adam_to_the_last_bit():
    adam, adamw = adamx.adam(RATE), adamx.adamw(RATE, weight_decay=0.0)
    np.testing.assert_array_equal(run(adamw, REAL), run(adam, REAL))


def test_adamw_is_a_chain_with_one_more_stage():
    assert adamx.adamw(RATE, weight_decay=0.1) == adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_rms(),
        adamx.bias_correction(),
        adamx.add_decayed_weights(0.1),
        adamx.scale_by_learning_rate(RATE),
    )


GROWING = np.linspace(1, 3, 100, dtype=np.float32)[:, None] * np.float32([1, -2, 0.5])


def test_amsgrad_is_adam_as_long_as_gradients_grow():
    np.testing.assert_array_equal(run(adamx.amsgrad(RATE), GROWING), run(adamx.adam(RATE), GROWING))


def test_amsgrads_denominator_never_shrinks():
    grads = np.ones((50, 1), np.float32)
    grads[20:] = 1e-3
    u = run(adamx.scale_by_max_rms(0.9, 0.0), grads)
    np.testing.assert_allclose(u[20:, 0], 1e-3 / u[19, 0] ** -1, rtol=1e-6)


def test_amsgrad_and_yogi_of_the_papers_are_without_correction():
    momentum, rate = adamx.scale_by_momentum(0.8), adamx.scale_by_learning_rate(0.1)
    wide = REAL.astype(np.float64)
    amsgrad = adamx.chain(momentum, adamx.scale_by_max_rms(0.95, 0.0), rate)
    truth = oracle.amsgrad(wide, 0.1, 0.8, 0.95, 0.0, bias_correction=False)
    np.testing.assert_allclose(run(amsgrad, REAL), truth, rtol=1e-4, atol=1e-6)
    yogi = adamx.chain(momentum, adamx.scale_by_yogi(0.95, 0.0, eps_hat=1e-3), rate)
    truth = oracle.yogi(wide, 0.1, 0.8, 0.95, 1e-3, 1e-6, bias_correction=False)
    np.testing.assert_allclose(run(yogi, REAL), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", [adamx.nadam, adamx.laprop])
def test_without_momentum_the_place_of_momentum_is_of_no_matter(recipe):
    ours, adam = recipe(RATE, b1=0.0, eps=1e-8), adamx.adam(RATE, b1=0.0)
    np.testing.assert_allclose(run(ours, REAL), run(adam, REAL), rtol=5e-7)


def test_laprop_without_memory_of_squares_averages_signs():
    signs = adamx.chain(adamx.scale_by_momentum(), adamx.bias_correction())
    laprop = adamx.laprop(1.0, b2=0.0, eps=0.0)
    np.testing.assert_allclose(run(laprop, REAL), -run(signs, np.sign(REAL)), rtol=1e-5, atol=1e-7)


def test_radam_starts_as_gradient_descent_with_momentum():
    descent = adamx.chain(
        adamx.scale_by_momentum(), adamx.bias_correction(), adamx.scale_by_learning_rate(RATE)
    )
    np.testing.assert_array_equal(run(adamx.radam(RATE), REAL)[:5], run(descent, REAL)[:5])
    np.testing.assert_array_equal(run(adamx.radam(RATE, b2=0.6), REAL), run(descent, REAL))


def test_radam_ends_as_adam():
    adam = adamx.adam(RATE, b2=0.9, eps=0.0, eps_hat=1e-8)
    ours = run(adamx.radam(RATE, b2=0.9), REAL)
    np.testing.assert_allclose(ours[-50:], run(adam, REAL)[-50:], rtol=1e-6)


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.99999])
def test_the_length_of_the_average_is_that_of_the_paper(b2):
    """At every one of 50,000 float32 steps, though ρ∞ and what is taken from it are alike."""
    steps, clock = 50_000, rectification_clock(b2, 5.0)

    def step(value, _):
        value = clock.tick(value)
        return value, clock.read(value)

    r, reliable = jax.lax.scan(step, clock.start(), length=steps)[1]
    np.testing.assert_allclose(
        np.where(reliable, r, 0), oracle.rectification(b2, steps, 5.0), rtol=1e-6
    )


def test_the_two_ways_to_the_length_are_one():
    rho, longest = oracle.sma_length(0.99, 200)
    by_age, at_the_end = oracle.sma_length(np.full(200, 0.99), 200)
    np.testing.assert_allclose(by_age, rho, rtol=1e-9)
    np.testing.assert_allclose(at_the_end, longest)


def test_belief_measures_the_distance_from_whatever_flows_past():
    """Behind Nesterov's momentum it is the distance from that."""
    nesterov = adamx.scale_by_nesterov_momentum(0.8, math.inf)
    ahead = run(nesterov, REAL).astype(np.float64)
    square = reference.decaying_average((REAL - ahead) ** 2, 0.9)
    both = adamx.chain(nesterov, adamx.scale_by_belief(0.9, 1e-3, eps_root=0.0))
    w = reference.weight(np.full((STEPS, 1), 0.9))
    np.testing.assert_allclose(
        run(both, REAL), ahead / (np.sqrt(square) + 1e-3 * np.sqrt(w)), rtol=2e-5
    )


def test_adabelief_takes_long_steps_where_the_gradient_is_as_expected():
    steady = np.ones((300, 1), np.float32)
    noisy = steady * np.where(np.arange(300) % 2, 1.9, 0.1).astype(np.float32)[:, None]
    opt = adamx.adabelief(RATE, b2=0.9, eps=1e-8)
    ratio = run(opt, steady)[-1, 0] / run(opt, noisy)[-1, 0]
    assert ratio > 100


def test_far_from_the_right_angle_atan2_is_the_quotient():
    adam = adamx.adam(RATE, b2=0.99, eps=0.0)
    np.testing.assert_allclose(
        run(adamx.adam_atan2(RATE, a=1e4, b=1e4), REAL), run(adam, REAL), rtol=1e-5, atol=1e-9
    )


def test_no_gradients_give_adam_atan2_a_longer_step_than_a_right_angle():
    grads = np.zeros((500, 1), np.float32)
    grads[-1] = 1e10
    u = run(adamx.adam_atan2(1.0, a=1.0), grads)
    assert np.abs(u).max() <= math.pi / 2 and np.abs(u[-1, 0] + math.atan2(0.1, 0.1)) < 1e-2


@pytest.mark.parametrize(
    "opt",
    [
        adamx.adam_atan2(RATE),
        adamx.amsgrad(RATE, eps=0.0),
        adamx.laprop(RATE, eps=0.0),
        adamx.nadam(RATE, eps=0.0),
        adamx.adabelief(RATE, eps=0.0),
        adamx.yogi(RATE, eps=0.0, initial_accumulator_value=0.0),
        adamx.adopt(RATE, eps=0.0),
        adamx.stableadamw(RATE, eps=0.0, weight_decay=0.0),
    ],
    ids=lambda opt: list(opt.init(jnp.zeros(1)))[-1],
)
def test_rescaled_gradients_change_nothing(opt):
    for power in (-12, 7):
        rescaled = run(opt, ZEROS * np.float32(2.0) ** power)
        np.testing.assert_array_equal(rescaled, run(opt, ZEROS))


def test_yogi_forgets_a_large_gradient_more_slowly_than_adam():
    """By hand: v = 1 after g = 1; then g² = 0.01 takes (1−β₂) 0.01 from it, Adam (1−β₂) 0.99."""
    opt = adamx.scale_by_yogi(0.9, initial_accumulator_value=1.0)
    _, state = opt.update(jnp.array([0.1]), opt.init(jnp.zeros(1)))
    np.testing.assert_allclose(state["scale_by_yogi"]["nu"], 1 - 0.1 * 0.01, rtol=1e-6)
    _, state = opt.update(jnp.array([2.0]), state)
    np.testing.assert_allclose(state["scale_by_yogi"]["nu"], 0.999 + 0.1 * 4, rtol=1e-6)


def test_adopts_quotient_is_bounded_by_the_fourth_root_of_the_step():
    grads = np.full((20, 1), 1e3, np.float32)
    grads[0] = 1e-3
    opt = adamx.chain(adamx.scale_by_delayed_rms(0.999999, eps=0.0), adamx.growing_clip())
    u = run(opt, grads)[:, 0]
    assert u[0] == 0
    np.testing.assert_allclose(u[1], 1, rtol=1e-6)
    assert np.all(u <= np.arange(20) ** 0.25 * (1 + 1e-6))


def test_adopts_division_behind_the_momentum_divides_the_momentum():
    """The stage measures the gradient wherever it stands."""
    behind = adamx.chain(adamx.scale_by_momentum(0.8), adamx.scale_by_delayed_rms(0.9))
    mean = reference.decaying_average(REAL.astype(np.float64), 0.8)
    alone = run(adamx.scale_by_delayed_rms(0.9), REAL).astype(np.float64)
    expected = mean * alone / REAL
    np.testing.assert_allclose(run(behind, REAL)[1:], expected[1:], rtol=1e-4, atol=1e-6)


def test_stableadamw_is_adamw_where_gradients_are_as_expected():
    grads = np.ones((30, 4), np.float32)
    stable = run(adamx.stableadamw(RATE, b2=0.99, eps=1e-6), grads, THETA[:4].astype(np.float32))
    adamw = run(adamx.adamw(RATE, b2=0.99, eps=1e-6), grads, THETA[:4].astype(np.float32))
    np.testing.assert_allclose(stable, adamw, rtol=1e-5, atol=1e-9)


def clipped_update(threshold=1.0):
    return adamx.chain(
        adamx.scale_by_rms(0.9),
        adamx.bias_correction(),
        adamx.clip_by_relative_rms(1e-6, threshold),
    )


def test_update_clipping_reads_the_second_moment_and_sees_each_array_alone():
    """v̂ after nine gradients 1 and one of 100; where it clips, u/RMS with u = g/√v̂ is 1."""
    calm, spike = np.ones((10, 3), np.float32), np.ones((10, 3), np.float32)
    spike[-1] = 100.0
    updates = run(clipped_update(0.5), {"calm": calm, "spike": spike})
    np.testing.assert_allclose(updates["calm"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(updates["spike"][-1], 0.5, rtol=1e-5)
    w = 1 - 0.9**10
    v = (0.9 * (1 - 0.9**9) + 0.1 * 1e4) / w
    plain = run(clipped_update(1e9), {"spike": spike})["spike"][-1]
    np.testing.assert_allclose(plain, 100 / math.sqrt(v), rtol=1e-5)


def test_update_clipping_keeps_no_array_and_shrinks_all_that_stands_in_front():
    """StableAdamW's third array: v is Adam's. Weight decay in front of the clip is clipped too."""
    opt = adamx.stableadamw(RATE)
    assert set(opt.init(REAL[0])) == {"count", "scale_by_momentum", "scale_by_rms"}
    with pytest.raises(adamx.StageError, match="'second_moment', which scale_by_rms leaves"):
        run(adamx.chain(adamx.clip_by_relative_rms(), adamx.adam(RATE)), REAL)


def test_without_a_threshold_nothing_is_clipped():
    np.testing.assert_array_equal(
        run(clipped_update(math.inf), REAL), run(adamx.chain(*PLAIN_RMS), REAL)
    )


PLAIN_RMS = adamx.scale_by_rms(0.9), adamx.bias_correction()


def test_rectification_stands_directly_behind_the_division():
    late = adamx.chain(adamx.scale_by_rms(), adamx.bias_correction(), adamx.rectify())
    with pytest.raises(adamx.StageError, match=r"put bias_correction\(\) behind this stage"):
        run(late, REAL)
    with pytest.raises(adamx.StageError, match=r"b2 is the b2 of scale_by_rms.* pass b2="):
        run(adamx.chain(adamx.scale_by_momentum(), adamx.rectify()), REAL)
    with pytest.raises(adamx.StageError, match="'undivided', which scale_by_rms or"):
        run(adamx.chain(adamx.scale_by_momentum(), adamx.rectify(b2=0.9)), REAL)


def test_rectification_follows_the_rate_of_the_second_moment():
    """One β₂ is told: replacing it changes v and the point at which RAdam divides."""
    ours = adamx.radam(RATE, b2=0.999).replace(b2=0.9)
    np.testing.assert_array_equal(run(ours, REAL), run(adamx.radam(RATE, b2=0.9), REAL))
    belief = adamx.adabelief(RATE, b2=0.999, rectify=True).replace(b2=0.9)
    np.testing.assert_array_equal(
        run(belief, REAL), run(adamx.adabelief(RATE, b2=0.9, rectify=True), REAL)
    )


def test_a_threshold_of_rectification_is_at_least_4():
    with pytest.raises(ValueError, match=r"threshold must be a length ≥ 4, got 3\.0"):
        adamx.radam(RATE, threshold=3.0)
