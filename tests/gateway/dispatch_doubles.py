"""A clock, a relay and a plan for dispatchers under test."""

import heapq
import itertools
from typing import Any

from gpusched.domain.plan import Plan, plan_from
from gpusched.gateway.dispatch.assembly import Rooms, assemble
from gpusched.gateway.exchange import CHAT, NOWHERE, Exchange, Refusal

MODEL = "llama-3.1-8b"


class FakeClock:
    """Time that a test moves on, and the calls that are due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._calls: list[Any] = []
        self._numbers = itertools.count()

    def call_at(self, when_s: float, function: Any, *arguments: Any) -> "FakeTimer":
        timer = FakeTimer()
        heapq.heappush(self._calls, (when_s, next(self._numbers), timer, function, arguments))
        return timer

    def move(self, to_s: float) -> None:
        while self._calls and self._calls[0][0] <= to_s:
            when_s, _, timer, function, arguments = heapq.heappop(self._calls)
            self.now_s = max(self.now_s, when_s)
            if not timer.cancelled:
                function(*arguments)
        self.now_s = max(self.now_s, to_s)


class FakeTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeRelay:
    """Notes what it is told; the test says what becomes of it."""

    def __init__(self) -> None:
        self.rooms: Rooms | None = None
        self.clock: FakeClock | None = None
        self.sends: list[tuple[Exchange, int, int]] = []
        self.hedges: list[tuple[Exchange, int]] = []
        self.refusals: list[tuple[Exchange, Refusal]] = []
        self.open: dict[Exchange, list[int]] = {}

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        assert exchange.outcome == "open"
        self.sends.append((exchange, engine, prefill))
        self.open.setdefault(exchange, []).append(engine)

    def hedge(self, exchange: Exchange, engine: int) -> None:
        self.hedges.append((exchange, engine))
        self.open[exchange].append(engine)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        assert exchange.outcome == "open"
        assert not self.open.get(exchange)
        exchange.outcome = "refused"
        exchange.refusal = refusal
        self.refusals.append((exchange, refusal))
        self.rooms.dispatcher.ended(exchange, self.clock.now_s)

    def answer(self, exchange: Exchange, output_tokens: int = 10) -> None:
        """Let the engine begin and end its answer."""
        engine = self.open[exchange][0]
        self.begin(exchange, engine)
        self.end(exchange, output_tokens)

    def begin(self, exchange: Exchange, engine: int) -> None:
        dispatcher = self.rooms.dispatcher
        dispatcher.began(exchange, engine, self.clock.now_s)
        for other in [e for e in self.open[exchange] if e != engine]:
            dispatcher.left(exchange, other, self.clock.now_s)
        self.open[exchange] = [engine]

    def end(self, exchange: Exchange, output_tokens: int = 10, outcome: str = "ok") -> None:
        exchange.outcome, exchange.output_tokens = outcome, output_tokens
        self.open.pop(exchange, None)
        self.rooms.dispatcher.ended(exchange, self.clock.now_s)
        self.rooms.reading.learn(exchange)

    def fail(self, exchange: Exchange, engine: int, reason: str = "connect") -> bool:
        self.open[exchange].remove(engine)
        return self.rooms.dispatcher.failed(exchange, engine, self.clock.now_s, reason)


class House:
    """A dispatcher with its doubles."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        self.clock = FakeClock()
        self.rooms = assemble(plan, self.clock.call_at, seed=seed)
        self.relay = FakeRelay()
        self.relay.rooms, self.relay.clock = self.rooms, self.clock
        self.dispatcher = self.rooms.dispatcher
        self.dispatcher.relay = self.relay
        self.engines = self.dispatcher.fleet.engines
        self._numbers = itertools.count()

    def exchange(self, **fields: Any) -> Exchange:
        exchange = Exchange(
            next(self._numbers), b"POST", b"/v1/chat/completions", [], b"", self.clock.now_s
        )
        exchange.kind, exchange.model = CHAT, MODEL
        exchange.prompt_tokens, exchange.predicted_tokens = 100, 50
        for name, value in fields.items():
            setattr(exchange, name, value)
        return exchange

    def submit(self, **fields: Any) -> Exchange:
        exchange = self.exchange(**fields)
        self.dispatcher.submit(exchange, self.clock.now_s)
        return exchange

    def loads(self) -> list[int]:
        return [engine.requests for engine in self.engines]

    def router_loads(self) -> list[int]:
        return self.dispatcher.fleet.groups[0].entry.router.load_requests.tolist()


def plan_of(
    engines: int = 2,
    *,
    gateway: dict[str, Any] | None = None,
    slo: dict[str, Any] | None = None,
    pool: dict[str, Any] | None = None,
    pools: list[dict[str, Any]] | None = None,
    engine: dict[str, Any] | None = None,
    weights: list[float] | None = None,
    first: int = 0,
    **fields: Any,
) -> Plan:
    endpoints: list[Any] = [
        {"url": f"http://127.0.0.1:{22000 + first + i}"} for i in range(engines)
    ]
    for address, weight in zip(endpoints, weights or [], strict=False):
        address["weight"] = weight
    single = {
        "name": "main", "nodes": "n", "gpu": "l40s", "replicas": max(engines, 1),
        "endpoints": endpoints, "engine": engine or {}, **(pool or {}),
    }  # fmt: skip
    values: dict[str, Any] = {
        "gpusched": "plan/1",
        "model": MODEL,
        "weights_dtype": "bf16",
        "cluster": {"nodes": [{"name": "n", "count": 64, "gpu": "l40s", "gpus": 1}]},
        "pools": pools or [single],
        "workload": {"profile": "chat", "rate_rps": 1.0, "duration_s": 60},
        "slo": slo or {"ttft_ms": 1000},
        "gateway": {"length_predictor": "constant:50", **(gateway or {})},
        **fields,
    }
    return plan_from(values)
