"""Stacked layers: a recipe inside per_layer gives each layer the update that it has unstacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import per_layer

DRAW = np.random.default_rng(8)
LAYERS = 3
STEPS = 4


def layers(axis: int = 0, shape: tuple[int, ...] = (4, 6)) -> dict[str, Any]:
    """Layers of different size, stacked, and parameters that are no layers."""
    each = [DRAW.normal(size=shape).astype(np.float32) * 2.0**i for i in range(LAYERS)]
    gains = [DRAW.normal(size=shape[-1]).astype(np.float32) * 2.0**i for i in range(LAYERS)]
    head = DRAW.normal(size=(6, 5)).astype(np.float32)
    return {
        "blocks": {"kernel": jnp.stack(each, axis), "gain": jnp.stack(gains, min(axis, 1))},
        "head": jnp.asarray(head),
    }


def unstacked(tree: Any, axis: int = 0) -> Any:
    def each(x: Any, axis: int) -> list[Any]:
        return [jnp.take(x, i, axis) for i in range(LAYERS)]

    blocks = tree["blocks"]
    return {
        "blocks": {
            "kernel": each(blocks["kernel"], axis),
            "gain": each(blocks["gain"], min(axis, 1)),
        },
        "head": tree["head"],
    }


def trajectory(opt: adamx.Transformation, params: Any, grads: list[Any]) -> list[Any]:
    """The parameters after every step."""

    @jax.jit
    def step(params: Any, state: Any, grad: Any) -> Any:
        updates, state = opt.update(grad, state, params)
        return adamx.apply_updates(params, updates), state

    state, found = opt.init(params), []
    for grad in grads:
        params, state = step(params, state, grad)
        found.append(params)
    return found


def updates_of(opt: adamx.Transformation, params: Any) -> Any:
    return opt.update(params, opt.init(params), params)[0]


def with_rest(opt: adamx.Transformation) -> adamx.Transformation:
    return adamx.partition({"kernel": opt, "*": adamx.adam(0.1)})


OPTIMISERS: dict[str, Callable[[], adamx.Transformation]] = {
    "lamb": lambda: adamx.lamb(0.01),
    "lars": lambda: adamx.lars(0.01),
    "novograd": lambda: adamx.novograd(0.01),
    "adafactor": lambda: adamx.adafactor(0.01, min_dim_size_to_factor=2),
    "adaptive clipping": lambda: adamx.chain(adamx.adaptive_clip(0.01), adamx.sgd(0.1)),
    "muon": lambda: with_rest(adamx.muon(0.02)),
    "soap": lambda: adamx.soap(0.01, every=2, spread=False),
    "galore": lambda: adamx.galore(0.01, rank=2, every=2, spread=False),
    "hyperball": lambda: adamx.chain(adamx.scale_by_momentum(), adamx.hyperball(0.01)),
    "clipping by the global norm": lambda: adamx.chain(
        adamx.clip_by_global_norm(0.1), adamx.lamb(0.01)
    ),
    "prodigy": lambda: adamx.chain(adamx.prodigy(1.0)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_stack_of_layers_is_updated_as_its_layers_are(name: str):
    params, grads = layers(), [layers() for _ in range(STEPS)]
    stacked = trajectory(per_layer("blocks", OPTIMISERS[name]()), params, grads)
    single = trajectory(OPTIMISERS[name](), unstacked(params), [unstacked(x) for x in grads])
    for here, there in zip(stacked, single, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, 2e-4, 2e-6), unstacked(here), there
        )


def test_each_of_them_differs_without_per_layer():
    params, grads = layers(), [layers()]
    for name, make in OPTIMISERS.items():
        stacked = trajectory(per_layer("blocks", make()), params, grads)[-1]
        plain = trajectory(make(), params, grads)[-1]
        # These see a third axis as a stack of matrices; prodigy has no stage of whole arrays.
        same = name in ("muon", "soap", "galore", "prodigy")
        assert np.allclose(stacked["blocks"]["kernel"], plain["blocks"]["kernel"]) == same, name


@pytest.mark.parametrize("name", ["lamb", "adafactor", "hyperball", "novograd"])
def test_the_layers_may_be_on_another_axis(name: str):
    opt = adamx.where("kernel", OPTIMISERS[name]())
    params, grads = layers(1), [layers(1) for _ in range(STEPS)]
    moved = [jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0) if x.ndim == 3 else x, x) for x in grads]
    first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0) if x.ndim == 3 else x, params)
    here = trajectory(per_layer("kernel", opt, axis=1), params, grads)[-1]
    there = trajectory(per_layer("kernel", opt), first, moved)[-1]
    kernel = jnp.moveaxis(here["blocks"]["kernel"], 1, 0)
    np.testing.assert_allclose(kernel, there["blocks"]["kernel"], 1e-5, 1e-7)


def test_every_layer_draws_its_own_random_numbers():
    opt = per_layer("x", adamx.in_basis(adamx.random_projection(1), adamx.scale(1.0)))
    params = {"x": jnp.ones((2, 4, 6))}
    updates = updates_of(opt, params)
    assert not np.allclose(updates["x"][0], updates["x"][1])


def test_a_float_of_every_layer_reaches_later_stages():
    @adamx.core.stage
    def note_the_norm():
        return lambda s: s.with_notes(norm=jnp.linalg.norm(s.update))

    @adamx.core.stage
    def divide_by_the_norm():
        return lambda s: s.with_update(s.update / s.note("norm", by="note_the_norm"))

    opt = per_layer("x", adamx.chain(note_the_norm(), divide_by_the_norm()))
    grads = {"x": jnp.array([[3.0, 4.0], [0.0, 2.0]]), "y": jnp.array([2.0])}
    updates, _ = opt.update(grads, opt.init(grads))
    np.testing.assert_allclose(updates["x"], [[0.6, 0.8], [0.0, 1.0]], 1e-6)
    np.testing.assert_allclose(updates["y"], [1.0], 1e-6)


def test_it_crosses_with_other_wrappers():
    params, grads = layers(), [layers() for _ in range(STEPS)]
    opt = per_layer("blocks", adamx.lamb(0.01))
    expected = trajectory(opt, params, grads)[-1]
    noisy = per_layer("blocks", adamx.quantize_state(adamx.lamb(0.01), "int8", min_size=1))
    crossings = {
        "watch": (adamx.chain(opt, adamx.watch()), 1e-6),
        "where": (adamx.where("*", opt), 1e-6),
        "inside": (adamx.where("**", adamx.where("*", opt)), 1e-6),
        "quantized": (noisy, 0.2),
        "quantized outside": (adamx.quantize_state(opt, "int8", min_size=1), 0.2),
    }
    for name, (other, tolerance) in crossings.items():
        found = trajectory(other, params, grads)[-1]
        for x, y, start in zip(*map(jax.tree.leaves, (found, expected, params)), strict=True):
            assert np.abs(x - y).max() <= tolerance * np.abs(y - start).max(), name
        written = json.loads(json.dumps(adamx.to_config(other)))
        assert adamx.from_config(written) == other, name
    state = opt.init(params)
    kept = adamx.quantize_state(opt, "bf16", min_size=1)
    restored = adamx.restore_state(state, kept, params)
    assert jax.tree.structure(restored.state) == jax.tree.structure(kept.init(params))
    rates = jnp.array([0.01, 0.1])
    batch = jax.vmap(lambda rate: opt.replace(learning_rate=rate).update(grads[0], state, params))
    np.testing.assert_allclose(
        batch(rates)[0]["blocks"]["kernel"][1],
        opt.replace(learning_rate=0.1).update(grads[0], state, params)[0]["blocks"]["kernel"],
        1e-5,
    )


def test_gradients_may_be_missing():
    opt = per_layer("blocks", adamx.lamb(0.01))
    params = layers()
    grads = {**layers(), "blocks": None}
    state = opt.init(params)
    updates, after = opt.update(grads, state, params)
    expected, _ = opt.update(grads | {"blocks": params["blocks"]}, state, params)
    assert updates["blocks"] is None
    np.testing.assert_allclose(updates["head"], expected["head"], 1e-6)
    kept, start = (x["scale_by_momentum"]["mu"]["blocks"] for x in (after, state))
    jax.tree.map(np.testing.assert_array_equal, kept, start)


def test_it_prints_as_it_is_written():
    opt = per_layer("blocks", adamx.chain(adamx.trust_ratio(), adamx.sgd(0.1)), axis=1)
    assert eval(repr(opt), vars(adamx)) == opt
    assert "per_layer('blocks'" in repr(opt) and "axis=1" in repr(opt)


def test_stages_and_selections_inside_see_one_layer():
    """A function of the shape, a selection of matrices, and the axes of a matrix."""
    seen = {}

    def factor(path: str, shape: jax.ShapeDtypeStruct) -> float:
        seen[path] = shape.shape
        return 1.0

    params = {"x": {"k": jnp.ones((3, 4, 2)), "b": jnp.ones((3, 4))}, "y": jnp.ones((5, 6))}
    updates_of(per_layer("x", adamx.scale_each(factor)), params)
    assert seen == {"x/k": (4, 2), "x/b": (4,), "y": (5, 6)}
    opt = per_layer("x", adamx.muon(0.1, rest=adamx.sgd(1.0)))
    np.testing.assert_array_equal(updates_of(opt, params)["x"]["b"], -params["x"]["b"])


def test_a_group_without_stacked_parameters_is_no_error():
    groups = adamx.partition({"x": adamx.lamb(0.1), "*": adamx.adamw(0.1)})
    updates_of(per_layer("x", groups), {"x": jnp.ones((2, 3)), "y": jnp.ones(3)})


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_what_earlier_stages_left_is_shared_by_the_layers(layers: int):
    """Also if it has as many elements as there are layers; and a basis around it."""

    @adamx.core.stage
    def note_columns():
        return lambda s: s.with_notes(columns=jnp.arange(1.0, s.update.shape[-1] + 1))

    @adamx.core.stage
    def multiply():
        return lambda s: s.with_update(s.update * s.note("columns", by="note_columns"))

    params = {"x": jnp.ones((layers, 3))}
    opt = adamx.chain(note_columns(), per_layer("x", multiply()))
    np.testing.assert_array_equal(updates_of(opt, params)["x"], [[1.0, 2.0, 3.0]] * layers)
    stack = {"x": jnp.ones((layers, 4, 2))}
    turned = adamx.in_basis(adamx.fixed_basis(np.eye(4)), per_layer("x", adamx.trust_ratio()))
    np.testing.assert_allclose(updates_of(turned, stack)["x"], stack["x"], 1e-6)


def test_copies_of_parameters_need_the_parameters():
    shapes = {"x": jax.ShapeDtypeStruct((3, 4, 2), jnp.float32)}
    with pytest.raises(adamx.StageError):
        per_layer("x", adamx.hyperball(0.1)).init(shapes)
    assert per_layer("x", adamx.scale_by_norm()).init(shapes)["scale_by_norm"]["nu"]["x"].shape == (
        3,
    )


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "a negative axis": (lambda: per_layer("a", adamx.sgd(0.1), axis=-1), "whole number ≥ 0"),
    "no selector": (lambda: per_layer(3, adamx.sgd(0.1)), "a selector is"),
    "no parameter": (
        lambda: per_layer("blocs", adamx.lamb(0.1)).init(layers()),
        "matches no parameter.*Did you mean 'blocks'",
    ),
    "no such axis": (
        lambda: per_layer("head", adamx.lamb(0.1), axis=2).init(layers()),
        "parameter head.*takes axis 2 for the layers.*shape \\(6, 5\\)",
    ),
    "a transformation of Optax": (
        lambda: per_layer("blocks", optax.adam(0.1)).init(layers()),
        "can't map the Optax transformation .*put it outside",
    ),
    "logits of another number of layers": (
        lambda: per_layer("x", adamx.qk_clip()).update(
            {"x": jnp.ones((3, 2, 2, 2))},
            per_layer("x", adamx.qk_clip()).init({"x": jnp.ones((3, 2, 2, 2))}),
            {"x": jnp.ones((3, 2, 2, 2))},
            max_logits=jnp.ones(2),
        ),
        "its first axis is that of the 3 layers",
    ),
    "layers that are gone": (
        lambda: updates_of(
            adamx.in_basis(
                adamx.fixed_basis(np.eye(24)[:, :2], axes=((0, 1), (2,))),
                per_layer("blocks", adamx.scale_by_norm()),
            ),
            {"blocks": jnp.ones((4, 6, 5))},
        ),
        "put this stage into per_layer",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str):
    make, message = ERRORS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make()
