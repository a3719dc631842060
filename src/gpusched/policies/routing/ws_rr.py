"""WS-RR: waiting-penalised shortest-path request routing over servers with blocks (arXiv 2512.21884).

A server runs its blocks to the last, so a chain is a walk over block boundaries: server j takes it
from any boundary b in ``[first_j, end_j)`` to ``end_j``, at a cost that depends on b and j alone. So
boundaries, not servers, are the nodes of the graph, it has no cycle, and one pass over the servers
in order of ``end`` finds the cheapest chain.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import kernel
from gpusched.policies.routing.reservations import end_until, free_cache, wait_for_cache

WS_RR, EXACT, PETALS = 0, 1, 2
POLICIES = {"ws-rr": WS_RR, "ws-rr-exact": EXACT, "petals": PETALS}

PETALS_HOP_S = 0.018
"""What PETALS adds for serialising activations at each hop."""
PETALS_FULL_S = 10.0
"""What PETALS adds for a server whose cache is short."""
PETALS_UNKNOWN_RTT_S = 0.15
PETALS_LONGEST_RTT_S = 5.0


class Chains(NamedTuple):
    """Placed blocks as the router sees them, and its scratch space. Shapes are (n,) unless told."""

    order: NDArray[np.int64]
    """Servers with blocks by their end, then number; shape (used,)."""
    first: NDArray[np.int64]
    end: NDArray[np.int64]
    cost_s: NDArray[np.float64]
    """Cheapest way to each boundary, shape (blocks + 1,)."""
    by: NDArray[np.int64]
    """The server that reaches each boundary on that way, shape (blocks + 1,)."""
    start: NDArray[np.int64]
    """The boundary it starts at, shape (blocks + 1,)."""
    path: NDArray[np.int64]
    """Servers of the chain found, in order."""
    path_blocks: NDArray[np.int64]
    """Blocks each of them runs."""
    best_path: NDArray[np.int64]
    best_blocks: NDArray[np.int64]


def chains_of(first: NDArray[np.int64], blocks: NDArray[np.int64], total: int) -> Chains:
    """Return the chains over ``total`` blocks where server j holds ``blocks[j]`` from ``first[j]``."""
    n, end = len(first), first + blocks
    used = np.flatnonzero(blocks > 0)
    return Chains(
        used[np.argsort(end[used], kind="stable")].astype(np.int64),
        np.asarray(first, np.int64),
        np.asarray(end, np.int64),
        np.zeros(total + 1),
        *(np.zeros(total + 1, np.int64) for _ in range(2)),
        *(np.zeros(n, np.int64) for _ in range(4)),
    )


@kernel
def retried_s(wait_s):
    """Return when a client that retries after 1, 2, 4, ... 60, 60, ... s finds what is free after
    ``wait_s`` (PETALS)."""
    instant, delay = 0.0, 1.0
    while instant < wait_s:
        instant += delay
        delay = min(2.0 * delay, 60.0)
    return instant


@kernel
def cheapest_chain(g, held, trip_s, block_s, tokens, now_s, longest_wait_s, penalty):
    """Find the chain of least visits' time plus ``penalty`` x the sum of waits, among those without
    a wait above ``longest_wait_s``. Return its length in servers, 0 if there is none."""
    total = len(g.cost_s) - 1
    for boundary in range(total + 1):
        g.cost_s[boundary] = np.inf
    g.cost_s[0] = 0.0
    for at in range(len(g.order)):
        j = g.order[at]
        end = g.end[j]
        for b in range(end - 1, g.first[j] - 1, -1):
            # what costs more without waits need not be looked at
            bare = g.cost_s[b] + trip_s[j] + block_s[j] * (end - b)
            if not bare < g.cost_s[end]:
                continue
            wait = wait_for_cache(held, j, tokens * (end - b), now_s)
            if wait > longest_wait_s or wait == np.inf:
                break
            cost = bare + penalty * wait
            if cost < g.cost_s[end]:
                g.cost_s[end] = cost
                g.by[end] = j
                g.start[end] = b
    if g.cost_s[total] == np.inf:
        return 0
    return _trace(g, total)


@kernel
def _trace(g, total):
    length, boundary = 0, total
    while boundary > 0:
        length += 1
        boundary = g.start[boundary]
    boundary = total
    for at in range(length - 1, -1, -1):
        g.path[at] = g.by[boundary]
        g.path_blocks[at] = boundary - g.start[boundary]
        boundary = g.start[boundary]
    return length


@kernel
def chain_wait(g, held, tokens, now_s, length):
    """Return the wait of the chain found: the longest of its servers', as a request asks for the
    caches of all of them at once."""
    wait = 0.0
    for at in range(length):
        wait = max(wait, wait_for_cache(held, g.path[at], tokens * g.path_blocks[at], now_s))
    return wait


@kernel
def chain_visits(g, trip_s, block_s, length):
    """Return the time of the visits of the chain found."""
    total = 0.0
    for at in range(length):
        total += trip_s[g.path[at]] + block_s[g.path[at]] * g.path_blocks[at]
    return total


@kernel
def soonest_chain(g, held, trip_s, block_s, tokens, now_s, retries):
    """Find the chain that ends soonest: visits plus the longest wait, as ``retries`` has it.

    Two criteria, of which one is a maximum: the least visits' time without a wait above W only grows
    as W falls, so W goes down from wait to wait of the chains found, until visits alone take longer
    than the best. Exact, unlike the sum of waits.
    """
    best, best_length, longest = np.inf, 0, np.inf
    while True:
        length = cheapest_chain(g, held, trip_s, block_s, tokens, now_s, longest, 0.0)
        if length == 0:
            break
        visits = chain_visits(g, trip_s, block_s, length)
        if visits >= best:
            break
        wait = chain_wait(g, held, tokens, now_s, length)
        ends = visits + (retried_s(wait) if retries else wait)
        if ends < best:
            best, best_length = ends, length
            for at in range(length):
                g.best_path[at], g.best_blocks[at] = g.path[at], g.path_blocks[at]
        if wait == 0.0:
            break
        longest = np.nextafter(wait, 0.0)
    for at in range(best_length):
        g.path[at], g.path_blocks[at] = g.best_path[at], g.best_blocks[at]
    return best_length


@kernel
def petals_chain(
    g, held, trip_s, client_rtt_s, server_rtt_s, client, decode_block_s, tokens, petals
):
    """Find the chain that PETALS takes: least half round trips, hops and decode time of one token,
    with a penalty for servers short of cache. ``petals`` are scratch (costs, previous servers).

    PETALS takes activations to go from server to server; what the trips cost in fact is another
    matter.
    """
    cost_s, previous = petals
    total = len(g.cost_s) - 1
    last, least = -1, np.inf
    for at in range(len(g.order)):
        j = g.order[at]
        cost_s[j] = np.inf
        if trip_s[j] == np.inf:
            continue
        held_up = 0.0
        if tokens * (g.end[j] - g.first[j]) > free_cache(held, j):
            held_up = PETALS_FULL_S
        if g.first[j] == 0:
            cost_s[j] = _half_rtt(client_rtt_s[client, j]) + PETALS_HOP_S + held_up
            cost_s[j] += decode_block_s[j] * g.end[j]
            previous[j] = -1
        for before in range(at):
            i = g.order[before]
            if g.first[j] <= g.end[i] < g.end[j]:
                cost = cost_s[i] + _half_rtt(server_rtt_s[i, j]) + PETALS_HOP_S + held_up
                cost += decode_block_s[j] * (g.end[j] - g.end[i])
                if cost < cost_s[j]:
                    cost_s[j] = cost
                    previous[j] = i
        if g.end[j] == total:
            cost = cost_s[j] + _half_rtt(client_rtt_s[client, j])
            if cost < least:
                least = cost
                last = j
    length, j = 0, last
    while j >= 0:
        length += 1
        j = previous[j]
    j = last
    for at in range(length - 1, -1, -1):
        g.path[at] = j
        begin = g.end[previous[j]] if previous[j] >= 0 else 0
        g.path_blocks[at] = g.end[j] - begin
        j = previous[j]
    return length


@kernel
def _half_rtt(rtt_s):
    if np.isnan(rtt_s):
        rtt_s = PETALS_UNKNOWN_RTT_S
    return min(rtt_s, PETALS_LONGEST_RTT_S) / 2.0


@kernel
def route(
    policy, g, held, trip_s, block_s, tokens, now_s, retries,
    client_rtt_s, server_rtt_s, client, decode_block_s, petals,
):  # fmt: skip
    """Return the length of the chain that a policy chooses; the chain is in ``g.path``."""
    for at in range(len(g.order)):
        end_until(held, g.order[at], now_s)
    if policy == WS_RR:
        return cheapest_chain(g, held, trip_s, block_s, tokens, now_s, np.inf, 1.0)
    if policy == EXACT:
        return soonest_chain(g, held, trip_s, block_s, tokens, now_s, retries)
    return petals_chain(
        g, held, trip_s, client_rtt_s, server_rtt_s, client, decode_block_s, tokens, petals
    )
