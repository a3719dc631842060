"""Placing decodes on data-parallel units: fewest requests first, outliers of KV cache left out.

A step of all units takes as long as the slowest; its batch drives computation and expert traffic,
its KV cache memory and attention. Units whose KV cache is beyond the upper quartile by more than
``factor`` times the interquartile range take nothing more, however small their batch (Tukey's
fences; arXiv 2512.16134, Algorithm 3).
"""

import math

from gpusched.compilation import kernel

FEWEST_FOR_QUARTILES = 4
FACTOR = 1.5


@kernel
def is_candidate(tokens, kv_tokens, free_tokens):
    """Whether a unit has room for a request; one whose KV cache is unknown (nan) has none."""
    return free_tokens >= tokens and kv_tokens == kv_tokens


@kernel
def sort_units(ascending, kv_tokens, low, high):
    """Sort the units ``ascending[low:high]`` by their KV cache.

    Insertion sort: between placements few loads change.
    """
    for i in range(low + 1, high):
        u = ascending[i]
        k = i
        # an unknown load (nan) is passed over
        while k > low and not kv_tokens[ascending[k - 1]] <= kv_tokens[u]:
            ascending[k] = ascending[k - 1]
            k -= 1
        ascending[k] = u


@kernel
def fence(tokens, kv_tokens, free_tokens, ascending, candidates, low, high, factor):
    """Upper quartile of the candidates' KV cache plus ``factor`` times the interquartile range.

    Quartiles interpolate linearly; ``ascending[low:high]`` are the units sorted by KV cache.
    """
    first = 0.25 * (candidates - 1)
    third = 0.75 * (candidates - 1)
    q1 = 0.0
    q3 = 0.0
    rank = 0
    for i in range(low, high):
        u = ascending[i]
        if is_candidate(tokens, kv_tokens[u], free_tokens[u]):
            if rank <= first:
                q1 = kv_tokens[u]
            elif rank < first + 1.0:
                q1 += (first + 1.0 - rank) * (kv_tokens[u] - q1)
            if rank <= third:
                q3 = kv_tokens[u]
            elif rank < third + 1.0:
                q3 += (third + 1.0 - rank) * (kv_tokens[u] - q3)
            rank += 1
    return q3 + factor * (q3 - q1)


@kernel
def place(tokens, batch, kv_tokens, free_tokens, ascending, low, high, factor, slack):
    """Place a request of ``tokens`` on one of the units ``low .. high - 1`` and book it there.

    The unit with the fewest requests, then the least KV cache, then the lowest index, among those
    with ``free_tokens`` for it and within the fence, which needs at least four of them. Requests
    of one round are placed longest first. ``ascending[low:high]`` holds the units in any order at
    first and is kept by KV cache. With ``slack`` (ours; the paper has none), the least KV cache
    decides among units with up to so many requests more than the fewest.

    Returns -1 if there is no room, or nothing is known of the units: another policy decides then.
    """
    candidates = 0
    for u in range(low, high):
        if is_candidate(tokens, kv_tokens[u], free_tokens[u]):
            candidates += 1
    if candidates == 0:
        return -1
    limit = math.inf
    if candidates >= FEWEST_FOR_QUARTILES:
        sort_units(ascending, kv_tokens, low, high)
        limit = fence(tokens, kv_tokens, free_tokens, ascending, candidates, low, high, factor)
    fewest = math.inf
    for u in range(low, high):
        if is_candidate(tokens, kv_tokens[u], free_tokens[u]) and kv_tokens[u] <= limit:
            fewest = min(fewest, batch[u])
    best = -1
    for u in range(low, high):
        if not is_candidate(tokens, kv_tokens[u], free_tokens[u]) or kv_tokens[u] > limit:
            continue
        if batch[u] <= fewest + slack and (best < 0 or kv_tokens[u] < kv_tokens[best]):
            best = u
    batch[best] += 1
    kv_tokens[best] += tokens
    free_tokens[best] -= tokens
    return best
