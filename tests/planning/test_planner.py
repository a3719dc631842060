"""The planner against exhaustive search, and its answers to impossible questions."""

import copy

import numpy as np
import pytest

from gpusched.domain.plan import plan_document, plan_from, read_plan, write_plan
from gpusched.domain.spec import spec_from
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.candidates import enumerate_engines
from gpusched.planning.planner import plan_deployment
from gpusched.planning.search import Deployment, Search
from gpusched.traces.workload import load_workload

SPEC = {
    "model": "llama-3.1-8b",
    "cluster": {
        "nodes": [
            {"name": "a", "gpu": "h100_sxm", "gpus": 4},
            {"name": "b", "gpu": "l40s", "gpus": 4},
        ]
    },
    "workload": {"profile": "chat", "rate_rps": 10, "duration_s": 300},
    "slo": {"ttft_ms": 1000, "tpot_ms": 40, "attainment": 0.95},
}


def spec(**changes):
    return spec_from({**copy.deepcopy(SPEC), **changes})


@pytest.mark.parametrize("objective", ["cost", "gpus", "carbon"])
def test_no_deployment_of_the_cluster_is_better(objective):
    question = spec(objective=objective, search={"roles": ["mixed"]})
    answer = plan_deployment(question)
    trace = load_workload(question.workload, question.slo)
    search = Search(question, trace, seed=0)
    engines, _ = enumerate_engines(question, trace)
    every = [
        search.score(Deployment((engine,), (count,)))
        for engine in engines
        for count in range(1, engine.max_replicas + 1)
    ]
    best = min(search.achieved(s)[0] for s in every if s.feasible)
    assert answer.plan.certificate.value == pytest.approx(best, rel=1e-9)
    for scored in every:
        if scored.feasible:
            (engine,), (count,) = scored.deployment.engines, scored.deployment.counts
            assert count >= search.least_replicas(engine)


def test_goodput_uses_what_the_cluster_has():
    question = spec(
        objective="goodput",
        workload={"profile": "chat", "rate_rps": 60, "duration_s": 120},
        slo={"ttft_ms": 1000, "attainment": 0.3},
    )
    answer = plan_deployment(question)
    assert answer.plan.predicted["goodput_rps"] == pytest.approx(
        max(a.goodput_rps for a in (*answer.plan.pareto, *answer.plan.runners_up)), rel=1e-3
    )


def test_the_answer_meets_the_objectives_and_says_what_binds():
    plan = plan_deployment(spec()).plan
    assert plan.predicted["slo_attainment"] >= 0.95
    assert plan.certificate.bound <= plan.certificate.value
    assert plan.binding_constraint
    assert sum(a.chosen for a in plan.pareto) == 1
    costs = [a.usd_per_hour for a in plan.pareto]
    assert costs == sorted(costs)
    assert plan.gpus <= 8


def test_same_seed_same_plan(tmp_path):
    one, two = (plan_document(plan_deployment(spec()).plan) for _ in range(2))
    for plan in (one, two):
        plan["certificate"].pop("seconds")
        for key in ("wall_s", "requests_per_wall_s"):
            plan["predicted"].pop(key)
    assert one == two


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_plans_survive_writing(tmp_path, ending):
    plan = plan_deployment(spec()).plan
    write_plan(plan, tmp_path / f"plan.{ending}")
    assert plan_document(read_plan(tmp_path / f"plan.{ending}")) == plan_document(plan)


def test_plans_are_checked():
    values = plan_document(plan_deployment(spec()).plan)
    values["pools"][0]["replicas"] = 999
    with pytest.raises(InputError, match="999"):
        plan_from(values)
    with pytest.raises(InputError, match="plan/1"):
        plan_from({"gpusched": "plan/9"})


def test_several_classes_each_meet_theirs():
    classes = {
        "fast": {"ttft_ms": 400, "tpot_ms": 40, "attainment": 0.9, "share": 0.3},
        "slow": {"e2e_s": 120, "attainment": 0.99, "share": 0.7},
    }
    plan = plan_deployment(spec(slo=classes)).plan
    shares = plan.predicted["slo_attainment_by_class"]
    assert shares["fast"] >= 0.9
    assert shares["slow"] >= 0.99


def test_mixtures_of_experts_try_expert_parallelism():
    question = spec(model="qwen3-30b-a3b")
    engines, _ = enumerate_engines(question, load_workload(question.workload, question.slo))
    assert {e.pool.enable_expert_parallel for e in engines} == {True, False}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "llama-3.1-405b"}, ["memory", "GB"]),
        ({"slo": {"tpot_ms": 1}}, ["TPOT", "allow a TPOT"]),
        ({"slo": {"ttft_ms": 1}}, ["TTFT", "allow a TTFT"]),
        ({"workload": {"profile": "chat", "rate_rps": 500, "duration_s": 60}}, ["GPUs", "rate_scale"]),
        ({"search": {"tensor_parallel_sizes": [3]}}, ["search"]),
    ],
)  # fmt: skip
def test_impossible_questions_name_the_constraint_and_a_remedy(changes, words):
    with pytest.raises(InfeasibleError) as caught:
        plan_deployment(spec(**changes))
    for word in words:
        assert word in str(caught.value)


def test_bound_holds_for_real_traces(shared):
    question = spec(
        workload={"trace": str(shared / "traces/azure_2023_conv.parquet"), "limit": 3000}
    )
    plan = plan_deployment(question).plan
    assert plan.predicted["requests"] == 3000
    assert np.isfinite(plan.certificate.bound)
