"""Decaying averages and their total weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments.hyper import clock_dtype
from adamx.links.rule import Clock, Step
from adamx.numerics.arithmetic import expm1, log, two_sum
from adamx.numerics.formats import saturated
from adamx.numerics.named import named
from adamx.numerics.types import Array, Float, Scalar, Values

__all__ = ["DecayingAverage", "decay_clock", "decay_weight", "decaying_average", "moved_with_rest"]


def decay_clock(log_beta: Any) -> Clock:
    """A clock that keeps ℓ = Σ log βᵢ and reads as w = 1 − Πβᵢ = −expm1(ℓ), an average's weight.

    1 − βᵗ cancels for small t, and a plain sum of logarithms drifts for large t. The sum is
    therefore compensated: a pair (sum, rounding error) with about twice the precision.
    """
    return Clock(
        start=lambda: jnp.zeros(2, clock_dtype()),
        tick=lambda pair: accumulated(pair, log_beta),
        read=decay_weight,
    )


@named
def accumulated(pair: Float[Array, "pair=2"], number: Any) -> Float[Array, "pair=2"]:
    """A compensated sum, the pair (sum, rounding error), after a number is added."""
    total, lost = two_sum(pair[0], jnp.asarray(number, pair.dtype))
    return jnp.stack([total, pair[1] + lost])


@named
def decay_weight(pair: Float[Array, "pair=2"]) -> Scalar:
    """w = 1 − Πβᵢ = −expm1(ℓ), from the pair in which a decay clock keeps ℓ.

    It is NaN instead of 0: an average of weight 0 (β = 1, as 0.999 is in bfloat16) has no value,
    and its quotient with a norm of weight 0 must not look like a step.
    """
    weight = -expm1(pair[0] + pair[1])
    # NaN is a NumPy constant: jax_debug_nans would report one made by JAX, even if it is not used.
    return jax.lax.select(weight == 0, np.full(weight.shape, np.nan, weight.dtype), weight)


@named
def interpolated_weight(pair: Float[Array, "pair=2"], beta: Any, decay: Any) -> Scalar:
    """The weight of βa + (1−β)x, for an average a whose decay clock has counted this step."""
    return -expm1(pair[0] - log(decay) + pair[1] + log(beta))


@dataclasses.dataclass(frozen=True)
class DecayingAverage:
    """a ← βa + (1−β)x, started at zero, and its total weight w = 1 − Πβ.

    Call it with the old average and a new value; put :attr:`clocks` into the rule.
    """

    beta: Any
    name: str

    @property
    def clocks(self) -> dict[str, Clock]:
        return {self.name: decay_clock(log(self.beta))}

    def __call__(self, average: Values, value: Values) -> Values:
        return averaged(self.beta, average, value)

    def compensated(self, average: Values, lost: Values, value: Values) -> tuple[Values, Values]:
        """The new average and its rounding error, which the next step adds back.

        A few leading bits of the error suffice, so it may be kept in bfloat16.
        """
        return averaged_with_rest(self.beta, average, lost, value)

    def weight(self, step: Step) -> Scalar:
        """The total weight w in this step."""
        return step.clock[self.name]


@named
def averaged(beta: Any, average: Values, value: Values) -> Values:
    """βa + (1−β)x.

    It starts from the value with the larger weight: β and 1 − β, rounded separately, need not sum
    to 1, and starting from the other value would lose this one's last digits.
    """
    if isinstance(beta, float):
        if beta >= 0.5:
            return average + (1 - beta) * (value - average)
        return value + beta * (average - value)
    old = beta >= 0.5
    start, end = jnp.where(old, average, value), jnp.where(old, value, average)
    return start + jnp.where(old, 1 - beta, beta) * (end - start)


@named
def averaged_with_rest(
    beta: Any, average: Values, lost: Values, value: Values
) -> tuple[Values, Values]:
    """βa + (1−β)x and its rounding error; ``lost`` is that of the step before."""
    return moved_with_rest(1 - beta, average, lost, value)


def moved_with_rest(
    share: Any, average: Values, lost: Values, value: Values
) -> tuple[Values, Values]:
    """a + s(x − a) and its rounding error, for a share s = 1−β that may be far below 1."""
    owed = lost.astype(average.dtype)
    new, rest = two_sum(average, owed + share * ((value - average) - owed))
    return new, saturated(rest, lost.dtype).astype(lost.dtype)


def decaying_average(beta: Any, name: str = "log_decay") -> DecayingAverage:
    """The decaying average with this β; ``name`` is the name of its clock."""
    return DecayingAverage(beta, name)
