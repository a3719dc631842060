"""Starting in groups: the rule itself, and what it keeps true of an engine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.batching.groups import allowance, group_of_length, group_of_progress
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace

KNOWN = "+predictor=oracle+reestimate_s=0"


def affine(fixed_s, token_s, prompt):
    """The paper's iteration time for prompts of one length: a fixed part and one a cached token."""
    fixed = np.full(8193, fixed_s)
    work_s = 2 * token_s / (prompt + 1)
    return CompiledTiming(
        fixed, fixed[:1025], np.zeros(1025), token_s, 0.0, 0, 0.0, 0.0, work_s, 0.0
    )


def serve(batching, arrivals, prompt, output, kv_tokens, timing, **settings):
    n = len(arrivals)
    pool = Pool(
        "one", timing, kv_tokens, batching=batching, block_tokens=1, max_num_seqs=1000,
        max_num_batched_tokens=8192, prefix_caching=False, **settings,
    )  # fmt: skip
    trace = Trace(
        np.asarray(arrivals, float),
        np.broadcast_to(np.int32(prompt), n).copy(),
        np.broadcast_to(np.asarray(output, np.int32), n).copy(),
    )
    return simulate(Fleet((pool,)), trace)


def hello(batching, arrivals, kv_tokens=12):
    """Prompts of one token and one decode; four arrivals fill an iteration of a second."""
    return serve(batching, arrivals, 1, 2, kv_tokens, affine(0.4, 0.05, 1))


def poisson(n, rate, seed=0):
    gaps = np.random.default_rng(seed).exponential(1 / rate, n)
    return np.cumsum(gaps)


lists = st.lists(st.integers(1, 50), min_size=1, max_size=6, unique=True).map(sorted)


@given(lists, st.integers(1, 60))
def test_groups_of_lengths_and_of_progress(ends, tokens):
    table = np.array([[0] * len(ends), ends])
    within = [g for g, end in enumerate(ends) if tokens <= end]
    assert group_of_length(table, 1, len(ends), tokens) == (within or [len(ends) - 1])[0]
    before = [g for g, end in enumerate(ends) if tokens < end]
    assert group_of_progress(table, 1, len(ends), tokens) == (before or [len(ends) - 1])[0]


@pytest.mark.parametrize(
    ("held", "threshold", "room", "strict", "waited_s", "may"),
    [
        (0, 4, 9, False, 99.0, 0),
        (3, 4, 9, False, 0.0, 0),
        (4, 4, 9, False, 0.0, 4),
        (7, 4, 9, False, 0.0, 4),
        (3, 4, 2, False, 0.0, 2),
        (3, 4, 2, True, 0.0, 0),
        (4, 4, 2, True, 0.0, 2),
        (3, 4, 9, True, 5.0, 3),
        (3, 4, 9, False, 4.9, 0),
        (9, 4, 0, False, 99.0, 0),
    ],
)
def test_who_may_start(held, threshold, room, strict, waited_s, may):
    assert allowance(held, threshold, room, strict, 10.0 + waited_s, 10.0, 5.0) == may


def test_first_come_evicts_where_wait_does_not():
    """Eight requests too many at the start, then as many arrivals as there is capacity for."""
    steady = np.repeat(np.arange(1.0, 101.0), 4)
    arrivals = np.concatenate((np.full(8, 0.5), steady, np.full(4, 104.0)))
    wait = hello("wait+segments=1+thresholds=4+hold_s=1000" + KNOWN, arrivals)
    assert wait.preemptions.sum() == 0
    assert wait.pools[0].kv_peak == 1.0
    for first_come in ("vllm", "prefill-first"):
        other = hello(first_come, arrivals)
        assert other.preemptions.sum() > 0
        assert other.finish_s[:-4].max() > wait.finish_s[:-4].max()


@pytest.mark.parametrize("start", ["relaxed", "strict"])
@pytest.mark.parametrize("seed", range(3))
def test_batches_stay_within_thresholds(start, seed):
    """(I1)-(I4), (I6): memory, time and stages of every batch; throughput; nobody is lost."""
    d0, d1, rate = 0.02, 1e-5, np.array([20.0, 5.0])
    n = 3000
    rng = np.random.default_rng(seed)
    arrivals = poisson(n, rate.sum(), seed)
    output = np.where(rng.random(n) < 0.2, 41, 11)
    thresholds = np.array([2, 1])
    memory = int(thresholds @ [1155, 4920])
    text = f"wait+segments=8+thresholds=2/1+start={start}{KNOWN}"
    result = serve(text, arrivals, 100, output, memory, affine(d0, d1, 100))
    assert result.preemptions.sum() == 0
    assert result.pools[0].kv_peak <= 1.0
    assert result.gaps.max_s <= d0 + d1 * memory + 1e-9
    for tokens, threshold in ((11, 2), (41, 1)):
        _, together = np.unique(result.admitted_s[output == tokens], return_counts=True)
        assert together.max() <= threshold
    assert not result.rejected.any()
    assert np.isfinite(result.finish_s).all()
    assert result.pools[0].output_tokens == output.sum()
    decoded = (output - 1).sum() / result.makespan_s
    assert decoded <= (output - 1).sum() / arrivals[-1]


@pytest.mark.parametrize("batching", ["wait" + KNOWN, "nested-wait+reestimate_s=0"])
@pytest.mark.parametrize("start", ["relaxed", "strict"])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_finite_trace_drains(batching, start, count):
    output = np.random.default_rng(count).integers(1, 90, count)
    result = serve(
        f"{batching}+start={start}", poisson(count, 30.0), 50, output, 5000, affine(0.01, 1e-6, 50)
    )
    assert np.isfinite(result.finish_s).all()
    assert result.pools[0].output_tokens == output.sum()


@pytest.mark.parametrize(
    "batching", ["wait" + KNOWN, "nested-wait+reestimate_s=0", "wait", "nested-wait"]
)
@pytest.mark.parametrize("start", ["relaxed", "strict"])
def test_holds_are_short_at_one_per_cent_of_the_load(batching, start):
    d0, d1 = 0.02, 1e-6
    rate = 0.01 / (d1 * 1155)
    result = serve(
        f"{batching}+segments=1+start={start}", poisson(500, rate), 100, 11, 10**6,
        affine(d0, d1, 100),
    )  # fmt: skip
    held_s = result.admitted_s - result.arrival_s
    iteration_s = d0 / 0.99
    assert np.percentile(result.ttft_s, 99) <= (2 + 2) * iteration_s * 1.05
    assert held_s.max() <= 3 * iteration_s * 1.05


def test_a_hold_ends_when_it_was_promised():
    result = hello("wait+segments=1+thresholds=4+hold_s=7" + KNOWN, [1.0, 2.0, 30.0])
    assert result.admitted_s == pytest.approx([8.0, 8.0, 37.0])
    full = hello("wait+segments=1+thresholds=4+hold_s=700" + KNOWN, [1.0, 2.0, 3.0, 4.0, 30.0])
    assert full.admitted_s == pytest.approx([4.0] * 4 + [730.0])


@given(st.integers(0, 1000), st.sampled_from(["relaxed", "strict"]), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_one_segment_equals_one_type(seed, start, output):
    """(I8)."""
    arrivals = poisson(60, 40.0, seed)
    runs = [
        serve(
            f"{name}+segments=1+start={start}", arrivals, 30, output, 3000, affine(0.02, 1e-5, 30)
        )
        for name in ("wait" + KNOWN, "nested-wait+reestimate_s=0")
    ]
    assert runs[0].finish_s == pytest.approx(runs[1].finish_s, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_eviction_with_the_safety_buffer(seed):
    """(I2): thresholds of 3 and 1 in 7,230 tokens, and 1,542 more for paused requests."""
    n = 6000
    output = np.where(np.random.default_rng(seed).random(n) < 0.2, 41, 11)
    text = "nested-wait+segments=8+thresholds=3/1+reestimate_s=0"
    result = serve(text, poisson(n, 25.0, seed), 100, output, 8772, affine(0.02, 1e-6, 100))
    assert result.preemptions.sum() == 0
    assert 0.2 < result.pools[0].kv_peak < 1.0
    assert np.isfinite(result.finish_s).all()


def test_survivors_wait_for_the_next_segment_to_fill():
    """Two survive of five, three of six that start a step later: then five go on together."""
    text = "nested-wait+segments=2+thresholds=6/5+hold_s=2+reestimate_s=0"
    arrivals = [0.1] * 5 + [2.15] * 6 + [60.0]
    output = [3, 3, 3, 9, 9, 3, 3, 3, 9, 9, 9, 9]
    result = serve(text, arrivals, 10, output, 10**4, affine(0.1, 0.0, 10))
    assert result.admitted_s[:11] == pytest.approx([2.1] * 5 + [2.2] * 6)
    assert result.finish_s[:3] == pytest.approx([2.4] * 3)
    assert result.finish_s[5:8] == pytest.approx([2.5] * 3)
    assert result.finish_s[[3, 4, 8, 9, 10]] == pytest.approx([3.1] * 5)


def test_survivors_go_on_when_nothing_else_is_left_to_do():
    text = "nested-wait+segments=2+thresholds=6/5+hold_s=2+reestimate_s=0"
    output = [3, 3, 3, 9, 9, 9]
    result = serve(text, [0.1] * 5 + [60.0], 10, output, 10**4, affine(0.1, 0.0, 10))
    assert result.finish_s[3:5] == pytest.approx([3.0] * 2)


@pytest.mark.parametrize(
    ("batching", "words"),
    [
        (
            "wait+segments=1+thresholds=1",
            "type 0: 2.2 arrive in an iteration, above its threshold 1",
        ),
        ("wait+segments=1+thresholds=9", "27 tokens at the thresholds exceed the capacity of 12"),
        ("wait+segments=1+thresholds=4/4", "2 thresholds for 1 groups"),
        ("nested-wait+segments=1+thresholds=4", "not below its threshold 4"),
        ("wait+thresholds=0", "whole numbers above 0"),
        ("wait+thresholds=3,1", "with a slash between"),
        ("wait+reestimate_s=0.01", "at least 0.1, or 0"),
        ("wait+reestimate_s=-1", "from 0 to"),
        ("wait+start=soon", "relaxed or strict"),
        ("nested-wait+predictor=oracle", "no parameter 'predictor'"),
    ],
)
def test_bad_settings(batching, words):
    with pytest.raises(InputError, match=words):
        hello(batching, np.repeat(np.arange(1.0, 11.0), 4))


def test_unstable_traffic_is_told_with_the_bound():
    result = hello("wait+segments=1" + KNOWN, np.repeat(np.arange(1.0, 41.0), 8))
    assert "from the whole trace, its future included" in result.notes[0]
    assert "8 requests/s an engine are unstable, at most 4 are stable" in result.notes[0]
    assert np.isfinite(result.finish_s).all()
