"""``gpusched simulate`` for a plan that spreads a model's layers over nodes."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan
    from gpusched.traces.trace import Trace


def simulate_layers(
    plan: "Plan", requests: "Trace", unused: Mapping[str, Any], *, seed: int, as_json: bool
) -> None:
    """Simulate and print the figures; ``unused`` maps options without effect here to their values."""
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.report.tables import show_pipelines
    from gpusched.sim.pipelines.deploy import plan_metrics, simulate_plan

    for option, value in unused.items():
        if value is not None:
            raise InputError(
                f"{option}: has no effect on a plan of layers; --routing chooses among iwrr, "
                "swarm, random and shortest-queue"
            )
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
