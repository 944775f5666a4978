"""The page of the experiments is what their runs have stored."""

import json

import pytest

pytest.importorskip("rich")

from examples.paper import page
from examples.paper.__main__ import RUNS, parse


def test_the_page_shows_every_run_that_was_made(tmp_path, capsys):
    folder = tmp_path / "out" / "steps"
    folder.mkdir(parents=True)
    (folder / "steps.png").write_bytes(b"picture")
    claims = [{"claim": "|Δ| ≤ α", "paper": "α", "here": "7 α", "holds": False}]
    versions = dict.fromkeys(("date", "python", "jax", "optax", "adamx"), "1.2")
    stored = {
        "run": "steps",
        "size": "quick",
        "title": "Steps",
        "setting": {"rates": {"Adam": [0.1, 0.25]}},
        "rows": [{"method": "Adam", "cost": 0.123456}],
        "claims": claims,
        **versions,
    }
    (folder / "steps.json").write_text(json.dumps(stored))
    page.main(["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")])
    text = (tmp_path / "docs" / "paper.md").read_text()
    assert r"| [steps](#steps) | \|Δ\| ≤ α | α | 7 α | no |" in text
    assert "python -m examples.paper steps --quick`, 1.2" in text
    assert "* rates: Adam 0.1, 0.25" in text and "| Adam | 0.1235 |" in text
    assert "![Steps](paper/steps.png)" in text
    assert (tmp_path / "docs" / "paper" / "steps.png").read_bytes() == b"picture"
    assert capsys.readouterr().out.count("has not been run") == len(RUNS) - 1


def test_every_run_says_what_it_is(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {run} " in said for run in RUNS) and "Section 2.1" in said
