"""Instances over time: GPU-hours of each scaling policy at equal attainment, and what decisions cost.

    python benchmarks/scaling.py [--json] [--spec SPEC] [--seeds N]

Every policy runs at the cheapest setting of its knob that meets the objectives of all tiers on the same
requests (``gpusched scale --tune``); the baseline is the unified reactive threshold at its own best
setting. ``ratio`` above 1 means fewer GPU-hours than the baseline. Then: the hourly program in closed
form beside HiGHS, a rolling forecast, and requests simulated a second.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

BASELINE = "threshold"
OTHERS = ("anticipating", "lt-i", "lt-u", "lt-ua", "hpa", "keda", "siloed", "clairvoyant")
SPEC = Path(__file__).parents[1] / "examples" / "scale.yaml"


def row(name, value, unit, baseline, baseline_value, **more):
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline,
        "baseline_value": baseline_value, "ratio": baseline_value / value, **more,
    }  # fmt: skip


def policy_rows(path, seed):
    from gpusched.domain.scale import read_scale_spec
    from gpusched.planning.capacity.cells import prepare
    from gpusched.planning.capacity.scaling import Runner, tuned

    runner = Runner(prepare(read_scale_spec(path), seed=seed), seed=seed)
    base, _ = tuned(runner, BASELINE)
    for name in OTHERS:
        began = time.perf_counter()
        outcome, runs = tuned(runner, name)
        yield row(
            f"{name}, seed {seed}", outcome.gpu_hours, "GPU-hours", BASELINE, base.gpu_hours,
            knob=outcome.knob, baseline_knob=base.knob, attainment=outcome.attainment,
            baseline_attainment=base.attainment, meets=outcome.meets, baseline_meets=base.meets,
            scaling_waste=outcome.wasted_share, bound_gpu_hours=runner.bound_gpu_hours,
            requests_per_s=len(runs) * sum(len(c.trace) for c in runner.question.cells)
            / (time.perf_counter() - began),
        )  # fmt: skip


def decision_rows():
    from gpusched.planning.capacity.instances import by_program, demand_of, instances

    rng = np.random.default_rng(0)
    question = demand_of(
        rng.integers(1, 20, (20, 10, 1)), rng.uniform(50, 200, (20, 1)),
        rng.uniform(0, 4000, (20, 10)), 10, 150, local_share=0.7, least=2,
    )  # fmt: skip
    instances(question)
    began = time.perf_counter()
    mine = instances(question)
    own = time.perf_counter() - began
    began = time.perf_counter()
    other = by_program(question)
    theirs = time.perf_counter() - began
    yield row(
        "hourly program, 20 models x 10 regions", own, "s", "HiGHS", theirs,
        usd=mine.usd, baseline_usd=other.usd,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    began, rows = time.perf_counter(), []
    sources = [decision_rows(), *(policy_rows(args.spec, seed) for seed in range(args.seeds))]
    for source in sources:
        for entry in source:
            rows.append(entry)
            if not args.json:
                print(
                    f"{entry['name']:42s} {entry['value']:10.4g} {entry['unit']:10s} "
                    f"{entry['baseline']}: {entry['baseline_value']:.4g}  ratio {entry['ratio']:.2f}"
                    + ("" if entry.get("meets", True) else "  (objectives missed)"),
                    flush=True,
                )
    if args.json:
        print(
            json.dumps(
                {"benchmark": "scaling", "seconds": time.perf_counter() - began, "rows": rows}
            )
        )


if __name__ == "__main__":
    main()
