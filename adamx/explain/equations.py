"""The equations of an optimiser, composed from the equations of its stages.

The equations of a stage are a function that is registered below the stage and reads like it. Its
arguments are a :class:`SymbolicSignal`, which has the methods of the numeric
:class:`~adamx.core.Signal`, and the arguments of the stage. Hyperparameters are expressions; other
arguments are passed unchanged::

    @in_symbols(scale_by_momentum)
    def _(signal, b1):
        return signal.with_statistic(signal.average("m", b1, of=signal.update))

The symbolic signal carries two formulas: the update, and the update after the bias correction. For
Adam these contain √v + ε√w and √v̂ + ε. So no algebraic simplification is needed to derive the
second from the first.
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

from adamx.arguments import hyper
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
from adamx.links.foreign import Foreign
from adamx.links.link import Link
from adamx.links.signal import Signal
from adamx.links.stage import Definition, Stage, joined

__all__ = ["Explanation", "Line", "SymbolicSignal", "explain", "in_symbols"]

UPDATE = Symbol("update", lag=None)
"""A placeholder for the update in the formulas of a stage."""

NEXT_PARAM = Symbol("next parameter", lag=None)
"""The parameter after this step. Lines that use it are written after the line of θₜ."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of an algorithm.

    Attributes:
        symbol: the symbol on the left-hand side.
        value: the formula on the right-hand side.
        start: the value of the symbol before the first step.
        again: whether the line replaces an earlier value of the symbol in this step.
    """

    symbol: Symbol
    value: Expression
    start: Expression = ZERO
    again: bool = False

    def shown(self, show: Any, equals: str, becomes: str) -> str:
        return f"{show(self.symbol)} {becomes if self.again else equals} {show(self.value)}"

    def started(self, show: Any) -> str:
        """The value before the first step as text, or an empty string if it is 0."""
        index = ",".join(part for part in (self.symbol.index, "0") if part)
        first = dataclasses.replace(self.symbol, lag=None, index=index)
        return "" if self.start == ZERO else f"{show(first)} = {show(self.start)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """The equations of an optimiser as text and LaTeX; the result of :func:`explain`.

    Attributes:
        lines: the equations of one step, in order. Symbols are 0 before the first step unless
            their line says otherwise.
        numbers: the values of the symbols that represent schedules, arrays and traced numbers.
        groups: if groups of parameters have different equations, the explanation of each group;
            ``lines`` is then empty.
    """

    lines: tuple[Line, ...] = ()
    numbers: Mapping[Symbol, Any] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Explanation] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The equations as plain text, one per line."""
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
        """Notes on the functions in the lines, for example on the range of a norm."""
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
    ({("norm", "")}, "Norms without an index are over all parameters with this line."),
    (
        {("norm1", ""), ("inner", "")},
        "Inner products and 1-norms are over all parameters with this line.",
    ),
    ({("norm", "array")}, "Norms with the index l are over one array."),
    ({("norm", "unit")}, "Norms with the index unit are over the weights of one output."),
    ({("mean", "array")}, "Means are over one array."),
    ({("rms", "")}, "RMS is the root mean square of one array."),
    ({("mean", "row")}, "Means are over all elements with the same index of the first axis."),
    ({("mean", "column")}, "Means are over all elements with the same index of the last axis."),
    ({("mean", "block")}, "Means are over a block of each array."),
    (
        {("width", "")},
        "j is the longest axis of an array, i the second longest, and width the length of i.",
    ),
    ({("RN", "")}, "RN rounds to the nearest number of the parameter's dtype."),
    ({("SR", "")}, "SR rounds at random, without bias, to a number of the parameter's dtype."),
]


def describe(value: Any) -> str:
    """The text for a schedule (with its arguments) or for an array (with its type)."""
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
    """The gradient and the update as formulas; its methods write the lines of the explanation.

    It has the methods of :class:`~adamx.core.Signal`, and :meth:`let` and :meth:`average` in place
    of slots. :attr:`weights` contains the weight of every average. :attr:`update` is a placeholder:
    a formula with it applies both to the update and to the corrected update.
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
        """Replace the update, and the gradient too if no statistic has been computed."""
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
        """Replace the update by a statistic.

        Args:
            update: the new update. If it is an average, the other two arguments are known.
            corrected: the new update after the bias correction, as a formula of the corrected
                update.
            weight: the factor by which this statistic multiplies the bias.
        """
        self.has_statistic = True
        if isinstance(update, Symbol) and update in self.weights:
            weight = self.weights[update]
            corrected = update.hat
            if self._bias is not None:
                self._hats[corrected] = update / (self._bias * weight)
        return self._shaped(update, corrected, weight)

    def corrected(self) -> SymbolicSignal:
        """Divide the update by its bias."""
        if not self.bias_known:
            self.bias_known = True
            return self.opaque("bias_correction(", ")").without_bias()
        if self._bias is None:
            raise StageError(
                "there is no bias to correct: there is no average before this stage, or its bias "
                "is already corrected. update() would fail with the same error"
            ).within(stage="bias_correction")
        form = self._form / self._bias if self._corrected is None else self._corrected
        self._define_hats(form)
        self._change(form)
        self._bias = self._corrected = None
        return self

    def with_step(self, update: Expression) -> SymbolicSignal:
        """Replace the update by a step, and record that a learning rate was applied."""
        self.step = True
        return self.with_statistic(update)

    def with_notes(self, **notes: Any) -> SymbolicSignal:
        """Leave notes (values by name) for later stages."""
        self.notes.update(notes)
        return self

    def note(self, name: str, *, by: str) -> Any:
        """The note that an earlier stage has left."""
        if name not in self.notes:
            raise StageError(f"there is no note {name!r}; put this stage after {by}")
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
        """Forget the bias, because the update does not depend on it."""
        self._bias = self._corrected = None
        return self

    @property
    def biased(self) -> bool:
        return self._bias is not None or not self.bias_known

    @property
    def next_param(self) -> Expression:
        """The parameter after this step."""
        return NEXT_PARAM

    # Methods for the equations of stages

    def let(
        self,
        name: str | Symbol,
        value: Expression | Callable[[Symbol], Expression],
        *,
        start: Any = 0.0,
        weight: Expression | None = None,
    ) -> Symbol:
        """Write a line that defines a symbol.

        Args:
            name: a letter, which gets an index if it is already used; or a symbol from
                :meth:`fresh`.
            value: the formula, or a function from the symbol's previous value to the formula.
            start: the value before the first step.
            weight: the weight of an average. If given, the symbol's ``hat`` is the value divided by
                the weight.
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
        """The decaying average βa + (1−β)x, started at zero; its ``hat`` is bias-corrected."""
        if not beta.constant and not isinstance(beta, Symbol):
            beta = self.let("β", beta)
        return self.let(name, lambda a: beta * a + (1 - beta) * of, weight=self.weight(beta))

    @staticmethod
    def weight(beta: Expression) -> Expression:
        """1 − Πβ, the weight of an average."""
        return 1 - decayed(beta)

    def fresh(
        self, letter: str, index: str = "", lag: int | None = 0, *, accent: str = ""
    ) -> Symbol:
        """A new symbol with this letter, with an index if the letter is already used."""
        symbol, count = Symbol(letter, index, accent), 1
        while symbol in self._taken:
            count += 1
            other = index + "′" * (count - 1) if index else str(count)
            symbol = Symbol(letter, other, accent)
        self._taken.add(symbol)
        return dataclasses.replace(symbol, lag=lag)

    def named(self) -> SymbolicSignal:
        """Write a line that defines the update, unless the update is already a symbol."""
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
        """The update of the previous step; call :meth:`named` first."""
        assert isinstance(self._form, Symbol)
        self._remembered.add(self._form)
        return self._form.before

    def opaque(self, head: str, tail: str) -> SymbolicSignal:
        """Show the new update as ``head update tail``, because its formula is not known."""
        self.named()
        value = Call(head, self._form, tail)
        symbol = self._assign(self._own_symbol(), value)
        self._change(symbol)
        self._corrected = None
        if not self.has_statistic:
            self.gradient = symbol
        return self

    def number(self, name: str, value: Any) -> Expression:
        """An argument as a number, or as a symbol if its value is not a single known number."""
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
        """Write the line of θₜ and the lines that depend on it; return the explanation."""
        self._write(Line(Symbol("θ"), PARAM + self._form))
        for line in self._awaiting:
            value = substitute(line.value, {NEXT_PARAM: Symbol("θ")})
            self.lines.append(dataclasses.replace(line, value=value))
        used = {x for line in self.lines for x in walk(line.value)}
        return Explanation(tuple(self.lines), {s: x for s, x in self.numbers.items() if s in used})

    # Helpers

    def _filled(self, formula: Expression) -> Expression:
        return substitute(formula, {UPDATE: self._form})

    def _name_if_needed(self, formula: Expression) -> None:
        """Write a line for the update if the formula uses it twice or nests it too deeply."""
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
        """Replace the update, after writing the lines that depend on the old one."""
        for line in self._awaiting:
            value = substitute(line.value, {NEXT_PARAM: PARAM + self._form})
            self.lines.append(dataclasses.replace(line, value=value))
        self._awaiting = []
        self._form = form

    def _own_symbol(self) -> Symbol:
        """The symbol for the update (before the first statistic, for the gradient).

        The old symbol is used again, unless the next step needs its value.
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
    """The product of β over all steps (with ``before``, without this one); βᵗ if β is constant."""
    if isinstance(beta, Symbol) and not beta.constant:  # average() makes every such β a symbol
        return Running(beta) / beta if before else Running(beta)
    if before:
        return beta ** (STEP - 1)
    return beta if beta == ZERO else beta**STEP


def _plain(value: Any) -> float | None:
    """The value as a float if it is a single known number, otherwise None."""
    if isinstance(value, (int, float)):
        return float(value)
    known = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    if known and value.ndim == 0 and getattr(value, "is_fully_addressable", True):
        return float(str(np.asarray(value)))  # the shortest decimal that rounds to it
    return None


def _depth(x: Expression) -> int:
    """The nesting depth of quotients."""
    below = max(map(_depth, x.children), default=0)
    return below + isinstance(x, Quotient)


# Composing


def in_symbols(stage: Callable[..., Any]) -> Callable[[Any], Any]:
    """Register the equations of a stage: a function of the signal and the stage's arguments.

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
    r"""The equations that an optimiser computes in one step.

    The equations are composed from the equations of the stages and contain the values of the
    hyperparameters. Schedules, batched arrays and traced numbers appear as symbols, which are
    defined below the equations. A stage without equations, or an Optax transformation, appears as
    one line with its name.

    Args:
        opt: a :class:`~adamx.Transformation`, or any Optax transformation.

    Returns:
        An :class:`Explanation`. ``print`` shows it as text, a notebook typesets it, and ``.latex``
        is the LaTeX source.

    Raises:
        TypeError: if ``opt`` is not a transformation.
        StageError: for a chain that can't run because it corrects a bias that does not exist.

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
                f"explain() takes a transformation, got {described(opt)}; call a recipe before you "
                "pass it: explain(adam(1e-3)), not explain(adam)"
            )
        links = (Foreign(opt),)
    else:
        links = opt.settled()
    rows = groups(links)
    if len(rows) == 1:
        return compose(links)
    return Explanation(groups={name: compose(row) for name, row in rows.items()})


def groups(links: Sequence[Link]) -> dict[str, tuple[Link, ...]]:
    """For every group of parameters, by name, the links that apply to it.

    A parameter is in one part of every partition, and inside or outside of every selection. If
    several combinations of these answers lead to the same links, they form one group. Its name
    contains only the answers that they have in common.
    """
    chosen = {x.family: x for link in links for x in link.where}
    rows: dict[tuple[int, ...], list[tuple[tuple[Any, str], ...]]] = {}
    for answers in itertools.product(*(x.siblings() for x in chosen.values())):
        here = {around for around, _ in answers}
        row = tuple(i for i, link in enumerate(links) if here.issuperset(link.where))
        rows.setdefault(row, []).append(answers)
    return {_group(answers): tuple(links[i] for i in row) for row, answers in rows.items()}


def _group(rows: Sequence[tuple[tuple[Any, str], ...]]) -> str:
    """The name of a group: the answers that all its rows have in common."""
    words = [answers[0][1] for answers in zip(*rows, strict=True) if len({*answers}) == 1]
    return " and ".join(words) or "other parameters"


def compose(links: Sequence[Link]) -> Explanation:
    """The equations of a sequence of links."""
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
    """A stage without equations; running it shows its effect on the statistic and the bias."""
    statistic, keeps_bias = _effect(link)
    signal.named()
    signal.has_statistic |= statistic
    arguments = repr(link)[len(link.name) + 1 : -1]
    signal.opaque(f"{link.name}(", f"; {arguments})" if arguments else ")")
    signal.bias_known &= keeps_bias


def _effect(link: Stage) -> tuple[bool, bool]:
    """Whether a stage computes a statistic, and whether it keeps the bias."""
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
    except Exception:  # it needs arrays of other shapes, or its hyperparameters are a batch
        return True, False
    return alone.has_statistic, alone.bias is None and biased.bias is not None


def _latex(opt: Transformation) -> str | None:
    return explain(opt)._repr_latex_()  # pyright: ignore[reportPrivateUsage]


Transformation.equations = staticmethod(_latex)
