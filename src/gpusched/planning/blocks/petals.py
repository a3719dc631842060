"""How PETALS chooses blocks: number by memory, window by throughput, servers as they join; and the
check whether it pays to move (PETALS, arXiv 2209.01188 and its source)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpusched.planning.blocks.conservative import least_window
from gpusched.timing.chains import BlockServers, Floats, Ints, Placed

GIB = 2.0**30
CACHE_TOKENS, CACHE_TOKENS_GROUPED = 4096, 16384
"""Tokens for which every block keeps cache: with all heads, and with grouped ones."""
BALANCE_QUALITY = 0.75
"""A move must raise the lowest throughput so that old/new is below this."""
NOISE = 1e-3


@dataclass(frozen=True)
class PetalsRates:
    """What PETALS measures on each server, requests a second, shape (n,)."""

    forward_rps: Floats
    """Of one block."""
    network_rps: Floats

    def throughput_rps(self, blocks: Ints) -> Floats:
        """Return a server's throughput while it holds ``blocks`` blocks, of which requests pass half
        on average."""
        return np.minimum(self.forward_rps / ((1 + blocks) / 2), self.network_rps)


def petals_blocks(servers: BlockServers, hidden: int, cache_tokens: int = CACHE_TOKENS) -> Ints:
    """Return how many blocks PETALS puts in each server, shape (n,): memory but for a reserve that
    goes by the hidden size, over a block with cache for ``cache_tokens`` tokens."""
    reserve = 2 * GIB * hidden / 14336
    of_block = servers.block_bytes + cache_tokens * servers.cache_token_bytes
    reachable = np.isfinite(servers.decode_trip_s).any(axis=0)
    fits = np.clip(np.floor((servers.memory_bytes - reserve) / of_block), 0, servers.blocks)
    return np.where(reachable, fits, 0).astype(np.int64)


def place_as_petals(
    servers: BlockServers,
    blocks: Ints,
    rates: PetalsRates,
    joining: Sequence[int],
    *,
    cache_tokens: Ints | int = CACHE_TOKENS,
) -> Placed:
    """Place servers in the order they join, each where throughput is lowest.

    Each offers cache for ``cache_tokens`` tokens a block it holds and leaves the rest of its memory
    unused, or the tokens x blocks of an array, shape (n,).
    """
    throughput = rates.throughput_rps(blocks)
    total = np.zeros(servers.blocks)
    first = np.zeros(servers.count, np.int64)
    for j in joining:
        if blocks[j] > 0:
            first[j] = least_window(total, int(blocks[j]))
            total[first[j] : first[j] + blocks[j]] += throughput[j]
    room = cache_tokens * blocks if isinstance(cache_tokens, int) else cache_tokens
    return Placed(first, blocks.copy(), np.asarray(room, np.int64))


def should_move(
    servers: BlockServers,
    placed: Placed,
    rates: PetalsRates,
    server: int,
    *,
    balance_quality: float = BALANCE_QUALITY,
    seed: int = 0,
) -> bool:
    """Tell whether PETALS' periodic check has a server choose other blocks: whether the lowest
    throughput would rise enough once it moves and all others follow until nobody moves."""
    throughput = rates.throughput_rps(placed.blocks)
    first, end = placed.first.copy(), placed.end
    total = np.zeros(servers.blocks)
    used = np.flatnonzero(placed.blocks > 0)
    for j in used:
        total[first[j] : end[j]] += throughput[j]
    lowest = float(total.min())

    def move(j: int) -> bool:
        size, rate = int(placed.blocks[j]), throughput[j]
        total[first[j] : first[j] + size] -= rate * (1 + NOISE)
        if j == server and lowest > NOISE and total.min() <= 0:
            total[first[j] : first[j] + size] += rate * (1 + NOISE)
            return False
        begin = least_window(total, size)
        total[first[j] : first[j] + size] += rate * NOISE
        moved = bool(begin != first[j])
        first[j] = begin
        total[begin : begin + size] += rate
        return moved

    if not move(server):
        return False
    rng = np.random.default_rng(seed)
    for _ in range(100):
        if not any([move(int(j)) for j in rng.permutation(used)]):
            break
    after = float(total.min())
    if after < lowest or after < NOISE:
        return False
    return bool(lowest / after < balance_quality - NOISE)
