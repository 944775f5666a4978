"""Layer-wise step sizes from norms of whole arrays."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from adamx.core import (
    Decay,
    NonNegative,
    Rule,
    Slot,
    decaying_average,
    divide,
    norm,
    plus,
    real_zeros,
    root,
    stage,
    total,
)
from adamx.numerics.arithmetic import summable_squares

__all__ = ["scale_by_norm", "trust_ratio"]


@stage(reach="sums")
def trust_ratio(
    trust_coefficient: NonNegative = 1.0,
    eps: NonNegative = 0.0,
    *,
    weight_decay: NonNegative = 0.0,
):
    r"""Give each array an update in proportion to the norm of its parameters (LARS, LAMB).

    .. math::
        r = \eta \frac{\lVert \theta \rVert}{\lVert u \rVert + \lambda \lVert \theta \rVert
        + \epsilon}, \qquad u \leftarrow r\, (u + \lambda \theta)

    Where ‖θ‖ or the denominator is 0, r is 1.

    Before the learning rate, it makes any recipe layer-wise: after Adam's stages it gives LAMB,
    before the momentum LARS. The decay λ is the decay of LARS, which adds the norm λ‖θ‖ separately.
    For a decay that is part of the update, as in LAMB, put :func:`add_decayed_weights` before this
    stage.

    A bias correction must come before this stage, because the ratio to the norm of the update
    cancels every positive factor of the update, including its bias.

    Args:
        trust_coefficient: η ≥ 0.
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0.

    Source: You, Gitman & Ginsburg 2017 (arXiv 1708.03888), equation 6 and Algorithm 1; You et
    al. 2019 (arXiv 1904.00962), Algorithm 2. Their code sets r = 1 if a norm is 0.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.trust_ratio()
    >>> theta = jnp.array([3.0, 4.0])
    >>> opt.update(jnp.array([0.0, -1e-3]), opt.init(theta), theta)[0]
    Array([ 0., -5.], dtype=float32)
    """

    def shape(signal):
        theta, u = signal.param, signal.update
        length, of_u = norm(theta).value, norm(u)
        one = 1 / of_u.unit
        by = plus(plus(of_u.size, weight_decay, length * one), eps, one)
        no_norm = (length == 0) | (by == 0)
        ratio = jnp.where(no_norm, of_u.unit, trust_coefficient * divide(length, by))
        trusted = signal.with_update(ratio * of_u.in_units(plus(u, weight_decay, theta)))
        return dataclasses.replace(trusted, bias=None)

    return shape


@stage(reach="sums")
def scale_by_norm(b2: Decay = 0.98, eps: NonNegative = 1e-8):
    r"""Divide the update by the RMS norm of each array's gradient (NovoGrad).

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \quad
        v_1 = \lVert g_1 \rVert^2, \qquad
        u \leftarrow \frac{u}{\sqrt{v_t} + \epsilon}

    The second moment is one number per array. It starts with the first nonzero squared norm, so
    there is no bias to correct.

    Keeps ``nu`` (v), a real scalar for every parameter.

    Args:
        b2: β₂ in [0, 1).
        eps: added to the root. With 0, 0/0 is 0.

    Source: Ginsburg et al. 2019 (arXiv 1905.11286), Algorithm 1 (NovoGrad).

    >>> opt = adamx.scale_by_norm()
    >>> opt.update(jnp.array([3.0, -4.0]), opt.init(jnp.zeros(2)))[0]
    Array([ 0.6, -0.8], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def start(param):
        return total(real_zeros(param))  # a scalar, where the parameter is

    def update(signal, slots, step):
        square, nu = total(summable_squares(signal.gradient)), slots["nu"]
        nu = jnp.where(nu == 0, square, mean_square(nu, square))
        return signal.with_statistic(divide(signal.update, plus(root(nu), eps), eps)), {"nu": nu}

    return Rule(update, slots={"nu": Slot(start, holds="nonnegative")})
