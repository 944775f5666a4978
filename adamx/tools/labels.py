"""Names and numbers as they are printed in tables and plots of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["aligned", "counted", "described", "named_leaves", "short"]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, for example ``"test.loss"``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def described(coordinates: Mapping[str, np.ndarray]) -> list[str]:
    """A name for each member, made from its coordinates."""
    columns = [[f"{name}={x}" for x in short(values)] for name, values in coordinates.items()]
    return [", ".join(row) for row in zip(*columns, strict=True)]


def short(values: np.ndarray) -> list[str]:
    """Numbers as text, with the fewest digits (at least three) that distinguish them."""
    known = np.unique(values[~np.isnan(values)]).tolist()
    digits = 3
    while digits < 17 and len({f"{x:.{digits}g}" for x in known}) < len(known):
        digits += 1
    return ["–" if math.isnan(x) else f"{x:.{digits}g}" for x in values.tolist()]


def aligned(scores: np.ndarray) -> Callable[[float], str]:
    """A function that formats all scores with the same number of decimals, or with exponents."""
    sizes = np.abs(scores[np.isfinite(scores) & (scores != 0)])
    low, high = (math.floor(math.log10(x)) for x in (min(sizes, default=1), max(sizes, default=1)))
    form = f".{max(0, 3 - low)}f" if low >= -3 and high < 5 else ".3e"
    return lambda score: f"{score:{form}}" if math.isfinite(score) else "diverged"


def counted(n: int, what: str) -> str:
    """A count with its noun: ``3 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"
