"""The HTML page of a planned cascade: who answers what, and what more quality would cost."""

from html import escape

import numpy as np

from gpusched.domain.plan import Plan
from gpusched.report.html import page
from gpusched.report.svg import Point, Rule, scatter_chart


def render_cascade(plan: Plan) -> str:
    """Return the page of a plan that has been simulated."""
    assert plan.cascade is not None
    figures = plan.predicted
    rows = "".join(
        f"<tr><th>{escape(stage.model)}</th><td>{escape(' + '.join(map(str, stage.pools)))}</td>"
        f"<td>{'-' if stage.threshold is None else f'{stage.threshold:.4g}'}</td>"
        f"<td>{seen['reach']:.1%}</td><td>{seen['accepted']:.1%}</td>"
        f"<td>{seen['e2e_s']['mean']:.2f}</td></tr>"
        for stage, seen in zip(plan.cascade.stages, figures["stages"], strict=False)
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("model", "pool", "passes on below", "requests", "answers taken", "mean, s")
    )
    answer = (
        f"<section><h1>Quality {figures['quality']:.2f} in {figures['e2e_s']['mean']:.2f} s</h1>"
        f"<p>{plan.gpus} GPUs at ${plan.usd_per_hour:,.2f} an hour; "
        f"{figures['slo_attainment']:.2%} of the requests meet the objectives.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )
    return page("Cascade plan", answer + _front(plan))


def front_chart(plan: Plan) -> str:
    """Return the front of latency against quality as a picture."""
    assert plan.cascade is not None
    points = [
        Point(
            choice.latency_s,
            choice.quality,
            f"{' → '.join(choice.models)} on {'/'.join(map(str, choice.gpus))} GPUs: "
            f"quality {choice.quality:.2f}, {choice.latency_s:.3g} s",
            "chosen" if choice.chosen else "front",
        )
        for choice in plan.cascade.front
    ]
    lowest = min(point.y for point in points)
    return scatter_chart(
        points,
        title="latency against quality",
        x_label="latency, s",
        y_label="mean score of accepted answers",
        rules=[Rule(f"chosen: {plan.cascade.quality:.4g}", plan.cascade.quality, "y")],
        y_range=(max(0.0, 10 * np.floor(lowest / 10 - 0.5)), 102.0),
    )


def _front(plan: Plan) -> str:
    assert plan.cascade is not None
    if not plan.cascade.front:
        return ""
    return f"<section><h2>What other quality would cost</h2>{front_chart(plan)}</section>"
