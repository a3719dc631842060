"""Sending, retrying, hedging, holding and counting, on a fake clock."""

import math

import pytest
from dispatch_doubles import MODEL, House, plan_of

from gpusched.domain.plan import plan_from
from gpusched.errors import InputError
from gpusched.gateway.exchange import NOWHERE, OTHER


def test_least_tokens_spreads_and_counters_return_to_zero():
    house = House(plan_of(3, routing="least-tokens"))
    sent = [house.submit(prompt_tokens=100 * (1 + i % 3)) for i in range(12)]
    assert sum(house.loads()) == 12
    assert max(house.loads()) - min(house.loads()) <= 2
    assert {x.branch for x in sent} == {"least-tokens"}
    for exchange in sent:
        house.relay.answer(exchange)
    assert house.loads() == [0, 0, 0]
    assert house.router_loads() == [0, 0, 0]
    assert all(e.tokens == 0 and e.prefilling == 0 for e in house.engines)
    assert not house.dispatcher.flights


def test_an_engine_alone_is_taken():
    house = House(plan_of(1))
    assert house.submit().branch == "only"


def test_a_failed_request_goes_to_another_engine_and_not_for_ever():
    house = House(plan_of(3))
    exchange = house.submit()
    tried = []
    for _ in range(2):
        engine = house.relay.open[exchange][0]
        tried.append(engine)
        assert house.relay.fail(exchange, engine)
        assert exchange.branch == "retry"
    last = house.relay.open[exchange][0]
    assert len({*tried, last}) == 3
    assert not house.relay.fail(exchange, last)
    house.relay.end(exchange, outcome="failed")
    assert house.loads() == [0, 0, 0]


def test_a_closed_connection_is_tried_again_on_the_only_engine():
    house = House(plan_of(1))
    exchange = house.submit()
    assert house.relay.fail(exchange, 0, "closed")
    assert house.relay.open[exchange] == [0]
    house.relay.answer(exchange)
    assert house.loads() == [0]


def test_failures_in_a_row_eject_and_a_probe_readmits():
    house = House(plan_of(2, gateway={"readmit_after_s": 2.0, "eject_after": 3}))
    bad, health = house.engines[0], house.dispatcher.health
    while not bad.out:
        exchange = house.submit()
        if house.relay.open[exchange] == [0]:
            assert house.relay.fail(exchange, 0)
        house.relay.answer(exchange)
    assert bad.failures == 3
    assert {house.submit().engine for _ in range(20)} == {1}
    assert bad.next_probe_s == house.clock.now_s + 2.0
    health.probed(bad, False, 2.0)
    assert bad.out
    assert bad.next_probe_s == 2.0 + 4.0
    health.probed(bad, True, 6.0)
    house.clock.move(6.0)
    assert not bad.out
    took = [house.submit().engine for _ in range(40)]
    assert 0 in took
    assert took.count(0) < 15  # slow start, though it has far less load
    house.clock.move(30.0)
    assert house.submit().engine == 0


def test_errors_never_eject_the_last_engine_nor_count_twice_for_one_request():
    house = House(plan_of(2, gateway={"eject_after": 2}))
    for _ in range(6):
        exchange = house.submit()
        first = house.relay.open[exchange][0]
        if house.relay.fail(exchange, first, "status"):
            assert not house.relay.fail(exchange, house.relay.open[exchange][0], "status")
        house.relay.end(exchange, outcome="failed")
    assert sum(engine.out for engine in house.engines) == 1
    alone = next(engine for engine in house.engines if not engine.out)
    assert house.submit().engine == alone.index


def test_with_all_engines_out_requests_wait_for_one():
    house = House(plan_of(2, gateway={"eject_after": 1, "max_wait_s": 30.0}))
    first = house.submit()
    house.relay.fail(first, house.relay.open[first][0])
    assert house.relay.fail(first, house.relay.open[first][0])  # waits
    second = house.submit()
    assert house.dispatcher.held() == 2
    house.clock.move(5.0)
    house.dispatcher.health.probed(house.engines[1], True, 5.0)
    assert first.engine == second.engine == 1
    assert house.dispatcher.held() == 0


def test_a_request_that_waits_too_long_is_refused_with_a_time_to_come_again():
    house = House(plan_of(1, gateway={"eject_after": 1, "max_wait_s": 3.0, "retries": 0}))
    house.relay.fail(house.submit(), 0)
    waiting = house.submit()
    house.clock.move(2.9)
    assert waiting.outcome == "open"
    house.clock.move(3.1)
    refusal = waiting.refusal
    assert refusal.status == 503
    assert refusal.retry_after_s >= 1.0


def test_seats_are_kept_and_the_rest_goes_by_priority():
    house = House(
        plan_of(
            2,
            engine={"max_num_seqs": 2},
            slo={"chat": {"ttft_ms": 500}, "batch": {"e2e_ms": 60000}},
        )
    )
    running = [house.submit() for _ in range(8)]
    assert house.loads() == [4, 4]
    late = [
        house.submit(slo_class=1),
        house.submit(slo_class=0),
        house.submit(priority=-5, slo_class=1),
        house.submit(priority=3),
        house.submit(slo_class=0),
    ]
    assert house.dispatcher.held() == 5
    for exchange in running:
        house.relay.answer(exchange)
    order = [exchange for exchange, _, _ in house.relay.sends[8:]]
    assert order == [late[2], late[1], late[4], late[0], late[3]]


def test_the_queue_is_bounded():
    house = House(plan_of(1, engine={"max_num_seqs": 1}, gateway={"max_queued": 3}))
    exchanges = [house.submit() for _ in range(10)]
    assert house.dispatcher.held() == 3
    refused = [x for x in exchanges if x.outcome == "refused"]
    assert len(refused) == 5
    assert all(x.refusal.status == 429 and x.refusal.retry_after_s >= 1.0 for x in refused)


def test_retry_after_follows_the_rate_of_answers():
    house = House(plan_of(1, engine={"max_num_seqs": 1}, gateway={"max_queued": 200}))
    for step in range(400):
        house.clock.move(step * 0.1)
        house.submit()
        for exchange in list(house.relay.open)[:1]:
            house.relay.answer(exchange)
    for _ in range(101):
        house.submit()
    assert house.dispatcher.held() == pytest.approx(100, abs=2)
    assert house.dispatcher.retry_after_s(house.clock.now_s) == pytest.approx(10.0, rel=0.15)


def test_a_client_that_goes_away_is_forgotten_held_or_not():
    house = House(plan_of(1, engine={"max_num_seqs": 1}))
    exchanges = [house.submit() for _ in range(5)]
    house.relay.end(exchanges[3], outcome="cancelled")
    assert house.dispatcher.held() == 2
    house.relay.end(exchanges[0], outcome="cancelled")
    assert exchanges[2].engine == 0
    house.relay.answer(exchanges[1])
    assert exchanges[4].engine == 0
    house.relay.answer(exchanges[2])
    house.relay.answer(exchanges[4])
    assert house.loads() == [0]


def test_hedging_asks_one_more_engine_and_counts_both():
    house = House(plan_of(3, gateway={"hedge_after_s": 0.5}))
    exchange = house.submit()
    quick = house.submit()
    house.relay.begin(quick, quick.engine)
    house.clock.move(0.6)
    assert [x for x, _ in house.relay.hedges] == [exchange]
    (_, second), first = house.relay.hedges[0], exchange.engine
    assert second != first
    assert (
        house.engines[first].requests == house.engines[second].requests == 1
        or second == quick.engine
    )
    house.relay.begin(exchange, second)
    assert exchange.engine == second
    house.relay.end(exchange)
    house.relay.end(quick)
    assert house.loads() == [0, 0, 0]
    assert all(engine.prefilling == 0 for engine in house.engines)


def test_of_a_hedged_pair_one_may_fail():
    house = House(plan_of(2, gateway={"hedge_after_s": 0.5}))
    exchange = house.submit()
    house.clock.move(1.0)
    first, second = house.relay.open[exchange]
    assert house.relay.fail(exchange, first, "timeout")
    assert house.relay.open[exchange] == [second]
    house.relay.answer(exchange)
    assert house.loads() == [0, 0]


def test_a_busy_engine_is_not_at_fault():
    house = House(plan_of(2))
    exchange = house.submit()
    assert house.relay.fail(exchange, house.relay.open[exchange][0], "busy")
    assert house.relay.fail(exchange, house.relay.open[exchange][0], "busy")
    assert house.dispatcher.held() == 1
    assert all(engine.failures == 0 for engine in house.engines)
    house.clock.move(1.0)
    assert house.relay.open[exchange]


def test_a_silent_engine_is_passed_by_and_others_asked_for_what_it_owes():
    house = House(plan_of(2))
    owed = [house.submit() for _ in range(6)]
    frozen = house.engines[0]
    house.dispatcher.silent(frozen, 1.0)
    assert sorted(e for _, e in house.relay.hedges) == [1, 1, 1]
    assert not frozen.out
    assert {house.submit().engine for _ in range(10)} == {1}
    house.relay.begin(owed[0], 0)
    assert house.submit().engine == 0


def test_one_hot_engine_does_not_switch_affinity_off_for_the_others():
    house = House(plan_of(4, routing="prefix-affinity"))
    for engine in range(4):
        house.dispatcher.affinities.prefixes.remember((engine,), engine)
    hot = [house.submit(prefix=(0,)) for _ in range(200)]
    assert len({x.engine for x in hot}) > 1  # spills over
    least = min(house.loads())
    for engine in (1, 2, 3):
        house.dispatcher.affinities.prefixes.remember((engine,), engine)
        assert house.submit(prefix=(engine,)).engine == engine
        assert house.submit(prefix=(engine,)).branch == "affinity"
    miss = house.submit(prefix=(99,))
    assert miss.branch == "least-tokens"
    assert house.loads()[miss.engine] <= least + 3


def test_sessions_stay_where_they_were():
    house = House(plan_of(4, routing="session-affinity"))
    first = {name: house.submit(session=name).engine for name in (b"a", b"b", b"c", b"d")}
    assert set(first.values()) == {0, 1, 2, 3}
    for _ in range(5):
        assert {n: house.submit(session=n).engine for n in first} == first


def test_weights_share_the_work():
    house = House(plan_of(3, routing="weighted", weights=[1.0, 2.0, 5.0]))
    for _ in range(800):
        house.relay.answer(house.submit(), 50)
    counts = [sum(e == i for _, e, _ in house.relay.sends) for i in range(3)]
    assert counts == pytest.approx([100, 200, 500], abs=6)


def test_weights_are_the_flows_into_the_entry_nodes_of_a_plan_of_layers():
    nodes = [{"node": f"n-{i}", "first": 0 if i < 2 else 16, "layers": 16} for i in range(4)]
    for i in (0, 1):
        nodes[i]["endpoint"] = f"http://127.0.0.1:{22100 + i}"
    flows = [
        (("front", "n-0"), 30.0),
        (("front", "n-1"), 90.0),
        (("n-0", "n-2"), 30.0),
        (("n-1", "n-3"), 90.0),
        (("n-2", "front"), 30.0),
        (("n-3", "front"), 90.0),
    ]
    values = {
        "gpusched": "plan/1",
        "model": MODEL,
        "weights_dtype": "bf16",
        "cluster": {"nodes": [{"name": "n", "count": 4, "gpu": "l40s", "gpus": 1}]},
        "layers": {"nodes": nodes, "flows": [{"ends": e, "tokens_per_s": f} for e, f in flows]},
        "workload": {"profile": "chat", "rate_rps": 1.0},
        "slo": {"ttft_ms": 1000},
    }
    values["layers"]["nodes"] = nodes
    plan = plan_from(values)
    house = House(plan)
    for _ in range(400):
        house.relay.answer(house.submit(), 50)
    assert [sum(e == i for _, e, _ in house.relay.sends) for i in (0, 1)] == pytest.approx(
        [100, 300], abs=4
    )
    del nodes[1]["endpoint"]
    with pytest.raises(InputError, match="requests enter at node n-1; give its address"):
        House(plan_from(values))


def test_prefill_and_decode_engines_are_chosen_together():
    address = "http://127.0.0.1:{}".format
    base = {"nodes": "n", "gpu": "l40s", "replicas": 2}
    house = House(
        plan_of(
            pools=[
                {
                    **base,
                    "name": "p",
                    "role": "prefill",
                    "endpoints": [address(22200), address(22201)],
                },
                {
                    **base,
                    "name": "d",
                    "role": "decode",
                    "endpoints": [address(22202), address(22203)],
                },
            ]
        )
    )
    exchange = house.submit()
    assert house.relay.sends == [(exchange, exchange.engine, exchange.prefill_engine)]
    assert exchange.prefill_engine in (0, 1)
    assert exchange.engine in (2, 3)
    house.dispatcher.began(exchange, exchange.prefill_engine, 1.0)
    assert sum(house.loads()) == 1
    failing = house.submit()
    before = failing.prefill_engine, failing.engine
    assert house.dispatcher.failed(failing, failing.engine, 1.0, "connect")
    assert failing.engine not in before
    house.relay.open[failing] = [failing.engine]
    house.relay.answer(exchange)
    house.relay.answer(failing)
    assert house.loads() == [0, 0, 0, 0]
    assert house.submit(kind=OTHER).prefill_engine == NOWHERE


def test_users_own_routing_decides_and_its_faults_are_counted(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def last(replica, request, limit=1000.0):\n"
        "    if request.prompt_tokens > limit:\n        return 1.0 / (replica.requests * 0)\n"
        "    return -replica.position\n"
    )
    house = House(plan_of(3, routing=f"{file}:last"))
    assert house.submit().engine == 2
    house.submit(prompt_tokens=5000)
    router = house.dispatcher.fleet.groups[0].entry.router
    assert router.faults > 0
    assert "ZeroDivisionError" in router.last_fault


def test_models_of_a_cascade_are_asked_by_name():
    def stage(model: str, port: int) -> dict:
        pool = {
            "name": model,
            "nodes": "n",
            "gpu": "l40s",
            "replicas": 1,
            "endpoints": [f"http://127.0.0.1:{port}"],
        }
        return {"model": model, "weights_dtype": "bf16", "pools": [pool]}

    plan = plan_from(
        {
            "gpusched": "plan/1",
            "model": "llama-3.1-8b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "n", "count": 4, "gpu": "l40s", "gpus": 1}]},
            "cascade": {
                "stages": [stage("qwen3-8b", 22300), stage("llama-3.1-8b", 22301)],
                "scores": "s.csv",
                "models": ["qwen3-8b", "llama-3.1-8b"],
                "quality": 0.5,
            },
            "workload": {"profile": "chat", "rate_rps": 1.0},
            "slo": {"ttft_ms": 1000},
            "gateway": {"served_model_name": "big"},
        }
    )
    house = House(plan)
    assert house.submit(model="qwen3-8b").engine == 0
    assert house.submit(model="llama-3.1-8b").engine == 1
    assert house.submit(model="big").engine == 1
    for engine, name in zip(house.engines, ("small", "large"), strict=True):
        house.dispatcher.told_models(engine, [name], None)
    assert house.submit(model="small").engine == 0
    unknown = house.submit(model="other")
    assert unknown.refusal.status == 404
    assert unknown.refusal.code == "model_not_found"
    body = b'{"model":"big","prompt":"x","strange":[1]}'
    assert house.dispatcher.body_for(house.exchange(model="big", body=body), 1) == body.replace(
        b"big", b"large"
    )
    assert house.dispatcher.body_for(house.exchange(model="large", body=body), 1) is body


def test_an_adapter_that_one_engine_has_is_asked_there():
    house = House(plan_of(3))
    for i, engine in enumerate(house.engines):
        house.dispatcher.told_models(engine, [MODEL, *(["adapter"] if i == 1 else [])], None)
    assert {house.submit(model="adapter").engine for _ in range(5)} == {1}
    assert {house.submit().engine for _ in range(20)} == {0, 1, 2}


def test_reload_keeps_what_stays_and_drains_what_leaves():
    house = House(plan_of(3))
    running = [house.submit() for _ in range(6)]
    assert house.loads() == [2, 2, 2]
    house.rooms.reload(plan_of(3, first=1), 1.0)
    assert [e.url[-1] for e in house.engines] == ["0", "1", "2", "3"]
    assert house.router_loads() == [2, 2, 0]
    new = [house.submit() for _ in range(6)]
    assert 0 not in {x.engine for x in new}
    for exchange in running + new:
        house.relay.answer(exchange)
    assert house.loads() == [0, 0, 0, 0]
    bad = plan_of(2, first=9, routing="ampd")
    with pytest.raises(InputError, match="no live form"):
        house.rooms.reload(bad, 2.0)
    assert house.router_loads() == [0, 0, 0]
    assert len(house.engines) == 4


def test_held_requests_survive_a_reload():
    house = House(plan_of(1, engine={"max_num_seqs": 1}))
    exchanges = [house.submit() for _ in range(5)]
    assert house.dispatcher.held() == 3
    house.rooms.reload(plan_of(2, engine={"max_num_seqs": 1}), 1.0)
    assert house.dispatcher.held() == 1
    for exchange in exchanges:
        house.relay.answer(exchange)
    assert house.loads() == [0, 0]
    assert house.dispatcher.held() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": 0}, "no pool of llama-3.1-8b in which requests enter has endpoints"),
        ({"routing": "ampd"}, "no live form"),
        ({"routing": "swarm"}, "unknown routing policy|no live form"),
        (
            {"pool": {"endpoints": ["http://a:1", "http://a:1"]}},
            "is an endpoint of pool main already",
        ),
        (
            {"pool": {"endpoints": [{"url": "http://a:1", "api_key_file": "/no/such"}]}},
            "cannot read it",
        ),
    ],
)
def test_a_plan_that_cannot_be_served_says_why(change, message):
    change = dict(change)
    with pytest.raises(InputError, match=message):
        House(plan_of(change.pop("engines", 2), **change))


def test_statuses_say_what_is_known():
    house = House(plan_of(2))
    house.submit()
    statuses = house.dispatcher.statuses()
    assert [s.outstanding for s in statuses] == [1, 0]
    assert statuses[0].outstanding_tokens == 150.0
    assert all(s.up and not s.ejected for s in statuses)
    assert math.isfinite(house.dispatcher.submitted)
