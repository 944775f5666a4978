"""What may be a parameter or a gradient, and how arrays are described."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.errors import StageError, described
from adamx.numerics.formats import is_tiny
from adamx.numerics.types import PyTree
from adamx.trees.paths import path_of, written

__all__ = ["as_parameter", "check_arrays", "check_inexact", "is_eager", "kind", "kinds"]


def kinds(slot: Any) -> str:
    """dtypes and shapes of all arrays of a slot."""
    return ", ".join(kind(leaf) for leaf in jax.tree.leaves(slot))


def kind(array: Any) -> str:
    """dtype and shape, as in ``float32[3,4]``."""
    return f"{jnp.result_type(array)}[{','.join(map(str, jnp.shape(array)))}]"


def check_inexact(what: str, array: Any) -> None:
    """Check that this is a real or complex floating-point array, which can take a step."""
    try:
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    except TypeError:
        raise StageError(
            f"the {what} is an array of {type(array).__module__.partition('.')[0]}, which JAX does "
            "not know; make a JAX array of it: jnp.asarray(…)"
        ) from None
    if not inexact:
        raise StageError(
            f"the {what} has dtype {array.dtype}; a step α·u needs a floating-point (or complex) "
            "array. Convert it, or keep it out of the optimiser: equinox.partition, "
            "optax.masked or a None leaf do"
        )
    if is_tiny(array.dtype) and float(jnp.finfo(array.dtype).min) >= 0:
        raise StageError(f"the {what} has dtype {array.dtype}, which has no negative numbers")


def as_parameter(path: Any, leaf: Any) -> Any:
    """A leaf of the parameters as an array; an error if it can't take a step."""
    try:
        if not hasattr(leaf, "dtype"):
            if not isinstance(leaf, (int, float, complex)):
                raise StageError(f"it is {described(leaf)}, not an array; {_instead_of(leaf)}")
            leaf = jnp.asarray(leaf)
        check_inexact("parameter", leaf)
    except StageError as error:
        raise error.within(parameter=written(path)) from None
    return leaf


def _instead_of(leaf: Any) -> str:
    """The remedy for parameters that JAX does not treat as arrays, for an error."""
    if any(kind.__module__.startswith("flax.nnx") for kind in type(leaf).__mro__):
        return "pass the state of the module: flax.nnx.state(model, flax.nnx.Param)"
    if isinstance(leaf, (str, bytes, functools.partial)) or hasattr(leaf, "__name__"):
        return (
            "keep it out of the optimiser, as equinox.filter(model, equinox.is_inexact_array) does"
        )
    register = "register_dataclass" if dataclasses.is_dataclass(leaf) else "register_pytree_node"
    return (
        "if its class is a container of parameters, JAX does not know it: register it with "
        f"jax.tree_util.{register}, or pass the arrays it holds, in a dict"
    )


ARRAYS = (jax.Array, np.ndarray, np.generic, float, int, complex)


def check_arrays(tree: Any, leaves: list[Any], said: str) -> None:
    """Check that all leaves of a tree are arrays; ``said`` is the error, with ``{}`` for a leaf."""
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, ARRAYS):
            raise StageError(said.format(described(leaf))).within(parameter=path_of(tree, index))


def is_eager(*trees: PyTree) -> bool:
    """Whether all leaves are concrete arrays, so that a computation on them can be compiled."""
    return all(
        isinstance(leaf, ARRAYS) and not isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)
    )
