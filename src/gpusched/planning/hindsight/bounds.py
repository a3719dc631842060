"""Bounds of the total latency in closed form.

*Peaks keep apart.* A request peaks at ``P = s + o`` in its last round and then frees it all. If
``i`` completes before ``k`` and ``k`` runs in ``i``'s last round, it holds ``P_k - (c_k - c_i)``
there; so ``c_k - c_i >= P_i + P_k - M``. If it does not run, ``c_k - c_i >= o_k``. With
``x = min(P - M/2, o)`` and ``y = min(P - M/2, M/2 - S)``, ``S`` the largest prompt, both are at least
``y_i + x_k``, so for requests of ``P > M/2`` the intervals ``[c - x, c + y]`` are disjoint: one
machine, on which the shortest go first in the relaxation.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.policies.batching.rounds import Ints, checked

Halves = NDArray[np.float64]


def latency_bound(
    arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike, kv_tokens: int
) -> float:
    """Return a lower bound of the total latency.

    The ``j``-th completion is no earlier than the ``j`` smallest volumes over the budget, than the
    ``j``-th earliest possible completion, and, among large requests, than their disjoint intervals
    allow; or all large ones together are no earlier than on one machine, shortest first.
    """
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    volumes = np.sort(s * o + o * (o + 1) // 2).cumsum()
    by_volume = int(a.min()) + np.ceil(volumes / kv_tokens)
    by_rank = np.maximum(by_volume, np.sort(a + o))
    large, left, right = keep_apart(s, o, kv_tokens)
    if not large.any():
        return float(by_rank.sum() - a.sum())
    earliest = float((a + o - left)[large].min())
    before = np.concatenate(([0.0], np.sort((left + right)[large]).cumsum()[:-1]))
    apart = np.ceil(earliest + before + left[large].min() - 1e-9)
    small = len(a) - int(large.sum())
    by_rank[small:] = np.maximum(by_rank[small:], apart)
    together = len(before) * earliest + before.sum() + left[large].sum() + (a + o)[~large].sum()
    return float(max(by_rank.sum(), np.ceil(together - 1e-9)) - a.sum())


def keep_apart(s: Ints, o: Ints, kv_tokens: int) -> tuple[NDArray[np.bool_], Halves, Halves]:
    """Return which requests are large, and how long before and after its completion each large one
    keeps the completions of the others away, in rounds."""
    left = np.minimum(s + o - kv_tokens / 2.0, o)
    large = left > 0
    longest = float(s[large].max()) if large.any() else 0.0
    right = np.clip(left, 0.0, max(kv_tokens / 2.0 - longest, 0.0))
    return large, left, right


def latest_completions(a: Ints, s: Ints, o: Ints, kv_tokens: int, total: int) -> Ints:
    """Return for each request a round by which it completes in every schedule whose completions sum
    to no more than ``total``: what the others need at least is left over."""
    n = len(a)
    horizon = int(a.max() + o.sum())
    latest = np.empty(n, np.int64)
    for i in range(n):
        rest = np.arange(n) != i
        others = latency_bound(a[rest], s[rest], o[rest], kv_tokens) + a[rest].sum() if n > 1 else 0
        latest[i] = min(horizon, int(total - others))
    return latest
