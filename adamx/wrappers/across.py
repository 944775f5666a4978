"""Say along which mesh axes parameters are divided, inside ``shard_map`` and ``pmap``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import optax

from adamx.core import Transformation
from adamx.core.transformation import links_of
from adamx.errors import as_given
from adamx.links.link import Around
from adamx.trees.paths import Leaf
from adamx.wrappers.selection import Selector, Where

__all__ = ["across"]


def across(
    axes: str | tuple[str, ...], opt: optax.GradientTransformation, *, selector: Selector = "*"
) -> Transformation:
    r"""Say that parameters are divided over devices, where their types do not say it.

    Inside ``jax.shard_map``, ``update`` gets a shard of each divided parameter. Norms and other
    sums of an array are then summed over its shards, sums over all parameters too, and the shards
    get different random bits. A shard's type names the mesh axes along which it is divided, so
    ``across`` is not needed. It is with ``shard_map(…, check_vma=False)`` and in ``pmap``, where
    types do not tell, and every parameter would be taken for a whole one. Put it around the whole
    chain, clipping included.

    It also says the opposite: ``across((), opt)`` takes parameters for whole ones whose types vary
    because each device trains its own (an ensemble, or local steps between averages).

    What it says of a parameter counts, not the type. Outside of ``shard_map`` and ``pmap``, it
    changes nothing.

    Args:
        axes: the name of a mesh axis, or several; ``()`` for parameters that are not divided.
        opt: a chain or a recipe, for these and all other parameters.
        selector: the divided parameters, see :func:`adamx.where`.

    Raises:
        TypeError: for an argument that is no name, no selector or no transformation.

    >>> import functools
    >>> from jax.sharding import PartitionSpec
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("x",))
    >>> opt = adamx.across("x", adamx.lamb(0.1))
    >>> @functools.partial(jax.shard_map, mesh=mesh, check_vma=False, in_specs=PartitionSpec("x"),
    ...                    out_specs=PartitionSpec("x"))
    ... def first_update(params):
    ...     return opt.update(params, opt.init(params), params)[0]
    >>> first_update(jnp.array([3.0, 4.0])).round(3)  # ‖u‖ is a tenth of ‖θ‖, of the whole array
    Array([-0.354, -0.354], dtype=float32)
    """
    names = (axes,) if isinstance(axes, str) else axes
    if not isinstance(names, tuple) or not all(isinstance(x, str) for x in names):
        raise TypeError(
            f"across(): axes must be the name of a mesh axis or a tuple of names, got "
            f"{as_given(axes)}"
        )
    around = Across(names, selector)
    links = links_of(opt, "across")
    return Transformation(tuple(link.within(around) for link in links))


class Across(Around, axis="across"):
    """The divided parameters, and the mesh axes along which they are divided."""

    required = ("across",)
    optional = ("selector",)
    varies = True
    reach = "element"
    value: tuple[tuple[str, ...], Where]

    def __init__(self, axes: tuple[str, ...], selector: Selector = "*"):
        super().__init__((axes, Where(selector)))

    @property
    def shards(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.value[0]

    def choose(
        self, leaves: Sequence[Leaf], inside: str = "", idle: Collection[str] | None = None
    ) -> list[bool]:
        return self.value[1].choose(leaves, inside, idle)

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        ((_, links),) = inside
        axes, where = self.value
        selector = "" if where.value == "*" else f", selector={where}"
        named = repr(axes[0] if len(axes) == 1 else axes)
        return f"across({named}, {links}{selector})"

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        axes, where = self.value
        return {"across": list(axes), "selector": where.to_json(write)["where"]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Across:
        where = Where.from_json({"where": row.get("selector", "*")}, read)
        return cls(tuple(row["across"]), where.value)

    def __reduce__(self) -> tuple[Any, ...]:
        axes, where = self.value
        return type(self), (axes, where.value)
