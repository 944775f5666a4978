"""Record what the authors of signs, layers, differences and slow weights do, in float64.

The problem is that of ``problem.npz``. Needed are torch 2.13.0, optax 0.2.8, jax 0.10.2, numpy
2.4.6 and lion-pytorch 0.2.3, and, in one folder, files of the authors' repositories:

    c_optim/c_adamw.py    kyleliang919/C-Optim 2c0517c4, c_adamw.py (needs c_optim/opt_utils.py)
    grams.py              Gunale0926/Grams f91a375d, grams/src/grams.py
    mars.py               AGI-Arena/MARS 4831e28e, MARS/optimizers/mars.py
    adan.py               sail-sg/Adan 2c65beaf, adan.py
    ademamix.py           apple/ml-ademamix c3d73c09, pytorch/ademamix.py
    lookahead_pytorch.py  michaelrzhang/lookahead c4fd85f7, lookahead_pytorch.py

Then, from anywhere,

    python tests/golden/make_shapes.py FOLDER

rewrites ``shapes.npz`` and ``shapes.json`` beside itself, in the form of ``torch.npz`` and
``cases.json``. Other versions and other files are refused; ``--any-version`` lifts that.
"""

import argparse
import hashlib
import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

from make_golden import HERE, SAVED_STEPS, STEPS, make_problem

VERSIONS = {
    "torch": "2.13.0",
    "optax": "0.2.8",
    "jax": "0.10.2",
    "numpy": "2.4.6",
    "lion-pytorch": "0.2.3",
}
FILES = {
    "c_optim/c_adamw.py": "1514a0dfe4b65a38fb01e91399b0d9383f5f43a032730cf0c0d48adfcbae7b33",
    "grams.py": "fa5ef64bd5c574ccbb1fe4d6395fcd94a7d430702e7039b9b57c44f1297b00a9",
    "mars.py": "5bee9e72aea3f043b415022fd0e732b4995436bd4d3faea4c347c0d54ef273e0",
    "adan.py": "6b71fdfe0278809dd37297b67456155baba098716fbcd38f7285416966eb27e2",
    "ademamix.py": "e4d247f2f780cd35104f15f10c1802afa5edf5e1732734c24b4a4ae8ca23cc19",
    "lookahead_pytorch.py": "130b8033303902a831e37b9323150c7740c3a0661adbc15edf6aca7c3561878c",
}

# The authority (module:name), and its arguments.
CASES = {
    "lion_default": ("lion_pytorch:Lion", {}),
    "lion": (
        "lion_pytorch:Lion",
        {"lr": 1e-3, "betas": [0.8, 0.95], "weight_decay": 0.5},
    ),
    "cautious_lion": ("lion_pytorch.cautious_lion:Lion", {"lr": 1e-3}),
    "signum": ("optax:signum", {"learning_rate": 1e-3}),
    "signum_beta": ("optax:signum", {"learning_rate": 1e-2, "beta": 0.5}),
    "lamb_default": ("optax:lamb", {"learning_rate": 1e-2}),
    "lamb": (
        "optax:lamb",
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.3},
    ),
    "lars_default": ("optax:lars", {"learning_rate": 1.0}),
    "lars_nesterov": (
        "optax:lars",
        {
            "learning_rate": 0.1,
            "trust_coefficient": 0.1,
            "eps": 1e-3,
            "momentum": 0.8,
            "nesterov": True,
        },
    ),
    "lars_decay": ("optax:lars", {"learning_rate": 1.0, "weight_decay": 0.5}),
    "novograd": (
        "optax:novograd",
        {"learning_rate": 1e-2, "b1": 0.95, "b2": 0.98, "eps": 1e-8},
    ),
    "novograd_decay": (
        "optax:novograd",
        {"learning_rate": 1e-2, "b2": 0.5, "eps": 1e-2, "weight_decay": 0.1},
    ),
    "cautious_adamw_default": ("c_optim.c_adamw:AdamW", {"foreach": False}),
    "cautious_adamw": (
        "c_optim.c_adamw:AdamW",
        {
            "lr": 1e-2,
            "betas": [0.8, 0.95],
            "eps": 1e-3,
            "weight_decay": 0.3,
            "foreach": False,
        },
    ),
    "grams_default": ("grams:Grams", {}),
    "grams": (
        "grams:Grams",
        {"lr": 1e-2, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.3},
    ),
    "mars_default": ("mars:MARS", {"optimize_1d": True}),
    "mars": (
        "mars:MARS",
        {
            "lr": 1e-2,
            "betas": [0.9, 0.95],
            "eps": 1e-3,
            "weight_decay": 0.3,
            "gamma": 0.1,
            "optimize_1d": True,
        },
    ),
    "mars_lion": (
        "mars:MARS",
        {"weight_decay": 0.3, "mars_type": "mars-lion", "optimize_1d": True},
    ),
    "adan_default": ("adan:Adan", {}),
    "adan": (
        "adan:Adan",
        {"lr": 1e-2, "betas": [0.9, 0.8, 0.95], "eps": 1e-3, "weight_decay": 5.0},
    ),
    "adan_no_prox": ("adan:Adan", {"lr": 1e-2, "weight_decay": 5.0, "no_prox": True}),
    "ademamix_default": ("ademamix:AdEMAMix", {}),
    "ademamix": (
        "ademamix:AdEMAMix",
        {
            "lr": 1e-2,
            "betas": [0.8, 0.95, 0.99],
            "alpha": 8.0,
            "eps": 1e-3,
            "weight_decay": 0.3,
            "alpha_warmup": 50,
        },
    ),
    "ademamix_warm_up": (
        "ademamix:AdEMAMix",
        {"alpha": 8.0, "alpha_warmup": 150, "beta3_warmup": 150},
    ),
    "ademamix_optax": (
        "optax.contrib:ademamix",
        {"learning_rate": 1e-2, "b3": 0.99, "weight_decay": 0.1},
    ),
    "lookahead_default": ("lookahead_pytorch:Lookahead", {"lr": 1e-2}),
    "lookahead": ("lookahead_pytorch:Lookahead", {"lr": 1e-2, "la_steps": 3, "la_alpha": 0.3}),
    "adaptive_clip": ("optax:adaptive_grad_clip", {"clipping": 0.1}),
    "adaptive_clip_eps": ("optax:adaptive_grad_clip", {"clipping": 0.5, "eps": 1.0}),
}


def torch_optimizer(module, name, kwargs, tensors):
    import torch

    make = getattr(importlib.import_module(module), name)
    if name == "Lookahead":
        rest = dict(kwargs)
        return make(torch.optim.Adam(tensors, lr=rest.pop("lr")), **rest)
    return make(tensors, **kwargs)


def run_torch(module, name, kwargs, params, grads):
    import torch

    torch.set_num_threads(1)
    tensors = {k: torch.tensor(p, dtype=torch.float64) for k, p in params.items()}
    optimizer = torch_optimizer(module, name, kwargs, list(tensors.values()))
    for t in range(STEPS):
        for k, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[k][t])
        optimizer.step()
        yield {k: tensor.numpy().copy() for k, tensor in tensors.items()}


def run_optax(module, name, kwargs, params, grads):
    import jax
    import jax.numpy as jnp
    import optax

    params = {k: jnp.asarray(p) for k, p in params.items()}
    optimizer = getattr(importlib.import_module(module), name)(**kwargs)
    if name == "adaptive_grad_clip":
        optimizer = optax.chain(optimizer, optax.sgd(0.1))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(STEPS):
        step = {k: jnp.asarray(g[t]) for k, g in grads.items()}
        updates, state = update(step, state, params)
        params = optax.apply_updates(params, updates)
        yield {k: np.asarray(p) for k, p in params.items()}


def record(params, grads):
    arrays, described = {}, []
    for case, (authority, kwargs) in CASES.items():
        module, name = authority.split(":")
        run = run_optax if module.startswith("optax") else run_torch
        path = list(run(module, name, kwargs, params, grads))
        described.append({"id": case, "authority": authority, "kwargs": kwargs})
        for k in params:
            saved = np.stack([path[t - 1][k] for t in SAVED_STEPS])
            assert saved.dtype == np.float64 and np.isfinite(saved).all(), case
            arrays[f"{case}.{k}"] = saved
    return arrays, described


def differences(folder):
    found = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    differ = [f"{k} {found[k]} (not {VERSIONS[k]})" for k in VERSIONS if found[k] != VERSIONS[k]]
    for file, digest in FILES.items():
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
            differ.append(f"{file} is another one")
    return found, differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the files of the authors' repositories")
    parser.add_argument("--any-version", action="store_true", help="use whatever is there")
    arguments = parser.parse_args()
    versions, differ = differences(arguments.folder)
    if differ and not arguments.any_version:
        sys.exit(
            f"The golden files are made with other versions; here: {', '.join(differ)}. "
            "Get the pinned ones, or pass --any-version."
        )
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, str(arguments.folder.resolve()))
    arrays, described = record(*make_problem())
    np.savez_compressed(HERE / "shapes.npz", **arrays)
    cases = ",\n".join(json.dumps(case) for case in described)
    text = (
        f'{{"versions": {json.dumps(versions)},\n'
        f'"files": {json.dumps(FILES)},\n'
        f'"cases": [\n{cases}\n]}}\n'
    )
    (HERE / "shapes.json").write_text(text)


if __name__ == "__main__":
    main()
