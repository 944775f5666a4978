"""Programs, for which steps are compiled, and one step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments import hyper
from adamx.engine import kernels
from adamx.engine.parts import MANY, step_in_parts
from adamx.engine.row import Row
from adamx.errors import StageError, as_given, described
from adamx.identity import ByValue, Static, fingerprint
from adamx.links.foreign import Foreign
from adamx.links.gates import is_gate
from adamx.links.link import Link
from adamx.links.naming import names, written
from adamx.links.observer import Observer
from adamx.links.rule import Rule
from adamx.links.stage import Stage, joined
from adamx.numerics.meshes import automatic, spec_of
from adamx.numerics.types import PyTree, State
from adamx.trees.align import Aligned, align
from adamx.trees.arrays import check_arrays, is_eager

__all__ = ["Program", "update"]


class Checked(NamedTuple):
    """A compiled step on arguments of one structure, which have been checked.

    Attributes:
        types: the types of their leaves.
        tree: the structure of the gradients, which is that of the parameters.
        step: the compiled step.
    """

    types: frozenset[type]
    tree: Any
    step: Callable[..., tuple[list[Any], State]]

    def run(
        self, numbers: list[Any], leaves: list[Any], state: State, params: PyTree
    ) -> tuple[PyTree, State]:
        """Another step.

        Args:
            numbers: the arrays among the arguments of the links.
            leaves: those of gradients, state and parameters.
            state: the state.
            params: the parameters, or None.
        """
        count = self.tree.num_leaves
        own = None if params is None else Aligned(leaves[len(leaves) - count :], [])
        outputs, state = self.step(numbers, leaves[:count], own, state, {})
        return self.tree.unflatten(outputs), state


class Program:
    """The links of a chain, compared by value, as JAX does to find compiled steps.

    Steps are compiled for the values that the links' functions read when the links were made. If a
    value has changed since, the links are made again for this step, and the old program equals only
    itself from then on, because a caller's ``jit`` may have compiled this step for it.
    """

    def __init__(self, links: tuple[Link, ...]):
        self.links = links
        self.last: Program = self
        self._compiled: list[Program] = []  # programs that a caller's jit may have compiled
        self.checked: dict[Hashable, Checked] = {}  # by structure of the arguments

    @functools.cached_property
    def split(self) -> tuple[Static, list[Any]]:
        """The static part of the links, for which a step is compiled, and their arrays."""
        return Static.split(self.links)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the links in the state."""
        return tuple(names(self.links))

    @functools.cached_property
    def entries(self) -> frozenset[str]:
        """The keys that a state may have."""
        return frozenset(("count", *self.names))

    @functools.cached_property
    def observes(self) -> bool:
        """Whether it has observers."""
        return any(isinstance(link, Observer) for link in self.links)

    @functools.cached_property
    def slots(self) -> dict[str, tuple[str, ...]] | None:
        """The names of every stage's slots; None if a link sees several arrays at a time."""
        if any(not isinstance(x, Stage) or x.is_selective or x.per_parameter for x in self.links):
            return None
        rules: dict[str, Rule] = {}

        def look(count: Any) -> None:
            for name, link in zip(self.names, joined(self.links), strict=True):
                assert isinstance(link, Stage)
                rules[name] = link.at(count).rule(hyper.clock_dtype())

        jax.eval_shape(look, jnp.zeros((), jnp.int32))
        if any(x.global_sum or x.own or x.gate or x.seed is not None for x in rules.values()):
            return None
        return {name: tuple(rule.slots) for name, rule in rules.items() if rule.slots}

    @functools.cached_property
    def alarms(self) -> dict[str, Callable[[Mapping[str, Any]], str | None]]:
        """By the stage's name, the functions that say why training can't go on."""
        found = {}
        for name, link in zip(self.names, self.links, strict=True):
            if is_gate(link) and isinstance(link, Stage):
                alarm = link.at(np.int32(0)).rule(jnp.float32).alarm
                found |= {name: alarm} if alarm else {}
        return found

    def check(self, state: State) -> None:
        """Raise StageError if training can't go on after a step; it waits for the step."""
        for name, alarm in self.alarms.items():
            if message := alarm(state[name]):
                raise StageError(message).within(stage=name)

    @functools.cached_property
    def open(self) -> tuple[ByValue, ...]:
        """The records of functions that read values which may change."""
        return tuple(x for link in self.links for x in link.records if x.is_open)

    @functools.cached_property
    def lasts(self) -> bool:
        """Whether a step that is compiled for it stays valid."""
        return all(record.lasts for link in self.links for record in link.records)

    @property
    def is_stale(self) -> bool:
        """Whether a value that its functions read has changed since it was made."""
        return any(x.is_stale for x in self.open)

    def now(self, *, traced: bool = False) -> Program:
        """The program of this step: this one, or a renewed one if this one is stale.

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
        """The links, if their functions still give the values that compiled steps use."""
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

    def __repr__(self) -> str:
        return written(self.links)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)


def update(
    program: Program,
    updates: PyTree,
    state: State,
    params: PyTree,
    extra: dict[str, Any],
    *,
    applies: bool = False,
) -> tuple[PyTree, State]:
    """Run one step; if it ``applies`` the updates, return new parameters in their place."""
    leaves, structure = jax.tree.flatten((updates, state, params))
    asked = kernels.asked_for()
    form = structure, applies, asked
    known = program.checked.get(form) if program.checked else None
    if known is not None and not extra and known.types.issuperset(map(type, leaves)):
        made, state = known.run(program.split[1], leaves, state, params)
        program.check(state)
        return made, state
    gradients, tree = jax.tree.flatten(updates)
    _check_state(program, state)
    said = "its gradient is {}, not an array; pass None for a parameter that has no gradient"
    check_arrays(tree, gradients, said)
    aligned = None
    if params is not None:
        aligned = align(updates, tree, params)
        check_arrays(tree, aligned.own, "it is {}, not an array")
    looks, seen = _looking(program, extra) if extra else (program.observes, {})
    traced = not is_eager(gradients, state, seen)
    compiles = not traced and program.lasts
    checked, program = program.checked, program.now(traced=traced)
    static, numbers = program.split
    fixed = static, looks, applies, asked
    if compiles and len(gradients) > MANY and program.slots is not None:

        def some(tree: Any, gradients: list[Any], params: Aligned | None, state: State) -> Any:
            return _compiled(*fixed, tree)(numbers, gradients, params, state, seen)

        done = step_in_parts(some, program.slots, tree, gradients, aligned, state)
        if done is not None:
            return tree.unflatten(done[0]), done[1]
    step = _compiled(*fixed, tree) if compiles else functools.partial(_step, *fixed, tree)
    outputs, state = step(numbers, gradients, aligned, state, seen)
    is_whole = not extra and (aligned is None or not aligned.rest)
    if compiles and is_whole and is_eager(leaves) and not program.open:
        checked[form] = Checked(frozenset(map(type, leaves)), tree, step)
    if not traced:
        program.check(state)
    return tree.unflatten(outputs), state


def _looking(program: Program, extra: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether observers look in this step, and the extra arguments of update() that links use."""
    looks = program.observes
    if looks and "observe" in extra:
        looks = extra["observe"]
        if not isinstance(looks, bool):
            raise StageError(
                f"observe must be True or False, got {as_given(looks)}: two programs are compiled, "
                "one for each value; make it a static argument of the jitted step, or use "
                "watch(every=n)"
            )
        extra = {key: x for key, x in extra.items() if key != "observe"}
    seen = {k: x for k, x in extra.items() if any(_takes(link, k) for link in program.links)}
    for link in program.links:
        if isinstance(link, Stage):
            _check_extra(link, seen)
    return looks, seen


def _takes(link: Link, argument: str) -> bool:
    """Whether a link may use this extra argument of update()."""
    if isinstance(link, Stage):
        return argument in link.may_take
    return isinstance(link, Foreign)


def _check_extra(stage: Stage, given: dict[str, Any]) -> None:
    """Check that the extra arguments of update() that a stage takes are numbers and arrays."""
    for name in stage.may_take:
        for x in jax.tree.leaves(given.get(name)):
            if not isinstance(x, (bool, int, float, complex, np.generic, np.ndarray, jax.Array)):
                raise StageError(
                    f"the extra argument {name} of update() is or holds {described(x)}, where a "
                    "number or an array is needed"
                ).within(stage=stage.name)


def _check_state(program: Program, state: Any) -> None:
    """Check that the state is a dict that holds a count and entries of the program's links only."""
    if not isinstance(state, dict) or "count" not in state:
        raise StageError(
            f"the state is {described(state)}, not what this chain's init() returns; the "
            "order is update(grads, state, params)"
        )
    if not program.entries.issuperset(state):
        raise StageError(
            f"the state holds {sorted(state.keys() - program.entries)}, which no stage of this "
            f"chain has; its stages are {[*program.names]}. Was it made by another chain?"
        )


def _step(
    static: Static,
    looks: bool,
    applies: bool,
    asked: str,  # read where kernels are chosen; here, another value is another compiled step
    tree: Any,
    numbers: list[Any],
    gradients: list[Any],
    params: Aligned | None,
    state: State,
    extra: dict[str, Any],
) -> tuple[list[Any], State]:
    def run(
        numbers: Any, gradients: Any, params: Any, state: Any, extra: Any
    ) -> tuple[list[Any], State]:
        row = Row(static.join(numbers), tree, gradients, params, state, looks, extra, applies)
        row.pass_along()
        return row.finish()

    def specs() -> Any:
        return jax.tree.map(spec_of, (gradients if params is None else params.own, state))

    return automatic(run, (numbers, gradients, params, state, extra), specs)


@functools.lru_cache(maxsize=4096)
def _compiled(*fixed: Any) -> Callable[..., tuple[list[Any], State]]:
    """The step, compiled for values of its first arguments."""

    def step(*given: Any) -> tuple[list[Any], State]:
        return _step(*fixed, *given)

    return jax.jit(step)
