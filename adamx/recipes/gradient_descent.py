"""Stochastic gradient descent, with and without momentum."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import scale_by_heavy_ball, scale_by_learning_rate

__all__ = ["sgd"]


@recipe
def sgd(
    learning_rate: NonNegative, momentum: Decay | None = None, nesterov: bool = False
) -> Transformation:
    r"""Stochastic gradient descent.

    .. math::
        b_t = \mu b_{t-1} + g_t, \qquad \theta_t = \theta_{t-1} - \alpha b_t

    With Nesterov's form, :math:`\theta_t = \theta_{t-1} - \alpha (g_t + \mu b_t)`.

    Args:
        learning_rate: α ≥ 0.
        momentum: μ in [0, 1); None for gradient descent without momentum, which has no state.
        nesterov: use Nesterov momentum in the form of Sutskever et al. 2013.

    Equals torch.optim.SGD (dampening 0) and optax.sgd. The velocity does not contain the learning
    rate. (In Sutskever et al. it does, which makes a difference only for a scheduled rate.)

    Source: Robbins & Monro 1951; Polyak 1964; Sutskever et al. 2013.

    Raises:
        ValueError: for ``nesterov`` without a momentum.

    >>> opt = adamx.sgd(0.1, momentum=0.9)
    >>> opt.update(jnp.array([1.0]), opt.init(jnp.zeros(1)))[0]
    Array([-0.1], dtype=float32)
    """
    if momentum is None:
        if nesterov:
            raise ValueError("sgd: nesterov=True needs a momentum; for example, pass momentum=0.9")
        return scale_by_learning_rate(learning_rate)
    return chain(
        scale_by_heavy_ball(momentum, nesterov),
        scale_by_learning_rate(learning_rate),
    )
