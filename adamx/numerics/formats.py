"""Floating-point formats: their ranges and their rounding."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.numerics import tiles
from adamx.numerics.named import named
from adamx.numerics.types import Reals, Values


def wider(*dtypes: Any) -> Any:
    """The dtype that holds all of these, also under JAX's strict promotion."""
    different = {jnp.dtype(dtype) for dtype in dtypes}
    if len(different) > 1:  # JAX does not promote formats of 8 bits or less; all others hold them
        different = {x for x in different if not is_tiny(x)} or {jnp.dtype(jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        return jax.dtypes.canonicalize_dtype(functools.reduce(jnp.promote_types, different))


@functools.cache
def is_tiny(dtype: Any) -> bool:
    """Whether it is a floating-point format of 8 bits or less."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16


def statistics_dtype(*dtypes: Any) -> Any:
    """The dtype of statistics, float32 at least: in bfloat16 0.999 is 1, in float16 1e-8 is 0."""
    return wider(jnp.float32, *dtypes)


def limited(x: Values, terms: float = 1) -> Values:
    """x with finite elements limited, so that a sum of ``terms`` squares of them is finite.

    The limit is 2⁶³/√terms in float32 and 2⁵¹¹/√terms in float64, for the real and the imaginary
    part of a complex number alike. Infinities and NaN do not change.
    """
    return limited_to(x, math.sqrt(largest_square(x.dtype) / max(terms, 1)))


def largest_square(dtype: Any) -> float:
    """The largest square in statistics: a quarter of the dtype's range, 2¹²⁶ in float32."""
    return 2.0 ** (jnp.finfo(dtype).maxexp - 2)


def saturated(x: Values, dtype: Any) -> Values:
    """x with finite elements limited to what ``dtype`` can hold; in the dtype of x."""
    narrow, wide = jnp.finfo(dtype), jnp.finfo(x.dtype)
    return x if narrow.bits >= wide.bits else limited_to(x, float(narrow.max))


@named
def limited_to(x: Values, largest: Any) -> Values:
    """x with finite elements limited to ±``largest``, a number or a scalar array."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(limited_to(x.real, largest), limited_to(x.imag, largest))
    return _limited(x, jnp.asarray(largest, x.dtype))


@jax.custom_jvp
def _limited(x: Reals, largest: Any) -> Reals:
    """Limit the bits of x, read as integers, which have the same order as positive floats.

    A minimum of integers costs one instruction; a minimum of floats, which has to propagate NaN,
    costs several.
    """
    integers = jnp.int32 if jnp.finfo(x.dtype).bits == 32 else jnp.int64
    infinity = np.asarray(np.inf, x.dtype).view(integers)
    bits, limit = (jax.lax.bitcast_convert_type(y, integers) for y in (x, largest))
    size, sign = bits & jnp.iinfo(integers).max, bits & jnp.iinfo(integers).min
    size = jnp.where(size < infinity, jnp.minimum(size, limit), size)
    return jax.lax.bitcast_convert_type(size | sign, x.dtype)


@_limited.defjvp
def _limited_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    x, largest = primals
    return _limited(x, largest), jnp.where(jnp.abs(x) <= largest, tangents[0], 0)


@named
def rounded(x: Values, dtype: Any) -> Values:
    """x rounded to ``dtype``, in the dtype of x. XLA may drop a cast there and back, not this."""
    narrow, wide = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.bits >= wide.bits:
        return x
    if tiles.current() is not None and dtype == jnp.bfloat16:
        return _rounded_to_bfloat16(x)
    if is_tiny(dtype):  # they use other formats' codes of infinity and NaN as largest numbers
        return jax.lax.optimization_barrier(x.astype(dtype)).astype(x.dtype)
    near = jax.lax.reduce_precision(x, narrow.nexp, narrow.nmant)
    if narrow.nexp == wide.nexp:
        return near
    # Where the exponent has fewer bits, subnormals would become zero.
    spacing = np.asarray(narrow.smallest_subnormal, wide.dtype)
    small = jax.lax.round(x / spacing, jax.lax.RoundingMethod.TO_NEAREST_EVEN) * spacing
    return jnp.where(jnp.abs(x) < np.asarray(narrow.tiny, wide.dtype), small, near)


def _rounded_to_bfloat16(x: Reals) -> Reals:
    """float32 rounded to bfloat16, for kernels, whose compiler does not reduce the precision."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    is_odd = (bits >> np.uint32(16)) & np.uint32(1)
    near = (bits + np.uint32(0x7FFF) + is_odd) & np.uint32(0xFFFF0000)
    return jnp.where(jnp.isnan(x), x, jax.lax.bitcast_convert_type(near, jnp.float32))


def add(param: Values, update: Values) -> Values:
    """θ + u in the wider dtype of the two, rounded once to the parameter's dtype."""
    if param.dtype == update.dtype:
        return jax.lax.add(param, update)
    wide = wider(param.dtype, update.dtype)
    return jax.lax.add(param.astype(wide), update.astype(wide)).astype(param.dtype)
