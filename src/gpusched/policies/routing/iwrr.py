"""Choosing the next node of a request's pipeline (Helix, arXiv 2406.01566, section 5).

Every place (a node or the front) knows the edges that leave it, numbered ``low .. high - 1`` in
arrays over all edges. Interleaved weighted round-robin gives work to the edge whose load after it is
least, where load is work over weight and the weight is the planned flow. A request keeps its
pipeline while it decodes; those steps add to the loads.

Baselines in the same form: SWARM's priorities (Ryabinin et al., ICML 2023, appendix C), random and
shortest queue. Ties go to the lowest edge, but at random among shortest queues.
"""

import math

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import kernel
from gpusched.policies.draws import random_u64

IWRR, SWARM, RANDOM, SHORTEST_QUEUE = range(4)

LEAST_SHARE = 0.05
"""An edge with less than this share of its place's flow takes no prompts."""


@kernel
def has_flow(weight, total):
    """Whether an edge carries enough of the ``total`` flow of its place."""
    return weight > 0.0 and weight >= LEAST_SHARE * total


@kernel
def expected_tokens(prompt_tokens, output_share, mean_output_tokens):
    """KV cache tokens a request is expected to need in each layer."""
    return math.floor(prompt_tokens + output_share * mean_output_tokens)


@kernel
def kv_fits(reserved, capacity, tokens, layers, high_water):
    """Whether a node that would run all its ``layers`` stays below the high-water mark of its
    ``capacity``, in token-layers."""
    return capacity - reserved - tokens * layers >= (1.0 - high_water) * capacity


@kernel
def least_load(weight, load, open_, work, low, high):
    """The open edge whose load after ``work`` is least; -1 if none is open."""
    best = -1
    best_load = math.inf
    for edge in range(low, high):
        if open_[edge]:
            after = load[edge] + work / weight[edge]
            if after < best_load:
                best_load = after
                best = edge
    return best


@kernel
def least_priority(priority, open_, low, high):
    """SWARM: the open edge of least priority value, which the chosen edge's mean service time then
    raises; -1 if none is open."""
    best = -1
    for edge in range(low, high):
        if open_[edge] and (best < 0 or priority[edge] < priority[best]):
            best = edge
    return best


@kernel
def smoothed(mean_s, service_s, smoothing):
    """SWARM: the exponential mean of service times after one more."""
    return smoothing * service_s + (1.0 - smoothing) * mean_s


@kernel
def any_open(open_, low, high, seed, turn):
    """An open edge at random; -1 if none is open. ``turn`` counts earlier draws."""
    count = 0
    for edge in range(low, high):
        if open_[edge]:
            count += 1
    if count == 0:
        return -1
    skip = np.int64((random_u64(seed, turn) >> np.uint64(33)) % np.uint64(count))
    for edge in range(low, high):
        if open_[edge]:
            if skip == 0:
                return edge
            skip -= 1
    return -1


@kernel
def shortest(length, open_, low, high, seed, turn):
    """An open edge to a shortest queue, at random among equals; -1 if none is open. ``length`` is
    that of the queue at the edge's end. Closes the edges to longer queues."""
    least = math.inf
    for edge in range(low, high):
        if open_[edge] and length[edge] < least:
            least = length[edge]
    for edge in range(low, high):
        if length[edge] > least:
            open_[edge] = False
    return any_open(open_, low, high, seed, turn)


def carried_loads(
    load: NDArray[np.float64], old: NDArray[np.float64], new: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the loads of one place's edges once their weights change from ``old`` to ``new``.

    Work done stays done, so ``load * old / new``; an edge that had no weight starts level with the
    most loaded one, lest it take all requests until it has caught up. All of shape (edges,).
    """
    kept = (old > 0) & (new > 0)
    carried = np.zeros(len(load))
    carried[kept] = load[kept] * old[kept] / new[kept]
    fresh = (old <= 0) & (new > 0)
    carried[fresh] = carried[kept].max(initial=0.0)
    return carried
