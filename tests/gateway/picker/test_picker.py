"""The picker's half of the protocol, against messages that a real Envoy has sent."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from gpusched.domain.gateway import GatewaySettings
from gpusched.gateway.exchange import NOWHERE, Exchange, Refusal
from gpusched.gateway.picker import messages
from gpusched.gateway.picker.addresses import literal
from gpusched.gateway.picker.conversation import Conversation, ProtocolError
from gpusched.gateway.picker.picker import EitherRelay, Picker

RECORDED = json.loads(Path(__file__).with_name("envoy_messages.json").read_text())["messages"]
CHOSEN = "127.0.0.1:26101"


class Engine:
    def __init__(self, index: int, url: str, api_key: bytes | None = None) -> None:
        self.index = index
        self.url = url
        self.api_key = api_key
        self.usable = True


class Dispatcher:
    """Sends everything to one engine, or holds or refuses it; writes down what it is told."""

    def __init__(self) -> None:
        self.engines = [Engine(0, "http://127.0.0.1:26100"), Engine(1, f"http://{CHOSEN}", b"k")]
        self.relay: Any = None
        self.told: list[tuple[Any, ...]] = []
        self.refusal: Refusal | None = None
        self.hold = False
        self.prefill = NOWHERE
        self.rename: bytes | None = None

    def submit(self, exchange: Exchange, now_s: float) -> None:
        self.told.append(("submit", list(exchange.tried)))
        if self.refusal is not None:
            self.relay.refuse(exchange, self.refusal)
        elif not self.hold:
            self.send(exchange)

    def send(self, exchange: Exchange) -> None:
        exchange.engine, exchange.prefill_engine = 1, self.prefill
        self.relay.send(exchange, 1, self.prefill)

    def began(self, exchange: Exchange, engine: int, now_s: float) -> None:
        self.told.append(("began", engine))

    def ended(self, exchange: Exchange, now_s: float) -> None:
        self.told.append(("ended", exchange.outcome))

    def failed(self, exchange: Exchange, engine: int, now_s: float, reason: str) -> bool:
        self.told.append(("failed", engine, reason))
        self.relay.send(exchange, 0)
        return True

    def left(self, exchange: Exchange, engine: int, now_s: float) -> None:
        self.told.append(("left", engine))

    def load_report(self, engine: int, header: bytes, now_s: float) -> None:
        self.told.append(("report", engine, header))

    def body_for(self, exchange: Exchange, engine: int) -> bytes:
        return self.rename or exchange.body


class Others:
    """Access, reading and recorder that let everything pass."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.opened_: list[Exchange] = []
        self.ended_: list[Exchange] = []

    def check(self, exchange: Exchange, now_s: float) -> Refusal | None:
        return None

    charge = check

    def read(self, exchange: Exchange) -> Refusal | None:
        exchange.stream = b'"stream": true' in exchange.body
        return self.refusal

    def learn(self, exchange: Exchange) -> None:
        pass

    def opened(self, exchange: Exchange, now_s: float) -> None:
        self.opened_.append(exchange)

    def ended(self, exchange: Exchange, now_s: float) -> None:
        self.ended_.append(exchange)


class Stage:
    """A picker with doubles around it, and one conversation."""

    def __init__(self, **settings: Any) -> None:
        self.dispatcher, self.others = Dispatcher(), Others()
        o: Any = self.others
        self.picker = Picker(GatewaySettings(**settings), o, o, self.dispatcher, o)
        self.dispatcher.relay = self.picker
        self.replies: list[Any] = []
        self.conversation = Conversation(self.picker, self.replies.append)

    def play(self, recorded: list[str], count: int | None = None) -> None:
        """Take recorded messages in, checking that each is answered as Envoy expects."""
        for i, data in enumerate(recorded[:count]):
            request = messages.ProcessingRequest.FromString(base64.b64decode(data))
            self.conversation.take(request, float(i))

    @property
    def kinds(self) -> list[str]:
        return [reply.WhichOneof("one") for reply in self.replies]

    @property
    def exchange(self) -> Exchange:
        (exchange,) = self.others.opened_
        return exchange


def headers_of(mutation: Any) -> dict[str, bytes]:
    return {option.header.key: option.header.raw_value for option in mutation.set_headers}


def metadata_of(reply: Any) -> str:
    fields = reply.dynamic_metadata.fields["envoy.lb"].struct_value.fields
    value: str = fields["x-gateway-destination-endpoint"].string_value
    return value


def test_the_endpoint_stands_in_header_and_metadata() -> None:
    stage = Stage()
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["plain"], 3)
    assert stage.kinds == ["request_headers", "request_body"]
    head, body = stage.replies
    assert headers_of(head.request_headers.response.header_mutation) == {
        "x-gateway-destination-endpoint": CHOSEN.encode(),
        "authorization": b"Bearer k",
        "endpoint-load-metrics-format": b"TEXT",
    }
    assert metadata_of(head) == CHOSEN
    assert head.request_headers.response.clear_route_cache
    streamed = body.request_body.response.body_mutation.streamed_response
    assert json.loads(streamed.body)["prompt"] == "hello there"
    assert streamed.end_of_stream
    exchange = stage.exchange
    assert (exchange.method, exchange.target) == (b"POST", b"/v1/completions")
    assert exchange.header(b"x-slo-class") == b"default"
    assert not any(name.startswith(b":") for name, _ in exchange.headers)


@pytest.mark.parametrize("mode", RECORDED)
@pytest.mark.parametrize("name", ["plain", "stream"])
def test_an_answer_is_followed_to_its_end(mode: str, name: str) -> None:
    stage = Stage()
    recorded = RECORDED[mode][name]
    stage.play(recorded)
    asked = [
        messages.ProcessingRequest.FromString(base64.b64decode(d)).WhichOneof("one")
        for d in recorded
    ]
    if mode == "BUFFERED":
        assert stage.kinds == asked
        mutation = stage.replies[1].request_body.response.header_mutation
        assert headers_of(mutation)["x-gateway-destination-endpoint"] == CHOSEN.encode()
        assert metadata_of(stage.replies[1]) == CHOSEN
    else:
        assert stage.kinds == ["request_headers", "request_body", *asked[3:]]
        said = b"".join(
            reply.response_body.response.body_mutation.streamed_response.body
            for reply in stage.replies[3:]
        )
        assert b'"completion_tokens":5' in said
        assert stage.replies[
            -1
        ].response_body.response.body_mutation.streamed_response.end_of_stream
    assert stage.dispatcher.told[-2:] == [("began", 1), ("ended", "ok")]
    exchange = stage.exchange
    assert (exchange.status, exchange.outcome, exchange.output_tokens) == (200, "ok", 5)
    assert exchange.prompt_tokens == 2
    assert stage.others.ended_ == [exchange]
    assert not stage.picker.open
    stage.conversation.closed(9.0)
    assert len(stage.others.ended_) == 1


def test_a_request_without_body_is_decided_on_its_headers() -> None:
    stage = Stage()
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["get"])
    assert stage.kinds[0] == "request_headers"
    assert stage.exchange.method == b"GET"
    assert stage.dispatcher.told[-1] == ("ended", "ok")


def test_an_engine_that_envoy_cannot_reach_counts_as_failed() -> None:
    stage = Stage()
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["unreachable"])
    assert ("failed", 1, "connect") in stage.dispatcher.told
    assert ("began", 1) not in stage.dispatcher.told
    assert stage.dispatcher.told[-1] == ("ended", "failed")
    # The dispatcher's wish to send it elsewhere came too late: one endpoint was named.
    named = [kind for kind in stage.kinds if kind == "request_headers"]
    assert len(named) == 1


def test_a_client_that_goes_away_ends_the_exchange() -> None:
    stage = Stage()
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["cancelled"])
    assert stage.picker.open
    stage.conversation.closed(9.0)
    assert stage.dispatcher.told[-1] == ("ended", "cancelled")
    assert not stage.picker.open


def test_refusals_are_immediate_answers() -> None:
    stage = Stage()
    stage.dispatcher.refusal = Refusal(
        429, "busy", "overloaded_error", code="overloaded", retry_after_s=2.2
    )
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["plain"], 3)
    (reply,) = stage.replies
    answer = reply.immediate_response
    assert answer.status.code == 429
    assert headers_of(answer.headers)["retry-after"] == b"3"
    assert json.loads(answer.body)["error"]["code"] == "overloaded"
    assert stage.dispatcher.told[-1] == ("ended", "refused")
    assert stage.exchange.refusal is stage.dispatcher.refusal


def test_a_request_that_reading_refuses_is_not_submitted() -> None:
    stage = Stage()
    stage.others.refusal = Refusal(404, "no such model")
    stage.play(RECORDED["BUFFERED"]["plain"], 2)
    assert stage.kinds == ["request_headers", "immediate_response"]
    assert stage.dispatcher.told == []
    assert stage.others.ended_[0].outcome == "refused"


def test_a_held_request_is_decided_later() -> None:
    stage = Stage(max_wait_s=30)
    stage.dispatcher.hold = True
    stage.play(RECORDED["BUFFERED"]["plain"], 2)
    assert stage.replies[1].override_message_timeout.seconds == 31
    stage.dispatcher.send(stage.exchange)
    assert stage.kinds == ["request_headers", None, "request_body"]


def test_long_bodies_come_back_in_pieces_and_too_long_ones_are_refused() -> None:
    head = messages.ProcessingRequest.FromString(
        base64.b64decode(RECORDED["FULL_DUPLEX_STREAMED"]["plain"][0])
    )
    body = b'{"prompt": "' + b"x" * 150_000 + b'"}'
    for limit, kinds in ((200_000, ["request_headers"] + ["request_body"] * 3), (100_000, ["immediate_response"])):  # fmt: skip
        stage = Stage(max_body_bytes=limit)
        stage.conversation.take(head, 0.0)
        for low in range(0, len(body), 50_000):
            part = messages.ProcessingRequest()
            part.request_body.body = body[low : low + 50_000]
            part.request_body.end_of_stream = low + 50_000 >= len(body)
            stage.conversation.take(part, 0.0)
        assert stage.kinds == kinds
        if limit == 200_000:
            parts = [r.request_body.response.body_mutation.streamed_response for r in stage.replies[1:]]  # fmt: skip
            assert b"".join(part.body for part in parts) == body
            assert [part.end_of_stream for part in parts] == [False, False, True]
        else:
            assert stage.replies[0].immediate_response.status.code == 413


def test_only_endpoints_that_the_data_plane_allows() -> None:
    def played(subset: Any) -> Stage:
        stage = Stage()
        first, *rest = RECORDED["FULL_DUPLEX_STREAMED"]["plain"][:3]
        request = messages.ProcessingRequest.FromString(base64.b64decode(first))
        entry = request.metadata_context.filter_metadata.add(key="envoy.lb.subset_hint")
        entry.value.update({"x-gateway-destination-endpoint-subset": subset})
        stage.conversation.take(request, 0.0)
        stage.play(rest)
        return stage

    assert played([CHOSEN]).dispatcher.told[0] == ("submit", [0])
    assert played(f"{CHOSEN}, 10.0.0.1:80").dispatcher.told[0] == ("submit", [0])
    assert played(["127.0.0.1"]).dispatcher.told[0] == ("submit", [])
    for nothing in ([], ["10.0.0.1:80"]):
        stage = played(nothing)
        assert stage.replies[0].immediate_response.status.code == 503
        assert stage.dispatcher.told == []


def test_the_endpoint_that_served_counts() -> None:
    stage = Stage()
    recorded = RECORDED["FULL_DUPLEX_STREAMED"]["plain"]
    stage.play(recorded, 3)
    request = messages.ProcessingRequest.FromString(base64.b64decode(recorded[3]))
    entry = request.metadata_context.filter_metadata.add(key="envoy.lb")
    entry.value.update({"x-gateway-destination-endpoint-served": "127.0.0.1:26100"})
    stage.conversation.take(request, 4.0)
    assert stage.exchange.engine == 0


def test_a_prefill_engine_is_named_to_the_sidecar() -> None:
    stage = Stage()
    stage.dispatcher.prefill = 0
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["plain"])
    mutation = stage.replies[0].request_headers.response.header_mutation
    assert headers_of(mutation)["x-prefiller-host-port"] == b"127.0.0.1:26100"
    began = [told for told in stage.dispatcher.told if told[0] == "began"]
    assert began == [("began", 0), ("began", 1)]


def test_a_renamed_model_reaches_the_engine() -> None:
    for mode in RECORDED:
        stage = Stage()
        stage.dispatcher.rename = b'{"model": "other"}'
        stage.play(RECORDED[mode]["plain"][:3])
        reply = next(r for r in stage.replies if r.WhichOneof("one") == "request_body")
        change = reply.request_body.response.body_mutation
        assert b'"other"' in (change.body or change.streamed_response.body)


def test_modes_that_leave_nothing_to_decide_on() -> None:
    request = messages.ProcessingRequest.FromString(
        base64.b64decode(RECORDED["FULL_DUPLEX_STREAMED"]["plain"][0])
    )
    request.protocol_config.request_body_mode = messages.STREAMED
    with pytest.raises(ProtocolError, match="request_body_mode must be"):
        Stage().conversation.take(request, 0.0)
    request.protocol_config.request_body_mode = messages.FULL_DUPLEX_STREAMED
    request.observability_mode = True
    with pytest.raises(ProtocolError, match="observability_mode"):
        Stage().conversation.take(request, 0.0)


def test_load_reports_are_taken_and_taken_out() -> None:
    stage = Stage()
    recorded = RECORDED["FULL_DUPLEX_STREAMED"]["plain"]
    stage.play(recorded, 3)
    request = messages.ProcessingRequest.FromString(base64.b64decode(recorded[3]))
    request.response_headers.headers.headers.add(key="endpoint-load-metrics", raw_value=b"TEXT x=1")
    stage.conversation.take(request, 4.0)
    assert ("report", 1, b"TEXT x=1") in stage.dispatcher.told
    mutation = stage.replies[-1].response_headers.response.header_mutation
    assert list(mutation.remove_headers) == ["endpoint-load-metrics"]


def test_addresses() -> None:
    assert literal("http://10.1.2.3:8000") == "10.1.2.3:8000"
    assert literal("http://[fd00::1]:8000") == "[fd00::1]:8000"
    assert literal("https://10.1.2.3") == "10.1.2.3:443"
    assert literal("http://engine-0:8000") is None


def test_each_relay_gets_its_own() -> None:
    stage = Stage()
    own = Stage().picker
    stage.play(RECORDED["FULL_DUPLEX_STREAMED"]["plain"], 3)
    either = EitherRelay(own, stage.picker)
    assert either._of(stage.exchange) is stage.picker
    stage.exchange.carrier = None
    assert either._of(stage.exchange) is own
