"""Run a block of stages on arrays; the only place that decides how.

A block composes consecutive stages into one function of one array. :func:`run` gets a block and the
arrays, and chooses a policy by the block's reach and by the backend. Stages, recipes and axes do
not depend on the policy: all policies return the results of :func:`each`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments import hyper
from adamx.errors import StageError, described
from adamx.identity import Static
from adamx.links.rule import Clock, Reach, Rule, Step, keep, widest
from adamx.links.signal import Signal
from adamx.links.slots import Slot, Slots
from adamx.links.stage import Stage
from adamx.numerics import random
from adamx.numerics.arithmetic import sum_of_numbers
from adamx.numerics.meshes import (
    divided_along,
    free_axes,
    gathered,
    on_shares,
    parts_along,
    platform,
    whole,
)
from adamx.numerics.shards import divided, number_of_shard, over_shards, refusal
from adamx.trees.arrays import kind, kinds

__all__ = ["Block", "Entering", "Ready", "global_sum", "reshaped", "run"]


class Ready(NamedTuple):
    """A stage whose clocks have ticked."""

    name: str
    stage: Stage
    step: Step
    rule: Rule
    """The rule in the precision of clocks."""


class Block(NamedTuple):
    """Consecutive stages, as one function of one array."""

    ready: tuple[Ready, ...]
    stages: Static
    names: tuple[str, ...]
    is_last: bool
    numbers: list[Any]
    steps: list[Step]
    reach: Reach
    """The widest reach of its stages."""
    numbered: bool
    """Whether a clock's reading depends on the parameter's number, as random bits do."""
    refreshes: bool
    """Whether a stage has a costly computation of some steps."""

    @classmethod
    def of(cls, ready: Sequence[Ready], *, is_last: bool) -> Block:
        """The block of these stages; if it is the last one, it returns updates, not signals."""
        static, numbers = Static.split([x.stage for x in ready])
        return cls(
            tuple(ready),
            static,
            tuple(x.name for x in ready),
            is_last,
            numbers,
            [x.step for x in ready],
            widest(x.rule.reach for x in ready),
            any(clock.of_parameter for x in ready for clock in x.rule.clocks.values()),
            any(x.rule.refresh is not None for x in ready),
        )

    def divided(self) -> list[Block]:
        """Blocks of the stages that stack arrays or refresh, and of the others between them."""

        def kind_of(x: Ready) -> Any:
            return x.stage.definition.stacks, None if x.rule.refresh is None else id(x)

        rows = [tuple(row) for _, row in itertools.groupby(self.ready, kind_of)]
        if len(rows) == 1:
            return [self]
        return [Block.of(x, is_last=self.is_last and x is rows[-1]) for x in rows]

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


Locate = Callable[..., Any]
"""``(index, function, *args)``: calls the function, and adds the parameter's path to errors."""


def run(block: Block, leaves: Sequence[Entering], locate: Locate) -> list[tuple[Any, list[Slots]]]:
    """Run the block on each array; for each, its output and the new slots of its stages."""
    axes = free_axes() if block.stacks or block.refreshes else ()
    if not axes and not (block.stacks and len(leaves) > 1 and stacking_pays()):
        return each(block, leaves, locate)
    signals: list[Any] = [leaf.signal for leaf in leaves]
    done: list[list[Slots]] = [[] for _ in leaves]
    for part in block.divided():
        these = slice(len(done[0]), len(done[0]) + len(part.ready))
        entering = [
            leaf._replace(signal=signal, slots=leaf.slots[these], own=leaf.own[these])
            for leaf, signal in zip(leaves, signals, strict=True)
        ]
        if part.refreshes and axes:
            entering = refreshed(part, entering, locate, axes)
        if part.stacks:
            found = stacked(part, entering, locate, axes)
        else:
            found = each(part, entering, locate)
        for i, (signal, slots) in enumerate(found):
            signals[i] = signal
            done[i] += slots
    return list(zip(signals, done, strict=True))


def each(block: Block, leaves: Sequence[Entering], locate: Locate) -> list[tuple[Any, list[Slots]]]:
    """One array at a time; arrays of one shape and dtype share one trace."""
    takes_turns = block.packs and platform() != "cpu"
    done: list[tuple[Any, list[Slots]]] = []
    for leaf in leaves:
        if takes_turns and done:
            leaf = _after(leaf, done[-1][1])
        made = locate(
            leaf.number,
            *(_advance, *_fixed(block, leaf), leaf.signal, leaf.slots, leaf.own, leaf.refreshed),
            np.uint32(leaf.number) if block.numbered else None,
        )
        done.append(made)
    return done


def _after(leaf: Entering, before: list[Slots]) -> Entering:
    """An input that is available when another array's new slots are.

    Accelerators would decode the slots of many arrays at a time, and need memory for all of them.
    """
    given = leaf.signal, leaf.slots
    (signal, slots), _ = jax.lax.optimization_barrier((given, before))
    return leaf._replace(signal=signal, slots=slots)


def stacking_pays() -> bool:
    """Whether one product of a stack is faster than a product for each of its matrices.

    It is on accelerators. XLA compiles a stack more slowly, and on CPU it multiplies matrices of
    128 × 128 and more faster one by one (``examples/benchmarks/stacks.py``).
    """
    return platform() != "cpu"


_MOST = 2**24
"""Elements of a stack: more of them fill any device, and would need memory for copies."""


def stacked(
    block: Block, leaves: Sequence[Entering], locate: Locate, axes: tuple[str, ...] = ()
) -> list[tuple[Any, list[Slots]]]:
    """Arrays of one shape, dtype and kind in stacks.

    On a mesh with these axes, a stack is divided along them: each device runs the block on its
    share of whole arrays, and the results are gathered.
    """
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        arrays, tree = jax.tree.flatten((leaf.signal, leaf.slots, leaf.own, leaf.refreshed))
        alike.setdefault((tree, tuple(map(kind, arrays)), leaf.shards), []).append(i)
    done: list[Any] = [None] * len(leaves)
    most = _MOST * parts_along(axes)
    signals = [leaf.signal for leaf in leaves]
    for places in itertools.chain.from_iterable(_stacks(x, signals, most) for x in alike.values()):
        some, along = [leaves[i] for i in places], _filling(axes, len(places))
        if len(some) == 1 or not (along or stacking_pays()):
            made = each(block, some, locate)
        else:
            made = locate(some[0].number, _on_stack, block, some, along)
        for i, of_one in zip(places, made, strict=True):
            done[i] = of_one
    return done


def _filling(axes: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Those of the axes along which a stack of this length is divided without idle devices."""
    chosen: tuple[str, ...] = ()
    for axis in axes:
        if parts_along((*chosen, axis)) <= count:
            chosen = (*chosen, axis)
    return chosen


def _on_stack(block: Block, some: Sequence[Entering], axes: tuple[str, ...]) -> list[Any]:
    """The results of a block for arrays of one kind, computed on their stack.

    What a stage only hands on does not pass through the stack.
    """
    entering = [(x.signal, x.slots, x.own, x.refreshed) for x in some]
    handed: list[int | None] = []
    tree: Any = None

    def of_one(given: Any, number: Any) -> list[Any]:
        nonlocal handed, tree
        body = functools.partial(_through, *_fixed(block, some[0]))
        made, tree = jax.tree.flatten(body(*given, number))
        before = {id(x): i for i, x in enumerate(jax.tree.leaves(given))}
        handed = [before.get(id(x)) for x in made]
        return [x for x, place in zip(made, handed, strict=True) if place is None]

    numbers = np.asarray([x.number for x in some], np.uint32) if block.numbered else None
    stack = jax.tree.map(lambda *x: jnp.stack(x), *entering)
    count = len(some)
    short = -count % parts_along(axes)
    if axes:
        stack, numbers = jax.tree.map(lambda x: _filled(x, short), (stack, numbers))
        # In two steps: dividing the stack while it is made would exchange parts of each array.
        stack = jax.tree.map(lambda x: divided_along(gathered(x), axes), stack)
    made = jax.vmap(of_one, axis_size=count + short)(stack, numbers)
    if axes:
        made = jax.tree.map(gathered, made)
    results = []
    for k in range(count):
        own, new = jax.tree.leaves(entering[k]), iter([x[k] for x in made])
        results.append(tree.unflatten(next(new) if i is None else own[i] for i in handed))
    return results


def _filled(x: Any, short: int) -> Any:
    """A stack with ``short`` more copies of its last array."""
    return jnp.concatenate([x, *[x[-1:]] * short]) if short else x


def _stacks(places: list[int], trees: Sequence[Any], most: int) -> list[list[int]]:
    """The places of equal trees of arrays, divided so that no stack is too large."""
    count = max(1, most // max(1, *(np.size(x) for x in jax.tree.leaves(trees[places[0]]))))
    return [places[i : i + count] for i in range(0, len(places), count)]


def _fixed(block: Block, leaf: Entering) -> tuple[Any, ...]:
    """The arguments of :func:`_through` that are the same for all arrays of this kind."""
    return block.stages, block.names, block.is_last, leaf.shards, block.numbers, block.steps


def _through(
    static: Static,
    names: tuple[str, ...],
    is_last: bool,
    shards: tuple[str, ...],
    numbers: list[Any],
    steps: list[Step],
    signal: Any,
    slots: list[Slots],
    own: list[Any],
    refreshed: tuple[Any, ...],
    index: Any,
) -> tuple[Any, list[Slots]]:
    """Run stages on one array; ``index`` is its number, or None if no stage uses it."""
    if not isinstance(signal, Signal):
        signal = Signal.enter(*signal)
    done = []
    with _promotion(signal), divided(shards):
        for name, stage, step, before, numbers_of, known in zip(
            *(names, static.join(numbers), steps, slots, own),
            refreshed or [None] * len(names),
            strict=True,
        ):
            rule, step = _at_precision(stage, step._replace(own=numbers_of), signal)
            step = _of_parameter(rule, step, index, name, shards)._replace(refreshed=known)
            shape = signal.update.shape
            shape = rule.reshape(shape, signal.whole) if rule.reshape else shape
            try:
                if shards and rule.reach in ("row", "array"):
                    raise StageError(f"its reach is a whole {rule.reach}, {refusal(shards)}")
                made, after = rule.update(_seen(signal, rule), before, step)
                signal = _checked(made, shape, signal.update.dtype)
                done.append(keep(before, after))
            except StageError as error:
                raise error.within(stage=name) from None
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                kept = ", ".join(f"{slot} {kinds(array)}" for slot, array in before.items())
                raise StageError(
                    f"its update raised {type(error).__name__}: {error} (its gradient is "
                    f"{kind(signal.gradient)}, its slots are {kept or 'none'})"
                ).within(stage=name) from error
        return signal.output if is_last else signal, done


_advance = jax.jit(_through, static_argnums=(0, 1, 2, 3))


def global_sum(leaves: Sequence[tuple[Ready, Entering]], locate: Locate) -> Any:
    """A stage's sum over all parameters, in the precision of clocks.

    Shards are summed after the parameters, in one collective for each set of mesh axes.
    """
    of_each: dict[tuple[str, ...], list[Any]] = {}
    for ready, leaf in leaves:
        static, numbers = Static.split(ready.stage)
        step = ready.step._replace(own=leaf.own[0])
        numbers_of = locate(
            *(leaf.number, _summand, static, ready.name, leaf.shards, numbers),
            *(step, leaf.signal, leaf.slots[0]),
        )
        wide = hyper.cast(numbers_of, hyper.clock_dtype())
        of_each.setdefault(leaf.shards, []).append(wide)
    parts = [over_shards(_sum(terms), shards) for shards, terms in of_each.items()]
    return parts[0] if len(parts) == 1 else _sum(parts)


def _sum(terms: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: sum_of_numbers(x), *terms or [None])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _summand(
    static: Static,
    name: str,
    shards: tuple[str, ...],
    numbers: list[Any],
    step: Step,
    signal: Signal,
    slots: Slots,
) -> Any:
    """One array's term in a stage's sum over all parameters."""
    rule, step = _at_precision(static.join(numbers), step, signal)
    assert rule.global_sum is not None
    try:
        with _promotion(signal), divided(shards, sums_later=True):
            numbers = rule.global_sum(_seen(signal, rule), slots, step)
        if any(jnp.ndim(x) for x in jax.tree.leaves(numbers)):
            raise StageError(
                f"its global_sum gave {kinds(numbers)} for an array {kind(signal.update)}; it must "
                "return numbers, which are summed over all parameters"
            )
        return numbers
    except StageError as error:
        raise error.within(stage=name) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StageError(
            f"its global_sum raised {type(error).__name__}: {error} (its gradient is "
            f"{kind(signal.gradient)})"
        ).within(stage=name) from error


def refreshed(
    block: Block, leaves: Sequence[Entering], locate: Locate, axes: tuple[str, ...]
) -> list[Entering]:
    """The leaves of a block of one stage, with the results of its refresh.

    Arrays of one kind that are due in the same steps are computed as one stack, of which each
    device gets a share.
    """
    (ready,) = block.ready
    assert ready.rule.refresh is not None
    given = [
        locate(
            *(leaf.number, _given, block.stages, ready.name, leaf.shards, block.numbers),
            *(ready.step, leaf.signal, leaf.slots[0], leaf.own[0], np.uint32(leaf.number)),
        )
        for leaf in leaves
    ]
    alike: dict[Any, list[int]] = {}
    for i, (leaf, arrays) in enumerate(zip(leaves, given, strict=True)):
        own, tree = jax.tree.flatten(arrays)
        if own:
            phase = _phase(ready.rule, leaf.number)
            alike.setdefault((tree, tuple(map(kind, own)), leaf.shards, phase), []).append(i)
    found, most = list(leaves), _MOST * parts_along(axes)
    for places in itertools.chain.from_iterable(_stacks(x, given, most) for x in alike.values()):
        first = leaves[places[0]]
        signal = first.signal if isinstance(first.signal, Signal) else Signal.enter(*first.signal)
        rule, step = _at_precision(ready.stage, ready.step, signal)
        step = _of_parameter(rule, step, np.uint32(first.number), ready.name, first.shards)
        refresh = rule.refresh
        assert refresh is not None
        with _promotion(signal):
            results = jax.lax.cond(
                refresh.due(step),
                functools.partial(shared, refresh.compute, step=step, axes=axes),
                lambda arrays, refresh=refresh: [refresh.otherwise(x) for x in arrays],
                [given[i] for i in places],
            )
        for i, of_one in zip(places, results, strict=True):
            found[i] = leaves[i]._replace(refreshed=(of_one,))
    return found


def _phase(rule: Rule, number: int) -> int:
    """A number that is equal for parameters of which the refresh is due in the same steps."""
    assert rule.refresh is not None
    if rule.refresh.phase is not None:
        return rule.refresh.phase(number)
    return number if any(clock.of_parameter for clock in rule.clocks.values()) else 0


def shared(
    compute: Callable[[Any, Any], Any], arrays: Sequence[Any], step: Any, axes: tuple[str, ...]
) -> list[Any]:
    """A function of each of some trees of matrices, of which each device computes a share.

    Args:
        compute: ``(tree, step) -> tree``, for matrices with any number of leading axes.
        arrays: trees of one kind, whose matrices have the same leading axes.
        step: what all of them share.
        axes: the axes of the mesh.
    """
    lead = jax.tree.leaves(arrays[0])[0].shape[:-2]
    each, count = math.prod(lead), math.prod(lead) * len(arrays)
    along = _filling(axes, count)
    short = -count % parts_along(along)

    def stack(*x: Any) -> Any:
        rows = _filled(jnp.concatenate([y.reshape(each, *y.shape[-2:]) for y in x]), short)
        return divided_along(gathered(rows), along) if along else whole(rows)

    stacked = jax.tree.map(stack, *arrays)
    made = jax.tree.map(gathered, on_shares(compute, stacked, step, along))
    return [
        jax.tree.map(lambda x, k=k: x[k * each : (k + 1) * each].reshape(*lead, *x.shape[1:]), made)
        for k in range(len(arrays))
    ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _given(
    static: Static,
    name: str,
    shards: tuple[str, ...],
    numbers: list[Any],
    step: Step,
    signal: Any,
    slots: Slots,
    own: Any,
    index: Any,
) -> Any:
    """What one array gives to the refresh of a stage."""
    if not isinstance(signal, Signal):
        signal = Signal.enter(*signal)
    (stage,) = static.join(numbers)
    rule, step = _at_precision(stage, step._replace(own=own), signal)
    assert rule.refresh is not None
    with _promotion(signal), divided(shards):
        step = _of_parameter(rule, step, index, name, shards)
        return rule.refresh.given(_seen(signal, rule), slots, step)


def _of_parameter(rule: Rule, step: Step, index: Any, name: str, shards: tuple[str, ...]) -> Step:
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

    Exact slots hold parameters and their rounding errors, and no statistics.
    """
    takes_statistics = any(Slot.of(slot).holds != "exact" for slot in rule.slots.values())
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


def _promotion(signal: Signal) -> Any:
    """Allow products of real and complex arrays: norms of complex arrays are real."""
    if jnp.iscomplexobj(signal.update):
        return jax.numpy_dtype_promotion("standard")
    return contextlib.nullcontext()


def reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> StageError:
    """The error for a stage that changed the shape of the gradient or of the update."""
    return StageError(
        f"it turned an array of shape {before} into one of {after}; a stage must return a gradient "
        "and an update of the shape that it got"
    )
