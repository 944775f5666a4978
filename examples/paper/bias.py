"""Adam with and without its bias correction on a variational auto-encoder (Figure 4)."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

import adamx
from examples import data
from examples.paper import figures
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.training import Problem, train

HIDDEN = 500
LATENTS = 50
BATCH = 100  # the paper does not say; Kingma & Welling's (2014)
MEASURED = 1000  # number of training images for the loss, always with the same noise

B1 = [0.0, 0.9]
B2 = [0.99, 0.999, 0.9999]
SETTINGS = list(itertools.product(B1, B2))
EQUAL = 1.01  # losses within 1 % count as equal

CORRECTED, UNCORRECTED = "corrected (Adam)", "uncorrected (RMSProp with momentum)"
LINE: dict[str, Any] = {"marker": "o", "markersize": 3.5}
CROSS: dict[str, Any] = {"marker": "x", "linestyle": "none"}
COLOURS = {CORRECTED: figures.COLOURS["Adam"], UNCORRECTED: figures.COLOURS["RMSProp"]}


def adam(member: Any) -> adamx.Transformation:
    rate, b1, b2 = member
    return adamx.adam(rate, b1, b2)


def adam_without_correction(member: Any) -> adamx.Transformation:
    rate, b1, b2 = member
    return adamx.chain(
        adamx.scale_by_momentum(b1),
        adamx.scale_by_rms(b2),
        adamx.scale_by_learning_rate(rate),
    )


METHODS = {CORRECTED: adam, UNCORRECTED: adam_without_correction}


def load() -> data.Dataset:
    return data.mnist()


# The auto-encoder


def init(key: jax.Array, pixels: int) -> dict[str, Any]:
    widths = {
        "encoder": (pixels, HIDDEN),
        "mean": (HIDDEN, LATENTS),
        "log_variance": (HIDDEN, LATENTS),
        "decoder": (LATENTS, HIDDEN),
        "pixels": (HIDDEN, pixels),
    }
    keys = jax.random.split(key, len(widths))
    return {
        name: {
            "weights": jax.random.normal(k, shape) / shape[0] ** 0.5,  # the paper does not say
            "bias": jnp.zeros(shape[1]),
        }
        for k, (name, shape) in zip(keys, widths.items(), strict=True)
    }


def affine(layer: Any, x: jax.Array) -> jax.Array:
    return x @ layer["weights"] + layer["bias"][None]


def negative_elbo(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
    """KL(q(z|x) ‖ N(0, I)) − E log p(x|z), with one sample of z for each image; in nats."""
    hidden = jax.nn.softplus(affine(params["encoder"], images))
    mean, log_variance = (affine(params[name], hidden) for name in ("mean", "log_variance"))
    latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    logits = affine(params["pixels"], jax.nn.softplus(affine(params["decoder"], latent)))
    divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(axis=1) / 2
    reconstruction = (jax.nn.softplus(logits) - images * logits).sum(axis=1)
    return (divergence + reconstruction).mean()


def problem(dataset: data.Dataset) -> Problem:
    images = dataset.train_images
    noise = jax.random.key(1)
    return Problem(
        name=f"auto-encoder {dataset.name} {len(images)}",
        init=lambda key: init(key, images.shape[1]),
        loss=negative_elbo,
        examples=images,
        batch_size=BATCH,
        held_out=images[:MEASURED],
        measure=lambda params, some: {"loss": negative_elbo(params, some, noise)},
    )


# The run


def run(lab: Lab, dataset: data.Dataset) -> Outcome:
    dataset = dataset.head(lab.size.of(quick=5_000, usual=16_000, full=60_000))
    early, late = lab.size.of(quick=(1, 4), usual=(1, 10), full=(10, 100))
    exponents = np.linspace(-5, -1, lab.size.of(quick=5, usual=9, full=9))
    members = [(10.0**x, b1, b2) for (b1, b2), x in itertools.product(SETTINGS, exponents)]
    shape = (-1, len(SETTINGS), len(exponents))
    losses = {
        name: train(lab, problem(dataset), name, method, members, epochs=late)
        .measured["loss"]
        .reshape(shape)
        for name, method in METHODS.items()
    }
    steps = len(dataset.train_images) // BATCH
    start = float(losses[CORRECTED][0, 0, 0])
    snapshots = {name: {early: curve[early], late: curve[late]} for name, curve in losses.items()}
    return Outcome(
        title=f"{dataset.name} variational auto-encoder, with and without bias correction",
        setting={
            "examples": len(dataset.train_images),
            "epochs": f"{early} and {late}, of {steps} steps",
            "batch": BATCH,
            "log10 of the learning rates": exponents.tolist(),
            "β1": B1,
            "β2": f"{B2}, in float32 (1 − 0.9999 is 0.02 % more than 0.0001 there)",
            "loss": f"−ELBO in nats on {min(MEASURED, len(dataset.train_images))} training images",
            "diverged": f"the loss is not finite, or above its value at the start, {start:.1f}",
        },
        rows=rows(snapshots, start, exponents),
        curves={
            "log10 learning rate": exponents,
            "start": start,
            "settings": [label(*setting) for setting in SETTINGS],
            "losses": {name: {str(t): x for t, x in at.items()} for name, at in snapshots.items()},
        },
        claims=claims(snapshots, start, steps),
    )


def label(b1: float, b2: float) -> str:
    return f"β₁ = {b1:g}, β₂ = {b2:g}"


def survived(losses: Any, start: float) -> np.ndarray:
    """The losses, with infinity for trainings that diverged."""
    losses = np.asarray(losses, np.float64)
    return np.where(np.isfinite(losses) & (losses <= start), losses, np.inf)


def rows(snapshots: Any, start: float, exponents: np.ndarray) -> list[dict[str, Any]]:
    """For every β₁ and β₂, the best learning rate of each method."""
    return [
        row(index, name, snapshots[name], start, exponents)
        for index in range(len(SETTINGS))
        for name in snapshots
    ]


def row(index: int, name: str, at: Any, start: float, exponents: np.ndarray) -> dict[str, Any]:
    losses = {epoch: survived(x[index], start) for epoch, x in at.items()}
    late = losses[max(losses)]
    best = late.argmin()
    return {
        "β1": f"{SETTINGS[index][0]:g}",
        "β2": f"{SETTINGS[index][1]:g}",
        "method": name.split(" (")[0],
        **{f"best loss, epoch {epoch}": float(x.min()) for epoch, x in losses.items()},
        "at log10 rate": float(exponents[best]),
        "diverged": f"{int(np.isinf(late).sum())} of {len(late)}",
        "best at the grid's edge": "yes" if best in (0, len(late) - 1) else "no",
    }


# The paper's claims


def claims(snapshots: Any, start: float, steps: int) -> list[Claim]:
    epochs = list(snapshots[CORRECTED])
    corrected, uncorrected = (
        np.stack([survived(snapshots[name][epoch], start) for epoch in epochs])
        for name in (CORRECTED, UNCORRECTED)
    )
    return [
        unstable(corrected[0], uncorrected[0], epochs[0]),
        never_worse(corrected, uncorrected, epochs),
        never_worse_when_tuned(corrected, uncorrected, epochs),
        best_of_all(corrected[-1], uncorrected[-1], epochs[-1], epochs[-1] * steps),
    ]


def unstable(corrected: np.ndarray, uncorrected: np.ndarray, epoch: int) -> Claim:
    gone = {
        name: [int(np.isinf(x[[b2 == z for _, z in SETTINGS]]).sum()) for b2 in B2]
        for name, x in (("with", corrected), ("without", uncorrected))
    }
    each = len(B1) * corrected.shape[1]
    shown = "; ".join(f"{name} correction {x}" for name, x in gone.items())
    grows = gone["without"][-1] > gone["without"][0]
    return Claim(
        "without correction, β₂ close to 1 makes training unstable",
        "instabilities, especially in the first few epochs",
        f"diverged after epoch {epoch} for β₂ = {B2}, of {each} each: {shown}",
        grows and gone["without"][-1] > gone["with"][-1],
    )


def equal_or_better(corrected: np.ndarray, uncorrected: np.ndarray) -> np.ndarray:
    return (corrected <= EQUAL * uncorrected) | np.isinf(uncorrected)


def never_worse(corrected: np.ndarray, uncorrected: np.ndarray, epochs: list[int]) -> Claim:
    holds = equal_or_better(corrected, uncorrected)
    both = np.isinf(corrected) & np.isinf(uncorrected)
    shown = "; ".join(
        f"epoch {epoch}: {int(good.sum())} of {good.size} (in {int(lost.sum())} both diverged)"
        for epoch, good, lost in zip(epochs, holds, both, strict=True)
    )
    return Claim(
        "equal or better with correction, for every β₁, β₂ and α",
        "equal or better regardless of hyper-parameters",
        f"within 1 %, {shown}",
        bool(holds.all()),
    )


def never_worse_when_tuned(corrected: Any, uncorrected: Any, epochs: list[int]) -> Claim:
    ratios = uncorrected.min(axis=-1) / corrected.min(axis=-1)
    holds = equal_or_better(corrected.min(axis=-1), uncorrected.min(axis=-1))
    shown = "; ".join(
        f"epoch {epoch}: {int(good.sum())} of {good.size} (loss without over with correction "
        f"{ratio.min():.3f} to {ratio.max():.3f})"
        for epoch, good, ratio in zip(epochs, holds, ratios, strict=True)
    )
    return Claim(
        "equal or better with correction, for every β₁ and β₂ with the best α of each",
        "equal or better regardless of hyper-parameters",
        f"within 1 %, {shown}",
        bool(holds.all()),
    )


def best_of_all(corrected: np.ndarray, uncorrected: np.ndarray, epoch: int, steps: int) -> Claim:
    best = {
        f"{name} correction, β₂ = {b2:g}": float(x[[b2 == z for _, z in SETTINGS]].min())
        for name, x in (("with", corrected), ("without", uncorrected))
        for b2 in B2
    }
    winner = min(best, key=best.__getitem__)
    shown = ", ".join(f"{name}: {loss:.2f}" for name, loss in best.items())
    memory = round(1 / (1 - B2[-1]))
    if steps < memory:
        shown += f"; the run has {steps} steps, but β₂ = {B2[-1]:g} averages over {memory}"
    return Claim(
        "the best results need a small 1 − β₂ and the correction",
        "best with both",
        f"smallest loss after epoch {epoch} (small: below {1 - B2[0]:.2f}): {shown}",
        None if steps < memory else winner in [f"with correction, β₂ = {b2:g}" for b2 in B2[1:]],
    )


# The figure


def draw(outcome: Outcome) -> dict[str, Figure]:
    """Plot the loss against log₁₀ α as in the paper, for every β₁ and β₂, early and late."""
    curves = outcome.curves
    epochs = list(curves["losses"][CORRECTED])
    figure = Figure(figsize=(9, 9.6), layout="constrained")
    parts: Any = figure.subfigures(len(epochs), 1, hspace=0.03)
    for part, epoch in zip(parts, epochs, strict=True):
        part.suptitle(f"after {epoch} epoch" + "s" * (epoch != "1"), fontsize=11)
        panels = part.subplots(len(B1), len(B2), sharex=True, sharey=True).flat
        for index, axes in enumerate(panels):
            for name in METHODS:
                panel(axes, name, curves, curves["losses"][name][epoch][index])
            dress(axes, index, curves)
    lines = [Line2D([], [], color=colour, **LINE) for colour in COLOURS.values()]
    crosses = [Line2D([], [], color=colour, **CROSS) for colour in COLOURS.values()]
    handles: list[Any] = [*lines, tuple(crosses)]
    figure.legend(
        handles,
        [*COLOURS, "diverged"],
        handler_map={tuple: HandlerTuple(ndivide=None)},
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.suptitle(outcome.title)
    return {"bias.png": figure}


def panel(axes: Axes, name: str, curves: dict[str, Any], losses: Any) -> None:
    """Plot one line; diverged trainings are crosses at the upper edge."""
    rates, losses = np.asarray(curves["log10 learning rate"]), survived(losses, curves["start"])
    gone, colour = np.isinf(losses), COLOURS[name]
    axes.plot(rates, np.where(gone, np.nan, losses), color=colour, **LINE)
    for rate in rates[gone]:
        aside = rate + (-0.08 if name == CORRECTED else 0.08)
        axes.plot(aside, curves["start"], color=colour, clip_on=False, zorder=3, **CROSS)


def dress(axes: Axes, index: int, curves: dict[str, Any]) -> None:
    lower, left = index >= len(SETTINGS) - len(B2), index % len(B2) == 0
    figures.tidy(axes, x="log₁₀ α" if lower else "", y="loss (−ELBO, nats)" if left else "")
    axes.set_title(curves["settings"][index], fontsize=10, pad=9)
    figures.logarithmic(axes)
    axes.set_ylim(least(curves) / 1.05, curves["start"])
    axes.set_xticks([-5, -4, -3, -2, -1])


def least(curves: dict[str, Any]) -> float:
    every = [survived(x, curves["start"]) for at in curves["losses"].values() for x in at.values()]
    return float(np.min(every))
