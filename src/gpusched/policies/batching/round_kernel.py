"""Unit rounds, one after the other: completions, clearing, admission."""

import numpy as np

from gpusched.compilation import entry_kernel, kernel
from gpusched.policies.batching.discipline import ALL, LEAST_PREDICTED, LOOK_AHEAD, RANDOM
from gpusched.policies.batching.lookahead import discard, insert, shortfall
from gpusched.policies.batching.order import rank
from gpusched.policies.draws import random_u64
from gpusched.policies.views import Request

LENGTH, PEAK, GIVEN = range(10, 13)
"""Orders beside those of ``policies.batching.order``: predicted length with ties by arrival, predicted
peak, and ranks given from outside."""

ROUND, CLEARED, DRAWS, STUCK = range(4)
"""Counters: the present round, requests cleared, random draws, clearings since the last completion."""

MOST_CLEARINGS = 2000
"""Clearings without a completion between them after which a policy is taken never to finish."""

_DRAW = 1.0 / 2.0**53


@kernel
def standing(order, arrival, prompt, predicted, given):
    """Rank of a waiting request; lower goes first."""
    if order == GIVEN:
        return given
    if order == LENGTH:
        return float(predicted)
    if order == PEAK:
        return float(prompt + predicted)
    return rank(order, 0.0, 1, Request(float(arrival), prompt, 0, predicted, 0))


@kernel
def before(ranks, i, j):
    """Whether request ``i`` goes before ``j``: by rank, then by arrival."""
    return ranks[i] < ranks[j] or (ranks[i] == ranks[j] and i < j)


@kernel
def push(heap, size, ranks, i):
    """Let a request join the waiting ones."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if before(ranks, heap[parent], i):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = i


@kernel
def pop(heap, size, ranks):
    """Take out the first of the waiting requests."""
    last = heap[size - 1]
    at = 0
    while 2 * at + 1 < size - 1:
        child = 2 * at + 1
        if child + 1 < size - 1 and before(ranks, heap[child + 1], heap[child]):
            child += 1
        if before(ranks, last, heap[child]):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last


@kernel
def victim(clearing, running, size, starts, predicted, round_):
    """Place among the running of the next request to clear: of smallest predicted length, raised by
    what it has given, or the newest."""
    chosen = 0
    for k in range(1, size):
        i, j = running[k], running[chosen]
        if clearing == LEAST_PREDICTED:
            own = max(predicted[i], round_ - starts[i] + 1)
            least = max(predicted[j], round_ - starts[j] + 1)
            if own < least or (own == least and i > j):
                chosen = k
        elif starts[i] > starts[j] or (starts[i] == starts[j] and i > j):
            chosen = k
    return chosen


@entry_kernel
def serve(
    arrival, prompt, output, predicted, given, budget, limit, gate, order, skip, clearing,
    clear_probability, seed, ranks, heap, aside, running, ends, bases, planned, starts, clearings,
    counters,
):  # fmt: skip
    """Serve requests, sorted by arrival, until all are done or the policy is stuck.

    ``limit`` is the budget less the margin. ``predicted`` is raised where a cleared request has shown
    that it is longer; ``starts`` receives the rounds in which requests start for good, ``clearings``
    how often each was cleared. The other arrays are room for the state.
    """
    n = len(arrival)
    following = waiting = size = done = 0
    base = 0
    t = arrival[0]
    while done < n and counters[STUCK] <= MOST_CLEARINGS:
        if size == 0 and waiting == 0:
            t = max(t, arrival[following])
        while following < n and arrival[following] <= t:
            i = following
            ranks[i] = standing(order, arrival[i], prompt[i], predicted[i], given[i])
            push(heap, waiting, ranks, i)
            waiting += 1
            following += 1
        k = 0
        while k < size:
            i = running[k]
            if starts[i] + output[i] <= t:
                discard(ends, bases, 0, size, planned[i], prompt[i] - starts[i])
                base -= prompt[i] - starts[i]
                size -= 1
                running[k] = running[size]
                done += 1
                counters[STUCK] = 0
            else:
                k += 1
        if base + size * (t + 1) > budget:
            counters[STUCK] += 1
        while base + size * (t + 1) > budget:
            k = size - 1
            if clearing == LEAST_PREDICTED or clearing not in (ALL, RANDOM):
                k = victim(clearing, running, size, starts, predicted, t)
            while k >= 0:
                chosen = True
                if clearing == RANDOM:
                    draw = random_u64(seed, counters[DRAWS])
                    counters[DRAWS] += 1
                    chosen = (draw >> np.uint64(11)) * _DRAW < clear_probability
                if chosen:
                    i = running[k]
                    discard(ends, bases, 0, size, planned[i], prompt[i] - starts[i])
                    base -= prompt[i] - starts[i]
                    size -= 1
                    running[k] = running[size]
                    predicted[i] = max(predicted[i], t - starts[i] + 1)
                    ranks[i] = standing(order, arrival[i], prompt[i], predicted[i], given[i])
                    push(heap, waiting, ranks, i)
                    waiting += 1
                    clearings[i] += 1
                    counters[CLEARED] += 1
                k = k - 1 if clearing in (ALL, RANDOM) else -1
        passed = 0
        while waiting > 0:
            i = heap[0]
            last = t + predicted[i]
            if gate == LOOK_AHEAD:
                fits = shortfall(ends, bases, 0, size, t + 1, prompt[i] + 1, last, limit, 0) == 0
            else:
                fits = base + size * (t + 1) + prompt[i] + 1 <= limit
            if not fits and size > 0:
                if passed >= skip:
                    break
                pop(heap, waiting, ranks)
                waiting -= 1
                aside[passed] = i
                passed += 1
                continue
            pop(heap, waiting, ranks)
            waiting -= 1
            starts[i] = t
            planned[i] = last
            insert(ends, bases, 0, size, last, prompt[i] - t)
            base += prompt[i] - t
            running[size] = i
            size += 1
        for k in range(passed):
            push(heap, waiting, ranks, aside[k])
            waiting += 1
        t += 1
    counters[ROUND] = t
