"""``gpusched pick``: the endpoint picker behind Envoy."""

import sys
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

PICKER_PORT = 9002
"""Where gateways look for an endpoint picker."""


def pick(
    plan: PlanFile,
    host: Host = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="For Envoy (gRPC). 0 takes a free one.")
    ] = PICKER_PORT,
    http_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="For status, metrics and plain clients. Default 8000."),
    ] = None,
    endpoint: Endpoints = None,
    routing: Routing = None,
    admission: Admission = None,
    seed: Seed = 0,
) -> None:
    """Pick endpoints for a proxy by the plan's policies: Envoy carries the bytes.

    Speaks the endpoint picker protocol of the Gateway API inference extension (Envoy's external
    processing over gRPC).

    Example: gpusched pick plan.yaml --host 0.0.0.0 --port 9002
    """
    from gpusched.errors import InputError

    try:
        import uvloop  # noqa: F401

        from gpusched.gateway.picker.gateway import PickingGateway
    except ImportError as error:
        raise InputError(
            f"gpusched pick needs {error.name}; install it with: "
            "pip install 'gpusched[gateway,picker]'"
        ) from None
    from gpusched.gateway.rooms import LiveRooms
    from gpusched.gateway.server import Serving, run

    settings = {"host": host, "port": http_port}

    def read() -> "Plan":
        return served_plan(plan, settings, endpoint or [], routing, admission)

    gateways: list[PickingGateway] = []

    def serving() -> Serving:
        gateway = PickingGateway(
            read(), lambda served, loop: LiveRooms(served, loop, seed=seed), picker_port=port
        )
        gateways.append(gateway)
        return Serving(gateway, read, plan, say)

    def say(event: str, **fields: Any) -> None:
        if event == "ready":
            gateway = gateways[0]
            engines = sum(len(pool.endpoints) for pool in gateway.plan.all_pools)
            print(
                f"gpusched picks for {gateway.plan.model} at port {gateway.picker_port} (gRPC)\n"
                f"  engines    {engines}\n"
                f"  routing    {gateway.plan.routing}, admission {gateway.plan.admission}\n"
                f"  status     {fields['address']}/status   metrics {fields['address']}/metrics",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        else:
            told = ", ".join(f"{name} {value}" for name, value in fields.items())
            print(f"{event}: {told}", file=sys.stderr, flush=True)

    run(serving)
