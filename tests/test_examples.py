"""The examples: their data reader, and the demo from one end to the other."""

import gzip
import math
import re
import runpy
import struct
import sys

import numpy as np
import pytest

for needed in ("flax", "matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from examples import data, digits  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow


def idx(array, element_type=8):
    """The bytes of an IDX file that holds `array`."""
    array = np.asarray(array, np.uint8)
    header = bytes([0, 0, element_type, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, images=8, *, compress=True, **replaced):
    """Write the four files of a small MNIST into `folder`; `replaced` gives some other bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        contents = {
            "images-idx3": idx(random.integers(0, 256, (images, 28, 28))),
            "labels-idx1": idx(np.arange(images) % 10),
        }
        for kind, content in contents.items():
            content = replaced.get(f"{split}_{kind[:6]}", content)
            name = f"{split}-{kind}-ubyte"
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", ["some-idx", "some-idx.gz"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_idx_file_gives_the_array_it_was_made_from(tmp_path, name, shape):
    array = np.arange(math.prod(shape)).reshape(shape)
    content = idx(array)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    result = data.read_idx(tmp_path / name, ndim=len(shape))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, array)


GOOD = idx(np.zeros((2, 3)))
ZIPPED = gzip.compress(GOOD, mtime=0)

BAD = {
    "empty": (b"", "magic number 00000802 .* found nothing"),
    "type": (idx(np.zeros((2, 3)), element_type=13), "magic number 00000802 .* found 00000d02"),
    "ndim": (idx(np.zeros(6)), "magic number 00000802 .* found 00000801"),
    "other": (b"\x89PNG\r\n", "magic number 00000802 .* found 89504e47"),
    "header": (GOOD[:9], "a header of 12 bytes, found 9"),
    "short": (GOOD[:-1], r"18 bytes for an array of shape \(2, 3\), found 17"),
    "long": (GOOD + b"\0", r"18 bytes for an array of shape \(2, 3\), found 19"),
    "plain.gz": (GOOD, "a whole gzip file"),
    "cut.gz": (ZIPPED[:-12], "a whole gzip file"),
    "torn.gz": (ZIPPED[:-6] + b"abcdef", "a whole gzip file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_idx_file_is_named_with_what_was_expected(tmp_path, name):
    content, expected = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: expected .*{expected}"):
        data.read_idx(tmp_path / name, ndim=2)


def test_missing_idx_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.gz"):
        data.read_idx(tmp_path / "absent.gz", ndim=1)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", ["mnist", ""])
def test_mnist_is_found_and_scaled(tmp_path, monkeypatch, inside, compress):
    write_mnist(tmp_path / inside, compress=compress)
    monkeypatch.setenv("ADAMX_DATA_DIR", str(tmp_path))
    mnist = data.load()
    assert mnist.name == "MNIST"
    assert mnist.train_images.shape == mnist.test_images.shape == (8, 784)
    assert mnist.train_images.dtype == np.float32
    assert 0 <= mnist.train_images.min() < 0.01 < 0.99 < mnist.train_images.max() <= 1
    np.testing.assert_array_equal(mnist.test_labels, np.arange(8, dtype=np.int32))


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        ({"train_labels": idx(np.zeros(7))}, "one label for each of the 8 images .* found 7"),
        ({"train_images": idx(np.zeros((8, 28, 27)))}, "28x28 images, found 28x27"),
        ({"t10k_labels": idx(np.full(8, 10))}, "labels from 0 to 9, found 10"),
    ],
    ids=["count", "size", "label"],
)
def test_mnist_that_does_not_fit_together_is_refused(tmp_path, replaced, expected):
    write_mnist(tmp_path, **replaced)
    with pytest.raises(ValueError, match=expected):
        data.load_mnist(tmp_path)


def test_incomplete_mnist_names_the_missing_file(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        data.load_mnist(tmp_path)


def test_folder_without_mnist_falls_back_to_the_digits_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADAMX_DATA_DIR", str(tmp_path))
    dataset = data.load()
    assert dataset.name == "scikit-learn digits"
    assert str(tmp_path) in capsys.readouterr().out


def test_digits_are_split_by_class(monkeypatch):
    monkeypatch.delenv("ADAMX_DATA_DIR", raising=False)
    dataset = data.load()
    assert len(dataset.train_labels) + len(dataset.test_labels) == 1797
    train, test = np.bincount(dataset.train_labels), np.bincount(dataset.test_labels)
    np.testing.assert_allclose(train, 3 * test, atol=4)


def test_batches_are_the_same_for_a_seed_and_visit_no_example_twice():
    first, again = digits.shuffled(200, 2, seed=1), digits.shuffled(200, 2, seed=1)
    np.testing.assert_array_equal(first, again)
    for epoch in first:
        assert epoch.shape == (3, 64)
        assert len(np.unique(epoch)) == epoch.size


def test_smoothing_of_a_constant_is_that_constant():
    np.testing.assert_allclose(digits.smoothed(np.full(400, 2.5)), 2.5, rtol=1e-12)


@pytest.mark.parametrize(("steps", "said"), [(400, "mean of about 8 steps"), (20, "of each step")])
def test_the_picture_says_what_it_averages(steps, said, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(digits.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curves = {f"curve {i}": np.linspace(2.0, 1.0 + i, steps) for i in range(11)}
    digits.draw(curves, "title", tmp_path / "digits.png")
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == f"loss of the batches, {said}"
    assert len({(x.get_color()[:2], x.get_linestyle()) for x in axes.get_lines()}) == 11


def test_demo_trains_every_optimiser_and_draws_them(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ADAMX_DATA_DIR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    scores = {row.name: row for row in digits.main(["--quick", "--out", str(tmp_path)])}

    names = list(digits.optimisers())
    assert list(scores) == [*names, f"{digits.AVERAGED}, average"]
    chance = math.log(10)  # the loss of saying one in ten to every digit
    for row in scores.values():
        assert 0 < row.train_loss < 0.95 * chance, row
        assert 0.3 < row.test_accuracy <= 1, row
    # Averaging watches the iterates and does not move them.
    assert scores[digits.AVERAGED].train_loss == pytest.approx(scores["adam"].train_loss, rel=1e-6)

    assert {"adam", "adamw", "lion"} <= set(names)
    # The bar ends with the loss that the table has.
    lines = capsys.readouterr().out.split("\n")
    for name, row in scores.items():
        shown = [line for line in lines if re.search(rf"(^|│ ){re.escape(name)} *[━│]", line)]
        with_loss = [line for line in shown if f"{row.train_loss:.2e}" in line]
        assert len(with_loss) == 1 + (name in names), shown
    assert is_drawn(tmp_path / "digits.png")


def test_demo_refuses_a_senseless_number_of_epochs(capsys):
    with pytest.raises(SystemExit):
        digits.main(["--epochs", "0"])
    assert "--epochs must be at least 1, got 0" in capsys.readouterr().err


def test_demo_says_which_file_is_broken(tmp_path, monkeypatch):
    write_mnist(tmp_path, t10k_labels=b"")
    monkeypatch.setenv("ADAMX_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"t10k-labels-idx1-ubyte\.gz: expected"):
        digits.main(["--quick"])


def test_demo_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "examples.digits")
    monkeypatch.setitem(sys.modules, "rich.table", None)  # as if it were not there
    with pytest.raises(SystemExit, match=r"needs rich.*pip install '\.\[demo\]'"):
        runpy.run_module("examples.digits", run_name="__main__")
