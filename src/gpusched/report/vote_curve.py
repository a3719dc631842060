"""A vote's calibration as a table and as a page with its curve."""

from collections.abc import Sequence
from html import escape
from math import isfinite

import numpy as np
from rich.console import Console
from rich.table import Table

from gpusched.report.html import page
from gpusched.report.svg import Line, Rule, line_chart
from gpusched.report.tables import terminal
from gpusched.sampling.calibration import Calibration, Point

HEADINGS = ("rule", "accuracy", "samples", "tokens", "lost at most")


def advice(found: Calibration) -> str:
    """Return the recommendation in a sentence."""
    point, full = found.recommended, found.full
    if point is None or point.threshold is None:
        return (
            f"No threshold tried stays within the tolerance of {full.samples:.0f} samples; "
            "try larger ones or more trials."
        )
    saved = f"{full.samples / point.samples:.1f} times fewer samples"
    if isfinite(point.tokens) and point.tokens > 0:
        saved += f" and {full.tokens / point.tokens:.1f} times fewer tokens"
    return (
        f"Use B = {point.threshold:g}: {point.accuracy:.1%} with {point.samples:.1f} samples a "
        f"prompt, against {full.accuracy:.1%} with {full.samples:.0f}; {saved}."
    )


def show_calibration(found: Calibration, console: Console | None = None) -> None:
    """Print the curve and the recommendation."""
    console = console or terminal()
    kind = "right" if found.has_gold else "agreement with the log's most frequent answer"
    table = Table(title=f"{found.prompts} prompts; accuracy: {kind}", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for point in found.points:
        style = "bold" if point is found.recommended else ""
        table.add_row(*_cells(point), style=style)
    console.print(table)
    console.print(advice(found), highlight=False)


def render_calibration(found: Calibration, origin: str) -> str:
    """Return the page: recommendation, curves against samples and tokens, table."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in map(_cells, found.points)
    )
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    body = (
        f"<section><h1>{escape(advice(found))}</h1><p class='question'>{escape(origin)}, "
        f"{found.prompts} prompts</p><div class='charts'>{''.join(charts(found))}</div>"
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        "</div></section>"
    )
    return page("How many samples a vote needs", body)


def charts(found: Calibration) -> Sequence[str]:
    """Return accuracy against samples and, where the log has them, against tokens."""
    axes = [("samples", "samples a prompt")]
    if all(isfinite(point.tokens) for point in found.points):
        axes.append(("tokens", "completion tokens a prompt"))
    low = min(point.accuracy for point in found.points)
    top = max(point.accuracy for point in found.points)
    drawn = []
    for key, label in axes:
        lines = []
        for name, kind in (("Bayes factor", "bayes factor"), ("fixed number", "fixed")):
            points = sorted(
                (p for p in found.points if p.kind == kind), key=lambda p: getattr(p, key)
            )
            lines.append(
                Line(
                    name,
                    np.array([getattr(p, key) for p in points]),
                    np.array([100 * p.accuracy for p in points]),
                    np.array([196 * p.standard_error for p in points]),
                )
            )
        chosen = found.recommended
        rules = (
            [Rule(f"B = {chosen.threshold:g}", getattr(chosen, key))] if chosen is not None else []
        )
        drawn.append(
            line_chart(
                lines, title=f"Accuracy against {label}", x_label=label, y_label="accuracy, %",
                log_x=True, rules=rules, y_low=max(100 * low - 2, 0.0), y_top=100 * top + 1,
            )
        )  # fmt: skip
    return drawn


def _cells(point: Point) -> tuple[str, ...]:
    tokens = f"{point.tokens:,.0f}" if isfinite(point.tokens) else "-"
    error = f" ± {point.standard_error:.1%}" if isfinite(point.standard_error) else ""
    lost = f"{point.lost:.1%}" if isfinite(point.lost) else "-"
    return (point.name, f"{point.accuracy:.1%}{error}", f"{point.samples:.1f}", tokens, lost)
