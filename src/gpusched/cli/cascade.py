"""Cascades on the command line: the parts of ``plan`` and ``simulate`` that are about them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan
    from gpusched.domain.spec import Spec


def plan_cascade_spec(
    spec: "Spec", *, output: Path | None, report: Path | None, seed: int, as_json: bool
) -> None:
    """Plan a cascade and print or write the answer."""
    from gpusched.cli.progress import Progress
    from gpusched.domain.plan import plan_document, write_plan
    from gpusched.planning.cascade.planner import plan_cascade

    progress = Progress()
    try:
        answer = plan_cascade(spec, seed=seed, progress=progress)
    finally:
        progress.done()
    if output is not None:
        write_plan(answer.plan, output)
    if report is not None:
        _write_report(answer.plan, report)
    if as_json:
        print(json.dumps(plan_document(answer.plan), allow_nan=False))
    else:
        _show(answer.plan, answer.plan.predicted)


def simulate_cascade_plan(plan: "Plan", *, report: Path | None, seed: int, as_json: bool) -> None:
    """Simulate a planned cascade and print the figures."""
    from gpusched.cli.progress import Progress
    from gpusched.sim.cascade import cascade_metrics, run_cascade
    from gpusched.traces.workload import load_workload

    trace = load_workload(plan.workload, plan.slo, seed=seed)
    progress = Progress()
    result = run_cascade(
        plan, trace, seed=seed, progress=lambda share: progress(f"{share:.0%} of the stages done")
    )
    progress.done()
    figures = cascade_metrics(plan, result, plan.slo)
    plan = plan.model_copy(update={"predicted": figures})
    if report is not None:
        _write_report(plan, report)
    if as_json:
        print(json.dumps({**figures, "notes": list(trace.notes)}, allow_nan=False))
    else:
        _show(plan, figures)


def _show(plan: "Plan", figures: Mapping[str, Any]) -> None:
    from rich.table import Table

    from gpusched.report.tables import show_metrics, terminal

    assert plan.cascade is not None
    console = terminal()
    console.print(
        f"quality {figures['quality']:.2f} ({plan.cascade.quality:.2f} on the sample): "
        f"{plan.gpus} GPUs at ${plan.usd_per_hour:,.2f} an hour"
    )
    table = Table(title="models in the order they are asked", title_justify="left")
    for name in (
        "model",
        "pool",
        "passes on below",
        "requests",
        "answers taken",
        "mean latency, s",
    ):
        table.add_column(name, justify="left" if name in ("model", "pool") else "right")
    for stage, seen in zip(plan.cascade.stages, figures["stages"], strict=False):
        table.add_row(
            stage.model,
            " + ".join(map(str, stage.pools)),
            "-" if stage.threshold is None else f"{stage.threshold:.4g}",
            f"{seen['reach']:.1%}",
            f"{seen['accepted']:.1%}",
            f"{seen['e2e_s']['mean']:.2f}",
        )
    console.print(table)
    show_metrics(plan, figures, console)
    if plan.cascade.front:
        front = Table(title="latency against quality: choices no other beats", title_justify="left")
        for name in ("models", "GPUs", "quality", "latency, s", ""):
            front.add_column(name, justify="left" if name in ("models", "") else "right")
        for choice in plan.cascade.front:
            front.add_row(
                " → ".join(choice.models),
                "/".join(map(str, choice.gpus)),
                f"{choice.quality:.2f}",
                f"{choice.latency_s:.3g}",
                "chosen" if choice.chosen else "",
            )
        console.print(front)


def _write_report(plan: "Plan", path: Path) -> None:
    from gpusched.errors import InputError
    from gpusched.report.cascade import render_cascade

    try:
        path.write_text(render_cascade(plan), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the report ({error.strerror})") from None
