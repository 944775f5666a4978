"""Tables in Markdown, made of stored results: ``TABLES[module][table](results)``.

They read the results as JSON gives them back. A value that misses its bar is bold.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
Row = Mapping[str, Any]

# Cells.


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def in_units(seconds: float) -> str:
    """A time with three digits: `1.23 ms`."""
    value, unit = seconds, "s"
    for smaller in ("ms", "µs"):
        if value < 1:
            value, unit = 1000 * value, smaller
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} {unit}"


def mark(held: bool) -> str:
    return "✓" if held else "✗"


def bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def ratio(row: Row) -> str:
    """The ratio of two times, bold if it misses its bar."""
    return bold(f"{row['ratio']:.2f}", row["bar"] is not None and row["ratio"] > row["bar"])


def quartiles(row: Row) -> str:
    return "{:.2f} … {:.2f}".format(*row["quartiles"])


def ratio_and_quartiles(row: Row) -> str:
    return f"{ratio(row)} ({quartiles(row)})"


def times(label: str) -> str:
    return label.replace("×", " × ")


def by_two(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Rows whose names have two parts, ``first: second``, by both."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        first, _, second = row["what"].partition(": ")
        found.setdefault(times(first), {})[second] = row
    return found


# Accuracy.

ADAMS = {
    "adamx.adam": "adamx",
    "adamx.adam(compensated=True)": "adamx, `compensated=True`",
    "optax.adam": "Optax",
    "torch.optim.Adam(fused=True)": "PyTorch, fused",
}


def accuracy(results: Results) -> str:
    shown = [t for t in (1, 100, 10_000, 50_000) if str(t) in results["scores"][0]["at"]]
    rows = []
    for case, scores in itertools.groupby(results["scores"], key=lambda x: x["case"]):
        chosen = [x for x in scores if x["optimiser"] in ADAMS]
        for first, x in zip([case, *[""] * len(chosen)], chosen, strict=False):
            at = [x["at"][str(t)] for t in shown]
            errors = [bold(f"{e:.1e}", e > results["bar"]) for e in (*at, x["worst"])]
            rows.append([first, ADAMS[x["optimiser"]], *errors])
    return markdown(["", "", *(f"t={t:,}" for t in shown), "worst"], rows)


# Time.


def step(results: Results) -> str:
    return beside(results["step"])


def build(results: Results) -> str:
    return beside(results["build"])


def beside(rows: Iterable[Row], first: str = "adamx", second: str = "Optax") -> str:
    """Two times in each row."""
    return markdown(
        ["", first, second, "ratio", "quartiles"],
        (
            [
                times(x["what"]),
                in_units(x["first"]),
                in_units(x["second"]),
                ratio(x),
                quartiles(x),
            ]
            for x in rows
        ),
    )


def update(results: Results) -> str:
    return beside(results["update"], "outside `jit`", "inside `jit`")


def recompilations(results: Results) -> str:
    rows = (
        [x["what"], bold(str(x["adamx"]), x["adamx"] > 0), str(x["optax"])]
        for x in results["recompilations"]
    )
    return markdown(["", "adamx", "Optax"], rows)


def memory(results: Results) -> str:
    kinds = {
        "argument": "arguments",
        "output": "outputs",
        "alias": "in place",
        "temp": "temporaries",
    }
    rows = ([f"`{x['what']}`", *(f"{x[kind]:,}" for kind in kinds)] for x in results["memory"])
    return markdown(["bytes", *kinds.values()], rows)


def stacks(results: Results) -> str:
    optax, stacked = (by_kind(results[k]) for k in ("optax.contrib.muon", "in stacks"))
    rows = []
    for what, x in optax.items():
        other = stacked[what]
        rows.append(
            [
                what,
                in_units(x["step"]["first"]),
                ratio(x["step"]),
                quartiles(x["step"]),
                ratio(other["step"]),
                in_units(x["compile"]["first"]),
                ratio(x["compile"]),
                ratio(other["compile"]),
            ]
        )
    over = ["over Optax's", "quartiles", "over the same in stacks"]
    return markdown(["", "step", *over, "compile", over[0], over[2]], rows)


def by_kind(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """The times of steps and of compilations, by parameters."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        kind, _, what = row["what"].partition(", ")
        found.setdefault(what, {})[kind] = row
    return found


def matrix_costs(results: Results) -> str:
    rows = [
        [
            f"`{x['what']}`",
            width,
            in_units(x["first"]),
            f"{x['ratio']:.0f}",
            "{:.0f} … {:.0f}".format(*x["quartiles"]),
            f"{1 - 1 / rest['ratio']:.0%}",
        ]
        for width, found in results.items()
        for x, rest in zip(found["over_adamw"], found["over_rest"], strict=True)
    ]
    heads = ["", "width", "step", "ratio to AdamW", "quartiles", "linear algebra"]
    return markdown(heads, rows)


def matrix_peers(results: Results) -> str:
    rows = [(width, x) for width, found in results.items() for x in found["peers"]]
    return markdown(
        ["", "width", "adamx", "the other", "ratio"],
        (
            [x["what"], width, in_units(x["first"]), in_units(x["second"]), ratio_and_quartiles(x)]
            for width, x in rows
        ),
    )


def sweep_times(results: Results) -> str:
    rows = [["`adamx.sweep`", in_units(results["times"][0]["second"]), "1"]]
    for x in results["times"]:
        slower = bold(f"{x['ratio']:.2f}", x["bar"] is not None and x["ratio"] < x["bar"])
        rows.append([x["what"], in_units(x["first"]), f"{slower} ({quartiles(x)})"])
    return markdown(["", "time", "relative to `adamx.sweep`"], rows)


def sweep_agreement(results: Results) -> str:
    """The largest difference in each decade of rates, and how many are within the bar."""
    decades = (1e-5, 1e-4, 1e-3, 1e-2)
    rows = []
    for x in results["agreement"]:
        for part, name in (("curve", "curve"), ("final", "final loss")):
            pairs = list(zip(results["rates"], x[part], strict=True))
            worst = [
                max((d for rate, d in pairs if low <= rate * 1.001 < 10 * low), default=0)
                for low in decades
            ]
            held = sum(d <= results["bar"] for _, d in pairs)
            rows.append([x["what"], name, *(f"{d:.1e}" for d in worst), f"{held} of {len(pairs)}"])
    within = f"within {results['bar']:g}"
    return markdown(["", "", *(f"rates {low:.0e} …" for low in decades), within], rows)


def watch(results: Results) -> str:
    found = by_two(results["ratios"])
    ways = list(dict.fromkeys(way for rows in found.values() for way in rows))
    rows = [
        [
            model,
            in_units(ratios[ways[0]]["second"]),
            *(ratio_and_quartiles(ratios[w]) for w in ways),
        ]
        for model, ratios in found.items()
    ]
    return markdown(["", "without", *(f"`{way}`" for way in ways)], rows)


def gates(results: Results) -> str:
    found = by_two(results["ratios"])
    pairs = list(dict.fromkeys(pair for rows in found.values() for pair in rows))
    rows = [["the step with `adamw`", *(in_units(x[pairs[0]]["second"]) for x in found.values())]]
    for pair in pairs:
        name = " / ".join(f"`{x}`" for x in pair.split(" / "))
        rows.append([name, *(ratio_and_quartiles(x[pair]) for x in found.values())])
    return markdown(["", *found], rows)


def gates_memory(results: Results) -> str:
    rows = (
        [f"`{x['update']}`", f"{x['state']:.2f}", f"{x['temporary']:.2f}"]
        for x in results["memory"]
    )
    return markdown(["update of four matrices", "state", "temporary"], rows)


def compiling(results: Results) -> str:
    kinds = ("traced", "compiled", "instructions", "collectives")
    medians = {
        name: {kind: statistics.median(x[kind] for x in found) for kind in kinds}
        for name, found in results["steps"].items()
    }
    rows = []
    for name, x in medians.items():
        other = medians.get(f"Optax's {name}") or medians.get("Optax's adamw")
        over = ""
        if other is not None and not name.startswith("Optax's"):
            over = f"{x['compiled'] / other['compiled']:.2f}"
        rows.append(
            [
                name,
                f"{x['traced']:.1f} s",
                f"{x['compiled']:.1f} s",
                over,
                f"{x['instructions']:,.0f}",
                f"{x['collectives']:,.0f}",
            ]
        )
    heads = ["", "trace", "compile", "ratio to Optax", "instructions", "collectives"]
    return markdown(heads, rows)


# Quantized states.


def short(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if math.isfinite(value) else "∞"


def falls(results: Results) -> str:
    """The mean of v over float32's, at some steps."""
    found, bar = results["falls"], results["bar"]
    shown = [i for i, t in enumerate(found[0]["steps"]) if t % results["shown"] == 0]
    rows = (
        [
            x["code"],
            mark(x["worst"] <= bar),
            *(short(x["falling"][i]) for i in shown),
            short(x["error"][-1]),
            short(x["staying"][-1]),
        ]
        for x in found
    )
    heads = [f"t={found[0]['steps'][i]:,}" for i in shown]
    return markdown(["v over float32's", f"within {bar:.0%}", *heads, "±", "others"], rows)


def spreads(results: Results) -> str:
    found = results["falls"]
    rows = ([x["code"], *map(short, (*x["spread"], *x["step"]))] for x in found)
    heads = ["spread of v", "of the others'", "√v in float32 over √v", "its spread"]
    return markdown([f"at t={found[0]['steps'][-1]:,}", *heads], rows)


def biases(results: Results) -> str:
    rows = (
        [
            x["code"],
            x["slot"],
            f"{x['elements']:,}",
            f"{x['rms']:.3f}",
            f"{x['largest']:.2f}",
            f"{x['expected']:.2f}",
            f"{x['raised']:.1%}" if x["slot"] == "squares" else "",
        ]
        for x in results["biases"]
    )
    z = ["rms z", "largest |z|", "√(2 log n)"]
    return markdown(["", "slot", "elements", *z, "squares rounded up"], rows)


def trainings(results: Results) -> str:
    """The losses of trainings; a training that ends no better than a guess has diverged."""
    exact = results["trainings"][0]["losses"]
    rows = []
    for x in results["trainings"]:
        losses = x["losses"]
        mean, low, high = statistics.fmean(losses), min(losses), max(losses)
        beside = "below" if mean < min(exact) else "above" if mean > max(exact) else "within"
        over = f"{mean / statistics.fmean(exact):.2f}"
        cells = [f"{mean:.2e}", f"{low:.2e} … {high:.2e}", over, beside]
        if diverged := sum(not loss < math.log(10) for loss in losses):
            cells = [f"{diverged} of {len(losses)} diverged", "", "", ""]
        rows.append([x["code"], *cells, f"{max(x['spikes']):.2g}"])
    heads = ["mean", "least … largest", "over float32's", "its seeds' spread"]
    last = "largest of a batch, second half"
    return markdown(["training loss at the end", *heads, last], rows)


def quality(task: str, results: Results) -> str:
    """A task, and how each format differs from float32."""
    first, *others = results["tasks"][task]["rows"]
    pairs = [(first, ["", "", "", ""])]
    for x in others:
        loss, points = "{:+.4f} ± {:.4f}", "{:+.2f} ± {:.2f}"
        cells = [loss.format(*x["difference"]), mark(x["loss_holds"])]
        pairs.append((x, [*cells, points.format(*x["points"]), mark(x["accuracy_holds"])]))
    rows = (
        [
            x["kept_as"],
            f"{x['bytes_per_parameter']:.2f}",
            f"{x['train_loss']:.4f}",
            f"{x['ratio']:.4f}",
            *cells[:2],
            f"{x['test_loss']:.4f}",
            f"{100 * x['accuracy']:.2f} %",
            *cells[2:],
        ]
        for x, cells in pairs
    )
    loss = ["bytes per parameter", "training loss", "ratio", "difference", "holds"]
    heads = ["state kept as", *loss, "test loss", "test accuracy", "points", "holds"]
    return f"{results['tasks'][task]['summary']}\n\n{markdown(heads, rows)}"


def parameters(results: Results) -> str:
    exact = results["rows"][0]
    rows = []
    for x in results["rows"]:
        relative = [f"{x['loss'] / exact['loss'] - 1:+.2%}", f"{x['farthest']:.2%}"]
        rows.append(
            [
                x["name"] if x["name"] in ("float32", "bfloat16") else f"bfloat16, `{x['name']}`",
                f"{x['bytes']:.2f}",
                f"{x['start']:.4f}",
                f"{x['loss']:.4f} ± {x['spread']:.4f}",
                *(["", ""] if x is exact else relative),
                f"{x['accuracy']:.2%}",
                mark(x["follows"]),
            ]
        )
    compared = ["relative to float32", "largest deviation of a seed"]
    heads = ["parameters", "bytes", "first loss", "last loss", *compared, "accuracy", "follows"]
    return markdown(heads, rows)


def stored_steps(results: Results) -> str:
    """The ratios of steps to those of Optax in float32."""
    found = by_two(results["steps"])
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    rows = ([tree, *(ratio(x[name]) for name in names)] for tree, x in found.items())
    return markdown(["parameters", *(n.removesuffix(", stochastic") for n in names)], rows)


def stored_memory(results: Results) -> str:
    found = by_two(results["memory"])
    names = [name for name in next(iter(found.values())) if not name.endswith(", nearest")]
    rows = ([tree, *(f"{x[name]['bytes']:.2f}" for name in names)] for tree, x in found.items())
    heads = [name.removesuffix(", stochastic") for name in names]
    return markdown(["temporary bytes per parameter", *heads], rows)


def stored_peers(results: Results) -> str:
    return beside(results["peers"], "in 8 bits", "PyTorch's fused AdamW")


# Matrices.


def matrices(results: Results) -> str:
    """The optimisers of all tasks side by side."""
    tasks = results["tasks"]
    rows = [
        [f"`{found[0]['method']}`", *(cell for x in found for cell in matrix_cells(x))]
        for found in zip(*tasks.values(), strict=True)
    ]
    heads = [x for task in tasks for x in ("rate", f"{task}: loss", "AdamW's steps over its own")]
    return markdown(["", *heads], rows)


def matrix_cells(row: Row) -> list[str]:
    losses, ratios = row["losses"], row["ratios"]
    mean, low, high = statistics.fmean(ratios), min(ratios), max(ratios)
    reached = sum(x > 0 for x in ratios)
    spread = f"{mean:.2f} ({low:.2f}–{high:.2f})"
    return [
        f"{row['rate']:.2g}{'‡' if row['at_an_end'] else ''}",
        f"{statistics.fmean(losses):.3f} ± {statistics.pstdev(losses):.3f}",
        spread if all(ratios) else f"reached in {reached} of {len(ratios)} runs",
    ]


# TPUs.

LITTLE = 0.02
"""Temporary bytes per parameter that are not worth a row."""
FEW = 100_000
"""Bytes of a collective of numbers or vectors."""


def tpu(results: Results) -> str:
    """What steps need on one chip, and if their matrices are divided by rows."""
    found: dict[str, dict[str, Row]] = {}
    for x in results["needs"]:
        found.setdefault(x["what"], {})[x["placement"]] = x
    rows, small = [], []
    for what, x in found.items():
        single, divided = x.get("single"), x.get("fsdp")
        if what.isidentifier() and what != "adamw" and single and of_each(single, "temp") < LITTLE:
            small.append(f"`{what}`")
            continue
        rows.append(
            [
                what,
                f"{of_each(single, 'temp'):.2f}" if single else "",
                f"{of_each(single, 'accessed'):.0f}" if single else "",
                f"{of_each(divided, 'temp'):.2f}" if divided else "",
                collectives(divided) if divided else "",
            ]
        )
    heads = ["", "temporaries", "accessed", "temporaries, FSDP", "collectives, FSDP"]
    table = markdown(heads, rows)
    if small:
        table += f"\n\nLess than {LITTLE} bytes of temporaries on one chip: {', '.join(small)}."
    return table


def of_each(row: Row, kind: str) -> float:
    """Bytes per parameter of a chip."""
    return row[kind] / row["parameters"]


def collectives(row: Row) -> str:
    large = [x for x in row["collectives"] if x["bytes"] >= FEW]
    rest = sum(x["times"] for x in row["collectives"] if x["bytes"] < FEW)
    told = [
        f"{x['kind']} of {x['bytes'] / row['parameters']:.2g} bytes per parameter in {x['dtype']}"
        for x in large
    ]
    told += [f"{rest} of numbers or vectors"] if rest else []
    return ", ".join(told) or "none"


def plan(results: Results) -> str:
    """The gigabytes on each chip, by placement."""
    found: dict[str, list[Row]] = {}
    for x in results["plans"]:
        found.setdefault(x["what"], []).append(x)
    rows = [
        [
            what,
            f"{of[0]['state']:.2f}",
            *(gigabytes(x["on_chip"]) for x in of),
            gigabytes(of[-1]["to_host"]),
        ]
        for what, of in found.items()
    ]
    first = next(iter(found.values()))
    rows.append(["received from chips", "", *(gigabytes(x["received"]) for x in first), ""])
    places = [x["placement"] for x in first]
    return markdown(["", "state", *places, "from host and back"], rows)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}"


def gpu(results: Results) -> str:
    return beside(results["ratios"], "first", "second") + f"\n\nOn one {results['device']}."


TABLES: Mapping[str, Mapping[str, Callable[[Results], str]]] = {
    "accuracy": {"errors": accuracy},
    "compiling": {"steps": compiling},
    "cost": {
        "step": step,
        "build": build,
        "update": update,
        "recompilations": recompilations,
        "memory": memory,
    },
    "faithfulness": {
        "falls": falls,
        "spreads": spreads,
        "biases": biases,
        "trainings": trainings,
    },
    "gates": {"ratios": gates, "memory": gates_memory},
    "gpu": {"ratios": gpu},
    "matrices": {"steps": matrices},
    "matrix_costs": {"steps": matrix_costs, "peers": matrix_peers},
    "parameters": {"losses": parameters},
    "quality": {
        task: lambda results, task=task: quality(task, results)
        for task in ("mnist", "cifar10", "shakespeare")
    },
    "stacks": {"steps": stacks},
    "storage": {"steps": stored_steps, "memory": stored_memory, "peers": stored_peers},
    "sweep": {"times": sweep_times, "agreement": sweep_agreement},
    "tpu": {"steps": tpu, "plan": plan},
    "watch": {"ratios": watch},
}
"""The tables of each benchmark, by their names in the documentation."""
