"""Kernels for CPUs: a block as a C function, compiled by the C compiler of the machine.

XLA's compiler for CPUs writes a loop for each result of a step, and each loop reads its arrays from
memory again. The C function computes all results of a tile before it goes on to the next one. XLA
calls it through its foreign function interface, on its own threads, and lets results take the
memory of donated arguments.

A machine without a C compiler leaves all blocks to XLA.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.engine import loops

if TYPE_CHECKING:
    from adamx.engine.kernels import Kernel

__all__ = ["Native"]

TILE = 4096
"""Elements of a tile, or a few less, so that it has whole blocks."""

ARITHMETIC = "-ffp-contract=off -fno-math-errno -fno-trapping-math -fwrapv -fopenmp-simd"
"""Arithmetic as IEEE 754 prescribes it, but for the flags of exceptions, which nobody reads, and
for the order of the terms of sums."""

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
WIDE = "-mprefer-vector-width=512" if IS_X86 else ""


class Native:
    """Kernels in C, for arrays on a CPU."""

    packed_only = False
    takes_sums = True
    least = 512
    """Elements of all arrays together for which a kernel is compiled."""
    together = 2**16
    """Elements of the largest array that shares a call with others."""

    def tiling(
        self, known: Sequence[Any], *, by_columns: bool
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The shapes of the parameter as a matrix, and of its tiles; None if there are none.

        Rows are the blocks of a codec, or there is one row. Arrays are flat in memory.
        """
        size = np.size(known[0])
        if not by_columns or size >= 2**31 or any(not np.size(x) for x in known):
            return None
        block, *others = {size / np.size(x) for x in known} - {1} or {0}
        if others or block != int(block) or block > TILE:
            return None  # parts of several lengths
        length = int(block)
        return (
            ((size // length, length), (TILE // length, length))
            if length
            else ((1, size), (1, TILE))
        )

    def has_whole_blocks(
        self, shape: Sequence[int], found: Any, program: Callable[..., Any]
    ) -> bool:
        """Whether a codec divides each row of an array into blocks of one length.

        Args:
            shape: the shape of the array.
            found: what :meth:`tiling` gave.
            program: the jaxpr of the block for a matrix and the shape of its tiles.
        """
        (rows, length), columns = found[0], shape[-1]
        if rows == 1 or length == columns:
            return True
        of_row = program((rows * length // columns, columns), (1, columns))
        return of_row is not None and translated(of_row, {}) is not None

    def takes(self, x: Any) -> bool:
        """Whether a kernel reads and writes arrays and numbers like this one."""
        return str(jnp.result_type(x)) in loops.TYPES

    def compile(self, kernel: Kernel) -> str | None:
        """The name by which XLA will know the kernel; None if it can't be written in C.

        The C compiler works while JAX traces on.
        """
        found = translated(kernel.program, kernel.aliases)
        if found is None:
            return None
        count = len(kernel.arrays)
        rest = kernel.program.in_avals[2:]
        arrays = [rest[i] for i in found.arrays]
        numbers = [rest[count + i] for i in found.numbers]
        kernel.gets = found.arrays, found.numbers
        made = [x for x in kernel.program.out_avals if x.ndim]
        sizes = [x.size * x.dtype.itemsize for x in made]
        tile = math.prod(kernel.tile)
        if found.scalars:
            scalar = np.dtype(found.dtype)
            sizes.append(scalar.itemsize * len(found.scalars))
            tiles = -(-math.prod(kernel.matrix) // tile)
            kernel.scalars = jax.ShapeDtypeStruct((tiles, len(found.scalars)), scalar)
            kernel.is_sum = found.scalars
        constants = {
            "ARRAYS": str(len(arrays)),
            "NUMBERS": str(max(1, len(numbers))),
            "RESULTS": str(len(sizes)),
            "SCALARS": str(len(made) if found.scalars else -1),
            "TILE": str(tile),
            "ARRAY_BYTES": _bytes(arrays),
            "NUMBER_BYTES": _bytes(numbers) or "4",
            "RESULT_BYTES": ", ".join(map(str, sizes)),
        }
        source = frame().replace("// ON_TILE", found.text)
        for name, value in constants.items():
            source = source.replace(f"@{name}@", value)
        return begun(source)

    def is_ready(self, kernel: Kernel) -> bool:
        """Whether the kernel is compiled; waits until it is known."""
        return registered(kernel.compiled)

    def call(
        self, kernels: Sequence[Kernel], given: Sequence[tuple[list[Any], list[Any]]]
    ) -> list[list[Any]]:
        """The results of kernels that share a program, for their arrays and numbers."""
        first = kernels[0]
        count = len(first.made) + (first.scalars is not None)
        own_arrays, own_numbers = first.gets
        none = [jnp.zeros((), jnp.int32)]
        of_each = [[own[i] for i in own_numbers] or none for _, own in given]
        if all(list(map(id, x)) == list(map(id, of_each[0])) for x in of_each):
            of_each = of_each[:1]
        many = range(len(kernels))
        call = jax.ffi.ffi_call(
            first.compiled,
            [x for kernel in kernels for x in [*kernel.made, kernel.scalars] if x is not None],
            input_output_aliases={
                i * len(own_arrays) + own_arrays.index(array): i * count + result
                for i in many
                for array, result in first.aliases.items()
            },
            vmap_method="broadcast_all",
        )
        arrays = [own[i] for own, _ in given for i in own_arrays]
        made = iter(call(*arrays, *itertools.chain(*of_each)))
        return [_with_scalars(kernel, list(itertools.islice(made, count))) for kernel in kernels]


def _with_scalars(kernel: Kernel, made: list[Any]) -> list[Any]:
    """The results of a kernel, with the scalars of the parameter in place of those of its tiles."""
    if kernel.scalars is None:
        return made
    *arrays, of_tiles = made
    sums = jnp.sum(of_tiles, axis=0)
    return [*arrays, *(sums[i] if x else of_tiles[0, i] for i, x in enumerate(kernel.is_sum))]


def translated(program: Any, places: dict[int, int]) -> loops.Function | None:
    """The block in C, if it can be written in C."""
    try:
        return loops.function(program, places)
    except loops.Untranslatable:
        return None


def _bytes(avals: Sequence[Any]) -> str:
    return ", ".join(str(x.size * x.dtype.itemsize) for x in avals)


@functools.cache
def frame() -> str:
    return resources.files("adamx.engine").joinpath("frame.c").read_text("utf-8")


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The command of a C compiler, if there is one: that of ``CC``, or ``cc``.

    None with an older JAX than 0.10, whose ``vmap`` knows no calls that take over memory.
    """
    if jax.__version_info__ < (0, 10):
        return None
    try:
        words = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        warnings.warn(
            f"CC={os.environ['CC']!r} is no command: {error}. XLA runs all steps; without CC, "
            "adamx uses cc.",
            stacklevel=2,
        )
        return None
    path = shutil.which(words[0])
    return None if path is None else (path, *words[1:])


_lock = threading.Lock()
_begun: dict[str, Future[str | None]] = {}
"""By the name of a function, why it can't be compiled, or None if XLA knows it."""
_told: set[str] = set()


def begun(source: str) -> str:
    """The name of a function, which a thread begins to compile. Equal sources have equal names."""
    name = f"adamx_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    with _lock:
        if name not in _begun:
            _begun[name] = done = Future()
            threading.Thread(target=_compile, args=(name, source, done), daemon=True).start()
    return name


def registered(name: str) -> bool:
    """Whether XLA knows a function, once it is compiled; a warning tells why it can't be."""
    reason = _begun[name].result()
    with _lock:
        is_news = name not in _told
        _told.add(name)
    if reason is not None and is_news:
        warnings.warn(
            f"The C compiler, {shlex.join(compiler() or ())}, can't compile a kernel, and XLA runs "
            f"these steps instead. ADAMX_KERNELS=off turns kernels off. It said: {reason[:1000]}",
            stacklevel=2,
        )
    return reason is None


def _compile(name: str, source: str, done: Future[str | None]) -> None:
    """Compile a function, and make it known to XLA under a name; or tell why that fails."""
    try:
        _register(name, source)
        done.set_result(None)
    except (OSError, subprocess.SubprocessError) as error:
        done.set_result(getattr(error, "stderr", None) or str(error))
    except BaseException as error:
        done.set_exception(error)


def _register(name: str, source: str) -> None:
    """Compile a function, and make it known to XLA under a name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "block.c")
        path.write_text(source, "utf-8")
        flags = f"-std=gnu11 -O3 -march=native {WIDE} {ARITHMETIC} -shared -fPIC".split()
        given = [f"-I{jax.ffi.include_dir()}", str(path), "-o", f"{folder}/block.so"]
        subprocess.run(
            [*(compiler() or ()), *flags, *given],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            errors="replace",
            check=True,
            timeout=60,
        )
        library = ctypes.CDLL(f"{folder}/block.so")
    try:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library.run), platform="cpu")
    except jax.errors.JaxRuntimeError as error:
        if "Duplicate" not in str(error):  # adamx was imported before, and has registered it
            raise
