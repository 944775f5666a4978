"""The state before the first step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from adamx.core.engine.row import Row, only, reshape_places
from adamx.core.engine.varying import axes_of, varying
from adamx.core.link import Link, choose
from adamx.core.naming import names
from adamx.core.observer import nothing
from adamx.core.stage import Rule, joined, kind
from adamx.core.trees import Aligned, as_parameter, path_of, paths_of
from adamx.errors import StageError
from adamx.numerics.types import Array, PyTree, State

__all__ = ["Beginning", "init"]


def init(links: Sequence[Link], params: PyTree) -> State:
    """The count, and under each link's name what it keeps."""
    links = joined(links)
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [as_parameter(path, leaf) for path, leaf in paths]
    chosen = choose(links, functools.partial(paths_of, tree, leaves))
    beginning = Beginning(tree, leaves)
    for name, link, here in zip(names(links), links, chosen, strict=True):
        link.start(beginning, name, here)
    if beginning.observers:
        blank = beginning.state | dict.fromkeys(beginning.observers)
        after = jax.eval_shape(functools.partial(_glance, links, tree), leaves, blank)
        seen = {name: after[name] for name in beginning.observers}
        beginning.state |= jax.tree.map(lambda x: beginning.put(nothing(x.shape, x.dtype)), seen)
    return _varying(links, tree, leaves, beginning.state)


class Beginning:
    """The state as it comes about, from link to link.

    Attributes:
        count: the count before the first step.
        state: what the links so far keep.
        observers: the names of links that keep what they will have seen.
    """

    def __init__(self, tree: Any, leaves: list[Any]):
        self.tree, self.leaves = tree, leaves
        self.put = _beside(leaves)
        self.count = self.put(jnp.zeros((), jnp.int32))
        self.state: State = {"count": self.count}
        self.observers: list[str] = []
        # What a slot starts from: the signal at its place, which is shaped like the parameter
        # unless a stage in front has given it another shape.
        self.places: list[Any] = list(leaves)

    def of_rule(self, name: str, rule: Rule, here: list[bool] | None) -> None:
        """The slots and clocks of a stage."""
        kept = {
            slot: self.tree.unflatten(
                None if place is None else self.started(first, place, i, name)
                for i, place in enumerate(only(here, self.places))
            )
            for slot, first in rule.slots.items()
        }
        kept |= {key: self.put(clock.start()) for key, clock in rule.clocks.items()}
        if kept:
            self.state[name] = kept
        reshape_places(self.places, rule, here)

    def params(self, here: list[bool] | None, absent: Any) -> PyTree:
        """The parameters, with ``absent`` in place of those that a link is not for."""
        return self.tree.unflatten(only(here, self.leaves, absent))

    def started(self, first: Any, place: Any, index: int, stage: str) -> Any:
        """A slot's first value; where it is the parameter, a copy: that may be donated."""
        try:
            slot = first(place)
        except StageError as error:
            where = f"{path_of(self.tree, index)} ({kind(place)})"
            raise error.within(stage=stage, parameter=where) from None
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if x is place else x, slot)


def _glance(links: Sequence[Link], tree: Any, leaves: list[Any], state: State) -> State:
    """What stages and observers would keep after a step along the parameters."""
    row = Row(links, tree, leaves, Aligned(leaves, []), state, looks=True, glances=True)
    for name, link, here in row.links():
        link.run(row, name, here)
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
