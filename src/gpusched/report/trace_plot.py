"""Plot of a trace: its rate over time and its lengths."""

from html import escape

import numpy as np

from gpusched.report.html import style_sheet
from gpusched.report.svg import Line, line_chart
from gpusched.report.thin import cumulative
from gpusched.traces.trace import Trace

BINS = 240


def plot_trace(trace: Trace) -> str:
    """Return a self-contained HTML page, itself viewable as a picture, of a trace."""
    width_s = max(trace.duration_s / BINS, 1e-3)
    edges = np.linspace(0.0, BINS * width_s, BINS + 1)
    counts, _ = np.histogram(trace.session_starts_s(), edges)
    rate = line_chart(
        [Line("arrivals", edges[:-1], np.asarray(counts, np.float64) / width_s)],
        title="arrivals",
        x_label="seconds",
        y_label="requests/s",
    )
    lengths = line_chart(
        [
            cumulative("prompt", trace.prompt_tokens.astype(np.float64)),
            cumulative("output", trace.output_tokens.astype(np.float64)),
        ],
        title="lengths",
        x_label="tokens",
        y_label="share of requests",
        log_x=True,
        y_top=1.0,
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(trace.name)}</title>"
        f"<style>{style_sheet()}</style><main><h1>{escape(trace.name)}</h1>"
        f'<div class="charts">{rate}{lengths}</div></main>'
    )
