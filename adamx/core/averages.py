"""Decaying averages, and the weights that they have seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core.hyper import clock_dtype
from adamx.core.stage import Clock, Step
from adamx.numerics.arithmetic import expm1, log, two_sum
from adamx.numerics.formats import saturated
from adamx.numerics.types import Array, Float, Scalar, Values

__all__ = ["DecayingAverage", "decay_clock", "decay_weight", "decaying_average"]


def decay_clock(log_beta: Any) -> Clock:
    """Keeps ℓ = Σ log βᵢ and reads the weight w = 1 − Πβᵢ = −expm1(ℓ) of an average.

    1 − βᵗ cancels for small t, and a plain sum of logarithms drifts for large t. The sum is
    therefore compensated: kept as a pair (sum, what its roundings lost), exact to about twice the
    precision.
    """

    def tick(pair: Float[Array, "pair=2"]) -> Float[Array, "pair=2"]:
        total, lost = two_sum(pair[0], jnp.asarray(log_beta, pair.dtype))
        return jnp.stack([total, pair[1] + lost])

    return Clock(
        start=lambda: jnp.zeros(2, clock_dtype()),
        tick=tick,
        read=decay_weight,
    )


def decay_weight(pair: Float[Array, "pair=2"]) -> Scalar:
    """w = 1 − Πβᵢ = −expm1(ℓ) from the pair in which a decay clock keeps ℓ.

    NaN instead of 0: an average that has seen nothing (β = 1, as 0.999 is in bfloat16) has no
    value, and dividing it by a norm that has seen nothing must not look like a step.
    """
    weight = -expm1(pair[0] + pair[1])
    # A constant of NumPy: jax_debug_nans would stop at one that JAX makes, used or not.
    return jax.lax.select(weight == 0, np.full(weight.shape, np.nan, weight.dtype), weight)


@dataclasses.dataclass(frozen=True)
class DecayingAverage:
    """a ← βa + (1−β)x, started at zero, and the weight w = 1 − Πβ that it has seen.

    Call it with the old average and a new value; put :attr:`clocks` into the rule.
    """

    beta: Any
    name: str

    @property
    def clocks(self) -> dict[str, Clock]:
        return {self.name: decay_clock(log(self.beta))}

    def __call__(self, average: Values, value: Values) -> Values:
        # From the one with the larger weight towards the other: β and 1 − β rounded apart would
        # not sum to 1, and starting from the smaller would lose the larger's last digits.
        beta = self.beta
        if isinstance(beta, float):
            if beta >= 0.5:
                return average + (1 - beta) * (value - average)
            return value + beta * (average - value)
        old = beta >= 0.5
        start, end = jnp.where(old, average, value), jnp.where(old, value, average)
        return start + jnp.where(old, 1 - beta, beta) * (end - start)

    def compensated(self, average: Values, lost: Values, value: Values) -> tuple[Values, Values]:
        """The new average, and what its roundings have lost, carried along to the next step.

        Of what is lost, a few leading bits are enough: it may be kept in bfloat16.
        """
        owed = lost.astype(average.dtype)
        new, rest = two_sum(average, owed + (1 - self.beta) * ((value - average) - owed))
        return new, saturated(rest, lost.dtype).astype(lost.dtype)

    def weight(self, step: Step) -> Scalar:
        """w in this step."""
        return step.clock[self.name]


def decaying_average(beta: Any, name: str = "log_decay") -> DecayingAverage:
    """The decaying average with this β; ``name`` tells its clock from a second one's."""
    return DecayingAverage(beta, name)
