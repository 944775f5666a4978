"""Keep what a step must not change that does not count."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from adamx.links.rule import Step, keep
from adamx.links.signal import Signal
from adamx.links.slots import Slots

__all__ = ["chosen", "kept_unless", "still", "without_slope"]


def kept_unless(
    counts: Any,
    update: Callable[[Signal, Slots, Step], tuple[Signal, Slots]],
    signal: Signal,
    slots: Slots,
    step: Step,
) -> tuple[Signal, Slots]:
    """The result of a rule's update, with the old slots unless the step counts.

    What the rule computes from a new slot is computed from the slot that is kept. In a step that
    counts both are the same, and otherwise the signal is not used. So XLA can write every slot in
    place and read it from there; ``where`` on the results would make it compute the slot twice, and
    copy the old one.
    """
    given = without_slope(counts, (signal, slots))
    leaves, tree = jax.tree.flatten(given)

    def flat(*leaves: Any) -> Any:
        own, before = tree.unflatten(leaves)
        made, after = update(own, before, step)
        return made, keep(slots, after)

    closed, forms = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    jaxpr, old = closed.jaxpr, jax.tree.leaves(given[1])
    new = jaxpr.outvars[len(jaxpr.outvars) - len(old) :]
    alone = {x for x, n in collections.Counter(map(id, new)).items() if n == 1}
    before = {x: y for x, y in zip(new, old, strict=True) if id(x) in alone and _is_variable(x)}
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *leaves], strict=True))
    before = {x: y for x, y in before.items() if x not in values}

    def value(x: Any) -> Any:
        return values[x] if _is_variable(x) else x.val

    for equation in jaxpr.eqns:
        params: Any = equation.primitive.get_bind_params(equation.params)
        functions, params = params if isinstance(params, tuple) else ((), params)  # before JAX 0.10
        found = equation.primitive.bind(*functions, *map(value, equation.invars), **params)
        results = found if equation.primitive.multiple_results else [found]
        for x, y in zip(equation.outvars, results, strict=True):
            values[x] = jnp.where(counts, y, before[x]) if x in before else y
    outputs = [value(x) for x in jaxpr.outvars]
    start = len(outputs) - len(old)
    for i, (x, y) in enumerate(zip(new, jax.tree.leaves(slots), strict=True), start):
        is_kept = _is_variable(x) and x in before
        outputs[i] = (
            _slope_of(counts, outputs[i], y) if is_kept else jnp.where(counts, outputs[i], y)
        )
    return jax.tree_util.tree_unflatten(jax.tree.structure(forms), outputs)


def chosen(counts: Any, new: Any, old: Any) -> Any:
    """The first of two trees if the step counts, else the second.

    Of signals, the parameter is that of the first.
    """
    choose = functools.partial(jnp.where, counts)
    if not isinstance(new, Signal):
        return jax.tree.map(choose, new, old)
    return jax.tree.map(choose, new.of_param(None), old.of_param(None)).of_param(new)


def still(form: Any, param: Any) -> Any:
    """What leaves a gate for one parameter in a step that does not count.

    It is the old parameter, if the new one would leave it, or else an update of zero, or the signal
    of such an update. Numbers of a signal, such as the weight of an average, are 1, as later stages
    may divide by them.

    Args:
        form: what leaves it in a step that counts; None for a parameter without a gradient.
        param: the old parameter; None where updates or signals leave the gate.
    """

    def blank(x: Any, number: int = 0) -> Any:
        return jnp.full(x.shape, 0 if x.shape else number, x.dtype)

    if form is None or param is not None:
        return None if form is None else param
    if not isinstance(form, Signal):
        return blank(form)
    ones = jax.tree.map(functools.partial(blank, number=1), form)
    update, gradient = blank(form.update), blank(form.gradient)
    return dataclasses.replace(ones, update=update, gradient=gradient)


def without_slope(counts: Any, tree: Any) -> Any:
    """The tree, on which nothing depends in a step that does not count; all of it if None.

    The results of such a step are not used, but a derivative of one that is not finite would be
    NaN times zero.
    """
    if counts is None:
        return tree
    return jax.tree.map(
        lambda x: _slope_of(counts, x, jnp.zeros_like(x)) if isinstance(x, jax.Array) else x, tree
    )


def _slope_of(counts: Any, x: Any, old: Any) -> Any:
    """x, with the derivative of ``old`` in a step that does not count."""
    return _sloped(counts, x, old) if jnp.issubdtype(x.dtype, jnp.inexact) else x


@jax.custom_jvp
def _sloped(counts: Any, x: Any, old: Any) -> Any:
    return x


@_sloped.defjvp
def _sloped_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    counts, x, _ = primals
    return x, jnp.where(counts, tangents[1], tangents[2])


def _is_variable(x: Any) -> bool:
    return not isinstance(x, Literal)
