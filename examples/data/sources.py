"""Sources of data: files in a folder, or a library that downloads them."""

import gzip
import importlib
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["download", "folder", "read_idx", "read_npz"]


def folder() -> Path | None:
    """The folder in `$ADAMX_DATA_DIR`, or None if it is not set."""
    name = os.environ.get("ADAMX_DATA_DIR")
    return Path(name) if name else None


def download(name: str, repository: str, files: str) -> Any:
    """All splits of a dataset, downloaded by Hugging Face's library.

    Args:
        name: the name of the data, for the error.
        repository: the name of the dataset at Hugging Face.
        files: the files that the folder should contain, for the error.

    Raises:
        FileNotFoundError: if the library is not installed. The error names both ways to get the
            data.
    """
    try:
        library = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise FileNotFoundError(
            f"{name} was not found: put {files} into the folder in the environment variable "
            f"ADAMX_DATA_DIR (now: {folder() or 'not set'}), or install the library datasets, "
            "which downloads it: pip install '.[data]'"
        ) from None
    return library.load_dataset(repository)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes with `ndim` dimensions; `.gz` files are decompressed.

    The layout, all big-endian: two zero bytes, one byte for the element type (8: unsigned byte),
    one for the number of dimensions, four bytes for each dimension, then the elements.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected an IDX file")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file ({error})") from error

    header = 4 + 4 * ndim
    expected_magic = bytes([0, 0, 8, ndim])
    if content[:4] != expected_magic:
        raise ValueError(
            f"{path}: expected the IDX magic number {expected_magic.hex()} "
            f"(unsigned bytes, {ndim} dimensions), found {content[:4].hex() or 'nothing'}"
        )
    if len(content) < header:
        raise ValueError(f"{path}: expected a header of {header} bytes, found {len(content)}")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    size = header + math.prod(shape)
    if len(content) != size:
        raise ValueError(
            f"{path}: expected {size} bytes for an array of shape {shape}, found {len(content)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_npz(path: Path, **shapes: tuple[int | None, ...]) -> dict[str, np.ndarray]:
    """Read arrays of integers from an .npz file.

    Args:
        path: the path of the file.
        **shapes: the shape of every array, by its name; None stands for any length.

    Raises:
        ValueError: if the file is damaged, or if its arrays have other names, shapes or dtypes.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a whole .npz file")
    try:
        with np.load(path) as stored:
            missing = sorted(set(shapes) - set(stored.files))
            arrays = {name: stored[name] for name in shapes if name not in missing}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole .npz file ({error})") from error
    if missing:
        raise ValueError(f"{path}: expected the arrays {', '.join(shapes)}; {missing} is missing")
    for name, shape in shapes.items():
        array = arrays[name]
        fits = len(shape) == array.ndim and all(
            length in (None, found) for length, found in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in "iu":
            wanted = tuple("any" if length is None else length for length in shape)
            raise ValueError(
                f"{path}: expected {name} to be whole numbers of shape {wanted}, "
                f"found {array.dtype} of shape {array.shape}"
            )
    return arrays
