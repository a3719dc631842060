"""Quantiles of output lengths that change with every answer: counts in a Fenwick tree.

Lengths up to 512 tokens have a bin each, longer ones bins of 0.5 %; a quantile is the upper end of
its bin. Counting and looking up cost O(log bins) (Fenwick, Software: Practice and Experience 24(3),
1994).
"""

import math

import numpy as np

from gpusched.compilation import kernel

EXACT = 512
PER_OCTAVE = 128
BINS = 2048
"""A power of two: 512 exact bins, then twelve octaves."""
LONGEST = (EXACT << 12) - 1
"""Longest length that has a bin of its own, 2 million tokens; the last bin counts all beyond."""


@kernel
def bin_of(tokens):
    """Bin of a length."""
    if tokens <= EXACT:
        return max(tokens, 1) - 1
    return min(EXACT + int(math.log2(tokens / EXACT) * PER_OCTAVE), BINS - 1)


@kernel
def longest_in(index):
    """Longest length of a bin."""
    if index < EXACT:
        return index + 1
    return math.ceil(EXACT * 2.0 ** ((index - EXACT + 1) / PER_OCTAVE)) - 1


@kernel
def add(trees, row, index, count):
    """Add to the count of a bin of tree ``trees[row]``, shape (BINS + 1,)."""
    i = index + 1
    while i <= BINS:
        trees[row, i] += count
        i += i & -i


@kernel
def quantile(trees, row, total, share):
    """Least length that at least ``share`` of the ``total`` counted lengths do not exceed."""
    wanted = max(math.ceil(share * total - 1e-9), 1)
    position = 0
    step = BINS
    while step > 0:
        if position + step <= BINS and trees[row, position + step] < wanted:
            position += step
            wanted -= trees[row, position]
        step >>= 1
    return longest_in(min(position, BINS - 1))


def upper_ends() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Longest length of every bin."""
    return np.array([longest_in(i) for i in range(BINS)], np.int64)
