"""The benchmarks: what accuracy finds, that cost measures (never how long anything takes)."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("rich")

import reference
from examples import benchmarks
from examples.benchmarks import (
    accuracy,
    cost,
    gates,
    gpu,
    matrix_costs,
    parameters,
    tables,
    tpu,
    watch,
)

pytestmark = pytest.mark.slow

STEPS = 120


def run(main, path, *arguments):
    """What `main` returned and the results it stored, of which all tables can be made."""
    returned = main([*arguments, "--json", str(path)])
    stored = json.loads(path.read_text("utf-8"))
    assert stored["module"] == main.__module__
    assert stored["command"] == " ".join(["python -m", main.__module__, *arguments])
    assert stored["versions"] == benchmarks.versions()
    return returned, stored["results"]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    path = tmp_path_factory.mktemp("accuracy") / "new" / "accuracy.json"
    returned, stored = run(accuracy.main, path, "--steps", str(STEPS))
    assert tables.accuracy(stored).count("adamx, `compensated=True`") == 5
    assert stored["steps"] == STEPS
    assert [row["worst"] for row in stored["scores"]] == [row.worst for row in returned]
    return {(row.case, row.optimiser): row for row in returned}


def test_every_contender_is_measured_in_every_case(scores):
    names = [case.name for case in accuracy.cases(STEPS)]
    assert list(scores) == [(case, name) for case in names for name in accuracy.contenders()]
    for row in scores.values():
        assert list(row.at) == [1, 10, 100]
        assert row.worst >= max(row.at.values()) > 0
        assert 1 <= row.worst_step <= STEPS


def test_adamx_is_exact(scores):
    for (case, optimiser), row in scores.items():
        if optimiser.startswith("adamx"):
            assert row.worst < 5e-7, (case, optimiser)


def test_others_are_exact_only_where_they_are(scores):
    """A measurement that calls everything exact, or everything but adamx wrong, is broken."""
    others = [name for name in accuracy.contenders() if not name.startswith("adamx")]
    for name in others:
        assert scores["β₂ = 0.9", name].worst < 5e-7
        assert scores["β₁(t), β₂(t)", name].at[1] < 5e-7
        assert scores["β₁(t), β₂(t)", name].at[10] > 1e-3
    assert scores["β₂ = 0.99999", "optax.adam"].at[1] > 1e-4


@pytest.mark.parametrize("case", accuracy.cases(250), ids=lambda case: case.name)
def test_oracle_agrees_with_the_tests_own(case):
    grads = np.concatenate(list(accuracy.gradients(250, seed=1)))
    blocks = list(accuracy.oracle(case, iter(np.split(grads, [100]))))
    assert [len(block) for block in blocks] == [100, 150]
    expected = reference.adam(grads, accuracy.RATE, case.b1, case.b2, accuracy.EPS)
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-12)


def test_gradients_are_the_same_for_a_seed_and_spread_over_scales():
    first, again, other = (next(accuracy.gradients(500, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    size = np.abs(first).mean(axis=0)
    assert size.max() / size.min() > 1e5


def test_rows_of_torch_are_left_out_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "torch", None)
    monkeypatch.setattr(accuracy, "cases", lambda steps: [accuracy.Case("one", 0.9, 0.999)])
    scores, _ = run(accuracy.main, tmp_path / "accuracy.json", "--steps", "2")
    assert [row.optimiser for row in scores] == [
        "adamx.adam",
        "adamx.adam(compensated=True)",
        "optax.adam",
    ]
    printed = capsys.readouterr().out
    assert "PyTorch is not installed" in printed
    assert "At most 1e-06 at every one of 2 steps:\n  adamx.adam: all\n" in printed


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    path = tmp_path_factory.mktemp("cost") / "cost.json"
    returned, stored = run(cost.main, path, "--tiny")
    assert stored == json.loads(json.dumps(returned))
    return stored


def test_costs_are_measured(costs):
    rows = {name: [row["what"] for row in of_kind] for name, of_kind in costs.items()}
    assert rows["step"] == ["2×8", "2×8, update and apply_updates"]
    assert rows["compensated"] == ["2×8"]
    assert rows["build"] == ["trace", "lower", "compile"]
    assert rows["update"] == ["adamx, 2×8", "optax, 2×8"]
    for row in (*costs["step"], *costs["compensated"], *costs["build"], *costs["update"]):
        low, high = row["quartiles"]
        assert low <= row["ratio"] <= high
    assert costs["step"][0]["pairs"] == 2
    bars = [costs[name][0]["bar"] for name in ("step", "build", "update")]
    assert bars == [cost.STEP_BAR, cost.TRACE_BAR, cost.EAGER_BAR]


def test_nothing_is_compiled_again(costs):
    assert [row["adamx"] for row in costs["recompilations"]] == [0, 0, 0, 0, 0]
    # The counter can count: Optax's transformations are equal only to themselves.
    assert [row["optax"] for row in costs["recompilations"]] == [1, 1, 1, 2, 0]


def test_memory_is_what_adam_keeps(costs):
    ours, compensated, theirs = (row["argument"] for row in costs["memory"])
    parameters = 2 * 8
    for arguments in (ours, theirs):
        assert 0 <= arguments - 16 * parameters < 64  # θ, g, m and v, and a few scalars
    assert compensated - ours == 2 * parameters


def test_ratio_is_the_median_of_the_pairs_ratios():
    row = cost.ratio("it", [(1.0, 2.0), (9.0, 3.0), (4.0, 4.0)])
    assert (row.first, row.second, row.ratio, row.pairs) == (4.0, 3.0, 1.0, 3)
    assert row.quartiles == (0.75, 2.0)


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [(12.34, "12.3 s"), (2.1, "2.10 s"), (0.0999, "99.9 ms"), (1e-3, "1.00 ms"), (9e-6, "9.00 µs")],
)
def test_times_are_printed_with_three_digits(seconds, printed):
    assert tables.in_units(seconds) == printed


@pytest.mark.parametrize("value", [1.03, 1.031])
def test_verdict_is_honest(value):
    assert cost.verdict(value, 1.03) == ("≤ 1.03 ✓" if value <= 1.03 else "≤ 1.03 ✗")
    assert cost.verdict(value, None) == ""


def test_gates_are_measured_beside_the_same_step_without_them(tmp_path, lenient):
    (ratios, sizes), stored = run(gates.main, tmp_path / "gates.json", "--tiny")
    assert [row.what for row in ratios] == [f"{m}: {x}" for m in watch.TINY for x in gates.PAIRS]
    assert [row["update"] for row in stored["memory"]] == [row.update for row in sizes]
    of_update = {row.update: row for row in sizes}
    for ours, theirs in (("accumulate(adamw, 4)", "optax.MultiSteps(adamw, 4)"),):
        assert of_update[ours].state == pytest.approx(of_update[theirs].state, rel=0.01)


def test_watching_is_measured_for_every_model_and_way(tmp_path):
    returned, stored = run(watch.main, tmp_path / "watch.json", "--tiny")
    names = [f"{model}: {how}" for model in watch.TINY for how in watch.WATCHED]
    assert [row.what for row in returned] == names
    assert [row["ratio"] for row in stored["ratios"]] == [row.ratio for row in returned]
    assert all(row.ratio > 0 for row in returned)


def test_parameters_of_few_bits_are_trained_from_the_same_start(tmp_path):
    returned, stored = run(parameters.main, tmp_path / "parameters.json", "--tiny", "--seeds", "2")
    assert [row.name for row in returned] == list(parameters.METHODS)
    assert [round(row.bytes, 1) for row in returned] == [12.1, 10.1, 10.1, 12.1, 14.1]
    assert len({row.start for row in returned}) == 1
    exact, plain, noisy, *others = (row.start - row.loss for row in returned)  # what is gained
    assert 0 < plain < 0.5 * exact
    assert all(abs(gain - exact) < 0.02 * exact for gain in others)
    assert abs(noisy - exact) < 0.2 * exact  # of no more than 310 parameters
    assert [row["loss"] for row in stored["rows"]] == [row.loss for row in returned]
    assert all(len(own) == 2 for own in stored["seeds"].values())


def test_parameters_follow_within_the_spread_of_float32():
    def ends(*losses):
        return [parameters.End(1.0, loss, 0.9, 4.0) for loss in losses]

    given = {parameters.FLOAT32: ends(1.0, 1.2, 1.4), "near": ends(1.1, 1.3, 1.7)}
    given["far"] = ends(1.2, 1.4, 1.65)
    exact, near, far = parameters.rows(given)
    np.testing.assert_allclose([exact.spread, near.farthest, far.farthest], [0.2, 0.3 / 1.4, 0.2])
    assert (exact.follows, near.follows, far.follows) == (True, True, False)


def test_the_costs_of_matrices_are_measured_in_pairs(tmp_path):
    returned, stored = run(matrix_costs.main, tmp_path / "costs.json", "--quick", "--alone")
    assert stored == json.loads(json.dumps(returned))
    for rows in (stored["32"]["over_adamw"], stored["32"]["over_rest"]):
        assert [row["what"] for row in rows] == ["muon", "soap"]
        assert all(row["ratio"] > 0 and row["pairs"] == 2 for row in rows)


def test_the_steps_of_gpus_are_measured_in_pairs(tmp_path):
    returned, stored = run(gpu.main, tmp_path / "gpu.json", "--tiny")
    assert [row["what"] for row in stored["ratios"]] == [row.what for row in returned]
    assert all(row.ratio > 0 and row.pairs == 2 for row in returned)
    assert tables.gpu(stored).endswith(f"On one {stored['device']}.")
    if jax.default_backend() != "gpu":
        with pytest.raises(SystemExit, match="found no GPU: JAX runs on"):
            gpu.main([])


def test_a_plan_is_made_without_a_compiler(tmp_path):
    _, stored = run(tpu.main, tmp_path / "plan.json", "--plan", "8", "1e10")
    *rows, moved = tables.plan(stored).splitlines()
    assert len(rows) == 2 + len(tpu.planned()) and moved.startswith("| received from chips |")
    assert "| adamw | 8.00 |" in tables.plan(stored)
