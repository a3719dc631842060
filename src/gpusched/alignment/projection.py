"""Compiled passes over advantages: moments, and the least norm of each token's combinations.

The convex combination of scalars that is least in size is the point of their range nearest to 0
(PAMA, arXiv 2508.07768, theorem 1): the least of them where all are positive, the greatest where
all are negative, and 0 where the signs differ.
"""

from typing import Any

import numpy as np
from numba import njit

_compiled: Any = njit(cache=True, error_model="numpy", nogil=True)


@_compiled
def moments(a, keep):
    """Return count, mean and sum of squared deviations of each objective of rows (M, n) kept."""
    m, n = a.shape
    count, mean, square = np.zeros(n), np.zeros(n), np.zeros(n)
    shift = np.zeros(n)
    for t in range(m):
        if keep[t]:
            for i in range(n):
                x = a[t, i]
                if x == x:
                    if count[i] == 0.0:
                        shift[i] = x
                    x -= shift[i]
                    count[i] += 1.0
                    mean[i] += x
                    square[i] += x * x
    for i in range(n):
        if count[i] > 0.0:
            mean[i] /= count[i]
            square[i] = max(square[i] - count[i] * mean[i] * mean[i], 0.0)
            mean[i] += shift[i]
    return count, mean, square


@_compiled
def project(a, keep, factor, noon, found, weights, binds):
    """Leave each row's nearest combination to 0 in ``found``; return rows kept and rows at 0.

    Rows have shape (M, n) and are multiplied by ``factor`` (n,). ``weights`` gathers the weights of
    the combinations, ``binds`` how often each objective alone is one.
    """
    m, n = a.shape
    kept, stalled = 0, 0
    for t in range(m):
        found[t] = 0.0
        if not keep[t]:
            continue
        low, high, first, last = np.inf, -np.inf, -1, -1
        for i in range(n):
            x = a[t, i] * factor[i]
            if noon and x < 0.0:
                x = 0.0
            if x < low:
                low, first = x, i
            if x > high:
                high, last = x, i
        if first < 0:
            continue
        kept += 1
        if low > 0.0 or (first == last and low != 0.0):
            found[t] = low
            weights[first] += 1.0
            binds[first] += 1.0
        elif high < 0.0:
            found[t] = high
            weights[last] += 1.0
            binds[last] += 1.0
        else:
            stalled += 1
            share = high / (high - low) if high > low else 1.0
            weights[first] += share
            weights[last] += 1.0 - share
    return kept, stalled
