"""Arguments by name: read, replaced, and what JAX has compiled found again."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.core import Same, StageError
from adamx.tools.config import from_config, to_config
from catalog import OPTIMISERS

pytestmark = pytest.mark.sampled

GRAD = jnp.array([1.0, -2.0])


def first_step(opt):
    return opt.update(GRAD, opt.init(GRAD), GRAD)[0]


# Reading


def test_numbers_are_named_as_short_as_can_be():
    assert adamx.hyperparams(adamx.adam(1e-3)) == {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_hat": 0.0,
        "eps_root": 0.0,
        "learning_rate": 1e-3,
    }
    twice = adamx.chain(adamx.scale_by_momentum(0.8), adamx.adam(1e-3, b1=0.9))
    found = adamx.hyperparams(twice)
    assert found["scale_by_momentum.b1"] == 0.8 and found["scale_by_momentum_2.b1"] == 0.9
    assert "b1" not in found and found["b2"] == 0.999


def test_structure_and_foreign_links_have_no_numbers():
    assert adamx.hyperparams(adamx.chain(optax.clip(1.0), adamx.align_with_gradient())) == {}


def test_a_schedule_is_read_at_a_count_or_at_a_state():
    opt = adamx.sgd(lambda t: 0.5 / (t + 1), momentum=lambda t: 0.9)
    assert callable(adamx.hyperparams(opt)["learning_rate"])
    state = opt.init(GRAD)
    for count in range(3):
        for at in (count, state):
            found = adamx.hyperparams(opt, at)
            assert found["learning_rate"] == np.float32(0.5 / (count + 1))
            assert found["momentum"] == 0.9
        _, state = opt.update(GRAD, state)


def test_numbers_are_read_under_jit_and_vmap():
    opt = adamx.sgd(optax.linear_schedule(1.0, 0.0, 4))
    read = jax.jit(lambda count: adamx.hyperparams(opt, count)["learning_rate"])
    assert read(1) == 0.75
    rates = jnp.array([0.1, 0.2])
    batch = jax.vmap(adamx.sgd)(rates)
    np.testing.assert_array_equal(adamx.hyperparams(batch)["learning_rate"], rates)
    at = jax.vmap(lambda opt: adamx.hyperparams(opt, 3)["learning_rate"])(batch)
    np.testing.assert_array_equal(at, rates)


def test_numbers_of_what_is_no_optimiser_or_no_state_are_refused():
    with pytest.raises(TypeError, match="takes an adamx optimiser"):
        adamx.hyperparams(optax.sgd(0.1))
    for at in ({"mu": GRAD}, optax.sgd(0.1, 0.9).init(GRAD), "now"):
        with pytest.raises(TypeError, match="at is a count of past updates or the"):
            adamx.hyperparams(adamx.sgd(0.1), at)


# Replacing


def test_a_number_is_replaced_and_the_original_stays():
    opt = adamx.adamw(1e-3)
    changed = opt.replace({"scale_by_rms.eps": 1e-6}, learning_rate=3e-4, b2=0.99)
    assert changed == adamx.adamw(3e-4, b2=0.99, eps=1e-6)
    assert opt == adamx.adamw(1e-3)
    assert type(changed) is adamx.Transformation


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_number_of_every_optimiser_can_be_replaced_by_the_name_it_is_read_under(name):
    opt = OPTIMISERS[name](0.1)
    found = adamx.hyperparams(opt)
    assert opt.replace(found) == opt and hash(opt.replace(found)) == hash(opt)
    rates = {key for key in found if key.rpartition(".")[2] == "learning_rate"}
    assert opt.replace(dict.fromkeys(rates, 0.2)) == opt.replace({"*.learning_rate": 0.2})
    assert opt.replace(dict.fromkeys(rates, 0.2)) != opt
    for key, value in found.items():
        if isinstance(value, float) and value < 0.5:
            assert adamx.hyperparams(opt.replace({key: value + 0.25}))[key] == value + 0.25


def test_new_values_may_be_arrays_and_schedules():
    opt = adamx.sgd(0.1, momentum=0.9)
    assert opt.replace(learning_rate=jnp.float32(0.2)) == adamx.sgd(jnp.float32(0.2), momentum=0.9)
    decay = optax.linear_schedule(0.4, 0.0, 4)
    scheduled = opt.replace(learning_rate=decay)
    assert scheduled == adamx.sgd(optax.linear_schedule(0.4, 0.0, 4), momentum=0.9)
    np.testing.assert_allclose(first_step(scheduled), -0.4 * GRAD)
    assert scheduled.replace(learning_rate=0.1) == opt
    assert opt.replace(learning_rate=1) == adamx.sgd(1.0, momentum=0.9)


def test_structure_can_be_replaced():
    assert adamx.sgd(0.1, 0.9).replace(nesterov=True) == adamx.sgd(0.1, 0.9, nesterov=True)
    by_row = adamx.adam_mini(0.1).replace(blocks="row")
    assert by_row == adamx.adam_mini(0.1, blocks="row")
    with pytest.raises(TypeError, match="scale_by_heavy_ball: nesterov must be True or False"):
        adamx.sgd(0.1, 0.9).replace(nesterov=1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lr", r"has 'lr' \(adamx calls it learning_rate\); it has b1, nesterov, b2"),
        ("betas", r"has 'betas' \(adamx calls them b1=…, b2=…\); it has b1, nesterov, b2"),
        ("weight_decay", r"adamw\(…\) decays weights"),
        ("scale_by_rms", "'scale_by_rms' is a stage; .* as in \"scale_by_rms.b2\""),
    ],
)
def test_a_name_of_another_library_or_of_a_stage_is_refused_with_what_is_meant(name, says):
    with pytest.raises(ValueError, match=says):
        adamx.adam(0.1).replace({name: 0.5})


def test_a_shared_hyperparameter_is_replaced_under_the_name_of_its_stage():
    belief = adamx.scale_by_belief(0.9)
    opt = adamx.chain(belief, adamx.schedule_free(Same("scale_by_belief", "b2")))
    with pytest.raises(
        ValueError, match=r"is shared .* replace\(\{\"schedule_free.learning_rate\": …"
    ):
        opt.replace(learning_rate=0.8)
    own = opt.replace({"schedule_free.learning_rate": 0.8})
    assert own == adamx.chain(belief, adamx.schedule_free(0.8))


def test_a_state_goes_on_under_the_new_number():
    opt = adamx.sgd(0.1, momentum=0.5)
    _, state = opt.update(GRAD, opt.init(GRAD))
    updates, state = opt.replace(learning_rate=1.0).update(GRAD, state)
    np.testing.assert_allclose(updates, -(1 + 0.5) * GRAD)
    assert state["count"] == 2


TWICE = adamx.chain(adamx.scale_by_momentum(0.8), adamx.adam(1e-3, b1=0.9))


def test_a_name_that_several_stages_have_is_refused_with_the_candidates():
    with pytest.raises(ValueError, match=r"scale_by_momentum.b1, scale_by_momentum_2.b1\."):
        TWICE.replace(b1=0.5)


def test_one_of_several_stages_or_all_of_them_can_be_named():
    second = TWICE.replace({"scale_by_momentum_2.b1": 0.5})
    assert second == adamx.chain(adamx.scale_by_momentum(0.8), adamx.adam(1e-3, b1=0.5))
    assert adamx.hyperparams(TWICE.replace({"scale_by_momentum.b1": 0.5})) == {
        **adamx.hyperparams(TWICE),
        "scale_by_momentum.b1": 0.5,
    }
    both = adamx.chain(adamx.scale_by_momentum(0.5), adamx.adam(1e-3, b1=0.5))
    assert TWICE.replace({"*.b1": 0.5}) == both


def test_groups_keep_their_parameters():
    groups = lambda rate: adamx.partition({"a": adamx.sgd(rate), "*": adamx.sgd(0.1)})  # noqa: E731
    assert groups(0.1).replace({"learning_rate@a": 0.2}) == groups(0.2)
    assert groups(0.1).replace({"scale_by_learning_rate@a.learning_rate": 0.2}) == groups(0.2)
    with pytest.raises(ValueError, match="learning_rate@a"):
        groups(0.1).replace(learning_rate=0.2)


def test_an_unknown_name_is_refused_with_the_known():
    for name in ("beta1", "scale_by_rms.b1", "scale_by_adam.b2", "*.beta", ""):
        with pytest.raises(
            ValueError, match=r"it has b1, nesterov, b2, eps, .*compensated, learning_rate"
        ):
            adamx.adam(1e-3).replace({name: 0.5})


def test_an_argument_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"'scale_by_rms\.b2' and 'b2' name the same"):
        adamx.adam(1e-3).replace({"scale_by_rms.b2": 0.9}, b2=0.99)
    with pytest.raises(ValueError, match=r"'\*.b1' and 'scale_by_momentum.b1'"):
        TWICE.replace({"*.b1": 0.9, "scale_by_momentum.b1": 0.8})


def test_a_value_outside_its_domain_is_the_stages_own_error():
    with pytest.raises(ValueError, match=r"scale_by_rms: b2 must be a decay rate in \[0, 1\)"):
        adamx.adam(1e-3).replace(b2=1.0)
    with pytest.raises(TypeError, match="scale_by_learning_rate: learning_rate must be a number"):
        adamx.adam(1e-3).replace(learning_rate="fast")


def test_a_batch_is_one_number_too_many_for_a_plain_step():
    batch = adamx.sgd(0.1).replace(learning_rate=jnp.array([0.1, 0.2]))
    with pytest.raises(StageError, match=r"jax\.vmap"):
        first_step(batch)


# Replacing while JAX traces


def test_a_traced_number_is_a_new_value():
    opt = adamx.sgd(0.1)

    @jax.jit
    def step(rate):
        return first_step(opt.replace(learning_rate=rate))

    np.testing.assert_allclose(step(0.3), -0.3 * GRAD, rtol=1e-6)
    np.testing.assert_allclose(step(0.4), -0.4 * GRAD, rtol=1e-6)
    rates = jnp.array([0.1, 0.2])
    np.testing.assert_allclose(jax.vmap(step)(rates), -rates[:, None] * GRAD[None], rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(step)(0.3), -GRAD, rtol=1e-6)


def test_replacing_inside_vmap_makes_a_batch():
    rates = jnp.array([0.1, 0.2])
    batch = jax.vmap(lambda rate: adamx.adam(1.0).replace(learning_rate=rate))(rates)
    assert batch == jax.vmap(adamx.adam)(rates)


# Programs that are compiled are found again

SCHEDULED = {
    "floats": lambda: adamx.adam(0.1),
    "arrays": lambda: adamx.adam(jnp.float32(0.1), b2=jnp.asarray(0.9)),
    "linear": lambda: adamx.adam(optax.linear_schedule(0.1, 0.0, 9)),
    "clipped": lambda: adamx.chain(optax.clip(1.0), adamx.adam(0.1), adamx.polyak_ema(0.9)),
}
COPIES = {
    "built again": lambda opt, make: make(),
    "replaced": lambda opt, make: opt.replace(adamx.hyperparams(opt)),
    "config": lambda opt, make: from_config(to_config(opt)),
    "copy": lambda opt, make: copy.copy(opt),
    "deepcopy": lambda opt, make: copy.deepcopy(opt),
}


def counted(**options):
    """A jitted first step, and a list that grows whenever it is traced."""
    traces = []

    @functools.partial(jax.jit, **options)
    def step(opt):
        traces.append(None)
        return first_step(opt)

    return step, traces


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", SCHEDULED)
def test_a_copy_finds_the_program_compiled(name, how):
    opt = SCHEDULED[name]()
    for options in ({}, {"static_argnums": 0}):
        step, traces = counted(**options)
        expected = step(opt)
        again = COPIES[how](opt, SCHEDULED[name])
        np.testing.assert_array_equal(step(again), expected)
        assert len(traces) == 1
        assert again == opt and hash(again) == hash(opt)


@pytest.mark.parametrize("name", ["floats", "arrays"])
def test_an_unpickled_optimiser_finds_the_program_compiled(name):
    step, traces = counted(static_argnums=0)
    opt = SCHEDULED[name]()
    np.testing.assert_array_equal(step(pickle.loads(pickle.dumps(opt))), step(opt))
    assert len(traces) == 1


def test_an_optimiser_that_has_run_is_the_one_that_has_not():
    """Optax's cosine turns its own number of steps into a float when it is called."""
    make = lambda: adamx.adam(optax.cosine_decay_schedule(0.1, 100))  # noqa: E731
    opt = make()
    opt.init(GRAD)
    assert opt == make() and hash(opt) == hash(make())
    again = from_config(to_config(opt))
    assert again == make() and hash(again) == hash(make())
    assert opt != adamx.adam(optax.cosine_decay_schedule(0.1, 101))


def test_new_numbers_of_an_argument_of_jit_do_not_recompile():
    step, traces = counted()
    opt = adamx.adamw(0.1)
    for rate in (0.1, 0.2):
        changed = opt.replace(learning_rate=rate, b1=rate)
        np.testing.assert_allclose(step(changed), first_step(changed), rtol=1e-6)
        step(from_config(to_config(changed)))
        step(pickle.loads(pickle.dumps(changed)))
    assert len(traces) == 1


def test_new_arrays_do_not_recompile_what_runs_outside_jit():
    seen = []

    def schedule(count):
        seen.append(None)  # whenever it is traced
        return 0.9

    opt = adamx.adam(jnp.float32(0.1), b1=schedule)
    state = opt.init(GRAD)
    seen.clear()
    for rate in (0.1, 0.2, 0.3):
        opt.replace(learning_rate=jnp.float32(rate)).update(GRAD, state, GRAD)
    assert len(seen) == 1
