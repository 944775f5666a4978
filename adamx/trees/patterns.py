"""Patterns of paths.

A pattern consists of consecutive segments of a path, ``encoder/layers/0/kernel``. It matches them
at any depth, and everything below them; :mod:`adamx.wrappers.selection` describes its signs.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["called", "check_call", "matches", "runs"]


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path."""
    if pattern.startswith("!"):
        return not matches(pattern[1:], path)
    segments = path.split("/")
    starts = range(1 if pattern.startswith("/") else len(segments))
    return any(_begins(segments[start:], run) for run in runs(pattern) for start in starts)


_BRACKETS = r"""\[(?:(?:<flat index )?(\d+)>?|'([^']*)'|"([^"]*)")\]\.?"""
_INDEX = re.compile(_BRACKETS)
_INDEX_OR_DOT = re.compile(_BRACKETS + r"|\.(?=[^\W\d])")


@functools.cache
def runs(pattern: str) -> tuple[tuple[str, ...], ...]:
    """The segments of a pattern: with literal brackets, and with brackets as indices."""
    written = pattern.strip("/")
    signs = _INDEX_OR_DOT if written.startswith((".", "[")) else _INDEX
    indexed = signs.sub(lambda x: f"/{x[x.lastindex]}/" if x.lastindex else "/", written)
    readings = (tuple(written.split("/")), tuple(filter(None, indexed.split("/"))))
    return readings if indexed != written else readings[:1]


def _begins(segments: Sequence[str], run: Sequence[str]) -> bool:
    if not run:
        return True
    if run[0] == "**":
        return any(_begins(segments[skipped:], run[1:]) for skipped in range(len(segments) + 1))
    return (
        bool(segments)
        and fnmatch.fnmatchcase(segments[0], run[0].replace("[", "[[]"))
        and _begins(segments[1:], run[1:])
    )


def check_call(function: Callable[..., Any], what: str, signature: str, *arguments: Any) -> None:
    """Check that a function can be called with these arguments."""
    try:
        taken = inspect.signature(function)
    except (TypeError, ValueError):  # some that are written in C have no signature
        return
    try:
        taken.bind(*arguments)
    except TypeError:
        raise TypeError(
            f"{what} is called as {signature}, and {called(function)} takes {taken}"
        ) from None


def called(function: Callable[..., Any]) -> str:
    """The name of a function in a message, with its enclosing functions: ``train.<lambda>``."""
    return getattr(function, "__qualname__", type(function).__name__).replace(".<locals>", "")
