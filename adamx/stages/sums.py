"""Sums over all steps: AdaGrad's second moment, which does not decay."""

from __future__ import annotations

import jax.numpy as jnp

from adamx.core import NonNegative, Rule, abs_sq, divide, root, squares_from, stage
from adamx.numerics.formats import largest_square

__all__ = ["scale_by_rss"]


@stage(reach="element")
def scale_by_rss(eps: NonNegative = 1e-10, *, initial_accumulator_value: NonNegative = 0.0):
    r"""Divide the update by the root of the sum of all squared gradients (AdaGrad).

    .. math::
        s_t = s_{t-1} + |g_t|^2, \qquad u \leftarrow \frac{u}{\sqrt{s_t} + \epsilon}

    Keeps ``sum_of_squares``, shaped like the parameter, real.

    Args:
        eps: added to the root. With 0, 0/0 is 0.
        initial_accumulator_value: s₀.

    Source: Duchi, Hazan & Singer 2011, with diagonal matrices.

    >>> opt = adamx.scale_by_rss()
    >>> opt.update(jnp.array([3.0, -4.0]), opt.init(jnp.zeros(2)))[0]
    Array([ 1., -1.], dtype=float32)
    """

    def update(signal, slots, step):
        total = slots["sum_of_squares"] + abs_sq(signal.gradient)
        total = jnp.minimum(total, largest_square(total.dtype))
        u = divide(signal.update, root(total) + eps, eps)
        return signal.with_statistic(u), {"sum_of_squares": total}

    return Rule(
        update, slots={"sum_of_squares": squares_from(initial_accumulator_value).called("s")}
    )
