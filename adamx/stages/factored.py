"""Second moments with fewer than one number per parameter: factored, or shared by blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    Domain,
    Hyper,
    NonNegative,
    Rule,
    Slot,
    abs_sq,
    clock_dtype,
    decaying_average,
    divide,
    real_zeros,
    root,
    stage,
    times,
)
from adamx.numerics.arithmetic import mean, summable_squares
from adamx.numerics.types import Array, Float
from adamx.stages.second_moment import divided_by_rms

__all__ = ["scale_by_block_rms", "scale_by_factored_rms", "scale_by_param_block_rms"]


Axes = tuple[int, ...]
Share = Annotated[Hyper, Domain("a number in [0, 1]", lambda x: (x >= 0) & (x <= 1))]


@stage
def scale_by_factored_rms(
    decay_rate: NonNegative = 0.8,
    eps: NonNegative = 1e-30,
    *,
    b2_cap: Share = 1.0,
    min_dim_size_to_factor: int = 128,
):
    r"""Divide the update by the gradient's RMS, kept as a row and a column (Adafactor).

    .. math::
        R_t &= \beta_t R_{t-1} + (1-\beta_t)\, \text{mean}_j (|g_t|^2 + \epsilon), \qquad
        C_t = \beta_t C_{t-1} + (1-\beta_t)\, \text{mean}_i (|g_t|^2 + \epsilon) \\
        \beta_t &= \min(1 - t^{-\rho}, \beta_\text{cap}), \qquad
        u \leftarrow u \Big/ \sqrt{\frac{R_t C_t}{\text{mean}_i(R_t)}}

    The product of R and C, divided by the mean of R, is the best rank-one approximation of the
    averaged squares in the generalised Kullback-Leibler divergence. An array is factored along its
    two longest axes; j is the longest one (the later one, if two are equally long). Every index of
    the other axes has its own factors. If the second longest axis is shorter than
    ``min_dim_size_to_factor``, and for vectors and scalars, the full average is kept,
    :math:`v_t = \beta_t v_{t-1} + (1-\beta_t)(|g_t|^2 + \epsilon)`, and
    :math:`u \leftarrow u/\sqrt{v_t}`.

    Since β = 0 in the first step, the averages do not contain their start at zero, and there is no
    bias to correct.

    Keeps ``nu``, real: shaped like the parameter or, if factored, a dict of ``row`` (R, without
    axis j) and ``column`` (C, without axis i).

    Args:
        decay_rate: ρ ≥ 0.
        eps: added to |g|². With 0, 0/0 is 0.
        b2_cap: the largest β, in [0, 1]. With 1 (the paper), the average changes less and less;
            Zhai et al. use 0.999.
        min_dim_size_to_factor: arrays whose second longest axis is shorter are not factored.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), Algorithms 1, 4 and 5; Zhai et al. 2022
    (arXiv 2106.04560) for the cap.

    >>> opt = adamx.scale_by_factored_rms(min_dim_size_to_factor=2)
    >>> grads = jnp.array([[1.0, -2.0], [2.0, -4.0]])
    >>> updates, state = opt.update(grads, opt.init(grads))
    >>> updates.round(4), state["scale_by_factored_rms"]["nu"]["row"]
    (Array([[ 1., -1.],
           [ 1., -1.]], dtype=float32), Array([ 2.5, 10. ], dtype=float32))
    """
    steps = Clock(
        start=lambda: jnp.zeros((), clock_dtype()),
        tick=lambda t: t + 1,
        read=lambda t: jnp.maximum(t**-decay_rate, 1 - b2_cap),  # 1 − βₜ
    )

    def axes(shape):
        return factored_axes(shape, min_dim_size_to_factor)

    def start(param):
        if (over := axes(param.shape)) is None:
            return real_zeros(param)
        return {"row": reduced_zeros(param, over[1]), "column": reduced_zeros(param, over[0])}

    def update(signal, slots, step):
        share, old = step.clock["steps"], slots["nu"]
        square = summable_squares(signal.gradient) + eps
        if (over := axes(square.shape)) is None:
            nu = old + share * (square - old)
            return signal.with_statistic(divide(signal.update, root(nu), eps)), {"nu": nu}
        i, j = over
        row = old["row"] + share * (square.mean(j) - old["row"])
        column = old["column"] + share * (square.mean(i) - old["column"])
        tall, wide = jnp.expand_dims(row, j), jnp.expand_dims(column, i)
        # Two divisions: the product of two squares may underflow.
        relative = divide(tall, tall.mean(i, keepdims=True), eps)
        u = divide(divide(signal.update, root(relative), eps), root(wide), eps)
        return signal.with_statistic(u), {"nu": {"row": row, "column": column}}

    return Rule(update, slots={"nu": Slot(start, holds="nonnegative")}, clocks={"steps": steps})


@stage(reach="sums")
def scale_by_block_rms(
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    blocks: str | Callable[[tuple[int, ...]], Sequence[int]] = "tensor",
):
    r"""Divide the update by the RMS of the gradient over a block of coordinates (Adam-mini).

    .. math::
        v_t = \beta_2 v_{t-1} + (1-\beta_2)\, \text{mean}_\text{block} |g_t|^2, \qquad
        u \leftarrow \frac{u}{\sqrt{v_t} + \epsilon \sqrt{w_t}}, \qquad
        w_t = 1 - \prod_i \beta_{2,i}

    This is :func:`scale_by_rms` with one v per block of an array. :func:`bias_correction` works in
    the same way. With blocks of one element, the two stages are equal.

    Keeps ``nu``, real, shaped like the parameter but with length 1 along the shared axes.

    Args:
        b2: β₂ in [0, 1).
        eps: added to :math:`\sqrt{\hat v}`.
        blocks: the elements that share one v. ``"tensor"``: all elements. ``"row"``: elements with
            the same index of the first axis (a token of an embedding; every element of a vector has
            its own v). ``"column"``: elements with the same index of the last axis (an output of a
            kernel ``[in, out]``). Or a function from the shape of an array to the axes along which
            v is shared: ``lambda shape: (0, 2)`` for the heads of a kernel
            ``[embedding, head, head_dim]``.

    Source: Zhang et al. 2024 (arXiv 2406.16793), Algorithm 1.

    >>> opt = adamx.chain(adamx.scale_by_block_rms(blocks="row"), adamx.bias_correction())
    >>> grads = jnp.array([[3.0, 3.0], [0.1, -0.1]])
    >>> opt.update(grads, opt.init(grads))[0].round(3)
    Array([[ 1.,  1.],
           [ 1., -1.]], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def start(param):
        return reduced_zeros(param, shared_axes(blocks, param.shape), keepdims=True)

    def update(signal, slots, step):
        square = mean(
            summable_squares(signal.gradient),
            shared_axes(blocks, signal.gradient.shape),
            keepdims=True,
        )
        nu = mean_square(slots["nu"], square)
        return divided_by_rms(signal, nu, mean_square.weight(step), eps), {"nu": nu}

    return Rule(update, slots={"nu": Slot(start, holds="nonnegative")}, clocks=mean_square.clocks)


@stage(reach="sums")
def scale_by_param_block_rms(min_scale: NonNegative = 1e-3):
    r"""Multiply the update of each array by the RMS of its parameters (Adafactor).

    .. math::
        u \leftarrow \max(\epsilon_2, \text{RMS}(\theta))\, u

    A later learning rate is then relative to the size of the parameters.

    Args:
        min_scale: ε₂ ≥ 0, a lower bound for the size, so that zero parameters can change.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), Section 8.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.scale_by_param_block_rms()
    >>> theta = jnp.array([2.0, -2.0])
    >>> opt.update(jnp.array([1.0, 0.5]), opt.init(theta), theta)[0]
    Array([2., 1.], dtype=float32)
    """

    def shape(signal):
        rms = root(mean(abs_sq(signal.param)))
        size = jnp.maximum(rms, min_scale)  # pyright: ignore[reportArgumentType]
        return signal.with_update(times(signal.update, size))

    return shape


def factored_axes(shape: tuple[int, ...], at_least: int) -> tuple[int, int] | None:
    """The second longest axis and the longest, if both are long enough."""
    *_, i, j = (None, None, *sorted(range(len(shape)), key=shape.__getitem__))
    return None if i is None or j is None or shape[i] < max(at_least, 1) else (i, j)


def shared_axes(blocks: str | Callable[..., Sequence[int]], shape: tuple[int, ...]) -> Axes:
    """The axes along which ``blocks`` share one number."""
    every = tuple(range(len(shape)))
    if callable(blocks):
        axes = tuple(blocks(shape))
        if not set(axes) <= {*every, *(axis - len(shape) for axis in every)}:
            raise ValueError(f"blocks gave the axes {axes} for an array of shape {shape}")
        return tuple(sorted({axis % len(shape) for axis in axes}))
    named = {"tensor": every, "row": every[1:], "column": every[:-1]}
    if not isinstance(blocks, str) or blocks not in named:
        raise ValueError(
            f"blocks must be {', '.join(map(repr, named))} or a function from a shape to the axes "
            f"that share one number, got {blocks!r}"
        )
    return named[blocks]


def reduced_zeros(
    param: Any, axes: int | Axes, *, keepdims: bool = False
) -> Float[Array, "*blocks"]:
    """Real zeros like the parameter's sum along these axes, and placed like that."""
    return jnp.sum(real_zeros(param), axes, keepdims=keepdims)
