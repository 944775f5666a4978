"""Run stages in another basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from adamx.core import Rule, Signal, Slot, StageError, Step, Transformation, chain
from adamx.core.transformation import links_of
from adamx.errors import as_given
from adamx.links.link import Entered, Link
from adamx.links.slots import Slots
from adamx.links.space import space_of
from adamx.links.stage import Stage
from adamx.stages.bases import leave_basis

__all__ = ["in_basis"]


def in_basis(
    basis: optax.GradientTransformation,
    opt: optax.GradientTransformation,
    /,
    leave: optax.GradientTransformation | None = None,
) -> Transformation:
    r"""Run stages, or a whole recipe, in another basis.

    A stage of its own, the ``basis``, finds two matrices Q_L and Q_R. The stages inside see the
    gradient G as :math:`Q_L^\top G\, Q_R`, and so the update and the parameter. Their slots have
    this shape, which is smaller in a low-rank basis. Behind them, the update U becomes
    :math:`Q_L U Q_R^\top`, and the gradient is the original one.

    In a step in which the basis changes, slots of signed values (averages of gradients) are turned
    into the new basis; slots of nonnegative values (averages of squares) are sorted as its vectors
    are. Slots of another shape than the update's do not change.

    Args:
        basis: :func:`eigenbasis`, or another stage that finds a basis.
        opt: stages or a recipe. They keep no copies of parameters.
        leave: a stage that makes the update outside from the one inside; by default
            :func:`leave_basis`.

    Raises:
        TypeError: for an argument that is no transformation.
        ValueError: if ``basis`` or ``leave`` is not one stage that enters or leaves a basis.
        StageError: for a stage inside of which the last digits of slots count, such as an average
            of parameters; it belongs behind ``in_basis(…)``.

    Source: Vyas et al. 2024 (arXiv 2409.11321), which runs Adam in an eigenbasis.

    >>> opt = adamx.in_basis(adamx.eigenbasis(0.95), adamx.lion(1e-4))
    >>> print(opt)
    in_basis(eigenbasis(b2=0.95, every=10, max_size=10000, spread=True), chain(
        scale_by_two_rate_momentum(b1=0.9, b2=0.99),
        sign(),
        add_decayed_weights(),
        scale_by_learning_rate(learning_rate=0.0001),
    ))
    """
    entering = _only(links_of(basis, "in_basis"), "basis", "such as eigenbasis()")
    if not entering.at(np.int32(0)).rule(jnp.float32).prepares:
        raise ValueError(
            f"in_basis(): {entering.name} finds no basis; the first argument is a stage such as "
            "eigenbasis(), the second one the stages that work in its basis. A basis of your own "
            "says so: Rule(…, prepares=True)"
        )
    leaving = _only(links_of(leave or leave_basis(), "in_basis"), "leave", "such as leave_basis()")
    inside = links_of(opt, "in_basis")
    for link in inside:
        if isinstance(link, Stage):
            _check(link.at(np.int32(0)).rule(jnp.float32), link.name)
    return chain(
        Transformation((entering.within(InBasis("enter")),)),
        Transformation(tuple(link.within(InBasis("inside")) for link in inside)),
        Transformation((leaving.within(InBasis("leave")),)),
    )


class InBasis(Entered, axis="in_basis"):
    """A link that enters a basis, works in it, or leaves it."""

    required = ("in_basis",)

    def surround(self, rule: Rule) -> Rule:
        """A rule inside, whose slots are turned into the basis of this step."""
        if self.value != "inside":
            return rule
        turned = _Turned(rule)
        return dataclasses.replace(
            rule,
            update=turned.update,
            reach="array",  # a slot's element is turned into all others of its row and column
            **rule.reads(lambda signal, slots: (signal, turned.slots(signal, slots))),
        )

    def admit(self, name: str, kept: Any) -> None:
        raise StageError(
            f"in_basis() can't run the Optax transformation {name} in a basis; use a stage or a "
            "recipe of adamx, or put it outside"
        )

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        parts = {around.value: links for around, links in inside}
        rows = [parts.get("enter", ""), parts.get("inside", "chain()")]
        leave = parts.get("leave", "leave_basis()")
        rows += [f"leave={leave}"] if leave != "leave_basis()" else []
        return f"in_basis({', '.join(rows)})"

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        return {"in_basis": self.value}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> InBasis:
        if row["in_basis"] not in ("enter", "inside", "leave"):
            raise ValueError(
                f"in_basis: must be 'enter', 'inside' or 'leave', got {row['in_basis']!r}"
            )
        return cls(row["in_basis"])


@dataclasses.dataclass(frozen=True)
class _Turned:
    """A rule whose slots are turned into the basis of each step before it runs."""

    rule: Rule

    def update(self, signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        return self.rule.update(signal, self.slots(signal, slots), step)

    def slots(self, signal: Signal, slots: Slots) -> Slots:
        space, shape = space_of(signal), signal.update.shape
        now = dict(slots)
        for name, kept in slots.items():
            if jnp.shape(kept) == shape:
                signed = Slot.of(self.rule.slots[name]).holds == "signed"
                now[name] = space.turned(kept) if signed else space.reordered(kept)
        return now


def _only(links: Sequence[Link], argument: str, example: str) -> Stage:
    if len(links) != 1 or not isinstance(links[0], Stage) or links[0].around:
        raise ValueError(
            f"in_basis(): {argument} must be one stage, {example}, without wrappers; got "
            f"{as_given(Transformation(tuple(links)))}"
        )
    return links[0]


def _check(rule: Rule, name: str) -> None:
    for slot, first in rule.slots.items():
        if not Slot.of(first).is_statistic:
            raise StageError(
                f"it keeps {slot!r}, of which the last digits count; a change of the basis would "
                "round them. Put it outside of in_basis(…)"
            ).within(stage=name)
