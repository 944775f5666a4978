"""Convert states of Optax and PyTorch optimisers to states of chains, and back.

The libraries keep the same quantities under different names. A training that is continued with a
converted state takes the same steps as without the conversion. The hyperparameters (learning rate,
decay rates, ε) are not part of the state: make the chain with the values of the other optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments.hyper import clock_dtype
from adamx.core import StageError, Transformation
from adamx.errors import described
from adamx.links.foreign import Foreign
from adamx.links.link import Link
from adamx.links.naming import names
from adamx.links.observer import Observer
from adamx.links.rule import Rule
from adamx.links.stage import Stage, joined
from adamx.numerics.types import PyTree, State
from adamx.states.reading import beside, copied, the_state, unwrapped
from adamx.trees.arrays import kind
from adamx.trees.columns import column_of, tree_of
from adamx.trees.differences import mismatch
from adamx.trees.packed import is_packed, unpacked
from adamx.trees.paths import path_of, place_of

__all__ = ["from_optax", "from_torch", "to_optax", "to_torch"]

Counterparts = Mapping[str, tuple[str, ...]]
"""Maps an array of the other library to the slots (``stage.slot``) of the same meaning."""

Transform = Callable[[str, np.ndarray], np.ndarray]
"""``(path, array) -> array``, which converts a parameter from one layout to another."""

_MU = ("scale_by_momentum.mu", "scale_by_nesterov_momentum.mu")
_NU = ("scale_by_rms.nu", "scale_by_adamax.nu")
_STDDEV = {"mu": ("scale_by_stddev.mu",), "nu": ("scale_by_stddev.nu",)}
_SUM = "scale_by_rss.sum_of_squares"
_TRACE = "scale_by_heavy_ball.trace"
_OPTAX: dict[str, Counterparts] = {
    "ScaleByAdamState": {"mu": _MU, "nu": _NU},  # also used by adamax, nadam and radam
    "ScaleByRmsState": {"nu": ("scale_by_rms.nu",)},
    "ScaleByRmsWithCountState": {"nu": ("scale_by_rms.nu",)},
    "ScaleByRStdDevState": _STDDEV,
    "ScaleByRStdDevWithCountState": _STDDEV,
    "ScaleByRssState": {"sum_of_squares": (_SUM,)},
    "TraceState": {"trace": (_TRACE,)},
    "ScaleByScheduleState": {},
}

_DERIVED = ("nu_lost",)  # slots that may restart from zero at any step: rounding errors


def from_optax(
    opt_state: PyTree,
    opt: Transformation,
    params: PyTree = None,
    *,
    count: int | None = None,
    initial_accumulator_value: float | None = None,
) -> State:
    """The state of a chain that continues a training of Optax.

    The function converts the states of ``optax.adam``, ``adamw``, ``adamax``, ``nadam``, ``radam``,
    ``rmsprop``, ``adagrad``, ``sgd`` and of their parts. In an ``optax.chain``, it also accepts
    transformations that keep no arrays. If the adamx chain contains an Optax transformation, the
    state of this transformation is copied, whatever it is. Slots get the dtypes of ``opt.init``.
    Slots under :func:`adamx.quantize_state` are encoded with rounding to the nearest code.

    Args:
        opt_state: Optax's state after some steps, or a Flax ``TrainState`` or ``nnx.Optimizer``
            that contains it.
        opt: the chain that continues the training, with the hyperparameters of the Optax
            optimiser. Its clocks are set to their values after the same number of steps of
            ``opt``, under schedules of β, too.
        params: the parameters, for their shapes, dtypes and placement. If None, these are taken
            from the arrays of the Optax state.
        count: the number of steps taken, if Optax does not count them (``sgd``, ``adagrad`` and
            ``rmsprop`` with a constant learning rate).
        initial_accumulator_value: the argument of ``optax.adagrad``, whose default is 0.1. Optax
            adds ε inside the root. The chain includes ε in the sum
            (``initial_accumulator_value=0.1 + 1e-7``), so the two sums start from different
            values.

    Returns:
        The state after ``count`` updates of ``opt``. It shares no memory with ``opt_state``, which
        you may continue to use or donate.

    Raises:
        TypeError: if ``opt_state`` is not an Optax state, or ``opt`` not an adamx optimiser.
        StageError: if a slot or an array has no counterpart, if shapes or counts differ, or if the
            two optimisers keep different quantities. The error names the stage and the parameter.

    >>> tx, opt = optax.sgd(0.1, momentum=0.9), adamx.sgd(0.1, momentum=0.9)
    >>> _, opt_state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> state = adamx.convert.from_optax(opt_state, opt, count=1)  # sgd keeps no count
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
                f"it keeps a {type(own).__name__}, which the Optax state lacks. {_REMEDY}"
            ).within(stage=name)
        start[name] = jax.tree.map(
            lambda x, own=own, entry=entry: (
                jax.tree.map(copied, entry.state, own) if x is own else x
            ),
            start[name],
            is_leaf=_is_entry,
        )
    counterparts, columns = _arrays(entries, links, params)
    slots = _Slots(links, params, start)
    for i in range(len(slots.paths)):
        for place, label in slots.pairs(i, counterparts, "the Optax state").items():
            value = _numpy(columns[label][i])
            if place.kind == _SUM:
                value = value + _start(links[place.stage]) - _given(initial_accumulator_value)
            slots.write(place, i, value)
    return slots.after(_steps(counts, count, "the Optax state"))


def to_optax(state: PyTree, opt: Transformation, target: PyTree) -> PyTree:
    """The Optax state that continues a training of a chain.

    Args:
        state: the state of the chain after some steps, or an object that contains it.
        opt: the chain.
        target: ``tx.init(params)`` of the Optax transformation that continues the training, with
            the hyperparameters of the chain. It is not changed.

    Returns:
        A state with the structure and dtypes of ``target``. It shares no memory with ``state`` or
        ``target``.

    Raises:
        TypeError: if ``target`` is not an Optax state, or ``opt`` not an adamx optimiser.
        StageError: as in :func:`adamx.convert.from_optax`, and if ``state`` contains no state of a
            chain.

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
                f"it keeps a {type(own).__name__}, which the target does not contain. {_REMEDY}"
            ).within(stage=name)
        changed[entry.path] = own._asdict()
    counterparts, columns = _arrays(entries, links, params)
    slots = _Slots(links, params, state)
    for i in range(len(slots.paths)):
        for place, label in slots.pairs(i, counterparts, "the Optax state").items():
            value, like = slots.read(place, i), columns[label][i]
            if place.kind == _SUM:  # the array of the target is the start of its sum
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
    """The state of a chain that continues a training of PyTorch.

    The function converts the states of ``torch.optim.Adam`` (including ``amsgrad``), ``AdamW``,
    ``Adamax``, ``NAdam``, ``RAdam``, ``RMSprop``, ``Adagrad`` and ``SGD``. It compares the decay
    rates of the chain with those of the parameter groups, because averages and clocks depend on
    them. To use different decay rates, call :meth:`adamx.Transformation.replace` after the
    conversion; the state remains valid.

    A parameter that never had a gradient has no entry in the state dict. Its slots get their
    initial values. PyTorch would count the ``step`` of such a parameter from its first gradient. A
    chain has one clock for all its parameters, which continues. So the first averages of this
    parameter contain zeros and few gradients, and their correction is too small: with Adam's
    defaults, its first step is up to 3.2 times the learning rate. To give it its own clock, put it
    into its own group (:func:`adamx.partition`), with :func:`adamx.set_to_zero` until it gets a
    gradient.

    Args:
        state_dict: ``optimizer.state_dict()``, with tensors or NumPy arrays.
        opt: the chain that continues the training, with the hyperparameters of the PyTorch
            optimiser.
        params: the JAX parameters, in their JAX layout.
        names: the path of every parameter, for example ``"dense/kernel"``, in the order of the
            parameters of the PyTorch optimiser. None if ``params`` is a list or a tuple in that
            order.
        transform: ``(path, array) -> array``, which converts an array from PyTorch's layout to the
            JAX layout. For the weight of a linear layer, which is [out, in] in PyTorch and [in,
            out] in Flax, it is the transpose. If shapes differ, the function raises an error; it
            can't detect a missing transpose of a square matrix.
        count: the number of steps taken, if PyTorch does not count them (``SGD``).

    Returns:
        The state after ``count`` updates of ``opt``. It shares no memory with ``state_dict``, so
        you may continue to use the PyTorch optimiser.

    Raises:
        TypeError: if ``state_dict`` is not a state dict, or ``opt`` not an adamx optimiser.
        StageError: if an array is missing or has no slot, if shapes, counts or decay rates differ,
            or if the two optimisers keep different quantities. The error names the stage and the
            parameter.

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
            f"it keeps a {type(own).__name__}, which PyTorch does not have; use the stage of adamx"
        ).within(stage=name)
    slots = _Slots(links, params, start)
    counts: dict[str, Any] = {}
    order = _torch_order(state_dict, slots, names)
    _check_begun(order, state_dict["state"], slots)
    for i, index, group in order:
        kept = dict(state_dict["state"].get(index, {}))
        counterparts, beside = _torch_arrays(group, slots.paths[i])
        if (
            counterparts and not kept
        ):  # it never had a gradient: its slots keep their initial values
            continue
        _check_kept(kept, {**counterparts, **dict.fromkeys(beside)}, index, slots.paths[i])
        if "step" in kept:
            counts[f"step of {slots.paths[i]}"] = kept["step"]
        pairs = slots.pairs(i, counterparts, "PyTorch's state")
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
    """The PyTorch state dict that continues a training of a chain.

    In PyTorch, a parameter that never had a gradient has no entry in the state dict. In a chain
    every parameter has slots. A parameter that never had a gradient is written as zeros with the
    ``step`` of the chain, so that PyTorch continues as the chain would. A frozen parameter, for
    which the chain keeps no slots, gets no entry.

    Args:
        state: the state of the chain after some steps, or an object that contains it.
        opt: the chain.
        target: ``optimizer.state_dict()`` of the PyTorch optimiser that continues the training,
            with the hyperparameters of the chain. Its parameter groups determine which arrays are
            written.
        params: the JAX parameters.
        names: as in :func:`adamx.convert.from_torch`.
        transform: ``(path, array) -> array``, from the JAX layout to PyTorch's layout: the inverse
            of the ``transform`` of :func:`adamx.convert.from_torch`.

    Returns:
        A state dict for ``optimizer.load_state_dict``. Its tensors are on the CPU and share no
        memory with ``state``.

    Raises:
        ImportError: if PyTorch is not installed.
        TypeError: if ``target`` is not a state dict, or ``opt`` not an adamx optimiser.
        StageError: as in :func:`adamx.convert.from_torch`.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("to_torch needs PyTorch: pip install torch") from None
    links = _links(opt)
    state = _of_chain(state, opt, params)
    for name, own, _ in _foreign(links, state, []):
        raise StageError(
            f"it keeps a {type(own).__name__}, which PyTorch does not have; use the stage of adamx"
        ).within(stage=name)
    slots = _Slots(links, params, state)
    count = np.asarray(state["count"])
    found: dict[int, dict[str, Any]] = {}
    for i, index, group in _torch_order(target, slots, names):
        counterparts, beside = _torch_arrays(group, slots.paths[i])
        if counterparts and slots.are_only_of_others(i):
            continue
        pairs = slots.pairs(i, counterparts, "PyTorch's state")
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
    """A slot of a chain: index and name of the link, name of the slot, and ``stage.slot``."""

    position: int
    stage: str
    slot: str
    kind: str


class _Slots:
    """The slots of a chain's state, accessed by parameter."""

    def __init__(self, links: Mapping[str, Link], params: Any, state: Mapping[str, Any]):
        self.links, self.state = links, dict(state)
        leaves, self.tree = jax.tree.flatten(jax.eval_shape(lambda p: p, params))
        self.params = leaves
        self.paths = [path_of(self.tree, i) for i in range(len(leaves))]
        numbered = self.tree.unflatten(range(len(leaves)))
        self.names = [
            "/".join(place_of(path))
            for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]
        ]
        self.columns = {
            _Place(index, name, slot, f"{link.name}.{slot}"): column_of(self.tree, kept)
            for index, (name, link) in enumerate(links.items())
            if isinstance(link, Stage)
            for slot in _rule(link).slots
            for kept in [self.state[name][slot]]
        }

    def pairs(self, i: int, counterparts: Counterparts, other: str) -> dict[_Place, str]:
        """The slots of a parameter, each with the corresponding array of the other library."""
        free = [
            place
            for place, column in self.columns.items()
            if column[i] is not None and place.slot not in _DERIVED
        ]
        pairs: dict[_Place, str] = {}
        for label, kinds in counterparts.items():
            place = next((x for x in free if x.kind in kinds), None)
            if place is None:
                raise StageError(
                    f"{label} of {other} corresponds to {' or '.join(kinds)}, which this chain "
                    f"does not keep for this parameter. Its slots are "
                    f"{_listed(x.kind for x in self.columns)}. {_REMEDY}"
                ).within(parameter=self.paths[i])
            free.remove(place)
            pairs[place] = label
        if free:
            raise StageError(
                f"its slot {free[0].slot!r} has no counterpart in {other}, which keeps "
                f"{_listed(counterparts)}. {_REMEDY}"
            ).within(stage=free[0].stage, parameter=self.paths[i])
        order = [place.position for place in pairs]
        if order != sorted(order):
            raise StageError(
                f"{other} computes {_listed(counterparts)} in this order, and the chain computes "
                f"{_listed(x.kind for x in sorted(pairs))} in this order. A statistic depends on "
                f"the stages before it, so these differ. {_REMEDY}"
            ).within(parameter=self.paths[i])
        return pairs

    def are_only_of_others(self, i: int) -> bool:
        """Whether the chain keeps slots for other parameters but not for this one."""
        held = [[x is not None for x in column] for column in self.columns.values()]
        return any(map(any, held)) and not any(row[i] for row in held)

    def read(self, place: _Place, i: int) -> np.ndarray:
        """The values of a slot, dequantized."""
        kept = self.columns[place][i]
        if is_packed(kept):
            kept = unpacked(kept, self.links[place.stage].forms)
        return np.asarray(kept)

    def write(self, place: _Place, i: int, value: np.ndarray) -> None:
        """Write values into a slot, encoded if the slot is quantized."""
        start = self.columns[place][i]
        if value.shape != self.params[i].shape:
            wanted = self.params[i].shape
            turned = value.T.shape == wanted
            hint = "; transpose it with transform=lambda path, x: x.T" if turned else ""
            raise StageError(
                f"slot {place.slot!r} has the shape {list(wanted)}, but the converted "
                f"array has {list(value.shape)}{hint}"
            ).within(stage=place.stage, parameter=self.paths[i])
        if is_packed(start):
            link, wide = self.links[place.stage], jnp.array(value, jnp.float32, copy=True)
            assert isinstance(link, Stage)
            self.columns[place][i] = link.packed(place.slot, wide)
            return
        if np.iscomplexobj(value) and not jnp.iscomplexobj(start):
            raise StageError(
                f"slot {place.slot!r} is {kind(start)}, but the converted array is {kind(value)}: "
                "adamx averages the squared modulus |g|², and the other library squares real and "
                "imaginary parts separately"
            ).within(stage=place.stage, parameter=self.paths[i])
        self.columns[place][i] = copied(value.astype(start.dtype), start)

    def after(self, steps: int) -> dict[str, Any]:
        """The state, with the values of its clocks after this many steps."""
        state = self.state
        for place, column in self.columns.items():
            kept = tree_of(self.tree, column, self.params)
            state[place.stage] = {**state[place.stage], place.slot: kept}
        for name, clocks in _ticked(self.links, state, steps).items():
            state[name] = {**state[name], **clocks}
        return {**state, "count": state["count"] + np.int32(steps)}


_REMEDY = "Use a chain whose stages keep the same quantities in the same order"


def _ticked(
    links: Mapping[str, Link], state: Mapping[str, Any], steps: int
) -> dict[str, dict[str, Any]]:
    """The clocks of every stage after this many steps, with the hyperparameters of each step."""
    start: dict[str, dict[str, Any]] = {}
    whole = zip(links, joined([*links.values()]), strict=True)
    stages = {name: link for name, link in whole if isinstance(link, Stage)}
    for name, link in stages.items():
        clocks = _rule(link).clocks
        if any(clock.settle for clock in clocks.values()):
            raise StageError(
                "its clocks depend on all past gradients, so they can't be computed from the "
                "number of steps"
            ).within(stage=name)
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
    """The rule of a stage at one step."""
    return link.at(count).rule(clock_dtype())


def _links(opt: Any) -> dict[str, Link]:
    if not isinstance(opt, Transformation):
        raise TypeError(
            f"opt must be an adamx optimiser, got {described(opt)}; adamx.chain(transformation) "
            "makes one from an Optax transformation"
        )
    return dict(zip(names(opt.links), opt.settled(), strict=True))


_MADE = "Pass the chain that made the state, and use the same parameters on both sides"


def _of_chain(given: Any, opt: Transformation, params: Any) -> State:
    """The state of the chain in the given object, after a check that it fits these parameters."""
    needs = "state must be the state of the chain, or an object that contains it"
    state = the_state(given, StageError, needs).state
    wanted = jax.eval_shape(opt.init, params)
    leaves, tree = jax.tree_util.tree_flatten_with_path(wanted)
    held = {place_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    if held.keys() != {place_of(path) for path, _ in leaves}:
        raise mismatch("the state", state, "this chain", wanted, _MADE)
    for path, want in leaves:
        if np.shape(held[place_of(path)]) != want.shape:
            raise StageError(
                f"the state's {jax.tree_util.keystr(path)} has the shape "
                f"{list(np.shape(held[place_of(path)]))}, but these parameters need "
                f"{list(want.shape)}: the state belongs to different parameters"
            )
    return tree.unflatten(held[place_of(path)] for path, _ in leaves)


def _steps(counts: Mapping[str, Any], given: int | None, other: str) -> int:
    """The number of steps taken, after a check that all counts agree."""
    known = {label: _whole(label, x) for label, x in counts.items()}
    if given is not None:
        known["count"] = _whole("count", given)
    if not known:
        raise StageError(
            f"{other} does not contain the number of steps taken; pass it as count=, because "
            "schedules and bias corrections depend on it"
        )
    if len({*known.values()}) > 1:
        first = next(iter(known.values()))
        other_label = next(label for label, x in known.items() if x != first)
        raise StageError(
            f"{next(iter(known))} is {first}, but {other_label} is {known[other_label]}: a chain "
            "has one count for all parameters. Were some parameters frozen, or steps skipped?"
        )
    return next(iter(known.values()))


def _whole(label: str, x: Any) -> int:
    array = _numpy(x)
    if array.ndim or not np.isreal(array) or array < 0 or array != np.floor(array):
        shown = described(x) if array.ndim else array
        raise StageError(f"{label} is {shown}, not a number of steps")
    return int(array)


def _numpy(x: Any) -> np.ndarray:
    """A tensor or array as a NumPy array; 16-bit floats become float32."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().resolve_conj()
        return (x.float() if x.dtype.itemsize < 4 else x).numpy()
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _listed(names: Any) -> str:
    return ", ".join(names) or "nothing"


# Optax


class _Entry(NamedTuple):
    """One state in an Optax state, its path, and whether it is the last one in its chain."""

    path: str
    state: Any
    last: bool


def _of_optax(given: Any) -> Any:
    """The Optax state in the given object, with plain arrays."""
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
            f"at {path or 'its top'} the Optax state is {described(node)}, but must be a state "
            "(a NamedTuple) or a tuple of states, as tx.init() returns it"
        )


def _foreign(
    links: Mapping[str, Link], state: Mapping[str, Any], entries: list[_Entry]
) -> Iterator[tuple[str, Any, _Entry | None]]:
    """The states of the chain's Optax transformations, each with the entry of the same type.

    These entries are removed from ``entries``.
    """
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
    """The first tree of arrays, which has the structure and shapes of the parameters."""
    trees = (
        getattr(entry.state, field)
        for entry in entries
        for field in ("mu", "nu", "trace", "sum_of_squares")
        if hasattr(entry.state, field)
    )
    return next(trees, {})


def _arrays(
    entries: Sequence[_Entry], links: Mapping[str, Link], params: Any
) -> tuple[Counterparts, dict[str, list[Any]]]:
    """For each tree of an Optax state, the corresponding slots, and one array per parameter."""
    tree = jax.tree.structure(params)
    counterparts, columns = {}, {}
    for path, state, last in entries:
        name = type(state).__name__
        if jax.tree.leaves(state) and name not in _OPTAX:
            raise _refused(path, state)
        for field, kinds in _OPTAX.get(name, {}).items():
            label, column = f"{path}.{field}", getattr(state, field)
            columns[label] = _column(label, column, tree, params)
            counterparts[label] = kinds
        _check_rule(name, path, last, links)
    return counterparts, columns


def _column(label: str, arrays: Any, tree: Any, params: Any) -> list[Any]:
    """The arrays of a tree, one per parameter; container types may differ (``nnx.State``, dict)."""
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
    """Check that the arrays of a state of this type mean the same in Optax and in the chain."""
    rest = [(key, x) for key, x in links.items() if not isinstance(x, Observer)]
    for i, (key, link) in enumerate(rest):
        if name == "TraceState" and link.name == "scale_by_heavy_ball":
            ends = i == len(rest) - 1
            if ends != last:
                there, here = ("last", "not last") if last else ("not last", "last")
                raise StageError(
                    f"the velocity {path}.trace is {there} in its Optax chain, but this stage is "
                    f"{here} in the chain: the velocity of optax.rmsprop contains the learning "
                    "rate, that of adamx.rmsprop does not. Write the chain in Optax's order: "
                    "chain(scale_by_rms(decay, 0.0, eps_hat=eps), scale_by_learning_rate(rate), "
                    "scale_by_heavy_ball(momentum))"
                ).within(stage=key)
        if name == "ScaleByAdamState" and link.name == "scale_by_nesterov_momentum":
            assert isinstance(link, Stage)
            if not _is_constant_momentum(link):
                raise StageError(
                    "its momentum warms up, but Optax's momentum is constant: pass "
                    "momentum_decay=math.inf"
                ).within(stage=key)


def _is_constant_momentum(link: Stage) -> bool:
    decay = link.arguments["momentum_decay"]
    return not callable(decay) and bool(np.isinf(decay))


def _refused(path: str, state: Any) -> StageError:
    name, where = type(state).__name__, path or "its top"
    if name == "ScaleByAmsgradState":
        return StageError(
            f"the Optax state at {where} is a state of optax.amsgrad, which keeps the maximum of "
            "v̂. adamx.amsgrad (like PyTorch) keeps the maximum of v, and neither can be computed "
            "from the other. Continue with Optax's transformation in a chain: "
            "adamx.chain(optax.scale_by_amsgrad(…), adamx.scale_by_learning_rate(…))"
        )
    inner = [x for x in getattr(state, "_fields", ()) if x in ("inner_state", "inner_opt_state")]
    remedy = (
        f"convert its .{inner[0]}, and write it back with ._replace({inner[0]}=…)"
        if inner
        else f"states that can be converted are {_listed(_OPTAX)}"
    )
    return StageError(f"the Optax state at {where} is a {name}, which can't be converted: {remedy}")


def _start(link: Link) -> np.ndarray:
    """The initial value of the chain's sum of squares."""
    assert isinstance(link, Stage)
    return np.asarray(link.at(0).arguments["initial_accumulator_value"], np.float64)


def _given(initial_accumulator_value: float | None) -> float:
    if initial_accumulator_value is None:
        raise StageError(
            "optax.adagrad adds ε inside the root, but the chain includes it in the sum. Pass "
            "initial_accumulator_value=, the argument of optax.adagrad (0.1 by default), so that "
            "the sum can be converted"
        )
    return initial_accumulator_value


# PyTorch


def _torch_arrays(group: Mapping[str, Any], path: str) -> tuple[Counterparts, tuple[str, ...]]:
    """The arrays and the scalars that an optimiser with this parameter group keeps."""
    for switch in ("dampening", "maximize"):
        if group.get(switch):
            raise StageError(
                f"its group has {switch}={group[switch]}, which adamx does not support; train "
                "without it"
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
        f"its group ({_listed(group)}) belongs to none of the optimisers that can be converted"
    ).within(parameter=path)


def _torch_order(
    state_dict: Any, slots: _Slots, names: Sequence[str] | None
) -> list[tuple[int, int, Mapping[str, Any]]]:
    """For every parameter in PyTorch's order: its JAX index, its PyTorch index and its group."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            f"expected optimizer.state_dict(), a dict with 'state' and 'param_groups', got "
            f"{type(state_dict).__name__}"
        )
    there = [(index, group) for group in state_dict["param_groups"] for index in group["params"]]
    if len(there) != len(slots.names):
        raise StageError(
            f"PyTorch's state has {len(there)} parameters, but params has {len(slots.names)}"
        )
    order = _in_order(slots) if names is None else list(names)
    if sorted(order) != sorted(slots.names):
        raise StageError(
            f"names must contain the path of every parameter once, in PyTorch's order; got "
            f"{_listed(order)}, but the parameters are {_listed(slots.names)}"
        )
    return [(slots.names.index(path), *at) for path, at in zip(order, there, strict=True)]


def _in_order(slots: _Slots) -> list[str]:
    """The paths of parameters that are a list, a tuple or a single array."""
    shapes = [0] * len(slots.names)
    rows = (shapes, tuple(shapes), 0)
    if slots.tree not in [jax.tree.structure(row) for row in rows]:
        raise StageError(
            "PyTorch identifies parameters by numbers, and these parameters are in a tree, whose "
            f"order may differ. Pass names=, the paths {_listed(slots.names)} in PyTorch's order"
        )
    return slots.names


def _check_begun(order: Any, kept: Mapping[int, Any], slots: _Slots) -> None:
    """Check that the optimiser has taken a step."""
    empty = {
        index: slots.paths[i]
        for i, index, group in order
        if _torch_arrays(group, slots.paths[i])[0]
    }
    if empty and not any(kept.get(index) for index in empty):
        raise StageError(
            f"PyTorch's state has no entry for {_listed(empty.values())}. Has this optimiser taken "
            "a step? Without a step, start the chain with opt.init(params)"
        )


def _check_kept(kept: Mapping[str, Any], wanted: Collection[str], index: int, path: str) -> None:
    """Check that PyTorch's entry for a parameter fits its parameter group."""
    kept = {name: x for name, x in kept.items() if x is not None}
    if missing := [name for name in wanted if name not in kept]:
        raise StageError(
            f"PyTorch's state[{index}] has no {_listed(missing)}; it has {_listed(kept)}. Only a "
            "parameter that never had a gradient may lack these, and it has no entry at all"
        ).within(parameter=path)
    if unknown := [name for name in kept if name not in wanted]:
        raise StageError(
            f"PyTorch's state[{index}] has {_listed(unknown)} in addition to {_listed(wanted)}: "
            "the state and the parameter group belong to different optimisers"
        ).within(parameter=path)


def _check_decays(group: Mapping[str, Any], pairs: Mapping[_Place, str], slots: _Slots) -> None:
    """Check that the decay rates of the chain equal those of PyTorch."""
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
                    f"{name} is {ours}, but {float(theirs)} in PyTorch, and the averages depend on "
                    f"it. Convert with PyTorch's value, and then call opt.replace({name}={ours})"
                ).within(stage=place.stage)
        if link.name == "scale_by_nesterov_momentum" and not (
            link.arguments["constant_decay"] or _is_constant_momentum(link)
        ):
            raise StageError(
                "its average decays by the momentum that warms up, but PyTorch's average by a "
                "constant: pass constant_decay=True"
            ).within(stage=place.stage)
