"""Planning prefill and decode workers for sessions: time and quality of the split.

Times of the dynamic program and of the shortlist beside HiGHS on the same integer program and, where it
ends, full enumeration; then the simulated share of sessions in time of our plan beside baselines on 64
GPUs.

python benchmarks/pd_planning.py [--json] [--no-plans]
"""

import argparse
import json
from time import perf_counter

from gpusched.domain.spec import spec_from
from gpusched.planning.candidates import fitting_engines
from gpusched.planning.rounds.load import round_load
from gpusched.planning.rounds.split import (
    best_split,
    best_splits,
    capacity_of,
    every_split,
    program_split,
)
from gpusched.planning.rounds.workers import split_problem, worker_kinds
from gpusched.traces.workload import load_workload

GPUS = (8, 16, 32, 64, 256, 512, 1024, 2048)
LAST_ENUMERATED = 16
SHORTLIST = 30
LOCAL_SHARE = 0.25


def spec(**changes):
    return spec_from(
        {
            "model": "qwen3-32b",
            "cluster": {
                "nodes": [{"gpu": "h100_sxm", "gpus": 8, "count": 8}],
                "inter_node_gbps": 3200,
            },
            "workload": {"profile": "rag", "rate_rps": 200, "duration_s": 60, "rounds": True},
            "slo": {"ttft_ms": 500, "tpot_ms": 40, "attainment": 0.9},
            **changes,
        }
    )


def seconds(function, *args):
    """Return the answer and the least time of three calls."""
    times = []
    for _ in range(3):
        begun = perf_counter()
        answer = function(*args)
        times.append(perf_counter() - begun)
    return answer, min(times)


def enumerated(problem):
    return max(capacity_of(problem, x, y)[0] for x, y in every_split(problem))


def planning_rows():
    question = spec()
    trace = load_workload(question.workload, question.slo)
    engines, _ = fitting_engines(question, trace)
    load = round_load(trace, engines[0].timing)
    (kinds, _), kinds_s = seconds(worker_kinds, question, trace, load, engines, LOCAL_SHARE)
    rows = []
    for gpus in GPUS:
        nodes = [{"gpu": "h100_sxm", "gpus": 8, "count": gpus // 8}]
        problem = split_problem(spec(cluster={"nodes": nodes, "inter_node_gbps": 3200}), kinds)
        split, ours_s = seconds(best_split, problem)
        by_program, program_s = seconds(program_split, problem)
        assert abs(split.capacity / by_program.capacity - 1) < 1e-6
        _, shortlist_s = seconds(best_splits, problem, SHORTLIST)
        rows.append(row(f"{gpus} GPUs, best split", ours_s, "HiGHS", program_s))
        rows.append(
            row(
                f"{gpus} GPUs, the {SHORTLIST} best, speeds included",
                shortlist_s + kinds_s,
                "HiGHS, one split",
                program_s,
            )
        )
        if gpus <= LAST_ENUMERATED:
            best, every_s = seconds(enumerated, problem)
            assert abs(split.capacity / best - 1) < 1e-9
            rows.append(row(f"{gpus} GPUs, best split", ours_s, "enumeration", every_s))
    return rows


def row(name, value, baseline, baseline_value, unit="s"):
    ratio = baseline_value / value if unit == "s" else value / max(baseline_value, 1e-9)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "baseline_value": baseline_value,
        "ratio": ratio,
    }


def plan_rows():
    """Share of sessions in time on 64 GPUs at the rate that our split just carries."""
    from gpusched.planning.rounds.baselines import baselines
    from gpusched.planning.rounds.search import RoundsSearch

    question = spec(objective="goodput", workload=WORKLOAD, search={"roles": ["disaggregated"]})
    trace = load_workload(question.workload, question.slo)
    search = RoundsSearch(question, trace, seed=0)
    search.search_rounds()
    best = max(search.scored.values(), key=lambda s: s.reached)
    return [
        row(
            f"64 GPUs, sessions in time, {best.plan.summary}",
            best.reached,
            f"{name}: {other.plan.summary}",
            other.reached,
            "share",
        )
        for name, other in baselines(search).items()
    ]


WORKLOAD = {"profile": "rag", "rate_rps": 250, "duration_s": 60, "rounds": {"shortlist": 8}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-plans", action="store_true", help="planning times only")
    args = parser.parse_args()
    begun = perf_counter()
    rows = planning_rows() + ([] if args.no_plans else plan_rows())
    if args.json:
        took = perf_counter() - begun
        print(json.dumps({"benchmark": "pd planning", "seconds": took, "rows": rows}))
        return
    for r in rows:
        print(
            f"{r['name']:58s} {r['value']:.4g} {r['unit']}  {r['baseline']} "
            f"{r['baseline_value']:.4g}  ratio {r['ratio']:.3g}"
        )


if __name__ == "__main__":
    main()
