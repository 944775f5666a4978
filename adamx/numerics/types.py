"""Names for what travels through a chain.

The kinds of arrays are jaxtyping's: ``Float32[Array, "*rows row"]`` is a float32 array whose last
axis is called row. To type checkers that is an annotated ``jax.Array``, as jaxtyping itself
declares it to them, and here it is the same at run time, with its dtype and axes for those who read
it. So neither adamx nor those who check their programs against it need jaxtyping; a test holds the
functions against the real one.
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
    from typing import Annotated as UInt8
    from typing import Annotated as UInt32
else:

    class Kind(NamedTuple):
        """What is annotated of an array."""

        dtype: str
        axes: str

        def __repr__(self) -> str:
            return f"{self.dtype} {self.axes!r}"

    class _Kinds(NamedTuple):
        """All kinds of a dtype, by their axes."""

        dtype: str

        def __getitem__(self, of: tuple[Any, str]) -> Any:
            array, axes = of
            return Annotated[array, Kind(self.dtype, axes)]

    BFloat16, Bool, Float, Float8e4m3fn = map(_Kinds, ("BFloat16", "Bool", "Float", "Float8e4m3fn"))
    Float32, Inexact, Int8, Int32 = map(_Kinds, ("Float32", "Inexact", "Int8", "Int32"))
    UInt8, UInt32 = map(_Kinds, ("UInt8", "UInt32"))

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
"""From which random bits are hashed (:mod:`adamx.numerics.random`)."""

State: TypeAlias = dict[str, Any]
"""What a chain keeps: ``count``, and under every stage's name its slots and clocks."""
