"""Trajectories of PyTorch, Optax and Keras, recorded in double precision, followed by adamx."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from catalog import RECIPES, ROWS, one_of_each_program, slow_but, x64
from make_calls import equal_calls

pytestmark = pytest.mark.optimised

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "cases.json").read_text())
CASES = {case["id"]: case for case in RECORD["cases"]}
NAMES = list(RECORD["problem"]["shapes"])
# Followed here, and in the tests of that name.
RECORDED = ("cases", "clipping", "matrices", "moments", "shapes", "structure")
CALLS = json.loads((GOLDEN / "calls.json").read_text(encoding="utf-8"))
NUMBERS = CALLS["numbers"]
F64 = jnp.float64


def l2_adam(rate, b1, b2, eps, weight_decay):
    return adamx.chain(adamx.add_decayed_weights(weight_decay), adamx.adam(rate, b1, b2, eps))


# The same calls in adamx, with the authority's defaults where they are not adamx's.
EQUAL = {
    "torch.optim.SGD": lambda lr=1e-3, momentum=None, nesterov=False: adamx.sgd(
        lr, momentum, nesterov
    ),
    "torch.optim.Adagrad": lambda lr=1e-2, lr_decay=0.0, eps=1e-10, **rest: adamx.adagrad(
        (lambda t: lr / (1 + t * lr_decay)) if lr_decay else lr, eps, **rest
    ),
    "torch.optim.Adadelta": lambda lr=1.0, rho=0.9, eps=1e-6: adamx.adadelta(lr, rho, eps),
    "torch.optim.RMSprop": lambda lr=1e-2, alpha=0.99, eps=1e-8, **rest: adamx.rmsprop(
        lr, alpha, eps, **rest
    ),
    "torch.optim.Adam": lambda lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0: l2_adam(
        lr, *betas, eps, weight_decay
    ),
    "torch.optim.AdamW": lambda lr=1e-3, betas=(0.9, 0.999), eps=1e-8, **rest: adamx.adamw(
        lr, *betas, eps, **rest
    ),
    "torch.optim.Adamax": lambda lr=2e-3, betas=(0.9, 0.999), eps=1e-8: adamx.adamax(
        lr, *betas, eps
    ),
    "optax.sgd": adamx.sgd,
    "optax.adagrad": lambda learning_rate, initial_accumulator_value=0.1, eps=1e-7: adamx.adagrad(
        learning_rate, 0.0, initial_accumulator_value=initial_accumulator_value + eps
    ),
    "optax.adadelta": adamx.adadelta,
    "optax.rmsprop": lambda learning_rate, eps_in_sqrt=True, bias_correction=False, **rest: (
        adamx.adam(learning_rate, b1=0.0, b2=rest["decay"])
        if bias_correction
        else adamx.rmsprop(learning_rate, **rest)
    ),
    "optax.adam": adamx.adam,
    "optax.adamax": adamx.adamax,
    "optax.adamw": lambda weight_decay=1e-4, **rest: adamx.adamw(weight_decay=weight_decay, **rest),
}


def has_eps_inside_uncorrected_root(case):
    """Optax's √(v + ε) without correction: adamx has ε beside that root, as torch does."""
    kwargs = case["kwargs"]
    return case["authority"] == "optax.rmsprop" and kwargs.get("eps_in_sqrt", True)


FOLLOWED = [id_ for id_, case in CASES.items() if not has_eps_inside_uncorrected_root(case)]


def displacement(opt, dtype):
    """θ − θ₀ after each saved step; the updates are summed in double precision."""
    problem = np.load(GOLDEN / "problem.npz")
    grads = {name: jnp.asarray(problem[f"grads.{name}"], dtype) for name in NAMES}
    start = {name: np.asarray(problem[f"params.{name}"], np.float64) for name in NAMES}
    moved = {name: np.zeros_like(start[name]) for name in NAMES}
    update = jax.jit(opt.update)
    state, saved = opt.init(jax.tree.map(lambda x: jnp.asarray(x, dtype), start)), []
    for t in range(RECORD["problem"]["steps"]):
        params = {name: jnp.asarray(start[name] + moved[name], dtype) for name in NAMES}
        updates, state = update({name: g[t] for name, g in grads.items()}, state, params)
        moved = {name: moved[name] + np.asarray(updates[name], np.float64) for name in NAMES}
        if t + 1 in RECORD["problem"]["saved_steps"]:
            saved.append(moved)
    return {name: np.stack([moved[name] for moved in saved]) for name in NAMES}


def check(case, dtype, rtol):
    ours = displacement(EQUAL[case["authority"]](**case["kwargs"]), dtype)
    compare(ours, case["authority"].split(".")[0], case["id"], rtol)


def compare(ours, file, id_, rtol):
    """Displacements agree to ``rtol`` of each coordinate's largest one.

    The recorded parameter, about 1, was itself rounded to double precision in every step.
    """
    recorded, start = np.load(GOLDEN / f"{file}.npz"), np.load(GOLDEN / "problem.npz")
    for name in NAMES:
        params = recorded[f"{id_}.{name}"]
        truth = params - start[f"params.{name}"]
        rounding = (
            RECORD["problem"]["steps"] * np.finfo(np.float64).eps * np.abs(params).max(axis=0)
        )
        allowed = rtol * np.abs(truth).max(axis=0) + rounding
        assert np.all(np.abs(ours[name] - truth).max(axis=0) <= allowed), name


@pytest.mark.slow
@pytest.mark.parametrize("id_", FOLLOWED)
def test_follows_the_recorded_trajectory(id_):
    check(CASES[id_], jnp.float32, rtol=1e-5)


QUICK = one_of_each_program({id_: CASES[id_] for id_ in FOLLOWED})


@pytest.mark.parametrize("id_", slow_but(list(QUICK)[::3], FOLLOWED))
def test_follows_it_to_the_last_digits_in_double_precision(id_):
    with x64():
        check(CASES[id_], jnp.float64, rtol=1e-12)


def test_the_cases_that_are_not_followed_are_the_known_ones():
    assert set(CASES) - set(FOLLOWED) == {"optax_rmsprop_default", "optax_rmsprop_centered_default"}


def test_every_recording_is_that_of_a_row_and_every_recipe_has_one():
    files = [json.loads((GOLDEN / f"{name}.json").read_text("utf-8")) for name in RECORDED]
    recorded = {case["authority"] for file in files for case in file["cases"]}
    assert recorded == {program for row in ROWS.values() for program in row.golden}
    assert all(row.golden for row in RECIPES.values())


@pytest.mark.parametrize("row", equal_calls(), ids=lambda row: row["adamx"])
def test_the_calls_that_the_documentation_calls_equal_are(row):
    """Those of Optax are made here, those of PyTorch and Keras as they were recorded."""
    call, *others = row.values()
    assert others, "a row of adamx alone"
    with x64(), jax.numpy_dtype_promotion("standard"):  # as Optax needs it
        known = {"optax": optax, "math": math, **vars(adamx), **NUMBERS}
        ours = displacement(eval(call, known), F64)
        for library, other in list(row.items())[1:]:
            if library == "Optax":
                theirs = displacement(eval(other, {**vars(optax), **NUMBERS}), F64)
                for name in NAMES:
                    largest = np.abs(theirs[name]).max(axis=0)
                    assert np.all(np.abs(ours[name] - theirs[name]).max(axis=0) <= 1e-12 * largest)
            else:
                compare(ours, "calls", CALLS["calls"].index([library, other]), rtol=1e-12)
