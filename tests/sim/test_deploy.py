"""From a plan with data-parallel attention to the fleet that is simulated."""

from pathlib import Path

import numpy as np
import pytest

from gpusched.domain.document import load_document
from gpusched.domain.plan import plan_from, read_plan
from gpusched.errors import InputError
from gpusched.sim.deploy import fleet_for, link_rates, pool_memory, pool_timing
from gpusched.sim.metrics import metrics
from gpusched.sim.simulate import simulate
from gpusched.traces.workload import load_workload

EXAMPLE = Path(__file__).parents[2] / "examples/deepseek-dp.yaml"


def test_units_of_the_example():
    plan = read_plan(EXAMPLE)
    prefill, decode = plan.pools
    assert plan.gpus == 48
    assert plan.summary == "4 × h200_sxm DP8·EP prefill + 1 × h200_sxm DP16·EP decode"
    assert str(decode.parallelism) == "DP16·EP16"
    assert list(link_rates(plan)) == [50e9, 50e9]
    fleet = fleet_for(plan)
    assert [pool.data_parallel for pool in fleet.pools] == [8, 16]
    assert [pool.gpus_per_replica for pool in fleet.pools] == [8, 16]
    for pool, planned in zip(fleet.pools, plan.pools, strict=True):
        use = pool_memory(plan, planned)
        assert pool.kv_blocks == use.kv_blocks(16, planned.engine.max_num_seqs)
        assert pool.kv_blocks * 16 * use.kv_bytes_per_token <= use.kv_bytes
    assert pool_memory(plan, decode).weights_bytes < pool_memory(plan, prefill).weights_bytes


def test_experts_are_the_shared_part_of_an_iteration():
    for pool in read_plan(EXAMPLE).pools:
        model = pool_timing(read_plan(EXAMPLE), pool)
        compiled, units = model.compile(), pool.data_parallel_size
        own = compiled.tokens_s - compiled.experts_s[: len(compiled.tokens_s) * units : units]
        assert (own[1:] > 0).all()
        assert (np.diff(own[1:]) >= 0).all()
        assert (np.diff(compiled.experts_s) >= 0).all()
        last, slope = len(compiled.experts_s) - 1, np.diff(compiled.experts_s)[-1]
        beyond = float(model.experts_s(np.float64(3 * last)))
        assert compiled.experts_s[-1] + 2 * last * slope == pytest.approx(beyond, rel=1e-6)


def test_the_example_meets_its_objectives():
    plan = read_plan(EXAMPLE)
    plan = plan.model_copy(update={"workload": plan.workload.model_copy(update={"duration_s": 60})})
    result = simulate(fleet_for(plan), load_workload(plan.workload, plan.slo, seed=0))
    figures = metrics(plan, result)
    assert figures["slo_attainment"] >= plan.slo.only.attainment
    assert (result.replica[result.output_tokens > 1] == 4).all()
    for pool in figures["pools"]:
        assert 0.5 < pool["utilization"] <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"enable_expert_parallel": False}, "needs enable_expert_parallel"),
        ({"data_parallel_size": 64}, "the pools use"),
    ],
)
def test_impossible_units_are_refused_when_read(change, words):
    values = load_document(EXAMPLE)
    values["pools"][1] |= change
    with pytest.raises(InputError, match=words):
        plan_from(values)


def test_units_of_a_dense_model_are_refused():
    values = load_document(EXAMPLE) | {"model": "llama-3.1-8b"}
    with pytest.raises(InputError, match="no experts"):
        fleet_for(plan_from(values))


def test_units_cannot_hold_requests_by_time():
    values = load_document(EXAMPLE)
    values["pools"] = [values["pools"][1] | {"role": "mixed"}]
    values["pools"][0]["engine"] |= {"batching": "wait"}
    with pytest.raises(InputError, match="data-parallel units"):
        fleet_for(plan_from(values))
