"""Rules: what a stage does to one array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from adamx.errors import StageError, described
from adamx.links.signal import Signal
from adamx.links.slots import Slots
from adamx.trees.arrays import kinds

__all__ = [
    "CONSECUTIVE",
    "KEY",
    "SKIPPED",
    "Clock",
    "Reach",
    "Refresh",
    "Rule",
    "Step",
    "keep",
    "widest",
]


class Clock(NamedTuple):
    """A scalar (or a small array) kept per step rather than per parameter.

    Attributes:
        start: ``() -> value`` before the first step.
        tick: ``value -> value``, called once per step, before the stage's arrays are updated.
        read: ``value -> reading``, the form in which the stage uses the value.
        settle: ``(value, total) -> value``, for a scalar that depends on this step's sum over all
            parameters; ``global_sum`` gets the reading before it, ``update`` the reading after it.
        of_parameter: ``(reading, number, stage) -> reading``, for a reading that differs between
            parameters, such as a key of random bits; from the parameter's number in the tree
            and the stage's name. None for a reading that all parameters share.
    """

    start: Callable[[], jax.Array]
    tick: Callable[[jax.Array], jax.Array]
    read: Callable[[jax.Array], Any]
    settle: Callable[[jax.Array, Any], jax.Array] | None = None
    of_parameter: Callable[[Any, Any, str], Any] | None = None


Reach = Literal["element", "row", "sums", "array"]
"""Which elements of an array an element of a rule's result depends on: the element at the same
place; its row (along the last axis); the element at the same place and sums over the array, which
the rule takes with ``norm``, ``mean``, ``total`` and ``Squares`` of :mod:`adamx.core`; or the whole
array. The reach determines how a rule may be executed, split over devices and applied to parts of
an array."""


def widest(reaches: Iterable[Reach]) -> Reach:
    """The widest of several reaches, which is the reach of their rules in sequence."""
    found = {*reaches}
    if "array" in found or found >= {"row", "sums"}:
        return "array"
    return "row" if "row" in found else "sums" if "sums" in found else "element"


class Step(NamedTuple):
    """The values of a step that are the same for every array.

    Attributes:
        clock: the readings of the rule's clocks, by name.
        total: the result of the rule's ``global_sum``, summed over all parameters (None without
            one).
        own: the numbers of this array alone, from the rule's ``own`` (None without one).
        refreshed: the results of the rule's ``refresh``, if they are known already.
        counts: whether this step counts for the stage; None outside of gates. The engine then keeps
            the slots.
    """

    clock: dict[str, Any]
    total: Any = None
    own: Any = None
    refreshed: Any = None
    counts: Any = None


@dataclasses.dataclass(frozen=True)
class Refresh:
    """A costly computation of some steps only, such as the decomposition of a matrix.

    A rule takes its results from :meth:`results`. On a mesh, arrays of one shape that are due in
    the same steps are stacked, and each device computes the results for its share of them.

    Attributes:
        due: ``step -> whether it is due``, from clocks only.
        given: ``(signal, slots, step) -> arrays``, from which it is computed: a pytree of matrices,
            all with the same leading axes.
        compute: ``(arrays, step) -> results``, in steps in which it is due: a pytree of arrays with
            these leading axes.
        otherwise: ``arrays -> results``, in all other steps.
        phase: ``number -> phase`` of a parameter's number in its tree: parameters of equal phases
            are due in the same steps, and ``compute`` uses no reading of a clock that differs
            between them. None if ``due`` does not depend on the number; with a clock that has
            ``of_parameter``, every parameter then is a phase of its own. So it is in a rule with
            ``own`` numbers.

    >>> @adamx.stage
    ... def first_directions(every: int = 10):
    ...     refresh = adamx.core.Refresh(
    ...         due=lambda step: step.clock["count"] % every == 1,
    ...         given=lambda signal, slots, step: (signal.gradient, slots["basis"]),
    ...         compute=lambda arrays, step: jnp.linalg.qr(arrays[0])[0],
    ...         otherwise=lambda arrays: arrays[1],
    ...     )
    ...
    ...     def update(signal, slots, step):
    ...         basis = refresh.results((signal.gradient, slots["basis"]), step)
    ...         return signal.with_update(basis), {"basis": basis}
    ...
    ...     count = adamx.core.Clock(lambda: jnp.zeros((), jnp.int32), lambda n: n + 1, lambda n: n)
    ...     return adamx.core.Rule(
    ...         update, slots={"basis": adamx.core.zeros}, clocks={"count": count}, refresh=refresh
    ...     )
    >>> opt = first_directions()
    >>> state = opt.init(jnp.eye(2))
    >>> for g in (jnp.diag(jnp.array([-2.0, 3.0])), jnp.ones((2, 2))):
    ...     u, state = opt.update(g, state)
    ...     print(u.round(3))
    [[ 1.  0.]
     [-0.  1.]]
    [[ 1.  0.]
     [-0.  1.]]
    """

    due: Callable[[Step], Any]
    given: Callable[[Signal, Slots, Step], Any]
    compute: Callable[[Any, Step], Any]
    otherwise: Callable[[Any], Any]
    phase: Callable[[int], int] | None = None

    def results(self, arrays: Any, step: Step) -> Any:
        """The results of this step for one array, from what it has given."""
        if step.refreshed is not None:
            return step.refreshed
        return jax.lax.cond(
            self.due(step), lambda: self.compute(arrays, step), lambda: self.otherwise(arrays)
        )


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a stage does to one array.

    Attributes:
        update: ``(signal, slots, step) -> (signal, slots)``.
        slots: the arrays kept for each parameter: by name, a function ``param -> first value`` or
            a :class:`Slot`. They may have any shape; shape and dtype do not change in a step.
        clocks: the scalars kept per step, by name. No slot has the same name.
        global_sum: ``(signal, slots, step) -> numbers`` of one array (a pytree of scalars), summed
            over all parameters before ``update`` runs. It is the only way to use other arrays.
        refresh: a costly computation of some steps, which devices of a mesh share.
        own: ``(path, shape, extra) -> numbers`` of one parameter (a pytree), from its path, the
            parameter's shape as a ``jax.ShapeDtypeStruct``, and the extra arguments of ``update``
            that the stage ``takes``. The rule gets them as ``step.own``.
        seed: for a rule that draws random bits: the seed of the clock ``key``, whose reading
            differs for every parameter and step (:func:`adamx.numerics.random.bits`).
        without_gradient: whether ``update`` also runs on a parameter that has no gradient in this
            step (None among the gradients). It then gets a gradient and an update of zero; its new
            slots are kept, but the parameter takes no step.
        reach: which elements an element of its result depends on; set by ``@stage(reach=…)``.
        reshape: ``(shape, whole) -> shape``, for a rule that changes the shape of gradient and
            update, such as a projection; ``whole`` is the parameter's shape. None if it keeps the
            shape.
        delays: clocks whose readings are True or False. In a step in which one of them reads False,
            the other clocks do not change.
        prepares: whether it runs in steps before the chain starts (:func:`adamx.delay_start`), as
            a stage that finds a basis does.
        gate: ``(clocks, step, extra) -> (counts, values)``, for the stage of a gate
            (:func:`adamx.gate`): whether this step counts for the links inside, and new values of
            the rule's clocks, from their values in this step, the step, and the extra arguments
            that the stage takes. Beside its own clocks it gets ``"skipped"``, the steps that did
            not count, and ``"consecutive"``, those since the last one that did, before this step;
            the engine advances them. Values under other names than those of clocks are not kept;
            ``update`` gets them, too, in ``step.clock``.
        idles: whether most steps do not count for the links inside of the gate. These then may run
            in a ``lax.cond``, so that they take no time in such steps. Otherwise, they run in every
            step, and ``where`` keeps the old values, which is quicker in steps that count.
        alarm: ``clocks -> message or None``: why training can't go on. Outside ``jit``, ``update``
            raises a StageError with this message.
    """

    update: Callable[[Signal, Slots, Step], tuple[Signal, Slots]]
    slots: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    clocks: Mapping[str, Clock] = dataclasses.field(default_factory=dict)
    global_sum: Callable[[Signal, Slots, Step], Any] | None = None
    refresh: Refresh | None = None
    own: Callable[[str, jax.ShapeDtypeStruct, Mapping[str, Any]], Any] | None = None
    seed: int | None = None
    without_gradient: bool = False
    reach: Reach = "array"
    reshape: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...]] | None = None
    delays: tuple[str, ...] = ()
    prepares: bool = False
    gate: Callable[[dict[str, Any], Step, Mapping[str, Any]], tuple[Any, dict[str, Any]]] | None = (
        None
    )
    idles: bool = False
    alarm: Callable[[Mapping[str, Any]], str | None] | None = None

    def __post_init__(self) -> None:
        if both := sorted(self.slots.keys() & self.clocks.keys()):
            raise StageError(
                f"a slot and a clock are both called {both[0]!r}; they are kept in one dict, so "
                "give one of them another name"
            )
        clock = self.clocks.get(KEY)
        if KEY in self.slots or (clock is not None and clock.of_parameter is None):
            raise StageError(
                f"{KEY!r} is the name of the clock from which Rule(seed=…) draws random bits; "
                "give this one another name"
            )

    def reads(self, enter: Callable[[Signal, Slots], tuple[Signal, Slots]]) -> dict[str, Any]:
        """The fields that read signal and slots, for a wrapper that changes them on the way in.

        ``dataclasses.replace(rule, update=…, **rule.reads(enter))``.
        """

        def through(function: Callable[[Signal, Slots, Step], Any]) -> Callable[..., Any]:
            return lambda signal, slots, step: function(*enter(signal, slots), step)

        return {
            "global_sum": self.global_sum and through(self.global_sum),
            "refresh": self.refresh
            and dataclasses.replace(self.refresh, given=through(self.refresh.given)),
        }

    def delayed(self, after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        """The clocks' new values; the old ones before a delay is over."""
        now = dict(after)
        for delay in self.delays:
            is_open = self.clocks[delay].read(after[delay])
            others = [name for name in now if name not in self.delays]
            now |= {name: jnp.where(is_open, now[name], before[name]) for name in others}
        return now

    def decided(
        self, clocks: Mapping[str, Any], step: Step, extra: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """For a gate: whether this step counts for the links inside, its clocks, other values."""
        if self.gate is None:
            raise StageError(
                "it is the stage of a gate, and its rule does not decide: Rule(gate=…)"
            )
        found = self.gate(dict(clocks), step, extra)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise StageError(
                f"its gate returned {described(found)}; it must return whether the step counts, "
                "and a dict of new values of its clocks"
            )
        counts, values = found
        if jnp.shape(counts) or jnp.result_type(counts) != jnp.bool_:
            raise StageError(
                f"its gate returned {described(counts)} for whether the step counts, which must be "
                "one bool"
            )
        own = {k: x for k, x in values.items() if k in self.clocks}
        for k, x in own.items():
            if jnp.shape(x) != jnp.shape(clocks[k]):
                raise StageError(
                    f"its gate turned the clock {k!r} of shape {jnp.shape(clocks[k])} into one of "
                    f"{jnp.shape(x)}"
                )
        largest = jnp.iinfo(jnp.int32).max
        skipped, row = (jnp.minimum(clocks[x], largest - 1) + 1 for x in (SKIPPED, CONSECUTIVE))
        after = {
            **clocks,
            **own,
            SKIPPED: jnp.where(counts, clocks[SKIPPED], skipped),
            CONSECUTIVE: jnp.where(counts, 0, row),
        }
        return counts, after, {k: x for k, x in values.items() if k not in own}


KEY = "key"
"""The clock of random bits."""

SKIPPED, CONSECUTIVE = "skipped", "consecutive"
"""The clocks of a gate: the steps that did not count, and those since the last one that did."""


def keep(before: Slots, after: Slots) -> Slots:
    """The new slots, checked to have the names, shapes and dtypes of the old ones."""
    if before.keys() != after.keys():
        raise StageError(f"its slots are {sorted(before)}, but its update gave {sorted(after)}")
    for name, old in before.items():
        if kinds(old) != kinds(after[name]):
            raise StageError(
                f"slot {name!r} is {kinds(old)} and would become {kinds(after[name])}; a stage's "
                "update must return every slot with its old shape and dtype"
            )
    return jax.tree.map(_strong, after)


def _strong(array: Any) -> Any:
    array = jnp.asarray(array)
    return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array
