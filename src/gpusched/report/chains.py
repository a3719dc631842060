"""Plans that place blocks: the answer on the terminal and as a page with charts."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpusched.domain.catalog import load_model
from gpusched.domain.plan import Plan
from gpusched.report.html import page
from gpusched.report.svg import Line, Span, line_chart, span_chart
from gpusched.report.tables import show_alternatives, show_metrics, terminal
from gpusched.report.thin import cumulative
from gpusched.report.words import figure_lines, latency_rows
from gpusched.sim.chains.metrics import caches_in_use
from gpusched.sim.chains.simulate import ChainResult
from gpusched.timing.chains import Placed

BINS = 200


def blocks_headline(plan: Plan) -> str:
    """Return the answer in one sentence."""
    assert plan.blocks is not None
    total = load_model(plan.model).layers
    text = (
        f"{total} blocks of {plan.model} over {len(plan.blocks.nodes)} nodes, each block on "
        f"{sum(n.layers for n in plan.blocks.nodes) / total:.1f} of them: {plan.gpus} GPUs at "
        f"${plan.usd_per_hour:,.2f} an hour"
    )
    if plan.predicted:
        text += f"; {plan.predicted['slo_attainment']:.2%} of requests meet the objectives"
    return text + "."


def blocks_certainty(plan: Plan) -> str:
    """Return how the placement was found and what no placement can beat."""
    c, blocks = plan.certificate, plan.blocks
    assert c is not None
    assert blocks is not None
    return (
        f"{c.candidates} candidates simulated, {c.seconds:.1f} s; with {blocks.design_concurrency} "
        f"requests at once a token takes {c.value * 1e3:.4g} ms on average, and no placement can do "
        f"it in less than {c.bound * 1e3:.4g} ms (gap {c.gap:.1%})"
    )


def show_blocks_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the answer, where blocks lie, predicted figures and rivals."""
    console = console or terminal()
    lines = [blocks_headline(plan)]
    if plan.binding_constraint:
        lines.append(f"[bold]binding[/bold]  {plan.binding_constraint}")
    if plan.certificate is not None:
        lines.append(f"[bold]search[/bold]   {blocks_certainty(plan)}")
    console.print(Panel("\n".join(lines), title="answer", title_align="left"))
    show_servers(plan.predicted["servers"], console)
    show_metrics(plan, {**plan.predicted, "warnings": plan.warnings}, console)
    if plan.runners_up:
        show_alternatives("PETALS and the runners-up on the same nodes", plan.runners_up, console)


def show_servers(servers: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the blocks and the load of every node."""
    table = Table(title="blocks", title_justify="left")
    for name in ("node", "region", "blocks", "visits", "computing", "cache mean", "peak"):
        table.add_column(name, justify="left" if name in ("node", "region") else "right")
    for s in servers:
        table.add_row(
            s["name"], s["region"], f"{s['first']}-{s['first'] + s['blocks'] - 1}",
            f"{s['visits']:,}", f"{s['computing_mean']:.2f}", f"{s['kv_utilization_mean']:.1%}",
            f"{s['kv_utilization_peak']:.1%}",
        )  # fmt: skip
    (console or terminal()).print(table)


def blocks_chart(plan: Plan, title: str = "Blocks on nodes") -> str:
    """Return the map of blocks over nodes, coloured by region."""
    assert plan.blocks is not None
    regions: list[str] = []
    spans = []
    for placed in plan.blocks.nodes:
        region = plan.cluster.nodes[plan.node_group(placed.node)].region
        if region not in regions:
            regions.append(region)
        label = f"{placed.node}: blocks {placed.first} to {placed.first + placed.layers - 1}"
        end = placed.first + placed.layers
        spans.append(Span(placed.node, placed.first, end, label, regions.index(region)))
    return span_chart(
        spans, end=load_model(plan.model).layers, title=title, x_label="block", groups=regions
    )


def waiting_chart(result: ChainResult, title: str = "Requests in flight and waiting") -> str:
    """Return requests in flight and those of them that wait for cache, over time."""
    ok = ~result.rejected
    begin_s = result.load.arrival_s[ok]
    served_s, end_s = begin_s + result.wait_s[ok], result.finish_s[ok]
    at = np.linspace(0.0, float(end_s.max(initial=1.0)), BINS)
    arrived, started, ended = (
        np.searchsorted(np.sort(x), at, side="right") for x in (begin_s, served_s, end_s)
    )
    return line_chart(
        [
            Line("in flight", at, (arrived - ended).astype(np.float64)),
            Line("waiting for cache", at, (arrived - started).astype(np.float64)),
        ],
        title=title, x_label="seconds", y_label="requests",
    )  # fmt: skip


def load_chart(plan: Plan, placed: Placed, result: ChainResult) -> str:
    """Return the share of cache in use over time on the busiest nodes."""
    names = plan.cluster.node_names
    busiest = np.argsort(-np.bincount(result.visit_server, minlength=len(names)), kind="stable")
    at = np.linspace(0.0, float(np.nanmax(result.finish_s)), BINS)
    lines, in_use = [], list(caches_in_use(result, len(names)))
    for j in [int(j) for j in busiest[:6] if placed.blocks[j]]:
        times, used = in_use[j]
        held = np.concatenate(([0.0], used))[np.searchsorted(times, at, side="right")]
        lines.append(Line(names[j], at, held / max(int(placed.cache_tokens[j]), 1)))
    return line_chart(
        lines, title="Share of cache in use, busiest nodes", x_label="seconds", y_label="share",
        y_top=1.0,
    )  # fmt: skip


def render_blocks_report(plan: Plan, placed: Placed, result: ChainResult) -> str:
    """Return a self-contained page: the answer, its charts, figures, rivals and assumptions."""
    figures = plan.predicted
    load = result.load
    steps = np.maximum(load.output_tokens - 1, 1)
    latency = line_chart(
        [
            cumulative("TTFT", result.first_token_s - load.arrival_s),
            cumulative("TPOT", (result.finish_s - result.first_token_s) / steps),
            cumulative("E2E", result.finish_s - load.arrival_s),
        ],
        title="Share of requests within", x_label="seconds", y_label="share", log_x=True, y_top=1.0,
    )  # fmt: skip
    charts = blocks_chart(plan) + waiting_chart(result) + load_chart(plan, placed, result) + latency
    head = "".join(f"<th>{n}</th>" for n in ("ms", "mean", "p50", "p90", "p95", "p99", "max"))
    rows = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{v}</td>' for v in values)}</tr>"
        for name, values in latency_rows(figures)
    )
    facts = "".join(
        f"<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in figure_lines(plan, figures)
    )
    rivals = "".join(
        f"<tr><td class='words'>{escape(a.summary)}</td><td>{a.attainment:.2%}</td>"
        f"<td>{a.goodput_rps:.3g}</td></tr>"
        for a in plan.runners_up
    )
    notes = "".join(f"<li class='warning'>{escape(w)}</li>" for w in plan.warnings)
    notes += "".join(f"<li>{escape(a)}</li>" for a in plan.assumptions)
    sure = f"<p>{escape(blocks_certainty(plan))}.</p>" if plan.certificate is not None else ""
    table = "<div class='scroll'><table>{}</table></div>"
    others = ""
    if rivals:
        named = "<thead><tr><th>deployment</th><th>attainment</th><th>goodput/s</th></tr></thead>"
        others = (
            f"<section><h2>PETALS and the runners-up</h2>{table.format(named + rivals)}</section>"
        )
    return page(
        f"{load_model(plan.model).name}: blocks over nodes",
        f"<section><h1>{escape(blocks_headline(plan))}</h1>{sure}"
        f"<div class='charts'>{charts}</div></section>"
        f"<section><h2>Latency</h2>{table.format(f'<thead><tr>{head}</tr></thead>{rows}')}</section>"
        f"{others}<section><h2>Figures</h2>{table.format(facts)}</section>"
        f"<section><h2>What was assumed</h2><ul>{notes}</ul></section>",
    )
