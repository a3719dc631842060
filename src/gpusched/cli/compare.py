"""``gpusched compare``: policies side by side on one workload."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def compare(
    document: Annotated[
        Path, typer.Argument(metavar="SPEC|PLAN", help="A plan, or a spec (planned first).")
    ],
    batching: Annotated[
        str | None, typer.Option(help="Batching policies, separated by commas.")
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help="Routing policies, separated by commas.")
    ] = None,
    rate_scale: Annotated[
        str, typer.Option(help="Multiples of the rate: 1, 0.5,1,2 or FROM:TO:STEP.")
    ] = "1",
    replications: Annotated[
        int, typer.Option(min=1, max=1000, help="Independent repetitions.")
    ] = 5,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes to use.")] = 1,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first repetition.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare policies on the same requests, with confidence in the differences.

    Example: gpusched compare plan.yaml --routing round-robin,least-tokens --rate-scale 0.5:1.5:0.25
    """
    from gpusched.cli.plan import answer_of
    from gpusched.cli.progress import Progress
    from gpusched.domain.plan import read_spec_or_plan
    from gpusched.domain.spec import Spec
    from gpusched.errors import InputError
    from gpusched.report.comparison import render_comparison, show_comparison, verdict
    from gpusched.sim.compare import Variant
    from gpusched.sim.compare import compare as run

    given = read_spec_or_plan(document)
    plan = answer_of(given, seed).plan if isinstance(given, Spec) else given
    mixed = next((p for p in plan.pools if p.role == "mixed"), plan.pools[0])
    variants = [
        Variant(b, r)
        for b in _names(batching) or [mixed.engine.batching]
        for r in _names(routing) or [plan.routing]
    ]
    if len(set(variants)) < len(variants):
        raise InputError("compare: a policy is named twice")
    progress = Progress()
    rows = run(
        plan,
        variants,
        rate_scales=_scales(rate_scale),
        replications=replications,
        seed=seed,
        jobs=jobs,
        progress=progress,
    )
    progress.done()
    if report is not None:
        try:
            report.write_text(render_comparison(plan, rows), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{report}: cannot write the report ({error.strerror})") from None
    if as_json:
        records = [
            {
                **asdict(row.variant),
                "rate_scale": row.rate_scale,
                "verdict": verdict(row, rows),
                "figures": {
                    name: {k: v if v != float("inf") else None for k, v in asdict(e).items()}
                    for name, e in row.estimates.items()
                },
            }
            for row in rows
        ]
        document_ = {"plan": plan.summary, "replications": replications, "seed": seed}
        print(json.dumps({**document_, "rows": records}, allow_nan=False))
    else:
        show_comparison(rows)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _scales(text: str) -> list[float]:
    """Read ``1``, ``0.5,1,2`` or ``0.5:1.5:0.1``."""
    from gpusched.errors import InputError

    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if step <= 0 or last < first or (last - first) / step > 1000:
                raise ValueError
            count = int((last - first) / step + 1e-9) + 1
            scales = [round(first + i * step, 10) for i in range(count)]
        else:
            scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--rate-scale: expected numbers such as 1, 0.5,1,2 or 0.5:1.5:0.1, got {text!r}"
        ) from None
    for scale in scales:
        if not 0 < scale <= 1e6:
            raise InputError(f"--rate-scale: must be positive, got {scale:g}")
    return scales
