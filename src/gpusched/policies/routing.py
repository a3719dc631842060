"""Routing: which replica takes a request.

Every policy is a function of what a router can see: the requests and the tokens outstanding on
each candidate (prompt plus expected output), whether the candidate has started, and for
prefix affinity which candidate last took a request with the same leading blocks. Ties go to the
lowest index.

Power of two choices: Mitzenmacher, IEEE TPDS 12(10), 2001.
"""

import math

import numpy as np

from gpusched.compilation import kernel

ROUND_ROBIN, RANDOM, LEAST_REQUESTS, LEAST_TOKENS, POWER_OF_TWO, PREFIX_AFFINITY = range(6)

POLICIES = {
    "round-robin": ROUND_ROBIN,
    "random": RANDOM,
    "least-requests": LEAST_REQUESTS,
    "least-tokens": LEAST_TOKENS,
    "power-of-two": POWER_OF_TWO,
    "prefix-affinity": PREFIX_AFFINITY,
}

AFFINITY_SLACK_REQUESTS = 8
AFFINITY_FACTOR = 1.5
"""Affinity is kept while the favourite has at most the factor times the least loaded candidate's
requests, plus the slack; else the least loaded takes the request."""


@kernel
def random_u64(seed, index):
    """The ``index``-th draw of a stream (splitmix64; Steele, Lea, Flood, OOPSLA 2014)."""
    z = np.uint64(seed) + np.uint64(index + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
    if best < 0:
        best = low
        for i in range(low + 1, high):
            if ready_s[i] < ready_s[best]:
                best = i
    return best


@kernel
def route(policy, turn, draw, affinity, ready_s, now_s, load_requests, load_tokens, low, high):
    """Choose among the candidates ``low .. high - 1``.

    ``turn`` counts earlier decisions, ``draw`` is a random 64-bit word, ``affinity`` the candidate
    that holds the longest known prefix or -1.
    """
    count = high - low
    if count == 1:
        return low
    if policy == LEAST_TOKENS:
        return least(load_tokens, ready_s, now_s, low, high)
    if policy == LEAST_REQUESTS:
        return least(load_requests, ready_s, now_s, low, high)
    if policy == PREFIX_AFFINITY:
        best = least(load_tokens, ready_s, now_s, low, high)
        if affinity >= 0 and ready_s[affinity] <= now_s:
            limit = AFFINITY_FACTOR * load_requests[best] + AFFINITY_SLACK_REQUESTS
            if load_requests[affinity] <= limit:
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
