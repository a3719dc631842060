"""An engine of the slow reference: its queue, batch and KV blocks, one iteration at a time."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import chain, permutations
from math import ceil, floor, inf, log2, nan

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.batching.discipline import (
    ALL,
    CHUNKED,
    GROUPED,
    LEAST_PREDICTED,
    LOOK_AHEAD,
    OPEN,
    RANDOM,
    STATIC,
    WORST_RANK,
    Discipline,
)
from gpusched.policies.batching.estimation import Groups
from gpusched.policies.batching.groups import TOLERANCE_S
from gpusched.policies.batching.order import FCFS, LEVELS, PRIORITY, SHORTEST, VOLUME
from gpusched.sim.fleet import Pool
from gpusched.timing.compiled import CompiledTiming


@dataclass(eq=False)
class Request:
    """A request and how far it has come."""

    index: int
    prompt: int
    output: int
    blocks: list[int]
    session: int | None = None
    follower: "Request | None" = None
    think_s: float = 0.0
    arrival_s: float = nan
    admitted_s: float = nan
    first_token_s: float = nan
    last_token_s: float = nan
    produced: int = 0
    computed: int = 0
    stored: int = 0
    """Prompt tokens that a store outside the engines holds."""
    cached: int = 0
    held: int = 0
    private: int = 0
    preemptions: int = 0
    rejected: bool = False
    engine: "Engine | None" = None
    destination: "Engine | None" = None
    transferring: bool = False
    held_back: bool = False
    age: int = 0
    """Releases that passed it over."""
    gated: bool = False
    overtaken: int = 0
    """Times that on-time batching let another go first."""
    predicted: int = 0
    priority: int = 0
    rank: tuple[float, ...] = ()
    group: int = 0
    plan: tuple[int, int] = (0, 0)
    """Predicted last iteration, and KV tokens less iteration."""

    @property
    def target(self) -> int:
        """KV tokens needed before the next token."""
        return self.prompt + self.produced

    @property
    def final_tokens(self) -> int:
        """KV tokens held when the last token is given."""
        return self.prompt + self.output - 1


@dataclass(eq=False)
class Engine:
    """One lane of one replica, or of one of its data-parallel units."""

    pool: Pool
    pool_index: int
    timing: CompiledTiming
    index: int
    policy: Discipline
    groups: Groups
    kv_blocks: int
    max_seqs: int
    prefix_tokens: int
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    decodes: list[Request] = field(default_factory=list)
    active: list[Request] = field(default_factory=list)
    chunks: list[tuple[Request, int, int]] = field(default_factory=list)
    holders: dict[int, int] = field(default_factory=dict)
    idle: OrderedDict[int, None] = field(default_factory=OrderedDict)
    private: int = 0
    end_s: float = inf
    busy: bool = False
    load_requests: int = 0
    load_tokens: int = 0
    send_free_s: float = 0.0
    receive_free_s: float = 0.0
    iterations: int = 0
    busy_s: float = 0.0
    prefill_busy_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    peak_blocks: int = 0
    draws: int = 0
    emptied: bool = False
    """Whether requests had to be preempted for the iteration under way."""

    def __post_init__(self) -> None:
        count = len(self.groups.ends)
        self.max_seqs = self.groups.seats
        self.held: list[list[Request]] = [[] for _ in range(count)]
        self.sizes = [0] * count
        self.units = [self]
        self.start_s = 0.0
        self.nested = self.policy.name == "nested-wait"
        self.grouped = self.policy.gate == GROUPED

    @property
    def prefix_blocks(self) -> int:
        """KV blocks of a prefix block."""
        return self.prefix_tokens // self.pool.block_tokens

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that hold this many tokens."""
        return ceil(tokens / self.pool.block_tokens)

    @property
    def available(self) -> int:
        """Blocks free or held by idle cache entries."""
        held = len(self.holders) - len(self.idle)
        return self.kv_blocks - self.private - held * self.prefix_blocks

    def allocate(self, request: Request, count: int) -> None:
        """Take blocks, evicting least recently used prefixes."""
        request.private += count
        self.private += count
        while self.private + len(self.holders) * self.prefix_blocks > self.kv_blocks:
            block, _ = self.idle.popitem(last=False)
            del self.holders[block]
        self.peak_blocks = max(self.peak_blocks, self.kv_blocks - self.available)

    def hits(self, request: Request) -> int:
        """Leading prefix blocks in the cache."""
        if not self.prefix_tokens:
            return 0
        known = request.blocks[: request.target // self.prefix_tokens]
        count = 0
        while count < len(known) and known[count] in self.holders:
            count += 1
        return count

    def hold(self, request: Request, count: int) -> None:
        """Hold the leading cached blocks."""
        for block in request.blocks[:count]:
            self.idle.pop(block, None)
            self.holders[block] += 1
        request.held = count

    def register(self, request: Request, tokens: int) -> None:
        """Enter the filled prefix blocks up to one that is there already."""
        if not self.prefix_tokens:
            return
        known = request.blocks[: tokens // self.prefix_tokens]
        while request.held < len(known) and known[request.held] not in self.holders:
            self.holders[known[request.held]] = 1
            request.held += 1
            request.private -= self.prefix_blocks
            self.private -= self.prefix_blocks

    def release(self, request: Request) -> None:
        """Give back all blocks, the deepest prefix block first to be evicted."""
        self.private -= request.private
        request.private = 0
        for block in reversed(request.blocks[: request.held]):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                self.idle[block] = None
        request.held = 0

    def enter_queue(self, request: Request, *, front: bool) -> None:
        """Give a request its place in the queue."""
        left = max(request.predicted - request.produced, 1)
        held = request.target
        aged = self.policy.ageing_tokens_per_s * request.arrival_s
        if self.policy.order == PRIORITY:
            request.rank = (request.priority,)
        elif self.policy.order == SHORTEST:
            request.rank = (left + aged, request.prompt)
        elif self.policy.order == VOLUME:
            request.rank = (held * left + left * (left + 1) / 2 + aged,)
        elif self.policy.order == LEVELS:
            request.rank = (self.level(request),)
        if self.grouped:
            ends = list(self.groups.ends)
            reached = request.produced + 1 if self.nested else request.predicted
            request.group = next((g for g, end in enumerate(ends) if end >= reached), len(ends) - 1)
            entry = self.held[0 if self.nested else request.group]
            entry.insert(0 if front else len(entry), request)
        if front:
            self.waiting.appendleft(request)
        else:
            self.waiting.append(request)

    def level(self, request: Request) -> float:
        """Level of a feedback queue."""
        return floor(log2(request.produced / self.policy.quantum_tokens + 1) + 1e-12)

    def standing(self, request: Request) -> tuple[float, ...]:
        """Rank while it runs."""
        return (self.level(request),) if self.policy.order == LEVELS else request.rank

    def first_waiting(self) -> Request:
        """The request that goes first."""
        if self.policy.order == FCFS:
            return self.waiting[0]
        return min(self.waiting, key=lambda r: (r.rank, r.index))

    def preempt(self, request: Request) -> None:
        """Send a request back to the queue."""
        self.running.remove(request)
        if request in self.decodes:
            self.decodes.remove(request)
        if self.grouped:
            if any(request in held for held in self.held):
                self.held[request.group].remove(request)
            else:
                self.sizes[request.group] -= 1
        self.release(request)
        request.computed = 0
        request.preemptions += 1
        request.predicted = max(request.predicted, request.produced + 1)
        if self.policy.restart:
            request.produced = 0
        self.enter_queue(request, front=True)

    def evict(self) -> None:
        """Preempt as the discipline says."""
        eviction = self.policy.eviction
        if eviction == WORST_RANK:
            self.preempt(max(self.running, key=lambda r: (self.standing(r), r.index)))
        elif eviction == LEAST_PREDICTED:
            self.preempt(
                min(self.running, key=lambda r: (max(r.predicted, r.produced + 1), -r.index))
            )
        elif eviction in (ALL, RANDOM):
            for request in list(reversed(self.running)):
                chosen = eviction == ALL
                if not chosen:
                    draw = (random_u64(self.index, self.draws) >> 11) / 2**53
                    chosen = draw < self.policy.clear_probability
                    self.draws += 1
                if chosen:
                    self.preempt(request)
        else:
            self.preempt(self.running[-1])

    def displace(self, head: Request) -> bool:
        """Let a waiting request take the place of one of worse standing."""
        if not self.decodes:
            return False
        worst = max(self.decodes, key=lambda r: (self.standing(r), r.index))
        if self.standing(worst) <= head.rank:
            return False
        self.preempt(worst)
        return True

    def fits_ahead(self, tokens: int, iterations: int) -> bool:
        """Check predicted KV use in every coming iteration."""
        now = self.iterations
        slack = self.pool.block_tokens - 1
        limit = int((1.0 - self.policy.margin) * self.kv_blocks) * self.pool.block_tokens
        ends = [max(r.plan[0], now) for r in self.running]
        for x in range(now, now + iterations):
            held = tokens + x - now + slack
            held += sum(
                r.plan[1] + x + slack for r, end in zip(self.running, ends, strict=True) if end >= x
            )
            if held > limit:
                return False
        return True

    def allowance(self, g: int, now_s: float) -> int:
        """Requests of a group's list that may start."""
        held = self.held[g]
        room = int(self.groups.caps[g]) - self.sizes[g]
        if not held or room <= 0:
            return 0
        size = min(int(self.groups.thresholds[g]), room)
        needed = int(self.groups.thresholds[g]) if self.policy.start == "strict" else size
        if len(held) >= needed or now_s + TOLERANCE_S >= self.held_since(g) + self.groups.hold_s:
            return min(size, len(held))
        return 0

    def held_since(self, g: int) -> float:
        """Since when the first request of a list is held."""
        first = self.held[g][0]
        return first.last_token_s if self.nested and g > 0 else first.arrival_s

    def pause(self, request: Request) -> None:
        """Hold a request at the end of its group."""
        self.sizes[request.group] -= 1
        request.group += 1
        self.held[request.group].append(request)

    def at_group_end(self, request: Request) -> bool:
        """Whether a request has come to the end of its group."""
        return self.nested and request.produced == self.groups.ends[request.group]

    def resume(self, g: int, count: int) -> None:
        """Let paused requests go on."""
        for _ in range(count):
            request = self.held[g].pop(0)
            self.sizes[g] += 1
            self.decodes.append(request)

    def admit(self, request: Request, hits: int, past: int, tokens: int, now_s: float) -> None:
        """Move a request from the queue to the running ones, with blocks for ``tokens``."""
        self.waiting.remove(request)
        if self.grouped:
            self.held[0 if self.nested else request.group].remove(request)
            self.sizes[request.group] += 1
        self.running.append(request)
        self.hold(request, hits)
        self.allocate(request, self.blocks_for(tokens) - hits * self.prefix_blocks)
        if np.isnan(request.admitted_s):
            request.admitted_s = now_s
            request.cached = past

    def room(self, request: Request, hits: int, tokens: int) -> bool:
        """Whether blocks for ``tokens`` can be had, cached ones of its own prefix aside."""
        idle = sum(block in self.idle for block in request.blocks[:hits])
        needed = self.blocks_for(tokens) - hits * self.prefix_blocks
        spare = ceil(self.policy.margin * self.kv_blocks) if self.policy.gate == OPEN else 0
        spare *= bool(self.running)
        return needed <= self.available - idle * self.prefix_blocks - spare

    def grow(self) -> bool:
        """Give each decode a slot for its next token, preempting from the end; True if any was."""
        preempted = False
        while True:
            needed = [
                r
                for r in self.decodes
                if self.blocks_for(r.computed + 1) > self.blocks_for(r.computed)
            ]
            if self.policy.forming == STATIC or len(needed) <= self.available:
                break
            self.evict()
            preempted = True
        if self.policy.forming != STATIC:
            for request in needed:
                self.allocate(request, 1)
        return preempted

    def form_batch(self, now_s: float) -> None:
        """Choose what enters the next iteration."""
        self.chunks = []
        prefilling = [r for r in self.running if r not in self.decodes]
        if self.policy.forming == CHUNKED:
            self.active = self.schedule_chunked(prefilling, now_s)
        else:
            self.active = self.schedule_whole(now_s)
        self.busy = bool(self.active or self.chunks)

    def run_batch(self, now_s: float, duration: float) -> None:
        """Spend an iteration, or wait while other units do."""
        self.start_s = now_s
        self.end_s = now_s + duration
        self.busy_s += duration
        if self.chunks:
            self.prefill_busy_s += duration
        self.iterations += self.busy

    def next_look_s(self, now_s: float) -> float:
        """When an engine without a batch looks at its queue again by itself."""
        if self.emptied:
            return now_s
        if not self.grouped:
            return inf
        held = [g for g in range(len(self.held)) if self.held[g]]
        releases = [self.held_since(g) + self.groups.hold_s for g in held]
        return min([r for r in releases if r > now_s + TOLERANCE_S], default=inf)

    def schedule_chunked(self, prefilling: list[Request], now_s: float) -> list[Request]:
        """Decodes first, then prompt tokens up to the budget."""
        policy = self.policy
        limit = self.pool.max_num_batched_tokens
        if policy.chunk_tokens:
            limit = max(policy.chunk_tokens, self.max_seqs)
        if self.nested:
            prefilling = [r for r in prefilling if r not in chain(*self.held)]
            for g in range(1, len(self.held)):
                self.resume(g, self.allowance(g, now_s))
        preempted = self.grow()
        for request in prefilling:
            if request not in self.running:
                continue
            new = min(request.target - request.computed, limit - len(self.decodes))
            extra = self.blocks_for(request.computed + new) - self.blocks_for(request.computed)
            if policy.reserve_prompt:
                extra = 0
            while extra > self.available and request in self.running:
                self.evict()
                preempted = True
            if request not in self.running:
                continue
            self.allocate(request, extra)
            self.chunks.append((request, request.computed, new))
            request.computed += new
            self.register(request, request.computed)
        budget = limit - len(self.decodes) - sum(new for _, _, new in self.chunks)
        if not preempted and self.grouped:
            self.start_groups(budget, now_s)
        elif not preempted:
            self.start_waiting(budget, now_s)
        if self.nested and not self.decodes and not self.chunks:
            for g in range(1, len(self.held)):
                self.resume(g, len(self.held[g]))
            preempted |= self.grow()
        self.emptied = preempted
        return list(self.decodes)

    def start_waiting(self, budget: int, now_s: float) -> None:
        """Admit in order while all allows."""
        passed: list[Request] = []
        while self.waiting and budget > 0:
            request = self.first_waiting()
            taken, refused = 0, False
            if len(self.running) < self.max_seqs:
                if self.policy.window:
                    request = self.next_on_time(now_s)
                ahead = list(self.waiting)[: self.waiting.index(request)]
                taken, refused = self.start(request, budget, now_s)
                for other in ahead if taken and self.policy.window else []:
                    other.overtaken += 1
            if taken:
                budget -= taken
            elif self.policy.preemptive and self.displace(request):
                budget += 1
            elif refused and len(passed) < self.policy.skip:
                self.waiting.remove(request)
                passed.append(request)
            else:
                break
        self.waiting.extendleft(reversed(passed))

    def next_on_time(self, now_s: float) -> Request:
        """Of the first waiting prompts, the first in the order of most on time."""
        window = self.policy.window
        near = list(self.waiting)[:window]
        for request in near:
            if request.overtaken > 2 * window:
                return request
        durations = []
        for request in near:
            hits = self.hits(request)
            past = request.computed or self.found(request, hits)
            durations.append(self.prefill_s(request.target - past, past))
        best, best_value = near[0], (-1, 0.0)
        for order in permutations(range(len(near))):
            end_s, total_s, count = 0.0, 0.0, 0
            for j in order:
                end_s += durations[j]
                total_s += end_s
                count += now_s + end_s <= near[j].arrival_s + self.policy.ttft_s
            if count > best_value[0] or (
                count == best_value[0] and total_s < best_value[1] - 1e-12
            ):
                best, best_value = near[order[0]], (count, total_s)
        return best

    def prefill_s(self, new: int, past: int) -> float:
        """Time to compute ``new`` prompt tokens after ``past`` ones, alone."""
        timing = self.timing
        budget = self.pool.max_num_batched_tokens
        full = (new - 1) // budget if self.policy.forming == CHUNKED else 0
        rising = min(max(timing.window - past, 0), new)
        narrow = past * rising + rising * (rising + 1) / 2 + float(new - rising) * timing.window
        return float(
            full * continued(timing.tokens_s, budget)
            + continued(timing.tokens_s, new - full * budget)
            + (full + 1) * timing.prefill_fixed_s
            + timing.work_s * (past * new + new * (new + 1) / 2)
            + timing.window_work_s * narrow
            + timing.logits_s[1]
        )

    def found(self, request: Request, hits: int) -> int:
        """Tokens of a prompt that need not be computed, ``hits`` leading blocks being cached."""
        return min(max(hits * self.prefix_tokens, request.stored), request.target - 1)

    def start_groups(self, budget: int, now_s: float) -> None:
        """Admit held requests group by group."""
        for g in range(1 if self.nested else len(self.held)):
            for _ in range(self.allowance(g, now_s)):
                if len(self.running) >= self.max_seqs or budget <= 0:
                    return
                taken, _ = self.start(self.held[g][0], budget, now_s)
                if not taken:
                    return
                budget -= taken

    def start(self, request: Request, budget: int, now_s: float) -> tuple[int, bool]:
        """Admit a request if it fits; return its tokens, and whether the gate refused it."""
        received = request.computed > 0
        hits = 0 if received else self.hits(request)
        past = request.computed if received else self.found(request, hits)
        new = min(request.target - past, budget)
        held = request.target if self.policy.reserve_prompt else past + new
        if not self.room(request, hits, held):
            return 0, False
        chunks = ceil((request.target - past) / budget)
        tokens = request.target - (chunks - 1)
        iterations = max(request.predicted - request.produced, 1) + chunks - 1
        if self.policy.gate == LOOK_AHEAD:
            if self.running and not self.fits_ahead(tokens, iterations):
                return 0, True
            request.plan = (self.iterations + iterations - 1, tokens - self.iterations)
        self.admit(request, hits, past, held, now_s)
        if received:
            self.decodes.append(request)
        else:
            self.chunks.append((request, past, new))
            request.computed = past + new
            self.register(request, request.computed)
        return new, False

    def schedule_whole(self, now_s: float) -> list[Request]:
        """Whole prompts if any fits, else one decode step."""
        static = self.policy.forming == STATIC
        tokens = 0
        if not static or not self.running:
            while self.waiting and len(self.running) < self.max_seqs:
                request = self.waiting[0]
                hits = 0 if request.computed else self.hits(request)
                past = request.computed or self.found(request, hits)
                new = request.target - past
                if not static and tokens and tokens + new > self.pool.max_num_batched_tokens:
                    break
                held = request.final_tokens if static else request.target
                if not self.room(request, hits, held):
                    break
                self.admit(request, hits, past, held, now_s)
                self.chunks.append((request, past, new))
                request.computed = request.target
                self.register(request, request.computed)
                tokens += new
        if self.chunks:
            return []
        self.emptied = self.grow()
        return list(self.decodes)

    def iteration_s(self, active: list[Request]) -> float:
        """Duration of the iteration, as ``CompiledTiming`` defines it."""
        timing = self.timing
        contexts = [request.computed + 1 for request in active]
        context_s = timing.context_s * sum(contexts) + timing.window_context_s * sum(
            min(c, timing.window) for c in contexts
        )
        if not self.chunks:
            return float(timing.decode_s[len(active)] + context_s)
        tokens = len(active) + sum(new for _, _, new in self.chunks)
        finishing = sum(request.computed == request.target for request, _, _ in self.chunks)
        work = narrow = 0.0
        for _, past, new in self.chunks:
            work += past * new + new * (new + 1) / 2
            rising = min(max(timing.window - past, 0), new)
            narrow += past * rising + rising * (rising + 1) / 2 + (new - rising) * timing.window
        duration = continued(timing.tokens_s, tokens)
        duration += timing.logits_s[len(active) + finishing]
        if active:
            duration += timing.decode_fixed_s + context_s
        duration += timing.prefill_fixed_s + timing.work_s * work + timing.window_work_s * narrow
        return float(duration)

    @property
    def batch_tokens(self) -> int:
        """Tokens of the iteration."""
        return len(self.active) + sum(new for _, _, new in self.chunks)

    def experts_s(self, tokens: int) -> float:
        """Duration of the experts' part for the tokens of all units."""
        return continued(self.timing.experts_s, tokens) if len(self.units) > 1 else 0.0


def continued(table: NDArray[np.float64], index: int) -> float:
    """Entry of a table, which is continued by its last slope."""
    last = len(table) - 1
    return float(table[min(index, last)] + max(index - last, 0) * (table[last] - table[last - 1]))


def schedule(units: list[Engine], now_s: float) -> None:
    """Start the next iteration of an engine, or of units that step together.

    Units wait for the slowest in what each computes alone; the experts serve all their tokens.
    """
    for unit in units:
        unit.form_batch(now_s)
    busy = [unit for unit in units if unit.busy]
    if not busy:
        end_s = min(unit.next_look_s(now_s) for unit in units)
        for unit in units:
            unit.end_s = end_s
        return
    alone = max(u.iteration_s(u.active) - u.experts_s(len(units) * u.batch_tokens) for u in busy)
    duration = alone + units[0].experts_s(sum(unit.batch_tokens for unit in busy))
    for unit in units:
        unit.run_batch(now_s, duration)


def random_u64(seed: int, index: int) -> int:
    """The ``index``-th draw of splitmix64."""
    mask = (1 << 64) - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
