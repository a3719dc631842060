"""A simulated engine's iterations are the simulator's: same finishes, preemptions and cache hits."""

from math import inf

import numpy as np
import pytest

from gpusched.engines.simulated.iterations import IterationEngine, Sequence
from gpusched.errors import InputError
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace

TOKENS, SEQUENCES = np.arange(2049.0), np.arange(33.0)
TIMING = CompiledTiming(
    6e-3 + 2e-5 * TOKENS, 5e-3 + 1e-5 * SEQUENCES, 3e-6 * SEQUENCES, 4e-7, 0.0, 0, 3e-4, 4e-4,
    2e-9, 0.0,
)  # fmt: skip


class Record:
    """Keeps the times of a sequence's tokens."""

    def __init__(self):
        self.times = []
        self.closed = False

    def token(self, now_s, *, last):
        assert not self.closed
        self.times.append(now_s)
        self.closed = last


def serve(engine, trace):
    """Run a trace in virtual time; return the records."""
    records = [Record() for _ in range(len(trace))]
    arrivals = list(range(len(trace)))
    now_s = 0.0

    def submit_until(until_s):
        while arrivals and trace.arrival_s[arrivals[0]] <= until_s:
            i = arrivals.pop(0)
            priority = 0 if trace.class_id is None else int(trace.class_id[i])
            sequence = Sequence(
                int(trace.prompt_tokens[i]), int(trace.output_tokens[i]), records[i],
                max_tokens=10**6, priority=priority,
            )  # fmt: skip
            engine.submit(sequence, float(trace.arrival_s[i]))

    while not all(record.closed for record in records):
        submit_until(now_s)
        duration_s = engine.begin(now_s)
        if duration_s is None:
            upcoming_s = float(trace.arrival_s[arrivals[0]]) if arrivals else inf
            now_s = min(upcoming_s, engine.next_look_s(now_s))
            assert now_s < inf, "requests are stuck"
            continue
        now_s += duration_s
        submit_until(now_s - 1e-12)
        engine.end(now_s)
    assert engine.kv.available == engine.kv.blocks
    return records


def requests(seed, rate_rps=20.0, n=150, longest=200):
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        rng.integers(10, 300, n).astype(np.int32),
        rng.integers(1, longest, n).astype(np.int32),
        class_id=rng.integers(0, 3, n).astype(np.int16),
        class_names=("a", "b", "c"),
    )


@pytest.mark.parametrize("kv_blocks", [60, 400])
@pytest.mark.parametrize(
    "policy",
    [
        "vllm",
        "priority",
        "sarathi+chunk_tokens=64",
        "sjf+predictor=oracle",
        "mc-sf+predictor=oracle+margin=0",
        "mc-sf+predictor=constant:40+margin=0.1+skip=3",
        "mc-volume+predictor=oracle",
        "a-min+predictor=constant:20",
        "greedy+margin=0.1",
    ],
)
def test_finishes_are_the_simulators(policy, kv_blocks):
    trace = requests(kv_blocks)
    pool = Pool(
        "engine", TIMING, kv_blocks, batching=policy, max_num_seqs=32, max_num_batched_tokens=256
    )
    engine = IterationEngine(
        TIMING, batching=policy, kv_blocks=kv_blocks, max_num_seqs=32, max_num_batched_tokens=256
    )
    records = serve(engine, trace)
    expected = simulate(Fleet((pool,)), trace)
    np.testing.assert_allclose([r.times[-1] for r in records], expected.finish_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        [r.times[0] for r in records], expected.first_token_s, rtol=0, atol=1e-9
    )
    assert [len(r.times) for r in records] == trace.output_tokens.tolist()
    assert engine.counts.preemptions == expected.preemptions.sum()
    if kv_blocks == 60 and policy in ("vllm", "sjf+predictor=oracle"):
        assert engine.counts.preemptions > 0


@pytest.mark.parametrize("policy", ["wait+predictor=constant:100", "nested-wait"])
def test_groups_are_learned_and_nobody_is_stuck(policy):
    engine = IterationEngine(
        TIMING, batching=policy + "+reestimate_s=0.5", kv_blocks=1500, max_num_seqs=32
    )
    records = serve(engine, requests(3, rate_rps=5.0, n=200))
    assert all(record.closed for record in records)
    assert engine.estimator.estimates > 5


def test_a_prefix_is_computed_once():
    engine = IterationEngine(TIMING, kv_blocks=200)
    prefix, records = tuple(range(6)), [Record(), Record()]
    for number, record in enumerate(records):
        engine.submit(Sequence(100, 3, record, prefix=prefix), float(number))
        now_s = float(number)
        while not record.closed:
            now_s += engine.begin(now_s)
            engine.end(now_s)
    assert engine.counts.cache_hits == 96
    assert engine.counts.prompt_tokens == 100 + 4
    first, second = (r.times[0] - n for n, r in enumerate(records))
    assert second < first


def test_a_cancelled_sequence_gives_back_its_blocks():
    engine = IterationEngine(
        TIMING, batching="mc-sf+predictor=oracle", kv_blocks=40, max_num_seqs=2
    )
    sequences = [Sequence(50, 20, Record()) for _ in range(4)]
    for sequence in sequences:
        engine.submit(sequence, 0.0)
    now_s = engine.begin(0.0)
    engine.cancel(sequences[0])
    engine.cancel(sequences[3])
    engine.end(now_s)
    assert not sequences[0].sink.times
    while (duration_s := engine.begin(now_s)) is not None:
        now_s += duration_s
        engine.end(now_s)
    assert [s.sink.closed for s in sequences] == [False, True, True, False]
    assert engine.kv.available == 40
    assert (engine.waiting, len(engine.running)) == (0, 0)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("mlfq", "preempts for"),
        ("prefill-first", "chunked batches"),
        ("sjf+predictor=lognormal:1", "does not learn from ended answers"),
        ("wait+reestimate_s=0", "leave it out"),
        ("mc-sf+restart=true", "restart"),
    ],
)
def test_policies_that_an_engine_cannot_run(policy, message):
    with pytest.raises(InputError, match=message):
        IterationEngine(TIMING, batching=policy)


def test_a_sequence_that_can_never_fit():
    engine = IterationEngine(TIMING, kv_blocks=4)
    with pytest.raises(InputError, match="exceed the KV cache"):
        engine.submit(Sequence(60, 10, Record()), 0.0)
