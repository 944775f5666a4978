"""The experiment on regret: its comparators, its bound, its claims, and a run of it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

from examples.paper import regret  # noqa: E402
from examples.paper.lab import Lab, Size  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

LOGISTIC, ADVERSARY, COUNTER = regret.GAMES
CHECKPOINTS = np.array([20, 60])
LOSSES = {
    LOGISTIC: lambda theta, z: np.log1p(np.exp(-z @ theta)),
    ADVERSARY: lambda theta, m: np.sum(np.abs(m) * np.abs(theta - np.sign(m))),
    COUNTER: lambda theta, c: float(c @ theta),
}


def adams_regret(game, rate, rows, theta, rounds):
    """Theorem 4.1's Adam to the letter, its sums, and what it has paid, in NumPy."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    first = 1.0
    seen = SimpleNamespace(paid=0.0, moves=0, thetas=[theta], grads=[], v=None)
    for t in range(1, rounds + 1):
        move = rows[t - 1]
        if game is ADVERSARY:
            move = np.where(theta >= 0, -move, move)
        seen.paid += LOSSES[game](theta, move)
        seen.moves = seen.moves + move
        if game is LOGISTIC:
            gradient = -move / (1 + np.exp(move @ theta))
        elif game is ADVERSARY:
            gradient = np.abs(move) * np.sign(np.abs(move) * theta - move)
        else:
            gradient = move
        b1 = game.b1 * regret.LAMBDA ** (t - 1)
        first *= b1
        m = b1 * m + (1 - b1) * gradient
        v = game.b2 * v + (1 - game.b2) * gradient**2
        seen.v = v / (1 - game.b2**t)
        step = m / (1 - first) / np.sqrt(np.where(seen.v == 0, 1, seen.v))
        seen.thetas.append(theta)
        theta = theta - rate / math.sqrt(t) * step
        theta = theta if game.box is None else np.clip(theta, -game.box, game.box)
        seen.grads.append(gradient)
    return seen


@pytest.mark.parametrize("game", regret.GAMES, ids=lambda game: game.name)
def test_what_is_paid_and_the_bound_are_those_of_the_theorem(game):
    rates, random = np.array([0.1, 1.0]), np.random.default_rng(3)
    rows, start = game.rows(random, 60)[None], game.start(random)[None]
    seen = regret.play(game, "Adam", rates, rows, start, CHECKPOINTS)
    regrets, bests = regret.regrets(game, rows, seen, CHECKPOINTS)
    bound = regret.bound(game, rates, seen, bests, CHECKPOINTS)
    assert regrets.shape == bound.shape == (2, 2, 1)
    for i, rounds in enumerate(CHECKPOINTS):
        for j, rate in enumerate(rates):
            truth = adams_regret(game, rate, rows[0], start[0], rounds)
            assert seen["paid"][i, j, 0] == pytest.approx(truth.paid, rel=1e-9)
            points = np.array([*truth.thetas, bests[i, j, 0]])
            sides, b1, b2 = np.ptp(points, axis=0), game.b1, game.b2
            grads = np.array(truth.grads)
            steepest, gamma = np.abs(grads).max(), b1**2 / math.sqrt(b2)
            expected = (
                np.sum(sides**2) / (2 * rate * (1 - b1)) * np.sqrt(rounds * truth.v).sum()
                + rate
                * (1 + b1)
                * steepest
                / ((1 - b1) * math.sqrt(1 - b2) * (1 - gamma) ** 2)
                * np.linalg.norm(grads, axis=0).sum()
                + len(sides)
                * sides.max() ** 2
                * steepest
                * math.sqrt(1 - b2)
                / (2 * rate * (1 - b1) * (1 - regret.LAMBDA) ** 2)
            )
            assert bound[i, j, 0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("game", regret.GAMES, ids=lambda game: game.name)
def test_no_point_has_a_smaller_loss_than_the_comparator(game):
    random = np.random.default_rng(4)
    rows = game.rows(random, 200)
    moves = rows * random.choice([-1, 1], rows.shape) if game is ADVERSARY else rows

    def loss(theta):
        return sum(LOSSES[game](theta, move) for move in moves)

    best, least = game.best(rows, moves.sum(axis=0))
    assert loss(best) == pytest.approx(least, rel=1e-9)
    for scale in (1e-3, 0.1, 1.0):
        other = best + scale * random.normal(size=best.shape)
        other = other if game.box is None else np.clip(other, -game.box, game.box)
        assert loss(other) >= least - 1e-9


def test_the_exponent_is_that_of_the_last_two_decades():
    rounds = np.geomspace(10, 1e5, 30)
    powers = np.array([0.4, 0.5, 0.6])
    regrets = np.where(rounds[:, None] < 1e3, 5.0, rounds[:, None] ** powers)
    exponent, error = regret.slope(rounds, regrets)
    assert exponent == pytest.approx(0.5)
    assert error == pytest.approx(2 * 0.1 / math.sqrt(3))


def test_adam_fails_on_the_counter_example_and_amsgrad_does_not():
    checkpoints = np.array([3_000, 6_000])
    rates, rows = np.array([0.3]), COUNTER.rows(np.random.default_rng(0), 6_000)[None]
    average = {}
    for method in ("Adam", "AMSGrad"):
        seen = regret.play(COUNTER, method, rates, rows, np.zeros((1, 1)), checkpoints)
        regrets, bests = regret.regrets(COUNTER, rows, seen, checkpoints)
        average[method] = regrets[-1, 0, 0] / 6_000
        if method == "Adam":
            assert regrets[-1] > regret.bound(COUNTER, rates, seen, bests, checkpoints)[-1]
    # A period costs C − 2 at θ = 1 and −(C − 2) at the best point, −1.
    assert average["Adam"] == pytest.approx(2 * (regret.STEEP - 2) / regret.PERIOD, rel=0.05)
    assert average["AMSGrad"] < 0.02


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A lab in which a run takes seconds: few rates, one problem."""
    monkeypatch.setattr(regret, "RATES", [0.1, 0.3, 1.0])
    monkeypatch.setattr(regret, "GAMES", [COUNTER])
    monkeypatch.setattr(regret, "METHODS", {k: regret.METHODS[k] for k in ("Adam", "AMSGrad")})
    size = Size("quick")
    monkeypatch.setattr(Size, "of", lambda self, *, quick, usual, full: min(quick, 1_000))
    return Lab("regret", size, tmp_path, console=Console(quiet=True))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(small, monkeypatch, tmp_path):
    whole = regret.run(Lab("whole", small.size, tmp_path))
    played, season = [], regret.season

    def interrupted(game, method, *rest):
        if played:
            raise KeyboardInterrupt
        played.append(method)
        return season(game, method, *rest)

    monkeypatch.setattr(regret, "season", interrupted)
    with pytest.raises(KeyboardInterrupt):
        regret.run(small)
    monkeypatch.setattr(regret, "season", season)
    outcome = regret.run(small)
    assert outcome.claims == whole.claims and outcome.rows == whole.rows

    small.report(outcome, regret.draw)
    folder = tmp_path / "regret"
    stored = json.loads((folder / "regret.json").read_text(), parse_constant=pytest.fail)
    assert stored["curves"]["rounds"][-1] == 1_000
    assert is_drawn(folder / "regret.png") and not small.unfinished.exists()
    verdicts = {claim["claim"]: claim["holds"] for claim in stored["claims"]}
    assert verdicts[f"Adam's regret is O(√T): {COUNTER.name}"] is False
    assert verdicts["AMSGrad's regret is O(√T) there (Reddi, Kale & Kumar 2018)"] is True
