"""Images with labels: MNIST, CIFAR-10, and the digits that come with scikit-learn."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn import datasets, model_selection

from examples.data import sources

__all__ = ["Dataset", "cifar10", "load", "load_digits", "load_mnist", "mnist"]

_MNIST = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_CIFAR10 = "cifar10/cifar10_subset_10k_2k.npz"


class Dataset(NamedTuple):
    """Images with values in [0, 1] (float32), and class numbers as labels (int32).

    An image is a row of pixels; CIFAR-10 images have the shape [32, 32, 3].
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def head(self, size: int) -> "Dataset":
        """The same dataset with only the first `size` training examples."""
        return self._replace(
            train_images=self.train_images[:size], train_labels=self.train_labels[:size]
        )


def load() -> Dataset:
    """Load MNIST if `$ADAMX_DATA_DIR` contains it, otherwise the digits of scikit-learn."""
    folder = sources.folder()
    if folder is None:
        return load_digits()
    if not _has_mnist(folder):
        print(f"No MNIST in ADAMX_DATA_DIR={folder}: using scikit-learn's digits instead.")
        return load_digits()
    return load_mnist(folder)


def load_digits() -> Dataset:
    """1,797 real handwritten digits of 8x8 pixels; a quarter of each class is the test set."""
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0
    )
    return Dataset("scikit-learn digits", images[train], labels[train], images[test], labels[test])


def mnist() -> Dataset:
    """60,000 + 10,000 handwritten digits of 28x28 pixels, from the folder or downloaded."""
    folder = sources.folder()
    if folder and _has_mnist(folder):
        return load_mnist(folder)
    splits = sources.download("MNIST", "ylecun/mnist", "MNIST's four IDX files (in mnist/)")
    return _downloaded("MNIST", splits, "image", lambda images: images.reshape(len(images), -1))


def load_mnist(folder: Path) -> Dataset:
    """MNIST from its four IDX files, gzipped or not, in `folder`/mnist or `folder`."""
    arrays = {}
    for split in ("train", "test"):
        images_file = _require(folder, _MNIST[f"{split}_images"])
        labels_file = _require(folder, _MNIST[f"{split}_labels"])
        images = sources.read_idx(images_file, ndim=3)
        labels = sources.read_idx(labels_file, ndim=1)
        _check_labels(labels_file, labels, images, images_file.name)
        if images.shape[1:] != (28, 28):
            found = "x".join(map(str, images.shape[1:]))
            raise ValueError(f"{images_file}: expected 28x28 images, found {found}")
        arrays[f"{split}_images"] = _scaled(images.reshape(len(images), -1))
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    return Dataset("MNIST", **arrays)


def cifar10() -> Dataset:
    """Photographs of ten classes, [32, 32, 3], from the folder or downloaded.

    The file in the folder contains the first 10,000 of the 50,000 training images and 2,000 of the
    10,000 test images.
    """
    folder = sources.folder()
    if folder and (folder / _CIFAR10).is_file():
        return _load_cifar10(folder / _CIFAR10)
    splits = sources.download("CIFAR-10", "uoft-cs/cifar10", _CIFAR10)
    return _downloaded("CIFAR-10", splits, "img", lambda images: images)


def _load_cifar10(path: Path) -> Dataset:
    images, labels = (None, 3, 32, 32), (None,)
    stored = sources.read_npz(path, train_x=images, train_y=labels, test_x=images, test_y=labels)
    arrays = {}
    for split in ("train", "test"):
        images, labels = stored[f"{split}_x"], stored[f"{split}_y"]
        _check_labels(path, labels, images, f"{split}_x")
        if images.dtype != np.uint8:
            raise ValueError(f"{path}: expected bytes in {split}_x, found {images.dtype}")
        arrays[f"{split}_images"] = _scaled(images.transpose(0, 2, 3, 1))
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    return Dataset("CIFAR-10", **arrays)


def _downloaded(name: str, splits: Any, column: str, shape: Any) -> Dataset:
    arrays = {}
    for split in ("train", "test"):
        images = np.stack([np.asarray(image) for image in splits[split][column]])
        arrays[f"{split}_images"] = _scaled(shape(images))
        arrays[f"{split}_labels"] = np.array(list(splits[split]["label"]), np.int32)
    return Dataset(name, **arrays)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels, np.float32) / 255


def _check_labels(path: Path, labels: np.ndarray, images: np.ndarray, named: str) -> None:
    if len(images) != len(labels):
        raise ValueError(
            f"{path}: expected one label for each of the {len(images)} images in "
            f"{named}, found {len(labels)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        outside = labels[(labels < 0) | (labels > 9)][0]
        raise ValueError(f"{path}: expected labels from 0 to 9, found {outside}")


def _has_mnist(folder: Path) -> bool:
    return any(_find(folder, name) for name in _MNIST.values())


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
