"""Write the documentation page of the experiments from the results of their runs.

python -m examples.paper.page [--out DIR] [--docs DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.paper.__main__ import RUNS, summary
from examples.paper.lab import shown, verdict

INTRODUCTION = """\
# The paper's experiments

This page shows the experiments of "Adam: A Method for Stochastic Optimization" (Kingma & Ba, arXiv
1412.6980) and a few more, on real data. `python -m examples.paper RUN [--quick | --full]` runs one
of them, `make paper` runs all. `python -m examples.paper.page` wrote this page from the saved
results of the runs below. The learning rate of every method is the best one of the given grid. All
rates of a grid are trained in one vmapped program, except for the convolutions. The last column of
the table says "no" if a claim of the paper does not hold here, and "can't tell" if a run of this
size can't
decide. Data: MNIST (LeCun, Cortes, Burges), IMDB (Maas et al. 2011), CIFAR-10 (Krizhevsky 2009)."""

CLAIM = ["run", "claim", "paper", "here", "holds?"]
SIZES = {"quick": " --quick", "usual": "", "full": " --full"}


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown."""
    rows = [
        [f"[{result['run']}](#{result['run']})", *cells(claim)]
        for result in results
        for claim in result["claims"]
    ]
    parts = [INTRODUCTION, "## What the paper claims", table(CLAIM, rows)]
    return "\n\n".join([*parts, *map(section, results)]) + "\n"


def cells(claim: Mapping[str, Any]) -> list[str]:
    return [claim["claim"], claim["paper"], claim["here"], verdict(claim["holds"])]


def section(result: Mapping[str, Any]) -> str:
    """The section of one run: its figures, its settings and its table."""
    run = result["run"]
    made = ", ".join(f"{name} {result[name]}" for name in ("python", "jax", "optax", "adamx"))
    settings = [f"* {name}: {plain(value)}" for name, value in result["setting"].items()]
    heads = list(result["rows"][0])
    rows = [[shown(value) for value in row.values()] for row in result["rows"]]
    return "\n\n".join(
        [
            f"## {run}",
            summary(f"examples.paper.{run}"),
            *(f"![{result['title']}](paper/{name})" for name in result["pictures"]),
            f"`python -m examples.paper {run}{SIZES[result['size']]}`, {result['date']}, {made}.",
            "\n".join(settings),
            table(heads, rows),
        ]
    )


def plain(value: Any) -> str:
    """A setting as readable text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {plain(x)}" for name, x in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return shown(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.paper.page", description=page.__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("out/paper"), help="folder with the results of the runs"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder for the page")
    options = parser.parse_args(arguments)
    (options.docs / "paper").mkdir(parents=True, exist_ok=True)
    results = []
    for run in RUNS:
        folder = options.out / run
        if not (folder / f"{run}.json").exists():
            print(f"{run} has not been run: {folder}")
            continue
        result = json.loads((folder / f"{run}.json").read_text("utf-8"))
        pictures = sorted(folder.glob("*.png")) + sorted(folder.glob("*.gif"))
        for picture in pictures:
            shutil.copy(picture, options.docs / "paper" / picture.name)
        results.append({**result, "pictures": [picture.name for picture in pictures]})
    (options.docs / "paper.md").write_text(page(results), "utf-8")
    print(f"Written: {options.docs / 'paper.md'}, with {len(results)} runs")


if __name__ == "__main__":
    main()
