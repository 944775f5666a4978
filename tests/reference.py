"""The algorithms in float64, written from their papers: what the tests compare against.

Every function takes ``grads``, an array ``[steps, ...]`` of the gradients g₁, g₂, …, and returns
the array ``[steps, ...]`` of *updates* Δθ₁, Δθ₂, …, sign included: θₜ = θₜ₋₁ + Δθₜ. A
hyperparameter is a number or an array ``[steps]`` of the values in force at each step.

Complex gradients are one number each: g² stands for the squared modulus |g|², so second moments
are real. Where a formula reads 0/0 (a coordinate that has never moved, ε = 0) the step is 0.
"""

import numpy as np

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "decaying_average",
    "decoupled_weight_decay",
    "lp_norm",
    "momentum_sum",
    "polyak",
    "rmsprop",
    "sgd",
    "weight",
]


def sgd(grads, learning_rate, momentum=0.0, nesterov=False):
    """Gradient descent with the heavy ball, or with Nesterov's momentum.

    b ← μ b + g;   Δθ = −α b,   or with Nesterov's momentum   Δθ = −α (g + μ b).

    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Nesterov's
    form: Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013, Section 2, rewritten for gradients taken where the parameters are (Bengio et al.,
    arXiv 1212.0901, Section 3.5). The paper has α inside the buffer, which is the same for a
    constant α.
    """
    grads = _wide(grads)
    return -_column(learning_rate, grads) * _accelerated(grads, momentum, nesterov)


def adagrad(grads, learning_rate, eps, initial_accumulator_value=0.0):
    """AdaGrad with a diagonal matrix.

    s ← s + g²;   Δθ = −α g / (√s + ε).

    Duchi, Hazan, Singer, JMLR 12 (2011), Figure 1, with H = δI + diag(√s); there s starts at 0.
    """
    grads = _wide(grads)
    total = initial_accumulator_value + np.cumsum(_squared(grads), axis=0)
    step = _ratio(grads, np.sqrt(total) + _column(eps, grads))
    return -_column(learning_rate, grads) * step


def adadelta(grads, learning_rate, rho, eps):
    """AdaDelta.

    E[g²] ← ρ E[g²] + (1−ρ) g²
    δ = √(E[δ²] + ε) / √(E[g²] + ε) · g
    E[δ²] ← ρ E[δ²] + (1−ρ) δ²;   Δθ = −α δ.

    Zeiler, arXiv 1212.5701, Algorithm 1, where α = 1.
    """
    grads = _wide(grads)
    mean_square = decaying_average(_squared(grads), rho)
    delta = np.zeros_like(grads)
    delta_square = np.zeros(grads.shape[1:])
    for t, (r, e) in enumerate(_per_step(grads, rho, eps)):
        delta[t] = _ratio(np.sqrt(delta_square + e) * grads[t], np.sqrt(mean_square[t] + e))
        delta_square = r * delta_square + (1 - r) * _squared(delta[t])
    return -_column(learning_rate, grads) * delta


def rmsprop(grads, learning_rate, decay, eps, centered=False, momentum=0.0, nesterov=False):
    """RMSProp, plain or centered, with or without momentum on the scaled gradient.

    v ← ρ v + (1−ρ) g²;   u = g / (√v + ε)
    centered:  n ← ρ n + (1−ρ) g;   u = g / (√(v − |n|²) + ε)
    then `sgd` (its momentum, its learning rate) with u for g.

    Tieleman and Hinton, Coursera "Neural Networks for Machine Learning", Lecture 6.5, 2012;
    centered and with momentum: Graves, arXiv 1308.0850, Section 4.2, who adds ε inside the root.
    No bias correction.
    """
    grads = _wide(grads)
    square = decaying_average(_squared(grads), decay)
    if centered:
        variance = square - _squared(decaying_average(grads, decay))
        square = np.maximum(variance, 0)  # the mean of a constant may round to just above it
    scaled = _ratio(grads, np.sqrt(square) + _column(eps, grads))
    return sgd(scaled, learning_rate, momentum, nesterov)


def adam(grads, learning_rate, b1, b2, eps=0.0, eps_root=0.0, eps_hat=0.0, bias_correction=True):
    """Adam, with each of the three places for ε.

    m ← β₁ m + (1−β₁) g;   v ← β₂ v + (1−β₂) g²
    w₁ = 1 − Πβ₁,   w₂ = 1 − Πβ₂;   m̂ = m/w₁,   v̂ = v/w₂
    Δθ = −α m̂ / (√(v̂ + ε_root) + ε)               (Algorithm 1, with ε_root = 0)
    Δθ = −α √w₂/w₁ · m / (√v + ε̂)                  (the reordered form in Section 2).

    Both at once: Δθ = −α √w₂/w₁ · m / (√(v + ε_root w₂) + ε √w₂ + ε̂). Without the bias
    correction the factor √w₂/w₁ is left out, and nothing else.

    Kingma and Ba, arXiv 1412.6980, Algorithm 1, Section 2; for β that change, the products in
    place of βᵗ follow from Section 3: w is the sum of the weights in the average.
    """
    grads = _wide(grads)
    mean = decaying_average(grads, b1)
    square = decaying_average(_squared(grads), b2)
    w1, w2 = weight(_column(b1, grads)), weight(_column(b2, grads))
    eps, eps_root, eps_hat = (_column(e, grads) for e in (eps, eps_root, eps_hat))
    scale = np.sqrt(square + eps_root * w2) + eps * np.sqrt(w2) + eps_hat
    step = _ratio(np.sqrt(w2) * mean, w1 * scale) if bias_correction else _ratio(mean, scale)
    return -_column(learning_rate, grads) * step


def adamax(grads, learning_rate, b1, b2, eps):
    """AdaMax.

    m ← β₁ m + (1−β₁) g;   n ← max(β₂ n, |g| + ε);   Δθ = −α m / ((1 − Πβ₁) n).

    Kingma and Ba, arXiv 1412.6980, Section 7.1, Algorithm 2, where ε = 0.
    """
    grads = _wide(grads)
    mean = decaying_average(grads, b1)
    norm = np.abs(grads) + _column(eps, grads)
    for t, (b,) in enumerate(_per_step(grads, b2)):
        if t > 0:
            norm[t] = np.maximum(b * norm[t - 1], norm[t])
    step = _ratio(mean, weight(_column(b1, grads)) * norm)
    return -_column(learning_rate, grads) * step


def lp_norm(grads, p, b2, eps, bias_correction=True, of=None):
    """The gradient, or ``of`` in its place, over its decaying L^p norm: a direction, not a step.

    v ← β₂ᵖ v + (1−β₂ᵖ) |g|ᵖ;   w = 1 − Πβ₂ᵖ
    u = g / ((v/w)^(1/p) + ε),   or without the bias correction   u = g / (v^(1/p) + ε w^(1/p)).

    Kingma and Ba, arXiv 1412.6980, Section 7.1. The average is kept as log v, since |g|ᵖ would
    overflow and underflow for the large p that approach AdaMax.
    """
    grads = _wide(grads)
    p, b2 = _column(p, grads), _column(b2, grads)
    with np.errstate(divide="ignore"):  # log 0 = −∞ is what is meant
        log_decay = p * np.log(b2)
        log_norm = p * np.log(np.abs(grads)) + np.log(-np.expm1(log_decay))
    for t in range(1, len(grads)):
        log_norm[t] = np.logaddexp(log_decay[t] + log_norm[t - 1], log_norm[t])
    w = weight(b2, p) ** (1 / p)
    scale = np.exp(log_norm / p) + _column(eps, grads) * w
    of = grads if of is None else _wide(of)
    return _ratio(w * of, scale) if bias_correction else _ratio(of, scale)


def adamw(grads, params0, learning_rate, b1, b2, eps, weight_decay):
    """Adam with decoupled weight decay, from the parameters ``params0``.

    Δθ = −α (m̂ / (√v̂ + ε) + λ θ).

    Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2. There a schedule η multiplies both terms
    and α only the first; with one number for both, λ here is the paper's λ/α.
    """
    updates = adam(grads, learning_rate, b1, b2, eps)
    return decoupled_weight_decay(updates, params0, learning_rate, weight_decay)


def decoupled_weight_decay(updates, params0, learning_rate, weight_decay):
    """Any algorithm's updates with decoupled weight decay, from the parameters ``params0``.

    Δθ′ = Δθ − α λ θ.

    Loshchilov and Hutter, arXiv 1711.05101, Section 2. The given updates must not depend on the
    parameters.
    """
    updates, params = _wide(updates).copy(), _wide(params0)
    for t, (rate, decay) in enumerate(_per_step(updates, learning_rate, weight_decay)):
        updates[t] -= rate * decay * params
        params = params + updates[t]
    return updates


def polyak(params_path, decay):
    """The decaying average of the iterates ``params_path`` [steps, ...], without its bias.

    θ̄ ← d θ̄ + (1−d) θ;   returns θ̄ / (1 − Πd) after each step.

    Kingma and Ba, arXiv 1412.6980, Section 7.2; Polyak and Juditsky's uniform average is
    d = 1 − 1/t.
    """
    path = _wide(params_path)
    return _ratio(decaying_average(path, decay), weight(_column(decay, path)))


def decaying_average(values, beta):
    """m ← β m + (1−β) x from m = 0, after each step."""
    mean = _wide(values) * (1 - _column(beta, values))
    for t, (b,) in enumerate(_per_step(mean, beta)):
        if t > 0:
            mean[t] += b * mean[t - 1]
    return mean


def momentum_sum(values, momentum):
    """b ← μ b + x from b = 0, after each step."""
    total = _wide(values).copy()
    for t, (mu,) in enumerate(_per_step(total, momentum)):
        if t > 0:
            total[t] += mu * total[t - 1]
    return total


def weight(beta, power=1.0):
    """The weight in a decaying average after each step, 1 − Πβᵖ, without cancellation.

    ``beta`` is an array whose first axis is time.
    """
    with np.errstate(divide="ignore"):  # β = 0 forgets everything: log 0 = −∞, weight 1
        return -np.expm1(np.cumsum(power * np.log(beta), axis=0))


def _accelerated(values, momentum, nesterov):
    total = momentum_sum(values, momentum)
    return values + _column(momentum, values) * total if nesterov else total


def _wide(array):
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _squared(array):
    return array.real**2 + array.imag**2 if np.iscomplexobj(array) else array**2


def _column(value, like):
    """A hyperparameter as ``[steps, 1, ...]``, to broadcast against ``like``."""
    steps, *rest = np.shape(like)
    column = np.broadcast_to(np.asarray(value, np.float64), (steps,))
    return column.reshape(steps, *(1 for _ in rest))


def _per_step(like, *values):
    """The values of some hyperparameters at each step, as Python floats."""
    return zip(*(_column(v, like).ravel().tolist() for v in values), strict=True)


def _ratio(numerator, denominator):
    """The quotient, with 0/0 = 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    somewhere = (numerator != 0) | (denominator != 0)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=somewhere)
