"""The compiled part of ``convex_simplex``, in one file so that one cache holds it."""

from typing import Any

import numpy as np
from numba import njit

RIDGE = 1e-13
"""Of the largest diagonal entry, added so that singular quadratics have one answer."""
DIRECT = 25
"""Newton steps before the scale is raised in stages instead."""
STEPS = 200
FLOOR = 1e-15
"""Least weight on the way to a smoothed optimum, which is never on the border."""
FIRST_SCALE = 10.0
STAGE = 3.0

_compiled: Any = njit(cache=True, error_model="numpy", nogil=True)


@_compiled
def _factor(a, factor, index, m, shift, ridge):
    """Cholesky factor of rows and columns ``index[:m]``, ``shift`` added to all entries."""
    for i in range(m):
        for j in range(i + 1):
            s = a[index[i], index[j]] + shift
            if i == j:
                s += ridge
            for t in range(j):
                s -= factor[i, t] * factor[j, t]
            factor[i, j] = np.sqrt(max(s, 0.1 * ridge)) if i == j else s / factor[j, j]


@_compiled
def _backsolve(factor, m, x):
    for i in range(m):
        for t in range(i):
            x[i] -= factor[i, t] * x[t]
        x[i] /= factor[i, i]
    for i in range(m - 1, -1, -1):
        for t in range(i + 1, m):
            x[i] -= factor[t, i] * x[t]
        x[i] /= factor[i, i]


@_compiled
def _quadratic(q, c, u, size):
    """Minimise u q u / 2 + c u over the simplex, in place, from ``u``; return the pivots.

    ``size`` is of the order of the entries of q that matter.
    """
    n = len(c)
    middle = 0.5 * (c.min() + c.max())
    size = max(size, c.max() - middle, 1e-300)
    # on the simplex, a constant more in all of q or of c changes nothing but the conditioning
    shift, ridge = size, RIDGE * size
    inside = u > 0.0
    index = np.empty(n, np.int64)
    factor, x, y = np.empty((n, n)), np.empty(n), np.empty(n)
    entered = -1
    for pivot in range(20 * n + 20):
        m = 0
        for i in range(n):
            if inside[i]:
                index[m] = i
                x[m], y[m] = 1.0, c[i] - middle
                m += 1
        _factor(q, factor, index, m, shift, ridge)
        _backsolve(factor, m, x)
        _backsolve(factor, m, y)
        level = (1.0 + y[:m].sum()) / x[:m].sum()
        step, blocking = 1.0, -1
        for i in range(m):
            target = level * x[i] - y[i]
            if target < 0.0:
                here = u[index[i]]
                share = here / (here - target)
                if share < step or blocking < 0:
                    step, blocking = share, i
        for i in range(m):
            u[index[i]] += step * (level * x[i] - y[i] - u[index[i]])
        if blocking >= 0:
            u[index[blocking]] = 0.0
            inside[index[blocking]] = False
            if index[blocking] == entered and step == 0.0:
                return pivot
            continue
        total = u.sum()
        entered, worst = -1, -1e-13 * size
        for j in range(n):
            u[j] /= total
        for j in range(n):
            if not inside[j]:
                slope = c[j] - middle + shift - level
                for i in range(n):
                    slope += q[j, i] * u[i]
                if slope < worst:
                    entered, worst = j, slope
        if entered < 0:
            return pivot
        inside[entered] = True
    return 20 * n + 20


@_compiled
def quadratics(q, c, w, value, gap, steps):
    """Solve a batch of quadratics in place, from ``w``."""
    for b in range(len(w)):
        size = 0.0
        for i in range(len(c[b])):
            size = max(size, q[b, i, i])
        steps[b] = _quadratic(q[b], c[b], w[b], size)
        gradient = q[b] @ w[b]
        value[b] = 0.5 * (w[b] * gradient).sum() + (w[b] * c[b]).sum()
        gradient += c[b]
        gap[b] = max((w[b] * gradient).sum() - gradient.min(), 0.0)


@_compiled
def _evaluate(s, scale, w, p, gradient):
    """Return the log-mean-exp; leave the candidates' shares and the gradient."""
    k, g = s.shape
    top = -np.inf
    for i in range(k):
        p[i] = 0.0
        for j in range(g):
            p[i] += s[i, j] * w[j]
        p[i] *= scale
        top = max(top, p[i])
    total = 0.0
    for i in range(k):
        p[i] = np.exp(p[i] - top)
        total += p[i]
    gradient[:] = 0.0
    for i in range(k):
        p[i] /= total
        for j in range(g):
            gradient[j] += scale * p[i] * s[i, j]
    return top + np.log(total / k)


@_compiled
def _curvature(s, scale, p, gradient, hessian):
    k, g = s.shape
    for i in range(g):
        for j in range(i + 1):
            h = 0.0
            for a in range(k):
                h += p[a] * (scale * s[a, i] - gradient[i]) * (scale * s[a, j] - gradient[j])
            hessian[i, j] = hessian[j, i] = h


@_compiled
def _entropy(w):
    """KL divergence from uniform weights."""
    total = np.log(len(w))
    for i in range(len(w)):
        if w[i] > 0.0:
            total += w[i] * np.log(w[i])
    return total


@_compiled
def _gap(w, gradient, smoothing):
    """Bound on the distance to the minimum: of the linearised log-mean-exp, the rest kept."""
    if smoothing == 0.0:
        return max((w * gradient).sum() - gradient.min(), 0.0)
    low = gradient.min()
    total = 0.0
    for i in range(len(w)):
        total += np.exp((low - gradient[i]) / smoothing)
    # smoothing KL(w || softmax(-gradient / smoothing))
    found = 0.0
    for i in range(len(w)):
        if w[i] > 0.0:
            found += w[i] * (smoothing * np.log(w[i] * total) + gradient[i] - low)
    return max(found, 0.0)


@_compiled
def _model_minimum(w, gradient, hessian, smoothing, u):
    """Leave the minimum of the quadratic model on the simplex in ``u``."""
    size = 0.0
    for i in range(len(w)):
        size = max(size, hessian[i, i])
    linear = gradient - hessian @ w
    if smoothing > 0.0:
        for i in range(len(w)):
            hessian[i, i] += smoothing / w[i]
            linear[i] += smoothing * (np.log(w[i]) - 1.0)
        size += smoothing
    u[:] = w
    _quadratic(hessian, linear, u, size)


@_compiled
def _newton(s, scale, smoothing, tolerance, limit, w):
    """Return value, gap and steps of damped Newton from ``w``, in place."""
    k, g = s.shape
    p, gradient, hessian = np.empty(k), np.empty(g), np.empty((g, g))
    u, trial = np.empty(g), np.empty(g)
    if smoothing > 0.0:
        w[:] = np.maximum(w, FLOOR)
        w /= w.sum()
    flat = 0
    value = _evaluate(s, scale, w, p, gradient) + smoothing * _entropy(w)
    for steps in range(limit):
        gap = _gap(w, gradient, smoothing)
        if gap <= tolerance:
            return value, gap, steps
        _curvature(s, scale, p, gradient, hessian)
        _model_minimum(w, gradient, hessian, smoothing, u)
        slope, step = 0.0, 1.0
        for i in range(g):
            marginal = gradient[i] + (smoothing * np.log(w[i]) if smoothing > 0.0 else 0.0)
            slope += marginal * (u[i] - w[i])
        for _ in range(60):
            trial[:] = w + step * (u - w)
            found = _evaluate(s, scale, trial, p, gradient) + smoothing * _entropy(trial)
            if found <= value + 1e-4 * step * slope + 1e-15 * max(abs(value), scale):
                break
            step *= 0.5
        if smoothing > 0.0:
            trial[:] = np.maximum(trial, FLOOR)
        w[:] = trial / trial.sum()
        flat = flat + 1 if found >= value else 0
        value = found
        if flat == 3:  # as close as floating point allows
            return value, _gap(w, gradient, smoothing), steps
    return value, _gap(w, gradient, smoothing), limit


@_compiled
def _pair(s, scale, smoothing, tolerance, w):
    """Two weights: the root of the derivative, by Newton inside a bracket."""
    k = len(s)
    p, gradient, hessian = np.empty(k), np.empty(2), np.empty((2, 2))
    low, high = 0.0, 1.0
    for steps in range(STEPS):
        value = _evaluate(s, scale, w, p, gradient) + smoothing * _entropy(w)
        gap = _gap(w, gradient, smoothing)
        if gap <= tolerance:
            return value, gap, steps
        _curvature(s, scale, p, gradient, hessian)
        slope = gradient[0] - gradient[1]
        bend = hessian[0, 0] - 2.0 * hessian[0, 1] + hessian[1, 1]
        if smoothing > 0.0:
            slope += smoothing * np.log(w[0] / w[1])
            bend += smoothing / (w[0] * w[1])
        if slope > 0.0:
            high = w[0]
        else:
            low = w[0]
        if high - low <= 1e-16 * high:
            return value, gap, steps
        at = w[0] - slope / bend if bend > 0.0 else -1.0
        if smoothing == 0.0 and steps < 2 and not low < at < high:
            at = low if slope > 0.0 else high  # the optimum is often a vertex
        elif not low < at < high:
            at = 0.5 * (low + high)
        w[0], w[1] = at, 1.0 - at
    return value, gap, STEPS


@_compiled
def log_mean_exp(v, scale, smoothing, tolerance, w, value, gap, steps):
    """Solve a batch of log-mean-exp problems in place, from ``w``, each scaled to a spread of 1."""
    for b in range(len(v)):
        least, most = v[b].min(), v[b].max()
        spread = most - least
        if spread == 0.0:
            w[b] = 1.0 / w.shape[1]
            value[b], gap[b], steps[b] = scale * least, 0.0, 0
            continue
        s = (v[b] - least) / spread - 0.5
        steep = scale * spread
        allowed = tolerance * steep
        if w.shape[1] == 2:
            found = _pair(s, steep, smoothing, allowed, w[b])
        else:
            found = _newton(s, steep, smoothing, allowed, DIRECT, w[b])
        taken = found[2]
        if found[1] > allowed and w.shape[1] > 2:
            w[b] = 1.0 / w.shape[1]
            stage = min(FIRST_SCALE, steep)
            while True:
                found = _newton(s, stage, smoothing, tolerance * stage, STEPS, w[b])
                taken += found[2]
                if stage >= steep:
                    break
                stage = min(STAGE * stage, steep)
        value[b], gap[b], steps[b] = found[0] + scale * (least + 0.5 * spread), found[1], taken
