"""A step to where the decayed parameter will be."""

from __future__ import annotations

from adamx.core import NonNegative, stage, symbols, times
from adamx.core.equations import in_symbols

__all__ = ["proximal_step"]


@stage
def proximal_step(learning_rate: NonNegative, weight_decay: NonNegative = 0.0):
    r"""Turn a direction into a step downhill, and decay the parameter that it leads to.

    .. math::
        u \leftarrow -\alpha \frac{u + \lambda \theta}{1 + \alpha \lambda}, \qquad
        \text{so that} \quad \theta + u = \frac{\theta - \alpha u}{1 + \alpha \lambda}

    The proximal step of :math:`\lambda \lVert \theta \rVert^2 / 2`. Stands where otherwise
    :func:`add_decayed_weights` and :func:`scale_by_learning_rate` stand, which is the same to
    first order in αλ; but however large αλ, the parameter never changes its sign by decaying.

    Args:
        learning_rate: α ≥ 0.
        weight_decay: λ ≥ 0; with the number 0 it does not need the parameters.

    Source: Xie et al. 2022 (arXiv 2208.06677), Algorithm 1 (Adan); Zhuang et al. 2022 (arXiv
    2202.00089).

    Raises:
        StageError: if ``update`` is called without parameters and λ is not the number 0.

    >>> opt = adamx.proximal_step(0.5, weight_decay=2.0)
    >>> theta = jnp.array([4.0])
    >>> theta + opt.update(jnp.array([1.0]), opt.init(theta), theta)[0]  # (4 − 0.5) / 2
    Array([1.75], dtype=float32)
    """

    def shape(signal):
        if isinstance(weight_decay, float) and weight_decay == 0:
            return signal.with_statistic(times(signal.update, -learning_rate))
        shrunk = 1 + learning_rate * weight_decay
        u = signal.update + weight_decay * signal.param
        return signal.with_statistic(times(u, -learning_rate / shrunk))

    return shape


@in_symbols(proximal_step)
def _(signal, learning_rate, weight_decay):
    if weight_decay == symbols.ZERO:
        return signal.with_statistic(-learning_rate * signal.update)
    moved = signal.param - learning_rate * signal.update
    return signal.with_statistic(moved / (1 + learning_rate * weight_decay) - signal.param)
