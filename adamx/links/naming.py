"""Names of a chain's links and their arguments, and the chain's source code."""

from __future__ import annotations

import collections
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from adamx.arguments.hyper import Same
from adamx.links.link import Around, Link
from adamx.links.stage import Stage

__all__ = ["Place", "labels", "names", "places", "written"]


def names(links: Sequence[Link]) -> list[str]:
    """The links' names in the state; the second link of a name gets the suffix ``_2``.

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
    """The place of an argument: the index of its link, and its name."""

    link: int
    argument: str


def places(links: Sequence[Link], *, data_only: bool = False) -> list[Place]:
    """The places of all arguments, or of the hyperparameters alone."""
    return [
        Place(index, argument)
        for index, link in enumerate(links)
        if isinstance(link, Stage)
        for argument in (link.definition.domains if data_only else link.arguments)
    ]


def labels(links: Sequence[Link], *, data_only: bool = True) -> dict[str, Place]:
    """The place of every argument (or every hyperparameter) by its shortest unique name.

    That is ``argument``, else ``argument@group``, else ``stage.argument``. An argument that refers
    to another stage's (:class:`Same`) has no name.
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
    """Source code for the chain, without the ``depth`` outermost wrappers of its links."""

    def outer(link: Link) -> Around | None:
        return link.around[depth] if len(link.around) > depth else None

    def call(numbered: tuple[Link, int]) -> Any:
        link, number = numbered
        around = outer(link)
        return None if around is None else (around.family, number)

    begun = itertools.accumulate(int((x := outer(y)) is not None and x.begins) for y in links)
    rows: list[str] = []
    for _, run in itertools.groupby(zip(links, begun, strict=True), call):
        members: dict[Around | None, list[Link]] = {}
        for link, _ in run:
            members.setdefault(outer(link), []).append(link)
        around = next(iter(members))
        if around is None:
            rows += map(repr, members[None])
        else:
            rows.append(around.written([(x, written(y, depth + 1)) for x, y in members.items()]))
    if len(rows) == 1:
        return rows[0]
    return f"chain(\n{_indented(rows)})" if rows else "chain()"


def _indented(rows: list[str]) -> str:
    return textwrap.indent("".join(f"{row},\n" for row in rows), "    ")
