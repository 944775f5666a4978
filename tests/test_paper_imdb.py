"""The experiment on IMDB's reviews: its scores, its cost, its claims, and a run of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

from rich.console import Console  # noqa: E402

from examples import data  # noqa: E402
from examples.paper import imdb  # noqa: E402
from examples.paper.lab import Lab, Size  # noqa: E402
from examples.paper.training import Grid  # noqa: E402
from helpers import is_drawn  # noqa: E402

pytestmark = pytest.mark.slow

WORDS = 12
RATES = {"AdaGrad": [0.0, 0.1, 1e3], "SGDNesterov": [0.0, 1.0, 1e3], "Adam": [0.0, 0.1, 1e3]}


def dense(bags):
    """Which words occur, as a matrix."""
    matrix = np.zeros((len(bags.labels), WORDS))
    for row, (start, end) in enumerate(zip(bags.starts[:-1], bags.starts[1:], strict=True)):
        matrix[row, bags.words[start:end]] = 1
    return matrix


def bags(seed, size=70):
    """Reviews of random words, of which the first praises and the second blames."""
    random = np.random.default_rng(seed)
    labels = np.arange(size) < size // 2
    occurs = random.random((size, WORDS)) < 0.3
    occurs[:, 0], occurs[:, 1] = labels, ~labels
    words = np.nonzero(occurs)[1].astype(np.uint16)
    starts = np.append(0, np.cumsum(occurs.sum(1)))
    return data.Bags(starts, words, np.ones_like(words), labels.astype(np.uint8))


@pytest.fixture
def reviews():
    names = ["good", "bad", *(f"word{i}" for i in range(2, WORDS))]
    return data.Reviews("IMDB", bags(0), bags(1, size=300), names)


def test_costs_and_errors_are_those_of_the_dense_matrix(reviews):
    random = np.random.default_rng(2)
    params = {"weights": random.normal(size=WORDS), "bias": np.array(0.3)}
    problem = imdb.problem(reviews, every=1, dropout=0.0)
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    found = dense(reviews.train) @ params["weights"] + params["bias"]
    chances = 1 / (1 + np.exp(-found))
    right = np.where(reviews.train.labels == 1, chances, 1 - chances)
    expected = -np.log(right).mean() + imdb.L2 / 2 * np.sum(params["weights"] ** 2)
    cost = problem.loss(given, problem.examples, jax.random.key(0))
    np.testing.assert_allclose(cost, expected, rtol=1e-5)

    praised = dense(reviews.test) @ params["weights"] + params["bias"] > 0
    error = problem.measure(given, problem.held_out)["test error"]
    np.testing.assert_allclose(error, np.mean(praised != reviews.test.labels), atol=1e-6)


def test_dropout_keeps_half_of_the_features_and_doubles_them(reviews):
    problem = imdb.problem(reviews, every=1, dropout=0.5)
    words = jnp.zeros((4000, 1), jnp.uint16)  # the word number 0, alone
    for score in (1.0, -2.0):
        params = {"weights": jnp.zeros(WORDS).at[0].set(score), "bias": jnp.zeros(())}
        cost = problem.loss(params, (words, jnp.ones(4000)), jax.random.key(0))
        kept, dropped = np.log1p(np.exp(-2 * score)), np.log(2)
        spread = abs(kept - dropped) / 2 / np.sqrt(4000)
        penalty = imdb.L2 / 2 * score**2
        assert abs(cost - penalty - (kept + dropped) / 2) < 5 * spread


def test_rows_are_filled_up_behind_the_vocabulary(reviews):
    starts, words = np.array([0, 2, 2, 3]), np.array([1, 4, 0], np.uint16)
    rows = imdb.padded(data.Bags(starts, words, np.ones(3), np.zeros(3)), vocabulary=5)
    np.testing.assert_array_equal(rows, [[1, 4], [5, 5], [0, 5]])


def grid(curve, error=0.1, best=1):
    curves = np.stack([curve] * 3, axis=1)
    errors = np.full((len(curve) + 1, 3), error)
    return Grid(np.ones(3), curves, {"test error": errors}, best, None)


def test_claims_are_judged_by_what_they_say():
    slow, fast = grid([0.6, 0.5, 0.4, 0.3]), grid([0.5, 0.3, 0.2, 0.2], error=0.05)
    alike, late = grid([0.6, 0.5, 0.3, 0.204]), grid([0.6, 0.5, 0.4, 0.205])

    def verdicts(tested=1000, **changed):
        of = {"AdaGrad": fast, "SGDNesterov": slow, "Adam": alike, **changed}
        plain = {"AdaGrad": fast, "SGDNesterov": slow, "Adam": slow}
        kinds = {imdb.DROPPED: of, imdb.PLAIN: plain}
        return [claim.holds for claim in imdb.claims(kinds, tested)]

    # AdaGrad with and without dropout; Adam like AdaGrad, before SGD; dropout (0.1 in both).
    assert verdicts() == [True, True, True, True, None]
    assert verdicts(Adam=late) == [True, True, False, False, None]
    assert verdicts(AdaGrad=late) == [False, True, True, True, None]
    assert verdicts(Adam=fast) == [True, True, True, True, True]
    assert verdicts(Adam=fast, tested=100) == [True, True, True, True, None]
    assert verdicts(SGDNesterov=grid(slow.curve, best=2)) == [None, True, True, None, None]
    assert verdicts(Adam=grid([np.nan] * 4)) == [True, True, False, False, None]


def test_run_learns_from_the_words_that_tell(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(imdb, "BATCH", 7)
    monkeypatch.setattr(imdb, "RATES", RATES)
    monkeypatch.delitem(imdb.METHODS, "RMSProp")  # of which nothing is claimed
    monkeypatch.setattr(Size, "of", lambda self, **sizes: min(3, sizes["quick"]))
    lab = Lab("imdb", Size("quick"), tmp_path, console=Console(quiet=True))
    outcome = imdb.run(lab, reviews)

    for kind in imdb.DROPOUT:
        for curve in outcome.curves[kind].values():
            assert len(curve) == 3
            assert np.isfinite(curve).all() and curve[-1] < curve[0] < 1
    assert [row["method"] for row in outcome.rows] == [*imdb.METHODS, *imdb.METHODS]
    assert outcome.setting["most positive words"].startswith("good")
    assert outcome.setting["most negative words"].startswith("bad")

    lab.report(outcome, imdb.draw)
    stored = json.loads((tmp_path / "imdb/imdb.json").read_text())
    assert stored["curves"][imdb.PLAIN]["Adam"] == pytest.approx(
        outcome.curves[imdb.PLAIN]["Adam"].tolist()
    )
    assert is_drawn(tmp_path / "imdb/imdb.png")
