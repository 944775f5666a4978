"""States are saved, restored, and brought into other chains; a killed training goes on."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.core import Decay, Rule, StageError, stage, zeros
from adamx.tools.checkpoints import restore_state

pytestmark = pytest.mark.sampled

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(3)
PARAMS = {
    "layers": [
        {"kernel": jnp.asarray(RNG.standard_normal((4, 6)), jnp.float32), "bias": jnp.ones(6)},
        ({"kernel": jnp.ones((6, 2), jnp.bfloat16)}, None),
    ],
    "scale": jnp.ones(()),
}
STEPS = 6
GRADS = jax.tree.map(
    lambda x: jnp.asarray(RNG.standard_normal((2 * STEPS, *x.shape)), x.dtype), PARAMS
)

CHAINS = {
    "adam": lambda: adamx.adam(0.05),
    "of many kinds": lambda: adamx.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.partition({"kernel": adamx.adafactor(0.1), "*": adamx.prodigy(0.5, d0=1e-2)}),
        optax.trace(0.5),
        adamx.lookahead(3),
        adamx.polyak_ema(lambda t: t / (t + 1)),
        adamx.watch(),
    ),
    "stored": lambda: adamx.quantize_state(
        adamx.amsgrad(0.05), "int8", mu=adamx.bf16(), min_size=3
    ),
}


def at(t, grads):
    return jax.tree.map(lambda g: g[t], grads)


def train(opt, start=0, stop=STEPS, params=PARAMS, state=None):
    """Parameters and state after these steps."""
    state = opt.init(params) if state is None else state
    for t in range(start, stop):
        updates, state = opt.update(at(t, GRADS), state, params)
        params = adamx.apply_updates(params, updates)
    return params, state


def through_pickle(state, target, folder):
    return pickle.loads(pickle.dumps(state))


def through_flax(state, target, folder):
    return serialization.from_bytes(target, serialization.to_bytes(state))


def through_orbax(state, target, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "saved", target)


def read_by_flax(state, folder):
    return serialization.msgpack_restore(serialization.to_bytes(state))


def read_by_orbax(state, folder):
    return through_orbax(state, None, folder)


WAYS = {"pickle": through_pickle, "Flax": through_flax, "Orbax": through_orbax}
READERS = {"Flax": read_by_flax, "Orbax": read_by_orbax}


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_saved_and_restored_goes_on_as_if_nothing_had_happened(chain, way, tmp_path):
    opt = CHAINS[chain]()
    params, state = train(opt)
    restored = WAYS[way](state, opt.init(PARAMS), tmp_path)
    assert_same_bits(restored, state)
    assert_same_bits(
        train(opt, STEPS, STEPS + 2, params, restored), train(opt, STEPS, STEPS + 2, params, state)
    )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_read_without_a_target_is_all_kept(chain, reader, tmp_path):
    """Lists, tuples and Optax's named tuples have become dicts."""
    opt = CHAINS[chain]()
    _, state = train(opt)
    restored, report = restore_state(READERS[reader](state, tmp_path), opt, PARAMS)
    assert_same_bits(restored, state)
    assert jax.eval_shape(lambda: restored) == jax.eval_shape(lambda: state)
    assert report.initialised == report.dropped == ()
    assert set(report.kept) >= {"count"} and not any(row.recoded for row in report.rows)


# Another chain


def read_back(state):
    return read_by_flax(state, None)


def test_an_average_that_joins_midway_is_of_the_iterates_since():
    few = adamx.adam(0.05)
    many = adamx.chain(adamx.clip_by_norm(1e9), few, adamx.polyak_ema(0.7))
    middle, saved = train(few)
    state, report = restore_state(read_back(saved), many, middle)
    assert report.initialised == ("polyak_ema.ema", "polyak_ema.log_decay")
    assert report.dropped == ()
    assert int(state["count"]) == STEPS

    whole, _ = train(few, stop=2 * STEPS)
    path, params = [], middle
    for t in range(STEPS, 2 * STEPS):
        params, state = train(many, t, t + 1, params, state)
        path.append(np.asarray(params["layers"][0]["kernel"], np.float64))
    weights = 0.7 ** np.arange(STEPS - 1, -1, -1.0)
    mean = np.tensordot(weights / weights.sum(), np.stack(path), 1)
    average = adamx.polyak_params(state)["layers"][0]["kernel"]
    np.testing.assert_allclose(average, mean, rtol=1e-5)
    chex.assert_trees_all_close(params, whole, rtol=1e-5)


def test_without_the_average_the_rest_goes_on():
    few = adamx.adam(0.05)
    params, saved = train(adamx.chain(few, adamx.polyak_ema(0.7)))
    state, report = restore_state(read_back(saved), few, params)
    assert set(report.dropped) == {"polyak_ema.ema", "polyak_ema.log_decay"}
    assert report.initialised == ()
    _, whole = train(few)
    assert_same_bits(state, whole)


def test_adam_goes_on_from_sgd_with_statistics_of_its_own():
    """Its first step is α sign(g), however many sgd has taken; the schedule goes on."""

    def rate(t):
        return jnp.where(t == STEPS, 0.25, 9.0)

    params, saved = train(adamx.sgd(0.1))
    opt = adamx.adam(rate, eps=0.0)
    state, report = restore_state(read_back(saved), opt, params)
    assert report.kept == ("count",)
    assert len(report.initialised) == 4
    grads = at(0, GRADS)
    updates, _ = opt.update(grads, state, params)
    chex.assert_trees_all_close(
        updates, jax.tree.map(lambda g: -0.25 * jnp.sign(g), grads), rtol=1e-2
    )


def test_the_second_stage_of_a_name_is_the_second_and_keys_may_be_renamed():
    one, two = adamx.scale_by_heavy_ball(0.5), adamx.scale_by_heavy_ball(0.9)
    _, saved = train(one)
    both = adamx.chain(two, one)
    state, report = restore_state(saved, both, PARAMS)
    assert "scale_by_heavy_ball_2.trace" in report.initialised
    renamed = {"count": saved["count"], "scale_by_heavy_ball_2": saved["scale_by_heavy_ball"]}
    state, report = restore_state(renamed, both, PARAMS)
    assert report.initialised == ("scale_by_heavy_ball.trace",)
    assert_same_bits(state["scale_by_heavy_ball_2"], saved["scale_by_heavy_ball"])


def test_what_an_observer_has_not_seen_it_will():
    quiet = adamx.chain(adamx.sgd(0.1), adamx.watch())
    loud = adamx.chain(adamx.sgd(0.1), adamx.watch({"kernels": "kernel"}))
    _, saved = train(quiet)
    state, report = restore_state(saved, loud, PARAMS)
    assert report.initialised == ("watch.groups",)
    assert float(adamx.metrics(state)["grad_rms"]) == float(adamx.metrics(saved)["grad_rms"])
    assert restore_state(state, quiet, PARAMS).report.dropped == ("watch.groups",)


# Another codec


FLAT = {"kernel": jnp.ones((4, 6)), "scale": jnp.ones(())}
SLOPES = jax.tree.map(lambda x: jnp.asarray(RNG.standard_normal(x.shape), x.dtype), FLAT)


def stepped(opt, state=None):
    """The state after a step."""
    return opt.update(SLOPES, opt.init(FLAT) if state is None else state, FLAT)[1]


def test_plain_slots_are_encoded_and_encoded_ones_decoded():
    plain = adamx.adam(0.05)
    stored = adamx.quantize_state(plain, "int8", min_size=3)
    saved = stepped(plain)
    state, report = restore_state(read_back(saved), stored, FLAT)
    assert {row.recoded for row in report.rows} == {"", "float32 → int8"}
    assert set(report.initialised) == {"scale_by_momentum.key", "scale_by_rms.key"}
    for slot, stage_name in (("mu", "scale_by_momentum"), ("nu", "scale_by_rms")):
        exact, kept = saved[stage_name][slot], adamx.dequantize(state, slot)
        np.testing.assert_array_equal(kept["scale"], exact["scale"])  # too small for a codec
        kernel = np.asarray(exact["kernel"])
        # Four bits behind the leading one near a block's largest element: rounded to 1/32.
        near = np.abs(kernel) > np.abs(kernel).max() / 8
        error = np.abs(kept["kernel"] - kernel)[near]
        assert np.all(error <= np.abs(kernel[near]) / 32)
        assert np.any(error > 0)

    back, report = restore_state(read_back(state), plain, FLAT)
    assert set(report.dropped) == {"scale_by_momentum.key", "scale_by_rms.key"}
    assert {row.recoded for row in report.rows} == {"", "int8 → float32"}
    assert_same_bits(back["scale_by_rms"]["nu"], adamx.dequantize(state, "nu"))
    assert jax.eval_shape(lambda: back) == jax.eval_shape(plain.init, FLAT)
    stepped(stored, state)
    stepped(plain, back)


def test_blocks_of_another_size_are_encoded_again():
    saved = stepped(adamx.quantize_state(adamx.scale_by_rms(), adamx.int8(2), min_size=3))
    larger = adamx.quantize_state(adamx.scale_by_rms(), adamx.int8(4), min_size=3)
    state, report = restore_state(saved, larger, FLAT)
    rows = [row.recoded for row in report.rows if row.name == "scale_by_rms.nu"]
    assert set(rows) == {"", "int8 → int8"}  # "" of the scalar, which has no codec
    one, other = (adamx.dequantize(x, "nu")["kernel"] for x in (saved, state))
    np.testing.assert_allclose(other, one, rtol=1 / 16)


def halves(x, bits, nonnegative):
    return [x.astype(jnp.float16)]


def whole(encoded):
    return encoded[0].astype(jnp.float32)


def test_a_codec_of_ones_own_is_named():
    mine = adamx.Codec("half", halves, whole)
    stored = adamx.quantize_state(adamx.sgd(0.1, 0.5), mine, min_size=3)
    saved = stepped(stored)
    raw = read_back(saved)
    assert_same_bits(restore_state(raw, stored, FLAT, codecs=(mine,)).state, saved)
    plain, _ = restore_state(saved, adamx.sgd(0.1, 0.5), FLAT, codecs=(mine,))
    assert_same_bits(
        plain["scale_by_heavy_ball"]["trace"], adamx.dequantize(saved, "trace", codecs=(mine,))
    )
    with pytest.raises(ValueError, match=r"codec 'half'.*codecs=\(codec,\)"):
        restore_state(saved, adamx.sgd(0.1, 0.5), FLAT)


# What can't be restored


@stage
def twofold(decay: Decay = 0.9):
    """Keeps one thing more than it once did."""
    return Rule(lambda signal, slots, step: (signal, slots), slots={"a": zeros, "b": zeros})


def without(state, *path):
    *outer, last = path
    inner = state = jax.tree.map(lambda x: x, state)
    for key in outer:
        inner = inner[key]
    del inner[last]
    return state


def others(**changes):
    return {**PARAMS, **changes}


ADAM = adamx.adam(0.05)
SAVED = ADAM.init(PARAMS)

BAD = {
    "an optimiser of Optax": (SAVED, optax.adam(0.1), PARAMS, TypeError, "adamx optimiser"),
    "no state": (
        [1],
        ADAM,
        PARAMS,
        StageError,
        "got a list of 1, and there is no state of a chain",
    ),
    "no state in a dict": (
        {"a": 1},
        ADAM,
        PARAMS,
        StageError,
        r"a dict of \['a'\], and there is no",
    ),
    "two states": (
        {"one": SAVED, "two": [SAVED]},
        *(ADAM, PARAMS, StageError, r"there are 2, at \['one'\], \['two'\]\[0\]: pass one of them"),
    ),
    "another shape": (
        *(SAVED, ADAM, others(scale=jnp.ones(2)), StageError),
        r"stage 'scale_by_momentum', parameter mu/scale: .*\(\), but the chain keeps \(2,\)",
    ),
    "a part of a stage": (
        *(without(SAVED, "scale_by_rms", "log_decay"), ADAM, PARAMS, StageError),
        "stage 'scale_by_rms': the saved state of this stage has no log_decay",
    ),
    "half a stage": (
        *(without(twofold().init(PARAMS), "twofold", "b"), twofold(), PARAMS, StageError),
        "stage 'twofold': the saved state of this stage has no b/layers/0/bias",
    ),
    "another dtype": (
        {**SAVED, "count": np.float32(3)},
        *(ADAM, PARAMS, StageError, "stage 'count': .*has dtype float32, .* keeps int32"),
    ),
    "no arrays": (
        {**SAVED, "count": "three"},
        *(
            ADAM,
            PARAMS,
            StageError,
            "stage 'count': the saved entry is 'three' of type str, not an array",
        ),
    ),
    "encoded, of another shape": (
        *(
            SAVED,
            adamx.quantize_state(ADAM, "fp8", min_size=1),
            others(scale=jnp.ones(2)),
            StageError,
        ),
        r"parameter mu/scale: .*\(\), but the chain keeps \(2,\)",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_can_not_be_restored_says_where_and_why(what):
    saved, opt, params, error, message = BAD[what]
    with pytest.raises(error, match=message):
        restore_state(saved, opt, params)


def test_a_parameter_that_is_gone_is_dropped_and_a_stage_left_out_starts_anew():
    params = {name: x for name, x in PARAMS.items() if name != "scale"}
    saved = dict(train(ADAM)[1])
    rms = saved.pop("scale_by_rms")
    state, report = restore_state(saved, ADAM, params)
    assert report.initialised == ("scale_by_rms.log_decay", "scale_by_rms.nu")
    assert report.dropped == ("scale_by_momentum.mu",)
    assert "scale_by_momentum.mu" in report.kept
    assert not np.any(state["scale_by_rms"]["nu"]["layers"][0]["kernel"])
    assert np.all(rms["nu"]["layers"][0]["kernel"])


def test_the_saved_state_stays_as_it_was():
    saved = read_back(train(ADAM)[1])
    before = jax.tree.map(np.copy, saved)
    restore_state(saved, adamx.sgd(0.1), PARAMS)
    assert_same_bits(saved, before)


# Devices

needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="run by test_with_four_devices in a process of its own"
)


def test_with_four_devices():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "device_"]
    tests = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "skipped" not in tests.stdout


def sharded():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    put = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    return jax.device_put(
        {"w": jnp.arange(32.0).reshape(4, 8), "b": jnp.ones(8)},
        {"w": put("x", "y"), "b": put("y")},
    )


def shardings(tree):
    return jax.tree.map(lambda x: (x.shape, x.sharding), tree)


@needs_four_devices
@pytest.mark.parametrize("codec", [None, "int8"])
def test_device_sharding_comes_back_with_the_state(codec, tmp_path):
    params = sharded()
    opt = adamx.quantize_state(adamx.adam(0.1), codec, min_size=1)
    _, state = opt.update(params, opt.init(params), params)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), opt.init(params)
    )
    restored = through_orbax(state, target, tmp_path)
    assert_same_bits(restored, state)
    assert shardings(restored) == shardings(opt.init(params))

    more = adamx.chain(opt, adamx.polyak_ema())
    for saved in (read_back(state), through_orbax(state, None, tmp_path / "again")):
        state, _ = restore_state(saved, more, params)
        assert shardings(state) == shardings(more.init(params))
        assert_same_bits(state["scale_by_rms"], restored["scale_by_rms"])


@needs_four_devices
def test_device_sharding_of_what_is_encoded_anew_is_that_of_init():
    params = sharded()
    plain, stored = adamx.adam(0.1), adamx.quantize_state(adamx.adam(0.1), "int8", min_size=1)
    for one, other in ((plain, stored), (stored, plain)):
        _, saved = one.update(params, one.init(params), params)
        state, _ = restore_state(saved, other, params)
        assert shardings(state) == shardings(other.init(params))


# Killed


def test_a_killed_training_ends_where_the_undisturbed_one_does(tmp_path):
    kills = 12
    trained = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "killed_training.py"), str(tmp_path), str(kills)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    undisturbed, *killed, last = json.loads(trained.stdout)
    assert undisturbed == [0, 0] and last[1] == 0
    began, ended = zip(*killed, strict=True)
    assert ended == (-9,) * kills
    assert sorted(began) == list(began) and began[-1] > 0 and last[0] >= began[-1]
    one, other = (
        pickle.loads((tmp_path / name).read_bytes()) for name in ("undisturbed", "killed")
    )
    assert one.keys() == {"adam", "stored"}
    assert_same_bits(other, one)


# The page


def test_the_pages_examples_run_and_print_what_it_shows(capsys):
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", page, re.DOTALL)
    exec("".join(code for kind, code in blocks if kind == "python"), {})
    (shown,) = [text for kind, text in blocks if kind == "text"]
    assert capsys.readouterr().out == shown
