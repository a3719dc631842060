"""The picture of docs/place-blocks.md: where the example's blocks lie, under our plan and PETALS' rule.

python benchmarks/blocks_picture.py [examples/internet-blocks.yaml] [docs/place-blocks.svg]
"""

import sys
from pathlib import Path

from gpusched.domain.plan import Plan
from gpusched.domain.spec import read_spec
from gpusched.planning.blocks.planner import plan_blocks
from gpusched.report.svg import HEIGHT, WIDTH

COLOURS = ("#1f6fb2", "#d9822b", "#2a8f6b", "#8e5bb5", "#b3476c", "#6b7785")
ROW, TOP, LEFT = 17, 46, 92


def rows(plan: Plan, servers, placed):
    regions = list(dict.fromkeys(group.region for group in plan.cluster.nodes))
    for j, name in enumerate(servers.names):
        if placed.blocks[j]:
            region = plan.cluster.nodes[plan.node_group(name)].region
            yield name, int(placed.first[j]), int(placed.end[j]), regions.index(region)


def main():
    spec = sys.argv[1] if len(sys.argv) > 1 else "examples/internet-blocks.yaml"
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/place-blocks.svg")
    answer = plan_blocks(read_spec(spec))
    plan, total = answer.plan, answer.servers.blocks
    panels = [("gpusched", answer.placed, plan.predicted)]
    if answer.petals is not None:
        panels.append(("PETALS", answer.petals.placed, answer.petals.figures))
    wide = (WIDTH * 1.4 - LEFT - 20) / len(panels)
    body, lowest = "", 0.0
    for number, (name, placed, figures) in enumerate(panels):
        left = LEFT + number * wide
        scale = (wide - LEFT - 6) / total if number else (wide - 20) / total
        left += LEFT - 20 if number else 0
        mean = figures["tpot_s"]["mean"] * 1e3
        body += (
            f'<text class="head" x="{left}" y="20">{name}: {figures["slo_attainment"]:.1%} of requests '
            f'in time</text><text x="{left}" y="37">{mean:.0f} ms a token, wait '
            f"{figures['queue_s']['mean']:,.1f} s on average</text>"
        )
        for i, (node, first, end, region) in enumerate(rows(plan, answer.servers, placed)):
            y = TOP + i * ROW
            lowest = max(lowest, y + ROW)
            body += (
                f'<rect x="{left + first * scale:.1f}" y="{y}" width="{(end - first) * scale:.1f}" '
                f'height="{ROW - 3}" fill="{COLOURS[region % 6]}"/>'
                f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{node}</text>'
            )
        for tick in range(0, total + 1, 20):
            body += (
                f'<text x="{left + tick * scale:.1f}" y="{TOP + len(answer.servers.names) * ROW + 14}" '
                f'text-anchor="middle">{tick}</text>'
            )
    height = max(lowest + 30, HEIGHT * 0.5)
    style = (
        "text{font:12px system-ui,sans-serif;fill:#5b6776}.head{font-weight:600;fill:#1b2430}"
        "@media(prefers-color-scheme:dark){text{fill:#9aa7b6}.head{fill:#e8edf3}}"
    )
    target.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * 1.4:.0f} {height:.0f}" '
        f'role="img" aria-label="Blocks on nodes under two placements"><style>{style}</style>'
        f"{body}</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
