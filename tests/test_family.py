"""Every stage, and a chain of every kind, keeps the promises that `check_stage` asks for."""

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.testing import check_stage, conformance
from catalog import OPTIMISERS, REPRESENTATIVES, ROWS, STAGES, run, slow_but

# A promise about something that a stage does not have does not apply to it.
DO_NOT_APPLY = {
    "it has no slots",
    "its reach is the whole array",
    "its random bits depend on the position of an element",
    "its random bits differ between shards",
    "it depends on more than a shard",
}


# What is asked of one run, which is compiled once for all of them.
OF_A_RUN = {"state", "scan", "bare", "visible", "size", "nans", "value", "pickle", "config"}
OF_A_RUN |= {"equations"}


def checked(name, without=()):
    row = ROWS[name]
    random = np.random.default_rng(0)
    params = {"kernel": random.standard_normal(row.shape)}
    if not row.single:
        params["bias"] = random.standard_normal(5)
    return check_stage(
        row.make(),
        params=params,
        oracle=row.truth,
        derivatives=True,
        without={*row.without, *without},
    )


EVERYONE = [*STAGES, *REPRESENTATIVES]


@pytest.mark.parametrize("name", slow_but(list(STAGES)[::2], STAGES))
def test_it_keeps_the_promises_of_a_run(name):
    asked = OF_A_RUN - ROWS[name].without.keys()
    report = checked(name, conformance._PROMISES.keys() - OF_A_RUN)
    assert asked <= report.held.keys()


@pytest.mark.parametrize("name", slow_but(["adam"], EVERYONE))
def test_it_keeps_all_promises(name):
    row, report = ROWS[name], checked(name)
    reasons = {why for promise, why in report.unchecked.items() if promise not in row.without}
    assert reasons <= (DO_NOT_APPLY if row.numbers else {*DO_NOT_APPLY, conformance._NO_NUMBERS})
    assert {*report.held, *report.unchecked} == conformance._PROMISES.keys()


EPSILONS = {
    name: [key for key in row.numbers if "eps" in key.split("_")] for name, row in STAGES.items()
}
del EPSILONS["scale_by_adadelta"]  # its first step is √ε long, whose slope at 0 is infinite
del EPSILONS["kl_eigenbasis"], EPSILONS["scale_by_kronecker_roots"]  # their ε must be positive


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, keys in EPSILONS.items() if keys])
def test_without_any_epsilon_its_derivatives_are_finite_where_gradients_are_zero(name):
    """As 1e-30 is none when it is squared."""
    bare = ROWS[name].make(**dict.fromkeys(EPSILONS[name], 0.0))
    left_out = conformance._PROMISES.keys() - {"derivatives", "bare", "nans"}
    params = {"kernel": np.ones(ROWS[name].shape)} if ROWS[name].single else None
    report = check_stage(bare, params=params, derivatives=True, without=left_out)
    assert {"derivatives", "bare", "nans"} == report.held.keys()


def test_what_a_row_leaves_out_has_a_reason():
    for row in ROWS.values():
        assert set(row.without) <= conformance._PROMISES.keys()
        assert all(len(why) > 20 for why in row.without.values())


@pytest.mark.parametrize("name", slow_but(REPRESENTATIVES, OPTIMISERS))
def test_it_descends(name):
    """Behind ten gradients of one sign every element has moved against them."""
    grads = np.ones((10, 3, 4), np.float32)
    updates = run(OPTIMISERS[name](0.05), grads, np.full((3, 4), 0.1, np.float32))
    assert np.all(np.sum(updates, axis=0) < 0)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_an_infinite_gradient_shows(name):
    grads = {"w": jnp.ones((3, 4)).at[1, 2].set(jnp.inf)}
    params = {"w": jnp.full((3, 4), 0.5)}
    opt = OPTIMISERS[name](0.1)
    updates, state = opt.update(grads, opt.init(params), params)
    second, _ = opt.update(grads, state, params)
    seen = np.concatenate([np.ravel(updates["w"]), np.ravel(second["w"])])
    if name == "gated":
        assert not seen.any()
        assert state["skip_nonfinite"]["skipped"] == 1
    else:  # the sign of infinity is 1
        assert not np.isfinite(seen).all() or name == "lion"


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_empty_arrays_scalars_and_none_are_parameters_of_every_dtype(name):
    opt = OPTIMISERS[name](0.1)
    params = {
        "half": jnp.ones((3, 4), jnp.bfloat16),
        "scalar": jnp.ones((), jnp.float16),
        "empty": jnp.ones((0,), jnp.complex64),
        "none": None,
    }
    state = opt.init(params)
    grads = {k: None if x is None else jnp.zeros_like(x) for k, x in params.items()}
    updates, state = opt.update(grads, state, params)
    assert updates["none"] is None
    assert {k: u.dtype for k, u in updates.items() if u is not None} == {
        k: x.dtype for k, x in params.items() if x is not None
    }
    assert adamx.apply_updates(params, updates)["empty"].shape == (0,)
    assert all(
        np.isfinite(np.asarray(u, np.complex64)).all() for u in updates.values() if u is not None
    )
