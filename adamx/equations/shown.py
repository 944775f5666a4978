"""Formulas as text and as LaTeX: two tables for one renderer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from adamx.equations import formulas as F
from adamx.equations.formulas import ONE, Expression, Function, Number, Symbol, is_a

__all__ = ["latex", "text"]

# How strongly the parts of a formula hold together: weaker ones get parentheses inside others.
_WEAK, _SUM, _PRODUCT, _POWER, _ATOM = range(5)
_BINDING = (
    dict.fromkeys(("cases", "<", ">", "≥", "=", "≠"), _WEAK)
    | {"sum": _SUM, "product": _PRODUCT}
    | dict.fromkeys(("running", "log", "mod"), _POWER)
)

# Functions as text and as LaTeX, and how strongly their arguments have to hold together. The last
# field is the range. Other functions are written name(…).
_FUNCTIONS: Mapping[str, tuple[str, str, int]] = {
    "=": ("{} = {}", "{} = {}", _SUM),
    "≠": ("{} ≠ {}", r"{} \neq {}", _SUM),
    "<": ("{} < {}", "{} < {}", _SUM),
    ">": ("{} > {}", "{} > {}", _SUM),
    "≥": ("{} ≥ {}", r"{} \geq {}", _SUM),
    "cases": (
        "{1} if {0}, otherwise {2}",
        r"\begin{{cases}} {1} & \text{{if }} {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
        _WEAK,
    ),
    "abs": ("|{}|", "|{}|", _WEAK),
    "norm": ("‖{}‖{}", r"\|{}\|{}", _WEAK),
    "norm1": ("‖{}‖₁", r"\|{}\|_1", _WEAK),
    "inner": ("⟨{}, {}⟩", r"\langle {}, {} \rangle", _WEAK),
    "gradient": ("∇f({})", r"\nabla f({})", _WEAK),
    "indicator": ("𝟙[{}]", r"\mathbf{{1}}[{}]", _WEAK),
    "clip": ("clip({}, ±{})", r"\operatorname{{clip}}({}, \pm {})", _WEAK),
    "log": ("log {}", r"\log {}", _ATOM),
    "mod": ("{} mod {}", r"{} \ \mathrm{{mod}}\ {}", _POWER),
}
_NAMES = {"rms": "RMS", "total": "Σ"}


def _signed(x: Expression) -> tuple[bool, Expression]:
    """Whether a formula has a leading minus sign, and the formula without it."""
    first = x.children[0] if is_a(x, "product") else x
    is_negative = isinstance(first, Number) and first.value < 0
    return is_negative, F.multiply(-1, x, fold=False) if is_negative else x


def _fraction(x: Expression) -> tuple[Expression, Expression]:
    """What is above and below the line."""
    parts: tuple[list[Expression], list[Expression]] = [], []
    for factor in x.children if is_a(x, "product") else (x,):
        base, n = F.as_power(factor)
        is_below = n < 0 and 2 * n % 1 == 0
        parts[is_below].append(F.power(base, -n) if is_below else factor)
    over, under = (F.multiply(*part, fold=False) for part in parts)
    return over, under


def _indexed(x: Expression) -> Expression:
    """The formula of step i in place of t."""
    table: dict[Expression, Expression] = {F.STEP: Symbol("i", step="")}
    for symbol in F.walk(x):
        if isinstance(symbol, Symbol) and symbol.step == "t":
            table[symbol] = dataclasses.replace(symbol, step="i")
    return F.substitute(x, table)


def _digits(value: float) -> str:
    """The digits of a number; a third is 1/3."""
    shown = "∞" if math.isinf(value) else f"{value:.10g}"
    share = round(1 / value) if 0.01 < value < 0.9 else 0
    return f"1/{share}" if len(shown) > 10 and abs(share * value - 1) < 1e-9 else shown


_SUBSCRIPTS = dict(
    zip("0123456789+−aehijklmnoprstuvx,′∞", "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ,′∞", strict=True)
)
_SUPERSCRIPTS = dict(zip("0123456789+−tnip", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵗⁿⁱᵖ", strict=True))
_ACCENTS = {"": "", "hat": "\N{COMBINING CIRCUMFLEX ACCENT}", "bar": "\N{COMBINING MACRON}"}


def _index(symbol: Symbol) -> tuple[str, str, str]:
    """The index, the primes and the step of a symbol; a second symbol of a letter has index 2."""
    again = symbol.which - 1
    index = symbol.index or (str(symbol.which) if again else "")
    return index, "′" * again if symbol.index else "", symbol.step


class _Text:
    """Formulas as text; LaTeX has signs, order and parentheses in common with it."""

    column, minus, dot, thin, product = 0, "−", " · ", " ", "∏"
    equals, becomes, space = "=", "←", "   "

    def __call__(self, x: Expression, binding: int = _WEAK) -> str:
        shown = self.show(x)
        return self.parentheses(shown) if self.binding(x) < binding else shown

    def binding(self, x: Expression) -> int:
        if not isinstance(x, Symbol) and _signed(x)[0]:
            return _SUM
        if is_a(x, "power"):
            return _POWER if _fraction(x)[1] == ONE else _PRODUCT
        return _BINDING.get(x.name, _ATOM) if isinstance(x, Function) else _ATOM

    def show(self, x: Expression) -> str:
        negative, size = _signed(x)
        if negative:
            return f"{self.minus}{self(size, _PRODUCT)}"
        if isinstance(x, Number):
            return self.number(x.value)
        if isinstance(x, Symbol):
            return self.symbol(x)
        assert isinstance(x, Function)
        inside = ", ".join(map(self, x.children))
        over = "" if (x.name, x.over) == ("mean", "array") else self.over(x.over)
        if x.name in _FUNCTIONS:
            binding = _FUNCTIONS[x.name][2]
            arguments = (self(child, binding) for child in x.children)
            return _FUNCTIONS[x.name][:2][self.column].format(*arguments, over)
        match x.name:
            case "sum":
                return self(x.children[0], _SUM) + "".join(map(self.term, x.children[1:]))
            case "product" | "power" if (parts := _fraction(x))[1] != ONE:
                return self.fraction(*parts)
            case "product":
                return self.row(x.children)
            case "power" if F.as_power(x)[1] == 0.5:
                return self.root(x.children[0])
            case "power":
                return self.power(*x.children)
            case "running":
                return self.running(x.children[0])
            case "call":
                head, _, tail = x.over.partition("\0")
                return f"{self.word(head)}{inside}{self.word(tail)}"
            case "unknown":
                name = Symbol("f", x.over.partition("\0")[2], step="")
                return self.symbol(name) + self.parentheses(inside)
        return self.operator(_NAMES.get(x.name, x.name)) + over + self.parentheses(inside)

    def term(self, term: Expression) -> str:
        negative, size = _signed(term)
        return f" {self.minus if negative else '+'} {self(size, _PRODUCT)}"

    def row(self, factors: Sequence[Expression]) -> str:
        first, *rest = (self(factor, _PRODUCT) for factor in factors)
        return first + "".join((self.dot if x[0].isdigit() else self.thin) + x for x in rest)

    def running(self, factor: Expression) -> str:
        """The product of a value over all steps."""
        indexed = self(_indexed(factor))
        return self.product + (indexed if isinstance(factor, Symbol) else self.parentheses(indexed))

    def parentheses(self, shown: str) -> str:
        return f"({shown})"

    def number(self, value: float) -> str:
        return _digits(value)

    def symbol(self, symbol: Symbol) -> str:
        index, primes, step = _index(symbol)
        below = ",".join(part for part in (index + primes, step) if part)
        return f"{symbol.letter}{_ACCENTS[symbol.accent]}{self.over(below)}"

    def over(self, shown: str) -> str:
        shown = {"array": "l"}.get(shown, shown)
        is_known = all(letter in _SUBSCRIPTS for letter in shown)
        return "".join(_SUBSCRIPTS[letter] for letter in shown) if is_known else f"_{shown}"

    def word(self, shown: str) -> str:
        return shown

    operator = words = word

    def fraction(self, over: Expression, under: Expression) -> str:
        return f"{self(over, _PRODUCT)} / {self(under, _POWER)}"

    def root(self, inside: Expression) -> str:
        return f"√{self(inside, _ATOM)}"

    def power(self, base: Expression, exponent: Expression) -> str:
        shown, above = self(base, _ATOM), self(exponent)
        if all(letter in _SUPERSCRIPTS for letter in above):
            return shown + "".join(_SUPERSCRIPTS[letter] for letter in above)
        simple = isinstance(exponent, Symbol) or above.replace(".", "").lstrip("−").isdigit()
        return f"{shown}^{above}" if simple else f"{shown}^({above.replace(' / ', '/')})"


_GREEK = "alpha beta gamma delta epsilon eta theta kappa lambda mu rho phi psi ell infty"
_LETTERS = {x: f"\\{name}" for x, name in zip("αβγδεηθκλμρφψℓ∞", _GREEK.split(), strict=True)}
_ESCAPES = {x: f"\\{x}" for x in "_#%&${}"} | {
    " ": r"\ ",
    "−": "-",
    "<": r"\langle ",
    ">": r"\rangle ",
}


def _leading(x: Expression) -> list[Number]:
    """The numbers at the head of a product."""
    return [f for f in x.children if isinstance(f, Number)] if is_a(x, "product") else []


class _Latex(_Text):
    column, minus, dot, thin = 1, "-", r" \cdot ", r" \, "
    product = r"\prod_{i=1}^t "
    equals, becomes, space = "&=", r"&\leftarrow", r" \qquad "

    def binding(self, x: Expression) -> int:
        over, under = _fraction(x)
        return super().binding(x) if under == ONE or _leading(over) else _POWER

    def number(self, value: float) -> str:
        digits, _, exponent = _digits(value).partition("e")
        if not exponent:
            return _LETTERS.get(digits, digits)
        ten = f"10^{{{int(exponent)}}}"
        return ten if digits == "1" else rf"{digits} \cdot {ten}"

    def symbol(self, symbol: Symbol) -> str:
        letter = self.named(symbol.letter)
        if symbol.accent:
            letter = rf"\{symbol.accent}{{{letter}}}"
        index, primes, step = _index(symbol)
        parts = [*map(self.named, index.split(",")), step.replace("−", "-")]
        below = self.below(",".join(part for part in parts if part))
        return letter + primes.replace("′", "'") + below

    def named(self, name: str) -> str:
        if len(name) < 2 or name.isdigit():
            return _LETTERS.get(name, name)
        return rf"\mathrm{{{self.escaped(name)}}}"

    def operator(self, name: str) -> str:
        is_known = name in ("max", "min", "exp")
        return f"\\{name}" if is_known else rf"\operatorname{{{name.replace('Σ', 'sum')}}}"

    def below(self, shown: str) -> str:
        return f"_{shown}" if len(shown) == 1 else f"_{{{shown}}}" if shown else ""

    def over(self, shown: str) -> str:
        return self.below(self.named({"array": "ℓ"}.get(shown, shown)))

    def word(self, shown: str) -> str:
        return self.named(shown) if shown.strip("()") else shown

    def escaped(self, shown: str) -> str:
        """Words for LaTeX."""
        return "".join(_ESCAPES.get(sign, sign) for sign in shown)

    def words(self, shown: str) -> str:
        return rf"\text{{{self.escaped(shown)}}}" if shown else ""

    def fraction(self, over: Expression, under: Expression) -> str:
        numbers = _leading(over)
        front = "".join(self.number(x.value) + self.thin for x in numbers)
        above = F.multiply(*over.children[len(numbers) :], fold=False) if numbers else over
        return rf"{front}\frac{{{self(above)}}}{{{self(under)}}}"

    def root(self, inside: Expression) -> str:
        return rf"\sqrt{{{self(inside)}}}"

    def power(self, base: Expression, exponent: Expression) -> str:
        above = self(exponent)
        return self(base, _ATOM) + (f"^{above}" if len(above) == 1 else f"^{{{above}}}")

    def parentheses(self, shown: str) -> str:
        tall = r"\frac" in shown or r"\sqrt" in shown
        return rf"\left({shown}\right)" if tall else f"({shown})"


text: _Text = _Text()
latex: _Latex = _Latex()
