"""Any chain, with its slots kept in fewer bits between steps."""

import functools
import os
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.core import Rule, stage
from catalog import OPTIMISERS, REPRESENTATIVES, slow_but, x64

pytestmark = pytest.mark.sampled

CODECS = ["bf16", "fp8", "int8"]
STEPS, SHAPE = 12, (6, 70)  # rows of two blocks
RNG = np.random.default_rng(0)
PARAMS = RNG.normal(size=SHAPE).astype(np.float32)
SCALES = np.exp(RNG.normal(size=SHAPE))
DRIFT = 0.5 * RNG.normal(size=SHAPE)
GRADS = (SCALES * (RNG.normal(size=(2 * STEPS, *SHAPE)) + DRIFT)).astype(np.float32)


def avals(tree):
    """What a state must keep: its tree, shapes, dtypes and weak types."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)


def assert_identical(one, other):
    chex.assert_trees_all_equal(one, other)
    chex.assert_trees_all_equal_dtypes(one, other)


@pytest.fixture
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def train(opt, params=PARAMS, grads=GRADS):
    """Parameters and state after a step for each of the gradients, in one program."""
    return program(opt)((params, opt.init(params)), grads)


@functools.cache
def program(opt):
    @jax.jit
    def run(carry, grads):
        return jax.lax.scan(functools.partial(one_step, opt), carry, grads)[0]

    return run


def one_step(opt, carry, grad):
    params, state = carry
    updates, after = opt.update(grad, state, params)
    assert avals(after) == avals(state)
    return (adamx.apply_updates(params, updates), after), None


def adam(codec="int8", **options):
    return adamx.quantize_state(adamx.adam(1e-2), codec, min_size=1, **options)


def encoded(state):
    """The slots that a codec has encoded, by stage and slot."""
    return {
        (row.stage, row.slot): row.kept_as
        for row in adamx.memory_usage(state).rows
        if row.kept_as in CODECS
    }


# The product: every optimiser, every codec

# Of their slots none is encoded: none is there, or the last digits of all of them count.
EXACT = {"sgd", "rmsprop_centered"}
# Where rounding turns the sign of an element of the update, it is a whole step that differs.
DISTANCE = {"bf16": 0.005, "fp8": 0.08, "int8": 0.05}
DISTANCE_OF_SIGNS = {"bf16": 0.03, "fp8": 0.1, "int8": 0.08}


@pytest.mark.parametrize("name", slow_but(["adam", "prodigy"], REPRESENTATIVES))
def test_every_optimiser_trains_with_every_codec_as_it_does_in_float32(name):
    """The way from the start differs by a few per cent: about as much as a code is wide."""
    plain = OPTIMISERS[name](1e-2)
    opts = {codec: adamx.quantize_state(plain, codec, min_size=1) for codec in CODECS} | {
        "plain": plain
    }

    @jax.jit
    def run(carries, grads):
        def step(carries, grad):
            return {key: one_step(opts[key], x, grad)[0] for key, x in carries.items()}, None

        return jax.lax.scan(step, carries, grads)[0]

    start = {key: (PARAMS, opt.init(PARAMS)) for key, opt in opts.items()}
    middle = run(start, GRADS[:STEPS])
    end = run(middle, GRADS[STEPS:])
    way = end["plain"][0] - PARAMS
    limits = DISTANCE_OF_SIGNS if name in ("lion", "signum") else DISTANCE
    for codec in CODECS:
        params, state = end[codec]
        assert np.linalg.norm(params - end["plain"][0]) <= limits[codec] * np.linalg.norm(way)
        assert set(encoded(state).values()) == (set() if name in EXACT else {codec})
        assert adamx.memory_usage(state).float32_bytes >= adamx.memory_usage(end["plain"][1]).bytes
    resumed = run(pickle.loads(pickle.dumps(middle)), GRADS[STEPS:])
    assert_identical(resumed, end)
    target = jax.tree.map(jnp.zeros_like, start)
    restored = serialization.from_bytes(target, serialization.to_bytes(middle))
    assert_identical(restored, middle)


def test_what_is_exact_stays_as_it_is():
    for name, slots in {
        "averaged": {"ema"},
        "lookahead_of_adam": {"slow"},
        "schedule_free_adamw": {"z"},
        "prodigy": {"params0"},
        "adam_compensated": {"nu_lost"},
        "rmsprop_centered": {"mu", "nu"},
    }.items():
        opt = OPTIMISERS[name](1e-2)
        rows = adamx.memory_usage(adamx.quantize_state(opt, "int8", min_size=1).init(PARAMS)).rows
        kept = {row.slot for row in rows if row.elements >= PARAMS.size and row.kept_as != "int8"}
        assert kept == slots
        for slot in slots - {"ema"}:  # an average is, where it is named
            with pytest.raises(ValueError, match=rf"the slot '{slot}' can't be quantized"):
                adamx.quantize_state(opt, **{slot: "int8"})


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adagrad", "adadelta", "adafactor", "adan"])
def test_squares_have_codes_without_a_sign(name):
    """Those never make zero of a positive value."""
    state = adamx.quantize_state(OPTIMISERS[name](1e-2), "int8", min_size=1).init(PARAMS)
    found = jax.tree_util.tree_leaves_with_path(state)
    kept = {path[1].key: x.dtype for path, x in found if path[-1] == jax.tree_util.DictKey("codes")}
    squares = {"nu", "nu_max", "sum_of_squares", "delta"}
    assert kept == {slot: jnp.uint8 if slot in squares else jnp.int8 for slot in kept} != {}


# Rounding


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_an_average_decays_in_the_mean_where_rounded_to_the_nearest_it_sticks(codec):
    """Without gradients vₜ = β₂ᵗ v₀, exactly in the mean; a step is less than half a code."""
    opt = adamx.chain(adamx.scale_by_rms(b2=0.999), adamx.bias_correction())
    first = np.concatenate([np.full((64, 1), 2.0), RNG.uniform(0.5, 1, (64, 63))], 1)
    grads = jnp.zeros((401, 64, 64)).at[0].set(first)
    found = {}
    for rounding in ("stochastic", "nearest"):
        used = getattr(adamx, codec)(rounding=rounding)
        _, state = train(adamx.quantize_state(opt, used, min_size=1), jnp.zeros((64, 64)), grads)
        found[rounding] = np.mean(adamx.dequantize(state, "nu")) / np.mean(0.001 * first**2)
    assert abs(found["stochastic"] / 0.999**400 - 1) < 0.01
    assert found["nearest"] > 0.95


def test_the_same_seed_takes_the_same_steps_and_another_one_others():
    first, second, other = (train(adam(seed=seed)) for seed in (0, 0, 1))
    assert_identical(first, second)
    assert np.mean(np.asarray(first[0]) != np.asarray(other[0])) > 0.5


def test_every_parameter_step_slot_and_stage_is_rounded_by_bits_of_its_own():
    opt = adamx.quantize_state(
        adamx.chain(adamx.scale_by_momentum(0.5), adamx.scale_by_momentum(0.5)), "int8", min_size=1
    )
    grad = {"a": GRADS[0], "b": GRADS[0]}
    _, one = opt.update(grad, opt.init(grad))
    _, two = opt.update(grad, one)

    def codes(state, name, stage=""):
        return np.asarray(state[f"scale_by_momentum{stage}"]["mu"][name]["@int8"]["codes"])

    assert np.mean(codes(one, "a") != codes(one, "b")) > 0.2
    again, _ = opt.update(grad, one | {"count": one["count"] + 5}), None
    assert_identical(again[1]["scale_by_momentum"], two["scale_by_momentum"])
    keys = [int(s[name]["key"]) for s in (one, two) for name in s if name != "count"]
    assert len(set(keys)) == 2  # the same in both stages, whose names make the difference
    twin = adamx.quantize_state(adamx.adabelief(1e-2, b1=0.5, b2=0.5), "int8", min_size=1)
    assert twin.init(grad)["scale_by_belief"]["key"].dtype == jnp.uint32


def test_nearest_rounding_keeps_no_key():
    opt = adamx.quantize_state(adamx.adam(1e-2), adamx.int8(rounding="nearest"), min_size=1)
    assert not any("key" in entry for entry in opt.init(PARAMS).values() if isinstance(entry, dict))
    mixed = adamx.quantize_state(
        adamx.adam(1e-2), mu=adamx.bf16(rounding="nearest"), nu="int8", min_size=1
    ).init(PARAMS)
    assert "key" in mixed["scale_by_rms"] and "key" not in mixed["scale_by_momentum"]


# What is stored how


def test_single_slots_have_codecs_of_their_own():
    opt = adamx.quantize_state(adamx.adam(1e-2), "int8", mu="bf16", min_size=1)
    assert encoded(opt.init(PARAMS)) == {
        ("scale_by_momentum", "mu"): "bf16",
        ("scale_by_rms", "nu"): "int8",
    }
    opt = adamx.quantize_state(adamx.adam(1e-2), "int8", mu=None, min_size=1)
    assert encoded(opt.init(PARAMS)) == {("scale_by_rms", "nu"): "int8"}
    opt = adamx.quantize_state(adamx.adam(1e-2), nu=adamx.fp8(16), min_size=1)
    assert encoded(opt.init(PARAMS)) == {("scale_by_rms", "nu"): "fp8"}


def test_small_arrays_stay_float32():
    params = {"small": jnp.zeros(4095), "large": jnp.zeros(4096), "scalar": jnp.zeros(())}
    nu = adamx.quantize_state(adamx.adam(1e-2), "int8").init(params)["scale_by_rms"]["nu"]
    assert nu["small"].dtype == nu["scalar"].dtype == jnp.float32
    assert set(nu["large"]) == {"@int8"}
    nu = adam().init(params)["scale_by_rms"]["nu"]
    assert nu["scalar"].dtype == jnp.float32 and set(nu["small"]) == {"@int8"}


def test_without_a_codec_nothing_changes():
    opt = adamx.quantize_state(adamx.adam(1e-2), None)
    assert eval(repr(opt), vars(adamx)) == opt
    assert_identical(train(opt), train(adamx.adam(1e-2)))


def test_what_is_stored_inside_stays_as_it_is():
    inside = adamx.quantize_state(adamx.scale_by_momentum(), "bf16", min_size=1)
    opt = adamx.quantize_state(adamx.chain(inside, adamx.scale_by_rms()), "int8", min_size=1)
    assert set(encoded(opt.init(PARAMS)).values()) == {"bf16", "int8"}
    params, state = train(adamx.chain(opt, adamx.scale_by_learning_rate(1e-2)))
    assert encoded(state) == {("scale_by_momentum", "mu"): "bf16", ("scale_by_rms", "nu"): "int8"}
    assert np.isfinite(params).all()


@pytest.mark.parametrize("turn", [1, -1])
def test_a_slot_that_is_stored_in_one_stage_may_still_be_in_another(turn):
    """Whichever of them comes first."""
    both = [
        adamx.quantize_state(adamx.scale_by_momentum(), "bf16", min_size=1),
        adamx.scale_by_momentum(),
    ]
    opt = adamx.quantize_state(adamx.chain(*both[::turn]), mu="int8", min_size=1)
    assert sorted(encoded(opt.init(PARAMS)).values()) == ["bf16", "int8"]


def test_whole_numbers_that_a_stage_counts_stay_whole():
    @stage
    def seen():
        def update(signal, slots, step):
            return signal, {"times": slots["times"] + 1}

        return Rule(update, slots={"times": lambda p: jnp.zeros(p.shape, jnp.int32)})

    opt = adamx.quantize_state(seen(), "int8", min_size=1)
    _, state = train(opt)
    assert state["seen"]["times"].dtype == jnp.int32
    assert np.all(state["seen"]["times"] == len(GRADS))


def test_a_codec_of_ones_own_keeps_what_it_makes():
    """16 bits in two planes of 8."""

    def encode(x, bits, nonnegative):
        short = jax.lax.bitcast_convert_type(adamx.bf16().encode(x, bits, nonnegative), jnp.uint16)
        return {"high": (short >> 8).astype(jnp.uint8), "low": (short & 255).astype(jnp.uint8)}

    def decode(kept):
        short = kept["high"].astype(jnp.uint16) << 8 | kept["low"].astype(jnp.uint16)
        return jax.lax.bitcast_convert_type(short, jnp.bfloat16).astype(jnp.float32)

    planes = adamx.Codec("planes", encode, decode)
    params, state = train(adam(planes))
    like, state_like = train(adam("bf16"))
    np.testing.assert_array_equal(params, like)
    assert set(state["scale_by_rms"]["nu"]) == {"@planes"}
    found = adamx.dequantize(state, "nu", codecs=(planes,))
    np.testing.assert_array_equal(found, adamx.dequantize(state_like, "nu"))
    assert adamx.memory_usage(state, codecs=(planes,)).bytes == adamx.memory_usage(state_like).bytes
    for look in (adamx.memory_usage, lambda state: adamx.dequantize(state, "nu")):
        with pytest.raises(ValueError, match=r"codec 'planes'.* codecs=\(codec,\)"):
            look(state)


# Around it and inside it


def test_a_selection_may_stand_inside_and_outside():
    params = {"kernel": PARAMS, "bias": PARAMS[0]}
    grads = {"kernel": GRADS, "bias": GRADS[:, 0]}
    inside = adamx.quantize_state(adamx.where("kernel", adamx.adam(1e-2)), "int8", min_size=1)
    outside = adamx.where("kernel", adam())
    one, two = train(inside, params, grads), train(outside, params, grads)
    assert_identical(one, two)
    nu = one[1]["scale_by_rms@kernel"]["nu"]
    assert nu["bias"] is None and set(nu["kernel"]) == {"@int8"}


def test_groups_have_codecs_of_their_own():
    params = {"kernel": PARAMS, "bias": PARAMS[0], "scale": PARAMS[1]}
    grads = {"kernel": GRADS, "bias": GRADS[:, 0], "scale": GRADS[:, 1]}
    opt = adamx.partition({"kernel": adam("int8"), "bias": adam("fp8"), "*": adamx.adam(1e-2)})
    found, state = train(opt, params, grads)
    assert sorted(encoded(state).values()) == ["fp8", "fp8", "int8", "int8"]
    plain, _ = train(adamx.adam(1e-2), params["scale"], grads["scale"])
    np.testing.assert_allclose(found["scale"], plain, rtol=1e-5)
    assert (
        "quantize_state(" in repr(opt) and eval(repr(opt), {**vars(adamx), "adamx": adamx}) == opt
    )
    stored = adamx.quantize_state(
        adamx.partition({"kernel": adamx.adam(1e-2), "*": adamx.lion(1e-2)}), "int8", min_size=1
    )
    assert set(encoded(train(stored, params, grads)[1]).values()) == {"int8"}


def test_transformations_of_optax_pass_if_they_keep_little():
    opt = adamx.quantize_state(
        adamx.chain(optax.clip_by_global_norm(1.0), adamx.adam(1e-2), optax.scale(0.5)),
        "int8",
        min_size=1,
    )
    assert np.isfinite(train(opt)[0]).all()
    kept = adamx.quantize_state(
        adamx.chain(adamx.adam(1e-2), optax.trace(0.9)), "int8", min_size=420
    )
    with pytest.raises(adamx.StageError, match=r"state of trace \(float32\[6,70\]\).*chain\(quant"):
        kept.init(PARAMS)
    assert kept.init(PARAMS[:, :69]) is not None
    with pytest.raises(adamx.StageError, match=r"can't quantize .* no stage of adamx"):
        adamx.quantize_state(optax.adam(1e-2), "int8", min_size=1).init(PARAMS)


@pytest.mark.slow
@pytest.mark.usefixtures("_standard_promotion")
@pytest.mark.parametrize("codec", CODECS)
def test_optax_wraps_it(codec):
    several = optax.MultiSteps(adam(codec), 2)
    params, state = PARAMS, several.init(PARAMS)
    step = jax.jit(several.update)
    for grad in GRADS[:4]:
        updates, state = step(grad, state, params)
        params = optax.apply_updates(params, updates)
    expected, _ = train(adam(codec), grads=GRADS[:4].reshape(2, 2, *SHAPE).mean(1))
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)

    careful = optax.apply_if_finite(adam(codec), 3)
    first = careful.init(PARAMS)
    _, state = jax.jit(careful.update)(np.full(SHAPE, np.nan, np.float32), first, PARAMS)
    assert_identical(state.inner_state, first.inner_state)

    inside = optax.chain(optax.clip(1.0), adam(codec))
    state = inside.init(PARAMS)
    assert set(optax.tree.get(state, "nu")) == {f"@{codec}"}
    assert adamx.dequantize(state, "nu").shape == SHAPE


# JAX


def test_shapes_are_enough_to_start_from():
    opt = adam()
    shape = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    assert_identical(opt.init(shape), opt.init(PARAMS))
    assert avals(jax.eval_shape(opt.init, shape)) == avals(opt.init(PARAMS))


def test_a_step_outside_jit_is_the_step_inside():
    opt, state = adam(), adam().init(PARAMS)
    eager, inside = opt.update(GRADS[0], state), jax.jit(opt.update)(GRADS[0], state)
    np.testing.assert_allclose(eager[0], inside[0], rtol=1e-6)
    assert avals(eager[1]) == avals(inside[1]) == avals(state)


@pytest.mark.parametrize("codec", CODECS)
def test_parameters_and_state_are_donated(codec):
    opt = adam(codec)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grad):
        return one_step(opt, (params, state), grad)[0]

    params, state = jnp.array(PARAMS), opt.init(PARAMS)
    leaves = jax.tree.leaves(state)
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    for grad in GRADS:
        params, state = step(params, state, grad)
    assert all(x.is_deleted() for x in leaves if x.ndim)
    np.testing.assert_allclose(params, train(opt)[0], rtol=1e-5, atol=1e-6)


def test_a_member_of_a_batch_is_its_own_single_run():
    rates = jnp.array([1e-3, 1e-2, 1e-1])

    def final(rate):
        opt = adamx.quantize_state(adamx.adam(rate), "int8", min_size=1)
        state = opt.init(PARAMS)
        return jax.lax.scan(functools.partial(one_step, opt), (PARAMS, state), GRADS)[0]

    params, state = jax.jit(jax.vmap(final))(rates)
    alone, kept = jax.jit(final)(rates[1])
    np.testing.assert_allclose(params[1], alone, rtol=1e-5, atol=1e-6)
    one, other = (x["scale_by_rms"]["nu"]["@int8"]["codes"] for x in (state, kept))
    assert np.mean(np.asarray(one[1]) == np.asarray(other)) > 0.99


def test_a_sweep_takes_stored_optimisers():
    def final(opt):
        carry = PARAMS, opt.init(PARAMS)
        params, _ = jax.lax.scan(functools.partial(one_step, opt), carry, GRADS)[0]
        return jnp.mean(params**2)

    opts = [adam().replace(learning_rate=rate) for rate in (1e-3, 1e-1)]
    single = [jax.jit(final)(opt) for opt in opts]
    # In a program fused otherwise a last digit may differ, and tip one of the roundings.
    np.testing.assert_allclose(adamx.sweep(final, opts).outputs, single, rtol=1e-3)


def test_there_is_no_derivative_through_a_stored_slot():
    def loss(opt, grad):
        return jnp.sum(opt.update(grad, opt.init(PARAMS), PARAMS)[0])

    with pytest.raises(adamx.StageError, match=r"no derivative.*stop_gradient"):
        jax.grad(loss, argnums=1)(adam(), GRADS[0])
    # The learning rate does not go into a slot; in the first step, m̂/√v̂ is the gradient's sign.
    slope = jax.grad(lambda rate: loss(adam().replace(learning_rate=rate), GRADS[0]))(1e-2)
    np.testing.assert_allclose(slope, -np.sum(np.sign(GRADS[0])), rtol=1e-4)


# Dtypes and trees


def test_parameters_of_bfloat16_and_float64_keep_their_slots_in_the_codec():
    params = PARAMS.astype(jnp.bfloat16)
    found, state = train(adam(), params, GRADS.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16 and set(encoded(state).values()) == {"int8"}
    with x64():
        double = jnp.asarray(PARAMS, jnp.float64), jnp.asarray(GRADS, jnp.float64)
        found, state = train(adam(), *double)
        assert found.dtype == jnp.float64 and set(encoded(state).values()) == {"int8"}
        expected, _ = train(adamx.adam(1e-2), *double)
        way = np.linalg.norm(expected - double[0])
        assert np.linalg.norm(found - expected) < DISTANCE["int8"] * way


def test_parameters_that_are_none_and_gradients_of_none_are_left_out():
    params = {"a": PARAMS, "none": None, "frozen": PARAMS}
    opt = adam()
    state = opt.init(params)
    assert state["scale_by_rms"]["nu"]["none"] is None
    grads = {"a": GRADS[0], "none": None, "frozen": None}
    updates, _ = opt.update(grads, opt.init({**params, "frozen": None}), params)
    assert updates["none"] is updates["frozen"] is None and updates["a"].shape == SHAPE


def test_an_empty_array_is_kept_as_it_is():
    params = {"empty": jnp.zeros((0, 3)), "a": PARAMS}
    opt = adam()
    _, state = opt.update(params, opt.init(params), params)
    assert state["scale_by_rms"]["nu"]["empty"].shape == (0, 3)


def test_complex_slots_are_refused_by_name_and_may_be_left_out():
    params = {"w": (1j * PARAMS).astype(np.complex64)}
    message = r"scale_by_momentum.*\['w'\].*slot 'mu' is complex64.*mu=None"
    with pytest.raises(adamx.StageError, match=message):
        adam().init(params)
    opt = adam(mu=None)
    found, state = train(opt, params, {"w": (1j * GRADS).astype(np.complex64)})
    assert encoded(state) == {("scale_by_rms", "nu"): "int8"}
    real, _ = train(opt, PARAMS)
    assert np.linalg.norm(found["w"].imag - real) < 0.05 * np.linalg.norm(real - PARAMS)


# As a value


def test_it_is_a_value_like_any_optimiser():
    opt = adamx.quantize_state(adamx.adam(1e-2), "int8", mu=adamx.bf16(rounding="nearest"), seed=3)
    assert eval(repr(opt), {**vars(adamx), "chain": adamx.chain}) == opt
    again = pickle.loads(pickle.dumps(opt))
    assert again == opt and hash(again) == hash(opt)
    assert adamx.from_config(adamx.to_config(opt)) == opt
    assert adamx.hyperparams(opt) == adamx.hyperparams(adamx.adam(1e-2))
    changed = opt.replace(learning_rate=0.5)
    assert changed == adamx.quantize_state(
        adamx.adam(0.5), "int8", mu=adamx.bf16(rounding="nearest"), seed=3
    )
    assert str(adamx.explain(opt)) == str(adamx.explain(adamx.adam(1e-2)))
    assert len(jax.tree.leaves(opt)) == len(jax.tree.leaves(adamx.adam(1e-2)))


def test_equal_stores_are_equal_and_others_are_not():
    make = {
        "plain": lambda: adamx.adam(1e-2),
        "int8": lambda: adamx.quantize_state(adamx.adam(1e-2), "int8"),
        "int8 of 32": lambda: adamx.quantize_state(adamx.adam(1e-2), adamx.int8(32)),
        "seed": lambda: adamx.quantize_state(adamx.adam(1e-2), "int8", seed=1),
        "size": lambda: adamx.quantize_state(adamx.adam(1e-2), "int8", min_size=1),
        "slot": lambda: adamx.quantize_state(adamx.adam(1e-2), mu="int8"),
        "fp8": lambda: adamx.quantize_state(adamx.adam(1e-2), "fp8"),
    }
    assert len({opt() for opt in (*make.values(), *make.values())}) == len(make)


@pytest.mark.parametrize("codec", CODECS)
def test_an_equal_one_finds_the_program_compiled(codec):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(opt, state, grad):
        traces.append(None)
        return opt.update(grad, state)

    for _ in range(2):
        opt = adamx.quantize_state(adamx.sgd(1e-2, 0.9), codec, min_size=1)
        step(opt, opt.init(PARAMS), GRADS[0])
    assert len(traces) == 1


# Flax


INPUTS = jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32)
TARGETS = INPUTS.sum(axis=1, keepdims=True)


@pytest.mark.usefixtures("_standard_promotion")
def test_a_train_state_trains_and_shows_its_memory():
    params = {"w": jnp.zeros((8, 1)), "b": jnp.zeros((1, 1))}
    state = TrainState.create(apply_fn=None, params=params, tx=adam())

    def loss(params):
        return jnp.mean((INPUTS @ params["w"] + params["b"] - TARGETS) ** 2)

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    before = loss(state.params)
    for _ in range(60):
        state = step(state)
    assert loss(state.params) < 0.5 * before
    assert adamx.memory_usage(state) == adamx.memory_usage(state.opt_state)
    chex.assert_trees_all_equal_shapes(adamx.dequantize(state, "nu"), state.params)
    restored = serialization.from_bytes(step(state), serialization.to_bytes(state))
    assert_identical(restored.opt_state, state.opt_state)
    assert_identical(step(restored).params, step(state).params)


@pytest.mark.usefixtures("_standard_promotion")
@pytest.mark.skipif(
    not hasattr(nnx, "data"), reason="an older Flax, whose nnx.Optimizer has another interface"
)
def test_an_nnx_optimizer_trains():
    model = nnx.Linear(8, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam("fp8"), wrt=nnx.Param)

    def loss(model):
        return jnp.mean((model(INPUTS) - TARGETS) ** 2)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    before = loss(model)
    for _ in range(60):
        step(model, optimizer)
    assert loss(model) < 0.5 * before
    leaves = jax.tree.leaves(nnx.state(optimizer)["opt_state"])
    assert any(x.dtype == jnp.float8_e4m3fn for x in leaves)


# Errors


def test_what_it_is_given_is_checked():
    opt = adamx.adam(1e-2)
    for given in ("int4", 8, "INT8"):
        with pytest.raises(ValueError, match=rf"no codec {given!r}.*'bf16', 'fp8', 'int8'.*Codec"):
            adamx.quantize_state(opt, given)
        with pytest.raises(ValueError, match=rf"no codec {given!r}"):
            adamx.quantize_state(opt, nu=given)
    with pytest.raises(ValueError, match=r"got no codec, and would change nothing; pass .int8."):
        adamx.quantize_state(opt)
    with pytest.raises(TypeError, match=r"a codec is called: int8\(\), not int8"):
        adamx.quantize_state(opt, adamx.int8)
    for min_size in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"min_size must be .* got {min_size!r}"):
            adamx.quantize_state(opt, "int8", min_size=min_size)
    for seed in (1.5, True, None):
        with pytest.raises(ValueError, match=f"seed must be .* got {seed!r}"):
            adamx.quantize_state(opt, "int8", seed=seed)
    with pytest.raises(ValueError, match=r"no stage .* slot 'mmu'; there are 'mu', 'nu'"):
        adamx.quantize_state(opt, mmu="int8")
    with pytest.raises(ValueError, match=r"slot 'mu'; there are none"):
        adamx.quantize_state(adamx.sgd(1e-2), mu="int8")
    with pytest.raises(ValueError, match=r"slot 'mu' can't be quantized: it is quantized already"):
        adamx.quantize_state(adamx.quantize_state(opt, "int8"), mu="bf16")
    with pytest.raises(TypeError, match=r"quantize_state\(\) takes a transformation"):
        adamx.quantize_state("adam", "int8")


OTHERS = {codec: adam(codec) for codec in CODECS} | {"plain": adamx.adam(1e-2)}


@pytest.mark.parametrize("made_by", CODECS)
@pytest.mark.parametrize("used_by", OTHERS)
def test_the_state_of_another_codec_is_refused(made_by, used_by):
    state = OTHERS[made_by].init({"w": PARAMS})
    if made_by == used_by:
        assert OTHERS[used_by].update({"w": GRADS[0]}, state)
        return
    wanted = "as plain arrays" if used_by == "plain" else f"as {used_by}"
    message = (
        rf"scale_by_momentum.*\['w'\].*slot 'mu' is kept as {made_by} in the state, but {wanted} "
        r"by this chain\. Convert the state with adamx\.restore_state\(state, opt, params\)"
    )
    with pytest.raises(adamx.StageError, match=message):
        OTHERS[used_by].update({"w": GRADS[0]}, state)


def test_a_state_that_was_not_stored_is_refused():
    state = OTHERS["plain"].init({"w": PARAMS})
    with pytest.raises(adamx.StageError, match=r"scale_by_momentum.*no key.*'mu'.*restore_state"):
        OTHERS["int8"].update({"w": GRADS[0]}, state)
    nearest = adam(adamx.int8(rounding="nearest"))
    with pytest.raises(
        adamx.StageError, match=r"\['w'\].*'mu' is kept as plain arrays.*as int8.*restore_state"
    ):
        nearest.update({"w": GRADS[0]}, state)


def test_the_state_of_another_block_size_is_refused():
    with pytest.raises(adamx.StageError, match=r"slot 'mu'.*block_size=8.*other arguments"):
        adam(adamx.int8(8)).update(GRADS[0], adam().init(PARAMS))
    with pytest.raises(adamx.StageError, match=r"slot 'mu'.*other arguments"):
        adam().update(GRADS[0], adam(adamx.int8(8)).init(PARAMS))
    smaller = adamx.quantize_state(adamx.adam(1e-2), "int8", min_size=1000)
    with pytest.raises(adamx.StageError, match=r"kept as int8 .* as plain arrays"):
        smaller.update(GRADS[0], adam().init(PARAMS))


# MemoryUsage and what is in it


@pytest.mark.parametrize(("codec", "most"), [("bf16", 4.0), ("fp8", 2.1), ("int8", 2.1)])
def test_bytes_of_a_parameter(codec, most):
    """By the arrays' own sizes: Adam's two slots."""
    params = {"w": jnp.zeros((256, 1024)), "odd": jnp.zeros((300, 513))}
    count = 256 * 1024 + 300 * 513
    state = adamx.quantize_state(adamx.adam(1e-2), codec).init(params)
    arrays = [x for x in jax.tree.leaves(state) if x.size > 2]
    assert sum(x.nbytes for x in arrays) <= most * count
    assert (codec == "bf16") == (sum(x.nbytes for x in arrays) == 4 * count)
    found = adamx.memory_usage(state)
    assert found.bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    plain = adamx.memory_usage(adamx.adam(1e-2).init(params))
    keys = found.float32_bytes - plain.bytes
    assert keys == 2 * 4 and plain.float32_bytes == plain.bytes


@pytest.mark.parametrize("name", ["adafactor", "prodigy", "adam_compensated", "averaged", "adan"])
def test_memory_is_the_size_of_all_arrays(name):
    params = {"w": PARAMS, "b": PARAMS[0], "scalar": np.float32(1), "none": None}
    for codec in (None, *CODECS):
        state = adamx.quantize_state(OPTIMISERS[name](1e-2), codec, min_size=71).init(params)
        found = adamx.memory_usage(state)
        assert found.bytes == sum(np.asarray(x).nbytes for x in jax.tree.leaves(state))
        shapes = adamx.memory_usage(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        )
        assert set(shapes.rows) == set(found.rows)
        assert found.float32_bytes >= found.bytes
        assert len(str(found).splitlines()) == len(found.rows) + 2


def test_memory_has_a_row_for_every_slot_and_format():
    params = {"w": jnp.zeros((64, 64)), "b": jnp.zeros(64)}
    rows = adamx.memory_usage(adamx.quantize_state(adamx.adam(1e-2), nu="int8").init(params)).rows
    found = {(r.slot, r.kept_as): (r.elements, r.bytes, r.float32_bytes) for r in rows}
    assert found == {
        ("mu", "float32"): (4160, 16640, 16640),
        ("nu", "int8"): (4096, 4096 + 64, 16384),
        ("nu", "float32"): (64, 256, 256),
        ("", "float32, int32, uint32"): (6, 24, 24),
    }


@pytest.mark.parametrize("codec", CODECS)
def test_decoded_is_what_the_stage_will_see(codec):
    opt = adamx.quantize_state(adamx.scale_by_rms(0.5), codec, min_size=1)
    params = {"w": PARAMS, "none": None}
    grads = {"w": GRADS[0], "none": None}
    _, state = opt.update(grads, opt.init(params))
    found, square = adamx.dequantize(state, "nu"), 0.5 * GRADS[0] ** 2
    np.testing.assert_allclose(found["w"], square, rtol=0.126, atol=2.0**-16 * square.max())
    assert found["none"] is None and found["w"].dtype == jnp.float32
    _, after = opt.update({"w": np.zeros_like(PARAMS), "none": None}, state)
    half = adamx.dequantize(after, "nu")["w"]  # half of a value of the code is mostly one again
    np.testing.assert_allclose(half, found["w"] / 2, rtol=0.126, atol=2.0**-16 * square.max())


def test_decoded_knows_slots_by_name_and_asks_where_there_are_several():
    opt = adamx.quantize_state(
        adamx.chain(adamx.scale_by_momentum(), adamx.scale_by_momentum()), "int8", min_size=1
    )
    state = opt.init(PARAMS)
    with pytest.raises(ValueError, match=r"scale_by_momentum\.mu, scale_by_momentum_2\.mu"):
        adamx.dequantize(state, "mu")
    assert adamx.dequantize(state, "scale_by_momentum_2.mu").shape == SHAPE
    with pytest.raises(ValueError, match=r"no slot 'nu'; it has scale_by_momentum\.mu"):
        adamx.dequantize(state, "nu")
    with pytest.raises(ValueError, match="no state of a chain in"):
        adamx.dequantize({"mu": PARAMS}, "mu")
    with pytest.raises(ValueError, match="no state of a chain in"):
        adamx.memory_usage(optax.adam(1e-2).init(PARAMS))


def test_decoded_does_not_choose_between_two_states():
    both = adam().init(PARAMS), adam("bf16").init(PARAMS)
    with pytest.raises(ValueError, match="several"):
        adamx.dequantize(both, "nu")
    assert adamx.memory_usage(both).bytes == sum(adamx.memory_usage(state).bytes for state in both)


# Devices

needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="run by test_with_four_devices in a process of its own"
)


@pytest.mark.slow
def test_with_four_devices():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "device_"]
    run = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


SHARDED = {  # shape, and how it lies over a mesh of two by two
    "rows": ((4, 130), PartitionSpec("x")),
    "deep": ((4, 3, 256), PartitionSpec("x", None, "y")),
    "line": ((256,), PartitionSpec("y")),
}


def on_mesh():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    arrays = {k: RNG.normal(size=shape).astype(np.float32) for k, (shape, _) in SHARDED.items()}
    places = {name: NamedSharding(mesh, spec) for name, (_, spec) in SHARDED.items()}
    return arrays, places


@needs_four_devices
@pytest.mark.parametrize("codec", CODECS)
def test_device_sharding_of_parameters_is_that_of_codes_and_of_the_blocks_exponents(codec):
    arrays, places = on_mesh()
    params = jax.device_put(arrays, places)
    opt = adam(codec)
    first, update = opt.init(params), jax.jit(opt.update)
    updates, after = update(params, first, params)
    plain, alone = update(arrays, opt.init(arrays), arrays)
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(plain), rtol=1e-5)
    kept = [jax.tree.map(np.float32, jax.device_get(x)) for x in (after, alone)]
    chex.assert_trees_all_close(*kept, rtol=1e-5)
    states = first, jax.jit(opt.init)(params), opt.update(params, first, params)[1], after
    for state in states:
        for slot in (state["scale_by_momentum"]["mu"], state["scale_by_rms"]["nu"]):
            for name, kept in slot.items():
                for x in jax.tree.leaves(kept):
                    assert x.sharding.is_equivalent_to(places[name], x.ndim), (name, x.shape)


@needs_four_devices
def test_device_of_the_whole_state_does_not_change():
    opt, there = adam(), jax.devices()[2]
    params = jax.device_put(PARAMS, there)
    first = opt.init(params)
    _, after = opt.update(params, first, params)
    for x in jax.tree.leaves((first, after)):
        assert x.devices() == {there}
