"""A figure that every notebook shows. As it imports matplotlib, it is imported where one draws."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(Figure):
    """A figure that is shown without matplotlib's inline mode, too, and sharply."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png")
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        return drawn.getvalue(), {"width": width, "height": height}
