"""Published 8-bit and 4-bit formats for Adam's averages, as codecs that reproduce their values.

These codecs are written from the behaviour of the published programs. They pack no bits, so their
sizes are meaningless. All formats round to the nearest code, and divide the rows of an array into
blocks with separate scales.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamx

__all__ = ["PUBLISHED"]


def dynamic_map(*, signed: bool, exponents: int, bits: int) -> np.ndarray:
    """The levels of a dynamic-tree code, which has fewer levels per decade at smaller values.

    Source: Dettmers et al. 2021 (arXiv 2110.02861); `create_dynamic_map` of bitsandbytes.
    """
    decades = [
        (exponent + 1 - exponents, 2 ** (bits - 1 - exponents + exponent + (not signed)))
        for exponent in range(exponents)
    ]
    decades.append((0, 2 ** (bits - 1 - exponents) - 1))
    levels = [0.0, 1.0]
    for power, count in decades:
        edges = np.linspace(0.1, 1.0, count + 1)
        middles = 10.0**power * (edges[1:] + edges[:-1]) / 2
        levels += [*middles, *-middles] if signed else [*middles]
    return np.sort(levels).astype(np.float32)


def in_blocks(
    name: str,
    block: int,
    encode: Callable[[jax.Array, bool], tuple[jax.Array, jax.Array]],
    decode: Callable[[jax.Array, jax.Array], jax.Array],
) -> adamx.Codec:
    """A codec from functions that encode and decode blocks [blocks, block] with their scales."""

    def divided(x: jax.Array) -> jax.Array:
        return jnp.pad(x.reshape(-1), (0, -x.size % block)).reshape(-1, block)

    def joined(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return blocks.reshape(-1)[: np.prod(shape)].reshape(shape)

    def to_codes(x: jax.Array, bits: jax.Array, nonnegative: bool) -> dict[str, jax.Array]:
        codes, scales = encode(divided(x), nonnegative)
        return {"codes": joined(codes, x.shape), "scales": scales}

    def from_codes(encoded: dict[str, jax.Array]) -> jax.Array:
        codes, scales = encoded["codes"], encoded["scales"].astype(jnp.float32)
        return joined(decode(divided(codes), scales[:, None]), codes.shape)

    return adamx.Codec(name, to_codes, from_codes, rounding="nearest")


def largest(x: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.max(jnp.abs(x), -1), 1e-12)


def by_levels(name: str, block: int, averages: np.ndarray, squares: np.ndarray) -> adamx.Codec:
    """The format that rounds to the nearest level, multiplied by the block's largest element."""

    def encode(x: jax.Array, nonnegative: bool) -> tuple[jax.Array, jax.Array]:
        levels = squares if nonnegative else averages
        scales = largest(x)
        middles = jnp.asarray((levels[1:] + levels[:-1]) / 2)
        codes = jnp.searchsorted(middles, x / scales[:, None], side="right")
        # The dtype of the codes determines the levels.
        return codes.astype(jnp.uint8 if nonnegative else jnp.int16), scales

    def decode(codes: jax.Array, scales: jax.Array) -> jax.Array:
        levels = squares if codes.dtype == jnp.uint8 else averages
        return jnp.asarray(levels)[codes] * scales

    return in_blocks(name, block, encode, decode)


def to_e4m3(x: jax.Array, nonnegative: bool) -> tuple[jax.Array, jax.Array]:
    scales = largest(x) / 448
    return (x / scales[:, None]).astype(jnp.float8_e4m3fn), scales


def from_e4m3(codes: jax.Array, scales: jax.Array) -> jax.Array:
    return codes.astype(jnp.float32) * scales


def to_256_levels(x: jax.Array, nonnegative: bool) -> tuple[jax.Array, jax.Array]:
    """The format that encodes averages as 2x/(1+|x|), and roots directly."""
    scales = largest(x)
    x = x / scales[:, None]
    x = 255 * x if nonnegative else 127 * 2 * x / (1 + jnp.abs(x))
    codes = jnp.floor(x + 0.5).astype(jnp.uint8 if nonnegative else jnp.int8)
    return codes, scales.astype(jnp.float16)


def from_256_levels(codes: jax.Array, scales: jax.Array) -> jax.Array:
    if codes.dtype == jnp.uint8:
        return codes.astype(jnp.float32) / 255 * scales
    y = codes.astype(jnp.float32) / 127
    return y / (2 - jnp.abs(y)) * scales


def of_roots(codec: adamx.Codec) -> adamx.Codec:
    """The codec with squares replaced by their roots."""

    def encode(x: jax.Array, bits: jax.Array, nonnegative: bool) -> dict[str, Any]:
        if nonnegative:
            return {"root": codec.encode(jnp.sqrt(x), bits, nonnegative)}
        return {"itself": codec.encode(x, bits, nonnegative)}

    def decode(encoded: dict[str, Any]) -> jax.Array:
        if "root" in encoded:
            return jnp.square(codec.decode(encoded["root"]))
        return codec.decode(encoded["itself"])

    return adamx.Codec(f"{codec.name}_of_roots", encode, decode, rounding="nearest")


E4M3 = in_blocks("e4m3", 256, to_e4m3, from_e4m3)
PUBLISHED = {
    "dynamic map, 8 bits (bitsandbytes, torchao)": by_levels(
        "dynamic8",
        256,
        averages=dynamic_map(signed=True, exponents=7, bits=8),
        squares=dynamic_map(signed=False, exponents=7, bits=8),
    ),
    "4 bits (torchao)": by_levels(
        "dynamic4",
        128,
        averages=dynamic_map(signed=True, exponents=3, bits=4),
        squares=np.linspace(0, 1, 17, dtype=np.float32)[1:],
    ),
    "fp8 e4m3 (torchao)": E4M3,
    "√v in fp8 e4m3": of_roots(E4M3),
    "√v in uint8 (FlashOptim)": of_roots(in_blocks("levels", 32, to_256_levels, from_256_levels)),
}
"""Codecs by name. Sources: torchao 0.18 `torchao/optim`; bitsandbytes 0.50 `functional.py`;
flashoptim 0.1.4 `optimizers.py` (arXiv 2602.23349).
"""
