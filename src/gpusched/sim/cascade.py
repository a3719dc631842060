"""Requests that go from model to model until a judge accepts an answer.

Nothing flows back from a later model to an earlier one, so the fleets are simulated one after
another, exactly: what the judge passes on arrives at the next when the answer and the judging are
done. The user sees the accepted answer alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.plan import Plan
from gpusched.domain.slo import SloClasses
from gpusched.errors import InputError
from gpusched.sim.deploy import fleet_for
from gpusched.sim.fleet import Fleet
from gpusched.sim.gaps import GapHistogram
from gpusched.sim.metrics import attainments, met_slo, metrics
from gpusched.sim.result import SimulationResult, spread
from gpusched.sim.simulate import simulate
from gpusched.traces.scores import read_scores
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """What every stage did, and what the users saw."""

    stages: tuple[SimulationResult, ...]
    rows: tuple[Ints, ...]
    """Requests of each stage, as rows of the trace in the stage's order."""
    accepted: Ints
    """Stage whose answer was taken, shape (requests,)."""
    arrival_s: Floats
    first_token_s: Floats
    """Of the accepted answer; nan if a stage rejected the request."""
    finish_s: Floats
    output_tokens: NDArray[np.int32]
    class_id: NDArray[np.int16] | None
    quality: float
    """Mean score of the accepted answers; rejected requests count as 0."""

    @property
    def ttft_s(self) -> Floats:
        """Arrival to the accepted answer's first token."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> Floats:
        """Arrival to the accepted answer's last token."""
        return self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token of the accepted answer."""
        return (self.finish_s - self.first_token_s) / np.maximum(self.output_tokens - 1, 1)


def simulate_cascade(
    fleets: Sequence[Fleet],
    trace: Trace,
    scores: Floats,
    thresholds: Sequence[float],
    *,
    judge_s: float = 0.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> CascadeResult:
    """Return what happens to every request; ``scores`` has shape (requests, stages), ``thresholds``
    one entry less than there are stages.

    Raises:
        InputError: the trace has sessions, whose later rounds wait for answers.
    """
    if trace.think_s is not None:
        raise InputError(
            f"{trace.name}: its sessions wait for answers; a cascade takes requests that do not, "
            "such as a profile without sessions"
        )
    n = len(trace)
    first = np.full(n, np.nan)
    finish = np.full(n, np.nan)
    accepted = np.zeros(n, np.int64)
    rows, arrival_s = np.arange(n), trace.arrival_s
    lost = np.zeros(n, bool)
    results, stage_rows = [], []
    for stage, fleet in enumerate(fleets):
        if not len(rows):
            break
        part = replace(trace.take(rows), arrival_s=arrival_s, think_s=None)
        result = simulate(fleet, part, seed=seed)
        results.append(result)
        stage_rows.append(rows)
        passes = ~result.rejected
        if stage < len(thresholds):
            passes &= scores[rows, stage] < thresholds[stage]
        else:
            passes[:] = False
        lost[rows[result.rejected]] = True
        taken = ~passes & ~result.rejected
        accepted[rows[taken]] = stage
        first[rows[taken]] = result.first_token_s[taken]
        finish[rows[taken]] = result.finish_s[taken]
        leave_s = result.finish_s[passes] + judge_s
        order = np.argsort(leave_s, kind="stable")
        rows, arrival_s = rows[passes][order], leave_s[order]
        if progress is not None:
            progress((stage + 1) / len(fleets))
    score = np.where(lost, 0.0, scores[np.arange(n), accepted])
    return CascadeResult(
        tuple(results), tuple(stage_rows), accepted, trace.arrival_s, first, finish,
        trace.output_tokens, trace.class_id, float(score.mean()),
    )  # fmt: skip


def run_cascade(
    plan: Plan, trace: Trace, *, seed: int = 0, progress: Callable[[float], None] | None = None
) -> CascadeResult:
    """Simulate a plan's cascade, scores drawn from its table.

    Raises:
        InputError: the table of scores cannot be read.
        InfeasibleError: a model does not fit its pool.
    """
    assert plan.cascade is not None
    stages = plan.cascade.stages
    scores = read_scores(plan.cascade.scores, plan.cascade.models)
    chosen = [plan.cascade.models.index(stage.model) for stage in stages]
    drawn = scores.for_requests(len(trace), seed=seed)[:, chosen]
    fleets = [fleet_for(plan.stage_plan(i)) for i in range(len(stages))]
    thresholds = [stage.threshold if stage.threshold is not None else -np.inf for stage in stages]
    return simulate_cascade(
        fleets, trace, drawn, thresholds[:-1], judge_s=plan.cascade.judge_s, seed=seed,
        progress=progress,
    )  # fmt: skip


def cascade_metrics(plan: Plan, result: CascadeResult, slo: SloClasses) -> dict[str, object]:
    """Return the figures of ``simulate --json``: latencies of accepted answers, use of all stages."""
    warmup_s = plan.workload.warmup_s
    counted = result.arrival_s >= warmup_s
    done = counted & ~np.isnan(result.finish_s)
    seen = _as_one(result)
    met = met_slo(seen, slo) & counted
    ends = [stage.makespan_s for stage in result.stages]
    span_s = max(max(ends) - warmup_s, 1e-9)
    stages = [metrics(plan.stage_plan(i), stage) for i, stage in enumerate(result.stages)]
    values: dict[str, object] = {
        "requests": int(counted.sum()),
        "completed": int(done.sum()),
        "rejected": int((counted & np.isnan(result.finish_s)).sum()),
        "simulated_s": max(ends),
        "wall_s": sum(stage.wall_s for stage in result.stages),
        "ttft_s": spread(result.ttft_s[done]),
        "tpot_s": spread(result.tpot_s[done & (result.output_tokens > 1)]),
        "e2e_s": spread(result.e2e_s[done]),
        "quality": result.quality,
        "slo_attainment": float(met.sum() / max(counted.sum(), 1)),
        "slo_attainment_by_class": attainments(seen, slo, warmup_s=warmup_s),
        "goodput_rps": float(met.sum() / span_s),
        "output_tokens_per_s": float(result.output_tokens[done].sum() / span_s),
        "warnings": list(dict.fromkeys(w for s in stages for w in s["warnings"])),
        "timing_error": max(s["timing_error"] for s in stages),
    }
    tokens = int(result.output_tokens[done].sum())
    values["requests_per_wall_s"] = len(result.arrival_s) / max(
        sum(stage.wall_s for stage in result.stages), 1e-9
    )
    values["itl_s"] = _joint_gaps(result.stages).spread()
    values["kv_utilization_peak"] = max(s["kv_utilization_peak"] for s in stages)
    values["prefix_hit_rate"] = 0.0
    hours = max(ends) / 3600.0
    values["gpu_hours"] = plan.gpus * hours
    values["cost_usd"] = plan.usd_per_hour * hours
    values["usd_per_million_output_tokens"] = (
        plan.usd_per_hour * hours / tokens * 1e6 if tokens else None
    )
    for name in (
        "iterations", "preemptions", "energy_kwh", "carbon_kg", "carbon_operational_kg",
        "carbon_embodied_kg",
    ):  # fmt: skip
        values[name] = sum(s[name] for s in stages)
    n = len(result.arrival_s)
    assert plan.cascade is not None
    values["stages"] = [
        {
            "model": stage.model,
            "reach": len(rows) / n,
            "accepted": float((result.accepted == i).mean()),
            "e2e_s": figures["e2e_s"],
            "pools": figures["pools"],
        }
        for i, (stage, rows, figures) in enumerate(
            zip(plan.cascade.stages, result.rows, stages, strict=False)
        )
    ]
    return values


def _joint_gaps(stages: Sequence[SimulationResult]) -> GapHistogram:
    counts = np.sum([stage.gaps.counts for stage in stages], axis=0)
    total_s = sum(stage.gaps.total_s for stage in stages)
    return GapHistogram(counts, total_s, max(stage.gaps.max_s for stage in stages))


def _as_one(result: CascadeResult) -> SimulationResult:
    """Return the users' view as a simulation's result, to count objectives met."""
    last = result.stages[-1]
    return replace(
        last,
        arrival_s=result.arrival_s,
        first_token_s=result.first_token_s,
        finish_s=result.finish_s,
        output_tokens=result.output_tokens,
        rejected=np.isnan(result.finish_s),
        class_id=result.class_id,
    )
