"""What single stages do to one array, in float64, written from the papers that they come from.

As in `reference`: ``grads`` is ``[steps, ...]``, ``params0`` are the parameters before the first
step, returned are the updates ``[steps, ...]``, which are added to the parameters. A number is a
float or an array ``[steps]``. A stage that is an algorithm without momentum and rate is asked of
that algorithm's oracle, with the rate −1.
"""

import numpy as np

import reference
import reference_moments as moments
import reference_shapes as shapes
from reference import _column, _per_step, _ratio, _squared, _wide, decaying_average, weight

__all__ = [
    "adaptive_clip",
    "add_decayed_weights",
    "averaged_with_correction",
    "belief",
    "cautious_descent",
    "clip_by_block_rms",
    "clip_by_norm_history",
    "clip_by_relative_rms",
    "clip_by_value",
    "clip_by_zscore",
    "descent_along_the_gradients_signs",
    "extrapolated_momentum",
    "factored_rms",
    "growing_clip",
    "max_rms",
    "mixed_momentum",
    "nesterov_momentum",
    "param_block_rms",
    "primal_average",
    "proximal_step",
    "rectified_rms",
    "reduce_variance",
    "rms_of_blocks",
    "scale_by_norm",
    "schedule_free",
    "trust_ratio",
    "two_rate_momentum",
    "unchanged",
    "yogi",
]


def unchanged(grads, params0, **numbers):
    """u ← u: a stage that only keeps something, or acts on narrow parameters only."""
    return _wide(grads)


def averaged_with_correction(grads, params0, b1):
    """m̂ = m / (1 − Πβ₁)."""
    return decaying_average(grads, b1) / weight(_column(b1, grads))


def _descended(grads, params0, step, *numbers):
    """The updates of ``step(g, θ, *numbers)``, each added to θ before the next."""
    theta, updates = _wide(params0), []
    for g, row in zip(_wide(grads), _per_step(grads, *numbers), strict=True):
        updates.append(step(g, theta, *row))
        theta = theta + updates[-1]
    return np.stack(updates)


def _norm(x, axis=None):
    return np.sqrt(np.sum(_squared(x), axis=axis, keepdims=axis is not None))


def add_decayed_weights(grads, params0, weight_decay):
    """u + λθ."""
    return _descended(grads, params0, lambda g, theta, decay: g + decay * theta, weight_decay)


def cautious_weight_decay(grads, params0, weight_decay):
    """Chen et al., arXiv 2510.12402: u + λθ where u and θ have the same sign."""

    def step(g, theta, decay):
        return g + decay * theta * ((g * np.conj(theta)).real > 0)

    return _descended(grads, params0, step, weight_decay)


def decay_weights(grads, params0, weight_decay):
    """u − λθ."""
    return _descended(grads, params0, lambda g, theta, decay: g - decay * theta, weight_decay)


def adaptive_clip(grads, params0, clipping, eps, axis=0):
    """Brock et al., arXiv 2102.06171, equation 3; a unit is a column of a matrix."""

    def step(g, theta, share, e):
        return shapes.adaptive_clip(g[None], theta, share, e, axis)[0]

    return _descended(grads, params0, step, clipping, eps)


def clip_by_block_rms(grads, params0, threshold):
    """u / max(1, RMS(u)/d).  Shazeer and Stern, arXiv 1804.04235, Section 6."""
    size = np.sqrt(np.prod(grads.shape[1:]))
    return shapes.clip_by_norm(grads, size * np.asarray(threshold))


def clip_by_relative_rms(grads, params0, b2, eps, threshold):
    """u / max(1, RMS/d), RMS² = mean(g²/max(v̂, ε²)), of u = g/(√v + ε√w).

    Wortsman et al., arXiv 2304.13013, Algorithm 2.
    """
    grads = _wide(grads)
    square = decaying_average(_squared(grads), b2)
    expected = np.maximum(square / weight(_column(b2, grads)), _column(eps, grads) ** 2)
    rms = np.sqrt(_ratio(_squared(grads), expected).reshape(len(grads), -1).mean(axis=1))
    divided = _over(grads, square, b2, eps, 0.0, 0.0)
    return divided / _column(np.maximum(1, rms / threshold), grads)


def growing_clip(grads, params0, exponent):
    """u clipped to ±tᵖ, t = 0 at first.  Taniguchi et al., arXiv 2411.02853, Algorithm 2."""
    grads = _wide(grads)
    t = np.arange(len(grads))
    bound = _column(np.where(t > 0, np.maximum(t, 1) ** np.asarray(exponent), 0), grads)
    size = np.abs(grads)
    return _ratio(grads, size) * np.minimum(size, bound)


def clip_by_value(grads, params0, max_value):
    """u of the same phase and the modulus min(|u|, c)."""
    grads = _wide(grads)
    size = np.abs(grads)
    return _ratio(grads, size) * np.minimum(size, _column(max_value, grads))


def clip_by_zscore(grads, params0, decay, threshold, eps, max_norm, warmup=5):
    """Kumar et al., arXiv 2504.02507, Algorithm 1, for one array, with a bound c.

    The first norms are kept in a list, whose mean and variance are taken at its end. Then
    z = (n − μ)/(σ + ε); where z > k, the norm becomes μ + kσ k/z; and μ, σ² are averaged over it.
    """
    clipped, seen = _wide(grads).copy(), []
    mu = var = None
    for t, (a, k, e, c) in enumerate(_per_step(clipped, decay, threshold, eps, max_norm)):
        n = norm = np.linalg.norm(clipped[t].ravel())
        if mu is None:
            seen.append(n)
            if len(seen) == warmup:
                mu, var = np.mean(seen), np.var(seen)
        else:
            if n > mu + k * (np.sqrt(var) + e):
                z = (n - mu) / (np.sqrt(var) + e)
                n = mu + k * np.sqrt(var) / (z / k)
            mu = a * mu + (1 - a) * n
            var = a * var + (1 - a) * (n - mu) ** 2
        most = min(n, c)
        clipped[t] *= most / norm if norm > most else 1.0
    return clipped


def clip_by_norm_history(grads, params0, decay, ratio, max_norm, warmup=5):
    """Wang et al., arXiv 2502.11034, Algorithm 1, for one array; norms of 0 do not count.

    In the first steps the norm is clipped to c, and γ is the least of them; then to λγ, and γ
    averages what the norms became.
    """
    clipped, gamma = _wide(grads).copy(), None
    for t, (b, share, c) in enumerate(_per_step(clipped, decay, ratio, max_norm)):
        n = np.linalg.norm(clipped[t].ravel())
        if n == 0:
            continue
        most = c if t < warmup else np.inf if gamma is None else share * gamma
        clipped[t] *= min(1.0, most / n)
        n = min(n, most)
        average = n if gamma is None else b * gamma + (1 - b) * n
        gamma = min(n, n if gamma is None else gamma) if t < warmup else average
    return clipped


def reduce_variance(grads, params0, b1, gamma):
    """g + γ β₁/(1−β₁) (g − g′), g′ = 0 at first.  Yuan et al., arXiv 2411.10438, Algorithm 2."""
    grads, b = _wide(grads), _column(b1, grads)
    change = np.diff(grads, axis=0, prepend=np.zeros_like(grads[:1]))
    return grads + _column(gamma, grads) * b / (1 - b) * change


def extrapolated_momentum(grads, params0, b1, b2):
    """m̂ + β₂ n̂, n the average of g − g′, 0 at first.  Xie et al., arXiv 2208.06677."""
    change = np.diff(_wide(grads), axis=0, prepend=grads[:1])
    n = averaged_with_correction(change, None, b2)
    return averaged_with_correction(grads, None, b1) + _column(b2, grads) * n


def rms_of_blocks(grads, params0, b2, eps, axes):
    """u / (√v + ε√w), v the average of the mean of g² over ``axes``.  arXiv 2406.16793."""
    grads = _wide(grads)
    square = _squared(grads).mean(tuple(axis + 1 for axis in axes), keepdims=True)
    w = weight(_column(b2, grads))
    return _ratio(grads, np.sqrt(decaying_average(square, b2)) + _column(eps, grads) * np.sqrt(w))


def factored_rms(grads, params0, decay_rate, eps, b2_cap):
    """g/√V, V = R C / mean(R) of a matrix.  Shazeer and Stern, arXiv 1804.04235, Algorithm 4."""
    grads = _wide(grads)
    t = np.arange(1, len(grads) + 1)
    beta = np.minimum(b2_cap, 1 - t ** -np.asarray(decay_rate))
    square = _squared(grads) + _column(eps, grads)
    row = decaying_average(square.mean(2, keepdims=True), beta)
    column = decaying_average(square.mean(1, keepdims=True), beta)
    return _ratio(grads, np.sqrt(row * column / row.mean(1, keepdims=True)))


def param_block_rms(grads, params0, min_scale):
    """max(ε₂, RMS(θ)) u.  Shazeer and Stern, arXiv 1804.04235, Section 8."""

    def step(g, theta, least):
        return max(least, np.sqrt(np.mean(_squared(theta)))) * g

    return _descended(grads, params0, step, min_scale)


def scale_by_norm(grads, params0, b2, eps):
    """u/(√v + ε), v ← β₂v + (1−β₂)‖g‖², at first ‖g‖².  Ginsburg et al., arXiv 1905.11286."""
    grads = _wide(grads)
    return shapes.novograd(grads, np.zeros_like(grads[0]), -1.0, 0.0, b2, eps, 0.0)


def trust_ratio(grads, params0, trust_coefficient, eps, weight_decay):
    """r (u + λθ), r = η‖θ‖/(‖u‖ + λ‖θ‖ + ε).  You et al., arXiv 1708.03888, equation 6."""

    def step(g, theta, eta, e, decay):
        length = _norm(theta)
        by = _norm(g) + decay * length + e
        return (eta * length / by if length > 0 and by > 0 else 1.0) * (g + decay * theta)

    return _descended(grads, params0, step, trust_coefficient, eps, weight_decay)


def nesterov_momentum(grads, params0, b1, momentum_decay, constant_decay=False):
    """μₜ₊₁ m / (1 − μ₁…μₜ₊₁) + (1−μₜ) g / (1 − μ₁…μₜ),  μₜ = β₁ (1 − 0.96^(tψ)/2).

    Dozat 2016, Algorithm 2. With ``constant_decay`` m decays with β₁ in place of μ.
    """
    grads = _wide(grads)
    t = _column(np.arange(1, len(grads) + 1), grads)
    b1, psi = _column(b1, grads), _column(momentum_decay, grads)
    mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (when * psi)) for when in (t, t + 1))
    product = np.cumprod(mu, axis=0)
    m = decaying_average(grads, (b1 if constant_decay else mu).ravel())
    return ahead * m / (1 - product * ahead) + (1 - mu) * grads / (1 - product)


def belief(grads, params0, b1, b2, eps, eps_root, eps_hat):
    """m/(√s + ε√w₂ + ε̂),  s ← β₂ s + (1−β₂) |g − m|² + ε_root.  Zhuang et al., arXiv 2010.07468."""
    grads = _wide(grads)
    m = decaying_average(grads, b1)
    s, kept = np.zeros(grads.shape[1:]), []
    for off, (beta, e) in zip(_squared(grads - m), _per_step(grads, b2, eps_root), strict=True):
        s = beta * s + (1 - beta) * off + e
        kept.append(s)
    w = weight(_column(b2, grads))
    e, e_hat = _column(eps, grads), _column(eps_hat, grads)
    return _ratio(m, np.sqrt(np.stack(kept)) + e * np.sqrt(w) + e_hat)


def max_rms(grads, params0, b2, eps, eps_root, eps_hat):
    """u/(√(n + ε_root w) + ε√w + ε̂), n the largest v so far.  Reddi et al., arXiv 1904.09237."""
    square = decaying_average(_squared(_wide(grads)), b2)
    return _over(grads, np.maximum.accumulate(square, axis=0), b2, eps, eps_root, eps_hat)


def yogi(grads, params0, b2, eps, eps_root, eps_hat, initial_accumulator_value):
    """v ← v − (1−β₂) sign(v − g²) g².  Zaheer et al., NeurIPS 2018, Algorithm 2."""
    squares, kept = _squared(_wide(grads)), []
    v = np.full(squares.shape[1:], initial_accumulator_value)
    for square, (beta,) in zip(squares, _per_step(grads, b2), strict=True):
        v = v - (1 - beta) * np.sign(v - square) * square
        kept.append(v)
    return _over(grads, np.stack(kept), b2, eps, eps_root, eps_hat)


def _over(grads, square, b2, eps, eps_root, eps_hat):
    w = weight(_column(b2, grads))
    e, e_root, e_hat = (_column(x, grads) for x in (eps, eps_root, eps_hat))
    return _ratio(_wide(grads), np.sqrt(square + e_root * w) + e * np.sqrt(w) + e_hat)


def rectified_rms(grads, params0, b2, eps, eps_root, eps_hat, threshold):
    """r u/(√(v̂ + ε_root) + ε + ε̂/√w) where the length exceeds the threshold, u elsewhere.

    Liu et al., arXiv 1908.03265, Algorithm 2; the places for ε as in `reference.adam`.
    """
    square = decaying_average(_squared(_wide(grads)), b2)
    r = _column(moments.rectification(b2, len(grads), threshold), grads)
    divided = _over(grads, square, b2, eps, eps_root, eps_hat)
    return np.where(r > 0, r * np.sqrt(weight(_column(b2, grads))) * divided, _wide(grads))


def proximal_step(grads, params0, learning_rate, weight_decay):
    """(θ − αu)/(1 + αλ) − θ.  Xie et al., arXiv 2208.06677, Algorithm 1."""

    def step(g, theta, rate, decay):
        return (theta - rate * g) / (1 + rate * decay) - theta

    return _descended(grads, params0, step, learning_rate, weight_decay)


def mixed_momentum(grads, params0, b1, b3, alpha, alpha_warmup, b3_warmup):
    """m̂ + α n, n the average with β₃, not corrected.

    Pagliardini, Ablin and Grangier, arXiv 2409.03137, Algorithm 1; the warm-ups: Appendix A.1.
    """
    if alpha_warmup:
        alpha = np.asarray(alpha) * np.minimum(np.arange(1, len(grads) + 1) / alpha_warmup, 1)
    if b3_warmup:
        b3 = shapes.ademamix_warm_up(len(grads), b1, b3, 1.0, b3_warmup)[1]
    fast = averaged_with_correction(grads, None, b1)
    return fast + _column(alpha, grads) * decaying_average(grads, b3)


def two_rate_momentum(grads, params0, b1, b2):
    """β₁ m + (1−β₁) g, and m ← β₂ m + (1−β₂) g.  Chen et al., arXiv 2302.06675, Algorithm 2."""
    after = decaying_average(grads, b2)
    before = np.concatenate([np.zeros_like(after[:1]), after[:-1]])
    b1 = _column(b1, grads)
    return b1 * before + (1 - b1) * _wide(grads)


def schedule_free(grads, params0, learning_rate, b1, r, weight_lr_power):
    """z ← z + u;  x ← (1−c) x + c z;  y = (1−β₁) z + β₁ x.  arXiv 2405.15682, equations 1-3."""
    x = y = z = _wide(params0)
    total, largest, updates = 0.0, 0.0, []
    numbers = _per_step(grads, learning_rate, b1, r, weight_lr_power)
    for t, (u, (rate, beta, ri, p)) in enumerate(zip(_wide(grads), numbers, strict=True), 1):
        largest = max(largest, rate)
        w = t**ri * largest**p
        total += w
        z = z + u
        x = x + w / total * (z - x)
        before, y = y, (1 - beta) * z + beta * x
        updates.append(y - before)
    return np.stack(updates)


def primal_average(grads, params0, interpolation, decay):
    """z ← z + u;  x ← μₓ x + (1−μₓ) z;  y = μ_y x + (1−μ_y) z.  arXiv 2512.17131."""
    x = y = z = _wide(params0)
    updates = []
    numbers = _per_step(grads, interpolation, decay)
    for u, (mu_y, mu_x) in zip(_wide(grads), numbers, strict=True):
        z = z + u
        x = mu_x * x + (1 - mu_x) * z
        before, y = y, mu_y * x + (1 - mu_y) * z
        updates.append(y - before)
    return np.stack(updates)


def cautious_descent(grads, params0, momentum, floor):
    """Heavy ball with the rate 1, masked where a step does not go against the gradient."""
    return shapes.cautious(reference.sgd(grads, 1.0, momentum), grads, floor)


def descent_along_the_gradients_signs(grads, params0, momentum):
    """−|u| sign(g) of heavy ball.  Cao, Li and Song, arXiv 2412.17107, Algorithm 1."""
    return -np.abs(reference.sgd(grads, 1.0, momentum)) * shapes.sign(grads)
