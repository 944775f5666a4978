"""The family at a glance: which recipe is made of which stages, read off the chains.

``python -m adamx.family`` prints the recipes and the stages, ``--markdown`` the page
``docs/family.md``, and ``--index`` the page ``docs/api/names.md`` with all public names. Nothing is
listed by hand: the recipes are those that ``adamx.recipes`` exports, each is called with its
defaults, and its chain is looked at.
"""

from __future__ import annotations

import argparse
import inspect
import operator
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

import adamx
from adamx.arguments.hyper import show

__all__ = ["Member", "index", "markdown", "members", "plain", "stages"]

INTRODUCTION = """\
# The family

Made by `python -m adamx.family --markdown`; a test compares this page with what the command
prints. Every recipe is called with its defaults (and a learning rate where it has none)."""

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
    """The chains, the stages and the defaults, for a terminal."""
    vocabulary = stages(family)
    widest = max(map(len, [*vocabulary, *(member.name for member in family)]))

    def rows(pairs: Iterable[tuple[str, str]]) -> list[str]:
        indent = " " * (widest + 2)
        return [
            textwrap.fill(text, 100, initial_indent=f"{name:<{widest}}  ", subsequent_indent=indent)
            for name, text in pairs
        ]

    parts = [
        rows((member.name, " · ".join(member.chain)) for member in family),
        rows((stage, stage_summary(stage)) for stage in vocabulary),
        [f"{member.name}({arguments(member)})" for member in family],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def markdown(family: list[Member]) -> str:
    """The page ``docs/family.md``."""
    chains = table(
        ["recipe", "what it is", "chain"],
        [[f"`{member.name}`", member.summary, listed(member.chain)] for member in family],
    )
    vocabulary = table(
        ["stage", "what it does", "recipes"],
        [
            [f"`{stage}`", stage_summary(stage), listed(users(stage, family))]
            for stage in stages(family)
        ],
    )
    defaults = table(
        ["recipe", "arguments"],
        [[f"`{member.name}`", f"`{arguments(member)}`"] for member in family],
    )
    parts = [INTRODUCTION, "## Chains", chains, "## Stages", vocabulary, "## Defaults", defaults]
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


def users(stage: str, family: list[Member]) -> list[str]:
    """The recipes in whose chains a stage stands."""
    return [member.name for member in family if stage in member.chain]


def listed(names: Iterable[str]) -> str:
    """Names as code, with dots between them."""
    return " · ".join(f"`{name}`" for name in names)


def arguments(member: Member) -> str:
    """The recipe's arguments, with their defaults."""
    return ", ".join(
        name if value is inspect.Parameter.empty else f"{name}={written(value)}"
        for name, value in member.arguments.items()
    )


def written(value: Any) -> str:
    """A default; a function by its name."""
    return value.__name__ if inspect.isfunction(value) else show(value)


def summary(documented: Any) -> str:
    """The first line of its docstring, with its roles and double backticks as Markdown has them."""
    line = (inspect.getdoc(documented) or "").partition("\n")[0]
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", line).replace("``", "`")


def stage_summary(name: str) -> str:
    """What a stage says of itself, if it is one of ours."""
    known = getattr(adamx, name, None)
    return summary(known) if callable(known) else "a transformation of Optax"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    line = ["---"] * len(head)
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
