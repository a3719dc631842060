"""One self-contained HTML page of a plan and the simulation it rests on; works offline."""

from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from gpusched.domain.catalog import load_model
from gpusched.domain.plan import Alternative, Plan
from gpusched.report.svg import Line, Point, Rule, line_chart, scatter_chart
from gpusched.report.thin import cumulative, over_time
from gpusched.report.words import certainty, figure_lines, headline, latency_rows
from gpusched.sim.result import SimulationResult


def style_sheet() -> str:
    """Return the style sheet."""
    return _file("report.css")


def render_report(plan: Plan, result: SimulationResult) -> str:
    """Return the page: the answer first, then its evidence, its rivals and its assumptions."""
    sections = [
        _answer(plan),
        _latencies(plan, result),
        _over_time(result),
        _alternatives(plan),
        _footprint(plan),
        _notes(plan),
        _again(plan),
    ]
    return page(f"{load_model(plan.model).name}: deployment plan", "".join(sections))


def page(title: str, body: str, head: str = "") -> str:
    """Return a self-contained page that follows light and dark, of sections in HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style_sheet()}</style>{head}</head><body>"
        '<header><span class="brand">gpusched</span>'
        '<button id="theme" type="button" aria-label="Switch between light and dark">◐</button>'
        f"</header><main>{body}</main><script>{_file('report.js')}</script>"
        "</body></html>"
    )


def _answer(plan: Plan) -> str:
    figures = plan.predicted
    certificate = plan.certificate
    tiles = [
        ("GPUs", f"{plan.gpus}"),
        ("per hour", f"${plan.usd_per_hour:,.2f}"),
        ("SLO attainment", f"{figures['slo_attainment']:.2%}"),
        ("goodput", f"{figures['goodput_rps']:.3g} req/s"),
        ("TTFT p99", _ms(figures["ttft_s"]["p99"])),
        ("TPOT p99", _ms(figures["tpot_s"]["p99"])),
    ]
    cells = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in tiles)
    lines = ""
    if plan.binding_constraint:
        lines += f"<p><strong>What binds:</strong> {escape(plan.binding_constraint)}.</p>"
    if certificate is not None:
        lines += f"<p><strong>How sure:</strong> {escape(certainty(certificate))}.</p>"
    slo = "".join(
        f"<li>{'' if plan.slo.only else f'{escape(name)}: '}{escape(str(c))}</li>"
        for name, c in plan.slo.classes.items()
    )
    return (
        f"<section><h1>{escape(headline(plan))}</h1>"
        f'<p class="question">{escape(plan.model)} in {escape(plan.weights_dtype)}; asked:</p>'
        f'<ul class="slo">{slo}</ul><div class="tiles">{cells}</div>{lines}</section>'
    )


def _latencies(plan: Plan, result: SimulationResult) -> str:
    charts = ""
    for bound, values in (("ttft", result.ttft_s), ("tpot", result.tpot_s), ("e2e", result.e2e_s)):
        rows = result.output_tokens > 1 if bound == "tpot" else slice(None)
        rules = [
            Rule(
                f"{bound.upper()} ≤ {_ms(limit)}" + ("" if plan.slo.only else f" {name}"),
                limit * 1e3,
            )
            for name, slo in plan.slo.classes.items()
            if (limit := getattr(slo, f"{bound}_s")) is not None
        ]
        charts += line_chart(
            [cumulative(bound.upper(), values[rows] * 1e3)],
            title=f"{bound.upper()}: share of requests within",
            x_label="milliseconds",
            y_label="share of requests",
            rules=rules,
            log_x=True,
            y_top=1.0,
        )
    edges, counts = result.gaps.cumulative()
    charts += line_chart(
        [Line("ITL", edges * 1e3, counts)],
        title="ITL: share of gaps between tokens within",
        x_label="milliseconds",
        y_label="share of gaps",
        log_x=True,
        y_top=1.0,
    )
    head = "".join(f"<th>{n}</th>" for n in ("", "mean", "p50", "p90", "p95", "p99", "max"))
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{v}</td>' for v in values)}</tr>"
        for name, values in latency_rows(plan.predicted)
    )
    return (
        f'<section><h2>Latency</h2><div class="charts">{charts}</div>'
        f'<div class="scroll"><table><caption>milliseconds</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _over_time(result: SimulationResult) -> str:
    load = result.in_system()
    requests = line_chart(
        [over_time(name, result.series_s, load[name]) for name in ("running", "waiting")],
        title="requests in the system",
        x_label="seconds",
        y_label="requests",
    )
    cache = line_chart(
        [
            over_time(use.name, result.series_s, series * 100)
            for use, series in zip(result.pools, result.kv_use, strict=True)
        ],
        title="KV cache in use",
        x_label="seconds",
        y_label="% of blocks",
    )
    return f'<section><h2>Load over time</h2><div class="charts">{requests}{cache}</div></section>'


def _alternatives(plan: Plan) -> str:
    if not plan.pareto and not plan.runners_up:
        return ""
    on_front = {row.summary for row in plan.pareto}
    others = [row for row in plan.runners_up if row.summary not in on_front]
    points = [
        Point(
            row.usd_per_hour,
            row.attainment * 100,
            f"{row.summary}: ${row.usd_per_hour:,.2f}/h, {row.attainment:.2%}",
            "chosen" if row.chosen else "front" if row in plan.pareto else "other",
        )
        for row in [*others, *plan.pareto]
    ]
    asked = max(slo.attainment for slo in plan.slo.classes.values())
    lowest = min((p.y for p in points), default=0.0)
    chart = scatter_chart(
        points,
        title="price against attainment",
        x_label="USD per hour",
        y_label="% of requests within objectives",
        rules=[Rule(f"asked: {asked:.4g}", asked * 100, "y")],
        y_range=(max(0.0, 10 * np.floor(lowest / 10 - 0.5)), 102.0),
    )
    legend = (
        '<p class="marks"><span class="dot chosen"></span>chosen '
        '<span class="dot front"></span>no other beats it <span class="dot other"></span>runner-up</p>'
    )
    return (
        f"<section><h2>What else was possible</h2>{chart}{legend}"
        + _rows("Pareto front", plan.pareto)
        + _rows("Runners-up", plan.runners_up)
        + "</section>"
    )


def _rows(title: str, rows: Sequence[Alternative]) -> str:
    if not rows:
        return ""
    names = ("deployment", "GPUs", "$/h", "kg CO2e/h", "attainment", "goodput/s", "")
    head = "".join(f"<th>{n}</th>" for n in names)
    body = "".join(
        f"<tr{' class=chosen' if row.chosen else ''}><th>{escape(row.summary)}</th><td>{row.gpus}</td>"
        f"<td>{row.usd_per_hour:.2f}</td><td>{row.kg_per_hour:.3g}</td><td>{row.attainment:.2%}</td>"
        f"<td>{row.goodput_rps:.3g}</td>"
        f"<td>{'chosen' if row.chosen else escape('misses ' + row.binding) if row.binding else ''}</td></tr>"
        for row in rows
    )
    return (
        f'<h3>{title}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _footprint(plan: Plan) -> str:
    figures = plan.predicted
    parts = (
        ("operational", figures["carbon_operational_kg"]),
        ("embodied", figures["carbon_embodied_kg"]),
    )
    total = max(sum(kg for _, kg in parts), 1e-12)
    bar = "".join(
        f'<i class="c{i}" style="width:{kg / total:.2%}" title="{name}: {kg:.3g} kg"></i>'
        for i, (name, kg) in enumerate(parts)
    )
    keys = "".join(
        f'<span class="key"><i class="c{i}"></i>{name} {kg:.3g} kg</span>'
        for i, (name, kg) in enumerate(parts)
    )
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in figure_lines(plan, figures)
    )
    return (
        f'<section><h2>Cost and carbon</h2><div class="bar" role="img" aria-label="carbon">{bar}</div>'
        f'<div class="legend">{keys}</div><div class="scroll"><table class="facts"><tbody>{lines}'
        "</tbody></table></div></section>"
    )


def _notes(plan: Plan) -> str:
    warnings = "".join(f'<li class="warning">{escape(line)}</li>' for line in plan.warnings)
    lines = "".join(f"<li>{escape(line)}</li>" for line in plan.assumptions)
    if not warnings and not lines:
        return ""
    return f"<section><h2>What was assumed</h2><ul>{warnings}{lines}</ul></section>"


def _again(plan: Plan) -> str:
    if plan.provenance is None:
        return ""
    p = plan.provenance
    inputs = "".join(
        f"<li>{escape(name)} <code>sha256 {digest[:16]}…</code></li>"
        for name, digest in p.inputs.items()
    )
    return (
        f"<section><h2>Again</h2><p><code>gpusched plan spec.yaml --seed {p.seed}</code>, "
        f"version {escape(p.version)}.</p><ul>{inputs}</ul></section>"
    )


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.4g} ms" if seconds < 10 else f"{seconds:.4g} s"


def _file(name: str) -> str:
    return resources.files("gpusched.report").joinpath(name).read_text("utf-8")
