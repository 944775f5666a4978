"""Trace the rules of a chain, one after the other, as one program of one array."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.equations.formulas import PARAM, START, Expression, Number, Symbol, fresh, is_a, walk
from adamx.equations.reader import SHAPE, Definition, read
from adamx.errors import StageError
from adamx.identity import fingerprint
from adamx.links.foreign import Foreign
from adamx.links.link import Link
from adamx.links.rule import KEY, Clock, Rule, Step
from adamx.links.signal import Signal
from adamx.links.slots import Slot
from adamx.links.stage import Stage, joined
from adamx.numerics.named import named

__all__ = [
    "LAST",
    "NotReadable",
    "Program",
    "is_constant",
    "let",
    "mean_along",
    "over_all",
    "width",
]

LETTERS = {
    "learning_rate": ("α", ""),
    "b1": ("β", "1"),
    "b2": ("β", "2"),
    "b3": ("β", "3"),
    "rho": ("ρ", ""),
    "eps": ("ε", ""),
    "eps_hat": ("ε", "", "hat"),
    "eps_root": ("ε", "root"),
    "weight_decay": ("λ", ""),
    "momentum": ("μ", ""),
    "momentum_decay": ("ψ", ""),
    "gamma": ("γ", ""),
    "alpha": ("α", ""),
    "decay": ("d", ""),
    "d0": ("d", "0"),
    "d_coef": ("c", ""),
    "growth_rate": ("γ", ""),
    "max_norm": ("c", ""),
    "trust_coefficient": ("η", ""),
    "sync_period": ("k", ""),
    "slow_step_size": ("η", ""),
    "mu": ("m",),
    "nu": ("v",),
}
"""The letters of hyperparameters and of usual slots; others are called by their names."""

LAST = "the step that equations assume to be the last"
"""A note: the update that has to be the last one, or the equations of its stage do not hold."""


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
def over_all(x: Any) -> Any:
    """A sum over one array, which is meant as a sum over all parameters."""
    return x


@named
def mean_along(x: Any, axis: str) -> Any:
    """The mean along the longest axis (``"j"``) or the second longest (``"i"``), which are kept."""
    by_length = sorted(range(x.ndim), key=x.shape.__getitem__)
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
    symbol = fresh(symbol) if isinstance(symbol, str) else symbol
    return defined(jnp.asarray(x, jnp.float64), symbol)


def is_constant(x: Any) -> bool:
    """Whether a hyperparameter is the same in every step: a number, or a batch of numbers."""
    return isinstance(x, (int, float)) or x.weak_type


class NotReadable(Exception):
    """A rule whose equations can't be read, and why."""


class Program:
    """The program of a chain.

    Args:
        links: its links.
        opaque: the names of the stages that are not read.
    """

    def __init__(self, links: Sequence[Link], opaque: Collection[str] = ()):
        self.links, self.opaque = joined(links), opaque
        self.numbers: dict[Symbol, Any] = {}
        self.hyperparams = [
            {k: self.number(k, link.arguments[k]) for k in link.definition.domains}
            if isinstance(link, Stage)
            else {}
            for link in self.links
        ]
        self.arrays: list[Any] = []
        self.rows: list[Definition] = []

    def read(self) -> tuple[list[Definition], Symbol]:
        """The definitions of all values that may need a line, and the symbol of the update."""
        # A number of a batch is typed like the Python number for which it stands.
        double = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float64)
        numbers = [double((), weak_type=symbol.constant) for symbol in self.numbers]
        formulas, shapes = [Symbol("g"), PARAM, START, *self.numbers], [double(SHAPE)] * 3 + numbers
        rows, order = read(self.trace, shapes, formulas)
        for row in rows:
            if row.kind == "slot":
                row.weight = _weight_of(row)
            elif row.kind == "update" and row.beside:
                row.weight = row.beside[0].value
        return order, rows[-1].symbol

    def number(self, name: str, value: Any) -> float | Symbol:
        """An argument as a number, or as a symbol if its value is not a single known number."""
        if isinstance(value, (int, float)):
            return float(value)
        is_array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
        if is_array and value.ndim == 0 and getattr(value, "is_fully_addressable", True):
            return float(str(np.asarray(value)))  # the shortest decimal that rounds to it
        letter, key = LETTERS.get(name, (name,)), fingerprint(value)
        for symbol, other in self.numbers.items():
            alike = dataclasses.replace(symbol, which=1, step="t") == Symbol(*letter)
            if alike and fingerprint(other) == key:
                return symbol
        symbol = dataclasses.replace(fresh(*letter), step="t" if callable(value) else "")
        self.numbers[symbol] = value
        return symbol

    def trace(self, g: Any, param: Any, start: Any, *numbers: Any) -> Any:
        """The arrays of all definitions, and the definitions."""
        values = dict(zip(self.numbers, numbers, strict=True))
        double, self.arrays, self.rows = jnp.dtype(jnp.float64), [], []
        signal = Signal(g, g, is_limited=True, _param=param, _dtypes=(double,))
        is_certain = True
        for link, given in zip(self.links, self.hyperparams, strict=True):
            if isinstance(link, Foreign):
                tail, why = ")", "Optax transformation; its equations are not known"
                signal, is_certain = self.unread(signal, f"{link!r}(", tail, why), False
            elif isinstance(link, Stage):
                arguments = {
                    **link.arguments,
                    **{k: values[x] if isinstance(x, Symbol) else x for k, x in given.items()},
                }
                done = len(self.rows)
                try:
                    if link.name in self.opaque:
                        raise NotReadable("a stage behind it changes its step")
                    signal = self.stage(link, arguments, signal, start)
                except Exception as error:
                    if isinstance(error, StageError) and is_certain:
                        raise error.within(stage=link.name) from None
                    del self.rows[done:], self.arrays[done:]
                    is_told = isinstance(error, NotReadable)
                    why = str(error) if is_told else f"{type(error).__name__} in tracing it"
                    written = repr(link)[len(link.name) + 1 : -1]
                    tail = f"; {written})" if written else ")"
                    signal, is_certain = self.unread(signal, f"{link.name}(", tail, why), False
        self.is_last = signal.notes.get(LAST, signal.update) is signal.update
        self.emit("update", fresh("u"), signal.update)
        return self.arrays, self.rows

    def emit(self, kind: str, symbol: Symbol, array: Any, **more: Any) -> Definition:
        """Define a value."""
        self.arrays.append(array)
        self.rows.append(Definition(kind, symbol, **more))
        return self.rows[-1]

    def unread(self, signal: Signal, head: str, tail: str, why: str) -> Signal:
        """The signal after a link whose equations are not known."""
        signal = signal.with_update(shown_as(signal.update, head, tail))
        is_gradient = not signal.has_statistic
        self.emit("update", fresh("u"), signal.update, is_gradient=is_gradient, remark=why)
        return signal

    def stage(self, link: Stage, arguments: dict[str, Any], signal: Signal, start: Any) -> Signal:
        """The signal after a stage."""
        double, is_narrow = signal.param_dtype, link.definition.place == "rounding"
        if is_narrow:  # it acts on parameters of few bits only
            wide, narrow = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
            signal = jax.tree.map(functools.partial(recast, dtype=wide), signal)
            signal, start = dataclasses.replace(signal, _dtypes=(narrow,)), recast(start, narrow)
        made = (link.definition.equations or link.definition.factory)(**arguments)
        rule = made if isinstance(made, Rule) else Rule(lambda s, slots, step: (made(s), slots))
        clocks = {k: self.clock(k, clock) for k, clock in rule.clocks.items()}
        beside = [self.emit("formula", fresh("w"), x) for x in jax.tree.leaves(clocks)]
        if rule.seed is not None:
            clocks[KEY] = jnp.zeros((), jnp.uint32)
        first = {k: slot(start) for k, slot in rule.slots.items()}
        symbols = {
            k: jax.tree.map(lambda _, k=k: fresh(*_letter(k, rule.slots[k])), x)
            for k, x in first.items()
        }
        slots = jax.tree.map(recalled, first, symbols)
        total = None
        if rule.global_sum is not None:
            total = jax.tree.map(over_all, rule.global_sum(signal, slots, Step(clocks)))
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
            raise NotReadable("a clock of it depends on a sum over all parameters")
        symbol = fresh(name[0])
        new = clock.tick(recalled(clock.start(), symbol))
        self.emit("clock", symbol, new)
        return clock.read(new)


def _letter(name: str, slot: Any) -> tuple[str, ...]:
    own = Slot.of(slot).letter
    return (own,) if own else LETTERS.get(name, (name,))


def _weight_of(row: Definition) -> Expression:
    """The weight of an average: that of its stage, or the one with its β."""
    weights = list(dict.fromkeys(x.value for x in row.beside if is_a(x.value, "weight")))
    if len(weights) == 1:
        return weights[0]
    for weight in weights:
        (product,) = weight.children
        beta = product.children[0]
        if beta * row.symbol.before in walk(row.value):
            return weight
    return Number(1.0)
