"""From a spec to a plan that lays one model's layers over unequal nodes."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.placement import FRONT
from gpusched.domain.plan import Alternative, Certificate, Plan, Provenance
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError
from gpusched.planning.layers.bounds import Bound, upper_bound
from gpusched.planning.layers.candidates import Candidate, candidates
from gpusched.planning.layers.cheaper import leave_out
from gpusched.planning.layers.check import check_placement
from gpusched.planning.layers.feasible import check_feasible, merged
from gpusched.planning.layers.flow import Network, network_of, solve_flow
from gpusched.planning.layers.improve import improve
from gpusched.planning.layers.judge import SMALLEST_FLOW, Judge, Trial
from gpusched.planning.layers.polish import PROGRAM_BOUND, by_program
from gpusched.planning.layers.throughput import Workload, throughput
from gpusched.sim.pipelines.deploy import plan_machines, plan_metrics, simulate_plan
from gpusched.sim.pipelines.result import PipelineResult
from gpusched.timing.machines import Machines, Placement
from gpusched.traces.workload import load_workload

Floats = NDArray[np.float64]

Rank = Literal["simulation", "flow"]

FLOW_ATTEMPTS = 3000
"""Placements that local search tries where only the flow counts."""
TIME_LIMIT_S = 60.0
ROUTERS = ("iwrr", "swarm", "shortest-queue")
"""Policies tried on the chosen placement."""
MOST_ALTERNATIVES = 12
CUT_SHORT = (
    "the time limit ended the search: this is the best plan so far, and another run may find another; "
    "raise --time-limit"
)


@dataclass(frozen=True)
class LayerAnswer:
    """A plan, the simulation it rests on, and the front of candidates."""

    plan: Plan
    result: PipelineResult
    machines: Machines
    placement: Placement
    flows: Floats
    trials: tuple[Trial, ...]


def place_layers(
    spec: Spec,
    *,
    seed: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
    rank: Rank = "simulation",
    polish_s: float = 0.0,
    progress: Callable[[str], None] = lambda message: None,
) -> LayerAnswer:
    """Return the best placement found for a spec and how far from the best possible its flow is.

    Placements from deep to shallow are simulated on the spec's traffic and the best is improved by
    local search, each change simulated; ``rank="flow"`` goes by the maximum flow alone. With
    ``polish_s`` seconds Helix's program first improves the largest flow and its bound.
    With the objective cost, nodes that the objectives do not need are then left out. Results
    depend on ``seed`` alone unless the time limit ends the search, of which a warning tells, or
    ``polish_s`` ends before the program does.

    Raises:
        InputError: the workload cannot be read.
        InfeasibleError: no placement serves a token; says what prevents it.
    """
    begun = perf_counter()
    trace = load_workload(spec.workload, spec.slo, seed=seed)
    draft = _draft(spec)
    machines = merged(plan_machines(draft, trace))
    tables = throughput(
        machines, Workload(float(trace.prompt_tokens.mean()), float(trace.output_tokens.mean()))
    )
    network = network_of(machines, tables)
    check_feasible(network, spec.model)
    found = candidates(network, seed=seed, progress=progress)
    found = [c for c in found if c.tokens_per_s > SMALLEST_FLOW]
    if not found:
        raise InfeasibleError(
            f"no placement of the {machines.layers} layers found that carries a flow over these "
            "links; raise the bandwidth of network.links that are 0, or add nodes"
        )
    numbers = np.bincount(machines.kind_of, minlength=len(machines.kinds))
    solved = None
    if polish_s > 0:
        proved = upper_bound(tables, numbers, machines.layers, lower=found[0].tokens_per_s)
        solved, found = by_program(network, found, proved, polish_s, seed, progress)
    judge = Judge(draft, network, trace, seed)
    largest = found[0].tokens_per_s
    if rank == "flow":
        trials = [judge.trial(polished(network, found[0], seed, time_limit_s))]
    else:
        judge.trial(found[0])  # compiles the simulator, if it must
        trials = judge.search(found, perf_counter() + time_limit_s, progress)
    chosen = max(trials, key=lambda trial: trial.score)
    if rank == "simulation":
        routed = [chosen, *(judge.trial(chosen.candidate, router) for router in ROUTERS[1:])]
        best = max(routed, key=lambda trial: trial.score)
        trials = [best if trial is chosen else trial for trial in trials]
        chosen = best
    largest = max(largest, *(trial.candidate.tokens_per_s for trial in trials))
    bound = upper_bound(tables, numbers, machines.layers, lower=largest)
    # with partial inference or without, the program's bound is for one form only
    if solved is not None and largest <= solved.bound < bound.tokens_per_s * (1 - 1e-9):
        bound = Bound(solved.bound, PROGRAM_BOUND[found[0].partial_inference])
    steps = [chosen]
    if rank == "simulation" and spec.objective == "cost" and not _misses(spec, chosen.figures):
        steps = leave_out(
            judge, chosen, node_prices(spec), lambda trial: not _misses(spec, trial.figures),
            perf_counter() + time_limit_s, progress,
        )  # fmt: skip
    progress("simulating the whole trace")
    # what met the objectives on the first requests may miss them on all
    for chosen in reversed(steps):
        plan = judge.plan_of(chosen.candidate, chosen.flows, chosen.routing)
        result = simulate_plan(plan, trace, seed=seed)
        figures = plan_metrics(plan, trace, result)
        if not _misses(spec, figures):
            break
    trials += [chosen] if chosen is not steps[0] else []
    plan = plan.model_copy(
        update={
            "predicted": figures,
            "certificate": _certificate(
                network, chosen, bound, largest, len(found), judge.simulated,
                perf_counter() - begun, rank, polish_s,
            ),
            "pareto": _front(judge, trials, chosen),
            "assumptions": (*_choice(spec, rank, chosen, machines), *_assumptions(machines, bound)),
            "warnings": (
                *figures["warnings"], *_shortfalls(spec, figures),
                *([CUT_SHORT] if judge.cut_short else []),
            ),
            "provenance": Provenance(version=version("gpusched"), seed=seed),
        }
    )  # fmt: skip
    return LayerAnswer(
        plan, result, machines, chosen.candidate.placement, chosen.flows, tuple(trials)
    )


def polished(network: Network, candidate: Candidate, seed: int, time_limit_s: float) -> Candidate:
    """Return a candidate after local search for more flow, stages no longer kept."""
    placement, flow = improve(
        network, candidate.placement,
        lambda p: solve_flow(
            network, p, partial_inference=candidate.partial_inference
        ).tokens_per_s,
        seed=seed, time_limit_s=time_limit_s, attempts=FLOW_ATTEMPTS,
    )  # fmt: skip
    if flow <= candidate.tokens_per_s * (1 + 1e-9):
        return candidate
    return Candidate(f"improved: {candidate.name}", placement, flow, candidate.partial_inference)


def verify(network: Network, candidate: Candidate) -> list[str]:
    """Return what the independent check finds wrong with a candidate's flow and cut."""
    names = [*network.machines.names, FRONT]
    placement = candidate.placement
    flow = solve_flow(network, placement, partial_inference=candidate.partial_inference)
    used = np.flatnonzero(placement.count)
    rates = network.rates(placement.count)
    return check_placement(
        layers=network.machines.layers,
        held={names[i]: (int(placement.first[i]), int(placement.count[i])) for i in used},
        rates={names[i]: float(rates[i]) for i in used},
        capacities={
            (names[i], names[j]): float(network.links[i, j])
            for i in [*used, network.n]
            for j in [*used, network.n]
            if i != j
        },
        flows={
            (names[i], names[j]): float(flow.flows[i, j])
            for i, j in zip(*np.nonzero(flow.flows > 0), strict=True)
        },
        front=FRONT,
        partial_inference=candidate.partial_inference,
        cut=[
            *(names[i] for i in flow.cut_nodes),
            *((names[i], names[j]) for i, j in flow.cut_links),
        ],
    )


def _draft(spec: Spec) -> Plan:
    """A plan without a placement; the planner fills it in."""
    return Plan.model_construct(
        gpusched="plan/1", model=spec.model, weights_dtype=spec.dtype,
        kv_cache_dtype=spec.kv_cache_dtype, cluster=spec.cluster, pools=(), layers=None,
        blocks=None, workload=spec.workload, slo=spec.slo, objective=spec.objective,
        timing=spec.timing,
    )  # fmt: skip


def _certificate(
    network: Network, chosen: Trial, bound: Bound, largest: float, count: int, simulated: int,
    seconds: float, rank: Rank, polish_s: float,
) -> Certificate:  # fmt: skip
    wrong = verify(network, chosen.candidate)
    if wrong:
        raise AssertionError("; ".join(wrong))
    names = [*network.machines.names, FRONT]
    flow = solve_flow(
        network, chosen.candidate.placement,
        partial_inference=chosen.candidate.partial_inference,
    )  # fmt: skip
    limits = [names[i] for i in flow.cut_nodes]
    limits += [f"{names[i]} to {names[j]}" for i, j in flow.cut_links]
    value = flow.tokens_per_s
    how = "largest flow" if rank == "flow" else "simulation, local search"
    return Certificate(
        objective="goodput",
        value=value,
        bound=max(bound.tokens_per_s, value),
        unit="tokens per second",
        gap=max(bound.tokens_per_s - value, 0.0) / max(value, 1e-12),
        solver=f"stages by integer programs, chosen by {how}"
        + (f", {polish_s:g} s of the program of layers and flows" if polish_s else "")
        + f"; bound by {bound.name}",
        seconds=seconds,
        candidates=count,
        simulated=simulated,
        largest_found=largest,
        limits=tuple(limits),
    )


def _front(judge: Judge, trials: list[Trial], chosen: Trial) -> tuple[Alternative, ...]:
    """The trials that no other beats in flow, attainment and latency, the chosen one among them."""

    def merits(trial: Trial) -> Floats:
        slow = trial.figures["tpot_s"]["p95"] if trial.figures["completed"] else np.inf
        return np.array(
            [trial.candidate.tokens_per_s, trial.figures["slo_attainment"], -(slow or 0.0)]
        )

    every = [merits(trial) for trial in trials]
    kept = [
        trial
        for trial, mine in zip(trials, every, strict=True)
        if trial is chosen
        or not any((other >= mine).all() and (other > mine).any() for other in every)
    ]
    kept.sort(key=lambda trial: -trial.candidate.tokens_per_s)
    return tuple(_alternative(judge, trial, trial is chosen) for trial in kept[:MOST_ALTERNATIVES])


def _alternative(judge: Judge, trial: Trial, chosen: bool) -> Alternative:
    plan = judge.plan_of(trial.candidate, trial.flows)
    figures = trial.figures
    tpot = figures["tpot_s"]["p95"] if figures["completed"] else float("inf")
    misses = _shortfalls_of(judge.draft.slo.classes, figures)
    return Alternative(
        summary=f"{trial.candidate.name}: {trial.depth} stages, "
        f"{trial.candidate.tokens_per_s:,.0f} tokens/s of flow, {trial.routing}, TPOT p95 {tpot * 1e3:,.0f} ms",
        gpus=plan.gpus,
        usd_per_hour=plan.usd_per_hour,
        kg_per_hour=figures["carbon_kg"] / max(figures["simulated_s"], 1e-9) * 3600.0,
        attainment=figures["slo_attainment"],
        goodput_rps=figures["goodput_rps"],
        feasible=not misses,
        binding=misses[0] if misses else None,
        chosen=chosen,
    )


def _shortfalls(spec: Spec, figures: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"the best placement found misses the objectives: {line}; lower the load, loosen the "
        "bounds or add nodes"
        for line in _misses(spec, figures)
    )


def _misses(spec: Spec, figures: dict[str, Any]) -> list[str]:
    return _shortfalls_of(spec.slo.classes, figures)


def node_prices(spec: Spec) -> Floats:
    """Return dollars an hour of each node, shape (n,)."""
    groups = spec.cluster.nodes
    prices = [g.gpus_per_node * spec.cluster.usd_per_gpu_hour(i) for i, g in enumerate(groups)]
    return np.repeat(np.array(prices, np.float64), [group.count for group in groups])


def _choice(spec: Spec, rank: Rank, chosen: Trial, machines: Machines) -> tuple[str, ...]:
    """What the objective made of the choice of nodes."""
    unused = [
        name
        for name, count in zip(machines.names, chosen.candidate.placement.count, strict=True)
        if not count
    ]
    left_out = f"nodes left out: {', '.join(unused)}" if unused else "no node is left out"
    if spec.objective != "cost":
        return (
            f"objective {spec.objective}: the best placement found, whatever it costs",
            left_out,
        )
    if rank == "flow":
        return ("the largest flow, whatever it costs: --rank flow leaves out no node to save",
                left_out)  # fmt: skip
    return (
        "objective cost: nodes were left out, the dearest first, as long as simulation met the "
        "objectives; a cheaper set may exist",
        left_out,
    )


def _shortfalls_of(classes: Any, figures: dict[str, Any]) -> list[str]:
    shares = figures["slo_attainment_by_class"]
    return [
        f"{name}: {shares[name]:.1%} of requests meet the bounds, {slo.attainment:.1%} asked"
        for name, slo in classes.items()
        if name in shares and shares[name] < slo.attainment
    ]


def _assumptions(machines: Machines, bound: Bound) -> tuple[str, ...]:
    return (
        "every node of the cluster may be used, and its GPUs split each layer between them",
        f"layers count as alike; activations take {machines.activation_bytes:,.0f} bytes a token "
        "between nodes",
        "a node's tokens/s hold for the mix of prompts and answers of this traffic",
        "no placement without partial inference has more flow than the bound"
        if bound.name == PROGRAM_BOUND[0]
        else "no placement has more flow than the bound"
        + ("" if bound.name in PROGRAM_BOUND else ", whatever the links"),
    )
