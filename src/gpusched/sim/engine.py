"""One engine: what enters its next iteration, how far it leaps, what a finished leap changes.

A leap ends at the first event that can change the batch: a request finishes, one reaches the
sliding window, KV blocks run out, a prompt is computed, or an arrival may join.
"""

from gpusched.compilation import kernel
from gpusched.sim.blocks import (
    allocate,
    available,
    blocks_for,
    growth,
    hold_prefix,
    prefix_hits,
    register_prefix,
    release,
    steps_within_memory,
)
from gpusched.sim.gaps import add_gap_run, add_gaps
from gpusched.sim.heaps import pop, push, remove
from gpusched.sim.lists import (
    append_running,
    pop_waiting,
    prepend_waiting,
    unlink_running,
)
from gpusched.sim.state import (
    DECODE,
    DONE,
    NONE,
    PREFILL,
    STATIC,
    VLLM,
    WAITING,
)
from gpusched.sim.timing_kernels import chunk_work, leap_s, tokens_s, window_work

REQUEST_BITS = 32
"""Heap keys are ``step << REQUEST_BITS | request``: ties go to the lower request."""
REQUEST_MASK = (1 << REQUEST_BITS) - 1


@kernel
def kv_tokens(s, e, r):
    """KV tokens a running request holds at the current step."""
    request = s.requests[r]
    if request.state == DECODE:
        return request.prompt + request.output - 1 - (request.finish_step - s.engines[e].step)
    return request.computed


@kernel
def start_decoding(s, e, r, tokens):
    """Add a request that holds ``tokens`` KV tokens to the decoding ones."""
    engine = s.engines[e]
    request = s.requests[r]
    request.state = DECODE
    request.finish_step = engine.step + request.output - request.produced
    push(s.finishes, e, engine.finishes, request.finish_step << REQUEST_BITS | r)
    engine.finishes += 1
    engine.decoding += 1
    engine.context += tokens
    if engine.batching != STATIC:
        s.phases[e, (tokens - engine.step) & ((1 << engine.block_shift) - 1)] += 1
    window = s.scalars[engine.timing].window
    if window > 0:
        engine.window_context += min(tokens, window)
        if tokens < window:
            engine.growing += 1
            crossing = engine.step + window - tokens
            if crossing < request.finish_step:
                push(s.crossings, e, engine.crossings, crossing << REQUEST_BITS | r)
                engine.crossings += 1


@kernel
def stop_decoding(s, e, r, tokens):
    """Take a request that holds ``tokens`` KV tokens out of the decoding ones (heaps aside)."""
    engine = s.engines[e]
    engine.decoding -= 1
    engine.context -= tokens
    if engine.batching != STATIC:
        s.phases[e, (tokens - engine.step) & ((1 << engine.block_shift) - 1)] -= 1
    window = s.scalars[engine.timing].window
    if window > 0:
        engine.window_context -= min(tokens, window)


@kernel
def preempt_last(s, e):
    """Send the request admitted last back to the front of the queue, its KV cache dropped."""
    engine = s.engines[e]
    r = engine.running_tail
    request = s.requests[r]
    tokens = kv_tokens(s, e, r)
    if request.state == DECODE:
        stop_decoding(s, e, r, tokens)
        remove(s.finishes, e, engine.finishes, request.finish_step << REQUEST_BITS | r)
        engine.finishes -= 1
        window = s.scalars[engine.timing].window
        if window > 0 and tokens < window:
            engine.growing -= 1
            crossing = engine.step + window - tokens
            if crossing < request.finish_step:
                remove(s.crossings, e, engine.crossings, crossing << REQUEST_BITS | r)
                engine.crossings -= 1
        request.produced = request.output - (request.finish_step - engine.step)
        lagging = False
        for i in range(engine.fresh):
            if s.fresh[e, i] == r:
                engine.fresh -= 1
                s.fresh[e, i] = s.fresh[e, engine.fresh]
                lagging = True
                break
        if not lagging:
            request.last_s = engine.last_decode_s
    release(s, e, r, tokens)
    unlink_running(s, e, r)
    request.state = WAITING
    request.computed = 0
    request.preemptions += 1
    prepend_waiting(s, e, r)


@kernel
def admit(s, e, r, hits, tokens):
    """Move the head of the queue into the running list and take blocks for ``tokens`` tokens."""
    engine = s.engines[e]
    request = s.requests[r]
    pop_waiting(s, e)
    append_running(s, e, r)
    if hits > 0:
        hold_prefix(s, e, r, hits)
    allocate(s, e, blocks_for(engine, tokens) - hits * engine.prefix_blocks)
    if request.admitted_s != request.admitted_s:
        request.admitted_s = engine.start_s
        request.cached = request.computed


@kernel
def schedule(s, e):
    """Form the next iteration at ``end_s`` of the last one and leap; idle if there is none."""
    engine = s.engines[e]
    engine.start_s = engine.end_s
    if engine.batching == VLLM:
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
        preempt_last(s, e)
        preempted = True
        needed = growth(s, e, s.engines[e].step, 1)
    if needed > 0:
        allocate(s, e, needed)
    return preempted


@kernel
def schedule_chunked(s, e):
    """FCFS with chunked prefill: decodes first, then prompt tokens up to the budget (vLLM v1)."""
    engine = s.engines[e]
    preempted = make_room(s, e)

    budget = engine.max_batched_tokens - engine.decoding
    prompt_tokens = 0
    finishing = 0
    work = 0.0
    narrow_work = 0.0
    window = s.scalars[engine.timing].window
    engine.prefill_head = NONE
    partial = engine.running_tail
    if partial != NONE and s.requests[partial].state == PREFILL:
        request = s.requests[partial]
        target = request.prompt + request.produced
        past = request.computed
        new = min(target - past, budget)
        steps = chunk_steps(s, e, target - past, new, past)
        needed = blocks_for(engine, past + steps * new) - blocks_for(engine, past)
        if steps > 1 and needed + growth(s, e, engine.step, steps) > available(engine):
            steps = 1
            needed = blocks_for(engine, past + new) - blocks_for(engine, past)
        if needed > available(engine):
            preempt_last(s, e)
            preempted = True
        else:
            if needed > 0:
                allocate(s, e, needed)
            request.computed = past + steps * new
            register_prefix(s, e, partial, request.computed)
            if steps > 1:
                leap_chunks(s, e, partial, steps, new, past)
                return
            budget -= new
            prompt_tokens = new
            finishing = 1 if request.computed == target else 0
            work = chunk_work(new, past)
            narrow_work = window_work(new, past, window)
            engine.prefill_head = partial

    head = engine.waiting_head
    if not preempted:
        while head != NONE and engine.running < engine.max_seqs and budget > 0:
            request = s.requests[head]
            target = request.prompt + request.produced
            past = request.computed
            hits = 0
            idle = 0
            if past == 0:
                hits, idle = prefix_hits(s, e, head, target)
                past = min(hits * engine.prefix_tokens, target - 1)
            new = min(target - past, budget)
            needed = blocks_for(engine, past + new) - hits * engine.prefix_blocks
            if needed > available(engine) - idle * engine.prefix_blocks:
                break
            received = request.computed > 0
            request.computed = past
            admit(s, e, head, hits, past + new)
            budget -= new
            if received:
                start_decoding(s, e, head, past)
                s.fresh[e, engine.fresh] = head
                engine.fresh += 1
            else:
                request.state = PREFILL
                request.computed = past + new
                register_prefix(s, e, head, request.computed)
                if engine.prefill_head == NONE:
                    engine.prefill_head = head
                prompt_tokens += new
                finishing += 1 if request.computed == target else 0
                work += chunk_work(new, past)
                narrow_work += window_work(new, past, window)
            head = engine.waiting_head
    engine.active = engine.decoding
    engine.open = head == NONE and engine.running < engine.max_seqs
    if prompt_tokens > 0:
        leap_prefill(s, e, prompt_tokens, finishing, work, narrow_work)
    elif engine.decoding > 0:
        leap_decode(s, e, preempted)
    else:
        engine.steps = 0


@kernel
def schedule_whole(s, e):
    """Whole prompts before any decode (vLLM v0), or static batches."""
    engine = s.engines[e]
    static = engine.batching == STATIC
    prompt_tokens = 0
    finishing = 0
    work = 0.0
    narrow_work = 0.0
    window = s.scalars[engine.timing].window
    engine.prefill_head = NONE
    head = engine.waiting_head
    if not static or engine.running == 0:
        while head != NONE and engine.running < engine.max_seqs:
            request = s.requests[head]
            target = request.prompt + request.produced
            hits, idle = prefix_hits(s, e, head, target)
            past = min(hits * engine.prefix_tokens, target - 1)
            new = target - past
            if not static and prompt_tokens > 0 and prompt_tokens + new > engine.max_batched_tokens:
                break
            held = request.prompt + request.output - 1 if static else target
            needed = blocks_for(engine, held) - hits * engine.prefix_blocks
            if needed > available(engine) - idle * engine.prefix_blocks:
                break
            request.computed = past
            admit(s, e, head, hits, held)
            request.state = PREFILL
            request.computed = target
            register_prefix(s, e, head, target)
            if engine.prefill_head == NONE:
                engine.prefill_head = head
            prompt_tokens += new
            finishing += 1
            work += chunk_work(new, past)
            narrow_work += window_work(new, past, window)
            head = engine.waiting_head
    engine.open = head == NONE and engine.running < engine.max_seqs and not static
    engine.active = 0
    if prompt_tokens > 0:
        leap_prefill(s, e, prompt_tokens, finishing, work, narrow_work)
        return
    preempted = make_room(s, e)
    engine.active = engine.decoding
    if engine.decoding > 0:
        leap_decode(s, e, preempted)
    else:
        engine.steps = 0


@kernel
def chunk_steps(s, e, remaining, new, past):
    """Steps in which a prompt's chunks are all ``new`` tokens and nothing else changes."""
    engine = s.engines[e]
    if new == remaining:
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
def leap_prefill(s, e, prompt_tokens, finishing, work, narrow_work):
    """One iteration with prompt tokens in it."""
    engine = s.engines[e]
    engine.steps = 1
    engine.chunk_tokens = prompt_tokens
    tokens = prompt_tokens + engine.active
    engine.first_s = mixed_s(s, e, tokens, engine.active + finishing, work, narrow_work)
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
    """Decode steps until a request finishes or reaches the window, or blocks run out.

    A preempted request may come back one step after it went.
    """
    engine = s.engines[e]
    limit = (s.finishes[e, 0] >> REQUEST_BITS) - engine.step
    if engine.crossings > 0:
        limit = min(limit, (s.crossings[e, 0] >> REQUEST_BITS) - engine.step)
    engine.steps = 1 if preempted else steps_within_memory(s, e, limit)
    engine.chunk_tokens = 0
    engine.first_s = s.decode_s[engine.timing, engine.decoding] + decode_context_s(s, e)
    engine.slope_s = decode_slope_s(s, e)
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
        if steps > 1:
            taken = growth(s, e, engine.step, steps) - growth(s, e, engine.step, 1)
            if taken > 0:
                allocate(s, e, taken)
        engine.step += steps
        engine.last_decode_s = engine.end_s
        while engine.crossings > 0 and s.crossings[e, 0] >> REQUEST_BITS == engine.step:
            pop(s.crossings, e, engine.crossings)
            engine.crossings -= 1
            engine.growing -= 1


@kernel
def next_finished(s, e):
    """Take one request that gave its last token at this step out of the engine; NONE if none."""
    engine = s.engines[e]
    if engine.finishes == 0 or s.finishes[e, 0] >> REQUEST_BITS != engine.step:
        return NONE
    r = s.finishes[e, 0] & REQUEST_MASK
    pop(s.finishes, e, engine.finishes)
    engine.finishes -= 1
    request = s.requests[r]
    tokens = request.prompt + request.output - 1
    stop_decoding(s, e, r, tokens)
    window = s.scalars[engine.timing].window
    if window > 0 and tokens <= window:
        engine.growing -= 1
    leave(s, e, r, tokens)
    return r


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


@kernel
def join_decoding(s, e, r):
    """Let a request whose prompt is computed decode from the next step on."""
    engine = s.engines[e]
    if engine.decoding == 0:
        engine.last_decode_s = engine.end_s
    elif engine.last_decode_s != engine.end_s:
        s.fresh[e, engine.fresh] = r
        engine.fresh += 1
    start_decoding(s, e, r, s.requests[r].computed)
