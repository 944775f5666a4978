"""Text, character by character."""

from typing import NamedTuple

import numpy as np

from examples.data import sources

__all__ = ["Text", "shakespeare"]

_FILE = "shakespeare/input.txt"
_TESTED = 0.1  # of the text, its end


class Text(NamedTuple):
    """Characters as numbers (int32) of the alphabet, which is all of them in their order."""

    name: str
    train: np.ndarray
    test: np.ndarray
    alphabet: str


def shakespeare() -> Text:
    """A million characters of Shakespeare's plays, from the folder; the last tenth is the test.

    Raises:
        FileNotFoundError: where the folder does not have them; it says where they are to be had.
        ValueError: for a file that is no text.
    """
    folder = sources.folder()
    path = folder / _FILE if folder else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"Tiny Shakespeare is not here: put {_FILE} (data/tinyshakespeare/input.txt of "
            "github.com/karpathy/char-rnn) into the folder that the environment variable "
            f"ADAMX_DATA_DIR names (now: {folder or 'not set'})"
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
