"""Small stand-ins of the rooms around the wire, and a client that speaks raw HTTP."""

import asyncio
import time
from dataclasses import dataclass

import uvloop

from gpusched.domain.gateway import GatewaySettings
from gpusched.domain.plan import Plan, plan_from
from gpusched.gateway.exchange import CHAT, COMPLETION, NOWHERE, OTHER, Exchange, Refusal
from gpusched.gateway.server import Gateway


def plan_of(urls, **settings) -> Plan:
    return plan_from(
        {
            "gpusched": "plan/1",
            "model": "llama-3.1-8b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "n", "count": 8, "gpu": "h100_sxm", "gpus": 8}]},
            "pools": [
                {"name": "p", "nodes": "n", "gpu": "h100_sxm", "replicas": max(len(urls), 1),
                 "endpoints": list(urls)}
            ],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 60},
            "slo": {"ttft_ms": 1000, "tpot_ms": 50, "attainment": 0.9},
            "gateway": {"port": 0, **settings},
        }
    )  # fmt: skip


@dataclass
class Page:
    status: int
    content_type: str
    body: bytes
    headers: tuple = ()


@dataclass
class At:
    url: str
    api_key: bytes | None = None


class Doubles:
    """All rooms in one: round robin with retries, and a list of what was told."""

    def __init__(self, plan: Plan) -> None:
        self.settings: GatewaySettings = plan.gateway
        self.engines = [At(address.url) for pool in plan.pools for address in pool.endpoints]
        self.access = self.reading = self.dispatcher = self.recorder = self.pages = self
        self.told: list[tuple] = []
        self.ended_exchanges: list[Exchange] = []
        self.turn = 0
        self.relay = None
        self.hold = False
        self.hedge_to = NOWHERE
        self.prefill = NOWHERE
        self.refusal: Refusal | None = None
        self.plans = [plan]
        self.submitted: set[int] = set()

    # Rooms
    def connect(self, front, address) -> None:
        self.relay = front.relay
        front.open_routes[b"/health"] = lambda exchange, now: Page(200, "application/json", b"{}")
        front.routes[b"/v1/models"] = lambda exchange, now: Page(
            200, "application/json", b'{"data": []}'
        )

    def start(self, loop) -> None:
        pass

    def reload(self, plan) -> None:
        self.plans.append(plan)
        known = [engine.url for engine in self.engines]
        for pool in plan.pools:
            self.engines += [At(a.url) for a in pool.endpoints if a.url not in known]

    async def close(self) -> None:
        pass

    # Access
    def check(self, exchange, now_s):
        if exchange.header(b"authorization") == b"Bearer wrong":
            return Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        return None

    def charge(self, exchange, now_s):
        return None

    # Pages
    def answer(self, exchange):
        return Page(200, "text/plain", b"metrics") if exchange.target == b"/metrics" else None

    # Reading
    def read(self, exchange):
        path = exchange.target.partition(b"?")[0]
        exchange.kind = {b"/v1/chat/completions": CHAT, b"/v1/completions": COMPLETION}.get(
            path, OTHER
        )
        return None

    def learn(self, exchange) -> None:
        self.told.append(("learn", exchange.number))

    # Recorder and dispatcher
    def opened(self, exchange, now_s) -> None:
        pass

    def ended(self, exchange, now_s) -> None:
        if exchange.number in self.submitted:
            self.submitted.discard(exchange.number)
            self.told.append(("ended", exchange.number))
        else:
            self.ended_exchanges.append(exchange)

    def submit(self, exchange, now_s) -> None:
        self.submitted.add(exchange.number)
        if self.refusal is not None:
            self.relay.refuse(exchange, self.refusal)
        elif not self.hold:
            self.turn += 1
            engine = self.turn % len(self.engines)
            self.relay.send(exchange, engine, self.prefill)
            if self.hedge_to != NOWHERE:
                self.relay.hedge(exchange, self.hedge_to)

    def body_for(self, exchange, engine):
        return exchange.body

    def began(self, exchange, engine, now_s) -> None:
        self.told.append(("began", engine))

    def failed(self, exchange, engine, now_s, reason) -> bool:
        self.told.append(("failed", engine, reason))
        exchange.tried.append(engine)
        others = [i for i in range(len(self.engines)) if i not in exchange.tried]
        if not others or len(exchange.tried) > self.settings.retries or self.hedge_to != NOWHERE:
            return False
        self.relay.send(exchange, others[0])
        return True

    def left(self, exchange, engine, now_s) -> None:
        self.told.append(("left", engine))

    def load_report(self, engine, header, now_s) -> None:
        self.told.append(("report", engine, header))


async def gateway_of(urls, **settings) -> tuple[Gateway, Doubles]:
    gateway = Gateway(plan_of(urls, **settings), lambda plan, loop: Doubles(plan))
    await gateway.start()
    return gateway, gateway.rooms


async def ask(
    port: int, data: bytes, *, until_close: bool = False, timeout_s: float = 5.0
) -> bytes:
    """Send bytes and return what comes back: one answer with a length or chunks, or all there is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            if until_close:
                return await reader.read()
            return await one_answer(reader)
    finally:
        writer.close()


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            more = await reader.read(65536)
            if not more:
                break
            body += more
        return head + body
    for line in lower.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


BODY = b'{"model": "m", "messages": [], "x_unknown": [1, {"y": null}]}'
PATH = b"/v1/chat/completions"


def post(
    body: bytes = BODY, *, path: bytes = PATH, version: bytes = b"1.1", more: bytes = b""
) -> bytes:
    head = b"POST %s HTTP/%s\r\nHost: gateway\r\n%sContent-Length: %d\r\n\r\n"
    return head % (path, version, more, len(body)) + body


def run(main) -> None:
    async def limited():
        async with asyncio.timeout(20):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


async def until(condition, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.005)


async def ended(rooms, count: int = 1):
    await until(lambda: len(rooms.ended_exchanges) >= count)
    return rooms.ended_exchanges
