import json
import random
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from observed import Fleet, make_exchange, make_plan, random_exchange, refused

from gpusched.gateway.exchange import Refusal
from gpusched.gateway.observe.recorder import Recorder
from gpusched.traces.describe import describe
from gpusched.traces.read import read_trace


def log_of(tmp_path, exchanges, **settings):
    path = tmp_path / "requests.jsonl"
    recorder = Recorder(
        make_plan({"log_level": "off", "request_log": str(path), **settings}), Fleet()
    )
    for exchange in exchanges:
        recorder.opened(exchange, exchange.received_s)
        recorder.ended(exchange, exchange.received_s + 5)
    recorder.close()
    return path


def test_the_log_is_a_trace(tmp_path):
    rng, now = random.Random(5), time.monotonic()
    traffic = [random_exchange(rng, i, now + 0.01 * i) for i in range(2000)]
    path = log_of(tmp_path, traffic)
    trace = read_trace(path)
    sent = sorted((x for x in traffic if x.engine >= 0), key=lambda x: x.received_s)
    assert len(trace) == len(sent)
    start = sent[0].received_s
    np.testing.assert_allclose(trace.arrival_s, [x.received_s - start for x in sent], atol=1e-6)
    assert trace.prompt_tokens.tolist() == [x.prompt_tokens for x in sent]
    assert trace.output_tokens.tolist() == [x.output_tokens for x in sent]
    classes = [trace.class_names[i] for i in trace.class_id]
    assert classes == [("chat", "batch")[x.slo_class] for x in sent]
    assert describe(trace)["requests"] == len(sent)


def test_measured_columns_stand_beside(tmp_path):
    exchange = make_exchange(cached_tokens=64, tried=[1], engine=0)
    path = log_of(tmp_path, [exchange])
    row = json.loads(path.read_text())
    assert row["ttft_s"] == pytest.approx(0.2)
    assert row["tpot_s"] == pytest.approx(0.025)
    assert row["e2e_s"] == pytest.approx(1.2)
    assert abs(row["arrival_s"] - time.time()) < 5
    assert (row["engine"], row["policy"], row["outcome"], row["slo_met"], row["tried"]) == (
        "http://127.0.0.1:23101", "affinity", "ok", True, 1,
    )  # fmt: skip


def test_no_prompt_text_is_in_it(tmp_path):
    text = log_of(tmp_path, [make_exchange()], log_prompts=True).read_text()
    assert "secret" not in text


def test_refused_requests_are_not_in_it(tmp_path):
    exchanges = [make_exchange(), refused(Refusal(503, "full"))]
    assert len(log_of(tmp_path, exchanges).read_text().splitlines()) == 1


def test_prefixes_are_shared_as_they_were(tmp_path):
    a, b, c = (1 << 61) + 5, -(1 << 62), 7
    prefixes = [(a, b), (a, b, c, 5), (a, 9), ()]
    now = time.monotonic()
    exchanges = [
        make_exchange(i, now_s=now + i, prefix=prefix, prompt_tokens=200)
        for i, prefix in enumerate(prefixes)
    ]
    trace = read_trace(log_of(tmp_path, exchanges))
    assert trace.prefix.block_tokens == 64
    rows = [trace.prefix.block_ids[i:j].tolist() for i, j in pairwise(trace.prefix.offsets)]
    assert [len(row) for row in rows] == [2, 3, 2, 0]
    assert rows[0] == rows[1][:2]
    assert rows[2][0] == rows[0][0]
    assert rows[2][1] not in rows[1]


def test_sessions_keep_rounds_and_think_times_and_others_stay_alone(tmp_path):
    now = time.monotonic()

    def asked(at, session=b""):
        return make_exchange(
            now_s=now + at, first_byte_s=now + at + 0.1, last_byte_s=now + at + 1, session=session
        )

    exchanges = [
        asked(0, b"s"),
        asked(1),
        asked(3, b"s"),
        asked(4),
        asked(10, b"s"),
        asked(11, b"t"),
    ]
    path = log_of(tmp_path, exchanges)
    assert "session_id" not in path.read_text().splitlines()[1]
    trace = read_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [0, 1, 3, 4, 10, 11], atol=1e-5)
    assert trace.round.tolist() == [0, 0, 1, 0, 2, 0]
    np.testing.assert_allclose(trace.think_s, [0, 0, 2, 0, 6, 0], atol=1e-5)
    ids = trace.session_id.tolist()
    assert ids[0] == ids[2] == ids[4]
    assert len(set(ids)) == 4


@pytest.mark.slow
def test_simulate_reads_it(tmp_path):
    rng, now = random.Random(5), time.monotonic()
    traffic = [random_exchange(rng, i, now + 0.5 * i) for i in range(200)]
    for exchange in traffic:
        exchange.prefix = tuple(range(rng.randrange(5)))
    path = log_of(tmp_path, traffic)
    plan = tmp_path / "plan.json"
    plan.write_text(make_plan().model_dump_json(exclude_none=True))
    done = subprocess.run(
        [sys.executable, "-m", "gpusched.cli.main", "simulate", str(plan), "--trace", str(path),
         "--json"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answered = sum(x.engine >= 0 for x in traffic)
    assert json.loads(done.stdout)["requests"] == answered
