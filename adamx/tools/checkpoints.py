"""Convert a saved state into the state of a different chain."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import Slot, StageError, Transformation
from adamx.errors import described
from adamx.links.link import Link
from adamx.links.naming import names
from adamx.links.observer import Observer
from adamx.links.rule import CONSECUTIVE, SKIPPED
from adamx.links.stage import Stage
from adamx.numerics.meshes import bare
from adamx.numerics.types import PyTree, State
from adamx.states.reading import copied, kind_of, the_state
from adamx.trees.arrays import kind
from adamx.trees.packed import form_of, is_packed, unpacked
from adamx.trees.paths import Place, place_of
from adamx.wrappers.codecs import Codec

__all__ = ["RestoreReport", "RestoreRow", "Restored", "restore_state"]


@dataclasses.dataclass(frozen=True)
class RestoreRow:
    """What :func:`adamx.restore_state` did with one slot or clock.

    Attributes:
        stage: the stage's name in the state, or ``count``.
        entry: the name of the slot or clock; empty if the stage has only one entry.
        outcome: ``"kept"``, ``"initialised"`` or ``"dropped"``.
        recoded: ``"float32 → int8"`` if the slot has a different codec now; otherwise empty.
        source: the name of the saved stage if it differs from ``stage``; otherwise empty.
        parameters: the paths of the parameters to which the row applies, for example
            ``("encoder", "head/bias")``; each path includes everything below it. Empty if the row
            applies to all parameters of the stage.
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
    """The entries that were kept, initialised and dropped. It prints as a table.

    Attributes:
        rows: one row for every slot and clock: the entries of the chain, then the dropped entries.
    """

    rows: tuple[RestoreRow, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The names, ``stage.entry``, of the entries that continue from their saved values."""
        return self._names("kept")

    @property
    def initialised(self) -> tuple[str, ...]:
        """The names of the entries that are initialised because the saved state lacks them."""
        return self._names("initialised")

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of the saved entries that this chain does not use."""
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
            if i < 4 or any(column)  # show the last two columns only if they are used
        ]
        widths = [max(map(len, column)) for column in columns]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        )


class Restored(NamedTuple):
    """A restored state and a report.

    Attributes:
        state: the state for ``opt.update``.
        report: the entries that were kept, initialised and dropped.
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
    """Convert a saved state for a chain with different stages, groups or codecs.

    A state is a dict with one entry per stage, under the name of the stage. ``restore_state`` keeps
    the entries that are in both the saved state and the chain, bit for bit. It initialises entries
    that the saved state lacks, as ``init`` does, and drops entries that the chain does not use. The
    report lists all of them. Slots whose codec has changed are decoded and encoded again, with
    rounding to the nearest code. All arrays are copied: the state shares no memory with ``saved``.

    The ``count`` is kept, so schedules continue where they were. If a gate of the saved chain
    (:func:`adamx.accumulate`, say) is missing in ``opt``, the steps that did not count for it are
    subtracted.
    A new stage starts with its own clocks, so its averages are debiased as in the first steps of a
    training. If the chain has the same stages as before, ``restore_state`` is not needed: save and
    restore the state like any tree of arrays.

    Stages are matched by name; ``scale_by_momentum_2`` is the second stage of this name in a chain.
    To match a different stage, rename the keys of ``saved``. A stage that is restricted to some
    parameters (``stage@group``, made by :func:`adamx.where` and :func:`adamx.partition`) is matched
    parameter by parameter: the saved entry of a parameter goes to the stage of the same name that
    the new chain applies to this parameter. The clocks come from the same saved stage.

    A parameter is new if the saved state has no entry for it. Its slots are initialised, and it
    shares the clocks of the stage's other parameters.

    Args:
        saved: the state of another chain, or an object that contains one (a Flax ``TrainState``,
            an ``nnx.Optimizer``), or a checkpoint of either: a dict of dicts of arrays, as Orbax
            restores it without a target, or as Flax's ``msgpack_restore`` returns it. Tuples,
            lists, dataclasses and variables in it may have become dicts.
        opt: the chain that continues the training.
        params: the parameters, or their ``jax.ShapeDtypeStruct`` with shardings. The restored
            arrays are placed on the devices on which ``opt.init(params)`` places them.
        strict: raise an error instead of initialising entries. Entries may still be dropped.
        codecs: your own codecs that the saved state uses.

    Returns:
        The state, and a report that prints as a table.

    Warns:
        UserWarning: in two cases. (1) A saved entry of a parameter is dropped, and another entry
            of the same parameter is initialised. (2) An average is initialised for some parameters
            but shares the clock of others, so its start at zero is not corrected.

    Raises:
        TypeError: if ``opt`` is not an adamx optimiser.
        StageError: if ``saved`` contains no state of a chain, or several; if an entry of a stage is
            incomplete; if an array has a different shape or dtype than in the chain; if two saved
            stages match the same slot, or their clocks differ; if a slot would be kept that is in a
            basis (:func:`adamx.in_basis`) which the chain drops. With ``strict``, if an entry would
            be initialised. The error names the place.
        ValueError: if the saved state uses an unknown codec.

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

    This example freezes a layer in the middle of a training:

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
        raise TypeError(
            f"restore_state() takes an adamx optimiser, got {described(opt)}; the order is "
            "restore_state(saved, opt, params)"
        )
    needs = (
        "restore_state() needs the state of a chain, a dict with a 'count', or an object that "
        "contains one (convert.from_optax and convert.from_torch convert states of Optax and "
        "PyTorch optimisers)"
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
    state["count"] = _counted(state["count"], found, state)
    _check_bases(parts, named)
    report = RestoreReport(_summed(parts, parameters))
    if strict and report.initialised:
        new = [str(row) for row in report.rows if row.outcome == "initialised"]
        raise StageError(
            f"the saved state has no entry for {_listed(new)}, and strict=True forbids to "
            f"initialise entries. The saved state has entries for {_listed(tuple(theirs))}"
        )
    for message in _losses(parts, parameters):
        warnings.warn(message, stacklevel=2)
    return Restored(state, report)


def _counted(count: Any, saved: Mapping[str, Any], state: State) -> Any:
    """The count, without the steps that did not count for a gate which the chain has no more.

    A gate of a group leaves it, as other groups have counted all steps.
    """
    for name, entry in saved.items():
        is_gate = isinstance(entry, Mapping) and {SKIPPED, CONSECUTIVE} <= entry.keys()
        if is_gate and name not in state and "@" not in name:
            count = count - jnp.asarray(entry[SKIPPED], count.dtype)
    return count


_BASES = ("eigenbasis", "kl_eigenbasis", "low_rank")
"""The stages of adamx that keep a basis."""


def _check_bases(parts: Sequence[_Part], links: Mapping[str, Link]) -> None:
    """Raise StageError if slots would be kept that are in a basis which is dropped."""
    dropped = {
        part.parameter: part.stage
        for part in parts
        if part.outcome == "dropped" and kind_of(part.stage) in _BASES
    }
    for part in parts if dropped else ():
        link = links.get(part.stage)
        if part.outcome != "kept" or part.parameter is None or not isinstance(link, Stage):
            continue
        rule = link.at(np.int32(0)).rule(jnp.float32)
        is_statistic = part.entry in rule.slots and Slot.of(rule.slots[part.entry]).is_statistic
        if part.parameter in dropped and is_statistic and not rule.prepares:
            raise StageError(
                f"{part.entry!r} of this parameter is kept in the basis of "
                f"{dropped[part.parameter]!r}, which the chain does not continue, so it would be "
                "read in another basis. Remove the entry from the saved state, for example with "
                f"saved.pop({part.source or part.stage!r}); it then starts again"
            ).within(stage=part.stage, parameter="/".join(part.parameter) or None)


class _Part(NamedTuple):
    """The outcome for one array: at ``place`` in the entry of ``stage``, saved under ``source``."""

    stage: str
    place: Place
    outcome: str
    source: str
    parameter: Place | None  # None if all parameters share the array
    recoded: str = ""

    @property
    def entry(self) -> str:
        return self.place[0] if self.place else ""


class _Parameters:
    """The paths and shapes of all parameters."""

    def __init__(self, params: PyTree):
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        self.places: dict[Place, tuple[int, ...]] = {
            place_of(path): np.shape(leaf) for path, leaf in leaves
        }

    def owner(self, place: Place, array: Any) -> Place | None:
        """The parameter to which an array of a stage's entry belongs, or None."""
        for start in range(1, len(place)):
            for stop in range(len(place), start, -1):
                if place[start:stop] in self.places:
                    return place[start:stop]
        whole = self.places.get(())  # a parameter tree that is a single array has an empty path
        is_its = is_packed(array) or (whole and np.shape(array) == whole)
        return () if whole is not None and is_its else None

    def summary(self, some: Iterable[Place]) -> tuple[str, ...]:
        """The paths of some parameters; if they fill a subtree, the path of its root instead."""
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
    """The stage's name without its group, and its number among the stages of that name."""
    name, _, group = stage.partition("@")
    numbered = re.fullmatch(r"(.+)_(\d+)", stage)
    if stage in bases or not numbered:
        return name, 1
    first, number = numbered[1], int(numbered[2])
    if group:  # the label of a group may end in a number
        return name, number if first in among else 1
    return (first, number) if first in bases else (name, 1)


class _Restoring:
    """Builds the entry of one stage from the saved entries of stages of the same name."""

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
        self.needed: dict[Place, list[Place]] = {}  # the places of each parameter of the stage
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
        """Set the saved entries to take arrays from: ``same`` has this stage's own name.

        ``known`` are the parameters for which the saved state has any entry.
        """
        own = {} if same is None else {self.stage: same}
        self.theirs: dict[str, Mapping[Place, Any]] = {**own, **kin}
        self.stages, self.known = stages, known

    def entry(self) -> Any:
        """The entry of the stage in the new state."""
        sources = {owner: self.source(owner, wanted) for owner, wanted in self.needed.items()}
        shared = self.shared(sources.values())
        return self.tree.unflatten(
            self.array(place, own, owner, shared if owner is None else [sources[owner]])
            for (place, own), owner in zip(self.fresh.items(), self.owners.values(), strict=True)
        )

    def source(self, owner: Place, wanted: list[Place]) -> str | None:
        """The saved stage that contains the wanted arrays of a parameter, or None."""
        holders = [
            source
            for source, kept in self.theirs.items()
            if any(_at(kept, place) in kept for place in wanted) and self.is_free(source, owner)
        ]
        if self.stage in holders:
            return self.stage
        if len(holders) > 1:
            raise StageError(
                f"several saved stages have a {wanted[0][0]!r} of this parameter: "
                f"{_listed(holders)}. Remove all but one of them, for example with "
                f"saved.pop({holders[1]!r})"
            ).within(stage=self.stage, parameter="/".join(owner) or None)
        is_lacking = self.stage in self.theirs and "@" not in self.stage
        if not holders and is_lacking and not self.is_new(owner):
            raise self.lacking(self.stage, wanted[0])
        return holders[0] if holders else None

    def is_new(self, owner: Place) -> bool:
        """Whether a parameter is new, that is, not among the parameters of the saved stage."""
        if owner in self.known or not self.known & self.needed.keys():
            return False
        slots = {place[:1] for places in self.needed.values() for place in places}
        return all(  # otherwise it may be an old parameter with a new name
            place[:1] not in slots or self.parameters.owner(place, array) is not None
            for place, array in self.theirs[self.stage].items()
        )

    def is_free(self, source: str, owner: Place) -> bool:
        """Whether no other stage of the chain restores this parameter from this saved stage."""
        other = self.stages.get(source)
        return other is None or other is self or owner not in other.needed

    def shared(self, used: Iterable[str | None]) -> list[str]:
        """The saved stages from which to take the arrays that all parameters share (clocks)."""
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
                f"its parameters were saved by the stages {_listed(held)}, whose clocks "
                f"{'/'.join(place)!r} differ, but a stage has one clock for all its parameters. "
                "Keep these parameters in separate groups"
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
        of = "this stage" if source == self.stage else f"the stage {source!r}"
        return StageError(
            f"the saved state of {of} has no {'/'.join(place) or 'array'}; it has "
            f"{_listed(held)}. If a parameter or a slot was renamed, rename it in the saved state. "
            f"To initialise this stage for all parameters, call saved.pop({source!r})"
        ).within(stage=self.stage)


def _left(
    theirs: Mapping[str, Mapping[Place, Any]], parts: Sequence[_Part], parameters: _Parameters
) -> list[_Part]:
    """The saved arrays that the chain does not use."""
    used = {(part.source, _at(theirs[part.source], part.place)) for part in parts if part.source}
    return [
        _Part(stage, place, "dropped", stage, parameters.owner(place, array))
        for stage, kept in theirs.items()
        for place, array in kept.items()
        if (stage, place) not in used
    ]


def _summed(parts: Sequence[_Part], parameters: _Parameters) -> tuple[RestoreRow, ...]:
    """The rows of the report. A row lists parameters only if their outcomes differ."""
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
    """Warnings about saved values that are lost, and about averages with a wrong clock."""
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
            f"saved values are lost{_of(starting, parameters)}: the chain does not use "
            f"{_listed(lost)}, and it initialises {_listed(begun)}. If a stage was only renamed, "
            "rename it in the saved state. With strict=True this is an error"
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
            f"{_listed(names)} of {_listed(paths)} are initialised but share the clock of the "
            "other parameters. These averages are corrected as if they contained as many steps, so "
            "their start at zero is not corrected. To give them their own clock, put the "
            "parameters into their own group with partition({…})"
        )


def _of(some: Iterable[Place | None], parameters: _Parameters) -> str:
    paths = parameters.summary(place for place in some if place)
    return f" for {_listed(paths)}" if paths else ""


def _at(kept: Mapping[Place, Any], place: Place) -> Place:
    """The place in the saved state; variables of Flax may have added a key ``value``."""
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
    """The saved value in the format of the chain."""
    kept = _within_reach(kept, own)
    forms = {codec.name: codec.unpack for codec in codecs}
    if is_packed(own):
        if (same := _alike(own, kept)) is not None:
            return same
        assert isinstance(link, Stage)
        wanted = jax.eval_shape(lambda x: unpacked(x, {**link.forms, **forms}), bare(own))
        values = unpacked(kept, forms) if is_packed(kept) else jnp.asarray(kept)
        _check_shape(values, wanted)
        return link.packed(place[0], values)
    if is_packed(kept):
        values = unpacked(kept, forms)
        _check_shape(values, own)
        return values.astype(own.dtype)
    if not isinstance(kept, (jax.Array, np.ndarray, np.generic)):
        raise StageError(f"the saved entry is {described(kept)}, not an array")
    _check_shape(kept, own)
    if kept.dtype != own.dtype:
        raise StageError(
            f"the saved array has dtype {kept.dtype}, but the chain keeps {own.dtype}: the dtype "
            "of the parameters or JAX's precision has changed. If this is intended, convert the "
            "saved array"
        )
    return kept


def _within_reach(kept: Any, own: Any) -> Any:
    """The saved arrays, in NumPy if they are on other devices than those of the chain."""
    here = {frozenset(x.device_set) for x in map(_sharding, jax.tree.leaves(own)) if x is not None}

    def of_one(x: Any) -> Any:
        there = _sharding(x)
        is_far = there is not None and here and frozenset(there.device_set) not in here
        return np.asarray(x) if is_far and x.is_fully_addressable else x

    return jax.tree.map(of_one, kept)


def _sharding(x: Any) -> Any:
    return x.sharding if isinstance(x, jax.Array) else None


def _alike(own: Any, kept: Any) -> Any:
    """The saved arrays in our structure, if they have the same shapes and dtypes; else None."""
    ours, theirs = _places(own, is_leaf=None), _places(kept, is_leaf=None)
    if {k: kind(x) for k, x in ours.items()} != {k: kind(x) for k, x in theirs.items()}:
        return None
    return jax.tree.unflatten(jax.tree.structure(own), [theirs[place] for place in ours])


def _check_shape(kept: Any, own: Any) -> None:
    if kept.shape != own.shape:
        raise StageError(
            f"the saved array has shape {kept.shape}, but the chain keeps {own.shape}: the "
            "parameters or the arguments of the stage differ from those at the time of saving"
        )


def _draws(link: Link | None) -> bool:
    """Whether the stage has a key only because of the wrappers around it."""
    if not isinstance(link, Stage):
        return False
    return link.surrounded(()).at(np.int32(0)).rule(jnp.float32).seed is None


def _places(tree: Any, is_leaf: Any = is_packed) -> dict[Place, Any]:
    """Every array by its place, whatever the types of its containers."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {place_of(path): leaf for path, leaf in leaves}


def _recoded(kept: Any, value: Any) -> str:
    """The change of the codec as text, or an empty string."""
    if not (is_packed(kept) or is_packed(value)) or _alike(value, kept) is not None:
        return ""
    forms = (form_of(x) if is_packed(x) else jnp.dtype(x.dtype).name for x in (kept, value))
    return " → ".join(forms)
