"""Signs: of the update, of the gradient, and where the two agree."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from adamx.core import Positive, Signal, stage, times
from adamx.explain import in_symbols, symbols
from adamx.numerics.arithmetic import at_least, mean, sign_of
from adamx.numerics.types import Reals, Values

__all__ = ["align_with_gradient", "cautious", "sign"]


@stage(reach="element")
def sign():
    r"""Replace the update by its sign (signSGD, Signum, Lion).

    .. math::
        u \leftarrow \operatorname{sign}(u)

    The sign of 0 is 0, of a complex number u/|u|. A bias is a positive factor, of which the sign
    knows nothing: behind this stage there is none to correct.

    Source: Bernstein et al. 2018 (arXiv 1802.04434), Algorithm 1.

    >>> opt = adamx.sign()
    >>> opt.update(jnp.array([3.0, 0.0, -1e-3]), opt.init(jnp.zeros(3)))[0]
    Array([ 1.,  0., -1.], dtype=float32)
    """
    return lambda signal: dataclasses.replace(signal.with_update(sign_of(signal.update)), bias=None)


@in_symbols(sign)
def _(signal):
    return signal.with_update(symbols.sign(signal.update)).without_bias()


@stage
def cautious(floor: Positive = 1e-3):
    r"""Keep the update only where it agrees with the gradient, and enlarge the rest (C-AdamW).

    .. math::
        \phi = \mathbb 1[u \cdot g < 0], \qquad
        u \leftarrow \frac{\phi\, u}{\max(\bar\phi, c)}, \qquad
        \bar\phi = \text{the share of } \phi = 1 \text{ in the array}

    Stands behind any recipe, ``chain(adam(rate), cautious())``, where the update is a step that
    should go against the gradient; or in front of the learning rate, where it is a direction that
    should agree with it, :math:`u \cdot g > 0` as the paper has it. There, what stands between it
    and the learning rate (weight decay, as the authors have it) is not masked.

    Of complex arrays the product is :math:`\operatorname{Re}(u \bar g)`.

    Args:
        floor: c > 0, so that a few coordinates are not blown up for all; 1e-3 as in the authors'
            code (the paper divides by :math:`\bar\phi + \epsilon`, its first version by
            :math:`\bar\phi + 1/d`).

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


@in_symbols(cautious)
def _(signal, floor):
    agreement = signal.named().update * signal.gradient
    agrees = agreement < 0 if signal.step else agreement > 0
    mask = signal.let("φ", symbols.indicator(agrees))
    return signal.with_update(mask * signal.update / symbols.maximum(symbols.mean(mask), floor))


@stage(reach="element")
def align_with_gradient():
    r"""Give the update the sign of the gradient, and leave it its size (Grams).

    .. math::
        u \leftarrow -|u| \operatorname{sign}(g)

    Stands behind any recipe, ``chain(adam(rate), align_with_gradient())``, where the update is a
    step. In front of the learning rate it is a direction, and becomes
    :math:`+|u| \operatorname{sign}(g)`. The sign of a complex number is g/|g|.

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


@in_symbols(align_with_gradient)
def _(signal):
    along = symbols.absolute(signal.update) * symbols.sign(signal.gradient)
    return signal.with_update(-along if signal.step else along)


def modulus(x: Values) -> Reals:
    """|x|; where x is finite and |x| is not, the largest number of its dtype."""
    size = jnp.abs(x)
    if not jnp.iscomplexobj(x):
        return size
    return jnp.where(jnp.isinf(size) & jnp.isfinite(x), jnp.finfo(size.dtype).max, size)


def _agreement(signal: Signal) -> Reals:
    """> 0 where the update goes where it should; of signs, whose product can't underflow."""
    product = jnp.real(jnp.sign(signal.update) * jnp.conj(jnp.sign(signal.gradient)))
    return -product if signal.step else product
