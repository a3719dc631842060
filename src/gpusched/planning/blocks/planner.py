"""From a spec to blocks on its nodes: placements for several concurrencies and what local search makes
of the best are proposed, PETALS' own beside them; the simulation of the trace decides."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from gpusched.domain.catalog import load_model
from gpusched.domain.links import link_matrices
from gpusched.domain.model import GroupedQueryAttention
from gpusched.domain.placement import BlockPlacement, NodeLayers
from gpusched.domain.plan import Alternative, Certificate, Plan, Provenance
from gpusched.domain.slo import show_s
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.bounds import decode_bound_s
from gpusched.planning.blocks.conservative import (
    blocks_held,
    in_flight,
    lone_request_s,
    place_conservatively,
    place_for_most,
)
from gpusched.planning.blocks.exact import place_exactly, size_of_program
from gpusched.planning.blocks.improve import improve
from gpusched.planning.blocks.offline import route_over
from gpusched.planning.blocks.petals import (
    CACHE_TOKENS,
    CACHE_TOKENS_GROUPED,
    PetalsRates,
    petals_blocks,
    place_as_petals,
)
from gpusched.sim.chains.deploy import load_of
from gpusched.sim.chains.metrics import busy_s, chain_metrics
from gpusched.sim.chains.simulate import ChainLoad, ChainResult, simulate_chains
from gpusched.timing.block_servers import Serving, block_servers
from gpusched.timing.chains import BlockServers, Placed
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

SCREENED = 20_000
"""Requests on which candidates are compared; the chosen one then serves all."""
SEARCHED = 1500
"""Requests of local search at most; fewer with many servers."""
WORTH = 0.01
"""Share of mean latency below which local search changes nothing."""
SMALL_PROGRAM = 6000
"""Flow variables up to which the exact program is tried."""
ROUTINGS = ("ws-rr", "ws-rr-exact")


@dataclass(frozen=True)
class Candidate:
    """A placement with its router, and how it fares on the trace."""

    name: str
    placed: Placed
    concurrency: int
    routing: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class BlocksAnswer:
    """The plan and what it rests on."""

    plan: Plan
    servers: BlockServers
    placed: Placed
    trace: Trace
    result: ChainResult
    petals: Candidate | None
    """PETALS on the same nodes; none if it leaves a block out."""


def plan_blocks(
    spec: Spec,
    *,
    seed: int = 0,
    time_limit_s: float = 10.0,
    progress: Callable[[str], None] = lambda message: None,
) -> BlocksAnswer:
    """Return the placement that serves a spec's trace best, with evidence.

    ``time_limit_s`` is for the exact program, which is tried where it is small.

    Raises:
        InputError: the trace cannot be read or has rounds that wait for answers.
        InfeasibleError: names the constraint: memory, or the network.
    """
    begun = perf_counter()
    trace = load_workload(spec.workload, spec.slo, seed=seed)
    load = load_of(trace, spec.workload)
    prompt, output = float(trace.prompt_tokens.mean()), float(trace.output_tokens.mean())
    tokens = max(round(prompt + output), 1)
    serving = Serving(
        spec.model, spec.dtype, spec.kv_cache_dtype, spec.engine, spec.timing, 1, prompt, output
    )
    servers = block_servers(spec.cluster, serving)
    _check_feasible(spec, servers, tokens)
    batch = _decode_batch(spec, serving, trace, load.head(SEARCHED), tokens)
    servers = block_servers(spec.cluster, replace(serving, decode_batch=batch))
    wanted = in_flight(trace.rate_rps, lone_request_s(servers, prompt, output))
    few = load.head(SCREENED)
    part = trace.take(np.arange(min(len(trace), SCREENED)))
    score = partial(_score, spec, servers, part, few, batch)
    candidates, bounds = [], {}
    for name, placed, concurrency, bound in _proposals(
        servers, wanted, tokens, time_limit_s, progress
    ):
        for routing in ROUTINGS:
            candidates.append(score(name, placed, concurrency, routing))
            progress(f"{len(candidates)} candidates simulated")
        if bound is not None:
            bounds[concurrency] = bound
    petals = score("PETALS", _petals(spec, servers, seed), 1, "petals")
    asked = min(slo.attainment for slo in spec.slo.classes.values())
    rank = partial(_rank, asked)
    progress("local search")
    candidates += _improved(min(candidates, key=rank), servers, few, score, tokens, seed)
    candidates.sort(key=rank)
    best = candidates[0]
    needed = _without_idle(spec, best, score, asked)
    used = needed.placed
    plan = _plan(spec, servers, used, best, batch)
    result = simulate_chains(servers, used, load, routing=best.routing, retries=False)
    figures = chain_metrics(plan, servers, used, trace, result)
    routed = route_over(servers, used, np.zeros(best.concurrency, np.int64), tokens)
    value = routed.token_s / best.concurrency
    bound = decode_bound_s(servers, tokens, best.concurrency)
    bound = max(bound, bounds.get(best.concurrency, 0.0) / best.concurrency)
    certificate = Certificate(
        objective="latency", value=value, bound=min(bound, value), unit="s a token",
        gap=max(value - bound, 0.0) / value if np.isfinite(value) else 1.0,
        solver="CG-BP, local search and HiGHS", seconds=perf_counter() - begun,
        candidates=len(candidates), simulated=len(candidates) + 2,
    )  # fmt: skip
    rivals = [petals, *candidates[1:6]]
    plan = plan.model_copy(update={
        "predicted": figures,
        "binding_constraint": _binding(spec, trace, result, figures),
        "certificate": certificate,
        "runners_up": tuple(_alternative(spec, servers, c, batch, asked) for c in rivals),
        "assumptions": _assumptions(spec, trace, batch),
        "warnings": _warnings(spec, servers, used, figures, asked),
        "provenance": Provenance(version=version("gpusched"), seed=seed, inputs={
            Path(f).name: sha256(Path(f).read_bytes()).hexdigest()
            for f in (spec.workload.trace, spec.timing) if f is not None
        }),
    })  # fmt: skip
    covered = bool(petals.placed.coverage(servers.blocks).all())
    return BlocksAnswer(plan, servers, used, trace, result, petals if covered else None)


def _decode_batch(spec: Spec, serving: Serving, trace: Trace, load: ChainLoad, tokens: int) -> int:
    """Return how many requests the busiest server computes at once, mean and one standard deviation
    of Poisson, when each takes the time of a batch of so many: a fixed point, by iteration."""
    batch = 1
    for _ in range(4):
        servers = block_servers(spec.cluster, replace(serving, decode_batch=batch))
        lone_s = lone_request_s(servers, serving.prompt_tokens, serving.output_tokens)
        made = place_for_most(servers, in_flight(trace.rate_rps, lone_s), tokens)
        result = simulate_chains(servers, made.placed, load, retries=False)
        if result.rejected.all():
            break
        busy = np.sum(busy_s(servers, result), axis=0)
        computing = float(busy.max() / np.nanmax(result.finish_s))
        batch = in_flight(computing, 1.0)
    return batch


def _check_feasible(spec: Spec, servers: BlockServers, tokens: int) -> None:
    front = spec.cluster.network.front or spec.cluster.nodes[0].region
    reached = np.isfinite(servers.decode_trip_s[0])
    if not reached.any():
        raise InfeasibleError(
            f"network: no node can be reached from the front ({front}): every link to it has "
            "gbps 0. Give network.regions_gbps or the links to the nodes a bandwidth above 0."
        )
    cut = servers.memory_bytes * reached
    places = blocks_held(servers, 1, tokens)
    if places.sum() >= servers.blocks:
        return
    of_block = servers.block_bytes + servers.cache_bytes(tokens)
    missing = int(servers.blocks - places.sum())
    far = [n for n, ok in zip(servers.names, reached, strict=True) if not ok]
    lost = f" {', '.join(far)} cannot be reached from the front ({front})." if far else ""
    raise InfeasibleError(
        f"memory: {spec.model} has {servers.blocks} blocks of {servers.block_bytes / 1e9:.3g} GB in "
        f"{spec.dtype}, and the nodes have room for {int(places.sum())} with cache for one request of "
        f"{tokens} tokens ({cut.sum() / 1e9:.4g} GB in all).{lost} To make it feasible, add "
        f"{missing * of_block / 1e9:.3g} GB of GPU memory or use a smaller weights_dtype."
    )


def _proposals(
    servers: BlockServers,
    wanted: int,
    tokens: int,
    time_limit_s: float,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, Placed, int, float | None]]:
    """Yield placements by name, with the concurrency each is for and, of exact ones, a bound."""
    design = place_for_most(servers, wanted, tokens)
    yield "CG-BP", design.placed, design.concurrency, None
    grid = {round(design.concurrency * x) for x in (0.125, 0.25, 0.5, 0.75, 1.5, 2, 3, 5, 8)}
    seen = {_key(design.placed)}
    for concurrency in sorted(grid - {0, design.concurrency}):
        try:
            found = place_conservatively(servers, concurrency, tokens)
        except InfeasibleError:
            break
        if _key(found.placed) not in seen:
            seen.add(_key(found.placed))
            yield "CG-BP", found.placed, concurrency, None
    if time_limit_s > 0 and size_of_program(servers, tokens) <= SMALL_PROGRAM:
        for concurrency in dict.fromkeys((design.concurrency, 1)):
            progress(f"exact placement for {concurrency} requests at once")
            clients = np.zeros(concurrency, np.int64)
            exact = place_exactly(servers, clients, tokens, time_limit_s=time_limit_s)
            yield "exact", exact.placed, concurrency, exact.bound_s


def _improved(
    candidate: Candidate,
    servers: BlockServers,
    load: ChainLoad,
    score: Callable[[str, Placed, int, str], Candidate],
    tokens: int,
    seed: int,
) -> list[Candidate]:
    """Return what local search makes of a candidate, by rejections and mean latency, if it is worth
    it."""
    part = load.head(min(SEARCHED, max(300, 60_000 // servers.count)))

    def cost(placed: Placed) -> tuple[float, float]:
        result = simulate_chains(servers, placed, part, routing=candidate.routing, retries=False)
        served = ~result.rejected
        latency_s = (result.finish_s - part.arrival_s)[served]
        return float((~served).sum()), float(latency_s.mean()) if served.any() else np.inf

    most = blocks_held(servers, 1, tokens)
    before = cost(candidate.placed)
    placed, after = improve(servers, candidate.placed, most, cost, seed=seed)
    if after[0] == before[0] and after[1] > (1 - WORTH) * before[1]:
        return []
    return [score("local search", placed, candidate.concurrency, candidate.routing)]


def _key(placed: Placed) -> bytes:
    return placed.first.tobytes() + placed.blocks.tobytes()


def _petals(spec: Spec, servers: BlockServers, seed: int) -> Placed:
    model = load_model(spec.model)
    a = model.attention
    grouped = not isinstance(a, GroupedQueryAttention) or a.kv_heads < a.query_heads
    cache_tokens = CACHE_TOKENS_GROUPED if grouped else CACHE_TOKENS
    blocks = petals_blocks(servers, model.hidden, cache_tokens)
    bandwidth, _ = link_matrices(spec.cluster)
    rates = PetalsRates(
        1024 / servers.prompt_block_s(1024.0),
        np.minimum(bandwidth[-1, :-1], 1e15) / (2.0 * model.hidden),
    )
    joining = np.random.default_rng([seed, 2]).permutation(servers.count)
    return place_as_petals(
        servers, blocks, rates, [int(j) for j in joining], cache_tokens=cache_tokens
    )


def _score(
    spec: Spec, servers: BlockServers, trace: Trace, load: ChainLoad, batch: int,
    name: str, placed: Placed, concurrency: int, routing: str,
) -> Candidate:  # fmt: skip
    result = simulate_chains(servers, placed, load, routing=routing, retries=False)
    candidate = Candidate(name, placed, concurrency, routing, {})
    if not placed.blocks.any():
        return candidate
    plan = _plan(spec, servers, placed, candidate, batch)
    figures = chain_metrics(plan, servers, placed, trace, result)
    return Candidate(name, placed, concurrency, routing, figures)


def _rank(asked: float, candidate: Candidate) -> tuple[float, float, float]:
    """Order candidates: attainment up to what is asked, then requests served, then latency."""
    f = candidate.figures
    mean = f["e2e_s"]["mean"]
    return (
        -round(min(f["slo_attainment"], asked), 4),
        f["rejected"],
        mean if mean is not None else np.inf,
    )


def _without_idle(
    spec: Spec, best: Candidate, score: Callable[[str, Placed, int, str], Candidate], asked: float
) -> Candidate:
    """Return the placement without nodes that are not needed, where the objective is to save: those
    that nobody visits, and then the least visited ones as long as the objectives hold for as many
    requests as asked."""
    if spec.objective == "goodput" or not best.figures["completed"]:
        return best
    names = spec.cluster.node_names

    def less(candidate: Candidate, gone: set[str]) -> Candidate:
        keep = np.array([name not in gone for name in names])
        placed = candidate.placed
        fewer = Placed(placed.first, placed.blocks * keep, placed.cache_tokens * keep)
        return score(candidate.name, fewer, candidate.concurrency, candidate.routing)

    rows = best.figures["servers"]
    best = less(best, {row["name"] for row in rows if not row["visits"]})
    for row in sorted(best.figures["servers"], key=lambda row: row["visits"]):
        tried = less(best, {row["name"]})
        f = tried.figures
        if f and f["slo_attainment"] >= asked and f["rejected"] <= best.figures["rejected"]:
            best = tried
    return best


def _plan(
    spec: Spec, servers: BlockServers, placed: Placed, candidate: Candidate, batch: int
) -> Plan:
    nodes = tuple(
        NodeLayers(node=servers.names[j], first=int(placed.first[j]), layers=int(placed.blocks[j]))
        for j in np.lexsort((placed.end, placed.first))
        if placed.blocks[j]
    )
    return Plan(
        model=spec.model,
        weights_dtype=spec.dtype,  # type: ignore[arg-type]
        kv_cache_dtype=spec.kv_cache_dtype,
        cluster=spec.cluster,
        blocks=BlockPlacement(
            nodes=nodes, design_concurrency=candidate.concurrency, decode_batch=batch,
            routing=candidate.routing,
        ),
        workload=spec.workload,
        slo=spec.slo,
        objective=spec.objective,
        timing=spec.timing,
    )  # fmt: skip


def _alternative(
    spec: Spec, servers: BlockServers, candidate: Candidate, batch: int, asked: float
) -> Alternative:
    f = candidate.figures
    if not f:
        return Alternative(
            summary=f"{candidate.name}: no node has room for a block", gpus=0, usd_per_hour=0,
            kg_per_hour=0, attainment=0, goodput_rps=0, feasible=False, binding="memory",
        )  # fmt: skip
    plan = _plan(spec, servers, candidate.placed, candidate, batch)
    covered = candidate.placed.coverage(servers.blocks).all()
    latency = f"{show_s(f['e2e_s']['mean'])} mean E2E" if f["completed"] else "serves nobody"
    label = candidate.name
    if candidate.name != "PETALS":
        label += f" for {candidate.concurrency} at once, {candidate.routing}"
    feasible = f["slo_attainment"] >= asked
    return Alternative(
        summary=f"{label}: {latency}", gpus=plan.gpus, usd_per_hour=plan.usd_per_hour,
        kg_per_hour=f["carbon_kg"] / max(f["simulated_s"] / 3600, 1e-9),
        attainment=f["slo_attainment"], goodput_rps=f["goodput_rps"], feasible=feasible,
        binding=None if feasible else "the objectives" if covered else "memory: blocks nobody holds",
    )  # fmt: skip


def _binding(spec: Spec, trace: Trace, result: ChainResult, figures: dict[str, Any]) -> str | None:
    """Name the bound that the fewest requests meet, or the rejections."""
    if figures["rejected"]:
        return f"memory: {figures['rejected']:,} requests are longer than any chain has cache for"
    load = result.load
    steps = np.maximum(load.output_tokens - 1, 1)
    values = {
        "ttft": result.first_token_s - load.arrival_s,
        "tpot": (result.finish_s - result.first_token_s) / steps,
        "e2e": result.finish_s - load.arrival_s,
    }
    worst: tuple[float, str] | None = None
    for index, (name, slo) in enumerate(spec.slo.classes.items()):
        rows = trace.class_id == index if trace.class_id is not None else np.full(len(trace), True)
        for bound, of in values.items():
            limit = getattr(slo, f"{bound}_s")
            if limit is None or not rows.any():
                continue
            share = float((of[rows] <= limit * (1 + 1e-12)).mean())
            of_class = "" if spec.slo.only else f" of class {name}"
            line = f"{bound.upper()} ≤ {show_s(limit)}{of_class}: {share:.1%} of requests meet it"
            if worst is None or share < worst[0]:
                worst = share, line
    return worst[1] if worst is not None else None


def _assumptions(spec: Spec, trace: Trace, batch: int) -> tuple[str, ...]:
    return (
        f"traffic: {trace.name}, {len(trace)} requests over {show_s(trace.duration_s)}, replayed as it is",
        *trace.notes,
        f"every node decodes a token in the time of a batch of {batch} requests, as many as the busiest "
        "computes at once (mean and one standard deviation); prompts do not wait for one another",
        "the client carries activations from server to server (PETALS), and embeds and samples",
        "a request holds its cache on every server of its chain from its start to its end, and is "
        "told when there is room",
    )


def _warnings(
    spec: Spec, servers: BlockServers, placed: Placed, figures: dict[str, Any], asked: float
) -> tuple[str, ...]:
    lines = list(figures["warnings"])
    reached = np.isfinite(servers.decode_trip_s[0])
    for j, name in enumerate(servers.names):
        if not reached[j]:
            lines.append(f"{name} is left out: its link to the front has gbps 0")
        elif servers.memory_bytes[j] < servers.block_bytes:
            lines.append(
                f"{name} is left out: {max(servers.memory_bytes[j], 0) / 1e9:.3g} GB hold no block of "
                f"{servers.block_bytes / 1e9:.3g} GB"
            )
    single = int((placed.coverage(servers.blocks) == 1).sum())
    if single:
        lines.append(
            f"{single} of {servers.blocks} blocks are on one node only: if it fails, nothing is served"
        )
    if figures["slo_attainment"] < asked:
        lines.append(
            f"the objectives are missed: {figures['slo_attainment']:.1%} of requests meet them, "
            f"{asked:.4g} asked; this is the best placement found"
        )
    model = load_model(spec.model)
    if model.linear_layers or model.sliding_layers or 0 < model.dense_layers < model.layers:
        lines.append(f"{spec.model} has unlike layers; every block is taken as the mean of them")
    return tuple(lines)
