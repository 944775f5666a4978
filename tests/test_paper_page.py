"""The page of the experiments is what their runs have stored."""

import pytest

pytest.importorskip("rich")

from rich.console import Console

from examples.benchmarks import made
from examples.paper import page
from examples.paper.__main__ import RUNS, parse
from examples.paper.lab import Claim, Lab, Outcome, Size


@pytest.fixture
def docs(tmp_path):
    """A folder of documentation with the results of every run."""
    docs = tmp_path / "docs"
    outcome = Outcome(
        "A title",
        {"rates": {"Adam": [0.1, 0.25]}},
        [{"method": "Adam", "cost": 0.123456}],
        {"Adam": [1.0, 0.5]},
        [Claim("|Δ| ≤ α", "α", "7 α", False)],
    )

    class Picture:
        def savefig(self, path, dpi):
            path.write_bytes(b"picture")

    for run in RUNS:
        lab = Lab(run, Size("full"), tmp_path / "out", Console(quiet=True), docs)
        lab.report(outcome, lambda _, run=run: {f"{run}.png": Picture()})
    return docs


def test_the_page_shows_every_run(docs):
    page.main(["--docs", str(docs)])
    text = (docs / "paper.md").read_text("utf-8")
    assert text == page.written(docs)
    for run in RUNS:
        assert rf"| [{run}](#{run}) | \|Δ\| ≤ α | α | 7 α | no |" in text
        assert f"`python -m examples.paper {run} --full`, " in text
        assert f"![A title](paper/{run}.png)" in text
        assert (docs / "paper" / f"{run}.png").read_bytes() == b"picture"
        assert "curves" not in made.read(f"paper/{run}", docs / "results")["results"]
    assert "* rates: Adam 0.1, 0.25" in text and "| Adam | 0.1235 |" in text


def test_a_missing_run_is_an_error(docs):
    (docs / "results" / "paper" / "steps.json").unlink()
    with pytest.raises(
        SystemExit, match=r"steps\.json is missing; `python -m examples.paper steps`"
    ):
        page.main(["--docs", str(docs)])
    assert not (docs / "paper.md").exists()


def test_every_run_says_what_it_is(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {run} " in said for run in RUNS) and "Section 2.1" in said
