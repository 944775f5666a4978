"""Recipes by name, for configuration files and command lines."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable

from adamx import recipes
from adamx.core import Transformation
from adamx.errors import as_given

__all__ = ["get_recipe", "list_recipes"]


def get_recipe(name: str) -> Callable[..., Transformation]:
    """The recipe of this name; call it with its arguments.

    The names are those that ``adamx.recipes`` exports; :func:`list_recipes` lists them.

    Args:
        name: as in the import, ``"adam"`` for :func:`adamx.adam`.

    Raises:
        ValueError: for a name that no recipe has, with the nearest ones.

    >>> adamx.get_recipe("sgd")(0.1) == adamx.sgd(0.1)
    True
    """
    if not isinstance(name, str):
        raise TypeError(f"adamx.get_recipe takes the name of a recipe, got {as_given(name)}")
    if name in recipes.__all__:
        return getattr(recipes, name)
    near = difflib.get_close_matches(name.lower(), recipes.__all__, n=5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {_all()}"
    raise ValueError(f"there is no recipe {name!r}; {hint}")


def list_recipes(pattern: str = "*") -> list[str]:
    """The names of the recipes that match a shell pattern, sorted.

    Args:
        pattern: with ``*`` for anything, ``?`` for one character, ``[ab]`` for a choice.

    >>> adamx.list_recipes("ada[gm]*d")
    ['adagrad']
    """
    return sorted(fnmatch.filter(recipes.__all__, pattern))


def _all() -> str:
    return ", ".join(list_recipes())
