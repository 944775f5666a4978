"""Clipping by the history of norms: the authors' runs, groups, and norms that are not finite."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from catalog import x64

GOLDEN = Path(__file__).parent / "golden"
CASES = {x["id"]: x for x in json.loads((GOLDEN / "clipping.json").read_text("utf-8"))["cases"]}
NAMES = {
    "alpha": "decay",
    "z_thresh": "threshold",
    "eps": "eps",
    "max_grad_norm": "max_norm",
    "warmup_steps": "warmup_steps",
}


def stepped(opt, sequence, params=None):
    """The updates of a sequence of gradients, and the last state."""
    state, found = opt.init(sequence[0] if params is None else params), []
    for grads in sequence:
        updates, state = opt.update(grads, state)
        found.append(updates)
    return found, state


@pytest.mark.parametrize("id_", CASES)
def test_zclip_is_what_its_authors_compute(id_):
    """Their quotient has the norm plus 1e-6 below, so a clipped norm of about 1 is off by 1e-8."""
    recorded = np.load(GOLDEN / "clipping.npz")
    given = {NAMES[k]: math.inf if x is None else x for k, x in CASES[id_]["kwargs"].items()}
    with x64():
        grads = {name: jnp.asarray(recorded[f"grads.{name}"]) for name in ("w", "b")}
        opt = adamx.clip_by_zscore(**given)
        ours, _ = stepped(opt, [{k: g[t] for k, g in grads.items()} for t in range(120)])
    for name in grads:
        truth, found = recorded[f"{id_}.{name}"], np.stack([u[name] for u in ours])
        np.testing.assert_allclose(found, truth, rtol=3e-8, atol=1e-12)
        assert np.any(truth != recorded[f"grads.{name}"])


HISTORIES = {
    "zscore": lambda **more: adamx.clip_by_zscore(**{"warmup_steps": 2, "max_norm": 9.0} | more),
    "history": lambda **more: adamx.clip_by_norm_history(
        **{"warmup_steps": 2, "max_norm": 9.0} | more
    ),
    "history of its own": lambda **more: adamx.clip_by_norm_history(warmup_steps=0),
}


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_a_norm_that_is_not_finite_is_seen_and_not_remembered(name, bad, at):
    opt = HISTORIES[name]()
    good = [jnp.array([3.0, x]) for x in (1.0, 2.0, 3.0, 1.5, 30.0, 2.5)]
    poisoned = [*good[:at], jnp.array([1.0, bad]), *good[at:]]
    # AdaGC counts steps, so its warm-up is one step of the two then.
    state = opt.init(good[0])
    plain, poisoned_state = state, state
    for t, g in enumerate(poisoned):
        u, after = opt.update(g, poisoned_state)
        if t == at:
            assert not np.isfinite(u).all()
            kept = jax.tree.leaves(poisoned_state[opt.links[0].name])
            now = jax.tree.leaves(after[opt.links[0].name])
            for x, y in zip(kept, now, strict=True):
                if x.shape == (4,):  # the last one is the bound of the step
                    np.testing.assert_array_equal(x[:3], y[:3])
                elif x.dtype != jnp.int32:
                    np.testing.assert_array_equal(x, y)
        else:
            assert np.isfinite(u).all()
        poisoned_state = after
    if name != "history":
        for g in good:
            expected, plain = opt.update(g, plain)
        np.testing.assert_array_equal(u, expected)


@pytest.mark.parametrize("name", HISTORIES)
def test_squares_may_overflow(name):
    """The norms are 5e30, whose squares no float32 holds, and then of 1."""
    opt = HISTORIES[name](max_norm=math.inf)
    large = jnp.array([3e30, 4e30])
    (*_, u), state = stepped(opt, [large, 1.5 * large, 1.2 * large, 40 * large])
    assert np.isfinite(u).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    np.testing.assert_allclose(u[0] / u[1], 0.75, rtol=1e-5)
    if name == "zscore":  # μ + k²σ/z with σ = 0.25 of the first norm
        assert 1 < float(jnp.linalg.norm(u / 5e30)) < 1.5
    (*_, u), state = stepped(opt, [large / 5e30, 1.2 * large / 5e30, 1.1 * large / 5e30, large])
    assert 0.5 < float(jnp.linalg.norm(u)) < 1.5


def test_a_finite_norm_above_the_largest_number_is_clipped():
    """Four elements of the largest number have twice that number as norm."""
    opt = adamx.clip_by_zscore(warmup_steps=2)
    ones = jnp.ones(4)
    (*_, u), state = stepped(opt, [ones, 1.2 * ones, ones, 3e38 * ones, ones])
    assert np.isfinite(u).all()
    assert np.isfinite(state["clip_by_zscore"]["history"]).all()


def test_each_group_has_its_norm_and_its_history():
    """The outlier of one group leaves the other alone."""
    grads = [{"a": jnp.array([x]), "b": jnp.array([y])} for x, y in ((1, 5), (1.2, 6), (9, 5.5))]
    grads = jax.tree.map(jnp.float32, grads)
    opt = adamx.partition(
        {
            "a": adamx.clip_by_zscore(warmup_steps=2, max_norm=10.0),
            "*": adamx.clip_by_zscore(warmup_steps=2, max_norm=10.0),
        }
    )
    (*_, u), state = stepped(opt, grads)
    np.testing.assert_allclose(u["b"], 5.5, rtol=1e-6)
    assert 1.1 < float(u["a"][0]) < 1.2
    norms = {name: float(x["history"][1]) for name, x in state.items() if name != "count"}
    assert len(norms) == 2
    one = adamx.clip_by_zscore(warmup_steps=2, max_norm=10.0)
    (*_, alone), _ = stepped(one, [{"a": g["a"]} for g in grads])
    np.testing.assert_array_equal(u["a"], alone["a"])


def test_a_parameter_without_a_gradient_has_no_norm():
    opt = adamx.clip_by_norm_history(warmup_steps=1, max_norm=100.0)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    state = opt.init(grads)
    _, state = opt.update(grads, state)
    _, state = opt.update({"a": jnp.array([6.0]), "b": None}, state)
    gamma = state["clip_by_norm_history"]["gamma"]
    np.testing.assert_allclose(gamma["b"], 4.0)
    np.testing.assert_allclose(gamma["a"], 0.98 * 3 + 0.02 * 1.05 * 3, rtol=1e-6)
    zscore = adamx.clip_by_zscore()
    state = zscore.init(grads)
    _, state = zscore.update(grads, state)
    _, after = zscore.update({"a": None, "b": None}, state)
    np.testing.assert_array_equal(
        after["clip_by_zscore"]["history"], state["clip_by_zscore"]["history"]
    )


def test_zero_gradients_are_no_history():
    """A layer behind weights of zero would be clipped to zero for ever."""
    opt = adamx.clip_by_norm_history(warmup_steps=2)
    zero, one = jnp.zeros(2), jnp.array([0.6, 0.8])
    found, _ = stepped(opt, [zero, zero, zero, one, 3 * one])
    np.testing.assert_allclose(found[3], one, rtol=1e-6)
    np.testing.assert_allclose(found[4], 1.05 * one, rtol=1e-6)


def test_clip_by_value_is_optaxs_and_keeps_phases():
    u = jnp.array([-3.0, 0.2, 1.5, jnp.nan, jnp.inf])
    ours, _ = adamx.clip_by_value(1.0).update(u, adamx.clip_by_value(1.0).init(u))
    theirs, _ = optax.clip(1.0).update(u, optax.clip(1.0).init(u))
    np.testing.assert_array_equal(ours, theirs)
    z = jnp.array([3 + 4j, 0.3 + 0.4j, 3e30 - 4e30j, 0j], jnp.complex64)
    opt = adamx.clip_by_value(2.0)
    clipped, _ = opt.update(z, opt.init(z))
    np.testing.assert_allclose(clipped, [1.2 + 1.6j, 0.3 + 0.4j, 1.2 - 1.6j, 0], rtol=1e-6)
    grown, _ = stepped(adamx.growing_clip(0.0), [z, z])
    np.testing.assert_allclose(grown[1][2], 0.6 - 0.8j, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adamx.clip_by_zscore(warmup_steps=1), "clip_by_zscore.*warmup_steps.* ≥ 2, got 1"),
        (lambda: adamx.clip_by_norm_history(warmup_steps=0.5), "warmup_steps must be a whole"),
        (lambda: adamx.clip_by_value(0.0), "max_value must be > 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jnp.ones(2))
