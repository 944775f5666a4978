"""The order in which the stages of a chain may stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adamx.errors import StageError
from adamx.links.link import Link
from adamx.links.stage import Stage

__all__ = ["check_order"]

Place = Literal["anywhere", "direction", "rate", "step", "rounding"]
"""Where a stage may stand, see :func:`adamx.stage`."""


def check_order(links: Sequence[Link]) -> None:
    """Raise StageError, which shows the right order, for a stage in a place it does not allow.

    Only stages for the same parameters are compared; stages of two groups may have any order.
    """
    stages = [link for link in links if isinstance(link, Stage)]
    rates = [i for i, x in enumerate(stages) if x.definition.place == "rate"]
    for i in rates:
        if first := _first_shared(stages, stages[i], [k for k in rates if k < i]):
            raise _error(
                stages[i],
                f"{first.name} in front of it has already turned the update into a step; a second "
                "learning rate would scale the step again and reverse its sign. Keep one of the "
                "two; scale(factor) multiplies a step",
            )
    for i, stage in enumerate(stages):
        place = stage.definition.place
        before = [k for k in rates if k < i]
        if place == "direction" and (rate := _first_shared(stages, stage, before)):
            raise _error(
                stage,
                f"it changes a direction, but {rate.name} in front of it has turned the direction "
                f"into a step, which has the opposite sign. Put it in front: {_row(stage, rate)}",
            )
        if place not in ("step", "rounding"):
            continue
        if rate := _first_shared(stages, stage, [k for k in rates if k > i]):
            raise _error(
                stage,
                f"it needs the final step, but {rate.name} behind it changes the update. Put it "
                f"behind: {_row(rate, stage)}",
            )
        behind = range(i + 1, len(stages)) if place == "rounding" else ()
        changing = [k for k in behind if not stages[k].definition.keeps_rounding]
        if changer := _first_shared(stages, stage, changing):
            if changer.definition.place == "rounding":
                raise _error(
                    stage,
                    f"{changer.name} behind it rounds the final step, too; keep one of the two",
                )
            raise _error(
                stage,
                f"it rounds the final step, but {changer.name} behind it changes the update. Put "
                f"it behind: {_row(changer, stage)}",
            )


def _first_shared(stages: Sequence[Stage], stage: Stage, places: Sequence[int]) -> Stage | None:
    """The first stage at these places that applies to the same parameters as this one.

    That is so if all parameters of one of the two are parameters of the other.
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
