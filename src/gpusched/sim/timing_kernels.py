"""Durations of leaps: iterations that follow one another with an unchanged batch.

Every decoding request gains one token a step, so durations rise by a constant: step ``i`` takes
``first_s + i * slope_s``, and the sum over a leap is an arithmetic series.
"""

import math

from gpusched.compilation import kernel


@kernel
def leap_s(first_s, slope_s, steps):
    """Duration of ``steps`` steps."""
    return steps * first_s + slope_s * 0.5 * steps * (steps - 1)


@kernel
def steps_until(first_s, slope_s, limit, wait_s):
    """Steps, at least 1 and at most ``limit``, after which ``wait_s`` has passed."""
    if wait_s <= first_s:
        return 1
    half = 0.5 * slope_s
    linear = first_s - half
    root = 2.0 * wait_s / (linear + math.sqrt(linear * linear + 4.0 * half * wait_s))
    if root >= limit:
        return limit
    steps = max(math.ceil(root), 1)
    while steps > 1 and leap_s(first_s, slope_s, steps - 1) >= wait_s:
        steps -= 1
    while steps < limit and leap_s(first_s, slope_s, steps) < wait_s:
        steps += 1
    return min(steps, limit)


@kernel
def tokens_s(s, timing, tokens):
    """Token-wise time of a batch: the table, continued by its last slope."""
    last = s.scalars[timing].max_tokens
    if tokens <= last:
        return s.tokens_s[timing, tokens]
    end = s.tokens_s[timing, last]
    return end + (tokens - last) * (end - s.tokens_s[timing, last - 1])


@kernel
def experts_s(s, timing, tokens):
    """Time of the experts for the tokens of all units: the table, continued by its last slope."""
    last = s.scalars[timing].max_group_tokens
    if tokens <= last:
        return s.experts_s[timing, tokens]
    end = s.experts_s[timing, last]
    return end + (tokens - last) * (end - s.experts_s[timing, last - 1])


@kernel
def chunk_work(new, past):
    """Query-key pairs of ``new`` prompt tokens that follow ``past`` ones."""
    return new * past + 0.5 * new * (new + 1)


@kernel
def window_work(new, past, window):
    """The same pairs when each query sees at most ``window`` keys."""
    rising = min(max(window - past, 0), new)
    return chunk_work(rising, past) + float(new - rising) * window
