"""Rules with iterates, distances or shared moments, in float64, from their papers.

The conventions are those of ``reference``. Rules that look at the parameters take ``params0``,
where the run starts.
"""

import math

import numpy as np

from reference import _column, _per_step, _ratio, _squared, _wide, adam, sgd, weight

__all__ = [
    "adafactor",
    "adamc",
    "block_adam",
    "corrected_decay",
    "gpa_adamw",
    "prodigy",
    "radial_brake",
    "schedule_free_adamw",
]


def schedule_free_adamw(
    grads,
    params0,
    learning_rate,
    b1,
    b2,
    eps,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    power=2.0,
    paper=False,
):
    """Schedule-free AdamW: the updates of y, and the path of x.

    γₜ = γ min(1, t/T);   v ← β₂ v + (1−β₂) g²
    z ← z − γₜ (g / (√v̂ + ε) + λ y)
    c = wₜ / Σw with wₜ = tʳ (max γ)ᵖ;   x ← (1−c) x + c z;   y = (1−β₁) z + β₁ x.

    Defazio et al., arXiv 2405.15682, Algorithm 1, has γ √(1−β₂ᵗ) in place of γ and v in place of v̂:
    that is ``paper``, and AdamWScheduleFreePaper of the authors' package. Its default optimiser
    has v̂ = v / (1−β₂ᵗ).
    """
    grads = _wide(grads)
    w2 = weight(_column(b2, grads)).ravel()
    x = y = z = _wide(params0)
    v, total, largest = np.zeros(grads.shape[1:]), 0.0, 0.0
    updates, evaluated = [], []
    numbers = _per_step(grads, learning_rate, b1, b2, eps, weight_decay, warmup_steps, r, power)
    for t, (rate, beta, decay, e, lam, warm, ri, p) in enumerate(numbers, 1):
        rate = rate * min(1.0, t / warm) if warm else rate
        g = grads[t - 1]
        v = decay * v + (1 - decay) * _squared(g)
        seen = w2[t - 1]
        if paper:
            rate, seen = rate * np.sqrt(seen), 1.0
        z = z - rate * (_ratio(g, np.sqrt(v / seen) + e) + lam * y)
        largest = max(largest, rate)
        w = t**ri * largest**p
        total += w
        c = w / total if total else 0.0
        x = (1 - c) * x + c * z
        before, y = y, (1 - beta) * z + beta * x
        updates.append(y - before)
        evaluated.append(x)
    return np.stack(updates), np.stack(evaluated)


def gpa_adamw(grads, params0, learning_rate, b1, b2, eps, weight_decay, interpolation, decay):
    """GPA-AdamW: the updates of y, and the path of x.

    y = μ_y x + (1−μ_y) z;   m ← β₁ m + (1−β₁) g;   v ← β₂ v + (1−β₂) g²
    z ← z − α (m̂ / (√v̂ + ε) + λ y);   x ← μ_x x + (1−μ_x) z.

    Defazio et al., arXiv 2512.17131, and GPAAdamW of facebookresearch/optimizers, which corrects m
    and v and adds the decay of y.
    """
    grads = _wide(grads)
    x = y = z = _wide(params0)
    m, v, updates, evaluated = np.zeros_like(x), np.zeros(grads.shape[1:]), [], []
    left1 = left2 = 1.0
    numbers = _per_step(grads, learning_rate, b1, b2, eps, weight_decay, interpolation, decay)
    for g, (rate, beta1, beta2, e, lam, mu_y, mu_x) in zip(grads, numbers, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * _squared(g)
        left1, left2 = left1 * beta1, left2 * beta2
        z = z - rate * (_ratio(m / (1 - left1), np.sqrt(v / (1 - left2)) + e) + lam * y)
        x = mu_x * x + (1 - mu_x) * z
        before, y = y, mu_y * x + (1 - mu_y) * z
        updates.append(y - before)
        evaluated.append(x)
    return np.stack(updates), np.stack(evaluated)


def prodigy(
    grads,
    params0,
    learning_rate,
    b1,
    b2,
    b3,
    eps,
    weight_decay=0.0,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=math.inf,
    use_bias_correction=False,
    safeguard_warmup=False,
):
    """Prodigy with Adam's averages: the updates, and d after each step.

    r ← β₃ r + η d² ⟨g, θ₀ − θ⟩;   s ← β₃ s + η d² g   (d² without η if safeguarded)
    m ← β₁ m + (1−β₁) d g;   v ← β₂ v + (1−β₂) d² g²
    d̂ = coef · r / ‖s‖₁;   d_max ← max(d_max, d̂);   d′ = min(d_max, growth · d)
    Δθ = −η d (m / (√v + d′ ε) + λ θ)

    with η = α κ, κ = √(1−β₂ᵗ)/(1−β₁ᵗ) if biases are corrected, else 1. While d is d₀, it is
    replaced by max(d, d̂) before it grows. Nothing changes d as long as s = 0.

    Mishchenko and Defazio, arXiv 2306.06101, Section 5 (the Adam version); which of the two d
    multiplies ε, the growth, the coefficient and the safeguard: the authors' prodigyopt.
    """
    grads, start = _wide(grads), _wide(params0)
    theta, m, v, s = start, np.zeros_like(start), np.zeros(start.shape), np.zeros_like(start)
    r, d, d_max = 0.0, d0, d0
    w1, w2 = (weight(_column(b, grads)).ravel() for b in (b1, b2))
    updates, distances = [], []
    numbers = _per_step(grads, learning_rate, b1, b2, b3, eps, weight_decay, d_coef, growth_rate)
    for t, (rate, beta1, beta2, beta3, e, lam, coef, growth) in enumerate(numbers):
        g = grads[t]
        eta = rate * (np.sqrt(w2[t]) / w1[t] if use_bias_correction else 1.0)
        inner = np.sum((np.conj(g) * (start - theta)).real)
        r = beta3 * r + eta * d**2 * inner
        s = beta3 * s + (1.0 if safeguard_warmup else eta) * d**2 * g
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * _squared(g)
        before, norm = d, np.sum(np.abs(s))
        if norm > 0:
            estimate = coef * r / norm
            if d == d0:
                d = max(d, estimate)
            d_max = max(d_max, estimate)
            d = min(d_max, d * growth)
        update = -eta * before * (_ratio(m, np.sqrt(v) + d * e) + lam * theta)
        theta = theta + update
        updates.append(update)
        distances.append(d)
    return np.stack(updates), np.asarray(distances)


def adafactor(
    grads,
    params0,
    learning_rate,
    axes=None,
    decay_rate=0.8,
    eps=1e-30,
    min_scale=1e-3,
    threshold=1.0,
    b2_cap=1.0,
):
    """Adafactor of one array.

    β = min(cap, 1 − t^−rate);   R, C: averages of the means of g² + ε over one axis each
    V = R C / mean(R), or, not factored, V: the average of g² + ε
    U = g / √V;   Û = U / max(1, RMS(U)/threshold);   Δθ = −α max(min_scale, RMS(θ)) Û.

    ``axes`` are the two that R and C have lost, None where nothing is factored. Shazeer and
    Stern, arXiv 1804.04235, Algorithms 4 and 5 (sums in place of means cancel in V).
    """
    grads, theta = _wide(grads), _wide(params0)
    row = column = full = 0.0
    updates = []
    numbers = _per_step(grads, learning_rate, decay_rate, eps, min_scale, threshold, b2_cap)
    for t, (rate, power, e, least, limit, cap) in enumerate(numbers, 1):
        g = grads[t - 1]
        beta = min(cap, 1 - t**-power)
        square = _squared(g) + e
        if axes is None:
            full = beta * full + (1 - beta) * square
            u = g / np.sqrt(full)
        else:
            row = beta * row + (1 - beta) * square.mean(axes[0], keepdims=True)
            column = beta * column + (1 - beta) * square.mean(axes[1], keepdims=True)
            u = g / np.sqrt(row * column / row.mean(axes[1], keepdims=True))
        u = u / max(1.0, _rms(u) / limit)
        update = -rate * max(least, _rms(theta)) * u
        theta = theta + update
        updates.append(update)
    return np.stack(updates)


def block_adam(grads, params0, learning_rate, b1, b2, eps, axes, weight_decay=0.0):
    """Adam with one second moment for all elements along ``axes`` (Adam-mini).

    m ← β₁ m + (1−β₁) g;   v ← β₂ v + (1−β₂) mean of g² over the axes
    Δθ = −α (m̂ / (√v̂ + ε) + λ θ).

    Zhang et al., arXiv 2406.16793, Algorithm 1.
    """
    grads, theta = _wide(grads), _wide(params0)
    w1, w2 = (weight(_column(b, grads)).ravel() for b in (b1, b2))
    m, v = np.zeros_like(theta), 0.0
    updates = []
    numbers = _per_step(grads, learning_rate, b1, b2, eps, weight_decay)
    for t, (rate, beta1, beta2, e, lam) in enumerate(numbers):
        g = grads[t]
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * _squared(g).mean(axes, keepdims=True)
        update = -rate * (_ratio(m / w1[t], np.sqrt(v / w2[t]) + e) + lam * theta)
        theta = theta + update
        updates.append(update)
    return np.stack(updates)


def _rms(array):
    return np.sqrt(np.mean(_squared(array)))


def corrected_decay(grads, params0, learning_rate, weight_decay, max_learning_rate, updates=None):
    """Weight decay with the square of the rate: Δθ′ = Δθ − (α²/α_max) λ θ.

    Without ``updates``, of gradient descent. Defazio, arXiv 2506.02285 (AdamC).
    """
    grads = _wide(grads)
    updates = -_column(learning_rate, grads) * grads if updates is None else updates.copy()
    params = _wide(params0)
    for t, (rate, decay, most) in enumerate(
        _per_step(updates, learning_rate, weight_decay, max_learning_rate)
    ):
        updates[t] -= rate**2 / most * decay * params
        params = params + updates[t]
    return updates


def adamc(grads, params0, learning_rate, b1, b2, eps, weight_decay, max_learning_rate):
    """AdamC, of a matrix of a normalised layer."""
    updates = adam(grads, learning_rate, b1, b2, eps)
    return corrected_decay(grads, params0, learning_rate, weight_decay, max_learning_rate, updates)


def radial_brake(grads, params0, momentum, outward, inward):
    """Gradient descent with the rate 1, of whose growth of the norm a part is kept.

    ‖θ′‖ = ‖θ‖ + s (‖θ + u‖ − ‖θ‖), in the direction of θ + u.
    """
    params, updates = _wide(params0), []
    descent = sgd(grads, 1.0, momentum)
    for u, (out, into) in zip(descent, _per_step(descent, outward, inward), strict=True):
        moved = params + u
        before, after = np.linalg.norm(params), np.linalg.norm(moved)
        growth = after - before
        kept = before + (out if growth > 0 else into) * growth
        updates.append(moved * kept / after - params if after else u)
        params = params + updates[-1]
    return np.array(updates)
