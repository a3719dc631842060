"""Packing a window of prompts onto an engine's data-parallel units, cache hits counted.

All units of a gated engine wait for the busiest, so tokens should be level over them. Requests left
from earlier windows come first, the longest first among equals, each on the unit that it leaves
with the most room: water-filling. A unit may be overfilled; the rest spills into its next pass
(PBAA, arXiv 2512.16134, Algorithm 2).

On equal, empty units without cache hits this is longest-processing-time-first: the busiest unit
has at most ``4/3 - 1/(3 units)`` times the tokens it must have (Graham, SIAM J. Appl. Math. 17(2),
1969).
"""

from gpusched.compilation import kernel

NO_CAP = 1 << 62
"""A spill that no request exceeds."""


@kernel
def sort_window(order, count, lengths, ages):
    """Sort ``order[:count]``, indices of requests: oldest first, then longest, else as they are.

    Insertion sort: what was left of the last window is in order already.
    """
    for i in range(1, count):
        r = order[i]
        k = i
        while k > 0:
            before = order[k - 1]
            if ages[before] > ages[r]:
                break
            if ages[before] == ages[r] and lengths[before] >= lengths[r]:
                break
            order[k] = before
            k -= 1
        order[k] = r


@kernel
def pack(order, count, lengths, hits, available, assigned, ages, low, high, chunk, spill):
    """Assign the requests ``order[:count]`` to the units ``low .. high - 1``, in this order.

    ``hits[r, u]`` of the ``lengths[r]`` tokens are cached on unit ``u``; ``available[u]`` is what it
    can still take into its next pass and falls by the others. ``assigned[r]`` becomes the unit, or
    -1 where none has room left, and then ``ages[r]`` grows by one. A request that would overfill a
    unit by more than ``spill`` tokens needs one with a whole ``chunk`` available.

    Returns the largest age of a request left over, 0 if there is none: above a limit of windows,
    load should be shed.
    """
    oldest = 0
    for i in range(count):
        r = order[i]
        best = -1
        most = 0
        for u in range(low, high):
            room = available[u]
            if room > 0:
                left = room - max(lengths[r] - hits[r, u], 0)
                if (left >= -spill or room >= chunk) and (best < 0 or left > most):
                    best = u
                    most = left
        assigned[r] = best
        if best < 0:
            ages[r] += 1
            oldest = max(oldest, ages[r])
        else:
            available[best] = most
    return oldest


@kernel
def room_tokens(available, low, high):
    """Tokens that the units ``low .. high - 1`` can still take into their next pass."""
    total = 0
    for u in range(low, high):
        total += max(available[u], 0)
    return total
