"""What a chain is made of: stages, transformations of Optax, observers."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Self

from adamx.core.identity import ByValue

if TYPE_CHECKING:
    from adamx.core.selection import Chosen
    from adamx.core.stage import Rule

__all__ = ["Around", "Link"]


class Around(ByValue):
    """What is put around links: which parameters they are for, how their slots are kept."""

    def surround(self, rule: Rule) -> Rule:
        """What it makes of a stage's rule."""
        return rule

    def admit(self, name: str, kept: Any) -> None:
        """Raise StageError if it can't be around a transformation of this state."""

    def written(self, inside: str) -> str:
        """The code that puts it around links, from theirs."""
        raise NotImplementedError

    def __fingerprint__(self) -> Hashable:
        return self.key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value,)


class Link:
    """One place of a chain.

    Attributes:
        name: what it is called in the state.
        structure: what programs are compiled for, apart from its numbers.
        around: what is put around it, the outermost first.
    """

    name: str
    structure: ByValue
    around: tuple[Around, ...] = ()

    @property
    def where(self) -> tuple[Chosen, ...]:
        """The selections of parameters it is for, all of which must choose them."""
        from adamx.core.selection import Chosen  # a selection is put around links

        return tuple(x for x in self.around if isinstance(x, Chosen))

    def within(self, around: Around) -> Self:
        """The same, with this around it."""
        return self.surrounded((around, *self.around))

    def everywhere(self) -> Self:
        """The same, for all parameters."""
        return self.surrounded(tuple(x for x in self.around if x not in self.where))

    def surrounded(self, around: tuple[Around, ...]) -> Self:
        """The same, with only these around it."""
        link = copy.copy(self)
        link.around = around
        return link
