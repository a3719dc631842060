"""How many prompt tokens a prefix cache of any size would hit, from one pass over a trace."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.traces.trace import Trace

NEVER = np.iinfo(np.int64).max
"""Distance of a block that was not there before."""


@dataclass(frozen=True, slots=True)
class HitCurve:
    """Share of prompt tokens that are in a least-recently-used prefix cache, by its size."""

    tokens: NDArray[np.int64]
    """Sizes, ascending, at which the share rises."""
    hit_ratio: NDArray[np.float64]
    """Share of all prompt tokens that hit at these sizes."""

    def at(self, size_tokens: ArrayLike) -> NDArray[np.float64]:
        """Return the hit ratio of caches of the given sizes."""
        index = np.searchsorted(self.tokens, np.asarray(size_tokens), side="right")
        return np.asarray(np.concatenate(([0.0], self.hit_ratio))[index])


def hit_curve(trace: Trace, *, warm_from: int = 0) -> HitCurve:
    """Return the hit ratio of every cache size at once (Mattson's stack distances).

    Requests before ``warm_from`` fill the cache but are not counted. The deepest blocks of a request
    are taken to be used first, so that a cached block's whole prefix is cached.

    Raises:
        InputError: the trace does not say which prefixes its requests share.
    """
    distance, hit_tokens, row = block_distances(trace)
    counted = (distance != NEVER) & (row >= warm_from)
    order = np.argsort(distance[counted], kind="stable")
    sizes, first = np.unique(distance[counted][order], return_index=True)
    gained = np.add.reduceat(hit_tokens[counted][order], first) if len(sizes) else np.zeros(0)
    total = float(trace.prompt_tokens[warm_from:].sum())
    assert trace.prefix is not None
    return HitCurve(sizes * trace.prefix.block_tokens, np.cumsum(gained) / total)


def block_distances(
    trace: Trace,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return for each block that a prompt asks for: the least cache, in blocks, in which it is a hit
    (``NEVER`` if nowhere), the prompt's tokens in it, and the request's row.

    Raises:
        InputError: the trace does not say which prefixes its requests share.
    """
    prefix = trace.prefix
    if prefix is None or not prefix.n_blocks:
        raise InputError(
            f"{trace.name}: its requests name no shared prefixes, so a cache would never hit; use a "
            "trace with block hashes (such as Mooncake's) or a profile with sessions"
        )
    lengths = np.diff(prefix.offsets)
    row = np.repeat(np.arange(len(trace), dtype=np.int64), lengths)
    depth = np.arange(len(row)) - np.repeat(prefix.offsets[:-1], lengths)
    left = trace.prompt_tokens[row] - depth * prefix.block_tokens
    distance = _distances(prefix.offsets, prefix.block_ids, prefix.n_blocks)
    asked = left > 0
    tokens = np.minimum(left, prefix.block_tokens).astype(np.int64)
    return distance[asked], tokens[asked], row[asked]


@numba.njit(cache=True)
def _distances(offsets, block_ids, n_blocks):
    """Stack distances by a Fenwick tree over the times of last use."""
    accesses = len(block_ids)
    tree = np.zeros(accesses + 1, np.int64)
    last = np.full(n_blocks, -1, np.int64)
    distance = np.empty(accesses, np.int64)
    clock, alive = 0, 0
    for row in range(len(offsets) - 1):
        first, end = offsets[row], offsets[row + 1]
        deepest = 0
        for j in range(first, end):
            used = last[block_ids[j]]
            if used < 0:
                distance[j] = NEVER
                deepest = NEVER
                continue
            older, i = 0, used + 1
            while i > 0:
                older += tree[i]
                i -= i & -i
            # the block and what was used after it; a prefix that is not there leaves nothing to hit
            deepest = max(deepest, alive - older + 1)
            distance[j] = deepest
        for j in range(end - 1, first - 1, -1):
            used = last[block_ids[j]]
            if used >= 0:
                i = used + 1
                while i <= accesses:
                    tree[i] -= 1
                    i += i & -i
                alive -= 1
            last[block_ids[j]] = clock
            i = clock + 1
            while i <= accesses:
                tree[i] += 1
                i += i & -i
            clock += 1
            alive += 1
    return distance
