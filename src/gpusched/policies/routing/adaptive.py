"""Where a round of a session runs its prefill: on the decode worker that holds the session's KV
cache, or on a prefill worker that the cache is shipped to.

AMPD (arXiv 2602.14516): each round takes whichever is predicted to answer first, but a decode worker
whose inter-token latency nears its bound is spared, and so is a prefill worker whose time to first
token does. The functions take plain numbers and arrays with an entry a worker: a gateway calls them
with what it measures, the simulator with what it simulates.
"""

import math

from gpusched.compilation import kernel

KEPT_AWAY, LOCAL, REMOTE, LEAST_BAD_LOCAL, LEAST_BAD_REMOTE = range(5)
"""Branches: none taken; within bounds on the decode worker; on a prefill worker; and, where both are
past their bounds, whichever is sooner."""

BRANCHES = ("none", "local", "remote", "least-bad-local", "least-bad-remote")

ADAPTIVE, HOME, AWAY = range(3)
"""Rules: AMPD's; always where the history is; always on a prefill worker."""


@kernel
def ships_s(tokens, latency_s, token_s):
    """Time to ship the KV cache of so many tokens; nothing takes no time."""
    return latency_s + tokens * token_s if tokens > 0 else 0.0


@kernel
def remote_s(queue_s, ship_s, prefill_s, return_s):
    """Predicted time to first token on a prefill worker: the history is shipped while the round
    queues, and what the prefill adds to it is shipped back."""
    return max(queue_s, ship_s) + prefill_s + return_s


@kernel
def soonest(predicted_s, low, high):
    """The prefill worker in ``low .. high - 1`` of the least predicted time; -1 if all are
    infinite."""
    best = -1
    best_s = math.inf
    for p in range(low, high):
        if predicted_s[p] < best_s:
            best_s = predicted_s[p]
            best = p
    return best


@kernel
def added_itl_s(prefill_s, decoding, tokens):
    """What ``prefill_s`` of local prefills, those queued there included, adds to the mean inter-token
    latency of a window of ``tokens`` tokens: each holds up one token of each of ``decoding``
    requests."""
    return prefill_s * decoding / tokens if tokens > 0 else prefill_s * min(decoding, 1)


@kernel
def choose_branch(
    rule, has_history, local_s, remote_s, itl_s, extra_itl_s, ttft_s,
    most_ttft_s, most_itl_s, alpha, beta,
):  # fmt: skip
    """Choose where a round's prefill runs.

    ``local_s`` and ``remote_s`` are the predicted times to its first token, infinite where it cannot
    run; ``itl_s`` and ``ttft_s`` the windowed means of the decode worker and of the best prefill
    worker. ``alpha`` and ``beta`` are the shares of the bounds up to which a worker counts as well.
    """
    if remote_s == math.inf:
        return LOCAL
    if local_s == math.inf:
        return REMOTE
    if rule == HOME:
        return LOCAL if has_history else REMOTE
    if rule == AWAY:
        return REMOTE
    decode_well = itl_s <= beta * most_itl_s and itl_s + extra_itl_s <= most_itl_s
    prefill_well = ttft_s <= alpha * most_ttft_s
    if decode_well and (not prefill_well or local_s <= remote_s):
        return LOCAL
    if prefill_well or remote_s <= most_ttft_s:
        return REMOTE
    return LEAST_BAD_LOCAL if local_s <= remote_s else LEAST_BAD_REMOTE


@kernel
def is_local(branch):
    """Whether a branch keeps the prefill on the decode worker."""
    return branch in (LOCAL, LEAST_BAD_LOCAL)
