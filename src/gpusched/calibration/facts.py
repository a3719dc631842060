"""What an engine says of itself: model, make, version, KV cache, limits, and whether it is idle."""

import json
import re
from dataclasses import dataclass

from gpusched.calibration.client import HttpEngine, RefusedError
from gpusched.engines.dialects import detect, read_metrics
from gpusched.errors import InputError, unknown_name

_BLOCK = re.compile(
    r'^(?:vllm|sglang):cache_config_info\{[^}]*?(?:block_size|page_size)="(\d+)"', re.M
)
UNKNOWN = "OpenAI-compatible engine"


@dataclass(frozen=True, slots=True)
class Facts:
    """None where an engine does not tell."""

    model: str
    engine: str
    version: str | None = None
    max_model_len: int | None = None
    kv_tokens: int | None = None
    block_size: int | None = None
    max_num_seqs: int | None = None


def find_facts(engine: HttpEngine, model: str | None = None) -> Facts:
    """Return what an engine says of itself, and make it the engine's model.

    Raises:
        InputError: it cannot be reached, is no engine, or has no such model.
    """
    status, text = engine.get("/v1/models")
    if status != 200:
        raise RefusedError(status, text, engine.url)
    try:
        data = json.loads(text)["data"]
        models = {str(entry["id"]): entry for entry in data}
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{engine.url}: /v1/models does not answer as OpenAI's API does; is it an engine?"
        ) from None
    if model is None:
        if len(models) != 1:
            raise InputError(
                f"{engine.url}: serves {', '.join(models) or 'no model'}; choose one with --model"
            )
        model = next(iter(models))
    if model not in models:
        raise InputError(f"{engine.url}: --model: {unknown_name('model', model, models)}")
    entry = models[model]
    engine.model = model
    metrics = _metrics(engine)
    dialect = detect(metrics) if metrics else None
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    length = entry.get("max_model_len") or (meta or {}).get("n_ctx")
    kv_tokens = block = seqs = None
    if dialect is not None:
        kv_tokens = read_metrics(metrics, dialect).kv_tokens
        found = _BLOCK.search(metrics)
        block = int(found.group(1)) if found else None
    if dialect == "llama.cpp":
        engine.keep_alive = False
        seqs, per_slot = _slots(engine)
        if seqs and per_slot:
            kv_tokens, length = seqs * per_slot, per_slot
    return Facts(
        model, dialect or UNKNOWN, _version(engine), int(length) if length else None, kv_tokens,
        block, seqs,
    )  # fmt: skip


def check_idle(engine: HttpEngine) -> None:
    """Check that nobody else uses an engine, as far as it tells.

    Raises:
        InputError: it has requests.
    """
    metrics = _metrics(engine)
    dialect = detect(metrics) if metrics else None
    if dialect is None:
        return
    state = read_metrics(metrics, dialect)
    if state.requests:
        raise InputError(
            f"{engine.url}: the engine has {state.running or 0} requests running and "
            f"{state.waiting or 0} waiting; calibrate it while nobody else uses it"
        )


def _metrics(engine: HttpEngine) -> str:
    status, text = engine.get("/metrics")
    return text if status == 200 else ""


def _version(engine: HttpEngine) -> str | None:
    for path, key in (("/version", "version"), ("/props", "build_info")):
        try:
            status, text = engine.get(path)
            said = json.loads(text).get(key) if status == 200 else None
        except (InputError, ValueError, AttributeError):
            continue
        if isinstance(said, str):
            return said[:100]
    return None


def _slots(engine: HttpEngine) -> tuple[int | None, int | None]:
    """Return llama.cpp's slots and the tokens of each."""
    status, text = engine.get("/props")
    try:
        said = json.loads(text) if status == 200 else {}
        per_slot = said.get("default_generation_settings", {}).get("n_ctx")
        return said.get("total_slots"), per_slot
    except (ValueError, AttributeError):
        return None, None
