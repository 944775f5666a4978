"""Schedule-free AdamW, Prodigy, Adafactor, Adam-mini; recipes by name; the family's matrix."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
import adamx.family
import reference
import reference_structure as oracle
from catalog import one_of_each_program, run, slow_but, x64

pytestmark = pytest.mark.optimised

STEPS = 120
RNG = np.random.default_rng(11)
GRADS = (np.logspace(-3, 2, 12) * (0.2 + RNG.standard_normal((STEPS, 12)))).astype(np.float32)
COMPLEX = (GRADS + 1j * RNG.standard_normal((STEPS, 12)) * GRADS[:, ::-1]).astype(np.complex64)
START = np.linspace(-1, 1, 12).astype(np.float32)
MATRIX, CUBE = (4, 3), (3, 2, 2)


def errors(updates, truth):
    """The largest error of each coordinate, relative to its largest update."""
    largest = np.abs(truth).max(axis=0)
    return np.abs(updates - truth).max(axis=0) / np.where(largest == 0, 1, largest)


# Prodigy's gradients must depend on the parameters: on a linear function its distance has no end.


CURVATURE = np.logspace(-1.5, 0.5, 12)
NOISE = 0.3 * CURVATURE * RNG.standard_normal((STEPS, 12))
TARGET = RNG.standard_normal(12)

PRODIGY = {
    "default": {},
    "numbers": {
        "learning_rate": 0.5,
        "b1": 0.8,
        "b2": 0.95,
        "b3": 0.9,
        "eps": 1e-4,
        "weight_decay": 0.1,
        "d0": 1e-3,
        "d_coef": 0.5,
    },
    "growth": {"growth_rate": 1.1, "d0": 1e-4, "weight_decay": 0.01},
    "corrected": {"use_bias_correction": True, "d0": 1e-3},
    "safeguarded": {"safeguard_warmup": True, "learning_rate": 0.3, "d0": 1e-3},
}


def descend(opt, start, dtype):
    """The gradients of a noisy quadratic as they were met, and the updates they gave."""
    h, noise, target = (jnp.asarray(x, dtype) for x in (CURVATURE, NOISE, TARGET))

    def step(carry, xi):
        state, theta = carry
        grad = h * (theta - target) + xi
        updates, state = opt.update(grad, state, theta)
        distance = state["estimate_distance"]["distance"][2]
        return (state, adamx.apply_updates(theta, updates)), (grad, updates, distance)

    theta = jnp.asarray(start, dtype)
    _, met = jax.jit(lambda theta: jax.lax.scan(step, (opt.init(theta), theta), noise))(theta)
    return [np.asarray(x) for x in met]


def prodigy_of_the_authors(grads, start, **given):
    numbers = {"learning_rate": 1.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, **given}
    numbers.setdefault("b3", np.sqrt(numbers["b2"]))
    return oracle.prodigy(grads, start, **numbers)


@pytest.mark.parametrize("name", PRODIGY)
def test_prodigy_is_the_authors_rule(name):
    """From zero, where a float32 holds even the first steps of 1e-6 to all its digits."""
    grads, updates, distances = descend(adamx.prodigy(**PRODIGY[name]), np.zeros(12), np.float32)
    truth, d = prodigy_of_the_authors(grads.astype(np.float64), np.zeros(12), **PRODIGY[name])
    assert distances[-1] > 100 * distances[0]
    np.testing.assert_allclose(distances, d, rtol=1e-5)
    assert errors(updates, truth).max() <= 2e-5


@pytest.mark.parametrize("name", PRODIGY)
def test_prodigy_in_double_precision_is_the_oracle(name):
    with x64():
        grads, updates, distances = descend(adamx.prodigy(**PRODIGY[name]), START, np.float64)
    truth, d = prodigy_of_the_authors(grads, START.astype(np.float64), **PRODIGY[name])
    np.testing.assert_allclose(distances, d, rtol=1e-9)
    assert errors(updates, truth).max() <= 1e-9


# Recorded trajectories


GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "structure.json").read_text())["cases"]
RECORDED = {case["id"]: case for case in RECORD}
NAMES = ["w", "b"]


def schedule_free_of(lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **rest):
    return adamx.schedule_free_adamw(lr, *betas, eps, weight_decay, **rest)


def prodigy_of(
    lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0.0, zero_start=False, **rest
):
    return adamx.prodigy(lr, *betas, beta3, eps, weight_decay, **rest)


def adafactor_of(learning_rate, momentum=None, weight_decay_rate=0.0, **rest):
    opt = adamx.adafactor(learning_rate, b1=momentum, **rest)
    return adamx.chain(opt, optax.add_decayed_weights(-weight_decay_rate))


def adam_mini_of(
    names, blocks, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, dim=0, n_heads=0
):
    def member(name, block):
        decays = not any(part in name for part in ("norm", "ln", "bias"))
        return adamx.adam_mini(
            lr, *betas, eps, weight_decay if decays else 0.0, blocks=BLOCKS[block]
        )

    groups = {k: member(n, b) for k, n, b in zip(NAMES, names, blocks, strict=True)}
    return optax.partition(groups, {k: k for k in NAMES})


BLOCKS = {"tensor": "tensor", "row": "row", "head": lambda shape: (1, 2)}

EQUAL = {
    "schedulefree.AdamWScheduleFreeReference": schedule_free_of,
    "prodigyopt.Prodigy": prodigy_of,
    "optax.adafactor": adafactor_of,
    "adam_mini.Adam_mini": adam_mini_of,
}


def replay(case, dtype):
    """Displacements from the start, and the evaluation parameters' or the distances, as saved."""
    kwargs, problem = case["kwargs"], np.load(GOLDEN / "problem.npz")
    quadratic = np.load(GOLDEN / "structure.npz")
    heads = kwargs.get("blocks", [""])[0] == "head"  # of torch's [out, in] = [head·dim, in]
    shapes = {"w": (2, 2, 3) if heads else (4, 3), "b": (5,)}
    start = {k: problem[f"params.{k}"].reshape(shapes[k]) for k in NAMES}
    if kwargs.get("zero_start"):
        start = jax.tree.map(np.zeros_like, start)

    def gradient(theta, t):
        if case["authority"] != "prodigyopt.Prodigy":
            return {k: problem[f"grads.{k}"][t].reshape(shapes[k]) for k in NAMES}
        h, target, noise = (
            {k: quadratic[f"quadratic.{part}.{k}"] for k in NAMES}
            for part in ("h", "target", "noise")
        )
        return {k: h[k] * (theta[k] - target[k]) + noise[k][t] for k in NAMES}

    opt = EQUAL[case["authority"]](**kwargs)
    saved, extra, moved = [], [], jax.tree.map(np.zeros_like, start)
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)  # noqa: E731
    state, update = opt.init(cast(start)), jax.jit(opt.update)
    steps = set(problem["saved_steps"].tolist())
    for t in range(len(problem["grads.b"])):
        theta = jax.tree.map(np.add, start, moved)
        updates, state = update(cast(gradient(theta, t)), state, cast(theta))
        moved = jax.tree.map(lambda m, u: m + np.asarray(u, np.float64), moved, updates)
        if t + 1 in steps:
            saved.append({k: moved[k].reshape(problem[f"params.{k}"].shape) for k in NAMES})
            if case["authority"].startswith("schedulefree"):
                theta = cast(jax.tree.map(np.add, start, moved))
                x = adamx.eval_params(state, theta)
                extra.append({f"x.{k}": np.asarray(x[k]) for k in NAMES})
            if case["authority"].startswith("prodigy"):
                extra.append({"d": np.asarray(state["estimate_distance"]["distance"][2])})
    stack = lambda rows: {k: np.stack([row[k] for row in rows]) for k in rows[0]}  # noqa: E731
    return stack(saved), stack(extra) if extra else {}


def check(id_, dtype, rtol):
    case, recorded = RECORDED[id_], np.load(GOLDEN / "structure.npz")
    problem = np.load(GOLDEN / "problem.npz")
    moved, extra = replay(case, dtype)
    for k in NAMES:
        params = recorded[f"{id_}.{k}"]
        start = 0 if case["kwargs"].get("zero_start") else problem[f"params.{k}"]
        truth = params - start
        rounding = 200 * np.finfo(np.float64).eps * np.abs(params).max(axis=0)
        if id_.startswith("schedule_free"):  # z, kept in the precision of the parameters
            rounding += math.sqrt(200) * np.finfo(dtype).eps * np.abs(params).max(axis=0)
        allowed = rtol * np.abs(truth).max(axis=0) + rounding
        assert np.all(np.abs(moved[k] - truth).max(axis=0) <= allowed), k
    for key, values in extra.items():
        truth = recorded[f"{id_}.{key}"]
        atol = 0.0
        if id_.startswith("schedule_free"):  # x is computed from z and y, which are rounded so
            atol = math.sqrt(200) * np.finfo(dtype).eps * np.abs(truth).max()
        np.testing.assert_allclose(values, truth, rtol=max(rtol, 1e-11), atol=atol)


# Prodigy's first steps of 1e-6 are a few roundings of a float32 parameter of size 1, and their
# ratios decide about d: in single precision only the runs from zero are followed.
SINGLE = [
    id_
    for id_, case in RECORDED.items()
    if not id_.startswith("prodigy") or case["kwargs"].get("zero_start")
]


@pytest.mark.slow
@pytest.mark.parametrize("id_", SINGLE)
def test_follows_the_recorded_trajectory(id_):
    check(id_, jnp.float32, rtol=1e-5)


@pytest.mark.parametrize("id_", slow_but(list(one_of_each_program(RECORDED))[::3], RECORDED))
def test_follows_it_in_double_precision(id_):
    """Optax takes Adafactor's 1 − t^−0.8 in float32, whatever the parameters are."""
    with x64():
        check(id_, jnp.float64, rtol=2e-6 if id_.startswith("adafactor") else 1e-10)


# Schedule-free: the average as a stage


def test_behind_gradient_descent_the_average_is_the_mean_of_all_iterates():
    opt = adamx.chain(adamx.sgd(0.1), adamx.schedule_free(0.1, 0.6))
    z = np.cumsum(-0.1 * GRADS.astype(np.float64), axis=0)
    x = np.cumsum(z, axis=0) / np.arange(1, STEPS + 1)[:, None]
    y = 0.4 * z + 0.6 * x
    ours = np.cumsum(run(opt, GRADS, np.zeros(12, np.float32)).astype(np.float64), axis=0)
    assert errors(ours, y).max() <= 1e-5


def test_behind_adam_without_momentum_it_is_schedule_free_adamw():
    opt = adamx.chain(adamx.adam(0.01, b1=0.0), adamx.schedule_free(0.01))
    named = adamx.schedule_free_adamw(0.01)
    assert errors(run(opt, GRADS, START), run(named, GRADS, START)).max() <= 1e-5


def test_without_interpolation_schedule_free_leaves_the_update_alone():
    opt = adamx.chain(adamx.adamax(0.01), adamx.schedule_free(0.01, b1=0.0))
    zeros = np.zeros(12, np.float32)
    assert errors(run(opt, GRADS, zeros), run(adamx.adamax(0.01), GRADS, zeros)).max() <= 1e-5


def test_the_interpolation_may_be_scheduled():
    def b1(t):
        return 0.9 - 0.5 / (t + 1)

    with x64():
        opt = adamx.schedule_free_adamw(0.01, b1)
        grads, start = GRADS.astype(np.float64), START.astype(np.float64)
        ours = run(opt, grads, start)
    values = 0.9 - 0.5 / np.arange(1, STEPS + 1)
    truth, _ = oracle.schedule_free_adamw(grads, start, 0.01, values, 0.999, 1e-8)
    assert errors(ours, truth).max() <= 1e-6  # β₁ itself comes in float32, from an int32 count


def test_the_largest_learning_rate_so_far_weighs_the_iterates():
    rates = 0.01 / np.sqrt(np.arange(1, STEPS + 1))
    ours = run(adamx.schedule_free_adamw(lambda t: 0.01 / jnp.sqrt(t + 1)), GRADS, START)
    truth, _ = oracle.schedule_free_adamw(GRADS, START, rates, 0.9, 0.999, 1e-8)
    assert errors(ours, truth).max() <= 1e-5


def test_the_correction_is_the_packages_and_the_papers_is_another_chain():
    """The paper multiplies γ by √(1−β₂ᵗ), the package's default divides v; so does the recipe."""
    grads, start = GRADS.astype(np.float64), START.astype(np.float64)
    numbers = (grads, start, 0.01, 0.9, 0.99, 1e-3, 0.1)
    package, _ = oracle.schedule_free_adamw(*numbers)
    paper, _ = oracle.schedule_free_adamw(*numbers, paper=True)

    def rate(t):
        return 0.01 * jnp.sqrt(-jnp.expm1((t + 1.0) * math.log(0.99)))

    chain = adamx.chain(
        adamx.scale_by_rms(0.99, 0.0, eps_hat=1e-3),
        adamx.add_decayed_weights(0.1),
        adamx.scale_by_learning_rate(rate),
        adamx.schedule_free(rate),
    )
    named = run(adamx.schedule_free_adamw(0.01, b2=0.99, eps=1e-3, weight_decay=0.1), GRADS, START)
    assert errors(named, package).max() <= 3e-5
    assert errors(run(chain, GRADS, START), paper).max() <= 3e-5
    assert errors(named, paper).max() > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_the_parameters_for_evaluation(dtype):
    opt = optax.chain(optax.identity(), adamx.schedule_free_adamw(0.01, warmup_steps=10))
    y = jnp.asarray(START[:4], dtype)
    state = opt.init(y)
    np.testing.assert_array_equal(adamx.eval_params(state, y), y)
    for grad in GRADS[:50, :4]:
        updates, state = opt.update(jnp.asarray(grad, dtype), state, y)
        y = adamx.apply_updates(y, updates)
    x = adamx.eval_params(state, y)
    assert x.dtype == y.dtype
    _, path = oracle.schedule_free_adamw(
        GRADS[:50, :4], START[:4], 0.01, 0.9, 0.999, 1e-8, warmup_steps=10
    )
    np.testing.assert_allclose(
        np.asarray(x, np.complex128), path[-1], atol=0.05 if dtype == "bfloat16" else 1e-5
    )


def test_the_parameters_for_evaluation_need_the_stage():
    with pytest.raises(ValueError, match=r"0 stages named 'schedule_free'.*add schedule_free"):
        adamx.eval_params(adamx.adam(0.1).init(START), START, name="schedule_free")


def test_weights_neither_overflow_nor_vanish():
    """t^r is 1e40 at the end, γ^p 1e-80: only their ratios count."""
    opt = adamx.chain(adamx.sgd(1e-8), adamx.schedule_free(1e-8, r=20.0, weight_lr_power=10.0))
    c = np.arange(1, STEPS + 1) ** 20.0
    z = np.cumsum(np.full(STEPS, -1e-8))
    x = np.cumsum(c * z) / np.cumsum(c)
    ours = np.cumsum(run(opt, np.ones((STEPS, 1), np.float32), np.zeros(1, np.float32)))
    np.testing.assert_allclose(ours, 0.1 * z + 0.9 * x, rtol=1e-5)


# Prodigy


def test_prodigy_measures_all_parameters_at_once():
    grads, start = GRADS.astype(np.float64), START.astype(np.float64)
    whole = {"a": grads}
    parts = {"a": grads[:, :5], "b": grads[:, 5:].reshape(STEPS, 7, 1)}
    with x64():
        one = run(adamx.prodigy(d0=1e-3), whole, {"a": start})["a"]
        two = run(adamx.prodigy(d0=1e-3), parts, {"a": start[:5], "b": start[5:].reshape(7, 1)})
    joined = np.concatenate([two["a"], two["b"].reshape(STEPS, 7)], axis=1)
    assert errors(joined[:30], one[:30]).max() <= 1e-9


@pytest.mark.parametrize("power", [-12, 9])
def test_rescaled_gradients_change_nothing_for_prodigy(power):
    opt = adamx.prodigy(eps=0.0, d0=1e-3)
    grads, start = GRADS[:30], np.zeros(12, np.float32)
    np.testing.assert_array_equal(
        run(opt, grads, start), run(opt, grads * np.float32(2.0**power), start)
    )


def test_the_distance_never_shrinks_and_grows_as_it_may():
    _, _, free = descend(adamx.prodigy(d0=1e-4), START, np.float32)
    _, _, limited = descend(adamx.prodigy(d0=1e-4, growth_rate=1.1), START, np.float32)
    assert np.all(np.diff(free) >= 0) and np.all(np.diff(limited) >= 0)
    first = np.argmax(limited > limited[0])  # the first rise above d₀ is free
    ratios = limited[first + 1 :] / limited[first:-1]
    assert ratios.max() <= 1.1 * (1 + 1e-6) and (free[1:] / free[:-1]).max() > 1.1


def test_prodigy_does_not_move_its_start_with_the_parameters():
    params = jnp.ones(4)
    state = adamx.prodigy().init(params)
    kept = state["estimate_distance"]["params0"]
    assert kept.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()
    _, after = adamx.prodigy().update(params, state, 2 * params)
    np.testing.assert_array_equal(after["estimate_distance"]["params0"], params)


# Factored and shared moments


def test_what_adafactor_keeps():
    params = {
        "matrix": jnp.ones((130, 128)),
        "narrow": jnp.ones((300, 127)),
        "kernel": jnp.ones((3, 128, 140)),
        "vector": jnp.ones(500),
        "scalar": jnp.ones(()),
    }
    kept = adamx.adafactor().init(params)["scale_by_factored_rms"]["nu"]
    assert jax.tree.map(jnp.shape, kept) == {
        "matrix": {"row": (128,), "column": (130,)},
        "narrow": (300, 127),
        "kernel": {"row": (3, 128), "column": (3, 140)},
        "vector": (500,),
        "scalar": (),
    }


def test_factors_of_squares_of_rank_one_are_exact():
    a, b = np.abs(RNG.standard_normal((2, 6))).astype(np.float32)
    grads = np.stack([np.outer(a, b), np.outer(-a, b)])
    factored = adamx.scale_by_factored_rms(eps=0.0, min_dim_size_to_factor=1)
    np.testing.assert_allclose(run(factored, grads), np.sign(grads), rtol=1e-6)


def test_the_weight_of_a_late_gradient_keeps_its_digits():
    """1 − β = t^−0.8 is 1e-4 at t = 10⁵: from β in float32 only four digits of it would be left."""
    opt = adamx.scale_by_factored_rms()
    state = opt.init(jnp.zeros(3))
    state["scale_by_factored_rms"]["steps"] = jnp.float32(99_999)
    _, state = opt.update(jnp.ones(3), state)
    np.testing.assert_allclose(state["scale_by_factored_rms"]["nu"], 1e-4, rtol=1e-6)


def test_a_factored_moment_goes_behind_momentum():
    """One statistic each: momentum's bias remains to be corrected, the moment's own has none."""
    grads = GRADS.reshape(STEPS, 3, 4)
    opt = adamx.chain(
        adamx.scale_by_momentum(0.9),
        adamx.scale_by_factored_rms(min_dim_size_to_factor=1),
        adamx.bias_correction(),
    )
    mean = reference.decaying_average(grads, 0.9)
    mean /= 1 - 0.9 ** np.arange(1, STEPS + 1)[:, None, None]
    plain = run(adamx.scale_by_factored_rms(min_dim_size_to_factor=1), grads)
    np.testing.assert_allclose(run(opt, grads), mean * plain / grads, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("blocks", [lambda shape: (), "row"])
def test_blocks_of_one_element_are_adam(blocks):
    opt = adamx.adam_mini(0.01, blocks=blocks)
    np.testing.assert_array_equal(run(opt, GRADS, START), run(adamx.adam(0.01), GRADS, START))


def test_negative_axes_count_from_the_end():
    grads = GRADS.reshape(STEPS, *CUBE)
    named = adamx.scale_by_block_rms(blocks="row")
    counted = adamx.scale_by_block_rms(blocks=lambda shape: (-1, -2))
    np.testing.assert_array_equal(run(named, grads), run(counted, grads))


def test_blocks_that_mean_nothing_are_an_error():
    with pytest.raises(ValueError, match=r"'tensor', 'row', 'column' or a function.*'heads'"):
        adamx.adam_mini(0.1, blocks="heads").init(START)
    with pytest.raises(ValueError, match=r"axes \(3,\) for an array of shape \(12,\)"):
        adamx.adam_mini(0.1, blocks=lambda shape: (3,)).init(START)


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_clipping_by_the_root_mean_square(threshold):
    u = run(adamx.clip_by_block_rms(threshold), GRADS)
    rms = np.sqrt(np.mean(GRADS.astype(np.float64) ** 2, axis=1, keepdims=True))
    np.testing.assert_allclose(u, GRADS / np.maximum(1, rms / threshold), rtol=1e-5)


# Recipes by name


def test_a_recipe_is_found_by_its_name():
    for name in adamx.list_recipes():
        assert adamx.get_recipe(name) is getattr(adamx, name)


def test_recipes_are_listed_by_pattern_and_sorted():
    found = adamx.list_recipes()
    assert found == sorted(found) and set(found) == set(adamx.recipes.__all__)
    assert {"adam", "adamax", "adam_mini"} <= set(adamx.list_recipes("adam*"))
    assert all(name.startswith("adam") for name in adamx.list_recipes("adam*"))
    assert adamx.list_recipes("?gd") == ["sgd"]
    assert adamx.list_recipes("nothing") == []


def test_an_unknown_recipe_is_an_error_with_the_near_ones():
    with pytest.raises(ValueError, match="no recipe 'adm'; did you mean 'adam'"):
        adamx.get_recipe("adm")
    with pytest.raises(ValueError, match="no recipe 'SGD'; did you mean 'sgd'"):
        adamx.get_recipe("SGD")
    with pytest.raises(ValueError, match="no recipe 'Prodigy'; did you mean 'prodigy'"):
        adamx.get_recipe("Prodigy")
    with pytest.raises(ValueError, match=r"no recipe 'zzzz'; there are .*adam, .*sgd"):
        adamx.get_recipe("zzzz")
    with pytest.raises(TypeError, match="takes the name of a recipe"):
        adamx.get_recipe(adamx.adam)


# The family's page


def test_the_tables_are_read_off_the_chains():
    laprop = adamx.family.Member(
        "laprop",
        "",
        {"axes": adamx.kernel_axes},
        ("scale_by_rms", "bias_correction", "scale_by_momentum", "bias_correction"),
    )
    signum = adamx.family.Member("signum", "", {}, ("scale_by_momentum",))
    family = [laprop, signum]
    rows = [row.split(" | ") for row in adamx.family.markdown(family).splitlines()]
    cells = {row[0].strip("| `"): row[-1].strip("| ") for row in rows if row[0].startswith("| `")}
    users = {"scale_by_rms": "`laprop`", "scale_by_momentum": "`laprop` · `signum`"}
    assert users.items() <= cells.items()
    assert cells["laprop"] == "`axes=kernel_axes`"
    chain = "`scale_by_rms` · `bias_correction` · `scale_by_momentum` · `bias_correction` |"
    assert chain in adamx.family.markdown(family)


def test_the_command_prints_every_recipe(capsys):
    adamx.family.main([])
    printed = capsys.readouterr().out
    assert "adam(learning_rate, b1=0.9, b2=0.999, eps=1e-08" in printed
    head = printed.partition("\n\n")[0].splitlines()
    assert set(adamx.list_recipes()) <= {line.split()[0] for line in head}
    assert max(map(len, head)) <= 100


def test_the_page_is_up_to_date(capsys):
    adamx.family.main(["--markdown"])
    page = Path(__file__).parents[1] / "docs" / "family.md"
    assert page.exists() and page.read_text() == capsys.readouterr().out, (
        "docs/family.md is not what the recipes are; make it again with\n"
        "    python -m adamx.family --markdown > docs/family.md"
    )
