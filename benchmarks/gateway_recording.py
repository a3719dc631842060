"""What keys, metrics, logs and spans add to a request on its way through the gateway.

    python benchmarks/gateway_recording.py [--requests 20000] [--json]

Processor time of the event loop's thread, microseconds a request, median of five passes over the same
answered streams: a key looked up and charged, the request opened, ended and settled, so everything of
the gateway that is not reading, routing or relaying. Threads that write and export run beside it, and
what they take from the loop by Python's lock shows in `wall`. Baselines: the same histogram observed by
prometheus_client, the same span begun and ended by OpenTelemetry's SDK (not exported).
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gpusched.domain.gateway import ClientKey
from gpusched.domain.plan import Plan
from gpusched.gateway.access.access import Access
from gpusched.gateway.exchange import CHAT, EngineStatus, Exchange
from gpusched.gateway.observe.exposition import Histogram
from gpusched.gateway.observe.metrics import TTFT_EDGES
from gpusched.gateway.observe.recorder import Recorder

KEY = "gs-benchmark"
PASSES = 5


class Fleet:
    def statuses(self) -> list[EngineStatus]:
        return [EngineStatus(f"http://127.0.0.1:{8101 + i}", "main", up=True) for i in range(4)]

    def held(self) -> int:
        return 0


def plan_of(**gateway: Any) -> Plan:
    return Plan.model_validate(
        {
            "model": "llama-3.1-8b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "n", "count": 1, "gpu": "l40s", "gpus": 4}]},
            "pools": [{"name": "main", "nodes": "n", "gpu": "l40s", "replicas": 4}],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 60},
            "slo": {"ttft_ms": 1000, "tpot_ms": 50},
            "gateway": {"log_level": "off", **gateway},
        }
    )


def answered(number: int, blocks: int) -> Exchange:
    now = time.monotonic()
    exchange = Exchange(
        number, b"POST", b"/v1/chat/completions",
        [(b"host", b"localhost"), (b"user-agent", b"curl"), (b"accept", b"*/*"),
         (b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json"),
         (b"content-length", b"400")],
        b"{}", now, kind=CHAT, model="llama-3.1-8b", stream=True, prompt_tokens=500,
        predicted_tokens=100, prefix=tuple(range(1 << 60, (1 << 60) + blocks)), branch="affinity",
        engine=number % 4, status=200, output_tokens=101, events=102,
    )  # fmt: skip
    exchange.sent_s, exchange.decision_s = now, 1e-5
    exchange.first_byte_s, exchange.last_byte_s = now + 0.2, now + 2.2
    return exchange


def passes(requests: int, blocks: int, **gateway: Any) -> tuple[float, float]:
    """Return processor and wall time, microseconds a request."""
    plan = plan_of(**gateway)
    access = Access(
        [ClientKey(name="a", sha256=hashlib.sha256(KEY.encode()).hexdigest(),
                   requests_per_minute=1e9, tokens_per_minute=1e12)],
        plan.slo.names,
    )  # fmt: skip
    recorder = Recorder(plan, Fleet(), access)
    cpu, wall = [], []
    for _ in range(PASSES):
        exchanges = [answered(i, blocks) for i in range(requests)]
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        for exchange in exchanges:
            now = exchange.received_s
            recorder.opened(exchange, now)
            access.check(exchange, now)
            access.charge(exchange, now)
            exchange.outcome = "ok"
            recorder.ended(exchange, now + 3)
        cpu.append(time.thread_time() - cpu_s)
        wall.append(time.perf_counter() - wall_s)
        time.sleep(0.8)
    recorder.close()
    return statistics.median(cpu) / requests * 1e6, statistics.median(wall) / requests * 1e6


def each(function: Callable[[], object], times: int = 50_000) -> float:
    """Return microseconds a call, median of the passes."""
    seconds = []
    for _ in range(PASSES):
        began = time.thread_time()
        for _ in range(times):
            function()
        seconds.append(time.thread_time() - began)
    return statistics.median(seconds) / times * 1e6


class Collector(ThreadingHTTPServer):
    """Takes spans and throws them away."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def by_prometheus_client() -> float | None:
    try:
        from prometheus_client import Histogram as TheirHistogram
    except ImportError:
        return None
    series = TheirHistogram("t", "t", ["a"], buckets=TTFT_EDGES, registry=None).labels("x")
    return each(lambda: series.observe(0.3))


def by_the_sdk() -> float | None:
    try:
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return None
    tracer = TracerProvider().get_tracer("t")
    attributes = {f"gen_ai.attribute.{i}": i for i in range(16)}
    return each(lambda: tracer.start_span("chat", attributes=attributes).end(), 5000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began, rows = time.perf_counter(), []

    def add(name: str, value: float, baseline: str, base: float | None, **more: float) -> None:
        row = {
            "name": name, "value": value, "unit": "us", "baseline": baseline, "baseline_value": base,
            "ratio": value / base if base else None, **more,
        }  # fmt: skip
        rows.append(row)
        if not args.json:
            wall = f"  wall {more['wall']:6.2f}" if more else ""
            ratio = f"  {row['ratio']:6.3f} of {baseline}" if row["ratio"] else ""
            print(f"{name:42s} {value:7.2f} us{wall}{ratio}", flush=True)

    collector = Collector()
    with tempfile.TemporaryDirectory() as folder:
        log = str(Path(folder) / "requests.jsonl")
        url = f"http://127.0.0.1:{collector.server_port}"
        plain, wall = passes(args.requests, 0)
        name = "keys, limits and metrics"
        add(name, plain, "", None, wall=wall)
        for more, blocks, settings in (
            ("request log", 0, {"request_log": log}),
            ("request log with 32 prefix blocks", 32, {"request_log": log}),
            ("one span in ten", 0, {"otlp_endpoint": url, "otlp_share": 0.1}),
            ("every span", 0, {"otlp_endpoint": url}),
        ):
            cpu, wall = passes(args.requests, blocks, **settings)
            add(f"with {more}", cpu, name, plain, wall=wall)
    collector.shutdown()
    histogram = Histogram(TTFT_EDGES)
    theirs = by_prometheus_client()
    add("a histogram observed", each(lambda: histogram.observe(0.3)), "prometheus_client", theirs)
    if (span := by_the_sdk()) is not None:
        add("a span by OpenTelemetry's SDK", span, name, plain)
    if args.json:
        seconds = time.perf_counter() - began
        json.dump({"benchmark": "gateway_recording", "seconds": seconds, "rows": rows}, sys.stdout)
        print()


if __name__ == "__main__":
    main()
