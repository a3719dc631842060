"""The live dispatcher, driven by a fake clock, alone and in front of fake engines."""

import heapq
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.admission.dispatcher import StaggeredDispatcher, Staggering
from gpusched.sim.theory.gated import GatedEngines, run_gated

CHUNK = 1000


def dispatcher(**changes):
    parameters = {"engines": 2, "units": 2, "chunk_tokens": CHUNK, "fixed_s": 0.1, "token_s": 1e-4}
    return StaggeredDispatcher(Staggering(**{**parameters, **changes}))


def sent(dispatches):
    return [(d.engine, d.requests) for d in dispatches]


def test_an_unloaded_engine_is_used_at_once():
    d = dispatcher()
    d.arrive("a", 300)
    assert sent(d.tick(5.0)) == [(0, (("a", 0),))]
    d.arrive("b", 300)
    assert d.tick(5.001) == []
    assert d.next_event_s(5.001) == pytest.approx(5.002)
    assert sent(d.tick(5.002)) == [(1, (("b", 0),))]
    d.arrive("c", 300)
    assert d.tick(5.01) == []


def test_releases_keep_the_interval_and_the_window_is_packed():
    d = dispatcher()
    assert d.interval_s == pytest.approx(0.1)
    for engine, name in enumerate("ab"):
        d.arrive(name, 300)
        assert [x.engine for x in d.tick(float(engine))] == [engine]
    for name, tokens in (("c", 100), ("d", 500), ("e", 300)):
        d.arrive(name, tokens)
    assert d.tick(1.01) == []
    d.pass_ended(1, 1.02, duration_s=0.2)
    assert d.tick(1.02) == []
    d.pass_ended(0, 1.03, duration_s=0.2)
    assert d.tick(1.03) == []
    assert d.next_event_s(1.03) == pytest.approx(1.1)
    assert sent(d.tick(1.1)) == [(1, (("d", 0), ("e", 1), ("c", 1)))]
    assert d.available_tokens(1).tolist() == [500, 600]
    d.pass_ended(1, 1.3)
    assert d.available_tokens(1).tolist() == [CHUNK, CHUNK]
    assert d.buffered == ()


def test_a_full_pass_does_not_wait():
    d = dispatcher(engines=1)
    d.arrive("a", 300)
    d.tick(0.0)
    for name in "bcd":
        d.arrive(name, 700)
    d.pass_ended(0, 0.05)
    assert sent(d.tick(0.05)) == [(0, (("b", 0), ("c", 1), ("d", 0)))]
    assert d.available_tokens(0).tolist() == [-400, 300]


def test_what_is_left_behind_counts_and_its_gate_is_used():
    d = dispatcher(engines=1)
    d.arrive("giant", 2500)
    d.tick(0.0)
    d.arrive("b", 10)
    d.pass_ended(0, 0.05, [1500, 0])
    assert sent(d.tick(0.05)) == [(0, (("b", 1),))]
    assert d.available_tokens(0).tolist() == [-500, 990]
    d.pass_ended(0, 0.3, [500, 0])
    assert d.available_tokens(0).tolist() == [500, CHUNK]
    assert d.tick(0.3) == []
    d.arrive("c", 10)
    assert d.tick(0.31) == []
    d.pass_ended(0, 0.5)
    assert sent(d.tick(0.5)) == [(0, (("c", 0),))]


def test_fleet_changes_rescale_the_interval_at_once():
    d = dispatcher(engines=4)
    quarter = d.interval_s
    d.engine_failed(3)
    assert d.interval_s == pytest.approx(quarter * 4 / 3)
    d.engine_failed(2)
    assert d.interval_s == pytest.approx(quarter * 2)
    d.engine_joined(2, 1.0)
    d.engine_joined(3, 1.0)
    assert d.interval_s == pytest.approx(quarter)


def test_without_engines_nothing_is_sent_and_nothing_lost():
    d = dispatcher()
    d.arrive("a", 300)
    d.tick(0.0)
    d.engine_failed(0)
    d.engine_failed(1)
    d.arrive("b", 3000)
    for now_s in (0.1, 1.0, 100.0):
        assert d.tick(now_s) == []
        assert d.next_event_s(now_s) == math.inf
    assert d.buffered == ("a", "b")
    assert d.active_engines == 0
    d.pass_ended(0, 100.0)
    assert d.tick(100.0) == []
    d.engine_joined(1, 101.0)
    assert sent(d.tick(101.0)) == [(1, (("a", 0), ("b", 1)))]


def test_a_silent_engine_is_predicted_then_suspect_then_believed_again():
    d = dispatcher(engines=1)
    d.arrive("a", 300)
    d.tick(0.0)
    d.arrive("b", 200)
    assert d.next_event_s(0.0) == pytest.approx(0.13)
    assert d.tick(0.12) == []
    assert d.out_of_use == ()
    assert sent(d.tick(0.21)) == [(0, (("b", 1),))]
    assert d.available_tokens(0).tolist() == [700, 800]
    d.arrive("c", 100)
    assert d.next_event_s(0.22) == pytest.approx(0.34)
    assert len(d.tick(0.45)) == 1
    d.arrive("d", 100)
    assert d.next_event_s(0.59) == pytest.approx(0.6)
    assert d.tick(0.61) == []
    assert d.out_of_use == (0,)
    assert d.active_engines == 0
    d.pass_ended(0, 2.0, [0, 200], received=2)
    assert d.out_of_use == ()
    assert d.available_tokens(0).tolist() == [CHUNK, CHUNK - 200 - 100]
    assert d.tick(2.0) == []
    d.pass_ended(0, 2.2)
    assert sent(d.tick(2.2)) == [(0, (("d", 0),))]


def test_a_late_report_overwrites_a_prediction():
    d = dispatcher(engines=1)
    d.arrive("a", 300)
    d.tick(0.0)
    d.arrive("b", 200)
    d.tick(0.21)
    d.pass_ended(0, 0.25, received=1)
    assert d.available_tokens(0).tolist() == [CHUNK, 800]
    d.arrive("c", 100)
    assert d.tick(0.26) == []
    assert d.next_event_s(0.26) == pytest.approx(0.37)


def test_work_of_a_failed_engine_comes_first():
    d = dispatcher()
    for name in "ab":
        d.arrive(name, 2000)
    d.tick(0.0)
    d.arrive("c", 5000)
    d.pass_ended(0, 0.1, [1000, 1000])
    d.engine_failed(0)
    assert d.buffered == ("a", "b", "c")
    assert sent(d.tick(0.2)) == [(1, (("a", 0), ("b", 1)))]
    assert d.buffered == ("c",)


def test_load_should_be_shed_after_the_limit():
    d = dispatcher(engines=1, units=1, age_limit=2)
    for i in range(40):
        d.arrive(i, 900)
    seen = []
    for k in range(4):
        d.tick(float(k))
        seen.append(d.overloaded)
        d.pass_ended(0, k + 0.5)
    assert seen == [False, False, True, True]


def test_cached_tokens_choose_the_unit():
    d = dispatcher(engines=1)
    d.arrive("a", 900, [[0, 900]])
    assert sent(d.tick(0.0)) == [(0, (("a", 1),))]
    assert d.available_tokens(0).tolist() == [CHUNK, CHUNK - 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"engines": 0}, "engines"), ({"patience": 0.5}, "patience"), ({"token_s": -1.0}, "token_s")],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=f"{message} must be at least"):
        dispatcher(**change)


def test_bad_requests():
    d = dispatcher()
    with pytest.raises(InputError, match="2 x 2, got 3"):
        d.arrive("a", 1, [0, 0, 0])
    with pytest.raises(InputError, match="at least one token"):
        d.arrive("a", 0)
    with pytest.raises(InputError, match="negative"):
        d.arrive("a", 9, [[0, 0], [0, -1]])


class FakeFleet:
    """Gated engines behind a dispatcher, whose passes take ``slower`` times what it predicts."""

    def __init__(self, d, slower=1.0):
        self.d = d
        self.s = d.settings
        self.slower = slower
        self.queues = defaultdict(list)
        self.running = [False] * self.s.engines
        self.ends = []
        self.ttft_s = {}
        self.unit = {}
        self.releases = []
        self.dead = set()

    def run(self, arrivals, failures=()):
        """Arrivals are (time, id, tokens); failures are (time, engine, time of return)."""
        self.arrival_s = {i: t for t, i, _ in arrivals}
        events = [(t, 1, "arrive", (i, n)) for t, i, n in arrivals]
        events += [(t, 2, "fail", e) for t, e, _ in failures]
        events += [(t, 2, "join", e) for _, e, t in failures]
        heapq.heapify(events)
        now_s = 0.0
        while len(self.ttft_s) < len(arrivals):
            wake_s = max(self.d.next_event_s(now_s), now_s)
            next_s = min([wake_s] + [t for t, *_ in events[:1]] + [t for t, *_ in self.ends[:1]])
            assert next_s < math.inf, "nothing left to wait for, but requests are unfinished"
            now_s = next_s
            while self.ends and self.ends[0][0] <= now_s:
                self.end(now_s, *heapq.heappop(self.ends)[1:])
            while events and events[0][0] <= now_s:
                _, _, kind, what = heapq.heappop(events)
                if kind == "arrive":
                    self.d.arrive(*what)
                elif kind == "fail":
                    self.fail(what)
                else:
                    self.dead.discard(what)
                    self.d.engine_joined(what, now_s)
            for sent in self.d.tick(now_s):
                self.releases.append(now_s)
                assert sent.engine not in self.dead
                for i, u in sent.requests:
                    assert i not in self.unit, "on two units"
                    self.unit[i] = (sent.engine, u)
                    self.queues[sent.engine, u].append([i, self.tokens[i]])
            for e in range(self.s.engines):
                if not self.running[e] and any(self.queues[e, u] for u in range(self.s.units)):
                    self.begin(e, now_s)

    def begin(self, e, now_s):
        done, busiest = [], 0
        for u in range(self.s.units):
            budget = self.s.chunk_tokens
            queue = self.queues[e, u]
            while queue and budget > 0:
                part = min(budget, queue[0][1])
                budget -= part
                queue[0][1] -= part
                if queue[0][1] == 0:
                    done.append(queue.pop(0)[0])
            busiest = max(busiest, self.s.chunk_tokens - budget)
        spent_s = (self.s.fixed_s + self.s.token_s * busiest) * self.slower
        end_s = now_s + self.s.network_s + spent_s
        self.running[e] = True
        heapq.heappush(self.ends, (end_s, e, spent_s, done))

    def end(self, now_s, e, spent_s, done):
        for i in done:
            self.ttft_s[i] = now_s - self.arrival_s[i]
            del self.unit[i]
        self.running[e] = False
        left = [sum(n for _, n in self.queues[e, u]) for u in range(self.s.units)]
        self.d.pass_ended(e, now_s, left, duration_s=spent_s)

    def fail(self, e):
        self.dead.add(e)
        self.running[e] = False
        self.ends = [x for x in self.ends if x[1] != e]
        heapq.heapify(self.ends)
        for u in range(self.s.units):
            self.queues[e, u] = []
        self.unit = {i: where for i, where in self.unit.items() if where[0] != e}
        self.d.engine_failed(e)


lengths = st.one_of(st.integers(1, 400), st.integers(1, 5000))
times = st.floats(0.0, 3.0).map(lambda t: round(t, 6))


@given(
    st.lists(st.tuples(times, lengths), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.003]),
    st.sampled_from([0.6, 1 + 1e-9, 1.7]),
    st.lists(st.tuples(times, st.integers(0, 3)), max_size=2, unique_by=lambda f: f[1]),
)
@settings(max_examples=60)
def test_nothing_is_lost_doubled_or_left_behind(
    requests, engines, units, network_s, slower, failures
):
    d = dispatcher(engines=engines, units=units, network_s=network_s, patience=50.0)
    fleet = FakeFleet(d, slower)
    arrivals = [(t, i, n) for i, (t, n) in enumerate(sorted(requests))]
    fleet.tokens = {i: n for _, i, n in arrivals}
    fleet.run(arrivals, [(t, e, t + 1.0) for t, e in failures if e < engines])
    assert set(fleet.ttft_s) == set(fleet.tokens)
    assert d.buffered == ()
    for e in range(engines):
        assert d.available_tokens(e).tolist() == [CHUNK] * units
    gaps = np.diff(fleet.releases)
    assert (gaps >= d.settings.lowest_interval_s - 1e-12).all()


@pytest.mark.parametrize("network_s", [0.0, 0.01])
@pytest.mark.parametrize("load", [0.2, 0.7, 1.1])
def test_dispatcher_and_model_agree(network_s, load):
    rng = np.random.default_rng(3)
    n, engines, units = 400, 3, 4
    tokens = np.exp(rng.normal(5.5, 1.2, n)).astype(int)
    capacity = engines * units * CHUNK / (0.1 + 1e-4 * CHUNK)
    arrival_s = np.cumsum(rng.exponential(tokens.mean() / capacity / load, n))
    d = dispatcher(
        engines=engines, units=units, network_s=network_s,
        fixed_s=0.1 * (1 + 1e-9), token_s=1e-4 * (1 + 1e-9),
    )  # fmt: skip
    fleet = FakeFleet(d, slower=1 / (1 + 1e-9))
    fleet.tokens = dict(enumerate(tokens.tolist()))
    fleet.run([(t, i, int(tokens[i])) for i, t in enumerate(arrival_s.tolist())])
    model = run_gated(
        GatedEngines(engines, units, CHUNK, 0.1, 1e-4, network_s), arrival_s, tokens, "staggered"
    )
    ours = np.array([fleet.ttft_s[i] for i in range(n)])
    assert ours == pytest.approx(model.ttft_s, abs=1e-5)
    assert len(fleet.releases) == model.releases
