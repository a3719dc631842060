"""A plain simulator of pipelines, event by event, that the compiled one must equal.

Every message is an event of its own, every job an object that knows its nodes.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.routing import iwrr
from gpusched.sim.pipelines.build import Setting
from gpusched.sim.pipelines.edges import compatible, link_shares, without_dead_ends
from gpusched.sim.pipelines.simulate import NodeChange
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
Hop = tuple[int, int]


@dataclass
class Job:
    """A request on its pipeline."""

    request: int
    tokens: int
    expected: int
    issued_s: float
    hops: list[Hop] = field(default_factory=list)
    at: int = 0
    started: int = 0
    context: int = 0
    prompt: bool = True
    live: bool = True
    sent_s: float = 0.0


@dataclass
class Node:
    """A node's queues, by the layer their jobs enter at, and its batch."""

    queues: dict[int, list[Job]]
    batch: list[Job] = field(default_factory=list)
    epoch: int = 0
    busy: bool = False
    layer: int = 0
    copied_tokens: int = 0
    used: float = 0.0
    reserved: float = 0.0
    peak: float = 0.0
    iterations: int = 0


class Reference:
    """One simulation; ``run`` performs it and leaves its figures in the attributes."""

    def __init__(
        self,
        setting: Setting,
        trace: Trace,
        flows: Floats,
        changes: Sequence[NodeChange] = (),
        solve_flows: Callable[[NDArray[np.bool_]], Floats] | None = None,
    ) -> None:
        self.setting, self.trace, self.flows = setting, trace, flows
        self.solve_flows = solve_flows
        machines, placement = setting.machines, setting.placement
        self.n = n = len(machines.names)
        self.first = placement.first
        self.end = np.append(placement.first + placement.count, 0)
        self.possible = compatible(machines, placement, partial_inference=setting.partial_inference)
        self.nodes = []
        for node in range(n):
            entries = {
                int(self.end[u]) if u < n else 0 for u in np.flatnonzero(self.possible[:, node])
            }
            self.nodes.append(Node({e: [] for e in sorted(entries | {int(self.first[node])})}))
            self.nodes[-1].layer = max(self.nodes[-1].queues)
        self.kind = [machines.kinds[k] for k in machines.kind_of]
        self.capacity = [
            float(k.kv_tokens[c - 1] * c) if c else 0.0
            for k, c in zip(self.kind, placement.count, strict=True)
        ]
        self.load: dict[Hop, float] = {}
        self.mean_s: dict[Hop, float] = {}
        self.priority: dict[Hop, float] = {}
        self.weight: dict[Hop, float] = {}
        self.bytes_per_s: dict[Hop, float] = {}
        self.free_s: dict[Hop, float] = {}
        self.up = placement.count > 0
        for change in sorted(changes, key=lambda c: -c.time_s):
            self.up[change.node] = not change.up
        self._connect(flows)

        size = len(trace)
        self.arrival_s = np.full(size, np.nan)
        self.dispatched_s, self.first_s = np.full(size, np.nan), np.full(size, np.nan)
        self.finish_s = np.full(size, np.nan)
        self.produced = np.zeros(size, np.int64)
        self.restarts = np.zeros(size, np.int64)
        self.rejected = np.zeros(size, np.bool_)
        self.routes: list[list[Hop]] = [[] for _ in range(size)]
        self.decode_tokens = 0
        self.waiting: list[int] = []
        self.arrived = self.issued = self.turn = 0
        self.jobs: list[Job] = []
        self.events: list[Any] = []
        self.counter = itertools.count()
        for change in changes:
            self._at(change.time_s, n + 4, self._change, change)
        if setting.offline is None:
            for time_s in trace.arrival_s:
                self._at(float(time_s), n + 2, self._arrive)
        else:
            for i in range(min(setting.offline.initial, size)):
                self.issued += 1
                self._at(i * 0.1, n + 2, self._arrive)

    def _at(self, time_s: float, rank: int, action: Callable[..., None], *arguments: Any) -> None:
        """Plan an event. At one instant nodes receive (rank 0), then act in order (1 + node), then
        the front collects, takes arrivals and admits, then nodes fail or join."""
        heapq.heappush(self.events, (time_s, rank, next(self.counter), action, arguments))

    def run(self, end_s: float = math.inf) -> "Reference":
        """Handle events up to a time."""
        while self.events and self.events[0][0] <= end_s:
            time_s, _, _, action, arguments = heapq.heappop(self.events)
            action(time_s, *arguments)
        return self

    # Topology

    def _connect(self, flows: Floats) -> None:
        use = without_dead_ends(self.possible, self.up)
        iwrr_used = self.setting.routing.kind == iwrr.IWRR
        if iwrr_used:
            flow = np.where(use, flows, 0.0)
            total = flow.sum(axis=1, keepdims=True)
            use = without_dead_ends(use & (flow > 0) & (flow >= iwrr.LEAST_SHARE * total), self.up)
            for u in range(self.n + 1):
                kept = [
                    self.load[u, v] * self.weight[u, v] / flow[u, v]
                    for v in range(self.n + 1)
                    if self.weight.get((u, v), 0) > 0 and flow[u, v] > 0
                ]
                for v in np.flatnonzero(self.possible[u]):
                    old = self.weight.get((u, int(v)), 0.0)
                    if flow[u, v] > 0 and old > 0:
                        self.load[u, int(v)] = self.load[u, int(v)] * old / flow[u, v]
                    else:
                        self.load[u, int(v)] = max(kept, default=0.0) if flow[u, v] > 0 else 0.0
                    self.weight[u, int(v)] = flow[u, v]
        shares = link_shares(self.setting.machines, use, flows if iwrr_used else None)
        for u, v in zip(*map(list, np.nonzero(self.possible)), strict=True):
            if use[u, v] or (u, v) not in self.bytes_per_s:
                self.bytes_per_s[u, v] = float(shares[u, v])
        self.use = use
        caps = self.setting.limits.prompt_tokens
        self.longest_prompt = max(
            (int(c) for c in np.unique(caps) if self._reaches(use, caps >= c)), default=0
        )

    def _reaches(self, use: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> bool:
        return bool(without_dead_ends(use, allowed)[self.n].any())

    def _change(self, now_s: float, change: NodeChange) -> None:
        self.up = self.up.copy()
        self.up[change.node] = change.up
        if not change.up:
            hit = [j for j in self.jobs if j.live and any(v == change.node for _, v in j.hops)]
            for job in hit:
                job.live = False
                for hop, edge in enumerate(job.hops):
                    node, layers = edge[1], self._layers_of(edge)
                    if node < self.n:
                        cached = job.context + (job.tokens if hop < job.started else 0)
                        self.nodes[node].used -= cached * layers
                        self.nodes[node].reserved -= job.expected * layers
                self.restarts[job.request] += 1
            self.waiting = sorted(j.request for j in hit) + self.waiting
            self.jobs = [j for j in self.jobs if j.live]
            failed = self.nodes[change.node]
            for queue in failed.queues.values():
                queue.clear()
            failed.batch, failed.busy, failed.copied_tokens = [], False, 0
            failed.epoch += 1
            failed.used = failed.reserved = 0.0
        new = self.solve_flows(self.up) if self.solve_flows is not None else self.flows
        self._connect(new)
        self._admit(now_s)

    def _layers_of(self, edge: Hop) -> int:
        u, v = edge
        return 0 if v == self.n else int(self.end[v] - self.end[u])

    # The front

    def _arrive(self, now_s: float) -> None:
        self.arrival_s[self.arrived] = now_s
        self.waiting.append(self.arrived)
        self.arrived += 1
        self._at(now_s, self.n + 3, self._admit)

    def _issue(self, now_s: float) -> None:
        offline = self.setting.offline
        if offline is not None and self.issued < len(self.trace):
            self.issued += 1
            self._at(now_s + offline.delay_s, self.n + 2, self._arrive)

    def _feed(self, now_s: float, finished: bool) -> None:
        offline = self.setting.offline
        if offline is None or self.waiting:
            return
        if offline.high_water is None:
            if finished:
                self._issue(now_s)
        elif self._usage() <= offline.high_water:
            self._issue(now_s)

    def _usage(self) -> float:
        shares = []
        for layer in range(self.setting.machines.layers):
            holders = [
                i for i in range(self.n) if self.up[i] and self.first[i] <= layer < self.end[i]
            ]
            count = self.setting.placement.count
            free = sum((self.capacity[i] - self.nodes[i].reserved) / count[i] for i in holders)
            total = sum(self.capacity[i] / count[i] for i in holders)
            shares.append(1 - free / total if total else 0.0)
        return max(shares)

    def _admit(self, now_s: float) -> None:
        while self.waiting:
            request = self.waiting[0]
            tokens = int(self.trace.prompt_tokens[request] + self.produced[request])
            job = Job(request, tokens, 0, now_s)
            job.expected = math.floor(
                tokens + self.setting.routing.output_share * self.setting.mean_output_tokens
            )
            drop = self.setting.offline is not None and self.setting.offline.drop
            if tokens <= self.longest_prompt and self._route(job, now_s):
                self.waiting.pop(0)
                self.jobs.append(job)
                if math.isnan(self.dispatched_s[request]):
                    self.dispatched_s[request] = now_s
                self._send(job, now_s)
            elif tokens <= self.longest_prompt and self.jobs and not drop:
                return
            else:
                self.waiting.pop(0)
                self.rejected[request] = True
                if not drop:
                    self._issue(now_s)

    def _route(self, job: Job, now_s: float) -> bool:
        if self.setting.routing.kind != iwrr.IWRR:
            if self._choose(job, self.n, job.tokens, self.setting.routing.mask_kv, now_s):
                self._reserve(job, job.hops[0])
                return True
            return False
        before = dict(self.load)
        place = self.n
        while True:
            if not self._choose(job, place, job.tokens, self.setting.routing.mask_kv, now_s):
                self.load = before
                return False
            place = job.hops[-1][1]
            if place == self.n:
                break
        for hop in job.hops:
            self._reserve(job, hop)
        return True

    def _reserve(self, job: Job, hop: Hop) -> None:
        if hop[1] < self.n:
            self.nodes[hop[1]].reserved += job.expected * self._layers_of(hop)

    def _choose(self, job: Job, u: int, tokens: int, mask_kv: bool, now_s: float) -> bool:
        """Append the next hop to a job's route, if a place has one."""
        routing = self.setting.routing
        open_ = []
        for v in np.flatnonzero(self.use[u]):
            if v < self.n:
                room = (
                    self.capacity[v]
                    - self.nodes[v].reserved
                    - job.expected * int(self.setting.placement.count[v])
                )
                full = room < (1 - routing.kv_high_water) * self.capacity[v]
                if tokens > self.setting.limits.prompt_tokens[v] or (mask_kv and full):
                    continue
            open_.append((u, int(v)))
        if routing.kind == iwrr.IWRR:
            if not open_:
                return False
            best = min(open_, key=lambda e: self.load[e] + tokens / self.weight[e])
            self.load[best] += tokens / self.weight[best]
        elif routing.kind == iwrr.SWARM:
            if not open_:
                return False
            best = min(open_, key=lambda e: self.priority.get(e, routing.initial_s))
            self.priority[best] = self.priority.get(best, routing.initial_s) + self.mean_s.get(
                best, routing.initial_s
            )
        else:
            if open_ and routing.kind == iwrr.SHORTEST_QUEUE:
                lengths = {e: self._queue_length(e[1]) for e in open_}
                open_ = [e for e in open_ if lengths[e] == min(lengths.values())]
            flags = np.ones(len(open_), np.bool_)
            index = iwrr.any_open(flags, 0, len(open_), self.setting.seed, self.turn)
            if index < 0:
                return False
            self.turn += 1
            best = open_[index]
        job.hops.append(best)
        return True

    def _queue_length(self, v: int) -> int:
        return len(self.nodes[v].queues[int(self.first[v])]) if v < self.n else 0

    # Links

    def _send(self, job: Job, now_s: float) -> None:
        u, v = edge = job.hops[job.at]
        machines = self.setting.machines
        size = machines.token_bytes + (0 if self.n in edge else machines.activation_bytes)
        job.sent_s = max(now_s, self.free_s.get(edge, 0.0))
        self.free_s[edge] = job.sent_s + job.tokens * (size / self.bytes_per_s[edge])
        arrival_s = self.free_s[edge] + float(machines.latency_s[u, v])
        if v == self.n:
            self._at(arrival_s, self.n + 1, self._collect, job)
        else:
            self._at(arrival_s, 0, self._receive, v, job)

    def _receive(self, now_s: float, v: int, job: Job) -> None:
        if not job.live:
            return
        node = self.nodes[v]
        u = job.hops[job.at][0]
        node.queues[int(self.end[u]) if u < self.n else 0].append(job)
        node.copied_tokens += job.tokens
        self._at(now_s, 1 + v, self._wake, v)

    def _wake(self, now_s: float, v: int) -> None:
        if not self.nodes[v].busy:
            self._start(now_s, v)

    def _collect(self, now_s: float, job: Job) -> None:
        if not job.live:
            return
        request, offline_first = job.request, job.prompt
        job.context += job.tokens
        self.produced[request] += 1
        if job.prompt:
            if self.produced[request] == 1:
                self.first_s[request] = now_s
            self.routes[request] = list(job.hops)
        elif now_s >= self.setting.warmup_s:
            self.decode_tokens += 1
        if self.produced[request] == self.trace.output_tokens[request]:
            self.finish_s[request] = now_s
            job.live = False
            self.jobs.remove(job)
            for hop in job.hops:
                if hop[1] < self.n:
                    self.nodes[hop[1]].used -= job.context * self._layers_of(hop)
                    self.nodes[hop[1]].reserved -= job.expected * self._layers_of(hop)
            self._feed(now_s, True)
            self._at(now_s, self.n + 3, self._admit)
            return
        job.prompt, job.tokens, job.at, job.started, job.issued_s = False, 1, 0, 0, now_s
        if self.setting.routing.kind == iwrr.IWRR:
            for hop in job.hops:
                if self.weight[hop] > 0:
                    self.load[hop] += 1 / self.weight[hop]
        self._send(job, now_s)
        if offline_first:
            self._feed(now_s, False)

    # Nodes

    def _start(self, now_s: float, v: int) -> None:
        """Form a batch at the next layer, in cyclic order, where jobs wait."""
        node, limits = self.nodes[v], self.setting.limits
        entries = list(node.queues)
        turn = entries.index(node.layer)
        for layer in entries[turn + 1 :] + entries[: turn + 1]:
            queue = [job for job in node.queues[layer] if job.live]
            batch: list[Job] = []
            full: set[bool] = set()
            for job in queue:
                alike = [other for other in batch if other.prompt == job.prompt]
                if job.prompt:
                    total = sum(other.tokens for other in alike) + job.tokens
                    fits = len(alike) < limits.prompt_requests[v] and (
                        not alike or total <= limits.prompt_tokens[v]
                    )
                else:
                    total = sum(other.context for other in alike) + job.context
                    fits = len(alike) < limits.decode_requests[v] and (
                        not alike or total <= limits.decode_context[v]
                    )
                if not fits:
                    full.add(job.prompt)
                if job.prompt not in full:
                    batch.append(job)
            node.queues[layer] = [job for job in queue if job not in batch]
            if batch:
                break
        else:
            node.busy = False
            return
        for job in batch:
            if layer == (self.end[job.hops[job.at][0]] if job.hops[job.at][0] < self.n else 0):
                node.used += job.tokens * self._layers_of(job.hops[job.at])
                job.started = job.at + 1
        later = [e for e in entries if e > layer]
        layers = (later[0] if later else int(self.end[v])) - layer
        prompts = sum(job.tokens for job in batch if job.prompt)
        decodes = sum(1 for job in batch if not job.prompt)
        sizes = self.kind[v].decode_requests
        steps = max(float(decodes), float(sizes[sizes > 0].min())) if decodes else 0.0
        duration_s = layers * self.kind[v].prompt_s(prompts)
        duration_s += layers * (self.kind[v].decode_s(steps) if decodes else 0.0)
        if layer == self.first[v]:
            copy_s = self.setting.machines.activation_bytes / self.setting.copy_bytes_per_s
            duration_s += node.copied_tokens * copy_s
            node.copied_tokens = 0
        node.layer, node.batch, node.busy = layer, batch, True
        node.iterations += 1
        node.peak = max(node.peak, node.used)
        self._at(now_s + duration_s, 1 + v, self._finish, v, node.epoch)

    def _finish(self, now_s: float, v: int, epoch: int) -> None:
        node = self.nodes[v]
        if epoch != node.epoch:
            return
        batch, node.batch = [job for job in node.batch if job.live], []
        later = [e for e in node.queues if e > node.layer]
        for job in batch:
            if later:
                node.queues[later[0]].append(job)
                continue
            edge = job.hops[job.at]
            if self.setting.routing.kind == iwrr.SWARM:
                self.mean_s[edge] = iwrr.smoothed(
                    self.mean_s.get(edge, self.setting.routing.initial_s),
                    now_s - job.sent_s,
                    self.setting.routing.smoothing,
                )
            job.at += 1
            if job.at == len(job.hops):
                masked = self.setting.routing.mask_kv
                if not self._choose(job, v, job.tokens, masked, now_s):
                    self._choose(job, v, 0, False, now_s)
                self._reserve(job, job.hops[-1])
            self._send(job, now_s)
        self._start(now_s, v)
