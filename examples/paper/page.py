"""Write the documentation page of the experiments from the stored results of their runs.

python -m examples.paper.page [--docs DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks import made, pages
from examples.benchmarks.tables import markdown
from examples.paper.__main__ import RUNS, summary
from examples.paper.lab import shown, verdict

INTRODUCTION = """\
# The paper's experiments

This page shows the experiments of "Adam: A Method for Stochastic Optimization" (Kingma & Ba, arXiv
1412.6980) and a few more, on real data. `python -m examples.paper RUN [--quick | --full]` runs one
of them, `make paper` runs all. `python -m examples.paper.page` wrote this page from the stored
results of the runs below. The learning rate of every method is the best one of the given grid. All
rates of a grid are trained in one vmapped program, except for the convolutions. The last column of
the table says "no" if a claim of the paper does not hold here, and "can't tell" if a run of this
size can't decide. Data: MNIST (LeCun, Cortes, Burges), IMDB (Maas et al. 2011), CIFAR-10
(Krizhevsky 2009)."""

CLAIM = ["run", "claim", "paper", "here", "holds?"]


def page(stored: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown."""
    rows = [
        [f"[{result['run']}](#{result['run']})", *cells(claim)]
        for result in (one["results"] for one in stored)
        for claim in result["claims"]
    ]
    parts = [INTRODUCTION, "## What the paper claims", markdown(CLAIM, rows)]
    return "\n\n".join([*parts, *map(section, stored)]) + "\n"


def cells(claim: Mapping[str, Any]) -> list[str]:
    return [claim["claim"], claim["paper"], claim["here"], verdict(claim["holds"])]


def section(stored: Mapping[str, Any]) -> str:
    """The section of one run: its figures, its settings and its table."""
    result = stored["results"]
    run = result["run"]
    settings = [f"* {name}: {plain(value)}" for name, value in result["setting"].items()]
    rows = [[shown(value) for value in row.values()] for row in result["rows"]]
    table = markdown(list(result["rows"][0]), rows)
    return "\n\n".join(
        [
            f"## {run}",
            summary(f"examples.paper.{run}"),
            *(f"![{result['title']}](paper/{name})" for name in result["pictures"]),
            "\n".join(settings),
            pages.block(f"{pages.PAPER}{run}", "rows", table, made.line(stored)),
        ]
    )


def plain(value: Any) -> str:
    """A setting as readable text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {plain(x)}" for name, x in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return shown(value)


def written(docs: Path = pages.DOCS) -> str:
    """The page from the results in a folder of documentation; every run must be there."""
    return page([made.read(f"{pages.PAPER}{run}", docs / "results") for run in RUNS])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.paper.page", description=page.__doc__)
    parser.add_argument("--docs", type=Path, default=pages.DOCS, help="folder of the page")
    options = parser.parse_args(arguments)
    try:
        text = written(options.docs)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    (options.docs / "paper.md").write_text(text, "utf-8")
    print(f"Written: {options.docs / 'paper.md'}, with {len(RUNS)} runs")


if __name__ == "__main__":
    main()
