"""The equations of docstrings, run as they stand, are what stages and recipes compute."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
import catalog
from adamx.core import stage
from catalog import run, x64
from docstring_equations import Program, blocks, letters

STEPS = 8
RNG = np.random.default_rng(5)
THETA = RNG.standard_normal((3, 4))
GRADS = 0.4 + RNG.standard_normal((STEPS, 3, 4))

NUMBERS = {
    "learning_rate": 0.05,
    "b1": 0.8,
    "b2": 0.9,
    "b3": 0.7,
    "rho": 0.8,
    "decay": 0.8,
    "momentum": 0.7,
    "eps": 0.02,
    "eps_hat": 0.03,
    "eps_root": 0.04,
    "weight_decay": 0.1,
    "gamma": 0.3,
    "alpha": 1.5,
    "momentum_decay": 0.4,
    "d0": 0.01,
    "d_coef": 0.9,
    "max_norm": 0.7,
    "clipping": 0.3,
    "threshold": 0.6,
    "factor": -1.7,
    "p": 3.0,
    "a": 1.3,
    "b": 0.6,
    "floor": 0.7,
    "trust_coefficient": 0.4,
    "exponent": 0.3,
    "min_scale": 0.1,
    "slow_step_size": 0.4,
    "sync_period": 3.0,
    "r": 0.5,
    "weight_lr_power": 1.0,
    "growth_rate": 1.2,
}
USUAL = {
    "learning_rate": "α",
    "b1": "β_1",
    "b2": "β_2",
    "b3": "β_3",
    "momentum": "μ",
    "a": "a",
    "b": "b",
    "p": "p",
    "r": "r",
}
AVERAGES = [
    r"m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t",
    r"v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2",
    r"w_t = 1 - \prod_i \beta_{2,i}",
    r"\eta_t = \alpha_t",
]

# Arguments beside the numbers above, and symbols that the list of arguments does not give.
ARGUMENTS = {
    "adamc": {"max_learning_rate": 0.08, "normalized": "*"},
    "add_corrected_weight_decay": {"max_learning_rate": 0.08, "learning_rate": 0.05},
    "estimate_distance": {"learning_rate": 0.05, "b1": 0.8, "b2": 0.9, "b3": 0.7},
    "adafactor": {"min_dim_size_to_factor": 2},
    "clip_by_norm_history": {"warmup_steps": 3, "max_norm": 6.0},
    "clip_by_value": {"max_value": 0.9},
    "clip_by_zscore": {"warmup_steps": 3, "max_norm": 9.0},
    "tail_average": {"start": 2, "every": 3},
    "scale_by_factored_rms": {"min_dim_size_to_factor": 2},
}
SYMBOLS = {
    "adamc": {"max_learning_rate": "α_max"},
    "add_corrected_weight_decay": {"max_learning_rate": "α_max"},
    "primal_average": {"interpolation": "μ_y", "decay": "μ_x"},
    "schedule_free": {"learning_rate": "γ"},
    "schedule_free_adamw": {"warmup_steps": "T_warmup"},
    "scale_by_factored_rms": {"b2_cap": "β_cap"},
}
# Factors that depend on the shape.
CONSTANTS = {
    "muon": {"s": np.sqrt(4 / 3)},
    "normuon": {"s": np.sqrt(4 / 3)},
    "power_ema": {"γ": 16.97219862},  # for std=0.05
    "scale_by_shape": {"s": np.sqrt(4 / 3)},
    "normalize_rows": {"n": 4.0},
    "normalize_to_rank": {"m": 3.0, "n": 4.0},
}
# These need what other stages leave, or are iterations; their equations are in those of a recipe.
NEED_OTHERS = {
    "orthogonalize": "muon",
    "bias_correction": "adam",
    "clip_by_relative_rms": "stableadamw",
    "rectify": "radam",
    "scale_by_distance": "prodigy",
}
# Equations of products of matrices, which the reader of docstrings doesn't know. Their oracles are
# in tests/reference_matrices.py.
OF_MATRICES = {*catalog.OF_MATRICES, *catalog.MATRIX_RECIPES} - {
    "adamuon",
    "graft_to_rms",
    "muon",
    "normalize_rows",
    "normalize_to_rank",
    "normuon",
    "scale_by_row_rms",
    "scale_by_shape",
    "scale_to_rms",
    "update_as_gradient",
}
# These need a path, or an argument of update(); their oracles are in tests/test_bounds.py.
OF_PATHS = {"qk_clip", "scale_by_hessian_diagonal", "scale_each"}
OF_STEPS = {"align_with_gradient", "cautious"}
OF_UNITS = {"adaptive_clip"}  # in a vector, there is one


@stage
def doubled():
    """A statistic in front of the stage, so that the update is not the gradient."""
    return lambda signal: signal.with_statistic(0.3 + 2 * signal.update)


def begun(make):
    """The equations of a stage or recipe, begun, and its arguments: those that they contain."""
    equations = Program(blocks(make), AVERAGES)
    symbols = USUAL | letters(make) | SYMBOLS.get(make.__name__, {})
    parameters = inspect.signature(make).parameters
    used = set(equations.names)
    used |= {"β_1"} if {"m", "^m"} & used else set()
    used |= {"β_2"} if {"v", "^v", "w", "s", "^s", "n", "^n"} & used else set()
    numbers = {k: x for k, x in NUMBERS.items() if k in parameters and symbols.get(k) in used}
    for k in [*numbers]:  # a default that the equations define
        needed = parameters[k].default is inspect.Parameter.empty
        if symbols[k] in equations.definitions and not needed:
            del numbers[k]
    given = numbers | ARGUMENTS.get(make.__name__, {})
    known = {k: x.default for k, x in parameters.items() if isinstance(x.default, (int, float))}
    numbers = {symbols[k]: float(x) for k, x in (known | given).items() if k in symbols}
    numbers |= CONSTANTS.get(make.__name__, {})
    equations.begin(numbers, THETA)
    return equations, make(**given)


@stage
def stepped():
    """A step, of which the sign is as after a learning rate."""
    return lambda signal: signal.with_step(signal.update)


def close(computed, expected):
    np.testing.assert_allclose(computed, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [x for x in adamx.recipes.__all__ if x not in OF_MATRICES])
def test_the_equations_of_a_recipe_are_what_it_computes(name):
    equations, opt = begun(getattr(adamx, name))
    with x64(), np.errstate(all="ignore"):
        updates = run(opt, jnp.asarray(GRADS), jnp.asarray(THETA))
        theta = THETA
        for t in range(STEPS):
            theta = theta + updates[t]
            expected, _ = equations.step(GRADS[t])
            close(theta, expected)


STAGES = [x for x in adamx.stages.__all__ if hasattr(getattr(adamx, x), "definition")]


@pytest.mark.parametrize(
    "name", [x for x in STAGES if x not in {*NEED_OTHERS, *OF_MATRICES, *OF_PATHS}]
)
def test_the_equations_of_a_stage_are_what_it_computes(name):
    equations, opt = begun(getattr(adamx, name))
    grads, theta = (x.reshape(*x.shape[:-2], -1) if name in OF_UNITS else x for x in (GRADS, THETA))
    equations.theta = equations.start = theta
    in_front = [adamx.chain(doubled(), stepped() if name in OF_STEPS else adamx.chain())]
    if assigns_gradient := any(symbol == "g" for symbol, _ in equations.arrows):
        in_front = []
    with x64(), np.errstate(all="ignore"):
        updates = run(adamx.chain(*in_front, opt), jnp.asarray(grads), jnp.asarray(theta))
        for t in range(STEPS):
            update = grads[t] if assigns_gradient else 0.3 + 2 * grads[t]
            _, expected = equations.step(grads[t], update)
            close(updates[t], expected)
