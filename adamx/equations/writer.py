"""Write the lines of an algorithm, stage by stage: names, averages and their corrections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from adamx.equations import formulas as F
from adamx.equations.formulas import (
    GRADIENT,
    ONE,
    PARAM,
    ZERO,
    Expression,
    Function,
    Number,
    Symbol,
    is_a,
    substitute,
    walk,
)
from adamx.equations.reader import SHAPES, decayed, number
from adamx.errors import StageError
from adamx.identity import fingerprint

__all__ = ["Line", "Recurrence", "Writer"]

UPDATE = Symbol("update", lag=None)
"""A placeholder for the update in the formulas of a stage."""

NEW_UPDATE = Symbol("new update", lag=None)
"""A placeholder for the update after a stage, in the formulas of its slots."""

NEXT_PARAM = Symbol("next parameter", lag=None)
"""The parameter after this step. Lines that use it are written after the line of θₜ."""

LETTERS = {
    "learning_rate": ("α", ""),
    "b1": ("β", "1"),
    "b2": ("β", "2"),
    "b3": ("β", "3"),
    "rho": ("ρ", ""),
    "eps": ("ε", ""),
    "eps_hat": ("ε", "hat"),
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
}
"""The letters of hyperparameters, with their index."""

Units = dict[Expression, float]
"""Powers of weights: how averages that started at zero shrink a value."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of an algorithm.

    Attributes:
        symbol: the symbol on the left-hand side.
        value: the formula on the right-hand side.
        start: the value of the symbol before the first step.
        again: whether the line replaces an earlier value of the symbol in this step.
        remark: why its formula is not known.
    """

    symbol: Symbol
    value: Expression
    start: Expression = ZERO
    again: bool = False
    remark: str = ""

    def shown(self, show: Any, equals: str, becomes: str) -> str:
        """The line, written by ``show``."""
        return f"{show(self.symbol)} {becomes if self.again else equals} {show(self.value)}"

    def started(self, show: Any) -> str:
        """The value before the first step as text, or an empty string if it is 0."""
        index = ",".join(part for part in (self.symbol.index, "0") if part)
        first = dataclasses.replace(self.symbol, lag=None, index=index)
        return "" if self.start == ZERO else f"{show(first)} = {show(self.start)}"


@dataclasses.dataclass
class Recurrence:
    """A slot, or a clock, of a stage that is read: its symbol and its new value."""

    symbol: Symbol
    value: Expression
    start: Expression
    weight: Expression | None = None
    """The weight of the average that it may be."""


class Writer:
    """The gradient and the update as formulas, and the lines written so far.

    :attr:`update` is a placeholder for the update in the formulas of one stage.
    """

    update: Expression = UPDATE
    param: Expression = PARAM

    def __init__(self) -> None:
        self.lines: list[Line] = [Line(Symbol("g"), GRADIENT)]
        self.numbers: dict[Symbol, Any] = {}
        self.gradient: Expression = Symbol("g")
        self.form: Expression = Symbol("g")
        self.bias: Expression | None = None
        self.has_statistic = False
        self.step = False
        self.notes: dict[str, Any] = {}
        self.shapes: dict[Any, dict[str, Any]] = {}  # of the notes, by the shape of the parameter
        self.taken = {Symbol("g"), Symbol("θ"), Symbol("t"), Symbol("f"), Symbol("i")}
        self._weights: dict[Expression, Expression] = {}  # what the weights' symbols stand for
        self._hats: dict[Expression, tuple[Symbol, Expression]] = {}
        self._pending: dict[Symbol, tuple[Symbol, Expression]] = {}  # hats without a line yet
        self._remembered: set[Expression] = set()
        self._recurrences: dict[Any, Symbol] = {}
        self._awaiting: list[Line] = []
        self._unknown: dict[str, int] = {}  # numbers of results without a formula
        self.assumed: Expression | None = None  # a step that equations assume to be the last one
        self.is_certain = True  # whether all stages so far could be read
        self._name: Expression | None = None

    # A stage that was read

    def stage(
        self,
        slots: Sequence[Recurrence],
        update: Expression,
        gradient: Expression,
        bias: Expression | None,
        notes: dict[str, Any],
        *,
        has_statistic: bool,
        step: bool,
    ) -> None:
        """Write the lines of a stage, and replace the signal.

        Args:
            slots: its slots and clocks, in the order of computation.
            update: the new update, a formula of :attr:`update`.
            gradient: the new gradient.
            bias: the new bias.
            notes: the new notes.
            has_statistic: whether a statistic has been computed.
            step: whether the update is a step.
        """
        new = PARAM + (UPDATE if update == UPDATE else NEW_UPDATE)
        for x in slots:
            x.value = substitute(x.value, {new: NEXT_PARAM})
        keeps_update = [x for x in slots if (x.value, x.start) == (UPDATE, ZERO)]
        kept = [x for x in slots if x not in keeps_update]
        if keeps_update or self._asks([x.value for x in kept], update, gradient):
            self.named()
        table: dict[Expression, Expression] = {UPDATE: self.form}
        for x in keeps_update:  # the symbol of the update serves
            table |= {x.symbol: self.form, x.symbol.before: self.previous}
        for x in [*kept]:
            if isinstance(self.gradient, Symbol) and (x.value, x.start) == (self.gradient, ZERO):
                kept.remove(x)
                self._remembered.add(self.gradient)
                table |= {x.symbol: self.gradient, x.symbol.before: self.gradient.before}
        makes_param = update != UPDATE and not is_a(PARAM + update, "sum")

        def filled(x: Expression) -> Expression:
            """The formula with the symbols of this chain."""
            return substitute(substitute(x, table), table)

        shared = self._shared(
            [substitute(x, table) for x in (*(x.value for x in kept), update, gradient)]
        )

        def written(x: Expression) -> Expression:
            """The formula, after the lines of the shared parts that it contains."""
            for part, letter in shared:
                if part not in table and part in walk(substitute(x, table)):
                    table[part] = self.let(letter, filled(part))
            return filled(x)

        if makes_param:
            for x in kept:
                x.value = substitute(x.value, {NEW_UPDATE: NEXT_PARAM - PARAM})
        is_changed = False
        for x in sorted(kept, key=lambda x: NEXT_PARAM in walk(x.value)):  # these come last
            if not is_changed and {NEXT_PARAM, NEW_UPDATE}.intersection(walk(x.value)):
                self._signal(written(update), has_statistic, step)
                is_changed = True
                if NEW_UPDATE in walk(x.value):
                    table[NEW_UPDATE] = self.named().form
            symbol = self.let(x.symbol, written(x.value), start=x.start, weight=x.weight)
            table |= {x.symbol: symbol, x.symbol.before: symbol.before}
        same = gradient == update
        update, gradient = written(update), written(gradient)
        if not is_changed:
            self._signal(update, has_statistic, step)
        if not has_statistic and same:
            self._assign_gradient()
        elif gradient != self.gradient:
            self.gradient = gradient
        self.notes = jax.tree.map(filled, notes, is_leaf=_is_formula)
        self.bias = None if bias is None else filled(bias)

    def _signal(self, update: Expression, has_statistic: bool, step: bool) -> None:
        self.has_statistic, self.step = has_statistic, step
        self._change(update)

    def _asks(self, values: Sequence[Expression], update: Expression, gradient: Expression) -> bool:
        """Whether the stage uses the update so that it needs a line of its own."""
        if isinstance(self.form, Symbol):
            return False
        formulas = [*values, update, *([gradient] if gradient != update else [])]
        uses = sum(x == UPDATE for formula in formulas for x in walk(formula))
        changed = any(x != UPDATE and UPDATE in walk(x) for x in formulas)
        unknown = any(is_a(y, "unknown") and UPDATE in walk(y) for x in formulas for y in walk(x))
        formulas = [x for x in formulas if UPDATE in walk(x)]
        new = [self._cancelled(substitute(x, {UPDATE: self.form})) for x in formulas]
        deep = any(_depth(x) > 2 for x in new)
        parts = is_a(self.form, "cases") and not all(is_a(x, "cases") for x in new)
        return uses > 1 or unknown or (changed and (deep or parts))

    def _shared(self, formulas: Sequence[Expression]) -> list[tuple[Expression, str]]:
        """Choices that are parts of formulas, or occur twice, the inner ones first."""
        found: dict[Expression, str] = {}
        every = [part for formula in dict.fromkeys(formulas) for part in walk(formula)]
        for part in dict.fromkeys(every):
            if is_a(part, "cases", "indicator"):
                is_inside = is_a(part, "cases") and part not in formulas
                if is_inside or every.count(part) > 1:
                    found[part] = "φ" if is_a(part, "indicator") else _letter(part)
        return sorted(found.items(), key=lambda x: sum(1 for _ in walk(x[0])))

    # The vocabulary of the numeric signal

    def with_update(self, update: Expression) -> Writer:
        """Replace the update, and the gradient too if no statistic has been computed."""
        gradient = self.gradient if self.has_statistic else update
        flags = {"has_statistic": self.has_statistic, "step": self.step}
        self.stage([], update, gradient, self.bias, self.notes, **flags)
        return self

    def with_statistic(self, update: Expression, weight: Expression | None = None) -> Writer:
        """Replace the update by a statistic; ``weight`` is a factor of its bias."""
        self.has_statistic = True
        if weight is not None:
            weight = self.weight_symbol(weight)
            self.bias = weight if self.bias is None else self.bias * weight
        return self.with_update(update)

    def with_notes(self, **notes: Any) -> Writer:
        """Leave notes (scalars by name) for later stages."""
        self.notes = self.notes | notes
        scalar = jax.ShapeDtypeStruct((), np.dtype(np.float64))
        scalars = dict.fromkeys(notes, scalar)
        self.shapes = {sizes: self.shapes.get(sizes, {}) | scalars for sizes in SHAPES}
        return self

    def note(self, name: str, *, by: str) -> Any:
        """The note that an earlier stage has left."""
        if name not in self.notes:
            raise StageError(f"there is no note {name!r}; put this stage after {by}")
        return self.notes[name]

    # Lines

    def let(
        self,
        name: str | Symbol,
        value: Expression | Callable[[Symbol], Expression],
        *,
        start: Any = 0.0,
        weight: Expression | None = None,
    ) -> Symbol:
        """Write a line that defines a symbol.

        Args:
            name: a letter, which gets an index if it is already used; or a symbol from
                :meth:`fresh`.
            value: the formula, or a function from the symbol's previous value to the formula.
            start: the value before the first step.
            weight: the weight of an average. If given, the symbol's ``hat`` is the value divided by
                the weight.
        """
        start = F.expression(start)
        formula = value if isinstance(value, Expression) else value(Symbol("itself").before)
        if UPDATE in walk(formula) and (is_a(self.form, "cases") or _depth(self.form) > 1):
            self.named()
        formula = substitute(formula, {UPDATE: self.form})
        own = name.before if isinstance(name, Symbol) else Symbol("itself").before
        recurs = own in walk(formula)
        key = substitute(formula, {own: Symbol("itself").before}), start
        if recurs and key in self._recurrences:
            return self._recurrences[key]
        symbol = self.fresh(name) if isinstance(name, str) else name
        self._write(Line(symbol, substitute(formula, {own: symbol.before}), start))
        if recurs:
            self._remembered.add(symbol)
            self._recurrences[key] = symbol
        if weight is not None and weight != ONE:
            self._pending[symbol.hat] = symbol, weight
            self._hats[symbol] = symbol.hat, self.weight_symbol(weight)
        return symbol

    def average(self, name: str | Symbol, beta: Expression, of: Expression) -> Symbol:
        """The decaying average βa + (1−β)x, started at zero; its ``hat`` is bias-corrected."""
        if not beta.constant and not isinstance(beta, Symbol):
            beta = self.let("β", beta)
        return self.let(name, lambda a: beta * a + (1 - beta) * of, weight=self.weight(beta))

    def unbiased(self, symbol: Symbol) -> Symbol:
        """The average of this symbol, corrected for its start at zero."""
        return symbol.hat if symbol in self._hats else symbol

    @staticmethod
    def weight(beta: Expression) -> Expression:
        """1 − Πβ, the weight of an average."""
        return 1 - decayed(beta)

    def weight_symbol(self, weight: Expression) -> Expression:
        """A symbol that stands for a weight until the lines with it are written."""
        if isinstance(weight, Number) or any(x in self._weights for x in walk(weight)):
            return weight
        known = next((s for s, x in self._weights.items() if x == weight), None)
        if known is None:
            known = Symbol(f"w[{len(self._weights)}]", lag=None)
            self._weights[known] = weight
        return known

    def fresh(
        self, letter: str, index: str = "", lag: int | None = 0, *, accent: str = ""
    ) -> Symbol:
        """A new symbol with this letter, with an index if the letter is already used."""
        if letter.endswith("\N{COMBINING MACRON}"):
            letter, accent = letter[:-1], "bar"
        return self._free(Symbol(letter, index, accent, lag))

    def _free(self, wanted: Symbol) -> Symbol:
        plain, count = dataclasses.replace(wanted, lag=0), 1
        symbol = plain
        while symbol in self.taken:
            count += 1
            other = plain.index + "′" * (count - 1) if plain.index else str(count)
            symbol = dataclasses.replace(plain, index=other)
        self.taken = self.taken | {symbol}
        return dataclasses.replace(symbol, lag=wanted.lag)

    def named(self) -> Writer:
        """Write a line that defines the update, unless the update is already a symbol."""
        if isinstance(self.form, Symbol):
            return self
        symbol = self._assign(self._own_symbol(), self.form)
        if not self.has_statistic:
            self.gradient = symbol
        self.form = symbol
        if self.bias is not None:
            self._pending[symbol.hat] = symbol, self.bias
            self.bias = self.weight_symbol(self._meant(self.bias))
            self._hats[symbol] = symbol.hat, self.bias
        return self

    @property
    def previous(self) -> Symbol:
        """The update of the previous step; call :meth:`named` first."""
        assert isinstance(self.form, Symbol)
        self._remembered.add(self.form)
        return self.form.before

    def opaque(self, head: str, tail: str, remark: str) -> Writer:
        """Show the new update as ``head update tail``, because its formula is not known."""
        self.named()
        value = Function("call", (self.form,), f"{head}\0{tail}")
        symbol = self._assign(self._own_symbol(), value, remark)
        self._change(symbol)
        if not self.has_statistic:
            self.gradient = symbol
        return self

    def number(self, name: str, value: Any) -> Expression:
        """An argument as a number, or as a symbol if its value is not a single known number."""
        if (known := plain(value)) is not None:
            return Number(known)
        lag = 0 if callable(value) else None
        letter, index = LETTERS.get(name, (name, ""))
        accent, index = ("hat", "") if index == "hat" else ("", index)
        key = fingerprint(value)
        for symbol, other in self.numbers.items():
            own = symbol.index.rstrip("′") if index else symbol.index.strip("0123456789")
            alike = dataclasses.replace(symbol, index=own) == Symbol(letter, index, accent, lag)
            if alike and fingerprint(other) == key:
                return symbol
        symbol = self.fresh(letter, index, lag, accent=accent)
        self.numbers[symbol] = value
        return symbol

    def finish(self) -> tuple[tuple[Line, ...], Mapping[Symbol, Any]]:
        """Write the line of θₜ and the lines that depend on it; return all, and the numbers."""
        form = self._cancelled(self.form)
        if is_a(form, "cases"):
            form = F.cases(form.children[0], *(PARAM + x for x in form.children[1:]))
        else:
            form = PARAM + form
        self._write(Line(Symbol("θ"), form))
        for line in self._awaiting:
            value = substitute(line.value, {NEXT_PARAM: Symbol("θ")})
            self._append(dataclasses.replace(line, value=value))
        used = {x for line in self.lines for y in (line.value, line.start) for x in walk(y)}
        return tuple(self.lines), {s: x for s, x in self.numbers.items() if s in used}

    # Helpers

    def _change(self, form: Expression) -> None:
        """Replace the update, after writing the lines that depend on the old one."""
        if form == self.form:
            return
        for line in self._awaiting:
            value = substitute(line.value, {NEXT_PARAM: PARAM + self.form})
            self._append(dataclasses.replace(line, value=value))
        self._awaiting = []
        self.form = form

    def _assign_gradient(self) -> None:
        """Before the first statistic the update is the gradient, which has a line of its own."""
        if not isinstance(self.form, Symbol):
            self.form = self._assign(self._own_symbol(), self.form)
        self.gradient = self.form

    def _own_symbol(self) -> Symbol:
        """The symbol for the update (before the first statistic, for the gradient).

        The old symbol is used again, unless the next step needs its value.
        """
        name = self._name if self.has_statistic else self.gradient
        noted = (x for note in jax.tree.leaves(self.notes, is_leaf=_is_formula) for x in walk(note))
        if not isinstance(name, Symbol) or name in self._remembered or name in noted:
            letter = "u" if self.has_statistic else "c" if name in self._remembered else "g"
            name = self.fresh(letter)
        if self.has_statistic:
            self._name = name
        return name

    def _has(self, symbol: Symbol) -> bool:
        return any(line.symbol == symbol for line in self.lines)

    def _assign(self, symbol: Symbol, value: Expression, remark: str = "") -> Symbol:
        again = self._has(symbol)
        self._recurrences = {
            key: x for key, x in self._recurrences.items() if symbol not in walk(key[0])
        }
        self._write(Line(symbol, value, again=again, remark=remark))
        self._hats.pop(symbol, None)
        return symbol

    def _write(self, line: Line) -> None:
        if NEXT_PARAM in walk(line.value):
            self._awaiting.append(line)
        else:
            self._append(line)

    def _append(self, line: Line) -> None:
        value = self._cancelled(line.value)
        used = set(walk(value))
        for hat in [hat for hat in self._pending if hat in used]:
            symbol, weight = self._pending.pop(hat)
            self.lines.append(Line(hat, _over(symbol, self._meant(weight)), again=self._has(hat)))
        self._pending.pop(line.symbol.hat, None)
        value = self._meant(value)
        unknown = dict.fromkeys(x for x in walk(value) if is_a(x, "unknown") and not line.remark)
        table: dict[Expression, Expression] = {}
        names: list[str] = []
        for x in unknown:
            what, _, key = x.over.partition("\0")
            index = self._unknown.setdefault(key, len(self._unknown) + 1)
            shown = str(index) if index > 1 else ""
            table[x] = dataclasses.replace(x, over=f"{what}\0{shown}")
            names.append(f"f{shown} computes {what}")
        value = substitute(value, table) if table else value
        remark = line.remark or ", ".join(dict.fromkeys(names))
        self.lines.append(dataclasses.replace(line, value=value, remark=remark))

    def _meant(self, x: Expression) -> Expression:
        """The formula with weights in place of their symbols."""
        return substitute(x, self._weights)

    # The bias is a unit: a formula in which the weights of averages cancel is that of the
    # corrected averages.

    def _cancelled(self, x: Expression) -> Expression:
        """The formula, with corrected averages wherever the weights cancel."""
        if not any(s in self._weights for s in walk(x)):
            return x
        corrected, units = self._divided(x)
        if not units:
            return corrected
        return F.rebuilt(x, tuple(map(self._cancelled, x.children)))

    def _divided(self, x: Expression) -> tuple[Expression, Units]:
        """A formula of corrected averages, and the powers of weights to multiply it with."""
        if x in self._hats:
            hat, weight = self._hats[x]
            return hat, self._divided(weight)[1] or {weight: 1.0}
        if x in self._weights:
            return ONE, {x: 1.0}
        if not x.children or not isinstance(x, Function):
            return x, {}
        parts = [self._divided(child) for child in x.children]
        formulas = tuple(f for f, _ in parts)
        units = [unit for _, unit in parts]
        match x.name:
            case "product":
                return F.multiply(*formulas, fold=False), _merged(*((unit, 1) for unit in units))
            case "quotient":
                return F.divide(*formulas), _merged((units[0], 1), (units[1], -1))
            case "power" if (exponent := _value(x.children[1])) is not None:
                return F.power(formulas[0], x.children[1]), _merged((units[0], exponent))
            case "sqrt":
                return F.root(formulas[0]), _merged((units[0], 0.5))
            case "abs" | "norm" | "mean" | "rms" | "norm1" | "total":
                return F.rebuilt(x, formulas), units[0]
            case "sign" | "indicator":
                return F.rebuilt(x, formulas), {}
            case "<" | ">" | "≥" | "=" if x.children[1] == ZERO:
                return F.rebuilt(x, formulas), {}
            case "sum" | "max" | "min" | "cases" | "clip":
                own = slice(1, None) if x.name == "cases" else slice(None)
                terms = list(zip(formulas, units, strict=True))[own]
                unit = next((u for f, u in terms if f != ZERO), {})
                scaled = [
                    f if u == unit else self._cancelled(child) * _power(_merged((unit, -1)))
                    for child, (f, u) in zip(x.children[own], terms, strict=True)
                ]
                if x.name == "cases":
                    scaled = [self._cancelled(x.children[0]), *scaled]
                return F.rebuilt(x, tuple(scaled)), unit
        return F.rebuilt(x, tuple(map(self._cancelled, x.children))), {}


def _over(x: Expression, weight: Expression) -> Expression:
    if is_a(weight, "cases"):
        return F.cases(weight.children[0], *(x / part for part in weight.children[1:]))
    return x / weight


def plain(value: Any) -> float | None:
    """The value as a float if it is a single known number, otherwise None."""
    if isinstance(value, (int, float)):
        return float(value)
    known = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    if known and value.ndim == 0 and getattr(value, "is_fully_addressable", True):
        return float(str(np.asarray(value)))  # the shortest decimal that rounds to it
    return None


def _is_formula(x: Any) -> bool:
    return isinstance(x, Expression)


def _merged(*given: tuple[Units, float]) -> Units:
    total: Units = {}
    for units, times in given:
        for weight, exponent in units.items():
            total[weight] = total.get(weight, 0) + times * exponent
    return {weight: exponent for weight, exponent in total.items() if abs(exponent) > 1e-9}


def _value(x: Expression) -> float | None:
    """The value of a number, or of a quotient of two."""
    if is_a(x, "quotient") and all(isinstance(y, Number) for y in x.children):
        over, under = map(_value, x.children)
        return over / under if over is not None and under else None
    return x.value if isinstance(x, Number) else None


def _power(units: Units) -> Expression:
    """The product of these powers of weights."""

    def raised(weight: Expression, exponent: float) -> Expression:
        return F.root(weight) if exponent == 0.5 else weight ** number(exponent)

    over = [raised(w, n) for w, n in units.items() if n > 0]
    under = [raised(w, -n) for w, n in units.items() if n < 0]
    return F.divide(F.multiply(*over), F.multiply(*under))


def _depth(x: Expression) -> int:
    """The nesting depth of quotients."""
    return max(map(_depth, x.children), default=0) + is_a(x, "quotient")


def _letter(choice: Expression) -> str:
    """The letter of a choice: d of a difference to the step before, else r."""
    lagged = any(isinstance(x, Symbol) and x.letter == "g" and x.lag == -1 for x in walk(choice))
    return "d" if lagged else "r"
