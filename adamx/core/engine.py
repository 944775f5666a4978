"""Runs a row of links over trees of parameters: the only place that knows trees.

Leaves of one shape and dtype share one trace: consecutive stages are composed into one function
of one array, a nested ``jax.jit``. The row is cut only in front of a stage that must look beyond
one array (``global_sum``) and around transformations that see whole trees (``Foreign``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from adamx.core import hyper, random
from adamx.core.errors import StageError, as_given
from adamx.core.foreign import ABSENT, Foreign
from adamx.core.forms import Form, check_clock, check_count, check_scalars
from adamx.core.identity import ByValue, Static, fingerprint
from adamx.core.link import Leaf, Link, choose
from adamx.core.naming import labels, names
from adamx.core.observer import Observer, View, nothing
from adamx.core.parts import MANY, step_in_parts
from adamx.core.reading import remedy_for
from adamx.core.signal import Signal
from adamx.core.slots import Slot, Slots
from adamx.core.stage import Rule, Stage, Step, joined, keep, kind, kinds
from adamx.core.trees import (
    Aligned,
    align,
    as_parameter,
    check_arrays,
    complete,
    is_eager,
    is_missing,
    mismatch,
    path_of,
    paths_of,
    plain,
)
from adamx.core.types import Array, PyTree, State
from adamx.core.varying import axes_of, varying

__all__ = ["Program", "init", "update"]


def init(links: Sequence[Link], params: PyTree) -> State:
    """The count, and under each link's name what it keeps."""
    links = joined(links)
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [as_parameter(path, leaf) for path, leaf in paths]
    place = _beside(leaves)
    chosen = choose(links, functools.partial(paths_of, tree, leaves))
    state: State = {"count": place(jnp.zeros((), jnp.int32))}
    for name, link, here in zip(names(links), links, chosen, strict=True):
        if isinstance(link, Foreign):
            with link.noted(name):
                state[name] = link.init(tree.unflatten(_only(here, leaves, ABSENT)))
            for around in link.around:
                around.admit(name, state[name])
        elif isinstance(link, Stage):
            rule = link.at(state["count"]).rule(hyper.clock_dtype())
            kept = {
                slot: tree.unflatten(
                    None if leaf is None else _started(first, leaf, tree, i, name)
                    for i, leaf in enumerate(_only(here, leaves))
                )
                for slot, first in rule.slots.items()
            }
            kept |= {key: place(clock.start()) for key, clock in rule.clocks.items()}
            if kept:
                state[name] = kept
    observers = [
        name for name, link in zip(names(links), links, strict=True) if isinstance(link, Observer)
    ]
    if observers:
        blank = state | dict.fromkeys(observers)
        after = jax.eval_shape(functools.partial(_glance, links, tree), leaves, blank)
        seen = {name: after[name] for name in observers}
        state |= jax.tree.map(lambda x: place(nothing(x.shape, x.dtype)), seen)
    return _varying(links, tree, leaves, state)


def _only(here: list[bool] | None, leaves: Sequence[Any], absent: Any = None) -> list[Any]:
    """The leaves, with None (or what else is absent) for those that are not chosen."""
    if here is None:
        return list(leaves)
    return [leaf if chosen else absent for leaf, chosen in zip(leaves, here, strict=True)]


def _glance(links: Sequence[Link], tree: Any, leaves: list[Any], state: State) -> State:
    """What stages and observers would keep after a step along the parameters."""
    row = _Row(links, tree, leaves, Aligned(leaves, []), state)
    row.idle = None  # what is None among the parameters is none
    for name, link, here in row.links():
        if isinstance(link, Stage):
            row.append(name, link, here)
        elif isinstance(link, Observer):  # a foreign one may need more than a glance can give
            row.show(name, link, here, True)
    return row.finish()[1]


def _varying(links: Sequence[Link], tree: Any, leaves: list[Any], state: State) -> State:
    """Inside ``shard_map``: the state, differing between devices wherever it will after a step."""
    axes = jax.tree.map(axes_of, state)

    def step(state: State) -> None:
        nonlocal axes
        after = state | _glance(links, tree, leaves, state)
        axes = jax.tree.map(lambda old, new: axes_of((old, new)), state, after)

    while axes_of(leaves):
        before = axes
        jax.eval_shape(step, state)
        if axes == before:
            break
        state = jax.tree.map(varying, state, axes)
    return state


def _beside(leaves: list[Any]) -> Callable[[Array], Array]:
    """Puts a scalar on the devices of the parameters, where the first step would move it."""
    for leaf in leaves:
        known = not isinstance(leaf, Tracer) and getattr(leaf, "committed", True)
        sharding = getattr(leaf, "sharding", None) if known else None
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        if isinstance(sharding, (NamedSharding, SingleDeviceSharding)):
            return functools.partial(jax.device_put, device=sharding)
    return lambda scalar: scalar


def _started(first: Any, param: Any, tree: Any, index: int, stage: str) -> Any:
    """A slot's first value; where it is the parameter, a copy: the parameter may be donated."""
    try:
        slot = first(param)
    except StageError as error:
        where = f"{path_of(tree, index)} ({kind(param)})"
        raise error.within(stage=stage, parameter=where) from None
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if x is param else x, slot)


class _Beyond(Exception):
    """A link sees more than one array at a time."""


class Program:
    """A row of links, and what its steps are compiled for; equal by value.

    Programs are compiled for what the links' functions read when the links were made. If that has
    changed since, the row is made again for this step, and the old one equals only itself from now
    on: a caller's ``jit`` may have compiled this step under its name.
    """

    def __init__(self, links: tuple[Link, ...]):
        self.links = links
        self.last: Program = self
        self._compiled: list[Program] = []  # those that a caller's jit may have compiled

    @functools.cached_property
    def split(self) -> tuple[Static, list[Any]]:
        """What a step is compiled for, and the arrays that it is given."""
        return Static.split(self.links)

    @functools.cached_property
    def slots(self) -> dict[str, tuple[str, ...]] | None:
        """Every stage's slots; None if a link sees more than one array at a time."""
        found: dict[str, tuple[str, ...]] = {}

        def look(count: Any) -> None:
            for name, link in zip(names(self.links), joined(self.links), strict=True):
                rule = link.at(count).rule(hyper.clock_dtype()) if isinstance(link, Stage) else None
                if rule is None or rule.global_sum or rule.seed is not None or link.where:
                    raise _Beyond
                if rule.slots:
                    found[name] = tuple(rule.slots)

        try:
            jax.eval_shape(look, jnp.zeros((), jnp.int32))
        except _Beyond:
            return None
        return found

    @functools.cached_property
    def open(self) -> tuple[ByValue, ...]:
        """The records of what may change."""
        return tuple(x for link in self.links for x in link.records if x.is_open)

    @functools.cached_property
    def lasts(self) -> bool:
        """Whether what is compiled for it stays right."""
        return all(record.lasts for link in self.links for record in link.records)

    @property
    def is_stale(self) -> bool:
        """Whether anything that its functions read has changed since it was made."""
        return any(x.is_stale for x in self.open)

    def now(self, *, traced: bool = False) -> Program:
        """What runs in this step: this, or the same made again.

        Args:
            traced: whether the caller may be compiling the step.
        """
        if self.open:
            if self.last.is_stale:
                self.last = self if not self.is_stale else Program(self._renewed())
            if self.last is not self:
                for record in self.open:
                    record.strayed = record.strayed or record.is_stale
            if traced and self.last not in self._compiled:
                self._compiled.append(self.last)
                for record in self.last.open:
                    record.traced = True
        return self.last

    def _renewed(self) -> tuple[Link, ...]:
        return tuple(link.renewed() for link in self.links)

    def settled(self) -> tuple[Link, ...]:
        """The links, if their functions give what the compiled steps use."""
        for program in (self.last, *self._compiled):
            for link in program.links:
                link.settled()
        return self.last.links

    def __fingerprint__(self) -> Any:
        return self.last.links

    @functools.cached_property
    def _key(self) -> Hashable:
        records = tuple(link.records for link in self.links)
        static, numbers = self.split
        return records, static.leaves, *map(fingerprint, numbers)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)


def update(
    program: Program, updates: PyTree, state: State, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, State]:
    """One step."""
    links = program.links
    gradients, tree = jax.tree.flatten(updates)
    check_state(links, state)
    check_arrays(tree, gradients)
    aligned = None if params is None else align(updates, tree, params)
    looks, extra = _looking(links, extra)
    seen = extra if any(isinstance(link, Foreign) for link in links) else {}
    traced = not is_eager(gradients, state, seen)
    compiles = not traced and program.lasts
    program = program.now(traced=traced)
    static, numbers = program.split
    if compiles and len(gradients) > MANY and program.slots is not None:

        def some(tree: Any, gradients: list[Any], params: Aligned | None, state: State) -> Any:
            return _compiled_step(static, tree, looks, numbers, gradients, params, state, seen)

        done = step_in_parts(some, program.slots, tree, gradients, aligned, state)
        if done is not None:
            return tree.unflatten(done[0]), done[1]
    step = _compiled_step if compiles else _step
    emitted, state = step(static, tree, looks, numbers, gradients, aligned, state, seen)
    return tree.unflatten(emitted), state


def _looking(links: Sequence[Link], extra: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether the observers look in this step, and what else update() was given."""
    if not any(isinstance(link, Observer) for link in links):
        return False, extra
    looks = extra.get("observe", True)
    if not isinstance(looks, bool):
        raise StageError(
            f"observe must be True or False, got {as_given(looks)}: with it two programs are "
            "compiled, one that looks and one that does not; make it a static argument of the "
            "jitted step, or let watch(every=n) decide"
        )
    return looks, {key: x for key, x in extra.items() if key != "observe"}


def check_state(links: Sequence[Link], state: Any) -> None:
    """The state is a dict with nothing in it that the chain does not know."""
    if not isinstance(state, dict) or "count" not in state:
        raise StageError(
            f"the state is {type(state).__name__}, not what this chain's init() returns; the "
            "order is update(grads, state, params)"
        )
    if unknown := sorted(state.keys() - {"count", *names(links)}):
        raise StageError(
            f"the state holds {unknown}, which no stage of this chain has; its stages are "
            f"{names(links)}. Was it made by another chain?"
        )


def _step(
    static: Static,
    tree: Any,
    looks: bool,
    numbers: list[Any],
    gradients: list[Any],
    params: Aligned | None,
    state: State,
    extra: dict[str, Any],
) -> tuple[list[Any], State]:
    row = _Row(static.join(numbers), tree, gradients, params, state)
    for name, link, here in row.links():
        if isinstance(link, Stage):
            row.append(name, link, here)
        elif isinstance(link, Foreign):
            row.pass_through(name, link, here, extra)
        elif isinstance(link, Observer):
            row.show(name, link, here, looks)
    return row.finish()


_compiled_step = jax.jit(_step, static_argnums=(0, 1, 2))


class _Ready(NamedTuple):
    """A stage whose clocks have ticked, waiting to run on every parameter it is for."""

    name: str
    stage: Stage
    step: Step
    kept: dict[str, list[Any]]  # what its slots hold of each parameter
    slots: list[Slots | None]  # of each parameter; None where it does not run


class _Row:
    """The signals of all parameters on their way along the chain."""

    def __init__(
        self,
        links: Sequence[Link],
        tree: Any,
        gradients: list[Any],
        params: Aligned | None,
        state: State,
    ):
        check_count(state["count"])
        self.state = state
        self.labels = labels(links)
        self.named = dict(zip(names(links), joined(links), strict=True))
        self.tree, self.gradients, self.params = complete(tree, gradients, params, self.slots)
        self.chosen = choose(links, lambda: self.leaves, lambda: self.idle)
        thetas = [None] * len(self.gradients) if self.params is None else self.params
        # (gradient, parameter) of each leaf at first; a Signal once a stage has run. None of a
        # parameter without a gradient: it takes no step, and what its slots hold stays, unless
        # the stage's rule runs there too.
        self.signals: list[Any] = [
            None if is_missing(pair[0]) else pair
            for pair in zip(self.gradients, thetas, strict=True)
        ]
        self.waiting: list[_Ready] = []
        self.after: State = {}

    @functools.cached_property
    def leaves(self) -> list[Leaf]:
        pairs = zip(self.gradients, self.params or self.gradients, strict=True)
        arrays = [g if is_missing(g) else jnp.asarray(theta) for g, theta in pairs]
        return paths_of(self.tree, arrays)

    @functools.cached_property
    def idle(self) -> frozenset[str] | None:
        """The paths of parameters that are known to have no gradient; None if all have one."""
        places = jax.tree.leaves(self.tree.unflatten(self.gradients), is_leaf=lambda x: x is None)
        if not any(x is None or is_missing(x) for x in places):
            return None
        pairs = zip(self.leaves, self.gradients, strict=True)
        return frozenset(path for (path, _), gradient in pairs if is_missing(gradient))

    def slots(self) -> list[PyTree]:
        """What the stages keep of the parameters."""
        found = []
        for name, link in self.named.items():
            kept = self.state.get(name)
            if isinstance(link, Stage) and isinstance(kept, dict):
                rule = link.at(self.state["count"]).rule(hyper.clock_dtype())
                found += [kept[slot] for slot in rule.slots if slot in kept]
        return found

    def links(self) -> Iterator[tuple[str, Link, list[bool] | None]]:
        """Every link's name, the link, and which parameters it is for."""
        for (name, link), here in zip(self.named.items(), self.chosen, strict=True):
            yield name, link, here

    def append(self, name: str, stage: Stage, here: list[bool] | None) -> None:
        """Tick the stage's clocks and let it wait; what needs a sum over all waits no longer."""
        stage = stage.at(self.state["count"])
        rule = stage.rule(hyper.clock_dtype())
        entry = self.entry(name, [*rule.slots, *rule.clocks])
        for key, clock in rule.clocks.items():
            check_clock(name, key, clock, entry[key])
        kept, slots = self.per_leaf(name, rule, entry, here)
        values = {k: clock.tick(entry[k]) for k, clock in rule.clocks.items()}
        step = Step({k: clock.read(values[k]) for k, clock in rule.clocks.items()})
        if rule.global_sum is not None:
            self.advance()
            total = self.total(name, stage, step, slots)
            for k, clock in rule.clocks.items():
                if clock.settle and any(own is not None for own in slots):
                    values[k] = clock.settle(values[k], total)
            step = Step({k: clock.read(values[k]) for k, clock in rule.clocks.items()}, total)
        if entry:
            self.after[name] = {k: _like(value, entry[k]) for k, value in values.items()}
        if rule.idle:
            slots = [self.held(kept, i, here) if x is None else x for i, x in enumerate(slots)]
        self.waiting.append(_Ready(name, stage, step, kept, slots))

    def show(self, name: str, link: Observer, here: list[bool] | None, looks: bool) -> None:
        """Let an observer look, or not."""
        if looks:
            self.advance()
        before = self.kept(name)
        check_scalars(name, before)
        self.after[name] = link.observe(self.view(here), before, looks)

    def view(self, here: list[bool] | None) -> View:
        """What an observer sees."""
        links = list(self.named.values())
        numbers, scheduled = {}, set()
        for label, place in self.labels.items():
            stage = links[place.link]
            assert isinstance(stage, Stage)
            numbers[label] = stage.at(self.state["count"]).arguments[place.argument]
            if callable(stage.arguments[place.argument]):
                scheduled.add(label)
        chosen = [i for i in range(len(self.signals)) if here is None or here[i]]
        return View(
            count=self.state["count"],
            leaves=[self.leaves[i] for i in chosen],
            idle=self.idle,
            signals=[self.signals[i] for i in chosen],
            params=None if self.params is None else [self.params[i] for i in chosen],
            numbers=numbers,
            scheduled=frozenset(scheduled),
        )

    def kept(self, name: str) -> Any:
        """What a link that is no stage keeps."""
        return self.state[name] if name in self.state else self.entry(name, [name])

    def entry(self, name: str, needed: list[str]) -> dict[str, Any]:
        """What a stage keeps, complete."""
        kept = self.state.get(name, {})
        held = sorted(kept) if isinstance(kept, dict) else f"a {type(kept).__name__}"
        missing = [key for key in needed if not isinstance(kept, dict) or key not in kept]
        if missing == ["key"]:
            slots = ", ".join(repr(key) for key in needed if key in kept and key != "key")
            raise StageError(
                f"the state has no key from which to round at random (slots {slots}): the chain "
                "that made it did not round its slots. Convert it with "
                "adamx.restore_state(state, opt, params)"
            ).within(stage=name)
        if missing:
            raise StageError(
                f"its entry in the state is {held}, without {missing}; the state holds "
                f"{sorted(self.state)}. Was it made by another chain?"
            ).within(stage=name)
        return kept

    def per_leaf(
        self, name: str, rule: Rule, entry: dict[str, Any], here: list[bool] | None
    ) -> tuple[dict[str, list[Any]], list[Slots | None]]:
        """What the slots hold of each parameter; and the same of those on which the stage runs."""
        mine = [True] * len(self.gradients) if here is None else here
        columns: dict[str, list[Any]] = {}
        for slot, first in rule.slots.items():
            form = Form(name, slot, first)
            try:
                columns[slot] = [plain(x) for x in self.tree.flatten_up_to(entry[slot])]
                for i, (x, gradient) in enumerate(zip(columns[slot], self.gradients, strict=True)):
                    if not mine[i]:
                        self.at_leaf(i, form.check_nothing, x)
                    elif is_missing(gradient):
                        continue
                    elif self.params is None:
                        self.at_leaf(i, form.check_shape, gradient, x)
                    else:
                        self.at_leaf(i, form.check, self.params[i], x)
            except StageError:
                raise
            except (ValueError, TypeError):
                gradients = self.tree.unflatten(_only(here, self.gradients))
                raise mismatch(
                    *("the gradients", gradients, "the state's slots", entry[slot]),
                    remedy_for(gradients, entry[slot]),
                ) from None
        return columns, [
            {slot: column[i] for slot, column in columns.items()}
            if mine[i] and not is_missing(gradient)
            else None
            for i, gradient in enumerate(self.gradients)
        ]

    def held(self, kept: dict[str, list[Any]], i: int, here: list[bool] | None) -> Slots | None:
        """What the slots hold of a parameter without a gradient; None if they hold nothing."""
        is_mine = is_missing(self.gradients[i]) and (here is None or here[i])
        slots = {slot: column[i] for slot, column in kept.items()}
        return slots if is_mine and jax.tree.leaves(slots) else None

    def total(self, name: str, stage: Stage, step: Step, slots: list[Slots | None]) -> Any:
        static, numbers = Static.split(stage)
        measured = [
            self.at_leaf(i, _measure, static, name, numbers, step, signal, kept)
            for i, (signal, kept) in enumerate(zip(self.signals, slots, strict=True))
            if kept is not None
        ]
        wide = [hyper.cast(numbers_of, hyper.clock_dtype()) for numbers_of in measured]
        return jax.tree.map(lambda *x: jnp.sum(jnp.stack(x)), *wide or [None])

    def advance(self, *, last: bool = False) -> None:
        """Run the waiting stages, each on the parameters it is for."""

        @functools.cache
        def row(mine: tuple[int, ...]) -> tuple[Any, ...]:
            ready = [self.waiting[k] for k in mine]
            static, numbers = Static.split([x.stage for x in ready])
            return static, tuple(x.name for x in ready), last, numbers, [x.step for x in ready]

        done: list[list[Slots | None]] = [[None] * len(self.signals) for _ in self.waiting]
        draws = any("key" in ready.step.clock for ready in self.waiting)
        for i, signal in enumerate(self.signals):
            before = [ready.slots[i] for ready in self.waiting]
            mine = tuple(k for k, slots in enumerate(before) if slots is not None)
            index = np.uint32(i) if draws else None
            if signal is None and not mine:
                continue
            entering = self.still(i) if signal is None else signal
            left, after = self.at_leaf(
                i, _advance, *row(mine), entering, [before[k] for k in mine], index
            )
            self.signals[i] = None if signal is None else left
            for k, slots in zip(mine, after, strict=True):
                done[k][i] = slots
        for ready, slots in zip(self.waiting, done, strict=True):
            for slot, column in ready.kept.items():
                leaves = [
                    kept if new is None else new[slot]
                    for kept, new in zip(column, slots, strict=True)
                ]
                self.after[ready.name][slot] = self.tree.unflatten(leaves)
        self.waiting = []

    def still(self, i: int) -> tuple[Any, Any]:
        """A gradient of zero, and the parameter, where there is no gradient."""
        shape = self.gradients[i]
        return jnp.zeros(shape.shape, shape.dtype), self.params and self.params[i]

    def pass_through(
        self, name: str, link: Foreign, here: list[bool] | None, extra: dict[str, Any]
    ) -> None:
        self.advance()
        before, thetas = self.kept(name), None
        if self.params is not None:
            seen = zip(self.params, self.signals, strict=True)
            own = [None if signal is None else theta for theta, signal in seen]
            thetas = self.tree.unflatten(_only(here, own, ABSENT))
        emitted = [None if signal is None else signal.output for signal in self.signals]
        updates = self.tree.unflatten(_only(here, emitted, ABSENT))
        lacking = any(signal is None for signal in self.signals)
        with link.noted(name):
            try:
                updates, after = link.update(updates, before, thetas, **extra)
                shaped = self.tree.flatten_up_to(updates)
            except (TypeError, ValueError) as error:
                if lacking:
                    raise _needs_every_gradient(name) from error
                raise
        if lacking and jax.tree.structure(before) != jax.tree.structure(after):
            raise _needs_every_gradient(name)
        self.after[name] = after
        for i, (u, signal) in enumerate(zip(shaped, self.signals, strict=True)):
            if not (u is None or signal is None or isinstance(u, type(ABSENT))):
                self.at_leaf(i, _check_passed, name, u, signal)
                self.signals[i] = signal.with_update(jnp.asarray(u).astype(signal.update.dtype))

    def finish(self) -> tuple[list[Any], State]:
        self.advance(last=True)
        count = self.state["count"]
        largest = jnp.iinfo(count.dtype).max
        self.after["count"] = jnp.where(count < largest, count + 1, count)
        return [signal for signal in self.signals if signal is not None], self.after

    def at_leaf(self, i: int, function: Any, *args: Any) -> Any:
        """Call, and let an error say at which parameter it happened."""
        try:
            return function(*args)
        except StageError as error:
            where = f"{path_of(self.tree, i)} ({kind(self.gradients[i])})"
            raise error.within(parameter=where) from None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    static: Static,
    labels: tuple[str, ...],
    last: bool,
    numbers: list[Any],
    steps: list[Step],
    signal: Any,
    slots: list[Slots],
    index: Any,
) -> tuple[Any, list[Slots]]:
    """Consecutive stages on one array, the ``index``-th if one of them wants to know."""
    if not isinstance(signal, Signal):
        signal = Signal.enter(*signal)
    done = []
    with _promotion(signal):
        for name, stage, step, before in zip(
            labels, static.join(numbers), steps, slots, strict=True
        ):
            try:
                rule, step = _at_precision(stage, step, signal)
                if "key" in step.clock:
                    own = random.of_parameter(step.clock["key"], index, name)
                    step = step._replace(clock={**step.clock, "key": own})
                shape = signal.update.shape
                signal, after = rule.update(_seen(signal, rule), before, step)
                done.append(keep(before, after))
                check_shape(signal, shape)
            except StageError as error:
                raise error.within(stage=name) from None
            except (TypeError, ValueError) as error:
                kept = ", ".join(f"{slot} {kinds(array)}" for slot, array in before.items())
                raise StageError(
                    f"{error} (with the slots {kept or 'none'}). The gradient and the state must "
                    "be of the same parameters"
                ).within(stage=name) from error
        return signal.output if last else signal, done


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(
    static: Static, label: str, numbers: list[Any], step: Step, signal: Signal, slots: Slots
) -> Any:
    """What a stage needs to know of one array."""
    rule, step = _at_precision(static.join(numbers), step, signal)
    assert rule.global_sum is not None
    try:
        with _promotion(signal):
            return rule.global_sum(_seen(signal, rule), slots, step)
    except StageError as error:
        raise error.within(stage=label) from None


def _at_precision(stage: Stage, step: Step, signal: Signal) -> tuple[Any, Step]:
    """The rule and the step's scalars in the precision of one array."""
    dtype = jnp.finfo(signal.update.dtype).dtype
    return stage.rule(dtype), hyper.cast(step, dtype)


def _seen(signal: Signal, rule: Rule) -> Signal:
    """The signal as the rule sees it: statistics are taken of what has a finite square.

    Slots that are exact hold parameters and what they lack, and no statistics.
    """
    takes_statistics = any(Slot.of(slot).holds != "exact" for slot in rule.slots.values())
    return signal.limited() if takes_statistics else signal


def _promotion(signal: Signal) -> Any:
    """Squares and norms of complex arrays are real: there, real times complex is meant."""
    if jnp.iscomplexobj(signal.update):
        return jax.numpy_dtype_promotion("standard")
    return contextlib.nullcontext()


def _needs_every_gradient(name: str) -> StageError:
    return StageError(
        "it is no stage of adamx, and can't take a step in which a parameter has no gradient (None "
        "among the gradients); pass zeros in place of None, or use a stage of adamx"
    ).within(stage=name)


def _check_passed(name: str, update: Any, signal: Signal) -> None:
    if np.shape(update) != signal.update.shape:
        raise _reshaped(signal.update.shape, np.shape(update)).within(stage=name)


def check_shape(signal: Signal, before: tuple[int, ...]) -> None:
    """A stage keeps the shape of gradient and update."""
    for array in (signal.update, signal.gradient):
        if array.shape != before:
            raise _reshaped(before, array.shape)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> StageError:
    return StageError(
        f"it turned an update of shape {before} into one of {after}; a stage returns arrays of the "
        "shape that it was given. If it does so, the gradient and the state are not of the same "
        "parameters"
    )


def _like(after: Array, before: Array) -> Array:
    """A clock's new value with its old dtype, and never weakly typed."""
    is_number = jnp.issubdtype(before.dtype, jnp.number)
    return jnp.asarray(after).astype(before.dtype) if is_number else after
