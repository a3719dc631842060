"""Requests over placed blocks as they come: the simulator's router in front of real servers."""

from collections.abc import Hashable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from gpusched.compilation import entry_kernel
from gpusched.errors import InputError, unknown_name
from gpusched.policies.routing.reservations import (
    give_back,
    has_room,
    no_reservations,
    reserve,
    with_room,
)
from gpusched.policies.routing.ws_rr import POLICIES, chain_wait, chains_of, retried_s, route
from gpusched.timing.chains import BlockServers, Placed

OVERRUN_S = 1.0
"""How long a request that is not done when it should be keeps its cache, before one looks again."""


@dataclass(frozen=True)
class Route:
    """Where a request goes."""

    chain: tuple[tuple[int, int], ...]
    """Servers in order and the blocks each runs."""
    wait_s: float
    """Until there is cache for it on all of them."""
    finish_s: float
    """When it should be done."""


@entry_kernel
def _route(
    policy, g, held, trip_s, block_s, tokens, now_s, retries,
    client_rtt_s, server_rtt_s, client, decode_block_s, petals,
):  # fmt: skip
    length = route(
        policy, g, held, trip_s, block_s, tokens, now_s, retries,
        client_rtt_s, server_rtt_s, client, decode_block_s, petals,
    )  # fmt: skip
    wait_s = chain_wait(g, held, tokens, now_s, length)
    return length, retried_s(wait_s) if retries and wait_s < np.inf else wait_s


@entry_kernel
def _reserve(held, server, need, until_s):
    if not has_room(held, server):
        return False
    reserve(held, server, need, until_s)
    return True


@entry_kernel
def _give_back(held, server, need, until_s):
    return give_back(held, server, need, until_s)


class ChainRouter:
    """Chooses a chain of servers for every request and remembers what caches are taken.

    Clocks are the caller's; calls must be in order of time.

    Raises:
        InputError: no such routing.
    """

    def __init__(
        self,
        servers: BlockServers,
        placed: Placed,
        *,
        routing: str = "ws-rr",
        retries: bool = False,
    ) -> None:
        if routing not in POLICIES:
            raise InputError(unknown_name("routing of chains", routing, POLICIES))
        self._servers = servers
        self._policy, self._retries = POLICIES[routing], retries
        self._chains = chains_of(placed.first, placed.blocks, servers.blocks)
        self._held = no_reservations(placed.cache_tokens)
        self._scratch = np.zeros(servers.count), np.zeros(servers.count, np.int64)
        self._active: dict[Hashable, tuple[Route, int, float]] = {}
        self._ends: list[tuple[float, int, Hashable]] = []
        self._count = 0

    def route(
        self,
        request: Hashable,
        now_s: float,
        prompt_tokens: int,
        output_tokens: int,
        client: int = 0,
    ) -> Route | None:
        """Return the chain of a new request and reserve its caches; None if no chain could ever hold
        it. ``output_tokens`` may be a prediction; the caches of a request that takes longer stay
        reserved until ``finished``.

        Raises:
            InputError: the request is active already.
        """
        if request in self._active:
            raise InputError(f"request {request!r} is routed already and not finished")
        self._keep_overdue(now_s)
        s, tokens = self._servers, prompt_tokens + output_tokens
        visit = s.request_s(client, prompt_tokens, output_tokens)
        length, wait_s = _route(
            self._policy, self._chains, self._held, visit.trip_s, visit.block_s, tokens, now_s,
            self._retries, s.client_rtt_s, s.server_rtt_s, client, s.decode_block_s, self._scratch,
        )  # fmt: skip
        if not length or wait_s == np.inf:
            return None
        chain = tuple(
            (int(j), int(k))
            for j, k in zip(
                self._chains.path[:length], self._chains.path_blocks[:length], strict=True
            )
        )
        visits_s = sum(visit.trip_s[j] + visit.block_s[j] * k for j, k in chain)
        chosen = Route(chain, wait_s, float(now_s + wait_s + s.session_s + visits_s))
        self._hold(request, chosen, tokens, chosen.finish_s)
        return chosen

    def finished(self, request: Hashable) -> None:
        """Give back the caches of a request that is done or gone; unknown ones are ignored."""
        if request in self._active:
            self._release(request)

    def _hold(self, request: Hashable, chosen: Route, tokens: int, until_s: float) -> None:
        for j, k in chosen.chain:
            while not _reserve(self._held, j, tokens * k, until_s):
                self._held = with_room(self._held, 2 * self._held.until_s.shape[1])
        self._active[request] = chosen, tokens, until_s
        self._count += 1
        heappush(self._ends, (until_s, self._count, request))

    def _release(self, request: Hashable) -> tuple[Route, int]:
        chosen, tokens, until_s = self._active.pop(request)
        for j, k in chosen.chain:
            _give_back(self._held, j, tokens * k, until_s)
        return chosen, tokens

    def _keep_overdue(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            until_s, _, request = heappop(self._ends)
            if request in self._active and self._active[request][2] == until_s:
                chosen, tokens = self._release(request)
                self._hold(request, chosen, tokens, now_s + OVERRUN_S)
