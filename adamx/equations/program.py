"""Trace the rules of a chain, one after the other, as one program of one array."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.equations.formulas import ONE, PARAM, START, Expression, Symbol, fresh, is_a, walk
from adamx.equations.reader import Line, read
from adamx.errors import StageError
from adamx.identity import fingerprint
from adamx.links.foreign import Foreign
from adamx.links.link import Link
from adamx.links.rule import KEY, Clock, Rule, Step
from adamx.links.signal import Signal
from adamx.links.slots import Slot
from adamx.links.stage import Stage, joined
from adamx.numerics.named import named

__all__ = ["LAST", "Program", "is_constant", "let", "mean_along", "over_all", "width"]

_NAMES = """
    learning_rate=α b1=β,1 b2=β,2 b3=β,3 rho=ρ eps=ε eps_hat=ε̂ eps_root=ε,root weight_decay=λ
    momentum=μ momentum_decay=ψ gamma=γ alpha=α decay=d d0=d,0 d_coef=c growth_rate=γ max_norm=c
    trust_coefficient=η sync_period=k slow_step_size=η mu=m nu=v
"""
LETTERS = {name: x for name, _, x in (pair.partition("=") for pair in _NAMES.split())}
"""The letters, with an index or an accent, of hyperparameters and usual slots; others are called by
their names."""

SHAPES = (53, 59), (61, 67)
"""Shapes of the parameter with which rules are traced: what is read depends on no size. A rule that
treats shapes differently is read as it treats matrices."""

LAST = "last"
"""A note: the update that must be the last one, or the equations of its stage do not hold."""


# Functions that only say how a value is shown


@named
def recalled(start: Any, symbol: Symbol) -> Any:
    """The value of a slot or a clock before this step; before the first one, ``start``."""
    return start


@named
def recast(x: Any, dtype: Any) -> Any:
    """The value in another dtype, with the same formula."""
    return jnp.asarray(x, dtype)


@named
def shown_as(x: Any, head: str, tail: str) -> Any:
    """A value whose formula is not known: ``head x tail``."""
    return x + 0


@named
def over_all(x: Any, over: str = "") -> Any:
    """A sum over one array, meant as a sum over all parameters, or over those of a ``"group"``."""
    return x


@named
def mean_along(x: Any, axis: str, shape: tuple[int, ...]) -> Any:
    """The mean along the longest axis of a shape (``"j"``) or the second longest (``"i"``)."""
    by_length = sorted(range(x.ndim), key=shape.__getitem__)
    return jnp.mean(x, by_length[-1 if axis == "j" else -2], keepdims=True)


@named
def width(x: Any) -> Any:
    """The length of the second longest axis."""
    return jnp.asarray(sorted((0, 0, *x.shape))[-2], x.dtype)


@named
def defined(x: Any, symbol: Symbol) -> Any:
    """A value that gets a line of its own."""
    return x


def let(x: Any, symbol: Symbol | str) -> Any:
    """A value that gets a line of its own, with this symbol or letter."""
    return defined(jnp.asarray(x), fresh(symbol) if isinstance(symbol, str) else symbol)


def is_constant(x: Any) -> bool:
    """Whether a hyperparameter is the same in every step: a number, or a batch of numbers."""
    return isinstance(x, (int, float)) or x.weak_type


class Program:
    """The program of a chain.

    Attributes:
        numbers: the values of the symbols that represent schedules, arrays and traced numbers.
        lines: a line for each value that may need one, beside :attr:`arrays`, their arrays.
    """

    def __init__(self, links: Sequence[Link]):
        self.links = joined(links)
        self.numbers: dict[Symbol, Any] = {}
        self.given = [
            {k: self.number(k, link.arguments[k]) for k in link.definition.domains}
            if isinstance(link, Stage)
            else {}
            for link in self.links
        ]
        self.opaque: dict[int, str] = {}  # the places of links that are not read, and why
        self.place = 0
        self.lines: list[Line] = []
        self.arrays: list[Any] = []

    def read(self) -> tuple[list[Line], Symbol]:
        """The values that may need a line, and the symbol of the update."""
        # A number of a batch is typed like the Python number for which it stands.
        double = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float64)
        numbers = [double((), weak_type=symbol.constant) for symbol in self.numbers]
        formulas = [Symbol("g"), PARAM, START, *self.numbers]
        second, first = (
            read(self.trace, [double(shape)] * 3 + numbers, formulas, self.lines)
            for shape in reversed(SHAPES)
        )
        for one, other in zip(first, second, strict=False):
            if one.place is not None and _plain(one.value) != _plain(other.value):
                self.opaque[one.place] = "its numbers depend on the size of the array"
                return self.read()
        for line in first:
            line.weight = _weight_of(line)
        return first, self.lines[-1].symbol

    def number(self, name: str, value: Any) -> float | Symbol:
        """An argument as a number, or as a symbol if its value is not a single known number."""
        if isinstance(value, (int, float)):
            return float(value)
        is_array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
        if is_array and value.ndim == 0 and getattr(value, "is_fully_addressable", True):
            return float(str(np.asarray(value)))  # the shortest decimal that rounds to it
        new = _symbol(name, step="t" if callable(value) else "")
        for symbol, other in self.numbers.items():
            is_alike = dataclasses.replace(symbol, which=new.which) == new
            if is_alike and fingerprint(other) == fingerprint(value):
                return symbol
        self.numbers[new] = value
        return new

    def trace(self, g: Any, param: Any, start: Any, *numbers: Any) -> list[Any]:
        """The arrays of all lines."""
        self.arrays.clear()
        self.lines.clear()
        signal = Signal(g, g, is_limited=True, _param=param, _dtypes=(g.dtype,), whole=g.shape)
        values: dict[Any, Any] = dict(zip(self.numbers, numbers, strict=True))
        is_certain, last = True, None
        for i, (link, given) in enumerate(zip(self.links, self.given, strict=True)):
            self.place, done = i, len(self.lines)
            try:
                if isinstance(link, Foreign):
                    raise NotImplementedError("Optax transformation; its equations are not known")
                if i in self.opaque:
                    raise NotImplementedError(self.opaque[i])
                if isinstance(link, Stage):  # an observer changes nothing
                    known = {k: values.get(x, x) for k, x in given.items()}
                    arguments = {**link.anywhere.arguments, **known}
                    signal = self.stage(link, arguments, signal, start)
            except Exception as error:
                if isinstance(error, StageError) and is_certain:
                    raise error.within(stage=link.name) from None
                del self.lines[done:], self.arrays[done:]
                signal, is_certain = self.unread(link, _reason(error), signal), False
            if LAST in signal.notes:
                last = i if last is None else last
                if signal.notes[LAST] is not signal.update:
                    self.opaque[last] = "a stage behind it changes its step"
                    return self.trace(g, param, start, *numbers)
        self.emit("update", fresh("u"), signal.update)
        return self.arrays

    def unread(self, link: Link, why: str, signal: Signal) -> Signal:
        """The signal after a link whose equations are not known: a line with its name."""
        head, tail = f"{link!r}(", ")"
        if isinstance(link, Stage):
            written = repr(link)[len(link.name) + 1 : -1]
            head, tail = f"{link.name}(", f"; {written})" if written else ")"
        signal = signal.with_update(shown_as(signal.update, head, tail))
        is_gradient = not signal.has_statistic
        self.emit("update", fresh("u"), signal.update, remark=why, is_gradient=is_gradient)
        return signal

    def emit(self, kind: str, symbol: Symbol, array: Any, **more: Any) -> Line:
        """Add a line, whose value will be read."""
        self.arrays.append(array)
        self.lines.append(Line(symbol, kind=kind, place=self.place, **more))
        return self.lines[-1]

    def stage(self, link: Stage, arguments: dict[str, Any], signal: Signal, start: Any) -> Signal:
        """The signal after a stage."""
        double, is_narrow = signal.param_dtype, link.definition.place == "rounding"
        if is_narrow:  # it acts on parameters of few bits only
            wide, narrow = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
            signal = jax.tree.map(functools.partial(recast, dtype=wide), signal)
            signal, start = dataclasses.replace(signal, _dtypes=(narrow,)), recast(start, narrow)
        made = (link.definition.equations or link.definition.factory)(**arguments)
        rule = made if isinstance(made, Rule) else Rule(lambda s, slots, step: (made(s), slots))
        if rule.gate is not None:  # in a step that counts, its links are those inside
            return signal
        if rule.reshape is not None:
            raise NotImplementedError("it turns each matrix into another basis, or back")
        if rule.own is not None:
            raise NotImplementedError("it has numbers of its own for each parameter")
        clocks = {k: self.clock(k, clock) for k, clock in rule.clocks.items()}
        beside = [self.emit("formula", fresh("w"), x) for x in jax.tree.leaves(clocks)]
        if rule.seed is not None:
            clocks[KEY] = jnp.zeros((), jnp.uint32)
        first = {k: slot(start) for k, slot in rule.slots.items()}
        symbols = {
            k: jax.tree.map(lambda _, k=k: _symbol(k, Slot.of(rule.slots[k]).letter), x)
            for k, x in first.items()
        }
        slots = jax.tree.map(recalled, first, symbols)
        total = None
        if rule.global_sum is not None:
            total = rule.global_sum(signal, slots, Step(clocks))
            total = jax.tree.map(lambda x: over_all(x, "group" if link.where else ""), total)
        signal, kept = rule.update(signal, slots, Step(clocks, total))
        for symbol, x in zip(*map(jax.tree.leaves, (symbols, kept)), strict=True):
            self.emit("slot", symbol, x, beside=beside)
        bias = [] if signal.bias is None else [self.emit("formula", fresh("w"), signal.bias)]
        is_gradient = not signal.has_statistic
        self.emit("update", fresh("u"), signal.update, beside=bias, is_gradient=is_gradient)
        if is_narrow:
            signal = jax.tree.map(functools.partial(recast, dtype=double), signal)
        return dataclasses.replace(signal, _dtypes=(double,))

    def clock(self, name: str, clock: Clock) -> Any:
        """What a clock reads in this step."""
        if clock.settle is not None:
            raise NotImplementedError("a clock of it depends on a sum over all parameters")
        symbol = fresh(name[0])
        new = clock.tick(recalled(clock.start(), symbol))
        self.emit("clock", symbol, new)
        reading, own = clock.read(new), clock.of_parameter
        return reading if own is None else own(reading, jnp.uint32(0), "")


def _symbol(name: str, letter: str = "", step: str = "t") -> Symbol:
    """The symbol of a slot or a hyperparameter."""
    letter, _, index = (letter or LETTERS.get(name, name)).partition(",")
    accent = _ACCENTS.get(letter[1:], "")
    return fresh(letter[:1] if accent else letter, index, accent, step)


_ACCENTS = {"\N{COMBINING MACRON}": "bar", "\N{COMBINING CIRCUMFLEX ACCENT}": "hat"}


def _reason(error: Exception) -> str:
    """Why a stage is not read, in one line."""
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, NotImplementedError) and first:
        return first
    first = first if len(first) <= 120 else f"{first[:119]}…"
    return f"{type(error).__name__} in tracing it{f': {first}' if first else ''}"


def _plain(x: Expression) -> str:
    """The formula without the numbers that differ in every trace."""
    return re.sub(r"which=\d+|\\x00\d+", "", repr(x))


def _weight_of(line: Line) -> Expression:
    """The weight of an average: that of its stage, or the one with its β; the bias of an update."""
    if line.kind == "update":
        return line.beside[0].value if line.beside else ONE
    weights = dict.fromkeys(x.value for x in line.beside if is_a(x.value, "weight"))
    for weight in weights:
        beta = weight.children[0].children[0]
        if len(weights) == 1 or beta * line.symbol.before in walk(line.value):
            return weight
    return ONE
