"""KV blocks of an engine: allocation, growth while decoding, and the prefix cache.

A prefix block is shared by all requests that hold it and stays cached, least recently used first
to go, when nobody does. A request registers the prefix blocks it fills until it meets one that
another request has registered meanwhile; the rest of its KV cache is private.
"""

from gpusched.compilation import kernel
from gpusched.policies.batching.discipline import STATIC
from gpusched.sim.rounds.history import evict_history
from gpusched.sim.state import NONE


@kernel
def blocks_for(engine, tokens):
    """KV blocks that hold this many tokens."""
    return (tokens + (1 << engine.block_shift) - 1) >> engine.block_shift


@kernel
def available(engine):
    """Blocks that can be had, cached ones included."""
    return engine.free + engine.evictable * engine.prefix_blocks


@kernel
def allocate(s, e, count):
    """Take blocks that are known to be available, evicting cached prefixes if need be."""
    engine = s.engines[e]
    engine.free -= count
    while engine.free < 0:
        if evict_history(s, e):
            continue
        block = engine.lru_head
        _unlink(s, e, block)
        s.cache[e, block].holders = -1
        engine.evictable -= 1
        engine.free += engine.prefix_blocks
    used = engine.kv_blocks - available(engine)
    if used > engine.peak_blocks:
        engine.peak_blocks = used


@kernel
def _unlink(s, e, block):
    engine = s.engines[e]
    entry = s.cache[e, block]
    if entry.previous == NONE:
        engine.lru_head = entry.next
    else:
        s.cache[e, entry.previous].next = entry.next
    if entry.next == NONE:
        engine.lru_tail = entry.previous
    else:
        s.cache[e, entry.next].previous = entry.previous


@kernel
def prefix_hits(s, e, r, tokens):
    """Leading prefix blocks of a request's first ``tokens`` tokens that are cached, and how many
    of them nobody holds."""
    engine = s.engines[e]
    if engine.prefix_blocks == 0:
        return 0, 0
    first = s.prefix_offsets[r]
    limit = min(s.prefix_offsets[r + 1] - first, tokens // engine.prefix_tokens)
    hits = 0
    idle = 0
    while hits < limit:
        holders = s.cache[e, s.prefix_ids[first + hits]].holders
        if holders < 0:
            break
        if holders == 0:
            idle += 1
        hits += 1
    return hits, idle


@kernel
def hold_prefix(s, e, r, hits):
    """Hold the leading cached blocks that ``prefix_hits`` found."""
    engine = s.engines[e]
    first = s.prefix_offsets[r]
    for j in range(first, first + hits):
        block = s.prefix_ids[j]
        entry = s.cache[e, block]
        if entry.holders == 0:
            _unlink(s, e, block)
            engine.evictable -= 1
        entry.holders += 1
    s.requests[r].shared = hits


@kernel
def register_prefix(s, e, r, tokens):
    """Enter the prefix blocks that lie within a request's first ``tokens`` tokens."""
    engine = s.engines[e]
    if engine.prefix_blocks == 0:
        return
    request = s.requests[r]
    first = s.prefix_offsets[r]
    limit = min(s.prefix_offsets[r + 1] - first, tokens // engine.prefix_tokens)
    while request.shared < limit:
        entry = s.cache[e, s.prefix_ids[first + request.shared]]
        if entry.holders >= 0:
            break
        entry.holders = 1
        request.shared += 1


@kernel
def release(s, e, r, tokens):
    """Give back the blocks of a request that holds ``tokens`` tokens, deepest prefix first."""
    engine = s.engines[e]
    request = s.requests[r]
    engine.free += blocks_for(engine, tokens) - request.shared * engine.prefix_blocks
    first = s.prefix_offsets[r]
    for j in range(first + request.shared - 1, first - 1, -1):
        block = s.prefix_ids[j]
        entry = s.cache[e, block]
        entry.holders -= 1
        if entry.holders == 0:
            entry.previous = engine.lru_tail
            entry.next = NONE
            if engine.lru_tail == NONE:
                engine.lru_head = block
            else:
                s.cache[e, engine.lru_tail].next = block
            engine.lru_tail = block
            engine.evictable += 1
    request.shared = 0


@kernel
def growth(s, e, step, steps):
    """Blocks that decoding requests need over ``steps`` steps from ``step`` on."""
    engine = s.engines[e]
    if engine.forming == STATIC:
        return 0
    mask = (1 << engine.block_shift) - 1
    total = (steps >> engine.block_shift) * engine.decoding
    for i in range(steps & mask):
        total += s.phases[e, -(step + i) & mask]
    return total


@kernel
def steps_within(s, e, left, limit):
    """Steps, at most ``limit``, for which ``left`` blocks suffice, the first one's being allocated."""
    engine = s.engines[e]
    if engine.forming == STATIC:
        return limit
    shift = engine.block_shift
    if engine.decoding * ((limit >> shift) + 1) <= left:
        return limit
    mask = (1 << shift) - 1
    cycles = left // engine.decoding
    left -= cycles * engine.decoding
    steps = 1 + (cycles << shift)
    while steps < limit:
        left -= s.phases[e, -(engine.step + steps) & mask]
        if left < 0:
            break
        steps += 1
    return min(steps, limit)
