"""Expert placements as a page."""

from html import escape

import numpy as np

from gpusched.moe.answer import Answer, answer_lines
from gpusched.report.html import page
from gpusched.report.svg import Line, Point, line_chart, scatter_chart


def render_answer(answer: Answer) -> str:
    """Return a self-contained page: figures, hops against load, hops of every layer."""
    header = ("placement", "hops per token", "per activation", "busiest GPU / mean", "worst layer")
    body = "".join(
        f"<tr><th>{escape(c.name)}</th><td>{c.placement.hops:.1f}</td>"
        f"<td>{c.placement.hops_per_activation:.3f}</td><td>{c.load_ratio:.2f}</td>"
        f"<td>{c.worst_load_ratio:.2f}</td></tr>"
        for c in answer.candidates
    )
    text = "".join(f"<p>{escape(line)}</p>" for line in answer_lines(answer))
    table = (
        "<div class='scroll'><table><thead><tr>"
        + "".join(f"<th>{escape(h)}</th>" for h in header)
        + f"</tr></thead><tbody>{body}</tbody></table></div>"
    )
    charts = hops_against_load(answer) + hops_by_layer(answer)
    return page(
        "expert placement",
        f"<section><h1>Expert placement</h1>{text}{table}<div class='charts'>{charts}</div></section>",
    )


def hops_against_load(answer: Answer) -> str:
    """Draw hops per activation against the busiest GPU's load for every placement."""
    points = [
        Point(c.placement.hops_per_activation, c.load_ratio, c.name, "chosen" if not i else "")
        for i, c in enumerate(answer.candidates)
    ]
    return scatter_chart(
        points, title="Hops against load (point at a mark for its name)",
        x_label="hops per activation", y_label="busiest GPU / mean",
    )  # fmt: skip


def hops_by_layer(answer: Answer) -> str:
    """Draw the hops of every layer for every placement."""
    layer = np.arange(len(answer.trips), dtype=np.float64)
    lines = [
        Line(c.name, layer, (c.placement.server_load(answer.servers) * answer.trips).sum(axis=1))
        for c in answer.candidates
    ]
    return line_chart(
        lines, title="Hops of one token in each layer", x_label="layer", y_label="hops"
    )
