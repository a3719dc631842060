"""Which batching policy on which traffic: the tables of docs/choosing-a-policy.md.

    python benchmarks/choosing_policy.py [--traces FOLDER] [--requests 6000] [--json]

Llama 3.1 8B (FP8) on one L40S with room for 60,000 tokens of KV cache, agents' sessions on one H100
with 400,000. Loads are shares of the rate at which the engine's own policy serves a backlog. Three
seeds a cell; figures are means. Attainment counts answers whose first token comes within 2 s (agents:
10 s) and whose later ones take at most 60 ms each. With a folder of public traces the conversation
and code rows replay the Azure traces of 2023, three windows of each, instead of their generators.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.policies.batching.discipline import discipline
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate
from gpusched.traces.read import read_trace
from gpusched.traces.trace import Trace

LOADS = (0.6, 0.85, 1.0)
SEEDS = 3
POLICIES = (
    "vllm", "prefill-first", "sarathi", "mlfq", "sjf", "mc-sf", "mc-volume", "wait", "nested-wait",
)  # fmt: skip
PREDICTED = ("sjf", "mc-sf", "mc-volume", "wait")
ERRORS = ("oracle", "noisy:0.2", "noisy:0.5", "noisy:0.8")
TRAFFIC = ("conversation", "code", "agent", "mixed")
REAL = {"conversation": "azure_2023_conv.parquet", "code": "azure_2023_code.parquet"}
TTFT_S = {"agent": 10.0}
TPOT_S = 0.06


def engine(traffic, batching):
    gpu, kv_blocks = ("h100_sxm", 25_000) if traffic == "agent" else ("l40s", 3_750)
    timing = timing_model(
        load_model("llama-3.1-8b"), load_gpu(gpu), Parallelism(), weights_dtype="fp8"
    ).compile(8192, 256)
    return Fleet((Pool("engine", timing, kv_blocks, batching=batching, max_num_seqs=256),))


@lru_cache(maxsize=4)
def requests(traffic, seed, count, folder):
    """Return a trace of rate 1 and its lengths."""
    if folder is not None and traffic in REAL:
        whole = read_trace(Path(folder) / REAL[traffic])
        width_s = whole.duration_s / SEEDS
        part = whole.slice_time(seed * width_s, (seed + 1) * width_s)
        part = part.take(np.arange(min(len(part), count)))
        return part.scale_rate(1.0 / part.rate_rps)
    if traffic == "mixed":
        parts = [generate(name, share, 3.0 * count, seed=seed + 100 * i) for i, (name, share) in
                 enumerate((("chat", 0.6), ("code", 0.3), ("reason", 0.1)))]  # fmt: skip
        arrival_s = np.concatenate([p.arrival_s for p in parts])
        order = np.argsort(arrival_s)[:count]
        joined = Trace(
            arrival_s[order],
            np.concatenate([p.prompt_tokens for p in parts])[order],
            np.concatenate([p.output_tokens for p in parts])[order],
            name="mixed",
        )
        short = joined.prompt_tokens + joined.output_tokens < 40_000
        return joined.take(np.flatnonzero(short))
    profile = {"conversation": "chat"}.get(traffic, traffic)
    return generate(profile, 1.0, 3.0 * count, seed=seed, limit=count)


@lru_cache(maxsize=16)
def saturated_rps(traffic, seed, count, folder):
    """Requests a second at which the engine's own policy serves a backlog."""
    trace = requests(traffic, seed, count, folder)
    result = simulate(engine(traffic, "vllm"), trace.scale_rate(1e4))
    return float((~result.rejected).sum()) / result.makespan_s


def cell(task):
    traffic, load, policy, seed, count, folder = task
    trace = requests(traffic, seed, count, folder)
    rate = load * saturated_rps(traffic, seed, count, folder)
    trace = trace.scale_rate(rate / trace.rate_rps)
    result = simulate(engine(traffic, policy), trace, seed=seed)
    done = ~result.rejected
    bound_s = TTFT_S.get(traffic, 2.0)
    met = done & (result.ttft_s <= bound_s) & (result.tpot_s <= TPOT_S)
    return {
        "e2e_s": float(result.e2e_s[done].mean()),
        "ttft_p99_s": float(np.quantile(result.ttft_s[done], 0.99)),
        "e2e_p99_s": float(np.quantile(result.e2e_s[done], 0.99)),
        "attainment": float(met.mean()),
        "preemptions": int(result.preemptions.sum()),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    variants = list(POLICIES) + [f"{p}+predictor={e}" for p in PREDICTED for e in ERRORS]
    for name in variants:
        discipline(name)
    tasks = [
        (*key, seed, args.requests, args.traces)
        for key in product(TRAFFIC, LOADS, variants)
        for seed in range(SEEDS)
    ]
    cell(tasks[0])
    with ProcessPoolExecutor(args.jobs) as pool:
        found = list(pool.map(cell, tasks, chunksize=4))
    rows = []
    for i, (traffic, load, policy) in enumerate(product(TRAFFIC, LOADS, variants)):
        runs = found[SEEDS * i : SEEDS * (i + 1)]
        figures = {name: float(np.mean([r[name] for r in runs])) for name in runs[0]}
        base = next((r for r in rows if r["traffic"] == traffic and r["load"] == load), None)
        baseline = base["value"] if base else figures["e2e_s"]
        rows.append({
            "name": f"{traffic} at {load:g}: {policy}", "traffic": traffic, "load": load,
            "policy": policy, "value": figures["e2e_s"], "unit": "s mean E2E", "baseline": "vllm",
            "baseline_value": baseline, "ratio": figures["e2e_s"] / baseline, **figures,
        })  # fmt: skip
    if args.json:
        seconds = time.perf_counter() - started
        print(json.dumps({"benchmark": "choosing_policy", "seconds": seconds, "rows": rows}))
        return
    for title, chosen in (
        ("policies", POLICIES),
        *((f"{p}, by prediction", [p] + [f"{p}+predictor={e}" for e in ERRORS]) for p in PREDICTED),
    ):
        print(f"\n{title}: mean E2E in s / attainment in %\n")
        heads = [f"{t} {load:g}" for t in TRAFFIC for load in LOADS]
        print("| policy | " + " | ".join(heads) + " |\n|---" + "|--:" * len(heads) + "|")
        for policy in chosen:
            cells = [
                f"{r['e2e_s']:.3g} / {100 * r['attainment']:.1f}"
                for t in TRAFFIC for load in LOADS for r in rows
                if (r["traffic"], r["load"], r["policy"]) == (t, load, policy)
            ]  # fmt: skip
            print(f"| {policy} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
