"""The hindsight optimum by several methods, on the same draws and under the same limit.

    python benchmarks/hindsight.py [--limit 30] [--draws 3] [--json]

Draws follow MC-SF's experiments (arXiv 2502.07115): prompts of 1 to 5 tokens, outputs of 1 to what the
budget leaves unless told. The gap is (schedule - bound) / schedule, mean and worst over the draws;
`plain` is the paper's program on HiGHS, its schedule the best look-ahead policy's where it finds none
better. Each row's baseline is `plain` on the same draws.
"""

import argparse
import json
import time

import numpy as np

from gpusched.planning.hindsight import HindsightSchedule, hindsight_optimum
from gpusched.planning.hindsight.constraint import has_cp

METHODS = ("plain", "prices", "program", "cp", "auto")


def all_at_once(rng, n, budget, longest=None):
    s = rng.integers(1, 6, n)
    top = budget - s if longest is None else np.full(n, longest)
    return np.zeros(n, np.int64), s, rng.integers(1, top + 1), budget


def arriving(rng, rounds, budget):
    a = np.repeat(np.arange(rounds), rng.poisson(1.0, rounds))
    s = rng.integers(1, 6, len(a))
    return a, s, rng.integers(1, budget - s + 1), budget


FAMILIES = {
    "8 at once, M 15": lambda rng: all_at_once(rng, 8, 15),
    "12 at once, M 15": lambda rng: all_at_once(rng, 12, 15),
    "14 at once, outputs to 8, M 40": lambda rng: all_at_once(rng, 14, 40, 8),
    "25 at once, outputs to 8, M 50": lambda rng: all_at_once(rng, 25, 50, 8),
    "10 at once, M 50": lambda rng: all_at_once(rng, 10, 50),
    "50 at once, outputs to 8, M 50": lambda rng: all_at_once(rng, 50, 50, 8),
    "50 at once, M 50": lambda rng: all_at_once(rng, 50, 50),
    "about 50 arriving, M 50": lambda rng: arriving(rng, 50, 50),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=30.0, help="seconds a method and draw")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    hindsight_optimum([0, 0], [1, 1], [1, 2], 5, method="prices")  # compile
    rows = []
    for family in args.families:
        plain = None
        for method in dict.fromkeys(("plain", *args.methods)):
            if method == "cp" and not has_cp():
                continue
            found: list[HindsightSchedule] = []
            for seed in range(args.draws):
                instance = FAMILIES[family](np.random.default_rng(seed))
                found.append(
                    hindsight_optimum(*instance, method=method, time_limit_s=args.limit, seed=seed)
                )
            gaps = np.array([0.0 if f.proven else f.gap for f in found])
            plain = gaps.mean() if plain is None else plain
            rows.append({
                "name": f"{family}: {method}", "value": float(gaps.mean()), "unit": "gap",
                "baseline": "plain program", "baseline_value": float(plain),
                "ratio": float(gaps.mean() / plain) if plain > 0.0 else None,
                "worst": float(gaps.max()), "proven": sum(f.proven for f in found),
                "draws": args.draws, "total_latency": [f.total_latency for f in found],
                "seconds": float(np.mean([f.seconds for f in found])),
            })  # fmt: skip
            if not args.json:
                row = rows[-1]
                print(
                    f"{row['name']:42s} proven {row['proven']} of {args.draws}  gap {row['value']:6.2%} "
                    f"(worst {row['worst']:6.2%})  {row['seconds']:5.1f} s  schedules "
                    f"{row['total_latency']}",
                    flush=True,
                )
    if args.json:
        seconds = time.perf_counter() - began
        print(json.dumps({"benchmark": "hindsight", "seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
