"""Run the links inside of a gate, for which a step may not count."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments import hyper
from adamx.engine.block import Ends
from adamx.engine.kept import chosen, still
from adamx.links.link import Link
from adamx.links.observer import Observer
from adamx.links.rule import CONSECUTIVE
from adamx.links.signal import Signal
from adamx.links.stage import Stage
from adamx.numerics.meshes import platform
from adamx.numerics.shards import axes_of, varying
from adamx.numerics.types import State

if TYPE_CHECKING:
    from adamx.engine.row import Row

__all__ = ["pass_gate"]


def pass_gate(row: Row, name: str, here: list[bool] | None, places: range) -> None:
    """Run the links inside of a gate.

    Args:
        row: the step, in which the stage of the gate has decided, and waits.
        name: the name of this stage.
        here: for every parameter, whether the gate applies to it; None for all.
        places: those of the links inside.
    """
    ends = row.ends if places.stop == len(row.named) and here is None else "signal"
    mine = [i for i in range(len(row.signals)) if here is None or here[i]]
    if row.glances or not mine:
        row.pass_along(places)
    elif places and row.idles[name] and _resting_pays(row, places):
        _pass_or_rest(row, name, mine, places, ends)
    else:
        outer, own = row.inside, row.open[name]
        row.inside = own if outer is None else own & outer
        row.pass_along(places)
        if not row.is_done:
            row.advance(ends=ends, counts=own, mine=here)
        else:
            for i in mine:
                old = still(row.signals[i], row.old_param(i, ends))
                row.signals[i] = chosen(own, row.signals[i], old)
        row.inside, row.is_done = outer, ends != "signal"


def _resting_pays(row: Row, places: range) -> bool:
    """Whether links should not run at all in steps that do not count.

    Behind a ``cond``, the updates of all parameters are in memory at a time. On accelerators,
    elementwise stages take as long as reading their arrays, and need no such memory.
    """
    if platform() == "cpu":
        return True
    links = [*row.named.values()][places.start : places.stop]
    return any(not isinstance(x, (Stage, Observer)) or _reaches_far(x) for x in links)


def _reaches_far(link: Link) -> bool:
    """Whether a stage uses more than the elements at the same place and sums over arrays."""
    if not isinstance(link, Stage):
        return False
    return link.at(np.int32(0)).rule(hyper.clock_dtype()).reach in ("row", "array")


def _pass_or_rest(row: Row, name: str, mine: list[int], places: range, ends: Ends) -> None:
    """Run the links inside of a gate only if this step counts for them.

    The stages that wait, the gate among them, run in front of the links inside for the signals, in
    one block. They run again behind them for their slots, which do not depend on whether the step
    counts.
    """
    own = [*row.named][places.start : places.stop]
    gate, axes = row.waiting[-1], None

    def taken() -> tuple[list[Any], State]:
        nonlocal axes
        inside = copy.copy(row)
        inside.signals, inside.waiting = [*row.signals], [*row.waiting]
        inside.after = {x.name: {} for x in row.waiting}
        inside.pass_along(places)
        if not inside.is_done:
            inside.advance(ends=ends)
        row.places = inside.places
        signals = [inside.signals[i] for i in mine]
        signals = [x.of_param(None) if isinstance(x, Signal) else x for x in signals]
        made = signals, {k: inside.after[k] for k in own if k in inside.after}
        axes = axes or jax.tree.map(axes_of, made)
        return made

    forms, _ = jax.eval_shape(taken)
    kept = {k: row.state[k] for k in own if k in row.state}
    count = gate.ready[0].step.clock[CONSECUTIVE]

    def rested() -> list[Any]:
        return [still(x, row.old_param(i, ends)) for i, x in zip(mine, forms, strict=True)]

    (signals, after), count = jax.lax.cond(
        row.open[name],
        lambda: (jax.tree.map(varying, taken(), axes), jnp.zeros_like(count)),
        lambda: (jax.tree.map(varying, (rested(), kept), axes), count),
    )
    # A number that comes from the links inside makes XLA write the new slots of the gate after the
    # old ones have been read there, and so in place.
    row.waiting[-1] = gate.with_clocks({CONSECUTIVE: count})
    row.advance()
    for i, signal in zip(mine, signals, strict=True):
        is_signal = isinstance(signal, Signal)
        row.signals[i] = signal.of_param(row.signals[i]) if is_signal else signal
    row.after |= after
    row.is_done = ends != "signal"
