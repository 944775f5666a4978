"""Types for annotations.

The types of arrays have jaxtyping's notation: ``Float32[Array, "*rows row"]`` is a float32 array
whose last axis is called row. For type checkers it is an annotated ``jax.Array``, as in jaxtyping
itself. At run time it is one too, annotated with dtype and axes. So neither adamx nor users who
type-check their programs need jaxtyping; a test checks adamx's functions with jaxtyping itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from jax import Array

if TYPE_CHECKING:
    from typing import Annotated as BFloat16
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Float8e4m3fn
    from typing import Annotated as Float32
    from typing import Annotated as Inexact
    from typing import Annotated as Int8
    from typing import Annotated as Int32
    from typing import Annotated as Integer
    from typing import Annotated as UInt8
    from typing import Annotated as UInt32
else:

    class Kind(NamedTuple):
        """The annotation of an array: its dtype and axes."""

        dtype: str
        axes: str

        def __repr__(self) -> str:
            return f"{self.dtype} {self.axes!r}"

    class _Kinds(NamedTuple):
        """The array types of one dtype, by their axes."""

        dtype: str

        def __getitem__(self, of: tuple[Any, str]) -> Any:
            array, axes = of
            return Annotated[array, Kind(self.dtype, axes)]

    BFloat16, Bool, Float, Float8e4m3fn = map(_Kinds, ("BFloat16", "Bool", "Float", "Float8e4m3fn"))
    Float32, Inexact, Int8, Int32 = map(_Kinds, ("Float32", "Inexact", "Int8", "Int32"))
    Integer, UInt8, UInt32 = map(_Kinds, ("Integer", "UInt8", "UInt32"))

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
    "Integer",
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
"""A tree of arrays, such as the parameters; type checkers treat it as ``Any``."""

Values: TypeAlias = Inexact[Array, "*shape"]
"""A real or complex array; in one signature, all have the same shape."""

Reals: TypeAlias = Float[Array, "*shape"]
"""A real array of that shape."""

Scalar: TypeAlias = Float[Array, ""]
"""One real number."""

Key: TypeAlias = UInt32[Array, ""]
"""A key from which random bits are hashed (:mod:`adamx.numerics.random`)."""

State: TypeAlias = dict[str, Any]
"""A chain's state: ``count``, and under every stage's name its slots and clocks."""
