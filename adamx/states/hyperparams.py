"""Read the hyperparameters of a chain at a step."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments.hyper import LARGEST_COUNT
from adamx.errors import as_given, described
from adamx.links.gates import counts
from adamx.links.link import Link
from adamx.links.naming import labels
from adamx.links.stage import Stage, joined
from adamx.states.reading import batched, the_state

__all__ = ["hyperparams"]


def hyperparams(opt: Any, at: Any = None) -> dict[str, Any]:
    """An optimiser's hyperparameters by name, such as the current learning rate.

    Args:
        opt: a :class:`Transformation`.
        at: the step at which schedules are evaluated: a count of past updates, the optimiser's
            state, or an object that holds the state (a Flax ``TrainState``, an ``nnx.Optimizer``,
            the state of an ``optax.chain``). If None, schedules are returned as functions. For a
            batch of counts, each schedule gives a batch of values.

    Returns:
        A dict from ``argument`` to a float, an array or a schedule. If several stages have an
        argument of that name, the key is ``argument@group`` or ``stage.argument``.

    Raises:
        TypeError: if ``opt`` is no adamx optimiser, or ``at`` is neither a count nor an object that
            holds exactly one state of a chain.
        ValueError: for a count below 0, or above 2³¹ − 1, where a state's count stops.
        StageError: if a value that a schedule reads (a global, an attribute) has changed, so that
            a compiled step may still use the old one; or if such a value can't be compared (a
            generator, a file) and a step was compiled under ``jax.jit``.

    >>> opt = adamx.sgd(lambda t: 0.5 / (t + 1), momentum=0.9)
    >>> state = opt.init(jnp.zeros(1))
    >>> _, state = opt.update(jnp.ones(1), state)
    >>> adamx.hyperparams(opt, state)
    {'momentum': 0.9, 'learning_rate': Array(0.25, dtype=float32, weak_type=True)}
    """
    links: Any = getattr(opt, "links", None)
    if links is None:
        raise TypeError(
            f"hyperparams() takes an adamx optimiser, got {described(opt)}; the optimiser is the "
            "first argument, its state or a count the second: hyperparams(opt, state)"
        )
    found = labels(links)
    if at is not None:
        links = joined(opt.settled())
        at = _counts(at, links)
        links = [_at(x, count) for x, count in zip(links, at, strict=True)]
    return {name: links[place.link].arguments[place.argument] for name, place in found.items()}


def _counts(at: Any, links: list[Link]) -> list[Any]:
    """For every link, the count of past updates, or a batch of counts.

    A state holds the steps that counted for the links inside of a gate.
    """
    needs = "at is a count of past updates or the optimiser's state"
    if isinstance(at, (bool, np.bool_)):
        raise TypeError(f"{needs}, got {described(at)}")
    if not isinstance(at, (int, float, jax.Array, np.ndarray, np.generic)):
        return counts(links, the_state(at, TypeError, needs).state)
    is_one = isinstance(at, (int, float, np.generic))
    if is_one and not 0 <= cast(float, at) <= LARGEST_COUNT:
        raise ValueError(
            f"at is a count of past updates, from 0 to {LARGEST_COUNT}, where a state's count "
            f"stops; got {as_given(at)}"
        )
    return [at] * len(links)


def _at(stage: Link, count: Any) -> Link:
    """The link at one step, or at a batch of steps, with batches in place of its schedules."""
    if np.ndim(count) == 0 or not isinstance(stage, Stage):
        return stage.at(count)
    scheduled = [name for name in stage.definition.domains if callable(stage.arguments[name])]

    def read(count: Any) -> dict[str, Any]:
        now = stage.at(count).arguments
        return {name: jnp.asarray(now[name]) for name in scheduled}

    return stage.replace(**batched(read, np.ndim(count))(count)) if scheduled else stage
