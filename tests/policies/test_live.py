"""The same policies from a plain asyncio loop: decisions equal those in the simulator."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from gpusched.errors import InputError
from gpusched.policies.batching.discipline import LOOK_AHEAD, discipline
from gpusched.policies.batching.live import LiveQueue
from gpusched.policies.lengths.predictors import parse_predictor, predict
from gpusched.policies.views import Engine, Request
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.grouping import groups_for
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from asyncio_engine import serve_live

TOKENS, SEQUENCES = np.arange(2049.0), np.arange(33.0)
TIMING = CompiledTiming(
    6e-3 + 2e-5 * TOKENS, 5e-3 + 1e-5 * SEQUENCES, 3e-6 * SEQUENCES, 4e-7, 0.0, 0, 3e-4, 4e-4,
    2e-9, 0.0,
)  # fmt: skip
VIEW = Engine(0.0, 0, 32, 1600, 1600)


def requests(seed, rate_rps=20.0, n=150):
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        rng.integers(10, 300, n).astype(np.int32),
        rng.integers(1, 200, n).astype(np.int32),
        class_id=rng.integers(0, 3, n).astype(np.int16),
        class_names=("a", "b", "c"),
    )


@pytest.fixture
def own_policy(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import math\n\n\ndef shortest_first(request, engine, weight=1.0):\n"
        "    return request.predicted_tokens + weight * math.sqrt(request.prompt_tokens)\n"
    )
    return f"{file}:shortest_first+weight=2+predictor=oracle"


@pytest.mark.parametrize(
    "policy",
    [
        "vllm",
        "priority",
        "sjf+predictor=oracle",
        "sjf+predictor=noisy:0.5+ageing_tokens_per_s=40",
        "mc-sf+predictor=oracle+margin=0",
        "mc-sf+predictor=oracle+margin=0.1+skip=3",
        "mc-volume+predictor=oracle+margin=0",
        "mc-fcfs+predictor=oracle+margin=0",
        "wait+predictor=oracle+reestimate_s=0",
        "wait+predictor=oracle+start=strict+reestimate_s=0",
        "own",
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_asyncio_loop_decides_as_the_simulator(policy, seed, own_policy):
    policy = own_policy if policy == "own" else policy
    chosen, trace = discipline(policy), requests(seed)
    pool = Pool(
        "engine",
        TIMING,
        200 if chosen.gate == LOOK_AHEAD else 4000,
        batching=policy,
        max_num_seqs=32,
        max_num_batched_tokens=256,
    )
    predicted = predict(trace, parse_predictor(chosen.predictor or "oracle"), 0)
    groups = groups_for(pool, chosen, trace, predicted, 1)
    queue = LiveQueue(chosen, pool.kv_blocks * pool.block_tokens, groups=groups)

    async def serve():
        return await serve_live(pool, trace, queue, predicted)

    live = asyncio.run(serve())
    simulated = simulate(Fleet((pool,)), trace)
    rows = range(len(trace))
    np.testing.assert_allclose([live.admitted_s[i] for i in rows], simulated.admitted_s, rtol=1e-9)
    np.testing.assert_allclose([live.finished_s[i] for i in rows], simulated.finish_s, rtol=1e-9)


def test_a_preempted_request_comes_back_first_and_keeps_its_tokens():
    queue = LiveQueue(discipline("vllm"), 1600)
    for key in "abc":
        queue.add(key, Request(0.0, 10, 0, 50, 0), VIEW)
    for key in queue.candidates(VIEW, 0, 20):
        queue.start(key)
    assert list(queue.running) == ["a", "b"]
    queue.progress("b", 7)
    queue.preempt("b", VIEW)
    first = next(iter(queue.candidates(VIEW, 1, 100)))
    assert first == "b"
    assert queue.waiting["b"].request.produced_tokens == 7


@pytest.mark.parametrize("policy", ["vllm", "sjf", "mc-sf"])
def test_a_cancelled_request_never_starts(policy):
    queue = LiveQueue(discipline(policy), 1600)
    for key, length in enumerate((30, 10, 20)):
        queue.add(key, Request(0.0, 5, 0, length, 0), VIEW)
    queue.cancel(1)
    started = []
    for key in queue.candidates(VIEW, 0, 100):
        queue.start(key)
        started.append(key)
    assert sorted(started) == [0, 2]
    assert len(queue) == 0


def test_a_users_function_that_fails_is_named(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def bad(request, engine):\n    return 1.0 / request.prompt_tokens\n")
    queue = LiveQueue(discipline(f"{file}:bad"), 1600)
    with pytest.raises(InputError, match=r"bad\.py:bad raised ZeroDivisionError"):
        queue.add("a", Request(0.0, 0, 0, 5, 0), VIEW)


def test_groups_need_thresholds():
    with pytest.raises(InputError, match="needs groups"):
        LiveQueue(discipline("wait"), 1600)
