"""Benchmarks: `python -m examples.benchmarks.accuracy`, `.cost`, `.sweep`, `.watch`.

`.storage` (bytes and time), `.faithfulness` and `.quality` measure quantized states. `.parameters`
measures bfloat16 parameters. `.matrices` compares how many steps optimisers of matrices need,
`.matrix_costs` their time, and `.stacks` that of Muon's. `.compiling` measures how long steps on
many arrays compile. `.gates` measures what gates and accumulation cost in a training. `.tpu`
compiles steps for TPUs.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import adamx


def versions() -> dict[str, str]:
    """The versions and the machine of a measurement."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "absent"

    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "optax", "torch")},
        "adamx": adamx.__version__,
        "platform": f"{platform.system()} {platform.machine()} {jax.default_backend()}",
        "processors": str(os.cpu_count()),
        **{name: x for name, x in os.environ.items() if name.startswith(("XLA_FLAGS", "MALLOC_"))},
    }


def headline(versions: Mapping[str, str]) -> str:
    """The versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def options(name: str, doc: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a benchmark: ``--quick`` and ``--json FILE``, and ``--tiny`` for its test."""
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.benchmarks.{name}", description=(doc or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer measurements")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser.parse_args(arguments)


def save(results: Mapping[str, Any], path: Path | None) -> None:
    """Write the results as JSON, if a file is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
