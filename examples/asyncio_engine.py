"""Drive a batching policy from a plain asyncio loop, and find that it decides as in the simulator.

    python examples/asyncio_engine.py [POLICY]

Requests arrive in tasks of their own; the engine is a coroutine that keeps its own KV blocks, asks
the policy's live queue who enters the next iteration, and sleeps for as long as an iteration takes.
Time is virtual, so a minute of serving passes in a moment; with ``asyncio.get_running_loop().time``
in place of ``Clock`` it is real.
"""

import asyncio
import heapq
import sys
from dataclasses import dataclass, field

import numpy as np

from gpusched.policies.batching.discipline import LOOK_AHEAD, discipline
from gpusched.policies.batching.live import LiveQueue
from gpusched.policies.lengths.predictors import parse_predictor, predict
from gpusched.policies.views import Engine, Request
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace


class Clock:
    """Virtual time: jumps to the next sleeper when everybody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    async def sleep_until(self, time_s: float) -> None:
        """Sleep until a time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (time_s, self._count, future))
        await future

    async def run(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wake the sleepers in order of time until all tasks are done."""
        while not all(task.done() for task in tasks):
            for _ in range(4):
                await asyncio.sleep(0)
            if self._sleepers:
                self.now_s, _, future = heapq.heappop(self._sleepers)
                if not future.done():
                    future.set_result(None)
        for task in tasks:
            task.result()


@dataclass
class LiveEngine:
    """A toy engine: chunked prefill and blocks of KV cache, of which it must not run out."""

    clock: Clock
    pool: Pool
    queue: LiveQueue
    outputs: dict[int, int]
    admitted_s: dict[int, float] = field(default_factory=dict)
    finished_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks: dict[int, int] = {}
        self.computed: dict[int, int] = {}
        self.decoding: dict[int, int] = {}
        self.work = asyncio.Event()

    def view(self) -> Engine:
        """What the policy may see."""
        size = self.pool.block_tokens
        free = self.pool.kv_blocks - sum(self.blocks.values())
        return Engine(
            self.clock.now_s, len(self.computed), self.pool.max_num_seqs,
            free * size, self.pool.kv_blocks * size,
        )  # fmt: skip

    def submit(self, key: int, request: Request) -> None:
        """Take in a request."""
        self.queue.add(key, request, self.view())
        self.work.set()

    async def serve(self, count: int) -> None:
        """Run iterations until ``count`` requests have ended."""
        timing, size = self.pool.timing, self.pool.block_tokens
        prompts: dict[int, int] = {}
        iteration = 0
        while len(self.finished_s) < count:
            for key, tokens in self.decoding.items():
                self.blocks[key] = -(-(tokens + 1) // size)
            assert sum(self.blocks.values()) <= self.pool.kv_blocks, "the toy engine cannot preempt"
            budget = self.pool.max_num_batched_tokens - len(self.decoding)
            chunks: list[tuple[int, int, int]] = []
            for key in [k for k in self.computed if k not in self.decoding]:
                new = min(prompts[key] - self.computed[key], budget)
                chunks.append((key, self.computed[key], new))
                budget -= new
            for key in self.queue.candidates(self.view(), iteration, budget):
                request = self.queue.waiting[key].request
                new = min(request.prompt_tokens, budget)
                free = self.pool.kv_blocks - sum(self.blocks.values())
                if len(self.computed) >= self.pool.max_num_seqs or -(-new // size) > free:
                    break
                self.queue.start(key)
                prompts[key], self.computed[key] = request.prompt_tokens, 0
                self.admitted_s[key] = self.clock.now_s
                chunks.append((key, 0, new))
                budget -= new
                self.blocks[key] = -(-new // size)
            for key, past, new in chunks:
                self.computed[key] = past + new
                self.blocks[key] = -(-(past + new) // size)
            if not chunks and not self.decoding:
                self.work.clear()
                await self.wait_for_work()
                continue
            decoding = dict(self.decoding)
            duration_s = iteration_s(timing, decoding, chunks, prompts)
            await self.clock.sleep_until(self.clock.now_s + duration_s)
            iteration += 1
            for key in decoding:
                self.decoding[key] += 1
                self.queue.progress(key, self.decoding[key] - prompts[key] + 1)
            for key, _, _ in chunks:
                if self.computed[key] == prompts[key]:
                    self.decoding[key] = prompts[key]
                    self.queue.prefilled(key, iteration)
            for key, tokens in list(self.decoding.items()):
                if tokens - prompts[key] + 1 == self.outputs[key]:
                    self.finished_s[key] = self.clock.now_s
                    self.queue.finish(key)
                    for table in (self.decoding, self.computed, self.blocks):
                        del table[key]

    async def wait_for_work(self) -> None:
        """Sleep until a request comes or a held one may start."""
        release_s = self.queue.release_s(self.clock.now_s)
        waits = [asyncio.ensure_future(self.work.wait())]
        if np.isfinite(release_s):
            waits.append(asyncio.ensure_future(self.clock.sleep_until(release_s)))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def iteration_s(
    timing: CompiledTiming,
    decoding: dict[int, int],
    chunks: list[tuple[int, int, int]],
    prompts: dict[int, int],
) -> float:
    """Duration of an iteration, as ``CompiledTiming`` states it (no sliding window)."""
    context_s = timing.context_s * sum(tokens + 1 for tokens in decoding.values())
    if not chunks:
        return float(timing.decode_s[len(decoding)] + context_s)
    finishing = sum(past + new == prompts[key] for key, past, new in chunks)
    pairs = sum(past * new + new * (new + 1) / 2 for _, past, new in chunks)
    time_s = timing.tokens_s[len(decoding) + sum(new for _, _, new in chunks)]
    time_s += timing.logits_s[len(decoding) + finishing] + timing.prefill_fixed_s
    time_s += timing.work_s * pairs
    return float(time_s + (timing.decode_fixed_s + context_s if decoding else 0.0))


async def serve_live(
    pool: Pool, trace: Trace, queue: LiveQueue, predicted: np.ndarray
) -> LiveEngine:
    """Serve a trace in an asyncio loop and return the engine with its record."""
    clock = Clock()
    engine = LiveEngine(clock, pool, queue, dict(enumerate(trace.output_tokens.tolist())))

    async def send(key: int) -> None:
        arrival_s = float(trace.arrival_s[key])
        await clock.sleep_until(arrival_s)
        priority = 0 if trace.class_id is None else int(trace.class_id[key])
        prompt = int(trace.prompt_tokens[key])
        engine.submit(key, Request(arrival_s, prompt, 0, int(predicted[key]), priority))

    tasks = [asyncio.create_task(send(key)) for key in range(len(trace))]
    tasks.append(asyncio.create_task(engine.serve(len(trace))))
    await clock.run(tasks)
    return engine


def main() -> None:
    """Compare both on two hundred requests."""
    policy = sys.argv[1] if len(sys.argv) > 1 else "mc-sf+predictor=oracle+margin=0"
    chosen = discipline(policy)
    tokens, sequences = np.arange(2049.0), np.arange(65.0)
    timing = CompiledTiming(
        6e-3 + 2e-5 * tokens, 5e-3 + 1e-5 * sequences, 3e-6 * sequences, 4e-7, 0.0, 0, 3e-4, 4e-4,
        2e-9, 0.0,
    )  # fmt: skip
    kv_blocks = 200 if chosen.gate == LOOK_AHEAD else 4000
    pool = Pool("engine", timing, kv_blocks, batching=policy, max_num_seqs=64)
    rng = np.random.default_rng(0)
    trace = Trace(
        np.cumsum(rng.exponential(0.05, 200)),
        rng.integers(10, 300, 200).astype(np.int32),
        rng.integers(1, 200, 200).astype(np.int32),
    )
    predicted = predict(trace, parse_predictor(chosen.predictor or "oracle"))
    queue = LiveQueue(chosen, pool.kv_blocks * pool.block_tokens)
    live = asyncio.run(serve_live(pool, trace, queue, predicted))
    simulated = simulate(Fleet((pool,)), trace)
    late_s = max(abs(live.finished_s[i] - simulated.finish_s[i]) for i in range(len(trace)))
    print(f"{policy}: {len(trace)} answers, at most {late_s:.1e} s apart from the simulator's")


if __name__ == "__main__":
    main()
