"""A model of gated prefill engines: how long requests wait for a gate, and how full passes are.

Each engine computes passes over its data-parallel units. A pass takes in what waits when it
starts, up to a chunk of tokens a unit, and ends for all units together after
``fixed_s + token_s * (tokens of the busiest unit)``; what exceeds the chunk is carried over. It
isolates what staggered release changes; the simulator of whole fleets is ``gpusched.sim.kernel``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.compilation import entry_kernel, kernel
from gpusched.errors import InputError, unknown_name
from gpusched.policies.admission.staggered import (
    mean_pass_s,
    oldest_ready,
    pass_s,
    record_pass,
    release_interval_s,
    release_s,
)
from gpusched.policies.draws import random_u64
from gpusched.policies.routing.choice import route
from gpusched.policies.routing.packing import NO_CAP, pack, room_tokens, sort_window
from gpusched.policies.routing.policy import ROUTING

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STAGGERED = -1
ROUTINGS = ("random", "round-robin", "least-requests", "least-tokens")
NONE = -1
PASSES, TOKENS, BUSIEST, VARIATION, BUSY, RELEASES, PASSED_OVER, CLOSEST = range(8)


@dataclass(frozen=True, slots=True)
class GatedEngines:
    """Engines of one kind behind one dispatcher."""

    engines: int
    units: int
    chunk_tokens: int
    """Tokens a unit computes in one pass at most."""
    fixed_s: float
    token_s: float = 0.0
    network_s: float = 0.0
    """From dispatcher to engine; fed by a dispatcher, an engine keeps its gate open for it."""
    never_idle: bool = False
    """Whether an engine without work runs empty passes rather than wait for some."""
    first_gate_s: tuple[float, ...] | None = None
    """When engines that never idle first take work in; spread over a pass if left out."""

    def __post_init__(self) -> None:
        if min(self.engines, self.units, self.chunk_tokens) < 1:
            raise InputError("engines, units and chunk tokens must be at least 1")
        if min(self.fixed_s, self.token_s, self.network_s) < 0.0 or self.fixed_s <= 0.0:
            raise InputError("fixed_s must be positive, token_s and network_s not negative")
        if self.first_gate_s is not None and len(self.first_gate_s) != self.engines:
            raise InputError(f"first_gate_s needs {self.engines} entries, one an engine")


@dataclass(frozen=True, slots=True)
class GatedRun:
    """What requests and engines went through; arrays of shape (requests,)."""

    wait_s: Floats
    """From arrival to the start of the pass that takes the request in."""
    ttft_s: Floats
    """From arrival to the end of the pass that computes its last token."""
    unit: Ints
    """Among the units of all engines."""
    end_s: float
    """End of the last pass."""
    passes: int
    busy_s: float
    """Sum over engines."""
    tokens: int
    """Computed."""
    chunk_use: float
    """Tokens computed over what the passes could have."""
    level: float
    """Mean over the busiest unit's tokens, over all passes: 1 if units are level."""
    variation: float
    """Mean over passes of the tokens' coefficient of variation between units."""
    releases: int
    passed_over: int
    """Times that a release left a request behind."""
    closest_release_s: float
    """Least time between releases."""


def run_gated(
    engines: GatedEngines,
    arrival_s: ArrayLike,
    tokens: ArrayLike,
    dispatch: str = "staggered",
    *,
    cached_tokens: ArrayLike | None = None,
    lowest_interval_s: float = 0.002,
    window_passes: int = 32,
    spill_tokens: int = NO_CAP,
    shortcuts: bool = True,
    seed: int = 0,
) -> GatedRun:
    """Run requests through gated engines.

    ``dispatch`` is ``staggered``, or a routing policy that sends each request at once: it chooses
    the engine, then the unit in it. ``cached_tokens`` of shape (requests, engines * units) need not
    be computed there. Without ``shortcuts`` every release waits for the interval.

    Raises:
        InputError: arrivals do not ascend, tokens are negative, shapes disagree, or no such policy.
    """
    a = np.ascontiguousarray(arrival_s, np.float64)
    length = np.ascontiguousarray(tokens, np.int64)
    n, units = len(a), engines.engines * engines.units
    if len(length) != n or (np.diff(a) < 0).any() or (length < 0).any():
        raise InputError("arrivals must ascend, tokens must not be negative, one of each a request")
    hits = np.zeros((n, units), np.int64)
    if cached_tokens is not None:
        given = np.asarray(cached_tokens, np.int64)
        if given.shape != hits.shape or (given < 0).any():
            raise InputError(f"cached tokens must be {n} x {units} and not negative")
        hits[:] = given
    if dispatch != "staggered" and dispatch not in ROUTINGS:
        raise InputError(unknown_name("dispatch", dispatch, ("staggered", *ROUTINGS)))
    full_s = pass_s(engines.fixed_s, engines.token_s, float(engines.chunk_tokens))
    gates_s = np.full(engines.engines, np.inf)
    if engines.never_idle:
        spread_s = np.arange(engines.engines) * full_s / engines.engines
        gates_s[:] = spread_s if engines.first_gate_s is None else engines.first_gate_s
    p = _Parameters(
        STAGGERED if dispatch == "staggered" else ROUTING[dispatch].kind,
        seed, engines.engines, engines.units, engines.chunk_tokens, engines.fixed_s,
        engines.token_s, full_s, engines.network_s, engines.never_idle, shortcuts,
        lowest_interval_s, min(spill_tokens, NO_CAP),
    )  # fmt: skip
    s = _state(n, engines.engines, units, gates_s, window_passes)
    end_s = _run(p, s, a, length, hits)
    passes, computed, busiest, variation, busy_s, releases, passed_over, closest_s = s.totals
    passes = max(passes, 1.0)
    return GatedRun(
        s.wait_s, s.ttft_s, s.assigned, end_s, int(passes), busy_s, int(computed),
        computed / (passes * units / engines.engines * engines.chunk_tokens),
        computed / max(busiest * engines.units, 1.0), variation / passes, int(releases),
        int(passed_over), closest_s,
    )  # fmt: skip


class _Parameters(NamedTuple):
    dispatch: int
    seed: int
    engines: int
    units: int
    chunk_tokens: int
    fixed_s: float
    token_s: float
    full_s: float
    network_s: float
    never_idle: bool
    shortcuts: bool
    lowest_s: float
    spill_tokens: int


class _State(NamedTuple):
    # one entry a request
    wait_s: Floats
    ttft_s: Floats
    assigned: Ints
    remaining: Ints
    """Tokens still to be taken in."""
    following: Ints
    """Next in the unit's queue."""
    ages: Ints
    order: Ints
    """The buffer is its head."""
    # one entry a unit
    heads: Ints
    tails: Ints
    waiting_tokens: Ints
    available: Ints
    taken: Ints
    """Tokens in the pass under way."""
    finishing: Ints
    """Requests that the pass under way finishes."""
    unit_requests: Floats
    unit_tokens: Floats
    # one entry an engine
    engine_requests: Floats
    engine_tokens: Floats
    queued: Ints
    """Requests that a pass has still to take in, wholly or in part."""
    running: NDArray[np.bool_]
    ready: NDArray[np.bool_]
    ready_s: Floats
    end_s: Floats
    duration_s: Floats
    predicted_end_s: Floats
    out: NDArray[np.bool_]
    window_s: Floats
    totals: Floats


def _state(n: int, engines: int, units: int, gates_s: Floats, window_passes: int) -> _State:
    def whole(size: int, value: int = 0) -> Ints:
        return np.full(size, value, np.int64)

    totals = np.zeros(8)
    totals[CLOSEST] = np.inf
    running = np.isfinite(gates_s)
    return _State(
        wait_s=np.full(n, np.nan),
        ttft_s=np.full(n, np.nan),
        assigned=whole(n, NONE),
        remaining=whole(n),
        following=whole(n, NONE),
        ages=whole(n),
        order=whole(n),
        heads=whole(units, NONE),
        tails=whole(units, NONE),
        waiting_tokens=whole(units),
        available=whole(units),
        taken=whole(units),
        finishing=whole(units),
        unit_requests=np.zeros(units),
        unit_tokens=np.zeros(units),
        engine_requests=np.zeros(engines),
        engine_tokens=np.zeros(engines),
        queued=whole(engines),
        running=running,
        ready=~running,
        ready_s=np.zeros(engines),
        end_s=gates_s,
        duration_s=np.zeros(engines),
        predicted_end_s=np.full(engines, np.inf),
        out=np.zeros(engines, np.bool_),
        window_s=np.zeros((1, window_passes)),
        totals=totals,
    )


@entry_kernel
def _run(p, s, arrival_s, length, hits):  # type: ignore[no-untyped-def]
    """Run all requests; return when the last pass ends."""
    n = len(arrival_s)
    delay_s = 0.0 if p.dispatch == STAGGERED else p.network_s
    next_request = 0
    buffered = 0
    buffered_tokens = 0
    done = 0
    passes = 0
    unloaded = False
    last_release_s = -math.inf
    now_s = 0.0
    while done < n:
        release_at_s = math.inf
        if buffered > 0:
            release_at_s = _release_s(
                p, s, now_s, passes, last_release_s, buffered_tokens, unloaded
            )
        next_s = max(release_at_s, now_s)
        if next_request < n:
            next_s = min(next_s, arrival_s[next_request] + delay_s)
        for e in range(p.engines):
            next_s = min(next_s, s.end_s[e])
        now_s = next_s
        for e in range(p.engines):
            if s.end_s[e] <= now_s:
                if s.duration_s[e] > 0.0:
                    record_pass(s.window_s, 0, passes, s.duration_s[e])
                    passes += 1
                _end_pass(s, p, e, now_s)
        while next_request < n and arrival_s[next_request] + delay_s <= now_s:
            r = next_request
            next_request += 1
            if p.dispatch == STAGGERED:
                if buffered == 0:
                    unloaded = False
                    for e in range(p.engines):
                        unloaded |= p.shortcuts and s.ready[e] and s.queued[e] == 0
                s.order[buffered] = r
                buffered += 1
                buffered_tokens += length[r]
            else:
                draw = random_u64(p.seed, r)
                e = route(
                    p.dispatch, r, draw, NONE, s.ready_s, math.inf, s.engine_requests,
                    s.engine_tokens, 0, p.engines,
                )  # fmt: skip
                u = route(
                    p.dispatch, r // p.engines, random_u64(p.seed, n + r), NONE, s.unit_tokens,
                    math.inf, s.unit_requests, s.unit_tokens, e * p.units, (e + 1) * p.units,
                )  # fmt: skip
                _join(s, e, u, r, length[r] - hits[r, u])
        while buffered > 0:
            due_s = _release_s(p, s, now_s, passes, last_release_s, buffered_tokens, unloaded)
            if due_s > now_s:
                break
            e = _oldest_ready(p, s, now_s)
            left = _release(s, p, e, buffered, length, hits)
            if left == buffered:
                s.ready[e] = False
                continue
            s.totals[CLOSEST] = min(s.totals[CLOSEST], now_s - last_release_s)
            s.totals[RELEASES] += 1
            s.totals[PASSED_OVER] += left
            last_release_s = now_s
            unloaded = False
            buffered = left
            buffered_tokens = 0
            for i in range(buffered):
                buffered_tokens += length[s.order[i]]
        for e in range(p.engines):
            if not s.running[e] and (s.queued[e] > 0 or p.never_idle):
                gate_s = now_s + (p.network_s if p.dispatch == STAGGERED else 0.0)
                done += _begin_pass(s, p, e, gate_s, arrival_s)
    end_s = now_s
    for e in range(p.engines):
        if s.running[e]:
            end_s = max(end_s, s.end_s[e])
    return end_s


@kernel
def _oldest_ready(p, s, now_s):  # type: ignore[no-untyped-def]
    return oldest_ready(now_s, s.ready, s.ready_s, s.predicted_end_s, s.out, 0, p.engines)


@kernel
def _release_s(p, s, now_s, passes, last_release_s, buffered_tokens, unloaded):  # type: ignore[no-untyped-def]
    """When the buffer may be released, as things stand; endless without a ready engine."""
    e = _oldest_ready(p, s, now_s)
    if e < 0:
        return math.inf
    mean_s = mean_pass_s(s.window_s, 0, passes, p.full_s)
    interval_s = release_interval_s(mean_s, p.network_s, p.engines, p.lowest_s, mean_s)
    low, high = e * p.units, (e + 1) * p.units
    for u in range(low, high):
        s.available[u] = p.chunk_tokens - s.waiting_tokens[u]
    room = room_tokens(s.available, low, high) if p.shortcuts else NO_CAP
    goes_on = p.never_idle or s.queued[e] > 0
    return release_s(
        last_release_s, interval_s, p.lowest_s, buffered_tokens, room, unloaded, goes_on
    )


@kernel
def _release(s, p, e, buffered, length, hits):  # type: ignore[no-untyped-def]
    """Pack the buffer onto an engine; return how many requests are left, now the buffer's head."""
    low, high = e * p.units, (e + 1) * p.units
    sort_window(s.order, buffered, length, s.ages)
    pack(
        s.order, buffered, length, hits, s.available, s.assigned, s.ages, low, high,
        p.chunk_tokens, p.spill_tokens,
    )  # fmt: skip
    left = 0
    for i in range(buffered):
        r = s.order[i]
        u = s.assigned[r]
        if u < 0:
            s.order[left] = r
            left += 1
        else:
            _join(s, e, u, r, length[r] - hits[r, u])
    return left


@kernel
def _join(s, e, u, r, uncached):  # type: ignore[no-untyped-def]
    """Append a request to a unit's queue."""
    s.assigned[r] = u
    s.remaining[r] = max(uncached, 0)
    s.following[r] = NONE
    if s.heads[u] == NONE:
        s.heads[u] = r
    else:
        s.following[s.tails[u]] = r
    s.tails[u] = r
    s.waiting_tokens[u] += s.remaining[r]
    s.unit_tokens[u] += s.remaining[r]
    s.engine_tokens[e] += s.remaining[r]
    s.unit_requests[u] += 1
    s.engine_requests[e] += 1
    s.queued[e] += 1


@kernel
def _begin_pass(s, p, e, gate_s, arrival_s):  # type: ignore[no-untyped-def]
    """Take in what waits for an engine; return how many requests the pass finishes."""
    low, high = e * p.units, (e + 1) * p.units
    busiest = 0
    total = 0
    squares = 0.0
    for u in range(low, high):
        s.taken[u] = min(s.waiting_tokens[u], p.chunk_tokens)
        busiest = max(busiest, s.taken[u])
        total += s.taken[u]
        squares += float(s.taken[u]) ** 2
    s.duration_s[e] = pass_s(p.fixed_s, p.token_s, busiest)
    s.end_s[e] = gate_s + s.duration_s[e]
    s.running[e] = True
    s.ready[e] = False
    finished = 0
    for u in range(low, high):
        budget = s.taken[u]
        s.waiting_tokens[u] -= budget
        s.finishing[u] = 0
        while s.heads[u] != NONE:
            r = s.heads[u]
            if budget == 0 and s.remaining[r] > 0:
                break
            if s.wait_s[r] != s.wait_s[r]:
                s.wait_s[r] = gate_s - arrival_s[r]
            part = min(budget, s.remaining[r])
            budget -= part
            s.remaining[r] -= part
            if s.remaining[r] > 0:
                break
            s.ttft_s[r] = s.end_s[e] - arrival_s[r]
            s.heads[u] = s.following[r]
            s.finishing[u] += 1
        finished += s.finishing[u]
    s.queued[e] -= finished
    if total > 0 or not p.never_idle:
        mean = total / p.units
        spread = math.sqrt(max(squares / p.units - mean * mean, 0.0))
        s.totals[PASSES] += 1
        s.totals[TOKENS] += total
        s.totals[BUSIEST] += busiest
        s.totals[VARIATION] += spread / mean if total > 0 else 0.0
        s.totals[BUSY] += s.duration_s[e]
    return finished


@kernel
def _end_pass(s, p, e, now_s):  # type: ignore[no-untyped-def]
    """Open an engine's gate; it can take a batch if a unit has room."""
    low, high = e * p.units, (e + 1) * p.units
    s.running[e] = False
    s.end_s[e] = math.inf
    s.ready_s[e] = now_s
    s.ready[e] = False
    for u in range(low, high):
        s.unit_tokens[u] -= s.taken[u]
        s.engine_tokens[e] -= s.taken[u]
        s.unit_requests[u] -= s.finishing[u]
        s.engine_requests[e] -= s.finishing[u]
        s.taken[u] = 0
        s.finishing[u] = 0
        s.ready[e] |= s.waiting_tokens[u] < p.chunk_tokens
