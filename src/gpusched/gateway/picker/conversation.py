"""One HTTP exchange as Envoy tells it, and what it is told: the endpoint picker protocol.

Envoy sends the request's headers and body, the picker answers with the endpoint in the header and in
the metadata ``x-gateway-destination-endpoint``, then follows the answer to its end, so that load
counters do. Bodies pass through the picker in Envoy's mode ``FULL_DUPLEX_STREAMED``, which the
protocol asks for; ``BUFFERED`` request bodies and ``STREAMED`` or ``BUFFERED`` answers work too.
No gRPC here: messages go in, messages come out.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gpusched.domain.gateway import GatewaySettings
from gpusched.gateway.exchange import NOWHERE, Access, Exchange, Reading, Refusal
from gpusched.gateway.picker import messages
from gpusched.gateway.picker.addresses import Addresses
from gpusched.gateway.picker.engines import PickingDispatcher
from gpusched.gateway.picker.messages import ProcessingResponse, header_pairs, set_header
from gpusched.gateway.wire.errors import error_body
from gpusched.gateway.wire.head import REPORT, REPORT_FORMAT
from gpusched.gateway.wire.usage import TAIL_BYTES, TAIL_READS, usage

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"
NAMESPACE, SUBSET_NAMESPACE = "envoy.lb", "envoy.lb.subset_hint"
PREFILLER = "x-prefiller-host-port"
"""By which llm-d's sidecar beside a decode engine learns where to have the prompt computed."""
CHUNK_BYTES = 62_000
"""Of a body in one message; Envoy takes 64 KiB."""
_BUFFERING = (messages.BUFFERED, messages.BUFFERED_PARTIAL)

Send = Callable[[Any], None]


class ProtocolError(Exception):
    """Envoy is configured in a way that a picker cannot work with; the message says how."""


class Picker(Protocol):
    """What a conversation asks of those who decide."""

    settings: GatewaySettings
    access: Access
    reading: Reading
    dispatcher: PickingDispatcher
    addresses: Addresses

    def number(self) -> int:
        """Return the next exchange's number."""
        ...

    def opened(self, conversation: "Conversation", now_s: float) -> None:
        """Take in that a request has begun."""
        ...

    def ended(self, conversation: "Conversation", submitted: bool, now_s: float) -> None:
        """Take in that it is over."""
        ...


class Conversation:
    """What has been said of one HTTP exchange."""

    def __init__(self, picker: Picker, send: Send) -> None:
        self.picker = picker
        self.exchange: Exchange | None = None
        self._send = send
        self._head: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._request_mode = self._response_mode = messages.FULL_DUPLEX_STREAMED
        self._trailers = False
        """Whether the request ended with trailers, which then end our answer to its body."""
        self._subset: list[str] | None = None
        self._submitted = False
        self._decided = False
        self._over = False
        self._asked_report = False
        self._tail: deque[bytes] = deque(maxlen=TAIL_READS)

    def take(self, request: Any, now_s: float) -> None:
        """Take in a message; answers go out by ``send``, now or later.

        Raises:
            ProtocolError: Envoy sends bodies in a mode that leaves nothing to decide on.
        """
        if request.HasField("protocol_config"):
            self._request_mode = request.protocol_config.request_body_mode
            self._response_mode = request.protocol_config.response_body_mode
        if request.observability_mode:
            raise ProtocolError("observability_mode is on: Envoy would not hear what is picked")
        kind = request.WhichOneof("one")
        if kind == "request_headers":
            self._request_headers(request, now_s)
        elif kind == "request_body":
            self._request_body(request.request_body, now_s)
        elif kind == "request_trailers":
            self._trailers = True
            self._complete(now_s)
        elif kind == "response_headers":
            self._response_headers(request, now_s)
        elif kind == "response_body":
            self._response_body(request.response_body, now_s)
        elif kind == "response_trailers":
            self._send(ProcessingResponse(response_trailers={}))
            self._end(now_s)

    def closed(self, now_s: float) -> None:
        """Take in that Envoy has nothing more to say of this exchange."""
        exchange = self.exchange
        if exchange is None or self._over:
            return
        if exchange.status and self._response_mode == messages.NONE:
            self._end(now_s)
            return
        exchange.outcome = "failed" if exchange.status >= 500 else "cancelled"
        self._finish(now_s)

    # The request.

    def _request_headers(self, request: Any, now_s: float) -> None:
        head = request.request_headers
        self._head = header_pairs(head.headers)
        told = messages.metadata_value(request.metadata_context, SUBSET_NAMESPACE, SUBSET)
        if told is not None:
            parts = told.split(",") if isinstance(told, str) else told
            self._subset = [part.strip() for text in parts for part in text.split(",")]
        if head.end_of_stream:
            self._request_mode = messages.NONE
            self._complete(now_s)
        elif self._request_mode in _BUFFERING:
            self._send(ProcessingResponse(request_headers={}))
        elif self._request_mode != messages.FULL_DUPLEX_STREAMED:
            raise ProtocolError(
                "request_body_mode must be FULL_DUPLEX_STREAMED (or BUFFERED): the model and the "
                "prompt stand in the body"
            )

    def _request_body(self, part: Any, now_s: float) -> None:
        self._body.append(part.body)
        self._size += len(part.body)
        limit = self.picker.settings.max_body_bytes
        if self._size > limit and not self._decided:
            refusal = Refusal(413, f"the body has more than {limit} bytes", code="body_too_large")
            self._refuse_unread(refusal, now_s)
        elif part.end_of_stream:
            self._complete(now_s)
        elif self._request_mode in _BUFFERING and not self._decided:
            refusal = Refusal(413, "the body is longer than the proxy's buffer")
            self._refuse_unread(refusal, now_s)

    def _complete(self, now_s: float) -> None:
        """Decide on a request that has been read whole."""
        if self._decided or self._submitted:
            return
        exchange = self._opened(now_s)
        picker = self.picker
        refusal = picker.access.check(exchange, now_s)
        if refusal is None:
            refusal = picker.reading.read(exchange)
        if refusal is None:
            refusal = picker.access.charge(exchange, now_s)
        if refusal is None and self._subset is not None:
            refusal = self._restrict(exchange)
        if refusal is not None:
            self.refuse(refusal, now_s)
            return
        self._submitted = True
        picker.dispatcher.submit(exchange, now_s)
        if not self._decided and self._request_mode in _BUFFERING:
            # Held: without a word in time Envoy would give up.
            patience = ProcessingResponse()
            patience.override_message_timeout.seconds = math.ceil(picker.settings.max_wait_s) + 1
            self._send(patience)

    def _opened(self, now_s: float) -> Exchange:
        head = dict(self._head)
        exchange = Exchange(
            self.picker.number(), head.get(b":method", b"POST"), head.get(b":path", b"/"),
            [(name, value) for name, value in self._head if name[:1] != b":"],
            b"".join(self._body), now_s,
        )  # fmt: skip
        exchange.carrier = self
        self.exchange = exchange
        self.picker.opened(self, now_s)
        return exchange

    def _restrict(self, exchange: Exchange) -> Refusal | None:
        """Leave only the endpoints that the data plane allows."""
        assert self._subset is not None
        allowed = set(self._subset)
        engines = self.picker.dispatcher.engines
        addresses = [self.picker.addresses.of(engine.url) for engine in engines]
        others = [
            engine.index
            for engine, at in zip(engines, addresses, strict=True)
            if at is None or (at not in allowed and at.rpartition(":")[0] not in allowed)
        ]
        if len(others) == len(engines):
            return Refusal(
                503, "none of the endpoints that the data plane allows is one of the plan's",
                "overloaded_error", code="no_engine",
            )  # fmt: skip
        exchange.tried.extend(others)
        return None

    # Decisions, from the dispatcher.

    def go(self, engine: int, prefill: int, now_s: float) -> None:
        """Tell Envoy where the request goes."""
        exchange = self.exchange
        assert exchange is not None
        if self._decided:
            return
        picker = self.picker
        target = picker.dispatcher.engines[engine]
        at = picker.addresses.of(target.url)
        ahead = picker.addresses.of(picker.dispatcher.engines[prefill].url) if prefill >= 0 else ""
        if at is None or ahead is None:
            refusal = Refusal(
                503, "the engine's name cannot be resolved", "overloaded_error", code="no_engine"
            )
            self.refuse(refusal, now_s)
            return
        self._decided = True
        reply = ProcessingResponse()
        reply.dynamic_metadata.update({NAMESPACE: {DESTINATION: at}})
        buffered = self._request_mode in _BUFFERING
        part = reply.request_body if buffered else reply.request_headers
        part.response.clear_route_cache = True
        mutation = part.response.header_mutation
        set_header(mutation, DESTINATION, at.encode())
        if ahead:
            set_header(mutation, PREFILLER, ahead.encode())
        if target.api_key is not None:
            set_header(mutation, "authorization", b"Bearer " + target.api_key)
        elif picker.settings.keys:
            mutation.remove_headers.append("authorization")
        if exchange.header(REPORT_FORMAT) is None:
            self._asked_report = True
            set_header(mutation, REPORT_FORMAT.decode(), b"TEXT")
        body = exchange.body
        if body:
            body = picker.dispatcher.body_for(exchange, engine)
        if buffered and body is not exchange.body:
            part.response.body_mutation.body = body
            set_header(mutation, "content-length", b"%d" % len(body))
        self._send(reply)
        if self._request_mode == messages.FULL_DUPLEX_STREAMED:
            self._send_body(body)
        self._body.clear()

    def _send_body(self, body: bytes) -> None:
        pieces = [body[low : low + CHUNK_BYTES] for low in range(0, len(body), CHUNK_BYTES)]
        for i, piece in enumerate(pieces or [b""]):
            reply = ProcessingResponse()
            streamed = reply.request_body.response.body_mutation.streamed_response
            streamed.body = piece
            streamed.end_of_stream = not self._trailers and i >= len(pieces) - 1
            self._send(reply)
        if self._trailers:
            self._send(ProcessingResponse(request_trailers={}))

    def _refuse_unread(self, refusal: Refusal, now_s: float) -> None:
        self._body.clear()
        self._opened(now_s)
        self.refuse(refusal, now_s)

    def refuse(self, refusal: Refusal, now_s: float) -> None:
        """Have Envoy answer the client itself."""
        exchange = self.exchange
        assert exchange is not None
        if self._decided or self._over:
            return
        self._decided = True
        exchange.status, exchange.refusal, exchange.outcome = refusal.status, refusal, "refused"
        reply = ProcessingResponse()
        answer = reply.immediate_response
        answer.status.code = refusal.status
        set_header(answer.headers, "content-type", b"application/json")
        if refusal.retry_after_s is not None:
            wait_s = max(1, math.ceil(refusal.retry_after_s))
            set_header(answer.headers, "retry-after", b"%d" % wait_s)
        for name, value in refusal.headers:
            set_header(answer.headers, name.decode("latin-1"), value)
        answer.body = error_body(refusal.message, refusal.kind, refusal.code, refusal.param)
        answer.details = refusal.code or refusal.kind
        self._send(reply)
        self._finish(now_s)

    # The answer.

    def _response_headers(self, request: Any, now_s: float) -> None:
        head = request.response_headers
        reply = ProcessingResponse(response_headers={})
        exchange = self.exchange
        if exchange is not None and not self._over:
            headers = dict(header_pairs(head.headers))
            status = headers.get(b":status", b"")
            exchange.status = int(status) if status.isdigit() else 0
            self._judge(exchange, request, b"x-envoy-upstream-service-time" in headers, now_s)
            report = headers.get(REPORT)
            if report is not None:
                self.picker.dispatcher.load_report(exchange.engine, report, now_s)
                if self._asked_report:
                    mutation = reply.response_headers.response.header_mutation
                    mutation.remove_headers.append(REPORT.decode())
        self._send(reply)
        if head.end_of_stream:
            self._end(now_s)

    def _judge(self, exchange: Exchange, request: Any, answered: bool, now_s: float) -> None:
        """Learn from the answer's status how its engine is; Envoy itself answers for one that it
        cannot reach, and then names no upstream time."""
        picker = self.picker
        served = messages.metadata_value(request.metadata_context, NAMESPACE, SERVED)
        if served is not None:
            engines = picker.dispatcher.engines
            found = (e.index for e in engines if picker.addresses.of(e.url) == served)
            exchange.engine = next(found, exchange.engine)
        if exchange.engine == NOWHERE:
            return
        if exchange.prefill_engine != NOWHERE:
            picker.dispatcher.began(exchange, exchange.prefill_engine, now_s)
        if exchange.status in (500, 502, 503, 504):
            reason = "connect"
            if answered:
                reason = "busy" if exchange.status == 503 else "status"
            # No other engine can be asked: the proxy retries, down the list, if it does.
            engine = exchange.engine
            picker.dispatcher.failed(exchange, engine, now_s, reason)
            exchange.engine = engine
        elif self._response_mode == messages.NONE:
            self._first_byte(exchange, now_s)

    def _first_byte(self, exchange: Exchange, now_s: float) -> None:
        exchange.first_byte_s = now_s
        self.picker.dispatcher.began(exchange, exchange.engine, now_s)

    def _response_body(self, part: Any, now_s: float) -> None:
        reply = ProcessingResponse(response_body={})
        if self._response_mode == messages.FULL_DUPLEX_STREAMED:
            streamed = reply.response_body.response.body_mutation.streamed_response
            streamed.body, streamed.end_of_stream = part.body, part.end_of_stream
        self._send(reply)
        exchange = self.exchange
        if exchange is None or self._over:
            return
        data = part.body
        if data:
            if math.isnan(exchange.first_byte_s) and exchange.status < 500:
                self._first_byte(exchange, now_s)
            exchange.last_byte_s = now_s
            exchange.answer_bytes += len(data)
            if exchange.stream:
                exchange.events += data.count(b"data:")
            self._tail.append(data[-TAIL_BYTES:])
        if part.end_of_stream:
            self._end(now_s)

    def _end(self, now_s: float) -> None:
        """Take in that the answer is whole."""
        exchange = self.exchange
        if exchange is None or self._over:
            return
        counts = usage(self._tail) if self._tail else {}
        exchange.output_tokens = counts.get(b"completion_tokens", max(exchange.events - 1, 0))
        exchange.prompt_tokens = counts.get(b"prompt_tokens", exchange.prompt_tokens)
        exchange.cached_tokens = counts.get(b"cached_tokens", 0)
        status = exchange.status
        failed = status == 429 or status >= 500
        exchange.outcome = "ok" if status < 400 else "failed" if failed else "refused"
        self._finish(now_s)

    def _finish(self, now_s: float) -> None:
        self._over = True
        self.picker.ended(self, self._submitted, now_s)
