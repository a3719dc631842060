"""A simulation of chains in the figures users ask for, under the keys of ``simulate --json``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.catalog import load_gpu
from gpusched.domain.cluster import embodied_kg_per_hour
from gpusched.domain.plan import Plan
from gpusched.sim.chains.simulate import ChainResult
from gpusched.sim.result import spread
from gpusched.timing.accuracy import assess
from gpusched.timing.block_servers import Serving
from gpusched.timing.chains import BlockServers, Placed
from gpusched.timing.energy import energy_j
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]

ROUNDING_S = 1e-9


def caches_in_use(result: ChainResult, servers: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield for each server times and the tokens x blocks of cache that its requests hold from each
    on.

    A request holds its cache from when it stops waiting to its end.
    """
    order = np.argsort(result.visit_server, kind="stable")
    bounds = np.searchsorted(result.visit_server[order], np.arange(servers + 1))
    request, load = result.visit_request, result.load
    for j in range(servers):
        rows = order[bounds[j] : bounds[j + 1]]
        of = request[rows]
        need = (load.prompt_tokens + load.output_tokens)[of] * result.visit_blocks[rows]
        # a wait ends when another request does, up to rounding
        begin_s = load.arrival_s[of] + result.wait_s[of] + ROUNDING_S
        times = np.concatenate([begin_s, result.finish_s[of]])
        change = np.concatenate([need, -need])
        by_time = np.lexsort((change, times))
        yield times[by_time], np.cumsum(change[by_time]).astype(np.float64)


def busy_s(servers: BlockServers, result: ChainResult) -> tuple[Floats, Floats]:
    """Return the time that each server computes prompts and output tokens, one request at a time,
    each of shape (n,)."""
    of, j, k = result.visit_request, result.visit_server, result.visit_blocks
    load = result.load
    prompt = servers.prefill_block_s[0, j] + servers.prefill_block_s[1, j] * load.prompt_tokens[of]
    decode = servers.decode_block_s[j] * (load.output_tokens[of] - 1)
    return (
        np.asarray(np.bincount(j, prompt * k, servers.count), np.float64),
        np.asarray(np.bincount(j, decode * k, servers.count), np.float64),
    )


def chain_metrics(
    plan: Plan, servers: BlockServers, placed: Placed, trace: Trace, result: ChainResult
) -> dict[str, Any]:
    """Return every figure of ``simulate --json`` that has a meaning for chains of servers.

    ``itl_s`` is by gaps: all of a request's are alike. ``queue_s`` is the wait for cache.
    ``computing_mean`` of a server is how many requests it computes at once, on average.
    """
    assert plan.blocks is not None
    load, warmup_s = result.load, plan.workload.warmup_s
    counted = load.arrival_s >= warmup_s
    done = counted & ~result.rejected
    makespan_s = float(np.nanmax(result.finish_s)) if done.any() else trace.duration_s
    span_s = max(makespan_s - warmup_s, 1e-9)
    ttft_s, e2e_s = result.first_token_s - load.arrival_s, result.finish_s - load.arrival_s
    steps = load.output_tokens - 1
    tpot_s = (result.finish_s - result.first_token_s) / np.maximum(steps, 1)
    met, shares = np.zeros(len(counted), np.bool_), {}
    for index, (name, bounds) in enumerate(plan.slo.classes.items()):
        rows = counted & (trace.class_id == index if trace.class_id is not None else index == 0)
        ok = bounds.met(ttft_s, tpot_s, e2e_s) & rows
        met |= ok
        shares[name] = float(ok.sum() / rows.sum()) if rows.any() else 1.0
    several = done & (steps > 0)
    gaps = np.repeat(tpot_s[several], np.minimum(steps[several], 100))
    tokens = int(load.output_tokens[done].sum())
    prefill_s, decode_s = busy_s(servers, result)
    computing = (prefill_s + decode_s) / max(makespan_s, 1e-9)
    rows_of_server = _servers(plan, servers, placed, result, computing, makespan_s)
    hours = makespan_s / 3600.0
    energy_kwh = operational_kg = embodied_kg = cost_usd = 0.0
    warnings: list[str] = []
    assessed: set[tuple[str, int]] = set()
    place_of = {name: j for j, name in enumerate(servers.names)}
    group_of = [i for i, group in enumerate(plan.cluster.nodes) for _ in range(group.count)]
    error = 0.0
    serving = Serving(plan.model, plan.weights_dtype, plan.kv_cache_dtype, timing=plan.timing)
    for at in plan.blocks.nodes:
        j = place_of[at.node]
        group = group_of[j]
        nodes = plan.cluster.nodes[group]
        gpu, gpus = load_gpu(nodes.gpu), nodes.gpus_per_node
        share = [min(x[j] / max(makespan_s, 1e-9), 1.0) for x in (prefill_s, decode_s)]
        kwh = energy_j(gpu, gpus, makespan_s, *share) * plan.cluster.pue / 3.6e6
        energy_kwh += kwh
        operational_kg += kwh * plan.cluster.kg_per_kwh(group)
        embodied_kg += gpus * hours * embodied_kg_per_hour(gpu)
        cost_usd += gpus * hours * plan.cluster.usd_per_gpu_hour(group)
        if (nodes.gpu, gpus) in assessed:
            continue
        assessed.add((nodes.gpu, gpus))
        found = assess(
            serving.timing_model(nodes.gpu, gpus), "vllm",
            int(np.percentile(load.prompt_tokens + load.output_tokens, 99)),
            plan.blocks.decode_batch,
        )  # fmt: skip
        warnings += found.warnings
        error = max(error, found.relative_error)
    return {
        "requests": int(counted.sum()),
        "completed": int(done.sum()),
        "rejected": int((counted & result.rejected).sum()),
        "simulated_s": makespan_s,
        "wall_s": result.wall_s,
        "requests_per_wall_s": len(counted) / max(result.wall_s, 1e-9),
        "visits": len(result.visit_server),
        "ttft_s": spread(ttft_s[done]),
        "tpot_s": spread(tpot_s[several]),
        "itl_s": spread(gaps),
        "e2e_s": spread(e2e_s[done]),
        "queue_s": spread(result.wait_s[done]),
        "output_tokens_per_s": tokens / span_s,
        "prefix_hit_rate": 0.0,
        "preemptions": 0,
        "kv_utilization_peak": max((row["kv_utilization_peak"] for row in rows_of_server), default=0.0),
        "slo_attainment": float(met.sum() / counted.sum()) if counted.any() else 0.0,
        "slo_attainment_by_class": shares,
        "goodput_rps": float(met.sum() / span_s),
        "gpu_hours": plan.gpus * hours,
        "cost_usd": cost_usd,
        "energy_kwh": energy_kwh,
        "carbon_kg": operational_kg + embodied_kg,
        "carbon_operational_kg": operational_kg,
        "carbon_embodied_kg": embodied_kg,
        "usd_per_million_output_tokens": cost_usd / tokens * 1e6 if tokens else None,
        "timing_error": error,
        "warnings": list(dict.fromkeys(warnings)),
        "servers": rows_of_server,
    }  # fmt: skip


def _servers(
    plan: Plan,
    servers: BlockServers,
    placed: Placed,
    result: ChainResult,
    computing: Floats,
    makespan_s: float,
) -> list[dict[str, Any]]:
    groups = [i for i, group in enumerate(plan.cluster.nodes) for _ in range(group.count)]
    visits = np.bincount(result.visit_server, minlength=servers.count)
    rows = []
    for j, (times, used) in enumerate(caches_in_use(result, servers.count)):
        if not placed.blocks[j]:
            continue
        room = max(int(placed.cache_tokens[j]), 1)
        held = float((used[:-1] * np.diff(times)).sum()) if len(times) else 0.0
        rows.append(
            {
                "name": servers.names[j],
                "region": plan.cluster.nodes[groups[j]].region,
                "first": int(placed.first[j]),
                "blocks": int(placed.blocks[j]),
                "cache_tokens": int(placed.cache_tokens[j]),
                "visits": int(visits[j]),
                "computing_mean": float(computing[j]),
                "kv_utilization_mean": held / room / max(makespan_s, 1e-9),
                "kv_utilization_peak": float(used.max(initial=0.0)) / room,
            }
        )
    return rows
