"""Averages of the parameters: what is kept of them, and what is read to evaluate with."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import adamx
import reference_structure as structure
from catalog import x64

SHAPE, STEPS = (3, 4), 40
PATH = np.cumsum(np.random.default_rng(0).normal(size=(STEPS, *SHAPE)), 0)


def follow(opt, path, state=None):
    """The state after parameters that some other program has moved along a path."""
    state = opt.init(jax.tree.map(lambda x: x[0], path)) if state is None else state
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), path)

    def step(state, theta):
        return opt.update(zeros, state, theta)[1], None

    return jax.lax.scan(step, state, path)[0]


def weights(t, std):
    """The weights of a power function: equal parts of the time, each the integral of p."""
    grid = np.linspace(-0.9, 60, 2_000_001)
    stds = np.sqrt((grid + 1) / (grid + 3)) / (grid + 2)
    exponent = grid[grid >= 0][np.argmin(np.abs(stds[grid >= 0] - std))] + 1
    return np.diff((np.arange(t + 1) / t) ** exponent)


def mean(path, w):
    return np.tensordot(w, np.asarray(path, np.complex128 if np.iscomplexobj(path) else float), 1)


def tail(t, start, every):
    chosen = np.array([i > start and (i - start) % every == 0 for i in range(1, t + 1)], float)
    return chosen / chosen.sum()


KINDS = {
    "polyak_ema": (
        lambda: adamx.polyak_ema(0.8),
        lambda t: 0.8 ** np.arange(t)[::-1] * 0.2 / (1 - 0.8**t),
    ),
    "power_ema": (lambda: adamx.power_ema(0.1), lambda t: weights(t, 0.1)),
    "power_ema compensated": (
        lambda: adamx.power_ema(0.1, compensated=True),
        lambda t: weights(t, 0.1),
    ),
    "tail_average": (lambda: adamx.tail_average(10, 3), lambda t: tail(t, 10, 3)),
    "tail_average plain": (
        lambda: adamx.tail_average(0.25, total_steps=STEPS, compensated=False),
        lambda t: tail(t, STEPS / 4, 1),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16"])
def test_it_is_the_weighted_mean_of_the_parameters(kind, dtype):
    make, of = KINDS[kind]
    path = PATH + 1j * PATH[::-1] if dtype == "complex64" else PATH
    path = jnp.asarray(path, dtype)
    state = follow(make(), path)
    expected = mean(np.asarray(path, np.complex64 if dtype == "complex64" else float), of(STEPS))
    found = adamx.eval_params(state, path[-1])
    assert found.dtype == path.dtype
    np.testing.assert_allclose(
        np.asarray(found, expected.dtype), expected, rtol=1e-5 if dtype != "bfloat16" else 2**-8
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gradient_the_unchanged_parameter_is_averaged(kind):
    make, of = KINDS[kind]
    opt = adamx.chain(adamx.sgd(1.0), make())
    theta, path = {"a": jnp.zeros(2), "b": jnp.zeros(2)}, []
    state = opt.init(theta)
    for t in range(STEPS):
        grads = {"a": -jnp.ones(2), "b": None if t % 3 else -jnp.ones(2)}
        updates, state = opt.update(grads, state, theta)
        theta = adamx.apply_updates(theta, updates)
        path.append(theta)
    found = adamx.eval_params(state, theta)
    for name in theta:
        expected = mean([x[name] for x in path], of(STEPS))
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.2, 0.2886])
def test_the_standard_deviation_of_the_weights_is_the_one_asked_for(std):
    """Read off the states: the average of t and of t², as parameters, gives both moments."""
    t = jnp.arange(1.0, 2001.0)
    state = follow(adamx.power_ema(std), {"first": t / 2000, "second": (t / 2000) ** 2})
    found = state["power_ema"]["ema"]
    assert float(jnp.sqrt(found["second"] - found["first"] ** 2)) == pytest.approx(std, rel=2e-3)


@pytest.mark.optimised
def test_a_mean_of_a_million_iterates_has_all_digits():
    """Half of them are 1 and half are 1.02; what float32 adds of one is less than half a digit."""
    path = jnp.concatenate([jnp.ones((500_000, 2)), jnp.full((500_000, 2), 1.02)])
    state = jax.jit(functools.partial(follow, adamx.tail_average()))(path)
    truth = np.mean(np.asarray(path, np.float64), 0)
    np.testing.assert_allclose(adamx.eval_params(state, path[-1]), truth, rtol=1.5e-7)
    plain = jax.jit(functools.partial(follow, adamx.tail_average(compensated=False)))(path)
    assert np.all(np.abs(adamx.eval_params(plain, path[-1]) - truth) > 1e-3)


@pytest.mark.optimised
def test_a_compensated_power_function_sees_small_changes_late():
    late = follow(adamx.power_ema(0.2886, compensated=True), jnp.ones((1, 2)))
    late["power_ema"]["steps"] = jnp.int32(1_000_000)
    path = jnp.full((20_000, 2), 1.02)
    state = jax.jit(lambda s: follow(adamx.power_ema(0.2886, compensated=True), path, s))(late)
    moved = 0.02 * 20_000 / 1_020_000  # a mean of all iterates
    np.testing.assert_allclose(state["power_ema"]["ema"] - 1, moved, rtol=2e-3)


def test_before_there_is_an_average_the_parameters_are_returned():
    theta = {"w": jnp.arange(3.0), "b": jnp.ones(2, jnp.bfloat16)}
    for make, _ in KINDS.values():
        opt = adamx.chain(adamx.adamw(0.1), make())
        found = adamx.eval_params(opt.init(theta), theta)
        jax.tree.map(np.testing.assert_array_equal, found, theta)
        assert found["b"].dtype == jnp.bfloat16
    late = adamx.tail_average(start=5)
    state = follow(late, jnp.asarray(PATH[:5], jnp.float32))
    np.testing.assert_array_equal(
        adamx.eval_params(state, PATH[4].astype("f4")), PATH[4].astype("f4")
    )


def test_the_start_of_a_tail_may_be_a_schedules_or_an_arrays_number():
    path = jnp.asarray(PATH, jnp.float32)
    expected = mean(path, tail(STEPS, 30, 1))
    for start, total in ((30, 0), (np.float32(30), 0), (0.75, STEPS), (jnp.float32(0.75), STEPS)):
        state = follow(adamx.tail_average(start, total_steps=total), path)
        np.testing.assert_allclose(adamx.eval_params(state, path[-1]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: adamx.power_ema(0.3),
            r"power_ema: std must be a number in \(0, 0.2886\].*got 0.3",
        ),
        (lambda: adamx.power_ema((0.1, -1)), "std must be a number"),
        (lambda: adamx.power_ema(lambda t: 0.1), "std must be a number"),
        (lambda: adamx.power_ema(()), "at least one number"),
        (lambda: adamx.tail_average(0.5).init(PATH[0]), "pass total_steps"),
        (lambda: adamx.tail_average(2, total_steps=9).init(PATH[0]), r"in \[0, 1\], got 2"),
    ],
)
def test_numbers_that_mean_nothing_are_errors(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_several_lengths_are_several_stages():
    opt = adamx.power_ema(std=(0.05, 0.1), compensated=True)
    assert opt == adamx.chain(
        adamx.power_ema(0.05, compensated=True), adamx.power_ema(0.1, compensated=True)
    )
    assert pickle.loads(pickle.dumps(opt)) == opt == adamx.from_config(adamx.to_config(opt))


# In other things


@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_a_gate_an_average_moves_in_real_steps_only(kind):
    inside = adamx.chain(adamx.adamw(0.1), KINDS[kind][0]())
    opt, theta = adamx.accumulate(inside, 4), jnp.asarray(PATH[0], jnp.float32)
    grads = jnp.asarray(PATH, jnp.float32)
    state, plain = opt.init(theta), inside.init(theta)
    other = theta
    for t, grad in enumerate(grads):
        before = adamx.eval_params(state, theta)
        updates, state = opt.update(grad, state, theta)
        theta = adamx.apply_updates(theta, updates)
        if t % 4 < 3:
            np.testing.assert_array_equal(adamx.eval_params(state, theta), before)
            continue
        updates, plain = inside.update(grads[t - 3 : t + 1].mean(0), plain, other)
        other = adamx.apply_updates(other, updates)
        expected = adamx.eval_params(plain, other)
        np.testing.assert_allclose(adamx.eval_params(state, theta), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_delay_and_a_mesh_keep_the_average(kind):
    make, of = KINDS[kind]
    path = jnp.asarray(PATH, jnp.float32)
    layered = adamx.per_layer("*", make())
    found = adamx.eval_params(follow(layered, {"w": path}), {"w": path[-1]})["w"]
    np.testing.assert_allclose(found, mean(path, of(STEPS)), rtol=1e-5)
    late = follow(adamx.delay_start(make(), 8), path)
    np.testing.assert_allclose(
        adamx.eval_params(late, path[-1]), mean(path[8:], of(STEPS - 8)), rtol=1e-5
    )


# Evaluation


def stepped(opt, theta, steps=3):
    """Parameters and state after steps of constant gradients, and the path."""
    state, path = opt.init(theta), []
    for _ in range(steps):
        updates, state = opt.update(jax.tree.map(lambda x: -jnp.ones_like(x), theta), state, theta)
        theta = adamx.apply_updates(theta, updates)
        path.append(theta)
    return theta, state, path


def test_what_averages_between_z_and_y_returns_x():
    grads, theta = PATH.astype("f4"), PATH[0].astype("f4")
    numbers = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
    opt = adamx.chain(adamx.adamw(**numbers), adamx.primal_average(0.6, 0.9))
    state, y = opt.init(theta), jnp.asarray(theta)
    for g in grads:
        updates, state = opt.update(g, state, y)
        y = adamx.apply_updates(y, updates)
    _, evaluated = structure.gpa_adamw(grads, theta, **numbers, interpolation=0.6, decay=0.9)
    np.testing.assert_allclose(adamx.eval_params(state, y), evaluated[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("b1", [0.9, lambda t: 0.5 + 0.4 * t / (t + 1)])
def test_with_the_weights_of_schedule_free_primal_averaging_is_schedule_free(b1):
    free = adamx.chain(adamx.sgd(0.1), adamx.schedule_free(b1=b1, weight_lr_power=0.0))
    primal = adamx.chain(
        adamx.sgd(0.1), adamx.primal_average(b1, decay=lambda t: jnp.float64(t) / (t + 1))
    )
    with x64():
        theta, grads = jnp.asarray(PATH[0]), jnp.asarray(PATH)
        found = []
        for opt in (free, primal):
            state, y = opt.init(theta), theta
            for g in grads:
                updates, state = opt.update(g, state, y)
                y = adamx.apply_updates(y, updates)
            found.append((y, adamx.eval_params(state, y)))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), *found)


def test_primal_averaging_without_an_average_is_the_base_optimiser():
    """μ_x = 0: x, y and z are one (the paper's remark)."""
    theta = jnp.asarray(PATH[0], jnp.float32)
    base = stepped(adamx.adamw(0.1), theta)[0]
    y, state, _ = stepped(adamx.chain(adamx.adamw(0.1), adamx.primal_average(decay=0.0)), theta)
    np.testing.assert_allclose(y, base, rtol=1e-6)
    np.testing.assert_allclose(adamx.eval_params(state, y), base, rtol=1e-6)


def test_lookahead_evaluates_the_slow_parameters():
    y, state, _ = stepped(adamx.chain(adamx.sgd(1.0), adamx.lookahead(2, 0.5)), jnp.zeros(2), 3)
    np.testing.assert_array_equal(adamx.eval_params(state, y), [1, 1])
    np.testing.assert_array_equal(y, [2, 2])


def test_each_group_may_have_an_average_of_its_own_or_none():
    opt = adamx.partition(
        {
            "a": adamx.chain(adamx.sgd(1.0), adamx.polyak_ema(0.5)),
            "b": adamx.chain(adamx.sgd(1.0), adamx.tail_average()),
            "c": adamx.chain(adamx.sgd(1.0), adamx.schedule_free(b1=0.5)),
            "*": adamx.sgd(1.0),
        }
    )
    theta, state, _ = stepped(opt, {k: jnp.zeros(1) for k in "abcd"}, 2)
    found = adamx.eval_params(state, theta)
    expected = {"a": 5 / 3, "b": 1.5, "c": 1.5, "d": 2.0}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_of_several_averages_one_is_named():
    opt = adamx.chain(adamx.sgd(1.0), adamx.power_ema((0.1, 0.2)), adamx.tail_average())
    theta, state, path = stepped(opt, jnp.zeros(1), 5)
    with pytest.raises(
        ValueError, match=r"power_ema and power_ema_2 and tail_average keep the same"
    ):
        adamx.eval_params(state, theta)
    for name, w in (
        ("power_ema", weights(5, 0.1)),
        ("power_ema_2", weights(5, 0.2)),
        ("tail_average", np.full(5, 0.2)),
    ):
        found = adamx.eval_params(state, theta, name=name)
        np.testing.assert_allclose(found, mean(path, w), rtol=1e-5)
    with pytest.raises(ValueError, match="0 stages named 'polyak_ema'"):
        adamx.eval_params(state, theta, name="polyak_ema")
    with pytest.raises(ValueError, match="'scale_by_rms' is no stage that keeps an average"):
        adamx.eval_params(state, theta, name="scale_by_rms")


def test_a_state_without_an_average_or_of_other_parameters_is_an_error():
    theta = {"w": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"no average of the parameters; add .*polyak_ema"):
        adamx.eval_params(adamx.adam(0.1).init(theta), theta)
    with pytest.raises(ValueError, match="no average of the parameters"):
        adamx.eval_params({"nothing": 1}, theta)
    state = adamx.polyak_ema().init(theta)
    with pytest.raises(adamx.StageError, match="belongs to other parameters"):
        adamx.eval_params(state, {"v": jnp.zeros(2)})
    with pytest.raises(adamx.StageError, match=r"an average of the shape \(2,\).*is \(3,\)"):
        adamx.eval_params(state, {"w": jnp.zeros(3)})


@pytest.mark.parametrize("kind", [*KINDS, "lookahead", "schedule_free", "primal_average"])
def test_a_state_is_found_in_what_holds_it(kind):
    make = KINDS[kind][0] if kind in KINDS else getattr(adamx, kind)
    opt = adamx.chain(adamx.sgd(0.1), make())
    theta = {"w": jnp.arange(4.0)}
    params, state, _ = stepped(opt, theta)
    expected = adamx.eval_params(state, params)
    same = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-6))
    same(jax.jit(adamx.eval_params)(state, params), expected)
    wrapped = optax.chain(optax.clip(1e3), opt)
    y, held, _ = stepped(wrapped, theta)
    same(adamx.eval_params(held, y), expected)
    same(adamx.eval_params(serialization.to_state_dict(held), y), expected)
    train = TrainState.create(apply_fn=None, params=theta, tx=opt)
    for _ in range(3):
        train = train.apply_gradients(grads={"w": -jnp.ones(4)})
    averaged = train.replace(params=adamx.eval_params(train, train.params))
    same(averaged.params, expected)

    def batched(scale):
        y, state, _ = stepped(opt, {"w": scale * jnp.arange(4.0)})
        return y, state

    ys, states = jax.vmap(batched)(jnp.array([1.0, 2.0]))
    same(jax.tree.map(lambda x: x[0], adamx.eval_params(states, ys)), expected)


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layer, self.norm = nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


@pytest.mark.skipif(not hasattr(nnx, "data"), reason="an older Flax")
def test_nnx_evaluates_a_second_model_and_trains_the_first():
    with jax.numpy_dtype_promotion("standard"):
        model, x = Network(), jnp.arange(12.0).reshape(4, 3)
        opt = adamx.chain(adamx.adamw(1e-2), adamx.tail_average())
        optimizer = nnx.Optimizer(model, opt, wrt=nnx.Param)
        path = []
        for _ in range(3):
            grads = nnx.grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
            optimizer.update(model, grads)
            path.append(np.asarray(model.layer.kernel[...]))
        graph, variables = nnx.split(model)
        averaged = nnx.merge(graph, adamx.eval_params(optimizer, variables))
        np.testing.assert_allclose(averaged.layer.kernel[...], np.mean(path, 0), rtol=1e-5)
        np.testing.assert_array_equal(averaged.norm.mean[...], model.norm.mean[...])
        np.testing.assert_array_equal(model.layer.kernel[...], path[-1])
        averaged(x)  # moves its own statistics
        assert not np.array_equal(averaged.norm.mean[...], model.norm.mean[...])


# Power functions, after the training


def snapshots(path, stds=(0.05, 0.1), every=10, opt=None):
    opt, saved = opt or adamx.power_ema(stds), []
    state, step = None, jax.jit(functools.partial(follow, opt))
    for i in range(0, len(jax.tree.leaves(path)[0]), every):
        part = jax.tree.map(lambda x, i=i: x[i : i + every], path)
        state = step(part) if state is None else step(part, state)
        saved.append(jax.tree.map(np.asarray, adamx.ema_snapshot(state)))
    return saved


LONG = np.cumsum(np.random.default_rng(1).normal(size=(400, 3)), 0).astype(np.float32)
SAVED = snapshots(LONG)


@pytest.mark.parametrize("std", [0.03, 0.05, 0.075, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("step", [None, 250])
def test_an_average_of_another_length_is_reconstructed(std, step):
    found = adamx.reconstruct_ema(SAVED, std, step=step)
    t = step or 400
    truth = mean(LONG[:t], weights(t, std))
    near = 1e-5 if std in (0.05, 0.1) else 0.02
    assert np.max(np.abs(found - truth)) <= near * LONG.std()


@pytest.mark.parametrize("std", [0.03, 0.075, 0.2])
def test_its_coefficients_are_the_least_squares_of_the_weights(std):
    """By sums over a fine grid of the time, and not by the integrals."""
    saved = SAVED[4::5]
    grid = (np.arange(200_000) + 0.5) / 500

    def p(t, s):
        w = np.interp(grid, np.arange(t + 1), np.concatenate([[0], np.cumsum(weights(t, s))]))
        return np.append(np.diff(w), 0)

    given = [(int(x["steps"]), round(float(x["std"]), 3)) for s in saved for x in s.values()]
    columns = np.stack([p(*pair) for pair in given], 1)
    one = columns - columns[:, -1:]  # x sums to 1
    rest = np.linalg.lstsq(one[:, :-1], p(400, std) - columns[:, -1], rcond=1e-9)[0]
    shares = np.append(rest, 1 - rest.sum())
    averages = np.stack([x["average"] for s in saved for x in s.values()])
    np.testing.assert_allclose(
        adamx.reconstruct_ema(saved, std, tolerance=0.2), shares @ averages, atol=3e-3 * LONG.std()
    )


def test_snapshots_are_saved_as_arrays_and_their_order_does_not_matter():
    expected = adamx.reconstruct_ema(SAVED, 0.15)
    saved = [serialization.msgpack_restore(serialization.msgpack_serialize(x)) for x in SAVED]
    np.testing.assert_allclose(adamx.reconstruct_ema(saved[::-1], 0.15), expected, rtol=1e-4)


def test_a_snapshot_survives_the_donation_of_the_state():
    opt, theta = adamx.chain(adamx.sgd(0.1), adamx.power_ema(0.1)), jnp.ones(3)
    step = jax.jit(lambda s, p: opt.update(jnp.ones(3), s, p)[1], donate_argnums=0)
    state = step(opt.init(theta), theta)
    saved = adamx.ema_snapshot(state)
    step(state, theta)
    np.testing.assert_allclose(saved["power_ema"]["average"], 0.9)


@pytest.mark.parametrize(
    "wrap",
    {
        "where": lambda x: adamx.where("a", x),
        "groups": lambda x: adamx.partition({"a": x, "*": x}),
        "quantized": lambda x: adamx.quantize_state(x, ema="bf16", min_size=1),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_groups_and_quantized_averages_are_reconstructed(wrap):
    name, wrapped = wrap
    path = {"a": LONG, "b": LONG[::-1] * 2}
    saved = snapshots(path, opt=wrapped(adamx.power_ema((0.05, 0.1))))
    found = adamx.reconstruct_ema(saved, 0.075)
    near = 0.03 if name == "quantized" else 1e-3
    for k, x in path.items():
        if name == "where" and k == "b":
            assert found[k] is None
            continue
        truth = mean(x, weights(400, 0.075))
        assert np.max(np.abs(found[k] - truth)) <= near * np.abs(x).max()


def test_snapshots_of_a_batch_of_states_are_reconstructed():
    saved = []
    opt = adamx.power_ema((0.05, 0.1))
    path = jnp.stack([LONG, 2 * LONG])
    for t in range(20, 401, 20):
        states = jax.vmap(lambda x, t=t: follow(opt, x[:t]))(path)
        saved.append(adamx.ema_snapshot(states))
    found = adamx.reconstruct_ema(saved, 0.075)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-4)
    np.testing.assert_allclose(
        found[0], adamx.reconstruct_ema(SAVED, 0.075), atol=0.02 * LONG.std()
    )


def other_shape():
    return [*SAVED[:-1], jax.tree.map(lambda x: x[..., None] if x.ndim else x, SAVED[-1])]


def other_tree():
    last = {k: {**x, "average": {"w": x["average"]}} for k, x in SAVED[-1].items()}
    return [*SAVED[:-1], last]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: adamx.reconstruct_ema([], 0.1), ValueError, "there are no snapshots"),
        (lambda: adamx.reconstruct_ema(SAVED, 0.4), ValueError, "reconstruct_ema: std must be"),
        (lambda: adamx.reconstruct_ema(SAVED, 0.1, step=401), ValueError, "from 1 to 400"),
        (lambda: adamx.reconstruct_ema(SAVED[-1:], 0.2), ValueError, "up to .*% only; take"),
        (lambda: adamx.reconstruct_ema(other_shape(), 0.1), ValueError, r"\(3,\).*\(3, 1\)"),
        (lambda: adamx.reconstruct_ema(other_tree(), 0.1), ValueError, "different trainings"),
        (lambda: adamx.reconstruct_ema([1], 0.1), TypeError, "what ema_snapshot"),
        (lambda: adamx.reconstruct_ema(SAVED[0], 0.1), TypeError, "what ema_snapshot"),
        (lambda: adamx.ema_snapshot(adamx.adam(1.0).init(LONG[0])), ValueError, "no stage 'power_"),
        (
            lambda: adamx.reconstruct_ema(
                [adamx.ema_snapshot(adamx.power_ema().init(LONG[0]))], 0.1
            ),
            ValueError,
            "before the first step",
        ),
    ],
)
def test_what_can_not_be_reconstructed_is_an_error(make, error, says):
    with pytest.raises(error, match=says):
        make()


# In fewer bits


def test_an_average_is_quantized_where_its_slot_is_named_only():
    theta = jnp.zeros((8, 64))
    for make, _ in KINDS.values():
        opt = adamx.chain(adamx.adam(0.1), make())
        (slot, *rest) = [
            k for k in opt.init(theta)[list(opt.init(theta))[-1]] if k in ("ema", "mean")
        ]
        assert not rest

        def kept(quantized, slot=slot):
            rows = adamx.memory_usage(quantized.init(theta)).rows
            return {row.slot: row.kept_as for row in rows if row.elements >= theta.size}

        blanket = kept(adamx.quantize_state(opt, "int8", min_size=1))
        assert (blanket["mu"], blanket[slot]) == ("int8", "float32")
        named = kept(adamx.quantize_state(opt, min_size=1, **{slot: "bf16"}))
        assert (named["mu"], named[slot]) == ("float32", "bf16")
        both = kept(adamx.quantize_state(opt, "int8", min_size=1, **{slot: "bf16"}))
        assert (both["mu"], both[slot]) == ("int8", "bf16")


@pytest.mark.parametrize(
    ("opt", "slot"),
    [
        (adamx.chain(adamx.sgd(0.1), adamx.lookahead()), "slow"),
        (adamx.chain(adamx.sgd(0.1), adamx.schedule_free()), "z"),
        (adamx.chain(adamx.sgd(0.1), adamx.primal_average()), "z"),
        (adamx.chain(adamx.sgd(0.1), adamx.master_weights()), "master"),
        (adamx.accumulate(adamx.sgd(0.1), 2), "sum"),
        (adamx.chain(adamx.sgd(0.1), adamx.tail_average()), "mean_lost"),
    ],
)
def test_parameters_that_are_stepped_from_are_never_quantized(opt, slot):
    with pytest.raises(ValueError, match=rf"the slot '{slot}' can't be quantized"):
        adamx.quantize_state(opt, **{slot: "bf16"})


SPACING = {"bf16": 2.0**-7, "int8": 2.0**-4}  # the largest distance of codes, relative to a code


@pytest.mark.optimised
@pytest.mark.parametrize("codec", SPACING)
@pytest.mark.parametrize(
    "make",
    [lambda: adamx.polyak_ema(0.999), lambda: adamx.power_ema(0.1), lambda: adamx.tail_average()],
    ids=["polyak_ema", "power_ema", "tail_average"],
)
def test_an_average_of_few_bits_follows_that_of_float32(make, codec):
    """The parameters walk from 1 to 3 in 4000 steps; a step of the average is less than a code.

    A step s from code to code of the distance c has the variance cs in the mean, and s is 1 − β of
    the distance d to the parameter. Over the memory 1/(1 − β²) of the average this gives cd/2.
    """
    steps, size = 4000, 4096
    noise = jax.random.normal(jax.random.key(0), (size,))

    def path(t):
        return 1 + 2 * t / steps + 0.05 * jnp.sin(noise * t)

    def end(opt):
        def step(state, t):
            return opt.update(jnp.zeros(size), state, path(t))[1], None

        ts = jnp.arange(1.0, steps + 1)
        state = jax.jit(lambda s: jax.lax.scan(step, s, ts)[0])(opt.init(path(1.0)))
        return np.asarray(adamx.eval_params(state, path(steps)), np.float64)

    exact = end(make())
    slot = "mean" if make().init(jnp.zeros(2)).get("tail_average") else "ema"
    ratio = end(adamx.quantize_state(make(), **{slot: codec})) / exact
    distance = np.mean((3 - exact) / exact)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(size) + 1e-4  # unbiased
    assert ratio.std() < np.sqrt(SPACING[codec] * distance / 2)
    if codec == "bf16" and slot == "ema":  # rounded to the nearest it does not move
        stuck = end(adamx.quantize_state(make(), **{slot: adamx.bf16(rounding="nearest")})) / exact
        assert abs(stuck.mean() - 1) > 10 * abs(ratio.mean() - 1)


def test_a_checkpoint_goes_from_float32_to_few_bits_and_back():
    plain = adamx.chain(adamx.adamw(0.1), adamx.polyak_ema(0.9))
    few = adamx.quantize_state(plain, min_size=1, ema="bf16")
    theta, state, _ = stepped(plain, jnp.linspace(1.0, 2.0, 64))
    restored, report = adamx.restore_state(state, few, theta)
    assert not report.initialised or set(report.initialised) <= {"polyak_ema.key"}
    found = adamx.eval_params(restored, theta)
    np.testing.assert_array_equal(found, adamx.polyak_params(restored))
    np.testing.assert_allclose(found, adamx.eval_params(state, theta), rtol=2**-7)
    back, _ = adamx.restore_state(restored, plain, theta)
    np.testing.assert_array_equal(adamx.eval_params(back, theta), found)


def test_a_codec_of_ones_own_is_passed_to_read_with():
    half = adamx.Codec(
        "half",
        lambda x, bits, nonnegative: {"half": x.astype(jnp.float16)},
        lambda kept: kept["half"].astype(jnp.float32),
    )
    opt = adamx.quantize_state(adamx.polyak_ema(0.5), min_size=1, ema=half)
    state = follow(opt, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"codec 'half'.*pass it as codecs="):
        adamx.eval_params(state, jnp.ones(4))
    np.testing.assert_allclose(
        adamx.eval_params(state, jnp.ones(4), codecs=(half,)), 1.0, rtol=1e-3
    )
