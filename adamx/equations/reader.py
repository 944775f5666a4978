"""Read the formulas of a rule off its jaxpr.

A rule is traced with one array in place of a parameter, in double precision. Every value in the
jaxpr becomes a formula: primitives become operators, and calls of named functions
(:mod:`adamx.numerics.named`) become the formulas of their names. A primitive that is not known
becomes ``f(…)`` of the symbols that it depends on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.equations import formulas as F
from adamx.equations.formulas import ONE, STEP, ZERO, Expression, Number, Symbol, is_a
from adamx.numerics.named import PREFIX, Call, filled, recorded

__all__ = ["SHAPE", "Result", "base_of", "decayed", "number", "read", "solved"]

SHAPE = (5, 7)
"""The shape of the parameter with which rules are traced. A rule that treats shapes differently is
read as it treats matrices."""

_HUGE = 2.0**31 - 2  # numbers from here on are limits of formats


def double() -> Any:
    """A context of double precision, in which numbers keep the digits that the user wrote."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()  # pyright: ignore # JAX below 0.8


def number(x: Any) -> Number:
    """A number of a program, without the rounding errors of its arithmetic."""
    x = float(x)
    return Number(float(f"{x:.12g}") if math.isfinite(x) else x)


class Result(NamedTuple):
    """What was read.

    Attributes:
        formulas: the results, as a tree of formulas.
        shapes: their shapes.
        defined: the formulas of the results that have symbols, in the order of computation.
    """

    formulas: Any
    shapes: Any
    defined: dict[Symbol, Expression]


def read(
    function: Callable[..., Any],
    shapes: Sequence[Any],
    formulas: Sequence[Any],
    symbols: Callable[[Any], Any] = lambda out: out,
) -> Result:
    """The formulas that a function of arrays computes.

    Args:
        function: a function of trees of arrays.
        shapes: the shapes of its arguments.
        formulas: trees like the arguments, with a formula for each array.
        symbols: from the tree of results to the tree with symbols in place of some of them.
            Wherever such a result is used, its symbol stands for it; of two symbols of one result,
            the last.
    """
    with double(), recorded() as calls:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    given = jax.tree.leaves(list(formulas), is_leaf=_is_formula)
    wanted = jax.tree.leaves(symbols(out), is_leaf=_is_formula)
    reader = _Reader(calls)
    for v, symbol in reversed(list(zip(closed.jaxpr.outvars, wanted, strict=True))):
        if isinstance(symbol, Symbol) and not hasattr(v, "val") and v not in closed.jaxpr.invars:
            reader.symbols.setdefault(v, symbol)
    found = reader.run(closed, given)
    return Result(jax.tree.unflatten(jax.tree.structure(out), found), out, reader.defined)


def _is_formula(x: Any) -> bool:
    return isinstance(x, Expression)


def decayed(beta: Expression, *, before: bool = False) -> Expression:
    """The product of β over all steps (with ``before``, without this one); βᵗ if β is constant."""
    if isinstance(beta, Symbol) and not beta.constant:
        running = F.of("running", beta)
        return running / beta if before else running
    if beta == ZERO:
        return ONE if before else ZERO
    return beta ** (STEP - 1) if before else beta**STEP


def solved(new: Expression, before: Symbol, start: Any) -> Expression | None:
    """The value of a clock after t steps, if it counts them or adds logarithms; otherwise None.

    Args:
        new: its value after a step, a formula of the value before.
        before: the symbol of the value before.
        start: the value before the first step.
    """
    if is_a(new, "accumulated") or new == before:
        return new if new != before else start
    change = new - before
    if change.constant:
        return start + change * STEP
    if is_a(new, "sum") and is_a(new.children[0], "cases") and new.children[1:] == (ONE,):
        condition, counted, reset = new.children[0].children
        period = condition.children[1]
        counts = (counted, reset) == (before, ZERO) and condition == (before < period)
        if counts and isinstance(period, Number):
            return F.of("cycle", period)  # 1, 2, … k, 1, 2, …
    if is_a(new, "min") and isinstance(new.children[1], Number):
        counted = solved(new.children[0], before, start)
        return None if counted is None else F.minimum(counted, new.children[1])
    return None


class _Reader:
    def __init__(self, calls: list[Call]):
        self.calls = calls
        self.symbols: dict[Any, Symbol] = {}
        self.defined: dict[Symbol, Expression] = {}

    def run(self, closed: Any, given: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        known: dict[Any, Any] = dict(
            zip(jaxpr.constvars, map(_constant, closed.consts), strict=True)
        )
        known.update(zip(jaxpr.invars, given, strict=True))

        def value(v: Any) -> Any:
            return _constant(v.val) if hasattr(v, "val") else known[v]

        for equation in jaxpr.eqns:
            inputs = [value(v) for v in equation.invars]
            for v, x in zip(equation.outvars, self.equation(equation, inputs), strict=True):
                symbol = self.symbols.get(v)
                if symbol is not None:
                    self.defined[symbol] = x
                known[v] = x if symbol is None else symbol
        return [value(v) for v in jaxpr.outvars]

    def equation(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        name, given = equation.primitive.name, equation.params
        inner = given.get("call_jaxpr") or given.get("jaxpr") or given.get("fun_jaxpr")
        if inner is not None and hasattr(inner, "consts"):
            label = str(given.get("name") or "")
            if label.startswith(PREFIX):
                call = self.calls[int(label.removeprefix(PREFIX))]
                if call.name in NAMED:
                    args, named = filled(call, inputs)
                    found = NAMED[call.name](*args, **named)
                    return found if isinstance(found, tuple) else (found,)
            info = getattr(inner.jaxpr, "debug_info", None)
            label = label or str(getattr(info, "func_name", ""))
            if label in DERIVED:
                return (DERIVED[label](*inputs[-_arity(equation) :]),)
            if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
                return self.run(inner, inputs)
        if name in SAME:
            return inputs[:1]
        x: Any = inputs[0] if inputs else None
        match name:
            case "convert_element_type":
                is_condition = equation.invars[0].aval.dtype == np.bool_
                to_number = jnp.issubdtype(given["new_dtype"], np.number)
                return (_as_number(x) if is_condition and to_number else x,)
            case "integer_pow":
                return (F.power(x, given["y"]),)
            case "reduce_sum":
                return (_summed(x, given["axes"], equation.invars[0].aval.shape),)
            case _ if name in PRIMITIVES:
                size = math.prod(equation.outvars[0].aval.shape or (1,))
                return (PRIMITIVES[name](*inputs),) if size else (ZERO,)
        symbols = {s: None for y in inputs for s in F.walk(y) if isinstance(s, Symbol)}
        unknown = F.of("unknown", *symbols, over=name)
        return (unknown,) * len(equation.outvars)


def _constant(x: Any) -> Expression:
    """A constant array as a number, if all its elements are equal."""
    values = np.asarray(x)
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.number):
        if values.size and (values == values.flat[0]).all():
            return number(values.flat[0])
        if values.size and np.isnan(values).all():
            return Number(math.nan)
    return F.of("unknown", over="constant")


def _arity(equation: Any) -> int:
    return len(equation.invars) - equation.params.get("num_consts", 0)


def _as_number(condition: Expression) -> Expression:
    return condition if isinstance(condition, Number) else F.indicator(condition)


def _summed(x: Expression, axes: Sequence[int], shape: tuple[int, ...]) -> Expression:
    if x == ZERO or not shape:
        return x
    if is_a(x, "power") and x.children[1] == Number(2.0):
        return F.norm(x.children[0], _over(axes, shape)) ** 2
    return F.of("total", x, over=_over(axes, shape))


def _over(axes: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """What axes are called: those of the whole array, or their numbers."""
    if label := getattr(axes, "label", ""):
        return label
    if axes is None or len({axes} if isinstance(axes, int) else {*axes}) == len(shape):
        return "array"
    chosen = [axes] if isinstance(axes, int) else [*axes]
    return f"axis={','.join(map(str, chosen))}"


# Relations


def _relation(name: str) -> Callable[[Any, Any], Expression]:
    def related(x: Expression, y: Expression) -> Expression:
        if is_a(x, "min") and isinstance(y, Number):  # a counter that stops behind the last value
            limit = x.children[1]
            if isinstance(limit, Number) and limit.value > y.value:
                x = x.children[0]
        if is_a(x, "cycle") and name == "≥" and y == x.children[0] and isinstance(y, Number):
            return F.of("mod", STEP, max(math.ceil(y.value), 1)).equals(0)
        if y == ZERO and is_a(x, "product"):  # products of signs have the signs of products
            first = x.children[0]
            if isinstance(first, Number) and first.value < 0:
                return related_to_zero(name, -x)
            inside = [f.children[0] if is_a(f, "sign") else f for f in x.children]
            x = F.multiply(*inside)
        return F.relation(name, x, y)

    def related_to_zero(name: str, x: Expression) -> Expression:
        flipped = {"<": ">", ">": "<"}.get(name, name)
        return _relation(flipped)(x, ZERO)

    return related


def _either(x: Expression, y: Expression) -> Expression:
    if isinstance(x, Number) or isinstance(y, Number):
        one, other = (x, y) if isinstance(x, Number) else (y, x)
        return one if one == ONE else other
    if all(is_a(z, "=") and z.children[1] == ZERO for z in (x, y)):
        return (x.children[0] * y.children[0]).equals(0)
    return F.of("or", x, y)


def _both(x: Expression, y: Expression) -> Expression:
    if isinstance(x, Number) or isinstance(y, Number):
        one, other = (x, y) if isinstance(x, Number) else (y, x)
        return other if one != ZERO else ZERO
    return F.of("and", x, y)


def _selected(condition: Expression, otherwise: Expression, value: Expression) -> Expression:
    """A choice; one that only keeps a divisor from being 0 is left out."""
    parts = condition.children if is_a(condition, "and") else (condition,)
    if value == ONE and otherwise.equals(0) in parts:
        return otherwise
    return F.cases(condition, value, otherwise)


def _extreme(choose: Callable[[Any, Any], Expression]) -> Callable[[Any, Any], Expression]:
    """A minimum or maximum; a limit of the number format is left out."""

    def chosen(x: Expression, y: Expression) -> Expression:
        for one, other in ((x, y), (y, x)):
            if isinstance(one, Number) and abs(one.value) >= _HUGE and not math.isinf(one.value):
                return other
        return choose(x, y)

    return chosen


def _clipped(x: Expression, low: Expression, high: Expression) -> Expression:
    if low == -high:
        return F.of("clip", x, high)
    return F.minimum(F.maximum(x, low), high)


def _quotient(x: Expression, y: Expression) -> Expression:
    if is_a(x, "total") and x.over == "array" and y == Number(float(math.prod(SHAPE))):
        return F.mean(x.children[0])
    if is_a(x, "power") and is_a(x.children[0], "norm") and y == Number(float(math.prod(SHAPE))):
        return F.mean(x.children[0].children[0] ** 2) if x.children[0].over == "array" else x / y
    return x / y


def _raised(base: Expression) -> Expression:
    """eˣ; the exponential of a multiple of t is a power."""
    if isinstance(base, Number):
        return number(math.exp(base.value))
    return F.exp(base)


SAME = {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient"),
    *("real", "optimization_barrier", "reduce_precision", "device_put", "sharding_constraint"),
    *("pvary", "pcast", "conj"),
}
PRIMITIVES: Mapping[str, Callable[..., Expression]] = {
    "add": F.add,
    "add_any": F.add,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x**2 if x == y else x * y,
    "div": _quotient,
    "neg": lambda x: -x,
    "max": _extreme(F.maximum),
    "min": _extreme(F.minimum),
    "clamp": lambda low, x, high: _clipped(x, low, high),
    "sqrt": F.root,
    "rsqrt": lambda x: 1 / F.root(x),
    "square": lambda x: x**2,
    "pow": F.power,
    "abs": F.absolute,
    "sign": F.sign,
    "exp": _raised,
    "exp2": lambda x: 2**x,
    "expm1": lambda x: _raised(x) - 1,
    "log": F.log,
    "log1p": lambda x: F.log(1 + x),
    "logistic": lambda x: 1 / (1 + F.exp(-x)),
    "rem": functools.partial(F.of, "mod"),
    **{
        name: functools.partial(F.of, name)
        for name in ("tanh", "sin", "cos", "erf", "floor", "round", "atan2")
    },
    "eq": _relation("="),
    "lt": _relation("<"),
    "gt": _relation(">"),
    "ge": _relation("≥"),
    "le": lambda x, y: _relation("≥")(y, x),
    "or": _either,
    "and": _both,
    "select_n": _selected,
}

# Functions with a derivative of their own, by the names of their definitions.
DERIVED: Mapping[str, Callable[..., Expression]] = {
    "root": F.root,
    "_quotient": _quotient,
    "power": F.power,
    "_phase": F.sign,
    "_expm1": lambda x: _raised(x) - 1,
    "_limited": lambda x, largest: x,
    "_dithered": lambda x, *bits: F.of("SR", x),
    "clip": lambda x, low, high: _clipped(x, low, high),
    "sigmoid": lambda x: 1 / (1 + F.exp(-x)),
}


def _norm_of(x: Any, axis: Any = None) -> tuple[Expression, Expression]:
    return F.norm(x, _over(axis)), ONE


def _shrunk(x: Any, length: Any, most: Any) -> Expression:
    return x * F.minimum(1, F.expression(most) / length[0])


def _weight(pair: Expression) -> Expression:
    """The weight of an average, from a clock that adds the logarithms of β."""
    if not is_a(pair, "accumulated"):
        return 1 - F.exp(pair)
    return 1 - decayed(base_of(pair))


def base_of(clock: Expression) -> Expression:
    """β of a clock that adds its logarithms."""
    logarithm = clock.children[1]
    if isinstance(logarithm, Number):
        base = math.exp(logarithm.value)
        return ZERO if base < 1e-25 else number(base)
    return logarithm.children[0] if is_a(logarithm, "log") else F.exp(logarithm)


def _average(beta: Any, old: Expression, value: Expression) -> Expression:
    beta = number(beta) if isinstance(beta, float) else F.expression(beta)
    return beta * old + (1 - beta) * value


_BLOCKS = {"axis=1": "row", "axis=0": "column"}

NAMED: Mapping[str, Callable[..., Any]] = {
    "averaged": _average,
    "averaged_with_rest": lambda beta, old, lost, x: (_average(beta, old, x), lost),
    "accumulated": lambda pair, x: F.of("accumulated", pair, x),
    "decay_weight": _weight,
    "interpolated_weight": lambda pair, beta, decay: (
        1 - F.expression(beta) * decayed(F.expression(decay), before=True)
    ),
    "divide": lambda u, by, *positive: _quotient(F.expression(u), by),
    "log": F.log,
    "mean": lambda x, axes=None, keepdims=False: F.mean(x, _BLOCKS.get(_over(axes), _over(axes))),
    "norm": _norm_of,
    "squares_of": lambda x, axis: (F.norm(x, _over(axis)) ** 2, ZERO, ZERO),
    "norm_of": lambda squares: (F.root(squares[0]), ONE),
    "shrunk": _shrunk,
    "shrunk_to_rms": lambda x, most: x / F.maximum(1, F.rms(x) / most),
    "rounded": lambda x, dtype: F.of("RN", x) if jnp.finfo(dtype).bits < 32 else x,
    "bits": lambda key, shape, label="": F.of("unknown", over="bits"),
}
