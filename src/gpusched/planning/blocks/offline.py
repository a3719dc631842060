"""Offline placement and routing: all requests known and served at once."""

from dataclasses import dataclass

import numpy as np

from gpusched.planning.blocks.chain import cheapest_chain, decode_visits
from gpusched.planning.blocks.conservative import place_conservatively
from gpusched.solve.milp import Program
from gpusched.timing.chains import BlockServers, Ints, Placed

Chain = list[tuple[int, int]]
"""Servers and the blocks each runs, in order."""


@dataclass(frozen=True)
class Offline:
    """Blocks on servers and a chain for every request; times are of one output token."""

    placed: Placed
    chains: tuple[Chain, ...]
    """Of the requests, in their order."""
    token_s: float
    """Sum over requests."""
    bound_s: float
    """No placement and routing has a smaller sum, as far as proven."""
    seconds: float
    status: str

    @property
    def gap(self) -> float:
        """``(token_s - bound_s) / token_s``."""
        return (self.token_s - self.bound_s) / self.token_s if self.token_s > 0 else 0.0


def place_and_route(servers: BlockServers, clients: Ints, tokens: float) -> Offline:
    """Return Offline CG-BPRR: CG-BP for as many requests as there are, each on the quickest chain of
    its client. There is cache for all of them whatever the chains.

    Raises:
        InfeasibleError: the servers do not hold so many requests.
    """
    placed = place_conservatively(servers, len(clients), tokens).placed
    found = {
        int(c): cheapest_chain(servers, placed, decode_visits(servers, int(c)))
        for c in np.unique(clients)
    }
    chains = tuple(found[int(c)][1] for c in clients)
    total = sum(found[int(c)][0] for c in clients)
    return Offline(placed, chains, total, -np.inf, 0.0, "feasible")


def route_over(
    servers: BlockServers, placed: Placed, clients: Ints, tokens: int, *, time_limit_s: float = 60.0
) -> Offline:
    """Return the quickest chains for requests at once over placed blocks, within every server's
    cache: an integer flow over block boundaries, one commodity a client."""
    boundaries, own, demand = servers.blocks + 1, *np.unique(clients, return_counts=True)
    arcs = [
        (int(j), b, int(placed.end[j]))
        for j in np.flatnonzero(placed.blocks > 0)
        for b in range(placed.first[j], placed.end[j])
    ]
    server, start, end = np.array(arcs, np.int64).reshape(-1, 3).T
    trip = servers.decode_trip_s[own][:, server]
    usable = np.isfinite(trip)
    cost = np.where(usable, trip, 0.0) + servers.decode_block_s[server] * (end - start)
    program = Program()
    flow = program.variables(
        cost.shape, cost=cost, upper=np.where(usable, demand[:, None], 0), integer=True
    )
    for c, count in enumerate(demand):
        balance = np.zeros(boundaries)
        balance[0], balance[-1] = count, -count
        program.rows(
            np.concatenate([start, end]),
            np.concatenate([flow[c], flow[c]]),
            np.concatenate([np.ones(len(start)), -np.ones(len(end))]),
            lower=balance, upper=balance, count=boundaries,
        )  # fmt: skip
    program.rows(
        np.broadcast_to(server, flow.shape), flow, np.broadcast_to(end - start, flow.shape) * tokens,
        upper=placed.cache_tokens.astype(np.float64), count=servers.count,
    )  # fmt: skip
    found = program.solve(time_limit_s=time_limit_s, relative_gap=1e-9)
    chains: tuple[Chain, ...] = ()
    if len(found.values):
        whole = np.round(found.values[flow]).astype(np.int64)
        chains = _chains(clients, own, whole, server, start, end)
    return Offline(placed, chains, found.objective, found.bound, found.seconds, found.status)


def _chains(clients: Ints, own: Ints, flow: Ints, server: Ints, start: Ints, end: Ints) -> tuple[Chain, ...]:  # fmt: skip
    """Take an integer flow apart into the chains of single requests."""
    left, chains = flow.copy(), []
    total = int(end.max())
    for client in clients:
        row = left[int(np.searchsorted(own, client))]
        chain, boundary = [], 0
        while boundary < total:
            arc = int(np.flatnonzero((row > 0) & (start == boundary))[0])
            row[arc] -= 1
            chain.append((int(server[arc]), int(end[arc] - boundary)))
            boundary = int(end[arc])
        chains.append(chain)
    return tuple(chains)
