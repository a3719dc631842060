"""Cache sizes over time: the answer on the terminal and as a page with charts."""

from html import escape

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpusched.planning.cache_size.answer import CacheAnswer, Outcome, saving
from gpusched.report.html import page
from gpusched.report.svg import Line, line_chart
from gpusched.report.tables import terminal

COLUMNS = (
    "", "mean TB", "g CO2e", "power", "flash", "other", "in time", "hit ratio", "saved",
)  # fmt: skip


def headline(answer: CacheAnswer) -> str:
    """Return the answer in one sentence."""
    ours, full = answer.adaptive, answer.rivals[-1]
    sizes = ours.hours.size_tb
    low, high = sizes.min(), sizes.max()
    span = f"{low:g} TB" if low == high else f"{low:g} to {high:g} TB"
    own = answer.server.cache.ssd.kg_per_tb
    best = next(row.best_fixed for row in answer.sensitivity if row.ssd_kg_per_tb == own)
    return (
        f"hold {span} of flash ({sizes.mean():.3g} on average): {ours.total_g / 1e3:.3g} kg CO2e in "
        f"{len(sizes)} hours, {_less(saving(ours, full))} {full.name} ({full.total_g / 1e3:.3g} kg) and "
        f"{_less(saving(ours, best))} the best fixed size in hindsight, {best.name}; "
        f"{ours.hours.share_in_time:.2%} of the requests in time, {answer.asked:.2%} asked"
    )


def _less(share: float) -> str:
    return f"{abs(share):.1%} {'less' if share >= 0 else 'more'} than"


def show_cache(answer: CacheAnswer, console: Console | None = None) -> None:
    """Print the answer, the hours, the rivals and the sensitivity."""
    console = console or terminal()
    console.print(Panel(headline(answer), title="answer", title_align="left"))
    table = Table(title="hours (UTC where the intensity is)", title_justify="left")
    for name in ("hour", "TB", "g/kWh", "forecast", "req/s", "forecast", "in time", "watts"):
        table.add_column(name, justify="right")
    hours, demand = answer.adaptive.hours, answer.demand
    for h in range(len(hours.size_tb)):
        at = demand.history + h
        table.add_row(
            str(h), f"{hours.size_tb[h]:g}", f"{demand.g_per_kwh[at]:.0f}",
            f"{answer.rolled.forecast_g_per_kwh[h]:.0f}", f"{demand.requests_per_s[at]:.3g}",
            f"{answer.rolled.forecast_rps[h]:.3g}", f"{hours.attainment[h]:.1%}",
            f"{hours.power_w[h]:.0f}",
        )  # fmt: skip
    console.print(table)
    rivals = Table(
        title=f"beside fixed sizes, at {answer.server.cache.ssd.kg_per_tb:g} kg/TB",
        title_justify="left",
    )
    for name in COLUMNS:
        rivals.add_column(name, justify="right" if name else "left")
    for outcome in (answer.adaptive, *answer.rivals):
        rivals.add_row(*_row(outcome, answer.adaptive))
    console.print(rivals)
    sensitivity = Table(title="if flash embodied more or less carbon", title_justify="left")
    for name, *_ in sensitivity_rows(answer)[0]:
        sensitivity.add_column(name, justify="right")
    for row in sensitivity_rows(answer):
        sensitivity.add_row(*(value for _, value in row))
    console.print(sensitivity)
    for text in answer.warnings:
        console.print(f"[yellow]warning[/yellow]  {text}")
    for text in answer.assumptions:
        console.print(f"[dim]assumed[/dim]  {text}", highlight=False)


def _row(outcome: Outcome, ours: Outcome) -> tuple[str, ...]:
    less = "" if outcome is ours else f"{saving(ours, outcome):+.1%}"
    return (
        outcome.name, f"{outcome.hours.size_tb.mean():.3g}", f"{outcome.total_g:,.0f}",
        f"{outcome.operational_g:,.0f}", f"{outcome.ssd_g:,.0f}", f"{outcome.other_g:,.0f}",
        f"{outcome.hours.share_in_time:.1%}", f"{outcome.hours.hit_ratio:.1%}", less,
    )  # fmt: skip


def sensitivity_rows(answer: CacheAnswer) -> list[list[tuple[str, str]]]:
    """Return columns and values of the table of embodied carbon."""
    return [
        [
            ("kg/TB", f"{row.ssd_kg_per_tb:g}"),
            ("mean TB", f"{row.adaptive.hours.size_tb.mean():.3g}"),
            ("adaptive, g", f"{row.adaptive.total_g:,.0f}"),
            ("largest, g", f"{row.full.total_g:,.0f}"),
            ("saved", f"{saving(row.adaptive, row.full):.1%}"),
            ("no cache, g", f"{row.none.total_g:,.0f}"),
            ("saved over none", f"{saving(row.adaptive, row.none):.1%}"),
            ("best fixed", f"{row.best_fixed.name}: {row.best_fixed.total_g:,.0f} g"),
            ("in time", f"{row.adaptive.hours.share_in_time:.1%}"),
        ]
        for row in answer.sensitivity
    ]


def day_chart(answer: CacheAnswer) -> str:
    """Return size, carbon intensity and load over the hours, each as a share of its largest."""
    hours = np.arange(len(answer.adaptive.hours.size_tb), dtype=np.float64)
    counted = slice(answer.demand.history, None)
    series = (
        ("cache", answer.adaptive.hours.size_tb, answer.tables.sizes_tb[-1], "TB"),
        ("intensity", answer.demand.g_per_kwh[counted], None, "g/kWh"),
        ("load", answer.demand.requests_per_s[counted], None, "req/s"),
    )
    lines = []
    for name, values, most, unit in series:
        top = float(values.max()) if most is None else float(most)
        lines.append(Line(f"{name} / {top:.3g} {unit}", hours, values / max(top, 1e-12)))
    return line_chart(
        lines, title="Cache size against carbon intensity and load", x_label="hour",
        y_label="share of the largest", y_top=1.05,
    )  # fmt: skip


def sensitivity_chart(answer: CacheAnswer) -> str:
    """Return what the adaptive size saves against embodied carbon of flash."""
    kg = np.array([row.ssd_kg_per_tb for row in answer.sensitivity])
    rivals = (("largest", "full"), ("no cache", "none"), ("best fixed", "best_fixed"))
    lines = [
        Line(
            f"over {name}", kg,
            100 * np.array([saving(r.adaptive, getattr(r, field)) for r in answer.sensitivity]),
        )
        for name, field in rivals
    ]  # fmt: skip
    low = min(0.0, *(float(line.y.min()) for line in lines))
    return line_chart(
        lines, title="Carbon saved by the adaptive size", x_label="embodied carbon of flash, kg/TB",
        y_label="% saved", y_low=low, log_x=True,
    )  # fmt: skip


def render_cache(answer: CacheAnswer) -> str:
    """Return a self-contained page: the answer, charts, rivals, sensitivity and assumptions."""
    table = "<div class='scroll'><table>{}</table></div>"
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(v)}</td>' for v in values)}</tr>"
        for name, *values in (_row(o, answer.adaptive) for o in (answer.adaptive, *answer.rivals))
    )
    found = sensitivity_rows(answer)
    titles = "".join(f"<th>{escape(name)}</th>" for name, _ in found[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for _, value in row) + "</tr>" for row in found
    )
    notes = "".join(f"<li class='warning'>{escape(text)}</li>" for text in answer.warnings)
    notes += "".join(f"<li>{escape(text)}</li>" for text in answer.assumptions)
    return page(
        "Cache sizes for carbon",
        f"<section><h1>{escape(headline(answer))}</h1>"
        f"<div class='charts'>{day_chart(answer)}{sensitivity_chart(answer)}</div></section>"
        f"<section><h2>Beside fixed sizes</h2>{table.format(head + rows)}</section>"
        f"<section><h2>If flash embodied more or less carbon</h2>{table.format(titles + lines)}"
        f"</section><section><h2>What was assumed</h2><ul>{notes}</ul></section>",
    )
