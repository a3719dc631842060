"""``gpusched place blocks``: blocks of a model over servers far apart."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan
    from gpusched.sim.chains.simulate import ChainResult
    from gpusched.timing.chains import Placed


def blocks(
    spec: Annotated[Path, typer.Argument(help="YAML or JSON file with the question.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan: .yaml or .json.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a self-contained HTML report.")
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(min=0, help="Seconds for the exact program, tried where it is small."),
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of generated traffic and random choices.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Place transformer blocks on nodes joined by wide-area links, and route requests over them.

    Example: gpusched place blocks examples/internet-blocks.yaml -o plan.yaml
    """
    from gpusched.cli.progress import Progress
    from gpusched.domain.plan import plan_document, write_plan
    from gpusched.domain.spec import read_spec
    from gpusched.planning.blocks.planner import plan_blocks

    question = read_spec(spec)
    progress = Progress()
    try:
        answer = plan_blocks(question, seed=seed, time_limit_s=time_limit, progress=progress)
    finally:
        progress.done()
    if output is not None:
        write_plan(answer.plan, output)
    if report is not None:
        write_blocks_report(answer.plan, answer.placed, answer.result, report)
    if as_json:
        print(json.dumps(plan_document(answer.plan), allow_nan=False))
    else:
        from gpusched.report.chains import show_blocks_plan

        show_blocks_plan(answer.plan)


def write_blocks_report(plan: "Plan", placed: "Placed", result: "ChainResult", path: Path) -> None:
    """Write the HTML report of a plan with blocks and its simulation."""
    from gpusched.errors import InputError
    from gpusched.report.chains import render_blocks_report

    try:
        path.write_text(render_blocks_report(plan, placed, result), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the report ({error.strerror})") from None


def simulate_blocks(plan: "Plan", *, seed: int, report: Path | None, as_json: bool) -> None:
    """Replay a trace on a plan with blocks."""
    from gpusched.sim.chains.deploy import load_of, placed_of_plan, servers_of_plan
    from gpusched.sim.chains.metrics import chain_metrics
    from gpusched.sim.chains.simulate import simulate_chains
    from gpusched.traces.workload import load_workload

    assert plan.blocks is not None
    trace = load_workload(plan.workload, plan.slo, seed=seed)
    servers = servers_of_plan(plan, trace)
    placed = placed_of_plan(plan, servers)
    result = simulate_chains(
        servers, placed, load_of(trace, plan.workload), routing=plan.blocks.routing, retries=False
    )
    figures = chain_metrics(plan, servers, placed, trace, result)
    if report is not None:
        shown = plan.model_copy(update={"predicted": figures, "certificate": None})
        write_blocks_report(shown, placed, result, report)
    if as_json:
        print(json.dumps({**figures, "notes": list(trace.notes)}, allow_nan=False))
    else:
        from gpusched.report.chains import show_servers
        from gpusched.report.tables import show_metrics

        show_metrics(plan, figures)
        show_servers(figures["servers"])
