"""Any transformation that speaks Optax's protocol, as a link of a chain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import optax

from adamx.arguments import closures, hyper
from adamx.identity import ByValue
from adamx.links.link import Around, Beginning, Link, Row
from adamx.numerics.types import PyTree

__all__ = ["ABSENT", "Foreign"]

_NEEDS = {
    "scale_by_muon": (
        "In a tree of parameters scale_by_muon needs weight_dimension_numbers=lambda tree: "
        "jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree)"
    )
}

ABSENT = optax.MaskedNode()
"""Stands for the parameters that a link does not apply to, as in ``optax.masked``."""


class Foreign(Link):
    """An Optax transformation in an adamx chain; it gets the update as a tree.

    Before the first statistic it also rewrites the gradient, after it only the update.
    """

    def __init__(
        self, transformation: optax.GradientTransformation, around: tuple[Around, ...] = ()
    ):
        self.around = around
        self.structure: ByValue = ByValue(transformation)

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The Optax transformation."""
        return self.structure.value

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hyper.origin(self.transformation.update)

    def start(self, beginning: Beginning, name: str, here: list[bool] | None) -> None:
        with self.noted(name):
            kept = self.transformation.init(beginning.params(here, ABSENT))
        for around in self.around:
            around.admit(name, kept)
        beginning.state[name] = kept

    def run(self, row: Row, name: str, here: list[bool] | None) -> None:
        row.pass_through(name, self, here)

    def update(
        self, updates: PyTree, state: PyTree, params: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        takes_extra = optax.with_extra_args_support(self.transformation)
        return takes_extra.update(updates, state, params, **extra)

    @contextlib.contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Add the stage's name, as a note, to exceptions that the transformation raises."""
        try:
            yield
        except Exception as error:
            note = f"in stage {name!r}, {self!r}"
            if self.where:
                note += (
                    f". It applies to {' in '.join(x.label for x in reversed(self.where))}, and "
                    "gets optax.MaskedNode() for other parameters, as in optax.masked"
                )
            needed = (what for part, what in _NEEDS.items() if f"{part}(" in note)
            error.add_note(". ".join([note, *needed]))
            raise

    def __fingerprint__(self) -> Any:
        return self.transformation, self.around

    def __repr__(self) -> str:
        return closures.written(self.transformation)

    def tree_flatten(self) -> tuple[tuple[()], tuple[ByValue, tuple[Around, ...]]]:
        return (), (self.structure, self.around)

    @classmethod
    def tree_unflatten(cls, aux: tuple[ByValue, tuple[Around, ...]], _: Any) -> Foreign:
        return cls.of_records(*aux)


jax.tree_util.register_pytree_node_class(Foreign)
