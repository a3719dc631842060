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


def calibrate(
    runner: Runner,
    facts: Facts,
    settings: Settings = Settings(),
    progress: Callable[[str], None] = lambda message: None,
) -> Calibrated:
    """Return an engine's times, measured by a short experiment.

    Raises:
        InputError: the engine stops answering, or its times vary too much to fit.
    """
    started = time.monotonic()
    length = min(facts.max_model_len or DEFAULT_LENGTH, 1 << 20)
    if settings.max_prompt_tokens is not None:
        length = min(length, settings.max_prompt_tokens + PILOT_OUTPUT)
    if length < 2 * PILOT_OUTPUT:
        raise InputError(f"contexts of {length} tokens are too short to measure anything")
    rows: list[Row] = []
    stages: list[Stage] = []

    def run(stage: Stage, budget: int) -> Record:
        record = runner.run(stage)
        rows.extend(rows_of(record, len(stages), budget))
        stages.append(stage)
        return record

    seqs, seen = _find_sequences(run, facts, settings, progress)
    budget = settings.max_num_batched_tokens
    progress("token budget of an iteration")
    longest = Stage(1, PILOT_PROMPT, PILOT_OUTPUT, (length - 8,))
    if budget is None:
        rows_before = len(rows)
        budget = token_budget(run(burst(length), UNSEEN_BUDGET))
        del rows[rows_before:]  # several prompts in one iteration
    used = budget or UNSEEN_BUDGET
    run(longest, used)
    limits = Limits(seqs or seen, length, facts.kv_tokens, used)
    largest = limits.max_num_seqs
    middle = max(largest // 2, 1)
    run(Stage(middle, length // 4, PILOT_OUTPUT, (PILOT_PROMPT, length // 8)), used)
    pilot = fit(rows)
    grid = candidates(limits)
    known = sum(
        (information(stage, pilot, limits) for stage in stages if not stage.together),
        start=np.zeros(()),
    )
    lone_s = _lone(runner, length, progress, settings.seed)
    left = settings.seconds - (time.monotonic() - started)
    plan = choose(grid, pilot, limits, max(left, 0.0), settings.seed, known)
    for number, stage in enumerate(plan):
        left = settings.seconds - (time.monotonic() - started)
        if number and cost_s(stage, pilot, used) > left:
            continue
        progress(
            f"{number + 1} of {len(plan)}: {stage.batch} requests of {stage.prompt_tokens} tokens, "
            f"prompts of {', '.join(map(str, stage.probes)) or 'none'}"
        )
        run(stage, used)
    lone_s += _lone(runner, length, progress, settings.seed + 1)
    found = fit(rows)
    if found.error > NOISY:
        raise InputError(
            f"iteration times vary by {found.error:.0%} from what any of their parts explain; is another "
            "job on the engine's machine, or is the engine no longer the same? Nothing was written"
        )
    overhead, half_width = request_overhead(found, lone_s, used)
    measured = _measured(found, rows, overhead, half_width, facts, settings, seqs, budget, length)
    return Calibrated(
        measured, found, tuple(rows), tuple(lone_s), tuple(stages), time.monotonic() - started
    )


def _find_sequences(
    run: Callable[[Stage, int], Record], facts: Facts, settings: Settings,
    progress: Callable[[str], None],
) -> tuple[int | None, int]:  # fmt: skip
    """Return the engine's limit on requests at a time, and the largest batch seen."""
    told = settings.max_num_seqs or facts.max_num_seqs
    cap = min(told or settings.largest_batch, settings.largest_batch)
    if facts.kv_tokens is not None:
        cap = min(cap, max(facts.kv_tokens // (PILOT_PROMPT + PILOT_OUTPUT + 16), 1))
    seen = 1
    for batch in ladder(1, cap, 2.0):
        progress(f"batches of {batch}")
        probes = (PILOT_PROMPT, 4 * PILOT_PROMPT) if batch < cap or told is None else ()
        together = at_once(run(Stage(batch, PILOT_PROMPT, PILOT_OUTPUT, probes), UNSEEN_BUDGET))
        seen = max(seen, together)
        if together < batch:
            return together, seen
    return told, seen


def _lone(
    runner: Runner, length: int, progress: Callable[[str], None], seed: int
) -> list[tuple[int, float]]:
    """Return prompt tokens and TTFT of prompts sent to the idle engine."""
    progress("prompts on the idle engine")
    sizes = np.array(ladder(16, length // 2, 4.0) * LONE_REPEATS)
    np.random.default_rng(seed).shuffle(sizes)
    record = runner.run(Stage(0, 1, 1, tuple(sizes.tolist())))
    return [(probe.prompt_tokens, probe.ttft_s) for probe in record.probes]


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


def _measured(
    found: Fit, rows: list[Row], overhead: RequestOverhead, half_width: dict[str, float],
    facts: Facts, settings: Settings, seqs: int | None, budget: int | None, length: int,
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
        error=MeasuredError(relative=found.error, rows=len(rows), condition=found.condition),
        half_width=widths,
        covariance=Covariance(
            names=names, matrix=tuple(tuple(row) for row in found.covariance.tolist())
        ),
    )
