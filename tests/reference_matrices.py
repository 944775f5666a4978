"""Optimisers of matrices in plain NumPy, written from their papers; kernels are [in, out]."""

import numpy as np

MUON5 = ((3.4445, -4.7750, 2.0315),) * 5


def steps_of(x, steps):
    """A number, or one for every step."""
    return np.broadcast_to(np.asarray(x, np.float64), (steps,))


def newton_schulz(u, triples=MUON5, margin=1.0, eps=1e-7):
    """The polynomials of the iteration, applied to the singular values."""
    p, s, q = np.linalg.svd(u, full_matrices=False)
    s = s / (margin * np.sqrt((s**2).sum(-1, keepdims=True)) + eps)
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return (p * s[..., None, :]) @ q


def average(xs, beta):
    """The decaying average after every step, and its weight."""
    betas = steps_of(beta, len(xs))
    m, w, found = np.zeros_like(xs[0]), 0.0, []
    for x, b in zip(xs, betas, strict=True):
        m, w = b * m + (1 - b) * x, b * w + (1 - b)
        found.append((m, w))
    return found


def stepped(directions, params0, learning_rate, weight_decay):
    """The updates −α(d + λθ) for directions that do not depend on the parameters."""
    theta, updates = np.array(params0), []
    rates, decays = (steps_of(x, len(directions)) for x in (learning_rate, weight_decay))
    for d, a, decay in zip(directions, rates, decays, strict=True):
        updates.append(-a * (d + decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def ahead(grads, b1, nesterov=True):
    """Muon's momentum."""
    betas = steps_of(b1, len(grads))
    pairs = zip(average(grads, b1), grads, betas, strict=True)
    return [b * m + (1 - b) * g if nesterov else m for (m, _), g, b in pairs]


def original(shape):
    rows, columns = shape[-2:]
    return np.sqrt(max(1.0, columns / rows))


def muon(grads, params0, learning_rate, b1, weight_decay, triples=MUON5, nesterov=True):
    scale = original(params0.shape)
    made = [scale * newton_schulz(u, triples) for u in ahead(grads, b1, nesterov)]
    return stepped(made, params0, learning_rate, weight_decay)


def row_rms(us, b2, eps):
    """NorMuon: v is a mean over the inputs, for each output."""
    squares = [(np.abs(u) ** 2).mean(-2, keepdims=True) for u in us]
    found = []
    for u, (v, _), e in zip(us, average(squares, b2), steps_of(eps, len(us)), strict=True):
        even = u / (np.sqrt(v) + e)
        size = np.sqrt((np.abs(even) ** 2).sum((-2, -1), keepdims=True))
        before = np.sqrt((np.abs(u) ** 2).sum((-2, -1), keepdims=True))
        found.append(np.divide(even * before, size, out=np.zeros_like(even), where=size > 0))
    return found


def normuon(grads, params0, learning_rate, b1, b2, eps, weight_decay):
    orthogonal = [newton_schulz(u) for u in ahead(grads, b1)]
    made = [original(params0.shape) * u for u in row_rms(orthogonal, b2, eps)]
    return stepped(made, params0, learning_rate, weight_decay)


def to_rms(u, rms):
    size = np.sqrt((np.abs(u) ** 2).mean())
    return u * (rms / size) if size else u


def adamuon(grads, params0, learning_rate, b1, b2, eps, weight_decay):
    signs = [sign(u) for u in ahead(grads, b1)]
    orthogonal = [newton_schulz(u) for u in signs]
    squares = average([np.abs(u) ** 2 for u in orthogonal], b2)
    epsilons = steps_of(eps, len(grads))
    made = [
        to_rms(u / (np.sqrt(v) + e), 0.2)
        for u, (v, _), e in zip(orthogonal, squares, epsilons, strict=True)
    ]
    return stepped(made, params0, learning_rate, weight_decay)


def sign(x):
    size = np.abs(x)
    return np.divide(x, size, out=np.zeros_like(x), where=size > 0)


def even_rows(grads, params0, eps):
    found = []
    for g, e in zip(grads, steps_of(eps, len(grads)), strict=True):
        sizes = np.sqrt((np.abs(g) ** 2).sum(0))
        found.append(g / (sizes + e) * np.linalg.norm(g) / np.sqrt(len(sizes)))
    return np.array(found)


def of_rank(g):
    """The norm of an orthogonal matrix, whose singular values are all 1."""
    size = np.linalg.norm(g)
    return g * np.sqrt(min(g.shape)) / size if size else g


# Bases


def adjoint(x):
    return np.conj(np.swapaxes(x, -1, -2))


def eigenvectors(moment):
    """Of a Hermitian matrix, the largest eigenvalue first."""
    return np.linalg.eigh(moment)[1][:, ::-1]


def power_step(moment, basis):
    """One power iteration, with columns sorted by their Rayleigh quotients; and their places."""
    image = moment @ basis
    places = np.argsort(-np.sum(np.conj(basis) * image, 0).real, kind="stable")
    return np.linalg.qr(image[:, places])[0], places


def soap(
    grads, params0, learning_rate, b1, b2, eps, weight_decay, every=1, kl=False, shampoo_beta=None
):
    """Algorithm 3: the first gradient makes the basis only; refreshed at the start of a step."""
    beta = b2 if shampoo_beta is None else shampoo_beta
    betas = steps_of(beta, len(grads))
    (rows, columns), dtype = grads[0].shape, grads.dtype
    left, right = np.zeros((rows, rows), dtype), np.zeros((columns, columns), dtype)
    q_left, q_right = np.eye(rows, dtype=dtype), np.eye(columns, dtype=dtype)
    m, v, w1, w2, w = np.zeros_like(grads[0]), np.zeros(grads[0].shape), 0.0, 0.0, 0.0
    directions = []
    numbers = [steps_of(x, len(grads)) for x in (b1, b2, eps)]
    for t, g in enumerate(grads):
        b1_t, b2_t, e = (x[t] for x in numbers)
        if t == 1:
            q_left, q_right = eigenvectors(left), eigenvectors(right)
        elif t > 1 and (t - 1) % every == 0:
            (new_left, i), (new_right, j) = power_step(left, q_left), power_step(right, q_right)
            m = adjoint(new_left) @ (q_left @ m @ adjoint(q_right)) @ new_right
            v, q_left, q_right = v[i][:, j], new_left, new_right
        if t:
            inside = adjoint(q_left) @ g @ q_right
            m = b1_t * m + (1 - b1_t) * inside
            v = b2_t * v + (1 - b2_t) * np.abs(inside) ** 2
            w1, w2 = b1_t * w1 + 1 - b1_t, b2_t * w2 + 1 - b2_t
            u = np.divide(m, np.sqrt(v) + e, out=np.zeros_like(m), where=np.sqrt(v) + e > 0)
            directions.append(np.sqrt(w2) / w1 * (q_left @ u @ adjoint(q_right)))
        outer_left, outer_right = g @ adjoint(g), adjoint(g) @ g
        if kl and t:
            outer_left = weighed(g, right / w, q_right, e)
            outer_right = weighed(adjoint(g), left / w, q_left, e)
        left = betas[t] * left + (1 - betas[t]) * outer_left
        right = betas[t] * right + (1 - betas[t]) * outer_right
        w = betas[t] * w + 1 - betas[t]
    rates, decays = (steps_of(x, len(grads))[1:] for x in (learning_rate, weight_decay))
    moved = stepped(directions, params0, rates, decays)
    return np.concatenate([np.zeros_like(moved[:1]), moved])


def weighed(g, moment, basis, eps):
    values = np.maximum(np.diag(adjoint(basis) @ moment @ basis).real, eps)
    inside = g @ basis
    return inside / values @ adjoint(inside) / g.shape[1]


def splus(grads, params0, learning_rate, b1, b2, weight_decay):
    """With eigenvectors of every step's averages, of which the order has no effect."""
    (rows, columns), dtype = grads[0].shape, grads.dtype
    q_left, q_right = np.eye(rows, dtype=dtype), np.eye(columns, dtype=dtype)
    lefts = average([g @ adjoint(g) for g in grads], b2)
    rights = average([adjoint(g) @ g for g in grads], b2)
    scale, directions = 2 / (rows + columns), []
    for (m, _), (left, _), (right, _) in zip(average(grads, b1), lefts, rights, strict=True):
        directions.append(scale * q_left @ sign(adjoint(q_left) @ m @ q_right) @ adjoint(q_right))
        q_left, q_right = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
    return stepped(directions, params0, learning_rate, scale * np.asarray(weight_decay))


def projections(grads, rank, every):
    """GaLore's, of kernels with at most as many rows as columns."""
    p, found = np.eye(len(grads[0]))[:, :rank], []
    for t, g in enumerate(grads):
        if t % every == 0:
            new = np.linalg.svd(g, full_matrices=False)[0][:, :rank]
            p = new * np.where(np.sum(np.conj(p) * new, 0).real < 0, -1, 1)
        found.append(p)
    return found


def adam_inside(grads, projected, b1, b2, eps):
    """m/(√v + ε) of the projected gradients, and the correction of both weights."""
    insides = [adjoint(p) @ g for p, g in zip(projected, grads, strict=True)]
    m, v = average(insides, b1), average([np.abs(x) ** 2 for x in insides], b2)
    made = []
    for (mean, w1), (square, w2), e in zip(m, v, steps_of(eps, len(grads)), strict=True):
        by = np.sqrt(square) + e
        made.append((np.divide(mean, by, out=np.zeros_like(mean), where=by > 0), np.sqrt(w2) / w1))
    return insides, made


def galore(grads, params0, learning_rate, b1, b2, eps, weight_decay, rank, every, scaling):
    projected = projections(grads, rank, every)
    _, made = adam_inside(grads, projected, b1, b2, eps)
    directions = [scaling * w * (p @ u) for p, (u, w) in zip(projected, made, strict=True)]
    return stepped(directions, params0, learning_rate, weight_decay)


def column_norms(x):
    return np.sqrt((np.abs(x) ** 2).sum(0, keepdims=True))


def limited(u, before, growth):
    size = np.sqrt((np.abs(u) ** 2).sum())
    most = growth * before if before else size
    return (u * min(1, most / size), min(size, most)) if size else (u, before)


def fira(grads, params0, learning_rate, b1, b2, eps, weight_decay, rank, every, scaling, growth):
    projected = projections(grads, rank, every)
    insides, made = adam_inside(grads, projected, b1, b2, eps)
    directions, before = [], 0.0
    for g, p, inside, (u, w) in zip(grads, projected, insides, made, strict=True):
        rest = (g - p @ inside) * column_norms(u) / (column_norms(inside) + 1e-8)
        rest, before = limited(rest, before, growth)
        directions.append(scaling * w * (p @ u + rest))
    return stepped(directions, params0, learning_rate, weight_decay)


def kronecker_roots(grads, b2, eps, exponent, every=1):
    """L^{-p} G R^{-p} with roots of the corrected averages."""

    def power(moment, e, p):
        values, vectors = np.linalg.eigh(moment)
        ridged = np.maximum(values, 0) + e * max(values[-1], 0)
        inverse = np.where(ridged > 0, ridged, 1) ** -p  # of zeros, the identity
        return vectors * inverse @ adjoint(vectors)

    lefts = average([g @ adjoint(g) for g in grads], b2)
    rights = average([adjoint(g) @ g for g in grads], b2)
    epsilons, exponents = steps_of(eps, len(grads)), steps_of(exponent, len(grads))
    roots = []
    for t, pair in enumerate(zip(lefts, rights, strict=True)):
        if t % every == 0:
            now = [power(moment / w, epsilons[t], exponents[t]) for moment, w in pair]
        roots.append(now)
    return roots


def shampoo(grads, params0, learning_rate, b1, b2, eps, weight_decay, graft_eps, every):
    roots = kronecker_roots(grads, b2, eps, 0.25, every)
    squares = average([np.abs(g) ** 2 for g in grads], b2)
    epsilons, directions = steps_of(graft_eps, len(grads)), []
    numbers = zip(grads, average(grads, b1), roots, squares, epsilons, strict=True)
    for g, (m, _), (left, right), (v, w), e in numbers:
        u = left @ m @ right
        by = np.sqrt(v / w) + e
        usual = np.divide(g, by, out=np.zeros_like(g), where=by > 0)
        size = np.sqrt((np.abs(u) ** 2).sum())
        directions.append(u * (np.sqrt((np.abs(usual) ** 2).sum()) / size) if size else u)
    return stepped(directions, params0, learning_rate, weight_decay)


def muon_h(grads, params0, learning_rate, b1):
    made = [newton_schulz(u) for u in ahead(grads, b1)]
    return hyperball(np.array(made), params0, learning_rate, current=True)


def hyperball(grads, params0, learning_rate, current=False):
    theta, updates = np.array(params0), []
    radius = np.sqrt((np.abs(theta) ** 2).sum())
    for g, a in zip(grads, steps_of(learning_rate, len(grads)), strict=True):
        size = np.sqrt((np.abs(g) ** 2).sum())
        radius = np.sqrt((np.abs(theta) ** 2).sum()) if current else radius
        moved = theta - a * radius * (g / size if size else g)
        updates.append(moved * radius / np.sqrt((np.abs(moved) ** 2).sum()) - theta)
        theta = theta + updates[-1]
    return np.array(updates)
