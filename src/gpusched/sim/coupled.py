"""The event loop where engines wait for one another: data-parallel units that step together, and
requests that admission holds in front of all engines.

The same events as in ``kernel``, and one more: held requests are looked at when their release is
due, after arrivals of the same instant and before ends of leaps.
"""

import math

from gpusched.compilation import cold_kernel, entry_kernel, kernel
from gpusched.policies.admission.policy import GATED, STAGGERED
from gpusched.sim.engine import schedule
from gpusched.sim.entry import next_row, pop_pending, return_later
from gpusched.sim.gating import hold_at_gate, open_gate
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
from gpusched.sim.lockstep import count_idle_units, lock_step
from gpusched.sim.staggering import end_pass, hold_for_release, prefilling, release_due
from gpusched.sim.state import FAULT, NEXT_ROW, PENDING, REMAINING, TRANSFER


@cold_kernel
def take_in(s, rules, r, now_s):
    """Let a request arrive: hold it where admission does, else route it."""
    if rules.admission == STAGGERED:
        s.requests[r].arrival_s = now_s
        hold_for_release(s, rules, r, now_s)
    elif rules.admission == GATED:
        s.requests[r].arrival_s = now_s
        hold_at_gate(s, rules, r, now_s)
    else:
        return_later(s, rules, r, now_s)


@cold_kernel
def look_at_held(s, rules, now_s):
    """Let in what held requests may now go on."""
    if rules.admission == STAGGERED:
        release_due(s, rules, now_s)
    elif rules.admission == GATED:
        open_gate(s, rules, now_s)


@kernel
def end_leap(s, rules, e):
    """Take an engine, with all units that step with it, over the end of its leap and into the next
    one; held requests may join in between."""
    units = s.engines[e].units
    if units > 1:
        count_idle_units(s, e)
    now_s = s.engines[e].end_s
    passed = rules.admission == STAGGERED and e < rules.entry_engines and prefilling(s, e)
    duration_s = now_s - s.engines[e].start_s
    for u in range(e, e + units):
        settle(s, rules, u)
    for u in range(e, e + units):
        s.engines[u].steps = 0
    if passed:
        end_pass(s, e, duration_s, now_s)
    look_at_held(s, rules, now_s)
    for u in range(e, e + units):
        schedule(s, u)
    if units > 1:
        lock_step(s, e)
    else:
        set_timer(s.timers_s, s.winners, e, s.engines[e].end_s)


@entry_kernel
def run_coupled(s, rules, max_events, until_s):
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
        tick_s = s.front[0].tick_s
        if until_s < min(arrival_s, pending_s, tick_s, end_s) < math.inf:
            return DUE
        if arrival_s <= min(pending_s, tick_s, end_s):
            if arrival_s == math.inf:
                return STALLED
            s.counters[NEXT_ROW] += 1
            take_in(s, rules, row, arrival_s)
        elif pending_s <= min(tick_s, end_s):
            r = pop_pending(s)
            if s.requests[r].state == TRANSFER:
                receive(s, r, pending_s)
            else:
                take_in(s, rules, r, pending_s)
        elif tick_s <= end_s:
            look_at_held(s, rules, tick_s)
        else:
            end_leap(s, rules, e)
    return FINISHED if s.counters[REMAINING] == 0 else UNDER_WAY
