"""An engine of known times, in virtual time: the oracle of calibration."""

from collections.abc import Callable

import numpy as np

from gpusched.calibration.stage import Answer, Record, Stage
from gpusched.engines.simulated.iterations import IterationEngine, Sequence
from gpusched.timing.measured import MeasuredEngine


class Sink:
    def __init__(self) -> None:
        self.times: list[float] = []

    def token(self, now_s: float, *, last: bool) -> None:
        self.times.append(now_s)


class VirtualEngine:
    """Runs stages as ``HttpEngine`` does, on an ``IterationEngine`` whose clock is computed.

    ``noise``: relative standard deviation of iterations; ``outliers``: share that takes five times as long.
    """

    def __init__(
        self, truth: MeasuredEngine, *, kv_blocks: int = 8192, noise: float = 0.0,
        outliers: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        assert truth.max_num_seqs is not None
        assert truth.max_num_batched_tokens is not None
        self.truth = truth
        self.core = IterationEngine(
            truth.compile(8192, 512),
            kv_blocks=kv_blocks,
            max_num_seqs=truth.max_num_seqs,
            max_num_batched_tokens=truth.max_num_batched_tokens,
            prefix_caching=False,
        )
        self.noise, self.outliers = noise, outliers
        self.rng = np.random.default_rng(seed)
        self.now_s = 0.0
        self.due: list[tuple[float, int, Sequence]] = []
        self.stages: list[Stage] = []
        self.busy_s = 0.0

    def send(self, prompt_tokens: int, output_tokens: int, at_s: float) -> tuple[Sink, float]:
        sink = Sink()
        overhead = self.truth.request
        entry_s = at_s + overhead.entry_s + overhead.entry_token_s * prompt_tokens
        sequence = Sequence(prompt_tokens, output_tokens, sink)
        self.due.append((entry_s, len(self.due), sequence))
        return sink, at_s

    def until(self, met: Callable[[], bool]) -> None:
        while not met():
            self.take_in()
            duration_s = self.core.begin(self.now_s)
            if duration_s is None:
                assert self.due, "nothing happens any more"
                self.now_s = min(self.due)[0]
                continue
            duration_s *= float(np.exp(self.noise * self.rng.standard_normal()))
            if self.rng.random() < self.outliers:
                duration_s *= 5
            self.busy_s += duration_s
            self.now_s += duration_s
            self.core.end(self.now_s)

    def take_in(self) -> None:
        for entry in sorted(self.due):
            if entry[0] <= self.now_s:
                self.core.submit(entry[2], entry[0])
                self.due.remove(entry)

    def run(self, stage: Stage) -> Record:
        self.stages.append(stage)
        start_s = self.now_s
        batch = [
            self.send(stage.prompt_tokens, stage.output_tokens, start_s) for _ in range(stage.batch)
        ]
        sinks = [sink for sink, _ in batch]
        probes: list[tuple[Sink, float, int]] = []
        reserve = stage.output_tokens - 8
        if stage.together:
            self.until(lambda: all(len(s.times) >= 4 for s in sinks))
            probes = [(*self.send(n, 1, self.now_s), n) for n in stage.probes]
            self.until(lambda: all(s.times for s, _, _ in probes))
        for n in () if stage.together else stage.probes:
            wait = stage.pace * self.rng.uniform(3.0, 6.0)
            at_s = self.now_s
            if stage.batch:
                self.until(lambda: all(s.times for s in sinks))
                goal = len(sinks[0].times) + int(wait)
                self.until(lambda goal=goal: len(sinks[0].times) >= min(goal, stage.output_tokens))
                if max(len(s.times) for s in sinks) > reserve:
                    break
                gap_s = sinks[0].times[-1] - sinks[0].times[-2]
                at_s = self.now_s + gap_s * (wait % 1.0)
            sink, sent_s = self.send(n, 1, at_s)
            probes.append((sink, sent_s, n))
            self.until(lambda sink=sink: bool(sink.times))
        self.until(lambda: all(len(s.times) == stage.output_tokens for s in sinks))
        exit_s = self.truth.request.exit_s

        def answer(sink: Sink, sent_s: float, prompt: int, asked: int) -> Answer:
            times = np.array(sink.times) + exit_s
            return Answer(prompt, asked, sent_s, times, np.arange(1, len(times) + 1))

        return Record(
            stage,
            tuple(answer(s, t, stage.prompt_tokens, stage.output_tokens) for s, t in batch),
            tuple(answer(s, t, n, 1) for s, t, n in probes),
        )
