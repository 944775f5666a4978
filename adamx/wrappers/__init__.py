"""Wrappers that change how any chain runs, independent of its stages and of each other."""

from adamx.wrappers.across import across
from adamx.wrappers.basis import in_basis
from adamx.wrappers.codecs import Codec, bf16, fp8, int8
from adamx.wrappers.delay import delay_start
from adamx.wrappers.gates import (
    LossScale,
    accumulate,
    gate,
    get_loss_scale,
    loss_scale,
    skip_nonfinite,
    skip_spikes,
)
from adamx.wrappers.groups import PartitionSummary, describe_partition, partition, where
from adamx.wrappers.layers import per_layer
from adamx.wrappers.memory_usage import MemoryUsage, MemoryUsageRow, dequantize, memory_usage
from adamx.wrappers.place import place
from adamx.wrappers.quantize import quantize_state
from adamx.wrappers.selection import hidden_matrices
from adamx.wrappers.shardings import state_shardings
from adamx.wrappers.watch import metrics, watch

__all__ = [
    "Codec",
    "LossScale",
    "MemoryUsage",
    "MemoryUsageRow",
    "PartitionSummary",
    "accumulate",
    "across",
    "bf16",
    "delay_start",
    "dequantize",
    "describe_partition",
    "fp8",
    "gate",
    "get_loss_scale",
    "hidden_matrices",
    "in_basis",
    "int8",
    "loss_scale",
    "memory_usage",
    "metrics",
    "partition",
    "per_layer",
    "place",
    "quantize_state",
    "skip_nonfinite",
    "skip_spikes",
    "state_shardings",
    "watch",
    "where",
]
