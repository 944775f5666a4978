"""IMDB's film reviews as bags of words."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.data import sources

__all__ = ["Bags", "Reviews", "imdb"]

WORDS = 10_000
_FILE = "imdb/imdb_bow10k.npz"


class Bags(NamedTuple):
    """The words of every review and their counts, as compressed sparse rows.

    Review i contains the words `words[starts[i]:starts[i + 1]]` (ascending indices into the
    vocabulary) with the counts `counts[starts[i]:starts[i + 1]]`. Its label is 1 if it is positive,
    otherwise 0.
    """

    starts: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    labels: np.ndarray


class Reviews(NamedTuple):
    """Film reviews, with the vocabulary of the training half, most frequent words first."""

    name: str
    train: Bags
    test: Bags
    vocabulary: list[str]


def imdb() -> Reviews:
    """25,000 + 25,000 film reviews over 10,000 words, from the folder or downloaded.

    The order is not random: all reviews with one label come before those with the other.
    """
    folder = sources.folder()
    if folder and (folder / _FILE).is_file():
        return _load(folder / _FILE)
    splits = sources.download("IMDB", "stanfordnlp/imdb", _FILE)
    vocabulary = _most_frequent(splits["train"]["text"])
    train, test = (
        _counted(splits[split]["text"], splits[split]["label"], vocabulary)
        for split in ("train", "test")
    )
    return Reviews("IMDB", train, test, vocabulary)


def _load(path: Path) -> Reviews:
    fields = {"starts": "indptr", "words": "indices", "counts": "counts", "labels": "label"}
    shapes = {f"{split}_{name}": (None,) for split in ("train", "test") for name in fields.values()}
    stored = sources.read_npz(path, vocab=(None,), **shapes)
    try:
        vocabulary = stored["vocab"].astype(np.uint8).tobytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected vocab to be lines of UTF-8 ({error})") from error

    def half(split: str) -> Bags:
        bags = Bags(**{field: stored[f"{split}_{name}"] for field, name in fields.items()})
        problem = _inconsistency(bags, len(vocabulary))
        if problem:
            raise ValueError(f"{path}: the {split} reviews do not fit together: {problem}")
        return bags

    return Reviews("IMDB", half("train"), half("test"), vocabulary)


def _inconsistency(bags: Bags, vocabulary: int) -> str | None:
    starts, words, counts, labels = bags
    if len(starts) != len(labels) + 1:
        return f"{len(starts)} starts (indptr) for {len(labels)} labels; expected one more"
    if starts[0] != 0 or starts[-1] != len(words) or np.any(starts[1:] < starts[:-1]):
        return f"starts (indptr) must ascend from 0 to the number of words, {len(words)}"
    if len(counts) != len(words):
        return f"{len(counts)} counts for {len(words)} words (indices)"
    if len(words) and not 0 <= words.min() <= words.max() < vocabulary:
        return f"words (indices) must be below the vocabulary's size, {vocabulary}"
    descends = words[1:] <= words[:-1]
    descends[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < len(words))] - 1] = False
    if descends.any():
        return "the words (indices) of a review must ascend"
    if len(counts) and counts.min() < 1:
        return "a word that is listed must occur at least once"
    if not np.isin(labels, (0, 1)).all():
        return "labels must be 0 or 1"
    return None


def _tokens(text: str) -> list[str]:
    """The words of a text in lower case, including ! and ?."""
    return re.findall(r"[!?]|\w+(?:['-]\w+)*", text.lower().replace("<br />", " "))


def _most_frequent(texts: Iterable[str]) -> list[str]:
    occurrences = Counter(token for text in texts for token in _tokens(text))
    return [word for word, _ in occurrences.most_common(WORDS)]


def _counted(texts: Iterable[str], labels: Iterable[int], vocabulary: list[str]) -> Bags:
    number = {word: i for i, word in enumerate(vocabulary)}
    starts, words, counts = [0], [], []
    for text in texts:
        bag = sorted(Counter(number[t] for t in _tokens(text) if t in number).items())
        words += [word for word, _ in bag]
        counts += [count for _, count in bag]
        starts.append(len(words))
    return Bags(*(np.array(column, np.int32) for column in (starts, words, counts, list(labels))))
