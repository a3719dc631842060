"""What each policy costs and what it is worth.

    python benchmarks/policies.py [--requests 200000] [--json]

*Cost*: nanoseconds a decision inside compiled code and when called from plain Python, each beside
the cheapest of its kind in the same run. *Speed*: simulated requests a second under each policy,
beside that of the engine's own (vLLM's order, least-tokens routing, no admission). *Quality*: mean
latency on the same requests beside the engine's own, and completed tokens a second beyond the stable
load as a share of the fluid bound of the whole mix, which a policy exceeds only by leaving long
requests waiting; in unit rounds, total latency over the proven optimum of small backlogs.
"""

import argparse
import json
import time
import timeit
from pathlib import Path

import numpy as np
from numba import njit

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.planning.hindsight import hindsight_optimum
from gpusched.policies.admission.gate import OCCUPANCY, choose_class
from gpusched.policies.admission.staggered import release_s
from gpusched.policies.batching.discipline import DISCIPLINES
from gpusched.policies.batching.equilibrium import EngineTime, equilibrium, types_of
from gpusched.policies.batching.groups import allowance
from gpusched.policies.batching.lookahead import shortfall
from gpusched.policies.batching.order import LEVELS, PRIORITY, SHORTEST, VOLUME, rank
from gpusched.policies.batching.rounds import mc_sf_starts
from gpusched.policies.custom import compiled_policy
from gpusched.policies.routing import choice
from gpusched.policies.routing.packing import NO_CAP, pack, sort_window
from gpusched.policies.routing.placement import place
from gpusched.policies.views import Request
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate

OWN = Path(__file__).parents[1] / "examples" / "shortest_first.py"
REPLICAS = 16
RESIDENTS = 256
CALLS = 200_000


@njit
def empty_loop(calls):
    total = 0.0
    for i in range(calls):
        total += i * 1e-9
    return total


@njit
def rank_loop(calls, order):
    total = 0.0
    for i in range(calls):
        total += rank(order, 0.0, 32.0, Request(i * 0.01, 100 + i % 7, i % 3, 50 + i % 11, i % 5))
    return total


@njit
def own_loop(calls, function, row):
    total = 0.0
    for i in range(calls):
        total += function(i * 0.01, 100 + i % 7, 0, 50, 0, 1.0, 3, 256, 1000, 2000, row)
    return total


@njit
def shortfall_loop(calls, ends, bases, limit):
    total = 0
    for i in range(calls):
        last = 1000 + 40 + i % 64
        total += shortfall(ends, bases, 0, ends.shape[1], 1000, 300 + i % 9, last, limit, 15)
    return total


@njit
def allowance_loop(calls):
    total = 0
    for i in range(calls):
        total += allowance(i % 9, 4, 7, False, i * 0.01, i * 0.01 - 0.5, 1.0)
    return total


@njit
def route_loop(calls, policy, ready_s, requests, tokens):
    total = 0
    for i in range(calls):
        draw = np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
        e = choice.route(policy, i, draw, i % 16, ready_s, 1.0, requests, tokens, 0, 16, 8.0, 1.5)
        requests[e] += 1
        tokens[e] += 100 + i % 50
        total += e
    return total


@njit
def place_loop(calls, batch, kv, free, ascending):
    total = 0
    for i in range(calls):
        total += place(100 + i % 50, batch, kv, free, ascending, 0, 16, 1.5, 0)
    return total


@njit
def pack_loop(calls, order, lengths, hits, room, assigned, ages):
    total = 0
    for _ in range(calls // 32):
        for k in range(32):
            order[k] = k
        for u in range(8):
            room[u] = 4096
        sort_window(order, 32, lengths, ages)
        total += pack(order, 32, lengths, hits, room, assigned, ages, 0, 8, 4096, NO_CAP)
    return total


@njit
def gate_loop(calls, waiting, arrival_s, prefills, targets, metered, credits):
    total = 0
    for i in range(calls):
        prefills[i % 8] = i % 5
        total += choose_class(
            OCCUPANCY, waiting, arrival_s, prefills, targets, targets, metered, credits, targets, 8
        )
    return total


@njit
def release_loop(calls):
    total = 0.0
    for i in range(calls):
        total += release_s(i * 0.01, 0.05, 0.002, 1000 + i % 3, 4096, False, False)
    return total


def decisions():
    """Compiled loop, plain call, and goal in nanoseconds of each decision, by kind and name."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(1001, 1400, (1, RESIDENTS)))
    bases = rng.integers(-900, -200, (1, RESIDENTS))
    limit = int((bases.sum() + RESIDENTS * 1100) * 1.1)
    ready, requests, tokens = np.zeros(16), np.zeros(16, np.int64), np.zeros(16, np.int64)
    kv, free = np.zeros(16, np.int64), np.full(16, 1e18)
    units = np.arange(16)
    order, lengths = np.arange(32), rng.integers(50, 2000, 32)
    hits, room = np.zeros((32, 8), np.int64), np.full(8, 4096)
    assigned, ages = np.zeros(32, np.int64), np.zeros(32, np.int64)
    waiting, arrivals = np.full(8, 3), np.arange(8.0)
    targets, metered, credits = np.full(8, 2.0), np.zeros(8, np.bool_), np.zeros(8)
    prefills = np.zeros(8, np.int64)
    seen = Request(1.0, 100, 0, 50, 1)
    own = compiled_policy(f"{OWN}:shortest_first", "batching")
    found = {}
    for name, kind in (
        ("priority", PRIORITY),
        ("sjf", SHORTEST),
        ("mc-volume", VOLUME),
        ("mlfq", LEVELS),
    ):
        found["batching", f"rank of {name}"] = (
            lambda k=kind: rank_loop(CALLS, k),
            lambda k=kind: rank(k, 0.0, 32.0, seen),
            1000,
        )
    found["batching", "a user's own rank"] = (
        lambda: own_loop(CALLS, own.native, own.row()),
        lambda: own.function(seen, None),
        1000,
    )
    found["batching", "wait: allowance of a group"] = (
        lambda: allowance_loop(CALLS),
        lambda: allowance(8, 4, 7, False, 1.0, 0.5, 1.0),
        1000,
    )
    found["batching", f"mc-sf: look-ahead, {RESIDENTS} running"] = (
        lambda: shortfall_loop(CALLS // 10, ends, bases, limit),
        lambda: shortfall(ends, bases, 0, RESIDENTS, 1000, 300, 1050, limit, 15),
        10_000,
    )
    for name, kind in (
        ("round-robin", choice.ROUND_ROBIN),
        ("random", choice.RANDOM),
        ("power-of-two", choice.POWER_OF_TWO),
        ("least-requests", choice.LEAST_REQUESTS),
        ("least-tokens", choice.LEAST_TOKENS),
        ("prefix-affinity", choice.PREFIX_AFFINITY),
    ):
        found["routing", f"{name}, {REPLICAS} replicas"] = (
            lambda k=kind: route_loop(CALLS, k, ready, requests, tokens),
            lambda k=kind: choice.route(
                k, 3, np.uint64(7 << 40), 5, ready, 1.0, requests, tokens, 0, 16, 8.0, 1.5
            ),
            1000,
        )
    found["routing", f"iqr-lexicographic, {REPLICAS} replicas"] = (
        lambda: place_loop(CALLS, requests, kv, free, units),
        lambda: place(100, requests, kv, free, units, 0, 16, 1.5, 0),
        1000,
    )
    found["admission", "staggered: packing, a prompt of 32 onto 8 units"] = (
        lambda: pack_loop(CALLS, order, lengths, hits, room, assigned, ages),
        lambda: pack(order, 1, lengths, hits, np.full(8, 4096), assigned, ages, 0, 8, 4096, NO_CAP),
        1000,
    )
    found["admission", "staggered: when to release"] = (
        lambda: release_loop(CALLS),
        lambda: release_s(1.0, 0.05, 0.002, 1000, 4096, False, False),
        1000,
    )
    found["admission", "gate-and-route: class to start of 8"] = (
        lambda: gate_loop(CALLS, waiting, arrivals, prefills, targets, metered, credits),
        lambda: choose_class(
            OCCUPANCY, waiting, arrivals, prefills, targets, targets, metered, credits, targets, 8
        ),
        1000,
    )
    return found  # fmt: skip


def best(call, repeats=5):
    call()
    return min(timeit.repeat(call, number=1, repeat=repeats))


def costs():
    rows = []
    idle = best(lambda: empty_loop(CALLS)) / CALLS
    cheapest = {}
    for (kind, name), (loop, plain, goal) in decisions().items():
        calls = CALLS // 10 if "look-ahead" in name else CALLS
        compiled_ns = max(best(loop) / calls - idle, 1e-11) * 1e9
        plain()
        python_ns = min(timeit.repeat(plain, number=2000, repeat=5)) / 2000 * 1e9
        base = cheapest.setdefault(kind, (name, compiled_ns))
        rows.append({
            "name": f"{kind}: {name}", "value": compiled_ns, "unit": "ns a decision, compiled",
            "baseline": base[0], "baseline_value": base[1], "ratio": compiled_ns / base[1],
            "python_ns": python_ns, "goal_ns": goal, "python_goal_ns": 20_000,
        })  # fmt: skip
    return rows


def pool(**changes):
    timing = timing_model(
        load_model("llama-3.1-8b"), load_gpu("h100_sxm"), Parallelism(), level=1
    ).compile()
    settings = {"name": "engines", "timing": timing, "kv_blocks": 24_000, "prefix_caching": False}
    return Pool(**{**settings, **changes})


def speeds(count):
    """Simulated requests a second under each policy: one replica, or 16 for routing and admission."""
    rows = []
    one = pool()
    types_trace = generate("chat", 20.0, 2000.0, limit=20_000, seed=1)
    types = types_of(types_trace.prompt_tokens, types_trace.output_tokens, 20.0)
    stable_rps = (
        20.0 * equilibrium(types, EngineTime(one.timing), one.kv_blocks * 16.0).stable_multiple
    )
    rate = 0.85 * min(stable_rps, 40.0)
    trace = generate("chat", rate, 2.0 * count / rate, limit=count, seed=1)
    wide = generate("chat", rate * REPLICAS, 2.0 * count / rate, limit=count, seed=1)
    runs = {("batching", name): (Fleet((pool(batching=name),)), trace) for name in DISCIPLINES}
    runs["batching", "a user's own (ten lines)"] = (
        Fleet((pool(batching=f"{OWN}:shortest_first"),)),
        trace,
    )
    for name in (
        "least-tokens",
        "round-robin",
        "power-of-two",
        "prefix-affinity",
        "iqr-lexicographic",
    ):
        runs["routing", name] = (Fleet((pool(replicas=REPLICAS),), routing=name), wide)
    for name in ("none", "staggered", "gate-and-route"):
        runs["admission", name] = (Fleet((pool(replicas=REPLICAS),), admission=name), wide)
    first = {}
    for (kind, name), (fleet, requests) in runs.items():
        simulate(fleet, requests.take(np.arange(2000)))
        result = min((simulate(fleet, requests) for _ in range(2)), key=lambda r: r.wall_s)
        speed = len(requests) / result.wall_s
        base = first.setdefault(kind, (name, speed, float(np.nanmean(result.e2e_s))))
        latency = float(np.nanmean(result.e2e_s))
        rows.append({
            "name": f"{kind}: {name}", "value": speed, "unit": "requests simulated a second",
            "baseline": base[0], "baseline_value": base[1], "ratio": speed / base[1],
            "mean_e2e_s": latency, "mean_e2e_ratio": latency / base[2],
        })  # fmt: skip
    return rows


def saturation(count):
    """Completed output tokens a second beyond the stable load, as a share of the fluid bound."""
    rows = []
    engine = pool(kv_blocks=6000)
    sample = generate("chat", 20.0, 2000.0, limit=20_000, seed=2)
    types = types_of(sample.prompt_tokens, sample.output_tokens, 20.0, 32)
    balance = equilibrium(types, EngineTime(engine.timing), engine.kv_blocks * 16.0)
    stable_rps = 20.0 * balance.stable_multiple
    rate = 1.3 * stable_rps
    trace = generate("chat", rate, 2.0 * count / rate, limit=count, seed=3)
    bound = stable_rps * float(sample.output_tokens.mean())
    for name in ("vllm", "sarathi", "prefill-first", "sjf", "mc-sf", "mc-sf+predictor=oracle",
                 "mc-volume", "wait", "nested-wait"):  # fmt: skip
        result = simulate(Fleet((pool(kv_blocks=6000, batching=name),)), trace)
        horizon_s = trace.duration_s
        late = (result.finish_s > 0.2 * horizon_s) & (result.finish_s <= horizon_s)
        tokens = float(trace.output_tokens[late].sum()) / (0.8 * horizon_s)
        rows.append({
            "name": f"beyond the stable load: {name}", "value": tokens, "unit": "output tokens/s",
            "baseline": "fluid bound", "baseline_value": bound, "ratio": tokens / bound,
            "preemptions": int(result.preemptions.sum()),
        })  # fmt: skip
    return rows


def optimality(trials=20):
    """Total latency in unit rounds over the proven optimum of backlogs of eight requests."""
    rng = np.random.default_rng(0)
    totals = {"mc-sf": 0, "volume": 0, "first come, with look-ahead": 0}
    best_total = proven = 0
    for _ in range(trials):
        budget = 15
        s = rng.integers(1, 6, 8)
        o = np.array([rng.integers(1, budget - x + 1) for x in s])
        found = hindsight_optimum(np.zeros(8), s, o, budget)
        proven += found.proven
        best_total += found.total_latency
        for name, order in (("mc-sf", "output"), ("volume", "volume"),
                            ("first come, with look-ahead", "arrival")):  # fmt: skip
            totals[name] += int((mc_sf_starts(np.zeros(8), s, o, budget, order=order) + o).sum())
    return [
        {"name": f"unit rounds: {name}", "value": total, "unit": "rounds",
         "baseline": f"optimum, {proven} of {trials} proven", "baseline_value": best_total,
         "ratio": total / best_total}
        for name, total in totals.items()
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    parts = [
        costs(),
        speeds(args.requests),
        saturation(max(args.requests // 10, 1000)),
        optimality(),
    ]
    if args.json:
        rows = [row for part in parts for row in part]
        seconds = time.perf_counter() - started
        print(json.dumps({"benchmark": "policies", "seconds": seconds, "rows": rows}))
        return
    for row in parts[0]:
        print(f"{row['name']:58s} {row['value']:8.1f} ns compiled (goal {row['goal_ns']:,})  "
              f"{row['python_ns'] / 1e3:6.2f} us from Python (goal 20)")  # fmt: skip
    print()
    for row in parts[1]:
        print(f"{row['name']:42s} {row['value'] / 1e6:6.2f} M requests/s  {row['ratio']:5.2f} of "
              f"{row['baseline']}  mean E2E {row['mean_e2e_s']:7.2f} s ({row['mean_e2e_ratio']:.2f})")  # fmt: skip
    print()
    for row in parts[2] + parts[3]:
        print(
            f"{row['name']:52s} {row['value']:10,.0f} {row['unit']:16s} {row['ratio']:6.3f} of {row['baseline']}"
        )


if __name__ == "__main__":
    main()
