"""Roots, norms, quotients and sums that avoid overflow, NaN and loss of digits."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx.numerics import tiles
from adamx.numerics.formats import largest_square, limited, limited_to
from adamx.numerics.meshes import current_mesh, platform
from adamx.numerics.named import named
from adamx.numerics.shards import elements, of_whole, refuse_root, total
from adamx.numerics.types import Array, Float, Reals, Scalar, Values

_TINY = 2.0**-100
_HUGE = 2.0**100


def abs_sq(x: Values) -> Reals:
    """|x|², real; for complex numbers, without the root that ``abs`` takes."""
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x


def summable_squares(x: Values) -> Reals:
    """|x|², with finite elements limited so that their sum over the array is finite."""
    return abs_sq(limited(x, elements(x)))


def subtractable(x: Values) -> Values:
    """x with finite elements limited to a quarter of the largest number: differences are finite."""
    return limited_to(x, largest_square(x.dtype))


def at_least(least: Any, x: Reals) -> Reals:
    """x, or ``least`` where x is smaller."""
    return jnp.maximum(least, x)


@named
def mean(
    x: Reals, axes: tuple[int, ...] | None = None, *, keepdims: bool = False
) -> Float[Array, "*blocks"]:
    """The mean along these axes (all if None); of nothing, 0."""
    return total(x, axes, keepdims=keepdims) / max(elements(x, axes), 1.0)


def plus(x: Values, number: Any, times: Any = 1) -> Values:
    """x + number · times; x itself if ``number`` is the Python number 0.

    XLA does not drop 0 · w by itself, because w could be infinite.
    """
    return x if isinstance(number, float) and number == 0 else x + number * times


@named
def divide(u: Any, by: Array, *positive: Any) -> Array:
    """u / by, where 0/0 is 0: a norm is zero only if all gradients so far were zero.

    ``positive`` are the numbers that were added to ``by``: if one of them is a Python number > 0,
    ``by`` can't be zero, and the check is left out.
    """
    if any(isinstance(number, float) and number > 0 for number in positive):
        return _quotient(u, by)
    return _quotient(u, jnp.where(by == 0, 1, by))


@jax.custom_jvp
def _quotient(u: Any, by: Array) -> Array:
    return u / by


@_quotient.defjvp
def _quotient_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    """JAX's derivative, but without 1/by², which overflows where ``by`` is as small as an ε."""
    (_, by), (du, dby) = primals, tangents
    with jax.numpy_dtype_promotion("standard"):  # complex over real
        q = _quotient(*primals)
        return q, (du - q * dby) / by


@jax.custom_jvp
def root(x: Reals) -> Reals:
    """√x, with derivative 0 at 0.

    The root's own derivative at 0 is infinite. Its product with the derivative 0 of x = g² would
    make hypergradients NaN wherever all gradients so far were zero.
    """
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    y = root(primals[0])
    return y, tangents[0] * jnp.where(y == 0, 0, 0.5 / jnp.where(y == 0, 1, y))


def sum_of_numbers(numbers: Sequence[Scalar]) -> Scalar:
    """The sum of scalars, computed once.

    XLA would turn the sum of a stack of n numbers into n additions, and repeat them in every loop
    that uses the sum: n² operations for n arrays, which takes minutes to compile. The barrier keeps
    it from seeing that the stack is made of numbers.
    """
    stack = jnp.stack(numbers)
    return jnp.sum(jax.lax.optimization_barrier(stack) if len(numbers) > 1 else stack)


_UNITS = 2.0**80, 2.0**560  # units of norms whose squares overflow float32, and float64


class Squares(NamedTuple):
    """Σ|x|² in three units, so that one of the three is finite for every finite x.

    The units are 1, 2¹⁶⁰ and, for float64, 2¹¹²⁰. Sums of several arrays are added field by field,
    so a ``global_sum`` can return this tuple.

    >>> Squares.of(jnp.array([3e30, 4e30])).norm().value
    Array(5.e+30, dtype=float32)
    """

    plain: Reals
    large: Reals
    huge: Reals

    @classmethod
    def of(cls, x: Values, axis: int | tuple[int, ...] | None = None) -> Squares:
        """The squares of all elements, or along some axes, which keep length 1."""
        return squares_of(x, axis)

    @classmethod
    def total(cls, parts: Iterable[Squares]) -> Squares:
        """The squares of several arrays together."""
        return cls(*(sum_of_numbers(x) for x in zip(*parts, strict=True)))

    @property
    def is_finite(self) -> Scalar:
        """Whether every element is finite."""
        is_double = jnp.finfo(self.plain.dtype).bits == 64
        return jnp.isfinite(self.huge if is_double else self.large)

    def norm(self) -> Norm:
        """√(Σ|x|²)."""
        return norm_of(self)


@named
def squares_of(x: Values, axis: int | tuple[int, ...] | None) -> Squares:
    """:meth:`Squares.of`."""
    parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)

    def summed(squares: Any) -> Any:
        return jnp.sum(squares, axis, keepdims=axis is not None)

    def scaled(unit: float) -> Any:
        sizes = [jnp.abs(y) * (1 / unit) for y in parts]
        if x.size == 1:  # XLA would compute x·x first, which overflows; a maximum prevents it
            sizes = [jnp.maximum(size, 2.0**-100) for size in sizes]
        return summed(functools.reduce(jnp.add, [size**2 for size in sizes]))

    is_double = jnp.finfo(x.dtype).bits == 64
    plain = summed(abs_sq(x))

    def in_units() -> list[Any]:
        return [scaled(unit) for unit in _UNITS[: 1 + is_double]]

    def from_plain() -> list[Any]:
        return [plain * (1 / unit) * (1 / unit) for unit in _UNITS[: 1 + is_double]]

    is_large = axis is None and x.size > 2**15 and tiles.current() is None
    if is_large and platform() == "cpu" and current_mesh() is None:
        # XLA does not fuse these sums on CPU, where they would cost two more passes.
        large, *huge = jax.lax.cond(jnp.isfinite(plain), from_plain, in_units)
    else:
        large, *huge = in_units()
    return of_whole(Squares(plain, large, huge[0] if huge else jnp.zeros_like(plain)), x, axis)


@named
def norm_of(squares: Squares) -> Norm:
    """:meth:`Squares.norm`."""
    refuse_root()
    large, huge = _UNITS
    size, unit = squares.large, jnp.full_like(squares.plain, large)
    if jnp.finfo(squares.plain.dtype).bits == 64:
        is_huge = jnp.isinf(squares.large)
        size, unit = jnp.where(is_huge, squares.huge, size), jnp.where(is_huge, huge, unit)
    usual = jnp.isfinite(squares.plain)
    return Norm(root(jnp.where(usual, squares.plain, size)), jnp.where(usual, 1, unit))


class Norm(NamedTuple):
    """A norm as a pair: ``size · unit``, a product that may be too large for its dtype.

    ``unit`` is a power of two; it is 1 unless the sum of squares overflows.
    """

    size: Reals
    unit: Reals

    @property
    def value(self) -> Reals:
        """The norm as one number; infinite, if it is too large for the dtype."""
        return self.size * self.unit

    def in_units(self, x: Values) -> Values:
        """x / unit, whose norm is ``size``."""
        return x * (1 / self.unit)


@named
def norm(x: Values, axis: int | tuple[int, ...] | None = None) -> Norm:
    """‖x‖ of the whole array, or along some axes, which keep length 1.

    >>> norm(jnp.array([3.0, 4.0])).value
    Array(5., dtype=float32)
    """
    return Squares.of(x, axis).norm()


@named
def shrunk(x: Values, length: Norm, most: Any) -> Values:
    """x · min(1, most / length): x itself where the length is 0.

    >>> x = jnp.array([3e30, 4e30])
    >>> shrunk(x, norm(x), 1.0).round(5)
    Array([0.6, 0.8], dtype=float32)
    """
    size, unit = length
    share = jnp.where(size == 0, 1, divide(most, size))
    return length.in_units(x) * jnp.minimum(unit, share)


@named
def shrunk_to_rms(x: Values, most: Any) -> Values:
    """x / max(1, RMS(x) / most)."""
    return shrunk(x, norm(x), most * math.sqrt(max(elements(x), 1)))


def times(x: Values, factor: Any) -> Values:
    """x · factor; where x is finite and the product is not, nearly the dtype's largest number.

    >>> times(jnp.array([1.0, jnp.inf]), 2.0), bool(times(jnp.array(3e38), 2.0) > 3.402e38)
    (Array([ 2., inf], dtype=float32), True)
    """
    if isinstance(factor, float) and abs(factor) <= 1:
        return factor * x
    # Limit x, not the product, so that XLA may still fuse the product with a sum.
    real = jnp.finfo(x.dtype)
    largest = float(real.max) * (1 - 2 * float(real.eps))
    return factor * limited_to(x, largest / jnp.maximum(1, jnp.abs(factor)))


@jax.custom_jvp
def power(x: Reals, p: Any) -> Reals:
    """xᵖ for x ≥ 0, with derivative 0 at x = 0, like :func:`root`."""
    return x**p


@power.defjvp
def _power_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, p), (dx, dp) = primals, tangents
    y, safe = power(x, p), jnp.where(x == 0, 1, x)
    return y, jnp.where(x == 0, 0, y) * (p * (dx / safe) + jnp.log(safe) * dp)


def sign_of(x: Values) -> Values:
    """x/|x|, and 0 of 0."""
    return _phase(x) if jnp.iscomplexobj(x) else jnp.sign(x)


@jax.custom_jvp
def _phase(x: Values) -> Values:
    return jnp.sign(x * 0.25)  # the modulus of x itself could overflow


@_phase.defjvp
def _phase_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    """The derivative of a phase, which JAX lacks: a rotation; 0 where x is 0."""
    y, size = _phase(*primals), jnp.abs(primals[0])
    turned = (jnp.conj(y) * tangents[0]).imag / jnp.where(size == 0, 1, size)
    return y, y * jax.lax.complex(jnp.zeros_like(turned), turned)


def finite(x: Any) -> Any:
    """x, limited to a number that acts as ∞, but whose product with a derivative 0 is not NaN."""
    return min(x, _HUGE) if isinstance(x, float) else jnp.minimum(x, _HUGE)


@named
def log(x: Any) -> Any:
    """log x, in double precision for a Python number; for x = 0 it is finite, but acts as −∞.

    For 0, it is the logarithm of a tiny number, so that the derivative of 1 − x = −expm1(log x) is
    right there, too. The number is large enough that derivatives of log x can be summed over many
    steps.
    """
    return math.log(x or _TINY) if isinstance(x, float) else _log(jnp.asarray(x))


@jax.custom_jvp
def _log(x: Reals) -> Reals:
    # Not x + _TINY: XLA computes (1 − y) + _TINY as (1 + _TINY) − y, which is 0 for y = 1.
    return jnp.log(jnp.where(x == 0, _TINY, x))


@_log.defjvp
def _log_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return _log(x), dx / jnp.where(x == 0, _TINY, x)


def expm1(x: Any) -> Any:
    """eˣ − 1, in double precision for a Python number."""
    return math.expm1(x) if isinstance(x, float) else _expm1(x)


@jax.custom_jvp
def _expm1(x: Reals) -> Reals:
    return jnp.expm1(x)


@_expm1.defjvp
def _expm1_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    """The derivative eˣ; JAX computes it as the value plus 1, which loses its digits for x ≪ 0."""
    return _expm1(*primals), tangents[0] * jnp.exp(primals[0])


def two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    """a + b, rounded, and the exact rounding error (Knuth)."""
    total = a + b
    seen = total - a
    return total, (a - (total - seen)) + (b - seen)
