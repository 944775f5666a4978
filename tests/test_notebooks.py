"""Every notebook runs from top to bottom, without network, in its small setting."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tomllib

import pytest
from flax import nnx

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent.resolve()
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"), key=lambda path: path.name)
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


def address():
    """Where adamx is installed from: its repository, or else the clone that a notebook is in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")
    return f"git+{repository}" if repository else "../.."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_installs_from_the_repository_and_says_why(path):
    (cell,) = (x for x in cells_of(path) if "%pip" in "".join(x["source"]))
    said, install = "".join(cell["source"]).splitlines()
    assert "on no package index yet" in said
    first, *others = shlex.split(install.removeprefix("%pip install -q "))
    assert first.partition("[")[0] == address()
    assert not any("adamx" in x for x in others)
    assert (path.parent / "../..").resolve() == ROOT
    extras = first.partition("[")[2].removesuffix("]")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not extras or extras in project["optional-dependencies"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_site_lists_a_notebook_and_does_not_install_its_packages(path):
    install, *others = (cell for cell in cells_of(path) if "%pip" in "".join(cell["source"]))
    assert install["metadata"]["tags"] == ["skip-execution"] and not others
    docs = path.parent.parent.parent / "docs"
    assert f"(../examples/notebooks/{path.name})" in (docs / "notebooks.md").read_text("utf-8")
    assert f"<notebooks/{path.stem}>" in (docs / "index.md").read_text("utf-8")
