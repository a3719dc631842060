"""SageServe (arXiv 2502.14617): forecast, hourly program and reactive layer, beside reactive scaling.

The Microsoft traces are not public. Requests are drawn from the rates of ServeGen's m-small (Alibaba
Cloud, ten-minute windows, a strong rhythm of the day), thinned, with lengths of the summarising
profile; without the data, from a generator with the rhythm of day and week. Every policy is compared at
the cheapest setting of its one knob at which all three tiers meet their objectives, on the same
requests, and again on other draws of them.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.document import validate
from gpusched.domain.scale import ScaleSpec
from gpusched.jobs import run_all
from gpusched.planning.capacity.cells import Question, prepare
from gpusched.planning.capacity.scaling import Outcome, Runner
from gpusched.report.scale import demand_chart, frontier_chart, instances_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting

Floats = NDArray[np.float64]
TRIED = {
    "threshold": (0.5, 0.6, 0.7),
    "lt-i": (0.95, 1.0, 1.1),
    "lt-u": (0.9, 1.0),
    "lt-ua": (0.9, 1.0),
    "siloed": (0.4,),
    "anticipating": (1.0, 1.1),
}
PUBLISHED = {"lt-i": -24.21, "lt-u": -19.65, "lt-ua": -23.38}
CLOSE = 6.0
"""Percentage points from the published saving that count as the same."""
SEEDS = 2
"""Further draws of the requests."""
HISTORY_DAYS = 4.0
RATES, GROUP = "servegen_client_rates.parquet", "m-small"


@dataclass(frozen=True, slots=True)
class Task:
    """A policy at some settings of its knob, on one draw."""

    traces: Path | None
    days: float
    seed: int
    policy: str
    knobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """All policies, each at one setting, on one draw."""

    traces: Path | None
    days: float
    seed: int
    knobs: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Row:
    """A run, without its requests."""

    policy: str
    knob: float
    seed: int
    gpu_hours: float
    wasted_gpu_hours: float
    attainment: dict[str, float]
    meets: bool
    short: float
    """What the tiers lack to their objectives, summed."""
    bound_gpu_hours: float


def run(setting: Setting) -> Reproduction:
    """Rerun the comparison of scaling policies."""
    days = 7.0 if os.environ.get("GPUSCHED_FULL") == "1" else 3.0
    folder = setting.traces if setting.traces and (setting.traces / RATES).exists() else None
    tasks = [
        Task(folder, days, setting.seed, name, knobs) for name, knobs in TRIED.items()
    ]  # fmt: skip
    setting.progress("policies at all settings")
    found = run_all(
        run_task, tasks, jobs=setting.jobs,
        progress=lambda done: setting.progress(f"{done} of {len(tasks)} policies tuned"),
    )  # fmt: skip
    rows = [row for part in found for row in part]
    chosen = {name: best([r for r in rows if r.policy == name]) for name in TRIED}
    knobs = {name: row.knob for name, row in chosen.items()}
    others = [Draw(folder, days, setting.seed + 1 + k, tuple(knobs.items())) for k in range(SEEDS)]
    setting.progress(f"{SEEDS} other draws")
    with ProcessPoolExecutor(min(setting.jobs, SEEDS)) as pool:
        repeated = list(pool.map(run_draw, others))
    draws = {name: [chosen[name], *(part[name] for part in repeated)] for name in TRIED}
    where = "rates of m-small, thinned" if folder else "generated weeks (no data folder)"
    question = question_for(folder, days, setting.seed)
    runner = Runner(question, seed=setting.seed)
    plotted = [runner.run(name, chosen[name].knob) for name in ("anticipating", "threshold")]
    claims = [
        *saving_claims(draws, rows, where),
        siloed_claim(draws),
        waste_claim(draws),
        early_claim(rows),
        forecast_claim(question, plotted[0]),
        *ours_claims(draws),
    ]
    bound = runner.bound_gpu_hours
    return Reproduction(
        tuple(claims),
        {
            "demand": demand_chart(plotted[0]),
            "instances": instances_chart(plotted),
            "frontier": frontier_chart(plotted, bound),
        },
    )


def spec_for(traces: Path | None, days: float) -> ScaleSpec:
    """Return the set-up: one model in one region, three tiers, ten minutes to start an instance."""
    demand: dict[str, object] = {"profile": "summarize", "days": HISTORY_DAYS + days}
    if traces is not None:
        demand |= {"rates": str(traces / RATES), "group": GROUP, "rate_scale": 0.006}
    else:
        demand |= {"rate_rps": 7.0, "arrivals": "weekly"}
    return validate(
        ScaleSpec,
        {
            "models": [{"model": "llama-3.1-70b", "gpu": "a100_sxm", "gpus": 4, "startup_s": 600}],
            "tiers": {
                "fast": {"ttft_s": 2, "attainment": 0.95, "share": 0.5},
                "normal": {"ttft_s": 60, "attainment": 0.99, "share": 0.3},
                "batch": {"deadline_s": 86400, "attainment": 0.99, "share": 0.2},
            },
            "demand": demand,
            "forecast": {"history_days": HISTORY_DAYS},
        },
        "sageserve",
    )


@lru_cache(maxsize=1)
def question_for(traces: Path | None, days: float, seed: int) -> Question:
    """Return the requests of a draw; kept, for a process runs several policies on it."""
    return prepare(spec_for(traces, days), seed=seed)


def run_task(task: Task) -> list[Row]:
    """Run a policy at each setting."""
    runner = Runner(question_for(task.traces, task.days, task.seed), seed=task.seed)
    return [
        row_of(runner.run(task.policy, knob), runner.bound_gpu_hours, task.seed)
        for knob in task.knobs
    ]


def run_draw(draw: Draw) -> dict[str, Row]:
    """Run every policy once."""
    runner = Runner(question_for(draw.traces, draw.days, draw.seed), seed=draw.seed)
    bound = runner.bound_gpu_hours
    return {name: row_of(runner.run(name, knob), bound, draw.seed) for name, knob in draw.knobs}


def row_of(outcome: Outcome, bound_gpu_hours: float, seed: int) -> Row:
    """Return what is kept of a run."""
    tiers, reached = outcome.question.spec.tiers, outcome.attainment
    return Row(
        outcome.policy, outcome.knob, seed, outcome.gpu_hours,
        outcome.gpu_hours * outcome.wasted_share, reached, outcome.meets,
        sum(max(t.attainment - reached[n], 0.0) for n, t in tiers.items()), bound_gpu_hours,
    )  # fmt: skip


def best(rows: Sequence[Row]) -> Row:
    """Return the cheapest run that meets all objectives; else the one that lacks least."""
    good = [row for row in rows if row.meets]
    if good:
        return min(good, key=lambda row: row.gpu_hours)
    return min(rows, key=lambda row: row.short)


def saving(rows: Sequence[Row], base: Sequence[Row]) -> Floats:
    """Return the change in GPU-hours on each draw, percent."""
    return np.array(
        [100 * (a.gpu_hours / b.gpu_hours - 1) for a, b in zip(rows, base, strict=True)]
    )


def shown(values: Floats) -> str:
    """Return a mean with the standard deviation over draws."""
    return f"{values.mean():+.1f} (sd {values.std(ddof=1):.1f}, {len(values)} draws)"


def reached(rows: Sequence[Row]) -> str:
    """Return attainment of the tiers, the worst draw."""
    return ", ".join(
        f"{name} {min(r.attainment[name] for r in rows):.2%}" for name in rows[0].attainment
    )


def saving_claims(draws: dict[str, list[Row]], rows: Sequence[Row], where: str) -> list[Claim]:
    """The headline: fewer hours than reactive scaling at equal attainment."""
    base = draws["threshold"]
    claims = []
    for name, published in PUBLISHED.items():
        change = saving(draws[name], base)
        met = all(row.meets for row in draws[name][:1])
        claims.append(
            Claim(
                f"GPU-hours of {name.upper()} against unified reactive scaling",
                f"{published:+.2f}", shown(change), "%",
                bool(met and abs(change.mean() - published) <= CLOSE),
                f"{where}; {draws[name][0].gpu_hours:,.0f} against {base[0].gpu_hours:,.0f} "
                f"GPU-hours, knobs {draws[name][0].knob:g} and {base[0].knob:g}; worst draws: "
                f"{reached(draws[name])} against {reached(base)}",
            )
        )  # fmt: skip
    top = min(float(saving(draws[name], base).mean()) for name in PUBLISHED)
    lax = next(r for r in rows if r.policy == "threshold" and r.knob == 0.7)
    claims.append(
        Claim(
            "most that the published strategies save", "up to -25", f"{top:+.1f}", "%",
            top <= -15.0,
            "-15 or less counts. What differs, one by one not measured: instances take 10 min to start here (the published "
            "simulator makes them usable at once), forecasts are made out of sample (its plans read "
            "in-sample values), the reactive baseline is at its best setting, and its idle capacity "
            f"serves deferrable requests too. At the published 70 % it pays {lax.gpu_hours:,.0f} "
            f"GPU-hours and reaches {reached([lax])}",
        )
    )  # fmt: skip
    return claims


def siloed_claim(draws: dict[str, list[Row]]) -> Claim:
    """One fleet for all tiers against a fleet each for interactive and deferrable requests."""
    change = saving(draws["threshold"], draws["siloed"])
    return Claim(
        "instance-hours of unified against siloed reactive scaling", "-34.5", shown(change), "%",
        bool(change.mean() < -10),
        f"{draws['threshold'][0].gpu_hours:,.0f} against {draws['siloed'][0].gpu_hours:,.0f} "
        f"GPU-hours; siloed, worst draw: {reached(draws['siloed'])}; any saving above 10 % counts",
    )  # fmt: skip


def waste_claim(draws: dict[str, list[Row]]) -> Claim:
    """Time paid for while starting or draining."""
    ours = [row.wasted_gpu_hours for row in draws["lt-ua"]]
    base = [row.wasted_gpu_hours for row in draws["threshold"]]
    change = 100 * (np.array(ours) / np.array(base) - 1)
    return Claim(
        "GPU time lost in scaling, LT-UA against reactive", "about -70", shown(change), "%",
        bool(change.mean() <= -50),
        f"{ours[0]:,.1f} against {base[0]:,.1f} GPU-hours starting or draining; -50 % or more counts",
    )  # fmt: skip


def early_claim(rows: Sequence[Row]) -> Claim:
    """The negative result of the paper."""
    plain = {r.policy: r for r in rows if r.policy in PUBLISHED and r.knob == 1.0}
    early, other = plain["lt-i"], plain["lt-ua"]
    return Claim(
        "LT-I gives instances up too early: worse latency than LT-UA on the same plan",
        "worse TTFT",
        f"fast {early.attainment['fast']:.2%} against {other.attainment['fast']:.2%}, normal "
        f"{early.attainment['normal']:.2%} against {other.attainment['normal']:.2%}",
        "in time",
        early.attainment["fast"] + early.attainment["normal"]
        < other.attainment["fast"] + other.attainment["normal"],
        f"{early.gpu_hours:,.0f} against {other.gpu_hours:,.0f} GPU-hours",
    )  # fmt: skip


def forecast_claim(question: Question, outcome: Outcome) -> Claim:
    """Time of a forecast; the published one took one for each model and region."""
    begun = perf_counter()
    question.model(question.series_tps[0, 0, : question.first], 6)
    seconds = perf_counter() - begun
    assert outcome.plan is not None
    seen = outcome.plan.forecasts[0, 0]
    return Claim(
        "time of a forecast", "0.7", f"{seconds:.2g}", "s", seconds <= 0.7,
        f"{question.model_name}; rolled forward over {len(seen.origin)} origins its error is "
        f"{seen.mean_absolute_percent:.1f} %, and demand stayed below the "
        f"{question.spec.forecast.level:.0%} band {seen.coverage:.1%} of the time",
    )  # fmt: skip


def ours_claims(draws: dict[str, list[Row]]) -> list[Claim]:
    """What is reached beyond the paper's strategies."""
    mine = draws["anticipating"]
    rival = min(PUBLISHED, key=lambda name: float(saving(draws[name], mine).mean()))
    against = saving(mine, draws[rival])
    reactive = saving(mine, draws["threshold"])
    regret = np.array([100 * (row.gpu_hours / row.bound_gpu_hours - 1) for row in mine])
    return [
        Claim(
            "the published strategies are best: GPU-hours of our anticipating policy against the best "
            f"of them, {rival.upper()}",
            "not below 0", shown(against), "%", bool(against.mean() + against.std(ddof=1) >= 0),
            f"{mine[0].gpu_hours:,.0f} against {draws[rival][0].gpu_hours:,.0f} GPU-hours; against "
            f"reactive {shown(reactive)} %; a difference within one standard deviation is none; worst "
            f"draw: {reached(mine)}; {regret.mean():.0f} % over the fluid bound of a clairvoyant with "
            "divisible instances",
        )
    ]  # fmt: skip
