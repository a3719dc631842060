"""Gates in front of the fleet's engines, and the decode router beside them (arXiv 2602.02987).

A replica that takes arrivals has one prefill slot. While it is idle, the gate says which class's
first held request takes it. See ``gpusched.policies.admission.gate``.
"""

import math

import numpy as np

from gpusched.compilation import cold_kernel
from gpusched.policies.admission.gate import (
    CREDIT,
    FIRST_COME,
    accrue,
    choose_class,
    credit_wait_s,
)
from gpusched.policies.draws import random_u64
from gpusched.policies.routing.decode_router import DECODE_FIRST, SOLO, choose_free, choose_pool
from gpusched.sim.blocks import blocks_for
from gpusched.sim.held import append_to_class, pop_of_class, send
from gpusched.sim.state import NONE

_DRAW = 1.0 / 2.0**53


@cold_kernel
def hold_at_gate(s, rules, r, now_s):
    """Hold a request until a prefill slot is given to its class."""
    append_to_class(s, r)
    open_gate(s, rules, now_s)


@cold_kernel
def idle_slot(s, rules, now_s):
    """The replica with the fewest outstanding tokens among those with an idle prefill slot and a
    seat, or NONE."""
    best = NONE
    for e in range(rules.entry_engines):
        engine = s.engines[e]
        idle = engine.waiting == 0 and engine.running == engine.decoding
        able = idle and engine.running < engine.max_seqs and s.ready_s[e] <= now_s
        if able and (best == NONE or s.load_tokens[e] < s.load_tokens[best]):
            best = e
    return best


@cold_kernel
def chosen_class(s, gate):
    """The class that a gate lets in next, or NONE."""
    c = s.classes
    return choose_class(
        gate,
        c.waiting,
        c.arrival_s,
        s.class_prefills,
        c.targets,
        c.queue_targets,
        c.metered,
        c.credits,
        c.priorities,
        len(c.waiting),
    )


@cold_kernel
def open_gate(s, rules, now_s):
    """Let held requests in while there are slots for them, and say when to look again.

    A fleet without any work lets the first one in, whatever the plan says.
    """
    front = s.front[0]
    c = s.classes
    front.tick_s = math.inf
    accrue(c.credits, c.rates_rps, front.burst, now_s - front.accrued_s, len(c.waiting))
    front.accrued_s = now_s
    while True:
        e = idle_slot(s, rules, now_s)
        if e == NONE:
            for u in range(rules.entry_engines):
                if s.ready_s[u] > now_s:
                    front.tick_s = min(front.tick_s, s.ready_s[u])
            return
        i = chosen_class(s, front.gate)
        if i == NONE:
            outstanding = 0
            for u in range(len(s.engines)):
                outstanding += s.load_requests[u]
            if outstanding == 0:
                i = chosen_class(s, FIRST_COME)
        elif front.gate == CREDIT and c.metered[i]:
            c.credits[i] -= 1.0
        if i == NONE:
            if front.gate == CREDIT:
                wait_s = credit_wait_s(c.waiting, c.metered, c.credits, c.rates_rps, len(c.waiting))
                front.tick_s = now_s + wait_s
            return
        r = pop_of_class(s, i)
        if send(s, rules, e, r, now_s):
            s.requests[r].gated = True
            s.class_prefills[i] += 1


@cold_kernel
def end_prefill(s, r):
    """Count a request out of its class's prefills."""
    request = s.requests[r]
    if request.gated:
        request.gated = False
        s.class_prefills[request.priority] -= 1


@cold_kernel
def free_solo(s, rules, r):
    """A decode engine with a seat for a request whose prompt is computed, drawn among all; NONE if
    it stays where it is."""
    request = s.requests[r]
    size = 0
    for d in range(rules.entry_engines, len(s.engines)):
        engine = s.engines[d]
        fits = blocks_for(engine, request.prompt + request.output - 1) <= engine.kv_blocks
        if s.load_requests[d] < engine.max_seqs and fits:
            s.scratch[size] = d
            size += 1
    if choose_pool(DECODE_FIRST, size, 1) != SOLO:
        return NONE
    uniform = np.float64(random_u64(rules.seed, 2 * r + 1) >> np.uint64(11)) * _DRAW
    return np.int64(choose_free(s.scratch, size, uniform))
