"""The choice of a replica, from what a router can see.

That is the requests and the tokens outstanding on each candidate (prompt plus expected output),
whether it has started, and which one has an affinity: for prefixes the one that last took a request
with the same leading blocks, for sessions the one that took the round before. Ties go to the lowest
index.

Power of two choices: Mitzenmacher, IEEE TPDS 12(10), 2001. Lexicographic placement with a mask of
outliers: arXiv 2512.16134, Algorithm 3.
"""

import math

import numpy as np

from gpusched.compilation import kernel

(
    ROUND_ROBIN,
    RANDOM,
    LEAST_REQUESTS,
    LEAST_TOKENS,
    POWER_OF_TWO,
    PREFIX_AFFINITY,
    SESSION_AFFINITY,
    LEXICOGRAPHIC,
    CUSTOM,
    PER_ROUND,
) = range(10)
"""``PER_ROUND``: each round of a session by where its history is, see ``adaptive``."""

SLACK_REQUESTS = 8.0
FACTOR = 1.5
"""An affinity is kept while its candidate has at most this factor times the requests of the least
loaded one, plus the slack."""


@kernel
def first_started(ready_s, low, high):
    """The candidate that starts first."""
    best = low
    for i in range(low + 1, high):
        if ready_s[i] < ready_s[best]:
            best = i
    return best


@kernel
def least(load, ready_s, now_s, low, high):
    """The started candidate in ``low .. high - 1`` with the least load; if none has started, the
    one that starts first."""
    best = -1
    best_load = math.inf
    for i in range(low, high):
        if load[i] < best_load and ready_s[i] <= now_s:
            best_load = load[i]
            best = i
    return best if best >= 0 else first_started(ready_s, low, high)


@kernel
def route(
    policy, turn, draw, affinity, ready_s, now_s, load_requests, load_tokens, low, high,
    slack=SLACK_REQUESTS, factor=FACTOR,
):  # fmt: skip
    """Choose among the candidates ``low .. high - 1`` by a policy other than lexicographic.

    ``turn`` counts earlier decisions, ``draw`` is a random 64-bit word, ``affinity`` the candidate
    that has one or -1.
    """
    count = high - low
    if count == 1:
        return low
    if policy == LEAST_TOKENS:
        return least(load_tokens, ready_s, now_s, low, high)
    if policy == LEAST_REQUESTS:
        return least(load_requests, ready_s, now_s, low, high)
    if policy in (PREFIX_AFFINITY, SESSION_AFFINITY):
        best = least(load_tokens, ready_s, now_s, low, high)
        started = affinity >= 0 and ready_s[affinity] <= now_s
        if started and load_requests[affinity] <= factor * load_requests[best] + slack:
            return affinity
        return best
    if policy == POWER_OF_TWO:
        a = low + np.int64((draw >> np.uint64(33)) % np.uint64(count))
        b = low + np.int64((draw & np.uint64(0x7FFFFFFF)) % np.uint64(count - 1))
        b = low + (b - low + a - low + 1) % count
        if ready_s[a] > now_s or ready_s[b] > now_s:
            return least(load_requests, ready_s, now_s, low, high)
        if load_requests[b] < load_requests[a] or (load_requests[b] == load_requests[a] and b < a):
            return b
        return a
    start = turn if policy == ROUND_ROBIN else np.int64(draw >> np.uint64(33))
    for i in range(count):
        candidate = low + (start + i) % count
        if ready_s[candidate] <= now_s:
            return candidate
    return least(load_requests, ready_s, now_s, low, high)
