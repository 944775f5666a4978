"""Averages of the iterates themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamx.core import Decay, Rule, decaying_average, stage, zeros
from adamx.core.arithmetic import decay_weight

__all__ = ["polyak_ema", "polyak_params"]


@stage
def polyak_ema(decay: Decay = 0.999):
    r"""Keep a decaying average of the *new* parameters; the update passes unchanged.

    .. math::
        \bar\theta_t = d\, \bar\theta_{t-1} + (1-d)\, \theta_t, \qquad
        \theta_t = \theta_{t-1} + u

    Stands last, where the update is the step that will be taken. :func:`polyak_params` reads the
    average, with its bias towards the zero start divided out. With the schedule
    ``decay=lambda t: t / (t + 1)`` it is the Polyak-Ruppert mean of all iterates.

    Keeps ``ema``, shaped like the parameter, float32 at least.

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
        return signal, {"ema": mean(slots["ema"], signal.next_param)}

    return Rule(update, slots={"ema": zeros}, clocks=mean.clocks)


def polyak_params(state: Any, name: str = "polyak_ema") -> Any:
    r"""The averaged parameters, debiased: :math:`\bar\theta_t / (1 - \prod_i d_i)`.

    Args:
        state: the state of a chain with :func:`polyak_ema`, or anything that holds one: an
            ``optax.chain``'s state, a Flax ``TrainState``.
        name: the stage's name in the state, ``"polyak_ema_2"`` for the second one.

    Returns:
        A tree like the parameters, float32 at least. Before the first step nothing has been
        averaged yet and it is NaN.

    Raises:
        ValueError: if the state holds no such stage, or more than one.
    """
    holds = lambda x: isinstance(x, dict) and name in x  # noqa: E731
    found = [x[name] for x in jax.tree.leaves(state, is_leaf=holds) if holds(x)]
    if len(found) != 1:
        raise ValueError(
            f"the state holds {len(found)} stages named {name!r}, one is needed; add "
            "polyak_ema(decay) as the last stage of the chain, or name the one you mean"
        )
    [kept] = found
    weight = decay_weight(kept["log_decay"])

    def debias(ema: jax.Array) -> jax.Array:
        return ema / weight.astype(jnp.finfo(ema.dtype).dtype)

    return jax.tree.map(debias, kept["ema"])
