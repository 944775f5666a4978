"""Random bits that cost no more than an optimiser's step: hashes of a key and a position.

JAX's own generator (Threefry) takes longer for one number than Adam takes for one parameter.
Rounding needs less than it provides: bits that are uniform for every element and independent
between steps. They are computed where they are used, so no array of bits is written to memory.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    not. Each key is another place in one sequence of length 2³².

    >>> bits(key(0), (3,), "mu")
    Array([2554493393,  735248513, 1482058306], dtype=uint32)
    """
    start = _mixed(key ^ np.uint32(zlib.crc32(label.encode())))
    position = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    # Two rounds without a final shift: the high bits, which rounding uses, do not need it.
    x = (position + start) * _GOLDEN
    x = (x ^ (x >> 16)) * _FIRST
    return (x ^ (x >> 15)) * _SECOND


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
