"""The whole of a calibration: limits, pilot, designed experiment, fit, requests' overhead."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from gpusched.calibration.design import (
    Limits,
    candidates,
    choose,
    cost_s,
    information,
    ladder,
)
from gpusched.calibration.facts import Facts
from gpusched.calibration.fit import CONFIDENCE, HUBER, OTHERS, Fit, fit
from gpusched.calibration.limits import (
    PILOT_OUTPUT,
    PILOT_PROMPT,
    at_once,
    burst,
    token_budget,
)
from gpusched.calibration.rows import Row, chunks, rows_of
from gpusched.calibration.stage import Record, Runner, Stage
from gpusched.errors import InputError
from gpusched.timing.measured import (
    Covariance,
    MeasuredEngine,
    MeasuredError,
    MeasuredIteration,
    MeasuredRanges,
    RequestOverhead,
)

DEFAULT_LENGTH = 2048
"""Tokens of a context where the engine does not tell its longest."""
LARGEST_BATCH = 32
UNSEEN_BUDGET = 1_048_576
NOISY = 0.35
"""Cross-validated error beyond which a fit is refused."""
LONE_REPEATS = 4
SLOW_ENOUGH_S = 0.006
"""Time of an iteration from which a client can follow each."""
MOST_PACE = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """How to calibrate."""

    seconds: float = 60.0
    """For the experiment; its least takes longer on a slow engine."""
    largest_batch: int = LARGEST_BATCH
    """Requests at a time, at most."""
    max_prompt_tokens: int | None = None
    """Longest prompt; what the engine takes if not given."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    """Limits of the engine that are known; found by trying if not given."""
    gpus: int = 1
    machine: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The engine's figures and the measurements behind them."""

    measured: MeasuredEngine
    fit: Fit
    rows: tuple[Row, ...]
    lone: tuple[tuple[int, float], ...]
    """Prompt tokens and TTFT, seconds, of prompts sent to the idle engine."""
    stages: tuple[Stage, ...]
    seconds: float


class Experiment:
    """A calibration in steps: ``prepare``, then ``run`` as often as there is time for, then ``result``.

    Other traffic may run between the steps; spread over a longer time, the experiment meets the same
    disturbances as that traffic does.

    Raises:
        InputError: the engine's contexts are too short to measure anything.
    """

    def __init__(
        self,
        runner: Runner,
        facts: Facts,
        settings: Settings | None = None,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.runner = runner
        self.facts = facts
        self.settings = settings or Settings()
        self.progress = progress
        self.rows: list[Row] = []
        self.stages: list[Stage] = []
        self.lone: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.length = min(facts.max_model_len or DEFAULT_LENGTH, 1 << 20)
        if self.settings.max_prompt_tokens is not None:
            self.length = min(self.length, self.settings.max_prompt_tokens + PILOT_OUTPUT)
        if self.length < 2 * PILOT_OUTPUT:
            raise InputError(f"contexts of {self.length} tokens are too short to measure anything")
        self.seqs: int | None = None
        self.budget = self.settings.max_num_batched_tokens
        self.pace = 1
        self._rounds = 0

    @property
    def _used_budget(self) -> int:
        return self.budget or UNSEEN_BUDGET

    def prepare(self) -> None:
        """Find the engine's limits and take a pilot sample.

        Raises:
            InputError: the engine stops answering.
        """
        started = time.monotonic()
        self._find_pace()
        seen = self._find_sequences()
        self.progress("token budget of an iteration")
        if self.budget is None:
            record = self.runner.run(burst(self.length))
            self.stages.append(record.stage)
            self.budget = token_budget(record)
        self._take(self._pilot(1, PILOT_PROMPT, (self.length - 8,)))
        self.limits = Limits(
            self.seqs or seen, self.length, self.facts.kv_tokens, self._used_budget, self.pace
        )
        middle = max(self.limits.max_num_seqs // 2, 1)
        probes = (PILOT_PROMPT, self.length // 8)
        self._take(self._pilot(middle, self.length // 4, probes))
        self.pilot = fit(self.rows)
        self.grid = candidates(self.limits)
        self._send_alone()
        self.seconds += time.monotonic() - started

    def run(self, seconds: float) -> None:
        """Run the stages that tell most within the given time, beside those already run.

        Raises:
            InputError: the engine stops answering.
        """
        started = time.monotonic()
        known = sum(
            (information(s, self.pilot, self.limits) for s in self.stages if not s.together),
            start=np.zeros(()),
        )
        seed = self.settings.seed + self._rounds
        self._rounds += 1
        plan = choose(self.grid, self.pilot, self.limits, max(seconds, 0.0), seed, known)
        for number, stage in enumerate(plan):
            left = seconds - (time.monotonic() - started)
            if number and cost_s(stage, self.pilot, self._used_budget) > left:
                continue
            self.progress(
                f"{number + 1} of {len(plan)}: {stage.batch} requests of {stage.prompt_tokens} "
                f"tokens, prompts of {', '.join(map(str, stage.probes)) or 'none'}"
            )
            self._take(stage)
        self._send_alone()
        self.seconds += time.monotonic() - started

    def result(self) -> Calibrated:
        """Return the engine's times.

        Raises:
            InputError: they vary too much to be fitted, or iterations come out as taking no time.
        """
        found = fit(self.rows)
        if found.error > NOISY:
            raise InputError(
                f"iteration times vary by {found.error:.0%} from what any of their parts explain; is "
                "another job on the engine's machine, or is the engine no longer the same? Nothing "
                "was written"
            )
        check_fit(found)
        overhead, half_width = request_overhead(found, self.lone, self._used_budget)
        measured = _measured(
            found,
            self.rows,
            overhead,
            half_width,
            self.facts,
            self.settings,
            self.seqs,
            self.budget,
        )
        return Calibrated(
            measured, found, tuple(self.rows), tuple(self.lone), tuple(self.stages), self.seconds
        )

    def _take(self, stage: Stage) -> Record:
        record = self.runner.run(stage)
        self.rows.extend(rows_of(record, len(self.stages), self._used_budget))
        self.stages.append(stage)
        return record

    def _pilot(self, batch: int, prompt_tokens: int, probes: tuple[int, ...]) -> Stage:
        output = min(self.pace * PILOT_OUTPUT, self.length - prompt_tokens)
        return Stage(batch, prompt_tokens, output, probes, pace=self.pace)

    def _find_pace(self) -> None:
        """Find how many iterations there must be between probes."""
        self.progress("a first request")
        for _ in range(2):  # the first one may find the engine cold
            (answer,) = self.runner.run(Stage(1, PILOT_PROMPT, PILOT_OUTPUT)).batch
        wanted = int(np.ceil(SLOW_ENOUGH_S / max(answer.tpot_s, 1e-6)))
        room = (self.length // 2) // PILOT_OUTPUT
        self.pace = int(np.clip(wanted, 1, max(min(MOST_PACE, room), 1)))

    def _find_sequences(self) -> int:
        """Find the limit on requests at a time, and return the largest batch seen."""
        told = self.settings.max_num_seqs or self.facts.max_num_seqs
        cap = min(told or self.settings.largest_batch, self.settings.largest_batch)
        kv_tokens = self.facts.kv_tokens
        if kv_tokens is not None:
            cap = min(cap, max(kv_tokens // (PILOT_PROMPT + PILOT_OUTPUT + 16), 1))
        self.seqs, seen = told, 1
        for batch in ladder(1, cap, 2.0):
            self.progress(f"batches of {batch}")
            probes = (PILOT_PROMPT, 4 * PILOT_PROMPT) if batch < cap or told is None else ()
            together = at_once(self._take(self._pilot(batch, PILOT_PROMPT, probes)))
            seen = max(seen, together)
            if together < batch:
                self.seqs = together
                break
        return seen

    def _send_alone(self) -> None:
        """Send prompts to the idle engine."""
        self.progress("prompts on the idle engine")
        sizes = np.array(ladder(16, self.length // 2, 4.0) * LONE_REPEATS)
        np.random.default_rng((self.settings.seed, self._rounds)).shuffle(sizes)
        record = self.runner.run(Stage(0, 1, 1, tuple(sizes.tolist())))
        self.lone += [(probe.prompt_tokens, probe.ttft_s) for probe in record.probes]


def calibrate(
    runner: Runner,
    facts: Facts,
    settings: Settings | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Calibrated:
    """Return an engine's times, measured by a short experiment.

    Raises:
        InputError: the engine stops answering, or its times vary too much to fit.
    """
    experiment = Experiment(runner, facts, settings, progress)
    started = time.monotonic()
    experiment.prepare()
    experiment.run(experiment.settings.seconds - (time.monotonic() - started))
    return experiment.result()


def request_overhead(
    found: Fit, lone_s: list[tuple[int, float]], budget: int
) -> tuple[RequestOverhead, dict[str, float]]:
    """Return what lone prompts take beyond their iterations, and half-widths of its confidence.

    Ways in and back cannot be told apart from outside, so all of it is put before the iterations.
    """
    tokens = np.array([n for n, _ in lone_s], np.float64)
    ttft_s = np.array([t for _, t in lone_s])
    inside_s = np.array([alone_s(found, n, budget) for n, _ in lone_s])
    rest, x = ttft_s - inside_s, np.stack([np.ones_like(tokens), tokens], axis=1)
    weight = 1.0 / ttft_s
    robust = np.ones(len(rest))
    for _ in range(10):
        w = weight * np.sqrt(robust)
        values, _ = nnls(x * w[:, None], np.maximum(rest, 0.0) * w)
        residual = (rest - x @ values) * weight
        sigma = max(1.4826 * float(np.median(np.abs(residual))), 1e-6)
        robust = np.minimum(1.0, HUBER * sigma / np.maximum(np.abs(residual), 1e-300))
    w = (weight * np.sqrt(robust))[:, None]
    covariance = sigma**2 * np.linalg.pinv((x * w).T @ (x * w))
    half = CONFIDENCE * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    overhead = RequestOverhead(entry_s=float(values[0]), entry_token_s=float(values[1]))
    return overhead, {"entry_s": float(half[0]), "entry_token_s": float(half[1])}


def alone_s(found: Fit, prompt_tokens: int, budget: int) -> float:
    """Return the iterations of one prompt on an idle engine."""
    pieces = chunks(prompt_tokens, budget)
    rows = [
        Row(0, (new,), float(past + new == prompt_tokens), 0.0, 1.0,
            new * past + new * (new + 1) / 2, 0.0, 0)
        for new, past in pieces
    ]  # fmt: skip
    return float(found.predict_s(rows).sum())


def check_fit(found: Fit) -> None:
    """Refuse a fit in which iterations take no time.

    Raises:
        InputError: it is one.
    """
    for sizes, times_s, what in (
        (found.tables.decode, found.decode_s, "sequences"),
        (found.tables.tokens, found.tokens_s, "tokens"),
    ):
        for size, time_s in zip(sizes, times_s.tolist(), strict=True):
            if time_s <= 0.0:
                raise InputError(
                    f"by the fit an iteration of {size} {what} takes no time; give the experiment more "
                    "time with --budget-s, or the engine's machine less else to do"
                )


def _measured(
    found: Fit, rows: list[Row], overhead: RequestOverhead, half_width: dict[str, float],
    facts: Facts, settings: Settings, seqs: int | None, budget: int | None,
) -> MeasuredEngine:  # fmt: skip
    names = found.tables.names
    half = CONFIDENCE * np.sqrt(np.maximum(np.diag(found.covariance), 0.0))
    widths: dict[str, float | tuple[float, ...]] = {**half_width}
    for name in OTHERS:
        widths[name] = float(half[names.index(name)])
    for name in ("decode_s", "tokens_s"):
        widths[name] = tuple(
            float(h) for n, h in zip(names, half, strict=True) if n.startswith(name)
        )
    prompts = [row.prompt_tokens for row in rows if row.prompt_tokens]
    contexts = [row.longest_context for row in rows]
    return MeasuredEngine(
        engine=facts.engine,
        engine_version=facts.version,
        model=facts.model,
        machine=settings.machine,
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        gpus=settings.gpus,
        kv_tokens=facts.kv_tokens,
        block_size=facts.block_size,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=facts.max_model_len,
        iteration=MeasuredIteration(
            decode_batch=found.tables.decode,
            decode_s=tuple(found.decode_s.tolist()),
            tokens=found.tables.tokens,
            tokens_s=tuple(found.tokens_s.tolist()),
            sequence_s=found.figure("sequence_s"),
            context_s=found.figure("context_s"),
            pair_s=found.figure("pair_s"),
        ),
        request=overhead,
        ranges=MeasuredRanges(
            batch=(min(r.batch for r in rows), max(r.batch for r in rows)),
            prompt_tokens=(min(prompts), max(prompts)),
            context_tokens=(min(contexts), max(contexts)),
        ),
        error=MeasuredError(
            relative=found.error, rows=len(rows), condition=found.condition, stretch=found.stretch
        ),
        half_width=widths,
        covariance=Covariance(
            names=names, matrix=tuple(tuple(row) for row in found.covariance.tolist())
        ),
    )
