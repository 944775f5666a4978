"""Which axes are a matrix, which matrices are hidden, and how near to orthogonal they become."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
import reference_matrices as reference
from adamx.core import StageError, matrix_view
from catalog import run, x64
from helpers import says

pytestmark = pytest.mark.optimised


def once(opt, g):
    """The update of one step."""
    return run(opt, jnp.asarray(g)[None])[0]


# Views: each matrix, written with NumPy's own indices

X = np.arange(2.0 * 3 * 4 * 6).reshape(2, 3, 4, 6)


def pair(shape):
    return (0,), tuple(range(1, len(shape)))


VIEWS = {
    "two axes": ("matrix", X[0, 0], [X[0, 0]]),
    "layers": ("matrix", X[0], [X[0, 0], X[0, 1], X[0, 2]]),
    "a convolution": ("matrix", X, [X.reshape(24, 6)]),
    "the last two": ("last", X, [X[i, j] for i in range(2) for j in range(3)]),
    "heads": ("heads", X[0], [X[0, :, i] for i in range(4)]),
    "heads of layers": ("heads", X, [X[i, :, j] for i in range(2) for j in range(4)]),
    "heads side by side": (((0,), (1, 2)), X[0], [X[0].reshape(3, 24)]),
    "turned": (((1,), (0,)), X[0, 0], [X[0, 0].T]),
    "from the end": (((-2,), (-1,)), X[0], [X[0, 0], X[0, 1], X[0, 2]]),
    "queries, keys and values": (
        ((0,), (1,), 3),
        X[0, 0],
        [X[0, 0][:, :2], X[0, 0][:, 2:4], X[0, 0][:, 4:]],
    ),
    "the same in layers": (
        ((1,), (2,), 2),
        X[0],
        [X[0, i][:, j : j + 3] for i in range(3) for j in (0, 3)],
    ),
    "a function": (pair, X[0], [X[0].reshape(3, 24)]),
    "a function's name": (lambda shape: "last", X[0], [X[0, 0], X[0, 1], X[0, 2]]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_an_array_is_seen_as_matrices(name):
    axes, array, matrices = VIEWS[name]
    view = matrix_view(axes, array.shape)
    stack = view.matrices(jnp.asarray(array))
    assert stack.shape == view.shape
    np.testing.assert_array_equal(stack.reshape(-1, *matrices[0].shape), matrices)
    np.testing.assert_array_equal(view.array(stack), array)


@pytest.mark.parametrize("name", VIEWS)
def test_each_matrix_is_made_orthogonal(name):
    axes, array, matrices = VIEWS[name]
    random = np.random.default_rng(0)
    with x64():
        view = matrix_view(axes, array.shape)
        g = jnp.asarray(random.normal(size=array.shape))
        opt = adamx.orthogonalize(axes=axes)
        made = view.matrices(opt.update(g, opt.init(g))[0]).reshape(-1, *matrices[0].shape)
        given = view.matrices(g).reshape(made.shape)
    for x, y in zip(given, made, strict=True):
        np.testing.assert_allclose(y, reference.newton_schulz(np.asarray(x)), atol=1e-10)


@pytest.mark.parametrize(
    ("axes", "shape", "parts"),
    [
        ("rows", (2, 3), ["'matrix', 'last', 'heads'", "'rows'"]),
        (None, (2, 3), ["'matrix', 'last', 'heads'", "None"]),
        ([[0], [1]], (2, 3), ["tuples of axes", "[[0], [1]]"]),
        ((0, 1), (2, 3), ["tuples of axes", "(0, 1)"]),
        (((0,), ()), (2, 3), ["tuples of axes"]),
        (((0,), (True,)), (2, 3), ["not all axes", "(2, 3)"]),
        (((0,), (2,)), (2, 3), ["not all axes", "(2, 3)"]),
        (((0,), (-2,)), (2, 3), ["twice"]),
        (((0,), (1,), 2), (2, 3), ["3 columns", "2 matrices", "1 over"]),
        (((0,), (1,), 0), (2, 3), ["whole number ≥ 1", "0"]),
        ("heads", (2, 3), ["[embed, heads, head]", "(2, 3)"]),
        (lambda shape: None, (2, 3), ["None"]),
    ],
)
def test_other_axes_are_refused(axes, shape, parts):
    with pytest.raises(StageError, match=says(*parts)):
        matrix_view(axes, shape)


def test_axes_are_written_in_configurations():
    for axes in ("last", ((0,), (1, 2)), ((0,), (1,), 3)):
        opt = adamx.muon(0.1, axes=axes, rest=adamx.adam(0.1))
        config = json.loads(json.dumps(adamx.to_config(opt)))
        assert "adamx.hidden_matrices" in str(config)
        assert adamx.from_config(config) == opt
        assert hash(opt) == hash(adamx.muon(0.1, axes=axes, rest=adamx.adam(0.1)))
    opt = adamx.orthogonalize(axes=pair)
    config = adamx.to_config(opt, known={"pair": pair})
    assert adamx.from_config(config, known={"pair": pair}) == opt


# Bad arguments, named with the stage

REFUSED = [
    (lambda: adamx.orthogonalize("muon6"), ["orthogonalize", "'polar_express'", "'muon6'"]),
    (lambda: adamx.orthogonalize([(1, 2)]), ["(a, b, c)", "[(1, 2)]"]),
    (lambda: adamx.orthogonalize([]), ["(a, b, c)"]),
    (lambda: adamx.orthogonalize(steps=0), ["steps", "0"]),
    (lambda: adamx.orthogonalize(eps=-1.0), ["eps", "-1.0"]),
    (lambda: adamx.orthogonalize(dtype="int8"), ["dtype", "'bfloat16'", "'int8'"]),
    (lambda: adamx.scale_by_shape("muon"), ["rule", "'spectral'", "'muon'"]),
    (lambda: adamx.scale_by_shape(lambda rows, columns: None), ["rule(2, 3)", "None"]),
    (lambda: adamx.scale_by_shape(lambda rows, columns: np.inf), ["rule(2, 3)", "inf"]),
    (lambda: adamx.muon(0.1, axes="rows"), ["orthogonalize", "'rows'"]),
]


@pytest.mark.parametrize(("make", "parts"), REFUSED)
def test_bad_arguments_are_refused(make, parts):
    opt, x = make(), jnp.ones((2, 3))
    with pytest.raises(StageError, match=says(*parts)):
        opt.update(x, opt.init(x), x)


@pytest.mark.parametrize("make", [adamx.muon, adamx.normuon, adamx.adamuon])
def test_a_vector_is_refused_and_named(make):
    params = {"dense": {"bias": jnp.ones(3)}}
    opt = make(0.1)
    with pytest.raises(StageError, match=says("['dense']['bias']", "(3,)", "rest=adamw")):
        opt.update(params, opt.init(params), params)


def test_matrices_need_an_optimiser_for_the_rest():
    with pytest.raises(ValueError, match=says("matrices=", "rest=")):
        adamx.muon(0.1, matrices="*/kernel")


# Which parameters are hidden matrices, by the names of common libraries

HIDDEN = """
    blocks/0/attn/query/kernel           params/Dense_0/kernel
    mlp/~/linear_1/w                     layers/3/self_attn/q_proj/weight
    multi_head_attention/query/w         MultiHeadDotProductAttention_0/out/kernel
    encoder/layer/0/output/dense/kernel  Conv_0/kernel
    heads/query/kernel                   layers/2/attention/linear/weight
    ahead/kernel                         mixer/token_mixing/kernel
"""
OUTER = """
    embed/embedding        Embed_0/embedding       token_embedding/weight   wte/weight
    wpe                    tok_emb/weight          pos_emb                  pos_embedding
    unembed/kernel         lm_head/kernel          head/kernel              LMHead_0/kernel
    mlm_head/dense/kernel  logits/kernel           to_logits/w              logits_dense/kernel
    classifier/kernel      embed_tokens/weight     transformer/wte/embeddings  patch_embed/kernel
    output_layer/weight    vocab_projection/kernel head_0/kernel            readout/kernel
"""


def test_hidden_matrices_are_known_by_their_names():
    kernel, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3), (3,)))
    hidden = {path: adamx.hidden_matrices(path, kernel) for path in HIDDEN.split()}
    outer = {path: adamx.hidden_matrices(path, kernel) for path in OUTER.split()}
    assert [path for path, found in hidden.items() if not found] == []
    assert [path for path, found in outer.items() if found] == []
    assert not any(adamx.hidden_matrices(path, bias) for path in HIDDEN.split())


# How near to orthogonal: of the smallest singular values, as parts of the norm, on

NEAR = {"muon5": (0.68, 1.21, 2e-3), "polar_express": (0.85, 1.15, 1.1e-3)}
NEAR["deepseek_v4"] = (0.99, 1.01, 3e-5)


def with_condition(shape, condition, random):
    """A random matrix whose singular values are spaced evenly on a logarithmic scale."""
    p, _, q = np.linalg.svd(random.normal(size=shape), full_matrices=False)
    return (p * np.geomspace(1, 1 / condition, min(shape))) @ q


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("shape", [(1, 9), (16, 16), (24, 96), (96, 24), (64, 64)])
def test_singular_values_come_near_to_one(name, shape):
    least, most, part = NEAR[name]
    random = np.random.default_rng(0)
    for condition in (1, 10, 1e2, 1e3):
        g = with_condition(shape, condition, random)
        given = np.linalg.svd(g, compute_uv=False) / np.linalg.norm(g)
        opt = adamx.orthogonalize(name)
        u = once(opt, g.astype(np.float32))
        found = np.linalg.svd(np.asarray(u, np.float64), compute_uv=False)
        assert found.max() <= most
        assert found[: np.sum(given >= part)].min(initial=1.0) >= least


def test_many_steps_give_the_polar_factor():
    random = np.random.default_rng(0)
    for shape in ((5, 5), (3, 7), (7, 3)):
        g = random.normal(size=shape)
        p, _, q = np.linalg.svd(g, full_matrices=False)
        opt = adamx.orthogonalize([(2.0, -1.5, 0.5)], steps=30)
        u = once(opt, g.astype(np.float32))
        np.testing.assert_allclose(u, p @ q, atol=2e-6)


# In single precision, and with products in bfloat16: rounding grows by a² of each step, at most
# 3.4445⁵ ≈ 485, for the smallest singular values.


@pytest.mark.parametrize(("dtype", "most"), [(None, 1e-4), ("float32", 1e-4), ("bfloat16", 0.1)])
def test_products_are_as_precise_as_their_dtype(dtype, most):
    g = np.random.default_rng(1).normal(size=(64, 96)).astype(np.float32)
    opt = adamx.orthogonalize(dtype=dtype)
    error = np.abs(once(opt, g) - reference.newton_schulz(g.astype(np.float64)))
    assert error.max() <= most * 1.21
    assert dtype != "bfloat16" or error.max() > 1e-4  # they are narrow


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e37])
def test_the_size_of_the_gradient_does_not_matter(dtype, size):
    g = np.random.default_rng(0).normal(size=(2, 6, 4))
    g = (g[0] + 1j * g[1] if dtype == jnp.complex64 else g[0]).astype(dtype)
    opt = adamx.orthogonalize()
    np.testing.assert_allclose(once(opt, (g * size).astype(dtype)), once(opt, g), atol=3e-2)


@pytest.mark.parametrize("make", [adamx.normalize_rows, adamx.scale_by_row_rms])
@pytest.mark.parametrize("size", [1e-3, 1e15, 1e37])
def test_stages_that_keep_the_size_keep_any(make, size):
    g = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    size = min(size, 1e17) if make is adamx.scale_by_row_rms else size  # statistics are limited
    size = np.float32(size)
    np.testing.assert_allclose(once(make(), g * size) / size, once(make(), g), atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        adamx.orthogonalize,
        adamx.normalize_rows,
        adamx.normalize_to_rank,
        adamx.scale_by_row_rms,
        adamx.scale_by_shape,
        lambda: adamx.muon(0.1),
        lambda: adamx.normuon(0.1),
        lambda: adamx.adamuon(0.1),
    ],
)
@pytest.mark.parametrize("shape", [(3, 2), (0, 3), (3, 0), (2, 0, 3)])
def test_zero_stays_zero(make, shape):
    x, opt = jnp.zeros(shape), make()
    np.testing.assert_array_equal(opt.update(x, opt.init(x), x)[0], x)


def test_row_rms_keeps_the_bias_of_the_momentum():
    """It keeps the norm of the update, which is too small by the same factor behind it."""
    g = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    opt = adamx.chain(
        adamx.scale_by_momentum(0.9), adamx.scale_by_row_rms(), adamx.bias_correction()
    )
    u = opt.update(g, opt.init(g))[0]
    np.testing.assert_allclose(jnp.linalg.norm(u), jnp.linalg.norm(g), rtol=1e-6)
