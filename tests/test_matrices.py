"""Muon, and optimisers in a basis: recorded trajectories, laws, shapes and errors."""

import functools
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from catalog import run, x64

pytestmark = pytest.mark.optimised

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "matrices.json").read_text())
CASES = {case["id"]: case for case in RECORD["cases"]}
ARRAYS = np.load(GOLDEN / "matrices.npz")


# The programs of others, as chains


def torch_muon(lr=1e-3, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn=None):
    scaling = "adamw_rms" if adjust_lr_fn else "original"
    rest = {"nesterov": nesterov, "scaling": scaling}
    return adamx.muon(lr, momentum, weight_decay, **rest)


def optax_muon(learning_rate, beta=0.95, weight_decay=0.0, consistent_rms=None):
    """The momentum and the gradient are each corrected for their weights."""
    return adamx.chain(
        adamx.scale_by_nesterov_momentum(beta, math.inf),
        adamx.orthogonalize(eps=1e-8),
        adamx.scale_by_shape("adamw_rms" if consistent_rms else "original"),
        adamx.add_decayed_weights(weight_decay),
        adamx.scale_by_learning_rate(learning_rate),
    )


def normuon(lr=0.02, weight_decay=0.0, momentum=0.95, beta2=0.95):
    return adamx.normuon(lr, momentum, beta2, 1e-10, weight_decay)


def adamuon(lr=0.02, weight_decay=0.01, momentum=0.95, eps=1e-8, nesterov=True):
    return adamx.adamuon(lr, momentum, momentum, eps, weight_decay, nesterov=nesterov)


def soap(
    lr=3e-3, betas=(0.95, 0.95), shampoo_beta=None, precondition_frequency=10, of=adamx.soap, **rest
):
    rest |= {"shampoo_beta": shampoo_beta, "every": precondition_frequency, "spread": False}
    return of(lr, *betas, **rest)


def on_matrices(inner, **rest):
    """Adam for the vectors, as the authors' groups without a rank have it."""
    return adamx.partition(
        {(lambda path, shape: len(shape.shape) > 1): inner, "*": adamx.adam(**rest)}
    )


def galore(lr, low_rank, of=adamx.galore):
    rest = {"rank": low_rank["rank"], "every": low_rank["update_proj_gap"]}
    rest["scaling"] = low_rank.get("scale", low_rank.get("alpha"))
    inner = of(lr, spread=False, **rest)
    return on_matrices(inner, learning_rate=lr, eps=0.0, eps_hat=1e-6)


def apollo(lr, low_rank, case):
    """With the random matrices that the authors' program drew."""
    groups = {}
    for name in ("tall", "wide"):
        drawn = ARRAYS[f"{case}.projection.{name}"]  # of the transposed kernel
        sides = {"left": drawn.T} if name == "wide" else {"right": drawn}
        groups[name] = adamx.chain(
            adamx.in_basis(
                adamx.fixed_basis(**sides),
                adamx.chain(adamx.scale_by_momentum(), adamx.scale_by_rms(eps=0.0, eps_hat=1e-6)),
                leave=adamx.leave_by_scaling(low_rank["scale_type"]),
            ),
            adamx.limit_growth(),
            adamx.scale(math.sqrt(low_rank["scale"])),
            adamx.bias_correction(),
            adamx.scale_by_learning_rate(lr),
        )
    return adamx.partition({**groups, "*": adamx.adam(lr, eps=0.0, eps_hat=1e-6)})


def splus(inverse_steps, weight_decay, betas, foreach):
    return adamx.splus(0.1, *betas, weight_decay, every=inverse_steps, spread=False)


EQUAL = {
    "torch.optim:Muon": torch_muon,
    "muon:SingleDeviceMuon": torch_muon,
    "optax.contrib:muon": optax_muon,
    "normuon:SingleDeviceNorMuon": normuon,
    "adamuon:AdaMuon": adamuon,
    "heavyball:KLSOAP": functools.partial(soap, of=adamx.kl_soap),
    "soap:SOAP": soap,
    "galore_torch.adamw:AdamW": galore,
    "fira.fira_adamw:AdamW": functools.partial(galore, of=adamx.fira),
    "apollo_torch.apollo:AdamW": apollo,
    "pytorch_optimizer:SPlus": splus,
}


@pytest.mark.parametrize("id_", CASES)
def test_it_follows_the_recorded_program(id_):
    case = CASES[id_]
    kwargs, names = dict(case["kwargs"]), case["names"]
    if case["authority"].startswith("apollo"):
        kwargs["case"] = id_
    with x64():
        opt = EQUAL[case["authority"]](**kwargs)
        params = {k: jnp.asarray(ARRAYS[f"params.{k}"]) for k in names}
        grads = {k: jnp.asarray(ARRAYS[f"grads.{k}"]) for k in names}
        updates = run(opt, grads, params)
    for k in names:
        ours = ARRAYS[f"params.{k}"] + np.cumsum(updates[k], 0)
        theirs = ARRAYS[f"{id_}.{k}"]
        moved = np.abs(theirs - ARRAYS[f"params.{k}"]).max()
        tolerance = 5e-3 if case["authority"].startswith("heavyball") else 1e-6  # single precision
        assert np.abs(ours - theirs).max() <= tolerance * moved, k
