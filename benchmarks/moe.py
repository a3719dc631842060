"""Decisions inside mixture-of-experts layers: time of each beside the generic solver's, same run.

    python benchmarks/moe.py [--json] [--slow]

Placement: 58 layers of 256 experts on 32 servers, Dirichlet loads; the baselines are OR-tools' minimum
cost flow (where installed) and, with ``--slow``, HiGHS on the linear program. Seconds are the median of
five after one call to compile; the solvers run once.
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--slow", action="store_true", help="also HiGHS on the placement program")
    args = parser.parse_args()
    began, rows = time.perf_counter(), []
    for source in (placement_rows(args.slow),):
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
