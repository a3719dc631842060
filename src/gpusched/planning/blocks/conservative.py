"""CG-BP: conservative greedy block placement, its guarantee, and the concurrency it is made for."""

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.chain import cheapest_chain_s
from gpusched.timing.chains import SLACK, BlockServers, Floats, Ints, Placed

VIRTUAL_S = 1e-3
"""How much slower than the slowest server a block counts that nobody holds (the paper's 1 ms)."""


@dataclass(frozen=True)
class Conservative:
    """A placement that keeps cache for ``concurrency`` requests beside every block."""

    placed: Placed
    concurrency: int
    order: Ints
    """Servers as they were placed: by least time of a block, trip included."""
    deciding: int
    """So many first servers of the order hold every block ``concurrency`` times (K)."""
    bound_s: float
    """No request takes longer for a token, by routing over these, while no more than ``concurrency``
    are in flight."""


def blocks_held(servers: BlockServers, concurrency: float, tokens: float) -> Ints:
    """Return how many blocks fit in each server with cache for ``concurrency`` requests of
    ``tokens`` tokens on every one of them, shape (n,)."""
    of_block = servers.block_bytes + concurrency * servers.cache_bytes(tokens)
    fits = np.floor(servers.memory_bytes / of_block * (1 + SLACK))
    reachable = np.isfinite(servers.decode_trip_s).any(axis=0)
    return np.where(reachable, np.clip(fits, 0, servers.blocks), 0).astype(np.int64)


def place_conservatively(servers: BlockServers, concurrency: int, tokens: float) -> Conservative:
    """Place blocks greedily, nearest and fastest servers first, for ``concurrency`` requests of
    ``tokens`` tokens of prompt and output.

    ``blocks`` fixes how many each server holds (PETALS' number, for one); a server without any is
    left out. A server's time is that of its farthest client.

    Raises:
        InfeasibleError: some block is held for fewer requests.
    """
    total = servers.blocks
    held = blocks_held(servers, concurrency, tokens)
    room = servers.cache_room(held)
    used = np.flatnonzero(held > 0)
    sessions = np.floor(room / np.maximum(tokens * held, 1) * (1 + SLACK)).astype(np.int64)
    token_s = _token_s(servers, held)
    block_s = np.full(servers.count, np.inf)
    block_s[used] = token_s[used] / held[used]
    order = used[np.argsort(block_s[used], kind="stable")]
    virtual_s = float(block_s[used].max(initial=0.0)) + VIRTUAL_S
    capacity = np.zeros(total, np.int64)
    unserved_s = np.full(total, concurrency * virtual_s)
    first = np.zeros(servers.count, np.int64)
    deciding = 0
    for place, j in enumerate(order):
        size = int(held[j])
        if (capacity < concurrency).any():
            begin = _slowest_window(unserved_s, capacity < concurrency, size)
        else:
            begin = least_window(capacity, size)
        window = slice(begin, begin + size)
        first[j] = begin
        helped = np.minimum(np.maximum(concurrency - capacity[window], 0), sessions[j])
        unserved_s[window] -= (virtual_s - block_s[j]) * helped
        capacity[window] += sessions[j]
        if not deciding and (capacity >= concurrency).all():
            deciding = place + 1
    if not deciding:
        worst = int(np.argmin(capacity))
        raise InfeasibleError(
            f"memory: block {worst} of {total} has cache for {int(capacity[worst])} requests at once "
            f"where {concurrency} are to fit; {int(held.sum())} places for blocks in {len(used)} "
            f"servers in all"
        )
    nearest = order[:deciding]
    spare = int(held[nearest].sum()) - total
    bound = float(token_s[nearest].sum() - servers.decode_block_s[nearest[-1]] * spare)
    placed = Placed(first, held.copy(), room)
    return Conservative(placed, concurrency, order, deciding, bound)


def _token_s(servers: BlockServers, held: Ints) -> Floats:
    """Return the time of a token through all blocks of each server, from its farthest client."""
    trip = np.where(np.isfinite(servers.decode_trip_s), servers.decode_trip_s, 0.0).max(axis=0)
    return np.asarray(trip + servers.decode_block_s * held)


def _slowest_window(unserved_s: Floats, short: NDArray[np.bool_], size: int) -> int:
    """Return the first window with the largest sum among those with a block that is short."""
    sums = np.concatenate(([0.0], np.cumsum(unserved_s)))
    shorts = np.concatenate(([0], np.cumsum(short)))
    window_s = sums[size:] - sums[:-size]
    window_s[shorts[size:] == shorts[:-size]] = -np.inf
    top = float(window_s.max())
    return int(np.argmax(window_s >= top - 1e-9 * abs(top)))


def least_window(values: NDArray[np.generic], size: int) -> int:
    """Return the first window of ``size`` whose sorted values are lexicographically least."""
    windows = np.sort(sliding_window_view(values, size), axis=1)
    return int(np.lexsort(windows.T[::-1])[0])


def most_concurrency(servers: BlockServers, tokens: float) -> int:
    """Return how many requests the memory of all servers could hold, each server one block more
    than it needs (R_max of the paper); below 1 if the blocks do not fit."""
    slots = servers.blocks + servers.count
    left = float(servers.memory_bytes.sum()) - servers.block_bytes * slots
    return int(np.floor(left / (servers.cache_bytes(tokens) * slots) * (1 + SLACK)))


def in_flight(rate_rps: float, lone_s: float) -> int:
    """Return the requests in flight: mean and one standard deviation of Poisson arrivals at
    ``rate_rps`` that each stay ``lone_s``."""
    mean = rate_rps * lone_s
    return max(int(np.floor(mean + sqrt(mean) + 0.5)), 1)


def lone_request_s(
    servers: BlockServers, prompt: float, output: float, *, client: int | None = None
) -> float:
    """Return the time of a single request on the placement for one, the farthest client's unless
    ``client`` is given (T_1)."""
    placed = place_conservatively(servers, 1, prompt + output).placed
    clients = range(servers.clients) if client is None else (client,)
    return servers.session_s + max(
        cheapest_chain_s(servers, placed, servers.request_s(c, prompt, output)) for c in clients
    )


def place_for_rate(
    servers: BlockServers, rate_rps: float, prompt: float, output: float
) -> Conservative:
    """Place blocks for the requests in flight at a rate, as far as memory goes.

    Where memory does not reach, the largest smaller concurrency that fits is found by bisection.

    Raises:
        InfeasibleError: not even one request fits.
    """
    tokens = prompt + output
    lone_s = lone_request_s(servers, prompt, output)
    wanted = min(in_flight(rate_rps, lone_s), max(most_concurrency(servers, tokens), 1))
    return place_for_most(servers, wanted, tokens)


def place_for_most(servers: BlockServers, wanted: int, tokens: float) -> Conservative:
    """Return the placement for ``wanted`` requests, or for as many as bisection finds to fit.

    Raises:
        InfeasibleError: not even one request fits.
    """
    try:
        return place_conservatively(servers, wanted, tokens)
    except InfeasibleError:
        best = place_conservatively(servers, 1, tokens)
    low, high = 1, wanted
    while high - low > 1:
        middle = (low + high) // 2
        try:
            best = place_conservatively(servers, middle, tokens)
            low = middle
        except InfeasibleError:
            high = middle
    return replace(best, concurrency=low)
