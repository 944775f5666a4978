"""Inside ``jax.shard_map``, a value's type names the mesh axes along which it differs.

JAX requires equal types in the branches of a ``cond``, and for the carry of a ``scan`` before and
after a step. Outside ``shard_map`` no value varies, and these functions change nothing.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.core import Tracer

from adamx.numerics.types import PyTree

__all__ = ["axes_of", "varying"]


def axes_of(tree: PyTree) -> frozenset[str]:
    """The mesh axes along which any array of the tree differs between devices."""
    return frozenset().union(*(_axes(x) for x in jax.tree.leaves(tree)))


def varying(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The same values, marked to differ along these axes too."""
    return jax.tree.map(lambda x: _cast(x, tuple(sorted(axes - _axes(x)))), tree)


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
