"""Who may start on an engine: places in its queue, and the gates of its batching discipline."""

import math

import numpy as np

from gpusched.compilation import cold_kernel, kernel
from gpusched.policies.batching.discipline import CUSTOM, GROUPED, LOOK_AHEAD
from gpusched.policies.batching.groups import (
    TOLERANCE_S,
    allowance,
    group_of_length,
    group_of_progress,
)
from gpusched.policies.batching.lookahead import discard, first_fit, insert, shortfall
from gpusched.policies.batching.order import CUSTOM as CUSTOM_ORDER
from gpusched.policies.batching.order import FCFS, LEVELS, level, rank
from gpusched.policies.views import Request
from gpusched.sim.blocks import available
from gpusched.sim.decoding import produced_tokens, resume
from gpusched.sim.lists import join_queue, pop_group
from gpusched.sim.state import ADMITS, DECODE, FAULT, FAULTY, NONE, RANK


@cold_kernel
def ask(s, function, row, e, r, now_s):
    """Call a user's function of a request and an engine; remember the request it fails on."""
    engine = s.engines[e]
    request = s.requests[r]
    answer = function(
        request.arrival_s,
        request.prompt,
        request.produced,
        request.predicted,
        request.priority,
        now_s,
        engine.running,
        engine.max_seqs,
        available(engine) << engine.block_shift,
        engine.kv_blocks << engine.block_shift,
        s.parameters[row],
    )
    if answer != answer and s.counters[FAULT] == 0:
        s.counters[FAULT] = row + 1
        s.counters[FAULTY] = r
    return answer


@kernel
def enter_queue(s, e, r, now_s, front):
    """Give a request its place in the queue; ``front`` puts it before those of equal standing."""
    engine = s.engines[e]
    request = s.requests[r]
    if engine.gate == GROUPED:
        if engine.nested:
            request.group = group_of_progress(s.group_ends, e, engine.groups, request.produced)
        else:
            request.group = group_of_length(s.group_ends, e, engine.groups, request.predicted)
    elif engine.order == CUSTOM_ORDER:
        request.rank = ask(s, s.rank, RANK, e, r, now_s)
    elif engine.order != FCFS:
        seen = Request(
            request.arrival_s,
            request.prompt,
            request.produced,
            request.predicted,
            request.priority,
        )
        request.rank = rank(engine.order, engine.ageing_tokens_per_s, engine.quantum_tokens, seen)
    join_queue(s, e, r, front)


@kernel
def standing(s, e, r):
    """Rank of a running request."""
    engine = s.engines[e]
    if engine.order == LEVELS:
        return float(level(produced_tokens(s, e, r), engine.quantum_tokens))
    return s.requests[r].rank


@kernel
def predicted_left(s, r):
    """Output tokens a request that does not decode is predicted still to give, at least one."""
    request = s.requests[r]
    return max(request.predicted - request.produced, 1)


@kernel
def expect_resident(s, e, r, tokens, iterations):
    """Enter a request in the look-ahead: it holds ``tokens`` in the coming iteration and is
    predicted to run for ``iterations``."""
    engine = s.engines[e]
    if engine.gate == LOOK_AHEAD:
        request = s.requests[r]
        request.planned_end = engine.iterations + iterations - 1
        request.planned_base = tokens - engine.iterations
        insert(s.ends, s.bases, e, engine.residents, request.planned_end, request.planned_base)
        engine.residents += 1


@kernel
def forget_resident(s, e, r):
    """Take a request out of the look-ahead."""
    engine = s.engines[e]
    if engine.gate == LOOK_AHEAD:
        request = s.requests[r]
        discard(s.ends, s.bases, e, engine.residents, request.planned_end, request.planned_base)
        engine.residents -= 1


@kernel
def may_start(s, e, r, chunks):
    """Whether the gate lets a request start whose prompt takes ``chunks`` iterations.

    Its KV cache is taken to grow by a token an iteration up to the full prompt in the last of them.
    """
    engine = s.engines[e]
    if engine.gate == LOOK_AHEAD and engine.running > 0:
        request = s.requests[r]
        tokens = request.prompt + request.produced - (chunks - 1)
        last = engine.iterations + predicted_left(s, r) + chunks - 2
        slack = (1 << engine.block_shift) - 1
        delay = shortfall(
            s.ends,
            s.bases,
            e,
            engine.residents,
            engine.iterations,
            tokens,
            last,
            engine.limit_tokens,
            slack,
        )
        return delay == 0
    if engine.gate == CUSTOM:
        return ask(s, s.admits, ADMITS, e, r, engine.start_s) > 0.0
    return True


@cold_kernel
def steps_blocked(s, e, limit):
    """Decode steps, at most ``limit``, after which the gate must be asked again."""
    engine = s.engines[e]
    if engine.gate != LOOK_AHEAD or engine.skip > 0:
        return 1
    r = engine.waiting_head
    request = s.requests[r]
    chunks = engine.blocked_chunks
    tokens = request.prompt + request.produced - (chunks - 1)
    slack = (1 << engine.block_shift) - 1
    delay = first_fit(
        s.ends,
        s.bases,
        e,
        engine.residents,
        engine.iterations,
        tokens,
        predicted_left(s, r) + chunks - 1,
        engine.limit_tokens,
        slack,
        limit,
    )
    return min(delay, limit)


@cold_kernel
def steps_to_demotion(s, e, limit):
    """Decode steps, at most ``limit``, until some running request's level exceeds that of the first
    waiting one."""
    engine = s.engines[e]
    head = s.requests[engine.waiting_head].rank
    enough = engine.quantum_tokens * (2.0 ** (head + 1.0) - 1.0)
    r = engine.running_head
    while r != NONE:
        if s.requests[r].state == DECODE:
            left = math.ceil(enough - produced_tokens(s, e, r))
            limit = min(limit, max(left, 1))
        r = np.int64(s.requests[r].next)
    return limit


@kernel
def held_since_s(s, e, g):
    """Since when the first request of a group's list has been held."""
    request = s.requests[s.group_heads[e, g]]
    return request.last_s if s.engines[e].nested and g > 0 else request.arrival_s


@kernel
def group_allowance(s, e, g):
    """Requests of a group's list that may start now."""
    engine = s.engines[e]
    held = s.group_counts[e, g]
    if held == 0:
        return held
    room = s.group_caps[e, g] - s.group_sizes[e, g]
    since_s = held_since_s(s, e, g)
    return allowance(
        held, s.group_thresholds[e, g], room, engine.strict, engine.start_s, since_s, engine.hold_s
    )


@cold_kernel
def resume_groups(s, e):
    """Let paused requests go on whose group may start."""
    for g in range(1, s.engines[e].groups):
        for _ in range(group_allowance(s, e, g)):
            resume(s, e, pop_group(s, e, g))


@cold_kernel
def resume_all(s, e):
    """Let all paused requests go on: nothing else is left to do."""
    for g in range(1, s.engines[e].groups):
        while s.group_counts[e, g] > 0:
            resume(s, e, pop_group(s, e, g))


@cold_kernel
def next_release_s(s, e, full):
    """When the next held request may go on: at once where a group may take more every iteration,
    ``full`` telling that no new request can start, else when it has been held long enough."""
    engine = s.engines[e]
    next_s = math.inf
    for g in range(engine.groups):
        if s.group_counts[e, g] > 0:
            paused = engine.nested and g > 0
            if (paused or not full) and group_allowance(s, e, g) > 0:
                return engine.start_s
            release_s = held_since_s(s, e, g) + engine.hold_s
            if release_s > engine.start_s + TOLERANCE_S:
                next_s = min(next_s, release_s)
    return next_s
