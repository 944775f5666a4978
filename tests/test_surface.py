"""What adamx exports: composed from its rooms, without duplicates, and documented."""

import collections
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adamx
import adamx.family

DOCS = Path(__file__).parents[1] / "docs"


def test_every_name_is_exported_once_and_is_there():
    uses = collections.Counter(adamx.__all__)
    assert [name for name, times in uses.items() if times > 1] == []
    assert [name for name in uses if not hasattr(adamx, name)] == []


@pytest.mark.parametrize("room", [adamx.recipes, adamx.stages], ids=lambda room: room.__name__)
def test_a_room_exports_what_its_files_export(room):
    """A new file of a room that is not composed into the room is found here."""
    spelled = {
        name
        for found in pkgutil.iter_modules(room.__path__)
        if found.name != "registry"
        for name in importlib.import_module(f"{room.__name__}.{found.name}").__all__
    }
    assert spelled == set(room.__all__) <= set(adamx.__all__)


def test_no_module_is_called_like_a_recipe_or_stage_in_it():
    """``adamx.recipes.adam`` is the recipe, whatever was imported before."""
    for room in (adamx.recipes, adamx.stages):
        for name in room.__all__:
            assert inspect.isfunction(getattr(room, name))


def test_every_stage_and_recipe_is_exported():
    """A public stage that is missing in its file's ``__all__`` is found here."""
    for room in (adamx.recipes, adamx.stages):
        for found in pkgutil.iter_modules(room.__path__):
            module = importlib.import_module(f"{room.__name__}.{found.name}")
            made = {
                name
                for name, thing in vars(module).items()
                if getattr(thing, "__module__", "") == module.__name__
                and (hasattr(thing, "definition") or name in adamx.list_recipes())
            }
            assert made <= set(module.__all__)


def test_every_name_is_documented():
    pages = "\n".join(path.read_text("utf-8") for path in (DOCS / "api").glob("*.rst"))
    described = set(re.findall(r"auto\w+:: (?:adamx\.(?:\w+\.)?)?(\w+)$", pages, re.MULTILINE))
    assert sorted(set(adamx.__all__) - described) == []
    for name in adamx.__all__:
        assert inspect.getdoc(getattr(adamx, name))


def test_a_stage_is_found_by_the_name_of_its_method():
    summaries = {name: adamx.family.summary(getattr(adamx, name)) for name in adamx.stages.__all__}
    for method, stage in {
        "ADOPT": "scale_by_delayed_rms",
        "AMSGrad": "scale_by_max_rms",
        "Adam-mini": "scale_by_block_rms",
        "Adafactor": "scale_by_factored_rms",
        "AdEMAMix": "scale_by_mixed_momentum",
        "Lion": "scale_by_two_rate_momentum",
        "NovoGrad": "scale_by_norm",
        "RAdam": "rectify",
        "Prodigy": "estimate_distance",
        "Yogi": "scale_by_yogi",
        "AdaGrad": "scale_by_rss",
        "LARS": "trust_ratio",
    }.items():
        assert method in summaries[stage]
    assert [name for name, line in summaries.items() if len(line) > 94 or line[-1] != "."] == []


def test_the_index_is_up_to_date(capsys):
    adamx.family.main(["--index"])
    assert (DOCS / "api" / "names.md").read_text("utf-8") == capsys.readouterr().out, (
        "docs/api/names.md is not what the docstrings say; make it again with\n"
        "    python -m adamx.family --index > docs/api/names.md"
    )


def test_equations_are_imported_when_they_are_asked_for():
    program = """
import sys, adamx
assert "adamx.equations" not in sys.modules
adamx.explain(adamx.sgd(0.1))
assert "adamx.equations" in sys.modules and callable(adamx.explain)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=DOCS.parent)


def test_imports_point_downward():
    """A room imports from the rooms below it; the equations from all that stages need."""
    rooms = ["numerics", "identity", "trees", "arguments", "schedules", "links", "engine"]
    rooms += ["core", "states", "stages", "wrappers", "recipes", "tools", "equations", "testing"]
    for path in (DOCS.parent / "adamx").glob("*/**/*.py"):
        room = path.relative_to(DOCS.parent / "adamx").parts[0]
        found = re.findall(r"^ *from adamx\.(\w+)", path.read_text("utf-8"), re.MULTILINE)
        above = {x for x in found if x in rooms and rooms.index(x) > rooms.index(room)}
        assert above <= {"family"}, f"{path} imports {above}"
