"""A simulated plan over time for others' autoscalers: a schedule, KEDA's cron triggers, an HPA."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gpusched.errors import InputError, unknown_name
from gpusched.planning.capacity.scaling import HOUR_S, CellOutcome, Outcome

Ints = NDArray[np.int64]
FORMATS = ("schedule", "keda", "hpa")
DAY_H, WEEK_H = 24, 168
PROMETHEUS = "http://prometheus.monitoring.svc:9090"


def export(outcome: Outcome, form: str, path: Path) -> None:
    """Write the plan.

    Raises:
        InputError: no such format, or the file cannot be written.
    """
    if form not in FORMATS:
        raise InputError("--export: " + unknown_name("format", form, FORMATS))
    if form == "schedule":
        text = json.dumps(schedule(outcome), indent=1) + "\n"
    else:
        make = keda if form == "keda" else hpa
        text = yaml.safe_dump_all(list(make(outcome)), sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the file ({error.strerror})") from None


def hourly(cell: CellOutcome, duration_s: float) -> Ints:
    """Return the most instances open or starting in each hour of the simulated part."""
    hours = max(int(np.ceil(duration_s / HOUR_S)), 1)
    total = np.zeros(hours, np.int64)
    for run in cell.runs:
        at = np.minimum((run.at_s // HOUR_S).astype(np.int64), hours - 1)
        most = np.zeros(hours, np.int64)
        np.maximum.at(most, at, run.open + run.starting)
        total += most
    return total


def schedule(outcome: Outcome) -> dict[str, Any]:
    """Return instances by hour of each model and region."""
    question = outcome.question
    return {
        "policy": outcome.policy,
        "interval_s": HOUR_S,
        "start_s": question.first * question.spec.forecast.step_s,
        "instances": [
            {**_names(outcome, cell), "count": hourly(cell, question.duration_s).tolist()}
            for cell in outcome.cells
        ],
    }


def keda(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Yield a ScaledObject for each model and region: instances by hour of the day, or of the week
    where a week was simulated, and a trigger on requests waiting for what the schedule did not
    foresee."""
    for cell in outcome.cells:
        counts, period = _typical(outcome, cell)
        names = _names(outcome, cell)
        served = outcome.question.spec.models[cell.model]
        triggers: list[dict[str, Any]] = [
            {
                "type": "cron",
                "metadata": {
                    "timezone": "Etc/UTC",
                    "start": _cron(begin, period),
                    "end": _cron(end % period, period),
                    "desiredReplicas": str(count),
                },
            }
            for begin, end, count in _runs(counts)
        ]
        triggers.append(
            {
                "type": "prometheus",
                "metadata": {
                    "serverAddress": PROMETHEUS,
                    "query": f'sum(vllm:num_requests_waiting{{service="{names["deployment"]}"}})',
                    "threshold": str(max(served.engine.max_num_seqs // 8, 1)),
                },
            }
        )
        yield {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": names["deployment"], "labels": {"region": names["region"]}},
            "spec": {
                "scaleTargetRef": {"name": names["deployment"]},
                "minReplicaCount": int(counts.min()),
                "maxReplicaCount": outcome.question.spec.most,
                "cooldownPeriod": 300,
                "triggers": triggers,
            },
        }


def hpa(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Yield a HorizontalPodAutoscaler for each model and region: within what the plan used, by requests
    running for each instance."""
    for cell in outcome.cells:
        counts, _ = _typical(outcome, cell)
        names = _names(outcome, cell)
        served = outcome.question.spec.models[cell.model]
        yield {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": names["deployment"], "labels": {"region": names["region"]}},
            "spec": {
                "scaleTargetRef": {
                    "apiVersion": "apps/v1", "kind": "Deployment", "name": names["deployment"],
                },
                "minReplicas": int(counts.min()),
                "maxReplicas": int(counts.max()),
                "metrics": [
                    {
                        "type": "Pods",
                        "pods": {
                            "metric": {"name": "vllm:num_requests_running"},
                            "target": {
                                "type": "AverageValue",
                                "averageValue": str(max(served.engine.max_num_seqs // 2, 1)),
                            },
                        },
                    }
                ],
                "behavior": {
                    "scaleDown": {"stabilizationWindowSeconds": 300},
                    "scaleUp": {"stabilizationWindowSeconds": 0},
                },
            },
        }  # fmt: skip


def _typical(outcome: Outcome, cell: CellOutcome) -> tuple[Ints, int]:
    """Return the most instances by hour of the day, or of the week, on the demand's clock."""
    question = outcome.question
    counts = hourly(cell, question.duration_s)
    period = WEEK_H if len(counts) >= WEEK_H else DAY_H
    begin = int(question.first * question.spec.forecast.step_s // HOUR_S)
    typical = np.full(period, question.spec.least)
    np.maximum.at(typical, (begin + np.arange(len(counts))) % period, counts)
    return typical, period


def _runs(counts: Ints) -> Iterator[tuple[int, int, int]]:
    """Yield stretches of equal counts: first hour, hour after, count."""
    edges = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(counts)]
    for begin, end in pairwise(edges):
        yield begin, end, int(counts[begin])


def _cron(hour: int, period: int) -> str:
    """Return an hour as cron writes it; the demand's clock begins on a Monday."""
    day = "*" if period == DAY_H else str((hour // DAY_H + 1) % 7)
    return f"0 {hour % DAY_H} * * {day}"


def _names(outcome: Outcome, cell: CellOutcome) -> dict[str, str]:
    spec = outcome.question.spec
    model, region = spec.models[cell.model].model, spec.regions[cell.region].name
    plain = "".join(
        c if c.isalnum() else "-" for c in f"{Path(model).stem if '/' in model else model}-{region}"
    )
    return {"model": model, "region": region, "deployment": plain.lower().strip("-")[:63]}
