import pytest

from gpusched.domain.plan import plan_from
from gpusched.errors import InputError
from gpusched.sim.deploy import pool_timing


def plan(expert_parallel=True, **engine):
    return plan_from(
        {
            "gpusched": "plan/1",
            "model": "gpt-oss-120b",
            "weights_dtype": "mxfp4",
            "cluster": {"nodes": [{"name": "n", "gpu": "h100_sxm", "count": 1}]},
            "pools": [
                {
                    "name": "all", "nodes": "n", "gpu": "h100_sxm", "replicas": 1,
                    "tensor_parallel_size": 4, "enable_expert_parallel": expert_parallel,
                    "engine": engine,
                }
            ],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 10},
            "slo": {"ttft_ms": 2000, "tpot_ms": 50},
        }
    )  # fmt: skip


def decode_s(document):
    return pool_timing(document, document.pools[0]).decode_s(256, 1000)


def test_a_pool_takes_a_measured_imbalance():
    even, skewed = decode_s(plan(expert_imbalance=1.0)), decode_s(plan(expert_imbalance=2.0))
    assert even <= decode_s(plan()) <= skewed
    assert even < skewed


def test_it_does_not_touch_engines_whose_experts_are_not_spread():
    assert decode_s(plan(False, expert_imbalance=2.0)) == decode_s(plan(False))


@pytest.mark.parametrize("ratio", [0.5, float("nan")])
def test_impossible_ratios_are_named(ratio):
    with pytest.raises(InputError, match="expert_imbalance"):
        plan(expert_imbalance=ratio)
