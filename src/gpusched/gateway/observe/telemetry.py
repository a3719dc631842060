"""OpenTelemetry spans of requests, by the conventions for generative AI, over OTLP/HTTP.

The conventions are still in development; names of attributes stand here and nowhere else.
"""

import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gpusched import __version__
from gpusched.errors import InputError
from gpusched.gateway.exchange import CHAT, COMPLETION, NOWHERE, Exchange
from gpusched.gateway.observe.latency import Latency

EXPORT_S = 1.0
MAX_PENDING = 4096
BATCH = 512
OPERATIONS = {CHAT: "chat", COMPLETION: "text_completion"}
TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
HEX = frozenset(b"0123456789abcdef")


class SpanIds(NamedTuple):
    """Where a request stands in its trace."""

    trace: int
    parent: int
    """0 for none."""
    span: int
    sampled: bool


class _Ended(NamedTuple):
    exchange: Exchange
    latency: Latency
    ids: SpanIds


def parse_traceparent(value: bytes) -> tuple[int, int, bool] | None:
    """Return trace, parent and whether sampled, of a W3C header; None if it is not valid."""
    parts = value.strip().split(b"-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    version, trace, parent, flags = parts[:4]
    if not all(HEX.issuperset(part) for part in parts[:4]) or version == b"ff":
        return None
    if version == b"00" and len(parts) > 4:
        return None
    trace_id, parent_id = int(trace, 16), int(parent, 16)
    if not trace_id or not parent_id:
        return None
    return trace_id, parent_id, bool(int(flags, 16) & 1)


class Telemetry:
    """Gives requests their place in a trace and exports a span of each, on a thread of its own."""

    def __init__(
        self,
        endpoint: str,
        engine_name: Callable[[int], str],
        clock_offset_s: float,
        *,
        share: float = 1.0,
    ) -> None:
        """``share`` of the requests whose caller has not decided are exported.

        Raises:
            InputError: the libraries are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise InputError(
                "gateway.otlp_endpoint needs OpenTelemetry: pip install 'gpusched[telemetry]'"
            ) from None
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + "/v1/traces"
        self._exporter: Any = OTLPSpanExporter(endpoint=endpoint, timeout=5)
        self._resource = Resource.create({"service.name": "gpusched"})
        self._scope = InstrumentationScope("gpusched.gateway", __version__)
        self._engine_name = engine_name
        self._offset_s, self._share = clock_offset_s, share
        self._random = random.Random()
        self._pending: deque[_Ended] = deque(maxlen=MAX_PENDING)
        self.dropped = 0
        """Spans for which there was no room, or that nobody took."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpusched-spans", daemon=True)
        self._thread.start()

    def opened(self, exchange: Exchange) -> None:
        """Place a request in its caller's trace, or in a new one, and tell the engine so."""
        headers, at, given = exchange.headers, -1, None
        for i, (name, value) in enumerate(headers):
            if name == TRACEPARENT:
                at, given = i, parse_traceparent(value)
                break
        span = self._random.getrandbits(64) or 1
        if given is None:
            sampled = self._share >= 1 or self._random.random() < self._share
            ids = SpanIds(self._random.getrandbits(128) or 1, 0, span, sampled)
        else:
            ids = SpanIds(given[0], given[1], span, given[2])
        header = (TRACEPARENT, b"00-%032x-%016x-%02x" % (ids.trace, span, ids.sampled))
        if at < 0:
            headers.append(header)
        else:
            headers[at] = header
        exchange.context = ids

    def ended(self, exchange: Exchange, latency: Latency) -> None:
        """Queue the span of an exchange that is over, if it is sampled, and let go of its body."""
        ids = exchange.context
        if isinstance(ids, SpanIds) and ids.sampled:
            if len(self._pending) == MAX_PENDING:
                self.dropped += 1
            exchange.body = b""
            self._pending.append(_Ended(exchange, latency, ids))

    def close(self) -> None:
        """Export what waits, for at most three seconds, and stop."""
        self._stop.set()
        self._thread.join(timeout=3.0)
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._stop.wait(EXPORT_S):
            self._export()
        self._export()

    def _export(self) -> None:
        while count := len(self._pending):
            batch = [self._pending.popleft() for _ in range(min(count, BATCH))]
            spans = [self._span(ended) for ended in batch]
            if self._exporter.export(spans).name != "SUCCESS":
                self.dropped += len(spans)

    def _span(self, ended: _Ended) -> Any:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace.span import TraceState

        exchange, latency, ids = ended
        operation = OPERATIONS.get(exchange.kind)
        state = exchange.header(TRACESTATE)
        shared: dict[str, Any] = {
            "trace_flags": TraceFlags(1),
            "trace_state": TraceState.from_header([state.decode("latin-1")] if state else []),
        }
        context = SpanContext(ids.trace, ids.span, False, **shared)
        parent = SpanContext(ids.trace, ids.parent, True, **shared) if ids.parent else None
        first_s = exchange.first_byte_s
        events = (
            [Event("first_token", timestamp=self._ns(first_s))]
            if exchange.stream and first_s == first_s
            else []
        )
        ended_s = exchange.last_byte_s
        if ended_s != ended_s:
            ended_s = max(
                exchange.received_s, *(t for t in (exchange.sent_s, first_s) if t == t), 0
            )
        failed = exchange.outcome in ("failed", "refused") or exchange.status >= 400
        return ReadableSpan(
            name=f"{operation} {exchange.model}".strip()
            if operation
            else f"{exchange.method.decode('latin-1')} {_path(exchange)}",
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=self._attributes(exchange, latency, operation),
            events=events,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=self._ns(exchange.received_s),
            end_time=self._ns(ended_s),
            instrumentation_scope=self._scope,
        )

    def _attributes(
        self, exchange: Exchange, latency: Latency, operation: str | None
    ) -> dict[str, Any]:
        given: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "gpusched",
            "gen_ai.request.model": exchange.model or None,
            "gen_ai.request.max_tokens": exchange.max_tokens,
            "gen_ai.request.choice.count": exchange.choices if exchange.choices != 1 else None,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens or None,
            "gen_ai.usage.output_tokens": exchange.output_tokens or None,
            "gen_ai.usage.cache_read.input_tokens": exchange.cached_tokens or None,
            "gen_ai.server.request.duration": _known(latency.e2e_s),
            "gen_ai.server.time_to_first_token": _known(latency.ttft_s),
            "gen_ai.server.time_per_output_token": _known(latency.tpot_s),
            "http.request.method": exchange.method.decode("latin-1"),
            "http.response.status_code": exchange.status or None,
            "url.path": _path(exchange),
            "gpusched.outcome": exchange.outcome,
            "gpusched.policy": exchange.branch or None,
            "gpusched.client": exchange.client or None,
            "gpusched.queue_time": _known(exchange.sent_s - exchange.received_s),
            "gpusched.engines_failed": len(exchange.tried) or None,
        }
        if exchange.engine != NOWHERE:
            address = urlsplit(self._engine_name(exchange.engine))
            given["server.address"] = address.hostname
            given["server.port"] = address.port or (443 if address.scheme == "https" else 80)
        if exchange.refusal is not None:
            given["error.type"] = exchange.refusal.code or exchange.refusal.kind
        elif exchange.outcome in ("failed", "cancelled"):
            given["error.type"] = exchange.outcome
        elif exchange.status >= 400:
            given["error.type"] = str(exchange.status)
        return {name: value for name, value in given.items() if value is not None}

    def _ns(self, time_s: float) -> int:
        return int((time_s + self._offset_s) * 1e9)


def _known(seconds: float) -> float | None:
    return seconds if seconds == seconds else None


def _path(exchange: Exchange) -> str:
    return exchange.target.partition(b"?")[0].decode("latin-1")
