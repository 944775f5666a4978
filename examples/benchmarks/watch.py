"""Measure the cost of `watch` in a training step.

    python -m examples.benchmarks.watch [--quick] [--json FILE]

The step of each model with `chain(adam, watch(…))` and the same step with `adam` alone are timed in
pairs, in alternating order. A ratio is the median of the ratios within the pairs, with its
quartiles. A training that logs every 100 steps pays for watching in one of them, and for
`observe=False` in the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from rich.console import Console

    import adamx
    from examples import benchmarks, digits
    from examples.benchmarks import cost
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

BAR = 1.05


class Model(NamedTuple):
    """A network and a batch for it."""

    network: nn.Module
    images: tuple[int, ...]


class Convolutions(nn.Module):
    """c64-c64-c128-1000, the network of the paper's Section 6.3."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        for channels in (64, 64, 128):
            images = nn.relu(nn.Conv(channels, (5, 5))(images))
            images = nn.max_pool(images, (3, 3), (2, 2), "SAME")
        images = nn.relu(nn.Dense(1000)(images.reshape(len(images), -1)))
        return nn.Dense(10)(images)


MODELS = {
    "perceptron 64-128-64-10, batch 64": Model(digits.Classifier(), (64, 64)),
    "perceptron 784-1000-1000-10, batch 128": Model(digits.Classifier((1000, 1000)), (128, 784)),
    "c64-c64-c128-1000, batch 128": Model(Convolutions(), (128, 32, 32, 3)),
}
TINY = {"perceptron, batch 2": Model(digits.Classifier((4,)), (2, 8))}
WATCHED = {
    "watch()": ({}, None),
    "watch(every=10)": ({"every": 10}, None),
    "watch(), observe=False": ({}, False),
}


def training(
    model: Model,
    opt: optax.GradientTransformation,
    observe: bool | None = None,
    order: int | None = None,
) -> cost.Start:
    """A training step of the model, compiled, with donated arguments.

    Args:
        order: if given, draws an order of the parameters, and with it their places in memory.
    """
    images = jax.random.normal(jax.random.key(0), model.images)
    labels = jnp.arange(len(images), dtype=jnp.int32) % 10
    extra = {} if observe is None else {"observe": observe}
    given = optax.with_extra_args_support(opt)

    def initial() -> Any:
        return model.network.init(jax.random.key(1), images)

    tree = jax.tree.structure(jax.eval_shape(initial))
    places = np.arange(tree.num_leaves)
    if order is not None:
        places = np.random.default_rng(order).permutation(places)
    back = np.argsort(places)

    @jax.jit
    def begin() -> Any:
        leaves = jax.tree.leaves(initial())
        params = [leaves[i] for i in places]
        return params, opt.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            named = tree.unflatten([params[i] for i in back])
            logits = model.network.apply(named, images)
            return digits.cross_entropy(logits, labels)  # pyright: ignore[reportArgumentType]

        grads = jax.grad(loss)(params)
        if isinstance(opt, adamx.Transformation):
            return opt.step(grads, state, params, **extra)
        updates, state = given.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def start() -> cost.Loop:
        now = begin()

        def loop(runs: int) -> None:
            nonlocal now
            for _ in range(runs):
                now = step(*now)
            jax.block_until_ready(now)

        return loop

    return start


def measure(setting: cost.Setting, models: Mapping[str, Model]) -> Iterator[cost.Ratio]:
    for name, model in models.items():
        plain = training(model, adamx.adam(1e-3), None)
        for how, (arguments, observe) in WATCHED.items():
            opt = adamx.chain(adamx.adam(1e-3), adamx.watch(**arguments))
            watched = training(model, opt, observe)
            yield cost.compare(f"{name}: {how}", watched, plain, setting, bar=BAR)


def main(arguments: Sequence[str] | None = None) -> list[cost.Ratio]:
    options = benchmarks.options("watch", __doc__, arguments)
    setting = cost.TINY if options.tiny else cost.QUICK if options.quick else cost.FULL
    console = Console(width=140, highlight=False)
    console.print(benchmarks.headline(benchmarks.versions()), soft_wrap=True)
    rows = list(measure(setting, TINY if options.tiny else MODELS))
    console.print(cost.tabulate_ratios(rows, "watched", "plain"))
    benchmarks.save({"ratios": [row._asdict() for row in rows]}, options)
    return rows


if __name__ == "__main__":
    main()
