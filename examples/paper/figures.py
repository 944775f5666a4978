"""The style of the experiments' figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from examples.paper.lab import Outcome

__all__ = ["COLOURS", "costs", "logarithmic", "new", "tidy", "training_costs"]

# A method has the same colour in every figure.
COLOURS = {
    "AdaGrad": "#1b9e77",
    "RMSProp": "#d95f02",
    "SGDNesterov": "#7570b3",
    "AdaDelta": "#a6761d",
    "SFO": "#666666",
    "AdaMax": "#66a61e",
    "Adam": "#e7298a",
    "AMSGrad": "#e6ab02",
    "SGD": "#1f78b4",
    "Momentum": "#3fb6c8",
}


def new(width: float = 6.0, height: float = 4.2, **subplots: Any) -> tuple[Figure, Any]:
    """A figure and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def tidy(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Labels, a light grid, no box."""
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axes: Axes) -> None:
    """A logarithmic scale of y, whose ticks have plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def training_costs(outcome: Outcome, *, y: str = "training cost", log: bool = True) -> Figure:
    """Plot the cost of every epoch, one line per method."""
    figure, axes = new()
    costs(axes, outcome.curves, title=outcome.title, y=y, log=log)
    return figure


def costs(
    axes: Axes,
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    y: str = "training cost",
    log: bool = True,
) -> None:
    """Plot the costs into some axes; a linear scale cuts off the much higher first epoch."""
    for name, curve in curves.items():
        epochs = np.arange(1, len(curve) + 1)
        axes.plot(epochs, curve, label=name, color=COLOURS.get(name.split(" ")[0]))
    if log:
        logarithmic(axes)
    else:
        later = np.concatenate([np.asarray(curve, float)[1:] for curve in curves.values()])
        margin = 0.05 * np.ptp(later)
        axes.set_ylim(later.min() - margin, later.max() + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, x="epochs (passes over the training set)", y=y, title=title)
    axes.legend(frameon=False)
