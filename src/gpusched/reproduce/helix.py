"""Helix (arXiv 2406.01566): layers over unequal GPUs by maximum flow, beside faster placements.

The artifact's clusters, profiles, layouts and simulation settings are used as they are. Published
figures are those of its solver traces and simulator logs.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from gpusched.planning.layers.bounds import Bound, upper_bound, work_bound
from gpusched.planning.layers.candidates import candidates
from gpusched.planning.layers.flow import network_of, solve_flow
from gpusched.planning.layers.planner import verify
from gpusched.report.svg import Point, scatter_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.reproduce.helix_data import (
    CLUSTERS,
    IN_FLIGHT,
    machines_of,
    published_layout,
    throughput_of,
)
from gpusched.reproduce.helix_runs import Figures, Task, routing_name, run_cluster

ATTEMPTS = 60
"""Placements that local search tries from each start."""
SEEDS = (1, 2)
FLOWS = {"single24": 1289.56, "geo24": 1212.18, "hetero42": 4137.55}
FLOW_SECONDS = {"single24": 600, "geo24": 2700, "hetero42": 3002}
DECODE = {
    "single24": {"Helix MILP": 252.1, "SWARM": 124.7},
    "geo24": {"Helix MILP": 98.0, "SWARM": 51.9, "PETALS": 66.6},
    "hetero42": {"Helix MILP": 645.6, "SWARM": 473.2},
}
ROUTING = {"geo24": {"iwrr": 99.8, "swarm": 81.7, "random": 87.4, "shortest-queue": 83.6}}
"""Decode tokens/s by router on one placement."""
CLOSE = 0.1
"""A simulated figure within this share of the published one counts as reproduced."""
NAMES = {
    "single24": "24 nodes, one region",
    "geo24": "24 nodes, three regions",
    "hetero42": "42 nodes, seven kinds",
    "quality10": "10 nodes, LLaMA-30B",
}


def run(setting: Setting) -> Reproduction:
    """Rerun the placements and the closed-loop simulations on LLaMA-70B."""
    folder = setting.traces.parent / "data" / "helix" if setting.traces else None
    if folder is None or not all((folder / name).exists() for name in CLUSTERS.values()):
        return Reproduction(
            (
                Claim(
                    "tables of clusters and layer times", "the artifact's", "not found", "", None,
                    "give --traces a folder beside which data/helix holds the artifact's tables",
                ),
            )
        )  # fmt: skip
    setting.progress("placing by flow")
    claims = [*flow_claims(folder), optimum_claim(folder)]
    lengths = setting.traces / "azure_2023_conv.parquet" if setting.traces else None
    seeds = tuple(setting.seed + seed for seed in SEEDS)
    # the longest first
    tasks = [
        Task(folder, lengths, cluster, ATTEMPTS, seeds)
        for cluster in ("hetero42", "geo24", "single24")
    ]
    charts = {}
    with ProcessPoolExecutor(min(setting.jobs, len(tasks))) as pool:
        for task, (rows, _) in zip(tasks, pool.map(run_cluster, tasks), strict=True):
            setting.progress(f"{NAMES[task.cluster]} simulated")
            claims += served_claims(task.cluster, rows)
            charts[f"{task.cluster}"] = _chart(NAMES[task.cluster], rows)
    return Reproduction(tuple(claims), charts)


def flow_claims(folder: Path) -> list[Claim]:
    """Published layouts have their published flow; ours have more, and a bound says how good."""
    claims = []
    for cluster, published in FLOWS.items():
        machines = machines_of(folder, cluster)
        tables = throughput_of(machines)
        network = network_of(machines, tables)
        numbers = np.bincount(machines.kind_of)
        recomputed = solve_flow(network, published_layout(cluster, "ilp")).tokens_per_s
        claims.append(
            Claim(
                f"flow of the published layout, {NAMES[cluster]}", f"{published:,.2f}",
                f"{recomputed:,.2f}", "tokens/s", abs(recomputed - published) < 0.05,
            )
        )  # fmt: skip
        begun = perf_counter()
        best = candidates(network)[0]
        seconds = perf_counter() - begun
        wrong = verify(network, best)
        bound = upper_bound(tables, numbers, machines.layers, lower=best.tokens_per_s)
        claims.append(
            Claim(
                f"the MILP's flow is within 5 % of the best, {NAMES[cluster]}",
                f"{published:,.2f} after {FLOW_SECONDS[cluster]:,} s",
                f"{best.tokens_per_s:,.2f} after {seconds:.1f} s", "tokens/s",
                best.tokens_per_s <= published * 1.05 and not wrong,
                f"at most {bound.tokens_per_s:,.1f} by {bound.name}, gap "
                f"{bound.tokens_per_s / best.tokens_per_s - 1:.2%}; Helix stops by a bound of "
                f"{work_bound(tables, numbers, machines.layers):,.1f}"
                + (", links not counted" if cluster == "geo24" else ""),
            )
        )  # fmt: skip
    return claims


def optimum_claim(folder: Path) -> Claim:
    """The one instance that the paper's solver closed."""
    begun = perf_counter()
    machines = machines_of(folder, "quality10", "llama1_30b")
    tables = throughput_of(machines, "llama1_30b")
    best = candidates(network_of(machines, tables))[0]
    bound: Bound = upper_bound(
        tables, np.bincount(machines.kind_of), machines.layers, lower=best.tokens_per_s
    )
    seconds = perf_counter() - begun
    proved = abs(bound.tokens_per_s / best.tokens_per_s - 1) < 1e-6
    return Claim(
        f"optimum of {NAMES['quality10']}", "286.587, proved in 3,803 s",
        f"{best.tokens_per_s:,.3f}, bound {bound.tokens_per_s:,.3f} in {seconds:.1f} s", "tokens/s",
        proved and abs(best.tokens_per_s - 286.5874) < 1e-3,
        f"bound by {bound.name}: a layer is held by one node that carries the flow or by two",
    )  # fmt: skip


def served_claims(cluster: str, rows: Sequence[Figures]) -> list[Claim]:
    """Simulated decode throughput of published layouts and of ours."""
    by_name = {row.name: row for row in rows}
    claims = []
    for name, published in DECODE[cluster].items():
        ours = by_name[name]
        claims.append(
            Claim(
                f"decode throughput of the published {name} layout, {NAMES[cluster]}",
                f"{published:,.1f}", f"{ours.decode_tokens_per_s:,.1f}", "tokens/s",
                abs(ours.decode_tokens_per_s / published - 1) <= CLOSE,
                f"latency of a prompt {ours.prompt_latency_s:.2f} s, of a token "
                f"{ours.decode_latency_s:.2f} s; other draws of lengths"
                + (", IWRR routing" if name == "PETALS" else ""),
            )
        )  # fmt: skip
    helix = by_name["Helix MILP"]
    claims += routing_claims(cluster, by_name)
    for name in (
        "Helix MILP, flow spread", "ours, largest flow", "ours, best of candidates",
        "ours, local search", "ours, local search, SWARM routing",
    ):  # fmt: skip
        ours = by_name[name]
        better = ours.decode_tokens_per_s > helix.decode_tokens_per_s
        claims.append(
            Claim(
                f"no placement serves more than the MILP's: {name}, {NAMES[cluster]}",
                f"{helix.decode_tokens_per_s:,.1f} at {helix.prompt_latency_s:.2f} / "
                f"{helix.decode_latency_s:.2f} s (published layout, simulated here)",
                f"{ours.decode_tokens_per_s:,.1f} at {ours.prompt_latency_s:.2f} / "
                f"{ours.decode_latency_s:.2f} s",
                "tokens/s",
                not better,
                f"flow {ours.tokens_per_s:,.0f} against {helix.tokens_per_s:,.0f} tokens/s, "
                f"{ours.stages} stages; {ours.decode_tokens_per_s / helix.decode_tokens_per_s - 1:+.0%}",
            )
        )  # fmt: skip
    return claims


def routing_claims(cluster: str, by_name: Mapping[str, Figures]) -> list[Claim]:
    """IWRR beside other routers on one placement, as the artifact feeds them and fed alike."""
    count = IN_FLIGHT[cluster]
    published = ROUTING.get(cluster, {})
    helix = by_name[routing_name("iwrr", None)]
    claims = []
    for router in ("swarm", "random", "shortest-queue"):
        other = by_name[routing_name(router, count)]
        claims.append(
            Claim(
                f"IWRR serves more than {router} routing on one placement, {NAMES[cluster]}",
                f"{published['iwrr']} against {published[router]}" if published else "not measured",
                f"{helix.decode_tokens_per_s:,.1f} against {other.decode_tokens_per_s:,.1f}",
                "tokens/s", helix.decode_tokens_per_s > other.decode_tokens_per_s,
                f"as in the artifact: IWRR takes requests while the KV cache has room, {router} keeps "
                f"{count} in flight"
                + (", over the artifact's links for this comparison" if published else ""),
            )
        )  # fmt: skip
    alike = by_name[routing_name("swarm", None)]
    few, few_swarm = by_name[routing_name("iwrr", count)], by_name[routing_name("swarm", count)]
    claims.append(
        Claim(
            f"so it does where both are fed alike, {NAMES[cluster]}", "not measured",
            f"{helix.decode_tokens_per_s:,.1f} against {alike.decode_tokens_per_s:,.1f} fed by KV cache, "
            f"{few.decode_tokens_per_s:,.1f} against {few_swarm.decode_tokens_per_s:,.1f} with "
            f"{count} in flight",
            "tokens/s",
            helix.decode_tokens_per_s > alike.decode_tokens_per_s
            and few.decode_tokens_per_s > few_swarm.decode_tokens_per_s,
            "SWARM's routing; IWRR's lead above comes from the number of requests in flight",
        )
    )  # fmt: skip
    return claims


def _chart(title: str, rows: Sequence[Figures]) -> str:
    return scatter_chart(
        [
            Point(
                row.decode_latency_s, row.decode_tokens_per_s,
                f"{row.name}: flow {row.tokens_per_s:,.0f} tokens/s",
                "chosen" if row.name == "ours, local search" else "",
            )
            for row in rows
            if not row.name.startswith("routing")
        ],
        title=f"{title}: decode throughput against latency",
        x_label="mean time of a token around the pipeline, s",
        y_label="decode tokens/s",
    )  # fmt: skip
