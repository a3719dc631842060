"""Placed rounds and on-time batching: the leaping kernel against the step-by-step reference."""

import os
from dataclasses import replace

import numpy as np
from fleets import timing, trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernel import assert_equal

from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.rounds.reference import RoundsReference
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.traces.trace import Trace

EXAMPLES = 2000 if os.environ.get("GPUSCHED_FULL") == "1" else 100


def sessions(
    n: int, rounds: int, rate_rps: float, seed: int, *, increment: int, output: int, think_s: float,
    rewritten: float = 0.0, least_output: int = 1,
) -> Trace:  # fmt: skip
    """Sessions whose prompts grow by an increment a round; some prompts are rewritten."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, rounds + 1, n)
    starts = np.cumsum(rng.exponential(1 / rate_rps, n))
    rows = []
    for session, count in enumerate(counts):
        context = 0
        for k in range(count):
            if rng.random() < rewritten:
                context = int(context * rng.random())
            prompt = context + int(rng.integers(1, increment + 1))
            answer = int(rng.integers(least_output, output + 1))
            rows.append((starts[session], session, k, prompt, answer))
            context = prompt + answer
    rows.sort()
    arrival, ids, number, prompt, answer = (np.array(column) for column in zip(*rows, strict=True))
    return Trace(
        arrival.astype(np.float64),
        prompt.astype(np.int32),
        answer.astype(np.int32),
        session_id=ids.astype(np.int32),
        round=number.astype(np.int32),
        think_s=rng.exponential(think_s, len(rows)),
    )


@st.composite
def pools(draw, role: str, window: int) -> Pool:
    stages = draw(st.sampled_from([1, 1, 2]))
    batching = "vllm"
    if role == "prefill":
        batching = draw(
            st.sampled_from(
                [
                    "vllm",
                    "prefill-first",
                    "sjf",
                    "on-time+ttft_s=0.05",
                    "on-time+window=5+ttft_s=0.2",
                ]
            )
        )
    return Pool(
        name=role,
        timing=timing(window, scale=draw(st.sampled_from([1.0, 0.7]))),
        kv_blocks=draw(st.sampled_from([20, 34, 60, 400])) * stages,
        replicas=draw(st.integers(1, 3)),
        role=role,
        batching=batching,
        block_tokens=draw(st.sampled_from([8, 16])),
        max_num_seqs=draw(st.sampled_from([2, 3, 8, 20, 64])),
        max_num_batched_tokens=draw(st.sampled_from([64, 100, 256, 1000])),
        prefix_caching=draw(st.booleans()),
        pipeline_stages=stages,
        startup_s=draw(st.sampled_from([0.0, 0.0, 0.6])),
    )


@st.composite
def scenarios(draw) -> tuple[Fleet, Trace, ClosedLoop | None, int]:
    window = draw(st.sampled_from([0, 0, 90]))
    fleet = Fleet(
        (draw(pools("prefill", window)), draw(pools("decode", window))),
        link=KvLink(draw(st.sampled_from([0.0, 1e-3])), draw(st.sampled_from([1e-6, 3e-4]))),
        routing=draw(
            st.sampled_from(
                [
                    "local-prefill",
                    "remote-prefill",
                    "ampd",
                    "ampd+ttft_s=0.1+itl_s=0.02+window_s=1",
                    "ampd+ttft_s=0.02+itl_s=0.009+window_s=0.3",
                    "ampd+ttft_s=10+itl_s=0.01+window_s=0.1",
                    "ampd+ttft_s=0.001+itl_s=0.001",
                    "ampd+ttft_s=0.05+itl_s=0.02+alpha=0.5+beta=0.3+window_s=2",
                ]
            )
        ),
    )
    seed = draw(st.integers(0, 2**20))
    if draw(st.booleans()):
        requests = sessions(
            draw(st.integers(1, 20)),
            draw(st.sampled_from([2, 6])),
            draw(st.sampled_from([2.0, 15.0, 80.0, 1000.0])),
            seed,
            increment=draw(st.sampled_from([4, 30, 100])),
            output=draw(st.sampled_from([1, 5, 40])),
            think_s=draw(st.sampled_from([0.01, 0.3])),
            rewritten=draw(st.sampled_from([0.0, 0.3])),
        )
    else:
        requests = trace(
            draw(st.integers(1, 50)),
            draw(st.sampled_from([15.0, 80.0, 1000.0])),
            seed,
            sessions=draw(st.booleans()),
            prefixes=draw(st.sampled_from([0, 2])),
        )
    loop = None
    if draw(st.integers(0, 4)) == 0:
        loop = ClosedLoop(draw(st.integers(1, 12)), draw(st.sampled_from([0.0, 0.05])))
    return fleet, requests, loop, seed


def assert_rounds_equal(fleet, requests, loop, seed):
    assert_equal(fleet, requests, loop, seed, RoundsReference)
    result = simulate(fleet, requests, closed_loop=loop, seed=seed)
    reference = RoundsReference(fleet, requests, loop, seed).run()
    np.testing.assert_array_equal(result.rounds.branch, [r.branch for r in reference.requests])
    np.testing.assert_array_equal(
        result.rounds.history_tokens, [r.history for r in reference.requests]
    )
    np.testing.assert_array_equal(result.rounds.evicted, [r.evicted for r in reference.requests])
    assert result.rounds.evictions == sum(e.evictions for e in reference.decode)


@given(scenarios())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_leaping_equals_stepping(scenario):
    assert_rounds_equal(*scenario)


@given(scenarios(), st.sampled_from(["least-tokens", "power-of-two", "prefix-affinity"]))
@settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_on_time_batching_under_other_routing(scenario, routing):
    fleet, requests, loop, seed = scenario
    prefill, decode = fleet.pools
    prefill = replace(prefill, batching="on-time+window=4+ttft_s=0.1")
    assert_equal(replace(fleet, pools=(prefill, decode), routing=routing), requests, loop, seed)
