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
import importlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from adamx.engine import mosaic, native
from adamx.engine.block import Block, Entering, Locate, Passed, of_parameter, through
from adamx.engine.mosaic import Mosaic
from adamx.engine.native import Native
from adamx.engine.results import Results
from adamx.numerics import tiles
from adamx.numerics.meshes import device_kind, is_undivided, platform
from adamx.numerics.shards import divided, elements
from adamx.numerics.tiles import Tile
from adamx.trees.arrays import kind
from adamx.trees.packed import is_packed

__all__ = ["Kernels", "asked_for", "prepare"]


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


def prepare() -> None:
    """Import Pallas, if the kernels of this device need it.

    If the first step imported it while it is traced, JAX 0.12 would compile the step twice.
    """
    if isinstance(backend(), Mosaic):
        importlib.import_module("jax.experimental.pallas.tpu")


class Kernels:
    """The kernels of a block: one for each kind of array, made when it is first asked for."""

    def __init__(self, block: Block):
        self.block = block
        self.backend = backend() if _is_possible(block) else None
        self.known: dict[Any, Kernel | None] = {}
        self.functions: dict[Any, Callable[..., list[list[Any]]]] = {}
        """Calls of kernels; those of equal groups of arrays share one trace."""

    def run(self, leaves: Sequence[Entering], locate: Locate) -> dict[int, Any]:
        """Run the block on all arrays that have a kernel; by their place, the results.

        Small arrays whose kernels have the same program are given to one call.
        """
        if self.backend is None or not all(map(_has_size, leaves)):
            return {}
        if sum(map(_size, leaves)) < self.backend.least:
            return {}
        shared = None if self.block.numbered else _shared(self.block, leaves[0])
        given: dict[int, tuple[Kernel, list[Any]]] = {}
        for i, leaf in enumerate(leaves):
            own, tree = jax.tree.flatten((leaf.signal, leaf.slots, leaf.own, leaf.given))
            kernel = locate(leaf.number, self.kernel, leaf, own, tree)
            if kernel is None:
                continue
            given[i] = kernel, [*own, *(_shared(self.block, leaf) if shared is None else shared)]
        calls: list[list[int]] = []
        alike: dict[Kernel, list[int]] = {}
        for i, (kernel, _) in given.items():
            if not self.backend.is_ready(kernel):
                continue
            if _size(leaves[i]) > self.backend.together:
                calls.append([i])
            else:
                alike.setdefault(kernel, []).append(i)
        # Arrays of one kind are together, so that many calls have the same trace.
        small: dict[Any, list[int]] = {}
        for kernel, places in alike.items():
            small.setdefault(kernel.compiled, []).extend(places)
        for places in small.values():
            calls += (places[k : k + MOST] for k in range(0, len(places), MOST))
        done: dict[int, Any] = {}
        for places in calls:
            done |= zip(places, self.called([given[i] for i in places]), strict=True)
        return done

    def called(self, given: Sequence[tuple[Kernel, list[Any]]]) -> Iterator[Passed]:
        """The results of one call, which gets kernels and the leaves of their arguments."""
        assert self.backend is not None
        values = {id(x): x for _, leaves in given for x in leaves}  # many arrays share numbers
        place = {key: i for i, key in enumerate(values)}
        places = tuple(tuple(place[id(x)] for x in leaves) for _, leaves in given)
        kernels = tuple(kernel for kernel, _ in given)
        if (kernels, places) not in self.functions:
            made = function_of(self.backend, self.block, kernels, places)
            self.functions[kernels, places] = made
        made = self.functions[kernels, places](*values.values())
        for (kernel, leaves), computed in zip(given, made, strict=True):
            yield kernel.results.joined(computed, leaves)

    def kernel(self, leaf: Entering, own: Sequence[Any], tree: Any) -> Kernel | None:
        """The kernel for arrays of this kind; None if XLA has to run the block on them."""
        if self.backend is None or (leaf.shards and self.block.reach == "row"):
            return None
        fuses = self.block.ends in ("param", "sums") or bool(self.block.summands)
        pays = fuses and not self.backend.packed_only
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
    return leaf.signal, leaf.slots, leaf.own, leaf.given, block.numbers, steps, block.counts


def _shared(block: Block, leaf: Entering) -> list[Any]:
    """The leaves of those arguments that are the same for all arrays, if no clock is numbered."""
    return jax.tree.leaves(arguments(block, leaf)[4:])


def body(block: Block, given: tuple[Any, ...], shards: tuple[str, ...]) -> Passed:
    """The block on :func:`arguments`, or on a tile of each of their arrays."""
    signal, slots, own, seen, numbers, steps, counts = given
    fixed = block.stages, block.names, block.ends, shards, block.summands
    return through(*fixed, numbers, steps, counts, signal, slots, own, seen, (), None)


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
        gets: the places of the arrays, and of the numbers, that it gets, in C.
        scalars: the array of scalars of all tiles, in C.
        is_sum: which of these are sums, of which the parameter has the sum over all tiles.
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
    gets: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
    scalars: Any = None
    is_sum: tuple[bool, ...] = ()

    def split(self, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The arrays and the numbers among the leaves of the arguments."""
        arrays = [given[i] for i in self.arrays]
        return arrays, [x for i, x in enumerate(given) if i not in self.arrays]


def function_of(
    backend: Backend, block: Block, kernels: Sequence[Kernel], places: Sequence[Sequence[int]]
) -> Callable[..., list[list[Any]]]:
    """A call of kernels, as a function of values; its derivatives are those of the block.

    Args:
        places: for each kernel, the places among the values of the leaves of its arguments.
    """

    def arguments_of(values: Sequence[Any]) -> Iterator[tuple[Kernel, list[Any]]]:
        for kernel, own in zip(kernels, places, strict=True):
            yield kernel, [values[i] for i in own]

    @jax.custom_jvp
    def computed(*values: Any) -> list[list[Any]]:
        return backend.call(kernels, [x.split(own) for x, own in arguments_of(values)])

    def slope(primals: Any, tangents: Any) -> Any:
        moved = [not isinstance(x, SymbolicZero) for x in tangents]

        def whole(*given: Any) -> list[list[Any]]:
            known = iter(given)
            filled = [next(known) if y else x for x, y in zip(primals, moved, strict=True)]
            return [
                kernel.results.computed(body(block, kernel.tree.unflatten(own), kernel.shards))
                for kernel, own in arguments_of(filled)
            ]

        points, slopes = (tuple(itertools.compress(x, moved)) for x in (primals, tangents))
        return jax.jvp(whole, points, slopes)

    computed.defjvp(slope, symbolic_zeros=True)
    return jax.jit(computed)


def kernel_for(block: Block, leaf: Entering, backend: Backend) -> Kernel | None:
    """The kernel of a block for arrays like this one, if there is one."""
    given, tree = jax.tree.flatten(arguments(block, leaf))
    is_array = [np.ndim(x) > 0 for x in given]
    if not is_array[0]:
        return None
    arrays = tuple(itertools.compress(range(len(given)), is_array))
    numbers = [x for x, y in zip(given, is_array, strict=True) if not y]
    # A step changes neither the shape of the parameter nor the form of its slots.
    slots = [x for x in jax.tree.leaves(leaf.slots) if np.ndim(x)]
    kept = [] if block.ends == "sums" else [given[0], *slots]
    own = [given[i] for i in arrays]
    if not all(map(backend.takes, [*own, *numbers])):
        return None
    found = backend.tiling([*own, *kept], by_columns=_divides_rows(block))
    if found is None:
        return None
    with divided(leaf.shards):
        count = elements(given[0])
    results: Any = None

    def program(matrix: tuple[int, int], tile: tuple[int, int]) -> Any:
        """The block on a tile of the parameter as a matrix; None if a codec has other blocks."""
        (rows, columns), (height, width) = matrix, tile

        def part(x: Any) -> tuple[int, int]:
            return height, np.size(x) // rows * width // columns

        def on_tile(row: Any, column: Any, *values: Any) -> list[Any]:
            nonlocal results
            known = iter(values[: len(arrays)]), iter(values[len(arrays) :])
            filled = [next(known[0] if y else known[1]) for y in is_array]
            with tiles.within(Tile(tile, matrix, (row, column), count)):
                made = body(block, tree.unflatten(filled), leaf.shards)
            results = Results.of(made, filled, hands=lambda x: not np.ndim(x))
            return results.computed(made)

        start = jax.ShapeDtypeStruct((), jnp.int32)
        parts = [jax.ShapeDtypeStruct(part(x), x.dtype) for x in own]
        words = [jax.ShapeDtypeStruct((), jnp.result_type(x)) for x in numbers]
        traced = jax.make_jaxpr(on_tile)(start, start, *parts, *words)
        (*shapes,) = (x.shape for x in traced.out_avals)
        fits = shapes[: len(kept)] == [part(x) for x in kept] and not any(shapes[len(kept) :])
        return traced if fits and not traced.consts else None

    traced = program(*found)
    if traced is None or not backend.has_whole_blocks(np.shape(given[0]), found, program):
        return None
    made = [
        jax.ShapeDtypeStruct(np.shape(x), tile.dtype)
        for x, tile in zip(kept, traced.out_avals, strict=False)
    ]
    has_scalars = len(traced.out_avals) > len(made)
    if not all(map(backend.takes, made)) or (has_scalars and not backend.takes_sums):
        return None
    aliases = _aliases(block, leaf, made)
    kernel = Kernel(traced, arrays, *found, results, tuple(made), aliases, tree, leaf.shards)
    kernel.compiled = backend.compile(kernel)
    return None if kernel.compiled is None else kernel


def _aliases(block: Block, leaf: Entering, made: Sequence[Any]) -> dict[int, int]:
    """By its place among the arrays, the place of the result that takes its memory.

    A new slot takes that of the old one, and a new parameter that of the parameter.
    """
    if block.ends == "sums":
        return {}
    signal = [x for x in jax.tree.leaves(leaf.signal) if np.ndim(x)]
    slots = sum(np.ndim(x) > 0 for x in jax.tree.leaves(leaf.slots))
    same = {len(signal) + k: len(made) - slots + k for k in range(slots)}
    if block.ends == "param" and signal[-1].dtype == made[0].dtype:
        same[len(signal) - 1] = 0  # the parameter is the last array of a signal
    return same
