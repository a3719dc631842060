"""Data-parallel units that step together: what physics demands of them."""

import numpy as np
import pytest
from fleets import timing, trace
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.simulate import simulate
from gpusched.traces.trace import Trace


def pool(name, compiled, **settings):
    given = {"kv_blocks": 400, "max_num_seqs": 64, "max_num_batched_tokens": 256, **settings}
    return Pool(name, compiled, **given)


def units(count, *, experts=True, **settings):
    """A replica of units that take turns, with or without time in the experts."""
    compiled = timing()
    if not experts:
        compiled = compiled._replace(experts_s=np.zeros(2))
    return Fleet(
        (pool("engines", compiled, data_parallel=count, **settings),), routing="round-robin"
    )


def mirrored(requests, count):
    """Every request ``count`` times at once."""
    columns = (requests.arrival_s, requests.prompt_tokens, requests.output_tokens)
    return Trace(*(np.repeat(column, count) for column in columns))


@given(
    st.sampled_from(["vllm", "prefill-first", "sarathi", "greedy"]),
    st.sampled_from([2, 3, 8]),
    st.sampled_from([30, 400]),
    st.integers(0, 1000),
)
def test_units_with_the_same_traffic_are_separate_engines(batching, count, kv_blocks, seed):
    requests = trace(30, 20.0, seed)
    settings = {"batching": batching, "kv_blocks": kv_blocks}
    alone = simulate(units(1, **settings), requests)
    together = simulate(units(count, **settings), mirrored(requests, count))
    for name in ("admitted_s", "first_token_s", "finish_s", "preemptions"):
        expected = np.repeat(getattr(alone, name), count)
        np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-9)
    assert together.pools[0].busy_s == pytest.approx(alone.pools[0].busy_s)
    assert together.pools[0].prefill_busy_s == pytest.approx(alone.pools[0].prefill_busy_s)
    assert together.pools[0].iterations == alone.pools[0].iterations * count


def test_idle_units_cost_nothing_but_share_the_experts():
    requests = trace(1, 1.0, 0)
    alone = simulate(units(1), requests).finish_s
    assert simulate(units(4, experts=False), requests).finish_s == pytest.approx(alone)
    assert simulate(units(4), requests).finish_s < alone


@pytest.mark.parametrize("experts", [False, True])
def test_a_long_prefill_delays_its_siblings_by_exactly_its_own_time(experts):
    fleet = units(2, experts=experts, max_num_batched_tokens=1000)
    decoding, prompt = 100, 300
    requests = Trace(
        np.array([0.0, 0.1]), np.array([decoding, prompt], np.int32), np.array([40, 1], np.int32)
    )
    result = simulate(fleet, requests)
    t = fleet.pools[0].timing
    table = t.experts_s if experts else np.zeros(2000)
    other = t._replace(experts_s=np.zeros(2))
    alone = simulate(
        Fleet((pool("engines", other, max_num_batched_tokens=1000),)),
        requests.take(np.array([1])),
    )
    prefill_s = alone.first_token_s[0] - alone.admitted_s[0]
    step_s = prefill_s - table[2 * prompt] + table[1 + prompt]
    assert result.first_token_s[1] - result.admitted_s[1] == pytest.approx(step_s, rel=1e-12)
    assert result.gaps.max_s == pytest.approx(step_s, rel=1e-12)
    rest = (result.finish_s[0] - result.first_token_s[0]) - step_s
    alone = simulate(units(2, experts=experts), requests.take(np.array([0])))
    one_less = (alone.finish_s[0] - alone.first_token_s[0]) * 38 / 39
    assert rest == pytest.approx(one_less, rel=1e-3)


def test_a_unit_starts_with_the_next_step_of_its_siblings():
    requests = Trace(
        np.array([0.0, 0.2]), np.array([100, 10], np.int32), np.array([200, 1], np.int32)
    )
    result = simulate(units(2, experts=False), requests)
    steps = np.cumsum(
        timing().decode_s[1]
        + timing().context_s * np.arange(101, 300)
    ) + result.first_token_s[0]  # fmt: skip
    assert result.admitted_s[1] == pytest.approx(steps[steps >= 0.2][0], rel=1e-12)


@pytest.mark.parametrize("routing", ["least-tokens", "power-of-two", "round-robin"])
def test_tokens_are_conserved(routing):
    requests = trace(400, 60.0, 5)
    for pools in (
        (pool("all", timing(), kv_blocks=60, replicas=2, data_parallel=4, pipeline_stages=2),),
        (
            pool("p", timing(), kv_blocks=60, replicas=2, data_parallel=2, role="prefill"),
            pool("d", timing(), kv_blocks=60, data_parallel=4, role="decode"),
        ),
    ):
        result = simulate(Fleet(pools, KvLink(1e-4, 1e-6), routing), requests)
        assert not result.rejected.any()
        computed = sum(use.prompt_tokens for use in result.pools)
        again = (result.preemptions > 0).any()
        assert (
            computed > requests.prompt_tokens.sum()
            if again
            else computed == requests.prompt_tokens.sum()
        )
        assert sum(use.output_tokens for use in result.pools) == requests.output_tokens.sum()
        assert result.gaps.counts.sum() == (requests.output_tokens - 1).sum()
        spent = (result.finish_s - result.first_token_s).sum()
        assert result.gaps.total_s == pytest.approx(spent, rel=1e-9)
        for use, own in zip(result.pools, pools, strict=True):
            assert 0 < use.busy_s <= result.makespan_s * own.replicas
            assert use.prefill_busy_s <= use.busy_s
        assert 0 < result.kv_use.max() <= 1
        assert result.replica.max() == sum(own.replicas for own in pools) - 1


def test_units_wait_for_one_another():
    requests = trace(600, 40.0, 1, max_prompt=250)
    coupled = simulate(units(4, experts=False), requests)
    separate = simulate(units(1, replicas=4), requests)
    np.testing.assert_array_equal(coupled.replica, 0)
    assert coupled.e2e_s.mean() > separate.e2e_s.mean()
    assert coupled.pools[0].busy_s > separate.pools[0].busy_s / 4


def test_disciplines_that_hold_by_time_are_refused():
    with pytest.raises(InputError, match="data-parallel units"):
        units(2, batching="wait")
    with pytest.raises(InputError, match="data_parallel must be at least 1"):
        units(0)
