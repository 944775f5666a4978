"""Any transformation that speaks Optax's protocol, as a link of a chain."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import numpy as np
import optax

from adamx.core import hyper
from adamx.core.identity import ByValue
from adamx.core.link import Around, Link
from adamx.core.types import PyTree

__all__ = ["Foreign"]


class Foreign(Link):
    """An Optax transformation in an adamx chain; it sees trees, and only the update.

    In front of the first statistic it rewrites the gradient, behind it only the update.
    """

    def __init__(
        self, transformation: optax.GradientTransformation, around: tuple[Around, ...] = ()
    ):
        self.around = around
        self.structure: ByValue = ByValue(transformation)

    @property
    def transformation(self) -> optax.GradientTransformation:
        """What it is a link for."""
        return self.structure.value

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hyper.origin(self.transformation.update)

    def init(self, params: PyTree) -> PyTree:
        return self.transformation.init(params)

    def update(
        self, updates: PyTree, state: PyTree, params: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        takes_extra = optax.with_extra_args_support(self.transformation)
        return takes_extra.update(updates, state, params, **extra)

    def __fingerprint__(self) -> Any:
        return self.transformation, self.around

    def __repr__(self) -> str:
        captured: dict[str, Any] = {}
        if inspect.isfunction(self.transformation.update):
            captured = dict(inspect.getclosurevars(self.transformation.update).nonlocals)
        numbers = {k: x for k, x in captured.items() if isinstance(x, (int, float, np.ndarray))}
        return f"{self.name}({', '.join(f'{k}={x!r}' for k, x in numbers.items())})"

    def tree_flatten(self) -> tuple[tuple[()], tuple[ByValue, tuple[Around, ...]]]:
        return (), (self.structure, self.around)

    @classmethod
    def tree_unflatten(cls, aux: tuple[ByValue, tuple[Around, ...]], _: Any) -> Foreign:
        return cls.of_records(*aux)


jax.tree_util.register_pytree_node_class(Foreign)
