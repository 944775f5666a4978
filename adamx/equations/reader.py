"""Read the formulas of a rule off its jaxpr.

A rule is traced with one array in place of a parameter, in double precision. Every value in the
jaxpr becomes a formula: primitives become operators, and calls of named functions
(:mod:`adamx.numerics.named`) become the formulas of their names. A primitive that is not known
becomes ``f(…)`` of the symbols that it depends on.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.equations import formulas as F
from adamx.equations.formulas import ONE, STEP, ZERO, Expression, Number, Symbol, is_a
from adamx.numerics.named import CALLS, PREFIX, filled, recorded

__all__ = [
    "SHAPES",
    "Result",
    "base_of",
    "decayed",
    "number",
    "read",
    "shape",
    "solved",
    "traced_with",
]

SHAPES = ((53, 59), (61, 67))
"""Shapes of the parameter with which rules are traced: what is read depends on no size. A rule that
treats shapes differently is read as it treats matrices."""

_shape: contextvars.ContextVar[tuple[int, int]] = contextvars.ContextVar("shape", default=SHAPES[0])


def shape() -> tuple[int, int]:
    """The shape of the parameter with which rules are traced now."""
    return _shape.get()


@contextlib.contextmanager
def traced_with(sizes: tuple[int, int]) -> Iterator[None]:
    """Trace rules with a parameter of this shape."""
    token = _shape.set(sizes)
    try:
        yield
    finally:
        _shape.reset(token)


_HUGE = 2.0**100  # numbers from here on stand for infinity


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
    with double(), recorded(), jax.disable_jit(False):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    given = jax.tree.leaves(list(formulas), is_leaf=_is_formula)
    wanted = jax.tree.leaves(symbols(out), is_leaf=_is_formula)
    reader = _Reader()
    for v, symbol in reversed(list(zip(closed.jaxpr.outvars, wanted, strict=True))):
        if isinstance(symbol, Symbol) and not hasattr(v, "val") and v not in closed.jaxpr.invars:
            reader.symbols.setdefault(v, symbol)
    found = reader.run(closed, given)
    return Result(jax.tree.unflatten(jax.tree.structure(out), found), out, reader.defined)


def _is_formula(x: Any) -> bool:
    return isinstance(x, Expression)


def decayed(beta: Expression, *, before: bool = False) -> Expression:
    """The product of β over all steps (with ``before``, without this one); βᵗ if β is constant."""
    if not beta.constant:
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
    if change.constant and isinstance(start, Expression):
        return start + change * STEP
    if is_a(new, "sum") and is_a(new.children[0], "cases") and new.children[1:] == (ONE,):
        condition, counted, reset = new.children[0].children
        period = condition.children[1]
        counts = (counted, reset) == (before, ZERO) and condition == (before < period)
        if counts and isinstance(period, Number) and start == ZERO:
            return F.of("mod", STEP - 1, max(math.ceil(period.value), 1)) + 1
    if is_a(new, "min") and isinstance(new.children[1], Number):
        grows = isinstance(change := new.children[0] - before, Number) and change.value > 0
        return F.minimum(start + change * STEP, new.children[1]) if grows else None
    return None


class _Reader:
    """Evaluates a jaxpr on formulas, and remembers how large they are."""

    def __init__(self) -> None:
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
            outputs = (
                None
                if max(map(_size, inputs), default=0) > _LARGEST
                else self.known(equation, inputs)
            )
            if outputs is None:
                symbols = {s: None for y in inputs for s in F.walk(y) if isinstance(s, Symbol)}
                reason = _reason(equation.primitive.name, inputs)
                outputs = [
                    F.of("unknown", *symbols, over=f"{reason}\0{next(_COUNT)}")
                    for _ in equation.outvars
                ]
            for v, x in zip(equation.outvars, outputs, strict=True):
                symbol = self.symbols.get(v)
                if symbol is not None:
                    self.defined[symbol] = x
                known[v] = x if symbol is None else symbol
        return [value(v) for v in jaxpr.outvars]

    def known(self, equation: Any, inputs: list[Any]) -> Sequence[Any] | None:
        """The results of an equation; None if there is no formula for them."""
        name, given = equation.primitive.name, equation.params
        inner = given.get("call_jaxpr") or given.get("jaxpr") or given.get("fun_jaxpr")
        if inner is not None and hasattr(inner, "consts"):
            label = str(given.get("name") or "")
            if label.startswith(PREFIX):
                call = CALLS[int(label.removeprefix(PREFIX))]
                if call.name in NAMED:
                    args, named = filled(call, inputs)
                    found = NAMED[call.name](*args, **named)
                    return found if isinstance(found, tuple) else (found,)
            source = str(getattr(getattr(inner.jaxpr, "debug_info", None), "func_src_info", ""))
            label, _, place = source.partition(" at ")
            if label in DERIVED and place.startswith(_HOME):
                return (DERIVED[label](*inputs[-_arity(equation) :]),)
            if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
                return self.run(inner, inputs)
            return None
        if not inputs or not equation.outvars:
            return None
        x, before, after = inputs[0], equation.invars[0].aval, equation.outvars[0].aval
        if name in SAME:
            return (x,) if isinstance(x, Number) or _is_aligned(name, before, after) else None
        if name == "convert_element_type":
            return _converted(x, before.dtype, after.dtype)
        if name == "integer_pow":
            return (F.power(x, given["y"]),)
        if name == "reduce_sum":
            return _summed(x, given["axes"], before.shape)
        if name in PARTS and isinstance(x, Number):
            return (x,)
        if not math.prod(after.shape or (1,)):
            return (ZERO,)
        is_whole = np.issubdtype(before.dtype, np.integer)
        if is_whole and name in ("max", "min"):
            small = [y for y in inputs if not (isinstance(y, Number) and abs(y.value) >= _COUNTS)]
            if len(small) == 1:
                return small
        if name not in PRIMITIVES or (is_whole and name in ("and", "or", "not", "div", "rem")):
            return None
        if len(after.shape) > 2:
            return None
        try:
            return (PRIMITIVES[name](*inputs),)
        except TypeError:  # more operands than the usual ones
            return None


def _reason(name: str, inputs: Sequence[Any]) -> str:
    """The primitive to name for a result without a formula: the first that is no change of form."""
    before = [z for y in inputs for z in F.walk(y) if is_a(z, "unknown")]
    first = before[0].over.partition("\0")[0] if before else name
    is_form, was_form = (x in SAME or x in PARTS for x in (name, first))
    return name if (was_form and not is_form) or name in ("cond", "while", "scan") else first


_COUNT = itertools.count()
_COUNTS = 2**31 - 2  # whole numbers from here on are limits of counters
_LARGEST = 400  # formulas of more parts are not shown
_HOME = os.path.dirname(os.path.dirname(__file__))


def _size(x: Any) -> int:
    """The number of parts of a formula, at most slightly more than the largest that is shown."""
    return sum(1 for _ in itertools.islice(F.walk(x), _LARGEST + 1)) if x is not None else 0


def _is_aligned(name: str, before: Any, after: Any) -> bool:
    """Whether elements stay at their places, beside axes of length 1."""
    if name not in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
        return True
    small = math.prod(before.shape) == 1
    plain = [tuple(n for n in x.shape if n != 1) for x in (before, after)]
    same = plain[0] == plain[1] or (name == "broadcast_in_dim" and len(plain[0]) < 2)
    return small or (same and len(after.shape) <= 2)


def _converted(x: Expression, before: Any, after: Any) -> Sequence[Any] | None:
    if before == np.bool_:
        return (_as_number(x),) if np.issubdtype(after, np.number) else (x,)
    exact = isinstance(x, Number) or is_a(x, "RN", "SR") or jnp.issubdtype(before, jnp.integer)
    narrows = not jnp.issubdtype(after, jnp.floating) or (
        jnp.finfo(after).bits < jnp.finfo(before).bits if not exact else False
    )
    return (x,) if exact or not narrows else None


def _constant(x: Any) -> Expression:
    """A constant array as a number, if all its elements are equal."""
    values = np.asarray(x)
    if values.dtype == np.bool_ or (
        np.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
    ):
        if values.size and (values == values.flat[0]).all():
            return number(values.flat[0])
        if values.size and np.isnan(values).all():
            return Number(math.nan)
    return F.of("unknown", over=f"constant\0{next(_COUNT)}")


def _arity(equation: Any) -> int:
    return len(equation.invars) - equation.params.get("num_consts", 0)


def _as_number(condition: Expression) -> Expression:
    return condition if isinstance(condition, Number) else F.indicator(condition)


def _summed(x: Expression, axes: Sequence[int], shape: tuple[int, ...]) -> Sequence[Any] | None:
    if x == ZERO or not shape:
        return (x,)
    if isinstance(x, Number) or len(shape) > 2:
        return None
    if is_a(x, "power") and x.children[1] == Number(2.0):
        return (F.norm(x.children[0], _over(axes, shape)) ** 2,)
    return (F.of("total", x, over=_over(axes, shape)),)


def _over(axes: Any, shape: tuple[int, ...] = (0, 0)) -> str:
    """What axes are called: those of the whole array, or their numbers."""
    if label := getattr(axes, "label", ""):
        return label
    if axes is None or len({axes} if isinstance(axes, int) else {*axes}) == len(shape):
        return "array"
    chosen = [axis % len(shape) for axis in ([axes] if isinstance(axes, int) else axes)]
    return f"axis={','.join(map(str, chosen))}"


# Relations


def _relation(name: str) -> Callable[[Any, Any], Expression]:
    def related(x: Expression, y: Expression) -> Expression:
        if is_a(x, "min") and isinstance(y, Number):  # a counter that stops behind the last value
            limit = x.children[1]
            if isinstance(limit, Number) and limit.value > y.value:
                x = x.children[0]
        if name == "≥" and isinstance(y, Number) and is_a(x, "sum") and is_a(x.children[0], "mod"):
            period = Number(float(math.ceil(y.value)))
            if x == F.of("mod", STEP - 1, period) + 1:
                return F.of("mod", STEP, period).equals(0)
        if y == ZERO and is_a(x, "product"):  # products of signs have the signs of products
            first = x.children[0]
            if isinstance(first, Number) and first.value < 0:
                return related_to_zero(name, -x)
            inside = [f.children[0] if is_a(f, "sign") else f for f in x.children]
            x = F.multiply(*inside)
        return F.relation(name, x, y)

    def related_to_zero(name: str, x: Expression) -> Expression:
        if name == "≥":
            return F.relation(name, ZERO, x)
        return _relation({"<": ">", ">": "<"}.get(name, name))(x, ZERO)

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


def _negated(x: Expression) -> Expression:
    if isinstance(x, Number):
        return Number(1 - x.value)
    pairs = {"=": "≠", "≠": "="}
    if is_a(x, *pairs):
        return F.relation(pairs[x.name], *x.children)
    return F.of("not", x)


def _selected(condition: Expression, otherwise: Expression, value: Expression) -> Expression:
    """A choice; one that keeps atan2(0, 0) from being undefined is left out."""
    if value == ONE and is_a(condition, "and") and otherwise.equals(0) in condition.children:
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


def _least(x: Expression, y: Expression) -> Expression:
    """A minimum; min(max(x, −b), b) is a clip."""
    for bound, inside in ((x, y), (y, x)):
        if is_a(inside, "max") and -bound in inside.children and not isinstance(inside, Number):
            one, other = inside.children
            return F.of("clip", other if one == -bound else one, bound)
    return _extreme(F.minimum)(x, y)


def _quotient(x: Expression, y: Expression) -> Expression:
    """A quotient; a sum divided by the number of its terms is a mean."""
    if isinstance(y, Number):
        square = is_a(x, "power") and x.children[1] == Number(2.0)
        part = x.children[0] if square else x
        rows, columns = shape()
        sizes = {"array": rows * columns, "axis=0": rows, "axis=1": columns}
        size = sizes.get(getattr(part, "over", ""))
        if size == y.value and is_a(part, "norm" if square else "total"):
            inside = part.children[0] ** 2 if square else part.children[0]
            return F.mean(inside, _BLOCKS.get(part.over, part.over))
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
PARTS = {"slice", "dynamic_slice", "gather", "transpose", "rev", "concatenate"}
"""Primitives that take some elements, which are all equal in a number."""

PRIMITIVES: Mapping[str, Callable[..., Expression]] = {
    "add": F.add,
    "add_any": F.add,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x**2 if x == y else x * y,
    "div": _quotient,
    "neg": lambda x: -x,
    "max": _extreme(F.maximum),
    "min": _least,
    "clamp": lambda low, x, high: _least(F.maximum(x, low), high),
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
    "rem": functools.partial(F.of, "rem"),
    **{
        name: functools.partial(F.of, name)
        for name in ("tanh", "sin", "cos", "erf", "floor", "round", "atan2")
    },
    "eq": _relation("="),
    "ne": lambda x, y: (
        F.of("isnan", x) if x == y and not isinstance(x, Number) else _relation("≠")(x, y)
    ),
    "not": lambda x: _negated(x),
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
    "orthogonal": lambda x, *rest: F.of("call", x, over="orth(\0)"),
    "scaled_by_shape": lambda x, factor: F.of("call", x, over="scaled_by_shape(\0)"),
    "scaled_to_rms": lambda x, rms: x * (F.expression(rms) / F.rms(x)),
    "rounded": lambda x, dtype: F.of("RN", x) if jnp.finfo(dtype).bits < 32 else x,
    "bits": lambda key, shape, label="": F.of("unknown", over=f"random bits\0{next(_COUNT)}"),
}
