"""The experiments of the paper: python -m examples.paper RUN [--quick | --full]"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

RUNS = ["logistic", "imdb", "mlp", "cnn", "bias", "averaging", "regret", "steps", "surfaces"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    modules = {name: f"examples.paper.{name}" for name in RUNS}
    summaries = [f"  {name:<10} {summary(module)}" for name, module in modules.items()]
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper",
        description=str(__doc__).partition(":")[0] + ".",
        epilog="runs:\n" + "\n".join(summaries),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", choices=[*RUNS, "all"], metavar="RUN", help="one of the runs below, or all"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes on two cores")
    size.add_argument("--full", action="store_true", help="the epochs and data of the paper")
    parser.add_argument(
        "--out", type=Path, default=Path("out/paper"), help="folder for all results"
    )
    parser.add_argument(
        "--docs", type=Path, help="folder of the page; docs, except for quick runs, which have none"
    )
    return parser.parse_args(arguments)


def summary(module: str) -> str:
    """The first line of a module's docstring, read without importing the module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text().partition('"""')[2].partition('"""')[0].splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        from examples.benchmarks import pages
        from examples.paper.lab import Lab, Size
    except ModuleNotFoundError as error:
        raise SystemExit(f"This needs {error.name}: pip install '.[demo]'") from error
    size = Size("quick" if options.quick else "full" if options.full else "usual")
    docs = options.docs or (None if options.quick else pages.DOCS)
    for name in RUNS if options.run == "all" else [options.run]:
        experiment = importlib.import_module(f"examples.paper.{name}")
        lab = Lab(name, size, options.out, docs=docs)
        try:
            data = experiment.load()
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
        with lab.progress():
            outcome = experiment.run(lab, data)
        lab.report(outcome, experiment.draw)


if __name__ == "__main__":
    main()
