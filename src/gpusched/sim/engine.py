"""One engine: what enters its next iteration, how far it leaps, what a finished leap changes.

A leap ends at the first event that can change the batch: a request finishes, one reaches the
sliding window, KV blocks run out, a prompt is computed, or a request may join.
"""

import math

import numpy as np

from gpusched.compilation import cold_kernel, kernel
from gpusched.policies.batching.discipline import CHUNKED, GROUPED, STATIC
from gpusched.policies.batching.groups import TOLERANCE_S
from gpusched.policies.batching.order import FCFS
from gpusched.sim.blocks import (
    allocate,
    available,
    blocks_for,
    growth,
    hold_prefix,
    prefix_hits,
    register_prefix,
    release,
    steps_within,
)
from gpusched.sim.decoding import add_fresh, leave_sizes, start_decoding
from gpusched.sim.eviction import displace, evict
from gpusched.sim.gaps import add_gap_run, add_gaps
from gpusched.sim.heaps import pop, set_timer
from gpusched.sim.lists import append_running, join_queue, pop_group, pop_waiting, unlink_running
from gpusched.sim.lockstep import shorten_group
from gpusched.sim.rounds.history import at_hand, hold_history
from gpusched.sim.rounds.ordering import bring_forward, put_back
from gpusched.sim.starting import (
    expect_resident,
    forget_resident,
    group_allowance,
    may_start,
    next_release_s,
    predicted_left,
    resume_all,
    resume_groups,
    steps_blocked,
    steps_to_demotion,
)
from gpusched.sim.state import DONE, NONE, PREFILL, REQUEST_BITS
from gpusched.sim.timing_kernels import (
    chunk_work,
    leap_s,
    steps_until,
    tokens_s,
    window_work,
)


@kernel
def schedule(s, e):
    """Form the next iteration at ``end_s`` of the last one and leap; idle if there is none.

    An idle engine that holds requests has their release as its ``end_s``.
    """
    engine = s.engines[e]
    engine.start_s = engine.end_s
    engine.grown = 1
    engine.prefill_head = NONE
    engine.chunk_tokens = 0
    engine.finishing = 0
    engine.work = 0.0
    engine.window_work = 0.0
    engine.blocked = False
    engine.hold_until_s = math.inf
    if engine.forming == CHUNKED:
        schedule_chunked(s, e)
    else:
        schedule_whole(s, e)
    engine.used_blocks = engine.kv_blocks - available(engine)


@kernel
def make_room(s, e):
    """Give every decode the block its next token needs; return whether any had to be preempted."""
    preempted = False
    needed = growth(s, e, s.engines[e].step, 1)
    while needed > available(s.engines[e]):
        evict(s, e, False)
        preempted = True
        needed = growth(s, e, s.engines[e].step, 1)
    if needed > 0:
        allocate(s, e, needed)
    return preempted


@kernel
def schedule_chunked(s, e):
    """Chunked prefill: decodes first, then prompt tokens up to the budget (vLLM v1)."""
    engine = s.engines[e]
    if engine.paused > 0:
        resume_groups(s, e)
    preempted = make_room(s, e)
    partial = np.int64(engine.running_tail)
    if partial != NONE and s.requests[partial].state == PREFILL:
        request = s.requests[partial]
        target = request.prompt + request.produced
        past = request.computed
        budget = engine.max_batched_tokens - engine.decoding
        new = min(target - past, budget)
        steps = chunk_steps(s, e, target - past, new, past)
        needed = chunk_blocks(engine, past, steps * new)
        if steps > 1 and needed + growth(s, e, engine.step, steps) > available(engine):
            steps = 1
            needed = chunk_blocks(engine, past, new)
        while needed > available(engine) and request.state == PREFILL:
            evict(s, e, True)
            preempted = True
        if request.state == PREFILL:
            if needed > 0:
                allocate(s, e, needed)
            if steps > 1:
                request.computed = past + steps * new
                register_prefix(s, e, partial, request.computed)
                leap_chunks(s, e, partial, steps, new, past)
                return
            add_chunk(s, e, partial, new, past)
    if not preempted and engine.waiting > 0:
        if engine.gate == GROUPED:
            engine.blocked = start_groups(s, e)
        else:
            start_waiting(s, e)
    if engine.paused > 0 and engine.decoding == 0 and engine.chunk_tokens == 0:
        resume_all(s, e)
        preempted |= make_room(s, e)
    engine.active = engine.decoding
    engine.open = (
        (engine.gate == GROUPED or engine.order != FCFS or engine.waiting == 0 or engine.skip > 0)
        and (engine.running < engine.max_seqs or engine.preemptive)
    )  # fmt: skip
    if engine.gate == GROUPED:
        engine.hold_until_s = next_release_s(s, e, engine.blocked or preempted)
        engine.blocked = False
    if engine.chunk_tokens > 0:
        leap_prefill(s, e)
    elif engine.decoding > 0:
        leap_decode(s, e, preempted)
    else:
        rest(engine, preempted)


@kernel
def rest(engine, preempted):
    """Idle until the next event; look at the queue again at once if all had to be preempted."""
    engine.steps = 0
    engine.end_s = engine.start_s if preempted else engine.hold_until_s


@kernel
def chunk_blocks(engine, past, new):
    """Blocks that ``new`` prompt tokens after ``past`` ones need."""
    if engine.reserve_prompt:
        return 0
    return blocks_for(engine, past + new) - blocks_for(engine, past)


@kernel
def add_chunk(s, e, r, new, past):
    """Put ``new`` prompt tokens of a running request into the iteration."""
    engine = s.engines[e]
    request = s.requests[r]
    request.state = PREFILL
    request.computed = past + new
    register_prefix(s, e, r, request.computed)
    if engine.prefill_head == NONE:
        engine.prefill_head = r
    engine.chunk_tokens += new
    engine.finishing += 1 if request.computed == request.prompt + request.produced else 0
    engine.work += chunk_work(new, past)
    engine.window_work += window_work(new, past, s.scalars[engine.timing].window)


@kernel
def start_waiting(s, e):
    """Admit waiting requests in order while seats, budget, blocks and the gate allow."""
    engine = s.engines[e]
    budget = engine.max_batched_tokens - engine.decoding - engine.chunk_tokens
    passed = NONE
    skipped = 0
    refused = False
    while engine.waiting_head != NONE and budget > 0:
        taken = 0
        engine.blocked = False
        if engine.running < engine.max_seqs:
            before = bring_forward(s, e)
            taken = start(s, e, np.int64(engine.waiting_head), budget)
            put_back(s, e, before, taken)
        refused |= engine.blocked
        if taken > 0:
            budget -= taken
        elif engine.preemptive and displace(s, e):
            budget += 1
        elif engine.blocked and skipped < engine.skip:
            r = np.int64(engine.waiting_head)
            pop_waiting(s, e)
            s.requests[r].next = passed
            passed = r
            skipped += 1
        else:
            break
    while passed != NONE:
        following = np.int64(s.requests[passed].next)
        join_queue(s, e, passed, True)
        passed = following
    engine.blocked = refused


@cold_kernel
def start_groups(s, e):
    """Admit held requests, each group's up to what its threshold allows; return whether seats,
    budget or blocks kept one waiting."""
    engine = s.engines[e]
    budget = engine.max_batched_tokens - engine.decoding - engine.chunk_tokens
    for g in range(1 if engine.nested else engine.groups):
        for _ in range(group_allowance(s, e, g)):
            if engine.running >= engine.max_seqs or budget <= 0:
                return True
            taken = start(s, e, np.int64(s.group_heads[e, g]), budget)
            if taken == 0:
                return True
            budget -= taken
    return False


@kernel
def start(s, e, r, budget):
    """Admit the first request of a queue; return the tokens it takes of the budget, 0 if it cannot
    start."""
    engine = s.engines[e]
    request = s.requests[r]
    target = request.prompt + request.produced
    past, hits, received = at_hand(s, e, r)
    idle = hits
    if past == 0:
        hits, idle = prefix_hits(s, e, r, target)
        past = min(max(hits * engine.prefix_tokens, np.int64(request.stored)), target - 1)
    new = min(target - past, budget)
    held = target if engine.reserve_prompt else past + new
    needed = blocks_for(engine, held) - hits * engine.prefix_blocks
    spare = engine.spare_blocks if engine.running > 0 else 0
    if needed > available(engine) - idle * engine.prefix_blocks - spare:
        return 0
    chunks = (target - past + budget - 1) // budget
    if not may_start(s, e, r, chunks):
        engine.blocked = True
        engine.blocked_chunks = chunks
        return 0
    expect_resident(s, e, r, target - (chunks - 1), predicted_left(s, r) + chunks - 1)
    request.computed = past
    admit(s, e, r, hits, held)
    if received:
        start_decoding(s, e, r, past)
        add_fresh(s, e, r)
    else:
        add_chunk(s, e, r, new, past)
    return new


@kernel
def admit(s, e, r, hits, tokens):
    """Move a request from the queue to the running list and take blocks for ``tokens`` tokens."""
    engine = s.engines[e]
    request = s.requests[r]
    if engine.gate == GROUPED:
        pop_group(s, e, 0 if engine.nested else np.int64(request.group))
        s.group_sizes[e, request.group] += 1
        engine.waiting -= 1
    else:
        pop_waiting(s, e)
    append_running(s, e, r)
    if hits > 0 and not hold_history(s, e, r):
        hold_prefix(s, e, r, hits)
    allocate(s, e, blocks_for(engine, tokens) - hits * engine.prefix_blocks)
    if request.admitted_s != request.admitted_s:
        request.admitted_s = engine.start_s
        request.cached = request.computed


@kernel
def schedule_whole(s, e):
    """Whole prompts before any decode (vLLM v0), or static batches."""
    engine = s.engines[e]
    static = engine.forming == STATIC
    head = np.int64(engine.waiting_head)
    if not static or engine.running == 0:
        while head != NONE and engine.running < engine.max_seqs:
            request = s.requests[head]
            target = request.prompt + request.produced
            past, hits, _ = at_hand(s, e, head)
            idle = hits
            if past == 0:
                hits, idle = prefix_hits(s, e, head, target)
                past = min(max(hits * engine.prefix_tokens, np.int64(request.stored)), target - 1)
            new = target - past
            full = engine.chunk_tokens + new > engine.max_batched_tokens
            if not static and engine.chunk_tokens > 0 and full:
                break
            held = request.prompt + request.output - 1 if static else target
            needed = blocks_for(engine, held) - hits * engine.prefix_blocks
            spare = engine.spare_blocks if engine.running > 0 else 0
            if needed > available(engine) - idle * engine.prefix_blocks - spare:
                break
            request.computed = past
            admit(s, e, head, hits, held)
            add_chunk(s, e, head, new, past)
            head = np.int64(engine.waiting_head)
    engine.open = head == NONE and engine.running < engine.max_seqs and not static
    engine.active = 0
    if engine.chunk_tokens > 0:
        leap_prefill(s, e)
        return
    preempted = make_room(s, e)
    engine.active = engine.decoding
    if engine.decoding > 0:
        leap_decode(s, e, preempted)
    else:
        rest(engine, preempted)


@kernel
def chunk_steps(s, e, remaining, new, past):
    """Steps in which a prompt's chunks are all ``new`` tokens and nothing else changes."""
    engine = s.engines[e]
    if new == remaining or engine.gate == GROUPED or engine.stepwise:
        return 1
    steps = (remaining - 1) // new
    if engine.decoding > 0:
        steps = min(steps, (s.finishes[e, 0] >> REQUEST_BITS) - engine.step)
    if engine.crossings > 0:
        steps = min(steps, (s.crossings[e, 0] >> REQUEST_BITS) - engine.step)
    window = s.scalars[engine.timing].window
    if window > 0 and past < window:
        steps = min(steps, max((window - past) // new, 1))
    return steps


@kernel
def decode_context_s(s, e):
    """Attention time of one decode step at the current contexts."""
    engine = s.engines[e]
    scalars = s.scalars[engine.timing]
    return scalars.context_s * (engine.context + engine.decoding) + scalars.window_context_s * (
        engine.window_context + engine.growing
    )


@kernel
def decode_slope_s(s, e):
    """How much longer each decode step takes than the one before."""
    engine = s.engines[e]
    scalars = s.scalars[engine.timing]
    return scalars.context_s * engine.decoding + scalars.window_context_s * engine.growing


@kernel
def mixed_s(s, e, tokens, sampled, work, narrow_work):
    """Duration of an iteration with prompt tokens and the active decodes."""
    engine = s.engines[e]
    scalars = s.scalars[engine.timing]
    duration = tokens_s(s, engine.timing, tokens) + s.logits_s[engine.timing, sampled]
    if engine.active > 0:
        duration += scalars.decode_fixed_s + decode_context_s(s, e)
    return (
        duration
        + scalars.prefill_fixed_s
        + scalars.work_s * work
        + scalars.window_work_s * narrow_work
    )


@kernel
def leap_prefill(s, e):
    """One iteration with prompt tokens in it."""
    engine = s.engines[e]
    engine.steps = 1
    tokens = engine.chunk_tokens + engine.active
    sampled = engine.active + engine.finishing
    engine.first_s = mixed_s(s, e, tokens, sampled, engine.work, engine.window_work)
    engine.slope_s = 0.0
    engine.end_s = engine.start_s + engine.first_s


@kernel
def leap_chunks(s, e, r, steps, new, past):
    """Full chunks of one prompt beside the decodes; nothing can join, the budget is spent."""
    engine = s.engines[e]
    scalars = s.scalars[engine.timing]
    engine.prefill_head = r
    engine.active = engine.decoding
    engine.open = False
    engine.steps = steps
    engine.chunk_tokens = new
    narrow_work = window_work(new, past, scalars.window)
    engine.first_s = mixed_s(
        s, e, new + engine.active, engine.active, chunk_work(new, past), narrow_work
    )
    step_work = float(new) * new
    engine.slope_s = scalars.work_s * step_work + decode_slope_s(s, e)
    if past < scalars.window:
        engine.slope_s += scalars.window_work_s * step_work
    engine.end_s = engine.start_s + leap_s(engine.first_s, engine.slope_s, steps)


@kernel
def leap_decode(s, e, preempted):
    """Decode steps until a request stops or reaches the window, blocks run out, or one may start.

    A preempted request may come back one step after it went. A waiting one whose cached prefix is
    evicted takes a shorter first chunk, which may fit.
    """
    engine = s.engines[e]
    limit = (s.finishes[e, 0] >> REQUEST_BITS) - engine.step
    if engine.crossings > 0:
        limit = min(limit, (s.crossings[e, 0] >> REQUEST_BITS) - engine.step)
    engine.steps = 1 if preempted else steps_within(s, e, available(engine), limit)
    if engine.waiting > 0 and engine.evictable > 0:
        engine.steps = steps_within(s, e, engine.free, engine.steps)
    if engine.steps > 1:
        if engine.blocked:
            engine.steps = steps_blocked(s, e, engine.steps)
        if engine.preemptive and engine.waiting > 0:
            engine.steps = steps_to_demotion(s, e, engine.steps)
    engine.first_s = s.decode_s[engine.timing, engine.decoding] + decode_context_s(s, e)
    engine.slope_s = decode_slope_s(s, e)
    if engine.hold_until_s < math.inf:
        wait_s = engine.hold_until_s - engine.start_s - TOLERANCE_S
        engine.steps = steps_until(engine.first_s, engine.slope_s, engine.steps, wait_s)
    engine.end_s = engine.start_s + leap_s(engine.first_s, engine.slope_s, engine.steps)


@kernel
def count_gaps(s, e):
    """Count the gaps between tokens of the leap that ends."""
    engine = s.engines[e]
    first_end_s = engine.start_s + engine.first_s
    steady = engine.active - engine.fresh
    if steady > 0:
        add_gaps(s.gap_counts, s.gap_totals, first_end_s - engine.last_decode_s, steady)
    for i in range(engine.fresh):
        gap_s = first_end_s - s.requests[s.fresh[e, i]].last_s
        add_gaps(s.gap_counts, s.gap_totals, gap_s, 1)
    engine.fresh = 0
    if engine.steps > 1:
        add_gap_run(
            s.gap_counts,
            s.gap_totals,
            engine.first_s + engine.slope_s,
            engine.slope_s,
            engine.steps - 1,
            engine.active,
        )


@kernel
def grow_to(s, e, steps):
    """Give the decodes the blocks they need in the first ``steps`` steps of the leap."""
    engine = s.engines[e]
    if steps > engine.grown:
        taken = growth(s, e, engine.step, steps) - growth(s, e, engine.step, engine.grown)
        engine.grown = steps
        if taken > 0:
            allocate(s, e, taken)


@kernel
def cut_leap(s, e, now_s):
    """End the leap with the step under way."""
    engine = s.engines[e]
    if s.coupled is not None and engine.units > 1:
        shorten_group(s, e, now_s)
        return
    wait_s = now_s - engine.start_s
    engine.steps = steps_until(engine.first_s, engine.slope_s, engine.steps, wait_s)
    engine.end_s = engine.start_s + leap_s(engine.first_s, engine.slope_s, engine.steps)
    engine.open = False
    set_timer(s.timers_s, s.winners, e, engine.end_s)


@kernel
def finish_leap(s, e):
    """Bring the engine's counters to the end of its leap."""
    engine = s.engines[e]
    steps = engine.steps
    duration = engine.end_s - engine.start_s
    engine.iterations += steps
    engine.busy_s += duration
    if engine.chunk_tokens > 0:
        engine.prefill_busy_s += duration
        engine.prompt_tokens += engine.chunk_tokens * steps
    if engine.active > 0:
        count_gaps(s, e)
        engine.output_tokens += engine.active * steps
        engine.context += engine.active * steps
        engine.window_context += engine.growing * steps
        grow_to(s, e, steps)
        engine.step += steps
        engine.last_decode_s = engine.end_s
        while engine.crossings > 0 and s.crossings[e, 0] >> REQUEST_BITS == engine.step:
            pop(s.crossings, e, engine.crossings)
            engine.crossings -= 1
            engine.growing -= 1


@kernel
def leave(s, e, r, tokens):
    """Free a finished request's blocks, its generated prefix blocks entered in the cache."""
    request = s.requests[r]
    request.last_s = s.engines[e].end_s
    request.produced = request.output
    request.state = DONE
    register_prefix(s, e, r, tokens)
    release(s, e, r, tokens)
    unlink_running(s, e, r)
    leave_sizes(s, e, r)
    forget_resident(s, e, r)


@kernel
def give_token(s, e, r):
    """Count the token that a request's prefill ends with."""
    engine = s.engines[e]
    request = s.requests[r]
    if request.produced == 0:
        request.first_s = engine.end_s
    else:
        add_gaps(s.gap_counts, s.gap_totals, engine.end_s - request.last_s, 1)
    request.last_s = engine.end_s
    request.produced += 1
    engine.output_tokens += 1
