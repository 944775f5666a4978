"""The regret of Theorem 4.1 on online convex problems, and where it fails (Section 4).

In every round t, the optimiser chooses θ_t, and then nature reveals a convex f_t. The regret is the
difference between the optimiser's total loss and the total loss of the best fixed point in
hindsight, R(T) = Σ f_t(θ_t) − min_θ Σ f_t(θ). The best point is computed exactly, by a Newton
method of SciPy or in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import adamx
from examples.paper import figures
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.logistic import decayed
from examples.paper.training import double_precision

DIMENSIONS = 5
LAMBDA = 0.9  # λ of β₁λᵗ⁻¹; with the paper's 1 − 10⁻⁸ the bound exceeds 10¹⁴ for any T
RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
FIRST = 100  # the first checkpoint; fewer examples can often be separated without loss
# From Reddi, Kale & Kumar 2018, Theorem 1: β₁ = 0, β₂ = 1/(1 + C²), every third slope is C.
STEEP = 3.0
PERIOD = 3


Season = dict[str, np.ndarray]  # the result of a method in a game, see :func:`season`


class Game(NamedTuple):
    """An online convex problem.

    Attributes:
        name: the name in the figure.
        rows: ``(random, rounds) -> [rounds, d]``, the decisions that nature makes in advance.
        reply: ``(theta, row) -> move``, the move that nature reveals after it has seen θ.
        loss: ``(theta, move) -> scalar``, convex in θ.
        best: ``(rows, moves) -> (theta, loss)``: the minimum of the summed losses, of the rows
            ``[T, d]`` and the summed moves ``[..., d]``.
        start: ``(random) -> theta``.
        b1: β₁.
        b2: β₂.
        box: θ is projected onto [−box, box]ᵈ; None if it stays bounded without projection.
    """

    name: str
    rows: Callable[[np.random.Generator, int], np.ndarray]
    reply: Callable[[jax.Array, jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    best: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Any]]
    start: Callable[[np.random.Generator], np.ndarray]
    b1: float = 0.9
    b2: float = 0.999
    box: float | None = None


def as_decided(theta: jax.Array, row: jax.Array) -> jax.Array:
    return row


# Online logistic regression: f(θ) = log(1 + exp(−z·θ)), z = ± the features


def labelled(random: np.random.Generator, rounds: int) -> np.ndarray:
    """Features in [−1, 1], later ones rarer, multiplied by labels in {−1, 1} of a noisy teacher."""
    frequency = np.geomspace(1.0, 0.1, DIMENSIONS)
    features = random.uniform(-1, 1, (rounds, DIMENSIONS))
    features *= random.random((rounds, DIMENSIONS)) < frequency
    teacher = random.normal(size=DIMENSIONS)
    positive = random.random(rounds) < scipy.special.expit(2 * features @ teacher)
    return np.where(positive, 1.0, -1.0)[:, None] * features


def best_of_logistic(rows: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, Any]:
    def mean(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margins = rows @ theta
        slopes = -scipy.special.expit(-margins)
        return float(np.logaddexp(0, -margins).mean()), slopes @ rows / len(rows)

    def hessian(theta: np.ndarray) -> np.ndarray:
        p = scipy.special.expit(rows @ theta)
        return (rows * (p * (1 - p))[:, None]).T @ rows / len(rows)

    start = np.zeros(rows.shape[1])
    found = scipy.optimize.minimize(
        mean, start, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
    )
    return np.broadcast_to(found.x, moves.shape), len(rows) * found.fun


# Absolute losses with an adversary: f(θ) = Σ wᵢ|θᵢ − zᵢ|, where zᵢ = −sign θᵢ always has the
# opposite sign; a move is the vector of wᵢzᵢ


def weights(random: np.random.Generator, rounds: int) -> np.ndarray:
    """Weights, uniform in [0, 1]; later coordinates are mostly zero."""
    frequency = np.geomspace(1.0, 0.1, DIMENSIONS)
    drawn = random.random((rounds, DIMENSIONS))
    return drawn * (random.random((rounds, DIMENSIONS)) < frequency)


def on_the_other_side(theta: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.where(theta >= 0, -row, row)


def best_of_absolute(rows: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, Any]:
    """The weighted median of points ±1, that is the sign with the larger weight."""
    return np.sign(moves), np.sum(rows.sum(axis=0) - np.abs(moves), axis=-1)


# The counter-example: linear losses f(θ) = cθ on [−1, 1]; c = C once per period, otherwise −1


def slopes(random: np.random.Generator, rounds: int) -> np.ndarray:
    return np.where(np.arange(rounds) % PERIOD == 0, STEEP, -1.0)[:, None]


def best_of_linear(rows: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, Any]:
    return -np.sign(moves), -np.sum(np.abs(moves), axis=-1)


GAMES = [
    Game(
        "logistic regression",
        rows=labelled,
        reply=as_decided,
        loss=lambda theta, move: jax.nn.softplus(-move @ theta),
        best=best_of_logistic,
        start=lambda random: np.zeros(DIMENSIONS),
    ),
    Game(
        "an adversary, |θ − z|",
        rows=weights,
        reply=on_the_other_side,
        loss=lambda theta, move: jnp.sum(jnp.abs(jnp.abs(move) * theta - move)),
        best=best_of_absolute,
        start=lambda random: random.uniform(-1, 1, DIMENSIONS),
    ),
    Game(
        "Reddi's counter-example",
        rows=slopes,
        reply=as_decided,
        loss=lambda theta, move: move @ theta,
        best=best_of_linear,
        start=lambda random: random.uniform(-1, 1, 1),
        b1=0.0,
        b2=1 / (1 + STEEP**2),
        box=1.0,
    ),
]


# Playing


def theorems_adam(rate: Any, game: Game) -> adamx.Transformation:
    """Adam as in Theorem 4.1: α/√t, β₁λᵗ⁻¹, and no ε."""
    return adamx.adam(decayed(rate), first_decay(game), game.b2, eps=0.0)


def theorems_amsgrad(rate: Any, game: Game) -> adamx.Transformation:
    return adamx.amsgrad(decayed(rate), first_decay(game), game.b2, eps=0.0)


METHODS = {
    "Adam": theorems_adam,
    "AMSGrad": theorems_amsgrad,
    "SGD": lambda rate, game: adamx.sgd(decayed(rate)),
}


def first_decay(game: Game) -> Any:
    return lambda count: game.b1 * LAMBDA**count


def play(
    game: Game,
    method: str,
    rates: Any,
    rows: np.ndarray,
    starts: np.ndarray,
    checkpoints: np.ndarray,
) -> dict[str, np.ndarray]:
    """Play all rates with all seeds; return the sums up to every checkpoint.

    Args:
        rates: ``[rates]``.
        rows: ``[seeds, rounds, d]``.
        starts: ``[seeds, d]``.
        checkpoints: numbers of rounds, increasing.

    Returns:
        ``[checkpoints, rates, seeds, ...]`` each: ``paid`` Σ f_t(θ_t), ``moves``, ``squares`` Σ g²,
        ``steepest`` max |g|, ``lowest`` and ``highest`` θ, and for Adam ``second``, v.
    """

    def one(rate: Any, rows: Any, start: Any) -> Any:
        opt = METHODS[method](rate, game)

        def round_(t: Any, carry: Any) -> Any:
            theta, state, seen = carry
            move = game.reply(theta, rows[t])
            loss, gradient = jax.value_and_grad(game.loss)(theta, move)
            updates, state = opt.update(gradient, state, theta)
            seen = {
                "paid": seen["paid"] + loss,
                "moves": seen["moves"] + move,
                "squares": seen["squares"] + gradient**2,
                "steepest": jnp.maximum(seen["steepest"], jnp.abs(gradient)),
                "lowest": jnp.minimum(seen["lowest"], theta),
                "highest": jnp.maximum(seen["highest"], theta),
            }
            theta = adamx.apply_updates(theta, updates)
            return theta if game.box is None else theta.clip(-game.box, game.box), state, seen

        def until(carry: Any, ends: Any) -> Any:
            carry = jax.lax.fori_loop(ends[0], ends[1], round_, carry)
            second = {"second": carry[1]["scale_by_rms"]["nu"]} if method == "Adam" else {}
            return carry, carry[2] | second

        nothing = jnp.zeros_like(start)
        seen = dict.fromkeys(["moves", "squares", "steepest"], nothing)
        seen |= {"paid": jnp.zeros(()), "lowest": start, "highest": start}
        ends = jnp.stack([jnp.append(0, checkpoints[:-1]), jnp.asarray(checkpoints)], axis=1)
        return jax.lax.scan(until, (start, opt.init(start), seen), ends)[1]

    over_seeds = jax.vmap(one, in_axes=(None, 0, 0))
    with double_precision():
        found = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))(
            jnp.asarray(rates), jnp.asarray(rows), jnp.asarray(starts)
        )
        return {name: np.moveaxis(np.asarray(x), 2, 0) for name, x in found.items()}


def regrets(
    game: Game, rows: np.ndarray, seen: dict[str, np.ndarray], checkpoints: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The regrets R(T) ``[checkpoints, rates, seeds]``, and the best fixed points ``[..., d]``."""
    bests, least = np.empty_like(seen["moves"]), np.empty_like(seen["paid"])
    for i, rounds in enumerate(checkpoints):
        for seed, decided in enumerate(rows):
            moves = seen["moves"][i, :, seed]
            bests[i, :, seed], least[i, :, seed] = game.best(decided[:rounds], moves)
    return seen["paid"] - least, bests


def bound(
    game: Game,
    rates: np.ndarray,
    seen: dict[str, np.ndarray],
    bests: np.ndarray,
    checkpoints: np.ndarray,
) -> np.ndarray:
    r"""The right-hand side of Theorem 4.1, with the constants of this run.

    .. math::
        \frac{D^2}{2\alpha(1-\beta_1)} \sum_i \sqrt{T \hat v_{T,i}}
        + \frac{\alpha (1+\beta_1) G_\infty}{(1-\beta_1) \sqrt{1-\beta_2} (1-\gamma)^2}
        \sum_i \|g_{1:T,i}\|_2
        + \sum_i \frac{D_\infty^2 G_\infty \sqrt{1-\beta_2}}{2\alpha(1-\beta_1)(1-\lambda)^2},
        \qquad \gamma = \beta_1^2 / \sqrt{\beta_2}

    D is the diagonal of the box that contains all iterates and the best point, D∞ its longest side,
    and G∞ the largest derivative.
    """
    sides = np.maximum(seen["highest"], bests) - np.minimum(seen["lowest"], bests)
    diameter, longest = np.linalg.norm(sides, axis=-1), sides.max(axis=-1)
    steepest = seen["steepest"].max(axis=-1)
    rounds = checkpoints[:, None, None]
    alpha, b1, b2 = rates[:, None], game.b1, game.b2
    second = seen["second"] / (1 - b2 ** rounds[..., None])
    gamma = b1**2 / np.sqrt(b2)
    distance = diameter**2 / (2 * alpha * (1 - b1)) * np.sqrt(rounds[..., None] * second).sum(-1)
    motion = (
        alpha * (1 + b1) * steepest / ((1 - b1) * np.sqrt(1 - b2) * (1 - gamma) ** 2)
    ) * np.sqrt(seen["squares"]).sum(-1)
    momentum = longest**2 * steepest * np.sqrt(1 - b2) / (2 * alpha * (1 - b1) * (1 - LAMBDA) ** 2)
    return distance + motion + momentum * sides.shape[-1]


def slope(checkpoints: np.ndarray, regret: np.ndarray) -> tuple[float, float]:
    """The exponent of R(T) over the last two decades, and twice its standard error over seeds."""
    late = checkpoints >= checkpoints[-1] / 100
    logs = np.log(np.maximum(regret[late], 1e-300))
    exponents = np.polyfit(np.log(checkpoints[late]), logs, 1)[0]
    return float(exponents.mean()), float(2 * exponents.std(ddof=1) / np.sqrt(len(exponents)))


# The run


def load() -> None:
    """Load no data, because the games generate it."""


def run(lab: Lab, data: None = None) -> Outcome:
    rounds = lab.size.of(quick=10_000, usual=300_000, full=1_000_000)
    seeds = lab.size.of(quick=4, usual=8, full=8)
    checkpoints = np.unique(np.geomspace(FIRST, rounds, 30).round().astype(int))
    games: dict[str, dict[str, Season]] = {}
    for game in GAMES:
        advance = lab.steps(game.name, len(METHODS))
        games[game.name] = {}
        for method in METHODS:
            key = (game.name, method, RATES, LAMBDA, rounds, seeds, DIMENSIONS)
            played = lab.remembered(key, lambda g=game, m=method: season(g, m, seeds, checkpoints))
            games[game.name][method] = played
            advance(regret=float(played["regret"][-1].mean(axis=-1).min()))
    return Outcome(
        title="Regret of online convex optimisation (Theorem 4.1)",
        setting={
            "rounds": rounds,
            "seeds": seeds,
            "coordinates": f"{DIMENSIONS}; one for Reddi's",
            "steps": "α/√t, β₁λᵗ⁻¹ in float64; β₁ = 0.9, β₂ = 0.999, ε = 0",
            "λ": LAMBDA,
            "Reddi's": f"β₁ = 0, β₂ = {1 / (1 + STEEP**2):.3g}, slopes {STEEP:g}, −1, −1, "
            "projected onto [−1, 1]; the other two are not projected. On Reddi's problem, Adam's "
            "best rate is the smallest of the grid; the figure shows Adam with AMSGrad's rate",
            "learning rates tried": RATES,
        },
        rows=[
            row(name, method, played, checkpoints)
            for name, methods in games.items()
            for method, played in methods.items()
        ],
        curves={
            "rounds": checkpoints,
            "games": {name: shown(name, methods) for name, methods in games.items()},
        },
        claims=claims(games, checkpoints),
    )


def season(game: Game, method: str, seeds: int, checkpoints: np.ndarray) -> Season:
    """``regret`` ``[checkpoints, rates, seeds]``, and for Adam the ``bound`` of the theorem."""
    rates = np.array(RATES)
    randoms = [np.random.default_rng(seed) for seed in range(seeds)]
    rows = np.stack([game.rows(random, int(checkpoints[-1])) for random in randoms])
    starts = np.stack([game.start(random) for random in randoms])
    seen = play(game, method, rates, rows, starts, checkpoints)
    regret, bests = regrets(game, rows, seen, checkpoints)
    if method != "Adam":
        return {"regret": regret}
    return {"regret": regret, "bound": bound(game, rates, seen, bests, checkpoints)}


def best_rate(played: Season) -> int:
    """The index of the rate with the smallest final regret, averaged over the seeds."""
    return int(np.argmin(played["regret"][-1].mean(axis=-1)))


def row(name: str, method: str, played: Season, checkpoints: np.ndarray) -> dict[str, Any]:
    best = best_rate(played)
    exponent, error = slope(checkpoints, played["regret"][:, best])
    largest = (played["regret"] / played["bound"]).max() if "bound" in played else None
    return {
        "problem": name,
        "method": method,
        "best learning rate": RATES[best],
        "R(T)": float(played["regret"][-1, best].mean()),
        "R(T)/T": float(played["regret"][-1, best].mean() / checkpoints[-1]),
        "exponent": f"{exponent:.2f} ± {error:.2f}",
        "largest R/bound": "—" if largest is None else f"{largest:.2g}",
        "best at the grid's edge": "yes" if best in (0, len(RATES) - 1) else "no",
    }


def shown(name: str, methods: dict[str, Season]) -> dict[str, Any]:
    """The curves of the figure: the regret of each method with its best rate.

    If Adam's best rate is the smallest of the grid, its curve has AMSGrad's rate instead.
    """
    curves = {}
    for method, played in methods.items():
        unfit = name == GAMES[-1].name and method == "Adam"
        index = best_rate(methods["AMSGrad"] if unfit else played)
        regret = played["regret"][:, index]
        curves[method] = {
            "rate": RATES[index],
            "mean": regret.mean(axis=1),
            "least": regret.min(axis=1),
            "most": regret.max(axis=1),
        }
        if "bound" in played:
            curves[method]["bound"] = played["bound"][:, index].mean(axis=1)
    return curves


def claims(games: dict[str, dict[str, Season]], checkpoints: np.ndarray) -> list[Claim]:
    made = []
    for name, methods in games.items():
        adam = methods["Adam"]
        exponent, error = slope(checkpoints, adam["regret"][:, best_rate(adam)])
        made.append(
            Claim(
                f"Adam's regret is O(√T): {name}",
                "exponent ≤ 0.5",
                f"{exponent:.2f} ± {error:.2f} with the best rate; the last two decades of T",
                exponent - error <= 0.5,
            )
        )
    for name, methods in games.items():
        adam = methods["Adam"]
        ratio = float((adam["regret"] / adam["bound"]).max())
        made.append(
            Claim(
                f"R(T) is below the bound of Theorem 4.1: {name}",
                "R(T)/bound ≤ 1",
                f"at most {ratio:.2g}, over all rates, seeds and T",
                ratio <= 1,
            )
        )
    adam, amsgrad = (games[GAMES[-1].name][method] for method in ("Adam", "AMSGrad"))
    least = float(adam["regret"][-1].min() / checkpoints[-1])
    made.append(
        Claim(
            "R(T)/T → 0 (Corollary 4.2): Reddi's counter-example",
            "for every convex f",
            f"R(T)/T of Adam is at least {least:.3g} with every rate",
            None if checkpoints[-1] < 100_000 else least < 0.01,
        )
    )
    exponent, error = slope(checkpoints, amsgrad["regret"][:, best_rate(amsgrad)])
    made.append(
        Claim(
            "AMSGrad's regret is O(√T) there (Reddi, Kale & Kumar 2018)",
            "exponent ≤ 0.5",
            f"{exponent:.2f} ± {error:.2f} with the best rate",
            exponent - error <= 0.5,
        )
    )
    return made


# The figure


def draw(outcome: Outcome) -> dict[str, Figure]:
    figure, axes = figures.new(10.0, 7.6, nrows=2, ncols=2)
    rounds = np.asarray(outcome.curves["rounds"])
    games = outcome.curves["games"]
    for (name, methods), panel in zip(games.items(), axes.flat, strict=False):
        draw_regret(panel, name, methods, rounds)
    draw_average(axes.flat[-1], games, rounds)
    figure.suptitle(outcome.title)
    return {"regret.png": figure}


# If two lines coincide, both must be visible.
STYLES: dict[str, dict[str, Any]] = {
    "Adam": {"lw": 3.0},
    "AMSGrad": {"lw": 1.5},
    "SGD": {"lw": 1.5, "ls": (0, (4, 3))},
}


def draw_regret(panel: Axes, name: str, methods: dict[str, Any], rounds: np.ndarray) -> None:
    """Plot R(T), its range over the seeds, and the bound for Adam."""
    for method, curve in methods.items():
        colour, label = figures.COLOURS[method], f"{method}, α = {curve['rate']:g}"
        panel.fill_between(rounds, curve["least"], curve["most"], color=colour, alpha=0.15, lw=0)
        panel.plot(rounds, curve["mean"], color=colour, label=label, **STYLES[method])
        if "bound" in curve:
            panel.plot(
                rounds, curve["bound"], color=colour, ls="--", label="its bound, Theorem 4.1"
            )
    panel.plot(rounds, np.sqrt(rounds), color="black", ls=":", lw=1.2, label="√T")
    panel.set(xscale="log", yscale="log")
    figures.tidy(panel, x="rounds T", y="regret R(T)", title=name)
    panel.legend(frameon=False, fontsize=8, loc="upper left")
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend


def draw_average(panel: Axes, games: dict[str, Any], rounds: np.ndarray) -> None:
    """Plot R(T)/T of Adam on every problem, and of AMSGrad on the counter-example."""
    for style, (name, methods) in zip(("-", "--", "-."), games.items(), strict=False):
        for method in ("Adam", "AMSGrad") if name == GAMES[-1].name else ("Adam",):
            mean, colour = np.asarray(methods[method]["mean"]), figures.COLOURS[method]
            panel.plot(rounds, mean / rounds, ls=style, color=colour, label=f"{method}: {name}")
    panel.plot(rounds, 1 / np.sqrt(rounds), color="black", ls=":", lw=1.2, label="1/√T")
    panel.set(xscale="log", yscale="log")
    figures.tidy(panel, x="rounds T", y="average regret R(T)/T", title="does it vanish?")
    panel.legend(frameon=False, fontsize=8, loc="lower left")
