"""``gpusched serve``: the gateway."""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpusched.cli.serving import (
    Admission,
    Endpoints,
    Host,
    PlanFile,
    Routing,
    Seed,
    served_plan,
)

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan


def serve(
    plan: PlanFile,
    host: Host = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one. Default 8000.")
    ] = None,
    endpoint: Endpoints = None,
    routing: Routing = None,
    admission: Admission = None,
    reuse_port: Annotated[
        bool, typer.Option(help="Let several gateways share the port, one for each core.")
    ] = False,
    seed: Seed = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document when ready.")
    ] = False,
) -> None:
    """Serve OpenAI's protocol in front of the plan's engines.

    SIGTERM lets open answers end, SIGHUP or a change of the plan's file takes the new plan.

    Example: gpusched serve plan.yaml --endpoint http://127.0.0.1:8101 --port 8000
    """
    try:
        import httptools  # noqa: F401
        import orjson  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError as error:
        from gpusched.errors import InputError

        raise InputError(
            f"gpusched serve needs {error.name}; install it with: pip install 'gpusched[gateway]'"
        ) from None
    from gpusched.gateway.rooms import LiveRooms
    from gpusched.gateway.server import Gateway, Serving, run

    changes = {"host": host, "port": port}

    def read() -> "Plan":
        return served_plan(plan, changes, endpoint or [], routing, admission)

    first = read()

    def say(event: str, **fields: Any) -> None:
        if event == "ready" and as_json:
            print(json.dumps(_ready(first, **fields)), flush=True)
        else:
            _tell(event, first, **fields)

    run(
        lambda: Serving(
            Gateway(
                first,
                lambda served, loop: LiveRooms(served, loop, seed=seed),
                reuse_port=reuse_port,
            ),
            read,
            plan,
            say,
        )
    )


def _ready(plan: "Plan", address: str) -> dict[str, Any]:
    return {
        "address": address,
        "pid": os.getpid(),
        "model": plan.model,
        "engines": [at.url for pool in plan.all_pools for at in pool.endpoints],
        "routing": plan.routing,
        "admission": plan.admission,
    }


def _tell(event: str, plan: "Plan", **fields: Any) -> None:
    import sys

    if event == "ready":
        engines = [at.url for pool in plan.all_pools for at in pool.endpoints]
        shown = ", ".join(engines[:4]) + (
            f" and {len(engines) - 4} more" if len(engines) > 4 else ""
        )
        address = fields["address"]
        lines = [
            f"gpusched serves {plan.model} at {address}",
            f"  engines    {len(engines)}: {shown}"
            if engines
            else "  engines    see the placement",
            f"  routing    {plan.routing}, admission {plan.admission}",
            f"  status     {address}/status   metrics {address}/metrics",
            f"  try it     curl {address}/v1/models",
            "  stop       Ctrl-C: open answers end first; a second Ctrl-C does not wait",
        ]
    elif event == "draining":
        lines = [f"draining: {fields['open']} answers open"]
    elif event == "stopped":
        cut_off = fields["cut_off"]
        lines = [f"stopped; {cut_off} answers cut off" if cut_off else "stopped; all answers ended"]
    elif event == "reloaded":
        lines = [f"reloaded: {fields['summary']}"]
    else:
        lines = [f"{event}: {fields['reason']}"]
    print(*lines, sep="\n", file=sys.stderr, flush=True)
