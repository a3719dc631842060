"""The event loop: arrivals, ends of leaps, hand-overs from prefill to decode, follow-up rounds.

Events go in order of time. At equal times arrivals come before ends of leaps, the trace's own
before those the simulation makes, and engines in order of their index.
"""

import math

import numpy as np

from gpusched.compilation import entry_kernel, kernel
from gpusched.policies.batching.order import FCFS
from gpusched.policies.routing import random_u64, route
from gpusched.sim.admission import (
    enter_queue,
    expect_resident,
    forget_resident,
    predicted_left,
)
from gpusched.sim.blocks import available, blocks_for, release
from gpusched.sim.decoding import join_decoding, next_stopped, pause
from gpusched.sim.engine import finish_leap, give_token, leave, schedule
from gpusched.sim.heaps import pop_timed, push_timed, set_timer
from gpusched.sim.lists import unlink_running
from gpusched.sim.lockstep import count_idle_units, lock_step, shorten_group, wake_unit
from gpusched.sim.state import (
    ABSENT,
    DECODE_TURN,
    FAULT,
    NEXT_ROW,
    NONE,
    PENDING,
    PREFILL,
    PREFILL_ONLY,
    REJECTED,
    REMAINING,
    TRANSFER,
    TURN,
    WAITING,
)
from gpusched.sim.timing_kernels import leap_s, steps_until

UNDER_WAY, FINISHED, STALLED, FAULTED = range(4)


@kernel
def push_pending(s, time_s, r):
    """Let something happen to a request at a later time: an arrival or a transfer's end."""
    push_timed(s.pending_s, s.pending, s.counters[PENDING], time_s, r)
    s.counters[PENDING] += 1


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
    """Enter a routed request's blocks in the prefix index."""
    for j in range(s.prefix_offsets[r], s.prefix_offsets[r + 1]):
        s.owners[s.prefix_ids[j]] = e


@kernel
def fits(s, rules, e, r):
    """Whether the engine, and some decode engine after it, can ever hold the request."""
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
    if s.lockstep is not None and engine.units > 1:
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
    if s.lockstep is not None and joins and engine.steps > 1 and engine.units > 1:
        shorten_group(s, e, now_s)
    elif joins and engine.steps > 1:
        wait_s = now_s - engine.start_s
        engine.steps = steps_until(engine.first_s, engine.slope_s, engine.steps, wait_s)
        engine.end_s = engine.start_s + leap_s(engine.first_s, engine.slope_s, engine.steps)
        engine.open = False
        set_timer(s.timers_s, s.winners, e, engine.end_s)
    else:
        wake(s, e, now_s)


@kernel
def arrive(s, rules, r, now_s):
    """Route a new request and queue it, or reject it if it can never fit."""
    request = s.requests[r]
    request.arrival_s = now_s
    low, high = 0, rules.entry_engines
    e = low
    if high > 1:
        e = route(
            rules.routing,
            s.counters[TURN],
            random_u64(rules.seed, 2 * r),
            favourite(s, r),
            s.ready_s,
            now_s,
            s.load_requests,
            s.load_tokens,
            low,
            high,
        )
        s.counters[TURN] += 1
        remember(s, r, e)
    if fits(s, rules, e, r):
        add_load(s, rules, e, r, 1)
        enqueue(s, e, r, now_s)
    else:
        reject(s, rules, r, now_s)


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


@kernel
def complete(s, rules, e, r, now_s):
    """Account for an answered request and let what waits for the answer arrive."""
    add_load(s, rules, e, r, -1)
    s.counters[REMAINING] -= 1
    follower = np.int64(s.requests[r].follower)
    if follower != NONE:
        push_pending(s, now_s + s.think_s[follower], follower)
    else:
        release_user(s, rules, now_s)


@kernel
def hand_over(s, rules, e, r, now_s):
    """Send a computed prompt's KV cache to a decode engine; its blocks stay until it is there."""
    request = s.requests[r]
    source = s.engines[e]
    unlink_running(s, e, r)
    add_load(s, rules, e, r, -1)
    d = route(
        rules.routing,
        s.counters[DECODE_TURN],
        random_u64(rules.seed, 2 * r + 1),
        -1,
        s.ready_s,
        now_s,
        s.load_requests,
        s.load_tokens,
        rules.entry_engines,
        len(s.engines),
    )
    s.counters[DECODE_TURN] += 1
    add_load(s, rules, d, r, 1)
    target = s.engines[d]
    begin_s = max(now_s, source.send_free_s, target.receive_free_s)
    end_s = begin_s + rules.link_latency_s + rules.link_token_s * request.prompt
    source.send_free_s = end_s
    target.receive_free_s = end_s
    request.destination = d
    request.state = TRANSFER
    push_pending(s, end_s, r)


@kernel
def receive(s, r, now_s):
    """End a transfer: free the source's blocks and queue the request for decoding."""
    request = s.requests[r]
    source = np.int64(request.engine)
    release(s, source, r, request.prompt)
    if s.engines[source].waiting > 0:
        wake(s, source, now_s)
    request.computed = request.prompt
    enqueue(s, np.int64(request.destination), r, now_s)


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
                    if request.produced == request.output:
                        leave(s, e, r, request.prompt + request.output - 1)
                        complete(s, rules, e, r, now_s)
                    elif engine.role == PREFILL_ONLY:
                        hand_over(s, rules, e, r, now_s)
                    else:
                        forget_resident(s, e, r)
                        expect_resident(s, e, r, request.computed + 1, predicted_left(s, r))
                        join_decoding(s, e, r)
                r = following


@kernel
def end_leap(s, rules, e):
    """Take an engine, and all that step with it, over the end of its leap and into the next one."""
    if s.lockstep is None:
        settle(s, rules, e)
        schedule(s, e)
        set_timer(s.timers_s, s.winners, e, s.engines[e].end_s)
    else:
        count_idle_units(s, e)
        units = range(e, e + s.engines[e].units)
        for u in units:
            settle(s, rules, u)
        for u in units:
            schedule(s, u)
        lock_step(s, e)


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


@kernel
def process(s, rules, max_events):
    """Process up to ``max_events`` events and return where the run stands."""
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
        if arrival_s <= pending_s and arrival_s <= end_s:
            if arrival_s == math.inf:
                return STALLED
            s.counters[NEXT_ROW] += 1
            arrive(s, rules, row, arrival_s)
        elif pending_s <= end_s:
            r = np.int64(s.pending[0])
            pop_timed(s.pending_s, s.pending, s.counters[PENDING])
            s.counters[PENDING] -= 1
            if s.requests[r].state == TRANSFER:
                receive(s, r, pending_s)
            else:
                arrive(s, rules, r, pending_s)
        else:
            end_leap(s, rules, e)
    return FINISHED if s.counters[REMAINING] == 0 else UNDER_WAY


@entry_kernel
def run(s, rules, max_events):
    """Process events of engines that step each for itself."""
    return process(s, rules, max_events)


@entry_kernel
def run_lockstep(s, rules, max_events):
    """Process events where some engines step together."""
    return process(s, rules, max_events)
