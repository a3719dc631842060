import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observed import Fleet, make_exchange, make_plan, random_exchange, refused
from prometheus_text import parse

from gpusched.domain.slo import Slo
from gpusched.gateway.exchange import Refusal
from gpusched.gateway.observe.latency import judge_of, latency_of
from gpusched.gateway.observe.metrics import Metrics

BOUND = st.one_of(st.none(), st.floats(0.01, 5))


def ended(metrics, exchange):
    return metrics.ended(exchange, latency_of(exchange))


def values(metrics, engines=()):
    text = metrics.text(engines, 3, 2, 1, {"spans": 0})
    return {(s.name, frozenset(s.labels.items())): s.value for f in parse(text) for s in f.samples}


def value(read, metric, **labels):
    return read[metric, frozenset(labels.items())]


@given(ttft=BOUND, tpot=BOUND, e2e=BOUND, tokens=st.integers(1, 500), first=st.floats(0.001, 10),
       rest=st.floats(0, 10))  # fmt: skip
def test_streams_meet_their_objective_as_the_plan_says(ttft, tpot, e2e, tokens, first, rest):
    if ttft is tpot is e2e is None:
        return
    floor = max(ttft or 0, tpot or 0)
    slo = Slo(ttft_s=ttft, tpot_s=tpot, e2e_s=None if e2e is None else max(e2e, floor))
    exchange = make_exchange(
        now_s=0.0, first_byte_s=first, last_byte_s=first + rest, output_tokens=tokens
    )
    latency = latency_of(exchange)
    tpot_s = 0.0 if tokens == 1 else latency.tpot_s
    [expected] = slo.met(*(np.array([x]) for x in (latency.ttft_s, tpot_s, latency.e2e_s)))
    assert judge_of(slo)(exchange, latency) is bool(expected)


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"first_byte_s": 1.5, "last_byte_s": 2.0}, False),
        ({"stream": False, "last_byte_s": 2.9}, True),
        ({"stream": False, "last_byte_s": 3.1}, False),
        ({"outcome": "failed", "status": 502}, False),
        ({"outcome": "cancelled"}, None),
        ({"outcome": "cancelled", "first_byte_s": 1.5}, False),
        ({"outcome": "cancelled", "first_byte_s": float("nan"), "last_byte_s": 3.0}, False),
        ({"status": 400}, None),
        ({"status": 500}, False),
        ({"choices": 2, "output_tokens": 42, "last_byte_s": 1.1}, True),
        ({"choices": 2, "output_tokens": 42, "last_byte_s": 1.3}, False),
    ],
)
def test_what_counts(changes, met):
    slo = Slo(ttft_s=1.0, tpot_s=0.05)
    exchange = make_exchange(now_s=0.0, **changes)
    assert judge_of(slo)(exchange, latency_of(exchange)) is met


@pytest.mark.parametrize(
    ("refusal", "met"),
    [
        (Refusal(503, "full", "overloaded_error"), False),
        (Refusal(429, "queue", "overloaded_error", "queue_full"), False),
        (Refusal(429, "yours", "requests", "rate_limit_exceeded"), None),
        (Refusal(400, "bad"), None),
        (Refusal(401, "who"), None),
    ],
)
def test_refusals_for_want_of_capacity_are_misses(refusal, met):
    exchange = refused(refusal)
    assert judge_of(Slo(ttft_s=1.0))(exchange, latency_of(exchange)) is met


def test_sums_are_those_of_the_traffic():
    rng, metrics, fleet = random.Random(3), Metrics(make_plan().slo, ("tiny",)), Fleet()
    traffic = [random_exchange(rng, i, 1000.0) for i in range(3000)]
    verdicts = [ended(metrics, exchange) for exchange in traffic]
    read = values(metrics, fleet.engines)
    answered = [x for x in traffic if x.outcome == "ok"]
    for i, name in enumerate(("chat", "batch")):
        of = [x for x in answered if x.slo_class == i]
        labels = {"model": "tiny", "slo_class": name}
        assert value(read, "gpusched_requests_total", outcome="ok", **labels) == len(of)
        assert value(read, "gpusched_output_tokens_total", **labels) == sum(
            x.output_tokens for x in of
        )
        ttft = np.array([x.first_byte_s - x.received_s for x in of])
        for edge in (0.1, 0.25, 1.0):
            counted = value(
                read, "gpusched_time_to_first_token_seconds_bucket", le=repr(edge), **labels
            )
            assert counted == (ttft <= edge).sum()
        met = sum(
            read.get(("gpusched_slo_met_total", frozenset({("slo_class", name), ("policy", p)})), 0)
            for p in ("affinity", "least-tokens", "none")
        )
        assert met == sum(
            v is True for v, x in zip(verdicts, traffic, strict=True) if x.slo_class == i
        )
    refusals = len(traffic) - len(answered)
    assert value(read, "gpusched_refused_total", reason="queue_full") == refusals
    for i, engine in enumerate(fleet.engines):
        labels = {"engine": engine.url, "pool": "main"}
        assert value(read, "gpusched_engine_requests_total", **labels) == sum(
            x.engine == i for x in answered
        )
        assert value(read, "gpusched_engine_running_requests", **labels) == 3


def test_clients_cannot_make_series():
    metrics = Metrics(make_plan().slo, ("tiny",))
    before = None
    for i in range(2000):
        model = f'm{i}"}} evil{{x="\n'
        ended(metrics, make_exchange(model=model))
        ended(metrics, refused(Refusal(404, "no such model", code="model_not_found"), model=model))
        size = len(metrics.text([], 0, 0, 0, {}).splitlines())
        assert before in (None, size)
        before = size
    read = values(metrics)
    assert value(
        read, "gpusched_requests_total", model="other", slo_class="chat", outcome="ok"
    ) == 2000  # fmt: skip
    assert len(metrics._paths) == 2


def test_hostile_names_of_engines_and_classes_are_escaped():
    slo = {'a"b\\c\nd': {"ttft_ms": 100}}
    metrics, fleet = Metrics(make_plan(slo=slo).slo, ('x"y\n',)), Fleet()
    fleet.engines[0].pool = 'p"\\\n'
    ended(metrics, make_exchange(model='x"y\n', branch='b"\n'))
    read = values(metrics, fleet.engines)
    assert value(
        read, "gpusched_requests_total", model='x"y\n', slo_class='a"b\\c\nd', outcome="ok"
    ) == 1  # fmt: skip
    assert value(read, "gpusched_slo_missed_total", slo_class='a"b\\c\nd', policy='b"\n') == 1
    assert value(read, "gpusched_engine_up", engine=fleet.engines[0].url, pool='p"\\\n') == 1


def test_retries_hedges_and_failures():
    metrics, fleet = Metrics(make_plan().slo, ("tiny",)), Fleet()
    ended(metrics, make_exchange(tried=[0, 0], engine=1))
    ended(metrics, make_exchange(outcome="failed", status=502, tried=[0, 1, 0]))
    ended(metrics, make_exchange(hedged=True))
    read = values(metrics, fleet.engines)
    assert value(read, "gpusched_retries_total") == 4
    assert value(read, "gpusched_hedges_total") == 1
    labels = {"engine": fleet.engines[0].url, "pool": "main"}
    assert value(read, "gpusched_engine_failures_total", **labels) == 4


def test_a_new_plan_has_new_classes_and_keeps_the_counts():
    metrics = Metrics(make_plan().slo, ("tiny",))
    ended(metrics, make_exchange())
    metrics.update(make_plan(slo={"ttft_ms": 100}).slo)
    ended(metrics, make_exchange())
    read = values(metrics)
    for name in ("chat", "default"):
        labels = {"model": "tiny", "slo_class": name, "outcome": "ok"}
        assert value(read, "gpusched_requests_total", **labels) == 1


def test_an_engine_named_twice_is_one_series():
    metrics, fleet = Metrics(make_plan().slo, ("tiny",)), Fleet()
    fleet.engines[1].url = fleet.engines[0].url
    ended(metrics, make_exchange(1))
    read = values(metrics, fleet.engines)
    labels = {"engine": fleet.engines[0].url, "pool": "main"}
    assert value(read, "gpusched_engine_requests_total", **labels) == 1
