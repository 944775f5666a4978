"""What the benchmark of stored states finds: bytes and temporary memory (never times)."""

import json

import numpy as np
import pytest

pytest.importorskip("rich")

from examples import benchmarks
from examples.benchmarks import storage, tables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("storage") / "storage.json"
    returned = storage.main(["--tiny", "--json", str(path)])
    stored = json.loads(path.read_text("utf-8"))
    assert stored["results"] == json.loads(json.dumps(returned))
    assert stored["versions"] == benchmarks.versions()
    assert "| perceptron 64-70-4 |" in tables.stored_steps(stored["results"])
    return {name: {row["what"]: row for row in stored["results"][name]} for name in storage.TABLES}


def test_bytes_are_those_of_the_weights_and_of_what_is_too_small_to_store(found):
    """64×70 weights are stored, in two blocks a row; 70 + 70×4 + 4 others stay float32."""
    model, weights, others, scalars = "perceptron 64-70-4", 64 * 70, 70 + 70 * 4 + 4, 20
    key = 4  # of each stored stage
    stored = {"bf16": 2 * weights, "fp8": weights + 2 * 64, "int8": weights + 2 * 64}
    expected = {"float32": 8 * (weights + others) + scalars} | {
        name: 2 * (kept + 4 * others + key) + scalars for name, kept in stored.items()
    }
    assert list(found["bytes"]) == [f"{model}: {name}" for name in expected]
    for name, size in expected.items():
        row = found["bytes"][f"{model}: {name}"]
        np.testing.assert_allclose(row["allocated"] * (weights + others), size, rtol=1e-12)
        assert row["reported"] == row["allocated"]


def test_no_float32_copy_of_the_states_is_made(found):
    """Both would take 8 bytes a parameter."""
    for what, row in found["memory"].items():
        assert 0 <= row["bytes"] < (4.5 if "bf16" in what else 3), what


def test_every_codec_is_timed_both_ways(found):
    names = {what.split(": ")[1] for what in found["steps"]}
    ways = {f"{name}, {way}" for name in storage.CODECS for way in ("stochastic", "nearest")}
    assert names == {"float32"} | ways
    assert all(row["ratio"] > 0 for row in found["steps"].values())
    barred = {what.split(": ")[1] for what, row in found["steps"].items() if row["bar"]}
    assert barred == {"int8, stochastic", "int8, nearest"}


def test_peers_are_left_out_where_they_are_not_installed(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(storage.importlib, "import_module", missing)
    assert list(storage.measure_peers(storage.FULL)) == []
