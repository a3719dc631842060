"""The rooms of a live gateway, built from a plan."""

import asyncio
import time

from gpusched.domain.gateway import GatewaySettings
from gpusched.domain.plan import Plan
from gpusched.gateway.access.access import Access
from gpusched.gateway.answers import Answers
from gpusched.gateway.dispatch.assembly import assemble
from gpusched.gateway.exchange import Exchange
from gpusched.gateway.observe.pages import Page, Pages
from gpusched.gateway.observe.recorder import Recorder
from gpusched.gateway.reading.reading import BLOCK_BYTES
from gpusched.gateway.wire.front import Front
from gpusched.gateway.wire.surface import description

BYTES_PER_TOKEN = 4
"""Of text, roughly: how long a block of a prefix is."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class LiveRooms:
    """Access, reading, dispatcher, recorder and pages of one gateway."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop, *, seed: int = 0) -> None:
        """Build all rooms.

        Raises:
            InputError: the plan cannot be served.
        """
        settings = settings_of(plan)
        self.access = Access(
            settings.keys,
            plan.slo.names,
            loopback=settings.host in LOOPBACK,
            now_s=time.monotonic(),
        )
        self._parts = assemble(plan, loop.call_at, seed=seed)
        self.reading = self._parts.reading
        self.dispatcher = self._parts.dispatcher
        self.recorder = Recorder(
            plan, self.dispatcher, self.access, block_tokens=BLOCK_BYTES // BYTES_PER_TOKEN
        )
        self.pages = Pages(self.recorder, self.access)
        self._settings = settings
        self._answers: Answers | None = None
        self._watching: asyncio.Task[None] | None = None

    def connect(self, front: Front, address: str) -> None:
        """Take the relay, and give routes and answers of the gateway's own."""
        self.dispatcher.relay = front.relay
        self._answers = front.answers = Answers(address, self._settings)
        front.open_routes[b"/health"] = self._health
        front.open_routes[b"/openapi.json"] = _description
        front.routes[b"/v1/models"] = self._models

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch engines and to keep time."""
        self.recorder.start(loop)
        self._watching = loop.create_task(self._parts.watch.run())

    def reload(self, plan: Plan) -> None:
        """Take a new plan, or none of it.

        Raises:
            InputError: the plan cannot be served.
        """
        settings = settings_of(plan)
        now = time.monotonic()
        # A check of the keys before anything changes.
        Access(settings.keys, plan.slo.names)
        self._parts.reload(plan, now)
        self.access.update(
            settings.keys, plan.slo.names, loopback=settings.host in LOOPBACK, now_s=now
        )
        self.recorder.update(plan)

    async def close(self) -> None:
        """Stop, and write what waits to be written."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._answers is not None:
            await self._answers.close()
        await asyncio.to_thread(self.recorder.close)

    def _health(self, exchange: Exchange, now_s: float) -> Page:
        able = any(engine.usable for engine in self.dispatcher.engines)
        body = b'{"status":"ok"}' if able else b'{"status":"no engine can be reached"}'
        return Page(200 if able else 503, "application/json", body)

    def _models(self, exchange: Exchange, now_s: float) -> Page:
        return Page(200, "application/json", self.dispatcher.models_document())


def settings_of(plan: Plan) -> GatewaySettings:
    """Return a plan's settings of the gateway, the defaults if it has none."""
    return plan.gateway or GatewaySettings()


def _description(exchange: Exchange, now_s: float) -> Page:
    return Page(200, "application/json", description())
