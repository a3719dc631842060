"""What scaling came to: a table of policies, and charts of demand, instances and attainment."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.capacity.scaling import HOUR_S, Outcome, Runner
from gpusched.report.html import page
from gpusched.report.svg import Line, Point, Rule, line_chart, scatter_chart

Floats = NDArray[np.float64]
COLUMNS = ("policy", "GPU-hours", "cost", "over the bound", "starting, draining", "starts")


def rows(outcomes: Sequence[Outcome], bound_gpu_hours: float) -> list[list[str]]:
    """Return the table's cells, an outcome a row: ``COLUMNS``, then each tier's attainment."""
    found = []
    for outcome in outcomes:
        starts = sum(run.starts for cell in outcome.cells for run in cell.runs)
        tiers = outcome.question.spec.tiers
        found.append(
            [
                outcome.policy,
                f"{outcome.gpu_hours:,.0f}",
                f"${outcome.usd:,.0f}",
                f"{outcome.gpu_hours / max(bound_gpu_hours, 1e-9) - 1:+.0%}",
                f"{outcome.wasted_share:.1%}",
                f"{starts:,}",
                *(
                    f"{share:.2%}" + ("" if share >= tiers[name].attainment else " (missed)")
                    for name, share in outcome.attainment.items()
                ),
            ]
        )
    return found


def show(outcomes: Sequence[Outcome], runner: Runner) -> None:
    """Print the table and what the first policy did most."""
    from rich.table import Table

    from gpusched.report.tables import terminal

    question = runner.question
    console = terminal()
    for note in question.notes:
        console.print(f"assumed: {note}")
    if question.errors:
        tried = ", ".join(f"{name} {error:.1f} %" for name, error in question.errors.items())
        console.print(
            f"forecast: {question.model_name}; error an hour ahead on the history: {tried}"
        )
    days = question.duration_s / 86_400
    requests = sum(len(cell.trace) for cell in question.cells)
    table = Table(
        title=f"{requests:,} requests in {days:.3g} days; no policy can go below "
        f"{runner.bound_gpu_hours:,.0f} GPU-hours",
        title_justify="left",
    )
    for name in (*COLUMNS, *question.spec.tiers):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows(outcomes, runner.bound_gpu_hours):
        table.add_row(*row)
    console.print(table)
    reasons = outcomes[0].figures()["decisions"]
    assert isinstance(reasons, dict)
    console.print(f"decisions of {outcomes[0].policy}:")
    for reason, count in list(reasons.items())[:6]:
        console.print(f"  {count:6,}  {reason}")


def demand_chart(outcome: Outcome) -> str:
    """Return demand and its forecast's band, all cells together."""
    question = outcome.question
    step_s = question.spec.forecast.step_s
    actual = question.series_tps[:, :, question.first :].sum(axis=(0, 1))
    day = np.arange(len(actual)) * step_s / 86_400
    lines = [Line("tokens that came", day, actual / 1e3)]
    if outcome.plan is not None:
        forecasts = list(outcome.plan.forecasts.values())
        at = (forecasts[0].origin - question.first) * step_s / 86_400
        mean = np.sum([f.mean[:, 0] for f in forecasts], axis=0)
        band = np.sum([f.band[:, 0] for f in forecasts], axis=0)
        lines += [
            Line("forecast a step ahead", at, mean / 1e3),
            Line(f"its {question.spec.forecast.level:.0%} band", at, band / 1e3),
        ]
    return line_chart(
        lines, title="interactive demand", x_label="days", y_label="thousand prompt tokens/s"
    )


def instances_chart(outcomes: Sequence[Outcome]) -> str:
    """Return instances over time of up to three policies, draining ones included."""
    lines = []
    for outcome in outcomes[:3]:
        hours = np.arange(0, outcome.question.duration_s, HOUR_S / 4)
        total = np.zeros(len(hours))
        for run in (run for cell in outcome.cells for run in cell.runs):
            at = np.clip(np.searchsorted(run.at_s, hours, side="right") - 1, 0, len(run.at_s) - 1)
            total += (run.open + run.starting + run.draining)[at]
        lines.append(Line(outcome.policy, hours / 86_400, total))
    return line_chart(lines, title="instances", x_label="days", y_label="instances paid for")


def attainment_chart(outcome: Outcome) -> str:
    """Return the share of each tier's requests in time, by six hours of arrival."""
    question = outcome.question
    arrival_s = np.concatenate([cell.arrival_s for cell in outcome.cells])
    tier = np.concatenate([cell.tier for cell in outcome.cells])
    met = np.concatenate([cell.met for cell in outcome.cells])
    window = (arrival_s // (6 * HOUR_S)).astype(np.int64)
    lines = []
    for number, name in enumerate(question.spec.tiers):
        own = tier == number
        count = np.bincount(window[own], minlength=int(window.max()) + 1)
        good = np.bincount(window[own], met[own], minlength=len(count))
        lines.append(Line(name, np.arange(len(count)) / 4, good / np.maximum(count, 1)))
    return line_chart(
        lines, title=f"requests in time, {outcome.policy}", x_label="days", y_label="share",
        y_top=1.02,
    )  # fmt: skip


def frontier_chart(outcomes: Sequence[Outcome], bound_gpu_hours: float) -> str:
    """Return GPU-hours against the attainment of the tier that is hardest to meet."""
    points = []
    for outcome in outcomes:
        tiers = outcome.question.spec.tiers
        short = min(outcome.attainment[name] - tier.attainment for name, tier in tiers.items())
        label = f"{outcome.policy}, {outcome.knob:g}: {outcome.gpu_hours:,.0f} GPU-hours"
        points.append(
            Point(outcome.gpu_hours, 100 * short, label, "chosen" if outcome.meets else "")
        )
    low = min(-5.0, *(point.y for point in points))
    return scatter_chart(
        points, title="GPU-hours against attainment over the objective, of the hardest tier",
        x_label="GPU-hours", y_label="percentage points over the objective",
        rules=[Rule("bound", bound_gpu_hours), Rule("objective", 0.0, "y")], y_range=(low, 5.0),
    )  # fmt: skip


def render(outcomes: Sequence[Outcome], runner: Runner) -> str:
    """Return the page of a scaling study; the first policy is the one shown in full."""
    names = (*COLUMNS, *runner.question.spec.tiers)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(outcomes, runner.bound_gpu_hours)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in runner.question.notes)
    return page(
        "Instances over time",
        f"<section><h1>{outcomes[0].gpu_hours:,.0f} GPU-hours by {escape(outcomes[0].policy)}</h1>"
        f"<p>No policy can go below {runner.bound_gpu_hours:,.0f}.</p><ul>{notes}</ul>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"</section><section>{demand_chart(outcomes[0])}{instances_chart(outcomes)}"
        f"{attainment_chart(outcomes[0])}{frontier_chart(outcomes, runner.bound_gpu_hours)}</section>",
    )
