"""Run a block of stages on arrays; the only place that decides how.

:func:`run` gets a block and the arrays, and chooses a policy by the block's reach, the platform and
the mesh. Stages, recipes and axes do not depend on the policy: all policies return the results of
:func:`each`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments import hyper
from adamx.engine.block import (
    Block,
    Entering,
    Locate,
    Passed,
    Ready,
    advance,
    errors_of,
    fixed,
    phase_of,
    promotion,
    refresh_of,
    through,
)
from adamx.engine.kernels import Kernels
from adamx.engine.results import Results
from adamx.links.slots import Slots
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
from adamx.numerics.shards import over_shards
from adamx.trees.arrays import kind, kinds

__all__ = ["global_sum", "run"]


def run(block: Block, leaves: Sequence[Entering], locate: Locate) -> list[Passed]:
    """Run the block on each array; for each, its output and the new slots of its stages."""
    axes = free_axes() if block.stacks or block.refreshes else ()
    if not axes and not (block.stacks and len(leaves) > 1 and stacking_pays()):
        return each(block, leaves, locate)
    signals: list[Any] = [leaf.signal for leaf in leaves]
    done: list[list[Slots]] = [[] for _ in leaves]
    terms: list[tuple[Any, ...]] = [()] * len(leaves)
    if block.summands:  # the last part gets another signal than the first one
        leaves = [x if x.given else x._replace(given=x.signal) for x in leaves]
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
        for i, passed in enumerate(found):
            signals[i], terms[i] = passed.left, passed.terms
            done[i] += passed.slots
    return list(map(Passed, signals, done, terms))


def global_sum(leaves: Sequence[tuple[Ready, Entering]], locate: Locate) -> Any:
    """A stage's sum over all parameters, in the precision of clocks.

    Shards are summed after the parameters, in one collective for each set of mesh axes.
    """
    alike: dict[int, list[tuple[Ready, Entering]]] = {}
    for ready, leaf in leaves:
        alike.setdefault(id(ready), []).append((ready, leaf))
    of_each: dict[tuple[str, ...], list[Any]] = {}
    for some in alike.values():
        block, entering = Block.of([some[0][0]], ends="sums"), [leaf for _, leaf in some]
        for leaf, passed in zip(entering, each(block, entering, locate), strict=True):
            wide = hyper.cast(passed.left, hyper.clock_dtype())
            of_each.setdefault(leaf.shards, []).append(wide)
    parts = [over_shards(_sum(terms), shards) for shards, terms in of_each.items()]
    return parts[0] if len(parts) == 1 else _sum(parts)


def _sum(terms: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: sum_of_numbers(x), *terms or [None])


def each(block: Block, leaves: Sequence[Entering], locate: Locate) -> list[Passed]:
    """One array at a time; arrays of one shape and dtype share one trace."""
    takes_turns = block.packs and platform() != "cpu"
    of_kernels = Kernels(block).run(leaves, locate)
    done: list[Passed] = []
    for i, leaf in enumerate(leaves):
        if i in of_kernels:
            done.append(of_kernels[i])
            continue
        if takes_turns and done:
            leaf = _after(leaf, done[-1].slots)
        made = locate(
            leaf.number,
            *(advance, *fixed(block, leaf), leaf.signal, leaf.slots, leaf.own, leaf.given),
            leaf.refreshed,
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
) -> list[Passed]:
    """Arrays of one shape, dtype and kind in stacks.

    On a mesh with these axes, a stack is divided along them: each device runs the block on its
    share of whole arrays, and the results are gathered.
    """
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        arrays, tree = jax.tree.flatten(
            (leaf.signal, leaf.slots, leaf.own, leaf.given, leaf.refreshed)
        )
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
    entering = [(x.signal, x.slots, x.own, x.given, x.refreshed) for x in some]
    results: Any = None

    def of_one(given: Any, number: Any) -> list[Any]:
        nonlocal results
        made = functools.partial(through, *fixed(block, some[0]))(*given, number)
        results = Results.of(made, jax.tree.leaves(given))
        return results.computed(made)

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
    return [
        results.joined([x[k] for x in made], jax.tree.leaves(entering[k])) for k in range(count)
    ]


def _filled(x: Any, short: int) -> Any:
    """A stack with ``short`` more copies of its last array."""
    return jnp.concatenate([x, *[x[-1:]] * short]) if short else x


def _stacks(places: list[int], trees: Sequence[Any], most: int) -> list[list[int]]:
    """The places of equal trees of arrays, divided so that no stack is too large."""
    count = max(1, most // max(1, *(np.size(x) for x in jax.tree.leaves(trees[places[0]]))))
    return [places[i : i + count] for i in range(0, len(places), count)]


def refreshed(
    block: Block, leaves: Sequence[Entering], locate: Locate, axes: tuple[str, ...]
) -> list[Entering]:
    """The leaves of a block of one stage, with the results of its refresh.

    Arrays of one kind that are due in the same steps are computed as one stack, of which each
    device gets a share.
    """
    (ready,) = block.ready
    own_refreshes = [locate(leaf.number, refresh_of, block, leaf) for leaf in leaves]
    given = [arrays for _, _, arrays in own_refreshes]
    alike: dict[Any, list[int]] = {}
    for i, (leaf, arrays) in enumerate(zip(leaves, given, strict=True)):
        own, tree = jax.tree.flatten(arrays)
        if own:
            phase = phase_of(ready.rule, leaf.number)
            alike.setdefault((tree, tuple(map(kind, own)), leaf.shards, phase), []).append(i)
    found, most = list(leaves), _MOST * parts_along(axes)
    for places in itertools.chain.from_iterable(_stacks(x, given, most) for x in alike.values()):
        refresh, step, _ = own_refreshes[places[0]]
        arrays = [given[i] for i in places]
        told = functools.partial("it was given {}".format, kinds(arrays[0]))
        with errors_of(ready.name, "refresh", told), promotion(arrays):
            results = jax.lax.cond(
                refresh.due(step),
                functools.partial(shared, refresh.compute, step=step, axes=axes),
                lambda arrays, refresh=refresh: [refresh.otherwise(x) for x in arrays],
                arrays,
            )
        for i, of_one in zip(places, results, strict=True):
            found[i] = leaves[i]._replace(refreshed=(of_one,))
    return found


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
