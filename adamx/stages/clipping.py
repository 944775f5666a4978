"""Clipping, by norms of all parameters, arrays or units, and by the expected size of gradients."""

from __future__ import annotations

import jax.numpy as jnp

from adamx.core import (
    Clock,
    NonNegative,
    Positive,
    Rule,
    Squares,
    abs_sq,
    clock_dtype,
    divide,
    norm,
    root,
    shrunk,
    stage,
)
from adamx.numerics.arithmetic import at_least, mean, power, shrunk_to_rms

__all__ = [
    "adaptive_clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_relative_rms",
    "growing_clip",
]


@stage(reach="sums")
def clip_by_relative_rms(eps: NonNegative = 1e-6, threshold: Positive = 1.0):
    r"""Shrink the update of an array if its gradient exceeds its second moment (StableAdamW).

    .. math::
        \text{RMS}_t = \sqrt{\operatorname{mean} \frac{|g_t|^2}{\max(\hat v_t, \epsilon^2)}},
        \qquad u \leftarrow \frac{u}{\max(1, \text{RMS}_t / d)}

    The mean is over all elements of one array. This is AdaFactor's update clipping with the
    gradient in place of the momentum in the numerator. It stands behind the stage that keeps v,
    which is :func:`scale_by_rms` or another that divides by a second moment, and where the whole
    step is to be shrunk, weight decay included. It keeps nothing.

    Args:
        eps: the least root mean square that counts.
        threshold: d, the RMS that passes unshrunk.

    Source: Wortsman et al. 2023 (arXiv 2304.13013), Algorithm 2; Shazeer & Stern 2018
    (arXiv 1804.04235), Section 6, update clipping.

    Raises:
        StageError: if no stage in front keeps a second moment.

    >>> opt = adamx.chain(
    ...     adamx.scale_by_rms(b2=0.75), adamx.bias_correction(), adamx.clip_by_relative_rms()
    ... )
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (0.1, 3.0):  # the second one is 1.3223 times its root mean square
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u)
    [1.]
    [1.]
    """

    def shape(signal):
        nu, weight = signal.note("second_moment", by="scale_by_rms")
        expected = at_least(eps, root(nu / weight))
        relative = divide(root(abs_sq(signal.gradient)), expected, eps)
        excess = root(mean(relative**2)) / threshold
        return signal.with_update(signal.update / jnp.maximum(1, excess))

    return shape


@stage(reach="element")
def growing_clip(exponent: NonNegative = 0.25):
    r"""Limit every element of the update by a bound that grows with the step count (ADOPT).

    .. math::
        u \leftarrow \operatorname{clip}(u, \pm (t-1)^p)

    In ADOPT it comes after :func:`scale_by_delayed_rms`, whose first update is zero. It prevents
    long steps while the denominator is based on few gradients. For complex u, the modulus is
    clipped.

    Keeps a clock of the steps.

    Args:
        exponent: p ≥ 0; with 0 the bound is 1 from the start.

    Source: Taniguchi et al. 2024 (arXiv 2411.02853), Algorithm 2.

    >>> opt = adamx.growing_clip()
    >>> state = opt.init(jnp.zeros(2))
    >>> for _ in range(3):  # the bound is 0, 1 and ∜2
    ...     u, state = opt.update(jnp.array([0.5, -9.0]), state)
    >>> [f"{x:.4f}" for x in u.tolist()]
    ['0.5000', '-1.1892']
    """
    steps = Clock(
        start=lambda: jnp.zeros((), jnp.int32),
        tick=lambda steps: jnp.minimum(steps, jnp.iinfo(jnp.int32).max - 1) + 1,
        read=lambda steps: power((steps - 1).astype(clock_dtype()), exponent),
    )

    def update(signal, slots, step):
        u, bound = signal.update, step.clock["steps"]
        if not jnp.iscomplexobj(u):
            return signal.with_update(jnp.clip(u, -bound, bound)), slots
        size = root(abs_sq(u))
        return signal.with_update(divide(u, size) * jnp.minimum(size, bound)), slots

    return Rule(update, clocks={"steps": steps})


@stage(reach="element")
def clip_by_global_norm(max_norm: Positive):
    r"""Shrink the update so that its norm over all parameters is at most ``max_norm``.

    .. math::
        u \leftarrow u \cdot \min\left(1, \frac{c}{\lVert u \rVert}\right)

    The norm is the root of the sum of |u|² over all parameters.
    Before the first statistic, it clips the gradient. Every finite gradient is clipped, even if its
    squares would overflow. Non-finite elements remain visible: with a NaN, all elements become NaN;
    with an infinity, this element stays non-finite and all others become 0.

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


@stage(reach="sums")
def clip_by_norm(max_norm: Positive = 1.0):
    r"""Shrink the update of each array so that its norm is at most ``max_norm``.

    .. math::
        u \leftarrow u \cdot \min\left(1, \frac{c}{\lVert u \rVert}\right)

    Like :func:`clip_by_global_norm`, but for each array separately. Before the first statistic, it
    clips the gradient.

    Args:
        max_norm: c > 0.

    Source: Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063), Algorithm 1.

    >>> opt = adamx.clip_by_norm(1.0)
    >>> grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
    >>> opt.update(grads, opt.init(grads))[0]
    {'a': Array([0.6, 0.8], dtype=float32), 'b': Array([0.5], dtype=float32)}
    """

    def shape(signal):
        return signal.with_update(shrunk(signal.update, norm(signal.update), max_norm))

    return shape


@stage(reach="sums")
def adaptive_clip(
    clipping: Positive = 0.01,
    eps: NonNegative = 1e-3,
    *,
    axis: int | tuple[int, ...] | None = None,
):
    r"""Clip the gradient of each unit to a fraction of the norm of its parameters (AGC).

    .. math::
        u_i \leftarrow u_i \cdot \min\left(1,
        \frac{\lambda \max(\lVert \theta_i \rVert, \epsilon)}{\lVert u_i \rVert}\right)

    A unit i consists of the weights of one output. Units are indexed by the last axis, as in a
    dense layer (inputs, outputs) or a convolution (height, width, inputs, outputs). In arrays with
    three axes (several heads), they are indexed by the last two axes. A vector or a scalar,
    ignoring axes of length 1, is one unit.

    Use it before any recipe.

    Args:
        clipping: λ > 0; the paper uses 0.01 for large batches and up to 0.16 for small ones.
        eps: ε ≥ 0, a lower bound for the norm, so that units that start at zero can change.
        axis: the axes of a norm, if they are not the default ones.

    Equals optax.adaptive_grad_clip.

    Source: Brock et al. 2021 (arXiv 2102.06171), equation 3.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.adaptive_clip(0.1)
    >>> theta = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    >>> opt.update(jnp.ones((2, 2)), opt.init(theta), theta)[0].round(5)
    Array([[3.5355e-01, 7.0000e-05],
           [3.5355e-01, 7.0000e-05]], dtype=float32)
    """

    def shape(signal):
        summed = units(signal.update.shape) if axis is None else axis
        most = clipping * at_least(eps, norm(signal.param, summed).value)
        return signal.with_update(shrunk(signal.update, norm(signal.update, summed), most))

    return shape


class Unit(tuple[int, ...]):
    """The axes that belong to one unit, called so in equations."""

    label = "unit"


def units(shape: tuple[int, ...]) -> Unit:
    """The axes that belong to one unit."""
    if sum(n != 1 for n in shape) <= 1:
        return Unit(range(len(shape)))
    return Unit((0,) if len(shape) == 3 else range(len(shape) - 1))


@stage(reach="sums")
def clip_by_block_rms(threshold: Positive = 1.0):
    r"""Shrink the update of each array so that its RMS is at most ``threshold`` (Adafactor).

    .. math::
        u \leftarrow \frac{u}{\max(1, \text{RMS}(u) / d)}

    Args:
        threshold: d > 0.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), Section 6.

    >>> opt = adamx.clip_by_block_rms(1.0)
    >>> opt.update(jnp.array([2.0, -2.0]), opt.init(jnp.zeros(2)))[0]
    Array([ 1., -1.], dtype=float32)
    """

    def shape(signal):
        return signal.with_update(shrunk_to_rms(signal.update, threshold))

    return shape
