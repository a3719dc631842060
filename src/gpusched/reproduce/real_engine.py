"""A real engine, calibrated and then predicted: vLLM on the CPU under three loads and two policies.

No paper's experiment but our own promise: what is simulated is what is served. One vLLM server with
twenty small layers of random weights runs four requests at a time, so that it matters who goes first.
A calibration measures it with closed batches and single prompts; then come Poisson arrivals of mixed
lengths that no figure was fitted to, in order of arrival and shortest answer first.
"""

import json
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from gpusched.calibration.calibrate import Experiment, Settings
from gpusched.calibration.client import HttpEngine
from gpusched.calibration.facts import find_facts
from gpusched.calibration.stage import Answer, Floats, Ints
from gpusched.calibration.validate import (
    Figure,
    Lengths,
    capacity_rps,
    compare,
    predict,
    send_open_loop,
    trace_of,
    trace_of_answers,
)
from gpusched.engines.cores import Neighbours, own_core
from gpusched.engines.process import EngineServer, EngineStartError, free_port
from gpusched.engines.vllm_server import START_LIMIT_S, vllm_command, vllm_environment
from gpusched.errors import InputError
from gpusched.report.svg import Line, line_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.timing.measured import MeasuredEngine

LAYERS = 20
SEQUENCES = 4
BUDGET_TOKENS = 2048
LENGTHS = Lengths(96.0, 32.0, 0.9, 640, 200)
CALIBRATION_S, BETWEEN_S = 35.0, 6.0
"""Of the experiment, before all traffic and after each stretch of it."""
PARTS, PART_S = 2, 17.0
"""Stretches of traffic for each load and policy, and their length."""

# Criteria, set before the experiment was run.
LOADS = (0.3, 0.6, 0.85)
POLICIES = {"first come": "vllm", "shortest first": "sjf+predictor=oracle"}
"""What the simulator calls the two orders."""
BOUNDS = {"TTFT p50": 0.15, "TPOT p50": 0.15, "TTFT p90": 0.25, "TPOT p90": 0.25}
DIFFERENT = 0.10
"""Relative difference of mean TTFT from which one policy counts as the better one."""


@dataclass(frozen=True, slots=True)
class Run:
    """One load under one policy."""

    load: float
    policy: str
    figures: tuple[Figure, ...]
    parts: tuple[tuple[Figure, ...], ...] = ()
    """The same of each stretch of traffic alone."""

    def figure(self, name: str) -> Figure:
        """Return a figure by name."""
        return next(figure for figure in self.figures if figure.name == name)


def run(setting: Setting) -> Reproduction:
    """Calibrate a real engine, predict it, and measure it."""
    try:
        port = free_port()
        setting.progress("starting vLLM on the CPU")
        with EngineServer("vLLM", _command(port), port, _environment()) as server:
            server.wait(START_LIMIT_S)
            with own_core(server.pid) as alone:
                neighbours = Neighbours(server.pid)
                measured, runs = measure(server.url, setting)
                others = neighbours.share()
    except (InputError, EngineStartError) as error:
        return untestable(str(error))
    where = (
        "the model's process has a processor of its own, HTTP and the load generator share the others"
        if alone
        else "the model's process shares its processors with HTTP and the load generator"
    )
    if others is not None:
        where += f"; other programs took {others:.0%} of the machine meanwhile"
    return Reproduction((*error_claims(runs, measured, where), ranking_claim(runs)), charts(runs))


def _command(port: int) -> list[str]:
    return vllm_command(
        port=port,
        max_num_seqs=SEQUENCES,
        extra=(
            "--hf-overrides", json.dumps({"num_hidden_layers": LAYERS}), "--load-format", "dummy",
            "--scheduling-policy", "priority", "--max-num-batched-tokens", str(BUDGET_TOKENS),
        ),
    )  # fmt: skip


def _environment() -> dict[str, str]:
    """The model runs inside the engine's core process: two processes instead of three."""
    return {**vllm_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def measure(url: str, setting: Setting) -> tuple[MeasuredEngine, list[Run]]:
    """Return the engine's measured times and the figures of every load and policy.

    Raises:
        InputError: the engine stops answering, or its times vary too much.
    """
    engine = HttpEngine(url, seed=setting.seed)
    try:
        facts = find_facts(engine)
        engine.find_habits()
        known = Settings(
            max_num_seqs=SEQUENCES, max_num_batched_tokens=BUDGET_TOKENS,
            max_prompt_tokens=2 * LENGTHS.longest_prompt, seed=setting.seed,
        )  # fmt: skip
        experiment = Experiment(engine, facts, known, setting.progress)
        experiment.prepare()
        experiment.run(CALIBRATION_S)
        first = experiment.result().measured
        sent: dict[tuple[float, str], list[list[Answer]]] = {}
        for part, load in product(range(PARTS), LOADS):
            prompt, output, arrival_s = traffic(first, load, (setting.seed, part))
            # in turn, so that a drift of the machine falls on both
            for policy in list(POLICIES)[:: 1 if part % 2 == 0 else -1]:
                setting.progress(f"load {load}, {policy}, part {part + 1} of {PARTS}")
                shortest = POLICIES[policy].startswith("sjf")
                priority = output if shortest else np.zeros_like(output)
                answers = send_open_loop(
                    engine, arrival_s, prompt, output,
                    partial(_with_priority, priority),
                )  # fmt: skip
                sent.setdefault((load, policy), []).append(answers)
            experiment.run(BETWEEN_S)
        measured = experiment.result().measured
    finally:
        engine.close()
    runs = []
    for load, policy in product(LOADS, POLICIES):
        parts = sent[load, policy]
        pairs = [(predict(measured, trace_of_answers(a), POLICIES[policy]), a) for a in parts]
        each = tuple(compare([pair]) for pair in pairs)
        runs.append(Run(load, policy, compare(pairs), each))
    return measured, runs


def _with_priority(priority: Ints, index: int) -> dict[str, int]:
    return {"priority": int(priority[index])}


def traffic(
    measured: MeasuredEngine, load: float, seed: tuple[int, int]
) -> tuple[Ints, Ints, Floats]:
    """Return prompt and output lengths and arrival times of Poisson traffic that offers just a share
    ``load`` of what the engine does: these very requests, sent at once, would keep it busy for that
    share of the time.
    """
    rng = np.random.default_rng((*seed, round(100 * load)))
    at_once = PART_S * load * capacity_rps(measured, LENGTHS)
    prompt, output = LENGTHS.draw(max(round(at_once), 16), rng)
    busy_s = predict(measured, trace_of(np.zeros(len(prompt)), prompt, output)).makespan_s
    gap_s = rng.exponential(1.0, len(prompt))
    return prompt, output, np.cumsum(gap_s) * (busy_s / load / gap_s.sum())


def error_claims(runs: list[Run], measured: MeasuredEngine, where: str = "") -> tuple[Claim, ...]:
    """Return a claim for each bound on errors of prediction."""
    claims = []
    for name, bound in BOUNDS.items():
        errors = [abs(run.figure(name).error) for run in runs]
        worst = runs[int(np.argmax(errors))]
        each = ", ".join(
            f"{run.policy} at {run.load:g}: {1e3 * run.figure(name).predicted:.1f} for "
            f"{1e3 * run.figure(name).measured:.1f} ms ({run.figure(name).error:+.0%})"
            for run in runs
        )
        claims.append(
            Claim(
                f"{name} predicted, at {len(LOADS)} loads under {len(POLICIES)} policies",
                f"within {100 * bound:.0f}",
                f"{100 * max(errors):.1f} at worst ({worst.policy} at load {worst.load:g}), "
                f"{100 * float(np.mean(errors)):.1f} on average",
                "%",
                max(errors) <= bound,
                each,
            )
        )
    used = (
        f"{measured.engine} {measured.engine_version} on the CPU, {LAYERS} layers of width 256, "
        f"{SEQUENCES} sequences; iteration times of calibration left out of its fit predicted within "
        f"{measured.error.relative:.1%}; {where}"
    )
    claims[0] = Claim(
        claims[0].claim, claims[0].published, claims[0].ours, "%", claims[0].holds,
        f"{claims[0].differences}; {used}",
    )  # fmt: skip
    return tuple(claims)


def mean_ttft(figures: tuple[Figure, ...]) -> Figure:
    """Return the mean TTFT among figures."""
    return next(figure for figure in figures if figure.name == "TTFT mean")


def better(run: Run, other: Run) -> str | None:
    """Return the policy whose measured mean TTFT is the lower one in every stretch of traffic; None if
    they differ too little, or now this way and now that."""
    found = set()
    for a, b in zip(run.parts, other.parts, strict=True):
        x, y = mean_ttft(a).measured, mean_ttft(b).measured
        apart = abs(x - y) >= DIFFERENT * max(x, y)
        found.add((run.policy if x < y else other.policy) if apart else None)
    return found.pop() if len(found) == 1 else None


def ranking_claim(runs: list[Run]) -> Claim:
    """Return whether the predicted ranking is the measured one wherever policies differ."""
    agree, words = [], []
    for load in LOADS:
        first, second = (run for run in runs if run.load == load)
        seen = better(first, second)
        said = min((first, second), key=lambda r: mean_ttft(r.figures).predicted).policy
        values = " and ".join(
            f"{1e3 * r.figure('TTFT mean').predicted:.0f} for "
            f"{1e3 * r.figure('TTFT mean').measured:.0f} ms {r.policy}"
            for r in (first, second)
        )
        words.append(f"load {load:g}: {seen or 'no difference'} ({values})")
        if seen is not None:
            agree.append(seen == said)
    return Claim(
        "the policy of the lower mean TTFT, wherever they differ",
        "as measured",
        f"{sum(agree)} of {len(agree)} loads" if agree else "the policies do not differ",
        "",
        all(agree) if agree else None,
        f"they differ where one is lower by {DIFFERENT:.0%} in each stretch of traffic; {'; '.join(words)}; both orders are vLLM's priority "
        "queue, with equal priorities or the answer's length",
    )


def charts(runs: list[Run]) -> dict[str, str]:
    """Return predicted and measured latencies over loads."""
    loads = np.array(LOADS)
    found = {}
    for name in ("TTFT", "TPOT"):
        lines = [
            Line(
                f"{policy}, {quantile}, {kind}",
                loads,
                np.array(
                    [
                        1e3 * getattr(r.figure(f"{name} {quantile}"), kind)
                        for r in runs
                        if r.policy == policy
                    ]
                ),
            )
            for policy in POLICIES
            for quantile in ("p50", "p90")
            for kind in ("predicted", "measured")
        ]
        found[f"real-engine-{name.lower()}"] = line_chart(
            lines, title=f"{name} of vLLM on the CPU", x_label="load", y_label="ms"
        )
    return found


def untestable(reason: str) -> Reproduction:
    """Return the claims, none of them tested."""
    names = [f"{name} predicted within {bound:.0%}" for name, bound in BOUNDS.items()]
    return Reproduction(
        tuple(
            Claim(name, "", "", "", None, reason.replace("\n", " "))
            for name in (*names, "the ranking of policies")
        )
    )
