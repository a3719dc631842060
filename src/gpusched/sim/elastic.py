"""A fleet whose number of instances changes while it serves: starts take time, closing drains.

The fleet is one pool of as many replicas as there may ever be. A controller looks at it once a period
and says how many instances it wants; between two looks the exact simulator runs. An instance that is
asked for takes requests after its start-up time; one that is given up takes no new request, serves
those it has, and is paid until the last of them is answered.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import compiled_for
from gpusched.errors import InputError
from gpusched.sim import kernel, state
from gpusched.sim.fleet import Fleet
from gpusched.sim.releasing import let_in
from gpusched.sim.result import SimulationResult
from gpusched.sim.simulate import (
    EVENTS_PER_SLICE,
    announce_compilation,
    build,
    collect,
    fault,
    stall,
)
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OFF, STARTING, OPEN, DRAINING = range(4)
"""What an instance is doing."""


@dataclass(frozen=True, slots=True)
class View:
    """What a controller sees. Open instances take requests; starting and draining ones do not."""

    now_s: float
    open: int
    starting: int
    draining: int
    kv_use: float
    """Share of the open instances' KV blocks in use, as of their latest events."""
    outstanding: int
    """Requests waiting or running on open instances."""
    seats: int
    """Requests that the open instances can run at once."""
    waiting: int
    """Requests in the queues of open instances."""
    queue_wait_s: float
    """Longest wait so far of an interactive request that is first in its instance's queue."""
    late: float
    """Share of the interactive requests of the last two periods whose first token came, or still
    is, past its bound."""
    prompt_tokens: int
    """Of interactive requests that arrived in the last period."""
    period_s: float
    due_s: Floats
    """Deadlines of the deferred requests that wait outside, ascending."""

    @property
    def capacity(self) -> int:
        """Instances that are open or will be."""
        return self.open + self.starting

    @property
    def use(self) -> float:
        """Utilisation: KV blocks or seats, whichever is scarcer; above 1 where requests queue."""
        return max(self.kv_use, self.outstanding / max(self.seats, 1))


@dataclass(frozen=True, slots=True)
class Decision:
    """Instances wanted, and why."""

    target: int
    reason: str


class Controller(Protocol):
    """Says once a period how many instances there should be."""

    def decide(self, view: View) -> Decision:
        """Return what to do now; the target is held within the fleet's limits."""


class ReleaseRule(Protocol):
    """Says once a period how many deferred requests to let in, spread over the period, those due
    first first."""

    def release(self, view: View) -> int:
        """Return a number from 0 to ``len(view.due_s)``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a fleet can do. ``warm`` instances are the operator's own: while given up they serve
    others as spot instances, and come back faster."""

    startup_s: float
    initial: int
    most: int
    least: int = 1
    period_s: float = 60.0
    warm: int = 0
    warm_startup_s: float = 65.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.initial <= self.most:
            raise InputError(
                f"instances: expected 1 <= least <= initial <= most, got {self.least}, "
                f"{self.initial}, {self.most}"
            )
        if not (self.period_s > 0 and self.startup_s >= 0 and self.warm_startup_s >= 0):
            raise InputError(
                "period_s must be above 0 and start-up times not negative, got "
                f"{self.period_s:g}, {self.startup_s:g}, {self.warm_startup_s:g} s"
            )


@dataclass(frozen=True)
class ElasticResult:
    """What became of the requests and what it took. Series have one entry a period."""

    result: SimulationResult
    """Arrivals are those of the trace; deferred requests may have entered later."""
    left: NDArray[np.bool_]
    """Deferred requests not answered when the trace was over, due later: served without pay, so that
    whoever counts must leave them out and charge for them. One entry a request."""
    end_s: float
    """The look at which the trace was over; nothing is paid after it."""
    at_s: Floats
    open: Ints
    starting: Ints
    draining: Ints
    target: Ints
    use: Floats
    reasons: tuple[str, ...]
    instance_s: float
    """Paid: from the command to start to the end of draining."""
    wasted_s: float
    """Part of it in which an instance was starting or draining."""
    spot_s: float
    """Time that the operator's own instances were given to others."""
    starts: int

    @property
    def instance_hours(self) -> float:
        """Paid hours, summed over instances."""
        return self.instance_s / 3600


class Instances:
    """The instances of a fleet: what each does, and what that costs."""

    def __init__(self, s: state.State, limits: Limits) -> None:
        self.s, self.limits = s, limits
        self.mode = np.full(limits.most, OFF)
        self.mode[: limits.initial] = OPEN
        s.ready_s[:] = np.where(self.mode == OPEN, 0.0, np.inf)
        self.paid_s = self.wasted_s = self.spot_s = 0.0
        self.starts = 0

    def advance(self, now_s: float, passed_s: float) -> None:
        """Account for the time passed, and note who has started and who is drained."""
        counts = np.bincount(self.mode, minlength=4)
        paid = int(counts[STARTING] + counts[OPEN] + counts[DRAINING])
        self.paid_s += paid * passed_s
        self.wasted_s += int(counts[STARTING] + counts[DRAINING]) * passed_s
        self.spot_s += int((self.mode[: self.limits.warm] == OFF).sum()) * passed_s
        self.mode[(self.mode == STARTING) & (self.s.ready_s <= now_s)] = OPEN
        self.mode[(self.mode == DRAINING) & (self.s.load_requests == 0)] = OFF

    def aim(self, target: int, now_s: float) -> None:
        """Start, bring back, cancel or drain instances until ``target`` are open or starting."""
        limits, ready_s = self.limits, self.s.ready_s
        target = min(max(target, limits.least), limits.most)
        have = int(((self.mode == OPEN) | (self.mode == STARTING)).sum())
        if target > have:
            draining = np.flatnonzero(self.mode == DRAINING)
            back = draining[np.argsort(-self.s.load_requests[draining], kind="stable")]
            back = back[: target - have]
            self.mode[back], ready_s[back] = OPEN, now_s
            new = np.flatnonzero(self.mode == OFF)[: target - have - len(back)]
            self.mode[new] = STARTING
            delay_s = np.where(new < limits.warm, limits.warm_startup_s, limits.startup_s)
            ready_s[new] = now_s + delay_s
            self.starts += len(new)
            self.mode[new[delay_s == 0]] = OPEN
        elif target < have:
            starting = np.flatnonzero(self.mode == STARTING)
            off = starting[np.argsort(-ready_s[starting], kind="stable")][: have - target]
            self.mode[off], ready_s[off] = OFF, np.inf
            running = np.flatnonzero(self.mode == OPEN)
            surplus = min(have - target - len(off), len(running) - 1)
            away = running[np.argsort(self.s.load_requests[running], kind="stable")][:surplus]
            self.mode[away], ready_s[away] = DRAINING, np.inf
            self.mode[away[self.s.load_requests[away] == 0]] = OFF


def simulate_elastic(
    fleet: Fleet,
    trace: Trace,
    controller: Controller,
    limits: Limits,
    *,
    due_s: Floats | None = None,
    release: ReleaseRule | None = None,
    ttft_s: Floats | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> ElasticResult:
    """Serve a trace while a controller starts and stops instances.

    ``fleet`` is one pool of whole replicas; its number of replicas is replaced by ``limits.most``.
    ``due_s`` holds a deadline for each request that may wait outside until ``release`` lets it in,
    nan for the others. ``ttft_s`` holds the bounds that ``View.late`` counts, inf where there is
    none. Once the last request has arrived, those that still wait are let in, the fleet stays as it
    is, and nothing more is paid: see ``ElasticResult.left``.

    Raises:
        InputError: the fleet has several pools, or a rule is missing for deferred requests.
    """
    if len(fleet.pools) != 1 or fleet.pools[0].lanes != fleet.pools[0].replicas:
        raise InputError("an elastic fleet is one pool whose replicas are single engines")
    fleet = replace(fleet, pools=(replace(fleet.pools[0], replicas=limits.most, startup_s=0.0),))
    s, rules, firsts, notes = build(fleet, trace, closed_loop=None, seed=seed)
    deferred = np.zeros(0, np.int64) if due_s is None else np.flatnonzero(np.isfinite(due_s))
    if len(deferred):
        if release is None:
            raise InputError("deferred requests need a rule that lets them in")
        s.requests["arrival_s"][deferred] = np.nan
        s = s._replace(pending_s=np.zeros(len(trace)), pending=np.zeros(len(trace), np.int32))
    outside = Outside(trace, deferred, due_s)
    announce_compilation(kernel.run)
    run = compiled_for(kernel.run, s, rules, EVENTS_PER_SLICE, math.inf)
    enter = compiled_for(let_in, s, deferred, 0.0, 0.0)
    instances = Instances(s, limits)
    period_s, last_s = limits.period_s, float(trace.arrival_s[-1])
    watched = Watched(trace, np.setdiff1d(np.arange(len(trace)), deferred), ttft_s)

    def advance(until_s: float, may_stall: bool) -> int:
        status: int = kernel.UNDER_WAY
        while status == kernel.UNDER_WAY:
            status = run(s, rules, EVENTS_PER_SLICE, until_s)
        if status == kernel.FAULTED:
            raise InputError(fault(fleet, s))
        if status == kernel.STALLED and not may_stall:
            raise InputError(stall(fleet, s))
        return status

    log: list[tuple[float, int, int, int, int, float, str]] = []
    started = time.perf_counter()
    now_s, status = 0.0, kernel.DUE
    while now_s <= last_s and status != kernel.FINISHED:
        held = outside.waiting(now_s)
        view = _view(s, instances, now_s, period_s, watched, outside.due_s[held])
        decision = controller.decide(view)
        instances.aim(decision.target, now_s)
        if len(held) and release is not None:
            count = min(max(release.release(view), 0), len(held))
            enter(s, outside.take(held[:count]), now_s, period_s / max(count, 1))
        log.append(
            (
                now_s, view.open, view.starting, view.draining, decision.target, view.use,
                decision.reason,
            )
        )  # fmt: skip
        now_s += period_s
        status = advance(now_s, outside.left > 0)
        instances.advance(now_s, period_s)
        if progress is not None:
            progress(1.0 - int(s.counters[state.REMAINING]) / len(trace))
    if status != kernel.FINISHED:
        enter(s, outside.take(outside.waiting(now_s)), now_s, 0.0)
        advance(math.inf, False)
    found = collect(fleet, trace, s, firsts, time.perf_counter() - started, notes)
    at_s, is_open, starting, draining, target, use, reasons = zip(*log, strict=True)
    left = np.zeros(len(trace), bool)
    if due_s is not None:
        left[deferred] = (found.finish_s > now_s)[deferred] & (due_s >= now_s)[deferred]
    return ElasticResult(
        replace(found, arrival_s=trace.arrival_s), left, now_s,
        np.array(at_s), np.array(is_open), np.array(starting), np.array(draining),
        np.array(target), np.array(use), reasons,
        instances.paid_s, instances.wasted_s, instances.spot_s, instances.starts,
    )  # fmt: skip


class Watched:
    """Interactive requests: what arrived, and how many of them are late."""

    def __init__(self, trace: Trace, rows: Ints, ttft_s: Floats | None) -> None:
        self.rows = rows
        self.interactive = np.zeros(len(trace), bool)
        self.interactive[rows] = True
        self.arrival_s = trace.arrival_s[rows]
        self.ttft_s = np.full(len(rows), np.inf) if ttft_s is None else ttft_s[rows]
        tokens = trace.prompt_tokens[rows]
        self.total = np.concatenate(([0], np.cumsum(tokens, dtype=np.int64)))

    def tokens_between(self, start_s: float, end_s: float) -> int:
        """Return the prompt tokens that arrived in ``[start_s, end_s)``."""
        low, high = np.searchsorted(self.arrival_s, (start_s, end_s))
        return int(self.total[high] - self.total[low])

    def late_share(self, s: state.State, start_s: float, now_s: float) -> float:
        """Return the share of requests arrived since ``start_s`` past their bound now."""
        low, high = np.searchsorted(self.arrival_s, (start_s, now_s))
        if low == high:
            return 0.0
        first_s = s.requests["first_s"][self.rows[low:high]]
        first_s = np.where(first_s > 0, first_s, now_s)
        return float((first_s - self.arrival_s[low:high] > self.ttft_s[low:high]).mean())


class Outside:
    """Deferred requests, in order of deadline once they have arrived."""

    def __init__(self, trace: Trace, rows: Ints, due_s: Floats | None) -> None:
        self.rows = rows
        self.due_s = np.zeros(0) if due_s is None else due_s[rows]
        self.arrival_s = trace.arrival_s[rows]
        self.here = np.zeros(0, np.int64)
        self.seen = 0
        self.left = len(rows)

    def waiting(self, now_s: float) -> Ints:
        """Return the indices of those that wait, first due first."""
        seen = int(np.searchsorted(self.arrival_s, now_s, side="right"))
        if seen > self.seen:
            here = np.concatenate((self.here, np.arange(self.seen, seen)))
            self.here = here[np.argsort(self.due_s[here], kind="stable")]
            self.seen = seen
        return self.here

    def take(self, indices: Ints) -> Ints:
        """Remove the first waiting ones and return their rows of the trace."""
        self.here = self.here[len(indices) :]
        self.left -= len(indices)
        return self.rows[indices]


def _view(
    s: state.State, instances: Instances, now_s: float, period_s: float, watched: Watched,
    due_s: Floats,
) -> View:  # fmt: skip
    mode = instances.mode
    counts = np.bincount(mode, minlength=4)
    own = s.engines[mode == OPEN]
    blocks = int(own["kv_blocks"].sum())
    free = int((own["free"] + own["evictable"] * own["prefix_blocks"]).sum())
    heads = own["waiting_head"][own["waiting"] > 0]
    heads = heads[watched.interactive[heads]]
    wait_s = now_s - float(s.requests["arrival_s"][heads].min()) if len(heads) else 0.0
    return View(
        now_s=now_s,
        open=int(counts[OPEN]),
        starting=int(counts[STARTING]),
        draining=int(counts[DRAINING]),
        kv_use=1.0 - free / max(blocks, 1),
        outstanding=int(s.load_requests[mode == OPEN].sum()),
        seats=int(own["max_seqs"].sum()),
        waiting=int(own["waiting"].sum()),
        queue_wait_s=max(wait_s, 0.0),
        late=watched.late_share(s, now_s - 2 * period_s, now_s),
        prompt_tokens=watched.tokens_between(now_s - period_s, now_s),
        period_s=period_s,
        due_s=due_s,
    )
