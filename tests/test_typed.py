# pyright: strict
"""A program as its author's strict type checker sees it: ``make lint`` checks this one.

Optax, Flax and parts of JAX leave types open; a line that meets one says so, and most are in the
few functions at the top.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, assert_type, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax  # pyright: ignore[reportMissingTypeStubs]
import pytest
from flax.training.train_state import TrainState

import adamx
from adamx.core import Clock, Decay, NonNegative, Rule, Signal, Slot, Step, decaying_average, zeros
from adamx.testing import check_stage

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    return jax.jit(function)  # pyright: ignore[reportUnknownMemberType]


def derivative(function: Callable[[R], jax.Array]) -> Callable[[R], R]:
    return jax.grad(function)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def array(*values: float) -> jax.Array:
    return jnp.asarray(values, jnp.float32)  # pyright: ignore[reportUnknownMemberType]


class Line(NamedTuple):
    """Parameters of a type of their own."""

    slope: jax.Array
    offset: jax.Array


START = Line(jnp.float32(0.0), jnp.float32(0.0))
INPUTS = array(-1.0, -0.5, 0.0, 0.5, 1.0)


def squared_error(line: Line) -> jax.Array:
    return jnp.mean((line.slope * INPUTS + line.offset - (2 * INPUTS + 1)) ** 2)


gradient = derivative(squared_error)


def train(opt: adamx.Transformation, steps: int = 3) -> tuple[Line, dict[str, Any]]:
    line, state = START, opt.init(START)
    for _ in range(steps):
        updates, state = opt.update(gradient(line), state, line)
        line = adamx.apply_updates(line, updates)
    return line, state


# Building


def test_recipes_stages_and_schedules_make_transformations() -> None:
    def schedule(count: jax.Array) -> jax.Array:
        return 1e-2 / (count + 1)

    assert_type(adamx.adam(1e-3), adamx.Transformation)
    assert_type(adamx.adam(schedule, b1=jnp.float32(0.9)), adamx.Transformation)
    assert_type(adamx.adam(optax.cosine_decay_schedule(1e-3, 10)), adamx.Transformation)
    assert_type(adamx.get_recipe("lion"), Callable[..., adamx.Transformation])
    assert_type(adamx.list_recipes("ada*"), list[str])
    opt = adamx.chain(
        optax.clip_by_global_norm(1.0),
        adamx.scale_by_momentum(0.9),
        adamx.scale_by_rms(0.999, eps=1e-8),
        adamx.bias_correction(),
        adamx.where("!offset", adamx.add_decayed_weights(1e-2)),
        adamx.scale_by_learning_rate(schedule),
        adamx.polyak_ema(0.9),
        adamx.watch(),
    )
    assert_type(opt, adamx.Transformation)
    line, state = train(opt)
    assert_type(line, Line)
    seen = adamx.metrics(state)
    assert_type(seen, dict[str, Any])
    assert seen["update_rms"] > 0
    assert isinstance(adamx.polyak_params(state), Line)


def test_groups_say_who_gets_what() -> None:
    opt = adamx.partition({"slope": adamx.adamw(1e-3), "*": adamx.set_to_zero()})
    assert_type(opt, adamx.Transformation)
    found = adamx.describe_partition(opt, START)
    assert_type(found, adamx.PartitionSummary)
    assert_type(found["slope"], adamx.Transformation)
    assert_type(found.shapes, dict[str, tuple[int, ...]])
    assert found["slope"] == adamx.adamw(1e-3)


# Training


def test_updates_have_the_type_of_gradients_and_new_parameters_that_of_old_ones() -> None:
    opt = adamx.adamw(1e-1)

    @compiled
    def step(line: Line, state: dict[str, Any]) -> tuple[Line, dict[str, Any]]:
        updates, state = opt.update(gradient(line), state, line)
        assert_type(updates, Line)
        assert_type(state, dict[str, Any])
        assert_type(adamx.apply_updates(line, updates), Line)
        return adamx.apply_updates(line, updates), state

    line, state = step(START, opt.init(START))
    line, state = step(line, state)
    np.testing.assert_allclose(line.slope, train(opt, steps=2)[0].slope, rtol=1e-5)
    assert_type(adamx.apply_updates(INPUTS, -INPUTS), jax.Array)


def test_schedule_free_parameters_keep_their_type() -> None:
    line, state = train(adamx.schedule_free_adamw(1e-1))
    assert_type(adamx.eval_params(state, line), Line)


def test_flax_takes_it() -> None:
    model, inputs = nn.Dense(1), INPUTS[:, None]
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes dtypes
        variables = model.init(jax.random.key(0), inputs)  # pyright: ignore[reportUnknownMemberType]
        state: TrainState = TrainState.create(  # pyright: ignore[reportUnknownMemberType]
            apply_fn=model.apply,  # pyright: ignore[reportUnknownMemberType]
            params=variables["params"],
            tx=adamx.adam(1e-2),
        )
        state = state.apply_gradients(grads=state.params)  # pyright: ignore[reportUnknownMemberType]
    assert state.step == 1


def test_optax_takes_it_and_it_takes_optax() -> None:
    def through(tx: optax.GradientTransformation) -> Any:
        _, state = tx.update(gradient(START), tx.init(START), START)
        return state

    assert adamx.memory_usage(through(optax.chain(optax.clip(1.0), adamx.adam(1e-1)))).bytes > 0
    assert_type(adamx.chain(optax.adam(1e-1)), adamx.Transformation)
    adamx.dequantize(through(adamx.adam(1e-1)), "mu")


# Writing a stage


@adamx.stage
def soft_sign(width: NonNegative = 1.0) -> Callable[[Signal], Signal]:
    """u ← u / (w + |u|)"""
    w = cast(float, width)  # a schedule may be given, but a number is what arrives here
    return lambda signal: signal.with_update(signal.update / (w + jnp.abs(signal.update)))


@adamx.stage
def scale_by_average(beta: Decay = 0.9, *, nesterov: bool = False) -> Rule:
    """u ← m"""
    mean = decaying_average(beta)

    def update(signal: Signal, slots: dict[str, Any], step: Step) -> tuple[Signal, dict[str, Any]]:
        mu = mean(slots["mu"], signal.update)
        assert_type(mu, jax.Array)
        u = mean(mu, signal.update) if nesterov else mu
        after = signal.with_statistic(u, weight=mean.weight(step))
        assert_type(after.gradient, jax.Array)
        assert_type(after.bias, jax.Array | None)
        return after, {"mu": mu}

    assert_type(mean.clocks, dict[str, Clock])
    return Rule(update, slots={"mu": Slot(zeros)}, clocks=mean.clocks)


@pytest.mark.slow
def test_a_stage_keeps_the_arguments_of_its_factory() -> None:
    assert_type(soft_sign(0.5), adamx.Transformation)
    opt = adamx.chain(scale_by_average(0.5, nesterov=True), adamx.scale_by_learning_rate(0.1))
    assert_type(opt, adamx.Transformation)
    with pytest.raises(TypeError, match="nestrov"):
        scale_by_average(nestrov=True)  # pyright: ignore[reportCallIssue]
    report = check_stage(soft_sign(0.5))
    assert report.held["bare"]


# An optimiser is a value


def test_numbers_replace_config_and_equations() -> None:
    opt = adamx.adamw(1e-3).replace({"scale_by_rms.eps": 1e-6}, learning_rate=3e-4)
    assert_type(opt, adamx.Transformation)
    assert_type(adamx.hyperparams(opt), dict[str, Any])
    assert adamx.hyperparams(opt)["learning_rate"] == 3e-4
    config = adamx.to_config(opt)
    assert_type(config, dict[str, Any])
    back = adamx.from_config(json.loads(json.dumps(config)))
    assert_type(back, adamx.Transformation)
    assert back == opt
    explained = adamx.explain(opt)
    assert_type(explained, adamx.Explanation)
    assert_type(explained.text, str)
    assert_type(explained.latex, str)


def test_a_sweep_is_typed_to_its_best() -> None:
    def final(opt: adamx.Transformation) -> jax.Array:
        return squared_error(train(opt)[0])

    found = adamx.sweep(final, [adamx.sgd(rate) for rate in (0.01, 0.1)])
    assert_type(found, adamx.Sweep)
    assert_type(found.best.optimiser, adamx.Transformation)
    assert_type(found.best.score, float)
    assert_type(found.best.coordinates, dict[str, float])
    assert found.best.optimiser == adamx.sgd(0.1)


# What is kept


def test_states_are_stored_measured_converted_and_restored() -> None:
    opt = adamx.quantize_state(adamx.adam(1e-1), "int8", mu=adamx.bf16(), min_size=1)
    assert_type(opt, adamx.Transformation)
    state = opt.init(INPUTS)
    assert_type(state, dict[str, Any])
    rows = adamx.memory_usage(state).rows
    assert_type(rows[0].bytes, int)
    assert adamx.dequantize(state, "nu").shape == INPUTS.shape
    restored, report = adamx.restore_state(state, adamx.adam(1e-1), INPUTS)
    assert_type(restored, dict[str, Any])
    assert_type(report.kept, tuple[str, ...])
    assert "scale_by_rms.nu" in report.kept
    assert_type(adamx.Codec("same", lambda x, bits, nonnegative: x, lambda x: x), adamx.Codec)
    tx = optax.adam(1e-1)
    theirs: Any = tx.init(INPUTS)
    assert_type(adamx.convert.from_optax(theirs, adamx.adam(1e-1), INPUTS), dict[str, Any])
