"""Functions of arrays that keep their name where equations are read off a program.

A rule is compiled from its arithmetic alone. :mod:`adamx.equations` reads the same arithmetic, and
stops at the functions of this kind: they are known by their name, not by their instructions.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax

__all__ = ["CALLS", "PREFIX", "Call", "filled", "named", "recorded"]

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = "adamx_call_"


class Call(NamedTuple):
    """One call of a named function, with a placeholder for each of its arrays.

    Attributes:
        name: the function's name.
        leaves: the leaves of its arguments.
        tree: the tree of ``(args, kwargs)``.
    """

    name: str
    leaves: list[Any]
    tree: Any


_recording: contextvars.ContextVar[bool] = contextvars.ContextVar("recording", default=False)

CALLS: list[Call] = []
"""All recorded calls; JAX keeps the traces of jitted functions, which refer to them by number."""


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Let calls of named functions appear in a jaxpr as ``adamx_call_<number>``."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def named(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which is one call in a recorded jaxpr; elsewhere nothing changes."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _recording.get():
            return function(*args, **kwargs)
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda x: x is None)
        arrays = [x for x in leaves if isinstance(x, jax.Array)]
        if not arrays:
            return function(*args, **kwargs)

        def inner(*given: jax.Array) -> T:
            rest = iter(given)
            filled = [next(rest) if isinstance(x, jax.Array) else x for x in leaves]
            own, named = jax.tree.unflatten(tree, filled)
            return function(*own, **named)  # pyright: ignore[reportCallIssue]

        inner.__name__ = inner.__qualname__ = f"{PREFIX}{len(CALLS)}"
        kept = [_ARRAY if isinstance(x, jax.Array) else x for x in leaves]
        CALLS.append(Call(function.__name__, kept, tree))
        return jax.jit(inner)(*arrays)

    return call


_ARRAY = object()


def filled(call: Call, arrays: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with these values in place of its arrays."""
    rest = iter(arrays)
    return jax.tree.unflatten(call.tree, [next(rest) if x is _ARRAY else x for x in call.leaves])
