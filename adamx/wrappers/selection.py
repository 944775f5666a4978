"""Select parameters by their path in the tree, or by a predicate.

A path is written with slashes, ``encoder/layers/0/kernel``. A pattern consists of consecutive
segments. It matches them at any depth, and everything below them: ``kernel`` matches every kernel,
``encoder`` everything in an encoder, ``attention/*/bias`` the biases one level below an attention.
Within a segment, ``*`` matches any characters and ``?`` one; the segment ``**`` matches any number
of segments. A leading slash anchors the pattern at the root; a leading exclamation mark selects all
other parameters.

Brackets are an index, as in Python: ``layers[0]/kernel`` is ``layers/0/kernel``. A path as JAX
writes it in messages, ``.layers[0].kernel`` or ``['layers'][0]['kernel']``, is a pattern too.

A pattern that matches no parameter is an error; each pattern of a tuple is checked by itself.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, cast

import jax
import numpy as np

from adamx.arguments.hyper import origin
from adamx.errors import StageError, described
from adamx.links.link import Around
from adamx.trees.paths import Leaf
from adamx.trees.patterns import called, check_call, matches, runs

__all__ = ["Part", "Selector", "Where", "labelled", "shown"]

Selector: TypeAlias = str | tuple[str, ...] | Callable[[str, jax.ShapeDtypeStruct], bool]
"""A pattern, a tuple of patterns (one must match), or a predicate of a path and a shape."""


def checked(selector: Any) -> Selector:
    """The selector, checked."""
    patterns = selector if isinstance(selector, (tuple, list)) else (selector,)
    if callable(selector):
        check_call(selector, "a predicate", "(path, shape) -> bool", "", None)
        return cast(Selector, selector)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise TypeError(
            "a selector is a pattern like 'kernel' or 'encoder/*/bias', a tuple of patterns, or a "
            f"predicate (path, shape) -> bool; got {described(selector)}"
        )
    return patterns[0] if len(patterns) == 1 else tuple(patterns)


def selects(selector: Selector, leaf: Leaf) -> bool:
    """Whether the selector matches this parameter."""
    path, shape = leaf
    if not callable(selector):
        return any(matches(pattern, path) for pattern in _patterns(selector))
    try:
        answer = selector(path, shape)
    except Exception as error:
        raise StageError(
            f"the predicate {called(selector)} raised {type(error).__name__}: {error}. It is "
            "called as (path, shape) -> bool, with a string and a jax.ShapeDtypeStruct"
        ).within(parameter=path or "(the only one)") from error
    if not isinstance(answer, (bool, np.bool_)):
        raise StageError(
            f"the predicate {called(selector)} returned a {type(answer).__name__}, where True or "
            "False is needed; it is called as (path, shape) -> bool. Put bool(…) around what it "
            "returns, and ask of path and shape in Python or NumPy: jax.numpy gives traced arrays"
        ).within(parameter=path or "(the only one)")
    return bool(answer)


def _patterns(selector: Selector) -> tuple[str, ...]:
    """The patterns of a selector, one of which must match; none for a predicate."""
    if callable(selector):
        return ()
    return (selector,) if isinstance(selector, str) else selector


def shown(selector: Selector) -> str:
    """The selector as it is printed in the chain."""
    return f"<predicate {origin(selector)}>" if callable(selector) else repr(selector)


def labelled(selector: Selector) -> str:
    """A short name for a group, to be used as a key: ``kernel`` for ``*/kernel``."""
    if callable(selector):
        return origin(selector)
    patterns = (selector,) if isinstance(selector, str) else selector
    return "+".join(_word(pattern) for pattern in patterns)


def _word(pattern: str) -> str:
    word = re.sub(r"[^\w.\-]+", "_", pattern.replace("!", "not_", 1)).strip("_")
    return word or "rest"


class Where(Around, axis="where"):
    """The parameters that a selector matches."""

    required = ("where",)
    selects = True
    reach = "element"
    value: Selector

    def __init__(self, selector: Selector):
        super().__init__(checked(selector))
        self.label: str = labelled(self.value)

    def choose(
        self, leaves: Sequence[Leaf], inside: str = "", idle: Collection[str] | None = None
    ) -> list[bool]:
        if idle is None:
            _check_matches(self.value, leaves, inside)
        chosen = [selects(self.value, leaf) for leaf in leaves]
        if idle is None and leaves and not any(chosen) and not callable(self.value):
            raise _nothing(shown(self.value), leaves, inside)
        return chosen

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        ((_, links),) = inside
        return f"where({self}, {links})"

    def siblings(self) -> Sequence[tuple[Around | None, str]]:
        return [(self, str(self)), (None, f"not {self}")]

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        return {"where": _to_json(self.value, write, "")}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Where:
        return cls(_from_json(row["where"], read))

    def __str__(self) -> str:
        return shown(self.value)


class Part(Around, axis="partition"):
    """The parameters for which one of several selectors is the first that matches."""

    required = ("partition", "part")
    selects = True
    reach = "element"
    value: tuple[tuple[Selector, ...], int]

    def __init__(self, selectors: tuple[Selector, ...], index: int):
        super().__init__((tuple(map(checked, selectors)), index))
        self.label: str = labelled(self.value[0][index])

    def choose(
        self, leaves: Sequence[Leaf], inside: str = "", idle: Collection[str] | None = None
    ) -> list[bool]:
        selectors, index = self.value
        matches = [[selects(selector, leaf) for selector in selectors] for leaf in leaves]
        first = [row.index(True) if any(row) else None for row in matches]
        for i, selector in enumerate(selectors if idle is None else ()):
            if callable(selector) or labelled(selector) != "rest":  # '*' may match no parameter
                _check_matches(selector, leaves, inside)
                mine = [found for row, found in zip(matches, first, strict=True) if row[i]]
                if mine and i not in mine:
                    raise _shadowed(selectors, leaves, matches, first, i)
        missed = [path for (path, _), found in zip(leaves, first, strict=True) if found is None]
        if not set(missed) <= set(idle or ()):
            raise _uncovered(selectors, leaves, first, inside)
        return [found == index for found in first]

    @property
    def family(self) -> Any:
        return self.value[0]

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        links = {part.value[1]: links for part, links in inside}
        rows = [f"{shown(x)}: {links.get(i, 'chain()')},\n" for i, x in enumerate(self.value[0])]
        return f"partition({{\n{textwrap.indent(''.join(rows), '    ')}}})"

    def siblings(self) -> Sequence[tuple[Around | None, str]]:
        selectors, _ = self.value
        return [(Part(selectors, i), shown(x)) for i, x in enumerate(selectors)]

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        selectors, index = self.value
        written = [_to_json(x, write, f".partition[{i}]") for i, x in enumerate(selectors)]
        return {"partition": written, "part": index}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Part:
        written, index = row["partition"], row["part"]
        if not isinstance(written, list):
            raise TypeError(f"must be a list, got {written!r}")
        if index not in range(len(written)):
            raise TypeError(f"there is no part {index!r} of {len(written)}")
        return cls(tuple(_from_json(x, read) for x in written), index)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.value

    def __str__(self) -> str:
        selectors, index = self.value
        return shown(selectors[index])


def _to_json(selector: Selector, write: Callable[[Any, str], Any], where: str) -> Any:
    return list(selector) if isinstance(selector, tuple) else write(selector, where)


def _from_json(written: Any, read: Callable[[Any, str], Any]) -> Any:
    return tuple(written) if isinstance(written, list) else read(written, "")


def _check_matches(selector: Selector, leaves: Sequence[Leaf], inside: str) -> None:
    """Check that each pattern of a selector matches a parameter, also behind a ``!``."""
    for pattern in _patterns(selector) if leaves else ():
        bare = pattern.lstrip("!")
        if not any(matches(bare, path) for path, _ in leaves):
            raise _nothing(repr(bare), leaves, inside, selector, _near(bare, leaves))


def _near(pattern: str, leaves: Sequence[Leaf]) -> str | None:
    """A pattern with similarly spelled segments that matches a parameter."""
    there = {_folded(segment): segment for path, _ in leaves for segment in path.split("/")}

    def closest(segment: str) -> str:
        if set(segment) & set("*?"):
            return segment
        near = difflib.get_close_matches(_folded(segment), list(there), 1, 0.75)
        return there[near[0]] if near else segment

    front = "/" if pattern.startswith("/") else ""
    run = runs(pattern)[-1]
    dotted = [part for segment in run for part in segment.split(".") if part]
    for segments in (dotted, map(closest, dotted), map(closest, run)):  # a dot may mean a slash
        repaired = front + "/".join(segments)
        if any(matches(repaired, path) for path, _ in leaves):
            return repaired
    return None


def _folded(segment: str) -> str:
    """A segment without case and punctuation: ``LayerNorm`` and ``layer_norm`` are equal."""
    return re.sub(r"[\W_]+", "", segment.casefold())


def _nothing(
    pattern: str,
    leaves: Sequence[Leaf],
    inside: str,
    selector: Selector | None = None,
    near: str | None = None,
) -> StageError:
    whole = "" if selector is None or shown(selector) == pattern else f" (of {shown(selector)})"
    hint = f" Did you mean {near!r}?" if near else ""
    return StageError(
        f"pattern {pattern}{whole} matches no parameter{inside}.{hint} The parameters{inside} are "
        f"{_listed(leaves)}. A pattern names whole segments of a path: 'kernel' or '*kernel', "
        "'encoder/*'"
    )


def _shadowed(
    selectors: Sequence[Selector],
    leaves: Sequence[Leaf],
    matches: Sequence[Sequence[bool]],
    first: Sequence[int | None],
    index: int,
) -> StageError:
    rows = zip(leaves, matches, first, strict=True)
    taken = [(leaf, found) for leaf, row, found in rows if row[index] and found is not None]
    before = " and ".join(shown(selectors[i]) for i in sorted({found for _, found in taken}))
    return StageError(
        f"the group {shown(selectors[index])} gets no parameter: all that it matches "
        f"({_listed([leaf for leaf, _ in taken])}) are taken by {before}, in front of it. A "
        "parameter goes to the first group that matches it: put "
        f"{shown(selectors[index])} in front of {before}, or leave it out"
    )


def _uncovered(
    selectors: Sequence[Selector],
    leaves: Sequence[Leaf],
    first: Sequence[int | None],
    inside: str,
) -> StageError:
    def those(index: int | None) -> str:
        return _listed([leaf for leaf, found in zip(leaves, first, strict=True) if found == index])

    rows = [f"{shown(selector)}: {those(i)}" for i, selector in enumerate(selectors)]
    return StageError(
        f"the partition{inside} does not cover {those(None)}. It has {'; '.join(rows)}. Add "
        "a pattern for them, or '*' as the last pattern for all remaining parameters"
    )


def _listed(leaves: Sequence[Leaf], most: int = 8) -> str:
    paths = [path or "(the only one)" for path, _ in leaves]
    more = [f"… ({len(paths)} in all)"] if len(paths) > most else []
    return ", ".join(paths[:most] + more) or "nothing"


# Hidden matrices


# "multi_head" is an attention, and no head of the network.
_OUTER = re.compile(
    r"embed|(^|_)((un)?embs?|wte|wpe|pos|position(s|al)?|(?<!multi_)head|logits?|classifier|readout"
    r"|vocab|output_layer)(_|\d|$)"
)
_VECTORS = re.compile(
    r"(bias|scale|gain|gamma|beta|offset)(es|s)?|.*norm(_?\d*)?|(.*_)?ln(_.*|\d*)"
)
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def hidden_matrices(path: str, shape: jax.ShapeDtypeStruct) -> bool:
    """Whether a parameter is a matrix between two hidden layers, by its shape and its path.

    It has two axes or more, and no part of its path names

    * an embedding or the last layer: a part that contains ``embed``, or one of the words ``emb``,
      ``wte``, ``wpe``, ``pos``, ``position``, ``head`` (but not ``multi_head``), ``logits``,
      ``classifier``, ``readout``, ``vocab`` and ``output_layer``, as in ``lm_head`` or
      ``LMHead_0``;
    * a bias or a normalisation, whose arrays have two axes in a stack of layers or in an attention:
      a part ``bias``, ``scale``, ``gain``, ``gamma``, ``beta``, ``offset`` or ``ln``, or one that
      ends in ``norm``, as in ``LayerNorm_0``.

    A last layer with another name, such as ``Dense_3``, is not recognised: then pass a selector of
    your own, as in ``muon(0.02, rest=adamw(3e-4), matrices=("blocks/*/kernel",))``.

    It is a selector, see :func:`adamx.where`.

    >>> kernel, bias = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 3), (3,)))
    >>> hidden_matrices("block/dense/kernel", kernel), hidden_matrices("block/dense/bias", bias)
    (True, False)
    >>> hidden_matrices("lm_head/kernel", kernel)
    False
    """
    parts = [_CAPITAL.sub("_", part).lower() for part in path.split("/")]
    is_other = any(_OUTER.search(part) or _VECTORS.fullmatch(part) for part in parts)
    return len(shape.shape) >= 2 and not is_other
