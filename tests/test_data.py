"""The real data of the experiments: files of a folder, else a library, else a clear word."""

import gzip
import struct
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sklearn")

from examples import data

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
NAMES = ("mnist", "cifar10", "imdb")
TEXTS = ["Good, GOOD film!<br /><br />Isn't it?", "bad film", "it is a low-budget film"]

# Reviews with the words {0, 2}, {1}, {} and {0, 1, 2} of three.
BAGS = {
    "indptr": np.array([0, 2, 3, 3, 6], np.int32),
    "indices": np.array([0, 2, 1, 0, 1, 2], np.uint16),
    "counts": np.array([5, 1, 2, 1, 1, 3], np.uint16),
    "label": np.array([1, 1, 0, 0], np.uint8),
}
IMDB = {f"{split}_{name}": value for split in ("train", "test") for name, value in BAGS.items()}
IMDB["vocab"] = np.frombuffer("the\ncafé\n!".encode(), np.uint8)
CIFAR10 = {
    "train_x": RANDOM.integers(0, 256, (3, 3, 32, 32), np.uint8),
    "train_y": np.array([9, 0, 4], np.uint8),
    "test_x": RANDOM.integers(0, 256, (2, 3, 32, 32), np.uint8),
    "test_y": np.array([1, 1], np.uint8),
}
FILES = {
    "cifar10": ("cifar10/cifar10_subset_10k_2k.npz", CIFAR10),
    "imdb": ("imdb/imdb_bow10k.npz", IMDB),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMX_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    return tmp_path


def write(folder, name, **replaced):
    place, arrays = FILES[name]
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    kept = {key: value for key, value in {**arrays, **replaced}.items() if value is not None}
    np.savez(path, **kept)
    return path


def test_cifar10_is_read_with_channels_last_and_scaled(folder):
    write(folder, "cifar10")
    dataset = data.cifar10()
    assert dataset.name == "CIFAR-10"
    assert dataset.train_images.shape == (3, 32, 32, 3)
    assert dataset.train_images.dtype == np.float32
    assert dataset.test_images[1, 5, 7, 2] == np.float32(CIFAR10["test_x"][1, 2, 5, 7] / 255)
    np.testing.assert_array_equal(dataset.train_labels, np.array([9, 0, 4], np.int32))


def test_imdb_is_read_as_sparse_rows_with_its_vocabulary(folder):
    write(folder, "imdb")
    reviews = data.imdb()
    assert reviews.vocabulary == ["the", "café", "!"]
    np.testing.assert_array_equal(reviews.train.starts, BAGS["indptr"])
    np.testing.assert_array_equal(reviews.test.words, BAGS["indices"])
    np.testing.assert_array_equal(reviews.test.counts, BAGS["counts"])
    np.testing.assert_array_equal(reviews.train.labels, BAGS["label"])


SENSELESS = {
    "key missing": ("cifar10", {"test_y": None}, r"\['test_y'\] is missing"),
    "not images": ("cifar10", {"train_x": np.zeros((3, 32, 32, 3), np.uint8)}, r"3, 32, 32\)"),
    "not whole": ("cifar10", {"train_y": np.zeros(3)}, "found float64"),
    "objects": ("cifar10", {"train_y": np.array([None] * 3)}, "whole .npz file"),
    "not bytes": ("cifar10", {"test_x": np.zeros((2, 3, 32, 32), int)}, "expected bytes in test_x"),
    "too few labels": ("cifar10", {"train_y": np.zeros(2, int)}, "of the 3 images .*, found 2"),
    "label 10": ("cifar10", {"test_y": np.array([1, 10])}, "labels from 0 to 9, found 10"),
    "label -1": ("cifar10", {"test_y": np.array([-1, 0])}, "labels from 0 to 9, found -1"),
    "labels": ("imdb", {"test_label": np.zeros(3, int)}, "test reviews .* 5 starts .* 3 labels"),
    "first start": ("imdb", {"train_indptr": np.array([1, 2, 3, 3, 6])}, "must ascend from 0"),
    "last start": ("imdb", {"train_indptr": np.array([0, 2, 3, 3, 7])}, "number of words, 6"),
    "start back": ("imdb", {"train_indptr": np.array([0, 3, 2, 3, 6])}, "must ascend from 0"),
    "counts": ("imdb", {"train_counts": np.ones(5, int)}, "5 counts for 6 words"),
    "word": ("imdb", {"train_indices": np.array([0, 3, 1, 0, 1, 2])}, "below the .* size, 3"),
    "twice": ("imdb", {"train_indices": np.array([0, 0, 1, 0, 1, 2])}, "review must ascend"),
    "down": ("imdb", {"train_indices": np.array([0, 2, 1, 0, 2, 1])}, "review must ascend"),
    "no count": ("imdb", {"test_counts": np.array([5, 1, 0, 1, 1, 3])}, "at least once"),
    "kind": ("imdb", {"test_label": np.array([0, 1, 2, 0])}, "labels must be 0 or 1"),
    "text": ("imdb", {"vocab": np.array([0xFF], np.uint8)}, "vocab to be lines of UTF-8"),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_arrays_that_make_no_sense_are_refused_with_the_files_name(folder, case):
    name, replaced, expected = SENSELESS[case]
    path = write(folder, name, **replaced)
    with pytest.raises(ValueError, match=f"{path.name}: .*{expected}"):
        getattr(data, name)()


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_refused_with_its_name(folder, name):
    path = write(folder, name)
    whole = path.read_bytes()
    torn = whole.replace(b"descr", b"desCr", 1)  # its checksum no longer agrees
    for damaged in (b"", whole[: len(whole) // 2], torn, b"\x93NUMPY"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path.name}: expected a whole .npz file"):
            getattr(data, name)()


@pytest.mark.parametrize("name", NAMES)
def test_without_files_and_library_both_ways_are_told(folder, monkeypatch, name):
    expected = rf"ADAMX_DATA_DIR \(now: {folder}\).*pip install '\.\[data\]'"
    with pytest.raises(FileNotFoundError, match=expected):
        getattr(data, name)()
    monkeypatch.delenv("ADAMX_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="now: not set"):
        getattr(data, name)()


def test_mnist_of_the_folder_is_preferred_and_an_incomplete_one_refused(folder):
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", np.full((2, 28, 28), 255)), ("labels-idx1", [3, 9])):
            array = np.asarray(array, np.uint8)
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(header + array.tobytes())
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(content)
    dataset = data.mnist()
    np.testing.assert_array_equal(dataset.train_images, np.ones((2, 784), np.float32))
    np.testing.assert_array_equal(dataset.test_labels, [3, 9])
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="MNIST is not complete: expected train-labels"):
        data.mnist()


def library(monkeypatch, **splits):
    """Stands in for Hugging Face's library; gives what was asked of it."""
    asked = []

    def load_dataset(repository):
        asked.append(repository)
        return splits

    monkeypatch.delenv("ADAMX_DATA_DIR", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_mnist_is_downloaded_where_it_is_not_at_hand(monkeypatch):
    images = RANDOM.integers(0, 256, (3, 28, 28), np.uint8)
    split = {"image": list(images), "label": [7, 0, 2]}
    asked = library(monkeypatch, train=split, test=split)
    dataset = data.mnist()
    assert asked == ["ylecun/mnist"]
    assert dataset.name == "MNIST"
    np.testing.assert_array_equal(dataset.train_images, images.reshape(3, 784) / np.float32(255))
    assert dataset.test_images.dtype == np.float32
    np.testing.assert_array_equal(dataset.test_labels, np.array([7, 0, 2], np.int32))


def test_downloaded_cifar10_is_what_the_file_gives(folder, monkeypatch):
    write(folder, "cifar10")
    read = data.cifar10()
    splits = {
        split: {
            "img": list(CIFAR10[f"{split}_x"].transpose(0, 2, 3, 1)),
            "label": CIFAR10[f"{split}_y"].tolist(),
        }
        for split in ("train", "test")
    }
    asked = library(monkeypatch, **splits)
    for downloaded, expected in zip(data.cifar10(), read, strict=True):
        np.testing.assert_array_equal(downloaded, expected)
    assert asked == ["uoft-cs/cifar10"]


def test_downloaded_reviews_are_counted_over_the_training_halfs_words(monkeypatch):
    test = {"text": ["a film, unseen words", ""], "label": [0, 1]}
    asked = library(monkeypatch, train={"text": TEXTS, "label": [1, 0, 0]}, test=test)
    reviews = data.imdb()
    assert asked == ["stanfordnlp/imdb"]
    words = [
        ["good", "good", "film", "!", "isn't", "it", "?"],
        ["bad", "film"],
        ["it", "is", "a", "low-budget", "film"],
    ]
    expected = Counter(word for review in words for word in review)
    assert reviews.vocabulary[0] == "film"  # three times
    assert set(reviews.vocabulary[1:3]) == {"good", "it"}  # twice
    assert sorted(reviews.vocabulary) == sorted(expected)
    for review, (start, end) in zip(
        words, zip(reviews.train.starts[:-1], reviews.train.starts[1:], strict=True), strict=True
    ):
        numbers, counts = reviews.train.words[start:end], reviews.train.counts[start:end]
        assert (np.diff(numbers) > 0).all()
        found = {reviews.vocabulary[n]: count for n, count in zip(numbers, counts, strict=True)}
        assert found == Counter(review)
    np.testing.assert_array_equal(reviews.test.starts, [0, 2, 2])
    np.testing.assert_array_equal(reviews.test.labels, [0, 1])


def test_the_vocabulary_has_the_most_frequent_ten_thousand_words(monkeypatch):
    rare = " ".join(f"word{i}" for i in range(10_000))
    split = {"text": [f"{rare} often often", ""], "label": [1, 0]}
    library(monkeypatch, train=split, test=split)
    vocabulary = data.imdb().vocabulary
    assert len(vocabulary) == 10_000
    assert vocabulary[0] == "often"


def test_shakespeare_is_read_as_numbers_of_its_alphabet_and_its_end_kept_for_the_test(folder):
    path = folder / "shakespeare" / "input.txt"
    path.parent.mkdir()
    path.write_bytes("é: to be, or\nnot to be".encode())
    text = data.shakespeare()
    assert text.alphabet == "\n ,:benorté"
    assert text.train.dtype == text.test.dtype == np.int32
    shown = ["".join(text.alphabet[i] for i in half) for half in (text.train, text.test)]
    assert shown == ["é: to be, or\nnot to ", "be"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"to \xff be", "text in UTF-8"), (b"", "found 0 bytes"), (b"to", "found 2 bytes")],
)
def test_shakespeare_that_is_no_text_is_refused_with_the_files_name(folder, content, expected):
    path = folder / "shakespeare" / "input.txt"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}: expected .*{expected}"):
        data.shakespeare()


def test_without_shakespeare_its_place_and_its_source_are_told(folder, monkeypatch):
    told = rf"shakespeare/input.txt .*karpathy/char-rnn.* ADAMX_DATA_DIR \(now: {folder}\)"
    with pytest.raises(FileNotFoundError, match=told):
        data.shakespeare()
    monkeypatch.delenv("ADAMX_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="now: not set"):
        data.shakespeare()
