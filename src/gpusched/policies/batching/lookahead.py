"""Look-ahead admission: start a request only if predicted KV use never exceeds the budget.

MC-SF's feasibility check (arXiv 2502.07115, Eq. 5). Every resident's KV cache grows by a token an
iteration until its predicted end and is then freed, so the sum need only be checked at predicted
ends. Time is counted in iterations; resident ``i`` holds ``bases[i] + x`` tokens in iteration
``x <= ends[i]``. One that outlives its prediction is taken to end with the next iteration.
"""

from gpusched.compilation import kernel

NEVER = 1 << 40
"""A delay that no run reaches."""


@kernel
def shortfall(ends, bases, row, size, start, tokens, last, limit_tokens, slack_tokens):
    """Return 0 if a candidate may start in iteration ``start``, else a number of iterations by
    which it must be put off at least, the residents and their predictions unchanged.

    ``ends[row, :size]`` ascend. The candidate holds ``tokens`` in its first iteration and ends with
    iteration ``last``; each of the requests is charged ``slack_tokens`` on top, for the unused part
    of its last block.
    """
    delay = 0
    alive = 1
    base = tokens - start
    following = NEVER
    last_checked = False
    for i in range(size - 1, -1, -1):
        end = max(ends[row, i], start)
        if not last_checked and end < last:
            last_checked = True
            if base + alive * (last + slack_tokens) > limit_tokens:
                delay = following + 1 - last
        alive += 1
        base += bases[row, i]
        if ends[row, i] >= start:
            following = end
        if end <= last:
            excess = base + alive * (end + slack_tokens) - limit_tokens
            if excess > 0:
                overdue = ends[row, i] < start
                needed = following + 1 - start if overdue else min(excess, end + 1 - start)
                delay = max(delay, needed)
    if not last_checked and base + alive * (last + slack_tokens) > limit_tokens:
        delay = max(delay, following + 1 - last)
    return delay


@kernel
def first_fit(ends, bases, row, size, start, tokens, duration, limit_tokens, slack_tokens, horizon):
    """Return the least delay in ``1 .. horizon`` after which the candidate may start, the residents
    and their predictions unchanged; ``horizon + 1`` if there is none."""
    delay = 1
    while delay <= horizon:
        begin = start + delay
        more = shortfall(
            ends, bases, row, size, begin, tokens, begin + duration - 1, limit_tokens, slack_tokens
        )
        if more == 0:
            return delay
        delay += more
    return horizon + 1


@kernel
def insert(ends, bases, row, size, end, base):
    """Enter a resident, keeping ``ends`` in ascending order."""
    i = size
    while i > 0 and ends[row, i - 1] > end:
        ends[row, i] = ends[row, i - 1]
        bases[row, i] = bases[row, i - 1]
        i -= 1
    ends[row, i] = end
    bases[row, i] = base


@kernel
def discard(ends, bases, row, size, end, base):
    """Take out a resident that was entered with this end and base."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if ends[row, middle] < end:
            low = middle + 1
        else:
            high = middle
    while bases[row, low] != base:
        low += 1
    for i in range(low, size - 1):
        ends[row, i] = ends[row, i + 1]
        bases[row, i] = bases[row, i + 1]
