"""Evaluate the equations of an optimiser in NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adamx.explain.equations import Explanation
from adamx.explain.symbols import (
    Cases,
    Expression,
    Function,
    Number,
    Power,
    Product,
    Quotient,
    Relation,
    Running,
    Sum,
    Symbol,
)

__all__ = ["Evaluator"]


class Evaluator:
    """Evaluates the lines of an explanation in float64 NumPy, step by step.

    A value is an array or a number for every parameter. The evaluator uses none of the arithmetic
    of the stages, so that it is an independent check.

    Args:
        explanation: the result of :func:`adamx.explain`, without groups.
        params: the parameters before the first step, a dict of arrays.
    """

    def __init__(self, explanation: Explanation, params: Mapping[str, Any]):
        self.explanation = explanation
        self.params: dict[str, Any] = {
            name: np.asarray(x, np.float64) for name, x in params.items()
        }
        self.start: dict[str, Any] = dict(self.params)
        self.t: int = 0
        self.before: dict[Symbol, Any] = {}
        self.now: dict[Symbol, Any] = {}
        self.products: dict[tuple[Any, str], tuple[int, Any]] = {}

    def step(self, gradients: Mapping[str, Any]) -> dict[str, Any]:
        """Take one step with the gradients at θₜ₋₁, and return θₜ."""
        self.t += 1
        self.now = {}
        for line in self.explanation.lines:
            if line.value == Function("gradient", (Symbol("θ", lag=-1),)):
                self.now[Symbol("g")] = gradients
            else:
                self.now[line.symbol] = self(line.value)
        self.before = self.now
        self.params = self.now[Symbol("θ")]
        return self.params

    def __call__(self, x: Expression) -> dict[str, Any]:
        """The value of a formula for every parameter."""
        return {name: self._of(x, name) for name in self.params}

    def _symbol(self, x: Symbol, name: str) -> Any:
        if x == Symbol("t", lag=None):
            return float(self.t)
        if x in self.explanation.numbers:
            value: Any = self.explanation.numbers[x]
            now: Any = value(self.t - 1) if callable(value) else value
            return np.float64(now)
        if x == Symbol("θ", index="0", lag=None):
            return self.start[name]
        if x == Symbol("θ", lag=-1):
            return self.params[name]
        if x.lag == -1:
            symbol = Symbol(x.letter, x.index, x.accent)
            if self.t > 1:
                return self.before[symbol][name]
            starts = {s.symbol: s.start for s in self.explanation.lines}
            return self._of(starts[symbol], name)
        return self.now[x][name]

    def _running(self, x: Running, name: str) -> Any:
        key = x.factor, name
        t, product = self.products.get(key, (0, 1.0))
        if t < self.t:
            self.products[key] = self.t, product * self._symbol(x.factor, name)
        return self.products[key][1]

    def _of(self, x: Any, name: str) -> Any:
        match x:
            case Number(value):
                return value
            case Symbol():
                return self._symbol(x, name)
            case Running():
                return self._running(x, name)
            case Sum(terms):
                return sum(self._of(term, name) for term in terms)
            case Product(factors):
                return math.prod(self._of(factor, name) for factor in factors)
            case Quotient(over, under):
                return np.divide(self._of(over, name), self._of(under, name))
            case Power(base, exponent):
                return np.power(np.float64(self._of(base, name)), self._of(exponent, name))
            case Cases(condition, value, otherwise):
                branches = self._of(value, name), self._of(otherwise, name)
                return np.where(self._of(condition, name), *branches)
            case Relation(left, sign, right):
                compare = {"<": np.less, ">": np.greater, "≥": np.greater_equal, "=": np.equal}
                return compare[sign](self._of(left, name), self._of(right, name))
            case Function():
                return self._function(x, name)
        raise TypeError(x)

    def _function(self, x: Function, name: str) -> Any:
        if x.name in ("norm1", "inner") or (x.name == "norm" and not x.over):
            parts = [[self._of(a, other) for a in x.arguments] for other in self.params]
            if x.name == "inner":
                return sum(np.sum(a * b) for a, b in parts)
            if x.name == "norm1":
                return sum(np.sum(np.abs(a)) for (a,) in parts)
            return np.sqrt(sum(np.sum(a**2) for (a,) in parts))
        a, *rest = [self._of(argument, name) for argument in x.arguments]
        shape = np.shape(self.params[name])
        match x.name, x.over:
            case "norm", over:
                axes = {"array": None, "unit": _units(shape), "axis=0": 0}[over]
                return np.sqrt(np.sum(a**2, axis=axes, keepdims=axes is not None))
            case "mean", "array":
                return np.mean(a)
            case "mean", over:
                return np.mean(a, axis=_shared(over, shape), keepdims=True)
            case "rms", _:
                return np.sqrt(np.mean(a**2))
            case "width", _:
                return sorted((0, 0, *shape))[-2]
            case "clip", _:
                return np.clip(a, -rest[0], rest[0])
            case "indicator", _:
                return np.float64(a)
        plain = {
            "sqrt": np.sqrt,
            "sign": np.sign,
            "abs": np.abs,
            "log": np.log,
            "exp": np.exp,
            "max": np.maximum,
            "min": np.minimum,
            "atan2": np.arctan2,
            "mod": np.mod,
            "RN": np.float64,  # rounds to the parameter's dtype, here float64
            "SR": np.float64,
        }
        return plain[x.name](a, *rest)


def _units(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a unit (Brock et al.): the weights of one output; a vector is one unit."""
    if sum(n != 1 for n in shape) <= 1:
        return tuple(range(len(shape)))
    return (0,) if len(shape) == 3 else tuple(range(len(shape) - 1))


def _shared(over: str, shape: tuple[int, ...]) -> Any:
    """The axes of a mean: all but the first or the last, the longest, or the second longest."""
    axes = range(len(shape))
    if over in ("i", "j"):
        by_length = sorted(axes, key=lambda axis: shape[axis])
        return by_length[-1 if over == "j" else -2] if len(shape) > 1 else ()
    return {"row": tuple(axes)[1:], "column": tuple(axes)[:-1]}[over]
