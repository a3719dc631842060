"""``gpusched simulate``: replay a trace on a deployment."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer


def simulate(
    document: Annotated[
        Path, typer.Argument(metavar="SPEC|PLAN", help="A plan, or a spec (planned first).")
    ],
    trace: Annotated[Path | None, typer.Option(help="Replay this trace instead.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second, for traces without arrival times.")
    ] = None,
    rate_scale: Annotated[float, typer.Option(help="Multiply the arrival rate.")] = 1.0,
    admission: Annotated[
        str | None, typer.Option(help="Admission policy, such as staggered or file.py:function.")
    ] = None,
    batching: Annotated[
        str | None,
        typer.Option(help="Batching policy, such as mc-sf+margin=0.1 or file.py:function."),
    ] = None,
    routing: Annotated[
        str | None,
        typer.Option(help="Routing policy, such as least-tokens or file.py:function."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated traffic and random choices.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Simulate a deployment on a trace, exactly.

    Example: gpusched simulate plan.yaml --trace conv.csv --rate-scale 2 --json
    """
    from gpusched.cli.plan import answer_of, write_report
    from gpusched.cli.progress import Progress
    from gpusched.domain.plan import Plan, plan_document, plan_from, read_spec_or_plan
    from gpusched.domain.spec import Spec
    from gpusched.traces.workload import load_workload

    given = read_spec_or_plan(document)
    plan = answer_of(given, seed).plan if isinstance(given, Spec) else given
    assert isinstance(plan, Plan)
    values = plan_document(plan)
    workload = values["workload"]
    if trace is not None:
        keep = {
            k: workload[k] for k in ("warmup_s", "rate_scale", "users", "think_s") if k in workload
        }
        workload = values["workload"] = {**keep, "trace": str(trace.absolute())}
    if rate is not None:
        workload["rate_rps"] = rate
    if rate_scale != 1.0:
        workload["rate_scale"] = workload.get("rate_scale", 1.0) * rate_scale
    if admission is not None:
        values["admission"] = admission
    if routing is not None:
        place = values[plan.kind] if plan.kind in ("layers", "blocks") else values
        place["routing"] = routing
    if batching is not None:
        stages = values.get("cascade", {}).get("stages", [values])
        for pool in (pool for stage in stages for pool in stage.get("pools", ())):
            pool["engine"]["batching"] = batching
    plan = plan_from(values, origin="command line")
    if plan.kind != "pools":
        given_up = {"--admission": admission, "--batching": batching}
        if plan.kind != "cascade":
            _refuse(plan.kind, given_up)
        _simulation_of(plan.kind)(plan, report=report, seed=seed, as_json=as_json)
        return
    from gpusched.sim.deploy import fleet_for
    from gpusched.sim.metrics import metrics
    from gpusched.sim.simulate import ClosedLoop
    from gpusched.sim.simulate import simulate as run

    requests = load_workload(plan.workload, plan.slo, seed=seed)
    progress = Progress()
    users = plan.workload.users
    result = run(
        fleet_for(plan),
        requests,
        closed_loop=ClosedLoop(users, plan.workload.think_s) if users is not None else None,
        seed=seed,
        progress=lambda share: progress(f"{share:.0%} of {len(requests)} requests simulated"),
    )
    progress.done()
    figures = metrics(plan, result)
    if report is not None:
        write_report(plan.model_copy(update={"predicted": figures}), result, report)
    if as_json:
        print(json.dumps({**figures, "notes": list(requests.notes)}, allow_nan=False))
    else:
        from gpusched.report.tables import show_metrics

        show_metrics(plan, figures)


def _refuse(kind: str, options: Mapping[str, str | None]) -> None:
    """Refuse options that say nothing about a plan of layers or blocks."""
    from gpusched.errors import InputError

    for option, value in options.items():
        if value is not None:
            raise InputError(
                f"{option}: has no effect on a plan of {kind}; --routing chooses how requests go"
            )


def _simulation_of(kind: str) -> Callable[..., None]:
    """Return the command's part for plans that are no pools of whole models."""
    if kind == "cascade":
        from gpusched.cli.cascade import simulate_cascade_plan

        return simulate_cascade_plan
    if kind == "layers":
        from gpusched.cli.simulate_layers import simulate_layers

        return simulate_layers
    from gpusched.cli.place.blocks import simulate_blocks

    return simulate_blocks
