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
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
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
"""Elements of a tile."""

ARITHMETIC = "-ffp-contract=off -fno-math-errno -fno-trapping-math -fwrapv"
"""Arithmetic as IEEE 754 prescribes it, but for the flags of exceptions, which nobody reads."""

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
WIDE = "-mprefer-vector-width=512" if IS_X86 else ""


class Native:
    """Kernels in C, for arrays on a CPU."""

    packed_only = False
    least = 512
    """Elements of all arrays together for which a kernel is compiled."""
    together = 2**16
    """Elements of the largest array that shares a call with others."""

    def tiling(self, known: Sequence[Any], *, by_columns: bool) -> Any:
        """Tiles of the arrays as flat ones; None if the block needs whole rows."""
        size = np.size(known[0])
        if not by_columns or size >= 2**31:
            return None
        if any(not np.size(x) or size % np.size(x) for x in known):
            return None
        if any(TILE % (size // np.size(x)) for x in known):
            return None
        return (1, size), (1, TILE)

    def takes(self, x: Any) -> bool:
        """Whether a kernel reads and writes arrays and numbers like this one."""
        return str(jnp.result_type(x)) in loops.TYPES

    def compile(self, kernel: Kernel) -> str | None:
        """The name by which XLA knows the kernel; None if it can't be written in C."""
        try:
            text = loops.function(kernel.program, TILE, kernel.aliases)
        except loops.Untranslatable:
            return None
        count = len(kernel.arrays)
        rest = kernel.program.in_avals[2:]
        constants = {
            "ARRAYS": str(count),
            "NUMBERS": str(max(1, len(rest) - count)),
            "RESULTS": str(len(kernel.made)),
            "TILE": str(TILE),
            "ARRAY_BYTES": _bytes(rest[:count]),
            "NUMBER_BYTES": _bytes(rest[count:]) or "4",
            "RESULT_BYTES": _bytes(kernel.program.out_avals),
        }
        source = frame().replace("// ON_TILE", text)
        for name, value in constants.items():
            source = source.replace(f"@{name}@", value)
        return registered(source)

    def call(
        self, kernels: Sequence[Kernel], given: Sequence[tuple[list[Any], list[Any]]]
    ) -> list[list[Any]]:
        """The results of kernels that share a program, for their arrays and numbers."""
        first = kernels[0]
        of_each = [numbers or [jnp.zeros((), jnp.int32)] for _, numbers in given]
        if all(list(map(id, x)) == list(map(id, of_each[0])) for x in of_each):
            of_each = of_each[:1]
        many = range(len(kernels))
        call = jax.ffi.ffi_call(
            first.compiled,
            [x for kernel in kernels for x in kernel.made],
            input_output_aliases={
                i * len(first.arrays) + array: i * len(first.made) + result
                for i in many
                for array, result in first.aliases.items()
            },
            vmap_method="broadcast_all",
        )
        arrays, numbers = [x for own, _ in given for x in own], itertools.chain(*of_each)
        made = iter(call(*arrays, *numbers))
        return [list(itertools.islice(made, len(first.made))) for _ in many]


def _bytes(avals: Sequence[Any]) -> str:
    return ", ".join(str(x.size * x.dtype.itemsize) for x in avals)


@functools.cache
def frame() -> str:
    return resources.files("adamx.engine").joinpath("frame.c").read_text("utf-8")


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The command of a C compiler, if there is one: that of ``CC``, or ``cc``."""
    words = shlex.split(os.environ.get("CC", "")) or ["cc"]
    path = shutil.which(words[0])
    return None if path is None else (path, *words[1:])


@functools.cache
def registered(source: str) -> str | None:
    """The name by which XLA knows a function; None, with a warning, if it can't be compiled."""
    asked = compiler()
    assert asked is not None
    name = f"adamx_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "block.c")
        path.write_text(source, "utf-8")
        flags = f"-std=gnu11 -O3 -march=native {WIDE} {ARITHMETIC} -shared -fPIC".split()
        made = subprocess.run(
            [*asked, *flags, f"-I{jax.ffi.include_dir()}", str(path), "-o", f"{folder}/block.so"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            warnings.warn(
                f"{asked[0]} can't compile a kernel, and XLA runs these steps instead. "
                f"ADAMX_KERNELS=off turns kernels off. {made.stderr[:1000]}",
                stacklevel=2,
            )
            return None
        library = ctypes.CDLL(f"{folder}/block.so")
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library.run), platform="cpu")
    return name
