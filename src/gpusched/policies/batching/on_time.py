"""Which of the first waiting prompts goes next, so that most answer by their deadline (AMPD).

On one machine without preemption the order of ``n`` prompts matters only through the set that is
done: its last one ends at the sum of their durations. Hence a dynamic program over sets, exact in
``O(2^n n)``, gives the order with most prompts on time and, among those, the least total completion.
Longer windows take Moore's rule (Management Science 15(1), 1968): most on time in ``O(n^2)`` here,
the on-time ones by deadline, the late ones after them; it does not minimise total completion.
"""

import math

from gpusched.compilation import kernel

MOST_EXACT = 8
"""Longest window for the exact program."""
LONGEST = 64
"""Longest window."""
SETS = 1 << MOST_EXACT


@kernel
def _next_exact(durations_s, deadlines_s, n, now_s, elapsed_s, counts, totals_s):
    full = (1 << n) - 1
    elapsed_s[0] = 0.0
    for done in range(1, full + 1):
        lowest = 0
        while not done >> lowest & 1:
            lowest += 1
        elapsed_s[done] = elapsed_s[done & (done - 1)] + durations_s[lowest]
    counts[full] = 0
    totals_s[full] = 0.0
    first = 0
    for done in range(full - 1, -1, -1):
        best = -1
        best_count = -1
        best_s = math.inf
        for j in range(n):
            if done >> j & 1:
                continue
            after = done | 1 << j
            end_s = elapsed_s[after]
            count = counts[after] + (1 if now_s + end_s <= deadlines_s[j] else 0)
            total_s = totals_s[after] + end_s
            if count > best_count or (count == best_count and total_s < best_s):
                best = j
                best_count = count
                best_s = total_s
        counts[done] = best_count
        totals_s[done] = best_s
        first = best
    return first


@kernel
def _next_moore(durations_s, deadlines_s, n, now_s, counts):
    # counts[j]: 0 not seen, 1 on time, 2 late
    for j in range(n):
        counts[j] = 0
    end_s = now_s
    for _ in range(n):
        j = -1
        for k in range(n):
            if counts[k] == 0 and (j < 0 or deadlines_s[k] < deadlines_s[j]):
                j = k
        counts[j] = 1
        end_s += durations_s[j]
        if end_s > deadlines_s[j]:
            longest = -1
            for k in range(n):
                if counts[k] == 1 and (longest < 0 or durations_s[k] >= durations_s[longest]):
                    longest = k
            counts[longest] = 2
            end_s -= durations_s[longest]
    first = -1
    for k in range(n):
        if counts[k] == 1 and (first < 0 or deadlines_s[k] < deadlines_s[first]):
            first = k
    return first if first >= 0 else 0


@kernel
def next_on_time(
    durations_s, deadlines_s, passed, n, window, now_s, elapsed_s, counts, totals_s
):  # fmt: skip
    """Return which of ``n`` waiting prompts, given in order of arrival, starts next; ``n`` is
    ``window`` or, in a shorter queue, less.

    ``passed`` counts how often each has been overtaken: after more than ``2 window`` times it goes
    first.
    ``elapsed_s``, ``counts`` and ``totals_s`` are room to work in, of ``SETS`` entries.
    """
    if n == 1:
        return 0
    for j in range(n):
        if passed[j] > 2 * window:
            return j
    if n <= MOST_EXACT:
        return _next_exact(durations_s, deadlines_s, n, now_s, elapsed_s, counts, totals_s)
    return _next_moore(durations_s, deadlines_s, n, now_s, counts)
