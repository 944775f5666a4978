"""The arguments of a chain by name: read at a step, replaced."""

from __future__ import annotations

import collections
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from adamx.core.hyper import LARGEST_COUNT
from adamx.core.link import Link
from adamx.core.naming import Place, labels, names
from adamx.core.stage import Stage

__all__ = ["numbers", "replace"]


def numbers(opt: Any, at: Any = None) -> dict[str, Any]:
    """The numbers of an optimiser by name: "what is my learning rate now?"

    Args:
        opt: a :class:`Transformation`.
        at: a step at which schedules are read: the count of past updates, or the optimiser's
            state, which holds it. If None, schedules are given as they are.

    Returns:
        A dict from ``argument`` to a float, an array or a schedule; where several stages have one
        of that name from ``argument@group`` or ``stage.argument``.

    Raises:
        TypeError: for something that is no adamx optimiser, or neither a count nor a state.
        ValueError: for a count below 0, or above 2³¹ − 1, where the count of a state stops.
        StageError: if something that a schedule reads (a global, an attribute) has changed since
            the optimiser was made or last used: a compiled step may still use the old value.

    >>> opt = adamx.sgd(lambda t: 0.5 / (t + 1), momentum=0.9)
    >>> state = opt.init(jnp.zeros(1))
    >>> _, state = opt.update(jnp.ones(1), state)
    >>> adamx.numbers(opt, state)
    {'momentum': 0.9, 'learning_rate': Array(0.25, dtype=float32, weak_type=True)}
    """
    links = getattr(opt, "links", None)
    if links is None:
        raise TypeError(f"numbers() takes an adamx optimiser, got {opt!r}")
    found = labels(links)
    if at is not None:
        count = _count(at)
        links = [link.at(count) if isinstance(link, Stage) else link for link in opt.settled()]
    return {name: links[place.link].arguments[place.argument] for name, place in found.items()}


def _count(at: Any) -> Any:
    """A count of past updates, as one or in a state."""
    count = at.get("count") if isinstance(at, Mapping) else at
    is_number = isinstance(count, (int, float, jax.Array, np.ndarray, np.generic))
    if isinstance(count, (bool, np.bool_)) or not is_number:
        raise TypeError(f"at is a count of past updates or the optimiser's state, got {at!r}")
    is_one = isinstance(count, (int, float, np.generic))
    if is_one and not 0 <= cast(float, count) <= LARGEST_COUNT:
        raise ValueError(
            f"at is a count of past updates, from 0 to {LARGEST_COUNT}, where a state's count "
            f"stops; got {at!r}"
        )
    return count


def replace(links: Sequence[Link], changes: Mapping[str, Any]) -> tuple[Link, ...]:
    """The links with other arguments, checked as the stages' own."""
    arguments: dict[int, dict[str, Any]] = collections.defaultdict(dict)
    named: dict[Place, str] = {}
    for name, value in changes.items():
        for place in _places(links, name):
            if place in named:
                raise ValueError(f"{named[place]!r} and {name!r} name the same argument")
            named[place] = name
            arguments[place.link][place.argument] = value
    return tuple(
        link.replace(**arguments[index]) if index in arguments and isinstance(link, Stage) else link
        for index, link in enumerate(links)
    )


def _places(links: Sequence[Link], name: str) -> list[Place]:
    """The arguments of this name: exactly one, unless the name is a pattern like ``*.b1``."""
    stages = names(links)
    every = labels(links, data_only=False)
    full = {f"{stages[place.link]}.{place.argument}": place for place in every.values()}
    if any(sign in name for sign in "*?"):
        found = [place for key, place in full.items() if fnmatch.fnmatchcase(key, name)]
    elif name in (spelt := full | every):
        return [spelt[name]]
    else:
        found = [place for place in full.values() if place.argument == name]
        if len(found) > 1:
            candidates = [label for label, place in every.items() if place in found]
            raise ValueError(
                f"{name!r} is ambiguous: this chain has {', '.join(candidates)}. Name one of "
                f'them, as in replace({{"{candidates[0]}": …}}), or all: "*.{name}"'
            )
    if not found:
        raise ValueError(f"no stage of this chain has {name!r}; it has {', '.join(every)}")
    return found
