"""Second moments from outside: estimates of the Hessian's diagonal."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamx.core import Decay, Positive, Rule, Slot, StageError, decaying_average, real_zeros, stage
from adamx.errors import described
from adamx.links.signal import SPACE
from adamx.numerics.arithmetic import at_least

__all__ = ["scale_by_hessian_diagonal"]


@stage(
    reach="element",
    takes=["hessian_diagonal"],
    may_take=["hessian_is_new"],
    takes_trees=["hessian_diagonal"],
)
def scale_by_hessian_diagonal(
    b2: Decay = 0.99, gamma: Positive = 0.05, eps: Positive = 1e-12, threshold: Positive = 1.0
):
    r"""Divide the update by an average of the Hessian's diagonal, and clip it (Sophia).

    .. math::
        h &\leftarrow \beta_2 h + (1-\beta_2) \hat h
        \quad \text{in steps with an estimate } \hat h \\
        u &\leftarrow \operatorname{clip}\left(\frac{u}{\max(\gamma h, \epsilon)}, \pm\rho\right)

    ``update`` takes the estimate as ``hessian_diagonal``, a tree like the parameters, or None in a
    step without a new one. Most steps use the estimate of an earlier one, as it costs as much as a
    gradient (:func:`gauss_newton_bartlett`) or two (:func:`hutchinson_diagonal`). Sophia is::

        opt = adamx.chain(
            adamx.scale_by_momentum(0.965),
            adamx.scale_by_hessian_diagonal(0.99),
            adamx.add_decayed_weights(0.1),
            adamx.scale_by_learning_rate(1e-4),
        )
        updates, state = opt.update(grads, state, params, hessian_diagonal=estimate)

    In a loop that is traced once (``lax.scan``), pass zeros in steps without an estimate, and
    ``hessian_is_new``, an array of a bool, beside them. Where h is not above ε/γ, as before the
    first estimate and where the curvature is negative, u is ±ρ. The update then no longer has the
    bias of an average, as its size does not depend on it.

    Keeps ``hessian`` (h), shaped like the parameter, real. If the estimate of a parameter is None,
    its h does not change.

    Args:
        b2: β₂ in [0, 1), the decay rate per estimate.
        gamma: γ > 0. The smaller it is, the more elements are clipped; the paper chooses it so that
            10 to 50 % are not.
        eps: ε > 0.
        threshold: ρ > 0, the largest size of an element.

    Source: Liu et al. 2023 (arXiv 2305.14342), Algorithm 3.

    Raises:
        StageError: from ``update`` without ``hessian_diagonal``, or with one that is no tree like
            the parameters; in a basis.

    >>> opt = adamx.scale_by_hessian_diagonal(b2=0.5, gamma=1.0)
    >>> state = opt.init(jnp.zeros(3))
    >>> grads, curvature = jnp.array([0.5, 0.5, -4.0]), jnp.array([2.0, -1.0, 2.0])
    >>> opt.update(grads, state, hessian_diagonal=curvature)[0]
    Array([ 0.5,  1. , -1. ], dtype=float32)
    """
    mean = decaying_average(b2)

    def own(path, shape, extra):
        is_new = extra.get("hessian_is_new")
        if is_new is not None and (jnp.shape(is_new) or jnp.result_type(is_new) != jnp.bool_):
            raise StageError(f"hessian_is_new must be one bool, got {described(is_new)}")
        return extra["hessian_diagonal"], is_new

    def update(signal, slots, step):
        if SPACE in signal.notes:
            raise StageError(
                "an estimate of the Hessian's diagonal belongs to the elements of the parameter, "
                "and not to those of a basis; put this stage outside of in_basis(…)"
            )
        (estimate, is_new), h, u = step.own, slots["hessian"], signal.update
        if estimate is not None:
            new = mean(h, estimate.real.astype(h.dtype))
            is_new = True if is_new is None else is_new
            h = jnp.where(is_new, new, h)
        least: Any = gamma * h
        ratio = u / at_least(eps, least)
        size = at_least(threshold, jnp.abs(ratio))  # of a complex number, the modulus is clipped
        return signal.of_any_size(ratio * (threshold / size)), {"hessian": h}

    return Rule(update, slots={"hessian": Slot(real_zeros, letter="h")}, own=own)
