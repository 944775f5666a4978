"""Some of the parameters: chosen by the path at which they stand in their tree, or by a predicate.

A path is written with slashes, ``encoder/layers/0/kernel``. A pattern names a run of its segments,
wherever it stands, and everything below it: ``kernel`` is every kernel, ``encoder`` all that is in
an encoder, ``attention/*/bias`` the biases one level below an attention. In a segment ``*`` stands
for any characters, ``?`` for one; the segment ``**`` is any number of segments; a slash in front
ties the run to the root; an exclamation mark in front of it all means every other parameter.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax

from adamx.core.errors import StageError
from adamx.core.hyper import origin
from adamx.core.link import Around
from adamx.core.signal import statistics_dtype

__all__ = ["Chosen", "Part", "Selector", "Where", "choose", "labelled", "paths_of", "shown"]

Selector: TypeAlias = str | tuple[str, ...] | Callable[[str, jax.ShapeDtypeStruct], bool]
"""A pattern, several of which one must match, or a predicate of a parameter's path and shape."""

Leaf: TypeAlias = tuple[str, jax.ShapeDtypeStruct]


def paths_of(tree: Any, leaves: Sequence[Any]) -> list[Leaf]:
    """The path of every parameter, and its shape in the precision of statistics."""
    numbered = tree.unflatten(range(tree.num_leaves))
    return [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            jax.ShapeDtypeStruct(leaves[i].shape, statistics_dtype(leaves[i].dtype)),
        )
        for path, i in jax.tree_util.tree_flatten_with_path(numbered)[0]
    ]


def checked(selector: Any) -> Selector:
    """The selector, if it is one."""
    patterns = selector if isinstance(selector, (tuple, list)) else (selector,)
    if callable(selector):
        return cast(Selector, selector)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise TypeError(
            "a selector is a pattern like 'kernel' or 'encoder/*/bias', a tuple of patterns, or a "
            f"predicate (path, shape) -> bool; got {selector!r} of type {type(selector).__name__}"
        )
    return patterns[0] if len(patterns) == 1 else tuple(patterns)


def selects(selector: Selector, leaf: Leaf) -> bool:
    """Whether the selector means this parameter."""
    path, shape = leaf
    if callable(selector):
        return bool(selector(path, shape))
    patterns = (selector,) if isinstance(selector, str) else selector
    return any(_matches(pattern, path) for pattern in patterns)


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith("!"):
        return not _matches(pattern[1:], path)
    segments, run = path.split("/"), pattern.strip("/").split("/")
    starts = range(1 if pattern.startswith("/") else len(segments))
    return any(_begins(segments[start:], run) for start in starts)


def _begins(segments: list[str], run: list[str]) -> bool:
    if not run:
        return True
    if run[0] == "**":
        return any(_begins(segments[skipped:], run[1:]) for skipped in range(len(segments) + 1))
    return (
        bool(segments)
        and fnmatch.fnmatchcase(segments[0], run[0])
        and _begins(segments[1:], run[1:])
    )


def shown(selector: Selector) -> str:
    """The selector as it is printed in the chain."""
    return f"<predicate {origin(selector)}>" if callable(selector) else repr(selector)


def labelled(selector: Selector) -> str:
    """A short name for a group, fit for a key: of ``*/kernel`` it is ``kernel``."""
    if callable(selector):
        return origin(selector)
    patterns = (selector,) if isinstance(selector, str) else selector
    return "+".join(_word(pattern) for pattern in patterns)


def _word(pattern: str) -> str:
    word = re.sub(r"[^\w.\-]+", "_", pattern.replace("!", "not_", 1)).strip("_")
    return word or "rest"


class Chosen(Around):
    """Which parameters a link is for; equal by value."""

    value: Any
    label: str

    def choose(self, leaves: Sequence[Leaf]) -> list[bool]:
        """For every parameter, whether it is among the chosen."""
        raise NotImplementedError


class Where(Chosen):
    """The parameters that a selector means."""

    value: Selector

    def __init__(self, selector: Selector):
        super().__init__(checked(selector))
        self.label: str = labelled(self.value)

    def choose(self, leaves: Sequence[Leaf]) -> list[bool]:
        chosen = [selects(self.value, leaf) for leaf in leaves]
        if leaves and not any(chosen) and not callable(self.value):
            raise _nothing(self.value, leaves)
        return chosen

    def written(self, inside: str) -> str:
        return f"where({shown(self.value)}, {inside})"


class Part(Chosen):
    """The parameters that one of several selectors is the first to mean."""

    value: tuple[tuple[Selector, ...], int]

    def __init__(self, selectors: tuple[Selector, ...], index: int):
        super().__init__((tuple(map(checked, selectors)), index))
        self.label: str = labelled(self.value[0][index])

    def choose(self, leaves: Sequence[Leaf]) -> list[bool]:
        selectors, index = self.value
        means = [[selects(selector, leaf) for selector in selectors] for leaf in leaves]
        for selector, meant in zip(selectors, zip(*means, strict=True), strict=False):
            if not any(meant) and not (callable(selector) or labelled(selector) == "rest"):
                raise _nothing(selector, leaves)
        first = [row.index(True) if any(row) else None for row in means]
        if None in first:
            raise _uncovered(selectors, leaves, first)
        return [found == index for found in first]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.value


def choose(links: Sequence[Any], leaves: Callable[[], Sequence[Leaf]]) -> list[list[bool] | None]:
    """For every link the parameters it is for; None for all of them."""
    known = leaves() if any(link.where for link in links) else ()
    every = {chosen: chosen.choose(known) for link in links for chosen in link.where}
    return [
        [all(row) for row in zip(*(every[chosen] for chosen in link.where), strict=True)]
        if link.where
        else None
        for link in links
    ]


def _nothing(selector: Selector, leaves: Sequence[Leaf]) -> StageError:
    return StageError(
        f"no parameter is meant by {shown(selector)}; the parameters are {_listed(leaves)}. A "
        "pattern names whole segments of a path: 'kernel' or '*kernel', 'encoder/*'"
    )


def _uncovered(
    selectors: Sequence[Selector], leaves: Sequence[Leaf], first: Sequence[int | None]
) -> StageError:
    def those(index: int | None) -> str:
        return _listed([leaf for leaf, found in zip(leaves, first, strict=True) if found == index])

    rows = [f"{shown(selector)}: {those(i)}" for i, selector in enumerate(selectors)]
    return StageError(
        f"the partition does not cover {those(None)}. It has {'; '.join(rows)}. Add a pattern for "
        "them, or '*' as the last one for all that are left"
    )


def _listed(leaves: Sequence[Leaf], most: int = 8) -> str:
    paths = [path or "(the only one)" for path, _ in leaves]
    more = [f"… ({len(paths)} in all)"] if len(paths) > most else []
    return ", ".join(paths[:most] + more) or "nothing"
