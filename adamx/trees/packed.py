"""Arrays in the form in which an axis packs them between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from adamx.numerics.types import PyTree

__all__ = ["FORMS", "form_of", "forms_of", "is_packed", "unpacked", "values"]


FORMS: dict[str, Callable[[Any], Any]] = {}
"""Functions that unpack arrays in adamx's own forms, by the form's name."""


def is_packed(x: Any) -> bool:
    """Whether this is an array that an axis has packed: ``{"@form": …}``."""
    return isinstance(x, Mapping) and len(x) == 1 and str(next(iter(x))).startswith("@")


def form_of(packed: Mapping[str, Any]) -> str:
    """The name of a packed array's form."""
    return next(iter(packed))[1:]


def unpacked(
    packed: Mapping[str, Any], forms: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
) -> Any:
    """The values of a packed array.

    Args:
        packed: ``{"@form": …}``.
        forms: functions that unpack, by the form's name, beside :data:`FORMS`.

    Raises:
        ValueError: for an unknown form.
    """
    known = {**FORMS, **forms}
    ((key, kept),) = packed.items()
    if key[1:] not in known:
        raise ValueError(
            f"the state was quantized by the codec {key[1:]!r}, which is none of "
            f"{', '.join(known)}; pass it as codecs=(codec,)"
        )
    return known[key[1:]](kept)


def values(
    tree: PyTree, forms: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
) -> PyTree:
    """A tree with values in place of packed arrays."""
    return jax.tree.map(
        lambda x: unpacked(x, forms) if is_packed(x) else x, tree, is_leaf=is_packed
    )


def forms_of(slot: PyTree) -> set[str]:
    """The names of the forms in which a slot's arrays are packed."""
    leaves = jax.tree.leaves(slot, is_leaf=is_packed)
    return {form_of(x) for x in leaves if is_packed(x)}
