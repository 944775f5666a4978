"""The optimisers of the paper on four surfaces, as a picture and as an animation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

import adamx
from examples.paper import figures
from examples.paper.lab import Lab, Outcome


class Surface(NamedTuple):
    """A function of two variables.

    Attributes:
        height: ``(x, y) -> f``, for arrays.
        start: the starting point of all methods.
        window: left, right, bottom and top of the plot.
        minima: points to mark.
        lowest: the minimum of the function.
    """

    height: Callable[[Any, Any], Any]
    start: tuple[float, float]
    window: tuple[float, float, float, float]
    minima: Sequence[tuple[float, float]]
    lowest: float


def saddle(x: Any, y: Any) -> Any:
    """A function with a saddle at 0 and two minima at y = ±1; it rises towards x = ±∞."""
    return x**2 - y**2 / 2 + y**4 / 4


def valley(x: Any, y: Any) -> Any:
    """Rosenbrock's function with 10 in place of 100, which avoids zigzags in the plot."""
    return (1 - x) ** 2 + 10 * (y - x**2) ** 2


def beale(x: Any, y: Any) -> Any:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def double_well(x: Any, y: Any) -> Any:
    """A minimum near x = −1 and a higher minimum near x = 1, where 4x³ − 4x + 0.3 = 0."""
    return (x**2 - 1) ** 2 + 0.3 * x + y**2 / 2


DEEP, _, SHALLOW = sorted(np.roots([4, 0, -4, 0.3]).real)  # where its slope is 0

SURFACES = {
    "a saddle": Surface(saddle, (1.3, 0.01), (-1.5, 1.7, -1.4, 1.7), [(0, 1), (0, -1)], -0.25),
    "a long valley (Rosenbrock)": Surface(
        valley, (-1.4, 0.6), (-1.8, 1.7, -0.8, 2.5), [(1, 1)], 0.0
    ),
    "a plateau (Beale)": Surface(beale, (0.3, 0.9), (-0.4, 4.0, -1.3, 1.5), [(3, 0.5)], 0.0),
    "a local minimum": Surface(
        double_well,
        (1.6, 0.9),
        (-1.7, 1.9, -1.1, 1.3),
        [(DEEP, 0), (SHALLOW, 0)],
        float(double_well(DEEP, 0.0)),
    ),
}
METHODS = {
    "SGD": lambda rate: adamx.sgd(rate),
    "Momentum": lambda rate: adamx.sgd(rate, momentum=0.9),
    "SGDNesterov": lambda rate: adamx.sgd(rate, momentum=0.9, nesterov=True),
    "AdaGrad": lambda rate: adamx.adagrad(rate),
    "AdaDelta": lambda rate: adamx.adadelta(rate),
    "RMSProp": lambda rate: adamx.rmsprop(rate),
    "AdaMax": lambda rate: adamx.adamax(rate),
    "Adam": lambda rate: adamx.adam(rate),
}
RATES = np.logspace(
    -5, 3, 49
)  # AdaDelta needs a large rate, because it multiplies steps that start at 0.001
STEPS = 200
EQUAL = 1e-2  # heights this close to the minimum count as equal


def heights(points: jax.Array) -> jax.Array:
    """The heights ``[surfaces]`` of one point on each surface, ``[surfaces, 2]``."""
    pairs = zip(SURFACES.values(), points, strict=True)
    return jnp.stack([surface.height(x, y) for surface, (x, y) in pairs])


def paths(recipe: Callable[[Any], adamx.Transformation]) -> tuple[Any, Any]:
    """The points ``[rates, 1 + steps, surfaces, 2]`` for all rates, and their heights.

    All surfaces run together as one vector, because these methods treat coordinates independently.
    """

    def walk(rate: Any, start: Any) -> Any:
        opt = recipe(rate)

        def step(carry: Any, _: None) -> Any:
            points, state = carry
            slopes = jax.grad(lambda p: heights(p).sum())(points)
            updates, state = opt.update(slopes, state, points)
            points = adamx.apply_updates(points, updates)
            return (points, state), points

        _, points = jax.lax.scan(step, (start, opt.init(start)), length=STEPS)
        return jnp.concatenate([start[None], points])

    start = jnp.array([surface.start for surface in SURFACES.values()])
    points = jax.jit(jax.vmap(walk, in_axes=(0, None)))(jnp.asarray(RATES, jnp.float32), start)
    return np.asarray(points), np.asarray(jax.vmap(jax.vmap(heights))(points))


def load() -> None:
    """Load no data, because the surfaces are formulas."""


def run(lab: Lab, data: None = None) -> Outcome:
    curves: dict[str, Any] = {name: {} for name in SURFACES}
    rows = []
    advance = lab.steps("surfaces", len(METHODS))
    for method, recipe in METHODS.items():
        points, height = lab.remembered(
            (method, STEPS, *RATES), lambda recipe=recipe: paths(recipe)
        )
        for i, (name, surface) in enumerate(SURFACES.items()):
            best = chosen(points[:, :, i], height[:, -1, i], surface)
            curves[name][method] = points[best, :, i].astype(float).round(4)
            row = {"surface": name, "method": method, "best learning rate": float(RATES[best])}
            row["f − min f"] = float(height[best, -1, i] - surface.lowest)
            row["best at the grid's edge"] = "yes" if best in (0, len(RATES) - 1) else "no"
            rows.append(row)
        advance()
    return Outcome(
        title=f"{STEPS} steps on four surfaces",
        setting={
            "steps": STEPS,
            "learning rates tried": f"{len(RATES)}, from {RATES[0]:g} to {RATES[-1]:g}",
            "chosen": "of the rates that never leave the picture, the one that ends lowest; the "
            f"smallest, if several come within {EQUAL:g} of the minimum",
        },
        rows=sorted(rows, key=lambda row: list(SURFACES).index(row["surface"])),
        curves=curves,
    )


def chosen(points: np.ndarray, last: np.ndarray, surface: Surface) -> int:
    """The path that ends lowest, among those inside the window; of equal ones, the slowest."""
    left, right, bottom, top = surface.window
    inside = np.all((points >= [left, bottom]) & (points <= [right, top]), axis=(1, 2))
    return int(np.argmin(np.where(inside, np.maximum(last - surface.lowest, EQUAL), np.inf)))


# The pictures

PAPER = LinearSegmentedColormap.from_list("paper", ["#fbfaf7", "#d9dee6", "#a9b4c6"])
FRAMES = 90
PACE = 70  # milliseconds per frame
HOLD = 12  # frames that show the end


def draw(outcome: Outcome) -> dict[str, Any]:
    return {"surfaces.png": picture(outcome), "surfaces.gif": Film(outcome)}


def picture(outcome: Outcome) -> Figure:
    """A figure with the complete paths."""
    figure, panels = landscape(outcome)
    for name, panel in panels.items():
        for method, path in outcome.curves[name].items():
            x, y = np.asarray(path).T
            colour = figures.COLOURS[method]
            panel.plot(x, y, color=colour, lw=1.6, alpha=0.9)
            panel.plot(x[-1], y[-1], "o", color=colour, mec="white", mew=0.8, ms=7, zorder=4)
    return figure


def landscape(outcome: Outcome) -> tuple[Figure, dict[str, Axes]]:
    """A figure of the surfaces without paths, with a legend of all methods."""
    figure, axes = figures.new(9.0, 7.6, nrows=2, ncols=2)
    panels = dict(zip(outcome.curves, axes.flat, strict=True))
    for name, panel in panels.items():
        contours(panel, SURFACES[name])
        panel.set_title(name, fontsize=11)
    drawn = [
        panels[name].plot([], [], color=figures.COLOURS[method], marker="o", label=method)[0]
        for name in list(panels)[:1]
        for method in outcome.curves[name]
    ]
    figure.legend(handles=drawn, loc="outside lower center", ncols=len(drawn) // 2, frameon=False)
    return figure, panels


def contours(panel: Axes, surface: Surface) -> None:
    """Contour levels that are denser at low heights."""
    left, right, bottom, top = surface.window
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    excess = surface.height(x, y) - surface.lowest
    levels = np.geomspace(1e-2, excess.max(), 13)
    panel.contourf(x, y, excess, [0, *levels], colors=PAPER(np.linspace(0, 1, len(levels))))
    panel.contour(x, y, excess, levels, colors="#7c8798", linewidths=0.4)
    panel.plot(*surface.start, "o", color="black", ms=4)
    for point in surface.minima:
        deepest = surface.height(*point) < surface.lowest + EQUAL
        panel.plot(*point, "*" if deepest else "x", color="black", ms=9 if deepest else 6, zorder=5)
    panel.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])


class Film:
    """An animation of the growing paths, which can be saved as a GIF."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome

    def save(self, path: Path, *, dpi: int) -> None:
        figure, panels = landscape(self.outcome)
        walkers = [
            (np.asarray(points), *walker(panels[name], figures.COLOURS[method]))
            for name, methods in self.outcome.curves.items()
            for method, points in methods.items()
        ]
        steps = len(walkers[0][0]) - 1

        def show(frame: int) -> None:
            # Slow at first, because most changes happen there.
            now = round(steps * min(frame / (FRAMES - HOLD - 1), 1.0) ** 1.5)
            for points, trail, head in walkers:
                trail.set_data(*points[: now + 1].T)
                head.set_data(*points[now : now + 1].T)

        canvas, frames = FigureCanvasAgg(figure), []
        figure.set_dpi(dpi)
        for frame in range(FRAMES):
            show(frame)
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
        first, *rest = limited(frames)
        first.save(path, save_all=True, append_images=rest, duration=PACE, loop=0)


def limited(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in the colours of the last one, undithered, so the GIF stores only changes."""
    width, height = frames[-1].size
    counted: Any = frames[-1].getcolors(width * height)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in sorted(counted)[-256:] for part in colour])
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def walker(panel: Axes, colour: str) -> tuple[Any, Any]:
    """Draw the last part of a path and its end point."""
    (trail,) = panel.plot([], [], color=colour, lw=1.5, alpha=0.8)
    (head,) = panel.plot([], [], "o", color=colour, mec="white", mew=0.8, ms=8, zorder=4)
    return trail, head
