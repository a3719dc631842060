"""A small HTTP/1.1 server connection: whole requests in, bytes out, nothing per event but a write."""

import asyncio
from collections import deque
from typing import Any, Protocol, cast

import httptools

from gpusched.engines.simulated.json_text import dumps

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
           413: "Payload Too Large", 429: "Too Many Requests", 500: "Internal Server Error",
           503: "Service Unavailable"}  # fmt: skip
MAX_BODY_BYTES = 64_000_000


class Handler(Protocol):
    """What a connection calls."""

    def opened(self, connection: "Connection") -> None:
        """Take in a new connection."""
        ...

    def handle(self, connection: "Connection", request: "HttpRequest") -> None:
        """Answer a request, now or later; then call ``connection.done``."""
        ...

    def closed(self, connection: "Connection") -> None:
        """Take in that a connection is gone."""
        ...


class HttpRequest:
    """One request: method, path, headers with names in lower case, body."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path")

    def __init__(self) -> None:
        self.method = ""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True


class Connection(asyncio.Protocol):
    """One client connection; requests of it are answered in order."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.transport: asyncio.Transport | None = None
        self.answer: Any = None
        """The handler's own."""
        self._parser = httptools.HttpRequestParser(self)
        self._request = HttpRequest()
        self._parts: list[bytes] = []
        self._size = 0
        self._pending: deque[HttpRequest] = deque()
        self._busy: HttpRequest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take in the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self.handler.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take in that the client has gone."""
        self.transport = None
        self.handler.closed(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cut()
        except httptools.HttpParserError:
            self._refuse(400, "malformed HTTP request")

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = HttpRequest()
        self._parts, self._size = [], 0

    def on_url(self, url: bytes) -> None:
        """Take in the target, possibly in parts."""
        self._request.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header."""
        self._request.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Take in a part of the body."""
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._refuse(413, "body too large")
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Hand the request over, once those before it are answered."""
        request = self._request
        request.body = b"".join(self._parts)
        request.method = self._parser.get_method().decode("ascii", "replace")
        request.keep_alive = self._parser.should_keep_alive()
        if self._busy is None:
            self._busy = request
            self.handler.handle(self, request)
        else:
            self._pending.append(request)

    def write(self, data: bytes) -> None:
        """Send bytes, if the client is still there."""
        if self.transport is not None:
            self.transport.write(data)

    def reply(
        self, status: int, body: bytes, kind: bytes = b"application/json", extra: bytes = b""
    ) -> None:
        """Send a whole answer."""
        self.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n%s"
            % (status, REASONS.get(status, "Status").encode(), kind, len(body), extra, body)
        )
        self.done()

    def done(self) -> None:
        """Go on to the next request."""
        request, self._busy, self.answer = self._busy, None, None
        if self.transport is None:
            return
        if request is not None and not request.keep_alive:
            self.transport.close()
        elif self._pending:
            self._busy = self._pending.popleft()
            self.handler.handle(self, self._busy)

    def cut(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        if self.transport is None:
            return
        body = dumps(error_body(status, message))
        self.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, REASONS[status].encode(), len(body), body)
        )
        self.transport.close()


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return an error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
