"""Data-parallel attention: units of one replica that step together.

Each unit has a batch and KV blocks of its own. The experts are spread over all units, and their
exchange of tokens in every layer lets no unit run ahead of the others: an iteration ends for all
when it ends for the slowest. With ``n_d`` tokens on unit ``d`` of ``D`` it takes ::

    T = max_d (t_d - E(D n_d)) + E(n_1 + ... + n_D)

``t_d`` is the time of the unit's batch as if all units carried as many tokens, ``E(n)`` the part of
the experts for ``n`` tokens in all, ``CompiledTiming.experts_s``: units wait for the slowest
attention and share the experts' work evenly. A unit without a batch adds nothing.

Each unit's time grows linearly from step to step, so the group leaps until some unit's batch may
change or another unit becomes the slowest. Its timer is that of its first unit.
"""

import math

from gpusched.compilation import cold_kernel, kernel
from gpusched.sim.heaps import set_timer
from gpusched.sim.timing_kernels import experts_s, leap_s, steps_until


@kernel
def end_group_at(s, first, end_s):
    """Let the leap, or the rest, of a group end at a time."""
    for u in range(first, first + s.engines[first].units):
        s.engines[u].end_s = end_s
    set_timer(s.timers_s, s.winners, first, end_s)


@kernel
def steps_behind(gap_s, gain_s, limit):
    """Steps, at most ``limit``, for which a unit that is ``gap_s`` faster than the slowest and falls
    back by ``gain_s`` a step stays no slower."""
    if gain_s * (limit - 1) <= gap_s:
        return limit
    return int(gap_s / gain_s) + 1


@cold_kernel
def lock_step(s, first):
    """Make one leap of those that the units of a group have scheduled each for itself.

    An idle unit looks at its queue after the first step.
    """
    engine = s.engines[first]
    members = range(first, first + engine.units)
    tokens = 0
    busy = False
    first_s = slope_s = 0.0
    rest_s = math.inf
    for u in members:
        unit = s.engines[u]
        if unit.steps == 0:
            rest_s = min(rest_s, unit.end_s)
            continue
        own = unit.active + unit.chunk_tokens
        tokens += own
        unit.first_s -= experts_s(s, unit.timing, engine.units * own)
        slower = unit.first_s > first_s or (unit.first_s == first_s and unit.slope_s > slope_s)
        if not busy or slower:
            first_s, slope_s = unit.first_s, unit.slope_s
            busy = True
    if not busy:
        end_group_at(s, first, rest_s)
        return
    steps = 1 << 62
    for u in members:
        unit = s.engines[u]
        if unit.steps > 0:
            steps = min(steps, unit.steps)
            steps = steps_behind(first_s - unit.first_s, unit.slope_s - slope_s, steps)
        elif unit.waiting > 0:
            steps = 1
    first_s += experts_s(s, engine.timing, tokens)
    for u in members:
        unit = s.engines[u]
        unit.steps = min(unit.steps, steps)
        unit.first_s = first_s
        unit.slope_s = slope_s
    end_group_at(s, first, engine.start_s + leap_s(first_s, slope_s, steps))


@cold_kernel
def shorten_group(s, e, now_s):
    """End the leap that a busy unit takes part in with the step under way."""
    engine = s.engines[e]
    first = e - engine.unit
    steps = steps_until(engine.first_s, engine.slope_s, engine.steps, now_s - engine.start_s)
    for u in range(first, first + engine.units):
        s.engines[u].steps = min(s.engines[u].steps, steps)
    end_group_at(s, first, engine.start_s + leap_s(engine.first_s, engine.slope_s, steps))


@cold_kernel
def wake_unit(s, e, now_s):
    """Let an idle unit look at its queue: at once, or after the step under way of its siblings."""
    engine = s.engines[e]
    first = e - engine.unit
    for u in range(first, first + engine.units):
        if s.engines[u].steps > 0:
            shorten_group(s, u, now_s)
            return
    if now_s < s.timers_s[first]:
        end_group_at(s, first, now_s)


@cold_kernel
def count_idle_units(s, first):
    """Count the time of a leap that ends as busy for the units that waited for their siblings."""
    busy = False
    for u in range(first, first + s.engines[first].units):
        busy |= s.engines[u].steps > 0
    if busy:
        for u in range(first, first + s.engines[first].units):
            unit = s.engines[u]
            if unit.steps == 0:
                unit.busy_s += unit.end_s - unit.start_s
