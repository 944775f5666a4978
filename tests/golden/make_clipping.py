"""Record what the authors of ZClip make of a sequence of gradients with outliers, in float64.

Needed are torch 2.13.0, numpy 2.4.6 and, in one folder, ``zclip.py``: zclip/zclip.py of
github.com/bluorion-com/ZClip at 584ce4f. Then, from anywhere,

    python tests/golden/make_clipping.py FOLDER

rewrites ``clipping.npz`` (the gradients ``grads.<name>`` of every step, and for each case
``<id>.<name>``, what they were clipped to) and ``clipping.json`` (the cases and the versions)
beside itself. Other versions are refused; ``--any-version`` lifts that.
"""

import argparse
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
VERSIONS = {"torch": "2.13.0", "numpy": "2.4.6"}
FILES = {"zclip.py": "c28177c4fd32a32d63668cda49f76c9274d57858c1d6a9fecb7c511e50418ad8"}
CASES = {
    "zclip_default": {},
    "zclip_uncapped": {"max_grad_norm": None},
    "zclip": {
        "alpha": 0.9,
        "z_thresh": 1.5,
        "max_grad_norm": 250.0,
        "eps": 0.5,
        "warmup_steps": 10,
    },
}
SHAPES = {"w": (4, 3), "b": (3,)}
STEPS = 120


def gradients():
    """Norms of about 100 that drift, and in every 17th step are far larger."""
    random = np.random.default_rng(11)
    size = 30 * (1 + np.arange(STEPS) / 100) * np.exp(0.1 * random.standard_normal(STEPS))
    size[np.arange(STEPS) % 17 == 16] *= 20
    return {
        name: size.reshape(-1, *(1 for _ in shape)) * random.standard_normal((STEPS, *shape))
        for name, shape in SHAPES.items()
    }


def clipped(arguments, grads):
    import torch
    from zclip import ZClip

    model = torch.nn.ParameterDict(
        {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    )
    clip, found = ZClip(**arguments), {name: [] for name in SHAPES}
    for t in range(STEPS):
        for name, parameter in model.items():
            parameter.grad = torch.tensor(grads[name][t])
        clip.step(model)
        for name, parameter in model.items():
            found[name].append(parameter.grad.numpy().copy())
    return {name: np.stack(rows) for name, rows in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the file of the authors' repository")
    parser.add_argument("--any-version", action="store_true", help="use whatever is there")
    arguments = parser.parse_args()
    found = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    differ = [f"{k} {found[k]} (not {VERSIONS[k]})" for k in VERSIONS if found[k] != VERSIONS[k]]
    for file, digest in FILES.items():
        if hashlib.sha256((arguments.folder / file).read_bytes()).hexdigest() != digest:
            differ.append(f"{file} is another one")
    if differ and not arguments.any_version:
        sys.exit(
            f"The golden files are made with other versions; here: {', '.join(differ)}. "
            "Get the pinned ones, or pass --any-version."
        )
    sys.path.insert(0, str(arguments.folder.resolve()))
    grads = gradients()
    arrays = {f"grads.{name}": g for name, g in grads.items()}
    for case, given in CASES.items():
        arrays |= {f"{case}.{name}": g for name, g in clipped(given, grads).items()}
    np.savez_compressed(HERE / "clipping.npz", **arrays)
    cases = ",\n".join(
        json.dumps({"id": case, "authority": "zclip:ZClip", "kwargs": given})
        for case, given in CASES.items()
    )
    (HERE / "clipping.json").write_text(
        f'{{"versions": {json.dumps(found)},\n"files": {json.dumps(FILES)},\n'
        f'"cases": [\n{cases}\n]}}\n'
    )


if __name__ == "__main__":
    main()
