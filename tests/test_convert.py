"""A training begun with Optax or PyTorch goes on here, and the other way round."""

import functools
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.tools import convert
from catalog import x64

pytestmark = pytest.mark.sampled

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "golden" / "convert.json").read_text())
CASES = {case["id"]: case for case in RECORD["cases"]}
GOLDEN, PROBLEM = (np.load(HERE / "golden" / f"{name}.npz") for name in ("convert", "problem"))
MIDDLE, NAMES = RECORD["middle"], ["w", "b"]  # in PyTorch's order; in JAX's b is the first
GRADS = {name: PROBLEM[f"grads.{name}"].astype(np.float32) for name in NAMES}
START = {name: PROBLEM[f"params.{name}"] for name in NAMES}
HAS_TORCH = importlib.util.find_spec("torch") is not None


@functools.cache
def compiled(opt):
    return jax.jit(opt.update)


def go(opt, state, start, steps, dtype=jnp.float32):
    """Where a run with either library's protocol gets to, as its updates sum up, and its state."""
    update, moved = compiled(opt), {name: np.zeros_like(start[name]) for name in NAMES}
    with jax.numpy_dtype_promotion("standard"):  # as Optax needs it
        for t in steps:
            params = {k: jnp.asarray(start[k] + moved[k], dtype) for k in NAMES}
            updates, state = update(
                {k: jnp.asarray(GRADS[k][t], dtype) for k in NAMES}, state, params
            )
            moved = {k: moved[k] + np.asarray(updates[k], np.float64) for k in NAMES}
    return moved, state


def begun(opt, dtype=jnp.float32):
    return go(opt, opt.init(start(dtype)), START, range(MIDDLE), dtype)


def start(dtype=jnp.float32):
    return {name: jnp.asarray(START[name], dtype) for name in NAMES}


def assert_close(ours, theirs, tolerance=1e-6):
    """Equal to 1e-6 of the array's largest number."""
    for name in NAMES:
        size = np.abs(theirs[name]).max()
        assert size > 0
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=tolerance * size)


def decaying(t):
    return 0.01 * 0.9**t


# Optax


def rmsprop_inside(rate):
    """optax.rmsprop with momentum: the learning rate is inside the velocity."""
    spread = adamx.scale_by_rms(0.9, 0.0, eps_hat=1e-8)
    return adamx.chain(spread, adamx.scale_by_learning_rate(rate), adamx.scale_by_heavy_ball(0.5))


def radam_beside(rate, b2):
    return adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_rms(b2, eps=1e-8),
        adamx.rectify(),
        adamx.bias_correction(),
        adamx.scale_by_learning_rate(rate),
    )


def amsgrad_of_optax(rate, b2):
    return adamx.chain(optax.scale_by_amsgrad(b2=b2), adamx.scale_by_learning_rate(rate))


def adagrad_with_eps_in_the_sum(rate):
    return adamx.adagrad(rate, 0.0, initial_accumulator_value=1e-4 + 1e-3)


def clipped(library):
    return lambda rate, b2: library.chain(optax.clip(0.1), library.adam(rate, b2=b2))


def of(make, **numbers):
    return functools.partial(make, **numbers)


# Optax rounds 1 − β₂ᵗ to float32, so that for β₂ = 0.999 its first steps are off by 1e-5: it is
# followed there in double precision.
ADAMS = {
    "adam": (optax.adam, adamx.adam),
    "adamw": (
        of(optax.adamw, weight_decay=0.1, mask={"w": True, "b": True}),
        of(adamx.adamw, weight_decay=0.1),
    ),
    "amsgrad": (optax.amsgrad, amsgrad_of_optax),
    "adamax": (optax.adamax, adamx.adamax),
    "nadam": (optax.nadam, of(adamx.nadam, momentum_decay=math.inf)),
    "radam": (optax.radam, radam_beside),
    "clipped": (clipped(optax), clipped(adamx)),
}
OTHERS = {
    "rmsprop": (of(optax.rmsprop, eps_in_sqrt=False), adamx.rmsprop),
    "rmsprop_momentum": (of(optax.rmsprop, eps_in_sqrt=False, momentum=0.5), rmsprop_inside),
    "rmsprop_centered": (
        of(optax.rmsprop, eps_in_sqrt=False, centered=True),
        of(adamx.rmsprop, centered=True),
    ),
    "adagrad": (
        of(optax.adagrad, initial_accumulator_value=1e-4, eps=1e-3),
        adagrad_with_eps_in_the_sum,
    ),
    "sgd": (of(optax.sgd, momentum=0.9), of(adamx.sgd, momentum=0.9)),
}
OPTAX = [*ADAMS, *OTHERS]


def pair(case, rate, b2):
    """The two optimisers that are equal."""
    if case in ADAMS:
        return [make(rate, b2=b2) for make in ADAMS[case]]
    return [make(rate) for make in OTHERS[case]]


def check_both_ways(case, rate, b2, dtype, tolerance):
    tx, opt = pair(case, rate, b2)
    _, theirs = begun(tx, dtype)
    told = {"initial_accumulator_value": 1e-4} if case == "adagrad" else {}
    state = convert.from_optax(theirs, opt, count=MIDDLE, **told)
    fresh = opt.init(start(dtype))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, fresh)
    later = range(MIDDLE, 2 * MIDDLE)
    truth, _ = go(tx, theirs, START, later, dtype)
    ours, last = go(opt, state, START, later, dtype)
    assert_close(ours, truth, tolerance)
    assert last["count"] == 2 * MIDDLE
    _, state = begun(opt, dtype)
    back = convert.to_optax(state, opt, tx.init(start(dtype)))
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, theirs)
    assert_close(go(tx, back, START, later, dtype)[0], truth, tolerance)


@pytest.mark.parametrize("case", OPTAX)
def test_a_training_with_a_schedule_goes_on_across_optax(case):
    check_both_ways(case, decaying, 0.95, jnp.float32, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTAX)
def test_it_does_so_to_the_last_digits_in_double_precision(case):
    with x64():
        check_both_ways(case, 0.01, 0.999, jnp.float64, 1e-11)


# PyTorch


def l2_adam(lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    return adamx.adam(lr, *betas, eps)


EQUAL = {
    "Adam": lambda lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=False: (
        adamx.amsgrad if amsgrad else adamx.adam
    )(lr, *betas, eps),
    "AdamW": lambda lr, weight_decay: adamx.adamw(lr, weight_decay=weight_decay),
    "Adamax": lambda lr, betas, eps: adamx.adamax(lr, *betas, eps),
    "NAdam": lambda lr, betas, eps, momentum_decay: adamx.nadam(
        lr, *betas, eps, momentum_decay, constant_decay=True
    ),
    "RAdam": lambda lr, betas, eps: adamx.radam(lr, *betas, eps),
    "RMSprop": lambda lr, **rest: adamx.rmsprop(lr, 0.99, **rest),
    "Adagrad": lambda lr, **rest: adamx.adagrad(lr, **rest),
    "SGD": lambda lr, **rest: adamx.sgd(lr, **rest),
}


def equal(case):
    """The chain that is equal to a recorded optimiser."""
    numbers = dict(case["kwargs"])
    if case["scheduled"]:
        rate = numbers["lr"]
        numbers["lr"] = lambda t: rate * 0.9**t
    return EQUAL[case["optimiser"]](**numbers)


def recorded(case):
    """state_dict() of PyTorch in the middle of the training."""
    state = {i: {} for i in range(len(NAMES))}
    for key in GOLDEN.files:
        id_, array, name = key.split(".")
        if id_ == case["id"] and array != "path":
            state[NAMES.index(name)][array] = GOLDEN[key]
    return {"state": state, "param_groups": [case["group"]]}


def middle_and_end(case):
    """Where PyTorch was in the middle, and how far it went from there."""
    paths = {name: GOLDEN[f"{case['id']}.path.{name}"] for name in NAMES}
    return {k: x[0] for k, x in paths.items()}, {k: x[-1] - x[0] for k, x in paths.items()}


@pytest.fixture
def torch_or_arrays(monkeypatch):
    """Where PyTorch is not installed, its tensors are NumPy arrays."""
    if not HAS_TORCH:
        stand_in = types.SimpleNamespace(from_numpy=np.asarray, tensor=np.asarray)
        monkeypatch.setitem(sys.modules, "torch", stand_in)


@pytest.mark.parametrize("id_", CASES)
def test_a_training_goes_on_from_what_pytorch_has_recorded(id_):
    case = CASES[id_]
    opt, (middle, rest) = equal(case), middle_and_end(case)
    state = convert.from_torch(recorded(case), opt, start(), NAMES, count=MIDDLE)
    fresh = opt.init(start())
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, fresh)
    assert_close(go(opt, state, middle, range(MIDDLE, 2 * MIDDLE))[0], rest)


@pytest.mark.parametrize("id_", CASES)
def test_to_torch_gives_the_state_that_pytorch_would_have(id_, torch_or_arrays):
    case = CASES[id_]
    opt, wanted = equal(case), recorded(case)
    target = {"state": {}, "param_groups": [case["group"]]}
    given = convert.to_torch(begun(opt)[1], opt, target, start(), NAMES)
    assert given["param_groups"] == target["param_groups"] and target["state"] == {}
    assert given["state"].keys() == wanted["state"].keys()
    for index, arrays in wanted["state"].items():
        assert given["state"][index].keys() == arrays.keys()
        for name, x in arrays.items():
            ours = np.asarray(given["state"][index][name])
            np.testing.assert_allclose(ours, x, rtol=0, atol=1e-6 * np.abs(x).max(), err_msg=name)


if HAS_TORCH:
    import torch

    def live(case, middle):
        """PyTorch's optimiser, as if it had been made now."""
        tensors = {k: torch.tensor(middle[k], requires_grad=True) for k in NAMES}
        optimizer = getattr(torch.optim, case["optimiser"])(
            list(tensors.values()), **case["kwargs"]
        )
        return tensors, optimizer

    @pytest.mark.parametrize("id_", CASES)
    def test_pytorch_itself_goes_on(id_):
        case = CASES[id_]
        opt, (middle, rest) = equal(case), middle_and_end(case)
        tensors, optimizer = live(case, middle)
        state_dict = convert.to_torch(begun(opt)[1], opt, optimizer.state_dict(), start(), NAMES)
        optimizer.load_state_dict(state_dict)
        for t in range(MIDDLE, 2 * MIDDLE):
            if case["scheduled"]:
                optimizer.param_groups[0]["lr"] = case["kwargs"]["lr"] * 0.9**t
            for name, tensor in tensors.items():
                tensor.grad = torch.tensor(PROBLEM[f"grads.{name}"][t])
            optimizer.step()
        assert_close({k: tensors[k].detach().numpy() - middle[k] for k in NAMES}, rest)
        held = optimizer.state_dict()  # tensors, and a parameter that wants a gradient
        back = convert.from_torch(held, opt, start(), NAMES, count=2 * MIDDLE)
        assert back["count"] == 2 * MIDDLE


def test_a_transform_turns_the_layout_both_ways(torch_or_arrays):
    case = CASES["adam_other"]
    opt, params = equal(case), {"w": jnp.zeros((3, 4)), "b": jnp.zeros(5)}
    turned = {"transform": lambda path, x: x.T if path == "w" else x}
    state = convert.from_torch(recorded(case), opt, params, NAMES, **turned)
    np.testing.assert_allclose(
        state["scale_by_rms"]["nu"]["w"], GOLDEN["adam_other.exp_avg_sq.w"].T, rtol=1e-6
    )
    back = convert.to_torch(state, opt, recorded(case), params, NAMES, **turned)
    np.testing.assert_allclose(
        back["state"][0]["exp_avg"], GOLDEN["adam_other.exp_avg.w"], rtol=1e-6
    )


# What is around a chain


def test_clocks_are_as_after_that_many_steps_of_schedules_too():
    opt = adamx.adam(1e-3, b1=lambda t: 0.5 + 0.1 / (t + 1), b2=optax.linear_schedule(0.9, 0.99, 9))
    theirs = begun(optax.adam(1e-3))[1]
    state, own = convert.from_optax(theirs, opt), begun(opt)[1]
    for stage in ("scale_by_momentum", "scale_by_rms"):
        np.testing.assert_array_equal(state[stage]["log_decay"], own[stage]["log_decay"])


def test_every_group_of_a_partition_takes_its_parameters():
    adam = CASES["adamw"]
    torchs = recorded(adam)
    torchs["param_groups"] = [{**adam["group"], "params": [i]} for i in range(2)]
    rate, decay = adam["kwargs"]["lr"], adam["kwargs"]["weight_decay"]
    opt = adamx.partition({"w": adamx.adamw(rate, weight_decay=decay), "*": equal(adam)})
    middle, rest = middle_and_end(adam)
    state = convert.from_torch(torchs, opt, start(), NAMES)
    assert_close(go(opt, state, middle, range(MIDDLE, 2 * MIDDLE))[0], rest)


def test_stored_slots_are_encoded_and_decoded():
    plain, stored = (
        adamx.adam(0.01),
        adamx.quantize_state(adamx.adam(0.01), adamx.int8(block_size=3), min_size=6),
    )
    tx = optax.adam(0.01)
    _, theirs = begun(tx)
    state = convert.from_optax(theirs, stored)
    assert jax.tree.structure(state) == jax.tree.structure(stored.init(start()))
    assert set(state["scale_by_rms"]["nu"]["w"]) == {"@int8"}
    for slot in ("mu", "nu"):
        exact = adamx.dequantize(convert.from_optax(theirs, plain), slot)
        np.testing.assert_array_equal(adamx.dequantize(state, slot)["b"], exact["b"])
        got = adamx.dequantize(state, slot)["w"]
        assert 0 < np.abs(got - exact["w"]).max() < 0.02 * np.abs(exact["w"]).max()
        back = convert.to_optax(state, stored, tx.init(start()))
        np.testing.assert_array_equal(getattr(back[0], slot)["w"], got)
    stored.update(start(), state)  # of the shapes and dtypes that it keeps


def test_low_precision_is_widened_and_narrowed_to_what_each_side_keeps():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    tx, opt = optax.adam(0.1), adamx.chain(adamx.adam(0.1), adamx.watch())
    with jax.numpy_dtype_promotion("standard"):
        _, theirs = tx.update(params, tx.init(params))
    state = convert.from_optax(theirs, opt, params)
    assert state["scale_by_rms"]["nu"]["w"].dtype == jnp.float32
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, opt.init(params))
    back = convert.to_optax(state, opt, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, back, theirs)


def test_what_a_compensated_average_has_lost_starts_at_nothing():
    _, theirs = begun(optax.adam(0.01))
    state = convert.from_optax(theirs, adamx.adam(0.01, compensated=True))
    assert not any(np.any(x) for x in state["scale_by_rms"]["nu_lost"].values())


def test_an_injected_state_is_converted_inside():
    params, opt = start(), adamx.adam(0.01)
    tx = optax.inject_hyperparams(optax.adam)(0.01)
    with jax.numpy_dtype_promotion("standard"):
        _, theirs = tx.update(params, tx.init(params))
    with pytest.raises(adamx.StageError, match=r"convert its \.inner_state, and write it back"):
        convert.from_optax(theirs, opt)
    state = convert.from_optax(theirs.inner_state, opt)
    inner = convert.to_optax(state, opt, tx.init(params).inner_state)
    jax.tree.map(np.testing.assert_array_equal, theirs._replace(inner_state=inner), theirs)


# What can't be converted

VECTOR = {"w": jnp.zeros(3)}


def optax_state(tx):
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(VECTOR, tx.init(VECTOR), VECTOR)[1]


REFUSED_OPTAX = {
    "amsgrad": (optax.amsgrad(0.1), adamx.amsgrad(0.1), {}, "maximum of v̂.*scale_by_amsgrad"),
    "warming": (optax.nadam(0.1), adamx.nadam(0.1), {}, "warms up.*momentum_decay=math.inf"),
    "order": (optax.adam(0.1), adamx.laprop(0.1), {}, "in this order, and the chain"),
    "velocity": (
        optax.rmsprop(decaying, momentum=0.5),
        adamx.rmsprop(decaying, momentum=0.5),
        {},
        "contains the learning rate.*Write the chain in Optax's order",
    ),
    "outside": (
        optax.chain(optax.scale_by_rms(), optax.trace(0.5), optax.scale(-0.1)),
        rmsprop_inside(0.1),
        {"count": 1},
        "is not last in its Optax chain",
    ),
    "uncounted": (optax.sgd(0.1, 0.9), adamx.sgd(0.1, 0.9), {}, "pass it as count="),
    "count": (optax.adam(0.1), adamx.adam(0.1), {"count": 7}, r"\[0\].count is 1, but count is 7"),
    "half": (optax.sgd(0.1, 0.9), adamx.sgd(0.1, 0.9), {"count": 1.5}, "not a number of steps"),
    "adagrad": (optax.adagrad(0.1), adamx.adagrad(0.1), {"count": 1}, "0.1 by default"),
    "slot": (
        optax.adam(0.1),
        adamx.chain(adamx.adam(0.1), adamx.polyak_ema()),
        {},
        r"stage 'polyak_ema', parameter \['w'\]: its slot 'ema' has no counterpart",
    ),
    "array": (
        optax.adam(0.1),
        adamx.sgd(0.1, 0.9),
        {},
        r"parameter \['w'\]: \[0\].mu of the Optax state corresponds to scale_by_momentum.mu",
    ),
    "foreign": (
        optax.sgd(0.1, 0.9),
        adamx.chain(optax.ema(0.9), adamx.sgd(0.1, 0.9)),
        {"count": 1},
        "stage 'ema': it keeps a EmaState, which the Optax state lacks",
    ),
    "unknown": (optax.yogi(0.1), adamx.yogi(0.1), {}, "scale_by_yogi.nu"),
    "wrapped": (
        optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        adamx.adam(0.1),
        {},
        r"MultiStepsState, .*convert its \.inner_opt_state",
    ),
    "shape": (
        optax.adam(0.1),
        adamx.adam(0.1),
        {"params": {"w": jnp.zeros(4)}},
        r"stage 'scale_by_momentum', parameter \['w'\]: slot 'mu' has the shape \[4\]",
    ),
    "tree": (
        optax.adam(0.1),
        adamx.adam(0.1),
        {"params": {"v": jnp.zeros(3)}},
        r"\[0\].mu and the parameters are not trees of the same",
    ),
    "measured": (
        optax.adam(0.1),
        adamx.prodigy(0.1),
        {},
        "its slot 'grad_sum' has no counterpart in the Optax state",
    ),
}


@pytest.mark.parametrize("case", REFUSED_OPTAX)
def test_what_does_not_follow_from_optax_is_refused(case):
    tx, opt, given, message = REFUSED_OPTAX[case]
    with pytest.raises(adamx.StageError, match=f"(?s){message}"):
        convert.from_optax(optax_state(tx), opt, **given)


@pytest.mark.parametrize("given", [{"count": jnp.zeros(())}, optax.adam(0.1).init, [1]])
def test_what_is_no_optax_state_is_refused(given):
    with pytest.raises(TypeError, match=r"as tx\.init"):
        convert.from_optax(given, adamx.adam(0.1))


def test_only_chains_are_converted():
    with pytest.raises(TypeError, match=r"adamx\.chain\(transformation\) makes one"):
        convert.to_optax({}, optax.adam(0.1), optax.adam(0.1).init(VECTOR))


def test_a_state_of_another_chain_is_refused():
    opt, target = adamx.adam(0.1), optax.adam(0.1).init(VECTOR)
    with pytest.raises(adamx.StageError, match=r"this chain have no \['scale_by_adamax'"):
        convert.to_optax(adamx.adamax(0.1).init(VECTOR), opt, target)
    with pytest.raises(adamx.StageError, match=r"shape \[4\], but these parameters need \[3\]"):
        convert.to_optax(opt.init({"w": jnp.zeros(4)}), opt, target)
    with pytest.raises(adamx.StageError, match="the same parameters on both sides"):
        convert.to_optax(opt.init(VECTOR), opt, optax.sgd(0.1).init(VECTOR))


def test_the_target_must_have_a_place_for_what_a_foreign_stage_keeps():
    opt = adamx.chain(optax.ema(0.9), adamx.sgd(0.1, 0.9))
    with pytest.raises(
        adamx.StageError, match="'ema': it keeps a EmaState, which the target does not"
    ):
        convert.to_optax(opt.init(VECTOR), opt, optax.sgd(0.1, 0.9).init(VECTOR))


def torchs(**changes):
    """A state dict of one parameter, of torch.optim.Adam unless told otherwise."""
    group = {"betas": (0.9, 0.999), "amsgrad": False, "params": [0]} | changes.pop("group", {})
    arrays = {"step": 3.0, "exp_avg": np.zeros(3), "exp_avg_sq": np.ones(3)} | changes
    state = {0: {name: x for name, x in arrays.items() if x is not None}}
    return {"state": state, "param_groups": [group]}


ONE, TWO = [jnp.zeros(3)], [jnp.zeros(3), jnp.zeros(3)]
PAIR = torchs(group={"params": [0, 1]})
PAIR["state"][1] = PAIR["state"][0] | {"step": 4.0}
SGD = {
    "group": {"dampening": 0, "momentum": 0.9},
    "exp_avg": None,
    "exp_avg_sq": None,
    "step": None,
}

REFUSED_TORCH = {
    "missing": (torchs(exp_avg=None), ONE, r"state\[0\] has no exp_avg; it has step, exp_avg_sq"),
    "begun": (torchs() | {"state": {}}, ONE, "Has this optimiser taken a step"),
    "beside": (torchs(max_exp_avg_sq=np.ones(3)), ONE, "has max_exp_avg_sq in addition to"),
    "shape": (torchs(exp_avg=np.zeros(4)), ONE, r"shape \[3\], but the converted array has \[4\]"),
    "turned": (torchs(exp_avg=np.zeros((2, 3))), [jnp.zeros((3, 2))], "transpose it with .* x.T"),
    "complex": (torchs(exp_avg=np.zeros(3, complex)), ONE, "squared modulus"),
    "steps": (PAIR, TWO, r"step of \[0\] is 3, but step of \[1\] is 4"),
    "number": (torchs(), TWO, "PyTorch's state has 1 parameters, but params has 2"),
    "tree": (torchs(), VECTOR, "Pass names=, the paths w in PyTorch's order"),
    "decay": (torchs(group={"betas": (0.9, 0.99)}), ONE, r"b2 is 0.999, but 0.99 in PyTorch"),
    "maximize": (torchs(group={"maximize": True}), ONE, "has maximize=True"),
    "amsgrad": (
        torchs(group={"amsgrad": True}, max_exp_avg_sq=np.ones(3)),
        ONE,
        "corresponds to scale_by_max_rms.nu, which this chain does not",
    ),
    "kind": (torchs(group={"betas": None}) | {"param_groups": [{"params": [0], "rho": 0.9}]},
             ONE, r"its group \(params, rho\) belongs to none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_TORCH)
def test_what_does_not_follow_from_pytorch_is_refused(case):
    state_dict, params, message = REFUSED_TORCH[case]
    with pytest.raises(adamx.StageError, match=message):
        convert.from_torch(state_dict, adamx.adam(0.1), params)


def test_pytorch_refuses_too_what_no_chain_can_say():
    nadam = torchs(group={"momentum_decay": 0.004}, mu_product=0.1)
    with pytest.raises(adamx.StageError, match="pass constant_decay=True"):
        convert.from_torch(nadam, adamx.nadam(0.1), ONE)
    with pytest.raises(
        adamx.StageError, match="PyTorch's state does not contain the number of steps"
    ):
        convert.from_torch(torchs(**SGD, momentum_buffer=np.ones(3)), adamx.sgd(0.1, 0.9), ONE)
    with pytest.raises(
        adamx.StageError, match="'ema': it keeps a EmaState, which PyTorch does not"
    ):
        convert.from_torch(torchs(), adamx.chain(optax.ema(0.9), adamx.adam(0.1)), ONE)
    with pytest.raises(TypeError, match=r"expected optimizer\.state_dict"):
        convert.from_torch({"step": 1}, adamx.adam(0.1), ONE)
    with pytest.raises(adamx.StageError, match="PyTorch's order; got v, but the parameters are w"):
        convert.from_torch(torchs(), adamx.adam(0.1), VECTOR, ["v"])


def test_without_pytorch_there_are_no_tensors_to_make(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        convert.to_torch(adamx.sgd(0.1).init(ONE), adamx.sgd(0.1), torchs(), ONE)
