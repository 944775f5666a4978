"""Evaluate the equations of an optimiser in NumPy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adamx.equations import Explanation
from adamx.equations.formulas import (
    GRADIENT,
    PARAM,
    RELATIONS,
    START,
    STEP,
    Expression,
    Function,
    Number,
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
            if line.value == GRADIENT:
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
        if x == STEP:
            return float(self.t)
        if x in self.explanation.numbers:
            value: Any = self.explanation.numbers[x]
            now: Any = value(self.t - 1) if callable(value) else value
            return np.float64(now)
        if x == START:
            return self.start[name]
        if x == PARAM:
            return self.params[name]
        if x.step == "t−1":
            symbol = dataclasses.replace(x, step="t")
            if self.t > 1:
                return self.before[symbol][name]
            starts = {s.symbol: s.start for s in self.explanation.lines}
            return self._of(starts[symbol], name)
        return self.now[x][name]

    def _running(self, factor: Expression, name: str) -> Any:
        key = factor, name
        t, product = self.products.get(key, (0, 1.0))
        if t < self.t:
            self.products[key] = self.t, product * self._of(factor, name)
        return self.products[key][1]

    def _of(self, x: Any, name: str) -> Any:
        if isinstance(x, Number):
            return x.value
        if isinstance(x, Symbol):
            return self._symbol(x, name)
        assert isinstance(x, Function)
        if x.name == "running":
            return self._running(x.children[0], name)
        if x.name in _TERMS and not x.over:
            parts = [[self._of(a, other) for a in x.children] for other in self.params]
            sums = [sum(np.sum(term(*part)) for part in parts) for term in [_TERMS[x.name]]]
            return np.sqrt(sums[0]) if x.name == "norm" else sums[0]
        values = [self._of(child, name) for child in x.children]
        if x.name in _REDUCTIONS:
            axes = _axes(x.over, np.shape(self.params[name]))
            kept = axes is not None
            return _REDUCTIONS[x.name](values[0], axes, kept)
        if x.name == "width":
            return sorted((0, 0, *np.shape(self.params[name])))[-2]
        return _FUNCTIONS[x.name](*values)


_TERMS: Mapping[str, Any] = {
    "norm": np.square,
    "norm1": np.abs,
    "inner": np.multiply,
    "total": np.asarray,
}
_REDUCTIONS: Mapping[str, Any] = {
    "norm": lambda x, axes, keep: np.sqrt(np.sum(x**2, axis=axes, keepdims=keep)),
    "mean": lambda x, axes, keep: np.mean(x, axis=axes, keepdims=keep),
    "rms": lambda x, axes, keep: np.sqrt(np.mean(x**2)),
    "total": lambda x, axes, keep: np.sum(x, axis=axes, keepdims=keep),
}
_FUNCTIONS: Mapping[str, Any] = {
    "sum": lambda *terms: sum(terms),
    "product": lambda *factors: math.prod(factors),
    "power": lambda base, exponent: np.power(np.float64(base), exponent),
    "cases": np.where,
    "indicator": np.float64,
    "or": np.logical_or,
    "and": np.logical_and,
    "clip": lambda x, bound: np.clip(x, -bound, bound),
    "isnan": np.isnan,
    "sign": np.sign,
    "abs": np.abs,
    "log": np.log,
    "exp": np.exp,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "round": np.round,
    "max": np.maximum,
    "min": np.minimum,
    "atan2": np.arctan2,
    "mod": np.mod,
    "rem": np.fmod,
    "not": np.logical_not,
    "erf": np.vectorize(math.erf),
    "RN": np.float64,  # rounds to the parameter's dtype, here float64
    "SR": np.float64,
    **RELATIONS,
}


def _axes(over: str, shape: tuple[int, ...]) -> Any:
    """The axes of a norm or mean; None for all."""
    if over in ("", "array"):
        return None
    if over.startswith("axis="):
        return tuple(int(axis) for axis in over.removeprefix("axis=").split(","))
    return _units(shape) if over == "unit" else _shared(over, shape)


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
