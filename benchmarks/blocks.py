"""Placing blocks and routing requests over them, each against a slower way to the same answer.

    python benchmarks/blocks.py [--requests 100000] [--limit 20] [--json]

Servers are drawn over a backbone of 60 places as in the BPRR paper's sweeps (arXiv 2512.21884), a
fifth of them A100, five clients. `plain` is the step-by-step reference in Python on the first
requests of the same trace; both give the same times to 1e-9, which is checked. CG-BP is compared
with the optimum of small instances, and the exact program by columns with the published one on the
same instances under the same limit. Compilation is not timed.
"""

import argparse
import json
import time
from functools import partial

import numpy as np

from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.conservative import blocks_held, place_conservatively, place_for_rate
from gpusched.planning.blocks.exact import place_exactly
from gpusched.planning.blocks.improve import improve
from gpusched.planning.blocks.offline import place_and_route
from gpusched.planning.blocks.petals import petals_blocks, place_as_petals
from gpusched.planning.blocks.published import place_as_published
from gpusched.planning.blocks.testbeds import HIDDEN, OUTPUT, PROMPT, scattered
from gpusched.planning.blocks.wide_area import backbone_rtt_s
from gpusched.sim.chains.reference import simulate_chains_slowly
from gpusched.sim.chains.simulate import ChainLoad, simulate_chains
from gpusched.timing.chains import BlockServers

SLOW = 300
"""Requests that the reference serves."""


def mixed(count, rate_rps, clients):
    rng = np.random.default_rng(0)
    return ChainLoad.of(
        np.cumsum(rng.exponential(1 / rate_rps, count)), rng.integers(5, 60, count),
        rng.integers(20, 300, count), rng.integers(0, clients, count),
    )  # fmt: skip


def routing_rows(requests, servers_count):
    bed, rates = scattered(backbone_rtt_s(60), servers_count, clients=5)
    ours = place_for_rate(bed, 2.0, PROMPT, OUTPUT).placed
    joining = np.random.default_rng(0).permutation(bed.count)
    theirs = place_as_petals(bed, petals_blocks(bed, HIDDEN), rates, joining)
    rows = []
    for load_word, rate in (("design load", 2.0), ("three times the load", 6.0)):
        load = mixed(requests, rate, bed.clients)
        for routing, placed in (("ws-rr", ours), ("ws-rr-exact", ours), ("petals", theirs)):
            simulate_chains(bed, placed, load.head(10), routing=routing)
            fast = simulate_chains(bed, placed, load, routing=routing)
            few = load.head(SLOW)
            begun = time.perf_counter()
            slow = simulate_chains_slowly(bed, placed, few, routing=routing)
            plain_s = (time.perf_counter() - begun) / SLOW
            again = simulate_chains(bed, placed, few, routing=routing)
            np.testing.assert_allclose(again.finish_s, slow.finish_s, rtol=1e-9)
            # the reference slows down as requests pile up; compare on the same requests
            ours_s = min(
                simulate_chains(bed, placed, few, routing=routing).wall_s for _ in range(5)
            ) / SLOW  # fmt: skip
            rows.append({
                "name": f"{routing}, {bed.count} servers, {load_word}", "value": ours_s * 1e6,
                "unit": "us a request", "baseline": "plain Python, same requests",
                "baseline_value": plain_s * 1e6, "ratio": plain_s / ours_s,
                "whole_trace_us": fast.wall_s / requests * 1e6, "requests": requests,
                "whole_trace_s": fast.wall_s, "mean_wait_s": float(np.nanmean(fast.wait_s)),
            })  # fmt: skip
    begun = time.perf_counter()
    place_conservatively(bed, 50, PROMPT + OUTPUT)
    rows.append({
        "name": f"CG-BP, {bed.count} servers, 50 at once", "value": time.perf_counter() - begun,
        "unit": "s", "baseline": None, "baseline_value": None, "ratio": None,
    })  # fmt: skip
    return rows


def small(rng):
    n, blocks = int(rng.integers(3, 5)), int(rng.integers(3, 7))
    trip_s, block_s = rng.uniform(0.05, 0.3, (1, n)), rng.uniform(0.003, 0.03, n)
    return BlockServers(
        names=tuple(f"s{j}" for j in range(n)), memory_bytes=rng.uniform(1.5, 1.2 * blocks, n),
        decode_block_s=block_s, prefill_block_s=np.stack([block_s, np.zeros(n)]),
        decode_trip_s=trip_s, prefill_trip_s=np.stack([trip_s, np.zeros((1, n))]),
        client_rtt_s=trip_s, server_rtt_s=np.zeros((n, n)),
        blocks=blocks, block_bytes=1.0, cache_token_bytes=0.1,
    )  # fmt: skip


def cost(bed, load, placed):
    found = simulate_chains(bed, placed, load, routing="ws-rr-exact", retries=False)
    at_once = found.wait_s == 0.0
    return float((~at_once).sum()), float(found.finish_s[at_once].sum())


def optimum_rows(limit, instances=6):
    rng = np.random.default_rng(0)
    seconds = {"CG-BP": [], "local search": [], "columns": [], "published": []}
    excess, gaps = {name: [] for name in seconds}, {name: [] for name in seconds}
    while len(excess["CG-BP"]) < instances:
        bed, clients = small(rng), np.zeros(2, np.int64)
        begun = time.perf_counter()
        try:
            greedy = place_and_route(bed, clients, 1)
        except InfeasibleError:
            continue
        seconds["CG-BP"].append(time.perf_counter() - begun)
        together = ChainLoad.of(np.zeros(2), 0, 1)
        begun = time.perf_counter()
        _, (_, token_s) = improve(
            bed, greedy.placed, blocks_held(bed, 1, 1), partial(cost, bed, together), moves=200
        )
        seconds["local search"].append(time.perf_counter() - begun)
        columns = place_exactly(bed, clients, 1, time_limit_s=limit)
        published = place_as_published(bed, clients, 1, time_limit_s=limit)
        best = min(columns.token_s, published.token_s)
        excess["local search"].append(token_s / best - 1)
        for name, found in (("CG-BP", greedy), ("columns", columns), ("published", published)):
            excess[name].append(found.token_s / best - 1)
            if name != "CG-BP":
                gaps[name].append(found.gap)
                seconds[name].append(found.seconds)
    of = f"{instances} instances of 3 or 4 servers, 3 to 6 blocks, 2 requests"
    rows = [{
        "name": f"CG-BP above the optimum, {of}", "value": float(np.mean(excess["CG-BP"])),
        "unit": "share", "baseline": "best exact", "baseline_value": 0.0, "ratio": None,
        "worst": float(np.max(excess["CG-BP"])),
    }]  # fmt: skip
    rows.append({
        "name": f"CG-BP and local search above the optimum, {of}",
        "value": float(np.mean(excess["local search"])), "unit": "share",
        "baseline": "CG-BP alone", "baseline_value": float(np.mean(excess["CG-BP"])), "ratio": None,
        "worst": float(np.max(excess["local search"])),
    })  # fmt: skip
    for name in ("CG-BP", "local search", "columns"):
        rows.append({
            "name": f"{name}, {of}", "value": float(np.mean(seconds[name])), "unit": "s",
            "baseline": f"published program, limit {limit:g} s",
            "baseline_value": float(np.mean(seconds["published"])),
            "ratio": float(np.mean(seconds["published"]) / np.mean(seconds[name])),
            "worst_gap": float(max(gaps[name], default=np.nan)) if gaps[name] else None,
            "baseline_worst_gap": float(max(gaps["published"])),
        })  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds an exact solution")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = routing_rows(args.requests, args.servers) + optimum_rows(args.limit)
    if args.json:
        seconds = time.perf_counter() - began
        print(json.dumps({"benchmark": "blocks", "seconds": seconds, "rows": rows}))
        return
    for row in rows:
        line = f"{row['name']:60s} {row['value']:10.4g} {row['unit']}"
        if row["ratio"] is not None:
            line += f"   {row['baseline']}: {row['baseline_value']:.4g} ({row['ratio']:.0f} x)"
        if "whole_trace_us" in row:
            line += f"   {row['requests']:,} requests: {row['whole_trace_us']:.1f} us each"
        print(line)


if __name__ == "__main__":
    main()
