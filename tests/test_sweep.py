"""A sweep: each member is its own single run, compiled once, and the tables and pictures of it."""

import copy
import json
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.tools.learning_rate import find_learning_rate
from adamx.tools.sweep import sweep

pytestmark = pytest.mark.sampled

RATES = (1e-3, 1e-2, 1e-1, 0.5)
CURVATURE = jnp.array([1.0, 3.0, 10.0])
START = jnp.array([1.0, -2.0, 0.5])
STEPS = 60


def descend(opt, start=START):
    """The losses on a convex quadratic."""

    def loss(x):
        return 0.5 * jnp.sum(CURVATURE * x * x)

    def step(carry, _):
        x, state = carry
        value, gradient = jax.value_and_grad(loss)(x)
        updates, state = opt.update(gradient, state, x)
        return (adamx.apply_updates(x, updates), state), value

    return jax.lax.scan(step, (start, opt.init(start)), length=STEPS)[1]


def from_key(opt, key):
    return descend(opt, jax.random.normal(key, (3,)))


def level(opt):
    """No training at all: what is returned is known beforehand."""
    del opt
    return jnp.float32(1.0)


def rate_of(opt):
    return adamx.hyperparams(opt)["learning_rate"]


def squared(opt):
    """A run whose score is (rate − 3)², and not finite for a rate above 100."""
    rate = jnp.asarray(rate_of(opt), jnp.float32)
    return jnp.where(rate > 100, jnp.nan, (rate - 3) ** 2)


def alone(opt, *args):
    """The single run of an optimiser, its numbers as exact as it has them."""
    return np.asarray(jax.jit(lambda: descend(opt, *args))())


# Each member is its own single run


@pytest.mark.parametrize("chunk", [None, 100, 3, 1])
def test_a_swept_member_is_its_own_single_run(chunk):
    members = [adamx.adam(rate) for rate in RATES]
    result = sweep(descend, members, chunk=chunk)
    assert result.outputs.shape == (len(RATES), STEPS)
    for opt, curve in zip(members, result.outputs, strict=True):
        np.testing.assert_allclose(curve, alone(opt), rtol=1e-6)


def test_a_swept_decay_rate_is_the_float32_number():
    decays = (0.5, 0.9, 0.999)
    result = sweep(descend, [adamx.adam(0.01, b2=b2) for b2 in decays])
    assert list(result.coordinates) == ["b2"]
    for b2, curve in zip(decays, result.outputs, strict=True):
        np.testing.assert_allclose(curve, alone(adamx.adam(0.01, b2=jnp.float32(b2))), rtol=1e-6)


def test_what_members_share_keeps_its_double_precision():
    """1 − 0.99999 from a float32 is another β: 1.0014e-5."""

    def complement(opt):
        return jnp.float32(1 - adamx.hyperparams(opt)["b2"])

    exact = sweep(complement, [adamx.adam(rate, b2=0.99999) for rate in RATES])
    np.testing.assert_array_equal(exact.outputs, np.float32(1 - 0.99999))
    exact = sweep(complement, adamx.adam(jnp.array(RATES), b2=0.99999))
    np.testing.assert_array_equal(exact.outputs, np.float32(1 - 0.99999))
    rounded = sweep(complement, jax.vmap(lambda rate: adamx.adam(rate, b2=0.99999))(jnp.ones(2)))
    np.testing.assert_array_equal(rounded.outputs, np.float32(1) - np.float32(0.99999))


@pytest.fixture(scope="module")
def on_digits():
    pytest.importorskip("sklearn")
    from examples import data

    digits = data.load_digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    order = np.random.default_rng(0).permutation(len(images))[: 20 * 64].reshape(20, 64)
    layers = jax.random.split(jax.random.key(0), 2)
    start = [0.1 * jax.random.normal(layers[0], (64, 32)), jnp.zeros((32, 10))]

    def loss(params, batch):
        hidden = jax.nn.relu(images[batch] @ params[0])
        logits = hidden @ params[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def train(opt):
        def step(carry, batch):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, batch)
            updates, state = opt.update(gradient, state, params)
            return (adamx.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (start, opt.init(start)), jnp.asarray(order, jnp.int32))[1]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 100])
def test_a_perceptron_on_digits_learns_as_it_does_alone(on_digits, chunk):
    members = [adamx.adam(rate) for rate in (1e-4, 1e-3, 1e-2)]
    result = sweep(on_digits, members, chunk=chunk)
    for opt, curve in zip(members, result.outputs, strict=True):
        single = np.asarray(jax.jit(lambda opt=opt: on_digits(opt))())
        np.testing.assert_allclose(curve, single, rtol=1e-6)
    assert result.outputs[2, -1] < 0.8 * result.outputs[2, 0]


# What is compiled


def test_a_structure_is_traced_once_however_many_chunks():
    traced = []

    def train(opt, key):
        traced.append(opt)
        return from_key(opt, key)

    sweep(train, adamx.adam(jnp.array(RATES)), seeds=3, chunk=5)
    assert len(traced) == 1
    sweep(train, [adamx.adam(1e-3), adamx.sgd(0.1), adamx.adam(1e-2)], seeds=2, chunk=3)
    assert len(traced) == 3


def test_an_equal_schedule_is_one_structure_and_another_is_another():
    traced = []

    def train(opt):
        traced.append(opt)
        return descend(opt)

    halving = [optax.exponential_decay(0.1, steps, 0.5) for steps in (10, 10, 20)]
    members = [
        adamx.adam(schedule, b1=b1) for schedule, b1 in zip(halving, (0.5, 0.9, 0.5), strict=True)
    ]
    result = sweep(train, members)
    assert len(traced) == 2
    np.testing.assert_allclose(result.outputs[2], alone(members[2]), rtol=1e-6)
    np.testing.assert_array_equal(result.coordinates["b1"], (0.5, 0.9, 0.5))


def test_the_numbers_of_a_schedule_that_is_a_tree_are_swept_too():
    def decaying(half_life, rate, t):
        return rate * 0.5 ** (t / half_life)

    members = [
        adamx.sgd(jax.tree_util.Partial(decaying, half_life, 0.1)) for half_life in (5.0, 50.0)
    ]
    result = sweep(descend, members)
    (name,) = result.coordinates
    assert name.startswith("learning_rate[")
    for opt, curve in zip(members, result.outputs, strict=True):
        np.testing.assert_allclose(curve, alone(opt), rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 4, 7, 100])  # of ten runs
def test_chunks_change_nothing_and_padding_is_dropped(chunk):
    def train(opt, key):
        return {"rate": rate_of(opt), "drawn": jax.random.normal(key, (2,))}

    rates = np.array([3.0, 1.0, 2.0, 5.0, 4.0], np.float32)
    seeds = [5, 0]
    result = sweep(
        train, adamx.sgd(rates), seeds, chunk=chunk, score=lambda out: out["rate"], progress=False
    )
    drawn = [jax.random.normal(jax.random.key(seed), (2,)) for seed in seeds]
    np.testing.assert_array_equal(result.outputs["rate"], np.repeat(rates[:, None], 2, axis=1))
    np.testing.assert_array_equal(result.outputs["drawn"], np.stack([drawn] * 5))
    assert result.seeds == (5, 0)


def test_members_of_several_structures_come_back_in_their_order():
    members = {
        "a": adamx.adam(0.1),
        "b": adamx.sgd(0.1),
        "c": adamx.adam(0.01),
        "d": adamx.sgd(0.05, momentum=0.5),
        "e": adamx.sgd(0.02),
    }
    result = sweep(descend, members, chunk=2)
    assert result.names == tuple("abcde")
    assert result.optimisers == tuple(members.values())
    for opt, curve in zip(members.values(), result.outputs, strict=True):
        np.testing.assert_allclose(curve, alone(opt), rtol=1e-6)


def test_equal_members_and_a_single_one_are_run_as_given():
    result = sweep(descend, [adamx.sgd(0.1)] * 2)
    np.testing.assert_array_equal(result.outputs[0], result.outputs[1])
    assert result.names == ("#0", "#1") and result.coordinates == {}
    assert sweep(from_key, adamx.sgd(0.1), seeds=3).outputs.shape == (1, 3, STEPS)


@pytest.mark.parametrize(
    "seeds",
    [
        3,
        [0, 1, 2],
        np.arange(3),
        jnp.stack([jax.random.key(seed) for seed in range(3)]),
        jnp.stack([jax.random.PRNGKey(seed) for seed in range(3)]),
    ],
    ids=["count", "list", "array", "keys", "raw keys"],
)
def test_seeds_may_be_counted_listed_or_keys(seeds):
    result = sweep(from_key, adamx.sgd(jnp.array([0.01, 0.1])), seeds)
    assert result.seeds == (0, 1, 2)
    start = jax.random.normal(jax.random.key(2), (3,))
    np.testing.assert_allclose(result.outputs[1, 2], alone(adamx.sgd(0.1), start), rtol=1e-6)


# Members, axes, names


def test_the_axes_are_the_numbers_that_differ():
    grid = [adamx.adamw(rate, b1=b1, weight_decay=0.1) for rate in (0.1, 0.2) for b1 in (0.5, 0.9)]
    result = sweep(level, grid)
    assert set(result.coordinates) == {"b1", "learning_rate"}
    np.testing.assert_array_equal(result.coordinates["b1"], [0.5, 0.9, 0.5, 0.9])
    np.testing.assert_array_equal(result.coordinates["learning_rate"], [0.1, 0.1, 0.2, 0.2])
    assert result.names[1] == "b1=0.9, learning_rate=0.1"


def test_an_argument_of_two_stages_is_named_by_its_stage():
    members = [adamx.chain(adamx.scale_by_momentum(b1), adamx.adam(0.1)) for b1 in (0.5, 0.9)]
    assert list(sweep(level, members).coordinates) == ["scale_by_momentum.b1"]


def test_an_argument_of_two_groups_is_named_by_its_group():
    members = [
        adamx.partition({"kernel": adamx.sgd(rate), "*": adamx.sgd(0.1)}) for rate in (0.5, 0.9)
    ]
    assert list(sweep(level, members).coordinates) == ["learning_rate@kernel"]


def test_a_member_without_a_number_has_none():
    members = [adamx.adam(0.1, b1=0.5), adamx.adam(0.1, b1=0.9), adamx.sgd(0.1)]
    result = sweep(level, members)
    np.testing.assert_array_equal(result.coordinates["b1"], [0.5, 0.9, np.nan])
    assert result.names == ("#0", "#1", "#2")
    assert str(result).splitlines()[-1].split() == ["#2", "–", "1.000"]


def test_a_batch_is_its_members():
    batch = jax.vmap(adamx.adam)(jnp.array([0.1, 0.2]))
    result = sweep(level, batch)
    assert list(result.coordinates) == ["learning_rate"]
    assert result.optimisers[1] == jax.tree.map(lambda x: x[1], batch)
    exact = sweep(level, adamx.adam(np.array([0.1, 0.2])))
    assert exact.optimisers == (adamx.adam(0.1), adamx.adam(0.2))


# Scores


def test_the_best_is_the_least_or_the_greatest_and_never_what_diverged():
    members = [adamx.sgd(rate) for rate in (1.0, 200.0, 3.5, 10.0, np.e)]
    result = sweep(squared, members)
    expected = [4.0, np.nan, 0.25, 49.0, (np.e - 3) ** 2]
    np.testing.assert_allclose(result.scores, expected, rtol=1e-5)
    assert (result.best.index, result.best.optimiser) == (4, members[4])
    assert result.best.coordinates == {"learning_rate": np.e}
    np.testing.assert_allclose(result.best.score, (np.e - 3) ** 2, rtol=1e-5)
    assert sweep(squared, members, mode="max").best.index == 3


def test_the_score_is_the_mean_over_seeds_and_one_that_diverged_counts():
    def train(opt, key):
        drawn = jax.random.uniform(key)
        return jnp.where((drawn < 0.5) & (rate_of(opt) > 1), jnp.inf, drawn)

    drawn = [float(jax.random.uniform(jax.random.key(seed))) for seed in range(4)]
    assert min(drawn) < 0.5 < max(drawn)
    result = sweep(train, [adamx.sgd(0.5), adamx.sgd(2.0)], seeds=4)
    np.testing.assert_allclose(result.scores, [np.mean(drawn), np.inf], rtol=1e-6)
    lost = sum(x < 0.5 for x in drawn)
    said = str(result).splitlines()
    assert said[2].endswith(f"{np.mean(drawn):.4f} ± {np.std(drawn, ddof=1):.4f}")
    assert said[3].endswith(f"diverged ({lost} of 4)")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (lambda x: x, 2.0),
        (lambda x: jnp.stack([x, 2 * x]), 4.0),
        (lambda x: {"loss": jnp.stack([x, 3 * x]), "accuracy": 5 * x}, 6.0),
        (lambda x: {"curve": jnp.stack([x, 4 * x])}, 8.0),
    ],
    ids=["scalar", "curve", "loss", "only entry"],
)
def test_the_score_is_by_default_the_last_loss(output, expected):
    result = sweep(lambda opt: output(rate_of(opt)), adamx.sgd(jnp.array([2.0, 7.0])))
    assert result.scores[0] == expected


def test_a_score_of_ones_own_sees_one_run_as_numpy_arrays():
    def score(output):
        assert isinstance(output["a"], np.ndarray | np.generic) and output["b"].shape == (2,)
        return output["a"] + output["b"].sum()

    def train(opt, key):
        del key
        return {"a": rate_of(opt), "b": jnp.ones(2)}

    result = sweep(train, adamx.sgd(jnp.array([1.0, 2.0])), seeds=2, score=score)
    np.testing.assert_array_equal(result.run_scores, [[3, 3], [4, 4]])


# Tables


def test_the_table_is_aligned_and_marks_the_best():
    result = sweep(squared, [adamx.sgd(rate) for rate in (1.0, 200.0, 3.5)])
    assert str(result).splitlines() == [
        "3 optimisers: the best is learning_rate=3.5, score 0.25",
        "  learning_rate     score",
        "              1    4.0000",
        "            200  diverged",
        "→           3.5    0.2500",
    ]


def test_numbers_that_are_close_are_told_apart():
    result = sweep(squared, [adamx.sgd(rate) for rate in (0.99991, 0.99992, 1e-5)])
    assert result.names == (
        "learning_rate=0.99991",
        "learning_rate=0.99992",
        "learning_rate=1e-05",
    )


def test_notebooks_get_tables_with_everything_escaped():
    result = sweep(squared, {"a|b": adamx.sgd(1.0), "<c>": adamx.sgd(3.5)})
    markdown = result._repr_markdown_().splitlines()
    assert markdown[2:] == [
        "| name | learning_rate | score |",
        "|--:|--:|--:|",
        "| a\\|b | 1 | 4.0000 |",
        "| **<c>** | **3.5** | **0.2500** |",
    ]
    page = result._repr_html_()
    assert "<td>&lt;c&gt;</td>" in page and "<c>" not in page
    assert page.count("<tr") == 3 and page.count("bold") == 1


def test_rows_are_flat_dicts_of_runs():
    def train(opt, key):
        del key
        rate = rate_of(opt)
        return {"loss": jnp.stack([rate, rate]), "test": {"accuracy": 2 * rate}, "seed": rate}

    rows = sweep(train, adamx.sgd(np.array([0.5, 0.25])), seeds=[7, 9]).rows()
    assert len(rows) == 4
    assert rows[3] == {
        "name": "learning_rate=0.25",
        "learning_rate": 0.25,
        "seed": 9,
        "score": 0.25,
        "output.seed": 0.25,
        "test.accuracy": 0.5,
    }
    assert json.loads(json.dumps(rows)) == rows


def test_a_sweep_of_which_nothing_is_left_says_so():
    result = sweep(squared, [adamx.sgd(200.0), adamx.sgd(300.0)])
    assert str(result).startswith("2 optimisers: all diverged\n")
    with pytest.raises(ValueError, match="none of the 2 members has a finite score"):
        _ = result.best


# Pictures


def drawn(figure):
    """What the picture says, and that it can be painted."""
    figure.canvas.draw()
    axes = figure.axes[0]
    legend = axes.get_legend()
    return axes, [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_curves_are_drawn_with_what_diverged_and_the_best():
    pytest.importorskip("matplotlib")
    result = sweep(descend, adamx.sgd(np.geomspace(1e-3, 1e3, 7)))
    assert np.isnan(result.scores[-1]) or np.isinf(result.scores[-1])
    figure = result.plot()
    axes, legend = drawn(figure)
    lost = int((~np.isfinite(result.outputs).all(axis=1)).sum())
    assert legend == [f"best: {result.best.name}", f"diverged ({lost})"] and lost > 0
    assert (axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "step", "loss")
    assert figure.axes[1].get_ylabel() == "learning_rate" and figure.axes[1].get_yscale() == "log"
    # The view is that of the runs that went well, not of how far the others got.
    assert axes.get_ylim()[1] < 100 * result.outputs[0, 0]
    lines = [line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) == STEPS]
    assert len(lines) == 7
    for line, curve in zip(lines, result.outputs, strict=True):
        fine = np.isfinite(curve)
        np.testing.assert_allclose(np.asarray(line)[fine], curve[fine])


def test_pictures_show_themselves_in_a_notebook_and_can_be_kept():
    """As an image, as wide as drawn: no inline mode is needed."""
    pytest.importorskip("matplotlib")
    figure = sweep(descend, adamx.sgd(np.array([0.1, 0.2]))).plot()
    for shown in (figure, pickle.loads(pickle.dumps(figure))):
        image, size = shown._repr_png_()
        assert image.startswith(b"\x89PNG")
        assert size == {"width": 614, "height": 384}
        shown.set_size_inches(5, 4)
        assert shown._repr_png_()[1] == {"width": 480, "height": 384}


def test_scores_are_drawn_against_one_coordinate():
    pytest.importorskip("matplotlib")

    def train(opt, key):
        return squared(opt) * (1 + jax.random.uniform(key))

    result = sweep(train, [adamx.sgd(rate) for rate in (200.0, 1.0, 30.0, 2.5)], seeds=3)
    axes, legend = drawn(result.plot())
    assert legend == ["range of 3 seeds", "diverged (1)", "best: learning_rate=2.5"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    x, y = axes.get_lines()[0].get_data()
    np.testing.assert_array_equal(x, [1, 2.5, 30, 200])
    np.testing.assert_allclose(y, result.scores[[1, 3, 2, 0]])


def test_decay_rates_near_one_are_drawn_by_their_distance_from_it():
    pytest.importorskip("matplotlib")
    result = sweep(level, [adamx.adam(0.1, b1=b1) for b1 in (0.0, 0.9, 0.99)])
    axes, _ = drawn(result.plot())
    assert (axes.get_xlabel(), axes.get_xscale()) == ("1 − b1", "log")
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [0.01, 0.1, 1])


def test_two_coordinates_are_a_map():
    pytest.importorskip("matplotlib")

    def train(opt):
        return squared(opt) + adamx.hyperparams(opt)["momentum"]

    grid = [adamx.sgd(r, momentum=m) for m in (0.0, 0.9) for r in (1.0, 2.0, 200.0)]
    result = sweep(train, grid)
    axes, legend = drawn(result.plot())
    assert legend == ["best", "diverged"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "momentum")
    cells = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(cells, [[4, 1, np.nan], [4.9, 1.9, np.nan]], rtol=1e-6)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["4", "1", "4.9", "1.9"]


def test_points_scattered_over_two_coordinates_are_points():
    pytest.importorskip("matplotlib")
    pairs = [(0.1, 0.5), (1.0, 0.9), (10.0, 0.95), (200.0, 0.99)]
    result = sweep(squared, [adamx.sgd(rate, momentum=m) for rate, m in pairs])
    axes, legend = drawn(result.plot())
    assert not axes.images
    assert legend[0] == "diverged (1)" and legend[1].startswith("best: ")


def test_two_coordinates_of_curves_are_panels():
    pytest.importorskip("matplotlib")
    grid = [adamx.sgd(rate, momentum=m) for m in (0.0, 0.9) for rate in (0.01, 0.02, 0.1)]
    figure = sweep(descend, grid).plot()
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[:2]] == ["momentum=0", "momentum=0.9"]


def test_named_members_are_bars_and_named_curves():
    pytest.importorskip("matplotlib")
    members = {"slow": adamx.sgd(1e-3), "adam": adamx.adam(0.1), "wild": adamx.sgd(1e3)}
    result = sweep(from_key, members, seeds=2)
    axes, legend = drawn(result.plot())
    assert legend == ["slow", "adam (best)", "wild", "diverged (1)"]
    axes, _ = drawn(result.plot("scores"))
    assert [text.get_text() for text in axes.get_yticklabels()] == list(members)
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches][:2], result.scores[:2])
    assert [text.get_text() for text in axes.texts] == ["diverged"]


def test_a_curve_among_several_is_named():
    pytest.importorskip("matplotlib")

    def train(opt):
        curve = descend(opt)
        return {"loss": curve, "test": {"loss": 2 * curve}}

    result = sweep(train, adamx.sgd(jnp.array([0.01, 0.1])))
    axes, _ = drawn(result.plot(curve="test.loss"))
    assert axes.get_ylabel() == "test.loss"
    with pytest.raises(
        ValueError, match=r"no curve 'nothing' to plot; the curves are 'loss', 'test.loss'"
    ):
        result.plot(curve="nothing")
    with pytest.raises(ValueError, match="kind must be"):
        result.plot("lines")
    with pytest.raises(ValueError, match=r"no curve .*; the curves are none"):
        sweep(level, [adamx.sgd(0.1)] * 2).plot("curves")


def test_drawing_of_a_sweep_that_diverged_as_a_whole():
    pytest.importorskip("matplotlib")
    curves = sweep(descend, adamx.sgd(jnp.array([1e3, 1e4, 1e5])))
    assert drawn(curves.plot())[1] == ["diverged (3)"]
    assert drawn(curves.plot("scores"))[1] == ["diverged (3)"]


def test_what_is_optional_is_named_where_it_is_missing(monkeypatch):
    result = sweep(level, [adamx.sgd(0.1), adamx.sgd(0.2)])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'adamx\[tools\]'"):
        result.plot()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'adamx\[tools\]'"):
        sweep(level, [adamx.sgd(0.1), adamx.sgd(0.2)], progress=True)
    sweep(level, [adamx.sgd(0.1), adamx.sgd(0.2)], chunk=1)  # without a bar


def test_progress_is_shown_where_it_is_asked_for(capsys):
    pytest.importorskip("rich")
    members = [adamx.sgd(0.1), adamx.sgd(0.2)]
    sweep(level, members, chunk=1, progress=True)
    assert "100%" in capsys.readouterr().err
    sweep(level, members, chunk=1)  # not a terminal
    sweep(level, members, chunk=1, progress=False)
    assert capsys.readouterr().err == ""


# Errors


@pytest.mark.parametrize(
    ("optimisers", "error", "said"),
    [
        ([], ValueError, "nothing to sweep over: no optimiser"),
        ({}, ValueError, "nothing to sweep over: no optimiser"),
        (
            adamx.adam(0.1),
            ValueError,
            "nothing to sweep over: every hyperparameter .* is a single number",
        ),
        (adamx.adam(jnp.zeros(0)), ValueError, "nothing to sweep over: the arrays .* are empty"),
        (0.1, TypeError, "optimisers must be a list, a dict .*; got 0.1 of type float"),
        (
            optax.adam(0.1),
            TypeError,
            r"Optax transformation; adamx.chain\(transformation\) makes it",
        ),
        ([adamx.adam(0.1), optax.adam(0.1)], TypeError, r"optimiser 1 is an Optax transformation"),
        ({"x": adamx.adam}, TypeError, r"optimiser 'x' is the function adam; .*, adam\(…\)"),
        ([adamx.adam(0.1), 0.2], TypeError, "optimiser 1 is 0.2 of type float"),
        ([adamx.adam(jnp.ones(3))], ValueError, r"optimiser 0 is a batch: .* shape \(3,\)"),
        (
            adamx.adam(jnp.ones(3), b1=jnp.full(2, 0.9)),
            ValueError,
            "different numbers of members: b1 has 2, learning_rate has 3",
        ),
    ],
)
def test_what_is_no_sweep_is_refused(optimisers, error, said):
    with pytest.raises(error, match=said):
        sweep(level, optimisers)


PAIR = (adamx.sgd(0.1), adamx.sgd(0.2))


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True, "all"])
def test_a_chunk_is_a_positive_integer(chunk):
    with pytest.raises(ValueError, match="chunk must be None or an integer ≥ 1"):
        sweep(level, PAIR, chunk=chunk)


@pytest.mark.parametrize("seeds", [0, [], jnp.zeros((0, 2), jnp.uint32)])
def test_no_seeds_are_no_sweep(seeds):
    with pytest.raises(ValueError, match="contains no seed"):
        sweep(from_key, PAIR, seeds)


@pytest.mark.parametrize(
    "seeds", ["abc", 1.5, [0.5], True, np.ones((2, 2)), jnp.ones(()), jax.random.key(0)], ids=type
)
def test_seeds_of_another_type_are_refused(seeds):
    with pytest.raises(TypeError, match="seeds must be the number of seeds"):
        sweep(from_key, PAIR, seeds)


@pytest.mark.parametrize(
    "output", [None, "text", {"a": 1.0, "b": "text"}, [], {"key": jax.random.key(0)}, level]
)
def test_train_returns_arrays(output):
    with pytest.raises(TypeError, match="train must return a pytree of arrays, but returned"):
        sweep(lambda opt: output, PAIR)


def test_train_is_called_as_it_can_be():
    with pytest.raises(TypeError, match="train must be a function, called as"):
        sweep(3, PAIR)
    with pytest.raises(TypeError, match=r"sweep calls train\(opt\), but .* can't be called"):
        sweep(lambda opt, key: 1.0, PAIR)
    with pytest.raises(
        TypeError, match=r"train\(opt, key\) \(with a key, because seeds were given\), but"
    ):
        sweep(lambda opt: 1.0, PAIR, seeds=2)


def test_outputs_of_different_structure_are_refused_before_anything_runs():
    def train(opt):
        return opt.init(jnp.ones(2))

    with pytest.raises(ValueError, match=r"for optimiser 0 it returned .*, for optimiser 1 .*mu"):
        sweep(train, [adamx.sgd(0.1), adamx.adam(0.1)], score=lambda output: 0.0)
    with pytest.raises(ValueError, match=r"float32\[1\].*float32\[2\]"):
        sweep(lambda opt: jnp.ones(len(opt.links)), [adamx.sgd(0.1), adamx.sgd(0.1, momentum=0.9)])


@pytest.mark.parametrize(
    "output",
    [
        {"a": jnp.ones(3), "b": jnp.ones(3)},
        {"a": jnp.ones(3), "b": jnp.ones(())},
        {"loss": jnp.ones((2, 2))},
        jnp.ones(0),
    ],
    ids=["two curves", "curve and scalar", "matrix", "empty"],
)
def test_an_ambiguous_score_is_asked_for(output):
    with pytest.raises(ValueError, match=r"does not determine the score of a run.*score=lambda"):
        sweep(lambda opt: output, PAIR)


def test_a_score_that_is_no_number_keeps_the_outputs():
    result = sweep(descend, PAIR, score=lambda curve: curve)
    with pytest.raises(TypeError, match=r"score must return one number .* shape \(60,\)"):
        _ = result.best
    assert result.outputs.shape == (2, STEPS)


def test_a_mode_is_min_or_max():
    with pytest.raises(ValueError, match='mode must be "min" or "max", got \'least\''):
        sweep(level, PAIR, mode="least")


@pytest.mark.parametrize(
    ("chunk", "said"),
    [(2, "2 runs at a time .* Pass chunk=1"), (1, "1 run at a time .* not possible")],
)
def test_where_memory_is_not_enough_the_remedy_is_named(chunk, said):
    def train(opt):  # nothing that could be simplified away: 128 TiB
        x = jnp.sin(rate_of(opt) * jnp.arange(2.0**45))
        return jnp.sum(jnp.sort(x)[::7])

    with pytest.raises(MemoryError, match=said):
        sweep(train, adamx.sgd(jnp.array([0.1, 0.2])), chunk=chunk)


# The learning rate


TARGET = jnp.array([1.0, -2.0, 3.0])
INPUTS = jax.random.normal(jax.random.key(0), (40, 8, 3))
BATCHES = (INPUTS, INPUTS @ TARGET)
ZERO = jnp.zeros(3)


def mean_square(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def single(opt):
    """The losses of a plain loop over the batches."""
    params, state, losses = ZERO, opt.init(ZERO), []
    differentiate = jax.jit(jax.value_and_grad(mean_square))
    for batch in zip(*BATCHES, strict=True):
        loss, gradient = differentiate(params, batch)
        updates, state = opt.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses


def test_the_rate_of_the_least_final_loss_is_found():
    rates = [1e-3, 1e-2, 0.1, 100.0]
    found = find_learning_rate(mean_square, ZERO, BATCHES, adamx.sgd, rates=rates)
    curves = [single(adamx.sgd(rate)) for rate in rates]
    # Of a small loss the roundings of inputs @ params − targets are a larger part.
    np.testing.assert_allclose(found.sweep.outputs[:3], curves[:3], rtol=1e-4, atol=1e-7)
    finals = np.mean(np.array(curves)[:, -4:], axis=1)
    np.testing.assert_allclose(found.sweep.scores[:3], finals[:3], rtol=1e-4, atol=1e-7)
    assert found.learning_rate == rates[int(np.nanargmin(finals))]
    assert isinstance(found.learning_rate, float)
    np.testing.assert_allclose(found.start_loss, curves[0][0], rtol=1e-6)


def test_an_optimiser_gives_its_place_to_the_rate():
    rates = [0.01, 0.1]
    by_value = find_learning_rate(mean_square, ZERO, BATCHES, adamx.adam(7.0, b1=0.5), rates=rates)
    by_name = find_learning_rate(
        mean_square, ZERO, BATCHES, lambda rate: adamx.adam(rate, b1=0.5), rates=rates
    )
    np.testing.assert_array_equal(by_value.sweep.outputs, by_name.sweep.outputs)
    assert by_value.sweep.optimisers == tuple(adamx.adam(rate, b1=0.5) for rate in rates)


def test_a_schedule_of_the_rate_is_one_program():
    traced = []

    def recipe(rate):
        traced.append(isinstance(rate, jax.core.Tracer))
        return adamx.adam(optax.cosine_decay_schedule(rate, len(INPUTS)))

    rates = [0.01, 0.1]
    found = find_learning_rate(mean_square, ZERO, BATCHES, recipe, rates=rates)
    assert sum(traced) == 1
    for rate, curve in zip(rates, found.sweep.outputs, strict=True):
        np.testing.assert_allclose(curve, single(recipe(rate)), rtol=1e-4, atol=1e-7)


def test_batches_may_be_a_list_or_an_iterator():
    stacked = find_learning_rate(mean_square, ZERO, BATCHES, chunk=31)
    listed = list(zip(*BATCHES, strict=True))
    for batches in (listed, iter(listed)):
        found = find_learning_rate(mean_square, ZERO, batches, chunk=31)
        np.testing.assert_array_equal(found.sweep.outputs, stacked.sweep.outputs)
    assert len(stacked.sweep.optimisers) == 31
    np.testing.assert_allclose(stacked.sweep.coordinates["learning_rate"][[0, -1]], [1e-6, 1])


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([1e-5, 1e-4], "upper end of the grid: extend the grid upwards"),
        ([100.0, 0.1, 10.0], "lower end of the grid: extend the grid downwards"),
    ],
)
def test_a_rate_at_the_edge_asks_for_a_larger_grid(rates, said):
    assert said in str(find_learning_rate(mean_square, ZERO, BATCHES, adamx.sgd, rates=rates))


@pytest.mark.parametrize(
    ("rates", "edge"),
    [
        ((5.0, 4.0, 3.5), {"learning_rate": "lower"}),
        ((1.0, 2.0, 2.5, 1000.0), {}),  # what diverged is on the grid
        ((1.0, 2.0, 2.5), {"learning_rate": "upper"}),
        ((2.0, 3.0), {}),  # of two values each is at an edge
    ],
)
def test_a_sweep_says_that_its_best_is_at_the_edge(rates, edge):
    result = sweep(squared, [adamx.sgd(rate) for rate in rates])
    assert result.at_edge == edge
    said = "The best learning_rate is the"
    shown = (repr(result), result._repr_markdown_(), result._repr_html_())
    assert [said in text for text in shown] == [bool(edge)] * 3
    assert all(edge == {} or f"{word} of the grid: extend" in repr(result) for word in words(edge))


def words(edge):
    return [{"lower": "smallest", "upper": "largest"}[end] for end in edge.values()]


def test_every_hyperparameter_at_an_edge_is_named():
    def train(opt):
        found = adamx.hyperparams(opt)
        return found["learning_rate"] - found["b1"] + 0 * jnp.sum(START)

    members = [adamx.adam(a, b1=b) for a in (0.1, 0.2, 0.3) for b in (0.5, 0.6, 0.7)]
    result = sweep(train, members)
    assert result.at_edge == {"learning_rate": "lower", "b1": "upper"}
    assert repr(result).endswith(
        "\nThe best b1 is the largest of the grid: extend the grid upwards."
        "\nThe best learning_rate is the smallest of the grid: extend the grid downwards."
    )


def test_the_grid_of_the_best_is_that_of_its_structure():
    """Other recipes need other learning rates; and nothing is smaller than a decay of 0."""
    members = [adamx.sgd(rate) for rate in (1.0, 3.0, 5.0)]
    members += [adamx.lion(rate) for rate in (0.001, 0.002)]
    assert sweep(squared, members[1:]).at_edge == {}  # two values have this structure
    assert sweep(squared, members).at_edge == {}
    lions = [adamx.lion(rate) for rate in (0.1, 0.2, 0.3)]
    assert sweep(squared, [adamx.sgd(0.01), *lions]).at_edge == {"learning_rate": "upper"}
    assert sweep(squared, [*lions, adamx.sgd(0.4)]).at_edge == {}

    def decay(opt):
        return adamx.hyperparams(opt)["weight_decay"] + 0 * jnp.sum(START)

    assert sweep(decay, [adamx.adamw(0.1, weight_decay=x) for x in (0.0, 0.1, 0.2)]).at_edge == {}


def test_a_sweep_in_which_all_diverged_has_no_edge():
    assert sweep(squared, [adamx.sgd(rate) for rate in (101.0, 102.0, 103.0)]).at_edge == {}


def test_the_sentence_is_short_where_there_is_nothing_to_warn_of():
    found = find_learning_rate(mean_square, ZERO, BATCHES)
    best = found.sweep.best
    assert str(found) == (
        f"learning rate {found.learning_rate:.3g}: final loss {best.score:.4g} (at the start "
        f"{found.start_loss:.4g}), the smallest of 31 rates from 1e-06 to 1"
    )


def test_a_run_that_got_nowhere_is_said_to():
    flat = find_learning_rate(lambda p, x: jnp.sum(0 * p) + x, ZERO, jnp.ones(3), rates=[1, 2])
    assert "no rate reduced the loss below its value at the start" in str(flat)


def test_the_picture_shows_the_start_and_what_diverged():
    pytest.importorskip("matplotlib")
    rates = np.geomspace(1e-4, 1e8, 13)
    found = find_learning_rate(mean_square, ZERO, BATCHES, adamx.sgd, rates=rates)
    axes, legend = drawn(found.plot())
    lost = int((~np.isfinite(found.sweep.scores)).sum())
    assert legend == [f"diverged ({lost})", f"best: {found.sweep.best.name}", "at the start"]
    assert lost > 0 and axes.get_xscale() == axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "final loss")
    assert len(drawn(found.sweep.plot())[0].get_lines()) > len(rates)


def constant(loss):
    return lambda params, batch: jnp.sum(params) * loss


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"loss_fn": constant(jnp.nan)},
            ValueError,
            "every learning rate .* diverged; try smaller",
        ),
        ({"opt": adamx.adam(lambda t: 0.1)}, ValueError, "is a schedule, .* lambda rate: "),
        (
            {"opt": adamx.scale_by_momentum()},
            ValueError,
            "no single learning rate .* has 'learning",
        ),
        (
            {"opt": adamx.partition({"a": adamx.sgd(0.1), "*": adamx.sgd(0.2)})},
            ValueError,
            "no single learning rate .* ambiguous",
        ),
        ({"opt": 0.1}, TypeError, "opt must be .* got 0.1 of type float"),
        ({"opt": lambda rate: rate}, TypeError, "takes a transformation"),
        ({"rates": [0.1]}, ValueError, "at least two different learning rates"),
        ({"rates": [[0.1, 0.2]]}, ValueError, "at least two different learning rates"),
        ({"rates": [0.1, -0.1]}, ValueError, "positive and finite, got -0.1"),
        ({"rates": [0.1, np.inf]}, ValueError, "positive and finite, got inf"),
        ({"batches": []}, ValueError, "contains no batch"),
        ({"batches": jnp.zeros((0, 3))}, ValueError, "contains no batch"),
        ({"batches": jnp.zeros(())}, ValueError, "steps as their common first axis"),
        ({"batches": (jnp.zeros(2), jnp.zeros(3))}, ValueError, r"\(2,\).*\(3,\)"),
        ({"batches": [jnp.zeros(2), jnp.zeros(3)]}, ValueError, "can't be stacked"),
        ({"batches": [{"a": 1.0}, {"b": 1.0}]}, ValueError, "can't be stacked"),
    ],
)
def test_what_gives_no_learning_rate_is_refused(arguments, error, said):
    given = {"loss_fn": mean_square, "params": ZERO, "batches": BATCHES} | arguments
    with pytest.raises(error, match=said):
        find_learning_rate(**given)


# The benchmark


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    pytest.importorskip("flax")
    from examples.benchmarks import sweep as benchmark
    from examples.benchmarks import tables

    path = tmp_path_factory.mktemp("sweep") / "new" / "sweep.json"
    returned = benchmark.main(["--tiny", "--json", str(path)])
    stored = json.loads(path.read_text("utf-8"))["results"]
    assert stored == json.loads(json.dumps(returned))
    assert "| adamx.sweep | curve |" in tables.sweep_agreement(stored)
    return copy.deepcopy(returned)


@pytest.mark.slow
def test_the_benchmark_times_every_contender(measured):
    rows = {row["what"]: row for row in measured["times"]}
    assert list(rows) == [
        "adamx.sweep, all at once",
        "loop over optax.adam",
        "loop, optax.inject_hyperparams",
    ]
    for row in rows.values():
        low, high = row["quartiles"]
        assert 0 < low <= row["ratio"] <= high and row["pairs"] == 1
    assert [row["bar"] for row in rows.values()] == [None, 5.0, None]


def test_the_benchmark_compares_every_member_with_its_single_run(measured):
    for row in measured["agreement"]:
        assert len(row["curve"]) == len(row["final"]) == len(measured["rates"]) == 2
        assert max(row["curve"]) < 1e-6


def test_the_benchmark_sees_a_difference():
    pytest.importorskip("sklearn")
    from examples.benchmarks import sweep as benchmark

    alone = np.array([[1.0, 2.0], [4.0, 8.0]])
    row = benchmark.agreement("it", np.array([[1.0, 2.0], [5.0, 8.4]]), alone)
    np.testing.assert_allclose(row.curve, [0, 0.25])
    np.testing.assert_allclose(row.final, [0, 0.05])
