"""Schedules of learning rates and momentum, as values that are compared, saved and drawn.

A schedule is a function from the count of past updates, 0 at the first one, to a value; it stands
in place of any hyperparameter of any stage or recipe, and of Optax. What Optax has (cosine,
exponential and piecewise schedules), adamx does not repeat: those of Optax work as well.
"""

from __future__ import annotations

from adamx.schedules.joined import join
from adamx.schedules.momentum import momentum_warmup
from adamx.schedules.phases import constant, inverse_sqrt, power_law, warmup_stable_decay
from adamx.schedules.value import ScheduleValue

__all__ = [
    "ScheduleValue",
    "constant",
    "inverse_sqrt",
    "join",
    "momentum_warmup",
    "power_law",
    "warmup_stable_decay",
]
