"""The shardings of a state, before it is made."""

from __future__ import annotations

from typing import Any

import jax
import optax

from adamx.core.transformation import links_of
from adamx.numerics.types import PyTree

__all__ = ["state_shardings"]


def state_shardings(opt: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Shapes and shardings of the state that ``jax.jit(opt.init)`` makes, without making it.

    Args:
        opt: a chain or a recipe.
        params: the parameters, or ``jax.ShapeDtypeStruct`` with shardings.

    Returns:
        A tree like the state, of ``jax.ShapeDtypeStruct`` with shardings: a target for Orbax,
        ``jax.tree.map(lambda x: x.sharding, …)`` for ``out_shardings`` of a step, and what
        :func:`memory_usage` takes.

    Raises:
        TypeError: if ``opt`` is no transformation.

    >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec
    >>> sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec("data"))
    >>> params = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)
    >>> tuple(adamx.state_shardings(adamx.adam(1e-3), params)["scale_by_rms"]["nu"].sharding.spec)
    ('data',)
    """
    links_of(opt, "state_shardings")
    lowered = jax.jit(opt.init).lower(params)
    shapes, shardings = lowered.out_info, lowered.compile().output_shardings
    return jax.tree.map(_with, shapes, shardings)


def _with(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
