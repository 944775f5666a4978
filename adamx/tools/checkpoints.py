"""A saved state brought into a chain that is not quite the one it was saved from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import StageError, Transformation
from adamx.core.link import Link
from adamx.core.naming import names
from adamx.core.observer import Observer
from adamx.core.stage import Stage, kind
from adamx.core.trees import is_encoded
from adamx.core.types import PyTree, State
from adamx.wrappers.codecs import Codec
from adamx.wrappers.store import Storage, codecs_around, decoded_array, encoded_slot

__all__ = ["RestoreReport", "RestoreRow", "Restored", "restore_state"]

Place = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RestoreRow:
    """What became of a part of a state.

    Attributes:
        stage: the stage's name in the state, or ``count``.
        entry: the name of the slot or clock; empty where a stage keeps only one thing.
        outcome: ``"kept"``, ``"initialised"`` or ``"dropped"``.
        recoded: ``"float32 → int8"``, of a slot that is kept with another codec; else empty.
    """

    stage: str
    entry: str
    outcome: str
    recoded: str = ""

    @property
    def name(self) -> str:
        """``stage.entry``."""
        return f"{self.stage}.{self.entry}" if self.entry else self.stage


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
        """The names of what starts anew, as the saved state has none."""
        return self._names("initialised")

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of what was saved, and has no place in this chain."""
        return self._names("dropped")

    def _names(self, outcome: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.name for row in self.rows if row.outcome == outcome))

    def __str__(self) -> str:
        table = [("stage", "entry", "outcome", "recoded"), *map(dataclasses.astuple, self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
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
    saved: Mapping[str, Any], opt: Transformation, params: PyTree, *, codecs: tuple[Codec, ...] = ()
) -> Restored:
    """Bring a saved state into a chain that has a stage more or less, or another codec.

    A state is a dict, each stage's entry under its name. What is in both is kept, bit for bit;
    what the saved state has not is as ``init`` makes it; what the chain has not is left behind;
    and the report says which is which. Slots that are stored by another codec, or were by none,
    are decoded and encoded again, rounded to the nearest.

    The ``count`` is kept, so schedules go on where they were. A stage that is new starts with
    clocks of its own: what it averages is debiased by the steps that it has seen, as in the first
    steps of a training. For a chain of the same stages no ``restore_state`` is needed: its state
    is saved and restored like any tree of arrays.

    Stages are matched by name, ``scale_by_momentum_2`` being the second one in a chain. Where that
    is not what you mean, rename the keys of ``saved``.

    Args:
        saved: the state of another chain, or what a checkpoint holds of it: a dict of dicts of
            arrays, as Orbax restores it without a target and as Flax's ``msgpack_restore`` returns
            it. Tuples, lists and dataclasses in it may have become dicts.
        opt: the chain that will go on.
        params: the parameters, or their ``jax.ShapeDtypeStruct`` with shardings. What is restored
            is placed as ``opt.init(params)`` places it.
        codecs: your own ones that the state was stored by.

    Returns:
        The state, and a report that prints as a table.

    Raises:
        TypeError: for something that is no adamx optimiser.
        StageError: naming the place, if ``saved`` is no chain's state, a stage's entry lacks
            something, or an array has another shape or dtype than the chain's.
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
    """
    links = getattr(opt, "links", None)
    if links is None:
        raise TypeError(f"restore_state() takes an adamx optimiser, got {opt!r}")
    if not isinstance(saved, Mapping) or "count" not in saved:
        held = f"a dict of {sorted(saved)}" if isinstance(saved, Mapping) else type(saved).__name__
        raise StageError(
            f"what is to be restored is {held}, not the state of a chain, which has a 'count'; "
            "of a checkpoint that holds more, pass what was saved of init() and update()"
        )
    state = opt.init(params)
    named = dict(zip(names(links), links, strict=True))
    rows: list[RestoreRow] = []
    for stage, fresh in state.items():
        if stage in saved:
            state[stage] = _entry(stage, named.get(stage), fresh, saved[stage], codecs, rows)
        else:
            rows += [RestoreRow(*_shown(stage, place), "initialised") for place in _places(fresh)]
    for stage in saved:
        if stage not in state:
            rows += [
                RestoreRow(*_shown(stage, place), "dropped") for place in _places(saved[stage])
            ]
    return Restored(state, RestoreReport(tuple(dict.fromkeys(rows))))


def _entry(
    stage: str,
    link: Link | None,
    fresh: Any,
    saved: Any,
    codecs: tuple[Codec, ...],
    rows: list[RestoreRow],
) -> Any:
    """What a stage keeps, with everything that was saved of it."""
    theirs = _places(saved)
    optional = isinstance(link, Observer)

    def restored(path: Any, own: Any) -> Any:
        place = _place(path)
        missing = place not in theirs
        if missing and not (optional or (place == ("key",) and _draws(link))):
            raise _lacking(stage, place, _places(saved))
        shown = _shown(stage, place)
        if missing:
            rows.append(RestoreRow(*shown, "initialised"))
            return own
        kept = theirs.pop(place)
        try:
            value = _value(own, kept, link, place, codecs)
        except StageError as error:
            where = "/".join(place)
            raise error.within(stage=stage, parameter=where or None) from None
        rows.append(RestoreRow(*shown, "kept", _recoded(kept, value)))
        return jax.tree.map(_placed, value, own)

    entry = jax.tree_util.tree_map_with_path(restored, fresh, is_leaf=is_encoded)
    rows += [RestoreRow(*_shown(stage, place), "dropped") for place in theirs]
    return entry


def _value(own: Any, kept: Any, link: Link | None, place: Place, codecs: tuple[Codec, ...]) -> Any:
    """The saved value, in the form in which the chain keeps its own."""
    if is_encoded(own):
        if (same := _alike(own, kept)) is not None:
            return same
        known = (*codecs, *codecs_around(link))
        wanted = jax.eval_shape(lambda x: decoded_array(x, known), own)
        values = decoded_array(kept, codecs) if is_encoded(kept) else jnp.asarray(kept)
        _check_shape(values, wanted)
        assert isinstance(link, Stage)
        return encoded_slot(link, place[0], values)
    if is_encoded(kept):
        values = decoded_array(kept, codecs)
        _check_shape(values, own)
        return values.astype(own.dtype)
    if not isinstance(kept, (jax.Array, np.ndarray, np.generic)):
        raise StageError(f"what was saved is {kept!r}, not an array")
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


def _lacking(stage: str, place: Place, theirs: dict[Place, Any]) -> StageError:
    held = ["/".join(found) for found in theirs]
    shown = ", ".join(held[:8]) + (f", … ({len(held)} in all)" if len(held) > 8 else "")
    return StageError(
        f"the saved state has no {'/'.join(place) or 'array'} of this stage; it has "
        f"{shown or 'nothing'}. The parts of a stage belong together; to start it anew, leave it "
        f"out: saved.pop({stage!r})"
    ).within(stage=stage)


def _draws(link: Link | None) -> bool:
    """Whether the stage keeps a key for the random bits of a codec."""
    return isinstance(link, Stage) and any(isinstance(x, Storage) for x in link.around)


def _places(tree: Any, is_leaf: Any = is_encoded) -> dict[Place, Any]:
    """Every array by where it is, whatever its containers have become."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {_place(path): leaf for path, leaf in leaves}


def _place(path: Any) -> Place:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _shown(stage: str, place: Place) -> tuple[str, str]:
    return stage, place[0] if place else ""


def _recoded(kept: Any, value: Any) -> str:
    """How what was saved has changed its form, if it has."""
    if not (is_encoded(kept) or is_encoded(value)) or _alike(value, kept) is not None:
        return ""
    forms = (next(iter(x))[1:] if is_encoded(x) else jnp.dtype(x.dtype).name for x in (kept, value))
    return " → ".join(forms)


def _placed(value: Any, like: jax.Array) -> jax.Array:
    """On the devices of what it stands for; committed to them only if that is."""
    if isinstance(value, jax.Array) or getattr(like, "committed", True):
        return jax.device_put(value, like.sharding)
    return jnp.array(value)
