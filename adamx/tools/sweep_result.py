"""What a sweep found: its scores, its best member, its tables."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from adamx.core import Transformation
from adamx.numerics.types import Float, PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Best", "Sweep", "aligned", "counted", "described", "named_leaves", "short"]


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """The member of a sweep with the best score.

    Attributes:
        index: its position among the members.
        name: its name.
        optimiser: itself.
        coordinates: its numbers on the axes of the sweep.
        score: its score, the mean over seeds.
    """

    index: int
    name: str
    optimiser: Transformation
    coordinates: dict[str, float]
    score: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """What :func:`adamx.sweep` found.

    Attributes:
        optimisers: the members, in the order in which they were given.
        names: their names: the keys of the dict they were given in, else what tells them apart.
        coordinates: the axes of the sweep: by name, one number for each member (NaN where a
            member has no such number). Only what varies, named as in :func:`adamx.hyperparams`.
        is_grid: whether the members are points of these axes: of one structure, and no two of them
            at the same place.
        outputs: what ``train`` returned, as NumPy arrays with the leading axes ``[member]`` or
            ``[member, seed]``.
        seeds: the seeds (of keys their positions), or None.
        score: from one run's output to the number by which it is judged.
        mode: whether the least score is the best one (``"min"``) or the greatest.
    """

    optimisers: tuple[Transformation, ...]
    names: tuple[str, ...]
    coordinates: dict[str, Float[np.ndarray, " member"]]
    is_grid: bool
    outputs: PyTree
    seeds: tuple[int, ...] | None
    score: Callable[[Any], Any]
    mode: Literal["min", "max"]

    @functools.cached_property
    def run_scores(self) -> Float[np.ndarray, "*runs"]:
        """The score of every run, ``[member]`` or ``[member, seed]``."""
        shape = (len(self.optimisers), *([] if self.seeds is None else [len(self.seeds)]))
        scores = np.empty(shape)
        for run in np.ndindex(shape):
            value = self.score(jax.tree.map(lambda x, run=run: x[run], self.outputs))
            if np.ndim(value) != 0:
                raise TypeError(
                    f"score must give one number for a run, gave an array of shape "
                    f"{np.shape(value)}; score=lambda output: … takes one run's output"
                )
            scores[run] = value
        return scores

    @functools.cached_property
    def scores(self) -> Float[np.ndarray, " member"]:
        """The score of every member, ``[member]``: the mean over its seeds."""
        if self.seeds is None:
            return self.run_scores
        with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞ in a diverged member
            return self.run_scores.mean(axis=1)

    @property
    def best(self) -> Best:
        """The member with the best score; one that is not finite never wins.

        Raises:
            ValueError: if no member has a finite score.
        """
        index = self.best_index
        if index is None:
            raise ValueError(
                f"none of the {len(self.optimisers)} members has a finite score: all diverged. "
                "Smaller learning rates or clipping may help"
            )
        coordinates = {name: float(values[index]) for name, values in self.coordinates.items()}
        return Best(
            index, self.names[index], self.optimisers[index], coordinates, float(self.scores[index])
        )

    @property
    def best_index(self) -> int | None:
        """The position of the best member; None if no score is finite."""
        finite = np.isfinite(self.scores)
        towards = self.scores if self.mode == "min" else -self.scores
        return int(np.argmin(np.where(finite, towards, np.inf))) if finite.any() else None

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each run: name, coordinates, seed, score and every scalar output.

        ``pandas.DataFrame(result.rows())`` is the tidy table.
        """
        found = []
        scalars = {
            path: leaf
            for path, leaf in named_leaves(self.outputs).items()
            if path and leaf.ndim == self.run_scores.ndim
        }
        for run in np.ndindex(self.run_scores.shape):
            row: dict[str, Any] = {"name": self.names[run[0]]}
            row |= {name: float(values[run[0]]) for name, values in self.coordinates.items()}
            if self.seeds is not None:
                row["seed"] = self.seeds[run[1]]
            row["score"] = float(self.run_scores[run])
            row |= {
                (f"output.{path}" if path in row else path): leaf[run].item()
                for path, leaf in scalars.items()
            }
            found.append(row)
        return found

    def plot(self, kind: Literal["curves", "scores"] | None = None, *, curve: str = "") -> Figure:
        """Draw the sweep.

        Args:
            kind: ``"curves"``, a line for every member, coloured by its coordinate; or
                ``"scores"``: against the coordinate, as a map of two coordinates, or as bars by
                name. If None, curves where the output has one, else scores.
            curve: which entry of the output to draw, ``"test.loss"``; needed where it has several
                curves and none is called ``loss``.

        Returns:
            A ``matplotlib.figure.Figure``; diverged members are in it and marked.

        Raises:
            ImportError: without matplotlib.
            ValueError: if there is no such curve, or several.
        """
        from adamx.tools import drawing

        return drawing.draw(self, kind, curve)

    def __repr__(self) -> str:
        headings, rows = self._table()
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        marks = ["→" if i == self.best_index else " " for i in range(len(rows))]
        lines = [
            f"{mark} " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            for mark, row in zip([" ", *marks], [headings, *rows], strict=True)
        ]
        return "\n".join([self._title(), *(line.rstrip() for line in lines)])

    def _repr_markdown_(self) -> str:
        headings, rows = self._table()

        def line(cells: Sequence[str], mark: str = "") -> str:
            escaped = (cell.replace("|", "\\|") for cell in cells)
            return f"| {' | '.join(f'{mark}{x}{mark}' if x else '' for x in escaped)} |"

        body = [line(row, "**" if i == self.best_index else "") for i, row in enumerate(rows)]
        return "\n".join([self._title(), "", line(headings), "|--:" * len(headings) + "|", *body])

    def _repr_html_(self) -> str:
        headings, rows = self._table()

        def line(cells: Sequence[str], tag: str, style: str = "") -> str:
            inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr{style}>{inside}</tr>"

        bold = ' style="font-weight: bold"'
        body = [line(row, "td", bold if i == self.best_index else "") for i, row in enumerate(rows)]
        return (
            f"<table><caption>{html.escape(self._title())}</caption>"
            f"<thead>{line(headings, 'th')}</thead><tbody>{''.join(body)}</tbody></table>"
        )

    def _title(self) -> str:
        size = counted(len(self.optimisers), "optimiser")
        size += "" if self.seeds is None else f" × {counted(len(self.seeds), 'seed')}"
        if self.best_index is None:
            return f"{size}: all diverged"
        return f"{size}: the best is {self.best.name}, score {self.best.score:.4g}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows, as text."""
        columns: dict[str, list[str]] = {}
        if self.names != tuple(described(self.coordinates)):
            columns["name"] = list(self.names)
        columns |= {name: short(values) for name, values in self.coordinates.items()}
        write = aligned(self.scores)
        scores = [write(score) for score in self.scores.tolist()]
        if self.seeds is not None and len(self.seeds) > 1:
            lost = np.sum(~np.isfinite(self.run_scores), axis=1)
            spread = np.where(lost[:, None] > 0, 0, self.run_scores).std(axis=1, ddof=1)
            scores = [
                f"diverged ({k} of {len(self.seeds)})" if k else f"{score} ± {write(deviation)}"
                for score, deviation, k in zip(scores, spread.tolist(), lost, strict=True)
            ]
        columns["score"] = scores
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, ``"test.loss"``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def described(coordinates: Mapping[str, np.ndarray]) -> list[str]:
    """Each member by its coordinates."""
    columns = [[f"{name}={x}" for x in short(values)] for name, values in coordinates.items()]
    return [", ".join(row) for row in zip(*columns, strict=True)]


def short(values: np.ndarray) -> list[str]:
    """Numbers with as few digits as tell them apart, three at least."""
    known = np.unique(values[~np.isnan(values)]).tolist()
    digits = 3
    while digits < 17 and len({f"{x:.{digits}g}" for x in known}) < len(known):
        digits += 1
    return ["–" if math.isnan(x) else f"{x:.{digits}g}" for x in values.tolist()]


def aligned(scores: np.ndarray) -> Callable[[float], str]:
    """Writes all of them alike: with a common count of decimals, or with exponents."""
    sizes = np.abs(scores[np.isfinite(scores) & (scores != 0)])
    low, high = (math.floor(math.log10(x)) for x in (min(sizes, default=1), max(sizes, default=1)))
    form = f".{max(0, 3 - low)}f" if low >= -3 and high < 5 else ".3e"
    return lambda score: f"{score:{form}}" if math.isfinite(score) else "diverged"


def counted(n: int, what: str) -> str:
    """``3 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"
