"""The style of all figures: Matplotlib, drawn without its windows, and shown by notebooks."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures", "png"]


def figures(columns: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, side by side."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("plotting needs matplotlib: pip install 'adamx[tools]'") from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    # A notebook shows a figure that pyplot did not make as text, unless it has _repr_png_.
    vars(figure)["_repr_png_"] = functools.partial(png, figure)
    row = figure.subplots(1, columns, squeeze=False)[0].tolist()
    for axes in row:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row


def png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """The image, and its size on the page; the image has more pixels than that, for sharpness."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return drawn.getvalue(), {"width": width, "height": height}
