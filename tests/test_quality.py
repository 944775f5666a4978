"""The benchmark of trainings with stored states: what it trains on, what it measures and keeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("flax")
pytest.importorskip("sklearn")

import adamx
from examples import data, digits
from examples.benchmarks import quality
from examples.benchmarks.quality import End, Task

RANDOM = np.random.default_rng(0)


def small(network=None, examples=30):
    """Images of 64 pixels: a layer of 64 is the smallest that is stored."""
    inputs = RANDOM.normal(size=(examples, 64)).astype(np.float32)
    targets = RANDOM.integers(0, 10, examples, np.int32)
    return Task(
        "noise",
        network or digits.Classifier((64,)),
        (inputs, targets),
        (inputs[:20], targets[:20]),
        adamx.adam,
        rate=1e-2,
        batch=8,
        steps=30,
        measured=examples,
    )


@pytest.fixture
def options(tmp_path, monkeypatch):
    task = small()
    kept = {name: quality.KEPT[name] for name in (quality.FLOAT32, "int8, nearest")}
    monkeypatch.setattr(quality, "TASKS", {"noise": lambda: task})
    monkeypatch.setattr(quality, "KEPT", kept)
    return ["--task", "noise", "--quick", "--out", str(tmp_path / "kept")]


@pytest.mark.slow
def test_every_format_is_trained_and_nothing_twice(options, tmp_path, monkeypatch, capsys):
    path = tmp_path / "quality.json"
    rows = quality.main([*options, "--json", str(path)])["noise"]
    assert [x.kept_as for x in rows] == list(quality.KEPT)
    parameters, large = 64 * 64 + 64 + 64 * 10 + 10, 64 * 64
    scalars = 20  # a count and two clocks
    assert rows[0].bytes_per_parameter == (8 * parameters + scalars) / parameters
    saved = 2 * (4 * large - large - 64)  # a byte for an element, and one for every row
    assert rows[1].bytes_per_parameter == (8 * parameters + scalars - saved) / parameters
    assert rows[0].ratio == 1 and rows[0].difference == rows[0].points == (0, 0)
    assert rows[1].train_loss != rows[0].train_loss
    stored = json.loads(path.read_text("utf-8"))
    stored = stored["results"]["tasks"]["noise"]
    assert stored["rows"] == json.loads(json.dumps([x._asdict() for x in rows]))

    printed = capsys.readouterr().out
    assert "noise: 3 steps of 8 of 30 examples, 2 seeds." in printed
    assert f"| int8, nearest | {rows[1].bytes_per_parameter:.2f} |" in printed

    trained = []

    def again(task, codec, seed):
        trained.append((codec, seed))
        return End(1.0, 1.0, 0.5, 8.0)

    monkeypatch.setattr(quality, "train", again)
    assert quality.main(options)["noise"] == rows
    assert not trained
    (tmp_path / "kept" / "noise-3" / "int8-nearest-1.json").unlink()
    quality.main(options)
    assert trained == [(adamx.int8(rounding="nearest"), 1)]


def test_a_training_is_the_ordinary_one_and_its_seed_that_of_the_rounding(monkeypatch):
    task, seeds, store = small()._replace(steps=5), [], adamx.quantize_state
    monkeypatch.setattr(
        adamx, "quantize_state", lambda *x, seed: (seeds.append(seed), store(*x))[1]
    )
    found = quality.train(task, None, 3).train_loss
    assert seeds == [3]

    @jax.jit
    def gradient(params, inputs, targets):
        def loss(params):
            scores = jax.nn.log_softmax(task.network.apply(params, inputs))
            return -jnp.take_along_axis(scores, targets[:, None], 1).mean()

        return jax.grad(loss)(params)

    params = task.network.init(jax.random.key(3), task.train[0][:1])
    opt = adamx.adam(task.schedule())
    state = opt.init(params)
    for batch in task.batches(3):
        grads = gradient(params, *(x[batch] for x in task.train))
        updates, state = opt.update(grads, state, params)
        params = adamx.apply_updates(params, updates)
    logits = np.asarray(task.network.apply(params, task.train[0]), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(30), task.train[1]]
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-5)


def test_loss_and_accuracy_are_means_over_all_examples_of_unequal_pieces():
    task = small(digits.Classifier(()), examples=1300)
    inputs, targets = task.train
    params = task.network.init(jax.random.key(0), inputs[:1])
    layer = params["params"]["Dense_0"]
    logits = inputs.astype(float) @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"])
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(1300), targets]
    loss, accuracy = quality.measure(task, params, inputs, targets)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(logits.argmax(1) == targets), rtol=1e-6)


def test_every_epoch_has_every_example_once_in_another_order():
    task = small(examples=24)._replace(steps=5)
    batches = task.batches(0)
    assert batches.shape == (5, 8)
    first, second = batches[:3].ravel(), batches[3:].ravel()
    assert sorted(first) == list(range(24)) and len(set(second)) == 16
    assert first[:16].tolist() != second.tolist()
    np.testing.assert_array_equal(task.batches(0), batches)
    assert task.batches(1).tolist() != batches.tolist()


def test_the_rate_rises_within_a_tenth_of_the_steps_and_ends_at_zero():
    rates = [float(small().schedule()(step)) for step in (0, 3, 30)]
    np.testing.assert_allclose(rates, [0, 1e-2, 0], atol=1e-9)


def test_windows_are_followed_by_their_next_characters():
    inputs, targets = quality.windows(np.arange(12), 5)
    np.testing.assert_array_equal(inputs, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(targets, inputs + 1)


def test_the_transformer_sees_no_later_character():
    network = quality.Transformer(alphabet=7, width=8, layers=2, heads=2)
    text = RANDOM.integers(0, 7, (1, 6), np.int32)
    params = jax.jit(network.init)(jax.random.key(0), text)
    apply = jax.jit(network.apply)
    changed = text.copy()
    changed[0, 3] = (changed[0, 3] + 1) % 7
    one, other = (np.asarray(apply(params, x))[0] for x in (text, changed))
    assert one.shape == (6, 7)
    np.testing.assert_array_equal(one[:3], other[:3])
    assert (np.abs(one[3:] - other[3:]).max(axis=1) > 1e-4).all()


def ends(losses, accuracies):
    return [End(x, 0.0, y, 8.0) for x, y in zip(losses, accuracies, strict=True)]


def test_a_row_compares_seed_with_seed():
    reference = ends([1.0, 2.0, 3.0], [0.5, 0.6, 0.7])
    row = quality.row("it", ends([1.5, 2.0, 4.0], [0.5, 0.61, 0.69]), reference)
    assert (row.train_loss, row.ratio, row.spread) == (2.5, 1.25, 1.0)
    # Differences 0.5, 0 and 1: variance 0.25, of the mean 0.25 / 3.
    np.testing.assert_allclose(row.difference, (0.5, np.sqrt(0.25 / 3)))
    np.testing.assert_allclose(row.points, (0, np.sqrt(1 / 3)), atol=1e-12)


@pytest.mark.parametrize(
    ("losses", "accuracies", "holds"),
    [
        ([1.009, 1.011], [0.5, 0.5], (True, True)),  # 1 % above
        ([1.011, 1.011], [0.5, 0.5], (False, True)),
        ([0.989, 0.989], [0.5, 0.5], (False, True)),  # 1.1 % below
        ([1.0, 1.0], [0.4971, 0.4971], (True, True)),  # 0.29 points below
        ([1.0, 1.0], [0.4969, 0.4969], (True, False)),
        ([1.0, 1.0], [0.5031, 0.5031], (True, False)),
        ([np.nan, 1.0], [np.nan, 0.5], (False, False)),
    ],
)
def test_the_bars_are_those_that_are_documented(losses, accuracies, holds):
    row = quality.row("it", ends(losses, accuracies), ends([0.999, 1.001], [0.5, 0.5]))
    assert (row.loss_holds, row.accuracy_holds) == holds


def test_a_loss_within_the_spread_of_float32s_seeds_holds():
    reference = ends([0.9, 1.1], [0.5, 0.5])  # of standard deviation √0.02 = 0.1414
    assert quality.row("it", ends([1.14, 1.14], [0.5, 0.5]), reference).loss_holds
    assert not quality.row("it", ends([1.142, 1.142], [0.5, 0.5]), reference).loss_holds


def test_one_seed_is_no_spread(capsys):
    with pytest.raises(SystemExit):
        quality.main(["--seeds", "1"])
    assert "a standard deviation needs at least 2 seeds" in capsys.readouterr().err


def test_the_tasks_train_on_what_they_do_not_test(monkeypatch):
    numbers = np.arange(12_000)
    half = [
        (numbers[part].astype(np.float32), numbers[part]) for part in np.split(numbers, [10_000])
    ]
    monkeypatch.setattr(data, "cifar10", lambda: data.Dataset("it", *half[0], *half[1]))
    task = quality.cifar10()
    for trained, tested in zip(task.train, task.test, strict=True):
        np.testing.assert_array_equal(np.concatenate([trained, tested]), numbers)
        assert len(trained) == len(tested)
