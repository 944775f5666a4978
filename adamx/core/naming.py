"""What the links of a chain and their arguments are called."""

from __future__ import annotations

import collections
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from adamx.core.hyper import Same
from adamx.core.link import Link
from adamx.core.selection import Part
from adamx.core.stage import Stage

__all__ = ["Place", "labels", "names", "places", "written"]


def names(links: Sequence[Link]) -> list[str]:
    """The links' names in the state; the second of a kind gets the suffix ``_2``.

    A link for some of the parameters is called ``stage@group``.
    """
    uses = collections.Counter({"count": 1})
    found = []
    for link in links:
        full = "@".join([link.name, *(selector.label for selector in link.where)])
        uses[full] += 1
        found.append(full if uses[full] == 1 else f"{full}_{uses[full]}")
    return found


class Place(NamedTuple):
    """Where an argument is: in which link of the chain, and under which name."""

    link: int
    argument: str


def places(links: Sequence[Link], *, data_only: bool = False) -> list[Place]:
    """Where the arguments (or the hyperparameters alone) are."""
    return [
        Place(index, argument)
        for index, link in enumerate(links)
        if isinstance(link, Stage)
        for argument in (link.definition.domains if data_only else link.arguments)
    ]


def labels(links: Sequence[Link], *, data_only: bool = True) -> dict[str, Place]:
    """Every argument (or every hyperparameter) by its shortest name that no other has.

    That is ``argument``, else ``argument@group``, else ``stage.argument``. An argument that is the
    same as another stage's has no name of its own.
    """
    found = []
    stages = names(links)
    for place in places(links, data_only=data_only):
        link, stage = links[place.link], stages[place.link]
        assert isinstance(link, Stage)
        argument = place.argument
        if isinstance(link.arguments[argument], Same):
            continue
        group = stage[len(link.name) :] if link.where else ""
        found.append(([argument, argument + group, f"{stage}.{argument}"], place))
    uses = collections.Counter(spelling for spellings, _ in found for spelling in {*spellings})
    return {
        next(spelling for spelling in spellings if uses[spelling] == 1): place
        for spellings, place in found
    }


def written(links: Sequence[Link], depth: int = 0) -> str:
    """The code that makes the chain; the outer ``depth`` things around it are already."""

    def outer(link: Link) -> Any:
        inner = link.around[depth] if len(link.around) > depth else None
        return inner.value[0] if isinstance(inner, Part) else inner

    rows = []
    for around, run in itertools.groupby(links, outer):
        inside = list(run)
        if around is None:
            rows += map(repr, inside)
        elif isinstance(around, tuple):
            groups = {selector: [] for selector in around}
            for link in inside:
                groups[around[link.around[depth].value[1]]].append(link)
            body = "".join(
                f"{selector!r}: {written(group, depth + 1)},\n"
                for selector, group in groups.items()
            )
            rows.append(f"partition({{\n{textwrap.indent(body, '    ')}}})")
        else:
            rows.append(around.written(written(inside, depth + 1)))
    if len(rows) == 1:
        return rows[0]
    return f"chain(\n{_indented(rows)})" if rows else "chain()"


def _indented(rows: list[str]) -> str:
    return textwrap.indent("".join(f"{row},\n" for row in rows), "    ")
