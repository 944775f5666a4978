"""Adam and AdaMax, as in the paper; AdamW and AdamC."""

from __future__ import annotations

from adamx.core import Decay, NonNegative, Positive, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_corrected_weight_decay,
    add_decayed_weights,
    bias_correction,
    scale_by_adamax,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
)
from adamx.wrappers.groups import in_two
from adamx.wrappers.selection import Selector, hidden_matrices

__all__ = ["adam", "adamax", "adamc", "adamw"]


@recipe
def adam(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    *,
    eps_hat: NonNegative = 0.0,
    compensated: bool = False,
) -> Transformation:
    r"""Adam, Algorithm 1.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        \theta_t &= \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    With ``eps=0, eps_hat=ε̂`` it is the reordered form at the end of Section 2,
    :math:`\alpha_t\, m_t / (\sqrt{v_t} + \hat\epsilon)` with
    :math:`\alpha_t = \alpha \sqrt{1-\beta_2^t} / (1-\beta_1^t)`, which is what Keras and
    TensorFlow compute (ε̂ = 1e-7). With ``eps=0, eps_root=ε`` the denominator is
    :math:`\sqrt{\hat v_t + \epsilon}`, whose derivative is finite everywhere.

    For scheduled β the powers are products, :math:`1 - \prod_i \beta_i`: the correction stays
    exact.

    Args:
        learning_rate: α ≥ 0; the paper's default is 0.001.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        eps_root: ε ≥ 0, added to v̂ inside the root.
        eps_hat: ε̂ ≥ 0, added to √v before the correction.
        compensated: keep v with eight more bits (two more bytes per parameter), for β₂ so close to
            1 that rounding errors of v accumulate; see :func:`scale_by_rms`.

    Equals torch.optim.Adam and optax.adam with the same hyperparameters, except for their rounding
    errors: they compute 1 − βᵗ from a float32 power or a double with accumulated errors. Statistics
    are float32 for bfloat16 and float16 parameters; torch and Optax use the parameter's dtype. For
    complex parameters, |g|² is the squared modulus, as in Optax; torch treats real and imaginary
    parts as two coordinates.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1.

    >>> opt = adamx.adam(1e-3)
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> state = opt.init(params)
    >>> updates, state = opt.update({"w": jnp.array([0.1, -10.0])}, state, params)
    >>> updates
    {'w': Array([-0.001,  0.001], dtype=float32)}
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps, eps_hat=eps_hat, eps_root=eps_root, compensated=compensated),
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def adamax(
    learning_rate: NonNegative, b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8
) -> Transformation:
    r"""AdaMax: Adam with the infinity norm.

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad
        n_t = \max(\beta_2 n_{t-1}, |g_t| + \epsilon), \quad
        \theta_t = \theta_{t-1} - \frac{\alpha}{1-\beta_1^t} \frac{m_t}{n_t}

    Args:
        learning_rate: α ≥ 0; the paper's default is 0.002.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to |g|. The paper has no ε; with 0, 0/0 is 0.

    Equals torch.optim.Adamax and optax.adamax.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 2.

    >>> opt = adamx.adamax(2e-3)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.002,  0.002], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_adamax(b2, eps),
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def adamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    weight_decay: NonNegative = 0.01,
    *,
    eps_hat: NonNegative = 0.0,
    compensated: bool = False,
) -> Transformation:
    r"""AdamW: Adam with decoupled weight decay.

    .. math::
        \theta_t = \theta_{t-1}
        - \alpha \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda \theta_{t-1}\right)

    with the averages of :func:`adam`, which do not include the decay. L2 regularisation, in
    contrast, adds λθ to g, so that it is divided by √v̂: ``chain(add_decayed_weights(λ), adam(…))``.

    Args:
        learning_rate: α ≥ 0; it multiplies the decay, too.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        eps_root: ε ≥ 0, added to v̂ inside the root.
        weight_decay: λ ≥ 0; 0 is :func:`adam`. The paper names no default. This one is torch's;
            Optax has 1e-4, Keras 0.004.
        eps_hat: ε̂ ≥ 0, added to √v before the correction.
        compensated: keep v in eight more bits; see :func:`scale_by_rms`.

    Equals torch.optim.AdamW and optax.adamw with the same hyperparameters. In the paper, a schedule
    η multiplies both terms and α only the first one, so the paper's λ is αλ here.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101), Algorithm 2.

    Raises:
        StageError: if ``update`` is called without parameters, unless λ is the number 0.

    >>> opt = adamx.adamw(1e-3, weight_decay=0.1)
    >>> theta = jnp.array([1.0, 1.0])
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(theta), theta)[0]
    Array([-0.0011,  0.0009], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps, eps_hat=eps_hat, eps_root=eps_root, compensated=compensated),
        bias_correction(),
        add_decayed_weights(weight_decay),  # Adam: nothing
        scale_by_learning_rate(learning_rate),
    )


@recipe
def adamc(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    *,
    max_learning_rate: Positive | None = None,
    normalized: Selector = hidden_matrices,
) -> Transformation:
    r"""AdamC: AdamW whose weight decay falls with the square of the learning rate.

    .. math::
        \theta_t = \theta_{t-1}
        - \alpha_t \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
        + \lambda \frac{\alpha_t}{\alpha_{\max}} \theta_{t-1}\right)

    with the averages of :func:`adam`, for the parameters of layers whose output is normalised.
    All others have the decay of :func:`adamw`, which lets the gradients of normalised layers grow
    while the rate falls.

    Args:
        learning_rate: α ≥ 0, usually a schedule.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0.
        max_learning_rate: the largest value of the schedule, > 0. None for a constant rate, with
            which this is :func:`adamw`.
        normalized: the parameters of normalised layers, see :func:`adamx.where`; by default the
            matrices between hidden layers, :func:`adamx.hidden_matrices`, as in a transformer with
            a normalisation in front of every layer.

    Source: Defazio 2025 (arXiv 2506.02285), AdamC.

    Raises:
        ValueError: if ``learning_rate`` is a schedule and there is no ``max_learning_rate``.
        StageError: if ``update`` is called without parameters, unless λ is the number 0.

    >>> import optax
    >>> rate = optax.linear_schedule(1e-3, 0.0, 1000)
    >>> opt = adamx.adamc(rate, weight_decay=0.1, max_learning_rate=1e-3)
    >>> theta = jnp.ones((2, 2))
    >>> opt.update(jnp.ones((2, 2)), opt.init(theta), theta)[0]
    Array([[-0.0011, -0.0011],
           [-0.0011, -0.0011]], dtype=float32)
    """
    if max_learning_rate is None and callable(learning_rate):
        raise ValueError(
            "adamc: the learning rate is a schedule, so max_learning_rate is needed: the largest "
            "value of the schedule"
        )
    decay = add_decayed_weights(weight_decay)
    if max_learning_rate is not None:  # AdamW: the same for all
        corrected = add_corrected_weight_decay(weight_decay, max_learning_rate)
        decay = in_two(normalized, corrected, decay)
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps),
        bias_correction(),
        decay,
        scale_by_learning_rate(learning_rate),
    )
