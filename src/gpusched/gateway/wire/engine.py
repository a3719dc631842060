"""One connection to an engine, and one attempt to have a request answered over it.

The answer's bytes go to the passage as they come; the parser only watches for where it ends. Its
head is held until the first byte of the body, so that an engine that dies in between can still be
replaced.
"""

import asyncio
from typing import Any, Protocol

import httptools

from gpusched.gateway.exchange import Exchange
from gpusched.gateway.wire.head import REPORT, header_value

MAX_HEAD_BYTES = 262_144
"""Of an answer."""
ONE_WRITE_BYTES = 65_536
"""Up to here, head and body are joined for one write."""


class Passage(Protocol):
    """What an engine's connection tells the exchange that it works for."""

    @property
    def exchange(self) -> Exchange:
        """The request."""
        ...

    @property
    def tapped(self) -> bool:
        """Whether the answer's body is wanted without its chunked framing."""
        ...

    @property
    def paused(self) -> bool:
        """Whether the client does not keep up."""
        ...

    def begin(
        self, leg: "Leg", status: int, head: bytes, lower: bytes, rest: bytes, until_close: bool
    ) -> bool:
        """Take in an answer's head and first bytes; return whether the rest is wanted."""
        ...

    def pour(self, data: bytes) -> None:
        """Take in further bytes."""
        ...

    def end(self, leg: "Leg") -> None:
        """Take in that the answer is whole."""
        ...

    def lost(self, leg: "Leg", reason: str, detail: str = "") -> None:
        """Take in that no answer, or no whole one, will come."""
        ...

    def reported(self, engine: int, report: bytes) -> None:
        """Take in an engine's load report."""
        ...


class Pool(Protocol):
    """What an engine's connection asks of those it lives among."""

    index: int
    """Of the engine."""

    def connect(self, leg: "Leg") -> None:
        """Send a leg over a new connection."""
        ...

    def give_back(self, connection: "EngineConnection") -> None:
        """Keep a connection whose answer has ended."""
        ...

    def forget(self, connection: "EngineConnection") -> None:
        """Take in that an idle connection has closed."""
        ...


class Leg:
    """One attempt to have a passage's request answered, or prefilled, by one engine."""

    __slots__ = ("body", "connection", "deadline_s", "head", "passage", "pool", "prefill", "task")

    def __init__(
        self, passage: Passage, pool: Pool, head: bytes, body: bytes, deadline_s: float, prefill: bool
    ) -> None:  # fmt: skip
        self.passage = passage
        self.pool = pool
        self.head = head
        self.body = body
        self.deadline_s = deadline_s
        """For the first byte of the answer."""
        self.prefill = prefill
        self.connection: EngineConnection | None = None
        self.task: asyncio.Task[None] | None = None
        """That connects."""

    @property
    def engine(self) -> int:
        """Index of the engine."""
        return self.pool.index

    def cancel(self) -> None:
        """Give up; the engine sees its connection close."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()


class EngineConnection(asyncio.Protocol):
    """A kept-alive connection to an engine; carries one answer at a time."""

    __slots__ = (
        "_begun", "_body", "_complete", "_held", "_interim", "_keep", "_tapped", "_until_close",
        "headed", "leg", "parser", "pool", "transport", "used",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport: Any = None
        self.leg: Leg | None = None
        self.used = False
        """Whether it has carried an answer before."""
        self._tapped = False
        self.parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self._held = b""
        self.headed = self._complete = self._begun = self._keep = self._until_close = False
        self._interim = 0

    def carry(self, leg: Leg, tapped: bool) -> None:
        """Send a leg's request.

        Args:
            leg: what to send and whom to tell.
            tapped: whether the body is wanted without its chunked framing.
        """
        self.leg = leg
        leg.connection = self
        if tapped is not self._tapped:
            self._tapped = tapped
            self.parser = httptools.HttpResponseParser(_Tap(self) if tapped else self)
        if len(leg.body) <= ONE_WRITE_BYTES:
            self.transport.write(leg.head + leg.body)
        else:
            self.transport.write(leg.head)
            self.transport.write(leg.body)

    def drop(self) -> None:
        """Close at once and tell nobody."""
        self.leg = None
        if self.transport is not None:
            self.transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        leg = self.leg
        if leg is None:
            self.pool.forget(self)
            self.transport.abort()
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lose(leg)
            return
        if self._begun:
            if self._tapped:
                data = b"".join(self._body)
                self._body.clear()
            leg.passage.pour(data)
            if self._complete:
                self._finish(leg)
        else:
            self._before_body(leg, data)

    def _before_body(self, leg: Leg, data: bytes) -> None:
        held = self._held + data if self._held else data
        while self._interim:
            held = held[held.index(b"\r\n\r\n") + 4 :]
            self._interim -= 1
        end = held.find(b"\r\n\r\n") + 4 if self.headed else 0
        if end == 3:
            self._lose(leg)
        elif self._complete or (self.headed and len(held) > end):
            self._held = b""
            self._begin(leg, held[:end], held[end:])
        elif len(held) > MAX_HEAD_BYTES:
            self._lose(leg)
        else:
            self._held = held

    def _begin(self, leg: Leg, head: bytes, rest: bytes) -> None:
        lower = head.lower()
        status = self.parser.get_status_code()
        framed = b"\r\ncontent-length:" in lower or b"\r\ntransfer-encoding:" in lower
        self._until_close = not (framed or self._complete)
        if self._tapped:
            rest = b"".join(self._body)
            self._body.clear()
        if REPORT in lower:
            report = header_value(head, lower, REPORT)
            if report is not None:
                leg.passage.reported(self.pool.index, report)
        if not leg.passage.begin(leg, status, head, lower, rest, self._until_close):
            return
        self._begun = True
        if self._complete:
            self._finish(leg)

    def _finish(self, leg: Leg) -> None:
        """Let the connection go back to the pool and the passage end."""
        self.leg = leg.connection = None
        if self._keep and not self.transport.get_write_buffer_size():
            if leg.passage.paused:
                self.transport.resume_reading()
            self.used = True
            self._reset()
            self.pool.give_back(self)
        else:
            self.transport.abort()
        leg.passage.end(leg)

    def _lose(self, leg: Leg) -> None:
        self.leg = leg.connection = None
        self.transport.abort()
        leg.passage.lost(leg, "closed")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        leg = self.leg
        if leg is None:
            self.pool.forget(self)
            return
        if error is None and self._until_close:
            self._keep = False
            self._finish(leg)
            return
        stale = self.used and not self._held and not self.headed and not self._begun
        if stale and not self._interim:
            self.leg = leg.connection = None
            self.pool.connect(leg)
            return
        held, self._held = self._held, b""
        if error is None and self.headed and not self._begun and not self._keep:
            lower = held.lower()
            if b"\r\ncontent-length:" not in lower and b"\r\ntransfer-encoding:" not in lower:
                self._complete = True
                self._begin(leg, held, b"")
                return
        self._lose(leg)

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    # Called by the parser.

    def on_headers_complete(self) -> None:
        if self.parser.get_status_code() >= 200:
            self.headed = True
            leg = self.leg
            if leg is not None and leg.passage.exchange.method == b"HEAD":
                self._complete = True

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("bytes after the end of an answer")

    def on_message_complete(self) -> None:
        if not self.headed:
            self._interim += 1
            return
        self._complete = True
        self._keep = self.parser.should_keep_alive()


class _Tap:
    """Hears what the connection hears from its parser, and takes the body off its framing."""

    def __init__(self, connection: EngineConnection) -> None:
        self.on_headers_complete = connection.on_headers_complete
        self.on_message_begin = connection.on_message_begin
        self.on_message_complete = connection.on_message_complete
        self.on_body = connection._body.append
