"""``gpusched compare``: policies side by side on one workload."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpusched.domain.plan import Plan
    from gpusched.sim.compare import Row, Variant
    from gpusched.sim.verdict import Verdict


def compare(
    document: Annotated[
        Path, typer.Argument(metavar="SPEC|PLAN", help="A plan, or a spec (planned first).")
    ],
    batching: Annotated[
        str | None,
        typer.Option(
            help="Batching policies, separated by commas: name[+parameter=value] or "
            "file.py:function."
        ),
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help="Routing policies, separated by commas.")
    ] = None,
    admission: Annotated[
        str | None, typer.Option(help="Admission policies, separated by commas.")
    ] = None,
    prediction_errors: Annotated[
        str | None,
        typer.Option(
            metavar="E,F",
            help="Run every policy that predicts lengths also with predictions wrong by up to "
            "each share, such as 0,0.2,0.5,0.8; 0 is the true length.",
        ),
    ] = None,
    rate_scale: Annotated[
        str, typer.Option(help="Multiples of the rate: 1, 0.5,1,2 or FROM:TO:STEP.")
    ] = "1",
    replications: Annotated[
        int, typer.Option(min=1, max=1000, help="Independent repetitions.")
    ] = 5,
    probe: Annotated[
        bool,
        typer.Option(
            help="Where policies are alike at the one rate given, look for a load where they part."
        ),
    ] = True,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes to use.", show_default="one a core"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Simulate on the Ray cluster at HOST:PORT or auto instead."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first repetition.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare policies on the same requests, with confidence in the differences.

    Example: gpusched compare plan.yaml --batching vllm,mc-sf --rate-scale 1:1.5:0.1

    Every combination of the policies named is run; the first one is the baseline.
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.jobs import cores
    from gpusched.report.comparison import render_comparison, show_comparison
    from gpusched.sim.compare import compare as run
    from gpusched.sim.verdict import parting, verdicts

    if ray is not None and jobs is not None:
        raise InputError("give either --jobs or --ray, not both")
    scales = _scales(rate_scale)
    errors = _errors(prediction_errors)
    plan = _plan(document, seed)
    variants = _variants(plan, batching, routing, admission, errors)
    progress = Progress()
    options: dict[str, Any] = {
        "replications": replications,
        "seed": seed,
        "jobs": jobs or cores(),
        "ray_address": ray,
        "progress": progress,
    }
    rows = run(plan, variants, rate_scales=scales, **options)
    parted = None
    if probe and len(scales) == 1 < len(variants) and plan.workload.users is None:
        (verdict,) = verdicts(rows, plan.slo)
        if not verdict.apart and replications > 1:
            parted = parting(plan, rows, **options)
    progress.done()
    if report is not None:
        try:
            report.write_text(render_comparison(plan, rows, parted), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{report}: cannot write the report ({error.strerror})") from None
    if as_json:
        values = {"plan": plan.summary, "replications": replications, "seed": seed}
        print(json.dumps({**values, **_record(plan, rows, parted)}, allow_nan=False))
    else:
        show_comparison(plan, rows, parted)


def _plan(document: Path, seed: int) -> "Plan":
    """Read a plan; plan a spec and say what was planned."""
    import sys

    from gpusched.cli.plan import answer_of
    from gpusched.domain.plan import read_spec_or_plan
    from gpusched.domain.spec import Spec
    from gpusched.report.words import headline

    given = read_spec_or_plan(document)
    if not isinstance(given, Spec):
        return given
    plan = answer_of(given, seed).plan
    print(
        f"planned: {headline(plan)} Keep it with gpusched plan {document} -o plan.yaml",
        file=sys.stderr,
    )
    return plan


def _variants(
    plan: "Plan",
    batching: str | None,
    routing: str | None,
    admission: str | None,
    errors: Sequence[float],
) -> list["Variant"]:
    """Return every combination of the policies named; the plan's own where none is."""
    from gpusched.errors import InputError
    from gpusched.sim.compare import Variant, with_prediction_errors

    engines = next((p for p in plan.pools if p.role == "mixed"), plan.pools[0])
    variants = [
        Variant(b, r, a)
        for b in with_prediction_errors(_names(batching) or [engines.engine.batching], errors)
        for r in _names(routing) or [plan.routing]
        for a in _names(admission) or [plan.admission]
    ]
    for i, variant in enumerate(variants):
        if variant in variants[:i]:
            raise InputError(f"policies {variant} are named twice")
    return variants


def _record(plan: "Plan", rows: Sequence["Row"], parted: "Verdict | None") -> dict[str, Any]:
    """Return a comparison as plain data; what is not finite becomes null."""
    from gpusched.report.comparison import against_first, caution_lines, verdict_lines
    from gpusched.sim.verdict import capacities, verdicts

    several_rates = len({row.rate_scale for row in rows}) > 1
    record = {
        "rows": [
            {
                **asdict(row.variant),
                "rate_scale": row.rate_scale,
                "rate_rps": row.rate_rps,
                "verdict": against_first(row, rows),
                "figures": {name: asdict(e) for name, e in row.estimates.items()},
            }
            for row in rows
        ],
        "verdict": list(verdict_lines(plan, rows, parted)),
        "best": [_verdict(verdict) for verdict in verdicts(rows, plan.slo)],
        "parting": _verdict(parted) if parted is not None else None,
        "capacities": [
            {
                **asdict(c.variant),
                "rate_scale": c.rate_scale,
                "half_width": c.half_width,
                "rate_rps": c.rate_rps,
                "outside": c.outside,
                "difference": asdict(c.difference) if c.difference is not None else None,
            }
            for c in (capacities(rows, plan.slo) if several_rates else [])
        ],
        "warnings": list(caution_lines(rows)),
    }
    found = _finite(record)
    assert isinstance(found, dict)
    return found


def _verdict(verdict: "Verdict") -> dict[str, Any]:
    return {
        "rate_scale": verdict.best.rate_scale,
        "rate_rps": verdict.best.rate_rps,
        "apart": verdict.apart,
        **asdict(verdict.best.variant),
        "slo_attainment": verdict.best.estimates["slo_attainment"].mean,
        "equals": [asdict(row.variant) for row in verdict.equals],
        "behind": [{**asdict(row.variant), **asdict(d)} for row, d in verdict.behind],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _errors(text: str | None) -> list[float]:
    """Read ``0,0.2,0.5``."""
    from gpusched.errors import InputError

    try:
        errors = [float(part) for part in _names(text)]
        if not all(0.0 <= error <= 0.99 for error in errors):
            raise ValueError
    except ValueError:
        raise InputError(
            f"--prediction-errors: expected shares from 0 to 0.99 such as 0,0.2,0.5, got {text!r}"
        ) from None
    return errors


def _scales(text: str) -> list[float]:
    """Read ``1``, ``0.5,1,2`` or ``0.5:1.5:0.1``, in ascending order."""
    from gpusched.errors import InputError

    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if step <= 0 or last < first or (last - first) / step > 1000:
                raise ValueError
            count = int((last - first) / step + 1e-9) + 1
            scales = [round(first + i * step, 10) for i in range(count)]
        else:
            scales = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise InputError(
            f"--rate-scale: expected numbers such as 1, 0.5,1,2 or 0.5:1.5:0.1, got {text!r}"
        ) from None
    for scale in scales:
        if not 0 < scale <= 1e6:
            raise InputError(f"--rate-scale: must be positive, got {scale:g}")
    return scales
