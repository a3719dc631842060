"""Carries exchanges to engines and their answers back, byte for byte."""

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from gpusched.gateway.dispatch.legs import decode_body, prefill_body
from gpusched.gateway.exchange import NOWHERE, OTHER, Exchange, Refusal
from gpusched.gateway.wire.engine import Leg
from gpusched.gateway.wire.errors import error_body
from gpusched.gateway.wire.head import REPORT_FORMAT, answer_head, request_head
from gpusched.gateway.wire.pool import Pool
from gpusched.gateway.wire.usage import TAIL_BYTES, TAIL_READS, usage

if TYPE_CHECKING:
    from gpusched.domain.gateway import GatewaySettings
    from gpusched.gateway.exchange import Dispatcher, Reading, Recorder

FAILURE, TOO_MANY, UNAVAILABLE = 500, 429, 503
"""From 500 on and at 429 another engine is asked."""
_monotonic = time.monotonic


class Client(Protocol):
    """Where an answer goes."""

    closing: bool
    """Whether the connection ends with this answer."""

    def write(self, data: bytes) -> None:
        """Send bytes of an answer."""
        ...

    def finished(self, close: bool) -> None:
        """Take in that the answer is whole, or, with ``close``, that no more will come of it."""
        ...

    def answer_refusal(self, refusal: Refusal) -> None:
        """Send a refusal as the whole answer."""
        ...

    def answer_body(self, status: int, content_type: bytes, body: bytes) -> None:
        """Send a whole answer."""
        ...


class Passage:
    """An exchange under way, its client and the engines at work on it."""

    __slots__ = (
        "_answer", "_separator", "_tail", "asked_report", "body", "client",
        "decode_at", "exchange", "legs", "over", "paused", "relay", "seen_bytes", "seen_s",
        "submitted", "tapped", "task", "winner",
    )  # fmt: skip

    def __init__(
        self, relay: "WireRelay", exchange: Exchange, client: Client, tapped: bool
    ) -> None:
        self.relay = relay
        self.exchange = exchange
        self.client = client
        self.tapped = tapped
        """Whether the client cannot read chunked framing (HTTP/1.0)."""
        self.legs: list[Leg] = []
        self.winner: Leg | None = None
        """Whose answer the client gets."""
        self.submitted = False
        """Whether the dispatcher knows of it."""
        self.task: asyncio.Task[None] | None = None
        """That makes its answer here, instead of an engine."""
        self.over = False
        self.paused = False
        """Whether the client does not keep up."""
        self.body: bytes | None = None
        """For the engine that decodes, where the prefill is elsewhere."""
        self.decode_at = NOWHERE
        """Engine to be asked after the prefill."""
        self.asked_report = False
        self.seen_bytes = 0
        self.seen_s = 0.0
        self._tail: deque[bytes] = deque(maxlen=TAIL_READS)
        self._separator = b""
        """Between server-sent events; empty if the answer is no stream of them."""
        self._answer: list[bytes] = []
        """Of a prefill."""

    # What an engine's connection tells.

    def begin(
        self, leg: Leg, status: int, head: bytes, lower: bytes, rest: bytes, until_close: bool
    ) -> bool:
        """Take the head of an answer and the first bytes of its body; False if it is not wanted."""
        exchange = self.exchange
        if (status >= FAILURE or status == TOO_MANY) and self._replaced(leg, _reason(status)):
            return False
        if leg.prefill and status < 300:
            self._answer = [rest]
            return True
        now = _monotonic()
        if len(self.legs) > 1:
            self._beat(leg, now)
        self.winner = leg
        exchange.engine = leg.pool.index
        exchange.status = status
        exchange.first_byte_s = self.seen_s = now
        if not leg.prefill:
            self.relay.dispatcher.began(exchange, leg.pool.index, now)
        client = self.client
        if until_close or self.tapped or leg.prefill:
            client.closing = True
        written = answer_head(
            head,
            lower,
            close=client.closing,
            dechunked=self.tapped or leg.prefill,
            hide=self.asked_report and b"\r\nendpoint-load-metrics:" in lower,
        )
        if b"\r\ncontent-type: text/event-stream" in lower:
            self._separator = b"\n\n" if b"\n\n" in rest else b"\r\n\r\n"
            exchange.events = rest.count(self._separator)
        exchange.answer_bytes = len(rest)
        self._tail.append(rest[-TAIL_BYTES:])
        client.write(written + rest)
        if self.paused:
            self._engine_reading(False)
        return True

    def pour(self, data: bytes) -> None:
        """Pass on bytes of an answer that has begun."""
        if self.winner is None:
            self._answer.append(data)
            return
        exchange = self.exchange
        exchange.answer_bytes += len(data)
        if self._separator:
            exchange.events += data.count(self._separator)
        self._tail.append(data if len(data) <= TAIL_BYTES else data[-TAIL_BYTES:])
        self.client.write(data)

    def end(self, leg: Leg) -> None:
        """Take in that an answer has come whole."""
        self.legs.remove(leg)
        if self.winner is None:
            self._prefilled(leg, b"".join(self._answer))
            return
        exchange = self.exchange
        status = exchange.status
        if status < 400:
            exchange.outcome = "ok"
            self._count()
        else:
            exchange.outcome = "failed" if status >= FAILURE or status == TOO_MANY else "refused"
        self.relay.ended(self)
        self.client.finished(False)

    def reported(self, engine: int, report: bytes) -> None:
        """Pass on an engine's report of its load."""
        self.relay.dispatcher.load_report(engine, report, _monotonic())

    def lost(self, leg: Leg, reason: str, detail: str = "") -> None:
        """Take in that a leg came to nothing, or broke off."""
        if detail:
            self.relay.unreachable[leg.engine] = detail
        if leg is self.winner:
            self.legs.remove(leg)
            self._break_off("the engine broke off its answer", "engine_closed")
        elif leg in self.legs and not self._replaced(leg, reason):
            self._give_up(leg, reason)

    # What the client's connection tells.

    def cancel(self) -> None:
        """Take in that the client has gone."""
        if self.over:
            return
        if self.task is not None:
            self.task.cancel()
        for leg in self.legs:
            leg.cancel()
        self.legs.clear()
        self.exchange.outcome = "cancelled"
        self.relay.ended(self)

    def answer(self, status: int, content_type: bytes, body: bytes) -> None:
        """Answer without an engine."""
        exchange = self.exchange
        exchange.status = status
        exchange.first_byte_s = _monotonic()
        exchange.answer_bytes = len(body)
        exchange.outcome = "ok"
        self.relay.ended(self)
        self.client.answer_body(status, content_type, body)

    def pause(self) -> None:
        """Stop reading from the engine: the client does not keep up."""
        self.paused = True
        self._engine_reading(False)

    def resume(self) -> None:
        """Read from the engine again."""
        self.paused = False
        self.seen_s = _monotonic()
        self._engine_reading(True)

    def _engine_reading(self, on: bool) -> None:
        winner = self.winner
        if winner is None or winner.connection is None:
            return
        transport = winner.connection.transport
        if not transport.is_closing():
            if on:
                transport.resume_reading()
            else:
                transport.pause_reading()

    # Within.

    def timed_out(self, now_s: float) -> None:
        """Give up legs without a first byte in time, or an answer that has stalled."""
        exchange = self.exchange
        if self.winner is None:
            for leg in tuple(self.legs):
                if leg.deadline_s <= now_s and leg in self.legs:
                    leg.cancel()
                    self.lost(leg, "timeout")
        elif exchange.answer_bytes != self.seen_bytes:
            self.seen_bytes = exchange.answer_bytes
            self.seen_s = now_s
        elif now_s - self.seen_s > self.relay.settings.stall_timeout_s:
            self.winner.cancel()
            self.legs.clear()
            if self.paused:
                exchange.outcome = "cancelled"
                self.relay.ended(self)
                self.client.finished(True)
            else:
                self._break_off(
                    f"the engine sent nothing for {self.relay.settings.stall_timeout_s:g} s",
                    "stalled",
                )

    def _beat(self, winner: Leg, now_s: float) -> None:
        for leg in tuple(self.legs):
            if leg is not winner:
                leg.cancel()
                self.legs.remove(leg)
                self.relay.dispatcher.left(self.exchange, leg.pool.index, now_s)

    def _replaced(self, leg: Leg, reason: str) -> bool:
        """Tell the dispatcher of a failure; True if the leg is not needed any more."""
        exchange = self.exchange
        self.legs.remove(leg)
        again = self.relay.dispatcher.failed(exchange, leg.pool.index, _monotonic(), reason)
        if again or self.legs or self.over:
            leg.cancel()
            return True
        self.legs.append(leg)
        return False

    def _give_up(self, leg: Leg, reason: str) -> None:
        self.legs.remove(leg)
        messages = {
            "connect": "no engine could be reached",
            "closed": "the engine closed the connection without an answer",
            "timeout": "no engine began to answer in time",
        }
        status = 504 if reason == "timeout" else 502
        self.fail(Refusal(status, messages[reason], "api_error", f"engine_{reason}"))

    def fail(self, refusal: Refusal) -> None:
        """Answer with an error before any byte of an answer has been sent."""
        exchange = self.exchange
        exchange.status = refusal.status
        exchange.refusal = refusal
        exchange.outcome = "failed"
        self.relay.ended(self)
        self.client.answer_refusal(refusal)

    def _break_off(self, message: str, code: str) -> None:
        """End an answer that has begun and cannot be ended well: say so in a stream, then close."""
        tail = b"".join(self._tail)
        if self._separator and self.tapped:
            self.client.write(b"data: " + error_body(message, "api_error", code) + b"\n\n")
        elif self._separator and tail.endswith(self._separator + b"\r\n"):
            event = b"data: " + error_body(message, "api_error", code) + b"\n\n"
            self.client.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.exchange.outcome = "failed"
        self.relay.ended(self)
        self.client.finished(True)

    def _prefilled(self, leg: Leg, answer: bytes) -> None:
        """Ask the second engine, with what the first has said about where the cache lies."""
        self.relay.dispatcher.began(self.exchange, leg.pool.index, _monotonic())
        assert self.body is not None
        # Without word of where the cache lies, the second engine prefills anew.
        with contextlib.suppress(ValueError):
            self.body = decode_body(self.body, answer)
        engine, self.decode_at = self.decode_at, NOWHERE
        self.relay.start(self, engine, self.body, prefill=False)

    def _count(self) -> None:
        exchange = self.exchange
        if exchange.kind == OTHER:
            return
        found = usage(self._tail)
        if found:
            exchange.prompt_tokens = found.get(b"prompt_tokens", exchange.prompt_tokens)
            exchange.cached_tokens = found.get(b"cached_tokens", 0)
        done = b"data: [DONE]" in b"".join(self._tail) if self._separator else False
        exchange.output_tokens = found.get(b"completion_tokens", max(0, exchange.events - done))


def _reason(status: int) -> str:
    return "busy" if status in (TOO_MANY, UNAVAILABLE) else "status"


class WireRelay:
    """The gateway's relay: pools of connections and the exchanges under way."""

    def __init__(self, settings: "GatewaySettings") -> None:
        self.dispatcher: Dispatcher
        self.reading: Reading
        self.recorder: Recorder
        self.open: set[Passage] = set()
        """Under way."""
        self.unreachable: dict[int, str] = {}
        """Why the last connection to an engine failed."""
        self.pools: dict[int, Pool] = {}
        self.update(settings)

    def update(self, settings: "GatewaySettings") -> None:
        """Take new settings; engines are looked up again, exchanges under way go on."""
        self.settings = settings
        self.hide_credentials = bool(settings.keys)
        self.close()

    def close(self) -> None:
        """Close idle connections to engines."""
        pools, self.pools = self.pools, {}
        for pool in pools.values():
            pool.close()

    def pool(self, index: int) -> Pool:
        """Return the connections to an engine."""
        pool = self.pools.get(index)
        if pool is None:
            engine = self.dispatcher.engines[index]
            pool = Pool(index, engine.url, engine.api_key, self.settings.connect_timeout_s)
            self.pools[index] = pool
        return pool

    # The dispatcher calls these.

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        """Send an exchange to an engine, its prefill first to another if given."""
        passage = exchange.carrier
        assert isinstance(passage, Passage)
        if passage.over:
            return
        exchange.engine = engine
        exchange.prefill_engine = prefill
        if exchange.sent_s != exchange.sent_s:
            exchange.sent_s = _monotonic()
        body = self.dispatcher.body_for(exchange, engine)
        if prefill == NOWHERE:
            self.start(passage, engine, body, prefill=False)
        else:
            passage.body = body
            passage.decode_at = engine
            self.start(passage, prefill, prefill_body(body), prefill=True)

    def hedge(self, exchange: Exchange, engine: int) -> None:
        """Ask a second engine as well; the first to answer is heard."""
        passage = exchange.carrier
        assert isinstance(passage, Passage)
        if passage.over or passage.winner is not None:
            return
        exchange.hedged = True
        body = passage.body or self.dispatcher.body_for(exchange, engine)
        self.start(passage, engine, body, prefill=False)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer an exchange that no engine has begun to answer."""
        passage = exchange.carrier
        assert isinstance(passage, Passage)
        if passage.over or passage.winner is not None:
            return
        for leg in passage.legs:
            leg.cancel()
        passage.legs.clear()
        exchange.status = refusal.status
        exchange.refusal = refusal
        exchange.outcome = "refused"
        self.ended(passage)
        passage.client.answer_refusal(refusal)

    # Passages and connections call these.

    def start(self, passage: Passage, engine: int, body: bytes, *, prefill: bool) -> None:
        """Open a leg of a passage."""
        exchange = passage.exchange
        pool = self.pool(engine)
        ask = exchange.kind != OTHER and exchange.header(REPORT_FORMAT) is None
        passage.asked_report = ask
        head = request_head(
            exchange,
            pool.host,
            len(body),
            authorization=pool.authorization,
            hide_credentials=self.hide_credentials,
            ask_report=ask,
        )
        deadline_s = _monotonic() + self.settings.first_byte_timeout_s
        leg = Leg(passage, pool, head, body, deadline_s, prefill)
        passage.legs.append(leg)
        pool.start(leg)

    def ended(self, passage: Passage) -> None:
        """Take in that an exchange is over, and tell everybody."""
        passage.over = True
        self.open.discard(passage)
        exchange = passage.exchange
        exchange.last_byte_s = now = _monotonic()
        if passage.submitted:
            self.dispatcher.ended(exchange, now)
            if exchange.outcome == "ok":
                self.reading.learn(exchange)
        self.recorder.ended(exchange, now)
        # Cut the circles, so that memory is freed at once.
        exchange.carrier = passage.winner = None

    def sweep(self, now_s: float) -> None:
        """Look for exchanges whose engine is too slow."""
        for passage in tuple(self.open):
            if not passage.over:
                passage.timed_out(now_s)
