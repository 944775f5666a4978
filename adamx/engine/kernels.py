"""Run a block as a kernel that passes once over an array, where a wrapper packs its slots.

XLA decodes packed slots, runs the stages and encodes the new slots in several loops, and keeps
arrays in memory between them. The kernel does all of it for one tile of an array at a time, in the
fast memory of a core. Its body is :func:`~adamx.engine.block.through`, the function that also runs
on whole arrays, so no stage is written twice.

Kernels are written in Pallas, and run on TPUs: on a single chip, or on the shards inside of
``shard_map``. XLA can't divide a kernel over the chips of a mesh. The environment variable
``ADAMX_KERNELS``, which is read when a step is traced, changes this: ``off`` leaves all blocks to
XLA, and ``interpret`` runs kernels on any device, slowly, in JAX's interpreter of Pallas.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import jaxpr_as_fun

from adamx.engine.block import Block, Entering, of_parameter, through
from adamx.engine.results import Results
from adamx.links.slots import Slots
from adamx.numerics import tiles
from adamx.numerics.meshes import device_kind, is_undivided, platform
from adamx.numerics.shards import divided, elements, like
from adamx.numerics.tiles import Tile
from adamx.trees.arrays import kind
from adamx.trees.packed import is_packed

__all__ = ["Kernels", "asked_for"]

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


def asked_for() -> str:
    """The value of ``ADAMX_KERNELS``."""
    return os.environ.get("ADAMX_KERNELS", "auto")


def mode() -> str:
    """``"tpu"``, ``"interpret"``, or ``"off"`` where no kernels run.

    Raises:
        ValueError: for another value of ``ADAMX_KERNELS`` than ``auto``, ``off`` and ``interpret``.
    """
    asked = asked_for()
    if asked not in ("auto", "off", "interpret"):
        raise ValueError(f"ADAMX_KERNELS must be auto, off or interpret, got {asked!r}")
    if asked != "auto":
        return asked
    if platform() != "tpu" or device_kind().startswith(SMALL) or not is_undivided():
        return "off"
    return "tpu"


class Kernels:
    """The kernels of a block: one for each kind of array, made when it is first asked for."""

    def __init__(self, block: Block):
        self.block, self.mode = block, mode()
        self.known: dict[Any, Kernel | None] = {}
        self.possible = self.mode != "off" and _is_possible(block)

    def __call__(self, leaf: Entering) -> Kernel | None:
        """The kernel for arrays of this kind; None if XLA has to run the block on them."""
        if not self.possible or (leaf.shards and self.block.reach == "row"):
            return None
        if not any(is_packed(x) for slots in leaf.slots for x in slots.values()):
            return None
        given, tree = jax.tree.flatten(arguments(self.block, leaf))
        key = tree, tuple(map(kind, given)), leaf.shards
        if key not in self.known:
            self.known[key] = kernel_for(self.block, leaf, interpret=self.mode == "interpret")
        return self.known[key]


def _is_possible(block: Block) -> bool:
    """Whether the block may run on one tile after the other.

    A block that is not the last one would have to write the notes of its stages to memory.
    """
    around = {x.reach for ready in block.ready for x in ready.stage.around}
    narrow = block.reach in ("element", "row") and "array" not in around
    return narrow and block.ends != "signal" and not block.refreshes


def _divides_rows(block: Block) -> bool:
    """Whether the block may run on blocks of a row."""
    around = {x.reach for ready in block.ready for x in ready.stage.around}
    return block.reach == "element" and "row" not in around


def arguments(block: Block, leaf: Entering) -> tuple[Any, ...]:
    """The arguments of a kernel for this array: arrays of its shape, and numbers."""
    index = np.uint32(leaf.number) if block.numbered else None
    steps = [of_parameter(x.rule, x.step, index, x.name, leaf.shards) for x in block.ready]
    return leaf.signal, leaf.slots, leaf.own, block.numbers, steps


def body(block: Block, given: tuple[Any, ...]) -> tuple[Any, list[Slots]]:
    """The block on :func:`arguments`, or on a tile of each of their arrays."""
    signal, slots, own, numbers, steps = given
    fixed = block.stages, block.names, block.ends, ()
    return through(*fixed, numbers, steps, signal, slots, own, (), None)


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A block as a kernel for arrays of one kind.

    Attributes:
        program: the block on a tile, a jaxpr: of the row and the column of the tile's first
            element, the tiles of all arrays, and the numbers.
        arrays: the places of the arrays among the leaves of :func:`arguments`.
        shape: the shape of the arrays, without the last axis.
        grid: the number of tiles along both axes of the arrays as matrices.
        rows: the number of rows of a tile.
        widths: the number of columns of a tile, of each array and each result.
        results: which results it computes.
        made: the shapes and dtypes of these, for the whole array.
        moved: the bytes of all arrays and results.
        aliases: the places of results that take the place of an array.
        interpret: whether JAX's interpreter of Pallas runs it.
    """

    program: Any
    arrays: tuple[int, ...]
    shape: tuple[int, ...]
    grid: tuple[int, int]
    rows: int
    widths: tuple[int, ...]
    results: Results
    made: tuple[Any, ...]
    moved: int
    aliases: dict[int, int]
    interpret: bool

    def run(self, block: Block, leaf: Entering) -> tuple[Any, list[Slots]]:
        """The results of the block for an array. Their derivatives are those of the block."""
        given, tree = jax.tree.flatten(arguments(block, leaf))

        @jax.custom_jvp
        def run(*given: Any) -> Any:
            arrays = [given[i].reshape(-1, given[i].shape[-1]) for i in self.arrays]
            numbers = [_as_word(x) for i, x in enumerate(given) if i not in self.arrays]
            made = self.call(arrays, numbers)
            return self.results.joined([x.reshape(*self.shape, x.shape[-1]) for x in made], given)

        def slope(primals: Any, tangents: Any) -> Any:
            moved = [not isinstance(x, SymbolicZero) for x in tangents]

            def whole(*given: Any) -> Any:
                own = iter(given)
                filled = [next(own) if y else x for x, y in zip(primals, moved, strict=True)]
                return body(block, tree.unflatten(filled))

            points, slopes = (tuple(itertools.compress(x, moved)) for x in (primals, tangents))
            return jax.jvp(whole, points, slopes)

        run.defjvp(slope, symbolic_zeros=True)
        return run(*given)

    @functools.cached_property
    def call(self) -> Callable[..., Any]:
        """The kernel as a function of matrices and numbers, which arrays of one kind share."""
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu

        compiler: Any = getattr(tpu, "CompilerParams", None) or vars(tpu)["TPUCompilerParams"]
        count = len(self.arrays)
        block = jaxpr_as_fun(self.program)
        avals = self.program.in_avals[2 + count :]

        def on_tile(*refs: Any) -> None:
            start = pl.program_id(0) * self.rows, pl.program_id(1) * self.widths[0]
            rest = refs[count:]
            numbers = [
                _from_word(x[0, 0], aval.dtype) for x, aval in zip(rest, avals, strict=False)
            ]
            made = block(*start, *(x[...] for x in refs[:count]), *numbers)
            for ref, x in zip(rest[len(avals) :], made, strict=True):
                ref[...] = x

        def spec(width: int) -> pl.BlockSpec:
            return pl.BlockSpec((self.rows, width), lambda i, j: (i, j))

        rows = math.prod(self.shape)
        made = [like(x, (rows, x.shape[-1])) for x in self.made]
        one = pl.BlockSpec(memory_space=tpu.SMEM)
        run = pl.pallas_call(
            on_tile,
            grid=self.grid,
            in_specs=[*map(spec, self.widths[:count]), *[one] * len(avals)],
            out_specs=[*map(spec, self.widths[count:])],
            out_shape=made,
            input_output_aliases=self.aliases,
            interpret=self.interpret,
            cost_estimate=pl.CostEstimate(
                flops=len(self.program.eqns) * rows * self.widths[0] * self.grid[1],
                transcendentals=0,
                bytes_accessed=self.moved,
            ),
            compiler_params=compiler(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=LIMIT
            ),
        )
        return jax.jit(lambda arrays, numbers: run(*arrays, *(x.reshape(1, 1) for x in numbers)))


def _as_word(x: Any) -> jax.Array:
    """A number in 32 bits, which a kernel can read."""
    x = jnp.asarray(x)
    if x.dtype.itemsize == 4:
        return x
    return x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)


def _from_word(x: Any, dtype: Any) -> Any:
    return x != 0 if dtype == jnp.bool_ else x.astype(dtype)


def kernel_for(block: Block, leaf: Entering, *, interpret: bool) -> Kernel | None:
    """The kernel of a block for arrays like this one, if there is one."""
    given, tree = jax.tree.flatten(arguments(block, leaf))
    *outer, columns = np.shape(given[0]) or (0,)
    if not _is_matrix(outer, columns):
        return None
    rows, is_array = math.prod(outer), [np.ndim(x) > 0 for x in given]
    arrays = tuple(itertools.compress(range(len(given)), is_array))
    numbers = [x for x, y in zip(given, is_array, strict=True) if not y]
    results: Any = None

    def whole(*given: Any) -> list[Any]:
        nonlocal results
        made = body(block, tree.unflatten(given))
        results = Results.of(made, given, hands=lambda x: not np.ndim(x))
        return results.computed(made)

    made = jax.eval_shape(whole, *given)
    known = [*(given[i] for i in arrays), *made]
    if any([*np.shape(x)[:-1]] != outer or not np.size(x) for x in known):
        return None
    if not all(jnp.result_type(x) in DTYPES for x in known) or not all(map(_is_word, numbers)):
        return None
    forms = [jax.ShapeDtypeStruct((rows, x.shape[-1]), x.dtype) for x in known]
    tile = tile_shape(forms, by_columns=_divides_rows(block))
    if tile is None:
        return None
    with divided(leaf.shards):
        count = elements(given[0])

    def on_tile(row: Any, column: Any, *values: Any) -> list[Any]:
        own = iter(values[: len(arrays)]), iter(values[len(arrays) :])
        filled = [next(own[0] if y else own[1]) for y in is_array]
        with tiles.within(Tile(tile, (rows, columns), (row, column), count)):
            return results.computed(body(block, tree.unflatten(filled)))

    start = jax.ShapeDtypeStruct((), jnp.int32)
    widths = tuple(x.shape[1] * tile[1] // columns for x in forms)
    parts = [
        jax.ShapeDtypeStruct((tile[0], width), x.dtype)
        for x, width in zip(forms, widths, strict=True)
    ]
    words = [jax.ShapeDtypeStruct((), jnp.result_type(x)) for x in numbers]
    program = jax.make_jaxpr(on_tile)(start, start, *parts[: len(arrays)], *words)
    if program.consts or not primitives(program.jaxpr) <= PRIMITIVES:
        return None
    if [x.shape for x in program.out_avals] != [x.shape for x in parts[len(arrays) :]]:
        return None  # a codec would divide rows of this length into other blocks
    return Kernel(
        program=program,
        arrays=arrays,
        shape=(*outer,),
        grid=(-(-rows // tile[0]), -(-columns // tile[1])),
        rows=tile[0],
        widths=widths,
        results=results,
        made=tuple(made),
        moved=sum(x.size * x.dtype.itemsize for x in forms),
        aliases=_aliases(block, leaf, made),
        interpret=interpret,
    )


def _is_matrix(outer: Sequence[int], columns: int) -> bool:
    """Whether an array is a matrix in a TPU's memory, of which 32 bits number the elements."""
    is_flat = len(outer) <= 1 or outer[-1] % ROWS == 0
    return is_flat and columns % LANES == 0 and 0 < math.prod(outer) * columns <= 2**32


def _is_word(x: Any) -> bool:
    """Whether a number fits into 32 bits."""
    dtype = jnp.result_type(x)
    return dtype.itemsize <= 4 and not jnp.issubdtype(dtype, jnp.complexfloating)


def _aliases(block: Block, leaf: Entering, made: Sequence[Any]) -> dict[int, int]:
    """By its place among the arrays, the place of the result that takes its memory.

    A new slot takes that of the old one, and a new parameter that of the parameter.
    """
    signal = [x for x in jax.tree.leaves(leaf.signal) if np.ndim(x)]
    slots = sum(np.ndim(x) > 0 for x in jax.tree.leaves(leaf.slots))
    same = {len(signal) + k: len(made) - slots + k for k in range(slots)}
    if block.ends == "param" and signal[-1].dtype == made[0].dtype:
        same[len(signal) - 1] = 0  # the parameter is the last array of a signal
    return same


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


def primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives of a jaxpr, and of those that its equations call."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves([*equation.params.values()], is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                found |= primitives(getattr(value, "jaxpr", value))
    return found


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
