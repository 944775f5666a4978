"""What a chain is made of: stages, transformations of Optax, observers."""

from __future__ import annotations

import copy
from typing import Self

from adamx.core.identity import ByValue
from adamx.core.selection import Chosen

__all__ = ["Link"]


class Link:
    """One place of a chain.

    Attributes:
        name: what it is called in the state.
        structure: what programs are compiled for, apart from its numbers.
        where: the selections of parameters it is for, all of which must choose them.
    """

    name: str
    structure: ByValue
    where: tuple[Chosen, ...] = ()

    def within(self, chosen: Chosen) -> Self:
        """The same, for only those of its parameters that are chosen."""
        return self._for((chosen, *self.where))

    def everywhere(self) -> Self:
        """The same, for all parameters."""
        return self._for(())

    def _for(self, where: tuple[Chosen, ...]) -> Self:
        link = copy.copy(self)
        link.where = where
        return link
