"""An engine behind HTTP: streams of it, with the time of every token.

``/v1/completions`` is used with prompts of token ids where the engine takes them, so that lengths are
exact; drawn at random, they are in nobody's prefix cache.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from gpusched.calibration.events import Events
from gpusched.calibration.stage import Answer, Record, Stage
from gpusched.errors import InputError

try:
    import aiohttp
except ImportError:
    aiohttp = None  # type: ignore[assignment,unused-ignore]

Result = TypeVar("Result")

LOWEST_ID, HIGHEST_ID = 100, 999
"""Token ids of prompts: in every vocabulary, and above special tokens."""
CONNECT_S, STALL_S = 5.0, 60.0
KEEP_ALIVE_S = 2.0
"""Less than servers keep idle connections open."""
RETRIES = 2
"""Of a request whose connection is closed before its answer begins."""
SPACING = (3.0, 6.0)
"""Iterations between the answer to a probe and the next probe, least and most."""
RESERVE = 8
"""Tokens of the batch that must be left when a probe is sent."""
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world")


@dataclass(frozen=True, slots=True)
class Habits:
    """What an engine understands of a request; found out by asking."""

    token_ids: bool = True
    """Prompts as lists of token ids, not text."""
    ignore_eos: bool = True
    running_usage: bool = True
    """Every event of a stream says how many tokens came so far."""
    usage: bool = True


FALLBACKS = (
    Habits(),
    Habits(running_usage=False),
    Habits(running_usage=False, usage=False),
    Habits(ignore_eos=False, running_usage=False, usage=False),
    Habits(token_ids=False, running_usage=False),
    Habits(token_ids=False, ignore_eos=False, running_usage=False, usage=False),
)


class RefusedError(InputError):
    """The engine does not serve a request."""

    def __init__(self, status: int, text: str, url: str) -> None:
        self.status = status
        message = text.strip()
        try:
            said = json.loads(text)
            said = said.get("error", said)
            message = str(said.get("message", said)) if isinstance(said, dict) else str(said)
        except (ValueError, AttributeError):
            pass
        message = message.replace("\n", " ")[:300] or "no reason given"
        advice = {
            401: "; give its key with --api-key-file",
            403: "; give a key that may use it with --api-key-file",
            404: "; check the URL (scheme, host and port alone) and --model",
        }.get(status, "")
        super().__init__(f"{url}: the engine answers {status} ({message}){advice}")


@dataclass
class HttpEngine:
    """A live engine that answers OpenAI's API. Its methods block; one event loop is its own."""

    url: str
    model: str = ""
    api_key: str | None = None
    seed: int = 0
    keep_alive: bool = True
    habits: Habits = field(default_factory=Habits)

    def __post_init__(self) -> None:
        if aiohttp is None:
            raise InputError("a live engine needs aiohttp: pip install 'gpusched[gateway]'")
        self.url = self.url.rstrip("/")
        self.rng = np.random.default_rng(self.seed)
        self._loop = asyncio.new_event_loop()
        self._session: Any = None

    def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end.

        Raises:
            InputError: the engine cannot be reached or used; says how.
        """
        try:
            return self._loop.run_until_complete(work)
        except aiohttp.InvalidURL:
            raise InputError(f"{self.url}: not a URL; expected http://HOST:PORT") from None
        except aiohttp.ClientConnectorError as error:
            raise InputError(
                f"{self.url}: nothing answers there ({error.strerror or error})"
            ) from None
        except (aiohttp.ServerTimeoutError, TimeoutError):
            raise InputError(f"{self.url}: no answer within {STALL_S:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            what = str(error) or type(error).__name__
            raise InputError(f"{self.url}: the connection failed ({what})") from None

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a page."""

        async def work() -> tuple[int, str]:
            session = self._open()
            async with session.get(self.url + path) as answer:
                return answer.status, await answer.text(errors="replace")

        return self.call(work())

    def run(self, stage: Stage) -> Record:
        """Return the answers to a stage."""
        return self.call(self._run(stage))

    def find_habits(self) -> None:
        """Find out what the engine understands, by a short request of each kind.

        Raises:
            InputError: it serves none of them.
        """
        problem: RefusedError | None = None
        for habits in FALLBACKS:
            self.habits = habits
            try:
                found = self.call(self.answer(8, 4))
            except RefusedError as error:
                if error.status not in (400, 422, 500, 501):
                    raise
                problem = problem or error
                continue
            if found.output_tokens >= 1:
                return
        assert problem is not None
        raise problem

    async def answer(
        self, prompt_tokens: int, output_tokens: int,
        told: Callable[[int], None] | None = None, **extra: Any,
    ) -> Answer:  # fmt: skip
        """Return the answer to a prompt of random tokens; ``told`` learns of its tokens as they come.

        Raises:
            InputError: the engine refuses the request, does not stream, or stops midway.
        """
        h = self.habits
        body: dict[str, Any] = {
            "model": self.model, "prompt": self._prompt(prompt_tokens), "temperature": 0.0,
            "max_tokens": output_tokens, "stream": True, **extra,
        }  # fmt: skip
        if h.ignore_eos:
            body["ignore_eos"] = True
        if h.usage:
            body["stream_options"] = {"include_usage": True}
            if h.running_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        data = json.dumps(body).encode()
        for _ in range(RETRIES):
            try:
                return await self._stream(data, prompt_tokens, output_tokens, told)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # a connection that the server closed while it was taken up
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
        return await self._stream(data, prompt_tokens, output_tokens, told)

    async def _stream(
        self, data: bytes, prompt_tokens: int, output_tokens: int,
        told: Callable[[int], None] | None,
    ) -> Answer:  # fmt: skip
        received: list[float] = []
        tokens: list[int] = []
        events = Events()
        session = self._open()
        sent_s = time.perf_counter()
        async with session.post(
            self.url + "/v1/completions", data=data, headers={"Content-Type": "application/json"}
        ) as answer:
            if answer.status != 200:
                raise RefusedError(answer.status, await answer.text(errors="replace"), self.url)
            kind = answer.headers.get("Content-Type", "")
            if "text/event-stream" not in kind:
                raise InputError(
                    f"{self.url}: /v1/completions answers with {kind or 'no content type'}, not with a "
                    "stream of events; calibration needs streaming"
                )
            try:
                async for part in answer.content.iter_any():
                    now_s = time.perf_counter()
                    count = events.take(part)
                    if count > (tokens[-1] if tokens else 0):
                        received.append(now_s)
                        tokens.append(count)
                        if told is not None:
                            told(count)
            except (aiohttp.ClientPayloadError, ConnectionError):
                pass
        if events.error is not None:
            raise InputError(f"{self.url}: the stream ends in an error ({events.error})")
        if not tokens or not (events.done or events.tokens >= output_tokens):
            raise InputError(
                f"{self.url}: a stream broke off after {events.tokens} of {output_tokens} tokens"
            )
        return Answer(
            events.prompt_tokens or prompt_tokens, output_tokens, sent_s, np.array(received),
            np.array(tokens, np.int64),
        )  # fmt: skip

    async def _run(self, stage: Stage) -> Record:
        counts = [0] * stage.batch
        moved = asyncio.Event()

        def listener(index: int) -> Callable[[int], None]:
            def told(count: int) -> None:
                counts[index] = count
                if index == 0 or count == 1:
                    moved.set()

            return told

        async def reached(tokens: int) -> bool:
            """Wait until the first request has so many tokens, and all have one."""
            while min(counts) < 1 or counts[0] < tokens:
                if all(task.done() for task in tasks):
                    return False
                moved.clear()
                await moved.wait()
            return max(counts) + RESERVE <= stage.output_tokens

        tasks = [
            asyncio.create_task(
                self.answer(stage.prompt_tokens, stage.output_tokens, listener(index))
            )
            for index in range(stage.batch)
        ]
        for task in tasks:
            task.add_done_callback(lambda _: moved.set())
        probes: list[Answer] = []
        try:
            if stage.together:
                await reached(RESERVE // 2)
                probes += await asyncio.gather(*(self.answer(t, 1) for t in stage.probes))
            for tokens in () if stage.together else stage.probes:
                if stage.batch:
                    await reached(counts[0])
                    before_s, start = time.perf_counter(), counts[0]
                    wait = stage.pace * self.rng.uniform(*SPACING)
                    if not await reached(start + int(wait)):
                        break
                    gap_s = (time.perf_counter() - before_s) / max(counts[0] - start, 1)
                    await asyncio.sleep(gap_s * (wait % 1.0))
                probes.append(await self.answer(tokens, 1))
            batch = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Record(stage, tuple(batch), tuple(probes))

    def _prompt(self, tokens: int) -> Any:
        if self.habits.token_ids:
            return self.rng.integers(LOWEST_ID, HIGHEST_ID, tokens, endpoint=True).tolist()
        return " ".join(WORDS[i] for i in self.rng.integers(0, len(WORDS), max(tokens - 1, 1)))

    def _open(self) -> Any:
        if self._session is None:
            kept = {"keepalive_timeout": KEEP_ALIVE_S} if self.keep_alive else {"force_close": True}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, loop=self._loop, **kept),
                timeout=aiohttp.ClientTimeout(None, CONNECT_S, STALL_S, CONNECT_S),
                headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
                loop=self._loop,
            )
        return self._session
