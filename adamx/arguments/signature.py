"""The arguments of a stage or a recipe: names, defaults and domains, and how they are checked."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from adamx.arguments import hyper
from adamx.arguments.spellings import spelled_here
from adamx.errors import as_given
from adamx.identity.reads import is_library
from adamx.numerics.per_parameter import marked

__all__ = ["Signature"]


class Signature:
    """What a function of hyperparameters takes, read off its annotations.

    An argument annotated as a hyperparameter (``b1: Decay``) is checked against its domain; one
    that may also be None (``momentum: Decay | None``) is checked unless it is. A ``bool`` must be
    one, and a ``float`` can't be a schedule. All others stay as they were given.

    Raises:
        TypeError: for ``*args``, ``**kwargs`` and positional-only arguments, and for an annotation
            that can't be read.
    """

    def __init__(self, factory: Callable[..., Any]):
        self.name: str = factory.__name__
        self.factory = factory
        self.signature: inspect.Signature = inspect.signature(factory)
        try:
            hints = get_type_hints(factory, include_extras=True)
        except (NameError, AttributeError) as error:
            raise TypeError(
                f"{self.name}: an annotation can't be read: {error}; the names in it must be "
                "defined in the module of the function"
            ) from error
        self.domains: dict[str, hyper.Domain] = {}
        self.optional: list[str] = []  # hyperparameters that may be None
        # Those that may be functions of a path and a shape, and their values for no parameter.
        self.per_parameter: dict[str, Any] = {}
        self.switches: list[str] = []
        self.plain: list[str] = []
        self._template: dict[str, Any] = {}  # every argument's default, empty where there is none
        self._positional: list[str] = []
        for name, parameter in self.signature.parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(
                    f"{self.name}: arguments must be accepted by name, and {parameter} has none"
                )
            hint = hints.get(name, type(parameter.default))
            domain = hyper.domain_of(hint)
            if domain is None:
                domain = next(filter(None, map(hyper.domain_of, get_args(hint))), None)
                if domain is not None:
                    self._check_optional(name, hint)
                    self.optional.append(name)
            if (mark := marked(hint)) is not None:
                self.per_parameter[name] = mark.otherwise
            if domain is not None:
                self.domains[name] = domain
            elif name in hints and hint is bool:
                self.switches.append(name)
            elif hint is float:
                self.plain.append(name)
            self._template[name] = parameter.default
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                self._positional.append(name)

    def _check_optional(self, name: str, hint: Any) -> None:
        """An error if an argument may be something else beside a hyperparameter or None."""
        if len(get_args(hint)) != 2 or type(None) not in get_args(hint):
            raise TypeError(
                f"{self.name}: {name} is annotated as a hyperparameter or something else; let it "
                "be a number, and a number (0.0, say) switch it off, or None"
            )

    def checked(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments by name, in the order of the function's, with their defaults.

        Raises:
            TypeError: for an argument that there is not, or one too many or too few; for one of a
                type that can't work.
            ValueError: for a number outside its domain.
        """
        given = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional) or not given.keys().isdisjoint(kwargs):
            raise TypeError(self._misplaced(args, kwargs))
        found = {**self._template, **given, **kwargs}
        if len(found) > len(self._template):
            raise TypeError(self._unknown(kwargs))
        if missing := [name for name, value in found.items() if value is inspect.Parameter.empty]:
            raise TypeError(f"{self.name}() needs {' and '.join(missing)}")
        try:
            self._check(found)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        return found

    def __fingerprint__(self) -> Any:
        module = self.factory.__globals__["__name__"]
        is_fixed = is_library(module) and self.factory.__closure__ is None
        return f"{module}.{self.factory.__qualname__}" if is_fixed else self.factory

    def _check(self, arguments: dict[str, Any]) -> None:
        for name, domain in self.domains.items():
            if arguments[name] is not None or name not in self.optional:
                arguments[name] = hyper.canonical(name, arguments[name], domain)
        for name in self.switches:
            if not isinstance(arguments[name], bool):
                raise TypeError(f"{name} must be True or False, got {as_given(arguments[name])}")
        for name in self.plain:
            if callable(arguments[name]):
                raise TypeError(
                    f"{name} can't be a schedule: it is not annotated as a hyperparameter "
                    "(adamx.core.Real, NonNegative, Positive, Decay), so it is a part of the "
                    f"stage's structure, one number; got {hyper.show(arguments[name])}"
                )

    def _misplaced(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        twice = [name for name, _ in zip(self._positional, args, strict=False) if name in kwargs]
        if twice:
            return f"{self.name}(): {' and '.join(twice)} is given twice, by position and by name"
        by_name = [name for name in self.signature.parameters if name not in self._positional]
        also = f"; by name it also takes {', '.join(by_name)}" if by_name else ""
        taken = ", ".join(self._positional) or "nothing"
        return f"{self.name}() takes {taken} by position, got {len(args)} arguments{also}"

    def _unknown(self, kwargs: Mapping[str, Any]) -> str:
        """What the first unknown argument is called here, or which names are near."""
        names = list(self._template)
        name, value = next((k, x) for k, x in kwargs.items() if k not in self._template)
        said = f"{self.name}(): there is no argument {name!r}"
        if here := spelled_here(name, value, names):
            return f"{said}; {here}"
        if near := difflib.get_close_matches(name.lower(), names, n=3):
            return f"{said}; did you mean {' or '.join(near)}?"
        return f"{said}; it takes {', '.join(names) or 'none'}"
