"""What an optimiser computes, written down by its stages.

A stage's equations stand below the stage and read like it. They are a function of a
:class:`SymbolicSignal`, which has the vocabulary of the numeric :class:`~adamx.core.Signal`, and
of the stage's arguments: numbers as expressions, the others as they are::

    @in_symbols(scale_by_momentum)
    def _(signal, b1):
        return signal.with_statistic(signal.average("m", b1, of=signal.update))

The signal carries the update both as it is and as it will be once its bias is corrected: Adam's
√v + ε√w is then √v̂ + ε, which no algebra of formulas would have to find out.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamx.core import hyper
from adamx.core.foreign import Foreign
from adamx.core.link import Link
from adamx.core.signal import Signal
from adamx.core.stage import Definition, Stage, joined
from adamx.core.transformation import Transformation
from adamx.errors import StageError, described
from adamx.explain.symbols import (
    PARAM,
    STEP,
    ZERO,
    Call,
    Cases,
    Expression,
    Function,
    Number,
    Quotient,
    Relation,
    Running,
    Symbol,
    cases,
    degree,
    expression,
    latex,
    substitute,
    text,
    walk,
)
from adamx.identity import fingerprint

__all__ = ["Explanation", "Line", "SymbolicSignal", "explain", "in_symbols"]

UPDATE = Symbol("update", lag=None)
"""Where the update goes in what a stage makes of it."""

NEXT_PARAM = Symbol("next parameter", lag=None)
"""The parameter after this step, which is written last."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of an algorithm.

    Attributes:
        symbol: what gets the value.
        value: the formula.
        start: its value before the first step, where that is not 0.
        again: whether the symbol had a value in this step already, which is replaced.
    """

    symbol: Symbol
    value: Expression
    start: Expression = ZERO
    again: bool = False

    def shown(self, show: Any, equals: str, becomes: str) -> str:
        return f"{show(self.symbol)} {becomes if self.again else equals} {show(self.value)}"

    def started(self, show: Any) -> str:
        """The value before the first step, or nothing."""
        index = ",".join(part for part in (self.symbol.index, "0") if part)
        first = dataclasses.replace(self.symbol, lag=None, index=index)
        return "" if self.start == ZERO else f"{show(first)} = {show(self.start)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """An optimiser's update rule as text and LaTeX; what :func:`explain` returns.

    Attributes:
        lines: the equations of one step, in order; symbols are 0 before the first one unless the
            line says otherwise.
        numbers: what stands behind the symbols of schedules, arrays and traced numbers.
        groups: where groups of parameters differ, the explanation of each instead of lines.
    """

    lines: tuple[Line, ...] = ()
    numbers: Mapping[Symbol, Any] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Explanation] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The equations as plain text, a line each."""
        if self.groups:
            parts = [f"{name}:\n{part.text}" for name, part in self.groups.items()]
            return "\n\n".join(parts)
        rows = []
        for line in self.lines:
            start = line.started(text)
            rows.append(line.shown(text, "=", "←") + (f"   ({start})" if start else ""))
        below = [f"{text(symbol)} = {describe(x)}" for symbol, x in self.numbers.items()]
        below += self._remarks
        return "\n".join(rows + ([""] if below else []) + below)

    @property
    def latex(self) -> str:
        """The equations as an ``aligned`` environment."""
        return "\\begin{aligned}\n" + " \\\\\n".join(self._rows) + "\n\\end{aligned}"

    @property
    def _rows(self) -> list[str]:
        rows = []
        for name, part in self.groups.items():
            rows += [rf"& \text{{{latex.escaped(name)}:}}", *part._rows]
        for line in self.lines:
            start = line.started(latex)
            row = line.shown(latex, "&=", r"&\leftarrow")
            rows.append(row + (rf" \qquad ({start})" if start else ""))
        for symbol, x in self.numbers.items():
            rows.append(rf"{latex(symbol)} &= {latex.word(describe(x))}")
        return rows + [rf"& \text{{{remark}}}" for remark in self._remarks]

    @property
    def _remarks(self) -> list[str]:
        """What a norm runs over, where the lines have one."""
        seen = {
            (x.name, x.over)
            for line in self.lines
            for x in walk(line.value)
            if isinstance(x, Function)
        }
        return [remark for kinds, remark in _REMARKS if seen & kinds]

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex}\n$$"

    _repr_markdown_ = _repr_latex_


_REMARKS = [
    ({("norm", "")}, "Norms without an index run over all parameters with this line."),
    (
        {("norm1", ""), ("inner", "")},
        "Inner products and 1-norms run over all parameters with this line.",
    ),
    ({("norm", "array")}, "Norms with the index l run over one array."),
    ({("norm", "unit")}, "Norms with the index unit run over what makes one output."),
    ({("mean", "array")}, "Means run over one array."),
    ({("rms", "")}, "RMS is the root mean square of one array."),
    ({("mean", "row")}, "Means run over what has one index of the first axis."),
    ({("mean", "column")}, "Means run over what has one index of the last axis."),
    ({("mean", "block")}, "Means run over a block of each array."),
    (
        {("width", "")},
        "j is the longest axis of an array, i the second longest, and width the length of i.",
    ),
    ({("RN", "")}, "RN rounds to the nearest number of the parameter's dtype."),
    ({("SR", "")}, "SR rounds up or down in the parameter's dtype, at random, to the right mean."),
]


def describe(value: Any) -> str:
    """A number that is no plain one: a schedule with its arguments, an array by its type."""
    if not callable(value) or isinstance(value, (np.ndarray, jax.Array)):
        return hyper.show(value)
    if isinstance(value, functools.partial):  # jax.tree_util.Partial as well
        known = dict(enumerate(value.args)) | value.keywords
        name = hyper.origin(value.func)
    else:
        captured = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
        known, name = dict(captured), hyper.origin(value)
    shown = [
        hyper.show(x) if isinstance(key, int) else f"{key}={hyper.show(x)}"
        for key, x in known.items()
        if isinstance(x, (bool, int, float, np.ndarray, jax.Array))
    ]
    return f"{name}({', '.join(shown)})(t − 1)" if shown else f"{name}(t − 1)"


LETTERS = {
    "learning_rate": ("α", ""),
    "b1": ("β", "1"),
    "b2": ("β", "2"),
    "b3": ("β", "3"),
    "rho": ("ρ", ""),
    "eps": ("ε", ""),
    "eps_hat": ("ε", "hat"),
    "eps_root": ("ε", "root"),
    "weight_decay": ("λ", ""),
    "momentum": ("μ", ""),
    "momentum_decay": ("ψ", ""),
    "gamma": ("γ", ""),
    "alpha": ("α", ""),
    "decay": ("d", ""),
    "d0": ("d", "0"),
    "d_coef": ("c", ""),
    "growth_rate": ("γ", ""),
    "max_norm": ("c", ""),
    "trust_coefficient": ("η", ""),
    "sync_period": ("k", ""),
    "slow_step_size": ("η", ""),
}


class SymbolicSignal:
    """The gradient and the update as formulas; the lines that lead to them are written on the way.

    The vocabulary of :class:`~adamx.core.Signal`, and :meth:`let` and :meth:`average` in the
    place of slots. What an average falls short by is in :attr:`weights`. :attr:`update` stands
    for the update whatever it is; a formula of it is one of both the update as it is and the
    corrected one.
    """

    update: Expression = UPDATE
    param: Expression = PARAM

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.numbers: dict[Symbol, Any] = {}
        self.weights: dict[Symbol, Expression] = {}
        self.gradient: Expression = Symbol("g")
        self.has_statistic: bool = False
        self.step: bool = False
        self.notes: dict[str, Any] = {}
        self._form: Expression = self.gradient
        self._corrected: Expression | None = None
        self._bias: Expression | None = None
        self.bias_known: bool = True
        self._taken = {Symbol("g"), Symbol("θ"), Symbol("t"), Symbol("f"), Symbol("i")}
        self._hats: dict[Symbol, Expression] = {}
        self._remembered: set[Expression] = set()
        self._recurrences: dict[Any, Symbol] = {}
        self._awaiting: list[Line] = []
        self._name: Expression | None = None
        self.lines.append(Line(Symbol("g"), Function("gradient", (PARAM,))))

    # The vocabulary of the numeric signal

    def with_update(self, update: Expression) -> SymbolicSignal:
        """The update, and the gradient too as long as no statistic was taken, is this."""
        if self.has_statistic:
            return self._shaped(update)
        self._name_if_needed(update)
        value = self._filled(update)
        if not isinstance(value, Symbol) and self.gradient not in self._remembered:
            value = self._assign(self._own_symbol(), value)
        self._change(value)
        self.gradient = value
        return self

    def with_statistic(
        self,
        update: Expression,
        corrected: Expression | None = None,
        weight: Expression | None = None,
    ) -> SymbolicSignal:
        """The update holds a statistic.

        Args:
            update: the new update; an average brings the next two along.
            corrected: what it is once all bias is divided out, in terms of the corrected update.
            weight: the factor that this statistic adds to the bias.
        """
        self.has_statistic = True
        if isinstance(update, Symbol) and update in self.weights:
            weight = self.weights[update]
            corrected = update.hat
            if self._bias is not None:
                self._hats[corrected] = update / (self._bias * weight)
        return self._shaped(update, corrected, weight)

    def corrected(self) -> SymbolicSignal:
        """The bias is divided out of the update."""
        if not self.bias_known:
            self.bias_known = True
            return self.opaque("bias_correction(", ")").without_bias()
        if self._bias is None:
            raise StageError(
                "there is no bias to correct: no average stands in front of it whose bias has not "
                "been corrected already; an update would fail here, too"
            ).within(stage="bias_correction")
        form = self._form / self._bias if self._corrected is None else self._corrected
        self._define_hats(form)
        self._change(form)
        self._bias = self._corrected = None
        return self

    def with_step(self, update: Expression) -> SymbolicSignal:
        """The update is a step."""
        self.step = True
        return self.with_statistic(update)

    def with_notes(self, **notes: Any) -> SymbolicSignal:
        """Something is left for the stages behind."""
        self.notes.update(notes)
        return self

    def note(self, name: str, *, by: str) -> Any:
        """What a stage in front has left."""
        if name not in self.notes:
            raise StageError(f"there is no note {name!r}; put the stage behind {by}")
        return self.notes[name]

    @property
    def snapshot(self) -> tuple[Expression, Expression | None, Expression | None]:
        """The update, corrected, and its bias, as they are here; for :meth:`chosen`."""
        return self._form, self._corrected, self._bias

    def chosen(
        self,
        condition: Relation,
        update: Expression,
        otherwise: tuple[Expression, Expression | None, Expression | None],
    ) -> SymbolicSignal:
        """The update is this where a condition holds, elsewhere what it was at a snapshot."""
        form, corrected, bias = otherwise
        now = None if self._corrected is None else substitute(update, {UPDATE: self._corrected})
        self._change(cases(condition, self._filled(update), form))
        if now is not None and self._bias is not None:
            self._corrected = cases(condition, now, form if corrected is None else corrected)
            self._bias = cases(condition, self._bias, 1 if bias is None else bias)
        return self

    def without_bias(self) -> SymbolicSignal:
        """The update no longer depends on its bias."""
        self._bias = self._corrected = None
        return self

    @property
    def biased(self) -> bool:
        return self._bias is not None or not self.bias_known

    @property
    def next_param(self) -> Expression:
        """The parameter after this step."""
        return NEXT_PARAM

    # What a stage writes

    def let(
        self,
        name: str | Symbol,
        value: Expression | Callable[[Symbol], Expression],
        *,
        start: Any = 0.0,
        weight: Expression | None = None,
    ) -> Symbol:
        """A line of its own.

        Args:
            name: a letter, which gets an index where it is taken; or a symbol from :meth:`fresh`.
            value: the formula, or a function from the symbol's value one step before to it.
            start: the value before the first step.
            weight: how much of an average that started elsewhere than at zero the value is; with
                it, its ``hat`` is the value over the weight.
        """
        start = expression(start)
        formula = value if isinstance(value, Expression) else None
        if isinstance(self._form, Cases) and (formula is None or UPDATE in walk(formula)):
            self.named()
        if callable(value):
            key = self._filled(value(Symbol("itself"))), start
            if isinstance(name, str) and key in self._recurrences:
                return self._recurrences[key]
            symbol = self.fresh(name) if isinstance(name, str) else name
            formula = value(symbol.before)
            self._remembered.add(symbol)
        else:
            key, symbol = None, self.fresh(name) if isinstance(name, str) else name
        assert formula is not None
        self._write(Line(symbol, self._filled(formula), start))
        if weight is not None:
            self._hats[symbol.hat] = symbol / weight
            self.weights[symbol] = weight
        if key is not None:
            self._recurrences[key] = symbol
        return symbol

    def average(self, name: str | Symbol, beta: Expression, of: Expression) -> Symbol:
        """The decaying average βa + (1−β)x, started at zero; its ``hat`` is the corrected one."""
        if not beta.constant and not isinstance(beta, Symbol):
            beta = self.let("β", beta)
        return self.let(name, lambda a: beta * a + (1 - beta) * of, weight=self.weight(beta))

    @staticmethod
    def weight(beta: Expression) -> Expression:
        """1 − Πβ, what an average has seen so far."""
        return 1 - decayed(beta)

    def fresh(
        self, letter: str, index: str = "", lag: int | None = 0, *, accent: str = ""
    ) -> Symbol:
        """A symbol of this letter, told apart from those that have it already."""
        symbol, count = Symbol(letter, index, accent), 1
        while symbol in self._taken:
            count += 1
            other = index + "′" * (count - 1) if index else str(count)
            symbol = Symbol(letter, other, accent)
        self._taken.add(symbol)
        return dataclasses.replace(symbol, lag=lag)

    def named(self) -> SymbolicSignal:
        """The update gets a line, unless it is a symbol already."""
        if isinstance(self._form, Symbol):
            return self
        symbol = self._assign(self._own_symbol(), self._form)
        if not self.has_statistic:
            self.gradient = symbol
        self._change(symbol)
        if self._bias is not None:
            self._hats[symbol.hat] = symbol / self._bias
            self._corrected = symbol.hat
        return self

    @property
    def previous(self) -> Symbol:
        """The update one step before (behind ``named()``)."""
        assert isinstance(self._form, Symbol)
        self._remembered.add(self._form)
        return self._form.before

    def opaque(self, head: str, tail: str) -> SymbolicSignal:
        """The update is ``head update tail``: nothing else is known of it."""
        self.named()
        value = Call(head, self._form, tail)
        symbol = self._assign(self._own_symbol(), value)
        self._change(symbol)
        self._corrected = None
        if not self.has_statistic:
            self.gradient = symbol
        return self

    def number(self, name: str, value: Any) -> Expression:
        """An argument as a number, or as the symbol that stands for it."""
        if (known := _plain(value)) is not None:
            return Number(known)
        lag = 0 if callable(value) else None
        letter, index = LETTERS.get(name, (name, ""))
        accent, index = ("hat", "") if index == "hat" else ("", index)
        key = fingerprint(value)
        for symbol, other in self.numbers.items():
            plain = symbol.index.rstrip("′") if index else symbol.index.strip("0123456789")
            alike = dataclasses.replace(symbol, index=plain) == Symbol(letter, index, accent, lag)
            if alike and fingerprint(other) == key:
                return symbol
        symbol = self.fresh(letter, index, lag, accent=accent)
        self.numbers[symbol] = value
        return symbol

    def finished(self) -> Explanation:
        """The last line, and what waits for it."""
        self._write(Line(Symbol("θ"), PARAM + self._form))
        for line in self._awaiting:
            value = substitute(line.value, {NEXT_PARAM: Symbol("θ")})
            self.lines.append(dataclasses.replace(line, value=value))
        used = {x for line in self.lines for x in walk(line.value)}
        return Explanation(tuple(self.lines), {s: x for s, x in self.numbers.items() if s in used})

    # How

    def _filled(self, formula: Expression) -> Expression:
        return substitute(formula, {UPDATE: self._form})

    def _name_if_needed(self, formula: Expression) -> None:
        """Give the update a line where it is used twice or would stand too deep inside."""
        uses, filled = sum(x == UPDATE for x in walk(formula)), self._filled(formula)
        nested = isinstance(self._form, Cases) and any(
            isinstance(x, Cases) for child in filled.children for x in walk(child)
        )
        if uses > 1 or nested or (uses and _depth(filled) > 2):
            self.named()

    def _shaped(
        self,
        update: Expression,
        corrected: Expression | None = None,
        weight: Expression | None = None,
    ) -> SymbolicSignal:
        self._name_if_needed(update)
        if corrected is None and weight is None and degree(update, UPDATE) == 1:
            corrected = update
        base = self._form if self._bias is None else self._corrected
        after = None if corrected is None or base is None else substitute(corrected, {UPDATE: base})
        self._change(self._filled(update))
        if weight is not None:
            self._bias = weight if self._bias is None else self._bias * weight
        self._corrected = after if self._bias is not None else None
        return self

    def _change(self, form: Expression) -> None:
        """The update is this from now on."""
        for line in self._awaiting:
            value = substitute(line.value, {NEXT_PARAM: PARAM + self._form})
            self.lines.append(dataclasses.replace(line, value=value))
        self._awaiting = []
        self._form = form

    def _own_symbol(self) -> Symbol:
        """What the update (the gradient, in front of a statistic) is called where it is named.

        The name it has had is given anew, unless that value will be needed in the next step.
        """
        name = self._name if self.has_statistic else self.gradient
        if not isinstance(name, Symbol) or name in self._remembered:
            name = self.fresh("u" if self.has_statistic else "g")
        if self.has_statistic:
            self._name = name
        return name

    def _has(self, symbol: Symbol) -> bool:
        return any(line.symbol == symbol for line in self.lines)

    def _assign(self, symbol: Symbol, value: Expression) -> Symbol:
        again = self._has(symbol)
        self._recurrences = {
            key: x for key, x in self._recurrences.items() if symbol not in walk(key[0])
        }
        self._write(Line(symbol, value, again=again))
        return symbol

    def _write(self, line: Line) -> None:
        if NEXT_PARAM in walk(line.value):
            self._awaiting.append(line)
            return
        self._define_hats(line.value)
        self._hats.pop(line.symbol, None)
        self.lines.append(line)

    def _define_hats(self, formula: Expression) -> None:
        used = set(walk(formula))
        for hat in [hat for hat in self._hats if hat in used]:
            self.lines.append(Line(hat, self._hats.pop(hat), again=self._has(hat)))


def decayed(beta: Expression, *, before: bool = False) -> Expression:
    """The product of β over all steps (before this one), βᵗ where it is constant."""
    if isinstance(beta, Symbol) and not beta.constant:  # of one symbol, as average() sees to
        return Running(beta) / beta if before else Running(beta)
    if before:
        return beta ** (STEP - 1)
    return beta if beta == ZERO else beta**STEP


def _plain(value: Any) -> float | None:
    """The number, where it is one and known."""
    if isinstance(value, (int, float)):
        return float(value)
    known = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    if known and value.ndim == 0 and getattr(value, "is_fully_addressable", True):
        return float(str(np.asarray(value)))  # the shortest number that it is
    return None


def _depth(x: Expression) -> int:
    """How many quotients stand inside each other."""
    below = max(map(_depth, x.children), default=0)
    return below + isinstance(x, Quotient)


# Composing


def in_symbols(stage: Callable[..., Any]) -> Callable[[Any], Any]:
    """Register a stage's equations: a function of the signal and the stage's arguments by name.

    >>> from adamx.core import Real, stage
    >>> from adamx.explain.equations import explain, in_symbols
    >>> from adamx.explain.symbols import absolute, sign
    >>> @stage
    ... def power(exponent: Real):
    ...     return lambda s: s.with_update(jnp.sign(s.update) * jnp.abs(s.update) ** exponent)
    >>> @in_symbols(power)
    ... def _(signal, exponent):
    ...     return signal.with_update(sign(signal.update) * absolute(signal.update) ** exponent)
    >>> explain(adamx.chain(power(0.5), adamx.scale_by_learning_rate(0.1)))
    gₜ = ∇f(θₜ₋₁)
    gₜ ← sign(gₜ) |gₜ|^0.5
    θₜ = θₜ₋₁ − 0.1 gₜ
    """

    def register(equations: Any) -> Any:
        stage.definition.equations = equations  # pyright: ignore[reportFunctionMemberAccess]
        return equations

    return register


def explain(opt: Any) -> Explanation:
    r"""Write down what an optimiser computes in one step.

    The equations are composed from those of the stages, with the numbers filled in. A schedule,
    a batched array or a traced number appears as a symbol, and below the equations stands what
    it is. Of a stage without equations, and of a transformation of Optax, there is one line with
    its name.

    Args:
        opt: a :class:`~adamx.Transformation`, or any Optax transformation.

    Returns:
        An :class:`Explanation`: ``print`` shows it as text, a notebook typesets it, ``.latex``
        is its source.

    Raises:
        TypeError: for something that is no transformation.
        StageError: for a chain that could not run, with a bias to correct where there is none.

    >>> print(adamx.explain(adamx.adamw(1e-3)))
    gₜ = ∇f(θₜ₋₁)
    mₜ = 0.9 mₜ₋₁ + 0.1 gₜ
    vₜ = 0.999 vₜ₋₁ + 0.001 gₜ²
    m̂ₜ = mₜ / (1 − 0.9ᵗ)
    v̂ₜ = vₜ / (1 − 0.999ᵗ)
    θₜ = θₜ₋₁ − 0.001 (m̂ₜ / (√v̂ₜ + 1e-08) + 0.01 θₜ₋₁)
    """
    if not hasattr(opt, "links"):
        if not (callable(getattr(opt, "init", None)) and callable(getattr(opt, "update", None))):
            raise TypeError(
                f"explain() takes a transformation, got {described(opt)}; a "
                "recipe is called first: explain(adam(1e-3)), not explain(adam)"
            )
        links = (Foreign(opt),)
    else:
        links = opt.settled()
    rows = groups(links)
    if len(rows) == 1:
        return compose(links)
    return Explanation(groups={name: compose(row) for name, row in rows.items()})


def groups(links: Sequence[Link]) -> dict[str, tuple[Link, ...]]:
    """The row of links of every group of parameters that some links are not for.

    A parameter is in one part of every partition, and inside or outside of every selection. Where
    several of these answers lead to the same row, those in which they differ go without saying.
    """
    chosen = {x.family: x for link in links for x in link.where}
    rows: dict[tuple[int, ...], list[tuple[tuple[Any, str], ...]]] = {}
    for answers in itertools.product(*(x.siblings() for x in chosen.values())):
        here = {around for around, _ in answers}
        row = tuple(i for i, link in enumerate(links) if here.issuperset(link.where))
        rows.setdefault(row, []).append(answers)
    return {_group(answers): tuple(links[i] for i in row) for row, answers in rows.items()}


def _group(rows: Sequence[tuple[tuple[Any, str], ...]]) -> str:
    """The answers that all of these have in common, in words."""
    words = [answers[0][1] for answers in zip(*rows, strict=True) if len({*answers}) == 1]
    return " and ".join(words) or "other parameters"


def compose(links: Sequence[Link]) -> Explanation:
    """The equations of a row of links."""
    signal = SymbolicSignal()
    for link in joined(links):
        if isinstance(link, Foreign):
            signal.opaque(f"{link!r}(", ")")
        elif isinstance(link, Stage):  # an observer changes nothing
            _known(signal, link) if link.definition.equations else _unknown(signal, link)
    return signal.finished()


def _known(signal: SymbolicSignal, link: Stage) -> None:
    equations, domains = link.definition.equations, link.definition.domains
    assert equations is not None
    arguments = {
        name: signal.number(name, x) if name in domains else x for name, x in link.arguments.items()
    }
    equations(signal, **arguments)


def _unknown(signal: SymbolicSignal, link: Stage) -> None:
    """A stage without equations: what it does to the signal is found out by running it."""
    statistic, keeps_bias = _effect(link)
    signal.named()
    signal.has_statistic |= statistic
    arguments = repr(link)[len(link.name) + 1 : -1]
    signal.opaque(f"{link.name}(", f"; {arguments})" if arguments else ")")
    signal.bias_known &= keeps_bias


def _effect(link: Stage) -> tuple[bool, bool]:
    """Whether a stage takes a statistic, and whether it leaves the bias as it is."""
    seen: list[Signal] = []

    def look() -> Any:
        return lambda signal: seen.append(signal) or signal

    def average() -> Any:
        return lambda signal: signal.with_statistic(signal.update, weight=jnp.ones(()))

    def behind(*stages: Stage) -> Signal:
        x = jax.ShapeDtypeStruct((2, 2), jnp.float32)
        opt = Transformation((*stages, Definition(look).bind()))
        jax.eval_shape(lambda x: opt.update(x, opt.init(x), x), x)
        return seen[-1]

    try:
        alone, biased = behind(link.at(0)), behind(Definition(average).bind(), link.at(0))
    except Exception:  # it needs other arrays, or its numbers are a batch
        return True, False
    return alone.has_statistic, alone.bias is None and biased.bias is not None


def _latex(opt: Transformation) -> str | None:
    return explain(opt)._repr_latex_()  # pyright: ignore[reportPrivateUsage]


Transformation.equations = staticmethod(_latex)
