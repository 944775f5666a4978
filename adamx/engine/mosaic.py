"""Kernels for TPUs, written in Pallas and compiled by Mosaic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from adamx.numerics.jaxprs import primitives
from adamx.numerics.shards import like

if TYPE_CHECKING:
    from adamx.engine.kernels import Kernel

__all__ = ["Mosaic"]

ROWS, LANES = 32, 128
"""A tile of bytes in the memory of a TPU; tiles of wider numbers have fewer rows."""

SMALL = ("TPU v2", "TPU v3", "TPU v4")
"""Kinds of TPUs whose cores have 16 MiB of fast memory, too little for tiles of long rows."""

LIMIT, BUDGET = 48 * 2**20, 24 * 2**20
"""Bytes of fast memory that a kernel may take (all other TPUs have 64 MiB or more), and an estimate
of what it takes at most."""

ELEMENTS = 2**16
"""Elements of a tile: a few hundred kilobytes for each array, which are moved at full speed. Mosaic
compiles a kernel for larger ones more slowly, as it unrolls all loops over a tile."""

DTYPES = frozenset(
    map(jnp.dtype, ("float32", "bfloat16", "float8_e4m3fn", "int32", "int8", "uint32", "uint8"))
)
"""Dtypes of arrays that a kernel reads and writes."""

BLOCK = 32
"""The shortest block of a codec in kernels; for shorter ones, values are moved between lanes."""

VALUES = 8
"""An estimate of the arrays of float32 that a kernel computes from its tiles and still needs."""

_KNOWN = """
    abs add and atan2 bitcast_convert_type broadcast_in_dim clamp concatenate convert_element_type
    copy custom_jvp_call div eq exp ge gt integer_pow iota is_finite jit le log lt max min mul ne
    neg not or pjit pow reduce_max reshape rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign slice sqrt square squeeze stop_gradient sub xor
"""
PRIMITIVES = frozenset(_KNOWN.split())
"""What Mosaic, the compiler of kernels for TPUs, can compile; other blocks are left to XLA."""


class Mosaic:
    """Kernels for TPUs.

    Attributes:
        interpret: whether JAX's interpreter of Pallas runs them, on any device.
    """

    packed_only = True  # XLA fuses what does not decode slots
    least = together = 0
    takes_sums = False

    def __init__(self, *, interpret: bool = False):
        self.interpret = interpret

    def tiling(
        self, known: Sequence[Any], *, by_columns: bool
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The shapes of the arrays as matrices and of their tiles; None if there are none.

        Args:
            known: all arrays and results; the first has the parameter's shape.
            by_columns: whether rows may be divided.
        """
        *outer, columns = np.shape(known[0])
        if not _is_matrix(outer, columns):
            return None
        if any([*np.shape(x)[:-1]] != outer or not np.size(x) for x in known):
            return None
        rows = math.prod(outer)
        forms = [like(x, (rows, np.shape(x)[-1])) for x in known]
        tile = tile_shape(forms, by_columns=by_columns)
        return None if tile is None else ((rows, columns), tile)

    def has_whole_blocks(self, shape: Sequence[int], found: Any, program: Any) -> bool:
        """Whether the blocks of a codec are whole in a tile, which has whole rows or lanes."""
        return True

    def takes(self, x: Any) -> bool:
        """Whether a kernel reads and writes arrays, or reads numbers, like this one."""
        return jnp.result_type(x) in DTYPES if np.ndim(x) else _is_word(x)

    def is_ready(self, kernel: Kernel) -> bool:
        """Whether the kernel is compiled; XLA compiles it with the program."""
        return True

    def call(
        self, kernels: Sequence[Kernel], given: Sequence[tuple[list[Any], list[Any]]]
    ) -> list[list[Any]]:
        """The results of kernels for their arrays and numbers."""
        return [
            kernel.compiled(arrays, numbers)
            for kernel, (arrays, numbers) in zip(kernels, given, strict=True)
        ]

    def compile(self, kernel: Kernel) -> Callable[..., Any] | None:
        """The kernel as a function of arrays and numbers; None if Mosaic can't compile it."""
        if not primitives(kernel.program.jaxpr) <= PRIMITIVES:
            return None
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu

        compiler: Any = getattr(tpu, "CompilerParams", None) or vars(tpu)["TPUCompilerParams"]
        (rows, columns), (height, width) = kernel.matrix, kernel.tile
        count = len(kernel.arrays)
        block = jaxpr_as_fun(kernel.program)
        avals = kernel.program.in_avals[2 + count :]

        def on_tile(*refs: Any) -> None:
            start = pl.program_id(0) * height, pl.program_id(1) * width
            rest = refs[count:]
            numbers = [
                _from_word(x[0, 0], aval.dtype) for x, aval in zip(rest, avals, strict=False)
            ]
            made = block(*start, *(x[...] for x in refs[:count]), *numbers)
            for ref, x in zip(rest[len(avals) :], made, strict=True):
                ref[...] = x

        def spec(part: Any) -> pl.BlockSpec:
            return pl.BlockSpec(part.shape, lambda i, j: (i, j))

        given, parts = kernel.program.in_avals[2 : 2 + count], kernel.program.out_avals
        moved = sum(x.size * x.dtype.itemsize for x in (*given, *parts))
        grid = -(-rows // height), -(-columns // width)
        run = pl.pallas_call(
            on_tile,
            grid=grid,
            in_specs=[*map(spec, given), *[pl.BlockSpec(memory_space=tpu.SMEM)] * len(avals)],
            out_specs=[*map(spec, parts)],
            out_shape=[like(x, (rows, x.shape[-1])) for x in kernel.made],
            input_output_aliases=kernel.aliases,
            interpret=self.interpret,
            cost_estimate=pl.CostEstimate(
                flops=len(kernel.program.eqns) * rows * columns,
                transcendentals=0,
                bytes_accessed=rows * columns * moved // (height * width),
            ),
            compiler_params=compiler(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=LIMIT
            ),
        )

        @jax.jit
        def of_matrices(arrays: Any, numbers: Any) -> Any:
            matrices = [x.reshape(rows, x.shape[-1]) for x in arrays]
            made = run(*matrices, *(_as_word(x).reshape(1, 1) for x in numbers))
            return [x.reshape(y.shape) for x, y in zip(made, kernel.made, strict=True)]

        return of_matrices


def _is_matrix(outer: Sequence[int], columns: int) -> bool:
    """Whether an array is a matrix in a TPU's memory, of which 32 bits number the elements."""
    is_flat = len(outer) <= 1 or outer[-1] % ROWS == 0
    return is_flat and columns % LANES == 0 and 0 < math.prod(outer) * columns <= 2**32


def _is_word(x: Any) -> bool:
    """Whether a number fits into 32 bits."""
    dtype = jnp.result_type(x)
    return dtype.itemsize <= 4 and not jnp.issubdtype(dtype, jnp.complexfloating)


def _as_word(x: Any) -> jax.Array:
    """A number in 32 bits, which a kernel can read."""
    x = jnp.asarray(x)
    if x.dtype.itemsize == 4:
        return x
    return x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)


def _from_word(x: Any, dtype: Any) -> Any:
    return x != 0 if dtype == jnp.bool_ else x.astype(dtype)


def tile_shape(forms: Sequence[Any], *, by_columns: bool) -> tuple[int, int] | None:
    """The shape of tiles: as many whole rows as fit, or else some columns of a few rows.

    Args:
        forms: all matrices of the kernel; the first one has the parameter's shape.
        by_columns: whether rows may be divided.

    Returns:
        None if no tile fits.
    """
    rows, columns = forms[0].shape
    lengths = {columns / x.shape[1] for x in forms}
    if any(1 < length < BLOCK for length in lengths):
        return None
    # Each tile is in memory twice, as the next one is fetched meanwhile; beside them, values.
    of_row = 2 * sum(x.shape[1] * x.dtype.itemsize for x in forms) + 4 * VALUES * columns
    if BUDGET // of_row >= ROWS:
        return _rows(rows, ELEMENTS // columns), columns
    # Parts of a row have the blocks of the row if the length of blocks is a power of two.
    if not by_columns or any(math.frexp(length)[0] != 0.5 for length in lengths):
        return None
    least = LANES * int(max(lengths))  # a tile of every matrix has whole lanes
    width = max(least, ELEMENTS // ROWS // least * least)
    fits = width < columns and BUDGET * columns >= of_row * ROWS * width
    return (_rows(rows, 0), width) if fits else None


def _rows(rows: int, wanted: int) -> int:
    """The number of rows of a tile."""
    return min(rows, max(ROWS, wanted // ROWS * ROWS))
