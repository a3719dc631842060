"""Requests a second of the simulator, against its step-by-step reference in the same run.

    python benchmarks/simulator_speed.py [--requests 1000000] [--json]

Azure-like chat lengths, Poisson arrivals. The figure is `requests_per_wall_s` as `gpusched simulate`
gives it, compilation excluded, the best of three; that of the whole call, with laying out and
unpacking its arrays, is beside it. The reference serves the first 2000 of the same requests. Memory
is the peak of all that a call allocates, its result included, the trace aside.
"""

import argparse
import json
import time
import tracemalloc

import numpy as np

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.reference import Reference
from gpusched.sim.simulate import simulate
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate

REFERENCE_REQUESTS = 2000


def fleets():
    """Return the benchmark's fleets with the rate each is offered, and its goal."""
    timing = timing_model(
        load_model("llama-3.1-8b"), load_gpu("h100_sxm"), Parallelism(), level=1
    ).compile()

    def pool(**changes):
        settings = {
            "name": "engines",
            "timing": timing,
            "kv_blocks": 24_000,
            "prefix_caching": False,
        }
        return Pool(**{**settings, **changes})

    return {
        "1 replica, whole prefill first": (Fleet((pool(batching="prefill-first", max_num_batched_tokens=16384),)), 14.0, 5e6),
        "1 replica, chunked prefill": (Fleet((pool(),)), 14.0, 2e6),
        "16 replicas, least requests": (Fleet((pool(replicas=16),), routing="least-requests"), 220.0, 1e6),
        "4 prefill + 4 decode": (
            Fleet((pool(name="prefill", role="prefill", replicas=4, max_num_batched_tokens=8192),
                   pool(name="decode", role="decode", replicas=4)), KvLink(5e-5, 3e-6)), 70.0, 0.5e6),
    }  # fmt: skip


def best_time(call, repeats=3):
    times, results = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        results.append(call())
        times.append(time.perf_counter() - started)
    return min(times), results


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for name, (fleet, rate, goal) in fleets().items():
        trace = generate("chat", rate, 2.0 * args.requests / rate, limit=args.requests, seed=1)
        short = trace.take(np.arange(REFERENCE_REQUESTS))
        simulate(fleet, short)
        seconds, results = best_time(lambda f=fleet, t=trace: simulate(f, t))
        result = min(results, key=lambda r: r.wall_s)
        began = time.perf_counter()
        slow = Reference(fleet, short, None, 0).run()
        reference = REFERENCE_REQUESTS / (time.perf_counter() - began)
        same = np.allclose(
            [r.last_token_s for r in slow.requests],
            simulate(fleet, short).finish_s,
            rtol=1e-9,
            equal_nan=True,
        )
        tracemalloc.start()
        simulate(fleet, trace)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        speed = len(trace) / result.wall_s
        rows.append({
            "name": name, "value": speed, "unit": "requests/s", "baseline": "step-by-step reference",
            "baseline_value": reference, "ratio": speed / reference, "goal": goal, "requests": len(trace),
            "whole_call_requests_per_s": len(trace) / seconds, "bytes_per_request": peak / len(trace),
            "iterations": sum(p.iterations for p in result.pools), "equal_to_reference": bool(same),
        })  # fmt: skip
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "simulator_speed",
                    "seconds": time.perf_counter() - started,
                    "rows": rows,
                }
            )
        )
        return
    for row in rows:
        print(f"{row['name']:32s} {row['value'] / 1e6:6.2f} M/s (whole call {row['whole_call_requests_per_s'] / 1e6:5.2f})  goal "
              f"{row['goal'] / 1e6:g}  reference {row['baseline_value']:7.0f}/s  ratio {row['ratio']:7.0f}  "
              f"{row['bytes_per_request']:4.0f} B/request  equal {row['equal_to_reference']}")  # fmt: skip


if __name__ == "__main__":
    main()
