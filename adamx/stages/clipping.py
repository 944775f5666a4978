"""Clipping, by norms of all parameters, arrays or units, and by the expected size of gradients."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Norm,
    Positive,
    Rule,
    Slot,
    Squares,
    abs_sq,
    clock_dtype,
    divide,
    norm,
    real_zeros,
    root,
    shrunk,
    stage,
    total,
)
from adamx.errors import check_whole
from adamx.numerics.arithmetic import at_least, mean, power, shrunk_to_rms, sign_of
from adamx.numerics.types import Scalar, Values

__all__ = [
    "adaptive_clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_norm_history",
    "clip_by_relative_rms",
    "clip_by_value",
    "clip_by_zscore",
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


STEPS = Clock(
    start=lambda: jnp.zeros((), jnp.int32),
    tick=lambda steps: jnp.minimum(steps, jnp.iinfo(jnp.int32).max - 1) + 1,
    read=lambda steps: steps,
)
"""The number of this step, from 1."""


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
    steps = STEPS._replace(read=lambda n: power((n - 1).astype(clock_dtype()), exponent))

    def update(signal, slots, step):
        return signal.with_update(within(signal.update, step.clock["steps"])), slots

    return Rule(update, clocks={"steps": steps})


def within(u: Values, most: Any) -> Values:
    """Elements of a size up to ``most``; complex ones keep their phase."""
    if not jnp.iscomplexobj(u):
        return jnp.clip(u, -most, most)
    return jnp.where(jnp.abs(u) <= most, u, sign_of(u) * most)


@stage(reach="element")
def clip_by_global_norm(max_norm: Positive):
    r"""Shrink the update so that its norm over all parameters is at most ``max_norm``.

    .. math::
        u \leftarrow u \cdot \min\left(1, \frac{c}{\lVert u \rVert}\right)

    The norm is the root of the sum of |u|² over all parameters.
    Before the first statistic, it clips the gradient. Every finite gradient is clipped, even if its
    squares would overflow. Non-finite elements remain visible: with a NaN, all elements become NaN;
    with an infinity, this element stays non-finite and all others become 0.

    In a group of parameters (:func:`adamx.where`, :func:`adamx.partition`), the norm is that of the
    group.

    Args:
        max_norm: c > 0.

    Source: Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063), Algorithm 1.

    >>> opt = adamx.clip_by_global_norm(1.0)
    >>> grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    >>> opt.update(grads, opt.init(grads))[0]
    {'a': Array([0.6], dtype=float32), 'b': Array([0.8], dtype=float32)}

    Each group has a norm of its own, and its own bound:

    >>> per_group = adamx.partition(
    ...     {"a": adamx.clip_by_global_norm(1.0), "*": adamx.clip_by_global_norm(2.0)}
    ... )
    >>> per_group.update(grads, per_group.init(grads))[0]
    {'a': Array([1.], dtype=float32), 'b': Array([2.], dtype=float32)}
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


@stage(reach="element")
def clip_by_value(max_value: Positive):
    r"""Limit the absolute value of every element of the update.

    .. math::
        u \leftarrow \operatorname{clip}(u, \pm c)

    Before the first statistic, it clips the gradient. For complex u, the modulus is clipped, and
    the phase is kept. NaNs stay NaN; an infinity becomes ±c, so :func:`clip_by_global_norm` is the
    one that keeps it visible.

    Args:
        max_value: c > 0; a schedule makes the bound grow or shrink.

    Equals optax.clip, which clips real numbers.

    Source: Mikolov 2012, Statistical Language Models Based on Neural Networks, Section 3.2.2.

    >>> opt = adamx.clip_by_value(lambda t: 2.0 - t)
    >>> state = opt.init(jnp.zeros(2))
    >>> for _ in range(2):
    ...     u, state = opt.update(jnp.array([0.5, -9.0]), state)
    ...     print(u)
    [ 0.5 -2. ]
    [ 0.5 -1. ]
    """
    return lambda signal: signal.with_update(within(signal.update, max_value))


@stage(reach="element")
def clip_by_zscore(
    decay: Decay = 0.97,
    threshold: Positive = 2.5,
    eps: NonNegative = 1e-6,
    *,
    max_norm: Positive = 1.0,
    warmup_steps: int = 25,
):
    r"""Shrink the update if its norm is an outlier among the norms of past steps (ZClip).

    .. math::
        n_t &= \lVert u_t \rVert, \qquad
        z_t = \mathbb 1[t > T] \frac{n_t - \mu_{t-1}}{\sigma_{t-1} + \epsilon}, \qquad
        e_t = \begin{cases} \mu_{t-1} + k^2 \sigma_{t-1} / z_t & z_t > k \\
        n_t & \text{otherwise} \end{cases} \\
        \mu_t &= \begin{cases} \alpha \mu_{t-1} + (1 - \alpha) e_t & t > T \\
        \frac 1t \sum_i n_i & \text{otherwise} \end{cases} \\
        v_t &= \begin{cases} \alpha v_{t-1} + (1 - \alpha) (e_t - \mu_t)^2 & t > T \\
        \frac 1t \sum_i n_i^2 - \mu_t^2 & \text{otherwise} \end{cases}, \qquad
        \sigma_t = \sqrt{v_t} \\
        u &\leftarrow u \cdot \min\left(1, \frac{\min(e_t, c)}{n_t}\right)

    The norm is over all parameters, or over those of a group, as in :func:`clip_by_global_norm`. A
    norm that is k standard deviations above the mean is reduced to μ + kσ, and one still larger to
    less. The mean and the standard deviation of the first T steps start the averages; during these
    steps, only c limits the norm. In the averages, a clipped norm counts as what it was reduced to.

    A step whose norm is not finite leaves the averages as they are, and its non-finite elements
    remain visible, as in :func:`clip_by_global_norm`. If no parameter has a gradient, nothing
    changes. The averages are kept as numbers of their dtype, not as squares, so that no finite norm
    overflows them.

    Keeps a clock of four numbers: the number of norms so far, at most T; μ, σ and the bound of this
    step.

    Args:
        decay: α in [0, 1), the decay rate of mean and variance.
        threshold: k > 0, the number of standard deviations above which a norm is an outlier.
        eps: ε ≥ 0, added to σ.
        max_norm: c > 0, an upper bound that holds in every step; ``math.inf`` for none.
        warmup_steps: T ≥ 2, the number of norms from which the first mean and variance are taken.

    Source: Kumar et al. 2025 (arXiv 2504.02507), Algorithm 1; bluorion-com/ZClip with its mode
    ``"zscore"`` and ``"adaptive_scaling"``, which divides by the norm plus 1e-6 and takes the norms
    of each array in the parameters' dtype.

    Raises:
        StageError: if ``warmup_steps`` is not a whole number above 1.

    >>> opt = adamx.clip_by_zscore(threshold=2.0, max_norm=10.0, warmup_steps=4)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (0.9, 1.1, 0.9, 1.1, 1.1, 5.0):  # μ = 1, σ = 0.1 after four steps
    ...     u, state = opt.update(jnp.array([g]), state)
    >>> u.round(3)
    Array([1.013], dtype=float32)
    """
    check_whole(2, warmup_steps=warmup_steps)

    def global_sum(signal, slots, step):
        return Squares.of(signal.update)

    def settle(kept, total):
        count, mu, sigma, _ = kept
        n = total.norm().value.astype(kept.dtype)
        begun = count >= warmup_steps
        # The warm-up: Welford's mean and variance, of n norms, as a root.
        later = count + 1
        change = n - mu
        first_mu = mu + change / later
        first_sigma = hypot(sigma * root(count / later), change * (root(count) / later))
        # z > k without a quotient, which overflows where σ is small.
        excess = threshold * (sigma + eps)
        is_outlier = begun & (change > excess)
        share = jnp.where(is_outlier, excess / jnp.where(is_outlier, change, 1), 1)  # k / z
        bound = jnp.where(is_outlier, mu + threshold * sigma * share, n)
        next_mu = decay * mu + (1 - decay) * bound
        next_sigma = hypot(sigma * decay**0.5, (bound - next_mu) * (1 - decay) ** 0.5)
        new = jnp.where(
            begun,
            jnp.stack([count, next_mu, next_sigma]),
            jnp.stack([later, first_mu, first_sigma]),
        )
        new = jnp.where(jnp.isfinite(n), new, kept[:3])
        return jnp.concatenate([new, at_most(max_norm, bound)[None]])

    history = Clock(
        start=lambda: jnp.zeros(4, clock_dtype()),
        tick=lambda kept: kept,
        read=lambda kept: kept[3],
        settle=settle,
    )

    def update(signal, slots, step):
        most = step.clock["history"]
        return signal.with_update(shrunk(signal.update, step.total.norm(), most)), slots

    return Rule(update, clocks={"history": history}, global_sum=global_sum)


def at_most(most: Any, x: Scalar) -> Scalar:
    """x, or ``most`` where x is larger."""
    return jnp.minimum(x, most)


def hypot(one: Scalar, other: Scalar) -> Scalar:
    """√(one² + other²), whose squares do not overflow; with derivative 0 at 0."""
    largest = jnp.maximum(jnp.abs(one), jnp.abs(other))
    return largest * root(divide(one, largest) ** 2 + divide(other, largest) ** 2)


@stage(reach="sums")
def clip_by_norm_history(
    decay: Decay = 0.98,
    ratio: Positive = 1.05,
    *,
    max_norm: Positive = 1.0,
    warmup_steps: int = 100,
):
    r"""Clip the update of each array relative to the norms of its past updates (AdaGC).

    .. math::
        h_t &= \begin{cases} \min(1, \lambda \gamma_{t-1} / \lVert u_t \rVert) & t > T \\
        \min(1, c / \lVert u_t \rVert) & \text{otherwise} \end{cases}, \qquad
        e_t = h_t \lVert u_t \rVert \\
        \gamma_t &= \begin{cases} \beta \gamma_{t-1} + (1 - \beta) e_t & t > T \\
        \min(\gamma_{t-1}, e_t) & \text{otherwise} \end{cases}, \qquad \gamma_1 = e_1 \\
        u &\leftarrow h_t u

    The norms are those of the array; only the one that c limits in the first T steps is over all
    parameters, or over those of a group. After these steps, which find the smallest norm of each
    array, arrays do not depend on each other.

    Norms that are zero or not finite do not enter γ: an array that has had no gradient so far (a
    layer behind weights of zero) is clipped from its second gradient on. Non-finite elements remain
    visible, as in :func:`clip_by_norm`. γ grows by at most (1 − β)(λ − 1) per step, a tenth of a
    per cent by default, so the smallest norm of the first T steps matters for a long time.

    Keeps ``gamma`` (γ), a real scalar for every parameter, and a clock of the steps.

    Args:
        decay: β in [0, 1), the decay rate of γ.
        ratio: λ > 0, the norm that passes, relative to γ.
        max_norm: c > 0, the norm over all parameters that passes in the first T steps;
            ``math.inf`` for no limit.
        warmup_steps: T ≥ 0; with 0, γ starts with the first norm, and no norm is over all
            parameters.

    Source: Wang et al. 2025 (arXiv 2502.11034), Algorithm 1; lishuai-97/AdaGC, which adds 1e-6 to
    norms and uses λ = 1.04 and β = 0.99.

    Raises:
        StageError: if ``warmup_steps`` is not a whole number.

    >>> opt = adamx.clip_by_norm_history(warmup_steps=2)
    >>> state = opt.init(jnp.zeros(2))
    >>> for g in ([0.3, 0.4], [0.6, 0.8], [3.0, 4.0]):  # of the norms 0.5, 1 and 5
    ...     u, state = opt.update(jnp.array(g), state)
    ...     print(u, state["clip_by_norm_history"]["gamma"])
    [0.3 0.4] 0.5
    [0.6 0.8] 0.5
    [0.315 0.42 ] 0.5005
    """
    check_whole(0, warmup_steps=warmup_steps)

    def start(param):
        return total(real_zeros(param))  # a scalar, where the parameter is

    def global_sum(signal, slots, step):
        return Squares.of(signal.update)

    def update(signal, slots, step):
        u, gamma = signal.update, slots["gamma"]
        own = norm(u)
        is_new, warms = gamma == 0, False
        length, most = own, jnp.where(is_new, own.value, ratio * gamma)
        if warmup_steps:
            warms = step.clock["steps"] <= warmup_steps
            every = step.total.norm()
            length = Norm(*(jnp.where(warms, a, b) for a, b in zip(every, own, strict=True)))
            most = jnp.where(warms, at_most(max_norm, every.value), most)
        clipped = shrunk(own.value, length, most)
        after = decay * gamma + (1 - decay) * clipped
        new = jnp.where(warms, jnp.minimum(gamma, clipped), after)
        new = jnp.where(is_new, clipped, new)
        counts = jnp.isfinite(clipped) & (clipped > 0)
        kept = {"gamma": jnp.where(counts, new, gamma)}
        return signal.with_update(shrunk(u, length, most)), kept

    # γ grows by less than a narrow format resolves.
    slots = {"gamma": Slot(start, holds="exact")}
    if not warmup_steps:
        return Rule(update, slots=slots)
    return Rule(update, slots=slots, clocks={"steps": STEPS}, global_sum=global_sum)


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
