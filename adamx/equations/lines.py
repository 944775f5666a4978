"""The lines of an algorithm: which values get one, their corrected averages and their names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from adamx.equations import formulas as F
from adamx.equations.formulas import ONE, PARAM, ZERO, Expression, Symbol, is_a, substitute, walk
from adamx.equations.reader import Line

__all__ = ["written"]

G, THETA = Symbol("g"), Symbol("θ")


def written(lines: Sequence[Line], last: Symbol) -> tuple[list[Line], dict[Symbol, Symbol]]:
    """The lines of an algorithm, and the names of the symbols in them.

    Args:
        lines: the definitions of all values, in the order of computation.
        last: the symbol of the update after the last stage.
    """
    lines, update = _merged(lines, last)
    units = _Units(lines)
    lines = [*_inlined(_with_param(lines, update), update, units)]
    for line in lines:
        line.value = units.cancelled(line.value)
    lines = [Line(G, F.GRADIENT), *_ordered(units.with_corrections(_with_choices(lines)))]
    for line in lines:
        weights = {x: ONE - x.children[0] for x in walk(line.value) if is_a(x, "weight")}
        line.value = substitute(line.value, weights)
    return lines, _named(lines)


def _merged(lines: Sequence[Line], last: Symbol) -> tuple[list[Line], Symbol]:
    """The lines without those whose values have a symbol already, and the symbol of the update."""
    starts = {G: ZERO} | {line.symbol: line.start for line in lines}
    table: dict[Expression, Expression] = {}
    recurrences: dict[Any, Symbol] = {}
    kept: list[Line] = []
    for line in lines:
        symbol, value, before = line.symbol, substitute(line.value, table), line.symbol.before
        same = None
        if before in walk(value):
            key = substitute(value, {before: Symbol("itself")}), line.start
            same = recurrences.setdefault(key, symbol)
        elif isinstance(value, Symbol) and value in starts:
            is_equal = line.kind == "update" or starts[value] == line.start
            same = value if is_equal and line.kind != "let" else None
        if same is None or same == symbol:
            kept.append(line)
        else:
            table |= {symbol: same, before: same.before}
    for line in kept:
        line.value, line.weight = (substitute(x, table) for x in (line.value, line.weight))
        if line.kind == "let" and isinstance(line.value, F.Function) and not line.value.constant:
            table[line.value] = line.symbol
    update = substitute(last, table)
    assert isinstance(update, Symbol)
    for line in reversed([*kept]):  # of a stage that could not be read
        used = {update}.union(*(walk(x.value) for x in kept))
        if line.kind == "let" and line.symbol not in used:
            kept.remove(line)
    return kept, update


def _with_param(lines: list[Line], update: Symbol) -> list[Line]:
    """The lines in terms of the new parameter, where they use it, and its own."""
    value = next((line.value for line in lines if line.symbol == update), update)
    table: dict[Expression, Expression] = {PARAM + update: THETA}
    if not is_a(PARAM + value, "sum"):
        table[update] = THETA - PARAM
    for line in lines:
        if line.kind == "slot":
            line.value = substitute(line.value, table)
    return [*lines, Line(THETA, PARAM + update, kind="param")]


def _inlined(lines: list[Line], update: Symbol, units: _Units) -> Iterable[Line]:
    """The lines that are needed, in terms of each other."""
    table: dict[Symbol, Expression] = {}
    for i, line in enumerate(lines):
        line.value, line.weight = (substitute(x, table) for x in (line.value, line.weight))
        if line.kind == "update" and not _is_needed(line, lines, i, units):
            table[line.symbol] = line.value
            continue
        if line.kind == "update":
            units.add(line.symbol, line.weight)
        if line.kind == "param" and is_a(u := units.cancelled(substitute(update, table)), "cases"):
            line.value = F.cases(u.children[0], *(PARAM + x for x in u.children[1:]))
        yield line


def _is_needed(line: Line, lines: Sequence[Line], place: int, units: _Units) -> bool:
    """Whether an update needs a line of its own."""
    symbol, value = line.symbol, line.value
    users = [x for x in lines[place + 1 :] if symbol in walk(x.value)]
    if line.remark or any(symbol.before in walk(x.value) for x in lines):
        return True
    if isinstance(value, Symbol | F.Number) or not users:
        return False
    parts = [part for x in users for part in walk(x.value)]
    is_argument = any(is_a(x, "unknown") and symbol in walk(x) for x in parts)
    is_argument |= any(x.remark for x in users)
    if line.is_gradient or is_argument or parts.count(symbol) > 1:
        return True
    formulas = [x.value for x in users if x.kind != "param" and x.value != symbol]
    new = [units.cancelled(substitute(x, {symbol: value})) for x in formulas]
    is_part = is_a(value, "cases") and not all(is_a(x, "cases") for x in new)
    return is_part or any(_depth(x) > 2 for x in new)


def _depth(x: Expression) -> int:
    """The nesting depth of quotients."""
    is_below = F.as_power(x)[1] in (-1, -0.5)
    return max(map(_depth, x.children), default=0) + is_below


class _Units:
    """Weights of averages, treated like units.

    An average that started at zero is its corrected average times its weight. So a formula in which
    the weights cancel is that of the corrected averages.
    """

    def __init__(self, lines: Sequence[Line]):
        self.weights: dict[Symbol, Expression] = {}
        self.units: set[Expression] = set()
        for line in lines:
            if line.kind == "slot":
                self.add(line.symbol, line.weight)

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
        if isinstance(x, Symbol) and x in self.weights:
            return x.hat, self.divided(self.weights[x])[1]
        if is_a(x, "weight") or x in self.units:
            return ONE, x
        if not isinstance(x, F.Function) or not x.children:
            return x, ONE
        formulas, units = zip(*map(self.divided, x.children), strict=True)
        match x.name:
            case "product":
                return F.multiply(*formulas, fold=False), F.multiply(*units)
            case "power" if isinstance(x.children[1], F.Number):
                return F.power(*formulas), F.power(units[0], formulas[1])
            case "abs" | "norm" | "mean" | "rms" | "norm1" | "total":
                return F.rebuilt(x, formulas), units[0]
            case "sign" | "indicator":
                return F.rebuilt(x, formulas), ONE
            case "<" | ">" | "≥" | "=" if x.children[1] == ZERO:
                return F.rebuilt(x, formulas), ONE
            case "sum" | "max" | "min" | "cases" | "clip":
                head = [self.cancelled(y) for y in x.children[: x.name == "cases"]]
                terms = [*zip(x.children, formulas, units, strict=True)][len(head) :]
                unit = next((u for _, y, u in terms if y != ZERO), ONE)
                scaled = [f if u == unit else self.cancelled(y) / unit for y, f, u in terms]
                return F.rebuilt(x, (*head, *scaled)), unit
        return F.rebuilt(x, tuple(map(self.cancelled, x.children))), ONE

    def with_corrections(self, lines: Iterable[Line]) -> Iterable[Line]:
        """The lines, and those of the corrected averages in front of the first that uses them."""
        waiting = {symbol.hat: symbol for symbol in self.weights}
        for line in lines:
            for hat in [x for x in waiting if x in {*walk(line.value)}]:
                symbol = waiting.pop(hat)
                weight = self.weights[symbol]
                if is_a(weight, "cases"):
                    condition, *branches = weight.children
                    yield Line(hat, F.cases(condition, *(symbol / x for x in branches)))
                else:
                    yield Line(hat, symbol / weight)
            yield line


def _with_choices(lines: Sequence[Line]) -> Iterable[Line]:
    """The lines, and those of choices that are parts of formulas, or occur twice."""
    for i, line in enumerate(lines):
        while (part := _choice(lines[i:])) is not None:
            letter = "φ" if is_a(part, "indicator") else "d" if G.before in walk(part) else "r"
            symbol = F.fresh(letter)
            for x in lines[i:]:
                x.value = substitute(x.value, {part: symbol})
            yield Line(symbol, part)
        yield line


def _choice(lines: Sequence[Line]) -> Expression | None:
    """The innermost choice in the first line that needs a line of its own."""
    every = [part for line in lines for part in walk(line.value)]
    for part in reversed([*walk(lines[0].value)]):
        is_inside = is_a(part, "cases") and part != lines[0].value
        if is_inside or (is_a(part, "cases", "indicator") and every.count(part) > 1):
            return part
    return None


def _ordered(lines: Iterable[Line]) -> list[Line]:
    """The lines; those that use the new parameter come after it."""
    rows: tuple[list[Line], list[Line]] = [], []
    late = {THETA}
    for line in lines:
        is_late = not late.isdisjoint(walk(line.value))
        late |= {line.symbol} if is_late else set()
        rows[is_late].append(line)
    return rows[0] + rows[1]


def _named(lines: Sequence[Line]) -> dict[Symbol, Symbol]:
    """Give all symbols their names; the name of each."""
    letters = _letters(lines)
    parts = [part for x in lines for y in (x.symbol, x.value, x.start) for part in walk(y)]
    owners = {x: letters.get(x.which, x) for x in parts if isinstance(x, Symbol)}
    taken = {(letter, "", "", 1) for letter in "gθtfi"}
    ranks = {1: 1}
    for which in sorted({own.which for own in owners.values()} - {1}):
        forms = {(y.letter, y.index, x.accent) for x, y in owners.items() if y.which == which}
        numbers = itertools.count(1)
        rank = next(n for n in numbers if taken.isdisjoint((*form, n) for form in forms))
        taken |= {(*form, rank) for form in forms}
        ranks[which] = rank
    names = {
        x: dataclasses.replace(x, letter=y.letter, index=y.index, which=ranks[y.which])
        for x, y in owners.items()
    }
    seen: set[Symbol] = set()
    for line in lines:
        line.symbol = names[line.symbol]
        line.again = line.symbol in seen
        seen.add(line.symbol)
        line.value, line.start = (substitute(x, names) for x in (line.value, line.start))
    _number_unknown(lines)
    return names


def _letters(lines: Sequence[Line]) -> dict[int, Symbol]:
    """The symbols of updates. One takes over the symbol of a value that is not needed any more."""
    used = [{*walk(line.value), *walk(line.start)} for line in lines]
    found: dict[int, Symbol] = {}
    holders: dict[bool, Symbol] = {True: G}
    for i, line in enumerate(lines):
        if line.kind == "update":
            new, old = line.symbol, holders.get(line.is_gradient)
            is_kept = old is not None and any(old.before in x for x in used)
            letter = "u" if not line.is_gradient else "c" if is_kept else "g"
            found[new.which] = dataclasses.replace(new, letter=letter)
            later = set[F.Expression]().union(*used[i + 1 :])
            if old is not None and not is_kept and later.isdisjoint({old, old.hat}):
                found[new.which] = found.get(old.which, old)
            holders[line.is_gradient] = new
    return found


def _number_unknown(lines: Sequence[Line]) -> None:
    """Number the values whose formulas are not known, and say what they are."""
    numbers: dict[str, str] = {}
    for line in lines:
        remarks: dict[str, None] = {}
        for x in [*walk(line.value)]:
            if is_a(x, "unknown"):
                what, _, key = x.over.partition("\0")
                number = numbers.setdefault(key, str(len(numbers) + 1) if numbers else "")
                remarks[f"f{number} computes {what}"] = None
                numbered = dataclasses.replace(x, over=f"{what}\0{number}")
                line.value = substitute(line.value, {x: numbered})
        line.remark = line.remark or ", ".join(remarks)
