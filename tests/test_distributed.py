"""Trainings in several processes, with JAX's own runtime and Orbax."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

for needed in ("flax", "orbax.checkpoint", "sklearn"):
    pytest.importorskip(needed)

import many_processes as many  # noqa: E402
from examples import distributed  # noqa: E402

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
ALL = list(many.CONTENDERS)
FEW = ["network/adam, watched", "network/lamb", "table/int8"]


def run(folder, *plan):
    """Start processes as many_processes.py says; returns where each start began, and its end."""
    program = str(ROOT / "tests" / "many_processes.py")
    started = subprocess.run(
        [sys.executable, program, str(folder), json.dumps(plan)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert started.returncode == 0, started.stderr
    answers = [json.loads(line) for line in started.stdout.splitlines()]
    for start, (_, ended) in zip(plan, answers, strict=True):
        is_killed = len(start) == 4
        assert is_killed or not any(ended), started.stderr
    return answers


def read(folder, name):
    return pickle.loads((folder / name).read_bytes())


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def distance(one, other):
    """The largest difference between two trees, relative to the largest element of each array."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.max(np.abs(a - b)) / np.max(np.abs(a)) for a, b in pairs)


def assert_trained_alike(one, other):
    """To the order of sums where a network is trained; bit for bit where sums are exact."""
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith("table"):
            assert same_bits(one[name], other[name]), name
        else:
            assert distance(one[name][0], other[name][0]) < 1e-5, name


# Layouts


def test_two_processes_train_as_one_does(tmp_path):
    jobs = [["train", layout, layout, FEW] for layout in ("fsdp", "zero1")]
    run(tmp_path, [1, 1, [["train", "alone", "data", FEW]]], [2, 1, jobs])
    for layout in ("fsdp", "zero1"):
        assert_trained_alike(read(tmp_path, "alone"), read(tmp_path, layout))


@pytest.mark.slow
def test_two_and_four_processes_train_every_kind_as_one_does(tmp_path):
    """Each contender in every layout, with two processes or with four."""
    parts = {}
    for i, name in enumerate(ALL):
        for j, layout in enumerate(many.LAYOUTS):
            processes = 4 if (i + j) % 3 == 0 else 2
            parts.setdefault(processes, {}).setdefault(layout, []).append(name)
    several = [
        [
            processes,
            1,
            [["train", f"{processes} {layout}", layout, names] for layout, names in of.items()],
        ]
        for processes, of in parts.items()
    ]
    run(tmp_path, [1, 1, [["train", "alone", "data", ALL]]], *several)
    alone = read(tmp_path, "alone")
    for processes, of in parts.items():
        for layout, names in of.items():
            trained = read(tmp_path, f"{processes} {layout}")
            assert_trained_alike({name: alone[name] for name in names}, trained)


# States outside of jit


EAGER = ["network/adam, watched", "network/adafactor", "network/soap", "table/int8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The states of two processes, and which of their arrays Orbax could not save."""
    folder = tmp_path_factory.mktemp("eager")
    run(folder, [2, 1, [["eager", "made", EAGER], ["not_a_number", "failed", "network/adamw"]]])
    return {**read(folder, "made"), "failed": read(folder, "failed")}


@pytest.mark.parametrize("function", ["init", "restore_state"])
def test_states_outside_of_jit_are_those_of_one_process(made, function):
    """Also readings without a value, which no process may take for a difference."""
    for name in EAGER:
        alone = many.CONTENDERS[name]().init(many.first(name))
        assert same_bits(made[function][name], jax.device_get(alone)), name


def test_states_made_outside_of_jit_can_be_saved(made):
    assert not any(unfit for name, unfit in made["unfit"].items() if name != "network/soap")


def test_slots_in_a_basis_are_made_where_the_parameters_are(made):
    assert not any("mu" in path or "nu" in path for path in made["unfit"]["network/soap"])


def test_state_with_nan_is_restored(made):
    assert np.isnan(made["failed"]["scale_by_rms"]["nu"]["kernel"]).all()


# Checkpoints


def test_checkpoint_of_four_processes_is_read_by_two_and_one(tmp_path):
    """On another mesh, in another layout, and by other chains."""
    names = list(many.CHANGES)
    run(
        tmp_path,
        [4, 1, [["train", "four", "zero1", names, "half"]]],
        [2, 2, [["restore", "two", "fsdp", names, "half"], ["convert", "by two", "fsdp", "half"]]],
        [1, 1, [["restore", "one", "data", names, "half"], ["convert", "by one", "data", "half"]]],
    )
    half, four = read(tmp_path, "half"), read(tmp_path, "four")
    for fewer in ("two", "one"):
        assert same_bits(read(tmp_path, f"{fewer}, read"), half)
        assert_trained_alike(four, read(tmp_path, fewer))

    by_two, by_one = read(tmp_path, "by two"), read(tmp_path, "by one")
    assert same_bits(by_two, by_one)
    for name, (params, state) in half.items():
        others, converted = by_two[name]
        assert same_bits(others, params)
        assert converted["count"] == many.STEPS // 2
        clock = ("scale_by_rms", "log_decay")
        assert same_bits(converted[clock[0]][clock[1]], state[clock[0]][clock[1]]), name
    nu = [by_two[name][1]["scale_by_rms"]["nu"]["kernel"] for name in names]
    saved = [half[name][1]["scale_by_rms"]["nu"]["kernel"] for name in names]
    assert "@int8" in nu[0] and not isinstance(saved[0], dict)  # encoded
    assert same_bits(nu[1], saved[1])  # kept
    assert "@int8" in saved[2] and not isinstance(nu[2], dict)  # decoded
    assert same_bits(nu[3], saved[3]) and "@fp8" in nu[3]
    assert "polyak_ema" in by_two[names[0]][1]


def test_checkpoint_is_written_while_training_goes_on(tmp_path):
    """The next step may overwrite the arrays, as they are donated."""
    run(tmp_path, [2, 1, [["asynchronous", "kept and read", FEW]]])
    kept, found = read(tmp_path, "kept and read")
    assert len(kept) == 4
    assert same_bits(found, kept)


# Killed


def assert_killed_training_goes_on(folder, names, kills):
    """One process dies after some steps, perhaps while a checkpoint is written; all start again."""
    every = 2
    job = ["go_on", "killed", names, 8 * kills + 16, every]
    deaths = [
        [2, 1, [job], [random.randrange(2), random.randint(1, 4 * every), random.uniform(0, 0.02)]]
        for _ in range(kills)
    ]
    undisturbed = ["go_on", "undisturbed", *job[2:]]
    first, *killed, last = run(folder, [2, 1, [undisturbed]], *deaths, [2, 1, [job]])
    began, ended = zip(*killed, strict=True)
    assert first == [[0], [0, 0]] and last[1] == [0, 0]
    assert all(-9 in codes for codes in ended)
    assert sorted(began) == list(began) and last[0] >= began[-1] and last[0] > [0]
    assert same_bits(read(folder, "killed"), read(folder, "undisturbed"))


def test_training_goes_on_when_a_process_was_killed(tmp_path):
    assert_killed_training_goes_on(tmp_path, ["table/int8"], 2)


@pytest.mark.slow
def test_training_goes_on_when_processes_were_killed_again_and_again(tmp_path):
    assert_killed_training_goes_on(tmp_path, ["table/bf16"], 20)


# The example


def example(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "examples.distributed", *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_example_trains_and_continues_in_another_way(tmp_path):
    checkpoints = ["--checkpoints", tmp_path, "--every", 10]
    begun = example("--processes", 2, "--layout", "zero1", "--steps", 20, *checkpoints)
    assert begun.returncode == 0, begun.stderr
    assert "2 processes, 2 devices, zero1" in begun.stdout

    changed = ["--devices-per-process", 4, "--layout", "fsdp", "--quantize", "int8"]
    ended = example("--processes", 1, *changed, "--steps", 60, *checkpoints)
    assert ended.returncode == 0, ended.stderr
    assert "continues after step 20" in ended.stdout
    assert "float32 → int8" in ended.stdout
    (accuracy,) = re.findall(r"test accuracy ([\d.]+)%", ended.stdout)
    assert float(accuracy) > 80


@pytest.mark.slow
def test_example_fails_if_a_process_fails():
    failed = example("--processes", 1, "--devices-per-process", 3)
    assert failed.returncode == 1
    assert "a batch of 64 can't be divided among 3 devices" in failed.stderr
    assert "a process ended with exit code 1" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layout", "other"], "invalid choice: 'other'"),
        (["--optimiser", "adma"], "invalid choice: 'adma'"),
        (["--processes", "0"], "--processes must be at least 1, got 0"),
        (["--devices-per-process", "-1"], "--devices-per-process must be at least 1, got -1"),
    ],
)
def test_example_says_what_is_wrong(arguments, said, capsys):
    with pytest.raises(SystemExit):
        distributed.main(arguments)
    assert said in capsys.readouterr().err
