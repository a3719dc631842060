"""From a plan of layers to a simulation and its figures."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.catalog import load_gpu
from gpusched.domain.cluster import embodied_kg_per_hour
from gpusched.domain.placement import FRONT
from gpusched.domain.plan import Plan
from gpusched.errors import InputError
from gpusched.sim.pipelines.build import OfflineFeed
from gpusched.sim.pipelines.result import PipelineResult, summarize
from gpusched.sim.pipelines.simulate import simulate_pipelines
from gpusched.timing.energy import energy_j
from gpusched.timing.layer_profiles import cluster_machines
from gpusched.timing.machines import Machines, Placement
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]


def plan_machines(plan: Plan, trace: Trace) -> Machines:
    """Return the nodes of a plan's cluster, decode times at the trace's mean context."""
    context = trace.prompt_tokens.mean() + trace.output_tokens.mean() / 2
    return cluster_machines(
        plan.cluster,
        plan.model,
        weights_dtype=plan.weights_dtype,
        kv_cache_dtype=plan.kv_cache_dtype,
        context_tokens=int(context),
        file=plan.timing,
    )


def plan_placement(plan: Plan) -> tuple[Placement, Floats]:
    """Return the layers of every node of the cluster, and the flows between them and the front.

    Raises:
        InputError: a node is listed twice.
    """
    assert plan.layers is not None
    names = [*plan.cluster.node_names, FRONT]
    index = {name: i for i, name in enumerate(names)}
    first = np.zeros(len(names) - 1, np.int64)
    count = np.zeros(len(names) - 1, np.int64)
    for held in plan.layers.nodes:
        if count[index[held.node]]:
            raise InputError(f"layers.nodes: {held.node} is listed twice; a node holds one range")
        first[index[held.node]], count[index[held.node]] = held.first, held.layers
    flows = np.zeros((len(names), len(names)))
    for flow in plan.layers.flows:
        flows[index[flow.ends[0]], index[flow.ends[1]]] += flow.tokens_per_s
    return Placement(first, count), flows


def simulate_plan(
    plan: Plan,
    trace: Trace,
    *,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> PipelineResult:
    """Simulate a plan of layers on a trace, until all requests are answered.

    Raises:
        InputError: layers or flows that make no pipeline.
        InfeasibleError: a node that cannot hold a layer.
    """
    assert plan.layers is not None
    placement, flows = plan_placement(plan)
    users = plan.workload.users
    return simulate_pipelines(
        plan_machines(plan, trace),
        placement,
        flows,
        trace,
        routing=plan.layers.routing,
        partial_inference=plan.layers.partial_inference,
        offline=OfflineFeed(users, None, plan.workload.think_s) if users is not None else False,
        warmup_s=plan.workload.warmup_s,
        seed=seed,
        progress=progress,
    )


def plan_metrics(plan: Plan, trace: Trace, result: PipelineResult) -> dict[str, Any]:
    """Return the figures of ``simulate --json`` for a plan of layers."""
    values = summarize(result)
    size = len(result.arrival_s)
    counted = result.arrival_s >= result.warmup_s
    met = np.zeros(size, np.bool_)
    by_class = {}
    for number, (name, bounds) in enumerate(plan.slo.classes.items()):
        rows = np.ones(size, np.bool_)
        if plan.slo.only is None:
            rows = (
                trace.class_id[:size] == number
                if trace.class_id is not None
                else np.full(size, number == 0)
            )
        met[rows] = bounds.met(result.ttft_s[rows], result.tpot_s[rows], result.e2e_s[rows])
        of_class = rows & counted
        by_class[name] = float(met[of_class].mean()) if of_class.any() else 1.0
    values["slo_attainment"] = float(met[counted].mean()) if counted.any() else 0.0
    values["slo_attainment_by_class"] = by_class
    values["goodput_rps"] = float((met & counted).sum() / result.window_s)
    values |= _costs(plan, result)
    tokens = int(result.produced_tokens.sum())
    usd = values["cost_usd"]
    values["usd_per_million_output_tokens"] = usd / tokens * 1e6 if tokens else None
    values["warnings"] = _warnings(result)
    return values


def _costs(plan: Plan, result: PipelineResult) -> dict[str, float]:
    hours = result.end_s / 3600.0
    names = {name: i for i, name in enumerate(result.nodes.names)}
    totals = dict.fromkeys(
        ("cost_usd", "energy_kwh", "carbon_operational_kg", "carbon_embodied_kg"), 0.0
    )
    for held in plan.placed_nodes:
        index = plan.node_group(held.node)
        group, gpu = plan.cluster.nodes[index], load_gpu(plan.cluster.nodes[index].gpu)
        prompt = min(float(result.nodes.prompt_busy_share[names[held.node]]), 1.0)
        decode = max(min(float(result.nodes.busy_share[names[held.node]]), 1.0) - prompt, 0.0)
        joules = energy_j(gpu, group.gpus_per_node, result.end_s, prompt, decode)
        kwh = joules * plan.cluster.pue / 3.6e6
        gpu_hours = group.gpus_per_node * hours
        totals["energy_kwh"] += kwh
        totals["carbon_operational_kg"] += kwh * plan.cluster.kg_per_kwh(index)
        totals["carbon_embodied_kg"] += gpu_hours * embodied_kg_per_hour(gpu)
        totals["cost_usd"] += gpu_hours * plan.cluster.usd_per_gpu_hour(index)
    carbon = totals["carbon_operational_kg"] + totals["carbon_embodied_kg"]
    return {"gpu_hours": plan.gpus * hours, **totals, "carbon_kg": carbon}


def _warnings(result: PipelineResult) -> list[str]:
    lines = []
    over = [
        f"{name} ({peak:.0%})"
        for name, peak in zip(result.nodes.names, result.nodes.kv_peak, strict=True)
        if peak > 1
    ]
    if over:
        lines.append(
            "KV cache would overflow on " + ", ".join(over) + ": answers are longer than the "
            "router's estimate; raise output_share or lower kv_high_water"
        )
    if result.rejected.any():
        lines.append(
            f"{int(result.rejected.sum())} requests fit no pipeline (prompt or KV cache too large)"
        )
    return lines
