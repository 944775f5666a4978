"""Which axes of an array are a matrix."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp

from adamx.errors import StageError, as_given
from adamx.numerics.per_parameter import PerParameter
from adamx.numerics.types import Array

__all__ = ["MatrixAxes", "MatrixView", "adjoint", "kernel_axes", "matrix_view", "product"]

MatrixAxes: TypeAlias = Annotated[
    str | tuple[Any, ...] | Callable[..., Any], PerParameter("matrix")
]
"""Which axes are the matrix: a name, ``(rows, columns)`` or ``(rows, columns, parts)`` with tuples
of axes for rows and columns, or a function from a shape, or from a path and a shape, to one of
these."""

_NAMES = "'matrix', 'last', 'heads'"


def adjoint(x: Array) -> Array:
    """The conjugate transpose of each matrix of a stack."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def product(x: Array, y: Array) -> Array:
    """A product of matrices in full precision, also where the default is less."""
    return jnp.matmul(x, y, precision="highest")


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """An array, seen as a stack of matrices.

    Attributes:
        whole: the array's shape.
        batch, rows, columns: the axes that form the stack, the rows and the columns.
        parts: the number of matrices side by side in the columns, which become a part of the stack.
    """

    whole: tuple[int, ...]
    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    parts: int = 1

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """``(*batch, rows, columns)``, the shape of the stack; parts are behind the batch."""
        rows, columns = (math.prod(self._sizes(x)) for x in (self.rows, self.columns))
        parts = (self.parts,) if self.parts > 1 else ()
        return (*self._sizes(self.batch), *parts, rows, columns // self.parts)

    @property
    def is_array(self) -> bool:
        """Whether the stack is the array itself."""
        order = (*self.batch, *self.rows, *self.columns)
        return self.shape == self.whole and order == tuple(range(len(order)))

    def matrices(self, x: Array) -> Array:
        """The array as a stack of matrices."""
        if self.is_array:
            return x
        *batch, rows, columns = self.shape
        stack = jnp.transpose(x, (*self.batch, *self.rows, *self.columns))
        if self.parts == 1:
            return stack.reshape(self.shape)
        split = stack.reshape(*batch[:-1], rows, self.parts, columns)
        return jnp.swapaxes(split, -3, -2)

    def array(self, stack: Array) -> Array:
        """The stack of matrices as the array."""
        if self.is_array:
            return stack
        if self.parts > 1:
            stack = jnp.swapaxes(stack, -3, -2)
        order = (*self.batch, *self.rows, *self.columns)
        return jnp.transpose(
            stack.reshape(self._sizes(order)), sorted(range(len(order)), key=order.__getitem__)
        )

    def _sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.whole[axis] for axis in axes)


def matrix_view(axes: MatrixAxes, shape: tuple[int, ...]) -> MatrixView | None:
    """How an array of this shape is seen as a stack of matrices; None with fewer than two axes.

    Kernels in JAX have the shape [in, out], so the rows of a matrix are its inputs.

    Args:
        axes: one of

            * ``"matrix"``: of two or three axes the last two, and a leading one is a stack of
              layers; of four or more, as in a convolution's kernel [height, width, in, out], all
              but the last one are the rows;
            * ``"last"``: the last two axes; all others are a stack;
            * ``"heads"``: of an attention's kernel [embed, heads, head], one matrix for every head;
            * ``(rows, columns)``, two tuples of axes; all others are a stack. ``((0,), (1, 2))``
              are the heads of an attention side by side in one matrix. ``(rows, columns, 3)``
              splits the columns into 3 matrices, for queries, keys and values in one kernel;
            * a function from the shape to one of these. (Stages also take a function of the
              parameter's path and shape, such as :func:`kernel_axes`.)
        shape: the array's shape.

    Raises:
        StageError: for other axes, and for axes that the shape does not have.

    >>> matrix_view("matrix", (3, 3, 16, 32)).shape
    (144, 32)
    >>> matrix_view(((0,), (1,), 3), (8, 12)).shape
    (3, 8, 4)
    """
    if callable(axes):
        axes = axes(shape)
    count = len(shape)
    if count < 2:
        return None
    if axes == "matrix":
        axes = "last" if count < 4 else (tuple(range(count - 1)), (count - 1,))
    if axes == "last":
        axes = (count - 2,), (count - 1,)
    if axes == "heads":
        if count < 3:
            raise StageError(
                f"axes='heads' takes arrays with three axes [embed, heads, head], got {shape}"
            )
        axes = (count - 3,), (count - 1,)
    rows, columns, parts = _checked(axes, shape)
    rest = tuple(axis for axis in range(count) if axis not in rows and axis not in columns)
    view = MatrixView(shape, rest, rows, columns, parts)
    width = math.prod(shape[axis] for axis in columns)
    if width % parts:
        raise StageError(
            f"axes={axes} split {width} columns into {parts} matrices, which leaves "
            f"{width % parts} over; the array has the shape {shape}"
        )
    return view


def _checked(axes: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    count = len(shape)
    is_tuple = isinstance(axes, tuple) and len(axes) in (2, 3)
    if not is_tuple or not all(isinstance(x, tuple) and x for x in axes[:2]):
        raise StageError(
            f"axes must be {_NAMES}, (rows, columns) or (rows, columns, parts) with tuples of "
            f"axes, or a function from a shape to one of these; got {as_given(axes)}"
        )
    chosen = [*axes[0], *axes[1]]
    if not all(type(x) is int and -count <= x < count for x in chosen):
        raise StageError(f"axes={axes} are not all axes of an array of shape {shape}")
    rows, columns = (tuple(axis % count for axis in x) for x in axes[:2])
    if len({*rows, *columns}) < len(chosen):
        raise StageError(f"axes={axes} name an axis of an array of shape {shape} twice")
    parts = axes[2] if len(axes) == 3 else 1
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise StageError(f"the number of parts must be a whole number ≥ 1, got {as_given(parts)}")
    return rows, columns, parts


_ATTENTION = re.compile(r"attention|attn|mha", re.IGNORECASE)
_INPUTS = re.compile(r"([qkv]|query|key|value)(_proj|_projection|_kernel)?")
_OUTPUTS = re.compile(r"(o|out|output)(_proj|_projection|_kernel)?")
_NAMES_OF_ARRAYS = ("kernel", "weight", "w")


def kernel_axes(path: str, shape: jax.ShapeDtypeStruct) -> MatrixAxes:
    """Which axes of a parameter are the matrix, by its path and shape; the default of stages.

    The kernels of attention in Flax have three axes: [embed, heads, head] for queries, keys and
    values, and [heads, head, embed] for the output. They are recognised by their names (``query``,
    ``key``, ``value``, ``q_proj``, …; and ``out`` or ``o_proj`` inside of an ``attention`` or
    ``attn``) and by their sizes, as heads · head is at most 1.5 embed. Such a kernel is one matrix,
    embed × (heads · head) or (heads · head) × embed. An axis in front of it is a stack of layers.
    All others are ``"matrix"``, see :func:`matrix_view`.

    Args:
        path: the parameter's path, ``"block_0/attention/query/kernel"``.
        shape: its shape, a ``jax.ShapeDtypeStruct``.

    >>> query, out = (jax.ShapeDtypeStruct(x, "float32") for x in ((64, 4, 16), (4, 16, 64)))
    >>> matrix_view(kernel_axes("attention/query/kernel", query), query.shape).shape
    (64, 64)
    >>> matrix_view(kernel_axes("attention/out/kernel", out), out.shape).shape
    (64, 64)
    >>> kernel_axes("layers/dense/kernel", jax.ShapeDtypeStruct((12, 64, 256), "float32"))
    'matrix'
    """
    if len(shape.shape) < 3:
        return "matrix"
    *_, first, second, third = shape.shape
    *within, name = _modules(path)
    if _INPUTS.fullmatch(name) and second * third <= 1.5 * first:
        return (-3,), (-2, -1)
    is_attention = any(map(_ATTENTION.search, within))
    if is_attention and _OUTPUTS.fullmatch(name) and first * second <= 1.5 * third:
        return (-3, -2), (-1,)
    return "matrix"


def _modules(path: str) -> list[str]:
    """The names of the modules around an array, without the name of the array in its module."""
    parts = path.split("/")
    return parts[:-1] if len(parts) > 1 and parts[-1] in _NAMES_OF_ARRAYS else parts
