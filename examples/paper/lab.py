"""Tools of all experiments: sizes, a folder to resume from, live progress, and reports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples import benchmarks
from examples.benchmarks import made

__all__ = ["Claim", "Lab", "Outcome", "Size"]


class Size(NamedTuple):
    """The size of a run: ``quick`` takes minutes on two cores, ``full`` has the paper's epochs."""

    name: str

    def of(self, *, quick: Any, usual: Any, full: Any) -> Any:
        """The value for this size."""
        return {"quick": quick, "usual": usual, "full": full}[self.name]


class Claim(NamedTuple):
    """A claim of the paper and the result of this run.

    ``holds`` is None if the run can't decide.
    """

    claim: str
    paper: str
    here: str
    holds: bool | None


@dataclass
class Outcome:
    """The results of an experiment as plain numbers, which can be saved and plotted again.

    Attributes:
        title: the title of the figure.
        setting: the data, the model and the grids of learning rates.
        columns: the rows of the table, dicts with the same keys.
        curves: the data of the figure.
        claims: the paper's claims about the experiment.
    """

    title: str
    setting: dict[str, Any]
    rows: list[dict[str, Any]]
    curves: dict[str, Any]
    claims: list[Claim] = field(default_factory=list)


class Lab:
    """Runs an experiment. It saves intermediate results, so that interrupted runs continue.

    Figures and all results are written to a folder in ``out``. If ``docs`` is given, the figures
    and the results that :mod:`examples.paper.page` shows are written there, too.
    """

    def __init__(
        self,
        run: str,
        size: Size,
        out: Path,
        console: Console | None = None,
        docs: Path | None = None,
    ):
        self.run, self.size, self.docs = run, size, docs
        module = f"examples.paper.{run}"
        arguments = [] if size.name == "usual" else [f"--{size.name}"]
        self.began = made.begin(module, arguments) if docs is not None else {}
        self.folder = out / run
        self.unfinished = self.folder / f"unfinished-{size.name}-{made.digest(module)}"
        self.console = console or Console()
        self._progress: Progress | None = None

    # Progress

    @contextlib.contextmanager
    def progress(self) -> Iterator[Lab]:
        """A context that shows progress bars with live losses."""
        bars = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
        columns = (TextColumn("{task.description:<24}"), *bars, TextColumn("{task.fields[live]}"))
        with Progress(*columns, console=self.console) as self._progress:
            yield self
        self._progress = None

    def steps(self, description: str, total: int, done: int = 0) -> Callable[..., None]:
        """Add a progress bar; call the result after each step, with live values by name."""
        if self._progress is None:
            return lambda **live: None
        progress = self._progress
        task = progress.add_task(description, total=total, completed=done, live="")

        def advance(**live: float) -> None:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in live.items())
            progress.update(task, advance=1, live=shown)

        return advance

    # Resuming

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """The result of ``make()``, read from disk if an interrupted run has saved it.

        Args:
            key: everything on which the result depends, except the code.
            make: returns a pytree of arrays and plain objects.
        """
        found = self.load(key)
        if found is None:
            found = jax.tree.map(_plain, make())
            self.save(key, found)
        return found

    def load(self, key: Any) -> Any:
        """The result saved under this key, or None."""
        path = self._path(key)
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def save(self, key: Any, thing: Any) -> None:
        """Save a result until the run is finished; the file is replaced atomically."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half")
        half.write_bytes(pickle.dumps(jax.tree.map(_plain, thing)))
        os.replace(half, path)

    def _path(self, key: Any) -> Path:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return self.unfinished / f"{digest}.pickle"

    # The report

    def report(self, outcome: Outcome, draw: Callable[[Outcome], Mapping[str, Any]]) -> None:
        """Write results and figures, print the tables, and remove intermediate results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        claims = [claim._asdict() for claim in outcome.claims]
        stored = _jsonable({"run": self.run, **asdict(outcome), "claims": claims})
        text = json.dumps(stored, indent=1, allow_nan=False)
        (self.folder / f"{self.run}.json").write_text(text + "\n")
        pictures = []
        for name, picture in draw(outcome).items():
            pictures.append(self.folder / name)
            if hasattr(picture, "savefig"):
                picture.savefig(pictures[-1], dpi=120)
            else:  # an animation has its own save method
                picture.save(pictures[-1], dpi=80)
        if self.docs is not None:
            self.store(self.docs, stored, pictures)
        self.console.print(f"[bold]{outcome.title}[/]", highlight=False)
        for name, value in outcome.setting.items():
            self.console.print(f"  {name}: {value}", highlight=False, markup=False)
        self.console.print(tabulate(outcome.rows))
        if outcome.claims:
            self.console.print(claims_table(outcome.claims))
        self.console.print("Written: " + ", ".join(map(str, pictures)), highlight=False)
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def store(self, docs: Path, stored: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """Write what the page shows: the results without curves, and the figures."""
        shown = {key: stored[key] for key in ("run", "title", "setting", "rows", "claims")}
        results = {**shown, "pictures": [picture.name for picture in pictures]}
        record = {**self.began, "versions": benchmarks.versions(), "results": results}
        made.write(record, docs / "results" / "paper" / f"{self.run}.json")
        (docs / "paper").mkdir(exist_ok=True)
        for picture in pictures:
            shutil.copy(picture, docs / "paper" / picture.name)


def tabulate(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of rows with the same keys."""
    table = Table()
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(shown(value) for value in row.values()))
    return table


def claims_table(claims: Sequence[Claim]) -> Table:
    """A table of the paper's claims and the results."""
    table = Table("claim", "paper", "here", "holds?", show_lines=True)
    for claim in claims:
        table.add_row(claim.claim, claim.paper, claim.here, verdict(claim.holds))
    return table


def verdict(holds: bool | None) -> str:
    return "can't tell" if holds is None else "yes" if holds else "no"


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) else x


def _jsonable(x: Any) -> Any:
    """Write plain values as JSON, with keys in their order; non-finite numbers become null."""
    if isinstance(x, Mapping):
        return {key: _jsonable(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_jsonable(value) for value in x]
    if isinstance(x, (np.ndarray, jax.Array)):
        return _jsonable(np.asarray(x).tolist())
    if isinstance(x, np.generic):
        x = x.item()
    return None if isinstance(x, float) and not np.isfinite(x) else x
