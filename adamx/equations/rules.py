"""Read a stage: the lines of its clocks and slots, and what it makes of the signal."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adamx.equations import formulas as F
from adamx.equations.formulas import PARAM, START, ZERO, Expression, Symbol, is_a, walk
from adamx.equations.reader import SHAPES, Result, base_of, read, shape, solved, traced_with
from adamx.equations.writer import NEW_UPDATE, Recurrence, Writer, plain
from adamx.links.rule import KEY, Clock, Rule, Step
from adamx.links.signal import Signal
from adamx.links.slots import Slot
from adamx.links.stage import Stage

__all__ = ["NotReadable", "RuleReader"]


class NotReadable(Exception):
    """A rule whose equations can't be read, and why."""


LETTERS = {"mu": "m", "nu": "v"}
"""The letters of usual slots; others are called by their own letter, or by their name."""


class RuleReader:
    """Traces the rule of a stage, at the place to which a writer has come."""

    def __init__(self, writer: Writer, link: Stage):
        self.writer, self.definition = writer, link.definition
        self.range = "group" if link.where else ""  # of its sums over parameters
        known = {k: plain(link.arguments[k]) for k in link.definition.domains}
        self.numbers = {
            k: writer.number(k, link.arguments[k]) for k, x in known.items() if x is None
        }
        self.fixed = {**link.arguments, **{k: x for k, x in known.items() if x is not None}}
        is_narrow = link.definition.place == "rounding"  # it acts on parameters of few bits only
        self.dtype = jnp.dtype(jnp.float32 if is_narrow else jnp.float64)
        self.param_dtype = jnp.dtype(jnp.bfloat16) if is_narrow else self.dtype

    def read(self) -> tuple[tuple[Any, ...], dict[str, bool]]:
        """The arguments of :meth:`Writer.stage`, if they depend on no size."""
        taken, found = set(self.writer.taken), []
        for sizes in SHAPES:
            self.writer.taken = set(taken)
            with traced_with(sizes):
                found.append(self.read_once())
        first, other = (_UNKNOWN.sub("", repr(x)) for x in found)
        if first != other:
            raise NotReadable("its numbers depend on the size of the array")
        return found[0]

    def read_once(self) -> tuple[tuple[Any, ...], dict[str, bool]]:
        """The arguments of :meth:`Writer.stage`, with an array of one shape."""
        self.begin()
        slots, readings, reading_shapes, weights = self.clocks()
        totals = self.totals(readings, reading_shapes)
        flags: dict[str, bool] = {}

        def update(rule: Rule, given: Any, kept: Any, clock: Any, total: Any) -> Any:
            own = {
                k: x.of_parameter(clock[k], jnp.uint32(0), "")
                for k, x in rule.clocks.items()
                if x.of_parameter is not None
            }
            step = Step({KEY: clock.get(_BITS), **clock, **own}, total)
            new, kept = rule.update(self.signal(*given), kept, step)
            flags.update(has_statistic=new.has_statistic, step=new.step)
            return new.gradient, new.update, new.bias, new.notes, kept

        (g, u, b, notes, kept), out, defined = self.look(
            update,
            (self.shapes, self.slot_shapes, reading_shapes, totals.shapes),
            (self.formulas, self.before, readings, _mapped(self.over_all, totals.formulas)),
            lambda out: (out[0], NEW_UPDATE, *out[2:4], self.symbols),
        )
        new: Any = defined.get(NEW_UPDATE)
        u = u if new is None else new
        g = F.substitute(g, {NEW_UPDATE: u})
        values = zip(*map(_flat, (self.symbols, kept, self.starts)), strict=True)
        rows: list[Any] = [(s, defined.get(s, new), start) for s, new, start in values]
        # A slot that stays as it is stands for its first value.
        constants = {symbol.before: start for symbol, new, start in rows if new == symbol.before}
        g, u, b, notes = _mapped(lambda x: F.substitute(x, constants), (g, u, b, notes))
        order = list(defined)
        rows.sort(key=lambda row: order.index(row[0]) if row[0] in defined else -1)
        for symbol, new, start in rows:
            if symbol.before not in constants:
                value = F.substitute(new, constants)
                slots.append(Recurrence(symbol, value, start, _weight_of(value, symbol, weights)))
        self.writer.shapes[shape()] = out[3]
        return (slots, u, g, b, notes), flags

    def rule(self, numbers: Mapping[str, Any]) -> Rule:
        """The rule with these hyperparameters; random bits come from a clock like any other."""
        made = self.definition.factory(**{**self.fixed, **numbers})
        rule = made if isinstance(made, Rule) else Rule(lambda s, slots, step: (made(s), slots))
        if any(clock.settle for clock in rule.clocks.values()):
            raise NotReadable("a clock of it depends on a sum over all parameters")
        if rule.reshape is not None:
            raise NotReadable("it turns each matrix into another basis, or back")
        if rule.seed is None:
            return rule
        bits = Clock(lambda: jnp.zeros((), jnp.uint32), lambda key: key, lambda key: key)
        return dataclasses.replace(rule, seed=None, clocks={**rule.clocks, _BITS: bits})

    def look(
        self, function: Any, shapes: Any, formulas: Any, names: Any = lambda out: out
    ) -> Result:
        """What a function of the rule computes, see :func:`~adamx.equations.reader.read`."""
        numbers = dict.fromkeys(self.numbers, jax.ShapeDtypeStruct((), self.dtype))
        return read(
            lambda numbers, given: function(self.rule(numbers), *given),
            [numbers, shapes],
            [self.numbers, formulas],
            names,
        )

    def begin(self) -> None:
        """The first values of slots and clocks, the symbols of slots, and the signal."""
        writer, letters = self.writer, dict[str, str]()

        def start(rule: Rule, param: Any) -> Any:
            letters.update({k: _letter(k, slot) for k, slot in rule.slots.items()})
            return (
                {k: start(param) for k, start in rule.slots.items()},
                {k: clock.start() for k, clock in rule.clocks.items()},
            )

        param = jax.ShapeDtypeStruct(shape(), self.param_dtype)
        starts, shapes, _ = self.look(start, (param,), (START,))
        self.starts, self.clock_starts = starts
        self.slot_shapes, self.clock_shapes = shapes
        self.symbols = {
            k: _mapped(lambda _, k=k: writer.fresh(letters[k]), x) for k, x in self.starts.items()
        }
        self.before = _mapped(lambda symbol: symbol.before, self.symbols)
        array = jax.ShapeDtypeStruct(shape(), self.dtype)
        bias = None if writer.bias is None else jax.ShapeDtypeStruct((), self.dtype)
        self.shapes = (array, array, array, bias, writer.shapes.get(shape(), {}))
        self.formulas = (writer.gradient, writer.update, PARAM, writer.bias, writer.notes)

    def signal(self, g: Any, u: Any, param: Any, bias: Any, notes: Any) -> Signal:
        """The signal at this place."""
        return Signal(
            *(g, u, bias, self.writer.has_statistic, self.writer.step, notes, True),
            _param=param,
            _dtypes=(self.param_dtype, self.param_dtype),
            whole=shape(),
        )

    def clocks(self) -> tuple[list[Recurrence], Any, Any, dict[Expression, Expression]]:
        """The clocks that need lines; all readings and their shapes; and the weights by their β.

        A clock that counts steps or adds logarithms is solved, and needs no line.
        """
        symbols = {k: self.writer.fresh(k[0]) for k in self.clock_starts}
        before = {k: symbol.before for k, symbol in symbols.items()}
        ticked = self.look(
            lambda rule, kept: {k: clock.tick(kept[k]) for k, clock in rule.clocks.items()},
            (self.clock_shapes,),
            (before,),
        ).formulas
        lines: list[Recurrence] = []
        for k, new in ticked.items():
            found = solved(new, before[k], self.clock_starts[k])
            if found is None:
                lines.append(Recurrence(symbols[k], new, self.clock_starts[k]))
            ticked[k] = symbols[k] if found is None else found
        readings, shapes, _ = self.look(
            lambda rule, kept: {k: clock.read(kept[k]) for k, clock in rule.clocks.items()},
            (self.clock_shapes,),
            (ticked,),
        )
        weights = {
            base_of(x): readings[k]
            for k, x in ticked.items()
            if is_a(x, "accumulated") and _is_formula(readings[k])
        }
        is_weight = {*weights.values()}
        symbol_of = self.writer.weight_symbol
        return (
            lines,
            _mapped(lambda x: symbol_of(x) if x in is_weight else x, readings),
            shapes,
            weights,
        )

    def over_all(self, x: Expression) -> Expression:
        """A number of one array, summed over the parameters that the stage applies to."""
        return _over_all(x, self.range)

    def totals(self, readings: Any, shapes: Any) -> Result:
        """The numbers of one array that the rule sums over all parameters."""

        def total(rule: Rule, given: Any, kept: Any, clock: Any) -> Any:
            if rule.global_sum is None:
                return None
            return rule.global_sum(self.signal(*given), kept, Step(clock))

        return self.look(
            total,
            (self.shapes, self.slot_shapes, shapes),
            (self.formulas, self.before, readings),
        )


_BITS = "bits"
_UNKNOWN = re.compile(r"\\x00\d+")  # the numbers of results without a formula


def _letter(name: str, slot: Any) -> str:
    return Slot.of(slot).letter or LETTERS.get(name, name)


def _is_formula(x: Any) -> bool:
    return isinstance(x, Expression)


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(function, tree, is_leaf=_is_formula)


def _flat(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_is_formula)


def _over_all(x: Expression, over: str = "") -> Expression:
    """A number of one array as a sum over many parameters, for sums and squared norms."""
    if x == ZERO:
        return x
    if is_a(x, "total") and x.over == "array":
        return dataclasses.replace(x, over=over)
    if is_a(x, "power") and is_a(x.children[0], "norm") and x.children[0].over == "array":
        return F.power(dataclasses.replace(x.children[0], over=over), x.children[1])
    if is_a(x, "sum"):
        return F.add(*(_over_all(y, over) for y in x.children))
    if is_a(x, "product", "quotient"):
        sums = [y for y in x.children if any(is_a(z, "total", "norm") for z in walk(y))]
        if len(sums) == 1 and not (is_a(x, "quotient") and sums[0] is x.children[1]):
            return F.substitute(x, {sums[0]: _over_all(sums[0], over)})
    raise NotReadable("its sum over all parameters is not a sum over each array")


def _weight_of(
    value: Expression, symbol: Symbol, weights: Mapping[Expression, Expression]
) -> Expression | None:
    """The weight of an average with this new value."""
    if len(weights) == 1:
        return next(iter(weights.values()))
    own = (weight for beta, weight in weights.items() if beta * symbol.before in walk(value))
    return next(own, None)
