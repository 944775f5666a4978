"""Random bits that cost no more than an optimiser's step: hashes of a key and a position.

JAX's own generator (Threefry) takes longer for one number than Adam takes for one parameter.
Rounding needs less than it provides: bits that are uniform for every element and independent
between steps. They are computed where they are used, so no array of bits is written to memory.
"""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.numerics import tiles
from adamx.numerics.named import named
from adamx.numerics.types import Array, Float, Key, UInt32

__all__ = ["after", "bits", "key", "normal", "of_parameter"]

# Odd numbers near 2³²/φ, whose multiples spread evenly; and multipliers of Appleby's MurmurHash3.
_GOLDEN = np.uint32(0x9E3779B9)
_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def key(seed: int) -> Key:
    """A key, one of 2³², from a seed; close seeds give very different keys."""
    return _mixed(jnp.asarray(seed % 2**32, jnp.uint32) * _GOLDEN)


def after(key: Key) -> Key:
    """The key of the next step; keys repeat after 2³² steps."""
    return key + _GOLDEN


def of_parameter(key: Key, index: Key, stage: str) -> Key:
    """The key of one parameter in one stage."""
    place = jnp.asarray(index) * _GOLDEN  # in JAX, where integer overflow wraps around
    return _mixed(_mixed(key ^ np.uint32(zlib.crc32(stage.encode()))) + place)


@named
def bits(key: Key, shape: tuple[int, ...], label: str = "") -> UInt32[Array, "*shape"]:
    """32 random bits for every element of an array; each label gives different bits.

    The leading 20 bits are practically random between elements of one array; the last ones are
    not. They depend on the key, the label and the element's index alone, so they are the same
    however an array is divided over devices. Along an axis of more than 2³² elements they repeat.

    >>> bits(key(0), (3,), "mu")
    Array([3314270470, 1755693309, 3753248892], dtype=uint32)
    """
    start = _mixed(key ^ np.uint32(zlib.crc32(label.encode())))
    low, high = _position(shape)
    if high is not None:
        start = _mixed(start + high * _GOLDEN)
    # Two rounds without a final shift: the high bits, which rounding uses, do not need it. The
    # second word of the key makes the sequences of two keys differ by more than their start.
    x = (low + start) * _GOLDEN
    x = (x ^ (x >> 16) ^ _mixed(start + _SECOND)) * _FIRST
    return (x ^ (x >> 15)) * _SECOND


def _position(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The position of every element, as two words; the second one is None where it is 0.

    It is a sum over the axes, which is computed in place on each part of a divided array.
    """
    tile = tiles.current()
    if tile is not None:
        assert shape == tile.shape, (shape, tile)
        row, column = (
            jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + tile.start[axis].astype(jnp.uint32)
            for axis in (0, 1)
        )
        return row * np.uint32(tile.whole[1]) + column, None
    inner = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    split = next((axis for axis, n in enumerate(inner) if n * shape[axis] <= 2**32), len(shape))
    of_axis = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    low = [of_axis[axis] * np.uint32(inner[axis] % 2**32) for axis in range(split, len(shape))]
    outer = [math.prod(shape[axis + 1 : split]) for axis in range(split)]
    high = [of_axis[axis] * np.uint32(n % 2**32) for axis, n in enumerate(outer)]
    first = low or [jnp.zeros(shape, jnp.uint32)]
    return functools.reduce(jnp.add, first), functools.reduce(jnp.add, high) if high else None


def normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Float[Array, "*shape"]:
    """Standard normal numbers, from the leading 23 bits of :func:`bits`.

    >>> normal(key(0), (100, 100), "float32").std().round(2)
    Array(1., dtype=float32)
    """
    uniform = ((bits(key, shape) >> 9).astype(dtype) + 0.5) * 2.0**-23  # in (0, 1)
    return math.sqrt(2) * jax.lax.erf_inv(2 * uniform - 1)


def _mixed(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """MurmurHash3's finaliser: every bit depends on every other one."""
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 13)) * _SECOND
    return x ^ (x >> 16)
