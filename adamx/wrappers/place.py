"""Divide the state of a chain over devices, or keep it in the host's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adamx.core import Rule, Signal, Slot, StageError, Step, Transformation
from adamx.core.transformation import links_of
from adamx.errors import as_given
from adamx.links.link import Around
from adamx.links.placement import PLACE, Placement
from adamx.links.slots import Slots
from adamx.numerics.meshes import current_mesh, to_device, to_host
from adamx.numerics.types import Array
from adamx.trees.arrays import kinds
from adamx.trees.packed import is_packed
from adamx.trees.patterns import check_call

__all__ = ["place"]

Where: TypeAlias = str | tuple[str, ...] | PartitionSpec | NamedSharding | None


def place(
    opt: optax.GradientTransformation,
    where: Where | Callable[[str, jax.ShapeDtypeStruct], Where],
    /,
    *,
    min_size: int = 4096,
) -> Transformation:
    r"""Divide the slots of a chain over devices, or keep them in the host's memory.

    ``place(opt, "data")`` divides every slot along the mesh axis ``"data"``, along which parameters
    are not divided: ZeRO-1. In a step, each device gets its part of the gradient and of the
    parameter, updates its part of the slots, and the parts of the update are gathered once. The
    values are those of ``opt``. ``place(opt, "host")`` keeps slots in the pinned memory of the
    host, and moves those of one array to the device when they are used.

    The first axis of a slot is divided that the number of devices divides. Slots without such an
    axis, and slots of fewer than ``min_size`` elements, stay as they are. :func:`memory_usage` of a
    state shows how many bytes a device has.

    Args:
        opt: a chain or a recipe; a placed one too: ``place(place(opt, "data"), "host")``. The
            state of an Optax transformation inside it can't be placed; if it holds arrays of
            ``min_size`` elements, ``init`` raises an error.
        where: one of

            * the name of a mesh axis, or a tuple of names, of the current mesh
              (``jax.set_mesh(mesh)``);
            * ``"host"``;
            * a ``NamedSharding``, which has a mesh: ``NamedSharding(mesh, PartitionSpec("data"))``;
            * a function ``(path, shape)`` that returns one of these for a parameter, None, which
              leaves its slots where the parameter is, or a ``PartitionSpec`` with an entry for each
              axis that is divided further; None as an entry stands for "as the parameter".

            On a mesh with explicit axes (the default of ``jax.make_mesh``), the types of arrays say
            how a parameter is divided. On one with automatic axes they do not, and a parameter must
            not be divided along the same axis of the array.
        min_size: slots of fewer elements are not placed.

    Raises:
        TypeError: if ``opt`` is no transformation, and for another ``where``.
        ValueError: for a ``min_size`` below 1.
        StageError: from ``init`` and ``update``, if no mesh is set or the mesh has no such axis;
            inside of a ``shard_map`` over it; if the parameter is divided along the same axis of an
            array; for a function that returns anything else.

    Source: Rajbhandari et al. 2019 (arXiv 1910.02054), optimiser state partitioning.

    >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec
    >>> mesh = Mesh(jax.devices()[:1], ("data",))
    >>> opt = adamx.place(adamx.adam(1e-3), NamedSharding(mesh, PartitionSpec("data")))
    >>> state = opt.init(jnp.ones((64, 64)))
    >>> tuple(state["scale_by_rms"]["nu"].sharding.spec)
    ('data', None)
    """
    around = Placed(_checked(where), min_size)
    links = links_of(opt, "place")
    return Transformation(tuple(link.within(around) for link in links))


def _checked(where: Any) -> Any:
    """What place() was given, checked."""
    if isinstance(where, NamedSharding) and "host" in str(where.memory_kind):
        raise TypeError(
            f"place() takes no memory kind in a NamedSharding, got {where.memory_kind!r}; "
            'place(place(opt, sharding), "host") divides slots and keeps them on the host'
        )
    if isinstance(where, (str, NamedSharding)):
        return where
    if isinstance(where, PartitionSpec):
        where = tuple(where)  # the first axis that can be divided, along all of these
    is_tuple = isinstance(where, (tuple, list)) and where
    if is_tuple and all(isinstance(x, str) for x in where) and len({*where}) == len(where):
        return tuple(where)
    if callable(where) and not isinstance(where, (type, Mesh)):
        check_call(where, "where", "(path, shape) -> sharding", "", None)
        return where
    raise TypeError(
        "place() takes the name of a mesh axis, a tuple of names, 'host', a NamedSharding, or a "
        f"function (path, shape) that returns one of these; got {as_given(where)}"
    )


class Placed(Around, axis="place"):
    """Where the slots of the links inside are between steps."""

    required = ("place",)
    optional = ("min_size",)
    places = True
    per_parameter = True
    value: tuple[Any, int]

    def __init__(self, where: Any, min_size: int = 4096):
        if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
            raise ValueError(f"min_size must be a whole number ≥ 1, got {as_given(min_size)}")
        super().__init__((where, min_size))

    def of_parameter(self, path: str, shape: jax.ShapeDtypeStruct) -> Around | None:
        where, min_size = self.value
        if callable(where) and not isinstance(where, NamedSharding):
            try:
                where = where(path, shape)
            except Exception as error:
                raise StageError(
                    f"the function of place() raised {type(error).__name__}: {error}. It is called "
                    "as (path, shape), with a string and a jax.ShapeDtypeStruct"
                ).within(parameter=path) from error
            if where is None:
                return None
            if not isinstance(where, (str, PartitionSpec, NamedSharding)) and not (
                isinstance(where, tuple) and all(isinstance(x, str) for x in where)
            ):
                raise StageError(
                    f"the function of place() returned {as_given(where)}, where the name of a mesh "
                    "axis, 'host', a PartitionSpec, a NamedSharding or None is needed"
                ).within(parameter=path)
        if where == "host" and "host" in getattr(current_mesh(), "axis_names", ()):
            raise StageError(
                "place() got 'host', the memory of the host, but a mesh axis has this name, too; "
                "pass ('host',) for the mesh axis, or give the axis another name"
            ).within(parameter=path)
        spec = where.spec if isinstance(where, NamedSharding) else where
        if isinstance(spec, PartitionSpec) and not all(map(_is_entry, spec)):
            raise StageError(
                f"the function of place() returned {spec}; each entry is the name of a mesh axis, "
                "a tuple of names, or None"
            ).within(parameter=path)
        return _At(where, min_size)

    def admit(self, name: str, kept: Any) -> None:
        for x in jax.tree.leaves(kept):
            if jnp.size(x) >= self.value[1]:
                raise StageError(
                    f"place() can't move the state of {name} ({kinds(x)}), which is no stage of "
                    "adamx; put place() around the other stages, chain(place(…), …), or use a "
                    "stage of adamx"
                )

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        return _written(inside, *self.value)

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        where, min_size = self.value
        if isinstance(where, NamedSharding):
            raise TypeError(
                "place(): a NamedSharding holds devices, which can't be written as JSON; pass the "
                "name of the mesh axis, and set the mesh by jax.set_mesh(mesh)"
            )
        written = list(where) if isinstance(where, tuple) else where
        return {"place": write(written, "") if callable(where) else written, "min_size": min_size}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Placed:
        where = row["place"]
        where = read(where, "") if isinstance(where, dict) else where
        return cls(_checked(where), row.get("min_size", 4096))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.value


def _is_entry(entry: Any) -> bool:
    names = entry if isinstance(entry, tuple) else (entry,)
    return entry is None or all(isinstance(name, str) for name in names)


def _written(inside: Sequence[tuple[Any, str]], where: Any, min_size: int) -> str:
    ((_, links),) = inside
    size = f", min_size={min_size}" if min_size != 4096 else ""
    return f"place({links}, {where!r}{size})"


class _At(Around):
    """The placement of one parameter's slots."""

    places = True
    value: tuple[Any, int]

    def __init__(self, where: Any, min_size: int):
        super().__init__((where, min_size))

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        return _written(inside, *self.value)

    def surround(self, rule: Rule) -> Rule:
        where, min_size = self.value
        moved = _Moved(rule, where if where == "host" else _placement(where), min_size)
        return dataclasses.replace(
            rule,
            update=moved.update,
            slots={name: moved.start(Slot.of(slot)) for name, slot in rule.slots.items()},
            **rule.reads(lambda signal, slots: (moved.signal(signal), moved.into(slots))),
        )


@dataclasses.dataclass(frozen=True)
class _Moved:
    """A rule whose slots are elsewhere between steps."""

    rule: Rule
    where: Placement | str
    min_size: int

    def start(self, slot: Slot) -> Slot:
        return dataclasses.replace(slot, start=lambda param: self.out(slot.start(param)))

    def update(self, signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        signal, after = self.rule.update(self.signal(signal), self.into(slots), step)
        return signal, self.out(after)

    def signal(self, signal: Signal) -> Signal:
        """The part of the signal that belongs to the part of the slots."""
        if isinstance(self.where, str) or signal.update.size < self.min_size:
            return signal
        return signal.mapped(self.where.put).with_notes(**{PLACE: self.where})

    def out(self, slots: Any) -> Any:
        """Slots on their way out of the rule."""
        if isinstance(self.where, Placement):
            self.where.check()  # also if no slot is large enough
        return jax.tree.map(lambda x: self.one(x, to_host), slots, is_leaf=is_packed)

    def into(self, slots: Any) -> Any:
        """Slots on their way into the rule."""
        return jax.tree.map(lambda x: self.one(x, to_device), slots, is_leaf=is_packed)

    def one(self, x: Any, move: Callable[[Array], Array]) -> Any:
        """A slot, or all arrays of a packed one."""
        if max(jnp.size(part) for part in jax.tree.leaves(x)) < self.min_size:
            return x
        return jax.tree.map(move if isinstance(self.where, str) else self.where.put, x)


def _placement(where: str | tuple[str, ...] | PartitionSpec | NamedSharding) -> Placement:
    if isinstance(where, (str, tuple)) and not isinstance(where, PartitionSpec):
        return Placement((where,), bound=False)
    mesh, spec = (None, where) if isinstance(where, PartitionSpec) else (where.mesh, where.spec)
    return Placement(tuple(spec), bound=mesh is None or len(spec) != 1, mesh=mesh)
