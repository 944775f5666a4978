"""Gates: whether a step counts for an optimiser."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.core import (
    Clock,
    Positive,
    Rule,
    Signal,
    Slot,
    Squares,
    StageError,
    Step,
    Transformation,
    clock_dtype,
    stage,
    zeros,
)
from adamx.core.transformation import links_of
from adamx.errors import as_given, check_whole, described
from adamx.links.gates import ENTER, INSIDE
from adamx.links.rule import CONSECUTIVE
from adamx.links.slots import Slots
from adamx.links.stage import Stage, Takes
from adamx.numerics.formats import wider
from adamx.numerics.types import Array, PyTree
from adamx.states.reading import stages_of_kinds

__all__ = [
    "LossScale",
    "accumulate",
    "gate",
    "get_loss_scale",
    "loss_scale",
    "skip_nonfinite",
    "skip_spikes",
]

P = ParamSpec("P")
Gate = Callable[Concatenate[optax.GradientTransformation, P], Transformation]


def gate(
    *, takes: Takes = (), may_take: Sequence[str] = ()
) -> Callable[[Callable[P, Rule]], Gate[P]]:
    """Turn a factory of rules into a gate: a function that wraps an optimiser.

    The ``gate`` of the rule (:class:`~adamx.core.Rule`) decides in every step whether it counts for
    the optimiser inside. If it does not, all that the optimiser keeps (slots, clocks, the states of
    Optax transformations, what :func:`watch` has recorded) stays as it is, and the update is zero.
    Schedules inside, and those of the gate's own arguments, are read at the number of steps that
    counted. The gate itself runs in every step, and keeps the clocks ``skipped`` (the steps that
    did not count) and ``consecutive`` (those since the last one that did).

    Args:
        takes: the names of extra arguments of ``update`` that the gate needs, or a function that
            gives them for the gate's arguments.
        may_take: the names of extra arguments that it uses if ``update`` gets them.

    Returns:
        A decorator; the decorated function takes the optimiser first, and then the arguments of the
        factory.

    >>> from adamx.core import Rule
    >>> @adamx.gate(takes=["is_noisy"])
    ... def skip_noisy():
    ...     return Rule(
    ...         lambda signal, slots, step: (signal, slots),
    ...         gate=lambda clocks, step, extra: (~extra["is_noisy"], {}),
    ...     )
    >>> opt = skip_noisy(adamx.sgd(0.1))
    >>> state = opt.init(jnp.zeros(1))
    >>> opt.update(jnp.ones(1), state, is_noisy=jnp.array(True))[0]
    Array([0.], dtype=float32)
    """

    def decorate(factory: Callable[P, Rule]) -> Gate[P]:
        name = factory.__name__
        make = stage(reach="element", takes=takes, may_take=may_take)(factory)

        @functools.wraps(factory)
        def wrap(
            opt: optax.GradientTransformation | None = None, /, *args: P.args, **kwargs: P.kwargs
        ) -> Transformation:
            if opt is None:
                raise TypeError(
                    f"{name}() is put around an optimiser, its first argument: {name}(opt, …)"
                )
            inside = links_of(opt, name)
            (entering,) = make(*args, **kwargs).links
            assert isinstance(entering, Stage)
            entering.at(np.int32(0)).rule(jnp.float32)  # an error for bad arguments
            return Transformation(
                (entering.within(ENTER), *(link.within(INSIDE) for link in inside))
            )

        own = inspect.signature(factory, eval_str=False)
        first = inspect.Parameter(
            "opt", inspect.Parameter.POSITIONAL_ONLY, annotation="optax.GradientTransformation"
        )
        wrap.__signature__ = own.replace(  # pyright: ignore[reportAttributeAccessIssue]
            parameters=[first, *own.parameters.values()], return_annotation="Transformation"
        )
        wrap.definition = make.definition  # pyright: ignore[reportAttributeAccessIssue,reportFunctionMemberAccess]
        return wrap

    return decorate


def _unchanged(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
    return signal, slots


def _kept(start: Callable[[], Array]) -> Clock:
    """A clock that only the gate changes."""
    return Clock(start, lambda x: x, lambda x: x)


def _counter() -> Array:
    return jnp.zeros((), jnp.int32)


def _squares(signal: Signal, slots: Slots, step: Step) -> Squares:
    return Squares.of(signal.update)


@gate()
def skip_nonfinite(max_consecutive: int | None = 20):
    r"""Skip the steps whose gradient is not finite.

    In a step in which an element of the gradient is NaN or infinite, the update is zero, and all
    that the optimiser keeps stays as it is::

        opt = adamx.skip_nonfinite(adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(3e-4)))

    The gradients of all parameters of the gate decide together: with :func:`partition` around
    gates, those of each group. Schedules inside count the steps that were not skipped.

    The state has the clocks ``skipped`` (all skipped steps), ``consecutive`` (those since the last
    step that counted) and ``failed`` (whether there have ever been more than ``max_consecutive`` of
    these); :func:`metrics` reads them as ``skip_nonfinite/skipped`` and so on. Under ``jit``, where
    no error can be raised, check ``failed`` where you log.

    Args:
        max_consecutive: the largest number of steps that may be skipped in a row; None for no
            limit. Beyond it, ``update`` raises an error outside ``jit``; inside, it sets
            ``failed``, and goes on skipping.

    Equals optax.apply_if_finite up to the limit. Beyond it, apply_if_finite applies the gradient
    that is not finite.

    Raises:
        TypeError: if ``opt`` is no transformation.
        ValueError: for a limit that is no whole number ≥ 0.
        StageError: from ``update`` outside ``jit``, after too many skipped steps in a row.

    >>> opt = adamx.skip_nonfinite(adamx.sgd(0.1))
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (1.0, float("nan"), 2.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u)
    [-0.1]
    [0.]
    [-0.2]
    >>> adamx.metrics(state)
    {'skip_nonfinite/consecutive': 0, 'skip_nonfinite/failed': False, 'skip_nonfinite/skipped': 1}
    """
    if max_consecutive is not None:
        check_whole(0, max_consecutive=max_consecutive)
    most = jnp.iinfo(jnp.int32).max if max_consecutive is None else max_consecutive

    def decide(clocks: Any, step: Step, extra: Any) -> tuple[Any, dict[str, Any]]:
        is_finite = step.total.is_finite
        failed = clocks["failed"] | (~is_finite & (clocks[CONSECUTIVE] >= most))
        return is_finite, {"failed": failed}

    def alarm(clocks: Mapping[str, Any]) -> str | None:
        if clocks[CONSECUTIVE] <= most:
            return None
        return (
            f"the gradients of more than {most} steps in a row were not finite, so no step has "
            "been taken since; the parameters are those of the last finite gradient. Look for the "
            "cause (the learning rate, the loss, the data), or pass a larger max_consecutive"
        )

    return Rule(
        _unchanged,
        clocks={"failed": _kept(lambda: jnp.zeros((), bool))},
        global_sum=_squares,
        gate=decide,
        alarm=alarm,
    )


def _of_value(by: str, **rest: Any) -> Sequence[str]:
    return ("value",) if by == "value" else ()


@gate(takes=_of_value)
def skip_spikes(
    window: int = 128,
    sigma: Positive = 6.0,
    *,
    by: Literal["norm", "value"] = "norm",
    min_steps: int | None = None,
):
    r"""Skip the steps in which the gradient norm, or the loss, has a spike.

    .. math::
        x_t > \mu + k\, \sigma \quad \text{is a spike,}

    where x is the norm of the gradient over all parameters, or the loss, and μ and σ are mean and
    standard deviation (with n − 1) of its values in the last steps. In a step with a spike the
    update is zero, and all that the optimiser keeps stays as it is. So it is with an x that is not
    finite.

    A spike enters the history as the threshold, μ + kσ. So one spike does not widen σ by its whole
    size, and if x stays at a new level, the history reaches this level after some steps. An x that
    is not finite does not enter it.

    The state has the clocks ``skipped`` and ``consecutive``, as for :func:`skip_nonfinite`, and the
    ``history``.

    Args:
        window: the number of steps in the history, ≥ 2.
        sigma: k > 0, the number of standard deviations.
        by: ``"norm"``, or ``"value"`` for the loss, which ``update`` then takes by this name,
            ``opt.update(grads, state, params, value=loss)``. For both, put one gate into the
            other.
        min_steps: the number of steps in the history from which spikes are skipped; by default
            half of ``window``.

    Source: OLMo-core, SkipStepOptimizer (128 steps, 6σ, from 64 steps on), which records spikes
    with their own value.

    Raises:
        TypeError: if ``opt`` is no transformation.
        StageError: for a window, a number of steps or a ``by`` that is none; from ``update``,
            without ``value`` where it is needed.

    >>> opt = adamx.skip_spikes(adamx.sgd(0.1), window=8, by="value")
    >>> state = opt.init(jnp.zeros(1))
    >>> for loss in (1.0, 0.9, 1.1, 1.0, 50.0):
    ...     u, state = opt.update(jnp.ones(1), state, value=loss)
    >>> u
    Array([0.], dtype=float32)
    """
    check_whole(2, window=window)
    if by not in ("norm", "value"):
        raise StageError(f"by must be 'norm' or 'value', got {as_given(by)}")
    least = max(2, window // 2) if min_steps is None else min_steps
    check_whole(2, min_steps=least)
    if least > window:
        raise StageError(
            f"min_steps is {least}, and the history has only {window} steps; make window larger"
        )

    def decide(clocks: Any, step: Step, extra: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        history, seen = clocks["history"], clocks["seen"]
        x = _number(extra["value"]) if by == "value" else step.total.norm().value
        x = jax.lax.stop_gradient(x).astype(history.dtype)
        kept = jnp.arange(window) < seen
        count = jnp.maximum(jnp.minimum(seen, window), 2).astype(history.dtype)
        unit = jnp.maximum(jnp.max(jnp.abs(history)), jnp.finfo(history.dtype).tiny)
        scaled = history / unit  # of which squares don't overflow
        mean = jnp.sum(scaled, where=kept) / count
        spread = jnp.sqrt(jnp.sum((scaled - mean) ** 2, where=kept) / (count - 1))
        spread = jnp.maximum(spread, jnp.finfo(history.dtype).eps * jnp.abs(mean))
        is_finite, most = jnp.isfinite(x), (mean + jnp.multiply(sigma, spread)) * unit  # pyright: ignore[reportArgumentType]
        is_spike = (seen >= least) & ~(x <= most)
        row = jnp.where(is_spike, most, x)
        # Once the window is full, only the place in it counts.
        following = jnp.where(seen >= 2 * window, seen - window, seen) + 1
        recorded = jnp.where(jnp.arange(window) == seen % window, row, history)
        return is_finite & ~is_spike, {
            "history": jnp.where(is_finite, recorded, history),
            "seen": jnp.where(is_finite, following, seen),
        }

    history = _kept(lambda: jnp.zeros((window,), clock_dtype()))
    return Rule(
        _unchanged,
        clocks={"history": history, "seen": _kept(_counter)},
        global_sum=_squares if by == "norm" else None,
        gate=decide,
    )


@gate(may_take=["flush"])
def accumulate(steps: Positive = 1, *, average: bool = True):
    r"""Accumulate gradients over several steps, and let the optimiser run on their mean.

    .. math::
        s \leftarrow s + g_t, \qquad
        \text{in every k-th step: } g \leftarrow \frac{s}{k}, \quad s \leftarrow 0

    In the other steps the update is zero, and the optimiser inside does not run. Its slots and
    clocks are those of the large batch, and its schedules count the steps that it took. With
    losses that are means over micro-batches of equal size, it equals a step on one batch of all of
    them, up to rounding. For unequal sizes, divide the sum of each micro-batch by the size of the
    whole batch, and pass ``average=False``. The clock ``skipped`` counts the steps in which the
    optimiser did not run: it has taken ``state["count"] - state["accumulate"]["skipped"]`` steps.

    A last, incomplete batch is completed by ``flush``: ``opt.update(grads, state, params,
    flush=True)`` makes a step from the mean of the gradients so far, including this one.
    ``flush`` may be a Python bool or an array. Different groups may accumulate over different
    numbers of steps::

        opt = adamx.partition({
            "embedding": adamx.accumulate(adamx.adamw(1e-3), 2), "*": adamx.adamw(1e-3)
        })

    Keeps ``sum`` (s), shaped like the parameter, in at least float32; it is never quantized. A
    parameter without a gradient in a step adds nothing; without one in the k-th step it takes no
    step, and its sum enters the next batch.

    Args:
        steps: k ≥ 1, the number of steps; a schedule is read at the number of steps that the
            optimiser has taken. A fraction is rounded up.
        average: whether to take the mean; if False, the sum.

    Equals optax.MultiSteps, which runs the optimiser in every step, and keeps the result of the
    k-th ones.

    Raises:
        TypeError: if ``opt`` is no transformation.

    >>> opt = adamx.accumulate(adamx.sgd(1.0), 2)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (1.0, 3.0, 5.0):
    ...     u, state = opt.update(jnp.array([g]), state)
    ...     print(u)
    [0.]
    [-2.]
    [0.]
    >>> opt.update(jnp.array([7.0]), state, flush=True)[0]
    Array([-6.], dtype=float32)
    """

    def decide(clocks: Any, step: Step, extra: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        done = clocks[CONSECUTIVE] + 1
        is_complete = done.astype(clock_dtype()) >= steps
        return is_complete | _truth("flush", extra.get("flush", False)), {"done": done}

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        # Shares of the mean, so that a sum of large gradients does not overflow.
        count = jnp.maximum(steps, 1)  # pyright: ignore[reportArgumentType]
        summed = slots["sum"] + (signal.update / count if average else signal.update)
        done = step.clock["done"].astype(jnp.finfo(summed.dtype).dtype)
        whole = summed * (count / done) if average else summed
        is_complete = step.clock[CONSECUTIVE] == 0
        return signal.with_update(whole), {"sum": jnp.where(is_complete, 0, summed)}

    return Rule(update, slots={"sum": Slot(zeros, holds="exact")}, gate=decide, idles=True)


class LossScale(NamedTuple):
    """A factor by which a loss is multiplied, so that its gradients are float16 numbers.

    Attributes:
        value: the factor.
    """

    value: Array

    def scale(self, loss: PyTree) -> PyTree:
        """The loss (or a tree of losses) times the factor, in its dtype."""
        return jax.tree.map(lambda x: x * self.value.astype(jnp.result_type(x)), loss)

    def unscale(self, grads: PyTree) -> PyTree:
        """Gradients (or losses) divided by the factor, in their dtypes."""

        def divided(x: Any) -> Any:
            wide = wider(jnp.result_type(x), jnp.float32)
            return (jnp.asarray(x, wide) / self.value.astype(wide)).astype(jnp.result_type(x))

        return jax.tree.map(divided, grads)


@gate()
def loss_scale(
    initial: float = 2.0**15, *, period: int = 2000, factor: float = 2.0, minimum: float = 1.0
):
    r"""Unscale the gradients of a scaled loss, skip those that overflow, and adapt the scale.

    Gradients in float16 are 0 below 6 · 10⁻⁸. So the loss is multiplied by a scale S, and the
    gradients are divided by it, in float32. If a gradient is not finite, S was too large: the step
    is skipped and S becomes S / f. After ``period`` finite steps in a row, S becomes S · f.
    :func:`get_loss_scale` reads the scale from the state::

        opt = adamx.loss_scale(adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(3e-4)))

        @jax.jit
        def train_step(params, state, batch):
            scale = adamx.get_loss_scale(state)
            grads = jax.grad(lambda p: scale.scale(loss_fn(p, batch)))(params)
            updates, state = opt.update(grads, state, params)
            return adamx.apply_updates(params, updates), state

    Put it outside of all stages that depend on the size of the gradient, such as clipping. What it
    keeps in a skipped step, and its counts, are as for :func:`skip_nonfinite`. bfloat16 needs no
    such scale, as it has the range of float32.

    Args:
        initial: the first S > 0; a power of two changes no digits.
        period: the number of finite steps in a row after which S grows.
        factor: f > 1.
        minimum: the least S.

    Equals jmp.DynamicLossScale with ``jmp.all_finite``.

    Source: Micikevicius et al. 2018 (arXiv 1710.03740), Section 3.2; the numbers are those of jmp.

    Raises:
        TypeError: if ``opt`` is no transformation.
        StageError: for numbers out of their range.

    >>> opt = adamx.loss_scale(adamx.sgd(0.1), initial=4.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> scale = adamx.get_loss_scale(state)
    >>> grads = jax.grad(lambda x: scale.scale(3 * x[0]))(jnp.zeros(1))
    >>> updates, state = opt.update(grads, state)
    >>> grads, updates
    (Array([12.], dtype=float32), Array([-0.3], dtype=float32))
    >>> _, state = opt.update(grads * jnp.inf, state)
    >>> adamx.get_loss_scale(state).value
    Array(2., dtype=float32)
    """
    check_whole(period=period)
    for name, x, least in (("initial", initial, 0), ("factor", factor, 1), ("minimum", minimum, 0)):
        is_number = isinstance(x, (int, float)) and not isinstance(x, bool)
        if not is_number or not least < x <= _LARGEST:
            raise StageError(
                f"{name} must be a number > {least} that float32 can hold, got {as_given(x)}"
            )
    if initial < minimum:
        raise StageError(f"initial is {initial}, which is less than minimum, {minimum}")

    def decide(clocks: Any, step: Step, extra: Any) -> tuple[Any, dict[str, Any]]:
        is_finite, scale = step.total.is_finite, clocks["scale"]
        good = jnp.where(is_finite, clocks["finite_steps"] + 1, 0)
        grown = jnp.where(jnp.isfinite(scale * factor), scale * factor, scale)
        grown = jnp.where(good >= period, grown, scale)
        return is_finite, {
            "scale": jnp.where(is_finite, grown, jnp.maximum(scale / factor, minimum)),
            "finite_steps": jnp.where(good >= period, 0, good),
            "current": scale,
        }

    def update(signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        return signal.with_update(signal.update * (1 / step.clock["current"])), slots

    scale = _kept(lambda: jnp.asarray(initial, clock_dtype()))
    clocks = {"scale": scale, "finite_steps": _kept(_counter)}
    return Rule(update, clocks=clocks, global_sum=_squares, gate=decide)


def get_loss_scale(state: PyTree) -> LossScale:
    """The scale of the loss for the next step, from the state of a chain with :func:`loss_scale`.

    Args:
        state: the state, or an object that contains one: the state of an ``optax.chain``, a Flax
            ``TrainState``, an ``nnx.Optimizer``.

    Raises:
        ValueError: if the state has no such gate, or several.

    >>> adamx.get_loss_scale(adamx.loss_scale(adamx.sgd(0.1)).init(jnp.zeros(1))).value
    Array(32768., dtype=float32)
    """
    kinds = {"loss_scale": ("scale", "finite_steps")}
    scales = [kept.entry["scale"] for _, kept in stages_of_kinds(state, kinds).values()]
    if len(scales) != 1:
        raise ValueError(
            f"the state holds {len(scales) or 'no'} gates 'loss_scale', where one is needed; wrap "
            "the whole optimiser: adamx.loss_scale(opt)"
        )
    return LossScale(scales[0])


_LARGEST = float(np.finfo(np.float32).max)


def _number(value: Any) -> Array:
    """The loss; a value that is no number is refused."""
    if np.shape(value) or np.result_type(_dtype(value)).kind not in "fiuV":  # V: bfloat16
        raise StageError(
            f"value must be one real number, the loss of this step, got {described(value)}"
        )
    return jnp.asarray(value)


def _truth(name: str, value: Any) -> Array:
    if np.shape(value) or np.result_type(_dtype(value)).kind not in "biu":
        raise StageError(f"{name} must be True or False, got {described(value)}")
    return jnp.asarray(value).astype(bool)


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
