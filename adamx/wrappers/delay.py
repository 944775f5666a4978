"""Let a chain start after some steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx.core import Clock, Rule, Signal, StageError, Step, Transformation
from adamx.core.transformation import links_of
from adamx.errors import as_given
from adamx.links.gates import is_gate
from adamx.links.link import Around
from adamx.links.slots import Slots

__all__ = ["delay_start"]

_NAME = "steps_before"


def delay_start(opt: optax.GradientTransformation, steps: int = 1) -> Transformation:
    """Let a chain start after some steps, in which its parameters do not change.

    In these steps its slots and clocks stay as they are: a bias correction counts the steps after
    them. Only a stage that finds a basis runs, from the first step on: SOAP computes its first
    eigenvectors from a gradient that it does not use otherwise. Schedules count all steps.

    Args:
        opt: a chain or a recipe.
        steps: the number of steps before the start.

    Raises:
        TypeError: if ``opt`` is not a transformation.
        ValueError: for a number of steps that is no whole number ≥ 1.
        StageError: for a gate inside, such as :func:`accumulate`; from ``init``, for an Optax
            transformation inside.

    >>> opt = adamx.delay_start(adamx.sgd(0.1))
    >>> state = opt.init(jnp.zeros(1))
    >>> for _ in range(2):
    ...     u, state = opt.update(jnp.ones(1), state)
    ...     print(u)
    [0.]
    [-0.1]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"delay_start(): steps must be a whole number ≥ 1, got {as_given(steps)}")
    links = links_of(opt, "delay_start")
    if gate := next(filter(is_gate, links), None):
        raise StageError(
            "delay_start() can't delay a gate, as the links inside count their own steps; put it "
            f"inside: {gate.name}(delay_start(opt))"
        ).within(stage=gate.name)
    return Transformation(tuple(link.within(Delayed(steps)) for link in links))


class Delayed(Around, axis="delay_start"):
    """The number of steps before the links inside start."""

    required = ("delay_start",)
    reach = "element"

    value: int

    def surround(self, rule: Rule) -> Rule:
        if rule.prepares:
            return rule
        name = _NAME
        while name in rule.clocks:
            name += "_"
        delay = Clock(
            lambda: jnp.zeros((), jnp.int32),
            lambda count: jnp.minimum(count, self.value) + 1,
            lambda count: count > self.value,
        )
        return dataclasses.replace(
            rule,
            update=_Waiting(rule, name).update,
            clocks={**rule.clocks, name: delay},
            delays=(*rule.delays, name),
        )

    def admit(self, name: str, kept: Any) -> None:
        raise StageError(
            f"delay_start() can't delay {name}, which is no stage of adamx; put it outside"
        )

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        ((_, links),) = inside
        return f"delay_start({links}{f', steps={self.value}' if self.value != 1 else ''})"

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        return {"delay_start": self.value}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Delayed:
        steps = row["delay_start"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"delay_start: must be a whole number ≥ 1, got {steps!r}")
        return cls(steps)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A rule of which slots and update change only after a delay."""

    rule: Rule
    delay: str

    def update(self, signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        is_open = step.clock[self.delay]
        made, after = self.rule.update(signal, slots, step)
        update = jnp.where(is_open, made.update, 0)
        still = dataclasses.replace(
            made,
            update=update,
            gradient=update if made.gradient is made.update else made.gradient,
            # A weight is NaN before the first step; the update, which is 0, has any bias.
            bias=None if made.bias is None else jnp.where(is_open, made.bias, 1),
        )
        return still, jax.tree.map(lambda x, y: jnp.where(is_open, x, y), after, slots)
