"""Convert an optimiser to and from plain JSON that people can read and edit."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adamx.core import Same, Transformation, chain
from adamx.errors import as_given, described
from adamx.identity import alike
from adamx.links.foreign import Foreign
from adamx.links.link import Around, Link
from adamx.links.stage import Stage
from adamx.schedules import ScheduleValue
from adamx.tools.factories import Names, call, calls, default_of
from adamx.wrappers import watch

__all__ = ["from_config", "to_config"]

_FORMAT = "adamx/1"
_OBSERVERS = {"watch": watch}
_PARTIALS = {
    "jax.tree_util.Partial": jax.tree_util.Partial,
    "functools.partial": functools.partial,
}


def to_config(opt: Transformation, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The optimiser as plain JSON: a dict of dicts, lists, strings and finite numbers.

    The config is ``{"format": "adamx/1", "chain": [...]}``, with one object per link of the chain::

        {"stage": name, argument: value, ...}           a stage of adamx or of ``known``
        {"transformation": factory, argument: value}    the result of a factory of Optax
        {"observer": "watch", argument: value, ...}     an observer
        {"name": name}                                  a transformation of ``known``

    If wrappers are around a link, the object has an entry ``"around": [...]``, the outermost
    wrapper first::

        {"where": selector}                                  a selection of parameters
        {"partition": [selector, ...], "part": index}        one part of a partition
        {"quantize_state": codec, "slots": {slot: codec, ...}, "min_size": 4096, "seed": 0}

    A codec is ``{"codec": "int8", "block_size": 64, "rounding": "stochastic"}``, ``null``, or
    ``{"name": ...}``. A selector is a pattern, a list of patterns, or a predicate
    (``{"name": ...}``). Numbers, strings, ``true``, ``false``, ``null`` and lists are written in
    JSON directly. All other values are objects::

        {"schedule": "adamx.schedules.constant", "value": 0.1}            a schedule of adamx
        {"schedule": "optax.linear_schedule", "init_value": 0.1, ...}     a call of a factory
        {"name": "my_schedule"}                  a function of Optax or of ``known``
        {"functools.partial": function, "args": [...], "keywords": {...}}
        {"jax.tree_util.Partial": function, "args": [...], "keywords": {...}}
        {"chain": [...]}                         an adamx chain inside an Optax transformation
        {"same": argument, "stage": name, "power": 1.0}    a hyperparameter of another stage
        {"array": [0.1, "inf"], "dtype": "float32"}    {"scalar": 0.1, "dtype": "float32"}
        {"float": "inf"}    {"dtype": "bfloat16"}    {"tuple": [...]}    {"dict": [[key, value]]}

    The config contains all arguments, so that a later change of a default does not change a saved
    optimiser. Within one version of the format, the names and meanings of stages and arguments do
    not change. If you write a config by hand, missing arguments take their defaults.

    For a schedule or a transformation of Optax, the config contains the factory that made it and
    its arguments. ``to_config`` searches the arguments among the variables that the function has
    captured, and checks that the factory returns an equal function for them. The result may name a
    factory that was called indirectly (``polynomial_schedule`` for ``linear_schedule``), and may
    contain 0 for arguments without effect (``end_value`` if ``transition_steps`` is 0).

    Args:
        opt: the optimiser. Batched hyperparameters are written as arrays.
        known: names (without dots) for objects that belong neither to adamx nor to Optax: stages,
            schedules, their factories, other functions, transformations.

    Raises:
        TypeError: if ``opt`` is not an adamx optimiser.
        ValueError: if JSON can't represent a value, for example a function that has no name in
            ``known``, or a traced number. The error names the link and the argument.

    >>> to_config(adamx.scale_by_momentum())
    {'format': 'adamx/1', 'chain': [{'stage': 'scale_by_momentum', 'b1': 0.9, 'nesterov': False}]}
    >>> harmonic = lambda t: 0.5 / (t + 1)
    >>> to_config(adamx.sgd(harmonic), known={"harmonic": harmonic})["chain"]
    [{'stage': 'scale_by_learning_rate', 'learning_rate': {'name': 'harmonic'}}]
    """
    if not isinstance(opt, Transformation):
        raise TypeError(
            f"to_config takes an adamx optimiser, got {described(opt)}; an "
            "Optax transformation becomes one by adamx.chain(transformation)"
        )
    return {"format": _FORMAT, "chain": _Writer(Names(known)).chain(opt, "chain")}


def from_config(cfg: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Transformation:
    """The optimiser that a config describes. It equals the optimiser passed to :func:`to_config`.

    ``from_config`` imports nothing. It calls only stages and recipes of adamx, public functions of
    Optax, and the objects in ``known``.

    Args:
        cfg: the result of :func:`to_config`; it may have been saved to a file and edited.
        known: the objects for all names in the config that belong neither to adamx nor to Optax.

    Raises:
        TypeError: if ``cfg`` is not a dict.
        ValueError: for unknown or missing names, stages and arguments, for values of a wrong type
            or outside their domain, and for a different format. The error names the place.

    >>> import json
    >>> opt = adamx.adamw(optax.cosine_decay_schedule(1e-3, 10_000))
    >>> text = json.dumps(to_config(opt), indent=2)
    >>> from_config(json.loads(text)) == opt
    True
    >>> from_config({"format": "adamx/1", "chain": [{"stage": "scale_by_momentum", "b1": 0.95}]})
    scale_by_momentum(b1=0.95)
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f"a config is a dict, got {as_given(cfg)}")
    if cfg.get("format") != _FORMAT:
        raise ValueError(
            f"format: this version of adamx reads {_FORMAT!r}, the config has {cfg.get('format')!r}"
        )
    _check_keys(cfg, "the config", ["format", "chain"])
    return _Reader(Names(known)).chain(cfg["chain"], "chain")


def _is_transformation(thing: Any) -> bool:
    return callable(getattr(thing, "init", None)) and callable(getattr(thing, "update", None))


# Writing


class _Writer:
    """Objects as JSON."""

    def __init__(self, names: Names):
        self.names = names
        self.reader = _Reader(names)

    def chain(self, opt: Transformation, place: str) -> list[Any]:
        return [self.link(link, f"{place}[{i}]") for i, link in enumerate(opt.settled())]

    def link(self, link: Link, place: str) -> dict[str, Any]:
        around = [self.around(x, f"{place}.around[{i}]") for i, x in enumerate(link.around)]
        if isinstance(link, Stage):
            row = self.stage(link, place)
        elif isinstance(link, Foreign):
            row = self.proved(link.transformation, f"{place} {link.name}")
        elif link.name in _OBSERVERS:
            row = self.observer(link, f"{place} {link.name}")
        else:
            raise _refusal(link, place)
        return {**row, "around": around} if around else row

    def stage(self, stage: Stage, place: str) -> dict[str, Any]:
        name = self.names.stage(stage.definition)
        if name is None:
            raise _refusal(stage, place)
        row: dict[str, Any] = {"stage": name}
        for argument, value in stage.arguments.items():
            at = f"{place} {name}.{argument}"
            _add(row, argument, self.proved(value, at), at)
        return row

    def observer(self, link: Link, place: str) -> dict[str, Any]:
        row: dict[str, Any] = {"observer": link.name}
        for argument in inspect.signature(_OBSERVERS[link.name]).parameters:
            at = f"{place}.{argument}"
            _add(row, argument, self.proved(getattr(link, argument), at), at)
        return row

    def proved(self, value: Any, place: str) -> Any:
        """The JSON of a value, after a check that reading it returns an equal value."""
        written = self.value(value, place)
        if not alike(self.reader.value(written, place), value):
            raise ValueError(f"{place}: JSON can't represent {value!r} exactly")
        return written

    def around(self, around: Around, place: str) -> Any:
        if not around.axis:
            raise _refusal(around, place)
        return around.to_json(lambda value, where: self.value(value, f"{place}{where}"))

    def value(self, value: Any, place: str) -> Any:
        if isinstance(value, Tracer):
            raise ValueError(
                f"{place} is a traced {value.aval.str_short()}, which has no value; call to_config "
                "outside of jit, vmap and grad"
            )
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, np.generic):
            return {"scalar": _listed(np.asarray(value), place), "dtype": value.dtype.name}
        if isinstance(value, (np.ndarray, jax.Array)):
            row = {"array": _listed(value, place), "dtype": value.dtype.name}
            is_weak = getattr(value, "weak_type", False) and value.ndim == 0
            return {**row, "weak_type": True} if is_weak else row
        if isinstance(value, np.dtype):
            return {"dtype": value.name}
        if type(value) is list:
            return self.items(value, place)
        if type(value) is tuple:
            return {"tuple": self.items(value, place)}
        if type(value) is dict:
            return {"dict": [self.items(pair, f"{place}[{pair[0]!r}]") for pair in value.items()]}
        if isinstance(value, Same):
            return {"same": value.argument, "stage": value.stage, "power": value.power}
        if isinstance(value, Transformation):
            return {"chain": self.chain(value, f"{place}.chain")}
        return self.named(value, place)

    def items(self, values: Iterable[Any], place: str) -> list[Any]:
        return [self.value(value, f"{place}[{i}]") for i, value in enumerate(values)]

    def named(self, thing: Any, place: str) -> dict[str, Any]:
        """An object that JSON can't represent, as its name or as a call of a named factory."""
        name = self.names.function(thing) if inspect.isfunction(thing) else self.names.own(thing)
        if name is not None:
            return {"name": name}
        if isinstance(thing, ScheduleValue):
            name, arguments = thing.call()
            return {"schedule": name} | {
                k: self.value(x, f"{place}.{k}") for k, x in arguments.items()
            }
        for kind, partial in _PARTIALS.items():
            if type(thing) is partial and isinstance(thing, functools.partial):
                return {
                    kind: self.value(thing.func, place),
                    "args": self.items(thing.args, f"{place}.args"),
                    "keywords": {
                        k: self.value(x, f"{place}.{k}") for k, x in thing.keywords.items()
                    },
                }
        return self.call(thing, place)

    def call(self, thing: Any, place: str) -> dict[str, Any]:
        kind = "transformation" if _is_transformation(thing) else "schedule"
        refused = None
        for name, arguments in calls(thing, self.names):
            row: dict[str, Any] = {kind: name}
            try:
                for argument, value in arguments.items():
                    at = f"{place}.{argument}"
                    _add(row, argument, self.value(value, at), at)
                return row
            except ValueError as error:  # another factory may have simpler arguments
                refused = refused or error
        raise refused or _refusal(thing, place)


def _add(row: dict[str, Any], argument: str, written: Any, place: str) -> None:
    if argument in ("stage", "transformation", "schedule", "around"):
        raise ValueError(
            f"{place}: a config uses {argument!r} as a key of its own; rename the argument"
        )
    row[argument] = written


def _listed(array: Any, place: str) -> Any:
    """An array as nested lists of exact numbers; non-finite elements become strings, as "inf"."""

    def plain(x: Any) -> Any:
        if isinstance(x, list):
            return [plain(item) for item in x]
        return x if math.isfinite(x) else str(x)

    if jnp.issubdtype(array.dtype, jnp.floating):
        return plain(np.asarray(array).astype(np.float64).tolist())
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool:
        return np.asarray(array).tolist()
    raise ValueError(f"{place}: a config can't contain an array of {array.dtype}")


def _refusal(thing: Any, place: str) -> ValueError:
    what, word = repr(thing), getattr(thing, "__name__", getattr(thing, "name", "mine"))
    if inspect.isfunction(thing):
        what = f"the function {thing.__qualname__} of {thing.__module__}"
        word = word if word.isidentifier() else "mine"
    elif inspect.isfunction(getattr(thing, "update", None)):
        what = f"a transformation with {thing.update.__qualname__} of {thing.update.__module__}"
    return ValueError(
        f"{place}: a config can't contain {what}. Give it, or the factory that made it, a name: "
        f'to_config(opt, known={{"{word}": ...}}) and from_config(cfg, known={{"{word}": ...}})'
    )


# Reading


class _Reader:
    """Objects from JSON."""

    def __init__(self, names: Names):
        self.names = names

    def chain(self, rows: Any, place: str) -> Transformation:
        if not isinstance(rows, list):
            raise ValueError(f"{place}: a chain must be a list of links, got {rows!r}")
        links = (self.link(row, f"{place}[{i}]") for i, row in enumerate(rows))
        return Transformation(tuple(itertools.chain.from_iterable(links)))

    def link(self, row: Any, place: str) -> Iterable[Link]:
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a link must be an object, got {row!r}")
        kind = _kind(row, ["stage", "transformation", "observer", "name"], place)
        row = dict(row)
        around = self.all_around(row.pop("around", []), f"{place}.around")
        if kind == "stage":
            links: Iterable[Link] = [self.stage(row, place)]
        elif kind == "observer":
            links = self.observer(row, place).links
        else:
            made = self.value(row, place)
            if not _is_transformation(made):
                raise ValueError(f"{place}: a link must be a transformation, got {made!r}")
            links = chain(made).links
        return [functools.reduce(Link.within, reversed(around), link) for link in links]

    def stage(self, row: dict[str, Any], place: str) -> Stage:
        name = row.pop("stage")
        if name not in list(self.names.stages):
            raise _unknown("stage", name, sorted(self.names.stages), place)
        definition = self.names.stages[name]
        place = f"{place} {name}"
        arguments = self.arguments(definition.factory, row, place)
        hints = get_type_hints(definition.factory)
        for argument, value in arguments.items():
            if argument not in definition.domains and not _fits(value, hints.get(argument, Any)):
                hint = inspect.formatannotation(hints[argument])
                remedy = '; write a tuple as {"tuple": [...]}' if isinstance(value, list) else ""
                raise ValueError(f"{place}.{argument}: must be {hint}, got {value!r}{remedy}")
        try:
            return definition.bind(**arguments)
        except (TypeError, ValueError) as error:
            message = str(error).removeprefix(f"{definition.name}: ")
            raise ValueError(f"{place}: {message}") from None

    def observer(self, row: dict[str, Any], place: str) -> Transformation:
        name = row.pop("observer")
        if name not in list(_OBSERVERS):
            raise _unknown("observer", name, list(_OBSERVERS), place)
        arguments = self.arguments(_OBSERVERS[name], row, place)
        try:
            return call(_OBSERVERS[name], arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place} {name}: {error}") from None

    def all_around(self, rows: Any, place: str) -> list[Around]:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{place}: must be a list of objects, got {rows!r}")
        return [self.around(row, f"{place}[{i}]") for i, row in enumerate(rows)]

    def around(self, written: dict[str, Any], place: str) -> Around:
        axis = Around.axes[_kind(written, list(Around.axes), place)]
        try:
            _check_keys(written, place, axis.required, axis.optional)
            return axis.from_json(
                written, lambda value, where: self.value(value, f"{place}{where}")
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {str(error).removeprefix(f'{place}: ')}") from None

    def value(self, value: Any, place: str) -> Any:
        if isinstance(value, list):
            return self.items(value, place)
        if not isinstance(value, dict):
            return value
        kind = _kind(value, ["schedule", "transformation", *_PARTIALS, *_FORMS], place)
        if kind in ("schedule", "transformation"):
            return self.call(value, kind, place)
        if kind in _PARTIALS:
            return self.partial(value, kind, place)
        _check_keys(value, place, *_FORMS[kind])
        try:
            return getattr(self, f"as_{kind}")(value, place)
        except (TypeError, ValueError, ArithmeticError) as error:
            message = str(error).removeprefix(f"{place}: ")
            raise ValueError(f"{place}: {message}") from None

    def items(self, values: list[Any], place: str) -> list[Any]:
        return [self.value(value, f"{place}[{i}]") for i, value in enumerate(values)]

    def as_name(self, value: dict[str, Any], place: str) -> Any:
        return self.find(value["name"], place)

    def as_same(self, value: dict[str, Any], place: str) -> Any:
        return Same(value["stage"], value["same"], float(value.get("power", 1.0)))

    def as_float(self, value: dict[str, Any], place: str) -> Any:
        return _number(value["float"], place)

    def as_scalar(self, value: dict[str, Any], place: str) -> Any:
        return _array(value["scalar"], value["dtype"], place)[()]

    def as_array(self, value: dict[str, Any], place: str) -> Any:
        array = _array(value["array"], value["dtype"], place)
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            return array  # JAX would round it to its configured precision
        if value.get("weak_type") and array.ndim == 0:
            weak = jnp.asarray(array.item())
            return weak if weak.dtype == array.dtype else jnp.asarray(array)
        return jnp.asarray(array)

    def as_dtype(self, value: dict[str, Any], place: str) -> Any:
        return jnp.dtype(value["dtype"])

    def as_tuple(self, value: dict[str, Any], place: str) -> Any:
        return tuple(self.items(_list(value["tuple"], place), place))

    def as_dict(self, value: dict[str, Any], place: str) -> Any:
        pairs = self.items(_list(value["dict"], place), place)
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"{place}: a dict must be a list of pairs [key, value], got {pairs!r}")
        return dict(pairs)

    def as_chain(self, value: dict[str, Any], place: str) -> Any:
        return self.chain(value["chain"], f"{place}.chain")

    def partial(self, value: dict[str, Any], kind: str, place: str) -> Any:
        _check_keys(value, place, [kind, "args", "keywords"])
        args = self.items(_list(value["args"], place), f"{place}.args")
        if not isinstance(value["keywords"], dict):
            raise ValueError(f"{place}.keywords: must be an object, got {value['keywords']!r}")
        keywords = {k: self.value(x, f"{place}.{k}") for k, x in value["keywords"].items()}
        function = self.value(value[kind], place)
        if not callable(function):
            raise ValueError(f"{place}: {kind} takes a function, got {function!r}")
        return _PARTIALS[kind](function, *args, **keywords)

    def call(self, value: dict[str, Any], kind: str, place: str) -> Any:
        """The result of a factory."""
        rest = dict(value)
        name = rest.pop(kind)
        factory = self.find(name, place)
        arguments = self.arguments(factory, rest, place)
        try:
            made = call(factory, arguments)
        except Exception as error:  # a factory may raise any exception
            raise ValueError(f"{place}: {name} raised an error: {error}") from error
        if not (_is_transformation(made) if kind == "transformation" else callable(made)):
            raise ValueError(f"{place}: {name} must return a {kind}, but it returned {made!r}")
        return made

    def arguments(
        self, factory: Callable[..., Any], given: dict[str, Any], place: str
    ) -> dict[str, Any]:
        """All arguments: the given ones, and the defaults of the others."""
        if not callable(factory):
            raise ValueError(
                f"{place}: {factory!r} is not a factory; to use the object itself, write "
                "{'name': ...}"
            )
        parameters = inspect.signature(factory).parameters
        defaults = {name: default_of(parameter) for name, parameter in parameters.items()}
        required = [name for name, x in defaults.items() if x is inspect.Parameter.empty]
        _check_keys(given, place, required, [name for name in defaults if name not in required])
        return defaults | {name: self.value(x, f"{place}.{name}") for name, x in given.items()}

    def find(self, name: Any, place: str) -> Any:
        found = self.names.find(name)
        if found is None:
            optax_names = [f"optax.{x}" for x in vars(optax) if inspect.isfunction(vars(optax)[x])]
            near = difflib.get_close_matches(str(name), [*self.names.known, *optax_names])
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"{place}: {name!r} is neither a public function of Optax, adamx.schedules or "
                f"adamx.recipes nor one "
                f"of known={sorted(self.names.known)}{hint}"
            )
        return found


# The objects of a config that are not calls: their required and their optional keys.
_FORMS: dict[str, tuple[list[str], ...]] = {
    "same": (["same", "stage"], ["power"]),
    "name": (["name"],),
    "float": (["float"],),
    "array": (["array", "dtype"], ["weak_type"]),
    "scalar": (["scalar", "dtype"],),
    "dtype": (["dtype"],),
    "tuple": (["tuple"],),
    "dict": (["dict"],),
    "chain": (["chain"],),
}


def _kind(value: dict[str, Any], kinds: Sequence[str], place: str) -> str:
    kind = next((kind for kind in kinds if kind in value), None)
    if kind is None:
        raise ValueError(f"{place}: expected an object with one of {', '.join(kinds)}, got {value}")
    return kind


def _check_keys(
    given: Mapping[str, Any], place: str, required: Sequence[str], optional: Sequence[str] = ()
) -> None:
    if missing := [name for name in required if name not in given]:
        raise ValueError(f"{place}: missing {', '.join(map(repr, missing))}")
    for name in given:
        if name not in required and name not in optional:
            raise _unknown("key", name, [*required, *optional], place)


def _unknown(what: str, name: Any, there_are: Sequence[str], place: str) -> ValueError:
    near = difflib.get_close_matches(str(name), there_are)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(
        f"{place}: there is no {what} {name!r}; {hint}there are {', '.join(there_are)}"
    )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the annotated type; elements of containers are not checked."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is Any or (hint is float and type(value) is int):
        return True
    kind = get_origin(hint) or hint
    if not isinstance(kind, type) or type(value) not in (type(None), bool, int, float, str, list):
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{place}: must be a list, got {value!r}")
    return value


def _number(written: Any, place: str) -> float:
    if written not in ("inf", "-inf", "nan"):
        raise ValueError(f'{place}: must be a number, "inf" or "-inf", got {written!r}')
    return float(written)


def _array(written: Any, dtype: Any, place: str) -> np.ndarray:
    def plain(x: Any) -> Any:
        if isinstance(x, list):
            return [plain(item) for item in x]
        return x if isinstance(x, (int, float)) else _number(x, place)

    kind = jnp.dtype(dtype)
    wide = np.array(plain(written))
    if jnp.issubdtype(kind, jnp.floating):
        with np.errstate(over="raise"):
            return wide.astype(np.float64).astype(kind)
    if kind.kind not in "iub" or np.any(wide != wide.astype(kind)):
        raise ValueError(f"{written} is not an array of {kind}")
    return wide.astype(kind)
