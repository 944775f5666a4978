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


def check_order(
    links: Sequence[Link], chosen: Sequence[Sequence[bool] | None] | None = None
) -> None:
    """Raise StageError, which shows the right order, for a stage in a place it does not allow.

    Only stages for the same parameters are compared; stages of two groups may have any order.

    Args:
        links: the links of the chain.
        chosen: for every link, the parameters it applies to (None for all); without it, the
            parameters are not known, and stages of two selections count as stages for different
            parameters.
    """
    stages = [link for link in links if isinstance(link, Stage)]
    here = [x for link, x in zip(links, chosen or (), strict=False) if isinstance(link, Stage)]

    def first_shared(i: int, places: Sequence[int]) -> Stage | None:
        """The first stage at these places that applies to the same parameters as stage i."""
        own = stages[i].where
        for k in places:
            if here:
                shares = _overlap(here[k], here[i])
            else:  # all parameters of one of the two are parameters of the other
                short, long = sorted((stages[k].where, own), key=len)
                shares = long[: len(short)] == short
            if shares:
                return stages[k]
        return None

    rates = [i for i, x in enumerate(stages) if x.definition.place == "rate"]
    for i in rates:
        if first := first_shared(i, [k for k in rates if k < i]):
            raise _error(
                stages[i],
                f"{first.name} in front of it has already turned the update into a step; a second "
                "learning rate would scale the step again and reverse its sign. Keep one of the "
                "two; scale(factor) multiplies a step",
            )
    for i, stage in enumerate(stages):
        place = stage.definition.place
        before = [k for k in rates if k < i]
        if place == "direction" and (rate := first_shared(i, before)):
            raise _error(
                stage,
                f"it changes a direction, but {rate.name} in front of it has turned the direction "
                f"into a step, which has the opposite sign. Put it in front: {_row(stage, rate)}",
            )
        if place not in ("step", "rounding"):
            continue
        if rate := first_shared(i, [k for k in rates if k > i]):
            raise _error(
                stage,
                f"it needs the final step, but {rate.name} behind it changes the update. Put it "
                f"behind: {_row(rate, stage)}",
            )
        behind = range(i + 1, len(stages)) if place == "rounding" else ()
        changing = [k for k in behind if not stages[k].definition.keeps_rounding]
        if changer := first_shared(i, changing):
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


def _overlap(a: Sequence[bool] | None, b: Sequence[bool] | None) -> bool:
    """Whether two links apply to the same parameter."""
    if a is None or b is None:
        return any(a or b or [True])
    return any(x and y for x, y in zip(a, b, strict=True))


def _row(first: Stage, second: Stage) -> str:
    return f"chain(…, {first.name}(…), {second.name}(…))"


def _error(stage: Stage, message: str) -> StageError:
    return StageError(message).within(stage=stage.name)
