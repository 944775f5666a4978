r"""Formulas, built with Python's operators and kept in a normalised form.

>>> from adamx.equations.formulas import Symbol, root
>>> from adamx.equations.shown import latex, text
>>> m, v = Symbol("m"), Symbol("v")
>>> text(m.before - 0.001 * m.hat / (root(v.hat) + 1e-8))
'mₜ₋₁ − 0.001 m̂ₜ / (√v̂ₜ + 1e-08)'
>>> print(latex(m.hat / root(v)))
\frac{\hat{m}_t}{\sqrt{v_t}}
"""

from __future__ import annotations

import dataclasses
import functools
import math
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

    def __radd__(self, other: Any) -> Expression:
        return add(other, self)

    def __sub__(self, other: Any) -> Expression:
        return add(self, -expression(other))

    def __rsub__(self, other: Any) -> Expression:
        return add(other, -self)

    def __neg__(self) -> Expression:
        return multiply(-1, self)

    def __mul__(self, other: Any) -> Expression:
        return multiply(self, other)

    def __rmul__(self, other: Any) -> Expression:
        return multiply(other, self)

    def __truediv__(self, other: Any) -> Expression:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return divide(other, self)

    def __pow__(self, other: Any) -> Expression:
        return power(self, other)

    def __rpow__(self, other: Any) -> Expression:
        return power(other, self)

    def __lt__(self, other: Any) -> Expression:
        return relation("<", self, other)

    def __gt__(self, other: Any) -> Expression:
        return relation(">", self, other)

    def __ge__(self, other: Any) -> Expression:
        return relation("≥", self, other)

    def equals(self, other: Any) -> Expression:
        """The relation ``self = other``."""
        return relation("=", self, other)


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
        lag: 0 for the value of this step, -1 for the value of the previous step, None for a
            constant.
    """

    letter: str
    index: str = ""
    accent: str = ""
    lag: int | None = 0

    @property
    def hat(self) -> Symbol:
        """The symbol with a hat."""
        return dataclasses.replace(self, accent="hat")

    @property
    def before(self) -> Symbol:
        """Its value in the step before."""
        return dataclasses.replace(self, lag=-1)

    @property
    def after(self) -> Symbol:
        """Its value in the next step."""
        return dataclasses.replace(self, lag=1)

    @property
    def constant(self) -> bool:
        """Whether the value is the same at every step."""
        return self.lag is None and self != STEP


@dataclasses.dataclass(frozen=True)
class Function(Expression):
    """A named function of other formulas.

    ``sum``, ``product``, ``quotient`` and ``power`` have the form that ``add``, ``multiply``,
    ``divide`` and ``power`` give them: numbers are computed and come
    first, terms 0 and factors 1 are left out, a product ends with at most one quotient. ``=``,
    ``<``, ``>`` and ``≥`` are relations, ``cases`` has a relation, a value and another value,
    ``running`` is the product of a symbol over all steps, ``call`` an operation whose formula is
    not known.

    Attributes:
        name: the function's name.
        children: its arguments.
        over: for norms and means, their range ("" for everything); for a ``call``, its text around
            the argument.
    """

    name: str
    children: tuple[Expression, ...]
    over: str = ""


ZERO, ONE = Number(0.0), Number(1.0)
STEP = Symbol("t", lag=None)
PARAM = Symbol("θ", lag=-1)
START = Symbol("θ", index="0", lag=None)
GRADIENT = Function("gradient", (PARAM,))


def expression(x: Any) -> Expression:
    """A number as a formula; a formula as it is."""
    return x if isinstance(x, Expression) else Number(float(x))


def is_a(x: Expression, *names: str) -> TypeGuard[Function]:
    """Whether it is a function of one of these names."""
    return isinstance(x, Function) and x.name in names


def of(name: str, *arguments: Any, over: str = "") -> Function:
    """A function of these arguments, as it is."""
    return Function(name, tuple(map(expression, arguments)), over)


# Functions


def root(x: Any) -> Expression:
    """√x; the root of a square is an absolute value, the root of a sum of squares a norm."""
    x = expression(x)
    if isinstance(x, Number):
        return Number(math.sqrt(x.value))
    square = x.children[0] if is_a(x, "mean") and x.over == "array" else x
    if is_a(square, "power") and square.children[1] == Number(2.0):
        (base, _) = square.children
        return base if is_a(base, "norm") else absolute(base) if square is x else rms(base)
    return of("sqrt", x)


def absolute(x: Any) -> Expression:
    """|x|."""
    return x if is_a(expression(x), "abs", "norm", "rms") else of("abs", x)


def norm(x: Any, over: str = "") -> Expression:
    """‖x‖ over all parameters, over one ``"array"``, or over one ``"unit"`` of an array."""
    return of("norm", x, over=over)


def mean(x: Any, over: str = "array") -> Expression:
    """The mean over one array, or over a part of it."""
    return of("mean", x, over=over)


def _function(name: str) -> Callable[[Any], Expression]:
    return lambda x: of(name, x)


sign = _function("sign")
log = _function("log")
exp = _function("exp")
rms = _function("rms")  # over one array
indicator = _function("indicator")  # 1 where a relation holds, 0 elsewhere


def maximum(x: Any, y: Any) -> Expression:
    """The larger one of two values."""
    return _extreme("max", max, expression(x), expression(y))


def minimum(x: Any, y: Any) -> Expression:
    """The smaller one of two values."""
    return _extreme("min", min, expression(x), expression(y))


def _extreme(name: str, choose: Any, x: Expression, y: Expression) -> Expression:
    if isinstance(x, Number) and isinstance(y, Number):
        return Number(choose(x.value, y.value))
    return of(name, x, y)


RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda x, y: x < y,
    ">": lambda x, y: x > y,
    "≥": lambda x, y: x >= y,
    "=": lambda x, y: x == y,
    "≠": lambda x, y: x != y,
}


def relation(name: str, x: Any, y: Any) -> Expression:
    """``x < y``, ``x > y``, ``x ≥ y`` or ``x = y``; of two numbers, 1 or 0."""
    x, y = expression(x), expression(y)
    if isinstance(x, Number) and isinstance(y, Number):
        return Number(float(RELATIONS[name](x.value, y.value)))
    if x == y:
        return Number(float(RELATIONS[name](0, 0)))
    return of(name, x, y)


def cases(condition: Expression, value: Any, otherwise: Any) -> Expression:
    """One value where the condition holds, another one elsewhere."""
    value, otherwise = expression(value), expression(otherwise)
    if isinstance(condition, Number):
        return value if condition.value else otherwise
    return value if value == otherwise else of("cases", condition, value, otherwise)


# The normalised form: numbers are computed and come first; terms 0 and factors 1 are omitted.


def _folded(operation: Callable[[Any, Any], Any], x: float, y: float) -> float:
    """Compute with decimal numbers, so that 1 − 0.999 is 0.001."""
    if math.isfinite(x) and math.isfinite(y):
        return float(operation(Decimal(repr(x)), Decimal(repr(y))))
    return operation(x, y)


def add(*given: Any) -> Expression:
    """The sum."""
    terms: list[Expression] = []
    for term in map(expression, given):
        terms += term.children if is_a(term, "sum") else [term]
    kept: list[Expression] = []
    for term in terms:
        number = next((i for i, x in enumerate(kept) if isinstance(x, Number)), None)
        if isinstance(term, Number) and number is not None:
            before = kept[number]
            assert isinstance(before, Number)
            kept[number] = Number(_folded(lambda x, y: x + y, before.value, term.value))
        elif (opposite := -term) in kept:
            kept.remove(opposite)
        else:
            kept.append(term)
    kept = [term for term in kept if term != ZERO]
    if len(kept) < 2:
        return kept[0] if kept else ZERO
    return Function("sum", tuple(kept))


def multiply(*given: Any, fold: bool = True) -> Expression:
    """The product; without ``fold``, numeric factors are kept separate."""
    parts = [
        f for x in map(expression, given) for f in (x.children if is_a(x, "product") else (x,))
    ]
    parts = _paired(parts)
    numbers = [f.value for f in parts if isinstance(f, Number)]
    others = [f for f in parts if not isinstance(f, Number) and not is_a(f, "quotient")]
    quotients = [f for f in parts if is_a(f, "quotient")]
    if quotients:
        over = [f.children[0] for f in quotients]
        numbers += [x.value for x in over if isinstance(x, Number)]
        over = [x for x in over if not isinstance(x, Number)]
        if not over:  # c/d · x is written as c · x/d
            over, others = others, []
        under = multiply(*(f.children[1] for f in quotients))
        if not over:
            return divide(Number(functools.reduce(_times, numbers)), under)
        quotient = divide(multiply(*over), under)
        others += quotient.children if is_a(quotient, "product") else [quotient]
    if 0 in numbers:
        return ZERO
    others = [x for x in others if x != ONE]
    sign = math.prod(math.copysign(1, number) for number in numbers)
    sizes = [abs(number) for number in numbers if abs(number) != 1]
    if fold and sizes:
        sizes = [functools.reduce(_times, sizes)]
    first = [sign * sizes[0], *sizes[1:]] if sizes and sizes != [1.0] else [sign] * (sign < 0)
    row = (*map(Number, first), *others)
    return row[0] if len(row) == 1 else Function("product", row) if row else ONE


def _paired(factors: list[Expression]) -> list[Expression]:
    """The factors, with x² in place of x · x, and one case where two have the same condition."""
    kept: list[Expression] = []
    for factor in factors:
        twin = next((x for x in kept if is_a(x, "cases") and is_a(factor, "cases")), None)
        if twin is not None and twin.children[0] == factor.children[0]:
            kept.remove(twin)
            branches = zip(twin.children[1:], factor.children[1:], strict=True)
            kept.append(cases(factor.children[0], *(multiply(*pair) for pair in branches)))
        elif factor in kept and not isinstance(factor, Number) and not is_a(factor, "quotient"):
            kept[kept.index(factor)] = power(factor, 2)
        else:
            kept.append(factor)
    return kept


def _times(x: float, y: float) -> float:
    return _folded(lambda x, y: x * y, x, y)


def divide(over: Any, by: Any) -> Expression:
    """The quotient."""
    x, by = expression(over), expression(by)
    if is_a(by, "cases") and (isinstance(x, Number) or _alike(x, by)):
        above = x.children[1:] if is_a(x, "cases") else (x, x)
        branches = zip(above, by.children[1:], strict=True)
        return cases(by.children[0], *(divide(*pair) for pair in branches))
    if x == by:
        return ONE
    if by == ONE or x == ZERO:
        return x
    if is_a(by, "quotient"):
        return divide(multiply(x, by.children[1]), by.children[0])
    if isinstance(x, Number) and isinstance(by, Number) and by.value != 0:
        value = _folded(lambda a, b: a / b, x.value, by.value)
        return Number(value) if value == float(f"{value:.6g}") else of("quotient", x, by)
    if is_a(x, "quotient"):
        return divide(x.children[0], multiply(x.children[1], by))
    if is_a(x, "product"):
        if is_a(x.children[-1], "quotient"):
            *others, last = x.children
            return multiply(*others, divide(last, by), fold=False)
        if by in x.children:
            return multiply(*_without(x.children, by), fold=False)
        numbers = [f for f in x.children if isinstance(f, Number)]
        if numbers:
            rest = multiply(*x.children[len(numbers) :])
            return multiply(*numbers, divide(rest, by), fold=False)
    if is_a(by, "product") and x in by.children:
        return divide(ONE, multiply(*_without(by.children, x)))
    return of("quotient", x, by)


def _alike(x: Expression, y: Expression) -> bool:
    return is_a(x, "cases") and x.children[0] == y.children[0]


def _without(parts: tuple[Expression, ...], one: Expression) -> list[Expression]:
    rest = list(parts)
    rest.remove(one)
    return rest


def power(base: Any, exponent: Any) -> Expression:
    """``base ** exponent``."""
    base, exponent = expression(base), expression(exponent)
    if exponent == ONE:
        return base
    if exponent == ZERO or base == ONE:
        return ONE
    if isinstance(base, Number) and isinstance(exponent, Number):
        return Number(_folded(lambda x, y: x**y, base.value, exponent.value))
    if is_a(base, "sqrt", "abs") and exponent == Number(2.0):
        inside = base.children[0]
        return inside if is_a(base, "sqrt") else power(inside, exponent)
    return of("power", base, exponent)


_BUILD: dict[str, Callable[..., Expression]] = {
    "sum": add,
    "product": functools.partial(multiply, fold=False),
    "quotient": divide,
    "power": power,
    "sqrt": root,
    "max": maximum,
    "min": minimum,
    "cases": cases,
    **{name: functools.partial(relation, name) for name in RELATIONS},
}


def rebuilt(x: Expression, children: tuple[Expression, ...]) -> Expression:
    """The same formula with new children, in normalised form."""
    if not isinstance(x, Function) or children == x.children:
        return x
    if x.name in _BUILD:
        return _BUILD[x.name](*children)
    return dataclasses.replace(x, children=children)


# Searching and changing formulas


def walk(x: Expression) -> Iterator[Expression]:
    """The formula and all formulas in it."""
    yield x
    for child in x.children:
        yield from walk(child)


def substitute(x: Expression, table: Mapping[Expression, Expression]) -> Expression:
    """The formula with some of its expressions replaced."""
    if x in table:
        return table[x]
    return rebuilt(x, tuple(substitute(child, table) for child in x.children))
