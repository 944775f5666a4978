"""Measure how closely quantized formats reproduce Adam's v, beside float32 and published formats.

    python -m examples.benchmarks.faithfulness [--quick] [--json FILE] [--out DIR]

1. Falling gradients. Gradients are unit normal. After 500 steps, the scale of every second element
   becomes 100 times smaller. The program divides v of each format by v in float32 for the same
   gradients. It reports the mean over the elements that fall, with its standard error, and the
   effect on Adam's step, which is proportional to 1/√v.
2. Bias. Blocks have scales over 30 decades, and the elements of a block span 4.5 decades (squares
   9). Each is encoded with many keys. The program reports the difference between the mean of the
   decoded values and the encoded value, in standard errors. It counts the squares below the
   smallest code of their block, which are rounded up.
3. A training. A perceptron learns scikit-learn's digits with a constant learning rate, until its
   loss and the gradients have become a thousand times smaller. Arrays of fewer than 4096 elements
   stay float32, as in all published recipes.

`--out DIR` plots the first part to faithfulness.png.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from matplotlib.figure import Figure
    from rich.console import Console

    import adamx
    from examples import benchmarks, data, digits
    from examples.benchmarks import tables
    from examples.benchmarks.published import PUBLISHED
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

DROP, FALL = 500, 1e-2
BAR = 0.03
DECADES = (-20, 10)
BLOCK = 64
BATCH, RATE = 64, 1e-3


class Setting(NamedTuple):
    """The size of the measurement."""

    elements: int  # in the first part
    steps: int
    every: int
    shown: int
    blocks: int  # in the second part
    keys: int
    training: int  # steps of the third part
    seeds: int


FULL = Setting(2**16, 4500, 100, 500, 1000, 4096, 4000, 5)
QUICK = Setting(2**12, 4500, 500, 500, 200, 512, 1000, 3)
TINY = Setting(2**10, 750, 250, 250, 40, 256, 20, 2)

OURS: dict[str, adamx.Codec] = {
    f"{make.__name__}, {rounding}": make(rounding=rounding)
    for rounding in ("stochastic", "nearest")
    for make in (adamx.bf16, adamx.fp8, adamx.int8)
}


# 1. Falling gradients.


class Fall(NamedTuple):
    """The ratio of v in a format to v in float32.

    Attributes:
        code: the name of the format.
        steps: the steps of the measurements.
        falling: the mean over the elements that fall, at each of these steps.
        error: the standard error of this mean.
        staying: the mean over the other elements.
        spread: the standard deviation over the elements that fall, and over the others, at the end.
        step: the factor √v in float32 over √v by which Adam's step is too long: mean and standard
            deviation over the elements that fall, at the end.
    """

    code: str
    steps: list[int]
    falling: list[float]
    error: list[float]
    staying: list[float]
    spread: tuple[float, float]
    step: tuple[float, float]

    def worst(self, every: int) -> float:
        """The largest deviation of the mean from 1 over these steps."""
        means = [
            mean
            for t, *both in zip(self.steps, self.falling, self.staying, strict=True)
            if t % every == 0
            for mean in both
        ]
        return max(abs(mean - 1) for mean in means)


def second_moments(codec: adamx.Codec | None, setting: Setting) -> np.ndarray:
    """v at regular intervals of steps, [times, elements]."""
    stage = adamx.scale_by_rms(b2=0.999)
    opt = adamx.quantize_state(stage, codec, min_size=1)
    falls = jnp.arange(setting.elements) % 2 == 0

    def step(state: Any, t: jax.Array) -> tuple[Any, None]:
        gradient = jax.random.normal(jax.random.key(t), (setting.elements,))
        gradient *= jnp.where(falls & (t >= DROP), FALL, 1.0)
        return opt.update(gradient, state)[1], None

    def some(state: Any, start: jax.Array) -> tuple[Any, jax.Array]:
        state, _ = jax.lax.scan(step, state, start + jnp.arange(setting.every))
        return state, adamx.dequantize(state, "nu", codecs=(codec,) if codec else ())

    starts = jnp.arange(0, setting.steps, setting.every)
    run = jax.jit(lambda: jax.lax.scan(some, opt.init(jnp.zeros(setting.elements)), starts)[1])
    return np.asarray(run())


def fallen(code: str, kept: np.ndarray, exact: np.ndarray, setting: Setting) -> Fall:
    ratio = kept.astype(np.float64) / exact
    falling, staying = ratio[:, ::2], ratio[:, 1::2]
    with np.errstate(divide="ignore", invalid="ignore"):  # a square may have become zero
        step = 1 / np.sqrt(falling[-1])
        steps = step.mean(), step.std()
    return Fall(
        code,
        list(range(setting.every, setting.steps + 1, setting.every)),
        falling.mean(1).tolist(),
        (falling.std(1) / math.sqrt(falling.shape[1])).tolist(),
        staying.mean(1).tolist(),
        (float(falling[-1].std()), float(staying[-1].std())),
        (float(steps[0]), float(steps[1])),
    )


def falls(codes: Mapping[str, adamx.Codec], setting: Setting) -> list[Fall]:
    exact = second_moments(None, setting)
    return [
        fallen(code, second_moments(codec, setting), exact, setting)
        for code, codec in codes.items()
    ]


def draw(rows: Sequence[Fall]) -> Figure:
    """Plot v over the v of float32 against the step."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    formats = list(dict.fromkeys(row.code.partition(",")[0] for row in rows))
    for row in rows:
        style = "-" if "stochastic" in row.code else "--" if "nearest" in row.code else ":"
        colour = f"C{formats.index(row.code.partition(',')[0])}"
        axes.semilogy(row.steps, row.falling, style, color=colour, label=row.code)
    axes.axvline(DROP, color="0.8", linewidth=0.8)
    axes.set(xlabel="step", ylabel="v over v in float32, mean")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


# 2. Unbiasedness.


class Bias(NamedTuple):
    """The difference between the mean over keys and the encoded values.

    Attributes:
        code: the name of the format.
        slot: "averages" or "squares".
        elements: the number of encoded elements.
        rms: the root mean square of the difference in standard errors; 1 without a bias.
        largest: the largest difference, among elements that are rounded both ways often enough.
        expected: the expected largest value of this many normal random numbers.
        raised: the fraction of squares that were rounded up to the smallest code.
    """

    code: str
    slot: str
    elements: int
    rms: float
    largest: float
    expected: float
    raised: float


OFTEN = 100  # the least number of roundings up and down for which the mean is nearly normal


def bias(code: str, codec: adamx.Codec, slot: str, setting: Setting) -> Bias:
    """The encoding by a slot with β = 0 in many steps, each with its own key."""
    squares = slot == "squares"
    stage, name = (
        (adamx.scale_by_rms(0.0), "nu") if squares else (adamx.scale_by_momentum(0.0), "mu")
    )
    opt = adamx.quantize_state(stage, codec, min_size=1)
    random = np.random.default_rng(0)
    size = setting.blocks, BLOCK
    scales = np.logspace(*DECADES, setting.blocks)[:, None] ** (0.5 if squares else 1.0)
    g = random.standard_normal(size) * 10 ** random.uniform(-4.5, 0, size) * scales
    g = jnp.asarray(g, jnp.float32)
    x = g * g if squares else g
    # The two codes around x, and the number of times that x was rounded to the upper one.
    low, high = (
        codec.decode(codec.encode(x, jnp.full(size, bits, jnp.uint32), squares))
        for bits in (0, 2**32 - 1)
    )
    width = jnp.where(high == low, 1.0, high - low)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        state, up = carry
        _, state = opt.update(g, state)
        share = (adamx.dequantize(state, name, codecs=(codec,)) - low) / width
        return (state, up + share), None

    start = opt.init(x), jnp.zeros(size)
    run = jax.jit(lambda start: jax.lax.scan(step, start, None, length=setting.keys)[0])
    up = np.asarray(run(start)[1], np.float64)
    x, low, high = (np.asarray(a, np.float64) for a in (x, low, high))
    inside = np.abs(low) < np.abs(high)
    often = setting.keys * np.where(inside, (x - low) / np.where(inside, high - low, 1), 0)
    inside &= (often > 0) & (often < setting.keys)
    error = np.sqrt(often * (1 - often / setting.keys), where=inside, out=np.ones(size))
    z = np.abs(up - often) / error
    normal = inside & (np.minimum(often, setting.keys - often) >= OFTEN)
    return Bias(
        code,
        slot,
        x.size,
        float(np.sqrt(np.mean(np.square(z[inside])))),
        float(z[normal].max()),
        math.sqrt(2 * math.log(normal.sum())),
        float(np.mean(low > x)) if squares else 0.0,
    )


def biases(codes: Mapping[str, adamx.Codec], setting: Setting) -> list[Bias]:
    return [
        bias(code, codec, slot, setting)
        for code, codec in codes.items()
        if codec.rounding == "stochastic"
        for slot in ("averages", "squares")
    ]


# 3. A training.


class Training(NamedTuple):
    """The results of a training with every seed.

    Attributes:
        code: the name of the format.
        losses: the final losses on all training examples.
        spikes: the largest losses of a batch in the second half.
    """

    code: str
    losses: list[float]
    spikes: list[float]


def train(code: str, codec: adamx.Codec | None, setting: Setting) -> Training:
    dataset = data.load_digits()
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    model = digits.Classifier()
    opt = adamx.quantize_state(adamx.adam(RATE), codec)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(params, images)
        return digits.cross_entropy(logits, labels)  # pyright: ignore[reportArgumentType]

    def run(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.key(seed)

        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            batch = jax.random.randint(jax.random.fold_in(key, t), (BATCH,), 0, len(images))
            value, gradient = jax.value_and_grad(loss)(params, images[batch], labels[batch])
            updates, state = opt.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        params = model.init(key, images[:1])
        steps = jnp.arange(setting.training)
        (params, _), values = jax.lax.scan(step, (params, opt.init(params)), steps)
        return loss(params, images, labels), jnp.max(values[setting.training // 2 :])

    losses, spikes = jax.jit(jax.vmap(run))(jnp.arange(setting.seeds))
    return Training(code, losses.tolist(), spikes.tolist())


def trainings(codes: Mapping[str, adamx.Codec], setting: Setting) -> list[Training]:
    return [train(code, codec, setting) for code, codec in {"float32": None, **codes}.items()]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = benchmarks.parser("faithfulness", __doc__)
    parser.add_argument("--quick", action="store_true", help="fewer elements, keys and steps")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="save the plot faithfulness.png in this folder"
    )
    return benchmarks.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Measure, print the tables, save the results; return the tables' rows."""
    options = parse(arguments)
    setting = TINY if options.tiny else QUICK if options.quick else FULL
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(benchmarks.headline(benchmarks.versions()))
    codes = OURS | PUBLISHED
    fall = falls(codes, setting)
    results = {
        "falls": fall,
        "biases": biases(OURS, setting),
        "trainings": trainings(codes, setting),
    }
    stored = {name: [row._asdict() for row in rows] for name, rows in results.items()}
    stored["falls"] = [{**row._asdict(), "worst": row.worst(setting.shown)} for row in fall]
    stored |= {**setting._asdict(), "bar": BAR}
    for table in tables.TABLES["faithfulness"].values():
        console.print(table(stored), "", sep="\n")
    benchmarks.save(stored, options)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(fall).savefig(options.out / "faithfulness.png", dpi=120)
    return results


if __name__ == "__main__":
    main()
