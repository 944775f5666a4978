"""Muon, and optimisers in a basis: recorded trajectories, laws, shapes and errors."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from catalog import run, slow_but, x64

pytestmark = pytest.mark.optimised

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "matrices.json").read_text())
CASES = {case["id"]: case for case in RECORD["cases"]}
ARRAYS = np.load(GOLDEN / "matrices.npz")


# The programs of others, as chains


def torch_muon(lr=1e-3, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn=None):
    scaling = "adamw_rms" if adjust_lr_fn else "original"
    rest = {"nesterov": nesterov, "scaling": scaling}
    return adamx.muon(lr, momentum, weight_decay, **rest)


def optax_muon(learning_rate, beta=0.95, weight_decay=0.0, consistent_rms=None):
    """The momentum and the gradient are each corrected for their weights."""
    return adamx.chain(
        adamx.scale_by_nesterov_momentum(beta, math.inf),
        adamx.orthogonalize(eps=1e-8),
        adamx.scale_by_shape("adamw_rms" if consistent_rms else "original"),
        adamx.add_decayed_weights(weight_decay),
        adamx.scale_by_learning_rate(learning_rate),
    )


def normuon(lr=0.02, weight_decay=0.0, momentum=0.95, beta2=0.95):
    return adamx.normuon(lr, momentum, beta2, 1e-10, weight_decay)


def adamuon(lr=0.02, weight_decay=0.01, momentum=0.95, eps=1e-8, nesterov=True):
    return adamx.adamuon(lr, momentum, momentum, eps, weight_decay, nesterov=nesterov)


def soap(
    lr=3e-3, betas=(0.95, 0.95), shampoo_beta=None, precondition_frequency=10, of=adamx.soap, **rest
):
    rest |= {"shampoo_beta": shampoo_beta, "every": precondition_frequency, "spread": False}
    return of(lr, *betas, **rest)


def on_matrices(inner, **rest):
    """Adam for the vectors, as the authors' groups without a rank have it."""
    return adamx.partition(
        {(lambda path, shape: len(shape.shape) > 1): inner, "*": adamx.adam(**rest)}
    )


def galore(lr, low_rank, of=adamx.galore):
    rest = {"rank": low_rank["rank"], "every": low_rank["update_proj_gap"]}
    rest["scaling"] = low_rank.get("scale", low_rank.get("alpha"))
    inner = of(lr, spread=False, **rest)
    return on_matrices(inner, learning_rate=lr, eps=0.0, eps_hat=1e-6)


def apollo(lr, low_rank, case):
    """With the random matrices that the authors' program drew."""
    groups = {}
    for name in ("tall", "wide"):
        drawn = ARRAYS[f"{case}.projection.{name}"]  # of the transposed kernel
        sides = {"left": drawn.T} if name == "wide" else {"right": drawn}
        groups[name] = adamx.chain(
            adamx.in_basis(
                adamx.fixed_basis(**sides),
                adamx.chain(adamx.scale_by_momentum(), adamx.scale_by_rms(eps=0.0, eps_hat=1e-6)),
                leave=adamx.leave_by_scaling(low_rank["scale_type"]),
            ),
            adamx.limit_growth(),
            adamx.scale(math.sqrt(low_rank["scale"])),
            adamx.bias_correction(),
            adamx.scale_by_learning_rate(lr),
        )
    return adamx.partition({**groups, "*": adamx.adam(lr, eps=0.0, eps_hat=1e-6)})


def splus(inverse_steps, weight_decay, betas, foreach):
    return adamx.splus(0.1, *betas, weight_decay, every=inverse_steps, spread=False)


def scheduled(of_count):
    """In double precision; JAX makes float32 of an int32 count."""
    return lambda t: of_count(jnp.asarray(t, jnp.float64))


def shampoo(lr, matrix_eps):
    """The sums of Algorithm 1: a mean of t products is their sum over t."""
    return adamx.chain(
        adamx.scale_by_kronecker_roots(
            scheduled(lambda t: 1 - 1 / (t + 1)), 1e-18, every=1, spread=False
        ),
        adamx.scale(scheduled(lambda t: (t + 1) ** -0.5)),
        adamx.scale_by_learning_rate(lr),
    )


def adamc(lr, betas, eps, weight_decay, falls, of_matrices):
    rate = scheduled(lambda t: lr * (1 - t / 40))
    return adamx.adamc(rate, *betas, eps, weight_decay, max_learning_rate=lr)


def adam_on_spheres(lr, betas, eps, weight_decay):
    """HeavyBall's has no momentum."""
    return adamx.chain(
        adamx.scale_by_rms(betas[1], eps), adamx.bias_correction(), adamx.hyperball(lr)
    )


def muon_h(of, lr):
    return adamx.muon_h(lr, of[1]["momentum"])


def braked(of, outward_scale, inward_scale):
    return adamx.chain(
        adamx.sgd(of[1]["lr"], of[1]["momentum"]), adamx.radial_brake(outward_scale, inward_scale)
    )


EQUAL = {
    "torch.optim:Muon": torch_muon,
    "muon:SingleDeviceMuon": torch_muon,
    "optax.contrib:muon": optax_muon,
    "normuon:SingleDeviceNorMuon": normuon,
    "adamuon:AdaMuon": adamuon,
    "heavyball:KLSOAP": functools.partial(soap, of=adamx.kl_soap),
    "soap:SOAP": soap,
    "galore_torch.adamw:AdamW": galore,
    "fira.fira_adamw:AdamW": functools.partial(galore, of=adamx.fira),
    "apollo_torch.apollo:AdamW": apollo,
    "pytorch_optimizer:SPlus": splus,
    "pytorch_optimizer:Shampoo": shampoo,
    "pytorch_optimizer:AdamC": adamc,
    "heavyball:HyperBallAdamW": adam_on_spheres,
    "hooks.hyperball:HyperballHook": muon_h,
    "hooks.radial_brake:RadialBrakeHook": braked,
}
SINGLE = ("heavyball", "hooks")


@pytest.mark.parametrize("id_", CASES)
def test_it_follows_the_recorded_program(id_):
    case = CASES[id_]
    kwargs, names = dict(case["kwargs"]), case["names"]
    if case["authority"].startswith("apollo"):
        kwargs["case"] = id_
    with x64():
        opt = EQUAL[case["authority"]](**kwargs)
        params = {k: jnp.asarray(ARRAYS[f"params.{k}"]) for k in names}
        grads = {k: jnp.asarray(ARRAYS[f"grads.{k}"]) for k in names}
        updates = run(opt, grads, params)
    for k in names:
        ours = ARRAYS[f"params.{k}"] + np.cumsum(updates[k], 0)
        theirs = ARRAYS[f"{id_}.{k}"]
        moved = np.abs(theirs - ARRAYS[f"params.{k}"]).max()
        tolerance = 5e-3 if case["authority"].startswith(SINGLE) else 1e-6  # single precision
        assert np.abs(ours - theirs).max() <= tolerance * moved, k


# Laws

RNG = np.random.default_rng(0)
START = jnp.asarray(RNG.standard_normal((4, 5)), jnp.float32)
GRADS = jnp.asarray(RNG.standard_normal((12, 4, 5)), jnp.float32)
SOAP = functools.partial(adamx.soap, 0.05, every=2)


def rotation(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


@pytest.mark.parametrize("name", ["adamw", "lion", "adopt", "ademamix", "laprop"])
def test_in_the_identity_a_recipe_is_itself(name):
    opt = adamx.get_recipe(name)(0.1)
    inside = adamx.in_basis(adamx.fixed_basis(), opt)
    np.testing.assert_array_equal(run(inside, GRADS, START), run(opt, GRADS, START))


def test_the_trajectory_of_a_rotated_problem_is_rotated():
    """Of SOAP, in double precision; Adam's is another one."""
    left, right = rotation(5), rotation(5)
    grads = RNG.standard_normal((15, 5, 5))
    with x64():
        opt = adamx.soap(0.05, every=3, weight_decay=0.0)
        start = jnp.zeros((5, 5))
        plain = run(opt, jnp.asarray(grads), start)
        turned = run(opt, jnp.asarray(left @ grads @ right.T), start)
    np.testing.assert_allclose(turned, left @ plain @ right.T, atol=1e-7)


def test_a_whole_turn_of_the_basis_keeps_an_average():
    """Signed slots are turned: momentum in an eigenbasis is momentum."""
    basis = adamx.eigenbasis(0.9, every=2)
    inside = adamx.in_basis(basis, adamx.scale_by_momentum(0.8))
    plain = run(adamx.scale_by_momentum(0.8), GRADS, START)
    np.testing.assert_allclose(run(inside, GRADS, START), plain, atol=1e-6)


def test_parameters_refresh_their_bases_in_different_steps():
    params = {str(i): START for i in range(3)}
    opt = adamx.in_basis(adamx.eigenbasis(0.9, every=3), adamx.scale_by_momentum())
    state, when = opt.init(params), {name: [] for name in params}
    for t, grad in enumerate(GRADS):
        before = state["eigenbasis"]["left_basis"]
        _, state = opt.update(dict.fromkeys(params, grad), state, params)
        for name, basis in state["eigenbasis"]["left_basis"].items():
            if not np.array_equal(basis, before[name]):
                when[name].append(t)
    assert {name: steps[0] for name, steps in when.items()} == dict.fromkeys(params, 1)
    assert len({tuple(steps) for steps in when.values()}) == 3
    assert all(np.all(np.diff(steps[1:]) == 3) for steps in when.values())


def test_before_the_start_nothing_changes_but_the_basis():
    opt = adamx.delay_start(adamx.chain(adamx.adam(0.1)), steps=2)
    updates, state = opt.update(GRADS[0], opt.init(START), START)
    assert not np.any(updates)
    assert not np.any(state["scale_by_momentum"]["mu"])
    found = run(opt, GRADS, START)
    np.testing.assert_array_equal(found[:2], 0)
    np.testing.assert_allclose(found[2:], run(adamx.adam(0.1), GRADS[2:], START), rtol=1e-6)


# Crossings


def trained(opt, params, grads):
    state = opt.init(params)
    form = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
    for grad in grads:
        updates, state = opt.update({"w": grad, "b": grad[0]}, state, params)
        params = adamx.apply_updates(params, updates)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == form
    return params, state


IN_A_BASIS = ["soap", "kl_soap", "splus", "galore", "fira", "apollo", "shampoo"]


@pytest.mark.parametrize("name", slow_but(["galore"], IN_A_BASIS))
def test_it_is_crossed_with_everything(name):
    make = adamx.get_recipe(name)
    params = {"w": START, "b": START[0]}
    plain, _ = trained(make(0.05), params, GRADS)
    opt = make(0.05)
    assert adamx.from_config(adamx.to_config(opt)) == opt
    averaged, _ = trained(adamx.chain(opt, adamx.polyak_ema(0.5), adamx.watch()), params, GRADS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), averaged, plain)
    small, state = trained(adamx.quantize_state(opt, "int8", min_size=8), params, GRADS)
    assert any("@int8" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(small))
    some, _ = trained(adamx.partition({"w": opt, "*": adamx.set_to_zero()}), params, GRADS)
    if name != "apollo":  # its random numbers are those of the stage's name
        np.testing.assert_allclose(some["w"], plain["w"], rtol=1e-5)
    np.testing.assert_array_equal(some["b"], params["b"])
    rates = jnp.array([0.05, 0.1])
    many = jax.vmap(lambda rate: trained(make(rate), params, GRADS)[0]["w"])(rates)
    np.testing.assert_allclose(many[0], plain["w"], rtol=1e-3, atol=1e-4)


def test_quantized_slots_inside_a_basis_are_turned_as_numbers():
    basis = adamx.eigenbasis(0.9, every=2)
    codec = adamx.int8(rounding="nearest")
    inside = adamx.quantize_state(adamx.scale_by_momentum(0.5), codec, min_size=8)
    found = run(adamx.in_basis(basis, inside), GRADS, START)
    plain = run(adamx.scale_by_momentum(0.5), GRADS, START)
    assert np.abs(found - plain).max() < 0.05 * np.abs(plain).max()


# Errors

WRONG = {
    "no basis": (
        lambda: adamx.in_basis(adamx.scale_by_rms(), adamx.adam(0.1)),
        "scale_by_rms finds no basis",
    ),
    "a recipe as a basis": (
        lambda: adamx.in_basis(adamx.adam(0.1), adamx.adam(0.1)),
        "basis must be one stage, such as eigenbasis",
    ),
    "an average of parameters inside": (
        lambda: adamx.in_basis(
            adamx.eigenbasis(), adamx.chain(adamx.adam(0.1), adamx.polyak_ema())
        ),
        "polyak_ema.*Put it outside of in_basis",
    ),
    "behind the rate": (
        lambda: adamx.chain(adamx.sgd(0.1), adamx.in_basis(adamx.eigenbasis(), adamx.sign())),
        "eigenbasis.*Put it in front",
    ),
    "a rate in front of a ratio": (
        lambda: adamx.in_basis(
            adamx.random_projection(2), adamx.adam(0.1), leave=adamx.leave_by_scaling()
        ),
        "leave_by_scaling.*Put it in front",
    ),
    "a basis within a basis": (
        lambda: adamx.in_basis(adamx.fixed_basis(), adamx.in_basis(adamx.fixed_basis(), sgd())),
        "in_basis.* inside in_basis.* is not possible",
    ),
    "a chain that ends in a basis": (
        lambda: adamx.chain(adamx.eigenbasis(), adamx.adam(0.1)),
        "ends in a basis",
    ),
    "a period of zero": (lambda: adamx.eigenbasis(every=0), "every must be a whole number"),
    "a matrix that does not fit": (
        lambda: adamx.in_basis(adamx.fixed_basis(np.eye(3)), sgd()),
        r"left has the shape \(3, 3\), but the parameter has 4 rows",
    ),
    "a delay of none": (lambda: adamx.delay_start(sgd(), 0), "steps must be a whole number"),
    "a vector for Muon": (lambda: adamx.muon(0.1), "rest="),
}


def sgd():
    return adamx.sgd(0.1)


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_work_is_a_named_error(what):
    make, message = WRONG[what]
    params = START[0] if "vector" in what else START

    def use(opt):
        opt.update(params, opt.init(params), params)

    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        use(make())


def test_two_bases_in_a_row_are_written_as_two():
    opt = adamx.chain(
        adamx.in_basis(adamx.fixed_basis(), adamx.sign()),
        adamx.in_basis(adamx.fixed_basis(), adamx.scale_by_rms()),
    )
    assert repr(opt).count("in_basis(") == 2
    assert eval(repr(opt), vars(adamx)) == opt


# Bases: what an audit found


@pytest.mark.parametrize("axes", ["heads", ((1,), (0,)), ((0,), (2,))])
def test_a_view_permutes_the_axes_also_of_equal_sizes(axes):
    shape = (4, 4) if axes == ((1,), (0,)) else (4, 4, 4)
    x = jnp.asarray(RNG.standard_normal(shape))
    view = adamx.matrix_view(axes, shape)
    apart = {"heads": (1, 0, 2), ((1,), (0,)): (1, 0), ((0,), (2,)): (1, 0, 2)}[axes]
    np.testing.assert_array_equal(view.matrices(x), jnp.transpose(x, apart))
    np.testing.assert_array_equal(view.array(view.matrices(x)), x)


@pytest.mark.parametrize("make", [adamx.soap, adamx.kl_soap, adamx.galore, adamx.apollo])
def test_large_gradients_stay_finite_when_they_are_turned(make):
    opt, params = make(0.1, every=1), jnp.ones((8, 16))
    state = opt.init(params)
    for size in (1.0, 1e19, 1e30, 1.0, 1.0):
        grads = size * jnp.asarray(RNG.standard_normal((8, 16)), jnp.float32)
        updates, state = opt.update(grads, state, params)
        assert jnp.all(jnp.isfinite(updates)), size


def test_a_large_update_from_a_basis_is_limited_again():
    grads = jnp.full((2, 2), 1e15)
    inside = adamx.in_basis(adamx.fixed_basis(np.eye(2)), adamx.scale(1e15))
    opt = adamx.chain(inside, adamx.scale_by_rms())
    plain = adamx.chain(adamx.scale(1e15), adamx.scale_by_rms())
    np.testing.assert_allclose(
        opt.update(grads, opt.init(grads))[0], plain.update(grads, plain.init(grads))[0]
    )


@pytest.mark.parametrize("exact", [False, True])
def test_squares_are_sorted_as_exact_eigenvectors_are(exact):
    """The first eigenvectors of a diagonal matrix exchange its axes."""
    grads = jnp.diag(jnp.array([1.0, 10.0]))
    basis = adamx.eigenbasis(0.9, every=1, spread=False, exact=exact)
    opt = adamx.in_basis(basis, adamx.adam(1.0))
    state = opt.init(grads)
    for _ in range(3):
        updates, state = opt.update(grads, state)
        np.testing.assert_allclose(updates, -jnp.eye(2), atol=1e-5)


def test_an_update_of_zero_does_not_lift_the_limit():
    opt = adamx.limit_growth(1.5)
    state = opt.init(jnp.zeros(1))
    for size, expected in ((1.0, 1.0), (0.0, 0.0), (100.0, 1.5)):
        update, state = opt.update(jnp.array([size]), state)
        assert update == pytest.approx(expected)


def test_shampoo_trains_what_has_no_gradient_at_first():
    """None or zero in the first step; the roots are computed in the tenth step after it."""
    params = {"x": jnp.ones((2, 2)), "y": jnp.ones((2, 2))}
    grads = {"x": jnp.ones((2, 2)), "y": jnp.diag(jnp.array([1.0, -2.0]))}
    for first in (None, jnp.zeros((2, 2))):
        opt = adamx.shampoo(0.1, every=10)
        _, state = opt.update({**grads, "y": first}, opt.init(params), params)
        updates, _ = opt.update(grads, state, params)
        assert np.abs(updates["y"]).max() > 0.01


def test_a_state_is_not_read_in_another_basis():
    inside, params = adamx.scale_by_momentum(0.9), jnp.zeros((4, 4))
    state = adamx.in_basis(adamx.eigenbasis(0.9), inside).init(params)
    for other in (
        inside,
        adamx.in_basis(adamx.kl_eigenbasis(0.9), inside),
        adamx.in_basis(adamx.eigenbasis(0.9, one_sided=True), inside),
    ):
        with pytest.raises(adamx.StageError, match="'mu' of this parameter is kept in the basis"):
            adamx.restore_state(state, other, params)
        without = {"count": state["count"]}
        assert adamx.restore_state(without, other, params).report.initialised
    same = adamx.in_basis(adamx.eigenbasis(0.9, every=3), inside)
    assert not adamx.restore_state(state, same, params).report.initialised
    entering = adamx.restore_state(inside.init(params), same, params)
    assert "mu" in {row.entry for row in entering.report.rows if row.outcome == "kept"}


def test_a_transformation_of_optax_is_refused_in_a_basis():
    opt = adamx.in_basis(adamx.eigenbasis(), optax.adam(1.0))
    with pytest.raises(adamx.StageError, match="can't run the Optax transformation"):
        opt.init(jnp.ones((4, 2)))


# Which axes, by path


KERNELS = {
    "attention/query/kernel": ((64, 4, 16), (64, 64)),
    "attention/key/kernel": ((64, 2, 16), (64, 32)),
    "self_attn/out/kernel": ((4, 16, 64), (64, 64)),
    "layers/attention/out/kernel": ((12, 4, 16, 64), (12, 64, 64)),
    "layers/attention/value/kernel": ((12, 64, 4, 16), (12, 64, 64)),
    "layers/query/kernel": ((12, 64, 64), (12, 64, 64)),  # a stack of dense layers
    "layers/attention/out/kernel_": ((12, 64, 64), (12, 64, 64)),
    "mlp/out/kernel": ((4, 16, 64), (4, 16, 64)),
    "conv/query/kernel": ((1, 1, 8, 16), (8, 16)),
}


@pytest.mark.parametrize("path", KERNELS)
def test_kernels_of_attention_are_recognised(path):
    shape, expected = KERNELS[path]
    axes = adamx.kernel_axes(path, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert adamx.matrix_view(axes, shape).shape == expected


def test_axes_may_be_a_function_of_path_and_shape():
    """Each parameter gets its own; the function is called with the parameter's path."""
    params = {"a": jnp.asarray(RNG.standard_normal((4, 3, 5))), "b": jnp.ones((4, 3, 5))}
    of = lambda path, shape: "heads" if path == "a" else "last"  # noqa: E731
    opt, heads = adamx.orthogonalize(axes=of), adamx.orthogonalize(axes="heads")
    updates, _ = opt.update(params, opt.init(params))
    expected, _ = heads.update(params, heads.init(params))
    np.testing.assert_array_equal(updates["a"], expected["a"])
    assert not np.allclose(updates["b"], expected["b"])
    state = adamx.normuon(0.1, axes=of).init(params)
    assert jax.tree.map(jnp.shape, state["scale_by_row_rms"]["nu"]) == {
        "a": (3, 1, 5),
        "b": (4, 1, 5),
    }

    def failing(path, shape):
        raise KeyError(path)

    with pytest.raises(adamx.StageError, match=r"parameter a.*axes, a function of path"):
        adamx.soap(0.1, axes=failing).init(params)


@pytest.mark.parametrize("path", ["ln_1/w", "LayerNorm_0/scale", "query/bias", "pos", "wpe/w"])
def test_stacked_vectors_are_no_hidden_matrices(path):
    assert not adamx.hidden_matrices(path, jax.ShapeDtypeStruct((12, 64), jnp.float32))
