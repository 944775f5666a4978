"""Stages that use the signs of the update and the gradient."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from adamx.core import Positive, Signal, stage, times
from adamx.numerics.arithmetic import at_least, mean, sign_of
from adamx.numerics.types import Reals, Values

__all__ = ["align_with_gradient", "cautious", "sign"]


@stage(reach="element")
def sign():
    r"""Replace the update by its sign (signSGD, Signum, Lion).

    .. math::
        u \leftarrow \operatorname{sign}(u)

    The sign of 0 is 0, and the sign of a complex number u is u/|u|. The sign does not depend on
    positive factors, so there is no bias to correct after this stage.

    Source: Bernstein et al. 2018 (arXiv 1802.04434), Algorithm 1.

    >>> opt = adamx.sign()
    >>> opt.update(jnp.array([3.0, 0.0, -1e-3]), opt.init(jnp.zeros(3)))[0]
    Array([ 1.,  0., -1.], dtype=float32)
    """
    return lambda signal: dataclasses.replace(signal.with_update(sign_of(signal.update)), bias=None)


@stage(reach="sums")
def cautious(floor: Positive = 1e-3):
    r"""Set the update to zero where it disagrees with the gradient; enlarge the rest (C-AdamW).

    .. math::
        \phi = \mathbb 1[u \cdot g < 0], \qquad
        u \leftarrow \frac{\phi\, u}{\max(\operatorname{mean}(\phi), c)}

    The mean of φ is the fraction of the array that agrees.

    Use it after any recipe, ``chain(adam(rate), cautious())``. There the update is a step, which
    should point against the gradient. Or use it before the learning rate. There the update is a
    direction, which should agree with the gradient: :math:`u \cdot g > 0`, as in the paper. Stages
    between it and the learning rate (weight decay, in the authors' code) are not masked.

    For complex arrays, the product is :math:`\operatorname{Re}(u \bar g)`.

    Args:
        floor: c > 0, a lower bound for the divisor, so that a few remaining coordinates are not
            enlarged too much. 1e-3 as in the authors' code (the paper divides by
            the mean + ε, its first version by the mean + 1/d).

    Source: Liang et al. 2024 (arXiv 2411.16085), Algorithm 1.

    >>> opt = adamx.chain(adamx.sgd(1.0, momentum=0.5), adamx.cautious())
    >>> state = opt.init(jnp.zeros(2))
    >>> for g in ([2.0, 2.0], [2.0, -0.5]):  # the second velocity is 3.0, 0.5
    ...     u, state = opt.update(jnp.array(g), state)
    >>> u
    Array([-6., -0.], dtype=float32)
    """

    def shape(signal):
        agrees = _agreement(signal) > 0
        mask = agrees.astype(jnp.finfo(signal.update.dtype).dtype)
        return signal.with_update(times(signal.update, mask / at_least(floor, mean(mask))))

    return shape


@stage(reach="element")
def align_with_gradient():
    r"""Set the sign of the update by the gradient, and keep its absolute value (Grams).

    .. math::
        u \leftarrow -|u| \operatorname{sign}(g)

    Use it after any recipe, ``chain(adam(rate), align_with_gradient())``, where the update is a
    step. Before the learning rate, the update is a direction, and becomes
    :math:`+|u| \operatorname{sign}(g)`. The sign of a complex number g is g/|g|.

    Source: Cao, Li & Song 2024 (arXiv 2412.17107), Algorithm 1.

    >>> opt = adamx.chain(adamx.sgd(1.0, momentum=0.5), adamx.align_with_gradient())
    >>> state = opt.init(jnp.zeros(2))
    >>> for g in ([2.0, 2.0], [2.0, -0.5]):  # the second velocity is 3.0, 0.5
    ...     u, state = opt.update(jnp.array(g), state)
    >>> u
    Array([-3. ,  0.5], dtype=float32)
    """

    def shape(signal):
        size, along = modulus(signal.update), sign_of(signal.gradient)
        return signal.with_update(-size * along if signal.step else size * along)

    return shape


def modulus(x: Values) -> Reals:
    """|x|; if x is finite but |x| is not, the largest number of its dtype."""
    size = jnp.abs(x)
    if not jnp.iscomplexobj(x):
        return size
    return jnp.where(jnp.isinf(size) & jnp.isfinite(x), jnp.finfo(size.dtype).max, size)


def _agreement(signal: Signal) -> Reals:
    """Positive where the update has the right direction; uses signs, as products may underflow."""
    product = jnp.real(jnp.sign(signal.update) * jnp.conj(jnp.sign(signal.gradient)))
    return -product if signal.step else product
