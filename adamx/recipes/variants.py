"""Variants of Adam with other second moments, other momenta, or another order of stages."""

from __future__ import annotations

from adamx import stages
from adamx.core import Decay, NonNegative, Positive, Same, Transformation, chain
from adamx.recipes.registry import recipe
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    clip_by_relative_rms,
    growing_clip,
    scale_by_atan2,
    scale_by_belief,
    scale_by_delayed_rms,
    scale_by_learning_rate,
    scale_by_max_rms,
    scale_by_momentum,
    scale_by_nesterov_momentum,
    scale_by_rms,
    scale_by_yogi,
)
from adamx.stages.rectification import Length, rectify

__all__ = [
    "adabelief",
    "adam_atan2",
    "adopt",
    "amsgrad",
    "laprop",
    "nadam",
    "nadamw",
    "radam",
    "stableadamw",
    "yogi",
]


@recipe
def amsgrad(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    *,
    eps_hat: NonNegative = 0.0,
) -> Transformation:
    r"""AMSGrad: Adam with a denominator that never decreases.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, & n_t &= \max(n_{t-1}, v_t) \\
        \theta_t &= \theta_{t-1}
        - \alpha \frac{\hat m_t}{\sqrt{n_t / (1 - \beta_2^t)} + \epsilon}

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1); the paper tries 0.99 and 0.999.
        eps: ε ≥ 0, added to the corrected root.
        eps_root: ε ≥ 0, added inside the corrected root.
        eps_hat: ε̂ ≥ 0, added to √n before the correction.

    Equals torch.optim.Adam with ``amsgrad=True``. The paper has no correction and no ε:
    ``chain(scale_by_momentum(b1), scale_by_max_rms(b2, 0.0), scale_by_learning_rate(α))``.
    optax.amsgrad takes the maximum of the corrected :math:`\hat v` and is another algorithm: its
    first steps, where :math:`\hat v` rests on few gradients, bound all later ones.

    Source: Reddi, Kale & Kumar 2018 (arXiv 1904.09237), Algorithm 2.

    >>> opt = adamx.amsgrad(1e-3)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.001,  0.001], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_max_rms(b2, eps, eps_hat=eps_hat, eps_root=eps_root),  # Adam: scale_by_rms
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def nadam(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    momentum_decay: Positive = 0.004,
    *,
    constant_decay: bool = False,
) -> Transformation:
    r"""NAdam: Adam with Nesterov momentum and a warm-up of the momentum.

    .. math::
        \mu_t &= \beta_1 \left(1 - \tfrac12 \cdot 0.96^{t\psi}\right) \\
        m_t &= \mu_t m_{t-1} + (1-\mu_t) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2 \\
        \bar m_t &= \frac{\mu_{t+1} m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
        + \frac{(1 - \mu_t) g_t}{1 - \prod_{i=1}^{t} \mu_i}, \quad
        \hat v_t = \frac{v_t}{1 - \beta_2^t} \\
        \theta_t &= \theta_{t-1} - \alpha \frac{\bar m_t}{\sqrt{\hat v_t} + \epsilon}

    Args:
        learning_rate: α ≥ 0; the paper's default is 0.002.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        momentum_decay: ψ > 0, the speed of the warm-up of μ: 0.004 in the paper (as t/250);
            ``math.inf`` for μ = β₁ from the start.
        constant_decay: let m decay by β₁, not μₜ.

    With ``constant_decay=True``, it equals torch.optim.NAdam and keras.optimizers.Nadam. In these,
    m decays by β₁, but the correction uses products of μ. The correction is therefore not exact
    until μ has warmed up, which takes thousands of steps. In the paper, m decays by μₜ. With
    ``momentum_decay=math.inf`` both are the same, and the recipe equals optax.nadam and the
    author's code. The paper's Algorithm 2 also multiplies v̂ by β₂; no implementation does so,
    including the author's.

    Source: Dozat 2016, Incorporating Nesterov momentum into Adam (ICLR workshop), Algorithm 2.

    >>> opt = adamx.nadam(1e-3, momentum_decay=jnp.inf)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0].round(6)
    Array([-0.001474,  0.001474], dtype=float32)
    """
    return chain(
        scale_by_nesterov_momentum(  # Adam: scale_by_momentum
            b1, momentum_decay, constant_decay=constant_decay
        ),
        scale_by_rms(b2, eps),
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def nadamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    momentum_decay: Positive = 0.004,
    *,
    constant_decay: bool = False,
) -> Transformation:
    r"""NAdamW: NAdam with decoupled weight decay.

    .. math::
        \mu_t &= \beta_1 \left(1 - \tfrac12 \cdot 0.96^{t\psi}\right), \qquad
        m_t = \mu_t m_{t-1} + (1-\mu_t) g_t \\
        \bar m_t &= \frac{\mu_{t+1} m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
        + \frac{(1 - \mu_t) g_t}{1 - \prod_{i=1}^{t} \mu_i} \\
        \theta_t &= \theta_{t-1}
        - \alpha \left(\frac{\bar m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda \theta_{t-1}\right)

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.
        weight_decay: λ ≥ 0; 0 is :func:`nadam`. The default is that of :func:`adamw`;
            optax.nadamw has 1e-4.
        momentum_decay: ψ > 0, how fast μ warms up; ``math.inf`` for μ = β₁ from the start.
        constant_decay: let m decay by β₁, not μₜ.

    With ``constant_decay=True`` it equals torch.optim.NAdam with ``decoupled_weight_decay=True``,
    with ``momentum_decay=math.inf`` optax.nadamw.

    Source: Dozat 2016, Algorithm 2; Loshchilov & Hutter 2019 (arXiv 1711.05101), Algorithm 2.

    >>> opt = adamx.nadamw(1e-3, weight_decay=0.1, momentum_decay=jnp.inf)
    >>> theta = jnp.array([1.0, 1.0])
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(theta), theta)[0].round(6)
    Array([-0.001574,  0.001374], dtype=float32)
    """
    return chain(
        scale_by_nesterov_momentum(  # Adam: scale_by_momentum
            b1, momentum_decay, constant_decay=constant_decay
        ),
        scale_by_rms(b2, eps),
        bias_correction(),
        add_decayed_weights(weight_decay),  # NAdam: nothing
        scale_by_learning_rate(learning_rate),
    )


@recipe
def radam(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    threshold: Length = 5.0,
) -> Transformation:
    r"""RAdam: Adam that divides only after its second moment has averaged enough gradients.

    .. math::
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
        {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    .. math::
        \theta_t = \theta_{t-1} - \alpha \hat m_t \cdot \begin{cases}
        r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) & \rho_t > 5 \\
        1 & \text{otherwise} \end{cases}

    with the averages of :func:`adam`. The first five steps (for the default β₂) are steps of
    gradient descent with momentum, so their size is proportional to the gradients.

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v before the correction; the paper has no ε.
        threshold: the value that ρ must exceed, ≥ 4; 4 in the paper, 5 in the authors' code.

    Equals torch.optim.RAdam. optax.radam adds ε to √v̂; for this, use ``scale_by_rms(b2, eps)`` in
    the chain. Under a schedule of β₂, ρ is computed from the mean age of the gradients in v; torch
    and Optax use the current β₂ to the power t.

    Source: Liu et al. 2020 (arXiv 1908.03265), Algorithm 2.

    >>> opt = adamx.radam(1e-3)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.0001,  0.01  ], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps=0.0, eps_hat=eps),
        rectify(threshold),  # new in RAdam
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def adabelief(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    *,
    rectify: bool = False,
) -> Transformation:
    r"""AdaBelief: Adam with the squared difference of gradient and momentum as second moment.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        s_t &= \beta_2 s_{t-1} + (1-\beta_2) |g_t - m_t|^2 + \epsilon,
        & \hat s_t &= s_t / (1 - \beta_2^t) \\
        \theta_t &= \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat s_t} + \epsilon}

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to s in every step and to √ŝ.
        rectify: rectify the division as in :func:`radam`, with threshold 5 and with ε added to √s.
            The paper does not; the authors' package does by default since version 0.1.

    Equals the package adabelief-pytorch with ``rectify`` given, and optax.adabelief with its two ε
    (``eps`` and ``eps_root``) equal.

    Source: Zhuang et al. 2020 (arXiv 2010.07468), Algorithm 2.

    >>> opt = adamx.adabelief(1e-3)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0].round(6)
    Array([-0.001111,  0.001111], dtype=float32)
    """
    if rectify:
        belief = scale_by_belief(b2, eps=0.0, eps_hat=eps, eps_root=eps)
        division = chain(belief, stages.rectify(b2=Same("scale_by_belief", "b2")))
    else:
        division = scale_by_belief(b2, eps, eps_root=eps)
    return chain(
        scale_by_momentum(b1),
        division,  # Adam: scale_by_rms
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def laprop(
    learning_rate: NonNegative, b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-15
) -> Transformation:
    r"""LaProp: Adam with the momentum after the division.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        m_t &= \beta_1 m_{t-1} + (1-\beta_1)\, \alpha_t \frac{g_t}{\sqrt{\hat v_t} + \epsilon},
        & \theta_t &= \theta_{t-1} - \frac{m_t}{1 - \beta_1^t}

    Every gradient is divided by the root mean square at its own step. So no step is longer than
    α/√(1−β₂), for every β₁.

    Args:
        learning_rate: α ≥ 0; the momentum includes it; the authors' default is 4e-4.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂.

    Equals the authors' code for a constant learning rate. Under a schedule, the authors' code
    divides m by the average of the learning rate instead of the weight, and multiplies by the
    current learning rate. The result is a mean in which past steps are weighted by their α.

    Source: Ziyin, Wang & Ueda 2020 (arXiv 2002.04839), Algorithm 1.

    >>> opt = adamx.laprop(1e-3)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.001,  0.001], dtype=float32)
    """
    return chain(
        scale_by_rms(b2, eps),
        bias_correction(),
        scale_by_learning_rate(learning_rate),
        scale_by_momentum(b1),  # Adam: before the division
        bias_correction(),
    )


@recipe
def adam_atan2(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    a: Positive = 1.27,
    b: Positive = 1.0,
) -> Transformation:
    r"""Adam-atan2: Adam with the angle of m̂ and √v̂ in place of their quotient.

    .. math::
        \theta_t = \theta_{t-1}
        - \alpha\, a \operatorname{atan2}\left(\hat m_t, b \sqrt{\hat v_t}\right)

    with the averages of :func:`adam`. There is no ε. The step does not depend on the scale of the
    gradients, as long as their squares do not underflow, and never exceeds α·aπ/2.

    Args:
        learning_rate: α ≥ 0; the default of the package is 1e-4.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        a: > 0, the scale of the step; 1.27 ≈ 4/π makes it α where m̂ = √v̂.
        b: > 0, the scale of √v̂.

    Equals the package adam-atan2-pytorch.

    Source: Everett et al. 2024 (arXiv 2407.05872), Adam-atan2.

    >>> opt = adamx.adam_atan2(1e-3, a=4 / jnp.pi)
    >>> opt.update(jnp.array([1e-15, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.001,  0.001], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_atan2(b2, a, b),  # Adam: scale_by_rms, bias_correction
        scale_by_learning_rate(learning_rate),
    )


@recipe
def yogi(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    initial_accumulator_value: NonNegative = 1e-6,
) -> Transformation:
    r"""Yogi: Adam with an additive change of the second moment.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= v_{t-1} - (1-\beta_2) \operatorname{sign}(v_{t-1} - |g_t|^2) |g_t|^2,
        & v_0 &= a, \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        \theta_t &= \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    Args:
        learning_rate: α ≥ 0; the authors' default is 0.01.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂; the paper advises 1e-3.
        initial_accumulator_value: a ≥ 0, the value v₀.

    Equals optax.yogi except for the start of m, which is 0 here, as in the paper. Optax (like
    TensorFlow Addons) starts both m and v at ``initial_accumulator_value``, which biases the first
    steps in the negative direction. The paper's Algorithm 2 has no correction:
    ``chain(scale_by_momentum(b1), scale_by_yogi(b2, 0.0, eps_hat=ε), scale_by_learning_rate(α))``.

    Source: Zaheer et al. 2018, Adaptive methods for nonconvex optimization (NeurIPS), Algorithm 2.

    >>> opt = adamx.yogi(1e-2, eps=0.0, initial_accumulator_value=0.0)
    >>> opt.update(jnp.array([0.1, -10.0]), opt.init(jnp.zeros(2)))[0]
    Array([-0.01,  0.01], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_yogi(  # Adam: scale_by_rms
            b2, eps, initial_accumulator_value=initial_accumulator_value
        ),
        bias_correction(),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def adopt(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: NonNegative = 1e-6,
    *,
    clip: bool = True,
) -> Transformation:
    r"""ADOPT: Adam that converges for any β₂.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) \operatorname{clip}\left(
        \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, \pm (t-1)^{1/4}\right), \qquad m_1 = 0 \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad v_1 = |g_1|^2 \\
        \theta_t &= \theta_{t-1} - \alpha m_t

    The gradient is divided by the root mean square of the *previous* gradients, and then averaged.
    The first update is zero.

    Args:
        learning_rate: α ≥ 0; the authors' default is 0.001.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, a lower bound for the denominator.
        clip: clip the quotient to ±t^¼, as in the second version of the paper.

    Equals the authors' package and optax.contrib.adopt. There is no bias correction: v starts with
    the square of the first gradient, and m starts at zero.

    Source: Taniguchi et al. 2024 (arXiv 2411.02853), Algorithm 2.

    >>> opt = adamx.adopt(1e-3)
    >>> state = opt.init(jnp.zeros(2))
    >>> for _ in range(2):
    ...     updates, state = opt.update(jnp.array([0.1, -10.0]), state)
    >>> updates
    Array([-0.0001,  0.0001], dtype=float32)
    """
    return chain(
        scale_by_delayed_rms(b2, eps),  # Adam: scale_by_rms, after the momentum
        growing_clip() if clip else chain(),
        scale_by_momentum(b1),
        scale_by_learning_rate(learning_rate),
    )


@recipe
def stableadamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.01,
) -> Transformation:
    r"""StableAdamW: AdamW with AdaFactor's update clipping for each array.

    .. math::
        \text{RMS}_t &= \sqrt{\operatorname{mean} \frac{|g_t|^2}{\max(\hat v_t, \epsilon^2)}},
        \quad \eta_t = \frac{\alpha}{\max(1, \text{RMS}_t)} \\
        \theta_t &= \theta_{t-1} - \eta_t \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
        + \lambda \theta_{t-1}\right)

    with the averages of :func:`adam`. (The paper writes them as AdaFactor does, without m and v:
    :math:`\hat\beta = \beta (1 - \beta^{t-1})/(1 - \beta^t)` gives :math:`\hat m, \hat v`
    directly.)

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, added to √v̂; it is also the lower bound of √v̂ in the clipping.
        weight_decay: λ ≥ 0; the clipping includes it.

    Equals optimi.StableAdamW (torch-optimi).

    Source: Wortsman et al. 2023 (arXiv 2304.13013), Algorithm 2.

    >>> opt = adamx.stableadamw(1e-3, weight_decay=0.0)
    >>> state = opt.init(jnp.zeros(1))
    >>> for g in (0.1, -10.0):
    ...     updates, state = opt.update(jnp.array([g]), state, jnp.zeros(1))
    >>> updates
    Array([0.00052], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps),
        bias_correction(),
        add_decayed_weights(weight_decay),
        clip_by_relative_rms(eps),  # Adam, AdamW: nothing
        scale_by_learning_rate(learning_rate),
    )
