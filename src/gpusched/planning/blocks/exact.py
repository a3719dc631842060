"""Exact placement and routing of requests at once, by columns: one variable for every range of blocks
that a server may hold, and integer flows over block boundaries that only open ranges carry.

The same optimum as the paper's program (``published``), with a much tighter relaxation: no product
of variables, hence no big M, and requests of one client are one flow, hence no symmetry.
"""

import numpy as np

from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.offline import Offline, place_and_route, route_over
from gpusched.solve.milp import Program
from gpusched.timing.chains import SLACK, BlockServers, Ints, Placed


def size_of_program(servers: BlockServers, tokens: float) -> int:
    """Return the number of flow variables of ``place_exactly`` for one client."""
    of_block = servers.block_bytes + servers.cache_bytes(tokens)
    most = np.clip(servers.memory_bytes / of_block * (1 + SLACK), 0, servers.blocks).astype(int)
    sizes = np.arange(1, servers.blocks + 1)
    ways = np.cumsum(sizes * (servers.blocks - sizes + 1))
    return int(ways[most[most > 0] - 1].sum())


def place_exactly(
    servers: BlockServers, clients: Ints, tokens: int, *, time_limit_s: float = 60.0, seed: int = 0
) -> Offline:
    """Return placement and chains of least total time a token; after ``time_limit_s`` the best found,
    with its bound. For few servers or short models: columns grow as servers x blocks^2, flows with
    another factor of blocks.

    Raises:
        InfeasibleError: the requests cannot be served at once.
    """
    own, demand = np.unique(clients, return_counts=True)
    requests, total = len(clients), servers.blocks
    cache = servers.cache_bytes(tokens)
    ranges: list[tuple[int, int, int, float]] = []
    uses: list[tuple[int, int, int, int]] = []
    for j in range(servers.count):
        most = servers.memory_bytes[j] / (servers.block_bytes + cache) * (1 + SLACK)
        for held in range(1, min(int(most), total) + 1):
            left = servers.memory_bytes[j] - servers.block_bytes * held
            fits = min(float(np.floor(left / cache * (1 + SLACK) + SLACK)), requests * held)
            for begin in range(total - held + 1):
                uses += [(len(ranges), j, b, begin + held) for b in range(begin, begin + held)]
                ranges.append((j, begin, held, fits))
    if not ranges:
        raise InfeasibleError("memory: no server holds a single block with cache for one request")
    holder, first, size, room = (np.array(column) for column in zip(*ranges, strict=True))
    column, server, start, end = np.array(uses, np.int64).T
    program = Program()
    opened = program.variables(len(ranges), upper=1, integer=True)
    program.rows(holder, opened, 1.0, upper=1.0, count=servers.count)
    trip = servers.decode_trip_s[own][:, server]
    usable = np.isfinite(trip)
    cost = np.where(usable, trip, 0.0) + servers.decode_block_s[server] * (end - start)
    flow = program.variables(
        cost.shape, cost=cost, upper=np.where(usable, demand[:, None], 0), integer=True
    )
    for c, count in enumerate(demand):
        balance = np.zeros(total + 1)
        balance[0], balance[-1] = count, -count
        program.rows(
            np.concatenate([start, end]),
            np.concatenate([flow[c], flow[c]]),
            np.concatenate([np.ones(len(start)), -np.ones(len(end))]),
            lower=balance, upper=balance, count=total + 1,
        )  # fmt: skip
        # a client's requests enter a range only if it is open
        program.rows(
            np.concatenate([column, np.arange(len(ranges))]),
            np.concatenate([flow[c], opened]),
            np.concatenate([np.ones(len(column)), np.full(len(ranges), -float(count))]),
            upper=0.0,
        )
    blocks_run = np.broadcast_to((end - start).astype(np.float64), flow.shape)
    program.rows(
        np.concatenate([np.broadcast_to(column, flow.shape).ravel(), np.arange(len(ranges))]),
        np.concatenate([flow.ravel(), opened]),
        np.concatenate([blocks_run.ravel(), -room.astype(np.float64)]),
        upper=0.0,
    )
    found = program.solve(time_limit_s=time_limit_s, relative_gap=1e-9, seed=seed)
    if found.status == "infeasible":
        raise InfeasibleError(
            f"memory: {requests} requests of {tokens} tokens cannot be served at once"
        )
    if not len(found.values):
        greedy = place_and_route(servers, clients, tokens)
        return Offline(
            greedy.placed, greedy.chains, greedy.token_s, max(found.bound, 0.0), found.seconds,
            found.status,
        )  # fmt: skip
    starts, blocks = (np.zeros(servers.count, np.int64) for _ in range(2))
    chosen = np.flatnonzero(found.values[opened] > 0.5)
    starts[holder[chosen]], blocks[holder[chosen]] = first[chosen], size[chosen]
    placed = Placed(starts, blocks, servers.cache_room(blocks))
    routed = route_over(servers, placed, clients, tokens)
    return Offline(placed, routed.chains, routed.token_s, found.bound, found.seconds, found.status)
