"""Read the formulas of a program off its jaxpr.

A program is traced with one array in place of a parameter, in double precision. Every value in the
jaxpr becomes a formula: primitives become operators, and calls of named functions
(:mod:`adamx.numerics.named`) become the formulas of their names. A primitive that is not known
becomes ``f(…)`` of the symbols that it depends on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.equations import formulas as F
from adamx.equations.formulas import ONE, STEP, ZERO, Expression, Number, Symbol, as_power, is_a
from adamx.numerics.jaxprs import called, inner
from adamx.numerics.named import CALLS, PREFIX, filled, recorded

__all__ = ["Line", "number", "read"]

_HUGE = 2.0**100  # numbers from here on stand for infinity
_LARGEST = 400  # formulas of more parts are not shown
_COUNT = itertools.count()


@dataclasses.dataclass(eq=False)
class Line:
    """One line of an algorithm.

    Attributes:
        symbol: the symbol on the left-hand side.
        value: the formula on the right-hand side.
        start: the value of the symbol before the first step.
        again: whether the line replaces an earlier value of the symbol in this step.
        remark: why its formula is not known.
        kind: "update", "slot", "clock" or "let"; "formula" for a value that gets no line.
        weight: the weight of the average that it is; of an update, its bias.
        beside: values of which one is its weight.
        is_gradient: whether it is an update before the first statistic, and so the gradient.
        place: the place in the chain of the stage that computes it.
    """

    symbol: Symbol
    value: Expression = ZERO
    start: Expression = ZERO
    again: bool = False
    remark: str = ""
    kind: str = "formula"
    weight: Expression = ONE
    beside: Sequence[Line] = ()
    is_gradient: bool = False
    place: int | None = None


def read(
    trace: Callable[..., list[Any]],
    shapes: Sequence[Any],
    formulas: Sequence[Expression],
    lines: Sequence[Line],
) -> list[Line]:
    """The lines of a program, in the order of computation.

    Args:
        trace: gives the arrays of the lines.
        shapes: the shapes of its arguments.
        formulas: the formulas of its arguments.
        lines: is filled by ``trace``, with a line without a value for each array.
    """
    # Double precision keeps the digits that the user wrote.
    double = getattr(jax, "enable_x64", None)
    if double is None:
        double = jax.experimental.enable_x64  # pyright: ignore # JAX below 0.8
    with double(True), recorded(), jax.disable_jit(False):
        closed = jax.make_jaxpr(trace)(*shapes)
    reader = _Reader()
    for line, v in zip(lines, closed.jaxpr.outvars, strict=True):
        if line.kind != "formula" and not hasattr(v, "val") and v not in closed.jaxpr.invars:
            reader.symbols.setdefault(v, line)
    for line, value in zip(lines, reader.run(closed, formulas), strict=True):
        if line not in reader.lines:
            line.value = value
            reader.lines.append(line)
    found = [line for line in reader.lines if line.kind != "formula"]
    for line in found:
        line.start = reader.starts.get(line.symbol, ZERO)
        line.value = F.substitute(line.value, reader.previous)
    return found


class _Reader:
    """Evaluates a jaxpr on formulas, and collects lines."""

    def __init__(self) -> None:
        self.symbols: dict[Any, Line] = {}  # the lines of variables
        self.lines: list[Line] = []
        self.starts: dict[Symbol, Expression] = {}
        self.terms: dict[Expression, int] = {}  # how many terms a sum has
        self.previous: dict[Symbol, Expression] = {}  # values of the step before, where solved

    def run(self, closed: Any, given: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        values = [*map(_constant, closed.consts), *given]
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], values, strict=True))

        def value(v: Any) -> Any:
            return _constant(v.val) if hasattr(v, "val") else known[v]

        for equation in jaxpr.eqns:
            inputs = [value(v) for v in equation.invars]
            is_large = any(sum(1 for _ in F.walk(x)) > _LARGEST for x in inputs)
            outputs = None if is_large else self.known(equation, inputs)
            if outputs is None:
                what = _unknown_part(equation.primitive.name, inputs)
                outputs = [_unknown(what, *inputs) for _ in equation.outvars]
            for v, x in zip(equation.outvars, outputs, strict=True):
                known[v] = self.named(self.symbols[v], x) if v in self.symbols else x
        return [value(v) for v in jaxpr.outvars]

    def named(self, line: Line, x: Expression) -> Expression:
        """The symbol of a value; the value itself if it needs no line."""
        self.lines.append(line)
        line.value, before = x, line.symbol.before
        start = self.starts.get(line.symbol)
        solution = None if start is None else solved(x, before, start)
        if solution is None:
            return line.symbol
        line.kind, line.value = "formula", solution
        runs = any(is_a(part, "running") for part in F.walk(solution))
        step_before = solution / (x / before) if runs else F.substitute(solution, {STEP: STEP - 1})
        self.previous[before] = step_before
        return solution

    def recalled(self, start: Expression, symbol: Symbol) -> Expression:
        self.starts[symbol] = start
        return symbol.before

    def defined(self, x: Expression, symbol: Symbol) -> Expression:
        symbol = dataclasses.replace(symbol, step="" if x.constant else symbol.step)
        self.lines.append(Line(symbol, x, kind="let"))
        return symbol

    def known(self, equation: Any, inputs: list[Any]) -> Sequence[Any] | None:
        """The results of an equation; None if there is no formula for them."""
        name, given = equation.primitive.name, equation.params
        label = str(given.get("name") or "")
        if label.startswith(PREFIX):
            call = CALLS[int(label.removeprefix(PREFIX))]
            meaning = NAMED.get(call.name) or getattr(self, call.name, None)
            if meaning is not None:
                own, named = filled(call, inputs)
                found = meaning(*own, **named)
                return found if isinstance(found, tuple) else (found,)
        if (jaxpr := called(equation)) is not None:
            return self.run(jaxpr, inputs)
        if inner(equation) is not None or not inputs or not equation.outvars:
            return None
        before, after = equation.invars[0].aval, equation.outvars[0].aval
        if name == "reduce_sum":
            found = _summed(inputs[0], given["axes"], before.shape)
            if found is not None and found[0] != inputs[0]:
                self.terms[found[0]] = math.prod(before.shape[axis] for axis in given["axes"])
            return found
        if name == "div" and getattr(inputs[1], "value", 0) == self.terms.get(inputs[0]):
            return (_mean(inputs[0]),)
        return _primitive(name, given, inputs, before, after)


def _unknown_part(name: str, inputs: Sequence[Expression]) -> str:
    """The primitive to name for a value without a formula: the first that is no change of form."""
    before = (x.over for y in inputs for x in F.walk(y) if is_a(x, "unknown"))
    first = next(before, name).partition("\0")[0]
    is_form, was_form = (x in FORMS for x in (name, first))
    return name if (was_form and not is_form) or name in ("cond", "while", "scan") else first


def _unknown(what: str, *inputs: Expression) -> Expression:
    """A value without a formula: a function of the symbols that it depends on."""
    symbols = dict.fromkeys(s for x in inputs for s in F.walk(x) if isinstance(s, Symbol))
    return F.of("unknown", *symbols, over=f"{what}\0{next(_COUNT)}")


def number(x: Any) -> Number:
    """A number of a program, without the rounding errors of its arithmetic."""
    x = float(x)
    return Number(float(f"{x:.12g}") if math.isfinite(x) else x)


def _constant(x: Any) -> Expression:
    """A constant array as a number, if all its elements are equal."""
    values = np.asarray(x)
    is_number = values.dtype == np.bool_ or jnp.issubdtype(values.dtype, np.number)
    if is_number and not np.iscomplexobj(values):
        different = np.unique(values.astype(np.float64))
        if different.size == 1:
            return number(different[0])
    return _unknown("constant")


def solved(new: Expression, before: Symbol, start: Expression) -> Expression | None:
    """The value after t steps of what counts them, adds logarithms, multiplies, or stays; or None.

    Args:
        new: the value after a step, a formula of the value before.
        before: the symbol of the value before.
        start: the value before the first step.
    """
    if is_a(new, "accumulated"):
        return new
    change, factor = new - before, new / before
    if change == ZERO:
        return start
    if start == ONE and isinstance(factor, Number | Symbol):
        return F.decayed(factor)
    if isinstance(change, Number):
        return start + change * STEP
    if is_a(new, "min") and isinstance(new.children[1], Number):  # a counter with a limit
        counted = solved(new.children[0], before, start)
        return counted and F.extreme("min", counted, new.children[1])
    if is_a(new, "sum") and is_a(new.children[0], "cases") and new.children[1:] == (ONE,):
        period = new.children[0].children[0].children[-1]  # of a counter that begins again
        same = F.cases(F.relation("<", before, period), before, ZERO)
        if new.children[0] == same and start == ZERO and isinstance(period, Number):
            return F.of("mod", STEP - 1, max(math.ceil(period.value), 1)) + 1
    return None


# Primitives


def _primitive(name: str, given: Any, inputs: list[Any], before: Any, after: Any) -> Any:
    """The result of a primitive, in a tuple; None if there is no formula for it.

    Args:
        name: its name.
        given: its parameters.
        inputs: the formulas of its operands.
        before: the type of its first operand.
        after: the type of its result.
    """
    x = inputs[0]
    is_whole = np.issubdtype(before.dtype, np.integer)
    if name in SAME:
        return (x,) if isinstance(x, Number) or _is_aligned(name, before, after) else None
    if name == "convert_element_type":
        return _converted(x, before.dtype, after.dtype)
    if name == "integer_pow":
        return (F.power(x, given["y"]),)
    if is_whole and name in ("max", "min"):  # the limit of a counter
        inputs = [y for y in inputs if not (isinstance(y, Number) and abs(y.value) >= 2**31 - 2)]
        if len(inputs) == 1:
            return inputs
    has_formula = name in PRIMITIVES and len(after.shape) <= 2
    if not has_formula or (is_whole and name in ("and", "or", "not", "div", "rem")):
        return None
    try:
        return (PRIMITIVES[name](*inputs),)
    except TypeError:  # more operands than usual
        return None


def _is_aligned(name: str, before: Any, after: Any) -> bool:
    """Whether elements stay at their places, beside axes of length 1."""
    if name not in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
        return True
    one, other = (tuple(n for n in x.shape if n != 1) for x in (before, after))
    same = one == other or (name == "broadcast_in_dim" and len(one) < 2)
    return not one or (same and len(after.shape) <= 2)


def _converted(x: Expression, before: Any, after: Any) -> Sequence[Any] | None:
    if before == np.bool_ and np.issubdtype(after, np.number):
        return (x if isinstance(x, Number) else F.of("indicator", x),)
    exact = isinstance(x, Number) or is_a(x, "RN", "SR") or jnp.issubdtype(before, jnp.integer)
    wide = jnp.issubdtype(after, jnp.floating) and jnp.finfo(after).bits
    return (x,) if exact or before == np.bool_ or wide >= jnp.finfo(before).bits else None


def _summed(x: Expression, axes: Any, shape: tuple[int, ...]) -> Sequence[Any] | None:
    if x == ZERO or not shape:
        return (x,)
    if isinstance(x, Number) or len(shape) > 2:
        return None
    over = _over(axes, shape)
    base, n = as_power(x)
    return (F.of("norm", base, over=over) ** 2 if n == 2 else F.of("total", x, over=over),)


def _over(axes: Any, shape: tuple[int, ...] = (0, 0)) -> str:
    """What axes are called: those of the whole array, or their numbers."""
    if label := getattr(axes, "label", ""):
        return label
    if axes is None or len({axes} if isinstance(axes, int) else {*axes}) == len(shape):
        return "array"
    chosen = [axis % len(shape) for axis in ([axes] if isinstance(axes, int) else axes)]
    return f"axis={','.join(map(str, chosen))}"


def _relation(name: str, x: Expression, y: Expression) -> Expression:
    """A relation; counters and products of signs are compared without what does not matter."""
    if is_a(x, "min") and isinstance(y, Number):  # a counter that stops behind the last value
        limit = x.children[1]
        x = x.children[0] if isinstance(limit, Number) and limit.value > y.value else x
    if name == "≥" and isinstance(y, Number):
        period = Number(float(math.ceil(y.value)))
        if x == F.of("mod", STEP - 1, period) + 1:
            return F.relation("=", F.of("mod", STEP, period), 0)
    if y == ZERO:
        factors = [*map(as_power, x.children if is_a(x, "product") else (x,))]
        if isinstance(factors[0][0], Number) and factors[0][0].value < 0:
            return _relation({"<": ">", ">": "<", "≥": "≤"}.get(name, name), -x, ZERO)
        x = F.multiply(*((f.children[0] if is_a(f, "sign") else f) ** n for f, n in factors))
    return F.relation("≥", y, x) if name == "≤" else F.relation(name, x, y)


def _either(x: Expression, y: Expression) -> Expression:
    if isinstance(x, Number) or isinstance(y, Number):
        return ONE if ONE in (x, y) else y if isinstance(x, Number) else x
    if all(is_a(z, "=") and z.children[1] == ZERO for z in (x, y)):
        return F.relation("=", x.children[0] * y.children[0], 0)
    return F.of("or", x, y)


def _both(x: Expression, y: Expression) -> Expression:
    if isinstance(x, Number) or isinstance(y, Number):
        return ZERO if ZERO in (x, y) else y if isinstance(x, Number) else x
    return F.of("and", x, y)


def _negated(x: Expression) -> Expression:
    opposite = {"=": "≠", "≠": "="}
    if isinstance(x, Number):
        return ONE - x
    return F.relation(opposite[x.name], *x.children) if is_a(x, *opposite) else F.of("not", x)


def _selected(condition: Expression, otherwise: Expression, value: Expression) -> Expression:
    """A choice; one that keeps atan2(0, 0) from being undefined is left out."""
    is_guard = value == ONE and is_a(condition, "and")
    if is_guard and F.relation("=", otherwise, 0) in condition.children:
        return otherwise
    return F.cases(condition, value, otherwise)


def _extreme(name: str, x: Expression, y: Expression) -> Expression:
    """An extreme; a limit of the number format is left out, and min(max(x, −b), b) is a clip."""
    for bound, inside in ((x, y), (y, x)):
        if isinstance(bound, Number) and math.inf > abs(bound.value) >= _HUGE:
            return inside
        if name == "min" and is_a(inside, "max") and -bound in inside.children:
            one, other = inside.children
            return F.of("clip", other if one == -bound else one, bound)
    return F.extreme(name, x, y)


def _mean(x: Expression) -> Expression:
    """A sum, divided by the number of its terms."""
    total, n = as_power(x)
    over = _BLOCKS.get(getattr(total, "over", ""), getattr(total, "over", ""))
    return F.of("mean", total.children[0] ** n, over=over)


_BLOCKS = {"axis=1": "row", "axis=0": "column"}


def _exp(x: Expression) -> Expression:
    return number(math.exp(x.value)) if isinstance(x, Number) else F.of("exp", x)


SAME = {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient"),
    *("real", "optimization_barrier", "reduce_precision", "device_put", "sharding_constraint"),
    *("pvary", "pcast", "conj"),
}
FORMS = {*SAME, "slice", "dynamic_slice", "gather", "transpose", "rev", "concatenate"}
"""Primitives that only move elements."""

PRIMITIVES: Mapping[str, Callable[..., Expression]] = {
    "add": F.add,
    "add_any": F.add,
    "sub": lambda x, y: x - y,
    "mul": F.multiply,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "max": functools.partial(_extreme, "max"),
    "min": functools.partial(_extreme, "min"),
    "clamp": lambda low, x, high: _extreme("min", F.extreme("max", x, low), high),
    "sqrt": lambda x: x**0.5,
    "rsqrt": lambda x: x**-0.5,
    "square": lambda x: x**2,
    "pow": F.power,
    "abs": F.absolute,
    "exp": _exp,
    "exp2": lambda x: F.power(2, x),
    "expm1": lambda x: _exp(x) - 1,
    "log1p": lambda x: F.of("log", ONE + x),
    "logistic": lambda x: ONE / (ONE + _exp(-x)),
    **{
        name: functools.partial(F.of, name)
        for name in ("sign", "log", "tanh", "sin", "cos", "erf", "floor", "round", "atan2", "rem")
    },
    "eq": functools.partial(_relation, "="),
    "ne": lambda x, y: (
        _relation("≠", x, y) if x != y or isinstance(x, Number) else F.of("isnan", x)
    ),
    "lt": functools.partial(_relation, "<"),
    "gt": functools.partial(_relation, ">"),
    "ge": functools.partial(_relation, "≥"),
    "le": lambda x, y: _relation("≥", y, x),
    "not": _negated,
    "or": _either,
    "and": _both,
    "select_n": _selected,
}

# Named functions


def _beta(clock: Expression) -> Expression:
    """β of a clock that adds its logarithms."""
    logarithm = clock.children[1] if is_a(clock, "accumulated") else clock
    if isinstance(logarithm, Number):
        beta = math.exp(logarithm.value)
        return ZERO if beta < 1e-25 else number(beta)
    return logarithm.children[0] if is_a(logarithm, "log") else _exp(logarithm)


def _weight(clock: Expression) -> Expression:
    """The weight of an average; it is the unit in which corrected averages are written."""
    if not is_a(clock, "accumulated"):
        return ONE - _exp(clock)
    beta = _beta(clock)
    return ONE if beta == ZERO else F.of("weight", F.decayed(beta))


def _interpolated(clock: Expression, beta: Any, decay: Any) -> Expression:
    decay = F.expression(decay)
    before = decay ** (STEP - 1) if decay.constant else F.decayed(decay) / decay
    return F.of("weight", F.expression(beta) * before)


def _average(beta: Any, old: Expression, value: Expression) -> Expression:
    beta = number(beta) if isinstance(beta, float) else F.expression(beta)
    return beta * old + (ONE - beta) * value


def _over_all(x: Expression, over: str = "") -> Expression:
    """A number of one array as a sum over many parameters, for sums and squared norms."""
    base, n = as_power(x)
    if n == 2 and is_a(base, "norm") and base.over == "array":
        return F.of("norm", *base.children, over=over) ** 2
    if is_a(x, "total") and x.over == "array":
        (inside,) = x.children
        is_pair = is_a(inside, "product") and len(inside.children) == 2
        if over or not (is_pair or is_a(inside, "abs")):
            return F.of("total", inside, over=over)
        return F.of("inner" if is_pair else "norm1", *inside.children)
    if x == ZERO or is_a(x, "sum"):
        return F.add(*(_over_all(y, over) for y in x.children))
    sums = [y for y in x.children if any(is_a(z, "total", "norm") for z in F.walk(y))]
    if is_a(x, "product") and len(sums) == 1:
        return F.substitute(x, {sums[0]: _over_all(sums[0], over)})
    return _unknown("a sum over all parameters", x)


NAMED: Mapping[str, Callable[..., Any]] = {
    "averaged": _average,
    "averaged_with_rest": lambda beta, old, lost, x: (_average(beta, old, x), lost),
    "accumulated": lambda pair, x: F.of("accumulated", pair, x),
    "decay_weight": _weight,
    "interpolated_weight": _interpolated,
    "divide": lambda u, by, *positive: F.expression(u) / by,
    "log": functools.partial(F.of, "log"),
    "mean": lambda x, axes=None, keepdims=False: F.of(
        "mean", x, over=_BLOCKS.get(_over(axes), _over(axes))
    ),
    "norm": lambda x, axis=None: (F.of("norm", x, over=_over(axis)), ONE),
    "squares_of": lambda x, axis: (F.of("norm", x, over=_over(axis)) ** 2, ZERO, ZERO),
    "norm_of": lambda squares: (squares[0] ** 0.5, ONE),
    "shrunk": lambda x, length, most: x * F.extreme("min", 1, F.expression(most) / length[0]),
    "shrunk_to_rms": lambda x, most: x / F.extreme("max", 1, F.of("rms", x) / most),
    "rounded": lambda x, dtype: F.of("RN", x) if jnp.finfo(dtype).bits < 32 else x,
    "orthogonal": lambda x, *rest: F.of("call", x, over="orth(\0)"),
    "scaled_by_shape": lambda x, factor: F.of("call", x, over="scaled_by_shape(\0)"),
    "scaled_to_rms": lambda x, rms: x * (F.expression(rms) / F.of("rms", x)),
    "limited_to": lambda x, largest: x,
    "dithered": lambda x, bits, dtype: F.of("SR", x),
    "bits": lambda key, shape, label="": _unknown("random bits"),
    "mean_along": lambda x, axis, shape: x if x == ZERO else F.of("mean", x, over=axis),
    "width": functools.partial(F.of, "width"),
    "recast": lambda x, dtype: x,
    "over_all": _over_all,
    "shown_as": lambda x, head, tail: F.of("call", x, over=f"{head}\0{tail}"),
}
