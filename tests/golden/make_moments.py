"""Record what the authors' implementations of Adam's descendants do, in float64.

Run from anywhere, with torch 2.13.0, adabelief-pytorch 0.2.1 (and its colorama and tabulate),
adam-atan2-pytorch 0.4.1 (and its einops), torch-optimi 0.3.3, optax 0.2.8, jax 0.10.2 and numpy
2.4.6 installed, and a folder on PYTHONPATH that holds two files of the authors:

* ``adopt.py``: src/adopt/adopt.py of github.com/iShohei220/adopt at 6468572;
* ``laprop.py``: laprop.py of github.com/Z-T-WANG/LaProp-Optimizer at a419916;

    python tests/golden/make_moments.py

It rewrites, beside itself, ``moments.npz`` (for each case ``<id>.w`` and ``<id>.b``, the parameters
after each saved step of the problem in ``problem.npz``) and ``moments.json`` (the cases: id,
authority, the arguments it was called with; the versions). A case with ``decaying_rate`` has the
learning rate lr / (1 + t · decaying_rate) in step t = 0, 1, …; one with ``mean_0`` starts with this
first moment in place of the authority's own. Other versions are refused; ``--any-version`` lifts
that.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import sys
import warnings
from importlib import metadata

import numpy as np

from make_golden import HERE, SAVED_STEPS, STEPS, make_problem

VERSIONS = {
    "torch": "2.13.0",
    "adabelief-pytorch": "0.2.1",
    "adam-atan2-pytorch": "0.4.1",
    "torch-optimi": "0.3.3",
    "optax": "0.2.8",
    "jax": "0.10.2",
    "numpy": "2.4.6",
}
SOURCES = {
    "adopt": ("6468572", "b951aa5d12a6ff55cf64b86fc50ada4e6ea3469415cde78b79887a41795935ed"),
    "laprop": ("a419916", "8f153db8876a1e8d27105860d43c7a9702e22cb32a3db51298d43c2325dc1cfb"),
}

OTHER = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}
TORCH = {
    "amsgrad_default": ("torch.optim.Adam", {"amsgrad": True}),
    "amsgrad": ("torch.optim.Adam", {"amsgrad": True} | OTHER),
    "amsgrad_short_memory": ("torch.optim.Adam", {"amsgrad": True, "betas": (0.9, 0.9)}),
    "nadam_default": ("torch.optim.NAdam", {}),
    "nadam": ("torch.optim.NAdam", {"momentum_decay": 0.02} | OTHER),
    "nadamw": (
        "torch.optim.NAdam",
        {"weight_decay": 0.1, "decoupled_weight_decay": True} | OTHER,
    ),
    "radam_default": ("torch.optim.RAdam", {}),
    "radam": ("torch.optim.RAdam", OTHER),
    "radam_long_memory": ("torch.optim.RAdam", {"betas": (0.9, 0.99999)}),
    "radam_never_rectified": ("torch.optim.RAdam", {"betas": (0.9, 0.6)}),
    "adabelief_default": ("adabelief_pytorch.AdaBelief", {"rectify": True}),
    "adabelief_rectified": ("adabelief_pytorch.AdaBelief", {"rectify": True} | OTHER),
    "adabelief_paper": ("adabelief_pytorch.AdaBelief", {"rectify": False}),
    "adabelief": ("adabelief_pytorch.AdaBelief", {"rectify": False} | OTHER),
    "laprop_default": ("laprop.LaProp", {}),
    "laprop": ("laprop.LaProp", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-8}),
    "laprop_scheduled": ("laprop.LaProp", {"lr": 0.01, "decaying_rate": 0.1}),
    "adam_atan2_default": ("adam_atan2_pytorch.adam_atan2.AdamAtan2", {}),
    "adam_atan2": (
        "adam_atan2_pytorch.adam_atan2.AdamAtan2",
        {"lr": 0.01, "betas": (0.8, 0.95), "a": 1.0, "b": 0.5},
    ),
    "adopt_default": ("adopt.ADOPT", {}),
    "adopt": ("adopt.ADOPT", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
    "adopt_unclipped": ("adopt.ADOPT", {"clip_lambda": None, "eps": 1e-3}),
    "stableadamw_default": ("optimi.StableAdamW", {"lr": 1e-3}),
    "stableadamw": ("optimi.StableAdamW", {"weight_decay": 0.1} | OTHER),
}
OPTAX = {
    "nadam_default": ("optax.nadam", {"learning_rate": 2e-3}),
    "nadam": ("optax.nadam", {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "eps": 1e-4}),
    "nadamw": ("optax.nadamw", {"learning_rate": 0.01, "weight_decay": 0.1}),
    "adabelief": ("optax.adabelief", {"learning_rate": 1e-3}),
    "yogi_default": ("optax.yogi", {"learning_rate": 0.01}),
    "yogi": (
        "optax.yogi",
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-4},
    ),
    "yogi_mean_0_default": ("optax.yogi", {"learning_rate": 0.01, "mean_0": 0.0}),
    "yogi_mean_0": (
        "optax.yogi",
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-4, "mean_0": 0.0},
    ),
    "adopt": ("optax.contrib.adopt", {"learning_rate": 1e-3}),
}


def find(authority):
    module, name = authority.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def run_torch(authority, kwargs, params, grads):
    import torch

    torch.set_num_threads(1)
    decaying_rate = kwargs.pop("decaying_rate", 0.0)
    tensors = {k: torch.tensor(p, dtype=torch.float64) for k, p in params.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # AdaBelief's table of what changed
        if authority.startswith("adabelief"):
            kwargs["print_change_log"] = False
        optimizer = find(authority)(list(tensors.values()), **kwargs)
    rate = optimizer.param_groups[0]["lr"]
    for t in range(STEPS):
        for k, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[k][t])
        if decaying_rate:
            optimizer.param_groups[0]["lr"] = rate / (1 + t * decaying_rate)
        optimizer.step()
        yield {k: tensor.numpy().copy() for k, tensor in tensors.items()}


def run_optax(authority, kwargs, params, grads):
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    mean_0 = kwargs.pop("mean_0", None)
    params = {k: jnp.asarray(p) for k, p in params.items()}
    optimizer = find(authority)(**kwargs)
    state = optimizer.init(params)
    if mean_0 is not None:
        mu = {k: jnp.full_like(p, mean_0) for k, p in params.items()}
        state = (state[0]._replace(mu=mu), *state[1:])
    for t in range(STEPS):
        step = {k: jnp.asarray(g[t]) for k, g in grads.items()}
        updates, state = optimizer.update(step, state, params)
        params = optax.apply_updates(params, updates)
        yield {k: np.asarray(p) for k, p in params.items()}


def record(cases, run, prefix, params, grads):
    arrays, described = {}, []
    for key, (authority, kwargs) in cases.items():
        case = f"{prefix}_{key}"
        described.append({"id": case, "authority": authority, "kwargs": kwargs})
        path = list(run(authority, dict(kwargs), params, grads))
        for k in params:
            saved = np.stack([path[t - 1][k] for t in SAVED_STEPS])
            assert saved.dtype == np.float64 and np.isfinite(saved).all(), case
            arrays[f"{case}.{k}"] = saved
    return arrays, described


def check_versions():
    found = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    differ = [f"{k} {found[k]} (not {VERSIONS[k]})" for k in VERSIONS if found[k] != VERSIONS[k]]
    for name, (commit, digest) in SOURCES.items():
        spec = importlib.util.find_spec(name)
        if spec is None:
            sys.exit(f"{name}.py of commit {commit} is not on the path; see the docstring")
        with open(spec.origin, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != digest:
                differ.append(f"{name}.py (not that of {commit})")
        found[name] = commit
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
    warnings.filterwarnings("ignore", category=UserWarning)  # old spellings of torch's functions

    params, grads = make_problem()
    from_torch, torch_cases = record(TORCH, run_torch, "torch", params, grads)
    from_optax, optax_cases = record(OPTAX, run_optax, "optax", params, grads)
    np.savez_compressed(HERE / "moments.npz", **from_torch, **from_optax)
    cases = ",\n".join(json.dumps(case) for case in torch_cases + optax_cases)
    text = f'{{"versions": {json.dumps(versions)},\n"cases": [\n{cases}\n]}}\n'
    (HERE / "moments.json").write_text(text)


if __name__ == "__main__":
    main()
