"""Quantize the slots of a chain between steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.core import Rule, Signal, Slot, StageError, Step, Transformation, elements
from adamx.core.transformation import links_of
from adamx.errors import as_given
from adamx.links.link import Around, Part
from adamx.links.stage import Stage
from adamx.numerics import random, tiles
from adamx.numerics.meshes import automatic, divided_like
from adamx.numerics.types import Array, Key, PyTree, UInt32, Values
from adamx.trees.arrays import kinds
from adamx.trees.packed import is_packed
from adamx.wrappers.codecs import Codec, as_codec, codec_from_json, codec_to_json

__all__ = ["quantize_state"]


def quantize_state(
    opt: optax.GradientTransformation,
    codec: Codec | str | EllipsisType | None = ...,
    /,
    *,
    min_size: int = 4096,
    seed: int = 0,
    **slots: Codec | str | None,
) -> Transformation:
    """Keep the slots of a chain in a smaller format between steps.

    A stage still computes in float32: the slots of each array are dequantized before the stage runs
    on it, and quantized afterwards. With ``"int8"``, Adam's state takes 2 bytes per parameter
    instead of 8.

    Every codec rounds stochastically by default: up or down at random, such that the mean is exact.
    With rounding to the nearest, a decaying average of 8 or 16 bits stops changing: with β₂ = 0.999
    it should fall by 0.1 % in a step, which is less than half the distance between codes. The
    random bits come from a key in the state, so training that is repeated or resumed takes the same
    steps.

    These are not quantized: arrays of fewer than ``min_size`` elements, clocks, and slots whose
    last digits matter, which are parameters that are stepped from, and the two averages of centred
    RMSProp, whose difference is used. Averages of the parameters (:func:`polyak_ema`,
    :func:`power_ema`, :func:`tail_average`) are quantized only by a codec that names their slot,
    ``ema="bf16"``, as it changes the weights that are evaluated.

    :func:`memory_usage` shows the format of each slot, and :func:`dequantize` returns the values of
    one. A quantized array is ``{"@int8": …}`` in the state, a dict of plain arrays; its codes are
    shaped (and sharded) like the parameter.

    Chains that are already quantized keep their own codec.

    Args:
        opt: a chain or a recipe. The state of an Optax transformation inside it can't be quantized;
            if it holds arrays of ``min_size`` elements, ``init`` raises an error.
        codec: for all slots: ``"bf16"``, ``"fp8"``, ``"int8"``, or a codec made by :func:`bf16`,
            :func:`fp8`, :func:`int8` or :class:`Codec`; None leaves them unchanged. It may be left
            out beside codecs of single slots.
        min_size: arrays of fewer elements are not quantized (inside ``shard_map``, whole arrays of
            fewer elements).
        seed: the seed of the key.
        **slots: the codec of single slots, by name: ``mu="bf16", nu="int8"``.

    Raises:
        TypeError: if ``opt`` is not a transformation.
        ValueError: without any codec, for an unknown codec, for a slot that no stage of the chain
            has or that can't be quantized, and for a ``min_size`` below 1.
        StageError: from ``init``, for complex slots; from ``update``, for a state that was
            quantized with another codec, and for derivatives through a quantized slot.

    >>> opt = adamx.quantize_state(adamx.adamw(1e-3), "int8")
    >>> params = {"w": jnp.ones((100, 100)), "b": jnp.ones(100)}
    >>> print(adamx.memory_usage(opt.init(params)))
    stage              slot  kept as                 elements   bytes  as float32
    scale_by_momentum  mu    float32                      100     400         400
    scale_by_momentum  mu    int8                      10,000  10,200      40,000
    scale_by_rms       nu    float32                      100     400         400
    scale_by_rms       nu    int8                      10,000  10,200      40,000
    scalars                  float32, int32, uint32         7      28          28
    in all                                             20,207  21,228      80,828
    >>> adamx.quantize_state(adamx.adam(1e-3), mu="bf16", nu=adamx.int8(block_size=32))
    quantize_state(chain(
        scale_by_momentum(b1=0.9),
        scale_by_rms(b2=0.999, eps=1e-08),
        bias_correction(),
        scale_by_learning_rate(learning_rate=0.001),
    ), mu='bf16', nu=int8(block_size=32))
    """
    if codec is ... and not slots:
        raise ValueError(
            'quantize_state() got no codec, and would change nothing; pass "int8", "fp8" or '
            '"bf16", or a codec for single slots, nu="int8"'
        )
    quantized = Quantized.of(None if codec is ... else codec, slots, min_size=min_size, seed=seed)
    links = links_of(opt, "quantize_state")
    quantized.check([link for link in links if isinstance(link, Stage)])
    return Transformation(tuple(link.within(quantized) for link in links))


class Quantized(Around, axis="quantize_state"):
    """The codec of every slot of the links inside."""

    required = ("quantize_state",)
    packs = True
    optional = ("slots", "min_size", "seed")

    value: tuple[Codec | None, tuple[tuple[str, Codec | None], ...], int, int]

    @classmethod
    def of(cls, codec: Any, slots: Mapping[str, Any], *, min_size: int, seed: int) -> Quantized:
        """From the arguments of quantize_state(), checked."""
        if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
            raise ValueError(f"min_size must be a whole number ≥ 1, got {as_given(min_size)}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be a whole number, got {as_given(seed)}")
        single = tuple((slot, as_codec(x)) for slot, x in slots.items())
        return cls((as_codec(codec), single, min_size, seed))

    @property
    def reach(self) -> Part:  # pyright: ignore[reportIncompatibleVariableOverride]
        default, single, _, _ = self.value
        codecs = (x for x in (default, *dict(single).values()) if x is not None)
        reaches: list[Part] = ["element", *(x.reach for x in codecs)]
        return max(reaches, key=get_args(Part).index)

    def codec(self, slot: str, first: Any) -> Codec | None:
        """The codec of a slot with this start; None if it is kept as it is."""
        if _stays(first):
            return None
        default, single, _, _ = self.value
        return dict(single).get(slot, None if Slot.of(first).holds == "average" else default)

    def check(self, stages: list[Stage]) -> None:
        """Check that every named slot exists and can be quantized."""
        found: dict[str, bool] = {}  # whether a slot of this name can be quantized in some stage
        for stage in stages:
            for slot, first in stage.at(np.int32(0)).rule(jnp.float32).slots.items():
                found[slot] = found.get(slot, False) or not _stays(first)
        for slot, codec in self.value[1]:
            if slot not in found:
                raise ValueError(
                    f"no stage of this chain keeps a slot {slot!r}; there are "
                    f"{', '.join(map(repr, found)) or 'none'}"
                )
            if codec is not None and not found[slot]:
                raise ValueError(
                    f"the slot {slot!r} can't be quantized: it is quantized already, or its last "
                    "digits matter, as in parameters that are stepped from, in rounding errors, or "
                    "in centred RMSProp's averages"
                )

    def surround(self, rule: Rule) -> Rule:
        """The rule with its slots encoded between steps."""
        _, _, min_size, seed = self.value
        slots = rule.slots.items()
        codecs = {slot: codec for slot, first in slots if (codec := self.codec(slot, first))}
        if not codecs:
            return rule
        encoded = _Encoded(rule, codecs, min_size)
        draws = any(codec.rounding == "stochastic" for codec in codecs.values())
        return dataclasses.replace(
            rule,
            update=encoded.update,
            slots={slot: encoded.start(slot) if slot in codecs else x for slot, x in slots},
            **rule.reads(lambda signal, slots: (signal, encoded.decode(signal, slots))),
            seed=seed if draws and rule.seed is None else rule.seed,
        )

    def admit(self, name: str, kept: Any) -> None:
        """Raise StageError if an Optax transformation keeps large arrays."""
        _, _, min_size, _ = self.value
        for x in jax.tree.leaves(kept):
            if jnp.issubdtype(x.dtype, jnp.inexact) and x.size >= min_size:
                raise StageError(
                    f"quantize_state() can't quantize the state of {name} ({kinds(x)}), which is "
                    "no stage of adamx; put quantize_state() around the other stages, "
                    "chain(quantize_state(…), …), or use a stage of adamx"
                )

    def forms(self) -> Mapping[str, Callable[[Any], Any]]:
        default, single, _, _ = self.value
        codecs = (x for x in (default, *dict(single).values()) if x is not None)
        return {codec.name: codec.unpack for codec in codecs}

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        default, single, min_size, seed = self.value
        rows = [links for _, links in inside]
        rows += [repr(default)] if default is not None or not single else []
        rows += [f"{slot}={codec!r}" for slot, codec in single]
        rows += [f"min_size={min_size}"] if min_size != 4096 else []
        rows += [f"seed={seed}"] if seed != 0 else []
        return f"quantize_state({', '.join(rows)})"

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        default, single, min_size, seed = self.value
        return {
            "quantize_state": codec_to_json(default, write, ""),
            "slots": {slot: codec_to_json(x, write, f".{slot}") for slot, x in single},
            "min_size": min_size,
            "seed": seed,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Quantized:
        rest = {"slots": {}, "min_size": 4096, "seed": 0, **row}
        if not isinstance(rest["slots"], dict):
            raise TypeError(f"slots: must be an object, got {rest['slots']!r}")
        slots = {k: codec_from_json(x, read, f".{k}") for k, x in rest["slots"].items()}
        codec = codec_from_json(rest["quantize_state"], read, "")
        return cls.of(codec, slots, min_size=rest["min_size"], seed=rest["seed"])


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A rule whose slots are encoded between steps."""

    rule: Rule
    codecs: Mapping[str, Codec]
    min_size: int

    def update(
        self, signal: Signal, slots: dict[str, Any], step: Step
    ) -> tuple[Signal, dict[str, Any]]:
        signal, after = self.rule.update(signal, self.decode(signal, slots), step)
        kept = {slot: self.keep(slot, after[slot], slots[slot], step) for slot in self.codecs}
        return signal, {**after, **kept}

    def start(self, slot: str) -> Slot:
        def first(param: Any) -> PyTree:
            # XLA would evaluate the codes of zeros when it compiles, for minutes on large arrays.
            return self.encode(slot, jax.lax.optimization_barrier(self.rule.slots[slot](param)))

        return Slot(first, Slot.of(self.rule.slots[slot]).holds, form=repr(self.codecs[slot]))

    def decode(self, signal: Signal, slots: Mapping[str, Any]) -> dict[str, Any]:
        dtype = jnp.finfo(signal.update.dtype).dtype
        return {
            slot: _decode(self.codecs[slot], kept, dtype) if slot in self.codecs else kept
            for slot, kept in slots.items()
        }

    def keep(self, slot: str, new: PyTree, old: PyTree, step: Step) -> PyTree:
        """The encoded slot after the step, checked against the one before."""
        codec = self.codecs[slot]
        key = step.clock["key"] if codec.rounding == "stochastic" else None
        kept = self.encode(slot, new, key)
        if kinds(kept) != kinds(old):
            raise StageError(
                f"slot {slot!r} is {kinds(old)} in the state, and {codec!r} would make it "
                f"{kinds(kept)}: the state was quantized with other arguments (convert it with "
                "adamx.restore_state), or belongs to other parameters"
            )
        return kept

    def encode(self, slot: str, values: PyTree, key: Key | None = None) -> PyTree:
        first = self.rule.slots[slot]
        nonnegative = Slot.of(first).holds == "nonnegative"

        def of_one(x: Any) -> Any:
            is_small = x.ndim == 0 or elements(x) < self.min_size
            if is_small or not jnp.issubdtype(x.dtype, jnp.inexact):
                return x

            def encoded(x: Any) -> Any:
                bits = _nearest(x) if key is None else random.bits(key, x.shape, slot)
                return _encode(
                    self.codecs[slot], x, bits, slot, nonnegative, tiles.current() is not None
                )

            def specs() -> Any:
                made = jax.eval_shape(encoded, jax.ShapeDtypeStruct(x.shape, x.dtype))
                return jax.tree.map(lambda y: divided_like(x, y.shape), made)

            return automatic(encoded, (x,), specs)

        return jax.tree.map(of_one, values)


def _stays(first: Any) -> bool:
    """Whether a slot is not quantized: its last digits matter, or it is packed already."""
    slot = Slot.of(first)
    return slot.holds == "exact" or bool(slot.form)


def _nearest(x: Any) -> UInt32[Array, "*shape"]:
    return jnp.full(x.shape, np.uint32(1 << 31))


@functools.partial(jax.jit, static_argnames=("codec", "slot", "nonnegative", "in_tile"))
def _encode(
    codec: Codec,
    x: Values,
    bits: UInt32[Array, "*shape"],
    slot: str,
    nonnegative: bool,
    in_tile: bool,  # in which codecs use other instructions, so that traces can't be shared
) -> dict[str, PyTree]:
    if jnp.iscomplexobj(x):
        raise StageError(
            f"slot {slot!r} is {x.dtype}, but codecs hold real numbers; leave it unchanged, "
            f"quantize_state(…, {slot}=None), or split the complex parameter into two real ones"
        )
    return {f"@{codec.name}": codec.encode(_constant(x.astype(jnp.float32)), bits, nonnegative)}


def _decode(codec: Codec, kept: PyTree, dtype: Any) -> PyTree:
    def of_one(x: Any) -> Any:
        return codec.decode(x[f"@{codec.name}"]).astype(dtype) if is_packed(x) else x

    return jax.tree.map(of_one, kept, is_leaf=is_packed)


@jax.custom_jvp
def _constant(x: Values) -> Values:
    return x


@_constant.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise StageError(
        "a quantized slot has no derivative: rounding is piecewise constant. Differentiate the "
        "chain without quantize_state(), or stop the gradient of its inputs: jax.lax.stop_gradient"
    )
