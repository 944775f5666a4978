"""A saved state brought into a chain that is not quite the one it was saved from."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import StageError, Transformation
from adamx.core.link import Link, form_of, is_packed, unpacked
from adamx.core.naming import names
from adamx.core.observer import Observer
from adamx.core.reading import Place, copied, place_of, the_state
from adamx.core.stage import Stage, kind
from adamx.errors import described
from adamx.numerics.types import PyTree, State
from adamx.wrappers.codecs import Codec

__all__ = ["RestoreReport", "RestoreRow", "Restored", "restore_state"]


@dataclasses.dataclass(frozen=True)
class RestoreRow:
    """What became of a part of a state.

    Attributes:
        stage: the stage's name in the state, or ``count``.
        entry: the name of the slot or clock; empty where a stage keeps only one thing.
        outcome: ``"kept"``, ``"initialised"`` or ``"dropped"``.
        recoded: ``"float32 → int8"``, of a slot that is kept with another codec; else empty.
        source: the stage that it was saved under, where that has another name; else empty.
        parameters: the paths for which this is so, ``("encoder", "head/bias")``, each with
            everything below it; empty if it is so for all that the stage is for.
    """

    stage: str
    entry: str
    outcome: str
    recoded: str = ""
    source: str = ""
    parameters: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``stage.entry``."""
        return f"{self.stage}.{self.entry}" if self.entry else self.stage

    def __str__(self) -> str:
        return f"{self.name} ({_listed(self.parameters)})" if self.parameters else self.name


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """What was kept, initialised and dropped; printed, a table.

    Attributes:
        rows: one for every slot and clock, of the chain first, then of what it has no place for.
    """

    rows: tuple[RestoreRow, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The names, ``stage.entry``, of what goes on from its saved value."""
        return self._names("kept")

    @property
    def initialised(self) -> tuple[str, ...]:
        """The names of what starts anew, as the saved state does not hold it."""
        return self._names("initialised")

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of what was saved, and has no place in this chain."""
        return self._names("dropped")

    def _names(self, outcome: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.name for row in self.rows if row.outcome == outcome))

    def __str__(self) -> str:
        head = ("stage", "entry", "outcome", "recoded", "saved as", "parameters")
        cells = [
            (x.stage, x.entry, x.outcome, x.recoded, x.source, _listed(x.parameters))
            for x in self.rows
        ]
        columns = [
            (name, *column)
            for i, (name, column) in enumerate(zip(head, zip(*cells, strict=True), strict=True))
            if i < 4 or any(column)  # most states need no more
        ]
        widths = [max(map(len, column)) for column in columns]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        )


class Restored(NamedTuple):
    """A restored state, and what became of each of its parts.

    Attributes:
        state: what ``opt.update`` takes.
        report: what was kept, initialised and dropped.
    """

    state: State
    report: RestoreReport


def restore_state(
    saved: PyTree,
    opt: Transformation,
    params: PyTree,
    *,
    strict: bool = False,
    codecs: tuple[Codec, ...] = (),
) -> Restored:
    """Bring a saved state into a chain that has a stage more or less, other groups, another codec.

    A state is a dict, each stage's entry under its name. What is in both is kept, bit for bit.
    What the saved state does not hold is initialised, as ``init`` does it. What the chain has no
    place for is dropped. The report says which is which. Slots that were saved with another codec,
    or without one, are decoded and encoded again, rounded to the nearest. Everything is copied: the
    state shares no memory with ``saved``.

    The ``count`` is kept, so schedules go on where they were. A stage that is new starts with
    clocks of its own: what it averages is debiased by the steps that it has seen, as in the first
    steps of a training. For a chain of the same stages no ``restore_state`` is needed: its state
    is saved and restored like any tree of arrays.

    Stages are matched by name, ``scale_by_momentum_2`` being the second one in a chain. Where that
    is not what you mean, rename the keys of ``saved``. A stage for some of the parameters
    (``stage@group``, in :func:`adamx.where` and :func:`adamx.partition`) is matched parameter by
    parameter: what one group, or the chain, has kept of a parameter goes to the stage of that name
    that is for the parameter now. Clocks come with the parameters.

    A parameter of which the saved state holds nothing is new: its slots are initialised, and have
    the clocks of the stage's other parameters.

    Args:
        saved: the state of another chain, what holds one (a Flax ``TrainState``, an
            ``nnx.Optimizer``), or what a checkpoint holds of it: a dict of dicts of arrays, as
            Orbax restores it without a target and as Flax's ``msgpack_restore`` returns it.
            Tuples, lists, dataclasses and variables in it may have become dicts.
        opt: the chain that will go on.
        params: the parameters, or their ``jax.ShapeDtypeStruct`` with shardings. What is restored
            is placed as ``opt.init(params)`` places it.
        strict: refuse to initialise anything; what is dropped may be.
        codecs: your own ones that the state was stored by.

    Returns:
        The state, and a report that prints as a table.

    Warns:
        UserWarning: in two cases. What was saved of a parameter is dropped, and a stage starts
            anew for this parameter. Or a stage starts anew for some parameters under the clocks of
            others, so that these averages start at zero and this is not corrected.

    Raises:
        TypeError: for something that is no adamx optimiser.
        StageError: naming the place, if ``saved`` holds no chain's state or several, a stage's
            entry lacks something, an array has another shape or dtype than the chain's, two saved
            stages have kept the same, or their clocks disagree; with ``strict``, naming everything
            that would be initialised.
        ValueError: if the state was stored by an unknown codec.

    >>> params = {"w": jnp.ones(3)}
    >>> saved = adamx.sgd(0.1, momentum=0.9).init(params)
    >>> opt = adamx.chain(adamx.sgd(0.1, momentum=0.9), adamx.polyak_ema(0.99))
    >>> state, report = adamx.restore_state(saved, opt, params)
    >>> print(report)
    stage                entry      outcome      recoded
    count                           kept
    scale_by_heavy_ball  trace      kept
    polyak_ema           ema        initialised
    polyak_ema           log_decay  initialised

    In the middle of a training a layer is frozen:

    >>> params = {"encoder": jnp.ones(3), "head": jnp.ones(2)}
    >>> saved = adamx.sgd(0.1, momentum=0.9).init(params)
    >>> opt = adamx.partition({"encoder": adamx.set_to_zero(), "*": adamx.sgd(0.1, momentum=0.9)})
    >>> print(adamx.restore_state(saved, opt, params).report)
    stage                     entry  outcome  recoded  saved as             parameters
    count                            kept
    scale_by_heavy_ball@rest  trace  kept              scale_by_heavy_ball
    scale_by_heavy_ball       trace  dropped                                encoder
    """
    links = getattr(opt, "links", None)
    if links is None:
        raise TypeError(f"restore_state() takes an adamx optimiser, got {described(opt)}")
    needs = (
        "what is to be restored is the state of a chain, a dict with a 'count', or something that "
        "holds one"
    )
    found = the_state(saved, StageError, needs).state
    theirs = {stage: _places(entry) for stage, entry in found.items()}
    state, parameters = opt.init(params), _Parameters(params)
    named = dict(zip(names(links), links, strict=True))
    bases = {link.name for link in links}
    stages = {
        stage: _Restoring(stage, named.get(stage), fresh, parameters, codecs)
        for stage, fresh in state.items()
    }
    known = {parameters.owner(*x) for kept in theirs.values() for x in kept.items()}
    parts: list[_Part] = []
    for stage, restoring in stages.items():
        kin = [other for other in theirs if _kin(other, theirs, bases) == _kin(stage, named, bases)]
        own = {other: theirs[other] for other in kin}
        restoring.offer(own, theirs.get(stage), stages, known)
        state[stage] = restoring.entry()
        parts += restoring.parts
    parts += _left(theirs, parts, parameters)
    report = RestoreReport(_summed(parts, parameters))
    if strict and report.initialised:
        new = [str(row) for row in report.rows if row.outcome == "initialised"]
        raise StageError(
            f"the saved state has nothing for {_listed(new)}, and strict=True lets nothing start "
            f"anew; it holds {_listed(tuple(theirs))}"
        )
    for message in _losses(parts, parameters):
        warnings.warn(message, stacklevel=2)
    return Restored(state, report)


class _Part(NamedTuple):
    """What became of one array: ``place`` in the entry of ``stage``, saved under ``source``."""

    stage: str
    place: Place
    outcome: str
    source: str
    parameter: Place | None  # None of what all parameters share
    recoded: str = ""

    @property
    def entry(self) -> str:
        return self.place[0] if self.place else ""


class _Parameters:
    """The places of the parameters in their tree."""

    def __init__(self, params: PyTree):
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        self.places: dict[Place, tuple[int, ...]] = {
            place_of(path): np.shape(leaf) for path, leaf in leaves
        }

    def owner(self, place: Place, array: Any) -> Place | None:
        """The parameter of which an array in a stage's entry is; None if it is of none."""
        for start in range(1, len(place)):
            for stop in range(len(place), start, -1):
                if place[start:stop] in self.places:
                    return place[start:stop]
        whole = self.places.get(())  # of a single array there is no path in the place
        is_its = is_packed(array) or (whole and np.shape(array) == whole)
        return () if whole is not None and is_its else None

    def summary(self, some: Iterable[Place]) -> tuple[str, ...]:
        """Paths of parameters; of subtrees all of whose parameters are among them, the root's."""
        chosen = set(some)
        others = [place for place in self.places if place not in chosen]
        roots: dict[str, None] = {}
        for place in chosen:
            for length in range(1, len(place) + 1):
                root = place[:length]
                if length == len(place) or not any(x[:length] == root for x in others):
                    roots["/".join(root)] = None
                    break
        return tuple(sorted(roots))


def _kin(stage: str, among: Iterable[str], bases: set[str]) -> tuple[str, int]:
    """The stage's name without its group, and the how-manieth it is of that name there."""
    name, _, group = stage.partition("@")
    numbered = re.fullmatch(r"(.+)_(\d+)", stage)
    if stage in bases or not numbered:
        return name, 1
    first, number = numbered[1], int(numbered[2])
    if group:  # its label may end in a number
        return name, number if first in among else 1
    return (first, number) if first in bases else (name, 1)


class _Restoring:
    """The entry of one stage, put together from what was saved of it and of its kin."""

    def __init__(
        self,
        stage: str,
        link: Link | None,
        fresh: Any,
        parameters: _Parameters,
        codecs: tuple[Codec, ...],
    ):
        self.stage, self.link, self.codecs, self.parameters = stage, link, codecs, parameters
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(fresh, is_leaf=is_packed)
        self.fresh: dict[Place, Any] = {place_of(path): own for path, own in leaves}
        slots = link.at(np.int32(0)).rule(jnp.float32).slots if isinstance(link, Stage) else None
        self.owners: dict[Place, Place | None] = {}
        self.needed: dict[Place, list[Place]] = {}  # of every parameter that the stage is for
        for place, own in self.fresh.items():
            is_clock = slots is not None and place[:1] not in [(slot,) for slot in slots]
            of_none = is_clock or isinstance(link, Observer)
            owner = self.owners[place] = None if of_none else parameters.owner(place, own)
            if owner is not None:
                self.needed.setdefault(owner, []).append(place)
        self.parts: list[_Part] = []

    def offer(
        self,
        kin: Mapping[str, Mapping[Place, Any]],
        same: Mapping[Place, Any] | None,
        stages: Mapping[str, _Restoring],
        known: set[Place | None],
    ) -> None:
        """From where it may take: from what was saved under its own name, or from its kin.

        ``known`` are the parameters of which anything was saved.
        """
        own = {} if same is None else {self.stage: same}
        self.theirs: dict[str, Mapping[Place, Any]] = {**own, **kin}
        self.stages, self.known = stages, known

    def entry(self) -> Any:
        """What the stage keeps."""
        sources = {owner: self.source(owner, wanted) for owner, wanted in self.needed.items()}
        shared = self.shared(sources.values())
        return self.tree.unflatten(
            self.array(place, own, owner, shared if owner is None else [sources[owner]])
            for (place, own), owner in zip(self.fresh.items(), self.owners.values(), strict=True)
        )

    def source(self, owner: Place, wanted: list[Place]) -> str | None:
        """The saved stage that has kept what is wanted of a parameter; None if none has."""
        holders = [
            source
            for source, kept in self.theirs.items()
            if any(_at(kept, place) in kept for place in wanted) and self.is_free(source, owner)
        ]
        if self.stage in holders:
            return self.stage
        if len(holders) > 1:
            raise StageError(
                f"the saved stages {_listed(holders)} have all kept its {wanted[0][0]}; leave one "
                f"of them: saved.pop({holders[1]!r})"
            ).within(stage=self.stage, parameter="/".join(owner) or None)
        is_lacking = self.stage in self.theirs and "@" not in self.stage
        if not holders and is_lacking and not self.is_new(owner):
            raise self.lacking(self.stage, wanted[0])
        return holders[0] if holders else None

    def is_new(self, owner: Place) -> bool:
        """Whether a parameter has joined those that the saved stage was for."""
        if owner in self.known or not self.known & self.needed.keys():
            return False
        slots = {place[:1] for places in self.needed.values() for place in places}
        return all(  # else it may be an old one under a new name
            place[:1] not in slots or self.parameters.owner(place, array) is not None
            for place, array in self.theirs[self.stage].items()
        )

    def is_free(self, source: str, owner: Place) -> bool:
        """Whether no other stage of the chain has this name, and takes over the parameter."""
        other = self.stages.get(source)
        return other is None or other is self or owner not in other.needed

    def shared(self, used: Iterable[str | None]) -> list[str]:
        """The saved stages from which that comes which all parameters share."""
        sources = list(dict.fromkeys(used))
        if sources and not isinstance(self.link, Observer):
            return [source for source in sources if source is not None]
        if self.stage in self.theirs:
            return [self.stage]
        return [source for source in self.theirs if source not in self.stages][:1]

    def array(
        self, place: Place, own: Any, owner: Place | None, sources: Sequence[str | None]
    ) -> Any:
        """One array of the entry."""
        held = {
            source: kept[at]
            for source in sources
            if source is not None
            for kept in [self.theirs[source]]
            for at in [_at(kept, place)]
            if at in kept
        }
        missing = [source for source in sources if source is not None and source not in held]
        optional = isinstance(self.link, Observer) or (place == ("key",) and _draws(self.link))
        if missing and not optional:
            raise self.lacking(missing[0], place)
        if not held:
            self.parts.append(_Part(self.stage, place, "initialised", "", owner))
            return own
        kept = next(iter(held.values()))
        if place != ("key",) and not all(_same(kept, x) for x in held.values()):
            raise StageError(
                f"it takes parameters over from {_listed(held)}, whose {'/'.join(place)} differ: "
                "they have taken different steps, and a stage has one clock for all its "
                "parameters. Keep them in groups of their own"
            ).within(stage=self.stage)
        try:
            value = _value(own, kept, self.link, place, self.codecs)
        except StageError as error:
            raise error.within(stage=self.stage, parameter="/".join(place) or None) from None
        recoded = _recoded(kept, value)
        self.parts += [_Part(self.stage, place, "kept", x, owner, recoded) for x in held]
        return jax.tree.map(copied, value, own)

    def lacking(self, source: str, place: Place) -> StageError:
        held = ["/".join(found) for found in self.theirs[source]]
        of = "this stage" if source == self.stage else repr(source)
        return StageError(
            f"the saved state has no {'/'.join(place) or 'array'} of {of}; it has "
            f"{_listed(held)}. If a parameter or a slot has another name now, rename it in what "
            f"was saved. To start this stage anew for all parameters, saved.pop({source!r})"
        ).within(stage=self.stage)


def _left(
    theirs: Mapping[str, Mapping[Place, Any]], parts: Sequence[_Part], parameters: _Parameters
) -> list[_Part]:
    """What was saved, and has no place."""
    used = {(part.source, _at(theirs[part.source], part.place)) for part in parts if part.source}
    return [
        _Part(stage, place, "dropped", stage, parameters.owner(place, array))
        for stage, kept in theirs.items()
        for place, array in kept.items()
        if (stage, place) not in used
    ]


def _summed(parts: Sequence[_Part], parameters: _Parameters) -> tuple[RestoreRow, ...]:
    """The rows of the report; with parameters, where not all share what became of their arrays."""
    rows: dict[RestoreRow, list[_Part]] = {}
    fates: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for part in parts:
        renamed = part.source if part.source != part.stage else ""
        row = RestoreRow(part.stage, part.entry, part.outcome, part.recoded, renamed)
        rows.setdefault(row, []).append(part)
        for stage in {part.stage, part.source} - {""}:
            fates.setdefault((stage, part.entry), set()).add((part.outcome, part.source))

    def of_some(row: RestoreRow, own: list[_Part]) -> RestoreRow:
        some = {part.parameter for part in own if part.parameter}
        if len(fates[row.stage, row.entry]) == 1 or not some:
            return row
        return dataclasses.replace(row, parameters=parameters.summary(some))

    return tuple(of_some(row, own) for row, own in rows.items())


def _losses(parts: Sequence[_Part], parameters: _Parameters) -> Iterable[str]:
    """What a training loses of what was saved, in words."""
    known = [part for part in parts if part.parameter is not None]
    new = [part for part in known if part.outcome == "initialised"]
    gone = [part for part in known if part.outcome == "dropped"]
    starting = {part.parameter for part in new} & {part.parameter for part in gone}
    if starting := starting & set(parameters.places):
        lost, begun = (
            dict.fromkeys(f"{x.stage}.{x.entry}" for x in group if x.parameter in starting)
            for group in (gone, new)
        )
        yield (
            f"saved values are lost{_of(starting, parameters)}: the chain has no place for "
            f"{_listed(lost)}, and what it keeps starts anew: {_listed(begun)}. If a stage is only "
            "called otherwise, rename it in what was saved; strict=True makes this an error"
        )
    clocks = {part.stage for part in parts if part.outcome == "kept" and part.parameter is None}
    undated: dict[tuple[str, ...], dict[str, None]] = {}
    for stage in dict.fromkeys(part.stage for part in new if part.stage in clocks):
        some = [part for part in new if part.stage == stage]
        names = dict.fromkeys(f"{stage}.{part.entry}" for part in some)
        paths = parameters.summary(part.parameter for part in some if part.parameter)
        undated.setdefault(paths, {}).update(names)
    for paths, names in undated.items():
        yield (
            f"what starts anew for {_listed(paths)} has the clock of the other parameters: "
            f"{_listed(names)}. These averages count as if they had seen as many steps, and are "
            "not debiased. A group of their own, partition({…}), gives them a clock of their own"
        )


def _of(some: Iterable[Place | None], parameters: _Parameters) -> str:
    paths = parameters.summary(place for place in some if place)
    return f" of {_listed(paths)}" if paths else ""


def _at(kept: Mapping[Place, Any], place: Place) -> Place:
    """The place under which it was saved: variables may have left a key behind."""
    if place in kept:
        return place
    boxed = [
        other
        for i in range(len(place), 0, -1)
        for other in [(*place[:i], "value", *place[i:])]
        if other in kept
    ]
    return boxed[0] if boxed else place


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(np.array_equal(np.asarray(one), np.asarray(other)))


def _listed(names: Iterable[str], most: int = 8) -> str:
    every = list(names)
    more = [f"… ({len(every)} in all)"] if len(every) > most else []
    return ", ".join(every[:most] + more)


def _value(own: Any, kept: Any, link: Link | None, place: Place, codecs: tuple[Codec, ...]) -> Any:
    """The saved value, in the form in which the chain keeps its own."""
    forms = {codec.name: codec.unpack for codec in codecs}
    if is_packed(own):
        if (same := _alike(own, kept)) is not None:
            return same
        assert isinstance(link, Stage)
        wanted = jax.eval_shape(lambda x: unpacked(x, link.around, forms), own)
        values = unpacked(kept, forms=forms) if is_packed(kept) else jnp.asarray(kept)
        _check_shape(values, wanted)
        return link.packed(place[0], values)
    if is_packed(kept):
        values = unpacked(kept, forms=forms)
        _check_shape(values, own)
        return values.astype(own.dtype)
    if not isinstance(kept, (jax.Array, np.ndarray, np.generic)):
        raise StageError(f"what was saved is {described(kept)}, not an array")
    _check_shape(kept, own)
    if kept.dtype != own.dtype:
        raise StageError(
            f"it was saved as {kept.dtype}, and the chain keeps {own.dtype}: parameters or JAX's "
            f"precision are others than they were. If that is meant, convert what was saved"
        )
    return kept


def _alike(own: Any, kept: Any) -> Any:
    """What was saved in the structure of ours, if both are of the same arrays; or else None."""
    ours, theirs = _places(own, is_leaf=None), _places(kept, is_leaf=None)
    if {k: kind(x) for k, x in ours.items()} != {k: kind(x) for k, x in theirs.items()}:
        return None
    return jax.tree.unflatten(jax.tree.structure(own), [theirs[place] for place in ours])


def _check_shape(kept: Any, own: Any) -> None:
    if kept.shape != own.shape:
        raise StageError(
            f"it was saved with the shape {kept.shape}, and the chain keeps {own.shape}: these are "
            "not the parameters, or not the arguments, that it was saved with"
        )


def _draws(link: Link | None) -> bool:
    """Whether the stage keeps a key only because of what is put around it."""
    if not isinstance(link, Stage):
        return False
    return link.surrounded(()).at(np.int32(0)).rule(jnp.float32).seed is None


def _places(tree: Any, is_leaf: Any = is_packed) -> dict[Place, Any]:
    """Every array by where it is, whatever its containers have become."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {place_of(path): leaf for path, leaf in leaves}


def _recoded(kept: Any, value: Any) -> str:
    """How what was saved has changed its form, if it has."""
    if not (is_packed(kept) or is_packed(value)) or _alike(value, kept) is not None:
        return ""
    forms = (form_of(x) if is_packed(x) else jnp.dtype(x.dtype).name for x in (kept, value))
    return " → ".join(forms)
