"""Codecs: formats of few bits for slots between steps, with unbiased rounding.

The bits of a positive float32 number, read as an integer, grow with the number, and linearly
between two powers of two. The leading bits of that integer are therefore a code of constant
relative precision. Adding random bits below them before truncation rounds up with the probability
that makes the mean exact; adding half of the last unit kept rounds to the nearest. All codes here
use this: they need additions, shifts, comparisons and products with powers of two, but no division
and no table.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import layout

from adamx.errors import as_given
from adamx.identity import ByValue
from adamx.numerics import tiles
from adamx.numerics.meshes import automatic, bare, divided_like, on_device
from adamx.numerics.types import (
    Array,
    BFloat16,
    Float32,
    Int8,
    Int32,
    Integer,
    PyTree,
    UInt8,
    UInt32,
    Values,
)
from adamx.trees.packed import FORMS

__all__ = ["CODECS", "Codec", "as_codec", "bf16", "fp8", "int8"]

Numbers: TypeAlias = Float32[Array, "*rows row"]
Bits: TypeAlias = UInt32[Array, "*rows row"]
Patterns: TypeAlias = Int32[Array, "*rows row"]
Exponents: TypeAlias = UInt8[Array, "*rows blocks"]
Squares: TypeAlias = tuple[UInt8[Array, "*rows row"], Exponents]
Averages: TypeAlias = tuple[Int8[Array, "*rows row"], Exponents]
Encode: TypeAlias = Callable[[Numbers, Bits, bool], PyTree]
Decode: TypeAlias = Callable[[PyTree], Numbers]

_MANTISSA = 23  # bits of float32 below its exponent
_ONE = 1 << _MANTISSA  # one binade, in float32's bits
_UNIT = 127 * _ONE  # 1.0, in float32's bits
_NAN = 0x7FC00000  # NaN, in float32's bits


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A format for slots: two pure functions.

    Attributes:
        name: its name in the state: an encoded array is ``{"@name": …}``.
        encode: ``(x, bits, nonnegative) -> encoded``. x is a float32 array of any shape with at
            least one axis; ``bits`` is uint32 of its shape, uniformly random in every step (or
            2³¹ everywhere, to round to the nearest); ``nonnegative`` is True for slots that hold
            squares or norms, where a positive value must not become zero. The result is a tree of
            arrays, of the same shapes and dtypes for every x of one shape. It must be unbiased:
            over the bits, the mean of ``decode(encode(x, bits, …))`` is x.
        decode: ``encoded -> float32`` of the shape of x. The result is finite if x was finite; if
            x was not, the result has an element that is not.
        rounding: ``"stochastic"`` or ``"nearest"``: which bits ``encode`` gets.
        arguments: the arguments that it was made with, for its repr and for configurations.
        reach: the part of an array that both functions may be given alone, as kernels do: a
            ``"row"`` along the last axis; a ``"block"``, consecutive elements of a row, as many as
            there are for each element of the shortest array of codes; or only the whole
            ``"array"``.

    Codecs with equal functions are equal.

    Raises:
        ValueError: for an unknown rounding or reach.

    >>> def encode(x, bits, nonnegative):
    ...     return x.astype(jnp.float16)  # a bad one: it is biased, and 1e-8 becomes zero
    >>> half = adamx.Codec("half", encode, lambda x: x.astype(jnp.float32))
    >>> opt = adamx.quantize_state(adamx.scale_by_momentum(), half, min_size=1)
    >>> opt.init(jnp.zeros(2))["scale_by_momentum"]["mu"]
    {'@half': Array([0., 0.], dtype=float16)}
    """

    name: str
    encode: Encode
    decode: Decode
    rounding: str = "stochastic"
    arguments: tuple[tuple[str, Any], ...] = ()
    reach: Literal["block", "row", "array"] = "array"
    _record: ByValue = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.reach not in ("block", "row", "array"):
            raise ValueError(
                f"{self.name}: reach must be 'block', 'row' or 'array', got {self.reach!r}"
            )
        if self.rounding not in ("stochastic", "nearest"):
            raise ValueError(
                f"{self.name}: rounding must be 'stochastic' or 'nearest', got {self.rounding!r}"
            )
        object.__setattr__(self, "_record", ByValue(self.__fingerprint__()))

    def unpack(self, encoded: PyTree) -> Values:
        """:attr:`decode`, compiled, on the device and divided as the codes are."""
        encoded = jax.tree.map(on_device, encoded)

        def spec() -> Any:
            codes = max(jax.tree.leaves(encoded), key=lambda x: x.size)
            return divided_like(codes, jax.eval_shape(self.decode, bare(encoded)).shape)

        return automatic(functools.partial(_decoded, self), (encoded,), spec)

    def __fingerprint__(self) -> Any:
        return self.name, self.encode, self.decode, self.rounding

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and self._record == other._record

    def __hash__(self) -> int:
        return hash(self._record)

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.name, self.encode, self.decode, self.rounding, self.arguments, self.reach
        return Codec, given

    def __repr__(self) -> str:
        known = CODECS.get(self.name)
        defaults = inspect.signature(known).parameters if known else {}
        shown = {
            name: value
            for name, value in (*self.arguments, ("rounding", self.rounding))
            if value != (defaults[name].default if name in defaults else "stochastic")
        }
        if known and not shown:
            return repr(self.name)
        return f"{self.name}({', '.join(f'{k}={x!r}' for k, x in shown.items())})"


def bf16(*, rounding: str = "stochastic") -> Codec:
    """bfloat16: 2 bytes per element, 7 bits after the leading one, the range of float32.

    Args:
        rounding: ``"stochastic"``, or ``"nearest"``, with which a slowly decaying average stops
            changing.

    Raises:
        ValueError: for an unknown rounding.

    >>> opt = adamx.quantize_state(adamx.adam(1e-3), adamx.bf16())
    >>> opt.init(jnp.zeros(5000))["scale_by_rms"]["nu"]["@bf16"].dtype
    dtype(bfloat16)
    """
    return Codec("bf16", _to_bf16, _from_bf16, rounding, reach="block")


def fp8(block_size: int = 64, *, rounding: str = "stochastic") -> Codec:
    """float8_e4m3fn, scaled by a power of two per block: 1 byte per element and 1 per block.

    The relative precision is 1/16 … 1/8 over the 14 powers of two below the block's largest
    element. Further down, the spacing is constant: 2⁻¹⁷ of the power of two at that element.

    Args:
        block_size: the largest number of consecutive elements of the last axis that share a scale.
            Blocks are shorter, but longer than half of this size, where they then fit into each of
            2, 4, 8 or 16 equal parts of a row: rows may be divided over devices. Otherwise, a row
            has as many blocks as this size gives, of equal length if possible.
        rounding: ``"stochastic"`` or ``"nearest"``.

    Raises:
        ValueError: for an unknown rounding, and for a block size below 1.

    Source: Micikevicius et al. 2022 (arXiv 2209.05433), the format; Rouhani et al. 2023 (arXiv
    2310.10537), scales that are powers of two.
    """
    return _blockwise("fp8", _to_fp8, _from_fp8, block_size, rounding)


def int8(block_size: int = 64, *, rounding: str = "stochastic") -> Codec:
    r"""Companded 8-bit codes with a scale per block: 1 byte per element and 1 per block.

    A code is a float whose precision is higher near the block's largest element, where most
    elements are. With :math:`2^E` the power of two at that element:

    ===========  ======================  ==================  =====================================
    slot         relative precision      relative precision  further down
                 1/32 … 1/16             1/16 … 1/8
    ===========  ======================  ==================  =====================================
    averages     the upper 4 binades     8 binades           constant spacing :math:`2^{E-14}`
    squares      the upper 8 binades     16 binades          positive values become the smallest
                                                             code, :math:`1.125 \cdot 2^{E-23}`
    ===========  ======================  ==================  =====================================

    The code of an average is a sign and 7 bits of :math:`|x| + 2^{E-11}` (as in μ-law telephony),
    so that its spacing is constant near zero. The code of a square, which has no sign, is 8 bits of
    x; code 0 is reserved for exact zeros. Only squares below :math:`10^{-7}` of their block's
    largest element are rounded with a bias: rounded down to zero, they would make the step m/√v
    infinite.

    Args:
        block_size: the largest number of consecutive elements of the last axis that share a
            scale; see :func:`fp8`.
        rounding: ``"stochastic"`` or ``"nearest"``.

    Raises:
        ValueError: for an unknown rounding, and for a block size below 1.

    Source: ITU-T G.711 for companding by segments; Dettmers et al. 2021 (arXiv 2110.02861) for
    blocks of optimiser states. The codes are our own.
    """
    return _blockwise("int8", _to_int8, _from_int8, block_size, rounding)


CODECS: dict[str, Callable[..., Codec]] = {"bf16": bf16, "fp8": fp8, "int8": int8}


def codec_to_json(codec: Codec | None, write: Callable[[Any, str], Any], where: str) -> Any:
    """A codec as JSON: its name and arguments; a user's codec as ``write`` writes it."""
    if codec is None:
        return None
    row = {"codec": codec.name, **dict(codec.arguments), "rounding": codec.rounding}
    return row if codec.name in CODECS and _made(row) == codec else write(codec, where)


def codec_from_json(written: Any, read: Callable[[Any, str], Any], where: str) -> Codec | None:
    """The codec from the JSON of :func:`codec_to_json`, or from its name."""
    if isinstance(written, dict) and "codec" in written:
        return _made(written)
    return as_codec(read(written, where))


def _made(row: Mapping[str, Any]) -> Codec:
    arguments = {key: x for key, x in row.items() if key != "codec"}
    if row["codec"] not in CODECS:
        raise ValueError(f"there is no codec {row['codec']!r}; there are {', '.join(CODECS)}")
    return CODECS[row["codec"]](**arguments)


def as_codec(given: Any) -> Codec | None:
    """The codec, given itself or its name; None, which leaves slots unchanged, stays None."""
    if given is None or isinstance(given, Codec):
        return given
    if isinstance(given, str) and given in CODECS:
        return CODECS[given]()
    called = [name for name, make in CODECS.items() if given is make]
    if called:
        raise TypeError(f"a codec is called: {called[0]}(), not {called[0]}")
    raise ValueError(
        f"there is no codec {as_given(given)}; there are {', '.join(map(repr, CODECS))}, a codec "
        "made by adamx.Codec(name, encode, decode), and None for slots that are not quantized"
    )


@functools.partial(jax.jit, static_argnums=0)
def _decoded(codec: Codec, encoded: PyTree) -> Values:
    return codec.decode(encoded)


def _blockwise(name: str, encode: Any, decode: Decode, block_size: int, rounding: str) -> Codec:
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"{name}: block_size must be a whole number ≥ 1, got {block_size!r}")
    encode = functools.partial(encode, block_size=block_size)
    return Codec(name, encode, decode, rounding, (("block_size", block_size),), reach="block")


# float32 as an integer


def _pattern(x: Numbers) -> Patterns:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _number(pattern: Patterns) -> Numbers:
    return jax.lax.bitcast_convert_type(pattern, jnp.float32)


def _upper(bits: Bits, count: int) -> Patterns:
    """The leading ``count`` bits of 32, as a number."""
    return (bits >> np.uint32(32 - count)).astype(jnp.int32)


def _to_bf16(x: Numbers, bits: Bits, nonnegative: bool) -> BFloat16[Array, "*rows row"]:
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (pattern + (bits >> 16)) >> 16
    short = jnp.where(jnp.isfinite(x), rounded, pattern >> 16)
    return jax.lax.bitcast_convert_type(short.astype(jnp.uint16), jnp.bfloat16)


def _from_bf16(short: BFloat16[Array, "*rows row"]) -> Numbers:
    return short.astype(jnp.float32)


# Blocks of the last axis that share an exponent


def _count(row: int, block_size: int) -> int:
    """The number of blocks of a row.

    A row that is divided over devices is divided into equal parts. Blocks are whole in each part if
    a length of more than half the block size divides it: then no device needs a part of another
    one, and the codes are the same on every mesh.
    """
    for parts in (16, 8, 4, 2):
        part, rest = divmod(row, parts)
        if rest == 0 and part:
            length = next(n for n in range(min(block_size, part), 0, -1) if part % n == 0)
            if 2 * length > block_size:
                return row // length
    return _ceil(row, block_size)


def _ceil(row: int, length: int) -> int:
    return -(-row // length)


def _length(row: int, count: int) -> int:
    """The length of all blocks of a row but the last: a power of two, if one fits."""
    equal = _ceil(row, count)
    power = 1 << (equal - 1).bit_length()
    # A shift of an element's index then gives its block; a division would cost more than the rest.
    return min(row, power) if _ceil(row, power) == count else equal


def _bytes() -> Any:
    """The dtype of exponents where they are computed: Mosaic has no maximum of bytes."""
    return jnp.uint8 if tiles.current() is None else jnp.int32


def _largest(x: Integer[Array, "*rows row"], count: int) -> Integer[Array, "*rows blocks"]:
    """The largest element of each block."""
    x = _row_major(x)
    *rows, row = x.shape
    length = _length(row, count)
    whole = row // length
    blocks = x[..., : whole * length].reshape(*rows, whole, length)
    found = [jnp.max(blocks, -1)]
    if whole < count:
        found.append(jnp.max(x[..., whole * length :], -1, keepdims=True))
    return jnp.concatenate(found, -1)


def _fields(exponents: Exponents, row: int) -> Patterns:
    """For every element, the exponent of its block."""
    *rows, count = exponents.shape
    length = _length(row, count)
    blocks = jnp.broadcast_to(exponents.astype(_bytes())[..., None], (*rows, count, length))
    return _row_major(blocks.reshape(*rows, count * length)[..., :row]).astype(jnp.int32)


def _row_major(x: Array) -> Array:
    """The array, on TPUs in the layout of its rows.

    XLA would choose another layout for blocks of 64, which are shorter than the 128 lanes of a
    TPU, and transpose parameters, gradients and codes (``examples/benchmarks/tpu.py``).
    """
    if tiles.current() is not None:
        return x
    kind = getattr(layout, "DeviceLocalLayout", layout.Layout)  # its name in JAX 0.6
    order = kind(major_to_minor=tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        x, tpu=lambda x: layout.with_layout_constraint(x, order), default=lambda x: x
    )


def _exponents(x: Numbers, block_size: int, top: float, smallest: int) -> Exponents:
    """The exponent field of each block's largest element, or the next one if it is above ``top``.

    It is 255 if any element of the block is not finite.
    """
    raised = jnp.abs(x) * np.nextafter(np.float32(2 / top), np.float32(2))
    # Take exponents before the maximum: they need one byte each if XLA writes them to memory.
    fields = (_pattern(raised) >> _MANTISSA).astype(_bytes())
    largest = _largest(fields, _count(x.shape[-1], block_size))
    return jnp.maximum(largest, largest.dtype.type(smallest)).astype(jnp.uint8)


def _twice(magnitude: Numbers, fields: Patterns) -> Numbers:
    """Twice the magnitude in units of the block's power of two, whose inverse might underflow."""
    return magnitude * _number((255 - fields) << _MANTISSA)


def _scaled(relative: Numbers, fields: Patterns) -> Numbers:
    """The product with the block's power of two; NaN if the block is not finite."""
    return relative * _number(jnp.where(fields == 255, _NAN, fields << _MANTISSA))


def _sign_bit(x: Numbers) -> Patterns:
    """The sign as the highest of eight bits."""
    return jax.lax.shift_right_logical(_pattern(x), np.int32(24)) & 0x80


def _signed(magnitude: Numbers, sign: Patterns) -> Numbers:
    return _number(_pattern(magnitude) | (sign & -(2**31)))


def _above_zero(x: Numbers, code: Patterns) -> Patterns:
    return jnp.where(x > 0, jnp.maximum(code, 1), 0)


# int8: the upper half of ``size`` codes has 4 bits after the leading one, the lower half 3


def _code(pattern: Patterns, bits: Bits, size: int) -> Patterns:
    """The code of a pattern relative to the block's exponent, rounded to drop its last 20 bits."""
    above = pattern - _middle(size)
    return ((above + jnp.maximum(above, 0) + _upper(bits, 20)) >> 20) + size // 2


def _relative(code: Patterns, size: int) -> Numbers:
    """The number that a code stands for, in units of the block's power of two."""
    fine = code << 19
    lower_half = jnp.minimum(fine, size // 2 << 19)
    return _number(fine + lower_half + (_UNIT + _middle(size) - (size // 2 << 20)))


def _middle(size: int) -> int:
    """The pattern at which precision changes, relative to the block's exponent."""
    return _ONE - (size // 2 << 19)


def _to_int8(x: Numbers, bits: Bits, nonnegative: bool, *, block_size: int) -> dict[str, Array]:
    codes, exponents = (_to_squares if nonnegative else _to_averages)(x, bits, block_size)
    return {"codes": codes, "exponents": exponents}


def _from_int8(encoded: dict[str, Array]) -> Numbers:
    codes = encoded["codes"]
    fields = _fields(encoded["exponents"], codes.shape[-1])
    signed = codes.dtype == jnp.int8
    return (_from_averages if signed else _from_squares)(codes.astype(jnp.int32), fields)


def _to_squares(x: Numbers, bits: Bits, block_size: int) -> Squares:
    exponents = _exponents(x, block_size, top=1.9375, smallest=24)
    fields = _fields(exponents, x.shape[-1])
    code = _code((_pattern(x) & 0x7FFFFFFF) - (fields << _MANTISSA), bits, 256)
    return _above_zero(x, code).astype(jnp.uint8), exponents


def _from_squares(codes: Patterns, fields: Patterns) -> Numbers:
    return _scaled(jnp.where(codes > 0, _relative(codes, 256), 0), fields)


def _to_averages(x: Numbers, bits: Bits, block_size: int) -> Averages:
    exponents = _exponents(x, block_size, top=1.9375 - 2**-11, smallest=12)
    fields = _fields(exponents, x.shape[-1])
    lifted = _pattern(_twice(jnp.abs(x), fields) + 2**-10) - (_UNIT + _ONE)
    code = _code(lifted, bits, 128) | _sign_bit(x)
    return jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.int8), exponents


def _from_averages(codes: Patterns, fields: Patterns) -> Numbers:
    return _signed(_scaled(_relative(codes & 0x7F, 128) - 2**-11, fields), codes)


# fp8: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; the largest number is 1.75 · 2⁸


def _to_fp8(x: Numbers, bits: Bits, nonnegative: bool, *, block_size: int) -> dict[str, Array]:
    exponents = _exponents(x, block_size, top=1.75, smallest=18)
    twice = _twice(jnp.abs(x), _fields(exponents, x.shape[-1]))
    normal = _pattern(twice) - (_UNIT - 14 * _ONE)
    # Below 2⁻¹⁴, the smallest normal number, codes have the spacing of the numbers from 2⁻¹⁴ to
    # 2⁻¹³.
    subnormal = _pattern(twice + 2**-13) - (_UNIT - 13 * _ONE)
    code = (jnp.maximum(normal, subnormal) + _upper(bits, 20)) >> 20
    code = _above_zero(x, code) if nonnegative else code | _sign_bit(x)
    codes = jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e4m3fn)
    return {"codes": codes, "exponents": exponents}


def _from_fp8(encoded: dict[str, Array]) -> Numbers:
    codes = jax.lax.bitcast_convert_type(encoded["codes"], jnp.int8).astype(jnp.int32)
    normal = _number(((codes & 0x7F) << 20) + (_UNIT - 15 * _ONE))
    subnormal = 2 * normal - 2**-14
    magnitude = _number(jnp.minimum(_pattern(normal), _pattern(subnormal)))
    return _signed(_scaled(magnitude, _fields(encoded["exponents"], codes.shape[-1])), codes)


FORMS.update({name: make().unpack for name, make in CODECS.items()})
