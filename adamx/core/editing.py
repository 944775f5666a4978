"""Read and replace the arguments of a chain by name."""

from __future__ import annotations

import collections
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from adamx.arguments.spellings import spelled_here
from adamx.links.link import Link
from adamx.links.naming import Place, labels, names, places

__all__ = ["replace"]


def replace(links: Sequence[Link], changes: Mapping[str, Any]) -> tuple[Link, ...]:
    """The links with other values of some arguments, which are checked."""
    arguments: dict[int, dict[str, Any]] = collections.defaultdict(dict)
    named: dict[Place, str] = {}
    for name, value in changes.items():
        for place in _places(links, name):
            if place in named:
                raise ValueError(f"{named[place]!r} and {name!r} name the same argument")
            named[place] = name
            arguments[place.link][place.argument] = value
    return tuple(
        link.replace(**arguments[index]) if index in arguments else link
        for index, link in enumerate(links)
    )


def _places(links: Sequence[Link], name: str) -> list[Place]:
    """The places of this name: exactly one, unless the name is a pattern like ``*.b1``."""
    stages = names(links)
    every = labels(links, data_only=False)
    full = {f"{stages[place.link]}.{place.argument}": place for place in places(links)}
    if any(sign in name for sign in "*?"):
        # A shared hyperparameter follows the stage that it belongs to, and is no match of its own.
        own = [*every.values()]
        found = [
            place for key, place in full.items() if place in own and fnmatch.fnmatchcase(key, name)
        ]
    elif name in (spelt := full | every):
        return [spelt[name]]
    else:
        found = [place for place in every.values() if place.argument == name]
        if len(found) > 1:
            candidates = [label for label, place in every.items() if place in found]
            raise ValueError(
                f"{name!r} is ambiguous: this chain has {', '.join(candidates)}. Name one of "
                f'them, as in replace({{"{candidates[0]}": …}}), or all: "*.{name}"'
            )
    if not found:
        raise ValueError(_unknown(name, links))
    return found


def _unknown(name: str, links: Sequence[Link]) -> str:
    """Why a name names no argument of the chain, and what to write in its place."""
    every = labels(links, data_only=False)
    stages = names(links)
    arguments = [(stages[place.link], place.argument) for place in places(links)]
    for stage, argument in arguments:
        if name == argument:
            return (
                f"{name!r} of {stage} is shared with another stage, whose argument sets it; to "
                f'give it a value of its own, write replace({{"{stage}.{name}": …}})'
            )
        if name == stage:
            return f'{name!r} is a stage; name one of its arguments, as in "{stage}.{argument}"'
    here = spelled_here(name, None, [argument for _, argument in arguments])
    hint = f" ({here})" if here else ""
    return f"no stage of this chain has {name!r}{hint}; it has {', '.join(every)}"
