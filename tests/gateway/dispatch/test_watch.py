"""Reports, models, probes and silence, with engines whose answers the test gives."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dispatch_doubles import MODEL, House, plan_of

from gpusched.gateway.dispatch.watch import Watch, read_models, read_slots

VLLM = "vllm:num_requests_running {}\nvllm:num_requests_waiting {}\nvllm:kv_cache_usage_perc 0.5\n"


def watch_of(house: House, answer: Callable[[str], Any], seed: int = 0) -> Watch:
    async def get(url: str, headers: dict[str, str], timeout_s: float) -> tuple[int, str]:
        found = answer(url)
        if isinstance(found, type):
            raise found
        return found

    settings = plan_of(1).gateway
    return Watch(house.dispatcher, settings, get=get, clock=lambda: house.clock.now_s, seed=seed)


def ask(watch: Watch, *engines: int) -> None:
    async def all_of_them() -> None:
        for engine in engines:
            await watch.ask(watch.dispatcher.engines[engine])

    asyncio.run(all_of_them())


def test_load_of_others_is_what_is_reported_beyond_our_own():
    house = House(plan_of(2))
    exchanges = [house.submit() for _ in range(4)]
    watch = watch_of(house, lambda url: (200, VLLM.format(5, 4)) if "metrics" in url else (404, ""))
    ask(watch, 0)
    assert house.engines[0].others == 9 - 2
    assert house.router_loads() == [9, 2]
    assert house.engines[0].state.kv_usage == 0.5
    assert {house.submit().engine for _ in range(5)} == {1}
    for exchange in exchanges:
        house.relay.answer(exchange)
    assert house.router_loads()[0] == 7


@pytest.mark.parametrize(
    "answer",
    [
        (200, "garbage {{{"),
        (200, ""),
        (500, "oops"),
        (404, ""),
        TimeoutError,
        ConnectionRefusedError,
        (200, "vllm:num_requests_running NaN\n"),
    ],
)
def test_bad_or_missing_metrics_never_take_an_engine_out(answer):
    house = House(plan_of(2, gateway={"eject_after": 1}))
    watch = watch_of(house, lambda url: answer)
    for _ in range(20):
        ask(watch, 0)
        house.clock.move(house.clock.now_s + 1.0)
    assert not house.engines[0].out
    assert not house.engines[0].silent
    assert {house.submit().engine for _ in range(4)} == {0, 1}


def test_after_a_while_without_reports_others_count_nothing():
    house = House(plan_of(2))
    answers = {"now": (200, VLLM.format(50, 0))}
    watch = watch_of(house, lambda url: answers["now"])
    ask(watch, 0)
    assert house.router_loads() == [50, 0]
    answers["now"] = (200, "?")
    house.clock.move(1.0)
    ask(watch, 0)
    assert house.router_loads() == [50, 0]
    house.clock.move(20.0)
    ask(watch, 0)
    assert house.router_loads() == [0, 0]


def test_an_ejected_engine_is_probed_when_it_is_time_and_not_asked_else():
    house = House(plan_of(2, gateway={"eject_after": 1, "readmit_after_s": 2.0}))
    seen = []
    health = {"now": (503, "")}

    def answer(url: str) -> Any:
        seen.append(url)
        return health["now"]

    watch = watch_of(house, answer)
    exchange = house.submit()
    bad = exchange.engine
    house.relay.fail(exchange, bad)
    ask(watch, bad)
    assert seen == []
    house.clock.move(2.1)
    ask(watch, bad)
    assert [url.rpartition("/")[2] for url in seen] == ["health"]
    assert house.engines[bad].out
    health["now"] = (200, "ok")
    house.clock.move(10.0)
    ask(watch, bad)
    assert not house.engines[bad].out
    assert house.dispatcher.health.readmissions == 1


def test_models_slots_and_context_are_learned():
    house = House(plan_of(2, gateway={"served_model_name": "mine"}))
    listed = '{"data": [{"id": "tiny", "meta": {"n_ctx_train": 4096}}]}'
    props = '{"total_slots": 4, "default_generation_settings": {"n_ctx": 512}}'
    texts = {
        "models": listed,
        "props": props,
        "metrics": "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n",
    }
    watch = watch_of(house, lambda url: (200, texts[url.rpartition("/")[2]]))
    ask(watch, 0, 1)
    engine = house.engines[0]
    assert engine.models == ("tiny",)
    assert (engine.running_seats, engine.seats) == (4, 8)
    assert engine.context_tokens == 512
    assert house.dispatcher.models.longest_tokens == 512
    assert house.dispatcher.models.names == ("tiny", "mine")
    assert b'"tiny"' in house.dispatcher.models_document()
    assert house.submit(model=MODEL).engine >= 0
    assert house.submit(model="nothing").refusal.code == "model_not_found"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"data": 3}', '{"data": [{"id": 5}, 7]}', "[" * 100_000]
)
def test_odd_lists_of_models_name_none(text):
    assert read_models(text) == ([], None)
    assert read_slots(text) == (None, None)


def test_vllm_tells_its_context():
    assert read_models('{"data": [{"id": "m", "max_model_len": 2048}]}') == (["m"], 2048)


def test_an_engine_that_freezes_is_passed_by_and_comes_back_when_it_speaks():
    house = House(plan_of(2))
    frozen = {0: False}

    def answer(url: str) -> Any:
        if frozen[0] and ":22000" in url:
            return TimeoutError
        return (200, VLLM.format(0, 0)) if "metrics" in url else (404, "")

    watch = watch_of(house, answer)
    ask(watch, 0, 1)
    frozen[0] = True
    owed = house.submit()
    while owed.engine != 0:
        owed = house.submit()
    for _ in range(6):
        house.clock.move(house.clock.now_s + 1.0)
        ask(watch, 0, 1)
    assert house.engines[0].silent
    assert not house.engines[0].out
    assert (owed, 1) in house.relay.hedges
    assert {house.submit().engine for _ in range(6)} == {1}
    frozen[0] = False
    ask(watch, 0)
    assert not house.engines[0].silent


def test_load_reports_with_answers_renew_what_is_known():
    house = House(plan_of(2))
    watch = watch_of(house, lambda url: (200, VLLM.format(3, 0)) if "metrics" in url else (404, ""))
    ask(watch, 0)
    assert house.engines[0].others == 3
    house.dispatcher.load_report(0, b"TEXT named_metrics.num_requests_waiting=6.0", 0.5)
    assert house.engines[0].others == 9
    house.dispatcher.load_report(0, b"\xff garbage", 0.6)
    house.dispatcher.load_report(1, b"TEXT named_metrics.num_requests_waiting=6.0", 0.6)
    assert house.engines[0].others == 9
    assert house.engines[1].state.waiting == 6


@pytest.mark.parametrize("routing", ["least-requests", "least-tokens", "power-of-two"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_two_gateways_balance_what_they_share_and_do_not_swing(routing, share):
    """Two gateways know of each other only by the engines' reports, half a second old at most.

    The bound: engines differ by no more than what one gateway sends in two poll intervals, spread
    over the engines, plus the spread that one gateway alone has.
    """
    engines, rate, service_s, poll_s = 4, 60.0, 1.5, 0.5
    houses = [House(plan_of(engines, routing=routing), seed=i) for i in range(2)]
    draw = random.Random(4)
    held = [[0] * engines for _ in houses]
    reports = [
        watch_of(h, lambda url: (200, VLLM.format(sum(x[int(url.split(":")[2][4])] for x in held), 0))
                 if "metrics" in url else (404, ""), seed=i)
        for i, h in enumerate(houses)
    ]  # fmt: skip
    ends: list[tuple[float, int, Any]] = []
    polls = [
        (i * poll_s / 2 / engines + e * poll_s / engines, i, e)
        for i in range(2)
        for e in range(engines)
    ]
    now, spreads, chosen = 0.0, [], []
    while now < 30.0:
        now += draw.expovariate(rate)
        for house in houses:
            house.clock.move(now)
        due = [end for end in ends if end[0] <= now]
        ends = [end for end in ends if end[0] > now]
        for _, which, exchange in due:
            held[which][exchange.engine] -= 1
            houses[which].relay.answer(exchange)
        for k, (due_s, which, engine) in enumerate(polls):
            if due_s <= now:
                ask(reports[which], engine)
                polls[k] = (due_s + poll_s, which, engine)
        which = 0 if draw.random() < share else 1
        exchange = houses[which].submit()
        held[which][exchange.engine] += 1
        chosen.append(exchange.engine)
        ends.append((now + draw.uniform(0.5, 1.5) * service_s, which, exchange))
        if now > 5.0:
            loads = [held[0][e] + held[1][e] for e in range(engines)]
            spreads.append(max(loads) - min(loads))
    mean_load = rate * service_s / engines
    bound = 2 * rate * poll_s / engines
    assert np.mean(spreads) < 0.35 * bound
    assert max(spreads) <= bound
    assert mean_load > bound  # otherwise the bound would say nothing
    counts = np.bincount(chosen, minlength=engines) / len(chosen)
    assert counts == pytest.approx(1 / engines, abs=0.03)
