"""``gpusched scale``: instances over time."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpusched.domain.scale import ScaleSpec


def scale(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Models, regions, tiers, demand.")],
    policy: Annotated[
        str,
        typer.Option(
            help="Policies, separated by commas: anticipating, lt-i, lt-u, lt-ua, threshold, hpa, "
            "keda, siloed, clairvoyant; or all."
        ),
    ] = "anticipating",
    tune: Annotated[
        bool,
        typer.Option(help="Vary each policy's knob and keep the cheapest that meets objectives."),
    ] = False,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(metavar="FORMAT FILE", help="Write the plan as schedule, keda or hpa."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the sizes of a cache, as JSON."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated traffic and random choices.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Scale instances over days of traffic, simulated request by request; with objective: carbon, the
    cache of prompts by the hour.

    Example: gpusched scale scale.yaml --policy anticipating,lt-i,threshold --export keda keda.yaml
    """
    from gpusched.cli.scale_cache import asks_for_cache, scale_cache

    if asks_for_cache(spec):
        from gpusched.domain.spec import read_spec

        scale_cache(read_spec(spec), output=output, report=report, seed=seed, as_json=as_json)
        return
    from gpusched.domain.scale import read_scale_spec

    question = read_scale_spec(spec)
    _scale_by_cost(
        question, policy, tune=tune, export=export, report=report, seed=seed, as_json=as_json
    )


def _scale_by_cost(
    spec: "ScaleSpec", names: str, *, tune: bool, export: tuple[str, Path] | None,
    report: Path | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError, unknown_name
    from gpusched.planning.capacity.cells import prepare
    from gpusched.planning.capacity.export import FORMATS
    from gpusched.planning.capacity.export import export as write
    from gpusched.planning.capacity.scaling import POLICIES, Runner, policy, tuned

    chosen = list(POLICIES) if names == "all" else [part.strip() for part in names.split(",")]
    for name in chosen:
        policy(name)
    if export is not None and export[0] not in FORMATS:
        raise InputError("--export: " + unknown_name("format", export[0], FORMATS))
    progress = Progress()
    try:
        runner = Runner(prepare(spec, seed=seed, progress=progress), seed=seed)
        outcomes = [
            tuned(runner, name, progress)[0] if tune else runner.run(name, progress=progress)
            for name in chosen
        ]
        bound = runner.bound_gpu_hours
    finally:
        progress.done()
    if export is not None:
        write(outcomes[0], *export)
    if report is not None:
        from gpusched.report.scale import render

        try:
            report.write_text(render(outcomes, runner), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{report}: cannot write the report ({error.strerror})") from None
    if as_json:
        question = runner.question
        document = {
            "days": question.duration_s / 86_400,
            "forecast": {"model": question.model_name, "errors_percent": question.errors},
            "bound_gpu_hours": bound,
            "policies": [
                {**outcome.figures(), "regret": outcome.gpu_hours / bound - 1}
                for outcome in outcomes
            ],
            "notes": list(question.notes),
        }
        print(json.dumps(document, allow_nan=False))
    else:
        from gpusched.report.scale import show

        show(outcomes, runner)
