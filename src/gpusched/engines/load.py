"""A load generator: streaming requests at given times or by given users, and what became of them.

Times are of one monotonic clock, TTFT, TPOT and ITL as ``vllm bench serve`` defines them. The generator
tells how late it was itself: ``lateness_s`` is the time between a request's moment and its sending,
``lag_s`` how late its event loop took up timers. Figures are as good as these are small.
"""

import asyncio
import json
import time
from array import array
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Result = TypeVar("Result")

LAG_EVERY_S = 0.02
FIRST_TOKEN_ID = 3
"""Ids below are special tokens."""
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request to send."""

    arrival_s: float
    body: bytes
    path: str = COMPLETIONS
    headers: tuple[tuple[str, str], ...] = ()
    cancel_after: int | None = None
    """Events after which the client goes away."""


def requests_of(
    trace: Trace,
    *,
    model: str = "tiny",
    vocabulary: int = 1024,
    seed: int = 0,
    class_header: str | None = None,
    extra: dict[str, Any] | None = None,
) -> list[LoadRequest]:
    """Return completion requests of a trace's lengths, prompts of random token ids.

    Prompts share leading blocks where the trace's do. ``class_header`` names the header that carries
    the trace's classes; ``extra`` is added to every body.
    """
    rng = np.random.default_rng((seed, 0x10AD))
    blocks: dict[int, list[int]] = {}
    found = []
    for i in range(len(trace)):
        count = int(trace.prompt_tokens[i])
        prompt: list[int] = []
        if trace.prefix is not None:
            row = trace.prefix.block_ids[trace.prefix.offsets[i] : trace.prefix.offsets[i + 1]]
            for block in row[: count // trace.prefix.block_tokens].tolist():
                if block not in blocks:
                    size = trace.prefix.block_tokens
                    blocks[block] = rng.integers(FIRST_TOKEN_ID, vocabulary, size).tolist()
                prompt += blocks[block]
        prompt += rng.integers(FIRST_TOKEN_ID, vocabulary, count - len(prompt)).tolist()
        body = completion_body(prompt, int(trace.output_tokens[i]), model=model, extra=extra)
        headers: tuple[tuple[str, str], ...] = ()
        if class_header is not None and trace.class_id is not None:
            headers = ((class_header, trace.class_names[int(trace.class_id[i])]),)
        found.append(LoadRequest(float(trace.arrival_s[i]), body, headers=headers))
    return found


def completion_body(
    prompt: Sequence[int] | str, output_tokens: int, *, model: str = "tiny",
    extra: dict[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """Return the body of a streaming completion of exactly that many tokens, greedy."""
    values = {
        "model": model, "prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True,
        "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps({**values, **(extra or {})}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class LoadResult:
    """What became of the requests, one entry each; times in seconds from the start, nan if never."""

    scheduled_s: Floats
    sent_s: Floats
    first_s: Floats
    last_s: Floats
    """Last event with a token."""
    ended_s: Floats
    """End of the answer, or of the attempt."""
    status: Ints
    """HTTP status; 0 where there was no answer."""
    prompt_tokens: Ints
    output_tokens: Ints
    """By the engine's count where it gave one, else events with tokens."""
    events: Ints
    """Events with tokens."""
    answer_bytes: Ints
    error: tuple[str, ...]
    """Empty where the answer is whole; else ``connect``, ``cut``, ``timeout``, ``status``,
    ``cancelled``, ``short``."""
    text: tuple[bytes, ...]
    """Bodies of the answers, where kept."""
    event_s: Floats
    """Times of all events with tokens, request by request; ``events`` gives how many each has."""
    lag_s: Floats
    """How late the generator's event loop was, sampled."""

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which answers are whole."""
        return np.array([not error for error in self.error], np.bool_)

    @property
    def ttft_s(self) -> Floats:
        """Time to first token."""
        return self.first_s - self.sent_s

    @property
    def e2e_s(self) -> Floats:
        """Time to last token."""
        return self.last_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; nan for answers of one token."""
        rest = np.where(self.output_tokens > 1, self.output_tokens - 1, 1)
        return np.where(self.output_tokens > 1, (self.last_s - self.first_s) / rest, np.nan)

    @property
    def itl_s(self) -> Floats:
        """Gaps between successive events with tokens, of all requests together."""
        owner = np.repeat(np.arange(len(self.events)), self.events)
        gaps: Floats = np.diff(self.event_s)[owner[1:] == owner[:-1]]
        return gaps

    @property
    def lateness_s(self) -> Floats:
        """Time between a request's moment and its sending."""
        return self.sent_s - self.scheduled_s

    @property
    def duration_s(self) -> float:
        """From the first request's sending to the end of the last."""
        return float(np.nanmax(self.ended_s) - np.nanmin(self.sent_s))

    def summary(self) -> dict[str, Any]:
        """Return the figures that one compares."""
        whole = self.complete
        span_s = max(self.duration_s, 1e-9)
        return {
            "requests": len(whole),
            "completed": int(whole.sum()),
            "failed": {kind: self.error.count(kind) for kind in sorted(set(self.error) - {""})},
            "offered_rps": len(whole) / max(float(self.scheduled_s.max()), 1e-9),
            "completed_rps": float(whole.sum()) / span_s,
            "output_tokens_per_s": float(self.output_tokens[whole].sum()) / span_s,
            "ttft_s": quantiles(self.ttft_s[whole]),
            "tpot_s": quantiles(self.tpot_s[whole]),
            "itl_s": quantiles(self.itl_s),
            "e2e_s": quantiles(self.e2e_s[whole]),
            "lateness_s": quantiles(self.lateness_s),
            "lag_s": quantiles(self.lag_s),
        }


def quantiles(values: Floats) -> dict[str, float | None]:
    """Return mean, p50, p90, p99 and max of the numbers among the values."""
    known = values[np.isfinite(values)]
    if not len(known):
        return dict.fromkeys(("mean", "p50", "p90", "p99", "max"))
    p50, p90, p99 = np.quantile(known, (0.5, 0.9, 0.99)).tolist()
    return {
        "mean": float(known.mean()), "p50": p50, "p90": p90, "p99": p99, "max": float(known.max()),
    }  # fmt: skip


@dataclass(slots=True, eq=False)
class _Record:
    scheduled_s: float
    sent_s: float = float("nan")
    ended_s: float = float("nan")
    status: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    answer_bytes: int = 0
    error: str = "connect"
    times: "array[float]" = field(default_factory=lambda: array("d"))
    text: list[bytes] | None = None


class _Exchange(asyncio.Protocol):
    """One request over a connection of its own."""

    __slots__ = (
        "_clock", "_done", "_finished", "_parser", "_payload", "_record", "_rest", "_stop_after",
        "_transport",
    )  # fmt: skip

    def __init__(
        self, payload: bytes, record: _Record, stop_after: int | None,
        clock: Callable[[], float], done: "asyncio.Future[None]",
    ) -> None:  # fmt: skip
        self._payload = payload
        self._record = record
        self._stop_after = stop_after
        self._clock = clock
        self._done = done
        self._rest = b""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._record.error = "cut"
        self._transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish("cut")

    def eof_received(self) -> None:
        self._finish("cut")

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("cut")

    def on_headers_complete(self) -> None:
        self._record.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        record = self._record
        record.answer_bytes += len(body)
        if record.text is not None:
            record.text.append(body)
        if record.status != 200:
            return
        now_s = self._clock()
        *events, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data: [DONE]") or not event.startswith(b"data:"):
                continue
            if b'"usage"' in event and b'"choices":[]' in event.replace(b": ", b":"):
                self._count(event)
                continue
            record.times.append(now_s)
            if b'"usage":{' in event:
                self._count(event)
        if self._stop_after is not None and len(record.times) >= self._stop_after:
            self._finish("cancelled")

    def on_message_complete(self) -> None:
        record = self._record
        if record.status != 200:
            self._finish("status")
        elif not record.times and self._rest.lstrip()[:1] == b"{":
            record.times.append(self._clock())
            self._count(self._rest)
            self._finish("")
        else:
            self._finish("" if record.times else "short")

    def abandon(self, error: str) -> None:
        """Give up."""
        self._finish(error)

    def _count(self, event: bytes) -> None:
        try:
            usage = json.loads(event[event.index(b"{") :]).get("usage") or {}
        except ValueError:
            return
        self._record.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        self._record.output_tokens = int(usage.get("completion_tokens") or 0)

    def _finish(self, error: str) -> None:
        if self._finished:
            return
        self._finished = True
        self._record.error = error
        self._record.ended_s = self._clock()
        if self._transport is not None:
            self._transport.abort()
        if not self._done.done():
            self._done.set_result(None)


class LoadGenerator:
    """Sends requests to one server, each over a connection of its own.

    Raises:
        InputError: the address is not of the form http://HOST:PORT.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 120.0, api_key: str | None = None,
        keep_text: bool = False,
    ) -> None:  # fmt: skip
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise InputError(f"expected http://HOST:PORT, got {url!r}")
        self.host, self.port = parts.hostname, parts.port or 80
        self.timeout_s = timeout_s
        self.api_key = api_key
        self.keep_text = keep_text

    async def open_loop(
        self, requests: Sequence[LoadRequest], progress: Callable[[str], None] | None = None
    ) -> LoadResult:
        """Send every request at its time, whatever has become of those before."""
        order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_s)
        payloads = [self._payload(request) for request in requests]
        run = _Run()
        records = [_Record(request.arrival_s) for request in requests]
        tasks: list[asyncio.Task[None]] = []
        for i in order:
            wait_s = requests[i].arrival_s - run.clock()
            if wait_s > 0.0:
                await asyncio.sleep(wait_s)
            send = self._send(payloads[i], requests[i], records[i], run.clock)
            tasks.append(asyncio.create_task(send))
            if progress is not None:
                progress(f"{len(tasks)} of {len(requests)} requests sent")
        await asyncio.gather(*tasks)
        return run.result(records)

    async def closed_loop(
        self, requests: Iterable[LoadRequest], users: int, *, think_s: float = 0.0,
        duration_s: float = float("inf"),
    ) -> LoadResult:  # fmt: skip
        """Let ``users`` send requests one after another, until they or the time have run out."""
        queue = iter(requests)
        run = _Run()
        records: list[_Record] = []

        async def user() -> None:
            while run.clock() < duration_s:
                request = next(queue, None)
                if request is None:
                    return
                record = _Record(run.clock())
                records.append(record)
                await self._send(self._payload(request), request, record, run.clock)
                if think_s:
                    await asyncio.sleep(think_s)

        await asyncio.gather(*(user() for _ in range(users)))
        return run.result(records)

    def _payload(self, request: LoadRequest) -> bytes:
        key = f"authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        extra = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        head = (
            f"POST {request.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(request.body)}\r\n"
            f"accept: text/event-stream\r\nconnection: close\r\n{key}{extra}\r\n"
        )
        return head.encode() + request.body

    async def _send(
        self, payload: bytes, request: LoadRequest, record: _Record, clock: Callable[[], float]
    ) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self.keep_text:
            record.text = []
        exchange = _Exchange(payload, record, request.cancel_after, clock, done)
        record.sent_s = clock()
        try:
            async with asyncio.timeout(self.timeout_s):
                await loop.create_connection(lambda: exchange, self.host, self.port)
                await done
        except TimeoutError:
            exchange.abandon("timeout")
        except OSError:
            exchange.abandon("connect")


class _Run:
    """The clock of a run, and how well the event loop keeps to it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._start_s = time.perf_counter()
        self._lag = array("d")
        self._timer = self._loop.call_later(LAG_EVERY_S, self._tick, self.clock() + LAG_EVERY_S)

    def clock(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start_s

    def _tick(self, due_s: float) -> None:
        self._lag.append(max(self.clock() - due_s, 0.0))
        self._timer = self._loop.call_later(LAG_EVERY_S, self._tick, self.clock() + LAG_EVERY_S)

    def result(self, records: Sequence[_Record]) -> LoadResult:
        """Return the records as arrays."""
        self._timer.cancel()

        def floats(values: Iterable[float]) -> Floats:
            return np.array(list(values), np.float64)

        def ints(values: Iterable[int]) -> Ints:
            return np.array(list(values), np.int64)

        return LoadResult(
            floats(r.scheduled_s for r in records),
            floats(r.sent_s for r in records),
            floats(r.times[0] if r.times else np.nan for r in records),
            floats(r.times[-1] if r.times else np.nan for r in records),
            floats(r.ended_s for r in records),
            ints(r.status for r in records),
            ints(r.prompt_tokens for r in records),
            ints(r.output_tokens or len(r.times) for r in records),
            ints(len(r.times) for r in records),
            ints(r.answer_bytes for r in records),
            tuple(r.error for r in records),
            tuple(b"".join(r.text or ()) for r in records),
            np.concatenate([np.frombuffer(r.times, np.float64) for r in records])
            if records
            else np.zeros(0),
            floats(self._lag),
        )


def run_open_loop(url: str, requests: Sequence[LoadRequest], **settings: Any) -> LoadResult:
    """Send every request at its time from an event loop of its own; see ``LoadGenerator``."""
    return run_loop(LoadGenerator(url, **settings).open_loop(requests))


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)
