"""A simulated engine behind HTTP: OpenAI's API in real time, with faults on demand."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gpusched.domain.document import validate
from gpusched.engines.simulated.answers import CHARACTERS_PER_TOKEN, Answer, Asked
from gpusched.engines.simulated.faults import Faults
from gpusched.engines.simulated.http import Connection, HttpRequest, error_body
from gpusched.engines.simulated.iterations import IterationEngine, Sequence
from gpusched.engines.simulated.json_text import dumps, loads
from gpusched.engines.simulated.metrics import Dialect, Histogram, load_report, render
from gpusched.errors import InputError

GIVE_UP_S = 0.25
"""An engine that is later than this with an iteration does not catch up: its machine was too slow."""
TURN_S = 0.01
"""Longest turn of the engine before connections are served again."""
EARLY_S = 0.0005
"""Timers are as fine as a millisecond; an iteration that ends within half of one has ended."""

NEVER_S = float("-inf")


@dataclass(slots=True)
class Lateness:
    """How well an engine keeps time."""

    worst_s: float = 0.0
    lost_s: float = 0.0
    """Time that it was behind in all and did not catch up."""


class SimulatedEngine:
    """Serves until closed. ``faults`` may be set at any time, or over the control port.

    ::

        async with SimulatedEngine(IterationEngine(timing)) as engine:
            ... engine.url ...
            engine.set_faults(status_share=0.1)

    ``tokenizer`` counts the tokens of texts; without one, four characters make a token.
    """

    def __init__(
        self,
        core: IterationEngine,
        *,
        port: int = 0,
        control_port: int | None = None,
        model: str = "tiny",
        max_model_len: int = 4096,
        dialect: Dialect = "vllm",
        tokenizer: Path | None = None,
        seed: int = 0,
    ) -> None:
        self.core = core
        self.model = model
        self.max_model_len = max_model_len
        self.dialect = dialect
        self.faults = Faults()
        self.late = Lateness()
        self.requests = 0
        self.cancelled = 0
        self.histograms: dict[str, Histogram] = {
            name: Histogram()
            for name in (
                "time_to_first_token_seconds", "request_time_per_output_token_seconds",
                "e2e_request_latency_seconds",
            )
        }  # fmt: skip
        self.port = port
        self.control_port = control_port
        self._tokenizer_file = tokenizer
        self._draw = random.Random(seed)
        self._connections: set[Connection] = set()
        self._thawed: list[tuple[Connection, HttpRequest]] = []
        self._server: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._timer: asyncio.Handle | None = None
        self._end_s: float | None = None
        self._idle = True
        self._clock_s = NEVER_S

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def control_url(self) -> str:
        """Where faults are set: POST a JSON object of them; GET tells what has happened."""
        return f"http://127.0.0.1:{self.control_port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen on the ports, free ones where they are 0."""
        await self._listen()
        if self.control_port is not None:
            control = _Control(self)
            self._control = await asyncio.get_running_loop().create_server(
                lambda: Connection(control), "127.0.0.1", self.control_port
            )
            self.control_port = self._control.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        for server in (self._server, self._control):
            if server is not None:
                server.close()
        self._server = self._control = None
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.cut()

    def set_faults(self, **values: Any) -> None:
        """Set faults; those not named are as without any.

        Raises:
            InputError: no such fault, or a value out of range.
        """
        before, self.faults = self.faults, validate(Faults, values, "faults")
        if self.faults.refuse and self._server is not None:
            self._server.close()
            self._server = None
            for connection in list(self._connections):
                connection.cut()
        elif not self.faults.refuse and self._server is None:
            asyncio.get_running_loop().create_task(self._listen())
        if before.frozen and not self.faults.frozen:
            self._thaw()

    async def _listen(self) -> None:
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self), "127.0.0.1", self.port, reuse_address=True, backlog=4096
            )
        except OSError as error:
            raise InputError(f"port {self.port} cannot be used ({error.strerror})") from None
        self.port = self._server.sockets[0].getsockname()[1]

    # What connections call.

    def opened(self, connection: Connection) -> None:
        """Take in a new connection."""
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """Cancel what a client that has gone had asked for."""
        self._connections.discard(connection)
        answer: Answer | None = connection.answer
        if answer is not None:
            self.cancelled += 1
            for sequence in answer.sequences:
                self.core.cancel(sequence)

    def handle(self, connection: Connection, request: HttpRequest) -> None:
        """Answer a request."""
        if self.faults.frozen:
            self._thawed.append((connection, request))
            return
        path = request.path.partition(b"?")[0]
        if path in (b"/v1/completions", b"/v1/chat/completions"):
            self._generate(connection, request, chat=path == b"/v1/chat/completions")
        elif path == b"/metrics":
            text = "\x00\x7f garbled {{{\n" if self.faults.garbled_metrics else self.metrics()
            connection.reply(200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")
        elif path == b"/health":
            connection.reply(503 if self.faults.unhealthy else 200, b"")
        elif path == b"/v1/models":
            card = {
                "id": self.model, "object": "model", "created": 0, "owned_by": "gpusched",
                "max_model_len": self.max_model_len,
            }  # fmt: skip
            connection.reply(200, dumps({"object": "list", "data": [card]}))
        else:
            connection.reply(404, dumps(error_body(404, "Not Found")))

    def metrics(self) -> str:
        """Return what ``/metrics`` shows."""
        return render(self.core, self.model, self.dialect, self.histograms)

    def _generate(self, connection: Connection, request: HttpRequest, *, chat: bool) -> None:
        faults, loop = self.faults, asyncio.get_running_loop()
        if request.method != "POST":
            connection.reply(405, dumps(error_body(405, "Method Not Allowed")))
            return
        if faults.status_share and self._draw.random() < faults.status_share:
            connection.reply(faults.status, dumps(error_body(faults.status, "injected fault")))
            return
        now_s = time.monotonic()
        try:
            asked = Asked(
                request.body, chat, self.model, self.max_model_len, self._count,
                self.core.kv.block_tokens,
            )  # fmt: skip
            name = f"{'chatcmpl' if chat else 'cmpl'}-{self.requests:016x}"
            self.requests += 1
            answer = Answer(asked, connection, name, self.model)
            self._submit(answer, now_s)
        except InputError as error:
            connection.reply(400, dumps(error_body(400, str(error))))
            return
        except LookupError as error:
            connection.reply(404, dumps(error_body(404, str(error.args[0]))))
            return
        connection.answer = answer
        if b"endpoint-load-metrics-format" in request.headers:
            answer.extra_headers = load_report(self.core)
        if faults.drop_share and self._draw.random() < faults.drop_share:
            answer.drop_after = faults.drop_after_events
        if faults.first_token_delay_s:
            answer.hold()
            loop.call_later(faults.first_token_delay_s, answer.release)
        answer.finished = lambda ended, end_s: self._note(ended, now_s, end_s)
        if self._idle:
            self._idle = False
            self._look(now_s)

    def _submit(self, answer: Answer, now_s: float) -> None:
        asked = answer.asked
        for p, prompt_tokens in enumerate(asked.prompt_tokens):
            stored = prompt_tokens if asked.transfer.get("do_remote_prefill") else 0
            for i in range(asked.choices):
                sequence = Sequence(
                    prompt_tokens, asked.output_tokens, answer.choice(p * asked.choices + i),
                    asked.prefixes[p], stored, asked.max_tokens, asked.priority,
                )  # fmt: skip
                self.core.submit(sequence, now_s)
                answer.sequences.append(sequence)

    def _note(self, answer: Answer, start_s: float, end_s: float) -> None:
        first, rest, whole = self.histograms.values()
        first.add(answer.first_token_s - start_s)
        whole.add(end_s - start_s)
        tokens = answer.sequences[0].produced
        if tokens > 1:
            rest.add((end_s - answer.first_token_s) / (tokens - 1))

    def _count(self, text: str) -> int:
        if self._tokenizer_file is None:
            return max(len(text) // CHARACTERS_PER_TOKEN, 1)
        return max(len(self._tokenizer.encode(text, add_special_tokens=False).ids), 1)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._tokenizer_file))

    # The engine's own time.

    def _turn(self) -> None:
        """End the iterations that are due and begin the next."""
        self._timer = None
        began_s = now_s = time.monotonic()
        while not self.faults.frozen:
            if self._end_s is None:
                start_s = self._clock_s
                if now_s - start_s > GIVE_UP_S:
                    start_s = now_s
                duration_s = self.core.begin(start_s)
                if duration_s is None:
                    self._idle, self._clock_s = True, NEVER_S
                    self._look(self.core.next_look_s(now_s))
                    return
                self._end_s = start_s + duration_s * self.faults.slowdown
            if self._end_s > now_s + EARLY_S:
                self._look(self._end_s)
                return
            if now_s - began_s > TURN_S:
                self._look(now_s)
                return
            behind_s = now_s - self._end_s
            self.late.worst_s = max(self.late.worst_s, behind_s)
            if behind_s > GIVE_UP_S:
                self.late.lost_s += behind_s
            self._clock_s, self._end_s = self._end_s, None
            self.core.end(self._clock_s)
            now_s = time.monotonic()

    def _look(self, at_s: float) -> None:
        """Take the next turn at a time, not at another that was set."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if at_s < float("inf"):
            wait_s = max(at_s - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._turn)

    def _thaw(self) -> None:
        """Go on from here: what was frozen is not caught up with."""
        now_s = time.monotonic()
        if self._end_s is not None:
            self._end_s = now_s
        waiting, self._thawed = self._thawed, []
        for connection, request in waiting:
            self.handle(connection, request)
        if not self._idle:
            self._look(now_s)


class _Control:
    """Answers on the control port."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine

    def opened(self, connection: Connection) -> None:
        """Nothing to do."""

    def closed(self, connection: Connection) -> None:
        """Nothing to do."""

    def handle(self, connection: Connection, request: HttpRequest) -> None:
        """Set faults, or tell what has happened."""
        engine = self.engine
        if request.method == "POST":
            try:
                values: Mapping[str, Any] = loads(request.body or b"{}")
                engine.set_faults(**values)
            except (InputError, ValueError, TypeError) as error:
                connection.reply(400, dumps(error_body(400, str(error))))
                return
        counts = engine.core.counts
        told = {
            "faults": engine.faults.model_dump(), "requests": engine.requests,
            "finished": counts.finished, "cancelled": engine.cancelled,
            "preemptions": counts.preemptions, "iterations": counts.iterations,
            "running": len(engine.core.running), "waiting": engine.core.waiting,
            "worst_lateness_s": engine.late.worst_s, "lost_s": engine.late.lost_s,
        }  # fmt: skip
        connection.reply(200, dumps(told))
