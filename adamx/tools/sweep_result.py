"""The result of a sweep: scores, the best member, tables and plots."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from adamx.core import Transformation
from adamx.numerics.types import Float, PyTree
from adamx.tools import drawing
from adamx.tools.labels import aligned, counted, described, named_leaves, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Best", "Sweep"]


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """The member of a sweep with the best score.

    Attributes:
        index: its position among the members.
        name: its name.
        optimiser: the optimiser.
        coordinates: the values of its hyperparameters on the axes of the sweep.
        score: its score, the mean over its seeds.
    """

    index: int
    name: str
    optimiser: Transformation
    coordinates: dict[str, float]
    score: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """The result of :func:`adamx.sweep`.

    Attributes:
        optimisers: the members, in the order of the argument.
        names: the names of the members: the keys of the dict, or otherwise the coordinates.
        coordinates: the axes of the sweep: by name, one value per member (NaN if the member has no
            such hyperparameter). Contains only hyperparameters that vary, named as in
            :func:`adamx.hyperparams`.
        is_grid: whether all members have the same structure and different coordinates.
        outputs: the outputs of ``train``, as NumPy arrays with the leading axes ``[member]`` or
            ``[member, seed]``.
        seeds: the seeds, or the positions of the keys, or None.
        score: the function from the output of one run to its score.
        mode: ``"min"`` if the smallest score is the best one, ``"max"`` if the largest one is.
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
                    f"score must return one number per run, but returned an array of shape "
                    f"{np.shape(value)}; score=lambda output: … receives the output of one run"
                )
            scores[run] = value
        return scores

    @functools.cached_property
    def scores(self) -> Float[np.ndarray, " member"]:
        """The score of every member (the mean over its seeds), ``[member]``."""
        if self.seeds is None:
            return self.run_scores
        with np.errstate(invalid="ignore", over="ignore"):  # a diverged member may have ∞ − ∞
            return self.run_scores.mean(axis=1)

    @property
    def best(self) -> Best:
        """The member with the best score among those with a finite score.

        Raises:
            ValueError: if no member has a finite score.
        """
        index = self.best_index
        if index is None:
            raise ValueError(
                f"none of the {len(self.optimisers)} members has a finite score: all diverged. "
                "Try smaller learning rates or clipping"
            )
        coordinates = {name: float(values[index]) for name, values in self.coordinates.items()}
        return Best(
            index, self.names[index], self.optimisers[index], coordinates, float(self.scores[index])
        )

    @property
    def best_index(self) -> int | None:
        """The position of the best member, or None if no score is finite."""
        finite = np.isfinite(self.scores)
        towards = self.scores if self.mode == "min" else -self.scores
        return int(np.argmin(np.where(finite, towards, np.inf))) if finite.any() else None

    @property
    def at_edge(self) -> dict[str, Literal["lower", "upper"]]:
        """The hyperparameters whose best value is the smallest or the largest one tried.

        The best value of such a hyperparameter may be outside of the grid. The grid is that of the
        members with the structure of the best one. Left out are hyperparameters with fewer than
        three values, of which each is at an edge, and a best value of 0, below which there is none.
        """
        best = self.best_index
        found: dict[str, Literal["lower", "upper"]] = {}
        if best is None:
            return found
        structures = [jax.tree.structure(x) for x in self.optimisers]
        alike = [self.is_grid or x == structures[best] for x in structures]
        for name, values in self.coordinates.items():
            tried = set(values[alike].tolist())
            if len(tried) > 2 and values[best] != 0:
                if values[best] == min(tried):
                    found[name] = "lower"
                elif values[best] == max(tried):
                    found[name] = "upper"
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per run, with name, coordinates, seed, score and every scalar output.

        ``pandas.DataFrame(result.rows())`` makes a table of them.
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
        """Plot the sweep.

        Args:
            kind: ``"curves"`` plots a line per member, coloured by its coordinate. ``"scores"``
                plots the scores against one coordinate, as a heat map of two coordinates, or as
                bars by name. If None, curves if the output has one, otherwise scores.
            curve: the entry of the output to plot, for example ``"test.loss"``. Needed if there
                are several curves and none is called ``loss``.

        Returns:
            A ``matplotlib.figure.Figure`` that includes the diverged members and marks them.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if there is no such curve, or if ``curve`` is needed.
        """
        return drawing.draw(self, kind, curve)

    def __repr__(self) -> str:
        headings, rows = self._table()
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        marks = ["→" if i == self.best_index else " " for i in range(len(rows))]
        lines = [
            f"{mark} " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            for mark, row in zip([" ", *marks], [headings, *rows], strict=True)
        ]
        return "\n".join([self._title(), *(line.rstrip() for line in lines), *self._advice()])

    def _repr_markdown_(self) -> str:
        headings, rows = self._table()

        def line(cells: Sequence[str], mark: str = "") -> str:
            escaped = (cell.replace("|", "\\|") for cell in cells)
            return f"| {' | '.join(f'{mark}{x}{mark}' if x else '' for x in escaped)} |"

        body = [line(row, "**" if i == self.best_index else "") for i, row in enumerate(rows)]
        advice = [part for x in self._advice() for part in ("", x)]
        table = [line(headings), "|--:" * len(headings) + "|", *body]
        return "\n".join([self._title(), "", *table, *advice])

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
            + "".join(f"<p>{html.escape(x)}</p>" for x in self._advice())
        )

    def _title(self) -> str:
        size = counted(len(self.optimisers), "optimiser")
        size += "" if self.seeds is None else f" × {counted(len(self.seeds), 'seed')}"
        if self.best_index is None:
            return f"{size}: all diverged"
        return f"{size}: the best is {self.best.name}, score {self.best.score:.4g}"

    def _advice(self) -> list[str]:
        """A sentence for each hyperparameter whose best value is at the edge of the grid."""
        said = {"lower": ("smallest", "downwards"), "upper": ("largest", "upwards")}
        return [
            f"The best {name} is the {said[end][0]} of the grid: extend the grid {said[end][1]}."
            for name, end in self.at_edge.items()
        ]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """The headings and rows of the table as text."""
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
