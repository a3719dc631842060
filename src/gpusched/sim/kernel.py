"""The event loop: arrivals, ends of leaps, hand-overs from prefill to decode, follow-up rounds.

Events go in order of time. At equal times arrivals come before ends of leaps, the trace's own
before those the simulation makes, and engines in order of their index.
"""

import math

import numpy as np

from gpusched.compilation import entry_kernel, kernel
from gpusched.policies.admission.policy import GATED
from gpusched.policies.draws import random_u64
from gpusched.sim.blocks import available, blocks_for, release
from gpusched.sim.decoding import join_decoding, leave_sizes, next_stopped, pause
from gpusched.sim.engine import cut_leap, finish_leap, give_token, grow_to, leave, schedule
from gpusched.sim.entry import (
    add_load,
    arrive,
    choose,
    enqueue,
    next_row,
    pop_pending,
    push_pending,
    release_user,
    return_later,
    wake,
)
from gpusched.sim.gating import end_prefill, free_solo
from gpusched.sim.heaps import set_timer
from gpusched.sim.lists import unlink_running
from gpusched.sim.rounds.leaving import bound_engine, end_round, end_round_prefill, kept_at
from gpusched.sim.starting import expect_resident, forget_resident, predicted_left
from gpusched.sim.state import (
    DECODE_TURN,
    FAULT,
    MIXED,
    NEXT_ROW,
    NONE,
    PENDING,
    PREFILL,
    PREFILL_ONLY,
    REMAINING,
    TRANSFER,
)

UNDER_WAY, FINISHED, STALLED, FAULTED, DUE = range(5)
"""Where a run stands. ``DUE``: the next event is later than the time asked for."""


@kernel
def complete(s, rules, e, r, now_s):
    """Account for an answered request and let what waits for the answer arrive."""
    add_load(s, rules, e, r, -1)
    end_round(s, e, r, now_s)
    s.counters[REMAINING] -= 1
    follower = np.int64(s.requests[r].follower)
    if follower != NONE:
        push_pending(s, now_s + s.think_s[follower], follower)
    else:
        release_user(s, rules, now_s)


@kernel
def decode_engine(s, rules, r, now_s):
    """Choose a decode engine for a request whose prompt is computed."""
    bound = bound_engine(s, r)
    if bound != NONE:
        return bound
    draw = random_u64(rules.seed, 2 * r + 1)
    turn = s.counters[DECODE_TURN]
    s.counters[DECODE_TURN] += 1
    low, high = rules.entry_engines, len(s.engines)
    return choose(s, rules, rules.decode_routing, turn, draw, np.int64(NONE), r, now_s, low, high)


@kernel
def seat_elsewhere(s, rules, r, now_s):
    """Choose a decode engine for a request of a mixed one; NONE if it has no seat for it."""
    if s.coupled is not None and rules.admission == GATED:
        return free_solo(s, rules, r)
    request = s.requests[r]
    d = decode_engine(s, rules, r, now_s)
    target = s.engines[d]
    tokens = request.prompt + request.output - 1
    full = s.load_requests[d] >= target.max_seqs
    return NONE if full or blocks_for(target, tokens) > target.kv_blocks else d


@kernel
def hand_over(s, rules, e, r, d, now_s):
    """Send a computed prompt's KV cache to a decode engine; its blocks stay until it is there."""
    request = s.requests[r]
    source = s.engines[e]
    unlink_running(s, e, r)
    leave_sizes(s, e, r)
    forget_resident(s, e, r)
    add_load(s, rules, e, r, -1)
    add_load(s, rules, d, r, 1)
    tokens = request.computed - kept_at(s, d, r, now_s)
    target = s.engines[d]
    begin_s = max(now_s, source.send_free_s, target.receive_free_s)
    end_s = begin_s + rules.link_latency_s + rules.link_token_s * tokens
    source.send_free_s = end_s
    target.receive_free_s = end_s
    request.destination = d
    request.state = TRANSFER
    push_pending(s, end_s, r)


@kernel
def receive(s, r, now_s):
    """End a transfer: free the source's blocks and queue the request for decoding."""
    request = s.requests[r]
    e = np.int64(request.engine)
    source = s.engines[e]
    if source.role != PREFILL_ONLY and source.steps > 1:
        cut_leap(s, e, now_s)
        grow_to(s, e, source.steps)
    release(s, e, r, request.computed)
    if source.waiting > 0:
        wake(s, e, now_s)
    enqueue(s, np.int64(request.destination), r, now_s)


@kernel
def end_leap(s, rules, e):
    """Take an engine over the end of its leap and into the next one."""
    settle(s, rules, e)
    schedule(s, e)
    set_timer(s.timers_s, s.winners, e, s.engines[e].end_s)


@kernel
def settle(s, rules, e):
    """Account for the leap that an engine ends: tokens given, requests that stop or move on."""
    engine = s.engines[e]
    now_s = engine.end_s
    if engine.steps > 0:
        finish_leap(s, e)
        record_kv(s, e)
        if engine.active > 0:
            r = next_stopped(s, e)
            while r != NONE:
                request = s.requests[r]
                if request.finish_step == engine.step:
                    leave(s, e, r, request.prompt + request.output - 1)
                    complete(s, rules, e, r, now_s)
                else:
                    pause(s, e, r)
                r = next_stopped(s, e)
        if engine.chunk_tokens > 0:
            r = engine.prefill_head
            while r != NONE:
                request = s.requests[r]
                following = np.int64(request.next)
                if request.state == PREFILL and request.computed == (
                    request.prompt + request.produced
                ):
                    give_token(s, e, r)
                    end_round_prefill(s, e, r)
                    if s.coupled is not None and rules.admission == GATED:
                        end_prefill(s, r)
                    if request.produced == request.output:
                        leave(s, e, r, request.prompt + request.output - 1)
                        complete(s, rules, e, r, now_s)
                    else:
                        d = np.int64(NONE)
                        if engine.role == PREFILL_ONLY:
                            d = decode_engine(s, rules, r, now_s)
                        elif engine.role == MIXED and rules.entry_engines < len(s.engines):
                            d = seat_elsewhere(s, rules, r, now_s)
                        if d != NONE:
                            hand_over(s, rules, e, r, d, now_s)
                        else:
                            forget_resident(s, e, r)
                            expect_resident(s, e, r, request.computed + 1, predicted_left(s, r))
                            join_decoding(s, e, r)
                r = following


@kernel
def record_kv(s, e):
    """Add the leap's KV use to the time series: linear between its ends."""
    engine = s.engines[e]
    bins = s.kv_series.shape[1]
    while engine.end_s >= s.series_width_s[0] * bins:
        for pool in range(s.kv_series.shape[0]):
            for i in range(bins // 2):
                s.kv_series[pool, i] = s.kv_series[pool, 2 * i] + s.kv_series[pool, 2 * i + 1]
            for i in range(bins // 2, bins):
                s.kv_series[pool, i] = 0.0
        s.series_width_s[0] *= 2.0
    width_s = s.series_width_s[0]
    used = 0.5 * (engine.used_blocks + engine.kv_blocks - available(engine))
    begin_s = engine.start_s
    i = int(begin_s / width_s)
    while begin_s < engine.end_s and i < bins:
        until_s = min((i + 1) * width_s, engine.end_s)
        s.kv_series[engine.pool, i] += used * max(until_s - begin_s, 0.0)
        begin_s = until_s
        i += 1


@entry_kernel
def regroup(s, first, last, now_s):
    """Let engines ``first .. last - 1`` look at their queues by new groups as soon as they can."""
    for e in range(first, last):
        if s.engines[e].steps > 1:
            cut_leap(s, e, now_s)
        else:
            wake(s, e, now_s)


@entry_kernel
def run(s, rules, max_events, until_s):
    """Process up to ``max_events`` events, none later than ``until_s``, and return where the run
    stands.

    Every engine steps for itself, and admission holds no request: see ``coupled`` for the rest.
    """
    for _ in range(max_events):
        if s.counters[FAULT] > 0:
            return FAULTED
        if s.counters[REMAINING] == 0:
            return FINISHED
        e = s.winners[1]
        end_s = s.timers_s[e]
        row = len(s.requests) if rules.closed_loop else next_row(s)
        arrival_s = s.requests[row].arrival_s if row < len(s.requests) else math.inf
        pending_s = s.pending_s[0] if s.counters[PENDING] > 0 else math.inf
        if until_s < min(arrival_s, pending_s, end_s) < math.inf:
            return DUE
        if arrival_s <= pending_s and arrival_s <= end_s:
            if arrival_s == math.inf:
                return STALLED
            s.counters[NEXT_ROW] += 1
            arrive(s, rules, row, arrival_s)
        elif pending_s <= end_s:
            r = pop_pending(s)
            if s.requests[r].state == TRANSFER:
                receive(s, r, pending_s)
            else:
                return_later(s, rules, r, pending_s)
        else:
            end_leap(s, rules, e)
    return FINISHED if s.counters[REMAINING] == 0 else UNDER_WAY
