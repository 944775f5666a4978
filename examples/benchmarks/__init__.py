"""Benchmarks: `python -m examples.benchmarks.accuracy`, `.cost`, `.sweep`, `.watch`.

`python -m examples.benchmarks` runs some or all of them, stores their results in `docs/results`,
and writes the tables of the documentation.

`.storage` (bytes and time), `.faithfulness` and `.quality` measure quantized states. `.parameters`
measures bfloat16 parameters. `.matrices` compares how many steps optimisers of matrices need,
`.matrix_costs` their time, and `.stacks` that of Muon's. `.compiling` measures how long steps on
many arrays compile. `.gates` measures what gates and accumulation cost in a training. `.tpu`
compiles steps for TPUs, and `.gpu` times them on a GPU.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import adamx
from examples.benchmarks import made

PEERS = ("torch", "torchao", "bitsandbytes", "pytorch_optimizer", "heavyball", "libtpu")


def versions() -> dict[str, str]:
    """The versions and the machine of a measurement."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "absent"

    peers = {package: version(package) for package in PEERS}
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "optax")},
        **{package: x for package, x in peers.items() if x != "absent"},
        "adamx": adamx.__version__,
        "platform": f"{platform.system()} {platform.machine()} {jax.default_backend()}",
        "processors": str(os.cpu_count()),
        **made.settings(),
    }


def headline(versions: Mapping[str, str]) -> str:
    """The versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark, with ``--json FILE``."""
    new = argparse.ArgumentParser(
        prog=f"python -m examples.benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return new


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options that are given, and in ``began`` what :func:`save` writes about the beginning."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    module = parser.prog.rpartition(" ")[2]
    options.began = made.begin(module, given) if options.json is not None else {}
    return options


def options(name: str, doc: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options ``--quick`` and ``--json FILE``, and ``--tiny`` for tests."""
    options = parser(name, doc)
    options.add_argument("--quick", action="store_true", help="fewer measurements")
    options.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parse(options, arguments)


def save(results: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the results and how they were made, if a file is given."""
    if options.json is not None:
        stored = {**options.began, "versions": versions(), "results": results}
        made.write(stored, options.json)


def kept(name: str) -> Path:
    """A folder for the finished trainings of a benchmark, another one if its code has changed."""
    code = made.digest(f"examples.benchmarks.{name}")
    return Path(tempfile.gettempdir()) / f"adamx-{name}-{code}"
