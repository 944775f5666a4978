"""Optimisers as values: transformations, ``chain`` and ``@stage``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, ParamSpec, Self, get_args, overload

import jax
import optax

from adamx import engine
from adamx.core import editing
from adamx.errors import StageError, as_given
from adamx.links.foreign import Foreign
from adamx.links.link import Link
from adamx.links.naming import names, written
from adamx.links.order import Place, check_order
from adamx.links.rule import Reach, Rule
from adamx.links.signal import Signal
from adamx.links.stage import Definition, Takes
from adamx.numerics.types import PyTree, State
from adamx.trees.steps import Params, with_new

__all__ = ["Transformation", "chain", "stage"]

P = ParamSpec("P")


class Transformation(optax.GradientTransformationExtraArgs):
    """A chain of stages: an ``optax.GradientTransformationExtraArgs`` that is also a pytree.

    Its leaves are its hyperparameters, so it can be batched by ``vmap``, differentiated by
    ``grad`` and passed to a jitted function (new values do not recompile). Transformations with
    the same stages and hyperparameters are equal and have equal hashes.

    >>> import jax, adamx
    >>> adamx.sgd(0.1) == adamx.sgd(0.1), len({adamx.sgd(0.1), adamx.sgd(0.1)})
    (True, 1)
    >>> jax.tree.leaves(adamx.sgd(0.1, momentum=0.9))
    [0.9, 0.1]
    >>> print(adamx.sgd(0.1, momentum=0.9))
    chain(
        scale_by_heavy_ball(momentum=0.9),
        scale_by_learning_rate(learning_rate=0.1),
    )
    """

    equations: ClassVar[Callable[[Transformation], str | None]] = staticmethod(lambda opt: None)
    """Makes the equations that a notebook shows; set by ``adamx``, as they need the core."""

    _program: engine.Program

    def __new__(cls, links: tuple[Link, ...]) -> Transformation:
        program = engine.Program(links)
        init = functools.partial(_init, program)
        update = functools.partial(_update, program)
        self = super().__new__(cls, init, update)
        self._program = program
        return self

    @property
    def links(self) -> tuple[Link, ...]:
        """The links of the chain, in order."""
        return self._program.last.links

    def init(self, params: PyTree) -> State:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state before the first step.

        Args:
            params: a tree of arrays (or ``jax.ShapeDtypeStruct``), floating-point or complex;
                ``None`` leaves are kept.

        Returns:
            A dict: ``count`` (int32, 0) and, under the name of every stage that keeps something,
            a dict of its slots (trees like ``params``, float32 at least, placed like the
            parameters and never aliasing them) and clocks (scalars).

        Raises:
            StageError: for a leaf that is no array, or an array of integers.
        """
        return _init(self._program, params)

    def update(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, updates: Params, state: State, params: PyTree = None, **extra_args: Any
    ) -> tuple[Params, State]:
        """Compute one step; outside ``jit``, the step is compiled.

        Args:
            updates: the gradients, a tree like the parameters; ``None`` where a parameter (or a
                subtree) has no gradient in this step. Such a parameter takes no step, and its
                slots do not change. Clocks advance for the others: a bias correction counts the
                steps of the chain, so a parameter whose first gradient comes late is corrected as
                if its earlier gradients had been zero. For complex parameters, pass the conjugate
                of the result of ``jax.grad``, ``jax.tree.map(jnp.conj, grads)``, which is the
                direction in which the loss rises.
            state: the state that ``init`` or the last ``update`` returned.
            params: the parameters; needed by stages that use them (weight decay, averaging).
            **extra_args: for the stages that ask for them by name, such as ``value`` for
                :func:`adamx.skip_spikes`, and for Optax transformations in the chain;
                ``observe=False`` makes :func:`adamx.watch` skip this step.

        Returns:
            The updates, to be *added* to the parameters (:func:`adamx.apply_updates`), ``None``
            where the gradient is; and the new state, with the structure, shapes and dtypes of the
            old one.

        Raises:
            StageError: if trees, shapes or dtypes do not match, or a stage lacks an input that it
                needs; it names the stage and the parameter.
        """
        return _update(self._program, updates, state, params, **extra_args)

    def step(
        self, grads: PyTree, state: State, params: Params, **extra_args: Any
    ) -> tuple[Params, State]:
        """The parameters after one step, and the new state: ``update`` and ``apply_updates``.

        The results are the same. Where the step runs as a kernel, on CPUs and, with quantized
        slots, on TPUs, the kernel also writes the new parameter, so that no array of updates is in
        memory (:doc:`/performance`). Use it in a training step of your own;
        ``TrainState.apply_gradients`` of Flax calls ``update``.

        Args:
            grads: the gradients, as in :meth:`update`.
            state: the state that ``init`` or the last step returned.
            params: the parameters.
            **extra_args: as in :meth:`update`.

        Returns:
            The new parameters, in their own dtypes; a parameter without a gradient, and whatever
            else is at a ``None`` of ``grads``, is returned unchanged. And the new state.

        Raises:
            StageError: as :meth:`update` does, and if there are no parameters.

        >>> import adamx, jax.numpy as jnp
        >>> opt, params = adamx.sgd(0.1), {"w": jnp.ones(2)}
        >>> opt.step({"w": jnp.ones(2)}, opt.init(params), params)[0]
        {'w': Array([0.9, 0.9], dtype=float32)}
        """
        if params is None:
            raise StageError(
                "step() was called without parameters; call step(grads, state, params)"
            )
        new, state = engine.update(self._program, grads, state, params, extra_args, applies=True)
        return with_new(params, new), state

    def replace(self, changes: Mapping[str, Any] = MappingProxyType({}), /, **named: Any) -> Self:
        """A new chain with other values of some arguments.

        Args:
            changes: values by ``"stage.argument"``, for names that several stages have; ``"*.b1"``
                changes all of them.
            **named: values by the argument's name.

        Raises:
            ValueError: for a name that no stage or several stages have, and for a value outside
                its domain.

        >>> opt = adamx.adamw(1e-3).replace({"scale_by_rms.eps": 1e-6}, learning_rate=3e-4, b2=0.99)
        >>> adamx.hyperparams(opt)["learning_rate"]
        0.0003
        """
        if twice := sorted(changes.keys() & named.keys()):
            raise ValueError(f"replace() was given {', '.join(twice)} twice")
        return type(self)(editing.replace(self.links, {**changes, **named}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transformation) and self._program == other._program

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._program)

    def __fingerprint__(self) -> Any:
        return self.links

    def settled(self) -> tuple[Link, ...]:
        """The links; StageError if a compiled step may use other values than their functions."""
        return self._program.settled()

    def __repr__(self) -> str:
        return written(self.links)

    def _repr_latex_(self) -> str | None:
        """Its equations for a notebook, or None, for which the notebook shows the repr."""
        try:
            return type(self).equations(self)
        except Exception:  # a repr must not fail
            return None

    _repr_markdown_ = _repr_latex_

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.links,)


def _init(program: engine.Program, params: PyTree) -> State:
    return engine.init(program.now().links, params)


def _update(
    program: engine.Program,
    updates: PyTree,
    state: Any,
    params: PyTree = None,
    **extra_args: Any,
) -> tuple[PyTree, State]:
    return engine.update(program, updates, state, params, extra_args)


jax.tree_util.register_pytree_with_keys(
    Transformation,
    lambda opt: (
        [
            (jax.tree_util.DictKey(name), link)
            for name, link in zip(names(opt.links), opt.links, strict=True)
        ],
        None,
    ),
    lambda _, links: Transformation(tuple(links)),
)


Factory = Callable[P, Rule | Callable[[Signal], Signal]]
Make = Callable[P, Transformation]


@overload
def stage(factory: Factory[P], /) -> Make[P]: ...


@overload
def stage(
    *,
    reach: Reach = "array",
    place: Place = "anywhere",
    keeps_rounding: bool = False,
    stacks: bool = False,
    takes: Takes = (),
    may_take: Sequence[str] = (),
    takes_trees: Sequence[str] = (),
) -> Callable[[Factory[P]], Make[P]]: ...


def stage(
    factory: Factory[P] | None = None,
    /,
    *,
    reach: Reach = "array",
    place: Place = "anywhere",
    keeps_rounding: bool = False,
    stacks: bool = False,
    takes: Takes = (),
    may_take: Sequence[str] = (),
    takes_trees: Sequence[str] = (),
) -> Make[P] | Callable[[Factory[P]], Make[P]]:
    """Turn a stage's factory into a function that returns a transformation of one stage.

    The factory takes the stage's arguments and returns its :class:`~adamx.core.Rule`, or, for a
    stage without slots, a function ``signal -> signal``. It is called in every step, with numbers
    in place of schedules. Arguments annotated as hyperparameters (:data:`~adamx.core.Decay`,
    :data:`~adamx.core.NonNegative`, …) are data and are checked; all other arguments are structure
    and are passed on unchanged.

    Args:
        factory: the stage's factory; ``@stage`` and ``@stage(place=…)`` both decorate it.
        reach: which elements of its array an element of the result depends on: ``"element"`` (the
            element at the same place), ``"row"`` (its row, along the last axis), ``"sums"`` (the
            element at the same place, and sums that the rule takes with ``norm``, ``mean``,
            ``total`` or ``Squares``) or ``"array"`` (the whole array). The rule may get a part of
            an array, as much as its reach allows, so it must not depend on the array's shape.
        place: where the stage may stand; :func:`adamx.chain` raises an error for another order.
            ``"direction"``: before the learning rate, where the update is a direction.
            ``"rate"``: turns a direction into a step, as a learning rate does; once in a chain.
            ``"step"``: after the learning rate, where the update is the step.
            ``"rounding"``: after all stages that change the step.
        keeps_rounding: whether a rounded step stays rounded after this stage, which may then stand
            after a ``"rounding"`` stage.
        stacks: whether arrays of equal shape may be stacked, and the stage run on the whole stack
            (by ``vmap``): for linear algebra, of which one large batch is faster than many small
            ones.
        takes: the names of extra arguments of ``update`` that its rule's ``own`` or ``gate``
            needs; or a function that gives these names for the stage's arguments.
        may_take: the names of extra arguments that they use if ``update`` gets them.
        takes_trees: those that are trees like the parameters, if ``update`` gets them: ``own`` gets
            the array of its parameter under this name.

    Raises:
        TypeError: for ``*args``, ``**kwargs`` and positional-only arguments, for an annotation that
            can't be read, and for one that allows other types beside a hyperparameter.
        ValueError: for another reach or place.

    >>> import adamx
    >>> from adamx.core import Real, stage
    >>> @stage
    ... def power(exponent: Real):
    ...     '''u ← sign(u) |u|^p'''
    ...     return lambda s: s.with_update(jnp.sign(s.update) * jnp.abs(s.update) ** exponent)
    >>> import jax.numpy as jnp
    >>> opt = adamx.chain(power(0.5), adamx.scale_by_learning_rate(0.1))
    >>> opt.update(jnp.array([4.0, -9.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.2,  0.3], dtype=float32)
    """
    for name, value, known in (("reach", reach, Reach), ("place", place, Place)):
        if value not in get_args(known):
            raise ValueError(
                f"stage(): {name} must be one of {', '.join(map(repr, get_args(known)))}, "
                f"got {as_given(value)}"
            )
    if factory is None:
        return functools.partial(
            _stage,
            reach=reach,
            place=place,
            keeps_rounding=keeps_rounding,
            stacks=stacks,
            takes=takes,
            may_take=may_take,
            takes_trees=takes_trees,
        )
    return _stage(factory)


def _stage(factory: Factory[P], **says: Any) -> Make[P]:
    definition = Definition(factory, **says)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Transformation:
        return Transformation((definition.bind(*args, **kwargs),))

    make.definition = definition  # pyright: ignore[reportAttributeAccessIssue]
    return make


def chain(*transformations: optax.GradientTransformation) -> Transformation:
    """Chain transformations: the output of each one is the input of the next.

    Nested adamx chains are flattened: chaining is associative. A transformation of Optax (or of
    any library that follows its protocol) can be part of a chain: before the first statistic it
    also rewrites the gradient, after it only the update.

    Raises:
        TypeError: for an argument that is not a transformation.
        StageError: for a stage in a wrong place: weight decay after the learning rate, a second
            learning rate, an average of parameters before the learning rate. The error shows the
            right order.

    >>> import adamx, optax
    >>> adamx.chain(optax.clip_by_global_norm(1.0), adamx.adam(1e-3))
    chain(
        optax.clip_by_global_norm(max_norm=1.0),
        scale_by_momentum(b1=0.9),
        scale_by_rms(b2=0.999, eps=1e-08),
        bias_correction(),
        scale_by_learning_rate(learning_rate=0.001),
    )
    """
    links = [link for given in transformations for link in links_of(given, "chain")]
    check_order(links)
    return Transformation(tuple(links))


def links_of(given: Any, function: str) -> tuple[Link, ...]:
    """The links of a transformation that was passed to a function of this name."""
    if isinstance(given, Transformation):
        return given.links
    if callable(getattr(given, "init", None)) and callable(getattr(given, "update", None)):
        return (Foreign(given),)
    name = getattr(given, "__name__", "")
    hint = f"call it: {name}(…)" if callable(given) and name else ""
    if isinstance(given, (list, tuple)) and function == "chain":
        hint = "a list is passed as chain(*transformations)"
    raise TypeError(
        f"{function}() takes a transformation, got {as_given(given)}{'; ' if hint else ''}{hint}"
    )
