"""Simulations of layer placements as the Helix artifact runs them: a closed loop on LLaMA-70B."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gpusched.planning.layers.candidates import candidates
from gpusched.planning.layers.flow import Network, network_of, solve_flow
from gpusched.planning.layers.improve import improve
from gpusched.planning.layers.spread import spread_flow
from gpusched.policies.routing.pipelines import pipeline_routing
from gpusched.reproduce.helix_data import (
    IN_FLIGHT,
    batch_limits,
    machines_of,
    published,
    published_layout,
    routing_machines,
    throughput_of,
)
from gpusched.sim.pipelines import OfflineFeed, simulate_pipelines, summarize
from gpusched.timing.machines import Placement
from gpusched.traces.generate import generate
from gpusched.traces.trace import Trace

LONGEST_PROMPT, LONGEST_OUTPUT = 2048, 1000
WARMUP_S, WINDOW_S = 60.0, 600.0
SEARCH_WINDOW_S = 300.0
SEARCH_SEED = 1000
"""Requests that placements are ranked on; others measure them."""
STARTS = 3


@dataclass(frozen=True)
class Figures:
    """What one placement gives, means over seeds."""

    name: str
    stages: int
    tokens_per_s: float
    """Maximum flow."""
    decode_tokens_per_s: float
    prompt_latency_s: float
    decode_latency_s: float


@dataclass(frozen=True)
class Task:
    """A cluster to place and simulate."""

    folder: Path
    lengths: Path | None
    cluster: str
    attempts: int
    seeds: tuple[int, ...]


@cache
def requests(lengths: Path | None, seed: int, count: int = 8000) -> Trace:
    """Return requests with lengths of the Azure conversation trace, or of a profile like it."""
    rng = np.random.default_rng(seed)
    if lengths is not None and lengths.exists():
        table = pq.read_table(lengths)
        prompts = table["input_tokens"].to_numpy()
        outputs = table["output_tokens"].to_numpy()
    else:
        drawn = generate("chat", 10.0, 4000.0, seed=seed)
        prompts, outputs = drawn.prompt_tokens, drawn.output_tokens
    fits = (
        (prompts >= 1) & (prompts <= LONGEST_PROMPT) & (outputs >= 1) & (outputs <= LONGEST_OUTPUT)
    )
    rows = rng.integers(0, int(fits.sum()), count)
    return Trace(
        np.zeros(count), prompts[fits][rows].astype(np.int32), outputs[fits][rows].astype(np.int32)
    )


def measure(
    task: Task,
    network: Network,
    name: str,
    placement: Placement,
    *,
    seeds: tuple[int, ...],
    window_s: float = WINDOW_S,
    even: bool = True,
    partial: bool = False,
    drop: bool = True,
    routing: str = "iwrr",
    in_flight: int | None = None,
) -> Figures:
    """Simulate a placement; ``even`` spreads its flow, ``drop`` rejects what finds no pipeline at
    once as the artifact does. As there, requests come as the KV cache has room or, under other
    routers than Helix's, ``in_flight`` of them are served at any time and nobody looks at the
    cache."""
    flow = solve_flow(network, placement, partial_inference=partial)
    flows = spread_flow(network, placement, partial_inference=partial)[1] if even else flow.flows
    policy = replace(
        pipeline_routing(routing), kv_high_water=0.85, output_share=1.0, mask_kv=in_flight is None
    )
    feed = OfflineFeed(20, 0.8, 0.1, drop)
    if in_flight is not None:
        feed = OfflineFeed(in_flight, None, 0.1)
    rows = []
    for seed in seeds:
        result = simulate_pipelines(
            network.machines, placement, flows, requests(task.lengths, seed),
            routing=policy, partial_inference=partial,
            offline=feed, warmup_s=WARMUP_S, duration_s=window_s,
            limits=batch_limits(network.machines, placement), mean_output_tokens=240, seed=seed,
        )  # fmt: skip
        figures = summarize(result)
        rows.append(
            (
                result.decode_tokens_per_s,
                figures["prompt_latency_s"]["mean"],
                figures["itl_s"]["mean"],
            )
        )
    decode, prompt_s, decode_s = np.array(rows, np.float64).mean(axis=0)
    stages = len(np.unique(placement.first[placement.count > 0]))
    return Figures(name, stages, flow.tokens_per_s, float(decode), float(prompt_s), float(decode_s))


def routing_figures(task: Task) -> list[Figures]:
    """Return figures of routers on one placement: the artifact's layout and links for this where it
    has one, else its main layout."""
    layouts = published()["layouts"][task.cluster]
    layout = published_layout(task.cluster, "routing" if "routing" in layouts else "ilp")
    machines = machines_of(task.folder, task.cluster)
    network = network_of(routing_machines(machines, task.cluster), throughput_of(machines))
    as_published: list[tuple[str, int | None]] = [("iwrr", None)]
    as_published += [
        (name, IN_FLIGHT[task.cluster]) for name in ("swarm", "random", "shortest-queue")
    ]
    alike: list[tuple[str, int | None]] = [("swarm", None), ("iwrr", IN_FLIGHT[task.cluster])]
    return [
        measure(task, network, routing_name(router, in_flight), layout, seeds=task.seeds,
                even=False, routing=router, in_flight=in_flight)
        for router, in_flight in (*as_published, *alike)
    ]  # fmt: skip


def routing_name(router: str, in_flight: int | None) -> str:
    """Return the name of a router's figures."""
    return f"routing: {router}, " + (
        "fed by KV cache" if in_flight is None else f"{in_flight} in flight"
    )


def run_cluster(task: Task) -> tuple[list[Figures], float]:
    """Return figures of the published placements and of ours, and the largest flow found.

    Ours are ranked by decode throughput, less the shares by which latencies exceed those of the
    published placement, in simulations on other requests than those that measure.
    """
    machines = machines_of(task.folder, task.cluster)
    network = network_of(machines, throughput_of(machines))
    layout = published_layout(task.cluster, "ilp")
    rows = [
        measure(task, network, "Helix MILP", layout, seeds=task.seeds, even=False),
        measure(task, network, "Helix MILP, flow spread", layout, seeds=task.seeds),
        measure(task, network, "SWARM", published_layout(task.cluster, "swarm"),
                seeds=task.seeds, even=False, routing="swarm",
                in_flight=IN_FLIGHT[task.cluster]),
        measure(task, network, "PETALS", published_layout(task.cluster, "petals"),
                seeds=task.seeds, even=False, partial=True),
    ]  # fmt: skip
    rows += routing_figures(task)
    base = measure(
        task, network, "", layout, seeds=(SEARCH_SEED,), window_s=SEARCH_WINDOW_S, even=False
    )

    def score(placement: Placement) -> float:
        if solve_flow(network, placement).tokens_per_s <= 0:
            return -np.inf
        found = measure(
            task, network, "", placement, seeds=(SEARCH_SEED,), window_s=SEARCH_WINDOW_S
        )
        excess = max(found.decode_latency_s / base.decode_latency_s - 1, 0.0)
        excess += max(found.prompt_latency_s / base.prompt_latency_s - 1, 0.0)
        return found.decode_tokens_per_s * (1 - excess)

    options = [c for c in candidates(network) if not c.partial_inference]
    largest = options[0]
    scored = sorted(((score(c.placement), i) for i, c in enumerate(options)), reverse=True)
    best, value = options[scored[0][1]].placement, scored[0][0]
    rows.append(measure(task, network, "ours, largest flow", largest.placement, seeds=task.seeds))
    rows.append(measure(task, network, "ours, best of candidates", best, seeds=task.seeds))
    for turn, (_, index) in enumerate(scored[:STARTS]):
        found, reached = improve(
            network, options[index].placement, score, seed=turn, time_limit_s=np.inf,
            attempts=task.attempts,
        )  # fmt: skip
        if reached > value:
            best, value = found, reached
    rows.append(measure(task, network, "ours, local search", best, seeds=task.seeds))
    rows.append(
        measure(task, network, "ours, local search, SWARM routing", best, seeds=task.seeds,
                routing="swarm")
    )  # fmt: skip
    return rows, largest.tokens_per_s
