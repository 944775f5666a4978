"""The memory that a state takes, and the values of its slots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from adamx.errors import described
from adamx.numerics.meshes import bare, is_on_host, on_device
from adamx.numerics.types import PyTree
from adamx.states.reading import filled, find, merged
from adamx.trees.packed import form_of, is_packed, unpacked
from adamx.wrappers.codecs import Codec

__all__ = ["MemoryUsage", "MemoryUsageRow", "dequantize", "memory_usage"]


@dataclasses.dataclass(frozen=True)
class MemoryUsageRow:
    """The arrays of one slot in one format.

    Attributes:
        stage: the stage's name in the state.
        slot: the slot's name; empty for the scalars of all stages together.
        kept_as: the codec's name, or the dtype.
        elements: the number of elements.
        bytes: the memory that they take.
        float32_bytes: the memory that they would take in float32 (without a codec, in their own
            dtype).
        device_bytes: the memory that they take on one device, if they are divided over devices; 0
            if they are in the host's memory.
    """

    stage: str
    slot: str
    kept_as: str
    elements: int
    bytes: int
    float32_bytes: int
    device_bytes: int


@dataclasses.dataclass(frozen=True)
class MemoryUsage:
    """The memory that a state takes, slot by slot; it prints a table.

    Attributes:
        rows: one for every slot and format, and a last one for all scalars.
    """

    rows: tuple[MemoryUsageRow, ...]

    @property
    def bytes(self) -> int:
        """The memory that the state takes."""
        return sum(row.bytes for row in self.rows)

    @property
    def float32_bytes(self) -> int:
        """The memory that it would take without codecs."""
        return sum(row.float32_bytes for row in self.rows)

    @property
    def device_bytes(self) -> int:
        """The memory that it takes on one device."""
        return sum(row.device_bytes for row in self.rows)

    def __str__(self) -> str:
        names = ["elements", "bytes", "float32_bytes", "device_bytes"]
        heads = ["elements", "bytes", "as float32", "on a device"]
        if self.device_bytes == self.bytes:
            names, heads = names[:-1], heads[:-1]
        cells = [
            (x.stage, x.slot, x.kept_as, *(_grouped(getattr(x, name)) for name in names))
            for x in self.rows
        ]
        totals = (_grouped(sum(getattr(x, name) for x in self.rows)) for name in names)
        table = [("stage", "slot", "kept as", *heads), *cells, ("in all", "", "", *totals)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        )


def _grouped(number: int) -> str:
    return f"{number:,}"


def memory_usage(state: PyTree, *, codecs: tuple[Codec, ...] = ()) -> MemoryUsage:
    """The memory that a state takes, slot by slot, compared with float32.

    If arrays are divided over devices, or in the host's memory, the table has a column for the
    bytes on one device.

    Args:
        state: the state of a chain, or anything that holds one: an ``optax.chain``'s state, a Flax
            ``TrainState``, an ``nnx.Optimizer``. It may consist of shapes:
            ``memory_usage(jax.eval_shape(opt.init, params))`` allocates no arrays. Shapes with
            shardings are those of :func:`state_shardings`.
        codecs: your own codecs with which the state was quantized.

    Raises:
        ValueError: if it holds no state of a chain, or was quantized with an unknown codec.

    >>> state = jax.eval_shape(adamx.adam(1e-3).init, jnp.zeros(1_000_000))
    >>> adamx.memory_usage(state).bytes
    8000020
    """
    found: dict[tuple[str, str, str], list[int]] = {}
    scalars: dict[str, list[int]] = {}
    for stage, slot, x in _arrays(state):
        array = _values(x, codecs) if is_packed(x) else x
        kept_as = form_of(x) if is_packed(x) else jnp.dtype(x.dtype).name
        own = sum(map(_size, jax.tree.leaves(x)))
        wide = 4 * array.size if is_packed(x) else own
        here = sum(map(_on_device, jax.tree.leaves(x)))
        kept_as += " on the host" if own and not here else ""
        if array.size <= 2:  # clocks have at most two elements
            kept = scalars.setdefault(kept_as, [0, 0, 0, 0])
        else:
            kept = found.setdefault((stage, slot, kept_as), [0, 0, 0, 0])
        for i, count in enumerate((array.size, own, wide, here)):
            kept[i] += count
    rows = [MemoryUsageRow(*key, *counts) for key, counts in found.items()]
    if scalars:
        totals = [sum(column) for column in zip(*scalars.values(), strict=True)]
        rows.append(MemoryUsageRow("scalars", "", ", ".join(sorted(scalars)), *totals))
    return MemoryUsage(tuple(rows))


def _size(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def _on_device(array: Any) -> int:
    """The bytes of an array on one device; 0 in the host's memory."""
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, Sharding):
        return _size(array)
    if is_on_host(array):
        return 0
    return math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _values(x: dict[str, Any], codecs: tuple[Codec, ...]) -> Any:
    """The shape and dtype of a packed array's values."""
    known = {codec.name: codec.unpack for codec in codecs}
    return jax.eval_shape(lambda x: unpacked(x, known), bare(x))


def dequantize(
    state: PyTree, slot: str, *, params: PyTree = None, codecs: tuple[Codec, ...] = ()
) -> PyTree:
    """The values of a slot, quantized or not.

    It reads single slots: ``dequantize(state, "slow")`` for :func:`adamx.lookahead`,
    ``dequantize(state, "master", params=params)`` for :func:`adamx.master_weights`.

    Args:
        state: the state of a chain, or anything that holds one.
        slot: the slot's name, ``"nu"``; or ``"scale_by_rms.nu"``, if several stages have such a
            slot. The groups of a :func:`adamx.partition` are merged into one tree;
            ``"scale_by_rms@group.nu"`` is the slot of one group.
        params: the parameters, which are returned where the slot has no value; without ``params``,
            the result is None there. Only for slots that keep one array per parameter.
        codecs: your own codecs with which the state was quantized.

    Returns:
        A tree like the parameters, in float32 (in the slot's own dtype if it is not quantized).

    Raises:
        ValueError: for a slot that no stage or several stages have; if the state was quantized
            with an unknown codec.
        StageError: if the state belongs to other parameters than ``params``.

    >>> opt = adamx.quantize_state(adamx.adam(1e-3), "fp8")
    >>> params = jnp.zeros(5000)
    >>> _, state = opt.update(jnp.ones(5000), opt.init(params))
    >>> mu = adamx.dequantize(state, "mu")  # 0.1 lies between two codes; each element took one
    >>> sorted(set(mu.tolist())), f"{mu.mean():.3f}"
    ([0.09375, 0.1015625], '0.100')
    """
    found = [
        (stage, name, entry[name])
        for chain in _states(state)
        for stage, entry in chain.items()
        if isinstance(entry, Mapping)
        for name in entry
        if slot in (name, f"{stage}.{name}", f"{_base(stage)}.{name}")
    ]
    exact = [x for x in found if slot == f"{x[0]}.{x[1]}"]
    found = exact or found
    if not found:
        there = dict.fromkeys(f"{stage}.{name}" for stage, name, _ in _arrays(state) if name)
        raise ValueError(f"the state has no slot {slot!r}; it has {', '.join(there) or 'none'}")
    named = {f"{stage}.{name}": kept for stage, name, kept in found}
    if len(named) < len(found):
        raise ValueError(f"several states in it have a slot {slot!r}; pass one of the states")
    if len({_base(stage) for stage, _, _ in found}) > 1:
        raise ValueError(f"several stages have a slot {slot!r}; name one of {', '.join(named)}")

    def of_one(x: Any) -> Any:
        if is_packed(x):
            return unpacked(x, {codec.name: codec.unpack for codec in codecs})
        return on_device(x)

    values = merged(
        {label: jax.tree.map(of_one, kept, is_leaf=is_packed) for label, kept in named.items()}
    )
    return values if params is None else filled(values, params)


def _base(stage: str) -> str:
    """A stage's name without its group."""
    return stage.partition("@")[0]


def _states(tree: PyTree) -> list[dict[str, Any]]:
    """The states of all chains in a tree."""
    found = [x.state for x in find(tree)]
    if not found:
        raise ValueError(
            f"there is no state of a chain in {described(tree)}; it is what init() returns"
        )
    return found


def _arrays(state: PyTree) -> Iterator[tuple[str, str, Any]]:
    """Stage, slot and array, packed or not, for every array in a state."""
    for chain in _states(state):
        for stage, entry in chain.items():
            named = entry.items() if isinstance(entry, Mapping) else [("", entry)]
            for slot, kept in named:
                for x in jax.tree.leaves(kept, is_leaf=is_packed):
                    yield stage, slot, x
