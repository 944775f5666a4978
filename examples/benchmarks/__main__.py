"""Run benchmarks, store their results in docs/results, and write the tables of the documentation.

    python -m examples.benchmarks [NAME ...] [--quick] [--out DIR]
    python -m examples.benchmarks --list | --tables | --stale

Without a name, all run that can run here; a process each, one after the other. The results of one
benchmark may have several names, for several settings.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.benchmarks import made, pages


class Run(NamedTuple):
    """How the results of a name are made.

    Attributes:
        benchmark: the module in ``examples.benchmarks``.
        what: one line about it.
        takes: roughly how long it takes on two cores.
        arguments: what follows the name of the module.
        environment: environment variables.
        needs: packages without which it can't run.
    """

    benchmark: str
    what: str
    takes: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = {}
    needs: Sequence[str] = ()


PYTORCH = ("torch", "pytorch_optimizer", "heavyball")
SOAP = ("--widths", "256", "--methods", "soap")

RUNS = {
    "accuracy": Run("accuracy", "updates beside float64", "5 minutes", needs=("torch",)),
    "compiling": Run("compiling", "compiling a step on 302 sharded arrays", "10 minutes"),
    "cost": Run("cost", "time, compilation and memory of a step beside Optax", "4 minutes"),
    "cost-xla": Run(
        "cost", "the same without kernels", "4 minutes", environment={"ADAMX_KERNELS": "off"}
    ),
    "faithfulness": Run(
        "faithfulness", "v in formats of few bits", "10 minutes", ("--out", "docs/memory")
    ),
    "gates": Run("gates", "gates and accumulation in a training", "an hour"),
    "gpu": Run("gpu", "steps on a GPU", "5 minutes", needs=("jax_cuda12_plugin",)),
    "matrices": Run("matrices", "steps that optimisers of matrices need", "an hour or more"),
    "matrix_costs": Run("matrix_costs", "their time", "20 minutes", ("--alone",)),
    "matrix_costs-peers": Run(
        "matrix_costs", "SOAP beside PyTorch's", "5 minutes", SOAP, needs=PYTORCH
    ),
    "matrix_costs-one-thread": Run(
        "matrix_costs",
        "the same with one thread of OpenBLAS",
        "5 minutes",
        SOAP,
        {"OPENBLAS_NUM_THREADS": "1"},
        PYTORCH,
    ),
    "parameters": Run("parameters", "bfloat16 parameters in many small steps", "10 minutes"),
    "quality": Run("quality", "trainings with states of few bits", "30 minutes", ("--seeds", "5")),
    "stacks": Run("stacks", "Muon one by one, in stacks, and Optax's", "6 minutes"),
    "storage": Run("storage", "bytes and time of states of few bits", "8 minutes"),
    "storage-peers": Run(
        "storage",
        "the same, and PyTorch's",
        "10 minutes",
        needs=("torch", "torchao", "bitsandbytes"),
    ),
    "sweep": Run("sweep", "a sweep and single runs", "2 minutes"),
    "tpu": Run(
        "tpu",
        "steps compiled for TPUs (make tpu)",
        "30 minutes",
        ("--on", "single", "fsdp"),
        needs=("libtpu",),
    ),
    "tpu-plan": Run(
        "tpu", "bytes of a large model on each chip", "1 minute", ("--plan", "1000", "1e12")
    ),
    "watch": Run("watch", "watching a training", "3 minutes"),
}


def lacks(run: Run) -> list[str]:
    """The packages that a run needs and that are not here."""
    return [name for name in run.needs if importlib.util.find_spec(name) is None]


def start(name: str, *, quick: bool, folder: Path) -> bool:
    """Run a benchmark in a process of its own; whether it succeeded."""
    run = RUNS[name]
    result = (folder / f"{name}.json").absolute()
    options = [*run.arguments, *(["--quick"] if quick else []), "--json", str(result)]
    print(f"{name}: {run.what}, about {run.takes}", flush=True)
    program = [sys.executable, "-m", f"examples.benchmarks.{run.benchmark}", *options]
    done = subprocess.run(program, cwd=made.ROOT, env={**os.environ, **run.environment})
    return done.returncode == 0


def run_all(names: Sequence[str], *, quick: bool, folder: Path) -> None:
    """Run these benchmarks, or all that can run here."""
    failed: list[str] = []
    for name in names or RUNS:
        absent = " and ".join(lacks(RUNS[name]))
        if absent and names:
            raise SystemExit(f"{name} needs {absent}")
        if absent:
            print(f"{name}: left out, needs {absent}", flush=True)
        elif not start(name, quick=quick, folder=folder):
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def write_tables(folder: Path) -> None:
    """Write the tables of all pages from the stored results."""
    absent: dict[str, list[str]] = {}
    for page in sorted(pages.DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        if (new := pages.filled(text, folder)) != text:
            page.write_text(new, "utf-8")
            print(f"written: {page}")
        for name in pages.missing(text, folder):
            absent.setdefault(name, []).append(page.name)
    if absent:
        lines = [f"  {name} ({', '.join(where)})" for name, where in absent.items()]
        raise SystemExit("\n".join([f"not in {folder}:", *lines]))


def stale(folder: Path) -> Iterator[str]:
    """The stored results whose code has changed since."""
    for name in made.names(folder):
        stored = made.read(name, folder)
        if made.is_stale(stored):
            yield f"{name}: {stored['date']}, commit {stored['commit'][:7]}"


def listed() -> Iterator[str]:
    for name, run in RUNS.items():
        needs = f"; needs {', '.join(run.needs)}" if run.needs else ""
        yield f"{name:<24} {run.what} ({run.takes}{needs})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    parser.add_argument("--quick", action="store_true", help="fewer measurements")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=made.RESULTS, help="instead of docs/results"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list all names")
    instead.add_argument("--tables", action="store_true", help="write the tables in docs")
    instead.add_argument("--stale", action="store_true", help="list results of older code")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(RUNS)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(RUNS)}")
    if options.list:
        print(*listed(), sep="\n")
    elif options.tables:
        write_tables(options.out)
    elif options.stale:
        print(*stale(options.out), sep="\n")
    else:
        run_all(options.names, quick=options.quick, folder=options.out)


if __name__ == "__main__":
    main()
