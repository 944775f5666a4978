"""Record metrics inside a chain, without changing its signals."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.arguments.hyper import LARGEST_COUNT, clock_dtype
from adamx.core import Signal, Squares, StageError, Transformation
from adamx.errors import as_given
from adamx.identity import ByValue
from adamx.links.observer import Observer, View, nothing
from adamx.links.rule import CONSECUTIVE, SKIPPED
from adamx.numerics.arithmetic import sum_of_numbers
from adamx.numerics.formats import statistics_dtype, wider
from adamx.numerics.shards import axes_of, over_shards, varying
from adamx.numerics.types import Array, Int32, PyTree, Scalar, Values
from adamx.states.reading import find
from adamx.wrappers.selection import Selector, Where, called, check_call, checked

__all__ = ["metrics", "watch"]

Groups: TypeAlias = Mapping[str, Selector] | Callable[[str], str] | None


class Watch(Observer):
    """The observer behind :func:`watch`."""

    name = "watch"

    def __init__(self, groups: Groups, every: int):
        self.structure: ByValue = ByValue((groups, every))

    @property
    def groups(self) -> Groups:
        """The groups of parameters that have readings of their own."""
        return self.structure.value[0]

    @property
    def every(self) -> int:
        """It looks in every step whose count is a multiple of this number."""
        return self.structure.value[1]

    @staticmethod
    def summand(signal: Signal, gradient: Values, param: Values | None) -> dict[str, Any]:
        bias = signal.notes.get("correction", signal.bias)
        return {
            "grad_norm": _squares(gradient),
            "grad_rms": _squares(signal.gradient),
            "update_rms": _squares(signal.update),
            "param_rms": None if param is None else _squares(param),
            "snr": _squares(signal.notes["direction"]) if "direction" in signal.notes else None,
            "bias": None if bias is None else bias.astype(clock_dtype()),
        }

    def observe(self, view: View, before: Any, looks: bool) -> Any:
        if before is None:
            readings = self.readings(view)
        else:
            readings = kept = {"all": before["all"], "groups": before["groups"]}
            if looks:
                readings = _as_kept(self.readings(view, kept["groups"]), kept)
            if looks and self.every > 1:
                due = view.count % self.every == 0
                readings = jax.tree.map(functools.partial(jnp.where, due), readings, kept)
        numbers = {
            name: jnp.asarray(value, clock_dtype())
            for name, value in view.hyperparams.items()
            if name in view.scheduled or "learning_rate" in name
        }
        return readings | {"numbers": numbers}

    def readings(self, view: View, kept: Iterable[str] = ()) -> dict[str, Any]:
        """The readings of all parameters, and of every group; the state has those of ``kept``."""
        sums = [
            None if terms is None else _counted(terms, size, leaf.size)
            for terms, size, (_, leaf) in zip(view.terms, view.sizes, view.leaves, strict=True)
        ]
        _count_nonfinite(sums, view.gradients)
        groups = {
            label: _readings([sums[i] for i in own], [view.shards[i] for i in own])
            for label, own in self.members(view).items()
            # A group may have no known parameter if some have no gradient in this step.
            if view.idle is None or any(sums[i] for i in own)
        }
        unseen = {} if view.idle is None else dict.fromkeys(kept, _readings([], []))
        return {"all": _readings(sums, view.shards), "groups": unseen | groups}

    def members(self, view: View) -> dict[str, list[int]]:
        """The indices of the parameters of every group."""
        if self.groups is None:
            return {}
        if isinstance(self.groups, Mapping):
            return {
                label: [i for i, own in enumerate(self.chosen(label, selector, view)) if own]
                for label, selector in self.groups.items()
            }
        found: dict[str, list[int]] = {}
        for i, (path, _) in enumerate(view.leaves):
            found.setdefault(self.label(path), []).append(i)
        return found

    def chosen(self, label: str, selector: Selector, view: View) -> list[bool]:
        try:
            return Where(selector).choose(view.leaves, idle=view.idle)
        except StageError as error:
            error.message = f"the group {label!r}: {error.message}"
            raise error.within(stage=self.name) from error.__cause__

    def label(self, path: str) -> str:
        """The name of a parameter's group, if groups are given by a function."""
        assert callable(self.groups)
        try:
            label = self.groups(path)
        except Exception as error:
            raise StageError(
                f"the function {called(self.groups)} of its groups raised "
                f"{type(error).__name__}: {error}. It is called with a path, a string"
            ).within(stage=self.name, parameter=path or "(the only one)") from error
        if not isinstance(label, str):
            raise StageError(
                f"the function {called(self.groups)} of its groups returned a "
                f"{type(label).__name__}, where the name of a group is needed, a string"
            ).within(stage=self.name, parameter=path or "(the only one)")
        return label

    def __fingerprint__(self) -> Any:
        return self.groups, self.every, self.around

    def __repr__(self) -> str:
        groups = f"groups={self.groups!r}" if self.groups is not None else ""
        every = f"every={self.every}" if self.every != 1 else ""
        return f"watch({', '.join(filter(None, [groups, every]))})"


jax.tree_util.register_pytree_node(
    Watch,
    lambda link: ((), (link.structure, link.around)),
    lambda aux, _: Watch.of_records(*aux),
)


def _squares(x: Any) -> Squares:
    """Σ|x|². If clipping needs the squares of the same array, too, XLA computes them once."""
    x = jnp.asarray(x)
    # Parameters may have few bits.
    return Squares.of(x.astype(wider(statistics_dtype(x.dtype), clock_dtype())))


def _counted(terms: Mapping[str, Any], size: int, param_size: int) -> dict[str, Any]:
    """One array's terms, where squares have their number beside them."""
    sizes = {"param_rms": param_size}
    return {
        name: (x, float(sizes.get(name, size))) if isinstance(x, Squares) else x
        for name, x in terms.items()
    }


def _count_nonfinite(sums: Sequence[dict[str, Any] | None], gradients: Sequence[Any]) -> None:
    """Add to each array's terms the number of elements of its gradient that are NaN or infinite.

    If a sum of squares is finite, all its terms are. So they are counted only if a sum is not, and
    in one ``cond``, whose condition needs the sums of all devices: one collective.
    """
    alike: dict[frozenset[str], list[int]] = {}
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            alike.setdefault(axes_of(gradient), []).append(i)
    for axes, places in alike.items():
        of_these = [sums[i] or {} for i in places]
        plain = jnp.stack([x["grad_norm"][0].plain for x in of_these])

        def counted(arrays: list[Values]) -> list[Scalar]:
            return [jnp.sum(~jnp.isfinite(x), dtype=clock_dtype()) for x in arrays]

        def none(arrays: list[Values], axes: frozenset[str] = axes) -> list[Scalar]:
            return [varying(jnp.zeros((), clock_dtype()), axes) for _ in arrays]

        finite, arrays = jnp.isfinite(plain).all(), [gradients[i] for i in places]
        for of_one, count in zip(
            of_these, jax.lax.cond(finite, none, counted, arrays), strict=True
        ):
            of_one["nonfinite"] = count


def _readings(
    sums: Sequence[Mapping[str, Any] | None], shards: Sequence[tuple[str, ...]]
) -> dict[str, Scalar | Int32[Array, ""]]:
    """The readings of a group, from its parameters that have a gradient in this step."""
    unseen = nothing((), clock_dtype())
    of_each: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for of_one, axes in zip(sums, shards, strict=True):
        if of_one is not None:
            of_each.setdefault(axes, []).append(of_one)
    parts = [over_shards(_sum(some), axes) for axes, some in of_each.items()]
    total: Mapping[str, Any] = _sum(parts) if parts else {}
    biases = [x["bias"] for x in sums if x and x["bias"] is not None]

    def known(name: str) -> bool:
        return total.get(name) is not None

    def rms(name: str) -> Scalar:
        if not known(name):
            return unseen
        squares, elements = total[name]
        size, unit = squares.norm()
        return size * (unit / jnp.sqrt(jnp.maximum(elements, 1)).astype(size.dtype))

    update, ratio = rms("update_rms"), unseen
    if known("param_rms"):
        param = rms("param_rms")
        ratio = jnp.where(param == 0, unseen, update / jnp.where(param == 0, 1, param))
    readings = {
        "grad_norm": total["grad_norm"][0].norm().value if known("grad_norm") else unseen,
        "grad_rms": rms("grad_rms"),
        "update_rms": update,
        "update_ratio": ratio,
        "nonfinite": _whole_number(total["nonfinite"]) if total else jnp.zeros((), jnp.int32),
    }
    if known("snr"):
        readings["snr"] = rms("snr")
    if biases:
        readings["bias"] = biases[0]
    return {
        name: x if name == "nonfinite" else jnp.asarray(x, clock_dtype())
        for name, x in readings.items()
    }


def _sum(terms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums, squares and numbers of elements, of those that have them."""
    names = [name for name in terms[0] if name != "bias"]
    found = {name: [x[name] for x in terms if x[name] is not None] for name in names}
    return {
        name: jax.tree.map(lambda *x: sum_of_numbers(x), *rows) if rows else None
        for name, rows in found.items()
    }


def _whole_number(x: Scalar) -> Int32[Array, ""]:
    """A count as an integer, at most the largest one."""
    largest = np.nextafter(np.float32(2**31), np.float32(0))
    return jnp.minimum(x, largest.astype(x.dtype)).astype(jnp.int32)


def _as_kept(seen: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The new readings in the form of the old ones; :func:`nothing` for missing ones."""
    if seen["groups"].keys() != kept["groups"].keys():
        raise StageError(
            f"the state holds readings of the groups {sorted(kept['groups'])}, but this chain has "
            f"{sorted(seen['groups'])}. Convert it with adamx.restore_state(state, opt, params)"
        ).within(stage="watch")

    def merged(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
        # A state of an older version keeps its form, without the readings that it does not know.
        return {key: new.get(key, nothing((), x.dtype)) for key, x in old.items()}

    groups = {label: merged(new, kept["groups"][label]) for label, new in seen["groups"].items()}
    return {"all": merged(seen["all"], kept["all"]), "groups": groups}


def watch(groups: Groups = None, *, every: int = 1) -> Transformation:
    r"""Record metrics of the signals at this place of the chain, without changing them.

    Put it last, after the learning rate, where u is the step. :func:`metrics` reads the metrics of
    the last step from the state:

    ==================  ==========================================================================
    ``grad_norm``       :math:`\sqrt{\sum |g|^2}` of the gradients that ``update`` was called with,
                        over all arrays: the global norm before clipping, wherever ``watch`` stands
    ``grad_rms``        :math:`\sqrt{\operatorname{mean} |g|^2}` of the gradient from which the
                        chain computes statistics, so after clipping; with ``chain(watch(), …)``,
                        of the input
    ``update_rms``      the same for the update
    ``update_ratio``    RMS(u) / RMS(θ), the relative change of the parameter in a step; NaN
                        without parameters, or if they are all zero
    ``snr``             RMS of :math:`\hat m/(\sqrt{\hat v} + \epsilon)`, the signal-to-noise ratio
                        of Section 2.1; if a :func:`bias_correction` stands in front
    ``bias``            the bias that was divided out, or that is still to be corrected, for the
                        first parameter that has one
    ``nonfinite``       the number of elements that are NaN or infinite of the gradients that
                        ``update`` was called with
    ``learning_rate``   its value in this step; so for every hyperparameter with a schedule
    ==================  ==========================================================================

    With :func:`partition`, ``learning_rate@group`` is the learning rate of a group.
    ``learning_rate`` is there as well: the value of all groups if they have the same in this step,
    and NaN if they differ.

    Args:
        groups: groups of parameters with metrics of their own: a dict from a name to a selector
            (see :func:`where`), or a function from a path to its group's name,
            ``lambda path: path.split("/")[0]``.
        every: show the metrics of every n-th step only, including the first one, and keep them in
            between; hyperparameters are those of every step. It saves no time.

    Slots and updates do not change. Sums are computed in float32 (or JAX's float64), and only
    scalars are kept. Metrics without a value are NaN: all before the first step, and those for
    which no parameter has a gradient.

    Recording takes a few sums over the arrays, which a kernel computes within the step, and XLA in
    passes of their own (:doc:`/performance`). ``update(…, observe=False)`` leaves it out of a step
    and updates the hyperparameters only. With ``observe`` as a static argument of the training
    step, two programs are compiled, and only the logged steps pay for recording.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Section 2.1, for the signal-to-noise ratio.

    Raises:
        TypeError: if ``groups`` is neither a dict of selectors nor a function.
        ValueError: if ``every`` is less than 1, or more than the largest count of steps.
        StageError: from ``init`` and ``update``, for a group's pattern that matches no parameter,
            and for a function of groups that raises an error or does not return a name.

    >>> rate = optax.linear_schedule(0.1, 0.0, 10)
    >>> opt = adamx.chain(adamx.adam(rate), adamx.watch())
    >>> params = {"w": jnp.array([3.0, 4.0])}
    >>> state = opt.init(params)
    >>> _, state = opt.update({"w": jnp.array([1.0, -2.0])}, state, params)
    >>> seen = adamx.metrics(state)
    >>> seen["learning_rate"], round(seen["update_ratio"], 4), round(seen["snr"], 4)
    (0.1, 0.0283, 1.0)
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(
            f"every must be a whole number of steps, at least 1, got {as_given(every)}"
        )
    if every > LARGEST_COUNT:
        raise ValueError(f"every must be at most {LARGEST_COUNT}, where the count stops")
    if isinstance(groups, Mapping):
        groups = {str(label): checked(selector) for label, selector in groups.items()}
    elif groups is not None and not callable(groups):
        raise TypeError(
            "groups must be a dict from names to selectors, or a function from a path to a name, "
            f"got {as_given(groups)}"
        )
    elif groups is not None:
        check_call(groups, "the function of groups", "path -> name", "")
    return Transformation((Watch(groups, every),))


_WATCH = re.compile(r"watch(@.*?)?(_\d+)?")


def metrics(state: PyTree) -> dict[str, Any]:
    """The metrics that :func:`watch` recorded in the last step, as a flat dict of scalars.

    Args:
        state: the state of a chain with ``watch()`` in it, or anything that holds one: an
            ``optax.chain``'s state, a Flax ``TrainState``, an ``nnx.Optimizer``.

    Returns:
        A dict from ``grad_rms`` (of all parameters), ``kernels/grad_rms`` (of a group),
        ``learning_rate`` (a hyperparameter), … to Python numbers; to arrays under ``jit`` and for a
        batch of states. If the state holds several ``watch``, names start with theirs, as in
        ``watch_2/grad_rms``.

    ``optax.apply_if_finite`` around the chain (and ``optax.MultiSteps`` that skips steps) discards
    a bad step with its metrics. Under such a wrapper the dict has ``skipped``: 1 if the last step
    was discarded, and then all other metrics are NaN, including ``nonfinite``; else 0. After too
    many bad steps in a row, ``apply_if_finite`` accepts a bad step: then ``skipped`` is 0, and
    ``nonfinite`` has its value.

    The counts of gates are metrics, too, with the gate's name in front, as in
    ``skip_nonfinite/skipped`` (:func:`skip_nonfinite`). They need no ``watch``. A ``watch`` inside
    of a gate keeps the metrics of the last step that counted.

    Raises:
        ValueError: if the state holds neither a ``watch`` nor a gate.

    >>> tx = optax.apply_if_finite(adamx.chain(adamx.sgd(0.1), adamx.watch()), 5)
    >>> state = tx.init(jnp.zeros(1))
    >>> for grad in (1.0, float("nan")):
    ...     _, state = tx.update(jnp.array([grad]), state)
    ...     seen = adamx.metrics(state)
    ...     print(seen["skipped"], seen["nonfinite"])
    0.0 0.0
    1.0 nan
    """
    states = find(state, nested=True)
    entries = [
        (name, entry, found.skipped)
        for found in states
        for name, entry in found.state.items()
        if _is_watch(name)
    ]
    gates = {
        f"{name}/{clock}": _plain(x)
        for found in states
        for name, entry in found.state.items()
        for clock, x in _clocks_of_gate(entry).items()
    }
    if not entries and not gates:
        raise ValueError(
            "the state holds no stage 'watch'; add adamx.watch() to the chain: chain(opt, watch())"
        )
    found = {}
    for name, entry, skipped in entries:
        front = f"{name}/" if len(entries) > 1 else ""
        seen = {f"{front}{key}": x for key, x in _flat(entry).items()}
        if skipped is not None:
            seen = _gated(seen, skipped & (entry["all"]["nonfinite"] == 0), f"{front}skipped")
        found |= {key: _plain(x) for key, x in seen.items()}
        if (rate := _common(found, f"{front}learning_rate")) is not None:
            found[f"{front}learning_rate"] = rate
    return found | gates


def _common(found: Mapping[str, Any], name: str) -> Any:
    """What the groups of a partition agree on, else NaN; None if no groups have values of it.

    The name does not come and go with the values, so that logs keep their columns.
    """
    of_groups = [x for key, x in found.items() if key.startswith(f"{name}@")]
    if not of_groups or name in found:
        return None
    with jax.debug_nans(False):  # NaN is intended here
        agree = functools.reduce(operator.and_, [x == of_groups[0] for x in of_groups])
        if any(isinstance(x, Tracer) for x in of_groups):
            return jnp.where(agree, of_groups[0], jnp.nan)
    values = np.where(agree, of_groups[0], np.nan)
    return values.item() if values.ndim == 0 else values


def _clocks_of_gate(entry: Any) -> Mapping[str, Any]:
    """The scalars in the entry of a gate; of other entries, nothing."""
    if not isinstance(entry, Mapping) or not {SKIPPED, CONSECUTIVE} <= entry.keys():
        return {}
    shape = np.shape(entry[SKIPPED])
    return {k: x for k, x in entry.items() if isinstance(x, _ARRAYS) and np.shape(x) == shape}


_ARRAYS = (jax.Array, np.ndarray, np.generic)


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """All metrics in a watch's entry; a framework may have dropped empty dicts."""
    seen = dict(entry["all"])
    for label, readings in entry.get("groups", {}).items():
        seen |= {f"{label}/{key}": x for key, x in readings.items()}
    return seen | dict(entry.get("numbers", {}))


def _gated(seen: Mapping[str, Any], skipped: Any, label: str) -> dict[str, Any]:
    """The readings of a step that may have been discarded."""
    dtype = clock_dtype()
    with jax.debug_nans(False):  # NaN is intended here
        readings = {key: jnp.where(skipped, jnp.nan, x.astype(dtype)) for key, x in seen.items()}
    return {**readings, label: jnp.asarray(skipped, dtype)}


def _is_watch(name: Any) -> bool:
    return isinstance(name, str) and _WATCH.fullmatch(name) is not None


def _plain(x: Any) -> Any:
    if isinstance(x, Tracer):
        lowest = nothing((), x.dtype)
        return jnp.where(x == lowest, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x
    values = np.asarray(x)
    if np.issubdtype(values.dtype, np.inexact):
        values = np.where(values == np.finfo(values.dtype).min, np.nan, values)
    return values.item() if values.ndim == 0 else values
