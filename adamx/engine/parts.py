"""Compile a step on many arrays in parts, outside ``jit``.

XLA compiles a thousand equal loops as slowly as a thousand different ones. So a step outside
``jit`` is compiled for a few arrays at a time, and parts with arrays of the same kinds share one
program.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from adamx.errors import StageError
from adamx.numerics.types import Array, State
from adamx.trees.align import Aligned
from adamx.trees.columns import column_of, tree_of

__all__ = ["MANY", "step_in_parts"]

MANY = 256  # a step on more arrays than this is compiled in parts
_PART = 16

Slots = Mapping[str, Sequence[str]]
"""The names of every stage's slots, by the stage's name."""


def step_in_parts(
    step: Callable[[Any, list[Any], Aligned | None, State], tuple[list[Array], State]],
    slots: Slots,
    tree: Any,
    gradients: list[Any],
    params: Aligned | None,
    state: State,
) -> tuple[list[Array], State] | None:
    """Run a step in parts, for stages that see one array each.

    Args:
        step: ``(tree, gradients, params, state) -> (updates, state)`` of some arrays.
        slots: the names of the stages' slots.
        tree: the tree of all parameters.
        gradients: the leaves of the gradients.
        params: the parameters of these gradients.
        state: the state before the step.

    Returns:
        The updates and the new state; None after an error, which the step on the whole tree then
        reports.
    """
    if params is not None and params.rest:
        return None
    try:
        before = {
            name: {slot: column_of(tree, state[name][slot]) for slot in kept}
            for name, kept in slots.items()
        }
        thetas = [None] * len(gradients) if params is None else params.own
        updates: list[Any] = [None] * len(gradients)
        after = {
            name: {slot: [*column] for slot, column in x.items()} for name, x in before.items()
        }
        scalars: State = {}
        for part in _parts(list(zip(gradients, thetas, strict=True))):
            taken = {
                name: {slot: [column[i] for i in part] for slot, column in columns.items()}
                for name, columns in before.items()
            }
            own = Aligned([thetas[i] for i in part], []) if params is not None else None
            found, scalars = step(
                jax.tree.structure([0] * len(part)),
                [gradients[i] for i in part],
                own,
                {k: {**x, **taken[k]} if k in taken else x for k, x in state.items()},
            )
            for i, update in zip(part, found, strict=True):
                updates[i] = update
            for name, columns in after.items():
                for slot, column in columns.items():
                    for i, kept in zip(part, scalars[name][slot], strict=True):
                        column[i] = kept
    except (StageError, KeyError, TypeError, ValueError):
        return None
    whole = {
        name: {slot: tree_of(tree, column, gradients) for slot, column in columns.items()}
        for name, columns in after.items()
    }
    return updates, {k: {**x, **whole[k]} if k in whole else x for k, x in scalars.items()}


def _parts(arrays: Sequence[tuple[Any, Any]]) -> Iterator[list[int]]:
    """The indices of arrays, in parts of arrays of one kind and parts of the remaining arrays."""
    alike: dict[Any, list[int]] = collections.defaultdict(list)
    for i, pair in enumerate(arrays):
        alike[tuple(map(_kind, pair))].append(i)
    left: list[int] = []
    for members in alike.values():
        whole = len(members) - len(members) % _PART
        yield from _batches(members[:whole])
        left += members[whole:]
    yield from _batches(left)


def _batches(members: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(members)
    while part := list(itertools.islice(rest, _PART)):
        yield part


def _kind(x: Any) -> Any:
    return getattr(x, "shape", ()), getattr(x, "dtype", type(x)), getattr(x, "sharding", None)
