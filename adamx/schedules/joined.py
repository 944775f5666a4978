"""Schedules one after the other."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adamx.arguments.hyper import Hyper
from adamx.errors import as_given, described
from adamx.schedules.phases import constant
from adamx.schedules.value import Moment, ScheduleValue, length, of_function

__all__ = ["join"]


def join(schedules: Sequence[Hyper], boundaries: Sequence[int]) -> ScheduleValue:
    r"""Schedules one after the other; each counts from its boundary.

    .. math::
        s(n) = s_i(n - b_i), \qquad b_i \le n < b_{i+1}, \qquad b_0 = 0

    of the count n of past updates. Optax's ``join_schedules`` computes the same. What this function
    returns is a value: it is equal to another of equal schedules, it is printed, and a config
    contains it.

    Args:
        schedules: schedules of this package or of Optax, other functions of a count, or numbers.
            Other functions are compared by what they compute; to write them to a config, give them
            a name (:func:`adamx.to_config`).
        boundaries: the counts at which the second schedule starts, the third, and so on.

    Source: equals optax.join_schedules.

    Raises:
        TypeError: if a schedule is neither a function nor a number, or a boundary no whole number.
        ValueError: if there is no schedule, if the boundaries do not increase, or if there is not
            one boundary fewer than schedules.

    >>> from adamx.schedules import join, momentum_warmup, warmup_stable_decay
    >>> rate = join([0.1, warmup_stable_decay(1.0, 10, 2, 4, shape="linear")], [3])
    >>> [rate(count) for count in (0, 2, 3, 4, 12)]
    [0.1, 0.1, 0.5, 1.0, 0.25]
    >>> join([momentum_warmup(0.85, 0.95, 300), momentum_warmup(0.95, 0.85, 50)], [950])(1000)
    0.85
    """
    if callable(schedules) or not isinstance(schedules, Sequence) or isinstance(schedules, str):
        raise TypeError(f"join: schedules must be a list of schedules, got {described(schedules)}")
    if not isinstance(boundaries, Sequence) or isinstance(boundaries, str):
        raise TypeError(f"join: boundaries must be a list of counts, got {described(boundaries)}")
    if len(schedules) != len(boundaries) + 1:
        raise ValueError(
            f"join: {len(schedules)} schedules and {len(boundaries)} boundaries do not fit; every "
            "schedule but the first has a boundary, the count at which it starts"
        )
    starts = tuple(length("join", "a boundary", x, least=1) for x in boundaries)
    if list(starts) != sorted({*starts}):
        raise ValueError(f"join: boundaries must increase, got {as_given(list(boundaries))}")
    parts = tuple(map(_part, schedules))
    return ScheduleValue(join, _joined, {"schedules": parts, "boundaries": starts})


def _part(given: Any) -> Callable[[Any], Any]:
    if callable(given) and not isinstance(given, type):
        return of_function(given)
    try:
        return constant(given)
    except TypeError:
        raise TypeError(
            "join: schedules must be functions of a count or numbers, and one of them is "
            f"{as_given(given)}"
        ) from None


def _joined(moment: Moment, *, schedules: Any, boundaries: tuple[int, ...]) -> Any:
    xp, count = moment.xp, moment.count
    starts = (0, *boundaries)
    if xp is np and count.ndim == 0:
        here = bisect.bisect(boundaries, count.item())
        return schedules[here](count.item() - starts[here])
    value = None
    for part, start, end in itertools.zip_longest(schedules, starts, boundaries):
        # Out of its range, a schedule may have no value (NaN), which would be in derivatives.
        own = xp.clip(count - start, 0, None if end is None else end - start - 1)
        own = moment.real(part(own))
        value = own if value is None else xp.where(count < start, value, own)
    return value
