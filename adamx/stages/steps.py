"""Turn a direction into a step: learning rates, factors and proximal steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import NonNegative, Real, Rule, Signal, StageError, Step, is_off, stage, times
from adamx.errors import as_given
from adamx.links.slots import Slots
from adamx.trees.patterns import check_call

__all__ = ["proximal_step", "scale", "scale_by_learning_rate", "scale_each", "set_to_zero"]


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


@stage(reach="element")
def scale_each(factor: Callable[[str, jax.ShapeDtypeStruct], float]):
    r"""Multiply the update of each parameter by a number of its own, from its path and shape.

    .. math::
        u \leftarrow f(\text{path}, \text{shape})\, u

    It gives layers their own learning rates, such as those of the maximal update parametrisation
    (μP): behind the stages of Adam, 1/fan-in for the matrices between hidden layers. The factors
    are computed when a step is traced, so they cost nothing. In a basis, the shape is that of the
    parameter.

    Args:
        factor: f, a function of the parameter's path (``"encoder/layers/0/kernel"``) and a
            ``jax.ShapeDtypeStruct``; it returns a finite number.

    Source: Yang et al. 2022 (arXiv 2203.03466), Table 3, for the factors of μP.

    Raises:
        TypeError: from ``init``, for a function of other arguments.
        StageError: from ``init``, if it is no function, raises an error, or returns anything but a
            finite number.

    >>> def mup(path, shape):
    ...     return 1 / shape.shape[0] if adamx.hidden_matrices(path, shape) else 1.0
    >>> opt = adamx.chain(adamx.sign(), adamx.scale_each(mup), adamx.scale_by_learning_rate(0.1))
    >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    >>> jax.tree.map(lambda u: float(u.mean()), opt.update(params, opt.init(params))[0])
    {'bias': -0.10000000149011612, 'kernel': -0.02500000037252903}
    """
    if not callable(factor):
        raise StageError(
            f"factor must be a function (path, shape) -> number, got {as_given(factor)}; scale(x) "
            "multiplies all parameters by one number"
        )
    check_call(factor, "factor", "(path, shape) -> number", "", None)

    def own(path: str, shape: jax.ShapeDtypeStruct, extra: Mapping[str, Any]) -> float:
        try:
            found = factor(path, shape)
        except Exception as error:
            raise StageError(
                f"factor raised {type(error).__name__}: {error}. It is called as (path, shape), "
                "with a string and a jax.ShapeDtypeStruct"
            ) from error
        if isinstance(found, bool) or not isinstance(found, (int, float, np.number)):
            raise StageError(f"factor returned {as_given(found)}, where a number is needed")
        if not math.isfinite(found):
            raise StageError(f"factor returned {found}, which is not finite")
        return float(found)

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        return signal.with_update(times(signal.update, step.own)), slots

    return Rule(update, own=own)


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
