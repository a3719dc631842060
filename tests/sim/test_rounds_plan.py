"""Plans whose rounds are placed: policies with a plan's bounds, what fits together, the figures."""

from pathlib import Path

import pytest

from gpusched.domain.document import load_document
from gpusched.domain.plan import plan_from, read_plan
from gpusched.domain.spec import spec_from
from gpusched.errors import InputError
from gpusched.planning.planner import plan_deployment
from gpusched.report.words import figure_lines
from gpusched.sim.compare import Variant, with_policies
from gpusched.sim.deploy import fleet_for
from gpusched.sim.metrics import metrics
from gpusched.sim.simulate import simulate
from gpusched.traces.workload import load_workload

EXAMPLE = Path(__file__).parents[2] / "examples/agents.yaml"


def changed(**values):
    return plan_from({**load_document(EXAMPLE), **values}, origin="test")


def test_policies_take_the_tightest_bounds_of_the_plan():
    fleet = fleet_for(read_plan(EXAMPLE))
    assert fleet.routing == "ampd+window_s=10+ttft_s=5+itl_s=0.04"
    assert [pool.batching for pool in fleet.pools] == ["on-time+ttft_s=5", "vllm"]
    classes = {"slow": {"ttft_ms": 900, "e2e_ms": 9000}, "fast": {"ttft_ms": 400, "tpot_ms": 20}}
    plan = changed(slo=classes, routing={"name": "ampd", "itl_s": 0.5})
    assert fleet_for(plan).routing == "ampd+itl_s=0.5+ttft_s=0.4"
    assert fleet_for(changed(slo={"e2e_s": 9})).routing == "ampd+window_s=10"


def test_the_example_places_rounds_both_ways():
    plan = read_plan(EXAMPLE)
    plan = plan.model_copy(
        update={"workload": plan.workload.model_copy(update={"duration_s": 600})}
    )
    result = simulate(fleet_for(plan), load_workload(plan.workload, plan.slo, seed=0))
    figures = metrics(plan, result)
    assert 0.0 < figures["rounds"]["local_prefill_share"] < 1.0
    lines = dict(figure_lines(plan, figures))
    assert lines["local prefills"].endswith("of those with a history")
    assert "remote" in lines["prefills placed"]


def test_policies_compared_on_separate_pools():
    plan = read_plan(EXAMPLE)
    other = fleet_for(with_policies(plan, Variant("vllm", "remote-prefill")))
    assert other.routing == "remote-prefill"
    assert [pool.batching for pool in other.pools] == ["vllm", "vllm"]
    other = fleet_for(with_policies(plan, Variant("on-time+window=5", "least-tokens")))
    assert other.pools[0].batching == "on-time+window=5+ttft_s=5"


def test_a_spec_needs_separate_pools():
    values = load_document(EXAMPLE)
    spec = {key: values[key] for key in ("model", "cluster", "workload", "slo", "routing")}
    question = spec_from({**spec, "search": {"roles": ["mixed"]}})
    with pytest.raises(InputError, match=r"routing ampd.* search.roles leaves out; add disagg"):
        plan_deployment(question)
    mixed = [{**pool, "role": "mixed"} for pool in values["pools"]]
    with pytest.raises(
        InputError, match="pool prefill: on-time batching orders prompts on prefill"
    ):
        fleet_for(changed(pools=mixed))
