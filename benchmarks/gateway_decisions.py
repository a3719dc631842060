"""What the gateway's reading and decisions cost on one core.

    python benchmarks/gateway_decisions.py [--repeat 20000] [--json]

A decision is timed with the simulator's function compiled, as it is shipped, and as the same function
called in plain Python on lists. A cycle is a request from `submit` to `ended`, with a first byte
between; nothing is sent. Times are the best of five runs, compilation left out.
"""

import argparse
import json
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from gpusched.domain.plan import Plan, plan_from
from gpusched.engines.dialects import read_metrics
from gpusched.gateway.dispatch.assembly import Rooms, assemble
from gpusched.gateway.dispatch.prefix_index import PrefixIndex
from gpusched.gateway.exchange import NOWHERE, Exchange, Refusal
from gpusched.gateway.reading.reading import MOST_BLOCKS
from gpusched.policies.routing import choice
from gpusched.policies.routing.live import LiveRouter, WeightedRouter
from gpusched.policies.routing.policy import ROUTING, routing_policy
from gpusched.policies.views import Request

MODEL = "llama-3.1-8b"
RUNS = 5
HEADERS = [
    (b"host", b"127.0.0.1:8000"), (b"user-agent", b"OpenAI/Python"), (b"accept", b"*/*"),
    (b"content-type", b"application/json"), (b"content-length", b"300"),
    (b"authorization", b"Bearer x"), (b"x-stainless-os", b"Linux"), (b"x-slo-class", b"default"),
]  # fmt: skip


class Nowhere:
    """A relay that carries nothing."""

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        pass

    def hedge(self, exchange: Exchange, engine: int) -> None:
        pass

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        pass

    def cancel(self) -> None:
        pass


def plan_of(engines: int, routing: str, admission: str = "none") -> Plan:
    endpoints = [f"http://127.0.0.1:{20000 + i}" for i in range(engines)]
    pool = {"name": "p", "nodes": "n", "gpu": "l40s", "replicas": engines, "endpoints": endpoints}
    return plan_from({
        "gpusched": "plan/1", "model": MODEL, "weights_dtype": "bf16", "pools": [pool],
        "cluster": {"nodes": [{"name": "n", "count": engines, "gpu": "l40s", "gpus": 1}]},
        "workload": {"profile": "chat", "rate_rps": 1.0}, "slo": {"ttft_ms": 1000},
        "routing": routing, "admission": admission,
    })  # fmt: skip


def rooms_of(plan: Plan) -> Rooms:
    relay = Nowhere()
    rooms = assemble(plan, lambda *_: relay)
    rooms.dispatcher.relay = relay
    return rooms


def best_us(work: Callable[[], None], count: int) -> float:
    best = np.inf
    for _ in range(RUNS):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best / count * 1e6


def chat(size: int) -> bytes:
    text = "hello world " * (size // 12 + 1)
    start = b'{"model":"' + MODEL.encode() + b'","messages":[{"role":"user","content":"'
    end = b'"}],"max_tokens":128,"stream":true}'
    return start + text.encode()[: max(size - len(start) - len(end), 1)] + end


def exchanges(count: int, body: bytes) -> list[Exchange]:
    return [
        Exchange(i, b"POST", b"/v1/chat/completions", HEADERS, body, float(i)) for i in range(count)
    ]


def plain(function: Any, *inner: Any) -> Any:
    """Return a kernel as plain Python, and those that it calls."""
    known = {**function.py_func.__globals__, **{f.__name__: f for f in inner}}
    code = function.py_func
    return FunctionType(code.__code__, known, code.__name__, code.__defaults__)


def decision_rows(repeat: int) -> list[dict[str, Any]]:
    first = plain(choice.first_started)
    route = plain(choice.route, plain(choice.least, first), first)
    request = Request(0.0, 500, 0, 200, 0)
    rows = []
    for engines in (2, 4, 16):
        requests, tokens = list(range(engines)), [100 * i for i in range(engines)]
        ready = [0.0] * engines
        for name in (
            "least-tokens",
            "prefix-affinity",
            "power-of-two",
            "iqr-lexicographic",
            "weighted",
        ):
            if name == "weighted":
                router = WeightedRouter(ROUTING["least-tokens"], [1.0 + i for i in range(engines)])
            else:
                router = LiveRouter(routing_policy(name), engines)
            router.load_requests[:], router.load_tokens[:] = requests, tokens
            router.choose(request, 1, 1.0)

            def ours(router: LiveRouter = router) -> None:
                for _ in range(repeat):
                    router.choose(request, 1, 1.0)

            baseline = None
            if name in ("least-tokens", "prefix-affinity"):
                kind = routing_policy(name).kind

                arguments = (kind, 0, 0, 1, ready, 1.0, requests, tokens, 0, engines)

                def theirs(arguments: tuple[Any, ...] = arguments) -> None:
                    for _ in range(repeat):
                        route(*arguments)

                baseline = best_us(theirs, repeat)
            rows.append(row(f"decision, {name}, {engines} engines", best_us(ours, repeat), baseline,
                            "the same function in plain Python"))  # fmt: skip
    return rows


def reading_rows(repeat: int) -> list[dict[str, Any]]:
    rooms = rooms_of(plan_of(4, "least-tokens"))
    rows = []
    for size, count in ((300, repeat), (4_000, repeat // 4), (64_000, repeat // 50)):
        read = exchanges(count, chat(size))

        def work(read: list[Exchange] = read) -> None:
            for exchange in read:
                rooms.reading.read(exchange)

        rows.append(row(f"reading, body of {size} bytes", best_us(work, count)))
    for exchange in read:
        exchange.outcome, exchange.output_tokens = "ok", 100
    rooms.reading.learn(read[0])

    def learn() -> None:
        for exchange in read:
            rooms.reading.learn(exchange)

    rows.append(row("learning from an answer", best_us(learn, len(read))))
    return rows


def cycle_rows(repeat: int) -> list[dict[str, Any]]:
    rows = []
    for routing, admission in (
        ("least-tokens", "none"), ("prefix-affinity", "none"), ("weighted", "none"),
        ("least-tokens", "gate-and-route"), ("least-tokens", "staggered"),
    ):  # fmt: skip
        rooms = rooms_of(plan_of(4, routing, admission))
        dispatcher = rooms.dispatcher
        count = repeat // 4

        def work(rooms: Rooms = rooms, dispatcher: Any = dispatcher, count: int = count) -> None:
            for exchange in exchanges(count, chat(2_000)):
                rooms.reading.read(exchange)
                now_s = float(exchange.number)
                dispatcher.submit(exchange, now_s)
                if exchange.engine >= 0:
                    dispatcher.began(exchange, exchange.engine, now_s)
                exchange.outcome, exchange.output_tokens = "ok", 100
                dispatcher.ended(exchange, now_s)

        spent = best_us(work, count)
        rows.append(row(f"reading and cycle, {routing}, admission {admission}, 4 engines", spent))
    return rows


def index_rows(repeat: int) -> list[dict[str, Any]]:
    index = PrefixIndex(64e6)
    prompts = [tuple(hash((i, j)) for j in range(MOST_BLOCKS)) for i in range(50)]
    for i, prompt in enumerate(prompts):
        index.remember(prompt, i % 4)
    count = max(repeat // 400, 10)

    def look() -> None:
        for i in range(count):
            index.favourite(prompts[i % 50])

    def enter() -> None:
        for i in range(count):
            index.remember(prompts[i % 50], 1)

    text = "\n".join(
        f'vllm:e2e_request_latency_seconds_bucket{{engine="0",le="{i}",model_name="m"}} {i}.0'
        for i in range(600)
    )
    text += (
        '\nvllm:num_requests_running{engine="0"} 5.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
    )

    def scrape() -> None:
        for _ in range(count):
            read_metrics(text, "vllm")

    return [
        row(f"lookup of a prefix of {MOST_BLOCKS} blocks", best_us(look, count)),
        row(f"entry of a prefix of {MOST_BLOCKS} blocks", best_us(enter, count)),
        row(f"metrics of vLLM, {len(text) // 1000} kB", best_us(scrape, count)),
    ]


def row(
    name: str, value: float, baseline: float | None = None, against: str | None = None
) -> dict[str, Any]:
    return {
        "name": name, "value": value, "unit": "us", "baseline": against if baseline else None,
        "baseline_value": baseline, "ratio": baseline / value if baseline else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begun = time.perf_counter()
    rows = [
        *decision_rows(options.repeat), *reading_rows(options.repeat),
        *cycle_rows(options.repeat), *index_rows(options.repeat),
    ]  # fmt: skip
    if options.json:
        spent = time.perf_counter() - begun
        print(json.dumps({"benchmark": "gateway_decisions", "seconds": spent, "rows": rows}))
        return
    for found in rows:
        against = f"  (plain {found['baseline_value']:.2f})" if found["ratio"] else ""
        print(f"{found['name']:<66}{found['value']:9.2f} us{against}")


if __name__ == "__main__":
    main()
