"""Turn a direction into a step: learning rates, factors and proximal steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import (
    NonNegative,
    Real,
    Rule,
    Signal,
    Slot,
    StageError,
    Step,
    divide,
    is_off,
    itself,
    norm,
    stage,
    times,
)
from adamx.errors import as_given
from adamx.links.slots import Slots

__all__ = ["hyperball", "proximal_step", "scale", "scale_by_learning_rate", "set_to_zero"]


@stage(reach="element")
def scale(factor: Real):
    r"""Multiply the update.

    .. math::
        u \leftarrow x u

    Args:
        factor: x, any finite number.

    >>> opt = adamx.scale(-2.0)
    >>> opt.update(jnp.array([1.0]), opt.init(jnp.zeros(1)))[0]
    Array([-2.], dtype=float32)
    """
    return lambda signal: signal.with_update(times(signal.update, factor))


@stage(reach="element", keeps_rounding=True)
def set_to_zero():
    r"""Set the update to zero, so that the parameter stays as it is (frozen).

    .. math::
        u \leftarrow 0

    for every gradient, including NaN. As a group of :func:`adamx.partition`, it needs no state. At
    the end of a chain, ``chain(adam(rate), where("encoder", set_to_zero()))``, it sets the update
    to zero, but the earlier stages still update their statistics. After stages that keep their own
    iterates (:func:`schedule_free_adamw`, :func:`lookahead`, :func:`master_weights`), the parameter
    does not change, but these iterates do. In this case, freeze the parameter with ``partition``.

    >>> opt = adamx.partition({"encoder": adamx.set_to_zero(), "*": adamx.adam(1e-3)})
    >>> params = {"encoder": jnp.ones(2), "head": jnp.ones(1)}
    >>> opt.update(params, opt.init(params))[0]["encoder"]
    Array([0., 0.], dtype=float32)
    """
    return lambda signal: signal.with_statistic(jnp.zeros_like(signal.update))


@stage(reach="element", place="rate")
def scale_by_learning_rate(learning_rate: NonNegative):
    r"""Multiply the update by −α: a direction becomes a step downhill.

    .. math::
        u \leftarrow -\alpha_t u

    Only the update changes, even if no statistic has been computed yet.

    Args:
        learning_rate: α ≥ 0.

    >>> opt = adamx.scale_by_learning_rate(lambda t: 0.5 / (t + 1))
    >>> opt.update(jnp.array([1.0]), opt.init(jnp.zeros(1)))[0]
    Array([-0.5], dtype=float32)
    """
    return lambda signal: signal.with_step(times(signal.update, -learning_rate))


@stage(reach="element", place="rate")
def proximal_step(learning_rate: NonNegative, weight_decay: NonNegative = 0.0):
    r"""Turn a direction into a step downhill that ends with proximal weight decay (Adan).

    .. math::
        u \leftarrow -\alpha \frac{u + \lambda \theta}{1 + \alpha \lambda}

    so that the new parameter is :math:`(\theta - \alpha u) / (1 + \alpha \lambda)`. This is the
    proximal step of :math:`\lambda \lVert \theta \rVert^2 / 2`. It replaces
    :func:`add_decayed_weights` and :func:`scale_by_learning_rate`, and equals them to first order
    in αλ. Unlike them, the decay never changes the sign of a parameter, however large αλ is.

    Args:
        learning_rate: α ≥ 0.
        weight_decay: λ ≥ 0; with the number 0, the stage does not need the parameters.

    Source: Xie et al. 2022 (arXiv 2208.06677), Algorithm 1 (Adan); Zhuang et al. 2022 (arXiv
    2202.00089).

    Raises:
        StageError: if ``update`` is called without parameters and λ is not the number 0.

    >>> opt = adamx.proximal_step(0.5, weight_decay=2.0)
    >>> theta = jnp.array([4.0])
    >>> theta + opt.update(jnp.array([1.0]), opt.init(theta), theta)[0]  # (4 − 0.5) / 2
    Array([1.75], dtype=float32)
    """

    def shape(signal):
        if is_off(weight_decay):
            return signal.with_step(times(signal.update, -learning_rate))
        shrunk = 1 + learning_rate * weight_decay
        u = signal.update + weight_decay * signal.param
        return signal.with_step(times(u, -learning_rate / shrunk))

    return shape


@stage(place="rate")
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
