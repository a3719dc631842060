"""The decoding requests of an engine: who takes a token in every step, and when each stops.

A request stops when it has given its last token, or, where groups are of decode progress, when it
reaches the end of its group.
"""

from gpusched.compilation import kernel
from gpusched.policies.batching.discipline import GROUPED, STATIC
from gpusched.sim.heaps import pop, push, remove
from gpusched.sim.lists import join_group
from gpusched.sim.state import DECODE, NONE, PAUSED, REQUEST_BITS, REQUEST_MASK


@kernel
def kv_tokens(s, e, r):
    """KV tokens a running request holds at the current step."""
    request = s.requests[r]
    if request.state == DECODE:
        return request.prompt + request.output - 1 - (request.finish_step - s.engines[e].step)
    return request.computed


@kernel
def produced_tokens(s, e, r):
    """Output tokens a running request has given."""
    request = s.requests[r]
    if request.state == DECODE:
        return request.output - (request.finish_step - s.engines[e].step)
    return request.produced


@kernel
def stop_step(s, e, r):
    """Step after which a decoding request stops."""
    request = s.requests[r]
    if s.engines[e].nested:
        return request.finish_step - max(request.output - s.group_ends[e, request.group], 0)
    return request.finish_step


@kernel
def start_decoding(s, e, r, tokens):
    """Add a request that holds ``tokens`` KV tokens to the decoding ones."""
    engine = s.engines[e]
    request = s.requests[r]
    request.state = DECODE
    request.finish_step = engine.step + request.output - request.produced
    stop = stop_step(s, e, r)
    push(s.finishes, e, engine.finishes, stop << REQUEST_BITS | r)
    engine.finishes += 1
    engine.decoding += 1
    engine.context += tokens
    if engine.forming != STATIC:
        s.phases[e, (tokens - engine.step) & ((1 << engine.block_shift) - 1)] += 1
    window = s.scalars[engine.timing].window
    if window > 0:
        engine.window_context += min(tokens, window)
        if tokens < window:
            engine.growing += 1
            crossing = engine.step + window - tokens
            if crossing < stop:
                push(s.crossings, e, engine.crossings, crossing << REQUEST_BITS | r)
                engine.crossings += 1


@kernel
def add_fresh(s, e, r):
    """Note that a request's latest token did not come with the batch's latest step."""
    engine = s.engines[e]
    s.fresh[e, engine.fresh] = r
    engine.fresh += 1


@kernel
def pause(s, e, r):
    """Hold a request at the end of its group, KV cache and all, until the next group starts."""
    engine = s.engines[e]
    request = s.requests[r]
    request.state = PAUSED
    request.last_s = engine.end_s
    s.group_sizes[e, request.group] -= 1
    request.group += 1
    join_group(s, e, request.group, r, False)
    engine.paused += 1


@kernel
def join_decoding(s, e, r):
    """Let a request whose prompt is computed decode from the next step on, or hold it where its
    group ends."""
    engine = s.engines[e]
    request = s.requests[r]
    if engine.nested and request.produced == s.group_ends[e, request.group]:
        pause(s, e, r)
        return
    if engine.decoding == 0:
        engine.last_decode_s = engine.end_s
    elif engine.last_decode_s != engine.end_s:
        add_fresh(s, e, r)
    start_decoding(s, e, r, request.computed)


@kernel
def stop_decoding(s, e, r, tokens):
    """Take a request that holds ``tokens`` KV tokens out of the decoding ones (heaps aside)."""
    engine = s.engines[e]
    engine.decoding -= 1
    engine.context -= tokens
    if engine.forming != STATIC:
        s.phases[e, (tokens - engine.step) & ((1 << engine.block_shift) - 1)] -= 1
    window = s.scalars[engine.timing].window
    if window > 0:
        engine.window_context -= min(tokens, window)


@kernel
def next_stopped(s, e):
    """Take one request that stops at this step out of the decoding ones, its progress brought up to
    date; NONE if none does."""
    engine = s.engines[e]
    if engine.finishes == 0 or s.finishes[e, 0] >> REQUEST_BITS != engine.step:
        return NONE
    r = s.finishes[e, 0] & REQUEST_MASK
    pop(s.finishes, e, engine.finishes)
    engine.finishes -= 1
    tokens = kv_tokens(s, e, r)
    stop_decoding(s, e, r, tokens)
    window = s.scalars[engine.timing].window
    if window > 0 and tokens <= window:
        engine.growing -= 1
    s.requests[r].computed = tokens
    s.requests[r].produced = produced_tokens(s, e, r)
    return r


@kernel
def interrupt_decoding(s, e, r):
    """Take a decoding request out between its stops, its progress brought up to date."""
    engine = s.engines[e]
    request = s.requests[r]
    tokens = kv_tokens(s, e, r)
    stop = stop_step(s, e, r)
    stop_decoding(s, e, r, tokens)
    remove(s.finishes, e, engine.finishes, stop << REQUEST_BITS | r)
    engine.finishes -= 1
    window = s.scalars[engine.timing].window
    if window > 0 and tokens < window:
        engine.growing -= 1
        crossing = engine.step + window - tokens
        if crossing < stop:
            remove(s.crossings, e, engine.crossings, crossing << REQUEST_BITS | r)
            engine.crossings -= 1
    request.produced = request.output - (request.finish_step - engine.step)
    request.computed = tokens
    lagging = False
    for i in range(engine.fresh):
        if s.fresh[e, i] == r:
            engine.fresh -= 1
            s.fresh[e, i] = s.fresh[e, engine.fresh]
            lagging = True
            break
    if not lagging:
        request.last_s = engine.last_decode_s


@kernel
def resume(s, e, r):
    """Let a request that was paused decode again."""
    engine = s.engines[e]
    engine.paused -= 1
    s.group_sizes[e, s.requests[r].group] += 1
    start_decoding(s, e, r, s.requests[r].computed)
    add_fresh(s, e, r)


@kernel
def leave_sizes(s, e, r):
    """Count a request that runs no more out of its group."""
    if s.engines[e].gate == GROUPED:
        s.group_sizes[e, s.requests[r].group] -= 1
