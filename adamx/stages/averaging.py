"""Averages of the iterates themselves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Positive,
    Rule,
    Same,
    Slot,
    StageError,
    Step,
    Transformation,
    chain,
    clock_dtype,
    decay_weight,
    decaying_average,
    divide,
    is_off,
    iterate,
    stage,
    zeros,
)
from adamx.errors import as_given
from adamx.links.averages import moved_with_rest
from adamx.numerics.arithmetic import power, subtractable
from adamx.numerics.formats import statistics_dtype
from adamx.numerics.types import PyTree, Values
from adamx.states.reading import Kept, batched, filled, merged, stages_named
from adamx.trees.packed import values

__all__ = [
    "lookahead",
    "polyak_ema",
    "polyak_params",
    "power_ema",
    "primal_average",
    "schedule_free",
    "tail_average",
]

LARGEST = int(np.iinfo(np.int32).max)


@stage(reach="element", place="step")
def lookahead(sync_period: Positive = 5, slow_step_size: NonNegative = 0.8):
    r"""After every k steps, move back part of the way to the start of these steps (Lookahead).

    .. math::
        \phi_t &= \begin{cases} \phi_{t-1} + \alpha (\theta + u_t - \phi_{t-1}) & t \bmod k = 0 \\
        \phi_{t-1} & \text{otherwise} \end{cases}, \qquad \phi_0 = \theta_0 \\
        u &\leftarrow \begin{cases} \phi_t - \theta & t \bmod k = 0 \\
        u_t & \text{otherwise} \end{cases}

    Use it as the last stage of any chain, ``chain(adam(rate), lookahead())``, where the update is
    the final step. After k steps of the fast parameters θ, the slow parameters φ take one step, and
    the fast parameters continue from φ. The state of the earlier stages is not reset.

    Keeps ``slow`` (φ), a copy of the parameters in at least float32, and a clock of the steps since
    θ was set to φ. If a parameter has no gradient in a k-th step, it moves back in the next k-th
    step in which it has a gradient. ``adamx.dequantize(state, "slow")`` returns the slow
    parameters, which the paper evaluates. After every k-th step, the parameters equal them.

    Args:
        sync_period: k ≥ 1.
        slow_step_size: α; with 1, the stage has no effect. The paper uses 0.5, the authors' code
            0.8.

    Source: Zhang et al. 2019 (arXiv 1907.08610), Algorithm 1.

    Raises:
        StageError: if ``update`` is called without parameters, or ``init`` with shapes only.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.lookahead(2, slow_step_size=0.5))
    >>> theta = jnp.array([0.0])
    >>> state = opt.init(theta)
    >>> for _ in range(2):
    ...     u, state = opt.update(jnp.array([-3.0]), state, theta)
    ...     theta = adamx.apply_updates(theta, u)
    >>> theta, adamx.dequantize(state, "slow")
    (Array([3.], dtype=float32), Array([3.], dtype=float32))
    """
    steps = Clock(
        start=lambda: jnp.zeros((), clock_dtype()),
        tick=lambda done: jnp.where(done < sync_period, done, 0) + 1,
        read=lambda done: done >= sync_period,
    )

    def start(param):
        if isinstance(param, jax.ShapeDtypeStruct):
            raise StageError(
                "lookahead starts from the parameters, but init() received only their shapes; for "
                "the shapes of the state, call jax.eval_shape(opt.init, params)"
            )
        return param.astype(statistics_dtype(param.dtype))

    def update(signal, slots, step):
        synchronise, slow = step.clock["steps"], slots["slow"]
        moved = subtractable(signal.param + signal.update)
        back = (1 - slow_step_size) * (moved - subtractable(slow))
        signal = signal.with_update(jnp.where(synchronise, signal.update - back, signal.update))
        return signal, {"slow": jnp.where(synchronise, signal.next_param, slow)}

    return Rule(
        update, slots={"slow": Slot(start, holds="exact", letter="φ")}, clocks={"steps": steps}
    )


@stage(reach="element", place="step", keeps_rounding=True)
def polyak_ema(decay: Decay = 0.999):
    r"""Keep a decaying average of the new parameters (Polyak averaging, EMA of weights).

    .. math::
        \bar\theta_t = d\, \bar\theta_{t-1} + (1-d)\, \theta_t, \qquad
        \theta_t = \theta_{t-1} + u

    Use it as the last stage, where the update is the final step. :func:`polyak_params` returns the
    average, corrected for its start at zero. With the schedule ``decay=lambda t: t / (t + 1)``, the
    average is the Polyak-Ruppert mean of all iterates.

    Keeps ``ema``, shaped like the parameter, in at least float32. If a parameter has no gradient in
    a step, it does not change, and the unchanged parameter is averaged.

    Args:
        decay: d in [0, 1).

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Section 7.2; Polyak & Juditsky 1992.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> mean = adamx.polyak_ema(lambda t: t / (t + 1))
    >>> opt = adamx.chain(adamx.scale_by_learning_rate(1.0), mean)
    >>> theta = jnp.array([0.0])
    >>> state = opt.init(theta)
    >>> for _ in range(3):
    ...     updates, state = opt.update(jnp.array([-1.0]), state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    >>> theta, adamx.polyak_params(state)
    (Array([3.], dtype=float32), Array([2.], dtype=float32))
    """
    mean = decaying_average(decay)

    def update(signal, slots, step):
        return signal, {"ema": mean(slots["ema"], subtractable(signal.next_param))}

    return Rule(
        update,
        slots={"ema": Slot(zeros, holds="average", letter="θ̄")},
        clocks=mean.clocks,
        without_gradient=True,
    )


def polyak_params(state: PyTree, name: str = "polyak_ema", *, params: PyTree = None) -> PyTree:
    r"""The averaged parameters of :func:`polyak_ema`, debiased, in the precision of the average.

    .. math::
        \bar\theta_t / (1 - \prod_i d_i)

    :func:`eval_params` returns any average, in the dtypes of the parameters.

    Args:
        state: the state of a chain with :func:`polyak_ema`, or an object that contains one: the
            state of an ``optax.chain``, a Flax ``TrainState``, an ``nnx.Optimizer``.
        name: the name of the stage in the state, ``"polyak_ema_2"`` for the second one. Inside
            :func:`adamx.where` or :func:`adamx.partition`, this name refers to all groups of the
            stage; ``"polyak_ema@group"`` refers to one of them.
        params: the parameters. Parameters without such a stage are returned unchanged; without
            ``params``, their entries are None.

    Returns:
        A tree like the parameters, in at least float32. Before the first step, it is NaN.

    Raises:
        ValueError: if the state contains no such stage, or more than one for a parameter.
        StageError: if the state belongs to parameters other than ``params``.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.where("!bias", adamx.polyak_ema()))
    >>> params = {"bias": jnp.zeros(1), "kernel": jnp.zeros(1)}
    >>> grads = {"bias": jnp.ones(1), "kernel": jnp.ones(1)}
    >>> updates, state = opt.update(grads, opt.init(params), params)
    >>> adamx.polyak_params(state)
    {'bias': None, 'kernel': Array([-1.], dtype=float32)}
    """
    found = stages_named(state, name, ("ema", "log_decay"), "polyak_ema(decay)")

    def debias(log_decay: Values, ema: Values) -> Values:
        return ema / decay_weight(log_decay).astype(jnp.finfo(ema.dtype).dtype)

    def of_stage(kept: Kept) -> PyTree:
        of_one = functools.partial(batched(debias, kept.axes), kept.entry["log_decay"])
        return jax.tree.map(of_one, values(kept.entry["ema"]))

    averages = {full: of_stage(kept) for full, kept in found.items()}
    average = merged(averages)
    return average if params is None else filled(average, params)


def power_exponent(std: float, needed_by: str = "power_ema") -> float:
    """γ of the power function whose weights have this relative standard deviation.

    The largest real root of γ³ + 7γ² + (16 − s⁻²)γ + 12 − s⁻².

    Raises:
        ValueError: for an s outside (0, 1/√12], for which the weights would not increase.
    """
    number = isinstance(std, (int, float, np.number)) and not isinstance(std, bool)
    if not number or not 0 < std <= UNIFORM + 1e-7:
        raise ValueError(
            f"{needed_by}: std must be a number in (0, 0.2886], the standard deviation of the "
            "weights as a part of the training (0.2886 is a uniform mean), got "
            f"{as_given(std)}"
        )
    inverse = float(std) ** -2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(float(np.max(roots[np.abs(roots.imag) < 1e-6].real)), 0.0)


UNIFORM = 1 / math.sqrt(12)
"""The relative standard deviation of equal weights."""


def _each(make: Callable[..., Transformation]) -> Callable[..., Transformation]:
    """A factory of a stage with one ``std``, which makes a stage for each of several."""

    @functools.wraps(make)
    def of_each(std: float | Sequence[float] = 0.05, **rest: Any) -> Transformation:
        several: Any = std if isinstance(std, Sequence) and not isinstance(std, str) else (std,)
        if not several:
            raise ValueError("power_ema: std must be at least one number, got none")
        for one in several:
            power_exponent(one, "power_ema")
        return chain(*(make(one, **rest) for one in several))

    return of_each


@_each
@stage(reach="element", place="step", keeps_rounding=True)
def power_ema(std: float | Sequence[float] = 0.05, *, compensated: bool = False):
    r"""Keep an average of the parameters whose length grows with the training (EDM2's power EMA).

    .. math::
        \bar\theta_t = \beta_t \bar\theta_{t-1} + (1-\beta_t)\, \theta_t, \qquad
        \beta_t = (1 - 1/t)^{\gamma+1}, \qquad \theta_t = \theta_{t-1} + u

    Step i has a weight proportional to :math:`i^{\gamma+1} - (i-1)^{\gamma+1}`, a power of its
    time. The standard deviation of these weights is a fixed part s of the length of the training so
    far, and γ is the largest root of :math:`\gamma^3 + 7\gamma^2 + (16 - s^{-2})\gamma + 12 -
    s^{-2}`. As β₁ = 0, the start is forgotten at once, and there is nothing to correct.

    Use it as the last stage. :func:`eval_params` returns the average. To choose s after the
    training, keep two averages, ``power_ema(std=(0.05, 0.1))``, save a :func:`ema_snapshot` now and
    then, and let :func:`reconstruct_ema` compute the average for any s.

    Keeps ``ema``, shaped like the parameter, in at least float32, and the clocks ``steps`` and
    ``std``; if compensated also ``ema_lost``, in bfloat16. If a parameter has no gradient in a
    step, the unchanged parameter is averaged. Inside of a gate, t counts the steps that counted.

    Args:
        std: s in (0, 0.2886]; 0.2886 is the mean of all iterates. Several numbers are several
            stages, ``power_ema``, ``power_ema_2`` and so on.
        compensated: keep the average with eight more bits, for two more bytes per parameter. After
            a million steps, each new iterate counts for 10⁻⁵, and float32 loses changes of a
            thousandth of the parameter.

    Source: Karras et al. 2024 (arXiv 2312.02696), Section 3.1 and equations 123-127.

    Raises:
        StageError: if ``update`` is called without parameters.
        ValueError: for an s outside (0, 0.2886].

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.power_ema(std=(0.1, 0.2)))
    >>> theta = jnp.array([0.0])
    >>> state = opt.init(theta)
    >>> for _ in range(100):
    ...     updates, state = opt.update(jnp.array([-1.0]), state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    >>> for name in ("power_ema", "power_ema_2"):
    ...     print(adamx.eval_params(state, theta, name=name).round(1))
    [89.3]
    [74.4]
    """
    exponent = power_exponent(cast(float, std))

    def share(t):  # 1 − β, which 1 − (1 − 1/t)^(γ+1) would round to few digits
        inverse = 1 / jnp.maximum(t, 1).astype(clock_dtype())
        return -jnp.expm1((exponent + 1) * jnp.log1p(-inverse))

    clocks = {
        "steps": Clock(lambda: jnp.zeros((), jnp.int32), _counted, share),
        "std": Clock(lambda: jnp.asarray(std, clock_dtype()), lambda x: x, lambda x: x),
    }

    def update(signal, slots, step):
        return signal, _moved(step.clock["steps"], slots, subtractable(signal.next_param))

    return Rule(update, slots=_kept(compensated), clocks=clocks, without_gradient=True)


@stage(reach="element", place="step", keeps_rounding=True)
def tail_average(
    start: NonNegative = 0,
    every: Positive = 1,
    total_steps: NonNegative = 0,
    *,
    compensated: bool = True,
):
    r"""Keep the mean of the parameters from a step on (tail averaging, SWA).

    .. math::
        \bar\theta_t = \begin{cases} \bar\theta_{t-1} + (\theta_t - \bar\theta_{t-1}) / n
        & (t - s) \bmod k = 0 \\ \bar\theta_{t-1} & \text{otherwise} \end{cases}, \qquad
        n = (t - s) / k, \qquad \theta_t = \theta_{t-1} + u

    for t > s: the mean of :math:`\theta_{s+k}, \theta_{s+2k}, \dots`, in which all n iterates have
    the weight 1/n.

    Use it as the last stage. :func:`eval_params` returns the average; until there is one, it
    returns the parameters.

    Keeps ``mean``, shaped like the parameter, in at least float32; if compensated also
    ``mean_lost``, its rounding error, in bfloat16; and a clock of t and n. If a parameter has no
    gradient in a step, the unchanged parameter is averaged.

    Args:
        start: s, the number of steps before the average begins; with ``total_steps`` a part of
            these, ``tail_average(0.75, total_steps=10_000)``.
        every: k ≥ 1. SWA averages the last iterate of every cycle of a cyclic learning rate.
        total_steps: the length of the training, for a ``start`` that is a part of it; 0 for a
            ``start`` in steps.
        compensated: keep the rounding error of the mean. Without it, a mean of 10⁶ iterates in
            float32 does not see an iterate that differs from it by less than about 3 %.

    Source: Jain et al. 2018 (arXiv 1610.03774); Izmailov et al. 2018 (arXiv 1803.05407) for SWA.

    Raises:
        StageError: if ``update`` is called without parameters.
        ValueError: from ``init``, for a start between 0 and 1 without ``total_steps``, or above 1
            with it.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.tail_average(start=2, every=2))
    >>> theta = jnp.array([0.0])
    >>> state = opt.init(theta)
    >>> for _ in range(7):
    ...     updates, state = opt.update(jnp.array([-1.0]), state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    >>> theta, adamx.eval_params(state, theta)  # the mean of 4 and 6
    (Array([7.], dtype=float32), Array([5.], dtype=float32))
    """
    is_part = not is_off(total_steps)
    first = cast(Any, start) * total_steps if is_part else start
    if isinstance(start, float):
        if not is_part and 0 < start < 1:
            raise ValueError(
                f"tail_average: start={start:g} is a part of the training, of which the length is "
                "not known; pass total_steps=…, or a number of steps"
            )
        if is_part and start > 1:
            raise ValueError(
                f"tail_average: with total_steps, start is a part of them in [0, 1], got {start:g}"
            )

    def whole(x):
        limit = 2.0**31 - 128  # a float32 that an int32 holds
        return jnp.minimum(jnp.ceil(jnp.asarray(x, clock_dtype())), limit).astype(jnp.int32)

    def is_due(t):
        past = t - whole(first)
        return (past > 0) & (past % jnp.maximum(whole(every), 1) == 0)

    def tick(clock):
        t = _counted(clock[0])
        return jnp.stack([t, jnp.where(is_due(t), _counted(clock[1]), clock[1])])

    def read(clock):
        share = 1 / jnp.maximum(clock[1], 1).astype(clock_dtype())
        return jnp.where(is_due(clock[0]), share, 0)

    def update(signal, slots, step):
        share = step.clock["steps"]
        after = _moved(share, slots, subtractable(signal.next_param))
        return signal, {name: jnp.where(share > 0, after[name], slots[name]) for name in slots}

    return Rule(
        update,
        slots=_kept(compensated, "mean"),
        clocks={"steps": Clock(lambda: jnp.zeros(2, jnp.int32), tick, read)},
        without_gradient=True,
    )


def _counted(t: Any) -> Any:
    return jnp.minimum(t, LARGEST - 1) + 1


def _kept(compensated: bool, name: str = "ema") -> dict[str, Callable[[Any], Any]]:
    """The slots of an average of the parameters."""

    def rest(param: Any) -> Any:
        is_complex = jnp.issubdtype(param.dtype, jnp.complexfloating)
        return zeros(param, None if is_complex else jnp.bfloat16)

    slots: dict[str, Callable[[Any], Any]] = {name: Slot(zeros, holds="average", letter="θ̄")}
    return slots | ({f"{name}_lost": Slot(rest, holds="exact")} if compensated else {})


def _moved(share: Any, slots: dict[str, Any], value: Any) -> dict[str, Any]:
    """The slots of an average, moved by this share of the way to the value."""
    (name, average), *rest = slots.items()
    if not rest:
        near = share >= 0.5  # then the value has the larger weight, and keeps its last digits
        start, end = jnp.where(near, value, average), jnp.where(near, average, value)
        return {name: start + jnp.where(near, 1 - share, share) * (end - start)}
    ((lost, kept),) = rest
    new, left = moved_with_rest(share, average, kept, value)
    return {name: new, lost: left}


@stage(reach="element", place="step")
def schedule_free(
    learning_rate: NonNegative = Same("scale_by_learning_rate", "learning_rate"),
    b1: Decay = 0.9,
    *,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
):
    r"""Interpolate between the iterates and their average, in place of a schedule (schedule-free).

    .. math::
        z_t &= z_{t-1} + u_t \\
        x_t &= (1 - c_t)\, x_{t-1} + c_t z_t, \qquad
        c_t = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^p \\
        y_t &= (1-\beta_1) z_t + \beta_1 x_t, \qquad u \leftarrow y_t - y_{t-1}, \qquad
        z_0 = \theta_0, \qquad x_0 = \theta_0

    The parameters are y, at which gradients are computed. :func:`eval_params` returns x, for
    evaluation. Use the stage as the last one, where u is a step (−γ times a direction), in a
    chain without momentum, because the average replaces the momentum. The state contains only z; x
    is computed from z and the parameters,
    :math:`y_t - y_{t-1} = c_t (z_{t-1} - y_{t-1})` :math:`{} + (1 - \beta_1 (1 - c_t)) u_t`
    (with an additional term while β₁ changes). With β₁ = 0, the parameters equal z, and the stage
    does not change the update.

    Keeps ``z``, shaped like the parameter, in at least float32.

    Args:
        learning_rate: γ of the step u: the learning rate of :func:`scale_by_learning_rate` in the
            same chain, or a value. The average weights each iterate by the largest γ so far, so
            that iterates of a warm-up count less.
        b1: β₁ in [0, 1), the position between z and x at which gradients are computed.
        r: r ≥ 0, the power of t in the weights.
        weight_lr_power: p ≥ 0, the power of γ in the weights; 0 for equal ones.

    Source: Defazio et al. 2024 (arXiv 2405.15682), equations 1-3 and Algorithm 1.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.schedule_free(b1=0.5))
    >>> y = jnp.array([0.0])
    >>> state = opt.init(y)
    >>> for _ in range(2):  # z: 1, 2; x: 1, 1.5
    ...     updates, state = opt.update(jnp.array([-1.0]), state, y)
    ...     y = adamx.apply_updates(y, updates)
    >>> y, adamx.eval_params(state, y)
    (Array([1.75], dtype=float32), Array([1.5], dtype=float32))
    """

    def tick(clock):
        t, largest, total = clock
        new = jnp.maximum(largest, learning_rate)  # pyright: ignore[reportArgumentType]
        shrunk = power(t / (t + 1), r) * power(divide(largest, new), weight_lr_power)  # wₜ₋₁/wₜ
        return jnp.stack([t + 1, new, 1 + shrunk * total])

    # t, the largest γ, and Σw/wₜ, which is 1/c and never over- or underflows.
    weights = Clock(lambda: jnp.zeros(3, clock_dtype()), tick, lambda clock: 1 / clock[2])
    return _between(b1, lambda step: step.clock["weights"], {"weights": weights})


@stage(reach="element", place="step")
def primal_average(interpolation: Decay = 0.7, decay: Decay = 0.9967):
    r"""Interpolate between the iterates and their decaying average (generalized primal averaging).

    .. math::
        z_t &= z_{t-1} + u_t \\
        x_t &= \mu_x x_{t-1} + (1 - \mu_x) z_t \\
        y_t &= \mu_y x_t + (1-\mu_y) z_t, \qquad u \leftarrow y_t - y_{t-1}, \qquad
        z_0 = \theta_0, \qquad x_0 = \theta_0

    The parameters are y, at which gradients are computed. :func:`eval_params` returns x, for
    evaluation. It is :func:`schedule_free` with a constant weight in place of w/Σw, for a chain
    with momentum and a schedule, ``chain(adamw(rate), primal_average())``.

    Keeps ``z``, shaped like the parameter, in at least float32.

    Args:
        interpolation: μ_y in [0, 1), the position between z and x at which gradients are computed.
        decay: μ_x in [0, 1), of the average x.

    Source: Defazio et al. 2025 (arXiv 2512.17131); facebookresearch/optimizers, GPAAdamW.

    Raises:
        StageError: if ``update`` is called without parameters.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.primal_average(0.5, decay=0.5))
    >>> y = jnp.array([0.0])
    >>> state = opt.init(y)
    >>> for _ in range(2):  # z: 1, 2; x: 0.5, 1.25
    ...     updates, state = opt.update(jnp.array([-1.0]), state, y)
    ...     y = adamx.apply_updates(y, updates)
    >>> y, adamx.eval_params(state, y)
    (Array([1.625], dtype=float32), Array([1.25], dtype=float32))
    """
    return _between(interpolation, lambda step: 1 - cast(Any, decay), {})


def _between(b1: Any, weight: Callable[[Step], Any], clocks: Mapping[str, Clock]) -> Rule:
    """Steps of y between z and its average x, in which z has this weight in a step."""
    # β₁ in the step before and in this one; at first x, y and z are the same.
    interpolation = Clock(
        start=lambda: jnp.ones(2, clock_dtype()),
        tick=lambda clock: jnp.stack([clock[1], jnp.asarray(b1, clock.dtype)]),
        read=lambda clock: divide(clock[1], clock[0]),
    )

    def update(signal, slots, step):
        c, ratio = weight(step), step.clock["b1"]
        z, y = subtractable(slots["z"]), signal.param
        u = subtractable(signal.update)
        towards = c + (1 - ratio) * (1 - c)  # c, where β₁ is what it was
        step_of_y = towards * (z - y) + (1 - b1 * (1 - c)) * u
        return signal.with_statistic(step_of_y), {"z": z + u}

    return Rule(update, slots={"z": iterate}, clocks={**clocks, "b1": interpolation})
