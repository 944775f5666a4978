"""Names for what travels through a chain.

The kinds of arrays are jaxtyping's: ``Float32[Array, "*rows row"]`` is a float32 array whose last
axis is called row. To type checkers that is an annotated ``jax.Array``, as jaxtyping itself
declares it to them, and here it is the same at run time. So neither adamx nor those who check
their programs against it need jaxtyping; a test holds the functions against the real one.
"""

from __future__ import annotations

from typing import Annotated as BFloat16
from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Float8e4m3fn
from typing import Annotated as Float32
from typing import Annotated as Inexact
from typing import Annotated as Int8
from typing import Annotated as Int32
from typing import Annotated as UInt8
from typing import Annotated as UInt32
from typing import Any, TypeAlias

from jax import Array

__all__ = [
    "Array",
    "BFloat16",
    "Bool",
    "Float",
    "Float8e4m3fn",
    "Float32",
    "Inexact",
    "Int8",
    "Int32",
    "Key",
    "PyTree",
    "Reals",
    "Scalar",
    "State",
    "UInt8",
    "UInt32",
    "Values",
]

PyTree: TypeAlias = Any
"""Containers of arrays, like the parameters; no type checker knows more of them."""

Values: TypeAlias = Inexact[Array, "*shape"]
"""Real or complex numbers; in one signature, all of one shape."""

Reals: TypeAlias = Float[Array, "*shape"]
"""Real numbers of that shape."""

Scalar: TypeAlias = Float[Array, ""]
"""One real number."""

Key: TypeAlias = UInt32[Array, ""]
"""From which random bits are hashed (:mod:`adamx.core.random`)."""

State: TypeAlias = dict[str, Any]
"""What a chain keeps: ``count``, and under every stage's name its slots and clocks."""
