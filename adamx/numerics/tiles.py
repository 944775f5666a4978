"""Tiles: parts of an array, on which a kernel runs a rule one after the other.

A kernel passes once over an array in the memory of an accelerator, and holds one tile of it in the
fast memory of a core at a time. A rule that runs on a tile gets the elements of the tile.
:func:`current` knows what depends on the whole array: the number of its elements, and the position
of an element in it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Tile", "current", "within"]


class Tile(NamedTuple):
    """A tile of a matrix.

    Attributes:
        shape: the shape of the tile.
        whole: the shape of the matrix.
        start: the row and the column of the tile's first element.
        elements: the number of elements of the whole array, of which the matrix may be a shard.
    """

    shape: tuple[int, int]
    whole: tuple[int, int]
    start: tuple[Any, Any]
    elements: float


_here: contextvars.ContextVar[Tile | None] = contextvars.ContextVar("tile", default=None)


def current() -> Tile | None:
    """The tile on which a rule runs; None if it runs on a whole array, or on a shard."""
    return _here.get()


@contextlib.contextmanager
def within(tile: Tile) -> Iterator[None]:
    """Let rules run on this tile."""
    token = _here.set(tile)
    try:
        yield
    finally:
        _here.reset(token)
