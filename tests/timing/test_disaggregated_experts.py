import itertools

import numpy as np
import pytest

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.domain.plan import plan_from
from gpusched.errors import InfeasibleError, InputError
from gpusched.sim.deploy import fleet_for, pool_timing
from gpusched.timing.disaggregated_experts import DisaggregatedExperts
from gpusched.timing.iteration import timing_model


def replica(model="deepseek-v3", attention=3, experts=5, **more):
    engine = timing_model(load_model(model), load_gpu("h200_sxm"), Parallelism())
    return DisaggregatedExperts(engine, attention, experts, **more)


@pytest.mark.parametrize("model", ["deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b"])
def test_compiled_times_are_near_those_solved_one_by_one(model):
    own = replica(model)
    c = own.compile()
    for batch in (1, 16, 100, 256):
        for context, error in ((300, 0.15), (512, 0.1), (1024, 0.005), (2048, 0.1), (4000, 0.2)):
            compiled = (
                c.decode_s[batch]
                + c.context_s * batch * context
                + c.window_context_s * batch * min(context, c.window)
            )
            assert compiled == pytest.approx(own.decode_s(batch, context), rel=error)
    for tokens in () if c.window else (100, 1000, 8000):
        compiled = c.tokens_s[tokens] + c.logits_s[1] + c.work_s * tokens * (tokens + 1) / 2
        assert compiled == pytest.approx(own.prefill_s(tokens), rel=0.1)


def test_times_grow_with_batch_context_and_imbalance():
    own = replica()
    steps = [own.decode_s(b, 1000) for b in (1, 8, 64, 256, 1024)]
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert own.decode_s(64, 8000) > own.decode_s(64, 1000)
    assert replica(imbalance=2.0).decode_s(64, 1000) > own.decode_s(64, 1000)
    assert replica(experts=10).expert_s(np.array([512.0])) < own.expert_s(np.array([512.0]))
    c = own.compile(2048, 256)
    assert (np.diff(c.tokens_s[1:]) > -1e-5).all()
    assert c.decode_s[0] == c.tokens_s[0] == 0


def test_pieces_are_cut_where_experts_and_links_are_slow():
    own = replica()
    cut = own.schedule(8192, own._prefill_context_s(8192, 2048), own.attention.prefill_fixed_s)
    assert cut.candidate > 0
    small = own.schedule(8, own._decode_context_s(8, 1000), own.attention.decode_fixed_s)
    assert small.r2 == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "llama-3.1-8b"}, "llama-3.1-8b has no experts"),
        ({"attention": 0}, "at least 1"),
        ({"experts": 500}, "500 for 256 experts"),
        ({"imbalance": float("nan")}, "expert_imbalance"),
        ({"context_tokens": 0.0}, "context_tokens"),
    ],
)
def test_impossible_replicas_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        replica(**arguments)


def plan(**pool):
    return plan_from(
        {
            "gpusched": "plan/1",
            "model": "deepseek-v3",
            "weights_dtype": "fp8",
            "cluster": {"nodes": [{"name": "n", "gpu": "h200_sxm", "count": 4}]},
            "pools": [{"name": "all", "nodes": "n", "gpu": "h200_sxm", "replicas": 1, **pool}],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 10},
            "slo": {"ttft_ms": 2000, "tpot_ms": 100},
        }
    )


def test_a_plan_selects_it():
    document = plan(attention_gpus=4, expert_gpus=12, replicas=2)
    assert document.gpus == 32
    assert "4 attention + 12 expert GPUs" in document.summary
    assert isinstance(pool_timing(document, document.pools[0]), DisaggregatedExperts)
    (pool,) = fleet_for(document).pools
    assert pool.gpus_per_replica == 16
    (fewer,) = fleet_for(plan(attention_gpus=2, expert_gpus=12)).pools
    assert 1.9 < pool.kv_blocks / fewer.kv_blocks < 2.1


def test_what_does_not_fit_is_named():
    with pytest.raises(InfeasibleError, match=r"an expert GPU needs .* raise expert_gpus"):
        fleet_for(plan(attention_gpus=4, expert_gpus=4))


@pytest.mark.parametrize(
    "pool",
    [
        {"attention_gpus": 4},
        {"expert_gpus": 4},
        {"attention_gpus": 4, "expert_gpus": 4, "tensor_parallel_size": 2},
        {"attention_gpus": 4, "expert_gpus": 4, "enable_expert_parallel": True},
        {"attention_gpus": 0, "expert_gpus": 4},
    ],
)
def test_contradictory_pools_are_named(pool):
    with pytest.raises(InputError, match=r"attention_gpus|expert_gpus"):
        plan(**pool)
