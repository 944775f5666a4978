"""The averages of the parameters in a state: to evaluate with, and to combine afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.core import StageError, decay_weight
from adamx.errors import as_given
from adamx.numerics.meshes import automatic, spec_of
from adamx.numerics.types import PyTree, Values
from adamx.stages.averaging import power_exponent
from adamx.states.reading import (
    Kept,
    batched,
    beside,
    find,
    kind_of,
    merged,
    stages_named,
    stages_of_kinds,
)
from adamx.trees.packed import values
from adamx.trees.paths import place_of
from adamx.trees.steps import Params
from adamx.wrappers.codecs import Codec

__all__ = ["ema_snapshot", "eval_params", "reconstruct_ema"]


class _Average(NamedTuple):
    """How to read the average of one kind of stage.

    Attributes:
        call: the stage's call, for errors.
        slot: the slot that it is read from.
        clock: the clock that it is read with.
        value: ``(clock, slot, parameter) -> average``, in the dtype of the slot.
    """

    call: str
    slot: str
    clock: str
    value: Callable[[Any, Values, Values], Values]


def _if_any(count: Any, average: Values, param: Values) -> Values:
    """The average of ``count`` iterates, or of this weight; without any, the parameter."""
    return jnp.where(count > 0, average, param.astype(average.dtype))


def _debiased(log_decay: Any, ema: Values, param: Values) -> Values:
    weight = decay_weight(log_decay).astype(jnp.finfo(ema.dtype).dtype)
    return _if_any(weight, ema / jnp.where(weight > 0, weight, 1), param)


def _extrapolated(b1: Any, z: Values, y: Values) -> Values:
    return z + (y.astype(z.dtype) - z) / b1[1].astype(jnp.finfo(z.dtype).dtype)


_AVERAGES: Mapping[str, _Average] = {
    "polyak_ema": _Average("polyak_ema(decay)", "ema", "log_decay", _debiased),
    "power_ema": _Average("power_ema(std)", "ema", "steps", _if_any),
    "tail_average": _Average(
        "tail_average(start)", "mean", "steps", lambda count, x, y: _if_any(count[1], x, y)
    ),
    "schedule_free": _Average("schedule_free(learning_rate)", "z", "b1", _extrapolated),
    "primal_average": _Average("primal_average()", "z", "b1", _extrapolated),
    "lookahead": _Average("lookahead()", "slow", "steps", lambda steps, slow, y: slow),
}
_KEYS = {kind: (x.slot, x.clock) for kind, x in _AVERAGES.items()}


def eval_params(
    state: PyTree, params: Params, *, name: str | None = None, codecs: tuple[Codec, ...] = ()
) -> Params:
    r"""The parameters to evaluate with: the average that the state holds.

    ======================  =======================================================
    the stage               what is returned
    ======================  =======================================================
    :func:`polyak_ema`      :math:`\bar\theta_t / (1 - \prod_i d_i)`
    :func:`power_ema`       :math:`\bar\theta_t`
    :func:`tail_average`    :math:`\bar\theta_t`
    :func:`schedule_free`   x, which is z + (y − z)/β₁ for the trained parameters y
    :func:`primal_average`  x, which is z + (y − z)/μ_y for the trained parameters y
    :func:`lookahead`       the slow parameters φ
    ======================  =======================================================

    What is trained does not change: evaluate the result, and go on. With a ``TrainState`` of Flax::

        averaged = state.replace(params=adamx.eval_params(state, state.params))

    With NNX, a second model with the averages, and with the batch statistics and all else of the
    first that has no average::

        graph, variables = nnx.split(model)
        averaged = nnx.merge(graph, adamx.eval_params(optimizer, variables))

    Args:
        state: the state of a chain, or an object that contains one: the state of an
            ``optax.chain``, a Flax ``TrainState``, an ``nnx.Optimizer``; also a batch of states
            under ``vmap``, with a batch of parameters.
        params: the trained parameters.
        name: which average, if the state holds several of one parameter: the name of the stage in
            the state, ``"power_ema_2"`` for the second :func:`power_ema`. Inside of
            :func:`adamx.where` or :func:`adamx.partition`, this name refers to all groups of the
            stage; ``"polyak_ema@group"`` refers to one of them, and ``"polyak_ema@group_2"`` to the
            second one in this group.
        codecs: your own codecs with which the state was quantized.

    Returns:
        A tree like the parameters, in their dtypes. Parameters without an average, and those of
        which nothing has been averaged yet, are returned as they are. (For :func:`schedule_free`
        with β₁ = 0, the result is not finite, because y does not contain x.)

    Raises:
        ValueError: if the state holds no average, if it holds several of one parameter and ``name``
            is None, or if it has no average of this name.
        StageError: if the state belongs to other parameters.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.where("!bias", adamx.polyak_ema(0.5)))
    >>> params = {"bias": jnp.zeros(1), "kernel": jnp.zeros(1)}
    >>> state, grads = opt.init(params), {"bias": -jnp.ones(1), "kernel": -jnp.ones(1)}
    >>> for _ in range(2):
    ...     updates, state = opt.update(grads, state, params)
    ...     params = adamx.apply_updates(params, updates)
    >>> print(adamx.eval_params(state, params))  # of 1 and 2, with the weights 1/3 and 2/3
    {'bias': Array([2.], dtype=float32), 'kernel': Array([1.6666666], dtype=float32)}
    """
    found = _found(state, name)
    thetas, tree = jax.tree.flatten(params)
    unpack = functools.partial(_values, codecs=codecs)

    def of_stage(stage: str, kept: Kept) -> list[Any]:
        read = _AVERAGES[kind_of(stage)]

        def of_one(clock: Any, average: Values, theta: Values) -> Values:
            with jax.numpy_dtype_promotion("standard"):  # complex over real
                return read.value(clock, average, theta).astype(theta.dtype)

        of_each = batched(of_one, kept.axes)
        clock, averages = kept.entry[read.clock], unpack(kept.entry[read.slot])

        def evaluated(average: Any, param: Any) -> Any:
            theta = jnp.asarray(param)
            given = clock, _like(average, theta, stage), theta
            found = automatic(of_each, given, lambda: [spec_of(theta)])
            # As the parameter is divided, since the average may be divided otherwise (adamx.place).
            is_known = not isinstance(found, Tracer) and getattr(param, "committed", False)
            return jax.device_put(found, param.sharding) if is_known else found

        return [
            None if x is None else evaluated(x, theta)
            for theta, x in zip(thetas, beside(params, averages), strict=True)
        ]

    averages = merged({label: of_stage(stage, kept) for label, (stage, kept) in found.items()})
    return tree.unflatten(x if y is None else y for x, y in zip(thetas, averages, strict=True))


def _found(state: PyTree, name: str | None) -> dict[str, tuple[str, Kept]]:
    """The stages with an average, each with its name: by a label that is unique."""
    if name is not None:
        if (kind := kind_of(name)) not in _AVERAGES:
            raise ValueError(
                f"name={name!r} is no stage that keeps an average of the parameters; these do: "
                f"{', '.join(_AVERAGES)}"
            )
        named = stages_named(state, name, _KEYS[kind], _AVERAGES[kind].call)
        return {stage: (stage, kept) for stage, kept in named.items()}
    found = stages_of_kinds(state, _KEYS)
    if not found:
        there = dict.fromkeys(key for x in find(state) for key in x.state if key != "count")
        raise ValueError(
            "the state holds no average of the parameters; add a stage that keeps one as the last "
            "one of the chain, chain(opt, polyak_ema(0.999)). There are the stages "
            f"{', '.join(there) or 'of no chain'}"
        )
    return found


def _values(tree: PyTree, codecs: tuple[Codec, ...]) -> PyTree:
    return values(tree, {codec.name: codec.unpack for codec in codecs})


def _like(average: Any, param: Any, stage: str) -> Any:
    if np.shape(average) != np.shape(param):
        raise StageError(
            f"the state belongs to other parameters: {stage} holds an average of the shape "
            f"{np.shape(average)}, and the parameter's is {np.shape(param)}"
        )
    return average


# Power functions, after the training


def ema_snapshot(state: PyTree, *, codecs: tuple[Codec, ...] = ()) -> dict[str, dict[str, Any]]:
    """The averages of :func:`power_ema`, to save for :func:`reconstruct_ema`.

    Args:
        state: the state of a chain with :func:`power_ema`, or an object that contains one.
        codecs: your own codecs with which the state was quantized.

    Returns:
        A dict of plain arrays, which any library for checkpoints saves. By the name of each stage
        ``power_ema``, it has the ``average`` (a tree like the parameters, in at least float32; None
        for those without), the number of ``steps`` that it averages, and its ``std``. The arrays
        are copies, so the state may be donated to the next step.

    Raises:
        ValueError: if the state holds no such stage.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.power_ema(0.1))
    >>> theta = jnp.array([0.0])
    >>> updates, state = opt.update(jnp.array([-1.0]), opt.init(theta), theta)
    >>> for key, value in adamx.ema_snapshot(state)["power_ema"].items():
    ...     print(key, value)
    average [1.]
    std 0.1
    steps 1
    """
    found = stages_of_kinds(state, {"power_ema": ("ema", "steps", "std")})
    if not found:
        raise ValueError(
            "the state holds no stage 'power_ema'; add it as the last stage of the chain, "
            "chain(opt, power_ema(std=(0.05, 0.1)))"
        )

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)

    return {
        label: copy(
            {
                "average": _values(kept.entry["ema"], codecs),
                "steps": kept.entry["steps"],
                "std": kept.entry["std"],
            }
        )
        for label, (_, kept) in found.items()
    }


def reconstruct_ema(
    snapshots: Sequence[Mapping[str, Mapping[str, Any]]],
    std: float,
    *,
    step: int | None = None,
    tolerance: float = 0.1,
) -> PyTree:
    r"""The average with another ``std``, from averages saved during the training (post-hoc EMA).

    .. math::
        \bar\theta = \sum_k x_k \bar\theta_k, \qquad
        x = \operatorname{argmin}_{\sum_k x_k = 1}
        \int \Bigl(p(\tau) - \sum_k x_k p_k(\tau)\Bigr)^2 d\tau

    where :math:`\bar\theta_k` are the saved averages and :math:`p(\tau) = (\gamma+1)
    \tau^\gamma / t^{\gamma+1}` for τ ≤ t is the weight of the parameters at the time τ in an
    average at step t. So the length of the average is chosen after the training, among many,
    without training again.

    Two averages, of 0.05 and 0.1, saved a few dozen times at equal distances, give all averages of
    about 0.02 to 0.25. The coefficients are computed in double precision, and so are the sums.

    Args:
        snapshots: what :func:`ema_snapshot` returned at several steps of one training, in any
            order; the arrays may be NumPy's or JAX's. One array of each is read at a time, so they
            may be memory-mapped files.
        std: the relative standard deviation of the average that is wanted, in (0, 0.2886].
        step: the step t at which it ends; None for the last snapshot's.
        tolerance: how far the weights of all steps may be from those of the wanted average,
            :math:`\|p - \sum_k x_k p_k\| / \|p\|`.

    Returns:
        A tree like the parameters, of the dtypes of the averages. For evaluation in a narrower
        dtype, convert it.

    Raises:
        ValueError: without snapshots; for an ``std`` or a ``step`` outside of their domains; for
            snapshots of parameters of different shapes; if the weights can't be approximated up to
            ``tolerance``.
        TypeError: for something that :func:`ema_snapshot` does not return.

    Source: Karras et al. 2024 (arXiv 2312.02696), Section 3.2 and Algorithm 3.

    >>> opt = adamx.chain(adamx.sgd(1.0), adamx.power_ema((0.05, 0.1, 0.15)))
    >>> theta, snapshots = jnp.array([0.0]), []
    >>> state = opt.init(theta)
    >>> for t in range(1, 201):
    ...     updates, state = opt.update(jnp.array([-1.0]), state, theta)
    ...     theta = adamx.apply_updates(theta, updates)
    ...     if t % 10 == 0:
    ...         saved = adamx.ema_snapshot(state)
    ...         truth = saved.pop("power_ema_3")["average"]
    ...         snapshots.append(saved)
    >>> print(adamx.reconstruct_ema(snapshots, 0.15).round(2), truth.round(2))
    [164.52] [164.51]
    """
    power_exponent(std, "reconstruct_ema")
    groups: dict[frozenset[Any], list[_Saved]] = {}  # by the parameters that they average
    for i, snapshot in enumerate(snapshots):
        saved = [_Saved.of(label, entry, i) for label, entry in _entries(snapshot, i)]
        kinds = {x.parameters for x in saved}
        if i and kinds != groups.keys():
            ours, theirs = (sorted(_paths(x)) for x in (kinds, groups))
            raise ValueError(
                "reconstruct_ema: the snapshots are of different trainings: number 0 has averages "
                f"of {', '.join(theirs[:8])}, and number {i} of {', '.join(ours[:8])}"
            )
        for one in saved:
            groups.setdefault(one.parameters, []).append(one)
    if not groups:
        raise ValueError("reconstruct_ema: there are no snapshots; pass those of ema_snapshot()")
    made = {x[0].place: _combined(x, std, step, tolerance) for x in groups.values()}
    return merged(made)


def _paths(groups: Iterable[frozenset[Any]]) -> set[str]:
    return {"/".join(path) or "the parameter" for group in groups for path in group}


class _Saved(NamedTuple):
    """One saved average."""

    place: str
    steps: int
    std: float
    average: PyTree

    @classmethod
    def of(cls, label: str, entry: Mapping[str, Any], number: int) -> _Saved:
        place = f"{label!r} of snapshot {number}"
        steps, std = (np.unique(np.asarray(entry[key])) for key in ("steps", "std"))
        if steps.size != 1 or std.size != 1:  # a batch of states has the same in each
            raise ValueError(f"reconstruct_ema: {place} has different steps or std in its batch")
        if steps[0] < 1:
            raise ValueError(f"reconstruct_ema: {place} was taken before the first step")
        # The decimal number that was passed; its float32 is a little off.
        return cls(place, int(steps[0]), float(str(std[0])), entry["average"])

    @property
    def parameters(self) -> frozenset[Any]:
        """The paths of the parameters."""
        found = jax.tree_util.tree_flatten_with_path(self.average)[0]
        return frozenset(place_of(path) for path, _ in found)


def _entries(snapshot: Any, number: int) -> list[tuple[str, Mapping[str, Any]]]:
    is_one = isinstance(snapshot, Mapping) and all(
        isinstance(x, Mapping) and {"average", "steps", "std"} <= x.keys()
        for x in snapshot.values()
    )
    if not is_one:
        raise TypeError(
            "reconstruct_ema: snapshots must be a list of what ema_snapshot() returns, got "
            f"{as_given(snapshot)} as number {number}"
        )
    return list(snapshot.items())


def _combined(saved: Sequence[_Saved], std: float, step: int | None, tolerance: float) -> PyTree:
    last = max(x.steps for x in saved)
    end = last if step is None else step
    if not 1 <= end <= last:
        raise ValueError(
            f"reconstruct_ema: step must be from 1 to {last}, the step of the last snapshot, "
            f"got {as_given(step)}"
        )
    shares, error = _coefficients([(x.steps, x.std) for x in saved], (end, std))
    if not error <= tolerance:
        raise ValueError(
            f"reconstruct_ema: from {len(saved)} averages of std "
            f"{', '.join(f'{x:g}' for x in sorted({x.std for x in saved}))} at the steps "
            f"{min(x.steps for x in saved)} to {last}, the weights of std {std:g} at step {end} "
            f"can be approximated up to {error:.0%} only; take snapshots more often or of more "
            "averages, choose an std between theirs, or raise tolerance="
        )
    paths, tree = jax.tree_util.tree_flatten_with_path(saved[0].average)
    leaves = [jax.tree.leaves(x.average) for x in saved]
    made = []
    for i, (path, one) in enumerate(paths):
        total = np.zeros(np.shape(one), np.promote_types(one.dtype, np.float64))
        for share, of_snapshot, x in zip(shares, leaves, saved, strict=True):
            if np.shape(of_snapshot[i]) != total.shape:
                raise ValueError(
                    f"reconstruct_ema: the snapshots are of different trainings: "
                    f"{'/'.join(place_of(path)) or 'the parameter'} has the shape {total.shape} in "
                    f"{saved[0].place} and {np.shape(of_snapshot[i])} in {x.place}"
                )
            if share:
                total += share * np.asarray(of_snapshot[i], total.dtype)
        made.append(jnp.asarray(total.astype(one.dtype)))
    return tree.unflatten(made)


def _coefficients(
    given: Sequence[tuple[int, float]], wanted: tuple[int, float]
) -> tuple[np.ndarray, float]:
    """The coefficients of the given averages, and the relative error of the weights.

    The functions p are scaled to length 1, and their products are a matrix A. Among directions in
    which they hardly differ, coefficients would be large and cancel, so these are left out.
    """
    steps, exponents = _profiles([*given, wanted])
    ends = np.minimum.outer(steps, steps)
    above = exponents + 1
    products = (ends / steps[:, None]) ** above[:, None] * (ends / steps) ** above / ends
    products *= np.multiply.outer(above, above) / (np.add.outer(above, above) - 1)
    length = np.sqrt(np.diag(products))
    products /= np.multiply.outer(length, length)
    a, b, unit = products[:-1, :-1], products[:-1, -1], length[-1] / length[:-1]
    system = np.block([[a, unit[:, None]], [unit[None], np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(b, 1), rcond=1e-13)[0][:-1]
    error = np.sqrt(max(x @ a @ x - 2 * (b @ x) + 1, 0.0))
    return x * unit / (x @ unit), float(error)


def _profiles(pairs: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    exponent = functools.cache(lambda std: power_exponent(std, "reconstruct_ema"))
    steps = np.array([step for step, _ in pairs], np.float64)
    return steps, np.array([exponent(std) for _, std in pairs])
