"""Explain an optimiser: the equations of its stages, one after the other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamx.arguments import closures, hyper
from adamx.equations.formulas import ZERO, Function, Symbol, walk
from adamx.equations.lines import written
from adamx.equations.program import Program
from adamx.equations.reader import Line
from adamx.equations.shown import latex, text
from adamx.errors import described
from adamx.links.foreign import Foreign
from adamx.links.link import Link

__all__ = ["Explanation", "explain"]


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

    lines: Sequence[Line] = ()
    numbers: Mapping[Symbol, Any] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Explanation] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The equations as plain text, one per line."""
        if self.groups:
            return "\n\n".join(f"{name}:\n{part.text}" for name, part in self.groups.items())
        below = [f"{text(symbol)} = {describe(x)}" for symbol, x in self.numbers.items()]
        below += self._remarks
        return "\n".join(self._rows(text) + ([""] if below else []) + below)

    @property
    def latex(self) -> str:
        """The equations as an ``aligned`` environment."""
        rows: list[str] = []
        for name, part in (self.groups or {"": self}).items():
            rows += ["& " + latex.words(f"{name}:")] if name else []
            rows += part._rows(latex)
            rows += [f"{latex(x)} &= {latex.word(describe(y))}" for x, y in part.numbers.items()]
            rows += [rf"& \text{{{remark}}}" for remark in part._remarks]
        return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"

    def _rows(self, show: Any) -> list[str]:
        rows = []
        for line in self.lines:
            first = dataclasses.replace(line.symbol, step="0")
            start = "" if line.start == ZERO else f"{show(first)} = {show(line.start)}"
            beside = [x for x in (start, show.words(line.remark)) if x]
            sign = show.becomes if line.again else show.equals
            row = f"{show(line.symbol)} {sign} {show(line.value)}"
            rows.append(row + "".join(f"{show.space}({x})" for x in beside))
        return rows

    @property
    def _remarks(self) -> list[str]:
        """Notes on the functions in the lines, for example on the range of a norm."""
        parts = [x for line in self.lines for x in walk(line.value) if isinstance(x, Function)]
        seen = {(x.name, x.over) for x in parts}
        return list(dict.fromkeys(remark for kind, remark in _REMARKS.items() if kind in seen))

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex}\n$$"

    _repr_markdown_ = _repr_latex_


_SUMS = "Inner products and 1-norms are over all parameters with this line."
_GROUP = "Norms and sums with the index group are over the parameters of this group."
_REMARKS = {
    ("norm", "group"): _GROUP,
    ("total", "group"): _GROUP,
    ("norm", ""): "Norms without an index are over all parameters with this line.",
    ("norm1", ""): _SUMS,
    ("inner", ""): _SUMS,
    ("norm", "array"): "Norms with the index l are over one array.",
    ("total", "array"): "Sums with the index l are over one array.",
    ("total", ""): "Sums without an index are over all parameters with this line.",
    ("norm", "unit"): "Norms with the index unit are over the weights of one output.",
    ("mean", "array"): "Means are over one array.",
    ("rms", ""): "RMS is the root mean square of one array.",
    ("mean", "row"): "Means are over all elements with the same index of the first axis.",
    ("mean", "column"): "Means are over all elements with the same index of the last axis.",
    ("width", ""): (
        "j is the longest axis of an array, i the second longest, and width the length of i."
    ),
    ("call", "orth(\0)"): (
        "orth keeps the singular vectors of a matrix; its singular values become about 1."
    ),
    ("call", "scaled_by_shape(\0)"): (
        "scaled_by_shape multiplies a matrix by a factor of its shape, see scale_by_shape()."
    ),
    ("RN", ""): "RN rounds to the nearest number of the parameter's dtype.",
    ("SR", ""): "SR rounds at random, without bias, to a number of the parameter's dtype.",
}


def describe(value: Any) -> str:
    """The text for a schedule (with its arguments) or for an array (with its type)."""
    if not callable(value) or isinstance(value, (np.ndarray, jax.Array)):
        return hyper.show(value)
    return f"{closures.call(value)}(t − 1)".replace("()(t", "(t")


def explain(opt: Any) -> Explanation:
    r"""The equations that an optimiser computes in one step.

    The equations are read off the rules of the stages and contain the values of the
    hyperparameters. Schedules, batched arrays and traced numbers appear as symbols, which are
    defined below the equations. A stage that can't be read, or an Optax transformation, appears as
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
    if hasattr(opt, "links"):
        links = opt.settled()
    elif callable(getattr(opt, "init", None)) and callable(getattr(opt, "update", None)):
        links = (Foreign(opt),)
    else:
        raise TypeError(
            f"explain() takes a transformation, got {described(opt)}; call a recipe before you "
            "pass it: explain(adam(1e-3)), not explain(adam)"
        )
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
    found: dict[str, tuple[Link, ...]] = {}
    for row, every in rows.items():
        same = [answers[0][1] for answers in zip(*every, strict=True) if len({*answers}) == 1]
        found[" and ".join(same) or "other parameters"] = tuple(links[i] for i in row)
    return found


def compose(links: Sequence[Link]) -> Explanation:
    """The equations of a sequence of links."""
    program = Program(links)
    lines, names = written(*program.read())
    numbers = {names[x]: value for x, value in program.numbers.items() if x in names}
    return Explanation(lines, numbers)
