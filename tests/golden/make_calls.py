"""Record the calls of PyTorch and Keras that docs/migrating.md says are equal to adamx's.

Run from anywhere, with what `make_golden.py` needs and keras 3.15.1:

    KERAS_BACKEND=jax python tests/golden/make_calls.py

The calls are read from the page's table and made as they stand there, with α = 0.01 and λ = 0.1. It
rewrites, beside itself, ``calls.npz`` (for each call ``<number>.w`` and ``<number>.b``, the
parameters of the problem in ``problem.npz`` after each of its saved steps) and ``calls.json`` (α
and λ, the calls by number, the versions). All is float64. Other versions are refused;
``--any-version`` lifts that.
"""

import argparse
import json
import re
import sys
from importlib import metadata

import numpy as np

from make_golden import HERE, SAVED_STEPS, STEPS, check_versions, make_problem

PAGE = HERE.parents[1] / "docs" / "migrating.md"
COLUMNS = ("adamx", "Optax", "PyTorch", "Keras")
NUMBERS = {"α": 0.01, "λ": 0.1}
KERAS = "3.15.1"


def equal_calls():
    """The rows of the table: the calls of a row by their libraries."""
    _, _, after = PAGE.read_text(encoding="utf-8").partition(f"| {' | '.join(COLUMNS)} |\n")
    rows = []
    for line in after.splitlines()[1:]:
        if not line.startswith("|"):
            return rows
        found = [re.findall("`(.*?)`", cell) for cell in line.strip("|").split("|")]
        rows.append({name: calls[0] for name, calls in zip(COLUMNS, found, strict=True) if calls})
    raise ValueError(f"{PAGE} has no table of {COLUMNS}, or nothing behind it")


def run_torch(call, params, grads):
    import torch

    tensors = {k: torch.tensor(p) for k, p in params.items()}

    def made(kind):
        return lambda **kwargs: kind(tensors.values(), **kwargs)

    kinds = {name: made(getattr(torch.optim, name)) for name in torch.optim.__all__}
    torch.set_default_dtype(torch.float64)  # of the scalars that NAdam keeps
    optimizer = eval(call, {**kinds, **NUMBERS})
    for t in range(STEPS):
        for k, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[k][t])
        optimizer.step()
        yield {k: tensor.numpy().copy() for k, tensor in tensors.items()}


def run_keras(call, params, grads):
    import jax
    import keras

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    variables = {k: keras.Variable(p, dtype="float64") for k, p in params.items()}
    optimizer = eval(call, {**vars(keras.optimizers), **NUMBERS})
    optimizer.build(list(variables.values()))
    for t in range(STEPS):
        step = [keras.ops.convert_to_tensor(grads[k][t], "float64") for k in variables]
        optimizer.apply(step, list(variables.values()))
        yield {k: np.asarray(x) for k, x in variables.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--any-version", action="store_true", help="use whatever is installed")
    arguments = parser.parse_args()
    versions, differ = check_versions()
    versions["keras"] = metadata.version("keras")
    differ += [f"keras {versions['keras']} (not {KERAS})"] * (versions["keras"] != KERAS)
    if differ and not arguments.any_version:
        sys.exit(f"calls.npz is made with other versions; installed: {', '.join(differ)}.")

    params, grads = make_problem()
    arrays, calls = {}, []
    for row in equal_calls():
        for library, run in {"PyTorch": run_torch, "Keras": run_keras}.items():
            if library not in row:
                continue
            path = list(run(row[library], params, grads))
            for k in params:
                saved = np.stack([path[t - 1][k] for t in SAVED_STEPS])
                assert saved.dtype == np.float64 and np.isfinite(saved).all(), row[library]
                arrays[f"{len(calls)}.{k}"] = saved
            calls.append([library, row[library]])
    np.savez_compressed(HERE / "calls.npz", **arrays)
    listed = ",\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
    (HERE / "calls.json").write_text(
        f'{{"versions": {json.dumps(versions)},\n'
        f'"numbers": {json.dumps(NUMBERS, ensure_ascii=False)},\n'
        f'"calls": [\n{listed}\n]}}\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
