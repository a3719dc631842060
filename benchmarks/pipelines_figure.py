"""Draw the picture of docs/pipelines.md: a node fails and comes back, requests and load over time.

python benchmarks/pipelines_figure.py [--rate 0.5] [-o docs/pipelines.svg]
"""

import argparse
import re
from pathlib import Path

import numpy as np

from gpusched.domain.plan import read_plan
from gpusched.planning.layers.flow import network_of
from gpusched.planning.layers.spread import spread_flow
from gpusched.planning.layers.throughput import Workload, throughput
from gpusched.report.svg import Line, Rule, line_chart
from gpusched.sim.pipelines import NodeChange, simulate_pipelines
from gpusched.sim.pipelines.deploy import plan_machines, plan_placement
from gpusched.traces.workload import load_workload

ROOT = Path(__file__).resolve().parents[1]
FAILED, DOWN_S, UP_S = "l4-0", 400.0, 800.0
ROUTING = "iwrr+kv_high_water=0.3"
"""A low mark, so that the picture has requests that wait at the front."""
STYLE = """<style>
text{font:11px sans-serif;fill:#555}
.grid{stroke:#ddd}
.line{fill:none;stroke-width:1.8}
.c0{stroke:#1f77b4}.c1{stroke:#d62728}.c2{stroke:#2ca02c}
.rule{stroke:#999;stroke-dasharray:4 3;fill:none}
</style>"""


def smooth(values, width=5):
    return np.convolve(values, np.ones(width) / width, mode="same")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs/pipelines.svg")
    args = parser.parse_args()
    plan = read_plan(ROOT / "examples/pipelines.yaml")
    workload = plan.workload.model_copy(update={"rate_rps": args.rate})
    trace = load_workload(workload, plan.slo, seed=0)
    machines = plan_machines(plan, trace)
    placement, flows = plan_placement(plan)
    lengths = Workload(int(trace.prompt_tokens.mean()), int(trace.output_tokens.mean()))
    network = network_of(machines, throughput(machines, lengths))
    node = machines.names.index(FAILED)
    result = simulate_pipelines(
        machines, placement, flows, trace, routing=ROUTING,
        changes=[NodeChange(DOWN_S, node), NodeChange(UP_S, node, up=True)],
        solve_flows=lambda up: spread_flow(network, placement, alive=up)[1],
    )  # fmt: skip
    middle = (result.series_s[1:] + result.series_s[:-1]) / 2
    inside = result.in_system()
    busy = result.busy[placement.count > 0].mean(axis=0)
    chart = line_chart(
        [
            Line("in pipelines", middle, smooth(inside["running"])),
            Line("waiting at the front", middle, smooth(inside["waiting"])),
            Line("nodes busy, %", middle, smooth(busy) * 100),
        ],
        title="requests and load", x_label="seconds", y_label="requests; %",
        rules=[Rule(f"{FAILED} fails", DOWN_S), Rule("is back", UP_S)],
    )  # fmt: skip
    print(
        f"{int(result.restarts.sum())} requests restarted, {np.isfinite(result.finish_s).sum()} of "
        f"{len(result.finish_s)} answered, most waiting {inside['waiting'].max():.0f}"
    )
    args.output.write_text(standalone(chart), encoding="utf-8")


def standalone(figure):
    """Return a report's figure as a file of its own, with its legend inside."""
    svg = re.search(r"<svg.*?</svg>", figure, re.DOTALL).group()
    names = re.findall(r'<i class="c(\d)"></i>([^<]*)</span>', figure)
    legend = "".join(
        f'<path class="line c{colour}" d="M{70 + 190 * i} 10h18"/>'
        f'<text x="{94 + 190 * i}" y="14">{name}</text>'
        for i, (colour, name) in enumerate(names)
    )
    if "xmlns=" not in svg:
        svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    head, body = svg.split(">", 1)
    return f"{head}>{STYLE}{legend}{body}\n"


if __name__ == "__main__":
    main()
