"""Admission over live engines: staggered release, gates, a user's own function."""

import random
from typing import Any

import numpy as np
import pytest
from dispatch_doubles import House, plan_of
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.gateway.dispatch.gated_admission import Gated
from gpusched.gateway.dispatch.staggered_admission import Staggered
from gpusched.gateway.exchange import Exchange

TWO = {"chat": {"ttft_ms": 500}, "batch": {"e2e_ms": 60000}}


class Passes:
    """Engines that compute what they have been sent in passes of a fixed time, then decode."""

    def __init__(self, house: House, pass_s: float, decode_s: float = 0.2) -> None:
        self.house, self.pass_s, self.decode_s = house, pass_s, decode_s
        self.waits: list[float] = []
        self.busy: dict[int, bool] = {}
        self.queues: dict[int, list] = {}
        self.seen = 0

    def poll(self) -> None:
        relay, clock = self.house.relay, self.house.clock
        for exchange, engine, _ in relay.sends[self.seen :]:
            self.queues.setdefault(engine, []).append(exchange)
        self.seen = len(relay.sends)
        for engine, queue in self.queues.items():
            if queue and not self.busy.get(engine):
                self.busy[engine] = True
                batch, queue[:] = list(queue), []
                clock.call_at(clock.now_s + self.pass_s, self._ended, engine, batch)

    def _ended(self, engine: int, batch: list) -> None:
        self.busy[engine] = False
        for exchange in batch:
            self.waits.append(self.house.clock.now_s - exchange.received_s)
            self.house.relay.begin(exchange, engine)
            self.house.clock.call_at(
                self.house.clock.now_s + self.decode_s, self.house.relay.end, exchange
            )
        self.poll()


def run(house: House, arrivals: np.ndarray, passes: Passes, **fields: object) -> None:
    """Let requests arrive at the engines."""
    for arrival_s in arrivals:
        house.clock.move(float(arrival_s))
        house.submit(stream=True, **fields)
        passes.poll()
        # Timers release batches between arrivals.
        for step in np.linspace(arrival_s, arrival_s + 0.01, 4):
            house.clock.move(float(step))
            passes.poll()
    for step in range(4000):
        house.clock.move(float(arrivals[-1]) + 0.01 + step * 0.01)
        passes.poll()


def test_staggered_release_shortens_the_wait_for_gated_engines():
    arrivals = np.cumsum(np.random.default_rng(1).exponential(0.04, 400))
    means = {}
    for admission in ("none", "staggered"):
        house = House(plan_of(4, admission=admission, routing="round-robin"))
        passes = Passes(house, 0.3)
        run(house, arrivals, passes, prompt_tokens=100)
        assert len(passes.waits) == 400
        means[admission] = float(np.mean(passes.waits))
        assert house.loads() == [0, 0, 0, 0]
    # What is beyond the pass itself: half a pass when sent at once.
    assert means["none"] - 0.3 == pytest.approx(0.15, rel=0.1)
    assert means["staggered"] - 0.3 < 0.7 * (means["none"] - 0.3)


def test_the_pace_of_staggered_release_is_learned():
    house = House(plan_of(2, admission="staggered"))
    admission = house.dispatcher.admissions[0]
    assert isinstance(admission, Staggered)
    planned_s = admission.times.prefill_s(100)
    passes = Passes(house, 10 * planned_s)
    run(house, np.arange(30) * 40 * planned_s, passes, prompt_tokens=100)
    assert admission.times.prefill_s(100) == pytest.approx(10 * planned_s, rel=0.05)


def test_a_batch_goes_on_when_an_engine_drops_out_of_staggered_release():
    house = House(plan_of(2, admission="staggered", gateway={"eject_after": 1}))
    sent = [house.submit(stream=True) for _ in range(6)]
    house.clock.move(1.0)
    first = next(x for x in sent if x.engine >= 0)
    bad = first.engine
    for exchange in [x for x in sent if x.engine == bad]:
        assert house.relay.fail(exchange, bad)
    for _ in range(50):
        house.clock.move(house.clock.now_s + 0.5)
        for exchange in list(house.relay.open):
            if house.relay.open[exchange]:
                house.relay.answer(exchange)
    assert all(x.outcome == "ok" and x.engine != bad for x in sent)
    assert house.loads() == [0, 0]


def test_a_gate_keeps_one_prefill_an_engine():
    house = House(plan_of(2, admission="gate-and-route", slo=TWO))
    exchanges = [house.submit(stream=True, slo_class=i % 2) for i in range(10)]
    assert [engine.prefilling for engine in house.engines] == [1, 1]
    assert house.dispatcher.held() == 8
    for _ in range(10):
        exchange = next(x for x in exchanges if house.relay.open.get(x))
        house.relay.begin(exchange, exchange.engine)
        assert max(engine.prefilling for engine in house.engines) <= 1
        house.relay.end(exchange)
    assert all(x.outcome == "ok" for x in exchanges)
    gate = house.dispatcher.admissions[0].gate
    assert gate.in_prefill.tolist() == [0, 0]
    assert gate.waiting.tolist() == [0, 0]


def test_without_streams_the_predicted_prefill_frees_the_slot():
    house = House(plan_of(1, admission="gate-and-route"))
    exchanges = [house.submit(stream=False) for _ in range(3)]
    expected_s = house.dispatcher.admissions[0].times.prefill_s(100)
    house.clock.move(2.5 * expected_s)
    assert all(x.engine == 0 for x in exchanges)
    for exchange in exchanges:
        house.relay.answer(exchange)
    assert house.dispatcher.admissions[0].gate.in_prefill.tolist() == [0]


def test_the_gate_plans_from_what_arrives_and_holds_classes_to_it():
    house = House(plan_of(2, admission="gate-and-route+prompt_price=1+output_price=2", slo=TWO))
    admission = house.dispatcher.admissions[0]
    assert isinstance(admission, Gated)
    for i in range(200):
        house.clock.move(0.1 * i)
        exchange = house.submit(stream=True, slo_class=i % 2, prompt_tokens=(1000, 5000)[i % 2])
        for open_ in list(house.relay.open):
            house.relay.begin(open_, open_.engine)
            house.relay.end(open_)
        assert exchange.outcome == "ok"
    assert admission.plans >= 2
    assert not admission.note
    _, classes = admission.rates.classes(house.clock.now_s, 2)
    assert [c.rate_rps for c in classes] == pytest.approx([2.5, 2.5], rel=0.15)
    assert [c.prompt_tokens for c in classes] == pytest.approx([1000, 5000], rel=0.01)
    assert admission.gate.targets[1] == pytest.approx(3 * admission.gate.targets[0], rel=0.1)


def test_a_users_own_admission_holds_and_rejects(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def shed(request, fleet, limit=3.0):\n"
        "    if request.prompt_tokens > 1000:\n        return float('inf')\n"
        "    return 0.5 if fleet.requests >= limit else 0.0\n"
    )
    house = House(plan_of(2, admission=f"{file}:shed"))
    big = house.submit(prompt_tokens=2000)
    assert big.refusal.status == 429
    exchanges = [house.submit() for _ in range(5)]
    assert house.dispatcher.held() == 2
    house.relay.answer(exchanges[0])
    assert house.dispatcher.held() == 2  # its time has not come
    house.clock.move(0.6)
    assert house.dispatcher.held() == 1
    for exchange in exchanges[1:4]:
        house.relay.answer(exchange)
    house.clock.move(1.3)
    house.relay.answer(exchanges[4])
    assert house.loads() == [0, 0]


def test_a_users_own_admission_that_fails_lets_in(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def bad(request, fleet):\n    return 1.0 / (fleet.requests * 0)\n")
    house = House(plan_of(2, admission=f"{file}:bad"))
    assert house.submit().engine >= 0
    assert house.dispatcher.admissions[0].faults == 1
    assert "raised ZeroDivisionError" in house.dispatcher.notes()[0]


def test_engines_of_two_kinds_have_no_common_plan():
    pools = [
        {"name": name, "nodes": "n", "gpu": "l40s", "replicas": 1, "endpoints": [f"http://h:{port}"],
         "engine": {"max_num_batched_tokens": budget}}
        for name, port, budget in (("a", 1, 512), ("b", 2, 4096))
    ]  # fmt: skip
    with pytest.raises(InputError, match="engines of one kind"):
        House(plan_of(pools=pools, admission="staggered"))


@pytest.mark.parametrize("admission", ["staggered", "gate-and-route", "gate-and-route-credit"])
def test_held_requests_survive_a_reload_of_any_admission(admission):
    house = House(plan_of(1, admission=admission))
    exchanges = [house.submit(stream=True) for _ in range(5)]
    house.clock.move(0.5)
    before = house.dispatcher.admissions[0]
    house.rooms.reload(plan_of(2), 0.5)
    assert house.dispatcher.held() == 0
    assert before.waiting() == []
    for exchange in exchanges:
        house.relay.answer(exchange)
    house.clock.move(5.0)
    assert house.loads() == [0, 0]


ACTIONS = (
    *("submit", "submit", "submit", "submit", "begin", "begin", "end", "end"),
    *("fail", "fail", "cancel", "move", "back", "reload", "silent", "cut"),
)
events = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 999)), min_size=10, max_size=60
)

ADMISSIONS = ("none", "staggered", "gate-and-route", "gate-and-route-credit", "mine")


@pytest.fixture(scope="module")
def own_admission(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("own") / "held.py"
    file.write_text("def hold(request, fleet):\n    return 0.3 if fleet.requests > 4 else 0.0\n")
    return f"{file}:hold"


@pytest.mark.parametrize("admission", ADMISSIONS)
@given(steps=events)
def test_no_exchange_is_lost_and_counters_return_to_zero(admission, steps, own_admission):
    play(own_admission if admission == "mine" else admission, steps)


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_in_a_long_run(admission, seed, own_admission):
    draw = random.Random(seed)
    steps = [(draw.choice(ACTIONS), draw.randrange(1000)) for _ in range(1500)]
    reached = play(own_admission if admission == "mine" else admission, steps)
    assert {"ok", "failed", "cancelled"} <= reached["outcomes"]
    assert reached["hedges"] > 0
    assert reached["ejections"] > 2
    assert reached["retried"] > 10


def play(admission: str, steps: list[tuple[str, int]]) -> dict[str, Any]:
    """Let things happen to a gateway, hold its counts against what is known, then let all end."""
    gateway = {"max_queued": 12, "max_wait_s": 20.0, "hedge_after_s": 1.0, "eject_after": 2}

    def plan(engines: int):
        return plan_of(
            engines,
            admission=admission,
            routing="prefix-affinity",
            slo=TWO,
            gateway=gateway,
            engine={"max_num_seqs": 3},
        )

    house = House(plan(3))
    exchanges: list[Exchange] = []
    for action, number in steps:
        step(house, plan, exchanges, action, number)
        check(house, exchanges)
    relay, dispatcher, clock = house.relay, house.dispatcher, house.clock
    for _ in range(200):
        for engine in house.engines:
            dispatcher.health.probed(engine, True, clock.now_s)
        for x in [x for x in relay.open if relay.open[x]]:
            if x not in begun(house):
                relay.begin(x, relay.open[x][0])
            relay.end(x)
        clock.move(clock.now_s + 0.5)
        if not dispatcher.flights:
            break
    assert not dispatcher.flights
    check(house, exchanges)
    assert all(x.outcome != "open" for x in exchanges)
    assert house.loads() == [0] * len(house.engines)
    assert all(e.tokens == 0 and e.prefilling == 0 for e in house.engines)
    assert dispatcher.held() == 0
    return {
        "outcomes": {x.outcome for x in exchanges},
        "hedges": len(relay.hedges),
        "ejections": dispatcher.health.ejections,
        "retried": dispatcher.retried,
    }


def step(house: House, plan: Any, exchanges: list[Exchange], action: str, number: int) -> None:
    """Let one thing happen, if it can."""
    relay, dispatcher, clock = house.relay, house.dispatcher, house.clock
    open_ = [x for x in relay.open if relay.open[x]]
    silent = [x for x in open_ if x not in begun(house)]
    out = {e.index for e in house.engines if e.out}
    before = len(relay.sends)
    if action == "submit":
        exchanges.append(
            house.submit(
                stream=number % 3 > 0,
                slo_class=number % 2,
                priority=number % 4,
                prompt_tokens=1 + number,
                prefix=(number % 5, number % 7),
            )
        )
    elif action == "begin" and silent:
        x = silent[number % len(silent)]
        relay.begin(x, relay.open[x][number % len(relay.open[x])])
    elif action in ("end", "cut", "cancel") and open_:
        x = open_[number % len(open_)]
        if action != "cancel" and x in silent:
            relay.begin(x, relay.open[x][0])
        relay.end(x, outcome={"end": "ok", "cut": "failed", "cancel": "cancelled"}[action])
    elif action == "cancel":
        waiting = [x for x in exchanges if x.outcome == "open" and x not in relay.open]
        if waiting:
            relay.end(waiting[number % len(waiting)], outcome="cancelled")
    elif action == "fail" and silent:
        x = silent[number % len(silent)]
        reason = ("connect", "closed", "timeout", "status", "busy")[number % 5]
        if not relay.fail(x, relay.open[x][0], reason) and not relay.open[x]:
            relay.end(x, outcome="failed")
    elif action == "move":
        clock.move(clock.now_s + number / 200.0)
    elif action == "silent":
        dispatcher.silent(house.engines[number % 3], clock.now_s)
    elif action == "reload":
        house.rooms.reload(plan(2 + number % 2), clock.now_s)
    elif action == "back":
        for engine in house.engines:
            dispatcher.health.probed(engine, number % 2 == 0, clock.now_s)
        return
    # An ejected engine gets nothing: in this run no request is sent to one.
    assert not out & {engine for _, engine, _ in relay.sends[before:]}


def begun(house: House) -> set:
    return {x for x, flight in house.dispatcher.flights.items() if not flight.silent}


def check(house: House, exchanges: list) -> None:
    """Hold what is counted against what is known."""
    dispatcher, relay = house.dispatcher, house.relay
    assert dispatcher.held() <= 12
    assert dispatcher.held() == sum(f.held for f in dispatcher.flights.values())
    assert sum(len(a.waiting()) for a in dispatcher.admissions) == dispatcher.held()
    for engine in house.engines:
        own = sum(engine.index in relay.open.get(x, ()) for x in exchanges if x.outcome == "open")
        assert engine.requests == own
        silent = sum(engine in f.engines and f.silent for f in dispatcher.flights.values())
        assert engine.prefilling == silent
    for group in dispatcher.fleet.groups:
        for lane in group.lanes:
            assert lane.router.load_requests.tolist() == [e.requests for e in lane.engines]
            assert lane.router.load_tokens.tolist() == [e.tokens for e in lane.engines]
            assert lane.healthy == sum(not e.out for e in lane.engines)
            assert lane.full == sum(e.full for e in lane.engines)
