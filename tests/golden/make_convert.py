"""Record PyTorch's optimisers in the middle of a training: what they keep, and how they go on.

Run from anywhere, with torch 2.13.0, jax 0.10.2, optax 0.2.8 and numpy 2.4.6 installed:

    python tests/golden/make_convert.py

It rewrites, beside itself, ``convert.npz`` (for each case, of the problem in ``problem.npz``:
``<id>.path.w``, the parameters after steps MIDDLE … 2·MIDDLE, and ``<id>.exp_avg.w``, …, what
``state_dict()`` held after step MIDDLE) and ``convert.json`` (the cases: id, optimiser, arguments,
the group in ``state_dict()``; the step in the middle; the versions). A ``scheduled`` case has the
learning rate lr · 0.9ᵗ in step t = 0, 1, …. All is float64. Other versions are refused;
``--any-version`` lifts that.
"""

import argparse
import json
import sys

import numpy as np

from make_golden import HERE, check_versions, make_problem

MIDDLE = 12
OTHER = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}
CASES = {
    "adam": ("Adam", {}),
    "adam_other": ("Adam", OTHER),
    "adam_scheduled": ("Adam", {"lr": 0.01}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": ("Adam", {"amsgrad": True} | OTHER),
    "adamax": ("Adamax", OTHER),
    "nadam": ("NAdam", {"momentum_decay": 0.02} | OTHER),
    "radam": ("RAdam", OTHER),
    "rmsprop": ("RMSprop", {"lr": 1e-3}),
    "rmsprop_scheduled": ("RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "sgd": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "sgd_scheduled": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
}


def run(name, kwargs, scheduled, params, grads):
    """The parameters from the middle to the end, and the state dict of the middle."""
    import torch

    torch.set_default_dtype(torch.float64)  # of the scalars that NAdam keeps
    tensors = {k: torch.tensor(p, requires_grad=True) for k, p in params.items()}
    optimizer = getattr(torch.optim, name)(list(tensors.values()), **kwargs)
    factor = 0.9 if scheduled else 1.0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: factor**t)
    path, middle = [], {}
    for t in range(2 * MIDDLE):
        for k, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[k][t])
        optimizer.step()
        schedule.step()
        if t + 1 >= MIDDLE:
            path.append({k: x.detach().numpy().copy() for k, x in tensors.items()})
        if t + 1 == MIDDLE:
            held = optimizer.state_dict()
            state = {
                (key, k): x.detach().numpy().copy()
                for index, k in enumerate(tensors)
                for key, x in held["state"][index].items()
            }
            middle = {"state": state, "group": held["param_groups"][0]}
    return path, middle


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--any-version", action="store_true", help="use whatever is installed")
    arguments = parser.parse_args()
    versions, differ = check_versions()
    if differ and not arguments.any_version:
        sys.exit(f"convert.npz is made with other versions; installed: {', '.join(differ)}.")

    params, grads = make_problem()
    arrays, cases = {}, []
    for id_, (name, kwargs) in CASES.items():
        scheduled = id_.endswith("scheduled")
        path, middle = run(name, kwargs, scheduled, params, grads)
        arrays |= {f"{id_}.path.{k}": np.stack([p[k] for p in path]) for k in params}
        arrays |= {f"{id_}.{key}.{k}": x for (key, k), x in middle["state"].items()}
        case = {"id": id_, "optimiser": name, "kwargs": kwargs, "scheduled": scheduled}
        cases.append(json.dumps(case | {"group": middle["group"]}))
    np.savez_compressed(HERE / "convert.npz", **arrays)
    text = ",\n".join(cases)
    (HERE / "convert.json").write_text(
        f'{{"versions": {json.dumps(versions)},\n"middle": {MIDDLE},\n"cases": [\n{text}\n]}}\n'
    )


if __name__ == "__main__":
    main()
