"""Run stages on each layer of a stack, as ``nn.scan`` makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx.core import Rule, Signal, Slot, StageError, Step, Transformation
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

    def check_leaf(self, leaf: Leaf) -> None:
        (where, axis), (path, shape) = self.value, leaf
        if len(shape.shape) <= axis:
            raise StageError(
                f"per_layer({where}) takes axis {axis} for the layers, and this parameter has the "
                f"shape {shape.shape}; select only parameters of stacked layers"
            ).within(parameter=path)

    def surround(self, rule: Rule) -> Rule:
        if rule.reach == "element":
            return rule
        mapped = _Mapped(rule, self.value[1])
        return dataclasses.replace(
            rule,
            update=mapped.update,
            slots={name: mapped.start(Slot.of(slot)) for name, slot in rule.slots.items()},
            global_sum=mapped.global_sum if rule.global_sum else None,
            reshape=mapped.reshape if rule.reshape else None,
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
            if isinstance(param, jax.ShapeDtypeStruct):  # the values in another basis are unknown
                param = jnp.zeros(param.shape, param.dtype)
            return jax.vmap(slot.start, self.axis, axes)(param)

        return dataclasses.replace(slot, start=first)

    def reshape(self, shape: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        assert self.rule.reshape is not None
        made = self.rule.reshape(self.of_one(shape), self.of_one(whole))
        return (*made[: self.axis], shape[self.axis], *made[self.axis :])

    def global_sum(self, signal: Signal, slots: Slots, step: Step) -> Any:
        assert self.rule.global_sum is not None
        of_each = self.on_layers(self.rule.global_sum, signal, slots, step, 0)
        return jax.tree.map(lambda x: jnp.sum(x, 0), of_each)

    def update(self, signal: Signal, slots: Slots, step: Step) -> tuple[Signal, Slots]:
        """The rule's update on all layers.

        The layers share the numbers that the rule leaves for later stages, such as the bias. A
        number that differs between layers becomes an array of one number for each layer.
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
        """The update on all layers, whose numbers for later stages are shared or stacked."""
        axes = {"array": self.axis, "layers": 0, "shared": None}
        kinds: list[str] = []
        tree: Any = None

        def of_one(signal: Signal, slots: Slots, step: Step) -> Any:
            nonlocal kinds, tree
            made, after = self.rule.update(signal, slots, step)
            arrays, tree = jax.tree.flatten(made)
            number = "shared" if shares else "layers"
            kinds = [
                "array" if x.shape == made.update.shape else "layers" if x.ndim else number
                for x in arrays
            ]
            of_kind = {
                kind: [x for x, own in zip(arrays, kinds, strict=True) if own == kind]
                for kind in axes
            }
            return of_kind, after

        out_axes = axes, self.slot_axes(signal.update.shape)
        of_kind, after = self.on_layers(of_one, signal, slots, step, out_axes)
        found = {kind: iter(arrays) for kind, arrays in of_kind.items()}
        made = jax.tree.unflatten(tree, [next(found[kind]) for kind in kinds])
        bias = (
            made.bias[0] if made.bias is not None and jnp.ndim(made.bias) else made.bias
        )  # of every layer the same
        return dataclasses.replace(made, bias=bias, whole=signal.whole), after

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

        def axis_of(x: Any) -> int | None:
            if jnp.shape(x) == shape:
                return self.axis
            return 0 if jnp.ndim(x) and jnp.shape(x)[0] == count else None

        def of_one(signal: Signal, slots: Slots, own: Any, layer: Any) -> Any:
            signal = dataclasses.replace(signal, whole=self.of_one(whole))
            keys = {
                name: random.of_parameter(step.clock[name], layer, "layer")
                for name, clock in self.rule.clocks.items()
                if clock.of_parameter is random.of_parameter
            }
            return function(signal, slots, Step({**step.clock, **keys}, step.total, own))

        own_axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, step.own)
        in_axes = jax.tree.map(axis_of, signal), self.slot_axes(shape), own_axes, 0
        layers = jnp.arange(count, dtype=jnp.uint32)
        return jax.vmap(of_one, in_axes, out_axes)(signal, slots, step.own, layers)

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
