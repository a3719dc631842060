"""Good schedules: the best of the look-ahead policies, improved by simulated annealing.

A schedule is read from a priority list: each request in turn takes the earliest start at which it
fits between those placed before it. A move exchanges two requests of the list or takes one to
another place; only what follows is placed again, and only until it is clear that the move is
refused.
"""

import math

import numpy as np

from gpusched.compilation import entry_kernel, kernel
from gpusched.policies.batching.rounds import Ints, mc_sf_starts

SPAN = 10
"""Places by which a move reaches at most."""
HOTTEST, COLDEST = 1.5, 0.15
"""Rounds of total latency that are given up with probability 1/e, at the start and at the end."""


def best_heuristic(
    a: Ints, s: Ints, o: Ints, kv_tokens: int, *, moves: int = 20_000, seed: int = 0
) -> Ints:
    """Return the starts of the best schedule found, shape (requests,), in rounds."""
    candidates = [
        mc_sf_starts(a, s, o, kv_tokens, order=order, continue_on_misfit=skip)
        for order in ("output", "volume", "peak")
        for skip in (False, True)
    ]
    best = min(candidates, key=lambda starts: int((starts + o).sum()))
    if len(a) == 1 or moves == 0:
        return best
    draws = np.random.default_rng(seed).random((moves, 4))
    profile = np.zeros(int(a.max() + o.sum()) + 2, np.int64)
    order = np.argsort(best, kind="stable")
    trial, starts, moved, found = (np.empty_like(best) for _ in range(4))
    _anneal(a, s, o, kv_tokens, order, draws, profile, trial, starts, moved, found)
    return min(best, found, key=lambda starts: int((starts + o).sum()))


@entry_kernel
def _anneal(a, s, o, budget, order, draws, profile, trial, starts, moved, best):  # type: ignore[no-untyped-def]
    """Improve a priority list in place; ``best`` receives the best schedule met.

    ``starts`` holds the present schedule, ``moved`` that of the list under trial, from the first
    place that changes.
    """
    n = len(a)
    current, _ = _place(a, s, o, budget, order, 0, 1 << 60, profile, starts)
    least = current
    for i in range(n):
        best[i] = starts[i]
    cooling = (COLDEST / HOTTEST) ** (1.0 / len(draws))
    temperature = HOTTEST
    for step in range(len(draws)):
        temperature *= cooling
        i = int(draws[step, 0] * n)
        j = i + int((2.0 * draws[step, 1] - 1.0) * (SPAN + 1))
        if j < 0 or j >= n or i == j:
            continue
        _move(order, trial, i, j, draws[step, 2] < 0.5)
        first = min(i, j)
        head = 0
        for k in range(first):
            head += starts[order[k]] + o[order[k]]
        for k in range(first, n):
            _occupy(s, o, order[k], starts[order[k]], -1, profile)
        allowed = current - temperature * math.log(draws[step, 3] + 1e-300)
        tail, placed = _place(a, s, o, budget, trial, first, allowed - head, profile, moved)
        if head + tail <= allowed:
            current = head + tail
            for k in range(first, n):
                order[k] = trial[k]
                starts[order[k]] = moved[order[k]]
            if current < least:
                least = current
                for k in range(n):
                    best[k] = starts[k]
        else:
            for k in range(first, placed):
                _occupy(s, o, trial[k], moved[trial[k]], -1, profile)
            for k in range(first, n):
                _occupy(s, o, order[k], starts[order[k]], 1, profile)


@kernel
def _move(order, trial, i, j, exchange):  # type: ignore[no-untyped-def]
    """Write to ``trial`` the list with places ``i`` and ``j`` exchanged, or ``i`` taken to ``j``."""
    for k in range(len(order)):
        trial[k] = order[k]
    if exchange:
        trial[i] = order[j]
        trial[j] = order[i]
        return
    step = 1 if i < j else -1
    for k in range(i, j, step):
        trial[k] = order[k + step]
    trial[j] = order[i]


@kernel
def _occupy(s, o, i, start, sign, profile):  # type: ignore[no-untyped-def]
    """Enter a request in the memory held by round, or take it out."""
    for k in range(1, o[i] + 1):
        profile[start + k] += sign * (s[i] + k)


@kernel
def _place(a, s, o, budget, order, first, allowed, profile, starts):  # type: ignore[no-untyped-def]
    """Place requests from place ``first`` on, each at its earliest feasible start, until the sum of
    their completions exceeds ``allowed``; return the sum and the place reached."""
    total = 0
    for place in range(first, len(order)):
        i = order[place]
        p = a[i]
        delay = 1
        while delay > 0:
            delay = 0
            for k in range(1, o[i] + 1):
                excess = profile[p + k] + s[i] + k - budget
                # by then the request must hold less, or not yet run
                delay = max(delay, min(excess, k))
            p += delay
        _occupy(s, o, i, p, 1, profile)
        starts[i] = p
        total += p + o[i]
        if total > allowed:
            return total, place + 1
    return total, len(order)
