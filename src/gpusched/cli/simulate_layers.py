"""``gpusched simulate`` for a plan that spreads a model's layers over nodes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan


def simulate_layers(plan: "Plan", *, report: Path | None, seed: int, as_json: bool) -> None:
    """Replay a trace on a plan of layers."""
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.report.tables import show_pipelines
    from gpusched.sim.pipelines.deploy import plan_metrics, simulate_plan
    from gpusched.traces.workload import load_workload

    if report is not None:
        raise InputError(
            "--report: a plan of layers has its page from gpusched place layers SPEC --report PAGE"
        )
    requests = load_workload(plan.workload, plan.slo, seed=seed)
    progress = Progress()
    result = simulate_plan(
        plan,
        requests,
        seed=seed,
        progress=lambda share: progress(f"{share:.0%} of {len(requests)} requests simulated"),
    )
    progress.done()
    figures = plan_metrics(plan, requests, result)
    if as_json:
        print(json.dumps({**figures, "notes": list(requests.notes)}, allow_nan=False))
    else:
        show_pipelines(figures)
