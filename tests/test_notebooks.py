"""Every notebook runs from top to bottom, without network, in its small setting."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from flax import nnx

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(
    (pathlib.Path(__file__).parent.parent / "examples" / "notebooks").glob("*.ipynb"),
    key=lambda path: path.name,
)
SMALL = {"ADAMX_SMALL": "1", "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code_of(path):
    """What a notebook runs, without the commands to its shell."""
    sources = ("".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "code")
    lines = "\n\n".join(sources).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom(path, tmp_path):
    if path.stem == "nnx" and not hasattr(nnx, "data"):
        pytest.skip("an older Flax, whose nnx.Optimizer has another interface")
    environment = {**os.environ, **SMALL, "PYTHONPATH": str(path.parent.parent.parent)}
    ran = subprocess.run(
        [sys.executable, "-c", code_of(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout, "it shows nothing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = cells_of(path)
    assert "".join(cells[0]["source"]).startswith("# ")
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_site_lists_a_notebook_and_does_not_install_its_packages(path):
    install, *others = (
        cell for cell in cells_of(path) if "".join(cell["source"]).startswith("%pip")
    )
    assert install["metadata"]["tags"] == ["skip-execution"] and not others
    docs = path.parent.parent.parent / "docs"
    assert f"(../examples/notebooks/{path.name})" in (docs / "notebooks.md").read_text("utf-8")
    assert f"<notebooks/{path.stem}>" in (docs / "index.md").read_text("utf-8")
