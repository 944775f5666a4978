"""Arguments of stages that may differ between parameters.

An argument whose annotation is marked with ``PER_PARAMETER`` may be a function of the parameter's
path and shape. The stage of a parameter then has the function's value in its place. A rule sees the
value only.
"""

from __future__ import annotations

import inspect
from typing import Any, get_origin

import jax
import numpy as np

__all__ = ["PER_PARAMETER", "anywhere", "is_per_parameter", "may_differ"]

PER_PARAMETER = "may be a function of a path and a shape"


def may_differ(hint: Any) -> bool:
    """Whether an argument with this annotation may be a function of a path and a shape."""
    return PER_PARAMETER in getattr(hint, "__metadata__", ()) if get_origin(hint) else False


def is_per_parameter(value: Any) -> bool:
    """Whether it is a function of two arguments."""
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind("", None)
    except (TypeError, ValueError):
        return False
    return True


def anywhere(function: Any) -> Any:
    """A value where no parameter is known, for what does not depend on it."""
    return function("", jax.ShapeDtypeStruct((1, 1), np.float32))
