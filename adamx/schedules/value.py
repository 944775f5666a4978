"""Schedules as values: equal, hashed, printed, written and drawn by what made them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.arguments import closures, hyper
from adamx.errors import as_given
from adamx.figures import figures, png
from adamx.identity import ByValue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Moment", "ScheduleValue", "length", "number", "of_function"]


class Moment(NamedTuple):
    """The count at which a schedule is evaluated, and the arithmetic that it is evaluated in.

    Attributes:
        xp: NumPy, if the count and all numbers of the schedule are known; JAX's NumPy otherwise.
        dtype: the dtype of the value.
        count: the count of past updates, one or an array of them; whole numbers stay whole, so
            that differences of large counts are exact.
    """

    xp: Any
    dtype: Any
    count: Any

    @classmethod
    def of(cls, count: Any, *, known: bool) -> Moment:
        """A count in NumPy and double precision, or in JAX and its default precision."""
        if isinstance(count, int):
            count = min(count, hyper.LARGEST_COUNT)
        xp: Any = np if known else jnp
        dtype = np.dtype(np.float64) if known else hyper.clock_dtype()
        count = xp.asarray(count)
        if not jnp.issubdtype(count.dtype, jnp.integer):
            return cls(xp, dtype, count.astype(dtype))
        return cls(xp, dtype, count.astype(np.int64 if known else jnp.int32))

    def real(self, x: Any) -> Any:
        """A whole number as a number of the schedule's dtype."""
        return self.xp.asarray(x, self.dtype)


Formula = Callable[..., Any]
"""``(moment, **arguments) -> value``."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ScheduleValue:
    """A schedule of :mod:`adamx.schedules`: a function of the count of past updates, and a value.

    Two schedules are equal if they were made by equal calls. A schedule is hashed, pickled, and
    printed as the call that makes it; :func:`adamx.to_config` writes it into a config. It is a
    pytree, whose leaves are its numbers (the peak of a learning rate): ``jax.vmap``, ``jax.grad``
    and :func:`adamx.sweep` vary them like other hyperparameters. Lengths in steps are part of its
    structure, because the formula is composed for them. The arguments of the call are attributes.
    The functions of :mod:`adamx.schedules` make schedules; this class is not called by users.

    >>> rate = adamx.schedules.warmup_stable_decay(1e-3, total_steps=100, decay_steps=20)
    >>> rate
    warmup_stable_decay(peak=0.001, total_steps=100, warmup_steps=5, decay_steps=20)
    >>> rate(0), rate(50), rate.decay_steps
    (0.0002, 0.001, 20)
    >>> rate.replace(peak=1.0)(50)
    1.0
    >>> opt = adamx.adamw(rate)
    >>> opt == adamx.from_config(adamx.to_config(opt))
    True
    >>> at_peaks = lambda peak: rate.replace(peak=peak)(50)
    >>> jax.grad(at_peaks)(1e-3), jax.vmap(at_peaks)(jnp.array([0.5, 2.0]))
    (Array(1., dtype=float32, weak_type=True), Array([0.5, 2. ], dtype=float32))
    """

    make: Callable[..., ScheduleValue]
    formula: Formula
    arguments: Mapping[str, Any]
    data: tuple[str, ...] | None = None  # the arguments that are numbers, or contain them

    prints_its_call = True  # see hyper.show

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", types.MappingProxyType(dict(self.arguments)))
        if self.data is None:
            data = tuple(name for name, x in self.arguments.items() if not _is_static(x))
            object.__setattr__(self, "data", data)

    def __call__(self, count: Any) -> Any:
        """The value after ``count`` updates (0 at the first update); counts may be an array.

        Returns:
            A float for a Python number, if no number of the schedule is an array of JAX. An array
            of JAX's default precision otherwise.
        """
        plain = (int, float, np.ndarray, np.generic)
        known = all(isinstance(x, plain) for x in (count, *jax.tree.leaves(self)))
        moment = Moment.of(count, known=known)
        numbers = {
            name: moment.real(x) if isinstance(x, (jax.Array, np.ndarray)) else x
            for name, x in self.arguments.items()
        }
        with jax.numpy_dtype_promotion("standard"):  # of functions that are joined
            value = self.formula(moment, **numbers)
        if moment.count.ndim and not np.ndim(value):
            value = moment.xp.broadcast_to(moment.real(value), moment.count.shape)
        return float(value) if known and np.ndim(value) == 0 else value

    def __getattr__(self, name: str) -> Any:
        arguments = self.__dict__.get("arguments", {})
        if name in arguments:
            return arguments[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def replace(self, **changes: Any) -> ScheduleValue:
        """The schedule with some arguments replaced; lengths that were fractions stay steps."""
        return self.make(**{**self.arguments, **changes})

    def plot(self, steps: int | None = None, ax: Axes | None = None) -> Figure:
        """Plot the values over the updates; returns a ``matplotlib.figure.Figure``.

        Args:
            steps: how many updates; by default, until the schedule ends or hardly changes.
            ax: the axes to plot into, beside what they hold already.

        Raises:
            ImportError: without matplotlib, which ``pip install 'adamx[tools]'`` installs.
        """
        last = self.span if steps is None else length("plot", "steps", steps, least=1)
        drawn = ax.get_figure() if ax is not None else None
        if ax is None:
            drawn, (ax,) = figures(1, width=6.4, height=3.2)
        counts = np.unique(np.linspace(0, last - 1, min(last, 2000)).round().astype(np.int64))
        numbers = jax.tree.map(lambda x: np.asarray(x)[..., None] if np.ndim(x) else x, self)
        values = np.broadcast_to(numbers(counts), (*np.shape(numbers(0))[:-1], len(counts)))
        for row in values.reshape(-1, len(counts)):
            ax.plot(counts, row, label=self.make.__name__)
        ax.margins(x=0.01)
        ax.set(xlabel="update", ylabel="value")
        return drawn  # pyright: ignore[reportReturnType]

    def _repr_png_(self) -> tuple[bytes, dict[str, int]] | None:
        try:
            return png(self.plot())
        except Exception:  # without matplotlib, or with traced numbers: the text is shown
            return None

    @property
    def span(self) -> int:
        """How many updates a picture of it shows."""
        known = self.arguments
        if known.get("total_steps") is not None:
            return known["total_steps"]
        if "boundaries" in known:
            return (0, *known["boundaries"])[-1] + getattr(known["schedules"][-1], "span", 100)
        start = known.get("warmup_steps", 0) + known.get("stable_steps", 0)
        return max(math.ceil(1.25 * known.get("steps", 0)), 10 * start, 100)

    def call(self) -> tuple[str, dict[str, Any]]:
        """The public name of the function that makes it, and its arguments."""
        return f"adamx.schedules.{self.make.__name__}", {
            name: [inner(x) for x in value] if name == "schedules" else value
            for name, value in self.arguments.items()
        }

    def __repr__(self) -> str:
        shown = []
        for name, parameter in inspect.signature(self.make).parameters.items():
            value = self.arguments[name]
            simple = isinstance(value, (float, str, int, type(None)))
            if not (simple and value == parameter.default):
                shown.append(f"{name}={_shown(inner(value))}")
        return f"{self.make.__name__}({', '.join(shown)})"

    # A value

    @functools.cached_property
    def _record(self) -> ByValue:
        return ByValue(self)

    def __fingerprint__(self) -> Any:
        return self.make.__qualname__, tuple(self.arguments.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScheduleValue) and self._record == other._record

    def __hash__(self) -> int:
        return hash(self._record)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.make, dict(self.arguments))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Its numbers, and its structure."""
        data = self.data or ()
        kept = ByValue(tuple((k, x) for k, x in self.arguments.items() if k not in data))
        leaves = [(jax.tree_util.GetAttrKey(name), self.arguments[name]) for name in data]
        return leaves, (self.make, self.formula, tuple(self.arguments), data, kept)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], numbers: Any) -> ScheduleValue:
        """The schedule with other numbers, which are not checked."""
        make, formula, names, data, kept = aux
        known = {**dict(kept.value), **dict(zip(data, numbers, strict=True))}
        return cls(make, formula, {name: known[name] for name in names}, data)


def _remade(make: Callable[..., ScheduleValue], arguments: dict[str, Any]) -> ScheduleValue:
    return make(**arguments)


def _is_static(x: Any) -> bool:
    """Whether an argument is part of the structure: a length, a name, a function."""
    if isinstance(x, tuple):
        return all(isinstance(part, int) for part in x)
    return isinstance(x, (int, str, type(None))) or inspect.isroutine(x) or _is_opaque(x)


def _is_opaque(x: Any) -> bool:
    return callable(x) and jax.tree_util.all_leaves([x])


def of_function(function: Any) -> Any:
    """A function as a schedule whose only argument is the function; a pytree as it is."""
    if not _is_opaque(function):
        return function
    return ScheduleValue(of_function, _called, {"function": function})


def _called(moment: Moment, function: Any) -> Any:
    count = moment.count
    return function(count.item() if moment.xp is np and count.ndim == 0 else jnp.asarray(count))


def inner(x: Any) -> Any:
    """The function in a schedule of :func:`of_function`; anything else as it is."""
    is_one = isinstance(x, ScheduleValue) and x.make is of_function
    return x.arguments["function"] if is_one else x


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(inner(x)) for x in value)}]"
    if callable(value) and not isinstance(value, ScheduleValue):
        return f"<schedule {closures.call(value)}>"
    return hyper.show(value)


# Checks of arguments.


def number(schedule: str, kind: Any, **given: Any) -> dict[str, Any]:
    """Arguments as floats or arrays, checked against the domain of an annotation."""
    domain = hyper.domain_of(kind)
    assert domain is not None
    checked = {}
    for name, value in given.items():
        if callable(value):
            raise TypeError(
                f"{schedule}: {name} must be a number or a real array, got {as_given(value)}; "
                "adamx.schedules.join puts schedules one after the other"
            )
        try:
            checked[name] = hyper.canonical(name, value, domain)
        except (TypeError, ValueError) as error:
            # Schedules are allowed in the arguments of stages, whose message this is.
            said = str(error).replace("a number, a real array or a schedule (count -> value)", "{}")
            said = said.format("a number or a real array") if "{}" in said else said
            raise type(error)(f"{schedule}: {said}") from None
    return checked


def length(
    schedule: str, name: str, given: Any, *, total: int | None = None, least: int = 0
) -> int:
    """A number of steps; a float below 1 is a fraction of ``total``."""
    whole = f"a whole number of steps, {least} or more"
    if isinstance(given, (float, np.floating)):
        if total is None:
            raise TypeError(f"{schedule}: {name} must be {whole}, got {as_given(given)}")
        if not 0 <= given < 1:
            raise ValueError(
                f"{schedule}: a float {name} is a fraction of total_steps, from 0 up to but not "
                f"including 1, got {given}; for a number of steps, pass an int"
            )
        return max(1, round(given * total)) if given > 0 else 0
    try:
        steps = operator.index(given)
    except Exception:
        steps = None
    if steps is None or isinstance(given, bool):
        fraction = " or a fraction of total_steps" if total is not None else ""
        raise TypeError(
            f"{schedule}: {name} must be {whole}{fraction}, got {as_given(given)}. Lengths are "
            "part of a schedule's structure; they can't be traced"
        )
    if not least <= steps <= hyper.LARGEST_COUNT:
        raise ValueError(
            f"{schedule}: {name} must be {whole}, and at most {hyper.LARGEST_COUNT}, where the "
            f"count of updates stops; got {given}"
        )
    return steps
