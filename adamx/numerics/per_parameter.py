"""Arguments of stages that may differ between parameters.

An argument whose annotation is marked with :class:`PerParameter` may be a function of the
parameter's path and shape. The stage of a parameter then has the function's value in its place. A
rule sees the value only.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any, get_origin

__all__ = ["PerParameter", "is_per_parameter", "marked"]


@dataclasses.dataclass(frozen=True)
class PerParameter:
    """The mark of an argument that may be a function of a path and a shape.

    Attributes:
        otherwise: the value where no parameter is known, for what does not depend on it.
    """

    otherwise: Any


def marked(hint: Any) -> PerParameter | None:
    """The mark in an annotation."""
    beside = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return next((x for x in beside if isinstance(x, PerParameter)), None)


def is_per_parameter(value: Any) -> bool:
    """Whether it is a function of two arguments."""
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind("", None)
    except (TypeError, ValueError):
        return False
    return True
