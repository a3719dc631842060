"""Starting in groups: WAIT and Nested WAIT (arXiv 2504.11320, Sections 4 and 5).

WAIT groups requests by output length, Nested WAIT by decode progress. A group's list starts when a
threshold of requests is held in it, so that the mix of stages stays near its fluid equilibrium.
"""

from gpusched.compilation import kernel

TOLERANCE_S = 1e-9
"""A hold is over this much before its time, so that rounding does not decide."""


@kernel
def group_of_length(ends, row, groups, predicted_tokens):
    """Group of a request by its predicted output: the first whose end is not below it."""
    g = 0
    while g < groups - 1 and ends[row, g] < predicted_tokens:
        g += 1
    return g


@kernel
def group_of_progress(ends, row, groups, produced_tokens):
    """Group of a request by the tokens it has given: the first whose end is beyond them."""
    g = 0
    while g < groups - 1 and ends[row, g] <= produced_tokens:
        g += 1
    return g


@kernel
def allowance(held, threshold, room, strict, now_s, since_s, hold_s):
    """Return how many of the ``held`` requests of a list may start.

    A strict start waits for ``threshold`` of them, a relaxed one for as many as there is ``room``
    for if that is less; whichever, none is held longer than ``hold_s`` after ``since_s``.
    """
    if held == 0 or room <= 0:
        return 0
    size = min(threshold, room)
    if held >= (threshold if strict else size) or now_s + TOLERANCE_S >= since_s + hold_s:
        return min(size, held)
    return 0
