"""Check that a stage keeps all promises that adamx makes about stages."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import pickle
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.core import StageError, Transformation, apply_updates, chain
from adamx.equations import explain
from adamx.links.rule import widest
from adamx.links.slots import Slot
from adamx.links.stage import Stage
from adamx.states.hyperparams import hyperparams
from adamx.testing.equations import Evaluator
from adamx.tools.config import from_config, to_config
from adamx.tools.factories import Names
from adamx.trees.paths import paths_of
from adamx.wrappers import across, quantize_state

__all__ = ["Conformance", "check_stage"]

_STEPS = 5
# These programs run once or a few times, so compile them without optimisation.
_compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Conformance:
    """The result of :func:`check_stage`. It prints as a list.

    Attributes:
        held: the promises that hold, by name, with their descriptions.
        unchecked: the promises that were not checked, by name, with the reasons.
    """

    held: Mapping[str, str]
    unchecked: Mapping[str, str]

    def __str__(self) -> str:
        width = max(map(len, (*self.held, *self.unchecked)))
        rows = [f"{name.ljust(width)}  {says}" for name, says in self.held.items()]
        rows += [f"{name.ljust(width)}  unchecked: {why}" for name, why in self.unchecked.items()]
        return "\n".join(rows)


class _DoesNotApply(Exception):
    """Raised if a promise does not apply to a stage, with the reason."""


_IS_OPTAX = "adamx makes this promise only for its own stages, not for Optax transformations"
_PROMISES: dict[str, tuple[str, Callable[[_Case], None]]] = {}


def _promise(name: str, says: str) -> Callable[[Callable[[_Case], None]], None]:
    def register(check: Callable[[_Case], None]) -> None:
        _PROMISES[name] = says, check

    return register


def check_stage(
    stage: optax.GradientTransformation,
    *,
    params: Any = None,
    gradients: Any = None,
    oracle: Callable[[np.ndarray, np.ndarray], Any] | None = None,
    tolerance: float = 1e-8,
    without: Collection[str] = (),
    derivatives: bool = False,
) -> Conformance:
    r"""Check that a stage keeps all promises that adamx makes about stages.

    A stage is written for one array. adamx promises that it then runs under every JAX
    transformation, on parameters of every dtype and shape, with hyperparameters that are floats,
    arrays or schedules; that it is a value; and that its state can be quantized. The promises hold
    for stages that use the functions of :mod:`adamx.core`. They break if the body branches on a
    hyperparameter, keeps state outside its slots, or divides by a number that may be zero. The
    printed report lists the promises.

    The stage runs alone. If it needs other stages, check a chain. For example, a bias correction
    needs an average: ``check_stage(adamx.chain(adamx.scale_by_momentum(), my_correction()))``.

    Args:
        stage: a stage made by an ``@adamx.stage`` function, a chain, or an Optax transformation.
        params: a tree of float arrays, without None. By default a dict of a matrix and a vector.
        gradients: a tree like ``params``, with a leading axis of time (at least two steps). Random
            by default.
        oracle: a function that computes the updates of one array in float64 NumPy:
            ``(gradients [T, ...], params) -> updates [T, ...]``. ``params`` are the parameters
            before the first step; every update is added to the parameters.
        tolerance: the largest allowed difference from the oracle in double precision, relative to
            the largest update of the array.
        without: the names of promises to skip: ``without=["complex"]``.
        derivatives: whether to compare the derivatives of the last parameters with respect to all
            hyperparameters with finite differences, too.

    Returns:
        A report of what was checked; ``print`` it.

    Raises:
        AssertionError: if a promise does not hold. The error names the first such promise, the
            expected value and the actual value.
        TypeError: if ``stage`` is not a transformation.
        ValueError: for unknown names in ``without``, and for gradients whose shapes differ from
            those of the parameters.

    >>> from adamx.core import NonNegative, stage
    >>> from adamx.testing import check_stage
    >>> @stage
    ... def soft_sign(width: NonNegative = 1.0):
    ...     '''u ← u / (w + |u|)'''
    ...     return lambda s: s.with_update(s.update / (width + jnp.abs(s.update)))
    >>> report = check_stage(soft_sign(0.5), oracle=lambda g, theta: g / (0.5 + abs(g)))
    >>> report.held["bare"]
    'zero gradients give finite updates'
    >>> check_stage(soft_sign(0.0), without=["narrow", "complex"])
    Traceback (most recent call last):
    AssertionError: soft_sign breaks the promise 'bare' (zero gradients give finite updates):
        the updates at ['bias']: expected finite numbers, got nan
    """
    if unknown := sorted(set(without) - _PROMISES.keys()):
        raise ValueError(f"there is no promise {unknown}; the promises are {', '.join(_PROMISES)}")
    case = _Case.of(chain(stage), params, gradients, oracle, tolerance, derivatives)
    held, unchecked = {}, dict.fromkeys(without, "skipped by without=")
    for name, (says, check) in _PROMISES.items():
        if name in without:
            continue
        try:
            check(case)
        except _DoesNotApply as reason:
            unchecked[name] = str(reason)
        except Exception as error:
            what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(
                f"{case.name} breaks the promise {name!r} ({says}):\n    {what}{error}"
            ) from error
        else:
            held[name] = says
    return Conformance(held, unchecked)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A stage, and the data to check it with."""

    opt: Transformation
    params: Any
    gradients: Any
    oracle: Callable[[np.ndarray, np.ndarray], Any] | None
    tolerance: float
    derivatives: bool

    @classmethod
    def of(cls, opt: Transformation, params: Any, gradients: Any, *rest: Any) -> _Case:
        random = np.random.default_rng(0)
        if params is None:
            params = {"bias": (5,), "kernel": (3, 4)}
            params = {name: random.standard_normal(shape) for name, shape in params.items()}
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        if gradients is None:
            gradients = jax.tree.map(
                lambda x: 0.3 + 0.5 * random.standard_normal((_STEPS, *x.shape)), params
            )
        gradients = jax.tree.map(lambda x: np.asarray(x, np.float64), gradients)
        shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (params, _at(0, gradients))]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"gradients have the shapes {shapes[1]}, but parameters have {shapes[0]}"
            )
        return cls(opt, params, gradients, *rest)

    @property
    def name(self) -> str:
        return self.opt.links[0].name if len(self.opt.links) == 1 else repr(self.opt)

    @property
    def stages(self) -> list[Stage]:
        return [link for link in self.opt.links if isinstance(link, Stage)]

    @property
    def all_stages(self) -> bool:
        return len(self.stages) == len(self.opt.links)

    @property
    def slots(self) -> bool:
        return any(link.at(_zero()).rule(jnp.float32).slots for link in self.stages)

    @property
    def sums(self) -> bool:
        return any(link.at(_zero()).rule(jnp.float32).global_sum for link in self.stages)

    def narrowed(self, dtype: Any = jnp.float32, by: float = 1.0) -> tuple[Any, Any]:
        """Parameters and gradients in a dtype, with the gradients multiplied by ``by``."""
        return (
            jax.tree.map(lambda x: jnp.asarray(x, dtype), self.params),
            jax.tree.map(lambda x: jnp.asarray(by * x, dtype), self.gradients),
        )

    @functools.cached_property
    def program(self) -> Callable[..., Any]:
        """The compiled run of this optimiser."""
        return _compiled(functools.partial(_run, self.opt))

    @functools.cached_property
    def plain(self) -> Any:
        """The updates, last parameters and last state of a run in float32."""
        return jax.device_get(self.program(*self.narrowed()))

    @functools.cached_property
    def of_numbers(self) -> Callable[..., Any]:
        """The compiled run with the optimiser, that is its hyperparameters, as an argument."""
        return _compiled(_run)

    @functools.cached_property
    def double(self) -> Any:
        """The updates, last parameters and last state of a run in double precision."""
        return self.in_double(self.opt)

    def in_double(self, opt: Transformation) -> Any:
        with _x64():
            arrays = jax.tree.map(np.float64, opt)
            return jax.device_get(self.of_numbers(arrays, self.params, self.gradients))


def _run(opt: Transformation, params: Any, gradients: Any) -> tuple[Any, Any, Any]:
    """The updates of every step, the last parameters and the last state."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = opt.update(gradient, state, params)
        return (apply_updates(params, updates), state), updates

    (params, state), updates = jax.lax.scan(step, (params, opt.init(params)), gradients)
    return updates, params, state


def _zero() -> jax.Array:
    return jnp.zeros((), jnp.int32)


def _at(t: int, tree: Any) -> Any:
    return jax.tree.map(lambda x: x[t], tree)


def _x64() -> contextlib.AbstractContextManager[Any]:
    """A context with double precision, for JAX before and since 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

    return enable_x64(True)


def _pairs(found: Any, expected: Any, what: str) -> list[tuple[str, Any, Any]]:
    """Pairs of arrays of two trees, with their paths."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise AssertionError(
            f"{what}: expected the tree {jax.tree.structure(expected)}, "
            f"got {jax.tree.structure(found)}"
        )
    paths = jax.tree_util.tree_flatten_with_path(expected)[0]
    return [
        (f"{what} at {jax.tree_util.keystr(path) or 'the only array'}", x, y)
        for (path, y), x in zip(paths, jax.tree.leaves(found), strict=True)
    ]


def _close(what: str, found: Any, expected: Any, tolerance: float, least: float = 1e-30) -> None:
    """Check equality up to a tolerance relative to each array's largest element, plus ``least``."""
    for where, x, y in _pairs(found, expected, what):
        wide = np.complex128 if jnp.iscomplexobj(y) else np.float64
        x, y = np.asarray(x).astype(wide), np.asarray(y).astype(wide)
        if x.shape != y.shape:
            raise AssertionError(f"{where}: expected the shape {y.shape}, got {x.shape}")
        allowed = tolerance * np.max(np.abs(y), initial=0.0, where=np.isfinite(y))
        wrong = ~np.isclose(x, y, rtol=0.0, atol=allowed + least, equal_nan=True)
        if np.any(wrong):
            raise AssertionError(f"{where}: expected {y[wrong][0]}, got {x[wrong][0]}")


def _same_avals(what: str, found: Any, expected: Any) -> None:
    """Check that structure, shapes, dtypes and weak types are equal."""
    found, expected = (jax.eval_shape(lambda x: x, tree) for tree in (found, expected))
    for where, x, y in _pairs(found, expected, what):
        if x != y or x.weak_type != y.weak_type:
            raise AssertionError(f"{where}: expected {y}, got {x}")


def _finite(what: str, tree: Any) -> None:
    for where, x, _ in _pairs(tree, tree, what):
        x = np.asarray(x).astype(np.complex128)
        if not np.all(np.isfinite(x)):
            raise AssertionError(
                f"{where}: expected finite numbers, got {x[~np.isfinite(x)][0].real}"
            )


def _keeps_its_state(case: _Case, dtype: Any) -> None:
    params, gradients = case.narrowed(dtype)
    _keeps(case.opt, params, _at(0, gradients), f"of {jnp.dtype(dtype).name} parameters")


def _keeps(opt: Transformation, params: Any, gradient: Any, of: str) -> None:
    before = jax.eval_shape(opt.init, params)
    updates, after = jax.eval_shape(opt.update, gradient, before, params)
    _same_avals(f"the state {of} after a step", after, before)
    _same_avals(f"the updates {of}", updates, gradient)


@_promise("state", "a step keeps the tree, shapes, dtypes and weak types of state and updates")
def _(case: _Case) -> None:
    _keeps_its_state(case, jnp.float32)
    params, _ = case.narrowed()
    _same_avals("the state", case.opt.init(params), jax.eval_shape(case.opt.init, params))


@_promise("scan", "a training runs in lax.scan")
def _(case: _Case) -> None:
    _finite("the updates", case.plain[0])


@_promise("bare", "zero gradients give finite updates")
def _(case: _Case) -> None:
    updates, _, state = case.program(*case.narrowed(by=0.0))
    _finite("the updates", updates)
    _finite("the state", state)


@_promise("jit", "separately compiled steps equal the steps of lax.scan")
def _(case: _Case) -> None:
    params, gradients = case.narrowed()
    state = case.opt.init(params)
    for t in range(len(jax.tree.leaves(gradients)[0])):
        updates, state = case.opt.update(_at(t, gradients), state, params)
        params = apply_updates(params, updates)
        _close(f"the updates of step {t + 1}", updates, _at(t, case.plain[0]), 1e-5)
    _close("the state after the last step", state, case.plain[2], 1e-5)


@_promise("donation", "parameters and state share no memory and can be donated")
def _(case: _Case) -> None:
    params, gradients = case.narrowed()
    params = jax.tree.map(jnp.copy, params)
    state = case.opt.init(params)
    found: dict[int, str] = {}
    for path, x in jax.tree_util.tree_leaves_with_path((params, state)):
        here, where = x.unsafe_buffer_pointer() if x.size else id(x), jax.tree_util.keystr(path[1:])
        if here in found:
            raise AssertionError(
                f"the state: expected a separate array at {where}, but it shares the memory of "
                f"{found[here]}"
            )
        found[here] = where
    step = _compiled(lambda p, s, g: _stepped(case.opt, p, s, g), donate_argnums=(0, 1))
    step(params, state, _at(0, gradients))


def _stepped(opt: Transformation, params: Any, state: Any, gradient: Any) -> Any:
    updates, state = opt.update(gradient, state, params)
    return apply_updates(params, updates), state


@_promise("batches", "vmap over parameters and gradients equals a loop over them")
def _(case: _Case) -> None:
    tree = case.narrowed()
    factors = jnp.array([1.0, -0.5, 3.0])
    batch = _compiled(jax.vmap(lambda x: _run(case.opt, *_times(x, tree))))(factors)
    for i, factor in enumerate(factors):
        alone = case.program(*_times(factor, tree))
        _close(f"the updates of member {i}", _at(i, batch[0]), alone[0], 1e-4)


def _times(factor: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: factor * x, tree)


def _need_numbers(case: _Case) -> None:
    if not jax.tree.leaves(case.opt):
        raise _DoesNotApply(_NO_NUMBERS)


_NO_NUMBERS = (
    "it has no hyperparameters: no argument is annotated Real, NonNegative, Positive or Decay"
)


@_promise("arrays", "hyperparameters that are arrays give the same updates as floats")
def _(case: _Case) -> None:
    _need_numbers(case)
    found = case.of_numbers(jax.tree.map(np.float32, case.opt), *case.narrowed())
    # In float32, 1 − 0.999 has a large relative error.
    _close("the updates", found[0], case.plain[0], 1e-3)
    _same_avals("the state", found[2], case.plain[2])


@_promise("hyperparams", "vmap over the hyperparameters equals a loop over them")
def _(case: _Case) -> None:
    _need_numbers(case)
    tree, factors = case.narrowed(), np.array([1.0, 0.9], np.float32)
    arrays = jax.tree.map(np.float32, case.opt)
    members = [jax.tree.map(lambda x, f=f: np.float32(f * x), arrays) for f in factors]
    batched = jax.tree.map(lambda *x: np.stack(x), *members)
    batch = _compiled(jax.vmap(_run, in_axes=(0, None, None)))(batched, *tree)
    for i, member in enumerate(members):
        alone = case.of_numbers(member, *tree)
        _close(f"the updates of member {i}", _at(i, batch[0]), alone[0], 1e-4)


@_promise("schedules", "a constant schedule gives the same updates as its value")
def _(case: _Case) -> None:
    given = {name: x for name, x in hyperparams(case.opt).items() if not callable(x)}
    if not given:
        raise _DoesNotApply(_NO_NUMBERS)
    scheduled = case.opt.replace({name: _constant(x) for name, x in given.items()})
    params, gradients = case.narrowed()
    _same_avals("the state", jax.eval_shape(scheduled.init, params), case.opt.init(params))
    updates, *_ = _compiled(functools.partial(_run, scheduled))(params, gradients)
    _close("the updates", updates, case.plain[0], 1e-3)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda count: jnp.where(count >= 0, value, jnp.nan)


@_promise("narrow", "bfloat16 and float16 parameters take the float32 steps, rounded once")
def _(case: _Case) -> None:
    for dtype in (jnp.bfloat16, jnp.float16):
        _keeps_its_state(case, dtype)
        params, gradients = case.narrowed(dtype)
        gradient = _at(0, gradients)
        updates, _ = case.opt.update(gradient, case.opt.init(params), params)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (gradient, params))
        expected, _ = case.opt.update(wide[0], case.opt.init(wide[1]), wide[1])
        form, name = jnp.finfo(dtype), jnp.dtype(dtype).name
        smallest = float(form.tiny) * float(form.eps)
        _close(f"the updates of {name} parameters", updates, expected, float(form.eps), smallest)
        _rests(case.opt, params, f"{name} parameters")


@_promise("double", "float64 parameters take the same steps in double precision")
def _(case: _Case) -> None:
    with _x64():
        params, gradients = jax.tree.map(jnp.asarray, (case.params, case.gradients))
        _keeps(case.opt, params, _at(0, gradients), "of float64 parameters")
    updates = case.double[0]
    _close("the updates in float32", case.plain[0], updates, 1e-3)
    for where, x, _ in _pairs(updates, updates, "the updates"):
        if 2 * len(np.unique(x)) > x.size and np.all(x == x.astype(np.float32)):
            raise AssertionError(f"{where}: expected float64, got values rounded to float32")


@_promise("complex", "complex parameters take finite complex steps")
def _(case: _Case) -> None:
    _keeps_its_state(case, jnp.complex64)
    params, gradients = _times(jnp.complex64(1 + 2j), case.narrowed(jnp.complex64))
    updates, _ = case.opt.update(_at(0, gradients), case.opt.init(params), params)
    _finite("the updates of complex64 parameters", updates)
    _rests(case.opt, params, "complex64 parameters")


def _rests(opt: Transformation, params: Any, of: str) -> None:
    """Zero gradients give finite updates."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    _finite(
        f"the updates of zero gradients of {of}", opt.update(zeros, opt.init(params), params)[0]
    )


_SHAPES = {"scalar": (), "empty": (0, 3), "tensor": (2, 1, 3, 2)}


@_promise("shapes", "parameters may be scalars, empty arrays, arrays of four axes and None")
def _(case: _Case) -> None:
    if any(link.is_selective for link in case.opt.links):
        raise _DoesNotApply("it is restricted to some parameters, which this check may not have")
    params = {name: jnp.ones(shape) for name, shape in _SHAPES.items()} | {"none": None}
    _keeps(case.opt, params, params, "of parameters of several shapes")
    state = case.opt.init(params)
    updates, _ = case.opt.update(params, state, params)
    _finite("the updates", updates)


@_promise("alone", "uncompiled, and (without a global sum) array by array, the updates are equal")
def _(case: _Case) -> None:
    params, gradients = case.narrowed()
    leaves, tree = jax.tree.flatten(params)
    first = jax.tree.leaves(_at(0, gradients))
    with jax.disable_jit():
        if case.sums or not case.all_stages or any(map(_knows_paths, case.stages)):
            updates, _ = case.opt.update(_at(0, gradients), case.opt.init(params), params)
        else:
            alone = [
                case.opt.update(g, case.opt.init(x), x)[0]
                for g, x in zip(first, leaves, strict=True)
            ]
            updates = tree.unflatten(alone)
    _close("the first updates", updates, _at(0, case.plain[0]), 1e-5)


def _knows_paths(stage: Stage) -> bool:
    """Whether what a stage does to a parameter depends on its path."""
    has_own = stage.at(_zero()).rule(jnp.float32).own is not None
    return stage.is_selective or bool(stage.per_parameter) or has_own


@_promise("reach", "rearranging and dividing an array within the stage's reach keeps its updates")
def _(case: _Case) -> None:
    rules = [link.at(_zero()).rule(jnp.float32) for link in case.stages]
    reach = widest(rule.reach for rule in rules)
    if not case.all_stages or any(x.is_selective for x in case.stages):
        raise _DoesNotApply("it is restricted to some parameters, or an Optax transformation")
    if any(rule.seed is not None for rule in rules):
        raise _DoesNotApply("its random bits depend on the position of an element")
    if any(rule.own is not None for rule in rules):
        raise _DoesNotApply("it has numbers of its own for each parameter")
    if reach in ("sums", "array"):
        raise _DoesNotApply("its reach is the whole array")
    if any(Slot.of(slot).form for rule in rules for slot in rule.slots.values()):
        raise _DoesNotApply("its slots are packed, in blocks of neighbouring elements")

    def divided(x: Any, axes: int) -> dict[str, Any]:
        """The units of the reach (elements or rows) in reverse order, divided into two arrays."""
        rest = x.shape[:axes] + (-1,) + (x.shape[-1:] if reach == "row" and x.ndim > axes else ())
        units = x.reshape(rest)
        units = jnp.flip(units, axes)
        half = units.shape[axes] // 2
        parts = jnp.split(units, [half], axes) if half else [units]
        return dict(zip("ab", parts, strict=False))

    params, gradients = case.narrowed()
    expected = jax.tree.map(functools.partial(divided, axes=1), case.plain[0])
    updates, _, _ = case.program(
        jax.tree.map(functools.partial(divided, axes=0), params),
        jax.tree.map(functools.partial(divided, axes=1), gradients),
    )
    _close(f"the updates of an array divided into its {reach}s", updates, expected, 1e-5)


@_promise("visible", "a NaN in a gradient shows in the updates")
def _(case: _Case) -> None:
    params, gradients = case.narrowed()
    broken = jax.tree.map(lambda x: x.at[(1, *(0 for _ in x.shape[1:]))].set(jnp.nan), gradients)
    updates, *_ = case.program(params, broken)
    for where, x, _ in _pairs(updates, updates, "the updates"):
        if x.size and not np.any(np.isnan(x)):
            raise AssertionError(f"{where}: expected NaN somewhere, got finite numbers")


@_promise("size", "gradients of size 1e-15 and 1e15 give finite updates")
def _(case: _Case) -> None:
    for factor in (1e-15, 1e15):
        updates, _, state = case.program(*case.narrowed(by=factor))
        _finite(f"the updates of gradients of {factor:g}", updates)
        _finite(f"the state after gradients of {factor:g}", state)


@_promise("largest", "the largest float32, bfloat16 and float16 gradients give finite updates")
def _(case: _Case) -> None:
    if not case.all_stages:
        raise _DoesNotApply(_IS_OPTAX)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        params, gradients = case.narrowed(dtype)
        if not any(x.is_selective for x in case.stages):  # XLA treats sums of one element specially
            params = {"these": params, "one": jnp.ones(1, dtype)}
            gradients = {"these": gradients, "one": 0.3 * jnp.ones((_STEPS, 1), dtype)}
        extreme = jax.tree.map(_with_extremes, gradients)
        updates, state = _compiled(functools.partial(_at_rest, case.opt))(params, extreme)
        name = jnp.dtype(dtype).name
        try:
            _finite(f"the updates of gradients up to the largest {name}", updates)
            _finite(f"the state after gradients up to the largest {name}", state)
        except AssertionError as error:
            raise AssertionError(
                f"{error}. Use times, norm, shrunk and Squares of adamx.core, which do not "
                "overflow. To allow overflow, skip this check with without=['largest']"
            ) from None


def _with_extremes(gradients: Any) -> Any:
    """The gradients with two steps inserted whose elements, or half of them, are the largest."""
    largest = jnp.where(gradients > 0, 1, -1) * jnp.finfo(gradients.dtype).max
    rest = jnp.arange(gradients[0].size).reshape(gradients[0].shape) % 2 == 0
    third = jnp.where(rest, -largest[1], gradients[-1])
    return jnp.concatenate([gradients[:1], largest[1:2], third[None], gradients])


def _at_rest(opt: Transformation, params: Any, gradients: Any) -> tuple[Any, Any]:
    """The updates of every step and the last state, without applying updates to the parameters."""

    def step(state: Any, gradient: Any) -> Any:
        updates, state = opt.update(gradient, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, opt.init(params), gradients)
    return updates, state


@_promise("nans", "a training runs under jax_debug_nans")
def _(case: _Case) -> None:
    params, gradients = case.narrowed()
    with jax.debug_nans(True):
        state = case.opt.init(params)
        updates, _ = case.opt.update(_at(0, gradients), state, params)
        _finite("the updates", updates)


@_promise("shards", "a training runs inside shard_map, and its state keeps its form there")
def _(case: _Case) -> None:
    if not case.all_stages:
        raise _DoesNotApply(_IS_OPTAX)
    params, gradients = case.narrowed()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    spec = jax.sharding.PartitionSpec

    def shard(params: Any, gradients: Any) -> Any:
        return _run(case.opt, params, gradients)[:2]

    def trained(over: Any, of_steps: Any) -> Any:
        split = _shard_map(shard, mesh, (over, of_steps), (of_steps, over))
        return _compiled(split)(params, gradients)

    try:
        updates, after = trained(spec("x"), spec(None, "x"))
    except StageError as error:
        if not _needs_more_than_a_shard(error):
            raise
        updates, after = trained(spec(), spec())
    _close("the updates of one shard", updates, case.plain[0], 1e-5)
    _close("the parameters after the last step", after, case.plain[1], 1e-5)


@_promise("divided", "on shards of an array, it does what it does on the whole array")
def _(case: _Case) -> None:
    if not case.all_stages:
        raise _DoesNotApply(_IS_OPTAX)
    if any(x.at(_zero()).rule(jnp.float32).seed is not None for x in case.stages):
        raise _DoesNotApply("its random bits differ between shards")
    params, gradients = case.narrowed()
    parts = jax.tree.map(lambda x: x.ndim and x.shape[-1] % 2 == 0, params)

    def split(x: Any, is_divided: bool) -> Any:
        return jnp.stack(jnp.split(x, 2, -1)) if is_divided else jnp.stack([x, x])

    def joined(x: Any, is_divided: bool) -> Any:
        return jnp.concatenate(list(x), -1) if is_divided else x[0]

    leaves, tree = jax.tree.flatten(params)
    named = zip(paths_of(tree, leaves), jax.tree.leaves(parts), strict=True)
    paths = {path for (path, _), is_divided in named if is_divided}
    opt = across("x", case.opt, selector=lambda path, _: path in paths)
    shards = jax.vmap(functools.partial(_run, opt), axis_name="x")
    try:
        found = _compiled(shards)(*(jax.tree.map(split, x, parts) for x in (params, gradients)))
    except StageError as error:
        if _needs_more_than_a_shard(error):
            raise _DoesNotApply("it depends on more than a shard") from None
        raise
    for what, x, expected in zip(("updates", "parameters"), found, case.plain, strict=False):
        _close(f"the {what} of two shards", jax.tree.map(joined, x, parts), expected, 1e-5)


def _needs_more_than_a_shard(error: StageError) -> bool:
    """Whether a stage was refused on a shard, as it has to be if its reach is a row or more."""
    return "but inside shard_map it gets a shard" in error.message


def _shard_map(function: Any, mesh: Any, in_specs: Any, out_specs: Any) -> Any:
    """``jax.shard_map``, for JAX before and since 0.7."""
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    from jax.experimental.shard_map import shard_map

    return shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


@_promise("value", "copies are equal and have equal hashes")
def _(case: _Case) -> None:
    links = [
        Stage(x.definition, copy.deepcopy(x.arguments), x.around) if isinstance(x, Stage) else x
        for x in case.opt.links
    ]
    other = Transformation(tuple(links))
    if other != case.opt or hash(other) != hash(case.opt):
        raise AssertionError(f"a deep copy: expected an optimiser equal to {case.opt}, got {other}")


@_promise("pickle", "it can be pickled")
def _(case: _Case) -> None:
    known = all(_is_importable(x.definition) for x in case.stages)
    if not (known and case.all_stages) or any(map(callable, hyperparams(case.opt).values())):
        raise _DoesNotApply("it, or a function in it, can't be imported from its module")
    other = pickle.loads(pickle.dumps(case.opt))
    if other != case.opt or hash(other) != hash(case.opt):
        raise AssertionError(
            f"the unpickled optimiser: expected one equal to {case.opt}, got {other}"
        )


def _is_importable(definition: Any) -> bool:
    try:
        return pickle.loads(pickle.dumps(definition)) is definition
    except (AttributeError, ImportError):
        return False


@_promise("config", "its config can be written as JSON and gives an equal optimiser")
def _(case: _Case) -> None:
    ours = Names(None)
    own = {
        x.name: types.SimpleNamespace(definition=x.definition)
        for x in case.stages
        if ours.stage(x.definition) is None
    }
    try:
        written = json.dumps(to_config(case.opt, known=own))
    except ValueError as error:
        raise _DoesNotApply(str(error)) from None
    other = from_config(json.loads(written), known=own)
    if other != case.opt:
        raise AssertionError(
            f"the optimiser from its config: expected one equal to {case.opt}, got {other}"
        )


@_promise("equations", "the equations that explain() prints give the same updates")
def _(case: _Case) -> None:
    if not case.all_stages:
        raise _DoesNotApply("the equations of an Optax transformation are not known")
    if not isinstance(case.params, dict) or any(x.is_selective for x in case.stages):
        raise _DoesNotApply("equations need a dict of parameters, and the same stages for all")
    epsilons = {k: x for k, x in hyperparams(case.opt).items() if "eps" in k and not callable(x)}
    large = case.opt.replace({name: 0.01 for name, x in epsilons.items() if np.all(x)})
    updates, *_ = case.in_double(large)
    explanation = explain(large)
    if remarks := [line.remark for line in explanation.lines if line.remark]:
        raise _DoesNotApply(f"not all of its equations are known: {remarks[0]}")
    equations = Evaluator(explanation, case.params)
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in range(len(next(iter(case.gradients.values())))):
            before = equations.params
            after = equations.step(_at(t, case.gradients))
            steps = {name: after[name] - before[name] for name in before}
            _close(f"the updates of step {t + 1}", _at(t, updates), steps, 1e-8)


@_promise("quantized", "its slots can be quantized")
def _(case: _Case) -> None:
    if not case.slots:
        raise _DoesNotApply("it has no slots")
    if not case.all_stages:
        raise _DoesNotApply("the state of an Optax transformation can't be quantized")
    for where, slot in _nonnegative(case):
        if np.any(np.asarray(slot) < 0):
            raise AssertionError(
                f"{where} holds 'nonnegative', expected no negative elements, got {np.min(slot)}"
            )
    slots = (x for stage in case.stages for x in stage.at(_zero()).rule(jnp.float32).slots.items())
    averages: dict[str, Any] = {
        name: "bf16" for name, start in slots if Slot.of(start).holds == "average"
    }
    opt = quantize_state(case.opt, "bf16", min_size=1, **averages)
    params, gradients = case.narrowed()
    _keeps(opt, params, _at(0, gradients), "of quantized slots")
    updates, *_ = _compiled(functools.partial(_run, opt))(params, gradients)
    _finite("the updates", updates)
    _close("the first update", _at(0, updates), _at(0, case.plain[0]), 1e-2)


def _nonnegative(case: _Case) -> list[tuple[str, Any]]:
    """The arrays after a run of slots that hold squares or norms, and their places."""
    state, arrays = case.plain[2], []
    for stage in case.stages:
        for name, start in stage.at(_zero()).rule(jnp.float32).slots.items():
            if Slot.of(start).holds == "nonnegative":
                for key in (key for key in state if key.removesuffix("_2") == stage.name):
                    found = jax.tree.leaves(state[key][name])
                    arrays += [(f"the slot {name!r} of {key}", x) for x in found]
    return arrays


@_promise("derivatives", "derivatives by its hyperparameters equal finite differences")
def _(case: _Case) -> None:
    if not case.derivatives:
        raise _DoesNotApply("derivatives=False")
    _need_numbers(case)
    with _x64():
        opt = jax.tree.map(np.float64, case.opt)
        leaves, tree = jax.tree.flatten(opt)
        weights = jax.tree.map(np.cos, case.params)

        def loss(opt: Any, gradients: Any) -> Any:
            last = _run(opt, case.params, gradients)[1]
            products = jax.tree.map(lambda x, w: jnp.sum(x * w), last, weights)
            return sum(jax.tree.leaves(products))

        both = _compiled(jax.value_and_grad(loss))
        here, slopes = both(opt, case.gradients)
        for i, (slope, x) in enumerate(zip(jax.tree.leaves(slopes), leaves, strict=True)):
            size = 1e-4 * max(abs(x), 1e-2)
            near = [tree.unflatten([*leaves[:i], x + k * size, *leaves[i + 1 :]]) for k in (1, 2)]
            one, two = (float(both(opt, case.gradients)[0]) for opt in near)
            expected = (4 * one - two - 3 * float(here)) / (2 * size)
            if not np.isclose(slope, expected, rtol=1e-3, atol=1e-6):
                raise AssertionError(
                    f"the derivative by hyperparameter {i} ({x:g}): expected {expected}, got "
                    f"{float(slope)}"
                )
        for where, zeroed in (("some", lambda x: np.where(x > 0, x, 0)), ("all", np.zeros_like)):
            slopes = both(opt, jax.tree.map(zeroed, case.gradients))[1]
            _finite(f"the derivatives where {where} gradients are zero", slopes)


@_promise("oracle", "in double precision, the updates equal those of the oracle")
def _(case: _Case) -> None:
    if case.oracle is None:
        raise _DoesNotApply("no oracle was given")
    expected = jax.tree.map(case.oracle, case.gradients, case.params)
    _close("the updates", case.double[0], expected, case.tolerance)
