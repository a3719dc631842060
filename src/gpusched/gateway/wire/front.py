"""From a request that has been read to the dispatcher, or to a page of the gateway's own."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gpusched.gateway.exchange import CHAT, Exchange, Refusal
from gpusched.gateway.observe.pages import Page
from gpusched.gateway.wire.client import ClientConnection
from gpusched.gateway.wire.relay import Passage, WireRelay

if TYPE_CHECKING:
    from gpusched.gateway.exchange import Access

ASKED_BY_POST = frozenset((b"/v1/chat/completions", b"/v1/completions"))
SAMPLES = b'"gpusched"'
"""Field of a body that asks for several samples and a vote."""


class Pages(Protocol):
    """Pages of the gateway's own."""

    def answer(self, exchange: Exchange) -> Page | Refusal | None:
        """Return the page asked for; none if it is not one of these."""
        ...


class Answers(Protocol):
    """Answers made of several samples."""

    async def begin(self, exchange: Exchange) -> bytes | Refusal | None:
        """Return the body of an answer; none if none of this kind is asked for."""
        ...


Route = Callable[[Exchange, float], Page | Refusal]


class Front:
    """Every request passes here once, in the order access, reading, dispatcher."""

    def __init__(self, relay: WireRelay, access: "Access", pages: Pages) -> None:
        self.relay = relay
        self.access = access
        self.pages = pages
        self.answers: Answers | None = None
        self.open_routes: dict[bytes, Route] = {}
        """GET of these is answered to anybody."""
        self.routes: dict[bytes, Route] = {}
        """GET of these is answered to those whom access lets in."""
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.malformed = 0
        """Requests that could not be read."""
        self._number = 0

    @property
    def settings(self) -> Any:
        """The gateway's settings."""
        return self.relay.settings

    def number(self) -> int:
        """Return the next exchange's number."""
        self._number += 1
        return self._number

    def turned_away(self, refusal: Refusal) -> None:
        """Take in that a request could not be read."""
        self.malformed += 1

    def receive(self, exchange: Exchange, client: ClientConnection, old: bool) -> None:
        """Serve a request.

        Args:
            exchange: as it was read.
            client: where its answer goes.
            old: whether the client speaks HTTP/1.0.
        """
        path = exchange.target
        if path[:1] != b"/":
            path = exchange.target = _origin_form(path)
            if not path:
                client.answer_refusal(
                    Refusal(400, "the request's target is no path", code="bad_http")
                )
                return
        path = path.partition(b"?")[0]
        if exchange.method != b"POST" and self._answered_here(exchange, path, client):
            return
        relay = self.relay
        now = exchange.received_s
        passage = Passage(relay, exchange, client, old)
        exchange.carrier = passage
        client.passage = passage
        relay.open.add(passage)
        relay.recorder.opened(exchange, now)
        refusal = self.access.check(exchange, now)
        if refusal is None:
            if exchange.method != b"POST" and path in self.routes:
                self._show(passage, self.routes[path](exchange, now))
                return
            refusal = relay.reading.read(exchange)
            if refusal is None:
                refusal = self.access.charge(exchange, now)
        if refusal is not None:
            relay.refuse(exchange, refusal)
        elif exchange.kind == CHAT and self.answers is not None and SAMPLES in exchange.body:
            passage.task = asyncio.get_running_loop().create_task(self._sample(passage))
        else:
            passage.submitted = True
            relay.dispatcher.submit(exchange, now)

    def _answered_here(self, exchange: Exchange, path: bytes, client: ClientConnection) -> bool:
        """Answer what needs neither a key nor an engine."""
        method = exchange.method
        if method == b"OPTIONS":
            methods = b"POST, OPTIONS" if path in ASKED_BY_POST else b"GET, HEAD, POST, OPTIONS"
            client.answer_body(204, b"", b"", ((b"allow", methods),))
            return True
        if path in ASKED_BY_POST:
            refusal = Refusal(
                405, f"{path.decode()} is asked by POST, not {method.decode()}",
                headers=((b"allow", b"POST, OPTIONS"),),
            )  # fmt: skip
            client.answer_refusal(refusal)
            return True
        if method not in (b"GET", b"HEAD"):
            return False
        now = exchange.received_s
        route = self.open_routes.get(path)
        page = route(exchange, now) if route else self.pages.answer(exchange)
        if page is None:
            return False
        if isinstance(page, Refusal):
            client.answer_refusal(page)
        else:
            kind = page.content_type.encode()
            client.answer_body(page.status, kind, page.body, page.headers)
        return True

    def _show(self, passage: Passage, page: Page | Refusal) -> None:
        if isinstance(page, Refusal):
            self.relay.refuse(passage.exchange, page)
            return
        passage.answer(page.status, page.content_type.encode(), page.body)

    async def _sample(self, passage: Passage) -> None:
        assert self.answers is not None
        found = await self.answers.begin(passage.exchange)
        passage.task = None
        if passage.over:
            return
        if isinstance(found, Refusal):
            self.relay.refuse(passage.exchange, found)
        elif found is None:
            passage.submitted = True
            self.relay.dispatcher.submit(passage.exchange, time.monotonic())
        else:
            passage.answer(200, b"application/json", found)

    def sweep(self, now_s: float) -> None:
        """Look for clients that keep their connection waiting."""
        for connection in tuple(self.connections):
            connection.sweep(now_s)


def _origin_form(target: bytes) -> bytes:
    """Return path and query of an absolute target; empty if there is none."""
    if target == b"*":
        return b"/*"
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return b""
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"
