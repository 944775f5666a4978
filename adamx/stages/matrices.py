"""Updates that are orthogonal matrices, and what goes with them (the Muon family)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.core import (
    Decay,
    NonNegative,
    Positive,
    Rule,
    Slot,
    StageError,
    decaying_average,
    divide,
    elements,
    norm,
    plus,
    real_zeros,
    root,
    stage,
)
from adamx.errors import as_given, check_whole
from adamx.numerics.arithmetic import mean, summable_squares
from adamx.numerics.formats import statistics_dtype
from adamx.numerics.matrices import MatrixAxes, MatrixView, adjoint, kernel_axes, matrix_view
from adamx.numerics.meshes import platform
from adamx.numerics.named import named
from adamx.numerics.types import Array

__all__ = [
    "normalize_rows",
    "normalize_to_rank",
    "orthogonalize",
    "scale_by_row_rms",
    "scale_by_shape",
    "scale_to_rms",
    "update_as_gradient",
]

Triple = tuple[float, float, float]


class Iteration(NamedTuple):
    """A Newton–Schulz iteration.

    Attributes:
        triples: a, b and c of every step.
        margin: the factor of the norm by which a matrix is divided at first.
        eps: added to that.
    """

    triples: tuple[Triple, ...]
    margin: float = 1.0
    eps: float = 1e-7


_MUON = (3.4445, -4.7750, 2.0315)
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
ITERATIONS = {
    "muon5": Iteration((_MUON,) * 5),
    "deepseek_v4": Iteration((_MUON,) * 8 + ((2.0, -1.5, 0.5),) * 2),
    "polar_express": Iteration(_POLAR_EXPRESS, 1.02, 1e-6),
}
PRODUCTS = ("bfloat16", "float16", "float32", "float64")


@stage(place="direction", stacks=True)
def orthogonalize(
    coefficients: str | Sequence[Triple] = "muon5",
    *,
    steps: int | None = None,
    axes: MatrixAxes = kernel_axes,
    eps: float | None = None,
    dtype: str | None = None,
):
    r"""Give each matrix singular values near 1, and keep its singular vectors (Muon).

    .. math::
        X_0 = \frac{U}{\lVert U \rVert_F + \epsilon}, \qquad
        X_{k+1} = a_k X_k + b_k (X_k X_k^\top) X_k + c_k (X_k X_k^\top)^2 X_k, \qquad
        u \leftarrow X_K

    For :math:`U = P \Sigma Q^\top`, this is near to :math:`P Q^\top`: the step of steepest descent
    in the spectral norm. The factors are polynomials of the singular values, and there is no
    decomposition. A matrix with more rows than columns is transposed for the iteration.

    =================  =============================================================================
    ``coefficients``   steps; the singular values that they make of those above a part of the norm
    =================  =============================================================================
    "muon5"            5; from 0.68 to 1.21 above 0.2 %
    "polar_express"    5, each the best polynomial for what is left; from 0.85 to 1.15 above 0.11 %.
                       The norm is first multiplied by 1.02, and ε is 1e-6
    "deepseek_v4"      10, of which the last two converge to 1; from 0.99 to 1.01 above 0.003 %
    a list of triples  its own (a, b, c)
    =================  =============================================================================

    The result does not depend on the size of U, so there is no bias left to correct. On
    accelerators, arrays of equal shape are stacked and multiplied in one batch.

    Args:
        coefficients: a name, or the triples (a, b, c) of all steps.
        steps: their number; the last triple is repeated. None for as many as there are triples.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.
        eps: ε; None for 1e-7, or that of the named iteration.
        dtype: the name of the dtype of the products, such as ``"float32"``. None for the precision
            of the update on CPU; on accelerators, bfloat16 in place of float32. Products of
            complex matrices have the precision of the update.

    Source: Jordan et al. 2024 (Muon, https://kellerjordan.github.io/posts/muon); DeepSeek-V4;
    Amsel et al. 2025 (arXiv 2505.16932, Polar Express).

    Raises:
        StageError: for unknown coefficients, another dtype, and arrays with fewer than two axes.

    >>> opt = adamx.orthogonalize("deepseek_v4")
    >>> g = jnp.array([[3.0, 0.0], [0.0, -0.2]])
    >>> opt.update(g, opt.init(g))[0].round(2)
    Array([[ 1.,  0.],
           [ 0., -1.]], dtype=float32)
    """
    iteration = _iteration(coefficients, steps, eps)
    if dtype not in (None, *PRODUCTS):
        raise StageError(
            f"dtype must be None or one of {', '.join(map(repr, PRODUCTS))}, got {as_given(dtype)}"
        )

    def shape(signal):
        view, own = _matrices(axes, signal.update.shape), signal.update.dtype
        fast = dtype is None and own == jnp.float32 and platform() != "cpu"
        products = "bfloat16" if fast else dtype
        if products is None or jnp.issubdtype(own, jnp.complexfloating):
            products = own
        made = orthogonal(view.matrices(signal.update), iteration, jnp.dtype(products))
        return signal.of_any_size(view.array(made))

    return shape


@named
def orthogonal(x: Array, iteration: Iteration, dtype: Any) -> Array:
    """A matrix, or a stack of them, after a Newton–Schulz iteration."""
    rows, columns = x.shape[-2:]
    wide = x if rows <= columns else adjoint(x)
    length = norm(wide, (-2, -1))
    by = plus(length.size * iteration.margin, iteration.eps, 1 / length.unit)
    start = divide(length.in_units(wide), by, iteration.eps).astype(dtype)

    # Only the products are in a narrow dtype: the coefficients and the sums are in float32.
    wide = statistics_dtype(dtype)
    precision = None if jnp.finfo(dtype).bits < 32 else jax.lax.Precision.HIGHEST

    def product(x: Array, y: Array) -> Array:
        return jnp.matmul(x, y, precision=precision).astype(wide)

    def step(x: Array, triple: Array) -> tuple[Array, None]:
        a, b, c = triple
        square = product(x, adjoint(x))
        power = product(square.astype(dtype), square.astype(dtype))
        inner = (b * square + c * power).astype(dtype)
        return (a * x.astype(wide) + product(inner, x)).astype(dtype), None

    triples = jnp.asarray(iteration.triples, jnp.finfo(wide).dtype)
    found = jax.lax.scan(step, start, triples)[0].astype(x.dtype)
    return found if rows <= columns else adjoint(found)


def _iteration(coefficients: Any, steps: int | None, eps: float | None) -> Iteration:
    if isinstance(coefficients, str):
        if coefficients not in ITERATIONS:
            raise StageError(
                f"coefficients must be {', '.join(map(repr, ITERATIONS))} or a list of triples "
                f"(a, b, c), got {coefficients!r}"
            )
        found = ITERATIONS[coefficients]
    else:
        found = Iteration(_triples(coefficients))
    if steps is not None:
        check_whole(steps=steps)
        longer = found.triples + found.triples[-1:] * steps
        found = found._replace(triples=longer[:steps])
    if eps is None:
        return found
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise StageError(f"eps must be a number ≥ 0, got {as_given(eps)}")
    return found._replace(eps=float(eps))


def _triples(given: Any) -> tuple[Triple, ...]:
    try:
        rows = [tuple(map(float, row)) for row in given]
    except (TypeError, ValueError):
        rows = []
    if not rows or any(len(row) != 3 for row in rows):
        raise StageError(
            f"coefficients must be a list of triples (a, b, c), one for each step, got "
            f"{as_given(given)}"
        )
    return tuple((a, b, c) for a, b, c in rows)


def _matrices(axes: MatrixAxes, shape: tuple[int, ...]) -> MatrixView:
    view = matrix_view(axes, shape)
    if view is None:
        raise StageError(
            f"it takes matrices, and this array is {shape}. Give it to another optimiser, "
            "adamx.muon(…, rest=adamw(…)) or partition({hidden_matrices: muon(…), '*': adamw(…)}); "
            "if you have selected the matrices, select no vectors"
        )
    return view


SHAPES: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, columns / max(rows, 1))),
    "adamw_rms": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral": lambda rows, columns: math.sqrt(columns / max(rows, 1)),
    "splus": lambda rows, columns: 2 / max(rows + columns, 1),
}


@stage
def scale_by_shape(
    rule: str | Callable[[int, int], float] = "original",
    *,
    axes: MatrixAxes = kernel_axes,
    otherwise: float | None = None,
):
    r"""Multiply each matrix by a factor of its shape, so that one learning rate suits all (Muon).

    .. math::
        u \leftarrow s\, u

    For a kernel of shape [in, out]:

    =============  ==================================================
    ``rule``       s
    =============  ==================================================
    "original"     :math:`\sqrt{\max(1, \text{out}/\text{in})}`
    "adamw_rms"    :math:`0.2\sqrt{\max(\text{in}, \text{out})}`
    "spectral"     :math:`\sqrt{\text{out}/\text{in}}`
    "splus"        :math:`2/(\text{in} + \text{out})`
    a function     of the numbers of inputs and outputs
    =============  ==================================================

    With "adamw_rms", the elements of an orthogonal update have about the RMS of AdamW's, so that
    AdamW's learning rate and weight decay can be kept.

    Args:
        rule: a name, or a function ``(inputs, outputs) -> factor``.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.
        otherwise: the factor for arrays with fewer than two axes; None if there are none.

    Source: Jordan et al. 2024 ("original"), Liu et al. 2025 (arXiv 2502.16982, "adamw_rms"),
    Bernstein & Newhouse 2024 (arXiv 2410.21265, "spectral"), Frans et al. 2025 (arXiv 2506.07254,
    "splus").

    Raises:
        StageError: for an unknown rule, for a function that returns no finite number, and for
            arrays with fewer than two axes, if ``otherwise`` is None.

    >>> opt = adamx.scale_by_shape()
    >>> opt.update(jnp.ones((1, 4)), opt.init(jnp.ones((1, 4))))[0]
    Array([[2., 2., 2., 2.]], dtype=float32)
    """
    if not callable(rule) and (not isinstance(rule, str) or rule not in SHAPES):
        raise StageError(
            f"rule must be {', '.join(map(repr, SHAPES))} or a function (inputs, outputs) -> "
            f"factor, got {as_given(rule)}"
        )
    of_shape = rule if callable(rule) else SHAPES[rule]

    def shape(signal):
        if otherwise is not None and signal.update.ndim < 2:
            return signal.with_update(signal.update * float(otherwise))
        *_, rows, columns = _matrices(axes, signal.update.shape).shape
        factor = of_shape(rows, columns)
        if isinstance(factor, bool) or not isinstance(factor, (int, float, np.number)):
            raise StageError(
                f"rule({rows}, {columns}) gave {as_given(factor)}, where a number is needed"
            )
        if not math.isfinite(factor):
            raise StageError(f"rule({rows}, {columns}) gave {factor}, which is not finite")
        return signal.with_update(scaled_by_shape(signal.update, float(factor)))

    return shape


@named
def scaled_by_shape(x: Array, factor: float) -> Array:
    """x times a factor that depends on its shape."""
    return x * factor


@stage(place="direction")
def normalize_rows(eps: NonNegative = 1e-7, *, axes: MatrixAxes = kernel_axes):
    r"""Give the weights of all outputs the same norm, and keep the norm of the matrix (MuonEq).

    .. math::
        u_j \leftarrow \frac{\lVert u \rVert_F}{\sqrt{n}} \frac{u_j}{\lVert u_j \rVert + \epsilon}

    for the vectors :math:`u_j` of the update that belong to one of n outputs: rows of a weight
    matrix [out, in], which are the columns of a kernel [in, out]. In front of
    :func:`orthogonalize`, whose iteration then starts from singular values that differ less.

    Args:
        eps: ε ≥ 0. With 0, 0/0 is 0.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Source: Chang et al. 2026 (arXiv 2603.28254), MuonEq (R). The paper's vectors have norm 1;
    nanochat's keep the norm of the matrix. An iteration behind them cancels the difference.

    Raises:
        StageError: for arrays with fewer than two axes.

    >>> opt = adamx.normalize_rows()
    >>> g = jnp.array([[3.0, 0.0], [4.0, 5.0]])
    >>> opt.update(g, opt.init(g))[0].round(2)
    Array([[3., 0.],
           [4., 5.]], dtype=float32)
    """

    def shape(signal):
        view = _matrices(axes, signal.update.shape)
        x = view.matrices(signal.update)
        unit = norm(x, (-2, -1)).unit
        x = x * (1 / unit)
        lengths = norm(x, -2).size
        even = divide(x, plus(lengths, eps, 1 / unit), eps)
        usual = root(mean(lengths**2, (x.ndim - 1,), keepdims=True))
        return signal.with_update(view.array(even * (usual * unit)))

    return shape


@stage(place="direction")
def scale_by_row_rms(b2: Decay = 0.95, eps: NonNegative = 1e-8, *, axes: MatrixAxes = kernel_axes):
    r"""Divide the update of each output by its RMS, and restore the norm of the matrix (NorMuon).

    .. math::
        v_{t,j} = \beta_2 v_{t-1,j} + (1-\beta_2) \operatorname{mean}_i u_{t,ij}^2, \qquad
        \tilde u_{ij} = \frac{u_{ij}}{\sqrt{v_{t,j}} + \epsilon}, \qquad
        u \leftarrow \frac{\lVert u \rVert_F}{\lVert \tilde u \rVert_F} \tilde u

    for input i and output j: a row of a weight matrix [out, in] in the paper, a column of a kernel
    [in, out] here. The average is one of the update, not of the gradient. The factor by which it is
    too small at first cancels.

    Keeps ``nu`` (v), one number for each output.

    Args:
        b2: β₂ in [0, 1).
        eps: ε ≥ 0. With 0, 0/0 is 0.
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Source: Li et al. 2025 (arXiv 2510.05491), Algorithm 1, with the norm restored as in the code of
    Dion.

    Raises:
        StageError: for arrays with fewer than two axes.

    >>> opt = adamx.scale_by_row_rms()
    >>> g = jnp.array([[3.0, 0.0], [4.0, 5.0]])
    >>> opt.update(g, opt.init(g))[0].round(2)
    Array([[3., 0.],
           [4., 5.]], dtype=float32)
    """
    mean_square = decaying_average(b2)

    def start(param):
        view = _matrices(axes, param.shape)
        return jnp.sum(view.matrices(real_zeros(param)), -2, keepdims=True)

    def update(signal, slots, step):
        view = _matrices(axes, signal.update.shape)
        x = view.matrices(signal.update)
        nu = mean_square(slots["nu"], mean(summable_squares(x), (x.ndim - 2,), keepdims=True))
        even = divide(x, plus(root(nu), eps), eps)
        before, after = norm(x, (-2, -1)), norm(even, (-2, -1))
        even = after.in_units(even) * divide(before.value, after.size)
        return signal.with_statistic(view.array(even)), {"nu": nu}

    return Rule(update, slots={"nu": Slot(start, holds="nonnegative")})


@stage(place="direction")
def normalize_to_rank(*, axes: MatrixAxes = kernel_axes):
    r"""Give each matrix the Frobenius norm of an orthogonal one (Muon+).

    .. math::
        u \leftarrow \frac{\sqrt{\min(m, n)}}{\lVert u \rVert_F} u

    for matrices of m rows and n columns. 0 stays 0. Behind :func:`orthogonalize`, it corrects the
    size of what the iteration leaves away from singular values of 1.

    Args:
        axes: which axes are the matrix, see :func:`adamx.matrix_view`.

    Source: nanochat's form of Muon+ (arXiv 2602.21545). The paper divides by the norms of rows and
    of columns instead.

    Raises:
        StageError: for arrays with fewer than two axes.

    >>> opt = adamx.normalize_to_rank()
    >>> g = jnp.array([[3.0, 0.0], [0.0, 3.0]])
    >>> opt.update(g, opt.init(g))[0].round(2)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    def shape(signal):
        view = _matrices(axes, signal.update.shape)
        x = view.matrices(signal.update)
        length = norm(x, (-2, -1))
        one = divide(length.in_units(x), length.size)
        made = scaled_by_shape(one, math.sqrt(min(x.shape[-2:])))
        return signal.of_any_size(view.array(made))

    return shape


@stage(reach="sums", place="direction")
def scale_to_rms(rms: Positive = 0.2):
    r"""Give the update of each array this RMS.

    .. math::
        u \leftarrow \frac{r}{\text{RMS}(u)} u

    0 stays 0. With r = 0.2, the update has about the size of AdamW's.

    Args:
        rms: r > 0.

    Source: Liu et al. 2025 (arXiv 2502.16982), Section 2.2, and Si et al. 2025 (arXiv 2507.11005).

    >>> opt = adamx.scale_to_rms(0.2)
    >>> opt.update(jnp.array([3.0, -3.0]), opt.init(jnp.zeros(2)))[0]
    Array([ 0.2, -0.2], dtype=float32)
    """
    return lambda signal: signal.of_any_size(scaled_to_rms(signal.update, rms))


@named
def scaled_to_rms(x: Array, rms: Any) -> Array:
    """x with this RMS; 0 stays 0."""
    length = norm(x)
    return divide(length.in_units(x), length.size) * (rms * math.sqrt(max(elements(x), 1)))


@stage(reach="element", place="direction")
def update_as_gradient():
    r"""Let the stages behind take their statistics from the update, not from the gradient.

    .. math::
        g \leftarrow u

    It nests one optimiser in another: behind :func:`orthogonalize`, :func:`scale_by_rms` averages
    the squares of the orthogonal update (AdaMuon). In :func:`optax.chain`, all transformations are
    nested like this.

    >>> opt = adamx.chain(adamx.sign(), adamx.update_as_gradient(), adamx.scale_by_rms(0.5))
    >>> state = opt.update(jnp.array([3.0]), opt.init(jnp.zeros(1)))[1]
    >>> state["scale_by_rms"]["nu"]
    Array([0.5], dtype=float32)
    """
    return lambda signal: dataclasses.replace(signal, gradient=signal.update)
