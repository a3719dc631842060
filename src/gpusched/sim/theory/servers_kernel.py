"""The event loop of many servers that prefill one request and decode several at a time.

Arrivals and abandonments have no memory: their next time is drawn anew after every event. All
decodes of a server advance alike, by a token an iteration, so each keeps the progress at which it
ends, and a server's next event is that of its first decode or of its prefill. Waiting requests
stand in a dense pool, linked into one list for each queue and class.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import entry_kernel, kernel
from gpusched.policies.admission.gate import (
    CREDIT,
    accrue,
    choose_class,
    credit_wait_s,
)
from gpusched.policies.draws import random_u64
from gpusched.policies.routing.decode_router import (
    MIXED,
    PREFILL_FIRST,
    SOLO,
    SPLIT,
    STAY,
    choose_free,
    route_decode,
    split_pool,
    weighted_class,
)
from gpusched.sim.heaps import set_timer

NONE = -1

PREFILL_QUEUE, DECODE_QUEUE, MIXED_QUEUE, IN_PREFILL, MIXED_DECODE, SOLO_DECODE, COUNTS = range(7)
"""Rows of ``counts``. Under a split ``DECODE_QUEUE`` waits for solo servers, ``MIXED_QUEUE`` for
mixed ones; otherwise all that wait for a decode slot stand in ``DECODE_QUEUE``."""

ARRIVED, PREFILLED, ANSWERED, LEFT_PREFILL, LEFT_DECODE, TOTALS = range(6)
"""Rows of ``totals``: the last two gave up in either queue."""

READY = 2
"""Third of the free lists, after ``SOLO`` and ``MIXED``: servers that may start a prefill."""

DRAW = 2.0**-53

SERVER = np.dtype(
    [
        ("prefill", "i8"),  # class of the prefill in service
        ("prefill_end_s", "f8"),
        ("decodes", "i8"),
        ("progress", "f8"),  # tokens that a decode here would have got since the start
        ("updated_s", "f8"),  # when the progress was that
    ]
)
WAITER = np.dtype(
    [("kind", "i8"), ("class", "i8"), ("next", "i8"), ("previous", "i8"), ("since_s", "f8")]
)
RUN = np.dtype(
    [
        ("now_s", "f8"),
        ("credited_s", "f8"),  # when credits were last added up
        ("draws", "i8"),
        ("waiters", "i8"),
        ("streams", "i8"),
        ("mixed_s", "f8"),
        ("solo_s", "f8"),
        ("exponential", "b1"),
        ("arrival_rps", "f8"),  # of all classes
        ("abandonment_rps", "f8"),  # of the least patient class
        ("gate", "i8"),
        ("router", "i8"),
        ("planned", "b1"),  # whether only servers below ``mixed`` take prefills
        ("mixed", "i8"),
        ("burst", "f8"),
        ("weighted", "b1"),  # whether freed slots go to classes by weight
    ]
)


class State(NamedTuple):
    """All arrays of a run; ``run`` holds one record."""

    run: NDArray[np.void]
    seed: int
    rates_rps: NDArray[np.float64]
    """Arrivals to the whole cluster, an entry a class."""
    abandonment_rps: NDArray[np.float64]
    prefill_s: NDArray[np.float64]
    output_tokens: NDArray[np.float64]
    servers: NDArray[np.void]
    ends: NDArray[np.float64]
    """Progress at which each decode ends, descending; shape (servers, streams)."""
    kinds: NDArray[np.int64]
    """Classes of the decodes, beside ``ends``."""
    timers_s: NDArray[np.float64]
    winners: NDArray[np.int64]
    """Tournament tree over ``timers_s``."""
    members: NDArray[np.int64]
    """Free lists, shape (3, servers)."""
    places: NDArray[np.int64]
    """Place of a server in each list, or NONE."""
    sizes: NDArray[np.int64]
    waiters: NDArray[np.void]
    heads: NDArray[np.int64]
    """Lists of waiting requests, shape (3, classes)."""
    tails: NDArray[np.int64]
    since_s: NDArray[np.float64]
    """Arrival of each class's first waiting prefill."""
    counts: NDArray[np.int64]
    """Requests in each stage, shape (COUNTS, classes)."""
    areas: NDArray[np.float64]
    """Their integral over time, less the present count times the present time."""
    totals: NDArray[np.int64]
    """Events of each kind, shape (TOTALS, classes)."""
    targets: NDArray[np.float64]
    queue_targets: NDArray[np.float64]
    metered: NDArray[np.bool_]
    credits: NDArray[np.float64]
    credit_rates_rps: NDArray[np.float64]
    priorities: NDArray[np.float64]
    to_solo: NDArray[np.float64]
    weights: NDArray[np.float64]
    """Weights of the classes for freed solo and mixed slots, shape (2, classes)."""


@kernel
def uniform(s):
    """A draw from 0 to below 1."""
    run = s.run[0]
    run.draws += 1
    return np.float64(random_u64(s.seed, run.draws) >> np.uint64(11)) * DRAW


@kernel
def exponential(s):
    """A draw of mean 1."""
    return -math.log(1.0 - uniform(s))


@kernel
def size_of(s, mean):
    """A request's work."""
    return mean * exponential(s) if s.run[0].exponential else mean


@kernel
def count(s, stage, i, change):
    """Change the number of requests in a stage."""
    s.counts[stage, i] += change
    s.areas[stage, i] -= change * s.run[0].now_s


@kernel
def stage_of(s, g):
    """Stage of the decodes of a server."""
    return SOLO_DECODE if s.servers[g].prefill == NONE else MIXED_DECODE


@kernel
def pool_of(s, g):
    """Pool of a server. One that leaves the mixed pool stays until its prefill ends."""
    run = s.run[0]
    if s.servers[g].prefill != NONE or (run.planned and g < run.mixed):
        return MIXED
    return SOLO


@kernel
def set_member(s, which, g, wanted):
    """Put a server into a free list, or take it out."""
    place = s.places[which, g]
    if wanted and place == NONE:
        s.places[which, g] = s.sizes[which]
        s.members[which, s.sizes[which]] = g
        s.sizes[which] += 1
    elif not wanted and place != NONE:
        s.sizes[which] -= 1
        moved = s.members[which, s.sizes[which]]
        s.members[which, place] = moved
        s.places[which, moved] = place
        s.places[which, g] = NONE


@kernel
def refresh(s, g):
    """Bring a server's timer and its places in the free lists up to date."""
    run = s.run[0]
    server = s.servers[g]
    end_s = math.inf
    if server.prefill != NONE:
        end_s = server.prefill_end_s
    if server.decodes > 0:
        token_s = run.solo_s if server.prefill == NONE else run.mixed_s
        left = s.ends[g, server.decodes - 1] - server.progress
        end_s = min(end_s, server.updated_s + left * token_s)
    set_timer(s.timers_s, s.winners, g, end_s)
    pool = pool_of(s, g)
    room = server.decodes < (run.streams if pool == SOLO else run.streams - 1)
    set_member(s, SOLO, g, room and pool == SOLO)
    set_member(s, MIXED, g, room and pool == MIXED)
    idle = server.prefill == NONE and server.decodes < run.streams
    set_member(s, READY, g, idle and (not run.planned or g < run.mixed))


@kernel
def advance_progress(s, g):
    """Credit the decodes of a server with the tokens given since the last update."""
    run = s.run[0]
    server = s.servers[g]
    token_s = run.solo_s if server.prefill == NONE else run.mixed_s
    server.progress += (run.now_s - server.updated_s) / token_s
    server.updated_s = run.now_s


@kernel
def move_decodes(s, g, before, after):
    """Count the decodes of a server in another stage."""
    for k in range(s.servers[g].decodes):
        count(s, before, s.kinds[g, k], -1)
        count(s, after, s.kinds[g, k], 1)


@kernel
def start_prefill(s, g, i):
    """Start the prefill of a class's first waiting request."""
    run = s.run[0]
    leave_queue(s, s.heads[PREFILL_QUEUE, i])
    advance_progress(s, g)
    server = s.servers[g]
    server.prefill = i
    server.prefill_end_s = run.now_s + size_of(s, s.prefill_s[i])
    move_decodes(s, g, SOLO_DECODE, MIXED_DECODE)
    count(s, IN_PREFILL, i, 1)
    refresh(s, g)


@kernel
def start_decode(s, g, i):
    """Add a decode to a server."""
    advance_progress(s, g)
    server = s.servers[g]
    end = server.progress + size_of(s, s.output_tokens[i])
    k = server.decodes
    while k > 0 and s.ends[g, k - 1] < end:
        s.ends[g, k] = s.ends[g, k - 1]
        s.kinds[g, k] = s.kinds[g, k - 1]
        k -= 1
    s.ends[g, k] = end
    s.kinds[g, k] = i
    server.decodes += 1
    count(s, stage_of(s, g), i, 1)
    refresh(s, g)


@kernel
def join_queue(s, kind, i):
    """Add a request to the end of a queue."""
    run = s.run[0]
    w = run.waiters
    run.waiters += 1
    waiter = s.waiters[w]
    waiter["kind"] = kind
    waiter["class"] = i
    waiter["since_s"] = run.now_s
    waiter["next"] = NONE
    waiter["previous"] = s.tails[kind, i]
    if s.tails[kind, i] == NONE:
        s.heads[kind, i] = w
        if kind == PREFILL_QUEUE:
            s.since_s[i] = run.now_s
    else:
        s.waiters[s.tails[kind, i]]["next"] = w
    s.tails[kind, i] = w
    count(s, kind, i, 1)


@kernel
def link(s, kind, i, w, before, after):
    """Make ``w``, or NONE for nobody, the only one between two neighbours of a list."""
    if before == NONE:
        s.heads[kind, i] = after if w == NONE else w
    else:
        s.waiters[before]["next"] = after if w == NONE else w
    if after == NONE:
        s.tails[kind, i] = before if w == NONE else w
    else:
        s.waiters[after]["previous"] = before if w == NONE else w


@kernel
def leave_queue(s, w):
    """Take a request out of its queue; the pool's last one moves to its place."""
    run = s.run[0]
    waiter = s.waiters[w]
    kind = waiter["kind"]
    i = waiter["class"]
    link(s, kind, i, NONE, waiter["previous"], waiter["next"])
    count(s, kind, i, -1)
    if kind == PREFILL_QUEUE and s.heads[kind, i] != NONE:
        s.since_s[i] = s.waiters[s.heads[kind, i]]["since_s"]
    run.waiters -= 1
    last = s.waiters[run.waiters]
    if run.waiters != w:
        waiter["kind"] = last["kind"]
        waiter["class"] = last["class"]
        waiter["since_s"] = last["since_s"]
        waiter["next"] = last["next"]
        waiter["previous"] = last["previous"]
        link(s, last["kind"], last["class"], w, last["previous"], last["next"])


@kernel
def fill_prefills(s):
    """Start prefills while the gate names a class and a server is ready."""
    run = s.run[0]
    n_classes = len(s.rates_rps)
    while s.sizes[READY] > 0:
        if run.gate == CREDIT:
            elapsed_s = run.now_s - run.credited_s
            accrue(s.credits, s.credit_rates_rps, run.burst, elapsed_s, n_classes)
            run.credited_s = run.now_s
        i = choose_class(
            run.gate,
            s.counts[PREFILL_QUEUE],
            s.since_s,
            s.counts[IN_PREFILL],
            s.targets,
            s.queue_targets,
            s.metered,
            s.credits,
            s.priorities,
            n_classes,
        )
        if i == NONE:
            return
        if run.gate == CREDIT and s.metered[i]:
            s.credits[i] -= 1.0
        start_prefill(s, choose_free(s.members[READY], s.sizes[READY], uniform(s)), i)


@kernel
def first_waiting(s, kind):
    """The class whose first request has waited longest in a queue, or NONE."""
    best = NONE
    best_s = math.inf
    for i in range(len(s.rates_rps)):
        w = s.heads[kind, i]
        if w != NONE and s.waiters[w]["since_s"] < best_s:
            best = i
            best_s = s.waiters[w]["since_s"]
    return best


@kernel
def next_decode(s, kind, pool):
    """The class that takes a free decode slot, or NONE."""
    if s.run[0].weighted:
        return weighted_class(s.counts[kind], s.weights[pool], len(s.rates_rps), uniform(s))
    return first_waiting(s, kind)


@kernel
def fill_split_decodes(s):
    """Give free slots of each pool to those that wait for it."""
    for pool in range(2):
        kind = DECODE_QUEUE if pool == SOLO else MIXED_QUEUE
        while s.sizes[pool] > 0:
            i = next_decode(s, kind, pool)
            if i == NONE:
                break
            leave_queue(s, s.heads[kind, i])
            start_decode(s, choose_free(s.members[pool], s.sizes[pool], uniform(s)), i)


@kernel
def fill_decodes(s):
    """Give free slots to those that wait, first come first served."""
    run = s.run[0]
    while s.sizes[SOLO] + s.sizes[MIXED] > 0:
        i = first_waiting(s, DECODE_QUEUE)
        if i == NONE:
            return
        g = route_decode(
            run.router,
            NONE,
            0.0,
            s.members[SOLO],
            s.sizes[SOLO],
            s.members[MIXED],
            s.sizes[MIXED],
            0.0,
            uniform(s),
        )
        leave_queue(s, s.heads[DECODE_QUEUE, i])
        start_decode(s, g, i)


@kernel
def fill(s):
    """Give out what is free; the router says whether prefills or decodes come first."""
    if s.run[0].router == PREFILL_FIRST:
        fill_prefills(s)
        fill_decodes(s)
    else:
        if s.run[0].router == SPLIT:
            fill_split_decodes(s)
        else:
            fill_decodes(s)
        fill_prefills(s)


@kernel
def finish_prefill(s, g):
    """End a prefill; its request decodes here or waits to be routed, which ``fill`` does at once."""
    run = s.run[0]
    advance_progress(s, g)
    server = s.servers[g]
    i = server.prefill
    move_decodes(s, g, MIXED_DECODE, SOLO_DECODE)
    count(s, IN_PREFILL, i, -1)
    s.totals[PREFILLED, i] += 1
    server.prefill = NONE
    refresh(s, g)
    if run.router == STAY:
        start_decode(s, g, i)
    elif run.router == SPLIT and split_pool(s.to_solo[i], uniform(s)) == MIXED:
        join_queue(s, MIXED_QUEUE, i)
    else:
        join_queue(s, DECODE_QUEUE, i)


@kernel
def finish_decode(s, g):
    """End the first decode of a server."""
    advance_progress(s, g)
    server = s.servers[g]
    server.decodes -= 1
    i = s.kinds[g, server.decodes]
    s.totals[ANSWERED, i] += 1
    count(s, stage_of(s, g), i, -1)
    refresh(s, g)


@kernel
def arrive_or_leave(s):
    """Let a request arrive, or one that waits give up if its class is so impatient."""
    run = s.run[0]
    at = uniform(s) * (run.arrival_rps + run.abandonment_rps * run.waiters)
    if at < run.arrival_rps or run.waiters == 0:
        last = len(s.rates_rps) - 1
        i = 0
        while i < last and at >= s.rates_rps[i]:
            at -= s.rates_rps[i]
            i += 1
        s.totals[ARRIVED, i] += 1
        join_queue(s, PREFILL_QUEUE, i)
        return
    w = min(np.int64((at - run.arrival_rps) / run.abandonment_rps), run.waiters - 1)
    i = s.waiters[w]["class"]
    if uniform(s) * run.abandonment_rps < s.abandonment_rps[i]:
        gone = LEFT_PREFILL if s.waiters[w]["kind"] == PREFILL_QUEUE else LEFT_DECODE
        s.totals[gone, i] += 1
        leave_queue(s, w)


@entry_kernel
def advance(s, until_s):
    """Run to a time; return whether it was reached: otherwise the pool of waiting requests is full."""
    run = s.run[0]
    for g in range(len(s.servers)):
        refresh(s, g)
    fill(s)
    while True:
        if run.waiters + 1 >= len(s.waiters):
            return False
        rate_rps = run.arrival_rps + run.abandonment_rps * run.waiters
        random_s = run.now_s + exponential(s) / rate_rps if rate_rps > 0.0 else math.inf
        g = s.winners[1]
        end_s = s.timers_s[g]
        credit_s = math.inf
        if run.gate == CREDIT and s.sizes[READY] > 0:
            wait_s = credit_wait_s(
                s.counts[PREFILL_QUEUE],
                s.metered,
                s.credits,
                s.credit_rates_rps,
                len(s.rates_rps),
            )
            credit_s = run.credited_s + wait_s
        next_s = min(random_s, end_s, credit_s)
        if next_s >= until_s:
            run.now_s = until_s
            return True
        run.now_s = max(next_s, run.now_s)
        if next_s == end_s:
            server = s.servers[g]
            if server.prefill != NONE and server.prefill_end_s == end_s:
                finish_prefill(s, g)
            else:
                finish_decode(s, g)
        elif next_s == random_s:
            arrive_or_leave(s)
        fill(s)
