"""The same simulation, step by step in plain Python: what the compiled one is compared with.

Servers are nodes of an explicit graph, reservations a plain list, the cheapest chain Dijkstra's, and
the chain that ends soonest a search over all chains' labels (visits, longest wait).
"""

import math
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from gpusched.policies.routing.ws_rr import (
    PETALS_FULL_S,
    PETALS_HOP_S,
    PETALS_LONGEST_RTT_S,
    PETALS_UNKNOWN_RTT_S,
)
from gpusched.sim.chains.simulate import ChainLoad, ChainResult
from gpusched.timing.chains import BlockServers, Placed, VisitTimes

Chain = list[tuple[int, int]]
"""Servers and the blocks each runs."""


@dataclass
class Server:
    """Reservations of one server."""

    capacity: int
    held: list[tuple[float, int]] = field(default_factory=list)

    def wait(self, need: int, now: float) -> float:
        """Return the seconds until ``need`` is free."""
        if need > self.capacity:
            return math.inf
        active = sorted((end, size) for end, size in self.held if end > now)
        taken = sum(size for _, size in active)
        if taken + need <= self.capacity:
            return 0.0
        for end, size in active:
            taken -= size
            if taken + need <= self.capacity:
                return end - now
        raise AssertionError

    def free(self, now: float) -> int:
        """Return what is not reserved."""
        return self.capacity - sum(size for end, size in self.held if end > now)


def simulate_chains_slowly(
    servers: BlockServers,
    placed: Placed,
    load: ChainLoad,
    *,
    routing: str = "ws-rr",
    retries: bool = True,
    allocation_s: float = 0.0,
) -> ChainResult:
    """Return what ``simulate_chains`` returns."""
    state = [Server(int(room)) for room in placed.cache_tokens]
    count = len(load.arrival_s)
    wait_s, first_s, finish_s = (np.full(count, np.nan) for _ in range(3))
    visits = [0]
    visit_server: list[int] = []
    visit_blocks: list[int] = []
    for r in range(count):
        now = float(load.arrival_s[r])
        client, prompt, steps = (
            int(load.client[r]), int(load.prompt_tokens[r]), int(load.output_tokens[r]) - 1,
        )  # fmt: skip
        tokens = prompt + steps + 1
        for server in state:
            server.held = [(end, size) for end, size in server.held if end > now]
        time = servers.request_s(client, prompt, steps + 1)
        graph = _Graph(servers, placed, state, tokens, now, time)
        if routing == "ws-rr":
            chain = graph.cheapest()
        elif routing == "ws-rr-exact":
            chain = graph.soonest(retries)
        else:
            chain = graph.petals(client)
        wait = max((state[j].wait(tokens * k, now) for j, k in chain), default=math.inf)
        if math.isinf(wait):
            visits.append(len(visit_server))
            continue
        wait = back_off_s(wait) if retries else wait
        prompt_block, prompt_trip = servers.prompt_block_s(prompt), servers.prompt_trip_s(prompt)
        wait_s[r] = wait
        first_s[r] = now + wait + servers.session_s + allocation_s
        first_s[r] += sum(prompt_trip[client, j] + prompt_block[j] * k for j, k in chain)
        step_s = sum(servers.decode_trip_s[client, j] + servers.decode_block_s[j] * k for j, k in chain)  # fmt: skip
        finish_s[r] = first_s[r] + steps * step_s
        for j, k in chain:
            state[j].held.append((float(finish_s[r]), tokens * k))
            visit_server.append(j)
            visit_blocks.append(k)
        visits.append(len(visit_server))
    return ChainResult(
        load, wait_s, first_s, finish_s, np.array(visits),
        np.array(visit_server, np.int64), np.array(visit_blocks, np.int64), 0.0,
    )  # fmt: skip


def back_off_s(wait_s: float) -> float:
    """Return the first of the instants 1, 3, 7, 15, 31, 63, 123, 183, ... s at or after a wait."""
    instant, delay = 0.0, 1.0
    while instant < wait_s:
        instant, delay = instant + delay, min(2 * delay, 60.0)
    return instant


class _Graph:
    def __init__(
        self,
        servers: BlockServers,
        placed: Placed,
        state: list[Server],
        tokens: int,
        now: float,
        visit: VisitTimes,
    ) -> None:
        self.servers, self.state, self.tokens, self.now = servers, state, tokens, now
        self.trip_s, self.block_s = visit.trip_s, visit.block_s
        self.first, self.end = placed.first, placed.first + placed.blocks
        self.used = [int(j) for j in np.flatnonzero(placed.blocks > 0)]
        self.total = servers.blocks

    def next_of(self, boundary: int) -> list[tuple[int, int, float, float]]:
        """Return the servers that go on from a boundary: blocks, visits' time and wait of each."""
        found = []
        for j in self.used:
            if self.first[j] <= boundary < self.end[j]:
                k = int(self.end[j]) - boundary
                wait = self.state[j].wait(self.tokens * k, self.now)
                visit = float(self.trip_s[j] + self.block_s[j] * k)
                if not math.isinf(wait) and not math.isinf(visit):
                    found.append((j, k, visit, wait))
        return found

    def cheapest(self) -> Chain:
        """Dijkstra from the client to the client."""
        heap: list[tuple[float, int, Chain]] = [(0.0, 0, [])]
        done: set[int] = set()
        while heap:
            cost, boundary, chain = heappop(heap)
            if boundary == self.total:
                return chain
            if boundary in done:
                continue
            done.add(boundary)
            for j, k, visit, wait in self.next_of(boundary):
                heappush(heap, (cost + visit + wait, boundary + k, [*chain, (j, k)]))
        return []

    def soonest(self, retries: bool) -> Chain:
        """All labels of visits' time and longest wait that no other label beats in both."""
        labels: dict[int, list[tuple[float, float, Chain]]] = {0: [(0.0, 0.0, [])]}
        for boundary in range(self.total):
            for visits, longest, chain in labels.get(boundary, []):
                for j, k, visit, wait in self.next_of(boundary):
                    label = (visits + visit, max(longest, wait), [*chain, (j, k)])
                    there = labels.setdefault(boundary + k, [])
                    if not any(a <= label[0] and b <= label[1] for a, b, _ in there):
                        there[:] = [x for x in there if not (label[0] <= x[0] and label[1] <= x[1])]
                        there.append(label)
        ends = labels.get(self.total, [])
        if not ends:
            return []
        return min(ends, key=lambda x: x[0] + (back_off_s(x[1]) if retries else x[1]))[2]

    def petals(self, client: int) -> Chain:
        """PETALS' own metric: half round trips, hops, decode time, and short caches."""
        s = self.servers

        def half(rtt_s: float) -> float:
            known = PETALS_UNKNOWN_RTT_S if math.isnan(rtt_s) else rtt_s
            return min(known, PETALS_LONGEST_RTT_S) / 2

        def penalty(j: int) -> float:
            whole = self.tokens * int(self.end[j] - self.first[j])
            return PETALS_FULL_S if whole > self.state[j].free(self.now) else 0.0

        heap: list[tuple[float, int, int, Chain]] = [(0.0, 0, -1, [])]
        done: set[int] = set()
        while heap:
            cost, boundary, at, chain = heappop(heap)
            if at == s.count:
                return chain
            if at in done:
                continue
            done.add(at)
            if boundary == self.total:
                back = cost + half(float(s.client_rtt_s[client, at]))
                heappush(heap, (back, boundary, s.count, chain))
                continue
            for j in self.used:
                if self.first[j] <= boundary < self.end[j] and not math.isinf(self.trip_s[j]):
                    rtt = s.client_rtt_s[client, j] if at < 0 else s.server_rtt_s[at, j]
                    k = int(self.end[j]) - boundary
                    there = cost + half(float(rtt)) + PETALS_HOP_S + penalty(j)
                    there += float(s.decode_block_s[j]) * k
                    heappush(heap, (there, boundary + k, j, [*chain, (j, k)]))
        return []
