"""What a chain is made of: stages, transformations of Optax, observers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import jax

from adamx.errors import StageError
from adamx.identity import ByValue

if TYPE_CHECKING:
    from adamx.core.engine.row import Row
    from adamx.core.engine.state import Beginning
    from adamx.core.stage import Rule

__all__ = ["Around", "Leaf", "Link", "choose", "form_of", "is_packed", "unpacked"]


Leaf: TypeAlias = tuple[str, jax.ShapeDtypeStruct]
"""The path of a parameter, and its shape in the precision of statistics."""


class Around(ByValue):
    """One thing that can be put around links: the whole contract of an axis.

    A subclass says what it changes and leaves the rest. It is put around a link by
    :meth:`Link.within`, and is known to configurations by its ``axis``::

        class Halved(Around, axis="halved"):
            def surround(self, rule):
                return dataclasses.replace(rule, update=half(rule.update))

    Attributes:
        axis: its key in a configuration.
        required, optional: the keys of :meth:`to_json`.
        selects: whether links inside are for some of the parameters only (:meth:`choose`).
        label: where it selects, the name of the group: links are called ``stage@label``.
    """

    axes: ClassVar[dict[str, type[Around]]] = {}
    axis: ClassVar[str] = ""
    required: ClassVar[Sequence[str]] = ()
    optional: ClassVar[Sequence[str]] = ()
    selects: ClassVar[bool] = False
    label: str = ""

    def __init_subclass__(cls, axis: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.axis = axis
        if axis:
            cls.axes[axis] = cls

    def surround(self, rule: Rule) -> Rule:
        """The rule that a stage has inside."""
        return rule

    def choose(
        self, leaves: Sequence[Leaf], inside: str = "", idle: Collection[str] | None = None
    ) -> list[bool]:
        """For every parameter, whether the links inside are for it.

        Args:
            leaves: the parameters that are known.
            inside: in a message, which of the parameters these are.
            idle: the paths of those that have no gradient in this step, beside which there may be
                others that are not known; None if all have one.
        """
        return [True] * len(leaves)

    def admit(self, name: str, kept: Any) -> None:
        """Raise StageError if it can't be around the Optax transformation that keeps this."""

    def forms(self) -> Mapping[str, Callable[[Any], Any]]:
        """How arrays are unpacked that it has packed (:func:`is_packed`), by the form's name."""
        return {}

    @property
    def family(self) -> Any:
        """Neighbours of one family are written in one call."""
        return self

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        """The call that puts members of its family around links, from the code of these links."""
        raise NotImplementedError

    def siblings(self) -> Sequence[tuple[Around | None, str]]:
        """Where it selects, the alternatives that share out all parameters, in words.

        None stands for those that none of them selects.
        """
        raise NotImplementedError

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        """Its arguments as JSON; ``write(value, where)`` writes functions and other objects."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Around:
        """What :meth:`to_json` has written; TypeError or ValueError for what it can't be."""
        raise NotImplementedError


FORMS: dict[str, Callable[[Any], Any]] = {}
"""How arrays in the forms of adamx's own axes are unpacked, by the form's name."""


def is_packed(x: Any) -> bool:
    """Whether this is an array in the form of some axis: ``{"@form": …}``."""
    return isinstance(x, Mapping) and len(x) == 1 and str(next(iter(x))).startswith("@")


def form_of(packed: Mapping[str, Any]) -> str:
    """The name of the form of an array that is packed."""
    return next(iter(packed))[1:]


def unpacked(
    packed: Mapping[str, Any],
    around: Sequence[Around] = (),
    forms: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
) -> Any:
    """The values of an array that is packed.

    Args:
        packed: ``{"@form": …}``.
        around: what is put around the link that keeps it.
        forms: how other forms are unpacked, by name.

    Raises:
        ValueError: if nothing knows its form.
    """
    known = {**FORMS, **{k: x for one in around for k, x in one.forms().items()}, **forms}
    ((key, kept),) = packed.items()
    if key[1:] not in known:
        raise ValueError(
            f"the state was stored by the codec {key[1:]!r}, which is none of {', '.join(known)}; "
            "pass it as codecs=(codec,)"
        )
    return known[key[1:]](kept)


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
    def where(self) -> tuple[Around, ...]:
        """The selections of parameters it is for, all of which must choose them."""
        return tuple(x for x in self.around if x.selects)

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

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        """Add to a state before the first step what it keeps.

        Args:
            beginning: the state as it comes about.
            name: the link's in the state.
            here: the parameters it is for; None for all.
        """
        raise NotImplementedError

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        """Take its turn in a step."""
        raise NotImplementedError

    def at(self, count: Any) -> Link:
        """The link at one step, with values in place of schedules."""
        return self

    def joined(self, links: Sequence[Link]) -> Link:
        """The link with the values of what it shares with others of its chain."""
        return self

    def replace(self, **changes: Any) -> Link:
        """The link with other values of its arguments."""
        raise TypeError(f"{self.name} has no arguments of adamx; make it anew")

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


def choose(
    links: Sequence[Link],
    leaves: Callable[[], Sequence[Leaf]],
    idle: Callable[[], Collection[str] | None] = lambda: None,
) -> list[list[bool] | None]:
    """For every link the parameters it is for; None for all of them.

    A selection inside a selection chooses among the parameters that the outer one has chosen.
    """
    is_selective = any(link.where for link in links)
    known, without = (leaves(), idle()) if is_selective else ((), None)

    @functools.cache
    def among(where: tuple[Around, ...]) -> list[bool]:
        if not where:
            return [True] * len(known)
        *outer, inner = where
        left = among(tuple(outer))
        own = [leaf for leaf, is_left in zip(known, left, strict=True) if is_left]
        place = " in ".join(str(chosen) for chosen in reversed(outer))
        answers = iter(inner.choose(own, f" inside {place}" if place else "", without))
        return [is_left and next(answers) for is_left in left]

    return [among(link.where) if link.where else None for link in links]
