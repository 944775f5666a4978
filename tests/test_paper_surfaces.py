"""The experiment on surfaces: its surfaces, its paths, the rates chosen, its pictures."""

import json

import jax
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402

import adamx  # noqa: E402
from examples.paper import surfaces  # noqa: E402
from examples.paper.lab import Lab, Size  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", surfaces.SURFACES)
def test_marked_minima_are_minima_and_the_lowest_has_the_least_height(name):
    surface = surfaces.SURFACES[name]
    for point in surface.minima:
        slope = np.array(jax.grad(surface.height, (0, 1))(*map(float, point)))
        curvature = np.array(jax.hessian(surface.height, (0, 1))(*map(float, point)))
        assert np.abs(slope).max() < 1e-5 and np.linalg.eigvalsh(curvature).min() > 0
    left, right, bottom, top = surface.window
    x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(bottom, top, 300))
    assert min(surface.height(*p) for p in surface.minima) == pytest.approx(surface.lowest)
    assert surface.height(x, y).min() >= surface.lowest - 1e-6
    assert left < surface.start[0] < right and bottom < surface.start[1] < top


def test_paths_of_descent_are_those_of_the_gradients_by_hand(monkeypatch):
    monkeypatch.setattr(surfaces, "STEPS", 20)
    monkeypatch.setattr(surfaces, "RATES", np.array([0.01, 0.02]))
    points, heights = surfaces.paths(adamx.sgd)
    assert points.shape == (2, 21, 4, 2) and heights.shape == (2, 21, 4)
    gradients = {
        "a saddle": lambda x, y: (2 * x, y**3 - y),
        "a local minimum": lambda x, y: (4 * x**3 - 4 * x + 0.3, y),
        "a long valley (Rosenbrock)": lambda x, y: (
            -2 * (1 - x) - 40 * x * (y - x**2),
            20 * (y - x**2),
        ),
    }
    for name, gradient in gradients.items():
        theta = np.array(surfaces.SURFACES[name].start)
        for _ in range(20):
            theta = theta - 0.02 * np.array(gradient(*theta))
        index = list(surfaces.SURFACES).index(name)
        np.testing.assert_allclose(points[1, -1, index], theta, rtol=1e-4)
        height = surfaces.SURFACES[name].height(*theta)
        assert heights[1, -1, index] == pytest.approx(height, rel=1e-4)


def test_the_chosen_rate_ends_lowest_and_stays_in_the_picture():
    surface = surfaces.Surface(lambda x, y: x + y, (0, 0), (-1, 1, -1, 1), [(0, 0)], 0.0)
    points = np.zeros((4, 3, 2))
    points[2, 1] = 1.5  # leaves, and would end lowest
    assert surfaces.chosen(points, np.array([3.0, 0.5, 0.1, 0.7]), surface) == 1
    equal = np.array([3.0, surfaces.EQUAL / 2, 0.0, surfaces.EQUAL / 4])
    assert surfaces.chosen(points, equal, surface) == 1
    points[0, 2] = np.nan
    assert surfaces.chosen(points, np.array([np.nan, np.inf, 0.0, 2.0]), surface) == 3


def test_a_run_draws_a_picture_and_a_film(monkeypatch, tmp_path):
    monkeypatch.setattr(surfaces, "STEPS", 30)
    monkeypatch.setattr(surfaces, "FRAMES", 5)
    monkeypatch.setattr(surfaces, "HOLD", 1)
    some = {name: surfaces.METHODS[name] for name in ("SGD", "Adam")}
    monkeypatch.setattr(surfaces, "METHODS", some)
    lab = Lab("surfaces", Size("quick"), tmp_path, console=Console(quiet=True))
    outcome = surfaces.run(lab)
    first = [
        surface.height(*surface.start) - surface.lowest for surface in surfaces.SURFACES.values()
    ]
    last = [row["f − min f"] for row in outcome.rows if row["method"] == "Adam"]
    assert len(outcome.rows) == 8 and np.all(np.array(last) < first)

    lab.report(outcome, surfaces.draw)
    folder = tmp_path / "surfaces"
    stored = json.loads((folder / "surfaces.json").read_text(), parse_constant=pytest.fail)
    assert np.shape(stored["curves"]["a saddle"]["Adam"]) == (31, 2)
    assert is_drawn(folder / "surfaces.png")
    with Image.open(folder / "surfaces.gif") as film:
        # The end is held: its two frames are one, shown twice as long.
        assert getattr(film, "n_frames", 1) == 4 and film.size == (720, 608)
