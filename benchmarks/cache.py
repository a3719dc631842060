"""The prompt cache: eviction rules against plain Python, schedules against the integer program, and what
each rule hits and saves by size.

    python benchmarks/cache.py [--trace mooncake_conversation.parquet] [--requests 4000] [--json]

Plain Python is a cache of one tier with a heap (LRU, LFU, GDSF) or 64 samples (least carbon savings), on the
same accesses and of the same size; its hits are checked to be the replay's for LRU. Operations are accesses
to blocks. Schedules are of random tables of the shape of a week and of a day. Without `--trace`, prompts
are generated questions about documents.
"""

import argparse
import heapq
import json
import random
import time
from pathlib import Path

import numpy as np

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.planning.cache_size.carbon import CacheChoices
from gpusched.planning.cache_size.schedule import schedule_cache
from gpusched.policies.caching.eviction import EVICTION
from gpusched.sim.prefix_cache.replay import block_saving, replay_cache
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate
from gpusched.traces.read import read_trace
from gpusched.traces.reuse import hit_curve

SAMPLES = 64
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Sizes, of all blocks of the trace."""


def plain_python(trace, room, rule, saving):
    """Replay on one tier, the simple way; return the blocks that hit."""
    offsets, ids = trace.prefix.offsets.tolist(), trace.prefix.block_ids.tolist()
    clock, uses, hit = 0.0, 0, 0
    entries, last, hits, depth_of, parent_of, children, now_of = {}, {}, {}, {}, {}, {}, {}
    heap, free, place = [], [], {}

    def leaf(b):
        if rule == "least-carbon-savings":
            if b not in place:
                place[b] = len(free)
                free.append(b)
        else:
            heapq.heappush(heap, (entries[b], last[b], b))

    def drop(b):
        at, moved = place.pop(b), free.pop()
        if moved != b:
            free[at] = moved
            place[moved] = at

    for row in range(len(trace)):
        now = float(trace.arrival_s[row])
        path = ids[offsets[row] : offsets[row + 1]]
        for b in path:
            if b not in entries:
                break
            hit += 1
        for depth, b in enumerate(path):
            hits[b] = hits.get(b, 0) + 1
            last[b], now_of[b], depth_of[b] = uses + len(path) - depth, now, depth
            worth = saving[depth]
            entries_before = b in entries
            entries[b] = {
                "lru": last[b], "lfu": hits[b], "gdsf": clock + hits[b] * worth,
            }.get(rule, 0.0)  # fmt: skip
            if not entries_before:
                parent = path[depth - 1] if depth else None
                parent_of[b] = parent
                if parent is not None:
                    children[parent] = children.get(parent, 0) + 1
                    if parent in place:
                        drop(parent)
            if not children.get(b):
                leaf(b)
            while len(entries) > room:
                if rule == "least-carbon-savings":
                    seen = (
                        [random.choice(free) for _ in range(SAMPLES)]
                        if len(free) > SAMPLES
                        else free
                    )
                    out = min(
                        seen,
                        key=lambda c: hits[c] * saving[depth_of[c]] / max(now - now_of[c], 1e-3),
                    )
                    drop(out)
                else:
                    while True:
                        key, used, out = heapq.heappop(heap)
                        if entries.get(out) == key and last[out] == used and not children.get(out):
                            break
                    clock = key
                del entries[out]
                parent = parent_of[out]
                if parent is not None:
                    children[parent] -= 1
                    if not children[parent] and parent in entries:
                        leaf(parent)
        uses += len(path)
    return hit


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="a trace with block hashes")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    trace = (
        read_trace(args.trace)
        if args.trace is not None
        else generate("documents", 0.2, args.requests / 0.2, seed=0)
    )
    trace = trace.take(np.arange(min(args.requests, len(trace))))
    prefix = trace.prefix
    accesses = len(prefix.block_ids)
    timing = timing_model(
        load_model("llama-3.1-70b"), load_gpu("h100_sxm"), Parallelism(tp=2), weights_dtype="fp8"
    )
    saving = block_saving(timing, prefix.block_tokens, int(np.diff(prefix.offsets).max()))
    rows = []

    def add(name, value, unit, baseline, baseline_value, **more):
        rows.append({
            "name": name, "value": value, "unit": unit, "baseline": baseline,
            "baseline_value": baseline_value,
            "ratio": value / baseline_value if baseline_value else None, **more,
        })  # fmt: skip
        if not args.json:
            print(
                f"{name:52s} {value:12.5g} {unit:24s} {baseline:20s} {baseline_value:12.5g}  "
                f"x{rows[-1]['ratio'] or 0:.4g}",
                flush=True,
            )

    room = int(0.1 * prefix.n_blocks)
    for rule in EVICTION:
        size = [room * prefix.block_tokens]
        replay_cache(trace, size, eviction=rule, saving=saving)  # compile
        spans = []
        for _ in range(3):
            start = time.perf_counter()
            found = replay_cache(trace, size, eviction=rule, saving=saving)
            spans.append(time.perf_counter() - start)
        start = time.perf_counter()
        hit = plain_python(trace, room, rule, saving.tolist())
        plain_s = time.perf_counter() - start
        ours = found.hit_tokens.sum() / prefix.block_tokens
        if rule == "lru" and abs(hit - ours) > 0.01 * accesses:
            raise SystemExit(f"the reference hits {hit} blocks, the replay {ours}")
        add(
            f"{rule}: accesses, {room} of {prefix.n_blocks} blocks held", accesses / min(spans),
            "operations/s", "plain Python", accesses / plain_s,
            evicted_blocks=found.evicted_tokens // prefix.block_tokens,
        )  # fmt: skip
    start = time.perf_counter()
    curve = hit_curve(trace)
    curve_s = time.perf_counter() - start
    start = time.perf_counter()
    replay_cache(trace, [room * prefix.block_tokens], eviction="lru")
    add("hit ratio of every LRU size in one pass", curve_s, "s", "replay of one size",
        time.perf_counter() - start)  # fmt: skip
    for share in SHARES:
        tokens = int(share * prefix.n_blocks) * prefix.block_tokens
        lru = None
        for rule in EVICTION:
            found = replay_cache(trace, [tokens], eviction=rule, saving=saving)
            blocks = found.hit_tokens.sum(axis=1) // prefix.block_tokens
            total_s = np.concatenate(([0.0], np.cumsum(saving)))
            saved = float(total_s[np.minimum(blocks, len(saving))].sum())
            lru = (found.hit_ratio, saved) if lru is None else lru
            add(f"{rule}, {share:.0%} of all blocks held: hit ratio", found.hit_ratio, "share",
                "lru", lru[0], at_lru_curve=float(curve.at(tokens)))  # fmt: skip
            add(f"{rule}, {share:.0%} of all blocks held: prefill saved", saved, "s", "lru", lru[1])
    rng = np.random.default_rng(0)
    for hours, sizes in ((24, 17), (168, 17), (168, 65)):
        tables = [random_choices(rng, hours, sizes) for _ in range(3)]
        asked = [binding_share(choices) for choices in tables]
        for change in (0.0, 1.0):
            spans = {}
            grams = {}
            for method in ("price", "auto", "milp"):
                start = time.perf_counter()
                done = [
                    schedule_cache(c, share, change_g_per_tb=change, method=method)
                    for c, share in zip(tables, asked, strict=True)
                ]
                spans[method] = (time.perf_counter() - start) / len(tables)
                grams[method] = np.array([d.carbon_g for d in done])
            words = ", changes cost" if change else ""
            for method in ("price", "auto"):
                gap = float((grams[method] / grams["milp"] - 1).max())
                add(f"schedule of {hours} hours, {sizes} sizes{words}: {method}", spans[method], "s",
                    "milp", spans["milp"], worst_gap=gap)  # fmt: skip
    if args.json:
        seconds = time.perf_counter() - began
        print(json.dumps({"benchmark": "cache", "seconds": seconds, "rows": rows}))


def random_choices(rng, hours, sizes):
    """Tables in which more cache saves power and time, with diminishing returns."""
    held = np.linspace(0.0, 16.0, sizes)
    hit = 0.6 * (1 - np.exp(-held / 4))
    load = 1.0 + 0.8 * np.sin(np.arange(hours) / 24 * 2 * np.pi) + 0.1 * rng.random(hours)
    intensity = 150 + 120 * np.cos(np.arange(hours) / 24 * 2 * np.pi + 1) + 20 * rng.random(hours)
    work = load[:, None] * (1 - hit)
    power = 800 + 600 * work
    carbon = power / 1e3 * intensity[:, None] + held * 0.7
    return CacheChoices(held, carbon, load * 3600, np.clip(1.2 - 0.28 * work, 0, 1))


def binding_share(choices):
    """Half way from the attainment that least carbon gives to the most there is."""
    share = choices.requests / choices.requests.sum()
    free = schedule_cache(choices, 0.0).attainment
    return (free + float((share * choices.attainment.max(axis=1)).sum())) / 2


if __name__ == "__main__":
    main()
