"""The oracles themselves: against recorded runs of PyTorch and Optax, and against hand arithmetic.

The recordings are described in ``golden/make_golden.py``. For each authority there is one function
here with the authority's own arguments and defaults. It says in terms of the oracles what the
authority does; where that is not what the paper says, the function's name or docstring says so.
"""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import reference

GOLDEN = Path(__file__).parent / "golden"
DESCRIPTION = json.loads((GOLDEN / "cases.json").read_text())
PROBLEM = DESCRIPTION["problem"]
CASES = {case["id"]: case for case in DESCRIPTION["cases"]}
NAMES = list(PROBLEM["shapes"])


# What each authority does: (grads, params0, **its own arguments) -> updates


def torch_sgd(grads, params0, lr=1e-3, momentum=0.0, nesterov=False):
    return reference.sgd(grads, lr, momentum, nesterov)


def torch_adagrad(grads, params0, lr=1e-2, lr_decay=0.0, eps=1e-10, initial_accumulator_value=0.0):
    """lr_decay is not the paper's: a learning rate of lr / (1 + (t−1) lr_decay)."""
    rate = lr / (1 + np.arange(len(grads)) * lr_decay)
    return reference.adagrad(grads, rate, eps, initial_accumulator_value)


def torch_adadelta(grads, params0, lr=1.0, rho=0.9, eps=1e-6):
    return reference.adadelta(grads, lr, rho, eps)


def torch_rmsprop(grads, params0, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    return reference.rmsprop(grads, lr, alpha, eps, centered, momentum)


def torch_adam(grads, params0, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """weight_decay is an L2 penalty: λθ is added to the gradient, and so reaches m and v."""
    if not weight_decay:
        return reference.adam(grads, lr, *betas, eps)
    grads, params = grads.copy(), params0
    for t in range(len(grads)):  # each gradient depends on all earlier steps
        grads[t] += weight_decay * params
        updates = reference.adam(grads[: t + 1], lr, *betas, eps)
        params = params + updates[-1]
    return updates


def torch_adamw(grads, params0, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    """The decay is lr · weight_decay, where the paper has weight_decay alone."""
    return reference.adamw(grads, params0, lr, *betas, eps, weight_decay)


def torch_adamax(grads, params0, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
    """|g| + ε, where the paper has no ε."""
    return reference.adamax(grads, lr, *betas, eps)


def optax_sgd(grads, params0, learning_rate, momentum=0.0, nesterov=False):
    return reference.sgd(grads, learning_rate, momentum, nesterov)


def optax_adagrad(grads, params0, learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    """g / √(s + ε), with s starting at 0.1, where the paper has g / (√s + ε) and 0.

    Under the root ε is one more thing the sum starts with.
    """
    return reference.adagrad(
        grads, learning_rate, eps=0.0, initial_accumulator_value=initial_accumulator_value + eps
    )


def optax_adadelta(grads, params0, learning_rate, rho=0.9, eps=1e-6):
    return reference.adadelta(grads, learning_rate, rho, eps)


def optax_rmsprop(
    grads,
    params0,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    eps_in_sqrt=True,
    centered=False,
    momentum=0.0,
    nesterov=False,
    bias_correction=False,
):
    """By default g / √(v + ε), where PyTorch and Hinton's lecture have ε, if any, outside.

    (Graves's centered form does have it inside.) The learning rate is applied before the momentum,
    which shows only when it changes.
    """
    if bias_correction:
        assert not (eps_in_sqrt or centered or momentum)
        return reference.adam(grads, learning_rate, b1=0.0, b2=decay, eps=eps)
    if not eps_in_sqrt:
        return reference.rmsprop(grads, learning_rate, decay, eps, centered, momentum, nesterov)
    square = reference.decaying_average(grads**2, decay)
    if centered:
        square -= reference.decaying_average(grads, decay) ** 2
    return reference.sgd(grads / np.sqrt(square + eps), learning_rate, momentum, nesterov)


def optax_adam(grads, params0, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    return reference.adam(grads, learning_rate, b1, b2, eps, eps_root)


def optax_adamax(grads, params0, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """|g| + ε, where the paper has no ε."""
    return reference.adamax(grads, learning_rate, b1, b2, eps)


def optax_adamw(grads, params0, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    """The decay is learning_rate · weight_decay, where the paper has weight_decay alone."""
    return reference.adamw(grads, params0, learning_rate, b1, b2, eps, weight_decay)


AUTHORITIES = {
    "torch.optim.SGD": torch_sgd,
    "torch.optim.Adagrad": torch_adagrad,
    "torch.optim.Adadelta": torch_adadelta,
    "torch.optim.RMSprop": torch_rmsprop,
    "torch.optim.Adam": torch_adam,
    "torch.optim.AdamW": torch_adamw,
    "torch.optim.Adamax": torch_adamax,
    "optax.sgd": optax_sgd,
    "optax.adagrad": optax_adagrad,
    "optax.adadelta": optax_adadelta,
    "optax.rmsprop": optax_rmsprop,
    "optax.adam": optax_adam,
    "optax.adamax": optax_adamax,
    "optax.adamw": optax_adamw,
}


def load(file):
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def problem():
    return load("problem")


@pytest.fixture(scope="module")
def recorded():
    return load("torch") | load("optax")


def saved_path(params0, updates):
    path = params0 + np.cumsum(updates, axis=0)
    return path[np.array(PROBLEM["saved_steps"]) - 1]


def assert_same_path(actual, expected, rtol=1e-13):
    """Relative to the size of each coordinate over the run, since a path may cross zero."""
    size = np.abs(expected).max(axis=0)
    assert (np.abs(actual - expected) <= rtol * size).all()


@pytest.mark.parametrize("case", CASES)
def test_oracle_follows_the_authority(case, problem, recorded):
    authority = AUTHORITIES[CASES[case]["authority"]]
    for name in NAMES:
        params0 = problem[f"params.{name}"]
        updates = authority(problem[f"grads.{name}"], params0, **CASES[case]["kwargs"])
        assert_same_path(saved_path(params0, updates), recorded[f"{case}.{name}"])


def test_recordings_are_what_the_description_says(problem, recorded):
    assert set(recorded) == {f"{case}.{name}" for case in CASES for name in NAMES}
    assert {case["authority"] for case in CASES.values()} == set(AUTHORITIES)
    assert problem["saved_steps"].tolist() == PROBLEM["saved_steps"]
    for name, shape in PROBLEM["shapes"].items():
        assert problem[f"params.{name}"].shape == tuple(shape)
        assert problem[f"grads.{name}"].shape == (PROBLEM["steps"], *shape)
        assert (problem[f"grads.{name}"][PROBLEM["zero_step"] - 1] == 0).all()
    zero = PROBLEM["zero_coordinate"]
    assert (problem[f"grads.{zero['param']}"][:, *zero["index"]] == 0).all()


@pytest.mark.parametrize(
    ("case", "paper"),
    [
        ("optax_adagrad", lambda g: reference.adagrad(g, 0.1, 1e-4)),
        ("optax_rmsprop_default", lambda g: reference.rmsprop(g, 1e-3, 0.9, 1e-8)),
        ("optax_rmsprop_centered_default", lambda g: reference.rmsprop(g, 1e-3, 0.9, 1e-8, True)),
        ("torch_adam_l2", lambda g: reference.adam(g, 0.01, 0.9, 0.999, 1e-8)),
        ("torch_adagrad_lr_decay", lambda g: reference.adagrad(g, 0.1, 1e-10)),
        ("torch_adamax", lambda g: reference.adamax(g, 0.01, 0.8, 0.95, 0.0)),
    ],
)
def test_recordings_tell_the_authority_from_the_paper(case, paper, problem, recorded):
    """Each difference named above is far outside the tolerance it is checked with."""
    difference = 0.0
    for name in NAMES:
        params0 = problem[f"params.{name}"]
        path = saved_path(params0, paper(problem[f"grads.{name}"]))
        difference = max(difference, np.abs(path - recorded[f"{case}.{name}"]).max())
    assert difference > 1e-6


# By hand


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-14, atol=0)


def test_sgd_by_hand():
    grads = [1.0, 2.0, -4.0]
    close(reference.sgd(grads, 0.1), [-0.1, -0.2, 0.4])
    close(reference.sgd(grads, 0.1, momentum=0.5), [-0.1, -0.25, 0.275])
    close(reference.sgd(grads, 0.1, momentum=0.5, nesterov=True), [-0.15, -0.325, 0.5375])
    close(reference.sgd(grads, [0.1, 0.2, 0.3], momentum=[0.9, 0.5, 0.0]), [-0.1, -0.5, 1.2])


def test_adagrad_by_hand():
    close(reference.adagrad([3.0, 4.0], 0.1, eps=1.0), [-0.3 / 4, -0.4 / 6])
    close(reference.adagrad([3.0, 12.0], 0.1, 0.0, 16.0), [-0.3 / 5, -1.2 / 13])


def test_adadelta_by_hand():
    """The first step is √ε / √((1−ρ) g² + ε) · g."""
    first = math.sqrt(0.25 / (0.5 * 3.5 + 0.25)) * math.sqrt(3.5)
    mean_square = 0.5 * (0.5 * 3.5) + 0.5 * 1.0
    second = math.sqrt((0.5 * first**2 + 0.25) / (mean_square + 0.25))
    close(reference.adadelta([math.sqrt(3.5), 1.0], 2.0, 0.5, 0.25), [-2 * first, -2 * second])


def test_rmsprop_by_hand():
    close(reference.rmsprop([2.0, 4.0], 0.1, 0.75, eps=1.0), [-0.1, -0.4 / (math.sqrt(4.75) + 1)])
    # the variance of the first step is 1/2·g² − (1/2·g)² = (g/2)²
    close(reference.rmsprop([2.0], 0.1, 0.5, eps=1.0, centered=True), [-0.1])
    # momentum acts on the scaled gradients, here 1 and 1
    close(reference.rmsprop([1.0, 1.0], 0.1, 0.0, 0.0, momentum=0.5), [-0.1, -0.15])
    close(
        reference.rmsprop([1.0, 1.0], 0.1, 0.0, 0.0, momentum=0.5, nesterov=True), [-0.15, -0.175]
    )


def test_adam_by_hand():
    """β₁ = β₂ = ½, g = 1, 3: m̂ = 7/3 and v̂ = 19/3 after the second step."""
    close(reference.adam([1.0, 3.0], 0.1, 0.5, 0.5), [-0.1, -0.1 * (7 / 3) / math.sqrt(19 / 3)])
    close(reference.adam([2.0], 0.1, 0.9, 0.999, eps=0.5), [-0.2 / 2.5])
    close(reference.adam([2.0], 0.1, 0.9, 0.999, eps_root=5.0), [-0.2 / 3])
    # √w₂/w₁ · m/(√v + ε̂) with w₁ = 1/2, w₂ = 1/4, m = 1, √v = 1
    close(reference.adam([2.0], 0.1, 0.5, 0.75, eps_hat=1.0), [-0.05])
    close(reference.adam([2.0], 0.1, 0.5, 0.75, bias_correction=False), [-0.1])
    close(reference.adam([2.0], 0.1, 0.5, 0.75, eps_hat=1.0, bias_correction=False), [-0.05])


def test_adamax_by_hand():
    """n = 4, then max(½·4, 1) = 2, then max(½·2, 3) = 3."""
    step = reference.adamax([4.0, 1.0, -3.0], 1.0, 0.0, 0.5, 0.0)
    close(step, [-1.0, -0.5, 1.0])
    mean = [2.0 / 0.5, 1.5 / 0.75, -0.75 / 0.875]
    close(
        reference.adamax([4.0, 1.0, -3.0], 1.0, 0.5, 0.5, 0.0),
        [-mean[0] / 4, -mean[1] / 2, -mean[2] / 3],
    )
    close(reference.adamax([1.0], 1.0, 0.5, 0.5, 1.0), [-0.5])


def test_lp_norm_by_hand():
    """p = 3, β₂³ = ½, g = 2, 1: v = 4, then 2.5, and w = ½, then ¾."""
    b2 = 0.5 ** (1 / 3)
    close(reference.lp_norm([2.0, 1.0], 3, b2, 0.0), [1.0, (0.75 / 2.5) ** (1 / 3)])
    plain = reference.lp_norm([2.0, 1.0], 3, b2, 0.0, bias_correction=False)
    close(plain, [2 / 4 ** (1 / 3), 1 / 2.5 ** (1 / 3)])
    close(reference.lp_norm([2.0], 3, b2, 2.0), [0.5])


def test_adamw_by_hand():
    """The adaptive part of both steps is 1; θ goes 2 → 2 − 0.1 (1 + ½·2) = 1.8."""
    updates = reference.adamw([1.0, 1.0], 2.0, 0.1, 0.9, 0.999, 0.0, 0.5)
    close(updates, [-0.2, -0.1 * (1 + 0.5 * 1.8)])


def test_polyak_by_hand():
    close(reference.polyak([4.0, 1.0], 0.5), [4.0, (0.25 * 4 + 0.5) / 0.75])
    # d = 1 − 1/t is the arithmetic mean of all iterates
    close(reference.polyak([3.0, 5.0, 10.0], [0, 1 / 2, 2 / 3]), [3.0, 4.0, 6.0])


# Properties


ORACLES = {
    "sgd": lambda g, h: reference.sgd(g, h(0.1), h(0.9)),
    "sgd_nesterov": lambda g, h: reference.sgd(g, h(0.1), h(0.9), nesterov=True),
    "adagrad": lambda g, h: reference.adagrad(g, h(0.1), h(1e-3)),
    "adadelta": lambda g, h: reference.adadelta(g, h(1.0), h(0.9), h(1e-6)),
    "rmsprop": lambda g, h: reference.rmsprop(g, h(0.1), h(0.9), h(1e-3), momentum=h(0.5)),
    "rmsprop_centered": lambda g, h: reference.rmsprop(g, h(0.1), h(0.9), h(1e-3), True),
    "adam": lambda g, h: reference.adam(g, h(0.1), h(0.9), h(0.99), h(1e-3), h(1e-4), h(1e-5)),
    "adamax": lambda g, h: reference.adamax(g, h(0.1), h(0.9), h(0.99), h(1e-3)),
    "lp_norm": lambda g, h: reference.lp_norm(g, h(4.0), h(0.9), h(1e-3)),
    "polyak": lambda g, h: reference.polyak(g, h(0.9)),
}


@pytest.fixture
def grads():
    return np.random.default_rng(0).normal(size=(40, 2, 3))


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)
class TestEveryOracle:
    def test_a_constant_schedule_is_the_constant(self, oracle, grads):
        scheduled = oracle(grads, lambda value: np.full(len(grads), value))
        np.testing.assert_array_equal(scheduled, oracle(grads, float))

    def test_coordinates_are_independent(self, oracle, grads):
        np.testing.assert_array_equal(oracle(grads, float)[:, 0, 1], oracle(grads[:, 0, 1], float))

    def test_later_gradients_change_nothing(self, oracle, grads):
        np.testing.assert_array_equal(oracle(grads, float)[:7], oracle(grads[:7], float))

    def test_turning_complex_gradients_turns_the_steps(self, oracle, grads):
        turn = np.exp(0.7j)
        turned = oracle(turn * grads, float)
        assert turned.dtype == np.complex128
        np.testing.assert_allclose(turned, turn * oracle(grads, float), rtol=1e-11)

    def test_everything_is_double(self, oracle, grads):
        single = grads.astype(np.float32)
        assert oracle(single, float).dtype == np.float64
        np.testing.assert_array_equal(
            oracle(single, float), oracle(single.astype(np.float64), float)
        )

    def test_a_coordinate_that_never_moves_stays(self, oracle, grads):
        grads[:, 0, 0] = 0
        steps = oracle(grads, lambda value: 0.0 if value < 1e-2 else value)  # every ε is 0
        assert np.isfinite(steps).all()
        assert (steps[:, 0, 0] == 0).all()


def test_weight_is_exact():
    betas = [0.9, 0.999, 0.99999, 1 - 2.0**-40]
    for beta in betas:
        for steps in (1, 2, 100):
            exact = 1 - Fraction(beta) ** steps
            assert reference.weight(np.full(steps, beta))[-1] == pytest.approx(
                float(exact), rel=1e-14
            )
    exact = 1 - math.prod(map(Fraction, betas))
    assert reference.weight(np.array(betas))[-1] == pytest.approx(float(exact), rel=1e-14)


def test_weight_after_forgetting_everything():
    np.testing.assert_array_equal(reference.weight(np.array([0.9, 0.0, 0.9])) == 1, [0, 1, 1])


def test_a_constant_gradient_has_adam_step_by_the_learning_rate():
    """m̂ = g and v̂ = g² exactly, whatever the schedules of β."""
    rng = np.random.default_rng(1)
    b1, b2 = rng.uniform(0, 1, (2, 50))
    updates = reference.adam(np.full(50, -3.0), 0.1, b1, b2)
    np.testing.assert_allclose(updates, 0.1, rtol=1e-12)


def test_eps_hat_is_eps_seen_before_the_bias_correction(grads):
    """Section 2: ε̂ = ε √(1 − β₂ᵗ)."""
    w2 = reference.weight(np.full(len(grads), 0.99))
    algorithm1 = reference.adam(grads, 0.1, 0.9, 0.99, eps=0.1)
    reordered = reference.adam(grads, 0.1, 0.9, 0.99, eps_hat=0.1 * np.sqrt(w2))
    np.testing.assert_allclose(reordered, algorithm1, rtol=1e-13)


def test_the_l2_norm_is_adam_without_momentum(grads):
    for corrected in (True, False):
        norm = reference.lp_norm(grads, 2, 0.9, 1e-2, bias_correction=corrected)
        adam = reference.adam(grads, -1.0, 0.0, 0.81, 1e-2, bias_correction=corrected)
        np.testing.assert_allclose(norm, adam, rtol=1e-12)


def test_the_lp_norm_tends_to_the_infinity_norm(grads):
    """v̂^(1/p) lies between n (1 − β₂ᵖ)^(1/p) and n (t / w)^(1/p)."""
    grads *= np.logspace(-3, 3, 40)[:, None, None]  # |g|ᵖ itself would overflow
    limit = reference.adamax(grads, -1.0, 0.0, 0.9, 0.0)
    errors = [np.abs(reference.lp_norm(grads, p, 0.9, 0.0) / limit - 1).max() for p in (2, 20, 200)]
    assert errors[2] < 0.03 and errors[0] > 3 * errors[1] > 9 * errors[2]


def test_without_decay_adamw_is_adam(grads):
    adam = reference.adam(grads, 0.1, 0.9, 0.99, 1e-3)
    adamw = reference.adamw(grads, np.ones((2, 3)), 0.1, 0.9, 0.99, 1e-3, 0.0)
    np.testing.assert_array_equal(adamw, adam)


def test_decoupled_decay_alone_is_geometric():
    updates = reference.decoupled_weight_decay(np.zeros((3, 2)), [1.0, -2.0], 0.5, 0.5)
    path = np.array([1.0, -2.0]) + np.cumsum(updates, axis=0)
    close(path, np.outer([0.75, 0.75**2, 0.75**3], [1.0, -2.0]))
