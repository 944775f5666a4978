"""What keeps parameters in bounds: QK-Clip, factors of each parameter, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import qk_clip, scale_each
from catalog import x64

HEADS, SIZE, WIDTH = 3, 4, 5
DRAW = np.random.default_rng(4)


def attention():
    """Kernels [embed, heads, head] of queries, keys and values of two layers."""
    names = ("query", "key", "value")
    return {
        f"block_{i}": {
            "attention": {name: DRAW.standard_normal((WIDTH, HEADS, SIZE)) for name in names}
        }
        for i in range(2)
    }


def largest_logits(kernels, inputs):
    """Of every head, in NumPy."""
    queries, keys = (np.einsum("te,ehd->thd", inputs, kernels[x]) for x in ("query", "key"))
    return np.abs(np.einsum("thd,shd->hts", queries, keys)).max((1, 2))


def test_the_largest_logits_are_the_threshold_afterwards():
    """Of the heads that exceed it; all other kernels do not change at all."""
    with x64():
        params, inputs = attention(), DRAW.standard_normal((7, WIDTH))
        before = {
            name: largest_logits(block["attention"], inputs) for name, block in params.items()
        }
        threshold = float(np.median(np.concatenate([*before.values()])))
        opt = adamx.where(("query", "key"), qk_clip(threshold))
        given = {name: {"attention": jnp.asarray(x)} for name, x in before.items()}
        zeros = jax.tree.map(np.zeros_like, params)
        updates, _ = opt.update(zeros, opt.init(params), params, max_logits=given)
        after = jax.tree.map(np.add, params, updates)
    for name, block in after.items():
        found = largest_logits(block["attention"], inputs)
        np.testing.assert_allclose(found, np.minimum(before[name], threshold), 1e-12)
        np.testing.assert_array_equal(
            block["attention"]["value"], params[name]["attention"]["value"]
        )


def test_it_shrinks_the_parameter_behind_the_step():
    """θ' = γᵖ (θ + u), in NumPy."""
    theta, grads = DRAW.standard_normal((2, WIDTH, HEADS, SIZE))
    logits = np.array([50.0, 200.0, 400.0])
    gamma = np.minimum(1, 100 / logits)[None, :, None]
    with x64():
        opt = adamx.chain(adamx.sgd(0.1), qk_clip(100.0, 0.3))
        u, _ = opt.update(grads, opt.init(theta), theta, max_logits=logits)
        np.testing.assert_allclose(theta + u, gamma**0.3 * (theta - 0.1 * grads), 1e-12)


def test_projections_may_be_side_by_side_in_one_kernel():
    theta = DRAW.standard_normal((WIDTH, 3 * HEADS * SIZE)).astype(np.float32)
    logits = jnp.array([50.0, 200.0, 400.0])
    fused, apart = qk_clip(power=(0.5, 0.5, 0.0), axis=-1), qk_clip(axis=-1)
    run = jax.jit(lambda opt, x: opt.update(0 * x, opt.init(x), x, max_logits=logits)[0])
    query, key, value = np.split(theta, 3, 1)
    expected = np.concatenate([run(apart, query), run(apart, key), 0 * value], 1)
    np.testing.assert_allclose(run(fused, theta), expected, 1e-6)


def test_stacked_layers_have_their_own_logits():
    theta = jnp.ones((2, WIDTH, HEADS, SIZE))
    logits = jnp.array([[50.0, 50.0, 400.0], [400.0, 50.0, 50.0]])
    opt = adamx.per_layer("layers", qk_clip())
    params = {"layers": {"query": theta}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = opt.update(zeros, opt.init(params), params, max_logits={"layers": logits})
    factors = (theta + updates["layers"]["query"])[:, 0, :, 0]
    np.testing.assert_allclose(factors, [[1, 1, 0.5], [0.5, 1, 1]])


def test_a_logit_that_is_not_finite_changes_nothing():
    theta = jnp.ones((1, 3, 1))
    opt = qk_clip()
    logits = jnp.array([jnp.nan, jnp.inf, 400.0])
    u, _ = opt.update(0 * theta, opt.init(theta), theta, max_logits=logits)
    np.testing.assert_array_equal((theta + u).ravel(), [1, 1, 0.5])


def test_logits_may_be_integers_and_what_flax_has_stored():
    theta = {"block": {"query": jnp.ones((1, 2, 1))}}
    opt = qk_clip()
    zeros = jax.tree.map(jnp.zeros_like, theta)
    for given in (
        jnp.array([50, 400]),
        {"block": {"max_logits": (jnp.array([50.0, 400.0]),), "other": (jnp.ones(3),)}},
        {"max_logits": (jnp.array([50.0, 400.0]),)},
    ):
        updates, _ = opt.update(zeros, opt.init(theta), theta, max_logits=given)
        np.testing.assert_array_equal((1 + updates["block"]["query"]).ravel(), [1, 0.5])


def test_adamc_with_a_constant_rate_is_adamw():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    for opt, same in (
        (adamx.adamc(0.2, weight_decay=0.1), adamx.adamw(0.2, weight_decay=0.1)),
        (adamx.adamc(0.1).replace(learning_rate=0.0), adamx.adamw(0.0)),
    ):
        updates, _ = opt.update(params, opt.init(params), params)
        expected, _ = same.update(params, same.init(params), params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_inside_jit_the_logits_are_data():
    opt = adamx.chain(adamx.adamw(0.1), adamx.where("query", qk_clip()))
    params = {"query": jnp.ones((2, 2, 2)), "head": jnp.ones((2, 2))}
    step = jax.jit(lambda s, x: opt.update(params, s, params, max_logits=x))
    state = opt.init(params)
    low, _ = step(state, {"query": jnp.array([1.0, 1.0])})
    high, _ = step(state, {"query": jnp.array([1.0, 400.0])})
    assert step._cache_size() == 1
    np.testing.assert_array_equal(low["head"], high["head"])
    assert not np.allclose(low["query"], high["query"])


KERNEL = jnp.ones((2, 2, 2))
CALLS = {
    "no logits": (qk_clip, {}, "without max_logits.*update\\(grads, state, params, max_logits=…"),
    "another path": (qk_clip, {"max_logits": {"kee": jnp.ones(2)}}, "none of its patterns"),
    "two paths": (
        qk_clip,
        {"max_logits": {"query": jnp.ones(2), "block": jnp.ones(2)}},
        "'block' and 'query' of its patterns|'query' and 'block' of its patterns",
    ),
    "too many heads": (qk_clip, {"max_logits": jnp.ones(3)}, "3 heads .*do not divide"),
    "no heads": (qk_clip, {"max_logits": jnp.zeros(0)}, "0 heads"),
    "logits of each position": (
        qk_clip,
        {"max_logits": jnp.ones((2, 5))},
        r"shape \(2, 5\), where one number for each head",
    ),
    "no such axis": (
        lambda: qk_clip(axis=3),
        {"max_logits": jnp.ones(2)},
        "axis 3 is none of an array of shape",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_update_refuses(name):
    make, given, message = CALLS[name]
    opt, params = make(), {"block": {"query": KERNEL}}
    with pytest.raises(adamx.StageError, match=message):
        opt.update(params, opt.init(params), params, **given)


MADE = {
    "a power of text": (lambda: qk_clip(power="half"), "power must be a number or a tuple"),
    "no power": (lambda: qk_clip(power=()), "power must be a number or a tuple"),
    "an axis that is none": (lambda: qk_clip(axis=0.5), "axis must be a whole number"),
    "a threshold of 0": (lambda: qk_clip(0.0), "threshold must be > 0"),
    "a factor that is no function": (lambda: scale_each(0.5), "factor must be a function"),
    "a factor of one argument": (lambda: scale_each(lambda path: 1.0), "factor is called as"),
    "an array as a factor": (lambda: scale_each(lambda path, shape: jnp.ones(2)), "a number is"),
    "an infinite factor": (lambda: scale_each(lambda path, shape: np.inf), "is not finite"),
    "a factor that fails": (
        lambda: scale_each(lambda path, shape: 1 / shape.shape[7]),
        "block.*query.*factor raised IndexError",
    ),
    "a schedule without its largest value": (
        lambda: adamx.adamc(lambda t: 0.1),
        "max_learning_rate is needed",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_refused_before_the_first_step(name):
    make, message = MADE[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make().init({"block": {"query": KERNEL}})


def test_factors_may_depend_on_path_and_shape():
    """Also of parameters without a gradient, behind statistics, and in a basis."""
    seen = []

    def mup(path, shape):
        seen.append((path, shape.shape))
        return 1 / shape.shape[0]

    params = {"a": jnp.ones((4, 2)), "b": [jnp.ones(2), None]}
    opt = adamx.chain(adamx.sign(), scale_each(mup))
    updates, _ = opt.update(params, opt.init(params), params)
    np.testing.assert_array_equal(updates["a"], np.full((4, 2), 0.25))
    np.testing.assert_array_equal(updates["b"][0], np.full(2, 0.5))
    assert set(seen) == {("a", (4, 2)), ("b/0", (2,))}
    inside = adamx.in_basis(adamx.low_rank(1), opt)
    updates, _ = inside.update(params, inside.init(params), params)
    np.testing.assert_allclose(updates["b"][0], np.full(2, 0.5))
    none = {**params, "a": None}
    assert opt.update(none, opt.init(params), params)[0]["a"] is None


def test_many_parameters_are_compiled_in_parts_only_if_no_stage_knows_paths():
    params = {f"p{i}": jnp.ones(2) for i in range(300)}
    opt = scale_each(lambda path, shape: float(path[1:]))
    updates, _ = opt.update(params, opt.init(params))
    np.testing.assert_array_equal(updates["p299"], [299, 299])
