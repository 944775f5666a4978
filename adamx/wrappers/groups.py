"""Groups of parameters: stages for some parameters, and a chain for each group."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import optax

from adamx.core import Transformation, chain
from adamx.core.transformation import links_of
from adamx.errors import described
from adamx.links.link import Around, choose, variants
from adamx.numerics.types import PyTree
from adamx.trees.arrays import as_parameter
from adamx.trees.paths import paths_of
from adamx.wrappers.selection import Part, Selector, Where

__all__ = ["PartitionSummary", "describe_partition", "partition", "where"]


def where(selector: Selector, transformation: optax.GradientTransformation) -> Transformation:
    """Apply stages to some of the parameters only; the signals of the others do not change.

    ``where(s, chain(a, b))`` is ``chain(where(s, a), where(s, b))``, and a selection inside another
    chooses among the parameters that the outer one has chosen. Slots are kept for the chosen
    parameters, and are ``None`` for the others; an Optax transformation gets and keeps
    ``optax.MaskedNode()`` for them, as in ``optax.masked``. A stage's sum over all parameters (a
    global norm) is a sum over the chosen ones. In the state and in :func:`adamx.hyperparams` the
    stages are called ``stage@group``.

    The update of a parameter that is not chosen does not change. With
    ``where("head", adamw(1e-3))`` alone, this update is the gradient, which ``apply_updates`` adds,
    as with ``optax.masked``. To train only the chosen parameters, set the other updates to zero:
    ``partition({"head": adamw(1e-3), "*": set_to_zero()})``.

    Args:
        selector: a pattern, a tuple of patterns one of which must match, or a predicate
            ``(path, shape) -> bool`` of the path and the ``jax.ShapeDtypeStruct`` of a parameter.
            A path is written ``encoder/layers/0/kernel``. A pattern is one segment of a path or
            several consecutive ones. It matches at any depth, and everything below:
            ``"kernel"``, ``"encoder"``, ``"attention/*/bias"``; ``*`` matches any characters of a
            segment, ``**`` any number of segments. A leading slash anchors a pattern at the root; a
            leading ``!`` selects all other parameters. ``"layers[0]"`` is the same as
            ``"layers/0"``, and a path from an error message, ``"['layers'][0]['kernel']"``, is a
            pattern, too.
        transformation: stages, a recipe, or an Optax transformation.

    Raises:
        TypeError: for an invalid selector, or a predicate that takes other arguments.
        StageError: from ``init`` and ``update``, if a pattern (each one of a tuple, also behind a
            ``!``) matches no parameter, or if a predicate raises an error or does not return True
            or False.

    >>> opt = adamx.chain(
    ...     adamx.scale_by_momentum(),
    ...     adamx.where("kernel", adamx.add_decayed_weights(0.1)),
    ...     adamx.scale_by_learning_rate(1.0),
    ... )
    >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    >>> still = jax.tree.map(jnp.zeros_like, params)
    >>> opt.update(still, opt.init(params), params)[0]
    {'bias': Array([-0., -0.], dtype=float32), 'kernel': Array([-0.1, -0.1], dtype=float32)}
    """
    return _within(Where(selector), transformation, "where")


def partition(
    transformations: Mapping[Selector, optax.GradientTransformation],
) -> Transformation:
    """A chain for each group of parameters; a parameter is in the first group that matches it.

    Args:
        transformations: a dict from a selector (see :func:`where`) to the group's transformation;
            ``"*"`` as the last selector matches all remaining parameters, and ``set_to_zero()``
            leaves parameters unchanged. :func:`describe_partition` shows each parameter's chain.

    Stages in front of a partition apply to all parameters, including those with ``set_to_zero()``:
    the norm of ``clip_by_global_norm`` includes their gradients unless it applies to the others
    only, ``chain(where("!encoder", clip_by_global_norm(1.0)),
    partition({"encoder": set_to_zero(), …}))``.

    Raises:
        TypeError: for an invalid selector or transformation.
        ValueError: for a partition without groups.
        StageError: from ``init`` and ``update``, for parameters that no selector matches, for a
            pattern that matches no parameter, and for a group without parameters because earlier
            groups take all that it matches. The last group, ``"*"``, may be empty.

    >>> opt = adamx.partition({
    ...     "embedding": adamx.sgd(0.1),
    ...     ("kernel", "scale"): adamx.adamw(1e-3),
    ...     "*": adamx.adam(1e-3),
    ... })
    >>> params = {"embedding": jnp.ones((5, 2)), "dense": {"kernel": jnp.ones((2, 2)),
    ...           "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    >>> print(adamx.describe_partition(opt, params))
    dense/bias [2]:
        chain(
            scale_by_momentum(b1=0.9),
            scale_by_rms(b2=0.999, eps=1e-08),
            bias_correction(),
            scale_by_learning_rate(learning_rate=0.001),
        )
    dense/kernel [2,2], norm/scale [2]:
        chain(
            scale_by_momentum(b1=0.9),
            scale_by_rms(b2=0.999, eps=1e-08),
            bias_correction(),
            add_decayed_weights(weight_decay=0.01),
            scale_by_learning_rate(learning_rate=0.001),
        )
    embedding [5,2]:
        scale_by_learning_rate(learning_rate=0.1)
    """
    if not isinstance(transformations, Mapping):
        raise TypeError(
            "partition() takes a dict from selectors to transformations, got "
            f"{described(transformations)}"
        )
    if not transformations:
        raise ValueError(
            "partition() without groups would return the gradients unchanged; name a group, or "
            "give '*' a transformation for all parameters"
        )
    selectors = tuple(transformations)
    return chain(
        *(
            _within(Part(selectors, index), transformation, "partition")
            for index, transformation in enumerate(transformations.values())
        )
    )


def _within(chosen: Around, transformation: Any, function: str) -> Transformation:
    links = links_of(transformation, function)
    return Transformation(tuple(link.within(chosen) for link in links))


class PartitionSummary(dict[str, Transformation]):
    """The chain of every parameter, by path; it prints each chain below its parameters."""

    def __init__(self, chains: Mapping[str, Transformation], shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(chains)
        self.shapes: dict[str, tuple[int, ...]] = dict(shapes)

    def __str__(self) -> str:
        members: dict[Transformation, list[str]] = {}
        for path, opt in self.items():
            shape = ",".join(map(str, self.shapes[path]))
            members.setdefault(opt, []).append(f"{path or '(the only one)'} [{shape}]")
        return "\n".join(
            f"{', '.join(paths)}:\n{textwrap.indent(repr(opt), '    ')}"
            for opt, paths in members.items()
        )


def in_two(
    selector: Selector,
    chosen: optax.GradientTransformation,
    others: optax.GradientTransformation,
) -> Transformation:
    """One transformation for the parameters that a selector matches, another for all others."""
    rest = {} if selector == "*" else {"*": others}
    return partition({selector: chosen, **rest})


def describe_partition(opt: Transformation, params: PyTree) -> PartitionSummary:
    """The chain of stages that applies to each parameter.

    Args:
        opt: a transformation that contains :func:`where` or :func:`partition`.
        params: the parameters, or their ``jax.ShapeDtypeStruct``.

    Returns:
        A dict from path to the parameter's own chain, with the values of arguments that are
        functions of path and shape, such as ``axes``. It prints each chain below its parameters.

    Raises:
        StageError: for the selectors and parameters for which ``init`` raises one.

    >>> opt = adamx.chain(adamx.sgd(0.1), adamx.where("!bias", adamx.polyak_ema()))
    >>> adamx.describe_partition(opt, {"w": jnp.ones(2), "bias": jnp.ones(1)})["bias"]
    scale_by_learning_rate(learning_rate=0.1)
    """
    found, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = paths_of(tree, [as_parameter(path, x) for path, x in found])
    chosen = choose(opt.links, lambda: leaves)
    columns = [
        variants(link, len(leaves), here, lambda: leaves)
        for link, here in zip(opt.links, chosen, strict=True)
    ]
    chains = {
        path: Transformation(
            tuple(
                own[i].everywhere()
                for own, here in zip(columns, chosen, strict=True)
                if here is None or here[i]
            )
        )
        for i, (path, _) in enumerate(leaves)
    }
    return PartitionSummary(chains, {path: shape.shape for path, shape in leaves})
