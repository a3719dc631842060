"""Local search from a placement: one server's range changes at a time, and what the requests of a
trace then experience decides."""

from collections.abc import Callable

import numpy as np

from gpusched.timing.chains import BlockServers, Ints, Placed

Cost = tuple[float, ...]
"""Compared from the first figure on; less is better."""

FRESH = 0.1
"""Share of moves to any place, instead of one where another server's range begins or ends."""


def improve(
    servers: BlockServers,
    placed: Placed,
    most: Ints,
    cost: Callable[[Placed], Cost],
    *,
    moves: int = 400,
    seed: int = 0,
) -> tuple[Placed, Cost]:
    """Return the best placement that ``moves`` random changes reach, and its cost.

    A move gives a server another range, of the same or nearly the same size, next to where others
    begin or end; it stays unless the cost rises. ``most`` bounds the blocks a server may hold, shape
    (n,).
    """
    rng = np.random.default_rng(seed)
    best, least = placed, cost(placed)
    usable = np.flatnonzero(most > 0)
    for _ in range(moves):
        j = int(rng.choice(usable))
        size = int(best.blocks[j])
        if not size or rng.uniform() < 0.5:
            size += int(rng.integers(-4, 5))
        size = int(np.clip(size, 1, most[j]))
        latest = servers.blocks - size
        others = (best.blocks > 0) & (np.arange(servers.count) != j)
        edges = np.concatenate([
            best.end[others], best.first[others], best.end[others] - size,
            best.first[others] - size, [0, latest],
        ])  # fmt: skip
        edges = np.unique(edges[(edges >= 0) & (edges <= latest)])
        begin = (
            int(rng.integers(0, latest + 1)) if rng.uniform() < FRESH else int(rng.choice(edges))
        )
        if begin == best.first[j] and size == best.blocks[j]:
            continue
        first, blocks = best.first.copy(), best.blocks.copy()
        first[j], blocks[j] = begin, size
        tried = Placed(first, blocks, servers.cache_room(blocks))
        if not tried.coverage(servers.blocks).all():
            continue
        found = cost(tried)
        if found <= least:
            best, least = tried, found
    return best, least
