"""Schedule-free AdamW."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamx.core import Decay, Hyper, NonNegative, Transformation, chain, clock_dtype
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    scale_by_learning_rate,
    scale_by_rms,
    schedule_free,
)

__all__ = ["schedule_free_adamw"]


@recipe
def schedule_free_adamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    warmup_steps: NonNegative = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
) -> Transformation:
    r"""Schedule-free AdamW: an average of the iterates instead of momentum and a schedule.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad g_t = \nabla f(y_{t-1}) \\
        z_t &= z_{t-1} - \gamma_t \left( \frac{g_t}{\sqrt{\hat v_t} + \epsilon}
               + \lambda y_{t-1} \right), \qquad
        \gamma_t = \gamma \min(1, t / T_\text{warmup}) \\
        x_t &= (1 - c_t)\, x_{t-1} + c_t z_t, \qquad
        c_t = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^p \\
        y_t &= (1-\beta_1) z_t + \beta_1 x_t, \qquad z_0 = \theta_0, \qquad x_0 = \theta_0

    The parameters are y, and start at θ₀. For evaluation and as the result of the training, use x =
    ``eval_params(state, params)``. The state contains only z and v, as much as Adam's
    state.

    Args:
        learning_rate: γ ≥ 0; a schedule need not decay. The authors' default is 0.0025.
        b1: β₁ in [0, 1), how far from z towards x gradients are taken; > 0 to get at x.
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0, decoupled, at y.
        warmup_steps: the length of a linear warm-up, 0 for none.
        r: r ≥ 0, the power of t in the weights of the average.
        weight_lr_power: p ≥ 0, the power of the largest γ so far in these weights.

    Equals schedulefree.AdamWScheduleFree in train mode; its parameters in eval mode are x here.
    Algorithm 1 of the paper multiplies γ by √(1−β₂ᵗ) instead of correcting v. This changes the
    effect of ε and, through γ, the weights of the average. The package and this recipe correct v.
    optax.contrib.schedule_free_adamw warms up from 0 over one more step, and has no r.

    Source: Defazio et al. 2024 (arXiv 2405.15682), Algorithm 1; facebookresearch/schedule_free.

    >>> opt = adamx.schedule_free_adamw(0.5)
    >>> y = jnp.array([1.0, 1.0])
    >>> state = opt.init(y)
    >>> updates, state = opt.update(jnp.array([0.1, -10.0]), state, y)
    >>> y = adamx.apply_updates(y, updates)
    >>> adamx.eval_params(state, y)[1]
    Array(1.5, dtype=float32)
    """
    rate = warmed_up(learning_rate, warmup_steps)
    return chain(
        scale_by_rms(b2, eps),
        bias_correction(),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
        schedule_free(b1=b1, r=r, weight_lr_power=weight_lr_power),  # Adam: momentum, before
    )


def warmed_up(learning_rate: Any, steps: Any) -> Hyper:
    """The learning rate with a linear warm-up; its hyperparameters remain leaves."""
    if isinstance(steps, (int, float)) and steps == 0:
        return learning_rate
    if callable(learning_rate) or callable(steps):
        rate = learning_rate if callable(learning_rate) else lambda t: learning_rate
        length = steps if callable(steps) else lambda t: steps
        return lambda t: ramp(rate(t), length(t), t)
    return jax.tree_util.Partial(ramp, 1.0 * learning_rate, 1.0 * steps)


def ramp(learning_rate: Any, steps: Any, t: Any) -> Any:
    """α · min(1, (t + 1)/T) at the count t of past updates."""
    t = jnp.asarray(t, clock_dtype())
    return learning_rate * jnp.minimum(1, (t + 1) / jnp.maximum(steps, 1))
