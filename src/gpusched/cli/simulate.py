"""``gpusched simulate``: replay a trace on a deployment."""

import json
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
    from gpusched.sim.deploy import fleet_for
    from gpusched.sim.metrics import metrics
    from gpusched.sim.simulate import ClosedLoop
    from gpusched.sim.simulate import simulate as run
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
        at = values["blocks"] if plan.kind == "blocks" else values
        at["routing"] = routing
    if batching is not None:
        for pool in values["pools"]:
            pool["engine"]["batching"] = batching
    plan = plan_from(values, origin="command line")
    if plan.kind == "blocks":
        from gpusched.cli.place.blocks import simulate_blocks
        from gpusched.errors import InputError

        if admission is not None or batching is not None:
            raise InputError(
                "--admission and --batching are for pools; a plan with blocks takes --routing"
            )
        simulate_blocks(plan, seed=seed, report=report, as_json=as_json)
        return
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
