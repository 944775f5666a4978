"""What stands in a jaxpr."""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["called", "inner", "primitives"]

CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"))
"""Primitives that run a jaxpr once."""


def inner(equation: Any) -> Any:
    """The jaxpr of an equation that runs one, once or in another way, as a loop does; or None."""
    given = equation.params
    return given.get("call_jaxpr") or given.get("jaxpr") or given.get("fun_jaxpr")


def called(equation: Any) -> Any:
    """The jaxpr that an equation runs once, with its own inputs and results; or None."""
    return inner(equation) if equation.primitive.name in CALLS else None


def primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives of a jaxpr, and of those that its equations call."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves([*equation.params.values()], is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                found |= primitives(getattr(value, "jaxpr", value))
    return found


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
