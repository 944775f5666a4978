"""Meshes with explicit axes, where the type of every value says how it is divided.

An operation on explicit axes must be told how to divide its result if its arguments do not decide
it. Rules are written for arrays, and do not know of meshes. They run with automatic axes, for which
XLA decides, and their results get the shardings that are known in advance: those of the parameters
and of the old state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from adamx.numerics.types import PyTree

__all__ = [
    "automatic",
    "bare",
    "current_mesh",
    "device_kind",
    "divided_along",
    "divided_like",
    "free_axes",
    "gathered",
    "is_explicit",
    "is_on_host",
    "is_undivided",
    "names_of",
    "on_device",
    "on_shares",
    "parts_along",
    "parts_of",
    "placed",
    "platform",
    "spec_of",
    "to_device",
    "to_host",
    "whole",
    "with_every_axis",
]


def placed(array: Any, sharding: Any) -> Any:
    """A copy of the array on these devices; each of several processes gives its own part of it.

    ``jax.device_put`` would compare the arrays of all processes, in which NaN differs from NaN.
    """
    is_known = isinstance(array, jax.Array) and not isinstance(array, Tracer)
    local = not isinstance(array, jax.Array) or (is_known and array.is_fully_addressable)
    if sharding.is_fully_addressable or not local:
        return jax.device_put(array, sharding, may_alias=False if is_known else None)
    own = np.asarray(array)
    return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])


def is_on_host(x: Any) -> bool:
    """Whether an array is in the host's memory, where its device has one of its own."""
    if isinstance(x, Tracer):
        return hasattr(jax, "memory") and jax.typeof(x).memory_space == jax.memory.Space.Host
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, Sharding):
        return False
    usual = next(iter(sharding.device_set)).default_memory().kind
    return sharding.memory_kind != usual and "host" in str(sharding.memory_kind)


def to_host(x: jax.Array) -> jax.Array:
    """The array in the host's pinned memory, divided as it is."""
    return jax.device_put(x, _space("Host", "pinned_host"))


def to_device(x: jax.Array) -> jax.Array:
    """The array in the device's memory, divided as it is."""
    return jax.device_put(x, _space("Device", "device"))


def on_device(x: Any) -> Any:
    """The array, moved to the device if it is in the host's memory."""
    return to_device(x) if is_on_host(x) else x


def _space(name: str, kind: str) -> Any:
    """A space of memory; JAX before 0.7 knows its kind only."""
    if hasattr(jax, "memory"):
        return getattr(jax.memory.Space, name)
    from jax._src import sharding_impls

    return vars(sharding_impls)["TransferToMemoryKind"](kind)


def bare(tree: PyTree) -> PyTree:
    """The shapes and dtypes of arrays, without their shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def spec_of(x: Any) -> PartitionSpec:
    """How the type of an array divides it: a spec with an entry for each of its axes."""
    spec = jax.typeof(x).sharding.spec
    return PartitionSpec(*spec, *(None for _ in range(np.ndim(x) - len(spec))))


def is_explicit(x: Any) -> bool:
    """Whether the type of a value belongs to a mesh with explicit axes."""
    return isinstance(x, jax.Array) and bool(_explicit_axes(jax.typeof(x).sharding.mesh))


def with_every_axis(x: Any) -> Any:
    """The same array, on a mesh of explicit axes with an entry for each axis in its spec.

    A step returns such specs, and JAX compiles another program for a shorter one.
    """
    if isinstance(x, Tracer) or not is_explicit(x) or len(x.sharding.spec) == x.ndim:
        return x
    return jax.device_put(x, NamedSharding(x.sharding.mesh, spec_of(x)))


def current_mesh() -> Any:
    """The mesh of ``jax.set_mesh``, or of the types of arrays; None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh is None or mesh.empty else mesh


def platform() -> str:
    """The platform for which a program is traced, such as "cpu" or "tpu".

    It is that of the current mesh, which may be the description of a machine elsewhere, or else
    that of JAX's default device.
    """
    return _of_device("platform")


def device_kind() -> str:
    """The kind of device for which a program is traced, such as "TPU v5 lite"."""
    return _of_device("device_kind")


def _of_device(attribute: str) -> str:
    known = getattr(getattr(current_mesh(), "abstract_device", None), attribute, None)
    if known is not None:
        return known
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    return getattr(device, attribute)


def free_axes() -> tuple[str, ...]:
    """The axes of the current mesh along which arrays may be divided by constraints."""
    mesh = current_mesh()
    if mesh is None:
        return ()
    taken = {*getattr(mesh, "manual_axes", ()), *_explicit_axes(mesh)}
    return tuple(name for name, n in mesh.shape.items() if n > 1 and name not in taken)


def is_undivided() -> bool:
    """Whether XLA divides no array here: on one device, or where ``shard_map`` has divided all."""
    mesh = current_mesh()
    if mesh is None:
        return jax.device_count() == 1
    manual = {*getattr(mesh, "manual_axes", ())}
    return all(n == 1 or name in manual for name, n in mesh.shape.items())


def parts_along(axes: tuple[str, ...]) -> int:
    """Into how many parts an array is divided along these axes of the current mesh."""
    return math.prod(current_mesh().shape[name] for name in axes) if axes else 1


def divided_along(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The array, divided along its first axis, and whole along all others."""
    rest = (None for _ in range(x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))


def gathered(x: jax.Array) -> jax.Array:
    """The array, whole along its first axis, and divided along the others as XLA likes."""
    free = (PartitionSpec.UNCONSTRAINED for _ in range(x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, *free))


def whole(x: jax.Array) -> jax.Array:
    """The array, whole on every device."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def on_shares(
    function: Callable[[PyTree, Any], PyTree], arrays: PyTree, also: Any, axes: tuple[str, ...]
) -> PyTree:
    """``function(arrays, also)``, where each device sees its share of the arrays' first axis.

    Nothing that the function does needs another device.
    """
    if not axes:
        return function(arrays, also)
    divided = PartitionSpec(axes)
    run: Any = jax.shard_map(
        function,
        in_specs=(divided, PartitionSpec()),
        out_specs=divided,
        axis_names={*axes},
    )
    return run(arrays, also)


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    return tuple(getattr(mesh, "explicit_axes", ()))


def automatic(function: Callable[..., Any], given: tuple[Any, ...], specs: PyTree) -> Any:
    """``function(*given)``, with automatic axes if an argument belongs to a mesh of explicit ones.

    Args:
        function: a function of pytrees.
        given: its arguments.
        specs: a function without arguments that gives the ``PartitionSpec`` of every result, as
            a tree with the leaves of the results.
    """
    leaves, tree = jax.tree.flatten(given)
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
    explicit = [leaves[i] for i in places if is_explicit(leaves[i])]
    if not explicit or not hasattr(jax.sharding, "auto_axes"):  # JAX 0.6 has none
        return function(*given)
    made: list[Any] = []

    def inside(*arrays: jax.Array) -> list[Any]:
        filled = list(leaves)
        for i, x in zip(places, arrays, strict=True):
            filled[i] = x
        found, structure = jax.tree.flatten(function(*tree.unflatten(filled)))
        made.append(structure)
        return found

    with _within(jax.typeof(explicit[0]).sharding.mesh):
        axes = _explicit_axes(current_mesh())
        run = jax.sharding.auto_axes(inside, axes=axes, out_sharding=jax.tree.leaves(specs()))
        found: Any = run(*(leaves[i] for i in places))
    return jax.tree.unflatten(made[-1], found)


@contextlib.contextmanager
def _within(mesh: Any) -> Iterator[None]:
    """The mesh of the types of arrays, as the current one, if none is set."""
    if current_mesh() is not None:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def divided_like(x: Any, shape: tuple[int, ...]) -> PartitionSpec:
    """How an array of this shape is divided if it belongs to ``x``: along the axes that it can be.

    The codes of a block are divided as their elements are; an array with other axes is not.
    """
    spec = spec_of(x)
    if len(shape) != np.ndim(x):
        return PartitionSpec(*(None for _ in shape))
    sizes = jax.typeof(x).sharding.mesh.shape
    return PartitionSpec(
        *(
            entry if n % parts_of(entry, sizes) == 0 else None
            for n, entry in zip(shape, spec, strict=True)
        )
    )


def names_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of an entry of a spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def parts_of(entry: Any, sizes: Any) -> int:
    """Into how many parts an entry of a spec divides an axis, on a mesh of these sizes."""
    return math.prod(sizes[name] for name in names_of(entry))
