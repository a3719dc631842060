"""``gpusched place layers``: layers of one model over unequal nodes."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def layers(
    spec: Annotated[Path, typer.Argument(help="YAML or JSON file with the question.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan: .yaml or .json.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a self-contained HTML page.")
    ] = None,
    rank: Annotated[
        Literal["simulation", "flow"],
        typer.Option(help="Choose by simulation, or by the maximum flow alone."),
    ] = "simulation",
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds for simulating placements.", min=0.0)
    ] = 60.0,
    polish: Annotated[
        float,
        typer.Option(
            help="Seconds for Helix's mixed-integer program to improve the largest flow and its bound.",
            min=0.0,
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of generated traffic and random choices.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Place the layers of a model on nodes with unequal GPUs and links.

    Example: gpusched place layers unequal-gpus.yaml -o plan.yaml --report plan.html
    """
    from gpusched.cli.progress import Progress
    from gpusched.domain.plan import plan_document, write_plan
    from gpusched.domain.spec import read_spec
    from gpusched.errors import InputError
    from gpusched.planning.layers.planner import place_layers
    from gpusched.report.layers import layers_page, show_layers

    progress = Progress()
    try:
        answer = place_layers(
            read_spec(spec), seed=seed, time_limit_s=time_limit, rank=rank, polish_s=polish,
            progress=progress,
        )  # fmt: skip
    finally:
        progress.done()
    if output is not None:
        write_plan(answer.plan, output)
    if report is not None:
        try:
            report.write_text(layers_page(answer), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{report}: cannot write the report ({error.strerror})") from None
    if as_json:
        print(json.dumps(plan_document(answer.plan), allow_nan=False))
    else:
        show_layers(answer)
