"""What a chain is made of: stages, transformations of Optax, observers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

from adamx.core.errors import StageError
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


class Link:
    """One place of a chain.

    Attributes:
        name: what it is called in the state.
        structure: what programs are compiled for, apart from its numbers; with ``around`` all that
            may read what can change.
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

    @property
    def records(self) -> tuple[ByValue, ...]:
        """What its functions read, as it was when they were given."""
        return (self.structure, *self.around)

    def renewed(self) -> Self:
        """The same, made again: with what its functions read as it is now."""
        link = copy.copy(self)
        link.structure = self.structure.renewed()
        link.around = tuple(around.renewed() for around in self.around)
        return link

    @classmethod
    def of_records(cls, structure: ByValue, around: tuple[Around, ...]) -> Self:
        """A link that is known by its records alone."""
        link = object.__new__(cls)
        link.structure, link.around = structure, around
        return link

    def settled(self) -> Self:
        """Itself, if its functions give what the steps use that are compiled.

        Raises:
            StageError: if something that they read has changed, or can't be seen to have changed
                and a caller may have compiled a step.
        """
        changed = [what for x in self.records if x.is_stale for what in x.changes()]
        if changed:
            raise StageError(
                f"{self.functions} reads {', '.join(dict.fromkeys(changed))}, which has changed: "
                "a step that was compiled before may still use the old value. Make the optimiser "
                "again, or give the function the value as an argument, as in lambda t, lr=lr: …"
            ).within(stage=self.name)
        unseen = [what for x in self.records if x.traced for what in x.unresolved()]
        if unseen:
            raise StageError(
                f"{self.functions} uses {', '.join(dict.fromkeys(unseen))}, of which a change "
                "can't be seen, and a step was compiled with it: the step may use another value "
                "than would be read now. Read it before the optimiser is made, and give the "
                "function the value as an argument, as in lambda t, lr=lr: …"
            ).within(stage=self.name)
        return self

    @property
    def functions(self) -> str:
        """Its functions, as an error calls them."""
        return "a function that it holds"

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
