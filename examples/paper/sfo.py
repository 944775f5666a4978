"""The sum-of-functions optimiser, SFO (Sohl-Dickstein, Poole & Ganguli 2014, arXiv 1311.2115)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["SFO"]

GROWTH = 1.15  # growth of the bound on the length of steps after every good step
DOUBT = 0.3  # a subfunction may exceed its model by this many standard deviations of the values

ValueAndGrad = Callable[[np.ndarray, int], tuple[Any, Any]]


@dataclass
class Quadratic:
    r"""The model of one subfunction, in coordinates of the subspace.

    .. math::
        g(x) = f(\tau) + f'(\tau)^\top (x - \tau) + \tfrac12 (x - \tau)^\top H (x - \tau)

    Attributes:
        value: f(τ).
        slope: f'(τ).
        at: τ, the point of the last evaluation.
        steps: differences of consecutive τ, ``[≤ history, K]``, the oldest first.
        changes: the corresponding differences of the slopes.
        curvature: β; H is βI outside the span of the history.
        hessian: H, or None before there is a history.
    """

    value: float
    slope: np.ndarray
    at: np.ndarray
    steps: np.ndarray
    changes: np.ndarray
    curvature: float = 0.0
    hessian: np.ndarray | None = None

    def observe(
        self, value: float, slope: np.ndarray, at: np.ndarray, history: int, noise: float, bad: bool
    ) -> None:
        """Add the step and the change of the slope to the history; after a good step, move τ."""
        step, change = at - self.at, slope - self.slope
        if beyond(noise, step, at) and beyond(noise, change, slope):
            self.steps = np.vstack([self.steps, step])[-history:]
            self.changes = np.vstack([self.changes, change])[-history:]
        if not bad:
            self.value, self.slope, self.at = value, slope, at
        self.learn()

    def learn(self) -> None:
        """H from BFGS updates with the history, starting from βI."""
        convex = curved(self.steps, self.changes)
        steps, changes = self.steps[convex], self.changes[convex]
        if not len(steps):
            return
        self.curvature = least_curvature(steps, changes)
        hessian = self.curvature * np.eye(steps.shape[1])
        for s, y in zip(steps, changes, strict=True):
            if y @ s > 0:
                image = hessian @ s
                hessian += np.outer(y, y) / (y @ s) - np.outer(image, image) / (s @ image)
        self.hessian = hessian

    def project(self, onto: np.ndarray) -> None:
        """Change the basis; ``onto @ new`` are the old coordinates."""
        self.slope, self.at = self.slope @ onto, self.at @ onto
        lengths = np.linalg.norm(self.steps, axis=1)
        self.steps, self.changes = self.steps @ onto, self.changes @ onto
        kept = np.linalg.norm(self.steps, axis=1) > lengths / 2
        self.steps, self.changes = self.steps[kept], self.changes[kept]
        if self.hessian is not None:
            outside = self.curvature * np.eye(len(onto))
            self.hessian = onto.T @ (self.hessian - outside) @ onto + outside


def beyond(noise: float, difference: np.ndarray, of: np.ndarray) -> bool:
    """Whether a difference of such vectors is larger than rounding errors."""
    return bool(np.linalg.norm(difference) > noise * np.linalg.norm(of))


def curved(steps: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """The steps along positive curvature that are larger than rounding errors."""
    product = np.sum(steps * changes, axis=1)
    return product > 1e-8 * np.linalg.norm(steps, axis=1) * np.linalg.norm(changes, axis=1)


def least_curvature(steps: np.ndarray, changes: np.ndarray) -> float:
    """The minimum of |H d| / |d| for d in the span of the steps, by the equations H s = y."""
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(steps / lengths, full_matrices=False)
    known = (
        sizes > 1e-3 * sizes[0]
    )  # nearly parallel steps contain no information about their difference
    images = (left[:, known] / sizes[known]).T @ (changes / lengths)
    return float(np.linalg.svd(images, compute_uv=False)[-1])


class Suspect(NamedTuple):
    """A step after which the value of a subfunction was larger than expected."""

    target: int
    value: float
    length: float


class SFO:
    r"""Minimises a sum of functions; each step evaluates one of them.

    Every subfunction has its own quadratic model: its last value and gradient, and a Hessian that
    BFGS estimates from the differences of its gradients. The next point is the minimum of the sum
    of the models. All models are in the subspace spanned by recent gradients, so that a step costs
    O(MK + K³) for M parameters in K dimensions. If the subspace has its maximal dimension, it
    collapses to the span of the last positions and gradients of all subfunctions.

    This implementation follows the idea of the paper; the printed algorithm was not available. To
    our knowledge, the following is as in the paper. The models and their history are the same. β,
    the curvature of unexplored directions, is the smallest curvature that the secant equations
    allow. The next subfunction is the one farthest from the point of its last evaluation, measured
    by the Hessian of the sum or, every other time, by its own Hessian. Few subfunctions are active
    at first. One more becomes active whenever the mean gradient is smaller than its standard error,
    and after every pass over the active ones. The subspace collapses at 3 N + 2 dimensions.

    The following differs from the paper. Positions are relative to the start, so only gradients add
    dimensions. Subfunctions without a history get the mean Hessian of the others at every step.
    Steps along negative curvature are not added to the history (the paper modifies the eigenvalues
    of the Hessian). The length of steps is bounded as in a trust region: the next point is the
    minimum within this distance. A step is doubtful if the value of the subfunction exceeds both
    its last value and its model by more than the predicted decrease and a part of the spread of all
    values. The same subfunction is then evaluated again at the start of the step. If its value is
    smaller there, the bound becomes a quarter of this step; good steps increase it again. The paper
    has different rules. Differences are treated as rounding errors if they are smaller than √ε
    times the values that were subtracted. They are not used, and neither are steps that lost most
    of their length in a collapse. So convex sums are minimised to about seven digits in double
    precision. On networks, the cost does not fall monotonically late in training.

    Args:
        start: x₀, one-dimensional. All vectors of its length have its dtype.
        subfunctions: N, the number of functions in the sum.
        history: the number of gradient differences kept for each subfunction.
        first_step: the length of the first step, in units of 1 + |x₀|.
        seed: the seed for the choice of subfunctions.

    >>> import numpy as np
    >>> centres = np.array([[1.0, 2.0], [3.0, -4.0]])
    >>> optimiser = SFO(np.zeros(2), subfunctions=2)
    >>> def value_and_grad(x, i):
    ...     return np.sum((x - centres[i]) ** 2), 2 * (x - centres[i])
    >>> for _ in range(60):
    ...     value = optimiser.step(value_and_grad)
    >>> optimiser.params.round(4)
    array([ 2., -1.])
    """

    def __init__(
        self,
        start: Any,
        subfunctions: int,
        *,
        history: int = 10,
        first_step: float = 1e-2,
        seed: int = 0,
    ):
        self.start = np.asarray(start)
        if self.start.ndim != 1 or not np.issubdtype(self.start.dtype, np.floating):
            raise ValueError(
                f"start must be a vector of floats, got {self.start.dtype}{self.start.shape}; "
                "jax.flatten_util.ravel_pytree makes a vector from a tree"
            )
        if subfunctions < 1:
            raise ValueError(f"subfunctions must be at least 1, got {subfunctions}")
        self.subfunctions, self.history = subfunctions, history
        self.dimensions = 3 * subfunctions + 2
        self.basis = np.zeros((self.dimensions, len(self.start)), self.start.dtype)
        self.used = 0
        self.models: list[Quadratic | None] = [None] * subfunctions
        self.active = min(2, subfunctions)
        self.accepted = self.proposed = np.zeros(self.dimensions)
        self.longest = first_step * (1 + float(np.linalg.norm(self.start)))
        self.random = np.random.default_rng(seed)
        self.since_growth = 0
        self.suspect: Suspect | None = None

    @property
    def params(self) -> np.ndarray:
        """The point of the next evaluation, which is the minimum of the model."""
        return self._position(self.proposed)

    def step(self, value_and_grad: ValueAndGrad) -> float:
        """Evaluate one subfunction at ``params``, and compute the next point.

        Args:
            value_and_grad: ``(x, i) -> (value, gradient)`` of subfunction i < N.

        Returns:
            The value.

        Raises:
            ValueError: if the value or the gradient is not finite at the start, or at the end of
                the last good step.
        """
        target = self._target() if self.suspect is None else self.suspect.target
        value, gradient = value_and_grad(self.params, target)
        value, gradient = float(value), np.asarray(gradient)
        finite = np.isfinite(value) and bool(np.all(np.isfinite(gradient)))
        length = float(np.linalg.norm(self.proposed - self.accepted))
        if not finite and length == 0:
            raise ValueError(
                f"subfunction {target} or its gradient is not finite at the current point"
            )
        bad = length > 0 and (not finite or self._is_bad(target, value))
        if finite:
            self._record(target, value, gradient, bad)
        if self.suspect is not None and self.suspect.value > value:
            self.longest = self.suspect.length / 4
        self.suspect = Suspect(target, value if finite else np.inf, length) if bad else None
        if not bad:
            self.accepted, self.longest = self.proposed, max(self.longest, GROWTH * length)
        self._grow(bad)
        self.proposed = self.accepted if bad else self._minimum()
        return value

    # The models

    def _known(self) -> list[Quadratic]:
        return [model for model in self.models if model is not None]

    def _record(self, target: int, value: float, gradient: np.ndarray, bad: bool) -> None:
        if self.used == self.dimensions:
            self._collapse()
        slope, model = self._coordinates(gradient), self.models[target]
        if model is None:
            none = np.zeros((0, self.dimensions))
            self.models[target] = Quadratic(value, slope, self.proposed, none, none)
        else:
            noise = float(np.finfo(self.basis.dtype).eps) ** 0.5
            model.observe(value, slope, self.proposed, self.history, noise, bad)

    def _mean_hessian(self) -> np.ndarray:
        """The mean Hessian of those that have one; without any, a Hessian for the longest step."""
        found = [model.hessian for model in self._known() if model.hessian is not None]
        if found:
            return np.mean(found, axis=0)
        slope = np.mean([model.slope for model in self._known()], axis=0)
        return (np.linalg.norm(slope) or 1.0) / self.longest * np.eye(self.dimensions)

    def _is_bad(self, target: int, value: float) -> bool:
        model = self.models[target]
        if model is None:
            return False
        mean = self._mean_hessian()
        decrease = np.mean(
            [
                predicted(m, self.accepted, mean) - predicted(m, self.proposed, mean)
                for m in self._known()
            ]
        )
        spread = np.std([m.value for m in self._known()])
        expected = max(model.value, predicted(model, self.proposed, mean))
        return bool(value - expected > DOUBT * spread + max(decrease, 0.0))

    # The next point, the next subfunction

    def _minimum(self) -> np.ndarray:
        """The minimum of the sum of the models, within the bound on the length of steps."""
        mean = self._mean_hessian()
        known = self._known()
        hessians = [mean if model.hessian is None else model.hessian for model in known]
        slopes = [
            model.slope + hessian @ (self.accepted - model.at)
            for model, hessian in zip(known, hessians, strict=True)
        ]
        curvatures, axes = np.linalg.eigh(np.mean(hessians, axis=0))
        slope = np.mean(slopes, axis=0) @ axes
        return self.accepted + axes @ within(self.longest, slope, np.maximum(curvatures, 0.0))

    def _target(self) -> int:
        """The active subfunction farthest from its last evaluation, in the metric of a Hessian."""
        for index, model in enumerate(self.models[: self.active]):
            if model is None:
                return index
        mean, own = self._mean_hessian(), self.random.random() < 0.5
        distances = []
        for model in self.models[: self.active]:
            assert model is not None
            metric = model.hessian if own and model.hessian is not None else mean
            moved = self.proposed - model.at
            distances.append(moved @ metric @ moved)
        return int(np.argmax(distances))

    def _grow(self, bad: bool) -> None:
        """Activate one more subfunction if the active ones provide little new information."""
        self.since_growth += 1
        known = self._known()
        if self.active == self.subfunctions or len(known) < self.active:
            return
        inverse = np.linalg.inv(self._mean_hessian())
        slopes = np.stack([model.slope for model in known])
        mean = slopes.mean(axis=0)
        noise = np.einsum("ik,kl,il->", slopes, inverse, slopes)
        unclear = mean @ inverse @ mean < noise / (len(known) * (len(known) - 1))
        if bad or unclear or self.since_growth >= self.active:
            self.active += 1
            self.since_growth = 0

    # The subspace

    def _position(self, coordinates: np.ndarray) -> np.ndarray:
        used = coordinates[: self.used].astype(self.basis.dtype)
        return self.start + used @ self.basis[: self.used]

    def _coordinates(self, gradient: np.ndarray) -> np.ndarray:
        """The coordinates of a gradient; if necessary, the subspace gets a new dimension."""
        basis, rest = self.basis[: self.used], gradient.astype(self.basis.dtype)
        whole = np.linalg.norm(rest)
        inside = basis @ rest
        rest = rest - inside @ basis
        if (
            np.linalg.norm(rest) < 0.7 * whole
        ):  # after much cancellation, only a second pass makes it orthogonal
            more = basis @ rest
            inside, rest = inside + more, rest - more @ basis
        outside = np.linalg.norm(rest)
        coordinates = np.zeros(self.dimensions)
        coordinates[: self.used] = inside
        if outside > 10 * np.finfo(self.basis.dtype).eps * whole:
            self.basis[self.used] = rest / outside
            coordinates[self.used] = outside
            self.used += 1
        return coordinates

    def _collapse(self) -> None:
        """Collapse the subspace to the span of the last positions and gradients."""
        kept = [self.accepted, self.proposed]
        kept += [vector for model in self._known() for vector in (model.at, model.slope)]
        lengths = [np.linalg.norm(vector) for vector in kept]
        columns = [v / n for v, n in zip(kept, lengths, strict=True) if n > 0]
        span, sizes, _ = np.linalg.svd(np.stack(columns, axis=1), full_matrices=False)
        span = span[:, sizes > 1e-12 * sizes[0]]
        onto = np.zeros((self.dimensions, self.dimensions))
        onto[:, : span.shape[1]] = span
        self.used = span.shape[1]
        self.basis[: self.used] = span.T.astype(self.basis.dtype) @ self.basis
        self.basis[self.used :] = 0.0
        self.accepted, self.proposed = self.accepted @ onto, self.proposed @ onto
        for model in self._known():
            model.project(onto)


def predicted(model: Quadratic, at: np.ndarray, mean: np.ndarray) -> float:
    """The value of a subfunction according to its model."""
    moved = at - model.at
    curved = (mean if model.hessian is None else model.hessian) @ moved
    return float(model.value + model.slope @ moved + moved @ curved / 2)


def within(radius: float, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """The minimum of ``slope @ d + curvature @ d² / 2`` for |d| ≤ radius.

    It is ``-slope / (curvature + λ)`` with the smallest λ ≥ 0 for which |d| ≤ radius.
    """
    if not slope.any():
        return slope
    low, high = 0.0, float(np.linalg.norm(slope)) / radius  # this λ is large enough
    if np.all(curvature > 0) and np.linalg.norm(slope / curvature) <= radius:
        high = 0.0
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        short = np.linalg.norm(slope / (curvature + middle)) <= radius
        low, high = (low, middle) if short else (middle, high)
    return -slope / (curvature + high)
