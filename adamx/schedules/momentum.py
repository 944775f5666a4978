"""Warm-ups of momentum: decay rates that grow, or shrink, in the first steps."""

from __future__ import annotations

from typing import Any, Literal, get_args

from adamx.arguments.hyper import Decay
from adamx.errors import as_given
from adamx.numerics.arithmetic import log
from adamx.schedules.value import Moment, ScheduleValue, length, number

__all__ = ["momentum_warmup"]

Path = Literal["linear", "half-life"]


def momentum_warmup(
    initial: Decay, final: Decay, steps: int, *, shape: Path = "linear"
) -> ScheduleValue:
    r"""A decay rate β that goes from one value to another, and stays there.

    .. math::
        \beta_t = (1 - s)\, \beta_0 + s\, \beta_T \qquad \text{or} \qquad
        \frac{1}{\log \beta_t} = \frac{1 - s}{\log \beta_0} + \frac{s}{\log \beta_T},
        \qquad s = \min\left( 1, \frac{t - 1}{T} \right)

    in step t = 1, 2, …, which is ``count + 1``: the first step has :math:`\beta_0`. An average with
    the decay rate β forgets half of its past in log ½ / log β steps, so with the shape
    ``"half-life"`` this number grows linearly. For decay rates near 1, a linear β would spend
    nearly all steps at short memories.

    Muon's warm-up in the NanoGPT speedruns is ``momentum_warmup(0.85, 0.95, 300)``. AdEMAMix warms
    up β₃ and α by arguments of its own (:func:`adamx.ademamix`), whose s is t/T.

    Args:
        initial: :math:`\beta_0` in [0, 1).
        final: :math:`\beta_T` in [0, 1); it may be below :math:`\beta_0`.
        steps: T > 0, the number of steps until β has its final value.
        shape: ``"linear"`` or ``"half-life"``.

    Source: Jordan et al. 2024, modded-nanogpt (linear); Pagliardini, Ablin & Grangier 2024
    (arXiv 2409.03137), Appendix A.1 (the half-life).

    Raises:
        TypeError: if ``steps`` is not a whole number, or a rate not a number.
        ValueError: for a rate outside [0, 1), fewer than one step, an unknown shape, or a half-life
            of a rate 0.

    >>> b1 = adamx.schedules.momentum_warmup(0.85, 0.95, 300)
    >>> [round(b1(count), 4) for count in (0, 150, 300, 1000)]
    [0.85, 0.9, 0.95, 0.95]
    >>> b1 = adamx.schedules.momentum_warmup(0.9, 0.999, 100, shape="half-life")
    >>> [round(b1(count), 4) for count in (0, 50, 100)]
    [0.9, 0.998, 0.999]
    """
    of = "momentum_warmup"
    if shape not in get_args(Path):
        shapes = " or ".join(map(repr, get_args(Path)))
        raise ValueError(f"{of}: shape must be {shapes}, got {as_given(shape)}")
    rates = number(of, Decay, initial=initial, final=final)
    if shape == "half-life" and (
        zero := [k for k, x in rates.items() if isinstance(x, float) and x == 0]
    ):
        raise ValueError(
            f"{of}: {zero[0]} is 0, which has no half-life to grow from; pass a small number, 0.1 "
            'say, or shape="linear"'
        )
    arguments = {**rates, "steps": length(of, "steps", steps, least=1), "shape": shape}
    return ScheduleValue(momentum_warmup, _warming, arguments)


def _warming(moment: Moment, *, initial: Any, final: Any, steps: int, shape: str) -> Any:
    xp = moment.xp
    s = moment.real(xp.clip(moment.count, 0, steps)) / steps
    if shape == "linear":
        return (1 - s) * initial + s * final
    # The logarithm of a Python number is taken in double precision: β is near 1.
    one, other = (log(x) if isinstance(x, float) else xp.log(x) for x in (initial, final))
    between = xp.exp(1 / ((1 - s) / one + s / other))
    between = xp.where(s == 0, initial, between)
    return xp.where(s == 1, final, between)
