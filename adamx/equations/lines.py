"""The lines of an algorithm: which values get one, their corrected averages and their names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
from adamx.equations.reader import Definition

__all__ = ["Line", "written"]

G, THETA = Symbol("g"), Symbol("θ")


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
        first = dataclasses.replace(self.symbol, step="0")
        return "" if self.start == ZERO else f"{show(first)} = {show(self.start)}"


def written(
    rows: Sequence[Definition], last: Symbol, numbers: Mapping[Symbol, Any]
) -> tuple[tuple[Line, ...], dict[Symbol, Any]]:
    """The lines of an algorithm, and the numbers in them.

    Args:
        rows: the definitions of all values, in the order of computation.
        last: the symbol of the update after the last stage.
        numbers: the values of symbols.
    """
    found, update = _merged(rows, last)
    units = _Units(found)
    found = [*_inlined(_with_param(found, update), update, units)]
    for row in found:
        row.value = units.cancelled(row.value)
    found = _ordered(units.with_corrections(_with_choices(found)))
    for row in found:
        row.value = substitute(row.value, _weights(row.value))
    return _named([Definition("gradient", G, GRADIENT), *found], numbers)


def _weights(x: Expression) -> dict[Expression, Expression]:
    """What weights stand for."""
    return {part: ONE - part.children[0] for part in walk(x) if is_a(part, "weight")}


def _merged(rows: Sequence[Definition], last: Symbol) -> tuple[list[Definition], Symbol]:
    """The definitions without those whose values have another symbol already."""
    itself = Symbol("itself")
    starts = {row.symbol: row.start for row in rows}
    table: dict[Expression, Expression] = {}
    recurrences: dict[Any, Symbol] = {}
    kept: list[Definition] = []
    for row in rows:
        value, before = substitute(row.value, table), row.symbol.before
        same = value if isinstance(value, Symbol) and value.step == "t" else None
        if same is not None and row.kind != "update" and starts.get(same, ZERO) != row.start:
            same = None
        key = substitute(value, {before: itself}), row.start
        if before in walk(value):
            same = recurrences.setdefault(key, row.symbol)
        if row.kind != "let" and same not in (None, row.symbol):
            table |= {row.symbol: same, before: same.before}
        else:
            kept.append(row)
    for row in kept:
        row.value, row.weight = (substitute(x, table) for x in (row.value, row.weight))
        if row.kind == "let" and not row.value.constant:
            table[row.value] = row.symbol
    update = substitute(last, table)
    assert isinstance(update, Symbol)
    return kept, update


def _with_param(rows: list[Definition], update: Symbol) -> list[Definition]:
    """The definitions in terms of the new parameter, where they use it, and its own."""
    own = next((row.value for row in rows if row.symbol == update), update)
    table: dict[Expression, Expression] = {PARAM + update: THETA}
    if not is_a(PARAM + own, "sum"):
        table[update] = THETA - PARAM
    for row in rows:
        if row.kind == "slot":
            row.value = substitute(row.value, table)
    return [*rows, Definition("param", THETA, PARAM + update)]


def _inlined(rows: list[Definition], update: Symbol, units: _Units) -> Iterable[Definition]:
    """The definitions that need lines, in terms of each other."""
    table: dict[Symbol, Expression] = {}
    for i, row in enumerate(rows):
        row.value, row.weight = (substitute(x, table) for x in (row.value, row.weight))
        if row.kind == "param" and is_a(
            form := units.cancelled(substitute(update, table)), "cases"
        ):
            row.value = F.cases(form.children[0], *(PARAM + x for x in form.children[1:]))
        if row.kind == "update" and not _asks(row, rows, rows[i + 1 :], units):
            table[row.symbol] = row.value
        else:
            if row.kind == "update":
                units.add(row.symbol, row.weight)
            yield row


def _asks(
    row: Definition, rows: Sequence[Definition], later: Sequence[Definition], units: _Units
) -> bool:
    """Whether an update needs a line of its own."""
    symbol, form = row.symbol, row.value
    users = [x for x in later if symbol in walk(x.value)]
    formulas = [x.value for x in users if x.kind != "param"]
    if row.remark or any(symbol.before in walk(x.value) for x in rows):
        return True
    if isinstance(form, Symbol | Number) or not users:
        return False
    uses = sum(part == symbol for x in users for part in walk(x.value))
    if uses > 1 or row.is_gradient:
        return True
    if any(is_a(y, "unknown", "call") and symbol in walk(y) for x in formulas for y in walk(x)):
        return True
    new = [units.cancelled(substitute(x, {symbol: form})) for x in formulas if x != symbol]
    is_part = is_a(form, "cases") and not all(is_a(x, "cases") for x in new)
    return is_part or any(_depth(x) > 2 for x in new)


def _depth(x: Expression) -> int:
    """The nesting depth of quotients."""
    is_quotient = is_a(x, "power") and F.as_power(x)[1] in (-1, -0.5)
    return max(map(_depth, x.children), default=0) + is_quotient


class _Units:
    """Weights of averages, treated like units.

    An average that started at zero is its corrected average times its weight. So a formula in which
    the weights cancel is that of the corrected averages.
    """

    def __init__(self, rows: Sequence[Definition]):
        self.weights: dict[Symbol, Expression] = {}
        self.units: set[Expression] = set()
        for row in rows:
            if row.kind == "slot":
                self.add(row.symbol, row.weight)

    def add(self, symbol: Symbol, weight: Expression) -> None:
        """Let a symbol have this weight."""
        if weight != ONE:
            self.weights[symbol] = weight
            if self.divided(weight)[0] != ONE:
                self.units.add(weight)

    def cancelled(self, x: Expression) -> Expression:
        """The formula, with corrected averages wherever the weights cancel."""
        if not any(is_a(part, "weight") or part in self.units for part in walk(x)):
            return x
        corrected, unit = self.divided(x)
        return corrected if unit == ONE else F.rebuilt(x, tuple(map(self.cancelled, x.children)))

    def divided(self, x: Expression) -> tuple[Expression, Expression]:
        """A formula of corrected averages, and the product of weights by which it differs."""
        if x in self.weights:
            assert isinstance(x, Symbol)
            return x.hat, self.divided(self.weights[x])[1]
        if is_a(x, "weight") or x in self.units:
            return ONE, x
        if not isinstance(x, Function):
            return x, ONE
        parts = [self.divided(child) for child in x.children]
        formulas, units = (tuple(part) for part in zip(*parts, strict=True)) if parts else ((), ())
        match x.name:
            case "product":
                return F.multiply(*formulas, fold=False), F.multiply(*units)
            case "power" if isinstance(x.children[1], Number):
                return F.power(*formulas), F.power(units[0], formulas[1])
            case "abs" | "norm" | "mean" | "rms" | "norm1" | "total":
                return F.rebuilt(x, formulas), units[0]
            case "sign" | "indicator":
                return F.rebuilt(x, formulas), ONE
            case "<" | ">" | "≥" | "=" if x.children[1] == ZERO:
                return F.rebuilt(x, formulas), ONE
            case "sum" | "max" | "min" | "cases" | "clip":
                first = x.name == "cases"
                head = [self.cancelled(child) for child in x.children[:first]]
                terms = [*zip(x.children, formulas, units, strict=True)][first:]
                unit = next((u for _, f, u in terms if f != ZERO), ONE)
                scaled = [f if u == unit else self.cancelled(y) / unit for y, f, u in terms]
                return F.rebuilt(x, (*head, *scaled)), unit
        return F.rebuilt(x, tuple(map(self.cancelled, x.children))), ONE

    def with_corrections(self, rows: Iterable[Definition]) -> list[Definition]:
        """The definitions, with those of the corrected averages that they use."""
        found: list[Definition] = []
        waiting = {symbol.hat: symbol for symbol in self.weights}
        for row in rows:
            for hat in [hat for hat in waiting if hat in {*walk(row.value)}]:
                symbol = waiting.pop(hat)
                weight = self.weights[symbol]
                branches = [symbol / x for x in weight.children[1:]]
                is_choice = is_a(weight, "cases")
                value = F.cases(weight.children[0], *branches) if is_choice else symbol / weight
                found.append(Definition("correction", hat, value))
            found.append(row)
        return found


def _with_choices(rows: Sequence[Definition]) -> list[Definition]:
    """The definitions, with those of choices that are parts of formulas, or occur twice."""
    found: list[Definition] = []
    for i, row in enumerate(rows):
        while (part := _choice(rows[i:])) is not None:
            letter = "φ" if is_a(part, "indicator") else "d" if G.before in walk(part) else "r"
            symbol = F.fresh(letter)
            found.append(Definition("choice", symbol, part))
            for x in rows[i:]:
                x.value = substitute(x.value, {part: symbol})
        found.append(row)
    return found


def _choice(rows: Sequence[Definition]) -> Expression | None:
    """The innermost choice of the first definition that needs a line of its own."""
    every = [part for row in rows for part in walk(row.value)]
    for part in reversed([*walk(rows[0].value)]):
        is_part = is_a(part, "cases") and part != rows[0].value
        if is_part or (is_a(part, "cases", "indicator") and every.count(part) > 1):
            return part
    return None


def _ordered(rows: Sequence[Definition]) -> list[Definition]:
    """The definitions; those that use the new parameter come after it."""
    behind: list[Definition] = []
    for row in rows:
        if {THETA, *(x.symbol for x in behind)}.intersection(walk(row.value)):
            behind.append(row)
    return [row for row in rows if row not in behind] + behind


# Names


def _named(
    rows: Sequence[Definition], numbers: Mapping[Symbol, Any]
) -> tuple[tuple[Line, ...], dict[Symbol, Any]]:
    """The lines, and the numbers in them, with names for all symbols."""
    letters = _letters(rows)
    parts = [part for row in rows for x in (row.symbol, row.value, row.start) for part in walk(x)]
    symbols = dict.fromkeys(x for x in parts if isinstance(x, Symbol))
    forms: dict[int, set[Symbol]] = {}  # of each symbol, with and without a hat
    for x in symbols:
        own = letters.get(x.which, x)
        form = dataclasses.replace(own, accent=x.accent, step="t", which=1)
        forms.setdefault(own.which, set()).add(form)
    taken = {*forms.pop(1), *map(Symbol, "tfi")}
    ranks = {1: 1}
    for which in sorted(forms):
        for rank in itertools.count(1):
            ranked = {dataclasses.replace(x, which=rank) for x in forms[which]}
            if not ranked & taken:
                break
        taken |= ranked
        ranks[which] = rank
    table: dict[Expression, Expression] = {}
    for x in symbols:
        own = letters.get(x.which, x)
        table[x] = dataclasses.replace(
            x, letter=own.letter, index=own.index, which=ranks[own.which]
        )
    lines: list[Line] = []
    unknown: dict[str, str] = {}
    for row in rows:
        symbol, value, start = (substitute(x, table) for x in (row.symbol, row.value, row.start))
        remarks = [row.remark] if row.remark else []
        for x in [*walk(value)]:
            if is_a(x, "unknown"):
                what, _, key = x.over.partition("\0")
                name = unknown.setdefault(key, str(len(unknown) + 1) if unknown else "")
                value = substitute(value, {x: dataclasses.replace(x, over=f"{what}\0{name}")})
                remarks.append(f"f{name} computes {what}")
        assert isinstance(symbol, Symbol)
        again = any(line.symbol == symbol for line in lines)
        lines.append(Line(symbol, value, start, again, ", ".join(dict.fromkeys(remarks))))
    shown = {table[x]: value for x, value in numbers.items() if x in table}
    return tuple(lines), {x: value for x, value in shown.items() if isinstance(x, Symbol)}


def _letters(rows: Sequence[Definition]) -> dict[int, Symbol]:
    """The symbols of updates. One takes over the symbol of a value that is not needed any more."""
    used = [{*walk(row.value), *walk(row.start)} for row in rows]
    found: dict[int, Symbol] = {}
    holders: dict[bool, Symbol] = {True: G}
    for i, row in enumerate(rows):
        if row.kind == "update":
            old = holders.get(row.is_gradient, row.symbol)
            is_kept = any(old.before in x for x in used)
            if old is row.symbol or is_kept or any(old in x for x in used[i + 1 :]):
                letter = "u" if not row.is_gradient else "c" if is_kept else "g"
                found[row.symbol.which] = dataclasses.replace(row.symbol, letter=letter)
            else:
                found[row.symbol.which] = found.get(old.which, old)
            holders[row.is_gradient] = row.symbol
    return found
