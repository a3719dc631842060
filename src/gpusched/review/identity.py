"""Fronts keep their number from one snapshot to the next."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

LEAST_OVERLAP = 0.25


def match_fronts(
    groups: Sequence[frozenset[str]], earlier: Mapping[int, frozenset[str]], next_number: int
) -> list[int]:
    """Return a number for each group of papers.

    Groups and earlier fronts are assigned to each other so that the sum of Jaccard overlaps is
    largest. Papers that only one side knows do not count: a front that took in new papers is still
    itself. A pair that overlaps by less than a quarter is not the same front; a group without a
    pair gets a new number, larger groups first.

    Args:
        groups: papers of each group now.
        earlier: papers of each earlier front by number.
        next_number: the least number never used.
    """
    numbers = sorted(earlier)
    known = frozenset().union(*earlier.values()) if earlier else frozenset()
    here = frozenset().union(*groups) if groups else frozenset()
    overlaps = np.array(
        [[_jaccard(group & known, earlier[n] & here) for n in numbers] for group in groups]
    ).reshape(len(groups), len(numbers))
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    found = {
        int(i): numbers[j]
        for i, j in zip(rows, columns, strict=True)
        if overlaps[i, j] >= LEAST_OVERLAP
    }
    fresh = sorted(
        (i for i in range(len(groups)) if i not in found),
        key=lambda i: (-len(groups[i]), sorted(groups[i])),
    )
    found |= {i: next_number + rank for rank, i in enumerate(fresh)}
    return [found[i] for i in range(len(groups))]


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0
