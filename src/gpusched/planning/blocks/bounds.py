"""What no placement can beat: lower bounds on the time of requests served at once."""

import numpy as np

from gpusched.planning.blocks.chain import decode_visits
from gpusched.timing.chains import SLACK, BlockServers, Floats, Ints, Placed, VisitTimes


def lone_optimum(
    servers: BlockServers, visit: VisitTimes, tokens: float
) -> tuple[float, list[tuple[int, int]]]:
    """Return the least time of a single request over all placements, and servers with the blocks
    each runs.

    For one request exact: only which servers it visits and for how many blocks matters, as their
    ranges can then be laid end to end. Dynamic programming over blocks covered, server by server;
    the whole range of a server's counts is a sliding minimum. O(n L m).
    """
    total = servers.blocks
    most = _most_blocks(servers, tokens)
    cost = np.full(total + 1, np.inf)
    cost[0] = 0.0
    choices: list[tuple[int, Ints]] = []
    for j in np.flatnonzero((most > 0) & np.isfinite(visit.trip_s)):
        counts = np.arange(most[j] + 1)
        before = np.arange(total + 1)[:, None] - counts
        ways = np.where(before >= 0, cost[np.maximum(before, 0)], np.inf)
        ways = ways + np.where(counts > 0, visit.trip_s[j] + visit.block_s[j] * counts, 0.0)
        chosen = np.argmin(ways, axis=1)
        cost = ways[np.arange(total + 1), chosen]
        choices.append((int(j), chosen))
    if not np.isfinite(cost[total]):
        return np.inf, []
    chain, left = [], total
    for server, chosen in reversed(choices):
        if chosen[left]:
            chain.append((server, int(chosen[left])))
            left -= int(chosen[left])
    return float(cost[total]), chain[::-1]


def lone_placement(servers: BlockServers, chain: list[tuple[int, int]]) -> Placed:
    """Return the placement that lays a chain's servers end to end."""
    first, blocks = (np.zeros(servers.count, np.int64) for _ in range(2))
    at = 0
    for j, count in chain:
        first[j], blocks[j] = at, count
        at += count
    return Placed(first, blocks, servers.cache_room(blocks))


def shared_bound_s(servers: BlockServers, tokens: float, requests: int) -> float:
    """Return a lower bound on the sum over ``requests`` requests at once of their time a token, all
    of them from the client that is nearest to each server.

    A block run at server j costs at least its time and a share of a trip over the most blocks that
    one visit can run; and j can run no more of them than its memory keeps cache for. Filling the
    cheapest servers first is the optimum of that relaxation.
    """
    cost = np.full(servers.count, np.inf)
    room = np.zeros(servers.count)
    cache, most = servers.cache_bytes(tokens), _most_blocks(servers, tokens)
    nearest_s = servers.decode_trip_s.min(axis=0)
    for j in np.flatnonzero(most):
        held = np.arange(1, most[j] + 1)
        left = (servers.memory_bytes[j] - servers.block_bytes * held) / cache * (1 + SLACK)
        room[j] = np.minimum(requests * held, np.floor(left + SLACK)).max()
        cost[j] = servers.decode_block_s[j] + nearest_s[j] / most[j]
    order = np.argsort(cost, kind="stable")
    before = np.concatenate(([0.0], np.cumsum(room[order])[:-1]))
    used = np.clip(requests * servers.blocks - before, 0.0, room[order])
    if used.sum() < requests * servers.blocks - 0.5:
        return np.inf
    busy = used > 0
    return float((used[busy] * cost[order][busy]).sum())


def decode_bound_s(servers: BlockServers, tokens: float, requests: int) -> float:
    """Return a lower bound on the mean time a token of ``requests`` requests at once, clients taking
    turns; inf if they cannot be served at once."""
    alone = [
        lone_optimum(servers, decode_visits(servers, c), tokens)[0] for c in range(servers.clients)
    ]
    each: Floats = np.array(alone)[np.arange(requests) % servers.clients]
    return max(float(each.mean()), shared_bound_s(servers, tokens, requests) / requests)


def _most_blocks(servers: BlockServers, tokens: float) -> Ints:
    """Return the most blocks that one request can run at each server."""
    of_block = servers.block_bytes + servers.cache_bytes(tokens)
    fits = np.floor(servers.memory_bytes / of_block * (1 + SLACK))
    return np.clip(fits, 0, servers.blocks).astype(np.int64)
