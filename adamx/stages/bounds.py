"""Keep a parameter in bounds: its norm on a sphere, or its growth; the logits that it makes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx.core import (
    NonNegative,
    Positive,
    Rule,
    Signal,
    Slot,
    StageError,
    Step,
    divide,
    itself,
    norm,
    stage,
)
from adamx.errors import as_given
from adamx.links.slots import Slots
from adamx.numerics.types import Array
from adamx.trees.patterns import matches

__all__ = ["hyperball", "qk_clip", "radial_brake"]


@stage(reach="sums", place="rate")
def hyperball(learning_rate: NonNegative, radius: str = "initial"):
    r"""Step along a sphere: the norm of each array stays as it is (Hyperball).

    .. math::
        \theta' = \theta - \alpha R \frac{u}{\lVert u \rVert}, \qquad
        u \leftarrow R \frac{\theta'}{\lVert \theta' \rVert} - \theta

    R is the norm of the array at the start, ‖θ₀‖, or with ``radius="current"`` the norm before the
    step. α is the angle of the step in radians, if it is small. The stage takes the place of the
    learning rate. There is no weight decay: the norm does not change. Use it for matrices; a bias
    that starts at zero (R = 0) takes ordinary steps, :math:`u \leftarrow -\alpha u`.

    Keeps ``radius`` (R), a scalar for each parameter, unless that is the current norm.

    Args:
        learning_rate: α ≥ 0.
        radius: "initial" or "current".

    Source: the hyperball optimisers of arXiv 2606.16899, and MuonH (the current norm).

    Raises:
        StageError: for another ``radius``, and if ``update`` is called without parameters.

    >>> opt = adamx.hyperball(0.1)
    >>> theta = jnp.array([3.0, 4.0])
    >>> u, _ = opt.update(jnp.array([5.0, 0.0]), opt.init(theta), theta)
    >>> jnp.linalg.norm(theta + u).round(5)
    Array(5., dtype=float32)
    """
    if radius not in ("initial", "current"):
        raise StageError(f"radius must be 'initial' or 'current', got {as_given(radius)}")

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        theta, u = signal.param, signal.update
        size = norm(theta).value if radius == "current" else slots["radius"]
        length = norm(u)
        moved = theta - learning_rate * size * divide(length.in_units(u), length.size)
        after = norm(moved)
        around = divide(after.in_units(moved) * size, after.size) - theta
        return signal.with_step(jnp.where(size == 0, -learning_rate * u, around)), slots

    slots = {} if radius == "current" else {"radius": Slot(_length, holds="exact")}
    return Rule(update, slots=slots)


def _length(param: Any) -> Any:
    """The norm of a parameter."""
    return norm(itself(param)).value


@stage(reach="sums", place="step")
def radial_brake(outward: NonNegative = 0.5, inward: NonNegative = 1.0):
    r"""Keep a part only of what a step adds to the norm of each array (radial brake).

    .. math::
        \theta' = \theta + u, \qquad
        R = \lVert \theta \rVert + s \left( \lVert \theta' \rVert - \lVert \theta \rVert \right),
        \qquad u \leftarrow R \frac{\theta'}{\lVert \theta' \rVert} - \theta

    where s is ``outward`` if the step makes the norm larger, and ``inward`` if it makes it smaller.
    With 1, the step stays as it is; with 0 for both, the norm stays as it is. It stands behind the
    learning rate, often in place of weight decay, and is meant for matrices. A step that ends at 0
    does not change.

    Args:
        outward, inward: s ≥ 0.

    Source: the radial brake of the modded-nanogpt optimisation track, as in NVIDIA's
    Emerging-Optimizers 0.5 (``RadialBrakeHook``).

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.radial_brake(0.5))
    >>> theta = jnp.array([3.0, 4.0])
    >>> theta + opt.update(-theta, opt.init(theta), theta)[0]  # the norm 7.5, not 10
    Array([4.5, 6. ], dtype=float32)
    """

    def shape(signal):
        theta, u = signal.param, signal.update
        moved = theta + u
        before, after = norm(theta), norm(moved)
        start = before.value * (1 / after.unit)
        growth = after.size - start
        kept = start + jnp.where(growth > 0, outward * growth, inward * growth)
        share = jnp.where(after.size > 0, divide(kept, after.size), 1)
        return signal.with_update(share * u + (share - 1) * theta)

    return shape


@stage(place="step", takes=("max_logits",))
def qk_clip(threshold: Positive = 100.0, power: float | Sequence[float] = 0.5, *, axis: int = -2):
    r"""Shrink the weights of attention heads whose largest logit exceeds a threshold (QK-Clip).

    .. math::
        \gamma_h = \min(1, \tau / S_h), \qquad
        u_h \leftarrow \gamma_h^p (\theta_h + u_h) - \theta_h

    for the weights :math:`\theta_h` of head h, whose largest attention logit in the batch of this
    step, before the softmax, is S_h. With p = 1/2 for queries and keys, the logits of the head
    shrink by γ. Behind Muon, it gives MuonClip. It is the last stage, for the parameters that make
    queries and keys::

        opt = adamx.chain(
            adamx.muon(0.02, rest=adamx.adamw(3e-4)),
            adamx.where(("query", "key"), adamx.qk_clip(100.0)),
        )
        updates, state = opt.update(grads, state, params, max_logits={"block_0/attention": largest})

    ``update`` takes the largest logits as ``max_logits``: an array of one number for each head, or
    a tree of such arrays, whose paths are patterns of :func:`adamx.where`. Each pattern stands for
    the parameters below it: ``{"block_0": {"attention": S}}`` for the parameters
    ``block_0/attention/query/kernel`` and ``block_0/attention/key/kernel``. With several devices,
    take the maximum over all of them first. The intermediates that a Flax network stores by
    ``self.sow("intermediates", "max_logits", S)`` are such a tree, too. Inside
    :func:`adamx.per_layer`, the arrays have the layers as their first axis. A logit that is not
    finite changes nothing.

    Args:
        threshold: τ > 0.
        power: p; a tuple for a kernel in which several projections are side by side along the
            axis, ``(0.5, 0.5, 0.0)`` for queries, keys and values.
        axis: the axis of the heads: -2 for a kernel [embed, heads, head]; -1 for [embed, heads ·
            head], of which each head is a part.

    Source: Kimi Team 2025 (Kimi K2, arXiv 2507.20534), Section 2.1 and Algorithm 1; τ = 100 there.

    Raises:
        StageError: for a power or an axis that is none; if ``update`` is called without parameters
            or without ``max_logits``; for a parameter that no pattern or that several match, and
            for an axis that is not divided by the number of heads.

    >>> opt = adamx.qk_clip(100.0)
    >>> kernel = jnp.ones((1, 2, 1))  # [embed, heads, head]
    >>> largest = jnp.array([50.0, 400.0])
    >>> kernel + opt.update(0 * kernel, opt.init(kernel), kernel, max_logits=largest)[0]
    Array([[[1. ],
            [0.5]]], dtype=float32)
    """
    powers = tuple(power) if isinstance(power, Sequence) else (power,)
    if not powers or not all(map(_is_number, powers)):
        raise StageError(f"power must be a number or a tuple of numbers, got {as_given(power)}")
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise StageError(f"axis must be a whole number, got {as_given(axis)}")

    def own(path: str, shape: jax.ShapeDtypeStruct, extra: Mapping[str, Any]) -> Array:
        return _of_path(path, extra["max_logits"])

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        theta, u = signal.param, signal.update
        largest = step.own.astype(jnp.finfo(u.dtype).dtype)
        exceeds = (largest > threshold) & jnp.isfinite(largest)
        gamma = jnp.where(exceeds, threshold / jnp.where(exceeds, largest, 1), 1)
        share = _along(axis, u.shape, jnp.stack([gamma**p for p in powers]))
        return signal.with_update(share * u + (share - 1) * theta), slots

    return Rule(update, own=own)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _along(axis: int, shape: tuple[int, ...], share: Array) -> Array:
    """Factors of the heads of each part, for the elements along an axis of an array."""
    if share.ndim > 2:
        raise StageError(
            f"max_logits has the shape {share.shape[1:]}, where one number for each head is needed"
        )
    if not -len(shape) <= axis < len(shape):
        raise StageError(f"axis {axis} is none of an array of shape {shape}")
    length, count = shape[axis], share.size
    if not count or length % count:
        raise StageError(
            f"axis {axis} of an array of shape {shape} has {length} elements, which {count} heads "
            "(times the projections side by side) do not divide; choose the axis of the heads"
        )
    alone = [1] * len(shape)
    alone[axis] = length
    return jnp.repeat(share.reshape(-1), length // count).reshape(alone)


_SOWN = re.compile(r"(^|/)max_logits/0$")
"""The end of the path of what a Flax module stores by ``sow``: a tuple under this name."""


def _of_path(path: str, given: Any) -> Array:
    """The array of a tree whose path is a pattern that matches a parameter's path."""
    leaves = jax.tree_util.tree_flatten_with_path(given)[0]
    patterns = [
        _SOWN.sub("", jax.tree_util.keystr(x, simple=True, separator="/")) for x, _ in leaves
    ]
    found = [i for i, x in enumerate(patterns) if not x or matches(x, path)]
    if len(found) != 1:
        which = " and ".join(repr(patterns[i]) for i in found) if found else "none"
        raise StageError(
            f"max_logits must hold one array for this parameter, and {which} of its patterns "
            f"{patterns} matches; a pattern names whole segments of the path"
        )
    return jnp.asarray(leaves[found[0]][1])
