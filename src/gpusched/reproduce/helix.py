"""Helix (arXiv 2406.01566): layers over unequal GPUs by maximum flow, beside faster placements.

The artifact's clusters, profiles, layouts and simulation settings are used as they are. Published
figures are those of its solver traces and simulator logs.
"""

from collections.abc import Sequence
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
    machines_of,
    published_layout,
    throughput_of,
)
from gpusched.reproduce.helix_runs import Figures, Task, run_cluster

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
ROUTING = {"geo24": "99.8 against 81.7"}
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
    swarm = by_name["Helix MILP, SWARM routing"]
    claims.append(
        Claim(
            f"IWRR serves more than SWARM's routing on one placement, {NAMES[cluster]}",
            ROUTING.get(cluster, "not measured"),
            f"{helix.decode_tokens_per_s:,.1f} against {swarm.decode_tokens_per_s:,.1f}", "tokens/s",
            helix.decode_tokens_per_s > swarm.decode_tokens_per_s,
            f"latencies {helix.prompt_latency_s:.2f} / {helix.decode_latency_s:.2f} s against "
            f"{swarm.prompt_latency_s:.2f} / {swarm.decode_latency_s:.2f} s; here SWARM's routing "
            "sees every node's KV cache",
        )
    )  # fmt: skip
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


def _chart(title: str, rows: Sequence[Figures]) -> str:
    return scatter_chart(
        [
            Point(
                row.decode_latency_s, row.decode_tokens_per_s,
                f"{row.name}: flow {row.tokens_per_s:,.0f} tokens/s",
                "chosen" if row.name == "ours, local search" else "",
            )
            for row in rows
        ],
        title=f"{title}: decode throughput against latency",
        x_label="mean time of a token around the pipeline, s",
        y_label="decode tokens/s",
    )  # fmt: skip
