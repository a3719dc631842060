"""Plans for sessions: what they promise, how they are checked, and impossible questions."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from gpusched.domain.plan import plan_document, plan_from
from gpusched.domain.spec import spec_from
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.planner import plan_deployment
from gpusched.planning.rounds.check import violations
from gpusched.planning.rounds.search import RoundsSearch
from gpusched.sim.deploy import fleet_for
from gpusched.sim.sessions import session_attainments, sessions_met
from gpusched.sim.simulate import simulate
from gpusched.traces.workload import load_workload

SPEC = {
    "model": "qwen3-32b",
    "cluster": {
        "nodes": [{"name": "h100", "gpu": "h100_sxm", "gpus": 8, "count": 2}],
        "inter_node_gbps": 3200,
    },
    "workload": {"profile": "rag", "rate_rps": 30, "duration_s": 60, "rounds": True},
    "slo": {"ttft_ms": 500, "tpot_ms": 40, "attainment": 0.9},
}


def spec(**changes):
    return spec_from({**copy.deepcopy(SPEC), **changes})


@pytest.fixture(scope="module")
def answer():
    return plan_deployment(spec(search={"roles": ["disaggregated"]}))


def test_the_plan_is_an_ordinary_one_with_its_evidence(answer):
    plan = answer.plan
    assert {pool.role for pool in plan.pools} == {"prefill", "decode"}
    assert plan.routing == "ampd"
    assert all((p.engine.batching == "on-time") == (p.role == "prefill") for p in plan.pools)
    certificate = plan.certificate
    assert 0 < certificate.bound <= certificate.value == pytest.approx(plan.usd_per_hour)
    assert 0 < certificate.load_bound <= certificate.load * (1 + 1e-9)
    assert certificate.gap == pytest.approx(1 - certificate.bound / certificate.value)
    assert any("incremental prefills" in line for line in plan.assumptions)
    assert plan_document(plan_from(plan_document(plan))) == plan_document(plan)


def test_sessions_meet_the_objectives_by_a_plain_count(answer):
    """Session by session, from the times of the simulation."""
    plan, result, trace = answer.plan, answer.result, answer.trace
    again = simulate(fleet_for(plan), trace)
    met = 0
    for session in np.unique(trace.session_id):
        rows = np.flatnonzero(trace.session_id == session)
        first = (again.first_token_s - again.arrival_s)[rows]
        spent = (again.finish_s - again.first_token_s)[rows].sum()
        gaps = (again.output_tokens[rows] - 1).sum()
        met += bool((first <= 0.5).all() and spent <= 0.04 * max(gaps, 1) * (1 + 1e-12))
    share = met / len(np.unique(trace.session_id))
    assert plan.predicted["session_attainment"] == pytest.approx(share)
    assert share >= 0.9
    (ours,) = session_attainments(sessions_met(result, trace, plan.slo)).values()
    assert ours == pytest.approx(share)


def test_no_worker_can_be_spared(answer):
    plan = answer.plan
    for i, pool in enumerate(plan.pools):
        if pool.replicas > 1:
            pools = list(plan.pools)
            pools[i] = pool.model_copy(update={"replicas": pool.replicas - 1})
            less = plan.model_copy(update={"pools": tuple(pools)})
            met = sessions_met(simulate(fleet_for(less), answer.trace), answer.trace, plan.slo)
            assert session_attainments(met)["default"] < 0.9


def test_every_simulated_split_is_sound_and_unsound_ones_are_named():
    question = spec(search={"roles": ["disaggregated"], "max_gpus": 12})
    trace = load_workload(question.workload, question.slo)
    search = RoundsSearch(question, trace, seed=0)
    search.search_rounds()
    assert all(not violations(question, trace, d) for d in search.scored)
    assert all(d.gpus <= 12 for d in search.scored)
    deployment = next(iter(search.scored))
    crowded = replace(deployment, counts=tuple(9 * n for n in deployment.counts))
    assert any("GPUs" in line for line in violations(question, trace, crowded))
    lone = replace(deployment, roles=("decode",) * len(deployment.roles))
    assert "a phase has no worker" in violations(question, trace, lone)


def test_goodput_uses_the_gpus_it_is_given():
    question = spec(
        objective="goodput",
        workload={**SPEC["workload"], "rate_rps": 60, "rounds": {"shortlist": 6}},
        search={"roles": ["disaggregated"], "max_gpus": 8},
        slo={"ttft_ms": 500, "tpot_ms": 40, "attainment": 0.05},
    )
    plan = plan_deployment(question).plan
    assert plan.gpus <= 8
    assert plan.certificate.load == pytest.approx(plan.certificate.load_bound, rel=0.35)


def test_a_given_local_share_is_kept():
    question = spec(
        workload={**SPEC["workload"], "rounds": {"local_share": 0.0, "count": "rounds"}},
        search={"roles": ["disaggregated"]},
        routing="remote-prefill",
    )
    plan = plan_deployment(question).plan
    assert plan.routing == "remote-prefill"
    assert plan.predicted["rounds"]["local_prefill_share"] == 0
    assert plan.predicted["slo_attainment"] >= 0.9
    assert "session_attainment" not in plan.predicted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slo": {"ttft_ms": 20, "tpot_ms": 40}}, ["may prefill", "TTFT", "allow a TTFT"]),
        ({"slo": {"ttft_ms": 500, "tpot_ms": 4}}, ["may decode", "TPOT", "allow a TPOT"]),
        ({"model": "llama-3.1-405b"}, ["memory", "GB"]),
        (
            {"workload": {**SPEC["workload"], "rate_rps": 900, "duration_s": 20}},
            ["number of GPUs", "% of the load", "About"],
        ),
    ],
)
def test_impossible_questions_name_the_constraint(changes, words):
    with pytest.raises(InfeasibleError) as caught:
        plan_deployment(spec(search={"roles": ["disaggregated"]}, **changes))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"profile": "chat", "rate_rps": 5, "rounds": True}, "no sessions"),
        ({"profile": "rag", "rate_rps": 5, "rounds": {"local": 1}}, "local"),
        ({"profile": "rag", "rate_rps": 5, "rounds": {"local_share": 2}}, "local_share"),
        ({"profile": "rag", "rate_rps": 5, "rounds": True, "users": 3}, "closed loop"),
    ],
)
def test_bad_questions_get_one_clear_message(workload, words):
    with pytest.raises(InputError, match=words):
        plan_deployment(spec(workload=workload))


def test_plans_of_several_degrees_say_what_binds():
    """Three pools, and too few GPUs: the remedies keep the roles of the pools."""
    question = spec(
        search={"roles": ["disaggregated"], "max_gpus": 9},
        workload={**SPEC["workload"], "rate_rps": 38},
        slo={"ttft_ms": 330, "tpot_ms": 36, "attainment": 0.9999},
    )
    with pytest.raises(InfeasibleError) as caught:
        plan_deployment(question)
    assert "of sessions" in str(caught.value)
    assert "would help" in str(caught.value)
