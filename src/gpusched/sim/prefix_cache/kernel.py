"""The compiled replay: blocks of a tree of prefixes move between tiers by their worth.

A block can leave its tier only when no child is in the same or a faster one, so whatever is cached
has its whole prefix cached, at least as fast.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import cold_kernel, entry_kernel, kernel
from gpusched.policies.caching.eviction import LCS, worth

OUT = -1
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Blocks(NamedTuple):
    """The blocks, one entry each, and the tiers, from fast to slow."""

    parent: Ints
    depth: Ints
    tier: Ints
    """Where the block is, ``OUT`` if nowhere."""
    hits: Ints
    used: Ints
    """Number of the block's last use among all uses."""
    last_s: Floats
    key: Floats
    """Worth when last used or moved."""
    children: Ints
    """Children in each tier, shape (blocks, tiers)."""
    place: Ints
    """Index into ``may_leave`` of the block's tier, ``OUT`` if it may not leave."""
    may_leave: Ints
    """Blocks that may leave each tier, shape (tiers, blocks); a heap by worth, where the order does
    not change with time."""
    leaving: Ints
    """How many they are, shape (tiers,)."""
    held: Ints
    room: Ints
    entered: Ints
    """Blocks written into each tier so far."""
    clock: Floats
    """Worth of the last block that left each tier."""
    saving: Floats
    """Cost of computing a block, by depth."""
    random: NDArray[np.uint64]
    """State of the generator, shape (1,)."""


def blocks_of(parent: Ints, depth: Ints, room: Ints, saving: Floats, seed: int) -> Blocks:
    """Return an empty cache with ``room`` blocks in each tier."""
    n, tiers = len(parent), len(room)
    zeros = np.zeros(n, np.int64)
    return Blocks(
        parent, depth, zeros + OUT, zeros.copy(), zeros.copy(), np.zeros(n), np.zeros(n),
        np.zeros((n, tiers), np.int64), zeros + OUT, np.zeros((tiers, n), np.int64),
        np.zeros(tiers, np.int64), np.zeros(tiers, np.int64), room.copy(),
        np.zeros(tiers, np.int64), np.zeros(tiers), saving,
        np.array([2 * seed + 1], np.uint64),
    )  # fmt: skip


@entry_kernel
def replay(
    s, time_s, prompt_tokens, offsets, block_ids, block_tokens, change_s, change_blocks, kind,
    samples, hit_tokens, peak,
):  # fmt: skip
    """Fill hit tokens by request and tier and the most blocks held in each tier; return the number
    of blocks that left the cache.

    ``change_blocks[i]`` is the room of the last tier from ``change_s[i]`` on.
    """
    tiers = len(s.room)
    evicted, uses, change = 0, 0, 0
    for row in range(len(time_s)):
        now_s = time_s[row]
        while change < len(change_s) and change_s[change] <= now_s:
            s.room[-1] = change_blocks[change]
            change += 1
            while s.held[-1] > s.room[-1]:
                _spill(s, kind, samples, now_s, tiers - 1)
                evicted += 1
        first, end = offsets[row], offsets[row + 1]
        left = prompt_tokens[row]
        for j in range(first, end):
            b = block_ids[j]
            if s.tier[b] == OUT or left <= 0:
                break
            hit_tokens[row, s.tier[b]] += min(left, block_tokens)
            left -= block_tokens
        for j in range(first, end):
            b = block_ids[j]
            s.hits[b] += 1
            s.used[b] = uses + end - j
            s.last_s[b] = now_s
            _use(s, kind, now_s, b)
            for t in range(tiers):
                while s.held[t] > s.room[t]:
                    _spill(s, kind, samples, now_s, t)
                    evicted += t == tiers - 1
            if s.tier[b] == OUT:
                break
        uses += end - first
        for t in range(tiers):
            peak[t] = max(peak[t], s.held[t])
    return evicted


@kernel
def _use(s, kind, now_s, b):
    """Move a block to the tier of its parent, the fastest it may be in, and weigh it anew."""
    fastest = 0 if s.parent[b] < 0 else s.tier[s.parent[b]]
    if s.tier[b] == OUT or s.tier[b] > fastest:
        if s.tier[b] != OUT:
            _leave(s, kind, b)
        _enter(s, kind, now_s, b, fastest)
    elif s.place[b] != OUT:
        _withdraw(s, kind, b)
        _weigh(s, kind, now_s, b)
        _offer(s, kind, b)
    else:
        _weigh(s, kind, now_s, b)


@cold_kernel
def _spill(s, kind, samples, now_s, t):
    """Move the least worthy block of a tier to the next, or out of the last."""
    b = s.may_leave[t, 0]
    if kind == LCS:
        b = _least_of_samples(s, kind, samples, now_s, t)
    s.clock[t] = s.key[b]
    _leave(s, kind, b)
    if t + 1 < len(s.room):
        _enter(s, kind, now_s, b, t + 1)
    elif s.parent[b] >= 0:
        _review(s, kind, s.parent[b])


@kernel
def _least_of_samples(s, kind, samples, now_s, t):
    n, state = s.leaving[t], s.random[0]
    b, least = s.may_leave[t, 0], np.inf
    for i in range(min(samples, n)):
        at = i
        if samples < n:
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            at = np.int64(state % np.uint64(n))
        c = s.may_leave[t, at]
        value = worth(kind, s.hits[c], s.saving[s.depth[c]], s.used[c], s.last_s[c], now_s, 0.0)
        if value < least or (value == least and s.used[c] < s.used[b]):
            least, b = value, c
    s.random[0] = state
    return b


@cold_kernel
def _enter(s, kind, now_s, b, t):
    s.tier[b] = t
    s.held[t] += 1
    s.entered[t] += 1
    _weigh(s, kind, now_s, b)
    p = s.parent[b]
    if p >= 0:
        s.children[p, t] += 1
        _review(s, kind, p)
    _review(s, kind, b)


@cold_kernel
def _leave(s, kind, b):
    if s.place[b] != OUT:
        _withdraw(s, kind, b)
    t = s.tier[b]
    s.tier[b] = OUT
    s.held[t] -= 1
    if s.parent[b] >= 0:
        s.children[s.parent[b], t] -= 1


@kernel
def _weigh(s, kind, now_s, b):
    saving, clock = s.saving[s.depth[b]], s.clock[s.tier[b]]
    s.key[b] = worth(kind, s.hits[b], saving, s.used[b], s.last_s[b], now_s, clock)


@cold_kernel
def _review(s, kind, b):
    """Enter a block among those that may leave their tier, or take it from there."""
    if s.tier[b] == OUT:
        return
    alone = True
    for t in range(s.tier[b] + 1):
        alone &= s.children[b, t] == 0
    if alone and s.place[b] == OUT:
        _offer(s, kind, b)
    elif not alone and s.place[b] != OUT:
        _withdraw(s, kind, b)


@kernel
def _offer(s, kind, b):
    t = s.tier[b]
    s.place[b] = s.leaving[t]
    s.may_leave[t, s.leaving[t]] = b
    s.leaving[t] += 1
    if kind != LCS:
        _rise(s, t, s.place[b])


@cold_kernel
def _withdraw(s, kind, b):
    t, at = s.tier[b], s.place[b]
    s.leaving[t] -= 1
    s.place[b] = OUT
    if at == s.leaving[t]:
        return
    moved = s.may_leave[t, s.leaving[t]]
    s.may_leave[t, at] = moved
    s.place[moved] = at
    if kind != LCS:
        _rise(s, t, at)
        _sink(s, t, s.place[moved])


@kernel
def _before(s, a, b):
    return s.key[a] < s.key[b] or (s.key[a] == s.key[b] and s.used[a] < s.used[b])


@kernel
def _rise(s, t, at):
    b = s.may_leave[t, at]
    while at > 0 and _before(s, b, s.may_leave[t, (at - 1) >> 1]):
        s.may_leave[t, at] = s.may_leave[t, (at - 1) >> 1]
        s.place[s.may_leave[t, at]] = at
        at = (at - 1) >> 1
    s.may_leave[t, at] = b
    s.place[b] = at


@kernel
def _sink(s, t, at):
    b, n = s.may_leave[t, at], s.leaving[t]
    while 2 * at + 1 < n:
        child = 2 * at + 1
        if child + 1 < n and _before(s, s.may_leave[t, child + 1], s.may_leave[t, child]):
            child += 1
        if not _before(s, s.may_leave[t, child], b):
            break
        s.may_leave[t, at] = s.may_leave[t, child]
        s.place[s.may_leave[t, at]] = at
        at = child
    s.may_leave[t, at] = b
    s.place[b] = at
