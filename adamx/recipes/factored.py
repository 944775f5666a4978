"""Adam with a small second moment: Adafactor and Adam-mini."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx.core import Decay, NonNegative, Positive, Transformation, chain, clock_dtype
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    clip_by_block_rms,
    scale_by_block_rms,
    scale_by_factored_rms,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_param_block_rms,
)
from adamx.stages.factored import Share

__all__ = ["adafactor", "adam_mini"]


def relative_step(t: Any) -> Any:
    """ρₜ = min(0.01, 1/√t); the argument is the count t − 1 of past updates."""
    return jnp.minimum(1e-2, jax.lax.rsqrt(jnp.asarray(t + 1, clock_dtype())))


@recipe
def adafactor(
    learning_rate: NonNegative = relative_step,
    decay_rate: NonNegative = 0.8,
    eps: NonNegative = 1e-30,
    *,
    b1: Decay | None = None,
    b2_cap: Share = 1.0,
    clipping_threshold: Positive | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    min_scale: NonNegative = 1e-3,
    min_dim_size_to_factor: int = 128,
) -> Transformation:
    r"""Adafactor: factored second moments of matrices, and relative steps.

    .. math::
        \beta_t &= 1 - t^{-0.8}, \qquad
        R_t = \beta_t R_{t-1} + (1-\beta_t)\, \text{mean}_j (|g_t|^2 + \epsilon), \qquad
        C_t = \beta_t C_{t-1} + (1-\beta_t)\, \text{mean}_i (|g_t|^2 + \epsilon) \\
        u_t &= g_t \Big/ \sqrt{R_t C_t / \text{mean}_i(R_t)}, \qquad
        \hat u_t = u_t / \max(1, \text{RMS}(u_t) / d) \\
        \theta_t &= \theta_{t-1} - \rho_t \max(\epsilon_2, \text{RMS}(\theta_{t-1}))\, \hat u_t,
        \qquad \rho_t = \min(10^{-2}, 1/\sqrt t)

    :func:`scale_by_factored_rms` describes which arrays are factored, along which axes.

    Args:
        learning_rate: ρ ≥ 0, by default the paper's schedule.
        decay_rate: the exponent 0.8.
        eps: ε ≥ 0, added to |g|² (the paper's ε₁).
        b1: β₁ in [0, 1) of an uncorrected average of the steps; None, the paper's default, for no
            average. The average needs as much memory as factoring saves.
        b2_cap: the largest β, in [0, 1].
        clipping_threshold: d > 0; None for no clipping.
        multiply_by_parameter_scale: multiply steps by the size of the parameters.
        min_scale: ε₂ ≥ 0, a lower bound for this size.
        min_dim_size_to_factor: arrays with fewer than two axes of this length are not factored
            (1 factors every matrix, as the paper does).

    Equals optax.adafactor; its ``learning_rate=None`` corresponds to 1 here. Optax computes β in
    float32, in which 1 − β becomes 0 for large t. The paper has no weight decay. Optax's weight
    decay does not include ρ: ``chain(adafactor(), optax.add_decayed_weights(-λ))``.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), Algorithms 4-6; Zhai et al. 2022 (arXiv
    2106.04560) for ``b2_cap=0.999, b1=0.9``.

    >>> opt = adamx.adafactor(min_dim_size_to_factor=2)
    >>> theta = jnp.array([[2.0, -2.0], [-2.0, 2.0]])
    >>> grads = jnp.array([[0.1, -0.2], [10.0, -20.0]])
    >>> opt.update(grads, opt.init(theta), theta)[0]
    Array([[-0.02,  0.02],
           [-0.02,  0.02]], dtype=float32)
    """
    clip = chain() if clipping_threshold is None else clip_by_block_rms(clipping_threshold)
    relative = scale_by_param_block_rms(min_scale) if multiply_by_parameter_scale else chain()
    return chain(
        scale_by_factored_rms(  # Adam: momentum before, and a full v
            decay_rate, eps, b2_cap=b2_cap, min_dim_size_to_factor=min_dim_size_to_factor
        ),
        clip,
        relative,
        scale_by_learning_rate(learning_rate),
        chain() if b1 is None else scale_by_momentum(b1),
    )


@recipe
def adam_mini(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    blocks: str | Callable[[tuple[int, ...]], Sequence[int]] = "tensor",
) -> Transformation:
    r"""Adam-mini: Adam with one second moment per block of coordinates.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2)\, \text{mean}_\text{block} |g_t|^2 \\
        \theta_t &= \theta_{t-1} - \alpha \left( \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
        + \lambda \theta_{t-1} \right)

    The blocks should correspond to the blocks of the Hessian. For a Transformer, the paper uses one
    block per token for embedding and output, one per head for queries and keys, one per output
    neuron for values, projections and MLPs, and one per array for all others (the authors' package:
    one per element for biases). A chain has one rule of blocks for all its parameters, which may
    depend on their shape. To choose blocks by name, give each group its own chain::

        by_head = lambda shape: (0, 2)  # kernels [embedding, head, head_dim]
        adamx.partition({
            ("query", "key"): adamx.adam_mini(1e-3, blocks=by_head),
            "kernel": adamx.adam_mini(1e-3, blocks="column"),  # [in, out]
            "embedding": adamx.adam_mini(1e-3, blocks="row"),
            "*": adamx.adam_mini(1e-3),
        })

    Args:
        learning_rate: α ≥ 0; the authors' default is 1e-3.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0, decoupled.
        blocks: the elements that share one v: ``"tensor"``, ``"row"``, ``"column"``, or a function
            from a shape to the shared axes; see :func:`scale_by_block_rms`.

    Equals the authors' adam-mini for corresponding blocks. Kernels of torch.nn.Linear are
    ``[out, in]``, so a neuron is a row. The package groups heads by reshaping; here, such a kernel
    needs an axis for the heads. The package does not decay weights whose names contain "norm", "ln"
    or "bias".

    Source: Zhang et al. 2024 (arXiv 2406.16793), Algorithm 1.

    >>> opt = adamx.adam_mini(0.1)
    >>> grads = jnp.array([1.0, -7.0])  # of root mean square 5
    >>> updates, state = opt.update(grads, opt.init(grads), grads)
    >>> updates.round(2)
    Array([-0.02,  0.14], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_block_rms(b2, eps, blocks=blocks),  # Adam: scale_by_rms
        bias_correction(),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
