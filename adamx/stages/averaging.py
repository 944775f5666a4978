"""Averages of the iterates themselves."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from adamx.core import (
    Clock,
    Decay,
    NonNegative,
    Positive,
    Rule,
    Slot,
    StageError,
    decaying_average,
    stage,
    symbols,
    zeros,
)
from adamx.core.arithmetic import decay_weight, subtractable
from adamx.core.equations import in_symbols
from adamx.core.hyper import clock_dtype
from adamx.core.reading import batched, filled, merged, stages_named
from adamx.core.signal import statistics_dtype
from adamx.core.types import PyTree, Values

__all__ = ["lookahead", "polyak_ema", "polyak_params"]


@stage
def lookahead(sync_period: Positive = 5, slow_step_size: NonNegative = 0.8):
    r"""After every k steps, go back part of the way to where they began (Lookahead).

    .. math::
        \text{every } k\text{-th step:} \quad
        \phi \leftarrow \phi + \alpha (\theta + u - \phi), \quad u \leftarrow \phi - \theta

    Stands last, behind any chain, ``chain(adam(rate), lookahead())``, where the update is the
    step that will be taken: k steps of the fast parameters θ, then one of the slow parameters φ,
    at which the fast ones start anew. What the chain in front remembers it keeps.

    Keeps ``slow`` (φ), a copy of the parameters, float32 at least, and a clock of the steps since
    θ was φ. A parameter that has no gradient in a k-th step goes back in the next k-th step in
    which it has one. The slow parameters, which the paper evaluates, are
    ``adamx.dequantize(state, "slow")``; after every k-th step they are the parameters themselves.

    Args:
        sync_period: k ≥ 1.
        slow_step_size: α; with 1 nothing changes. The paper has 0.5, the authors' code 0.8.

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
                "lookahead starts from the parameters, and init() was given their shapes; for "
                "the state's shapes call jax.eval_shape(opt.init, params)"
            )
        return param.astype(statistics_dtype(param.dtype))

    def update(signal, slots, step):
        synchronise, slow = step.clock["steps"], slots["slow"]
        moved = subtractable(signal.param + signal.update)
        back = (1 - slow_step_size) * (moved - subtractable(slow))
        signal = signal.with_update(jnp.where(synchronise, signal.update - back, signal.update))
        return signal, {"slow": jnp.where(synchronise, signal.next_param, slow)}

    return Rule(update, slots={"slow": Slot(start, exact=True)}, clocks={"steps": steps})


@in_symbols(lookahead)
def _(signal, sync_period, slow_step_size):
    moved = signal.param + signal.named().update
    if isinstance(sync_period, symbols.Number):
        period = max(math.ceil(sync_period.value), 1)
        synchronise = symbols.Function("mod", (symbols.STEP, symbols.Number(period))).equals(0)
    else:
        done = signal.let("n", lambda n: symbols.cases(n < sync_period, n + 1, 1))
        synchronise = done >= sync_period
    slow = signal.let(
        "φ",
        lambda slow: symbols.cases(synchronise, slow + slow_step_size * (moved - slow), slow),
        start=symbols.START,
    )
    return signal.with_update(symbols.cases(synchronise, slow - signal.param, signal.update))


@stage
def polyak_ema(decay: Decay = 0.999):
    r"""Keep a decaying average of the *new* parameters; the update passes unchanged.

    .. math::
        \bar\theta_t = d\, \bar\theta_{t-1} + (1-d)\, \theta_t, \qquad
        \theta_t = \theta_{t-1} + u

    Stands last, where the update is the step that will be taken. :func:`polyak_params` reads the
    average, with its bias towards the zero start divided out. With the schedule
    ``decay=lambda t: t / (t + 1)`` it is the Polyak-Ruppert mean of all iterates.

    Keeps ``ema``, shaped like the parameter, float32 at least. A parameter that has no gradient in
    a step stays where it is, and is averaged as it is.

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

    return Rule(update, slots={"ema": Slot(zeros, exact=True)}, clocks=mean.clocks, idle=True)


@in_symbols(polyak_ema)
def _(signal, decay):
    mean = signal.fresh("θ", accent="bar")
    signal.let(mean, lambda mean: decay * mean + (1 - decay) * signal.next_param)
    return signal


def polyak_params(state: PyTree, name: str = "polyak_ema", *, params: PyTree = None) -> PyTree:
    r"""The averaged parameters, debiased: :math:`\bar\theta_t / (1 - \prod_i d_i)`.

    Args:
        state: the state of a chain with :func:`polyak_ema`, or anything that holds one: an
            ``optax.chain``'s state, a Flax ``TrainState``, an ``nnx.Optimizer``.
        name: the stage's name in the state, ``"polyak_ema_2"`` for the second one. Where the stage
            stands in :func:`adamx.where` or :func:`adamx.partition`, that is all groups of it;
            ``"polyak_ema@group"`` is one of them.
        params: the parameters. Those that no such stage is for are returned as they are; without
            ``params`` they are None.

    Returns:
        A tree like the parameters, float32 at least. Before the first step nothing has been
        averaged yet and it is NaN.

    Raises:
        ValueError: if the state holds no such stage, or more than one for a parameter.
        StageError: if the state is of other parameters than ``params``.

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

    averages = {
        full: jax.tree.map(
            functools.partial(batched(debias, kept.axes), kept.entry["log_decay"]),
            kept.entry["ema"],
        )
        for full, kept in found.items()
    }
    average = merged(averages)
    return average if params is None else filled(average, params)
