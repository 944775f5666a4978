"""Weight decay."""

from __future__ import annotations

from adamx.core import NonNegative, is_off, stage

__all__ = ["add_decayed_weights"]


@stage(reach="element", place="direction")
def add_decayed_weights(weight_decay: NonNegative = 0.0):
    r"""Add a multiple of the parameter to the update: weight decay (AdamW), or L2 in front.

    .. math::
        u \leftarrow u + \lambda \theta

    Before the first statistic, this is L2 regularisation: the averages include the gradient of
    λ|θ|²/2. Between the last statistic and the learning rate, it is decoupled weight decay, as in
    AdamW.

    Args:
        weight_decay: λ ≥ 0; with the number 0 it does not need the parameters.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101), Algorithm 2.

    Raises:
        StageError: if ``update`` is called without parameters and λ is not the number 0.

    >>> opt = adamx.add_decayed_weights(0.5)
    >>> theta = jnp.array([2.0])
    >>> opt.update(jnp.array([1.0]), opt.init(theta), theta)[0]
    Array([2.], dtype=float32)
    """
    if is_off(weight_decay):
        return lambda signal: signal
    return lambda signal: signal.with_update(signal.update + weight_decay * signal.param)
