"""What engines say of themselves, asked for again and again: load, models, whether they are back.

Nothing here is on the way of a request, and nothing that an engine says or fails to say takes it out
of use; without reports the gateway goes by its own counts.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpusched.domain.gateway import GatewaySettings
from gpusched.engines.dialects import detect, read_metrics
from gpusched.gateway.dispatch.dispatcher import LiveDispatcher
from gpusched.gateway.dispatch.fleet import Engine

METRICS_PATHS = ("/metrics", "/prometheus/metrics")
HEALTH_PATH = "/health"
MODELS_PATH = "/v1/models"
PROPS_PATH = "/props"
"""llama.cpp's: how many requests it runs at once, and its context."""
MODELS_EVERY_S = 10.0
MOST_BYTES = 8_000_000
MOST_POLLS_PER_S = 100.0
"""Of all engines together; beyond, each is asked less often."""
STALE_POLLS = 10.0
"""Polls without a report after which others' load is taken to be none."""
SILENT_POLLS = 3
"""Polls without an answer in time, after which an engine that owes first bytes is passed by."""
JITTER = 0.1

Get = Callable[[str, "dict[str, str]", float], Any]
"""``await get(url, headers, timeout_s)`` returns status and text; raises OSError or TimeoutError."""


@dataclass(slots=True)
class _Asked:
    """What is known of how an engine answers questions."""

    path: int = 0
    """Among ``METRICS_PATHS``."""
    dialect: str | None = None
    timeouts: int = 0
    models_s: float = -1e18
    seats_known: bool = False


class Watch:
    """Asks all engines of a dispatcher until closed."""

    def __init__(
        self,
        dispatcher: LiveDispatcher,
        settings: GatewaySettings,
        *,
        get: Get | None = None,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self._get = get
        self._client: Any = None
        self._random = random.Random(seed)
        self._asked: dict[int, _Asked] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.configure(settings)

    def configure(self, settings: GatewaySettings) -> None:
        """Go by other settings from the next poll on."""
        self.poll_s = settings.poll_s
        self.timeout_s = max(min(2.0 * settings.poll_s, 5.0), 1.0)

    async def run(self) -> None:
        """Ask, until cancelled."""
        client = None
        if self._get is None:
            client = self._client = _session()
            self._get = self._fetch
        try:
            while True:
                for engine in self.dispatcher.engines:
                    task = self._tasks.get(engine.index)
                    if engine.lane is not None and (task is None or task.done()):
                        self._tasks[engine.index] = asyncio.create_task(self._follow(engine))
                await asyncio.sleep(min(self.poll_s, 1.0))
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            if client is not None:
                await client.close()

    async def _follow(self, engine: Engine) -> None:
        """Ask one engine until it leaves the plan."""
        while engine.lane is not None:
            await self.ask(engine)
            share = len(self.dispatcher.engines) / (self.poll_s * MOST_POLLS_PER_S)
            pause_s = self.poll_s * max(share, 1.0)
            await asyncio.sleep(pause_s * (1.0 + self._random.uniform(-JITTER, JITTER)))

    async def ask(self, engine: Engine) -> None:
        """Ask an engine once for what is due: its load, its models, or whether it is back."""
        asked = self._asked.setdefault(engine.index, _Asked())
        if engine.out:
            if self.clock() >= engine.next_probe_s:
                ok = await self.probe(engine)
                asked.models_s = -1e18
                self.dispatcher.health.probed(engine, ok, self.clock())
            return
        if self.clock() - asked.models_s >= MODELS_EVERY_S or engine.models is None:
            await self._ask_models(engine, asked)
        await self._ask_load(engine, asked)

    async def probe(self, engine: Engine) -> bool:
        """Return whether an engine answers."""
        for path in (HEALTH_PATH, MODELS_PATH):
            status, _ = await self._try(engine, path)
            if status == 200:
                return True
            if status not in (404, 405, 501):
                return False
        return False

    async def _ask_load(self, engine: Engine, asked: _Asked) -> None:
        own = engine.requests
        status, text = await self._try(engine, METRICS_PATHS[asked.path])
        now_s = self.clock()
        if status is None:
            asked.timeouts += text == "timeout"
            self._no_load(engine, asked, now_s)
            return
        asked.timeouts = 0
        self.dispatcher.health.heard(engine)
        dialect = engine.dialect if engine.dialect != "auto" else asked.dialect
        if status == 200 and dialect is None:
            dialect = asked.dialect = detect(text)
        if status != 200 or dialect is None:
            asked.path = (asked.path + 1) % len(METRICS_PATHS)
            self._no_load(engine, asked, now_s)
            return
        state = read_metrics(text, dialect)
        if state.requests is None:
            asked.dialect = None
            self._no_load(engine, asked, now_s)
            return
        # It was counted somewhere between question and answer.
        self.dispatcher.fleet.report(engine, state, now_s, 0.5 * (own + engine.requests))
        self.dispatcher.looked(now_s)

    def _no_load(self, engine: Engine, asked: _Asked, now_s: float) -> None:
        if now_s - engine.state_s > STALE_POLLS * self.poll_s:
            self.dispatcher.fleet.no_report(engine)
        waits = now_s - max(engine.last_sign_s, engine.asked_s) > SILENT_POLLS * self.timeout_s
        if asked.timeouts >= SILENT_POLLS and engine.prefilling > 0 and waits:
            self.dispatcher.silent(engine, now_s)

    async def _ask_models(self, engine: Engine, asked: _Asked) -> None:
        status, text = await self._try(engine, MODELS_PATH)
        if status != 200:
            return
        names, context = read_models(text)
        if not names:
            return
        asked.models_s = self.clock()
        if not asked.seats_known:
            asked.seats_known = True
            seats, slot_context = await self._ask_slots(engine)
            context = slot_context or context
            if seats is not None:
                self.dispatcher.told_seats(engine, seats)
        elif engine.context_tokens is not None:
            context = engine.context_tokens
        self.dispatcher.told_models(engine, names, context)

    async def _ask_slots(self, engine: Engine) -> tuple[int | None, int | None]:
        """Return how many requests llama.cpp runs at once and the context of each."""
        status, text = await self._try(engine, PROPS_PATH)
        return read_slots(text) if status == 200 else (None, None)

    async def _try(self, engine: Engine, path: str) -> tuple[int | None, str]:
        headers = {}
        if engine.api_key is not None:
            headers["Authorization"] = f"Bearer {engine.api_key.decode()}"
        assert self._get is not None
        try:
            status, text = await self._get(engine.url + path, headers, self.timeout_s)
        except TimeoutError:
            return None, "timeout"
        except (OSError, ValueError):
            return None, "unreachable"
        return status, text

    async def _fetch(self, url: str, headers: dict[str, str], timeout_s: float) -> tuple[int, str]:
        import aiohttp

        try:
            async with asyncio.timeout(timeout_s):
                async with self._client.get(url, headers=headers) as answer:
                    body = bytearray()
                    async for chunk in answer.content.iter_chunked(65_536):
                        body += chunk
                        if len(body) > MOST_BYTES:
                            break
                    return answer.status, body.decode("utf-8", "replace")
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from None


def _session() -> Any:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0, limit_per_host=2)
    return aiohttp.ClientSession(connector=connector, auto_decompress=True)


def read_models(text: str) -> tuple[list[str], int | None]:
    """Return names of the models in an answer to ``/v1/models``, and the longest context if told."""
    document = _json(text)
    listed = document.get("data") if isinstance(document, dict) else None
    names: list[str] = []
    contexts: list[int] = []
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]:
            names.append(entry["id"])
            length = entry.get("max_model_len")
            if isinstance(length, int) and length > 0:
                contexts.append(length)
    return names, max(contexts) if contexts else None


def read_slots(text: str) -> tuple[int | None, int | None]:
    """Return slots and context of each from llama.cpp's ``/props``."""
    document = _json(text)
    if not isinstance(document, dict):
        return None, None
    slots = document.get("total_slots")
    settings = document.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    return _positive(slots), _positive(context)


def _positive(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value > 0 else None  # type: ignore[operator,return-value]


def _json(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None
