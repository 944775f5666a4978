"""Random bits that cost as little as an optimiser's step: hashes of a key and a position.

JAX's own generator (Threefry) takes longer for one number than Adam for one parameter. What
rounding needs is less than what it gives: bits that are uniform for every element, independent
from step to step, and between any two elements. They are computed where they are used, so no array
of them is written.
"""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core.types import Array, Key, UInt32

__all__ = ["after", "bits", "key", "of_parameter"]

# Odd numbers near 2³²/φ, whose multiples spread evenly; and multipliers of Appleby's MurmurHash3.
_GOLDEN = np.uint32(0x9E3779B9)
_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def key(seed: int) -> Key:
    """A key, uint32: one of 2³², as different as can be for seeds that are close."""
    return _mixed(jnp.asarray(seed % 2**32, jnp.uint32) * _GOLDEN)


def after(key: Key) -> Key:
    """The key of the next step; they repeat after 2³² steps."""
    return key + _GOLDEN


def of_parameter(key: Key, index: Key, stage: str) -> Key:
    """The key of one parameter in one stage."""
    return _mixed(_mixed(key ^ np.uint32(zlib.crc32(stage.encode()))) + index * _GOLDEN)


def bits(key: Key, shape: tuple[int, ...], label: str = "") -> UInt32[Array, "*shape"]:
    """32 random bits for every element of an array; other ones for another label.

    In a row, the last axis, they are :math:`a i + b` modulo 2³², of a and b that are hashed for
    every row and key: one multiplication an element. Over the keys the leading bits are
    uniform, and independent between any two elements, so that the errors of what is
    rounded by them add up as independent ones do. Three elements of a row and key are not
    independent; nor are the last bits, of elements that lie a power of two apart. Another key is
    another place in one sequence of 2³².

    >>> bits(key(0), (2, 3), "mu") >> 28
    Array([[11, 12, 14],
           [14,  3,  8]], dtype=uint32)

    Source: Dietzfelbinger 1996, "Universal hashing and k-wise independent random variables via
    integer arithmetic without primes", Theorem 3; MurmurHash3's finaliser for a and b.
    """
    *rows, _ = shape or (1,)
    start = _mixed(key ^ np.uint32(zlib.crc32(label.encode())))
    place = jax.lax.iota(jnp.uint32, math.prod(rows)).reshape(*rows, 1)
    offset = _mixed(start + place * _GOLDEN)
    factor = _mixed(offset + start) | np.uint32(1)
    along = jax.lax.broadcasted_iota(jnp.uint32, shape or (1,), len(rows))
    return (along * factor + offset).reshape(shape)


def _mixed(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """MurmurHash3's finaliser: every bit depends on every other one."""
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 13)) * _SECOND
    return x ^ (x >> 16)
