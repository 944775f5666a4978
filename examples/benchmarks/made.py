"""How a result was made: the command, the machine, the commit and the code."""

import datetime
import functools
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks.code import ROOT, Code

RESULTS = ROOT / "docs" / "results"
SETTINGS = ("XLA_FLAGS", "MALLOC_", "OPENBLAS_", "ADAMX_KERNELS")
"""How the names of environment variables begin that change results."""

NAMES = {"python": "Python", "jax": "JAX", "optax": "Optax", "torch": "PyTorch"}
SHOWN = ("python", "jax", "optax", "adamx")
PEERS = {
    "examples.benchmarks.accuracy": ("torch",),
    "examples.benchmarks.matrix_costs": ("pytorch_optimizer", "heavyball"),
    "examples.benchmarks.storage": ("torchao", "bitsandbytes"),
    "examples.benchmarks.tpu": ("libtpu",),
}
"""Packages beside which a benchmark measures, or which it needs."""


def begin(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What is known when a program begins, before anything is measured."""
    return {
        "module": module,
        "command": command(module, arguments),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": load(),
        "machine": machine(),
        **commit(),
        "code": Code().digest(module),
    }


def command(module: str, arguments: Sequence[str]) -> str:
    """The command in one line, without the names of files that it wrote."""
    kept, left = [], iter(arguments)
    for x in left:
        if x in ("--json", "--out"):
            next(left, None)
        elif not x.startswith(("--json=", "--out=")):
            kept.append(x)
    set_to = [f"{name}={shlex.quote(value)}" for name, value in settings().items()]
    package, _, name = module.rpartition(".")
    program = f"{package} {name}" if package == "examples.paper" else module
    return " ".join([*set_to, f"python -m {program}", *map(shlex.quote, kept)])


def settings() -> dict[str, str]:
    """The environment variables that change results."""
    return {name: x for name, x in sorted(os.environ.items()) if name.startswith(SETTINGS)}


def load() -> float | None:
    """The load average over the last minute, if known."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    """The processor, its cores and the gigabytes of memory, as far as known."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text("utf-8").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    known = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    memory = None
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(known):
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    processor = models[0] if models else platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "memory": memory}


def commit() -> dict[str, Any]:
    """The commit, and whether the code differed from it."""
    try:
        if not (ROOT / ".git").exists():
            raise FileNotFoundError(".git")
        found = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "adamx", "examples")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "changed": None}
    return {"commit": found, "changed": bool(changed)}


def git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def write(stored: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON; a file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(half, path)


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Stored results by their name."""
    path = folder / f"{name}.json"
    if not path.is_file():
        paper = name.startswith("paper/")
        program = f"examples.paper {path.stem}" if paper else f"examples.benchmarks {name}"
        raise FileNotFoundError(f"{path} is missing; `python -m {program}` writes it")
    return json.loads(path.read_text("utf-8"))


def names(folder: Path = RESULTS) -> Iterator[str]:
    """The names of all stored results."""
    for path in sorted(folder.rglob("*.json")):
        yield path.relative_to(folder).with_suffix("").as_posix()


@functools.cache
def digest(module: str) -> str | None:
    """The code of a module as it is now; None if the module is gone."""
    try:
        return Code().digest(module)
    except ValueError:
        return None


def is_stale(stored: Mapping[str, Any]) -> bool:
    """Whether the code has changed since these results were made."""
    return stored["code"] != digest(stored["module"])


def line(stored: Mapping[str, Any]) -> str:
    """Where results come from, in one line of Markdown."""
    versions, machine = stored["versions"], stored["machine"]
    packages = [
        f"{NAMES.get(name, name)} {versions[name]}"
        for name in (*SHOWN, *PEERS.get(stored["module"], ()))
        if versions.get(name, "absent") != "absent"
    ]
    cores = [f"{machine['cores']} cores"] if machine["cores"] else []
    memory = [f"{machine['memory']} GB"] if machine["memory"] else []
    load = [] if stored["load"] is None else [f"load {stored['load']:g}"]
    where = ", ".join([machine["processor"] or "unknown machine", *cores, *memory, *load])
    changed = " with changes" if stored["changed"] else ""
    return (
        f"`{stored['command']}`, {stored['date']}: {', '.join(packages)}; {where}; "
        f"commit {stored['commit'][:7]}{changed}."
    )
