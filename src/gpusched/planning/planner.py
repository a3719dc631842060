"""Choose a deployment for a spec."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from gpusched.domain.plan import Alternative, Certificate, Plan, Provenance
from gpusched.domain.slo import show_s
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.candidates import Engine, Refusal, enumerate_engines
from gpusched.planning.rounds.search import RoundsSearch
from gpusched.planning.search import Deployment, Scored, Search
from gpusched.sim.fleet import apart_policy
from gpusched.sim.result import SimulationResult
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

UNITS = {"cost": "USD per hour", "goodput": "requests per second", "carbon": "kg CO2e per hour",
         "gpus": "GPUs"}  # fmt: skip
MOST_ALTERNATIVES = 12


@dataclass(frozen=True)
class Answer:
    """A plan with the simulation it rests on."""

    plan: Plan
    result: SimulationResult
    trace: Trace


def plan_deployment(
    spec: Spec,
    *,
    trace: Trace | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Answer:
    """Return the best deployment for a spec and what it was chosen from.

    Engines that fit are bounded analytically; for each the fewest replicas that meet the objectives
    are found by simulating the whole trace; the best by the spec's objective is chosen.

    Raises:
        InputError: the workload cannot be read.
        InfeasibleError: nothing the cluster can run meets the objectives; names the tightest one.
    """
    started = time.perf_counter()
    if trace is None:
        trace = load_workload(spec.workload, spec.slo, seed=seed)
    search, engines = _searched(spec, trace, seed, progress)
    best = search.best()
    if best is None:
        raise InfeasibleError(_too_few_gpus(spec, search, engines))
    result = search.run(best.plan)
    plan = best.plan.model_copy(
        update={
            "predicted": best.predicted,
            "binding_constraint": _binding(search, best),
            "certificate": _certificate(search, best, engines, time.perf_counter() - started),
            "pareto": _pareto(search, best),
            "runners_up": _runners_up(search, best),
            "assumptions": (*_assumptions(spec, trace, best.plan), *search.assumptions(best)),
            "warnings": tuple(best.warnings),
            "provenance": Provenance(version=version("gpusched"), seed=seed, inputs=_hashes(spec)),
        }
    )
    return Answer(plan, result, trace)


def _searched(
    spec: Spec, trace: Trace, seed: int, progress: Callable[[str], None] | None
) -> tuple[Search, list[Engine]]:
    """Return the search after it has simulated its candidates, and the engines it could choose."""
    apart = apart_policy(spec.routing, spec.engine.batching)
    if apart is not None and "disaggregated" not in spec.search.roles:
        raise InputError(
            f"{apart} works on prefill and decode pools, which search.roles leaves out; add "
            "disaggregated, or choose another policy"
        )
    if spec.workload.rounds is not None:
        sessions = RoundsSearch(spec, trace, seed=seed, progress=progress)
        sessions.search_rounds(colocated=apart is None)
        return sessions, sessions.engines
    engines, refusals = enumerate_engines(spec, trace)
    if not engines:
        raise InfeasibleError(_nothing_fits(spec, refusals))
    search = Search(spec, trace, seed=seed, progress=progress)
    if "mixed" in spec.search.roles and apart is None:
        search.search_mixed(engines)
    if "disaggregated" in spec.search.roles and (apart or spec.engine.batching == "vllm"):
        search.search_disaggregated(engines)
    return search, engines


def _certificate(
    search: Search, best: Scored, engines: list[Engine], seconds: float
) -> Certificate:
    objective = search.spec.objective
    split = search.split_of(best) if isinstance(search, RoundsSearch) else None
    if objective == "goodput":
        value = best.figure("goodput_rps")
        span_s = max(best.figure("simulated_s"), 1e-9)
        bound = best.figure("requests") / span_s
        gap = (bound - value) / max(value, 1e-12)
    elif isinstance(search, RoundsSearch):
        value = search.achieved(best)[0]
        bound = min(search.least_price(), value)
        gap = (value - bound) / max(value, 1e-12)
    else:
        value = search.achieved(best)[0]
        bounds = [search.objective(search.at_least(engine)) for engine in engines]
        if len(best.deployment.engines) > 1 or "disaggregated" in search.spec.search.roles:
            bounds += [0.0 for engine in engines if search.time_s() == float("inf")]
        bound = min(min(bounds), value)
        gap = (value - bound) / max(value, 1e-12)
    return Certificate(
        objective=objective,
        value=value,
        bound=bound,
        unit=UNITS[objective],
        gap=gap,
        solver=search.solver,
        seconds=seconds,
        candidates=len(engines),
        simulated=len(search.scored),
        load=split.load if split is not None else None,
        load_bound=1.0 / split.bound if split is not None else None,
    )


def _alternative(search: Search, scored: Scored, *, chosen: bool) -> Alternative:
    return Alternative(
        summary=scored.plan.summary + _budget_note(scored),
        gpus=scored.deployment.gpus,
        usd_per_hour=scored.deployment.usd_per_hour,
        kg_per_hour=scored.kg_per_hour,
        attainment=scored.reached,
        goodput_rps=scored.figure("goodput_rps"),
        feasible=scored.feasible,
        binding=None if scored.feasible else _missed(search.spec, scored),
        chosen=chosen,
    )


def _budget_note(scored: Scored) -> str:
    return f" ({'/'.join(str(p.engine.max_num_batched_tokens) for p in scored.plan.pools)} tokens)"


def _pareto(search: Search, best: Scored) -> tuple[Alternative, ...]:
    """Return the deployments that no other beats in both price and attainment."""
    front: list[Scored] = []
    order = sorted(
        search.scored.values(),
        key=lambda s: (s.deployment.usd_per_hour, -s.reached),
    )
    for scored in order:
        if not front or scored.reached > front[-1].reached:
            front.append(scored)
    if best not in front:
        front.append(best)
    front.sort(key=lambda s: s.deployment.usd_per_hour)
    return tuple(_alternative(search, s, chosen=s is best) for s in front)


def _runners_up(search: Search, best: Scored) -> tuple[Alternative, ...]:
    """Return the best size of every other combination of engines."""
    leaders: dict[tuple[Engine, ...], Scored] = {}
    for scored in search.scored.values():
        key = scored.deployment.engines
        rank = (not scored.feasible, *search.achieved(scored))
        if scored.feasible and (
            key not in leaders or rank < (False, *search.achieved(leaders[key]))
        ):
            leaders[key] = scored
    leaders.pop(best.deployment.engines, None)
    order = sorted(leaders.values(), key=search.achieved)
    return tuple(_alternative(search, s, chosen=False) for s in order[:MOST_ALTERNATIVES])


def _missed(spec: Spec, scored: Scored) -> str:
    """Name the bound that is missed by the most."""
    name, bound = min(
        scored.by_bound, key=lambda k: scored.by_bound[k] / spec.slo.classes[k[0]].attainment
    )
    limit = getattr(spec.slo.classes[name], f"{bound}_s")
    of = "" if spec.slo.only is not None else f" of class {name}"
    return f"{bound.upper()} ≤ {show_s(limit)}{of}"


def _binding(search: Search, best: Scored) -> str:
    """Name what breaks with a replica less of any pool."""
    if set(best.deployment.counts) == {1}:
        return _next_smaller(search, best)
    reasons = []
    for i, count in enumerate(best.deployment.counts):
        role = best.plan.pools[i].role
        kind = "replica" if role == "mixed" else f"{role} replica"
        if count == 1:
            reasons.append(f"one {kind} is the least there can be")
            continue
        counts = tuple(n - (j == i) for j, n in enumerate(best.deployment.counts))
        fewer = search.score(replace(best.deployment, counts=counts))
        share = min(fewer.by_bound.values())
        if fewer.feasible:
            reasons.append(f"none: {count - 1} {kind}s would meet the objectives as well")
        else:
            reasons.append(
                f"{_missed(search.spec, fewer)}: with {count - 1} {kind}"
                f"{'s' if count > 2 else ''} only {share:.1%} of {search.counted} meet it"
            )
    return "; ".join(reasons)


def _next_smaller(search: Search, best: Scored) -> str:
    """Name what the nearest lesser deployment misses, where no replica can be spared."""
    value = search.objective(best.deployment)
    lesser = [
        s
        for s in search.scored.values()
        if not s.feasible and s.by_bound and search.objective(s.deployment) < value
    ]
    if not lesser:
        return "nothing smaller fits: one replica is the least there can be"
    nearest = max(lesser, key=lambda s: s.attainment)
    share = nearest.reached
    return f"{_missed(search.spec, nearest)}: {nearest.plan.summary} would meet it for only {share:.1%} of {search.counted}"


def _assumptions(spec: Spec, trace: Trace, plan: Plan) -> tuple[str, ...]:
    lines = [
        f"traffic: {trace.name}, {len(trace)} requests over {show_s(trace.duration_s)}, replayed as it is",
        *trace.notes,
        f"weights in {plan.weights_dtype}, KV cache in {plan.kv_cache_dtype}, "
        f"{plan.pools[0].engine.framework} engines with "
        f"{plan.pools[0].engine.gpu_memory_utilization:.0%} of the memory",
        f"prices: {spec.cluster.prices} list prices unless the spec names its own; whole replicas "
        "are paid for while the trace runs",
        f"energy: idle and rated power of the data sheets, PUE {spec.cluster.pue:g}; embodied carbon "
        "written off over 5 years",
    ]
    if any(pool.role == "decode" for pool in plan.pools):
        lines.append(
            "KV cache moves between pools over the network between nodes, after the prefill"
        )
    if any(pool.pipeline_parallel_size > 1 for pool in plan.pools):
        lines.append("a pipeline's stages never wait for one another")
    return tuple(lines)


def _hashes(spec: Spec) -> dict[str, str]:
    files = [spec.workload.trace, spec.timing]
    return {
        Path(name).name: sha256(Path(name).read_bytes()).hexdigest()
        for name in files
        if name is not None
    }


def _nothing_fits(spec: Spec, refusals: list[Refusal]) -> str:
    if not refusals:
        return (
            "the search admits no engine: no tensor-parallel size divides the model's heads and fits "
            "a node; widen search.tensor_parallel_sizes or add GPUs to the nodes"
        )
    kinds = {refusal.kind for refusal in refusals}
    latency = [r for r in refusals if r.kind != "memory"]
    nearest = min(latency or refusals, key=lambda r: r.severity)
    what = "the GPUs' memory" if kinds == {"memory"} else f"the {nearest.kind.upper()} objective"
    return (
        f"no engine on this cluster can serve {spec.model}; the tightest constraint is {what}. "
        f"Nearest: {nearest.label}: {nearest.reason}. To make it feasible, {nearest.remedy}."
    )


def _too_few_gpus(spec: Spec, search: Search, engines: list[Engine]) -> str:
    """Say how near the whole cluster comes and how much of what would be enough."""
    if not search.scored:
        for engine in sorted(engines, key=lambda e: search.objective(search.at_least(e)))[:4]:
            search.score(Deployment((engine,), (max(engine.max_replicas, 1),)))
    nearest = max(search.scored.values(), key=lambda s: s.attainment)
    needed = _enough(search, nearest)
    missed = _missed(spec, nearest)
    name, bound = min(
        nearest.by_bound, key=lambda k: nearest.by_bound[k] / spec.slo.classes[k[0]].attainment
    )
    share = spec.slo.classes[name].attainment
    figures = nearest.predicted.get(f"{bound}_s")
    p99 = figures.get("p99") if isinstance(figures, dict) else None
    remedies = []
    if needed is not None:
        remedies.append(f"about {needed} GPUs of this kind (simulated)")
    if p99 is not None:
        remedies.append(f"a {bound.upper()} bound near {show_s(p99)} (its 99th percentile)")
    remedies.append("a lower rate (workload.rate_scale)")
    return (
        f"the cluster cannot meet the objectives; the tightest constraint is {missed}. The nearest "
        f"deployment, {nearest.plan.summary}, meets it for {nearest.by_bound[name, bound]:.1%} of "
        f"{search.counted}, {share:.4g} asked. Any of these would help: {', '.join(remedies)}."
    )


def _enough(search: Search, nearest: Scored) -> int | None:
    """Return the GPUs of the nearest deployment's kind that would do, ignoring the cluster's size."""
    deployment = nearest.deployment
    largest = search.spec.cluster.model_copy(
        update={
            "nodes": tuple(
                group.model_copy(update={"count": group.count * 16})
                for group in search.spec.cluster.nodes
            )
        }
    )
    limits = search.spec.search.model_copy(update={"max_gpus": None})
    wider = type(search)(
        search.spec.model_copy(update={"cluster": largest, "search": limits}),
        search.trace,
        seed=search.seed,
    )
    for factor in (1.25, 1.5, 2, 3, 4, 6, 8):
        counts = tuple(max(int(n * factor), n + 1) for n in deployment.counts)
        scored = wider.score(replace(deployment, counts=counts))
        if scored.feasible:
            return scored.deployment.gpus
    return None
