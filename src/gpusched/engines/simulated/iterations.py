"""The engine inside: which tokens each iteration computes, and for how long.

Decodes first, then prompt chunks up to the token budget, then those whom the live queue of a
batching discipline lets in while KV blocks last; when blocks run out, whom the discipline says is
preempted and computed anew. Time is an argument, so the same code runs in real time behind HTTP and
in a test beside the simulator.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpusched.engines.simulated.kv_cache import KvCache
from gpusched.errors import InputError
from gpusched.policies.batching.discipline import (
    ALL,
    CHUNKED,
    GROUPED,
    LEAST_PREDICTED,
    OPEN,
    RANDOM,
    WORST_RANK,
    Discipline,
    discipline,
)
from gpusched.policies.batching.equilibrium import EngineTime
from gpusched.policies.batching.estimation import GroupEstimator
from gpusched.policies.batching.live import LiveQueue
from gpusched.policies.lengths.online import OnlinePredictor, check_live
from gpusched.policies.views import Engine, Request
from gpusched.timing.compiled import CompiledTiming


class Sink(Protocol):
    """Takes a sequence's tokens."""

    def token(self, now_s: float, *, last: bool) -> None:
        """Take the next token."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer on its way."""

    prompt_tokens: int
    output_tokens: int
    sink: Sink
    prefix: tuple[int, ...] = ()
    """Hashes of the prompt's whole blocks, each of all before it."""
    stored_tokens: int = 0
    """Leading prompt tokens whose KV cache another engine hands over."""
    max_tokens: int = 0
    """What the client allowed; at least ``output_tokens``."""
    priority: int = 0
    arrival_s: float = 0.0
    number: int = 0
    computed: int = 0
    produced: int = 0
    cached: int = 0
    """Prompt tokens found in the cache when it was first admitted."""
    held: int = 0
    private: int = 0
    admitted: bool = False

    @property
    def target(self) -> int:
        """KV tokens needed before the next token."""
        return self.prompt_tokens + self.produced


@dataclass(slots=True)
class Counts:
    """What has happened so far."""

    iterations: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    cache_queries: int = 0
    cache_hits: int = 0


@dataclass(slots=True)
class _Iteration:
    decodes: list[Sequence]
    chunks: list[tuple[Sequence, int, int]]


class IterationEngine:
    """One engine: sequences in, tokens out, an iteration at a time.

    Raises:
        InputError: the discipline forms batches in a way that vLLM's scheduler does not, preempts
            for better ones, or needs what only a trace could tell.
    """

    def __init__(
        self,
        timing: CompiledTiming,
        *,
        batching: str = "vllm",
        kv_blocks: int = 4096,
        block_tokens: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        prefix_caching: bool = True,
        seed: int = 0,
    ) -> None:
        chosen = discipline(batching)
        if chosen.forming != CHUNKED or chosen.preemptive or chosen.window:
            raise InputError(
                f"batching policy {chosen}: a simulated engine forms chunked batches and preempts for "
                "memory only; choose a policy such as vllm, sjf, mc-sf, wait or nested-wait"
            )
        check_live(chosen)
        self.policy: Discipline = chosen
        self.timing = _Tables(timing)
        self.kv = KvCache(kv_blocks, block_tokens, prefix_caching=prefix_caching)
        self.max_num_seqs = max_num_seqs
        self.budget_tokens = max_num_batched_tokens
        if chosen.chunk_tokens:
            self.budget_tokens = max(chosen.chunk_tokens, max_num_seqs)
        self.predictor = OnlinePredictor(chosen)
        kv_tokens = kv_blocks * block_tokens
        self.estimator: GroupEstimator | None = None
        if chosen.gate == GROUPED:
            self.estimator = GroupEstimator(
                chosen, EngineTime(timing), float(kv_tokens), seats=max_num_seqs
            )
        self.queue = LiveQueue(
            chosen, kv_tokens, block_tokens=block_tokens,
            groups=self.estimator.groups if self.estimator else None,
        )  # fmt: skip
        self.queue.warm_up()
        self.running: list[Sequence] = []
        self.counts = Counts()
        self._decodes: list[Sequence] = []
        self._current: _Iteration | None = None
        self._next_number = 0
        self._next_estimate_s = 0.0
        self._now_s = 0.0
        self._rng = np.random.default_rng(seed)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self.queue)

    @property
    def kv_use(self) -> float:
        """Share of the KV blocks in use."""
        return 1.0 - self.kv.available / self.kv.blocks

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Queue a sequence.

        Raises:
            InputError: it can never fit into the KV cache.
        """
        final = sequence.prompt_tokens + sequence.output_tokens - 1
        if self.kv.blocks_for(final) > self.kv.blocks:
            raise InputError(
                f"{sequence.prompt_tokens} prompt and {sequence.output_tokens} output tokens exceed "
                f"the KV cache of {self.kv.blocks * self.kv.block_tokens} tokens"
            )
        sequence.max_tokens = max(sequence.max_tokens, sequence.output_tokens)
        sequence.arrival_s = now_s
        sequence.number = self._next_number
        self._next_number += 1
        predicted = self.predictor.predict(
            sequence.prompt_tokens,
            sequence.output_tokens if self.predictor.kind == "oracle" else sequence.max_tokens,
            sequence.priority,
        )
        if self.estimator is not None:
            self.estimator.observe_arrival(now_s, sequence.prompt_tokens, predicted)
        view = Request(now_s, sequence.prompt_tokens, 0, predicted, sequence.priority)
        self.queue.add(sequence, view, self._view(now_s))

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence: the client has gone."""
        if sequence in self.queue.waiting:
            self.queue.cancel(sequence)
        elif sequence in self.queue.running:
            self._leave(sequence)
            self.queue.finish(sequence)
            if self._current is not None:
                current = self._current
                current.decodes = [s for s in current.decodes if s is not sequence]
                current.chunks = [c for c in current.chunks if c[0] is not sequence]

    def begin(self, now_s: float) -> float | None:
        """Form an iteration and return its duration; None if there is nothing to do now."""
        if self.estimator is not None and now_s >= self._next_estimate_s:
            self._next_estimate_s = now_s + self.policy.reestimate_s
            self.estimator.censor(
                [s.number for s in self.running], [s.produced for s in self.running]
            )
            self.queue.groups = self.estimator.thresholds(now_s)
        self._now_s = now_s
        preempted = self._grow()
        chunks, preempted = self._continue_prompts(preempted)
        if not preempted:
            self._start(chunks, now_s)
        if not chunks and not self._decodes:
            if preempted:
                return self.begin(now_s)
            return None
        self._current = _Iteration(list(self._decodes), chunks)
        return self.timing.iteration_s(self._decodes, chunks)

    def end(self, now_s: float) -> None:
        """Give out the tokens of the iteration under way."""
        current = self._current
        assert current is not None
        self._current = None
        self.counts.iterations += 1
        self.counts.output_tokens += len(current.decodes)
        for sequence in current.decodes:
            sequence.computed += 1
            self._token(sequence, now_s)
        for sequence, past, new in current.chunks:
            sequence.computed = past + new
            self.counts.prompt_tokens += new
            if sequence.computed < sequence.target:
                continue
            self.queue.prefilled(sequence, self.counts.iterations)
            self._decodes.append(sequence)
            self.counts.output_tokens += 1
            self._token(sequence, now_s)

    def next_look_s(self, now_s: float) -> float:
        """Return when an idle engine may have something to do by itself."""
        return self.queue.release_s(now_s)

    def _token(self, sequence: Sequence, now_s: float) -> None:
        sequence.produced += 1
        last = sequence.produced == sequence.output_tokens
        if last:
            self._leave(sequence)
            self.queue.finish(sequence)
            self.counts.finished += 1
            self.predictor.observe(
                sequence.output_tokens, sequence.prompt_tokens, sequence.priority
            )
            if self.estimator is not None:
                self.estimator.observe_end(sequence.number, sequence.output_tokens)
        elif self.policy.gate == GROUPED:
            self.queue.progress(sequence, sequence.produced)
        sequence.sink.token(now_s, last=last)

    def _view(self, now_s: float) -> Engine:
        size = self.kv.block_tokens
        return Engine(
            now_s, len(self.running), self.max_num_seqs,
            self.kv.available * size, self.kv.blocks * size,
        )  # fmt: skip

    def _grow(self) -> bool:
        """Give each decode a slot for its next token; return whether any was preempted for it."""
        size, preempted = self.kv.block_tokens, False
        while True:
            full = [s for s in self._decodes if s.computed % size == 0]
            if len(full) <= self.kv.available:
                break
            self._evict()
            preempted = True
        for sequence in full:
            self._take(sequence, 1)
        return preempted

    def _continue_prompts(self, preempted: bool) -> tuple[list[tuple[Sequence, int, int]], bool]:
        chunks: list[tuple[Sequence, int, int]] = []
        if len(self._decodes) == len(self.running):
            return chunks, preempted
        decoding = set(self._decodes)
        budget = self.budget_tokens - len(decoding)
        for sequence in [s for s in self.running if s not in decoding]:
            if sequence not in self.queue.running:
                continue
            new = min(sequence.target - sequence.computed, budget)
            extra = self.kv.blocks_for(sequence.computed + new) - sequence.held - sequence.private
            extra = max(extra, 0)
            while extra > self.kv.available and sequence in self.queue.running:
                self._evict()
                preempted = True
            if sequence not in self.queue.running:
                continue
            self._take(sequence, extra)
            chunks.append((sequence, sequence.computed, new))
            budget -= new
            sequence.held = self._share(sequence, sequence.computed + new)
        return chunks, preempted

    def _start(self, chunks: list[tuple[Sequence, int, int]], now_s: float) -> None:
        if not self.queue.waiting:
            return
        budget = self.budget_tokens - len(self._decodes) - sum(new for _, _, new in chunks)
        for key in self.queue.candidates(self._view(now_s), self.counts.iterations, budget):
            sequence: Sequence = key  # type: ignore[assignment]
            if len(self.running) >= self.max_num_seqs:
                break
            hits = self.kv.hits(sequence.prefix, sequence.target)
            stored = 0 if sequence.admitted else min(sequence.stored_tokens, sequence.target - 1)
            past = max(hits * self.kv.block_tokens, stored)
            new = min(sequence.target - past, budget)
            kept = sequence.target if self.policy.reserve_prompt else past + new
            needed = self.kv.blocks_for(kept) - hits
            spare = 0
            if self.policy.gate == OPEN and self.running:
                spare = -int(-self.policy.margin * self.kv.blocks // 1)
            if needed > self.kv.room_beside(sequence.prefix, hits) - spare:
                break
            self.queue.start(sequence)
            self.kv.hold(sequence.prefix, hits)
            sequence.held = hits
            self._take(sequence, needed)
            if not sequence.admitted:
                sequence.admitted, sequence.cached = True, past
                self.counts.cache_queries += sequence.prompt_tokens
                self.counts.cache_hits += past
            self.running.append(sequence)
            sequence.computed = past
            chunks.append((sequence, past, new))
            budget -= new
            sequence.held = self._share(sequence, past + new)

    def _take(self, sequence: Sequence, count: int) -> None:
        self.kv.take(count)
        sequence.private += count

    def _share(self, sequence: Sequence, tokens: int) -> int:
        held = self.kv.share(sequence.prefix, sequence.held, tokens)
        sequence.private -= held - sequence.held
        return held

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence in self._decodes:
            self._decodes.remove(sequence)
        self.kv.release(sequence.prefix, sequence.held, sequence.private)
        sequence.held = sequence.private = 0

    def _evict(self) -> None:
        """Preempt whom the discipline says."""
        queue, eviction = self.queue, self.policy.eviction
        if eviction == WORST_RANK:
            victims = [max(self.running, key=queue.standing)]
        elif eviction == LEAST_PREDICTED:
            victims = [min(self.running, key=lambda s: (self._predicted(s), -s.number))]
        elif eviction in (ALL, RANDOM):
            victims = self.running[::-1]
            if eviction == RANDOM:
                drawn = self._rng.random(len(victims)) < self.policy.clear_probability
                victims = [s for s, hit in zip(victims, drawn, strict=True) if hit]
        else:
            victims = [self.running[-1]]
        for sequence in victims:
            self._leave(sequence)
            queue.progress(sequence, sequence.produced)
            queue.preempt(sequence, self._view(self._now_s))
            sequence.computed = 0
            self.counts.preemptions += 1

    def _predicted(self, sequence: Sequence) -> int:
        predicted = self.queue.running[sequence].request.predicted_tokens
        return max(predicted, sequence.produced + 1)


class _Tables:
    """A compiled timing model as plain lists, read without building arrays."""

    def __init__(self, timing: CompiledTiming) -> None:
        self.tokens_s: list[float] = timing.tokens_s.tolist()
        self.decode_s: list[float] = timing.decode_s.tolist()
        self.logits_s: list[float] = timing.logits_s.tolist()
        self.timing = timing

    def iteration_s(
        self, decodes: list[Sequence], chunks: list[tuple[Sequence, int, int]]
    ) -> float:
        """Return the duration of an iteration, as ``CompiledTiming`` states it."""
        t = self.timing
        context_s = 0.0
        if decodes:
            context_s = t.context_s * (sum(s.computed for s in decodes) + len(decodes))
            if t.window:
                seen = sum(min(s.computed + 1, t.window) for s in decodes)
                context_s += t.window_context_s * seen
        if not chunks:
            return _read(self.decode_s, len(decodes)) + context_s
        tokens, finishing, pairs, narrow = len(decodes), 0, 0.0, 0.0
        for sequence, past, new in chunks:
            tokens += new
            finishing += past + new == sequence.target
            pairs += past * new + new * (new + 1) / 2
            if t.window:
                rising = min(max(t.window - past, 0), new)
                narrow += past * rising + rising * (rising + 1) / 2 + (new - rising) * t.window
        time_s = _read(self.tokens_s, tokens) + _read(self.logits_s, len(decodes) + finishing)
        time_s += t.prefill_fixed_s + t.work_s * pairs + t.window_work_s * narrow
        return time_s + (t.decode_fixed_s + context_s if decodes else 0.0)


def _read(table: list[float], index: int) -> float:
    """Entry of a table, which is continued by its last slope."""
    last = len(table) - 1
    if index <= last:
        return table[index]
    return table[last] + (index - last) * (table[last] - table[last - 1])
