"""Explain an optimiser: compose the equations of its stages."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamx.arguments import closures, hyper
from adamx.equations.formulas import Function, Symbol, walk
from adamx.equations.rules import NotReadable, RuleReader
from adamx.equations.shown import latex, text
from adamx.equations.writer import Line, Writer
from adamx.errors import StageError, described
from adamx.links.foreign import Foreign
from adamx.links.link import Link
from adamx.links.stage import Stage, joined

__all__ = ["Explanation", "explain", "in_symbols"]


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
            beside = [x for x in (line.started(text), line.remark) if x]
            rows.append(line.shown(text, "=", "←") + "".join(f"   ({x})" for x in beside))
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
            remark = rf"\text{{{latex.escaped(line.remark)}}}" if line.remark else ""
            beside = [x for x in (line.started(latex), remark) if x]
            row = line.shown(latex, "&=", r"&\leftarrow")
            rows.append(row + "".join(rf" \qquad ({x})" for x in beside))
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
        seen |= {(name, over.partition("=")[0] + "=") for name, over in seen if "=" in over}
        return [remark for kinds, remark in _REMARKS if seen & kinds]

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex}\n$$"

    _repr_markdown_ = _repr_latex_


_REMARKS = [
    (
        {("norm", "group"), ("total", "group")},
        "Norms and sums with the index group are over the parameters of this group.",
    ),
    ({("norm", "")}, "Norms without an index are over all parameters with this line."),
    (
        {("norm1", ""), ("inner", "")},
        "Inner products and 1-norms are over all parameters with this line.",
    ),
    ({("norm", "array")}, "Norms with the index l are over one array."),
    ({("total", "array")}, "Sums with the index l are over one array."),
    ({("total", "")}, "Sums without an index are over all parameters with this line."),
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
    (
        {("call", "orth(\0)")},
        "orth keeps the singular vectors of a matrix; its singular values become about 1.",
    ),
    (
        {("call", "scaled_by_shape(\0)")},
        "scaled_by_shape multiplies a matrix by a factor of its shape, see scale_by_shape().",
    ),
    ({("RN", "")}, "RN rounds to the nearest number of the parameter's dtype."),
    ({("SR", "")}, "SR rounds at random, without bias, to a number of the parameter's dtype."),
]


def describe(value: Any) -> str:
    """The text for a schedule (with its arguments) or for an array (with its type)."""
    if not callable(value) or isinstance(value, (np.ndarray, jax.Array)):
        return hyper.show(value)
    return f"{closures.call(value)}(t − 1)".replace("()(t", "(t")


def in_symbols(stage: Callable[..., Any]) -> Callable[[Any], Any]:
    """Register the equations of a stage: a function of the signal and the stage's arguments.

    >>> from adamx.core import Real, stage
    >>> from adamx.equations import explain, in_symbols
    >>> from adamx.equations.formulas import absolute, sign
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


def compose(links: Sequence[Link], opaque: Collection[str] = ()) -> Explanation:
    """The equations of a sequence of links; those of these names are lines with their name."""
    writer = Writer()
    for link in joined(links):
        if isinstance(link, Foreign):
            writer.opaque(f"{link!r}(", ")", "Optax transformation; its equations are not known")
        elif isinstance(link, Stage) and link.name in opaque:
            _opaque(writer, link, "a stage behind it changes its step")
        elif isinstance(link, Stage):  # an observer changes nothing
            _explained(writer, link)
    if writer.assumed not in (None, writer.form):
        return compose(links, ("schedule_free",))
    return Explanation(*writer.finish())


def _explained(writer: Writer, link: Stage) -> None:
    """Write the equations of a stage; its name, where they can't be read."""
    if link.definition.equations is not None:
        try:
            _overridden(writer, link)
        except NotImplementedError:
            _opaque(writer, link, "its equations are not written for these arguments")
        return
    taken = writer.taken
    try:
        stage, flags = RuleReader(writer, link).read()
    except Exception as error:
        if isinstance(error, StageError) and writer.is_certain:
            raise error.within(stage=link.name) from None
        writer.taken = taken
        _opaque(writer, link, str(error) if isinstance(error, NotReadable) else _failed(error))
    else:
        writer.stage(*stage, **flags)


def _failed(error: Exception) -> str:
    """Why a stage could not be traced, in one line."""
    first = str(error).strip().partition("\n")[0]
    first = first if len(first) <= 120 else f"{first[:119]}…"
    return f"{type(error).__name__} in tracing it{f': {first}' if first else ''}"


def _opaque(writer: Writer, link: Stage, why: str) -> None:
    """Write a stage as one line with its name."""
    writer.is_certain = False
    arguments = repr(link)[len(link.name) + 1 : -1]
    writer.opaque(f"{link.name}(", f"; {arguments})" if arguments else ")", why)


def _overridden(writer: Writer, link: Stage) -> None:
    domains, equations = link.definition.domains, link.definition.equations
    assert equations is not None
    equations(
        writer, **{k: writer.number(k, x) if k in domains else x for k, x in link.arguments.items()}
    )
