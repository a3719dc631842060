"""A placement of layers on the terminal and as a page: the map of layers, flows, and the front."""

from html import escape

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpusched.domain.catalog import load_model
from gpusched.domain.plan import Certificate
from gpusched.planning.layers.planner import LayerAnswer
from gpusched.report.html import page
from gpusched.report.svg import Point, scatter_chart
from gpusched.report.tables import show_alternatives, show_pipelines, terminal
from gpusched.timing.machines import Machines, Placement

ROW, WIDE, GUTTER, TOP = 18, 560, 96, 26
LEAST_SHOWN = 0.02
"""Flows below this share of the whole are not drawn."""


def show_layers(answer: LayerAnswer, console: Console | None = None) -> None:
    """Print a plan of layers: the answer, who holds what, predicted figures, and the front."""
    console = console or terminal()
    plan = answer.plan
    assert plan.layers is not None
    lines = [headline(answer)]
    if plan.certificate is not None:
        lines.append(f"[bold]flow[/bold]    {certainty(plan.certificate)}")
    console.print(Panel("\n".join(lines), title="answer", title_align="left"))
    table = Table(title="layers", title_justify="left")
    for name in ("layers", "nodes"):
        table.add_column(name)
    stages: dict[tuple[int, int], list[str]] = {}
    for held in plan.layers.nodes:
        stages.setdefault((held.first, held.layers), []).append(held.node)
    for (first, count), nodes in stages.items():
        table.add_row(f"{first} to {first + count - 1}", ", ".join(nodes))
    console.print(table)
    show_pipelines(plan.predicted, console)
    if len(plan.pareto) > 1:
        show_alternatives(
            "flow against attainment and latency: placements no other beats", plan.pareto, console
        )
    for line in plan.warnings[len(plan.predicted["warnings"]) :]:
        console.print(f"[yellow]warning[/yellow] {line}")


def headline(answer: LayerAnswer) -> str:
    """Return the answer in one sentence."""
    plan = answer.plan
    placement = answer.placement
    used = placement.count > 0
    stages = len(np.unique(placement.first[used]))
    share = plan.predicted["slo_attainment"]
    return (
        f"{load_model(plan.model).name} on {int(used.sum())} of {len(used)} nodes in {stages} stages, "
        f"${plan.usd_per_hour:,.2f} an hour: {share:.2%} of requests meet the objectives, "
        f"{plan.predicted['output_tokens_per_s']:,.0f} output tokens/s."
    )


def certainty(certificate: Certificate) -> str:
    """Return the plan's flow, the largest found and the bound."""
    text = (
        f"{certificate.value:,.0f} tokens/s, limited by {', '.join(certificate.limits[:4])}"
        f"{' and more' if len(certificate.limits) > 4 else ''}"
    )
    largest = certificate.largest_found or certificate.value
    text += (
        f"; the largest found is {largest:,.0f}, and none exceeds {certificate.bound:,.0f} "
        f"(gap {max(certificate.bound - largest, 0) / max(largest, 1e-12):.1%})"
    )
    return (
        f"{text}; {certificate.candidates} placements, {certificate.simulated} simulations, "
        f"{certificate.seconds:.1f} s"
    )


def layers_page(answer: LayerAnswer) -> str:
    """Return a self-contained page of a plan of layers."""
    plan = answer.plan
    assert plan.layers is not None
    points = [
        Point(
            trial.depth,
            trial.candidate.tokens_per_s,
            f"{trial.candidate.name}, {trial.figures['slo_attainment']:.0%} meet the objectives",
            "chosen" if trial.candidate.placement is answer.placement else "",
        )
        for trial in answer.trials
    ]
    certificate = plan.certificate
    sections = [
        f"<section><h1>{escape(headline(answer))}</h1>"
        + (
            f"<p><strong>Flow:</strong> {escape(certainty(certificate))}.</p>"
            if certificate
            else ""
        )
        + "".join(f"<p class='warning'>{escape(line)}</p>" for line in plan.warnings)
        + "</section>",
        "<section><h2>Layers and flows</h2>"
        + placement_map(answer.machines, answer.placement, answer.flows)
        + "</section>",
        "<section><h2>Depth against flow</h2>"
        + scatter_chart(
            points, title="Placements tried", x_label="stages", y_label="flow, tokens/s"
        )
        + "</section>",
        "<section><h2>Assumptions</h2><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in plan.assumptions)
        + "</ul></section>",
    ]
    return page(f"{load_model(plan.model).name}: layers", "".join(sections))


def placement_map(machines: Machines, placement: Placement, flows: np.ndarray) -> str:
    """Return an SVG of the layers that each node holds, by region, and the flows between nodes."""
    n = len(machines.names)
    order = sorted(
        (i for i in range(n) if placement.count[i]),
        key=lambda i: (int(placement.first[i]), machines.regions[i], i),
    )
    row = {node: TOP + ROW * at for at, node in enumerate(order)}
    scale = WIDE / machines.layers
    regions = list(dict.fromkeys(machines.regions))
    height = TOP + ROW * len(order) + 40
    total = max(float(flows[n].sum()), 1e-12)
    parts = []
    for i in order:
        for j in order:
            share = float(flows[i, j]) / total
            if share < LEAST_SHOWN:
                continue
            x = GUTTER + scale * float(placement.first[i] + placement.count[i])
            parts.append(
                f'<line x1="{x:.1f}" y1="{row[i] + ROW / 2:.1f}" x2="{x:.1f}" '
                f'y2="{row[j] + ROW / 2:.1f}" stroke="var(--muted, #888)" '
                f'stroke-width="{0.5 + 3 * share:.2f}" stroke-opacity="0.6"><title>'
                f"{escape(machines.names[i])} to {escape(machines.names[j])}: "
                f"{float(flows[i, j]):,.0f} tokens/s</title></line>"
            )
    for i in order:
        x = GUTTER + scale * float(placement.first[i])
        width = scale * float(placement.count[i])
        used = float(flows[:, i].sum()) / total
        hue = regions.index(machines.regions[i]) * 137 % 360
        parts.append(
            f'<rect x="{x:.1f}" y="{row[i] + 2}" width="{max(width - 1, 2):.1f}" '
            f'height="{ROW - 4}" rx="3" fill="hsl({hue} 55% 50%)" fill-opacity="0.85"><title>'
            f"{escape(machines.names[i])}, {escape(machines.regions[i])}: layers "
            f"{int(placement.first[i])} to {int(placement.first[i] + placement.count[i]) - 1}, "
            f"{used:.0%} of the flow</title></rect>"
            f'<text x="{GUTTER - 8}" y="{row[i] + ROW - 5}" text-anchor="end" font-size="11" '
            f'fill="currentColor">{escape(machines.names[i])}</text>'
        )
    base = TOP + ROW * len(order) + 16
    for layer in range(0, machines.layers + 1, max(machines.layers // 8, 1)):
        x = GUTTER + scale * layer
        parts.append(
            f'<text x="{x:.1f}" y="{base}" text-anchor="middle" font-size="11" '
            f'fill="currentColor">{layer}</text>'
        )
    for at, region in enumerate(regions):
        hue = at * 137 % 360
        parts.append(
            f'<rect x="{GUTTER + 110 * at}" y="6" width="10" height="10" fill="hsl({hue} 55% 50%)"/>'
            f'<text x="{GUTTER + 110 * at + 14}" y="15" font-size="11" fill="currentColor">'
            f"{escape(region)}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {GUTTER + WIDE + 20} {height}" '
        f'role="img" aria-label="layers held by each node" font-family="system-ui, sans-serif">'
        f'{"".join(parts)}<text x="{GUTTER + WIDE / 2}" y="{base + 18}" text-anchor="middle" '
        f'font-size="11" fill="currentColor">layer</text></svg>'
    )
