"""States of Optax's and PyTorch's optimisers as states of chains, and back.

What an optimiser keeps is called otherwise elsewhere, but means the same: a training continues on
the other side as it would have gone on here. The numbers (learning rate, decay rates, ε) are no
part of the state; the chain is made with those of the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import StageError, Transformation
from adamx.core.foreign import Foreign
from adamx.core.hyper import clock_dtype
from adamx.core.link import Link, is_packed, unpacked
from adamx.core.naming import names
from adamx.core.observer import Observer
from adamx.core.reading import beside, copied, place_of, the_state, unwrapped
from adamx.core.stage import Rule, Stage, joined, kind
from adamx.core.trees import mismatch, path_of
from adamx.errors import described
from adamx.numerics.types import PyTree, State

__all__ = ["from_optax", "from_torch", "to_optax", "to_torch"]

Homes = Mapping[str, tuple[str, ...]]
"""From an array of the other library to the slots, as ``stage.slot``, that mean the same."""

Transform = Callable[[str, np.ndarray], np.ndarray]
"""``(path, array) -> array``, from one layout of a parameter to another."""

_MU = ("scale_by_momentum.mu", "scale_by_nesterov_momentum.mu")
_NU = ("scale_by_rms.nu", "scale_by_adamax.nu")
_STDDEV = {"mu": ("scale_by_stddev.mu",), "nu": ("scale_by_stddev.nu",)}
_SUM = "scale_by_rss.sum_of_squares"
_TRACE = "scale_by_heavy_ball.trace"
_OPTAX: dict[str, Homes] = {
    "ScaleByAdamState": {"mu": _MU, "nu": _NU},  # of adamax, nadam and radam too
    "ScaleByRmsState": {"nu": ("scale_by_rms.nu",)},
    "ScaleByRmsWithCountState": {"nu": ("scale_by_rms.nu",)},
    "ScaleByRStdDevState": _STDDEV,
    "ScaleByRStdDevWithCountState": _STDDEV,
    "ScaleByRssState": {"sum_of_squares": (_SUM,)},
    "TraceState": {"trace": (_TRACE,)},
    "ScaleByScheduleState": {},
}

_DERIVED = ("nu_lost",)  # slots that start at zero, and may at any step: what was rounded away


def from_optax(
    opt_state: PyTree,
    opt: Transformation,
    params: PyTree = None,
    *,
    count: int | None = None,
    initial_accumulator_value: float | None = None,
) -> State:
    """The state of a chain that continues a training begun with Optax.

    Understood are the states of ``optax.adam``, ``adamw``, ``adamax``, ``nadam``, ``radam``,
    ``rmsprop``, ``adagrad``, ``sgd`` and of their parts, in ``optax.chain`` with anything that
    keeps no arrays. An Optax transformation in the chain takes over its own state, whatever it is.
    Slots have the precision that ``opt.init`` gives them; those under :func:`adamx.quantize_state`
    are encoded, rounded to the nearest.

    Args:
        opt_state: Optax's state after some steps, or a Flax ``TrainState`` or ``nnx.Optimizer``
            that holds it.
        opt: the chain that goes on, with the numbers that Optax had. Its clocks will be as after
            that many steps of its own, for schedules of β as well.
        params: the parameters, for their shapes, dtypes and placement; those of the arrays in the
            Optax state if None.
        count: the steps taken, where Optax does not count them (``sgd``, ``adagrad`` and
            ``rmsprop`` at a constant learning rate).
        initial_accumulator_value: what ``optax.adagrad`` was given, 0.1 by default there. Its ε
            stands inside the root; in the chain it is part of the sum (``initial_accumulator_value=
            0.1 + 1e-7``), so the sums differ by what they start with.

    Returns:
        The state, as after ``count`` updates of ``opt``. It shares no memory with ``opt_state``,
        which may go on and be donated.

    Raises:
        TypeError: for something that is no Optax state, or no adamx optimiser.
        StageError: naming stage and parameter, where a slot has no counterpart, an array no slot,
            shapes or counts differ, or where the two rules keep different things.

    >>> tx, opt = optax.sgd(0.1, momentum=0.9), adamx.sgd(0.1, momentum=0.9)
    >>> _, opt_state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> state = adamx.convert.from_optax(opt_state, opt, count=1)  # of adam it is in opt_state
    >>> opt.update(jnp.ones(2), state)[0]
    Array([-0.19, -0.19], dtype=float32)
    """
    links, entries = _links(opt), list(_entries(_of_optax(opt_state)))
    counts = {f"{x.path}.count": x.state.count for x in entries if "count" in x.state._fields}
    params = _shapes(entries) if params is None else params
    start = opt.init(params)
    for name, own, entry in _foreign(links, start, entries):
        if entry is None:
            raise StageError(
                f"it keeps a {type(own).__name__}, which the Optax state has not. {_REMEDY}"
            ).within(stage=name)
        start[name] = jax.tree.map(
            lambda x, own=own, entry=entry: (
                jax.tree.map(copied, entry.state, own) if x is own else x
            ),
            start[name],
            is_leaf=_is_entry,
        )
    homes, columns = _arrays(entries, links, params)
    slots = _Slots(links, params, start)
    for i in range(len(slots.paths)):
        for place, label in slots.pairs(i, homes, "the Optax state").items():
            value = _numpy(columns[label][i])
            if place.kind == _SUM:
                value = value + _start(links[place.stage]) - _given(initial_accumulator_value)
            slots.write(place, i, value)
    return slots.after(_steps(counts, count, "the Optax state"))


def to_optax(state: PyTree, opt: Transformation, target: PyTree) -> PyTree:
    """The Optax state that continues a training begun with a chain.

    Args:
        state: the chain's state after some steps, or what holds it.
        opt: the chain.
        target: ``tx.init(params)`` of the Optax transformation that goes on, made with the numbers
            that the chain had. It stays as it is.

    Returns:
        A state like ``target``, in its dtypes. It shares no memory with ``state`` and ``target``.

    Raises:
        TypeError: for something that is no Optax state, or no adamx optimiser.
        StageError: as of :func:`adamx.convert.from_optax`; for a ``state`` that holds no chain's.

    >>> params, grads = jnp.zeros(2), jnp.array([0.1, -10.0])
    >>> tx, opt = optax.adam(1e-3), adamx.adam(1e-3)
    >>> _, state = opt.update(grads, opt.init(params))
    >>> adamx.convert.to_optax(state, opt, tx.init(params))[0].count
    Array(1, dtype=int32)
    """
    target = _of_optax(target)
    links, entries = _links(opt), list(_entries(target))
    params = _shapes(entries)
    state = _of_chain(state, opt, params)
    changed: dict[str, dict[str, Any]] = {
        x.path: {"count": jnp.asarray(state["count"], jnp.int32)}
        for x in entries
        if "count" in x.state._fields
    }
    for name, own, entry in _foreign(links, state, entries):
        if entry is None:
            raise StageError(
                f"it keeps a {type(own).__name__}, for which the target has no place. {_REMEDY}"
            ).within(stage=name)
        changed[entry.path] = own._asdict()
    homes, columns = _arrays(entries, links, params)
    slots = _Slots(links, params, state)
    for i in range(len(slots.paths)):
        for place, label in slots.pairs(i, homes, "the Optax state").items():
            value, like = slots.read(place, i), columns[label][i]
            if place.kind == _SUM:  # the target's is where it starts
                value = value - _start(links[place.stage]) + _numpy(like)
            columns[label][i] = jnp.asarray(value, like.dtype)
    tree = jax.tree.structure(params)
    for label, column in columns.items():
        path, _, field = label.rpartition(".")
        changed.setdefault(path, {})[field] = tree.unflatten(column)
    states, around = jax.tree.flatten(target, is_leaf=_is_entry)
    new = around.unflatten(
        old._replace(**changed[x.path]) if x.path in changed else old
        for old, x in zip(states, _entries(target), strict=True)
    )
    return jax.tree.map(copied, new, target)


def from_torch(
    state_dict: Mapping[str, Any],
    opt: Transformation,
    params: PyTree,
    names: Sequence[str] | None = None,
    *,
    transform: Transform | None = None,
    count: int | None = None,
) -> State:
    """The state of a chain that continues a training begun with PyTorch.

    Understood are ``torch.optim.Adam`` (with ``amsgrad`` too), ``AdamW``, ``Adamax``, ``NAdam``,
    ``RAdam``, ``RMSprop``, ``Adagrad`` and ``SGD``. Decay rates are compared with those of the
    parameter groups: averages and clocks rest on them. Another rate is given to the chain
    afterwards, by :meth:`adamx.Transformation.replace`; the state remains good.

    A parameter that never had a gradient (frozen, or behind a gate) has no entry in the state
    dict: its slots are as ``opt.init`` makes them. PyTorch would start its ``step`` with its first
    gradient; a chain has one clock for all its parameters, which goes on. The first averages of
    such a parameter are of zeros and few gradients, and are not debiased for it: with Adam's
    defaults its first step is up to 3.2 times the learning rate. A group of its own
    (:func:`adamx.partition`, :func:`adamx.set_to_zero` until then) gives it a clock of its own.

    Args:
        state_dict: ``optimizer.state_dict()``, of tensors or NumPy arrays.
        opt: the chain that goes on, with the numbers that PyTorch had.
        params: the parameters in JAX, already in their own layout.
        names: the path of every parameter, ``"dense/kernel"``, in the order in which PyTorch's
            optimiser was given them. None if ``params`` is a list or a tuple in that order.
        transform: ``(path, array) -> array``, from PyTorch's layout of a parameter to this one;
            of a linear layer's weight, which is [out, in] there and a kernel [in, out] in Flax, it
            is the transpose. An error tells where shapes differ; square matrices cannot.
        count: the steps taken, where PyTorch does not count them (``SGD``).

    Returns:
        The state, as after ``count`` updates of ``opt``. It shares no memory with ``state_dict``:
        PyTorch's optimiser may go on.

    Raises:
        TypeError: for something that is no state dict, or no adamx optimiser.
        StageError: naming stage and parameter, where an array is missing or has no slot, where
            shapes, counts or decay rates differ, or where the two rules keep different things.

    >>> state_dict = {
    ...     "state": {0: {"step": 1.0, "exp_avg": np.array([0.01, -1.0]),
    ...                   "exp_avg_sq": np.array([1e-5, 0.1])}},
    ...     "param_groups": [{"betas": (0.9, 0.999), "amsgrad": False, "params": [0]}],
    ... }
    >>> opt = adamx.adam(1e-3)
    >>> state = adamx.convert.from_torch(state_dict, opt, [jnp.zeros(2)])
    >>> opt.update([jnp.array([0.1, -10.0])], state)[0]
    [Array([-0.001,  0.001], dtype=float32)]
    """
    links = _links(opt)
    start = opt.init(params)
    for name, own, _ in _foreign(links, start, []):
        raise StageError(
            f"it keeps a {type(own).__name__}, which PyTorch has not; use adamx's own stage"
        ).within(stage=name)
    slots = _Slots(links, params, start)
    counts: dict[str, Any] = {}
    order = _torch_order(state_dict, slots, names)
    _check_begun(order, state_dict["state"], slots)
    for i, index, group in order:
        kept = dict(state_dict["state"].get(index, {}))
        homes, beside = _torch_homes(group, slots.paths[i])
        if homes and not kept:  # it never had a gradient: its slots stay as they start
            continue
        _check_kept(kept, {**homes, **dict.fromkeys(beside)}, index, slots.paths[i])
        if "step" in kept:
            counts[f"step of {slots.paths[i]}"] = kept["step"]
        pairs = slots.pairs(i, homes, "PyTorch's state")
        _check_decays(group, pairs, slots)
        for place, label in pairs.items():
            value = _numpy(kept[label])
            slots.write(place, i, transform(slots.names[i], value) if transform else value)
    return slots.after(_steps(counts, count, "PyTorch's state"))


def to_torch(
    state: PyTree,
    opt: Transformation,
    target: Mapping[str, Any],
    params: PyTree,
    names: Sequence[str] | None = None,
    *,
    transform: Transform | None = None,
) -> dict[str, Any]:
    """The PyTorch state dict that continues a training begun with a chain.

    A parameter that has no entry in the state dict has never had a gradient there. Here every
    parameter has slots: one that never had a gradient is written as zeros with the chain's
    ``step``, from which PyTorch goes on as the chain would. A parameter of which the chain keeps
    nothing, as it is frozen, gets no entry.

    Args:
        state: the chain's state after some steps, or what holds it.
        opt: the chain.
        target: ``optimizer.state_dict()`` of the PyTorch optimiser that goes on, made with the
            numbers that the chain had. Its groups say which arrays it wants.
        params: the parameters in JAX.
        names: as of :func:`adamx.convert.from_torch`.
        transform: the way back of what :func:`adamx.convert.from_torch` is given, from this layout
            to PyTorch's.

    Returns:
        What ``optimizer.load_state_dict`` takes, of tensors on the CPU that have memory of their
        own.

    Raises:
        ImportError: without PyTorch.
        TypeError: for something that is no state dict, or no adamx optimiser.
        StageError: as of :func:`adamx.convert.from_torch`.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("to_torch makes tensors of PyTorch: pip install torch") from None
    links = _links(opt)
    state = _of_chain(state, opt, params)
    for name, own, _ in _foreign(links, state, []):
        raise StageError(f"it keeps a {type(own).__name__}, for which PyTorch has no place").within(
            stage=name
        )
    slots = _Slots(links, params, state)
    count = np.asarray(state["count"])
    found: dict[int, dict[str, Any]] = {}
    for i, index, group in _torch_order(target, slots, names):
        homes, beside = _torch_homes(group, slots.paths[i])
        if homes and slots.are_only_of_others(i):
            continue
        pairs = slots.pairs(i, homes, "PyTorch's state")
        _check_decays(group, pairs, slots)
        kept = found[index] = {}
        if "step" in beside:
            kept["step"] = torch.tensor(float(count))
        if "mu_product" in beside:
            (stage,) = (p.stage for p in pairs if p.kind == "scale_by_nesterov_momentum.mu")
            total, lost, _ = np.asarray(state[stage]["momentum"], np.float64)
            kept["mu_product"] = torch.tensor(float(np.exp(total + lost)))
        for place, label in pairs.items():
            value = slots.read(place, i)
            value = transform(slots.names[i], value) if transform else value
            kept[label] = torch.from_numpy(np.array(value, order="C"))
    return {**target, "state": {index: kept for index, kept in found.items() if kept}}


class _Place(NamedTuple):
    """A slot of a chain: the link's index and name in the chain, the slot, and ``stage.slot``."""

    position: int
    stage: str
    slot: str
    kind: str


class _Slots:
    """The slots of a chain's state, parameter by parameter."""

    def __init__(self, links: Mapping[str, Link], params: Any, state: Mapping[str, Any]):
        self.links, self.state = links, dict(state)
        leaves, self.tree = jax.tree.flatten(jax.eval_shape(lambda p: p, params))
        self.shapes = [leaf.shape for leaf in leaves]
        self.paths = [path_of(self.tree, i) for i in range(len(leaves))]
        numbered = self.tree.unflatten(range(len(leaves)))
        self.names = [
            "/".join(place_of(path))
            for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]
        ]
        self.columns = {
            _Place(index, name, slot, f"{link.name}.{slot}"): self.tree.flatten_up_to(kept)
            for index, (name, link) in enumerate(links.items())
            if isinstance(link, Stage)
            for slot in _rule(link).slots
            for kept in [self.state[name][slot]]
        }

    def pairs(self, i: int, homes: Homes, other: str) -> dict[_Place, str]:
        """Which slot of a parameter means the same as which array of the other library."""
        free = [
            place
            for place, column in self.columns.items()
            if column[i] is not None and place.slot not in _DERIVED
        ]
        pairs: dict[_Place, str] = {}
        for label, kinds in homes.items():
            place = next((x for x in free if x.kind in kinds), None)
            if place is None:
                raise StageError(
                    f"{label} of {other} would be {' or '.join(kinds)}, which this chain has not; "
                    f"it keeps {_listed(x.kind for x in self.columns)}. {_REMEDY}"
                ).within(parameter=self.paths[i])
            free.remove(place)
            pairs[place] = label
        if free:
            raise StageError(
                f"its slot {free[0].slot!r} has no counterpart in {other}, which keeps "
                f"{_listed(homes)}. {_REMEDY}"
            ).within(stage=free[0].stage, parameter=self.paths[i])
        order = [place.position for place in pairs]
        if order != sorted(order):
            raise StageError(
                f"{other} has {_listed(homes)} in this order, and the chain "
                f"{_listed(x.kind for x in sorted(pairs))}: a statistic of what flows along "
                f"the chain is another one at another place. {_REMEDY}"
            ).within(parameter=self.paths[i])
        return pairs

    def are_only_of_others(self, i: int) -> bool:
        """Whether the chain keeps nothing of this parameter, though it does of others."""
        held = [[x is not None for x in column] for column in self.columns.values()]
        return any(map(any, held)) and not any(row[i] for row in held)

    def read(self, place: _Place, i: int) -> np.ndarray:
        """A slot's values, decoded."""
        kept = self.columns[place][i]
        if is_packed(kept):
            kept = unpacked(kept, self.links[place.stage].around)
        return np.asarray(kept)

    def write(self, place: _Place, i: int, value: np.ndarray) -> None:
        """Put values into a slot, encoded where the chain does."""
        start = self.columns[place][i]
        if value.shape != self.shapes[i]:
            turned = value.T.shape == self.shapes[i]
            hint = "; transform=lambda path, x: x.T turns it round" if turned else ""
            raise StageError(
                f"slot {place.slot!r} has the shape {list(self.shapes[i])}, and would get "
                f"{list(value.shape)}{hint}"
            ).within(stage=place.stage, parameter=self.paths[i])
        if is_packed(start):
            link, wide = self.links[place.stage], jnp.array(value, jnp.float32, copy=True)
            assert isinstance(link, Stage)
            self.columns[place][i] = link.packed(place.slot, wide)
            return
        if np.iscomplexobj(value) and not jnp.iscomplexobj(start):
            raise StageError(
                f"slot {place.slot!r} is {kind(start)}, and would get {kind(value)}: here |g|² is "
                "the squared modulus, there real and imaginary parts are squared apart"
            ).within(stage=place.stage, parameter=self.paths[i])
        self.columns[place][i] = copied(value.astype(start.dtype), start)

    def after(self, steps: int) -> dict[str, Any]:
        """The state, with the clocks as they are after so many steps."""
        state = self.state
        for place, column in self.columns.items():
            state[place.stage] = {**state[place.stage], place.slot: self.tree.unflatten(column)}
        for name, clocks in _ticked(self.links, state, steps).items():
            state[name] = {**state[name], **clocks}
        return {**state, "count": state["count"] + np.int32(steps)}


_REMEDY = "Convert into a chain that keeps the same, stage for stage"


def _ticked(
    links: Mapping[str, Link], state: Mapping[str, Any], steps: int
) -> dict[str, dict[str, Any]]:
    """The clocks of every stage after so many steps, each with that step's numbers."""
    start: dict[str, dict[str, Any]] = {}
    whole = zip(links, joined([*links.values()]), strict=True)
    stages = {name: link for name, link in whole if isinstance(link, Stage)}
    for name, link in stages.items():
        clocks = _rule(link).clocks
        if any(clock.settle for clock in clocks.values()):
            raise StageError(f"its clocks rest on all gradients so far. {_REMEDY}").within(
                stage=name
            )
        if clocks:
            start[name] = {key: state[name][key] for key in clocks}

    def tick(count: Any, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {
                key: clocks[key].tick(x).astype(x.dtype)
                for clocks in [_rule(stages[name], count).clocks]
                for key, x in kept.items()
            }
            for name, kept in values.items()
        }

    return jax.lax.fori_loop(0, steps, tick, start) if start else {}


def _rule(link: Stage, count: Any = 0) -> Rule:
    """What a stage does in one step."""
    return link.at(count).rule(clock_dtype())


def _links(opt: Any) -> dict[str, Link]:
    if not isinstance(opt, Transformation):
        raise TypeError(
            f"opt is an adamx optimiser, got {described(opt)}; "
            "adamx.chain() makes one of any Optax transformation"
        )
    return dict(zip(names(opt.links), opt.settled(), strict=True))


_MADE = "Pass the chain that made it, and the same parameters on both sides"


def _of_chain(given: Any, opt: Transformation, params: Any) -> State:
    """The chain's state in what was given, which must be of these parameters."""
    state = the_state(given, StageError, "state is the chain's, or what holds it").state
    wanted = jax.eval_shape(opt.init, params)
    leaves, tree = jax.tree_util.tree_flatten_with_path(wanted)
    held = {place_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    if held.keys() != {place_of(path) for path, _ in leaves}:
        raise mismatch("the state", state, "this chain", wanted, _MADE)
    for path, want in leaves:
        if np.shape(held[place_of(path)]) != want.shape:
            raise StageError(
                f"the state's {jax.tree_util.keystr(path)} has the shape "
                f"{list(np.shape(held[place_of(path)]))}, and {list(want.shape)} where training is "
                "to go on: not of the same parameters"
            )
    return tree.unflatten(held[place_of(path)] for path, _ in leaves)


def _steps(counts: Mapping[str, Any], given: int | None, other: str) -> int:
    """How many steps were taken, on which all that count agree."""
    known = {label: _whole(label, x) for label, x in counts.items()}
    if given is not None:
        known["count"] = _whole("count", given)
    if not known:
        raise StageError(
            f"{other} does not say how many steps were taken; pass count=, on which schedules and "
            "bias corrections rest"
        )
    if len({*known.values()}) > 1:
        first = next(iter(known.values()))
        other_label = next(label for label, x in known.items() if x != first)
        raise StageError(
            f"{next(iter(known))} is {first}, and {other_label} is {known[other_label]}: a chain "
            "has one count for all; were some parameters frozen, or steps skipped?"
        )
    return next(iter(known.values()))


def _whole(label: str, x: Any) -> int:
    array = _numpy(x)
    if array.ndim or not np.isreal(array) or array < 0 or array != np.floor(array):
        shown = described(x) if array.ndim else array
        raise StageError(f"{label} is {shown}, not a number of steps")
    return int(array)


def _numpy(x: Any) -> np.ndarray:
    """A tensor or array as NumPy's, which knows no bfloat16."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().resolve_conj()
        return (x.float() if x.dtype.itemsize < 4 else x).numpy()
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _listed(names: Any) -> str:
    return ", ".join(names) or "nothing"


# Optax


class _Entry(NamedTuple):
    """One state in an Optax state, where it is, and whether nothing stands behind it there."""

    path: str
    state: Any
    last: bool


def _of_optax(given: Any) -> Any:
    """Optax's state in what was given, with plain arrays."""
    return unwrapped(getattr(given, "opt_state", given))


def _is_entry(x: Any) -> bool:
    return type(x) is not tuple


def _entries(node: Any, path: str = "", last: bool = True) -> Iterator[_Entry]:
    """The states in an Optax state, in the order of the chain."""
    if not _is_entry(node):
        for i, inner in enumerate(node):
            yield from _entries(inner, f"{path}[{i}]", i == len(node) - 1)
    elif isinstance(node, tuple) and hasattr(node, "_fields"):
        yield _Entry(path, node, last)
    else:
        raise TypeError(
            f"at {path or 'its top'} the Optax state is {described(node)}, where a state "
            "(a NamedTuple) or a tuple of states is expected; it is what tx.init() returns"
        )


def _foreign(
    links: Mapping[str, Link], state: Mapping[str, Any], entries: list[_Entry]
) -> Iterator[tuple[str, Any, _Entry | None]]:
    """What the chain's Optax transformations keep, beside the entry of its type, taken out."""
    for name, link in links.items():
        if not isinstance(link, Foreign):
            continue
        for own in jax.tree.leaves(state[name], is_leaf=_is_entry):
            if jax.tree.leaves(own):
                same = [x for x in entries if _alike(x.state, own)]
                if same:
                    entries.remove(same[0])
                yield name, own, same[0] if same else None


def _alike(one: Any, other: Any) -> bool:
    trees = one, other
    return type(one) is type(other) and (
        jax.tree.structure(one) == jax.tree.structure(other)
        and len({tuple(map(np.shape, jax.tree.leaves(tree))) for tree in trees}) == 1
    )


def _shapes(entries: Sequence[_Entry]) -> Any:
    """The first tree of arrays, which is like the parameters."""
    trees = (
        getattr(entry.state, field)
        for entry in entries
        for field in ("mu", "nu", "trace", "sum_of_squares")
        if hasattr(entry.state, field)
    )
    return next(trees, {})


def _arrays(
    entries: Sequence[_Entry], links: Mapping[str, Link], params: Any
) -> tuple[Homes, dict[str, list[Any]]]:
    """The trees of an Optax state: what each may become, and its arrays, one a parameter."""
    tree = jax.tree.structure(params)
    homes, columns = {}, {}
    for path, state, last in entries:
        name = type(state).__name__
        if jax.tree.leaves(state) and name not in _OPTAX:
            raise _refused(path, state)
        for field, kinds in _OPTAX.get(name, {}).items():
            label, column = f"{path}.{field}", getattr(state, field)
            columns[label] = _column(label, column, tree, params)
            homes[label] = kinds
        _check_rule(name, path, last, links)
    return homes, columns


def _column(label: str, arrays: Any, tree: Any, params: Any) -> list[Any]:
    """A tree of arrays, one a parameter; containers may be others (``nnx.State`` for a dict)."""
    try:
        return tree.flatten_up_to(arrays)
    except (ValueError, TypeError):
        refusal = mismatch(label, arrays, "the parameters", params, _REMEDY)
    try:
        column = beside(params, arrays)
    except StageError:
        raise refusal from None
    if any(x is None for x in column):
        raise refusal
    return column


def _check_rule(name: str, path: str, last: bool, links: Mapping[str, Link]) -> None:
    """What a state of this name means to Optax, it must mean to the chain."""
    rest = [(key, x) for key, x in links.items() if not isinstance(x, Observer)]
    for i, (key, link) in enumerate(rest):
        if name == "TraceState" and link.name == "scale_by_heavy_ball":
            ends = i == len(rest) - 1
            if ends != last:
                there, here = ("last", "not") if last else ("not last", "last")
                raise StageError(
                    f"the velocity {path}.trace stands {there} in its Optax chain, this stage "
                    f"{here}: in optax.rmsprop the learning rate is inside the velocity, in "
                    "adamx.rmsprop outside. Write the chain in Optax's order: chain(scale_by_rms("
                    "decay, 0.0, eps_hat=eps), scale_by_learning_rate(rate), "
                    "scale_by_heavy_ball(momentum))"
                ).within(stage=key)
        if name == "ScaleByAdamState" and link.name == "scale_by_nesterov_momentum":
            assert isinstance(link, Stage)
            if not _is_constant_momentum(link):
                raise StageError(
                    "its momentum warms up, Optax's is constant: pass momentum_decay=math.inf"
                ).within(stage=key)


def _is_constant_momentum(link: Stage) -> bool:
    decay = link.arguments["momentum_decay"]
    return not callable(decay) and bool(np.isinf(decay))


def _refused(path: str, state: Any) -> StageError:
    name, where = type(state).__name__, path or "its top"
    if name == "ScaleByAmsgradState":
        return StageError(
            f"the Optax state at {where} is of optax.amsgrad, which keeps the maximum of v̂; "
            "adamx.amsgrad (like PyTorch) keeps that of v, and neither follows from the other. "
            "Go on with Optax's rule in a chain: adamx.chain(optax.scale_by_amsgrad(…), "
            "adamx.scale_by_learning_rate(…))"
        )
    inner = [x for x in getattr(state, "_fields", ()) if x in ("inner_state", "inner_opt_state")]
    remedy = (
        f"convert its .{inner[0]}, and put it back with ._replace({inner[0]}=…)"
        if inner
        else f"known are {_listed(_OPTAX)}"
    )
    return StageError(f"the Optax state at {where} is a {name}, which can't be read: {remedy}")


def _start(link: Link) -> np.ndarray:
    """Where the sum of squares of a chain starts."""
    assert isinstance(link, Stage)
    return np.asarray(link.at(0).arguments["initial_accumulator_value"], np.float64)


def _given(initial_accumulator_value: float | None) -> float:
    if initial_accumulator_value is None:
        raise StageError(
            "optax.adagrad has its ε inside the root, in the chain it is part of the sum: pass "
            "initial_accumulator_value=, as optax.adagrad was given it (0.1 by default), so that "
            "the sums can be told apart"
        )
    return initial_accumulator_value


# PyTorch


def _torch_homes(group: Mapping[str, Any], path: str) -> tuple[Homes, tuple[str, ...]]:
    """The arrays that an optimiser with this group keeps, and the numbers beside them."""
    for switch in ("dampening", "maximize"):
        if group.get(switch):
            raise StageError(
                f"its group has {switch}={group[switch]}, which no chain has; train without it"
            ).within(parameter=path)
    momentum, step = ("scale_by_momentum.mu",), ("step",)
    ball = {"momentum_buffer": (_TRACE,)} if group.get("momentum") else {}
    square = "exp_avg_sq"
    if "momentum_decay" in group:
        mu = ("scale_by_nesterov_momentum.mu",)
        return {"exp_avg": mu, square: ("scale_by_rms.nu",)}, ("step", "mu_product")
    if "alpha" in group:
        stage = "scale_by_stddev" if group["centered"] else "scale_by_rms"
        mean = {"grad_avg": (f"{stage}.mu",)} if group["centered"] else {}
        return {**mean, "square_avg": (f"{stage}.nu",), **ball}, step
    if "lr_decay" in group:
        return {"sum": (_SUM,)}, step
    if "dampening" in group:
        return ball, ()
    if "amsgrad" in group:
        stage = "scale_by_max_rms" if group["amsgrad"] else "scale_by_rms"
        largest = {f"max_{square}": (f"{stage}.nu_max",)} if group["amsgrad"] else {}
        return {"exp_avg": momentum, square: (f"{stage}.nu",), **largest}, step
    if "betas" in group and "decoupled_weight_decay" in group:
        return {"exp_avg": momentum, square: ("scale_by_rms.nu",)}, step
    if "betas" in group:
        return {"exp_avg": momentum, "exp_inf": ("scale_by_adamax.nu",)}, step
    raise StageError(
        f"its group ({_listed(group)}) is of none of the optimisers that can be converted"
    ).within(parameter=path)


def _torch_order(
    state_dict: Any, slots: _Slots, names: Sequence[str] | None
) -> list[tuple[int, int, Mapping[str, Any]]]:
    """For every parameter in PyTorch's order: its place here, its index there, its group."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            f"expected optimizer.state_dict(), a dict of 'state' and 'param_groups', got "
            f"{type(state_dict).__name__}"
        )
    there = [(index, group) for group in state_dict["param_groups"] for index in group["params"]]
    if len(there) != len(slots.names):
        raise StageError(f"PyTorch has {len(there)} parameters, and here are {len(slots.names)}")
    order = _in_order(slots) if names is None else list(names)
    if sorted(order) != sorted(slots.names):
        raise StageError(
            f"names must have the path of every parameter once, in PyTorch's order; got "
            f"{_listed(order)}, and the parameters are {_listed(slots.names)}"
        )
    return [(slots.names.index(path), *at) for path, at in zip(order, there, strict=True)]


def _in_order(slots: _Slots) -> list[str]:
    """The paths of parameters that are in a row already."""
    shapes = [0] * len(slots.names)
    rows = (shapes, tuple(shapes), 0)
    if slots.tree not in [jax.tree.structure(row) for row in rows]:
        raise StageError(
            "PyTorch numbers its parameters, and these are in a tree, whose order need not be the "
            f"same: pass names=, the paths in PyTorch's order, of {_listed(slots.names)}"
        )
    return slots.names


def _check_begun(order: Any, kept: Mapping[int, Any], slots: _Slots) -> None:
    """Some parameter that should keep something has taken a step."""
    empty = {
        index: slots.paths[i] for i, index, group in order if _torch_homes(group, slots.paths[i])[0]
    }
    if empty and not any(kept.get(index) for index in empty):
        raise StageError(
            f"PyTorch's state holds nothing of {_listed(empty.values())}. Has this optimiser taken "
            "a step? A chain that has taken none starts with opt.init(params)"
        )


def _check_kept(kept: Mapping[str, Any], wanted: Collection[str], index: int, path: str) -> None:
    """What PyTorch keeps of a parameter is what its group says."""
    kept = {name: x for name, x in kept.items() if x is not None}
    if missing := [name for name in wanted if name not in kept]:
        raise StageError(
            f"PyTorch's state[{index}] has no {_listed(missing)}; it holds {_listed(kept)}. A "
            "parameter that never had a gradient has no entry at all, and others a whole one"
        ).within(parameter=path)
    if unknown := [name for name in kept if name not in wanted]:
        raise StageError(
            f"PyTorch's state[{index}] holds {_listed(unknown)} beside {_listed(wanted)}: it is of "
            "another optimiser than its group"
        ).within(parameter=path)


def _check_decays(group: Mapping[str, Any], pairs: Mapping[_Place, str], slots: _Slots) -> None:
    """The averages decay in the chain as they do in PyTorch."""
    b1, b2 = group.get("betas", (None, group.get("alpha")))
    numbers = {"b1": b1, "b2": b2} | {x: group.get(x) for x in ("momentum", "momentum_decay")}
    for place in pairs:
        link = slots.links[place.stage]
        assert isinstance(link, Stage)
        for name, theirs in numbers.items():
            ours = link.arguments.get(name)
            if theirs is None or ours is None or callable(ours):
                continue
            if not np.isclose(float(ours), float(theirs), rtol=1e-7, atol=0):
                raise StageError(
                    f"{name} is {ours}, in PyTorch {float(theirs)}: what was averaged so far rests "
                    f"on it. Convert with PyTorch's, and go on with opt.replace({name}={ours})"
                ).within(stage=place.stage)
        if link.name == "scale_by_nesterov_momentum" and not (
            link.arguments["constant_decay"] or _is_constant_momentum(link)
        ):
            raise StageError(
                "its average decays with the momentum that warms up, PyTorch's with a constant "
                "one: pass constant_decay=True"
            ).within(stage=place.stage)
