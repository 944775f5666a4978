"""Learning rates in phases: warm-up, a constant rate or a power law, cool-down."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from adamx.arguments.hyper import NonNegative, Positive, Real
from adamx.schedules.value import Moment, ScheduleValue, length, number

__all__ = ["constant", "inverse_sqrt", "power_law", "warmup_stable_decay"]

Shape = Literal["linear", "cosine", "1-sqrt"]


def constant(value: Real) -> ScheduleValue:
    r"""The same value in all steps.

    .. math::
        \eta_t = c

    A number in place of a schedule does the same. This is a part for
    :func:`~adamx.schedules.join`, and a schedule that :meth:`~ScheduleValue.plot` draws.

    Args:
        value: c.

    Source: equals optax.constant_schedule.

    Raises:
        TypeError: if ``value`` is not a real number or an array.
        ValueError: if it is not finite.

    >>> adamx.schedules.constant(0.1)(5)
    0.1
    """
    return ScheduleValue(constant, _value, number("constant", Real, value=value))


def _value(moment: Moment, value: Any) -> Any:
    return value


def warmup_stable_decay(
    peak: NonNegative,
    total_steps: int,
    warmup_steps: int | float = 0.05,
    decay_steps: int | float = 0.2,
    *,
    shape: Shape | float = "1-sqrt",
    initial: NonNegative = 0.0,
    final: NonNegative = 0.0,
) -> ScheduleValue:
    r"""A linear warm-up, a constant rate, and a cool-down at the end (WSD, trapezoidal).

    .. math::
        \eta_t = \begin{cases}
        \eta_0 + (\eta_{\max} - \eta_0)\, t / W & t \le W \\
        \eta_{\max} & W < t \le T - D + 1 \\
        \eta_T + (\eta_{\max} - \eta_T)\, f(x_t), \quad x_t = (t - 1 - (T - D)) / D
        & T - D + 1 < t \le T
        \end{cases}

    in step t = 1, 2, …, which is ``count + 1``, with one of the shapes

    .. math::
        f(x) = 1 - x, \qquad f(x) = \tfrac12 (1 + \cos \pi x), \qquad f(x) = 1 - \sqrt x,
        \qquad f(x) = (1 - x)^p

    No step is lost: the first step has the rate :math:`\eta_{\max}/W` and the last one f(1 − 1/D),
    so neither is 0. After T steps, the value stays at :math:`\eta_T`. Optax's warm-ups and those of
    Hugging Face have the rate :math:`\eta_0` in the first step, and reach the peak one step later.
    To begin like them, join a step in front: ``join([initial, schedule], [1])``.

    The stable phase does not depend on T. A checkpoint of it can be trained further with a larger
    ``total_steps``, or cooled down at several ends.

    Args:
        peak: :math:`\eta_{\max}` ≥ 0, the rate of the stable phase.
        total_steps: T, the number of steps of the training.
        warmup_steps: W, a number of steps, or a float below 1, a fraction of T.
        decay_steps: D, a number of steps, or a float below 1, a fraction of T. Hägele et al. use
            0.2, Hu et al. 0.1. With 0 there is no cool-down, and ``final`` has no effect.
        shape: the shape f: ``"linear"``, ``"cosine"``, ``"1-sqrt"``, or a number p > 0 for
            (1 − x)ᵖ. Hägele et al. get the lowest losses from 1 − √x.
        initial: :math:`\eta_0` ≥ 0, the rate from which the warm-up starts, one step before the
            first.
        final: :math:`\eta_T` ≥ 0, the rate after the last step.

    Source: Hu et al. 2024 (arXiv 2404.06395), Section 4 (WSD); Hägele et al. 2024
    (arXiv 2405.18392), Section 3 (1 − √x); Li et al. 2026 (arXiv 2602.06797) (the power).

    Raises:
        TypeError: if a length is neither a whole number nor a fraction, or a rate not a number.
        ValueError: for a number outside its range, an unknown shape, or a warm-up and a cool-down
            that together are longer than T.

    >>> rate = adamx.schedules.warmup_stable_decay(1.0, 10, 2, 4, shape="linear")
    >>> [rate(count) for count in range(12)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    >>> opt = adamx.adamw(adamx.schedules.warmup_stable_decay(1e-3, total_steps=1000))
    """
    of = "warmup_stable_decay"
    total = length(of, "total_steps", total_steps, least=1)
    known = _cooled(of, total, warmup_steps, 0, decay_steps, shape)
    rates = number(of, NonNegative, peak=peak, initial=initial, final=final)
    arguments = {
        "peak": rates["peak"],
        "total_steps": total,
        "warmup_steps": known["warmup_steps"],
        "decay_steps": known["decay_steps"],
        "shape": known["shape"],
        "initial": rates["initial"],
        "final": rates["final"],
    }
    return ScheduleValue(warmup_stable_decay, _phases, arguments)


def power_law(
    peak: NonNegative,
    warmup_steps: int | float,
    *,
    exponent: NonNegative = 0.5,
    stable_steps: int | float = 0,
    timescale: Positive | None = None,
    total_steps: int | None = None,
    decay_steps: int | float = 0,
    shape: Shape | float = "linear",
    initial: NonNegative = 0.0,
    final: NonNegative = 0.0,
) -> ScheduleValue:
    r"""A linear warm-up, a constant rate, and a decay by a power of the step (Power scheduler).

    .. math::
        \eta_t = \begin{cases}
        \eta_0 + (\eta_{\max} - \eta_0)\, t / W & t \le W \\
        \eta_{\max} & W < t \le S \\
        \eta_{\max} \left( \frac{\tau}{\tau + t - S} \right)^p & t > S
        \end{cases}, \qquad S = W + \text{stable steps}

    in step t = 1, 2, …, which is ``count + 1``. By default τ = S, so that the rate is
    :math:`\eta_{\max} (S/t)^p`. No step needs to know when the training ends. With ``total_steps``
    and ``decay_steps``, the rate is multiplied by the cool-down f of
    :func:`~adamx.schedules.warmup_stable_decay` at the end.

    The Power scheduler is :math:`\min(\eta_{\max}, \beta a n^b)` of n tokens, in batches of β
    sequences, with b = −0.51: so p = 0.51, and S is the step at which
    :math:`n = (\eta_{\max} / (\beta a))^{1/b}` tokens have been seen.

    Args:
        peak: :math:`\eta_{\max}` ≥ 0.
        warmup_steps: W, a number of steps, or a float below 1, a fraction of ``total_steps``.
        exponent: p ≥ 0.
        stable_steps: the number of steps at the peak after the warm-up, or a fraction.
        timescale: τ > 0, in steps; None for S, the end of the stable phase.
        total_steps: the number of steps of the training, if it is known.
        decay_steps: the steps of the cool-down at its end, or a fraction; 0 for none.
        shape: the shape of the cool-down.
        initial: :math:`\eta_0` ≥ 0, the rate from which the warm-up starts.
        final: the rate after the cool-down.

    Source: Shen et al. 2024 (arXiv 2408.13359), Section 4 (Power scheduler); Zhai et al. 2022
    (arXiv 2106.04560), Section 3.5 (p = 1/2, τ and the cool-down).

    Raises:
        TypeError: if a length is neither a whole number nor a fraction, or a rate not a number.
        ValueError: for a number outside its range, an unknown shape, phases longer than
            ``total_steps``, a cool-down without ``total_steps``, or a decay whose timescale is 0.

    >>> rate = adamx.schedules.power_law(1.0, warmup_steps=4, exponent=1.0)
    >>> [rate(count) for count in (0, 3, 7, 15)]
    [0.25, 1.0, 0.5, 0.25]
    """
    return ScheduleValue(
        power_law,
        _phases,
        _power_law(
            "power_law",
            peak=peak,
            warmup_steps=warmup_steps,
            exponent=exponent,
            stable_steps=stable_steps,
            timescale=timescale,
            total_steps=total_steps,
            decay_steps=decay_steps,
            shape=shape,
            initial=initial,
            final=final,
        ),
    )


def inverse_sqrt(
    peak: NonNegative,
    warmup_steps: int | float,
    *,
    timescale: Positive | None = None,
    total_steps: int | None = None,
    decay_steps: int | float = 0,
    shape: Shape | float = "linear",
    initial: NonNegative = 0.0,
    final: NonNegative = 0.0,
) -> ScheduleValue:
    r"""A linear warm-up, then one over the root of the step (Noam, rsqrt).

    .. math::
        \eta_t = \eta_{\max} \min\left( \frac{t}{W}, \sqrt{\frac{W}{t}} \right)

    in step t = 1, 2, …, which is ``count + 1``. This is :func:`~adamx.schedules.power_law` with the
    exponent 1/2, and is printed so. The Transformer's rate
    :math:`d^{-1/2} \min(t^{-1/2}, t\, W^{-3/2})` has the peak :math:`(d W)^{-1/2}`; T5's
    :math:`1 / \sqrt{\max(t, k)}` has the peak :math:`1/\sqrt k`, and k steps at the peak in place
    of the warm-up: ``power_law(k**-0.5, 0, stable_steps=k)``.

    Args:
        peak: :math:`\eta_{\max}` ≥ 0, the rate at the end of the warm-up.
        warmup_steps: W, a number of steps, or a float below 1, a fraction of ``total_steps``.
        timescale: τ > 0 in :math:`\sqrt{\tau / (\tau + t - W)}`; None for W.
        total_steps: the number of steps of the training, if it is known.
        decay_steps: the steps of a cool-down at its end, or a fraction; 0 for none.
        shape: the shape of the cool-down.
        initial: the rate from which the warm-up starts, one step before the first.
        final: the rate after the cool-down.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 3; Zhai et al. 2022 (arXiv 2106.04560),
    Section 3.5 (τ and the cool-down).

    Raises:
        TypeError: as :func:`~adamx.schedules.power_law`.
        ValueError: as :func:`~adamx.schedules.power_law`.

    >>> rate = adamx.schedules.inverse_sqrt(1.0, warmup_steps=4)
    >>> [rate(count) for count in (0, 3, 15, 63)]
    [0.25, 1.0, 0.5, 0.25]
    """
    known = _power_law(
        "inverse_sqrt",
        peak=peak,
        warmup_steps=warmup_steps,
        exponent=0.5,
        stable_steps=0,
        timescale=timescale,
        total_steps=total_steps,
        decay_steps=decay_steps,
        shape=shape,
        initial=initial,
        final=final,
    )
    return ScheduleValue(power_law, _phases, known)


def _power_law(of: str, **given: Any) -> dict[str, Any]:
    """The arguments of a power law, checked."""
    total = given["total_steps"]
    total = None if total is None else length(of, "total_steps", total, least=1)
    warmup, stable, decay = (given[f"{name}_steps"] for name in ("warmup", "stable", "decay"))
    known = _cooled(of, total, warmup, stable, decay, given["shape"])
    numbers = ("peak", "exponent", "initial", "final")
    known |= number(of, NonNegative, **{name: given[name] for name in numbers})
    if given["timescale"] is not None:
        known |= number(of, Positive, timescale=given["timescale"])
    elif known["warmup_steps"] + known["stable_steps"] == 0:
        raise ValueError(
            f"{of}: without a warm-up and a stable phase, the decay has no timescale; pass "
            "timescale=, the number of steps after which a rate falls by 2 to the power −exponent"
        )
    return {**given, "total_steps": total, **known}


def _cooled(
    of: str, total: int | None, warmup: Any, stable: Any, decay: Any, shape: Any
) -> dict[str, Any]:
    """The phases of a schedule, in steps, and the shape of its cool-down."""
    if isinstance(shape, str) and shape not in get_args(Shape):
        shapes = ", ".join(map(repr, get_args(Shape)))
        raise ValueError(
            f"{of}: shape must be {shapes}, or a number p for (1 - x)**p, got {shape!r}"
        )
    names = {"warmup_steps": warmup, "stable_steps": stable, "decay_steps": decay}
    for name, given in names.items():
        if total is None and isinstance(given, float) and 0 < given < 1:
            raise ValueError(
                f"{of}: {name}={given} is a fraction of total_steps, which is not given; pass "
                "total_steps=, or a whole number of steps"
            )
    known: dict[str, Any] = {
        name: length(of, name, given, total=total) for name, given in names.items()
    }
    if total is None and known["decay_steps"]:
        raise ValueError(
            f"{of}: a cool-down of {known['decay_steps']} steps must know where it ends; pass "
            "total_steps="
        )
    if total is not None and (used := sum(known.values())) > total:
        phases = {"warm-up": "warmup_steps", "stable phase": "stable_steps"}
        phases = {word: known[name] for word, name in phases.items() if known[name]}
        phases["cool-down"] = known["decay_steps"]
        said = " and ".join(f"a {word} of {steps}" for word, steps in phases.items())
        raise ValueError(
            f"{of}: {said} steps take {used} steps, more than total_steps={total}; shorten them, "
            "or pass fractions of total_steps"
        )
    return known | (
        {"shape": shape} if isinstance(shape, str) else number(of, Positive, shape=shape)
    )


def _phases(
    moment: Moment,
    *,
    peak: Any,
    total_steps: int | None,
    warmup_steps: int,
    decay_steps: int,
    shape: Any,
    initial: Any,
    final: Any,
    stable_steps: int = 0,
    exponent: Any = None,
    timescale: Any = None,
) -> Any:
    """The formula of all of them. Differences are taken of whole numbers, so they are exact."""
    xp, count, value = moment.xp, moment.count, peak
    if exponent is not None:
        start = warmup_steps + stable_steps
        tau = float(start) if timescale is None else timescale
        past = moment.real(xp.maximum(count - start, -1)) + 1  # t − S
        value = peak * (tau / (tau + past)) ** exponent
    if decay_steps and total_steps is not None:
        left = moment.real(xp.clip(total_steps - count, 0, decay_steps)) / decay_steps
        done = moment.real(xp.clip(count - (total_steps - decay_steps), 0, decay_steps))
        f = _cool_down(xp, shape, left, done / decay_steps)
        value = value * f + final * (1 - f)
    if warmup_steps:
        s = moment.real(xp.minimum(count, warmup_steps - 1) + 1) / warmup_steps
        value = xp.where(count < warmup_steps, initial * (1 - s) + peak * s, value)
    return value


def _cool_down(xp: Any, shape: Any, left: Any, done: Any) -> Any:
    """f(x) of x = ``done`` = 1 − ``left``, without subtracting numbers that are nearly equal."""
    if shape == "cosine":
        return xp.sin(math.pi / 2 * left) ** 2
    if shape == "1-sqrt":
        return left / (1 + xp.sqrt(done))
    return left if isinstance(shape, str) else left**shape
