"""Closing the loop: traffic that the fit has not seen, sent to the engine and simulated."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpusched.calibration.client import HttpEngine
from gpusched.calibration.stage import Answer, Floats, Ints
from gpusched.errors import InputError
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.result import SimulationResult
from gpusched.sim.simulate import simulate
from gpusched.timing.measured import MeasuredEngine
from gpusched.traces.trace import Trace

MANY_TOKENS = 1 << 30
DEFAULT_SEQS, DEFAULT_BUDGET = 256, 2048
"""Where the engine does not tell and the experiment did not reach its limit."""
SATURATING = 400
"""Requests sent at once, in a simulation, to find what an engine can do."""
QUANTILES = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal prompt and output lengths, cut off at both ends."""

    prompt_tokens: float
    output_tokens: float
    """Medians."""
    spread: float
    """Standard deviation of the logarithm, of both."""
    longest_prompt: int
    longest_output: int

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return lengths of so many requests."""

        def tokens(median: float, longest: int) -> Ints:
            drawn = median * np.exp(self.spread * rng.standard_normal(count))
            return np.clip(np.rint(drawn), 2, longest).astype(np.int64)

        return (
            tokens(self.prompt_tokens, self.longest_prompt),
            tokens(self.output_tokens, self.longest_output),
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, predicted and measured."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1.0 if self.measured else 0.0


def typical_lengths(measured: MeasuredEngine) -> Lengths:
    """Return lengths well inside what was measured."""
    low, high = measured.ranges.prompt_tokens
    longest = max(min(high, measured.max_model_len or high) // 2, low)
    room = max(measured.ranges.context_tokens[1] - longest, 16)
    return Lengths(float(np.sqrt(low * longest)), 24.0, 0.8, longest, min(128, room))


def engine_fleet(measured: MeasuredEngine, batching: str = "vllm") -> Fleet:
    """Return one replica of a measured engine."""
    block = measured.block_size or 16
    block = 1 << (block.bit_length() - 1)
    seqs = measured.max_num_seqs or DEFAULT_SEQS
    budget = max(measured.max_num_batched_tokens or DEFAULT_BUDGET, seqs)
    pool = Pool(
        name="engine",
        timing=measured.compile(max(8192, min(budget, 65536)), max(1024, seqs)),
        kv_blocks=max((measured.kv_tokens or MANY_TOKENS) // block, 1),
        batching=batching,
        block_tokens=block,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        prefix_caching=False,
    )
    return Fleet((pool,), overhead=measured.request)


def predict(measured: MeasuredEngine, trace: Trace, batching: str = "vllm") -> SimulationResult:
    """Return what the simulator says of a trace on the engine."""
    return simulate(engine_fleet(measured, batching), trace)


def capacity_rps(measured: MeasuredEngine, lengths: Lengths, seed: int = 0) -> float:
    """Return the requests a second that the engine, by its measured times, serves at most."""
    prompt, output = lengths.draw(SATURATING, np.random.default_rng((seed, 1)))
    trace = trace_of(np.zeros(SATURATING), prompt, output)
    return SATURATING / predict(measured, trace).makespan_s


def trace_of(arrival_s: Floats, prompt: Ints, output: Ints) -> Trace:
    """Return a trace of arrivals in order."""
    return Trace(
        arrival_s=np.asarray(arrival_s, np.float64),
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        name="validation",
    )


def poisson(rate_rps: float, count: int, rng: np.random.Generator) -> Floats:
    """Return arrival times."""
    return np.cumsum(rng.exponential(1.0 / rate_rps, count))


def send_open_loop(
    engine: HttpEngine, arrival_s: Floats, prompt: Ints, output: Ints,
    extra: Callable[[int], dict[str, Any]] = lambda index: {},
    progress: Callable[[str], None] = lambda message: None,
) -> list[Answer]:  # fmt: skip
    """Send requests at their times, whatever has become of earlier ones, and return the answers in
    order of sending.

    Raises:
        InputError: a request failed.
    """

    async def work() -> list[Answer]:
        start_s = time.perf_counter() + 0.05
        tasks = []
        for i in range(len(arrival_s)):
            wait_s = start_s + float(arrival_s[i]) - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            progress(f"validation: {i + 1} of {len(arrival_s)} requests sent")
            answer = engine.answer(int(prompt[i]), int(output[i]), **extra(i))
            tasks.append(asyncio.create_task(answer))
        return list(await asyncio.gather(*tasks))

    return engine.call(work())


def trace_of_answers(answers: Sequence[Answer]) -> Trace:
    """Return what was really sent and answered, as a trace."""
    sent_s = np.array([answer.sent_s for answer in answers])
    return trace_of(
        sent_s - sent_s[0],
        np.array([answer.prompt_tokens for answer in answers]),
        np.array([answer.output_tokens for answer in answers]),
    )


def compare(result: SimulationResult, answers: Sequence[Answer]) -> tuple[Figure, ...]:
    """Return the figures that matter, predicted and measured over the same requests.

    Raises:
        InputError: the simulator rejects a request that the engine served.
    """
    if result.rejected.any():
        raise InputError(
            "the engine serves requests that its KV cache, as it tells it, cannot hold"
        )
    several = np.array([answer.output_tokens > 1 for answer in answers])
    pairs = {
        "TTFT": (result.ttft_s, np.array([a.ttft_s for a in answers])),
        "TPOT": (result.tpot_s[several], np.array([a.tpot_s for a in answers])[several]),
        "E2E": (result.e2e_s, np.array([a.e2e_s for a in answers])),
    }
    figures = [
        Figure(f"{name} p{round(100 * q)}", float(np.quantile(p, q)), float(np.quantile(m, q)))
        for name, (p, m) in pairs.items()
        for q in QUANTILES
    ]
    figures.insert(
        2, Figure("TTFT mean", float(result.ttft_s.mean()), float(pairs["TTFT"][1].mean()))
    )
    end_s = max(float(a.received_s[-1]) for a in answers) - answers[0].sent_s
    tokens = sum(a.output_tokens for a in answers)
    return (*figures, Figure("output tokens/s", tokens / result.makespan_s, tokens / end_s))


def validate(
    engine: HttpEngine, measured: MeasuredEngine, *, seconds: float = 20.0, load: float = 0.6,
    seed: int = 0, progress: Callable[[str], None] = lambda message: None,
) -> tuple[tuple[Figure, ...], float]:  # fmt: skip
    """Return predicted and measured figures of Poisson traffic of mixed lengths, and its rate.

    ``load``: share of what the engine can do.
    """
    lengths = typical_lengths(measured)
    rate_rps = load * capacity_rps(measured, lengths, seed)
    count = max(round(rate_rps * seconds), 12)
    rng = np.random.default_rng((seed, 2))
    prompt, output = lengths.draw(count, rng)
    answers = send_open_loop(
        engine, poisson(rate_rps, count, rng), prompt, output, progress=progress
    )
    trace = trace_of_answers(answers)
    return compare(predict(measured, trace), answers), rate_rps
