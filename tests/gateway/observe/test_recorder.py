import json
import time

import pytest
from observed import Fleet, make_exchange, make_plan, refused
from prometheus_text import parse

from gpusched.gateway.exchange import NOWHERE, OTHER, Refusal
from gpusched.gateway.observe.recorder import Recorder


class Allowance:
    def __init__(self):
        self.settled = []

    def settle(self, exchange):
        self.settled.append(exchange)


@pytest.fixture
def fleet():
    return Fleet()


@pytest.fixture
def record(fleet, capfd):
    made = []

    def build(access=None, slo=None, **settings):
        made.append(Recorder(make_plan(settings, slo), fleet, access))
        return made[-1]

    yield build
    for recorder in made:
        recorder.close()


def pass_through(recorder, *exchanges):
    for exchange in exchanges:
        recorder.opened(exchange, exchange.received_s)
        recorder.ended(exchange, exchange.received_s + 2)


def lines(recorder, capfd):
    recorder.close()
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def total(recorder, name, **labels):
    return sum(
        s.value
        for f in parse(recorder.metrics_text())
        for s in f.samples
        if s.name == name and labels.items() <= s.labels.items()
    )


def test_what_is_open_is_counted_until_it_is_over(record):
    recorder = record()
    nan = float("nan")
    stream, whole = make_exchange(), make_exchange(stream=False)
    waiting = make_exchange(first_byte_s=nan)
    for exchange in (stream, whole, waiting):
        recorder.opened(exchange, exchange.received_s)
    assert total(recorder, "gpusched_open_requests") == 3
    assert total(recorder, "gpusched_open_streams") == 1
    for exchange in (stream, whole, waiting):
        recorder.ended(exchange, exchange.received_s + 2)
    assert total(recorder, "gpusched_open_requests") == 0
    assert total(recorder, "gpusched_open_streams") == 0


def test_charges_are_settled(record):
    access = Allowance()
    charged, free = make_exchange(charged_tokens=10), make_exchange()
    pass_through(record(access), charged, free)
    assert access.settled == [charged]


def test_a_page_of_the_gateways_own_meets_no_objective_and_has_no_latency(record):
    recorder = record()
    pass_through(recorder, make_exchange(engine=NOWHERE, kind=OTHER, branch="", model=""))
    assert total(recorder, "gpusched_requests_total", outcome="ok") == 1
    assert total(recorder, "gpusched_slo_met_total") == 0
    assert total(recorder, "gpusched_e2e_request_latency_seconds_count") == 0


def test_levels_of_lines(record, capfd):
    exchanges = [
        make_exchange(0),
        refused(Refusal(429, "x", "requests", "rate_limit_exceeded"), number=1),
        make_exchange(2, outcome="failed", status=502),
    ]
    recorder = record(log_level="info")
    pass_through(recorder, *exchanges)
    said = lines(recorder, capfd)
    assert [line["level"] for line in said] == ["info", "warning", "error"]
    assert [line.get("reason") for line in said] == [None, "rate_limit_exceeded", None]
    assert all(line["event"] == "request" for line in said)


@pytest.mark.parametrize(("level", "count"), [("warning", 2), ("error", 1), ("off", 0)])
def test_lines_below_the_level_are_left_out(record, capfd, level, count):
    recorder = record(log_level=level)
    pass_through(
        recorder, make_exchange(), refused(Refusal(400, "x")),
        make_exchange(outcome="failed", status=502),
    )  # fmt: skip
    assert len(lines(recorder, capfd)) == count


def test_a_share_of_the_lines(record, capfd):
    recorder = record(log_level="info", log_share=0.1)
    pass_through(recorder, *(make_exchange(i) for i in range(1000)))
    assert len(lines(recorder, capfd)) in (99, 100, 101)


@pytest.mark.parametrize("prompts", [False, True])
def test_prompts_are_logged_only_if_asked_for(record, capfd, prompts):
    recorder = record(log_level="info", log_prompts=prompts)
    pass_through(recorder, make_exchange())
    [line] = lines(recorder, capfd)
    assert ("secret words" in json.dumps(line)) is prompts
    if prompts:
        assert line["prompt"] == [{"role": "user", "content": "secret words"}]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_a_prompt_that_cannot_be_read_is_left_out(record, capfd, body):
    recorder = record(log_level="info", log_prompts=True)
    pass_through(recorder, make_exchange(body=body))
    assert "prompt" not in lines(recorder, capfd)[0]


def test_hostile_names_stay_one_line(record, capfd):
    recorder = record(log_level="info")
    pass_through(recorder, make_exchange(model='x"\n{"level":"error"}' * 100, client="a\nb"))
    [line] = lines(recorder, capfd)
    assert line["client"] == "a\nb"
    assert len(line["model"]) == 200


def test_engines_that_go_and_come_back_are_told(record, fleet, capfd):
    recorder = record()
    recorder.tick(time.monotonic())
    fleet.engines[0].ejected = True
    recorder.tick(time.monotonic())
    recorder.tick(time.monotonic())
    fleet.engines[0].ejected = False
    recorder.tick(time.monotonic())
    fleet.engines[1].up = False
    recorder.tick(time.monotonic())
    said = [(line["event"], line["engine"][-1]) for line in lines(recorder, capfd)]
    assert said == [("engine ejected", "1"), ("engine down", "2")]


def test_what_a_dead_engine_said_last_is_not_shown(record, fleet):
    recorder = record()
    assert total(recorder, "gpusched_engine_running_requests") == 6
    fleet.engines[0].up = False
    assert total(recorder, "gpusched_engine_running_requests") == 3
    assert [e["running"] for e in recorder.status()["engines"]] == [None, 3.0]


def test_the_seconds_of_the_page(record, fleet):
    recorder, start = record(), time.monotonic()
    recorder.tick(start)
    ttft = [0.1, 0.2, 0.3, 0.4]
    pass_through(recorder, *(
        make_exchange(now_s=start, first_byte_s=start + t, last_byte_s=start + t + 1) for t in ttft
    ))  # fmt: skip
    limited = Refusal(429, "x", "requests", "rate_limit_exceeded")
    pass_through(recorder, *(refused(limited, client="a") for _ in range(3)))
    pass_through(recorder, refused(Refusal(503, "full"), slo_class=1))
    fleet.holding = 7
    recorder.tick(start + 2.0)
    status = recorder.status()
    row = status["history"][-1]
    assert row["requests_per_s"] == 2.0
    assert row["tokens_per_s"] == 82.0
    assert row["ttft_p50_s"] == pytest.approx(0.3)
    assert row["ttft_p95_s"] == pytest.approx(0.4)
    assert row["tpot_p50_s"] == pytest.approx(0.025)
    assert (row["refused"], row["held"], row["met"], row["missed"]) == (4, 7, [4, 0], [0, 1])
    assert [(r["reason"], r["count"]) for r in status["refusals"]] == [
        ("rate_limit_exceeded", 3), ("invalid_request_error", 1),
    ]  # fmt: skip
    recorder.tick(start + 3.0)
    assert recorder.status()["history"][-1]["ttft_p50_s"] is None


def test_a_new_plan_with_fewer_classes(record, fleet):
    recorder = record()
    late = make_exchange(slo_class=1)
    recorder.opened(late, late.received_s)
    recorder.update(make_plan(slo={"ttft_ms": 500}))
    recorder.ended(late, late.received_s + 2)
    recorder.tick(time.monotonic())
    assert recorder.status()["classes"] == ("default",)
    assert recorder.status()["history"][-1]["met"] == [1]
    assert total(recorder, "gpusched_requests_total", slo_class="default") == 1


def test_the_history_is_bounded(record):
    recorder, start = record(), time.monotonic()
    for i in range(400):
        pass_through(recorder, refused(Refusal(503, "x", code=f"c{i}")))
        recorder.tick(start + i)
    status = recorder.status()
    assert len(status["history"]) == 300
    assert len(status["refusals"]) == 20
    assert total(recorder, "gpusched_refused_total") == 400
    assert total(recorder, "gpusched_refused_total", reason="other") > 300
