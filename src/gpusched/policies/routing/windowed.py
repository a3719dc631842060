"""Means over the last seconds, one a worker, in memory that does not grow with the traffic.

The window is cut into slots that are overwritten in turn: it covers the current slot and those
before it, so between ``(SLOTS - 1) / SLOTS`` and all of its length.
"""

import math

import numpy as np

from gpusched.compilation import kernel

SLOTS = 10


@kernel
def slot_of(time_s, window_s):
    """Number of the slot that a time falls into, counted from time 0."""
    return np.int64(math.floor(time_s * SLOTS / window_s))


@kernel
def observe(totals_s, counts, slots, worker, slot, total_s, count):
    """Add ``count`` values that sum up to ``total_s`` to a worker's slot.

    The arrays have shape (workers, SLOTS); ``slots`` holds the number of the slot in each place, -1
    at first.
    """
    place = slot % SLOTS
    if slots[worker, place] > slot:
        return
    if slots[worker, place] < slot:
        slots[worker, place] = slot
        totals_s[worker, place] = 0.0
        counts[worker, place] = 0
    totals_s[worker, place] += total_s
    counts[worker, place] += count


@kernel
def window_sums(totals_s, counts, slots, worker, slot):
    """Sum and number of a worker's values in the window that ends with ``slot``."""
    total_s = 0.0
    count = 0
    for k in range(slot - SLOTS + 1, slot + 1):
        if k >= 0 and slots[worker, k % SLOTS] == k:
            total_s += totals_s[worker, k % SLOTS]
            count += counts[worker, k % SLOTS]
    return total_s, count
