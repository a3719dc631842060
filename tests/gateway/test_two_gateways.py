"""Several gateways share nothing but what the engines report, and their loads stay even.

Requests of random lengths arrive at random times at one or more gateways in front of four engines. An
engine's report is half a second old at most, so that two gateways may both send to the one that looked
least loaded: herding. The measure is the variance of the engines' loads over engines, averaged over
time. Gateways that knew nothing and chose at random would have, without queues, a variance equal to the
mean load (Poisson). The bounds: a seventh of that, and four times the variance under one gateway.
"""

import heapq
from typing import Any

import numpy as np
import pytest

from gpusched.domain.plan import plan_from
from gpusched.engines.state import EngineState
from gpusched.gateway.dispatch.assembly import assemble
from gpusched.gateway.exchange import CHAT, NOWHERE, Exchange, Refusal

ENGINES = 4
POLL_S = 0.5
MEAN_S = 2.0


def plan() -> Any:
    urls = [f"http://127.0.0.1:{8100 + i}" for i in range(ENGINES)]
    return plan_from(
        {
            "gpusched": "plan/1",
            "model": "llama-3.1-8b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "a", "gpu": "h100_sxm", "gpus": 8}]},
            "pools": [
                {"name": "p", "nodes": "a", "gpu": "h100_sxm", "replicas": 4, "endpoints": urls}
            ],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 60},
            "slo": {"ttft_ms": 2000},
        }
    )


class Relay:
    def __init__(self) -> None:
        self.engine = NOWHERE

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        self.engine = engine

    def hedge(self, exchange: Exchange, engine: int) -> None:
        raise AssertionError("nothing to hedge")

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        raise AssertionError(refusal)


class NoTimer:
    def cancel(self) -> None:
        pass


def run(gateways: int, rate: float, duration_s: float = 80.0, seed: int = 0) -> float:
    """Return the variance; each gateway reads the engines' reports at its own times."""
    rng = np.random.default_rng(seed)
    rooms = [assemble(plan(), lambda *_: NoTimer()) for _ in range(gateways)]
    relays = [Relay() for _ in rooms]
    for room, relay in zip(rooms, relays, strict=True):
        room.dispatcher.relay = relay
    load = np.zeros(ENGINES, np.int64)
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * duration_s)))
    events: list[tuple[float, int, str, Any]] = [
        (at, i, "arrive", i % gateways) for i, at in enumerate(arrivals.tolist())
    ]
    polls = np.arange(0.0, float(arrivals[-1]), POLL_S)
    for g in range(gateways):
        events += [(at + 0.37 * g * POLL_S, 10**6, "poll", g) for at in polls.tolist()]
    heapq.heapify(events)
    number = 0
    area, last_s = 0.0, 0.0
    while events:
        now, _, what, about = heapq.heappop(events)
        if now > 20.0:
            area += float(load.var()) * (now - max(last_s, 20.0))
        last_s = now
        if what == "poll":
            fleet = rooms[about].dispatcher.fleet
            for engine in fleet.engines:
                fleet.report(engine, EngineState(running=int(load[engine.index])), now)
            continue
        if what == "arrive":
            number += 1
            exchange = Exchange(number, b"POST", b"/v1/chat/completions", [], b"{}", now)
            exchange.kind, exchange.prompt_tokens, exchange.predicted_tokens = CHAT, 200, 200
            rooms[about].dispatcher.submit(exchange, now)
            engine = relays[about].engine
            load[engine] += 1
            end_s = now + float(rng.exponential(MEAN_S))
            heapq.heappush(events, (end_s, number, "end", (about, exchange, engine)))
        else:
            g, exchange, engine = about
            load[engine] -= 1
            rooms[g].dispatcher.began(exchange, engine, now)
            exchange.outcome = "ok"
            rooms[g].dispatcher.ended(exchange, now)
    return area / (last_s - 20.0)


@pytest.mark.parametrize("rate", [20.0, 80.0, 200.0])
@pytest.mark.parametrize("gateways", [2, 4])
def test_gateways_that_share_nothing_keep_the_loads_even(gateways: int, rate: float) -> None:
    several = run(gateways, rate)
    assert several <= rate * MEAN_S / ENGINES / 7
    assert several <= 4 * run(1, rate)
