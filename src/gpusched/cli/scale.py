"""``gpusched scale``: how much to hold at each time."""

from pathlib import Path
from typing import Annotated

import typer


def scale(
    spec: Annotated[Path, typer.Argument(help="Spec, YAML or JSON.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the answer as JSON.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a self-contained HTML page.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Decide what to hold over time: with `objective: carbon`, how much prompt cache by the hour.

    Example: gpusched scale examples/green-cache.yaml
    """
    from gpusched.cli.scale_cache import asks_for_cache, scale_cache
    from gpusched.domain.spec import read_spec
    from gpusched.errors import InputError

    if not asks_for_cache(spec):
        raise InputError(f"{spec}: objective: must be carbon to size a cache over time")
    scale_cache(read_spec(spec), output=output, report=report, seed=seed, as_json=as_json)
