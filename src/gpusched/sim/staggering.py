"""Staggered release to the fleet's engines (arXiv 2512.16134).

Requests are held and released in batches, each to one replica that is between two passes over
prompts, packed onto its data-parallel units. A replica that only decodes is between passes all the
time. See ``gpusched.policies.admission.staggered``.
"""

import math

from gpusched.compilation import cold_kernel, kernel
from gpusched.policies.admission.staggered import (
    mean_pass_s,
    record_pass,
    release_interval_s,
    release_s,
)
from gpusched.policies.batching.discipline import CHUNKED
from gpusched.policies.routing.packing import NO_CAP, pack, room_tokens, sort_window
from gpusched.sim.blocks import prefix_hits
from gpusched.sim.entry import reject
from gpusched.sim.held import append_held, send
from gpusched.sim.state import NONE, PREFILL


@kernel
def prefilling(s, first):
    """Whether a replica is in a pass over prompts."""
    for u in range(first, first + s.engines[first].units):
        if s.engines[u].steps > 0 and s.engines[u].chunk_tokens > 0:
            return True
    return False


@kernel
def has_prompts(s, first):
    """Whether a replica has prompts that are not computed."""
    for u in range(first, first + s.engines[first].units):
        engine = s.engines[u]
        if engine.waiting > 0 or engine.running > engine.decoding:
            return True
    return False


@kernel
def room_of(s, u):
    """Tokens that a unit can take into its next pass: its budget less its decodes and the prompts it
    has, what it might find of them in its cache not counted."""
    engine = s.engines[u]
    room = engine.max_batched_tokens
    if engine.forming == CHUNKED:
        room -= engine.decoding
    partial = engine.running_tail
    if partial != NONE and s.requests[partial].state == PREFILL:
        request = s.requests[partial]
        room -= request.prompt + request.produced - request.computed
    r = engine.waiting_head
    while r != NONE and room > 0:
        room -= s.requests[r].prompt + s.requests[r].produced
        r = s.requests[r].next
    return room


@cold_kernel
def ready_replica(s, rules, now_s):
    """The first unit of the replica that has been between passes longest and has room, or NONE."""
    best = NONE
    best_s = math.inf
    first = 0
    while first < rules.entry_engines:
        units = s.engines[first].units
        since_s = s.window.reported_s[first]
        if s.ready_s[first] <= now_s and since_s < best_s and not prefilling(s, first):
            for u in range(first, first + units):
                s.window.room[u] = room_of(s, u)
            if room_tokens(s.window.room, first, first + units) > 0:
                best = first
                best_s = since_s
        first += units
    return best


@cold_kernel
def started_replicas(s, rules, now_s):
    """Replicas that have started up, and when the next one will have."""
    count = 0
    next_s = math.inf
    first = 0
    while first < rules.entry_engines:
        if s.ready_s[first] <= now_s:
            count += 1
        else:
            next_s = min(next_s, s.ready_s[first])
        first += s.engines[first].units
    return count, next_s


@cold_kernel
def hold_for_release(s, rules, r, now_s):
    """Hold a request until a batch is released to an engine."""
    front = s.front[0]
    if front.held == 0:
        e = ready_replica(s, rules, now_s)
        front.unloaded = e != NONE and not has_prompts(s, e)
    append_held(s, r)
    release_due(s, rules, now_s)


@cold_kernel
def end_pass(s, first, duration_s, now_s):
    """Note the time of a pass over prompts that has ended."""
    front = s.front[0]
    record_pass(s.window.passes_s, 0, front.passes, duration_s)
    front.passes += 1
    s.window.reported_s[first] = now_s


@cold_kernel
def release_due(s, rules, now_s):
    """Release held requests as far as they are due, and say when to look again."""
    front = s.front[0]
    active, next_start_s = started_replicas(s, rules, now_s)
    front.tick_s = next_start_s if front.held > 0 else math.inf
    while front.held > 0:
        e = ready_replica(s, rules, now_s)
        if e == NONE:
            return
        mean_s = mean_pass_s(s.window.passes_s, 0, front.passes, front.prior_s)
        interval_s = release_interval_s(mean_s, front.network_s, active, front.lowest_s, mean_s)
        due_s = release_s(
            front.last_release_s,
            interval_s,
            front.lowest_s,
            front.held_tokens,
            room_tokens(s.window.room, e, e + s.engines[e].units),
            front.unloaded,
            has_prompts(s, e),
        )
        if due_s > now_s:
            front.tick_s = min(front.tick_s, due_s)
            return
        release_to(s, rules, e, now_s)
    front.tick_s = math.inf


@cold_kernel
def release_to(s, rules, e, now_s):
    """Pack the held requests onto the units of a replica with room and send those that find a
    place."""
    front = s.front[0]
    window = s.window
    high = e + s.engines[e].units
    count = 0
    r = front.head
    while r != NONE and count < len(window.requests):
        request = s.requests[r]
        window.requests[count] = r
        window.order[count] = count
        window.lengths[count] = request.prompt
        window.ages[count] = request.holds
        for u in range(e, high):
            hits, _ = prefix_hits(s, u, r, request.prompt)
            window.hits[count, u] = hits * s.engines[u].prefix_tokens
        r = request.next
        count += 1
    beyond = r
    sort_window(window.order, count, window.lengths, window.ages)
    pack(
        window.order,
        count,
        window.lengths,
        window.hits,
        window.room,
        window.assigned,
        window.ages,
        e,
        high,
        s.engines[e].max_batched_tokens,
        NO_CAP,
    )
    front.head = NONE
    front.tail = NONE if beyond == NONE else front.tail
    last = NONE
    for i in range(count):
        r = window.requests[i]
        request = s.requests[r]
        request.holds = window.ages[i]
        shed = front.age_limit > 0 and request.holds > front.age_limit
        if window.assigned[i] >= 0 or shed:
            front.held -= 1
            front.held_tokens -= request.prompt
        elif last == NONE:
            front.head = r
            last = r
        else:
            s.requests[last].next = r
            last = r
    if last == NONE:
        front.head = beyond
    else:
        s.requests[last].next = beyond
    if beyond == NONE:
        front.tail = last
    front.last_release_s = now_s
    front.unloaded = False
    for i in range(count):
        if window.assigned[i] < 0 and front.age_limit > 0 and window.ages[i] > front.age_limit:
            reject(s, rules, window.requests[i], now_s)
    for place in range(count):
        i = window.order[place]
        if window.assigned[i] >= 0:
            send(s, rules, window.assigned[i], window.requests[i], now_s)
