"""Weight decay."""

from __future__ import annotations

import jax.numpy as jnp

from adamx.core import NonNegative, Positive, Same, is_off, stage

__all__ = ["add_corrected_weight_decay", "add_decayed_weights", "decay_weights"]


@stage(reach="element", place="direction")
def add_decayed_weights(weight_decay: NonNegative = 0.0, *, cautious: bool = False):
    r"""Add a multiple of the parameter to the update: weight decay (AdamW), or L2 in front.

    .. math::
        u \leftarrow u + \lambda \theta

    Before the first statistic, this is L2 regularisation: the averages include the gradient of
    λ|θ|²/2. Between the last statistic and the learning rate, it is decoupled weight decay, as in
    AdamW.

    With ``cautious``, only where the step makes the parameter smaller anyway, :math:`u \theta > 0`:
    the decay does not oppose the step (cautious weight decay). For complex numbers, it is the real
    part of :math:`u \bar\theta`.

    Args:
        weight_decay: λ ≥ 0; with the number 0 it does not need the parameters.
        cautious: decay only where the step makes the parameter smaller.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101), Algorithm 2; Chen et al. 2025 (arXiv
    2510.12402, cautious weight decay).

    Raises:
        StageError: if ``update`` is called without parameters and λ is not the number 0.

    >>> opt = adamx.add_decayed_weights(0.5)
    >>> theta = jnp.array([2.0])
    >>> opt.update(jnp.array([1.0]), opt.init(theta), theta)[0]
    Array([2.], dtype=float32)
    """
    if is_off(weight_decay):
        return lambda signal: signal
    if not cautious:
        return lambda signal: signal.with_update(signal.update + weight_decay * signal.param)

    def shape(signal):
        u, theta = signal.update, signal.param
        agrees = (u * jnp.conj(theta)).real > 0
        return signal.with_update(u + jnp.where(agrees, weight_decay * theta, 0))

    return shape


@stage(reach="element", place="direction")
def add_corrected_weight_decay(
    weight_decay: NonNegative,
    max_learning_rate: Positive,
    *,
    learning_rate: NonNegative = Same("scale_by_learning_rate", "learning_rate"),
):
    r"""Add weight decay that falls with the learning rate (AdamC).

    .. math::
        u \leftarrow u + \lambda \frac{\alpha_t}{\alpha_{\max}} \theta

    In front of the learning rate, the decay in a step is :math:`\lambda\alpha_t^2/\alpha_{\max}`.
    For a layer whose output is normalised, the norm of the gradient then stays constant while the
    rate falls. With a constant rate, it is :func:`add_decayed_weights`.

    Args:
        weight_decay: λ ≥ 0; with the number 0 it does not need the parameters.
        max_learning_rate: the largest value of the schedule, :math:`\alpha_{\max}` > 0.
        learning_rate: α; by default, that of the chain.

    Source: Defazio 2025 (arXiv 2506.02285), the correction of AdamC.

    Raises:
        StageError: if ``update`` is called without parameters and λ is not the number 0.

    >>> opt = adamx.chain(
    ...     adamx.add_corrected_weight_decay(0.5, max_learning_rate=1.0),
    ...     adamx.scale_by_learning_rate(lambda t: 1.0 / (t + 2)),
    ... )
    >>> theta = jnp.array([8.0])
    >>> opt.update(jnp.zeros(1), opt.init(theta), theta)[0]  # −0.5 · 0.5² · 8
    Array([-1.], dtype=float32)
    """
    if is_off(weight_decay):
        return lambda signal: signal

    def shape(signal):
        by = weight_decay * (learning_rate / max_learning_rate)
        return signal.with_update(signal.update + by * signal.param)

    return shape


@stage(reach="element", place="step")
def decay_weights(weight_decay: NonNegative):
    r"""Multiply the parameter by 1 − λ in every step, independent of the learning rate.

    .. math::
        u \leftarrow u - \lambda \theta

    It stands behind the learning rate. :func:`add_decayed_weights` stands in front of it, so that
    its decay is λ times the learning rate.

    Args:
        weight_decay: λ ≥ 0, the share by which a parameter shrinks in one step; with the number 0
            it does not need the parameters.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101), Section 3: weight decay that is decoupled
    from the learning rate, with a schedule multiplier of 1.

    Raises:
        StageError: if ``update`` is called without parameters and λ is not the number 0.

    >>> opt = adamx.chain(adamx.sgd(0.1), adamx.decay_weights(0.01))
    >>> theta = jnp.array([2.0])
    >>> opt.update(jnp.array([1.0]), opt.init(theta), theta)[0]
    Array([-0.12], dtype=float32)
    """
    if is_off(weight_decay):
        return lambda signal: signal
    return lambda signal: signal.with_update(signal.update - weight_decay * signal.param)
