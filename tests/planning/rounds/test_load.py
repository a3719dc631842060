"""Load of the phases from traces with sessions, speeds of workers, and queueing formulas."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.domain.spec import spec_from
from gpusched.errors import InputError
from gpusched.planning.candidates import fitting_engines
from gpusched.planning.rounds.load import prefill_s, round_load
from gpusched.planning.rounds.queueing import in_time, wait_probability
from gpusched.planning.rounds.split import best_split
from gpusched.planning.rounds.workers import split_problem, worker_kinds
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

TIMING = timing_model(load_model("llama-3.1-8b"), load_gpu("h100_sxm"), Parallelism())
SPEC = {
    "model": "llama-3.1-8b",
    "cluster": {"nodes": [{"gpu": "h100_sxm", "gpus": 8, "count": 2}]},
    "workload": {"profile": "rag", "rate_rps": 40, "duration_s": 200, "rounds": True},
    "slo": {"ttft_ms": 600, "tpot_ms": 30, "attainment": 0.9},
}


def spec(**changes):
    return spec_from({**copy.deepcopy(SPEC), **changes})


def sessions(prompts, outputs, *, think_s=1.0, gap_s=2.0):
    """A trace of sessions with the given rounds, one starting every ``gap_s``."""
    rows = [
        (gap_s * s, p, o, s, k)
        for s, (ps, os) in enumerate(zip(prompts, outputs, strict=True))
        for k, (p, o) in enumerate(zip(ps, os, strict=True))
    ]
    arrival, prompt, output, session, number = (np.array(c) for c in zip(*rows, strict=True))
    return Trace(
        arrival_s=arrival.astype(np.float64),
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        session_id=session.astype(np.int32),
        round=number.astype(np.int32),
        think_s=np.where(number > 0, think_s, 0.0),
    )


def test_prefill_on_a_history_is_the_timing_models():
    for past, new in ((0, 100), (8000, 300), (1000, 4000)):
        expected = TIMING.prefill_s(new, past)
        assert prefill_s(TIMING, np.array([past * 1.0]), np.array([new * 1.0]))[0] == pytest.approx(
            expected, rel=1e-9
        )


def test_rounds_of_sessions():
    load = round_load(sessions([(100, 250, 400), (80,)], [(50, 20, 10), (30,)]), TIMING)
    assert load.history_tokens.tolist() == [0, 150, 270, 0]
    assert load.new_tokens.tolist() == [100, 100, 130, 80]
    assert load.first.tolist() == [True, False, False, True]
    assert load.sessions == 2
    assert load.first_per_s == pytest.approx(load.later_per_s)


def test_a_shorter_context_keeps_a_token_to_prefill():
    load = round_load(sessions([(100, 60)], [(50, 20)]), TIMING)
    assert load.history_tokens.tolist() == [0, 59]


def test_rate_is_that_of_the_steady_part():
    trace = generate("rag", 40.0, 400.0, seed=3)
    load = round_load(trace, TIMING)
    assert load.rounds_per_s == pytest.approx(40.0, rel=0.1)
    assert load.first_per_s == pytest.approx(10.0, rel=0.1)
    assert np.array_equal(np.bincount(trace.session_id), np.full(load.sessions, 4))


def test_blocks_and_lengths_tell_the_same_history():
    trace = generate("rag", 20.0, 60.0, seed=1)
    with_blocks = round_load(trace, TIMING)
    lengths = Trace(**{f: getattr(trace, f) for f in trace.__slots__ if f != "prefix"})
    without = round_load(lengths, TIMING)
    later = ~without.first
    short = without.history_tokens[later] - with_blocks.history_tokens[later]
    assert (short >= 0).all()
    assert (short < trace.prefix.block_tokens).all()


@pytest.mark.parametrize("prompts", [None, [(10,), (20,)]])
def test_traces_without_rounds_are_refused(prompts):
    trace = sessions(prompts, [(1,), (1,)]) if prompts else generate("chat", 5.0, 20.0)
    with pytest.raises(InputError, match="rounds"):
        round_load(trace, TIMING)


def kinds_of(question, local_share=0.25, trace=None):
    trace = load_workload(question.workload, question.slo) if trace is None else trace
    engines, _ = fitting_engines(question, trace)
    load = round_load(trace, engines[0].timing)
    return load, *worker_kinds(question, trace, load, engines, local_share)


def test_speeds_by_brute_force():
    """Against scalar loops over the rounds and over batch sizes."""
    question = spec()
    load, kinds, _ = kinds_of(question)
    for kind in kinds:
        timing = kind.prefill.timing
        each = [
            timing.prefill_s(int(n), int(h))
            for n, h in zip(load.new_tokens, load.history_tokens, strict=True)
        ]
        first = np.mean([t for t, f in zip(each, load.first, strict=True) if f])
        later = np.mean([t for t, f in zip(each, load.first, strict=True) if not f])
        busy = load.first_per_s * first + 0.75 * load.later_per_s * later
        assert kind.prefill_speed == pytest.approx(1.0 / busy, rel=1e-6)
        stopped = 0.25 * load.later_per_s * later
        tokens, context = load.decode_tokens_per_s, load.decode_context_tokens
        best = 0.0
        for b in range(1, question.engine.max_num_seqs + 1):
            step = kind.decode.timing.decode_s(b, context)
            held_up = stopped * b / (tokens * step)
            if b * context <= kind.decode.kv_tokens and step * (1 + held_up) <= 0.03:
                best = max(best, 1.0 / (tokens * step / b + stopped))
        assert kind.decode_speed == pytest.approx(best, rel=1e-6)


def test_local_prefills_move_work_from_prefill_to_decode():
    _, none, _ = kinds_of(spec(), 0.0)
    _, half, _ = kinds_of(spec(), 0.5)
    for a, b in zip(none, half, strict=True):
        assert b.prefill_speed > a.prefill_speed
        assert b.decode_speed < a.decode_speed


def test_masks_name_the_bound():
    _, kinds, refusals = kinds_of(spec(slo={"ttft_ms": 50, "tpot_ms": 30, "attainment": 0.9}))
    slow = [k for k in kinds if not k.prefill_speed]
    assert slow
    assert all(k.decode_speed for k in slow)
    assert {r.kind for r in refusals} == {"ttft"}
    _, kinds, refusals = kinds_of(spec(slo={"ttft_ms": 600, "tpot_ms": 4, "attainment": 0.9}))
    assert any(r.kind == "tpot" and "TPOT" in r.reason for r in refusals)


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_erlang_c(servers, use):
    load = use * servers
    term, total = 1.0, 1.0
    for k in range(1, servers):
        term *= load / k
        total += term
    last = term * load / servers / (1.0 - use)
    assert wait_probability(servers, load) == pytest.approx(last / (total + last), rel=1e-8)
    if servers == 1:
        assert wait_probability(1, load) == pytest.approx(use)


def test_more_workers_are_expected_to_be_in_time_more_often():
    question = spec()
    load, kinds, _ = kinds_of(question)
    shares = []
    for gpus in range(3, 17):
        split = best_split(split_problem(question, kinds, gpus))
        shares.append(
            in_time(load, kinds, split, ttft_s=0.6, tpot_s=0.03, local_share=0.25, by_session=True)
        )
    assert shares[-1] > 0.95
    assert shares[0] <= shares[-1]
    assert all(0.0 <= share <= 1.0 for share in shares)
