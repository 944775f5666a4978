"""Where the arrays of a stage are between steps, relative to their parameter."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from adamx.errors import StageError
from adamx.numerics.meshes import current_mesh, free_axes, is_explicit, names_of, parts_of, spec_of
from adamx.numerics.types import Array

__all__ = ["PLACE", "Entry", "Placement"]

PLACE = "place"
"""The note of a signal whose arrays are divided further than the parameter."""

Entry: TypeAlias = str | tuple[str, ...] | None
"""The mesh axes along which an axis of an array is divided."""

_FREE = PartitionSpec.UNCONSTRAINED


@dataclasses.dataclass(frozen=True)
class Placement:
    """How arrays are divided over a mesh, in addition to how their parameter is divided.

    Attributes:
        entries: for each axis of an array, the mesh axes; None where it is divided as the parameter
            is. A single entry that is not bound to an axis (``bound=False``) divides the first axis
            that it can.
        bound: whether each entry belongs to the axis at its place.
        mesh: the mesh; None for the current one (``jax.set_mesh``).
    """

    entries: tuple[Entry, ...]
    bound: bool
    mesh: Any = None

    def of_shape(self, shape: tuple[int, ...]) -> tuple[Entry, ...] | None:
        """The entries for an array; None if it can't be divided."""
        sizes = self.check()
        if self.bound:
            own = (*self.entries, *(None for _ in shape[len(self.entries) :]))
            fits = len(own) == len(shape) and all(
                n and n % parts_of(entry, sizes) == 0 for n, entry in zip(shape, own, strict=True)
            )
            return own if fits else None
        (entry,) = self.entries
        for axis, n in enumerate(shape):
            if n and n % parts_of(entry, sizes) == 0:
                return (*(None for _ in range(axis)), entry, *(None for _ in shape[axis + 1 :]))
        return None

    def check(self) -> dict[str, int]:
        """The lengths of the mesh's axes, if they are those of the entries.

        Raises:
            StageError: if no mesh is known, if it has no such axis, or inside of a shard_map.
        """
        mesh = self.mesh if self.mesh is not None else current_mesh()
        sizes = dict(mesh.shape) if mesh is not None else {}
        names = [name for entry in self.entries for name in names_of(entry)]
        if unknown := [name for name in names if name not in sizes]:
            why = f"the mesh has the axes {', '.join(map(repr, sizes))}"
            if not sizes:
                why = "no mesh is set: use jax.set_mesh(mesh), or pass a NamedSharding"
            raise StageError(f"place() got the mesh axis {unknown[0]!r}, but {why}")
        manual = {*names} & {*getattr(current_mesh(), "manual_axes", ())}
        if manual:
            raise StageError(
                f"place() can't divide arrays along the mesh axis {sorted(manual)[0]!r} inside of "
                "a shard_map over it, where every array is a shard already; call init() and "
                "update() outside of shard_map"
            )
        return sizes

    def put(self, x: Any) -> Any:
        """The array, divided further; as it is where it can't be."""
        entries = self.of_shape(np.shape(x)) if np.ndim(x) else None
        if entries is None or self.is_done(x, entries):
            return x
        names = {name for entry in entries for name in names_of(entry)}
        if is_explicit(x) and not names & {*free_axes()}:
            mesh = jax.typeof(x).sharding.mesh if isinstance(x, Tracer) else x.sharding.mesh
            spec = PartitionSpec(*_both(spec_of(x), entries))
            return jax.sharding.reshard(x, NamedSharding(mesh, spec))
        if isinstance(x, Tracer):
            return self._constrained(x, [_FREE if e is None else e for e in entries])
        own = x.sharding if isinstance(x.sharding, NamedSharding) else None
        mesh = own.mesh if own else self.mesh or jax.sharding.get_mesh()
        spec = _both(own.spec if own else (), entries)
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def is_done(self, x: Any, entries: tuple[Entry, ...]) -> bool:
        """Whether the array is divided along these mesh axes already, which its type may tell.

        Raises:
            StageError: if it is, but along another axis of the array than a function says.
        """
        if isinstance(x, Tracer) and not is_explicit(x):
            return False
        sharding = jax.typeof(x).sharding if is_explicit(x) else x.sharding
        spec = sharding.spec if isinstance(sharding, NamedSharding) else ()
        used = {name: axis for axis, entry in enumerate(spec) for name in names_of(entry)}
        for axis, entry in enumerate(entries):
            for name in names_of(entry):
                if name in used and self.bound and used[name] != axis:
                    raise StageError(
                        f"place() would divide axis {axis} along the mesh axis {name!r}, along "
                        f"which axis {used[name]} of the parameter is divided already; return None "
                        "for this parameter, or the name of another mesh axis"
                    )
                if name in used:
                    return True
        return False

    def back(self, x: Array) -> Array:
        """An array of the shape of the parameter, divided as the parameter is."""
        entries = self.of_shape(np.shape(x))
        if entries is None or not isinstance(x, Tracer) or is_explicit(x):
            return x
        return self._constrained(x, [_FREE if e is None else None for e in entries])

    def _constrained(self, x: Array, spec: list[Any]) -> Array:
        sharding: PartitionSpec | Sharding = PartitionSpec(*spec)
        if current_mesh() is None:
            sharding = NamedSharding(Mesh(self.mesh.devices, self.mesh.axis_names), sharding)
        return jax.lax.with_sharding_constraint(x, sharding)


jax.tree_util.register_static(Placement)


def _both(spec: Any, entries: tuple[Entry, ...]) -> list[Any]:
    """A parameter's spec with further axes."""
    own = (*spec, *(None for _ in entries[len(spec) :]))
    for axis, (before, entry) in enumerate(zip(own, entries, strict=True)):
        if before is not None and entry is not None and names_of(before) != names_of(entry):
            raise StageError(
                f"place() would divide axis {axis} along {entry!r}, and the parameter is divided "
                f"there along {before!r} already; choose another axis of the array by a function "
                "that returns a PartitionSpec, such as PartitionSpec(None, 'data')"
            )
    return [y if y is not None else x for x, y in zip(own, entries, strict=True)]
