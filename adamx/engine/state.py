"""The state before the first step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from adamx.engine import kernels
from adamx.engine.row import Row, only, reshaped_places, rules_of, shards_of
from adamx.errors import StageError
from adamx.links.gates import gates_of
from adamx.links.link import Link, choose, variants
from adamx.links.naming import names
from adamx.links.observer import nothing
from adamx.links.order import check_order
from adamx.links.rule import Rule
from adamx.links.stage import Stage, joined
from adamx.numerics.meshes import is_explicit, placed, with_every_axis
from adamx.numerics.shards import axes_of, divided, varying
from adamx.numerics.types import Array, PyTree, State
from adamx.trees.align import Aligned
from adamx.trees.arrays import as_parameter, kind
from adamx.trees.columns import tree_of
from adamx.trees.paths import Leaf, path_of, paths_of

__all__ = ["Beginning", "init"]


def init(links: Sequence[Link], params: PyTree) -> State:
    """The state before the first step: the count, and by name the entry of each link."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [as_parameter(path, leaf) for path, leaf in paths]
    chosen = choose(links, functools.partial(paths_of, tree, leaves))
    if any(here is not None for here in chosen):  # selections may overlap, as chain() can't know
        check_order(links, chosen)
    if any(around.packs for link in links for around in link.around):
        kernels.prepare()
    gates_of(links)  # an error for links whose gate is missing
    beginning = Beginning(tree, leaves)
    for name, link, here in zip(names(links), joined(links), chosen, strict=True):
        link.start(beginning, name, here)
    if beginning.observers:
        blank = beginning.state | dict.fromkeys(beginning.observers)
        after = jax.eval_shape(functools.partial(_glance, links, tree), leaves, blank)
        seen = {name: after[name] for name in beginning.observers}
        beginning.state |= jax.tree.map(lambda x: beginning.put(nothing(x.shape, x.dtype)), seen)
    state = _varying(links, tree, leaves, beginning.state)
    return jax.tree.map(with_every_axis, state) if any(map(is_explicit, leaves)) else state


class Beginning:
    """The state before the first step, under construction.

    Attributes:
        count: the count before the first step.
        state: the entries of the links so far.
        observers: the names of observers, whose entries are added last.
    """

    def __init__(self, tree: Any, leaves: list[Any]):
        self.tree, self.leaves = tree, leaves
        self.put = _beside(leaves)
        self.count = self.put(jnp.zeros((), jnp.int32))
        self.state: State = {"count": self.count}
        self.observers: list[str] = []
        # A slot starts from the signal at its stage's place, which is shaped like the parameter
        # unless an earlier stage has changed the shape.
        self.places: list[Any] = list(leaves)

    def append(self, name: str, stage: Stage, here: list[bool] | None) -> None:
        """Add the slots and clocks of a stage."""
        stage = stage.at(self.count)
        stages = variants(stage, len(self.leaves), here, lambda: self.paths)
        rule, *rules = rules_of([stage, *stages])
        kept = {
            slot: tree_of(self.tree, self.column(name, slot, stages, rules, here), self.leaves)
            for slot in rule.slots
        }
        for i, own in enumerate(x.own for x in rules):
            if own and not stage.may_take and (here is None or here[i]):
                self.located(i, name, own, *self.paths[i], {})
        kept |= {key: self.put(clock.start()) for key, clock in rule.clocks.items()}
        if kept:
            self.state[name] = kept
        self.places = reshaped_places(self.places, self.leaves, rules, here)

    def column(
        self,
        name: str,
        slot: str,
        stages: Sequence[Stage],
        rules: Sequence[Rule],
        here: list[bool] | None,
    ) -> list[Any]:
        """A slot's first value for each parameter."""
        return [
            None if place is None else self.started(name, stages[i], rules[i].slots[slot], i)
            for i, place in enumerate(only(here, self.places))
        ]

    @functools.cached_property
    def paths(self) -> list[Leaf]:
        """Path and shape of every parameter."""
        return paths_of(self.tree, self.leaves)

    def params(self, here: list[bool] | None, absent: Any) -> PyTree:
        """The parameters, with ``absent`` in place of those that a link does not apply to."""
        return self.tree.unflatten(only(here, self.leaves, absent))

    def started(self, name: str, stage: Stage, first: Any, index: int) -> Any:
        """A slot's first value; never the parameter itself, which may be donated."""
        place = self.places[index]
        with divided(shards_of(axes_of(self.leaves[index]), [stage])):
            slot = self.located(index, name, first, place)
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if x is place else x, slot)

    def located(self, index: int, stage: str, function: Any, *args: Any) -> Any:
        """Call a function, and add the stage and the parameter to its errors."""
        try:
            return function(*args)
        except StageError as error:
            where = f"{path_of(self.tree, index)} ({kind(self.leaves[index])})"
            raise error.within(stage=stage, parameter=where) from error.__cause__


def _glance(links: Sequence[Link], tree: Any, leaves: list[Any], state: State) -> State:
    """The state after a step in which the parameters serve as gradients, for its shapes."""
    row = Row(links, tree, leaves, Aligned(leaves, []), state, looks=True, glances=True)
    row.pass_along()
    return row.finish()[1]


def _varying(links: Sequence[Link], tree: Any, leaves: list[Any], state: State) -> State:
    """Inside ``shard_map``, the state, marked to vary along the axes it varies along later."""
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
    """A function that puts a scalar on the parameters' devices, as the first step would."""
    for leaf in leaves:
        known = not isinstance(leaf, Tracer) and getattr(leaf, "committed", True)
        sharding = getattr(leaf, "sharding", None) if known else None
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        if isinstance(sharding, (NamedSharding, SingleDeviceSharding)):
            return functools.partial(placed, sharding=sharding)
    return lambda scalar: scalar
