"""``gpusched plan``: choose a deployment for a spec."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan
    from gpusched.domain.spec import Spec
    from gpusched.planning.planner import Answer
    from gpusched.sim.result import SimulationResult


def plan(
    spec: Annotated[Path, typer.Argument(help="YAML or JSON file with the question.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan: .yaml or .json.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a self-contained HTML report.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated traffic and random choices.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Choose the best deployment that meets the objectives.

    Example: gpusched plan spec.yaml -o plan.yaml --report report.html
    """
    from gpusched.domain.plan import plan_document, write_plan
    from gpusched.domain.spec import read_spec

    question = read_spec(spec)
    if question.cascade is not None:
        from gpusched.cli.cascade import plan_cascade_spec

        plan_cascade_spec(question, output=output, report=report, seed=seed, as_json=as_json)
        return
    answer = answer_of(question, seed)
    if output is not None:
        write_plan(answer.plan, output)
    if report is not None:
        write_report(answer.plan, answer.result, report)
    if as_json:
        print(json.dumps(plan_document(answer.plan), allow_nan=False))
    else:
        from gpusched.report.tables import show_plan

        show_plan(answer.plan)


def answer_of(spec: "Spec", seed: int) -> "Answer":
    """Plan with progress on stderr."""
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.planning.planner import plan_deployment

    if spec.cascade is not None:
        raise InputError(
            "this spec asks for a cascade; plan it first: gpusched plan SPEC -o plan.yaml"
        )
    progress = Progress()
    try:
        return plan_deployment(spec, seed=seed, progress=progress)
    finally:
        progress.done()


def write_report(plan: "Plan", result: "SimulationResult", path: Path) -> None:
    """Write the HTML report of a plan and its simulation."""
    from gpusched.errors import InputError
    from gpusched.report.html import render_report

    try:
        path.write_text(render_report(plan, result), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the report ({error.strerror})") from None
