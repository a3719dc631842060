"""Layer placement: flows, bounds and served throughput on the clusters of the Helix artifact.

    python benchmarks/placement.py --data FOLDER [--lengths FILE] [--simulate] [--milp SECONDS] [--json]

FOLDER holds the artifact's tables (``helix_cluster_*.ini``, ``helix_bs2time.csv``), FILE lengths of
requests (columns ``input_tokens``, ``output_tokens``). Baselines are the published flows of its MILP
and, with ``--simulate``, its published layouts simulated here in the artifact's closed loop. With
``--milp`` Helix's program is solved by HiGHS on each cluster, SECONDS each: cold, on pruned links,
from our largest flow (``polish``), and on free links the arc form from the same start.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from gpusched.planning.layers.arcs import solve_arcs
from gpusched.planning.layers.bounds import upper_bound
from gpusched.planning.layers.candidates import candidates
from gpusched.planning.layers.flow import network_of, solve_flow
from gpusched.planning.layers.milp import prune, solve_milp
from gpusched.planning.layers.planner import verify
from gpusched.planning.layers.polish import polish
from gpusched.reproduce.helix import ATTEMPTS, FLOW_SECONDS, FLOWS, SEEDS
from gpusched.reproduce.helix_data import machines_of, throughput_of
from gpusched.reproduce.helix_runs import Task, run_cluster


def row(name, value, unit, baseline, baseline_value):
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline,
        "baseline_value": baseline_value, "ratio": value / baseline_value,
    }  # fmt: skip


def placed(folder, cluster, model="llama2_70b"):
    begun = time.perf_counter()
    machines = machines_of(folder, cluster, model)
    tables = throughput_of(machines, model)
    network = network_of(machines, tables)
    best = candidates(network)[0]
    placing_s = time.perf_counter() - begun
    if wrong := verify(network, best):
        raise SystemExit("; ".join(wrong))
    numbers = np.bincount(machines.kind_of)
    bound = upper_bound(tables, numbers, machines.layers, lower=best.tokens_per_s)
    return best.tokens_per_s, bound.tokens_per_s, placing_s, time.perf_counter() - begun


def solved(folder, cluster, model, seconds):
    """Helix's program beside the constructive methods: flow, bound and gap."""
    machines = machines_of(folder, cluster, model)
    tables = throughput_of(machines, model)
    network = network_of(machines, tables)
    best = candidates(network)[0]
    numbers = np.bincount(machines.kind_of)
    bound = upper_bound(tables, numbers, machines.layers, lower=best.tokens_per_s).tokens_per_s
    cold = solve_milp(network, time_limit_s=seconds)
    pruned = solve_milp(network, links=prune(network), bound=bound, time_limit_s=seconds)
    warm = polish(network, best.placement, bound=bound, time_limit_s=seconds)
    found = [
        ("MILP cold", cold.tokens_per_s, cold.bound),
        ("MILP cold, pruned", pruned.tokens_per_s, bound),
        ("MILP from ours", warm.tokens_per_s, warm.bound),
    ]
    if len(set(machines.regions)) == 1:
        through = solve_flow(network, best.placement).flows[:, : network.n].sum(axis=0)
        arcs = solve_arcs(
            machines, tables, start=(best.placement, through), bound=bound, time_limit_s=seconds
        ).solution
        found.append(("arc form from ours", arcs.objective, arcs.bound))
    rows = []
    for name, flow, proved in found:
        rows.append(row(f"{cluster}: {name}", flow, "tokens/s", "ours", best.tokens_per_s))
        rows.append(row(f"{cluster}: {name}", flow, "tokens/s", "its bound", proved))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--milp", type=float, metavar="SECONDS", default=0.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begun = time.perf_counter()
    rows = []
    for cluster, published in FLOWS.items():
        flow, bound, placing_s, _ = placed(options.data, cluster)
        rows += [
            row(f"{cluster}: flow", flow, "tokens/s", "published MILP", published),
            row(f"{cluster}: flow", flow, "tokens/s", "upper bound", bound),
            row(f"{cluster}: time to place", placing_s, "s", "published MILP",
                FLOW_SECONDS[cluster]),
        ]  # fmt: skip
    flow, bound, _, proof_s = placed(options.data, "quality10", "llama1_30b")
    rows += [
        row("quality10: flow", flow, "tokens/s", "upper bound", bound),
        row("quality10: time to prove", proof_s, "s", "published MILP", 3803.0),
    ]
    if options.simulate:
        for cluster in FLOWS:
            task = Task(options.data, options.lengths, cluster, ATTEMPTS, SEEDS)
            figures = {found.name: found for found in run_cluster(task)[0]}
            base, ours = figures["Helix MILP"], figures["ours, local search"]
            for name in ("decode_tokens_per_s", "prompt_latency_s", "decode_latency_s"):
                unit = "tokens/s" if name == "decode_tokens_per_s" else "s"
                rows.append(
                    row(f"{cluster}: {name}", getattr(ours, name), unit, "published layout",
                        getattr(base, name))
                )  # fmt: skip
    if options.milp:
        for cluster in (*FLOWS, "quality10"):
            model = "llama1_30b" if cluster == "quality10" else "llama2_70b"
            rows += solved(options.data, cluster, model, options.milp)
    seconds = time.perf_counter() - begun
    if options.json:
        print(json.dumps({"benchmark": "placement", "seconds": seconds, "rows": rows}))
        return
    for entry in rows:
        print(
            f"{entry['name']:36s} {entry['value']:12.4g} {entry['unit']:9s} "
            f"{entry['baseline']:18s} {entry['baseline_value']:12.4g}  x{entry['ratio']:.4g}"
        )


if __name__ == "__main__":
    main()
