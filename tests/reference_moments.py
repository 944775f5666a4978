"""Adam's descendants in float64, written from their papers; conventions as in `reference`."""

import numpy as np

from reference import (
    _column,
    _per_step,
    _ratio,
    _squared,
    _wide,
    decaying_average,
    weight,
)

__all__ = [
    "adabelief",
    "adam_atan2",
    "adopt",
    "amsgrad",
    "laprop",
    "nadam",
    "radam",
    "sma_length",
    "stableadamw",
    "yogi",
]


def amsgrad(grads, learning_rate, b1, b2, eps, bias_correction=True):
    """AMSGrad.

    m ← β₁ m + (1−β₁) g;   v ← β₂ v + (1−β₂) g²;   n ← max(n, v)
    Δθ = −α m/w₁ / (√(n/w₂) + ε),   or without the correction   −α m / (√n + ε).

    Reddi, Kale, Kumar, arXiv 1904.09237, Algorithm 2, has no correction and no ε; with them it is
    torch.optim.Adam(amsgrad=True).
    """
    grads = _wide(grads)
    mean = decaying_average(grads, b1)
    largest = np.maximum.accumulate(decaying_average(_squared(grads), b2), axis=0)
    if bias_correction:
        mean = mean / weight(_column(b1, grads))
        largest = largest / weight(_column(b2, grads))
    step = _ratio(mean, np.sqrt(largest) + _column(eps, grads))
    return -_column(learning_rate, grads) * step


def nadam(grads, learning_rate, b1, b2, eps, momentum_decay, constant_decay=False):
    """NAdam.

    μₜ = β₁ (1 − 0.96^(tψ)/2);   m ← μ m + (1−μ) g;   v ← β₂ v + (1−β₂) g²
    m̄ = μₜ₊₁ m / (1 − μ₁…μₜ₊₁) + (1−μₜ) g / (1 − μ₁…μₜ);   Δθ = −α m̄ / (√(v/w₂) + ε).

    Dozat, "Incorporating Nesterov momentum into Adam", 2016, Algorithm 2, where ψ = 1/250, without
    its factor β₂ of v̂, which the author's own program does not have either. With
    ``constant_decay`` m ← β₁ m + (1−β₁) g instead, as in PyTorch and Keras.
    """
    grads = _wide(grads)
    t = np.arange(1, len(grads) + 2)
    b1_of = np.broadcast_to(np.asarray(b1, np.float64), (len(grads),))
    psi = np.broadcast_to(np.asarray(momentum_decay, np.float64), (len(grads),))
    mu = b1_of * (1 - 0.5 * 0.96 ** (t[:-1] * psi))
    ahead = b1_of * (1 - 0.5 * 0.96 ** (t[1:] * psi))
    product = np.cumprod(mu)
    mean = decaying_average(grads, b1 if constant_decay else mu)
    look = _column(ahead / (1 - product * ahead), grads) * mean
    look = look + _column((1 - mu) / (1 - product), grads) * grads
    square = decaying_average(_squared(grads), b2) / weight(_column(b2, grads))
    return -_column(learning_rate, grads) * _ratio(look, np.sqrt(square) + _column(eps, grads))


def sma_length(b2, steps):
    """RAdam's ρ of each step, and ρ∞.

    For a constant β₂ as the paper has it: ρ∞ = 2/(1−β₂) − 1, ρₜ = ρ∞ − 2tβ₂ᵗ/(1−β₂ᵗ). For β₂
    that change, from what the paper derives that from (Section 4.1): a simple average of ρ values
    has the mean age (ρ+1)/2, and ρ is that of which this is the mean age in the decaying average.
    """
    if np.ndim(b2) == 0:
        t = np.arange(1, steps + 1)
        longest = 2 / (1 - b2) - 1
        rho = longest - 2 * t * b2**t / -np.expm1(t * np.log(b2))
        return rho, np.full(steps, longest)
    rho, share, age = np.zeros(steps), np.zeros(0), np.zeros(0)
    for t, b in enumerate(b2):
        share = np.append(b * share, 1 - b)
        age = np.append(age + 1, 1)
        rho[t] = 2 * np.sum(share * age) / np.sum(share) - 1
    return rho, 2 / (1 - np.asarray(b2)) - 1


def rectification(b2, steps, threshold):
    """r where ρ exceeds the threshold, 0 elsewhere."""
    rho, longest = sma_length(b2, steps)
    r = np.zeros(steps)
    far = rho > threshold
    a, b = rho[far], longest[far]
    r[far] = np.sqrt((a - 4) * (a - 2) * b / ((b - 4) * (b - 2) * a))
    return r


def radam(grads, learning_rate, b1, b2, eps, threshold=5.0):
    """RAdam.

    m̂ = m/w₁;   Δθ = −α r m̂ √w₂ / (√v + ε) where ρ > 5;   Δθ = −α m̂ elsewhere.

    Liu et al., arXiv 1908.03265, Algorithm 2, where the threshold is 4 and ε = 0; 5 and ε are
    those of the authors' program.
    """
    grads = _wide(grads)
    square = decaying_average(_squared(grads), b2)
    mean = decaying_average(grads, b1) / weight(_column(b1, grads))
    scale = np.sqrt(square) + _column(eps, grads)
    r = _column(rectification(b2, len(grads), threshold), grads)
    divided = r * _ratio(mean * np.sqrt(weight(_column(b2, grads))), scale)
    return -_column(learning_rate, grads) * np.where(r > 0, divided, mean)


def adabelief(grads, learning_rate, b1, b2, eps, rectify=False):
    """AdaBelief.

    m ← β₁ m + (1−β₁) g;   s ← β₂ s + (1−β₂) (g−m)² + ε;   Δθ = −α m̂ / (√ŝ + ε).

    Zhuang et al., arXiv 2010.07468, Algorithm 2. With ``rectify`` as the authors' program:
    Δθ = −α r m̂ √w₂ / (√s + ε) where RAdam's ρ ≥ 5;   Δθ = −α m̂ elsewhere.
    """
    grads = _wide(grads)
    mean = decaying_average(grads, b1)
    spread = np.zeros(grads.shape)
    last = np.zeros(grads.shape[1:])
    for t, (b, e) in enumerate(_per_step(grads, b2, eps)):
        last = b * last + (1 - b) * _squared(grads[t] - mean[t]) + e
        spread[t] = last
    mean = mean / weight(_column(b1, grads))
    w2, eps = weight(_column(b2, grads)), _column(eps, grads)
    if rectify:
        r = _column(rectification(b2, len(grads), 5.0), grads)
        divided = r * np.sqrt(w2) * _ratio(mean, np.sqrt(spread) + eps)
        return -_column(learning_rate, grads) * np.where(r > 0, divided, mean)
    return -_column(learning_rate, grads) * _ratio(mean, np.sqrt(spread / w2) + eps)


def laprop(grads, learning_rate, b1, b2, eps, as_the_authors_code=False):
    """LaProp.

    v ← β₂ v + (1−β₂) g²;   m ← β₁ m + (1−β₁) α g / (√(v/w₂) + ε);   Δθ = −m / w₁.

    Ziyin, Wang, Ueda, arXiv 2002.04839, Algorithm 1, with α inside the average. The authors'
    program has in place of w₁ the average of α, over α: a ← β₁ a + (1−β₁) α;  Δθ = −α m / a.
    """
    grads = _wide(grads)
    square = decaying_average(_squared(grads), b2) / weight(_column(b2, grads))
    rate = _column(learning_rate, grads) * np.ones((len(grads),) + (1,) * (grads.ndim - 1))
    mean = decaying_average(rate * _ratio(grads, np.sqrt(square) + _column(eps, grads)), b1)
    if as_the_authors_code:
        return -mean * rate / decaying_average(rate, b1)
    return -mean / weight(_column(b1, grads))


def adam_atan2(grads, learning_rate, b1, b2, a, b):
    """Adam-atan2: Δθ = −α a atan2(m̂, b √v̂); of complex m̂ the modulus, with its phase.

    Everett et al., arXiv 2407.05872.
    """
    grads = _wide(grads)
    mean = decaying_average(grads, b1) / weight(_column(b1, grads))
    square = decaying_average(_squared(grads), b2) / weight(_column(b2, grads))
    angle = np.arctan2(np.abs(mean), _column(b, grads) * np.sqrt(square))
    step = _column(a, grads) * angle * _ratio(mean, np.abs(mean))
    return -_column(learning_rate, grads) * step


def yogi(
    grads,
    learning_rate,
    b1,
    b2,
    eps,
    initial_accumulator_value=0.0,
    mean_0=0.0,
    bias_correction=True,
):
    """Yogi.

    m ← β₁ m + (1−β₁) g;   v ← v − (1−β₂) sign(v − g²) g²
    Δθ = −α m / (√v + ε),   or with the correction   Δθ = −α m/w₁ / (√(v/w₂) + ε).

    Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018, Algorithm 2, without
    the correction. TensorFlow Addons and Optax have it, and start m at ``mean_0`` = v₀ too.
    """
    grads = _wide(grads)
    squares = _squared(grads)
    mean, square = decaying_average(grads, b1), np.zeros(grads.shape)
    mean = mean + mean_0 * np.cumprod(_column(b1, grads) + 0 * squares, axis=0)
    last = np.full(grads.shape[1:], float(initial_accumulator_value))
    for t, (b,) in enumerate(_per_step(grads, b2)):
        last = last - (1 - b) * np.sign(last - squares[t]) * squares[t]
        square[t] = last
    if bias_correction:
        mean = mean / weight(_column(b1, grads))
        square = square / weight(_column(b2, grads))
    step = _ratio(mean, np.sqrt(square) + _column(eps, grads))
    return -_column(learning_rate, grads) * step


def adopt(grads, learning_rate, b1, b2, eps, clip=True):
    """ADOPT.

    v₀ = g₀², Δθ₀ = 0;   for t = 1, 2, …:
    m ← β₁ m + (1−β₁) clip(g / max(√v, ε), ±t^(1/4));   Δθ = −α m;   v ← β₂ v + (1−β₂) g².

    Taniguchi et al., arXiv 2411.02853, Algorithm 2 (Algorithm 1 without the clipping). Of complex
    numbers the modulus is clipped.
    """
    grads = _wide(grads)
    updates, mean, square = np.zeros_like(grads), np.zeros_like(grads[0]), _squared(grads[0])
    hypers = list(_per_step(grads, learning_rate, b1, b2, eps))
    for t in range(1, len(grads)):
        rate, d1, d2, e = hypers[t]
        quotient = _ratio(grads[t], np.maximum(np.sqrt(square), e))
        if clip:
            size = np.abs(quotient)
            quotient = _ratio(quotient, size) * np.minimum(size, t**0.25)
        mean = d1 * mean + (1 - d1) * quotient
        updates[t] = -rate * mean
        square = d2 * square + (1 - d2) * _squared(grads[t])
    return updates


def stableadamw(grads, params0, learning_rate, b1, b2, eps, weight_decay, threshold=1.0):
    """StableAdamW, of one array.

    v̂ = v/w₂;   RMS = √mean(g² / max(v̂, ε²));   η = α / max(1, RMS)
    Δθ = −η (m̂ / (√v̂ + ε) + λ θ).

    Wortsman et al., arXiv 2304.13013, Algorithm 2, which writes the averages as AdaFactor does.
    """
    grads, params = _wide(grads), _wide(params0)
    mean = decaying_average(grads, b1) / weight(_column(b1, grads))
    square = decaying_average(_squared(grads), b2) / weight(_column(b2, grads))
    step = _ratio(mean, np.sqrt(square) + _column(eps, grads))
    surprise = _ratio(_squared(grads), np.maximum(square, _column(eps, grads) ** 2))
    rms = np.sqrt(surprise.reshape(len(grads), -1).mean(axis=1))
    updates = np.zeros_like(step)
    for t, (rate, decay) in enumerate(_per_step(grads, learning_rate, weight_decay)):
        eta = rate / max(1, rms[t] / threshold)
        updates[t] = -eta * (step[t] + decay * params)
        params = params + updates[t]
    return updates
