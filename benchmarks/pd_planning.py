"""Planning prefill and decode workers for sessions: time and quality of the split.

Times of the dynamic program and of the shortlist beside HiGHS on the same integer program and, where it
ends, full enumeration; then the simulated share of sessions in time of our plan beside baselines on 64 GPUs.

python benchmarks/pd_planning.py [--json] [--no-plans] [--picture FILE]
"""

import argparse
import json
import re
from pathlib import Path
from time import perf_counter

import numpy as np

from gpusched.domain.spec import spec_from
from gpusched.planning.candidates import fitting_engines
from gpusched.planning.rounds.baselines import BASELINES, baseline_spec
from gpusched.planning.rounds.load import round_load
from gpusched.planning.rounds.search import RoundsSearch
from gpusched.planning.rounds.split import (
    best_split,
    best_splits,
    capacity_of,
    every_split,
    program_split,
)
from gpusched.planning.rounds.workers import split_problem, worker_kinds
from gpusched.report.svg import Line, line_chart
from gpusched.sim.deploy import fleet_for
from gpusched.sim.sessions import session_attainments, sessions_met
from gpusched.sim.simulate import simulate
from gpusched.traces.workload import load_workload

GPUS = (8, 16, 32, 64, 256, 512, 1024, 2048)
LAST_ENUMERATED = 16
SHORTLIST = 30
LOCAL_SHARE = 0.25
COLOURS = ("#0b6e4f", "#c8553d", "#7a6ff0", "#8d99ae")
RATE_RPS = 360.0
"""Rounds a second on 64 GPUs at which plans are compared."""


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


def planned():
    """Return the spec on 64 GPUs and the plans of ours and of the baselines at its rate."""
    question = spec(
        objective="goodput",
        workload={
            "profile": "rag",
            "rate_rps": RATE_RPS,
            "duration_s": 60,
            "rounds": True,
        },
        search={"roles": ["disaggregated"]},
    )
    trace = load_workload(question.workload, question.slo)
    plans = {}
    for name in ("ours", *BASELINES):
        search = RoundsSearch(
            question if name == "ours" else baseline_spec(question, name), trace, seed=0
        )
        search.search_rounds()
        plans[name] = max(search.scored.values(), key=lambda s: s.reached)
    return question, plans


def plan_rows(plans):
    """Share of sessions in time on 64 GPUs, every plan with the split that suits it best."""
    ours = plans["ours"]
    return [
        row(
            f"64 GPUs, sessions in time, {ours.plan.summary}",
            ours.reached,
            f"{name}: {plans[name].plan.summary}",
            plans[name].reached,
            "share",
        )
        for name in BASELINES
    ]


def picture(question, plans):
    """Draw the share of sessions in time against the rate."""
    rates = RATE_RPS * np.array([0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2])
    shares = {name: [] for name in plans}
    for rate in rates:
        workload = question.workload.model_copy(update={"rate_rps": float(rate)})
        trace = load_workload(workload, question.slo)
        for name, scored in plans.items():
            result = simulate(fleet_for(scored.plan), trace)
            met = session_attainments(sessions_met(result, trace, question.slo))
            shares[name].append(100.0 * met["default"])
    figure = line_chart(
        [Line(name, rates, np.array(share)) for name, share in shares.items()],
        title=f"Sessions in time: retrieval, {question.model}, 64 H100",
        x_label="rounds a second",
        y_label="% of sessions",
    )
    return standalone(figure, list(plans))


def standalone(figure, names):
    """Return the chart of a report's figure as an SVG file, with colours and a legend of its own."""
    drawing = re.search("<svg(.*)</svg>", figure, re.DOTALL).group(1)
    style = "".join(f".c{i}{{stroke:{colour}}}" for i, colour in enumerate(COLOURS))
    legend = "".join(
        f'<line class="line c{i}" x1="80" x2="104" y1="{170 + 20 * i}" y2="{170 + 20 * i}"/>'
        f'<text x="110" y="{174 + 20 * i}">{name}</text>'
        for i, name in enumerate(names)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"{drawing}<style>svg{{background:#fff}}text{{font:12px '
        f"sans-serif;fill:#333}}.grid{{stroke:#ddd}}.line{{fill:none;stroke-width:2}}{style}</style>"
        f"{legend}</svg>\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-plans", action="store_true", help="planning times only")
    parser.add_argument("--picture", type=Path, help="draw attainment against the rate: an SVG")
    args = parser.parse_args()
    begun = perf_counter()
    rows = planning_rows()
    if not args.no_plans:
        question, plans = planned()
        rows += plan_rows(plans)
        if args.picture is not None:
            args.picture.write_text(picture(question, plans), encoding="utf-8")
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
