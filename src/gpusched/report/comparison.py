"""Policies side by side, on the terminal and as a page."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from math import inf, isfinite

import numpy as np
from rich.console import Console
from rich.table import Table

from gpusched.domain.plan import Plan
from gpusched.domain.slo import SloClasses
from gpusched.report.html import page
from gpusched.report.svg import Line, Rule, line_chart
from gpusched.report.tables import terminal
from gpusched.report.thin import over_time
from gpusched.report.words import milliseconds
from gpusched.sim.compare import FIGURES, LATENCIES, SHARES, Row, Variant
from gpusched.sim.verdict import (
    MATERIAL,
    Capacity,
    Verdict,
    capacities,
    cautions,
    material_difference,
    verdicts,
)
from gpusched.statistics import Difference

SHOWN = {
    "slo_attainment": "attainment",
    "goodput_rps": "goodput/s",
    "ttft_s.p99": "TTFT p99",
    "tpot_s.mean": "TPOT",
    "e2e_s.mean": "E2E",
}
"""Columns; latencies in milliseconds."""
MOST_NAMES = 4
"""Policies that a sentence names."""


def show_comparison(
    plan: Plan,
    rows: Sequence[Row],
    parted: Verdict | None = None,
    console: Console | None = None,
) -> None:
    """Print each variant's figures, its difference to the first one, and the verdict in words.

    ``parted`` is the verdict at the nearest load at which the variants part.
    """
    console = console or terminal()
    several = several_rates(rows)
    table = Table(title="latency in ms", title_justify="left")
    if several:
        table.add_column("rate", justify="right")
    table.add_column("policies")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    table.add_column("against the first", no_wrap=True)
    for row in rows:
        cells = [f"×{row.rate_scale:g}"] if several else []
        cells.append(label(row.variant, rows))
        cells += [_estimate(row, name) for name in SHOWN]
        cells.append(against_first(row, rows))
        table.add_row(*cells)
    console.print(table)
    console.print(footnote(plan.slo), style="dim", highlight=False)
    for line in verdict_lines(plan, rows, parted):
        console.print(line, highlight=False, markup=False)
    for line in caution_lines(rows):
        console.print(f"[yellow]warning[/yellow] {line}", highlight=False)


def footnote(slo: SloClasses) -> str:
    """Return how to read the table and the verdict."""
    return (
        "± 95 % confidence. Differences are paired over the same requests; better and worse are beyond "
        "chance after Holm's correction for all pairs at a rate. The verdict takes attainments within "
        f"{material_difference(slo) * 100:.2g} points, {MATERIAL:.0%} of the misses the SLO allows, "
        "for equal."
    )


def against_first(row: Row, rows: Sequence[Row]) -> str:
    """Return how a variant's attainment, or else its mean E2E, differs from the first one's."""
    if row.variant == rows[0].variant:
        return "baseline"
    for name in ("slo_attainment", "e2e_s.mean"):
        word = row.verdict(name)
        if word in ("better", "worse"):
            e = row.estimates[name]
            if name == "slo_attainment":
                return f"{word}: {_points(e.difference, e.difference_half_width)}"
            return f"{word}: {_seconds(e.difference, e.difference_half_width)} E2E"
    return "same" if row.verdict() == row.verdict("e2e_s.mean") == "same" else "within noise"


def verdict_lines(plan: Plan, rows: Sequence[Row], parted: Verdict | None = None) -> Iterator[str]:
    """Yield in words which policy is best for the SLO at each load, whether that is more than
    chance, and the largest load that each policy carries."""
    if len(rows[0].replications) == 1:
        yield "one replication tells no policy apart from chance; use --replications"
    elif len({row.variant for row in rows}) > 1:
        found = verdicts(rows, plan.slo)
        for _, group in groupby(found, key=_what):
            alike = list(group)
            yield f"{_loads(alike, rows)}{_judgement(alike, rows, plan.slo)}"
        if parted is not None:
            scale, start = parted.best.rate_scale, rows[0].rate_scale
            low, high = sorted((scale, start))
            yield (
                f"they part at ×{scale:g} ({parted.best.rate_rps:.3g} requests/s): "
                f"{_judgement([parted], rows, plan.slo)}; "
                f"look closer with --rate-scale {low:g}:{high:g}:{(high - low) / 5:.1g}"
            )
    if several_rates(rows):
        yield (
            f"largest rate that keeps {_target(plan.slo)} attainment, "
            "interpolated between the rates run:"
        )
        found_capacities = sorted(capacities(rows, plan.slo), key=lambda c: -c.rate_scale)
        for text, same in groupby(found_capacities, key=lambda c: _capacity(c, rows)):
            yield f"  {_and([label(c.variant, rows) for c in same])}: {text}"


def _what(verdict: Verdict) -> tuple[bool, frozenset[Variant]]:
    """What neighbouring loads must share to be told of together."""
    leading = frozenset(row.variant for row in (verdict.best, *verdict.equals))
    return verdict.apart, leading


def _loads(found: Sequence[Verdict], rows: Sequence[Row]) -> str:
    if not several_rates(rows):
        return ""
    return f"{_range([verdict.best.rate_scale for verdict in found])}: "


def _range(scales: Sequence[float]) -> str:
    first, last = scales[0], scales[-1]
    return f"×{first:g}" if len(scales) == 1 else f"×{first:g} to ×{last:g}"


def _judgement(found: Sequence[Verdict], rows: Sequence[Row], slo: SloClasses) -> str:
    """Say what verdicts at neighbouring loads have in common."""
    first = found[0]
    if not first.apart:
        return f"no policy is told apart ({_attainments(found)} attainment, {_target(slo)} asked)"
    leading = sorted(
        (first.best, *first.equals), key=lambda row: [r.variant for r in rows].index(row.variant)
    )
    names = _and([label(row.variant, rows) for row in leading])
    text = (
        f"best for the SLO is {names}"
        if len(leading) == 1
        else f"best for the SLO are {names}, not told apart"
    )
    text += f" ({_attainments(found, leading=True)})"
    baseline = rows[0].variant
    for_baseline = [_behind(verdict, baseline) for verdict in found]
    if None in for_baseline:
        runner_up = found[0].behind[0][0].variant
        return f"{text}; next {label(runner_up, rows)}, {_spans(found, runner_up)} behind"
    return f"{text}, {_spans(found, baseline)} ahead of {label(baseline, rows)}"


def _behind(verdict: Verdict, variant: Variant) -> Difference | None:
    return next((d for row, d in verdict.behind if row.variant == variant), None)


def _spans(found: Sequence[Verdict], variant: Variant) -> str:
    """Say how far a variant is behind the best at the first and the last of the loads."""
    gaps = [gap for verdict in found if (gap := _behind(verdict, variant)) is not None]
    ends = gaps if len(gaps) == 1 else [gaps[0], gaps[-1]]
    return (
        " to ".join(f"{-d.mean * 100:.2f} ± {_half(d.half_width * 100)}" for d in ends) + " points"
    )


def _attainments(found: Sequence[Verdict], *, leading: bool = False) -> str:
    rows = [
        row
        for verdict in found
        for row in ((verdict.best, *verdict.equals) if leading else verdict.rows)
    ]
    shares = [f"{row.estimates['slo_attainment'].mean:.2%}" for row in rows]
    low, high = min(shares, key=_number), max(shares, key=_number)
    return low if low == high else f"{low} to {high}"


def _number(share: str) -> float:
    return float(share.rstrip("%"))


def _capacity(capacity: Capacity, rows: Sequence[Row]) -> str:
    scales = sorted({row.rate_scale for row in rows})
    if capacity.outside == "above":
        return f"×{scales[-1]:g} or more"
    if capacity.outside == "below":
        return f"less than ×{scales[0]:g}"
    text = f"×{capacity.rate_scale:.3f}"
    if isfinite(capacity.half_width):
        text += f" ± {capacity.half_width:.3f}"
    text += f" ({capacity.rate_rps:.3g} requests/s)"
    if capacity.difference is not None:
        d = capacity.difference
        word = "" if d.told_apart else ", noise"
        text += f", {d.mean:+.3f} ± {_half(d.half_width, 3)} against the first{word}"
    return text


def _target(slo: SloClasses) -> str:
    targets = sorted({f"{bounds.attainment * 100:.4g}%" for bounds in slo.classes.values()})
    return targets[0] if len(targets) == 1 else "each class's"


def _and(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def caution_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what simulations warned of, each warning once, with the rates it was given at."""
    several = several_rates(rows)
    for text, scales in cautions(rows):
        yield f"{_range(scales)}: {text}" if several else text


def several_rates(rows: Sequence[Row]) -> bool:
    """Whether more than one rate was run."""
    return len({row.rate_scale for row in rows}) > 1


def render_comparison(plan: Plan, rows: Sequence[Row], parted: Verdict | None = None) -> str:
    """Return a self-contained page: verdicts, figures, curves of every variant."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in verdict_lines(plan, rows, parted))
    warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in caution_lines(rows))
    head = "".join(f"<th>{heading}</th>" for heading in SHOWN.values())
    body = "".join(
        f"<tr><th>{escape(label(row.variant, rows))}</th><td>×{row.rate_scale:g}</td>"
        + "".join(f"<td>{escape(_estimate(row, n))}</td>" for n in SHOWN)
        + f"<td>{escape(against_first(row, rows))}</td></tr>"
        for row in rows
    )
    charts = f'<section><h2>{escape(_curves_title(rows))}</h2><div class="charts">'
    charts += f"{''.join(_curves(plan, widest(rows), rows))}</div></section>"
    if several_rates(rows):
        charts = (
            f'<section><h2>Against the arrival rate</h2><div class="charts">'
            f"{''.join(_against_rate(plan, rows))}</div></section>" + charts
        )
    return page(
        "policies compared",
        f"<section><h1>Policies compared on {escape(plan.summary)}</h1>{lines}{warnings}"
        '<div class="scroll"><table><caption>latency in ms</caption><thead><tr><th>policies</th><th>rate</th>'
        f"{head}<th>against the first</th></tr></thead><tbody>{body}</tbody></table></div>"
        f"<p>{escape(footnote(plan.slo))}</p></section>{charts}",
    )


def widest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows at the rate where attainments are furthest apart."""
    found: dict[float, list[Row]] = {}
    for row in rows:
        found.setdefault(row.rate_scale, []).append(row)

    def spread(own: list[Row]) -> float:
        means = [row.estimates["slo_attainment"].mean for row in own]
        return max(means) - min(means)

    return max(found.values(), key=spread)


def _curves_title(rows: Sequence[Row]) -> str:
    chosen = widest(rows)[0]
    where = f" at ×{chosen.rate_scale:g}, where attainments are furthest apart"
    return f"Requests{where if several_rates(rows) else ''}"


def _curves(plan: Plan, chosen: Sequence[Row], rows: Sequence[Row]) -> Iterator[str]:
    for name in LATENCIES:
        limits = [getattr(bounds, f"{name}_s") for bounds in plan.slo.classes.values()]
        lines = []
        for row in chosen:
            values = row.curves.latencies_s[name]
            served = np.isfinite(values)
            lines.append(Line(label(row.variant, rows), values[served] * 1e3, SHARES[served]))
        yield line_chart(
            lines,
            title=f"{name.upper()}: share of requests within",
            x_label="milliseconds",
            y_label="share of requests",
            rules=[
                Rule(f"{name.upper()} ≤ {milliseconds(s)} ms", s * 1e3)
                for s in dict.fromkeys(limits)
                if s is not None
            ],
            log_x=True,
            y_top=1.0,
        )
    yield line_chart(
        [
            over_time(label(row.variant, rows), row.curves.series_s, row.curves.kv_use * 100)
            for row in chosen
        ],
        title="KV cache in use, first replication",
        x_label="seconds",
        y_label="% of blocks",
    )


def _against_rate(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    scales = np.array(sorted({row.rate_scale for row in rows}))
    targets = {bounds.attainment for bounds in plan.slo.classes.values()}
    for name in ("slo_attainment", "ttft_s.p99", "tpot_s.mean"):
        lines = []
        for variant in dict.fromkeys(row.variant for row in rows):
            own = {row.rate_scale: row.estimates[name] for row in rows if row.variant == variant}
            lines.append(
                Line(
                    label(variant, rows),
                    scales,
                    np.array([own[scale].mean for scale in scales]),
                    np.array([own[scale].half_width for scale in scales]),
                )
            )
        share = name == "slo_attainment"
        yield line_chart(
            lines,
            title=f"{FIGURES[name]}, with 95 % confidence",
            x_label="multiple of the workload's rate",
            y_label=FIGURES[name],
            rules=[Rule(f"asked: {t:.4g}", t, "y") for t in sorted(targets)] if share else (),
            y_top=1.0 if share else None,
        )


def label(variant: Variant, rows: Sequence[Row]) -> str:
    """Return the policies of a variant that are not the same in all."""
    variants = {row.variant for row in rows}
    parts = [
        short(getattr(variant, field))
        for field in ("batching", "routing", "admission")
        if len({getattr(other, field) for other in variants}) > 1
    ]
    return " + ".join(parts or [short(variant.batching)])


def short(policy: str) -> str:
    """Return a policy as tables show it: a function without its file, a predictor without the word."""
    return policy.rpartition(".py:")[2].replace("+predictor=", " ")


def _estimate(row: Row, name: str) -> str:
    e = row.estimates[name]
    if name == "slo_attainment":
        half = "" if e.half_width == inf else f" ± {e.half_width * 100:.2f}"
        return f"{e.mean:.2%}{half}"
    if not isfinite(e.mean):
        return "-"
    return milliseconds(e.mean) if "_s." in name else f"{e.mean:.4g}"


def _points(difference: float, half_width: float) -> str:
    return f"{difference * 100:+.2f} ± {_half(half_width * 100)} points"


def _seconds(difference: float, half_width: float) -> str:
    digits = 3 if abs(difference) < 0.1 else 2
    return f"{difference:+.{digits}f} ± {_half(half_width, digits)} s"


def _half(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}"
