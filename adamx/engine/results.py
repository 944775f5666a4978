"""What a block computes of an array, and what it only hands on.

A stage may return an argument as it got it. Such a result needs no place in a stack of arrays, and
a kernel need not write it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from adamx.numerics.types import PyTree

__all__ = ["Results"]


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a function of some arguments.

    Attributes:
        tree: the tree of all results.
        handed: for each of them, the place among the arguments of the one that it is, or None.
    """

    tree: Any
    handed: tuple[int | None, ...]

    @classmethod
    def of(
        cls, made: PyTree, given: Sequence[Any], hands: Callable[[Any], bool] = lambda x: True
    ) -> Results:
        """The results ``made`` of the arguments ``given``, while they are traced.

        Args:
            made: a tree of arrays.
            given: the leaves of the arguments.
            hands: which arguments may be handed on.
        """
        leaves, tree = jax.tree.flatten(made)
        places = {id(x): i for i, x in enumerate(given) if hands(x)}
        return cls(tree, tuple(places.get(id(x)) for x in leaves))

    def computed(self, made: PyTree) -> list[Any]:
        """Those of the results that are computed."""
        leaves = jax.tree.leaves(made)
        return [x for x, place in zip(leaves, self.handed, strict=True) if place is None]

    def joined(self, computed: Sequence[Any], given: Sequence[Any]) -> PyTree:
        """All results, from those that are computed and the leaves of the arguments."""
        new = iter(computed)
        return self.tree.unflatten(next(new) if i is None else given[i] for i in self.handed)
