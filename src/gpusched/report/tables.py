"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpusched.domain.plan import Alternative, Plan
from gpusched.report.words import certainty, figure_lines, headline, latency_rows, pipeline_lines

PLAIN_WIDTH = 120


def terminal() -> Console:
    """Return the console; what is not a terminal gets a width that does not cut tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Print a plan: the answer, what binds, predicted figures, Pareto front and runners-up."""
    console = console or terminal()
    lines = [headline(plan)]
    if plan.binding_constraint:
        lines.append(f"[bold]binding[/bold]  {plan.binding_constraint}")
    if plan.certificate is not None:
        lines.append(f"[bold]search[/bold]   {certainty(plan.certificate)}")
    console.print(Panel("\n".join(lines), title="answer", title_align="left"))
    show_metrics(plan, plan.predicted, console)
    if plan.pareto:
        show_alternatives(
            "price against attainment: deployments no other beats", plan.pareto, console
        )
    if plan.runners_up:
        show_alternatives("runners-up", plan.runners_up, console)


def show_metrics(plan: Plan, figures: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the figures of a simulation; latencies in milliseconds."""
    console = console or terminal()
    table = Table(title="latency, ms", title_justify="left")
    table.add_column("")
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    for name, values in latency_rows(figures):
        table.add_row(name, *values)
    console.print(table)
    for name, value in figure_lines(plan, figures):
        console.print(f"  {name:24s} {value}", highlight=False)
    for line in figures["warnings"]:
        console.print(f"[yellow]warning[/yellow] {line}")


def show_pipelines(figures: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the figures of a simulation of pipelines, and what each node did."""
    console = console or terminal()
    table = Table(title="latency, ms", title_justify="left")
    table.add_column("")
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    for name, values in latency_rows(figures):
        table.add_row(name, *values)
    console.print(table)
    for name, text in pipeline_lines(figures):
        console.print(f"  {name:24s} {text}", highlight=False)
    nodes = Table(title="nodes", title_justify="left")
    for name in ("node", "busy", "mean batch", "mean wait, ms", "KV cache peak"):
        nodes.add_column(name, justify="right" if name != "node" else "left")
    for node in figures["nodes"]:
        nodes.add_row(
            node["name"],
            f"{node['utilization']:.0%}",
            f"{node['mean_batch']:.1f}",
            f"{node['mean_wait_s'] * 1e3:.1f}",
            f"{node['kv_utilization_peak']:.0%}",
        )
    console.print(nodes)
    for line in figures["warnings"]:
        console.print(f"[yellow]warning[/yellow] {line}")


def show_alternatives(title: str, rows: Sequence[Alternative], console: Console) -> None:
    """Print deployments side by side."""
    table = Table(title=title, title_justify="left")
    for name in ("deployment", "GPUs", "$/h", "attainment", "goodput/s", ""):
        table.add_column(name, justify="left" if name in ("deployment", "") else "right")
    for row in rows:
        table.add_row(
            row.summary,
            str(row.gpus),
            f"{row.usd_per_hour:.2f}",
            f"{row.attainment:.2%}",
            f"{row.goodput_rps:.3g}",
            "chosen" if row.chosen else f"misses {row.binding}" if row.binding else "",
            style="bold" if row.chosen else None,
        )
    console.print(table)


def show_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under column names."""
    table = Table()
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    terminal().print(table)


def show_record(record: Mapping[str, Any]) -> None:
    """Print the fields of one thing."""
    console = terminal()
    for name, value in record.items():
        if value is None or value == [] or value == ():
            continue
        if isinstance(value, Mapping) and all(isinstance(v, int | float) for v in value.values()):
            value = "  ".join(f"{k} {v:.6g}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.6g}"
        console.print(f"  {name:26s} {value}", highlight=False, markup=False)
