"""Text as sequences of characters."""

from typing import NamedTuple

import numpy as np

from examples.data import sources

__all__ = ["Text", "shakespeare"]

_FILE = "shakespeare/input.txt"
_TESTED = 0.1  # fraction of the text, at its end


class Text(NamedTuple):
    """A text as indices (int32) into its alphabet, which contains all its characters, sorted."""

    name: str
    train: np.ndarray
    test: np.ndarray
    alphabet: str


def shakespeare() -> Text:
    """A million characters of Shakespeare's plays, from the folder; the last tenth is the test set.

    Raises:
        FileNotFoundError: if the folder does not contain the file. The error says where to get it.
        ValueError: if the file is not text.
    """
    folder = sources.folder()
    path = folder / _FILE if folder else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"Tiny Shakespeare was not found: put {_FILE} (data/tinyshakespeare/input.txt of "
            "github.com/karpathy/char-rnn) into the folder in the environment variable "
            f"ADAMX_DATA_DIR (now: {folder or 'not set'})"
        )
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from error
    alphabet, numbers = np.unique(np.array(list(text), "U1"), return_inverse=True)
    end = len(text) - round(_TESTED * len(text))
    if not 0 < end < len(text):
        raise ValueError(f"{path}: expected text to train on and to test, found {len(text)} bytes")
    numbers = numbers.astype(np.int32)
    return Text("Tiny Shakespeare", numbers[:end], numbers[end:], "".join(alphabet))
