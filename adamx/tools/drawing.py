"""Plots of a sweep. They include the diverged members and mark them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adamx.figures import figures
from adamx.tools.labels import named_leaves, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adamx.tools.learning_rate import LearningRate
    from adamx.tools.sweep_result import Sweep

__all__ = ["draw", "learning_rate"]

BEST, LOST = "#d62728", "0.55"
MOST_NAMES, MOST_PANELS = 10, 4


def draw(sweep: Sweep, kind: str | None, curve: str) -> Figure:
    """The figure for :meth:`Sweep.plot`."""
    if kind not in (None, "curves", "scores"):
        raise ValueError(f'kind must be "curves", "scores" or None, got {kind!r}')
    found = {
        path: leaf
        for path, leaf in named_leaves(sweep.outputs).items()
        if leaf.ndim == sweep.run_scores.ndim + 1
    }
    if kind == "curves" or curve or (kind is None and ("loss" in found or len(found) == 1)):
        return curves(sweep, *_chosen(found, curve))
    return scores(sweep)


def _chosen(found: dict[str, np.ndarray], curve: str) -> tuple[str, np.ndarray]:
    """The name and the values of the curve to draw."""
    name = curve or ("loss" if "loss" in found or len(found) != 1 else next(iter(found)))
    if name not in found:
        there = ", ".join(map(repr, found)) or "none, as train returned no array with one axis"
        raise ValueError(f"there is no curve {curve!r} to plot; the curves are {there}")
    return name, found[name]


def curves(sweep: Sweep, label: str, runs: np.ndarray) -> Figure:
    """The curve of every member (mean over its seeds), with a band from minimum to maximum.

    If a second coordinate has few values, each value gets a panel.
    """
    runs = runs.astype(np.float64)
    runs = runs[:, None] if sweep.seeds is None else runs
    with np.errstate(invalid="ignore", over="ignore"):  # diverged members have ∞ and NaN
        means = runs.mean(axis=1)
    low, high = _view(means, sweep.mode)
    looks, colours = _looks(sweep)
    panels = _panels(sweep)
    figure, row = figures(len(panels), width=2.6 * len(panels) + 3.8)
    for axes, (title, members) in zip(row, panels.items(), strict=True):
        _curves(axes, sweep, means, runs, looks, members, high)
        axes.set(title=title, xlabel="step", ylim=(low, high))
        if sweep.mode == "min":
            _scale(axes, "y", np.array([low, high]))
        axes.margins(x=0.01)
        axes.label_outer()
        _legend(axes)
    row[0].set_ylabel(label or "loss")
    if colours:
        figure.colorbar(colours[1], ax=row, label=colours[0])
    return figure


def _curves(
    axes: Axes,
    sweep: Sweep,
    means: np.ndarray,
    runs: np.ndarray,
    looks: Sequence[dict[str, Any]],
    members: np.ndarray,
    high: float,
) -> None:
    """Plot the curves of these members. A cross marks where a curve diverges or leaves the plot."""
    steps = np.arange(1, means.shape[1] + 1)
    lost = members[~np.isfinite(means[members]).all(axis=1)]
    for i in members:
        strong = {"linewidth": 2.2, "zorder": 4} if i == sweep.best_index else {"linewidth": 1.1}
        axes.plot(steps, np.where(np.isfinite(means[i]), means[i], np.nan), **looks[i] | strong)
        if runs.shape[1] > 1 and len(means) <= MOST_NAMES:
            band = {"alpha": 0.15, "linewidth": 0, "color": looks[i]["color"]}
            axes.fill_between(steps, runs[i].min(axis=0), runs[i].max(axis=0), **band)
    for i in lost:
        inside = np.flatnonzero(np.isfinite(means[i]) & (means[i] <= high))
        at = inside[-1] if len(inside) else 0
        height = means[i, at] if len(inside) else high
        look = {"color": looks[i]["color"], "markersize": 7, "zorder": 5, "clip_on": False}
        axes.plot(steps[at], height, "x", **look)
    if len(lost):
        axes.plot([], [], "x", color="0.3", label=f"diverged ({len(lost)})")


def _panels(sweep: Sweep) -> dict[str, np.ndarray]:
    """The members of each panel: one panel per value of the coordinate with the fewest values."""
    everyone = np.arange(len(sweep.names))
    if not sweep.is_grid or len(sweep.coordinates) != 2:
        return {"": everyone}
    name = _by_variety(sweep)[-1]
    values = sweep.coordinates[name]
    kinds = np.unique(values)
    if len(kinds) > MOST_PANELS:
        return {"": everyone}
    return {
        f"{name}={shown}": everyone[values == kind]
        for kind, shown in zip(kinds, short(kinds), strict=True)
    }


def _by_variety(sweep: Sweep) -> list[str]:
    """The coordinates, sorted by their number of different values, largest first."""
    return sorted(sweep.coordinates, key=lambda name: -len(np.unique(sweep.coordinates[name])))


def _view(means: np.ndarray, mode: str) -> tuple[float, float]:
    """The range of the vertical axis, which ignores how far diverging curves go."""
    finite = np.where(np.isfinite(means), means, np.nan)
    calm = finite[np.isfinite(means).all(axis=1)]
    calm = calm if calm.size else np.zeros((1, 1))
    low, high = float(np.min(calm)), float(np.max(calm))
    if mode == "min":
        starts = finite[:, 0][np.isfinite(finite[:, 0])]
        high = min(high, 10 * float(np.max(starts, initial=np.min(calm.max(axis=1)))))
    if low > 0 and high / low >= 10 and mode == "min":
        return low / 1.3, high * 1.3
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _looks(sweep: Sweep) -> tuple[list[dict[str, Any]], tuple[str, Any] | None]:
    """The style of every member's line, and the name and colour map of the coordinate it shows."""
    size, best = len(sweep.names), sweep.best_index
    if size <= MOST_NAMES and (not sweep.is_grid or size < 3):
        names = [f"{name} (best)" if i == best else name for i, name in enumerate(sweep.names)]
        return [{"color": f"C{i}", "label": name} for i, name in enumerate(names)], None
    looks: list[dict[str, Any]] = [{"color": "0.75"}] * size
    colours = None
    if sweep.is_grid:
        from matplotlib import cm

        name, values = _axis(sweep, _by_variety(sweep)[0])
        colours = name, cm.ScalarMappable(_norm(values), "viridis")
        looks = [{"color": colours[1].to_rgba(x)} for x in values]
    if best is not None:
        looks[best] = {"color": BEST, "label": f"best: {sweep.names[best]}"}
    return looks, colours


def scores(sweep: Sweep) -> Figure:
    """The scores against one coordinate, over two coordinates, or by name."""
    names = list(sweep.coordinates)
    if not sweep.is_grid or len(names) not in (1, 2):
        return bars(sweep)
    return against(sweep, *names) if len(names) == 1 else over(sweep, *_by_variety(sweep))


def against(sweep: Sweep, name: str) -> Figure:
    """The score against one coordinate, with a band from minimum to maximum over the seeds."""
    figure, axes = _figure()
    label, x = _axis(sweep, name)
    order = np.argsort(x, kind="stable")
    x, y = x[order], sweep.scores[order]
    fine = np.isfinite(y)
    _scale(axes, "x", x)
    if sweep.mode == "min":
        _scale(axes, "y", y[fine])
    axes.plot(x, np.where(fine, y, np.nan), "o-", color="C0", markersize=4, linewidth=1.4)
    if sweep.seeds is not None and len(sweep.seeds) > 1:
        runs = np.where(fine[:, None], sweep.run_scores[order], np.nan)
        band = {"alpha": 0.2, "linewidth": 0, "color": "C0"}
        said = f"range of {len(sweep.seeds)} seeds"
        axes.fill_between(x, runs.min(axis=1), runs.max(axis=1), label=said, **band)
    if not fine.all():
        top = axes.get_xaxis_transform()  # y = 0 is the bottom of the axes and y = 1 the top
        said = f"diverged ({(~fine).sum()})"
        axes.plot(x[~fine], 0.97 + 0 * x[~fine], "x", color=LOST, transform=top, label=said)
    if sweep.best_index is not None:
        at = int(np.flatnonzero(order == sweep.best_index)[0])
        look = {"color": BEST, "markersize": 14, "zorder": 4, "linestyle": "none"}
        axes.plot(x[at], y[at], "*", label=f"best: {sweep.best.name}", **look)
    axes.set(xlabel=label, ylabel=_score_label(sweep))
    _legend(axes)
    return figure


def over(sweep: Sweep, across: str, up: str) -> Figure:
    """The score over two coordinates: a heat map for a grid, otherwise points."""
    x, y = sweep.coordinates[across], sweep.coordinates[up]
    columns, rows = np.unique(x), np.unique(y)
    if len(x) < 0.5 * len(columns) * len(rows):
        return points(sweep, across, up)
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    figure, axes = _figure(2.4 + 0.6 * len(columns), 1.6 + 0.45 * len(rows))
    place = np.searchsorted(columns, x), np.searchsorted(rows, y)
    values = np.full((len(rows), len(columns)), np.nan)
    values[place[1], place[0]] = np.where(np.isfinite(sweep.scores), sweep.scores, np.nan)
    norm = _norm(values[np.isfinite(values)], decades=sweep.mode == "min")
    image = axes.imshow(values, cmap=_map(sweep), norm=norm, origin="lower", aspect="auto")
    for i, (column, row) in enumerate(zip(*place, strict=True)):
        corner = (column - 0.5, row - 0.5)
        if not np.isfinite(sweep.scores[i]):
            look = {"facecolor": "0.9", "edgecolor": LOST, "hatch": "////", "linewidth": 0}
            axes.add_patch(Rectangle(corner, 1, 1, **look))
        elif len(x) <= 80:
            red, green, blue, _ = colormaps[_map(sweep)](norm(sweep.scores[i]))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            text = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, f"{sweep.scores[i]:.3g}", color="w" if dark else "k", **text)
        if i == sweep.best_index:
            look = {"fill": False, "edgecolor": BEST, "linewidth": 2.5, "zorder": 4}
            axes.add_patch(Rectangle(corner, 1, 1, label="best", **look))
    if not np.isfinite(sweep.scores).all():
        look = {"facecolor": "0.9", "edgecolor": LOST, "hatch": "////", "linewidth": 0}
        axes.add_patch(Rectangle((0, 0), 0, 0, label="diverged", **look))
    axes.set_xticks(range(len(columns)), short(columns), rotation=45 if len(columns) > 6 else 0)
    axes.set_yticks(range(len(rows)), short(rows))
    axes.set(xlabel=across, ylabel=up)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=_score_label(sweep))
    _legend(axes, above=True)
    return figure


def points(sweep: Sweep, across: str, up: str) -> Figure:
    """The score of members scattered over two coordinates."""
    figure, axes = _figure()
    (across, x), (up, y) = _axis(sweep, across), _axis(sweep, up)
    fine = np.isfinite(sweep.scores)
    _scale(axes, "x", x)
    _scale(axes, "y", y)
    norm = _norm(sweep.scores[fine], decades=sweep.mode == "min")
    look = {"c": sweep.scores[fine], "cmap": _map(sweep), "norm": norm, "edgecolors": "0.3"}
    image = axes.scatter(x[fine], y[fine], s=55, linewidths=0.5, **look)
    if not fine.all():
        axes.plot(x[~fine], y[~fine], "x", color=LOST, label=f"diverged ({(~fine).sum()})")
    if sweep.best_index is not None:
        ring = {"s": 150, "facecolors": "none", "edgecolors": BEST, "linewidths": 2}
        axes.scatter(
            x[sweep.best_index], y[sweep.best_index], label=f"best: {sweep.best.name}", **ring
        )
    axes.set(xlabel=across, ylabel=up)
    figure.colorbar(image, ax=axes, label=_score_label(sweep))
    _legend(axes, above=True)
    return figure


def bars(sweep: Sweep) -> Figure:
    """The scores by name, in the order of the members, with their range over the seeds."""
    size = len(sweep.names)
    figure, axes = _figure(6.4, 1.2 + 0.28 * size)
    fine = np.isfinite(sweep.scores)
    if sweep.mode == "min":
        _scale(axes, "x", sweep.scores[fine])
    heights = np.arange(size)
    colours = [BEST if i == sweep.best_index else "C0" for i in range(size)]
    axes.barh(heights, np.where(fine, sweep.scores, np.nan), color=colours, height=0.7)
    if sweep.seeds is not None and len(sweep.seeds) > 1:
        runs = sweep.run_scores[fine]
        axes.hlines(heights[fine], runs.min(axis=1), runs.max(axis=1), color="0.2", linewidth=1.5)
    beside = axes.get_yaxis_transform()  # x = 0 is the left of the axes and x = 1 the right
    for i in np.flatnonzero(~fine).tolist():
        look = {"va": "center", "color": LOST, "transform": beside, "fontstyle": "italic"}
        axes.text(0.01, i, "diverged", **look)
    axes.set_yticks(heights, sweep.names)
    axes.set_ylim(size - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=_score_label(sweep))
    return figure


def learning_rate(found: LearningRate) -> Figure:
    """The final loss against the learning rate, and the loss at the start."""
    figure = against(found.sweep, "learning_rate")
    (axes,) = figure.axes
    axes.axhline(found.start_loss, color="0.3", linestyle="--", linewidth=1, label="at the start")
    final = found.sweep.scores[np.isfinite(found.sweep.scores)]
    low, high = min(*final, found.start_loss), 10 * found.start_loss
    if axes.get_yscale() == "log" and final.max() > high:
        axes.set_ylim(low / 1.5, high)
    axes.set(xlabel="learning rate", ylabel="final loss")
    _legend(axes)
    return figure


# Helpers of all plots.


def _figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    figure, (axes,) = figures(1, width, height)
    return figure, axes


def _axis(sweep: Sweep, name: str) -> tuple[str, np.ndarray]:
    """The label and values of a coordinate; a decay rate near 1 is plotted as 1 − rate."""
    values = sweep.coordinates[name]
    is_rate = name.split("@")[0].endswith("learning_rate")
    near_one = not is_rate and not spans_decades(values) and spans_decades(1 - values)
    return (f"1 − {name}", 1 - values) if near_one else (name, values)


def _legend(axes: Axes, *, above: bool = False) -> None:
    if axes.get_legend_handles_labels()[1]:
        where: dict[str, Any] = {"fontsize": 8, "frameon": not above}
        where |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2} if above else {}
        axes.legend(**where)


def spans_decades(values: Sequence[float] | np.ndarray) -> bool:
    """Whether to use a logarithmic scale: all values are positive and span a factor of ten."""
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) >= 10


def _scale(axes: Axes, which: str, values: np.ndarray) -> None:
    if not spans_decades(values):
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    span = max(values) / min(values)
    if span < 1e4:  # for few decades, label the axis with plain numbers
        axis = getattr(axes, f"{which}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 100 else (1,)))
        axis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _norm(values: np.ndarray, *, decades: bool = True) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    if not len(values):
        return Normalize(0, 1)
    kind = LogNorm if decades and spans_decades(values) else Normalize
    return kind(float(values.min()), float(values.max()))


def _map(sweep: Sweep) -> str:
    """The colour map in which good scores are bright."""
    return "viridis_r" if sweep.mode == "min" else "viridis"


def _score_label(sweep: Sweep) -> str:
    return f"score ({'lower' if sweep.mode == 'min' else 'higher'} is better)"
