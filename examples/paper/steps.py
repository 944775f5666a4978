"""Adam's steps: their bounds, their annealing, and rescaled gradients (Section 2.1)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import adamx
from examples import data
from examples.paper import figures, logistic
from examples.paper.lab import Claim, Lab, Outcome
from examples.paper.training import Problem, double_precision, shuffled

B1 = 0.9
B2S = {"sparse": 0.999, "dense": 0.95}  # 1 − β₁ above and below √(1 − β₂), the paper's two cases
LENGTH, COORDINATES = 10_000, 32
GROWING = 6000  # steps; with more, the first or the last square would exceed the range of float64
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
QUANTILES = [0.5, 0.99, 1.0]
POWERS = np.arange(
    -20, 21, 2
)  # c = 2⁻²⁰ … 2²⁰ spans twelve decades, and multiplying by a power of two is exact
EPSILONS = [0.0, 1e-8]


# Bounds


def papers_bound(b1: float, b2: float) -> float:
    """The bound of Section 2.1 for |Δ|/α."""
    return max(1.0, (1 - b1) / math.sqrt(1 - b2))


def sharp_bound(b1: float, b2: float, t: np.ndarray) -> np.ndarray:
    """The largest |m̂/√v̂| at step t for any gradients, by the Cauchy-Schwarz inequality.

    With the weights aᵢ of m̂ and bᵢ of v̂, the bound is √(Σ aᵢ²/bᵢ), a geometric series. Gradients
    proportional to aᵢ/bᵢ reach it.
    """
    ratio = b1**2 / b2
    series = (1 - ratio**t) / (1 - ratio)
    return (1 - b1) / (1 - b1**t) * np.sqrt((1 - b2**t) / (1 - b2) * series)


def sequences(b1: float, b2: float) -> dict[str, np.ndarray]:
    """Gradients ``[steps, coordinates]``."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(LENGTH, COORDINATES))
    lone = np.zeros((LENGTH, 1))
    lone[-1] = 1.0
    # Up to a factor, aᵢ/bᵢ does not depend on t, so all steps of these gradients reach the bound.
    growing = (b2 / b1) ** (np.arange(GROWING) - GROWING / 2)[:, None]
    return {
        "noise": noise,
        "signal and noise": 1 + noise,
        "one gradient after silence": lone,
        "sparse: one in 200, at random": noise * (random.random(noise.shape) < 0.005),
        f"growing by {b2 / b1 - 1:.0%} a step": growing,
    }


def relative_steps(gradients: np.ndarray, b1: float, b2: float) -> np.ndarray:
    """|Δ_t|/α, ``[steps, coordinates]``, in float64 with ε = 0."""
    with double_precision():
        updates = updates_of(adamx.adam(1.0, b1, b2, eps=0.0), jnp.asarray(gradients))
        return np.abs(np.asarray(updates))


@jax.jit
def updates_of(opt: adamx.Transformation, gradients: jax.Array) -> jax.Array:
    """All updates. The optimiser is an argument, so other hyperparameters do not recompile it."""

    def step(state: Any, gradient: Any) -> Any:
        updates, state = opt.update(gradient, state)
        return state, updates

    return jax.lax.scan(step, opt.init(gradients[0]), gradients)[1]


def bounded(name: str, steps: np.ndarray, b1: float, b2: float) -> dict[str, Any]:
    """A row of the table."""
    sharp = sharp_bound(b1, b2, np.arange(1, len(steps) + 1.0))
    return {
        "gradients": name,
        "β₂": b2,
        "largest |Δ|/α": float(steps.max()),
        "the paper's bound": papers_bound(b1, b2),
        "sharp bound": float(sharp[-1]),
        "|Δ| / sharp bound": float((steps.max(axis=1) / sharp).max()),
        "% of steps within α": 100 * float(np.mean(steps <= 1 + 1e-9)),
    }


# The signal-to-noise ratio of a training


def watched_adam(rate: Any) -> adamx.Transformation:
    return adamx.chain(adamx.adam(rate), adamx.watch())


def watched(lab: Lab, problem: Problem, epochs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """``loss``, ``snr`` and ``sizes`` (quantiles of |Δ|/α) of Adam at every step, for every rate.

    Each is ``[rates, steps, ...]``. An interrupted run continues.
    """

    def epoch(rate: Any, params: Any, state: Any, examples: Any, order: Any) -> Any:
        opt = watched_adam(rate)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            picked = jax.tree.map(lambda x: x[batch], examples)
            loss, gradient = jax.value_and_grad(problem.loss)(params, picked, None)
            updates, state = opt.update(gradient, state, params)
            flat, _ = ravel_pytree(updates)
            seen = {
                "loss": loss,
                "snr": adamx.metrics(state)["snr"],
                "sizes": jnp.quantile(jnp.abs(flat) / rate, jnp.array(QUANTILES)),
            }
            return (adamx.apply_updates(params, updates), state), seen

        return jax.lax.scan(step, (params, state), order)

    rates = jnp.asarray(RATES, jnp.float32)
    examples = jax.tree.map(jnp.asarray, problem.examples)
    size = len(jax.tree.leaves(examples)[0])
    of_all = jax.jit(jax.vmap(epoch, in_axes=(0, 0, 0, None, None)))

    key = ("watched", problem.name, RATES, epochs, seed)
    kept = lab.load(key)
    if kept is None:
        start = problem.init(jax.random.key(seed))
        params = jax.tree.map(lambda x: jnp.stack([x] * len(RATES)), start)
        state = jax.vmap(lambda rate, theta: watched_adam(rate).init(theta))(rates, params)
        seen = []
    else:
        params, state, seen = kept
    advance = lab.steps("signal to noise", epochs, len(seen))
    for number in range(len(seen), epochs):
        order = jnp.asarray(shuffled(size, problem.batch_size, seed, number))
        (params, state), of_epoch = of_all(rates, params, state, examples, order)
        seen.append(jax.tree.map(np.asarray, of_epoch))
        lab.save(key, (params, state, seen))
        advance(loss=float(seen[-1]["loss"].mean(axis=1).min()))
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *seen)


def noise_floor(b1: float) -> float:
    """The root mean square of m̂/√v̂ for t → ∞ and i.i.d. gradients with mean 0.

    It can be smaller in a training, if v̂ contains larger past gradients or if pixels are dark.
    """
    return math.sqrt((1 - b1) / (1 + b1))


# Rescaled gradients


def rescaled(problem: Problem, steps: int, rate: float) -> np.ndarray:
    """The effect of rescaled gradients: ``[epsilons, powers]``.

    |θ_c − θ| / |θ − θ₀| after the same number of steps on one batch, in float64. θ_c is reached
    with gradients c∇f, and θ with ∇f and ε = 0.
    """

    def walk(scale: Any, eps: Any, start: Any, examples: Any) -> Any:
        opt = adamx.adam(rate, B1, B2S["sparse"], eps)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            gradient = jax.grad(problem.loss)(params, examples, None)
            gradient = jax.tree.map(lambda g: scale * g, gradient)
            updates, state = opt.update(gradient, state, params)
            return (adamx.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, opt.init(start)), length=steps)
        return ravel_pytree(params)[0]

    with double_precision():
        start = widened(problem.init(jax.random.key(0)))
        examples = widened(jax.tree.map(lambda x: x[: problem.batch_size], problem.examples))
        # Run one after the other, because vectorised loops may round their remainders differently.
        compiled = jax.jit(walk)
        ends = np.array(
            [[compiled(2.0**power, eps, start, examples) for power in POWERS] for eps in EPSILONS]
        )
        truth = np.asarray(compiled(1.0, 0.0, start, examples))
        path = truth - ravel_pytree(start)[0]
    return np.linalg.norm(ends - truth, axis=-1) / np.linalg.norm(path)


def widened(tree: Any) -> Any:
    """The argument with float64 in place of float32."""
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, tree)


# The run


def load() -> data.Dataset:
    return data.mnist()


def run(lab: Lab, dataset: data.Dataset) -> Outcome:
    dataset = dataset.head(lab.size.of(quick=12_800, usual=60_000, full=60_000))
    problem = logistic.problem(dataset)
    epochs = lab.size.of(quick=5, usual=15, full=45)
    same_steps = lab.size.of(quick=30, usual=100, full=300)

    rows, sizes = [], {}
    advance = lab.steps("bounds", len(B2S))
    for b2 in B2S.values():
        for name, gradients in sequences(B1, b2).items():
            steps = relative_steps(gradients, B1, b2)
            rows.append(bounded(name, steps, B1, b2))
            if b2 == B2S["sparse"]:
                shown = shown_steps(LENGTH)
                sizes[name] = steps.max(axis=1)[shown[shown < len(steps)]]
        advance()

    seen = watched(lab, problem, epochs)
    last = len(dataset.train_images) // problem.batch_size
    best = int(np.argmin(seen["loss"][:, -last:].mean(axis=1)))
    training = {name: values[best] for name, values in seen.items()}
    shown = shown_steps(len(training["snr"]))
    distances = lab.remembered(
        ("rescaled", problem.name, same_steps, RATES[best], *POWERS, *EPSILONS),
        lambda: rescaled(problem, same_steps, RATES[best]),
    )
    return Outcome(
        title="Adam's steps (Section 2.1)",
        setting={
            "β₁": B1,
            "sequences": f"{LENGTH} steps, {COORDINATES} coordinates, float64, ε = 0",
            "training": f"{dataset.name} logistic regression, {len(dataset.train_images)} "
            f"examples, {epochs} epochs of {last} steps, a constant α",
            "learning rates tried": RATES,
            "best learning rate": RATES[best],
            "best at the grid's edge": "yes" if best in (0, len(RATES) - 1) else "no",
            "rescaled": f"{same_steps} steps on one batch, float64, c = 2^{POWERS[0]} … "
            f"2^{POWERS[-1]}",
        },
        rows=rows,
        curves={
            "sizes": sizes,
            "sharp bound": sharp_bound(B1, B2S["sparse"], shown_steps(LENGTH) + 1.0),
            "training": {
                "epochs": (shown + 1) / last,
                "snr": training["snr"][shown],
                "smooth snr": smoothed(training["snr"])[shown],
                "sizes": [smoothed(sizes)[shown] for sizes in training["sizes"].T],
            },
            "distances": {f"ε = {eps:g}": d for eps, d in zip(EPSILONS, distances, strict=True)},
        },
        claims=claims(rows, training, last, distances),
    )


def shown_steps(length: int) -> np.ndarray:
    """The steps that the figure shows, enough to look like all steps."""
    return np.unique(np.geomspace(1, length, 400).round().astype(int)) - 1


def claims(
    rows: list[dict[str, Any]],
    training: dict[str, np.ndarray],
    last: int,
    distances: np.ndarray,
) -> list[Claim]:
    by_case = {
        case: {row["gradients"]: row for row in rows if row["β₂"] == b2} for case, b2 in B2S.items()
    }
    sparse = by_case["sparse"]
    lone = sparse["one gradient after silence"]["largest |Δ|/α"]
    severe = papers_bound(B1, B2S["sparse"])
    noisy = min(sparse[name]["% of steps within α"] for name in ("noise", "signal and noise"))
    made = [
        Claim(
            "a gradient after long silence moves by α(1−β₁)/√(1−β₂)",
            f"{severe:.4g} α",
            f"{lone:.4g} α; to hold, within 0.1 %",
            abs(lone / severe - 1) < 1e-3,
        ),
        Claim(
            "in common scenarios |Δ| is about bounded by α",
            "|Δ| ⪅ α",
            f"dense noise: {noisy:.4g} % of the steps are within α; to hold, at least 95 %",
            noisy >= 95,
        ),
    ]
    for case, condition in {"sparse": "(1−β₁) > √(1−β₂)", "dense": "otherwise"}.items():
        allowed = papers_bound(B1, B2S[case])
        largest = max(row["largest |Δ|/α"] for row in by_case[case].values())
        made.append(
            Claim(
                f"an upper bound of |Δ|, {condition}: β₂ = {B2S[case]}",
                f"{allowed:.4g} α",
                f"{largest:.4g} α, for gradients that grow by the factor β₂/β₁ per step",
                largest <= allowed * (1 + 1e-9),
            )
        )
    tightest = [row["|Δ| / sharp bound"] for row in rows]
    made.append(
        Claim(
            "the Cauchy-Schwarz bound holds and is reached (docs/design.md)",
            "not in the paper",
            f"|Δ| is at most {max(tightest):.9g} times the bound",
            abs(max(tightest) - 1) < 1e-9,
        )
    )
    start, end = signal_to_noise(training["snr"], last)
    made.append(
        Claim(
            "the signal-to-noise ratio falls towards the optimum, and the steps with it",
            "closer to 0",
            f"RMS of m̂/√v̂ {start:.3g} in the first 1 % of the steps, {end:.3g} in the last "
            f"epoch; to hold, at most half; white noise has {noise_floor(B1):.3g}",
            end <= start / 2,
        )
    )
    exact, usual = distances
    matters = [f"2^{power}" for power, d in zip(POWERS, usual, strict=True) if d > 0.01]
    made.append(
        Claim(
            "rescaled gradients c·g give the same steps",
            "c cancels",
            f"ε = 0: {'the same to the last bit' if not exact.any() else f'{exact.max():.1g} off'} "
            f"for c over {(POWERS[-1] - POWERS[0]) * math.log10(2):.0f} decades. With ε = 1e-8 "
            f"more than 1 % off "
            + (f"for c from {matters[0]} to {matters[-1]}" if matters else "nowhere"),
            not exact.any(),
        )
    )
    return made


def signal_to_noise(snr: np.ndarray, last: int) -> tuple[float, float]:
    """The signal-to-noise ratio in the first per cent of the steps, and in the last epoch."""
    return float(snr[: max(1, len(snr) // 100)].mean()), float(snr[-last:].mean())


# The figure

SEQUENCE_COLOURS = ["#1b9e77", "#66a61e", "#1f78b4", "#a6761d", "#e7298a"]


def draw(outcome: Outcome) -> dict[str, Figure]:
    figure, axes = figures.new(10.5, 8.0, nrows=2, ncols=2)
    draw_bounds(axes[0, 0], outcome.curves)
    draw_signal(axes[0, 1], outcome.curves)
    draw_sizes(axes[1, 0], outcome.curves)
    draw_rescaled(axes[1, 1], outcome.curves["distances"])
    figure.suptitle(outcome.title)
    return {"steps.png": figure}


def draw_bounds(panel: Axes, curves: dict[str, Any]) -> None:
    """Plot the largest step of each sequence and the bounds."""
    numbers = shown_steps(LENGTH) + 1
    for colour, (name, sizes) in zip(SEQUENCE_COLOURS, curves["sizes"].items(), strict=True):
        sizes = np.asarray(sizes)
        if name == "one gradient after silence":
            panel.plot(numbers[-1], sizes[-1], "o", color=colour, label=name, zorder=3)
        else:
            width = 0.7 if name.startswith("sparse") else 1.4
            panel.plot(numbers[: len(sizes)], sizes, color=colour, lw=width, label=name)
    panel.plot(numbers, curves["sharp bound"], color="black", ls=":", lw=2, label="sharp bound")
    marked(panel, 1.0, "α")
    marked(panel, papers_bound(B1, B2S["sparse"]), r"$\alpha\frac{1-\beta_1}{\sqrt{1-\beta_2}}$")
    panel.set(xscale="log", yscale="log", ylim=(0.05, 40))
    figures.tidy(
        panel, x="step t", y="largest |Δₜ| / α", title="the paper's bounds and the sharp bound"
    )
    panel.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)


def draw_signal(panel: Axes, curves: dict[str, Any]) -> None:
    """Plot the signal-to-noise ratio."""
    training, colour = curves["training"], figures.COLOURS["Adam"]
    panel.plot(training["epochs"], training["snr"], color=colour, lw=0.4, alpha=0.4)
    smooth = training["smooth snr"]
    panel.plot(training["epochs"], smooth, color=colour, lw=2, label="RMS of m̂/√v̂")
    panel.axhline(noise_floor(B1), color="black", ls="--", lw=0.8, label="white noise")
    panel.set(xscale="log", ylim=(0, 1.05))
    figures.tidy(panel, x="epochs", y="signal-to-noise ratio", title="annealing in a real training")
    panel.legend(frameon=False, fontsize=8, loc="upper right")


def draw_sizes(panel: Axes, curves: dict[str, Any]) -> None:
    """Plot the sizes of the steps of that training."""
    training, names = curves["training"], ["median", "99 % are below", "largest"]
    for name, colour, sizes in zip(names, SEQUENCE_COLOURS[::2], training["sizes"], strict=True):
        panel.plot(training["epochs"], sizes, color=colour, lw=1.5, label=name)
    marked(panel, 1.0, "α")
    panel.set(xscale="log", yscale="log")
    figures.tidy(panel, x="epochs", y="|Δₜ| / α", title="its steps")
    panel.legend(frameon=False, fontsize=8, loc="lower left")


def draw_rescaled(panel: Axes, distances: dict[str, Any]) -> None:
    """Plot the effect of rescaled gradients."""
    colours = ["black", figures.COLOURS["Adam"]]
    for colour, (name, distance) in zip(colours, distances.items(), strict=True):
        panel.plot(2.0**POWERS, distance, "o-", ms=4, color=colour, label=name)
    panel.set_xscale("log")
    panel.set_yscale("symlog", linthresh=1e-16, linscale=0.5)
    panel.set(yticks=[0, 1e-16, 1e-12, 1e-8, 1e-4, 1], ylim=(-5e-17, 50))
    panel.minorticks_off()
    distance = r"$|\theta_c - \theta|\,/\,|\theta - \theta_0|$"
    figures.tidy(panel, x="gradients × c", y=distance, title="rescaled gradients")
    panel.legend(frameon=False, fontsize=8, loc="upper right")


def marked(panel: Axes, height: float, text: str) -> None:
    """Plot a dashed line with its name at its right end."""
    panel.axhline(height, color="black", lw=0.8, ls="--")
    place = {"transform": panel.get_yaxis_transform(), "va": "center"}
    panel.text(1.01, height, text, fontsize=10, **place)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over the last quarter of the steps so far, of equal width on a logarithmic axis."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = 3 * ends // 4
    return (sums[ends] - sums[starts]) / (ends - starts)
