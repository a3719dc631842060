"""``gpusched calibrate-vote``: how many samples a vote needs, from one's own log."""

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpusched.sampling.calibration import Calibration, Point


def calibrate_vote(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="JSON Lines, CSV or parquet of prompt and answer (or response, or answers), with "
            "gold and tokens where known.",
        ),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Keep only such rows; may be repeated."),
    ] = None,
    answer: Annotated[
        str,
        typer.Option(
            help="Where a response has its answer: boxed, choice, number, text, json:PATH or "
            "regex:PATTERN."
        ),
    ] = "boxed",
    samples: Annotated[
        int, typer.Option(min=1, max=10_000, help="Samples a prompt at most.")
    ] = 100,
    trials: Annotated[int, typer.Option(min=1, max=10_000, help="Replays of each prompt.")] = 20,
    thresholds: Annotated[
        str | None, typer.Option(metavar="B,B", help="Bayes factors to try.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Accuracy that may be lost against all samples.")
    ] = 0.005,
    report: Annotated[Path | None, typer.Option(help="Write a page with the curve.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the replays.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Replay a log of answers: accuracy against samples and tokens, and the threshold to use.

    Example: gpusched calibrate-vote answers.jsonl --samples 32 --report curve.html

    Without right answers in the log, accuracy is agreement with the log's most frequent answer.
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.report.vote_curve import render_calibration, show_calibration
    from gpusched.sampling.answer_log import read_answer_log
    from gpusched.sampling.calibration import THRESHOLDS, calibrate

    progress = Progress()
    rows = read_answer_log(log, only=_filters(where or []), answer=_form(answer))
    found = calibrate(
        rows, samples=samples, trials=trials, tolerance=tolerance, seed=seed, progress=progress,
        thresholds=_numbers(thresholds) if thresholds is not None else THRESHOLDS,
    )  # fmt: skip
    progress.done()
    if report is not None:
        try:
            report.write_text(render_calibration(found, log.name), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{report}: cannot write the report ({error.strerror})") from None
    if as_json:
        print(json.dumps(_record(found, samples, trials, seed), allow_nan=False))
    else:
        show_calibration(found)


def _filters(pairs: list[str]) -> dict[str, str]:
    from gpusched.errors import InputError

    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--where: expected COLUMN=VALUE, got {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _form(text: str) -> Any:
    from gpusched.domain.document import validate
    from gpusched.sampling.answers import AnswerFormat

    kind, _, rest = text.partition(":")
    values = {"kind": kind} | ({"path": rest} if kind == "json" else {})
    return validate(
        AnswerFormat, values | ({"pattern": rest} if kind == "regex" else {}), "--answer"
    )


def _numbers(text: str) -> list[float]:
    from gpusched.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--thresholds: expected numbers such as 10,100, got {text!r}") from None


def _record(found: "Calibration", samples: int, trials: int, seed: int) -> dict[str, Any]:
    def plain(point: "Point") -> dict[str, Any]:
        return {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in asdict(point).items()
        }

    return {
        "prompts": found.prompts, "samples": samples, "trials": trials, "seed": seed,
        "has_gold": found.has_gold,
        "recommended": plain(found.recommended) if found.recommended is not None else None,
        "points": [plain(point) for point in found.points],
    }  # fmt: skip
