"""Measure a step of the optimisers of matrices, compared with AdamW and with PyTorch's.

    python -m examples.benchmarks.matrix_costs [--quick] [--json FILE]

The parameters are the matrices of 12 transformer blocks. As `examples.benchmarks.cost` does it, two
programs are timed in pairs, after three steps that compile and begin. Where there is a basis, a
measurement has as many steps as there are between two refreshes, so that each one contains the same
work. The share of linear algebra is the part of a step that is left away if its products and
decompositions of matrices are, and the stages of single elements remain. If `pytorch_optimizer` or
`heavyball` is installed, their SOAP is timed on the same matrices, HeavyBall's under
`torch.compile` with the mode "default".
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

try:
    import numpy as np
    from rich.console import Console

    import adamx
    from examples import benchmarks
    from examples.benchmarks import cost, stacks
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"The benchmark needs {error.name}: pip install '.[demo]'") from error

EVERY = 10
PEER_BAR = 1.0
Make = Callable[[Any], Any]


class Method(NamedTuple):
    """An optimiser, what remains of it without linear algebra, and the steps of a measurement."""

    of: Make
    rest: Make
    steps: int = 1


def descent(rate: Any) -> adamx.Transformation:
    return adamx.chain(
        adamx.scale_by_momentum(0.95, nesterov=True),
        adamx.add_decayed_weights(0.01),
        adamx.scale_by_learning_rate(rate),
    )


METHODS: Mapping[str, Method] = {
    "muon": Method(adamx.muon, descent),
    "normuon": Method(adamx.normuon, descent),
    "galore": Method(lambda rate: adamx.galore(rate, rank=64, every=EVERY), adamx.adamw, EVERY),
    "soap": Method(lambda rate: adamx.soap(rate, every=EVERY), adamx.adamw, EVERY),
    "kl_soap": Method(lambda rate: adamx.kl_soap(rate, every=EVERY), adamx.adamw, EVERY),
}
QUICK = ("muon", "soap")


def stepping(make: Make, matrices: stacks.Matrices) -> cost.Start:
    """Steps of an optimiser of JAX, after those that begin."""
    training = cost.training(cost.Contender(make, adamx.apply_updates), matrices)

    def start() -> cost.Loop:
        loop = training()
        loop(2)
        return loop

    return start


def torch_stepping(make: Callable[..., Any], matrices: stacks.Matrices) -> cost.Start:
    """Steps of an optimiser of PyTorch, after those that begin."""
    torch = importlib.import_module("torch")
    values = {k: np.asarray(x) for k, x in matrices.full(1.0).items()}
    params = [torch.nn.Parameter(torch.tensor(x)) for x in values.values()]
    opt = make(params)

    def loop(runs: int) -> None:
        for _ in range(runs):
            for param in params:
                param.grad = 0.1 * param.detach()
            opt.step()

    loop(3)
    return lambda: loop


def peers() -> dict[str, Callable[..., Any]]:
    """SOAP of the installed packages, with the same numbers as adamx's."""
    found: dict[str, Callable[..., Any]] = {}
    numbers = {"lr": 1e-3, "betas": (0.95, 0.95), "precondition_frequency": EVERY}
    if importlib.util.find_spec("pytorch_optimizer"):
        soap = importlib.import_module("pytorch_optimizer").SOAP
        found["pytorch_optimizer"] = lambda params: soap(params, **numbers)
    if importlib.util.find_spec("heavyball"):
        heavyball = importlib.import_module("heavyball")
        heavyball.utils.compile_mode = "default"
        found["heavyball"] = lambda params: heavyball.SOAP(
            params, **numbers, max_precond_dim=10_000, use_precond_schedule=False
        )
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = benchmarks.parser("matrix_costs", __doc__)
    parser.add_argument("--quick", action="store_true", help="one width, and few pairs")
    parser.add_argument("--widths", type=int, nargs="+", help="256 and 512 by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all by default")
    parser.add_argument("--alone", action="store_true", help="without the packages of PyTorch")
    arguments = benchmarks.parse(parser, argv)
    quick = arguments.quick
    widths = arguments.widths or ((32,) if quick else (256, 512))
    names = QUICK if quick else tuple(METHODS)
    setting = cost.FULL._replace(least=2, budget=0 if quick else 20)
    names = arguments.methods or names
    console, found = Console(width=140, highlight=False), dict[str, Any]()
    console.print(benchmarks.headline(benchmarks.versions()))
    for width in widths:
        matrices = stacks.layers(2 if quick else 12, width)
        over_adamw, over_rest = [], []
        for name in names:
            of, rest, steps = METHODS[name]
            step, plain = stepping(of, matrices), stepping(adamx.adamw, matrices)
            over_adamw.append(cost.compare(name, step, plain, setting, runs=steps))
            if rest is not adamx.adamw:
                plain = stepping(rest, matrices)
                over_rest.append(cost.compare(name, step, plain, setting, runs=steps))
            else:
                over_rest.append(over_adamw[-1])
            share = 1 - 1 / over_rest[-1].ratio
            console.print(f"{matrices.what}, {name}: {share:.0%} is linear algebra")
        console.print(cost.tabulate_ratios(over_adamw, matrices.what, "adamw"))
        against = [
            cost.compare(
                f"soap, {name}'s",
                stepping(METHODS["soap"].of, matrices),
                torch_stepping(make, matrices),
                setting,
                PEER_BAR,
                EVERY,
            )
            for name, make in ({} if arguments.alone else peers()).items()
        ]
        if against:
            console.print(cost.tabulate_ratios(against, "adamx", "PyTorch"))
        found[str(width)] = {
            "over_adamw": [x._asdict() for x in over_adamw],
            "over_rest": [x._asdict() for x in over_rest],
            "peers": [x._asdict() for x in against],
        }
    benchmarks.save(found, arguments)
    return found


if __name__ == "__main__":
    main()
