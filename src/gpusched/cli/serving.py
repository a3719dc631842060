"""What the commands that serve a plan have in common: options, and the plan they change."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan whose pools name endpoints.")]
Host = Annotated[
    str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all. Default 127.0.0.1.")
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint", metavar="URL", help="A live engine, in place of the plan's; repeat it."
    ),
]
Routing = Annotated[str | None, typer.Option(help="Routing policy, in place of the plan's.")]
Admission = Annotated[str | None, typer.Option(help="Admission policy, in place of the plan's.")]
Seed = Annotated[int, typer.Option(help="Seed of random choices.")]


def served_plan(
    path: Path,
    settings: dict[str, Any],
    urls: list[str],
    routing: str | None,
    admission: str | None,
) -> "Plan":
    """Return the plan in a file with what the command line says put in.

    Raises:
        InputError: the file is no plan, or ``--endpoint`` does not say of which pool.
    """
    from gpusched.domain.document import load_document
    from gpusched.domain.plan import plan_from
    from gpusched.errors import InputError

    values = load_document(path)
    if "gpusched" not in values:
        raise InputError(
            f"{path}: this is a spec, not a plan; make one with: gpusched plan {path} -o plan.yaml"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    gateway = values.get("gateway")
    if gateway is None or isinstance(gateway, dict):
        values["gateway"] = {**(gateway or {}), **given}
    if routing is not None:
        values["routing"] = routing
    if admission is not None:
        values["admission"] = admission
    pools = values.get("pools")
    if urls:
        if not isinstance(pools, list) or len(pools) != 1 or not isinstance(pools[0], dict):
            raise InputError(
                f"--endpoint: {path} has not exactly one pool, so that it is unclear which engines "
                "these are; write 'endpoints' into its pools"
            )
        pools[0]["endpoints"] = urls
    return plan_from(values, origin=str(path), folder=path.parent)
