"""What a round leaves behind: its engine's window and queue brought up to date, its history kept."""

from gpusched.compilation import cold_kernel, kernel, kernel_where
from gpusched.policies.routing.windowed import observe, slot_of
from gpusched.sim.blocks import blocks_for
from gpusched.sim.entry import wake
from gpusched.sim.rounds.history import drop, link_newest
from gpusched.sim.rounds.observing import bring_up
from gpusched.sim.state import NONE, PREFILL_ONLY


@cold_kernel
def let_go(s, d, i, now_s):
    """Give up a session's history, if there is one, for good."""
    if s.rounds.sessions[i].tokens > 0:
        bring_up(s, d, now_s)
    if s.rounds.sessions[i].tokens > 0:
        drop(s, d, i)
        if s.engines[d].waiting > 0:
            wake(s, d, now_s)


@kernel
def count_bound(s, i, tokens):
    """Set how much a session counts in the memory use of its decode engine."""
    session = s.rounds.sessions[i]
    s.rounds.workers[session.worker].bound_tokens += tokens - session.counted
    session.counted = tokens


def end_request(s, e, r, now_s):
    """Without histories nothing is left."""


@kernel_where("rounds", end_request)
def end_round(s, e, r, now_s):
    """Keep the KV cache of a finished round that is not its session's last, on its decode engine.

    An answer of one token may end on a prefill engine: its decode engine keeps what it had, if
    anything.
    """
    if not s.rounds.settings[0].keeps:
        return
    request = s.requests[r]
    i = request.session
    session = s.rounds.sessions[i]
    d = session.worker
    if request.follower == NONE:
        let_go(s, d, i, now_s)
        count_bound(s, i, 0)
        return
    if e == d:
        session.tokens = request.prompt + request.output - 1
        session.blocks = blocks_for(s.engines[d], session.tokens)
        s.engines[d].free -= session.blocks
        link_newest(s, d, i)
    elif s.rounds.relied[r] == 0 and session.tokens == 0:
        s.rounds.continues[request.follower] = False
    count_bound(s, i, session.tokens)


def end_prefill(s, e, r):
    """Without predictions nothing is to be corrected."""


@kernel_where("rounds", end_prefill)
def end_round_prefill(s, e, r):
    """Take a computed prompt out of its engine's predicted queue, and enter a prefill engine's TTFT
    in its window."""
    rounds = s.rounds
    request = s.requests[r]
    if not rounds.settings[0].keeps or request.produced != 1:
        return
    worker = rounds.workers[e]
    worker.queued -= 1
    worker.queue_s -= rounds.predicted_s[r]
    if worker.queued == 0:
        worker.queue_s = 0.0
    if s.engines[e].role == PREFILL_ONLY:
        end_s = s.engines[e].end_s
        slot = slot_of(end_s, rounds.settings[0].window_s)
        observe(rounds.totals_s, rounds.counts, rounds.slots, e, slot, end_s - request.arrival_s, 1)


def bound_nowhere(s, r):
    """Without sessions of many rounds a router chooses."""
    return -1


@kernel_where("rounds", bound_nowhere)
def bound_engine(s, r):
    """Decode engine that the request's session is bound to."""
    worker = -1
    if s.rounds.settings[0].keeps:
        worker = s.rounds.sessions[s.requests[r].session].worker
    return worker


def nothing_at(s, d, r, now_s):
    """Without histories all of the KV cache is sent."""
    return 0


@kernel_where("rounds", nothing_at)
def kept_at(s, d, r, now_s):
    """KV tokens of a computed prompt that its decode engine has already."""
    tokens = 0
    if s.rounds.settings[0].keeps and s.rounds.relied[r] > 0:
        bring_up(s, d, now_s)
        tokens = s.rounds.sessions[s.requests[r].session].tokens
        if tokens == 0:
            s.rounds.evicted[r] = True
        s.rounds.relied[r] = tokens
    return tokens
