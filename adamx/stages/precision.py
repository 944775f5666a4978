"""Train bfloat16 and float16 parameters like float32 ones, by compensating for rounding.

A bfloat16 has 8 significant bits. Rounding removes every step that is smaller than a 512th of the
parameter. The stages of this module preserve such steps in different ways. Use them as the last
stage, where the update is the final step. They replace it by a float32 update that leads exactly to
a number of the parameter's dtype. ``adamx.apply_updates`` (or Optax's) then adds without rounding
and keeps the parameter's dtype. Equinox's ``apply_updates`` computes p + u, which turns a bfloat16
parameter into float32; the next ``update`` raises an error that says so.

Parameters of float32 and wider dtypes are not affected, and need no state.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import Rule, Slot, StageError, itself, stage, total, zeros
from adamx.errors import as_given
from adamx.numerics import random
from adamx.numerics.formats import rounded
from adamx.numerics.named import named
from adamx.numerics.types import Array, Reals, UInt32

__all__ = ["kahan_summation", "master_weights", "stochastic_rounding"]


@stage(reach="element", place="rounding")
def stochastic_rounding(seed: int = 0):
    r"""Round the new parameter up or down at random, without bias.

    .. math::
        \theta_t = \mathrm{SR}(\theta_{t-1} + u)

    The expectation of SR(x) is x.
    SR(x) is one of the two neighbours of x in the parameter's dtype; the nearer neighbour is more
    probable. A small step changes the parameter rarely, and then by one unit in the last place. Its
    mean is the size of the step. Numbers of the parameter's dtype are not changed, and numbers
    beyond its largest number round to infinity, as usual.

    Use it as the last stage. It needs almost no memory. It keeps a ``key`` for random bits, so that
    a repeated or resumed training takes the same steps, and for every parameter a zero of its
    ``dtype``, to detect parameters that were cast. In units of the last place, the standard
    deviation of the noise in a step is :math:`\sqrt{p (1-p)}` for a step of size p, which is at
    most ½.

    Args:
        seed: the seed of the key.

    Source: Gupta et al. 2015 (arXiv 1502.02551); Zamirai et al. 2020 (arXiv 2010.06192).

    Raises:
        StageError: if ``update`` is called without parameters, or with one that has another dtype
            than in ``init``.
        ValueError: from ``init``, for a seed that is no whole number.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.stochastic_rounding())
    >>> theta = jnp.ones(10_000, jnp.bfloat16)  # the next one is 1.0078125
    >>> u, state = opt.update(jnp.full(10_000, -1e-4), opt.init(theta), theta)
    >>> theta = adamx.apply_updates(theta, u)
    >>> theta.dtype.name, len(set(theta.tolist())), f"{theta.astype(jnp.float32).mean():.4f}"
    ('bfloat16', 2, '1.0001')
    """
    _check_seed(seed)

    def start(param: Any) -> Any:
        return total(zeros(param, param.dtype)) if _is_narrow(param.dtype) else None

    def update(signal, slots, step):
        param = signal.param
        if not _is_narrow(signal.param_dtype):
            return signal, slots
        bits = random.bits(step.clock["key"], param.shape, "parameter")
        return signal.step_to(dithered(param + signal.update, bits, signal.param_dtype)), slots

    return Rule(update, slots={"dtype": Slot(start, holds="exact")}, seed=seed)


@stage(reach="element", place="rounding")
def kahan_summation(seed: int = 0):
    r"""Add the rounding error of each step to the next step (Kahan summation).

    .. math::
        s &= u + \ell_{t-1} \\
        \theta_t &= \mathrm{RN}(\theta_{t-1} + s) \\
        \ell_t &= \mathrm{SR}\bigl(s - (\theta_t - \theta_{t-1})\bigr)

    RN rounds to the nearest number of the parameter's dtype. The rounding error ℓ is kept in the
    same dtype and is rounded by SR, at random and without bias. (With rounding to the nearest, as
    published, a sum of many small steps stops growing: at θ = 1 in bfloat16, steps below 2⁻¹⁹ do
    not change an ℓ of 2⁻¹¹.) The parameter and ℓ together act like a parameter of 16 significant
    bits with random rounding, so steps of any size accumulate.

    Use it as the last stage. Keeps ``lost`` (ℓ), shaped like the parameter and in its dtype, and a
    ``key`` for random bits. If you set a parameter yourself, its ℓ is not reset.

    Args:
        seed: the seed of the key.

    Source: Kahan 1965; Zamirai et al. 2020 (arXiv 2010.06192), without SR.

    Raises:
        StageError: if ``update`` is called without parameters, or with one that has another dtype
            than in ``init``.
        ValueError: from ``init``, for a seed that is no whole number.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.kahan_summation())
    >>> theta = jnp.ones(2, jnp.bfloat16)
    >>> state = opt.init(theta)
    >>> for _ in range(5):  # the fourth step of 2⁻¹⁰ is too much for 1
    ...     u, state = opt.update(jnp.full(2, -(2.0**-10)), state, theta)
    ...     theta = adamx.apply_updates(theta, u)
    >>> theta.astype(jnp.float32) + state["kahan_summation"]["lost"].astype(jnp.float32) - 1
    Array([0.00488281, 0.00488281], dtype=float32)
    """
    _check_seed(seed)

    def start(param: Any) -> Any:
        return zeros(param, param.dtype) if _is_narrow(param.dtype) else None

    def update(signal, slots, step):
        param, lost, dtype = signal.param, slots["lost"], signal.param_dtype
        if lost is None:
            return signal, slots
        s = signal.update + lost.astype(param.dtype)
        signal = signal.step_to(rounded(param + s, dtype))
        bits = random.bits(step.clock["key"], param.shape, "lost")
        return signal, {"lost": dithered(s - signal.update, bits, dtype).astype(dtype)}

    return Rule(update, slots={"lost": Slot(start, holds="exact", letter="ℓ")}, seed=seed)


@stage(reach="element", place="rounding")
def master_weights():
    r"""Apply the steps to a float32 copy of the parameters, and round it to the parameters.

    .. math::
        w_t = w_{t-1} + u, \qquad \theta_t = \mathrm{RN}(w_t), \qquad w_0 = \theta_0

    RN rounds to the nearest number of the parameter's dtype. The copy w is updated as in a float32
    training; only the gradients are computed at rounded parameters.

    If the parameter does not equal the rounded w, it was changed outside of the optimiser (set by
    hand, or averaged with another one). Then w is set to the parameter, so that the change is kept.

    Use it as the last stage. Keeps ``master`` (w), shaped like the parameter, in float32. These are
    the best parameters to save: ``adamx.dequantize(state, "master", params=params)``.

    Source: Micikevicius et al. 2018 (arXiv 1710.03740), Section 3.1.

    Raises:
        StageError: if ``update`` is called without parameters, or with one that has another dtype
            than in ``init``; if ``init`` is called with shapes only.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.master_weights())
    >>> theta = jnp.ones(2, jnp.bfloat16)
    >>> state = opt.init(theta)
    >>> for _ in range(5):  # bfloat16 can hold 1.0078125 next
    ...     u, state = opt.update(jnp.full(2, -1e-3), state, theta)
    ...     theta = adamx.apply_updates(theta, u)
    >>> theta, adamx.dequantize(state, "master")
    (Array([1.00781, 1.00781], dtype=bfloat16), Array([1.005, 1.005], dtype=float32))
    """

    def start(param: Any) -> Any:
        return itself(param) if _is_narrow(param.dtype) else None

    def update(signal, slots, step):
        param, master, dtype = signal.param, slots["master"], signal.param_dtype
        if master is None:
            return signal, slots
        master = jnp.where(rounded(master, dtype) == param, master, param) + signal.update
        return signal.step_to(rounded(master, dtype)), {"master": master}

    return Rule(update, slots={"master": Slot(start, holds="exact", letter="w")})


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {as_given(seed)}")


def _is_narrow(dtype: Any) -> bool:
    return jnp.finfo(dtype).bits < 32


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _dithered(x: Reals, bits: UInt32[Array, "*shape"], dtype: Any) -> Reals:
    """x rounded at random to one of its neighbours in ``dtype``, such that the mean is x.

    The bits of the positive numbers of a format, read as integers, increase with the number, so
    that neighbours differ by one, for every format and for subnormal numbers, too.
    """
    if jnp.finfo(dtype).bits < 16:
        raise StageError(
            f"it can't round to {jnp.dtype(dtype).name} at random, only to bfloat16 and float16; "
            "master_weights() keeps parameters of 8 bits"
        )
    size = jnp.abs(x)
    near = rounded(size, dtype)
    count = jax.lax.bitcast_convert_type(near.astype(dtype), jnp.uint16)
    count = count - (near > size).astype(jnp.uint16)
    lower, upper = (
        jax.lax.bitcast_convert_type(n, dtype).astype(x.dtype) for n in (count, count + 1)
    )
    chance = (bits >> 8).astype(x.dtype) * np.float32(2.0**-24)  # uniform in [0, 1)
    up = chance * (upper - lower) < size - lower
    chosen = jnp.where(up, upper, lower)
    return jnp.copysign(jnp.where(jnp.isinf(near), near, chosen), x)


@_dithered.defjvp
def _(dtype: Any, primals: Any, tangents: Any) -> Any:
    """The derivative, as for rounding to the nearest: the derivative of x."""
    return _dithered(*primals, dtype), tangents[0]


@named
def dithered(x: Reals, bits: UInt32[Array, "*shape"], dtype: Any) -> Reals:
    """SR(x), see :func:`stochastic_rounding`."""
    return _dithered(x, bits, dtype)
