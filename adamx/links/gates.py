"""Gates: the links inside run only in steps that count for them.

A gate is a stage that decides (:attr:`~adamx.core.Rule.gate`), followed by the links inside. In a
step that does not count, the engine leaves the whole entries of these links in the state as they
are, and gives the parameters an update of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adamx.errors import StageError
from adamx.links.link import Around, Entered, Link
from adamx.links.naming import names
from adamx.links.rule import SKIPPED

__all__ = ["ENTER", "INSIDE", "counts", "gates_of", "is_gate"]


class Gated(Entered, axis="gate"):
    """The stage of a gate, or a link inside of it."""

    required = ("gate",)
    reach = "element"

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        parts = {around.value: links for around, links in inside}
        name, _, arguments = parts["enter"].partition("(")
        given = [parts.get("inside", "chain()"), *filter(None, [arguments.removesuffix(")")])]
        return f"{name}({', '.join(given)})"

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        return {"gate": self.value}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Gated:
        if row["gate"] not in ("enter", "inside"):
            raise ValueError(f"gate: must be 'enter' or 'inside', got {row['gate']!r}")
        return cls(row["gate"])


ENTER, INSIDE = Gated("enter"), Gated("inside")


def gates_of(links: Sequence[Link]) -> list[tuple[int, ...]]:
    """For every link, the places of the gates that it is inside of, the outermost first.

    Raises:
        StageError: for a link that is inside of a gate which does not stand in front of it.
    """
    latest: dict[tuple[Around, ...], int] = {}
    found = []
    for place, link in enumerate(links):
        open_here = ((x, y) for x, y in latest.items() if _is_within(link.around, x))
        latest, outer = dict(open_here), []
        for i, around in enumerate(link.around):
            if not isinstance(around, Gated):
                continue
            front = link.around[:i]
            if around == ENTER:
                latest[front] = place
            elif front in latest:
                outer.append(latest[front])
            else:
                raise StageError(
                    "it is inside of a gate, but the stage of the gate does not stand in front of "
                    "it; keep the links of a gate together"
                ).within(stage=link.name)
        found.append(tuple(outer))
    return found


def _is_within(around: tuple[Around, ...], front: tuple[Around, ...]) -> bool:
    """Whether these wrappers are those of a link of a gate that has the wrappers ``front``."""
    own = around[len(front) :]
    return around[: len(front)] == front and bool(own) and isinstance(own[0], Gated)


def is_gate(link: Link) -> bool:
    """Whether it is the stage of a gate."""
    marks = [x for x in link.around if isinstance(x, Gated)]
    return bool(marks) and marks[-1] == ENTER


def counts(links: Sequence[Link], state: Mapping[str, Any]) -> list[Any]:
    """For every link, the past steps that counted for it, at which its schedules are read.

    Args:
        links: the links of a chain.
        state: its state.
    """
    called, count = names(links), state["count"]
    enclosing = gates_of(links)
    made: dict[tuple[int, ...], Any] = {(): count}
    found = []
    for place, (link, gates) in enumerate(zip(links, enclosing, strict=True)):
        # The schedules of a gate's own arguments count its steps, too.
        own = (*gates, place) if is_gate(link) else gates
        if own not in made:
            try:
                made[own] = count - sum(state[called[gate]][SKIPPED] for gate in own)
            except (KeyError, TypeError):  # the state of another chain; an error at its stage
                made[own] = count
        found.append(made[own])
    return found
