"""The decorator for recipes, and functions that find recipes by name."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable
from typing import ParamSpec, cast

from adamx.arguments.signature import Signature
from adamx.core import Transformation
from adamx.errors import as_given

__all__ = ["get_recipe", "list_recipes", "recipe"]

P = ParamSpec("P")

_RECIPES: dict[str, Callable[..., Transformation]] = {}


def recipe(factory: Callable[P, Transformation]) -> Callable[P, Transformation]:
    """Make a function that returns a chain into a recipe.

    Arguments annotated as hyperparameters (:data:`~adamx.core.Decay`,
    :data:`~adamx.core.NonNegative`, …) are checked when the recipe is called, and errors name the
    recipe and its argument. One that may also be None is annotated ``Decay | None``. The recipe is
    registered under its name: :func:`get_recipe` and :func:`list_recipes` find it.

    Args:
        factory: takes hyperparameters and returns a :class:`Transformation`.

    Returns:
        The same function, which checks its arguments.

    Raises:
        TypeError: for ``*args``, ``**kwargs`` and positional-only arguments, for an annotation that
            can't be read, and from a call in which the factory returns no transformation.
        ValueError: if another module has a recipe of this name.

    >>> from adamx.core import Decay, NonNegative
    >>> @adamx.recipe
    ... def clipped_momentum(learning_rate: NonNegative, b1: Decay = 0.9):
    ...     step = adamx.scale_by_learning_rate(learning_rate)
    ...     return adamx.chain(adamx.scale_by_momentum(b1), adamx.clip_by_norm(1.0), step)
    >>> adamx.get_recipe("clipped_momentum")(0.1)
    chain(
        scale_by_momentum(b1=0.9),
        clip_by_norm(max_norm=1.0),
        scale_by_learning_rate(learning_rate=0.1),
    )
    >>> clipped_momentum(0.1, b1=2.0)
    Traceback (most recent call last):
    ValueError: clipped_momentum: b1 must be a decay rate in [0, 1), got 2.0
    """
    signature, made = Signature(factory), cast(Callable[..., Transformation], factory)
    known = _RECIPES.get(signature.name)
    if known is not None and known.__module__ != factory.__module__:
        raise ValueError(
            f"there is a recipe {signature.name!r} already, in {known.__module__}; give this one "
            "another name"
        )

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Transformation:
        opt = made(**signature.checked(*args, **kwargs))
        if not isinstance(opt, Transformation):
            raise TypeError(
                f"the recipe {signature.name} returned {as_given(opt)}, where a transformation is "
                "needed: return chain(…)"
            )
        return opt

    _RECIPES[signature.name] = make
    return make


def get_recipe(name: str) -> Callable[..., Transformation]:
    """The recipe of this name; call it with its arguments.

    :func:`list_recipes` lists the names. A function decorated with :func:`recipe` has one too.

    Args:
        name: as in the import, ``"adam"`` for :func:`adamx.adam`.

    Raises:
        TypeError: for something that is no name.
        ValueError: for a name that no recipe has, with the nearest ones.

    >>> adamx.get_recipe("sgd")(0.1) == adamx.sgd(0.1)
    True
    """
    if not isinstance(name, str):
        raise TypeError(f"adamx.get_recipe takes the name of a recipe, got {as_given(name)}")
    if name in _RECIPES:
        return _RECIPES[name]
    near = difflib.get_close_matches(name.lower(), _RECIPES, n=5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {_all()}"
    raise ValueError(f"there is no recipe {name!r}; {hint}")


def list_recipes(pattern: str = "*") -> list[str]:
    """The names of the recipes that match a shell pattern, sorted.

    Args:
        pattern: with ``*`` for anything, ``?`` for one character, ``[ab]`` for a choice.

    >>> adamx.list_recipes("ada[gm]*d")
    ['adagrad']
    """
    return sorted(fnmatch.filter(_RECIPES, pattern))


def _all() -> str:
    return ", ".join(list_recipes())
