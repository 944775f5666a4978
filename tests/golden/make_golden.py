"""Record what the authoritative implementations do, in float64, on one fixed problem.

Run from anywhere, with torch 2.13.0, optax 0.2.8, jax 0.10.2 and numpy 2.4.6 installed:

    python tests/golden/make_golden.py

It rewrites, beside itself,

* ``problem.npz``: ``params.*`` (where every run starts), ``grads.*`` (``[steps, ...]``, the
  gradients every run is given) and ``saved_steps`` (the steps after which parameters are kept);
* ``torch.npz``, ``optax.npz``: for each case ``<id>.w`` and ``<id>.b``, the parameters after each
  saved step;
* ``cases.json``: for each case its id, the authority and the arguments it was called with (what
  is not named has the authority's default); and the problem's facts and the versions.

The gradients do not depend on the parameters, so a trajectory shows the rule and nothing else.
Other versions are refused, since a golden file is only worth what made it; ``--any-version`` lifts
that, to see whether a new release still agrees.
"""

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
VERSIONS = {"torch": "2.13.0", "optax": "0.2.8", "jax": "0.10.2", "numpy": "2.4.6"}

SEED = 14126980
STEPS = 200
SHAPES = {"w": (4, 3), "b": (5,)}
ZERO_COORDINATE = ("w", (1, 2))  # its gradient is always zero
ZERO_STEP = 8  # at this step, counted from 1, all gradients are zero
SAVED_STEPS = [*range(1, 21), *range(30, STEPS + 1, 10)]

TORCH = {
    "sgd_default": ("SGD", {}),
    "sgd": ("SGD", {"lr": 0.05}),
    "sgd_momentum": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "sgd_nesterov": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adagrad_default": ("Adagrad", {}),
    "adagrad": ("Adagrad", {"lr": 0.1, "eps": 1e-4}),
    "adagrad_lr_decay": ("Adagrad", {"lr": 0.1, "lr_decay": 0.05}),
    "adagrad_initial_accumulator": ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "adadelta_default": ("Adadelta", {}),
    "adadelta": ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-4}),
    "rmsprop_default": ("RMSprop", {}),
    "rmsprop": ("RMSprop", {"lr": 1e-3, "alpha": 0.9, "eps": 1e-4}),
    "rmsprop_momentum": ("RMSprop", {"lr": 1e-3, "momentum": 0.9}),
    "rmsprop_centered": ("RMSprop", {"centered": True}),
    "rmsprop_centered_momentum": (
        "RMSprop",
        {"lr": 1e-3, "alpha": 0.9, "eps": 1e-4, "centered": True, "momentum": 0.5},
    ),
    "adam_default": ("Adam", {}),
    "adam": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}),
    "adam_long_memory": ("Adam", {"betas": (0.95, 0.99999)}),
    "adam_without_momentum": ("Adam", {"betas": (0.0, 0.99)}),
    "adam_l2": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw_default": ("AdamW", {}),
    "adamw": ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    "adamax_default": ("Adamax", {}),
    "adamax": ("Adamax", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}),
}

OPTAX = {
    "sgd": ("sgd", {"learning_rate": 0.05}),
    "sgd_momentum": ("sgd", {"learning_rate": 0.01, "momentum": 0.9}),
    "sgd_nesterov": ("sgd", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}),
    "adagrad_default": ("adagrad", {"learning_rate": 0.1}),
    "adagrad": (
        "adagrad",
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps": 1e-4},
    ),
    "adadelta_default": ("adadelta", {"learning_rate": 1.0}),
    "adadelta": ("adadelta", {"learning_rate": 0.5, "rho": 0.8, "eps": 1e-4}),
    "rmsprop_default": ("rmsprop", {"learning_rate": 1e-3}),
    "rmsprop": ("rmsprop", {"learning_rate": 1e-3, "decay": 0.99, "eps_in_sqrt": False}),
    "rmsprop_momentum": (
        "rmsprop",
        {"learning_rate": 1e-3, "eps_in_sqrt": False, "momentum": 0.9},
    ),
    "rmsprop_nesterov": (
        "rmsprop",
        {"learning_rate": 1e-3, "eps_in_sqrt": False, "momentum": 0.9, "nesterov": True},
    ),
    "rmsprop_centered_default": ("rmsprop", {"learning_rate": 1e-3, "centered": True}),
    "rmsprop_centered": (
        "rmsprop",
        {"learning_rate": 1e-3, "eps": 1e-4, "eps_in_sqrt": False, "centered": True},
    ),
    "rmsprop_bias_correction": (
        "rmsprop",
        {"learning_rate": 1e-3, "decay": 0.99, "eps_in_sqrt": False, "bias_correction": True},
    ),
    "adam_default": ("adam", {"learning_rate": 1e-3}),
    "adam": ("adam", {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "eps": 1e-4}),
    "adam_eps_root": ("adam", {"learning_rate": 0.01, "eps": 1e-6, "eps_root": 1e-6}),
    "adamax_default": ("adamax", {"learning_rate": 2e-3}),
    "adamax": ("adamax", {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "eps": 1e-4}),
    "adamw_default": ("adamw", {"learning_rate": 1e-3}),
    "adamw": (
        "adamw",
        {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "eps": 1e-4, "weight_decay": 0.1},
    ),
}


def make_problem():
    """Noise around a drifting mean, in coordinates of very different scale."""
    rng = np.random.default_rng(SEED)
    time = np.arange(STEPS) / STEPS
    params, grads = {}, {}
    for name, shape in SHAPES.items():
        params[name] = rng.normal(size=shape)
        size = int(np.prod(shape))
        scale = 10 ** rng.permutation(np.linspace(-5, 1, size))
        phase = rng.uniform(0, 2 * np.pi, size)
        drift = np.cos(2 * np.pi * time[:, None] + phase)
        noisy = scale * (drift + rng.normal(size=(STEPS, size)))
        grads[name] = noisy.reshape(STEPS, *shape)
        grads[name][ZERO_STEP - 1] = 0
    name, index = ZERO_COORDINATE
    grads[name][:, *index] = 0
    return params, grads


def run_torch(name, kwargs, params, grads):
    import torch

    tensors = {k: torch.tensor(p, dtype=torch.float64) for k, p in params.items()}
    optimizer = getattr(torch.optim, name)(tensors.values(), **kwargs)
    for t in range(STEPS):
        for k, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[k][t])
        optimizer.step()
        yield {k: tensor.numpy().copy() for k, tensor in tensors.items()}


def run_optax(name, kwargs, params, grads):
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    params = {k: jnp.asarray(p) for k, p in params.items()}
    optimizer = getattr(optax, name)(**kwargs)
    state = optimizer.init(params)
    for t in range(STEPS):
        step = {k: jnp.asarray(g[t]) for k, g in grads.items()}
        updates, state = optimizer.update(step, state, params)
        params = optax.apply_updates(params, updates)
        yield {k: np.asarray(p) for k, p in params.items()}


def record(cases, run, prefix, params, grads):
    """The saved parameters of all the cases, and their descriptions."""
    arrays, described = {}, []
    for key, (name, kwargs) in cases.items():
        case = f"{prefix.split('.')[0]}_{key}"
        described.append({"id": case, "authority": f"{prefix}.{name}", "kwargs": kwargs})
        path = list(run(name, kwargs, params, grads))
        for k in params:
            saved = np.stack([path[t - 1][k] for t in SAVED_STEPS])
            assert saved.dtype == np.float64 and np.isfinite(saved).all(), case
            arrays[f"{case}.{k}"] = saved
    return arrays, described


def check_versions():
    found = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    differ = [f"{k} {found[k]} (not {VERSIONS[k]})" for k in VERSIONS if found[k] != VERSIONS[k]]
    return found, differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--any-version", action="store_true", help="use whatever is installed")
    arguments = parser.parse_args()
    versions, differ = check_versions()
    if differ and not arguments.any_version:
        sys.exit(
            f"The golden files are made with other versions; installed: {', '.join(differ)}. "
            "Install the pinned ones, or pass --any-version."
        )

    params, grads = make_problem()
    from_torch, torch_cases = record(TORCH, run_torch, "torch.optim", params, grads)
    from_optax, optax_cases = record(OPTAX, run_optax, "optax", params, grads)

    problem = {f"params.{k}": p for k, p in params.items()}
    problem |= {f"grads.{k}": g for k, g in grads.items()}
    problem["saved_steps"] = np.asarray(SAVED_STEPS)
    np.savez_compressed(HERE / "problem.npz", **problem)
    np.savez_compressed(HERE / "torch.npz", **from_torch)
    np.savez_compressed(HERE / "optax.npz", **from_optax)

    name, index = ZERO_COORDINATE
    facts = {
        "seed": SEED,
        "steps": STEPS,
        "shapes": SHAPES,
        "zero_coordinate": {"param": name, "index": index},
        "zero_step": ZERO_STEP,
        "saved_steps": SAVED_STEPS,
    }
    cases = ",\n".join(json.dumps(case) for case in torch_cases + optax_cases)
    text = (
        f'{{"versions": {json.dumps(versions)},\n'
        f'"problem": {json.dumps(facts)},\n'
        f'"cases": [\n{cases}\n]}}\n'
    )
    (HERE / "cases.json").write_text(text)


if __name__ == "__main__":
    main()
