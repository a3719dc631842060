"""Admission in the slow reference: staggered release and gates, in plain Python."""

from collections import deque
from math import inf
from typing import Protocol

import numpy as np

from gpusched.policies.admission.gate import (
    CREDIT,
    FIRST_COME,
    accrue,
    choose_class,
    credit_wait_s,
)
from gpusched.policies.admission.policy import AdmissionPolicy
from gpusched.policies.admission.staggered import release_interval_s, release_s
from gpusched.policies.batching.discipline import CHUNKED
from gpusched.policies.routing.packing import NO_CAP, pack
from gpusched.sim.front import WINDOW, classes_of, full_pass_s
from gpusched.sim.reference_engine import Engine, Request
from gpusched.traces.trace import Trace


class Run(Protocol):
    """The simulation behind the front."""

    admission: AdmissionPolicy
    engines: list[Engine]
    entry: list[Engine]

    def enter(self, request: Request, now_s: float) -> None:
        """Route and queue a request."""

    def ask_admission(self, request: Request, now_s: float) -> None:
        """Ask a user's function."""

    def fits(self, request: Request, engine: Engine) -> bool:
        """Whether an engine can ever hold a request."""
        ...

    def count(self, engine: Engine, request: Request, sign: int) -> None:
        """Count a request in or out of an engine's load."""

    def enqueue(self, engine: Engine, request: Request, now_s: float) -> None:
        """Queue a request on an engine."""

    def reject(self, request: Request, now_s: float) -> None:
        """Refuse a request."""


class Front:
    """Lets every request through at once."""

    tick_s = inf
    """When to look at held requests again."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def take_in(self, request: Request, now_s: float) -> None:
        """Take in a new request."""
        request.arrival_s = now_s
        if self.run.admission.hold is not None:
            self.run.ask_admission(request, now_s)
        else:
            self.run.enter(request, now_s)

    def look(self, now_s: float) -> None:
        """Let in what may go on."""

    def end_pass(self, units: list[Engine], now_s: float) -> None:
        """Note the end of an iteration."""

    def end_prefill(self, request: Request) -> None:
        """Note that a prompt is computed."""

    def send(self, request: Request, engine: Engine, now_s: float) -> bool:
        """Give a held request to an engine; return whether it can ever fit there."""
        if not self.run.fits(request, engine):
            self.run.reject(request, now_s)
            return False
        self.run.count(engine, request, 1)
        self.run.enqueue(engine, request, now_s)
        return True


class Staggered(Front):
    """Releases batches, one replica at a time."""

    def __init__(self, run: Run, policy: AdmissionPolicy) -> None:
        super().__init__(run)
        self.policy = policy
        self.held: list[Request] = []
        self.passes_s: deque[float] = deque(maxlen=policy.window_passes)
        pool = run.entry[0].pool
        self.prior_s = full_pass_s(pool.timing, pool.max_num_batched_tokens)
        self.reported_s = {id(engine): 0.0 for engine in run.entry}
        self.last_release_s = -inf
        self.unloaded = False
        self.replicas = [e.units for e in run.entry if e is e.units[0]]

    def take_in(self, request: Request, now_s: float) -> None:
        """Hold a request."""
        request.arrival_s = now_s
        if not self.held:
            units = self.ready(now_s)
            self.unloaded = units is not None and not has_prompts(units)
        self.held.append(request)
        self.look(now_s)

    def end_pass(self, units: list[Engine], now_s: float) -> None:
        """Note the time of a pass over prompts."""
        if units[0] in self.run.entry and any(u.busy and u.chunks for u in units):
            self.passes_s.append(now_s - units[0].start_s)
            self.reported_s[id(units[0])] = now_s

    def ready(self, now_s: float) -> list[Engine] | None:
        """The replica between passes for longest that has room."""
        able = [
            units
            for units in self.replicas
            if units[0].pool.startup_s <= now_s
            and not any(u.busy and u.chunks for u in units)
            and any(room_of(u) > 0 for u in units)
        ]
        return min(able, key=lambda units: self.reported_s[id(units[0])], default=None)

    def look(self, now_s: float) -> None:
        """Release what is due."""
        starts = [units[0].pool.startup_s for units in self.replicas]
        active = sum(start <= now_s for start in starts)
        self.tick_s = min((s for s in starts if s > now_s), default=inf)
        while self.held:
            units = self.ready(now_s)
            if units is None:
                return
            mean_s = float(np.mean(self.passes_s)) if self.passes_s else self.prior_s
            due_s = release_s(
                self.last_release_s,
                release_interval_s(
                    mean_s, self.policy.network_s, active, self.policy.lowest_interval_s, mean_s
                ),
                self.policy.lowest_interval_s,
                sum(r.prompt for r in self.held),
                sum(max(room_of(u), 0) for u in units),
                self.unloaded,
                has_prompts(units),
            )
            if due_s > now_s:
                self.tick_s = min(self.tick_s, due_s)
                return
            self.release(units, now_s)
        self.tick_s = inf

    def release(self, units: list[Engine], now_s: float) -> None:
        """Pack the held requests onto the units of a replica."""
        window, count = self.held[:WINDOW], len(self.held[:WINDOW])
        lengths = np.array([r.prompt for r in window])
        ages = np.array([r.age for r in window])
        hits = np.array([[u.hits(r) * u.prefix_tokens for u in units] for r in window])
        order = np.array(sorted(range(count), key=lambda i: (-ages[i], -lengths[i])))
        room = np.array([room_of(u) for u in units])
        assigned = np.zeros(count, np.int64)
        chunk = units[0].pool.max_num_batched_tokens
        pack(order, count, lengths, hits, room, assigned, ages, 0, len(units), chunk, NO_CAP)
        kept: list[Request] = []
        shed: list[Request] = []
        for request, age, unit in zip(window, ages.tolist(), assigned.tolist(), strict=True):
            request.age = age
            if unit < 0:
                late = 0 < self.policy.age_limit < age
                (shed if late else kept).append(request)
        self.held = kept + self.held[WINDOW:]
        self.last_release_s, self.unloaded = now_s, False
        for request in shed:
            self.run.reject(request, now_s)
        for i in order.tolist():
            if assigned[i] >= 0:
                self.send(window[i], units[assigned[i]], now_s)


class Gated(Front):
    """Gives idle prefill slots to classes."""

    def __init__(self, run: Run, policy: AdmissionPolicy, trace: Trace) -> None:
        super().__init__(run)
        self.policy = policy
        lanes = [engine.pool for engine in run.engines]
        self.plan, _ = classes_of(policy, trace, lanes)
        self.queues: list[deque[Request]] = [deque() for _ in self.plan.waiting]
        self.prefills = np.zeros(len(self.queues), np.int64)
        self.credits = np.zeros(len(self.queues))
        self.accrued_s = 0.0

    def take_in(self, request: Request, now_s: float) -> None:
        """Hold a request."""
        request.arrival_s = now_s
        self.queues[request.priority].append(request)
        self.look(now_s)

    def end_prefill(self, request: Request) -> None:
        """Count a request out of its class's prefills."""
        if request.gated:
            request.gated = False
            self.prefills[request.priority] -= 1

    def choose(self, gate: int) -> int:
        """The class that a gate lets in next, or -1."""
        plan = self.plan
        return int(
            choose_class(
                gate,
                self.waiting,
                np.array([q[0].arrival_s if q else inf for q in self.queues]),
                self.prefills,
                plan.targets,
                plan.queue_targets,
                plan.metered,
                self.credits,
                plan.priorities,
                len(self.queues),
            )
        )

    @property
    def waiting(self) -> np.ndarray:
        """Held requests of each class."""
        return np.array([len(q) for q in self.queues])

    def look(self, now_s: float) -> None:
        """Let in what the gate allows."""
        plan, gate = self.plan, self.policy.gate
        self.tick_s = inf
        accrue(
            self.credits,
            plan.rates_rps,
            self.policy.burst,
            now_s - self.accrued_s,
            len(self.queues),
        )
        self.accrued_s = now_s
        while True:
            entry = self.run.entry
            idle = [
                e
                for e in entry
                if not e.waiting
                and len(e.running) == len(e.decodes)
                and len(e.running) < e.max_seqs
                and e.pool.startup_s <= now_s
            ]
            if not idle:
                starts = [e.pool.startup_s for e in entry if e.pool.startup_s > now_s]
                self.tick_s = min(starts, default=inf)
                return
            i = self.choose(gate)
            if i < 0 and not any(e.load_requests for e in self.run.engines):
                i = self.choose(FIRST_COME)
            elif i >= 0 and gate == CREDIT and plan.metered[i]:
                self.credits[i] -= 1.0
            if i < 0:
                if gate == CREDIT:
                    wait_s = credit_wait_s(
                        self.waiting, plan.metered, self.credits, plan.rates_rps, len(self.queues)
                    )
                    self.tick_s = now_s + wait_s
                return
            request = self.queues[i].popleft()
            if self.send(request, min(idle, key=lambda e: e.load_tokens), now_s):
                request.gated = True
                self.prefills[i] += 1


def room_of(unit: Engine) -> int:
    """Tokens that a unit can take into its next pass."""
    budget = unit.pool.max_num_batched_tokens
    if unit.policy.chunk_tokens:
        budget = max(unit.policy.chunk_tokens, unit.max_seqs)
    if unit.policy.forming == CHUNKED:
        budget -= len(unit.decodes)
    left = sum(r.target - r.computed for r in unit.running if r not in unit.decodes)
    return budget - left - sum(r.target for r in unit.waiting)


def has_prompts(units: list[Engine]) -> bool:
    """Whether some unit has a prompt that is not computed."""
    return any(u.waiting or len(u.running) > len(u.decodes) for u in units)
