"""The simulator where queueing theory has an answer."""

import numpy as np
import pytest

from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.generate import generate
from gpusched.traces.trace import Trace

TOKEN_S = 1e-3


def linear():
    """An engine whose iterations take 10 ms and 10 µs a token."""
    zeros = np.zeros(1025)
    tokens = 1e-5 * np.arange(8193) + 1e-2
    return CompiledTiming(tokens, tokens[:1025], zeros, 1e-9, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


def one_at_a_time():
    """A replica that serves one prompt at a time in ``TOKEN_S`` a token: a single server."""
    tokens = np.arange(8193) * TOKEN_S
    zeros = np.zeros(1025)
    timing = CompiledTiming(tokens, zeros, zeros, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)
    pool = Pool(
        "server",
        timing,
        kv_blocks=1000,
        batching="prefill-first",
        max_num_seqs=1,
        max_num_batched_tokens=8192,
    )
    return Fleet((pool,))


def queue(prompt, load, seed=0):
    """Return the mean wait of Poisson arrivals, simulated and by Pollaczek and Khinchine."""
    service = prompt * TOKEN_S
    rate = load / service.mean()
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(prompt)))
    trace = Trace(arrivals, prompt.astype(np.int32), np.ones(len(prompt), np.int32))
    result = simulate(one_at_a_time(), trace)
    wait = (result.ttft_s - service).mean()
    return wait, rate * (service**2).mean() / (2 * (1 - load))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_constant_service_is_an_m_d_1_queue(load):
    wait, theory = queue(np.full(400_000, 100), load)
    assert wait == pytest.approx(theory, rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_random_service_is_an_m_g_1_queue(load):
    prompt = np.random.default_rng(1).integers(1, 400, 400_000)
    wait, theory = queue(prompt, load)
    assert wait == pytest.approx(theory, rel=0.03)


def test_an_idle_replica_serves_at_the_speed_of_its_timing_model():
    trace = Trace(np.array([0.0, 100.0]), np.array([100, 50], np.int32), np.array([1, 1], np.int32))
    assert simulate(one_at_a_time(), trace).ttft_s == pytest.approx([0.1, 0.05])


def test_tokens_are_conserved():
    trace = generate("chat", 30, 300, seed=2)
    timing = linear()
    for pools in (
        (Pool("all", timing, 5000, replicas=3),),
        (
            Pool("p", timing, 5000, replicas=2, role="prefill"),
            Pool("d", timing, 5000, replicas=2, role="decode"),
        ),
    ):
        result = simulate(Fleet(pools), trace)
        assert not result.rejected.any()
        again = result.preemptions > 0
        computed = sum(use.prompt_tokens for use in result.pools)
        assert computed >= trace.prompt_tokens.sum()
        if not again.any():
            assert computed == trace.prompt_tokens.sum()
        assert sum(use.output_tokens for use in result.pools) == trace.output_tokens.sum()
        assert result.gaps.counts.sum() == (trace.output_tokens - 1).sum()
        spent = (result.finish_s - result.first_token_s).sum()
        assert result.gaps.total_s == pytest.approx(spent, rel=1e-9)


def test_twice_the_replicas_take_the_same_load_each():
    trace = generate("chat", 20, 600, seed=3)
    timing = linear()
    result = simulate(Fleet((Pool("all", timing, 5000, replicas=4),), routing="round-robin"), trace)
    counts = np.bincount(result.replica, minlength=4)
    assert counts.max() - counts.min() <= 1
