"""The family at a glance: which recipe is made of which stages, read off the chains.

``python -m adamx.family`` prints the matrix of recipes and stages, ``--markdown`` the page
``docs/family.md``, and ``--index`` the page ``docs/api/names.md`` with all public names. Nothing is
listed by hand: the recipes are those that ``adamx.recipes`` exports, each is called with its
defaults, and its chain is looked at.
"""

from __future__ import annotations

import argparse
import inspect
import operator
import re
from typing import Any, NamedTuple

import adamx
from adamx.arguments.hyper import show

__all__ = ["Member", "index", "markdown", "members", "plain", "stages"]

INTRODUCTION = """\
# The family

Made by `python -m adamx.family --markdown`; a test compares this page with what the command
prints. Every recipe is called with its defaults (and a learning rate where it has none). The
columns are stages, which the second table names; a cell says at which place of the chain the stage
stands."""

INDEX = """\
# All names

All names of `adamx`, with the first lines of their docstrings. [Writing stages](core.rst) lists
those of `adamx.core`. Made by `python -m adamx.family --index`; a test compares this page with what
the command prints."""


class Member(NamedTuple):
    """A recipe and the chain it makes of its defaults."""

    name: str
    summary: str
    arguments: dict[str, Any]  # inspect.Parameter.empty where a value must be given
    chain: tuple[str, ...]  # the names of its stages, in order


def members() -> list[Member]:
    """Every recipe, by name."""
    found = []
    for name in sorted(adamx.recipes.__all__):
        recipe = adamx.get_recipe(name)
        arguments = {
            key: parameter.default
            for key, parameter in inspect.signature(recipe).parameters.items()
        }
        needed = {key: 0.1 for key, given in arguments.items() if given is inspect.Parameter.empty}
        chain = tuple(link.name for link in recipe(**needed).links)
        found.append(Member(name, summary(recipe), arguments, chain))
    return found


def stages(family: list[Member]) -> list[str]:
    """The stages that occur, those that tend to stand further in front first."""
    places: dict[str, list[float]] = {}
    for member in family:
        for place, stage in enumerate(member.chain):
            places.setdefault(stage, []).append((place + 0.5) / len(member.chain))
    return sorted(places, key=lambda stage: (sum(places[stage]) / len(places[stage]), stage))


def plain(family: list[Member]) -> str:
    """The matrix and the defaults, for a terminal."""
    columns = stages(family)
    widest = max(len(member.name) for member in family)
    numbers = [str(i) for i in range(1, len(columns) + 1)]
    rows = [" ".join([" " * widest, *(f"{number:>3}" for number in numbers)])]
    for member in family:
        cells = (f"{cell or '·':>3}" for cell in marks(member, columns))
        rows.append(" ".join([f"{member.name:<{widest}}", *cells]))
    legend = [
        f"{number:>3}  {stage}: {stage_summary(stage)}"
        for number, stage in zip(numbers, columns, strict=True)
    ]
    defaults = [f"{member.name}({arguments(member)})" for member in family]
    return "\n".join([*rows, "", *legend, "", *defaults]) + "\n"


def markdown(family: list[Member]) -> str:
    """The page ``docs/family.md``."""
    columns = stages(family)
    numbers = [str(i) for i in range(1, len(columns) + 1)]
    matrix = table(
        ["", *numbers],
        [[f"`{member.name}`", *marks(member, columns)] for member in family],
        centred=True,
    )
    vocabulary = table(
        ["", "stage", "what it does"],
        [
            [number, f"`{stage}`", stage_summary(stage)]
            for number, stage in zip(numbers, columns, strict=True)
        ],
    )
    chains = table(
        ["recipe", "what it is", "arguments", "chain"],
        [
            [
                f"`{member.name}`",
                member.summary,
                f"`{arguments(member)}`",
                " · ".join(f"`{stage}`" for stage in member.chain),
            ]
            for member in family
        ],
    )
    parts = [
        INTRODUCTION,
        "## Recipes and stages",
        matrix,
        "## Stages",
        vocabulary,
        "## Chains and defaults",
        chains,
    ]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """The page ``docs/api/names.md``: every public name and the first line of its docstring."""
    groups = {
        "Recipes": adamx.recipes.__all__,
        "Stages": adamx.stages.__all__,
        "Wrappers": adamx.wrappers.__all__,
    }
    grouped = {name for names in groups.values() for name in names}
    groups["Chains and tools"] = [name for name in adamx.__all__ if name not in grouped]
    groups["Schedules"] = [f"schedules.{name}" for name in adamx.schedules.__all__]
    parts = [INDEX]
    for title, names in groups.items():
        rows = [
            [reference(name), summary(operator.attrgetter(name)(adamx))]
            for name in sorted(names, key=str.lower)
        ]
        parts += [f"## {title}", table(["name", "what it is"], rows)]
    return "\n\n".join(parts) + "\n"


def reference(name: str) -> str:
    """A public name as a link to its documentation, which of a module is where the module is."""
    thing = operator.attrgetter(name)(adamx)
    if inspect.ismodule(thing):
        return f"{{py:mod}}`{name} <{thing.__name__}>`"
    return f"{{py:obj}}`~adamx.{name}`"


def marks(member: Member, columns: list[str]) -> list[str]:
    """For each stage the places, counted from 1, at which it stands in the chain."""
    return [
        ",".join(str(place) for place, name in enumerate(member.chain, 1) if name == column)
        for column in columns
    ]


def arguments(member: Member) -> str:
    """The recipe's arguments, with their defaults."""
    return ", ".join(
        name if value is inspect.Parameter.empty else f"{name}={show(value)}"
        for name, value in member.arguments.items()
    )


def summary(documented: Any) -> str:
    """The first line of its docstring, with its roles and double backticks as Markdown has them."""
    line = (inspect.getdoc(documented) or "").partition("\n")[0]
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", line).replace("``", "`")


def stage_summary(name: str) -> str:
    """What a stage says of itself, if it is one of ours."""
    known = getattr(adamx, name, None)
    return summary(known) if callable(known) else "a transformation of Optax"


def table(head: list[str], rows: list[list[str]], *, centred: bool = False) -> str:
    """A table in Markdown."""
    line = [":-:" if centred and i else "---" for i in range(len(head))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, line, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(given: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adamx.family", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print the page docs/family.md")
    parser.add_argument("--index", action="store_true", help="print the page docs/api/names.md")
    options = parser.parse_args(given)
    if options.index:
        print(index(), end="")
    else:
        print((markdown if options.markdown else plain)(members()), end="")


if __name__ == "__main__":
    main()
