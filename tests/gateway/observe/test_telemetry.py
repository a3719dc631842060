import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from observed import Fleet, make_exchange, make_plan, refused

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gpusched.gateway.exchange import Refusal
from gpusched.gateway.observe.recorder import Recorder
from gpusched.gateway.observe.telemetry import parse_traceparent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes in OTLP over HTTP on loopback and decodes its protobuf."""

    def __init__(self, status=200):
        self.spans, self.resources, self.paths, self.status = [], [], [], status
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                outer.paths.append(self.path)
                for resource in request.resource_spans:
                    outer.resources.append(resource.resource)
                    for scope in resource.scope_spans:
                        outer.spans += scope.spans
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def export(collector, exchanges, **settings):
    settings = {"log_level": "off", "otlp_endpoint": collector.url, **settings}
    recorder = Recorder(make_plan(settings), Fleet())
    for exchange in exchanges:
        recorder.opened(exchange, exchange.received_s)
        recorder.ended(exchange, exchange.last_byte_s)
    recorder.close()
    return collector.spans


def attributes(span):
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
    }


def with_parent(exchange, flags="01"):
    exchange.headers.insert(1, (b"traceparent", f"00-{TRACE}-{PARENT}-{flags}".encode()))
    exchange.headers.append((b"tracestate", b"vendor=abc"))
    return exchange


def test_a_span_says_what_the_conventions_ask(collector):
    exchange = make_exchange(max_tokens=64, cached_tokens=32, client="alice")
    [span] = export(collector, [exchange])
    assert collector.paths == ["/v1/traces"]
    assert [(a.key, a.value.string_value) for a in collector.resources[0].attributes if
            a.key == "service.name"] == [("service.name", "gpusched")]  # fmt: skip
    assert span.name == "chat tiny"
    assert span.kind == span.SPAN_KIND_SERVER
    assert span.parent_span_id == b""
    said = attributes(span)
    assert said.pop("gen_ai.server.time_to_first_token") == pytest.approx(0.2)
    assert said.pop("gen_ai.server.time_per_output_token") == pytest.approx(0.025)
    assert said.pop("gen_ai.server.request.duration") == pytest.approx(1.2)
    assert said.pop("gpusched.queue_time") == pytest.approx(1e-4, rel=1e-3)
    assert said == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "gpusched",
        "gen_ai.request.model": "tiny", "gen_ai.request.max_tokens": 64,
        "gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 41,
        "gen_ai.usage.cache_read.input_tokens": 32,
        "server.address": "127.0.0.1", "server.port": 23101,
        "http.request.method": "POST", "http.response.status_code": 200,
        "url.path": "/v1/chat/completions", "gpusched.outcome": "ok",
        "gpusched.policy": "affinity", "gpusched.client": "alice",
    }  # fmt: skip
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(1.2e9, rel=1e-3)
    assert abs(span.start_time_unix_nano / 1e9 - time.time()) < 10
    [event] = span.events
    assert event.name == "first_token"
    assert event.time_unix_nano - span.start_time_unix_nano == pytest.approx(2e8, rel=1e-3)


def test_the_callers_trace_goes_on_to_the_engine(collector):
    exchange = with_parent(make_exchange())
    [span] = export(collector, [exchange])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=abc"
    passed_on = [value for name, value in exchange.headers if name == b"traceparent"]
    assert passed_on == [f"00-{TRACE}-{span.span_id.hex()}-01".encode()]


def test_without_a_caller_the_trace_begins_here(collector):
    a, b = make_exchange(), make_exchange()
    spans = export(collector, [a, b])
    for exchange, span in zip((a, b), spans, strict=True):
        expected = f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01".encode()
        assert exchange.header(b"traceparent") == expected
    assert spans[0].trace_id != spans[1].trace_id


def test_what_the_caller_does_not_sample_is_not_exported(collector):
    exchange = with_parent(make_exchange(), "00")
    assert export(collector, [exchange]) == []
    trace, _, sampled = parse_traceparent(exchange.header(b"traceparent"))
    assert (f"{trace:032x}", sampled) == (TRACE, False)


def test_a_share_of_the_others(collector):
    spans = export(collector, [make_exchange() for _ in range(400)], otlp_share=0.25)
    assert 50 < len(spans) < 150


def test_refusals_are_errors(collector):
    [span] = export(collector, [refused(Refusal(429, "slow", "requests", "rate_limit_exceeded"))])
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "rate_limit_exceeded"


def test_no_words_of_the_prompt_leave(collector):
    [span] = export(collector, [make_exchange()])
    assert b"secret" not in span.SerializeToString()


def test_a_collector_that_is_away_costs_spans_not_time(collector):
    collector.server.shutdown()
    collector.server.server_close()
    settings = {"log_level": "off", "otlp_endpoint": collector.url}
    recorder = Recorder(make_plan(settings), Fleet())
    began = time.monotonic()
    for _ in range(6000):
        exchange = make_exchange()
        recorder.opened(exchange, exchange.received_s)
        recorder.ended(exchange, exchange.last_byte_s)
    recorder.close()
    assert time.monotonic() - began < 10
    assert recorder._telemetry.dropped > 1000


@given(st.binary(max_size=80))
def test_nonsense_is_no_traceparent(value):
    parsed = parse_traceparent(value)
    assert parsed is None or value.strip().count(b"-") >= 3


@pytest.mark.parametrize(
    "value",
    [f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01",
     f"00-{TRACE.upper()}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-x", f"00-{TRACE}-{PARENT}", ""],
)  # fmt: skip
def test_what_the_standard_forbids_is_no_traceparent(value):
    assert parse_traceparent(value.encode()) is None


def test_a_later_version_is_read():
    assert parse_traceparent(f"cc-{TRACE}-{PARENT}-01-more".encode()) == (
        int(TRACE, 16), int(PARENT, 16), True,
    )  # fmt: skip
