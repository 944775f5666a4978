"""Check that the state of a step has the form that ``init`` makes.

Arrays of another shape would be broadcast, and the state would grow. The checks run while a step is
traced, so they cost a compiled step nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from adamx.errors import StageError
from adamx.links.rule import Clock
from adamx.links.slots import Slot, shape_of_zeros, zeros
from adamx.numerics.shards import divided
from adamx.numerics.types import PyTree
from adamx.trees.arrays import kind, kinds
from adamx.trees.packed import forms_of

__all__ = ["Form", "check_clock", "check_count", "check_scalars"]

_REMEDY = (
    "The gradient and the state must belong to the same parameters: update a state that was made "
    "under jax.vmap under jax.vmap, and convert a state of another chain with "
    "adamx.restore_state(state, opt, params)"
)


def check_count(count: Any) -> None:
    """Check that the count is one integer."""
    if np.shape(count) or not jnp.issubdtype(jnp.result_type(count), jnp.integer):
        raise StageError(
            f"the state's count is {kind(count)}, where init() makes int32[]. {_REMEDY}"
        )


def check_clock(stage: str, name: str, clock: Clock, kept: Any) -> None:
    """Check that a clock has the shape of its first value; it may have any precision."""
    start = _abstract(clock.start)
    if start is not None and np.shape(kept) != np.shape(start):
        raise StageError(
            f"its clock {name!r} is {kinds(kept)} in the state, where init() makes {kinds(start)}. "
            f"{_REMEDY}"
        ).within(stage=stage)


def check_scalars(stage: str, kept: PyTree) -> None:
    """Check that an observer's entry holds scalars."""
    if any(np.shape(x) for x in jax.tree.leaves(kept)):
        raise StageError(f"it keeps scalars, but the state holds {kinds(kept)}. {_REMEDY}").within(
            stage=stage
        )


class Form:
    """The form of a slot: that of its first value for a parameter of this shape and dtype."""

    def __init__(self, stage: str, slot: str, first: Callable[[Any], Any]):
        self.stage, self.slot, self.first = stage, slot, first
        self.starts: dict[Any, Any] = {}

    def start(self, shape: tuple[int, ...], dtype: Any, shards: tuple[str, ...]) -> Any:
        """The slot's first value as shapes; _UNKNOWN if the shapes depend on values."""
        if (shape, dtype, shards) not in self.starts:
            param = jax.ShapeDtypeStruct(shape, dtype)
            with divided(shards):
                self.starts[shape, dtype, shards] = _start(self.first, param)
        return self.starts[shape, dtype, shards]

    def check(self, param: Any, kept: Any, shards: tuple[str, ...]) -> None:
        """Check that the slot of a parameter has the form of its first value.

        Args:
            param: the parameter, or this device's shard of it.
            kept: the slot.
            shards: the mesh axes along which the parameter is divided.
        """
        shape, dtype = np.shape(param), _dtype(param)
        start = self.start(shape, dtype, shards)
        if start is _UNKNOWN or _form(start) == _form(kept):
            return
        self._check_packing(start, kept, shards)
        if not _is_plain(kept) and jax.tree.structure(start) != jax.tree.structure(kept):
            raise ValueError  # not a slot of this parameter, but a tree of several
        others = [
            str(other)
            for other in _of_one_kind(dtype)
            if other != dtype and _form(self.start(shape, other, shards)) == _form(kept)
        ]
        if others:
            self._fail(
                f"is {kinds(kept) or 'empty'} in the state, as for a parameter in "
                f"{' or '.join(others)}, but the parameter is {dtype} now. "
                "adamx.apply_updates(params, updates) keeps the dtype of every parameter; "
                "p + u, as in equinox.apply_updates, may change it to that of the step. If the "
                "parameters were cast on purpose, remove this stage from the state; "
                "adamx.restore_state(state, opt, params) then starts it again"
            )
        self._fail(
            f"is {kinds(kept) or 'empty'} in the state, where init() makes "
            f"{kinds(start) or 'nothing'}. {_REMEDY}"
        )

    def check_shape(self, gradient: Any, kept: Any, shards: tuple[str, ...]) -> None:
        """Check the slot of an unknown parameter, whose dtype may differ from the gradient's."""
        start = self.start(np.shape(gradient), _dtype(gradient), shards)
        if start is _UNKNOWN:
            return
        same = jax.tree.structure(start) == jax.tree.structure(kept)
        if same and _shapes(start) == _shapes(kept):
            return
        self._check_packing(start, kept, shards)
        if same:
            self._fail(
                f"is {kinds(kept)} in the state, where init() makes {kinds(start)}. {_REMEDY}"
            )
        if not _is_plain(kept):
            raise ValueError

    def check_nothing(self, kept: Any) -> None:
        """Check that the slot is empty for a parameter that the stage does not apply to."""
        if jax.tree.leaves(kept):
            self._fail(
                f"is {kinds(kept)} in the state, but the stage does not apply to this parameter. "
                "Was the state made by another chain? Convert it with "
                "adamx.restore_state(state, opt, params)"
            )

    def _check_packing(self, start: PyTree, kept: PyTree, shards: tuple[str, ...]) -> None:
        """Check that two slots that differ are not packed; the error names the difference."""
        if not forms_of(start) | forms_of(kept):
            return
        if jax.tree.structure(start) != jax.tree.structure(kept):
            held, wanted = (
                f"as {', '.join(forms_of(x))}" if forms_of(x) else "as plain arrays"
                for x in (kept, start)
            )
            self._fail(
                f"is kept {held} in the state, but {wanted} by this chain. Convert the state with "
                "adamx.restore_state(state, opt, params)"
            )
        if shards:
            self._fail(
                f"is {kinds(kept)} in the state, and for a shard {Slot.of(self.first).form} makes "
                f"{kinds(start)}: a row that is divided into short parts has blocks of its own. "
                "Make the state inside shard_map, too, or divide another axis"
            )
        self._fail(
            f"is {kinds(kept)} in the state, where {Slot.of(self.first).form or 'init()'} makes "
            f"{kinds(start)}: the state was made with other arguments, or belongs to another "
            f"parameter. {_REMEDY}"
        )

    def _fail(self, message: str) -> NoReturn:
        raise StageError(f"slot {self.slot!r} {message}").within(stage=self.stage)


_UNKNOWN = object()


def _start(first: Callable[[Any], Any], param: jax.ShapeDtypeStruct) -> PyTree:
    first = first.start if isinstance(first, Slot) else first
    if first is zeros:  # most slots start with zeros, which need no tracing
        return shape_of_zeros(param)
    if isinstance(first, functools.partial) and first.func is zeros:
        return shape_of_zeros(param, *first.args, **first.keywords)
    return _abstract(first, param, otherwise=_UNKNOWN)


def _abstract(function: Callable[..., Any], *args: Any, otherwise: Any = None) -> Any:
    """A function's result as shapes; ``otherwise`` if the shapes depend on values."""
    try:
        return jax.eval_shape(function, *args)
    except Exception:  # a user's stage may use its parameter in any way
        return otherwise


def _is_plain(kept: Any) -> bool:
    return kept is None or jax.tree_util.all_leaves([kept])


def _form(x: PyTree) -> Any:
    leaves, tree = jax.tree.flatten(x)
    return tree, [(np.shape(leaf), _dtype(leaf)) for leaf in leaves]


def _shapes(x: PyTree) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(x)]


def _dtype(x: Any) -> Any:
    return x.dtype if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).dtype


def _of_one_kind(dtype: Any) -> list[Any]:
    """The dtypes of parameters that are real, or complex, like this one."""
    names = ["complex64", "complex128"]
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        names = ["bfloat16", "float16", "float32", "float64"]
    known = [jnp.dtype(name) for name in names]
    return [x for x in known if jax.dtypes.canonicalize_dtype(x) == x]
