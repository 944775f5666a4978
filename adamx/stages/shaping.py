"""Stages that keep nothing: scaling, decay, clipping."""

from __future__ import annotations

import jax.numpy as jnp

from adamx.core import NonNegative, Positive, Real, Rule, Squares, shrunk, stage, symbols, times
from adamx.core.equations import in_symbols

__all__ = [
    "add_decayed_weights",
    "clip_by_global_norm",
    "scale",
    "scale_by_learning_rate",
    "set_to_zero",
]


@stage
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


@in_symbols(scale)
def _(signal, factor):
    return signal.with_update(factor * signal.update)


@stage
def set_to_zero():
    r"""Keep the parameter as it is.

    .. math::
        u \leftarrow 0

    whatever the gradient, NaN included. In :func:`adamx.partition` it stands alone and keeps
    nothing. At the end of a chain, ``chain(adam(rate), where("encoder", set_to_zero()))``, it sets
    the update to zero, but the stages in front still take their statistics. Behind stages that keep
    iterates of their own (:func:`schedule_free_adamw`, :func:`lookahead`, :func:`master_weights`)
    only the parameter stays and these iterates move on: freeze with ``partition`` there.

    >>> opt = adamx.partition({"encoder": adamx.set_to_zero(), "*": adamx.adam(1e-3)})
    >>> params = {"encoder": jnp.ones(2), "head": jnp.ones(1)}
    >>> opt.update(params, opt.init(params))[0]["encoder"]
    Array([0., 0.], dtype=float32)
    """
    return lambda signal: signal.with_statistic(jnp.zeros_like(signal.update))


@in_symbols(set_to_zero)
def _(signal):
    return signal.with_statistic(symbols.ZERO)


@stage
def scale_by_learning_rate(learning_rate: NonNegative):
    r"""Turn a direction into a step downhill.

    .. math::
        u \leftarrow -\alpha_t u

    The gradient stays what it is, also where no statistic has been taken yet: a step is none.

    Args:
        learning_rate: α ≥ 0.

    >>> opt = adamx.scale_by_learning_rate(lambda t: 0.5 / (t + 1))
    >>> opt.update(jnp.array([1.0]), opt.init(jnp.zeros(1)))[0]
    Array([-0.5], dtype=float32)
    """
    return lambda signal: signal.with_statistic(times(signal.update, -learning_rate))


@in_symbols(scale_by_learning_rate)
def _(signal, learning_rate):
    return signal.with_statistic(-learning_rate * signal.update)


@stage
def add_decayed_weights(weight_decay: NonNegative = 0.0):
    r"""Add a multiple of the parameter to the update.

    .. math::
        u \leftarrow u + \lambda \theta

    In front of the first statistic this is L2 regularisation (the gradient of λ|θ|²/2 enters the
    averages); between the last statistic and the learning rate it is decoupled weight decay,
    AdamW.

    Args:
        weight_decay: λ ≥ 0.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101), Algorithm 2.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.add_decayed_weights(0.5)
    >>> theta = jnp.array([2.0])
    >>> opt.update(jnp.array([1.0]), opt.init(theta), theta)[0]
    Array([2.], dtype=float32)
    """
    return lambda signal: signal.with_update(signal.update + weight_decay * signal.param)


@in_symbols(add_decayed_weights)
def _(signal, weight_decay):
    return signal.with_update(signal.update + weight_decay * signal.param)


@stage
def clip_by_global_norm(max_norm: Positive):
    r"""Shrink the update so that its norm over all parameters is at most ``max_norm``.

    .. math::
        u \leftarrow u \cdot \min\left(1, \frac{c}{\lVert u \rVert}\right), \qquad
        \lVert u \rVert^2 = \sum_\text{all parameters} |u|^2

    In front of a statistic it clips the gradient. Every finite gradient is clipped, also one whose
    squares would overflow. What is not finite stays visible: with a NaN everywhere, with an
    infinity there (everything else is then 0 beside it).

    Args:
        max_norm: c > 0.

    Source: Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063), Algorithm 1.

    >>> opt = adamx.clip_by_global_norm(1.0)
    >>> grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    >>> opt.update(grads, opt.init(grads))[0]
    {'a': Array([0.6], dtype=float32), 'b': Array([0.8], dtype=float32)}
    """

    def global_sum(signal, slots, step):
        return Squares.of(signal.update)

    def update(signal, slots, step):
        return signal.with_update(shrunk(signal.update, step.total.norm(), max_norm)), slots

    return Rule(update, global_sum=global_sum)


@in_symbols(clip_by_global_norm)
def _(signal, max_norm):
    length = symbols.norm(signal.update)
    return signal.with_update(signal.update * symbols.minimum(1, max_norm / length))
