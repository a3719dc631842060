"""Decode engines as they are at this moment, in the middle of a leap."""

from gpusched.compilation import cold_kernel
from gpusched.policies.routing.windowed import SLOTS, observe, slot_of
from gpusched.sim.engine import cut_leap, grow_to
from gpusched.sim.timing_kernels import leap_s, steps_until


@cold_kernel
def observe_tokens(s, e, steps):
    """Enter the gaps between tokens of the first ``steps`` steps of a decode engine's leap in its
    window, as far as they are not there yet."""
    engine = s.engines[e]
    rounds = s.rounds
    worker = rounds.workers[e]
    window_s = rounds.settings[0].window_s
    if engine.active == 0 or steps <= worker.observed:
        return
    if worker.observed == 0:
        end_s = engine.start_s + engine.first_s
        gaps_s = (engine.active - engine.fresh) * (end_s - engine.last_decode_s)
        if engine.active == engine.fresh:
            gaps_s = 0.0
        for i in range(engine.fresh):
            gaps_s += end_s - s.requests[s.fresh[e, i]].last_s
        slot = slot_of(end_s, window_s)
        observe(rounds.totals_s, rounds.counts, rounds.slots, e, slot, gaps_s, engine.active)
        worker.observed = 1
    while worker.observed < steps:
        before_s = leap_s(engine.first_s, engine.slope_s, worker.observed)
        next_s = leap_s(engine.first_s, engine.slope_s, worker.observed + 1)
        slot = slot_of(engine.start_s + next_s, window_s)
        until = worker.observed + 1
        if (
            slot_of(engine.start_s + leap_s(engine.first_s, engine.slope_s, steps), window_s)
            == slot
        ):
            until = steps
        else:
            wait_s = (slot + 1) * window_s / SLOTS - engine.start_s
            until = max(steps_until(engine.first_s, engine.slope_s, steps, wait_s) - 1, until)
        gaps_s = leap_s(engine.first_s, engine.slope_s, until) - before_s
        count = (until - worker.observed) * engine.active
        observe(
            rounds.totals_s, rounds.counts, rounds.slots, e, slot, gaps_s * engine.active, count
        )
        worker.observed = until


@cold_kernel
def bring_up(s, e, now_s):
    """End a decode engine's leap with the step under way, so that its blocks and its window are
    those of this moment."""
    engine = s.engines[e]
    if engine.steps > 1:
        cut_leap(s, e, now_s)
        grow_to(s, e, engine.steps)
    if engine.steps > 0:
        observe_tokens(s, e, engine.steps - 1)
