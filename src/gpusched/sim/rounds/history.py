"""Histories: KV cache of a session that stays on its decode engine between rounds.

A history that no running request holds may be evicted, least recently used first, whole, whenever
the engine needs blocks. That includes the histories of rounds that wait; only while one is being
shipped to a prefill engine is it safe. On engines that keep histories ``evictable`` counts their
blocks, a prefix block being one KV block there.
"""

from gpusched.compilation import cold_kernel, kernel, kernel_where
from gpusched.sim.state import DECODE_ONLY, NONE


@kernel
def link_newest(s, d, i):
    """Make a session's history evictable, last of all."""
    session = s.rounds.sessions[i]
    worker = s.rounds.workers[d]
    session.older = worker.newest
    session.newer = NONE
    if worker.newest == NONE:
        worker.oldest = i
    else:
        s.rounds.sessions[worker.newest].newer = i
    worker.newest = i
    s.engines[d].evictable += session.blocks


@kernel
def unlink(s, d, i):
    """Let nobody evict a session's history."""
    session = s.rounds.sessions[i]
    worker = s.rounds.workers[d]
    if session.older == NONE:
        worker.oldest = session.newer
    else:
        s.rounds.sessions[session.older].newer = session.newer
    if session.newer == NONE:
        worker.newest = session.older
    else:
        s.rounds.sessions[session.newer].older = session.older
    s.engines[d].evictable -= session.blocks


@cold_kernel
def drop(s, d, i):
    """Give up an evictable history."""
    session = s.rounds.sessions[i]
    unlink(s, d, i)
    s.engines[d].free += session.blocks
    session.tokens = 0
    session.blocks = 0


def nothing_kept(s, e):
    """Without histories there is none to evict."""
    return False


@kernel_where("rounds", nothing_kept)
def evict_history(s, e):
    """Evict the history used least recently, on an engine that keeps some; tell whether it does."""
    oldest = s.rounds.workers[e].oldest
    if s.engines[e].role != DECODE_ONLY or oldest == NONE:
        return False
    drop(s, e, oldest)
    s.rounds.workers[e].evictions += 1
    return True


def computed_tokens(s, e, r):
    """Without histories, what a request brings with it is a computed prompt."""
    computed = s.requests[r].computed
    return computed, 0, computed > 0


@kernel_where("rounds", computed_tokens)
def at_hand(s, e, r):
    """KV tokens of a waiting request that need not be computed, the blocks on this engine that hold
    them, and whether they are all that it needs to decode.

    On a prefill engine they are the history that was shipped there. On a decode engine a history
    may be gone by now: the request then starts anew.
    """
    request = s.requests[r]
    computed = request.computed
    if s.engines[e].role != DECODE_ONLY or s.rounds.relied[r] == 0:
        return computed, 0, computed > 0 and request.produced > 0
    session = s.rounds.sessions[request.session]
    if session.tokens == s.rounds.relied[r]:
        past = computed if computed > 0 else session.tokens
        return past, session.blocks, computed > 0
    s.rounds.relied[r] = 0
    s.rounds.evicted[r] = True
    request.computed = 0
    return request.computed, 0, False


def hold_nothing(s, e, r):
    """Without histories, blocks at hand are those of a prefix cache."""
    return False


@kernel_where("rounds", hold_nothing)
def hold_history(s, e, r):
    """Make a session's history part of the request that is admitted; tell whether it has one here."""
    if s.engines[e].role != DECODE_ONLY or s.rounds.relied[r] == 0:
        return False
    i = s.requests[r].session
    unlink(s, e, i)
    s.rounds.sessions[i].tokens = 0
    s.rounds.sessions[i].blocks = 0
    s.rounds.relied[r] = 0
    return True
