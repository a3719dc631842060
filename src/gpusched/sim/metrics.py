"""A simulation in the figures users ask for: latencies, attainment, cost, energy and carbon."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.catalog import load_gpu
from gpusched.domain.cluster import embodied_kg_per_hour
from gpusched.domain.plan import Plan
from gpusched.domain.slo import SloClasses
from gpusched.sim.deploy import pool_timing
from gpusched.sim.result import SimulationResult, summarize
from gpusched.timing.accuracy import assess
from gpusched.timing.energy import energy_j


def met_slo(result: SimulationResult, slo: SloClasses) -> NDArray[np.bool_]:
    """Tell which requests meet every bound of their class; rejected ones do not."""
    met = np.zeros(len(result.arrival_s), np.bool_)
    for index, bounds in enumerate(slo.classes.values()):
        rows = slice(None) if slo.only is not None else of_class(result, index)
        met[rows] = bounds.met(result.ttft_s[rows], result.tpot_s[rows], result.e2e_s[rows])
    return met


def of_class(result: SimulationResult, index: int) -> NDArray[np.bool_]:
    """Tell which requests are of a class."""
    if result.class_id is None:
        return np.full(len(result.arrival_s), index == 0)
    return np.asarray(result.class_id == index)


def attainments(
    result: SimulationResult, slo: SloClasses, *, warmup_s: float = 0.0
) -> dict[str, float]:
    """Return the share of each class's requests that meet its bounds; 1 for an empty class."""
    met, counted = met_slo(result, slo), result.after(warmup_s)
    shares = {}
    for index, name in enumerate(slo.names):
        rows = counted if slo.only is not None else counted & of_class(result, index)
        shares[name] = float(met[rows].mean()) if rows.any() else 1.0
    return shares


def bound_attainments(
    result: SimulationResult, slo: SloClasses, *, warmup_s: float = 0.0
) -> dict[tuple[str, str], float]:
    """Return the share of requests that meet each single bound, by class and bound."""
    counted = result.after(warmup_s)
    shares = {}
    for index, (name, bounds) in enumerate(slo.classes.items()):
        rows = counted if slo.only is not None else counted & of_class(result, index)
        for bound in ("ttft", "tpot", "e2e"):
            limit = getattr(bounds, f"{bound}_s")
            if limit is not None and rows.any():
                values = getattr(result, f"{bound}_s")[rows]
                ok = (values <= limit * (1 + 1e-12)) & ~result.rejected[rows]
                shares[name, bound] = float(ok.mean())
    return shares


def metrics(plan: Plan, result: SimulationResult) -> dict[str, Any]:
    """Return every figure of ``simulate --json``.

    ``timing_error`` is the error of iteration times on measured engines like these; ``warnings`` say
    where the plan or the traffic leaves what was measured. Energy counts the data centre (PUE); carbon is operational plus embodied, each also given alone.
    """
    warmup_s = plan.workload.warmup_s
    values = summarize(result, warmup_s=warmup_s)
    counted = result.after(warmup_s)
    met = met_slo(result, plan.slo) & counted
    span_s = max(result.makespan_s - warmup_s, 1e-9)
    values["slo_attainment"] = float(met.sum() / counted.sum()) if counted.any() else 0.0
    values["slo_attainment_by_class"] = attainments(result, plan.slo, warmup_s=warmup_s)
    values["goodput_rps"] = float(met.sum() / span_s)
    hours = result.makespan_s / 3600.0
    energy_kwh = operational_kg = embodied_kg = cost_usd = 0.0
    for pool, use in zip(plan.pools, result.pools, strict=True):
        group, gpu = plan.group_index(pool), load_gpu(pool.gpu)
        replica_s = max(result.makespan_s * pool.replicas, 1e-9)
        prefill = use.prefill_busy_s / replica_s
        decode = (use.busy_s - use.prefill_busy_s) / replica_s
        joules = energy_j(gpu, pool.gpus, result.makespan_s, min(prefill, 1.0), min(decode, 1.0))
        kwh = joules * plan.cluster.pue / 3.6e6
        energy_kwh += kwh
        operational_kg += kwh * plan.cluster.kg_per_kwh(group)
        embodied_kg += pool.gpus * hours * embodied_kg_per_hour(gpu)
        cost_usd += pool.gpus * hours * plan.cluster.usd_per_gpu_hour(group)
    values["gpu_hours"] = plan.gpus * hours
    values["cost_usd"] = cost_usd
    values["energy_kwh"] = energy_kwh
    values["carbon_kg"] = operational_kg + embodied_kg
    values["carbon_operational_kg"] = operational_kg
    values["carbon_embodied_kg"] = embodied_kg
    tokens = int(result.output_tokens[~result.rejected].sum())
    values["usd_per_million_output_tokens"] = cost_usd / tokens * 1e6 if tokens else None
    expected = [
        assess(
            pool_timing(plan, pool),
            pool.engine.framework,
            int(np.percentile(result.prompt_tokens + result.output_tokens, 99)),
        )
        for pool in plan.pools
    ]
    values["timing_error"] = max(assessment.relative_error for assessment in expected)
    warnings = [w for a in expected for w in a.warnings] + list(result.notes)
    values["warnings"] = list(dict.fromkeys(warnings))
    values["pools"] = [
        {
            "name": use.name,
            "role": use.role,
            "replicas": use.replicas,
            "gpus": use.gpus,
            "utilization": use.busy_s / max(result.makespan_s * use.replicas, 1e-9),
            "kv_utilization_peak": use.kv_peak,
            "iterations": use.iterations,
        }
        for use in result.pools
    ]
    return values
