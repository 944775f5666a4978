r"""Formulas, built with Python's operators and shown as text and as LaTeX.

>>> from adamx.explain.symbols import Symbol, latex, root, text
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
from typing import Any

__all__ = [
    "ONE",
    "PARAM",
    "START",
    "STEP",
    "ZERO",
    "Call",
    "Cases",
    "Expression",
    "Function",
    "Number",
    "Power",
    "Product",
    "Quotient",
    "Relation",
    "Running",
    "Sum",
    "Symbol",
    "absolute",
    "cases",
    "exp",
    "indicator",
    "latex",
    "log",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "rms",
    "root",
    "sign",
    "text",
]


class Expression:
    """A formula in normalised form; Python's operators build new formulas."""

    @property
    def constant(self) -> bool:
        """Whether the value is the same at every step."""
        return all(child.constant for child in self.children)

    def __add__(self, other: Any) -> Expression:
        return add(self, expression(other))

    def __radd__(self, other: Any) -> Expression:
        return add(expression(other), self)

    def __sub__(self, other: Any) -> Expression:
        return add(self, -expression(other))

    def __rsub__(self, other: Any) -> Expression:
        return add(expression(other), -self)

    def __neg__(self) -> Expression:
        return multiply(Number(-1.0), self)

    def __mul__(self, other: Any) -> Expression:
        return multiply(self, expression(other))

    def __rmul__(self, other: Any) -> Expression:
        return multiply(expression(other), self)

    def __truediv__(self, other: Any) -> Expression:
        return divide(self, expression(other))

    def __rtruediv__(self, other: Any) -> Expression:
        return divide(expression(other), self)

    def __pow__(self, other: Any) -> Expression:
        return power(self, expression(other))

    def __rpow__(self, other: Any) -> Expression:
        return power(expression(other), self)

    def __lt__(self, other: Any) -> Relation:
        return Relation(self, "<", expression(other))

    def __gt__(self, other: Any) -> Relation:
        return Relation(self, ">", expression(other))

    def __ge__(self, other: Any) -> Relation:
        return Relation(self, "≥", expression(other))

    def equals(self, other: Any) -> Relation:
        return Relation(self, "=", expression(other))

    @property
    def children(self) -> tuple[Expression, ...]:
        return ()

    def rebuilt(self, *children: Expression) -> Expression:
        """The same formula with new children, in normalised form."""
        return self


@dataclasses.dataclass(frozen=True)
class Number(Expression):
    """A number. 1e-08 is shown like this in text, and as a power of ten in LaTeX."""

    value: float


ZERO, ONE = Number(0.0), Number(1.0)


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
        return dataclasses.replace(self, accent="hat")

    @property
    def before(self) -> Symbol:
        return dataclasses.replace(self, lag=-1)

    @property
    def after(self) -> Symbol:
        return dataclasses.replace(self, lag=1)

    @property
    def constant(self) -> bool:
        return self.lag is None and self != STEP


STEP = Symbol("t", lag=None)
PARAM = Symbol("θ", lag=-1)
START = Symbol("θ", index="0", lag=None)


@dataclasses.dataclass(frozen=True)
class Sum(Expression):
    """A sum of two or more terms. No term is a sum, and at most one is a number."""

    terms: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.terms

    def rebuilt(self, *children: Expression) -> Expression:
        return add(*children)


@dataclasses.dataclass(frozen=True)
class Product(Expression):
    """A product: a number, then other factors, then at most one quotient."""

    factors: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.factors

    def rebuilt(self, *children: Expression) -> Expression:
        return multiply(*children, fold=False)


@dataclasses.dataclass(frozen=True)
class Quotient(Expression):
    """``over / under``. A numeric factor is written before the quotient, as a product."""

    over: Expression
    under: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.over, self.under

    def rebuilt(self, *children: Expression) -> Expression:
        return divide(*children)


@dataclasses.dataclass(frozen=True)
class Power(Expression):
    """``base ** exponent``."""

    base: Expression
    exponent: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.base, self.exponent

    def rebuilt(self, *children: Expression) -> Expression:
        return power(*children)


@dataclasses.dataclass(frozen=True)
class Function(Expression):
    """A named function. For norms and means, ``over`` is their range ("" for everything)."""

    name: str
    arguments: tuple[Expression, ...]
    over: str = ""

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.arguments

    def rebuilt(self, *children: Expression) -> Expression:
        return Function(self.name, children, self.over)


@dataclasses.dataclass(frozen=True)
class Call(Expression):
    """An operation without a known formula, shown as ``head argument tail``."""

    head: str
    argument: Expression
    tail: str

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.argument,)

    def rebuilt(self, *children: Expression) -> Expression:
        return Call(self.head, children[0], self.tail)


@dataclasses.dataclass(frozen=True)
class Running(Expression):
    """The product of a symbol over all steps up to this one."""

    factor: Symbol

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.factor,)


@dataclasses.dataclass(frozen=True)
class Relation(Expression):
    """A condition: ``left < right``, ``>``, ``≥`` or ``=``."""

    left: Expression
    sign: str
    right: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.left, self.right

    def rebuilt(self, *children: Expression) -> Expression:
        return Relation(children[0], self.sign, children[1])


@dataclasses.dataclass(frozen=True)
class Cases(Expression):
    """``value`` where the condition holds, ``otherwise`` elsewhere."""

    condition: Relation
    value: Expression
    otherwise: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.condition, self.value, self.otherwise

    def rebuilt(self, *children: Expression) -> Expression:
        condition, value, otherwise = children
        assert isinstance(condition, Relation)
        return Cases(condition, value, otherwise)

    def each(self, change: Callable[[Expression], Expression]) -> Cases:
        return Cases(self.condition, change(self.value), change(self.otherwise))


# Functions


def expression(x: Any) -> Expression:
    return x if isinstance(x, Expression) else Number(float(x))


def root(x: Any) -> Expression:
    """√x."""
    return Function("sqrt", (expression(x),))


def sign(x: Any) -> Expression:
    """The sign of x; the sign of 0 is 0."""
    return Function("sign", (expression(x),))


def absolute(x: Any) -> Expression:
    """|x|."""
    return Function("abs", (expression(x),))


def log(x: Any) -> Expression:
    """The natural logarithm."""
    return Function("log", (expression(x),))


def exp(x: Any) -> Expression:
    """eˣ."""
    return Function("exp", (expression(x),))


def rms(x: Any) -> Expression:
    """The root mean square over one array."""
    return Function("rms", (expression(x),))


def indicator(holds: Relation) -> Expression:
    """1 where the relation holds, 0 elsewhere."""
    return Function("indicator", (holds,))


def cases(condition: Relation, value: Any, otherwise: Any) -> Expression:
    """One value where the condition holds, another one elsewhere."""
    return Cases(condition, expression(value), expression(otherwise))


def norm(x: Any, over: str = "") -> Expression:
    """‖x‖ over all parameters, over one ``"array"``, or over one ``"unit"`` of an array."""
    return Function("norm", (expression(x),), over)


def mean(x: Any, over: str = "array") -> Expression:
    """The mean over one array, or over a part of it."""
    return Function("mean", (expression(x),), over)


def maximum(x: Any, y: Any) -> Expression:
    """The larger one of two values."""
    return _extreme("max", max, expression(x), expression(y))


def minimum(x: Any, y: Any) -> Expression:
    """The smaller one of two values."""
    return _extreme("min", min, expression(x), expression(y))


def _extreme(name: str, of: Any, x: Expression, y: Expression) -> Expression:
    if isinstance(x, Number) and isinstance(y, Number):
        return Number(of(x.value, y.value))
    return Function(name, (x, y))


# The normalised form: numbers are folded and come first; terms 0 and factors 1 are omitted.


def _folded(operation: Callable[[Any, Any], Any], x: float, y: float) -> float:
    """Compute with decimal numbers, so that 1 − 0.999 is 0.001."""
    if math.isfinite(x) and math.isfinite(y):
        return float(operation(Decimal(repr(x)), Decimal(repr(y))))
    return operation(x, y)


def add(*given: Expression) -> Expression:
    terms: list[Expression] = []
    for term in given:
        terms += term.terms if isinstance(term, Sum) else [term]
    for i, term in enumerate(terms):
        if isinstance(term, Cases):
            return term.each(lambda x, i=i: add(*terms[:i], x, *terms[i + 1 :]))
    kept: list[Expression] = []
    for term in terms:
        opposite = -term
        number = next((i for i, x in enumerate(kept) if isinstance(x, Number)), None)
        if isinstance(term, Number) and number is not None:
            before = kept[number]
            assert isinstance(before, Number)
            kept[number] = Number(_folded(lambda x, y: x + y, before.value, term.value))
        elif opposite in kept:
            kept.remove(opposite)
        else:
            kept.append(term)
    kept = [term for term in kept if term != ZERO]
    if len(kept) < 2:
        return kept[0] if kept else ZERO
    return Sum(tuple(kept))


def multiply(*given: Expression, fold: bool = True) -> Expression:
    """The product; without ``fold``, numeric factors are kept separate."""
    factors = [f for x in given for f in (x.factors if isinstance(x, Product) else (x,))]
    for i, factor in enumerate(factors):
        if isinstance(factor, Cases):
            return factor.each(
                lambda x, i=i: multiply(*factors[:i], x, *factors[i + 1 :], fold=fold)
            )
    numbers = [f.value for f in factors if isinstance(f, Number)]
    others = [f for f in factors if not isinstance(f, Number | Quotient)]
    quotients = [f for f in factors if isinstance(f, Quotient)]
    if quotients:
        over = [f.over for f in quotients]
        numbers += [x.value for x in over if isinstance(x, Number)]
        over = [x for x in over if not isinstance(x, Number)]
        if not over:  # c/d · x is written as c · x/d
            over, others = others, []
        under = multiply(*(f.under for f in quotients))
        if not over:
            return Quotient(Number(functools.reduce(_times, numbers)), under)
        others.append(Quotient(multiply(*over), under))
    if 0 in numbers:
        return ZERO
    sign = math.prod(math.copysign(1, number) for number in numbers)
    sizes = [abs(number) for number in numbers if abs(number) != 1]
    if fold and sizes:
        sizes = [functools.reduce(_times, sizes)]
    first = [sign * sizes[0], *sizes[1:]] if sizes and sizes != [1.0] else [sign] * (sign < 0)
    row = (*map(Number, first), *others)
    return row[0] if len(row) == 1 else Product(row) if row else ONE


def _times(x: float, y: float) -> float:
    return _folded(lambda x, y: x * y, x, y)


def divide(x: Expression, by: Expression) -> Expression:
    if isinstance(x, Cases):
        return x.each(lambda value: divide(value, by))
    if isinstance(by, Cases):
        return by.each(lambda value: divide(x, value))
    if x == by:
        return ONE
    if by == ONE or x == ZERO:
        return x
    if isinstance(by, Quotient):
        return divide(multiply(x, by.under), by.over)
    if isinstance(x, Number) and isinstance(by, Number) and by.value != 0:
        value = _folded(lambda a, b: a / b, x.value, by.value)
        return Number(value) if value == float(f"{value:.6g}") else Quotient(x, by)
    if isinstance(x, Quotient):
        return divide(x.over, multiply(x.under, by))
    if isinstance(x, Product):
        if isinstance(x.factors[-1], Quotient):
            *others, last = x.factors
            return multiply(*others, divide(last, by), fold=False)
        numbers = [f for f in x.factors if isinstance(f, Number)]
        if numbers:
            rest = multiply(*x.factors[len(numbers) :])
            return multiply(*numbers, divide(rest, by), fold=False)
    return Quotient(x, by)


def power(base: Expression, exponent: Expression) -> Expression:
    if exponent == ONE:
        return base
    if exponent == ZERO:
        return ONE
    if isinstance(base, Number) and isinstance(exponent, Number):
        return Number(_folded(lambda x, y: x**y, base.value, exponent.value))
    if exponent == Number(2.0) and isinstance(base, Function) and base.name == "sqrt":
        return base.arguments[0]
    return Power(base, exponent)


# Searching and changing formulas


def walk(x: Expression) -> Iterator[Expression]:
    yield x
    for child in x.children:
        yield from walk(child)


def substitute(x: Expression, table: Mapping[Expression, Expression]) -> Expression:
    """The formula with some of its expressions replaced."""
    if x in table:
        return table[x]
    if not x.children:
        return x
    children = [substitute(child, table) for child in x.children]
    return x if tuple(children) == x.children else x.rebuilt(*children)


def degree(x: Expression, of: Expression) -> float | None:
    """The degree k of x in ``of``: replacing ``of`` by c ``of`` gives cᵏ x, for any c > 0.

    None if x is not homogeneous in ``of``.
    """
    if x == of:
        return 1
    degrees = [degree(child, of) for child in x.children]
    if not any(d is None or d for d in degrees):
        return 0
    if None in degrees:
        return None
    known = [d for d in degrees if d is not None]
    match x:
        case Product():
            return sum(known)
        case Quotient():
            return known[0] - known[1]
        case Power(_, Number(exponent)) if not known[1]:
            return known[0] * exponent
        case Function("sqrt"):
            return known[0] / 2
        case Function("sign" | "indicator"):
            return 0
        case Relation(_, _, Number(0.0)):
            return 0
        case Sum() | Function("max" | "min" | "norm" | "mean" | "rms" | "abs"):
            return known[0] if len(set(known)) == 1 else None
        case Cases():
            return known[1] if known[0] == 0 and known[1] == known[2] else None
    return None


# Showing formulas

_WEAK, _SUM, _PRODUCT, _POWER, _ATOM = range(5)


def _signed(x: Expression) -> tuple[bool, Expression]:
    """Whether a formula has a leading minus sign, and the formula without it."""
    match x:
        case Number(value) if value < 0:
            return True, Number(-value)
        case Quotient(Number(value), under) if value < 0:
            return True, Quotient(Number(-value), under)
        case Product((Number(value), *rest)) if value < 0:
            kept = (*([] if value == -1 else [Number(-value)]), *rest)
            return True, kept[0] if len(kept) == 1 else Product(kept)
    return False, x


class _Renderer:
    """The common part of text and LaTeX: signs, order and parentheses."""

    minus: str
    dot: str
    thin: str

    def __call__(self, x: Expression, binding: int = _WEAK) -> str:
        shown = self.show(x)
        return self.parentheses(shown) if self.binding(x) < binding else shown

    def binding(self, x: Expression) -> int:
        match x:
            case Cases() | Relation():
                return _WEAK
            case Sum():
                return _SUM
            case Number() | Product() | Quotient() if _signed(x)[0]:
                return _SUM
            case Product() | Quotient():
                return _PRODUCT
            case Running() | Power():
                return _POWER
        return _ATOM

    def show(self, x: Expression) -> str:
        negative, size = _signed(x)
        if negative:
            return f"{self.minus}{self(size, _PRODUCT)}"
        match x:
            case Number(value):
                return self.number(value)
            case Symbol():
                return self.symbol(x)
            case Sum(terms):
                return "".join(self.term(i, term) for i, term in enumerate(terms))
            case Product(factors):
                return self.product([self.factor(f) for f in factors])
            case Quotient(over, under):
                return self.quotient(over, under)
            case Power(base, exponent):
                return self.power(base, exponent)
            case Relation(left, sign, right):
                return f"{self(left, _SUM)} {self.relations.get(sign, sign)} {self(right, _SUM)}"
            case Running(factor):
                return self.running(factor)
            case Call(head, argument, tail):
                return f"{self.word(head)}{self(argument)}{self.word(tail)}"
            case Function():
                return self.function(x)
            case Cases():
                return self.cases(x)
        raise TypeError(f"{x!r} is not a formula")

    relations: Mapping[str, str] = {}

    def term(self, i: int, term: Expression) -> str:
        negative, size = _signed(term)
        if i == 0:
            return self(term, _SUM)
        return f" {self.minus if negative else '+'} {self(size, _PRODUCT)}"

    def factor(self, factor: Expression) -> str:
        return self(factor, _PRODUCT)

    def product(self, factors: list[str]) -> str:
        shown = factors[0]
        for factor in factors[1:]:
            shown += (self.dot if factor[0].isdigit() else self.thin) + factor
        return shown

    def parentheses(self, shown: str) -> str:
        return f"({shown})"

    number: Callable[[float], str]
    symbol: Callable[[Symbol], str]
    quotient: Callable[[Expression, Expression], str]
    power: Callable[[Expression, Expression], str]
    running: Callable[[Symbol], str]
    word: Callable[[str], str]
    function: Callable[[Function], str]
    cases: Callable[[Cases], str]


def _digits(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.10g}"


_SUBSCRIPTS = dict(
    zip("0123456789+−aehijklmnoprstuvx,′∞", "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ,′∞", strict=True)
)
_SUPERSCRIPTS = dict(zip("0123456789+−tnip", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵗⁿⁱᵖ", strict=True))
_ACCENTS = {"": "", "hat": "\N{COMBINING CIRCUMFLEX ACCENT}", "bar": "\N{COMBINING MACRON}"}
_RANGES = {"": "", "array": "l", "unit": "unit"}


def _lowered(shown: str) -> str:
    if all(letter in _SUBSCRIPTS for letter in shown):
        return "".join(_SUBSCRIPTS[letter] for letter in shown)
    return f"_{shown}" if shown else ""


def _step(lag: int | None) -> str:
    return {None: "", 0: "t", -1: "t−1", 1: "t+1"}[lag]


class _Text(_Renderer):
    minus: str = "−"
    dot: str = " · "
    thin: str = " "

    def number(self, value: float) -> str:
        return _digits(value)

    def symbol(self, symbol: Symbol) -> str:
        below = [part for part in (symbol.index, _step(symbol.lag)) if part]
        joint = "" if symbol.index in ("∞", "′") and symbol.lag is None else ","
        return f"{symbol.letter}{_ACCENTS[symbol.accent]}{_lowered(joint.join(below))}"

    def quotient(self, over: Expression, under: Expression) -> str:
        return f"{self(over, _PRODUCT)} / {self(under, _POWER)}"

    def power(self, base: Expression, exponent: Expression) -> str:
        shown, above = self(base, _ATOM), self(exponent)
        if isinstance(base, Function) and base.name == "sqrt":
            shown = f"({shown})"
        if all(letter in _SUPERSCRIPTS for letter in above):
            return shown + "".join(_SUPERSCRIPTS[letter] for letter in above)
        if isinstance(exponent, Quotient):
            above = above.replace(" ", "")
        simple = isinstance(exponent, Number | Symbol)
        return f"{shown}^{above}" if simple else f"{shown}^({above})"

    def running(self, factor: Symbol) -> str:
        index = f"{factor.index},i" if factor.index else "i"
        return f"∏{factor.letter}{_ACCENTS[factor.accent]}{_lowered(index)}"

    def word(self, shown: str) -> str:
        return shown

    def function(self, f: Function) -> str:
        inside = ", ".join(map(self, f.arguments))
        over = _lowered(_RANGES.get(f.over, f.over))
        match f.name:
            case "sqrt":
                simple = isinstance(f.arguments[0], (Symbol, Function))
                return f"√{inside}" if simple else f"√({inside})"
            case "abs":
                return f"|{inside}|"
            case "norm":
                return f"‖{inside}‖{over}"
            case "norm1":
                return f"‖{inside}‖₁"
            case "inner":
                return f"⟨{inside}⟩"
            case "gradient":
                return f"∇f({inside})"
            case "indicator":
                return f"𝟙[{inside}]"
            case "clip":
                bounded, bound = map(self, f.arguments)
                return f"clip({bounded}, ±{bound})"
            case "rms":
                return f"RMS({inside})"
            case "mod":
                return " mod ".join(map(self, f.arguments))
            case "log":
                return f"log {self(f.arguments[0], _ATOM)}"
            case "mean":
                return f"mean{over if f.over != 'array' else ''}({inside})"
        return f"{f.name}({inside})"

    def cases(self, x: Cases) -> str:
        return f"{self(x.value)} if {self(x.condition)}, otherwise {self(x.otherwise)}"


_LETTERS = {
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\epsilon",
    "η": r"\eta",
    "θ": r"\theta",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ρ": r"\rho",
    "φ": r"\phi",
    "ψ": r"\psi",
    "∞": r"\infty",
    "−": "-",
    "∇": r"\nabla ",
    "′": "'",
}


class _Latex(_Renderer):
    minus: str = "-"
    dot: str = r" \cdot "
    thin: str = r" \, "
    relations: Mapping[str, str] = {"≥": r"\geq"}

    def binding(self, x: Expression) -> int:
        fraction = isinstance(x, Quotient) and not _signed(x)[0]
        return _POWER if fraction else super().binding(x)

    def number(self, value: float) -> str:
        digits, _, exponent = _digits(value).partition("e")
        if not exponent:
            return _LETTERS.get(digits, digits)
        ten = f"10^{{{int(exponent)}}}"
        return ten if digits == "1" else rf"{digits} \cdot {ten}"

    def symbol(self, symbol: Symbol) -> str:
        letter = self.name(symbol.letter)
        if symbol.accent:
            letter = rf"\{symbol.accent}{{{letter}}}"
        index = ",".join(map(self.name, symbol.index.rstrip("′").split(",")))
        primes = "'" * symbol.index.count("′")
        below = ",".join(part for part in (index, _step(symbol.lag).replace("−", "-")) if part)
        return f"{letter}{primes}{self.below(below)}"

    def name(self, shown: str) -> str:
        if shown in _LETTERS or len(shown) < 2 or shown.isdigit():
            return _LETTERS.get(shown, shown)
        return rf"\mathrm{{{self.escaped(shown)}}}"

    def below(self, shown: str) -> str:
        return f"_{shown}" if len(shown) == 1 else f"_{{{shown}}}" if shown else ""

    def word(self, shown: str) -> str:
        return rf"\mathrm{{{self.escaped(shown)}}}" if shown.strip("()") else shown

    def escaped(self, shown: str) -> str:
        for sign in "_#%&${}":
            shown = shown.replace(sign, f"\\{sign}")
        for sign, code in ((" ", r"\ "), ("−", "-"), ("<", r"\langle "), (">", r"\rangle ")):
            shown = shown.replace(sign, code)
        return shown

    def quotient(self, over: Expression, under: Expression) -> str:
        return rf"\frac{{{self(over)}}}{{{self(under)}}}"

    def power(self, base: Expression, exponent: Expression) -> str:
        whole = isinstance(base, (Symbol, Number)) or (
            isinstance(base, Function) and base.name not in ("sqrt", "max", "min", "sign", "log")
        )
        shown = self(base, _ATOM) if whole else self.parentheses(self(base))
        above = self(exponent)
        return f"{shown}^{above}" if len(above) == 1 else f"{shown}^{{{above}}}"

    def running(self, factor: Symbol) -> str:
        letter = self.symbol(dataclasses.replace(factor, index="", lag=None))
        index = f"{factor.index},i" if factor.index else "i"
        return rf"\prod_{{i=1}}^t {letter}{self.below(index)}"

    def function(self, f: Function) -> str:
        inside = ", ".join(map(self, f.arguments))
        over = self.below({"array": r"\ell"}.get(f.over, self.name(f.over)))
        match f.name:
            case "sqrt":
                return rf"\sqrt{{{inside}}}"
            case "abs":
                return f"|{inside}|"
            case "norm":
                return rf"\|{inside}\|{over}"
            case "norm1":
                return rf"\|{inside}\|_1"
            case "inner":
                return rf"\langle {inside} \rangle"
            case "gradient":
                return rf"\nabla f({inside})"
            case "indicator":
                return rf"\mathbf{{1}}[{inside}]"
            case "clip":
                bounded, bound = map(self, f.arguments)
                return rf"\operatorname{{clip}}({bounded}, \pm {bound})"
            case "max" | "min" | "log" | "exp":
                return rf"\{f.name}{self.parentheses(inside)}"
            case "rms":
                return rf"\operatorname{{RMS}}{self.parentheses(inside)}"
            case "mod":
                return r" \ \mathrm{mod}\ ".join(map(self, f.arguments))
            case "mean":
                below = over if f.over != "array" else ""
                return rf"\operatorname{{mean}}{below}{self.parentheses(inside)}"
        return rf"\operatorname{{{f.name}}}{self.parentheses(inside)}"

    def parentheses(self, shown: str) -> str:
        tall = r"\frac" in shown or r"\sqrt" in shown
        return rf"\left({shown}\right)" if tall else f"({shown})"

    def cases(self, x: Cases) -> str:
        value, condition, otherwise = self(x.value), self(x.condition), self(x.otherwise)
        return (
            rf"\begin{{cases}} {value} & \text{{if }} {condition} \\ "
            rf"{otherwise} & \text{{otherwise}} \end{{cases}}"
        )


text: _Text = _Text()
latex: _Latex = _Latex()
