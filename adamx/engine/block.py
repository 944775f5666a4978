"""A block: consecutive stages as one function of one array."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments import hyper
from adamx.engine.kept import chosen, kept_unless, still, without_slope
from adamx.errors import StageError, described
from adamx.identity import Static
from adamx.links.rule import Clock, Reach, Refresh, Rule, Step, keep, widest
from adamx.links.signal import Signal
from adamx.links.slots import Slot, Slots
from adamx.links.stage import Stage
from adamx.numerics import random
from adamx.numerics.shards import divided, number_of_shard, refusal
from adamx.trees.arrays import kind, kinds

__all__ = [
    "Block",
    "Ends",
    "Entering",
    "Locate",
    "Passed",
    "Ready",
    "Summand",
    "advance",
    "errors_of",
    "fixed",
    "of_parameter",
    "phase_of",
    "promotion",
    "refresh_of",
    "reshaped",
    "through",
]


class Ready(NamedTuple):
    """A stage whose clocks have ticked."""

    name: str
    stage: Stage
    step: Step
    rule: Rule
    """The rule in the precision of clocks."""


Ends = Literal["signal", "update", "param", "sums"]
"""What a block returns beside the new slots: the signal for links behind it; the update, which
leaves the chain; or the parameter after the update has been added to it. Or it returns, without new
slots, the terms of one array in the sum over all parameters that its only stage needs."""


Summand = Callable[[Signal, Any, Any], Any]
"""``(signal, gradient, param)``: one array's terms of an observer's sums over all parameters."""


class Passed(NamedTuple):
    """What a block returns for one parameter."""

    left: Any
    slots: list[Slots]
    terms: tuple[Any, ...]
    """For each summand, its terms."""


class Block(NamedTuple):
    """Consecutive stages, as one function of one array."""

    ready: tuple[Ready, ...]
    stages: Static
    names: tuple[str, ...]
    ends: Ends
    numbers: list[Any]
    steps: list[Step]
    reach: Reach
    """The widest reach of its stages."""
    numbered: bool
    """Whether a clock's reading depends on the parameter's number, as random bits do."""
    refreshes: bool
    """Whether a stage has a costly computation of some steps."""
    summands: tuple[Summand, ...]
    """What observers behind its last stage sum."""
    counts: Any
    """Whether anything leaves it in this step; None if it does in every step."""

    @classmethod
    def of(
        cls,
        ready: Sequence[Ready],
        *,
        ends: Ends,
        summands: tuple[Summand, ...] = (),
        counts: Any = None,
    ) -> Block:
        """The block of these stages."""
        static, numbers = Static.split([x.stage for x in ready])
        return cls(
            tuple(ready),
            static,
            tuple(x.name for x in ready),
            ends,
            numbers,
            [x.step for x in ready],
            widest(x.rule.reach for x in ready),
            any(clock.of_parameter for x in ready for clock in x.rule.clocks.values()),
            any(x.rule.refresh is not None for x in ready),
            summands,
            counts,
        )

    def divided(self) -> list[Block]:
        """Blocks of the stages that stack arrays or refresh, and of the others between them."""

        def kind_of(x: Ready) -> Any:
            return x.stage.definition.stacks, None if x.rule.refresh is None else id(x)

        rows = [tuple(row) for _, row in itertools.groupby(self.ready, kind_of)]
        if len(rows) == 1:
            return [self]
        *inner, last = rows
        of_inner = [Block.of(x, ends="signal") for x in inner]
        says = {"ends": self.ends, "summands": self.summands, "counts": self.counts}
        return [*of_inner, Block.of(last, **says)]

    @property
    def packs(self) -> bool:
        """Whether a wrapper packs slots of its stages between steps."""
        return any(around.packs for x in self.ready for around in x.stage.around)

    @property
    def stacks(self) -> bool:
        """Whether its stages stack arrays of equal shape."""
        return any(x.stage.definition.stacks for x in self.ready)


class Entering(NamedTuple):
    """A block's input for one parameter: signal, or gradient and parameter; and, for each stage,
    its slots and the parameter's own numbers.

    Inside ``shard_map``, the arrays may be one of the shards into which the parameter is divided.
    """

    number: int
    signal: Any
    slots: list[Slots]
    own: list[Any]
    shards: tuple[str, ...] = ()
    """The mesh axes along which it is divided."""
    refreshed: tuple[Any, ...] = ()
    """For each stage, the results of its refresh; empty if they are not known yet."""
    given: tuple[Any, ...] = ()
    """The gradient that ``update`` was called with and the parameter, if a summand needs them and
    the signal is another one."""


Locate = Callable[..., Any]
"""``(index, function, *args)``: calls the function, and adds the parameter's path to errors."""


def fixed(block: Block, leaf: Entering) -> tuple[Any, ...]:
    """The arguments of :func:`through` that are the same for all arrays of this kind."""
    static = block.stages, block.names, block.ends, leaf.shards, block.summands
    return *static, block.numbers, block.steps, block.counts


def through(
    static: Static,
    names: tuple[str, ...],
    ends: Ends,
    shards: tuple[str, ...],
    summands: tuple[Summand, ...],
    numbers: list[Any],
    steps: list[Step],
    counts: Any,
    signal: Any,
    slots: list[Slots],
    own: list[Any],
    given: tuple[Any, ...],
    refreshed: tuple[Any, ...],
    index: Any,
) -> Passed:
    """Run stages on one array; ``index`` is its number, or None if no reading depends on it."""
    if not isinstance(signal, Signal):
        given = given or signal
        signal = Signal.enter(*signal)
    if ends == "sums":
        (stage,), step = static.join(numbers), steps[0]._replace(own=own[0])
        return Passed(_sums(stage, names[0], step, signal, slots[0], shards), [], ())
    done = []
    with promotion(signal.update), divided(shards):
        for name, stage, step, before, numbers_of, known in zip(
            *(names, static.join(numbers), steps, slots, own),
            refreshed or [None] * len(names),
            strict=True,
        ):
            rule, step = _at_precision(stage, step._replace(own=numbers_of), signal)
            if index is not None:
                step = of_parameter(rule, step, index, name, shards)
            step = step._replace(refreshed=known)
            shape = signal.update.shape
            shape = rule.reshape(shape, signal.whole) if rule.reshape else shape
            with errors_of(name, "update", functools.partial(_arrays, signal, before)):
                if shards and rule.reach in ("row", "array"):
                    raise StageError(f"its reach is a whole {rule.reach}, {refusal(shards)}")
                update = rule.update
                if step.counts is not None:
                    update = functools.partial(kept_unless, step.counts, rule.update)
                made, after = update(_seen(signal, rule), before, step)
                signal = _checked(made, shape, signal.update.dtype)
                done.append(keep(before, after))
        with divided(shards, sums_later=True):
            terms = tuple(summand(signal, *given) for summand in summands)
        match ends:
            case "signal":
                left, old = signal, None
            case "update":
                left, old = signal.output, None
            case "param":
                left, old = signal.new_param, signal.param.astype(signal.param_dtype)
        if counts is not None:
            left = chosen(counts, left, still(left, old))
        return Passed(left, done, terms)


advance = jax.jit(through, static_argnums=(0, 1, 2, 3, 4))


def _sums(
    stage: Stage, name: str, step: Step, signal: Signal, slots: Slots, shards: tuple[str, ...]
) -> Any:
    """One array's terms in a stage's sum over all parameters."""
    signal, slots = without_slope(step.counts, (signal, slots))
    rule, step = _at_precision(stage, step, signal)
    assert rule.global_sum is not None
    errors = errors_of(name, "global_sum", lambda: f"its gradient is {kind(signal.gradient)}")
    with errors, promotion(signal.update), divided(shards, sums_later=True):
        numbers = rule.global_sum(_seen(signal, rule), slots, step)
        if any(jnp.ndim(x) for x in jax.tree.leaves(numbers)):
            raise StageError(
                f"its global_sum gave {kinds(numbers)} for an array {kind(signal.update)}; it must "
                "return numbers, which are summed over all parameters"
            )
        return numbers


def refresh_of(block: Block, leaf: Entering) -> tuple[Refresh, Step, Any]:
    """The refresh of a block of one stage for an array, its step, and what it is computed from."""
    (ready,), (slots,), (own,) = block.ready, leaf.slots, leaf.own
    signal = leaf.signal if isinstance(leaf.signal, Signal) else Signal.enter(*leaf.signal)
    rule, step = _at_precision(ready.stage, ready.step._replace(own=own), signal)
    step = of_parameter(rule, step, np.uint32(leaf.number), ready.name, leaf.shards)
    assert rule.refresh is not None
    errors = errors_of(ready.name, "refresh", functools.partial(_arrays, signal, slots))
    with errors, promotion(signal.update), divided(leaf.shards):
        return rule.refresh, step, rule.refresh.given(_seen(signal, rule), slots, step)


def phase_of(rule: Rule, number: int) -> int:
    """A number that is equal for parameters of which the refresh is due in the same steps."""
    assert rule.refresh is not None
    if rule.own is not None:
        return number
    if rule.refresh.phase is not None:
        return rule.refresh.phase(number)
    return number if any(clock.of_parameter for clock in rule.clocks.values()) else 0


@contextlib.contextmanager
def errors_of(name: str, function: str, given: Callable[[], str]) -> Iterator[None]:
    """Name a stage and its function in the errors of the function, and say what it was given."""
    try:
        yield
    except StageError as error:
        raise error.within(stage=name) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StageError(
            f"its {function} raised {type(error).__name__}: {error} ({given()})"
        ).within(stage=name) from error


def _arrays(signal: Signal, slots: Slots) -> str:
    kept = ", ".join(f"{slot} {kinds(array)}" for slot, array in slots.items())
    return f"its gradient is {kind(signal.gradient)}, its slots are {kept or 'none'}"


def of_parameter(rule: Rule, step: Step, index: Any, name: str, shards: tuple[str, ...]) -> Step:
    """The step with the clocks' readings for one parameter, or one of its shards."""
    readings = {
        k: _of_shard(clock.of_parameter(step.clock[k], index, name), clock, shards)
        for k, clock in rule.clocks.items()
        if clock.of_parameter
    }
    return step._replace(clock={**step.clock, **readings})


def _of_shard(reading: Any, clock: Clock, shards: tuple[str, ...]) -> Any:
    """The reading of a parameter's clock for one of its shards: another key for each of them."""
    if not shards or clock.of_parameter is not random.of_parameter:
        return reading
    return random.of_parameter(reading, number_of_shard(shards), "shard")


def _at_precision(stage: Stage, step: Step, signal: Signal) -> tuple[Rule, Step]:
    """The rule and the step's scalars in the precision of one array."""
    dtype = jnp.finfo(signal.update.dtype).dtype
    return stage.rule(dtype), hyper.cast(step, dtype)


def _seen(signal: Signal, rule: Rule) -> Signal:
    """The signal for a rule: limited, so that squares are finite, if it computes statistics.

    Other slots hold parameters, their averages and rounding errors, and no statistics.
    """
    takes_statistics = any(Slot.of(slot).is_statistic for slot in rule.slots.values())
    return signal.limited() if takes_statistics else signal


def _checked(signal: Any, shape: tuple[int, ...], dtype: Any) -> Signal:
    """The signal that a stage has made, with arrays of this shape and dtype."""
    if not isinstance(signal, Signal):
        raise StageError(
            f"it returned {described(signal)}, which is no signal; return signal.with_update(…)"
        )
    arrays = {"gradient": signal.gradient, "update": signal.update}
    for name, array in arrays.items():
        if jnp.shape(array) != shape:
            raise reshaped(shape, jnp.shape(array))
        if jnp.iscomplexobj(array) and not jnp.issubdtype(dtype, jnp.complexfloating):
            raise StageError(
                f"it turned a real {name} into a complex one, {kind(array)}; take its real part"
            )
    if all(isinstance(x, jax.Array) and x.dtype == dtype for x in arrays.values()):
        return signal
    return dataclasses.replace(signal, **{k: jnp.asarray(x, dtype) for k, x in arrays.items()})


def promotion(tree: Any) -> Any:
    """Allow products of real and complex arrays: norms of complex arrays are real."""
    if any(map(jnp.iscomplexobj, jax.tree.leaves(tree))):
        return jax.numpy_dtype_promotion("standard")
    return contextlib.nullcontext()


def reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> StageError:
    """The error for a stage that changed the shape of the gradient or of the update."""
    return StageError(
        f"it turned an array of shape {before} into one of {after}; a stage must return a gradient "
        "and an update of the shape that it got"
    )
