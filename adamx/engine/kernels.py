"""Run a block as a kernel that passes once over an array.

XLA decodes packed slots, runs the stages and encodes the new slots in several loops, and keeps
arrays in memory between them. A kernel does all of it for one tile of an array at a time, in the
fast memory of a core. Its body is :func:`~adamx.engine.block.through`, the function that also runs
on whole arrays, so no stage is written twice.

:mod:`~adamx.engine.mosaic` compiles kernels for TPUs, :mod:`~adamx.engine.native` for CPUs. They
run on a single device, or on the shards inside of ``shard_map``: XLA can't divide a kernel over the
devices of a mesh. The environment variable ``ADAMX_KERNELS``, which is read when a step is traced,
changes this: ``off`` leaves all blocks to XLA, and ``interpret`` runs the kernels of TPUs on any
device, slowly, in JAX's interpreter of Pallas.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from adamx.engine import mosaic, native
from adamx.engine.block import Block, Entering, Locate, of_parameter, through
from adamx.engine.mosaic import Mosaic
from adamx.engine.native import Native
from adamx.engine.results import Results
from adamx.links.slots import Slots
from adamx.numerics import tiles
from adamx.numerics.meshes import device_kind, is_undivided, platform
from adamx.numerics.shards import divided, elements
from adamx.numerics.tiles import Tile
from adamx.trees.arrays import kind
from adamx.trees.packed import is_packed

__all__ = ["Kernels", "asked_for"]


def asked_for() -> str:
    """The value of ``ADAMX_KERNELS``."""
    return os.environ.get("ADAMX_KERNELS") or "auto"


Backend = Mosaic | Native


def backend() -> Backend | None:
    """What compiles kernels for this device; None if XLA runs all blocks.

    Raises:
        ValueError: for another value of ``ADAMX_KERNELS`` than ``auto``, ``off`` and ``interpret``.
    """
    asked = asked_for()
    if asked not in ("auto", "off", "interpret"):
        raise ValueError(f"ADAMX_KERNELS must be auto, off or interpret, got {asked!r}")
    if asked == "interpret":
        return Mosaic(interpret=True)
    if asked == "off" or not is_undivided():
        return None
    if platform() == "tpu" and not device_kind().startswith(mosaic.SMALL):
        return Mosaic()
    return Native() if platform() == "cpu" and native.compiler() else None


class Kernels:
    """The kernels of a block: one for each kind of array, made when it is first asked for."""

    def __init__(self, block: Block):
        self.block = block
        self.backend = backend() if _is_possible(block) else None
        self.known: dict[Any, Kernel | None] = {}

    def run(self, leaves: Sequence[Entering], locate: Locate) -> dict[int, Any]:
        """Run the block on all arrays that have a kernel; by their place, the results.

        Small arrays whose kernels have the same program are given to one call.
        """
        if self.backend is None or not all(map(_has_size, leaves)):
            return {}
        if sum(map(_size, leaves)) < self.backend.least:
            return {}
        shared = None if self.block.numbered else _shared(self.block, leaves[0])
        calls: dict[Any, list[int]] = {}
        given: dict[int, tuple[Kernel, list[Any]]] = {}
        small: dict[Any, int] = {}
        for i, leaf in enumerate(leaves):
            own, tree = jax.tree.flatten((leaf.signal, leaf.slots, leaf.own))
            kernel = locate(leaf.number, self.kernel, leaf, own, tree)
            if kernel is None:
                continue
            given[i] = kernel, [*own, *(_shared(self.block, leaf) if shared is None else shared)]
            key = i
            if _size(leaf) <= self.backend.together:
                small[kernel.compiled] = small.get(kernel.compiled, -1) + 1
                key = kernel.compiled, small[kernel.compiled] // MOST
            calls.setdefault(key, []).append(i)
        order = [i for places in calls.values() for i in places]
        if not order:
            return {}
        lengths = [len(places) for places in calls.values()]
        made = run(self.backend, self.block, [given[i] for i in order], lengths)
        return dict(zip(order, made, strict=True))

    def kernel(self, leaf: Entering, own: Sequence[Any], tree: Any) -> Kernel | None:
        """The kernel for arrays of this kind; None if XLA has to run the block on them."""
        if self.backend is None or (leaf.shards and self.block.reach == "row"):
            return None
        pays = not self.backend.packed_only and self.block.ends == "param"
        if not pays and not _has_packed(leaf):
            return None
        key = tree, tuple(map(kind, own)), leaf.shards
        if key not in self.known:
            self.known[key] = kernel_for(self.block, leaf, self.backend)
        return self.known[key]


MOST = 32
"""Small arrays that one call gets. More compile slowly, and wait for all of their gradients."""


def _has_size(leaf: Entering) -> bool:
    """Whether its shape is known; an exported program may leave it open."""
    return all(isinstance(n, int) for x in jax.tree.leaves(leaf.signal) for n in np.shape(x))


def _size(leaf: Entering) -> int:
    return np.size(jax.tree.leaves(leaf.signal)[0])


def _has_packed(leaf: Entering) -> bool:
    return any(is_packed(x) for slots in leaf.slots for x in slots.values())


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


def _shared(block: Block, leaf: Entering) -> list[Any]:
    """The leaves of those arguments that are the same for all arrays, if no clock is numbered."""
    return jax.tree.leaves(arguments(block, leaf)[3:])


def body(block: Block, given: tuple[Any, ...], shards: tuple[str, ...]) -> tuple[Any, list[Slots]]:
    """The block on :func:`arguments`, or on a tile of each of their arrays."""
    signal, slots, own, numbers, steps = given
    fixed = block.stages, block.names, block.ends, shards
    return through(*fixed, numbers, steps, signal, slots, own, (), None)


@dataclasses.dataclass(eq=False)
class Kernel:
    """A block as a kernel for arrays of one kind.

    Attributes:
        program: the block on a tile, a jaxpr: of the row and the column of the tile's first
            element, the tiles of all arrays, and the numbers.
        arrays: the places of the arrays among the leaves of :func:`arguments`.
        matrix: the shape of the parameter as a matrix.
        tile: the shape of its tiles.
        results: which results it computes.
        made: the shapes and dtypes of these, for the whole array.
        aliases: by its place among the arrays, the place of the result that takes its memory.
        tree: the tree of the arguments.
        shards: the mesh axes along which the parameter is divided, inside of ``shard_map``.
        compiled: the program, compiled; arrays whose kernels have the same may share a call.
    """

    program: Any
    arrays: tuple[int, ...]
    matrix: tuple[int, int]
    tile: tuple[int, int]
    results: Results
    made: tuple[Any, ...]
    aliases: dict[int, int]
    tree: Any
    shards: tuple[str, ...]
    compiled: Any = None

    def split(self, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The arrays and the numbers among the leaves of the arguments."""
        arrays = [given[i] for i in self.arrays]
        return arrays, [x for i, x in enumerate(given) if i not in self.arrays]


def run(
    backend: Backend,
    block: Block,
    given: Sequence[tuple[Kernel, list[Any]]],
    lengths: Sequence[int],
) -> list[tuple[Any, list[Slots]]]:
    """The results of kernels. Their derivatives are those of the block.

    Args:
        given: for each array, the kernel and the leaves of its arguments.
        lengths: how many of these the calls get, one call after the other.
    """
    values = {id(x): x for _, leaves in given for x in leaves}  # many arrays share numbers
    place = {key: i for i, key in enumerate(values)}
    places = [[place[id(x)] for x in leaves] for _, leaves in given]
    kernels = [kernel for kernel, _ in given]

    @jax.custom_jvp
    def computed(*values: Any) -> Any:
        each = (
            (kernel, [values[i] for i in own]) for kernel, own in zip(kernels, places, strict=True)
        )
        return [x for n in lengths for x in _called(backend, list(itertools.islice(each, n)))]

    def slope(primals: Any, tangents: Any) -> Any:
        moved = [not isinstance(x, SymbolicZero) for x in tangents]

        def whole(*given: Any) -> Any:
            own = iter(given)
            filled = [next(own) if y else x for x, y in zip(primals, moved, strict=True)]
            return [
                body(block, kernel.tree.unflatten([filled[i] for i in own]), kernel.shards)
                for kernel, own in zip(kernels, places, strict=True)
            ]

        points, slopes = (tuple(itertools.compress(x, moved)) for x in (primals, tangents))
        return jax.jvp(whole, points, slopes)

    computed.defjvp(slope, symbolic_zeros=True)
    return computed(*(jnp.asarray(x) for x in values.values()))


def _called(backend: Backend, given: Sequence[tuple[Kernel, list[Any]]]) -> list[Any]:
    """The results of one call."""
    made = backend.call([kernel for kernel, _ in given], [x.split(y) for x, y in given])
    return [
        kernel.results.joined(computed, leaves)
        for (kernel, leaves), computed in zip(given, made, strict=True)
    ]


def kernel_for(block: Block, leaf: Entering, backend: Backend) -> Kernel | None:
    """The kernel of a block for arrays like this one, if there is one."""
    given, tree = jax.tree.flatten(arguments(block, leaf))
    is_array = [np.ndim(x) > 0 for x in given]
    if not is_array[0]:
        return None
    arrays = tuple(itertools.compress(range(len(given)), is_array))
    numbers = [x for x, y in zip(given, is_array, strict=True) if not y]
    results: Any = None

    def whole(*given: Any) -> list[Any]:
        nonlocal results
        made = body(block, tree.unflatten(given), leaf.shards)
        results = Results.of(made, given, hands=lambda x: not np.ndim(x))
        return results.computed(made)

    made = jax.eval_shape(whole, *given)
    known = [*(given[i] for i in arrays), *made]
    if not all(map(backend.takes, [*known, *numbers])) or any(not np.ndim(x) for x in known):
        return None
    found = backend.tiling(known, by_columns=_divides_rows(block))
    if found is None:
        return None
    with divided(leaf.shards):
        count = elements(given[0])

    def program(matrix: tuple[int, int], tile: tuple[int, int]) -> Any:
        """The block on a tile of the parameter as a matrix; None if a codec has other blocks."""

        def on_tile(row: Any, column: Any, *values: Any) -> list[Any]:
            own = iter(values[: len(arrays)]), iter(values[len(arrays) :])
            filled = [next(own[0] if y else own[1]) for y in is_array]
            with tiles.within(Tile(tile, matrix, (row, column), count)):
                return results.computed(body(block, tree.unflatten(filled), leaf.shards))

        start = jax.ShapeDtypeStruct((), jnp.int32)
        (rows, columns), (height, width) = matrix, tile
        parts = [
            jax.ShapeDtypeStruct((height, np.size(x) // rows * width // columns), x.dtype)
            for x in known
        ]
        words = [jax.ShapeDtypeStruct((), jnp.result_type(x)) for x in numbers]
        traced = jax.make_jaxpr(on_tile)(start, start, *parts[: len(arrays)], *words)
        fits = [x.shape for x in traced.out_avals] == [x.shape for x in parts[len(arrays) :]]
        return traced if fits and not traced.consts else None

    traced = program(*found)
    if traced is None or not backend.has_whole_blocks(np.shape(given[0]), found, program):
        return None
    aliases = _aliases(block, leaf, made)
    kernel = Kernel(traced, arrays, *found, results, tuple(made), aliases, tree, leaf.shards)
    kernel.compiled = backend.compile(kernel)
    return None if kernel.compiled is None else kernel


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
