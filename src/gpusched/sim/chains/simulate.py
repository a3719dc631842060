"""Simulate requests over placed blocks."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError, unknown_name
from gpusched.policies.routing.reservations import no_reservations, with_room
from gpusched.policies.routing.ws_rr import POLICIES, chains_of
from gpusched.sim.chains.kernel import Requests, Times, serve
from gpusched.timing.chains import BlockServers, Placed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ChainLoad:
    """Requests in order of arrival, shape (requests,)."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    client: Ints

    @classmethod
    def of(
        cls, arrival_s: ArrayLike, prompt: ArrayLike, output: ArrayLike, client: ArrayLike = 0
    ) -> "ChainLoad":
        """Return the requests with these columns; single lengths and clients hold for all."""
        arrivals = np.asarray(arrival_s, np.float64)
        lengths = (np.broadcast_to(np.asarray(c, np.int64), arrivals.shape) for c in (prompt, output, client))  # fmt: skip
        return cls(arrivals, *(np.array(column) for column in lengths))

    @classmethod
    def poisson(
        cls,
        count: int,
        rate_rps: float,
        prompt: int,
        output: int,
        *,
        seed: int = 0,
        clients: int = 1,
    ) -> "ChainLoad":
        """Return Poisson arrivals of equal requests, clients drawn evenly."""
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(1.0 / rate_rps, count))
        return cls.of(arrivals, prompt, output, rng.integers(0, clients, count))

    def head(self, count: int) -> "ChainLoad":
        """Return the first requests."""
        return ChainLoad(
            self.arrival_s[:count],
            self.prompt_tokens[:count],
            self.output_tokens[:count],
            self.client[:count],
        )


@dataclass(frozen=True)
class ChainResult:
    """What became of the requests; arrays have one entry a request unless told."""

    load: ChainLoad
    wait_s: Floats
    """For cache; nan if rejected, like the times below."""
    first_token_s: Floats
    finish_s: Floats
    visits: Ints
    """Where each request's visits begin, shape (requests + 1,)."""
    visit_server: Ints
    """Servers of all visits in order, shape (visits,)."""
    visit_blocks: Ints
    """Blocks run at each visit, shape (visits,)."""
    wall_s: float

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """No chain of servers has room for the request, however long it waits."""
        return np.isnan(self.finish_s)

    @property
    def visit_request(self) -> Ints:
        """The request of each visit."""
        return np.repeat(np.arange(len(self.wait_s)), np.diff(self.visits))

    @property
    def per_token_s(self) -> Floats:
        """Arrival to last token, over the output tokens (the paper's inference time)."""
        return np.asarray((self.finish_s - self.load.arrival_s) / self.load.output_tokens)


def simulate_chains(
    servers: BlockServers,
    placed: Placed,
    load: ChainLoad,
    *,
    routing: str = "ws-rr",
    retries: bool = True,
    allocation_s: float = 0.0,
) -> ChainResult:
    """Serve requests over placed blocks.

    ``retries``: clients look for cache after 1, 2, 4, ... 60, 60, ... s as PETALS' do, instead of
    being told when there is some. ``allocation_s`` is added to every request, cache held; the
    paper's public simulator has 60 s here for its own method and 250 s for PETALS.

    Raises:
        InputError: no such routing, or arrivals out of order.
    """
    if routing not in POLICIES:
        raise InputError(unknown_name("routing of chains", routing, POLICIES))
    if (np.diff(load.arrival_s) < 0).any():
        raise InputError("requests must be in order of arrival")
    requests, n = len(load.arrival_s), servers.count
    r = Requests(
        load.arrival_s, load.client, load.prompt_tokens, load.output_tokens,
        np.full(requests, np.nan), np.full(requests, np.nan), np.full(requests, np.nan),
        np.zeros(requests + 1, np.int64),
    )  # fmt: skip
    t = Times(
        servers.decode_block_s, servers.prefill_block_s, servers.decode_trip_s,
        servers.prefill_trip_s, servers.client_rtt_s, servers.server_rtt_s,
        np.full(n, np.inf), np.zeros(n), np.zeros(n), np.zeros(n, np.int64),
    )  # fmt: skip
    chains = chains_of(placed.first, placed.blocks, servers.blocks)
    held = no_reservations(placed.cache_tokens)
    visit_server, visit_blocks = (np.zeros(4 * requests + n, np.int64) for _ in range(2))
    begun = perf_counter()
    at, room, delay_s = 0, held.until_s.shape[1], servers.session_s + allocation_s
    while True:
        at = serve(
            at, r, t, chains, held, visit_server, visit_blocks, POLICIES[routing], retries, delay_s
        )
        if at == requests:
            break
        if r.visits[at] + n > len(visit_server):
            visit_server, visit_blocks = (
                np.concatenate([a, np.zeros_like(a)]) for a in (visit_server, visit_blocks)
            )
        else:
            room *= 2
            held = with_room(held, room)
    used = r.visits[-1]
    return ChainResult(
        load, r.wait_s, r.first_token_s, r.finish_s, r.visits,
        visit_server[:used].copy(), visit_blocks[:used].copy(), perf_counter() - begun,
    )  # fmt: skip
