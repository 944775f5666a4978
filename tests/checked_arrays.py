"""A program that takes a step with every recipe and codec, its annotations checked by jaxtyping.

It prints the functions that were checked, and ends with the first array that is not what an
annotation says.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping

CHECKED: set[str] = set()


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping calls for every function: the function, which looks at its arrays."""

    @functools.cache
    def said() -> tuple[inspect.Signature, dict[str, Any]]:
        hints = typing.get_type_hints(function)
        return inspect.signature(function), {
            name: hint for name, hint in hints.items() if "jaxtyping" in repr(hint)
        }

    @functools.wraps(function)
    def looking(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        signature, hints = said()
        given = signature.bind(*args, **kwargs).arguments | {"return": result} if hints else {}
        for name, hint in hints.items():
            for kinds, array in arrays(hint, given.get(name)):
                where = f"{function.__module__}.{function.__qualname__}"
                if not any(isinstance(array, kind) for kind in kinds):
                    raise SystemExit(f"{where}: {name} is {array}, and annotated as {hint}")
                CHECKED.add(where)
        return result

    return looking


def arrays(hint: Any, value: Any) -> Iterator[tuple[list[Any], jax.Array]]:
    """The arrays that have a kind, and the kinds they may have."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and Ellipsis not in parts and isinstance(value, tuple):
        for part, x in zip(parts, value, strict=True):
            yield from arrays(part, x)
    choices = parts if origin in (typing.Union, types.UnionType) else (hint,)
    kinds = [x for x in choices if inspect.isclass(x) and x.__module__.startswith("jaxtyping")]
    if kinds and isinstance(value, jax.Array):
        yield kinds, value


def main() -> None:
    found = importlib.util.find_spec("adamx")
    assert found is not None and found.origin is not None
    kinds = types.ModuleType("adamx.numerics.types")
    source = (Path(found.origin).parent / "numerics" / "types.py").read_text(encoding="utf-8")
    source = source.replace("if TYPE_CHECKING:", "if True:")
    exec(re.sub(r"from typing import Annotated as", "from jaxtyping import", source), vars(kinds))
    sys.modules["adamx.numerics.types"] = kinds
    jaxtyping.install_import_hook("adamx", "checked_arrays.check")

    import adamx

    params = {"kernel": jnp.ones((3, 70)), "bias": jnp.ones(5)}
    recipes = {name: adamx.get_recipe(name) for name in adamx.list_recipes()}
    rates = {name: () if name == "prodigy" else (1e-3,) for name in recipes}
    optimisers = [recipe(*rates[name]) for name, recipe in recipes.items()]
    of_matrices = ("adamuon", "muon", "muon_h", "normuon")
    optimisers = [
        adamx.where("kernel", opt) if name in of_matrices else opt
        for name, opt in zip(recipes, optimisers, strict=True)
    ]
    optimisers += [
        adamx.quantize_state(adamx.adam(1e-3), x, min_size=1) for x in ("bf16", "fp8", "int8")
    ]
    for opt in optimisers:
        jax.eval_shape(opt.update, params, jax.eval_shape(opt.init, params), params)
    print(*sorted(CHECKED), sep="\n")


if __name__ == "__main__":
    # By the name under which jaxtyping imports it.
    importlib.import_module("checked_arrays").main()
