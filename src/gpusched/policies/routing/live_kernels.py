"""Decisions of routing policies as a live router calls them: on arrays of one lane of replicas."""

import math

from gpusched.compilation import entry_kernel
from gpusched.policies.draws import random_u64
from gpusched.policies.routing.choice import least, route
from gpusched.policies.routing.iwrr import least_load
from gpusched.policies.routing.placement import place


@entry_kernel
def route_one(
    policy, seed, turn, affinity, ready_s, now_s, load_requests, load_tokens, slack, factor
):
    """Choose by a policy other than lexicographic, weighted and a user's own."""
    draw = random_u64(seed, 2 * turn)
    return route(
        policy, turn, draw, affinity, ready_s, now_s, load_requests, load_tokens,
        0, len(ready_s), slack, factor,
    )  # fmt: skip


@entry_kernel
def place_one(
    tokens, load_requests, load_tokens, kv_tokens, ready_s, now_s, free, ascending, factor, slack
):
    """Choose by lexicographic placement; ``free`` and ``ascending`` are scratch."""
    count = len(ready_s)
    for i in range(count):
        free[i] = kv_tokens[i] - load_tokens[i] if ready_s[i] <= now_s else -math.inf
    chosen = place(tokens, load_requests, load_tokens, free, ascending, 0, count, factor, slack)
    if chosen < 0:
        return least(load_requests, ready_s, now_s, 0, count)
    load_requests[chosen] -= 1
    load_tokens[chosen] -= tokens
    return chosen


@entry_kernel
def weigh_one(weight, load, usable, ready_s, now_s, open_, work):
    """Choose by interleaved weighted round-robin and add the work; among replicas of too little
    weight if there are no others, -1 if none is ready. ``open_`` is scratch."""
    count = len(weight)
    for i in range(count):
        open_[i] = usable[i] and ready_s[i] <= now_s
    chosen = least_load(weight, load, open_, work, 0, count)
    if chosen < 0:
        for i in range(count):
            open_[i] = weight[i] > 0.0 and ready_s[i] <= now_s
        chosen = least_load(weight, load, open_, work, 0, count)
    if chosen >= 0:
        load[chosen] += work / weight[chosen]
    return chosen
