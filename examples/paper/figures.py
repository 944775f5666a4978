"""How the experiments' figures look."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.lab import Outcome

__all__ = ["COLOURS", "new", "tidy", "training_costs"]

# A method has the same colour in every figure.
COLOURS = {
    "AdaGrad": "#1b9e77",
    "RMSProp": "#d95f02",
    "SGDNesterov": "#7570b3",
    "AdaDelta": "#a6761d",
    "SFO": "#666666",
    "AdaMax": "#66a61e",
    "Adam": "#e7298a",
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


def training_costs(outcome: Outcome, *, y: str = "training cost", log: bool = True) -> Figure:
    """The cost of every epoch, a line for each method."""
    figure, axes = new()
    for name, curve in outcome.curves.items():
        epochs = np.arange(1, len(curve) + 1)
        axes.plot(epochs, curve, label=name, color=COLOURS.get(name.split(" ")[0]))
    if log:
        axes.set_yscale("log")
    tidy(axes, x="epochs (passes over the training set)", y=y, title=outcome.title)
    axes.legend(frameon=False)
    return figure
