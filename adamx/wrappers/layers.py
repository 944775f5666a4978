"""Run stages on each layer of a stack, as ``nn.scan`` makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx.core import Refresh, Rule, Signal, Slot, StageError, Step, Transformation
from adamx.core.transformation import links_of
from adamx.errors import as_given
from adamx.links.link import Around
from adamx.links.slots import Slots, zeros
from adamx.numerics import random
from adamx.trees.paths import Leaf
from adamx.wrappers.selection import Selector, Where

__all__ = ["per_layer"]


def per_layer(
    selector: Selector, opt: optax.GradientTransformation, *, axis: int = 0
) -> Transformation:
    r"""Treat each layer of a stacked parameter as a parameter of its own.

    A loop over layers (``nn.scan``, ``nnx.scan``, ``jax.lax.scan``) keeps the parameters of all
    layers in one array with an axis of layers. A stage that uses the norm or the shape of a whole
    array (LAMB's ratio, Adafactor's factors, adaptive clipping, an orthogonal update) would take
    the stack for one large parameter. Inside ``per_layer``, it runs on each layer, by ``vmap``, and
    the updates are those of a model without the loop. Stages of single elements do not change.
    Parameters that the selector does not match have the same stages without the layers. A sum over
    all parameters, as in clipping by the global norm, stays one sum.

    Args:
        selector: the stacked parameters, see :func:`adamx.where`.
        opt: a chain or a recipe, for these and all other parameters.
        axis: the axis of the layers.

    Raises:
        TypeError: for an argument that is no selector or no transformation.
        ValueError: for an axis that is no whole number ≥ 0.
        StageError: from ``init``, for a stacked parameter without this axis, and for an Optax
            transformation inside.

    >>> params = {"blocks": jnp.stack([jnp.ones(3), jnp.full(3, 2.0)]), "head": jnp.ones(3)}
    >>> opt = adamx.per_layer("blocks", adamx.chain(adamx.trust_ratio(), adamx.sgd(0.1)))
    >>> grads = {"blocks": jnp.ones((2, 3)), "head": jnp.ones(3)}
    >>> print(opt.update(grads, opt.init(params), params)[0]["blocks"])
    [[-0.1 -0.1 -0.1]
     [-0.2 -0.2 -0.2]]
    """
    links = links_of(opt, "per_layer")
    around = Layers(selector, axis)
    return Transformation(tuple(link.within(around) for link in links))


class Layers(Around, axis="per_layer"):
    """The stacked parameters, and the axis of their layers."""

    required = ("per_layer",)
    optional = ("axis",)
    varies = True
    value: tuple[Where, int]

    def __init__(self, selector: Selector, layers: int = 0):
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise ValueError(
                f"per_layer(): axis must be a whole number ≥ 0, got {as_given(layers)}"
            )
        super().__init__((Where(selector), layers))

    def choose(
        self, leaves: Sequence[Leaf], inside: str = "", idle: Collection[str] | None = None
    ) -> list[bool]:
        return self.value[0].choose(leaves, inside, idle)

    def inside(self, leaf: Leaf) -> Leaf:
        (where, axis), (path, shape) = self.value, leaf
        if len(shape.shape) <= axis:
            raise StageError(
                f"per_layer({where}) takes axis {axis} for the layers, and this parameter has the "
                f"shape {shape.shape}; select only parameters of stacked layers"
            ).within(parameter=path)
        return path, _of_layer(shape, axis)

    def surround(self, rule: Rule) -> Rule:
        mapped = _Mapped(rule, self.value[1])
        return dataclasses.replace(
            rule,
            update=mapped.update,
            slots={name: mapped.start(Slot.of(slot)) for name, slot in rule.slots.items()},
            global_sum=mapped.global_sum if rule.global_sum else None,
            refresh=mapped.refresh if rule.refresh else None,
            reshape=mapped.reshape if rule.reshape else None,
            own=mapped.own if rule.own else None,
            # A shard may hold some of the layers, or a part of each.
            reach="array" if rule.reach == "sums" else rule.reach,
        )

    def admit(self, name: str, kept: Any) -> None:
        raise StageError(
            f"per_layer() can't map the Optax transformation {name} over layers; use a stage or a "
            "recipe of adamx, or put it outside"
        )

    def written(self, inside: Sequence[tuple[Any, str]]) -> str:
        ((_, links),) = inside
        where, axis = self.value
        return f"per_layer({where}, {links}{f', axis={axis}' if axis else ''})"

    def to_json(self, write: Callable[[Any, str], Any]) -> dict[str, Any]:
        where, axis = self.value
        return {"per_layer": where.to_json(write)["where"], **({"axis": axis} if axis else {})}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Layers:
        where = Where.from_json({"where": row["per_layer"]}, read)
        return cls(where.value, row.get("axis", 0))

    def __reduce__(self) -> tuple[Any, ...]:
        where, axis = self.value
        return type(self), (where.value, axis)


def _of_layer(shape: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*shape.shape[:axis], *shape.shape[axis + 1 :]), shape.dtype)


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """What a stage inside has left for later ones, if it differs between layers.

    Attributes:
        arrays: the arrays of all layers.
        axes: for each array the axis of the layers; None if they share it.
        tree: the structure of the value of one layer.
    """

    arrays: list[Any]
    axes: tuple[int | None, ...]
    tree: Any


jax.tree_util.register_dataclass(PerLayer, ["arrays"], ["axes", "tree"])


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A rule that runs on each layer."""

    rule: Rule
    axis: int

    def start(self, slot: Slot) -> Slot:
        """The slot's first value for all layers."""
        if slot.start is zeros:  # which are like the parameter, and placed like it
            return slot

        def first(param: Any) -> Any:
            axes = self.axes_of(slot, param.shape)
            if not isinstance(param, jax.ShapeDtypeStruct):
                return jax.vmap(slot.start, self.axis, axes)(param)
            one = slot.start(_of_layer(param, self.axis))  # all layers start from the same value
            count = param.shape[self.axis]
            return jax.vmap(lambda _: one, axis_size=count, out_axes=axes)(jnp.zeros(count))

        return dataclasses.replace(slot, start=first)

    def reshape(self, shape: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        assert self.rule.reshape is not None
        made = self.rule.reshape(self.of_one(shape), self.of_one(whole))
        return (*made[: self.axis], shape[self.axis], *made[self.axis :])

    def own(self, path: str, shape: jax.ShapeDtypeStruct, extra: Mapping[str, Any]) -> Any:
        assert self.rule.own is not None
        return self.rule.own(path, _of_layer(shape, self.axis), extra)

    def global_sum(self, signal: Signal, slots: Slots, step: Step) -> Any:
        assert self.rule.global_sum is not None
        of_each = self.on_layers(self.rule.global_sum, signal, slots, step, 0)
        return jax.tree.map(lambda x: jnp.sum(x, 0), of_each)

    @property
    def refresh(self) -> Refresh:
        """The rule's computation for all layers, which are the first of the leading axes."""
        assert self.rule.refresh is not None
        given = self.rule.refresh.given
        return dataclasses.replace(
            self.rule.refresh,
            given=lambda signal, slots, step: self.on_layers(given, signal, slots, step, 0),
        )

    def update(self, signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        """The rule's update on all layers.

        The layers share the numbers that the rule leaves for later stages, such as the bias, unless
        a number differs between layers.
        """
        try:
            return self.updated(signal, slots, step, shares=True)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
        return self.updated(signal, slots, step, shares=False)

    def updated(
        self, signal: Signal, slots: Slots, step: Step, *, shares: bool
    ) -> tuple[Signal, Slots]:
        """The update on all layers.

        The result of a layer is sorted into arrays like the update, other arrays, and numbers, as
        ``vmap`` must know in advance where the layers are in each of them.
        """
        places = {"array": self.axis, "layers": 0, "shared": None}
        kinds: list[str] = []
        kept: list[str] = []
        tree: Any = None

        def of_one(signal: Signal, slots: Slots, step: Step) -> Any:
            nonlocal kinds, kept, tree
            made, after = self.rule.update(signal, slots, step)
            kept = [name for name, x in made.notes.items() if x is signal.notes.get(name)]
            new = {name: x for name, x in made.notes.items() if name not in kept}
            arrays, tree = jax.tree.flatten((dataclasses.replace(made, notes={}), new))
            number = "shared" if shares else "layers"
            kinds = [
                "array" if x.shape == made.update.shape else "layers" if x.ndim else number
                for x in arrays
            ]
            of_kind = {
                kind: [x for x, own in zip(arrays, kinds, strict=True) if own == kind]
                for kind in places
            }
            return of_kind, after

        out_axes = places, self.slot_axes(signal.update.shape)
        of_kind, after = self.on_layers(of_one, signal, slots, step, out_axes)
        found = {kind: iter(arrays) for kind, arrays in of_kind.items()}
        made, new = jax.tree.unflatten(tree, [next(found[kind]) for kind in kinds])
        _, kinds_of = jax.tree.unflatten(tree, kinds)
        notes = {name: signal.notes[name] for name in kept}
        for name, note in new.items():
            arrays, inner = jax.tree.flatten(note)
            own = jax.tree.leaves(kinds_of[name])
            is_plain = own == ["array"] or {*own} <= {"shared"}
            axes = tuple(places[kind] for kind in own)
            notes[name] = note if is_plain else PerLayer(arrays, axes, inner)
        bias = made.bias  # the same in every layer
        bias = bias[0] if bias is not None and jnp.ndim(bias) else bias
        return dataclasses.replace(made, bias=bias, notes=notes, whole=signal.whole), after

    def on_layers(
        self,
        function: Callable[[Signal, Slots, Step], Any],
        signal: Signal,
        slots: Slots,
        step: Step,
        out_axes: Any,
    ) -> Any:
        """A function of one array on all layers."""
        whole, shape = signal.whole, signal.update.shape
        count = whole[self.axis]
        if shape[self.axis : self.axis + 1] != (count,):
            raise StageError(
                f"per_layer() takes axis {self.axis} for the layers, and an earlier stage has "
                f"turned the array of shape {whole} into one of shape {shape}; put this stage into "
                "per_layer(), too"
            )
        for x in jax.tree.leaves(step.own):
            if jnp.ndim(x) and jnp.shape(x)[0] != count:
                raise StageError(
                    f"an argument for this parameter has the shape {jnp.shape(x)}; inside "
                    f"per_layer(), its first axis is that of the {count} layers"
                )

        def axis_of(x: Any) -> int | None:
            return self.axis if jnp.shape(x) == shape else None

        def layered(note: Any) -> PerLayer:
            if isinstance(note, PerLayer):
                return note
            arrays, tree = jax.tree.flatten(note)
            return PerLayer(arrays, tuple(map(axis_of, arrays)), tree)

        notes = {name: layered(note) for name, note in signal.notes.items()}
        bare = dataclasses.replace(signal, notes={})

        def of_one(
            signal: Signal, notes: Any, slots: Slots, own: Any, refreshed: Any, layer: Any
        ) -> Any:
            left = {
                name: jax.tree.unflatten(note.tree, note.arrays) for name, note in notes.items()
            }
            signal = dataclasses.replace(signal, whole=self.of_one(whole), notes=left)
            keys = {
                name: random.of_parameter(step.clock[name], layer, "layer")
                for name, clock in self.rule.clocks.items()
                if clock.of_parameter is random.of_parameter
            }
            return function(signal, slots, Step({**step.clock, **keys}, step.total, own, refreshed))

        in_axes = (
            jax.tree.map(axis_of, bare),
            {k: dataclasses.replace(x, arrays=list(x.axes)) for k, x in notes.items()},
            self.slot_axes(shape),
            jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, step.own),
            0,
            0,
        )
        layers = jnp.arange(count, dtype=jnp.uint32)
        return jax.vmap(of_one, in_axes, out_axes)(
            bare, notes, slots, step.own, step.refreshed, layers
        )

    def of_one(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one layer of a stack."""
        return (*shape[: self.axis], *shape[self.axis + 1 :])

    def slot_axes(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The axes of the layers in the slots of an array of this shape."""
        return {k: self.axes_of(Slot.of(x), shape) for k, x in self.rule.slots.items()}

    def axes_of(self, slot: Slot, shape: tuple[int, ...]) -> Any:
        """The axis of the layers in a slot: that of the array, if its layers have its shape."""
        if self.axis == 0:
            return 0
        one = jax.ShapeDtypeStruct(self.of_one(shape), jnp.float32)
        kept = jax.eval_shape(slot.start, one)
        return jax.tree.map(lambda x: self.axis if x.shape == one.shape else 0, kept)
