"""The way into the fleet: admission, routing, the engine's queue, or a refusal."""

import math

import numpy as np

from gpusched.compilation import cold_kernel, kernel
from gpusched.policies.admission.policy import CUSTOM as ASKS
from gpusched.policies.batching.order import FCFS
from gpusched.policies.draws import random_u64
from gpusched.policies.routing.choice import (
    CUSTOM,
    LEXICOGRAPHIC,
    SESSION_AFFINITY,
    first_started,
    least,
    route,
)
from gpusched.policies.routing.placement import place
from gpusched.sim.blocks import blocks_for
from gpusched.sim.engine import cut_leap
from gpusched.sim.heaps import pop_timed, push_timed, set_timer
from gpusched.sim.lockstep import wake_unit
from gpusched.sim.starting import enter_queue
from gpusched.sim.state import (
    ABSENT,
    FAULT,
    FAULTY,
    HELD,
    HELD_FOREVER,
    HOLD,
    NEXT_ROW,
    NONE,
    PENDING,
    PREFILL_ONLY,
    REJECTED,
    REMAINING,
    SCORE,
    TURN,
    WAITING,
)

MOST_HOLDS = 100_000
"""Times that a request may be put off, after which its policy is taken never to admit it."""


@kernel
def push_pending(s, time_s, r):
    """Let something happen to a request at a later time: an arrival or a transfer's end."""
    push_timed(s.pending_s, s.pending, s.counters[PENDING], time_s, r)
    s.counters[PENDING] += 1


@kernel
def pop_pending(s):
    """Take the request out to which something happens next."""
    r = np.int64(s.pending[0])
    pop_timed(s.pending_s, s.pending, s.counters[PENDING])
    s.counters[PENDING] -= 1
    return r


@kernel
def add_load(s, rules, e, r, sign):
    """Count a request in or out of what routers see of an engine."""
    s.load_requests[e] += sign
    s.load_tokens[e] += sign * (s.requests[r].prompt + rules.expected_output_tokens)


@kernel
def favourite(s, r):
    """Engine that last took a request with the longest known part of this prefix, or -1; the
    prefix index then names the engine chosen by ``remember``."""
    engine = -1
    for j in range(s.prefix_offsets[r], s.prefix_offsets[r + 1]):
        owner = s.owners[s.prefix_ids[j]]
        if owner < 0:
            break
        engine = owner
    return engine


@kernel
def remember(s, r, e):
    """Enter a routed request's blocks in the prefix index, and its session's engine."""
    for j in range(s.prefix_offsets[r], s.prefix_offsets[r + 1]):
        s.owners[s.prefix_ids[j]] = e
    if len(s.session_owners) > 0:
        s.session_owners[s.requests[r].session] = e


@kernel
def choose(s, rules, router, turn, draw, affinity, r, now_s, low, high):
    """Route a request to one of the engines ``low .. high - 1``."""
    if router.kind == CUSTOM and high - low > 1:
        return best_scored(s, r, affinity, now_s, low, high)
    if router.kind == LEXICOGRAPHIC and high - low > 1:
        return place_among(s, rules, router, r, now_s, low, high)
    return route(
        router.kind,
        turn,
        draw,
        affinity,
        s.ready_s,
        now_s,
        s.load_requests,
        s.load_tokens,
        low,
        high,
        router.slack_requests,
        router.factor,
    )


@cold_kernel
def best_scored(s, r, affinity, now_s, low, high):
    """The started engine that a user's function scores lowest; else the one that starts first."""
    request = s.requests[r]
    best = -1
    best_score = math.inf
    for e in range(low, high):
        if s.ready_s[e] <= now_s:
            score = s.score(
                e - low,
                s.load_requests[e],
                s.load_tokens[e],
                1 if e == affinity else 0,
                request.arrival_s,
                request.prompt,
                request.produced,
                request.predicted,
                request.priority,
                s.parameters[SCORE],
            )
            if score != score and s.counters[FAULT] == 0:
                s.counters[FAULT] = SCORE + 1
                s.counters[FAULTY] = r
            if score < best_score:
                best_score = score
                best = e
    return best if best >= 0 else first_started(s.ready_s, low, high)


@cold_kernel
def place_among(s, rules, router, r, now_s, low, high):
    """The engine of the fewest requests, then tokens, outliers in tokens left out."""
    tokens = s.requests[r].prompt + rules.expected_output_tokens
    for e in range(low, high):
        capacity = s.engines[e].kv_blocks << s.engines[e].block_shift
        started = s.ready_s[e] <= now_s
        s.scratch[e] = capacity - s.load_tokens[e] if started else -math.inf
    e = place(
        tokens,
        s.load_requests,
        s.load_tokens,
        s.scratch,
        s.by_tokens,
        low,
        high,
        router.outlier_factor,
        router.slack_requests,
    )
    if e == NONE:
        return least(s.load_requests, s.ready_s, now_s, low, high)
    s.load_requests[e] -= 1
    s.load_tokens[e] -= tokens
    return e


@kernel
def fits(s, rules, e, r):
    """Whether the engine, and every decode engine after a prefill engine, can hold the request."""
    request = s.requests[r]
    engine = s.engines[e]
    total = request.prompt + request.output - 1
    if engine.role != PREFILL_ONLY:
        return blocks_for(engine, total) <= engine.kv_blocks
    if blocks_for(engine, request.prompt) > engine.kv_blocks:
        return False
    if request.output == 1:
        return True
    for d in range(rules.entry_engines, len(s.engines)):
        if blocks_for(s.engines[d], total) > s.engines[d].kv_blocks:
            return False
    return True


@kernel
def wake(s, e, now_s):
    """Let an idle engine look at its queue."""
    engine = s.engines[e]
    if engine.steps > 0:
        return
    start_s = max(now_s, s.ready_s[e])
    if s.coupled is not None and engine.units > 1:
        wake_unit(s, e, start_s)
    elif start_s < s.timers_s[e]:
        engine.end_s = start_s
        set_timer(s.timers_s, s.winners, e, engine.end_s)


@kernel
def enqueue(s, e, r, now_s):
    """Queue a request; a leap it could join ends with the step under way."""
    engine = s.engines[e]
    request = s.requests[r]
    request.engine = e
    request.state = WAITING
    enter_queue(s, e, r, now_s, False)
    joins = engine.open and (engine.order == FCFS or engine.waiting_head == r or engine.skip > 0)
    if joins and engine.steps > 1:
        cut_leap(s, e, now_s)
    else:
        wake(s, e, now_s)


@kernel
def arrive(s, rules, r, now_s):
    """Take in a new request, or hold or refuse it as admission says."""
    s.requests[r].arrival_s = now_s
    if rules.admission == ASKS:
        ask_admission(s, rules, r, now_s)
    else:
        enter(s, rules, r, now_s)


@cold_kernel
def return_later(s, rules, r, now_s):
    """Let a request come whose time was set during the run: a later round, or one put off."""
    if s.requests[r].state == HELD:
        ask_admission(s, rules, r, now_s)
    else:
        arrive(s, rules, r, now_s)


@kernel
def enter(s, rules, r, now_s):
    """Route a request and queue it, or reject it if it can never fit."""
    e = 0
    if rules.entry_engines > 1:
        affinity = np.int64(NONE)
        if rules.routing.kind != SESSION_AFFINITY:
            affinity = np.int64(favourite(s, r))
        elif len(s.session_owners) > 0:
            affinity = np.int64(s.session_owners[s.requests[r].session])
        draw = random_u64(rules.seed, 2 * r)
        turn = s.counters[TURN]
        e = choose(
            s, rules, rules.routing, turn, draw, affinity, r, now_s, 0, rules.entry_engines
        )  # fmt: skip
        s.counters[TURN] += 1
        remember(s, r, e)
    if fits(s, rules, e, r):
        add_load(s, rules, e, r, 1)
        enqueue(s, e, r, now_s)
    else:
        reject(s, rules, r, now_s)


@cold_kernel
def ask_admission(s, rules, r, now_s):
    """Ask a user's function how long to hold a request before it is routed."""
    request = s.requests[r]
    requests = 0
    tokens = 0
    for e in range(len(s.engines)):
        requests += s.load_requests[e]
        tokens += s.load_tokens[e]
    hold_s = s.hold(
        request.arrival_s,
        request.prompt,
        request.produced,
        request.predicted,
        request.priority,
        now_s,
        rules.entry_engines,
        requests,
        tokens,
        s.parameters[HOLD],
    )
    if hold_s == math.inf:
        reject(s, rules, r, now_s)
    elif hold_s > 0.0:
        request.state = HELD
        request.holds += 1
        push_pending(s, now_s + hold_s, r)
        if request.holds > MOST_HOLDS and s.counters[FAULT] == 0:
            s.counters[FAULT] = HELD_FOREVER
            s.counters[FAULTY] = r
    else:
        if hold_s != hold_s and s.counters[FAULT] == 0:
            s.counters[FAULT] = HOLD + 1
            s.counters[FAULTY] = r
        enter(s, rules, r, now_s)


@kernel
def reject(s, rules, r, now_s):
    """Refuse a request, and with it the later rounds of its session."""
    s.requests[r].state = REJECTED
    s.counters[REMAINING] -= 1
    while s.requests[r].follower != NONE:
        r = np.int64(s.requests[r].follower)
        s.requests[r].arrival_s = now_s
        s.requests[r].state = REJECTED
        s.counters[REMAINING] -= 1
    release_user(s, rules, now_s)


@kernel
def next_row(s):
    """Move on to the next row of the trace that arrives by itself and return it."""
    row = s.counters[NEXT_ROW]
    while row < len(s.requests):
        request = s.requests[row]
        if request.state == ABSENT and request.arrival_s == request.arrival_s:
            break
        row += 1
    s.counters[NEXT_ROW] = row
    return row


@kernel
def release_user(s, rules, now_s):
    """In a closed loop, let the user whose request ended send the next one."""
    if rules.closed_loop:
        row = next_row(s)
        if row < len(s.requests):
            s.counters[NEXT_ROW] = row + 1
            push_pending(s, now_s + rules.closed_loop_think_s, row)
