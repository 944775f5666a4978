"""Run the equations of a docstring, step by step, in NumPy.

A docstring's ``.. math::`` blocks are LaTeX. This module reads the part of LaTeX that the
docstrings use, and evaluates it: ``x_t = …`` defines a symbol in terms of symbols of this step and
the one before, ``u \\leftarrow …`` replaces the update, and ``x_1 = …`` holds in the first step
only.
Averages and sums start at 0.
"""

import inspect
import re

import numpy as np

import reference_matrices

__all__ = ["Program", "blocks", "letters"]

SPACING = re.compile(
    r"\\(?:qquad|quad|,|;|!|Big|bigl|bigr|left|right)(?![a-zA-Z])|(?<!\\)&|(?<!\\)\\ (?=\S)"
)
TOKEN = re.compile(
    r"\\(?:text|operatorname|mathrm)\{[^}]*\}|\\begin\{cases\}|\\end\{cases\}|\\\\|\\[a-zA-Z]+"
    r"|\d+(?:\.\d+)?|[a-zA-Z]|\S"
)
GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "epsilon": "ε",
    "eta": "η",
    "theta": "θ",
    "kappa": "κ",
    "lambda": "λ",
    "mu": "μ",
    "rho": "ρ",
    "phi": "φ",
    "psi": "ψ",
    "sigma": "σ",
    "ell": "ℓ",
    "Delta": "Δ",
    "infty": "∞",
    "Theta": "θ",
    "G": "g",
}
SUBSCRIPTS = str.maketrans("₀₁₂₃", "0123")


def blocks(thing):
    """The ``.. math::`` blocks of a docstring, each as one line."""
    lines = inspect.getdoc(thing).splitlines()
    found, inside, indent = [], None, 0
    for line in lines:
        own = len(line) - len(line.lstrip())
        if line.strip().startswith(".. math::"):
            inside, indent = [], own
            found.append(inside)
        elif inside is not None and (not line.strip() or own > indent):
            inside.append(line.strip())
        else:
            inside = None
    return [" ".join(block).strip() for block in found]


def letters(thing):
    """The symbols of the arguments, as the docstring's list of arguments gives them."""
    arguments = r"^    (\w+): (\S{1,3}?)(?=[,.;]| ≥| >| in [\[(])"
    found = {"eps": "ε", "weight_decay": "λ"}
    for name, symbol in re.findall(arguments, inspect.getdoc(thing), re.MULTILINE):
        plain = symbol.translate(SUBSCRIPTS)
        found[name] = plain[0] + ("_" + plain[1:] if plain[1:] else "")
    return found | {"eps_hat": "^ε", "eps_root": "ε_root"}


# Reading: an expression is a function of the environment.


class Reader:
    def __init__(self, latex):
        bars = iter(("\\lvert ", "\\rvert ") * 20)
        latex = re.sub(r"\|", lambda _: next(bars), latex)
        self.tokens = TOKEN.findall(SPACING.sub(" ", latex))
        self.at = 0
        self.names = set()

    @property
    def next(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, token=None):
        found = self.next
        if not found or (token is not None and found != token):
            raise SyntaxError(f"{found!r} where {token!r} belongs, in {' '.join(self.tokens)}")
        self.at += 1
        return found

    def expression(self):
        negative = self.next == "-"
        if negative:
            self.take()
        first = self.term()
        total = (lambda env: -first(env)) if negative else first
        while self.next in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            total = _added(total, sign, self.term())
        return total

    def term(self):
        total = self.factor()
        while True:
            if self.next == "\\bmod":
                self.take()
                total = _remainder(total, self.factor())
            elif self.next in ("\\cdot", "/"):
                divides = self.take() == "/"
                total = _times(total, self.factor(), divides)
            elif self.begins():
                total = _times(total, self.factor(), False)
            else:
                return total

    def begins(self):
        """Whether a factor begins here."""
        found = self.next
        stops = ("\\rVert", "\\rvert", "\\rangle", "\\le", "\\pm", "\\leftarrow", "\\cdot")
        ends = ("\\end{cases}", "\1", "\\\\")
        return bool(found) and found not in (*stops, *ends, *"+-)}],=<>/^_|&")

    def factor(self):
        base = self.base()
        if self.next == "^":
            self.take()
            exponent = self.group()
            return lambda env: np.power(np.asarray(base(env), float), exponent(env))
        return base

    def group(self):
        """An argument: in braces, or one token."""
        if self.next == "{":
            return self.between("{", "}")
        return self.base()

    def between(self, opening, closing):
        self.take(opening)
        inside = self.expression()
        self.take(closing)
        return inside

    def arguments(self):
        """Of a function: in parentheses, or one factor."""
        if self.next != "(":
            return [self.factor()]
        self.take("(")
        found = [self.signed()]
        while self.next == ",":
            self.take()
            found.append(self.signed())
        self.take(")")
        return found

    def signed(self):
        if self.next == "\\pm":
            self.take()
        return self.expression()

    def base(self):
        found = self.next
        if re.fullmatch(r"\d+(\.\d+)?", found):
            value = float(self.take())
            return lambda env: value
        match found:
            case "(":
                return self.between("(", ")")
            case "{":
                return self.between("{", "}")
            case "\\lvert":
                inside = self.between("\\lvert", "\\rvert")
                return lambda env: np.abs(inside(env))
            case "\\lVert":
                of_an_output = self.tokens[self.at + 1 : self.at + 4] == ["u", "_", "j"]
                inside = self.between("\\lVert", "\\rVert")
                if of_an_output:
                    return lambda env: np.sqrt(np.sum(inside(env) ** 2, 0, keepdims=True))
                order = 2
                if self.next == "_":
                    self.take()
                    order = 2 if self.next == "F" else int(self.next)
                    self.take()
                return lambda env: np.sum(np.abs(inside(env)) ** order) ** (1 / order)
            case "\\langle":
                self.take()
                one = self.expression()
                self.take(",")
                other = self.expression()
                self.take("\\rangle")
                return lambda env: np.sum(one(env) * other(env))
            case "\\frac" | "\\tfrac":
                self.take()
                if re.fullmatch(r"\d\d", self.next):  # \tfrac12
                    over, under = map(float, self.take())
                    return lambda env: over / under
                over, under = self.group(), self.group()
                return lambda env: np.divide(over(env), under(env))
            case "\\sqrt":
                self.take()
                inside = self.group()
                return lambda env: np.sqrt(inside(env))
            case "\\log":
                self.take()
                inside = self.factor()
                return lambda env: np.log(inside(env))
            case "\\prod" | "\\sum" | "\\max" if self.tokens[self.at + 1] == "_":
                return self.over_steps(self.take())
            case "\\mathbb":
                self.take()
                self.take("1")
                self.take("[")
                holds = self.relation()
                self.take("]")
                return lambda env: np.float64(holds(env))
            case "\\begin{cases}":
                return self.cases()
        name = re.sub(r"^\\(?:text|operatorname|mathrm)?\{?([^}]*)\}?$", r"\1", found)
        is_called = self.tokens[self.at + 1 :][:2] != ["_", "t"]
        if name in FUNCTIONS and found.startswith("\\") and is_called:
            self.take()
            if name == "mean" and self.next == "_":
                self.take()
                name = f"mean_{self.take()}"
            function, arguments = FUNCTIONS[name], self.arguments()
            return lambda env: function(*(x(env) for x in arguments))
        return self.symbol()

    def over_steps(self, what):
        """A product, a sum or a maximum over all steps up to this one (or the next)."""
        self.take("_")
        self.subscript()
        ahead = False
        if self.next == "^":
            self.take()
            ahead = self.subscript() == "t+1"
        inside = self.factor()
        combine = {"\\prod": np.multiply, "\\sum": np.add, "\\max": np.maximum}[what]

        def value(env):
            return env.over_steps(inside, combine, ahead)

        return value

    def relation(self):
        left = self.expression()
        sign = self.take()
        right = self.expression()
        compare = {"<": np.less, ">": np.greater, "=": np.equal}[sign]
        return lambda env: compare(left(env), right(env))

    def cases(self):
        self.take("\\begin{cases}")
        rows = []
        while self.next != "\\end{cases}":
            value = self.expression()
            self.take("\1")
            if self.next.startswith("\\text"):
                self.take()
                condition = None
            else:
                condition = self.relation()
            rows.append((value, condition))
            if self.next == "\\\\":
                self.take()
        self.take("\\end{cases}")
        (value, condition), (otherwise, _) = rows
        return lambda env: np.where(condition(env), value(env), otherwise(env))

    def subscript(self):
        """What stands behind _ or ^, as plain text."""
        if self.next != "{":
            return _plain(self.take())
        self.take()
        found, depth = "", 1
        while depth:
            token = self.take()
            depth += (token == "{") - (token == "}")
            found += _plain(token) if depth else ""
        return found

    def symbol(self):
        name, lag = self.name()
        self.names.add(name)
        return lambda env: env.value(name, lag)

    def name(self):
        """A symbol's name, and the step of which it is: ``"t"``, ``"t-1"``, ``"1"`` or empty."""
        accent = {"\\hat": "^", "\\bar": "¯", "\\tilde": "~"}.get(self.next, "")
        if accent:
            self.take()
        braced = accent and self.next == "{"
        if braced:
            self.take("{")
        letter = _plain(self.take())
        if braced:
            self.take("}")
        if len(letter) != 1 and letter not in ("RMS", "bias"):
            raise SyntaxError(f"{letter!r} is no symbol, in {' '.join(self.tokens)}")
        index = ""
        if self.next == "_":
            self.take()
            index = self.subscript()
        if index in ("i", "j", "ij") and letter in "θu":  # an element, or a vector of them
            index = ""
        *kept, last = re.sub(r"^(t|t-1),(i|j|ij)$", r"\1", index).split(",")
        if re.fullmatch(r"t|t-1|t\+1|i", last) or (
            not kept
            and last in ("0", "1")
            and not ((letter in "βd" and last == "1") or (letter == "d" and last == "0"))
        ):
            lag = last
        else:
            kept, lag = [*kept, last] if last else kept, ""
        if letter == "d" and index == "1":
            kept, lag = [], "1"
        return accent + letter + ("_" + ",".join(kept) if kept else ""), lag


def _plain(token):
    token = re.sub(r"^\\(?:text|operatorname|mathrm)\{(.*)\}$", r"\1", token).removeprefix("\\")
    return GREEK.get(token, token)


def _added(one, sign, other):
    return lambda env: one(env) + sign * other(env)


def _times(one, other, divides):
    if divides:
        return lambda env: np.divide(one(env), other(env))
    return lambda env: one(env) * other(env)


def _remainder(one, other):
    return lambda env: np.mod(one(env), other(env))


FUNCTIONS = {
    "min": np.minimum,
    "max": np.maximum,
    "sign": np.sign,
    "atan2": np.arctan2,
    "clip": lambda x, bound: np.clip(x, -bound, bound),
    "mean": np.mean,
    "mean_\\text{block}": np.mean,
    "mean_i": lambda x: np.mean(x, axis=0, keepdims=True),
    "mean_j": lambda x: np.mean(x, axis=1, keepdims=True),
    "RMS": lambda x: np.sqrt(np.mean(x**2)),
    "orth": reference_matrices.newton_schulz,
    "RN": np.float64,
    "SR": np.float64,
}


class Program:
    """The equations of a docstring.

    Args:
        latex: the blocks of equations.
        usual: definitions of symbols that the docstring may use without defining them.

    Attributes:
        names: the symbols that are used.
    """

    def __init__(self, latex, usual=()):
        self.names, self.first, self.starts, self.arrows = set(), {}, {}, []
        self.definitions, self.usual, self.betas = {}, {}, {}
        for row in usual:
            name, _, _, value = self.read(row)
            self.usual[name] = value
        self.names = set()
        for block in latex:
            for row in re.split(r",?\s*\\qquad|,?\s*\\quad|,\s*&|\\\\", _flat(block)):
                if row.strip(" ,&") and r"\nabla" not in row:
                    self.add(*self.read(row))

    def read(self, row):
        reader = Reader(row.replace("\0", r"\\").strip(" ,"))
        name, lag = reader.name()
        sign = reader.take()
        value = reader.expression()
        if reader.next:
            raise SyntaxError(f"{reader.next!r} is left over in {row!r}")
        self.names |= reader.names
        if beta := re.search(r"= *\\beta_(\d)", row):
            self.betas[name] = f"β_{beta[1]}"
        return name, lag, sign, value

    def add(self, name, lag, sign, value):
        if sign == "\\leftarrow":
            self.arrows.append((name, value))
        else:
            assert sign == "=", sign
            {"1": self.first, "0": self.starts}.get(lag, self.definitions)[name] = value

    def begin(self, numbers, theta):
        """Begin with these hyperparameters, by symbol, and this parameter."""
        self.numbers, self.theta, self.start = numbers, theta, theta
        self.t, self.before, self.now, self.totals = 0, {}, {}, {}
        self.now_is = None  # the present step, while a value of the next one is computed

    def step(self, gradient, update=None):
        """The parameter and the update after a step."""
        self.t += 1
        self.now = {"g": gradient}
        if self.arrows or "u" not in self.definitions:
            self.now["u"] = gradient if update is None else update
        self.input = dict(self.now)
        for name, value in self.arrows:
            self.now[name] = value(self)
        if [name for name, _ in self.arrows] == ["g"]:  # in front of the first statistic
            self.now["u"] = self.now["g"]
        for name in [*self.definitions]:
            self.value(name, "t")
        self.before, self.input_before = self.now, self.input
        stepped = self.theta + self.now["u"] if self.arrows else self.theta
        self.theta = self.now.get("θ", self.now.get("y", stepped))
        return self.theta, self.now.get("u")

    def value(self, name, lag):
        if name == "t":
            return float(self.t)
        if lag == "t+1":
            return self.in_next_step(lambda env: env.value(name, "t"))
        if name in self.numbers and not (lag in ("t", "i") and name in self.definitions):
            return self.numbers[name]
        if name in ("θ", "y") and (lag == "t-1" or (lag == "" and name not in self.definitions)):
            return self.theta
        if (name, lag) == ("θ", "0"):
            return self.start
        if lag == "t-1":
            if self.t == 1:
                return self.first_value(name)
            return self.input_before[name] if name == "g" else self.before[name]
        if lag == "t" and name in self.input and name not in self.definitions:
            return self.input[name]
        if name not in self.now:
            first = self.first.get(name) if self.t == 1 else None
            if first is None and name not in self.definitions:
                if name == "^u":
                    return self.value("u", lag)
                if name.startswith("^") and name not in self.usual:
                    return self.corrected(name[1:])
                self.definitions[name] = self.usual[name]
            self.now[name] = (first or self.definitions[name])(self)
        return self.now[name]

    def first_value(self, name):
        """The value before the first step."""
        start = self.starts.get(name)
        return self.numbers.get(f"{name}_0", 0.0) if start is None else start(self)

    def corrected(self, name):
        """x̂ without a definition: the average x, divided by its weight."""
        return self.value(name, "t") / (1 - self.value(self.betas[name], "") ** self.t)

    def in_next_step(self, function):
        """A value of the next step, of symbols that depend on t only."""
        here = self.t, self.now, self.now_is
        self.t, self.now, self.now_is = self.t + 1, {}, here
        try:
            return function(self)
        finally:
            self.t, self.now, self.now_is = here

    def over_steps(self, inside, combine, ahead):
        """The values of all steps, combined; they are remembered from step to step."""
        if ahead:
            return combine(self.over_steps(inside, combine, False), self.in_next_step(inside))
        if self.now_is is not None:
            value, there = inside(self), (self.t, self.now, self.now_is)
            self.t, self.now, self.now_is = self.now_is
            total = self.over_steps(inside, combine, False)
            self.t, self.now, self.now_is = there
            return combine(total, value)
        done, total = self.totals.get(id(inside), (0, None))
        if done < self.t:
            now = inside(self)
            total = now if total is None else combine(total, now)
            self.totals[id(inside)] = self.t, total
        return total


def _flat(block):
    """A block in which the rows of cases are no rows of equations."""
    inside = r"\\begin\{cases\}.*?\\end\{cases\}"
    return re.sub(inside, lambda x: x[0].replace(r"\\", "\0").replace("&", "\1"), block)
