"""Record what the authors of Muon, SOAP, GaLore, APOLLO and their kin do, in float64.

Needed are torch 2.13.0, optax 0.2.8, jax 0.10.2, numpy 2.4.6, pytorch_optimizer 4.1.0 and heavyball
3.2.1; and, in one folder, unpacked wheels and files of the authors' repositories:

    muon.py                          muon-optimizer 0.1.0
    galore_torch/                    galore-torch 1.0
    apollo_torch/                    apollo-torch 1.0.3
    normuon.py                       zichongli5/NorMuon d45c9a42, normuon.py
    adamuon.py                       Chongjie-Si/AdaMuon 369f0b3b, gpt2/models/optimizers/
    soap.py                          nikhilvyas/SOAP a1e55353, soap.py
    fira/                            xichen-fy/Fira 5c28b134, optimizer_torch/
    hooks/                           NVIDIA-NeMo/Emerging-Optimizers fd772926, weight_update_hooks/

Then, from anywhere,

    python tests/golden/make_matrices.py FOLDER [--only ID …]

rewrites ``matrices.npz`` and ``matrices.json`` beside itself: ``params.*`` and ``grads.*``, and for
each case ``<id>.<name>``, the parameters after each step. Kernels are [in, out]; the programs of
PyTorch get them transposed. They convert to bfloat16 or float32 in places: here these conversions
only copy, so that the whole run is in float64, but for HeavyBall's. ``apollo.projection.*`` are the
random matrices that APOLLO drew. ``--only ID …`` records these cases and keeps the others. Other
versions and files are refused; ``--any-version`` lifts that.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np

from make_golden import HERE

VERSIONS = {
    "torch": "2.13.0",
    "optax": "0.2.8",
    "jax": "0.10.2",
    "numpy": "2.4.6",
    "pytorch_optimizer": "4.1.0",
    "heavyball": "3.2.1",
}
FILES = {
    "muon.py": "c714cee375d9c7315cb0dfe0d723cf357d3124d3c66e8446c150ebb0686eb48c",
    "galore_torch/adamw.py": "2dd9d148c4bf72b9a3f81295c6ede8315754b1bd29e8ec87318edb5209fdc025",
    "galore_torch/galore_projector.py": (
        "5ef7a90b4a0da3d534a7bcf140090e195282dab0a3242a4a5c0f61f316c3c98a"
    ),
    "apollo_torch/apollo.py": "96f96209e23d1e8104de0176769c7067dd0796a2e3779ecb10d28f591f174adb",
    "normuon.py": "a9bd18a0eaea75864610049fb21c655a87284e16e267dbe565e7d5c70aec242a",
    "adamuon.py": "367ffdab51f357ca16935fab13964ee6b363179973b40ce4e9f468aef0532240",
    "soap.py": "9e9021335ad02371584622fa256e73fe75f3eb74446a8d8a216e956534148f6b",
    "fira/fira_adamw.py": "d5a9bb5286f17cb7d39818c8c934b99403ca967bea20d7946539f6d9ef8e9424",
    "fira/gradient_projection.py": (
        "67e2a2f3d96764a336dca0f66abb14203f478aa7e8f0a5b7a49f00b4ad1374e7"
    ),
    "hooks/hyperball.py": "71d42ff88753b43cdf2c566daddf6612fa55d20e5a3bd4656c73ccfeee8486d8",
    "hooks/radial_brake.py": "fff57478e312440c474b0257b088349d75aad59b5c52686940160056993d435d",
}
STEPS = 40
SHAPES = {"square": (5, 5), "tall": (6, 4), "wide": (4, 6), "vector": (5,)}
MATRICES = ["square", "tall", "wide"]
FULL_RANK = ["square", "vector"]  # the first GGᵀ has one set of eigenvectors
SINGLE = ("heavyball", "hooks.hyperball", "hooks.radial_brake")  # these compute in float32 only
# One projection for the whole run: the signs of later singular vectors are arbitrary.
LOW_RANK = {"rank": 2, "update_proj_gap": STEPS, "proj_type": "std"}

# The authority (module:name), its arguments, and its parameters.
CASES = {
    "muon_torch_default": ("torch.optim:Muon", {}, MATRICES),
    "muon_torch": (
        "torch.optim:Muon",
        {
            "lr": 0.02,
            "momentum": 0.8,
            "weight_decay": 0.3,
            "nesterov": False,
            "adjust_lr_fn": "match_rms_adamw",
        },
        MATRICES,
    ),
    "muon_jordan": ("muon:SingleDeviceMuon", {"lr": 0.02, "weight_decay": 0.1}, MATRICES),
    "muon_optax": ("optax.contrib:muon", {"learning_rate": 0.02}, MATRICES),
    "muon_optax_options": (
        "optax.contrib:muon",
        {"learning_rate": 0.02, "beta": 0.8, "weight_decay": 0.3, "consistent_rms": 0.2},
        MATRICES,
    ),
    "normuon_default": ("normuon:SingleDeviceNorMuon", {}, MATRICES),
    "normuon": (
        "normuon:SingleDeviceNorMuon",
        {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.8, "beta2": 0.7},
        MATRICES,
    ),
    "adamuon_default": ("adamuon:AdaMuon", {"weight_decay": 0.0}, MATRICES),
    "adamuon": (
        "adamuon:AdaMuon",
        {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.8, "nesterov": False},
        MATRICES,
    ),
    "kl_soap": (
        "heavyball:KLSOAP",
        {
            "lr": 0.01,
            "betas": [0.8, 0.95],
            "shampoo_beta": 0.9,
            "eps": 1e-6,
            "weight_decay": 0.0,
            "precondition_frequency": 1,
        },
        ["square"],
    ),
    "soap_default": ("soap:SOAP", {"weight_decay": 0.0}, FULL_RANK),
    "soap": (
        "soap:SOAP",
        {
            "lr": 0.01,
            "betas": [0.8, 0.95],
            "shampoo_beta": 0.9,
            "eps": 1e-4,
            "weight_decay": 0.0,
            "precondition_frequency": 3,
        },
        FULL_RANK,
    ),
    "galore": (
        "galore_torch.adamw:AdamW",
        {"lr": 0.01, "low_rank": {**LOW_RANK, "scale": 0.5}},
        ["tall", "wide", "vector"],
    ),
    "fira": (
        "fira.fira_adamw:AdamW",
        {"lr": 0.01, "low_rank": {**LOW_RANK, "alpha": 1.0}},
        ["tall", "wide", "vector"],
    ),
    "apollo": (
        "apollo_torch.apollo:AdamW",
        {
            "lr": 0.01,
            "low_rank": {
                **LOW_RANK,
                "scale": 2.0,
                "proj": "random",
                "scale_type": "channel",
            },
        },
        ["tall", "wide", "vector"],
    ),
    "apollo_mini": (
        "apollo_torch.apollo:AdamW",
        {
            "lr": 0.01,
            "low_rank": {
                **LOW_RANK,
                "rank": 1,
                "scale": 128.0,
                "proj": "random",
                "scale_type": "tensor",
            },
        },
        ["tall", "wide", "vector"],
    ),
    "splus": (
        "pytorch_optimizer:SPlus",
        {"inverse_steps": 1, "weight_decay": 0.0, "betas": [0.8, 0.9], "foreach": False},
        FULL_RANK,
    ),
    "shampoo": ("pytorch_optimizer:Shampoo", {"lr": 0.1, "matrix_eps": 0.0}, ["square"]),
    # The learning rate falls to 0, and the matrices are normalised.
    "adamc": (
        "pytorch_optimizer:AdamC",
        {
            "lr": 0.05,
            "betas": [0.8, 0.95],
            "eps": 0.0,  # it is added before the bias correction
            "weight_decay": 0.3,
            "falls": True,
            "of_matrices": {"normalized": True},
        },
        [*MATRICES, "vector"],
    ),
    "hyperball": (
        "heavyball:HyperBallAdamW",
        {"lr": 0.05, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.0},
        MATRICES,
    ),
    # What is done with the steps of an optimiser of PyTorch.
    "muon_h": (
        "hooks.hyperball:HyperballHook",
        {"of": ["Muon", {"lr": 1.0, "momentum": 0.8, "weight_decay": 0.0}], "lr": 0.1},
        MATRICES,
    ),
    "radial_brake": (
        "hooks.radial_brake:RadialBrakeHook",
        {
            "of": ["SGD", {"lr": 0.2, "momentum": 0.5}],
            "outward_scale": 0.3,
            "inward_scale": 0.6,
        },
        [*MATRICES, "vector"],
    ),
}


def make_problem():
    """Noise around a mean, whose rows and columns have scales over one order of magnitude."""
    rng = np.random.default_rng(16)
    params, grads = {}, {}
    for name, shape in SHAPES.items():
        sides = (10 ** rng.uniform(-1, 0, n) for n in shape)
        scale = functools.reduce(np.multiply.outer, sides)
        params[name] = rng.normal(size=shape)
        grads[name] = scale * (0.3 * rng.normal(size=shape) + rng.normal(size=(STEPS, *shape)))
    return params, grads


def stubbed(folder):
    """Modules that the authors' packages import but that these programs do not use."""
    import heavyball.utils
    import pytorch_optimizer  # noqa: F401 # it looks for the real packages

    heavyball.utils.compile_mode = None
    versions = types.ModuleType("transformers.utils.versions")
    versions.require_version = lambda requirement: None
    sys.modules["transformers.utils.versions"] = versions
    for name in ("transformers", "transformers.utils", "galore_torch", "apollo_torch", "fira"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name)]
        sys.modules[name] = module


@contextlib.contextmanager
def without_conversions():
    """Let conversions to bfloat16 and float32 only copy."""
    import torch

    kept = {name: getattr(torch.Tensor, name) for name in ("bfloat16", "float")}
    for name in kept:
        setattr(torch.Tensor, name, lambda self: self.clone())
    yield
    for name, method in kept.items():
        setattr(torch.Tensor, name, method)


class Gathered:
    """A collective operation of one process, which is over at once."""

    def wait(self):
        pass


def on_one_cpu(adamuon):
    """AdaMuon asks for buffers on a GPU, in bfloat16, and gathers them from all processes."""
    import torch

    def gather(out, own, async_op):
        out.copy_(own.reshape(out.shape))
        return Gathered()

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, *shape, dtype, device):
            return torch.empty(*shape, dtype=torch.float64)

    adamuon.torch = Torch()
    adamuon.dist = types.SimpleNamespace(all_gather_into_tensor=gather)


def run_torch(module, name, kwargs, params, grads, extra):
    import torch

    torch.set_num_threads(1)
    dtype = torch.float32 if module in SINGLE else torch.float64
    torch.set_default_dtype(dtype)

    def tensor_of(x):
        return torch.tensor(x.T.copy(), dtype=dtype)

    tensors = {k: torch.nn.Parameter(tensor_of(p)) for k, p in params.items()}
    kwargs = dict(kwargs)
    low_rank, falls = kwargs.pop("low_rank", None), kwargs.pop("falls", False)
    groups = list(tensors.values())
    own = low_rank or kwargs.pop("of_matrices", None)
    if own is not None:
        groups = [{"params": [x], **(own if x.ndim == 2 else {})} for x in tensors.values()]
    program = importlib.import_module(module)
    if module == "adamuon":
        on_one_cpu(program)
        kwargs |= {"rank": 0, "world_size": 1}
    optimizer = getattr(program, name)(groups, **kwargs)
    for t in range(STEPS):
        for group in optimizer.param_groups if falls else ():
            group["lr"] = kwargs["lr"] * (1 - t / STEPS)
        for k, tensor in tensors.items():
            tensor.grad = tensor_of(grads[k][t])
        with contextlib.nullcontext() if module in SINGLE else without_conversions():
            optimizer.step()
        yield {k: x.detach().double().numpy().T.copy() for k, x in tensors.items()}
    if low_rank is not None and low_rank.get("proj") == "random":
        for k, tensor in tensors.items():
            if tensor.ndim == 2:
                extra[f"projection.{k}"] = optimizer.state[tensor]["projector"].ortho_matrix.numpy()


def run_hook(module, name, kwargs, params, grads):
    """Let a hook change the steps of an optimiser, which starts from 0 in every step."""
    import torch

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    kwargs = dict(kwargs)
    (inner, numbers), rate = kwargs.pop("of"), kwargs.pop("lr", 1.0)
    make = getattr(importlib.import_module(module), name)
    tensors = {k: torch.tensor(x.T.copy(), dtype=torch.float32) for k, x in params.items()}
    steps = {k: torch.nn.Parameter(torch.zeros_like(x)) for k, x in tensors.items()}
    optimizer = getattr(torch.optim, inner)(list(steps.values()), **numbers)
    hooks = {
        k: make(**kwargs, **({"radius": float(x.norm())} if "hyperball" in module else {}))
        for k, x in tensors.items()
    }
    for t in range(STEPS):
        for k, x in steps.items():
            x.data.zero_()
            x.grad = torch.tensor(grads[k][t].T.copy(), dtype=torch.float32)
        with without_conversions():
            optimizer.step()
        for k, x in tensors.items():
            step = steps[k].detach()
            before = hooks[k].pre_weight_update_inplace(x, step)
            x.add_(step, alpha=rate)
            hooks[k].post_weight_update_inplace(x, before)
        yield {k: x.double().numpy().T.copy() for k, x in tensors.items()}


def run_optax(module, name, kwargs, params, grads):
    import jax
    import jax.numpy as jnp
    import optax

    params = {k: jnp.asarray(p) for k, p in params.items()}
    optimizer = getattr(importlib.import_module(module), name)(**kwargs)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(STEPS):
        step = {k: jnp.asarray(g[t]) for k, g in grads.items()}
        updates, state = update(step, state, params)
        params = optax.apply_updates(params, updates)
        yield {k: np.asarray(p) for k, p in params.items()}


def record(params, grads, only):
    arrays = {f"params.{k}": x for k, x in params.items()}
    arrays |= {f"grads.{k}": x for k, x in grads.items()}
    described = []
    for case in only:
        authority, kwargs, names = CASES[case]
        module, name = authority.split(":")
        own = [{k: x[k] for k in names} for x in (params, grads)]
        extra = {}
        if module.startswith("optax"):
            path = list(run_optax(module, name, kwargs, *own))
        elif module.startswith("hooks"):
            path = list(run_hook(module, name, kwargs, *own))
        else:
            path = list(run_torch(module, name, kwargs, *own, extra))
        described.append({"id": case, "authority": authority, "kwargs": kwargs, "names": names})
        arrays |= {f"{case}.{k}": x for k, x in extra.items()}
        for k in names:
            saved = np.stack([now[k] for now in path])
            assert saved.dtype == np.float64 and np.isfinite(saved).all(), case
            arrays[f"{case}.{k}"] = saved
    return arrays, described


def differences(folder, only):
    found = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    differ = [f"{k} {found[k]} (not {VERSIONS[k]})" for k in VERSIONS if found[k] != VERSIONS[k]]
    used = {CASES[case][0].split(":")[0].split(".")[0] for case in only}
    for file, digest in FILES.items():
        if not used & {*file.removesuffix(".py").split("/")}:
            continue
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
            differ.append(f"{file} is another one")
    return found, differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the files of the authors' packages")
    parser.add_argument("--any-version", action="store_true", help="use whatever is there")
    parser.add_argument("--only", nargs="+", choices=CASES, help="keep the other cases")
    arguments = parser.parse_args()
    only = arguments.only or list(CASES)
    folder = arguments.folder.resolve()
    versions, differ = differences(folder, only)
    if differ and not arguments.any_version:
        sys.exit(
            f"The golden files are made with other versions; here: {', '.join(differ)}. "
            "Get the pinned ones, or pass --any-version."
        )
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, str(folder))
    stubbed(folder)
    arrays, described = record(*make_problem(), only)
    if arguments.only:
        before = json.loads((HERE / "matrices.json").read_text())["cases"]
        known = {case["id"]: case for case in before + described}
        described = [known[case] for case in CASES]
        arrays = {**np.load(HERE / "matrices.npz"), **arrays}
    np.savez_compressed(HERE / "matrices.npz", **arrays)
    cases = ",\n".join(json.dumps(case) for case in described)
    text = (
        f'{{"versions": {json.dumps(versions)},\n'
        f'"files": {json.dumps(FILES)},\n'
        f'"cases": [\n{cases}\n]}}\n'
    )
    (HERE / "matrices.json").write_text(text)


if __name__ == "__main__":
    main()
