"""Estimates of the Hessian's diagonal, for :func:`adamx.scale_by_hessian_diagonal`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx.numerics.formats import statistics_dtype
from adamx.numerics.types import Array
from adamx.trees.steps import Params

__all__ = ["gauss_newton_bartlett", "hutchinson_diagonal"]


def hutchinson_diagonal(
    loss_fn: Callable[..., Array], params: Params, key: Array, *args: Any
) -> Params:
    r"""An unbiased estimate of the diagonal of the loss's Hessian (Hutchinson).

    .. math::
        \hat h = z \odot \nabla^2 L(\theta)\, z, \qquad z_i = \pm 1 \text{ at random}

    It costs about as much as two gradients. It is exact if the Hessian is diagonal, and may be
    negative.

    Args:
        loss_fn: ``(params, *args) -> loss``, a scalar.
        params: a tree of real arrays.
        key: a key of ``jax.random``, another one for each estimate.
        *args: passed to ``loss_fn``, such as the batch.

    Returns:
        A tree like the parameters.

    Source: Liu et al. 2023 (arXiv 2305.14342), Section 2.3, with signs in place of normal numbers,
    which have a larger variance; Hutchinson 1989.

    >>> loss = lambda x: jnp.sum(jnp.array([1.0, 2.0, 3.0]) * x**2)
    >>> adamx.hutchinson_diagonal(loss, jnp.ones(3), jax.random.key(0))
    Array([2., 4., 6.], dtype=float32)
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    signs = tree.unflatten(
        jax.random.rademacher(k, jnp.shape(x), jnp.result_type(x))
        for k, x in zip(keys, leaves, strict=True)
    )
    gradient = jax.grad(lambda p: loss_fn(p, *args))
    _, product = jax.jvp(gradient, (params,), (signs,))
    return jax.tree.map(jnp.multiply, signs, product)


def gauss_newton_bartlett(
    logits_fn: Callable[..., Array], params: Params, key: Array, *args: Any
) -> Params:
    r"""An unbiased estimate of the diagonal of the Gauss-Newton matrix of a cross-entropy.

    .. math::
        \hat h = B\, \nabla \hat L(\theta) \odot \nabla \hat L(\theta), \qquad
        \hat L(\theta) = \frac{1}{B} \sum_{b=1}^B -\log p_\theta(\hat y_b \mid x_b),
        \quad \hat y_b \sim p_\theta(\cdot \mid x_b)

    The labels are drawn from the model's own distribution. It costs one gradient, and is not
    negative. The loss must be the mean cross-entropy over B examples (for a language model, all
    tokens of the batch).

    Args:
        logits_fn: ``(params, *args) -> logits``, an array of shape [..., classes].
        params: a tree of real arrays.
        key: a key of ``jax.random``, another one for each estimate.
        *args: passed to ``logits_fn``, such as the inputs of the batch.

    Returns:
        A tree like the parameters, in float32 at least.

    Source: Liu et al. 2023 (arXiv 2305.14342), Section 2.3 and Algorithm 2.

    >>> logits = lambda w, x: x @ w
    >>> w, x = jnp.zeros((2, 3)), jnp.ones((5, 2))
    >>> adamx.gauss_newton_bartlett(logits, w, jax.random.key(0), x).shape
    (2, 3)
    """

    def sampled(p: Params) -> tuple[Array, int]:
        logits = logits_fn(p, *args)
        labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
        return -jnp.mean(chosen), math.prod(labels.shape)

    slope, examples = jax.grad(sampled, has_aux=True)(params)

    def scaled(g: Array) -> Array:
        wide = g.astype(statistics_dtype(g.dtype))
        return wide * wide * examples

    return jax.tree.map(scaled, slope)
