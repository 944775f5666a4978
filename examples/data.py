"""Real data for the examples: MNIST where its user has it, else scikit-learn's digits.

MNIST is read from the four IDX files in `$ADAMX_DATA_DIR/mnist/` or `$ADAMX_DATA_DIR` (gzipped or
not). Nothing is downloaded.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn import datasets, model_selection

_MNIST = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


class Dataset(NamedTuple):
    """Images as rows of numbers in [0, 1] (float32), labels as class numbers (int32)."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def head(self, size: int) -> "Dataset":
        """The same with only the first `size` examples to train on."""
        return self._replace(
            train_images=self.train_images[:size], train_labels=self.train_labels[:size]
        )


def load() -> Dataset:
    """Load MNIST if `$ADAMX_DATA_DIR` holds it, else the digits that come with scikit-learn."""
    folder = os.environ.get("ADAMX_DATA_DIR")
    if not folder:
        return load_digits()
    if not any(_find(Path(folder), name) for name in _MNIST.values()):
        print(f"No MNIST in ADAMX_DATA_DIR={folder}: using scikit-learn's digits instead.")
        return load_digits()
    return load_mnist(Path(folder))


def load_digits() -> Dataset:
    """1,797 real handwritten digits of 8x8 pixels, a quarter of each class kept for the test."""
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0
    )
    return Dataset("scikit-learn digits", images[train], labels[train], images[test], labels[test])


def load_mnist(folder: Path) -> Dataset:
    """60,000 + 10,000 handwritten digits of 28x28 pixels."""
    arrays = {}
    for split in ("train", "test"):
        images_file = _require(folder, _MNIST[f"{split}_images"])
        labels_file = _require(folder, _MNIST[f"{split}_labels"])
        images, labels = read_idx(images_file, ndim=3), read_idx(labels_file, ndim=1)
        if len(images) != len(labels):
            raise ValueError(
                f"{labels_file}: expected one label for each of the {len(images)} images in "
                f"{images_file.name}, found {len(labels)}"
            )
        if images.shape[1:] != (28, 28):
            found = "x".join(map(str, images.shape[1:]))
            raise ValueError(f"{images_file}: expected 28x28 images, found {found}")
        if max(labels, default=0) > 9:
            raise ValueError(f"{labels_file}: expected labels from 0 to 9, found {labels.max()}")
        arrays[f"{split}_images"] = images.reshape(len(images), -1).astype(np.float32) / 255
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    return Dataset("MNIST", **arrays)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes with `ndim` dimensions, gzipped if its name says so.

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


def _find(folder: Path, name: str) -> Path | None:
    places = [place / file for place in (folder / "mnist", folder) for file in (f"{name}.gz", name)]
    return next((path for path in places if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise FileNotFoundError(
            f"MNIST is not complete: expected {name}.gz or {name} in {folder / 'mnist'} or {folder}"
        )
    return path
