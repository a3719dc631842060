"""The slow reference: every iteration simulated one by one, in plain Python.

It defines what the event-leaping kernel must compute and shares no code with it. Read it to learn
what is simulated; use ``simulate`` for everything else.
"""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np

from gpusched.errors import InputError
from gpusched.policies import views
from gpusched.policies.admission.policy import GATED, STAGGERED
from gpusched.policies.batching.discipline import (
    discipline,
)
from gpusched.policies.batching.estimation import GroupEstimator
from gpusched.policies.custom import Compiled
from gpusched.policies.routing.policy import RoutingPolicy
from gpusched.sim.fleet import Fleet
from gpusched.sim.grouping import estimator_for, groups_for, learns
from gpusched.sim.reference_engine import Engine, Request, random_u64, schedule
from gpusched.sim.reference_front import Front, Gated, Staggered
from gpusched.sim.simulate import ClosedLoop, predictions
from gpusched.traces.trace import Trace


def seen_request(request: Request) -> views.Request:
    """What a user's function sees of a request before any engine has it."""
    return views.Request(
        request.arrival_s, request.prompt, request.produced, request.predicted, request.priority
    )


@dataclass(eq=False)
class Learner:
    """What sets the groups of a pool."""

    estimator: GroupEstimator
    pool_index: int
    period_s: float
    due_s: float
    requests: list[Request] = field(default_factory=list)
    """Arrivals so far; their place is their number."""
    periods: int = 1


class Reference:
    """A simulation, one iteration at a time."""

    engine_type: type[Engine] = Engine

    def __init__(
        self, fleet: Fleet, trace: Trace, closed_loop: ClosedLoop | None = None, seed: int = 0
    ) -> None:
        if not len(trace):
            raise InputError(f"{trace.name}: the trace has no requests")
        self.fleet = fleet
        self.closed_loop = closed_loop
        self.seed = seed
        self.expected_output = max(round(float(trace.output_tokens.mean())), 1)
        prefix = trace.prefix
        self.requests = [
            Request(
                i,
                int(trace.prompt_tokens[i]),
                int(trace.output_tokens[i]),
                prefix.block_ids[prefix.offsets[i] : prefix.offsets[i + 1]].tolist()
                if prefix is not None
                else [],
            )
            for i in range(len(trace))
        ]
        disciplines = [discipline(pool.batching) for pool in fleet.pools]
        predicted = predictions(trace, disciplines, seed)
        for request in self.requests:
            request.predicted = int(predicted[request.index])
            if trace.stored_tokens is not None:
                request.stored = int(trace.stored_tokens[request.index])
            if trace.class_id is not None:
                request.priority = int(trace.class_id[request.index])
        if trace.session_id is not None:
            for request in self.requests:
                request.session = int(trace.session_id[request.index])
        roots = self.requests
        if trace.think_s is not None and trace.session_id is not None and trace.round is not None:
            latest: dict[int, Request] = {}
            rows = sorted(range(len(trace)), key=lambda i: (trace.round[i], i))  # type: ignore[index]
            for i in rows:
                session = int(trace.session_id[i])
                if session in latest:
                    latest[session].follower = self.requests[i]
                    self.requests[i].think_s = float(trace.think_s[i])
                latest[session] = self.requests[i]
            later = {r.follower.index for r in self.requests if r.follower is not None}
            roots = [r for r in self.requests if r.index not in later]
        self.rows = deque((float(trace.arrival_s[r.index]), r) for r in roots)
        self.pending: list[tuple[float, int]] = []
        pools = [p for p in fleet.pools if p.role != "decode"]
        pools += [p for p in fleet.pools if p.role == "decode"]
        lanes = [pool for pool in pools for _ in range(pool.lanes)]
        self.engines = [
            self.engine_type(
                pool,
                fleet.pools.index(pool),
                pool.timing,
                index,
                discipline(pool.batching),
                groups_for(pool, discipline(pool.batching), trace, predicted, len(lanes)),
                pool.kv_blocks // pool.pipeline_stages,
                max(pool.max_num_seqs // pool.pipeline_stages, 1),
                prefix.block_tokens
                if prefix is not None and pool.prefix_caching and pool.role != "decode"
                else 0,
            )
            for index, pool in enumerate(lanes)
        ]
        first = 0
        while first < len(lanes):
            units = self.engines[first : first + lanes[first].data_parallel]
            for unit in units:
                unit.units = units
            first += len(units)
        self.entry = [e for e in self.engines if e.pool.role != "decode"]
        self.decode = [e for e in self.engines if e.pool.role == "decode"]
        self.routing, self.decode_routing, self.admission = fleet.policies
        self.turn = {"entry": 0, "decode": 0}
        self.owner: dict[int, Engine] = {}
        self.session_owner: dict[int, Engine] = {}
        self.gaps: list[float] = []
        self.remaining = len(self.requests)
        self.front = Front(self)
        if self.admission.kind == STAGGERED:
            self.front = Staggered(self, self.admission)
        elif self.admission.kind == GATED:
            self.front = Gated(self, self.admission, trace)
        self.learners = [
            Learner(estimator_for(pool, chosen), index, chosen.reestimate_s, chosen.reestimate_s)
            for index, pool in enumerate(fleet.pools)
            if learns(chosen := discipline(pool.batching))
        ]
        self.untold: list[Request] = []

    def run(self) -> "Reference":
        """Run to the end."""
        if self.closed_loop is not None:
            for _ in range(min(self.closed_loop.users, len(self.rows))):
                insort(self.pending, (0.0, self.rows.popleft()[1].index))
        while self.remaining:
            engine = min(self.engines, key=lambda e: e.end_s)
            row_s = self.rows[0][0] if self.rows and self.closed_loop is None else inf
            pending_s = self.pending[0][0] if self.pending else inf
            due_s = min((learner.due_s for learner in self.learners), default=inf)
            tick_s = self.front.tick_s
            if due_s < min(row_s, pending_s, tick_s, engine.end_s):
                self.learn(due_s)
            elif row_s <= min(pending_s, tick_s, engine.end_s):
                self.front.take_in(self.rows.popleft()[1], row_s)
            elif pending_s <= min(tick_s, engine.end_s):
                self.look_at_pending(self.requests[self.pending.pop(0)[1]], pending_s)
            elif tick_s <= engine.end_s:
                self.front.look(tick_s)
            else:
                self.front.end_pass(engine.units, engine.end_s)
                for unit in engine.units:
                    self.end_iteration(unit)
                for unit in engine.units:
                    unit.busy = False
                self.front.look(engine.end_s)
                schedule(engine.units, engine.end_s)
        return self

    def look_at_pending(self, request: Request, now_s: float) -> None:
        """Let happen to a request what was put off to this time."""
        if request.transferring:
            self.receive(request, now_s)
        elif request.held_back:
            self.ask_admission(request, now_s)
        else:
            self.front.take_in(request, now_s)

    def learn(self, now_s: float) -> None:
        """Tell estimators what is known by now, and take the groups of those that are due."""
        arrived = sorted(self.untold, key=lambda r: (r.arrival_s, r.index))
        self.untold = []
        for learner in self.learners:
            own = [r for r in arrived if r.engine and r.engine.pool_index == learner.pool_index]
            learner.requests += own
            estimator = learner.estimator
            estimator.observe_arrival(
                [r.arrival_s for r in own], [r.prompt for r in own], [r.predicted for r in own]
            )
            if learner.due_s > now_s:
                continue
            learner.periods += 1
            learner.due_s = learner.periods * learner.period_s
            for number in estimator.numbers:
                request = learner.requests[number]
                if request.produced == request.output:
                    estimator.observe_end(number, request.produced)
                else:
                    estimator.censor(number, request.produced)
            before = estimator.groups
            if estimator.thresholds(now_s) is not before:
                for engine in self.engines:
                    if engine.pool_index == learner.pool_index:
                        engine.groups = estimator.groups
                        engine.max_seqs = estimator.groups.seats
                        self.wake(engine, now_s)

    def route(self, request: Request, engines: list[Engine], tier: str, now_s: float) -> Engine:
        """Choose an engine as the fleet's routing policy does."""
        if len(engines) == 1:
            return engines[0]
        turn = self.turn[tier]
        self.turn[tier] += 1
        draw = random_u64(self.seed, 2 * request.index + (tier == "decode"))
        favourite = None
        if tier == "entry" and self.routing.name.startswith("session-affinity"):
            favourite = (
                self.session_owner.get(request.session) if request.session is not None else None
            )
        elif tier == "entry":
            for block in request.blocks:
                if block not in self.owner:
                    break
                favourite = self.owner[block]
        started = [e for e in engines if e.pool.startup_s <= now_s]
        policy = self.routing if tier == "entry" else self.decode_routing
        chosen = self.choose(policy, engines, started, favourite, turn, draw, request)
        if tier == "entry":
            for block in request.blocks:
                self.owner[block] = chosen
            if request.session is not None:
                self.session_owner[request.session] = chosen
        return chosen

    def choose(
        self,
        policy: RoutingPolicy,
        engines: list[Engine],
        started: list[Engine],
        favourite: Engine | None,
        turn: int,
        draw: int,
        request: Request,
    ) -> Engine:
        """Apply a routing policy to the candidates."""
        if not started:
            return min(engines, key=lambda e: e.pool.startup_s)
        count = len(engines)
        if policy.score is not None:
            own = policy.score
            return min(
                started, key=lambda e: self.score(own, engines.index(e), e, favourite, request)
            )
        if policy.name == "least-requests":
            return min(started, key=lambda e: e.load_requests)
        least = min(started, key=lambda e: e.load_tokens)
        if policy.name == "least-tokens":
            return least
        if policy.name == "iqr-lexicographic":
            return self.place(policy, started, request)
        if policy.name in ("prefix-affinity", "session-affinity"):
            limit = policy.factor * least.load_requests + policy.slack_requests
            if favourite in started and favourite is not None and favourite.load_requests <= limit:
                return favourite
            return least
        if policy.name == "power-of-two":
            a = (draw >> 33) % count
            b = ((draw & 0x7FFFFFFF) % (count - 1) + a + 1) % count
            pair = [engines[i] for i in sorted((a, b))]
            if any(e not in started for e in pair):
                return min(started, key=lambda e: e.load_requests)
            return min(pair, key=lambda e: e.load_requests)
        start = turn if policy.name == "round-robin" else draw >> 33
        order = [engines[(start + i) % count] for i in range(count)]
        return next(e for e in order if e in started)

    def place(self, policy: RoutingPolicy, started: list[Engine], request: Request) -> Engine:
        """Fewest requests, then tokens, outliers in tokens left out."""
        tokens = request.prompt + self.expected_output
        able = [e for e in started if e.kv_blocks * e.pool.block_tokens - e.load_tokens >= tokens]
        if not able:
            return min(started, key=lambda e: e.load_requests)
        if len(able) >= 4:
            q1, q3 = np.percentile([e.load_tokens for e in able], [25, 75])
            limit = q3 + policy.outlier_factor * (q3 - q1)
            able = [e for e in able if e.load_tokens <= limit]
        fewest = min(e.load_requests for e in able)
        close = [e for e in able if e.load_requests <= fewest + policy.slack_requests]
        return min(close, key=lambda e: e.load_tokens)

    def score(
        self,
        own: Compiled,
        position: int,
        engine: Engine,
        favourite: Engine | None,
        request: Request,
    ) -> float:
        """Score a candidate with a user's function."""
        seen = {
            "replica": views.Replica(
                position, engine.load_requests, engine.load_tokens, engine is favourite
            ),
            "request": seen_request(request),
        }
        return float(own.function(*(seen[v] for v in own.views), *own.parameters))

    def ask_admission(self, request: Request, now_s: float) -> None:
        """Ask a user's function how long to hold a request."""
        own = self.admission.hold
        assert own is not None
        seen: dict[str, Any] = {
            "request": seen_request(request),
            "fleet": views.Fleet(
                now_s,
                len(self.entry),
                sum(e.load_requests for e in self.engines),
                sum(e.load_tokens for e in self.engines),
            ),
        }
        hold_s = float(own.function(*(seen[v] for v in own.views), *own.parameters))
        request.held_back = 0.0 < hold_s < inf
        if hold_s == inf:
            self.reject(request, now_s)
        elif request.held_back:
            insort(self.pending, (now_s + hold_s, request.index))
        else:
            self.enter(request, now_s)

    def enter(self, request: Request, now_s: float) -> None:
        """Route and queue a request, or reject it."""
        engine = self.route(request, self.entry, "entry", now_s)
        if self.fits(request, engine):
            self.count(engine, request, 1)
            self.enqueue(engine, request, now_s)
        else:
            self.reject(request, now_s)

    def fits(self, request: Request, engine: Engine) -> bool:
        """Whether an engine, or every decode engine after it, can hold a request."""
        homes = [engine]
        if engine.pool.role == "prefill":
            if engine.blocks_for(request.prompt) > engine.kv_blocks:
                return False
            homes = self.decode if request.output > 1 else []
        return all(e.blocks_for(request.final_tokens) <= e.kv_blocks for e in homes)

    def reject(self, request: Request, now_s: float) -> None:
        """Refuse a request and the later rounds of its session."""
        rejected: Request | None = request
        while rejected is not None:
            rejected.arrival_s = now_s if rejected is not request else rejected.arrival_s
            rejected.rejected = True
            self.remaining -= 1
            rejected = rejected.follower
        self.next_user(now_s)

    def count(self, engine: Engine, request: Request, sign: int) -> None:
        """Count a request in or out of an engine's load."""
        engine.load_requests += sign
        engine.load_tokens += sign * (request.prompt + self.expected_output)

    def enqueue(self, engine: Engine, request: Request, now_s: float) -> None:
        """Queue a request; an idle engine wakes."""
        if request.engine is None:
            self.untold.append(request)
        request.engine = engine
        engine.enter_queue(request, front=False)
        self.wake(engine, now_s)

    def wake(self, engine: Engine, now_s: float) -> None:
        """Let an idle engine look at its queue."""
        if not any(unit.busy for unit in engine.units):
            for unit in engine.units:
                unit.end_s = min(unit.end_s, max(now_s, unit.pool.startup_s))

    def next_user(self, now_s: float) -> None:
        """In a closed loop, let the next row arrive."""
        if self.closed_loop is not None and self.rows:
            request = self.rows.popleft()[1]
            insort(self.pending, (now_s + self.closed_loop.think_s, request.index))

    def complete(self, engine: Engine, request: Request, now_s: float) -> None:
        """Finish a request."""
        engine.running.remove(request)
        if engine.grouped:
            engine.sizes[request.group] -= 1
        engine.register(request, request.final_tokens)
        engine.release(request)
        self.count(engine, request, -1)
        self.remaining -= 1
        if request.follower is not None:
            follower = request.follower
            insort(self.pending, (now_s + follower.think_s, follower.index))
        else:
            self.next_user(now_s)

    def give_token(self, engine: Engine, request: Request, now_s: float) -> None:
        """Count one token."""
        if request.produced == 0:
            request.first_token_s = now_s
        else:
            self.gaps.append(now_s - request.last_token_s)
        request.last_token_s = now_s
        request.produced += 1
        engine.output_tokens += 1

    def end_iteration(self, engine: Engine) -> None:
        """Account for the iteration that an engine ends."""
        now_s = engine.end_s
        if engine.busy:
            finished, paused = [], []
            for request in engine.active:
                request.computed += 1
                self.give_token(engine, request, now_s)
                if request.produced == request.output:
                    finished.append(request)
                elif engine.at_group_end(request):
                    engine.decodes.remove(request)
                    paused.append(request)
            for request in sorted(finished, key=lambda r: r.index):
                engine.decodes.remove(request)
                self.complete(engine, request, now_s)
            for request in sorted(paused, key=lambda r: r.index):
                engine.pause(request)
            for request, _, new in engine.chunks:
                engine.prompt_tokens += new
                if request.computed < request.target:
                    continue
                self.give_token(engine, request, now_s)
                self.front.end_prefill(request)
                if request.produced == request.output:
                    self.complete(engine, request, now_s)
                elif (target := self.decode_engine(engine, request, now_s)) is not None:
                    self.hand_over(engine, target, request, now_s)
                elif engine.at_group_end(request):
                    engine.pause(request)
                else:
                    left = max(request.predicted - request.produced, 1)
                    base = request.computed + 1 - engine.iterations
                    request.plan = (engine.iterations + left - 1, base)
                    engine.decodes.append(request)

    def decode_engine(self, engine: Engine, request: Request, now_s: float) -> Engine | None:
        """Choose a decode engine for a computed prompt; None if it stays where it is."""
        if not self.decode or engine.pool.role == "decode":
            return None
        if self.admission.kind == GATED and engine.pool.role == "mixed":
            free = [
                e
                for e in self.decode
                if e.load_requests < e.max_seqs
                and e.blocks_for(request.final_tokens) <= e.kv_blocks
            ]
            draw = (random_u64(self.seed, 2 * request.index + 1) >> 11) / 2**53
            return free[int(draw * len(free))] if free else None
        target = self.route(request, self.decode, "decode", now_s)
        if engine.pool.role == "mixed" and (
            target.load_requests >= target.max_seqs
            or target.blocks_for(request.final_tokens) > target.kv_blocks
        ):
            return None
        return target

    def shipped_tokens(self, target: Engine, request: Request) -> int:
        """KV tokens that a decode engine lacks of a computed prompt."""
        return request.computed

    def hand_over(self, engine: Engine, target: Engine, request: Request, now_s: float) -> None:
        """Send the KV cache to a decode engine."""
        engine.running.remove(request)
        if engine.grouped:
            engine.sizes[request.group] -= 1
        self.count(engine, request, -1)
        self.count(target, request, 1)
        tokens = self.shipped_tokens(target, request)
        link = self.fleet.link
        begin_s = max(now_s, engine.send_free_s, target.receive_free_s)
        end_s = begin_s + link.latency_s + link.token_s * tokens
        engine.send_free_s = target.receive_free_s = end_s
        request.destination = target
        request.transferring = True
        insort(self.pending, (end_s, request.index))

    def receive(self, request: Request, now_s: float) -> None:
        """End a transfer."""
        source, target = request.engine, request.destination
        assert source is not None
        assert target is not None
        request.transferring = False
        source.release(request)
        if source.waiting:
            self.wake(source, now_s)
        self.enqueue(target, request, now_s)
