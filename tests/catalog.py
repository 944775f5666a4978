"""One row for every stage and recipe: how it is made, its oracle, its recordings, its promises.

Every table of the tests is made from these rows. A new stage or recipe is one row more.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

import adamx
import reference
import reference_matrices as matrices
import reference_moments as moments
import reference_shapes as shapes
import reference_stages as stages
import reference_structure as structure
from adamx.numerics import random

__all__ = [
    "MATRIX_RECIPES",
    "OPTIMISERS",
    "RECIPES",
    "REPRESENTATIVES",
    "ROWS",
    "STAGES",
    "VARIANTS",
    "Row",
    "one_of_each_program",
    "run",
    "slow_but",
    "x64",
]


@dataclasses.dataclass(frozen=True)
class Row:
    """What the tests know of one stage or recipe.

    Attributes:
        factory: makes the transformation from ``numbers``, by name.
        numbers: hyperparameters that factory and oracle share, away from their defaults.
        oracle: (grads, params0, **numbers) -> updates, of one array in float64.
        structure: arguments of the factory that the oracle does not have.
        usual: for what trains by itself, the arguments beside ``learning_rate`` with which it is
            one of ``OPTIMISERS``; None for a stage that is no optimiser.
        constant: numbers that are seen once, or whose schedule is tested elsewhere.
        shape: of the array that the oracle is asked for.
        single: whether the oracle is of one array alone (a sum over all, axes of a matrix).
        start: the size of the parameters at the start; 0 for what rests on the small difference
            between them and their start, of which a float32 of about 1 keeps few digits.
        steps: for how many steps the oracle is followed.
        rounding: what single-precision updates may be off by, beside 1e-5 of each coordinate's
            largest: for what keeps parameters, whose rounding is that of the update.
        double: whether it is followed in double precision only, because it amplifies rounding
            (by the inverse of small singular values).
        without: the promises of ``check_stage`` that it can't hold, each with the reason.
        golden: the programs of others whose recorded trajectories it follows.
    """

    factory: Callable[..., adamx.Transformation]
    numbers: Mapping[str, Any]
    oracle: Callable[..., np.ndarray]
    structure: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    usual: Mapping[str, Any] | None = None
    constant: frozenset[str] = frozenset()
    shape: tuple[int, ...] = (4, 3)
    single: bool = False
    start: float = 1.0
    steps: int = 200
    rounding: float = 1e-30
    double: bool = False
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)
    golden: tuple[str, ...] = ()

    def make(self, **numbers: Any) -> adamx.Transformation:
        """The transformation with the row's numbers, some of them replaced."""
        return self.factory(**{**self.numbers, **self.structure, **numbers})

    @property
    def scheduled(self) -> list[str]:
        """The numbers of which a schedule can be compared with the oracle."""
        return [name for name in self.numbers if name not in self.constant]

    def truth(self, grads: np.ndarray, params0: Any, **numbers: Any) -> np.ndarray:
        """What the oracle says of it."""
        return self.oracle(grads, params0, **{**self.numbers, **numbers})


def _free(oracle: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """An oracle whose steps do not depend on the parameters, called like the others."""
    return lambda grads, params0, **numbers: oracle(grads, **numbers)


def _direction(oracle: Callable[..., np.ndarray], **fixed: Any) -> Callable[..., np.ndarray]:
    """What an algorithm divides by, alone: its oracle with the rate −1."""
    return lambda grads, params0, **numbers: oracle(grads, learning_rate=-1.0, **fixed, **numbers)


def _of_momentum(stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage behind Adam's momentum, whose number is b1."""
    return lambda b1, **numbers: adamx.chain(adamx.scale_by_momentum(b1), stage(**numbers))


def _of_descent(stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage behind gradient descent with momentum."""
    return lambda momentum, **numbers: adamx.chain(adamx.sgd(1.0, momentum), stage(**numbers))


def _lookahead(grads: np.ndarray, params0: Any, sync_period: Any, slow_step_size: Any) -> Any:
    """A period that is no whole number ends with the next whole step."""
    return shapes.lookahead(grads, params0, math.ceil(sync_period), slow_step_size)


def _prodigy(grads: np.ndarray, params0: Any, **numbers: Any) -> np.ndarray:
    return structure.prodigy(grads, params0, **numbers)[0]


def _schedule_free(grads: np.ndarray, params0: Any, **numbers: Any) -> np.ndarray:
    power = numbers.pop("weight_lr_power")
    return structure.schedule_free_adamw(grads, params0, **numbers, power=power)[0]


def _gpa(grads: np.ndarray, params0: Any, **numbers: Any) -> np.ndarray:
    return structure.gpa_adamw(grads, params0, **numbers)[0]


def _adafactor(grads: np.ndarray, params0: Any, clipping_threshold: Any, **rest: Any) -> Any:
    return structure.adafactor(grads, params0, axes=(0, 1), threshold=clipping_threshold, **rest)


def _nadamw(grads, params0, learning_rate, weight_decay, **numbers):
    updates = moments.nadam(grads, learning_rate, **numbers)
    return reference.decoupled_weight_decay(updates, params0, learning_rate, weight_decay)


def _through(oracle: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """An oracle of a list of gradients, called like the others."""
    return lambda grads, params0, **numbers: np.array(oracle(list(grads), **numbers))


def _in_basis(basis: Callable[..., Any], **leave: Any) -> Callable[..., Any]:
    """Momentum in a basis."""
    return lambda b1, **numbers: adamx.in_basis(
        basis(**numbers), adamx.scale_by_momentum(b1), **leave
    )


def _momentum(grads: np.ndarray, params0: Any, b1: Any, **rest: Any) -> Any:
    """An average is the same in every basis that is turned as a whole."""
    return reference.decaying_average(grads, b1)


ROTATION = np.linalg.qr(np.random.default_rng(3).standard_normal((4, 4)))[0]


def _signs_in_rotation(grads: np.ndarray, params0: Any) -> np.ndarray:
    return ROTATION @ matrices.sign(ROTATION.T @ grads)


def _momentum_of_low_rank(grads: np.ndarray, params0: Any, b1: Any) -> np.ndarray:
    projected = matrices.projections(grads, 2, 3)
    inside = [matrices.adjoint(p) @ g for p, g in zip(projected, grads, strict=True)]
    means = matrices.average(inside, b1)
    return np.array([p @ m for p, (m, _) in zip(projected, means, strict=True)])


def _drawn(rows: int, rank: int, stage: str) -> np.ndarray:
    """The random matrix of the first parameter, in single precision."""
    key = random.of_parameter(random.key(0), 0, stage)
    return np.asarray(random.normal(key, (rows, rank), "float32"), np.float64) / math.sqrt(rank)


def _scaled_by_projection(
    grads: np.ndarray, params0: Any, b1: Any, eps: Any, per: str = "channel"
) -> np.ndarray:
    p = _drawn(3, 2, "random_projection")
    inside, made = p.T @ grads, []
    for g, x, (m, _) in zip(grads, inside, matrices.average(list(inside), b1), strict=True):
        by = matrices.column_norms(x) + eps if np.ndim(eps) == 0 else None
        assert by is not None
        made.append(g * np.divide(matrices.column_norms(m), by, where=by > 0, out=0 * by))
    return np.array(made)


def _residual(grads: np.ndarray, params0: Any, b1: Any, growth: float, eps: float) -> np.ndarray:
    """Momentum of rank 2 in one projection, and the rest of the gradient."""
    p, before, made = matrices.projections(grads, 2, 10**6)[0], 0.0, []
    inside = [p.conj().T @ g for g in grads]
    for g, x, (m, _) in zip(grads, inside, matrices.average(inside, b1), strict=True):
        by = matrices.column_norms(x) + eps
        rest = (g - p @ x) * np.divide(matrices.column_norms(m), by, where=by > 0, out=0 * by)
        rest, before = matrices.limited(rest, before, growth)
        made.append(p @ m + rest)
    return np.array(made)


def _limited_growth(grads: np.ndarray, params0: Any, growth: Any) -> np.ndarray:
    before, made = 0.0, []
    for g, most in zip(grads, matrices.steps_of(growth, len(grads)), strict=True):
        u, before = matrices.limited(g, before, most)
        made.append(u)
    return np.array(made)


def _apollo(grads: np.ndarray, params0: Any, learning_rate: Any, weight_decay: Any, **adam: Any):
    p, before, made = _drawn(3, 2, "random_projection"), 0.0, []
    insides, inner = matrices.adam_inside(list(grads), [p] * len(grads), **adam)
    for g, x, (u, w) in zip(grads, insides, inner, strict=True):
        ratio = matrices.column_norms(u) / (matrices.column_norms(x) + 1e-8)
        scaled, before = matrices.limited(g * ratio, before, 1.01)
        made.append(2.0 * w * scaled)
    return matrices.stepped(made, params0, learning_rate, weight_decay)


def _kronecker(grads: np.ndarray, params0: Any, b2: Any, eps: Any, exponent: Any) -> np.ndarray:
    roots = matrices.kronecker_roots(list(grads), b2, eps, exponent, every=2)
    return np.array([l @ g @ r for g, (l, r) in zip(grads, roots, strict=True)])


def _grafted(grads: np.ndarray, params0: Any, b2: Any, eps: Any) -> np.ndarray:
    """Of the gradient itself: its direction, and RMSProp's size."""
    made, epsilons = [], matrices.steps_of(eps, len(grads))
    squares = matrices.average(list(np.abs(grads) ** 2), b2)
    for g, (v, w), e in zip(grads, squares, epsilons, strict=True):
        by = np.sqrt(v / w) + e
        usual = np.divide(g, by, out=0 * g, where=by > 0)
        size = np.linalg.norm(g)
        made.append(g * (np.linalg.norm(usual) / size) if size else g)
    return np.array(made)


SMALL = {"every": 2, "spread": False}
NO_VECTORS = {"shape": (4, 3), "single": True, "double": True, "steps": 40}
NO_EQUATIONS = {"equations": "of a basis, or of a function of matrices, explain() shows the name"}
ONLY_MATRICES = {
    **NO_VECTORS,
    "without": {
        "shapes": "it takes matrices, of one size or of any",
        "largest": "one of the arrays of this check is no matrix",
    },
}
_NO_DERIVATIVE = {
    **NO_EQUATIONS,
    "derivatives": "an eigenvector has no derivative where two eigenvalues are equal",
}
_WIDE_UPDATES = {
    "narrow": "of a narrow parameter the update is a float32, which apply_updates rounds or adds"
}
PARAMETER = 2.0**-23  # a float32 of about 1 holds it to 2⁻²⁴ each time it is kept
ADAM = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-3}
ADAMW = {**ADAM, "weight_decay": 0.2}
SLOW = {**ADAMW, "learning_rate": 0.01}
PRODIGY = {
    "learning_rate": 0.5,
    "b1": 0.8,
    "b2": 0.95,
    "b3": 0.9,
    "eps": 1e-4,
    "weight_decay": 0.1,
    "d0": 1e-3,
    "d_coef": 0.5,
    "growth_rate": 1.1,
}
OF_MATRICES: dict[str, Row] = {
    "eigenbasis": Row(
        _in_basis(functools.partial(adamx.eigenbasis, **SMALL)),
        {"b1": 0.8, "b2": 0.9},
        _momentum,
        **{**NO_VECTORS, "without": _NO_DERIVATIVE},
    ),
    "fixed_basis": Row(
        lambda: adamx.in_basis(adamx.fixed_basis(ROTATION), adamx.sign()),
        {},
        _signs_in_rotation,
        **{**ONLY_MATRICES, "without": {**ONLY_MATRICES["without"], **NO_EQUATIONS}},
    ),
    "radial_brake": Row(
        _of_descent(adamx.radial_brake),
        {"momentum": 0.8, "outward": 0.5, "inward": 0.7},
        structure.radial_brake,
        rounding=PARAMETER,
        golden=("hooks.radial_brake:RadialBrakeHook",),
    ),
    "graft_to_rms": Row(adamx.graft_to_rms, {"b2": 0.9, "eps": 1e-3}, _grafted),
    "hyperball": Row(
        adamx.hyperball,
        {"learning_rate": 0.1},
        matrices.hyperball,
        rounding=PARAMETER,
        golden=("heavyball:HyperBallAdamW",),
        without={"bare": "θ is 0, where it takes ordinary steps"},
    ),
    "kl_eigenbasis": Row(
        _in_basis(functools.partial(adamx.kl_eigenbasis, **SMALL)),
        {"b1": 0.8, "b2": 0.9, "eps": 1e-3},
        _momentum,
        **{
            **NO_VECTORS,
            "without": {
                **_NO_DERIVATIVE,
                "largest": "a gradient is divided by the eigenvalues of far smaller ones",
            },
        },
    ),
    "leave_basis": Row(
        _in_basis(lambda: adamx.fixed_basis(ROTATION), leave=adamx.leave_basis()),
        {"b1": 0.8},
        _momentum,
        **{**ONLY_MATRICES, "without": {**ONLY_MATRICES["without"], **NO_EQUATIONS}},
    ),
    "leave_by_scaling": Row(
        lambda b1, eps: adamx.in_basis(
            adamx.random_projection(2),
            adamx.scale_by_momentum(b1),
            leave=adamx.leave_by_scaling(eps=eps),
        ),
        {"b1": 0.8, "eps": 1e-3},
        _scaled_by_projection,
        constant=frozenset({"eps"}),
        **{**NO_VECTORS, "shape": (3, 4), "double": False, "without": NO_EQUATIONS},
    ),
    "leave_with_residual": Row(
        lambda b1, growth, eps: adamx.in_basis(
            adamx.low_rank(2, every=10**6, spread=False),
            adamx.scale_by_momentum(b1),
            leave=adamx.leave_with_residual(growth, eps),
        ),
        {"b1": 0.8, "growth": 1.1, "eps": 1e-3},
        _residual,
        constant=frozenset({"eps", "growth"}),
        **{**NO_VECTORS, "shape": (3, 4), "without": NO_EQUATIONS},
    ),
    "limit_growth": Row(adamx.limit_growth, {"growth": 1.1}, _limited_growth),
    "low_rank": Row(
        _in_basis(lambda: adamx.low_rank(2, every=3, spread=False)),
        {"b1": 0.8},
        _momentum_of_low_rank,
        **{**NO_VECTORS, "shape": (3, 4), "without": NO_EQUATIONS},
    ),
    "normalize_rows": Row(
        adamx.normalize_rows,
        {"eps": 1e-3},
        matrices.even_rows,
        **{
            **ONLY_MATRICES,
            "double": False,
            "without": {**ONLY_MATRICES["without"], **NO_EQUATIONS},
        },
    ),
    "normalize_to_rank": Row(
        adamx.normalize_to_rank,
        {},
        _through(lambda grads: [matrices.of_rank(g) for g in grads]),
        **{
            **ONLY_MATRICES,
            "double": False,
            "without": {**ONLY_MATRICES["without"], **NO_EQUATIONS},
        },
    ),
    "orthogonalize": Row(
        adamx.orthogonalize,
        {},
        _through(lambda grads: [matrices.newton_schulz(g) for g in grads]),
        **{**ONLY_MATRICES, "without": {**ONLY_MATRICES["without"], **NO_EQUATIONS}},
    ),
    "random_projection": Row(
        lambda b1, eps: adamx.in_basis(
            adamx.random_projection(2, every=10**6),
            adamx.scale_by_momentum(b1),
            leave=adamx.leave_by_scaling(eps=eps),
        ),
        {"b1": 0.9, "eps": 1e-2},
        _scaled_by_projection,
        constant=frozenset({"eps"}),
        **{**NO_VECTORS, "shape": (3, 4), "double": False, "without": NO_EQUATIONS},
    ),
    "scale_by_kronecker_roots": Row(
        functools.partial(adamx.scale_by_kronecker_roots, **SMALL),
        {"b2": 0.9, "eps": 1e-2, "exponent": 0.3},
        _kronecker,
        **{**NO_VECTORS, "without": _NO_DERIVATIVE},
    ),
    "scale_by_row_rms": Row(
        adamx.scale_by_row_rms,
        {"b2": 0.8, "eps": 1e-3},
        _through(lambda grads, b2, eps: matrices.row_rms(grads, b2, eps)),
        **{**ONLY_MATRICES, "double": False},
    ),
    "scale_by_shape": Row(
        adamx.scale_by_shape,
        {},
        lambda g, theta: g * 0.2 * np.sqrt(4),
        structure={"rule": "adamw_rms"},
        **{
            **ONLY_MATRICES,
            "double": False,
            "without": {**ONLY_MATRICES["without"], **NO_EQUATIONS},
        },
    ),
    "scale_to_rms": Row(
        adamx.scale_to_rms,
        {"rms": 0.3},
        _through(
            lambda grads, rms: [
                matrices.to_rms(g, r)
                for g, r in zip(grads, matrices.steps_of(rms, len(grads)), strict=True)
            ]
        ),
    ),
    "update_as_gradient": Row(
        lambda b1, b2, eps: adamx.chain(
            adamx.scale_by_momentum(b1), adamx.update_as_gradient(), adamx.scale_by_norm(b2, eps)
        ),
        {"b1": 0.8, "b2": 0.9, "eps": 1e-2},
        lambda g, theta, b1, **rest: stages.scale_by_norm(
            reference.decaying_average(g, b1), theta, **rest
        ),
    ),
}
STAGES: dict[str, Row] = {
    **OF_MATRICES,
    "add_corrected_weight_decay": Row(
        lambda learning_rate, **numbers: adamx.chain(
            adamx.add_corrected_weight_decay(**numbers), adamx.scale_by_learning_rate(learning_rate)
        ),
        {"learning_rate": 0.1, "weight_decay": 0.3, "max_learning_rate": 0.2},
        structure.corrected_decay,
    ),
    "add_decayed_weights": Row(
        adamx.add_decayed_weights, {"weight_decay": 0.01}, stages.add_decayed_weights
    ),
    "adaptive_clip": Row(
        adamx.adaptive_clip,
        {"clipping": 0.02, "eps": 0.15},
        stages.adaptive_clip,
        golden=("optax:adaptive_grad_clip",),
    ),
    "align_with_gradient": Row(
        _of_descent(adamx.align_with_gradient),
        {"momentum": 0.5},
        stages.descent_along_the_gradients_signs,
    ),
    "bias_correction": Row(
        _of_momentum(adamx.bias_correction), {"b1": 0.8}, stages.averaged_with_correction
    ),
    "cautious": Row(
        _of_descent(adamx.cautious),
        {"momentum": 0.5, "floor": 0.4},
        stages.cautious_descent,
        golden=("lion_pytorch.cautious_lion:Lion",),
    ),
    "clip_by_block_rms": Row(adamx.clip_by_block_rms, {"threshold": 0.5}, stages.clip_by_block_rms),
    "clip_by_global_norm": Row(
        adamx.clip_by_global_norm,
        {"max_norm": 3.0},
        _free(shapes.clip_by_norm),
        single=True,
    ),
    "clip_by_norm": Row(adamx.clip_by_norm, {"max_norm": 3.0}, _free(shapes.clip_by_norm)),
    "clip_by_norm_history": Row(
        adamx.clip_by_norm_history,
        {"decay": 0.9, "ratio": 1.2, "max_norm": 8.0},
        stages.clip_by_norm_history,
        structure={"warmup_steps": 5},
        single=True,
    ),
    "clip_by_relative_rms": Row(
        lambda b2, eps, threshold: adamx.chain(
            adamx.scale_by_rms(b2, eps), adamx.clip_by_relative_rms(eps, threshold)
        ),
        {"b2": 0.9, "eps": 1e-3, "threshold": 0.8},
        stages.clip_by_relative_rms,
    ),
    "clip_by_value": Row(adamx.clip_by_value, {"max_value": 0.5}, stages.clip_by_value),
    "clip_by_zscore": Row(
        adamx.clip_by_zscore,
        {"decay": 0.9, "threshold": 1.2, "eps": 1e-3, "max_norm": 20.0},
        stages.clip_by_zscore,
        structure={"warmup_steps": 5},
        single=True,
        golden=("zclip:ZClip",),
    ),
    "decay_weights": Row(adamx.decay_weights, {"weight_decay": 0.01}, stages.decay_weights),
    "estimate_distance": Row(
        adamx.prodigy, PRODIGY, _prodigy, constant=frozenset({"d0"}), start=0.0, single=True
    ),
    "growing_clip": Row(adamx.growing_clip, {"exponent": 0.3}, stages.growing_clip),
    "kahan_summation": Row(adamx.kahan_summation, {}, stages.unchanged, without=_WIDE_UPDATES),
    "lookahead": Row(
        adamx.lookahead,
        {"sync_period": 2.5, "slow_step_size": 0.3},
        _lookahead,
        constant=frozenset({"sync_period"}),
        rounding=PARAMETER,
        golden=("lookahead_pytorch:Lookahead",),
    ),
    "master_weights": Row(adamx.master_weights, {}, stages.unchanged, without=_WIDE_UPDATES),
    "polyak_ema": Row(adamx.polyak_ema, {"decay": 0.8}, stages.unchanged),
    "power_ema": Row(adamx.power_ema, {}, stages.unchanged, structure={"std": 0.1}),
    "primal_average": Row(
        adamx.primal_average,
        {"interpolation": 0.6, "decay": 0.9},
        stages.primal_average,
        rounding=PARAMETER,
    ),
    "proximal_step": Row(
        adamx.proximal_step, {"learning_rate": 0.1, "weight_decay": 0.5}, stages.proximal_step
    ),
    "rectify": Row(
        lambda threshold, **numbers: adamx.chain(
            adamx.scale_by_rms(**numbers), adamx.rectify(threshold), adamx.bias_correction()
        ),
        {"b2": 0.95, "eps": 1e-3, "eps_root": 1e-4, "eps_hat": 1e-3, "threshold": 4.5},
        stages.rectified_rms,
        constant=frozenset({"threshold"}),
    ),
    "reduce_variance": Row(
        adamx.reduce_variance, {"b1": 0.8, "gamma": 0.3}, stages.reduce_variance
    ),
    "scale_each": Row(
        lambda: adamx.scale_each(lambda path, shape: -0.5 * len(shape.shape)),
        {},
        lambda g, theta: -0.5 * (np.ndim(g) - 1) * g,
        shape=(4, 3),
        single=True,
        without={
            "config": "a lambda has no name to be found by",
            "equations": "its numbers differ between parameters",
            "reach": "its numbers differ between parameters",
            "pickle": "a lambda has no name to be imported by",
        },
    ),
    "scale": Row(adamx.scale, {"factor": -2.5}, lambda g, theta, factor: _times(factor, g)),
    "scale_by_adadelta": Row(
        adamx.scale_by_adadelta, {"rho": 0.8, "eps": 1e-4}, _direction(reference.adadelta)
    ),
    "scale_by_adamax": Row(
        adamx.scale_by_adamax, {"b2": 0.95, "eps": 1e-3}, _direction(reference.adamax, b1=0.0)
    ),
    "scale_by_atan2": Row(
        adamx.scale_by_atan2,
        {"b2": 0.95, "a": 1.1, "b": 0.7},
        _direction(moments.adam_atan2, b1=0.0),
    ),
    "scale_by_belief": Row(
        _of_momentum(adamx.scale_by_belief),
        {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-4, "eps_hat": 1e-3},
        stages.belief,
    ),
    "scale_by_block_rms": Row(
        adamx.scale_by_block_rms,
        {"b2": 0.95, "eps": 1e-3},
        functools.partial(stages.rms_of_blocks, axes=(0,)),
        structure={"blocks": "column"},
        single=True,
    ),
    "scale_by_delayed_rms": Row(
        adamx.scale_by_delayed_rms,
        {"b2": 0.95, "eps": 1e-3},
        _direction(moments.adopt, b1=0.0, clip=False),
    ),
    "scale_by_extrapolated_momentum": Row(
        adamx.scale_by_extrapolated_momentum,
        {"b1": 0.9, "b2": 0.7},
        stages.extrapolated_momentum,
    ),
    "scale_by_factored_rms": Row(
        adamx.scale_by_factored_rms,
        {"decay_rate": 0.7, "eps": 1e-6, "b2_cap": 0.9},
        stages.factored_rms,
        structure={"min_dim_size_to_factor": 2},
        single=True,
    ),
    "scale_by_heavy_ball": Row(
        adamx.scale_by_heavy_ball, {"momentum": 0.8}, _direction(reference.sgd)
    ),
    "scale_by_learning_rate": Row(
        adamx.scale_by_learning_rate,
        {"learning_rate": 0.3},
        lambda g, theta, learning_rate: _times(-np.asarray(learning_rate), g),
    ),
    "scale_by_lp_norm": Row(
        adamx.scale_by_lp_norm,
        {"p": 3.0, "b2": 0.9, "eps": 1e-3},
        _free(functools.partial(reference.lp_norm, bias_correction=False)),
        constant=frozenset({"p"}),  # it keeps the norm, whose power would change with p
    ),
    "scale_by_max_rms": Row(
        adamx.scale_by_max_rms,
        {"b2": 0.95, "eps": 1e-3, "eps_root": 1e-4, "eps_hat": 1e-3},
        stages.max_rms,
    ),
    "scale_by_mixed_momentum": Row(
        adamx.scale_by_mixed_momentum,
        {"b1": 0.8, "b3": 0.99, "alpha": 3.0, "alpha_warmup": 9.0, "b3_warmup": 7.0},
        stages.mixed_momentum,
        constant=frozenset({"b1", "b3", "alpha_warmup", "b3_warmup"}),
    ),
    "scale_by_momentum": Row(
        adamx.scale_by_momentum,
        {"b1": 0.8},
        lambda g, theta, b1: reference.decaying_average(g, b1),
    ),
    "scale_by_nesterov_momentum": Row(
        adamx.scale_by_nesterov_momentum,
        {"b1": 0.8, "momentum_decay": 0.02},
        stages.nesterov_momentum,
    ),
    "scale_by_norm": Row(adamx.scale_by_norm, {"b2": 0.9, "eps": 1e-2}, stages.scale_by_norm),
    "scale_by_param_block_rms": Row(
        adamx.scale_by_param_block_rms,
        {"min_scale": 0.1},
        stages.param_block_rms,
        steps=20,
        without={"size": "its steps are in proportion to θ, which the step before made huge"},
    ),
    "scale_by_distance": Row(
        adamx.prodigy,
        {**PRODIGY, "growth_rate": 1.05},
        _prodigy,
        constant=frozenset({"d0"}),
        start=0.0,
        single=True,
    ),
    "scale_by_rms": Row(
        adamx.scale_by_rms,
        {"b2": 0.95, "eps": 1e-3, "eps_root": 1e-4, "eps_hat": 1e-2},
        _direction(reference.adam, b1=0.0, bias_correction=False),
    ),
    "scale_by_rss": Row(
        adamx.scale_by_rss,
        {"eps": 1e-3, "initial_accumulator_value": 0.5},
        _direction(reference.adagrad),
        constant=frozenset({"initial_accumulator_value"}),
    ),
    "scale_by_stddev": Row(
        adamx.scale_by_stddev,
        {"b2": 0.8, "eps": 1e-2},
        lambda g, theta, b2, eps: reference.rmsprop(g, -1.0, b2, eps, centered=True),
    ),
    "scale_by_two_rate_momentum": Row(
        adamx.scale_by_two_rate_momentum, {"b1": 0.8, "b2": 0.95}, stages.two_rate_momentum
    ),
    "scale_by_yogi": Row(
        adamx.scale_by_yogi,
        {
            "b2": 0.95,
            "eps": 1e-3,
            "eps_root": 1e-4,
            "eps_hat": 1e-3,
            "initial_accumulator_value": 0.1,
        },
        stages.yogi,
        constant=frozenset({"initial_accumulator_value"}),
    ),
    "schedule_free": Row(
        adamx.schedule_free,
        {"learning_rate": 0.01, "b1": 0.8, "r": 0.7, "weight_lr_power": 1.5},
        stages.schedule_free,
        constant=frozenset({"r", "weight_lr_power"}),  # their powers are kept as ratios
        steps=120,
        rounding=PARAMETER,
    ),
    "set_to_zero": Row(
        adamx.set_to_zero,
        {},
        lambda g, theta: _times(0.0, g),
        without={"visible": "its update is 0, whatever the gradient is"},
    ),
    "sign": Row(adamx.sign, {}, _free(shapes.sign)),
    "stochastic_rounding": Row(
        adamx.stochastic_rounding, {}, stages.unchanged, without=_WIDE_UPDATES
    ),
    "tail_average": Row(
        adamx.tail_average,
        {"start": 0.4, "every": 3.0, "total_steps": 50.0},
        stages.unchanged,
        constant=frozenset({"total_steps"}),
    ),
    "trust_ratio": Row(
        adamx.trust_ratio,
        {"trust_coefficient": 0.02, "eps": 1e-3, "weight_decay": 0.3},
        stages.trust_ratio,
    ),
}


def _times(factor: Any, grads: np.ndarray) -> np.ndarray:
    grads = reference._wide(grads)
    return reference._column(factor, grads) * grads


def _primal_average_of_adamw(learning_rate, interpolation=0.7, decay=0.9967, **numbers):
    adamw = adamx.adamw(learning_rate, **numbers)
    return adamx.chain(adamw, adamx.primal_average(interpolation, decay))


def _lp_adam(learning_rate, p=3.0, b2=0.999, eps=1e-8, b1=0.9):
    return adamx.chain(
        adamx.scale_by_momentum(b1),
        adamx.scale_by_lp_norm(p, b2, eps),
        adamx.bias_correction(),
        adamx.scale_by_learning_rate(learning_rate),
    )


def _lp_adam_oracle(grads, params0, learning_rate, p, b2, eps, b1):
    mean = stages.averaged_with_correction(grads, params0, b1)
    direction = reference.lp_norm(grads, p, b2, eps, of=mean)
    return -reference._column(learning_rate, grads) * direction


def _behind_adam(stage):
    """Adam with its numbers, and a stage behind it with the others."""
    return lambda learning_rate, b1=0.9, b2=0.999, eps=1e-8, **numbers: adamx.chain(
        adamx.adam(learning_rate, b1, b2, eps), stage(**numbers)
    )


def _in_front_of_adam(stage):
    return lambda learning_rate, b1=0.9, b2=0.999, eps=1e-8, **numbers: adamx.chain(
        stage(**numbers), adamx.adam(learning_rate, b1, b2, eps)
    )


def _lookahead_of_adam(grads, params0, sync_period, slow_step_size, **numbers):
    return _lookahead(reference.adam(grads, **numbers), params0, sync_period, slow_step_size)


def _adam_of_clipped(grads, params0, max_norm, **numbers):
    return reference.adam(shapes.clip_by_norm(grads, max_norm), **numbers)


def _adam_of_adaptively_clipped(grads, params0, clipping, **numbers):
    """The parameters move with Adam's steps, which rest on all gradients before."""
    clipped, theta = np.array(grads), params0
    for t in range(len(grads)):
        share = clipping[t] if np.ndim(clipping) else clipping
        clipped[t] = shapes.adaptive_clip(grads[t : t + 1], theta, share, 1e-3, 0)[0]
        last = reference.adam(clipped[: t + 1], **_until(t + 1, numbers))[-1]
        theta = theta + last
    return reference.adam(clipped, **numbers)


def _until(steps, numbers):
    return {k: x[:steps] if np.ndim(x) else x for k, x in numbers.items()}


_MUON = {"learning_rate": 0.1, "b1": 0.8, "weight_decay": 0.3}
_NORMUON = {**_MUON, "b2": 0.9, "eps": 1e-3}
_SOAP = {**SLOW, "b2": 0.9}
# For matrices only; or so costly that the tests of what is done to all optimisers leave them out.
MATRIX_RECIPES: dict[str, Row] = {
    "adamuon": Row(
        adamx.adamuon, _NORMUON, matrices.adamuon, golden=("adamuon:AdaMuon",), **ONLY_MATRICES
    ),
    "apollo": Row(
        functools.partial(adamx.apollo, rank=2, scaling=4.0),
        SLOW,
        _apollo,
        golden=("apollo_torch.apollo:AdamW",),
        **{**NO_VECTORS, "shape": (3, 4), "double": False},
    ),
    "fira": Row(
        functools.partial(adamx.fira, rank=2, every=3, spread=False, scaling=0.5),
        SLOW,
        functools.partial(matrices.fira, rank=2, every=3, scaling=0.5, growth=1.01),
        golden=("fira.fira_adamw:AdamW",),
        **{**NO_VECTORS, "shape": (3, 4)},
    ),
    "galore": Row(
        functools.partial(adamx.galore, rank=2, every=3, spread=False, scaling=0.5),
        SLOW,
        functools.partial(matrices.galore, rank=2, every=3, scaling=0.5),
        golden=("galore_torch.adamw:AdamW",),
        **{**NO_VECTORS, "shape": (3, 4)},
    ),
    "kl_soap": Row(
        functools.partial(adamx.kl_soap, **SMALL),
        _SOAP,
        functools.partial(matrices.soap, every=2, kl=True),
        golden=("heavyball:KLSOAP",),
        **{**NO_VECTORS, "shape": (3, 3)},
    ),
    "muon": Row(
        adamx.muon,
        _MUON,
        matrices.muon,
        golden=("torch.optim:Muon", "muon:SingleDeviceMuon", "optax.contrib:muon"),
        **ONLY_MATRICES,
    ),
    "muon_h": Row(
        adamx.muon_h,
        {"learning_rate": 0.1, "b1": 0.8},
        matrices.muon_h,
        golden=("hooks.hyperball:HyperballHook",),
        rounding=1e-14,  # of the parameter, whose norm it restores
        **{
            **ONLY_MATRICES,
            "without": {**ONLY_MATRICES["without"], "bare": "θ is 0, and so is its norm"},
        },
    ),
    "normuon": Row(
        adamx.normuon,
        _NORMUON,
        matrices.normuon,
        golden=("normuon:SingleDeviceNorMuon",),
        **ONLY_MATRICES,
    ),
    "shampoo": Row(
        functools.partial(adamx.shampoo, **SMALL),
        {**SLOW, "graft_eps": 1e-3, "eps": 1e-2},
        functools.partial(matrices.shampoo, every=2),
        golden=("pytorch_optimizer:Shampoo",),
        **NO_VECTORS,
    ),
    "soap": Row(
        functools.partial(adamx.soap, **SMALL),
        _SOAP,
        functools.partial(matrices.soap, every=2),
        golden=("soap:SOAP",),
        **{**NO_VECTORS, "shape": (3, 3)},
    ),
    "splus": Row(
        functools.partial(adamx.splus, every=1),
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "weight_decay": 0.3},
        matrices.splus,
        golden=("pytorch_optimizer:SPlus",),
        **{**NO_VECTORS, "shape": (3, 3)},
    ),
}
RECIPES: dict[str, Row] = {
    **MATRIX_RECIPES,
    "adabelief": Row(
        adamx.adabelief,
        ADAM,
        _free(moments.adabelief),
        usual={},
        golden=(
            "adabelief_pytorch.AdaBelief",
            "optax.adabelief",
        ),
    ),
    "adadelta": Row(
        adamx.adadelta,
        {"learning_rate": 0.5, "rho": 0.8, "eps": 1e-4},
        _free(reference.adadelta),
        usual={},
        golden=(
            "torch.optim.Adadelta",
            "optax.adadelta",
        ),
    ),
    "adafactor": Row(
        adamx.adafactor,
        {
            "learning_rate": 0.1,
            "decay_rate": 0.6,
            "eps": 1e-10,
            "b2_cap": 0.9,
            "clipping_threshold": 0.5,
            "min_scale": 1e-2,
        },
        _adafactor,
        structure={"min_dim_size_to_factor": 2},
        usual={"min_dim_size_to_factor": 2},
        shape=(3, 4),
        single=True,
        golden=("optax.adafactor",),
    ),
    "adagrad": Row(
        adamx.adagrad,
        {"learning_rate": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.5},
        _free(reference.adagrad),
        usual={},
        constant=frozenset({"initial_accumulator_value"}),
        golden=(
            "torch.optim.Adagrad",
            "optax.adagrad",
        ),
    ),
    "adam": Row(
        adamx.adam,
        {**ADAM, "eps_root": 1e-4, "eps_hat": 1e-2},
        _free(reference.adam),
        usual={},
        golden=(
            "torch.optim.Adam",
            "optax.adam",
        ),
    ),
    "adam_atan2": Row(
        adamx.adam_atan2,
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "a": 1.1, "b": 0.7},
        _free(moments.adam_atan2),
        usual={},
        golden=("adam_atan2_pytorch.adam_atan2.AdamAtan2",),
    ),
    "adam_mini": Row(
        adamx.adam_mini,
        SLOW,
        functools.partial(structure.block_adam, axes=(0,)),
        structure={"blocks": "column"},
        usual={"blocks": "column"},
        golden=("adam_mini.Adam_mini",),
    ),
    "adamax": Row(
        adamx.adamax,
        ADAM,
        _free(reference.adamax),
        usual={},
        golden=(
            "torch.optim.Adamax",
            "optax.adamax",
        ),
    ),
    "adamc": Row(
        adamx.adamc,
        {**ADAMW, "max_learning_rate": 0.3},
        structure.adamc,
        usual={"weight_decay": 0.1},
        golden=("pytorch_optimizer:AdamC",),
    ),
    "adamw": Row(
        adamx.adamw,
        ADAMW,
        reference.adamw,
        usual={"weight_decay": 0.1},
        golden=(
            "torch.optim.AdamW",
            "optax.adamw",
        ),
    ),
    "adan": Row(
        adamx.adan,
        {"learning_rate": 0.01, "b1": 0.9, "b2": 0.7, "b3": 0.95, "eps": 1e-3, "weight_decay": 3.0},
        shapes.adan,
        usual={"weight_decay": 0.1},
        golden=("adan:Adan",),
    ),
    "ademamix": Row(
        adamx.ademamix,
        {**SLOW, "b3": 0.99, "alpha": 3.0},
        shapes.ademamix,
        usual={"alpha_warmup": 9.0, "b3_warmup": 9.0},
        golden=(
            "ademamix:AdEMAMix",
            "optax.contrib:ademamix",
        ),
    ),
    "adopt": Row(
        adamx.adopt,
        ADAM,
        _free(moments.adopt),
        usual={},
        golden=(
            "adopt.ADOPT",
            "optax.contrib.adopt",
        ),
    ),
    "amsgrad": Row(
        adamx.amsgrad,
        ADAM,
        _free(moments.amsgrad),
        usual={},
        golden=("torch.optim.Adam",),
    ),
    "cautious_adamw": Row(
        adamx.cautious_adamw,
        {**SLOW, "floor": 0.4, "eps_hat": 1e-3},
        shapes.cautious_adamw,
        usual={},
        golden=("c_optim.c_adamw:AdamW",),
    ),
    "grams": Row(
        adamx.grams,
        {**SLOW, "eps_hat": 1e-3},
        shapes.grams,
        usual={},
        golden=("grams:Grams",),
    ),
    "lamb": Row(
        adamx.lamb,
        SLOW,
        shapes.lamb,
        usual={},
        golden=("optax:lamb",),
    ),
    "laprop": Row(
        adamx.laprop,
        ADAM,
        _free(moments.laprop),
        usual={},
        golden=("laprop.LaProp",),
    ),
    "lars": Row(
        adamx.lars,
        {
            "learning_rate": 0.1,
            "momentum": 0.8,
            "weight_decay": 0.3,
            "trust_coefficient": 0.02,
            "eps": 1e-3,
        },
        shapes.lars,
        usual={"weight_decay": 0.1},
        golden=("optax:lars",),
    ),
    "lion": Row(
        adamx.lion,
        {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "weight_decay": 0.3},
        shapes.lion,
        usual={},
        golden=("lion_pytorch:Lion",),
    ),
    "mars": Row(
        adamx.mars,
        {**SLOW, "gamma": 0.2, "max_norm": 3.0},
        shapes.mars,
        usual={},
        golden=("mars:MARS",),
    ),
    "nadam": Row(
        adamx.nadam,
        {**ADAM, "momentum_decay": 0.02},
        _free(moments.nadam),
        usual={},
        golden=(
            "torch.optim.NAdam",
            "optax.nadam",
        ),
    ),
    "nadamw": Row(
        adamx.nadamw,
        {**ADAMW, "momentum_decay": 0.02},
        _nadamw,
        usual={"weight_decay": 0.1},
        golden=("optax.nadamw",),
    ),
    "novograd": Row(
        adamx.novograd,
        {"learning_rate": 0.01, "b1": 0.8, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.3},
        shapes.novograd,
        usual={},
        golden=("optax:novograd",),
    ),
    "prodigy": Row(
        adamx.prodigy,
        PRODIGY,
        _prodigy,
        usual={"d0": 1e-2},
        constant=frozenset({"d0"}),
        start=0.0,
        single=True,
        golden=("prodigyopt.Prodigy",),
    ),
    "radam": Row(
        adamx.radam,
        ADAM,
        _free(moments.radam),
        usual={},
        golden=("torch.optim.RAdam",),
    ),
    "rmsprop": Row(
        adamx.rmsprop,
        {"learning_rate": 0.1, "decay": 0.8, "eps": 1e-3},
        _free(reference.rmsprop),
        usual={},
        golden=(
            "torch.optim.RMSprop",
            "optax.rmsprop",
        ),
    ),
    "schedule_free_adamw": Row(
        adamx.schedule_free_adamw,
        {**ADAMW, "warmup_steps": 20.5, "r": 0.7, "weight_lr_power": 1.5},
        _schedule_free,
        usual={"warmup_steps": 3},
        steps=120,
        without={
            "equations": "its warm-up is a schedule, of a count that JAX makes a float32",
            "pickle": "its warm-up is a function that is made when the recipe is called",
        },
        constant=frozenset({"warmup_steps", "r", "weight_lr_power"}),
        golden=("schedulefree.AdamWScheduleFreeReference",),
    ),
    "sgd": Row(
        adamx.sgd,
        {"learning_rate": 0.1},
        _free(reference.sgd),
        usual={},
        golden=(
            "torch.optim.SGD",
            "optax.sgd",
        ),
    ),
    "signum": Row(
        adamx.signum,
        {"learning_rate": 0.01, "b1": 0.8},
        _free(shapes.signum),
        usual={},
        golden=("optax:signum",),
    ),
    "stableadamw": Row(
        adamx.stableadamw,
        ADAMW,
        moments.stableadamw,
        usual={"weight_decay": 0.1},
        golden=("optimi.StableAdamW",),
    ),
    "yogi": Row(
        adamx.yogi,
        {**ADAM, "initial_accumulator_value": 0.1},
        _free(moments.yogi),
        usual={},
        constant=frozenset({"initial_accumulator_value"}),
        golden=("optax.yogi",),
    ),
}

# The same factories in another structure, or at numbers that are a formula of their own.
VARIANTS: dict[str, Row] = {
    "primal_average_of_adamw": Row(
        _primal_average_of_adamw,
        {**ADAMW, "interpolation": 0.6, "decay": 0.9},
        _gpa,
        usual={},
        rounding=PARAMETER,
    ),
    "add_decayed_weights_cautiously": Row(
        functools.partial(adamx.add_decayed_weights, cautious=True),
        {"weight_decay": 0.01},
        stages.cautious_weight_decay,
    ),
    "adabelief_rectified": Row(
        functools.partial(adamx.adabelief, rectify=True),
        ADAM,
        _free(functools.partial(moments.adabelief, rectify=True)),
        usual={},
    ),
    "adafactor_of_a_vector": Row(
        adamx.adafactor,
        {"learning_rate": 0.1, "b2_cap": 0.9},
        lambda g, theta, **numbers: structure.adafactor(g, theta, **numbers),
        shape=(12,),
    ),
    "adafactor_of_many_matrices": Row(
        adamx.adafactor,
        {"learning_rate": 0.1, "min_scale": 10.0},
        lambda g, theta, **numbers: structure.adafactor(
            g, theta, axes=(0, 2), threshold=np.inf, **numbers
        ),
        structure={"min_dim_size_to_factor": 2, "clipping_threshold": None},
        shape=(3, 2, 2),
    ),
    "adafactor_the_longer_axis_first": Row(
        adamx.adafactor,
        {"learning_rate": 0.1},
        functools.partial(structure.adafactor, axes=(0, 1)),
        structure={"min_dim_size_to_factor": 1},
        shape=(4, 3),
    ),
    "adam_compensated": Row(
        functools.partial(adamx.adam, compensated=True), ADAM, _free(reference.adam), usual={}
    ),
    "adam_mini_of_heads": Row(
        adamx.adam_mini,
        SLOW,
        functools.partial(structure.block_adam, axes=(0, 2)),
        structure={"blocks": lambda shape: (0, 2)},
        shape=(3, 2, 2),
    ),
    "adam_mini_of_rows": Row(
        adamx.adam_mini,
        SLOW,
        functools.partial(structure.block_adam, axes=(1, 2)),
        structure={"blocks": "row"},
        shape=(3, 2, 2),
    ),
    "adam_mini_of_tensors": Row(
        adamx.adam_mini,
        SLOW,
        functools.partial(structure.block_adam, axes=(0, 1, 2)),
        shape=(3, 2, 2),
    ),
    "adam_reordered": Row(
        adamx.adam,
        {**ADAM, "eps": 0.0, "eps_hat": 1e-3},
        _free(reference.adam),
        usual={"eps": 0.0, "eps_hat": 1e-7},
    ),
    "adam_root": Row(
        adamx.adam,
        {**ADAM, "eps": 0.0, "eps_root": 1e-3},
        _free(reference.adam),
        usual={"eps": 0.0, "eps_root": 1e-12},
    ),
    "adamax_of_the_paper": Row(
        adamx.adamax,
        {"learning_rate": 0.1, "b1": 0.9, "b2": 0.999, "eps": 0.0},
        _free(reference.adamax),
    ),
    "adan_without_prox": Row(
        functools.partial(adamx.adan, proximal=False),
        RECIPES["adan"].numbers,
        functools.partial(shapes.adan, proximal=False),
    ),
    "adaptive_clip_of_adam": Row(
        _in_front_of_adam(adamx.adaptive_clip),
        {**ADAM, "clipping": 0.1},
        _adam_of_adaptively_clipped,
        usual={},
        steps=40,
    ),
    "adopt_unclipped": Row(
        functools.partial(adamx.adopt, clip=False),
        ADAM,
        _free(functools.partial(moments.adopt, clip=False)),
    ),
    "averaged": Row(
        _behind_adam(adamx.polyak_ema),
        {**ADAM, "decay": 0.8},
        lambda g, theta, decay, **numbers: reference.adam(g, **numbers),
        usual={"decay": 0.9},
    ),
    "clipped": Row(
        _in_front_of_adam(adamx.clip_by_global_norm),
        {**ADAM, "max_norm": 3.0},
        _adam_of_clipped,
        usual={"max_norm": 0.5},
        single=True,
    ),
    "gated": Row(
        lambda learning_rate, **numbers: adamx.skip_nonfinite(adamx.adam(learning_rate, **numbers)),
        ADAM,
        RECIPES["adam"].oracle,
        usual={},
        without={"visible": "a step whose gradient is not finite does not count"},
    ),
    "lars_nesterov": Row(
        functools.partial(adamx.lars, nesterov=True),
        RECIPES["lars"].numbers,
        functools.partial(shapes.lars, nesterov=True),
    ),
    "lookahead_of_adam": Row(
        _behind_adam(adamx.lookahead),
        {**ADAM, "learning_rate": 0.01, "sync_period": 2.5, "slow_step_size": 0.3},
        _lookahead_of_adam,
        usual={},
        constant=frozenset({"sync_period"}),
        rounding=PARAMETER,
    ),
    "lp_adam": Row(
        _lp_adam,
        {**ADAM, "p": 3.0},
        _lp_adam_oracle,
        usual={"p": 3.0},
        constant=frozenset({"p"}),
    ),
    **{
        f"lp_norm_{p:g}": Row(
            lambda p, b2, eps: adamx.chain(
                adamx.scale_by_lp_norm(p, b2, eps), adamx.bias_correction()
            ),
            {"p": p, "b2": 0.9, "eps": 1e-3},
            _free(reference.lp_norm),
            constant=frozenset({"p"}),
        )
        for p in (0.5, 1.0, 2.0, 7.0, 50.0, 200.0)
    },
    "nadam_constant_decay": Row(
        functools.partial(adamx.nadam, constant_decay=True),
        {**ADAM, "momentum_decay": 0.02},
        _free(functools.partial(moments.nadam, constant_decay=True)),
        usual={},
    ),
    "nadam_constant_momentum": Row(
        adamx.nadam,
        {**ADAM, "momentum_decay": math.inf},
        _free(moments.nadam),
        constant=frozenset({"momentum_decay"}),
    ),
    "prodigy_corrected": Row(
        functools.partial(adamx.prodigy, use_bias_correction=True),
        PRODIGY,
        functools.partial(_prodigy, use_bias_correction=True),
        constant=frozenset({"d0"}),
        start=0.0,
        single=True,
    ),
    "prodigy_safeguarded": Row(
        functools.partial(adamx.prodigy, safeguard_warmup=True),
        PRODIGY,
        functools.partial(_prodigy, safeguard_warmup=True),
        constant=frozenset({"d0"}),
        start=0.0,
        single=True,
    ),
    "radam_long_memory": Row(adamx.radam, {**ADAM, "b2": 0.99999}, _free(moments.radam)),
    "radam_threshold_of_the_paper": Row(
        functools.partial(adamx.radam, threshold=4.0),
        ADAM,
        _free(functools.partial(moments.radam, threshold=4.0)),
    ),
    "rmsprop_centered": Row(
        functools.partial(adamx.rmsprop, centered=True),
        {"learning_rate": 0.1, "decay": 0.8, "eps": 1e-2, "momentum": 0.5},
        _free(functools.partial(reference.rmsprop, centered=True)),
        usual={},
    ),
    "rmsprop_momentum": Row(
        adamx.rmsprop,
        {**RECIPES["rmsprop"].numbers, "momentum": 0.7},
        _free(reference.rmsprop),
        usual={"momentum": 0.9},
    ),
    "rmsprop_nesterov": Row(
        functools.partial(adamx.rmsprop, nesterov=True),
        {**RECIPES["rmsprop"].numbers, "momentum": 0.7},
        _free(functools.partial(reference.rmsprop, nesterov=True)),
    ),
    "sgd_momentum": Row(
        adamx.sgd,
        {"learning_rate": 0.1, "momentum": 0.8},
        _free(reference.sgd),
        usual={"momentum": 0.9},
    ),
    "sgd_nesterov": Row(
        functools.partial(adamx.sgd, nesterov=True),
        {"learning_rate": 0.1, "momentum": 0.8},
        _free(functools.partial(reference.sgd, nesterov=True)),
        usual={"momentum": 0.9},
    ),
}

ROWS: dict[str, Row] = {**STAGES, **RECIPES, **VARIANTS}


def _with_rate(row: Row, learning_rate: Any) -> adamx.Transformation:
    return row.factory(learning_rate=learning_rate, **row.usual)


# What trains by itself, of a learning rate: what users do to an optimiser is done to these.
OPTIMISERS: dict[str, Callable[[Any], adamx.Transformation]] = {
    name: functools.partial(_with_rate, row) for name, row in ROWS.items() if row.usual is not None
}

# One for each thing that a chain may hold. What the core does with every chain (a crossing of two
# features) is tried with these; what a single stage does, ``check_stage`` asks of all of them.
REPRESENTATIVES: dict[str, str] = {
    "sgd": "keeps nothing",
    "adam": "averages, clocks and a bias",
    "adam_compensated": "a slot of another dtype",
    "adafactor": "a slot that is a tree, and a moment without a bias",
    "novograd": "a slot that is one number per array",
    "clipped": "a sum over all parameters, in front of the statistics",
    "prodigy": "a clock that settles on such a sum, and a copy of the parameters",
    "schedule_free_adamw": "parameters between two points, and clocks of several numbers",
    "lookahead_of_adam": "a copy of the parameters that is stepped to",
    "averaged": "an average that goes on where there is no gradient",
    "lion": "a sign, which forgets the bias",
    "gated": "entries that are kept as a whole",
}


def one_of_each_program(cases):
    """Of recorded cases by id, the first of every program that was recorded."""
    return {case["authority"]: id_ for id_, case in reversed(cases.items())}.values()


def slow_but(quick, names):
    """Parameters of a test, of which `make test` runs only the quick ones."""
    quick = set(quick)
    assert quick <= set(names), f"there are no {sorted(quick - set(names))}"
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def run(opt, grads, params=None):
    """The updates of a run on given gradients, each a tree of arrays ``[steps, ...]``.

    With ``params`` the run starts there and the updates are applied.
    """
    first = jax.tree.map(lambda g: g[0], grads) if params is None else params
    return jax.tree.map(np.asarray, _run(opt, opt.init(first), first, grads))


@functools.partial(jax.jit, static_argnames="opt")  # equal optimisers are compiled once
def _run(opt, state, params, grads):
    def step(carry, grad):
        state, params = carry
        updates, state = opt.update(grad, state, params)
        return (state, adamx.apply_updates(params, updates)), updates

    return jax.lax.scan(step, (state, params), grads)[1]


def x64() -> contextlib.AbstractContextManager:
    """Double precision, as JAX spells it before and since 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)
