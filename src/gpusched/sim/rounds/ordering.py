"""On-time batching on a prefill engine: which of the first waiting prompts starts next."""

import numpy as np

from gpusched.compilation import cold_kernel, kernel_where
from gpusched.policies.batching.on_time import next_on_time
from gpusched.sim.blocks import prefix_hits
from gpusched.sim.rounds.prediction import prefill_s
from gpusched.sim.state import NONE


def in_order(s, e):
    """Without on-time batching the first one goes."""
    return -1


@kernel_where("rounds", in_order)
def bring_forward(s, e):
    """Put the prompt to start next at the head of the queue; return the request that was before it,
    NONE if it stays where it is."""
    before = np.int64(NONE)
    if s.rounds.workers[e].window > 1 and s.engines[e].waiting > 1:
        before = choose_next(s, e)
    return before


@cold_kernel
def choose_next(s, e):
    """Look at the first prompts of the queue as if each were computed alone, one after the other."""
    rounds = s.rounds
    engine = s.engines[e]
    worker = rounds.workers[e]
    r = np.int64(engine.waiting_head)
    n = 0
    while r != NONE and n < worker.window:
        request = s.requests[r]
        target = request.prompt + request.produced
        past = np.int64(request.computed)
        if past == 0:
            hits, _ = prefix_hits(s, e, r, target)
            past = min(hits * engine.prefix_tokens, target - 1)
        rounds.candidates[n] = r
        rounds.durations_s[n] = prefill_s(s, e, target - past, past)
        rounds.deadlines_s[n] = request.arrival_s + worker.ttft_s
        rounds.passed[n] = request.holds
        n += 1
        r = np.int64(request.next)
    first = next_on_time(
        rounds.durations_s,
        rounds.deadlines_s,
        rounds.passed,
        n,
        worker.window,
        engine.start_s,
        rounds.elapsed_s,
        rounds.on_time,
        rounds.completions_s,
    )
    if first == 0:
        return np.int64(NONE)
    before = rounds.candidates[first - 1]
    chosen = rounds.candidates[first]
    s.requests[before].next = s.requests[chosen].next
    if s.requests[before].next == NONE:
        engine.waiting_tail = before
    s.requests[chosen].next = engine.waiting_head
    engine.waiting_head = chosen
    return before


def leave_order(s, e, before, taken):
    """Without on-time batching nothing was moved."""


@kernel_where("rounds", leave_order)
def put_back(s, e, before, taken):
    """Count who was overtaken if the prompt brought forward has started, else put it back."""
    if before != NONE:
        engine = s.engines[e]
        if taken > 0:
            r = np.int64(engine.waiting_head)
            while r != NONE:
                s.requests[r].holds += 1
                if r == before:
                    break
                r = np.int64(s.requests[r].next)
        else:
            chosen = np.int64(engine.waiting_head)
            engine.waiting_head = s.requests[chosen].next
            s.requests[chosen].next = s.requests[before].next
            s.requests[before].next = chosen
            if engine.waiting_tail == before:
                engine.waiting_tail = chosen
