"""Arrays of which a device holds a shard, inside ``jax.shard_map``.

Inside ``shard_map``, a value's type names the mesh axes along which it differs between devices. JAX
requires equal types in the branches of a ``cond``, and for the carry of a ``scan`` before and after
a step. A parameter that differs along an axis is divided along it; the engine runs a rule on its
shard within :func:`divided`, so that :func:`total` and :func:`elements` are those of the whole
array. Outside ``shard_map`` no value varies, and these functions change nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from adamx.errors import StageError
from adamx.numerics import tiles
from adamx.numerics.types import Array, Inexact, PyTree, Values

__all__ = [
    "axes_of",
    "bound",
    "divided",
    "elements",
    "like",
    "number_of_shard",
    "of_whole",
    "over_shards",
    "refusal",
    "refuse_root",
    "shard_count",
    "total",
    "varying",
]


def bound(axes: Iterable[str]) -> tuple[str, ...]:
    """Those of the axes that are mapped here, by ``shard_map`` or ``pmap``."""
    return tuple(sorted(axis for axis in {*axes} if _is_bound(axis)))


def _is_bound(axis: str) -> bool:
    try:
        jax.lax.axis_index(axis)
    except NameError:
        return False
    return True


def axes_of(tree: PyTree) -> frozenset[str]:
    """The mesh axes along which any array of the tree differs between devices."""
    return frozenset().union(*(_axes(x) for x in jax.tree.leaves(tree)))


def varying(tree: PyTree, axes: Iterable[str]) -> PyTree:
    """The same values, marked to differ along these axes too."""
    return jax.tree.map(lambda x: _cast(x, tuple(sorted({*axes} - _axes(x)))), tree)


def like(x: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """An array of this shape, with the dtype of x, which differs along the same mesh axes."""
    known = {k: y for k in ("manual_axis_type", "vma") if (y := getattr(x, k, None)) is not None}
    return jax.ShapeDtypeStruct(shape, x.dtype, **known)


def _axes(x: Any) -> frozenset[str]:
    if not isinstance(x, Tracer):
        return frozenset()
    kind = jax.typeof(x)
    # JAX 0.6 … 0.9 call them ``vma``, later ones keep them in the ``manual_axis_type``.
    kind = getattr(kind, "manual_axis_type", kind)
    return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


def _cast(x: Any, axes: tuple[str, ...]) -> Any:
    if not axes:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)  # pyright: ignore[reportAttributeAccessIssue] # JAX 0.6


class _Shard(NamedTuple):
    """The array that a rule runs on.

    Attributes:
        axes: the mesh axes along which it is divided.
        sums_later: whether the caller adds the sums of all shards itself.
    """

    axes: tuple[str, ...] = ()
    sums_later: bool = False


_WHOLE = _Shard()
_here: contextvars.ContextVar[_Shard] = contextvars.ContextVar("shard", default=_WHOLE)


@contextlib.contextmanager
def divided(axes: tuple[str, ...], *, sums_later: bool = False) -> Iterator[None]:
    """Let :func:`total` and :func:`elements` be those of an array divided along these axes.

    Args:
        axes: the mesh axes.
        sums_later: whether totals stay those of the shard, which the caller adds with
            :func:`over_shards`.
    """
    token = _here.set(_Shard(axes, sums_later))
    try:
        yield
    finally:
        _here.reset(token)


def total(
    x: Values, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False
) -> Inexact[Array, "*sums"]:
    """The sum over the whole array, of which ``x`` may be a shard, or along some axes.

    Raises:
        StageError: for a sum along some axes of a shard, as it is unknown which axis is divided.
    """
    return of_whole(jnp.sum(x, axis, keepdims=keepdims), x, axis)


def of_whole(sums: PyTree, x: Values, axis: int | tuple[int, ...] | None) -> PyTree:
    """Sums over the whole array, from sums over ``x``, which may be a shard, along ``axis``."""
    shard = _here.get()
    if not shard.axes:
        return sums
    if not _is_whole(x, axis):
        raise StageError(f"it sums an array along axis {axis}, {refusal(shard.axes)}")
    return sums if shard.sums_later else over_shards(sums, shard.axes)


def refuse_root() -> None:
    """Raise StageError inside a sum over all parameters if the array is a shard."""
    shard = _here.get()
    if shard.axes and shard.sums_later:
        raise StageError(
            "its global_sum takes a norm of a shard. What it returns is summed over shards and "
            "parameters: return Squares.of(x), and take the norm of the total"
        )


def refusal(axes: tuple[str, ...]) -> str:
    """Why a rule that needs more than a shard can't run."""
    return (
        "but inside shard_map it gets a shard of an array that is divided along the mesh axis "
        f"{', '.join(map(repr, axes))}. Call update() outside of shard_map, under jit with sharded "
        "arrays, where every stage sees whole arrays"
    )


def _is_whole(x: Values, axis: int | tuple[int, ...] | None) -> bool:
    if axis is None:
        return True
    return {a % x.ndim for a in _tuple(axis)} == {*range(x.ndim)}


def _tuple(axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else axis


def elements(x: Values, axis: int | tuple[int, ...] | None = None) -> float:
    """The number of elements over which :func:`total` sums; a float, as it may exceed int32."""
    if not _is_whole(x, axis):
        assert axis is not None
        return math.prod(float(x.shape[a]) for a in _tuple(axis))
    if (tile := tiles.current()) is not None:
        return tile.elements
    return float(x.size) * shard_count(_here.get().axes)


def over_shards(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    """The sums over all shards, in one collective for all scalars of a dtype."""
    leaves, structure = jax.tree.flatten(tree)
    if not axes:
        return tree
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alike.setdefault((jnp.shape(x), jnp.result_type(x)), []).append(i)
    for places in alike.values():
        stacked = jnp.stack([varying(jnp.asarray(leaves[i]), _of_mesh(axes)) for i in places])
        for i, x in zip(places, jax.lax.psum(stacked, axes), strict=True):
            leaves[i] = x
    return structure.unflatten(leaves)


def _of_mesh(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the axes that belong to a mesh, and not to ``vmap`` or ``pmap``."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in axes if axis in getattr(mesh, "manual_axes", axes))


def number_of_shard(axes: tuple[str, ...]) -> Any:
    """The number of this device's shard among those along these axes."""
    return jax.lax.axis_index(axes).astype(jnp.uint32)


def shard_count(axes: tuple[str, ...]) -> int:
    """Into how many shards an array is divided along these axes."""
    return math.prod(int(jax.lax.psum(1, axis)) for axis in axes)
