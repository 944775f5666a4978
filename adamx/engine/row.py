"""Pass the signals of all parameters along the links.

A stage waits until a later link needs the signals behind it: a stage with a global sum, or a link
that uses whole trees. The waiting stages then run as one block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from adamx.arguments import hyper
from adamx.engine.block import Block, Ends, Entering, Ready, errors_of, reshaped
from adamx.engine.forms import Form, check_clock, check_count, check_scalars
from adamx.engine.gated import pass_gate
from adamx.engine.kept import chosen, without_slope
from adamx.engine.run import global_sum, run
from adamx.errors import StageError
from adamx.links.foreign import ABSENT, Foreign
from adamx.links.gates import counts, gates_of, is_gate
from adamx.links.link import Link, choose, variants
from adamx.links.naming import labels, names
from adamx.links.observer import Observer, View
from adamx.links.rule import Rule, Step
from adamx.links.signal import Signal
from adamx.links.slots import Slots
from adamx.links.stage import Stage, joined
from adamx.numerics.shards import axes_of, bound
from adamx.numerics.types import Array, PyTree, State
from adamx.trees.align import Aligned, complete, is_missing
from adamx.trees.arrays import kind, kinds
from adamx.trees.columns import column_of, tree_of
from adamx.trees.differences import mismatch, remedy_for
from adamx.trees.paths import Leaf, path_of, paths_of, plain

__all__ = ["Row", "only", "reshaped_places", "rules_of", "shards_of"]


def only(here: list[bool] | None, leaves: Sequence[Any], absent: Any = None) -> list[Any]:
    """The leaves, with ``absent`` in place of those that are not chosen."""
    if here is None:
        return list(leaves)
    return [leaf if chosen else absent for leaf, chosen in zip(leaves, here, strict=True)]


def reshaped_places(
    places: list[Any], wholes: Sequence[Any], rules: Sequence[Rule], here: list[bool] | None
) -> list[Any]:
    """The shapes of the signals behind a stage, whose rule for every parameter is given."""
    if all(rule.reshape is None for rule in rules):
        return places
    now = [*places]
    for i, (place, rule) in enumerate(zip(places, rules, strict=True)):
        if place is not None and rule.reshape is not None and (here is None or here[i]):
            shape = rule.reshape(np.shape(place), np.shape(wholes[i]))
            now[i] = jax.ShapeDtypeStruct(shape, place.dtype, sharding=_beside(place, shape))
    return now


def _beside(place: Any, shape: tuple[int, ...]) -> Any:
    """Where an array is that takes the place of another one, whose shape may differ."""
    sharding = None if isinstance(place, Tracer) else getattr(place, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return sharding if shape == place.shape else NamedSharding(sharding.mesh, PartitionSpec())


def rules_of(stages: Sequence[Stage]) -> list[Rule]:
    """The rules of stages, each of which is made once."""
    made = {id(x): x for x in stages}
    rules = {key: x.rule(hyper.clock_dtype()) for key, x in made.items()}
    return [rules[id(x)] for x in stages]


def shards_of(axes: frozenset[str], links: Iterable[Link]) -> tuple[str, ...]:
    """The mesh axes along which a parameter is divided: those that a wrapper names, or its type."""
    named = [x.shards for link in links for x in link.around if x.shards is not None]
    if not named:
        return tuple(sorted(axes))
    return bound(axis for own in named for axis in own)


def _is_wide(stage: Stage) -> bool:
    """Whether a stage uses more than the elements at the same place."""
    rule = stage.at(np.int32(0)).rule(hyper.clock_dtype())
    return rule.reach != "element" or rule.global_sum is not None


class _Columns(dict[str, list[Any]]):
    """Trees like the parameters, as columns, which are made when they are asked for."""

    def __init__(self, tree: Any, given: Mapping[str, Any]):
        self.tree, self.given = tree, given

    def __missing__(self, name: str) -> list[Any]:
        given = self.given[name]
        if given is None:
            return [None] * self.tree.num_leaves
        try:
            self[name] = [plain(x) for x in column_of(self.tree, given)]
        except (ValueError, TypeError):
            like = self.tree.unflatten([0] * self.tree.num_leaves)
            raise mismatch("the gradients", like, f"the extra argument {name}", given) from None
        return self[name]


def _like_param(name: str, given: Any, param: Any) -> Any:
    """An array of an extra argument, checked to have the parameter's shape; or None."""
    if given is not None and np.shape(given) != np.shape(param):
        raise StageError(
            f"{name} is {kinds(given)} for this parameter, and must have its shape "
            f"{np.shape(param)}; it is a tree like the parameters"
        )
    return given


class _Waiting(NamedTuple):
    """A stage that waits to run on the parameters that it applies to."""

    name: str
    ready: list[Ready]  # the stage as it is for each parameter
    own: list[Any]  # the numbers of each parameter
    kept: dict[str, list[Any]]  # by slot, its values for all parameters
    slots: list[Slots | None]  # the slots of each parameter; None where the stage does not run
    places: list[Any]  # the shapes of the signals in front of the stage

    def with_clocks(self, readings: Mapping[str, Any]) -> _Waiting:
        """The stage with other readings of some clocks."""
        step = self.ready[0].step
        step = step._replace(clock={**step.clock, **readings})
        made = {id(x): x._replace(step=step) for x in self.ready}
        return self._replace(ready=[made[id(x)] for x in self.ready])


class _Watching(NamedTuple):
    """An observer that waits for its sums, which the waiting stages in front of it compute, too."""

    name: str
    link: Observer
    here: list[bool] | None

    def sees(self, i: int) -> bool:
        return self.here is None or self.here[i]


class Row:
    """The signals of all parameters in one step, and the new state."""

    def __init__(
        self,
        links: Sequence[Link],
        tree: Any,
        gradients: list[Any],
        params: Aligned | None,
        state: State,
        looks: bool = False,
        extra: Mapping[str, Any] = MappingProxyType({}),
        applies: bool = False,
        glances: bool = False,
    ):
        """Start a step.

        Args:
            links: the links of the chain.
            tree: the tree of the gradients, None for a parameter without a gradient.
            gradients: the leaves of this tree.
            params: the parameters of these gradients.
            state: the state before the step.
            looks: whether observers look.
            extra: the extra arguments of update(), for Optax transformations.
            applies: whether new parameters leave the chain, and not updates.
            glances: whether to run stages and observers only, for the shapes of their new state.
        """
        check_count(state["count"])
        self.state, self.looks, self.extra, self.glances = state, looks, extra, glances
        self.ends: Ends = "param" if applies else "update"
        self.labels = labels(links)
        self.named = dict(zip(names(links), joined(links), strict=True))
        self.tree, self.gradients, self.params = complete(tree, gradients, params, self.slots)
        self.chosen = choose(links, lambda: self.leaves, lambda: self.idle)
        self.counts = dict(zip(self.named, counts(links, state), strict=True))
        self.depths = {k: len(x) for k, x in zip(self.named, gates_of(links), strict=True)}
        thetas = [None] * len(self.gradients) if self.params is None else self.params
        # For each leaf at first (gradient, parameter), then a Signal once a stage has run. None for
        # a parameter without a gradient: it takes no step, and its slots do not change unless the
        # stage's rule runs without a gradient.
        self.signals: list[Any] = [
            None if is_missing(pair[0]) else pair
            for pair in zip(self.gradients, thetas, strict=True)
        ]
        self.waiting: list[_Waiting] = []
        self.watching: list[_Watching] = []
        self.after: State = {}
        # By gate, whether this step counts for the links inside, and whether it seldom does.
        self.open: dict[str, Any] = {}
        self.idles: dict[str, bool] = {}
        self.inside: Any = None  # whether the step counts for the link at hand; None outside gates
        self.is_done = False  # whether the signals have left the chain already
        # Inside shard_map, the mesh axes along which each parameter differs between devices.
        known = self.gradients if self.params is None else self.params
        self.axes = [frozenset[str]() if is_missing(x) else axes_of(x) for x in known]
        if self.params is None and any(self.axes):
            self.axes = [x & y for x, y in zip(self.axes, self.axes_of_slots(), strict=True)]
        # The shapes of the signals at the place of the next stage, from which its slots start.
        self.wholes: list[Any] = list(self.gradients if self.params is None else self.params)
        self.places = self.wholes

    @functools.cached_property
    def leaves(self) -> list[Leaf]:
        pairs = zip(self.gradients, self.params or self.gradients, strict=True)
        arrays = [g if is_missing(g) else jnp.asarray(theta) for g, theta in pairs]
        return paths_of(self.tree, arrays)

    @functools.cached_property
    def idle(self) -> frozenset[str] | None:
        """The paths of parameters that are known to have no gradient; None if all have one."""
        if self.glances:  # then a None among the gradients is no parameter
            return None
        places = jax.tree.leaves(self.tree.unflatten(self.gradients), is_leaf=lambda x: x is None)
        if not any(x is None or is_missing(x) for x in places):
            return None
        pairs = zip(self.leaves, self.gradients, strict=True)
        return frozenset(path for (path, _), gradient in pairs if is_missing(gradient))

    def slots(self) -> list[PyTree]:
        """The slots of all stages in the state."""
        found = []
        for name, link in self.named.items():
            kept = self.state.get(name)
            if isinstance(link, Stage) and isinstance(kept, dict):
                rule = link.at(self.state["count"]).rule(hyper.clock_dtype())
                found += [kept[slot] for slot in rule.slots if slot in kept]
        return found

    def axes_of_slots(self) -> list[frozenset[str]]:
        """Inside shard_map, without parameters: the mesh axes of each parameter's slots."""
        try:
            columns = [column_of(self.tree, slot) for slot in self.slots()]
        except (ValueError, TypeError):  # slots of other parameters; an error where they are used
            return [frozenset()] * len(self.gradients)
        wide = any(not isinstance(x, Stage) or _is_wide(x) for x in self.named.values())
        for i, axes in enumerate(self.axes):
            alike = (x for column in columns for x in jax.tree.leaves(column[i]))
            if axes and wide and not any(np.ndim(x) for x in alike):
                raise StageError(
                    "inside shard_map, update() was called without parameters, and no slot tells "
                    "whether this parameter is divided over devices; call "
                    "update(grads, state, params)"
                ).within(parameter=path_of(self.tree, i))
        return [axes_of([column[i] for column in columns]) for i in range(len(self.gradients))]

    def pass_along(self, places: range | None = None) -> None:
        """Run links one after the other, all of them or those at some places."""
        places = range(len(self.named)) if places is None else places
        items = [*self.named.items()]
        place = places.start
        while place < places.stop:
            (name, link), here = items[place], self.chosen[place]
            link.run(self, name, here)
            place += 1
            if is_gate(link):
                first, outer = place, self.depths[name]
                while place < places.stop and self.depths[items[place][0]] > outer:
                    place += 1
                pass_gate(self, name, here, range(first, place))

    def unless_skipped(self, after: Any, before: Any) -> Any:
        """New values, or the old ones in a step that does not count for the link."""
        if self.inside is None:
            return after
        return chosen(self.inside, after, before)

    def append(self, name: str, stage: Stage, here: list[bool] | None) -> None:
        """Tick a stage's clocks and let it wait; compute its global sum behind earlier stages."""
        if self.watching:
            self.advance()
        if missing := [x for x in stage.takes if x not in self.extra]:
            if self.glances:
                return
            raise _lacks_arguments(name, missing)
        stage = without_slope(self.inside, stage.at(self.counts[name]))
        stages = variants(stage, len(self.gradients), here, lambda: self.leaves, lambda: self.idle)
        rule, *rules = rules_of([stage, *stages])
        entry = self.entry(name, rule)
        for key, clock in rule.clocks.items():
            check_clock(name, key, clock, entry[key])
        kept_clocks = {k: entry[k] for k in rule.clocks}
        entry = {**entry, **without_slope(self.inside, kept_clocks)}
        kept, slots = self.per_leaf(name, rule, rules, entry, here, stages)
        values = rule.delayed({k: x.tick(entry[k]) for k, x in rule.clocks.items()}, entry)
        held: list[Slots | None] = [None] * len(slots)
        if rule.without_gradient:
            held = [self.held(kept, i, here) if x is None else None for i, x in enumerate(slots)]
        own = [
            None if x is None and y is None else self.own(name, i, rules[i], stage)
            for i, (x, y) in enumerate(zip(slots, held, strict=True))
        ]
        step = Step(_readings(rule, values), counts=self.inside)
        if rule.global_sum is not None:
            self.advance()
            ready = _ready(name, stages, rules, step)
            summed = [
                (ready[i], Entering(i, signal, [x], [own[i]], shards_of(self.axes[i], [stages[i]])))
                for i, (signal, x) in enumerate(zip(self.signals, slots, strict=True))
                if x is not None
            ]
            total = global_sum(summed, self.at_leaf)
            idle = [
                (ready[i], Entering(i, self.without(i, self.places), [x], [own[i]]))
                for i, x in enumerate(held if not summed else ())
                if x is not None
            ]
            if idle:  # a sum over no gradients
                total = _zeros(jax.eval_shape(lambda: global_sum(idle[:1], self.at_leaf)))
            elif total is None and rule.gate is not None:
                total = _zeros(jax.eval_shape(lambda: _sum_of_one(rule, step)))
            total = without_slope(self.inside, total)
            for k, clock in rule.clocks.items():
                if clock.settle and summed:
                    values[k] = clock.settle(values[k], total)
            values = rule.delayed(values, entry)
            step = step._replace(clock=_readings(rule, values), total=total)
        if is_gate(stage):
            self.idles[name] = rule.idles
            with errors_of(name, "gate", lambda: f"its clocks are {kinds(entry)}"):
                self.open[name], values, told = rule.decided(values, step, self.given_to(stage))
            values = rule.delayed(values, entry)
            step = step._replace(clock=_readings(rule, values) | told)
        if entry:
            now = {k: _like(value, entry[k]) for k, value in values.items()}
            self.after[name] = self.unless_skipped(now, kept_clocks)
        slots = [x if x is not None else y for x, y in zip(slots, held, strict=True)]
        ready = _ready(name, stages, rules, step)
        self.waiting.append(_Waiting(name, ready, own, kept, slots, self.places))
        self.places = reshaped_places(self.places, self.wholes, rules, here)

    def given_to(self, stage: Stage) -> dict[str, Any]:
        """The extra arguments of update() that a stage takes."""
        return {k: self.extra[k] for k in stage.may_take if k in self.extra}

    def own(self, name: str, i: int, rule: Rule, stage: Stage) -> Any:
        """The numbers of one parameter for a rule."""
        if rule.own is None:
            return None
        try:
            trees = {
                k: self.at_leaf(i, _like_param, k, self.columns[k][i], self.wholes[i])
                for k in stage.definition.takes_trees
                if k in self.extra
            }
            return self.at_leaf(i, rule.own, *self.leaves[i], {**self.extra, **trees})
        except StageError as error:
            raise error.within(stage=name) from error.__cause__

    @functools.cached_property
    def columns(self) -> Mapping[str, list[Any]]:
        """Extra arguments of update() that are trees like the parameters, by parameter."""
        return _Columns(self.tree, self.extra)

    def show(self, name: str, link: Observer, here: list[bool] | None) -> None:
        """Run an observer, or let it wait if it looks."""
        check_scalars(name, self.kept(name))
        watching = _Watching(name, link, here)
        if not self.looks:
            self.tell(watching, ())
            return
        self.watching.append(watching)
        if self.inside is not None or self.glances:
            self.advance()

    def tell(self, watching: _Watching, terms: Sequence[Any]) -> None:
        """Let an observer see its terms of every parameter."""
        name, link, here = watching
        before = self.kept(name)
        seen = link.observe(self.view(name, link, here, terms), before, self.looks)
        self.after[name] = seen if self.glances else self.unless_skipped(seen, before)

    def view(
        self, name: str, link: Observer, here: list[bool] | None, terms: Sequence[Any]
    ) -> View:
        """What an observer sees."""
        links, count = list(self.named.values()), len(self.signals)
        names_of_links = list(self.named)
        own = variants(link, count, here, lambda: self.leaves, lambda: self.idle)
        hyperparams, scheduled = {}, set()
        for label, place in self.labels.items():
            stage = links[place.link]
            assert isinstance(stage, Stage)
            past = self.counts[names_of_links[place.link]]
            hyperparams[label] = stage.at(past).arguments[place.argument]
            if callable(stage.arguments[place.argument]):
                scheduled.add(label)
        chosen = [i for i in range(len(self.signals)) if here is None or here[i]]
        return View(
            count=self.counts[name],
            leaves=[self.leaves[i] for i in chosen],
            idle=self.idle,
            gradients=[None if is_missing(x := self.gradients[i]) else x for i in chosen],
            terms=[terms[i] for i in chosen] if self.looks else [],
            sizes=[np.size(self.places[i]) for i in chosen],
            hyperparams=hyperparams,
            scheduled=frozenset(scheduled),
            shards=[shards_of(self.axes[i], [own[i]]) for i in chosen],
        )

    def kept(self, name: str) -> Any:
        """The entry in the state of a link that is no stage."""
        if name not in self.state:
            raise self.incomplete(name, [name])
        return self.state[name]

    def entry(self, name: str, rule: Rule) -> dict[str, Any]:
        """A stage's entry in the state, checked to be complete."""
        kept = self.state.get(name, {})
        needed = [*rule.slots, *rule.clocks]
        missing = [key for key in needed if not isinstance(kept, dict) or key not in kept]
        if missing and all(x in rule.clocks and rule.clocks[x].of_parameter for x in missing):
            slots = ", ".join(repr(key) for key in needed if key not in missing)
            raise StageError(
                f"the state has no key for stochastic rounding (slots {slots}): the chain that "
                "made it did not round its slots. Convert it with "
                "adamx.restore_state(state, opt, params)"
            ).within(stage=name)
        if missing:
            raise self.incomplete(name, missing)
        return kept

    def incomplete(self, name: str, missing: list[str]) -> StageError:
        """The error for an entry of the state in which something is missing."""
        kept = self.state.get(name, {})
        held = sorted(kept) if isinstance(kept, dict) else f"a {type(kept).__name__}"
        link, off = self.named[name], ""
        if name not in self.state and isinstance(link, Stage) and link.is_traced:
            off = (
                " Or was the stage switched off by the number 0? In an optimiser that is an "
                "argument of a jitted function, numbers are traced, and a traced 0 switches "
                "nothing off: replace the number by jnp.zeros(()) before init()"
            )
        return StageError(
            f"its entry in the state is {held}, without {missing}; the state holds "
            f"{sorted(self.state)}. Was it made by another chain?{off}"
        ).within(stage=name)

    def per_leaf(
        self,
        name: str,
        rule: Rule,
        rules: list[Rule],
        entry: dict[str, Any],
        here: list[bool] | None,
        stages: Sequence[Stage],
    ) -> tuple[dict[str, list[Any]], list[Slots | None]]:
        """By slot its values for all parameters; and the slots of those on which a stage runs."""
        mine = [True] * len(self.gradients) if here is None else here
        columns: dict[str, list[Any]] = {}
        for slot in rule.slots:
            forms = {id(x): Form(name, slot, x.slots[slot]) for x in rules}
            try:
                columns[slot] = [plain(x) for x in column_of(self.tree, entry[slot])]
                for i, (x, gradient) in enumerate(zip(columns[slot], self.gradients, strict=True)):
                    form = forms[id(rules[i])]
                    if not mine[i]:
                        self.at_leaf(i, form.check_nothing, x)
                    elif is_missing(gradient):
                        continue
                    else:
                        check = form.check_shape if self.params is None else form.check
                        shards = shards_of(self.axes[i], [stages[i]])
                        self.at_leaf(i, check, self.places[i], x, shards)
            except StageError:
                raise
            except (ValueError, TypeError):
                gradients = self.tree.unflatten(only(here, self.gradients))
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
        """The slots of a parameter without a gradient; None if they are empty."""
        is_mine = is_missing(self.gradients[i]) and (here is None or here[i])
        slots = {slot: column[i] for slot, column in kept.items()}
        return slots if is_mine and jax.tree.leaves(slots) else None

    def advance(
        self, *, ends: Ends = "signal", counts: Any = None, mine: list[bool] | None = None
    ) -> None:
        """Run the waiting stages, each on the parameters that it applies to, and observers.

        Args:
            ends: what they return.
            counts: whether it leaves a gate in this step; None if it does not leave one.
            mine: the parameters to which the gate applies; None for all.
        """
        done: list[list[Slots | None]] = [[None] * len(self.signals) for _ in self.waiting]
        terms: list[list[Any]] = [[None] * len(self.signals) for _ in self.watching]
        leaves: dict[Any, list[int]] = {}
        for i, signal in enumerate(self.signals):
            own = tuple(k for k, x in enumerate(self.waiting) if x.slots[i] is not None)
            # A parameter without a gradient: every stage gets an update of zero, whatever another
            # one made of it.
            for some in [own] if signal is not None else [(k,) for k in own]:
                which = tuple(id(self.waiting[k].ready[i]) for k in some)
                looking = signal is not None
                eyes = tuple(k for k, x in enumerate(self.watching) if looking and x.sees(i))
                gated = counts is not None and looking and (mine is None or mine[i])
                leaves.setdefault((some, which, eyes, gated), []).append(i)
        for (some, _, eyes, gated), places in leaves.items():
            block = Block.of(
                [self.waiting[k].ready[places[0]] for k in some],
                ends=ends,
                summands=tuple(self.watching[k].link.summand for k in eyes),
                counts=counts if gated else None,
            )
            stages = [ready.stage for ready in block.ready]
            entering = [
                Entering(
                    i,
                    self.entering(i, some),
                    self.slots_of(i, some),
                    [self.waiting[k].own[i] for k in some],
                    shards_of(self.axes[i], stages),
                    given=self.given(i) if eyes else (),
                )
                for i in places
            ]
            for i, passed in zip(places, run(block, entering, self.at_leaf), strict=True):
                self.signals[i] = None if self.signals[i] is None else passed.left
                for k, slots in zip(some, passed.slots, strict=True):
                    done[k][i] = slots
                for k, sums in zip(eyes, passed.terms, strict=True):
                    terms[k][i] = sums
        for waiting, slots in zip(self.waiting, done, strict=True):
            for slot, column in waiting.kept.items():
                new = [
                    kept if after is None else after[slot]
                    for kept, after in zip(column, slots, strict=True)
                ]
                self.after[waiting.name][slot] = tree_of(self.tree, new, self.wholes)
        watching, self.waiting, self.watching = self.watching, [], []
        for x, sums in zip(watching, terms, strict=True):
            self.tell(x, sums)

    def old_param(self, i: int, ends: Ends) -> Any:
        """A parameter, if new ones leave the chain; else None."""
        return jnp.asarray(self.params[i]) if ends == "param" and self.params else None

    def given(self, i: int) -> tuple[Any, ...]:
        """A parameter's gradient and itself, for observers, unless they are its signal."""
        if not isinstance(self.signals[i], Signal):
            return ()
        return self.gradients[i], None if self.params is None else self.params[i]

    def slots_of(self, i: int, mine: tuple[int, ...]) -> list[Slots]:
        """The slots of one parameter, for the waiting stages that run on it."""
        return [slots for k in mine if (slots := self.waiting[k].slots[i]) is not None]

    def entering(self, i: int, mine: tuple[int, ...]) -> Any:
        """A parameter's signal in front of these waiting stages."""
        if self.signals[i] is not None:
            return self.signals[i]
        return self.without(i, self.waiting[mine[0]].places)

    def without(self, i: int, places: list[Any]) -> Signal:
        """The signal of a parameter without a gradient: zeros of the shape at this place."""
        missing = self.gradients[i]
        zeros = jnp.zeros(missing.shape, missing.dtype)
        signal = self.at_leaf(i, Signal.enter, zeros, self.params and self.params[i])
        zeros = jnp.zeros(np.shape(places[i]), signal.update.dtype)
        return dataclasses.replace(signal, gradient=zeros, update=zeros)

    def pass_through(self, name: str, link: Foreign, here: list[bool] | None) -> None:
        """Let an Optax transformation rewrite the updates."""
        if self.glances:  # it may need extra arguments, which are missing here
            return
        self.advance()
        before, thetas = self.kept(name), None
        if self.params is not None:
            seen = zip(self.params, self.signals, strict=True)
            own = [None if signal is None else theta for theta, signal in seen]
            thetas = self.tree.unflatten(only(here, own, ABSENT))
        outputs = [None if signal is None else signal.output for signal in self.signals]
        updates = self.tree.unflatten(only(here, outputs, ABSENT))
        lacking = any(signal is None for signal in self.signals)
        with link.noted(name):
            try:
                updates, after = link.update(updates, before, thetas, **self.extra)
                shaped = self.tree.flatten_up_to(updates)
            except (TypeError, ValueError) as error:
                if lacking:
                    raise _needs_every_gradient(name) from error
                raise
        if lacking and jax.tree.structure(before) != jax.tree.structure(after):
            raise _needs_every_gradient(name)
        if self.depths[name]:
            after = _like_before(name, after, before)
        self.after[name] = self.unless_skipped(after, before)
        for i, (u, signal) in enumerate(zip(shaped, self.signals, strict=True)):
            if not (u is None or signal is None or isinstance(u, type(ABSENT))):
                self.at_leaf(i, _check_passed, name, u, signal.update.shape)
                self.signals[i] = signal.with_update(jnp.asarray(u).astype(signal.update.dtype))

    def finish(self) -> tuple[list[Any], State]:
        """What leaves the chain for parameters that have a gradient, and the new state."""
        if not self.is_done:
            self.advance(ends=self.ends)
        count = self.state["count"]
        largest = jnp.iinfo(count.dtype).max
        self.after["count"] = jnp.where(count < largest, count + 1, count)
        return [signal for signal in self.signals if signal is not None], self.after

    def at_leaf(self, i: int, function: Any, *args: Any) -> Any:
        """Call a function, and add the parameter's path to its errors."""
        try:
            return function(*args)
        except StageError as error:
            where = f"{path_of(self.tree, i)} ({kind(self.gradients[i])})"
            raise error.within(parameter=where) from error.__cause__


def _zeros(forms: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), forms)


def _sum_of_one(rule: Rule, step: Step) -> Any:
    """A rule's sum over one number."""
    zero = jnp.zeros((), hyper.clock_dtype())
    slots = {k: first(zero) for k, first in rule.slots.items()}
    assert rule.global_sum is not None
    return rule.global_sum(Signal.enter(zero, zero), slots, step)


def _like_before(name: str, after: Any, before: Any) -> Any:
    """The state of an Optax transformation inside of a gate, with its old form."""
    same = jax.tree.structure(after) == jax.tree.structure(before)
    pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=False)
    if not same or any(np.shape(x) != np.shape(y) for x, y in pairs):
        raise StageError(
            "it is no stage of adamx, and can't be inside of a gate: its state changes its form in "
            f"a step, from {kinds(before)} to {kinds(after)}"
        ).within(stage=name)
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(jnp.result_type(y)), after, before)


def _ready(name: str, stages: list[Stage], rules: list[Rule], step: Step) -> list[Ready]:
    """A stage whose clocks have ticked, as it is for each parameter."""
    made = {id(x): Ready(name, x, step, rule) for x, rule in zip(stages, rules, strict=True)}
    return [made[id(x)] for x in stages]


def _lacks_arguments(name: str, missing: list[str]) -> StageError:
    given = ", ".join(f"{x}=…" for x in missing)
    return StageError(
        f"update() was called without {', '.join(missing)}, which this stage needs in every step; "
        f"call update(grads, state, params, {given})"
    ).within(stage=name)


def _readings(rule: Rule, values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: clock.read(values[k]) for k, clock in rule.clocks.items()}


def _needs_every_gradient(name: str) -> StageError:
    return StageError(
        "it is no stage of adamx, and can't run in a step in which a parameter has no gradient "
        "(None among the gradients); pass zeros in place of None, or use a stage of adamx"
    ).within(stage=name)


def _check_passed(name: str, update: Any, before: tuple[int, ...]) -> None:
    if np.shape(update) != before:
        raise reshaped(before, np.shape(update)).within(stage=name)


def _like(after: Array, before: Array) -> Array:
    """A clock's new value with its old dtype, and never weakly typed."""
    is_number = jnp.issubdtype(before.dtype, jnp.number)
    return jnp.asarray(after).astype(before.dtype) if is_number else after
