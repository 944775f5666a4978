"""Axes that multiply: what can be changed around any chain, without its stages knowing."""

from adamx.wrappers.groups import Assignments, assignments, partition, where
from adamx.wrappers.watch import metrics, watch

__all__ = ["Assignments", "assignments", "metrics", "partition", "watch", "where"]
