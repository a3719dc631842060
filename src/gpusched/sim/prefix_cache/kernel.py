"""The compiled replay: blocks of a tree of prefixes move between tiers by their worth.

A block can leave its tier only when no child is in the same or a faster one, so whatever is cached
has its whole prefix cached, at least as fast. ``free_of`` lists each tier's blocks that can leave,
as a heap by worth where the order does not change with time.
"""

import numba
import numpy as np

from gpusched.policies.caching.eviction import LCS, worth

OUT = -1


@numba.njit(cache=True)
def replay(
    time_s, prompt_tokens, offsets, block_ids, parent, depth, block_tokens, saving, tier_blocks,
    change_s, change_blocks, kind, samples, seed,
):  # fmt: skip
    """Return hit tokens by request and tier, blocks that entered each tier, blocks that left the
    cache, and the most blocks held in each tier.

    ``change_blocks[i]`` is the size of the last tier from ``change_s[i]`` on.
    """
    blocks, tiers = len(parent), len(tier_blocks)
    room = tier_blocks.copy()
    tier = np.full(blocks, OUT, np.int64)
    hits = np.zeros(blocks, np.int64)
    used = np.zeros(blocks, np.int64)
    last_s = np.zeros(blocks)
    key = np.zeros(blocks)
    children = np.zeros((blocks, tiers), np.int64)
    place = np.full(blocks, OUT, np.int64)
    free_of = np.empty((tiers, blocks), np.int64)
    n_free = np.zeros(tiers, np.int64)
    held = np.zeros(tiers, np.int64)
    peak = np.zeros(tiers, np.int64)
    entered = np.zeros(tiers, np.int64)
    clock = np.zeros(tiers)
    hit_tokens = np.zeros((len(time_s), tiers), np.int64)
    state = np.uint64(seed * 2 + 1)
    evicted, uses, change = 0, 0, 0
    s = (tier, hits, used, last_s, key, children, place, free_of, n_free, held, clock)
    for row in range(len(time_s)):
        now_s = time_s[row]
        while change < len(change_s) and change_s[change] <= now_s:
            room[-1] = change_blocks[change]
            change += 1
            while held[-1] > room[-1]:
                state = _spill(
                    s, parent, depth, saving, room, entered, kind, samples, state, now_s, tiers - 1
                )
                evicted += 1
        first, end = offsets[row], offsets[row + 1]
        left = prompt_tokens[row]
        for j in range(first, end):
            b = block_ids[j]
            if tier[b] == OUT or left <= 0:
                break
            hit_tokens[row, tier[b]] += min(left, block_tokens)
            left -= block_tokens
        for j in range(first, end):
            b = block_ids[j]
            hits[b] += 1
            used[b] = uses + end - j
            last_s[b] = now_s
            fastest = 0 if parent[b] < 0 else tier[parent[b]]
            if tier[b] == OUT or tier[b] > fastest:
                if tier[b] != OUT:
                    _leave(s, parent, kind, b)
                _enter(s, parent, depth, saving, kind, now_s, b, fastest)
                entered[fastest] += 1
            elif place[b] != OUT:
                _withdraw(s, kind, b)
                _weigh(s, depth, saving, kind, now_s, b)
                _offer(s, kind, b)
            else:
                _weigh(s, depth, saving, kind, now_s, b)
            for t in range(tiers):
                while held[t] > room[t]:
                    state = _spill(
                        s, parent, depth, saving, room, entered, kind, samples, state, now_s, t
                    )
                    if t == tiers - 1:
                        evicted += 1
            if tier[b] == OUT:
                break
        uses += end - first
        for t in range(tiers):
            peak[t] = max(peak[t], held[t])
    return hit_tokens, entered, evicted, peak, tier


@numba.njit(cache=True)
def _spill(s, parent, depth, saving, room, entered, kind, samples, state, now_s, t):
    """Move the least worthy block of a tier to the next, or out of the last."""
    _, hits, used, last_s, key, _, _, free_of, n_free, _, clock = s
    b = free_of[t, 0]
    if kind == LCS:
        least = np.inf
        for i in range(min(samples, n_free[t])):
            at = i
            if samples < n_free[t]:
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                at = np.int64(state % np.uint64(n_free[t]))
            c = free_of[t, at]
            w = worth(kind, hits[c], saving[depth[c]], used[c], last_s[c], now_s, 0.0)
            if w < least or (w == least and used[c] < used[b]):
                least, b = w, c
    clock[t] = key[b]
    _leave(s, parent, kind, b)
    if t + 1 < len(room):
        _enter(s, parent, depth, saving, kind, now_s, b, t + 1)
        entered[t + 1] += 1
    elif parent[b] >= 0:
        _review(s, kind, parent[b])
    return state


@numba.njit(cache=True)
def _enter(s, parent, depth, saving, kind, now_s, b, t):
    tier, _, _, _, _, children, _, _, _, held, _ = s
    tier[b] = t
    held[t] += 1
    _weigh(s, depth, saving, kind, now_s, b)
    p = parent[b]
    if p >= 0:
        children[p, t] += 1
        _review(s, kind, p)
    _review(s, kind, b)


@numba.njit(cache=True)
def _weigh(s, depth, saving, kind, now_s, b):
    """Set a block's worth in its tier."""
    tier, hits, used, last_s, key, _, _, _, _, _, clock = s
    key[b] = worth(kind, hits[b], saving[depth[b]], used[b], last_s[b], now_s, clock[tier[b]])


@numba.njit(cache=True)
def _leave(s, parent, kind, b):
    tier, _, _, _, _, children, place, _, _, held, _ = s
    if place[b] != OUT:
        _withdraw(s, kind, b)
    t = tier[b]
    tier[b] = OUT
    held[t] -= 1
    if parent[b] >= 0:
        children[parent[b], t] -= 1


@numba.njit(cache=True)
def _review(s, kind, b):
    """Put a block among those that may leave their tier, or take it from there."""
    tier, _, _, _, _, children, place, _, _, _, _ = s
    if tier[b] == OUT:
        return
    alone = True
    for t in range(tier[b] + 1):
        alone &= children[b, t] == 0
    if alone and place[b] == OUT:
        _offer(s, kind, b)
    elif not alone and place[b] != OUT:
        _withdraw(s, kind, b)


@numba.njit(cache=True)
def _offer(s, kind, b):
    """Add a block to its tier's heap by worth."""
    tier, _, _, _, _, _, place, free_of, n_free, _, _ = s
    t = tier[b]
    place[b] = n_free[t]
    free_of[t, n_free[t]] = b
    n_free[t] += 1
    if kind != LCS:
        _rise(s, t, place[b])


@numba.njit(cache=True)
def _withdraw(s, kind, b):
    """Take a block from its tier's heap."""
    tier, _, _, _, _, _, place, free_of, n_free, _, _ = s
    t = tier[b]
    at = place[b]
    n_free[t] -= 1
    place[b] = OUT
    if at == n_free[t]:
        return
    moved = free_of[t, n_free[t]]
    free_of[t, at] = moved
    place[moved] = at
    if kind != LCS:
        _rise(s, t, at)
        _sink(s, t, place[moved])


@numba.njit(cache=True)
def _before(s, a, b):
    _, _, used, _, key, _, _, _, _, _, _ = s
    return key[a] < key[b] or (key[a] == key[b] and used[a] < used[b])


@numba.njit(cache=True)
def _rise(s, t, at):
    _, _, _, _, _, _, place, free_of, _, _, _ = s
    b = free_of[t, at]
    while at > 0 and _before(s, b, free_of[t, (at - 1) >> 1]):
        free_of[t, at] = free_of[t, (at - 1) >> 1]
        place[free_of[t, at]] = at
        at = (at - 1) >> 1
    free_of[t, at] = b
    place[b] = at


@numba.njit(cache=True)
def _sink(s, t, at):
    _, _, _, _, _, _, place, free_of, n_free, _, _ = s
    b, n = free_of[t, at], n_free[t]
    while 2 * at + 1 < n:
        child = 2 * at + 1
        if child + 1 < n and _before(s, free_of[t, child + 1], free_of[t, child]):
            child += 1
        if not _before(s, free_of[t, child], b):
            break
        free_of[t, at] = free_of[t, child]
        place[free_of[t, at]] = at
        at = child
    free_of[t, at] = b
    place[b] = at
