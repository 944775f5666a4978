"""RAdam's rectification: use a second moment only after it has averaged enough gradients."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    Domain,
    Hyper,
    Rule,
    Same,
    StageError,
    clock_dtype,
    decay_weight,
    root,
    stage,
)
from adamx.numerics.arithmetic import log, two_sum
from adamx.numerics.types import Array, Bool, Float, Scalar

__all__ = ["rectify"]


Length = Annotated[Hyper, Domain("a length ≥ 4", lambda x: x >= 4)]
DIVIDING = "scale_by_rms or scale_by_belief"


def rectification_clock(b2: Any, threshold: Any) -> Clock:
    r"""Reads (r, whether ρ exceeds the threshold) of RAdam.

    The paper approximates the decaying average by a simple average of ρ gradients with the same
    mean age. If the newest gradient is 1 step old, the mean age is (ρ + 1)/2. Let S be the sum of
    the ages multiplied by their weights. Then ρ = 2 S/w − 1. For a constant β, this equals the
    paper's ρ∞ − 2tβᵗ/(1−βᵗ). Unlike that formula, it holds for any schedule of β, and it does not
    subtract two numbers of the size of ρ∞ if ρ is about 5. S ← S + (w − (1−β)S) is a compensated
    sum, like the sum of logarithms: the clock is [Σ log β, its error, S, its error].
    """

    def tick(value: Float[Array, "kept=4"]) -> Float[Array, "kept=4"]:
        total, rest = two_sum(value[0], jnp.asarray(log(b2), value.dtype))
        lost = value[1] + rest
        weight = decay_weight(jnp.stack([total, lost]))
        owed = value[3] + (weight - (1 - b2) * (value[2] + value[3]))
        ages, rest = two_sum(value[2], owed)
        return jnp.stack([total, lost, ages, rest])

    def read(value: Float[Array, "kept=4"]) -> tuple[Scalar, Bool[Array, ""]]:
        longest = jnp.asarray(2 / (1 - b2) - 1, value.dtype)
        rho = jnp.minimum(2 * (value[2] + value[3]) / decay_weight(value[:2]) - 1, longest)
        reliable = rho > threshold
        rho, longest = (jnp.where(reliable, x, 5) for x in (rho, longest))  # no NaN behind where
        spread = ((rho - 4) * (rho - 2) / rho) / ((longest - 4) * (longest - 2) / longest)
        return root(spread), reliable

    return Clock(start=lambda: jnp.zeros(4, clock_dtype()), tick=tick, read=read)


@stage(reach="element", place="direction")
def rectify(threshold: Length = 5.0, *, b2: Decay = Same("scale_by_rms", "b2")):
    r"""Rectify the division by a second moment, and undo it in the first steps (RAdam).

    .. math::
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
        {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    .. math::
        u \leftarrow \begin{cases} r_t\, u & \rho_t > 5 \\
        \text{the update before the division} & \text{otherwise} \end{cases}

    Use it directly after the stage that divides: :func:`scale_by_rms`, or another stage whose decay
    rate you pass as ``b2``: ``rectify(b2=Same("scale_by_belief", "b2"))``. ρ is the length of a
    simple average whose gradients have the same mean age (ρ + 1)/2 as the gradients in v. It is
    computed from this mean age, for any schedule of β₂. For ρ ≤ 5, the variance of 1/√v is
    unbounded or very large, and the update is not divided. (If β₂ ≤ 2/3, then ρ∞ ≤ 5, and the
    update is never divided.)

    Args:
        threshold: the value that ρ must exceed, ≥ 4. The variance is infinite up to ρ = 4, the
            paper's choice; the authors' code and torch use 5.
        b2: β₂ in [0, 1), the decay rate of v.

    Source: Liu et al. 2020 (arXiv 1908.03265), Algorithm 2.

    Raises:
        StageError: if no earlier stage divides by a second moment, or if a
            :func:`bias_correction` is between the two stages.

    >>> rms = adamx.scale_by_rms(eps=0.0, eps_hat=1e-8)
    >>> opt = adamx.chain(rms, adamx.rectify(), adamx.bias_correction())
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (4.0, 4.0, 4.0, 4.0, 4.0, 4.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u)
    [4.]
    [4.]
    [4.]
    [4.]
    [4.]
    [0.0258]
    """

    def update(signal, slots, step):
        r, reliable = step.clock["length"]
        undivided, before = signal.note("undivided", by=DIVIDING)
        if signal.bias is None:
            raise StageError(
                "the bias of the division has been corrected already; put bias_correction() "
                "behind this stage"
            )
        u = jnp.where(reliable, r * signal.update, undivided)
        bias = jnp.where(reliable, signal.bias, 1 if before is None else before)
        return dataclasses.replace(signal, update=u, bias=bias), slots

    return Rule(update, clocks={"length": rectification_clock(b2, threshold)})
