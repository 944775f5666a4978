"""The tables in the documentation are those of the stored results."""

import json

import pytest

pytest.importorskip("rich")

from examples.benchmarks import __main__ as program
from examples.benchmarks import cost, made, pages, tables
from examples.benchmarks.code import Code
from examples.paper import page

PAGES = [
    path.name
    for path in sorted(pages.DOCS.glob("*.md"))
    if "<!-- results: " in path.read_text("utf-8")
]
STORED = list(made.names())


@pytest.mark.parametrize("name", [name for name in PAGES if name != "paper.md"])
def test_the_tables_of_a_page_are_those_of_the_stored_results(name):
    text = (pages.DOCS / name).read_text("utf-8")
    for place in pages.places(text):
        assert place.table in tables.TABLES[program.RUNS[place.results].benchmark]
    absent = list(pages.missing(text))
    assert not absent, f"run python -m examples.benchmarks {' '.join(absent)}, then --tables"
    assert pages.filled(text) == text, "run python -m examples.benchmarks --tables"


@pytest.mark.parametrize("name", [name for name in STORED if name.startswith(pages.PAPER)])
def test_the_page_of_the_paper_shows_the_stored_results(name):
    text, stored = (pages.DOCS / "paper.md").read_text("utf-8"), made.read(name)
    assert page.section(stored) in text, "run python -m examples.paper.page"
    run = stored["results"]["run"]
    rows = [[f"[{run}](#{run})", *page.cells(claim)] for claim in stored["results"]["claims"]]
    told = tables.markdown(page.CLAIM, rows).splitlines()[2:]
    assert told and set(told) <= set(text.splitlines())


@pytest.mark.parametrize("name", STORED)
def test_stored_results_are_small_and_tell_how_they_were_made(name):
    path = made.RESULTS / f"{name}.json"
    stored = made.read(name)
    assert path.stat().st_size < 200_000
    assert stored["versions"]["adamx"] and stored["code"] and stored["date"] in made.line(stored)
    assert stored["command"].startswith("python -m ") or name in program.RUNS
    if not name.startswith(pages.PAPER):
        assert stored["module"] == f"examples.benchmarks.{program.RUNS[name].benchmark}"


# Tables.

PAIR = {**cost.ratio("it", [(1.0, 2.0), (3.0, 4.0)], 0.5)._asdict(), "quartiles": [0.5, 0.75]}
OF_STACKS = [{**PAIR, "what": f"{kind}, 4 of 8 × 8"} for kind in ("step", "compile")]
PARTS = [{**PAIR, "what": f"a 1×8: {name}"} for name in ("one", "two, nearest")]
COMPILED = {"traced": 1.0, "compiled": 2.0, "instructions": 3, "collectives": 0}
COLLECTIVES = [{"kind": "all-gather", "dtype": "bf16", "times": 1, "bytes": 10**6}]
NEEDS = {"parameters": 10**6, "temp": 10, "accessed": 28e6, "collectives": []}
FALL = {"code": "int8", "steps": [500, 1000], "falling": [1.0, 20.0], "error": [0.1, 0.1]}
QUALITY = {"bytes_per_parameter": 8.0, "train_loss": 0.5, "ratio": 1.0, "difference": [0.1, 0.1]}
QUALITY |= {"test_loss": 0.5, "accuracy": 0.9, "points": [0.1, 0.1]}
QUALITY |= {"loss_holds": True, "accuracy_holds": False}

SMALL = {
    "accuracy": {
        "bar": 1e-6,
        "scores": [
            {"case": "|β|", "optimiser": name, "at": {"1": 1e-7, "100": 1e-4}, "worst": 1e-4}
            for name in ("adamx.adam", "optax.adam", "torch.optim.Adam")
        ],
    },
    "compiling": {"steps": {"Optax's adamw": [COMPILED], "adamw": [COMPILED, COMPILED]}},
    "cost": {
        **{kind: [PAIR] for kind in ("step", "build", "update")},
        "recompilations": [{"what": "it", "adamx": 0, "optax": 1}],
        "memory": [{"what": "it", "argument": 1, "output": 1, "alias": 1, "temp": 1}],
    },
    "faithfulness": {
        "shown": 500,
        "bar": 0.03,
        "falls": [
            {**FALL, "staying": [1.0, 1.0], "worst": 19.0, "spread": [1.0, 1.0], "step": [1.0, 1.0]}
        ],
        "biases": [
            {"code": "int8", "slot": "squares", "elements": 8, "rms": 1.0, "largest": 2.0}
            | {"expected": 3.0, "raised": 0.5}
        ],
        "trainings": [{"code": "float32", "losses": [0.1, 9.0], "spikes": [1.0, 1.0]}],
    },
    "gates": {
        "ratios": PARTS,
        "memory": [{"update": "adamw", "state": 8.0, "temporary": 0.0}],
    },
    "matrices": {
        "tasks": {
            task: [
                {"method": "muon", "rate": 0.1, "at_an_end": True, "losses": [1.0, 2.0]} | ratios
            ]
            for task, ratios in (("one", {"ratios": [1.5, 1.7]}), ("two", {"ratios": [1.5, 0.0]}))
        }
    },
    "matrix_costs": {"32": {"over_adamw": [PAIR], "over_rest": [PAIR], "peers": [PAIR]}},
    "parameters": {
        "rows": [
            {"name": "float32", "bytes": 12.0, "start": 1.0, "loss": 0.5, "spread": 0.1}
            | {"farthest": 0.0, "accuracy": 0.9, "follows": True}
        ]
    },
    "quality": {
        "tasks": {
            task: {"summary": "A task.", "rows": [{"kept_as": x, **QUALITY} for x in ("f", "i")]}
            for task in ("mnist", "cifar10", "shakespeare")
        }
    },
    "gpu": {"device": "a GPU", "ratios": [PAIR]},
    "stacks": {"optax.contrib.muon": OF_STACKS, "in stacks": OF_STACKS},
    "storage": {
        "steps": PARTS,
        "memory": [{"what": "a 1×8: one", "bytes": 2.0}, {"what": "a 1×8: two", "bytes": 2.0}],
        "peers": [PAIR],
    },
    "sweep": {
        "bar": 1e-6,
        "rates": [1e-5, 1e-2],
        "times": [PAIR],
        "agreement": [{"what": "it", "curve": [0.0, 1e-3], "final": [0.0, 1e-3]}],
    },
    "tpu": {
        "needs": [
            {"what": "adamw", "placement": "single", **NEEDS},
            {"what": "adamw", "placement": "fsdp", **NEEDS, "collectives": COLLECTIVES},
            {"what": "lion", "placement": "single", **NEEDS},
        ],
        "plans": [
            {"what": "adamw", "placement": "FSDP", "state": 8.0, "on_chip": 1e9, "received": 1e9}
            | {"to_host": 0.0}
        ],
    },
    "watch": {"ratios": PARTS},
}


@pytest.mark.parametrize(
    ("benchmark", "table"), [(x, table) for x, named in tables.TABLES.items() for table in named]
)
def test_every_table_is_complete(benchmark, table):
    text = tables.TABLES[benchmark][table](json.loads(json.dumps(SMALL[benchmark])))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 2
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1


def test_what_misses_its_bar_is_bold():
    assert "| it | 2.00 s | 3.00 s | **0.62** | 0.50 … 0.75 |" in tables.step(SMALL["cost"])
    assert r"| \|β\| | adamx | 1.0e-07 | **1.0e-04** |" in tables.accuracy(SMALL["accuracy"])
    assert "reached in 1 of 2 runs" in tables.matrices(SMALL["matrices"])
    told = tables.tpu(SMALL["tpu"])
    assert "| adamw | 0.00 | 28 | 0.00 | all-gather of 1 bytes per parameter in bf16 |" in told
    assert told.endswith("on one chip: `lion`.")


# Pages.


def stored(code, module="examples.benchmarks.gates"):
    machine = {"processor": "A chip", "cores": 2, "memory": 8}
    return {
        "module": module,
        "command": "python -m examples.benchmarks.gates",
        "date": "2026-11-30",
        "load": 0.5,
        "machine": machine,
        "commit": "0123456789",
        "changed": True,
        "code": code,
        "versions": {"python": "3.11", "jax": "0.10", "torch": "absent", "adamx": "0.1"},
        "results": SMALL["gates"],
    }


PAGE = "# A page\n\n<!-- results: gates memory -->\n\nold\n\n<!-- end of results -->\n\nText.\n"


def test_a_page_gets_its_tables(tmp_path):
    assert pages.filled(PAGE, tmp_path) == PAGE
    assert list(pages.missing(PAGE, tmp_path)) == ["gates"]
    made.write(stored("0"), tmp_path / "gates.json")
    text = pages.filled(PAGE, tmp_path)
    assert pages.filled(text, tmp_path) == text and not list(pages.missing(text, tmp_path))
    assert "old" not in text and "| `adamw` | 8.00 | 0.00 |\n\n`python -m" in text
    line = (
        "`python -m examples.benchmarks.gates`, 2026-11-30: Python 3.11, JAX 0.10, adamx 0.1; "
        "A chip, 2 cores, 8 GB, load 0.5; commit 0123456 with changes.\n\n<!-- end"
    )
    assert line in text


@pytest.mark.parametrize("lost", ["<!-- results: gates memory -->", pages.END])
def test_a_place_without_an_end_is_an_error(lost):
    with pytest.raises(ValueError, match="is missing"):
        pages.places((PAGE + PAGE).replace(lost, "", 1))


def test_a_page_of_the_site_tells_whether_the_code_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "RESULTS", tmp_path)
    monkeypatch.setattr(made.read, "__defaults__", (tmp_path,))
    assert pages.with_changes(PAGE) == PAGE
    made.write(stored(made.digest("examples.benchmarks.gates")), tmp_path / "gates.json")
    text = pages.filled(PAGE, tmp_path)
    assert pages.with_changes(text) == text and not list(program.stale(tmp_path))
    made.write(stored("0"), tmp_path / "gates.json")
    assert f"with changes. {pages.CHANGED}\n\n{pages.END}" in pages.with_changes(text)
    assert list(program.stale(tmp_path)) == ["gates: 2026-11-30, commit 0123456"]


# How results are made.


def test_a_command_is_told_with_its_settings_and_without_files(monkeypatch):
    for name in made.settings():
        monkeypatch.delenv(name)
    monkeypatch.setenv("XLA_FLAGS", "--a --b")
    given = ["--quick", "--json", "x.json", "--task", "a b", "--out=folder"]
    told = made.command("examples.benchmarks.quality", given)
    assert told == "XLA_FLAGS='--a --b' python -m examples.benchmarks.quality --quick --task 'a b'"


def test_a_commit_is_unknown_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "ROOT", tmp_path)
    assert made.commit() == {"commit": "unknown", "changed": None}


def test_the_code_of_a_result_is_what_it_imports(tmp_path):
    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("ours/__init__", "from ours.a import *\nfrom ours.b import g\n")
    write("ours/a", '__all__ = ["f"]\n\ndef f():\n    """f."""\n')
    write("ours/b", "import numpy\nfrom ours import c\n\ndef g():\n    return c.x\n")
    write("ours/c", "x = 1\n")
    write("ours/d", "")
    write("bench", 'import ours\n\nDEPENDS = ("ours.d",)\nours.f()\n')
    write("other", "def late():\n    from ours import g\n")

    def code():
        return Code(tmp_path, ("ours", "bench", "other"))

    assert code().of("bench") == ["bench", "ours.a", "ours.d"]
    assert code().of("other") == ["other", "ours.b", "ours.c"]
    before = code().digest("bench"), code().digest("other")
    write("ours/a", '# A comment.\n__all__ = ["f"]\n\ndef f():\n    """Another."""\n')
    assert before == (code().digest("bench"), code().digest("other"))
    write("ours/c", "x = 2\n")
    assert before[0] == code().digest("bench") and before[1] != code().digest("other")
    write("ours/d", 'FRAME = "d.txt"\n')
    before = code().digest("bench")
    (tmp_path / "ours/d.txt").write_text("frame")
    assert before != code().digest("bench")


def test_a_benchmark_depends_on_what_it_measures():
    modules = Code().of("examples.benchmarks.gates")
    assert {"adamx.wrappers.gates", "adamx.engine.gated", "examples.benchmarks.cost"} <= {*modules}
    assert not {"adamx", "adamx.recipes.matrices", "examples.benchmarks.tables"} & {*modules}
    recipes = {"adamx.recipes.bases", "adamx.recipes.signs"}
    assert recipes <= {*Code().of("examples.benchmarks.tpu")}


# The program.


def test_every_benchmark_has_a_name_and_tables(capsys):
    assert {run.benchmark for run in program.RUNS.values()} == set(tables.TABLES)
    program.main(["--list"])
    said = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{said}" for name in program.RUNS)
    assert "needs libtpu" in said
    with pytest.raises(SystemExit):
        program.main(["no-such-benchmark"])
    assert "there is no no-such-benchmark" in capsys.readouterr().err


def test_all_runs_what_can_run_here(tmp_path, monkeypatch, capsys):
    started = []

    def start(name, *, quick, folder):
        started.append((name, quick, folder))
        return name != "cost"

    monkeypatch.setattr(program, "start", start)
    monkeypatch.setattr(program, "lacks", lambda run: [x for x in run.needs if x == "libtpu"])
    with pytest.raises(SystemExit, match="failed: cost"):
        program.main(["--quick", "--out", str(tmp_path)])
    assert started == [(name, True, tmp_path) for name in program.RUNS if name != "tpu"]
    assert "tpu: left out, needs libtpu" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="tpu needs libtpu"):
        program.main(["tpu"])


def test_a_benchmark_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    class Done:
        returncode = 0

    def run(command, cwd, env):
        given.append((command[1:], env["OPENBLAS_NUM_THREADS"]))
        return Done

    given = []
    monkeypatch.setattr(program.subprocess, "run", run)
    assert program.start("matrix_costs-one-thread", quick=True, folder=tmp_path)
    file = str(tmp_path / "matrix_costs-one-thread.json")
    command = ["-m", "examples.benchmarks.matrix_costs", *program.SOAP, "--quick", "--json", file]
    assert given == [(command, "1")]
