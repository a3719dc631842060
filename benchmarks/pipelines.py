"""Speed of the pipeline simulator, and how near it comes to the Helix artifact's figures.

    python benchmarks/pipelines.py --traces ../shared/traces [--json]

Clusters, machine profiles and published layouts are those of the Helix artifact (24 and 42 nodes,
Llama-2 70B); requests are those of the Azure conversation trace of 2023 with at most 2048 tokens in
and 1024 out. `--traces` is the folder of the trace; the artifact's tables lie beside it in
`data/helix`.

Speed: batches on nodes a second of processor time, compilation excluded, best of five; the artifact
runs a batch layer by layer, so batches counted in every layer are beside it. The baseline is the
plain simulator on the same nodes for a shorter time. Fidelity: decode throughput beside the
artifact's simulator.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpusched.planning.layers.flow import network_of, solve_flow
from gpusched.policies.routing.pipelines import pipeline_routing
from gpusched.reproduce.helix_data import (
    batch_limits,
    machines_of,
    published_layout,
    throughput_of,
)
from gpusched.sim.pipelines import OfflineFeed, simulate_pipelines
from gpusched.sim.pipelines.build import Setting
from gpusched.sim.pipelines.reference import Reference
from gpusched.traces.read import read_trace
from gpusched.traces.trace import Trace

COPY_BYTES_PER_S = 1 / (1 / 4e9 + 1 / 5e9)
"""The artifact concatenates received activations at 4e9 and moves them at 5e9 bytes/s."""
MEAN_OUTPUT_TOKENS = 240
OFFLINE = "iwrr+kv_high_water=0.85+output_share=1"
ONLINE = "iwrr+kv_high_water=0.9+output_share=0.6"
BY_USAGE = OfflineFeed(20, 0.8, 0.1, drop=True)
CLOSED_LOOP = 180
"""Requests in flight that the baselines keep offline, as in the artifact."""


def requests_of(traces: Path) -> Trace:
    """Return the trace's requests that the artifact would keep."""
    trace = read_trace(traces / "azure_2023_conv.parquet")
    kept = (trace.prompt_tokens <= 2048) & (trace.output_tokens <= 1024)
    return trace.take(np.flatnonzero(kept))


def sampled(trace: Trace, count: int = 20_000, seed: int = 0) -> Trace:
    """Return requests drawn with replacement; the artifact gives each a first token of its own, so
    outputs are longer by one."""
    rows = np.random.default_rng(seed).integers(0, len(trace), count)
    return Trace(np.zeros(count), trace.prompt_tokens[rows], trace.output_tokens[rows] + 1)


def at_rate(trace: Trace, tokens_per_s: float, duration_s: float = 1800.0) -> Trace:
    """Return the trace's first requests with arrivals scaled to a mean token rate."""
    total = np.cumsum(trace.prompt_tokens.astype(np.int64) + trace.output_tokens)
    count = int(np.searchsorted(total, tokens_per_s * duration_s))
    arrival_s = trace.arrival_s[:count] - trace.arrival_s[0]
    return Trace(
        arrival_s * duration_s / arrival_s[-1],
        trace.prompt_tokens[:count],
        trace.output_tokens[:count] + 1,
    )


class Case:
    """One cluster with one of its published layouts."""

    def __init__(self, data: Path, cluster: str, layout: str, *, partial: bool = False) -> None:
        self.machines = machines_of(data, cluster)
        self.placement = published_layout(cluster, layout)
        self.limits = batch_limits(self.machines, self.placement)
        self.partial = partial
        network = network_of(self.machines, throughput_of(self.machines))
        self.flow = solve_flow(network, self.placement, partial_inference=partial)

    def run(self, trace, routing, offline=False, *, masked=True, **window):
        """Simulate as the artifact does."""
        return simulate_pipelines(
            self.machines, self.placement, self.flow.flows, trace,
            routing=replace(pipeline_routing(routing), mask_kv=masked), offline=offline,
            partial_inference=self.partial, limits=self.limits,
            mean_output_tokens=MEAN_OUTPUT_TOKENS, copy_bytes_per_s=COPY_BYTES_PER_S, **window,
        )  # fmt: skip

    def reference(self, trace, routing, offline, duration_s):
        """Run the plain simulator for a while and return it with its processor seconds."""
        setting = Setting(
            self.machines, self.placement, pipeline_routing(routing), self.partial, self.limits,
            MEAN_OUTPUT_TOKENS, COPY_BYTES_PER_S, 0.0, 0, offline or None,
        )  # fmt: skip
        reference = Reference(setting, trace, self.flow.flows)
        began = time.process_time()
        reference.run(duration_s)
        return reference, time.process_time() - began


def speed(name, case, trace, routing, offline, *, repeats=5, reference_s=40.0):
    """Return the row of one speed."""
    window = {"warmup_s": 60.0, "duration_s": 600.0 if offline else 1740.0}
    case.run(trace, routing, offline, warmup_s=0.0, duration_s=1.0)
    results = [case.run(trace, routing, offline, **window) for _ in range(repeats)]
    result = min(results, key=lambda r: r.processor_s)
    slow, seconds = case.reference(trace, routing, offline, reference_s)
    short = case.run(trace, routing, offline, duration_s=reference_s)
    first_s = slow.first_s[: len(short.first_token_s)]
    baseline = sum(node.iterations for node in slow.nodes) / seconds
    value = result.iterations / result.processor_s
    jobs = float(result.nodes.mean_batch @ result.nodes.iterations)
    return {
        "name": name, "value": value, "unit": "batches/s", "baseline": "plain simulator",
        "baseline_value": baseline, "ratio": value / baseline,
        "layer_batches_per_s": int(result.nodes.layer_iterations.sum()) / result.processor_s,
        "mean_batch": jobs / result.iterations, "processor_s": result.processor_s,
        "equal_to_reference": bool(
            np.allclose(short.first_token_s, first_s, rtol=1e-9, equal_nan=True)
        ),
    }  # fmt: skip


def fidelity(name, published, result):
    """Return the row of one figure of the artifact."""
    value = result.decode_tokens_per_s
    first = result.counted(result.first_token_s)
    prompt_s = result.prompt_latency_s[first]
    return {
        "name": name, "value": value, "unit": "decode tokens/s", "baseline": "Helix artifact",
        "baseline_value": published, "ratio": value / published if published else None,
        "prompt_latency_s": float(np.nanmean(prompt_s)),
        "prompt_latency_p50_s": float(np.nanmedian(prompt_s)),
        "prompt_latency_p95_s": float(np.nanpercentile(prompt_s, 95)),
        "decode_latency_s": result.decode_latency.spread(),
        "in_flight_at_the_end": float(result.in_system()["running"][-2]),
        "kv_peak": float(result.nodes.kv_peak.max()),
    }  # fmt: skip


def rows_of(traces: Path):
    """Yield all rows."""
    data = traces.parent / "data" / "helix"
    trace = requests_of(traces)
    offline = sampled(trace)
    window = {"warmup_s": 60.0, "duration_s": 600.0}
    small, large = Case(data, "single24", "ilp"), Case(data, "hetero42", "ilp")
    for name, case, rate in (("24 nodes", small, 700), ("42 nodes", large, 2150)):
        yield speed(f"{name}, offline", case, offline, OFFLINE, BY_USAGE)
        yield speed(f"{name}, online {rate} tokens/s", case, at_rate(trace, rate), ONLINE, False)
        light = at_rate(trace, rate / 4)
        yield speed(f"{name}, online {rate / 4:g} tokens/s", case, light, ONLINE, False)
    loop = OfflineFeed(CLOSED_LOOP, None)
    yield fidelity(
        "24 nodes, Helix, offline", 252.1, small.run(offline, OFFLINE, BY_USAGE, **window)
    )
    short = {"warmup_s": 60.0, "duration_s": 150.0}
    yield fidelity(
        "24 nodes, Helix, offline, 150 s", 250.6, small.run(offline, OFFLINE, BY_USAGE, **short)
    )
    for policy, published in (("swarm", 169.4), ("random", 169.5), ("shortest-queue", None)):
        result = small.run(offline, policy, loop, masked=False, **window)
        yield fidelity(f"24 nodes, Helix layout, {policy} routing (prototype)", published, result)
    swarm = Case(data, "single24", "swarm")
    result = swarm.run(offline, "swarm", loop, masked=False, **window)
    yield fidelity("24 nodes, SWARM, offline", 124.7, result)
    petals = Case(data, "single24", "petals", partial=True)
    result = petals.run(offline, OFFLINE, BY_USAGE, **window)
    yield fidelity("24 nodes, PETALS layout, IWRR (prototype)", 194.5, result)
    yield fidelity(
        "42 nodes, Helix, offline", 645.6, large.run(offline, OFFLINE, BY_USAGE, **window)
    )
    result = small.run(at_rate(trace, 700), ONLINE, warmup_s=0.0, duration_s=1800.0)
    yield fidelity("24 nodes, Helix, online 700 tokens/s", 141.6, result)
    result = large.run(at_rate(trace, 2150), ONLINE, warmup_s=0.0, duration_s=1800.0)
    yield fidelity("42 nodes, Helix, online 2150 tokens/s", 459.8, result)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for row in rows_of(args.traces):
        rows.append(row)
        if args.json:
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.4g}"
        line = f"{row['name']:48s} {row['value']:12,.1f} {row['unit']}, {row['baseline']} "
        line += f"{row['baseline_value'] or float('nan'):,.1f}, ratio {ratio}"
        if "mean_batch" in row:
            line += (
                f"; {row['layer_batches_per_s']:,.0f} layers/s, mean batch {row['mean_batch']:.1f}"
            )
            line += f", equal {row['equal_to_reference']}"
        else:
            decode = row["decode_latency_s"]
            line += (
                f"; prompt {row['prompt_latency_s']:.2f} s (p50 {row['prompt_latency_p50_s']:.2f}"
            )
            line += f" p95 {row['prompt_latency_p95_s']:.2f}), decode {decode['mean']:.2f} s (p50 "
            line += (
                f"{decode['p50']:.2f} p95 {decode['p95']:.2f}), {row['in_flight_at_the_end']:.0f}"
            )
            line += f" in flight, KV {row['kv_peak']:.2f}"
        print(line, flush=True)
    if args.json:
        seconds = time.perf_counter() - started
        print(json.dumps({"benchmark": "pipelines", "seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
