"""The event loop where rounds of sessions are placed one by one, or prompts go by their deadline.

The same events as in ``kernel``, and one more: the end of a history's way to a prefill engine.
"""

import math

from gpusched.compilation import entry_kernel, kernel
from gpusched.sim.engine import schedule
from gpusched.sim.entry import next_row, pop_pending, return_later
from gpusched.sim.heaps import set_timer
from gpusched.sim.kernel import (
    DUE,
    FAULTED,
    FINISHED,
    STALLED,
    UNDER_WAY,
    receive,
    settle,
)
from gpusched.sim.rounds.observing import observe_tokens
from gpusched.sim.rounds.placing import arrive_round, take_history
from gpusched.sim.state import (
    DECODE_ONLY,
    FAULT,
    NEXT_ROW,
    PENDING,
    REMAINING,
    SHIPPING,
    TRANSFER,
)


@kernel
def take_in(s, rules, r, now_s):
    """Let a request arrive."""
    if s.rounds.settings[0].keeps:
        arrive_round(s, rules, r, now_s)
    else:
        return_later(s, rules, r, now_s)


@kernel
def end_leap(s, rules, e):
    """Take an engine over the end of its leap and into the next one."""
    engine = s.engines[e]
    if engine.role == DECODE_ONLY and engine.steps > 0:
        observe_tokens(s, e, engine.steps)
        s.rounds.workers[e].observed = 0
    settle(s, rules, e)
    schedule(s, e)
    set_timer(s.timers_s, s.winners, e, s.engines[e].end_s)


@entry_kernel
def run_rounds(s, rules, max_events, until_s):
    """Process up to ``max_events`` events, none later than ``until_s``, and return where the run
    stands."""
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
            take_in(s, rules, row, arrival_s)
        elif pending_s <= end_s:
            r = pop_pending(s)
            if s.requests[r].state == TRANSFER:
                receive(s, r, pending_s)
            elif s.requests[r].state == SHIPPING:
                take_history(s, r, pending_s)
            else:
                take_in(s, rules, r, pending_s)
        else:
            end_leap(s, rules, e)
    return FINISHED if s.counters[REMAINING] == 0 else UNDER_WAY
