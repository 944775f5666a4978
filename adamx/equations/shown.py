"""Formulas as text and as LaTeX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from adamx.equations.formulas import (
    STEP,
    Expression,
    Function,
    Number,
    Symbol,
    is_a,
    of,
    substitute,
    walk,
)

__all__ = ["latex", "text"]

_WEAK, _SUM, _PRODUCT, _POWER, _ATOM = range(5)
_BINDING = {
    **dict.fromkeys(("cases", "<", ">", "≥", "=", "≠"), _WEAK),
    "sum": _SUM,
    "product": _PRODUCT,
    "quotient": _PRODUCT,
    "running": _POWER,
    "power": _POWER,
}


def _signed(x: Expression) -> tuple[bool, Expression]:
    """Whether a formula has a leading minus sign, and the formula without it."""
    if isinstance(x, Number) and x.value < 0:
        return True, Number(-x.value)
    if is_a(x, "quotient", "product"):
        first, *rest = x.children
        if isinstance(first, Number) and first.value < 0:
            kept = [] if is_a(x, "product") and first.value == -1 else [Number(-first.value)]
            return True, rest[0] if not kept and len(rest) == 1 else of(x.name, *kept, *rest)
    return False, x


class _Renderer:
    """What text and LaTeX have in common: signs, order and parentheses."""

    minus: str
    dot: str
    thin: str
    relations: Mapping[str, str] = {}
    functions: Mapping[str, str]
    """How functions are written: ``{}`` is their arguments, ``{over}`` their range."""

    def __call__(self, x: Expression, binding: int = _WEAK) -> str:
        shown = self.show(x)
        return self.parentheses(shown) if self.binding(x) < binding else shown

    def binding(self, x: Expression) -> int:
        if not isinstance(x, Symbol) and _signed(x)[0]:
            return _SUM
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
        if hasattr(self, f"_{x.name}"):
            return getattr(self, f"_{x.name}")(x)
        if x.name in ("<", ">", "≥", "=", "≠"):
            left, right = x.children
            return f"{self(left, _SUM)} {self.relations.get(x.name, x.name)} {self(right, _SUM)}"
        inside = ", ".join(map(self, x.children))
        if x.name in self.functions:
            return self.functions[x.name].format(inside, over=self.over(x.over))
        return self.named(x.name, inside)

    def _sum(self, x: Function) -> str:
        return "".join(self.term(i, term) for i, term in enumerate(x.children))

    def term(self, i: int, term: Expression) -> str:
        negative, size = _signed(term)
        if i == 0:
            return self(term, _SUM)
        return f" {self.minus if negative else '+'} {self(size, _PRODUCT)}"

    def _product(self, x: Function) -> str:
        first, *rest = (self(factor, _PRODUCT) for factor in x.children)
        return first + "".join(
            (self.dot if factor[0].isdigit() else self.thin) + factor for factor in rest
        )

    def _call(self, x: Function) -> str:
        head, _, tail = x.over.partition("\0")
        return f"{self.word(head)}{', '.join(map(self, x.children))}{self.word(tail)}"

    def _unknown(self, x: Function) -> str:
        name = Symbol("f", x.over.partition("\0")[2], lag=None)
        return self.symbol(name) + self.parentheses(", ".join(map(self, x.children)))

    def _mod(self, x: Function) -> str:
        return self.functions["mod"].join(self(child, _POWER) for child in x.children)

    def _clip(self, x: Function) -> str:
        return self.functions["clip"].format(*map(self, x.children))

    def parentheses(self, shown: str) -> str:
        return f"({shown})"

    def number(self, value: float) -> str:
        raise NotImplementedError

    def symbol(self, symbol: Symbol) -> str:
        raise NotImplementedError

    def over(self, shown: str) -> str:
        raise NotImplementedError

    def word(self, shown: str) -> str:
        raise NotImplementedError

    def named(self, name: str, inside: str) -> str:
        raise NotImplementedError


def _digits(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.10g}"


_SUBSCRIPTS = dict(
    zip("0123456789+−aehijklmnoprstuvx,′∞", "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ,′∞", strict=True)
)
_SUPERSCRIPTS = dict(zip("0123456789+−tnip", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵗⁿⁱᵖ", strict=True))
_ACCENTS = {"": "", "hat": "\N{COMBINING CIRCUMFLEX ACCENT}", "bar": "\N{COMBINING MACRON}"}


def _lowered(shown: str) -> str:
    if all(letter in _SUBSCRIPTS for letter in shown):
        return "".join(_SUBSCRIPTS[letter] for letter in shown)
    return f"_{shown}" if shown else ""


def _step(lag: int | None) -> str:
    return {None: "", 0: "t", -1: "t−1", 1: "t+1"}[lag]


def _indexed(x: Expression) -> Expression:
    """The formula of step i in place of t."""
    table: dict[Expression, Expression] = {STEP: Symbol("i", lag=None)}
    for symbol in walk(x):
        if isinstance(symbol, Symbol) and symbol.lag == 0:
            index = f"{symbol.index},i" if symbol.index else "i"
            table[symbol] = dataclasses.replace(symbol, index=index, lag=None)
    return substitute(x, table)


class _Text(_Renderer):
    minus: str = "−"
    dot: str = " · "
    thin: str = " "
    functions: Mapping[str, str] = {
        "abs": "|{}|",
        "norm": "‖{}‖{over}",
        "norm1": "‖{}‖₁",
        "inner": "⟨{}⟩",
        "gradient": "∇f({})",
        "indicator": "𝟙[{}]",
        "clip": "clip({}, ±{})",
        "rms": "RMS({})",
        "total": "Σ{over}({})",
        "mod": " mod ",
    }

    def number(self, value: float) -> str:
        return _digits(value)

    def symbol(self, symbol: Symbol) -> str:
        below = [part for part in (symbol.index, _step(symbol.lag)) if part]
        joint = "" if symbol.index in ("∞", "′") and symbol.lag is None else ","
        return f"{symbol.letter}{_ACCENTS[symbol.accent]}{_lowered(joint.join(below))}"

    def over(self, shown: str) -> str:
        return _lowered({"array": "l"}.get(shown, shown))

    def word(self, shown: str) -> str:
        return shown

    def named(self, name: str, inside: str) -> str:
        return f"{name}({inside})"

    def _quotient(self, x: Function) -> str:
        over, under = x.children
        return f"{self(over, _PRODUCT)} / {self(under, _POWER)}"

    def _power(self, x: Function) -> str:
        base, exponent = x.children
        shown, above = self(base, _ATOM), self(exponent)
        if is_a(base, "sqrt", "log", "mod"):
            shown = f"({shown})"
        if all(letter in _SUPERSCRIPTS for letter in above):
            return shown + "".join(_SUPERSCRIPTS[letter] for letter in above)
        if is_a(exponent, "quotient"):
            above = above.replace(" ", "")
        simple = isinstance(exponent, Number | Symbol)
        return f"{shown}^{above}" if simple else f"{shown}^({above})"

    def _running(self, x: Function) -> str:
        (factor,) = x.children
        if not isinstance(factor, Symbol):
            return f"∏({self(_indexed(factor))})"
        index = f"{factor.index},i" if factor.index else "i"
        return f"∏{factor.letter}{_ACCENTS[factor.accent]}{_lowered(index)}"

    def _sqrt(self, x: Function) -> str:
        (inside,) = x.children
        simple = isinstance(inside, Symbol) or self.binding(inside) == _ATOM
        return f"√{self(inside)}" if simple else f"√({self(inside)})"

    def _log(self, x: Function) -> str:
        return f"log {self(x.children[0], _ATOM)}"

    def _mean(self, x: Function) -> str:
        over = "" if x.over == "array" else _lowered(x.over)
        return f"mean{over}({self(x.children[0])})"

    def _cases(self, x: Function) -> str:
        condition, value, otherwise = map(self, x.children)
        return f"{value} if {condition}, otherwise {otherwise}"


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
    "ℓ": r"\ell",
    "∞": r"\infty",
    "−": "-",
    "∇": r"\nabla ",
    "′": "'",
}


class _Latex(_Renderer):
    minus: str = "-"
    dot: str = r" \cdot "
    thin: str = r" \, "
    relations: Mapping[str, str] = {"≥": r"\geq", "≠": r"\neq"}
    functions: Mapping[str, str] = {
        "sqrt": r"\sqrt{{{}}}",
        "abs": "|{}|",
        "norm": r"\|{}\|{over}",
        "norm1": r"\|{}\|_1",
        "inner": r"\langle {} \rangle",
        "gradient": r"\nabla f({})",
        "indicator": r"\mathbf{{1}}[{}]",
        "clip": r"\operatorname{{clip}}({}, \pm {})",
        "mod": r" \ \mathrm{mod}\ ",
    }

    def binding(self, x: Expression) -> int:
        fraction = is_a(x, "quotient") and not _signed(x)[0]
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

    def over(self, shown: str) -> str:
        return self.below({"array": r"\ell"}.get(shown, self.name(shown)))

    def word(self, shown: str) -> str:
        return rf"\mathrm{{{self.escaped(shown)}}}" if shown.strip("()") else shown

    def escaped(self, shown: str) -> str:
        for sign in "_#%&${}":
            shown = shown.replace(sign, f"\\{sign}")
        for sign, code in ((" ", r"\ "), ("−", "-"), ("<", r"\langle "), (">", r"\rangle ")):
            shown = shown.replace(sign, code)
        return shown

    def named(self, name: str, inside: str) -> str:
        known = name in ("max", "min", "exp", "log")
        operator = f"\\{name}" if known else rf"\operatorname{{{name}}}"
        return operator.replace("rms", "RMS").replace("total", "sum") + self.parentheses(inside)

    def _quotient(self, x: Function) -> str:
        return rf"\frac{{{self(x.children[0])}}}{{{self(x.children[1])}}}"

    def _power(self, x: Function) -> str:
        base, above = x.children[0], self(x.children[1])
        whole = isinstance(base, (Symbol, Number)) or (
            self.binding(base) == _ATOM and not is_a(base, "sqrt", "max", "min", "sign", "log")
        )
        shown = self(base, _ATOM) if whole else self.parentheses(self(base))
        return f"{shown}^{above}" if len(above) == 1 else f"{shown}^{{{above}}}"

    def _running(self, x: Function) -> str:
        (factor,) = x.children
        if not isinstance(factor, Symbol):
            return rf"\prod_{{i=1}}^t {self.parentheses(self(_indexed(factor)))}"
        letter = self.symbol(dataclasses.replace(factor, index="", lag=None))
        index = f"{factor.index},i" if factor.index else "i"
        return rf"\prod_{{i=1}}^t {letter}{self.below(index)}"

    def _mean(self, x: Function) -> str:
        below = "" if x.over == "array" else self.over(x.over)
        return rf"\operatorname{{mean}}{below}{self.parentheses(self(x.children[0]))}"

    def _cases(self, x: Function) -> str:
        condition, value, otherwise = map(self, x.children)
        return (
            rf"\begin{{cases}} {value} & \text{{if }} {condition} \\ "
            rf"{otherwise} & \text{{otherwise}} \end{{cases}}"
        )

    def parentheses(self, shown: str) -> str:
        tall = r"\frac" in shown or r"\sqrt" in shown
        return rf"\left({shown}\right)" if tall else f"({shown})"


text: _Text = _Text()
latex: _Latex = _Latex()
