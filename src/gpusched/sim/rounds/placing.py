"""The way into the fleet for a round: its session's decode engine, and where its prefill runs."""

import math

import numpy as np

from gpusched.compilation import cold_kernel, kernel
from gpusched.policies.batching.order import FCFS
from gpusched.policies.routing.adaptive import (
    added_itl_s,
    choose_branch,
    is_local,
    remote_s,
    ships_s,
    soonest,
)
from gpusched.policies.routing.choice import first_started
from gpusched.policies.routing.windowed import slot_of, window_sums
from gpusched.sim.blocks import blocks_for
from gpusched.sim.engine import cut_leap
from gpusched.sim.entry import add_load, enqueue, push_pending, reject, wake
from gpusched.sim.rounds.history import link_newest, unlink
from gpusched.sim.rounds.leaving import count_bound, let_go
from gpusched.sim.rounds.observing import bring_up
from gpusched.sim.rounds.prediction import prefill_s
from gpusched.sim.state import NONE, SHIPPING, WAITING


@cold_kernel
def bind(s, rules, now_s):
    """The started decode engine whose bound sessions take the least share of its memory; else the
    one that starts first."""
    best = np.int64(NONE)
    least = math.inf
    for d in range(rules.entry_engines, len(s.engines)):
        engine = s.engines[d]
        use = s.rounds.workers[d].bound_tokens / float(engine.kv_blocks << engine.block_shift)
        if s.ready_s[d] <= now_s and use < least:
            best = np.int64(d)
            least = use
    if best == NONE:
        best = np.int64(first_started(s.ready_s, rules.entry_engines, len(s.engines)))
    return best


@kernel
def queue_ends_s(s, e, now_s):
    """Predicted time until an engine has computed what it has."""
    return s.rounds.workers[e].queue_s + max(s.ready_s[e] - now_s, 0.0)


@kernel
def window_mean_s(s, e, now_s):
    """Mean of an engine's window and the number of its values."""
    rounds = s.rounds
    slot = slot_of(now_s, rounds.settings[0].window_s)
    total_s, count = window_sums(rounds.totals_s, rounds.counts, rounds.slots, e, slot)
    return (total_s / count if count > 0 else 0.0), count


@cold_kernel
def place_prefill(s, rules, r, d, history, now_s):
    """Choose the engine of a round's prefill; its predicted time there is noted."""
    rounds = s.rounds
    settings = rounds.settings[0]
    request = s.requests[r]
    new = request.prompt - history
    ship_s = ships_s(history, rules.link_latency_s, rules.link_token_s)
    return_s = ships_s(new, rules.link_latency_s, rules.link_token_s)
    for p in range(rules.entry_engines):
        rounds.remote_s[p] = math.inf
        if blocks_for(s.engines[p], request.prompt) <= s.engines[p].kv_blocks:
            alone_s = prefill_s(s, p, new, history)
            rounds.remote_s[p] = remote_s(queue_ends_s(s, p, now_s), ship_s, alone_s, return_s)
    p = np.int64(soonest(rounds.remote_s, 0, rules.entry_engines))
    away_s = math.inf
    ttft_s = 0.0
    if p != NONE:
        away_s = rounds.remote_s[p]
        ttft_s, _ = window_mean_s(s, p, now_s)
    alone_s = prefill_s(s, d, new, history)
    itl_s, tokens = window_mean_s(s, d, now_s)
    if tokens == 0:
        itl_s = s.decode_s[s.engines[d].timing, 1]
    rounds.branch[r] = choose_branch(
        settings.rule,
        history > 0,
        queue_ends_s(s, d, now_s) + alone_s,
        away_s,
        itl_s,
        added_itl_s(rounds.workers[d].queue_s + alone_s, s.engines[d].decoding, tokens),
        ttft_s,
        settings.ttft_s,
        settings.itl_s,
        settings.alpha,
        settings.beta,
    )
    e = d if is_local(rounds.branch[r]) else p
    rounds.predicted_s[r] = prefill_s(s, e, new, history)
    rounds.workers[e].queued += 1
    rounds.workers[e].queue_s += rounds.predicted_s[r]
    return e


@cold_kernel
def arrive_round(s, rules, r, now_s):
    """Take in a round: bind its session if it is new, and queue its prefill, or have its history
    shipped first."""
    rounds = s.rounds
    request = s.requests[r]
    request.arrival_s = now_s
    i = np.int64(request.session)
    session = rounds.sessions[i]
    if session.worker == NONE:
        session.worker = bind(s, rules, now_s)
    d = np.int64(session.worker)
    if blocks_for(s.engines[d], request.prompt + request.output - 1) > s.engines[d].kv_blocks:
        let_go(s, d, i, now_s)
        count_bound(s, i, 0)
        reject(s, rules, r, now_s)
        return
    bring_up(s, d, now_s)
    if not rounds.continues[r]:
        let_go(s, d, i, now_s)
    elif session.tokens == 0:
        rounds.evicted[r] = True
    history = np.int64(session.tokens)
    rounds.history[r] = history
    rounds.relied[r] = history
    count_bound(s, i, request.prompt + rules.expected_output_tokens)
    e = place_prefill(s, rules, r, d, history, now_s)
    add_load(s, rules, e, r, 1)
    if history > 0:
        unlink(s, d, i)
    if e != d and history > 0:
        ship(s, rules, r, d, e, history, now_s)
    else:
        if history > 0:
            link_newest(s, d, i)
        enqueue(s, e, r, now_s)


@kernel
def ship(s, rules, r, d, p, tokens, now_s):
    """Send a history to a prefill engine; until it is there nobody may evict it."""
    request = s.requests[r]
    begin_s = max(now_s, s.engines[d].send_free_s, s.engines[p].receive_free_s)
    end_s = begin_s + rules.link_latency_s + rules.link_token_s * tokens
    s.engines[d].send_free_s = end_s
    s.engines[p].receive_free_s = end_s
    request.engine = p
    request.destination = d
    request.state = SHIPPING
    request.computed = tokens
    push_pending(s, end_s, r)


@cold_kernel
def take_history(s, r, now_s):
    """End the shipping of a history: the round takes the place in the prefill engine's queue that its
    arrival gives it."""
    request = s.requests[r]
    d = np.int64(request.destination)
    bring_up(s, d, now_s)
    link_newest(s, d, np.int64(request.session))
    if s.engines[d].waiting > 0:
        wake(s, d, now_s)
    p = np.int64(request.engine)
    engine = s.engines[p]
    last = np.int64(engine.waiting_tail)
    if engine.order != FCFS or last == NONE or s.requests[last].arrival_s <= request.arrival_s:
        enqueue(s, p, r, now_s)
        return
    request.state = WAITING
    engine.waiting += 1
    before = np.int64(NONE)
    following = np.int64(engine.waiting_head)
    while s.requests[following].arrival_s <= request.arrival_s:
        before = following
        following = np.int64(s.requests[following].next)
    request.next = following
    if before == NONE:
        engine.waiting_head = r
    else:
        s.requests[before].next = r
    joins = engine.open
    if joins and engine.steps > 1:
        cut_leap(s, p, now_s)
    else:
        wake(s, p, now_s)
