"""Kernels give the results of the programs that XLA makes of the same blocks.

Those for CPUs run here if there is a C compiler, those for TPUs in JAX's interpreter of Pallas.
``examples/benchmarks/tpu.py`` compiles the latter.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import Rule
from adamx.engine import kernels, mosaic, native
from adamx.numerics import random, tiles
from adamx.numerics.formats import rounded

# Matrices, a stack of them, and a vector; the rows of the last one are not a multiple of 128.
SHAPES = {"a": (64, 256), "b": (100, 128), "c": (3, 3, 32, 128), "d": (4096,), "e": (70, 100)}
ADAMW = adamx.adamw(1e-2)


def int8(opt: Any) -> adamx.Transformation:
    return adamx.quantize_state(opt, "int8")


def tree(key: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    draw = np.random.default_rng(key)
    return {name: jnp.asarray(draw.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def trained(
    opt: adamx.Transformation,
    dtype: Any = jnp.float32,
    bad: int = -1,
    step: bool = False,
) -> tuple[Any, Any, int]:
    """Parameters and state after three steps, and the number of arrays that have kernels."""
    count = 0
    run = kernels.Kernels.run

    def counted(*given: Any) -> Any:
        nonlocal count
        made = run(*given)
        count += len(made)
        return made

    def next_of(grads: Any, state: Any, params: Any) -> Any:
        if step:
            return opt.step(grads, state, params)
        updates, state = opt.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    params, taken = tree(0, dtype), jax.jit(next_of)
    state = opt.init(params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.Kernels, "run", counted)
        for i in range(3):
            grads = tree(i + 1, dtype)
            if i == bad:
                grads["b"] = grads["b"].at[3, 3].set(jnp.nan)
            params, state = taken(grads, state, params)
    return params, state, count


def assert_alike(
    opt: adamx.Transformation, monkeypatch: Any, count: int = 4, kind: str = "interpret", **how: Any
) -> None:
    monkeypatch.setenv("ADAMX_KERNELS", "off")
    *whole, none = trained(opt, **how)
    monkeypatch.setenv("ADAMX_KERNELS", kind)
    *tiled, some = trained(opt, **how)
    assert (none, some) == (0, count)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(tiled), strict=True
    ):
        assert x.dtype == y.dtype
        wide = [np.asarray(z.astype(jnp.float32)) for z in (x, y)]
        # XLA contracts products and sums of float32 in other ways in another program.
        largest = np.fmax.reduce(np.abs(wide[0]), axis=None, initial=0)
        error = 2e-7 * largest if x.dtype == jnp.float32 else 0
        same = np.isclose(*wide, rtol=0, atol=error, equal_nan=True)
        # C does not contract them, and so a few values are rounded to a neighbour. What a rounding
        # has lost depends on every bit.
        if kind == "auto" and "lost" in str(path):
            continue
        if kind == "auto" and x.dtype == jnp.float32:
            same = np.isclose(*wide, rtol=0, atol=5 * error, equal_nan=True)
        elif kind == "auto":
            assert same.mean() >= 1 - 1e-3, path
            is_code = x.dtype in (jnp.int8, jnp.uint8)
            same |= np.abs(wide[0] - wide[1]) <= (1 if is_code else np.abs(wide[0]) / 64)
        assert same.all(), f"{path}: {wide[0][~same][:5]} became {wide[1][~same][:5]}"


NARROW = [
    "adabelief adadelta adagrad adam adam_atan2 adamax adamc adamw adan ademamix adopt amsgrad",
    "grams laprop lion nadam nadamw prodigy radam rmsprop schedule_free_adamw signum yogi",
]


@pytest.mark.parametrize("name", " ".join(NARROW).split())
def test_a_kernel_takes_the_steps_of_every_recipe_of_elements(name, monkeypatch):
    assert_alike(int8(adamx.get_recipe(name)(1e-2)), monkeypatch)


@pytest.mark.parametrize(
    "codec",
    ["bf16", "fp8", adamx.int8(rounding="nearest"), adamx.fp8(block_size=32), adamx.int8(48)],
    ids=repr,
)
def test_a_kernel_encodes_as_every_codec_does(codec, monkeypatch):
    assert_alike(adamx.quantize_state(ADAMW, codec), monkeypatch)


CROSSED = {
    "clipping, watch in front": (
        int8(adamx.chain(adamx.watch(), adamx.clip_by_global_norm(1.0), ADAMW)),
        {},
    ),
    "partition": (adamx.partition({"a": int8(ADAMW), "*": int8(adamx.lion(1e-2))}), {}),
    "one slot": (adamx.quantize_state(ADAMW, nu="int8"), {}),
    "two codecs": (adamx.quantize_state(ADAMW, mu="bf16", nu="fp8"), {}),
    "schedule": (int8(adamx.adamw(optax.linear_schedule(0.0, 1e-2, 10))), {}),
    "skip_nonfinite": (adamx.skip_nonfinite(int8(ADAMW)), {"bad": 1}),
    "NaN": (int8(ADAMW), {"bad": 1}),
    "accumulate": (int8(adamx.accumulate(ADAMW, 2)), {"count": 8}),  # its sum, and the optimiser
    "delay_start": (int8(adamx.delay_start(ADAMW, 1)), {}),
    "per_layer": (adamx.per_layer("c", int8(ADAMW)), {"count": 3}),
    "compensated": (int8(adamx.adamw(1e-2, compensated=True)), {}),
    "stochastic_rounding": (
        adamx.chain(int8(ADAMW), adamx.stochastic_rounding()),
        {"dtype": jnp.bfloat16},
    ),
    "kahan_summation": (
        adamx.chain(int8(ADAMW), adamx.kahan_summation()),
        {"dtype": jnp.bfloat16},
    ),
    "master_weights": (adamx.chain(int8(ADAMW), adamx.master_weights()), {"dtype": jnp.bfloat16}),
    # Left to XLA: sums over arrays, stages behind the block, blocks that are too short, float16.
    "lamb": (int8(adamx.lamb(1e-2)), {"count": 0}),
    "watch behind": (adamx.chain(int8(ADAMW), adamx.watch()), {"count": 0}),
    "short blocks": (adamx.quantize_state(ADAMW, adamx.int8(16)), {"count": 0}),
    "float16": (int8(ADAMW), {"dtype": jnp.float16, "count": 0}),
    "no packed slots": (ADAMW, {"count": 0}),
}


@pytest.mark.parametrize("name", CROSSED)
def test_a_kernel_takes_the_steps_of_every_axis(name, monkeypatch):
    opt, how = CROSSED[name]
    assert_alike(opt, monkeypatch, **how)


# Kernels for CPUs.

# Where CI is set, a missing compiler is a failure, so that these tests can't be left out unseen.
in_c = pytest.mark.skipif(
    native.compiler() is None and "CI" not in os.environ, reason="needs a C compiler and JAX 0.10"
)
WITHOUT = ("adam_atan2",)  # C computes arctangents one by one
LEFT = ("lamb", "float16", "two codecs", "no packed slots")  # "two codecs": fp8


# With the five arrays of float32 of a global norm.
IN_C = {"accumulate": 8, "per_layer": 3, "clipping, watch in front": 9, "skip_nonfinite": 9}


@in_c
@pytest.mark.parametrize("name", " ".join(NARROW).split())
def test_a_kernel_in_c_takes_the_steps_of_every_recipe_of_elements(name, monkeypatch):
    count = 0 if name in WITHOUT else 5
    assert_alike(adamx.get_recipe(name)(1e-2), monkeypatch, count, "auto", step=True)


@in_c
@pytest.mark.parametrize("codec", ["bf16", "int8", adamx.int8(128, rounding="nearest")], ids=repr)
def test_a_kernel_in_c_encodes_as_codecs_do(codec, monkeypatch):
    # Rows of 100 are divided into blocks of 64 and 36, and are one block of 128.
    count = 4 if codec == "int8" else 5
    assert_alike(adamx.quantize_state(ADAMW, codec), monkeypatch, count, "auto")
    assert_alike(adamx.quantize_state(ADAMW, "fp8"), monkeypatch, 0, "auto")


@in_c
@pytest.mark.parametrize("name", [name for name in CROSSED if name != "short blocks"])
def test_a_kernel_in_c_takes_the_steps_of_every_axis(name, monkeypatch):
    opt, how = CROSSED[name]
    how = how | {"count": 0 if name in LEFT else IN_C.get(name, 4)}
    assert_alike(opt, monkeypatch, kind="auto", **how)


GATED = {
    "skip_nonfinite": (adamx.skip_nonfinite(ADAMW), {"bad": 1}),
    "clip inside": (
        adamx.skip_nonfinite(adamx.chain(adamx.clip_by_global_norm(1.0), ADAMW)),
        {"bad": 1, "count": 15},
    ),
    "two gates": (adamx.skip_nonfinite(adamx.accumulate(ADAMW, 2)), {"bad": 1, "count": 15}),
    "one group": (
        adamx.partition({"b": adamx.skip_nonfinite(ADAMW), "*": adamx.lion(1e-2)}),
        {"bad": 1, "count": 6},
    ),
    "in front": (
        adamx.chain(adamx.skip_nonfinite(adamx.scale_by_momentum(0.9)), ADAMW),
        {"bad": 1},
    ),
}


@in_c
@pytest.mark.parametrize("name", GATED)
def test_a_kernel_in_c_chooses_what_leaves_a_gate(name, monkeypatch):
    opt, how = GATED[name]
    assert_alike(opt, monkeypatch, kind="auto", step=True, **{"count": 10, **how})


@in_c
def test_a_kernel_in_c_takes_tiles_threads_and_arrays_of_any_size(monkeypatch):
    """Sizes around a tile and around what a thread takes, and many small arrays in one call."""
    monkeypatch.setitem(
        globals(),
        "SHAPES",
        {
            **{str(n): (n,) for n in (1, 4095, 4096, 4097, 65535, 65537, 3 * 65536 + 5)},
            **{f"small {i}": (3, 1 + i % 3) for i in range(80)},
            "b": (100, 128),
            "none": (0, 3),
        },
    )
    count = len(SHAPES) - 1
    assert_alike(ADAMW, monkeypatch, count, "auto", step=True)
    # Blocks of 50, of which a tile of 4096 elements is no multiple.
    # The others have blocks of 52, 33 and 17, which fill no vectors.
    shapes = {"b": (40, 1000), "c": (100_000,), "d": (100, 52), "e": (125, 33), "f": (300, 17)}
    monkeypatch.setitem(globals(), "SHAPES", shapes)
    watched = adamx.chain(int8(ADAMW), adamx.watch())
    for opt in (int8(ADAMW), watched, adamx.quantize_state(ADAMW, adamx.int8(rounding="nearest"))):
        assert_alike(opt, monkeypatch, 5, "auto")


WATCHED = {
    "adamw": (adamx.chain(ADAMW, adamx.watch()), {}),
    "groups": (adamx.chain(ADAMW, adamx.watch({"vectors": "d"}, every=2)), {}),
    "clipping": (adamx.chain(adamx.clip_by_global_norm(1.0), ADAMW, adamx.watch()), {"count": 10}),
    "where": (adamx.chain(ADAMW, adamx.where("a", adamx.watch())), {}),
    "two of them": (adamx.chain(ADAMW, adamx.watch(), adamx.watch({"b": "b"})), {}),
    "int8": (adamx.chain(int8(ADAMW), adamx.watch()), {"count": 4}),
    "bfloat16": (adamx.chain(ADAMW, adamx.watch()), {"dtype": jnp.bfloat16}),
    "NaN": (adamx.chain(ADAMW, adamx.watch()), {"bad": 2}),
    "update": (adamx.chain(ADAMW, adamx.watch()), {"step": False}),
}


@in_c
@pytest.mark.parametrize("name", WATCHED)
def test_a_kernel_in_c_computes_the_sums_of_an_observer(name, monkeypatch):
    opt, how = WATCHED[name]
    assert_alike(opt, monkeypatch, kind="auto", **{"count": 5, "step": True} | how)


READINGS = {
    "sum": lambda xp, x: xp.sum(x),
    "mean": lambda xp, x: xp.mean(x),
    "maximum": lambda xp, x: xp.max(x),
    "size": lambda xp, x: xp.float32(x.size),
    "of a sum": lambda xp, x: 2 * xp.sum(x) + 1,
}


@in_c
@pytest.mark.parametrize("name", READINGS)
def test_a_reading_of_all_elements_that_is_no_sum_is_left_to_xla(name, monkeypatch):
    """The means or the maxima of tiles do not add up to those of an array."""
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    grads = {"w": jnp.linspace(-1.0, 2.0, 10_000), "v": jnp.linspace(0.0, 1.0, 5000)}
    reading = READINGS[name]

    @adamx.stage(reach="element")
    def scale_by_reading():
        def update(signal, slots, step):
            return signal.with_update(jnp.ones_like(signal.update) * step.total), slots

        return Rule(update, global_sum=lambda signal, *_: reading(jnp, signal.update))

    opt = scale_by_reading()
    found = jax.jit(opt.update)(grads, opt.init(grads))[0]["w"][0]
    expected = sum(reading(np, np.asarray(x, np.float64)) for x in grads.values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@in_c
def test_sums_in_c_are_those_of_the_paper_of_any_size(monkeypatch):
    """Σg² in float64, of arrays of many tiles, of a batch, and of squares that overflow."""
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    opt = adamx.chain(ADAMW, adamx.watch())
    draw = np.random.default_rng(0)
    grads = {str(n): jnp.asarray(draw.normal(size=(3, n)), jnp.float32) for n in (1, 4097, 200_003)}
    grads["b"] = grads["1"] * 1e30

    def seen(grads: Any) -> Any:
        state = opt.init(grads)
        return adamx.metrics(opt.step(grads, state, grads)[1])

    for some in (grads, {k: x for k, x in grads.items() if k != "b"}):
        found = jax.jit(jax.vmap(seen))(some)
        assert "adamx_" in jax.jit(seen).lower({k: x[0] for k, x in some.items()}).as_text()
        for i in range(3):
            flat = np.concatenate([np.asarray(x[i], np.float64) for x in some.values()])
            norm = np.sqrt(np.sum(flat**2))
            np.testing.assert_allclose(found["grad_norm"][i], norm, rtol=1e-6)
            if "b" not in some:  # statistics limit gradients
                np.testing.assert_allclose(found["grad_rms"][i], norm / flat.size**0.5, rtol=1e-6)


@in_c
def test_a_kernel_in_c_under_vmap_is_one_of_each_member(monkeypatch):
    """Rates, and arrays, of the members of a batch; and of batches of batches."""
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    params = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 64, 128)), jnp.float32)
    rates = jnp.linspace(1e-3, 1e-2, 3)

    def step(rate: Any, p: Any) -> Any:
        opt = int8(adamx.adamw(rate))
        return opt.step(jnp.cos(p), opt.init(p), p)

    batched = jax.jit(jax.vmap(jax.vmap(step), (None, 0)))(rates, params)
    for i in range(2):
        for j in range(3):
            for x, y in zip(
                jax.tree.leaves(jax.jit(step)(rates[j], params[i, j])),
                jax.tree.leaves(batched),
                strict=True,
            ):
                np.testing.assert_array_equal(np.asarray(x), np.asarray(y[i, j]))


@in_c
def test_a_kernel_in_c_keeps_the_arguments_that_are_not_donated(monkeypatch):
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    params, grads = tree(0), tree(1)
    state = ADAMW.init(params)
    before = jax.tree.map(np.array, (grads, state, params))
    first = jax.jit(ADAMW.step)(grads, state, params)
    jax.tree.map(np.testing.assert_array_equal, before, (grads, state, params))
    again = jax.jit(ADAMW.step, donate_argnums=(1, 2))(grads, state, params)
    jax.tree.map(np.testing.assert_array_equal, first, again)


@in_c
def test_a_kernel_in_c_computes_as_xla_does_at_the_edges(monkeypatch):
    """NaN, infinities, zeros, subnormal numbers and the largest ones."""
    edges = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 1e-20], "f4")
    grads = {"w": jnp.asarray(np.resize(edges, (64, 128)))}
    params = jax.tree.map(jnp.ones_like, grads)
    for opt in (ADAMW, int8(ADAMW), adamx.lion(1e-2), adamx.quantize_state(ADAMW, "bf16")):
        found = []
        for kind in ("off", "auto"):
            monkeypatch.setenv("ADAMX_KERNELS", kind)
            found.append(jax.jit(opt.step)(grads, opt.init(params), params))
        for x, y in zip(*map(jax.tree.leaves, found), strict=True):
            x, y = (np.asarray(z, np.float32) for z in (x, y))
            np.testing.assert_allclose(x, y, rtol=1e-6)


BROKEN = {
    "an error": ("#!/bin/sh\necho 'no such flag \377' >&2; exit 1\n", "no such flag"),
    "no output": ("#!/bin/sh\nexit 0\n", "block.so"),
    "no program": ("nonsense\n", "Exec format error"),
}


@in_c
@pytest.mark.parametrize("name", BROKEN)
def test_what_a_compiler_refuses_is_left_to_xla_with_a_warning(name, monkeypatch, tmp_path):
    text, told = BROKEN[name]
    broken = tmp_path / "cc"
    broken.write_text(text)
    broken.chmod(0o755)
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    monkeypatch.setattr(native, "compiler", lambda: (str(broken),))
    monkeypatch.setattr(native, "_begun", {})
    monkeypatch.setattr(native, "_told", set())
    with pytest.warns(UserWarning, match=rf"can't compile a kernel.*XLA runs.*{told}"):
        *_, count = trained(ADAMW, step=True)
    assert count == 0


def test_a_compiler_is_a_command_of_several_words(monkeypatch):
    for asked, found in (("cc -m64", True), ("/no/such/cc", False), ("gcc '", None)):
        native.compiler.cache_clear()
        monkeypatch.setenv("CC", asked)
        with pytest.warns(UserWarning, match="is no command") if found is None else nullcontext():
            made = native.compiler()
        assert (made is not None and made[1:] == ("-m64",)) or not (found and shutil.which("cc"))
    native.compiler.cache_clear()


UNKNOWN = {
    "a loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x / 2, x),
    "a choice": lambda x: jax.lax.cond(x.ravel()[0] > 0, jnp.negative, jnp.abs, x),
    "several results": lambda x: jax.lax.sort([x, -x], num_keys=1)[1],
    "another order": jnp.flip,
    "a sum": jnp.cumsum,
    "an arctangent": jnp.arctan,
}


@adamx.core.stage(reach="element")
def unknown(name: str = "a loop"):
    def update(signal: Any, slots: Any, step: Any) -> Any:
        made = UNKNOWN[name](signal.update)
        return signal.with_update(made.reshape(signal.update.shape)), slots

    return adamx.core.Rule(update)


@in_c
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_c_does_not_know_is_left_to_xla(name, monkeypatch):
    assert_alike(adamx.chain(unknown(name), adamx.adam(1e-2)), monkeypatch, 0, "auto", step=True)


@in_c
def test_threads_and_a_second_import_share_the_kernels_in_c(monkeypatch):
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    opt = adamx.adamw(0.0456)
    params = tree(0)
    state = opt.init(params)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: jax.jit(lambda p: opt.step(p, state, p))(params), range(4)))
    monkeypatch.setattr(native, "_begun", {})
    made.append(jax.jit(lambda p: opt.step(p, state, p))(params))
    for other in made[1:]:
        jax.tree.map(np.testing.assert_array_equal, made[0], other)


@in_c
def test_shapes_that_an_exported_program_leaves_open_are_left_to_xla(monkeypatch):
    monkeypatch.setenv("ADAMX_KERNELS", "auto")
    (n,) = jax.export.symbolic_shape("n")
    x = {"w": jax.ShapeDtypeStruct((n, 64), jnp.float32)}
    exported = jax.export.export(jax.jit(lambda g, p: ADAMW.step(g, ADAMW.init(p), p)[0]))(x, x)
    given = {"w": jnp.ones((8, 64))}
    new = ADAMW.step(given, ADAMW.init(given), given)[0]
    np.testing.assert_allclose(exported.call(given, given)["w"], new["w"], rtol=1e-6)


def test_a_kernel_adds_the_update_where_a_step_does(monkeypatch):
    """``step`` returns what ``update`` and ``apply_updates`` do, from the same kernels."""
    monkeypatch.setenv("ADAMX_KERNELS", "interpret")
    for opt, dtype in (
        (int8(ADAMW), jnp.float32),
        (adamx.chain(int8(ADAMW), adamx.stochastic_rounding()), jnp.bfloat16),
    ):
        params, grads = tree(0, dtype), tree(1, dtype)
        state = opt.init(params)
        count = str(jax.make_jaxpr(opt.step)(grads, state, params)).count("pallas_call[")
        assert count == 4
        updates, after = jax.jit(opt.update)(grads, state, params)
        whole = adamx.apply_updates(params, updates), after
        fused = jax.jit(opt.step)(grads, state, params)
        for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(fused), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(
                np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-6
            )


def test_tiles_of_rows_and_of_columns_give_the_same_results(monkeypatch):
    """The random bits of an element, and the blocks of a row, do not depend on the tile."""
    of_tiles = {}
    monkeypatch.setenv("ADAMX_KERNELS", "interpret")
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(70, 12288)), jnp.float32)}
    opt = int8(ADAMW)
    for budget, elements in ((2**40, 2**21), (2**25, 2**16), (2**24 * 21 // 20, 2**16)):
        monkeypatch.setattr(mosaic, "BUDGET", budget)
        monkeypatch.setattr(mosaic, "ELEMENTS", elements)
        shapes = []
        made = mosaic.tile_shape

        def spied(*args: Any, shapes: Any = shapes, made: Any = made, **how: Any) -> Any:
            shapes.append(found := made(*args, **how))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(mosaic, "tile_shape", spied)
            state = opt.init(params)
            made_of = jax.jit(lambda s: opt.update(params, s, params))(state)
        of_tiles[shapes[0]] = jax.tree.leaves(made_of)
    assert {*of_tiles} == {(70, 12288), (32, 12288), (32, 8192)}
    first, *others = of_tiles.values()
    for other in others:
        for x, y in zip(first, other, strict=True):
            np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))


def test_a_kernel_of_a_custom_codec_needs_its_word(monkeypatch):
    """An encoder may use the whole array, unless it says that it works on parts."""

    def encode(x: Any, bits: Any, nonnegative: bool) -> Any:
        return x.astype(jnp.bfloat16)

    def decode(x: Any) -> Any:
        return x.astype(jnp.float32)

    for reach, count in (("array", 0), ("row", 4), ("block", 4)):
        codec = adamx.Codec("half", encode, decode, reach=reach)
        assert_alike(adamx.quantize_state(ADAMW, codec), monkeypatch, count)


def test_derivatives_of_a_step_with_kernels(monkeypatch):
    """Those by hyperparameters and parameters are the usual ones; a slot has none."""
    params, grads = tree(0), tree(1)

    def size(rate: Any, params: Any, grads: Any) -> Any:
        opt = int8(adamx.adamw(rate))
        new, _ = opt.step(grads, int8(ADAMW).init(tree(0)), params)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(new))

    found = {}
    for kind in ("off", "interpret"):
        monkeypatch.setenv("ADAMX_KERNELS", kind)
        found[kind] = jax.jit(jax.grad(size, (0, 1)))(1e-2, params, grads)
        with pytest.raises(adamx.StageError, match="a quantized slot has no derivative"):
            jax.grad(size, 2)(1e-2, params, grads)
    for x, y in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_constants_and_empty_arrays_are_left_to_xla(monkeypatch):
    two = jnp.float32(2.0)
    constant = adamx.Codec(
        "constant",
        lambda x, bits, nonnegative: (x / two).astype(jnp.bfloat16),
        lambda x: x.astype(jnp.float32) * two,
        reach="row",
    )
    empty = adamx.Codec(
        "empty",
        lambda x, bits, nonnegative: {
            "x": x.astype(jnp.bfloat16),
            "none": jnp.zeros((*x.shape[:-1], 0), jnp.uint8),
        },
        lambda kept: kept["x"].astype(jnp.float32),
        reach="row",
    )
    for codec in (constant, empty):
        assert_alike(adamx.quantize_state(ADAMW, codec), monkeypatch, 0)


def test_a_step_outside_jit_follows_the_variable(monkeypatch):
    runs = []
    run = kernels.Kernels.called
    monkeypatch.setattr(kernels.Kernels, "called", lambda *args: runs.append(1) or run(*args))
    params = tree(0)
    state = int8(ADAMW).init(params)
    for kind, count in (("off", 0), ("interpret", 4), ("off", 4)):
        monkeypatch.setenv("ADAMX_KERNELS", kind)
        int8(ADAMW).update(params, state, params)
        assert len(runs) == count


def test_an_unknown_mode_is_an_error(monkeypatch):
    monkeypatch.setenv("ADAMX_KERNELS", "on")
    with pytest.raises(ValueError, match="must be auto, off or interpret, got 'on'"):
        trained(int8(ADAMW))


def test_a_tile_has_the_bits_of_its_place():
    whole = random.bits(random.key(3), (64, 256), "mu")
    tile = tiles.Tile((32, 128), (64, 256), (jnp.int32(32), jnp.int32(128)), 64.0 * 256)
    with tiles.within(tile):
        own = random.bits(random.key(3), (32, 128), "mu")
    np.testing.assert_array_equal(own, whole[32:, 128:])


def test_bfloat16_is_rounded_in_tiles_as_elsewhere():
    patterns = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    special = np.array([0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0x7FC00000, 0x80000000, 1], np.uint32)
    x = jnp.asarray(np.concatenate([patterns, special]).view(np.float32))
    with tiles.within(tiles.Tile((1, 1), (1, 1), (0, 0), 1.0)):
        own = rounded(x, jnp.bfloat16)
    np.testing.assert_array_equal(own, rounded(x, jnp.bfloat16))
