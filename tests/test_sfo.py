"""The sum-of-functions optimiser: where it ends, how fast, and what a collapse keeps."""

import pickle

import numpy as np
import pytest
from scipy.optimize import minimize

pytest.importorskip("rich")

from examples.paper import sfo
from examples.paper.sfo import SFO, curved, least_curvature, within

pytestmark = pytest.mark.slow

PARTS, PARAMETERS = 6, 24


@pytest.fixture
def quadratics():
    """½ xᵀAx − bᵀx with curvatures from 0.01 to 1, each part another one; and the minimum."""
    random = np.random.default_rng(0)
    scales = np.logspace(0, -1, PARAMETERS)
    rows = random.standard_normal((PARTS, 50, PARAMETERS)) * scales
    a = np.einsum("prm,prn->pmn", rows, rows) / 50
    b = random.standard_normal((PARTS, PARAMETERS)) * scales
    return a, b, np.linalg.solve(a.sum(axis=0), b.sum(axis=0))


def value_and_grad_of(a, b):
    return lambda x, i: (x @ a[i] @ x / 2 - b[i] @ x, a[i] @ x - b[i])


def trained(value_and_grad, passes, start=None, parts=PARTS):
    optimiser = SFO(np.zeros(PARAMETERS) if start is None else start, parts)
    for _ in range(passes * parts):
        optimiser.step(value_and_grad)
    return optimiser


def test_a_sum_of_quadratics_is_minimised_exactly(quadratics):
    a, b, minimum = quadratics
    found = trained(value_and_grad_of(a, b), passes=60).params
    np.testing.assert_allclose(found, minimum, rtol=1e-7, atol=1e-7)


def test_it_needs_far_fewer_passes_than_gradient_descent(quadratics):
    """SGD with the best constant rate of a fine grid, after as many passes."""
    a, b, minimum = quadratics

    def sgd(rate, passes=20):
        x, random = np.zeros(PARAMETERS), np.random.default_rng(0)
        for _ in range(passes):
            for i in random.permutation(PARTS):
                x = x - rate * (a[i] @ x - b[i])
        return np.linalg.norm(x - minimum)

    best = min(sgd(rate) for rate in np.geomspace(1e-3, 1, 40))
    found = trained(value_and_grad_of(a, b), passes=20).params
    assert np.linalg.norm(found - minimum) < best / 100


def test_logistic_regression_ends_where_lbfgs_ends():
    random = np.random.default_rng(1)
    inputs = random.standard_normal((PARTS, 20, PARAMETERS))
    signs = np.sign(inputs[..., 0] + random.standard_normal((PARTS, 20)))

    def value_and_grad(x, i):
        margins = signs[i] * (inputs[i] @ x)
        slopes = -signs[i] / (1 + np.exp(margins))
        return np.log1p(np.exp(-margins)).sum() + x @ x / 4, slopes @ inputs[i] + x / 2

    def whole(x):
        values, gradients = zip(*(value_and_grad(x, i) for i in range(PARTS)), strict=True)
        return sum(values), sum(gradients)

    tight = {"ftol": 1e-15, "gtol": 1e-9}
    expected = minimize(whole, np.zeros(PARAMETERS), jac=True, method="L-BFGS-B", options=tight).x
    found = trained(value_and_grad, passes=60).params
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_collapse_keeps_every_model_in_the_span_that_stays():
    """Values, gradients and curvatures of the models at any point of the smaller subspace."""
    random = np.random.default_rng(2)
    size = 200
    curvatures = random.uniform(0.1, 1, (4, size))
    centres = random.standard_normal((4, size))

    def value_and_grad(x, i):
        return curvatures[i] @ (x - centres[i]) ** 2 / 2, curvatures[i] * (x - centres[i])

    optimiser = trained(value_and_grad, passes=3, start=np.zeros(size), parts=4)
    before = pickle.loads(pickle.dumps(optimiser))
    optimiser._collapse()
    assert optimiser.used < before.used
    basis = optimiser.basis[: optimiser.used]
    np.testing.assert_allclose(basis @ basis.T, np.eye(optimiser.used), atol=1e-12)
    np.testing.assert_allclose(optimiser.params, before.params, atol=1e-12)

    def model(of, i, x):
        quadratic, inside = of.models[i], of.basis @ (x - of.start)
        moved = inside - quadratic.at
        value = quadratic.value + quadratic.slope @ moved + moved @ quadratic.hessian @ moved / 2
        return value, of.basis.T @ (quadratic.slope + quadratic.hessian @ moved)

    for i in range(4):
        x = optimiser.start + random.standard_normal(optimiser.used) @ basis
        (value, gradient), (old_value, old_gradient) = model(optimiser, i, x), model(before, i, x)
        np.testing.assert_allclose(value, old_value, rtol=1e-10)
        # Gradients too, in the directions that are left.
        np.testing.assert_allclose(basis @ gradient, basis @ old_gradient, atol=1e-10)
        last = optimiser.start + optimiser.models[i].at @ optimiser.basis
        np.testing.assert_allclose(
            model(optimiser, i, last)[1], value_and_grad(last, i)[1], atol=1e-10
        )


def test_the_learnt_hessian_maps_the_last_step_to_the_last_change():
    """The secant equation, which BFGS solves for the newest pair, and for all if they fit."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((8, 5))
    true = rows.T @ rows
    steps = random.standard_normal((3, 5))
    model = sfo.Quadratic(0.0, np.zeros(5), np.zeros(5), steps, steps @ true)
    model.learn()
    np.testing.assert_allclose(model.hessian @ steps[-1], true @ steps[-1], rtol=1e-9)
    assert np.linalg.eigvalsh(model.hessian)[0] > 0


def test_unexplored_curvature_is_the_least_that_the_secants_allow():
    true = np.diag([1.0, 4.0, 9.0])
    steps = np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    np.testing.assert_allclose(least_curvature(steps, steps @ true), 1.0)
    np.testing.assert_allclose(least_curvature(steps[1:], steps[1:] @ true), np.sqrt(65 / 5))


def test_negative_curvature_is_left_out():
    steps = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    changes = np.array([[2.0, 0.0], [0.0, -1.0], [1.0, -1.0]])
    assert curved(steps, changes).tolist() == [True, False, False]


@pytest.mark.parametrize("radius", [0.01, 0.5, 100.0])
def test_the_minimum_within_a_radius_is_optimal(radius):
    """At the boundary d is parallel to −(slope + curvature d), inside it is Newton's step."""
    slope, curvature = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.1, 3.0])
    step = within(radius, slope, curvature)
    assert np.linalg.norm(step) <= radius
    if radius == 100.0:
        np.testing.assert_allclose(step, -slope / curvature)
    else:
        multipliers = -(slope + curvature * step) / step
        np.testing.assert_allclose(multipliers, multipliers[0], rtol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(step), radius, rtol=2e-3)


def test_a_step_into_nowhere_is_taken_back():
    """log(x) has no value left of zero: the bound on steps shrinks until they stay right of it."""
    centres = np.array([1.0, 2.0, 3.0])

    def value_and_grad(x, i):
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(centres[i] * x[0] - np.log(x[0])), centres[i] - 1 / x

    optimiser = SFO(np.array([20.0]), subfunctions=3, first_step=0.9)
    for _ in range(120):
        optimiser.step(value_and_grad)
    np.testing.assert_allclose(optimiser.params, [0.5], rtol=1e-6)  # 3 / (1 + 2 + 3)


def test_a_pickled_optimiser_goes_on_as_if_nothing_had_happened(quadratics):
    a, b, _ = quadratics
    given = value_and_grad_of(a, b)
    straight, halfway = trained(given, passes=6), trained(given, passes=3)
    resumed = pickle.loads(pickle.dumps(halfway))
    for _ in range(3 * PARTS):
        resumed.step(given)
    np.testing.assert_array_equal(resumed.params, straight.params)


def test_at_the_minimum_it_stays():
    optimiser = SFO(np.ones(3), subfunctions=2)
    for _ in range(6):
        optimiser.step(lambda x, i: (np.sum((x - 1) ** 2), 2 * (x - 1)))
    np.testing.assert_array_equal(optimiser.params, np.ones(3))


def test_what_it_cannot_start_from_is_said():
    with pytest.raises(ValueError, match="ravel_pytree"):
        SFO(np.zeros((2, 2)), 3)
    with pytest.raises(ValueError, match="subfunctions must be at least 1, got 0"):
        SFO(np.zeros(2), 0)
    with pytest.raises(ValueError, match="not finite at the current point"):
        SFO(np.zeros(2), 3).step(lambda x, i: (np.nan, x))
