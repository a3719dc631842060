"""Load reports that come with an answer (ORCA, Open Request Cost Aggregation).

An engine that is asked by ``endpoint-load-metrics-format`` puts its load into the answer's header
``endpoint-load-metrics``: as ``TEXT key=value, ...`` or ``JSON {...}``.
"""

import json
import math
from typing import Any

from gpusched.engines.state import EngineState

ASK_HEADER = b"endpoint-load-metrics-format"
REPORT_HEADER = b"endpoint-load-metrics"
LONGEST_REPORT = 16_384

_WAITING = ("num_requests_waiting", "waiting", "num_queue_reqs")
_RUNNING = ("num_requests_running", "running", "num_running_reqs")
_KV_USAGE = ("kv_cache_usage_perc", "kv_cache_utilization", "token_usage", "gpu_cache_usage_perc")


def read_report(header: bytes) -> EngineState | None:
    """Return what a load report says; None if it cannot be read or says nothing of use."""
    if len(header) > LONGEST_REPORT:
        return None
    text = header.decode("utf-8", "replace").strip()
    form, _, rest = text.partition(" ")
    if form.upper() == "JSON":
        values = _of_json(rest)
    elif form.upper() == "TEXT":
        values = _of_text(rest)
    else:
        values = _of_json(text) if text.startswith("{") else _of_text(text)
    state = EngineState(
        running=_whole(values, _RUNNING), waiting=_whole(values, _WAITING), kv_usage=_share(values)
    )
    if state.running is None and state.waiting is None and state.kv_usage is None:
        return None
    return state


def _of_text(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, written = part.partition("=")
        _enter(values, name.strip(), written.strip())
    return values


def _of_json(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return values
    if not isinstance(document, dict):
        return values
    for name, value in document.items():
        for inner, number in value.items() if isinstance(value, dict) else ((name, value),):
            _enter(values, str(inner), number)
    return values


def _enter(values: dict[str, float], name: str, written: Any) -> None:
    try:
        value = float(written)
    except (TypeError, ValueError, OverflowError):
        return
    if math.isfinite(value) and value >= 0.0:
        values[name.rpartition(".")[2]] = value


def _whole(values: dict[str, float], names: tuple[str, ...]) -> int | None:
    return next((int(min(values[name], 2.0**53)) for name in names if name in values), None)


def _share(values: dict[str, float]) -> float | None:
    return next((min(values[name], 1.0) for name in _KV_USAGE if name in values), None)
