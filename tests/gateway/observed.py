"""A plan, a fleet and exchanges to observe, without a gateway."""

import random
import time
from typing import Any

from gpusched.domain.plan import Plan
from gpusched.gateway.exchange import CHAT, EngineStatus, Exchange, Refusal

KEY = "gs-test-key"


def make_plan(gateway: dict[str, Any] | None = None, slo: dict[str, Any] | None = None) -> Plan:
    return Plan.model_validate(
        {
            "model": "llama-3.1-8b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "l40s", "count": 1, "gpu": "l40s", "gpus": 2}]},
            "pools": [{"name": "main", "nodes": "l40s", "gpu": "l40s", "replicas": 2}],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 60},
            "slo": slo
            or {
                "chat": {"ttft_ms": 1000, "tpot_ms": 50, "share": 0.5},
                "batch": {"e2e_ms": 60000, "share": 0.5},
            },
            "gateway": gateway if gateway is not None else {"log_level": "off"},
        }
    )


class Fleet:
    """Two engines whose state a test may change."""

    def __init__(self) -> None:
        self.engines = [
            EngineStatus(
                f"http://127.0.0.1:{port}", "main", "mixed", ("llama-3.1-8b", "tiny"), up=True,
                outstanding=port % 7, outstanding_tokens=100.0, running=3.0, waiting=0.0,
                kv_usage=0.4,
            )
            for port in (23101, 23102)
        ]  # fmt: skip
        self.holding = 0

    def statuses(self) -> list[EngineStatus]:
        return self.engines

    def held(self) -> int:
        return self.holding


def make_exchange(number: int = 0, **changes: Any) -> Exchange:
    """Return an answered stream, received now, unless told otherwise."""
    now_s = changes.pop("now_s", time.monotonic())
    exchange = Exchange(
        number, b"POST", b"/v1/chat/completions",
        [(b"host", b"localhost"), (b"content-type", b"application/json"),
         (b"authorization", b"Bearer " + KEY.encode()), (b"user-agent", b"curl/8"),
         (b"accept", b"*/*"), (b"content-length", b"120")],
        b'{"model":"tiny","messages":[{"role":"user","content":"secret words"}]}', now_s,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "kind": CHAT, "model": "tiny", "stream": True, "prompt_tokens": 120,
        "predicted_tokens": 40, "branch": "affinity", "engine": number % 2, "sent_s": now_s + 1e-4,
        "decision_s": 1e-5, "first_byte_s": now_s + 0.2, "last_byte_s": now_s + 1.2,
        "status": 200, "output_tokens": 41, "events": 42, "outcome": "ok",
    }  # fmt: skip
    for name, value in {**settings, **changes}.items():
        setattr(exchange, name, value)
    return exchange


def refused(refusal: Refusal, **changes: Any) -> Exchange:
    """Return an exchange that no engine has seen."""
    nan = float("nan")
    unsent: dict[str, Any] = {
        "engine": -1, "sent_s": nan, "first_byte_s": nan, "last_byte_s": nan, "output_tokens": 0,
        "branch": "", "status": refusal.status, "refusal": refusal, "outcome": "refused",
    }  # fmt: skip
    return make_exchange(**{**unsent, **changes})


def random_exchange(rng: random.Random, number: int, now_s: float) -> Exchange:
    """Return an exchange as traffic brings them."""
    if rng.random() < 0.04:
        refusal = Refusal(503, "Too many wait.", "overloaded_error", "queue_full", retry_after_s=1)
        return refused(refusal, now_s=now_s, slo_class=rng.randrange(2))
    ttft_s = rng.lognormvariate(-1.5, 0.7)
    tokens = int(rng.lognormvariate(4, 0.8)) + 1
    return make_exchange(
        number, now_s=now_s - ttft_s - 0.03 * tokens, slo_class=rng.randrange(2),
        first_byte_s=now_s - 0.03 * tokens, last_byte_s=now_s, output_tokens=tokens,
        branch=rng.choice(("affinity", "least-tokens")),
    )  # fmt: skip
