"""Links, the elements of a chain, and the wrappers around them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from adamx.errors import StageError
from adamx.identity import ByValue
from adamx.links.rule import Rule
from adamx.numerics.types import PyTree, State
from adamx.trees.paths import Leaf

__all__ = ["Around", "Beginning", "Entered", "Link", "Part", "Row", "choose", "variants"]


Part = Literal["element", "block", "row", "array"]
"""A part of an array, in the order of size."""


class Around(ByValue):
    """A wrapper around links; this class is the whole contract of such an axis.

    A subclass overrides the methods for what it changes, and :meth:`written`, :meth:`to_json` and
    :meth:`from_json`, so that its chains can be printed and saved. It is made from one value, which
    it keeps as ``self.value``, and two are equal if their values are. :meth:`Link.within` puts it
    around a link. The example shows a stage under a name of its own in JAX's profiler:

    >>> import dataclasses, adamx, jax
    >>> class Profiled(Around, axis="profiled"):
    ...     required = ("profiled",)
    ...     def surround(self, rule):
    ...         def update(signal, slots, step):
    ...             with jax.named_scope(self.value):
    ...                 return rule.update(signal, slots, step)
    ...         return dataclasses.replace(rule, update=update)
    ...     def written(self, inside):
    ...         return f"profiled({self.value!r}, {', '.join(links for _, links in inside)})"
    ...     def to_json(self, write):
    ...         return {"profiled": self.value}
    ...     @classmethod
    ...     def from_json(cls, row, read):
    ...         return cls(row["profiled"])
    >>> def profiled(name, opt):
    ...     return adamx.Transformation(tuple(x.within(Profiled(name)) for x in opt.links))
    >>> opt = adamx.chain(profiled("mean", adamx.scale_by_momentum(0.9)), adamx.sgd(0.1))
    >>> print(opt)
    chain(
        profiled('mean', scale_by_momentum(b1=0.9)),
        scale_by_learning_rate(learning_rate=0.1),
    )
    >>> adamx.from_config(adamx.to_config(opt)) == opt
    True

    :func:`adamx.explain` prints the equations of the stages inside. An axis must therefore not
    change what they compute, except by rounding.

    Attributes:
        axis: its key in a configuration. No two classes may have the same key.
        required, optional: the keys of :meth:`to_json`.
        selects: whether links inside apply to some of the parameters only (:meth:`choose`).
        varies: whether it surrounds the links inside for some of the parameters only
            (:meth:`choose`); for the others, they run without it. Their slots and clocks have the
            same names with and without it.
        packs: whether it changes the form of slots between steps. It then surrounds the rule
            outside of all wrappers that do not.
        places: whether it decides where slots are between steps. It then surrounds the rule outside
            of all wrappers that do not, so that packed slots are moved.
        per_parameter: whether it differs between parameters (:meth:`of_parameter`).
        reach: on which part of an array a rule inside may run alone, if its own reach allows that:
            an ``"element"``, a ``"block"`` of consecutive elements of a row, a ``"row"``, or only
            the whole ``"array"``.
        label: if it selects, the name of the group: links are called ``stage@label``.
        shards: inside ``shard_map``, the mesh axes along which parameters inside are divided; None
            if their types tell.
    """

    axes: ClassVar[dict[str, type[Around]]] = {}
    axis: ClassVar[str] = ""
    required: ClassVar[Sequence[str]] = ()
    optional: ClassVar[Sequence[str]] = ()
    selects: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    places: ClassVar[bool] = False
    per_parameter: ClassVar[bool] = False
    reach: Part = "array"
    label: str = ""
    shards: tuple[str, ...] | None = None

    def __init_subclass__(cls, axis: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.axis = axis
        known = cls.axes.get(axis)
        if known is not None and (known.__module__, known.__name__) != (
            cls.__module__,
            cls.__name__,
        ):
            raise ValueError(
                f"there is an axis {axis!r} already, {known.__module__}.{known.__name__}; "
                "give this one another key"
            )
        if axis:
            cls.axes[axis] = cls

    def surround(self, rule: Rule) -> Rule:
        """Wrap the rule of a stage."""
        return rule

    def choose(
        self, leaves: Sequence[Leaf], inside: str = "", idle: Collection[str] | None = None
    ) -> list[bool]:
        """For every parameter, whether the links inside apply to it (or the wrapper, if it varies).

        Args:
            leaves: the known parameters.
            inside: a description of these parameters for error messages.
            idle: the paths of known parameters without a gradient in this step (others may be
                unknown); None if all parameters have a gradient.
        """
        return [True] * len(leaves)

    def of_parameter(self, path: str, shape: Any) -> Around | None:
        """The wrapper for one parameter, with values in place of functions of path and shape.

        None if it does not surround links for this parameter.
        """
        return self

    def inside(self, leaf: Leaf) -> Leaf:
        """A parameter that it chooses, as the links inside see it, if it varies.

        Raises:
            StageError: if it can't surround links for this parameter.
        """
        return leaf

    def admit(self, name: str, kept: Any) -> None:
        """Raise StageError if it can't wrap an Optax transformation with the state ``kept``."""

    def forms(self) -> Mapping[str, Callable[[Any], Any]]:
        """Functions that unpack the arrays it packs (``is_packed``), by the form's name."""
        return {}

    @property
    def begins(self) -> bool:
        """Whether its links begin a new call where code for a chain is written."""
        return False

    @property
    def family(self) -> Any:
        """Consecutive links whose wrappers have equal families are written in one call."""
        return self

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        """The call that makes the links inside: pairs of a wrapper and the code of its links."""
        return f"{self.axis or type(self).__name__}({', '.join(links for _, links in inside)})"

    def siblings(self) -> Sequence[tuple[Around | None, str]]:
        """If it selects: the selections that divide all parameters among them, with their names.

        None stands for the parameters that no other selection takes.
        """
        return ((self, self.label), (None, f"not {self.label}"))

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        """Its arguments as JSON; ``write(value, where)`` writes functions and other objects."""
        raise TypeError(f"{type(self).__name__} can't be written as JSON: it has no to_json()")

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Around:
        """The inverse of :meth:`to_json`; TypeError or ValueError for invalid arguments."""
        raise TypeError(f"{cls.__name__} can't be read from JSON: it has no from_json()")


class Entered(Around):
    """A wrapper of several roles, whose value is the role: ``"enter"`` for the first link."""

    value: str

    @property
    def family(self) -> Any:
        return type(self)

    @property
    def begins(self) -> bool:
        return self.value == "enter"


class Beginning(Protocol):
    """The state before the first step, as the engine builds it."""

    count: Any
    state: State
    observers: list[str]

    def append(self, name: str, stage: Any, here: list[bool] | None) -> None:
        """Add the slots and clocks of a stage."""

    def params(self, here: list[bool] | None, absent: Any) -> PyTree:
        """The parameters, with ``absent`` in place of those that a link does not apply to."""


class Row(Protocol):
    """A step of the engine: the signals of all parameters on their way along the links."""

    def append(self, name: str, stage: Any, here: list[bool] | None) -> None:
        """Run a stage."""

    def show(self, name: str, link: Any, here: list[bool] | None) -> None:
        """Run an observer."""

    def pass_through(self, name: str, link: Any, here: list[bool] | None) -> None:
        """Run an Optax transformation."""


class Link:
    """One place of a chain.

    Attributes:
        name: its name in the state.
        structure: what programs are compiled for, apart from hyperparameters. Only ``structure``
            and ``around`` hold functions, which may read values that change.
        around: its wrappers, the outermost first.
    """

    name: str
    structure: ByValue
    around: tuple[Around, ...] = ()

    @property
    def where(self) -> tuple[Around, ...]:
        """The wrappers that select parameters; it applies to those that all of them choose."""
        return tuple(x for x in self.around if x.selects)

    @property
    def is_selective(self) -> bool:
        """Whether what its wrappers do to a parameter depends on its path."""
        return any(x.selects or x.varies or x.per_parameter for x in self.around)

    @property
    def forms(self) -> dict[str, Callable[[Any], Any]]:
        """Functions that unpack the arrays of its slots, by the form's name."""
        return {name: unpack for x in self.around for name, unpack in x.forms().items()}

    @property
    def records(self) -> tuple[ByValue, ...]:
        """Records of the values that its functions read, as they were when it was made."""
        return (self.structure, *self.around)

    def renewed(self) -> Self:
        """The same link, with records of the values that its functions read now."""
        link = copy.copy(self)
        link.structure = self.structure.renewed()
        link.around = tuple(around.renewed() for around in self.around)
        return link

    @classmethod
    def of_records(cls, structure: ByValue, around: tuple[Around, ...]) -> Self:
        """A link made from its records."""
        link = object.__new__(cls)
        link.structure, link.around = structure, around
        return link

    def settled(self) -> Self:
        """The link, if its functions still give the values that compiled steps use.

        Raises:
            StageError: if a value that they read has changed; or if a change of it can't be
                detected, and a caller may have compiled a step.
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
                f"{self.functions} uses {', '.join(dict.fromkeys(unseen))}, whose changes can't be "
                "detected, and a step was compiled with it: the step may use another value than "
                "the current one. Read it before the optimiser is made, and give the function the "
                "value as an argument, as in lambda t, lr=lr: …"
            ).within(stage=self.name)
        return self

    @property
    def functions(self) -> str:
        """The name of its functions in errors."""
        return "a function that it holds"

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        """Add its entry to the state before the first step.

        Args:
            beginning: the state under construction.
            name: the link's name in the state.
            here: for every parameter, whether the link applies to it; None for all.
        """
        raise NotImplementedError

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        """Run in a step."""
        raise NotImplementedError

    def at(self, count: Any) -> Link:
        """The link at one step, with values in place of schedules."""
        return self

    @property
    def per_parameter(self) -> tuple[str, ...]:
        """The names of its arguments that are functions of a parameter's path and shape."""
        return ()

    def of_parameter(self, path: str, shape: Any) -> Self:
        """The link for one parameter, with values in place of such functions."""
        return self

    def joined(self, links: Sequence[Link], place: int) -> Link:
        """The link with values in place of references to other links of its chain.

        Args:
            links: the links of the chain.
            place: its own index among them.
        """
        return self

    def replace(self, **changes: Any) -> Link:
        """The link with other values of its arguments."""
        raise TypeError(f"{self.name} has no adamx arguments to replace; make a new one")

    def within(self, around: Around) -> Self:
        """The same link inside this wrapper."""
        return self.surrounded((around, *self.around))

    def everywhere(self) -> Self:
        """The same link for all parameters."""
        return self.surrounded(tuple(x for x in self.around if x not in self.where))

    def surrounded(self, around: tuple[Around, ...]) -> Self:
        """The same link with only these wrappers."""
        link = copy.copy(self)
        link.around = around
        return link


L = TypeVar("L", bound=Link)


def choose(
    links: Sequence[Link],
    leaves: Callable[[], Sequence[Leaf]],
    idle: Callable[[], Collection[str] | None] = lambda: None,
) -> list[list[bool] | None]:
    """For every link, which parameters it applies to; None for all of them.

    A selection inside another chooses among the parameters that the outer one has chosen.
    """
    is_selective = any(link.where for link in links)
    known, without = (leaves(), idle()) if is_selective else ((), None)

    @functools.cache
    def among(around: tuple[Around, ...]) -> tuple[list[bool], list[Leaf]]:
        """Which parameters are left inside of these wrappers, and how they look there."""
        if not around:
            return [True] * len(known), list(known)
        *outer, inner = around
        left, seen = among(tuple(outer))
        if inner.varies:
            return left, _inside(inner, seen, left, without)
        own = [leaf for leaf, is_left in zip(seen, left, strict=True) if is_left]
        place = " in ".join(str(chosen) for chosen in reversed(outer) if chosen.selects)
        answers = iter(inner.choose(own, f" inside {place}" if place else "", without))
        return [is_left and next(answers) for is_left in left], seen

    def chosen(link: Link) -> list[bool] | None:
        if not link.where:
            return None
        return among(tuple(x for x in link.around if x.selects or x.varies))[0]

    return [chosen(link) for link in links]


def _inside(
    around: Around, leaves: list[Leaf], here: list[bool], idle: Collection[str] | None
) -> list[Leaf]:
    """All parameters, as they look inside of a wrapper that varies."""
    rows = zip(leaves, here, around.choose(leaves, "", idle), strict=True)
    return [around.inside(leaf) if mine and chosen else leaf for leaf, mine, chosen in rows]


def variants(
    link: L,
    count: int,
    here: list[bool] | None,
    leaves: Callable[[], Sequence[Leaf]],
    idle: Callable[[], Collection[str] | None] = lambda: None,
) -> list[L]:
    """For each of ``count`` parameters, the link with the wrappers that surround it there."""
    varying = [x for x in link.around if x.varies]
    if not any(x.varies or x.per_parameter for x in link.around) and not link.per_parameter:
        return [link] * count
    seen, without, mine = list(leaves()), idle(), here or [True] * count
    chosen: dict[Around, list[bool]] = {}
    for x in varying:
        chosen[x] = x.choose(seen, "", without)
        seen = _inside(x, seen, mine, without)
    made: dict[Any, L] = {}
    found: list[L] = []
    for i in range(count):
        around = tuple(x for x in link.around if not x.varies or chosen[x][i])
        if mine[i]:
            own_around = (x.of_parameter(*seen[i]) if x.per_parameter else x for x in around)
            around = tuple(x for x in own_around if x is not None)
        own = link.surrounded(around)
        own = own.of_parameter(*seen[i]) if mine[i] else own
        found.append(made.setdefault((around, own.structure), own))
    return found
