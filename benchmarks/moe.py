"""Decisions inside mixture-of-experts layers: time of each beside the generic solver's, same run.

    python benchmarks/moe.py [--json] [--slow]

Placement: 58 layers of 256 experts on 32 servers, Dirichlet loads; the baselines are OR-tools' minimum
cost flow (where installed) and, with ``--slow``, HiGHS on the linear program. Replicas: the plan of one
layer of 128 experts on 8 ranks, against the published greedy (by largest latency and by time), and the
exact split of its tokens against HiGHS. Overlap: the best cut of one batch
against trying every cut task by task in the simulation alone. Seconds are the median of five after one
call to compile; the solvers run once.
"""

import argparse
import json
import time

import numpy as np


def seconds(call, repeat=5):
    call()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def once(call):
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def row(name, value, unit, baseline, baseline_value, **more):
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline,
        "baseline_value": baseline_value, "ratio": baseline_value / value, **more,
    }  # fmt: skip


def placement_rows(slow):
    from gpusched.errors import InputError
    from gpusched.moe.loads import dirichlet_loads
    from gpusched.moe.placement import place_experts, trip_hops
    from gpusched.moe.topology import leaf_spine

    weight = dirichlet_loads(58, 256, 8, 0.688)
    trips = trip_hops(leaf_spine(8, 4).hops(), 58)
    for layer_cap in (8, 16, 32):

        def place(method="auto", cap=layer_cap):
            return place_experts(weight, trips, layer_cap=cap, total_cap=464, method=method)

        mine, own = place(), seconds(place)
        for solver in ("ortools", "lp") if slow else ("ortools",):
            try:
                other, theirs = once(lambda s=solver: place(s))
            except InputError:
                continue
            name = {"ortools": "OR-tools min-cost flow", "lp": "HiGHS LP"}[solver]
            yield row(
                f"place 58x256 on 32, {layer_cap} a layer", own, "s", name, theirs,
                hops=mine.hops, baseline_hops=other.hops,
            )  # fmt: skip


def replica_rows():
    from gpusched.moe.expert_layer import ExpertLayer
    from gpusched.moe.replica_program import best_split
    from gpusched.moe.replicas import PUBLISHED, WIDE, ReplicaPlanner

    layer = ExpertLayer(128, 8, 1.1e-7, 1.4e-5, 2.7e-8, 1.4e-4, 2.5e-4)
    rng = np.random.default_rng(0)
    draws = [
        rng.multinomial(768 * 4, rng.dirichlet(np.full(128, 0.3)), size=8).T.astype(float)
        for _ in range(40)
    ]
    found = {}
    for name, settings in (("published", PUBLISHED), ("wider", WIDE)):
        planner = ReplicaPlanner(layer, settings)
        times, slowest = [], []
        for tokens in draws:
            plan = planner.plan(tokens)
            times.append(seconds(lambda p=planner, t=tokens: p.plan(t)))
            slowest.append(planner.latency_s(tokens, plan).max())
        found[name] = float(np.median(times)), float(np.mean(slowest))
    (time_p, late_p), (time_w, late_w) = found["published"], found["wider"]
    yield row("largest latency of a rank", late_w * 1e6, "us", "published greedy", late_p * 1e6)
    yield row("plan 128 experts on 8 ranks", time_w, "s", "published greedy", time_p)
    tokens = draws[0]
    hosted = planner.plan(tokens).hosted.copy()
    own = seconds(lambda: planner.split(tokens, hosted))
    latency, theirs = once(lambda: best_split(layer, tokens, hosted))
    yield row("exact split of tokens", own, "s", "HiGHS LP", theirs, latency_s=latency)


def overlap_rows():
    from gpusched.moe.overlap import solve_overlap
    from gpusched.reproduce.findep import costs_of
    from gpusched.timing.overlap import ORDERS, makespan_s

    costs, most = costs_of("deepseek-v2", (2, 6), 2048), 64

    def every_cut():
        best = 0.0
        for samples in range(1, most + 1):
            for r1 in range(1, min(8, most // samples) + 1):
                for r2 in range(1, 17):
                    tokens = costs.expert_tokens_per_sample * samples / r2
                    a, s, e, x = (
                        cost.fixed_s + cost.unit_s * size
                        for cost, size in (
                            (costs.attention, samples), (costs.shared, samples),
                            (costs.expert, tokens), (costs.exchange, tokens),
                        )
                    )  # fmt: skip
                    for order in ORDERS:
                        span = makespan_s(costs.layers, r1, r2, a, s, e, x, order)
                        best = max(best, r1 * samples * costs.attention_gpus / span)
        return best

    def solve():
        solve_overlap.cache_clear()
        return solve_overlap(costs, most)

    mine, own = solve(), seconds(solve)
    best, theirs = once(every_cut)
    yield row(
        "cut of one batch, 64 samples", own, "s", "every cut simulated", theirs,
        samples_per_s=mine.samples_per_s, baseline_samples_per_s=best,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--slow", action="store_true", help="also HiGHS on the placement program")
    args = parser.parse_args()
    began, rows = time.perf_counter(), []
    for source in (placement_rows(args.slow), replica_rows(), overlap_rows()):
        for entry in source:
            rows.append(entry)
            if not args.json:
                print(
                    f"{entry['name']:42s} {entry['value']:.3g} {entry['unit']}  "
                    f"{entry['baseline']}: {entry['baseline_value']:.3g}  "
                    f"ratio {entry['ratio']:.1f}",
                    flush=True,
                )
    if args.json:
        document = {"benchmark": "moe", "seconds": time.perf_counter() - began, "rows": rows}
        print(json.dumps(document))


if __name__ == "__main__":
    main()
