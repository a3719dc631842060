"""Policies side by side, on the terminal and as a page."""

from collections.abc import Sequence
from html import escape

import numpy as np
from rich.console import Console
from rich.table import Table

from gpusched.domain.plan import Plan
from gpusched.report.html import style_sheet
from gpusched.report.svg import Line, line_chart
from gpusched.report.tables import terminal
from gpusched.report.words import milliseconds
from gpusched.sim.compare import FIGURES, Row, Variant

SHOWN = {
    "slo_attainment": "attainment",
    "goodput_rps": "goodput/s",
    "ttft_s.p99": "TTFT p99, ms",
    "tpot_s.mean": "TPOT, ms",
    "e2e_s.mean": "E2E, ms",
}


def show_comparison(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print each variant's figures, its difference to the first one, and the verdict."""
    console = console or terminal()
    several_rates = len({row.rate_scale for row in rows}) > 1
    table = Table()
    if several_rates:
        table.add_column("rate", justify="right")
    table.add_column("policies")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    table.add_column("against the first")
    for row in rows:
        cells = [f"×{row.rate_scale:g}"] if several_rates else []
        cells.append(label(row.variant, rows))
        cells += [_estimate(row, name) for name in SHOWN]
        cells.append(verdict(row, rows))
        table.add_row(*cells)
    console.print(table)
    console.print(
        "± 95 % confidence; differences are paired over the same requests, others are means",
        style="dim",
    )


def verdict(row: Row, rows: Sequence[Row]) -> str:
    """Return how a variant's attainment, or else its mean E2E, differs from the first one's."""
    if row.variant == rows[0].variant:
        return "baseline"
    for name in ("slo_attainment", "e2e_s.mean"):
        word = row.verdict(name)
        if word in ("better", "worse"):
            e = row.estimates[name]
            unit = 100.0 if name == "slo_attainment" else 1.0
            sign = " points" if name == "slo_attainment" else " s E2E"
            return (
                f"{word}: {e.difference * unit:+.2f} ± {e.difference_half_width * unit:.2f}{sign}"
            )
    return "same" if row.verdict() == row.verdict("e2e_s.mean") == "same" else "within noise"


def render_comparison(plan: Plan, rows: Sequence[Row]) -> str:
    """Return a self-contained page: verdicts, attainment against rate where several were run."""
    head = "".join(f"<th>{heading}</th>" for heading in SHOWN.values())
    body = "".join(
        f"<tr><th>{escape(label(row.variant, rows))}</th><td>×{row.rate_scale:g}</td>"
        + "".join(f"<td>{escape(_estimate(row, n))}</td>" for n in SHOWN)
        + f"<td>{escape(verdict(row, rows))}</td></tr>"
        for row in rows
    )
    charts = ""
    scales = sorted({row.rate_scale for row in rows})
    if len(scales) > 1:
        for name in ("slo_attainment", "ttft_s.p99", "tpot_s.mean"):
            lines = [
                Line(
                    label(variant, rows),
                    np.array(scales),
                    np.array([_mean(rows, variant, s, name) for s in scales]),
                )
                for variant in dict.fromkeys(row.variant for row in rows)
            ]
            charts += line_chart(
                lines,
                title=f"{FIGURES[name]} against the arrival rate",
                x_label="multiple of the workload's rate",
                y_label=FIGURES[name],
                y_top=1.0 if name == "slo_attainment" else None,
            )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>policies compared</title><style>{style_sheet()}</style></head><body><main><section>"
        f"<h1>Policies compared on {escape(plan.summary)}</h1>"
        f'<div class="scroll"><table><thead><tr><th>policies</th><th>rate</th>{head}<th>against the first'
        f"</th></tr></thead><tbody>{body}</tbody></table></div>"
        "<p>± 95 % confidence; differences are paired over the same requests.</p>"
        f'<div class="charts">{charts}</div></section></main></body></html>'
    )


def _mean(rows: Sequence[Row], variant: object, scale: float, name: str) -> float:
    return next(
        r.estimates[name].mean for r in rows if r.variant == variant and r.rate_scale == scale
    )


def label(variant: Variant, rows: Sequence[Row]) -> str:
    """Return the policies of a variant that are not the same in all."""
    batchings = {row.variant.batching for row in rows}
    routings = {row.variant.routing for row in rows}
    if len(batchings) == 1 and len(routings) > 1:
        return variant.routing
    return variant.batching if len(routings) == 1 else str(variant)


def _estimate(row: Row, name: str) -> str:
    e = row.estimates[name]
    if name == "slo_attainment":
        half = "" if e.half_width == float("inf") else f" ± {e.half_width * 100:.2f}"
        return f"{e.mean:.2%}{half}"
    return milliseconds(e.mean) if "_s." in name else f"{e.mean:.4g}"
