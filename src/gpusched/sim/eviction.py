"""Taking running requests off an engine: preemption by recompute, or with all progress lost."""

import math

import numpy as np

from gpusched.compilation import cold_kernel, kernel
from gpusched.policies.batching.discipline import (
    ALL,
    GROUPED,
    LEAST_PREDICTED,
    RANDOM,
    STATIC,
    WORST_RANK,
)
from gpusched.policies.draws import random_u64
from gpusched.sim.blocks import release
from gpusched.sim.decoding import interrupt_decoding, kv_tokens, produced_tokens
from gpusched.sim.lists import leave_group, unlink_running
from gpusched.sim.starting import enter_queue, forget_resident, standing
from gpusched.sim.state import (
    DECODE,
    FAULT,
    FAULTY,
    NONE,
    PAUSED,
    PREFILL,
    THRASHING,
    WAITING,
)

MOST_PREEMPTIONS = 10_000
"""Evictions of one request after which a discipline is taken never to finish it."""

_DRAW = 1.0 / 2.0**53


@cold_kernel
def preempt(s, e, r, grown):
    """Send a running request back to the front of the queue, its KV cache dropped.

    ``grown`` tells that decodes hold the slot of their next token already.
    """
    engine = s.engines[e]
    request = s.requests[r]
    held = kv_tokens(s, e, r)
    if request.state == DECODE:
        interrupt_decoding(s, e, r)
        if grown and engine.forming != STATIC:
            held += 1
    elif request.state == PREFILL and engine.reserve_prompt:
        held = max(held, request.prompt + request.produced)
    if request.state == PAUSED:
        leave_group(s, e, request.group, r)
        engine.paused -= 1
    elif engine.gate == GROUPED:
        s.group_sizes[e, request.group] -= 1
    forget_resident(s, e, r)
    release(s, e, r, held)
    unlink_running(s, e, r)
    request.state = WAITING
    request.computed = 0
    request.preemptions += 1
    if request.preemptions > MOST_PREEMPTIONS and s.counters[FAULT] == 0:
        s.counters[FAULT] = THRASHING
        s.counters[FAULTY] = r
    request.predicted = max(request.predicted, request.produced + 1)
    if engine.restart:
        request.produced = 0
    enter_queue(s, e, r, engine.start_s, True)


@kernel
def worst_running(s, e, decoding_only):
    """The running request last in rank, the latest of equals; NONE if there is none."""
    worst = np.int64(NONE)
    worst_rank = -math.inf
    r = np.int64(s.engines[e].running_head)
    while r != NONE:
        if not decoding_only or s.requests[r].state == DECODE:
            place = standing(s, e, r)
            if place > worst_rank or (place == worst_rank and r > worst):
                worst = r
                worst_rank = place
        r = np.int64(s.requests[r].next)
    return worst


@kernel
def least_predicted_running(s, e):
    """The running request of smallest predicted length, raised by what it has given."""
    least = np.int64(NONE)
    least_tokens = np.int64(0)
    r = np.int64(s.engines[e].running_head)
    while r != NONE:
        tokens = max(np.int64(s.requests[r].predicted), np.int64(produced_tokens(s, e, r)) + 1)
        if least == NONE or tokens < least_tokens or (tokens == least_tokens and r > least):
            least = r
            least_tokens = tokens
        r = np.int64(s.requests[r].next)
    return least


@cold_kernel
def evict(s, e, grown):
    """Preempt as the discipline says when blocks have run out: one request, some or all."""
    engine = s.engines[e]
    if engine.eviction == WORST_RANK:
        preempt(s, e, worst_running(s, e, False), grown)
    elif engine.eviction == LEAST_PREDICTED:
        preempt(s, e, least_predicted_running(s, e), grown)
    elif engine.eviction == ALL or engine.eviction == RANDOM:
        r = np.int64(engine.running_tail)
        while r != NONE:
            previous = np.int64(s.requests[r].previous)
            chosen = engine.eviction == ALL
            if not chosen:
                draw = random_u64(e, engine.draws) >> np.uint64(11)
                chosen = draw * _DRAW < engine.clear_probability
                engine.draws += 1
            if chosen:
                preempt(s, e, r, grown)
            r = previous
    else:
        preempt(s, e, np.int64(engine.running_tail), grown)


@cold_kernel
def displace(s, e):
    """Let the first waiting request take the place of one of worse level; return whether it can."""
    worst = worst_running(s, e, True)
    if worst == NONE or standing(s, e, worst) <= s.requests[s.engines[e].waiting_head].rank:
        return False
    preempt(s, e, worst, True)
    return True
