"""Run many optimisers in one compiled program.

The members of a sweep are ordinary optimisers. ``sweep`` compares their hyperparameters, and those
that differ become an axis of the program. Shared hyperparameters are not changed (a Python float
keeps its double precision). Members of different structures get separate programs.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.arguments.hyper import clock_dtype
from adamx.core import Transformation
from adamx.errors import as_given
from adamx.identity import fingerprint
from adamx.links.naming import labels, names
from adamx.numerics.meshes import platform
from adamx.tools.labels import counted, described, named_leaves
from adamx.tools.sweep_result import Sweep

__all__ = ["sweep"]

Optimisers = Sequence[Transformation] | Mapping[str, Transformation] | Transformation


def sweep(
    train: Callable[..., Any],
    optimisers: Optimisers,
    seeds: int | Sequence[int] | jax.Array | None = None,
    *,
    chunk: int | None = None,
    score: Callable[[Any], Any] | None = None,
    mode: Literal["min", "max"] = "min",
    progress: bool | None = None,
) -> Sweep:
    """Run ``train`` for every optimiser (and every seed), compiled once.

    Members that differ only in the values of their hyperparameters share one program, batched by
    ``vmap``. On CPU, where batching gains nothing, the program runs them one after the other.
    Members of different structures (SGD and Adam, or different schedules) get one program per
    structure. The axes of the sweep are the hyperparameters that differ; you do not declare them.
    These have JAX's default precision (float32). Hyperparameters that all members share keep their
    precision.

    If the members run one after the other, each result equals that of a single run. In a batch, the
    results differ by rounding, because XLA sums batched matrix products in a different order. If a
    training is unstable (large learning rates), these differences grow until the runs differ as
    much as runs with different seeds.

    Args:
        train: ``train(opt)`` or, with seeds, ``train(opt, key)``. A function that JAX can trace. It
            returns any pytree of arrays (a final loss, a loss curve, a dict of them).
        optimisers: a list of optimisers, a dict of optimisers by name, or one optimiser whose
            hyperparameters are arrays with one entry per member. ``adamx.adam(rates)`` keeps the
            precision of β; ``jax.vmap(adamx.adam)(rates)`` rounds it to float32.
        seeds: n for the keys of 0 … n − 1, or a list of integers, or a batch of keys.
        chunk: the number of runs that the program processes at a time, if not all fit into memory.
            With 1 they run one after the other, without ``vmap``. If None, 1 on CPU, and all
            runs on other devices.
        score: a function from the output of one run (NumPy arrays) to its score, a number. If
            None, the score is the output itself or its entry ``loss``; of a curve, its last value.
        mode: ``"min"`` if the smallest score is the best one, or ``"max"``.
        progress: whether to show a progress bar. If None, it is shown on a terminal if there are
            several chunks and rich is installed.

    Returns:
        A :class:`Sweep`. It prints as a table, which says if the best value of a hyperparameter is
        at the edge of the grid, and has ``best``, ``at_edge``, ``scores``, ``coordinates``,
        ``outputs``, ``rows()`` and ``plot()``.

    Raises:
        TypeError: if a member is not an optimiser, or if ``train`` returns no arrays.
        ValueError: if there is nothing to sweep over, if the outputs of members differ in
            structure, or if the output has several entries that could be the score.
        MemoryError: if XLA ran out of memory; a smaller ``chunk`` helps.

    >>> def train(opt):
    ...     def step(carry, _):
    ...         x, state = carry
    ...         updates, state = opt.update(2 * x, state, x)
    ...         return (adamx.apply_updates(x, updates), state), x**2
    ...     start = jnp.float32(1.0)
    ...     return jax.lax.scan(step, (start, opt.init(start)), length=20)[1]
    >>> result = sweep(train, [adamx.sgd(rate) for rate in (0.01, 0.1, 2.0)])
    >>> result
    3 optimisers: the best is learning_rate=0.1, score 0.0002077
      learning_rate      score
               0.01  4.641e-01
    →           0.1  2.077e-04
                  2  1.351e+18
    >>> result.best.optimiser == adamx.sgd(0.1)
    True
    >>> sweep(train, [adamx.sgd(rate) for rate in (0.001, 0.01, 0.1)])
    3 optimisers: the best is learning_rate=0.1, score 0.0002077
      learning_rate      score
              0.001  9.267e-01
               0.01  4.641e-01
    →           0.1  2.077e-04
    The best learning_rate is the largest of the grid: extend the grid upwards.
    """
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", got {mode!r}')
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be None or an integer ≥ 1 (runs at a time), got {chunk!r}")
    members, given_names = _members(optimisers, seeds)
    seeds, keys = _keys(seeds)
    _check_callable(train, keys)
    runs_each = 1 if seeds is None else len(seeds)
    groups = _grouped(members)
    programs = [_Program(train, group, keys, runs_each, chunk) for group in groups]
    form = _common_form(programs)
    score = score or _default_score(form)
    total = len(members) * runs_each
    results = [np.empty((total, *leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(form)]
    with _progress(progress, total, several=any(p.chunks > 1 for p in programs)) as advance:
        for program in programs:
            for runs, leaves in program.run():
                for result, leaf in zip(results, leaves, strict=True):
                    result[runs] = leaf
                advance(len(runs))
    shape = (len(members),) if seeds is None else (len(members), runs_each)
    coordinates = _coordinates(members)
    by_coordinates = described(coordinates)
    is_grid = len(groups) == 1 and len(set(by_coordinates)) == len(members)
    own_names = by_coordinates if is_grid else [f"#{i}" for i in range(len(members))]
    return Sweep(
        optimisers=tuple(members),
        names=tuple(given_names or own_names),
        coordinates=coordinates,
        is_grid=is_grid,
        outputs=jax.tree.unflatten(
            jax.tree.structure(form), [x.reshape(*shape, *x.shape[1:]) for x in results]
        ),
        seeds=seeds,
        score=score,
        mode=mode,
    )


# Members and seeds.


def _members(optimisers: Any, seeds: Any) -> tuple[list[Transformation], list[str] | None]:
    """The optimisers, and their names or None."""
    if isinstance(optimisers, Transformation):
        members = _unstacked(optimisers)
        if members is None and seeds is None:
            raise ValueError(
                "there is nothing to sweep over: every hyperparameter of this optimiser is a "
                "single number. Pass a list or a dict of optimisers, or arrays as hyperparameters; "
                f"got\n{optimisers}"
            )
        return members or [optimisers], None
    if isinstance(optimisers, Mapping):
        given = {f"optimiser {key!r}": member for key, member in optimisers.items()}
    elif isinstance(optimisers, (list, tuple)) and not _is_foreign(optimisers):
        given = {f"optimiser {index}": member for index, member in enumerate(optimisers)}
    else:
        raise TypeError(
            "optimisers must be a list, a dict by name, or one adamx optimiser with arrays as "
            f"hyperparameters; got {_described(optimisers)}"
        )
    if not given:
        raise ValueError("there is nothing to sweep over: no optimiser was given")
    for where, member in given.items():
        if not isinstance(member, Transformation):
            raise TypeError(f"{where} is {_described(member)}")
        for (name, rest), number in _named_numbers(member).items():
            if not rest and np.ndim(number) > 0:
                raise ValueError(
                    f"{where} is a batch: its {name} has the shape {np.shape(number)}. Pass either "
                    "a single batch as the second argument, or optimisers with single numbers"
                )
    named = list(map(str, optimisers)) if isinstance(optimisers, Mapping) else None
    return list(given.values()), named


def _is_foreign(thing: Any) -> bool:
    return isinstance(thing, optax.GradientTransformation)


def _described(given: Any) -> str:
    """A description of an object that is not an adamx optimiser, with a remedy."""
    if _is_foreign(given):
        return "an Optax transformation; adamx.chain(transformation) makes it an adamx optimiser"
    if callable(given):
        name = getattr(given, "__name__", repr(given))
        return f"the function {name}; call it and pass its result, {name}(…)"
    return f"{as_given(given)}, not an adamx optimiser"


def _unstacked(batch: Transformation) -> list[Transformation] | None:
    """The members of a batch; None if all its hyperparameters are single numbers."""
    leaves, structure = jax.tree.flatten(batch)
    sizes = {
        f"{name}{rest}": np.shape(number)[0]
        for (name, rest), number in _named_numbers(batch).items()
        if np.ndim(number) > 0
    }
    if not sizes:
        return None
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(
            f"the arrays of the batch have different numbers of members: {shown}. The first axis "
            "of each array must be the members"
        )
    (size,) = set(sizes.values())
    if size == 0:
        raise ValueError("there is nothing to sweep over: the arrays of the batch are empty")
    columns = [_entries(leaf) if np.ndim(leaf) > 0 else [leaf] * size for leaf in leaves]
    return [jax.tree.unflatten(structure, row) for row in zip(*columns, strict=True)]


def _entries(array: Any) -> list[Any]:
    """The values of the members; NumPy doubles become Python floats and keep their precision."""
    if isinstance(array, np.ndarray) and array.dtype == np.float64 and array.ndim == 1:
        return array.tolist()
    return list(jnp.asarray(array))


def _keys(seeds: Any) -> tuple[tuple[int, ...] | None, jax.Array | None]:
    """The seeds as integers, and their keys."""
    if seeds is None:
        return None, None
    if _is_integer(seeds):
        seeds = range(int(seeds))
    numbers: Any
    old_kind = isinstance(seeds, jax.Array) and seeds.ndim == 2 and seeds.dtype == np.uint32
    if old_kind or (_is_key(seeds) and seeds.ndim == 1):
        numbers, keys = range(len(seeds)), seeds
    else:
        several = isinstance(seeds, Sequence) or getattr(seeds, "ndim", 0) > 0
        numbers = list(seeds) if several else [seeds]
        if not all(map(_is_integer, numbers)):
            raise TypeError(
                "seeds must be the number of seeds, a list of integers or a batch of keys "
                f"(jax.random.split(key, n)); got {as_given(seeds)}"
            )
        keys = jnp.stack([jax.random.key(int(seed)) for seed in numbers]) if len(numbers) else None
    if len(numbers) == 0:
        raise ValueError(f"there is nothing to sweep over: seeds={seeds!r} contains no seed")
    return tuple(int(seed) for seed in numbers), keys


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_integer(x: Any) -> bool:
    if isinstance(x, (np.ndarray, jax.Array)):
        return x.ndim == 0 and jnp.issubdtype(x.dtype, jnp.integer)
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _check_callable(train: Any, keys: Any) -> None:
    """Check that ``train`` accepts the arguments of the sweep."""
    call = "train(opt)" if keys is None else "train(opt, key)"
    if not callable(train):
        raise TypeError(f"train must be a function, called as {call}; got {train!r}")
    with contextlib.suppress(ValueError):  # some callables written in C have no signature
        signature = inspect.signature(train)
        try:
            signature.bind(*([None] if keys is None else [None, None]))
        except TypeError as error:
            reason = "" if keys is None else " (with a key, because seeds were given)"
            raise TypeError(
                f"sweep calls {call}{reason}, but train{signature} can't be called like this: "
                f"{error}"
            ) from None


# Names and coordinates.


def _named_numbers(opt: Transformation) -> dict[tuple[str, str], Any]:
    """Every leaf of an optimiser, by the shortest name of its argument and its path inside it.

    The path is empty unless the argument is a schedule that is itself a pytree.
    """
    stages = names(opt.links)
    argument = {(stages[place.link], place.argument): x for x, place in labels(opt.links).items()}
    leaves, _ = jax.tree_util.tree_flatten_with_path(opt)
    return {
        (argument[stage.key, name.key], jax.tree_util.keystr(tuple(rest))): leaf
        for (stage, name, *rest), leaf in leaves
    }


def _coordinates(members: Sequence[Transformation]) -> dict[str, np.ndarray]:
    """The hyperparameters that differ among members; NaN if a member has none of that name."""
    rows = [
        {name + rest: number for (name, rest), number in _named_numbers(opt).items()}
        for opt in members
    ]
    rows = [{name: float(x) for name, x in row.items() if np.ndim(x) == 0} for row in rows]
    every = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in every}
    return {
        name: values
        for name, values in columns.items()
        if len(np.unique(values[~np.isnan(values)])) > 1
    }


# Programs.


class _Group(NamedTuple):
    """The members of one structure: their positions, shared leaves, and leaves that differ."""

    positions: np.ndarray
    structure: Any
    shared: list[Any]  # one entry per leaf; _VARIES if members differ
    stacked: list[np.ndarray]  # [member, ...] for each leaf that differs


_VARIES = object()


def _grouped(members: Sequence[Transformation]) -> list[_Group]:
    """The members grouped by structure, in the order in which structures first appear."""
    found: dict[Hashable, list[int]] = {}
    for position, opt in enumerate(members):
        leaves, structure = jax.tree.flatten(opt)
        found.setdefault((structure, *map(_kind, leaves)), []).append(position)
    return [_group(members, positions) for positions in found.values()]


def _kind(leaf: Any) -> Hashable:
    """A key that is equal for leaves that can be stacked."""
    if not isinstance(leaf, (float, int, np.ndarray, jax.Array)):
        return fingerprint(leaf)
    dtype = jnp.result_type(leaf)
    return np.shape(leaf), "float" if jnp.issubdtype(dtype, jnp.floating) else dtype


def _group(members: Sequence[Transformation], positions: list[int]) -> _Group:
    columns = zip(*(jax.tree.leaves(members[i]) for i in positions), strict=True)
    shared, stacked = [], []
    for column in columns:
        if len(set(map(fingerprint, column))) == 1:
            shared.append(column[0])
            continue
        shared.append(_VARIES)
        dtype = jnp.result_type(column[0])
        dtype = clock_dtype() if jnp.issubdtype(dtype, jnp.floating) else dtype
        stacked.append(np.stack([np.asarray(x, dtype) for x in column]))
    return _Group(np.array(positions), jax.tree.structure(members[positions[0]]), shared, stacked)


class _Program:
    """Runs ``train`` for the members of one structure and all seeds, in chunks."""

    def __init__(
        self,
        train: Callable[..., Any],
        group: _Group,
        keys: jax.Array | None,
        runs_each: int,
        chunk: int | None,
    ):
        self.group, self.keys, self.runs_each = group, keys, runs_each
        self.total = len(group.positions) * runs_each
        # All chunks have the same size; the last one is padded.
        self.chunks = math.ceil(self.total / min(chunk or _at_a_time(self.total), self.total))
        self.width = math.ceil(self.total / self.chunks)

        def run(numbers: list[Any], key: Any) -> Any:
            given = iter(numbers)
            leaves = [next(given) if leaf is _VARIES else leaf for leaf in group.shared]
            opt = jax.tree.unflatten(group.structure, leaves)
            return _checked(train(opt) if keys is None else train(opt, key))

        def alone(numbers: list[Any], key: Any) -> Any:
            first = jax.tree.map(lambda x: x[0], (numbers, key))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], run(*first))

        batched = alone if self.width == 1 else jax.vmap(run, axis_size=self.width)
        self.lowered = jax.jit(batched).lower(*self.arguments(np.arange(self.width)))
        self.form = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.lowered.out_info
        )

    def arguments(self, runs: np.ndarray) -> tuple[list[np.ndarray], Any]:
        """The hyperparameters and keys of these runs; all seeds of a member are consecutive."""
        member, seed = np.divmod(runs, self.runs_each)
        numbers = [x[member] for x in self.group.stacked]
        return numbers, None if self.keys is None else self.keys[seed]

    def run(self) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """For each chunk, the positions of its runs in the sweep, and their outputs."""
        with self.remedy():
            compiled = self.lowered.compile()
        for start in range(0, self.total, self.width):
            runs = np.arange(start, start + self.width)
            arguments = self.arguments(np.minimum(runs, self.total - 1))
            runs = runs[runs < self.total]
            with self.remedy():
                leaves = [np.asarray(x)[: len(runs)] for x in jax.tree.leaves(compiled(*arguments))]
            member, seed = np.divmod(runs, self.runs_each)
            yield self.group.positions[member] * self.runs_each + seed, leaves

    @contextlib.contextmanager
    def remedy(self) -> Iterator[None]:
        """Raise an error with a remedy if XLA runs out of memory."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            advice = (
                f"Pass chunk={self.width // 2} or less to run fewer at a time"
                if self.width > 1
                else "A smaller chunk is not possible; use a smaller model or batch"
            )
            raise MemoryError(
                f"{counted(self.width, 'run')} at a time did not fit into memory. {advice}"
            ) from error


def _at_a_time(runs: int) -> int:
    """The default number of runs at a time.

    On CPU batching gains nothing, and batched matrix products round differently.
    """
    return 1 if platform() == "cpu" else runs


def _checked(output: Any) -> Any:
    """The output of ``train``, after a check that it is a pytree of arrays."""
    leaves = named_leaves(output)
    if not leaves:
        raise TypeError(f"train must return a pytree of arrays, but returned {output!r}")
    for path, leaf in leaves.items():
        numbers = (jax.Array, np.ndarray, np.generic, float, int)
        if not isinstance(leaf, numbers) or _is_key(leaf):
            where = f" at {path!r}" if path else ""
            raise TypeError(
                f"train must return a pytree of arrays, but returned {leaf!r} of type "
                f"{type(leaf).__name__}{where}"
            )
    return output


def _common_form(programs: Sequence[_Program]) -> Any:
    """The shapes and dtypes of a run's output, after a check that all programs agree."""
    first = programs[0]
    for other in programs[1:]:
        if _shown(other.form) != _shown(first.form):
            one, two = first.group.positions[0], other.group.positions[0]
            raise ValueError(
                f"the outputs of train differ in structure: for optimiser {one} it returned "
                f"{_shown(first.form)}, for optimiser {two} {_shown(other.form)}. Return arrays of "
                "the same structure for every optimiser; for instance, do not return its state"
            )
    return first.form


def _shown(form: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}[{','.join(map(str, x.shape))}]", form))


# Scores.


def _default_score(form: Any) -> Callable[[Any], Any]:
    """The last value of the only output, or of the one that is called ``loss``."""
    outputs = named_leaves(form)
    name = "loss" if "loss" in outputs else next(iter(outputs)) if len(outputs) == 1 else None
    if name is None or len(outputs[name].shape) > 1 or 0 in outputs[name].shape:
        raise ValueError(
            f"train returns {_shown(form)}, which does not determine the score of a run. Pass "
            "score=lambda output: …, or return a scalar, a curve, or a dict with the entry 'loss'"
        )
    return lambda output: np.reshape(named_leaves(output)[name], -1)[-1]


# Progress.


@contextlib.contextmanager
def _progress(
    wanted: bool | None, total: int, *, several: bool
) -> Iterator[Callable[[int], object]]:
    """Show a progress bar over all runs, if wanted; yields a function that advances it."""
    try:
        if wanted is False or (wanted is None and not several):
            raise ModuleNotFoundError
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError as error:
        if wanted:
            raise ImportError(
                "a progress bar needs rich: pip install 'adamx[tools]', or progress=False"
            ) from error
        yield lambda runs: None
        return
    console = Console(stderr=True)
    with Progress(console=console, disable=not (wanted or console.is_terminal)) as bar:
        task = bar.add_task("sweep", total=total)
        yield lambda runs: bar.advance(task, runs)
