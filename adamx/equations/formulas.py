r"""Formulas, built with Python's operators and kept in a normalised form.

A quotient is a product with negative exponents, and a root is a power with exponent ½, so that one
function, ``multiply``, simplifies all of them.

>>> from adamx.equations.formulas import Number, Symbol
>>> from adamx.equations.shown import latex, text
>>> m, v = Symbol("m"), Symbol("v")
>>> text(m.before - Number(0.001) * m.hat / (v.hat**0.5 + 1e-8))
'mₜ₋₁ − 0.001 m̂ₜ / (√v̂ₜ + 1e-08)'
>>> print(latex(m.hat / v**0.5))
\frac{\hat{m}_t}{\sqrt{v_t}}
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeGuard


class Expression:
    """A formula in normalised form; Python's operators build new formulas."""

    children: tuple[Expression, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether the value is the same at every step."""
        return all(child.constant for child in self.children)

    def __add__(self, other: Any) -> Expression:
        return add(self, other)

    def __sub__(self, other: Any) -> Expression:
        return add(self, multiply(-1, other))

    def __neg__(self) -> Expression:
        return multiply(-1, self)

    def __mul__(self, other: Any) -> Expression:
        return multiply(self, other)

    def __truediv__(self, other: Any) -> Expression:
        return multiply(self, power(other, -1))

    def __pow__(self, other: Any) -> Expression:
        return power(self, other)


@dataclasses.dataclass(frozen=True)
class Number(Expression):
    """A number. 1e-08 is shown like this in text, and as a power of ten in LaTeX."""

    value: float


@dataclasses.dataclass(frozen=True)
class Symbol(Expression):
    """A letter with an index and an accent.

    Attributes:
        letter: one letter, or a word.
        index: the subscript, written before the step.
        accent: "hat", "bar" or an empty string.
        step: "t" for the value of this step, "t−1" for that of the previous step, "0" for that
            before the first step, and so on; an empty string for a constant.
        which: tells symbols of one letter apart: 2 for the second one, which is shown as an index.
    """

    letter: str
    index: str = ""
    accent: str = ""
    step: str = "t"
    which: int = 1

    @property
    def hat(self) -> Symbol:
        """The symbol with a hat."""
        return dataclasses.replace(self, accent="hat")

    @property
    def before(self) -> Symbol:
        """Its value in the step before."""
        return dataclasses.replace(self, step="t−1")

    @property
    def after(self) -> Symbol:
        """Its value in the next step."""
        return dataclasses.replace(self, step="t+1")

    @property
    def constant(self) -> bool:
        """Whether the value is the same at every step."""
        return self.step in ("", "0") and self != STEP


@dataclasses.dataclass(frozen=True)
class Function(Expression):
    """A named function of other formulas.

    ``sum``, ``product`` and ``power`` have the form that ``add``, ``multiply`` and
    ``power`` give them: numbers are computed and come first, terms 0 and factors 1 are left
    out. ``=``, ``≠``, ``<``, ``>`` and ``≥`` are relations, ``cases`` has a relation, a value and
    another value, ``running`` is the product of a value over all steps, ``weight`` is 1 minus such
    a product, and ``call`` and ``unknown`` are operations whose formula is not known.

    Attributes:
        name: the function's name.
        children: its arguments.
        over: for norms, sums and means, their range ("" for everything); for a ``call``, its text
            around the argument.
    """

    name: str
    children: tuple[Expression, ...]
    over: str = ""


ZERO, ONE = Number(0.0), Number(1.0)
STEP = Symbol("t", step="")
PARAM, START = Symbol("θ", step="t−1"), Symbol("θ", step="0")
GRADIENT = Function("gradient", (PARAM,))


def expression(x: Any) -> Expression:
    """A number as a formula; a formula as it is."""
    return x if isinstance(x, Expression) else Number(float(x))


_COUNT = itertools.count(2)


def fresh(letter: str, index: str = "", accent: str = "", step: str = "t") -> Symbol:
    """A symbol that differs from all others; those with the same letter are numbered at the end."""
    return Symbol(letter, index, accent, step, next(_COUNT))


def is_a(x: Expression, *names: str) -> TypeGuard[Function]:
    """Whether it is a function of one of these names."""
    return isinstance(x, Function) and x.name in names


def of(name: str, *arguments: Any, over: str = "") -> Function:
    """A function of these arguments, as it is."""
    return Function(name, tuple(map(expression, arguments)), over)


# The normalised form


def _folded(operation: Callable[[Any, Any], Any], x: float, y: float) -> float:
    """Compute with decimal numbers, so that 1 − 0.999 is 0.001."""
    if math.isfinite(x) and math.isfinite(y):
        return float(operation(Decimal(repr(x)), Decimal(repr(y))))
    return operation(x, y)


def add(*given: Any) -> Expression:
    """The sum."""
    kept: list[Expression] = []
    for x in map(expression, given):
        for term in x.children if is_a(x, "sum") else (x,):
            number = next((i for i, y in enumerate(kept) if isinstance(y, Number)), None)
            if isinstance(term, Number) and number is not None:
                before = kept[number]
                assert isinstance(before, Number)
                kept[number] = Number(_folded(operator.add, before.value, term.value))
            elif (opposite := -term) in kept:
                kept.remove(opposite)
            else:
                kept.append(term)
    kept = [term for term in kept if term != ZERO]
    return Function("sum", tuple(kept)) if len(kept) > 1 else kept[0] if kept else ZERO


def multiply(*given: Any, fold: bool = True) -> Expression:
    """The product; without ``fold``, numeric factors are kept separate."""
    numbers: list[float] = []
    powers: dict[Expression, float] = {}
    for x in sorted(map(expression, given), key=_is_quotient):
        for factor in x.children if is_a(x, "product") else (x,):
            if isinstance(factor, Number):
                numbers.append(factor.value)
            else:
                base, n = as_power(factor)
                powers[base] = powers.get(base, 0.0) + n
    if 0 in numbers:
        return ZERO
    factors = [x for x in _joined(powers) if x != ONE]
    if any(is_a(x, "product") or isinstance(x, Number) for x in factors):
        return multiply(*numbers, *factors, fold=fold)
    size = [abs(x) for x in numbers if abs(x) != 1] or [1.0]
    if fold or not factors:
        size = [functools.reduce(functools.partial(_folded, operator.mul), size)]
    size[0] *= math.prod(math.copysign(1, x) for x in numbers)
    row = (*(Number(x) for x in size if x != 1), *factors)
    return Function("product", row) if len(row) > 1 else row[0] if row else ONE


def _joined(powers: Mapping[Expression, float]) -> list[Expression]:
    """The factors, with one choice in place of several with the same condition."""
    choices: dict[Expression, list[Expression]] = {}
    for base in powers:
        if is_a(base, "cases"):
            choices.setdefault(base.children[0], []).append(base)
    for condition, same in choices.items():
        if len(same) > 1:
            branches = ((power(x.children[i], powers[x]) for x in same) for i in (1, 2))
            joined = cases(condition, *(multiply(*branch) for branch in branches))
            return _joined({x: n for x, n in powers.items() if x not in same} | {joined: 1.0})
    return [power(base, n) for base, n in powers.items()]


def _is_quotient(x: Expression) -> bool:
    return any(as_power(y)[1] < 0 for y in (x.children if is_a(x, "product") else (x,)))


def as_power(x: Expression) -> tuple[Expression, float]:
    """The base and the exponent, if it is a power with a number as its exponent."""
    if is_a(x, "power") and isinstance(x.children[1], Number):
        return x.children[0], x.children[1].value
    return x, 1.0


def power(base: Any, exponent: Any) -> Expression:
    """``base ** exponent``; the root of a square is an absolute value, of a mean square an RMS."""
    base, exponent = expression(base), expression(exponent)
    if exponent == ONE:
        return base
    if exponent == ZERO or base == ONE:
        return ONE
    if not isinstance(exponent, Number):
        return of("power", base, exponent)
    n = exponent.value
    if isinstance(base, Number) and n > 0:
        return Number(_folded(operator.pow, base.value, n))
    inner, m = as_power(base)
    if m != 1 and not isinstance(inner, Number):
        return power(absolute(inner) if m % 2 == 0 and m * n % 2 else inner, m * n)
    if is_a(base, "abs") and n % 2 == 0:
        return power(base.children[0], n)
    if is_a(base, "product") and n < 0 and n % 1 == 0:
        return multiply(*(power(x, n) for x in base.children), fold=False)
    if is_a(base, "mean") and base.over == "array" and abs(n) == 0.5:
        square, m = as_power(base.children[0])
        if m == 2:
            return power(of("rms", square), 2 * n)
    return of("power", base, exponent)


# Functions


def absolute(x: Any) -> Expression:
    """|x|."""
    return x if is_a(expression(x), "abs", "norm", "rms") else of("abs", x)


def extreme(name: str, *given: Any) -> Expression:
    """The smallest (``"min"``) or the largest (``"max"``) of several values."""
    values = [*map(expression, given)]
    if all(isinstance(x, Number) for x in values):
        return (min if name == "min" else max)(values, key=lambda x: getattr(x, "value", 0.0))
    return of(name, *values)


RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "≥": operator.ge,
    "=": operator.eq,
    "≠": operator.ne,
}


def relation(name: str, x: Any, y: Any) -> Expression:
    """``x < y``, ``x > y``, ``x ≥ y``, ``x = y`` or ``x ≠ y``; of two numbers, 1 or 0."""
    x, y = expression(x), expression(y)
    if isinstance(x, Number) and isinstance(y, Number):
        return Number(float(RELATIONS[name](x.value, y.value)))
    return Number(float(RELATIONS[name](0, 0))) if x == y else of(name, x, y)


def cases(condition: Expression, value: Any, otherwise: Any) -> Expression:
    """One value where the condition holds, another one elsewhere."""
    value, otherwise = expression(value), expression(otherwise)
    if isinstance(condition, Number):
        return value if condition.value else otherwise
    return value if value == otherwise else of("cases", condition, value, otherwise)


def decayed(beta: Expression) -> Expression:
    """The product of β over all steps; βᵗ if β is constant."""
    if not beta.constant:
        return of("running", beta)
    return ZERO if beta == ZERO else beta**STEP


# Searching and changing formulas

_BUILD: dict[str, Callable[..., Expression]] = {
    "sum": add,
    "product": functools.partial(multiply, fold=False),
    "power": power,
    "abs": absolute,
    "cases": cases,
    **{name: functools.partial(relation, name) for name in RELATIONS},
    **{name: functools.partial(extreme, name) for name in ("min", "max")},
}


def rebuilt(x: Expression, children: tuple[Expression, ...]) -> Expression:
    """The formula with other children, normalised."""
    if not isinstance(x, Function) or children == x.children:
        return x
    return _BUILD[x.name](*children) if x.name in _BUILD else Function(x.name, children, x.over)


def walk(x: Expression) -> Iterator[Expression]:
    """The formula and all formulas in it."""
    yield x
    for child in x.children:
        yield from walk(child)


def substitute(x: Expression, table: Mapping[Any, Expression]) -> Expression:
    """The formula with some of its expressions replaced."""
    if x in table:
        return table[x]
    return rebuilt(x, tuple(substitute(child, table) for child in x.children))
