"""The table that tests are crossed with: every optimiser, and how to run one."""

import contextlib

import jax
import numpy as np

import adamx

__all__ = ["OPTIMISERS", "run", "x64"]


def adamw(learning_rate, weight_decay=0.1):
    return adamx.chain(
        adamx.scale_by_momentum(),
        adamx.scale_by_rms(),
        adamx.bias_correction(),
        adamx.add_decayed_weights(weight_decay),
        adamx.scale_by_learning_rate(learning_rate),
    )


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
    "adamw": adamw,
    "lp_adam": lp_adam,
    "averaged": averaged,
    "clipped": clipped,
}


def run(opt, grads, params=None):
    """The updates of a run on given gradients, each a tree of arrays ``[steps, ...]``.

    With ``params`` the run starts there and the updates are applied.
    """
    first = jax.tree.map(lambda g: g[0], grads) if params is None else params

    def step(carry, grad):
        state, params = carry
        updates, state = opt.update(grad, state, params)
        return (state, adamx.apply_updates(params, updates)), updates

    _, updates = jax.jit(lambda start, g: jax.lax.scan(step, start, g))(
        (opt.init(first), first), grads
    )
    return jax.tree.map(np.asarray, updates)


def x64() -> contextlib.AbstractContextManager:
    """Double precision, as JAX spells it before and since 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)
