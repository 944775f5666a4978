"""The table that tests are crossed with: every optimiser, and how to run one."""

import contextlib
import functools

import jax
import numpy as np

import adamx

__all__ = ["OPTIMISERS", "run", "x64"]


def lp_adam(learning_rate, p=3.0):
    return adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_lp_norm(p),
        adamx.bias_correction(),
        adamx.scale_by_learning_rate(learning_rate),
    )


def averaged(learning_rate, decay=0.9):
    return adamx.chain(adamx.adam(learning_rate), adamx.polyak_ema(decay))


def clipped(learning_rate, max_norm=0.5):
    return adamx.chain(adamx.clip_by_global_norm(max_norm), adamx.adam(learning_rate))


OPTIMISERS = {
    "sgd": lambda rate: adamx.sgd(rate),
    "sgd_momentum": lambda rate: adamx.sgd(rate, 0.9),
    "sgd_nesterov": lambda rate: adamx.sgd(rate, 0.9, nesterov=True),
    "adagrad": lambda rate: adamx.adagrad(rate),
    "adadelta": lambda rate: adamx.adadelta(rate),
    "rmsprop": lambda rate: adamx.rmsprop(rate),
    "rmsprop_momentum": lambda rate: adamx.rmsprop(rate, momentum=0.9),
    "rmsprop_centered": lambda rate: adamx.rmsprop(rate, centered=True),
    "adam": lambda rate: adamx.adam(rate),
    "adam_reordered": lambda rate: adamx.adam(rate, eps=0.0, eps_hat=1e-7),
    "adam_root": lambda rate: adamx.adam(rate, eps=0.0, eps_root=1e-12),
    "adam_compensated": lambda rate: adamx.adam(rate, compensated=True),
    "adamax": lambda rate: adamx.adamax(rate),
    "adamw": lambda rate: adamx.adamw(rate, weight_decay=0.1),
    "amsgrad": lambda rate: adamx.amsgrad(rate),
    "nadam": lambda rate: adamx.nadam(rate),
    "nadam_constant_decay": lambda rate: adamx.nadam(rate, constant_decay=True),
    "nadamw": lambda rate: adamx.nadamw(rate, weight_decay=0.1),
    "radam": lambda rate: adamx.radam(rate),
    "adabelief": lambda rate: adamx.adabelief(rate),
    "adabelief_rectified": lambda rate: adamx.adabelief(rate, rectify=True),
    "laprop": lambda rate: adamx.laprop(rate),
    "adam_atan2": lambda rate: adamx.adam_atan2(rate),
    "yogi": lambda rate: adamx.yogi(rate),
    "adopt": lambda rate: adamx.adopt(rate),
    "stableadamw": lambda rate: adamx.stableadamw(rate, weight_decay=0.1),
    "lp_adam": lp_adam,
    "schedule_free_adamw": lambda rate: adamx.schedule_free_adamw(rate, warmup_steps=3),
    "prodigy": lambda rate: adamx.prodigy(rate, d0=1e-2),
    "adafactor": lambda rate: adamx.adafactor(rate, min_dim_size_to_factor=2),
    "adam_mini": lambda rate: adamx.adam_mini(rate, blocks="column"),
    "signum": lambda rate: adamx.signum(rate),
    "lion": lambda rate: adamx.lion(rate),
    "cautious_adamw": lambda rate: adamx.cautious_adamw(rate),
    "grams": lambda rate: adamx.grams(rate),
    "lamb": lambda rate: adamx.lamb(rate),
    "lars": lambda rate: adamx.lars(rate, weight_decay=0.1),
    "novograd": lambda rate: adamx.novograd(rate),
    "mars": lambda rate: adamx.mars(rate),
    "adan": lambda rate: adamx.adan(rate, weight_decay=0.1),
    "ademamix": lambda rate: adamx.ademamix(rate, alpha_warmup=9.0, b3_warmup=9.0),
    "lookahead": lambda rate: adamx.chain(adamx.adam(rate), adamx.lookahead()),
    "adaptive_clip": lambda rate: adamx.chain(adamx.adaptive_clip(), adamx.adam(rate)),
    "averaged": averaged,
    "clipped": clipped,
}


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
