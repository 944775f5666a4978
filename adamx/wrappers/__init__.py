"""Axes that multiply: what can be changed around any chain, without its stages knowing."""

from adamx.wrappers.codecs import Codec, bf16, fp8, int8
from adamx.wrappers.groups import Assignments, assignments, partition, where
from adamx.wrappers.memory import Memory, MemoryRow, decoded, memory
from adamx.wrappers.store import store
from adamx.wrappers.watch import metrics, watch

__all__ = [
    "Assignments",
    "Codec",
    "Memory",
    "MemoryRow",
    "assignments",
    "bf16",
    "decoded",
    "fp8",
    "int8",
    "memory",
    "metrics",
    "partition",
    "store",
    "watch",
    "where",
]
