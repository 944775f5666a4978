"""Stages: the parts of an optimiser, each written for one array."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.arguments import hyper
from adamx.arguments.signature import Signature
from adamx.errors import StageError, failed_schedule
from adamx.identity import ByValue
from adamx.links.link import Around, Beginning, Link, Row
from adamx.links.rule import CONSECUTIVE, KEY, SKIPPED, Clock, Reach, Rule
from adamx.links.signal import Signal
from adamx.links.slots import Slot, Slots
from adamx.numerics import random
from adamx.numerics.per_parameter import is_per_parameter

__all__ = ["Definition", "Stage", "Takes", "joined"]


Takes = Sequence[str] | Callable[..., Sequence[str]]
"""The names of extra arguments of ``update``, or a function of the stage's arguments."""


class Definition(Signature):
    """A stage without values for its arguments: its name, signature and factory of rules."""

    def __init__(
        self,
        factory: Callable[..., Rule | Callable[[Signal], Signal]],
        *,
        place: str = "anywhere",
        keeps_rounding: bool = False,
        reach: Reach = "array",
        stacks: bool = False,
        takes: Takes = (),
        may_take: Sequence[str] = (),
        takes_trees: Sequence[str] = (),
    ):
        super().__init__(factory)
        self.stacks = stacks
        self.takes = takes
        self.may_take = tuple(may_take)
        self.takes_trees = tuple(takes_trees)
        self.reach: Reach = reach
        self.place = place
        self.keeps_rounding = keeps_rounding
        if self.optional:
            raise TypeError(
                f"{self.name}: {self.optional[0]} is annotated as a hyperparameter or something "
                "else. A hyperparameter of a stage is a number in every step: let a number (0.0, "
                "say) switch it off, or write a stage for each"
            )
        self.equations: Callable[..., Any] | None = None  # a rule for adamx.explain instead

    @functools.cached_property
    def bare(self) -> ByValue | None:
        """The structure of a stage with only numbers; None if the factory reads mutable values."""
        record = ByValue((self, (), ()))
        return None if record.is_open else record

    def bind(self, *args: Any, **kwargs: Any) -> Stage:
        """A stage with these arguments, checked."""
        return Stage(self, self.checked(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<stage {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _definition, (self.factory.__module__, self.factory.__qualname__)


def _definition(module: str, name: str) -> Definition:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module)).definition


class Stage(Link):
    """A definition with its arguments; a pytree whose leaves are its hyperparameters."""

    def __init__(
        self, definition: Definition, arguments: dict[str, Any], around: tuple[Around, ...] = ()
    ):
        self.definition = definition
        self.arguments = arguments
        self.around = around
        # A schedule that is a pytree (an equinox.Module, jax.tree_util.Partial) has leaves too.
        self.data: tuple[str, ...] = tuple(
            name
            for name in definition.domains
            if not isinstance(arguments[name], hyper.Same)
            and not (callable(arguments[name]) and jax.tree_util.all_leaves([arguments[name]]))
        )
        kept = tuple((k, x) for k, x in arguments.items() if k not in self.data)
        hollow = tuple(_hollow(arguments[k]) for k in self.data if callable(arguments[k]))
        bare = definition.bare if not kept and not hollow else None
        self.structure: ByValue = bare or ByValue((definition, kept, hollow))

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.definition.name

    @functools.cached_property
    def schedules(self) -> ByValue:
        """A record of its schedules that are pytrees, whose leaves may be changed in place."""
        return ByValue(tuple(x for k in self.data if callable(x := self.arguments[k])))

    @property
    def records(self) -> tuple[ByValue, ...]:
        has_any = any(callable(self.arguments[k]) for k in self.data)
        return (*super().records, self.schedules) if has_any else super().records

    def renewed(self) -> Self:
        stage = super().renewed()
        stage.__dict__.pop("schedules", None)
        return stage

    @property
    def functions(self) -> str:
        names = [k for k in self.definition.domains if callable(self.arguments[k])]
        return f"the schedule of {' or '.join(names)}" if names else super().functions

    @property
    def takes(self) -> tuple[str, ...]:
        """The extra arguments of ``update`` that it needs."""
        takes = self.definition.takes
        return tuple(takes(**self.arguments) if callable(takes) else takes)

    @property
    def may_take(self) -> tuple[str, ...]:
        """All extra arguments of ``update`` that it uses."""
        definition = self.definition
        return (*self.takes, *definition.may_take, *definition.takes_trees)

    @functools.cached_property
    def per_parameter(self) -> tuple[str, ...]:  # pyright: ignore
        names = self.definition.per_parameter
        return tuple(k for k in names if is_per_parameter(self.arguments[k]))

    def of_parameter(self, path: str, shape: Any) -> Stage:
        if not self.per_parameter:
            return self
        try:
            own = {k: self.arguments[k](path, shape) for k in self.per_parameter}
        except Exception as error:
            raise StageError(
                f"{' or '.join(self.per_parameter)}, a function of path and shape, raised "
                f"{type(error).__name__}: {error}"
            ).within(stage=self.name, parameter=path) from error
        return Stage(self.definition, {**self.arguments, **own}, self.around)

    @functools.cached_property
    def anywhere(self) -> Stage:
        """The stage where no parameter is known, for what does not depend on it."""
        own = {k: self.definition.per_parameter[k] for k in self.per_parameter}
        return Stage(self.definition, {**self.arguments, **own}, self.around) if own else self

    @property
    def is_traced(self) -> bool:
        """Whether a hyperparameter of it is traced."""
        return any(isinstance(self.arguments[name], Tracer) for name in self.data)

    def replace(self, **changes: Any) -> Stage:
        arguments = self.definition.bind(**{**self.arguments, **changes}).arguments
        return Stage(self.definition, arguments, self.around)

    def joined(self, links: Sequence[Link], place: int) -> Stage:
        """See :meth:`Link.joined`; StageError if no such stage applies to all its parameters."""
        shared = [k for k, x in self.arguments.items() if isinstance(x, hyper.Same)]
        if not shared:
            return self
        now = dict(self.arguments)
        for name in shared:
            now[name] = _followed(name, links, place)
            if name in self.definition.domains:
                try:
                    now[name] = hyper.canonical(name, now[name], self.definition.domains[name])
                except (TypeError, ValueError) as error:
                    raise StageError(f"{error}, which is {self.arguments[name]}").within(
                        stage=self.name
                    ) from None
        return Stage(self.definition, now, self.around)

    def at(self, count: Any) -> Stage:
        """The stage at one step: its schedules replaced by their values."""
        domains = self.definition.domains
        if not any(callable(x) or np.ndim(x) for x in (self.arguments[name] for name in domains)):
            return self
        now = dict(self.arguments)
        for name, domain in domains.items():
            if callable(now[name]):
                try:
                    with jax.numpy_dtype_promotion("standard"):  # integer counts with floats
                        value = now[name](count)
                    now[name] = hyper.canonical(name, value, domain)
                except Exception as error:
                    traced = isinstance(count, Tracer)
                    raise failed_schedule(self.name, name, error, traced=traced) from error
            if np.ndim(now[name]) > 0:
                raise StageError(
                    f"{name} has the shape {np.shape(now[name])}, where one number is needed; a "
                    "batch of optimisers is run by jax.vmap over a function of the optimiser"
                ).within(stage=self.name)
        return Stage(self.definition, now, self.around)

    def rule(self, dtype: Any) -> Rule:
        """The rule with the current hyperparameters, in the precision of an array."""
        arguments = {
            name: hyper.cast(value, dtype) if name in self.definition.domains else value
            for name, value in self.anywhere.arguments.items()
        }
        try:
            made = self.definition.factory(**arguments)
        except StageError as error:
            raise error.within(stage=self.name) from None
        rule = made if isinstance(made, Rule) else Rule(_stateless(made))
        rule = dataclasses.replace(rule, reach=self.definition.reach)
        if rule.gate is not None:
            rule = dataclasses.replace(rule, clocks={**rule.clocks, **_COUNTERS})
        rule = self.surrounding(rule)
        if rule.seed is None:
            return rule
        return dataclasses.replace(rule, clocks={**rule.clocks, KEY: _key(rule.seed)})

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        beginning.append(name, self, here)

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        row.append(name, self, here)

    def packed(self, slot: str, values: Any) -> Any:
        """Values in the form in which this stage keeps a slot."""
        rule = self.surrounded(()).at(jnp.zeros((), jnp.int32)).rule(jnp.float32)
        start = dataclasses.replace(Slot.of(rule.slots[slot]), start=lambda _: values)
        packing = self.surrounded(tuple(x for x in self.around if x.packs))
        rule = packing.surrounding(dataclasses.replace(rule, slots={slot: start}))
        return rule.slots[slot](values)

    def surrounding(self, rule: Rule) -> Rule:
        """The rule inside its wrappers: outermost those that place, then those that pack."""
        inner_first = tuple(reversed(self.around))
        for around in sorted(inner_first, key=lambda x: (x.places, x.packs)):
            rule = around.surround(rule)
        return rule

    def __fingerprint__(self) -> Any:
        return self.definition, tuple(self.arguments.items()), self.around

    def __reduce__(self) -> tuple[Any, ...]:
        return Stage, (self.definition, self.arguments, self.around)

    def __repr__(self) -> str:
        shown = []
        for name, parameter in self.definition.signature.parameters.items():
            value = self.arguments[name]
            off = parameter.default in (0, None) and isinstance(value, (int, float, type(None)))
            is_named = isinstance(value, hyper.Same) or name in self.definition.per_parameter
            same = is_named and value == parameter.default
            if not same and (not off or value):  # hide defaults that are off or references
                shown.append(f"{name}={hyper.show(value)}")
        return f"{self.name}({', '.join(shown)})"

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        numbers = [(jax.tree_util.DictKey(name), self.arguments[name]) for name in self.data]
        return numbers, (self.data, self.structure, self.around)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], numbers: Any) -> Stage:
        stage = object.__new__(cls)
        stage.data, stage.structure, stage.around = aux
        stage.definition, kept, _ = stage.structure.value
        known = {**dict(kept), **dict(zip(stage.data, numbers, strict=True))}
        stage.arguments = {name: known[name] for name in stage.definition.signature.parameters}
        return stage


jax.tree_util.register_pytree_with_keys_class(Stage)


def joined(links: Sequence[Link]) -> list[Link]:
    """The links of a chain, with values in place of references between them."""
    return [link.joined(links, place) for place, link in enumerate(links)]


def _followed(
    name: str, links: Sequence[Link], place: int, before: tuple[tuple[int, str], ...] = ()
) -> Any:
    """The value of an argument, which other stages of the chain may hold.

    Args:
        name: the argument.
        links: the links of the chain.
        place: the index of the stage that has the argument.
        before: the places and arguments that refer to this one.
    """
    stage = links[place]
    assert isinstance(stage, Stage)
    same = stage.arguments[name]
    if not isinstance(same, hyper.Same):
        return same
    told = f"{name} is {same}"
    if (place, name) in before:
        raise StageError(f"{told}, which refers back to it; pass {name}=").within(stage=stage.name)
    others = {
        i: x
        for i, x in enumerate(links)
        if isinstance(x, Stage) and x.name == same.stage and i != place
    }
    others = {i: x for i, x in others.items() if x.where == stage.where[: len(x.where)]}
    if not others:
        raise StageError(
            f"{told}, but the chain has no such stage for these parameters; pass {name}=, or add "
            "that stage"
        ).within(stage=stage.name)
    nearest = max(others, key=lambda i: (len(others[i].where), i < place, -abs(i - place)))
    if same.argument not in (known := others[nearest].arguments):
        raise StageError(
            f"{told}, which has no such argument; it takes {', '.join(known) or 'none'}"
        ).within(stage=stage.name)
    return same.of(_followed(same.argument, links, nearest, (*before, (place, name))))


def _hollow(schedule: Any) -> Any:
    """A schedule that is a pytree, with None in place of its numeric leaves."""
    return jax.tree.map(
        lambda x: None if isinstance(x, (jax.Array, np.ndarray, float)) else x, schedule
    )


def _stateless(shape: Callable[[Signal], Signal]) -> Callable[..., tuple[Signal, Slots]]:
    return lambda signal, slots, step: (shape(signal), slots)


_COUNTERS = dict.fromkeys(
    (SKIPPED, CONSECUTIVE),
    Clock(lambda: jnp.zeros((), jnp.int32), lambda count: count, lambda count: count),
)
"""The clocks of a gate, which the engine advances."""


def _key(seed: int) -> Clock:
    return Clock(
        lambda: random.key(seed), random.after, lambda key: key, of_parameter=random.of_parameter
    )
