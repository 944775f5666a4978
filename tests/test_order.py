"""Where stages may stand, what they hand on, and what an axis says of itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.core import Clock, Real, Rule, Slot, stage, zeros
from adamx.links.link import Around
from adamx.tools.config import from_config, to_config
from catalog import run

THETA = {"kernel": np.float32([1.0, -2.0]), "bias": np.float32([3.0])}
GRADS = {"kernel": np.float32([[0.5, -0.1]] * 4), "bias": np.float32([[2.0]] * 4)}

REFUSED = {
    "two learning rates": (
        lambda: adamx.chain(adamx.adam(0.1), adamx.adamw(0.1)),
        r"'scale_by_learning_rate'.* second learning rate .*Keep one of the two",
    ),
    "decay behind the rate": (
        lambda: adamx.chain(adamx.sgd(0.1), adamx.add_decayed_weights(0.1)),
        r"'add_decayed_weights'.*chain\(…, add_decayed_weights\(…\), scale_by_learning_rate\(…\)\)",
    ),
    "decay of a group behind the rate of all": (
        lambda: adamx.chain(adamx.sgd(0.1), adamx.where("bias", adamx.add_decayed_weights(0.1))),
        r"'add_decayed_weights'.*opposite sign",
    ),
    "an average in front of the rate": (
        lambda: adamx.chain(adamx.polyak_ema(0.0), adamx.sgd(0.1)),
        r"'polyak_ema'.*chain\(…, scale_by_learning_rate\(…\), polyak_ema\(…\)\)",
    ),
    "lookahead in front of the rate": (
        lambda: adamx.chain(adamx.lookahead(), adamx.adam(0.1)),
        r"'lookahead'.*needs the final step",
    ),
    "rounding in front of a clip": (
        lambda: adamx.chain(
            adamx.sgd(0.1), adamx.stochastic_rounding(), adamx.clip_by_global_norm(1.0)
        ),
        r"'stochastic_rounding'.*chain\(…, clip_by_global_norm\(…\), stochastic_rounding\(…\)\)",
    ),
    "two roundings": (
        lambda: adamx.chain(adamx.sgd(0.1), adamx.master_weights(), adamx.stochastic_rounding()),
        r"'master_weights'.*stochastic_rounding behind it rounds .* keep one of the two",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_stage_in_the_wrong_place_is_refused_with_the_right_order(name):
    make, message = REFUSED[name]
    with pytest.raises(adamx.StageError, match=message):
        make()


OVERLAPPING = {
    "decay behind the rates of a partition": (
        lambda: adamx.chain(
            adamx.partition({"kernel": adamx.adam(0.1), "*": adamx.sgd(0.1)}),
            adamx.where("kernel", adamx.add_decayed_weights(0.1)),
        ),
        r"'add_decayed_weights'.*opposite sign",
    ),
    "two rates by two patterns": (
        lambda: adamx.chain(
            adamx.where(("kernel", "bias"), adamx.adam(0.1)), adamx.where("bias", adamx.sgd(0.1))
        ),
        r"'scale_by_learning_rate'.* second learning rate",
    ),
    "lookahead in front of the rates of a partition": (
        lambda: adamx.chain(
            adamx.where("bias", adamx.lookahead()),
            adamx.partition({"kernel": adamx.adam(0.1), "*": adamx.sgd(0.1)}),
        ),
        r"'lookahead'.*needs the final step",
    ),
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_a_wrong_order_of_overlapping_selections_is_refused_when_the_parameters_are_known(name):
    make, message = OVERLAPPING[name]
    with pytest.raises(adamx.StageError, match=message):
        make().init(THETA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stage(place="directon"), r"place must be one of 'anywhere', .* got 'directon'"),
        (
            lambda: stage(reach="rows"),
            r"reach must be one of 'element', 'row', 'sums', 'array', got",
        ),
        (lambda: Slot(zeros, holds="positive"), r"a slot holds one of 'signed', .* got 'positive'"),
    ],
)
def test_a_word_that_does_not_exist_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


UNUSUAL = {
    "rates of two groups": lambda: adamx.chain(
        adamx.where("kernel", adamx.sgd(0.1)), adamx.where("bias", adamx.sgd(0.2))
    ),
    "averages of a group beside another one's rate": lambda: adamx.chain(
        adamx.where("bias", adamx.polyak_ema()), adamx.where("kernel", adamx.sgd(0.1))
    ),
    "a factor behind the rate": lambda: adamx.chain(adamx.sgd(0.1), adamx.scale(0.5)),
    "momentum behind the rate": lambda: adamx.chain(adamx.sgd(0.1), adamx.scale_by_momentum()),
    "an average behind the rounding": lambda: adamx.chain(
        adamx.sgd(0.1), adamx.stochastic_rounding(), adamx.polyak_ema()
    ),
    "an average without a rate": lambda: adamx.polyak_ema(),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_and_can_work_is_allowed(name):
    opt = UNUSUAL[name]()
    assert opt.update(THETA, opt.init(THETA), THETA)


def test_a_bias_that_comes_behind_its_correction_is_refused():
    """Without a correction of its own, the first step would be a tenth of −0.1 sign(g)."""
    stages = [adamx.scale_by_rms(), adamx.bias_correction(), adamx.scale_by_momentum()]
    opt = adamx.chain(*stages, adamx.scale_by_learning_rate(0.1))
    with pytest.raises(adamx.StageError, match=r"still has a bias.*Put a bias_correction\(\)"):
        opt.update(THETA, opt.init(THETA), THETA)
    corrected = adamx.chain(*stages, adamx.bias_correction(), adamx.scale_by_learning_rate(0.1))
    np.testing.assert_allclose(run(corrected, GRADS, THETA)["bias"][0], [-0.1], rtol=1e-6)


def test_cautious_in_front_of_the_rate_trains():
    """m = ½ g has the sign of g, so nothing is masked: θ falls by 0.5 and then by 0.75."""
    opt = adamx.chain(
        adamx.scale_by_momentum(0.5), adamx.cautious(), adamx.scale_by_learning_rate(1.0)
    )
    steps = run(opt, np.ones((2, 1), np.float32), np.zeros(1, np.float32))
    np.testing.assert_allclose(steps, [[-0.5], [-0.75]])


def test_a_note_that_no_stage_has_left_names_the_stage_that_leaves_it():
    opt = adamx.clip_by_relative_rms()
    with pytest.raises(
        adamx.StageError, match=r"'clip_by_relative_rms'.*put it behind scale_by_rms"
    ):
        opt.update(THETA, opt.init(THETA))


def clock():
    return Clock(lambda: jnp.zeros(()), lambda t: t + 1, lambda t: t)


CLASHES = {
    "a clock like a slot": ({"mu": zeros}, {"mu": clock()}, "both called 'mu'"),
    "a clock like the key": ({}, {"key": clock()}, "'key' is the name of the clock"),
    "a slot like the key": ({"key": zeros}, {}, "'key' is the name of the clock"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_a_name_that_is_taken_is_refused(name):
    slots, clocks, message = CLASHES[name]

    @stage
    def own():
        return Rule(lambda signal, slots, step: (signal, slots), slots=slots, clocks=clocks)

    with pytest.raises(adamx.StageError, match=f"'own': .*{message}"):
        own().init(THETA)


def test_an_error_inside_a_stage_says_what_happened_there():
    @stage
    def own(factor: Real):
        return lambda signal: signal.with_update(signal.update["x"] * factor)

    with pytest.raises(
        adamx.StageError, match=r"'own'.*update raised TypeError: .*float32\[1\]"
    ) as e:
        own(1.0).update(THETA, own(1.0).init(THETA))
    assert "same parameters" not in str(e.value)
    assert isinstance(e.value.__cause__, TypeError)


MISTAKES = {
    "no signal": (lambda signal: None, r"returned None .*return signal.with_update"),
    "an array": (lambda signal: signal.update, r"returned an array .*return signal.with_update"),
    "a number": (lambda signal: signal.with_update(0.0), r"of shape \(1,\) into one of \(\)"),
    "a complex update": (
        lambda signal: signal.with_statistic(jax.lax.complex(signal.update, signal.update)),
        r"turned a real update into a complex one",
    ),
    "a missing attribute": (lambda signal: signal.grad, r"raised AttributeError: .*'grad'"),
    "a missing key": (lambda signal: signal.notes["nu"], r"raised KeyError: 'nu'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_stage_is_named(name):
    shape, message = MISTAKES[name]

    @stage
    def own():
        return shape

    with pytest.raises(adamx.StageError, match=rf"stage 'own', parameter \['bias'\].*{message}"):
        own().update(THETA, own().init(THETA))


@pytest.mark.parametrize(
    ("of_one", "message"),
    [(jnp.abs, r"gave float32\[1\] .*must return numbers"), (lambda u: u["x"], "raised TypeError")],
)
def test_a_mistake_in_a_global_sum_is_named(of_one, message):
    @stage
    def own():
        return Rule(
            lambda signal, slots, step: (signal, slots),
            global_sum=lambda signal, slots, step: of_one(signal.update),
        )

    with pytest.raises(adamx.StageError, match=rf"'own', parameter .* its global_sum {message}"):
        own().update(THETA, own().init(THETA))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "float64"])
def test_the_stage_behind_gets_the_precision_of_statistics(dtype):
    """Whatever dtype a stage computes in, and for constants of NumPy."""

    @stage
    def own():
        def update(signal, slots, step):
            return signal.with_update(np.ones(signal.update.shape, dtype)), {"x": np.float32(1)}

        return Rule(update, slots={"x": lambda param: jnp.zeros((), jnp.float32)})

    with jax.enable_x64(dtype == "float64"):
        opt = adamx.chain(own(), adamx.adam(0.1))
        _, state = opt.update(THETA, opt.init(THETA), THETA)
    assert state["scale_by_momentum"]["mu"]["bias"].dtype == np.float32
    np.testing.assert_allclose(state["scale_by_momentum"]["mu"]["bias"], [0.1], rtol=1e-6)


def test_a_slot_starts_from_the_signal_at_its_place():
    """A stage that keeps the first two elements: behind it slots have two elements."""

    @stage
    def first_two():
        def update(signal, slots, step):
            short = signal.update[:2]
            return dataclasses.replace(signal, gradient=short, update=short), slots

        return Rule(update, reshape=lambda shape, whole: (2, *shape[1:]))

    opt = adamx.chain(first_two(), adamx.scale_by_momentum(0.5))
    theta = jnp.zeros(5)
    state = opt.init(theta)
    assert state["scale_by_momentum"]["mu"].shape == (2,)
    updates, state = opt.update(jnp.arange(5.0), state, theta)
    np.testing.assert_allclose(updates, [0.0, 0.5])
    assert state["scale_by_momentum"]["mu"].shape == (2,)


@dataclasses.dataclass(frozen=True)
class _Times:
    rule: Rule
    factor: float

    def update(self, signal, slots, step):
        signal, slots = self.rule.update(signal, slots, step)
        return signal.with_update(self.factor * signal.update), slots


class Times(Around, axis="times"):
    """Multiply what every stage inside makes of the update."""

    required = ("times",)

    def surround(self, rule):
        return dataclasses.replace(rule, update=_Times(rule, self.value).update)

    def written(self, inside):
        ((_, links),) = inside
        return f"times({self.value}, {links})"

    def to_json(self, write):
        return {"times": self.value}

    @classmethod
    def from_json(cls, row, read):
        return cls(row["times"])


def times(factor, opt):
    return adamx.Transformation(tuple(link.within(Times(factor)) for link in opt.links))


def test_an_axis_of_ones_own_needs_its_own_file_only():
    """It runs, is printed, written as JSON and read, and multiplies with the other axes."""
    opt = times(2.0, adamx.partition({"bias": adamx.sgd(0.1), "*": adamx.adam(0.1)}))
    names = {name: getattr(adamx, name) for name in adamx.__all__} | {"times": times}
    assert eval(repr(opt), names) == opt
    assert from_config(to_config(opt)) == opt
    np.testing.assert_allclose(run(opt, GRADS, THETA)["bias"], -0.2 * GRADS["bias"], rtol=1e-6)
    small = adamx.quantize_state(times(2.0, adamx.adam(0.1)), "bf16", min_size=1)
    assert set(small.init(THETA)["scale_by_rms"]["nu"]["bias"]) == {"@bf16"}
    assert from_config(to_config(small)) == small


class Halved(Around, axis="halved"):
    """What an axis does not say of itself has a default."""

    selects, label = True, "first"

    def choose(self, leaves, inside="", idle=None):
        return [i == 0 for i, _ in enumerate(leaves)]

    def surround(self, rule):
        return dataclasses.replace(rule, update=_Times(rule, 0.5).update)


def test_an_axis_overrides_only_what_it_changes():
    opt = adamx.Transformation(tuple(link.within(Halved(None)) for link in adamx.sgd(1.0).links))
    assert repr(opt) == "halved(scale_by_learning_rate(learning_rate=1.0))"
    assert set(adamx.explain(opt).groups) == {"first", "not first"}
    updates, _ = opt.update(THETA, opt.init(THETA))
    np.testing.assert_allclose(updates["bias"], -0.5 * THETA["bias"])
    np.testing.assert_array_equal(updates["kernel"], THETA["kernel"])
    with pytest.raises(TypeError, match="Halved can't be written as JSON"):
        to_config(opt)
