"""Charts as SVG, coloured by CSS variables so that they follow light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44


@dataclass(frozen=True)
class Line:
    """A curve; ``x`` and ``y`` of shape (points,)."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    half_width: NDArray[np.float64] | None = None
    """Of a band around the curve, shape (points,)."""


@dataclass(frozen=True)
class Rule:
    """A straight line across the chart at a value of x or y."""

    label: str
    at: float
    axis: str = "x"


@dataclass(frozen=True)
class Point:
    """A mark of a scatter chart."""

    x: float
    y: float
    label: str
    style: str = ""


@dataclass(frozen=True)
class Span:
    """A range on a row of a span chart."""

    row: str
    start: float
    end: float
    label: str
    group: int = 0
    """Which colour."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, by logarithm where asked."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value, held inside the chart."""
        low, high, value = (
            (log10(self.low), log10(self.high), log10(max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values to label."""
        if self.log:
            low, high = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
            steps = (1, 2, 5) if high - low < 3 else (1,)
            values = [s * 10.0**e for e in range(low - 1, high + 1) for s in steps]
            return [v for v in values if self.low <= v <= self.high]
        span = (self.high - self.low) or 1.0
        step = 10 ** floor(log10(span / 4))
        step *= next((m for m in (1, 2, 5, 10) if span / (step * m) <= 5), 10)
        first = ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, floor(self.high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    rules: Sequence[Rule] = (),
    log_x: bool = False,
    y_low: float = 0.0,
    y_top: float | None = None,
) -> str:
    """Return curves with a legend, straight rules and values under the pointer."""
    xs = np.concatenate([line.x for line in lines] + [[r.at for r in rules if r.axis == "x"]])
    ys = np.concatenate([line.y for line in lines] + [[r.at for r in rules if r.axis == "y"]])
    xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(ys)]
    if log_x:
        xs = xs[xs > 0]
    low, high = (float(xs.min()), float(xs.max())) if len(xs) else (0.0, 1.0)
    if high <= low:
        low, high = (low * 0.9, low * 1.1 + 1e-9) if low else (0.0, 1.0)
    if log_x:
        low = max(low, high * 1e-5)
    x = Scale(low, high, LEFT, WIDTH - RIGHT, log_x)
    top = y_top if y_top is not None else (float(ys.max()) * 1.05 if len(ys) else 1.0) or 1.0
    y = Scale(y_low, top, HEIGHT - BOTTOM, TOP)
    body = _axes(x, y, x_label, y_label)
    for i, line in enumerate(lines):
        if line.half_width is not None and np.isfinite(line.half_width).all():
            body += _band(line.x, line.y - line.half_width, line.y + line.half_width, x, y, i)
    for i, line in enumerate(lines):
        points = " ".join(
            f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.y, strict=True) if np.isfinite(a)
        )
        body += (
            f'<polyline class="line c{i % 6}" data-name="{escape(line.name)}" points="{points}"/>'
        )
    for rule in rules:
        body += _rule(rule, x, y)
    legend = "".join(
        f'<span class="key"><i class="c{i % 6}"></i>{escape(line.name)}</span>'
        for i, line in enumerate(lines)
    )
    domain = f'data-x="{x.low:.6g},{x.high:.6g},{int(log_x)}" data-y="{y.low:.6g},{y.high:.6g}"'
    return _figure(title, body, legend, domain)


def _band(
    at: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64],
    x: Scale, y: Scale, index: int,
) -> str:  # fmt: skip
    there = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(at, high, strict=True)]
    back = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(at[::-1], low[::-1], strict=True)]
    return f'<polygon class="band c{index % 6}" points="{" ".join(there + back)}"/>'


def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    rules: Sequence[Rule] = (),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Return marks, each with its label as a tooltip; styles are CSS classes."""
    values = [p.x for p in points]
    x = Scale(0.0, max(values, default=1.0) * 1.08 or 1.0, LEFT, WIDTH - RIGHT)
    low, high = y_range or (0.0, max((p.y for p in points), default=1.0) * 1.05 or 1.0)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    body = _axes(x, y, x_label, y_label)
    for rule in rules:
        body += _rule(rule, x, y)
    for point in points:
        radius = 8 if "chosen" in point.style else 5
        body += (
            f'<circle class="mark {escape(point.style)}" cx="{x(point.x):.1f}" cy="{y(point.y):.1f}" '
            f'r="{radius}" tabindex="0"><title>{escape(point.label)}</title></circle>'
        )
    return _figure(title, body, "", "")


def span_chart(
    spans: Sequence[Span],
    *,
    end: float,
    title: str,
    x_label: str,
    groups: Sequence[str] = (),
) -> str:
    """Return ranges between 0 and ``end``, one row a name, coloured by group."""
    rows = list(dict.fromkeys(span.row for span in spans))
    left = LEFT + 60
    x = Scale(0.0, end, left, WIDTH - RIGHT)
    height = min((HEIGHT - BOTTOM - TOP) / max(len(rows), 1), 24.0)
    body = ""
    for tick in x.ticks():
        at = x(tick)
        body += (
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        body += (
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
            f"{_short(tick)}</text>"
        )
    for span in spans:
        top = TOP + rows.index(span.row) * height
        body += (
            f'<rect class="span c{span.group % 6}" x="{x(span.start):.1f}" y="{top + 1:.1f}" '
            f'width="{x(span.end) - x(span.start):.1f}" height="{max(height - 2, 0.8):.1f}" '
            f'tabindex="0"><title>{escape(span.label)}</title></rect>'
        )
    if height >= 9:
        for number, row in enumerate(rows):
            middle = TOP + (number + 0.5) * height + 4
            body += (
                f'<text class="tick" x="{left - 6}" y="{middle:.1f}" text-anchor="end">'
                f"{escape(row)}</text>"
            )
    body += (
        f'<text class="axis" x="{(left + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    legend = "".join(
        f'<span class="key"><i class="c{i % 6}"></i>{escape(name)}</span>'
        for i, name in enumerate(groups)
    )
    return _figure(title, body, legend, "")


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    body = ""
    for tick in y.ticks():
        at = y(tick)
        body += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        body += f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
    for tick in x.ticks():
        at = x(tick)
        body += (
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        body += (
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
            f"{_short(tick)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    body += f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    up = (TOP + HEIGHT - BOTTOM) / 2
    return body + (
        f'<text class="axis" transform="translate(13,{up}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def _rule(rule: Rule, x: Scale, y: Scale) -> str:
    label = escape(rule.label)
    if rule.axis == "x":
        at = x(rule.at)
        anchor, shift = ("end", -5) if at > WIDTH * 0.6 else ("start", 5)
        return (
            f'<line class="rule" data-at="{rule.at:.6g}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/><text class="rule-label" x="{at + shift:.1f}" '
            f'y="{HEIGHT - BOTTOM - 8}" text-anchor="{anchor}">{label}</text>'
        )
    at = y(rule.at)
    return (
        f'<line class="rule" data-at="{rule.at:.6g}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" '
        f'y2="{at:.1f}"/><text class="rule-label" x="{LEFT + 6}" y="{at - 5:.1f}">{label}</text>'
    )


def _figure(title: str, body: str, legend: str, attributes: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" {attributes}>{body}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


STANDALONE_STYLE = (
    "svg{--ink:#1b2430;--soft:#5b6776;--grid:#e4e8ee;--rule:#c4302b;--c0:#1f6fb2;--c1:#d9822b;--c2:#2a8f6b}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e8edf3;--soft:#9aa7b6;--grid:#2b3542;--rule:#ff7b72;"
    "--c0:#5aa9e6;--c1:#f0a860;--c2:#5cc9a0}}text{font:12px system-ui,sans-serif;fill:var(--soft)}"
    ".title{font-weight:600;fill:var(--ink)}.grid{stroke:var(--grid)}.line{fill:none;stroke-width:2}"
    ".line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.band{opacity:.16}"
    ".band.c0,.key.c0{fill:var(--c0)}.band.c1,.key.c1{fill:var(--c1)}.key.c2{fill:var(--c2)}"
    ".rule{stroke:var(--rule);stroke-dasharray:6 4}.rule-label{fill:var(--rule)}"
)
LEGEND_HEIGHT = 24


def standalone(figure: str) -> str:
    """Return a chart of up to three lines as a file of its own, title and legend inside."""
    title = figure.split("<figcaption>")[1].split("</figcaption>")[0]
    body = figure[figure.index(">", figure.index("<svg")) + 1 : figure.index("</svg>")]
    names = [part.split("</span>")[0] for part in figure.split("</i>")[1:]]
    keys, at = "", float(LEFT)
    for i, name in enumerate(names):
        keys += (
            f'<rect class="key c{i}" x="{at:.0f}" y="{HEIGHT + 6}" width="12" height="4"/>'
            f'<text x="{at + 17:.0f}" y="{HEIGHT + 13}">{name}</text>'
        )
        at += 34 + 6.4 * len(name)
    box = f"0 {-LEGEND_HEIGHT} {WIDTH} {HEIGHT + 2 * LEGEND_HEIGHT}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-label="{title}">'
        f'<style>{STANDALONE_STYLE}</style><text class="title" x="{LEFT}" y="-6">{title}</text>'
        f"{body}{keys}</svg>\n"
    )


def _short(value: float) -> str:
    if value and abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:g}"
