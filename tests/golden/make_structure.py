"""Record what the authors' schedulefree, prodigyopt and adam-mini and Optax's Adafactor do.

Run from anywhere, with schedulefree 1.4.1, prodigyopt 1.1.2, adam-mini 1.1.1, torch 2.13.0,
optax 0.2.8, jax 0.10.2 and numpy 2.4.6 installed:

    python tests/golden/make_structure.py

It rewrites, beside itself, ``structure.npz`` (for each case ``<id>.w`` and ``<id>.b``, the
parameters after each saved step of the problem in ``problem.npz``; ``<id>.x.w`` and ``.x.b`` those
for evaluation, ``<id>.d`` Prodigy's distance) and ``structure.json`` (the cases: id, authority,
arguments; the versions). The gradients are the problem's, but for Prodigy: its distance grows
without bound on a linear function, so its gradients are those of a noisy quadratic,
h (θ − target) + noise, with ``quadratic.h.*``, ``quadratic.target.*`` and ``quadratic.noise.*``.
A case with ``"zero_start"`` starts from zeros, all others from the problem's parameters. Other
versions are refused; ``--any-version`` lifts that.
"""

import argparse
import contextlib
import io
import json
import sys
from importlib import metadata

import numpy as np

from make_golden import HERE, SAVED_STEPS, STEPS, ZERO_COORDINATE, make_problem

VERSIONS = {
    "schedulefree": "1.4.1",
    "prodigyopt": "1.1.2",
    "adam-mini": "1.1.1",
    "torch": "2.13.0",
    "optax": "0.2.8",
    "jax": "0.10.2",
    "numpy": "2.4.6",
}

SCHEDULE_FREE = {
    "schedule_free_default": {},
    "schedule_free": {
        "lr": 0.05,
        "betas": [0.8, 0.95],
        "eps": 1e-4,
        "weight_decay": 0.1,
        "warmup_steps": 30,
        "r": 0.5,
        "weight_lr_power": 1.0,
    },
    "schedule_free_warmup": {"warmup_steps": 50, "weight_decay": 0.01},
    "schedule_free_equal_weights": {"lr": 0.01, "weight_lr_power": 0.0, "warmup_steps": 20},
}

PRODIGY = {
    "prodigy_default": {},
    "prodigy": {
        "lr": 0.5,
        "betas": [0.8, 0.95],
        "beta3": 0.9,
        "eps": 1e-6,
        "weight_decay": 0.1,
        "d0": 1e-4,
        "d_coef": 0.5,
    },
    "prodigy_bias_correction": {"use_bias_correction": True, "weight_decay": 0.01, "d0": 1e-3},
    "prodigy_growth": {"growth_rate": 1.05, "d0": 1e-4},
    "prodigy_safeguard": {"safeguard_warmup": True, "lr": 0.3, "d0": 1e-3},
    "prodigy_zero_start": {"zero_start": True},
    "prodigy_growth_zero_start": {
        "zero_start": True,
        "growth_rate": 1.1,
        "use_bias_correction": True,
        "betas": [0.9, 0.99],
        "d0": 1e-3,
    },
}

ADAFACTOR = {
    "adafactor_default": {"learning_rate": 0.003},
    "adafactor_factored": {"learning_rate": 0.05, "min_dim_size_to_factor": 2},
    "adafactor_options": {
        "learning_rate": 0.02,
        "min_dim_size_to_factor": 2,
        "decay_rate": 0.5,
        "clipping_threshold": 1.5,
        "momentum": 0.9,
        "eps": 1e-8,
        "weight_decay_rate": 0.01,
    },
    "adafactor_absolute": {
        "learning_rate": 0.01,
        "min_dim_size_to_factor": 2,
        "multiply_by_parameter_scale": False,
        "clipping_threshold": None,
    },
}

# The names decide how Adam-mini partitions; "blocks" says what that is, for each of w and b.
ADAM_MINI = {
    "adam_mini_tensor": {
        "names": ["norm.w", "norm.b"],
        "blocks": ["tensor", "tensor"],
        "dim": 4,
        "n_heads": 4,
    },
    "adam_mini_row": {
        "names": ["mlp.w", "mlp.bias"],
        "blocks": ["row", "row"],
        "lr": 0.01,
        "betas": [0.8, 0.95],
        "eps": 1e-4,
        "dim": 4,
        "n_heads": 4,
    },
    "adam_mini_decay": {  # not of b, because of its name
        "names": ["embed.w", "b.bias"],
        "blocks": ["row", "row"],
        "weight_decay": 0.1,
        "dim": 4,
        "n_heads": 4,
    },
    "adam_mini_heads": {  # w is two heads of two rows each
        "names": ["q_proj.w", "norm.b"],
        "blocks": ["head", "tensor"],
        "dim": 6,
        "n_heads": 6,
    },
}


def make_quadratic(params):
    """Curvatures over two orders of magnitude (one is 0), a minimum, and noise of the gradients."""
    rng = np.random.default_rng(23060610)
    quadratic = {}
    for name, start in params.items():
        h = 10 ** rng.permutation(np.linspace(-1.5, 0.5, start.size)).reshape(start.shape)
        if name == ZERO_COORDINATE[0]:
            h[ZERO_COORDINATE[1]] = 0
        quadratic[f"h.{name}"] = h
        quadratic[f"target.{name}"] = rng.normal(size=start.shape)
        quadratic[f"noise.{name}"] = 0.3 * h * rng.normal(size=(STEPS, *start.shape))
    return quadratic


def torch_run(make, params, gradient, extra=lambda optimizer, tensors: {}):
    import torch

    torch.set_num_threads(1)
    tensors = {k: torch.nn.Parameter(torch.tensor(p)) for k, p in params.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = make(tensors)
        for t in range(STEPS):
            for k, tensor in tensors.items():
                tensor.grad = torch.tensor(gradient(k, t, tensor.detach().numpy()))
            optimizer.step()
            found = {k: tensor.detach().numpy().copy() for k, tensor in tensors.items()}
            yield found | extra(optimizer, tensors)


def schedule_free(kwargs, params, grads):
    from schedulefree import AdamWScheduleFreeReference

    def make(tensors):
        optimizer = AdamWScheduleFreeReference(tensors.values(), **kwargs)
        optimizer.train()
        return optimizer

    def extra(optimizer, tensors):
        return {f"x.{k}": optimizer.state[p]["x"].numpy().copy() for k, p in tensors.items()}

    return torch_run(make, params, lambda k, t, theta: grads[k][t], extra)


def prodigy(kwargs, params, grads):
    from prodigyopt import Prodigy

    options = {k: x for k, x in kwargs.items() if k != "zero_start"}
    quadratic = make_quadratic(params)
    if kwargs.get("zero_start"):
        params = {k: np.zeros_like(p) for k, p in params.items()}

    def gradient(k, t, theta):
        h, target, noise = (quadratic[f"{part}.{k}"] for part in ("h", "target", "noise"))
        return h * (theta - target) + noise[t]

    return torch_run(
        lambda tensors: Prodigy(tensors.values(), **options),
        params,
        gradient,
        lambda optimizer, tensors: {"d": np.asarray(optimizer.param_groups[0]["d"])},
    )


def adam_mini(kwargs, params, grads):
    from adam_mini import Adam_mini

    options = {k: x for k, x in kwargs.items() if k not in ("names", "blocks")}

    def make(tensors):
        named = zip(kwargs["names"], tensors.values(), strict=True)
        return Adam_mini(named, verbose=False, **options)

    return torch_run(make, params, lambda k, t, theta: grads[k][t])


def adafactor(kwargs, params, grads):
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    params = {k: jnp.asarray(p) for k, p in params.items()}
    optimizer = optax.adafactor(**kwargs)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(STEPS):
        updates, state = update({k: jnp.asarray(g[t]) for k, g in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
        yield {k: np.asarray(p) for k, p in params.items()}


AUTHORITIES = {
    "schedulefree.AdamWScheduleFreeReference": (schedule_free, SCHEDULE_FREE),
    "prodigyopt.Prodigy": (prodigy, PRODIGY),
    "optax.adafactor": (adafactor, ADAFACTOR),
    "adam_mini.Adam_mini": (adam_mini, ADAM_MINI),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--any-version", action="store_true", help="use whatever is installed")
    arguments = parser.parse_args()
    found = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    differ = [f"{k} {found[k]} (not {VERSIONS[k]})" for k in VERSIONS if found[k] != VERSIONS[k]]
    if differ and not arguments.any_version:
        sys.exit(
            f"The golden files are made with other versions; installed: {', '.join(differ)}. "
            "Install the pinned ones, or pass --any-version."
        )

    params, grads = make_problem()
    arrays, cases = {f"quadratic.{k}": x for k, x in make_quadratic(params).items()}, []
    for authority, (run, table) in AUTHORITIES.items():
        for case, kwargs in table.items():
            cases.append({"id": case, "authority": authority, "kwargs": kwargs})
            path = list(run(kwargs, params, grads))
            for k in path[0]:
                saved = np.stack([path[t - 1][k] for t in SAVED_STEPS])
                assert saved.dtype == np.float64 and np.isfinite(saved).all(), case
                arrays[f"{case}.{k}"] = saved
    np.savez_compressed(HERE / "structure.npz", **arrays)
    listed = ",\n".join(json.dumps(case) for case in cases)
    text = f'{{"versions": {json.dumps(found)},\n"cases": [\n{listed}\n]}}\n'
    (HERE / "structure.json").write_text(text)


if __name__ == "__main__":
    main()
