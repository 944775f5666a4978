"""In which order the stages of a chain may stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adamx.core.link import Link
from adamx.core.stage import Stage
from adamx.errors import StageError

__all__ = ["check_order"]

Place = Literal["anywhere", "direction", "rate", "step", "rounding"]
"""Where a stage may stand, see :func:`adamx.stage`."""


def check_order(links: Sequence[Link]) -> None:
    """Refuse a chain in which a stage does not stand where it says that it has to stand.

    Only stages for the same parameters count: those of two groups may stand in any order.

    Raises:
        StageError: with the right order.
    """
    stages = [link for link in links if isinstance(link, Stage)]
    rates = [i for i, x in enumerate(stages) if x.definition.place == "rate"]
    for i in rates:
        if first := _met(stages, stages[i], [k for k in rates if k < i]):
            raise _error(
                stages[i],
                f"{first.name} stands in front of it and has made a step of the update, which a "
                "second learning rate would scale again and turn uphill. Keep one of the two; "
                "scale(factor) multiplies a step",
            )
    for i, stage in enumerate(stages):
        place = stage.definition.place
        if place == "direction" and (rate := _met(stages, stage, [k for k in rates if k < i])):
            raise _error(
                stage,
                f"it changes a direction, and {rate.name} in front of it has made a step of it, "
                f"which has the opposite sign. Put it in front: {_row(stage, rate)}",
            )
        if place not in ("step", "rounding"):
            continue
        if rate := _met(stages, stage, [k for k in rates if k > i]):
            raise _error(
                stage,
                f"it needs the step that will be taken, and {rate.name} changes the update behind "
                f"it. Put it behind: {_row(rate, stage)}",
            )
        behind = range(i + 1, len(stages)) if place == "rounding" else ()
        changing = [k for k in behind if not stages[k].definition.keeps_rounding]
        if changer := _met(stages, stage, changing):
            raise _error(
                stage,
                f"it rounds the step that will be taken, and {changer.name} changes the update "
                f"behind it. Put it behind: {_row(changer, stage)}",
            )


def _met(stages: Sequence[Stage], stage: Stage, places: Sequence[int]) -> Stage | None:
    """The first of the stages at these places that is for the same parameters as this one.

    They are the same if all parameters of one of the two are parameters of the other one.
    """
    for k in places:
        short, long = sorted((stages[k].where, stage.where), key=len)
        if long[: len(short)] == short:
            return stages[k]
    return None


def _row(first: Stage, second: Stage) -> str:
    return f"chain(…, {first.name}(…), {second.name}(…))"


def _error(stage: Stage, message: str) -> StageError:
    return StageError(message).within(stage=stage.name)
