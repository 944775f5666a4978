"""Stages for some of the parameters: who is meant, and that nobody else is touched."""

import pickle

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import StageError
from adamx.wrappers.selection import selects
from catalog import OPTIMISERS, REPRESENTATIVES, run, slow_but

pytestmark = pytest.mark.sampled

PARAMS = {
    "embedding": jnp.full((3, 2), 0.5),
    "layers": [
        {"kernel": jnp.full((2, 2), 1.0), "bias": jnp.full(2, -0.5)},
        {"kernel": jnp.full((2, 2), -1.0), "bias": jnp.full(2, 0.3)},
    ],
}
RANDOM = np.random.default_rng(0)
GRADS = jax.tree.map(lambda x: jnp.asarray(RANDOM.normal(size=(4, *x.shape)), jnp.float32), PARAMS)
FIRST = jax.tree.map(lambda g: g[0], GRADS)


def paths(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


# Who is meant


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("kernel", ["a/kernel", "kernel", "kernel/value"]),
        ("a", ["a/kernel", "a/bias", "b/a/scale"]),
        ("/a", ["a/kernel", "a/bias"]),
        ("a/kernel", ["a/kernel"]),
        ("*/kernel", ["a/kernel"]),
        ("k*", ["a/kernel", "kernel", "kernel/value"]),
        ("?/?", ["b/a/scale"]),
        ("b/**/scale", ["b/a/scale", "b/scale"]),
        ("b/*/scale", ["b/a/scale"]),
        ("!kernel", ["a/bias", "b/a/scale", "b/scale", ""]),
        ("*", ["a/kernel", "a/bias", "b/a/scale", "b/scale", "kernel", "kernel/value", ""]),
        (("bias", "scale"), ["a/bias", "b/a/scale", "b/scale"]),
        (lambda path, shape: len(path) == 6, ["a/bias", "kernel"]),
        ("ker", []),
        ("[ab]", []),
    ],
)
def test_a_pattern_means_a_run_of_whole_segments_and_all_below(pattern, meant):
    every = ["a/kernel", "a/bias", "b/a/scale", "b/scale", "kernel", "kernel/value", ""]
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    assert [path for path in every if selects(pattern, (path, shape))] == meant


def test_a_predicate_sees_path_and_shape():
    seen = []
    opt = adamx.where(lambda path, x: seen.append((path, x.shape)) or x.ndim > 1, adamx.sgd(1.0))
    updates, _ = opt.update(FIRST, opt.init(PARAMS))
    assert ("layers/0/bias", (2,)) in seen
    expected = jax.tree.map(lambda g: -g if g.ndim > 1 else g, FIRST)
    chex.assert_trees_all_equal(updates, expected)


def test_a_parameter_alone_has_the_empty_path():
    opt = adamx.partition({"*": adamx.sgd(1.0)})
    np.testing.assert_array_equal(opt.update(jnp.ones(1), opt.init(jnp.ones(1)))[0], [-1.0])


@pytest.mark.parametrize("selector", [3, "", (), ("kernel", 1), None])
def test_what_is_no_selector_is_an_error(selector):
    with pytest.raises(TypeError, match="a selector is a pattern"):
        adamx.where(selector, adamx.sgd(0.1))
    with pytest.raises(TypeError, match="a selector is a pattern"):
        adamx.partition({selector: adamx.sgd(0.1)})


def test_a_pattern_that_means_nothing_is_an_error():
    for opt in (
        adamx.where("kernl", adamx.sgd(0.1)),
        adamx.partition({"kernl": adamx.sgd(0.1), "*": adamx.sgd(0.1)}),
    ):
        with pytest.raises(
            StageError, match=r"pattern 'kernl' matches no parameter.*layers/0/kernel"
        ):
            opt.init(PARAMS)
        with pytest.raises(StageError, match="pattern 'kernl' matches no parameter"):
            opt.update(FIRST, {"count": jnp.zeros((), jnp.int32)})


def meant(pattern, tree=PARAMS):
    opt = adamx.where(pattern, adamx.scale(2.0))
    return [path for path, chain in adamx.describe_partition(opt, tree).items() if chain.links]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers[0]", ["layers/0/bias", "layers/0/kernel"]),
        ("/layers[1]/kernel", ["layers/1/kernel"]),
        ("layers[1].kernel", ["layers/1/kernel"]),
        ("layers[*]", None),
        ("layers[0-1]", None),
        (".layers[0].bias", ["layers/0/bias"]),
        ("['layers'][0]['bias']", ["layers/0/bias"]),
        ('["layers"][0]', ["layers/0/bias", "layers/0/kernel"]),
        ("!layers[0]", ["embedding", "layers/1/bias", "layers/1/kernel"]),
        ("layers[2]", None),
    ],
)
def test_brackets_are_an_index(pattern, expected):
    if expected is None:
        with pytest.raises(StageError, match="matches no parameter"):
            meant(pattern)
    else:
        assert meant(pattern) == expected


def test_every_path_that_an_error_shows_is_a_pattern():
    model = {"layers": [eqx.nn.Linear(2, 2, key=jax.random.key(0))], "a/b.c": {"d[0]": jnp.ones(1)}}
    for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]:
        simple = jax.tree_util.keystr(path, simple=True, separator="/")
        assert meant(jax.tree_util.keystr(path), model) == [simple]
        assert meant("/" + simple, model) == [simple]


def test_a_key_with_brackets_or_dots_is_found_as_it_is_written():
    tree = {"layers[0]": jnp.ones(1), "layers[1]": jnp.ones(1), "mlp.w": jnp.ones(1)}
    assert meant("layers[0]", tree) == ["layers[0]"]
    assert meant("layers*", tree) == ["layers[0]", "layers[1]"]
    assert meant("mlp.w", tree) == ["mlp.w"]


NORMS = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "layer_norm": {"g": jnp.ones(2)}}


@pytest.mark.parametrize("selector", [("bias", "LayerNorm"), ("LayerNorm", "*"), "!LayerNorm"])
@pytest.mark.parametrize("wrapped", ["where", "partition", "watch"])
def test_each_pattern_of_several_must_match(selector, wrapped):
    opt = {
        "where": lambda: adamx.where(selector, adamx.scale(2.0)),
        "partition": lambda: adamx.partition({selector: adamx.scale(2.0), "*": adamx.sgd(0.1)}),
        "watch": lambda: adamx.watch(groups={"norms": selector}),
    }[wrapped]()
    named = (
        r"pattern 'LayerNorm' \(of .* matches no parameter.*Did you mean 'layer_norm'\?.*dense/bias"
    )
    with pytest.raises(StageError, match=named):
        opt.init(NORMS)
    state = {"count": jnp.zeros((), jnp.int32), "watch": None}
    with pytest.raises(StageError, match=named):
        opt.update(NORMS, state if wrapped == "watch" else {"count": state["count"]})


def test_a_near_match_is_named_and_a_far_one_is_not():
    for pattern, near in [
        ("kernl", "kernel"),
        ("dense/Bias", "dense/bias"),
        ("/layerNorm/*", None),
    ]:
        with pytest.raises(StageError) as error:
            meant(pattern, NORMS)
        assert f"Did you mean {near or '/layer_norm/*'!r}?" in str(error.value)
    with pytest.raises(StageError) as error:
        meant("attention", NORMS)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("back", ["layers/0", ("bias", "kernel"), lambda path, x: "layers" in path])
def test_a_group_that_gets_nothing_is_an_error_that_says_who_has_it(back):
    opt = adamx.partition({"*": adamx.adam(0.1), back: adamx.set_to_zero()})
    with pytest.raises(StageError, match=r"gets no parameter.*layers/0/bias.*taken by '\*'.*front"):
        opt.init(PARAMS)
    opt = adamx.partition(
        {"layers": adamx.adam(0.1), back: adamx.set_to_zero(), "*": adamx.sgd(0.1)}
    )
    with pytest.raises(
        StageError, match=r"taken by 'layers', in front of it.*in front of 'layers'"
    ):
        opt.update(FIRST, {"count": jnp.zeros((), jnp.int32)})
    opt = adamx.partition({back: adamx.set_to_zero(), "*": adamx.adam(0.1)})
    assert not opt.update(FIRST, opt.init(PARAMS))[0]["layers"][0]["kernel"].any()


def test_a_predicate_that_means_nothing_is_no_error():
    none = lambda path, x: x.ndim > 5  # noqa: E731
    opt = adamx.partition({none: adamx.set_to_zero(), "*": adamx.sgd(1.0)})
    opt = adamx.chain(opt, adamx.where(none, adamx.scale(3.0)))
    chex.assert_trees_all_equal(
        opt.update(FIRST, opt.init(PARAMS))[0], jax.tree.map(jnp.negative, FIRST)
    )


def test_a_partition_has_groups():
    with pytest.raises(ValueError, match=r"partition\(\) without groups"):
        adamx.partition({})
    with pytest.raises(TypeError, match=r"takes a dict .* got a list of 1"):
        adamx.partition([adamx.adam(0.1)])


def test_a_selection_inside_a_selection_chooses_among_its_parameters():
    inner = adamx.partition({"bias": adamx.scale(2.0), "kernel": adamx.scale(3.0)})
    opt = adamx.partition({"layers": inner, "*": adamx.scale(5.0)})  # covers all that are inside
    updates = paths(opt.update(FIRST, opt.init(PARAMS))[0])
    for path, factor in {"layers/0/bias": 2, "layers/1/kernel": 3, "embedding": 5}.items():
        np.testing.assert_array_equal(updates[path], factor * paths(FIRST)[path])
    dead = adamx.chain(adamx.where("bias", adamx.add_decayed_weights(0.1)), adamx.sgd(0.1))
    opt = adamx.partition({"embedding": dead, "*": adamx.sgd(0.1)})
    with pytest.raises(
        StageError, match=r"pattern 'bias' matches no parameter inside 'embedding'.*are embedding"
    ):
        opt.init(PARAMS)
    opt = adamx.partition({"embedding": adamx.sgd(0.1), "layers": adamx.sgd(0.1), "*": dead})
    opt.init(PARAMS)  # nothing is left


def test_groups_to_watch_must_mean_something():
    with pytest.raises(StageError, match=r"'watch': the group 'k': pattern 'kernl' matches"):
        adamx.watch(groups={"k": "kernl"}).init(PARAMS)
    with pytest.raises(StageError, match=r"parameter embedding: .* returned a NoneType"):
        adamx.watch(groups=lambda path: None).init(PARAMS)
    with pytest.raises(StageError, match=r"parameter embedding: .* raised IndexError") as error:
        adamx.watch(groups=lambda path: path.split("/")[1]).init(PARAMS)
    assert isinstance(error.value.__cause__, IndexError)
    with pytest.raises(TypeError, match=r"path -> name, and .*<lambda> takes \(a, b\)"):
        adamx.watch(groups=lambda a, b: a)


@pytest.mark.parametrize(
    "make",
    [
        lambda predicate: adamx.where(predicate, adamx.sgd(0.1)),
        lambda predicate: adamx.partition({predicate: adamx.sgd(0.1), "*": adamx.adam(0.1)}),
        lambda predicate: adamx.watch(groups={"some": predicate}),
    ],
    ids=["where", "partition", "watch"],
)
def test_a_predicate_that_is_none(make):
    with pytest.raises(
        TypeError, match=r"called as \(path, shape\) -> bool, and .*<lambda> takes \(p"
    ):
        make(lambda p: True)
    for answer, kind in [(None, "NoneType"), ("yes", "str"), (1, "int"), (np.ones(1), "ndarray")]:
        with pytest.raises(StageError, match=rf"embedding: .*returned a {kind}, where True or"):
            make(lambda path, x, answer=answer: answer).init(PARAMS)
    for answer in (np.True_, True):
        make(lambda path, x, answer=answer: path == "embedding" and answer).init(PARAMS)
    with pytest.raises(StageError, match=r"embedding: .*raised AttributeError: .*'sice'") as error:
        make(lambda path, x: x.sice > 1).init(PARAMS)
    assert isinstance(error.value.__cause__, AttributeError)


@pytest.mark.parametrize("bad", [1e6, jnp.nan])
@pytest.mark.parametrize("frozen", ["embedding", "layers/**/bias"])
def test_a_clip_for_the_parameters_that_train_does_not_see_the_frozen(frozen, bad):
    """Expected: the clip of NumPy, of the trained gradients alone."""
    opt = adamx.chain(
        adamx.where(f"!{frozen}", adamx.clip_by_global_norm(0.5)),
        adamx.partition({frozen: adamx.set_to_zero(), "*": adamx.sgd(0.1, momentum=0.9)}),
    )
    apart = [path for path in paths(PARAMS) if path.endswith(frozen.rpartition("/")[2])]
    tree = jax.tree.structure(FIRST)
    grads = tree.unflatten(
        jnp.full_like(g, bad) if path in apart else g for path, g in paths(FIRST).items()
    )
    updates = paths(opt.update(grads, opt.init(PARAMS))[0])
    trained = {path: np.asarray(g) for path, g in paths(FIRST).items() if path not in apart}
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in trained.values()))
    assert norm > 0.5
    for path, g in trained.items():
        np.testing.assert_allclose(updates[path], -0.1 * 0.5 / norm * g, rtol=1e-5)
    assert apart and not any(updates[path].any() for path in apart)


def test_uncovered_parameters_are_an_error_that_says_who_got_what():
    opt = adamx.partition({"kernel": adamx.adam(0.1), "embedding": adamx.sgd(0.1)})
    with pytest.raises(StageError) as error:
        opt.init(PARAMS)
    for part in (
        "does not cover layers/0/bias, layers/1/bias",
        "'kernel': layers/0/kernel, layers/1/kernel",
        "'embedding': embedding",
        "'*'",
    ):
        assert part in str(error.value)


def test_the_rest_may_be_nothing():
    opt = adamx.partition({("kernel", "bias", "embedding"): adamx.sgd(1.0), "*": adamx.adam(1.0)})
    chex.assert_trees_all_equal(
        opt.update(FIRST, opt.init(PARAMS))[0], jax.tree.map(jnp.negative, FIRST)
    )


# What happens to them


@pytest.mark.parametrize("name", slow_but(["adam", "prodigy"], REPRESENTATIVES))
def test_each_group_goes_its_own_way(name):
    """What a partition does to a group is what its chain does to a tree of the group alone."""
    opt = adamx.partition({"kernel": OPTIMISERS[name](0.05), "*": adamx.sgd(0.1, momentum=0.9)})
    alone = {path: leaf for path, leaf in paths(PARAMS).items() if "kernel" in path}
    grads = {path: leaf for path, leaf in paths(GRADS).items() if "kernel" in path}
    expected = run(OPTIMISERS[name](0.05), grads, alone)
    rest = run(adamx.sgd(0.1, momentum=0.9), GRADS, PARAMS)
    for path, updates in paths(run(opt, GRADS, PARAMS)).items():
        wanted = expected[path] if "kernel" in path else paths(rest)[path]
        np.testing.assert_allclose(updates, wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["prodigy", "adafactor", "clipped"])
def test_restricted_to_all_nothing_changes(name):
    opt = OPTIMISERS[name](0.05)
    same = adamx.where(lambda path, shape: True, opt)
    chex.assert_trees_all_close(run(same, GRADS, PARAMS), run(opt, GRADS, PARAMS), rtol=1e-6)


def test_selections_distribute_over_chains_and_nest():
    a, b = adamx.scale_by_momentum(0.5), adamx.scale(3.0)
    assert adamx.where("kernel", adamx.chain(a, b)) == adamx.chain(
        adamx.where("kernel", a), adamx.where("kernel", b)
    )
    both = adamx.where("layers/0", adamx.where("kernel", adamx.scale(3.0)))
    updates, _ = both.update(FIRST, both.init(PARAMS))
    changed = {
        path for path, u in paths(updates).items() if not np.array_equal(u, paths(FIRST)[path])
    }
    assert changed == {"layers/0/kernel"}


def test_decay_can_be_masked_as_optax_masks_it():
    mask = jax.tree.map(lambda x: x.ndim > 1, PARAMS)
    theirs = optax.adamw(0.1, b2=0.9, weight_decay=0.3, mask=mask)
    ours = adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_rms(b2=0.9),
        adamx.bias_correction(),
        adamx.where(lambda path, x: x.ndim > 1, adamx.add_decayed_weights(0.3)),
        adamx.scale_by_learning_rate(0.1),
    )
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        expected = run(theirs, GRADS, PARAMS)
    chex.assert_trees_all_close(run(ours, GRADS, PARAMS), expected, rtol=1e-5)


def test_a_stage_in_front_rewrites_the_gradient_of_its_group_only():
    doubled = adamx.chain(adamx.where("bias", adamx.scale(2.0)), adamx.scale_by_rms(0.0, eps=0.0))
    _, state = doubled.update(FIRST, doubled.init(PARAMS))
    for path, nu in paths(state["scale_by_rms"]["nu"]).items():
        factor = 4.0 if "bias" in path else 1.0
        np.testing.assert_allclose(nu, factor * paths(FIRST)[path] ** 2, rtol=1e-6)


def test_a_norm_over_all_parameters_is_one_over_the_group():
    opt = adamx.where("bias", adamx.clip_by_global_norm(1e-3))
    updates = paths(opt.update(FIRST, opt.init(PARAMS))[0])
    clipped = [u for path, u in updates.items() if "bias" in path]
    np.testing.assert_allclose(optax.tree.norm(clipped), 1e-3, rtol=1e-5)
    np.testing.assert_array_equal(updates["embedding"], FIRST["embedding"])


def test_optax_transformations_can_be_restricted():
    opt = adamx.chain(adamx.where("kernel", optax.trace(0.9)), adamx.scale(1.0))
    expected = optax.masked(optax.trace(0.9), jax.tree.map(lambda x: x.shape == (2, 2), PARAMS))
    chex.assert_trees_all_close(run(opt, GRADS, PARAMS), run(expected, GRADS, PARAMS), rtol=1e-6)


def test_frozen_parameters_stay_and_keep_nothing():
    opt = adamx.partition({"embedding": adamx.set_to_zero(), "*": adamx.adam(0.1)})
    state = opt.init(PARAMS)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (2,), (2, 2)}
    grads = {**FIRST, "embedding": jnp.full((3, 2), jnp.nan)}
    assert not opt.update(grads, state)[0]["embedding"].any()


# The state and the value


@pytest.mark.parametrize(
    "name", ["adam", "prodigy", "adafactor", "lookahead_of_adam", "clipped", "lion"]
)
def test_the_state_keeps_its_form_with_none_for_the_others(name):
    opt = adamx.partition({"kernel": OPTIMISERS[name](0.1), "*": adamx.sgd(0.1, 0.9)})
    before = jax.eval_shape(opt.init, PARAMS)
    after = jax.eval_shape(opt.update, FIRST, before, PARAMS)[1]
    assert before == after
    slots = opt.init(PARAMS)["scale_by_heavy_ball@rest"]["trace"]
    assert slots["layers"][0]["kernel"] is None and slots["embedding"].shape == (3, 2)


def test_a_group_is_part_of_a_stages_name():
    opt = adamx.chain(
        adamx.where("*/kernel", adamx.scale_by_momentum()),
        adamx.where("!bias", adamx.scale_by_momentum()),
        adamx.where(("bias", "/embedding"), adamx.where("bias", adamx.scale_by_momentum())),
        adamx.scale_by_momentum(),
        adamx.where("!bias", adamx.scale_by_momentum()),
    )
    assert [name for name in opt.init(PARAMS) if name != "count"] == [
        "scale_by_momentum@kernel",
        "scale_by_momentum@not_bias",
        "scale_by_momentum@bias+embedding@bias",
        "scale_by_momentum",
        "scale_by_momentum@not_bias_2",
    ]


def test_numbers_of_groups_are_named_and_replaced_by_group():
    opt = adamx.partition({"kernel": adamx.adam(0.1), "*": adamx.sgd(0.2)})
    assert {"b1", "learning_rate@kernel", "learning_rate@rest"} <= set(adamx.hyperparams(opt))
    changed = opt.replace({"learning_rate@rest": 0.3})
    assert changed == adamx.partition({"kernel": adamx.adam(0.1), "*": adamx.sgd(0.3)})
    with pytest.raises(ValueError, match="'learning_rate' is ambiguous"):
        opt.replace(learning_rate=0.1)
    both = adamx.partition({"kernel": adamx.adam(0.5), "*": adamx.sgd(0.5)})
    assert opt.replace({"*.learning_rate": 0.5}) == both


def is_matrix(path, x):
    return x.ndim > 1


def test_it_prints_as_the_code_that_makes_it_and_is_equal_by_value():
    opt = adamx.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.partition(
            {
                "embedding": adamx.set_to_zero(),
                ("bias", "scale"): adamx.where("bias", adamx.sgd(0.1, momentum=0.9)),
                "*": adamx.adam(1e-3),
            }
        ),
        adamx.where("kernel", adamx.polyak_ema(0.9)),
        adamx.watch(groups={"k": "kernel"}, every=3),
    )
    names = {name: getattr(adamx, name) for name in adamx.__all__}
    assert eval(repr(opt), names) == opt
    assert hash(eval(repr(opt), names)) == hash(opt)
    assert pickle.loads(pickle.dumps(opt)) == opt
    assert jax.tree.map(lambda x: x, opt) == opt
    assert opt != adamx.Transformation(tuple(link.everywhere() for link in opt.links))
    assert "where(<predicate is_matrix>" in repr(adamx.where(is_matrix, adamx.sgd(0.1)))
    assert adamx.where(is_matrix, adamx.sgd(0.1)) == adamx.where(is_matrix, adamx.sgd(0.1))
    assert adamx.where(is_matrix, adamx.sgd(0.1)) != adamx.where("kernel", adamx.sgd(0.1))


def test_the_order_of_groups_matters():
    one = adamx.partition({"layers": adamx.sgd(1.0), "*": adamx.set_to_zero()})
    other = adamx.partition(
        {"kernel": adamx.set_to_zero(), "layers": adamx.sgd(1.0), "*": adamx.set_to_zero()}
    )
    u = one.update(FIRST, one.init(PARAMS))[0]["layers"][0]["kernel"]
    np.testing.assert_array_equal(u, -FIRST["layers"][0]["kernel"])
    assert not other.update(FIRST, other.init(PARAMS))[0]["layers"][0]["kernel"].any()


def test_gradients_that_are_none_are_passed_over():
    opt = adamx.partition({"kernel": adamx.adam(0.1), "*": adamx.sgd(0.1)})
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(1), "fixed": jnp.ones(3)}
    grads = {"kernel": jnp.ones(2), "bias": jnp.ones(1), "fixed": None}
    trainable = {**params, "fixed": None}
    updates, _ = opt.update(grads, opt.init(trainable), params)
    assert updates["fixed"] is None and updates["bias"] == -0.1


def test_groups_are_batched_and_differentiated_as_any_optimiser():
    def final(opt):
        updates, _ = opt.update(FIRST, opt.init(PARAMS), PARAMS)
        return sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))

    opt = adamx.partition({"kernel": adamx.sgd(0.1), "*": adamx.sgd(0.2)})
    slope = jax.grad(final)(jax.tree.map(jnp.float32, opt))
    kernels = sum(np.sum(np.square(layer["kernel"])) for layer in FIRST["layers"])
    np.testing.assert_allclose(jax.tree.leaves(slope)[0], 2 * 0.1 * kernels, rtol=1e-5)
    rates = jnp.array([0.1, 0.2])
    batch = jax.vmap(lambda rate: adamx.partition({"kernel": adamx.sgd(rate), "*": adamx.sgd(0.0)}))
    np.testing.assert_allclose(jax.vmap(final)(batch(rates)), rates**2 * kernels, rtol=1e-5)


# Who got what


def test_assignments_are_the_chains_of_each_parameter():
    opt = adamx.chain(
        adamx.partition({"embedding": adamx.set_to_zero(), "*": adamx.sgd(0.1)}),
        adamx.where("kernel", adamx.polyak_ema(0.9)),
    )
    found = adamx.describe_partition(opt, PARAMS)
    assert found["embedding"] == adamx.set_to_zero()
    assert found["layers/1/bias"] == adamx.sgd(0.1)
    assert found["layers/1/kernel"] == adamx.chain(adamx.sgd(0.1), adamx.polyak_ema(0.9))
    assert str(found).startswith(
        "embedding [3,2]:\n    set_to_zero()\nlayers/0/bias [2], layers/1/bias"
    )
    assert adamx.describe_partition(opt, jax.eval_shape(lambda: PARAMS)) == found
    with pytest.raises(StageError, match="does not cover"):
        adamx.describe_partition(adamx.partition({"kernel": adamx.sgd(0.1)}), PARAMS)
    with pytest.raises(StageError, match=r"\['name'\]: it is 'mlp' of type str, not an array"):
        adamx.describe_partition(opt, {**PARAMS, "name": "mlp"})


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("layers.0", "layers/0"),
        ("layers.1.kernel", "layers/1/kernel"),
        ("/Layers.0.kernal", "/layers/0/kernel"),
        ("batch.nrm", "batch.norm"),
    ],
)
def test_dots_between_segments_are_to_be_slashes(pattern, near):
    params = {
        "layers": [{"kernel": jnp.ones(1)}, {"kernel": jnp.ones(1)}],
        "batch.norm": jnp.ones(1),
    }
    with pytest.raises(StageError, match=f"Did you mean '{near}'\\?"):
        adamx.where(pattern, adamx.sgd(0.1)).init(params)
    adamx.where(near, adamx.sgd(0.1)).init(params)
