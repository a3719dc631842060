"""The quickest chain over placed blocks when no cache is short."""

import numpy as np

from gpusched.timing.chains import BlockServers, Placed, VisitTimes


def cheapest_chain(
    servers: BlockServers, placed: Placed, visit: VisitTimes
) -> tuple[float, list[tuple[int, int]]]:
    """Return the least time over all blocks, and its servers with the blocks each runs; inf and
    none if there is no chain."""
    total, end = servers.blocks, placed.end
    cost = np.full(total + 1, np.inf)
    by = np.full(total + 1, -1)
    start = np.zeros(total + 1, np.int64)
    cost[0] = 0.0
    used = np.flatnonzero((placed.blocks > 0) & np.isfinite(visit.trip_s))
    for j in used[np.argsort(end[used], kind="stable")]:
        boundaries = np.arange(placed.first[j], end[j])
        ways = cost[boundaries] + visit.trip_s[j] + visit.block_s[j] * (end[j] - boundaries)
        best = int(np.argmin(ways))
        if ways[best] < cost[end[j]]:
            cost[end[j]], by[end[j]], start[end[j]] = ways[best], j, boundaries[best]
    if not np.isfinite(cost[total]):
        return np.inf, []
    chain, boundary = [], total
    while boundary:
        chain.append((int(by[boundary]), int(boundary - start[boundary])))
        boundary = int(start[boundary])
    return float(cost[total]), chain[::-1]


def cheapest_chain_s(servers: BlockServers, placed: Placed, visit: VisitTimes) -> float:
    """Return the least time over all blocks; inf if there is no chain."""
    return cheapest_chain(servers, placed, visit)[0]


def decode_visits(servers: BlockServers, client: int) -> VisitTimes:
    """Return what visits of one output token cost."""
    return VisitTimes(servers.decode_trip_s[client], servers.decode_block_s)
