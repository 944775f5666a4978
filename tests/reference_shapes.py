"""Signs, layers, differences and slow weights in float64, written from their papers.

As in `reference`: ``grads`` is ``[steps, ...]``, returned are the updates Δθ, sign included, and a
hyperparameter is a number or an array ``[steps]``. One call is one array: what the papers call a
layer. Rules that look at the parameters take where they start, ``params0``.
"""

import numpy as np

from reference import (
    _column,
    _per_step,
    _ratio,
    _squared,
    _wide,
    adam,
    decaying_average,
    decoupled_weight_decay,
    weight,
)

__all__ = [
    "adan",
    "adaptive_clip",
    "ademamix",
    "ademamix_warm_up",
    "cautious",
    "cautious_adamw",
    "clip_by_norm",
    "grams",
    "lamb",
    "lars",
    "lion",
    "lookahead",
    "mars",
    "novograd",
    "sign",
    "signum",
]


def sign(values):
    """x/|x|, and 0 of 0."""
    return _ratio(_wide(values), np.abs(values))


def signum(grads, learning_rate, b1):
    """m ← β m + (1−β) g;   Δθ = −α sign(m).

    Bernstein et al., arXiv 1802.04434, Algorithm 2.
    """
    return -_column(learning_rate, grads) * sign(decaying_average(grads, b1))


def lion(grads, params0, learning_rate, b1, b2, weight_decay):
    """c = β₁ m + (1−β₁) g;   Δθ = −α (sign(c) + λθ);   m ← β₂ m + (1−β₂) g.

    Chen et al., arXiv 2302.06675, Algorithm 2.
    """
    grads = _wide(grads)
    after = decaying_average(grads, b2)
    before = np.concatenate([np.zeros_like(after[:1]), after[:-1]])
    b1 = _column(b1, grads)
    updates = -_column(learning_rate, grads) * sign(b1 * before + (1 - b1) * grads)
    return decoupled_weight_decay(updates, params0, learning_rate, weight_decay)


def cautious(updates, grads, floor):
    """Steps Δθ masked where they don't go against the gradient, and scaled up.

    φ = 1[Δθ · g < 0];   Δθ′ = φ Δθ / max(mean φ, c).

    Liang et al., arXiv 2411.16085, Algorithm 1; the maximum is the authors' code's.
    """
    updates, grads = _wide(updates).copy(), _wide(grads)
    for t, (c,) in enumerate(_per_step(grads, floor)):
        phi = (updates[t] * grads[t].conj()).real < 0
        updates[t] *= phi / max(np.mean(phi), c)
    return updates


def cautious_adamw(
    grads, params0, learning_rate, b1, b2, eps, weight_decay, floor=1e-3, eps_hat=0.0
):
    """Adam's steps made cautious, and the weight decay beside them."""
    steps = cautious(adam(grads, learning_rate, b1, b2, eps, eps_hat=eps_hat), grads, floor)
    return decoupled_weight_decay(steps, params0, learning_rate, weight_decay)


def grams(grads, params0, learning_rate, b1, b2, eps, weight_decay, eps_hat=0.0):
    """Δθ = −α (|m̂ / (√v̂ + ε)| sign(g) + λθ).

    Cao, Li and Song, arXiv 2412.17107, Algorithm 1.
    """
    steps = -np.abs(adam(grads, learning_rate, b1, b2, eps, eps_hat=eps_hat)) * sign(grads)
    return decoupled_weight_decay(steps, params0, learning_rate, weight_decay)


def lamb(grads, params0, learning_rate, b1, b2, eps, weight_decay):
    """r = m̂ / (√v̂ + ε) + λθ;   Δθ = −α ‖θ‖/‖r‖ r, the ratio 1 where a norm is 0.

    You et al., arXiv 1904.00962, Algorithm 2.
    """
    directions = -adam(grads, 1.0, b1, b2, eps)
    params, updates = _wide(params0), np.zeros_like(directions)
    for t, (rate, decay) in enumerate(_per_step(directions, learning_rate, weight_decay)):
        r = directions[t] + decay * params
        length, other = np.linalg.norm(params.ravel()), np.linalg.norm(r.ravel())
        ratio = length / other if length > 0 and other > 0 else 1.0
        updates[t] = -rate * ratio * r
        params = params + updates[t]
    return updates


def lars(
    grads,
    params0,
    learning_rate,
    momentum,
    weight_decay,
    trust_coefficient,
    eps=0.0,
    nesterov=False,
    norm_of_sum=False,
):
    """r = η ‖θ‖ / (‖g‖ + λ‖θ‖);   b ← μ b + α r (g + λθ);   Δθ = −b.

    You, Gitman and Ginsburg, arXiv 1708.03888, Algorithm 1. The ratio is 1 where a norm is 0.
    With ``norm_of_sum`` the denominator is ‖g + λθ‖, as Optax has it; with ``nesterov`` the step
    is α r (g + λθ) + μ b.
    """
    grads = _wide(grads)
    params, ball, updates = _wide(params0), np.zeros_like(grads[0]), np.zeros_like(grads)
    numbers = _per_step(grads, learning_rate, momentum, weight_decay, trust_coefficient, eps)
    for t, (rate, mu, decay, eta, e) in enumerate(numbers):
        g, length = grads[t], np.linalg.norm(params.ravel())
        pull = g + decay * params
        by = np.linalg.norm(g.ravel()) + decay * length + e
        if norm_of_sum:
            by = np.linalg.norm(pull.ravel()) + e
        ratio = eta * length / by if length > 0 and by > 0 else 1.0
        ball = mu * ball + rate * ratio * pull
        updates[t] = -(rate * ratio * pull + mu * ball if nesterov else ball)
        params = params + updates[t]
    return updates


def novograd(grads, params0, learning_rate, b1, b2, eps, weight_decay):
    """v ← β₂ v + (1−β₂) ‖g‖², v₁ = ‖g₁‖²;   m ← β₁ m + g/(√v + ε) + λθ;   Δθ = −α m.

    Ginsburg et al., arXiv 1905.11286, Algorithm 1. The first v is that of the first gradient
    that is not zero.
    """
    grads = _wide(grads)
    params, m, v, updates = _wide(params0), 0.0, 0.0, np.zeros_like(grads)
    numbers = _per_step(grads, learning_rate, b1, b2, eps, weight_decay)
    for t, (rate, beta1, beta2, e, decay) in enumerate(numbers):
        square = np.sum(_squared(grads[t]))
        v = square if v == 0 else beta2 * v + (1 - beta2) * square
        m = beta1 * m + _ratio(grads[t], np.sqrt(v) + e) + decay * params
        updates[t] = -rate * m
        params = params + updates[t]
    return updates


def clip_by_norm(values, max_norm):
    """x · min(1, c/‖x‖) at every step."""
    clipped = _wide(values).copy()
    for t, (c,) in enumerate(_per_step(clipped, max_norm)):
        length = np.linalg.norm(clipped[t].ravel())
        clipped[t] *= c / length if length > c else 1.0
    return clipped


def mars(
    grads,
    params0,
    learning_rate,
    b1,
    b2,
    eps,
    weight_decay,
    gamma,
    max_norm=1.0,
    first_difference_is_zero=False,
):
    """c = g + γ β₁/(1−β₁) (g − g′), clipped to the norm 1; then AdamW with c for g.

    Yuan et al., arXiv 2411.10438, Algorithm 2, with g′ the gradient that was last given. Before
    the first there was none: the authors' code takes 0; the paper starts with x₁ = x₀, so that
    its first difference is 0.
    """
    grads = _wide(grads)
    difference = np.diff(grads, axis=0, prepend=np.zeros_like(grads[:1]))
    if first_difference_is_zero:
        difference[0] = 0
    b = _column(b1, grads)
    c = clip_by_norm(grads + _column(gamma, grads) * b / (1 - b) * difference, max_norm)
    updates = adam(c, learning_rate, b1, b2, eps)
    return decoupled_weight_decay(updates, params0, learning_rate, weight_decay)


def adan(grads, params0, learning_rate, b1, b2, b3, eps, weight_decay, proximal=True):
    """d = g − g′, 0 at first; m, n, v the averages of g, d and |g + β₂d|²
    θ ← (θ − α (m̂ + β₂ n̂)/(√v̂ + ε)) / (1 + αλ),   or   θ − α (… + λθ).

    Xie et al., arXiv 2208.06677, Algorithm 1, where each β is called 1 − β. The corrections are
    the authors' code's, the paper starts the averages with their first values.
    """
    grads = _wide(grads)
    d = np.diff(grads, axis=0, prepend=grads[:1])
    ahead = grads + _column(b2, grads) * d
    w1, w2, w3 = (weight(_column(b, grads)) for b in (b1, b2, b3))
    m, n, v = (decaying_average(x, b) for x, b in ((grads, b1), (d, b2), (_squared(ahead), b3)))
    u = _ratio(m / w1 + _column(b2, grads) * n / w2, np.sqrt(v / w3) + _column(eps, grads))
    params, updates = _wide(params0), np.zeros_like(grads)
    for t, (rate, decay) in enumerate(_per_step(grads, learning_rate, weight_decay)):
        after = (
            (params - rate * u[t]) / (1 + rate * decay)
            if proximal
            else params - rate * (u[t] + decay * params)
        )
        updates[t] = after - params
        params = after
    return updates


def ademamix(grads, params0, learning_rate, b1, b2, b3, alpha, eps, weight_decay):
    """Δθ = −η ((m̂ + α n)/(√v̂ + ε) + λθ), with n an average of g with β₃, not corrected.

    Pagliardini, Ablin and Grangier, arXiv 2409.03137, Algorithm 1.
    """
    grads = _wide(grads)
    w1, w2 = weight(_column(b1, grads)), weight(_column(b2, grads))
    momentum = decaying_average(grads, b1) / w1
    momentum = momentum + _column(alpha, grads) * decaying_average(grads, b3)
    rms = np.sqrt(decaying_average(_squared(grads), b2) / w2)
    updates = -_column(learning_rate, grads) * _ratio(momentum, rms + _column(eps, grads))
    return decoupled_weight_decay(updates, params0, learning_rate, weight_decay)


def ademamix_warm_up(steps, b1, b3, alpha, warm_up):
    """α and β₃ at the steps t = 1, 2, …: min(α t/T, α), and

    β₃(t) = min(exp(log β₁ log β₃ / ((1 − t/T) log β₃ + (t/T) log β₁)), β₃).

    Pagliardini, Ablin and Grangier, arXiv 2409.03137, Appendix A.1.
    """
    t = np.arange(1, steps + 1) / warm_up
    first, last = np.log(b1), np.log(b3)
    with np.errstate(over="ignore", divide="ignore"):
        b3_t = np.exp(first * last / ((1 - t) * last + t * first))
    return np.minimum(alpha * t, alpha), np.where(t < 1, b3_t, b3)


def lookahead(updates, params0, sync_period, slow_step_size):
    """Every k-th step: φ ← φ + α (θ − φ) with θ after the inner step, then θ ← φ.

    Zhang et al., arXiv 1907.08610, Algorithm 1. The inner updates must not depend on the
    parameters.
    """
    inner, fast, slow = _wide(updates), _wide(params0), _wide(params0)
    updates = np.zeros_like(inner)
    for t, (alpha,) in enumerate(_per_step(inner, slow_step_size)):
        after = fast + inner[t]
        if (t + 1) % sync_period == 0:
            after = slow = slow + alpha * (after - slow)
        updates[t] = after - fast
        fast = after
    return updates


def adaptive_clip(grads, params, clipping, eps, axes):
    """g_i · min(1, λ max(‖θ_i‖, ε)/‖g_i‖), with norms over ``axes``, for fixed parameters.

    Brock et al., arXiv 2102.06171, equation 3.
    """
    grads, params = _wide(grads).copy(), _wide(params)
    for t, (share, e) in enumerate(_per_step(grads, clipping, eps)):
        length = np.sqrt(np.sum(_squared(grads[t]), axis=axes, keepdims=True))
        most = share * np.maximum(np.sqrt(np.sum(_squared(params), axis=axes, keepdims=True)), e)
        grads[t] *= _ratio(most, np.maximum(length, most))
    return grads
