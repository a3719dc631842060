"""One connection of a client: HTTP/1.1, kept alive, requests answered one after another."""

import asyncio
import time
from collections import deque
from typing import Any, Protocol

import httptools

from gpusched.domain.gateway import GatewaySettings
from gpusched.gateway.exchange import Exchange, Refusal
from gpusched.gateway.wire.errors import JSON, answer, refused

MAX_AHEAD = 16
"""Requests read ahead of their turn before reading stops."""
MAX_PIPELINED = 256
"""Requests ahead of their turn, in one read, that are taken at all."""
MAX_HEADERS = 256
IDLE_S = 75.0
"""For which a connection is kept without a request."""
LINGER_S = 2.0
"""For a refused client to read its answer, while what it sends is thrown away."""
_monotonic = time.monotonic


class Passage(Protocol):
    """What a client's connection tells the exchange that it waits for."""

    def cancel(self) -> None:
        """Take in that the client has gone."""
        ...

    def pause(self) -> None:
        """Take in that the client does not keep up."""
        ...

    def resume(self) -> None:
        """Take in that it keeps up again."""
        ...


class Front(Protocol):
    """What a client's connection asks of those who serve it."""

    @property
    def connections(self) -> "set[ClientConnection]":
        """All that are open."""
        ...

    @property
    def draining(self) -> bool:
        """Whether connections end with the answers under way."""
        ...

    @property
    def settings(self) -> GatewaySettings:
        """The gateway's settings."""
        ...

    def number(self) -> int:
        """Return the next exchange's number."""
        ...

    def turned_away(self, refusal: Refusal) -> None:
        """Take in that a request could not be read."""
        ...

    def receive(self, exchange: Exchange, client: "ClientConnection", old: bool) -> None:
        """Serve a request, of a client that speaks HTTP/1.0 if ``old``."""
        ...


class ClientConnection(asyncio.Protocol):
    """Reads requests, hands them to the front in turn, and takes their answers."""

    __slots__ = (
        "_advancing", "_ahead", "_body", "_body_bytes", "_framing", "_head_bytes", "_headers",
        "_in_head", "_parser", "_reading_paused", "_refusal", "_refused", "_resumes", "_target",
        "_writing_paused", "closing", "front", "head_only", "passage", "since_s", "transport",
        "waits_for",
    )  # fmt: skip

    def __init__(self, front: Front) -> None:
        self.front = front
        self.transport: Any = None
        self.passage: Passage | None = None
        """The exchange being answered."""
        self.closing = False
        """Whether the connection ends with the answer under way."""
        self.head_only = False
        self.waits_for = "request"
        """What the client owes: a ``request``, the ``rest`` of one, or to ``leave``."""
        self.since_s = _monotonic()
        """When that began."""
        self._ahead: deque[tuple[Exchange | Refusal, bool, bool]] = deque()
        """Requests, or why the next one cannot be read; whether the connection ends with the answer;
        whether the client speaks HTTP/1.0."""
        self._advancing = self._reading_paused = self._writing_paused = False
        self._refused = False
        """Whether nothing more is read."""
        self._resumes = False
        self._parser = httptools.HttpRequestParser(self)
        self._clear()

    def _clear(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._in_head = False
        self._framing = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._refusal: Refusal | None = None

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.front.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.front.settings.max_header_bytes:
                self._too_long_a_head()
        if self._refusal is None:
            self._parse(data)
        if self._refusal is not None:
            self.refuse(self._refusal)
        elif self._ahead:
            if self.passage is None:
                self.advance()
            elif len(self._ahead) >= MAX_AHEAD and not self._reading_paused:
                self._reading_paused = True
                self.transport.pause_reading()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._refusal is None:
                self._refusal = Refusal(400, f"not valid HTTP/1.1: {error}", code="bad_http")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1. The parser takes a body for the other protocol's first bytes, so a new
        one is told again how the body is framed.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._framing:
            self._resumes = True
            rest = b"POST / HTTP/1.1\r\n" + self._framing + b"\r\n\r\n" + rest
        if rest and self._refusal is None:
            self._parse(rest)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._refused = True
        self._ahead.clear()
        self.front.connections.discard(self)
        if self.passage is not None:
            self.passage.cancel()
            self.passage = None

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self.passage is not None:
            self.passage.pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self.passage is not None:
            self.passage.resume()
        elif self._ahead and not self._advancing:
            self.advance()

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._resumes:
            return
        self._clear()
        self._in_head = True
        self.waits_for = "rest"
        self.since_s = _monotonic()

    def on_url(self, url: bytes) -> None:
        if not self._resumes:
            self._target += url
            if len(self._target) > self.front.settings.max_header_bytes:
                self._too_long_a_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._resumes:
            return
        self._in_head = False
        headers = dict(self._headers)
        size = len(self._target)
        for name, value in self._headers:
            size += len(name) + len(value)
        if size > self.front.settings.max_header_bytes or len(self._headers) > MAX_HEADERS:
            self._too_long_a_head()
            return
        version = self._parser.get_http_version()
        method = self._parser.get_method()
        if version != "1.1" and version != "1.0":
            self._refusal = Refusal(505, f"HTTP/{version} is not spoken here, only HTTP/1.1")
        elif method == b"CONNECT":
            self._refusal = Refusal(405, "CONNECT: this is not a proxy of that kind")
        elif b"host" not in headers and version == "1.1":
            self._refusal = Refusal(400, "the header Host is missing", code="bad_http")
        elif b"transfer-encoding" in headers:
            self._framing = b"transfer-encoding: chunked"
            if headers[b"transfer-encoding"].lower() != b"chunked":
                self._refusal = Refusal(501, "Transfer-Encoding: only chunked is understood")
        elif b"content-length" in headers:
            length = int(headers[b"content-length"])
            if length > self.front.settings.max_body_bytes:
                self._too_long_a_body()
            elif length and self._parser.should_upgrade():
                self._framing = b"content-length: %d" % length
        if not self._parser.should_upgrade():
            self._framing = b""
        if b"expect" in headers and self._refusal is None:
            self._expect(headers[b"expect"])

    def _expect(self, what: bytes) -> None:
        if what.lower() != b"100-continue":
            self._refusal = Refusal(417, "Expect: only 100-continue is understood")
        elif self.passage is None and not self._ahead:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= self.front.settings.max_body_bytes:
            self._body.append(body)
        else:
            self._body.clear()
            self._too_long_a_body()

    def on_message_complete(self) -> None:
        if self._refusal is not None:
            return
        if self._framing and not self._resumes:
            return
        self._framing = b""
        self._resumes = False
        if len(self._ahead) >= MAX_PIPELINED:
            self._refusal = Refusal(
                429, "too many requests ahead of their turn", "rate_limit_error"
            )
            return
        parser = self._parser
        body = self._body
        now = _monotonic()
        exchange = Exchange(
            self.front.number(),
            parser.get_method(),
            self._target,
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
            now,
        )
        old = parser.get_http_version() == "1.0"
        self._ahead.append((exchange, old or not parser.should_keep_alive(), old))
        self._body = []
        self.waits_for = "request"
        self.since_s = now

    def _too_long_a_head(self) -> None:
        limit = self.front.settings.max_header_bytes
        self._refusal = Refusal(431, f"the request's head is larger than {limit} bytes")

    def _too_long_a_body(self) -> None:
        limit = self.front.settings.max_body_bytes
        self._refusal = Refusal(413, f"the request's body is larger than {limit} bytes")

    # Called by the front and by passages.

    def advance(self) -> None:
        """Serve the requests whose turn it is."""
        self._advancing = True
        ahead = self._ahead
        while ahead and self.passage is None and not self._writing_paused:
            item, self.closing, old = ahead.popleft()
            if isinstance(item, Refusal):
                self._turn_away(item)
                break
            self.head_only = item.method == b"HEAD"
            self.closing |= self.front.draining
            self.front.receive(item, self, old)
        self._advancing = False
        if self._reading_paused and len(ahead) < MAX_AHEAD and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    def refuse(self, refusal: Refusal) -> None:
        """Read no more, and close after saying why when it is its turn."""
        self._refused = True
        self._ahead.append((refusal, True, True))
        if self.passage is None and not self._advancing:
            self.advance()

    def _turn_away(self, refusal: Refusal) -> None:
        self.front.turned_away(refusal)
        self._refused = True
        self.waits_for = "leave"
        self.since_s = _monotonic()
        transport = self.transport
        transport.write(refused(refusal, close=True))
        if transport.can_write_eof():
            transport.write_eof()

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""
        self.transport.write(data)

    def finished(self, close: bool) -> None:
        """Take in that the answer is whole, or, with ``close``, that no more will come of it."""
        self.passage = None
        if close or self.closing:
            self._refused = True
            self._ahead.clear()
            self.transport.close()
            return
        self.since_s = _monotonic()
        if self._ahead and not self._advancing:
            self.advance()
        elif self.front.draining and not self._ahead:
            self.transport.close()

    def answer_refusal(self, refusal: Refusal) -> None:
        """Send a refusal as the whole answer."""
        self.transport.write(refused(refusal, close=self.closing, head_only=self.head_only))
        self.finished(False)

    def answer_body(
        self,
        status: int,
        content_type: bytes,
        body: bytes,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send a whole answer."""
        self.transport.write(
            answer(
                status,
                body,
                content_type=content_type or JSON,
                headers=headers,
                close=self.closing,
                head_only=self.head_only,
            )
        )
        self.finished(False)

    def sweep(self, now_s: float) -> None:
        """Close a connection whose client keeps it waiting for too long."""
        waited_s = now_s - self.since_s
        if self.waits_for == "rest":
            limit_s = self.front.settings.read_timeout_s
            if waited_s > limit_s and not self._refused:
                self.refuse(Refusal(408, f"the request did not come whole within {limit_s:g} s"))
        elif self.waits_for == "leave":
            if waited_s > LINGER_S:
                self.transport.abort()
        elif self.passage is None and waited_s > IDLE_S:
            self.transport.close()

    def drain(self) -> None:
        """Close unless an answer or a request is under way."""
        if self.passage is None and not self._ahead and self.waits_for == "request":
            self.transport.close()
