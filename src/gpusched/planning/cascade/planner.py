"""The whole answer for a cascade: thresholds, pools of every model, the front, the simulation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.cascade import Cascade
from gpusched.domain.plan import (
    CascadeChoice,
    Certificate,
    Plan,
    PlannedCascade,
    PlannedPool,
    PlannedStage,
    Provenance,
)
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError
from gpusched.planning.candidates import skeleton
from gpusched.planning.cascade.allocation import Allocation, slowest_model, whole_way
from gpusched.planning.cascade.escalation import candidate_thresholds
from gpusched.planning.cascade.front import (
    CascadeFront,
    CascadePoint,
    cascade_front,
    front_from,
)
from gpusched.planning.cascade.latencies import Latencies
from gpusched.sim.cascade import CascadeResult, cascade_metrics, run_cascade
from gpusched.traces.scores import Scores, read_scores
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

Floats = NDArray[np.float64]
SHORTLIST = 4
"""Points of the front simulated before one is chosen."""
EXTRA_TRACE = 4000
"""Requests of the trace used for tables of latency."""


@dataclass(frozen=True)
class CascadeAnswer:
    """A plan with its simulation, and the front it was chosen from."""

    plan: Plan
    result: CascadeResult
    trace: Trace
    front: CascadeFront


def plan_cascade(
    spec: Spec, *, seed: int = 0, progress: Callable[[str], None] | None = None
) -> CascadeAnswer:
    """Return thresholds and pools that answer fastest at the quality asked.

    Tables of latency come from the simulator; for every undominated threshold vector the GPUs are
    divided exactly; the fastest few points of enough quality are then simulated as whole cascades,
    and the best of them is the plan.

    Raises:
        InfeasibleError: no thresholds reach the quality, or the models do not fit.
        InputError: the scores or the trace cannot be used.
    """
    assert spec.cascade is not None
    started = time.perf_counter()
    question = spec.cascade
    trace = load_workload(spec.workload, spec.slo, seed=seed)
    names = (*(part.model for part in question.before), spec.model)
    scores = read_scores(question.scores, names)
    sample = trace.take(np.arange(min(len(trace), EXTRA_TRACE)))
    latencies = Latencies(spec, sample, measure_of(question), seed=seed, progress=progress)
    for name, engines, why in zip(names, latencies.engines, latencies.refusals, strict=True):
        if not engines:
            raise InfeasibleError(f"cascade: {name} fits on none of the cluster's GPUs: {why}")
    front = front_of(question, scores.values, latencies)
    front.fastest(question.quality)
    good = shortlist(question, scores.values, latencies, question.quality)
    tried = []
    for point in good:
        plan = cascade_plan(spec, scores, latencies, point)
        result = run_cascade(plan, trace, seed=seed)
        figures = cascade_metrics(plan, result, spec.slo)
        tried.append((_achieved(question, result), point, plan, result, figures))
        if progress is not None:
            progress(f"{len(tried)} of {len(good)} cascades simulated")
    value, point, plan, result, figures = min(tried, key=lambda one: one[0])
    certificate = Certificate(
        objective=spec.objective,
        value=value,
        bound=min(value, min(point.allocation.value_s for point in good)),
        unit="s",
        gap=0.0,
        solver="thresholds enumerated, GPUs divided exactly, tables by simulation",
        seconds=time.perf_counter() - started,
        candidates=front.solved,
        simulated=latencies.simulated + len(tried),
    )
    certificate = certificate.model_copy(
        update={"gap": max(0.0, (value - certificate.bound) / max(value, 1e-12))}
    )
    assert plan.cascade is not None
    plan = plan.model_copy(
        update={
            "predicted": figures,
            "certificate": certificate,
            "cascade": plan.cascade.model_copy(update={"front": _choices(front, latencies, point)}),
            "assumptions": (
                "answers of all models have the trace's lengths",
                f"scores of the trace's requests are drawn from {len(scores.values)} sampled ones",
                "the bound is the tables' best value, of stages that each see the trace's own "
                "arrivals; it is not a proof for the joint simulation",
            ),
            "provenance": Provenance(version=version("gpusched"), seed=seed),
        }
    )
    return CascadeAnswer(plan, result, trace, front)


def front_of(
    question: Cascade, scores: Floats, latencies: Latencies, *, slowest: bool | None = None
) -> CascadeFront:
    """Return the front of latency against quality on the latencies' GPUs, by the slowest model or by
    the sum over a request's way; which, says the question if not given."""
    by_slowest = question.latency == "slowest" if slowest is None else slowest

    def inner(reach: Floats) -> Allocation:
        tables = [latencies.latency_table(model, float(share)) for model, share in enumerate(reach)]
        if by_slowest:
            return slowest_model(tables, latencies.gpus)
        found = whole_way(tables, reach, latencies.gpus)
        judged = question.judge_s * float(reach.sum() - 1.0)
        return Allocation(found.gpus, found.latency_s, found.value_s + judged)

    return cascade_front(scores, inner, per_stage=question.thresholds_per_stage)


def shortlist(
    question: Cascade, scores: Floats, latencies: Latencies, quality: float
) -> list[CascadePoint]:
    """Return points of enough quality to be simulated: the fastest few of the front asked for, and of
    both fronts where the wait over the whole way counts, which neither front states."""
    wanted = (False, True) if question.latency == "whole-wait" else (None,)
    points: list[CascadePoint] = []
    for slowest in wanted:
        front = front_of(question, scores, latencies, slowest=slowest)
        good = [point for point in front.points if point.quality >= quality - 1e-9]
        points += [point for point in good[:SHORTLIST] if point not in points]
    return points


def single_model(scores: Floats, latencies: Latencies, model: int) -> CascadePoint:
    """Return the point at which one model alone has all GPUs and answers every request."""
    table = latencies.latency_table(model, 1.0)
    if not np.isfinite(table[-1]):
        raise InfeasibleError("cascade: the model alone does not fit")
    gpus = int(np.argmax(table <= table[-1]))
    taken = tuple(gpus if i == model else 0 for i in range(scores.shape[1]))
    lat = tuple(float(table[gpus]) if i == model else 0.0 for i in range(scores.shape[1]))
    reach = tuple(1.0 if i == model else 0.0 for i in range(scores.shape[1]))
    return CascadePoint(
        (model,),
        (),
        reach,
        float(scores[:, model].mean()),
        Allocation(taken, lat, float(table[gpus])),
    )


def uniform_split(question: Cascade, scores: Floats, latencies: Latencies) -> CascadeFront:
    """Return the front when every model has an equal part of the GPUs (a baseline)."""
    models = scores.shape[1]
    each = latencies.gpus // models

    def inner(reach: Floats) -> Allocation:
        lat = [
            float(latencies.latency_table(i, float(share))[each]) for i, share in enumerate(reach)
        ]
        if not np.isfinite(lat).all():
            raise InfeasibleError(f"cascade: a model does not fit on {each} GPUs")
        value = max(lat) if question.latency == "slowest" else float(np.dot(reach, lat))
        return Allocation((each,) * models, tuple(lat), value)

    chain = [tuple(range(models))]
    return cascade_front(scores, inner, chains=chain, per_stage=question.thresholds_per_stage)


def straight_routing(
    question: Cascade, scores: Floats, latencies: Latencies, predicted: Floats
) -> CascadeFront:
    """Return the front when a router sends each request to the smallest or the largest model at once,
    by what it predicts the smallest one's score to be (RouteLLM-like, a baseline)."""
    models = scores.shape[1]
    points = []
    for threshold in candidate_thresholds(
        np.stack([predicted, predicted], axis=1), question.thresholds_per_stage
    )[:, 0]:
        small = predicted >= threshold
        share = float(small.mean())
        reach = np.zeros(models)
        reach[0], reach[-1] = share, 1.0 - share
        tables = [latencies.latency_table(i, float(part)) for i, part in enumerate(reach)]
        try:
            found = (
                slowest_model(tables, latencies.gpus)
                if question.latency == "slowest"
                else whole_way(tables, reach, latencies.gpus)
            )
        except InfeasibleError:
            continue
        quality = float(np.where(small, scores[:, 0], scores[:, -1]).mean())
        chain = tuple(i for i in (0, models - 1) if reach[i] > 0)
        points.append(
            CascadePoint(chain, (float(threshold),), tuple(map(float, reach)), quality, found)
        )
    if not points:
        raise InfeasibleError("cascade: neither model fits")
    return front_from(points, len(points), len(points))


def measure_of(question: Cascade) -> Callable[[Floats], float]:
    """Return how a question sums up the latencies of a model's requests."""
    if question.latency == "mean":
        return lambda e2e_s: float(e2e_s.mean())
    return lambda e2e_s: float(np.quantile(e2e_s, question.quantile, method="higher"))


def _achieved(question: Cascade, result: CascadeResult) -> float:
    """Return what was to be made small, from the joint simulation."""
    e2e_s = np.where(np.isnan(result.finish_s), np.inf, result.e2e_s)
    if question.latency == "mean":
        return float(e2e_s.mean())
    if question.latency == "whole-wait":
        return float(np.quantile(e2e_s, question.quantile, method="higher"))
    return max(
        float(
            np.quantile(np.where(s.rejected, np.inf, s.e2e_s), question.quantile, method="higher")
        )
        for s in result.stages
    )


def cascade_plan(spec: Spec, scores: Scores, latencies: Latencies, point: CascadePoint) -> Plan:
    """Return a point of the front as a plan, nothing predicted yet."""
    stages = []
    used = [i for i in point.models if point.reach[i] > 0]
    for i in used:
        option = latencies.table(i, point.reach[i])[point.allocation.gpus[i]]
        assert option is not None
        pool: PlannedPool = option.pool.model_copy(update={"name": f"stage-{i + 1}"})
        last = i == used[-1]
        stages.append(
            PlannedStage(
                model=latencies.models[i].model,
                weights_dtype=latencies.models[i].dtype,  # type: ignore[arg-type]
                pools=(pool,),
                threshold=None if last else point.thresholds[point.models.index(i)],
                reach=point.reach[i],
            )
        )
    assert spec.cascade is not None
    cascade = PlannedCascade(
        stages=tuple(stages),
        scores=spec.cascade.scores,
        models=scores.models,
        judge_s=spec.cascade.judge_s,
        quality=point.quality,
    )
    plan = skeleton(spec, stages[0].pools)
    return plan.model_copy(update={"pools": (), "cascade": cascade})


def _choices(
    front: CascadeFront, latencies: Latencies, chosen: CascadePoint
) -> tuple[CascadeChoice, ...]:
    return tuple(
        CascadeChoice(
            models=tuple(latencies.models[i].model for i in point.models),
            thresholds=point.thresholds[: len(point.models) - 1],
            gpus=tuple(point.allocation.gpus[i] for i in point.models),
            quality=point.quality,
            latency_s=point.allocation.value_s,
            chosen=point == chosen,
        )
        for point in front.points
    )
