"""The store outside the engines: what it saves, how long loading takes, busy time by the interval."""

from dataclasses import replace

import numpy as np
import pytest
from fleets import timing, trace
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.prefix_cache.replay import replay_cache
from gpusched.sim.prefix_cache.store import ReadSpeed, queue_ends_s, serve_from_store
from gpusched.sim.simulate import simulate
from gpusched.traces.trace import Trace


def fleet(**changes):
    settings = {"kv_blocks": 400, "max_num_seqs": 20, "max_num_batched_tokens": 256} | changes
    return Fleet((Pool(name="engines", timing=timing(max_tokens=600), **settings),))


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), min_size=1, max_size=20))
def test_queue_of_one_server(jobs):
    gaps, service = np.array(jobs).T
    arrival = np.cumsum(gaps)
    free, expected = 0.0, []
    for at, takes in zip(arrival, service, strict=True):
        free = max(free, at) + takes
        expected.append(free)
    assert queue_ends_s(arrival, service) == pytest.approx(np.array(expected), abs=1e-9)


def test_each_request_waits_for_what_it_loads():
    requests = trace(80, 20.0, 3, prefixes=2)
    replay = replay_cache(requests, [200, 2000])
    served = serve_from_store(requests, replay, [ReadSpeed(1e-4), ReadSpeed(2e-3, 0.05)])
    assert sorted(served.row) == list(range(80))
    assert (np.diff(served.trace.arrival_s) >= 0).all()
    arrived = requests.arrival_s[served.row]
    assert served.trace.arrival_s == pytest.approx(arrived + served.load_s)
    slow = replay.hit_tokens[served.row, 1]
    assert slow.any()
    assert (served.load_s >= 2e-3 * slow + 0.05 * (slow > 0) - 1e-12).all()
    assert (served.load_s[replay.hit_tokens.sum(axis=1)[served.row] == 0] == 0).all()
    assert (served.trace.stored_tokens == replay.hit_tokens.sum(axis=1)[served.row]).all()


def test_a_lone_prompt_computes_only_what_the_store_lacks():
    lone = Trace(np.zeros(1), np.array([500], np.int32), np.array([1], np.int32))
    compiled = timing(max_tokens=600)
    for stored in (0, 300, 499, 500):
        held = replace(lone, stored_tokens=np.array([stored], np.int32))
        result = simulate(fleet(max_num_batched_tokens=512), held)
        past = min(stored, 499)
        new = 500 - past
        expected = (
            compiled.tokens_s[new]
            + compiled.prefill_fixed_s
            + compiled.work_s * (past * new + new * (new + 1) / 2)
            + compiled.logits_s[1]
        )
        assert result.ttft_s[0] == pytest.approx(expected, rel=1e-12)
        assert result.cached_tokens[0] == past


def test_stored_prompts_are_checked():
    requests = trace(3, 1.0, 0)
    with pytest.raises(InputError, match="stored_tokens must lie in 0 to prompt_tokens"):
        replace(requests, stored_tokens=requests.prompt_tokens + np.int32(1))
    replay = replay_cache(trace(9, 1.0, 0, prefixes=1), [100])
    with pytest.raises(InputError, match="give 1, one a tier"):
        serve_from_store(trace(9, 1.0, 0, prefixes=1), replay, [])
    with pytest.raises(InputError, match="unroll"):
        serve_from_store(trace(9, 1.0, 0, prefixes=1, sessions=True), replay, [ReadSpeed(1.0)])


def test_busy_time_by_the_interval_adds_up_and_changes_nothing():
    requests = trace(200, 15.0, 1)
    pools = fleet(replicas=2)
    plain = simulate(pools, requests)
    result = simulate(pools, requests, interval_s=2.0)
    assert (result.finish_s == plain.finish_s).all()
    assert plain.busy_s is None
    total = result.busy_s.sum(axis=0)
    assert total[0] == pytest.approx([plain.pools[0].busy_s, plain.pools[0].prefill_busy_s])
    assert len(result.busy_s) == int(np.ceil(plain.makespan_s / 2.0))
    assert (result.busy_s >= 0).all()
    assert (result.busy_s[:, 0, 0] <= 2 * (2.0 + 1.0)).all()
